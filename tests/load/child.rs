//! The child that `restart` has every supervisor keep: ready at once, says so by a stamp in a file, and lives on. And the
//! stand-in for a bridge of which `phones` has two hundred: it answers every send at once.
//!
//! It speaks as a bridge does (hello, ready, heartbeats, ends when told to stop), so that Switchboard's supervisor takes
//! it for one; to the others that is a log. Configured by FILE of `run --config FILE`, else by `child.toml` of its working
//! folder: then it needs no arguments, and those who start a program by its place need no shell.

use std::fs::OpenOptions;
use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::clock::{now, shared_ns};
use protocol::Channel;
use protocol::pipe::{Attempt, Command, Event, EventLine, Send, Up, parse_command};

/// Also how soon it notices that nobody measures any more.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// As often as a bridge says that it is alive.
const STAND_IN_BEAT_EVERY: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match live() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn live() -> Result<()> {
    let file = std::env::args().nth(3).unwrap_or_else(|| "child.toml".to_owned());
    let config = std::fs::read_to_string(&file).context("configuration")?;
    let value = |key: &str| {
        config.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.trim().trim_matches(['"', '\'']).to_owned())
        })
    };
    let phone = value("phone").unwrap_or_else(|| "pho_00000000000000000000000000".to_owned());
    let pid = std::process::id();
    say(&format!(
        "{{\"type\":\"hello\",\"protocol\":1,\"version\":\"0\",\"phone\":\"{phone}\",\"journal\":\"j{pid}\",\
         \"last_seq\":0,\"pid\":{pid}}}\n{{\"type\":\"ready\"}}\n"
    ))?;
    // Without stamps nobody but a supervisor cares when it began.
    let stamps = value("stamps");
    if let Some(stamps) = &stamps {
        let mut stamp = OpenOptions::new().append(true).open(stamps).context("stamps")?;
        // One write, so that nobody reads half of it.
        stamp.write_all(format!("{pid} {}\n", shared_ns()).as_bytes()).context("stamp")?;
    }
    // Kept here too: the others give it nothing to read, and that is no reason to end.
    let (told, orders) = std::sync::mpsc::sync_channel(1);
    let heard = told.clone();
    let stands_in = stamps.is_none();
    std::thread::spawn(move || {
        let mut seq = 0;
        for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
            let ends = match parse_command(&line) {
                Ok(Command::Send(send)) => answer(send, &mut seq).is_err(),
                Ok(Command::Stop { .. } | Command::Drain { .. }) => true,
                Ok(_) | Err(_) => false,
            };
            if ends && heard.send(()).is_err() {
                return;
            }
        }
        // A stand-in ends with its supervisor; where it ends already, nobody listens.
        if stands_in {
            heard.send(()).unwrap_or_default();
        }
    });
    let every = if stands_in { STAND_IN_BEAT_EVERY } else { BEAT_EVERY };
    let is_measured = || stamps.as_ref().is_none_or(|stamps| std::path::Path::new(stamps).exists());
    let mut turns = 0_u64;
    while orders.recv_timeout(every).is_err() && is_measured() {
        turns += 1;
        say(&format!("{{\"type\":\"heartbeat\",\"turns\":{turns}}}\n"))?;
    }
    drop(told);
    Ok(())
}

/// What a bridge says of a send that goes well.
fn answer(send: Send, seq: &mut u64) -> Result<()> {
    let attempt = Attempt { message: send.message, attempt: send.attempt };
    let channel = send.route.first().copied().unwrap_or(Channel::Sms);
    let guid = format!("{}/{}", attempt.message, attempt.attempt);
    let mut lines = String::new();
    for event in [
        Event::Accepted(attempt.clone()),
        Event::Started { attempt: attempt.clone(), channel },
        Event::Sent { attempt, channel, guid },
    ] {
        *seq += 1;
        let line = EventLine { seq: *seq, at: now(), epoch: Some(send.epoch), event };
        lines.push_str(&serde_json::to_string(&Up::Event(line)).context("an event")?);
        lines.push('\n');
    }
    say(&lines)
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("stdout")
}
