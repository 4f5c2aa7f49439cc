//! What to do about a Messages that does not answer: pure. What was found goes in, what to do comes out.
//!
//! ```text
//! watching ──asked in vain──▶ pausing ──bridges are still──▶ climbing ──answers, twice──▶ watching
//!     ▲                          │                              │
//!     └──── answers again ── degraded ◀──── not still, in vain, ─┘
//!                                           or too often
//! ```
//!
//! The ladder: ask it to quit, TERM, KILL, open it, close its windows; once more with its agents; then degraded, which
//! is told and watched. (facts on macOS: keeping Messages alive.)

use std::collections::VecDeque;
use std::time::Duration;

use router_client::clock::ContinuousMs;

use crate::pool::ms;
use crate::power::{Clocks, slept};

/// After a question without an answer, and after an answer that bridges do not believe.
const AGAIN: Duration = Duration::from_secs(1);
/// While a bridge says that Messages does not answer and it does answer us.
const SUSPECTED: Duration = Duration::from_secs(5);
/// How often it is looked whether Messages has ended, and asked whether it answers after it was opened.
const LOOK: Duration = Duration::from_millis(500);
/// A pause that took longer is reason to ask once more: what held it up may have been what held up Messages.
const LONG_PAUSE: Duration = Duration::from_secs(5);
/// So many answers in a row end a degradation.
const GOOD: u32 = 2;
/// The windows of the two caps.
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// Periods and caps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// An idle Messages is asked so often.
    pub(crate) probe_every: Duration,
    /// So many questions in a row without an answer are enough.
    pub(crate) failures: u32,
    /// How long a send that runs is waited for. Longer than the longest deadline of any.
    pub(crate) pause_within: Duration,
    /// How long it may take to quit when it was asked to.
    pub(crate) quit_within: Duration,
    /// How long after TERM.
    pub(crate) term_within: Duration,
    /// How long after KILL.
    pub(crate) kill_within: Duration,
    /// How long after it was opened it may take to answer.
    pub(crate) open_within: Duration,
    /// After a sleep nothing is judged and nothing is ended for so long: everything is slow then.
    pub(crate) wake_quiet: Duration,
    /// Restarts within an hour, and within a day.
    pub(crate) per_hour: u32,
    pub(crate) per_day: u32,
    /// After a ladder that was climbed in vain the next waits so long: the first, the second, all others.
    pub(crate) back_off: [Duration; 3],
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            probe_every: Duration::from_secs(20),
            failures: 2,
            pause_within: Duration::from_secs(75),
            // It was asked twice in vain before, and to quit is a question like those.
            quit_within: Duration::from_secs(5),
            term_within: Duration::from_secs(3),
            kill_within: Duration::from_secs(3),
            open_within: Duration::from_secs(20),
            wake_quiet: Duration::from_secs(30),
            per_hour: 3,
            per_day: 10,
            back_off: [Duration::from_mins(5), Duration::from_mins(15), Duration::from_hours(1)],
        }
    }
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Messages has answered, whatever it said.
    Fine,
    /// There is no Messages (-600).
    NotRunning,
    /// It is there and silent (-1712).
    Hung,
    /// It went away under the question (-609).
    Lost,
    /// osascript itself hangs: macOS asks on the screen whether it may.
    Withheld,
    /// It may not (-1743, -1744).
    Denied,
    /// It could not be asked.
    Unasked,
}

impl Answer {
    /// Whether restarting Messages may help.
    const fn is_sick(self) -> bool {
        match self {
            Self::NotRunning | Self::Hung | Self::Lost => true,
            Self::Fine | Self::Withheld | Self::Denied | Self::Unasked => false,
        }
    }
}

/// Why Messages is degraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// It was restarted, with its agents, and does not answer.
    InVain,
    /// It was restarted as often as is allowed.
    TooOften,
    /// It does not end, not even by KILL.
    NotEnded,
    /// A bridge did not hold still.
    NotStill,
    /// macOS asks something on the screen.
    Withheld,
    /// It may not be controlled.
    Denied,
    /// osascript cannot be run.
    Unasked,
}

