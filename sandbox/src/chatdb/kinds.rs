//! Rows of every kind that chat.db knows: pure builders make a [`Row`], [`ChatDb::write_row`]
//! writes it, leaving out what the file has no column for, and the functions in [`change`] do what
//! happens to a row later. What each kind looks like is taken from public reports and, where there
//! are any, from public rows (see the tests).

pub mod attachment;
pub mod balloon;
pub mod change;
pub mod flag;
pub mod group;
pub mod reaction;
pub mod summary;
pub mod text;

use std::collections::BTreeMap;

use rusqlite::types::Value as Sql;
use serde::{Deserialize, Serialize};

use super::{ChatDb, ChatDbError, Conversation, Result, Written, new_guid};
use crate::clock::AppleNs;
use crate::generate::mix::Made;
use crate::outcome::Service;
use crate::typedstream::AttributedText;
use attachment::Attachment;

/// The service of a row as chat.db spells it, which is more than an account can be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
pub enum RowService {
    /// Apple's own.
    #[serde(rename = "iMessage")]
    #[value(name = "iMessage", alias = "imessage")]
    Imessage,
    /// Text messages.
    #[serde(rename = "SMS")]
    #[value(name = "SMS", alias = "sms")]
    Sms,
    /// Rich Communication Services.
    #[serde(rename = "RCS")]
    #[value(name = "RCS")]
    Rcs,
    /// The same in lower case, which is seen too.
    #[serde(rename = "rcs")]
    #[value(name = "rcs")]
    RcsLower,
    /// Over a satellite.
    #[serde(rename = "iMessageLite")]
    #[value(name = "iMessageLite", alias = "imessagelite")]
    ImessageLite,
}

impl RowService {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Imessage, Self::Sms, Self::Rcs, Self::RcsLower, Self::ImessageLite];

    /// What stands in `message.service`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Imessage => "iMessage",
            Self::Sms => "SMS",
            Self::Rcs => "RCS",
            Self::RcsLower => "rcs",
            Self::ImessageLite => "iMessageLite",
        }
    }

    /// What stands in the handle and in the chat. That a satellite's texts are in the iMessage
    /// conversation is our reading; no public row shows it.
    pub const fn account(self) -> &'static str {
        match self {
            Self::Imessage | Self::ImessageLite => "iMessage",
            Self::Sms => "SMS",
            Self::Rcs | Self::RcsLower => "RCS",
        }
    }
}

impl From<Service> for RowService {
    fn from(service: Service) -> Self {
        match service {
            Service::Imessage => Self::Imessage,
            Service::Rcs => Self::Rcs,
            Service::Sms => Self::Sms,
        }
    }
}

/// Who wrote a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// The phone's owner.
    Me,
    /// The one with this address.
    Other(String),
}

/// What the text columns hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Neither column is filled.
    Nothing,
    /// Text with its runs. The column `text` is filled too on macOS 12 only.
    Attributed(AttributedText),
    /// The column `text` alone, as in reactions that came by SMS and in very old rows.
    Bare(String),
}

/// A row of `message` with what belongs to it, before it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its guid.
    pub guid: String,
    /// Who wrote it.
    pub author: Author,
    /// Where. Rows in no chat exist: one-time codes that were cleaned up, for instance.
    pub conversation: Option<Conversation>,
    /// Over which service.
    pub service: RowService,
    /// When it was sent.
    pub date: AppleNs,
    /// What.
    pub body: Body,
    /// Its attachments.
    pub attachments: Vec<Attachment>,
    /// Addresses that stand in columns as the number of their handle.
    pub(crate) handles: Vec<(&'static str, String)>,
    /// All other columns. A file that lacks one goes without.
    pub(crate) columns: BTreeMap<&'static str, Sql>,
}

impl Row {
    /// A row without content: finished, and sent and delivered or, from others, delivered.
    pub fn new(author: Author, conversation: Conversation, date: AppleNs) -> Self {
        let own = i64::from(author == Author::Me);
        let group = matches!(conversation, Conversation::Group { .. });
        let delivered = i64::from(own == 0 || !group);
        let columns = BTreeMap::from([
            ("is_from_me", Sql::Integer(own)),
            ("is_sent", Sql::Integer(own)),
            ("is_finished", Sql::Integer(1)),
            ("is_delivered", Sql::Integer(delivered)),
        ]);
        Self {
            guid: new_guid(),
            author,
            conversation: Some(conversation),
            service: RowService::Imessage,
            date,
            body: Body::Nothing,
            attachments: Vec::new(),
            handles: Vec::new(),
            columns,
        }
    }

