//! By which class's rules a message is judged: what the tenant says, as far as it can be verified. Pure.
//!
//! A class that exempts from rules is not taken on trust. What cannot be shown to be an answer or a one-time code is
//! judged as marketing, to which every rule applies. A one-time code is one person's, who has just asked for it: many at
//! once are none ([`fits_batch`]), and neither is one that is ordered for later.

use protocol::Class;

/// What the claim to a class is verified by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The class that the tenant gave.
    pub class: Class,
    /// When the message was accepted, however much later it is to be sent.
    pub accepted_ms: i64,
    /// When it ends.
    pub expires_ms: i64,
    /// When the recipient last wrote to the tenant.
    pub last_inbound_ms: Option<i64>,
}

/// How long after a question an answer is one, and is exempt from quiet hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the unit is last in every name")]
pub struct Limits {
    /// An answer comes within this time, in milliseconds.
    pub reply_ms: i64,
    /// It may come at night within this time, in milliseconds.
    pub reply_at_night_ms: i64,
    /// The longest life of a one-time code, in milliseconds.
    pub otp_life_ms: i64,
}

/// By what a message is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Whose rules.
    pub class: Class,
    /// Exempt from quiet hours until then: `None`, it is not; `i64::MAX`, it always is.
    pub exempt_until_ms: Option<i64>,
}

/// Whether the messages of a batch may claim this class. An answer may come in a batch, for each is judged by what its
/// recipient has written.
pub const fn fits_batch(class: Class) -> bool {
    !matches!(class, Class::Otp)
}

/// Verifies the claim.
pub fn applied(claim: &Claim, limits: &Limits, now_ms: i64) -> Applied {
    let marketing = Applied { class: Class::Marketing, exempt_until_ms: None };
    match claim.class {
        Class::Transactional => Applied { class: Class::Transactional, exempt_until_ms: None },
        Class::Otp if claim.expires_ms.saturating_sub(claim.accepted_ms) <= limits.otp_life_ms => {
            Applied { class: Class::Otp, exempt_until_ms: Some(i64::MAX) }
        }
        Class::Otp | Class::Marketing => marketing,
        Class::Conversational => {
            let Some(asked) = claim.last_inbound_ms else { return marketing };
            // What is said to have been written later than now proves nothing.
            if asked > now_ms || now_ms.saturating_sub(asked) >= limits.reply_ms {
                return marketing;
            }
            let night = asked.saturating_add(limits.reply_at_night_ms);
            Applied {
                class: Class::Conversational,
                exempt_until_ms: (now_ms < night).then_some(night),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { reply_ms: 86_400_000, reply_at_night_ms: 3_600_000, otp_life_ms: 600_000 };

    fn judged(class: Class, life_ms: i64, asked: Option<i64>, now_ms: i64) -> (Class, Option<i64>) {
        let claim = Claim {
            class,
            accepted_ms: 1_000,
            expires_ms: 1_000 + life_ms,
            last_inbound_ms: asked,
        };
        let applied = applied(&claim, &LIMITS, now_ms);
        (applied.class, applied.exempt_until_ms)
    }

    #[test]
    fn a_code_is_one_by_its_short_life() {
        assert_eq!(judged(Class::Otp, 600_000, None, 2_000), (Class::Otp, Some(i64::MAX)));
        assert_eq!(judged(Class::Otp, 600_001, None, 2_000), (Class::Marketing, None));
    }

    #[test]
    fn codes_alone_are_never_many() {
        let fitting: Vec<Class> =
            Class::ALL.iter().copied().filter(|class| fits_batch(*class)).collect();
        assert_eq!(fitting, [Class::Transactional, Class::Conversational, Class::Marketing]);
    }

    #[test]
    fn an_answer_is_one_soon_after_a_question() {
        let class = Class::Conversational;
        let asked = Some(10_000);
        assert_eq!(judged(class, 1, None, 20_000), (Class::Marketing, None));
        assert_eq!(judged(class, 1, asked, 20_000), (class, Some(3_610_000)));
        assert_eq!(judged(class, 1, asked, 3_609_999), (class, Some(3_610_000)));
        assert_eq!(judged(class, 1, asked, 3_610_000), (class, None));
        assert_eq!(judged(class, 1, asked, 86_410_000), (Class::Marketing, None));
        assert_eq!(judged(class, 1, asked, 9_999), (Class::Marketing, None));
    }

    #[test]
    fn nothing_else_is_exempt() {
        assert_eq!(judged(Class::Marketing, 1, Some(0), 1), (Class::Marketing, None));
        assert_eq!(judged(Class::Transactional, 1, Some(0), 1), (Class::Transactional, None));
    }
}
