//! The pure parts of a supervisor together, for the simulation of whole hosts in `tests/`, and what must hold for each of
//! them whatever happens: every function panics when it does not. Time and chance are arguments. Not part of the API.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use protocol::link::{PhoneState, PowerLevel, PowerSource};
use protocol::pipe::{Heartbeat, Hello};
use protocol::{PROTOCOL, PhoneId, Reason};

use crate::messages_app::keeper::{Answer, Effect as Care, Event, Job, Keeper, View};
use crate::network::choice::{Chooser, Decision, Policy as Steadiness, Seen};
use crate::phone::{Effect, Input, Order, Phone, Settings};
use crate::plan::{Action, plan};
use crate::power::{Clocks, Judge, Limits, Reading};
use crate::restart::{Exit, Policy};

/// Jitter lengthens delays by up to a fifth, and a tick may be a moment late.
const LATE: Duration = Duration::from_secs(5);

/// The three clocks of a host, in milliseconds: two since its start, of which one stands still while it sleeps.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// Goes on while the machine sleeps.
    pub continuous: u64,
    /// Stands still while it does.
    pub awake: u64,
    /// When the supervisor was started, by the awake clock.
    pub since: u64,
}

impl Time {
    fn up(self) -> Duration {
        Duration::from_millis(self.awake.saturating_sub(self.since))
    }

    fn clocks(self) -> Clocks {
        Clocks { continuous: self.continuous, awake: self.awake }
    }
}

/// What a bridge's process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It says hello.
    Hello,
    /// It can send.
    Ready,
    /// It cannot: Messages does not answer.
    NotReady,
    /// It gives a sign of life, after so many turns.
    Beat(u64),
    /// It has ended with this status.
    Exited(i32),
    /// It was ended by a signal.
    Signalled,
}

/// What there is to do for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Start a bridge.
    Spawn(PhoneId),
    /// It has said hello: it must be told its lease.
    Greet(PhoneId),
    /// Ask a bridge to end.
    Ask(PhoneId),
    /// End a bridge.
    End(PhoneId),
    /// Go to another uplink.
    Switch(usize),
    /// Have the bridges start nothing, or go on.
    Pause(bool),
    /// Ask Messages, or look whether it runs.
    Probe,
    /// The same, without starting it.
    Look,
    /// Messages is opened.
    Open,
    /// Something else is done to Messages: an end, its agents, its windows. The second field: it may refuse.
    Step(&'static str, bool),
}

/// What the bridges of a host say of themselves.
#[expect(clippy::struct_excessive_bools, reason = "as the keeper's own view has them")]
#[derive(Debug, Clone, Copy)]
pub struct Bridges {
    /// One finds that Messages does not answer.
    pub suspected: bool,
    /// One has a script that runs for longer than usual.
    pub stuck: bool,
    /// None has a script that runs.
    pub quiet: bool,
    /// The same, and none will start one.
    pub still: bool,
}

/// What came of something that was done.
#[derive(Debug, Clone, Copy)]
pub enum Came {
    /// Time passed.
    Nothing,
    /// Messages answers.
    Fine,
    /// It is there and silent.
    Hung,
    /// There is none.
    NotRunning,
    /// Whether there is one.
    Runs(bool),
    /// A step was taken.
    Stepped,
}

/// A phone and what its restarts have been.
#[derive(Debug)]
struct Watched {
    phone: Phone,
    /// With which settings it runs.
    settings: u8,
    leaving: bool,
    /// When restarts without a wait for a cause were decided.
    restarts: VecDeque<Duration>,
    /// When it was parked last, until it is started.
    parked: Option<Duration>,
}

/// The pure parts of one supervisor's life.
#[derive(Debug)]
pub struct Supervisor {
    phones: BTreeMap<PhoneId, Watched>,
    judge: Judge,
    chooser: Chooser,
    switches: VecDeque<u64>,
    keeper: Keeper,
    /// When Messages was restarted, over all lives.
    cures: Vec<u64>,
    low: bool,
}

impl Supervisor {
    /// One that starts at `time`. `cures` are the restarts of Messages of its earlier lives.
    pub fn new(uplinks: usize, chosen: usize, cures: Vec<u64>, time: Time) -> Self {
        let mut keeper = Keeper::new(crate::messages_app::keeper::Policy::default());
        let ages =
            cures.iter().map(|at| Duration::from_millis(time.continuous.saturating_sub(*at)));
        keeper.remember(ages, time.clocks());
        Self {
            phones: BTreeMap::new(),
            judge: Judge::new(Limits::default()),
            chooser: Chooser::new(Steadiness::default(), uplinks, chosen),
            switches: VecDeque::new(),
            keeper,
            cures,
            low: false,
        }
    }

