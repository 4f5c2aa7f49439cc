//! What columns alone say about a message: Send Later, satellites, filters, kinds nobody knows.

use serde::{Deserialize, Serialize};

use super::{Author, Body, Conversation, Row, RowService};
use crate::clock::AppleNs;

/// How far a Send Later message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Not sent.
    Pending,
    /// Sent.
    Sent,
    /// Failed.
    Failed,
}

impl Schedule {
    /// What stands in `schedule_state`.
    pub const fn number(self) -> i64 {
        match self {
            Self::Pending => 1,
            Self::Sent => 2,
            Self::Failed => 3,
        }
    }
}

/// Where a message was put before its owner saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// `is_spam`.
    Spam,
    /// `filter_action` 1.
    Allowed,
    /// `filter_action` 2.
    Junk,
    /// `filter_action` 3, with a `filter_sub_action`.
    Promotion(i64),
    /// `filter_action` 4, with a `filter_sub_action`.
    Transaction(i64),
}

/// How a chat is filtered, in columns of `chat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChatFilter {
    /// `is_filtered`: 0 main, 1 unknown senders, 2 junk.
    pub filtered: i64,
    /// `is_blackholed`: blocked.
    pub blackholed: bool,
    /// `is_pending_review`, from macOS 26 on.
    pub pending_review: bool,
}

impl Row {
    /// The same as a Send Later message: `date` is when it is due, and it is not sent.
    #[must_use]
    pub fn scheduled(self, due: AppleNs) -> Self {
        let mut row = self;
        row.date = due;
        row.with("schedule_type", 2)
            .with("schedule_state", Schedule::Pending.number())
            .with("is_sent", 0)
            .with("is_delivered", 0)
            .with("is_finished", 0)
    }

    /// The same, waiting for a satellite.
    #[must_use]
    pub fn waiting_for_satellite(self) -> Self {
        self.over(RowService::ImessageLite)
            .with("is_pending_satellite_send", 1)
            .with("is_sent", 0)
            .with("is_delivered", 0)
            .with("is_finished", 0)
    }

    /// The same, sent or received over a satellite.
    #[must_use]
    pub fn by_satellite(self) -> Self {
        self.over(RowService::ImessageLite)
            .with("is_stewie", 1)
            .with("sent_or_received_off_grid", 1)
    }

    /// The same as a call for help over a satellite.
    #[must_use]
    pub fn emergency(self) -> Self {
        self.by_satellite().with("is_sos", 1).with("is_critical", 1)
    }

    /// The same, filtered.
    #[must_use]
    pub fn filtered(self, filter: Filter) -> Self {
        match filter {
            Filter::Spam => self.with("is_spam", 1),
            Filter::Allowed => self.with("filter_action", 1),
            Filter::Junk => self.with("filter_action", 2),
            Filter::Promotion(sub) => self.with("filter_action", 3).with("filter_sub_action", sub),
            Filter::Transaction(sub) => {
                self.with("filter_action", 4).with("filter_sub_action", sub)
            }
        }
    }

    /// The same, sent as SMS by Messages itself.
    #[must_use]
    pub fn downgraded(self) -> Self {
        self.over(RowService::Sms).with("was_downgraded", 1)
    }

    /// The same, delivered without a sound.
    #[must_use]
    pub fn delivered_quietly(self) -> Self {
        self.with("was_delivered_quietly", 1)
    }

    /// The same with a text that stands in the column `text` alone.
    #[must_use]
    pub fn bare_text(mut self, text: &str) -> Self {
        self.body = Body::Bare(text.to_owned());
        self
    }
}

/// A vote in a poll, which no reader of today shows: `associated_message_type` 4000.
pub fn poll_vote(author: Author, conversation: Conversation, date: AppleNs, poll: &str) -> Row {
    Row::new(author, conversation, date)
        .with("associated_message_type", 4000)
        .with("associated_message_guid", poll.to_owned())
}

/// A row of a kind that does not exist yet: `item_type` 99.
pub fn unknown_item(author: Author, conversation: Conversation, date: AppleNs) -> Row {
    Row::new(author, conversation, date).with("item_type", 99).with("group_action_type", 98)
}

/// A text that the phone's owner sent to its own number. From macOS 26 on there may be one row of
/// either direction alone, by device and way of synchronisation; before there are both.
pub fn to_self(number: &str, date: AppleNs, text: &str, own: bool) -> Row {
    let author = if own { Author::Me } else { Author::Other(number.to_owned()) };
    Row::text(author, Conversation::Direct(number.to_owned()), date, text)
}
