//! Texts with links and their previews, which Messages writes as rows of their own. Pure.

use std::collections::VecDeque;

use protocol::UnixMs;

use crate::chatdb::{Place, Row};
use crate::payload::LINK_BALLOON;
use crate::typedstream;

/// A preview's date is within this of its text's; two seconds were seen.
pub(crate) const PREVIEW_MS: i64 = 5_000;
/// Texts with links and joined previews that are kept in mind; previews follow at once.
const KEPT_MAX: usize = 64;

/// A text with a link that was told.
#[derive(Debug)]
struct TextWithLink {
    guid: String,
    place: Place,
    handle: Option<std::sync::Arc<str>>,
    from_me: bool,
    at: UnixMs,
    text: String,
}

/// A preview that belongs to a text which was told before it.
#[derive(Debug)]
pub(super) struct Joined {
    rowid: i64,
    message: String,
    /// What it shows was told with the text.
    shown: bool,
}

impl Joined {
    /// Of which message it is, when what it shows has not been told.
    pub(super) fn untold(&self) -> Option<String> {
        (!self.shown).then(|| self.message.clone())
    }
}

/// What is kept in mind about links.
#[derive(Debug, Default)]
pub(super) struct Links {
    told: VecDeque<TextWithLink>,
    joined: VecDeque<Joined>,
    /// No row above this one was joined: most that are asked about are new.
    joined_to: i64,
}

/// Whether it is a text for whose link a preview may follow.
pub(super) fn awaits_preview(row: &Row) -> bool {
    row.is_plain()
        && row.balloon.is_none()
        && (row.runs.iter().any(|run| run.get(typedstream::LINK).is_some())
            // Rows that have no body have no runs either.
            || row.text.contains("://"))
}

pub(super) fn is_preview(row: &Row) -> bool {
    row.is_plain() && row.balloon.as_deref() == Some(LINK_BALLOON)
}

/// Whether the preview is of a link in this text: it repeats the link.
fn shows(text: &str, preview: &Row) -> bool {
    let repeated = preview.text.trim_matches(|c: char| c.is_whitespace() || c == '\u{fffc}');
    (!repeated.is_empty() && text.contains(repeated))
        || preview.preview.as_ref().is_some_and(|link| {
            let bare = link.url.trim_end_matches('/');
            !bare.is_empty() && text.contains(bare)
        })
}

fn is_near(left: Option<UnixMs>, right: Option<UnixMs>) -> bool {
    matches!((left, right), (Some(left), Some(right)) if left.since(right).abs() <= PREVIEW_MS)
}

/// The row among these that is the preview of this text: in any of the lists that are `near`, the last of which goes on in
/// `following`. Where rows were numbered anew it may stand `anywhere`.
pub(super) fn preview_among<'r>(
    row: &Row,
    near: &[&'r [Row]],
    following: &'r [Row],
    anywhere: bool,
) -> Option<&'r Row> {
    // Rows are in order, and a preview follows its text closely.
    let after = |rows: &'r [Row]| {
        let from = rows.partition_point(|other| other.rowid <= row.rowid);
        rows.get(from..).unwrap_or_default()
    };
    let left = KEPT_MAX.saturating_sub(near.last().map_or(0, |rows| after(rows).len()));
    near.iter()
        .flat_map(|rows| {
            if anywhere { rows.iter().take(rows.len()) } else { after(rows).iter().take(KEPT_MAX) }
        })
        .chain(after(following).iter().take(left))
        .find(|other| {
            is_preview(other)
                && other.from_me == row.from_me
                && other.handle == row.handle
                && other.place == row.place
                && is_near(row.at, other.at)
                && shows(&row.text, other)
        })
}

impl Links {
    /// A preview was put into the event of its text.
    pub(super) fn join(&mut self, preview: &Row, text: &Row) {
        let joined = Joined {
            rowid: preview.rowid,
            message: text.guid.clone(),
            shown: preview.preview.is_some(),
        };
        keep(&mut self.joined, joined);
        self.joined_to = self.joined_to.max(preview.rowid);
    }

    /// Whether this row is a preview that was joined.
    pub(super) fn is_joined(&self, row: &Row) -> bool {
        self.joined(row).is_some()
    }

    /// The preview that was joined, where this row is one.
    pub(super) fn joined(&self, row: &Row) -> Option<&Joined> {
        if row.rowid > self.joined_to {
            return None;
        }
        self.joined.iter().find(|joined| joined.rowid == row.rowid)
    }

    /// A text was told; its preview may still come.
    pub(super) fn told(&mut self, row: &Row) {
        if awaits_preview(row)
            && let Some(at) = row.at
        {
            let told = TextWithLink {
                guid: row.guid.clone(),
                place: row.place.clone(),
                handle: row.handle.clone(),
                from_me: row.from_me,
                at,
                text: row.text.clone(),
            };
            keep(&mut self.told, told);
        }
    }

    /// The guid of the text that this row is the late preview of.
    pub(super) fn is_preview_of_told(&self, row: &Row) -> Option<String> {
        if !is_preview(row) {
            return None;
        }
        let text = self.told.iter().rev().find(|told| {
            told.from_me == row.from_me
                && told.handle == row.handle
                && (told.place == row.place || row.place == Place::Pending)
                && is_near(Some(told.at), row.at)
                && shows(&told.text, row)
        })?;
        Some(text.guid.clone())
    }
}

fn keep<T>(kept: &mut VecDeque<T>, one: T) {
    if kept.len() >= KEPT_MAX {
        kept.pop_front();
    }
    kept.push_back(one);
}
