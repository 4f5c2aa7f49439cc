//! A second Mac: its own supervisor, for the phone of the first, for which it stands by, or for another one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use protocol::api::Phone;
use protocol::link::PhoneState;
use serde_json::Value;
use tokio::time::Instant;

use crate::eventually;
use crate::program::{self, Program};
use crate::shelf::{Shelf, free_addr};

/// For a busy machine; what is measured is given back.
const WITHIN: Duration = Duration::from_secs(90);

/// Another Mac of a shelf.
#[derive(Debug)]
pub struct Second {
    dir: PathBuf,
    supervisor: Option<Program>,
    sandbox: Option<Program>,
}

impl Second {
    /// Starts one in the shelf's folder, with a Messages of its own that shares nothing with the shelf's, and enrols it.
    pub async fn start(shelf: &Shelf, number: &str) -> Result<Self> {
        let dir = shelf.root().join("second");
        let world = dir.join("phones");
        std::fs::create_dir_all(&dir).context("second")?;
        let (phone, at) = (format!("{number}=26"), world.display().to_string());
        let sandbox = Program::start(
            "switchboard-sandbox",
            &["phones", "--dir", &at, "--phone", &phone, "--speed", "0.2"],
            &[],
            &dir.join("sandbox.log"),
        )?;
        let socket = world.join("messages.sock");
        eventually("the second sandbox listens", WITHIN, || async {
            let up = std::os::unix::net::UnixStream::connect(&socket).map(drop);
            Ok(up.map_err(|error| error.to_string()))
        })
        .await?;
        Self::enrolled(shelf, number, (dir, &world), Some(sandbox))
    }

    /// Starts one for a phone of the shelf's own sandbox that the shelf does not serve itself ([`crate::shelf::Plan`]'s
    /// `elsewhere`), and enrols it.
    pub fn beside(shelf: &Shelf, number: &str) -> Result<Self> {
        let dir = shelf.root().join("beside");
        std::fs::create_dir_all(&dir).context("beside")?;
        Self::enrolled(shelf, number, (dir, &shelf.world()), None)
    }

    fn enrolled(
        shelf: &Shelf,
        number: &str,
        (dir, world): (PathBuf, &Path),
        sandbox: Option<Program>,
    ) -> Result<Self> {
        let home = world.join(number.trim_start_matches('+'));
        let text = format!(
            "state_dir = \"{}\"\n[router]\nurl = \"{}\"\nredial_max_ms = 200\n[dispatch]\nlisten = \"{}\"\n\
             [[phones]]\nnumber = \"{number}\"\nstandby = true\nchat_db = \"{}\"\nosascript = \"{}\"\n\
             [phones.bridge.pacing]\nper_second = 0.0\n",
            dir.join("host").display(),
            shelf.url(),
            free_addr()?,
            home.join("chat.db").display(),
            home.join("osascript").display(),
        );
        let mut second = Self { dir, supervisor: None, sandbox };
        std::fs::write(second.config(), text).context("second's configuration")?;
        let config = second.config().display().to_string();
        let token = [("SWITCHBOARD_ADMIN_TOKEN", shelf.operator_token())];
        let url = shelf.url();
        let enrol = ["--url", &url, "host", "enroll", "--name", "second", "--config", &config];
        program::run("switchboard", &enrol, &token)?;
        second.start_supervisor()?;
        Ok(second)
    }

    fn config(&self) -> PathBuf {
        self.dir.join("supervisor.toml")
    }

    /// Where its sandbox keeps its phones.
    pub fn world(&self) -> PathBuf {
        self.dir.join("phones")
    }

    /// Process id of its supervisor.
    pub fn supervisor_pid(&self) -> Result<u32> {
        self.supervisor.as_ref().map(Program::pid).context("the second supervisor runs")
    }

    /// Starts its supervisor; also after [`Second::lose`].
    pub fn start_supervisor(&mut self) -> Result<()> {
        let (config, log) = (self.config().display().to_string(), self.dir.join("supervisor.log"));
        let args = ["run", "--config", &config];
        self.supervisor = Some(Program::start("switchboard-supervisor", &args, &[], &log)?);
        Ok(())
    }

    /// It is gone without a word: its supervisor and every bridge of it.
    pub fn lose(&mut self) -> Result<()> {
        self.supervisor.take().context("the second supervisor runs")?.crash()?;
        program::crash_bridges(&self.dir.join("host"))
    }

    /// Stops it in order.
    pub async fn stop(self) -> Result<()> {
        const STOP_WITHIN: Duration = Duration::from_secs(25);
        for program in self.supervisor.into_iter().chain(self.sandbox) {
            program.stop(STOP_WITHIN).await?;
        }
        Ok(())
    }
}

/// Everything that Messages was asked for on one Mac: when, and what.
pub fn sends(world: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(world.join("sends.jsonl")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).context("sends")?;
            let field = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default();
            Ok((field("at").to_owned(), field("text").to_owned()))
        })
        .collect()
}

async fn phone(shelf: &Shelf) -> Result<Phone> {
    shelf.operator.phones().await?.pop().context("a phone")
}

/// Waits until the standby could take over.
pub async fn stands_by(shelf: &Shelf) -> Result<()> {
    eventually("a host stands by", WITHIN, || async {
        let phone = phone(shelf).await?;
        let able = phone
            .hosts
            .iter()
            .any(|host| !host.active && host.online && host.state == PhoneState::Ready);
        Ok(if able { Ok(()) } else { Err(format!("{:?}", phone.hosts)) })
    })
    .await
}

/// Waits until the Mac of `world` is asked for more than it was; how long that took.
pub async fn sends_from(world: &Path, what: &str) -> Result<Duration> {
    let (before, since) = (sends(world)?.len(), Instant::now());
    eventually(what, WITHIN, || async {
        let now = sends(world)?.len();
        Ok(if now > before { Ok(()) } else { Err(format!("{now} sends, as before")) })
    })
    .await?;
    Ok(since.elapsed())
}

/// Hands the phone to its other host by the operator's command, and waits until that is done; what it said last.
pub fn hand_over(shelf: &Shelf, number: &str) -> Result<String> {
    let token = [("SWITCHBOARD_ADMIN_TOKEN", shelf.operator_token())];
    let args = ["--url", &shelf.url(), "failover", "phone", number];
    let said = program::run("switchboard", &args, &token)?;
    ensure!(said.contains("done in"), "{said}");
    Ok(said.lines().last().unwrap_or_default().trim().to_owned())
}
