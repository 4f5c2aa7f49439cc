//! The life of one phone's bridge as its supervisor sees it: pure. What happened goes in, what to do comes out.
//!
//! ```text
//! stopped ──start──▶ starting ──hello──▶ running ──exit──▶ waiting (back-off, parked, for a cause) ──▶ starting …
//!                        │ no hello in time  │ no heartbeat, no progress, does not read
//!                        └───────▶ stopping (killed) ◀──┘          stop, drain, restart: asked, then TERM, then KILL
//! ```
//!
//! Liveness kills: a bridge that is silent cannot be trusted to hold its gate. Readiness routes and never kills: a
//! bridge without an account is a healthy bridge.

use std::time::Duration;

use protocol::link::PhoneState;
use protocol::pipe::{Command, Heartbeat, Hello, NotReady};
use protocol::{PROTOCOL_MIN, PhoneId, Reason};
use serde::Serialize;

use crate::restart::{Cause, Decision, Ended, Exit, History, KillReason, Policy};

/// Heartbeats in a row whose count of turns stands still before the bridge's loop counts as hung. A turn may wait for
/// the disk; half a minute of heartbeats without one is no waiting.
const STUCK_BEATS: u32 = 6;

/// A tick that comes so much later than it was due means that the supervisor itself stood still: stopped, starved, or
/// paused with its machine. What bridges said meanwhile waits in their pipes, so nobody is judged by that time.
const STALL: Duration = Duration::from_secs(2);

/// The periods that a phone's life runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// A bridge says that it is alive so often.
    pub(crate) heartbeat_every: Duration,
    /// So many missed heartbeats kill it.
    pub(crate) missed_max: u32,
    /// Its first line must come within this time.
    pub(crate) start_deadline: Duration,
    /// How long a stop waits for what is started before it sends TERM.
    pub(crate) stop_within: Duration,
    /// How long a drain that an operator asked for waits: nobody is in a hurry.
    pub(crate) drain_within: Duration,
    /// How long after TERM comes KILL.
    pub(crate) term_within: Duration,
    /// When and how often it is restarted.
    pub(crate) policy: Policy,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_every: Duration::from_secs(5),
            missed_max: 3,
            start_deadline: Duration::from_secs(20),
            // Together with TERM below the time that launchd leaves us (ExitTimeOut 25) is not used up.
            stop_within: Duration::from_secs(10),
            drain_within: Duration::from_mins(1),
            term_within: Duration::from_secs(5),
            policy: Policy::default(),
        }
    }
}

/// What somebody wants done with a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Run it.
    Start,
    /// Stop it, finishing what is started if that is quick, and leave it stopped.
    Stop,
    /// Finish what is started, take nothing new, and leave it stopped.
    Drain,
    /// Stop it and run it again.
    Restart,
    /// Kill it now and leave it stopped.
    Kill,
}

/// What happened to one phone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    /// Somebody wants something.
    Order(Order),
    /// The process was started.
    Started,
    /// The process could not be started.
    NotStarted,
    /// Its first line.
    Hello(Hello),
    /// It can send.
    Ready,
    /// It cannot send.
    NotReady(Vec<NotReady>),
    /// A sign of life.
    Heartbeat(Heartbeat),
    /// It did not take what was written to it.
    NotReading,
    /// It closed its stdout.
    StdoutClosed,
    /// It uses more memory or more of a processor than the soft limit.
    UseHigh(KillReason),
    /// It uses more memory than the hard limit.
    MemoryTooHigh,
    /// It has had more of a processor than the hard limit.
    CpuTooHigh,
    /// It ended.
    Ended(Exit),
    /// The host's power is too low for new work, or no longer.
    PowerLow(bool),
    /// Time passed.
    Tick,
}

/// What the owner of the process has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Start the process.
    Spawn,
    /// The bridge has said hello: whoever listens must learn of it, and the bridge of its lease.
    Greeted,
    /// Write a command to it.
    Say(Command),
    /// Ask its group to end.
    Term,
    /// End its group.
    Kill,
    /// A heartbeat was missed.
    Missed,
    /// It was decided to start it again.
    Restarting {
        /// How it had ended.
        exit: Exit,
        /// After how long.
        delay: Duration,
    },
    /// It was parked: people must know.
    Parked {
        /// How it had ended.
        exit: Exit,
    },
    /// It waits for something outside itself: people must know.
    Waits {
        /// What it waits for.
        cause: Cause,
    },
}

/// Whether a running bridge can send.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Readiness {
    /// It has not said yet.
    Unsaid,
    /// Yes.
    Ready,
    /// No, and why.
    Not(Vec<NotReady>),
}

/// What follows when a stopping bridge has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Nothing: it was asked to stop.
    Stay,
    /// It is started again at once.
    Start,
    /// The restart policy decides; it was killed, or asked to end, for this reason.
    Decide(KillReason),
}

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It was asked over the pipe.
    Asked,
    /// Its group was sent TERM.
    Term,
    /// Its group was sent KILL.
    Kill,
}

