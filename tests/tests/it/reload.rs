//! `switchboard host reload`: the operator's words for a changed configuration, with a supervisor, bridges and the
//! sandbox as they are.

#![cfg(test)]

use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use e2e::eventually;
use e2e::program::{self, Program};
use serde_json::Value;

/// For a busy machine; nothing waits for its end.
const WITHIN: Duration = Duration::from_secs(30);
const NUMBERS: [&str; 2] = ["+15550100001", "+15550100002"];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Phones with their labels.
fn write(dir: &Path, listen: &str, phones: &[(&str, &str)]) -> String {
    let mut config = format!("state_dir = \"state\"\n[dispatch]\nlisten = \"{listen}\"\n");
    for (number, label) in phones {
        let folder = dir.join("world").join(number.trim_start_matches('+'));
        write!(
            config,
            "[[phones]]\nnumber = \"{number}\"\nlabel = \"{label}\"\nchat_db = \"{}\"\nosascript = \"{}\"\n\
             [phones.bridge]\ndisk_low_mib = 16\n",
            folder.join("chat.db").display(),
            folder.join("osascript").display(),
        )
        .unwrap();
    }
    let file = dir.join("supervisor.toml");
    std::fs::write(&file, config).unwrap();
    text(&file).to_owned()
}

fn bridges(dir: &Path) -> Vec<u32> {
    let mut pids: Vec<u32> =
        program::bridges(dir).unwrap().into_iter().map(|(pid, _)| pid).collect();
    pids.sort_unstable();
    pids
}

#[tokio::test]
async fn the_operator_reloads_a_supervisor_and_is_told_what_it_did() {
    let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").unwrap();
    let dir = dir.path();
    let world = dir.join("world");
    let phones = NUMBERS.map(|number| format!("{number}=26"));
    let args = [
        "phones",
        "--dir",
        text(&world),
        "--phone",
        &phones[0],
        "--phone",
        &phones[1],
        "--speed",
        "0",
    ];
    let sandbox =
        Program::start("switchboard-sandbox", &args, &[], &dir.join("sandbox.log")).unwrap();
    eventually("the sandbox listens", WITHIN, || {
        let there = world.join("messages.sock").exists();
        async move { Ok(if there { Ok(()) } else { Err("no socket".to_owned()) }) }
    })
    .await
    .unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let config = write(dir, &listen, &[(NUMBERS[0], "first")]);

    // Nobody is there yet.
    let reload = ["--json", "host", "reload", "--config", &config];
    let (code, said) = program::outcome("switchboard", &reload).unwrap();
    assert_eq!(code, Some(2), "{said}");
    let log = dir.join("supervisor.log");
    let logs = dir.join("logs");
    let start = ["run", "--config", &config, "--log-dir", logs.to_str().unwrap()];
    let supervisor =
        Program::start("switchboard-supervisor", &start, &[("RUST_LOG", "trace")], &log).unwrap();
    eventually("one bridge runs", WITHIN, || {
        let there = bridges(dir).len() == 1 && dir.join("state/dispatch.token").exists();
        async move { Ok(if there { Ok(()) } else { Err("not yet".to_owned()) }) }
    })
    .await
    .unwrap();
    let first = bridges(dir);

    write(dir, &listen, &[(NUMBERS[0], "renamed"), (NUMBERS[1], "second")]);
    let said = program::run("switchboard", &reload, &[]).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["untouched"], said["started"].as_array().unwrap().len()), (&1.into(), 1));
    eventually("both bridges run", WITHIN, || {
        let there = bridges(dir).len() == 2;
        async move { Ok(if there { Ok(()) } else { Err("not yet".to_owned()) }) }
    })
    .await
    .unwrap();
    assert!(bridges(dir).contains(&first[0]), "the first bridge went on");

    // What its bridge has logged, by number or id, and the supervisor's own log in its folder.
    let logs_of = |phone: &str| {
        let args = ["--json", "host", "logs", phone, "--config", &config];
        let (code, said) = program::outcome("switchboard", &args).unwrap();
        (code, serde_json::from_str::<Value>(&said).unwrap_or_default())
    };
    eventually("the bridge has logged", WITHIN, || {
        let (code, said) = logs_of(NUMBERS[0]);
        let first = said["data"][0].clone();
        let there =
            code == Some(0) && first["n"] == 1 && first["line"].to_string().contains("TRACE");
        async move { Ok(if there { Ok(()) } else { Err(said.to_string()) }) }
    })
    .await
    .unwrap();
    for (phone, expected) in
        [("+15550109999", 2), ("nonsense", 2), ("pho_00000000000000000000000000", 1)]
    {
        assert_eq!(logs_of(phone).0, Some(expected), "{phone}");
    }
    let own = logs.join("supervisor.log");
    assert!(std::fs::read_to_string(&own).unwrap().contains("running"));
    assert_eq!(std::fs::metadata(own).unwrap().permissions().mode() & 0o777, 0o600);
    let stderr = std::fs::read_to_string(&log).unwrap();
    assert!(!stderr.contains("running"), "nothing is logged twice: {stderr}");

    // Everything that can be looked at here, through the supervisor: this is no Mac, its phones are looked at all the same.
    let doctor = ["--json", "host", "doctor", "--config", &config];
    let (_, said) = program::outcome("switchboard", &doctor).unwrap();
    let report: Value = serde_json::from_str(&said).unwrap();
    let phones = report["phones"].as_array().unwrap();
    assert_eq!(phones.len(), 2, "{said}");
    for phone in phones {
        let subjects: Vec<_> =
            phone["checks"].as_array().unwrap().iter().map(|check| &check["check"]).collect();
        assert!(subjects.len() > 4, "what the bridge's own doctor says: {said}");
    }
    let mac = report["checks"].as_array().unwrap().iter().find(|check| check["check"] == "mac");
    assert_eq!(mac.is_none(), cfg!(target_os = "macos"), "{said}");

    // A mistake in the file is said as such, and nothing is touched.
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap().replace(NUMBERS[1], "12"))
        .unwrap();
    let (code, _) = program::outcome("switchboard", &reload).unwrap();
    assert_eq!(code, Some(2));
    assert_eq!(bridges(dir).len(), 2);

    // What stops has ended when the command has.
    write(dir, &listen, &[(NUMBERS[0], "renamed")]);
    let plain = ["host", "reload", "--config", &config];
    let said = program::run("switchboard", &plain, &[]).unwrap();
    assert!(said.contains("stopped") && said.contains("1 phones went on"), "{said}");
    assert_eq!(bridges(dir), first);
    assert!(supervisor.stop(WITHIN).await.unwrap().success());
    assert!(sandbox.stop(WITHIN).await.is_ok());
}
