//! The whole program, killed at any moment: nothing is lost, nothing is sent twice.
//!
//! A shell script stands in for osascript: it notes every text that it is asked to send. A thread
//! stands in for Messages: it writes a row into a chat.db with Apple's schema for every note.

#![cfg(test)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use protocol::pipe::{Command, Event, EventLine, Send, Up, parse_up};
use protocol::{Channel, Class, MessageId, Reason, Recipient};
use rusqlite::{Connection, params};
use tokio::time::Instant;

const PHONE: &str = "pho_00000000000000000000000000";
const TO: &str = "+12025550143";

/// A Mac: chat.db, osascript, and the folder of the bridge.
struct Mac {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    messages: Option<std::thread::JoinHandle<()>>,
}

impl Mac {
    /// `body` is what osascript does after it has noted the text.
    fn new(body: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let database = Connection::open(path.join("chat.db")).unwrap();
        database.pragma_update(None, "journal_mode", "wal").unwrap();
        let schema =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chatdb-schema/macos26.sql");
        database.execute_batch(&std::fs::read_to_string(schema).unwrap()).unwrap();
        database
            .execute_batch(
                "INSERT INTO handle (id, service) VALUES ('+12025550143', 'iMessage');
                 INSERT INTO chat (guid, style, chat_identifier, service_name)
                 VALUES ('any;-;+12025550143', 45, '+12025550143', 'iMessage');",
            )
            .unwrap();
        let osascript = path.join("osascript");
        let script = format!(
            "#!/bin/sh\ncd {}\nscript=$(cat)\ncase $script in\n'') exit 0 ;;\n\
             *'connection status'*) echo connected; exit 0 ;;\nesac\necho \"$8\" >> sends\n{body}\n",
            path.display()
        );
        std::fs::write(&osascript, script).unwrap();
        std::fs::set_permissions(&osascript, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            "phone = \"{PHONE}\"\nnumber = \"+15550100001\"\nstate_dir = \"{0}/state\"\n\
             chat_db = \"{0}/chat.db\"\nosascript = \"{0}/osascript\"\nosascript_deadline_ms = 3000\n\
             match_window_ms = 1500\nsettle_window_ms = 1500\n[pacing]\nper_second = 0\n",
            path.display()
        );
        std::fs::write(path.join("bridge.toml"), config).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, sends) = (Arc::clone(&stop), path.join("sends"));
        let messages = std::thread::spawn(move || deliver(&database, &sends, &ended));
        Self { dir, stop, messages: Some(messages) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// How often Messages was asked to send each text.
    fn asked(&self) -> BTreeMap<String, usize> {
        let mut asked = BTreeMap::new();
        for line in std::fs::read_to_string(self.path("sends")).unwrap_or_default().lines() {
            *asked.entry(line.to_owned()).or_insert(0) += 1;
        }
        asked
    }
}

impl Drop for Mac {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(messages) = self.messages.take() {
            drop(messages.join());
        }
    }
}

/// Nanoseconds since 2001.
fn apple_now() -> i64 {
    (bridge::clock::now().wall.0 - 978_307_200_000) * 1_000_000
}

