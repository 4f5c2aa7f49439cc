//! The sandbox as `pgrep`, `kill` and `open`: what a program needs that keeps Messages running. Each is a link beside a
//! phone's `osascript`, and sees the processes of that phone's Mac and no others.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::osascript::phone_folder;
use crate::socket::{Client, Reply, Request};

/// The sandbox answers from memory.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What pgrep ends with when it finds nobody, and when it cannot look (pgrep(1)).
const NOBODY: u8 = 1;
const CANNOT: u8 = 3;

/// Runs as the program that it was called as; none where that is another one. `args` begins with that name.
pub fn main(args: &[OsString]) -> Option<ExitCode> {
    let argv0 = args.first().map(Path::new)?;
    let words: Vec<String> =
        args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let run = match argv0.file_name()?.to_str()? {
        "pgrep" => pgrep,
        "kill" => kill,
        "open" => open,
        _ => return None,
    };
    let ended = phone_folder(argv0)
        .ok_or_else(|| "it is called by its path, DIR/<number>/…".to_owned())
        .and_then(|folder| run(&folder, &words));
    Some(ended.unwrap_or_else(|message| {
        // The exit code says it as well.
        writeln!(io::stderr().lock(), "{}: {message}", argv0.display()).unwrap_or_default();
        ExitCode::from(CANNOT)
    }))
}

fn ask(folder: &Path, request: impl FnOnce(String) -> Request) -> Result<Value, String> {
    let number = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let reply = Client::connect(folder.parent().unwrap_or(folder))
        .and_then(|mut client| client.ask(&request(number), Some(TIMEOUT)))
        .map_err(|error| error.to_string())?;
    match reply {
        Reply::Done { value } => Ok(value),
        Reply::EventError { .. } | Reply::Hang | Reply::Refused { .. } => Err(format!("{reply:?}")),
    }
}

/// `pgrep -u USER -x PATTERN`. Of regular expressions it knows what ends in `x?` or `(…)?`.
fn pgrep(folder: &Path, words: &[String]) -> Result<ExitCode, String> {
    let ["-u", _, "-x", pattern] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        return Err("usage: pgrep -u USER -x PATTERN".to_owned());
    };
    let processes = ask(folder, |phone| Request::Processes { phone })?;
    let found: Vec<u64> = processes
        .as_array()
        .into_iter()
        .flatten()
        .filter(|process| {
            process["name"].as_str().is_some_and(|name| names(pattern).iter().any(|n| n == name))
        })
        .filter_map(|process| process["pid"].as_u64())
        .collect();
    let mut out = io::stdout().lock();
    for pid in &found {
        writeln!(out, "{pid}").map_err(|error| error.to_string())?;
    }
    Ok(if found.is_empty() { ExitCode::from(NOBODY) } else { ExitCode::SUCCESS })
}

/// The names that a pattern means.
fn names(pattern: &str) -> Vec<String> {
    let Some(rest) = pattern.strip_suffix('?') else { return vec![pattern.to_owned()] };
    let (stem, more) = match rest.strip_suffix(')').and_then(|rest| rest.rsplit_once('(')) {
        Some(parts) => parts,
        None => rest.split_at(rest.char_indices().next_back().map_or(0, |(at, _)| at)),
    };
    vec![stem.to_owned(), format!("{stem}{more}")]
}

/// `kill -TERM|-KILL PID…`
fn kill(folder: &Path, words: &[String]) -> Result<ExitCode, String> {
    let (signal, pids) = words.split_first().ok_or("usage: kill -TERM|-KILL PID…")?;
    let kill = match signal.as_str() {
        "-TERM" => false,
        "-KILL" => true,
        other => return Err(format!("{other} is not played here")),
    };
    let mut all = true;
    for pid in pids {
        let pid = pid.parse().map_err(|error| format!("{pid}: {error}"))?;
        all &= ask(folder, |phone| Request::Signal { phone, pid, kill })? == Value::Bool(true);
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `open -g -j -b com.apple.MobileSMS`
fn open(folder: &Path, words: &[String]) -> Result<ExitCode, String> {
    if !words.ends_with(&["-b".to_owned(), "com.apple.MobileSMS".to_owned()]) {
        return Err("only Messages is there to be opened: -b com.apple.MobileSMS".to_owned());
    }
    ask(folder, |phone| Request::Start { phone: Some(phone) })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_a_name_with_and_without_its_end() {
        assert_eq!(names("Messages"), ["Messages"]);
        assert_eq!(names("identityservicesd?"), ["identityservices", "identityservicesd"]);
        assert_eq!(names("IMDPersistenceAg(ent)?"), ["IMDPersistenceAg", "IMDPersistenceAgent"]);
    }
}
