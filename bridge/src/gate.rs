//! The gate in front of Messages.app: lease, epoch and deadline → may this start, and why not.
//!
//! Apple's servers cannot check a fencing token, so this is the last place that can. It is asked
//! twice for every send: when it is taken from the queue, and again with a fresh clock between
//! the fsync of `started` and the write of the script.

use protocol::UnixMs;

use crate::clock::Now;

/// Taken off every lease: what a scheduler or a slow fsync may eat between the last look at the
/// clock and the moment Messages has the text.
pub(crate) const MARGIN_MS: i64 = 3_000;

/// Longest lease that is believed. A larger one is a fault of the granter, and would keep a phone
/// sending long after another host took it over.
pub(crate) const TTL_MS_MAX: u64 = 10 * 60 * 1000;

/// A lease issued further in the future of our continuous clock than this was not issued on this
/// machine since its boot.
const CLOCK_SLACK_MS: i64 = 1_000;

/// The right to send, until a time on the continuous clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Under which epoch.
    pub(crate) epoch: u64,
    /// Until when, margin taken off, in milliseconds of the continuous clock.
    pub(crate) until_ms: i64,
}

/// Why a lease was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadLease {
    /// Older than an epoch that was seen.
    Stale,
    /// Longer than anything that is granted, or issued in the future.
    Implausible,
}

/// What the gate knows. `max_epoch` lives in the journal, the lease only in memory: after a
/// restart a bridge may not send until it is told again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Gate {
    lease: Option<Lease>,
    max_epoch: u64,
}

/// The gate's answer for one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may start now.
    Start,
    /// Not now, and not never.
    Wait(Why),
    /// Never here: its epoch is over.
    Stale,
    /// Never: its time ran out.
    Expired,
}

/// What a send waits for at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// No lease, or it ran out.
    NoLease,
    /// The lease is for another epoch; it is on its way.
    OtherEpoch,
}

impl Gate {
    pub(crate) fn new(max_epoch: u64) -> Self {
        Self { lease: None, max_epoch }
    }

    pub(crate) fn max_epoch(&self) -> u64 {
        self.max_epoch
    }

    /// Takes note of an epoch; true when it is the newest so far and must be journaled.
    pub(crate) fn see(&mut self, epoch: u64) -> bool {
        let newer = epoch > self.max_epoch;
        if newer {
            self.max_epoch = epoch;
            // A newer epoch exists: whoever holds it, our older lease is over.
            if self.lease.is_some_and(|lease| lease.epoch < epoch) {
                self.lease = None;
            }
        }
        newer
    }

    /// Opens or extends. The epoch must have been [seen](Self::see) first.
    pub(crate) fn grant(
        &mut self,
        epoch: u64,
        ttl_ms: u64,
        issued_ms: u64,
        now: Now,
    ) -> Result<(), BadLease> {
        if epoch < self.max_epoch {
            return Err(BadLease::Stale);
        }
        let (Ok(ttl), Ok(issued)) = (i64::try_from(ttl_ms), i64::try_from(issued_ms)) else {
            return Err(BadLease::Implausible);
        };
        if ttl_ms > TTL_MS_MAX || issued > now.continuous_ms.saturating_add(CLOCK_SLACK_MS) {
            return Err(BadLease::Implausible);
        }
        let until_ms = issued.saturating_add(ttl).saturating_sub(MARGIN_MS);
        // A delayed grant must not shorten the one that is held.
        let until_ms = match self.lease {
            Some(held) if held.epoch == epoch => held.until_ms.max(until_ms),
            Some(_) | None => until_ms,
        };
        self.lease = Some(Lease { epoch, until_ms });
        Ok(())
    }

    /// Closes for `epoch` and everything older.
    pub(crate) fn revoke(&mut self, epoch: u64) {
        if self.lease.is_some_and(|lease| lease.epoch <= epoch) {
            self.lease = None;
        }
    }

    /// Closes, whatever the epoch.
    pub(crate) fn close(&mut self) {
        self.lease = None;
    }

