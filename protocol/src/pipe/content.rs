//! What comes in: messages with everything that Messages knows about them, and what happens to
//! them afterwards.
//!
//! Positions in texts are counted in Unicode scalar values, parts from 0. Booleans that are false
//! and lists that are empty are left out on the wire.

use serde::{Deserialize, Serialize};

use super::Conversation;
use crate::{Channel, Recipient, UnixMs};

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A message that came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Apple's id of it; unique on one phone.
    pub guid: String,
    /// Who wrote it.
    pub from: Recipient,
    /// Where.
    pub conversation: Conversation,
    /// Its text; empty when it is only attachments.
    pub text: String,
    /// What came with it, in the order of its parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<InboundAttachment>,
    /// Over which channel.
    pub service: Channel,
    /// When its sender sent it, by chat.db.
    pub at: UnixMs,
    /// Put into chat.db by iCloud long after it was sent.
    #[serde(default)]
    pub late: bool,
    /// Everything else that is known of it.
    #[serde(flatten)]
    pub details: Box<Details>,
}

/// What only some messages have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are facts about a message, each independent of the others"
)]
pub struct Details {
    /// The subject line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What is said about stretches of the text: mentions, links, codes, styles.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<TextRun>,
    /// Which stretch of the text is which part of the message; left out where all of it is part 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<TextPart>,
    /// It answers an earlier message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<ReplyTo>,
    /// An effect of bubble or screen: `slam`, `loud`, `gentle`, `invisible_ink`, `confetti`, …; one
    /// that this build does not know stands as Apple writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// An app's message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<App>,
    /// The preview of a link in the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<LinkPreview>,
    /// It is spoken: an audio message.
    #[serde(skip_serializing_if = "is_false")]
    pub audio: bool,
    /// What the audio message says, by Messages' own ear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transcription: Option<String>,
    /// Messages itself sent it as SMS, for want of its own service.
    #[serde(skip_serializing_if = "is_false")]
    pub downgraded: bool,
    /// It came by satellite.
    #[serde(skip_serializing_if = "is_false")]
    pub satellite: bool,
    /// An emergency message.
    #[serde(skip_serializing_if = "is_false")]
    pub sos: bool,
    /// Marked as critical or time-sensitive by its sender's device.
    #[serde(skip_serializing_if = "is_false")]
    pub critical: bool,
    /// Messages takes it for spam.
    #[serde(skip_serializing_if = "is_false")]
    pub spam: bool,
    /// Where Messages' filter has put it: `unknown_sender`, `junk`, `promotion`, `transaction`,
    /// `blocked`, `pending_review`, or `filter_N` for a number that this build does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// It lies in Recently Deleted.
    #[serde(skip_serializing_if = "is_false")]
    pub deleted: bool,
    /// Written to oneself.
    #[serde(skip_serializing_if = "is_false")]
    pub to_self: bool,
    /// Answered by a machine, such as a driving Focus.
    #[serde(skip_serializing_if = "is_false")]
    pub auto_reply: bool,
    /// There was a text, and it could not be decoded.
    #[serde(skip_serializing_if = "is_false")]
    pub undecodable: bool,
    /// The guid of the message that this is a late copy of, where that one is known: whoever has it
    /// has this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<String>,
}

/// What is said about a stretch of text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextRun {
    /// Where it begins, in Unicode scalar values.
    pub start: u32,
    /// How long it is, in Unicode scalar values.
    pub length: u32,
    /// `mention`, `link`, `one_time_code`, `date`, `address`, `money`, `bold`, `italic`,
    /// `underline`, `strikethrough`, `animation`, `detected`.
    pub kind: String,
    /// Who is mentioned, where the link leads, the code, the name of the animation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A stretch of text that is a part of its message, or some of it: reactions, answers, edits and
/// unsends name parts by these numbers. Numbers are not places: what was taken back leaves a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextPart {
    /// The number of the part.
    pub part: u32,
    /// Where it begins, in Unicode scalar values.
    pub start: u32,
    /// How long it is, in Unicode scalar values.
    pub length: u32,
}

/// Which message, and which part of it, is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTo {
    /// Guid of the message that began the thread.
    pub guid: String,
    /// Which part of it.
    pub part: u32,
}

/// What an app says in its message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct App {
    /// Its bundle id, as in chat.db.
    pub id: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What stands on its balloon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption: Option<String>,
    /// Where it leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What Messages shows for a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkPreview {
    /// Where it leads.
    pub url: String,
    /// The page's title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Its summary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The name of its site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
}

/// How far a file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferState {
    /// Announced.
    #[default]
    Pending,
    /// On its way.
    Downloading,
    /// Here, whole.
    Complete,
    /// It did not come.
    Failed,
}

