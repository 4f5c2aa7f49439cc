//! The child that `restart` has every supervisor keep: ready at once, says so by a stamp in a file, and lives on.
//!
//! It speaks as a bridge does (hello, ready, heartbeats, ends when told to stop), so that Switchboard's supervisor takes
//! it for one; to the others that is a log. Configured by FILE of `run --config FILE`, else by `child.toml` of its working
//! folder: then it needs no arguments, and those who start a program by its place need no shell.

use std::fs::OpenOptions;
use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::clock::shared_ns;

/// Also how soon it notices that nobody measures any more.
const BEAT_EVERY: Duration = Duration::from_secs(1);

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
            (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
        })
    };
    let stamps = value("stamps").context("stamps")?;
    let phone = value("phone").unwrap_or_else(|| "pho_00000000000000000000000000".to_owned());
    let pid = std::process::id();
    say(&format!(
        "{{\"type\":\"hello\",\"protocol\":1,\"version\":\"0\",\"phone\":\"{phone}\",\"journal\":\"j{pid}\",\
         \"last_seq\":0,\"pid\":{pid}}}\n{{\"type\":\"ready\"}}\n"
    ))?;
    let mut stamp = OpenOptions::new().append(true).open(&stamps).context("stamps")?;
    // One write, so that nobody reads half of it.
    stamp.write_all(format!("{pid} {}\n", shared_ns()).as_bytes()).context("stamp")?;
    // Kept here too: the others give it nothing to read, and that is no reason to end.
    let (told, orders) = std::sync::mpsc::sync_channel(1);
    let heard = told.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
            if (line.contains("\"stop\"") || line.contains("\"drain\"")) && heard.send(()).is_err()
            {
                return;
            }
        }
    });
    let mut turns = 0_u64;
    while orders.recv_timeout(BEAT_EVERY).is_err() && std::path::Path::new(&stamps).exists() {
        turns += 1;
        say(&format!("{{\"type\":\"heartbeat\",\"turns\":{turns}}}\n"))?;
    }
    drop(told);
    Ok(())
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("stdout")
}
