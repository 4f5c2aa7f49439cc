//! A bridge that has nothing to do, on a large chat.db: what it costs, and how long it reads.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::program::{self, Lines};

use crate::Figure;

/// Until everything young has been compared, and the caches are as large as they get.
const SETTLE: Duration = Duration::from_secs(8);
/// How long is measured.
const MEASURED: Duration = Duration::from_secs(30);
const READY_WITHIN: Duration = Duration::from_secs(30);

/// An osascript that is always connected: the account is asked, nothing is sent.
const CONNECTED: &str = "#!/bin/sh\ncat > /dev/null\necho connected\n";

pub(crate) async fn measure(rows: u32, made: Option<&Path>) -> Result<Vec<Figure>> {
    let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").context("folder")?;
    let own = dir.path().join("chat.db");
    let db = made.unwrap_or(&own);
    if !db.exists() {
        let (path, count) = (db.display().to_string(), rows.to_string());
        let args = ["generate", "--db", &path, "--macos", "15", "--messages", &count, "--mix"];
        program::run("switchboard-sandbox", &args, &[])?;
    }
    let osascript = dir.path().join("osascript");
    std::fs::write(&osascript, CONNECTED).context("osascript")?;
    std::fs::set_permissions(&osascript, std::fs::Permissions::from_mode(0o755))
        .context("osascript")?;
    let config = dir.path().join("bridge.toml");
    let mut file = std::fs::File::create(&config).context("configuration")?;
    write!(
        file,
        "phone = \"pho_00000000000000000000000000\"\nnumber = \"+15550100001\"\n\
         state_dir = \"{}\"\nchat_db = \"{}\"\nosascript = \"{}\"\n",
        dir.path().join("state").display(),
        db.display(),
        osascript.display(),
    )
    .context("configuration")?;
    let config = config.display().to_string();
    let bridge = Lines::start("switchboard-bridge", &["run", "--config", &config])?;
    loop {
        let (_, line) = bridge.next(READY_WITHIN).await.context("the bridge is not ready")?;
        if line.contains("\"ready\"") {
            break;
        }
    }
    tokio::time::sleep(SETTLE).await;
    let used = || program::cpu_seconds(bridge.pid()).context("the bridge has ended");
    let before = used()?;
    tokio::time::sleep(MEASURED).await;
    let seconds = used()? - before;
    let resident = program::resident_now_kib(bridge.pid());
    ensure!(resident > 0, "the bridge has ended");
    let longest = longest_read(&bridge).await?;
    let share = seconds / MEASURED.as_secs_f64();
    Ok(vec![
        Figure::new(
            "idle: a bridge with nothing to do on a large chat.db",
            format!("{:.3} % of a processor, {:.1} MiB resident", share * 100.0, mib(resident)),
            "promised: 0.2 %, 12 MiB".to_owned(),
            None,
        ),
        Figure::new(
            "idle: its longest read of chat.db, start included",
            longest,
            "promised: 50 ms".to_owned(),
            None,
        ),
    ])
}

pub(crate) fn mib(kib: u64) -> f64 {
    u32::try_from(kib).map_or(f64::MAX, f64::from) / 1024.0
}

/// What the newest heartbeat says.
async fn longest_read(bridge: &Lines) -> Result<String> {
    let mut said = None;
    // Heartbeats have been coming every five seconds; one more will.
    while let Ok((_, line)) = bridge.next(Duration::from_secs(6)).await {
        let line: serde_json::Value = serde_json::from_str(&line).context("a line")?;
        if let Some(us) = line.get("longest_read_us").and_then(serde_json::Value::as_u64) {
            said = Some(us);
            break;
        }
    }
    let us = said.context("no heartbeat")?;
    Ok(format!("{:.1} ms", u32::try_from(us).map_or(f64::MAX, f64::from) / 1e3))
}
