//! When cloudflared is started, restarted and ended: pure. What happened, the time and chance go in, what to do comes out.
//!
//! ```text
//! waiting ──▶ starting ──▶ running ──ends by itself──▶ waiting
//!    ▲                        │  restart(why)
//!    └──── started anew ◀── stopping ──asked to stop──▶ stopped
//! ```
//!
//! cloudflared tries again by itself, but after an outage it may wait for up to five minutes, and after a sleep or a
//! change of network it may never come back (facts: 6.2, 6.3; cloudflared#1339, #1301, #306). So it is restarted when
//!
//! - the network changed or the machine woke, and it is not ready some time after,
//! - the internet is there and it has not been ready for a while,
//! - nobody comes through it, though it says that it is ready,
//!
//! and at most so often in an hour: whatever a restart does not help is not helped by more of them.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::UnixMs;
use protocol::link::{HostTunnel, TunnelState};
use router_client::clock::ContinuousMs;
use serde::Serialize;

use crate::pool::ms;
use crate::restart::{self, Decision, Exit, History};

/// The cap's window.
const HOUR: Duration = Duration::from_hours(1);
/// What must be changed by somebody is looked at again so often.
const UNFIT_AGAIN: Duration = Duration::from_secs(30);
/// cloudflared has replaced itself by a newer one and wants to be started again (facts: 6.1). It is told not to.
const UPDATED: i32 = 11;
/// It does not understand its arguments (-1, as the shell sees it).
const USAGE: i32 = 255;
/// Why it waits when it has ended by itself.
const ENDED: &str = "ended";
/// One that has run so long before it updated itself does not do so in a circle.
const UPDATED_AFTER: Duration = Duration::from_secs(10);

/// Periods and the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// After a change it must be ready within this.
    pub(crate) settle: Duration,
    /// With the internet there, it may be not ready for so long.
    pub(crate) unready: Duration,
    /// So many questions through the public name in a row without an answer.
    pub(crate) lost: u32,
    /// Restarts by us within an hour.
    pub(crate) per_hour: usize,
    /// After TERM it ends within this: its grace, which a WebSocket always uses up, and a moment.
    pub(crate) stop_within: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(10),
            unready: Duration::from_secs(30),
            lost: 3,
            per_hour: 6,
            stop_within: Duration::from_secs(4),
        }
    }
}

/// What it answers on its metrics port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    /// 200: it has so many connections to the edge.
    Yes {
        /// How many.
        connections: u64,
    },
    /// 503, or no answer.
    No,
}

/// What came of a question through the public name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Through {
    /// This supervisor has answered.
    Answered,
    /// Nobody has, or the edge in its place.
    Lost,
    /// Cloudflare Access wants a login first: that says nothing about the tunnel.
    Withheld,
}

/// Why it cannot be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unfit {
    /// Another program listens on its metrics port.
    PortTaken,
    /// There is no token file.
    TokenMissing,
    /// Others may read the token file.
    TokenExposed,
    /// Its program is not there, or the system refuses to start it.
    NotStarted,
}

/// Why we restart it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Why {
    /// The network is another one, or the machine has slept.
    Changed,
    /// The internet is there, and it is not ready.
    Unready,
    /// It says that it is ready, and nobody comes through.
    Lost,
}

impl Why {
    /// The stable word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unready => "unready",
            Self::Lost => "lost",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The start that was asked for has worked.
    Started,
    /// It could not be made.
    Unfit(Unfit),
    /// It ended.
    Ended(Exit),
    /// It was asked whether it is ready.
    Ready(Ready),
    /// Whether the internet is there; none where nobody knows.
    Internet(Option<bool>),
    /// It was asked for through the public name.
    Through(Through),
    /// The network is another one, or the machine has woken.
    Changed,
    /// It is to end for good.
    Stop,
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start it; answered by `Started` or `Unfit`.
    Start,
    /// Ask it to end.
    Term,
    /// End it.
    Kill,
}

/// What is known of one that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Running {
    since: ContinuousMs,
    health: Health,
    /// When something changed that it may not have survived.
    changed: Option<ContinuousMs>,
    /// Questions in a row that were lost.
    lost: u32,
}

/// Since when, without a break, it is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Ready {
        since: ContinuousMs,
        connections: u64,
    },
    /// From its start, or from the last change: time that a machine slept through does not count.
    Unready {
        since: ContinuousMs,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not there, to be started then.
    Waiting { until: ContinuousMs },
    /// Asked to be started.
    Starting,
    /// There.
    Running(Running),
    /// Asked to end, and why; it is started anew unless it is to end for good.
    Stopping { since: ContinuousMs, why: Option<Why>, killed: bool },
    /// Over.
    Stopped,
}

