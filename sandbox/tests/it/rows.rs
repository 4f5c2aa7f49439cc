//! The real program: rows of every kind by command, and the faults beside phones that run.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the functions around the tests may fail like the tests"
)]

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_switchboard-sandbox");
const PHONE: &str = "15550100026";
const PEER: &str = "+12025550101";

#[expect(clippy::disallowed_methods, reason = "the program under test is a process")]
fn command(program: &str) -> Command {
    Command::new(program)
}

/// One phone of macOS 26 at full speed, which ends with the test.
struct Sandbox {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

impl Sandbox {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = command(PROGRAM)
            .args(["phones", "--speed", "0", "--phone", "+15550100026=26", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("ready"), "{line}");
        Self { child, dir }
    }

    fn control(&self, args: &[&str]) -> Output {
        let (verb, rest) = args.split_first().unwrap();
        let mut command = command(PROGRAM);
        command.arg(verb).arg("--dir").arg(self.dir.path());
        command.args(["--phone", PHONE]).args(rest).output().unwrap()
    }

    /// A command that must succeed; the JSON that it prints.
    fn asked(&self, args: &[&str]) -> Value {
        let output = self.control(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// A command that must succeed; the guid that it wrote.
    fn wrote(&self, args: &[&str]) -> String {
        self.asked(args)["guid"].as_str().expect("a guid").to_owned()
    }

    fn refused(&self, args: &[&str]) {
        assert!(!self.control(args).status.success(), "{args:?}");
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(PHONE).join("chat.db")
    }

    fn fault(&self, args: &[&str]) {
        let (verb, rest) = args.split_first().unwrap();
        let mut command = command(PROGRAM);
        let output = command.arg(verb).arg("--db").arg(self.path()).args(rest).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    fn db(&self) -> Connection {
        Connection::open_with_flags(self.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }

    /// A column of the message of that guid, as text.
    fn column(&self, column: &str, guid: &str) -> String {
        let sql =
            format!("SELECT ifnull(CAST({column} AS TEXT), 'NULL') FROM message WHERE guid = ?");
        self.db().query_row(&sql, [guid], |row| row.get(0)).expect(column)
    }

    fn one(&self, sql: &str) -> String {
        self.db().query_row(sql, [], |row| row.get(0)).expect(sql)
    }

    fn file(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, "content").unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[test]
fn messages_arrive_with_everything_that_they_can_have() {
    let s = Sandbox::start();
    let (picture, sheet) = (s.file("a.png"), s.file("b.pdf"));
    let said = ["receive", "--from", PEER, "--text", "hello Kunal", "--effect", "confetti"];
    let first = s.wrote(&[&said[..], &["--mention", "Kunal=k@example.test"]].concat());
    assert!(s.column("expressive_send_style_id", &first).ends_with("CKConfettiEffect"));
    let both = s.asked(&[
        "receive",
        "--from",
        PEER,
        "--text",
        "two files",
        "--attach",
        &picture,
        "--attach",
        &sheet,
        "--reply-to",
        &first,
        "--service",
        "RCS",
    ]);
    let guid = both["guid"].as_str().unwrap();
    assert_eq!(both["attachments"][0], format!("at_1_{guid}"));
    assert_eq!(both["attachments"][1], format!("at_2_{guid}"));
    assert_eq!(s.column("service", guid), "RCS");
    assert_eq!(s.column("thread_originator_guid", guid), first);
    assert_eq!(s.column("thread_originator_part", guid), "0:0:11");
    assert_eq!(s.column("reply_to_guid", guid), first, "the previous message of the one chat");
    let files: Vec<String> = s
        .db()
        .prepare("SELECT filename FROM attachment ORDER BY ROWID")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(|path| path.unwrap())
        .collect();
    assert!(files[0].ends_with("b.pdf") && files[1].ends_with("a.png"), "{files:?}");
    for file in &files {
        assert_eq!(std::fs::read_to_string(file).unwrap(), "content");
    }
    let link = s.asked(&[
        "receive",
        "--from",
        PEER,
        "--text",
        "see https://example.test/a",
        "--preview",
        "Title",
    ]);
    let preview = link["preview"]["guid"].as_str().unwrap();
    assert!(s.column("balloon_bundle_id", preview).contains("URLBalloonProvider"));
    let audio = s.wrote(&["receive", "--from", PEER, "--attach", &picture, "--said", "hi"]);
    assert_eq!(s.column("is_audio_message", &audio), "1");
    let code = ["receive", "--from", "262966", "--text", "code 1", "--service", "SMS", "--no-chat"];
    let code = s.wrote(&code);
    let joined = format!(
        "SELECT CAST(count(*) AS TEXT) FROM chat_message_join j JOIN message m
         ON m.ROWID = j.message_id WHERE m.guid = '{code}'"
    );
    assert_eq!(s.one(&joined), "0");
    for service in ["rcs", "iMessageLite"] {
        let guid = s.wrote(&["receive", "--from", PEER, "--text", "x", "--service", service]);
        assert_eq!(s.column("service", &guid), service);
    }
    let own = s.wrote(&["receive", "--from", PEER, "--text", "from my phone", "--own"]);
    assert_eq!(s.column("is_from_me || is_sent || date_delivered", &own), "110");
    let late = s.wrote(&["receive", "--from", PEER, "--text", "late", "--text-after-ms", "5"]);
    assert_ne!(s.column("length(attributedBody)", &late), "NULL");
    s.refused(&["receive", "--from", PEER, "--text", "x", "--mention", "Nobody=a@b.test"]);
    s.refused(&["receive", "--from", PEER, "--text", "x", "--reply-to", "nowhere"]);
    s.refused(&["receive", "--from", PEER, "--text", "x", "--attach", "/nowhere/at/all"]);
    s.refused(&["receive", "--from", PEER]);
}

#[test]
fn a_file_that_is_not_there_yet_comes_later() {
    let s = Sandbox::start();
    let picture = s.file("a.png");
    let asked = s.asked(&["receive", "--from", PEER, "--attach", &picture, "--attach-pending"]);
    let guid = asked["attachments"][0].as_str().unwrap();
    let state = "SELECT transfer_state || '' FROM attachment";
    let path = PathBuf::from(s.one("SELECT filename FROM attachment"));
    assert_eq!(s.one(state), "0");
    assert!(!path.exists());
    s.asked(&["finish-attachment", "--guid", guid, "--state", "downloading"]);
    assert_eq!(s.one(state), "3");
    assert!(!path.exists());
    s.asked(&["finish-attachment", "--guid", guid]);
    assert_eq!(s.one(state), "5");
    assert_eq!(std::fs::read_to_string(path).unwrap(), "content");
    s.refused(&["finish-attachment", "--guid", "at_0_none"]);
}

#[test]
fn messages_are_reacted_to_edited_unsent_and_deleted() {
    let s = Sandbox::start();
    let guid = s.wrote(&["receive", "--from", PEER, "--text", "one"]);
    let love = s.wrote(&["react", "--guid", &guid]);
    assert_eq!(s.column("associated_message_type", &love), "2000");
    assert_eq!(s.column("associated_message_guid", &love), format!("p:0/{guid}"));
    let crab = s.wrote(&["react", "--guid", &guid, "--reaction", "🦀", "--own", "--form", "bare"]);
    assert_eq!(s.column("associated_message_emoji", &crab), "🦀");
    assert_eq!(s.column("associated_message_guid", &crab), guid);
    let gone = s.wrote(&["react", "--guid", &guid, "--reaction", "like", "--remove"]);
    assert_eq!(s.column("associated_message_type", &gone), "3001");
    let picture = s.file("s.png");
    let sticker = s.wrote(&["react", "--guid", &guid, "--sticker", &picture]);
    assert_eq!(s.column("associated_message_type", &sticker), "2007");
    assert_eq!(s.one("SELECT is_sticker || '' FROM attachment"), "1");
    assert_eq!(s.wrote(&["edit", "--guid", &guid, "--text", "two"]), guid);
    assert_ne!(s.column("date_edited", &guid), "0");
    s.refused(&["edit", "--guid", &guid, "--text", "two", "--part", "7"]);
    assert_eq!(s.wrote(&["unsend", "--guid", &guid]), guid);
    assert_eq!(s.column("is_empty || part_count || text", &guid), "10");
    s.refused(&["unsend", "--guid", &guid]);
    s.refused(&["react", "--guid", "nowhere"]);
    assert_eq!(s.wrote(&["delete", "--guid", &guid]), guid);
    let deleted = "SELECT count(*) || '' FROM chat_recoverable_message_join";
    assert_eq!(s.one(deleted), "1");
    s.asked(&["delete", "--guid", &guid, "--recover"]);
    assert_eq!(s.one(deleted), "0");
    s.refused(&["delete", "--guid", &guid, "--recover"]);
}

#[test]
fn groups_change_and_messages_are_sent_later() {
    let s = Sandbox::start();
    let hi = ["receive", "--from", PEER, "--text", "hi", "--group", "chat7", "--member"];
    s.wrote(&[&hi[..], &["+12025550102"]].concat());
    for (change, expected) in [
        (&["join", "+12025550103"][..], "10"),
        (&["remove", "+12025550102"], "11"),
        (&["rename", "Crabs"], "20"),
        (&["photo"], "31"),
        (&["photo", "--remove"], "32"),
        (&["background"], "34"),
        (&["background", "--remove"], "36"),
        (&["number"], "10"),
        (&["leave"], "30"),
    ] {
        let guid = s.wrote(&[&["group", "--group", "chat7", "--by", PEER], change].concat());
        assert_eq!(s.column("item_type || group_action_type", &guid), expected, "{change:?}");
    }
    let members = "SELECT group_concat(id) FROM handle JOIN chat_handle_join ON handle_id = ROWID";
    assert_eq!(s.one(members), "+12025550103");
    assert_eq!(s.one("SELECT display_name FROM chat"), "Crabs");
    s.refused(&["group", "--group", "chat8", "leave"]);

    let later = s.wrote(&["schedule", "--to", PEER, "--text", "later"]);
    assert_eq!(s.column("schedule_type || schedule_state || is_sent", &later), "210");
    s.asked(&["schedule", "--guid", &later, "--state", "sent"]);
    assert_eq!(s.column("schedule_type || schedule_state || is_sent", &later), "221");
    s.refused(&["schedule", "--to", PEER]);
}

#[test]
fn phones_go_on_after_their_file_was_replaced() {
    let s = Sandbox::start();
    for n in 0..20 {
        s.wrote(&["receive", "--from", PEER, "--text", &format!("text {n}")]);
    }
    let backup = s.dir.path().join("backup.db");
    let backup = backup.to_str().unwrap();
    let count = "SELECT count(*) || '' FROM chat_message_join";
    s.fault(&["backup", "--to", backup]);
    s.fault(&["rebuild", "--first", "1000"]);
    s.asked(&["reopen"]);
    let asked = s.asked(&["receive", "--from", PEER, "--text", "after the rebuild"]);
    assert_eq!(asked["rowid"], 1020);
    assert_eq!(s.one(count), "21");
    s.fault(&["recreate-wal"]);
    s.asked(&["reopen"]);
    s.wrote(&["receive", "--from", PEER, "--text", "after the WAL"]);
    assert_eq!(s.one(count), "22");
    s.fault(&["checkpoint-storm", "--seconds", "1"]);
    s.fault(&["restore", "--from", backup]);
    s.asked(&["reopen"]);
    assert_eq!(s.one(count), "20");
    let asked = s.asked(&["receive", "--from", PEER, "--text", "after the backup"]);
    assert_eq!(asked["rowid"], 21);
    assert_eq!(s.one("PRAGMA integrity_check"), "ok");
}

#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "measures real processes")]
fn timed<T>(run: impl FnOnce() -> T) -> (T, std::time::Duration) {
    let start = std::time::Instant::now();
    let value = run();
    (value, start.elapsed())
}

/// A lock is held while others read and write, and all go on after it.
#[test]
fn a_held_lock_keeps_out_whom_it_says() {
    let s = Sandbox::start();
    s.wrote(&["receive", "--from", PEER, "--text", "before"]);
    let long = std::time::Duration::from_secs(1);
    let read = || {
        let db = s.db();
        db.busy_timeout(std::time::Duration::ZERO).unwrap();
        db.query_row("SELECT count(*) FROM message", [], |row| row.get::<_, i64>(0))
    };
    for (n, lock) in (1..).zip(["write", "all", "busy"]) {
        let mut holder = command(PROGRAM)
            .args(["hold-lock", "--ms", "2000", "--lock", lock, "--db"])
            .arg(s.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("held"), "{lock}: {line}");
        let (seen, took) = timed(read);
        match lock {
            "write" => assert!(seen == Ok(n) && took < long, "{seen:?} in {took:?}"),
            "all" => assert!(seen == Ok(n) && took > long, "{seen:?} in {took:?}"),
            _ => {
                let code = seen.unwrap_err().sqlite_error_code();
                assert_eq!(code, Some(rusqlite::ErrorCode::DatabaseBusy));
                assert!(took < long, "{took:?}");
            }
        }
        // The phone waits for its turn.
        s.wrote(&["receive", "--from", PEER, "--text", lock]);
        assert!(holder.wait().unwrap().success());
        assert_eq!(read(), Ok(n + 1), "{lock}");
    }
    assert_eq!(s.one("PRAGMA integrity_check"), "ok");
}