    /// A text, with links found in it.
    pub fn text(author: Author, conversation: Conversation, date: AppleNs, text: &str) -> Self {
        Self::new(author, conversation, date).body(AttributedText::with_links(text))
    }

    /// The same with this guid.
    #[must_use]
    pub fn guid(mut self, guid: impl Into<String>) -> Self {
        self.guid = guid.into();
        self
    }

    /// The same with this text.
    #[must_use]
    pub fn body(mut self, text: AttributedText) -> Self {
        self.columns.insert("part_count", Sql::Integer(count(text.parts().len())));
        self.body = Body::Attributed(text);
        self
    }

    /// The same over this service. Only iMessage and one-to-one RCS have receipts.
    #[must_use]
    pub fn over(mut self, service: RowService) -> Self {
        self.service = service;
        if service == RowService::Sms && self.author == Author::Me {
            self.columns.insert("is_delivered", Sql::Integer(0));
        }
        self
    }

    /// The same in no chat.
    #[must_use]
    pub fn without_chat(mut self) -> Self {
        self.conversation = None;
        self
    }

    /// The same with this value in this column, whatever was there before.
    #[must_use]
    pub fn with(mut self, column: &'static str, value: impl Into<Sql>) -> Self {
        self.columns.insert(column, value.into());
        self
    }

    /// The same with the handle of this address in this column.
    #[must_use]
    pub fn with_handle(mut self, column: &'static str, address: &str) -> Self {
        self.handles.push((column, address.to_owned()));
        self
    }

    /// The same as an answer to a part of an earlier message: the originator's guid, and part,
    /// start and length of what is answered. (`reply_to_guid` is no mark of an answer: it is the
    /// previous message in every row.)
    #[must_use]
    pub fn replying_to(self, guid: &str, part: u32, start: usize, len: usize) -> Self {
        self.with("thread_originator_guid", guid.to_owned())
            .with("thread_originator_part", format!("{part}:{start}:{len}"))
    }

    /// The same with an effect, such as `com.apple.messages.effect.CKConfettiEffect`.
    #[must_use]
    pub fn with_effect(self, effect: Effect) -> Self {
        self.with("expressive_send_style_id", effect.id().to_owned())
    }

    /// The columns that differ from those of any message.
    pub fn columns(&self) -> &BTreeMap<&'static str, Sql> {
        &self.columns
    }
}

/// How a message is shown when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Effect {
    /// The bubble slams down.
    Slam,
    /// The bubble grows.
    Loud,
    /// The bubble is small at first.
    Gentle,
    /// To be wiped free.
    InvisibleInk,
    /// The text many times.
    Echo,
    /// A beam of light.
    Spotlight,
    /// Balloons.
    Balloons,
    /// Confetti.
    Confetti,
    /// A heart.
    Heart,
    /// Lasers.
    Lasers,
    /// Fireworks.
    Fireworks,
    /// Sparkles.
    Sparkles,
    /// A shooting star.
    ShootingStar,
}

impl Effect {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Slam,
        Self::Loud,
        Self::Gentle,
        Self::InvisibleInk,
        Self::Echo,
        Self::Spotlight,
        Self::Balloons,
        Self::Confetti,
        Self::Heart,
        Self::Lasers,
        Self::Fireworks,
        Self::Sparkles,
        Self::ShootingStar,
    ];

    /// What stands in `expressive_send_style_id`.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Slam => "com.apple.MobileSMS.expressivesend.impact",
            Self::Loud => "com.apple.MobileSMS.expressivesend.loud",
            Self::Gentle => "com.apple.MobileSMS.expressivesend.gentle",
            Self::InvisibleInk => "com.apple.MobileSMS.expressivesend.invisibleink",
            Self::Echo => "com.apple.messages.effect.CKEchoEffect",
            Self::Spotlight => "com.apple.messages.effect.CKSpotlightEffect",
            Self::Balloons => "com.apple.messages.effect.CKHappyBirthdayEffect",
            Self::Confetti => "com.apple.messages.effect.CKConfettiEffect",
            Self::Heart => "com.apple.messages.effect.CKHeartEffect",
            Self::Lasers => "com.apple.messages.effect.CKLasersEffect",
            Self::Fireworks => "com.apple.messages.effect.CKFireworksEffect",
            Self::Sparkles => "com.apple.messages.effect.CKSparklesEffect",
            Self::ShootingStar => "com.apple.messages.effect.CKShootingStarEffect",
        }
    }
}

