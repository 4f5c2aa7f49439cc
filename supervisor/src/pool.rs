//! One owner task per phone, and the table of their states.
//!
//! The owner holds the child process; everybody else holds a [`Handle`]. What to do is decided by [`crate::phone`]; the
//! owner does it: it starts, writes, signals, and passes on what the bridge says.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use nix::sys::signal::Signal;
use protocol::link::{
    EventFrame, HostPower, LEASE_TTL_MS, PhoneReport, PhoneState, RENEW_EVERY_MS,
};
use protocol::pipe::{Command, EventLine, Up, parse_up};
use protocol::{PhoneId, limits};
use router_client::clock::{ContinuousMs, continuous_now};
use router_client::link::LinkInput;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::child::{self, Child, Happened, NotQueued, Signalled};
use crate::config::PhoneConfig;
use crate::files;
use crate::lines::Line;
use crate::logs::{LogLine, Ring};
use crate::phone::{Effect, Input, Order, Phone, Report, Settings};
use crate::plan::{self, Action};
use crate::power;
use crate::resources::{self, CpuHistory, CpuLimits, MemoryLimits, Use};
use crate::restart::Exit;
use crate::stream::Stream;

/// Things asked of an owner that wait to be done: one burst of commands to a full phone.
const ASKS: usize = 256;
/// How long an event waits for room on its way to the link before it is dropped; the bridge repeats it.
const LINK_WAIT: Duration = Duration::from_millis(250);
/// Refused lines are logged at most so often per phone; all are counted.
const REFUSED_LOG_EVERY: Duration = Duration::from_secs(1);
/// With the other streams gone, lines in a row from one child before its owner lets others run.
const LINES_A_TURN: u32 = 64;

/// What is asked of the owner of a phone.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Start, stop and so on.
    Order(Order),
    /// A line for the bridge.
    Command(Command),
    /// What is the same for all phones has changed.
    Tune(Box<Tuning>),
}

/// Why something was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    /// The owner has too much to do.
    #[error("the phone has too many commands waiting")]
    Busy,
    /// The phone or the whole supervisor is stopping.
    #[error("the phone is being stopped")]
    Gone,
}

/// What everybody but the owner has of a phone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    /// Its id.
    pub(crate) id: PhoneId,
    /// What the operator configured.
    pub(crate) config: Arc<PhoneConfig>,
    /// Boxed, because the queue keeps room for some of them and commands are large.
    asks: mpsc::Sender<Box<Ask>>,
    report: watch::Receiver<Report>,
    lease: watch::Receiver<Option<Lease>>,
    /// Its events.
    pub(crate) stream: Arc<Stream>,
    logs: Arc<Mutex<Ring>>,
    /// Cancelled when this phone is to stop in order.
    end: CancellationToken,
    /// Cancelled when its owner has ended.
    ended: CancellationToken,
}

/// The newest lease of a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Its epoch.
    pub(crate) epoch: u64,
    ttl_ms: u64,
    issued_ms: ContinuousMs,
}

impl Lease {
    /// Whether it still holds, on the continuous clock.
    pub(crate) fn holds(&self, now: ContinuousMs) -> bool {
        now < self.issued_ms.saturating_add(self.ttl_ms)
    }

    fn command(self) -> Command {
        Command::Lease { epoch: self.epoch, ttl_ms: self.ttl_ms, issued_ms: self.issued_ms }
    }
}

impl Handle {
    /// Asks the owner for something, never waiting.
    pub(crate) fn ask(&self, ask: Ask) -> Result<(), NotTaken> {
        self.asks.try_send(Box::new(ask)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => NotTaken::Busy,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Gone,
        })
    }

    /// How the phone stands.
    pub(crate) fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// The lease that it holds now.
    pub(crate) fn lease(&self) -> Option<Lease> {
        self.lease.borrow().filter(|lease| lease.holds(continuous_now()))
    }

    /// The epoch of its newest lease, over or not, unless that was revoked.
    pub(crate) fn newest_epoch(&self) -> Option<u64> {
        self.lease.borrow().map(|lease| lease.epoch)
    }

    /// The bridge's last log lines, of those with a number above `after`.
    pub(crate) fn logs(&self, after: u64) -> Vec<LogLine> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).after(after)
    }
}

/// What is the same for all phones and may change while they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// The bridge program, as of its next start.
    pub(crate) bridge: PathBuf,
    /// Periods and policy.
    pub(crate) settings: Settings,
    /// What a bridge may use.
    pub(crate) memory: MemoryLimits,
    pub(crate) cpu: CpuLimits,
}

/// What every owner needs.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// The supervisor's state folder.
    pub(crate) state_dir: PathBuf,
    /// What may change while the phones run.
    pub(crate) tuning: Tuning,
    /// Where events and states go, when there is a router.
    pub(crate) link: Option<mpsc::Sender<LinkInput>>,
    /// The epoch of leases granted here, when there is none.
    pub(crate) local_epoch: u64,
    /// What the host runs on.
    pub(crate) power: watch::Receiver<Option<HostPower>>,
    /// Cancelled when everything is to stop in order.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when everything is to end at once.
    pub(crate) killing: CancellationToken,
    /// Where tasks run.
    pub(crate) tracker: TaskTracker,
}

