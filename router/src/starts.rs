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
    /// Until when it left alone what may have been in hand.
    pub quiet_until: UnixMs,
}

/// This start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// When.
    pub at: UnixMs,
    /// Deaths in a row before it, the last one included.
    pub deaths: u32,
    /// Until when what may have been in hand is left alone; in the past where nothing is.
    pub quiet_until: UnixMs,
}

impl Start {
    /// A start at `now`, after that life.
    ///
    /// A pause goes on from life to life, and after one there is a life without: otherwise a router whose lives are shorter
    /// than its pauses would never look at what was there before it.
    pub fn after(last: Option<Life>, now: UnixMs) -> Self {
        let Some(last) = last.filter(|last| !last.stopped) else {
            return Self { at: now, deaths: 0, quiet_until: now };
        };
        let soon = now.since(last.started_at) < WELL_AFTER_MS;
        let deaths = if soon { last.deaths.saturating_add(1).min(DEATHS_MAX) } else { 1 };
        let pause = pause_ms(deaths);
        let waited = last.quiet_until > last.started_at;
        let quiet_until = if pause > 0 && waited {
            // No longer than a pause is, should the clock have been set back.
            last.quiet_until.min(now.plus_ms(PAUSE_MAX_MS)).max(now)
        } else {
            now.plus_ms(pause)
        };
        Self { at: now, deaths, quiet_until }
    }

    /// What is due may have been in hand before this start when it fell due by then. `None` where nothing waits any more,
    /// also when the clock was set back to before this start.
    pub fn leaves_alone(self, now: UnixMs) -> Option<UnixMs> {
        (now >= self.at && now < self.quiet_until).then_some(self.at)
    }
}

/// The pause after so many deaths in a row.
fn pause_ms(deaths: u32) -> i64 {
    deaths
        .checked_sub(2)
        .map_or(0, |more| PAUSE_FIRST_MS.saturating_mul(1 << more.min(20)).min(PAUSE_MAX_MS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMs = UnixMs(1_000_000_000);

    fn life(ago_ms: i64, deaths: u32, stopped: bool) -> Life {
        let started_at = NOW.plus_ms(-ago_ms);
        Life { started_at, deaths, stopped, quiet_until: started_at }
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
            let quiet_until = NOW.plus_ms(pause_s * 1_000);
            assert_eq!(start, Start { at: NOW, deaths, quiet_until }, "{last:?}");
        }
    }

    #[test]
    fn what_fell_due_before_the_start_waits_for_the_end_of_the_pause() {
        let start = Start { at: NOW, deaths: 3, quiet_until: NOW.plus_ms(10_000) };
        assert_eq!(start.leaves_alone(NOW), Some(NOW));
        assert_eq!(start.leaves_alone(NOW.plus_ms(9_999)), Some(NOW));
        assert_eq!(start.leaves_alone(NOW.plus_ms(10_000)), None);
        assert_eq!(start.leaves_alone(NOW.plus_ms(-1)), None);
        assert_eq!(Start { quiet_until: NOW, ..start }.leaves_alone(NOW), None);
    }

    #[test]
    fn a_pause_goes_on_from_life_to_life_and_then_there_is_a_life_without() {
        let died = |start: Start| {
            let Start { at, deaths, quiet_until } = start;
            Some(Life { started_at: at, deaths, stopped: false, quiet_until })
        };
        let first = Start { at: NOW, deaths: 3, quiet_until: NOW.plus_ms(10_000) };
        let second = Start::after(died(first), NOW.plus_ms(4_000));
        assert_eq!(second.quiet_until, first.quiet_until);
        let third = Start::after(died(second), NOW.plus_ms(12_000));
        assert_eq!(third.leaves_alone(third.at), None);
        let fourth = Start::after(died(third), NOW.plus_ms(13_000));
        assert_eq!(fourth.quiet_until, fourth.at.plus_ms(60_000));
        // The clock was set back by a day: the pause is no longer for that.
        let back = Start::after(died(fourth), NOW.plus_ms(-86_400_000));
        assert_eq!(back.quiet_until, back.at.plus_ms(PAUSE_MAX_MS));
    }

    proptest! {
        /// However long its lives are and however long it is away between them, what was there before is looked at.
        #[test]
        fn no_router_dies_so_fast_that_it_never_looks(life_ms in 1_i64..WELL_AFTER_MS, away_ms in 0_i64..60_000) {
            let (mut last, mut now, mut looked) = (None, NOW, 0);
            for _start in 0..10_000 {
                let start = Start::after(last, now);
                prop_assert!(start.quiet_until.since(start.at) < WELL_AFTER_MS);
                looked += u32::from(start.quiet_until < start.at.plus_ms(life_ms));
                let Start { at, deaths, quiet_until } = start;
                last = Some(Life { started_at: at, deaths, stopped: false, quiet_until });
                now = now.plus_ms(life_ms + away_ms);
                if now.since(NOW) > 600_000 {
                    break;
                }
            }
            prop_assert!(looked > 2, "{looked}");
        }
    }
}
