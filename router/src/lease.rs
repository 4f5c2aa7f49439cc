//! Who may send for a phone. Pure: the row comes in, the row to be written goes out.
//!
//! Only the router promotes. A lease is durable, so that a restarted router does not grant a phone to a second
//! host while the first still believes in its lease. The epoch grows whenever the right to send may have
//! passed to another host, which is what lets a bridge refuse commands from before.

/// How long leases hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How long a lease is good for.
    pub ttl_ms: i64,
    /// How long after its end a lease is still honoured against others: the clocks of two machines and a renewal
    /// under way must not make two holders.
    pub grace_ms: i64,
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
}

/// What a host that asks for a lease gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Granted anew: the epoch is one that no host has held before.
    Grant(Lease),
    /// The asker held it already and keeps its epoch.
    Renew(Lease),
    /// Another host holds it.
    Refuse {
        /// Earliest time at which asking again can help.
        until_ms: i64,
    },
}

/// Decides for `asker`.
pub fn decide(policy: Policy, current: Option<&Lease>, asker: &str, now_ms: i64) -> Decision {
    let expires_ms = now_ms.saturating_add(policy.ttl_ms);
    let Some(current) = current else {
        return Decision::Grant(Lease { host: asker.to_owned(), epoch: 1, expires_ms });
    };
    if current.host == asker {
        // An expired lease that nobody else was granted has not changed hands: the epoch stays. The end is
        // never moved back, whatever the wall clock does.
        let expires_ms = expires_ms.max(current.expires_ms);
        return Decision::Renew(Lease { host: asker.to_owned(), epoch: current.epoch, expires_ms });
    }
    let free_from_ms = current.expires_ms.saturating_add(policy.grace_ms);
    if now_ms < free_from_ms {
        return Decision::Refuse { until_ms: free_from_ms };
    }
    Decision::Grant(Lease {
        host: asker.to_owned(),
        epoch: current.epoch.saturating_add(1),
        expires_ms,
    })
}

/// Whether a lease may be built upon at `now_ms`: a command is only worth sending under one that lives.
pub fn live(lease: &Lease, host: &str, now_ms: i64) -> bool {
    lease.host == host && now_ms < lease.expires_ms
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy { ttl_ms: 15_000, grace_ms: 5_000 };

    fn lease(host: &str, epoch: u64, expires_ms: i64) -> Lease {
        Lease { host: host.to_owned(), epoch, expires_ms }
    }

    #[test]
    fn the_first_asker_gets_epoch_one() {
        assert_eq!(decide(POLICY, None, "a", 100), Decision::Grant(lease("a", 1, 15_100)));
    }

    #[test]
    fn the_holder_keeps_its_epoch_even_after_the_end() {
        let held = lease("a", 4, 1_000);
        assert_eq!(decide(POLICY, Some(&held), "a", 500), Decision::Renew(lease("a", 4, 15_500)));
        assert_eq!(
            decide(POLICY, Some(&held), "a", 90_000),
            Decision::Renew(lease("a", 4, 105_000))
        );
    }

    #[test]
    fn another_host_waits_for_the_end_and_the_grace() {
        let held = lease("a", 4, 1_000);
        assert_eq!(decide(POLICY, Some(&held), "b", 1_000), Decision::Refuse { until_ms: 6_000 });
        assert_eq!(decide(POLICY, Some(&held), "b", 5_999), Decision::Refuse { until_ms: 6_000 });
        assert_eq!(decide(POLICY, Some(&held), "b", 6_000), Decision::Grant(lease("b", 5, 21_000)));
    }

    #[test]
    fn a_lease_is_live_for_its_holder_alone() {
        let held = lease("a", 4, 1_000);
        assert!(live(&held, "a", 999));
        assert!(!live(&held, "a", 1_000));
        assert!(!live(&held, "b", 999));
    }

    proptest! {
        /// Any sequence of askers at any (also jumping) times: never two live holders, never a smaller epoch.
        #[test]
        fn there_is_never_a_second_holder(asks in prop::collection::vec((0_u8..3, -3_000_i64..20_000), 1..60)) {
            let mut now: i64 = 1_000_000;
            let mut current: Option<Lease> = None;
            // What each host believes: its last granted end.
            let mut believes: [i64; 3] = [0; 3];
            for (host, step) in asks {
                now += step;
                let name = host.to_string();
                match decide(POLICY, current.as_ref(), &name, now) {
                    Decision::Grant(new) => {
                        if let Some(old) = &current {
                            prop_assert!(new.epoch > old.epoch);
                        }
                        for (other, end) in believes.iter().enumerate() {
                            prop_assert!(other == usize::from(host) || now >= *end);
                        }
                        believes[usize::from(host)] = new.expires_ms;
                        current = Some(new);
                    }
                    Decision::Renew(new) => {
                        let old = current.clone().unwrap();
                        prop_assert_eq!(new.epoch, old.epoch);
                        prop_assert!(new.expires_ms >= old.expires_ms);
                        believes[usize::from(host)] = new.expires_ms;
                        current = Some(new);
                    }
                    Decision::Refuse { until_ms } => prop_assert!(until_ms > now),
                }
            }
        }
    }
}