#[expect(clippy::disallowed_methods, reason = "a thread of a test that waits for a file")]
fn deliver(database: &Connection, sends: &Path, ended: &AtomicBool) {
    let mut done = 0_usize;
    while !ended.load(Ordering::Relaxed) {
        let text = std::fs::read_to_string(sends).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines().skip(done) {
            done += 1;
            database
                .execute(
                    "INSERT INTO message (guid, text, handle_id, service, date, is_from_me, is_sent, is_finished)
                     VALUES (?1, ?2, 1, 'iMessage', ?3, 1, 1, 1)",
                    params![format!("GUID-{done}"), line, apple_now()],
                )
                .unwrap();
            database
                .execute(
                    "INSERT INTO chat_message_join (chat_id, message_id) VALUES (1, last_insert_rowid())",
                    [],
                )
                .unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One life of the bridge.
struct Life {
    child: Child,
    lines: Receiver<Up>,
    events: Vec<EventLine>,
    journal: String,
}

impl Life {
    #[expect(clippy::disallowed_methods, reason = "a test that starts the program")]
    fn begin(mac: &Mac) -> Self {
        let mut child = Program::new(env!("CARGO_BIN_EXE_switchboard-bridge"))
            .args(["run", "--config"])
            .arg(mac.path("bridge.toml"))
            .env("RUST_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (give, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines() {
                // A killed bridge may leave half a line.
                let Ok(up) = parse_up(&line.unwrap_or_default()) else { continue };
                if give.send(up).is_err() {
                    return;
                }
            }
        });
        let mut life = Self { child, lines, events: Vec::new(), journal: String::new() };
        life.until("hello", |up| matches!(up, Up::Hello(_)));
        life
    }

    fn say(&mut self, command: &Command) {
        let mut line = serde_json::to_string(command).unwrap();
        line.push('\n');
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn lease(&mut self) {
        let issued_ms = u64::try_from(bridge::clock::now().continuous_ms).unwrap();
        self.say(&Command::Lease { epoch: 1, ttl_ms: 60_000, issued_ms });
    }

    fn until(&mut self, what: &str, fits: impl Fn(&Up) -> bool) -> Up {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(up) => {
                    match &up {
                        Up::Hello(hello) => self.journal.clone_from(&hello.journal),
                        Up::Event(line) => self.events.push(line.clone()),
                        Up::Ready
                        | Up::NotReady { .. }
                        | Up::Released { .. }
                        | Up::Heartbeat(_) => {}
                    }
                    if fits(&up) {
                        return up;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no {what}; heard {:?}", self.events)
                }
            }
        }
    }

    fn event(&mut self, kind: &str) -> Event {
        let up = self.until(kind, |up| matches!(up, Up::Event(line) if line.event.kind() == kind));
        let Up::Event(line) = up else { panic!("{up:?}") };
        line.event
    }

    /// `kill -9`.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    #[expect(clippy::disallowed_methods, reason = "a test that waits for a process")]
    fn end(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(8);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Killed already, mostly.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn command(n: u8) -> Command {
    Command::Send(Send {
        message: MessageId::new(1, [n; 10]),
        attempt: 1,
        epoch: 1,
        to: Recipient::Number(TO.parse().unwrap()),
        text: format!("text {n}"),
        attachments: Vec::new(),
        route: vec![Channel::Imessage, Channel::Sms],
        class: Class::Otp,
        start_before: bridge::clock::now().wall.plus_ms(120_000),
        conversation: None,
    })
}

#[expect(clippy::disallowed_methods, reason = "a test that waits for a file")]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test that starts the program")]
fn a_second_bridge_of_a_phone_is_refused_until_the_first_has_ended() {
    let mac = Mac::new("");
    let mut life = Life::begin(&mac);
    life.lease();
    let second = Program::new(env!("CARGO_BIN_EXE_switchboard-bridge"))
        .args(["run", "--config"])
        .arg(mac.path("bridge.toml"))
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(75), "it may be tried again");
    let said = String::from_utf8(second.stderr).unwrap();
    let lock = mac.path("state").join("bridge.lock");
    let wanted = format!("{} is held by another bridge of this phone", lock.display());
    assert!(said.contains(&wanted), "{said}");
    // Not a word to a supervisor, which would take it for a bridge that runs.
    assert_eq!(String::from_utf8(second.stdout).unwrap(), "");

    // The first one has noticed nothing: what it is given now, it sends.
    life.say(&command(1));
    life.event("sent");
    assert_eq!(mac.asked(), BTreeMap::from([("text 1".to_owned(), 1)]));
    // However it ends, the system gives its lock back.
    life.kill();
    let next = Life::begin(&mac);
    assert_eq!(next.end().code(), Some(0));
}

#[test]
fn killed_while_accepted_it_is_sent_by_the_next_life() {
    let mac = Mac::new("");
    let mut life = Life::begin(&mac);
    life.say(&command(1));
    life.event("accepted");
    life.kill();
    let mut life = Life::begin(&mac);
    life.lease();
    life.event("sent");
    assert_eq!(mac.asked(), BTreeMap::from([("text 1".to_owned(), 1)]));
    assert_eq!(life.end().code(), Some(0));
}

#[test]
fn killed_while_osascript_runs_its_orphan_is_waited_for_and_its_row_adopted() {
    // The note, and with it the row, comes only after the bridge is dead.
    let mac =
        Mac::new("touch running; while [ ! -f go ]; do sleep 0.02; done; echo \"$8\" >> sends");
    std::fs::write(mac.path("osascript"), {
        let script = std::fs::read_to_string(mac.path("osascript")).unwrap();
        script.replacen("echo \"$8\" >> sends\ntouch", "touch", 1)
    })
    .unwrap();
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    life.event("started");
    wait_for("osascript", || mac.path("running").exists());
    life.kill();
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    life.say(&command(2));
    // While the orphan holds the lock nothing else may start.
    life.until("accepted 2", |up| {
        matches!(up, Up::Event(line) if line.event.kind() == "accepted"
            && line.event.attempt().is_some_and(|attempt| attempt.message == MessageId::new(1, [2; 10])))
    });
    assert_eq!(mac.asked(), BTreeMap::new());
    std::fs::write(mac.path("go"), "").unwrap();
    life.event("sent");
    life.event("sent");
    let once = BTreeMap::from([("text 1".to_owned(), 1), ("text 2".to_owned(), 1)]);
    assert_eq!(mac.asked(), once);
}

#[test]
fn killed_right_after_messages_took_it_the_row_is_adopted() {
    let mac = Mac::new("touch ended");
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    wait_for("osascript", || mac.path("ended").exists());
    life.kill();
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    life.event("sent");
    assert_eq!(mac.asked(), BTreeMap::from([("text 1".to_owned(), 1)]));
}

#[test]
fn killed_without_a_trace_in_the_database_it_is_unknown_and_never_tried_again() {
    let mac = Mac::new("");
    // It takes the text and nothing comes of it.
    let script = std::fs::read_to_string(mac.path("osascript")).unwrap();
    std::fs::write(mac.path("osascript"), script.replace(">> sends", ">> swallowed; sleep 60"))
        .unwrap();
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    wait_for("osascript", || mac.path("swallowed").exists());
    life.kill();
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    let unknown = life.event("unknown");
    assert!(matches!(unknown, Event::Unknown(about) if about.reason == Reason::BridgeInterrupted));
    let swallowed = std::fs::read_to_string(mac.path("swallowed")).unwrap();
    assert_eq!(swallowed.lines().count(), 1);
}

#[test]
fn a_hanging_orphan_is_ended_at_its_deadline_and_the_phone_goes_on() {
    let mac = Mac::new("[ -f hung ] || { touch hung; exec sleep 600; }");
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    wait_for("osascript", || mac.path("hung").exists());
    life.kill();
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(2));
    life.until("the second message's end", |up| is_end_of(up, 2));
    let once = BTreeMap::from([("text 1".to_owned(), 1), ("text 2".to_owned(), 1)]);
    assert_eq!(mac.asked(), once);
}

#[test]
fn what_osascript_leaves_behind_holds_the_phone_up_only_while_it_lives() {
    // It has a session of its own, and keeps the lock that it inherited.
    let mac = Mac::new("[ -f left ] || { touch left; setsid sleep 4 > /dev/null & sleep 0.3; }");
    let config = std::fs::read_to_string(mac.path("bridge.toml")).unwrap();
    let config = config.replace("[pacing]", "probe_interval_ms = 200\n[pacing]");
    std::fs::write(mac.path("bridge.toml"), config).unwrap();
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    life.event("sent");
    // The next probe meets it.
    life.until("not ready", |up| matches!(up, Up::NotReady { .. }));
    life.say(&command(2));
    life.until("the second message's end", |up| is_end_of(up, 2));
}

#[test]
fn without_its_supervisor_it_is_gone_whatever_osascript_does() {
    let mac = Mac::new("trap '' TERM; touch hung; setsid sleep 60 & while :; do sleep 0.2; done");
    let config = std::fs::read_to_string(mac.path("bridge.toml")).unwrap();
    std::fs::write(
        mac.path("bridge.toml"),
        config.replace("_deadline_ms = 3000", "_deadline_ms = 60000"),
    )
    .unwrap();
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    wait_for("osascript", || mac.path("hung").exists());
    let began = Instant::now();
    assert_eq!(life.end().code(), Some(0));
    // It promises five seconds; a busy machine gets more, and osascript would have taken a minute.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn an_old_message_that_icloud_puts_in_late_is_not_taken_for_ours() {
    // Nothing comes of the send, but the same words of last week appear under a new number.
    let mac = Mac::new("touch ended");
    let script = std::fs::read_to_string(mac.path("osascript")).unwrap();
    std::fs::write(mac.path("osascript"), script.replace(">> sends", ">> swallowed")).unwrap();
    let mut life = Life::begin(&mac);
    life.lease();
    life.say(&command(1));
    wait_for("osascript", || mac.path("ended").exists());
    let database = Connection::open(mac.path("chat.db")).unwrap();
    database.busy_timeout(Duration::from_secs(5)).unwrap();
    database
        .execute(
            "INSERT INTO message (guid, text, handle_id, service, date, is_from_me, is_sent, is_finished)
             VALUES ('OLD', 'text 1', 1, 'iMessage', ?1, 1, 1, 1)",
            [apple_now() - 7 * 86_400 * 1_000_000_000],
        )
        .unwrap();
    database
        .execute(
            "INSERT INTO chat_message_join (chat_id, message_id) VALUES (1, last_insert_rowid())",
            [],
        )
        .unwrap();
    life.event("unknown");
    assert!(!life.events.iter().any(|line| line.event.kind() == "sent"), "{:?}", life.events);
}

fn is_end_of(up: &Up, n: u8) -> bool {
    matches!(up, Up::Event(line) if matches!(line.event.kind(), "sent" | "unknown")
        && line.event.attempt().is_some_and(|attempt| attempt.message == MessageId::new(1, [n; 10])))
}

/// The bridge is killed again and again at every distance from its start, and every command is
/// offered again in every life, as a router would.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test that kills at chosen moments")]
fn killed_at_every_moment_nothing_is_lost_and_nothing_doubled() {
    const MESSAGES: u8 = 12;
    let mac = Mac::new("sleep 0.02");
    let mut events: BTreeMap<u64, EventLine> = BTreeMap::new();
    for life_ms in (0..24).map(|step| 20 + step * 17) {
        let mut life = Life::begin(&mac);
        life.lease();
        for n in 1..=MESSAGES {
            life.say(&command(n));
        }
        std::thread::sleep(Duration::from_millis(life_ms));
        while let Ok(up) = life.lines.try_recv() {
            if let Up::Event(line) = up {
                life.events.push(line);
            }
        }
        for line in &life.events {
            let before = events.insert(line.seq, line.clone());
            assert!(before.is_none_or(|before| before == *line), "an event changed: {line:?}");
        }
        life.kill();
    }
    let mut life = Life::begin(&mac);
    life.lease();
    for n in 1..=MESSAGES {
        life.say(&command(n));
    }
    let mut over = BTreeMap::new();
    while over.len() < usize::from(MESSAGES) {
        let up = life.until("the end of every message", |up| matches!(up, Up::Event(_)));
        let Up::Event(line) = up else { continue };
        if matches!(line.event.kind(), "sent" | "unknown")
            && let Some(attempt) = line.event.attempt()
        {
            over.insert(attempt.message.clone(), line.event.clone());
        }
    }
    let asked = mac.asked();
    assert!(asked.values().all(|times| *times == 1), "doubled: {asked:?}");
    for n in 1..=MESSAGES {
        let id = MessageId::new(1, [n; 10]);
        let was_asked = asked.contains_key(&format!("text {n}"));
        if let Event::Sent { .. } = over[&id] {
            assert!(was_asked, "told as sent and never asked: {n}");
        } else {
            // Between `started` and the script: it was not asked, and nobody can know.
            assert!(!was_asked, "there is a row, and it was not found: {n}");
        }
    }
    let seqs: Vec<u64> = life.events.iter().map(|line| line.seq).collect();
    let expected: Vec<u64> = (1..=u64::try_from(seqs.len()).unwrap()).collect();
    assert_eq!(seqs, expected, "every event of every life, in order");
}

#[test]
fn a_bad_configuration_is_78_and_names_file_line_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bridge.toml");
    std::fs::write(
        &path,
        "phone = \"pho_00000000000000000000000000\"\nnumber = \"0800\"\nstate_dir = \"/x\"\n",
    )
    .unwrap();
    for arguments in [["run", "--config"], ["check-config", "--config"], ["doctor", "--config"]] {
        let child = run(&[arguments[0], arguments[1], path.to_str().unwrap()]);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains("bridge.toml:2: `number`"), "{log}");
    }
}

#[test]
fn doctor_says_what_is_wrong_and_what_to_do() {
    let mac = Mac::new("");
    let config = mac.path("bridge.toml");
    let config = config.to_str().unwrap();
    let output = run(&["doctor", "--json", "--config", config]).wait_with_output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["ready"]), (Some(0), &true.into()), "{report}");
    std::fs::remove_file(mac.path("chat.db")).unwrap();
    let output = run(&["doctor", "--config", config]).wait_with_output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(69), "{table}");
    assert!(table.contains("ERROR") && table.contains("→ Sign in to Messages"), "{table}");
}

#[expect(clippy::disallowed_methods, reason = "a test that starts the program")]
fn run(arguments: &[&str]) -> Child {
    Program::new(env!("CARGO_BIN_EXE_switchboard-bridge"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
