//! How often a key may be used. Pure but for [`Limiter`], which only remembers: the time is an argument.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use protocol::{KeyId, UnixMs};

/// Buckets from which on those that are full again are forgotten: a fresh one is full, too. Only good keys have one, so
/// that there are never more than there are keys in use.
const SWEEP_FROM: usize = 10_000;

/// How often a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once after a pause.
    pub burst: u32,
}

impl Rate {
    /// Seconds in which the whole burst comes back: the window of `RateLimit-Policy`.
    pub fn window_s(self) -> u64 {
        u64::from(self.burst).div_ceil(u64::from(self.per_second.max(1))).max(1)
    }

    fn burst_milli(self) -> u64 {
        u64::from(self.burst) * MILLI
    }
}

/// A token bucket, in thousandths of a request: a rate per second is the same number per millisecond.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    milli: u64,
    at: UnixMs,
}

/// One request taken from a bucket, or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The request may be handled.
    pub allowed: bool,
    /// How many more may be at once.
    pub remaining: u64,
    /// Seconds until a request is allowed again (refused), or until the bucket is full.
    pub seconds: u64,
}

const MILLI: u64 = 1_000;

impl Bucket {
    fn full(rate: Rate, now: UnixMs) -> Self {
        Self { rate, milli: rate.burst_milli(), at: now }
    }

    fn refilled(self, now: UnixMs) -> u64 {
        // A clock that was set back refills nothing.
        let elapsed_ms = u64::try_from(now.since(self.at)).unwrap_or(0);
        let gained = elapsed_ms.saturating_mul(u64::from(self.rate.per_second));
        self.milli.saturating_add(gained).min(self.rate.burst_milli())
    }

    fn is_full(self, now: UnixMs) -> bool {
        self.refilled(now) >= self.rate.burst_milli()
    }

    /// Takes a request by the key's rate, which may have changed since the last one.
    fn take(&mut self, rate: Rate, now: UnixMs) -> Taken {
        // By the rate that was in force meanwhile; never more than the new one holds.
        self.milli = self.refilled(now).min(rate.burst_milli());
        (self.rate, self.at) = (rate, now);
        let per_second = u64::from(rate.per_second.max(1)) * MILLI;
        if let Some(rest) = self.milli.checked_sub(MILLI) {
            self.milli = rest;
            let seconds = rate.burst_milli().saturating_sub(rest).div_ceil(per_second);
            return Taken { allowed: true, remaining: rest / MILLI, seconds };
        }
        let seconds = MILLI.saturating_sub(self.milli).div_ceil(per_second).max(1);
        Taken { allowed: false, remaining: 0, seconds }
    }
}

/// The buckets of the keys that are in use.
#[derive(Debug, Default)]
pub struct Limiter {
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    by_key: HashMap<KeyId, Bucket>,
    /// How many there may be before they are looked through again: twice what was left, so that it costs little each.
    sweep_at: usize,
}

impl Limiter {
    /// Takes a request of this key.
    pub fn take(&self, key: &KeyId, rate: Rate, now: UnixMs) -> Taken {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.by_key.get_mut(key) {
            return bucket.take(rate, now);
        }
        if buckets.by_key.len() >= buckets.sweep_at.max(SWEEP_FROM) {
            buckets.by_key.retain(|_, bucket| !bucket.is_full(now));
            buckets.sweep_at = buckets.by_key.len() * 2;
        }
        buckets.by_key.entry(key.clone()).or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    fn key(n: u32) -> KeyId {
        KeyId::new(i64::from(n), [0; 10])
    }

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let start = UnixMs(1_000_000);
        let mut bucket = Bucket::full(RATE, start);
        for left in [2, 1, 0] {
            let taken = bucket.take(RATE, start);
            assert!(taken.allowed);
            assert_eq!(taken.remaining, left);
        }
        let refused = Taken { allowed: false, remaining: 0, seconds: 1 };
        assert_eq!(bucket.take(RATE, start), refused);
        assert!(!bucket.take(RATE, start.plus_ms(99)).allowed);
        assert!(bucket.take(RATE, start.plus_ms(100)).allowed);
        assert!(!bucket.take(RATE, start.plus_ms(150)).allowed);
    }

