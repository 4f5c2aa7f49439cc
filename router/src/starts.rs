//! What a router that dies again and again leaves alone for a while. Pure.
//!
//! What is under way in a router's memory is due again when the next one starts: webhooks, and jobs of the queue. One that
//! dies a second after each start would post the same webhooks to its tenants' endpoints once a second, and would look at
//! the message that ends it before it does anything else. So what fell due before this start waits, the longer the more
//! starts in a row have ended so. What falls due later does not: one life posts it once.

use protocol::UnixMs;

/// A life that was longer says that what was in hand at its start is harmless. Longer than any pause, or what waits for one
/// would be asked to wait by each life for ever.
pub const WELL_AFTER_MS: i64 = 2 * 60_000;

/// The pause after the second death in a row; it doubles with each further one. The first death costs nothing: most are
/// a process manager's or a machine's, and do not come back.
const PAUSE_FIRST_MS: i64 = 5_000;

/// The longest pause: an endpoint sees the same webhook once a minute at the most, however fast a router dies.
const PAUSE_MAX_MS: i64 = 60_000;

/// Deaths after which the pause does not grow any more, and that are counted.
const DEATHS_MAX: u32 = 1_000;

/// What is known of the start before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// When it began.
    pub started_at: UnixMs,
    /// Deaths in a row before it.
    pub deaths: u32,
    /// It ended as it was told to, with nothing in hand.
    pub stopped: bool,
}

/// This start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// When.
    pub at: UnixMs,
    /// Deaths in a row before it, the last one included.
    pub deaths: u32,
}

impl Start {
    /// A start at `now`, after that life.
    pub fn after(last: Option<Life>, now: UnixMs) -> Self {
        let deaths = match last {
            None | Some(Life { stopped: true, .. }) => 0,
            Some(Life { started_at, deaths, stopped: false }) => {
                let soon = now.since(started_at) < WELL_AFTER_MS;
                if soon { deaths.saturating_add(1).min(DEATHS_MAX) } else { 1 }
            }
        };
        Self { at: now, deaths }
    }

    /// Until when what may have been in hand is left alone.
    pub fn quiet_until(self) -> UnixMs {
        let pause = self
            .deaths
            .checked_sub(2)
            .map_or(0, |more| PAUSE_FIRST_MS.saturating_mul(1 << more.min(20)).min(PAUSE_MAX_MS));
        self.at.plus_ms(pause)
    }

    /// What is due may have been in hand before this start when it fell due by then. `None` where nothing waits any more,
    /// also when the clock was set back to before this start.
    pub fn leaves_alone(self, now: UnixMs) -> Option<UnixMs> {
        (now >= self.at && now < self.quiet_until()).then_some(self.at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMs = UnixMs(1_000_000_000);

    fn life(ago_ms: i64, deaths: u32, stopped: bool) -> Life {
        Life { started_at: NOW.plus_ms(-ago_ms), deaths, stopped }
    }

    #[test]
    fn deaths_soon_after_a_start_are_counted_and_a_long_life_or_an_orderly_end_forgives_them() {
        for (last, deaths, pause_s) in [
            (None, 0, 0),
            (Some(life(1_000, 0, true)), 0, 0),
            (Some(life(1_000, 7, true)), 0, 0),
            (Some(life(1_000, 0, false)), 1, 0),
            (Some(life(1_000, 1, false)), 2, 5),
            (Some(life(1_000, 2, false)), 3, 10),
            (Some(life(1_000, 3, false)), 4, 20),
            (Some(life(1_000, 4, false)), 5, 40),
            (Some(life(1_000, 5, false)), 6, 60),
            (Some(life(WELL_AFTER_MS - 1, 6, false)), 7, 60),
            (Some(life(WELL_AFTER_MS, 6, false)), 1, 0),
            (Some(life(1_000, u32::MAX, false)), DEATHS_MAX, 60),
            // The clock was set back: rather a pause too many.
            (Some(life(-1_000_000, 2, false)), 3, 10),
        ] {
            let start = Start::after(last, NOW);
            assert_eq!(start, Start { at: NOW, deaths }, "{last:?}");
            assert_eq!(start.quiet_until(), NOW.plus_ms(pause_s * 1_000), "{last:?}");
        }
    }

    #[test]
    fn what_fell_due_before_the_start_waits_for_the_end_of_the_pause() {
        let start = Start { at: NOW, deaths: 3 };
        assert_eq!(start.leaves_alone(NOW), Some(NOW));
        assert_eq!(start.leaves_alone(NOW.plus_ms(9_999)), Some(NOW));
        assert_eq!(start.leaves_alone(NOW.plus_ms(10_000)), None);
        assert_eq!(start.leaves_alone(NOW.plus_ms(-1)), None);
        assert_eq!(Start { at: NOW, deaths: 1 }.leaves_alone(NOW), None);
    }

    proptest! {
        #[test]
        fn no_pause_is_as_long_as_the_life_that_forgives(deaths: u32, at in 0_i64..i64::MAX / 2) {
            let start = Start { at: UnixMs(at), deaths };
            prop_assert!(start.quiet_until().since(start.at) < WELL_AFTER_MS);
            let next = Start { deaths: deaths.saturating_add(1), ..start };
            prop_assert!(next.quiet_until() >= start.quiet_until());
        }
    }
}
