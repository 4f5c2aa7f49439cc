//! `switchboard-bridge doctor` as a program, with a chat.db of Apple's schema and shell scripts in
//! the place of osascript that do what is hard to get from a Mac on request.
//!
//! Tests may run as root, whom no mode keeps out: that EPERM and EACCES are told apart is tested
//! where they are judged (`checks::history`), from numbers.

#![cfg(test)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rusqlite::Connection;
use serde_json::Value;

/// A Mac with one phone.
struct Mac(tempfile::TempDir);

impl Mac {
    /// `osascript` is the body of a shell script; `extra` goes into the configuration.
    fn new(osascript: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mac = Self(dir);
        let database = Connection::open(mac.path("chat.db")).unwrap();
        database.pragma_update(None, "journal_mode", "wal").unwrap();
        let schema =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chatdb-schema/macos26.sql");
        database.execute_batch(&std::fs::read_to_string(schema).unwrap()).unwrap();
        mac.insert("iMessage", false, 0, 60);
        mac.program(osascript);
        let config = format!(
            "phone = \"pho_00000000000000000000000000\"\nnumber = \"+15550100001\"\n\
             state_dir = \"{0}/state\"\nchat_db = \"{0}/chat.db\"\nosascript = \"{0}/osascript\"\n\
             disk_low_mib = 16\n{extra}\n",
            mac.0.path().display()
        );
        std::fs::write(mac.path("bridge.toml"), config).unwrap();
        mac
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(&self, body: &str) {
        let path = self.path("osascript");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn sql(&self, sql: &str) {
        Connection::open(self.path("chat.db")).unwrap().execute_batch(sql).unwrap();
    }

    /// A row of so many seconds ago; negative is ahead.
    fn insert(&self, service: &str, own: bool, error: i64, age_s: i64) {
        let database = Connection::open(self.path("chat.db")).unwrap();
        let date = (bridge::clock::now().wall.0 - age_s * 1000 - 978_307_200_000) * 1_000_000;
        database
            .execute(
                "INSERT INTO message (guid, text, handle_id, service, date, is_from_me, error)
                 VALUES (hex(randomblob(16)), 'secret words', abs(random() % 1000000) + 1, ?1, ?2, ?3, ?4)",
                rusqlite::params![service, date, own, error],
            )
            .unwrap();
    }

    #[expect(clippy::disallowed_methods, reason = "a test starts the program that it is about")]
    fn doctor(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_switchboard-bridge"))
            .args(["doctor", "--config"])
            .arg(self.path("bridge.toml"))
            .args(args)
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .envs(env.iter().copied())
            .output()
            .unwrap()
    }

    fn json(&self) -> (i32, Value) {
        let output = self.doctor(&["--json"], &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains("secret words"), "a text of a message is shown");
        let json: Value = serde_json::from_str(&text).unwrap();
        let code = output.status.code().unwrap();
        assert_eq!(json["exit_code"], code);
        assert_eq!(json["ready"], code == 0);
        (code, json)
    }
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks
        .iter()
        .find(|check| check["check"] == name)
        .unwrap_or_else(|| panic!("no {name}: {report}"))
}

fn outcome(report: &Value, name: &str) -> String {
    check(report, name)["outcome"].as_str().unwrap().to_owned()
}

const CONNECTED: &str = "cat >/dev/null; echo connected";

#[test]
fn a_mac_that_is_well_is_ready() {
    let (code, report) = Mac::new(CONNECTED, "").json();
    assert_eq!(code, 0, "{report}");
    let names: Vec<&str> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["check"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "clock",
            "state_dir",
            "state_disk",
            "attachments_disk",
            "journal",
            "osascript",
            "orphan",
            "full_disk_access",
            "chat_db",
            "schema",
            "inbound",
            "error_22",
            "messages",
            "automation",
            "imessage_account",
            "text_forwarding",
            "sms_account",
            "rcs_account",
        ]
    );
    assert_eq!(report["schema"], 1);
    assert_eq!(check(&report, "schema")["found"], "looks like macOS 26");
    for name in ["clock", "state_dir", "full_disk_access", "chat_db", "imessage_account"] {
        assert_eq!(outcome(&report, name), "ok", "{report}");
    }
}

#[test]
fn every_answer_of_osascript_has_its_exit_code() {
    let fails = |number: i32| {
        format!("cat >/dev/null; echo '0:4: execution error: something ({number})' >&2; exit 1")
    };
    let says = |word: &str| format!("cat >/dev/null; echo {word}");
    for (osascript, code, name, reason) in [
        (fails(-1743), 77, "automation", "automation_denied"),
        (fails(-1744), 77, "automation", "automation_consent"),
        (fails(-600), 69, "messages", "messages_not_running"),
        (fails(-1712), 75, "messages", "messages_timeout"),
        (fails(-2753), 69, "imessage_account", "account_unusable"),
        (fails(-1700), 69, "automation", "script_fault"),
        (says("not running"), 69, "messages", "messages_not_running"),
        (says("disconnected"), 69, "imessage_account", "account_offline"),
        (says("connecting"), 75, "imessage_account", "account_offline"),
    ] {
        let (found, report) = Mac::new(&osascript, "").json();
        assert_eq!(found, code, "{osascript}: {report}");
        assert_eq!(check(&report, name)["outcome"], "error", "{osascript}: {report}");
        assert_eq!(check(&report, name)["reason"], reason, "{osascript}: {report}");
        assert_ne!(check(&report, name)["remedy"], "", "{osascript}: {report}");
    }
}

#[test]
fn an_osascript_that_hangs_is_a_question_on_the_screen_and_is_ended() {
    let mac = Mac::new("echo $$ > \"$0.pid\"; exec sleep 600", "osascript_deadline_ms = 300");
    let (code, report) = mac.json();
    assert_eq!(code, 77, "{report}");
    assert_eq!(check(&report, "automation")["reason"], "automation_consent");
    assert_eq!(outcome(&report, "sms_account"), "skipped", "the others would wait in vain");
    let pid = std::fs::read_to_string(mac.path("osascript.pid")).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    assert_eq!(nix::sys::signal::kill(pid, None), Err(nix::errno::Errno::ESRCH), "it still runs");
}

#[test]
fn an_osascript_that_floods_is_ended_and_is_no_question() {
    let mac =
        Mac::new("cat >/dev/null; while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&2; done", "");
    let (code, report) = mac.json();
    assert_eq!(code, 75, "{report}");
    assert_eq!(check(&report, "messages")["reason"], "messages_timeout");
}

#[test]
fn an_osascript_that_is_missing_or_no_program_is_a_wrong_configuration() {
    let mac = Mac::new(CONNECTED, "");
    let path = mac.path("osascript");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "osascript").as_str()), (78, "error"), "{report}");
    std::fs::remove_file(path).unwrap();
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "osascript").as_str()), (78, "error"), "{report}");
    assert_eq!(outcome(&report, "automation"), "skipped");
    // What does not need osascript is looked at all the same.
    assert_eq!(outcome(&report, "chat_db"), "ok");
}

