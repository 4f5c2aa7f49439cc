//! Which provider sends a message that no phone can send, and why the others do not. Pure.
//!
//! Whoever asks has found that no phone can; the rules for what may be sent have been asked before.

use protocol::api::{BreakerState, CheckedProvider, ProviderKind, ProviderWhyNot};
use protocol::{E164, PhoneId, UnixMs};

/// Twilio is asked only above so many SMS a day.
pub const TWILIO_SMS_A_DAY: u64 = 5_000;
/// Twilio is asked only above this monthly recurring revenue, in US cents.
pub const TWILIO_MRR_CENTS: u64 = 1_500_000;
/// A figure of the revenue is believed for so long: a month, and time to put the next one in.
const MRR_VALID_MS: i64 = 45 * 24 * 3_600 * 1_000;
/// Characters that both providers take in one SMS message.
pub const TEXT_CHARS_MAX: usize = 1_600;

/// The shortest time that a message may still be sent for when it is given to a provider that cannot be told of an end
/// (Telnyx has no validity period): longer than the carriers take, so that a code or a night does not come before it does.
pub const LIFE_MIN_MS: i64 = 120_000;

/// What Twilio's three conditions are measured by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// SMS that the router has sent within 24 hours; `None` while that is not counted.
    pub sms_a_day: Option<u64>,
    /// Monthly recurring revenue in US cents, and of when that is.
    pub mrr: Option<(u64, UnixMs)>,
    /// The operator's flag.
    pub twilio_allowed: bool,
}

/// Which of Twilio's conditions are not met; none when it may be asked.
pub fn twilio_refused(figures: &Figures, now: UnixMs) -> Vec<ProviderWhyNot> {
    let volume = figures.sms_a_day.is_some_and(|sms| sms > TWILIO_SMS_A_DAY);
    let revenue = match figures.mrr {
        Some((_, as_of)) if now.since(as_of) > MRR_VALID_MS => {
            Some(ProviderWhyNot::RevenueNotKnown)
        }
        Some((cents, _)) if cents <= TWILIO_MRR_CENTS => Some(ProviderWhyNot::RevenueTooLow),
        Some(_) => None,
        None => Some(ProviderWhyNot::RevenueNotKnown),
    };
    let volume = (!volume).then_some(ProviderWhyNot::VolumeTooLow);
    let flag = (!figures.twilio_allowed).then_some(ProviderWhyNot::NotAllowed);
    [volume, revenue, flag].into_iter().flatten().collect()
}

/// A provider, as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact that is true or not, by itself")]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ProviderKind,
    /// Under which id its number stands among phones.
    pub phone: PhoneId,
    /// The number that it sends from.
    pub number: E164,
    /// The operator has enabled it.
    pub enabled: bool,
    /// The operator has switched to it.
    pub switched_to: bool,
    /// Lower is asked first.
    pub priority: i64,
    /// How its breaker stands.
    pub breaker: BreakerState,
    /// Its breaker lets nothing through until then.
    pub shut_until: Option<UnixMs>,
    /// It has asked to be left alone until then.
    pub rests_until: Option<UnixMs>,
    /// As many messages wait for it as may.
    pub full: bool,
    /// It has already failed to send this message.
    pub tried: bool,
}

/// What a message needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact that is true or not, by itself")]
pub struct Need<'a> {
    /// A phone can send it, now or in a moment.
    pub phone_can: bool,
    /// It may go as SMS.
    pub sms: bool,
    /// Its recipient is a telephone number.
    pub to_number: bool,
    /// It was made with a test key.
    pub sandbox: bool,
    /// The number that it has to come from, where one was asked for.
    pub from: Option<&'a E164>,
    /// Files go with it.
    pub files: bool,
    /// Characters of its text.
    pub text_chars: usize,
    /// How much longer it may be sent, in milliseconds.
    pub life_ms: i64,
}

/// What came of the question.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The place of the one to ask, among the candidates.
    pub index: Option<usize>,
    /// When it is worth asking again, where only time is in the way.
    pub again_at: Option<UnixMs>,
    /// Of every provider, whether it is the one and why not, in the order of the candidates.
    pub checked: Vec<CheckedProvider>,
}

/// Chooses a provider, or none.
pub fn choose(need: &Need<'_>, candidates: &[Candidate], figures: &Figures, now: UnixMs) -> Chosen {
    let reasons: Vec<Vec<ProviderWhyNot>> =
        candidates.iter().map(|candidate| why_not(need, candidate, figures, now)).collect();
    let index = reasons
        .iter()
        .zip(candidates)
        .enumerate()
        .filter(|(_, (why_not, _))| why_not.is_empty())
        .min_by(|(_, (_, left)), (_, (_, right))| rank(left).cmp(&rank(right)))
        .map(|(index, _)| index);
    let again_at = reasons
        .iter()
        .zip(candidates)
        .filter(|(why_not, _)| !why_not.is_empty() && why_not.iter().all(|why| passes(*why)))
        .map(|(_, candidate)| free_at(candidate, now))
        .min();
    let checked = reasons
        .into_iter()
        .zip(candidates)
        .enumerate()
        .map(|(place, (why_not, candidate))| CheckedProvider {
            provider: candidate.name.clone(),
            chosen: index == Some(place),
            why_not,
        })
        .collect();
    Chosen { index, again_at: if index.is_some() { None } else { again_at }, checked }
}

