//! May this message be sent now? Pure: facts and the time come in, a verdict with its reason comes out.
//!
//! One function a rule, in the order in which they are asked. A fact that could not be established is not
//! taken for a harmless one: it blocks the message with `check_failed`.

use protocol::Class;
use protocol::api::{HoursPreset, RuleName};
use protocol::reason::Reason;

pub mod class;
pub mod content;
pub mod hours;
pub mod opt_out;
pub mod place;

use class::{Applied, Claim};
use hours::Hours;
use place::Places;

/// The version of the rules as they are coded here; it stands beside every decision and is raised with every change
/// that could change one.
pub const VERSION: &str = "2026-11-28.2";

/// What is known about a message when it is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// A confirmation of ours, which has to reach people who have just opted out.
    pub internal: bool,
    /// Whether the recipient has opted out of this tenant's messages, or of everybody's.
    pub opt_out: OptOut,
    /// Not to be sent from this time on.
    pub expires_ms: i64,
    /// What the tenant says it is, and what proves it.
    pub claim: Claim,
    /// How a claim is judged.
    pub limits: class::Limits,
    /// Where the recipient may be.
    pub places: Places,
    /// The hours that are to be kept.
    pub hours: hours::Rule,
    /// Whether they are kept for transactional messages too.
    pub transactional_hours: bool,
    /// What is wrong with the text.
    pub content: Option<content::Objection>,
}

/// What the opt-out table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptOut {
    /// No entry, or one that was lifted.
    Clear,
    /// Must not be written to.
    OptedOut,
    /// Must not be written to: the same person has said so on another number or address.
    OptedOutElsewhere,
    /// There is an entry, but this version does not understand what it says.
    Unreadable,
}

/// What the rules say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every rule agrees.
    Send {
        /// From this time on it must be asked again; `i64::MAX` for never.
        until_ms: i64,
    },
    /// Not now.
    Hold {
        /// When to ask again, in milliseconds since 1970.
        until_ms: i64,
        /// Which rule holds it.
        reason: Reason,
    },
    /// Never.
    Block {
        /// Which rule forbids it.
        reason: Reason,
        /// Which part of the rule, where it has several.
        detail: Option<&'static str>,
    },
    /// Its life is over.
    Expire,
}

impl Verdict {
    /// Blocked for a reason that needs no detail.
    pub const fn block(reason: Reason) -> Self {
        Self::Block { reason, detail: None }
    }

    /// The word of the ledger.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Send { .. } => "send",
            Self::Hold { .. } => "hold",
            Self::Block { .. } => "block",
            Self::Expire => "expire",
        }
    }
}

/// A rule: what it says of a message. `Send` where it does not object.
type Rule = fn(&Facts, &Applied, i64) -> Verdict;

/// Every rule, in the order in which they are asked.
const RULES: [(RuleName, Rule); 4] = [
    (RuleName::OptOut, opted_out),
    (RuleName::Expiry, expired),
    (RuleName::QuietHours, quiet_hours),
    (RuleName::Content, content),
];

/// What has nothing against it, at any time.
pub(crate) const SEND: Verdict = Verdict::Send { until_ms: i64::MAX };

/// Asks every rule; the first that objects decides.
///
/// `facts` is an error when they could not be gathered, whatever the cause: that blocks.
pub fn check<E>(facts: Result<&Facts, &E>, now_ms: i64) -> Verdict {
    let Ok(facts) = facts else { return Verdict::block(Reason::CheckFailed) };
    let applied = facts.applied(now_ms);
    let mut until = i64::MAX;
    for (_name, rule) in RULES {
        match rule(facts, &applied, now_ms) {
            Verdict::Send { until_ms } => until = until.min(until_ms),
            objection @ (Verdict::Hold { .. } | Verdict::Block { .. } | Verdict::Expire) => {
                return objection;
            }
        }
    }
    Verdict::Send { until_ms: until }
}

/// What each rule says by itself, whatever the others say.
pub fn explain(facts: &Facts, now_ms: i64) -> Vec<(RuleName, Verdict)> {
    let applied = facts.applied(now_ms);
    RULES.iter().map(|(name, rule)| (*name, rule(facts, &applied, now_ms))).collect()
}