#[test]
fn a_database_that_is_missing_foreign_or_empty_is_said_as_such() {
    let mac = Mac::new(CONNECTED, "");
    for suffix in ["", "-wal", "-shm"] {
        let path = mac.path(&format!("chat.db{suffix}"));
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let (code, report) = mac.json();
    assert_eq!(code, 69);
    assert_eq!(check(&report, "full_disk_access")["reason"], "database_missing");
    assert_eq!(outcome(&report, "chat_db"), "skipped");

    std::fs::write(mac.path("chat.db"), "").unwrap();
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "chat_db").as_str()), (69, "error"), "{report}");

    std::fs::write(mac.path("chat.db"), "no database at all, but long enough to be looked at")
        .unwrap();
    let (code, report) = mac.json();
    assert_eq!(code, 78, "{report}");
    assert_eq!(check(&report, "chat_db")["reason"], "database_foreign");
}

#[test]
fn a_database_that_is_held_is_waited_for_a_moment_and_is_temporary() {
    let mac = Mac::new(CONNECTED, "");
    let holder = Connection::open(mac.path("chat.db")).unwrap();
    holder.execute_batch("PRAGMA journal_mode = delete; BEGIN EXCLUSIVE").unwrap();
    let (code, report) = mac.json();
    assert_eq!(code, 75, "{report}");
    assert_eq!(check(&report, "chat_db")["reason"], "database_locked");
    assert_eq!(outcome(&report, "full_disk_access"), "ok");
    // What does not need chat.db is looked at all the same.
    assert_eq!(outcome(&report, "imessage_account"), "ok");
    holder.execute_batch("COMMIT").unwrap();
    assert_eq!(mac.json().0, 0);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test starts the program that it is about")]
fn beside_a_running_bridge_osascript_is_left_to_it() {
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;

    let mac = Mac::new(CONNECTED, "");
    let mut bridge = Command::new(env!("CARGO_BIN_EXE_switchboard-bridge"))
        .args(["run", "--config"])
        .arg(mac.path("bridge.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(bridge.stdout.take().unwrap()).lines();
    // The account is journaled before the bridge says that it is ready.
    let ready = lines.map(Result::unwrap).any(|line| line.contains("\"type\":\"ready\""));
    assert!(ready, "the bridge ended without becoming ready");
    std::fs::write(mac.path("osascript"), "#!/bin/sh\ntouch \"$0.asked\"\n").unwrap();
    let (code, report) = mac.json();
    assert_eq!(code, 0, "{report}");
    assert!(check(&report, "state_dir")["found"].as_str().unwrap().contains("is in use"));
    assert_eq!(outcome(&report, "orphan"), "skipped");
    assert_eq!(outcome(&report, "journal"), "ok");
    let account = check(&report, "imessage_account");
    assert_eq!(account["outcome"], "ok");
    assert_eq!(account["found"], "connected, as the running bridge saw it last");
    assert!(!mac.path("osascript.asked").exists(), "it was asked by two at once");
    drop(bridge.stdin.take());
    assert!(bridge.wait().unwrap().success());
}

#[test]
fn a_new_column_is_a_warning_and_a_missing_one_an_error() {
    let mac = Mac::new(CONNECTED, "");
    mac.sql("ALTER TABLE message ADD COLUMN is_dream INTEGER");
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "schema").as_str()), (0, "warning"), "{report}");
    assert!(check(&report, "schema")["found"].as_str().unwrap().contains("message.is_dream"));
    mac.sql("ALTER TABLE chat RENAME COLUMN chat_identifier TO identifier");
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "chat_db").as_str()), (78, "error"), "{report}");
}

