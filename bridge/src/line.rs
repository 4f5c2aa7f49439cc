//! What was read as JSON lines, for people and programs that look at a database: the protocol's
//! events for what came in, and own rows in words alike.

use protocol::pipe::{Conversation, Details, InboundAttachment};
use protocol::{Channel, UnixMs};
use serde::Serialize;

use crate::inbound::{Own, OwnMessage, OwnReaction, Told};

/// `schedule_state` of a Send Later message that was sent.
const SCHEDULE_SENT: i64 = 2;

/// How far an own message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// By Send Later, and not due or not sent yet.
    Scheduled,
    /// Neither sent nor failed.
    Pending,
    /// Sent, delivered or read.
    Sent,
    /// Not Delivered.
    Failed,
}

impl Progress {
    pub(crate) fn of(message: &OwnMessage) -> Self {
        if message.status.error != 0 {
            Self::Failed
        } else if message.schedule.is_some_and(|state| state != SCHEDULE_SENT) {
            // Whatever its flags say: it is not sent before it is due.
            Self::Scheduled
        } else if message.status.is_sent || message.status.is_delivered {
            Self::Sent
        } else {
            Self::Pending
        }
    }
}

/// An own row as a line.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OwnLine<'o> {
    Scheduled(MessageLine<'o>),
    Pending(MessageLine<'o>),
    Sent(MessageLine<'o>),
    Failed(MessageLine<'o>),
    OwnReaction(ReactionLine<'o>),
}

#[derive(Debug, Serialize)]
struct MessageLine<'o> {
    rowid: i64,
    guid: &'o str,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation: Option<&'o Conversation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<Channel>,
    text: &'o str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    attachments: &'o [InboundAttachment],
    at: UnixMs,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
    #[serde(skip_serializing_if = "is_zero")]
    error: i64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    delivered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered_at: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_at: Option<UnixMs>,
    #[serde(flatten)]
    details: &'o Details,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[derive(Debug, Serialize)]
struct ReactionLine<'o> {
    rowid: i64,
    guid: &'o str,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation: Option<&'o Conversation>,
    target: &'o str,
    part: u32,
    reaction: &'o str,
    #[serde(skip_serializing_if = "Option::is_none")]
    emoji: Option<&'o str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    attachments: &'o [InboundAttachment],
    removed: bool,
    at: UnixMs,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
}

impl<'o> OwnLine<'o> {
    fn of_message(message: &'o OwnMessage) -> Self {
        let status = &message.status;
        let line = MessageLine {
            rowid: message.rowid,
            guid: &message.guid,
            conversation: message.conversation.as_ref(),
            channel: status.service,
            text: &message.text,
            attachments: &message.attachments,
            at: message.at,
            late: message.late,
            error: status.error,
            delivered: status.is_delivered || status.date_delivered.is_some(),
            delivered_at: status.date_delivered,
            read_at: status.date_read,
            details: &message.details,
        };
        match Progress::of(message) {
            Progress::Scheduled => Self::Scheduled(line),
            Progress::Pending => Self::Pending(line),
            Progress::Sent => Self::Sent(line),
            Progress::Failed => Self::Failed(line),
        }
    }

    fn of_reaction(reaction: &'o OwnReaction) -> Self {
        Self::OwnReaction(ReactionLine {
            rowid: reaction.rowid,
            guid: &reaction.guid,
            conversation: reaction.conversation.as_ref(),
            target: &reaction.target,
            part: reaction.part,
            reaction: &reaction.kind,
            emoji: reaction.emoji.as_deref(),
            attachments: &reaction.attachments,
            removed: reaction.removed,
            at: reaction.at,
            late: reaction.late,
        })
    }
}

/// Adds a line to `out`, with its newline.
pub(crate) fn write(out: &mut Vec<u8>, told: &Told) -> serde_json::Result<()> {
    match told {
        Told::Event(event) => serde_json::to_writer(&mut *out, event)?,
        Told::Own(Own::Message(message)) => {
            serde_json::to_writer(&mut *out, &OwnLine::of_message(message))?;
        }
        Told::Own(Own::Reaction(reaction)) => {
            serde_json::to_writer(&mut *out, &OwnLine::of_reaction(reaction))?;
        }
    }
    out.push(b'\n');
    Ok(())
}
