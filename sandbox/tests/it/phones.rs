//! The real program: phones, their osascript with the bridge's scripts, and the commands.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the functions around the tests may fail like the tests"
)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_switchboard-sandbox");
const SEND: &str = include_str!("../../../bridge/src/scripts/send.applescript");
/// As other programs say it.
const TO_CHAT: &str = "on run argv\ntell application \"Messages\" to send (item 2 of argv) to chat id (item 1 of argv)\nend run";
const PROBE: &str = include_str!("../../../bridge/src/scripts/probe.applescript");

/// Longest wait for anything. Only a failing test waits this long.
const DEADLINE: Duration = Duration::from_secs(20);

#[expect(clippy::disallowed_methods, reason = "the program under test is a process")]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// Waits for a condition, or fails naming it.
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a blocking test waits for other processes by the real clock"
)]
fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "measures real processes")]
fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let value = run();
    (value, start.elapsed())
}

/// A sandbox that ends with the test.
struct Sandbox {
    dir: PathBuf,
    child: Child,
    /// Removed after the program has ended.
    kept_dir: Option<tempfile::TempDir>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // It may have been stopped by the test.
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

const ALL: [(&str, u8); 6] = [
    ("15550100012", 12),
    ("15550100013", 13),
    ("15550100014", 14),
    ("15550100015", 15),
    ("15550100026", 26),
    ("15550100027", 27),
];

impl Sandbox {
    /// All six versions of macOS.
    fn start(speed: &str) -> Self {
        let kept = tempfile::tempdir().unwrap();
        let mut sandbox = Self::start_in(kept.path(), speed, &ALL);
        sandbox.kept_dir = Some(kept);
        sandbox
    }

