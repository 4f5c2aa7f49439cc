//! When a provider whose API fails is left alone. Pure: the time is an argument.
//!
//! Closed, it counts what the last minute has brought. When enough of that were failures it opens; after a pause it lets
//! through one message a second until three have gone well, and closes; one that fails opens it again, for twice as long.

use std::collections::VecDeque;

use protocol::UnixMs;
use protocol::api::BreakerState;

/// How far back is counted.
const WINDOW_MS: i64 = 60_000;
/// How finely.
const BUCKET_MS: i64 = 1_000;
/// Fewer answers than this say nothing about a rate.
const ANSWERS_MIN: u32 = 10;
/// It opens when this share of the window's answers are failures.
const FAILED_PERCENT: u32 = 50;
/// The first pause; it doubles each time that a probe fails.
const PAUSE_FIRST_MS: i64 = 30_000;
/// The longest pause.
const PAUSE_MAX_MS: i64 = 300_000;
/// Probes that have to go well in a row.
const PROBES: u32 = 3;
/// At most one probe is let through in this time, whatever becomes of it.
const PROBE_EVERY_MS: i64 = 1_000;

/// The memory of one provider.
#[derive(Debug, Clone)]
pub struct Breaker {
    gate: Gate,
    /// Ascending by second; never more of them than the window has.
    window: VecDeque<Bucket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Closed,
    /// `opened` counts how often in a row.
    Open {
        until_ms: i64,
        opened: u32,
    },
    HalfOpen {
        next_probe_ms: i64,
        passed: u32,
        opened: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    second: i64,
    good: u32,
    failed: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { gate: Gate::Closed, window: VecDeque::new() }
    }
}

