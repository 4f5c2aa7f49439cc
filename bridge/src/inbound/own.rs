//! Own rows: what the owner of the phone, or one of our sends, has written. The daemon tells the
//! story of its sends by itself; whoever reads a database wants to see both sides.

use protocol::UnixMs;
use protocol::pipe::{Conversation, Details, InboundAttachment};

use crate::chatdb::StatusBits;

/// What an own row is.
#[derive(Debug, Clone, PartialEq)]
pub enum Own {
    /// A message.
    Message(OwnMessage),
    /// A reaction.
    Reaction(OwnReaction),
}

/// A message that was sent from this account.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnMessage {
    /// Its row.
    pub rowid: i64,
    /// Apple's id of it.
    pub guid: String,
    /// Where; none for a row that leads nowhere.
    pub conversation: Option<Conversation>,
    /// Its text.
    pub text: String,
    /// What goes with it.
    pub attachments: Vec<InboundAttachment>,
    /// When, by chat.db; of a message by Send Later, when it is due.
    pub at: UnixMs,
    /// Put in by iCloud long after it was sent.
    pub late: bool,
    /// By Send Later: 1 pending, 2 sent, 3 failed.
    pub schedule: Option<i64>,
    /// What may still change.
    pub status: StatusBits,
    /// Everything else.
    pub details: Box<Details>,
}

/// A reaction of the owner of the phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnReaction {
    /// Its row.
    pub rowid: i64,
    /// Apple's id of it.
    pub guid: String,
    /// Where.
    pub conversation: Option<Conversation>,
    /// Guid of the message that it is about.
    pub target: String,
    /// Which part of it.
    pub part: u32,
    /// As in [`protocol::pipe::Reaction`].
    pub kind: String,
    /// The emoji, where it is one.
    pub emoji: Option<String>,
    /// The sticker's file.
    pub attachments: Vec<InboundAttachment>,
    /// Taken back.
    pub removed: bool,
    /// When.
    pub at: UnixMs,
    /// Put in by iCloud long after it was made.
    pub late: bool,
}
