//! Restart or give up: pure. Facts in (how the bridge ended, how long it was ready, when, a random number), a decision
//! that carries its reason out.
//!
//! launchd never gives up and has no back-off, so all of it is here. A bridge that ends is started again after 0, 1, 2,
//! 5, 10, 30, then 60 s; more than five restarts in ten minutes park the phone (one try every five minutes), so that
//! its traffic goes elsewhere; ten minutes ready forgive everything.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

/// Delay before the n-th restart in a row; the last one repeats.
const LADDER: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
];

/// Delays are lengthened by up to this share, so that several phones do not restart in step.
const JITTER: f64 = 0.2;

/// What the operator may set about restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// More restarts than this within [`Policy::window`] park the phone.
    pub(crate) intensity: usize,
    /// The window in which restarts are counted.
    pub(crate) window: Duration,
    /// Longest delay before a restart that is not parked.
    pub(crate) delay_max: Duration,
    /// How often a parked phone is tried.
    pub(crate) parked_retry: Duration,
    /// This long ready forgives all earlier restarts.
    pub(crate) forgive_after: Duration,
    /// How often a bridge that lacks a permission (exit 77) is tried: the grant may come at any time, and a probe of
    /// the permission costs little.
    pub(crate) permission_retry: Duration,
    /// How often a bridge with a bad configuration (exit 78) is tried: the file or the program must change first.
    pub(crate) config_retry: Duration,
    /// How often a bridge whose Messages.app or account is unusable (exit 69) is tried.
    pub(crate) unavailable_retry: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            intensity: 5,
            window: Duration::from_mins(10),
            delay_max: Duration::from_mins(1),
            parked_retry: Duration::from_mins(5),
            forgive_after: Duration::from_mins(10),
            permission_retry: Duration::from_mins(1),
            config_retry: Duration::from_mins(5),
            unavailable_retry: Duration::from_secs(30),
        }
    }
}

/// How a bridge ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub(crate) enum Exit {
    /// By itself, with this status.
    Code {
        /// The exit status; see `sysexits(3)`.
        code: i32,
    },
    /// By a signal.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// Killed by us because it gave no sign of life, did not read, or spoke another protocol.
    Killed {
        /// Which of these.
        why: KillReason,
    },
    /// In order, because we had asked it to for this reason.
    Replaced {
        /// Which one.
        why: KillReason,
    },
    /// It could not be started at all.
    NotStarted,
}

/// Why the supervisor killed a bridge, or asked it to end so that another takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KillReason {
    /// No `hello` within the start deadline.
    NoHello,
    /// Its heartbeats stopped.
    NoHeartbeat,
    /// Its heartbeats go on but its loop does not.
    NoProgress,
    /// It did not read its stdin for the write deadline.
    NotReading,
    /// It closed its stdout while it goes on running: nothing it does would be seen.
    ClosedStdout,
    /// Its `hello` names another protocol version.
    OtherProtocol,
    /// Its `hello` names another phone than the one that it was started for.
    OtherPhone,
    /// It used more memory than a limit: killed above the hard one, replaced above the soft one.
    Memory,
    /// It had more of a processor than a limit, for too long: killed above the hard one, replaced above the soft one.
    Cpu,
}

impl Exit {
    /// In one word, for a metric: there are few of them.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Code { code: 0 } => "ended",
            Self::Code { code: EX_TEMPFAIL } => "try_again",
            Self::Code { code: EX_UNAVAILABLE } => Cause::Unavailable.as_str(),
            Self::Code { code: EX_NOPERM } => Cause::Permission.as_str(),
            Self::Code { code: EX_CONFIG } => Cause::Configuration.as_str(),
            Self::Code { .. } => "failed",
            Self::Signal { .. } => "signal",
            Self::Killed { why } => match why {
                KillReason::NoHello => "no_hello",
                KillReason::NoHeartbeat => "no_heartbeat",
                KillReason::NoProgress => "no_progress",
                KillReason::NotReading => "not_reading",
                KillReason::ClosedStdout => "closed_stdout",
                KillReason::OtherProtocol => "other_protocol",
                KillReason::OtherPhone => "other_phone",
                KillReason::Memory => "memory_hard",
                KillReason::Cpu => "cpu_hard",
            },
            Self::Replaced { why: KillReason::Memory } => "memory_soft",
            Self::Replaced { why: KillReason::Cpu } => "cpu_soft",
            Self::Replaced { .. } => "replaced",
            Self::NotStarted => "not_started",
        }
    }
}