/// How it stands, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Standing {
    /// What it is doing.
    pub(crate) state: TunnelState,
    /// Since when.
    pub(crate) since: UnixMs,
    /// What it waits for, in a stable word.
    pub(crate) why: Option<&'static str>,
    /// What to do about it, for people.
    pub(crate) remedy: Option<&'static str>,
    /// Connections to Cloudflare's edge.
    pub(crate) connections: u64,
    /// How the last one ended.
    pub(crate) last_exit: Option<Exit>,
    /// How often it was started again, whoever had ended it.
    pub(crate) restarts: u64,
    /// Restarts by the supervisor within the last hour.
    pub(crate) restarts_last_hour: usize,
    /// It would be restarted, and has been as often as is allowed.
    pub(crate) capped: bool,
}

impl Standing {
    /// Whether it matters that the internet is there: it is not ready, or has ended by itself and may have ended of that.
    pub(crate) fn asks_for_internet(&self) -> bool {
        match self.state {
            TunnelState::Unready => true,
            TunnelState::Waiting => self.why == Some(ENDED),
            TunnelState::Starting
            | TunnelState::Ready
            | TunnelState::Stopping
            | TunnelState::Stopped
            | TunnelState::Unknown => false,
        }
    }

    /// The same in the words of the link.
    pub(crate) fn to_host(&self) -> HostTunnel {
        HostTunnel {
            state: self.state,
            why: self.why.map(str::to_owned),
            remedy: self.remedy.map(str::to_owned),
            since: self.since,
            connections: self.connections,
            restarts: self.restarts,
            restarts_last_hour: u32::try_from(self.restarts_last_hour).unwrap_or(u32::MAX),
            capped: self.capped,
        }
    }
}

/// The state machine of one cloudflared.
#[derive(Debug)]
pub(crate) struct Keeper {
    policy: Policy,
    crashes: restart::Policy,
    phase: Phase,
    history: History,
    /// How often it was started.
    starts: u64,
    /// When we restarted it, oldest first; never longer than the cap.
    restarts: VecDeque<ContinuousMs>,
    /// Since when the internet is known to be there.
    internet_since: Option<ContinuousMs>,
    unfit: Option<Unfit>,
    last_exit: Option<Exit>,
    capped: bool,
}