/// A file that came with a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundAttachment {
    /// Apple's transfer guid.
    pub guid: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime: Option<String>,
    /// Its uniform type identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uti: Option<String>,
    /// Its size in bytes, as announced.
    pub bytes: u64,
    /// The file is here, whole.
    #[serde(default)]
    pub complete: bool,
    /// How far it is.
    #[serde(default)]
    pub state: TransferState,
    /// Where it is on the Mac; `~` stands for the home folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Which part of the message it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// Before which character of the text it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
    /// A sticker.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sticker: bool,
    /// It stands in the text like a character of it, in the same part: a drawn emoji.
    #[serde(default, skip_serializing_if = "is_false")]
    pub emoji_image: bool,
    /// What a drawn emoji shows, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A file of an earlier message whose state has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentChange {
    /// Guid of the message.
    pub message: String,
    /// The file as it is now.
    pub attachment: InboundAttachment,
    /// When that was noticed.
    pub at: UnixMs,
}

/// The preview of a link in an earlier message, when it comes after the message was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewChange {
    /// Guid of the message.
    pub message: String,
    /// What is shown.
    pub preview: LinkPreview,
    /// When.
    pub at: UnixMs,
}

/// A reaction ("tapback") to an earlier message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaction {
    /// Guid of the reaction's own row.
    pub guid: String,
    /// Who reacted.
    pub from: Recipient,
    /// Where.
    pub conversation: Conversation,
    /// Guid of the message that it is about.
    pub target: String,
    /// Which part of it, from 0.
    pub part: u32,
    /// `love`, `like`, `dislike`, `laugh`, `emphasize`, `question`, `emoji`, `sticker`, `vote`.
    #[serde(rename = "reaction")]
    pub kind: String,
    /// The emoji, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emoji: Option<String>,
    /// The sticker's file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<InboundAttachment>,
    /// Taken back.
    #[serde(default)]
    pub removed: bool,
    /// When.
    pub at: UnixMs,
    /// Put into chat.db by iCloud long after it was made.
    #[serde(default, skip_serializing_if = "is_false")]
    pub late: bool,
}

/// One text that a part of a message has had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The text.
    pub text: String,
    /// Since when.
    pub at: UnixMs,
}

/// An edit of an earlier message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edited {
    /// Guid of the message.
    pub guid: String,
    /// Which part of it, from 0.
    #[serde(default)]
    pub part: u32,
    /// The text of that part now.
    pub text: String,
    /// Every text that the part has had, the first one first and the present one last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Version>,
    /// The message is an own one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub from_me: bool,
    /// When.
    pub at: UnixMs,
}

/// A message taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsent {
    /// Guid of the message.
    pub guid: String,
    /// The parts taken back; empty means all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<u32>,
    /// The message is an own one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub from_me: bool,
    /// When.
    pub at: UnixMs,
}

/// A change of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupChange {
    /// Guid of the row that tells of it.
    pub guid: String,
    /// Which group.
    pub conversation: Conversation,
    /// `joined`, `left`, `removed`, `renamed`, `photo`, `photo_removed`, `background`,
    /// `background_removed`, `other`.
    pub change: String,
    /// Whom or what it is about: an address or the new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Who did it; none for the owner of the phone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Recipient>,
    /// Who is in the group now, the owner of the phone not counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub participants: Vec<String>,
    /// When.
    pub at: UnixMs,
}

/// What the system says in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Guid of the row that tells of it.
    pub guid: String,
    /// Where.
    pub conversation: Conversation,
    /// About whom; none for the owner of the phone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Recipient>,
    /// `location_shared`, `location_stopped`, `audio_kept`, `shareplay`, `number_changed`, `system`.
    #[serde(rename = "notice")]
    pub kind: String,
    /// When.
    pub at: UnixMs,
}

/// A row of a kind that this build does not know. Nothing of it is guessed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownKind {
    /// Guid of the row.
    pub guid: String,
    /// Where, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<Conversation>,
    /// From whom, as far as it is known; none for an own row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Recipient>,
    /// An own row.
    #[serde(default, skip_serializing_if = "is_false")]
    pub from_me: bool,
    /// `item_type`.
    pub item_type: i64,
    /// `group_action_type`.
    pub group_action_type: i64,
    /// `associated_message_type`.
    pub associated_message_type: i64,
    /// `message_action_type`.
    #[serde(default)]
    pub message_action_type: i64,
    /// `balloon_bundle_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon_bundle_id: Option<String>,
    /// Its text, where it has one: what somebody wrote is never dropped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// When.
    pub at: UnixMs,
}
