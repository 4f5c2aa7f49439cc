//! Requests that write rows of all kinds. Each is a control command as well, with these options.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::chatdb::kinds::flag::Schedule;
use crate::chatdb::kinds::{Effect, RowService};

/// A message arrives from outside, or from another device of the phone's owner.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[group(skip)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// The phone that receives it.
    #[arg(long)]
    pub phone: String,
    /// Who wrote it; with --own to whom.
    #[arg(long)]
    pub from: String,
    /// What. May be left out beside an attachment.
    #[arg(long, default_value = "", required_unless_present = "attach")]
    pub text: String,
    /// Over which service.
    #[arg(long, default_value = "iMessage")]
    pub service: RowService,
    /// The group that it was written to (chat…).
    #[arg(long)]
    pub group: Option<String>,
    /// Another member of that group.
    #[arg(long = "member")]
    #[serde(default)]
    pub members: Vec<String>,
    /// How many milliseconds ago it was sent.
    #[arg(long, default_value_t = 0)]
    #[serde(default)]
    pub age_ms: i64,
    /// How many milliseconds its row stays without a chat.
    #[arg(long)]
    pub join_after_ms: Option<u64>,
    /// How many milliseconds its row stays without its text.
    #[arg(long)]
    #[serde(default)]
    pub text_after_ms: Option<u64>,
    /// A file that comes with it, after the text. May be repeated.
    #[arg(long)]
    #[serde(default)]
    pub attach: Vec<PathBuf>,
    /// The files are not downloaded yet; see finish-attachment.
    #[arg(long)]
    #[serde(default)]
    pub attach_pending: bool,
    /// The message, and its part if it is not 0, that this one answers: GUID or GUID:PART.
    #[arg(long)]
    #[serde(default)]
    pub reply_to: Option<String>,
    /// An effect.
    #[arg(long)]
    #[serde(default)]
    pub effect: Option<Effect>,
    /// Somebody who is mentioned: the characters in the text and the address, NAME=ADDRESS.
    #[arg(long = "mention")]
    #[serde(default)]
    pub mentions: Vec<String>,
    /// Another device of the phone's owner sent it.
    #[arg(long)]
    #[serde(default)]
    pub own: bool,
    /// Half a second later a preview of the text's link follows, with this title.
    #[arg(long)]
    #[serde(default)]
    pub preview: Option<String>,
    /// It is the first file as an audio message, in which this is said.
    #[arg(long, requires = "attach")]
    #[serde(default)]
    pub said: Option<String>,
    /// It is in no chat, as a code that was cleaned up at once.
    #[arg(long)]
    #[serde(default)]
    pub no_chat: bool,
}

/// How a reaction names its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetForm {
    /// `p:N/GUID`
    #[default]
    Part,
    /// `bp:GUID`
    Balloon,
    /// `GUID`
    Bare,
}

/// Somebody reacts to a message, or takes it back.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[group(skip)]
#[serde(deny_unknown_fields)]
pub struct React {
    /// The phone.
    #[arg(long)]
    pub phone: String,
    /// The guid of the message that is reacted to.
    #[arg(long)]
    pub guid: String,
    /// love, like, dislike, laugh, emphasise, question, or any emoji.
    #[arg(long, default_value = "love")]
    pub reaction: String,
    /// A picture that is the reaction, as a sticker.
    #[arg(long)]
    #[serde(default)]
    pub sticker: Option<PathBuf>,
    /// The part that is reacted to.
    #[arg(long, default_value_t = 0)]
    #[serde(default)]
    pub part: u32,
    /// How the message is named.
    #[arg(long, default_value = "part")]
    #[serde(default)]
    pub form: TargetForm,
    /// It is taken back.
    #[arg(long)]
    #[serde(default)]
    pub remove: bool,
    /// Who reacts; the other one of a direct chat if nobody is named.
    #[arg(long, conflicts_with = "own")]
    #[serde(default)]
    pub from: Option<String>,
    /// The phone's owner reacts.
    #[arg(long)]
    #[serde(default)]
    pub own: bool,
}