    fn start_in(dir: &Path, speed: &str, phones: &[(&str, u8)]) -> Self {
        let mut command = command(PROGRAM);
        command.args(["phones", "--speed", speed, "--dir"]).arg(dir);
        for (number, macos) in phones {
            command.arg("--phone").arg(format!("+{number}={macos}"));
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect(&line);
        assert_eq!(ready["type"], "ready");
        assert_eq!(ready["phones"].as_array().unwrap().len(), phones.len());
        Self { dir: dir.to_owned(), child, kept_dir: None }
    }

    fn osascript(&self, phone: &str, args: &[&str]) -> (Child, ChildStdin) {
        let mut child = command(self.dir.join(phone).join("osascript"))
            .args(["-l", "AppleScript", "-"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        (child, stdin)
    }

    /// An osascript that has its script and runs.
    fn started(&self, phone: &str, script: &str, args: &[&str]) -> Child {
        let (child, mut stdin) = self.osascript(phone, args);
        stdin.write_all(script.as_bytes()).unwrap();
        child
    }

    fn run(&self, phone: &str, script: &str, args: &[&str]) -> Output {
        self.started(phone, script, args).wait_with_output().unwrap()
    }

    /// Sends, and expects the error of that number, or success.
    fn send(&self, phone: &str, service: &str, to: &str, text: &str, error: Option<i32>) {
        expect(&self.run(phone, SEND, &[service, to, "", "text", text]), error);
    }

    fn control(&self, args: &[&str]) -> Output {
        let (verb, rest) = args.split_first().unwrap();
        command(PROGRAM).arg(verb).arg("--dir").arg(&self.dir).args(rest).output().unwrap()
    }

    /// A command that must succeed; the JSON that it prints.
    fn asked(&self, args: &[&str]) -> Value {
        let output = self.control(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        if output.stdout.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn db(&self, phone: &str) -> Connection {
        let path = self.dir.join(phone).join("chat.db");
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        conn.busy_timeout(DEADLINE).unwrap();
        conn
    }

    /// The newest row whose handle is this address.
    fn row(&self, phone: &str, address: &str) -> Option<Row> {
        let sql = "SELECT m.ROWID, m.guid, m.text, m.attributedBody, m.service, m.error,
             m.is_finished, m.is_sent, m.is_delivered, m.date_delivered, m.date_read, m.is_read,
             m.was_downgraded, m.is_from_me, h.service,
             (SELECT c.guid FROM chat_message_join j JOIN chat c ON c.ROWID = j.chat_id
              WHERE j.message_id = m.ROWID)
             FROM message m JOIN handle h ON h.ROWID = m.handle_id WHERE h.id = ?
             ORDER BY m.ROWID DESC LIMIT 1";
        let read = |r: &rusqlite::Row<'_>| {
            Ok(Row {
                rowid: r.get(0)?,
                guid: r.get(1)?,
                text: r.get(2)?,
                blob: r.get(3)?,
                service: r.get(4)?,
                error: r.get(5)?,
                state: [r.get(6)?, r.get(7)?, r.get(8)?],
                date_delivered: r.get(9)?,
                date_read: r.get(10)?,
                is_read: r.get(11)?,
                downgraded: r.get(12)?,
                from_me: r.get(13)?,
                handle_service: r.get(14)?,
                chat: r.get(15)?,
            })
        };
        self.db(phone).query_row(sql, [address], read).ok()
    }

    /// Waits for a row of this address that is as wanted.
    fn wait_row(&self, phone: &str, address: &str, is: impl Fn(&Row) -> bool) -> Row {
        wait_for(&format!("a row for {address} on {phone}"), || {
            self.row(phone, address).filter(|row| is(row))
        })
    }

    fn rows(&self, phone: &str) -> i64 {
        self.db(phone).query_row("SELECT count(*) FROM message", [], |r| r.get(0)).unwrap()
    }

    /// The lines of the truth.
    fn truth(&self) -> Vec<Value> {
        lines(&self.dir.join("sends.jsonl"))
    }
}

#[derive(Debug)]
struct Row {
    rowid: i64,
    guid: String,
    text: Option<String>,
    blob: Option<Vec<u8>>,
    service: String,
    error: i64,
    /// Finished, sent, delivered.
    state: [i64; 3],
    date_delivered: i64,
    date_read: i64,
    is_read: i64,
    downgraded: i64,
    from_me: i64,
    handle_service: String,
    chat: Option<String>,
}

impl Row {
    fn holds(&self, text: &str) -> bool {
        let blob = self.blob.as_deref().unwrap_or_default();
        blob.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let file = BufReader::new(File::open(path).unwrap());
    file.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

fn expect(output: &Output, error: Option<i32>) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    match error {
        None => assert!(output.status.success(), "{stderr}"),
        Some(number) => {
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(stderr.trim_end().ends_with(&format!("({number})")), "{stderr}");
        }
    }
}

fn ended(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().unwrap()
}

fn chat_guid(macos: u8, service: &str, address: &str) -> String {
    format!("{};-;{address}", if macos >= 26 { "any" } else { service })
}

/// For each version of macOS: sends to a number and checks what becomes of it.
fn on_every_macos(
    sandbox: &Sandbox,
    service: &str,
    digits: &str,
    error: Option<i32>,
    check: impl Fn(u8, &str, &str),
) {
    for (phone, macos) in ALL {
        if service == "RCS" && macos < 15 {
            continue;
        }
        let to = format!("+120255501{digits}");
        sandbox.send(phone, service, &to, "it's \"that\"... é😃", error);
        check(macos, phone, &to);
    }
}

#[test]
fn a_text_to_a_user_of_imessage_is_sent_and_delivered() {
    let sandbox = Sandbox::start("0");
    for service in ["iMessage", "RCS"] {
        on_every_macos(&sandbox, service, "00", None, |macos, phone, to| {
            let row = sandbox.wait_row(phone, to, |row| {
                row.state == [1, 1, 1] && row.service == service && row.chat.is_some()
            });
            assert_eq!((row.error, row.downgraded, row.from_me, row.date_read), (0, 0, 1, 0));
            assert!(row.date_delivered > 0);
            assert!(row.holds("it's \"that\"... é😃"));
            assert_eq!(row.text.is_some(), macos == 12);
            assert_eq!(row.chat, Some(chat_guid(macos, service, to)));
            assert_eq!(row.handle_service, service);
        });
    }
}

#[test]
fn rcs_is_not_defined_before_macos_15() {
    let sandbox = Sandbox::start("0");
    sandbox.send("15550100014", "RCS", "+12025550100", "x", Some(-2753));
    assert_eq!(sandbox.rows("15550100014"), 0);
}

#[test]
fn a_reader_reads() {
    let sandbox = Sandbox::start("0");
    on_every_macos(&sandbox, "iMessage", "01", None, |_, phone, to| {
        let row = sandbox.wait_row(phone, to, |row| row.date_read > 0);
        assert_eq!((row.state, row.is_read), ([1, 1, 1], 1));
    });
}

#[test]
fn who_is_not_on_imessage_gets_sms_without_receipts() {
    let sandbox = Sandbox::start("0");
    on_every_macos(&sandbox, "iMessage", "10", None, |macos, phone, to| {
        let row = sandbox.wait_row(phone, to, |row| row.chat.is_some());
        assert_eq!((row.state, row.error), ([1, 0, 0], 22));
        assert_eq!(row.chat, Some(chat_guid(macos, "iMessage", to)));
    });
    on_every_macos(&sandbox, "SMS", "10", None, |macos, phone, to| {
        let row = sandbox.wait_row(phone, to, |row| row.service == "SMS" && row.state == [1, 1, 0]);
        assert_eq!((row.error, row.date_delivered), (0, 0));
        assert_eq!(row.chat, Some(chat_guid(macos, "SMS", to)));
        assert_eq!(row.handle_service, "SMS");
    });
}

#[test]
fn failures_have_their_numbers() {
    let sandbox = Sandbox::start("0");
    for (service, digits, error) in
        [("SMS", "11", 1), ("iMessage", "12", 3), ("iMessage", "27", 22), ("SMS", "27", 1)]
    {
        on_every_macos(&sandbox, service, digits, None, |_, phone, to| {
            let row = sandbox.wait_row(phone, to, |row| row.error == error);
            assert_eq!(row.state, [1, 0, 0], "{service} {digits}");
        });
    }
    on_every_macos(&sandbox, "RCS", "27", None, |_, phone, to| {
        sandbox.wait_row(phone, to, |row| row.state == [1, 1, 1] && row.service == "RCS");
    });
}

#[test]
fn what_is_refused_leaves_no_trace() {
    let sandbox = Sandbox::start("0");
    for (digits, error) in [("16", -1743), ("19", -600), ("20", -1728)] {
        on_every_macos(&sandbox, "iMessage", digits, Some(error), |_, _, _| {});
    }
    for (phone, _) in ALL {
        assert_eq!(sandbox.rows(phone), 0);
    }
    assert_eq!(sandbox.truth().len(), 0);
    assert_eq!(lines(&sandbox.dir.join("refused.jsonl")).len(), 18);
}

#[test]
fn a_timeout_says_nothing_about_the_row() {
    let sandbox = Sandbox::start("0");
    on_every_macos(&sandbox, "iMessage", "18", Some(-1712), |_, phone, _| {
        assert_eq!(sandbox.rows(phone), 0);
    });
    on_every_macos(&sandbox, "iMessage", "17", Some(-1712), |_, phone, to| {
        sandbox.wait_row(phone, to, |row| row.state == [1, 1, 1]);
        assert_eq!(sandbox.rows(phone), 1);
    });
    assert_eq!(sandbox.truth().len(), 12);
}

#[test]
fn messages_itself_may_change_what_is_sent() {
    let sandbox = Sandbox::start("0");
    on_every_macos(&sandbox, "iMessage", "21", None, |macos, phone, to| {
        let row = sandbox.wait_row(phone, to, |row| row.downgraded == 1);
        assert_eq!((row.state, row.service.as_str()), ([1, 1, 0], "SMS"));
        assert_eq!(row.handle_service, "SMS");
        assert_eq!(row.chat, Some(chat_guid(macos, "iMessage", to)));
    });
    on_every_macos(&sandbox, "iMessage", "24", None, |_, phone, to| {
        let row = sandbox.wait_row(phone, to, |row| row.state == [1, 1, 1]);
        assert!(row.holds("it’s “that”… é😃"));
    });
}

#[test]
fn some_rows_never_become_more() {
    let sandbox = Sandbox::start("0");
    on_every_macos(&sandbox, "iMessage", "22", None, |_, phone, to| {
        let row = sandbox.wait_row(phone, to, |_| true);
        assert_eq!(row.text.as_deref(), Some(""));
        assert_eq!((row.blob, row.chat, row.state), (None, None, [0, 0, 0]));
        assert_eq!(row.handle_service, "SMS");
    });
    on_every_macos(&sandbox, "iMessage", "25", None, |_, phone, to| {
        let row = sandbox.wait_row(phone, to, |row| row.chat.is_some());
        assert_eq!((row.state, row.error), ([0, 0, 0], 0));
    });
    for (phone, _) in ALL {
        assert_eq!(sandbox.rows(phone), 2);
    }
}

#[test]
fn the_wal_is_dropped_and_nothing_is_lost() {
    let sandbox = Sandbox::start("0");
    on_every_macos(&sandbox, "iMessage", "00", None, |_, phone, to| {
        sandbox.wait_row(phone, to, |row| row.state == [1, 1, 1]);
    });
    on_every_macos(&sandbox, "iMessage", "30", None, |_, phone, to| {
        sandbox.wait_row(phone, to, |row| row.state == [1, 1, 1]);
        assert_eq!(sandbox.rows(phone), 2);
    });
}

#[test]
fn a_slow_phone_takes_its_time_and_a_late_row_comes_later() {
    // A quarter of the usual times: the order is what counts.
    let sandbox = Sandbox::start("0.25");
    let phone = "15550100015";
    let ((), took) = timed(|| sandbox.send(phone, "iMessage", "+12025550115", "slow", None));
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(sandbox.row(phone, "+12025550115").is_some(), "the row is there before the answer");
    sandbox.send(phone, "iMessage", "+12025550123", "late", None);
    assert!(sandbox.row(phone, "+12025550123").is_none());
    // What is sent after it is not held up by it.
    sandbox.send(phone, "iMessage", "+12025550126", "late sent", None);
    let first = sandbox.wait_row(phone, "+12025550126", |row| row.chat.is_some());
    assert_eq!(first.state, [0, 0, 0]);
    sandbox.wait_row(phone, "+12025550126", |row| row.state == [1, 1, 1]);
    let late = sandbox.wait_row(phone, "+12025550123", |row| row.state == [1, 1, 1]);
    assert!(late.rowid > first.rowid);
}

#[test]
fn a_hanging_osascript_blocks_its_phone_until_it_is_killed() {
    let sandbox = Sandbox::start("0");
    for (digits, rows) in [("13", 0), ("14", 1)] {
        let (phone, other) = ("15550100015", "15550100026");
        let before = (sandbox.truth().len(), sandbox.rows(phone));
        let to = format!("+120255501{digits}");
        let mut hanging = sandbox.started(phone, SEND, &["iMessage", &to, "", "text", "hang"]);
        wait_for("the truth", || (sandbox.truth().len() > before.0).then_some(()));
        let mut waiting =
            sandbox.started(phone, SEND, &["iMessage", "+12025550105", "", "text", "after"]);
        // Another phone is not concerned.
        sandbox.send(other, "iMessage", "+12025550105", "other", None);
        assert!(ended(&mut hanging).is_none() && ended(&mut waiting).is_none());
        wait_for("the row", || (sandbox.rows(phone) == before.1 + rows).then_some(()));
        hanging.kill().unwrap();
        hanging.wait().unwrap();
        expect(&waiting.wait_with_output().unwrap(), None);
        wait_for("the second row", || (sandbox.rows(phone) == before.1 + rows + 1).then_some(()));
    }
}

#[test]
fn a_probe_of_a_hanging_phone_times_out() {
    let sandbox = Sandbox::start("0");
    let phone = "15550100015";
    let mut hanging = sandbox.started(phone, SEND, &["iMessage", "+12025550113", "", "text", "x"]);
    wait_for("the truth", || (sandbox.truth().len() == 1).then_some(()));
    let probe = PROBE.replace("timeout of 5 seconds", "timeout of 1 seconds");
    assert_ne!(probe, PROBE);
    expect(&sandbox.run(phone, &probe, &[]), Some(-1712));
    hanging.kill().unwrap();
    hanging.wait().unwrap();
}

#[test]
fn two_osascripts_on_one_phone_take_turns() {
    // Each event takes 146 ms at speed 1.
    let sandbox = Sandbox::start("1");
    let phone = "15550100015";
    let (outputs, took) = timed(|| {
        let children: Vec<Child> = (0..4)
            .map(|n| {
                let text = format!("text {n}");
                sandbox.started(phone, SEND, &["iMessage", "+12025550100", "", "text", &text])
            })
            .collect();
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect::<Vec<_>>()
    });
    for output in &outputs {
        expect(output, None);
    }
    assert!(took >= Duration::from_millis(3 * 146 + 110), "{took:?}");
    wait_for("four rows", || (sandbox.rows(phone) == 4).then_some(()));
    // The rows are in the order of the truth.
    let guids: Vec<String> = sandbox
        .db(phone)
        .prepare("SELECT guid FROM message ORDER BY ROWID")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let truth: Vec<String> =
        sandbox.truth().iter().map(|send| send["guid"].as_str().unwrap().to_owned()).collect();
    assert_eq!(guids, truth);
}

#[test]
fn a_script_that_never_arrives_sends_nothing() {
    let sandbox = Sandbox::start("0");
    let args = ["iMessage", "+12025550100", "", "text", "x"];
    // As when the bridge dies before it writes the script.
    let (child, stdin) = sandbox.osascript("15550100015", &args);
    drop(stdin);
    expect(&child.wait_with_output().unwrap(), None);
    let cut = SEND.trim_end().strip_suffix("end run").unwrap();
    expect(&sandbox.run("15550100015", cut, &args), Some(-2741));
    assert_eq!(sandbox.rows("15550100015"), 0);
    assert_eq!(sandbox.truth().len(), 0);
}

#[test]
fn without_messages_there_is_600_and_with_it_again_an_account() {
    let mut sandbox = Sandbox::start("0");
    let phone = "15550100015";
    let probe = |sandbox: &Sandbox| sandbox.run(phone, PROBE, &[]);
    assert_eq!(probe(&sandbox).stdout, b"connected\n");
    sandbox.asked(&["quit-messages", "--phone", phone]);
    expect(&probe(&sandbox), Some(-600));
    sandbox.send("15550100026", "iMessage", "+12025550100", "x", None);
    sandbox.asked(&["start-messages"]);
    assert_eq!(probe(&sandbox).stdout, b"connected\n");
    for (status, error) in [("missing", -2753), ("no-permission", -1743)] {
        sandbox.asked(&["account", "--phone", "+15550100015", "--status", status]);
        expect(&probe(&sandbox), Some(error));
        sandbox.send(phone, "iMessage", "+12025550100", "x", Some(error));
    }
    sandbox.asked(&["account", "--status", "disconnected"]);
    assert_eq!(probe(&sandbox).stdout, b"disconnected\n");
    assert!(!sandbox.control(&["quit-messages", "--phone", "+19990000000"]).status.success());

    sandbox.asked(&["stop"]);
    assert!(sandbox.child.wait().unwrap().success());
    expect(&probe(&sandbox), Some(-600));
    assert!(!sandbox.control(&["list"]).status.success());
}

#[test]
fn a_text_to_a_phone_of_the_sandbox_arrives_there() {
    let sandbox = Sandbox::start("0");
    let (from, to) = ("15550100012", "15550100027");
    sandbox.asked(&["receive", "--phone", to, "--from", "+12025550100", "--text", "first"]);
    for (service, same_guid) in [("iMessage", true), ("SMS", false)] {
        sandbox.send(from, service, "+15550100027", "hello", None);
        let sent = sandbox
            .wait_row(from, "+15550100027", |row| row.service == service && row.state[1] == 1);
        let got = sandbox
            .wait_row(to, "+15550100012", |row| row.service == service && row.chat.is_some());
        assert_eq!((got.from_me, got.state, got.text.is_none()), (0, [1, 0, 1], true));
        assert_eq!(got.guid == sent.guid, same_guid);
        assert_ne!(got.rowid, sent.rowid);
        assert!(got.holds("hello"));
        assert_eq!(got.chat.as_deref(), Some("any;-;+15550100012"));
    }
}

#[test]
fn a_text_arrives_with_its_chat_a_little_later() {
    let sandbox = Sandbox::start("0");
    for (phone, macos) in ALL {
        let from = "+14155550123";
        let args =
            ["receive", "--phone", phone, "--from", from, "--text", "in ü", "--service", "SMS"];
        let told = sandbox.asked(&args);
        let row = sandbox.row(phone, from).unwrap();
        assert_eq!(told["guid"], row.guid);
        assert_eq!(told["rowid"], row.rowid);
        assert_eq!((row.from_me, row.state), (0, [1, 0, 1]));
        assert_eq!(row.text.is_some(), macos == 12);
        assert_eq!(row.chat, Some(chat_guid(macos, "SMS", from)));
    }
    let dir = sandbox.dir.clone();
    let mut receiving = command(PROGRAM)
        .args(["receive", "--phone", "15550100015", "--from", "+14155550124", "--text", "x"])
        .args(["--join-after-ms", "400", "--dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let row = sandbox.wait_row("15550100015", "+14155550124", |_| true);
    assert_eq!(row.chat, None);
    sandbox.wait_row("15550100015", "+14155550124", |row| row.chat.is_some());
    assert!(receiving.wait().unwrap().success());
}

#[test]
fn a_chat_is_found_by_its_guid_only() {
    let sandbox = Sandbox::start("0");
    for (phone, macos) in ALL {
        let from = "+14155550177";
        sandbox.asked(&["receive", "--phone", phone, "--from", from, "--text", "hi"]);
        let guid = chat_guid(macos, "iMessage", from);
        expect(&sandbox.run(phone, TO_CHAT, &[&guid, "reply"]), None);
        let row = sandbox.wait_row(phone, from, |row| row.from_me == 1 && row.state[2] == 1);
        assert_eq!(row.chat.as_deref(), Some(guid.as_str()));
        let wrong = if macos >= 26 { "iMessage;-;" } else { "any;-;" };
        let wrong = format!("{wrong}{from}");
        expect(&sandbox.run(phone, TO_CHAT, &[&wrong, "reply"]), Some(-1728));
    }
    assert_eq!(sandbox.truth().len(), ALL.len());
}

#[test]
fn a_group_gets_the_text_and_a_wrong_name_leaves_a_ghost() {
    let sandbox = Sandbox::start("0");
    let (phone, peer) = ("15550100026", "15550100015");
    sandbox.asked(&[
        "receive",
        "--phone",
        phone,
        "--from",
        "+14155550177",
        "--text",
        "hi all",
        "--group",
        "chat500",
        "--member",
        "+15550100015",
    ]);
    expect(&sandbox.run(phone, TO_CHAT, &["any;+;chat500", "to all"]), None);
    let got = sandbox.wait_row(peer, "+15550100026", |row| row.chat.is_some());
    assert_eq!(got.chat.as_deref(), Some("iMessage;+;chat500"));
    assert!(got.holds("to all"));
    let own = "SELECT printf('%d%d%d', is_finished, is_sent, is_delivered) || cache_roomnames
        FROM message WHERE is_from_me = 1 AND handle_id = 0";
    let state: String =
        wait_for("the own row", || sandbox.db(phone).query_row(own, [], |r| r.get(0)).ok());
    assert_eq!(state, "110chat500");
    expect(&sandbox.run(phone, TO_CHAT, &["any;-;chat500", "nowhere"]), None);
    let ghost = sandbox.wait_row(phone, "chat500", |_| true);
    assert_eq!((ghost.text.as_deref(), ghost.chat), (Some(""), None));
    expect(&sandbox.run(phone, TO_CHAT, &["any;+;chat501", "x"]), Some(-1728));
}

#[test]
fn a_recipient_can_read_later_and_icloud_can_be_late() {
    let sandbox = Sandbox::start("0");
    let phone = "15550100015";
    assert!(!sandbox.control(&["read", "--phone", phone]).status.success());
    sandbox.send(phone, "iMessage", "+12025550100", "x", None);
    let row = sandbox.wait_row(phone, "+12025550100", |row| row.state == [1, 1, 1]);
    sandbox.asked(&["read", "--phone", phone, "--guid", &row.guid]);
    assert!(sandbox.row(phone, "+12025550100").unwrap().date_read > 0);

    let copy = sandbox.asked(&["late", "--phone", phone, "--copy-of", &row.guid]);
    assert_ne!(copy["guid"], row.guid);
    let dates = "SELECT count(DISTINCT date) FROM message";
    assert_eq!(sandbox.db(phone).query_row(dates, [], |r| r.get::<_, i64>(0)).unwrap(), 1);
    assert!(!sandbox.control(&["late", "--phone", phone, "--copy-of", "x"]).status.success());

    sandbox.asked(&[
        "late",
        "--phone",
        phone,
        "--from",
        "+14155550177",
        "--text",
        "old",
        "--hours",
        "9",
    ]);
    let age = "SELECT CAST(round((max(date) - min(date)) / 3.6e12) AS INTEGER) FROM message";
    assert_eq!(sandbox.db(phone).query_row(age, [], |r| r.get::<_, i64>(0)).unwrap(), 9);
}

#[test]
fn a_sandbox_goes_on_where_it_was_stopped_or_killed() {
    let kept = tempfile::tempdir().unwrap();
    let phones = [("15550100015", 15)];
    for round in 1..=3_i64 {
        let mut sandbox = Sandbox::start_in(kept.path(), "0", &phones);
        let mut second = command(PROGRAM)
            .args(["phones", "--phone", "+15550100015=15", "--dir"])
            .arg(kept.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(!second.wait().unwrap().success(), "one sandbox a folder");
        sandbox.send("15550100015", "iMessage", "+12025550100", "x", None);
        let row = sandbox.wait_row("15550100015", "+12025550100", |row| {
            row.rowid == round && row.state == [1, 1, 1]
        });
        assert_eq!(row.rowid, round);
        assert_eq!(sandbox.truth().len(), usize::try_from(round).unwrap());
        if round == 1 {
            let pid = sandbox.child.id().to_string();
            assert!(command("kill").args(["-TERM", &pid]).status().unwrap().success());
            assert!(sandbox.child.wait().unwrap().success());
            assert!(!kept.path().join("messages.sock").exists());
        } else {
            sandbox.child.kill().unwrap();
        }
    }
}

#[test]
fn the_truth_can_be_counted() {
    let sandbox = Sandbox::start("0");
    let phone = "15550100015";
    for (to, text) in [("+12025550100", "a"), ("+12025550110", "a"), ("+12025550119", "b")] {
        let error = to.ends_with("19").then_some(-600);
        sandbox.send(phone, "iMessage", to, text, error);
    }
    assert_eq!(sandbox.asked(&["sends", "--json", "--count-by", "text"])["a"], 2);
    let reached = sandbox.asked(&["sends", "--json", "--count-by", "text", "--reached"]);
    assert_eq!(reached, serde_json::json!({"a": 1}));
    let table = sandbox.control(&["sends"]).stdout;
    assert_eq!(String::from_utf8(table).unwrap().lines().count(), 2);
    let digest = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
    assert_eq!(sandbox.truth()[0]["text_sha256"], digest);
}

#[test]
fn a_long_text_arrives_whole() {
    let sandbox = Sandbox::start("0");
    let phone = "15550100026";
    let text = "é😃\n\"".repeat(5_000);
    sandbox.send(phone, "iMessage", "+12025550100", &text, None);
    let row = sandbox.wait_row(phone, "+12025550100", |row| row.state == [1, 1, 1]);
    assert!(row.holds(&text));
}

#[test]
fn hundreds_of_texts_a_second_are_no_effort() {
    let sandbox = Sandbox::start("0");
    let phones = ["15550100013", "15550100015", "15550100026"];
    let per_phone = 60;
    let ((), took) = timed(|| {
        std::thread::scope(|scope| {
            for phone in phones {
                let sandbox = &sandbox;
                scope.spawn(move || {
                    for n in 0..per_phone {
                        sandbox.send(phone, "iMessage", "+12025550100", &format!("t{n}"), None);
                    }
                });
            }
        });
    });
    // 180 processes; far below what an unoptimised build on a busy machine needs.
    assert!(took < Duration::from_secs(15), "{took:?}");
    for phone in phones {
        let delivered = "SELECT count(*) FROM message WHERE is_delivered = 1";
        wait_for("every text to be delivered", || {
            let count: i64 = sandbox.db(phone).query_row(delivered, [], |r| r.get(0)).unwrap();
            (count == per_phone).then_some(())
        });
    }
}

#[test]
fn nonsense_on_the_socket_is_refused() {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    let sandbox = Sandbox::start("0");
    let mut stream = UnixStream::connect(sandbox.dir.join("messages.sock")).unwrap();
    stream.write_all(b"nonsense\n{\"ask\":\"list\"}\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut replies = String::new();
    stream.read_to_string(&mut replies).unwrap();
    let replies: Vec<Value> =
        replies.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(replies[0]["reply"], "refused");
    assert_eq!(replies[1]["reply"], "done");
}
