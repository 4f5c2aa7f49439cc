//! What follows a failed attempt. Pure: no store, no clock.
//!
//! Two kinds of failure are told apart. A *failure* is an attempt that a phone made and that provably sent
//! nothing; three of them are the message's end. An attempt that was *not started* (it came too late, the
//! lease had moved on) says nothing about the message, so it costs no attempt and only the message's own
//! life ends the tries.

/// How often, and how patiently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How many failed attempts a message may have; the last one is its end.
    pub attempts_max: u32,
    /// The wait after the first failure; it doubles with each further one.
    pub first_wait_ms: i64,
}

/// Doublings of a wait: enough for any sensible number of attempts, and no overflow.
const DOUBLINGS_MAX: u32 = 10;

/// Longest wait after an attempt that was never started. Short, because nothing is known against the
/// message, but not zero, because a phone that refuses at once would otherwise be asked in a tight loop.
const NOT_STARTED_WAIT_MAX_MS: i64 = 30_000;

/// How an attempt ended without the message having been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The phone tried and provably did not send.
    Failed {
        /// Whether the phone holds that a second try may go better.
        retryable: bool,
    },
    /// The phone never started and never will.
    NotStarted {
        /// Whether another try could go better: a bad address stays bad.
        retryable: bool,
    },
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try again at this time.
    Again {
        /// When, in milliseconds since 1970.
        at_ms: i64,
    },
    /// The message failed for good.
    GiveUp,
    /// The message's life ends before another attempt could begin.
    Expire,
}

/// What follows `ended`.
///
/// `failures` counts failed attempts including this one, `tries` every attempt including this one.
pub fn next(
    policy: Policy,
    ended: Ended,
    failures: u32,
    tries: u32,
    (now_ms, expires_ms): (i64, i64),
) -> Next {
    let wait_ms = match ended {
        Ended::Failed { retryable: false } | Ended::NotStarted { retryable: false } => {
            return Next::GiveUp;
        }
        Ended::Failed { retryable: true } => {
            if failures >= policy.attempts_max {
                return Next::GiveUp;
            }
            doubled(policy.first_wait_ms, failures.saturating_sub(1))
        }
        // The first refusal is answered at once (another phone may be free), later ones ever slower.
        Ended::NotStarted { retryable: true } => match tries {
            0 | 1 => 0,
            n => doubled(policy.first_wait_ms, n.saturating_sub(2)).min(NOT_STARTED_WAIT_MAX_MS),
        },
    };
    let at_ms = now_ms.saturating_add(wait_ms);
    if at_ms >= expires_ms { Next::Expire } else { Next::Again { at_ms } }
}

fn doubled(first_ms: i64, times: u32) -> i64 {
    first_ms.saturating_mul(1 << times.min(DOUBLINGS_MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy { attempts_max: 3, first_wait_ms: 2_000 };
    const FAILED: Ended = Ended::Failed { retryable: true };
    const NOT_STARTED: Ended = Ended::NotStarted { retryable: true };

    #[test]
    fn the_third_failure_is_the_end() {
        assert_eq!(next(POLICY, FAILED, 1, 1, (0, 100_000)), Next::Again { at_ms: 2_000 });
        assert_eq!(next(POLICY, FAILED, 2, 2, (0, 100_000)), Next::Again { at_ms: 4_000 });
        assert_eq!(next(POLICY, FAILED, 3, 3, (0, 100_000)), Next::GiveUp);
        assert_eq!(next(POLICY, FAILED, 4, 4, (0, 100_000)), Next::GiveUp);
    }

    #[test]
    fn a_permanent_failure_is_not_tried_again() {
        assert_eq!(
            next(POLICY, Ended::Failed { retryable: false }, 1, 1, (0, 100_000)),
            Next::GiveUp
        );
        assert_eq!(
            next(POLICY, Ended::NotStarted { retryable: false }, 0, 1, (0, 100_000)),
            Next::GiveUp
        );
    }

    #[test]
    fn what_was_never_started_costs_no_attempt() {
        assert_eq!(next(POLICY, NOT_STARTED, 0, 1, (0, 100_000)), Next::Again { at_ms: 0 });
        assert_eq!(next(POLICY, NOT_STARTED, 0, 2, (0, 100_000)), Next::Again { at_ms: 2_000 });
        assert_eq!(next(POLICY, NOT_STARTED, 0, 40, (0, 100_000)), Next::Again { at_ms: 30_000 });
    }

    #[test]
    fn no_attempt_is_planned_beyond_the_messages_life() {
        assert_eq!(next(POLICY, FAILED, 1, 1, (0, 2_000)), Next::Expire);
        assert_eq!(next(POLICY, NOT_STARTED, 0, 1, (5, 5)), Next::Expire);
    }

    proptest! {
        #[test]
        fn a_next_try_lies_between_now_and_the_end(
            failed: bool, retryable: bool, failures in 0_u32..10, tries in 0_u32..2_000,
            now in 0_i64..1_000_000, life in 0_i64..1_000_000,
        ) {
            let ended = if failed { Ended::Failed { retryable } } else { Ended::NotStarted { retryable } };
            if let Next::Again { at_ms } = next(POLICY, ended, failures, tries, (now, now + life)) {
                prop_assert!(at_ms >= now && at_ms < now + life);
                prop_assert!(retryable);
                prop_assert!(!failed || failures < 3);
            }
        }
    }
}
