//! The pace of one phone: a token bucket kept as one number, the time at which it is full again.

use crate::config::Pacing;

/// A bucket (the "generic cell rate algorithm"): nothing to refill, nothing to drift.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pacing: Pacing,
    /// Continuous clock, microseconds, at which the bucket is full.
    full_at_us: i64,
}

impl Pace {
    pub(crate) fn new(pacing: Pacing) -> Self {
        Self { pacing, full_at_us: i64::MIN }
    }

    /// Milliseconds until a send may be taken; 0 when one may go now.
    pub(crate) fn wait_ms(&self, now_ms: i64) -> i64 {
        match self.pacing {
            Pacing::Unlimited => 0,
            Pacing::Paced { interval_us, burst } => {
                let allowance = interval_us.saturating_mul(i64::from(burst).saturating_sub(1));
                let early = self
                    .full_at_us
                    .saturating_sub(now_ms.saturating_mul(1_000))
                    .saturating_sub(allowance);
                if early <= 0 { 0 } else { early.saturating_add(999) / 1_000 }
            }
        }
    }

    /// Takes one.
    pub(crate) fn take(&mut self, now_ms: i64) {
        if let Pacing::Paced { interval_us, .. } = self.pacing {
            self.full_at_us =
                self.full_at_us.max(now_ms.saturating_mul(1_000)).saturating_add(interval_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of one request every 10 ms get through in a time.
    fn taken(pacing: Pacing, for_ms: i64) -> usize {
        let mut pace = Pace::new(pacing);
        (0..for_ms)
            .step_by(10)
            .filter(|now| {
                let free = pace.wait_ms(*now) == 0;
                if free {
                    pace.take(*now);
                }
                free
            })
            .count()
    }

    #[test]
    fn one_a_second_is_one_a_second() {
        assert_eq!(taken(Pacing::Paced { interval_us: 1_000_000, burst: 1 }, 10_000), 10);
    }

    #[test]
    fn a_burst_comes_on_top_once() {
        assert_eq!(taken(Pacing::Paced { interval_us: 1_000_000, burst: 5 }, 10_000), 14);
    }

    #[test]
    fn unlimited_never_waits() {
        assert_eq!(taken(Pacing::Unlimited, 1_000), 100);
    }

    #[test]
    fn the_wait_is_exact_to_the_millisecond() {
        let mut pace = Pace::new(Pacing::Paced { interval_us: 250_000, burst: 1 });
        pace.take(1_000);
        assert_eq!(pace.wait_ms(1_000), 250);
        assert_eq!(pace.wait_ms(1_249), 1);
        assert_eq!(pace.wait_ms(1_250), 0);
    }
}