impl Keeper {
    /// One that is to be started at once.
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            crashes: restart::Policy::default(),
            phase: Phase::Waiting { until: 0 },
            history: History::default(),
            starts: 0,
            restarts: VecDeque::new(),
            internet_since: None,
            unfit: None,
            last_exit: None,
            capped: false,
        }
    }

    /// True when nothing will happen any more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    /// True while its answers are wanted.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running(_))
    }

    /// Takes in what happened.
    pub(crate) fn step(&mut self, event: Event, now: ContinuousMs, chance: f64) -> Option<Action> {
        match event {
            Event::Started if self.phase == Phase::Starting => {
                self.unfit = None;
                self.starts = self.starts.saturating_add(1);
                self.phase = Phase::Running(Running {
                    since: now,
                    health: Health::Unready { since: now },
                    changed: None,
                    lost: 0,
                });
            }
            Event::Unfit(unfit) if self.phase == Phase::Starting => {
                self.unfit = Some(unfit);
                self.phase = Phase::Waiting { until: now + ms(UNFIT_AGAIN) };
            }
            Event::Ended(exit) => return self.ended(exit, now, chance),
            Event::Internet(there) => {
                let was = self.internet_since;
                self.internet_since = (there == Some(true)).then(|| was.unwrap_or(now));
                if was.is_none() && self.internet_since.is_some() {
                    self.hasten(now);
                }
            }
            Event::Ready(ready) => self.ready(ready, now),
            Event::Through(through) => self.through(through),
            Event::Changed => self.changed(now),
            Event::Stop => return self.stop(now),
            Event::Started | Event::Unfit(_) | Event::Tick => {}
        }
        self.due(now)
    }

    fn ready(&mut self, ready: Ready, now: ContinuousMs) {
        let Phase::Running(running) = &mut self.phase else { return };
        match (ready, running.health) {
            (Ready::Yes { connections }, Health::Ready { since, .. }) => {
                running.health = Health::Ready { since, connections };
            }
            (Ready::Yes { connections }, Health::Unready { .. }) => {
                running.health = Health::Ready { since: now, connections };
            }
            (Ready::No, Health::Ready { since, .. }) => {
                // Earned, though it may not be ready any more when it ends.
                if now.saturating_sub(since) >= ms(self.crashes.forgive_after) {
                    self.history.forgive();
                }
                running.health = Health::Unready { since: now };
                // What is lost while it is not ready is no riddle.
                running.lost = 0;
            }
            (Ready::No, Health::Unready { .. }) => {}
        }
    }

    fn through(&mut self, through: Through) {
        let Phase::Running(running) = &mut self.phase else { return };
        match through {
            Through::Answered => running.lost = 0,
            Through::Lost if matches!(running.health, Health::Ready { .. }) => running.lost += 1,
            Through::Lost | Through::Withheld => {}
        }
    }

    fn changed(&mut self, now: ContinuousMs) {
        // What was known before says nothing: a machine that slept counts no time, and the new network may be a dead one.
        self.internet_since = None;
        if let Phase::Running(running) = &mut self.phase {
            running.changed = Some(now);
            running.lost = 0;
            if let Health::Unready { since } = &mut running.health {
                *since = now;
            }
        }
        self.hasten(now);
    }

    /// After an outage nobody should wait for what was decided during it. What somebody must change is no outage.
    fn hasten(&mut self, now: ContinuousMs) {
        let usage = self.last_exit == Some(Exit::Code { code: USAGE });
        if let Phase::Waiting { until } = &mut self.phase
            && self.unfit.is_none()
            && !usage
        {
            *until = (*until).min(now + ms(self.policy.settle));
        }
    }

    fn stop(&mut self, now: ContinuousMs) -> Option<Action> {
        match self.phase {
            Phase::Waiting { .. } => self.phase = Phase::Stopped,
            Phase::Running(_) => {
                self.phase = Phase::Stopping { since: now, why: None, killed: false };
                return Some(Action::Term);
            }
            Phase::Stopping { since, killed, .. } => {
                self.phase = Phase::Stopping { since, why: None, killed };
            }
            // Its answer comes first; whoever stops asks again.
            Phase::Starting | Phase::Stopped => {}
        }
        None
    }

    fn ended(&mut self, exit: Exit, now: ContinuousMs, chance: f64) -> Option<Action> {
        let running = match self.phase {
            Phase::Running(running) => running,
            Phase::Stopping { why: Some(_), .. } => {
                self.last_exit = Some(exit);
                self.phase = Phase::Starting;
                return Some(Action::Start);
            }
            Phase::Stopping { why: None, .. } => {
                self.last_exit = Some(exit);
                self.phase = Phase::Stopped;
                return None;
            }
            Phase::Waiting { .. } | Phase::Starting | Phase::Stopped => return None,
        };
        self.last_exit = Some(exit);
        let lived = Duration::from_millis(now.saturating_sub(running.since));
        let delay = match exit {
            Exit::Code { code: UPDATED } if lived >= UPDATED_AFTER => Duration::ZERO,
            Exit::Code { code: USAGE } => self.crashes.config_retry,
            Exit::Code { .. }
            | Exit::Signal { .. }
            | Exit::Killed { .. }
            | Exit::Replaced { .. }
            | Exit::NotStarted => {
                let ready_for = match running.health {
                    Health::Ready { since, .. } => now.saturating_sub(since),
                    Health::Unready { .. } => 0,
                };
                let decided = self.history.decide(
                    &self.crashes,
                    &restart::Ended {
                        exit,
                        asked: false,
                        ready_for: Duration::from_millis(ready_for),
                        now: Duration::from_millis(now),
                        chance,
                    },
                );
                match decided {
                    Decision::Stay => Duration::ZERO,
                    Decision::Again { delay, .. }
                    | Decision::Park { delay }
                    | Decision::Wait { delay, .. } => delay,
                }
            }
        };
        self.phase = Phase::Waiting { until: now + ms(delay) };
        self.due(now)
    }

    /// What is due now.
    fn due(&mut self, now: ContinuousMs) -> Option<Action> {
        match &mut self.phase {
            Phase::Waiting { until } if *until <= now => {
                self.phase = Phase::Starting;
                Some(Action::Start)
            }
            Phase::Stopping { since, killed, .. }
                if !*killed && now.saturating_sub(*since) >= ms(self.policy.stop_within) =>
            {
                *killed = true;
                Some(Action::Kill)
            }
            Phase::Running(running) => {
                let why = wanted(running, self.internet_since, &self.policy, now);
                if let Some(at) = running.changed
                    && now.saturating_sub(at) >= ms(self.policy.settle)
                {
                    running.changed = None;
                }
                let Some(why) = why else {
                    self.capped = false;
                    return None;
                };
                while self.restarts.front().is_some_and(|at| now.saturating_sub(*at) >= ms(HOUR)) {
                    self.restarts.pop_front();
                }
                self.capped = self.restarts.len() >= self.policy.per_hour;
                if self.capped {
                    return None;
                }
                self.restarts.push_back(now);
                self.phase = Phase::Stopping { since: now, why: Some(why), killed: false };
                Some(Action::Term)
            }
            Phase::Waiting { .. } | Phase::Starting | Phase::Stopping { .. } | Phase::Stopped => {
                None
            }
        }
    }

    /// Why it is being restarted, while it is.
    pub(crate) fn restarting(&self) -> Option<Why> {
        match self.phase {
            Phase::Stopping { why, .. } => why,
            Phase::Waiting { .. } | Phase::Starting | Phase::Running(_) | Phase::Stopped => None,
        }
    }

    /// How it stands, at a time and an hour. `before` is what was found the last time: a state is as old as its first sight.
    pub(crate) fn standing(
        &self,
        before: Option<&Standing>,
        now: ContinuousMs,
        hour: UnixMs,
    ) -> Standing {
        let recent = |at: &&ContinuousMs| now.saturating_sub(**at) < ms(HOUR);
        let mut standing = Standing {
            state: TunnelState::Stopped,
            since: hour,
            why: None,
            remedy: None,
            connections: 0,
            last_exit: self.last_exit,
            restarts: self.starts.saturating_sub(1),
            restarts_last_hour: self.restarts.iter().filter(recent).count(),
            capped: self.capped,
        };
        match self.phase {
            Phase::Waiting { .. } => {
                standing.state = TunnelState::Waiting;
                (standing.why, standing.remedy) = self.waits_for();
            }
            Phase::Starting => standing.state = TunnelState::Starting,
            Phase::Running(running) => {
                (standing.state, standing.connections) = match running.health {
                    Health::Ready { connections, .. } => (TunnelState::Ready, connections),
                    Health::Unready { .. } => (TunnelState::Unready, 0),
                };
                if self.capped {
                    standing.why = Some("restarted_too_often");
                    standing.remedy = Some(
                        "restarting does not help: look at its lines in the log, at the tunnel in Cloudflare's \
                         dashboard, and at www.cloudflarestatus.com",
                    );
                }
            }
            Phase::Stopping { why, .. } => {
                standing.state = TunnelState::Stopping;
                standing.why = why.map(Why::as_str);
            }
            Phase::Stopped => {}
        }
        if let Some(before) = before.filter(|before| before.state == standing.state) {
            standing.since = before.since;
        }
        standing
    }

    fn waits_for(&self) -> (Option<&'static str>, Option<&'static str>) {
        if let Some(unfit) = self.unfit {
            return (Some(unfit.as_str()), Some(unfit.remedy()));
        }
        match self.last_exit {
            Some(Exit::Code { code: USAGE }) => (
                Some("usage"),
                Some("it does not understand its arguments: update it to 2026.7.2 or newer"),
            ),
            Some(_) => (
                Some(ENDED),
                Some("it ends by itself and is started again: its lines in the log say why"),
            ),
            None => (None, None),
        }
    }
}