/// A message is edited.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[group(skip)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The phone.
    #[arg(long)]
    pub phone: String,
    /// The message.
    #[arg(long)]
    pub guid: String,
    /// The part.
    #[arg(long, default_value_t = 0)]
    #[serde(default)]
    pub part: u32,
    /// Its new text.
    #[arg(long)]
    pub text: String,
}

/// A message is unsent.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[group(skip)]
#[serde(deny_unknown_fields)]
pub struct Unsend {
    /// The phone.
    #[arg(long)]
    pub phone: String,
    /// The message.
    #[arg(long)]
    pub guid: String,
    /// This part alone.
    #[arg(long)]
    #[serde(default)]
    pub part: Option<u32>,
}

/// What happens to a group.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// Somebody is added.
    Join {
        /// Who.
        who: String,
    },
    /// Who does it leaves.
    Leave,
    /// Somebody is removed.
    Remove {
        /// Who.
        who: String,
    },
    /// It gets another name.
    Rename {
        /// Which.
        title: String,
    },
    /// It gets a photo, or loses it.
    Photo {
        /// It loses it.
        #[arg(long)]
        #[serde(default)]
        remove: bool,
    },
    /// It gets a background, or loses it.
    Background {
        /// It loses it.
        #[arg(long)]
        #[serde(default)]
        remove: bool,
    },
    /// Who does it has another number.
    Number,
}

/// A group changes.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[group(skip)]
pub struct Group {
    /// The phone.
    #[arg(long)]
    pub phone: String,
    /// The group's id (chat…), which must be there.
    #[arg(long = "group")]
    #[serde(rename = "group")]
    pub id: String,
    /// Who does it; the phone's owner if nobody is named.
    #[arg(long)]
    #[serde(default)]
    pub by: Option<String>,
    /// What.
    #[command(subcommand)]
    #[serde(flatten)]
    pub change: Change,
}

/// How far a file is said to have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// `transfer_state` 3
    Downloading,
    /// `transfer_state` 5, and the file is there.
    #[default]
    Complete,
    /// `transfer_state` 6
    Failed,
}

/// A file that was not downloaded yet comes.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[group(skip)]
#[serde(deny_unknown_fields)]
pub struct FinishAttachment {
    /// The phone.
    #[arg(long)]
    pub phone: String,
    /// The attachment's guid (at_…).
    #[arg(long)]
    pub guid: String,
    /// How far it has come.
    #[arg(long, default_value = "complete")]
    #[serde(default)]
    pub state: FileState,
}

/// The phone's owner writes a Send Later message, or one of them is sent.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[group(skip)]
#[serde(deny_unknown_fields)]
pub struct ScheduleMessage {
    /// The phone.
    #[arg(long)]
    pub phone: String,
    /// The message that is sent or fails now.
    #[arg(long, requires = "state", conflicts_with_all = ["to", "text"])]
    #[serde(default)]
    pub guid: Option<String>,
    /// What becomes of it.
    #[arg(long, requires = "guid")]
    #[serde(default)]
    pub state: Option<Schedule>,
    /// To whom.
    #[arg(long, required_unless_present = "guid")]
    #[serde(default)]
    pub to: Option<String>,
    /// What.
    #[arg(long, required_unless_present = "guid")]
    #[serde(default)]
    pub text: Option<String>,
    /// How many milliseconds from now it is due. Nothing happens by itself then.
    #[arg(long, default_value_t = 3_600_000)]
    #[serde(default)]
    pub after_ms: i64,
}

/// A message goes to Recently Deleted, or comes back.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[group(skip)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// The phone.
    #[arg(long)]
    pub phone: String,
    /// The message.
    #[arg(long)]
    pub guid: String,
    /// It comes back.
    #[arg(long)]
    #[serde(default)]
    pub recover: bool,
}
