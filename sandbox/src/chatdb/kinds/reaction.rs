//! Reactions: rows of their own that name a part of another message.

use super::attachment::{Attachment, Parts};
use super::{Author, Conversation, Row, count};
use crate::bplist::Plist;
use crate::clock::AppleNs;
use crate::typedstream::AttributedText;

/// A reaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reaction {
    /// 2000
    Love,
    /// 2001
    Like,
    /// 2002
    Dislike,
    /// 2003
    Laugh,
    /// 2004
    Emphasise,
    /// 2005
    Question,
    /// 2006: any emoji, which stands in `associated_message_emoji`.
    Emoji(String),
    /// 2007: a sticker, which is an attachment.
    Sticker(Attachment),
}

impl Reaction {
    /// The six that were there first.
    pub const CLASSIC: [Self; 6] =
        [Self::Love, Self::Like, Self::Dislike, Self::Laugh, Self::Emphasise, Self::Question];

    /// What stands in `associated_message_type` when it is added. Removed it is 1000 more.
    pub const fn number(&self) -> i64 {
        match self {
            Self::Love => 2000,
            Self::Like => 2001,
            Self::Dislike => 2002,
            Self::Laugh => 2003,
            Self::Emphasise => 2004,
            Self::Question => 2005,
            Self::Emoji(_) => 2006,
            Self::Sticker(_) => 2007,
        }
    }

    /// The one of that name; any other text is an emoji.
    pub fn named(name: &str) -> Self {
        match name {
            "love" => Self::Love,
            "like" => Self::Like,
            "dislike" => Self::Dislike,
            "laugh" => Self::Laugh,
            "emphasise" => Self::Emphasise,
            "question" => Self::Question,
            emoji => Self::Emoji(emoji.to_owned()),
        }
    }

    /// The sentence that devices show which know no reactions.
    fn sentence(&self, quoted: &str, added: bool) -> String {
        let (on, off) = match self {
            Self::Love => ("Loved", "Removed a heart from"),
            Self::Like => ("Liked", "Removed a like from"),
            Self::Dislike => ("Disliked", "Removed a dislike from"),
            Self::Laugh => ("Laughed at", "Removed a laugh from"),
            Self::Emphasise => ("Emphasized", "Removed an exclamation from"),
            Self::Question => ("Questioned", "Removed a question mark from"),
            Self::Emoji(emoji) if added => return format!("Reacted {emoji} to “{quoted}”"),
            Self::Emoji(emoji) => return format!("Removed a {emoji} from “{quoted}”"),
            Self::Sticker(_) => ("Reacted with a sticker to", "Removed a sticker from"),
        };
        format!("{} “{quoted}”", if added { on } else { off })
    }
}

/// What a reaction is to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A part of a message: `p:N/GUID`.
    Part(u32, String),
    /// An app's message: `bp:GUID`.
    Balloon(String),
    /// The guid alone, as old rows have it.
    Bare(String),
}

impl Target {
    /// The message's guid.
    pub fn guid(&self) -> &str {
        match self {
            Self::Part(_, guid) | Self::Balloon(guid) | Self::Bare(guid) => guid,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Part(part, guid) => write!(f, "p:{part}/{guid}"),
            Self::Balloon(guid) => write!(f, "bp:{guid}"),
            Self::Bare(guid) => f.write_str(guid),
        }
    }
}

/// A reaction's row, added or removed. `quoted` is the text of what it is to.
pub fn reaction(
    (author, conversation, date): (Author, Conversation, AppleNs),
    reaction: &Reaction,
    target: &Target,
    quoted: &str,
    added: bool,
) -> Row {
    let row = Row::new(author, conversation, date);
    let sentence = reaction.sentence(quoted, added);
    let summary = Plist::map([
        ("amc", Plist::Int(1)),
        ("ust", Plist::Bool(true)),
        ("ams", Plist::text(quoted)),
    ]);
    let row = match reaction {
        Reaction::Sticker(sticker) if added => {
            let parts = Parts::of(&row.guid).file(sticker.clone().sticker());
            row.parts(parts)
        }
        Reaction::Emoji(emoji) => row
            .body(AttributedText::plain(&sentence))
            .with("associated_message_emoji", emoji.clone()),
        Reaction::Love
        | Reaction::Like
        | Reaction::Dislike
        | Reaction::Laugh
        | Reaction::Emphasise
        | Reaction::Question
        | Reaction::Sticker(_) => row.body(AttributedText::plain(&sentence)),
    };
    let number = reaction.number() + if added { 0 } else { 1000 };
    row.with("associated_message_type", number)
        .with("associated_message_guid", target.to_string())
        .with("associated_message_range_location", 0)
        .with("associated_message_range_length", count(quoted.encode_utf16().count().max(1)))
        .with("message_summary_info", summary.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_three_forms() {
        assert_eq!(Target::Part(3, "G".into()).to_string(), "p:3/G");
        assert_eq!(Target::Balloon("G".into()).to_string(), "bp:G");
        assert_eq!(Target::Bare("G".into()).to_string(), "G");
    }

    #[test]
    fn reactions_have_names_and_everything_else_is_an_emoji() {
        let names = ["love", "like", "dislike", "laugh", "emphasise", "question"];
        for (name, expected) in names.into_iter().zip(Reaction::CLASSIC) {
            assert_eq!(Reaction::named(name), expected);
        }
        assert_eq!(Reaction::named("🦀"), Reaction::Emoji("🦀".into()));
        assert_eq!(Reaction::named("🦀").sentence("x", false), "Removed a 🦀 from “x”");
    }
}
