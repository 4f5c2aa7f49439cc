//! Supervisors that keep one and the same child: ours and those that others use, each as it comes, as far as its own
//! configuration goes. They are programs beside ours, found by `PATH` and never linked; who is not installed is missing
//! from the table, and said to be.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::clock::shared_ns;
use e2e::eventually;
use e2e::program::{self, Program, crash_pid};

const START_WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(20);
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at the stamps; the stamps themselves say when.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Who keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    Supervisord,
    Runit,
    S6,
    Monit,
    Pm2,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Ours, Self::Supervisord, Self::Runit, Self::S6, Self::Monit, Self::Pm2];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "switchboard-supervisor",
            Self::Supervisord => "supervisord",
            Self::Runit => "runit (runsv)",
            Self::S6 => "s6 (s6-supervise)",
            Self::Monit => "monit, every second",
            Self::Pm2 => "pm2",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Ours => "switchboard-supervisor",
            Self::Supervisord => "supervisord",
            Self::Runit => "runsv",
            Self::S6 => "s6-supervise",
            Self::Monit => "monit",
            Self::Pm2 => "pm2",
        }
    }
}

/// One of them, with its child running.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) kind: Kind,
    stamps: PathBuf,
    keeps: Keeps,
    /// Removed with everything; the child then ends by itself, whoever has lost sight of it.
    _dir: tempfile::TempDir,
}

#[derive(Debug)]
enum Keeps {
    /// A program that runs in front.
    Program(Option<Program>),
    /// pm2 runs on in the background until it is told.
    Pm2 { program: PathBuf, home: String },
}

impl Keeper {
    /// Starts it and waits for its child; none where it is not installed.
    pub(crate) async fn start(kind: Kind) -> Result<Option<Self>> {
        let program = match kind {
            Kind::Ours => Some(program::path_of(kind.program())?),
            Kind::Supervisord | Kind::Runit | Kind::S6 | Kind::Monit | Kind::Pm2 => {
                program::installed(kind.program())
            }
        };
        let Some(program) = program else { return Ok(None) };
        let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").context("folder")?;
        let stamps = dir.path().join("stamps");
        write(&stamps, "")?;
        write(&dir.path().join("child.toml"), &format!("stamps = \"{}\"\n", stamps.display()))?;
        let keeps = start(kind, &program, dir.path(), &stamps)?;
        let keeper = Self { kind, stamps, keeps, _dir: dir };
        keeper.newest_after(None, START_WITHIN).await.with_context(|| kind.name())?;
        Ok(Some(keeper))
    }

    /// Kills the child; how long until another one was ready.
    pub(crate) async fn crash_child(&self) -> Result<Duration> {
        let (before, _) = self.newest()?.context("a child has run")?;
        let killed = shared_ns();
        crash_pid(before)?;
        let ready = self.newest_after(Some(before), READY_WITHIN).await?;
        ensure!(ready >= killed, "it was ready before it was killed");
        Ok(Duration::from_nanos(ready - killed))
    }

    /// The newest child and when it was ready.
    fn newest(&self) -> Result<Option<(u32, u64)>> {
        let text = std::fs::read_to_string(&self.stamps).context("stamps")?;
        let Some(last) = text.lines().last() else { return Ok(None) };
        let (pid, at) = last.split_once(' ').context("a stamp")?;
        Ok(Some((pid.parse().context("a stamp")?, at.parse().context("a stamp")?)))
    }

    async fn newest_after(&self, before: Option<u32>, within: Duration) -> Result<u64> {
        let until = tokio::time::Instant::now() + within;
        loop {
            match self.newest()? {
                Some((pid, at)) if Some(pid) != before => return Ok(at),
                Some(_) | None => {}
            }
            if tokio::time::Instant::now() >= until {
                bail!("{} has no new child within {within:?}", self.kind.name());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends it and its child.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Keeps::Program(program) = &mut self.keeps
            && let Some(program) = program.take()
        {
            program.stop(STOP_WITHIN).await?;
        }
        // monit leaves its child, and runsv leaves it to a word of its own.
        if let Some((pid, _)) = self.newest()? {
            eventually("the child ends", STOP_WITHIN, || async {
                Ok(if crash_pid(pid).is_err() { Ok(()) } else { Err("it is there".to_owned()) })
            })
            .await?;
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Keeps::Pm2 { program, home } = &self.keeps {
            // Nothing to be done about one that does not end.
            pm2(program, home, &["kill"]).map(drop).unwrap_or_default();
        }
    }
}

fn start(kind: Kind, program: &Path, dir: &Path, stamps: &Path) -> Result<Keeps> {
    let child = program::path_of("switchboard-load-child")?;
    let (child_text, here) = (child.display().to_string(), dir.display().to_string());
    let config = dir.join("config");
    let config_text = config.display().to_string();
    let log = dir.join("log");
    let run =
        |args: &[&str]| Ok(Keeps::Program(Some(Program::start_at(program, args, &[], &log)?)));
    match kind {
        Kind::Ours => {
            let text = format!(
                "state_dir = \"{here}/state\"\nbridge = \"{child_text}\"\n\
                 [dispatch]\nlisten = \"127.0.0.1:0\"\n\
                 # As the others: who has lived for a second has not crashed at once.\n\
                 [restart]\nintensity = 1000\nforgive_after_s = 1\n\
                 [[phones]]\nnumber = \"+12025550190\"\nchat_db = \"{here}/chat.db\"\n\
                 [phones.bridge]\nstamps = \"{}\"\n",
                stamps.display()
            );
            write(&config, &text)?;
            run(&["run", "--config", &config_text])
        }
        Kind::Supervisord => {
            let text = format!(
                "[supervisord]\nnodaemon = true\nlogfile = {here}/supervisord.log\n\
                 pidfile = {here}/supervisord.pid\nchildlogdir = {here}\n\
                 [program:child]\ncommand = {child_text}\ndirectory = {here}\nautorestart = true\n"
            );
            write(&config, &text)?;
            run(&["-n", "-c", &config_text])
        }
        Kind::Runit | Kind::S6 => {
            std::os::unix::fs::symlink(&child, dir.join("run")).context("run")?;
            run(&[&here])
        }
        Kind::Monit => {
            let text = format!(
                "set daemon 1\nset log {here}/monit.log\nset pidfile {here}/monit.pid\n\
                 set idfile {here}/monit.id\nset statefile {here}/monit.state\n\
                 check process child with pidfile {here}/pid\n  \
                 start program = \"/bin/sh -c 'cd {here} && {{ {child_text} >>out 2>&1 & echo $! >pid; }}'\"\n"
            );
            write(&config, &text)?;
            std::fs::set_permissions(&config, Permissions::from_mode(0o600)).context("config")?;
            run(&["-I", "-c", &config_text])
        }
        Kind::Pm2 => {
            let home = format!("{here}/pm2");
            let args =
                ["start", &child_text, "--name", "child", "--interpreter", "none", "--cwd", &here];
            let keeps = Keeps::Pm2 { program: program.to_owned(), home: home.clone() };
            pm2(program, &home, &args)?;
            Ok(keeps)
        }
    }
}

fn pm2(program: &Path, home: &str, args: &[&str]) -> Result<()> {
    let path = std::env::var("PATH").context("PATH")?;
    let env = [("PATH", path.as_str()), ("PM2_HOME", home), ("HOME", home)];
    let ended = program::foreign(program, args, &env)?;
    ensure!(ended.code == Some(0), "pm2: {}{}", ended.out, ended.err);
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| path.display().to_string())
}
