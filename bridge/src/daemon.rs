//! The event loop: inputs → pure steps → changes, committed by one fsync → effects, performed.
//!
//! One task owns everything: journal, chat.db, the cores. Its inputs are a closed list; lines of
//! the supervisor, file events, the end of an osascript and the clock all arrive as [`Input`].
//! The loop runs on the main thread and may block there for a short read or an fsync; what must
//! not wait (the pipes, the child, signals) runs on threads and workers of its own.
//!
//! Here is the loop and what it owns. What comes in is in `commands`, what has happened to chat.db in
//! `news`, what is to be done in `effects`, the osascript that does it in `child`, its files in `files`,
//! what is said in `says`, the pipe itself in `lines`, and the look at the Mac in `look`.

mod child;
mod commands;
mod effects;
mod files;
mod lines;
mod lock;
mod look;
mod news;
mod says;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use protocol::pipe::{AccountState, Attempt, Heartbeat, Hello, Up};
use protocol::{PROTOCOL, WireError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::checks::messages::Remembered;
use crate::clock::Now;
use crate::config::Config;
use crate::evidence::{Database, Evidence};
use crate::exit::Exit;
use crate::health::Health;
use crate::journal::{Journal, JournalError};
use crate::osascript::{Disposition, Osascript, Prepared};
use crate::outbound::{Event, Outbound, Policy, Turn};
use crate::window::Window;
use child::{Child, Ending, Job};
use files::Fetched;
pub(crate) use lock::Lock;

/// Inputs taken in one turn, and so under one fsync.
const INPUTS_A_TURN: usize = 128;
/// Lines waiting to be taken, or to be written: more than a window of events and its signals.
const LINES_QUEUED_MAX: usize = 512;
/// The regular look at everything that depends on time.
const TICK: Duration = Duration::from_millis(250);
/// The same while there is nothing to do: what happens wakes the loop by itself, and each turn costs.
const QUIET_TICK: Duration = Duration::from_secs(1);
/// The same while chat.db holds more than one turn takes. What else there is gets its share between.
const BEHIND_TICK: Duration = Duration::from_millis(50);
/// The sign of life.
const HEARTBEAT_MS: i64 = 5_000;
/// Disks, clock and the newest rows of chat.db are looked at this often: a disk does not fill in less
/// than that, and the look costs some milliseconds.
const MACHINE_MS: i64 = 60_000;
/// Finished sends and old claims are swept this often.
const PRUNE_MS: i64 = 60 * 60 * 1000;
/// What is said last still has this long to get into the pipe.
const FLUSH: Duration = Duration::from_millis(500);
/// Guids of inbound messages remembered over a restart.
const HEARD_MAX: usize = crate::inbound::KNOWN_MAX;

/// Everything that can happen to a bridge.
#[derive(Debug)]
pub(crate) enum Input {
    /// A line from the supervisor.
    Line(String),
    /// One that could not be taken whole.
    BadLine(WireError),
    /// The supervisor is gone.
    Eof,
    /// A signal asks to end.
    Terminate,
    DatabaseChanged,
    /// The osascript that was given a script, or none, has ended.
    Ended(u64, Disposition),
    /// The files of a send are here, or cannot be had.
    Fetched(Fetched),
    Tick,
}

/// Why a bridge could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another bridge of this phone runs.
    #[error("{} is held by another bridge of this phone", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The state folder cannot be used.
    #[error("{}: cannot be used as state_dir", path.display())]
    StateDir {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The journal does not belong to this phone or this version.
    #[error("the journal cannot be taken")]
    ForeignJournal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The journal cannot be read or written: what cannot be written down must not be done.
    #[error("the journal cannot be read or written")]
    Journal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system refuses a thread or a signal handler.
    #[error("the system refuses a thread or a signal handler")]
    System(#[source] std::io::Error),
}

impl DaemonError {
    /// The exit code that tells the supervisor what to do.
    pub const fn exit(&self) -> Exit {
        match self {
            Self::ForeignJournal(_) => Exit::BadConfig,
            Self::Locked { .. } | Self::StateDir { .. } | Self::Journal(_) | Self::System(_) => {
                Exit::TryAgain
            }
        }
    }
}

impl From<JournalError> for DaemonError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Foreign { .. } => Self::ForeignJournal(Box::new(error)),
            JournalError::Sqlite { .. } | JournalError::Create { .. } => {
                Self::Journal(Box::new(error))
            }
        }
    }
}

/// Runs the bridge of one phone over this process's stdin and stdout until it is asked to end.
pub async fn run(config: Config) -> Result<Exit, DaemonError> {
    let lock = Lock::wait_for(&config.state_dir, crate::clock::now().wall).await?;
    let now = crate::clock::now();
    let id = format!("jrn_{}", uuid::Uuid::from_bytes(random()?).simple());
    let journal = Journal::open(&config.state_dir.join("journal.db"), &config.phone, &id, now)?;
    let meta = journal.meta()?;
    let heard = journal.heard(HEARD_MAX)?;
    let evidence = Database::new(config.chat_db.clone(), meta.cursor.as_deref(), heard);

    let (input, inputs) = mpsc::channel(LINES_QUEUED_MAX);
    lines::read_stdin(input).map_err(DaemonError::System)?;
    let (lines, writer) = lines::write_stdout(LINES_QUEUED_MAX).map_err(DaemonError::System)?;
    let ports = Ports { inputs, lines };
    let exit = Daemon::new(config, journal, evidence, ports, crate::clock::now)?.run().await;
    writer.finish(FLUSH).await;
    drop(lock);
    exit
}

