//! The cells of one row of a query.

use std::borrow::Cow;

use protocol::Channel;
use rusqlite::types::ValueRef;

use super::schema::at;

/// The columns of a row, read leniently: a NULL or a value of another type is the type's zero.
/// Apple's columns are not ours to be strict about.
pub(super) struct Cells<'r, 's> {
    row: &'r rusqlite::Row<'s>,
    /// What stands from [`at::FIRST_RARE`] on, where a row of messages has anything there.
    pub(super) rare: Option<&'r rusqlite::Row<'s>>,
}

impl<'r, 's> Cells<'r, 's> {
    pub(super) fn of(row: &'r rusqlite::Row<'s>) -> Self {
        Self { row, rare: None }
    }

    /// Of a row query, with what the query after rare columns has found.
    pub(super) fn with_rare(self, rare: Option<&'r rusqlite::Row<'s>>) -> Self {
        Self { rare, ..self }
    }

    pub(super) fn value(&self, at: usize) -> ValueRef<'r> {
        let cell = match at.checked_sub(at::FIRST_RARE) {
            None => self.row.get_ref(at),
            Some(at) => match self.rare {
                Some(rare) => rare.get_ref(at),
                None => return ValueRef::Null,
            },
        };
        cell.unwrap_or(ValueRef::Null)
    }

    pub(super) fn integer(&self, at: usize) -> i64 {
        match self.value(at) {
            ValueRef::Integer(number) => number,
            ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => 0,
        }
    }

    pub(super) fn flag(&self, at: usize) -> bool {
        self.integer(at) != 0
    }

    pub(super) fn text(&self, at: usize) -> Option<String> {
        match self.value(at) {
            ValueRef::Text(bytes) => Some(text_of(bytes).into_owned()),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
        }
    }

    pub(super) fn filled(&self, at: usize) -> Option<String> {
        self.text(at).filter(|text| !text.is_empty())
    }

    pub(super) fn blob(&self, at: usize) -> Option<&'r [u8]> {
        match self.value(at) {
            ValueRef::Blob(bytes) => Some(bytes),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) => None,
        }
    }

    /// A number, told apart from NULL.
    pub(super) fn number(&self, at: usize) -> Option<i64> {
        match self.value(at) {
            ValueRef::Integer(number) => Some(number),
            ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => None,
        }
    }

    /// A text as it stands.
    pub(super) fn bytes(&self, at: usize) -> Option<&'r [u8]> {
        match self.value(at) {
            ValueRef::Text(bytes) => Some(bytes),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
        }
    }

    pub(super) fn channel(&self, at: usize) -> Option<Channel> {
        match self.value(at) {
            ValueRef::Text(bytes) => str::from_utf8(bytes).ok().and_then(Channel::of_service),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
        }
    }
}

/// A text, with U+FFFD for what is not UTF-8. Looking at all of it first is several times faster than
/// looking for what does not fit.
pub(super) fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}