impl Unfit {
    /// The stable word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::PortTaken => "port_taken",
            Self::TokenMissing => "token_missing",
            Self::TokenExposed => "token_exposed",
            Self::NotStarted => "not_started",
        }
    }

    /// What to do about it.
    pub(crate) const fn remedy(self) -> &'static str {
        match self {
            Self::PortTaken => {
                "another program, perhaps of another user, listens on `metrics_port` of [cloudflared]: end it \
                 (`sudo lsof -nP -iTCP:PORT -sTCP:LISTEN` names it) or set another port"
            }
            Self::TokenMissing => {
                "put the tunnel's token into `token_file` of [cloudflared], and `chmod 600` it"
            }
            Self::TokenExposed => {
                "others may read `token_file` of [cloudflared]: `chmod 600` it, and roll the tunnel's token if \
                 somebody may have read it"
            }
            Self::NotStarted => "install cloudflared, or set `program` of [cloudflared]",
        }
    }
}

/// Whether, and why, one that runs is to be restarted.
fn wanted(
    running: &Running,
    internet_since: Option<ContinuousMs>,
    policy: &Policy,
    now: ContinuousMs,
) -> Option<Why> {
    let passed = |since: ContinuousMs, span: Duration| now.saturating_sub(since) >= ms(span);
    if let Health::Unready { since } = running.health {
        if running.changed.is_some_and(|at| passed(at, policy.settle)) {
            return Some(Why::Changed);
        }
        // During an outage nothing is its fault, and right after one it deserves a moment.
        let there = internet_since.is_some_and(|since| passed(since, policy.unready));
        if passed(since, policy.unready) && there {
            return Some(Why::Unready);
        }
    }
    (running.lost >= policy.lost).then_some(Why::Lost)
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