/// How much later than its hour a message may be looked at again, so that all those who wait for the same one do not
/// come at once: a hundred thousand are fewer a second than are decided, and nobody misses a minute of the morning.
pub const SPREAD_MS_MAX: i64 = 60_000;

/// When a message is looked at again that is held until `until_ms`: then, or a little later by a `share` of its own, well
/// before its hours and its life are over. What somebody waits for is not spread.
pub fn wakes_at(facts: &Facts, until_ms: i64, share: u64) -> i64 {
    let is_waited_for = match facts.claim.class {
        Class::Otp | Class::Conversational => true,
        Class::Transactional | Class::Marketing => false,
    };
    let Verdict::Send { until_ms: end_ms } = check::<()>(Ok(facts), until_ms) else {
        return until_ms;
    };
    if is_waited_for {
        return until_ms;
    }
    let left_ms = end_ms.min(facts.expires_ms).saturating_sub(until_ms);
    let room = u64::try_from(SPREAD_MS_MAX.min(left_ms / 2)).unwrap_or(0);
    let later = share.checked_rem(room).and_then(|later| i64::try_from(later).ok());
    until_ms.saturating_add(later.unwrap_or(0))
}

impl Facts {
    /// By which class's rules the message is judged.
    pub fn applied(&self, now_ms: i64) -> Applied {
        class::applied(&self.claim, &self.limits, now_ms)
    }
}

/// Who has asked not to be written to is not written to, by any class but our own confirmation of that.
fn opted_out(facts: &Facts, _applied: &Applied, _now_ms: i64) -> Verdict {
    if facts.internal {
        return SEND;
    }
    match facts.opt_out {
        OptOut::Clear => SEND,
        OptOut::OptedOut => Verdict::block(Reason::OptedOut),
        OptOut::OptedOutElsewhere => {
            Verdict::Block { reason: Reason::OptedOut, detail: Some("same_person") }
        }
        OptOut::Unreadable => Verdict::block(Reason::CheckFailed),
    }
}

/// A message that comes too late is not sent at all.
fn expired(facts: &Facts, _applied: &Applied, now_ms: i64) -> Verdict {
    if now_ms >= facts.expires_ms { Verdict::Expire } else { SEND }
}

/// Nobody is written to at night, unless they wait for it.
fn quiet_hours(facts: &Facts, applied: &Applied, now_ms: i64) -> Verdict {
    let apply = match applied.class {
        Class::Otp => false,
        Class::Transactional => facts.transactional_hours,
        Class::Conversational | Class::Marketing => true,
    };
    let off = facts.hours.preset == HoursPreset::Off && facts.hours.own.is_none();
    if facts.internal || !apply || off {
        return SEND;
    }
    let places = match &facts.places {
        Places::Known(places) => places,
        Places::Refused => {
            return Verdict::Block {
                reason: Reason::QuietHours,
                detail: Some("unknown_time_zone"),
            };
        }
        Places::Unreadable => return Verdict::block(Reason::CheckFailed),
    };
    let exempt = applied.exempt_until_ms.filter(|until| now_ms < *until);
    match (hours::at(&facts.hours, places, now_ms), exempt) {
        (Hours::Open { until_ms }, exempt) => {
            Verdict::Send { until_ms: until_ms.max(exempt.unwrap_or(until_ms)) }
        }
        (Hours::Unreadable, _) => Verdict::block(Reason::CheckFailed),
        (Hours::Closed { .. } | Hours::Never, Some(until_ms)) => Verdict::Send { until_ms },
        (Hours::Closed { until_ms }, None) => {
            Verdict::Hold { until_ms, reason: Reason::QuietHours }
        }
        (Hours::Never, None) => {
            Verdict::Block { reason: Reason::QuietHours, detail: Some("no_common_hours") }
        }
    }
}