/// Why there is no process although one is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Backoff,
    Parked,
    Cause(Cause),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Stopped,
    Starting { since: Duration },
    Running(Box<Running>),
    Stopping { phase: Phase, until: Duration, then: Then, ready_for: Duration },
    Waiting { until: Duration, why: Why },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    hello: Hello,
    readiness: Readiness,
    /// Since when it has been ready without a break.
    ready_since: Option<Duration>,
    /// When the last sign of life came.
    beat: Duration,
    /// Missed heartbeats that were already told of.
    told: u32,
    last: Option<Heartbeat>,
    /// Heartbeats in a row with the same count of turns.
    stuck: u32,
}

impl Running {
    fn ready_for(&self, now: Duration) -> Duration {
        self.ready_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}

/// One phone.
#[derive(Debug)]
pub(crate) struct Phone {
    id: PhoneId,
    settings: Settings,
    history: History,
    state: State,
    restarts: u64,
    last_exit: Option<Exit>,
    /// The host takes no new work, however well the bridge is.
    power_low: bool,
}

/// What there is to know about a phone, for the router, the dispatch API and the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// What its bridge is doing.
    pub(crate) state: PhoneState,
    /// Why it cannot send.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) not_ready: Vec<NotReady>,
    /// What it waits for, where the cause lies outside the bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waits_for: Option<Cause>,
    /// The running bridge's process id, version and journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bridge: Option<Hello>,
    /// What it has been doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heartbeat: Option<Heartbeat>,
    /// Restarts since the supervisor started.
    pub(crate) restarts: u64,
    /// Restarts in a row since the last forgiveness.
    pub(crate) tries: u32,
    /// How it ended last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_exit: Option<Exit>,
}

impl Report {
    /// True when the host's power is too low for new work.
    pub(crate) fn power_low(&self) -> bool {
        self.not_ready.iter().any(|not| not.reason == Reason::PowerLow)
    }

    /// True when a process is there that takes commands.
    pub(crate) fn takes_commands(&self) -> bool {
        match self.state {
            PhoneState::Ready | PhoneState::NotReady => self.bridge.is_some(),
            PhoneState::Stopped
            | PhoneState::Starting
            | PhoneState::Draining
            | PhoneState::Backoff
            | PhoneState::Parked => false,
        }
    }
}

fn power_low() -> NotReady {
    NotReady {
        reason: Reason::PowerLow,
        remedy:
            "this host's battery is nearly empty: bring mains back; what is started is finished"
                .to_owned(),
    }
}

impl Phone {
    /// A phone that does not run.
    pub(crate) fn new(id: PhoneId, settings: Settings) -> Self {
        Self {
            id,
            settings,
            history: History::default(),
            state: State::Stopped,
            restarts: 0,
            last_exit: None,
            power_low: false,
        }
    }