    /// The restarts of Messages so far, by the continuous clock.
    pub fn cures(&self) -> &[u64] {
        &self.cures
    }

    /// Makes the phones what the configuration says: each with the number of its settings.
    pub fn configure(&mut self, wanted: &BTreeMap<PhoneId, u8>, time: Time) -> Vec<Act> {
        self.phones.retain(|_, watched| !(watched.leaving && watched.phone.is_stopped()));
        let running: BTreeMap<PhoneId, u8> =
            self.phones.iter().map(|(phone, watched)| (phone.clone(), watched.settings)).collect();
        let mut acts = Vec::new();
        for (phone, action) in plan(wanted, &running) {
            let order = match action {
                Action::Start => {
                    let policy = Policy::default();
                    let settings = Settings { policy, ..Settings::default() };
                    let watched = Watched {
                        phone: Phone::new(phone.clone(), settings),
                        settings: wanted.get(&phone).copied().unwrap_or_default(),
                        leaving: false,
                        restarts: VecDeque::new(),
                        parked: None,
                    };
                    self.phones.insert(phone.clone(), watched);
                    acts.extend(self.step(&phone, Input::PowerLow(self.low), time, 0.0));
                    Order::Start
                }
                Action::Replace => Order::Restart,
                Action::Stop => Order::Stop,
            };
            if let Some(watched) = self.phones.get_mut(&phone) {
                watched.settings = wanted.get(&phone).copied().unwrap_or(watched.settings);
                if std::mem::replace(&mut watched.leaving, action == Action::Stop) {
                    // It was asked already.
                    continue;
                }
                // An order by hand forgives.
                watched.restarts.clear();
                watched.parked = None;
            }
            acts.extend(self.step(&phone, Input::Order(order), time, 0.0));
        }
        for phone in wanted.keys() {
            assert!(self.phones.contains_key(phone), "{phone} is wanted and was not planned");
        }
        acts
    }

    /// Takes in what a bridge has said.
    pub fn said(&mut self, phone: &PhoneId, said: Said, time: Time, chance: f64) -> Vec<Act> {
        let input = match said {
            Said::Hello => Input::Hello(Hello {
                protocol: PROTOCOL,
                version: "0".to_owned(),
                phone: phone.clone(),
                journal: "j".to_owned(),
                last_seq: 0,
                acked_seq: 0,
                pid: 1,
            }),
            Said::Ready => Input::Ready,
            Said::NotReady => Input::NotReady(vec![protocol::pipe::NotReady {
                reason: Reason::MessagesNotRunning,
                remedy: String::new(),
            }]),
            Said::Beat(turns) => Input::Heartbeat(Heartbeat { turns, ..Heartbeat::default() }),
            Said::Exited(code) => Input::Ended(Exit::Code { code }),
            Said::Signalled => Input::Ended(Exit::Signal { signal: 9 }),
        };
        self.step(phone, input, time, chance)
    }

    /// Time passed for the phones.
    pub fn tick(&mut self, time: Time, chance: f64) -> Vec<Act> {
        let due: Vec<PhoneId> = self
            .phones
            .iter()
            .filter(|(_, watched)| watched.phone.deadline().is_some_and(|at| at <= time.up()))
            .map(|(phone, _)| phone.clone())
            .collect();
        let mut acts = Vec::new();
        for phone in due {
            acts.extend(self.step(&phone, Input::Tick, time, chance));
        }
        let policy = Policy::default();
        let longest = policy.parked_retry + policy.parked_retry / 5 + LATE;
        for (phone, watched) in &self.phones {
            if let Some(parked) = watched.parked {
                let since = time.up().saturating_sub(parked);
                assert!(since <= longest, "{phone} is parked for {since:?} and was not tried");
            }
        }
        acts
    }

