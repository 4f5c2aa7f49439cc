//! Who may send for a phone. Pure: the row comes in, the row to be written goes out.
//!
//! Only the router promotes. A lease is durable, so that a restarted router does not grant a phone to a second
//! host while the first still believes in its lease. The epoch grows whenever the right to send may have
//! passed to another host, which is what lets a bridge refuse commands from before.
//!
//! A phone has one host that serves it, and may have others that stand by. One of these gets the phone when the lease
//! has been over for the grace: the holder is gone. It gets it at once when the holder has said that it sends no more:
//! a planned hand-over.

use protocol::Reason;
use protocol::link::{PhoneState, PowerLevel};

/// How long leases hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the unit is last in every name")]
pub struct Policy {
    /// How long a lease is good for.
    pub ttl_ms: i64,
    /// How long after its end a lease is still honoured against others: the clocks of two machines and a renewal
    /// under way must not make two holders.
    pub grace_ms: i64,
    /// A phone that cannot send for so long is handed to a host that stands by, where one can.
    pub unfit_ms: i64,
    /// A phone is not moved by itself again within this time: a fault of both hosts must not become a ping-pong.
    pub settle_ms: i64,
    /// For how long the wall clock has run evenly: before that is a lease's life, its end cannot be believed.
    pub steady_ms: i64,
}

/// The lease of one phone as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The host that holds it.
    pub host: String,
    /// The epoch it was granted under.
    pub epoch: u64,
    /// When it ends, unless renewed.
    pub expires_ms: i64,
    /// Its holder has said that it sends no more.
    pub released: bool,
}

/// How a host that asks stands to the phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It serves the phone.
    Active,
    /// It serves the phone and is to hand it over: it gets nothing more.
    Leaving,
    /// The phone is being handed over to it.
    Heir,
    /// It stands by; `fit` when it could send this moment.
    Standby {
        /// Whether it may be promoted now.
        fit: bool,
    },
}

/// What a host that asks for a lease gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Granted anew: the epoch is one that no host has held before.
    Grant(Lease),
    /// The asker held it already and keeps its epoch.
    Renew(Lease),
    /// Another host holds it, or is to have it.
    Refuse {
        /// Earliest time at which asking again can help.
        until_ms: i64,
    },
}

/// Longest lease that a configuration can ask for, and that a bridge believes. One that seems to last longer was granted
/// before the wall clock was set back, and says nothing about when it ends.
pub const LONGEST_MS: i64 = 600_000;

/// Decides for `asker`.
pub fn decide(
    policy: Policy,
    current: Option<&Lease>,
    (asker, role): (&str, Role),
    now_ms: i64,
) -> Decision {
    let expires_ms = now_ms.saturating_add(policy.ttl_ms);
    let later = Decision::Refuse { until_ms: expires_ms };
    match role {
        Role::Active | Role::Heir | Role::Standby { fit: true } => {}
        Role::Leaving | Role::Standby { fit: false } => return later,
    }
    let Some(current) = current else {
        // Nobody has ever held it: there is nobody to take over from.
        return match role {
            Role::Active | Role::Heir => Decision::Grant(Lease {
                host: asker.to_owned(),
                epoch: 1,
                expires_ms,
                released: false,
            }),
            Role::Leaving | Role::Standby { .. } => later,
        };
    };
    let believable = current.expires_ms <= now_ms.saturating_add(LONGEST_MS);
    if current.host == asker && role == Role::Active {
        // An expired lease that nobody else was granted has not changed hands: the epoch stays. The end is not moved
        // back by a clock that is corrected, nor by a configuration with a shorter life.
        let expires_ms = if believable { expires_ms.max(current.expires_ms) } else { expires_ms };
        let epoch = current.epoch;
        return Decision::Renew(Lease {
            host: asker.to_owned(),
            epoch,
            expires_ms,
            released: false,
        });
    }
    let free_from_ms = current.expires_ms.saturating_add(policy.grace_ms);
    // What was released for an heir is the heir's: a third host waits as if it had not been.
    let released = current.released && role == Role::Heir;
    if !released {
        if believable && now_ms < free_from_ms {
            return Decision::Refuse { until_ms: free_from_ms };
        }
        let longest_ms = if believable { policy.ttl_ms } else { LONGEST_MS };
        let believed_after_ms = longest_ms.saturating_add(policy.grace_ms);
        let missing_ms = believed_after_ms.saturating_sub(policy.steady_ms);
        if missing_ms > 0 {
            return Decision::Refuse { until_ms: now_ms.saturating_add(missing_ms) };
        }
    }
    Decision::Grant(Lease {
        host: asker.to_owned(),
        epoch: current.epoch.saturating_add(1),
        expires_ms,
        released: false,
    })
}