impl Stuck {
    /// The stable word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::InVain => "restarted_in_vain",
            Self::TooOften => "restarted_too_often",
            Self::NotEnded => "does_not_end",
            Self::NotStill => "bridges_not_paused",
            Self::Withheld => "question_on_screen",
            Self::Denied => "automation_denied",
            Self::Unasked => "cannot_be_asked",
        }
    }

    /// What to do about it.
    pub(crate) const fn remedy(self) -> &'static str {
        match self {
            Self::InVain => {
                "look at this Mac's screen for a question of Messages or of macOS; restart the Mac if there is none"
            }
            Self::TooOften => {
                "Messages fails again and again: look at this Mac's screen, then open Messages or restart the Mac"
            }
            Self::NotEnded => "Messages cannot be ended, not even by KILL: restart the Mac",
            Self::NotStill => {
                "a bridge did not stop sending so that Messages could be restarted: restart that phone"
            }
            Self::Withheld => {
                "look at this Mac's screen: macOS asks whether Switchboard may control Messages; answer it"
            }
            Self::Denied => {
                "in System Settings → Privacy & Security → Automation, allow Switchboard to control Messages"
            }
            Self::Unasked => {
                "osascript, pgrep, kill or open cannot be run: see the log and [messages_app]"
            }
        }
    }
}

/// Something that takes a while. There is never more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Job {
    /// Ask Messages something harmless, without starting it.
    Probe,
    /// Ask it to quit.
    Quit,
    /// Look whether it runs.
    Look,
    /// End it by a signal that it may refuse.
    Term,
    /// End it.
    Kill,
    /// End its agents, which launchd starts again.
    Agents,
    /// Open it, in the background.
    Open,
    /// Close its windows.
    Windows,
}

impl Job {
    /// Whether it does something to Messages.
    pub(crate) const fn is_step(self) -> bool {
        match self {
            Self::Probe | Self::Look => false,
            Self::Quit | Self::Term | Self::Kill | Self::Agents | Self::Open | Self::Windows => {
                true
            }
        }
    }

    /// The stable word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Quit => "quit",
            Self::Look => "look",
            Self::Term => "term",
            Self::Kill => "kill",
            Self::Agents => "agents",
            Self::Open => "open",
            Self::Windows => "windows",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time passed.
    Tick,
    /// The question came to this.
    Answered(Answer),
    /// Whether there is a Messages; none where that could not be seen.
    Looked(Option<bool>),
    /// A step was taken, whatever came of it.
    Stepped,
}

/// What the bridges of this host say of themselves.
#[expect(clippy::struct_excessive_bools, reason = "four facts that are asked for one by one")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    /// One of them finds that Messages does not answer.
    pub(crate) suspected: bool,
    /// One of them has an osascript that has run for so long that Messages may be what holds it up.
    pub(crate) stuck: bool,
    /// None has an osascript that runs, unless that one is past its own deadline.
    pub(crate) quiet: bool,
    /// The same, and none will start one.
    pub(crate) still: bool,
}

impl View {
    /// Whether a bridge has reason to think that Messages does not answer.
    const fn doubts(self) -> bool {
        self.suspected || self.stuck
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// This, and tell what came of it.
    Run(Job),
    /// Have all bridges start nothing, or go on.
    Pause(bool),
    /// People must know.
    Tell(News),
}

/// What people must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// It does not answer, and is about to be restarted.
    Began(Answer),
    /// It answers again after so many milliseconds without.
    Recovered {
        /// From the first question in vain.
        after_ms: u64,
    },
    /// It answers again, and nobody has restarted it.
    CameBack,
    /// It does not answer, and nothing more is done for now.
    GaveUp(Stuck),
}

/// How it stands, for the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not asked yet.
    Unknown,
    Ok,
    Recovering,
    Degraded(Stuck),
}

/// Questions in vain, in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bad {
    answer: Answer,
    times: u32,
    since: ContinuousMs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rung {
    /// End it by this job; looked for from then on, until.
    End {
        job: Job,
        until: Option<u64>,
        look_at: u64,
    },
    Agents,
    Open,
    /// Opened: it is asked until it answers.
    Answer {
        until: u64,
        at: u64,
    },
    Windows {
        until: u64,
    },
    /// The windows are closed: it is asked once more.
    Prove {
        until: u64,
        at: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Climb {
    /// Since when it does not answer.
    since: ContinuousMs,
    /// The second round ends the agents too.
    agents: bool,
    /// This round was counted.
    counted: bool,
    /// The next step must be allowed by then.
    allowed_by: u64,
    rung: Rung,
}

/// Whether it must be asked once more before it is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    No,
    Due,
    Done,
}

/// Times are of the awake clock, so that a sleep in between uses none of them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Watching { at: u64, bad: Option<Bad> },
    Pausing { from: u64, bad: Bad, ask: Ask },
    Climbing(Climb),
    Degraded { stuck: Stuck, at: u64, bad: Option<Bad>, good: u32 },
}