/// What to do about a bridge that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Leave it stopped: it was asked to.
    Stay,
    /// Start it again after `delay`; this is restart number `nth` in a row.
    Again {
        /// How long to wait first.
        delay: Duration,
        /// Number of this restart since the last forgiveness, from 1.
        nth: u32,
    },
    /// Too many restarts: try again after `delay`, and tell everybody.
    Park {
        /// How long until the next try.
        delay: Duration,
    },
    /// The cause lies outside the bridge: try again after `delay`, without counting it as a crash.
    Wait {
        /// How long until the next try.
        delay: Duration,
        /// What is waited for.
        cause: Cause,
    },
}

/// What must change outside the bridge before it can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// Exit 69: Messages.app or the account is unusable.
    Unavailable,
    /// Exit 77: Full Disk Access or Automation is missing.
    Permission,
    /// Exit 78: its configuration is bad.
    Configuration,
}

impl Cause {
    /// As metrics have it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Permission => "permission",
            Self::Configuration => "configuration",
        }
    }
}

/// Exit status of a bridge that may be tried again: its lock is held, or its disk is full.
pub(crate) const EX_TEMPFAIL: i32 = 75;
/// Exit status of a bridge whose Messages.app or account is unusable.
const EX_UNAVAILABLE: i32 = 69;
/// Exit status of a bridge that lacks a permission.
const EX_NOPERM: i32 = 77;
/// Exit status of a bridge with a bad configuration.
const EX_CONFIG: i32 = 78;

/// What is remembered about one phone's restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct History {
    /// When counted restarts were decided, oldest first; never longer than the intensity.
    recent: VecDeque<Duration>,
    /// Restarts since the last forgiveness.
    tries: u32,
    /// Set when the phone was parked, until it is forgiven.
    parked: bool,
}

/// The facts about one end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ended {
    /// How it ended.
    pub(crate) exit: Exit,
    /// Whether it had been asked to stop.
    pub(crate) asked: bool,
    /// How long it had been ready without a break when it ended.
    pub(crate) ready_for: Duration,
    /// Now, as time since the supervisor started.
    pub(crate) now: Duration,
    /// A random number in 0..1 for the jitter.
    pub(crate) chance: f64,
}

impl History {
    /// Forgets everything: the operator asked for a start by hand.
    pub(crate) fn forgive(&mut self) {
        *self = Self::default();
    }

    /// Restarts since the last forgiveness.
    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }

    /// Decides what to do about a bridge that ended, and remembers it.
    pub(crate) fn decide(&mut self, policy: &Policy, ended: &Ended) -> Decision {
        if ended.ready_for >= policy.forgive_after {
            self.forgive();
        }
        if ended.asked {
            return Decision::Stay;
        }
        let cause = match ended.exit {
            Exit::Code { code: EX_UNAVAILABLE } => {
                Some((policy.unavailable_retry, Cause::Unavailable))
            }
            Exit::Code { code: EX_NOPERM } => Some((policy.permission_retry, Cause::Permission)),
            Exit::Code { code: EX_CONFIG } => Some((policy.config_retry, Cause::Configuration)),
            // 75 (try again) takes the ladder too: its first steps are "now" and "in a second", and a lock that a
            // dying bridge still holds is free by then.
            Exit::Code { .. }
            | Exit::Signal { .. }
            | Exit::Killed { .. }
            | Exit::Replaced { .. }
            | Exit::NotStarted => None,
        };
        if let Some((delay, cause)) = cause {
            return Decision::Wait { delay: lengthened(delay, ended.chance), cause };
        }
        while self.recent.front().is_some_and(|&at| ended.now.saturating_sub(at) >= policy.window) {
            self.recent.pop_front();
        }
        if self.parked || self.recent.len() >= policy.intensity {
            self.parked = true;
            return Decision::Park { delay: lengthened(policy.parked_retry, ended.chance) };
        }
        self.recent.push_back(ended.now);
        let step = usize::try_from(self.tries).unwrap_or(usize::MAX).min(LADDER.len() - 1);
        let delay = LADDER.get(step).copied().unwrap_or(policy.delay_max).min(policy.delay_max);
        self.tries = self.tries.saturating_add(1);
        Decision::Again { delay: lengthened(delay, ended.chance), nth: self.tries }
    }
}