/// Counts here are of the parts and characters of one message.
pub(crate) fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl ChatDb {
    /// Writes a row and its attachments in one transaction. Its chat comes with
    /// [`ChatDb::join`], in another one, as on a Mac.
    pub fn write_row(&mut self, row: &Row) -> Result<Written> {
        self.together(|db| db.write_row_here(row))
    }

    /// Writes a row and, if it has one, puts it into its chat, in two transactions.
    pub fn write_joined(&mut self, row: &Row) -> Result<Written> {
        let written = self.write_row(row)?;
        if written.chat != 0 {
            self.join(&written)?;
        }
        Ok(written)
    }

    /// Writes a row inside of a transaction that the caller has begun.
    pub(crate) fn write_row_here(&mut self, row: &Row) -> Result<Written> {
        let account = row.service.account();
        let chat = match &row.conversation {
            Some(conversation) => self.chat(conversation, account)?,
            None => 0,
        };
        let handle = match (&row.author, &row.conversation) {
            (Author::Other(address), _) | (Author::Me, Some(Conversation::Direct(address))) => {
                self.handle(address, account)?
            }
            (Author::Me, Some(Conversation::Group { .. }) | None) => 0,
        };
        let (text, blob) = match &row.body {
            Body::Nothing => (Sql::Null, Sql::Null),
            Body::Bare(text) => (Sql::Text(text.clone()), Sql::Null),
            Body::Attributed(text) => {
                let bare = self.macos.fills_text().then(|| text.text().to_owned());
                (bare.map_or(Sql::Null, Sql::Text), Sql::Blob(text.encode()))
            }
        };
        let mut more: Vec<(&'static str, Sql)> =
            row.columns.iter().map(|(name, value)| (*name, value.clone())).collect();
        for (column, address) in &row.handles {
            more.push((column, self.handle(address, account)?.into()));
        }
        let ids = (row.guid.as_str(), row.service.as_str(), row.date);
        let rowid = self.message(ids, (text, blob), (chat, handle), more)?;
        for attachment in &row.attachments {
            self.write_attachment(rowid, row, attachment)?;
        }
        Ok(Written { rowid, guid: row.guid.clone(), chat, date: row.date })
    }

    /// A row of the generator's mix, inside of a transaction.
    pub(crate) fn write_made(&mut self, made: &Made) -> Result<()> {
        match made {
            Made::Row(row) => {
                let written = self.write_row_here(row)?;
                if written.chat == 0 { Ok(()) } else { self.join(&written) }
            }
            Made::Deleted(row) => {
                let written = self.write_row_here(row)?;
                let values = vec![
                    ("chat_id", written.chat.into()),
                    ("message_id", written.rowid.into()),
                    ("delete_date", row.date.0.into()),
                ];
                if self.has_table("chat_recoverable_message_join") {
                    self.insert("chat_recoverable_message_join", values)?;
                }
                Ok(())
            }
        }
    }

    fn write_attachment(&self, message: i64, row: &Row, attachment: &Attachment) -> Result<()> {
        let guid = attachment.guid.clone();
        let rowid = self.insert("attachment", attachment.columns(row))?;
        if self.conn.changes() == 0 {
            return Err(ChatDbError::Impossible(format!("attachment {guid} is there already")));
        }
        let join = vec![("message_id", message.into()), ("attachment_id", rowid.into())];
        self.insert("message_attachment_join", join)?;
        // Apple's trigger does this; a generated file has its triggers only at the end.
        self.update("UPDATE message SET cache_has_attachments = 1 WHERE ROWID = ?", [message])
    }
}

#[cfg(test)]
mod tests;
