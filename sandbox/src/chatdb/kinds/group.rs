//! What happens to a group: rows without text, told apart by `item_type` and `group_action_type`.

use super::{Author, Conversation, Row};
use crate::clock::AppleNs;

/// A change of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChange {
    /// Somebody was added.
    Joined(String),
    /// Somebody was removed.
    Removed(String),
    /// The author left.
    Left,
    /// It has another name.
    Renamed(String),
    /// It has a photo.
    PhotoSet,
    /// It has none any more.
    PhotoRemoved,
    /// It has a background.
    BackgroundSet,
    /// It has none any more.
    BackgroundRemoved,
    /// The author has another number: `other_handle` is the author's own.
    NumberChanged,
}

impl GroupChange {
    /// `item_type` and `group_action_type`.
    pub const fn numbers(&self) -> (i64, i64) {
        match self {
            Self::Joined(_) | Self::NumberChanged => (1, 0),
            Self::Removed(_) => (1, 1),
            Self::Left => (3, 0),
            Self::Renamed(_) => (2, 0),
            Self::PhotoSet => (3, 1),
            Self::PhotoRemoved => (3, 2),
            Self::BackgroundSet => (3, 4),
            Self::BackgroundRemoved => (3, 6),
        }
    }
}

/// The row of a change.
pub fn group_event(
    author: Author,
    conversation: Conversation,
    date: AppleNs,
    change: &GroupChange,
) -> Row {
    let (item, action) = change.numbers();
    let row = Row::new(author.clone(), conversation, date)
        .with("item_type", item)
        .with("group_action_type", action)
        .with("part_count", rusqlite::types::Value::Null);
    match (change, author) {
        (GroupChange::Joined(who) | GroupChange::Removed(who), _) => {
            row.with_handle("other_handle", who)
        }
        (GroupChange::Renamed(title), _) => row.with("group_title", title.clone()),
        (GroupChange::NumberChanged, Author::Other(who)) => row.with_handle("other_handle", &who),
        (
            GroupChange::NumberChanged
            | GroupChange::Left
            | GroupChange::PhotoSet
            | GroupChange::PhotoRemoved
            | GroupChange::BackgroundSet
            | GroupChange::BackgroundRemoved,
            _,
        ) => row,
    }
}
