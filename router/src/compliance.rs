//! May this message be sent now? Pure: facts and the time come in, a verdict with its reason comes out.
//!
//! One function a rule, in the order in which they are asked. A fact that could not be established is not
//! taken for a harmless one: it blocks the message with `check_failed`.

use protocol::reason::Reason;

pub mod opt_out;

/// What is known about a message when it is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// A confirmation of ours, which has to reach people who have just opted out.
    pub internal: bool,
    /// Whether the recipient has opted out of this tenant's messages.
    pub opt_out: OptOut,
    /// Not to be sent from this time on.
    pub expires_ms: i64,
}

/// What the opt-out table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptOut {
    /// No entry, or one that was lifted.
    Clear,
    /// Must not be written to.
    OptedOut,
    /// There is an entry, but this version does not understand what it says.
    Unreadable,
}

/// What the rules say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every rule agrees.
    Send,
    /// Not now.
    Hold {
        /// When to ask again, in milliseconds since 1970.
        until_ms: i64,
        /// Which rule holds it.
        reason: Reason,
    },
    /// Never.
    Block(Reason),
    /// Its life is over.
    Expire,
}

/// Asks every rule; the first that objects decides.
///
/// `facts` is an error when they could not be gathered, whatever the cause: that blocks.
pub fn check<E>(facts: Result<&Facts, &E>, now_ms: i64) -> Verdict {
    let Ok(facts) = facts else { return Verdict::Block(Reason::CheckFailed) };
    for rule in [opted_out, expired] {
        if let Some(objection) = rule(facts, now_ms) {
            return objection;
        }
    }
    Verdict::Send
}

/// Who has asked not to be written to is not written to, by any class but our own confirmation of that.
fn opted_out(facts: &Facts, _now_ms: i64) -> Option<Verdict> {
    if facts.internal {
        return None;
    }
    match facts.opt_out {
        OptOut::Clear => None,
        OptOut::OptedOut => Some(Verdict::Block(Reason::OptedOut)),
        OptOut::Unreadable => Some(Verdict::Block(Reason::CheckFailed)),
    }
}

/// A message that comes too late is not sent at all.
fn expired(facts: &Facts, now_ms: i64) -> Option<Verdict> {
    (now_ms >= facts.expires_ms).then_some(Verdict::Expire)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLEAR: Facts = Facts { internal: false, opt_out: OptOut::Clear, expires_ms: 1_000 };

    fn verdict(facts: &Facts, now_ms: i64) -> Verdict {
        check::<()>(Ok(facts), now_ms)
    }

    #[test]
    fn a_check_that_cannot_run_blocks() {
        assert_eq!(check(Err(&"disk"), 0), Verdict::Block(Reason::CheckFailed));
        let facts = Facts { opt_out: OptOut::Unreadable, ..CLEAR };
        assert_eq!(verdict(&facts, 0), Verdict::Block(Reason::CheckFailed));
    }

    #[test]
    fn an_opted_out_recipient_is_not_written_to() {
        let facts = Facts { opt_out: OptOut::OptedOut, ..CLEAR };
        assert_eq!(verdict(&facts, 0), Verdict::Block(Reason::OptedOut));
        // The stronger reason is given even when the message would have expired as well.
        assert_eq!(verdict(&facts, 5_000), Verdict::Block(Reason::OptedOut));
    }

    #[test]
    fn our_own_confirmation_reaches_them_but_not_too_late() {
        let facts = Facts { internal: true, opt_out: OptOut::OptedOut, ..CLEAR };
        assert_eq!(verdict(&facts, 999), Verdict::Send);
        assert_eq!(verdict(&facts, 1_000), Verdict::Expire);
    }

    proptest! {
        #[test]
        fn nothing_is_sent_against_a_rule(
            internal: bool, out in 0_u8..3, expires in 0_i64..2_000, now in 0_i64..2_000,
        ) {
            let opt_out = [OptOut::Clear, OptOut::OptedOut, OptOut::Unreadable][usize::from(out)];
            let facts = Facts { internal, opt_out, expires_ms: expires };
            match verdict(&facts, now) {
                Verdict::Send => {
                    prop_assert!(internal || opt_out == OptOut::Clear);
                    prop_assert!(now < expires);
                }
                Verdict::Hold { until_ms, .. } => prop_assert!(until_ms > now),
                Verdict::Block(_) | Verdict::Expire => {}
            }
        }
    }
}