#[test]
fn a_clock_that_own_and_others_rows_are_ahead_of_is_wrong() {
    let mac = Mac::new(CONNECTED, "");
    mac.insert("iMessage", true, 0, -3600);
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "clock").as_str()), (0, "warning"), "{report}");
    mac.insert("iMessage", false, 0, -3600);
    mac.insert("iMessage", false, 0, -3600);
    mac.insert("iMessage", false, 0, -3600);
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "clock").as_str()), (75, "error"), "{report}");
}

#[test]
fn many_failures_with_error_22_are_a_warning() {
    let mac = Mac::new(CONNECTED, "");
    for age_s in 0..6 {
        mac.insert("iMessage", true, 22, age_s);
    }
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "error_22").as_str()), (0, "warning"), "{report}");
}

#[test]
fn forwarding_is_missed_where_sms_is_used_and_seen_in_history() {
    let only_imessage = r#"cat >/dev/null; case "$4" in iMessage) echo connected;; *) echo 'x (-1719)' >&2; exit 1;; esac"#;
    let mac = Mac::new(only_imessage, "");
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "text_forwarding").as_str()), (0, "warning"), "{report}");
    assert_eq!(outcome(&report, "sms_account"), "warning", "{report}");
    assert_eq!(outcome(&report, "rcs_account"), "skipped", "rcs is not among the channels");
    mac.insert("SMS", false, 0, 60);
    let (_, report) = mac.json();
    assert_eq!(outcome(&report, "text_forwarding"), "ok", "{report}");
    let mac = Mac::new(only_imessage, "default_channels = [\"imessage\"]");
    let (_, report) = mac.json();
    assert_eq!(outcome(&report, "text_forwarding"), "skipped", "{report}");
}

#[test]
fn a_disk_that_is_nearly_full_is_an_error_and_a_folder_open_to_others_a_warning() {
    let mac = Mac::new(CONNECTED, "");
    let config = std::fs::read_to_string(mac.path("bridge.toml")).unwrap();
    let config = config.replace("disk_low_mib = 16", "disk_low_mib = 1073741824");
    std::fs::write(mac.path("bridge.toml"), config).unwrap();
    std::fs::create_dir(mac.path("state")).unwrap();
    std::fs::set_permissions(mac.path("state"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (code, report) = mac.json();
    assert_eq!((code, outcome(&report, "state_disk").as_str()), (75, "error"), "{report}");
    assert_eq!(check(&report, "attachments_disk")["reason"], "disk_low");
    assert_eq!(outcome(&report, "state_dir"), "warning");
}

#[test]
fn colours_are_only_for_terminals_and_no_color_is_respected() {
    let mac = Mac::new(CONNECTED, "");
    let escapes = |env: &[(&str, &str)]| mac.doctor(&[], env).stdout.contains(&0x1b);
    assert!(!escapes(&[]), "a pipe is no terminal");
    assert!(escapes(&[("CLICOLOR_FORCE", "1")]), "asked for");
    assert!(!escapes(&[("NO_COLOR", "1")]));
    let table = String::from_utf8(mac.doctor(&[], &[]).stdout).unwrap();
    assert!(table.contains("ok       full_disk_access  "), "{table}");
    assert!(table.ends_with("can work: 0 errors, 0 warnings\n"), "{table}");
}
