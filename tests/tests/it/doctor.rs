//! `switchboard-bridge doctor` beside the sandbox: what goes wrong with Messages is what is said.

#![cfg(test)]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::program::{self, Program};
use serde_json::Value;

const NUMBER: &str = "+15550100001";
/// For a busy machine; nothing waits for its end.
const WITHIN: Duration = Duration::from_secs(30);

/// One phone of the sandbox, and a configuration for its bridge.
struct Mac {
    dir: tempfile::TempDir,
    _sandbox: Program,
}

impl Mac {
    async fn start(macos: &str) -> Self {
        // A short path: the sandbox's socket lies below it, and such paths have about 100 bytes.
        let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").unwrap();
        let world = dir.path().join("phones");
        let phone = format!("{NUMBER}={macos}");
        let args = ["phones", "--dir", text(&world), "--phone", &phone, "--speed", "0"];
        let log = dir.path().join("sandbox.log");
        let sandbox = Program::start("switchboard-sandbox", &args, &[], &log).unwrap();
        let socket = world.join("messages.sock");
        let listens = async {
            while UnixStream::connect(&socket).is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(WITHIN, listens).await.expect("the sandbox listens");
        let phone = world.join(NUMBER.trim_start_matches('+'));
        let config = format!(
            "phone = \"pho_00000000000000000000000000\"\nnumber = \"{NUMBER}\"\n\
             state_dir = \"{}\"\nchat_db = \"{}\"\nosascript = \"{}\"\ndisk_low_mib = 16\n",
            dir.path().join("state").display(),
            phone.join("chat.db").display(),
            phone.join("osascript").display(),
        );
        std::fs::write(dir.path().join("bridge.toml"), config).unwrap();
        Self { dir, _sandbox: sandbox }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sandbox(&self, args: &[&str]) -> String {
        let world = self.path("phones");
        let args: Vec<&str> = args
            .iter()
            .take(1)
            .chain(&["--dir", text(&world)])
            .chain(&args[1..])
            .copied()
            .collect();
        program::run("switchboard-sandbox", &args, &[]).unwrap()
    }

    fn doctor(&self) -> Value {
        let config = self.path("bridge.toml");
        let args = ["doctor", "--json", "--config", text(&config)];
        let (code, output) = program::outcome("switchboard-bridge", &args).unwrap();
        let report: Value = serde_json::from_str(&output).unwrap();
        assert_eq!(report["exit_code"].as_i64(), code.map(i64::from), "{report}");
        report
    }

    /// The exit code, and the one check that is an error with its reason.
    fn error(&self) -> (i64, String, String) {
        let report = self.doctor();
        let checks = report["checks"].as_array().unwrap();
        let errors: Vec<&Value> = checks.iter().filter(|one| one["outcome"] == "error").collect();
        assert_eq!(errors.len(), 1, "{report}");
        let word = |name: &str| errors[0][name].as_str().unwrap().to_owned();
        assert!(word("remedy").ends_with('.'), "{report}");
        (report["exit_code"].as_i64().unwrap(), word("check"), word("reason"))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|one| one["check"] == name).unwrap_or_else(|| panic!("no {name}: {report}"))
}

#[tokio::test]
async fn every_state_of_messages_and_its_account_is_told_apart() {
    let mac = Mac::start("15").await;
    mac.sandbox(&["receive", "--phone", NUMBER, "--from", "+15550142000", "--text", "hello"]);
    let report = mac.doctor();
    assert_eq!((&report["exit_code"], &report["ready"]), (&0.into(), &true.into()), "{report}");
    assert_eq!(check(&report, "schema")["found"], "looks like macOS 15");
    for name in
        ["full_disk_access", "chat_db", "inbound", "messages", "automation", "imessage_account"]
    {
        assert_eq!(check(&report, name)["outcome"], "ok", "{name}: {report}");
    }
    for (status, code, name, reason) in [
        ("connecting", 75, "imessage_account", "account_offline"),
        ("disconnected", 69, "imessage_account", "account_offline"),
        ("missing", 69, "imessage_account", "account_unusable"),
        ("no-permission", 77, "automation", "automation_denied"),
    ] {
        mac.sandbox(&["account", "--status", status]);
        assert_eq!(mac.error(), (code, name.to_owned(), reason.to_owned()), "{status}");
    }
    mac.sandbox(&["account", "--status", "connected"]);
    assert_eq!(mac.doctor()["ready"], true);
    assert_eq!(mac.sandbox(&["sends", "--json"]).trim(), "", "doctor has sent something");
}

#[tokio::test]
async fn messages_that_does_not_run_is_not_started_by_the_question() {
    let mac = Mac::start("26").await;
    mac.sandbox(&["quit-messages"]);
    let expected = (69, "messages".to_owned(), "messages_not_running".to_owned());
    assert_eq!(mac.error(), expected);
    assert_eq!(mac.error(), expected, "the first question has started it");
    mac.sandbox(&["start-messages"]);
    assert_eq!(mac.doctor()["ready"], true);
}

#[tokio::test]
async fn a_database_that_is_gone_is_no_missing_permission() {
    let mac = Mac::start("14").await;
    let database = mac.path("phones").join(NUMBER.trim_start_matches('+')).join("chat.db");
    assert_eq!(check(&mac.doctor(), "chat_db")["outcome"], "warning", "no message yet");
    let away = database.with_extension("away");
    std::fs::rename(&database, &away).unwrap();
    let expected = (69, "full_disk_access".to_owned(), "database_missing".to_owned());
    assert_eq!(mac.error(), expected);
    std::fs::rename(&away, &database).unwrap();
    assert_eq!(mac.doctor()["ready"], true);
}
