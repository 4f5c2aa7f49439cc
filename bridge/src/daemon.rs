//! The event loop: inputs → pure steps → changes, committed by one fsync → effects, performed.
//!
//! One task owns everything: journal, chat.db, the cores. Its inputs are a closed list; lines of
//! the supervisor, file events, the end of an osascript and the clock all arrive as [`Input`].
//! The loop runs on the main thread and may block there for a short read or an fsync; what must
//! not wait (the pipes, the child, signals) runs on threads and workers of its own.

mod files;
mod lines;
mod lock;
mod look;
mod news;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use protocol::pipe::{
    AccountState, Attempt, Capability, ChannelCapability, Command, Event as Fact, Heartbeat, Hello,
    NotReady, Seek, Up, parse_command,
};
use protocol::{PROTOCOL, Reason, Recipient, WireError};
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
use crate::osascript::{
    Disposition, Failure, Osascript, PROBE, PrepareError, Prepared, SEND, is_about_messages,
};
use crate::outbound::{Change, Content, Dated, Effect, Event, NotPrepared, Outbound, Policy, Turn};
use crate::window::Window;
use files::Fetched;
pub(crate) use lock::Lock;

/// Inputs taken in one turn, and so under one fsync.
const INPUTS_A_TURN: usize = 128;
/// Lines waiting to be taken, or to be written: more than a window of events and its signals.
const LINES_QUEUED_MAX: usize = 512;
/// Events read from the journal at a time.
const EVENTS_A_READ: usize = 64;
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
/// Our supervisor is gone: of the 5 s until our end, three are kept for killing a running osascript
/// that resists (a tick, TERM and its grace, KILL, its group, its pipe), and for the last lines.
const ORPHANED_DEADLINE_MS: i64 = 2_000;
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
    let lock = Lock::wait_for(&config.state_dir).await?;
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

/// What the one child is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Text,
    File,
    Probe,
}

impl Job {
    const fn is_send(self) -> bool {
        match self {
            Self::Text | Self::File => true,
            Self::Probe => false,
        }
    }
}

/// The child that runs.
#[derive(Debug)]
struct Child {
    /// Tells its end from that of an earlier one, which may be heard of late.
    id: u64,
    job: Job,
    since_ms: i64,
    kill: CancellationToken,
}