/// Whether a lease may be built upon at `now_ms`: a command is only worth sending under one that lives.
pub fn live(lease: &Lease, host: &str, now_ms: i64) -> bool {
    lease.host == host && !lease.released && now_ms < lease.expires_ms
}

/// How a phone is on the host that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What its bridge is doing.
    pub state: PhoneState,
    /// Why it is not ready.
    pub reasons: Vec<Reason>,
    /// Since when it has not been ready, for whatever reasons one after the other.
    pub since_ms: i64,
    /// Its account counts as blocked ([`blocked`]).
    pub blocked: bool,
    /// When the phone last changed hosts.
    pub moved_ms: Option<i64>,
    /// When a hand-over was last called off, because it did not come about.
    pub called_off_ms: Option<i64>,
    /// What the host runs on.
    pub power: Option<PowerLevel>,
    /// The operator drains the host.
    pub drained: bool,
}

/// Whether the account of a phone counts as blocked after a word of the host that serves it; `before` says whether it did.
pub fn blocked(before: bool, state: PhoneState, reasons: &[Reason]) -> bool {
    if reasons.contains(&Reason::AccountBlocked) {
        return true;
    }
    // A block is kept by the bridge that has met it. Another one, on a Mac that is new to the phone, knows it only when it is
    // all well; and one that starts, or is not well for another reason, says nothing of it.
    before && state != PhoneState::Ready
}