/// The keeper of one Messages.
#[derive(Debug)]
pub(crate) struct Keeper {
    policy: Policy,
    state: State,
    job: Option<Job>,
    /// It has answered, ever.
    known: bool,
    /// Restarts of the last day, by the continuous clock.
    restarts: VecDeque<ContinuousMs>,
    /// Ladders in a row that were climbed in vain, and when (continuous) the next may be.
    in_vain: usize,
    not_before: ContinuousMs,
    /// After a sleep: until when (awake) nothing is judged or ended.
    quiet_until: u64,
    before: Option<Clocks>,
}

impl Keeper {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::Watching { at: 0, bad: None },
            job: None,
            known: false,
            restarts: VecDeque::new(),
            in_vain: 0,
            not_before: 0,
            quiet_until: 0,
            before: None,
        }
    }

    /// Restarts of an earlier life, by how long ago they were; the oldest first. They count for the caps: a supervisor
    /// that ends again and again must not be a way around them.
    pub(crate) fn remember(&mut self, ages: impl Iterator<Item = Duration>, now: Clocks) {
        // What was before the machine started counts as if it were of that moment: longer, never shorter.
        self.restarts = ages.map(|age| now.continuous.saturating_sub(ms(age))).collect();
    }

    /// Goes by another policy from now on; a ladder that is being climbed is climbed to its end.
    pub(crate) fn retune(&mut self, policy: Policy, now: Clocks) {
        let soonest = now.awake.saturating_add(ms(policy.probe_every));
        match &mut self.state {
            State::Watching { at, .. } | State::Degraded { at, .. } => *at = (*at).min(soonest),
            State::Pausing { .. } | State::Climbing(_) => {}
        }
        self.policy = policy;
    }

    /// When it was last restarted, if it was.
    pub(crate) fn last_restart(&self) -> Option<ContinuousMs> {
        self.restarts.back().copied()
    }

    /// How it stands.
    pub(crate) fn standing(&self) -> Standing {
        match &self.state {
            State::Watching { .. } if self.known => Standing::Ok,
            State::Watching { .. } => Standing::Unknown,
            State::Pausing { .. } | State::Climbing(_) => Standing::Recovering,
            State::Degraded { stuck, .. } => Standing::Degraded(*stuck),
        }
    }

    /// Restarts within the last hour.
    pub(crate) fn restarts_last_hour(&self, now: Clocks) -> u32 {
        self.restarts_within(HOUR, now)
    }

    fn restarts_within(&self, window: Duration, now: Clocks) -> u32 {
        let since = now.continuous.saturating_sub(ms(window));
        // A restart that is exactly as old as the window is out of it.
        let inside = self.restarts.iter().filter(|at| **at > since || now.continuous < ms(window));
        u32::try_from(inside.count()).unwrap_or(u32::MAX)
    }

    fn may_restart(&self, now: Clocks) -> bool {
        self.restarts_within(HOUR, now) < self.policy.per_hour
            && self.restarts_within(DAY, now) < self.policy.per_day
    }

    /// Takes in what happened, and says what to do.
    pub(crate) fn step(&mut self, event: Event, view: View, now: Clocks) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.notice_sleep(now);
        match event {
            Event::Tick => {}
            Event::Answered(answer) => {
                self.job = None;
                self.known |= answer == Answer::Fine;
                self.answered(answer, view, now, &mut effects);
            }
            Event::Looked(runs) => {
                self.job = None;
                self.looked(runs, now, &mut effects);
            }
            Event::Stepped => {
                self.job = None;
                self.stepped(now);
            }
        }
        if self.job.is_none() {
            self.job = self.next(view, now, &mut effects);
            effects.extend(self.job.map(Effect::Run));
        }
        effects
    }

    fn notice_sleep(&mut self, now: Clocks) {
        if self.before.is_some_and(|before| slept(before, now).is_some()) {
            self.quiet_until = now.awake.saturating_add(ms(self.policy.wake_quiet));
            // What went wrong before and while it slept says nothing about now.
            match &mut self.state {
                State::Watching { bad, .. } | State::Degraded { bad, .. } => *bad = None,
                State::Pausing { ask, .. } => *ask = Ask::Due,
                State::Climbing(_) => {}
            }
        }
        self.before = Some(now);
    }

    /// Whether something may be done to Messages now.
    fn is_clear(&self, view: View, now: Clocks) -> bool {
        view.still && now.awake >= self.quiet_until
    }

    /// What to do next, when nothing is being done.
    fn next(&mut self, view: View, now: Clocks, effects: &mut Vec<Effect>) -> Option<Job> {
        let awake = now.awake;
        let clear = self.is_clear(view, now);
        // A send that takes its usual time is not disturbed by a question, and says nothing against Messages.
        let may_ask = (view.quiet || view.stuck) && awake >= self.quiet_until;
        match &mut self.state {
            State::Watching { at, bad } => {
                // A bridge that cannot reach it is a reason to ask at once.
                let early =
                    view.doubts() && bad.is_none() && awake.saturating_add(ms(SUSPECTED)) < *at;
                if early {
                    *at = awake;
                }
                (may_ask && awake >= *at).then_some(Job::Probe)
            }
            State::Degraded { at, .. } => (may_ask && awake >= *at).then_some(Job::Probe),
            State::Pausing { from, bad, ask } => {
                let waited = awake.saturating_sub(*from);
                if !clear {
                    if awake >= self.quiet_until && waited >= ms(self.policy.pause_within) {
                        self.give_up(Stuck::NotStill, now, effects);
                    }
                    return None;
                }
                if waited > ms(LONG_PAUSE) && *ask == Ask::No {
                    *ask = Ask::Due;
                }
                if *ask == Ask::Due {
                    return Some(Job::Probe);
                }
                let bad = *bad;
                self.climb(bad, now);
                self.next(view, now, effects)
            }
            State::Climbing(climb) => {
                let job = match &mut climb.rung {
                    Rung::End { until: Some(_), look_at, .. } => {
                        return (awake >= *look_at).then_some(Job::Look);
                    }
                    Rung::Answer { at, .. } | Rung::Prove { at, .. } => {
                        if view.quiet {
                            return (awake >= *at).then_some(Job::Probe);
                        }
                        if awake >= self.quiet_until.max(climb.allowed_by) {
                            self.give_up(Stuck::NotStill, now, effects);
                        }
                        return None;
                    }
                    Rung::End { job, until: None, .. } => *job,
                    Rung::Agents => Job::Agents,
                    Rung::Open => Job::Open,
                    Rung::Windows { .. } => Job::Windows,
                };
                if !clear {
                    if awake >= self.quiet_until.max(climb.allowed_by) {
                        self.give_up(Stuck::NotStill, now, effects);
                    }
                    return None;
                }
                if !climb.counted {
                    climb.counted = true;
                    self.restarts.push_back(now.continuous);
                    let kept = usize::try_from(self.policy.per_day).unwrap_or(usize::MAX);
                    while self.restarts.len() > kept {
                        self.restarts.pop_front();
                    }
                }
                if let Rung::End { job, until, look_at } = &mut climb.rung {
                    let within = match job {
                        Job::Quit => self.policy.quit_within,
                        Job::Term => self.policy.term_within,
                        Job::Probe
                        | Job::Look
                        | Job::Kill
                        | Job::Agents
                        | Job::Open
                        | Job::Windows => self.policy.kill_within,
                    };
                    *until = Some(awake.saturating_add(ms(within)));
                    *look_at = awake;
                }
                Some(job)
            }
        }
    }

    fn answered(&mut self, answer: Answer, view: View, now: Clocks, effects: &mut Vec<Effect>) {
        let awake = now.awake;
        let every = ms(self.policy.probe_every);
        if awake < self.quiet_until && !matches!(self.state, State::Climbing(_)) {
            // It was asked before the sleep, or during it.
            return;
        }
        match &mut self.state {
            State::Watching { at, bad } => {
                if answer == Answer::Fine {
                    *bad = None;
                    *at = awake.saturating_add(if view.doubts() { ms(SUSPECTED) } else { every });
                    return;
                }
                let counted = count(*bad, answer, now);
                *bad = Some(counted);
                *at = awake.saturating_add(ms(AGAIN));
                // What a bridge has met on the same road counts as one, also what it is just meeting.
                let met = u32::from(view.doubts() && answer.is_sick());
                if counted.times.saturating_add(met) >= self.policy.failures {
                    self.act(counted, now, effects);
                }
            }
            State::Degraded { stuck, at, bad, good } => {
                *at = awake.saturating_add(every);
                if answer == Answer::Fine {
                    *bad = None;
                    *good = good.saturating_add(1);
                    *at = awake.saturating_add(ms(AGAIN));
                    if *good >= GOOD {
                        self.in_vain = 0;
                        self.state = State::Watching { at: awake.saturating_add(every), bad: None };
                        effects.push(Effect::Tell(News::CameBack));
                    }
                    return;
                }
                *good = 0;
                let counted = count(*bad, answer, now);
                *bad = Some(counted);
                if counted.times < self.policy.failures {
                    return;
                }
                if let Some(other) = untreatable(answer) {
                    if *stuck != other {
                        *stuck = other;
                        effects.push(Effect::Tell(News::GaveUp(other)));
                    }
                } else if now.continuous >= self.not_before && self.may_restart(now) {
                    self.act(counted, now, effects);
                }
            }
            State::Pausing { ask, .. } => {
                *ask = Ask::Done;
                if answer == Answer::Fine {
                    // It was busy, and is not any more.
                    effects.push(Effect::Pause(false));
                    effects.push(Effect::Tell(News::CameBack));
                    self.state = State::Watching { at: awake.saturating_add(every), bad: None };
                } else if let Some(stuck) = untreatable(answer) {
                    effects.push(Effect::Pause(false));
                    self.degrade(stuck, now, effects);
                }
            }
            State::Climbing(climb) => match climb.rung {
                Rung::Answer { until, .. } | Rung::Prove { until, .. }
                    if answer != Answer::Fine && awake < until =>
                {
                    let at = awake.saturating_add(ms(LOOK));
                    climb.rung = match climb.rung {
                        Rung::Prove { .. } => Rung::Prove { until, at },
                        Rung::End { .. }
                        | Rung::Agents
                        | Rung::Open
                        | Rung::Answer { .. }
                        | Rung::Windows { .. } => Rung::Answer { until, at },
                    };
                }
                Rung::Answer { until, .. } if answer == Answer::Fine => {
                    climb.allowed_by = awake.saturating_add(ms(self.policy.pause_within));
                    climb.rung = Rung::Windows { until };
                }
                Rung::Prove { .. } if answer == Answer::Fine => {
                    let after_ms = now.continuous.saturating_sub(climb.since);
                    self.in_vain = 0;
                    self.state = State::Watching { at: awake.saturating_add(every), bad: None };
                    effects.push(Effect::Pause(false));
                    effects.push(Effect::Tell(News::Recovered { after_ms }));
                }
                Rung::Answer { .. } | Rung::Prove { .. } => self.round_failed(now, effects),
                Rung::End { .. } | Rung::Agents | Rung::Open | Rung::Windows { .. } => {}
            },
        }
    }

    fn looked(&mut self, runs: Option<bool>, now: Clocks, effects: &mut Vec<Effect>) {
        let State::Climbing(climb) = &mut self.state else { return };
        let Rung::End { job, until: Some(until), look_at } = &mut climb.rung else { return };
        let allowed_by = now.awake.saturating_add(ms(self.policy.pause_within));
        if runs == Some(false) {
            climb.allowed_by = allowed_by;
            climb.rung = if climb.agents { Rung::Agents } else { Rung::Open };
        } else if now.awake < *until {
            *look_at = now.awake.saturating_add(ms(LOOK));
        } else {
            let next = match job {
                Job::Quit => Job::Term,
                Job::Term => Job::Kill,
                Job::Probe | Job::Look | Job::Kill | Job::Agents | Job::Open | Job::Windows => {
                    let stuck = if runs.is_none() { Stuck::Unasked } else { Stuck::NotEnded };
                    self.give_up(stuck, now, effects);
                    return;
                }
            };
            climb.allowed_by = allowed_by;
            climb.rung = Rung::End { job: next, until: None, look_at: 0 };
        }
    }

    fn stepped(&mut self, now: Clocks) {
        let State::Climbing(climb) = &mut self.state else { return };
        climb.allowed_by = now.awake.saturating_add(ms(self.policy.pause_within));
        match climb.rung {
            // The looks that follow tell what came of it.
            Rung::End { .. } | Rung::Answer { .. } | Rung::Prove { .. } => {}
            Rung::Agents => climb.rung = Rung::Open,
            Rung::Open => {
                let until = now.awake.saturating_add(ms(self.policy.open_within));
                climb.rung = Rung::Answer { until, at: now.awake };
            }
            Rung::Windows { until } => climb.rung = Rung::Prove { until, at: now.awake },
        }
    }

    /// Enough questions were in vain.
    fn act(&mut self, bad: Bad, now: Clocks, effects: &mut Vec<Effect>) {
        if let Some(stuck) = untreatable(bad.answer) {
            self.degrade(stuck, now, effects);
        } else if !self.may_restart(now) {
            self.degrade(Stuck::TooOften, now, effects);
        } else {
            effects.push(Effect::Tell(News::Began(bad.answer)));
            effects.push(Effect::Pause(true));
            self.state = State::Pausing { from: now.awake, bad, ask: Ask::No };
        }
    }

    fn climb(&mut self, bad: Bad, now: Clocks) {
        let rung = if bad.answer == Answer::NotRunning {
            Rung::Open
        } else {
            Rung::End { job: Job::Quit, until: None, look_at: 0 }
        };
        self.state = State::Climbing(Climb {
            since: bad.since,
            agents: false,
            counted: false,
            allowed_by: now.awake.saturating_add(ms(self.policy.pause_within)),
            rung,
        });
    }

    /// It was opened and does not answer: once more with the agents, if that is allowed.
    fn round_failed(&mut self, now: Clocks, effects: &mut Vec<Effect>) {
        let may = self.may_restart(now);
        match &mut self.state {
            State::Climbing(climb) if !climb.agents && may => {
                climb.agents = true;
                climb.counted = false;
                climb.allowed_by = now.awake.saturating_add(ms(self.policy.pause_within));
                climb.rung = Rung::End { job: Job::Quit, until: None, look_at: 0 };
            }
            State::Watching { .. }
            | State::Pausing { .. }
            | State::Climbing(_)
            | State::Degraded { .. } => self.give_up(Stuck::InVain, now, effects),
        }
    }

    /// Lets the bridges go on, and waits for a while before it is tried again.
    fn give_up(&mut self, stuck: Stuck, now: Clocks, effects: &mut Vec<Effect>) {
        let [.., last] = self.policy.back_off;
        let pause = self.policy.back_off.get(self.in_vain).copied().unwrap_or(last);
        self.in_vain = self.in_vain.saturating_add(1);
        self.not_before = now.continuous.saturating_add(ms(pause));
        effects.push(Effect::Pause(false));
        self.degrade(stuck, now, effects);
    }

    fn degrade(&mut self, stuck: Stuck, now: Clocks, effects: &mut Vec<Effect>) {
        let at = now.awake.saturating_add(ms(self.policy.probe_every));
        self.state = State::Degraded { stuck, at, bad: None, good: 0 };
        effects.push(Effect::Tell(News::GaveUp(stuck)));
    }
}

fn count(bad: Option<Bad>, answer: Answer, now: Clocks) -> Bad {
    match bad {
        // Silent, then gone: the same illness. What cannot be treated is another one.
        Some(bad) if bad.answer.is_sick() == answer.is_sick() => {
            Bad { answer, times: bad.times.saturating_add(1), ..bad }
        }
        Some(_) | None => Bad { answer, times: 1, since: now.continuous },
    }
}

fn untreatable(answer: Answer) -> Option<Stuck> {
    match answer {
        Answer::Withheld => Some(Stuck::Withheld),
        Answer::Denied => Some(Stuck::Denied),
        Answer::Unasked => Some(Stuck::Unasked),
        Answer::Fine | Answer::NotRunning | Answer::Hung | Answer::Lost => None,
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
