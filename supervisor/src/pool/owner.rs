//! The owner of a phone: the one task that has its child process, and does what [`crate::phone`] decides.

use std::collections::VecDeque;
use std::future::pending;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use protocol::link::{EventFrame, LEASE_TTL_MS, PhoneReport, PhoneState, RENEW_EVERY_MS};
use protocol::pipe::{Command, EventLine, Up, parse_up};
use protocol::{PhoneId, Reason, limits};
use router_client::clock::continuous_now;
use router_client::link::LinkInput;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Ask, Handle, Lease, Surroundings, Tuning, chain, chance, ms};
use crate::child::{self, Child, Happened, NotQueued, Signalled};
use crate::config::PhoneConfig;
use crate::files;
use crate::lines::Line;
use crate::logs::Ring;
use crate::orphan;
use crate::phone::{Effect, Input, Order, Phone, Report};
use crate::power;
use crate::resources::{self, CpuHistory, Use};
use crate::restart::{EX_TEMPFAIL, Exit, KillReason};
use crate::stream::Stream;

/// Things asked of an owner that wait to be done: one burst of commands to a full phone.
const ASKS: usize = 256;
/// How long an event waits for room on its way to the link before it is dropped; the bridge repeats it.
const LINK_WAIT: Duration = Duration::from_millis(250);
/// Refused lines are logged at most so often per phone; all are counted.
const REFUSED_LOG_EVERY: Duration = Duration::from_secs(1);
/// With the other streams gone, lines in a row from one child before its owner lets others run.
const LINES_A_TURN: u32 = 64;

/// Starts the task that owns a phone.
pub(super) fn start_owner(id: PhoneId, config: PhoneConfig, surroundings: &Surroundings) -> Handle {
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
        newest_epoch: 0,
        last_seq: 0,
        acked_seq: 0,
        told_link: None,
        greeting: false,
        link_slow: false,
        refused: Refused::default(),
        cpu: CpuHistory::default(),
        orphan: None,
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
type Told = (PhoneState, Vec<Reason>, Option<String>);

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
    /// The newest epoch that was named by a lease or a release.
    newest_epoch: u64,
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
    /// Ends a bridge that an earlier supervisor has left behind.
    orphan: Option<JoinHandle<()>>,
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
                self.count_end(exit.reason());
                tracing::warn!(phone = %self.id, ?exit, delay_ms = ms(delay), "the bridge ended; it is started again");
            }
            Effect::Parked { exit } => {
                self.count_end(exit.reason());
                metrics::counter!("switchboard_parked_total", "phone" => self.id.to_string())
                    .increment(1);
                tracing::error!(phone = %self.id, ?exit,
                    "the bridge ended too often and is parked; see GET /v1/phones/{}/log", self.id);
            }
            Effect::Waits { cause } => {
                self.count_end(cause.as_str());
                tracing::error!(phone = %self.id, ?cause, "the bridge waits for a cause outside itself to go away");
            }
        }
        None
    }

    /// Each end that nobody asked for is followed by a start, sooner or later: why is counted here.
    fn count_end(&self, reason: &'static str) {
        metrics::counter!("switchboard_bridge_ends_total", "phone" => self.id.to_string(), "reason" => reason)
            .increment(1);
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

    /// A bridge of a supervisor that is gone may hold the phone. While one is being ended, the next is started as ever.
    fn end_orphan(&mut self) {
        if self.orphan.as_ref().is_some_and(|ending| !ending.is_finished()) {
            return;
        }
        let within = self.surroundings.tuning.settings.term_within;
        let ending = orphan::end(self.id.clone(), self.directory(), within);
        self.orphan = Some(self.surroundings.tracker.spawn(ending));
    }

    fn directory(&self) -> PathBuf {
        self.surroundings.state_dir.join("phones").join(self.id.as_str())
    }

    /// Writes the bridge's configuration and says how to start it.
    fn prepare(&self) -> Result<child::Spec, files::FileError> {
        let directory = self.directory();
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
                self.newest_epoch = self.newest_epoch.max(*epoch);
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
                self.newest_epoch = self.newest_epoch.max(*epoch);
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
            | Command::Preflight
            | Command::Drain { .. }
            | Command::Stop { .. } => {}
        }
        if self.phone.takes(command, self.newest_epoch) {
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
        if self.phone.takes(&lease.command(), lease.epoch) {
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
                self.take(Input::UseHigh(KillReason::Memory)).await;
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
                self.take(Input::UseHigh(KillReason::Cpu)).await;
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
                if exit == (Exit::Code { code: EX_TEMPFAIL }) {
                    self.end_orphan();
                }
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
                    metrics::counter!("switchboard_phone_transitions_total", "phone" => self.id.to_string(),
                        "from" => old.state.as_str(), "to" => report.state.as_str())
                    .increment(1);
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
pub(super) fn bridge_config(
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