fn random() -> Result<[u8; 16], DaemonError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| DaemonError::System(error.into()))?;
    Ok(bytes)
}

/// The ends of the loop.
#[derive(Debug)]
pub(crate) struct Ports {
    /// Lines of the supervisor, its end, and signals to end.
    pub(crate) inputs: mpsc::Receiver<Input>,
    /// Lines to the supervisor.
    pub(crate) lines: mpsc::Sender<String>,
}

/// The loop and all it owns.
#[derive(Debug)]
pub(crate) struct Daemon<E> {
    config: Config,
    journal: Journal,
    evidence: E,
    outbound: Outbound,
    health: Health,
    window: Window,
    osascript: Osascript,
    ports: Ports,
    /// Hints that chat.db has changed; none while it is polled.
    hints: Option<mpsc::Receiver<()>>,
    /// The phone goes to another host, which waits to hear that nothing is being handed over here.
    releasing: Option<u64>,
    clock: fn() -> Now,
    tracker: TaskTracker,
    ended: (mpsc::Sender<Ending>, mpsc::Receiver<Ending>),
    /// Fetches under way, each with what ends it.
    fetches: HashMap<Attempt, CancellationToken>,
    fetched: (mpsc::Sender<Fetched>, mpsc::Receiver<Fetched>),
    /// Children so far.
    children: u64,
    /// A child that waits for its script, and what it will send.
    waiting: Option<(Prepared, Job)>,
    child: Option<Child>,
    /// What the sends were last told about the health.
    usable: bool,
    account: Option<String>,
    heartbeat: Heartbeat,
    heartbeat_at_ms: i64,
    prune_at_ms: i64,
    machine_at_ms: i64,
    machine_logged: look::Logged,
    database_at_ms: i64,
    database_ready: bool,
    /// The time to the next tick as far as chat.db is concerned.
    database_tick: Duration,
    /// The rows of our sends have not been found again since chat.db has other numbers.
    renumbered: bool,
}

impl<E: Evidence> Daemon<E> {
    pub(crate) fn new(
        config: Config,
        journal: Journal,
        evidence: E,
        ports: Ports,
        clock: fn() -> Now,
    ) -> Result<Self, DaemonError> {
        let now = clock();
        let meta = journal.meta()?;
        let sends = (journal.live_sends()?, journal.claims()?);
        let outbound =
            Outbound::restore(Policy::of(&config), meta.max_epoch, meta.acked_seq, sends, now);
        let probe_ms = i64::try_from(config.probe_interval.as_millis()).unwrap_or(i64::MAX);
        let osascript =
            Osascript::new(config.osascript.clone(), &config.state_dir, config.osascript_deadline);
        let mut health = Health::new(probe_ms, now.continuous_ms);
        let kept = meta.account.as_deref().and_then(Remembered::of_text);
        if kept.is_some_and(|kept| kept.state == AccountState::Blocked) {
            health.block(true, now.continuous_ms);
        }
        Ok(Self {
            outbound,
            health,
            window: Window::new(meta.last_seq, meta.acked_seq, now.continuous_ms),
            osascript,
            ports,
            hints: None,
            clock,
            tracker: TaskTracker::new(),
            ended: mpsc::channel(4),
            fetches: HashMap::new(),
            fetched: mpsc::channel(4),
            children: 0,
            waiting: None,
            releasing: None,
            child: None,
            usable: false,
            account: meta.account,
            heartbeat: Heartbeat::default(),
            heartbeat_at_ms: now.continuous_ms.saturating_add(HEARTBEAT_MS),
            prune_at_ms: now.continuous_ms,
            machine_at_ms: now.continuous_ms,
            machine_logged: look::Logged::new(),
            database_at_ms: now.continuous_ms,
            database_ready: false,
            database_tick: TICK,
            renumbered: false,
            config,
            journal,
            evidence,
        })
    }