/// `delay` and up to a fifth more.
fn lengthened(delay: Duration, chance: f64) -> Duration {
    let chance = if chance.is_finite() { chance.clamp(0.0, 1.0) } else { 0.0 };
    delay.mul_f64(1.0 + JITTER * chance)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_end_has_a_word_of_its_own_for_the_metrics() {
        let exits = [
            (Exit::Code { code: 0 }, "ended"),
            (Exit::Code { code: 1 }, "failed"),
            (Exit::Code { code: 69 }, "unavailable"),
            (Exit::Code { code: 75 }, "try_again"),
            (Exit::Code { code: 77 }, "permission"),
            (Exit::Code { code: 78 }, "configuration"),
            (Exit::Signal { signal: 11 }, "signal"),
            (Exit::Killed { why: KillReason::NoHeartbeat }, "no_heartbeat"),
            (Exit::Killed { why: KillReason::Memory }, "memory_hard"),
            (Exit::Replaced { why: KillReason::Memory }, "memory_soft"),
            (Exit::NotStarted, "not_started"),
        ];
        for (exit, word) in exits {
            assert_eq!(exit.reason(), word, "{exit:?}");
        }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn crash(now: Duration) -> Ended {
        Ended {
            exit: Exit::Code { code: 1 },
            asked: false,
            ready_for: Duration::ZERO,
            now,
            chance: 0.0,
        }
    }

    #[test]
    fn a_first_crash_is_restarted_at_once_and_later_ones_wait_longer() {
        let policy = Policy { intensity: 100, ..Policy::default() };
        let mut history = History::default();
        let delays: Vec<u64> = (0..9)
            .map(|n| {
                let decision = history.decide(&policy, &crash(secs(n)));
                let Decision::Again { delay, .. } = decision else { panic!("{decision:?}") };
                delay.as_secs()
            })
            .collect();
        assert_eq!(delays, [0, 1, 2, 5, 10, 30, 60, 60, 60]);
    }

    #[test]
    fn a_crash_loop_is_parked() {
        let policy = Policy::default();
        let mut history = History::default();
        for n in 0..5 {
            assert!(matches!(history.decide(&policy, &crash(secs(n))), Decision::Again { .. }));
        }
        assert_eq!(history.decide(&policy, &crash(secs(5))), Decision::Park { delay: secs(300) });
        // Each later try that fails leaves it parked, also when the window has passed.
        assert_eq!(
            history.decide(&policy, &crash(secs(4_000))),
            Decision::Park { delay: secs(300) }
        );
    }

    #[test]
    fn restarts_spread_over_more_than_the_window_do_not_park() {
        let policy = Policy::default();
        let mut history = History::default();
        for n in 0..50 {
            let decision = history.decide(&policy, &crash(secs(n * 121)));
            assert!(matches!(decision, Decision::Again { .. }), "{n}: {decision:?}");
        }
    }

    #[test]
    fn ten_minutes_ready_forgive() {
        let policy = Policy::default();
        let mut history = History::default();
        for n in 0..6 {
            history.decide(&policy, &crash(secs(n)));
        }
        let ended = Ended { ready_for: secs(600), ..crash(secs(1_000)) };
        assert_eq!(
            history.decide(&policy, &ended),
            Decision::Again { delay: Duration::ZERO, nth: 1 }
        );
        let almost = Ended { ready_for: secs(599), ..crash(secs(1_001)) };
        assert_eq!(history.decide(&policy, &almost), Decision::Again { delay: secs(1), nth: 2 });
    }

    #[test]
    fn each_way_to_end_has_its_own_answer() {
        let policy = Policy::default();
        let code = |code| Exit::Code { code };
        let again = Decision::Again { delay: Duration::ZERO, nth: 1 };
        let table = [
            (code(0), true, Decision::Stay),
            // Nobody asked: a bridge that ends by itself, however politely, is started again.
            (code(0), false, again),
            (code(1), true, Decision::Stay),
            (code(1), false, again),
            (code(70), false, again),
            (code(75), false, again),
            (code(101), false, again),
            (Exit::Signal { signal: 9 }, false, again),
            (Exit::Signal { signal: 15 }, true, Decision::Stay),
            (Exit::Killed { why: KillReason::NoHeartbeat }, false, again),
            // A use above a soft limit is counted, or it would be replaced for ever.
            (Exit::Replaced { why: KillReason::Memory }, false, again),
            (Exit::NotStarted, false, again),
            (code(69), false, Decision::Wait { delay: secs(30), cause: Cause::Unavailable }),
            (code(77), false, Decision::Wait { delay: secs(60), cause: Cause::Permission }),
            (code(78), false, Decision::Wait { delay: secs(300), cause: Cause::Configuration }),
        ];
        for (exit, asked, wanted) in table {
            let ended = Ended { exit, asked, ..crash(secs(1)) };
            assert_eq!(History::default().decide(&policy, &ended), wanted, "{exit:?} {asked}");
        }
    }

    #[test]
    fn waiting_for_a_cause_is_not_counted_as_a_crash() {
        let policy = Policy::default();
        let mut history = History::default();
        for n in 0..20 {
            let ended = Ended { exit: Exit::Code { code: 77 }, ..crash(secs(n)) };
            assert!(matches!(history.decide(&policy, &ended), Decision::Wait { .. }));
        }
        assert_eq!(
            history.decide(&policy, &crash(secs(21))),
            Decision::Again { delay: Duration::ZERO, nth: 1 }
        );
    }

    proptest! {
        /// However bridges end: never more than `intensity` restarts in any window, delays are bounded, and the
        /// memory does not grow.
        #[test]
        fn no_story_of_ends_restarts_too_often(
            ends in prop::collection::vec((0_u64..700, prop::sample::select(vec![0, 1, 69, 75, 77, 78, 101]),
                0_u64..700, 0.0_f64..1.0), 0..200)
        ) {
            let policy = Policy::default();
            let mut history = History::default();
            let mut now = Duration::ZERO;
            let mut restarts: Vec<Duration> = Vec::new();
            for (pause, code, ready, chance) in ends {
                now += secs(pause);
                let ready_for = secs(ready.min(pause));
                if ready_for >= policy.forgive_after {
                    restarts.clear();
                }
                let ended = Ended { exit: Exit::Code { code }, asked: false, ready_for, now, chance };
                match history.decide(&policy, &ended) {
                    Decision::Again { delay, .. } => {
                        prop_assert!(delay <= secs(72));
                        restarts.push(now);
                    }
                    Decision::Park { delay } => prop_assert!(delay >= secs(300) && delay <= secs(360)),
                    Decision::Wait { delay, .. } => prop_assert!(delay >= secs(30) && delay <= secs(360)),
                    Decision::Stay => prop_assert!(false, "stayed without being asked"),
                }
                let in_window = restarts.iter().filter(|&&at| now.saturating_sub(at) < policy.window).count();
                prop_assert!(in_window <= policy.intensity);
                prop_assert!(history.recent.len() <= policy.intensity);
            }
        }
    }
}
