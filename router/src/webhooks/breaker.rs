//! When an endpoint that fails is left alone, and for how long. Pure.
//!
//! What waits for it keeps its attempts meanwhile: after the pause one delivery is tried, and only when that succeeds do
//! the others follow.

use protocol::UnixMs;

/// Failures in a row after which an endpoint is left alone: one bad minute of a deployment stays below it.
pub const OPENS_AFTER: u32 = 5;
/// The first pause. It doubles with each failure after it.
const PAUSE_FIRST_MS: i64 = 10_000;
/// The longest pause: an endpoint that works again gets what waits within so long.
const PAUSE_MAX_MS: i64 = 10 * 60_000;
/// The longest that an endpoint may ask to be left alone as a whole; single deliveries may wait longer.
const ASKED_MAX_MS: i64 = 60 * 60_000;

/// How an endpoint is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be: it gets as much at once as any.
    Closed,
    /// It gets one delivery at a time, to show that it works.
    HalfOpen,
    /// It gets nothing before that.
    Open {
        /// When it is tried again.
        until: UnixMs,
    },
}

impl State {
    /// By the failures in a row and the end of the pause.
    pub fn of(failures: u32, paused_until: Option<UnixMs>, now: UnixMs) -> Self {
        match paused_until {
            Some(until) if until > now => Self::Open { until },
            Some(_) | None if failures > 0 => Self::HalfOpen,
            Some(_) | None => Self::Closed,
        }
    }
}

/// How long an endpoint is left alone after so many failures in a row. `chance` is any number and moves the pause by up
/// to a fifth either way; `asked_ms` is what the endpoint itself has asked for.
pub fn pause_ms(failures: u32, chance: u16, asked_ms: Option<i64>) -> Option<i64> {
    let own = failures.checked_sub(OPENS_AFTER).map(|more| {
        let base =
            PAUSE_FIRST_MS.saturating_mul(1_i64.checked_shl(more.min(20)).unwrap_or(i64::MAX));
        let permille = 800 + i64::from(chance) * 400 / i64::from(u16::MAX);
        base.min(PAUSE_MAX_MS) / 1_000 * permille
    });
    let asked = asked_ms.map(|ms| ms.clamp(0, ASKED_MAX_MS)).filter(|ms| *ms > 0);
    own.max(asked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIDDLE: u16 = u16::MAX / 2 + 1;

    #[test]
    fn the_fifth_failure_in_a_row_opens_it_and_each_further_one_for_longer() {
        let pauses: Vec<Option<i64>> = (0..13).map(|n| pause_ms(n, MIDDLE, None)).collect();
        let s = |seconds: i64| Some(seconds * 1_000);
        assert_eq!(
            pauses,
            [
                None,
                None,
                None,
                None,
                None,
                s(10),
                s(20),
                s(40),
                s(80),
                s(160),
                s(320),
                s(600),
                s(600)
            ]
        );
        assert_eq!(pause_ms(u32::MAX, MIDDLE, None), s(600));
    }

    #[test]
    fn an_endpoint_may_ask_to_be_left_alone_within_reason() {
        assert_eq!(pause_ms(1, MIDDLE, Some(30_000)), Some(30_000));
        assert_eq!(pause_ms(1, MIDDLE, Some(i64::MAX)), Some(ASKED_MAX_MS));
        assert_eq!(pause_ms(1, MIDDLE, Some(-1)), None);
        assert_eq!(pause_ms(6, MIDDLE, Some(1_000)), Some(20_000));
    }

    #[test]
    fn after_the_pause_one_delivery_shows_whether_it_works() {
        let now = UnixMs(1_000);
        let until = UnixMs(2_000);
        assert_eq!(State::of(0, None, now), State::Closed);
        assert_eq!(State::of(1, None, now), State::HalfOpen);
        assert_eq!(State::of(5, Some(until), now), State::Open { until });
        assert_eq!(State::of(5, Some(until), until), State::HalfOpen);
        assert_eq!(State::of(0, Some(until), now), State::Open { until });
    }

    proptest! {
        #[test]
        fn a_pause_is_within_bounds(failures: u32, chance: u16, asked in prop::option::of(any::<i64>())) {
            if let Some(pause) = pause_ms(failures, chance, asked) {
                prop_assert!(pause > 0 && pause <= ASKED_MAX_MS.max(PAUSE_MAX_MS * 12 / 10));
            } else {
                prop_assert!(failures < OPENS_AFTER);
            }
        }

        #[test]
        fn more_failures_never_shorten_it(failures in 0_u32..100, chance: u16) {
            prop_assert!(pause_ms(failures, chance, None) <= pause_ms(failures + 1, chance, None));
        }
    }
}
