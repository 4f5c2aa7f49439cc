//! Which phone sends a message. Pure: candidates come in, a phone or the reason why none can goes out.
//!
//! The answer does not depend on the order of the candidates: ties are broken by the phone's id.

use protocol::channel::Channel;
use protocol::id::{PhoneId, TenantId};
use protocol::reason::Reason;

use crate::compliance::Verdict;
use crate::warming::DAY_MS;

/// Why no phone can take a message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unable {
    /// The phone that was asked for does not exist or is another tenant's: waiting does not help.
    NotAllowed,
    /// Every phone that could take it has its hands full: one will be free in a moment.
    Busy,
    /// Every phone that could take it has as many new contacts as it may have, and has never met the recipient.
    Warming {
        /// When the first place becomes free.
        until_ms: i64,
    },
    /// Every phone that may ever be used has sent as many messages today as it may.
    Capped,
    /// Every phone that could take it is offline, not ready, without a lease or lacks the channel, or has sent as many
    /// messages today as it may.
    Away {
        /// When one of the latter may send again; `i64::MAX` where there is none.
        until_ms: i64,
    },
}

impl Unable {
    /// The word for it outside.
    pub const fn reason(self) -> Reason {
        match self {
            Self::NotAllowed => Reason::PhoneNotAllowed,
            Self::Warming { .. } => Reason::WarmingCap,
            Self::Busy | Self::Capped | Self::Away { .. } => Reason::NoPhoneAvailable,
        }
    }

    /// Until when a message waits for it, unless something changes before; `i64::MAX` for as long as it lives. `None`: it
    /// does not wait, but fails.
    pub const fn waits_until(self) -> Option<i64> {
        match self {
            Self::Warming { until_ms } | Self::Away { until_ms } => Some(until_ms),
            Self::Busy => Some(i64::MAX),
            Self::NotAllowed | Self::Capped => None,
        }
    }

    /// What it says of a message that the rules let go.
    pub const fn verdict(self) -> Verdict {
        let reason = self.reason();
        match self.waits_until() {
            Some(until_ms) => Verdict::Hold { until_ms, reason },
            None => Verdict::block(reason),
        }
    }

    /// Nobody is there; `used_up`, a phone among them has sent all that it may today, and may again from midnight on (UTC,
    /// by which messages are counted).
    pub const fn away(used_up: bool, now_ms: i64) -> Self {
        let midnight_ms = now_ms.div_euclid(DAY_MS).saturating_add(1).saturating_mul(DAY_MS);
        Self::Away { until_ms: if used_up { midnight_ms } else { i64::MAX } }
    }
}

/// One phone of the pool, as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact that is true or not, by itself")]
pub struct Candidate {
    /// The phone.
    pub phone: PhoneId,
    /// The tenant it is reserved for; `None` when it is pooled.
    pub exclusive_to: Option<TenantId>,
    /// It is of the sandbox.
    pub sandbox: bool,
    /// Whether the recipient last talked with this phone for the asking tenant, and when.
    pub sticky_ms: Option<i64>,
    /// Its host has a session here.
    pub online: bool,
    /// Its bridge says that it can send.
    pub ready: bool,
    /// Its host holds a live lease.
    pub leased: bool,
    /// What it can send on.
    pub channels: Vec<Channel>,
    /// Attempts given to it that have no final answer.
    pub in_flight: u32,
    /// Whether it has exchanged messages with the recipient.
    pub known: bool,
    /// From when on it may have one more new contact.
    pub new_from_ms: i64,
    /// Whether it has sent as many messages today as it may.
    pub capped: bool,
    /// Messages sent today.
    pub messages_today: i64,
    /// Lower is preferred.
    pub warming_priority: i64,
    /// When it was last given a message; 0 for never.
    pub last_used_ms: i64,
}

/// What a message needs of a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need<'a> {
    /// Whose message it is.
    pub tenant: &'a TenantId,
    /// It was made with a test key: only phones of the sandbox may have it, and they nothing else.
    pub sandbox: bool,
    /// The phone that was asked for, if one was.
    pub from: Option<&'a PhoneId>,
    /// Channels that would do, best first.
    pub wanted: &'a [Channel],
    /// How many attempts a phone may have under way.
    pub in_flight_max: u32,
    /// The present.
    pub now_ms: i64,
}

/// The phone and the channels it is to try, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The phone.
    pub phone: PhoneId,
    /// Never empty.
    pub route: Vec<Channel>,
}