impl Breaker {
    /// How the provider is treated now.
    pub fn state(&self, now: UnixMs) -> BreakerState {
        match self.gate {
            Gate::Closed => BreakerState::Closed,
            Gate::Open { until_ms, .. } if until_ms > now.0 => BreakerState::Open,
            Gate::Open { .. } | Gate::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Until when no message may go: `None` when one may now. Changes nothing.
    pub fn shut_until(&self, now: UnixMs) -> Option<UnixMs> {
        let until_ms = match self.gate {
            Gate::Closed => return None,
            Gate::Open { until_ms, .. } => until_ms,
            Gate::HalfOpen { next_probe_ms, .. } => next_probe_ms,
        };
        (until_ms > now.0).then_some(UnixMs(until_ms))
    }

    /// A message is given to it: half open, that uses up the probe of this second.
    pub fn gave(&mut self, now: UnixMs) {
        let (passed, opened) = match self.gate {
            Gate::Closed => return,
            Gate::Open { until_ms, .. } if until_ms > now.0 => return,
            Gate::Open { opened, .. } => (0, opened),
            Gate::HalfOpen { passed, opened, .. } => (passed, opened),
        };
        let next_probe_ms = now.0.saturating_add(PROBE_EVERY_MS);
        self.gate = Gate::HalfOpen { next_probe_ms, passed, opened };
    }

    /// Its API has answered, well or not. True when that has changed how it is treated.
    pub fn answered(&mut self, good: bool, now: UnixMs) -> bool {
        match self.gate {
            Gate::Closed => {
                self.count(good, now);
                let (answers, failed) = self.sum();
                if good
                    || answers < ANSWERS_MIN
                    || failed.saturating_mul(100) < answers.saturating_mul(FAILED_PERCENT)
                {
                    return false;
                }
                self.open(1, now);
                true
            }
            // What was asked before it opened says nothing new.
            Gate::Open { .. } => false,
            Gate::HalfOpen { opened, .. } if !good => {
                self.open(opened.saturating_add(1), now);
                true
            }
            Gate::HalfOpen { passed, .. } if passed.saturating_add(1) >= PROBES => {
                *self = Self::default();
                true
            }
            Gate::HalfOpen { next_probe_ms, passed, opened } => {
                let passed = passed.saturating_add(1);
                self.gate = Gate::HalfOpen { next_probe_ms, passed, opened };
                false
            }
        }
    }

    /// Answers and failures of the last minute, for people.
    pub fn last_minute(&self, now: UnixMs) -> (u32, u32) {
        let mut copy = self.clone();
        copy.forget(now);
        copy.sum()
    }

    fn open(&mut self, opened: u32, now: UnixMs) {
        let doublings = opened.saturating_sub(1).min(10);
        let pause = PAUSE_FIRST_MS.saturating_mul(1 << doublings).min(PAUSE_MAX_MS);
        self.window.clear();
        self.gate = Gate::Open { until_ms: now.0.saturating_add(pause), opened };
    }

    fn count(&mut self, good: bool, now: UnixMs) {
        self.forget(now);
        let second = now.0.div_euclid(BUCKET_MS);
        if self.window.back().is_none_or(|last| last.second != second) {
            self.window.push_back(Bucket { second, good: 0, failed: 0 });
        }
        if let Some(last) = self.window.back_mut() {
            let counter = if good { &mut last.good } else { &mut last.failed };
            *counter = counter.saturating_add(1);
        }
    }

    /// Drops what is older than the window, and what a clock that was set back calls the future.
    fn forget(&mut self, now: UnixMs) {
        let second = now.0.div_euclid(BUCKET_MS);
        let first = second.saturating_sub(WINDOW_MS / BUCKET_MS);
        self.window.retain(|bucket| bucket.second > first && bucket.second <= second);
    }

    fn sum(&self) -> (u32, u32) {
        self.window.iter().fold((0_u32, 0_u32), |(answers, failed), bucket| {
            (
                answers.saturating_add(bucket.good).saturating_add(bucket.failed),
                failed.saturating_add(bucket.failed),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: UnixMs = UnixMs(1_800_000_000_000);

    fn at(ms: i64) -> UnixMs {
        START.plus_ms(ms)
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for n in 0..10 {
            breaker.answered(false, at(n));
        }
        assert_eq!(breaker.state(at(10)), BreakerState::Open);
        breaker
    }

    #[test]
    fn it_opens_when_half_of_enough_answers_within_a_minute_are_failures() {
        // (answers, whether the last one opens it)
        let cases: [(&str, &[bool], bool); 5] = [
            ("nine failures are too few", &[false; 9], false),
            ("the tenth opens", &[false; 10], true),
            (
                "four of ten are not half",
                &[true, true, true, true, true, true, false, false, false, false],
                false,
            ),
            (
                "five of ten are",
                &[true, true, true, true, true, false, false, false, false, false],
                true,
            ),
            ("good answers never open", &[true; 50], false),
        ];
        for (name, answers, opens) in cases {
            let mut breaker = Breaker::default();
            for (n, good) in (0_i64..).zip(answers) {
                breaker.answered(*good, at(n));
            }
            let state = breaker.state(at(100));
            assert_eq!(state == BreakerState::Open, opens, "{name}: {state}");
        }
    }

    #[test]
    fn what_is_older_than_a_minute_counts_no_more() {
        let mut breaker = Breaker::default();
        for n in 0..9 {
            breaker.answered(false, at(n));
        }
        assert_eq!(breaker.last_minute(at(1_000)), (9, 9));
        assert!(!breaker.answered(false, at(61_000)));
        assert_eq!(breaker.last_minute(at(61_000)), (1, 1));
        assert_eq!(breaker.state(at(61_000)), BreakerState::Closed);
    }

    #[test]
    fn after_the_pause_three_probes_close_it_one_a_second() {
        let mut breaker = opened();
        assert_eq!(breaker.shut_until(at(10)), Some(at(30_009)));
        // An answer to what was asked before is no probe.
        assert!(!breaker.answered(true, at(20)));
        for n in 0..3 {
            let probe = at(30_009 + n * 1_000);
            assert_eq!(breaker.state(probe), BreakerState::HalfOpen);
            assert_eq!(breaker.shut_until(probe), None);
            breaker.gave(probe);
            assert_eq!(breaker.shut_until(probe), Some(probe.plus_ms(1_000)));
            assert_eq!(breaker.answered(true, probe.plus_ms(200)), n == 2);
        }
        assert_eq!(breaker.state(at(33_000)), BreakerState::Closed);
        assert_eq!(breaker.last_minute(at(33_000)), (0, 0));
    }

    #[test]
    fn a_probe_that_fails_opens_it_for_twice_as_long() {
        let mut breaker = opened();
        let mut now = at(30_009);
        for pause in [60_000, 120_000, 240_000, 300_000, 300_000] {
            breaker.gave(now);
            assert!(breaker.answered(false, now));
            assert_eq!(breaker.shut_until(now), Some(now.plus_ms(pause)));
            now = now.plus_ms(pause);
        }
    }

    proptest! {
        #[test]
        fn it_is_never_shut_for_good_and_keeps_a_bounded_memory(
            steps in prop::collection::vec((0_i64..5_000, any::<bool>(), any::<bool>()), 0..400),
        ) {
            let mut breaker = Breaker::default();
            let mut now = START;
            for (wait, good, gives) in steps {
                now = now.plus_ms(wait);
                if gives && breaker.shut_until(now).is_none() {
                    breaker.gave(now);
                }
                breaker.answered(good, now);
                prop_assert!(breaker.window.len() <= 61);
                if let Some(until) = breaker.shut_until(now) {
                    prop_assert!(until.since(now) <= PAUSE_MAX_MS);
                    prop_assert!(breaker.shut_until(until).is_none());
                }
                let (answers, failed) = breaker.last_minute(now);
                prop_assert!(failed <= answers);
            }
        }

        #[test]
        fn a_provider_that_answers_well_is_never_shut(waits in prop::collection::vec(0_i64..120_000, 0..200)) {
            let mut breaker = Breaker::default();
            let mut now = START;
            for wait in waits {
                now = now.plus_ms(wait);
                breaker.gave(now);
                prop_assert!(!breaker.answered(true, now));
                prop_assert_eq!(breaker.state(now), BreakerState::Closed);
            }
        }
    }
}