/// Whether a phone should be handed to a host that stands by, though its own host is there.
pub fn unfit(policy: Policy, condition: &Condition, now_ms: i64) -> bool {
    // A block is the account's, and moving what is blocked helps nobody, whatever else is the matter.
    if condition.blocked {
        return false;
    }
    // A host that was chosen and never came is not chosen again and again: meanwhile nobody would send at all.
    if condition.called_off_ms.is_some_and(|off| now_ms.saturating_sub(off) < policy.settle_ms) {
        return false;
    }
    if condition.drained {
        return true;
    }
    if condition.moved_ms.is_some_and(|moved| now_ms.saturating_sub(moved) < policy.settle_ms) {
        return false;
    }
    // The account is the same on every host: what Apple refuses here, it refuses there, and a second Mac that goes on
    // only makes it worse (facts of an account banned after a burst).
    if condition.reasons.contains(&Reason::AccountUnusable) {
        return false;
    }
    if matches!(condition.power, Some(PowerLevel::Battery | PowerLevel::Low)) {
        return true;
    }
    match condition.state {
        PhoneState::Ready => false,
        // It was tried for ten minutes already.
        PhoneState::Parked => true,
        PhoneState::Stopped
        | PhoneState::Starting
        | PhoneState::NotReady
        | PhoneState::Draining
        | PhoneState::Backoff => now_ms.saturating_sub(condition.since_ms) >= policy.unfit_ms,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy {
        ttl_ms: 15_000,
        grace_ms: 5_000,
        unfit_ms: 60_000,
        settle_ms: 300_000,
        steady_ms: i64::MAX,
    };

    fn lease(host: &str, epoch: u64, expires_ms: i64) -> Lease {
        Lease { host: host.to_owned(), epoch, expires_ms, released: false }
    }

    #[test]
    fn the_first_asker_gets_epoch_one() {
        assert_eq!(
            decide(POLICY, None, ("a", Role::Active), 100),
            Decision::Grant(lease("a", 1, 15_100))
        );
    }

    #[test]
    fn the_holder_keeps_its_epoch_even_after_the_end() {
        let held = lease("a", 4, 1_000);
        assert_eq!(
            decide(POLICY, Some(&held), ("a", Role::Active), 500),
            Decision::Renew(lease("a", 4, 15_500))
        );
        assert_eq!(
            decide(POLICY, Some(&held), ("a", Role::Active), 90_000),
            Decision::Renew(lease("a", 4, 105_000))
        );
    }

    #[test]
    fn another_host_waits_for_the_end_and_the_grace() {
        let held = lease("a", 4, 1_000);
        assert_eq!(
            decide(POLICY, Some(&held), ("b", Role::Active), 1_000),
            Decision::Refuse { until_ms: 6_000 }
        );
        assert_eq!(
            decide(POLICY, Some(&held), ("b", Role::Active), 5_999),
            Decision::Refuse { until_ms: 6_000 }
        );
        assert_eq!(
            decide(POLICY, Some(&held), ("b", Role::Active), 6_000),
            Decision::Grant(lease("b", 5, 21_000))
        );
    }

    #[test]
    fn a_lease_is_live_for_its_holder_alone() {
        let held = lease("a", 4, 1_000);
        assert!(live(&held, "a", 999));
        assert!(!live(&held, "a", 1_000));
        assert!(!live(&held, "b", 999));
    }

    #[test]
    fn a_standby_is_promoted_only_when_the_holder_is_gone_and_it_is_fit_itself() {
        let held = lease("a", 4, 1_000);
        let fit = Role::Standby { fit: true };
        let ask = |held: Option<&Lease>, role, now| decide(POLICY, held, ("b", role), now);
        assert_eq!(ask(Some(&held), fit, 5_999), Decision::Refuse { until_ms: 6_000 });
        assert_eq!(ask(Some(&held), fit, 6_000), Decision::Grant(lease("b", 5, 21_000)));
        assert!(matches!(
            ask(Some(&held), Role::Standby { fit: false }, 60_000),
            Decision::Refuse { .. }
        ));
        assert!(matches!(ask(None, fit, 60_000), Decision::Refuse { .. }));
    }

    #[test]
    fn a_lease_whose_end_cannot_be_believed_is_waited_for_anew() {
        let held = lease("a", 4, 1_000);
        let released = Lease { released: true, ..held.clone() };
        let policy = Policy { steady_ms: 7_000, ..POLICY };
        for role in [Role::Standby { fit: true }, Role::Heir, Role::Active] {
            let decision = decide(policy, Some(&held), ("b", role), 90_000);
            assert_eq!(decision, Decision::Refuse { until_ms: 103_000 }, "{role:?}");
        }
        // What the holder says itself needs no clock, and the holder takes nothing from anybody.
        let heir = decide(policy, Some(&released), ("b", Role::Heir), 500);
        assert_eq!(heir, Decision::Grant(lease("b", 5, 15_500)));
        let holder = decide(policy, Some(&held), ("a", Role::Active), 500);
        assert_eq!(holder, Decision::Renew(lease("a", 4, 15_500)));
    }

    #[test]
    fn a_clock_that_was_set_back_holds_up_nobody_for_longer_than_a_lease_can_last() {
        let held = lease("a", 4, 3_600_000);
        let even = |steady_ms| Policy { steady_ms, ..POLICY };
        let fit = Role::Standby { fit: true };
        let ask = |steady_ms| decide(even(steady_ms), Some(&held), ("b", fit), 1_000);
        assert_eq!(ask(20_000), Decision::Refuse { until_ms: 1_000 + 585_000 });
        assert_eq!(ask(605_000), Decision::Grant(lease("b", 5, 16_000)));
        // The holder itself shows when its lease ends.
        let holder = |held: &Lease| decide(even(0), Some(held), ("a", Role::Active), 1_000);
        assert_eq!(holder(&held), Decision::Renew(lease("a", 4, 16_000)));
        // A lease of a longer life that was configured before is not cut short.
        let long = lease("a", 4, 300_000);
        assert_eq!(holder(&long), Decision::Renew(long.clone()));
    }

    #[test]
    fn a_planned_hand_over_waits_for_the_holders_word_or_the_end_of_its_lease() {
        let held = lease("a", 4, 1_000);
        let released = Lease { released: true, ..held.clone() };
        let ask = |held: &Lease, asker, role| decide(POLICY, Some(held), (asker, role), 500);
        assert!(matches!(ask(&held, "a", Role::Leaving), Decision::Refuse { .. }));
        assert_eq!(ask(&held, "b", Role::Heir), Decision::Refuse { until_ms: 6_000 });
        assert_eq!(ask(&released, "b", Role::Heir), Decision::Grant(lease("b", 5, 15_500)));
        // A third host is not the one that it was released for.
        let third = ask(&released, "c", Role::Standby { fit: true });
        assert_eq!(third, Decision::Refuse { until_ms: 6_000 });
        assert!(!live(&released, "a", 500));
        // Called off, the holder goes on.
        assert_eq!(ask(&released, "a", Role::Active), Decision::Renew(lease("a", 4, 15_500)));
    }

    #[test]
    fn a_phone_is_moved_for_what_another_host_can_do_better() {
        let well = Condition {
            state: PhoneState::Ready,
            reasons: vec![],
            since_ms: 0,
            blocked: false,
            moved_ms: None,
            called_off_ms: None,
            power: Some(PowerLevel::Mains),
            drained: false,
        };
        let not_ready = |reasons: &[Reason]| Condition {
            state: PhoneState::NotReady,
            reasons: reasons.to_vec(),
            ..well.clone()
        };
        let now = 60_000;
        let cases = [
            (well.clone(), false),
            (Condition { drained: true, ..well.clone() }, true),
            (Condition { power: Some(PowerLevel::Battery), ..well.clone() }, true),
            (Condition { power: None, ..well.clone() }, false),
            (Condition { state: PhoneState::Parked, since_ms: now, ..well.clone() }, true),
            (not_ready(&[Reason::DatabasePermission]), true),
            (Condition { since_ms: 1, ..not_ready(&[Reason::DatabasePermission]) }, false),
            (not_ready(&[Reason::AccountUnusable]), false),
            (Condition { drained: true, blocked: true, ..well.clone() }, false),
            (Condition { state: PhoneState::Parked, blocked: true, ..well.clone() }, false),
            (Condition { moved_ms: Some(1), ..not_ready(&[Reason::DatabasePermission]) }, false),
            (Condition { moved_ms: Some(now), drained: true, ..well.clone() }, true),
            (Condition { called_off_ms: Some(1), drained: true, ..well.clone() }, false),
            (Condition { called_off_ms: Some(-240_000), drained: true, ..well.clone() }, true),
        ];
        for (condition, expected) in cases {
            assert_eq!(unfit(POLICY, &condition, now), expected, "{condition:?}");
        }
    }

    #[test]
    fn a_block_stands_until_a_bridge_is_ready_without_it() {
        let blocked_too = [Reason::DatabasePermission, Reason::AccountBlocked];
        let other = [Reason::DatabasePermission];
        let cases: [(bool, PhoneState, &[Reason], bool); 10] = [
            (false, PhoneState::NotReady, &blocked_too, true),
            (true, PhoneState::NotReady, &blocked_too, true),
            // A bridge that is new to the phone has met nothing yet.
            (true, PhoneState::NotReady, &other, true),
            (true, PhoneState::Ready, &[], false),
            // The bridge runs and has not said yet how it is.
            (true, PhoneState::NotReady, &[], true),
            (true, PhoneState::Starting, &[], true),
            (true, PhoneState::Stopped, &[], true),
            (true, PhoneState::Parked, &[], true),
            (false, PhoneState::NotReady, &other, false),
            (false, PhoneState::Starting, &[], false),
        ];
        for (before, state, reasons, expected) in cases {
            assert_eq!(blocked(before, state, reasons), expected, "{before} {state:?} {reasons:?}");
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask(usize),
        HandTo(usize),
        /// The holder's word that it sends no more.
        Release,
        Fit(usize, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0_usize..3).prop_map(Step::Ask),
            1 => (0_usize..3).prop_map(Step::HandTo),
            1 => Just(Step::Release),
            1 => (0_usize..3, any::<bool>()).prop_map(|(host, fit)| Step::Fit(host, fit)),
        ]
    }

    proptest! {
        /// Any sequence of askers, hand-overs and releases at any (also jumping) times: never two hosts that believe in
        /// a lease, never a smaller epoch.
        #[test]
        fn there_is_never_a_second_holder(steps in prop::collection::vec((step(), -3_000_i64..20_000), 1..80)) {
            let mut now: i64 = 1_000_000;
            let mut current: Option<Lease> = None;
            let mut serving = 0;
            let mut handed: Option<usize> = None;
            let mut fit = [true; 3];
            // What each host believes: its last granted end.
            let mut believes: [i64; 3] = [0; 3];
            for (step, wait) in steps {
                now += wait;
                let host = match step {
                    Step::Ask(host) => host,
                    Step::Fit(host, is) => {
                        fit[host] = is;
                        continue;
                    }
                    Step::HandTo(to) => {
                        handed = (to != serving).then_some(to);
                        if let Some(lease) = &mut current {
                            lease.epoch += 1;
                            lease.released = false;
                        }
                        continue;
                    }
                    Step::Release => {
                        if let Some(lease) = current.as_mut().filter(|_| handed.is_some()) {
                            lease.released = true;
                            believes[serving] = i64::MIN;
                        }
                        continue;
                    }
                };
                let name = host.to_string();
                let role = match handed {
                    Some(to) if to == host => Role::Heir,
                    Some(_) if host == serving => Role::Leaving,
                    None if host == serving => Role::Active,
                    Some(_) => Role::Standby { fit: false },
                    None => Role::Standby { fit: fit[host] },
                };
                match decide(POLICY, current.as_ref(), (&name, role), now) {
                    Decision::Grant(new) => {
                        if let Some(old) = &current {
                            prop_assert!(new.epoch > old.epoch);
                        }
                        for (other, end) in believes.iter().enumerate() {
                            prop_assert!(other == host || now >= *end, "{other} still believes");
                        }
                        believes[host] = new.expires_ms;
                        current = Some(new);
                        serving = host;
                        handed = None;
                    }
                    Decision::Renew(new) => {
                        let old = current.clone().unwrap();
                        prop_assert_eq!(host, serving);
                        prop_assert_eq!(new.epoch, old.epoch);
                        prop_assert!(new.expires_ms >= old.expires_ms);
                        believes[host] = new.expires_ms;
                        current = Some(new);
                    }
                    Decision::Refuse { .. } => {}
                }
            }
        }
    }
}