/// Chooses, or says why nobody can.
pub fn resolve(need: &Need<'_>, candidates: &[Candidate]) -> Result<Choice, Unable> {
    let allowed = || candidates.iter().filter(|candidate| eligible(need, candidate));
    // Waiting helps against a phone that is away, not against one that does not exist.
    if need.from.is_some() && allowed().next().is_none() {
        return Err(Unable::NotAllowed);
    }
    let able = || allowed().filter(|candidate| able(need, candidate));
    let willing =
        || able().filter(|candidate| candidate.known || candidate.new_from_ms <= need.now_ms);
    let best = willing()
        .filter(|candidate| candidate.in_flight < need.in_flight_max)
        .min_by(|left, right| rank(left).cmp(&rank(right)));
    if let Some(best) = best {
        return Ok(Choice { phone: best.phone.clone(), route: route(need, best) });
    }
    if willing().next().is_some() {
        return Err(Unable::Busy);
    }
    if let Some(until_ms) = able().map(|candidate| candidate.new_from_ms).min() {
        return Err(Unable::Warming { until_ms });
    }
    let used_up = allowed().next().is_some() && allowed().all(|candidate| candidate.capped);
    if used_up {
        return Err(Unable::Capped);
    }
    let later = allowed().any(|candidate| candidate.capped && !route(need, candidate).is_empty());
    Err(Unable::away(later, need.now_ms))
}

/// Whether this phone may ever be used for this message.
fn eligible(need: &Need<'_>, candidate: &Candidate) -> bool {
    candidate.sandbox == need.sandbox
        && candidate.exclusive_to.as_ref().is_none_or(|owner| owner == need.tenant)
        && need.from.is_none_or(|from| *from == candidate.phone)
}

/// Whether it could take this message if its hands were free and it had met the recipient.
fn able(need: &Need<'_>, candidate: &Candidate) -> bool {
    candidate.online
        && candidate.ready
        && candidate.leased
        && !candidate.capped
        && !route(need, candidate).is_empty()
}

/// The wanted channels that the phone has.
fn route(need: &Need<'_>, candidate: &Candidate) -> Vec<Channel> {
    need.wanted.iter().copied().filter(|channel| candidate.channels.contains(channel)).collect()
}

/// Smaller is better: exclusive before sticky (the newest talk first) before pooled, then the least used today,
/// the one to be warmed first, the longest unused, and at last the id, so that there is never a tie.
type Rank<'a> = (u8, i64, i64, i64, i64, &'a str);