/// The same without the operator's figures, which are no tenant's business: they are `not_allowed`.
pub fn for_tenants(checked: Vec<CheckedProvider>) -> Vec<CheckedProvider> {
    let veiled = |why: ProviderWhyNot| match why {
        ProviderWhyNot::VolumeTooLow
        | ProviderWhyNot::RevenueTooLow
        | ProviderWhyNot::RevenueNotKnown => ProviderWhyNot::NotAllowed,
        ProviderWhyNot::PhonesFirst
        | ProviderWhyNot::Disabled
        | ProviderWhyNot::NotSms
        | ProviderWhyNot::NotANumber
        | ProviderWhyNot::Sandbox
        | ProviderWhyNot::OtherNumber
        | ProviderWhyNot::HasFiles
        | ProviderWhyNot::TextTooLong
        | ProviderWhyNot::LifeTooShort
        | ProviderWhyNot::NotAllowed
        | ProviderWhyNot::BreakerOpen
        | ProviderWhyNot::Resting
        | ProviderWhyNot::Full => why,
    };
    let veil = |one: CheckedProvider| {
        let mut why_not: Vec<ProviderWhyNot> = one.why_not.into_iter().map(veiled).collect();
        why_not.dedup();
        CheckedProvider { why_not, ..one }
    };
    checked.into_iter().map(veil).collect()
}

/// How long a provider that is full is left to work off what waits.
const FULL_WAIT_MS: i64 = 500;

/// When the passing reasons against a candidate are over.
fn free_at(candidate: &Candidate, now: UnixMs) -> UnixMs {
    let full = candidate.full.then(|| now.plus_ms(FULL_WAIT_MS));
    [candidate.shut_until, candidate.rests_until, full]
        .into_iter()
        .flatten()
        .max()
        .unwrap_or(now)
        .max(now)
}

/// Whether a reason goes away by waiting a moment.
fn passes(why: ProviderWhyNot) -> bool {
    match why {
        ProviderWhyNot::BreakerOpen | ProviderWhyNot::Resting | ProviderWhyNot::Full => true,
        ProviderWhyNot::PhonesFirst
        | ProviderWhyNot::Disabled
        | ProviderWhyNot::NotSms
        | ProviderWhyNot::NotANumber
        | ProviderWhyNot::Sandbox
        | ProviderWhyNot::OtherNumber
        | ProviderWhyNot::HasFiles
        | ProviderWhyNot::TextTooLong
        | ProviderWhyNot::LifeTooShort
        | ProviderWhyNot::VolumeTooLow
        | ProviderWhyNot::RevenueTooLow
        | ProviderWhyNot::RevenueNotKnown
        | ProviderWhyNot::NotAllowed => false,
    }
}

fn why_not(
    need: &Need<'_>,
    candidate: &Candidate,
    figures: &Figures,
    now: UnixMs,
) -> Vec<ProviderWhyNot> {
    let (twilio, is_told_the_end) = match candidate.kind {
        ProviderKind::Twilio => (twilio_refused(figures, now), true),
        ProviderKind::Telnyx => (Vec::new(), false),
    };
    let later = |until: Option<UnixMs>| until.is_some_and(|until| until > now);
    let first = [
        (need.phone_can, ProviderWhyNot::PhonesFirst),
        (!candidate.enabled, ProviderWhyNot::Disabled),
        (!need.sms, ProviderWhyNot::NotSms),
        (!need.to_number, ProviderWhyNot::NotANumber),
        (need.sandbox, ProviderWhyNot::Sandbox),
        (need.from.is_some_and(|from| *from != candidate.number), ProviderWhyNot::OtherNumber),
        (need.files, ProviderWhyNot::HasFiles),
        (need.text_chars > TEXT_CHARS_MAX, ProviderWhyNot::TextTooLong),
        (!is_told_the_end && need.life_ms < LIFE_MIN_MS, ProviderWhyNot::LifeTooShort),
    ];
    let last = [
        (later(candidate.shut_until), ProviderWhyNot::BreakerOpen),
        (later(candidate.rests_until), ProviderWhyNot::Resting),
        (candidate.full, ProviderWhyNot::Full),
    ];
    let holds = |(holds, why): (bool, ProviderWhyNot)| holds.then_some(why);
    first
        .into_iter()
        .filter_map(holds)
        .chain(twilio)
        .chain(last.into_iter().filter_map(holds))
        .collect()
}