    /// Other periods, as of the next thing that happens.
    pub(crate) fn tune(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What there is to know.
    pub(crate) fn report(&self) -> Report {
        let (state, not_ready, waits_for, running) = match &self.state {
            State::Stopped => (PhoneState::Stopped, Vec::new(), None, None),
            State::Starting { .. } => (PhoneState::Starting, Vec::new(), None, None),
            State::Running(running) => match &running.readiness {
                Readiness::Unsaid => (PhoneState::NotReady, Vec::new(), None, Some(running)),
                Readiness::Ready if self.power_low => {
                    (PhoneState::NotReady, vec![power_low()], None, Some(running))
                }
                Readiness::Ready => (PhoneState::Ready, Vec::new(), None, Some(running)),
                Readiness::Not(reasons) => {
                    (PhoneState::NotReady, reasons.clone(), None, Some(running))
                }
            },
            State::Stopping { .. } => (PhoneState::Draining, Vec::new(), None, None),
            State::Waiting { why: Why::Backoff, .. } => {
                (PhoneState::Backoff, Vec::new(), None, None)
            }
            State::Waiting { why: Why::Parked, .. } => (PhoneState::Parked, Vec::new(), None, None),
            State::Waiting { why: Why::Cause(cause), .. } => {
                (PhoneState::Backoff, Vec::new(), Some(*cause), None)
            }
        };
        Report {
            state,
            not_ready,
            waits_for,
            bridge: running.map(|running| running.hello.clone()),
            heartbeat: running.and_then(|running| running.last.clone()),
            restarts: self.restarts,
            tries: self.history.tries(),
            last_exit: self.last_exit,
        }
    }

    /// True when nothing runs and nothing will.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// Whether a running bridge should be handed this command now; `newest` is the newest epoch that the router has
    /// named.
    pub(crate) fn takes(&self, command: &Command, newest: u64) -> bool {
        match &self.state {
            // What is started is finished, so everything but new work goes on. A send of an epoch that is over is no work:
            // the bridge refuses it, and the router waits for that before it sends the message by another host. Any other
            // send is offered again, or asked back by a cancel, which is always passed on.
            State::Running(_) => match command {
                Command::Send(send) => !self.power_low || send.epoch < newest,
                Command::Cancel { .. }
                | Command::Lease { .. }
                | Command::Revoke { .. }
                | Command::Release { .. }
                | Command::Ack { .. }
                | Command::Replay
                | Command::Capability { .. }
                | Command::Seek(_)
                | Command::Pause { .. }
                | Command::Block { .. }
                | Command::Preflight
                | Command::Drain { .. }
                | Command::Stop { .. } => true,
            },
            // A bridge that drains still needs its lease to finish, and still hands over events.
            State::Stopping { phase: Phase::Asked, .. } => !matches!(command, Command::Send(_)),
            State::Stopped
            | State::Starting { .. }
            | State::Stopping { .. }
            | State::Waiting { .. } => false,
        }
    }

    /// The journal that the running bridge has announced.
    pub(crate) fn journal(&self) -> Option<&str> {
        match &self.state {
            State::Running(running) => Some(&running.hello.journal),
            State::Stopped
            | State::Starting { .. }
            | State::Stopping { .. }
            | State::Waiting { .. } => None,
        }
    }

    /// When the next tick is due, if time alone can change anything.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Stopped => None,
            State::Starting { since } => Some(since.saturating_add(self.settings.start_deadline)),
            State::Running(running) => {
                // Half a period late is not missing: both sides' timers have their own idea of a period.
                let every = self.settings.heartbeat_every;
                let due = every.saturating_mul(running.told + 1).saturating_add(every / 2);
                Some(running.beat.saturating_add(due))
            }
            State::Stopping { until, .. } | State::Waiting { until, .. } => Some(*until),
        }
    }

    /// Takes in what happened at `now` (time since the supervisor started); `chance` is a random number in 0..1.
    pub(crate) fn step(&mut self, input: Input, now: Duration, chance: f64) -> Vec<Effect> {
        // Before anything else: what a bridge has earned by being ready is kept, though it may not be ready any more when
        // it ends.
        if let State::Running(running) = &self.state
            && running.ready_for(now) >= self.settings.policy.forgive_after
        {
            self.history.forgive();
        }
        match input {
            Input::Order(order) => self.order(order, now),
            Input::Started => {
                self.state = State::Starting { since: now };
                Vec::new()
            }
            Input::NotStarted => self.ended(Exit::NotStarted, now, chance),
            Input::Ended(exit) => self.ended(exit, now, chance),
            Input::Hello(hello) => self.hello(hello, now),
            Input::Ready => {
                if let State::Running(running) = &mut self.state {
                    running.readiness = Readiness::Ready;
                    running.ready_since.get_or_insert(now);
                }
                Vec::new()
            }
            Input::NotReady(reasons) => {
                if let State::Running(running) = &mut self.state {
                    running.readiness = Readiness::Not(reasons);
                    running.ready_since = None;
                }
                Vec::new()
            }
            Input::Heartbeat(heartbeat) => self.heartbeat(heartbeat, now),
            Input::NotReading => self.kill_if_live(KillReason::NotReading, now),
            Input::StdoutClosed => self.kill_if_live(KillReason::ClosedStdout, now),
            Input::MemoryTooHigh => self.kill_if_live(KillReason::Memory, now),
            Input::CpuTooHigh => self.kill_if_live(KillReason::Cpu, now),
            // Counted like a crash: one whose usual use is above the limit would otherwise be replaced for ever.
            Input::UseHigh(why) => match &self.state {
                State::Running(_) => {
                    self.ask(Then::Decide(why), self.settings.stop_within, now, false)
                }
                State::Stopped
                | State::Starting { .. }
                | State::Stopping { .. }
                | State::Waiting { .. } => Vec::new(),
            },
            Input::PowerLow(low) => {
                self.power_low = low;
                Vec::new()
            }
            Input::Tick => self.tick(now),
        }
    }

    fn order(&mut self, order: Order, now: Duration) -> Vec<Effect> {
        match (order, &mut self.state) {
            (Order::Start | Order::Restart, State::Stopped | State::Waiting { .. }) => {
                self.history.forgive();
                self.spawn(now)
            }
            (Order::Start, State::Starting { .. } | State::Running(_))
            | (Order::Stop | Order::Drain | Order::Kill, State::Stopped) => Vec::new(),
            (Order::Start | Order::Restart, State::Stopping { then, .. }) => {
                *then = Then::Start;
                Vec::new()
            }
            (Order::Restart, State::Starting { .. } | State::Running(_)) => {
                self.history.forgive();
                self.ask(Then::Start, self.settings.stop_within, now, false)
            }
            (Order::Stop | Order::Drain | Order::Kill, State::Waiting { .. }) => {
                self.state = State::Stopped;
                Vec::new()
            }
            (Order::Stop, State::Starting { .. } | State::Running(_)) => {
                self.ask(Then::Stay, self.settings.stop_within, now, false)
            }
            (Order::Drain, State::Starting { .. } | State::Running(_)) => {
                self.ask(Then::Stay, self.settings.drain_within, now, true)
            }
            (Order::Stop, State::Stopping { phase, until, then, .. }) => {
                *then = Then::Stay;
                // A drain without haste becomes a stop with haste.
                if *phase == Phase::Asked {
                    *until = (*until).min(now.saturating_add(self.settings.stop_within));
                }
                Vec::new()
            }
            (Order::Drain, State::Stopping { then, .. }) => {
                *then = Then::Stay;
                Vec::new()
            }
            (Order::Kill, State::Starting { .. } | State::Running(_) | State::Stopping { .. }) => {
                self.kill(Then::Stay, now)
            }
        }
    }

    fn spawn(&mut self, now: Duration) -> Vec<Effect> {
        self.state = State::Starting { since: now };
        vec![Effect::Spawn]
    }

    fn ready_for(&self, now: Duration) -> Duration {
        match &self.state {
            State::Running(running) => running.ready_for(now),
            State::Stopping { ready_for, .. } => *ready_for,
            State::Stopped | State::Starting { .. } | State::Waiting { .. } => Duration::ZERO,
        }
    }

    /// Asks a bridge over the pipe to end.
    fn ask(&mut self, then: Then, within: Duration, now: Duration, drain: bool) -> Vec<Effect> {
        let deadline_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let command =
            if drain { Command::Drain { deadline_ms } } else { Command::Stop { deadline_ms } };
        self.state = State::Stopping {
            phase: Phase::Asked,
            until: now.saturating_add(within),
            then,
            ready_for: self.ready_for(now),
        };
        vec![Effect::Say(command)]
    }

    fn kill(&mut self, then: Then, now: Duration) -> Vec<Effect> {
        self.state = State::Stopping {
            phase: Phase::Kill,
            until: now.saturating_add(self.settings.term_within),
            then,
            ready_for: self.ready_for(now),
        };
        vec![Effect::Kill]
    }

    fn kill_if_live(&mut self, why: KillReason, now: Duration) -> Vec<Effect> {
        match &self.state {
            State::Starting { .. } | State::Running(_) => self.kill(Then::Decide(why), now),
            // While it ends it may close its pipes in any order.
            State::Stopped | State::Stopping { .. } | State::Waiting { .. } => Vec::new(),
        }
    }

    fn hello(&mut self, hello: Hello, now: Duration) -> Vec<Effect> {
        match &self.state {
            State::Starting { .. } => {}
            // A second hello from a running bridge says nothing new; one from a bridge that ends comes too late.
            State::Stopped | State::Running(_) | State::Stopping { .. } | State::Waiting { .. } => {
                return Vec::new();
            }
        }
        if hello.protocol < PROTOCOL_MIN {
            return self.kill(Then::Decide(KillReason::OtherProtocol), now);
        }
        if hello.phone != self.id {
            return self.kill(Then::Decide(KillReason::OtherPhone), now);
        }
        self.state = State::Running(Box::new(Running {
            hello,
            readiness: Readiness::Unsaid,
            ready_since: None,
            beat: now,
            told: 0,
            last: None,
            stuck: 0,
        }));
        vec![Effect::Greeted]
    }

    fn heartbeat(&mut self, heartbeat: Heartbeat, now: Duration) -> Vec<Effect> {
        let State::Running(running) = &mut self.state else { return Vec::new() };
        running.beat = now;
        running.told = 0;
        // A count of zero comes from a bridge that does not count its turns.
        let before = running.last.as_ref().map(|last| last.turns);
        if heartbeat.turns > 0 && before == Some(heartbeat.turns) {
            running.stuck += 1;
        } else {
            running.stuck = 0;
        }
        running.last = Some(heartbeat);
        if running.stuck >= STUCK_BEATS {
            return self.kill(Then::Decide(KillReason::NoProgress), now);
        }
        Vec::new()
    }

    fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let Some(late) = self.deadline().and_then(|deadline| now.checked_sub(deadline)) else {
            return Vec::new();
        };
        if late >= STALL && self.excuse(late) {
            return Vec::new();
        }
        let missed_max = self.settings.missed_max;
        match &mut self.state {
            State::Stopped => Vec::new(),
            State::Starting { .. } => self.kill(Then::Decide(KillReason::NoHello), now),
            State::Running(running) => {
                running.told += 1;
                let mut effects = vec![Effect::Missed];
                if running.told >= missed_max {
                    effects.extend(self.kill(Then::Decide(KillReason::NoHeartbeat), now));
                }
                effects
            }
            State::Stopping { phase: phase @ Phase::Asked, until, .. } => {
                *phase = Phase::Term;
                *until = now.saturating_add(self.settings.term_within);
                vec![Effect::Term]
            }
            State::Stopping { phase, until, .. } => {
                // KILL is repeated: on macOS the first may have met a group that could not be signalled just then.
                *phase = Phase::Kill;
                *until = now.saturating_add(self.settings.term_within);
                vec![Effect::Kill]
            }
            State::Waiting { .. } => {
                self.restarts += 1;
                self.spawn(now)
            }
        }
    }

    /// After a standstill of our own: gives a bridge back the time in which nobody listened to it, and a moment more in
    /// which its waiting words are read. False where no word of the bridge is awaited.
    fn excuse(&mut self, late: Duration) -> bool {
        let since = match &mut self.state {
            State::Starting { since } => since,
            State::Running(running) => &mut running.beat,
            State::Stopped | State::Stopping { .. } | State::Waiting { .. } => return false,
        };
        *since = since.saturating_add(late).saturating_add(STALL);
        true
    }

    fn ended(&mut self, exit: Exit, now: Duration, chance: f64) -> Vec<Effect> {
        let (exit, asked) = match (&self.state, exit) {
            (State::Stopped | State::Waiting { .. }, _) => return Vec::new(),
            (State::Stopping { then: Then::Stay, .. }, exit) => (exit, true),
            (State::Stopping { then: Then::Start, .. }, exit) => {
                self.last_exit = Some(exit);
                self.restarts += 1;
                return self.spawn(now);
            }
            // What it says itself (77: no permission) is worth more than that we killed it.
            (State::Stopping { then: Then::Decide(why), .. }, Exit::Signal { .. }) => {
                (Exit::Killed { why: *why }, false)
            }
            (State::Stopping { then: Then::Decide(why), .. }, Exit::Code { code: 0 }) => {
                (Exit::Replaced { why: *why }, false)
            }
            (
                State::Stopping { then: Then::Decide(_), .. }
                | State::Starting { .. }
                | State::Running(_),
                exit,
            ) => (exit, false),
        };
        self.last_exit = Some(exit);
        let ended = Ended { exit, asked, ready_for: self.ready_for(now), now, chance };
        let (delay, why, effect) = match self.history.decide(&self.settings.policy, &ended) {
            Decision::Stay => {
                self.state = State::Stopped;
                return Vec::new();
            }
            Decision::Again { delay, .. } if delay.is_zero() => {
                self.restarts += 1;
                let mut effects = vec![Effect::Restarting { exit, delay }];
                effects.extend(self.spawn(now));
                return effects;
            }
            Decision::Again { delay, .. } => {
                (delay, Why::Backoff, Effect::Restarting { exit, delay })
            }
            Decision::Park { delay } => (delay, Why::Parked, Effect::Parked { exit }),
            Decision::Wait { delay, cause } => (delay, Why::Cause(cause), Effect::Waits { cause }),
        };
        self.state = State::Waiting { until: now.saturating_add(delay), why };
        vec![effect]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::Reason;

    use super::*;

    const CHANCE: f64 = 0.0;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn id() -> PhoneId {
        PhoneId::new(1, [1; 10])
    }

    fn hello() -> Hello {
        Hello {
            protocol: 1,
            version: "1".to_owned(),
            phone: id(),
            journal: "j".to_owned(),
            last_seq: 0,
            acked_seq: 0,
            pid: 1,
        }
    }

    /// A phone and its clock.
    struct Story {
        phone: Phone,
        now: Duration,
    }

    impl Story {
        fn new() -> Self {
            Self { phone: Phone::new(id(), Settings::default()), now: Duration::ZERO }
        }

        fn running() -> Self {
            let mut story = Self::new();
            assert_eq!(story.step(Input::Order(Order::Start)), [Effect::Spawn]);
            assert_eq!(story.step(Input::Started), []);
            assert_eq!(story.step(Input::Hello(hello())), [Effect::Greeted]);
            story
        }

        fn step(&mut self, input: Input) -> Vec<Effect> {
            self.phone.step(input, self.now, CHANCE)
        }

        fn after(&mut self, wait: Duration, input: Input) -> Vec<Effect> {
            self.now += wait;
            self.step(input)
        }

        fn state(&self) -> PhoneState {
            self.phone.report().state
        }

        fn exit(&mut self, code: i32) -> Vec<Effect> {
            self.step(Input::Ended(Exit::Code { code }))
        }
    }

    #[test]
    fn readiness_is_shown_and_never_kills() {
        let mut story = Story::running();
        assert_eq!(story.state(), PhoneState::NotReady);
        let reason = NotReady { reason: Reason::AccountOffline, remedy: String::new() };
        for n in 1..200 {
            assert_eq!(story.after(secs(4), Input::NotReady(vec![reason.clone()])), []);
            let beat = Heartbeat { turns: n, ..Heartbeat::default() };
            assert_eq!(story.step(Input::Heartbeat(beat)), []);
            assert_eq!(story.step(Input::Tick), []);
        }
        assert_eq!(story.state(), PhoneState::NotReady);
        assert_eq!(story.phone.report().not_ready, [reason]);
        assert_eq!(story.step(Input::Ready), []);
        assert_eq!(story.state(), PhoneState::Ready);
    }

    #[test]
    fn low_power_refuses_new_work_only_and_says_why() {
        let mut story = Story::running();
        story.step(Input::Ready);
        assert_eq!(story.step(Input::PowerLow(true)), []);
        assert_eq!(story.state(), PhoneState::NotReady);
        assert!(story.phone.report().power_low());
        // Of epoch 1, which is over as soon as there was a newer one: then the bridge refuses it.
        let send = Command::Send(send());
        for (newest, taken) in [(0, false), (1, false), (2, true), (u64::MAX, true)] {
            assert_eq!(story.phone.takes(&send, newest), taken, "{newest}");
        }
        assert!(story.phone.takes(&Command::Revoke { epoch: 1 }, 1));
        assert!(story.phone.takes(&Command::Replay, 1));
        story.step(Input::PowerLow(false));
        assert_eq!(story.state(), PhoneState::Ready);
        assert!(story.phone.takes(&send, 1));
    }

    /// A bridge that crashed twice, is running again, and says `ready`.
    fn crashed_twice() -> Story {
        let mut story = Story::running();
        for _ in 0..2 {
            story.exit(1);
            if let Some(deadline) =
                story.phone.deadline().filter(|_| story.state() == PhoneState::Backoff)
            {
                story.now = deadline;
                story.step(Input::Tick);
            }
            story.step(Input::Started);
            story.step(Input::Hello(hello()));
        }
        assert_eq!(story.phone.report().tries, 2);
        story.step(Input::Ready);
        story
    }

    #[test]
    fn ten_minutes_ready_forgive_whatever_comes_between_them_and_the_end() {
        let offline = || {
            Input::NotReady(vec![NotReady {
                reason: Reason::AccountOffline,
                remedy: String::new(),
            }])
        };
        let beat = || Input::Heartbeat(Heartbeat { turns: 1, ..Heartbeat::default() });
        for (ready, tries) in [(secs(599), 2), (secs(600), 0)] {
            let mut story = crashed_twice();
            story.after(ready, offline());
            assert_eq!(story.phone.report().tries, tries, "{ready:?}");
            // And of one that goes on being ready it is known at once.
            let mut story = crashed_twice();
            story.after(ready, beat());
            assert_eq!(story.phone.report().tries, tries, "{ready:?}");
        }
        let mut story = crashed_twice();
        story.after(secs(600), offline());
        let restarting = story.exit(1);
        assert_eq!(
            restarting.first(),
            Some(&Effect::Restarting { exit: Exit::Code { code: 1 }, delay: Duration::ZERO })
        );
    }

    #[test]
    fn a_bridge_that_is_always_above_a_soft_limit_waits_longer_and_is_parked() {
        for why in [KillReason::Memory, KillReason::Cpu] {
            let mut story = Story::running();
            let exit = Exit::Replaced { why };
            for wait in [0, 1, 2, 5, 10] {
                story.step(Input::Ready);
                assert_eq!(
                    story.after(secs(15), Input::UseHigh(why)),
                    [Effect::Say(Command::Stop { deadline_ms: 10_000 })]
                );
                assert_eq!(story.step(Input::UseHigh(why)), [], "it ends already");
                let mut effects = story.exit(0);
                assert_eq!(effects.remove(0), Effect::Restarting { exit, delay: secs(wait) });
                if wait > 0 {
                    effects = story.after(secs(wait), Input::Tick);
                }
                assert_eq!(effects, [Effect::Spawn]);
                story.step(Input::Started);
                story.step(Input::Hello(hello()));
            }
            story.after(secs(15), Input::UseHigh(why));
            assert_eq!(story.exit(0), [Effect::Parked { exit }]);
            assert_eq!(story.phone.report().last_exit, Some(exit));
        }
        // One that does not end when it is asked to was killed; one that says why it ends is believed.
        let mut story = Story::running();
        story.step(Input::UseHigh(KillReason::Memory));
        let exit = Exit::Killed { why: KillReason::Memory };
        assert_eq!(
            story.step(Input::Ended(Exit::Signal { signal: 15 })).first(),
            Some(&Effect::Restarting { exit, delay: Duration::ZERO })
        );
        let mut story = Story::running();
        story.step(Input::UseHigh(KillReason::Memory));
        assert_eq!(story.exit(77), [Effect::Waits { cause: Cause::Permission }]);
    }

    #[test]
    fn three_missed_heartbeats_kill() {
        let mut story = Story::running();
        assert_eq!(story.after(secs(7), Input::Tick), [], "a late one is not missing yet");
        assert_eq!(story.after(secs(1) / 2, Input::Tick), [Effect::Missed]);
        assert_eq!(story.step(Input::Tick), [], "each miss is told once");
        assert_eq!(story.after(secs(5), Input::Tick), [Effect::Missed]);
        assert_eq!(story.after(secs(5), Input::Tick), [Effect::Missed, Effect::Kill]);
        assert_eq!(story.state(), PhoneState::Draining);
        let exit = Exit::Killed { why: KillReason::NoHeartbeat };
        assert_eq!(
            story.step(Input::Ended(Exit::Signal { signal: 9 })),
            [Effect::Restarting { exit, delay: Duration::ZERO }, Effect::Spawn]
        );
    }

    #[test]
    fn a_supervisor_that_stood_still_blames_no_bridge() {
        // Ticks come before lines, so after a standstill the first thing that is seen is how late it is.
        let mut story = Story::running();
        assert_eq!(story.after(secs(30), Input::Tick), []);
        assert_eq!(story.step(Input::Tick), [], "what waits in the pipe is read first");
        let beat = Heartbeat { turns: 1, ..Heartbeat::default() };
        assert_eq!(story.step(Input::Heartbeat(beat)), []);
        assert_eq!(story.after(secs(7), Input::Tick), []);
        assert_eq!(story.state(), PhoneState::NotReady);

        let mut story = Story::new();
        story.step(Input::Order(Order::Start));
        story.step(Input::Started);
        assert_eq!(story.after(secs(60), Input::Tick), []);
        assert_eq!(story.step(Input::Hello(hello())), [Effect::Greeted]);

        // A bridge that hangs as well is killed all the same, a moment later.
        let mut story = Story::running();
        assert_eq!(story.after(secs(30), Input::Tick), []);
        assert_eq!(story.after(secs(2), Input::Tick), [Effect::Missed]);
        assert_eq!(story.after(secs(5), Input::Tick), [Effect::Missed]);
        assert_eq!(story.after(secs(5), Input::Tick), [Effect::Missed, Effect::Kill]);
    }

    #[test]
    fn a_heartbeat_in_time_forgives_the_missed_ones() {
        let mut story = Story::running();
        for n in 1..50 {
            assert_eq!(story.after(secs(8), Input::Tick), [Effect::Missed]);
            assert_eq!(story.after(secs(5), Input::Tick), [Effect::Missed]);
            let beat = Heartbeat { turns: n, ..Heartbeat::default() };
            assert_eq!(story.step(Input::Heartbeat(beat)), []);
        }
    }

    #[test]
    fn heartbeats_without_progress_kill() {
        let mut story = Story::running();
        let beat = || Input::Heartbeat(Heartbeat { turns: 7, ..Heartbeat::default() });
        for _ in 0..6 {
            assert_eq!(story.after(secs(5), beat()), []);
        }
        assert_eq!(story.after(secs(5), beat()), [Effect::Kill]);
        // A bridge that does not count its turns is not killed for it.
        let mut story = Story::running();
        for _ in 0..50 {
            assert_eq!(story.after(secs(5), Input::Heartbeat(Heartbeat::default())), []);
        }
    }

    #[test]
    fn a_bridge_that_says_nothing_is_killed() {
        let mut story = Story::new();
        story.step(Input::Order(Order::Start));
        story.step(Input::Started);
        assert_eq!(story.after(secs(19), Input::Tick), []);
        assert_eq!(story.after(secs(1), Input::Tick), [Effect::Kill]);
        // KILL is repeated until the end is seen.
        assert_eq!(story.after(secs(5), Input::Tick), [Effect::Kill]);
    }

    #[test]
    fn a_hello_from_somebody_else_kills() {
        let old = Hello { protocol: 0, ..hello() };
        let other = Hello { phone: PhoneId::new(2, [2; 10]), ..hello() };
        for wrong in [old, other] {
            let mut story = Story::new();
            story.step(Input::Order(Order::Start));
            story.step(Input::Started);
            assert_eq!(story.step(Input::Hello(wrong)), [Effect::Kill]);
        }
    }

    #[test]
    fn a_stop_asks_then_terminates_then_kills() {
        let mut story = Story::running();
        assert_eq!(
            story.step(Input::Order(Order::Stop)),
            [Effect::Say(Command::Stop { deadline_ms: 10_000 })]
        );
        assert!(!story.phone.takes(&Command::Send(send()), 0));
        assert!(story.phone.takes(&Command::Replay, 0));
        assert_eq!(story.after(secs(9), Input::Tick), []);
        assert_eq!(story.after(secs(1), Input::Tick), [Effect::Term]);
        assert_eq!(story.after(secs(5), Input::Tick), [Effect::Kill]);
        assert_eq!(story.step(Input::Ended(Exit::Signal { signal: 9 })), []);
        assert!(story.phone.is_stopped());
        // All of it is shorter than launchd's patience.
        let settings = Settings::default();
        assert!(settings.stop_within + settings.term_within <= secs(15));
    }

    fn send() -> protocol::pipe::Send {
        protocol::pipe::Send {
            message: protocol::MessageId::new(1, [0; 10]),
            attempt: 1,
            epoch: 1,
            to: protocol::Recipient::Number("+12025550100".parse().unwrap()),
            text: "x".to_owned(),
            attachments: Vec::new(),
            route: Vec::new(),
            class: protocol::Class::Otp,
            start_before: protocol::UnixMs(0),
            conversation: None,
        }
    }

    #[test]
    fn orders_change_their_mind() {
        let mut story = Story::running();
        story.step(Input::Order(Order::Drain));
        assert_eq!(story.phone.deadline(), Some(secs(60)));
        story.step(Input::Order(Order::Stop));
        assert_eq!(story.phone.deadline(), Some(secs(10)));
        story.step(Input::Order(Order::Start));
        assert_eq!(story.exit(0), [Effect::Spawn], "started again as soon as it has ended");
        story.step(Input::Order(Order::Restart));
        story.step(Input::Order(Order::Stop));
        assert_eq!(story.exit(0), []);
        assert!(story.phone.is_stopped());
        assert_eq!(story.step(Input::Order(Order::Restart)), [Effect::Spawn]);
        assert_eq!(story.step(Input::Order(Order::Kill)), [Effect::Kill]);
        story.step(Input::Ended(Exit::Signal { signal: 9 }));
        assert!(story.phone.is_stopped());
    }

    #[test]
    fn a_crash_loop_parks_and_an_order_starts_anew() {
        let mut story = Story::running();
        let mut parked = false;
        for _ in 0..20 {
            let effects = story.exit(1);
            if effects.iter().any(|effect| matches!(effect, Effect::Parked { .. })) {
                parked = true;
                break;
            }
            if let Some(deadline) = story.phone.deadline()
                && story.state() == PhoneState::Backoff
            {
                story.now = deadline;
                assert_eq!(story.step(Input::Tick), [Effect::Spawn]);
            }
            story.step(Input::Started);
        }
        assert!(parked);
        assert_eq!(story.state(), PhoneState::Parked);
        assert_eq!(story.phone.deadline(), Some(story.now + secs(300)));
        assert_eq!(story.step(Input::Order(Order::Start)), [Effect::Spawn]);
    }

    #[test]
    fn what_a_killed_bridge_says_by_its_status_counts() {
        let mut story = Story::running();
        assert_eq!(story.step(Input::StdoutClosed), [Effect::Kill]);
        assert_eq!(story.exit(77), [Effect::Waits { cause: Cause::Permission }]);
        assert_eq!(story.phone.report().waits_for, Some(Cause::Permission));
        assert_eq!(story.after(secs(60), Input::Tick), [Effect::Spawn]);
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            prop::sample::select(vec![
                Order::Start,
                Order::Stop,
                Order::Drain,
                Order::Restart,
                Order::Kill
            ])
            .prop_map(Input::Order),
            Just(Input::Started),
            Just(Input::NotStarted),
            Just(Input::Hello(hello())),
            Just(Input::Ready),
            Just(Input::NotReady(Vec::new())),
            (0_u64..3)
                .prop_map(|turns| Input::Heartbeat(Heartbeat { turns, ..Heartbeat::default() })),
            Just(Input::NotReading),
            Just(Input::StdoutClosed),
            Just(Input::UseHigh(KillReason::Memory)),
            Just(Input::CpuTooHigh),
            Just(Input::MemoryTooHigh),
            prop::sample::select(vec![0, 1, 69, 75, 77, 78])
                .prop_map(|code| Input::Ended(Exit::Code { code })),
            Just(Input::Ended(Exit::Signal { signal: 9 })),
            Just(Input::Tick),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: a process is never started while there is one, and where there is one,
        /// there is always a deadline after which something happens.
        #[test]
        fn there_is_never_a_second_process_and_never_a_state_without_end(
            story in prop::collection::vec((input(), 0_u64..40), 0..120)
        ) {
            let mut phone = Phone::new(id(), Settings::default());
            let mut now = Duration::ZERO;
            let mut alive = false;
            for (input, wait) in story {
                now += secs(wait);
                // Only what can happen to the process that there is: it starts once, it ends once.
                let possible = match &input {
                    Input::Started | Input::NotStarted => false,
                    Input::Order(_) | Input::Tick | Input::PowerLow(_) => true,
                    Input::Hello(_) | Input::Ready | Input::NotReady(_) | Input::Heartbeat(_)
                    | Input::NotReading | Input::StdoutClosed | Input::UseHigh(_) | Input::CpuTooHigh
                    | Input::MemoryTooHigh | Input::Ended(_) => alive,
                };
                if !possible {
                    continue;
                }
                if matches!(input, Input::Ended(_)) {
                    alive = false;
                }
                let mut effects = phone.step(input, now, 0.5);
                while effects.contains(&Effect::Spawn) {
                    prop_assert!(!alive, "a second process");
                    alive = true;
                    effects = phone.step(Input::Started, now, 0.5);
                }
                if alive {
                    prop_assert!(phone.deadline().is_some());
                    prop_assert!(!phone.is_stopped());
                }
            }
            // From anywhere a stop ends, within its own limits.
            phone.step(Input::Order(Order::Stop), now, 0.5);
            for _ in 0..4 {
                if let Some(deadline) = phone.deadline() {
                    now = now.max(deadline);
                    let effects = phone.step(Input::Tick, now, 0.5);
                    prop_assert!(!effects.contains(&Effect::Spawn));
                    if effects.contains(&Effect::Kill) {
                        phone.step(Input::Ended(Exit::Signal { signal: 9 }), now, 0.5);
                    }
                }
            }
            prop_assert!(phone.is_stopped());
        }
    }
}