fn rank(candidate: &Candidate) -> Rank<'_> {
    let kind = match (&candidate.exclusive_to, candidate.sticky_ms) {
        (Some(_), _) => 0,
        (None, Some(_)) => 1,
        (None, None) => 2,
    };
    // Among exclusive phones, too, the one the recipient knows is preferred.
    let sticky = candidate.sticky_ms.map_or(i64::MAX, i64::saturating_neg);
    (
        kind,
        sticky,
        candidate.messages_today,
        candidate.warming_priority,
        candidate.last_used_ms,
        candidate.phone.as_str(),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AUTO: [Channel; 3] = [Channel::Imessage, Channel::Rcs, Channel::Sms];
    const NOW_MS: i64 = 1_000;
    const AWAY: Unable = Unable::Away { until_ms: i64::MAX };

    fn tenant(n: u8) -> TenantId {
        TenantId::new(1, [n; 10])
    }

    fn phone(n: u8) -> PhoneId {
        PhoneId::new(1, [n; 10])
    }

    fn candidate(n: u8) -> Candidate {
        Candidate {
            phone: phone(n),
            exclusive_to: None,
            sandbox: false,
            sticky_ms: None,
            online: true,
            ready: true,
            leased: true,
            channels: vec![Channel::Imessage, Channel::Sms],
            in_flight: 0,
            known: false,
            new_from_ms: 0,
            capped: false,
            messages_today: 0,
            warming_priority: 0,
            last_used_ms: 0,
        }
    }

    fn ask<'a>(tenant: &'a TenantId, from: Option<&'a PhoneId>) -> Need<'a> {
        Need { tenant, sandbox: false, from, wanted: &AUTO, in_flight_max: 4, now_ms: NOW_MS }
    }

    fn chosen(candidates: &[Candidate]) -> Result<PhoneId, Unable> {
        resolve(&ask(&tenant(1), None), candidates).map(|choice| choice.phone)
    }

    #[test]
    fn without_a_phone_there_is_a_reason() {
        assert_eq!(chosen(&[]), Err(AWAY));
    }

    #[test]
    fn a_phone_that_cannot_send_is_not_chosen() {
        type Spoil = fn(&mut Candidate);
        let warming = Unable::Warming { until_ms: NOW_MS + 5 };
        let cases: [(&str, Unable, Spoil); 9] = [
            ("at its daily cap", Unable::Capped, |c| c.capped = true),
            ("at its cap of new contacts", warming, |c| c.new_from_ms = NOW_MS + 5),
            ("offline", AWAY, |c| c.online = false),
            ("not ready", AWAY, |c| c.ready = false),
            ("without a lease", AWAY, |c| c.leased = false),
            ("full", Unable::Busy, |c| c.in_flight = 4),
            ("without a channel", AWAY, |c| c.channels = vec![]),
            ("another tenant's", AWAY, |c| c.exclusive_to = Some(tenant(9))),
            ("of the sandbox", AWAY, |c| c.sandbox = true),
        ];
        for (name, why, spoil) in cases {
            let mut spoilt = candidate(1);
            spoil(&mut spoilt);
            assert_eq!(chosen(std::slice::from_ref(&spoilt)), Err(why), "{name}");
            assert_eq!(chosen(&[spoilt, candidate(2)]), Ok(phone(2)), "{name}");
        }
    }

    #[test]
    fn a_test_keys_message_goes_to_the_sandbox_alone() {
        let sandbox = |n| Candidate { sandbox: true, ..candidate(n) };
        let mine = tenant(1);
        let test = |candidates: &[Candidate], from: Option<&PhoneId>| {
            resolve(&Need { sandbox: true, ..ask(&mine, from) }, candidates)
                .map(|choice| choice.phone)
        };
        assert_eq!(test(&[candidate(1), sandbox(2)], None), Ok(phone(2)));
        // Not even where the real phone is the tenant's own, knows the recipient, and was asked for.
        let tempting = Candidate {
            exclusive_to: Some(tenant(1)),
            sticky_ms: Some(5),
            known: true,
            ..candidate(1)
        };
        assert_eq!(test(&[tempting.clone(), sandbox(2)], None), Ok(phone(2)));
        assert_eq!(test(std::slice::from_ref(&tempting), None), Err(AWAY));
        assert_eq!(test(&[tempting, sandbox(2)], Some(&phone(1))), Err(Unable::NotAllowed));
        assert_eq!(chosen(&[sandbox(1)]), Err(AWAY));
    }

    #[test]
    fn a_phone_that_knows_the_recipient_needs_no_place_for_a_new_contact() {
        let knows = Candidate { known: true, new_from_ms: i64::MAX, ..candidate(1) };
        assert_eq!(chosen(&[knows]), Ok(phone(1)));
    }

    #[test]
    fn the_first_place_that_becomes_free_is_waited_for() {
        let full = |n, until| Candidate { new_from_ms: NOW_MS + until, ..candidate(n) };
        assert_eq!(
            chosen(&[full(1, 30), full(2, 20)]),
            Err(Unable::Warming { until_ms: NOW_MS + 20 })
        );
        // Hands that are full are free in a moment, a place for a stranger only in hours.
        let busy = Candidate { in_flight: 4, ..candidate(3) };
        assert_eq!(chosen(&[full(1, 30), busy]), Err(Unable::Busy));
        // A phone that is away may come back with places.
        let away = Candidate { online: false, ..candidate(4) };
        let capped = |n| Candidate { capped: true, ..candidate(n) };
        // What is used up today may send tomorrow.
        assert_eq!(chosen(&[capped(1), away.clone()]), Err(Unable::Away { until_ms: DAY_MS }));
        let mute = Candidate { channels: vec![], ..capped(1) };
        assert_eq!(chosen(&[mute, away]), Err(AWAY));
        assert_eq!(chosen(&[capped(1), capped(2)]), Err(Unable::Capped));
    }

    #[test]
    fn exclusive_comes_before_sticky_before_pooled() {
        let exclusive =
            Candidate { exclusive_to: Some(tenant(1)), messages_today: 900, ..candidate(1) };
        let sticky = Candidate { sticky_ms: Some(5), messages_today: 500, ..candidate(2) };
        let pooled = candidate(3);
        assert_eq!(chosen(&[pooled.clone(), sticky.clone(), exclusive]), Ok(phone(1)));
        assert_eq!(chosen(&[pooled, sticky]), Ok(phone(2)));
    }

    #[test]
    fn the_newest_talk_is_the_stickiest() {
        let old = Candidate { sticky_ms: Some(5), ..candidate(1) };
        let new = Candidate { sticky_ms: Some(6), ..candidate(2) };
        assert_eq!(chosen(&[old, new]), Ok(phone(2)));
    }

    #[test]
    fn pooled_phones_rank_by_load_then_warming_then_rest() {
        let busy =
            Candidate { messages_today: 2, warming_priority: 0, last_used_ms: 0, ..candidate(1) };
        let cold =
            Candidate { messages_today: 1, warming_priority: 3, last_used_ms: 0, ..candidate(2) };
        let warm =
            Candidate { messages_today: 1, warming_priority: 2, last_used_ms: 9, ..candidate(3) };
        let rested =
            Candidate { messages_today: 1, warming_priority: 2, last_used_ms: 8, ..candidate(4) };
        assert_eq!(chosen(&[busy, cold.clone(), warm.clone(), rested]), Ok(phone(4)));
        assert_eq!(chosen(&[cold, warm]), Ok(phone(3)));
    }

    #[test]
    fn the_phone_asked_for_is_the_only_one_considered() {
        let mine = tenant(1);
        let wanted = phone(2);
        let away = Candidate { online: false, ..candidate(2) };
        let need = ask(&mine, Some(&wanted));
        assert_eq!(resolve(&need, &[candidate(1), away]), Err(AWAY));
        assert_eq!(resolve(&need, &[candidate(1)]), Err(Unable::NotAllowed));
        let foreign = Candidate { exclusive_to: Some(tenant(9)), ..candidate(2) };
        assert_eq!(resolve(&need, &[foreign]), Err(Unable::NotAllowed));
        assert_eq!(resolve(&need, &[candidate(2)]).unwrap().phone, phone(2));
    }

    #[test]
    fn the_route_keeps_the_wanted_order_and_leaves_out_what_the_phone_lacks() {
        let mine = tenant(1);
        let choice = resolve(&ask(&mine, None), &[candidate(1)]).unwrap();
        assert_eq!(choice.route, [Channel::Imessage, Channel::Sms]);
        let only = Need { wanted: &[Channel::Rcs], ..ask(&mine, None) };
        assert_eq!(resolve(&only, &[candidate(1)]), Err(AWAY));
    }

    prop_compose! {
        fn any_candidate()(
            n in 0_u8..40, owner in prop::option::of(0_u8..3), sticky in prop::option::of(0_i64..3),
            online: bool, ready: bool, leased: bool, channels in prop::sample::subsequence(AUTO.to_vec(), 0..=3),
            in_flight in 0_u32..6, today in 0_i64..3, warming in 0_i64..3, used in 0_i64..3,
            known: bool, new_from in 0_i64..3, capped in prop::bool::weighted(0.2), sandbox in prop::bool::weighted(0.3),
        ) -> Candidate {
            Candidate {
                phone: phone(n), exclusive_to: owner.map(tenant), sandbox, sticky_ms: sticky, online, ready, leased,
                channels, in_flight, messages_today: today, warming_priority: warming, last_used_ms: used,
                known, new_from_ms: NOW_MS - 1 + new_from, capped,
            }
        }
    }

    proptest! {
        #[test]
        fn the_order_of_the_candidates_does_not_matter(
            (candidates, shuffled) in prop::collection::vec(any_candidate(), 0..20)
                .prop_map(|mut all| {
                    all.sort_by(|a, b| a.phone.cmp(&b.phone));
                    all.dedup_by(|a, b| a.phone == b.phone);
                    all
                })
                .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
            from in prop::option::of(0_u8..40),
            sandbox: bool,
        ) {
            let mine = tenant(1);
            let from = from.map(phone);
            let need = Need { sandbox, ..ask(&mine, from.as_ref()) };
            let first = resolve(&need, &candidates);
            prop_assert_eq!(&first, &resolve(&need, &shuffled));
            if let Ok(choice) = first {
                let taken = candidates.iter().find(|c| c.phone == choice.phone).unwrap();
                prop_assert_eq!(taken.sandbox, sandbox);
                prop_assert!(taken.online && taken.ready && taken.leased && taken.in_flight < 4);
                prop_assert!(!taken.capped && (taken.known || taken.new_from_ms <= NOW_MS));
                prop_assert!(taken.exclusive_to.as_ref().is_none_or(|owner| *owner == mine));
                prop_assert!(from.as_ref().is_none_or(|from| *from == choice.phone));
                prop_assert!(!choice.route.is_empty());
                prop_assert!(choice.route.iter().all(|channel| taken.channels.contains(channel)));
            }
        }
    }
}