    /// Runs until it is asked to end, or must.
    pub(crate) async fn run(mut self) -> Result<Exit, DaemonError> {
        self.say(&Up::Hello(Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phone: self.config.phone.clone(),
            journal: self.journal.id().to_owned(),
            last_seq: self.window.last(),
            acked_seq: self.window.acked(),
            pid: std::process::id(),
        }));
        // The first tick comes at once: what arrives from here on is news.
        let mut ticked = None;
        let exit = loop {
            let first = self.next(ticked).await;
            if matches!(first, Input::Tick) {
                ticked = Some(tokio::time::Instant::now());
            }
            let mut inputs = vec![first];
            while inputs.len() < INPUTS_A_TURN
                && let Ok(input) = self.ports.inputs.try_recv()
            {
                inputs.push(input);
            }
            self.turn(inputs)?;
            if self.outbound.is_done() && self.child.is_none() {
                break Exit::Asked;
            }
            if self.health.is_forbidden() && self.child.is_none() {
                tracing::error!("Messages may not be controlled: ending until that is granted");
                break Exit::NoPermission;
            }
        };
        if let Some(child) = &self.child {
            child.kill.cancel();
        }
        for fetch in self.fetches.values() {
            fetch.cancel();
        }
        self.tracker.close();
        self.tracker.wait().await;
        Ok(exit)
    }

    /// The time from one tick to the next.
    fn tick_every(&self) -> Duration {
        let is_quiet = self.outbound.is_empty() && self.child.is_none() && self.waiting.is_none();
        if is_quiet { self.database_tick } else { self.database_tick.min(TICK) }
    }

    async fn next(&mut self, ticked: Option<tokio::time::Instant>) -> Input {
        let now = tokio::time::Instant::now();
        let tick = ticked.and_then(|ticked| ticked.checked_add(self.tick_every())).unwrap_or(now);
        let pace = self.outbound.due_in_ms((self.clock)());
        let pace = pace.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let tick = pace.and_then(|pace| now.checked_add(pace)).map_or(tick, |pace| pace.min(tick));
        let hints = &mut self.hints;
        let hinted = async {
            match hints {
                Some(hints) => hints.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((child, disposition)) = self.ended.1.recv() => Input::Ended(child, disposition),
            Some(fetched) = self.fetched.1.recv() => Input::Fetched(fetched),
            input = self.ports.inputs.recv(), if !self.ports.inputs.is_closed() || !self.ports.inputs.is_empty() => {
                input.unwrap_or(Input::Eof)
            }
            hint = hinted => {
                if hint.is_none() {
                    tracing::error!("the watch on chat.db has ended: it is polled");
                    self.hints = None;
                }
                Input::DatabaseChanged
            }
            () = tokio::time::sleep_until(tick) => Input::Tick,
        }
    }

    /// One turn: every input is stepped, one transaction holds what came of it, then it is done.
    fn turn(&mut self, inputs: Vec<Input>) -> Result<(), DaemonError> {
        let now = (self.clock)();
        self.heartbeat.turns = self.heartbeat.turns.saturating_add(1);
        let mut turn = Turn::new(self.window.last());
        if now.continuous_ms >= self.machine_at_ms {
            self.machine_at_ms = now.continuous_ms.saturating_add(MACHINE_MS);
            self.look_at_machine(now);
        }
        for input in inputs {
            self.input(input, now, &mut turn)?;
        }
        self.carry_out(turn)?;
        self.emit()?;
        self.released();
        if let Some(news) = self.health.news()
            && !self.say(&news)
        {
            // It did not get through; it is said again when the listener reads.
            self.health.forget_said();
        }
        if now.continuous_ms >= self.heartbeat_at_ms {
            self.heartbeat_at_ms = now.continuous_ms.saturating_add(HEARTBEAT_MS);
            self.beat(now);
        }
        if now.continuous_ms >= self.prune_at_ms {
            self.prune_at_ms = now.continuous_ms.saturating_add(PRUNE_MS);
            let cursor = self.journal.meta()?.cursor;
            let needed = cursor.as_deref().and_then(crate::reading::needed_since);
            self.journal.prune(needed, now)?;
            self.sweep_staged(now);
        }
        Ok(())
    }

    /// Says that the phone is given up, once no script runs. Whoever asked asks again until it is heard.
    fn released(&mut self) {
        let script = self.child.as_ref().is_some_and(|child| child.job.is_send());
        if let Some(epoch) = self.releasing
            && self.outbound.hands_nothing()
            && !script
            && self.waiting.is_none()
            && self.say(&Up::Released { epoch })
        {
            tracing::info!(epoch, "the phone is released for another host");
            self.releasing = None;
        }
    }

    /// Commits, performs, and goes on with what the effects have led to, until nothing is left.
    fn carry_out(&mut self, mut turn: Turn) -> Result<(), DaemonError> {
        loop {
            let now = (self.clock)();
            let usable = self.health.is_usable();
            if usable != self.usable {
                self.usable = usable;
                self.outbound.step(Event::Usable(usable), now, &mut turn);
            }
            if self.child.is_none()
                && self.waiting.is_none()
                && self.outbound.is_idle()
                && self.health.probe_due(now.continuous_ms)
            {
                self.probe(now, &mut turn);
            }
            self.journal.commit(&turn.changes, now)?;
            self.outbound.committed();
            self.window.grown(turn.last_seq);
            if turn.effects.is_empty() {
                return Ok(());
            }
            let mut next = Turn::new(turn.last_seq);
            for effect in turn.effects {
                self.perform(effect, &mut next);
            }
            turn = next;
        }
    }

    // ---- osascript --------------------------------------------------------------------------

    // ---- lines ------------------------------------------------------------------------------
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
