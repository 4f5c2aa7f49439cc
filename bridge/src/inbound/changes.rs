//! What has happened to a message since it was told: edits, unsends, files and previews that have
//! come. Pure.
//!
//! [`Seen`] is what was told of a message beyond its first telling; a message about which there is
//! nothing to remember has none. The journal keeps it with the events that it stands for, so that
//! nothing is told twice after a restart, and nothing that happened meanwhile is missed.

use std::collections::{BTreeMap, BTreeSet};

use protocol::UnixMs;
use protocol::pipe::{
    AttachmentChange, Edited, Event, PreviewChange, TransferState, Unsent, Version,
};
use serde::{Deserialize, Serialize};

use super::content::{FILES_MAX, TEXT_BYTES_MAX, cut, file, has_text, text};
use crate::chatdb::Row;
use crate::payload::LINK_BALLOON;

/// What was told of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is another thing that was told or not, independent of the others"
)]
pub struct Seen {
    /// Of each edited part, how many texts it had when that was told.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    edits: BTreeMap<u32, usize>,
    /// Parts told as taken back.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    retracted: BTreeSet<u32>,
    /// All of it was told as taken back.
    #[serde(skip_serializing_if = "is_false")]
    whole: bool,
    /// Files whose end has not been told, as they were told.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    files: BTreeMap<String, TransferState>,
    /// Files were still missing when it was told: those that come are told.
    #[serde(skip_serializing_if = "is_false")]
    missing: bool,
    /// It was told without a text.
    #[serde(skip_serializing_if = "is_false")]
    textless: bool,
    /// It is the preview of a link, and what it shows was not there yet: of which message, itself or
    /// the text before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    preview_of: Option<String>,
    /// There was nothing in it, and nothing was told.
    #[serde(skip_serializing_if = "is_false")]
    untold: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Seen {
    /// What is to be remembered of a message that is being told as it is.
    pub fn told(row: &Row) -> Self {
        let missing = row.missing_attachments();
        let files = row
            .attachments
            .iter()
            .take(FILES_MAX)
            .filter(|file| missing || file.state != TransferState::Complete)
            .map(|file| (file.guid.clone(), file.state))
            .collect();
        // An app's message and a file need no text; one that merely might still come counts.
        let textless = !has_text(row) && row.attachments.is_empty() && row.balloon.is_none();
        let is_blank = row.preview.is_none() && row.balloon.as_deref() == Some(LINK_BALLOON);
        let preview_of = is_blank.then(|| row.guid.clone());
        Self { files, missing, textless, preview_of, ..Self::default() }
    }

    /// What is to be remembered of a preview that was found to belong to this message, and of which
    /// nothing was told.
    pub fn preview_of(message: String) -> Self {
        Self { preview_of: Some(message), ..Self::default() }
    }

    /// What is to be remembered of a message in which there was nothing.
    pub fn untold() -> Self {
        Self { untold: true, ..Self::default() }
    }

    /// Nothing was told of it: should there be something in it by now, it is a message.
    pub fn is_untold(&self) -> bool {
        self.untold
    }

    /// Nothing needs to be remembered.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// What has happened to the message of this row since; `seen` is brought up to date.
pub fn changes(seen: &mut Seen, row: &Row, now: UnixMs) -> Vec<Event> {
    let mut events = Vec::new();
    edits(seen, row, now, &mut events);
    unsends(seen, row, now, &mut events);
    files(seen, row, now, &mut events);
    preview(seen, row, now, &mut events);
    events
}

fn edits(seen: &mut Seen, row: &Row, now: UnixMs, events: &mut Vec<Event>) {
    for edit in &row.summary.edits {
        let told = seen.edits.get(&edit.part).copied().unwrap_or(1);
        if edit.versions.len() <= told {
            continue;
        }
        seen.edits.insert(edit.part, edit.versions.len());
        let Some(last) = edit.versions.last() else { continue };
        events.push(Event::Edited(Edited {
            guid: row.guid.clone(),
            part: edit.part,
            text: cut(shown(&last.text), TEXT_BYTES_MAX),
            history: bounded(&edit.versions),
            from_me: row.from_me,
            at: if last.at.0 > 0 { last.at } else { row.edited_at.unwrap_or(now) },
        }));
    }
    if seen.textless && has_text(row) {
        // A text that Messages wrote after the row, without a history.
        seen.textless = false;
        events.push(Event::Edited(Edited {
            guid: row.guid.clone(),
            part: 0,
            text: text(row),
            history: Vec::new(),
            from_me: row.from_me,
            at: now,
        }));
    }
}

fn shown(text: &str) -> String {
    text.replace('\u{fffc}', "")
}

/// The newest texts that fit into a line of the pipe together.
fn bounded(versions: &[Version]) -> Vec<Version> {
    let mut left = TEXT_BYTES_MAX / 2;
    let mut kept: Vec<Version> = versions
        .iter()
        .rev()
        .map_while(|version| {
            left = left.checked_sub(version.text.len())?;
            Some(Version { text: shown(&version.text), at: version.at })
        })
        .collect();
    kept.reverse();
    kept
}

fn unsends(seen: &mut Seen, row: &Row, now: UnixMs, events: &mut Vec<Event>) {
    let retracted = &row.summary.retracted;
    if retracted.is_empty() || seen.whole {
        return;
    }
    let at = row.edited_at.unwrap_or(now);
    let unsent = |parts| Unsent { guid: row.guid.clone(), parts, from_me: row.from_me, at };
    // No part is left: `part_count` is 0, and from macOS 26 on the row is marked as empty. Files may
    // still be joined to it: what the text does not show is gone.
    let nothing_left = row.part_count == Some(0) || row.flags.empty;
    if nothing_left && !has_text(row) && !row.shows_files() {
        seen.whole = true;
        seen.retracted.extend(retracted);
        events.push(Event::Unsent(unsent(Vec::new())));
        return;
    }
    let new: Vec<u32> =
        retracted.iter().copied().filter(|part| seen.retracted.insert(*part)).collect();
    if !new.is_empty() {
        events.push(Event::Unsent(unsent(new)));
    }
}

fn files(seen: &mut Seen, row: &Row, now: UnixMs, events: &mut Vec<Event>) {
    if seen.files.is_empty() && !seen.missing {
        return;
    }
    for attachment in row.attachments.iter().take(FILES_MAX) {
        let told = seen.files.get(&attachment.guid).copied();
        let is_news = match told {
            Some(told) => told != attachment.state,
            None => seen.missing,
        };
        if !is_news {
            continue;
        }
        if attachment.state == TransferState::Complete && !seen.missing {
            seen.files.remove(&attachment.guid);
        } else {
            seen.files.insert(attachment.guid.clone(), attachment.state);
        }
        // That it is on its way is nothing to tell.
        if attachment.state == TransferState::Downloading {
            continue;
        }
        events.push(Event::Attachment(AttachmentChange {
            message: row.guid.clone(),
            attachment: file(attachment),
            at: now,
        }));
    }
    if seen.missing && !row.missing_attachments() {
        seen.missing = false;
        seen.files.retain(|_, state| *state != TransferState::Complete);
    }
}

/// Messages writes a preview's row first, and what it shows when it has loaded it.
fn preview(seen: &mut Seen, row: &Row, now: UnixMs, events: &mut Vec<Event>) {
    if let Some(preview) = &row.preview
        && let Some(message) = seen.preview_of.take()
    {
        let at = row.at.unwrap_or(now);
        events.push(Event::Preview(PreviewChange {
            message,
            preview: preview.as_ref().clone(),
            at,
        }));
    }
}
