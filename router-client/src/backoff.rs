//! When to dial again: pure, the random number is an argument.
//!
//! The first redial comes at once, because most losses are a restarted edge server or a switched network and the next
//! attempt succeeds. After that full jitter keeps a shelf of hosts from redialling in step.

/// Shortest delay of the jittered redials.
pub(crate) const DELAY_MIN_MS: u64 = 500;
/// Longest delay of the jittered redials: what a host can be away for after the router is back.
pub const DELAY_MAX_MS: u64 = 30_000;
/// A session that lived so long was a good one; what happened before it is forgiven.
pub(crate) const FORGIVEN_AFTER_MS: u64 = 60_000;
/// Delay when the router refuses this host: only a person can change that, but the answer may come any time.
pub(crate) const REFUSED_MS: u64 = 5 * 60_000;
/// Longest delay while the clocks differ: a machine that has just started sets its clock within seconds, and may be dialling
/// before that.
pub(crate) const SKEWED_MAX_MS: u64 = 10_000;
/// Least delay after another session of the same host replaced this one: two supervisors with one key must not take
/// the link from each other in a tight loop.
pub(crate) const REPLACED_MS: u64 = 60_000;

/// Why the last attempt ended, as far as the next delay depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Network, timeout, protocol: anything that may be better the next time.
    Lost,
    /// 401, 403, 4401 or 4426: the router does not want this host as it is.
    Refused,
    /// 401 for the time: the clocks differ too much, which ends by itself where a clock is set automatically.
    Skewed,
    /// 4409: a newer session of this host.
    Replaced,
    /// 4503: the router is being restarted and asked for a redial at once.
    Draining,
    /// This side wants another connection: it slept, or its network is another.
    Asked,
}

/// What the dialler remembers between attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// Longest delay of the jittered redials, in milliseconds.
    delay_max_ms: u64,
    /// Redials since the last session that lived long enough.
    redials: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { delay_max_ms: DELAY_MAX_MS, redials: 0 }
    }
}

impl Backoff {
    /// Nothing lost yet; jittered redials wait for at most `delay_max`.
    pub fn new(delay_max: std::time::Duration) -> Self {
        let delay_max_ms = u64::try_from(delay_max.as_millis()).unwrap_or(DELAY_MAX_MS);
        Self { delay_max_ms: delay_max_ms.max(1), redials: 0 }
    }

    /// The delay before the next attempt, in milliseconds.
    ///
    /// `lived_ms` is how long the session was welcome, zero if it never was. `random` is any 64 bits.
    pub fn next(&mut self, cause: Cause, lived_ms: u64, random: u64) -> u64 {
        if lived_ms >= FORGIVEN_AFTER_MS || cause == Cause::Asked {
            // What was lost before says nothing about a machine that has just woken or a network that is another.
            self.redials = 0;
        }
        let redials = self.redials;
        if cause != Cause::Asked {
            self.redials = self.redials.saturating_add(1);
        }
        match cause {
            // A router that drains for ever, or whose store fails again and again, would be dialled in a tight loop: it is
            // asked at once only the first time, however often it has said welcome since.
            Cause::Lost | Cause::Draining if redials == 0 => 0,
            Cause::Lost | Cause::Draining => jittered(redials, self.delay_max_ms, random),
            Cause::Asked => 0,
            Cause::Skewed => jittered(redials, self.delay_max_ms.min(SKEWED_MAX_MS), random),
            Cause::Refused => REFUSED_MS + random % (REFUSED_MS / 10),
            Cause::Replaced => REPLACED_MS + random % (REPLACED_MS / 2),
        }
    }
}

/// Most that a link is patient: as long as a lease holds, for then there is nothing left to be patient for.
const PATIENCE_MAX_MS: u64 = protocol::link::LEASE_TTL_MS;

/// How long a session may hear nothing. A network on which answers take longer than that would be redialled for ever, and
/// never carry anything: whoever has ended a session for its silence waits twice as long in the next one.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    first_ms: u64,
    now_ms: u64,
}

impl Patience {
    pub(crate) fn new(first: std::time::Duration) -> Self {
        let first_ms = u64::try_from(first.as_millis()).unwrap_or(PATIENCE_MAX_MS);
        Self { first_ms, now_ms: first_ms }
    }

    pub(crate) fn silence_ms(&self) -> u64 {
        self.now_ms
    }

    /// A session has ended, for its silence or not. One that lived long enough to be silent several times over shows that the
    /// first patience is enough.
    pub(crate) fn ended(&mut self, silent: bool, lived_ms: u64) {
        if lived_ms >= PATIENCE_MAX_MS {
            self.now_ms = self.first_ms;
        } else if silent {
            self.now_ms = self.now_ms.saturating_mul(2).min(PATIENCE_MAX_MS.max(self.first_ms));
        }
    }
}