    /// May a send of this epoch and deadline start now?
    pub(crate) fn ask(&self, epoch: u64, start_before: UnixMs, now: Now) -> Verdict {
        if epoch < self.max_epoch {
            return Verdict::Stale;
        }
        if now.wall >= start_before {
            return Verdict::Expired;
        }
        match self.lease {
            Some(lease) if now.continuous_ms >= lease.until_ms => Verdict::Wait(Why::NoLease),
            Some(lease) if lease.epoch != epoch => Verdict::Wait(Why::OtherEpoch),
            Some(_) => Verdict::Start,
            None => Verdict::Wait(Why::NoLease),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(continuous_ms: i64) -> Now {
        Now { wall: UnixMs(1_000_000 + continuous_ms), continuous_ms }
    }

    fn leased(epoch: u64, ttl_ms: u64, issued_ms: u64, now: Now) -> Gate {
        let mut gate = Gate::default();
        gate.see(epoch);
        gate.grant(epoch, ttl_ms, issued_ms, now).unwrap();
        gate
    }

    #[test]
    fn the_gate_opens_only_for_the_leased_epoch_in_time() {
        const LATER: UnixMs = UnixMs(i64::MAX);
        let gate = leased(5, 15_000, 10_000, at(10_100));
        let cases = [
            (5, LATER, at(10_100), Verdict::Start),
            (5, LATER, at(21_999), Verdict::Start),
            // 10 000 + 15 000 - 3 000: the margin is ours to lose.
            (5, LATER, at(22_000), Verdict::Wait(Why::NoLease)),
            (4, LATER, at(10_100), Verdict::Stale),
            (6, LATER, at(10_100), Verdict::Wait(Why::OtherEpoch)),
            (5, UnixMs(1_010_101), at(10_100), Verdict::Start),
            (5, UnixMs(1_010_100), at(10_100), Verdict::Expired),
            // Stale comes first: it is the reason that holds for ever.
            (4, UnixMs(0), at(10_100), Verdict::Stale),
        ];
        for (epoch, start_before, now, expected) in cases {
            assert_eq!(
                gate.ask(epoch, start_before, now),
                expected,
                "{epoch} {start_before} {now:?}"
            );
        }
    }

    #[test]
    fn a_restarted_bridge_has_no_lease() {
        let gate = Gate::new(7);
        assert_eq!(gate.ask(7, UnixMs(i64::MAX), at(0)), Verdict::Wait(Why::NoLease));
        assert_eq!(gate.ask(6, UnixMs(i64::MAX), at(0)), Verdict::Stale);
    }

    #[test]
    fn a_revoked_lease_is_closed_and_an_older_revoke_is_too_late() {
        let mut gate = leased(5, 15_000, 0, at(0));
        gate.revoke(4);
        assert_eq!(gate.ask(5, UnixMs(i64::MAX), at(0)), Verdict::Start);
        gate.revoke(5);
        assert_eq!(gate.ask(5, UnixMs(i64::MAX), at(0)), Verdict::Wait(Why::NoLease));
    }

    #[test]
    fn a_newer_epoch_ends_the_older_lease() {
        let mut gate = leased(5, 15_000, 0, at(0));
        assert!(gate.see(6));
        assert_eq!(gate.ask(6, UnixMs(i64::MAX), at(0)), Verdict::Wait(Why::NoLease));
        assert_eq!(gate.grant(5, 15_000, 0, at(0)), Err(BadLease::Stale));
    }

    #[test]
    fn a_lease_that_cannot_be_true_is_not_taken() {
        let mut gate = Gate::default();
        assert_eq!(gate.grant(1, TTL_MS_MAX + 1, 0, at(0)), Err(BadLease::Implausible));
        assert_eq!(gate.grant(1, 15_000, 5_000, at(0)), Err(BadLease::Implausible));
        assert_eq!(gate.grant(1, u64::MAX, u64::MAX, at(0)), Err(BadLease::Implausible));
    }

    #[test]
    fn a_delayed_grant_does_not_shorten_the_lease() {
        let mut gate = leased(5, 15_000, 10_000, at(10_000));
        gate.grant(5, 15_000, 5_000, at(10_500)).unwrap();
        assert_eq!(gate.ask(5, UnixMs(i64::MAX), at(21_999)), Verdict::Start);
    }

    #[derive(Debug, Clone)]
    enum Step {
        See(u64),
        Grant { epoch: u64, ttl_ms: u64, ago_ms: u64 },
        Revoke(u64),
        Wait(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u64..6).prop_map(Step::See),
            (0_u64..6, 0_u64..30_000, 0_u64..20_000)
                .prop_map(|(epoch, ttl_ms, ago_ms)| Step::Grant { epoch, ttl_ms, ago_ms }),
            (0_u64..6).prop_map(Step::Revoke),
            (0_i64..20_000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever came before: an open gate means a grant for this very epoch, not revoked
        /// since, with more than the margin left, and no newer epoch ever seen.
        #[test]
        fn nothing_starts_without_a_valid_lease(steps in prop::collection::vec(step(), 0..40), ask in 0_u64..6) {
            let mut gate = Gate::default();
            let mut now = at(100_000);
            let mut best: Option<(u64, i64)> = None;
            let mut newest = 0;
            for step in steps {
                match step {
                    Step::See(epoch) => {
                        gate.see(epoch);
                        newest = newest.max(epoch);
                        best = best.filter(|(held, _)| *held >= newest);
                    }
                    Step::Grant { epoch, ttl_ms, ago_ms } => {
                        let issued = now.continuous_ms - i64::try_from(ago_ms).unwrap();
                        if gate.grant(epoch, ttl_ms, u64::try_from(issued).unwrap(), now).is_ok() {
                            let until = issued + i64::try_from(ttl_ms).unwrap();
                            let longest = match best { Some((held, old)) if held == epoch => old.max(until), _ => until };
                            best = Some((epoch, longest));
                        }
                    }
                    Step::Revoke(epoch) => {
                        gate.revoke(epoch);
                        best = best.filter(|(held, _)| *held > epoch);
                    }
                    Step::Wait(ms) => now = at(now.continuous_ms + ms),
                }
            }
            let open = gate.ask(ask, UnixMs(i64::MAX), now) == Verdict::Start;
            let expected = ask >= newest
                && best.is_some_and(|(epoch, until)| epoch == ask && now.continuous_ms < until - MARGIN_MS);
            prop_assert_eq!(open, expected);
        }
    }
}
