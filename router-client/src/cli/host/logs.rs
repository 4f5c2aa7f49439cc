//! What a bridge logged last, and what it goes on to log: lines of a ring that the supervisor keeps.

use std::path::PathBuf;
use std::time::Duration;

use protocol::{E164, PhoneId, UnixMs};
use serde::{Deserialize, Serialize};

use super::super::client::{Client, Request, Who, typed};
use super::super::failure::Failure;
use super::super::screen::{Screen, printable};
use super::{Global, dispatch};

/// How often a follower looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A supervisor that is being restarted is back within seconds; following goes on.
const FOLLOW_AGAIN_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The phone's id, or its number
    phone: String,
    /// Goes on showing what is logged
    #[arg(long, short)]
    follow: bool,
    /// The supervisor's configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// A line, as the dispatch API tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LogLine {
    n: u64,
    at: UnixMs,
    line: String,
}

#[derive(Debug, Deserialize)]
struct List<T> {
    data: Vec<T>,
}

#[derive(Debug, Deserialize)]
struct Phone {
    id: PhoneId,
    number: E164,
}

pub(crate) async fn run(screen: &mut Screen, global: &Global, args: &Args) -> Result<(), Failure> {
    let client = dispatch(global, &args.config)?;
    let phone = find(&client, &args.phone).await?;
    if !args.follow {
        let answer = client.call(&request(&phone, 0)).await?;
        if screen.is_json() {
            return screen.json(&answer);
        }
        return show(screen, &typed::<List<LogLine>>(answer)?.data);
    }
    let mut shown: Option<LogLine> = None;
    let mut answered = false;
    loop {
        // The line that was shown last is asked for once more: it tells whether this is still the same ring.
        let after = shown.as_ref().map_or(0, |line| line.n.saturating_sub(1));
        match client.call(&request(&phone, after)).await {
            Ok(answer) => {
                answered = true;
                let lines = typed::<List<LogLine>>(answer)?.data;
                match news(shown.as_ref(), &lines) {
                    News::Lines(lines) => show(screen, lines)?,
                    News::AnotherRing => {
                        shown = None;
                        continue;
                    }
                }
                shown = lines.last().cloned().or(shown);
                tokio::time::sleep(LOOK_EVERY).await;
            }
            // The first answer has to come; later the supervisor may be restarted.
            Err(failure) if answered && failure.may_pass() => {
                tokio::time::sleep(FOLLOW_AGAIN_AFTER).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// What an answer has that was not shown.
#[derive(Debug, PartialEq, Eq)]
enum News<'a> {
    Lines(&'a [LogLine]),
    /// The supervisor was restarted, and its lines are counted anew.
    AnotherRing,
}

fn news<'a>(shown: Option<&LogLine>, lines: &'a [LogLine]) -> News<'a> {
    match (shown, lines.split_first()) {
        (None, _) => News::Lines(lines),
        (Some(shown), Some((first, rest))) if first == shown => News::Lines(rest),
        // More was logged in between than the ring holds; what is left of it goes on from there.
        (Some(shown), Some((first, _))) if first.n > shown.n => News::Lines(lines),
        (Some(_), Some(_) | None) => News::AnotherRing,
    }
}

fn request(phone: &PhoneId, after: u64) -> Request {
    Request::get(Who::Operator, format!("/v1/phones/{phone}/log")).query("after", after.to_string())
}

/// The phone of that id or number.
async fn find(client: &Client, name: &str) -> Result<PhoneId, Failure> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let number: E164 = name.parse().map_err(|_refused| {
        Failure::usage(
            format!("`{name}` is neither the id of a phone nor a number such as +12025550143"),
            "`switchboard phones` lists both",
        )
    })?;
    let answer = client.call(&Request::get(Who::Operator, "/v1/phones")).await?;
    let phones = typed::<List<Phone>>(answer)?.data;
    phones.into_iter().find(|phone| phone.number == number).map(|phone| phone.id).ok_or_else(|| {
        Failure::usage(
            format!("this host has no phone {number}"),
            "`switchboard phones` lists them",
        )
    })
}

fn show(screen: &mut Screen, lines: &[LogLine]) -> Result<(), Failure> {
    for line in lines {
        if screen.is_json() {
            screen.json_line(line)?;
        } else {
            // A bridge's line has its own time; what the system says in its place has not, and is readable without.
            screen.line(&printable(&line.line))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64, at: i64) -> LogLine {
        LogLine { n, at: UnixMs(at), line: format!("line {n}") }
    }

    #[test]
    fn what_is_new_is_told_from_a_ring_that_began_anew() {
        let old = [line(7, 70), line(8, 80), line(9, 90)];
        assert_eq!(news(None, &old), News::Lines(&old));
        assert_eq!(news(Some(&old[0]), &old), News::Lines(&old[1..]));
        assert_eq!(news(Some(&old[2]), &old[2..]), News::Lines(&[]));
        // The ring has forgotten the line that was shown.
        assert_eq!(news(Some(&line(2, 20)), &old), News::Lines(&old));
        // After a restart: fewer lines than before, or already as many.
        assert_eq!(news(Some(&old[2]), &[]), News::AnotherRing);
        assert_eq!(news(Some(&old[0]), &[line(7, 700), line(8, 800)]), News::AnotherRing);
    }
}