/// Full jitter: anything between the minimum and a ceiling that doubles with every redial.
fn jittered(redials: u32, delay_max_ms: u64, random: u64) -> u64 {
    let doublings = redials.min(16);
    let floor = DELAY_MIN_MS.min(delay_max_ms);
    let ceiling = (DELAY_MIN_MS << doublings).min(delay_max_ms).max(floor);
    floor + random % (ceiling - floor + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_redial_is_at_once_and_the_second_is_not() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(Cause::Lost, 0, 7), 0);
        assert!(backoff.next(Cause::Lost, 0, 7) >= DELAY_MIN_MS);
    }

    #[test]
    fn an_operator_may_lower_the_ceiling_below_the_usual_minimum() {
        let mut backoff = Backoff::new(std::time::Duration::from_millis(200));
        assert_eq!(backoff.next(Cause::Lost, 0, 7), 0);
        for random in [0, 7, u64::MAX] {
            assert_eq!(backoff.next(Cause::Lost, 0, random), 200);
        }
    }

    #[test]
    fn the_ceiling_doubles_up_to_thirty_seconds() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<u64> = (0..9)
            .map(|_| {
                let mut probe = backoff.clone();
                let longest = (0..=DELAY_MAX_MS)
                    .map(|random| probe.clone().next(Cause::Lost, 0, random))
                    .max()
                    .unwrap();
                probe.next(Cause::Lost, 0, 0);
                backoff = probe;
                longest
            })
            .collect();
        assert_eq!(ceilings, [0, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    }

    #[test]
    fn a_minute_of_life_forgives_and_less_does_not() {
        let mut backoff = Backoff::default();
        backoff.next(Cause::Lost, 0, 0);
        assert_ne!(backoff.next(Cause::Lost, FORGIVEN_AFTER_MS - 1, 0), 0);
        assert_eq!(backoff.next(Cause::Lost, FORGIVEN_AFTER_MS, 0), 0);
    }

    #[test]
    fn a_refused_host_waits_five_minutes_even_the_first_time() {
        assert!(Backoff::default().next(Cause::Refused, 0, 0) >= REFUSED_MS);
    }

    #[test]
    fn a_host_with_a_wrong_clock_waits_for_seconds_however_often_it_was_refused() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(Cause::Skewed, 0, 7), DELAY_MIN_MS);
        let longest = (0..200).map(|random| backoff.next(Cause::Skewed, 0, random * 97)).max();
        assert!(longest.is_some_and(|ms| ms > 5_000 && ms <= SKEWED_MAX_MS), "{longest:?}");
    }

    #[test]
    fn a_replaced_session_is_slow_even_after_a_long_life() {
        assert!(Backoff::default().next(Cause::Replaced, 10 * FORGIVEN_AFTER_MS, 0) >= REPLACED_MS);
    }

    #[test]
    fn a_draining_router_is_dialled_at_once_but_not_in_a_loop() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(Cause::Draining, 5_000, 0), 0);
        assert_eq!(backoff.next(Cause::Draining, 5_000, 0), DELAY_MIN_MS);
        assert!(backoff.next(Cause::Draining, 0, u64::MAX) > DELAY_MIN_MS);
    }

    #[test]
    fn sessions_that_die_within_seconds_climb_whatever_they_die_of() {
        for cause in [Cause::Lost, Cause::Draining] {
            let mut backoff = Backoff::default();
            // The most that chance allows, after sessions that were welcome for five seconds each.
            let most = |redials| (DELAY_MIN_MS << redials) - DELAY_MIN_MS;
            let waits = (0..5).map(|n| backoff.next(cause, 5_000, most(n))).collect::<Vec<_>>();
            assert_eq!(waits, [0, 1_000, 2_000, 4_000, 8_000], "{cause:?}");
            assert_eq!(backoff.next(cause, FORGIVEN_AFTER_MS, 0), 0, "a good one is forgiven");
        }
    }

    #[test]
    fn a_link_that_ends_for_its_silence_again_and_again_becomes_patient() {
        let mut patience = Patience::new(std::time::Duration::from_secs(4));
        let mut waits = Vec::new();
        for _ in 0..4 {
            waits.push(patience.silence_ms());
            patience.ended(true, 5_000);
        }
        assert_eq!(waits, [4_000, 8_000, PATIENCE_MAX_MS, PATIENCE_MAX_MS]);
        patience.ended(false, 5_000);
        assert_eq!(
            patience.silence_ms(),
            PATIENCE_MAX_MS,
            "a cut says nothing of the network's pace"
        );
        patience.ended(true, PATIENCE_MAX_MS);
        assert_eq!(patience.silence_ms(), 4_000);
    }

    proptest! {
        #[test]
        fn only_the_first_redial_is_immediate_and_none_exceeds_its_bound(
            attempts in prop::collection::vec((0_u8..5, 0_u64..FORGIVEN_AFTER_MS, any::<u64>()), 1..60),
        ) {
            let mut backoff = Backoff::default();
            for (number, (cause, lived_ms, random)) in attempts.into_iter().enumerate() {
                let cause = match cause {
                    0 => Cause::Lost,
                    1 => Cause::Refused,
                    2 => Cause::Replaced,
                    3 => Cause::Skewed,
                    _ => Cause::Draining,
                };
                let delay = backoff.next(cause, lived_ms, random);
                if number > 0 {
                    prop_assert!(delay >= DELAY_MIN_MS);
                }
                let most = match cause {
                    Cause::Lost | Cause::Draining => DELAY_MAX_MS,
                    Cause::Refused => REFUSED_MS + REFUSED_MS / 10,
                    Cause::Skewed => SKEWED_MAX_MS,
                    Cause::Replaced => REPLACED_MS + REPLACED_MS / 2,
                    Cause::Asked => 0,
                };
                prop_assert!(delay <= most);
            }
        }
    }
}
