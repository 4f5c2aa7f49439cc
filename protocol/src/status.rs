//! Statuses: what the newest relevant event says of a message.

use crate::code::codes;

codes! {
    /// Where a message stands. It never goes backwards: see [`Status::advance`].
    pub enum Status {
        /// Accepted and stored; waiting for dispatch, or held by a rule.
        Queued = "queued",
        /// Accepted for a later time that the tenant chose.
        Scheduled = "scheduled",
        /// Given to a phone; its outcome is not known yet.
        Dispatching = "dispatching",
        /// Messages has sent it. The end for SMS and groups, which give no receipts.
        Sent = "sent",
        /// It reached a device of the recipient.
        Delivered = "delivered",
        /// The recipient has read it and lets senders know.
        Read = "read",
        /// Provably not sent, and not tried again.
        Failed = "failed",
        /// A rule forbids it.
        Blocked = "blocked",
        /// Its life ended before it could be sent.
        Expired = "expired",
        /// Withdrawn before it was sent.
        Canceled = "canceled",
        /// Handed to Messages, outcome not provable. Resolves later or by the operator.
        Unknown = "unknown",
        /// It came from outside.
        Received = "received",
    }
}

impl Status {
    /// The status after news of `next`, or `None` when the news is old.
    ///
    /// Receipts only climb (sent, delivered, read), whatever order they come in. An end stays,
    /// except that `unknown` may still turn into what really happened, and that proof of sending
    /// overrules every guess: what chat.db shows as sent was sent.
    pub fn advance(self, next: Self) -> Option<Self> {
        let allowed = match self {
            Self::Queued | Self::Scheduled | Self::Dispatching => {
                next != Self::Received && next != self
            }
            Self::Sent => matches!(next, Self::Delivered | Self::Read | Self::Failed),
            Self::Delivered => next == Self::Read,
            Self::Read | Self::Received => false,
            Self::Unknown => {
                next.is_sent() || matches!(next, Self::Failed | Self::Expired | Self::Canceled)
            }
            Self::Failed | Self::Blocked | Self::Expired | Self::Canceled => next.is_sent(),
        };
        allowed.then_some(next)
    }

    /// Messages has sent it, whatever came after.
    pub const fn is_sent(self) -> bool {
        matches!(self, Self::Sent | Self::Delivered | Self::Read)
    }

    /// Nothing more will be done for it.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Scheduled | Self::Dispatching)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_only_climb() {
        assert_eq!(Status::Sent.advance(Status::Read), Some(Status::Read));
        assert_eq!(Status::Read.advance(Status::Delivered), None);
        assert_eq!(Status::Delivered.advance(Status::Sent), None);
        assert_eq!(Status::Dispatching.advance(Status::Delivered), Some(Status::Delivered));
    }

    #[test]
    fn an_end_stays_unless_chat_db_proves_otherwise() {
        for end in [Status::Failed, Status::Blocked, Status::Expired, Status::Canceled] {
            for next in Status::ALL.iter().copied() {
                assert_eq!(end.advance(next).is_some(), next.is_sent(), "{end} → {next}");
            }
        }
        assert_eq!(Status::Unknown.advance(Status::Sent), Some(Status::Sent));
        assert_eq!(Status::Unknown.advance(Status::Queued), None);
    }

    #[test]
    fn nothing_becomes_itself() {
        for status in Status::ALL.iter().copied() {
            assert_eq!(status.advance(status), None, "{status}");
        }
    }
}