/// Smaller is asked first: one that has not failed at this message, the one switched to, the lowest priority, one whose
/// breaker is closed; the name, so that there is never a tie.
fn rank(candidate: &Candidate) -> (bool, bool, i64, bool, &str) {
    (
        candidate.tried,
        !candidate.switched_to,
        candidate.priority,
        candidate.breaker != BreakerState::Closed,
        &candidate.name,
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMs = UnixMs(1_800_000_000_000);
    const DAY_MS: i64 = 24 * 3_600 * 1_000;

    fn met() -> Figures {
        Figures {
            sms_a_day: Some(5_001),
            mrr: Some((1_500_001, NOW.plus_ms(-30 * DAY_MS))),
            twilio_allowed: true,
        }
    }

    fn candidate(name: &str, kind: ProviderKind) -> Candidate {
        Candidate {
            name: name.to_owned(),
            kind,
            phone: PhoneId::new(1, [1; 10]),
            number: "+12025550100".parse().unwrap(),
            enabled: true,
            switched_to: false,
            priority: 100,
            breaker: BreakerState::Closed,
            shut_until: None,
            rests_until: None,
            full: false,
            tried: false,
        }
    }

    fn telnyx(name: &str) -> Candidate {
        candidate(name, ProviderKind::Telnyx)
    }

    const SMS: Need<'static> = Need {
        phone_can: false,
        sms: true,
        to_number: true,
        sandbox: false,
        from: None,
        files: false,
        text_chars: 5,
        life_ms: LIFE_MIN_MS,
    };

    fn chosen(candidates: &[Candidate]) -> Option<&str> {
        choose(&SMS, candidates, &met(), NOW).index.map(|index| candidates[index].name.as_str())
    }

    #[test]
    fn twilio_needs_all_three_conditions() {
        use ProviderWhyNot::{NotAllowed, RevenueNotKnown, RevenueTooLow, VolumeTooLow};
        let cases: [(&str, Figures, &[ProviderWhyNot]); 9] = [
            ("all three", met(), &[]),
            ("exactly 5,000", Figures { sms_a_day: Some(5_000), ..met() }, &[VolumeTooLow]),
            ("not counted yet", Figures { sms_a_day: None, ..met() }, &[VolumeTooLow]),
            (
                "exactly 15,000 USD",
                Figures { mrr: Some((1_500_000, NOW)), ..met() },
                &[RevenueTooLow],
            ),
            ("no figure", Figures { mrr: None, ..met() }, &[RevenueNotKnown]),
            (
                "a figure of 45 days ago still counts",
                Figures { mrr: Some((2_000_000, NOW.plus_ms(-45 * DAY_MS))), ..met() },
                &[],
            ),
            (
                "an older one does not",
                Figures { mrr: Some((2_000_000, NOW.plus_ms(-45 * DAY_MS - 1))), ..met() },
                &[RevenueNotKnown],
            ),
            ("no flag", Figures { twilio_allowed: false, ..met() }, &[NotAllowed]),
            ("nothing at all", Figures::default(), &[VolumeTooLow, RevenueNotKnown, NotAllowed]),
        ];
        for (name, figures, refused) in cases {
            assert_eq!(twilio_refused(&figures, NOW), refused, "{name}");
            let twilio = [candidate("t", ProviderKind::Twilio)];
            let chosen = choose(&SMS, &twilio, &figures, NOW);
            assert_eq!(chosen.index.is_some(), refused.is_empty(), "{name}");
            assert_eq!(chosen.checked[0].why_not, refused, "{name}");
            assert_eq!(chosen.again_at, None, "{name}");
            // Telnyx asks for none of them.
            assert!(choose(&SMS, &[telnyx("x")], &figures, NOW).index.is_some(), "{name}");
        }
    }

    #[test]
    fn each_reason_keeps_a_provider_out() {
        type Spoil = fn(&mut Need<'static>, &mut Candidate);
        let later = NOW.plus_ms(5_000);
        assert!(later > NOW);
        let cases: [(ProviderWhyNot, Spoil); 12] = [
            (ProviderWhyNot::HasFiles, |need, _| need.files = true),
            (ProviderWhyNot::PhonesFirst, |need, _| need.phone_can = true),
            (ProviderWhyNot::Disabled, |_, c| c.enabled = false),
            (ProviderWhyNot::NotSms, |need, _| need.sms = false),
            (ProviderWhyNot::NotANumber, |need, _| need.to_number = false),
            (ProviderWhyNot::Sandbox, |need, _| need.sandbox = true),
            (ProviderWhyNot::OtherNumber, |need, c| {
                need.from = Some(Box::leak(Box::new("+12025550199".parse().unwrap())));
                c.number = "+12025550100".parse().unwrap();
            }),
            (ProviderWhyNot::TextTooLong, |need, _| need.text_chars = TEXT_CHARS_MAX + 1),
            (ProviderWhyNot::LifeTooShort, |need, _| need.life_ms = LIFE_MIN_MS - 1),
            (ProviderWhyNot::BreakerOpen, |_, c| c.shut_until = Some(NOW.plus_ms(5_000))),
            (ProviderWhyNot::Resting, |_, c| c.rests_until = Some(NOW.plus_ms(5_000))),
            (ProviderWhyNot::Full, |_, c| c.full = true),
        ];
        for (why, spoil) in cases {
            let (mut need, mut one) = (SMS, telnyx("x"));
            spoil(&mut need, &mut one);
            let chosen = choose(&need, std::slice::from_ref(&one), &met(), NOW);
            assert_eq!(
                (chosen.index, chosen.checked[0].why_not.as_slice()),
                (None, &[why][..]),
                "{why}"
            );
            let again = if why == ProviderWhyNot::Full {
                Some(NOW.plus_ms(FULL_WAIT_MS))
            } else {
                passes(why).then_some(later)
            };
            assert_eq!(chosen.again_at, again, "{why}");
        }
    }

    #[test]
    fn who_can_be_told_of_the_end_takes_what_ends_soon() {
        let need = Need { life_ms: 1_000, ..SMS };
        let both = [telnyx("a"), candidate("b", ProviderKind::Twilio)];
        assert_eq!(choose(&need, &both, &met(), NOW).index, Some(1));
    }

    #[test]
    fn the_operators_choice_comes_before_priority_before_name() {
        let first = Candidate { priority: 1, ..telnyx("z") };
        assert_eq!(chosen(&[telnyx("b"), telnyx("a")]), Some("a"));
        assert_eq!(chosen(&[telnyx("a"), first.clone()]), Some("z"));
        let switched = Candidate { switched_to: true, ..telnyx("b") };
        assert_eq!(chosen(&[first.clone(), switched.clone()]), Some("b"));
        // The one switched to fails: the others are its reserve.
        let shut = Candidate {
            breaker: BreakerState::Open,
            shut_until: Some(NOW.plus_ms(1)),
            ..switched.clone()
        };
        assert_eq!(chosen(&[first.clone(), shut]), Some("z"));
        // One that has failed at this very message comes last, and still before nobody.
        let tried = Candidate { tried: true, ..switched };
        assert_eq!(chosen(&[first, tried.clone()]), Some("z"));
        assert_eq!(chosen(&[tried]), Some("b"));
    }

    #[test]
    fn the_number_asked_for_is_the_providers() {
        let number: E164 = "+12025550100".parse().unwrap();
        let need = Need { from: Some(&number), ..SMS };
        assert!(choose(&need, &[telnyx("x")], &met(), NOW).index.is_some());
    }

    prop_compose! {
        fn any_candidate()(
            name in "[a-c]", twilio: bool, enabled: bool, switched_to: bool, priority in 0_i64..3,
            shut in prop::option::of(-1_i64..2), rests in prop::option::of(-1_i64..2), full: bool, tried: bool,
        ) -> Candidate {
            let kind = if twilio { ProviderKind::Twilio } else { ProviderKind::Telnyx };
            let later = |ms: Option<i64>| ms.map(|ms| NOW.plus_ms(ms));
            Candidate {
                enabled, switched_to, priority, full, tried,
                shut_until: later(shut), rests_until: later(rests), ..candidate(&name, kind)
            }
        }
    }

    proptest! {
        #[test]
        fn who_is_chosen_has_no_reason_against_it_and_somebody_is_when_anybody_can_be(
            candidates in prop::collection::vec(any_candidate(), 0..6), volume in 4_999_u64..5_003,
            phone_can: bool,
        ) {
            let figures = Figures { sms_a_day: Some(volume), ..met() };
            let need = Need { phone_can, ..SMS };
            let chosen = choose(&need, &candidates, &figures, NOW);
            prop_assert_eq!(chosen.checked.len(), candidates.len());
            let free = chosen.checked.iter().filter(|one| one.why_not.is_empty()).count();
            prop_assert_eq!(chosen.index.is_some(), free > 0);
            if let Some(index) = chosen.index {
                prop_assert!(!phone_can && chosen.again_at.is_none());
                prop_assert!(candidates[index].enabled && !candidates[index].full);
                prop_assert!(volume > 5_000 || candidates[index].kind == ProviderKind::Telnyx);
            }
            if let Some(again) = chosen.again_at {
                prop_assert!(again > NOW && !phone_can);
            }
        }
    }
}
