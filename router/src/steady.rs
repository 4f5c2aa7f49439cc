//! Whether the wall clock has run evenly for long enough to believe that a lease is over.
//!
//! Leases are durable, so their ends are wall-clock times, and a clock that is set forward would end them all at once while
//! their holders, who count on clocks of their own, still send. A second clock that nobody sets shows it.

use std::sync::{Mutex, PoisonError};

use protocol::UnixMs;
use tokio::time::Instant;

/// The two clocks may differ by so much: what a scheduler puts between two readings, and what NTP corrects gently.
const SLACK_MS: i64 = 2_000;

/// The last moment from which on both clocks have agreed.
#[derive(Debug)]
pub struct Steady {
    since: Mutex<(UnixMs, Instant)>,
}

impl Steady {
    /// From now on.
    pub fn new(wall: UnixMs, at: Instant) -> Self {
        Self { since: Mutex::new((wall, at)) }
    }

    /// Looks at both clocks: for how long they have agreed, in milliseconds.
    pub fn look(&self, wall: UnixMs, at: Instant) -> i64 {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let even = ms_between(since.1, at);
        let step = wall.since(since.0).saturating_sub(even);
        if step.abs() <= SLACK_MS {
            return even;
        }
        tracing::warn!(
            step_ms = step,
            "the wall clock was set: no phone changes hosts by its lease's end for a while"
        );
        *since = (wall, at);
        0
    }
}

fn ms_between(from: Instant, to: Instant) -> i64 {
    i64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_clock_that_is_set_is_not_believed_for_a_while() {
        let (wall, at) = (UnixMs(1_000_000), Instant::now());
        let steady = Steady::new(wall, at);
        let look = |wall_ms: i64, after_ms: u64| {
            steady.look(wall.plus_ms(wall_ms), at + Duration::from_millis(after_ms))
        };
        assert_eq!(look(10_000, 10_000), 10_000);
        assert_eq!(look(31_900, 30_000), 30_000, "gently corrected");
        // An hour forward, and back again.
        assert_eq!(look(3_640_000, 40_000), 0);
        assert_eq!(look(3_660_000, 60_000), 20_000);
        assert_eq!(look(61_000, 61_000), 0);
        // Many small steps are one large one.
        assert_eq!(look(82_500, 81_000), 20_000);
        assert_eq!(look(84_200, 82_000), 0);
    }
}