/// Which child has ended, and what that says.
type Ending = (u64, Disposition);

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

    // ---- inputs -----------------------------------------------------------------------------

    fn input(&mut self, input: Input, now: Now, turn: &mut Turn) -> Result<(), DaemonError> {
        match input {
            Input::Line(line) => match parse_command(&line) {
                Ok(command) => self.command(command, now, turn)?,
                Err(error) => self.refuse(&error),
            },
            Input::BadLine(error) => self.refuse(&error),
            Input::Eof => {
                tracing::info!("the supervisor is gone: ending");
                self.stop(now, turn);
            }
            Input::Terminate => {
                tracing::info!("asked to end by a signal");
                self.stop(now, turn);
            }
            Input::DatabaseChanged => {
                self.heartbeat.last_change = Some(now.wall);
                self.read_database(now, turn)?;
            }
            Input::Fetched(fetched) => self.fetched(fetched, now, turn),
            Input::Ended(child, disposition) => self.child_ended(child, disposition, now, turn),
            Input::Tick => {
                self.health.tick(now.continuous_ms);
                self.window.tick(now.continuous_ms);
                if now.continuous_ms >= self.database_at_ms {
                    self.read_database(now, turn)?;
                }
                self.outbound.step(Event::Tick, now, turn);
            }
        }
        Ok(())
    }

    fn stop(&mut self, now: Now, turn: &mut Turn) {
        self.outbound.step(Event::Stop { deadline_ms: ORPHANED_DEADLINE_MS }, now, turn);
    }

    fn refuse(&mut self, error: &WireError) {
        self.heartbeat.refused_lines = self.heartbeat.refused_lines.saturating_add(1);
        // The label and the field, never the content.
        tracing::warn!(what = error.label(), "a line of the supervisor was refused");
    }

    fn command(&mut self, command: Command, now: Now, turn: &mut Turn) -> Result<(), DaemonError> {
        let event = match command {
            Command::Send(send) => {
                let attempt = Attempt { message: send.message.clone(), attempt: send.attempt };
                let known = self.known(&attempt)?;
                Event::Send { send: Box::new(send), known }
            }
            Command::Cancel { message, attempt } => {
                let attempt = Attempt { message, attempt };
                let known = self.known(&attempt)?;
                Event::Cancel { attempt, known }
            }
            Command::Seek(seek) => {
                let mut known = Vec::new();
                for attempt in &seek.attempts {
                    known.extend(self.known(attempt)?.map(|told| (attempt.clone(), told)));
                }
                Event::Seek { seek: Box::new(seek), known }
            }
            Command::Lease { epoch, ttl_ms, issued_ms } => {
                Event::Lease { epoch, ttl_ms, issued_ms }
            }
            Command::Revoke { epoch } => Event::Revoke { epoch },
            Command::Release { epoch } => {
                self.releasing = Some(epoch);
                Event::Release { epoch }
            }
            Command::Ack { journal, seq } => {
                if journal != self.journal.id() || !self.window.ack(seq, now.continuous_ms) {
                    return Ok(());
                }
                turn.changes.push(Change::Acked(seq));
                Event::Acked { seq }
            }
            Command::Replay => {
                self.window.replay(now.continuous_ms);
                self.health.forget_said();
                return Ok(());
            }
            Command::Capability { to } => {
                let channels = self.capabilities(&to);
                let known = Capability { to, channels };
                turn.tell(Fact::Capability(known), now, self.outbound.max_epoch());
                return Ok(());
            }
            Command::Pause { for_ms, end_after_ms } => {
                self.pause(for_ms, end_after_ms, now, turn);
                return Ok(());
            }
            Command::Block { blocked } => {
                self.block(blocked, now, turn);
                return Ok(());
            }
            Command::Drain { deadline_ms } => Event::Drain { deadline_ms: bounded(deadline_ms) },
            Command::Stop { deadline_ms } => Event::Stop { deadline_ms: bounded(deadline_ms) },
        };
        self.outbound.step(event, now, turn);
        Ok(())
    }

    /// Recorded in the turn in which it was said, before anything of that turn can start.
    fn block(&mut self, blocked: bool, now: Now, turn: &mut Turn) {
        if blocked == self.health.is_blocked() {
            return;
        }
        self.health.block(blocked, now.continuous_ms);
        self.hold(now, turn);
        if blocked {
            tracing::error!("the account is blocked, by the word of an operator: nothing is sent");
            let detail = "by the word of an operator".to_owned();
            self.tell_account(AccountState::Blocked, detail, now, turn);
        } else {
            tracing::warn!("the account is not blocked any more, by the word of an operator");
            // The next answer is news, and what is kept until then is no block.
            self.account = None;
            turn.changes.push(Change::Account(String::new()));
        }
    }

    /// From here on nothing starts, also not by what else comes in this very turn.
    fn hold(&mut self, now: Now, turn: &mut Turn) {
        self.usable = false;
        self.outbound.step(Event::Usable(false), now, turn);
    }

    fn tell_account(&mut self, state: AccountState, detail: String, now: Now, turn: &mut Turn) {
        let account = Remembered { state, detail: detail.clone() }.to_text();
        self.account = Some(account.clone());
        turn.changes.push(Change::Account(account));
        turn.tell(Fact::Account { state, detail }, now, self.outbound.max_epoch());
    }

    /// Nothing talks to Messages while it is restarted. A question that is on its way is ended, for nobody
    /// waits for its answer; a text when it has had its time, and is settled as at its own deadline. A file
    /// has that alone: how long Messages reads one is not known.
    fn pause(&mut self, for_ms: u64, end_after_ms: Option<u64>, now: Now, turn: &mut Turn) {
        let was = self.health.is_paused();
        self.health.pause(for_ms, now.continuous_ms);
        if self.health.is_paused() {
            self.hold(now, turn);
        }
        if let Some(child) = self.child.as_ref().filter(|_| self.health.is_paused()) {
            let ran_ms = now.continuous_ms.saturating_sub(child.since_ms);
            let is_late = || end_after_ms.is_some_and(|after_ms| ran_ms >= bounded(after_ms));
            let ends = match child.job {
                Job::Probe => true,
                Job::Text => is_late(),
                Job::File => false,
            };
            if ends {
                child.kill.cancel();
            }
        }
        if was != self.health.is_paused() {
            tracing::info!(paused = !was, "Messages is restarted by its keeper, or that is over");
        }
        // Whoever asked waits to hear that nothing runs.
        self.heartbeat_at_ms = now.continuous_ms;
    }

    /// What is known of the channels of an address: nothing of groups and services, nor while chat.db cannot
    /// be read.
    fn capabilities(&mut self, to: &Recipient) -> Vec<ChannelCapability> {
        match to {
            Recipient::Number(_) | Recipient::Email(_) => {}
            Recipient::Group(_) | Recipient::Service(_) => return Vec::new(),
        }
        match self.evidence.contacts(to.address()) {
            Ok(contacts) => {
                crate::capability::known(&contacts, |guid| self.outbound.has_claimed(guid))
            }
            Err(why) => {
                self.saw_database(Err(why));
                Vec::new()
            }
        }
    }

    fn known(&self, attempt: &Attempt) -> Result<Option<crate::outbound::Told>, DaemonError> {
        if self.outbound.knows(attempt) { Ok(None) } else { Ok(self.journal.told(attempt)?) }
    }

    // ---- osascript --------------------------------------------------------------------------

    fn probe(&mut self, now: Now, turn: &mut Turn) {
        self.health.probing(now.continuous_ms);
        let disposition = match self.osascript.prepare(&[]) {
            Ok(prepared) => {
                self.outbound.step(Event::Probing, now, turn);
                self.hand(prepared, PROBE, Job::Probe, now);
                return;
            }
            Err(PrepareError::Orphan) => {
                // Whoever waits for its end also says when it has come.
                self.health.orphan(true);
                self.outbound.step(Event::OrphanMet, now, turn);
                return;
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "osascript cannot be started");
                Disposition::NotStarted(cannot_start(&error))
            }
        };
        self.probed(&disposition, now, turn);
    }

    fn probed(&mut self, disposition: &Disposition, now: Now, turn: &mut Turn) {
        let news = self.health.probed(disposition, now.continuous_ms);
        let account = Remembered { state: news.state, detail: news.detail.clone() }.to_text();
        // A blocked account may well be connected.
        if self.account.as_ref() == Some(&account) || self.health.is_blocked() {
            return;
        }
        match news.state {
            AccountState::Ready => tracing::info!("the account is connected"),
            AccountState::Degraded
            | AccountState::SignedOut
            | AccountState::Blocked
            | AccountState::NoPermission => {
                tracing::warn!(state = ?news.state, detail = news.detail, "the account cannot send");
            }
        }
        self.tell_account(news.state, news.detail, now, turn);
    }

    /// Gives a child its script and waits for its end elsewhere; false when it took nothing.
    fn hand(&mut self, prepared: Prepared, script: &'static str, job: Job, now: Now) -> bool {
        let (running, handed) = match prepared.hand_over(script) {
            Ok(running) => (running, true),
            Err(failed) => {
                let (running, error) = *failed;
                tracing::warn!(%error, "osascript ended before it took its script");
                (running, false)
            }
        };
        self.wait_for(running, job, now);
        handed
    }

    fn wait_for(&mut self, running: crate::osascript::Running, job: Job, now: Now) {
        let kill = CancellationToken::new();
        self.children = self.children.saturating_add(1);
        let id = self.children;
        let ended = self.ended.0.clone();
        let finish = running.finish(kill.clone());
        self.tracker.spawn(async move {
            // The loop may have ended by itself; then nobody asks any more.
            if ended.send((id, finish.await)).await.is_err() {
                tracing::debug!("an osascript ended after the loop");
            }
        });
        self.child = Some(Child { id, job, since_ms: now.continuous_ms, kill });
    }

    fn child_ended(&mut self, id: u64, disposition: Disposition, now: Now, turn: &mut Turn) {
        let Some(child) = self.child.take_if(|child| child.id == id) else { return };
        if self.health.is_paused() {
            self.heartbeat_at_ms = now.continuous_ms;
        }
        match child.job {
            Job::Probe => {
                if !child.kill.is_cancelled() {
                    self.probed(&disposition, now, turn);
                }
                self.outbound.step(Event::ProbeEnded, now, turn);
            }
            Job::Text | Job::File => {
                let suspicious = match &disposition {
                    Disposition::Succeeded { .. } => None,
                    Disposition::NotStarted(failure) | Disposition::MayHaveCompleted(failure) => {
                        Some(failure)
                    }
                };
                if let Some(failure) = suspicious {
                    tracing::warn!(reason = %failure.reason, detail = failure.detail, "osascript");
                    if is_about_messages(failure.reason) {
                        // Only an answer can say whether it was this send or Messages itself.
                        self.health.suspect(now.continuous_ms);
                        self.usable = false;
                        self.outbound.step(Event::Usable(false), now, turn);
                    }
                }
                self.outbound.step(Event::Ended { disposition }, now, turn);
            }
        }
    }

    // ---- effects ----------------------------------------------------------------------------

    fn perform(&mut self, effect: Effect, turn: &mut Turn) {
        let now = (self.clock)();
        match effect {
            Effect::Fetch { attempt, files } => self.fetch(attempt, files),
            Effect::StopFetch { attempt } => self.stop_fetch(&attempt),
            Effect::Prepare { attempt, to, channel, content } => {
                let event = match self.prepare(&to, channel, &content, now) {
                    Ok(mark) => Event::Prepared { attempt, mark },
                    Err(why) => Event::NotPrepared { attempt, why },
                };
                self.outbound.step(event, now, turn);
            }
            Effect::Confirm { attempt } => {
                let before = turn.effects.len();
                self.outbound.step(Event::Recorded { attempt }, now, turn);
                // What follows from this goes before everything else that waits: between the
                // gate's answer and the write of the script there is nothing.
                for effect in turn.effects.split_off(before) {
                    self.perform(effect, turn);
                }
            }
            Effect::HandOver { attempt } => {
                let handed = match self.waiting.take() {
                    Some((prepared, job)) => self.hand(prepared, SEND, job, now),
                    None => false,
                };
                let event = if handed {
                    Event::HandedOver { attempt }
                } else {
                    Event::NotHandedOver { attempt }
                };
                self.outbound.step(event, now, turn);
            }
            Effect::Abandon => {
                if let Some((prepared, job)) = self.waiting.take() {
                    let running = prepared.abandon();
                    self.wait_for(running, job, now);
                }
            }
            Effect::KillOsascript => {
                if let Some(child) = &self.child {
                    child.kill.cancel();
                }
            }
            Effect::Find { attempt, mark, since, to, content } => {
                if self.database_ready {
                    match self.evidence.rows(mark, since, &to, &content) {
                        Ok(rows) => self.outbound.step(Event::Rows { attempt, rows }, now, turn),
                        Err(why) => self.saw_database(Err(why)),
                    }
                }
            }
            Effect::ReadStates { rowids } => {
                if self.database_ready {
                    match self.evidence.states(&rowids) {
                        Ok(states) => self.outbound.step(Event::States(states), now, turn),
                        Err(why) => self.saw_database(Err(why)),
                    }
                }
            }
            Effect::Seek(seek) => match self.sought(&seek) {
                Ok(Some((rows, missing))) => {
                    self.outbound.step(Event::Sought { seek, rows, missing }, now, turn);
                }
                Ok(None) => tracing::info!("what another bridge had in hand cannot be looked for"),
                Err(why) => self.saw_database(Err(why)),
            },
            Effect::CheckOrphan => match self.osascript.orphan_runs() {
                Ok(runs) => {
                    self.health.orphan(runs);
                    if !runs {
                        self.outbound.step(Event::OrphanGone, now, turn);
                    }
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "osascript's lock cannot be looked at");
                }
            },
            Effect::EndOrphan { force } => {
                if let Err(error) = self.osascript.end_orphan(force) {
                    tracing::error!(error = chain(&error), "an earlier osascript cannot be ended");
                }
            }
        }
    }

    /// The rows that a lost bridge's sends may have, and how many of those that are known to have been sent have none.
    fn sought(&mut self, seek: &Seek) -> Result<Option<(Vec<Dated>, usize)>, NotReady> {
        let between = (seek.since, seek.until);
        let Some(rows) = self.evidence.dated(between, &seek.to, &seek.text)? else {
            return Ok(None);
        };
        let elsewhere: Vec<String> = seek
            .known
            .iter()
            .filter(|guid| !self.outbound.has_claimed(guid))
            .filter(|guid| !rows.iter().any(|dated| dated.row.guid == **guid))
            .cloned()
            .collect();
        // A row of another time is accounted for as well.
        let there = if elsewhere.is_empty() { 0 } else { self.evidence.numbers(&elsewhere)?.len() };
        Ok(Some((rows, elsewhere.len().saturating_sub(there))))
    }

    /// Starts a child that waits for its script, then reads the newest row: whatever this send
    /// writes lies above it.
    fn prepare(
        &mut self,
        to: &Recipient,
        channel: protocol::Channel,
        content: &Content,
        now: Now,
    ) -> Result<i64, NotPrepared> {
        let guid = match (to, self.evidence.chat_guid(to, channel)) {
            // Its own guid, whatever its prefix: turned into another, it would lead nowhere (imsg#90).
            (_, Ok(Some(guid))) => guid,
            (Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_), Ok(None)) => {
                String::new()
            }
            (Recipient::Group(_), Ok(None)) => {
                return Err(NotPrepared::Failed(Failure {
                    reason: Reason::NotResolved,
                    detail: "chat.db has no such group".to_owned(),
                    retryable: false,
                }));
            }
            (_, Err(why)) => {
                self.saw_database(Err(why));
                return Err(self.held());
            }
        };
        let address = match to {
            Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_) => to.address(),
            // A group's id as an address would make a new chat of that name (imsg#16).
            Recipient::Group(_) => "",
        };
        let (kind, value, job) = match content {
            Content::Text(text) => ("text", text.as_str(), Job::Text),
            // Names are made of what URLs and commands hold, which is Unicode.
            Content::File(path) => ("file", path.to_str().unwrap_or_default(), Job::File),
        };
        let args = [channel.service(), address, guid.as_str(), kind, value];
        let prepared = match self.osascript.prepare(&args) {
            Ok(prepared) => prepared,
            Err(PrepareError::Orphan) => {
                self.health.orphan(true);
                return Err(NotPrepared::Orphan);
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "osascript cannot be started");
                self.health.suspect(now.continuous_ms);
                return Err(self.held());
            }
        };
        match self.evidence.mark() {
            Ok(mark) => {
                self.waiting = Some((prepared, job));
                Ok(mark)
            }
            Err(why) => {
                let running = prepared.abandon();
                self.wait_for(running, job, now);
                self.saw_database(Err(why));
                Err(self.held())
            }
        }
    }

    fn held(&mut self) -> NotPrepared {
        self.usable = false;
        NotPrepared::Held
    }

    // ---- lines ------------------------------------------------------------------------------

    /// Says the events that are due. A listener that does not read is not waited for: they are in
    /// the journal.
    fn emit(&mut self) -> Result<(), DaemonError> {
        while let Some((from, count)) = self.window.due() {
            let events = self.journal.events(from, count.min(EVENTS_A_READ))?;
            if events.first().is_none_or(|event| event.seq != from) {
                // Cannot be: the journal keeps what is not acknowledged.
                tracing::error!(from, "an event is missing in the journal");
                return Ok(());
            }
            for event in events {
                let seq = event.seq;
                if !self.say(&Up::Event(event)) {
                    return Ok(());
                }
                self.window.said(seq, (self.clock)().continuous_ms);
            }
        }
        Ok(())
    }

    /// False when the listener does not read.
    fn say(&self, up: &Up) -> bool {
        let line = match serde_json::to_string(up) {
            Ok(line) => line,
            Err(error) => {
                tracing::error!(%error, "a line cannot be written as JSON");
                return false;
            }
        };
        match self.ports.lines.try_send(line) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    fn beat(&mut self, now: Now) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.heartbeat.osascript_age_ms = self.child.as_ref().map(|child| {
            u64::try_from(now.continuous_ms.saturating_sub(child.since_ms)).unwrap_or(0)
        });
        // An osascript of an earlier life may be sending; only its lock tells. Ours holds the same one.
        self.heartbeat.paused = self.health.is_paused()
            && (self.child.is_some() || matches!(self.osascript.orphan_runs(), Ok(false)));
        self.heartbeat.queued = count(self.outbound.queued());
        self.heartbeat.in_flight = count(self.outbound.in_flight());
        self.heartbeat.unacked = self.window.unacked();
        let longest = self.evidence.longest_read_us();
        self.heartbeat.longest_read_us = self.heartbeat.longest_read_us.max(longest);
        self.say(&Up::Heartbeat(self.heartbeat.clone()));
    }
}

fn bounded(deadline_ms: u64) -> i64 {
    i64::try_from(deadline_ms).unwrap_or(i64::MAX)
}

fn cannot_start(error: &PrepareError) -> Failure {
    let detail = match error {
        PrepareError::Orphan => "an earlier osascript still runs",
        PrepareError::Spawn { .. } => "osascript cannot be started",
        PrepareError::Stderr { .. } => "state_dir cannot be written",
    };
    Failure { reason: Reason::ScriptFault, detail: detail.to_owned(), retryable: true }
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