    #[test]
    fn a_bucket_never_holds_more_than_its_burst_and_survives_a_clock_set_back() {
        let start = UnixMs(1_000_000);
        let mut bucket = Bucket::full(RATE, start);
        assert_eq!(bucket.take(RATE, start.plus_ms(3_600_000)).remaining, 2);
        assert_eq!(bucket.take(RATE, start).remaining, 1);
    }

    #[test]
    fn a_smaller_rate_counts_at_once_and_a_greater_one_gives_nothing_for_the_past() {
        let start = UnixMs(1_000_000);
        let wide = Rate { per_second: 100, burst: 500 };
        let mut bucket = Bucket::full(wide, start);
        assert_eq!(bucket.take(RATE, start).remaining, 2);
        assert_eq!(bucket.take(wide, start).remaining, 1);
    }

    #[test]
    fn keys_have_buckets_of_their_own_and_those_in_use_are_never_forgotten() {
        let (limiter, start) = (Limiter::default(), UnixMs(1_000_000));
        // One that is empty, by a clock that runs behind ever after.
        while limiter.take(&key(0), RATE, start.plus_ms(-1_000)).allowed {}
        for n in 1..=25_000 {
            // Each is full again when the next ten thousand have come.
            let now = start.plus_ms(i64::from(n).div_euclid(100) - 1_000);
            assert!(limiter.take(&key(n), RATE, now).allowed, "{n}");
        }
        assert!(!limiter.take(&key(0), RATE, start.plus_ms(-1_000)).allowed);
        let held = limiter.buckets.lock().unwrap().by_key.len();
        assert!(held <= 2 * SWEEP_FROM, "{held}");
    }

    #[test]
    fn keys_that_are_all_in_use_all_keep_their_buckets() {
        let (limiter, now) = (Limiter::default(), UnixMs(1_000_000));
        for n in 0..25_000 {
            assert_eq!(limiter.take(&key(n), RATE, now).remaining, 2);
        }
        for n in 0..25_000 {
            assert_eq!(limiter.take(&key(n), RATE, now).remaining, 1);
        }
    }

    proptest! {
        #[test]
        fn whoever_comes_back_when_told_to_is_served_whatever_the_clock_did(
            per_second in 1_u32..200, burst in 1_u32..50, steps in prop::collection::vec(-50_i64..400, 1..200),
        ) {
            let rate = Rate { per_second, burst };
            let mut now = UnixMs(1_000_000);
            let mut bucket = Bucket::full(rate, now);
            for step in steps {
                now = now.plus_ms(step);
                let taken = bucket.take(rate, now);
                prop_assert!(taken.remaining < u64::from(burst));
                if !taken.allowed {
                    let wait_ms = i64::try_from(taken.seconds * 1_000).unwrap();
                    let mut later = bucket;
                    prop_assert!(later.take(rate, now.plus_ms(wait_ms)).allowed);
                }
            }
        }

        #[test]
        fn a_steady_caller_below_the_rate_is_never_refused(
            per_second in 1_u32..1_000, burst in 1_u32..50, requests in 1_i64..200,
        ) {
            let rate = Rate { per_second, burst };
            let mut bucket = Bucket::full(rate, UnixMs(0));
            let gap_ms = 1_000_i64.div_euclid(i64::from(per_second)) + 1;
            for n in 0..requests {
                prop_assert!(bucket.take(rate, UnixMs(n * gap_ms)).allowed);
            }
        }

        #[test]
        fn with_a_clock_that_only_runs_on_the_bound_is_exact(
            per_second in 1_u32..200, burst in 1_u32..50, steps in prop::collection::vec(0_i64..400, 1..200),
        ) {
            let rate = Rate { per_second, burst };
            let mut bucket = Bucket::full(rate, UnixMs(0));
            let (mut now, mut allowed) = (UnixMs(0), 0_i64);
            for step in steps {
                now = now.plus_ms(step);
                allowed += i64::from(bucket.take(rate, now).allowed);
                prop_assert!(allowed <= i64::from(burst) + now.0 * i64::from(per_second) / 1_000);
            }
        }
    }
}