/// All phones of this host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    phones: Arc<RwLock<BTreeMap<PhoneId, Handle>>>,
}

/// What a changed configuration has done to the phones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Changes {
    /// They are new.
    pub(crate) started: Vec<PhoneId>,
    /// They are not wanted any more.
    pub(crate) stopped: Vec<PhoneId>,
    /// Their settings are others: their bridges were stopped in order and started anew.
    pub(crate) replaced: Vec<PhoneId>,
    /// How many were not touched.
    pub(crate) untouched: usize,
}

impl Pool {
    /// Starts an owner for each wanted phone.
    pub(crate) fn start(
        wanted: &BTreeMap<PhoneId, PhoneConfig>,
        surroundings: &Surroundings,
    ) -> Self {
        let pool = Self::default();
        for (id, action) in plan::plan(wanted, &BTreeMap::new()) {
            match (action, wanted.get(&id)) {
                (Action::Start, Some(config)) => pool.add(id, config, surroundings),
                // Nothing runs yet, so there is nothing to stop or to replace.
                (Action::Start | Action::Stop | Action::Replace, _) => {}
            }
        }
        pool
    }

    /// Makes the phones that run those that are wanted. What is the same keeps its bridge, its lease and whatever it
    /// is doing. Phones that stop or change finish what is started first, and all of them have ended before any is
    /// started: a chat.db that moves from one phone to another is never read by two bridges.
    pub(crate) async fn reload(
        &self,
        wanted: &BTreeMap<PhoneId, PhoneConfig>,
        surroundings: &Surroundings,
    ) -> Changes {
        let running: BTreeMap<PhoneId, Handle> = self.snapshot();
        let essence = |(id, config): (&PhoneId, &PhoneConfig)| (id.clone(), config.essence());
        let plan = plan::plan(
            &wanted.iter().map(essence).collect(),
            &running.iter().map(|(id, handle)| essence((id, &handle.config))).collect(),
        );
        let ending = plan.iter().filter(|(_, action)| *action != Action::Start);
        let ending: Vec<&Handle> = ending.filter_map(|(id, _)| running.get(id)).collect();
        for handle in &ending {
            handle.end.cancel();
        }
        for handle in &ending {
            handle.ended.cancelled().await;
        }
        let mut changes = Changes::default();
        if surroundings.stopping.is_cancelled() {
            return changes;
        }
        for (id, action) in plan {
            match (action, wanted.get(&id)) {
                (Action::Stop, _) | (Action::Start | Action::Replace, None) => {
                    self.remove(&id, surroundings).await;
                    changes.stopped.push(id);
                }
                (Action::Replace, Some(config)) => {
                    self.add(id.clone(), config, surroundings);
                    changes.replaced.push(id);
                }
                (Action::Start, Some(config)) => {
                    self.add(id.clone(), config, surroundings);
                    changes.started.push(id);
                }
            }
        }
        let touched = [&changes.started, &changes.replaced];
        for handle in
            self.iter().filter(|handle| !touched.iter().any(|ids| ids.contains(&handle.id)))
        {
            changes.untouched += 1;
            self.relabel(&handle.id, wanted);
            // An owner that has ended has nothing to be told.
            let tuned = Ask::Tune(Box::new(surroundings.tuning.clone()));
            drop(handle.asks.send(Box::new(tuned)).await);
        }
        changes
    }

    fn add(&self, id: PhoneId, config: &PhoneConfig, surroundings: &Surroundings) {
        let handle = start_owner(id.clone(), config.clone(), surroundings);
        self.phones.write().unwrap_or_else(PoisonError::into_inner).insert(id, handle);
    }

    async fn remove(&self, id: &PhoneId, surroundings: &Surroundings) {
        self.phones.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(link) = &surroundings.link {
            // Without a link there is nobody left who could announce the phone.
            drop(link.send(LinkInput::Forget(id.clone())).await);
        }
    }

    /// What people call a phone is not worth a new bridge.
    fn relabel(&self, id: &PhoneId, wanted: &BTreeMap<PhoneId, PhoneConfig>) {
        let mut phones = self.phones.write().unwrap_or_else(PoisonError::into_inner);
        if let (Some(handle), Some(config)) = (phones.get_mut(id), wanted.get(id)) {
            handle.config = Arc::new(config.clone());
        }
    }

