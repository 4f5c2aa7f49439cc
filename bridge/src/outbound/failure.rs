//! What a failure means: the error column of chat.db, and whether the route may go on.

use protocol::pipe::{Attempt, AttemptReason, Event as Fact};
use protocol::{Channel, Reason};

use super::Work;
use crate::osascript::Failure;

/// The `error` column of an own row, by the names of `FZErrorType` in public headers of
/// Messages' daemon. Which are permanent is taken from there; the others may pass.
pub(super) fn of_row(error: i64) -> Failure {
    let (reason, retryable) = match error {
        3 | 6 | 8 | 9 | 10 => (Reason::Network, true),
        20 | 24 => (Reason::ServiceRejected, false),
        21 => (Reason::BadAddress, false),
        22 => (Reason::NotRegistered, false),
        30..=33 | 40 => (Reason::AccountUnusable, false),
        _ => (Reason::NotDelivered, false),
    };
    Failure { reason, detail: format!("chat.db error {error}"), retryable }
}

/// Whether another channel may reach where this one failed. All of these are provable: a row that
/// says so, or an AppleScript error from before the dispatch.
pub(super) fn walks_on(reason: Reason) -> bool {
    matches!(reason, Reason::NotRegistered | Reason::NotResolved | Reason::AccountUnusable)
}

/// Some parts of a message were sent and the rest never will be. Nobody may try again: that would send the
/// first ones twice.
pub(super) fn partly(work: &Work, why: Reason, detail: &str) -> Failure {
    let colon = if detail.is_empty() { "" } else { ": " };
    Failure {
        reason: Reason::PartlySent,
        detail: format!(
            "{} of {} parts were sent, then {why}{colon}{detail}",
            work.done,
            work.parts()
        ),
        retryable: false,
    }
}

pub(super) fn failed(attempt: &Attempt, failure: &Failure, channel: Option<Channel>) -> Fact {
    Fact::Failed(AttemptReason {
        attempt: attempt.clone(),
        reason: failure.reason,
        detail: failure.detail.clone(),
        retryable: failure.retryable,
        channel,
    })
}