    fn step(&mut self, phone: &PhoneId, input: Input, time: Time, chance: f64) -> Vec<Act> {
        let (now, policy) = (time.up(), Policy::default());
        let Some(watched) = self.phones.get_mut(phone) else { return Vec::new() };
        let mut acts = Vec::new();
        for effect in watched.phone.step(input, now, chance) {
            match effect {
                Effect::Spawn => {
                    if let Some(parked) = watched.parked.take() {
                        let waited = now.saturating_sub(parked);
                        assert!(
                            waited >= policy.parked_retry,
                            "{phone} was tried after {waited:?}"
                        );
                    }
                    acts.push(Act::Spawn(phone.clone()));
                }
                Effect::Greeted => acts.push(Act::Greet(phone.clone())),
                Effect::Say(_) | Effect::Term => acts.push(Act::Ask(phone.clone())),
                Effect::Kill => acts.push(Act::End(phone.clone())),
                Effect::Restarting { .. } => {
                    watched.restarts.push_back(now);
                    watched.restarts.retain(|at| now.saturating_sub(*at) < policy.window);
                    let restarts = watched.restarts.len();
                    assert!(restarts <= policy.intensity, "{phone}: {restarts} restarts");
                }
                Effect::Parked { .. } => watched.parked = Some(now),
                Effect::Missed | Effect::Waits { .. } => {}
            }
        }
        if watched.phone.report().state == PhoneState::Ready {
            // Only so long as it is ready can be forgiven, and then it may be restarted as if for the first time.
            assert!(watched.parked.is_none(), "{phone} is ready and parked");
        }
        acts
    }

    /// How a phone is, as the router is told; `None` when it is not configured.
    pub fn phone(&self, phone: &PhoneId) -> Option<(PhoneState, Vec<Reason>)> {
        let watched = self.phones.get(phone).filter(|watched| !watched.leaving)?;
        let report = watched.phone.report();
        Some((report.state, report.not_ready.iter().map(|not| not.reason).collect()))
    }

    /// Whether nothing that happened to a phone's bridge is remembered against it.
    pub fn is_forgiven(&self, phone: &PhoneId) -> bool {
        self.phones.get(phone).is_some_and(|watched| watched.phone.report().tries == 0)
    }

    /// What the machine runs on was read. Answers the level.
    pub fn power(&mut self, source: PowerSource, percent: u8, time: Time) -> PowerLevel {
        self.judge.take(Reading::of(source, percent), time.continuous);
        let level = self.judge.level();
        let low = level == PowerLevel::Low;
        if low != self.low {
            self.low = low;
            let phones: Vec<PhoneId> = self.phones.keys().cloned().collect();
            for phone in phones {
                let acts = self.step(&phone, Input::PowerLow(low), time, 0.0);
                assert_eq!(acts, [], "what is started is finished");
            }
        }
        level
    }

    /// An uplink was probed.
    pub fn probed(&mut self, uplink: usize, answers: bool, time: Time) -> Option<Act> {
        let now = time.continuous;
        let seen = if answers { Seen::Good } else { Seen::Nothing };
        self.chooser.saw(uplink, seen, now);
        let Decision::Switch { to, .. } = self.chooser.decide(now) else { return None };
        self.chooser.switched(to, now);
        self.switches.push_back(now);
        let policy = Steadiness::default();
        let window = crate::pool::ms(policy.window);
        while self.switches.front().is_some_and(|at| now.saturating_sub(*at) >= window) {
            self.switches.pop_front();
        }
        // One may be the rescue from a lock.
        let count = self.switches.len();
        assert!(count <= policy.switches_max + 1, "{count} switches within {:?}", policy.window);
        Some(Act::Switch(to))
    }

    /// Something has come of Messages.
    pub fn messages(&mut self, came: Came, bridges: Bridges, time: Time) -> Vec<Act> {
        let event = match came {
            Came::Nothing => Event::Tick,
            Came::Fine => Event::Answered(Answer::Fine),
            Came::Hung => Event::Answered(Answer::Hung),
            Came::NotRunning => Event::Answered(Answer::NotRunning),
            Came::Runs(runs) => Event::Looked(Some(runs)),
            Came::Stepped => Event::Stepped,
        };
        let Bridges { suspected, stuck, quiet, still } = bridges;
        let view = View { suspected, stuck, quiet, still };
        let before = self.keeper.last_restart();
        let effects = self.keeper.step(event, view, time.clocks());
        if let Some(at) = self.keeper.last_restart().filter(|at| Some(*at) != before) {
            self.cures.push(at);
            let within = |ms: u64| {
                self.cures.iter().filter(|cure| time.continuous.saturating_sub(**cure) < ms).count()
            };
            let (hour, day) = (within(3_600_000), within(86_400_000));
            assert!(
                hour <= 3 && day <= 10,
                "Messages was restarted {hour} times in an hour, {day} in a day"
            );
        }
        let mut acts = Vec::new();
        for effect in effects {
            match effect {
                Care::Run(Job::Probe) => acts.push(Act::Probe),
                Care::Run(Job::Look) => acts.push(Act::Look),
                Care::Run(Job::Open) => acts.push(Act::Open),
                Care::Run(job) => acts.push(Act::Step(job.as_str(), job != Job::Kill)),
                Care::Pause(pause) => acts.push(Act::Pause(pause)),
                Care::Tell(_) => {}
            }
        }
        acts
    }
}