    fn snapshot(&self) -> BTreeMap<PhoneId, Handle> {
        self.phones.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The phone with this id.
    pub(crate) fn get(&self, id: &PhoneId) -> Option<Handle> {
        self.phones.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Every phone, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Handle> + use<> {
        self.snapshot().into_values()
    }

    /// Takes every lease back until it is granted anew: this machine slept, and others may have gone on meanwhile.
    pub(crate) fn drop_leases(&self) {
        for phone in self.iter() {
            let Some(epoch) = phone.newest_epoch() else { continue };
            if let Err(error) = phone.ask(Ask::Command(Command::Revoke { epoch })) {
                // The continuous clock ends it all the same.
                tracing::warn!(phone = %phone.id, %error, "a lease could not be taken back after a sleep");
            }
        }
    }

    /// Restarts of all bridges since the supervisor started.
    pub(crate) fn restarts(&self) -> u64 {
        self.iter().map(|phone| phone.report.borrow().restarts).sum()
    }
}

fn start_owner(id: PhoneId, config: PhoneConfig, surroundings: &Surroundings) -> Handle {
    let (asks, asked) = mpsc::channel(ASKS);
    let phone = Phone::new(id.clone(), surroundings.tuning.settings.clone());
    let (reports, report) = watch::channel(phone.report());
    let (leases, lease) = watch::channel(None);
    let stream = Arc::new(Stream::default());
    let logs = Arc::new(Mutex::new(Ring::default()));
    let config = Arc::new(config);
    let (end, ended) = (surroundings.stopping.child_token(), CancellationToken::new());
    // In a box: a future that is handed on is held once by each that awaits it.
    let owner = Box::new(Owner {
        id: id.clone(),
        config: Arc::clone(&config),
        phone,
        child: None,
        journal: None,
        asked,
        reports,
        leases,
        stream: Arc::clone(&stream),
        logs: Arc::clone(&logs),
        surroundings: Surroundings { stopping: end.clone(), ..surroundings.clone() },
        began: Instant::now(),
        last_seq: 0,
        acked_seq: 0,
        told_link: None,
        greeting: false,
        link_slow: false,
        refused: Refused::default(),
        cpu: CpuHistory::default(),
    });
    let over = ended.clone().drop_guard();
    surroundings.tracker.spawn(async move {
        owner.run().await;
        drop(over);
    });
    Handle { id, config, asks, report, lease, stream, logs, end, ended }
}

/// Lines that could not be understood, for a log that is not flooded by them.
#[derive(Debug, Default)]
struct Refused {
    since_log: u64,
    logged: Option<Instant>,
}

/// What the router was last told of a phone.
type Told = (PhoneState, Vec<protocol::Reason>, Option<String>);

struct Owner {
    id: PhoneId,
    config: Arc<PhoneConfig>,
    phone: Phone,
    child: Option<Child>,
    journal: Option<String>,
    asked: mpsc::Receiver<Box<Ask>>,
    reports: watch::Sender<Report>,
    leases: watch::Sender<Option<Lease>>,
    stream: Arc<Stream>,
    logs: Arc<Mutex<Ring>>,
    surroundings: Surroundings,
    began: Instant,
    /// The newest event seen, in this journal.
    last_seq: u64,
    /// The newest event of the journal that is known to be acknowledged.
    acked_seq: u64,
    told_link: Option<Told>,
    /// A hello that the link has not taken yet.
    greeting: bool,
    link_slow: bool,
    refused: Refused,
    cpu: CpuHistory,
}

enum Turn {
    Asked(Option<Ask>),
    Happened(Happened),
    Tick,
    Renew,
    Look,
    Power,
    Stop,
    Kill,
}

/// When the bridge's use is looked at.
fn looks(tuning: &Tuning) -> tokio::time::Interval {
    let mut looks = tokio::time::interval(tuning.cpu.look_every());
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    looks
}

impl Owner {
    async fn run(mut self: Box<Self>) {
        let mut renew = tokio::time::interval(Duration::from_millis(RENEW_EVERY_MS));
        let mut look = looks(&self.surroundings.tuning);
        renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stopping = self.surroundings.stopping.clone();
        let killing = self.surroundings.killing.clone();
        let (mut stop_seen, mut kill_seen) = (false, false);
        let mut lines = 0_u32;
        let mut power = self.surroundings.power.clone();
        power.mark_changed();
        let mut power_watched = true;
        self.take(Input::Order(Order::Start)).await;
        loop {
            if stop_seen && self.phone.is_stopped() {
                tracing::info!(phone = %self.id, "stopped");
                return;
            }
            let wake = self.phone.deadline().map(|deadline| self.began + deadline);
            let turn = tokio::select! {
                // Order matters: an order to end comes before more work, and time before a flood of lines.
                biased;
                () = killing.cancelled(), if !kill_seen => Turn::Kill,
                () = stopping.cancelled(), if !stop_seen => Turn::Stop,
                () = at(wake) => Turn::Tick,
                _ = renew.tick(), if self.surroundings.link.is_none() => Turn::Renew,
                _ = look.tick() => Turn::Look,
                changed = power.changed(), if power_watched => {
                    // Whoever watched it has gone; what was said last stays.
                    power_watched = changed.is_ok();
                    Turn::Power
                }
                ask = self.asked.recv(), if !stop_seen => Turn::Asked(ask.map(|ask| *ask)),
                happened = next(&mut self.child) => Turn::Happened(happened),
            };
            match turn {
                Turn::Kill => {
                    (stop_seen, kill_seen) = (true, true);
                    self.take(Input::Order(Order::Kill)).await;
                }
                // Without an ask every handle is gone, which only happens when the supervisor ends.
                Turn::Stop | Turn::Asked(None) => {
                    stop_seen = true;
                    self.take(Input::Order(Order::Stop)).await;
                }
                Turn::Tick => self.take(Input::Tick).await,
                Turn::Renew => self.grant(),
                // What is large and done now and then is not room that each phone keeps for it.
                Turn::Look => Box::pin(self.look()).await,
                Turn::Power => {
                    let low = power.borrow_and_update().as_ref().is_some_and(power::is_low);
                    self.take(Input::PowerLow(low)).await;
                }
                Turn::Asked(Some(Ask::Order(order))) => self.take(Input::Order(order)).await,
                Turn::Asked(Some(Ask::Command(command))) => self.command(&command),
                Turn::Asked(Some(Ask::Tune(tuning))) => {
                    self.phone.tune(tuning.settings.clone());
                    self.surroundings.tuning = *tuning;
                    look = looks(&self.surroundings.tuning);
                }
                Turn::Happened(happened) => {
                    Box::pin(self.happened(happened)).await;
                    lines += 1;
                    if lines >= LINES_A_TURN {
                        lines = 0;
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Steps the state machine, does what it says, and tells everybody what changed.
    async fn take(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let (now, chance) = (self.now(), chance());
            for effect in self.phone.step(input, now, chance) {
                if let Some(next) = self.perform(effect) {
                    inputs.push_back(next);
                }
            }
            Box::pin(self.tell()).await;
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Spawn => {
                self.journal = None;
                self.greeting = false;
                return Some(self.spawn());
            }
            Effect::Greeted => {
                self.journal = self.phone.journal().map(str::to_owned);
                self.greeting = true;
                if let Some(hello) = self.phone.report().bridge {
                    self.last_seq = hello.last_seq;
                    self.acked_seq = hello.acked_seq;
                    tracing::info!(phone = %self.id, pid = hello.pid, version = hello.version,
                        journal = hello.journal, last_seq = hello.last_seq, "the bridge is there");
                }
                if self.surroundings.link.is_none() {
                    self.grant();
                    self.say(&Command::Replay);
                } else if let Some(lease) =
                    self.leases.borrow().filter(|lease| lease.holds(continuous_now()))
                {
                    self.say(&lease.command());
                }
            }
            Effect::Say(command) => self.say(&command),
            Effect::Term => self.signal(Signal::SIGTERM),
            Effect::Kill => self.signal(Signal::SIGKILL),
            Effect::Missed => {
                metrics::counter!("switchboard_heartbeats_missed_total", "phone" => self.id.to_string())
                    .increment(1);
                tracing::warn!(phone = %self.id, "a heartbeat is missing");
            }
            Effect::Restarting { exit, delay } => {
                tracing::warn!(phone = %self.id, ?exit, delay_ms = ms(delay), "the bridge ended; it is started again");
            }
            Effect::Parked { exit } => {
                metrics::counter!("switchboard_parked_total", "phone" => self.id.to_string())
                    .increment(1);
                tracing::error!(phone = %self.id, ?exit,
                    "the bridge ended too often and is parked; see GET /v1/phones/{}/log", self.id);
            }
            Effect::Waits { cause } => {
                tracing::error!(phone = %self.id, ?cause, "the bridge waits for a cause outside itself to go away");
            }
        }
        None
    }

    fn spawn(&mut self) -> Input {
        let spec = match self.prepare() {
            Ok(spec) => spec,
            Err(error) => {
                tracing::error!(phone = %self.id, error = %chain(&error), "the bridge's folder could not be prepared");
                return Input::NotStarted;
            }
        };
        metrics::counter!("switchboard_bridge_starts_total", "phone" => self.id.to_string())
            .increment(1);
        match child::start(&spec, &self.logs, &self.surroundings.tracker) {
            Ok(child) => {
                tracing::info!(phone = %self.id, pid = child.pid(), "the bridge is started");
                self.child = Some(child);
                Input::Started
            }
            Err(error) => {
                tracing::error!(phone = %self.id, error = %chain(&error), "the bridge could not be started");
                Input::NotStarted
            }
        }
    }

    /// Writes the bridge's configuration and says how to start it.
    fn prepare(&self) -> Result<child::Spec, files::FileError> {
        let directory = self.surroundings.state_dir.join("phones").join(self.id.as_str());
        files::create_dir(&directory)?;
        let file = directory.join("bridge.toml");
        let text = bridge_config(&self.id, &self.config, &directory);
        // An unchanged file is left alone: a restart then needs no room on a disk that may be full, and no flush.
        if files::read(&file).ok().as_deref() != Some(text.as_str()) {
            files::write_private(&file, &text)?;
        }
        Ok(child::Spec {
            program: self.surroundings.tuning.bridge.clone(),
            args: vec!["run".into(), "--config".into(), file.into()],
            directory,
            name: self.id.to_string(),
            line_max: limits::LINE_BYTES_MAX,
            voice: child::Voice::Bridge,
        })
    }

    fn signal(&self, signal: Signal) {
        let Some(child) = &self.child else { return };
        match child.signal(signal) {
            Signalled::Sent => {
                tracing::info!(phone = %self.id, group = child.pid(), %signal, "signalled the bridge");
            }
            Signalled::Gone => {
                tracing::debug!(phone = %self.id, %signal, "the bridge's group is gone already");
            }
            Signalled::Refused => {
                tracing::warn!(phone = %self.id, %signal, "the bridge's group may not be signalled; asked again later");
            }
        }
    }

    fn say(&self, command: &Command) {
        let Some(child) = &self.child else { return };
        let line = match serde_json::to_string(command) {
            Ok(line) => line,
            Err(error) => {
                tracing::error!(phone = %self.id, %error, "a command could not be written");
                return;
            }
        };
        let outcome = match child.write(line) {
            Ok(()) => "forwarded",
            // Every command is said again by whoever said it: sends are offered until answered, leases renewed,
            // acknowledgements cumulative.
            Err(NotQueued::Full | NotQueued::Closed) => "dropped",
        };
        metrics::counter!("switchboard_commands_total", "phone" => self.id.to_string(), "outcome" => outcome)
            .increment(1);
    }

    /// Passes a command from the router or the dispatch API to the bridge.
    fn command(&mut self, command: &Command) {
        match command {
            Command::Lease { epoch, ttl_ms, issued_ms } => {
                let lease = Lease { epoch: *epoch, ttl_ms: *ttl_ms, issued_ms: *issued_ms };
                self.leases.send_replace(Some(lease));
            }
            Command::Revoke { epoch } => {
                let ends = *epoch;
                self.leases.send_if_modified(|lease| {
                    let over = lease.is_some_and(|lease| lease.epoch <= ends);
                    if over {
                        *lease = None;
                    }
                    over
                });
            }
            Command::Release { epoch } => {
                // Only a bridge can say that nothing runs: an osascript has a group of its own and outlives a bridge that
                // was killed. Without one nobody answers, and the router waits until the lease is over.
                tracing::info!(phone = %self.id, epoch, "the phone is to go to another host");
                self.leases.send_replace(None);
            }
            Command::Ack { journal, seq } => {
                if self.journal.as_ref() == Some(journal) {
                    self.acked_seq = self.acked_seq.max(*seq);
                }
            }
            Command::Send(_)
            | Command::Cancel { .. }
            | Command::Replay
            | Command::Capability { .. }
            | Command::Seek(_)
            | Command::Pause { .. }
            | Command::Block { .. }
            | Command::Drain { .. }
            | Command::Stop { .. } => {}
        }
        if self.phone.takes(command) {
            self.say(command);
        } else {
            metrics::counter!("switchboard_commands_total", "phone" => self.id.to_string(), "outcome" => "dropped")
                .increment(1);
        }
    }

    /// Tells the router that nothing is being handed to Messages for this phone.
    async fn released(&mut self, epoch: u64) {
        tracing::info!(phone = %self.id, epoch, "released for another host");
        let phone = self.id.clone();
        // Lost with a slow link, it is asked for again.
        self.hand_up(LinkInput::Released { phone, epoch }).await;
    }

    /// Without a router: the lease that this supervisor grants itself.
    fn grant(&mut self) {
        let lease = Lease {
            epoch: self.surroundings.local_epoch,
            ttl_ms: LEASE_TTL_MS,
            issued_ms: continuous_now(),
        };
        self.leases.send_replace(Some(lease));
        if self.phone.takes(&lease.command()) {
            self.say(&lease.command());
        }
    }

    async fn look(&mut self) {
        let Some(pid) = self.child.as_ref().map(Child::pid) else { return };
        let Some((bytes, used)) = resources::look(pid) else { return };
        // A gauge is a float; memory sizes are far below where that loses whole mebibytes.
        let mib = u32::try_from(bytes / (1024 * 1024)).unwrap_or(u32::MAX);
        metrics::gauge!("switchboard_bridge_memory_mib", "phone" => self.id.to_string()).set(mib);
        match self.surroundings.tuning.memory.judge(bytes) {
            Use::Fine => {}
            Use::High => {
                tracing::warn!(phone = %self.id, mib, "the bridge uses much memory; it is restarted in order");
                self.take(Input::UseHigh).await;
            }
            Use::TooHigh => {
                tracing::error!(phone = %self.id, mib, "the bridge uses too much memory; it is killed");
                self.take(Input::MemoryTooHigh).await;
            }
        }
        let limits = self.surroundings.tuning.cpu;
        let Some(percent) = self.cpu.saw(pid, used, self.now(), limits.over) else { return };
        metrics::gauge!("switchboard_bridge_cpu_percent", "phone" => self.id.to_string())
            .set(u32::try_from(percent).unwrap_or(u32::MAX));
        match limits.judge(percent) {
            Use::Fine => {}
            Use::High => {
                tracing::warn!(phone = %self.id, percent, "the bridge works without end; it is restarted in order");
                self.take(Input::UseHigh).await;
            }
            Use::TooHigh => {
                tracing::error!(phone = %self.id, percent, "the bridge works without end; it is killed");
                self.take(Input::CpuTooHigh).await;
            }
        }
    }

    async fn happened(&mut self, happened: Happened) {
        match happened {
            Happened::Line(Line::Whole(line)) => self.line(&line).await,
            Happened::Line(Line::TooLong { bytes }) => {
                self.refuse("too_long", &format!("{bytes} bytes"));
            }
            Happened::Line(Line::NotText) => self.refuse("not_text", "not UTF-8"),
            Happened::Line(Line::Cut { bytes }) => {
                self.refuse("cut", &format!("half a line of {bytes} bytes"));
            }
            Happened::StdoutClosed => self.take(Input::StdoutClosed).await,
            Happened::NotReading => self.take(Input::NotReading).await,
            Happened::Exited(status) => {
                let exit = exit_of(status);
                tracing::info!(phone = %self.id, ?exit, "the bridge ended");
                self.child = None;
                self.take(Input::Ended(exit)).await;
            }
        }
    }

    fn refuse(&mut self, why: &'static str, detail: &str) {
        metrics::counter!("switchboard_lines_refused_total", "phone" => self.id.to_string(), "why" => why)
            .increment(1);
        self.refused.since_log += 1;
        if self.refused.logged.is_none_or(|at| at.elapsed() >= REFUSED_LOG_EVERY) {
            let lines = self.refused.since_log;
            self.refused = Refused { since_log: 0, logged: Some(Instant::now()) };
            tracing::warn!(phone = %self.id, why, detail, lines, "lines of the bridge were refused");
        }
    }

    async fn line(&mut self, line: &str) {
        match parse_up(line) {
            Ok(Up::Event(event)) => self.event(event).await,
            Ok(Up::Hello(hello)) => self.take(Input::Hello(hello)).await,
            Ok(Up::Ready) => self.take(Input::Ready).await,
            Ok(Up::NotReady { reasons }) => self.take(Input::NotReady(reasons)).await,
            Ok(Up::Released { epoch }) => self.released(epoch).await,
            Ok(Up::Heartbeat(heartbeat)) => self.take(Input::Heartbeat(heartbeat)).await,
            Err(error) => self.refuse(error.label(), &error.to_string()),
        }
    }

    async fn event(&mut self, line: EventLine) {
        let Some(journal) = self.journal.clone() else {
            self.refuse("before_hello", "an event before hello names no journal");
            return;
        };
        let seq = line.seq;
        self.last_seq = self.last_seq.max(seq);
        self.stream.publish(&EventFrame {
            phone: self.id.clone(),
            journal: journal.clone(),
            seq,
            epoch: line.epoch,
            at: line.at,
            event: line.event.clone(),
        });
        if self.surroundings.link.is_none() {
            // Nobody else keeps it, and a bridge whose events are never acknowledged stops after its window.
            self.say(&Command::Ack { journal, seq });
            self.count_event("local");
            return;
        }
        let outcome =
            if self.hand_up(LinkInput::Event { phone: self.id.clone(), journal, line }).await {
                "forwarded"
            } else {
                "dropped"
            };
        self.count_event(outcome);
    }

    fn count_event(&self, outcome: &'static str) {
        metrics::counter!("switchboard_events_total", "phone" => self.id.to_string(), "outcome" => outcome)
            .increment(1);
    }

    /// Hands something to the link. When it does not keep up, one wait is tried; then things are dropped until it does.
    async fn hand_up(&mut self, input: LinkInput) -> bool {
        let Some(link) = &self.surroundings.link else { return false };
        let input = match link.try_send(input) {
            Ok(()) => {
                self.link_slow = false;
                return true;
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return false,
            Err(mpsc::error::TrySendError::Full(input)) => input,
        };
        if self.link_slow {
            return false;
        }
        if let Ok(sent) = tokio::time::timeout(LINK_WAIT, link.send(input)).await {
            return sent.is_ok();
        }
        self.link_slow = true;
        tracing::warn!(phone = %self.id, "the link does not keep up; events are dropped and repeated later");
        false
    }

    /// Publishes the report, and tells the router what concerns it.
    async fn tell(&mut self) {
        let report = self.phone.report();
        let told: Told = (
            report.state,
            report.not_ready.iter().map(|not| not.reason).collect(),
            self.journal.clone(),
        );
        self.reports.send_if_modified(|old| {
            let changed = *old != report;
            if changed {
                if old.state != report.state {
                    tracing::info!(phone = %self.id, from = old.state.as_str(), to = report.state.as_str(), "state");
                }
                old.clone_from(&report);
            }
            changed
        });
        metrics::gauge!("switchboard_phone_ready", "phone" => self.id.to_string())
            .set(if report.state == PhoneState::Ready { 1.0 } else { 0.0 });
        metrics::counter!("switchboard_bridge_restarts_total", "phone" => self.id.to_string())
            .absolute(report.restarts);
        let news = self.greeting || self.told_link.as_ref() != Some(&told);
        if self.surroundings.link.is_none() || !news {
            return;
        }
        let update = LinkInput::Phone {
            report: PhoneReport {
                phone: self.id.clone(),
                journal: self.journal.clone(),
                last_seq: if self.journal.is_some() { self.last_seq } else { 0 },
                acked_seq: if self.journal.is_some() { self.acked_seq } else { 0 },
                epoch: None,
                state: told.0,
                reasons: told.1.clone(),
            },
            started: self.greeting,
        };
        // What was not taken is told again with the next step, at the latest with the next heartbeat.
        let taken = self.hand_up(update).await;
        self.greeting &= !taken;
        self.told_link = taken.then_some(told);
    }
}

/// The bridge's configuration file.
pub(crate) fn bridge_config(
    id: &PhoneId,
    config: &PhoneConfig,
    directory: &std::path::Path,
) -> String {
    let mut table = toml::Table::clone(&config.extra);
    let mut set = |key: &str, value: String| {
        table.insert(key.to_owned(), toml::Value::String(value));
    };
    set("phone", id.to_string());
    set("number", config.number.to_string());
    set("state_dir", directory.display().to_string());
    set("chat_db", config.chat_db.display().to_string());
    if let Some(osascript) = &config.osascript {
        set("osascript", osascript.display().to_string());
    }
    format!(
        "# Written by the supervisor at each start of the bridge; changes here are lost.\n{table}"
    )
}

fn exit_of(status: ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code { code },
        (None, signal) => Exit::Signal { signal: signal.unwrap_or(0) },
    }
}

async fn at(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => pending().await,
    }
}

async fn next(child: &mut Option<Child>) -> Happened {
    match child {
        Some(child) => child.next().await,
        None => pending().await,
    }
}

/// In whole milliseconds, as wires and logs have them.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A number in 0..1; without randomness there is only less jitter.
pub(crate) fn chance() -> f64 {
    let mut bytes = [0_u8; 4];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(aws_lc_rs::error::Unspecified) => 0.5,
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use protocol::pipe::Event;
    use protocol::{MessageId, UnixMs};

    use super::*;

    /// Every wait of these tests ends by then.
    const PATIENCE: Duration = Duration::from_secs(20);

    struct House {
        dir: tempfile::TempDir,
        pool: Pool,
        id: PhoneId,
        up: mpsc::Receiver<LinkInput>,
        surroundings: Surroundings,
    }

    impl House {
        fn new(behaviour: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let id = PhoneId::new(1, [3; 10]);
            let (link, up) = mpsc::channel(64);
            let surroundings = Surroundings {
                state_dir: dir.path().to_owned(),
                tuning: Tuning {
                    bridge: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_bridge.sh"),
                    settings: Settings::default(),
                    memory: MemoryLimits { soft: None, hard: None },
                    cpu: CpuLimits {
                        soft_percent: None,
                        hard_percent: None,
                        over: Duration::from_mins(5),
                    },
                },
                link: Some(link),
                local_epoch: 1,
                power: watch::channel(None).1,
                stopping: CancellationToken::new(),
                killing: CancellationToken::new(),
                tracker: TaskTracker::new(),
            };
            let mut extra = toml::Table::new();
            extra.insert("behaviour".to_owned(), toml::Value::String(behaviour.to_owned()));
            let config = PhoneConfig {
                number: "+12025550190".parse().unwrap(),
                label: None,
                chat_db: "/db".into(),
                osascript: None,
                extra: Arc::new(extra),
            };
            let pool = Pool::start(&BTreeMap::from([(id.clone(), config)]), &surroundings);
            Self { dir, pool, id, up, surroundings }
        }

        fn handle(&self) -> Handle {
            self.pool.get(&self.id).unwrap()
        }

        /// The next input for the link that `pick` takes.
        async fn up<T>(&mut self, pick: impl Fn(&LinkInput) -> Option<T>) -> T {
            let found = async {
                loop {
                    let input = self.up.recv().await.expect("the owners are gone");
                    if let Some(found) = pick(&input) {
                        return found;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, found).await.expect("the link was not told")
        }

        async fn report(&mut self, wanted: PhoneState) -> (PhoneReport, bool) {
            self.up(|input| match input {
                LinkInput::Phone { report, started } if report.state == wanted => {
                    Some((report.clone(), *started))
                }
                LinkInput::Phone { .. }
                | LinkInput::Forget(_)
                | LinkInput::Released { .. }
                | LinkInput::Event { .. }
                | LinkInput::Canary(_)
                | LinkInput::Health(_) => None,
            })
            .await
        }

        fn lines(&self) -> String {
            let file = self.dir.path().join("phones").join(self.id.as_str()).join("lines");
            std::fs::read_to_string(file).unwrap_or_default()
        }

        async fn finish(self) {
            self.surroundings.stopping.cancel();
            self.surroundings.tracker.close();
            tokio::time::timeout(PATIENCE, self.surroundings.tracker.wait()).await.unwrap();
        }
    }

    fn lease(epoch: u64) -> Command {
        Command::Lease { epoch, ttl_ms: 60_000, issued_ms: continuous_now() }
    }

    #[tokio::test]
    async fn the_link_hears_of_a_new_bridge_and_its_events() {
        let mut house = House::new("good");
        let (report, started) = house.report(PhoneState::NotReady).await;
        assert!(started, "the first word after hello asks for the acknowledged seq");
        let journal = report.journal.unwrap();
        let (report, started) = house.report(PhoneState::Ready).await;
        assert_eq!((report.journal.as_ref(), started), (Some(&journal), false));

        let message = MessageId::new(5, [5; 10]);
        let send = protocol::pipe::Send {
            message: message.clone(),
            attempt: 1,
            epoch: 4,
            to: "+12025550100".parse().unwrap(),
            text: "x".to_owned(),
            attachments: Vec::new(),
            route: vec![protocol::Channel::Imessage],
            class: protocol::Class::Otp,
            start_before: UnixMs(0),
            conversation: None,
        };
        house.handle().ask(Ask::Command(Command::Send(send))).unwrap();
        let (from, seq, event) = house
            .up(|input| match input {
                LinkInput::Event { journal, line, .. } => {
                    Some((journal.clone(), line.seq, line.event.clone()))
                }
                LinkInput::Phone { .. }
                | LinkInput::Forget(_)
                | LinkInput::Released { .. }
                | LinkInput::Canary(_)
                | LinkInput::Health(_) => None,
            })
            .await;
        assert_eq!((from, seq), (journal, 1));
        assert!(matches!(event, Event::Accepted(attempt) if attempt.message == message));
        // With a router the supervisor grants nothing and acknowledges nothing itself.
        assert!(!house.lines().contains("\"lease\"") && !house.lines().contains("\"ack\""));
        house.finish().await;
    }

    #[tokio::test]
    async fn a_restarted_bridge_gets_the_lease_that_still_holds() {
        let mut house = House::new("good");
        house.report(PhoneState::Ready).await;
        house.handle().ask(Ask::Command(lease(7))).unwrap();
        house.handle().ask(Ask::Order(Order::Restart)).unwrap();
        house.report(PhoneState::Draining).await;
        house.report(PhoneState::Ready).await;
        assert_eq!(house.handle().lease().map(|lease| lease.epoch), Some(7));
        let until = Instant::now() + PATIENCE;
        while house.lines().matches("\"epoch\":7").count() < 2 {
            assert!(Instant::now() < until, "{}", house.lines());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        house.handle().ask(Ask::Command(Command::Revoke { epoch: 7 })).unwrap();
        house.handle().ask(Ask::Order(Order::Restart)).unwrap();
        house.report(PhoneState::Draining).await;
        house.report(PhoneState::Ready).await;
        assert_eq!(house.handle().lease(), None);
        assert_eq!(house.lines().matches("\"lease\"").count(), 2, "{}", house.lines());
        house.finish().await;
    }

    #[tokio::test]
    async fn only_a_bridge_can_say_that_a_phone_is_released() {
        let mut house = House::new("good");
        house.report(PhoneState::Ready).await;
        house.handle().ask(Ask::Command(lease(7))).unwrap();
        house.handle().ask(Ask::Order(Order::Stop)).unwrap();
        house.report(PhoneState::Stopped).await;
        house.handle().ask(Ask::Command(Command::Release { epoch: 8 })).unwrap();
        // What comes next is of the start: nothing was said in the name of a bridge that does not run.
        house.handle().ask(Ask::Order(Order::Start)).unwrap();
        let next = |input: &LinkInput| match input {
            LinkInput::Released { .. } => Some(false),
            LinkInput::Phone { report, .. } if report.state == PhoneState::Ready => Some(true),
            LinkInput::Phone { .. }
            | LinkInput::Forget(_)
            | LinkInput::Event { .. }
            | LinkInput::Canary(_)
            | LinkInput::Health(_) => None,
        };
        assert!(house.up(next).await, "released without a bridge");
        assert_eq!(house.handle().lease(), None);
        house.finish().await;
    }

    #[tokio::test]
    async fn a_link_that_takes_nothing_holds_up_no_bridge() {
        let mut house = House::new("good");
        house.report(PhoneState::Ready).await;
        let handle = house.handle().clone();
        let mut listener = handle.stream.listen();
        // Far more than the queue of the link holds, and nobody empties it.
        for n in 0..100 {
            let send = protocol::pipe::Send {
                message: MessageId::new(n, [5; 10]),
                attempt: 1,
                epoch: 4,
                to: "+12025550100".parse().unwrap(),
                text: "x".to_owned(),
                attachments: Vec::new(),
                route: vec![protocol::Channel::Imessage],
                class: protocol::Class::Otp,
                start_before: UnixMs(0),
                conversation: None,
            };
            handle.ask(Ask::Command(Command::Send(send))).unwrap();
        }
        for _ in 0..200 {
            tokio::time::timeout(PATIENCE, listener.recv()).await.unwrap().unwrap();
        }
        assert_eq!(handle.report().state, PhoneState::Ready);
        house.finish().await;
    }

    #[tokio::test]
    async fn a_restart_writes_nothing_that_is_there_already() {
        use std::os::unix::fs::MetadataExt as _;
        let mut house = House::new("good");
        house.report(PhoneState::Ready).await;
        let file = house.dir.path().join("phones").join(house.id.as_str()).join("bridge.toml");
        let place = || std::fs::metadata(&file).unwrap().ino();
        let before = place();
        house.handle().ask(Ask::Order(Order::Restart)).unwrap();
        house.report(PhoneState::Draining).await;
        house.report(PhoneState::Ready).await;
        assert_eq!(place(), before);
        std::fs::write(&file, "half").unwrap();
        house.handle().ask(Ask::Order(Order::Restart)).unwrap();
        house.report(PhoneState::Draining).await;
        house.report(PhoneState::Ready).await;
        assert!(std::fs::read_to_string(&file).unwrap().contains("behaviour"));
        house.finish().await;
    }

    #[test]
    fn the_bridges_file_carries_its_own_settings_and_ours() {
        let mut extra: toml::Table =
            toml::from_str("osascript_deadline_ms = 5\n[pacing]\nburst = 2").unwrap();
        extra.insert("x".to_owned(), toml::Value::Boolean(true));
        let config = PhoneConfig {
            number: "+12025550190".parse().unwrap(),
            label: None,
            chat_db: "/a \"quoted\" place".into(),
            osascript: Some("/o".into()),
            extra: Arc::new(extra),
        };
        let text = bridge_config(&PhoneId::new(1, [0; 10]), &config, Path::new("/state"));
        let read: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(read["chat_db"].as_str(), Some("/a \"quoted\" place"));
        assert_eq!(read["pacing"]["burst"].as_integer(), Some(2));
        assert_eq!(read["osascript_deadline_ms"].as_integer(), Some(5));
        assert_eq!(read["state_dir"].as_str(), Some("/state"));
    }
}
