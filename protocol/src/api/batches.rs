//! Batches: one text to many recipients.

use std::collections::BTreeMap;

use super::{
    ChannelChoice, Class, Deserialize, E164, FieldError, Message, Reason, Recipient, Serialize,
    Status, UnixMs, UseTemplate, UsedTemplate,
};
use crate::{BatchId, MessageId};

crate::code::codes! {
    /// Where a batch stands.
    pub enum BatchState {
        /// Recipients can be added; nothing is sent.
        Draft = "draft",
        /// It has been started and waits for its `send_at`.
        Scheduled = "scheduled",
        /// Its recipients become messages, bit by bit, and those are on their way.
        Running = "running",
        /// No more of its recipients become messages until it is resumed; those that are goes on.
        Paused = "paused",
        /// Its messages are being withdrawn.
        Canceling = "canceling",
        /// It was withdrawn; what had been sent was sent.
        Canceled = "canceled",
        /// Every recipient has had a message, and none of them is on its way any more.
        Completed = "completed",
    }
}

bodies! {
/// `POST /v1/batches`.
#[serde(deny_unknown_fields)]
pub struct CreateBatch {
    /// Its name, 1 to 100 characters.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 100))]
    pub name: String,
    /// The text, the same for everybody; this or `template`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 20_000))]
    pub text: Option<String>,
    /// The template; this or `text`. The version is pinned now. `variables` stand for those that a recipient has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<UseTemplate>,
    /// `auto` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<ChannelChoice>,
    /// `marketing`, to which all rules apply, when left out. Not `otp`: a one-time code is one person's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The number to send from; any that fits when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<E164>,
    /// Nothing becomes a message before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_at: Option<UnixMs>,
    /// How long each message lives, from when it is made; as for single messages when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub ttl_seconds: Option<u32>,
    /// Kept with each message, at most 4 KiB of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// One text to many recipients.
pub struct Batch {
    /// Its id.
    pub id: BatchId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: BatchState,
    /// Why it is paused or canceled, where it was not the tenant that did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The text, the same for everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The template and its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<UsedTemplate>,
    /// What stands for variables that a recipient has not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// The channel asked for.
    pub channel: ChannelChoice,
    /// What rules apply.
    pub class: Class,
    /// The number to send from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<E164>,
    /// Not before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_at: Option<UnixMs>,
    /// How long each message lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// Kept with each message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Recipients that it has.
    pub recipients: u64,
    /// Rows that named a recipient again, and were left out.
    pub duplicates: u64,
    /// Rows that could not be used, and were left out.
    pub invalid: u64,
    /// Recipients that have become messages.
    pub expanded: u64,
    /// How many of those messages stand where; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<BTreeMap<Status, u64>>,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it last changed its state or its recipients.
    pub updated_at: UnixMs,
    /// When it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<UnixMs>,
    /// When it was completed or canceled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<UnixMs>,
    /// When the list of its recipients was deleted, long after its end. Their messages stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten_at: Option<UnixMs>,
}

/// One row of `POST /v1/batches/{id}/recipients`.
#[serde(deny_unknown_fields)]
pub struct CreateRecipient {
    /// Whom it goes to.
    pub to: Recipient,
    /// What stands for each variable of the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variables: Option<BTreeMap<String, String>>,
}

/// What has come of a chunk of recipients.
pub struct AddedRecipients {
    /// Recipients that are new.
    pub added: u64,
    /// Rows that named a recipient that the batch has already.
    pub duplicates: u64,
    /// Rows that cannot be used.
    pub invalid: u64,
    /// Recipients that the batch has now.
    pub recipients: u64,
    /// What is wrong with the first hundred rows that cannot be used.
    pub errors: Vec<RowError>,
}

/// A row that cannot be used.
pub struct RowError {
    /// Its line, from 1; in a JSON array its number, from 1.
    pub line: u64,
    /// The field, such as `to` or `variables/name`; empty for the row as a whole.
    pub field: String,
    /// What is wrong, for programs.
    pub code: String,
    /// What is wrong, for people.
    pub detail: String,
}

/// One recipient of a batch and what has come of it.
pub struct BatchRecipient {
    /// Its number in the batch, from 1.
    pub number: u64,
    /// Whom it goes to.
    pub to: Recipient,
    /// Its message, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// Where the message stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Why it stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// When that was last looked at or changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<UnixMs>,
}

/// `POST /v1/messages/batch`.
#[serde(deny_unknown_fields)]
pub struct CreateMessages {
    /// The messages, each as `POST /v1/messages` takes it; 1 to 1,000.
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 1_000))]
    pub messages: Vec<super::CreateMessage>,
}

/// What has come of each of several messages, in their order.
pub struct CreatedMessages {
    /// Messages that were accepted.
    pub accepted: u64,
    /// Messages that were refused.
    pub refused: u64,
    /// Each of them.
    pub results: Vec<CreatedOne>,
}

/// What has come of one of several messages: a message, or what is wrong with it.
pub struct CreatedOne {
    /// 202, or what a single message would have been refused with.
    pub status: u16,
    /// The message that was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Box<Message>>,
    /// Why it was refused: the code of the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Every field that is wrong, with its pointer from the beginning of the body.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}
}