/// A text that breaks a rule of the tenant's or the operator's is not sent.
fn content(facts: &Facts, _applied: &Applied, _now_ms: i64) -> Verdict {
    match facts.content {
        Some(objection) if !facts.internal => {
            Verdict::Block { reason: Reason::Content, detail: Some(objection.detail()) }
        }
        Some(_) | None => SEND,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compliance::content::Objection;
    use crate::compliance::place::{Contact, Unknown, places};
    use protocol::api::UnknownZone;

    const HOUR_MS: i64 = 3_600_000;
    /// 2026-07-01, noon and midnight in New York.
    const NOON: i64 = 1_782_921_600_000;
    const NIGHT: i64 = NOON + 12 * HOUR_MS;

    fn new_york() -> Places {
        let unknown = Unknown { policy: UnknownZone::Us50, tenant_zone: None };
        places(&"+12125550123".parse().unwrap(), &Contact::default(), unknown)
    }

    fn clear() -> Facts {
        Facts {
            internal: false,
            opt_out: OptOut::Clear,
            expires_ms: i64::MAX,
            claim: Claim {
                class: Class::Marketing,
                accepted_ms: NOON,
                expires_ms: i64::MAX,
                last_inbound_ms: None,
            },
            limits: class::Limits {
                reply_ms: 24 * HOUR_MS,
                reply_at_night_ms: HOUR_MS,
                otp_life_ms: 600_000,
            },
            places: new_york(),
            hours: hours::Rule { preset: HoursPreset::Default, own: None, guard_ms: 300_000 },
            transactional_hours: true,
            content: None,
        }
    }

    fn verdict(facts: &Facts, now_ms: i64) -> Verdict {
        check::<()>(Ok(facts), now_ms)
    }

    #[test]
    fn a_check_that_cannot_run_blocks() {
        assert_eq!(check(Err(&"disk"), 0), Verdict::block(Reason::CheckFailed));
        let facts = Facts { opt_out: OptOut::Unreadable, ..clear() };
        assert_eq!(verdict(&facts, NOON), Verdict::block(Reason::CheckFailed));
        let facts = Facts { places: Places::Unreadable, ..clear() };
        assert_eq!(verdict(&facts, NOON), Verdict::block(Reason::CheckFailed));
        let facts = Facts { places: Places::Known(vec![]), ..clear() };
        assert_eq!(verdict(&facts, NOON), Verdict::block(Reason::CheckFailed));
    }

    #[test]
    fn an_opted_out_recipient_is_not_written_to() {
        let facts = Facts { opt_out: OptOut::OptedOut, expires_ms: NOON + 1, ..clear() };
        assert_eq!(verdict(&facts, NOON), Verdict::block(Reason::OptedOut));
        // The stronger reason is given even when the message would have expired as well.
        assert_eq!(verdict(&facts, NOON + 5), Verdict::block(Reason::OptedOut));
        let facts = Facts { opt_out: OptOut::OptedOutElsewhere, ..facts };
        let block = Verdict::Block { reason: Reason::OptedOut, detail: Some("same_person") };
        assert_eq!(verdict(&facts, NOON), block);
    }

    #[test]
    fn our_own_confirmation_reaches_them_at_night_but_not_too_late() {
        let facts =
            Facts { internal: true, opt_out: OptOut::OptedOut, expires_ms: NIGHT + 1, ..clear() };
        assert_eq!(verdict(&facts, NIGHT), SEND);
        assert_eq!(verdict(&facts, NIGHT + 1), Verdict::Expire);
    }

    #[test]
    fn marketing_waits_for_the_morning() {
        let facts = clear();
        let end = NOON + 8 * HOUR_MS - 300_000;
        assert_eq!(verdict(&facts, NOON), Verdict::Send { until_ms: end });
        let morning = NOON + 20 * HOUR_MS;
        let held = Verdict::Hold { until_ms: morning, reason: Reason::QuietHours };
        assert_eq!(verdict(&facts, NIGHT), held);
        assert!(matches!(verdict(&facts, morning), Verdict::Send { .. }));
        let off = Facts { hours: hours::Rule { preset: HoursPreset::Off, ..facts.hours }, ..facts };
        assert_eq!(verdict(&off, NIGHT), SEND);
        // Hours of the tenant's own hold all the same, and nobody else's.
        let own = hours::Window::parse("06:00-23:00");
        let own = Facts { hours: hours::Rule { own, ..off.hours }, ..off };
        assert!(matches!(verdict(&own, NIGHT - HOUR_MS * 2), Verdict::Send { .. }));
        let held = Verdict::Hold { until_ms: NIGHT + 6 * HOUR_MS, reason: Reason::QuietHours };
        assert_eq!(verdict(&own, NIGHT), held);
    }

    #[test]
    fn those_who_wait_for_the_same_hour_do_not_come_at_once() {
        let facts = Facts { expires_ms: NIGHT + 24 * HOUR_MS, ..clear() };
        let Verdict::Hold { until_ms, .. } = verdict(&facts, NIGHT) else { panic!("it is held") };
        let mut of_second = [0_usize; 60];
        for share in 0_u64..60_000 {
            let share = u64::wrapping_mul(share, 0x9e37_79b9_7f4a_7c15);
            let after = wakes_at(&facts, until_ms, share) - until_ms;
            of_second[usize::try_from(after / 1_000).unwrap()] += 1;
        }
        assert!(of_second.iter().all(|count| (800..1_200).contains(count)), "{of_second:?}");
        let class = |class| Facts { claim: Claim { class, ..facts.claim }, ..facts.clone() };
        assert_eq!(wakes_at(&class(Class::Transactional), until_ms, 59_999), until_ms + 59_999);
        // Who waits for it has it as soon as it may be.
        for waited in [Class::Otp, Class::Conversational] {
            assert_eq!(wakes_at(&class(waited), until_ms, 59_999), until_ms, "{waited}");
        }
        // One that ends soon after, and one that will not be sent then either.
        let short = Facts { expires_ms: until_ms + 10_000, ..facts.clone() };
        assert_eq!(wakes_at(&short, until_ms, 4_999), until_ms + 4_999);
        assert_eq!(wakes_at(&short, until_ms, 5_000), until_ms);
        for expires_ms in [until_ms - 1, until_ms, until_ms + 1] {
            let over = Facts { expires_ms, ..facts.clone() };
            assert_eq!(wakes_at(&over, until_ms, 59_999), until_ms);
        }
        let out = Facts { opt_out: OptOut::OptedOut, ..facts };
        assert_eq!(wakes_at(&out, until_ms, 59_999), until_ms);
    }

    #[test]
    fn other_classes_are_exempt_as_far_as_they_are_proven() {
        let of = |class, life_ms: i64, asked| Facts {
            claim: Claim {
                class,
                accepted_ms: NIGHT,
                expires_ms: NIGHT + life_ms,
                last_inbound_ms: asked,
            },
            ..clear()
        };
        let held = |facts: &Facts| matches!(verdict(facts, NIGHT), Verdict::Hold { .. });
        assert_eq!(verdict(&of(Class::Otp, 600_000, None), NIGHT), SEND);
        assert!(held(&of(Class::Otp, HOUR_MS, None)));
        let until_ms = NIGHT - 1_000 + HOUR_MS;
        let asked = of(Class::Conversational, 1, Some(NIGHT - 1_000));
        assert_eq!(verdict(&asked, NIGHT), Verdict::Send { until_ms });
        assert!(held(&of(Class::Conversational, 1, Some(NIGHT - HOUR_MS))));
        assert!(held(&of(Class::Conversational, 1, None)));
        let transactional = of(Class::Transactional, HOUR_MS, None);
        assert!(held(&transactional));
        let allowed = Facts { transactional_hours: false, ..transactional };
        assert_eq!(verdict(&allowed, NIGHT), SEND);
    }

    #[test]
    fn content_and_places_are_named() {
        let facts = Facts { content: Some(Objection::LinkInFirstMessage), ..clear() };
        let block =
            Verdict::Block { reason: Reason::Content, detail: Some("link_in_first_message") };
        assert_eq!(verdict(&facts, NOON), block);
        // Each rule is explained, whatever an earlier one says.
        let all = explain(&Facts { opt_out: OptOut::OptedOut, ..facts }, NIGHT);
        assert_eq!(all[0].1, Verdict::block(Reason::OptedOut));
        assert!(matches!(all[2].1, Verdict::Hold { .. }));
        assert_eq!(all[3].1, block);
        let facts = Facts { places: Places::Refused, ..clear() };
        let block =
            Verdict::Block { reason: Reason::QuietHours, detail: Some("unknown_time_zone") };
        assert_eq!(verdict(&facts, NOON), block);
    }

    fn any_facts() -> impl Strategy<Value = Facts> {
        let class = prop::sample::select(Class::ALL.to_vec());
        let out = prop::sample::select(vec![
            OptOut::Clear,
            OptOut::OptedOut,
            OptOut::OptedOutElsewhere,
            OptOut::Unreadable,
        ]);
        let preset = prop::sample::select(HoursPreset::ALL.to_vec());
        let asked = prop::option::of(NOON - 48 * HOUR_MS..NOON + 48 * HOUR_MS);
        let life = 1_i64..48 * HOUR_MS;
        let bools = (any::<bool>(), any::<bool>(), any::<bool>());
        (class, out, preset, asked, life, bools).prop_map(
            |(
                class,
                opt_out,
                preset,
                last_inbound_ms,
                life,
                (internal, transactional_hours, bad),
            )| Facts {
                internal,
                opt_out,
                expires_ms: NOON + life,
                claim: Claim { class, accepted_ms: NOON, expires_ms: NOON + life, last_inbound_ms },
                hours: hours::Rule { preset, own: None, guard_ms: 300_000 },
                transactional_hours,
                content: bad.then_some(Objection::Blocked),
                ..clear()
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_is_sent_against_a_rule(facts in any_facts(), after in 0_i64..48 * HOUR_MS) {
            let now = NOON + after;
            match verdict(&facts, now) {
                Verdict::Send { until_ms } => {
                    prop_assert!(facts.internal || facts.opt_out == OptOut::Clear);
                    prop_assert!(facts.internal || facts.content.is_none());
                    prop_assert!(now < facts.expires_ms && now < until_ms);
                    // Just before its end it may still be sent, unless it has expired or lost its exemption.
                    if until_ms < facts.expires_ms {
                        let just_before = verdict(&facts, until_ms - 1);
                        prop_assert!(just_before.as_str() == "send");
                    }
                }
                Verdict::Hold { until_ms, reason } => {
                    prop_assert!(until_ms > now);
                    // At that time the same rule does not hold it any more.
                    let then = verdict(&Facts { expires_ms: i64::MAX, ..facts.clone() }, until_ms);
                    let held = matches!(then, Verdict::Hold { reason: again, .. } if again == reason);
                    prop_assert!(!held, "{:?}", then);
                    // Nor when its turn comes, and nothing that could have been sent then is over by its turn.
                    let turn = wakes_at(&facts, until_ms, after.unsigned_abs());
                    prop_assert!((0..SPREAD_MS_MAX).contains(&(turn - until_ms)));
                    if verdict(&facts, until_ms).as_str() == "send" {
                        prop_assert_eq!(verdict(&facts, turn).as_str(), "send");
                    }
                }
                Verdict::Block { .. } | Verdict::Expire => {}
            }
        }

        /// An opt-out blocks whatever else is true.
        #[test]
        fn an_opt_out_wins_over_everything(facts in any_facts(), after in 0_i64..48 * HOUR_MS) {
            let facts = Facts { internal: false, opt_out: OptOut::OptedOut, ..facts };
            prop_assert_eq!(verdict(&facts, NOON + after), Verdict::block(Reason::OptedOut));
        }

        /// A stricter fact never turns what was not sent into what is.
        #[test]
        fn stricter_facts_never_send_more(facts in any_facts(), after in 0_i64..48 * HOUR_MS) {
            let now = NOON + after;
            let sends = |facts: &Facts| matches!(verdict(facts, now), Verdict::Send { .. });
            let stricter = [
                Facts { opt_out: OptOut::OptedOut, ..facts.clone() },
                Facts { transactional_hours: true, ..facts.clone() },
                Facts { content: Some(Objection::Blocked), ..facts.clone() },
                Facts { expires_ms: facts.expires_ms - 1, ..facts.clone() },
                Facts { claim: Claim { class: Class::Marketing, ..facts.claim }, ..facts.clone() },
                Facts { claim: Claim { last_inbound_ms: None, ..facts.claim }, ..facts.clone() },
                Facts { internal: false, ..facts.clone() },
            ];
            for strict in stricter {
                prop_assert!(!sends(&strict) || sends(&facts), "{:?}", strict);
            }
        }
    }
}
