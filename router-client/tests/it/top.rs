//! `switchboard top` as a person runs it: in a terminal, and without one.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test, a panic is how it fails"
)]
#![expect(clippy::disallowed_methods, reason = "the program under test is a child of the test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(20);
/// Far more than a frame and what changes in a few seconds.
const PIECES_BYTES_MAX: usize = 32 * 1024;

/// A router with one phone, for as long as the test runs.
fn router() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines =
                BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let path = lines.next().unwrap_or_default();
            for header in lines {
                if header.is_empty() {
                    break;
                }
            }
            let data = if path.contains("/phones") {
                r#"{"id":"pho_0000000000000000000000000g","number":"+12025550143","online":true,"state":"parked",
                    "reasons":[],"channels":["imessage"],"messages_today":7,"in_flight":0}"#
            } else {
                ""
            };
            let body = format!("{{\"data\":[{data}],\"has_more\":false}}");
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    url
}

fn top(url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    command.args(["top", "--url", url]).env_clear().env("SWITCHBOARD_ADMIN_TOKEN", "secret");
    command
}

#[test]
fn one_frame_is_plain_text_and_a_view_needs_a_terminal() {
    let url = router();
    let once = top(&url).arg("--once").output().unwrap();
    let text = String::from_utf8(once.stdout).unwrap();
    assert!(
        once.status.success() && text.contains("+12025550143") && text.contains("parked"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let without = top(&url).stdin(Stdio::null()).output().unwrap();
    assert_eq!(without.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&without.stderr).contains("--once"));
    let json = top(&url).arg("--json").output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["phones"][0]["number"], "+12025550143");
}

/// Everything that the program writes to its terminal, as it comes.
fn written(master: OwnedFd) -> mpsc::Receiver<Vec<u8>> {
    let (tell, told) = mpsc::channel();
    let mut master = std::fs::File::from(master);
    std::thread::spawn(move || {
        let mut piece = [0_u8; 4_096];
        while let Ok(read @ 1..) = master.read(&mut piece) {
            if tell.send(piece[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    told
}

fn until(told: &mpsc::Receiver<Vec<u8>>, all: &mut Vec<u8>, word: &str) {
    // It draws once a second, so that waiting for the next piece alone would never end.
    let pieces_max = all.len() + PIECES_BYTES_MAX;
    while !String::from_utf8_lossy(all).contains(word) {
        assert!(all.len() < pieces_max, "{word:?}: {}", String::from_utf8_lossy(all));
        match told.recv_timeout(PATIENCE) {
            Ok(piece) => all.extend(piece),
            Err(error) => panic!("{word:?}: {error}: {}", String::from_utf8_lossy(all)),
        }
    }
}

#[test]
fn the_terminal_is_given_back_on_a_key_and_on_sigterm() {
    let url = router();
    for ends_by_key in [true, false] {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut child = top(&url)
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let mut keys = std::fs::File::from(pty.master.try_clone().unwrap());
        let told = written(pty.master);
        let mut all = Vec::new();
        until(&told, &mut all, "+12025550143");
        let during = tcgetattr(&pty.slave).unwrap();
        assert!(!during.local_flags.contains(LocalFlags::ECHO), "keys are not echoed");
        if ends_by_key {
            keys.write_all(b"?").unwrap();
            // One word: what does not change between two words is not written again.
            until(&told, &mut all, "closes");
            keys.write_all(b"q").unwrap();
        } else {
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
        }
        // Out of the other screen, and the cursor is there again.
        until(&told, &mut all, "\u{1b}[?1049l");
        until(&told, &mut all, "\u{1b}[?25h");
        assert!(child.wait().unwrap().success());
        let after = tcgetattr(&pty.slave).unwrap();
        assert_eq!(after.local_flags, before.local_flags, "ends_by_key: {ends_by_key}");
    }
}
