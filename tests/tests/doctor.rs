//! The doctor of a bridge beside a Messages that is played: what each state of the account, of
//! Messages and of its permission comes out as.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::program::{Program, path_of, run};
use serde_json::Value;

const NUMBER: &str = "+15550100001";
/// The sandbox starts in well under a second; a busy machine is given time.
const START_WITHIN: Duration = Duration::from_secs(30);

#[expect(clippy::disallowed_methods, reason = "the exit code is what this story is about")]
fn doctor(config: &Path) -> Result<(Option<i32>, Value)> {
    let output = Command::new(path_of("switchboard-bridge")?)
        .args(["doctor", "--json", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .output()
        .context("doctor")?;
    Ok((output.status.code(), serde_json::from_slice(&output.stdout).context("its report")?))
}

/// The reasons of the checks that are errors, with their names.
fn errors(report: &Value) -> Vec<String> {
    let checks = report["checks"].as_array().cloned().unwrap_or_default();
    let word = |check: &Value, key: &str| check[key].as_str().unwrap_or("-").to_owned();
    checks
        .iter()
        .filter(|check| check["outcome"] == "error")
        .map(|check| format!("{}: {}", word(check, "check"), word(check, "reason")))
        .collect()
}

#[tokio::test]
async fn every_state_of_messages_is_told_apart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let world = dir.path().join("world");
    let world_arg = world.to_str().context("path")?.to_owned();
    let phone = format!("{NUMBER}=26");
    let args = ["phones", "--dir", &world_arg, "--phone", &phone, "--speed", "0.1"];
    let mut sandbox =
        Program::start("switchboard-sandbox", &args, &[], &dir.path().join("sandbox.log"))?;
    let until = tokio::time::Instant::now() + START_WITHIN;
    while std::os::unix::net::UnixStream::connect(world.join("messages.sock")).is_err() {
        sandbox.check()?;
        ensure!(tokio::time::Instant::now() < until, "the sandbox does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mac = world.join(NUMBER.trim_start_matches('+'));
    let config = dir.path().join("bridge.toml");
    std::fs::write(
        &config,
        format!(
            "phone = \"pho_00000000000000000000000000\"\nnumber = \"{NUMBER}\"\n\
             state_dir = \"{}/state\"\nchat_db = \"{}/chat.db\"\nosascript = \"{}/osascript\"\n\
             disk_low_mib = 16\n",
            dir.path().display(),
            mac.display(),
            mac.display()
        ),
    )?;
    let tell = |args: &[&str]| {
        let args: Vec<&str> = [&args[..1], &["--dir", &world_arg], &args[1..]].concat();
        run("switchboard-sandbox", &args, &[])
    };

    tell(&["receive", "--phone", NUMBER, "--from", "+12025550143", "--text", "hello"])?;
    let (code, report) = doctor(&config)?;
    assert_eq!((code, errors(&report)), (Some(0), vec![]), "{report}");

    for (status, expected, error) in [
        ("connecting", 75, "imessage_account: account_offline"),
        ("disconnected", 69, "imessage_account: account_offline"),
        ("missing", 69, "imessage_account: account_unusable"),
        ("no-permission", 77, "automation: automation_denied"),
        ("connected", 0, ""),
    ] {
        tell(&["account", "--phone", NUMBER, "--status", status])?;
        let (code, report) = doctor(&config)?;
        assert_eq!(code, Some(expected), "{status}: {report}");
        assert_eq!(errors(&report).join(", "), error, "{status}: {report}");
    }

    tell(&["quit-messages", "--phone", NUMBER])?;
    let (code, report) = doctor(&config)?;
    assert_eq!(code, Some(69), "{report}");
    assert_eq!(errors(&report), ["messages: messages_not_running"], "{report}");
    tell(&["start-messages", "--phone", NUMBER])?;
    assert_eq!(doctor(&config)?.0, Some(0));
    let asked = run("switchboard-sandbox", &["sends", "--dir", &world_arg, "--json"], &[])?;
    assert_eq!(asked.trim(), "", "doctor has sent something");
    Ok(())
}
