//! What one row is. Pure.

use protocol::pipe::{
    Conversation, ConversationKind, Event, GroupChange, InboundAttachment, Reaction, Received,
    TransferState,
};
use protocol::{Channel, Recipient, UnixMs};

use super::{LINK_BALLOON, Skip, Understood};
use crate::chatdb::{Place, Row};

/// Longest inbound text, in bytes. Escaped sixfold it still fits into one line of the pipe.
pub const TEXT_BYTES_MAX: usize = 150_000;
/// Most files listed of one message, for the same reason. A longer album is cut.
pub const FILES_MAX: usize = 200;
/// Longest file name listed, in bytes; file systems allow 255.
const NAME_BYTES_MAX: usize = 255;
/// Stands in the text for an attachment, and for an app's message.
const MARKS: [char; 2] = ['\u{fffc}', '\u{fffd}'];

/// What one row is. `out_of_time`: it is taken as it is, however incomplete.
pub fn understand(row: &Row, out_of_time: bool, late: bool, now: UnixMs) -> Understood {
    let at = row.at.unwrap_or(now);
    if row.item_type != 0 {
        return group_change(row, out_of_time, at);
    }
    if row.from_me {
        return Understood::Skip(Skip::Own);
    }
    if row.is_system {
        return Understood::Skip(Skip::Notice);
    }
    match row.associated_type {
        0 => received(row, out_of_time, late, at),
        2000..=2007 | 3000..=3007 => reaction(row, out_of_time, at),
        // An app's message that updates an earlier one of its session; its text, where there is
        // one, is a message.
        2 | 3 if has_text(row) => received(row, out_of_time, late, at),
        2 | 3 => Understood::Skip(Skip::App),
        _ => Understood::Skip(Skip::Association),
    }
}

fn has_text(row: &Row) -> bool {
    row.text.chars().any(|c| !MARKS.contains(&c) && !c.is_whitespace())
}

fn received(row: &Row, out_of_time: bool, late: bool, at: UnixMs) -> Understood {
    let has_text = has_text(row);
    let empty = !has_text && row.attachments.is_empty();
    if empty && row.is_empty {
        return Understood::Skip(Skip::Empty);
    }
    if empty && row.balloon.as_deref().is_some_and(|balloon| balloon != LINK_BALLOON) {
        return Understood::Skip(Skip::App);
    }
    let complete = row.place != Place::Pending && !empty && !row.missing_attachments();
    // A body that cannot be decoded does not become decodable; the rest may still come.
    let complete = complete || (row.undecodable && row.place != Place::Pending);
    if !complete && !out_of_time {
        return Understood::Incomplete;
    }
    if empty && !row.undecodable && !row.has_attachments {
        return Understood::Skip(Skip::Empty);
    }
    let Some((from, conversation)) = sender(row) else { return Understood::Skip(Skip::Sender) };
    let text = if row.undecodable && !has_text {
        // Somebody wrote something, and this is the character for what could not be read.
        char::REPLACEMENT_CHARACTER.to_string()
    } else if has_text {
        cut(row.text.replace('\u{fffc}', ""), TEXT_BYTES_MAX)
    } else {
        String::new()
    };
    let attachments = row
        .attachments
        .iter()
        .take(FILES_MAX)
        .map(|file| InboundAttachment {
            guid: cut(file.guid.clone(), NAME_BYTES_MAX),
            name: file.name.clone().map(|name| cut(name, NAME_BYTES_MAX)),
            mime: file.mime.clone().map(|mime| cut(mime, NAME_BYTES_MAX)),
            bytes: file.bytes,
            complete: file.complete,
            state: if file.complete { TransferState::Complete } else { TransferState::Pending },
            ..InboundAttachment::default()
        })
        .collect();
    Understood::Event(Event::Received(Received {
        guid: row.guid.clone(),
        from,
        conversation,
        text,
        attachments,
        service: row.status.service.unwrap_or(Channel::Imessage),
        at,
        late,
        details: Box::default(),
    }))
}

fn reaction(row: &Row, out_of_time: bool, at: UnixMs) -> Understood {
    if row.place == Place::Pending && !out_of_time {
        return Understood::Incomplete;
    }
    let Some((part, target)) = row.associated_guid.as_deref().map(target) else {
        return Understood::Skip(Skip::Association);
    };
    let Some((from, conversation)) = sender(row) else { return Understood::Skip(Skip::Sender) };
    let kind = match row.associated_type % 1000 {
        0 => "love",
        1 => "like",
        2 => "dislike",
        3 => "laugh",
        4 => "emphasize",
        5 => "question",
        6 => "emoji",
        _ => "sticker",
    };
    Understood::Event(Event::Reaction(Reaction {
        guid: row.guid.clone(),
        from,
        conversation,
        target: target.to_owned(),
        part,
        kind: kind.to_owned(),
        emoji: row.associated_emoji.clone(),
        attachments: Vec::new(),
        removed: row.associated_type >= 3000,
        at,
        late: false,
    }))
}

/// Part and guid of `p:0/GUID`, `bp:GUID` or `GUID`.
fn target(text: &str) -> (u32, &str) {
    if let Some(balloon) = text.strip_prefix("bp:") {
        return (0, balloon);
    }
    match text.strip_prefix("p:").and_then(|rest| rest.split_once('/')) {
        Some((part, guid)) => (part.parse().unwrap_or(0), guid),
        None => (0, text),
    }
}

/// Notices of the system about a group, own doings included.
fn group_change(row: &Row, out_of_time: bool, at: UnixMs) -> Understood {
    let (change, subject) = match (row.item_type, row.group_action) {
        // Somebody's number changed: not a change of the group's members.
        (1, _) if row.handle.is_some() && row.handle == row.other_handle => {
            return Understood::Skip(Skip::Notice);
        }
        (1, 0) => ("joined", row.other_handle.clone()),
        (1, 1) => ("removed", row.other_handle.clone()),
        (2, _) => ("renamed", row.group_title.clone()),
        (3, 0) => ("left", row.handle.clone()),
        (3, 1 | 2) => ("photo", None),
        (3, 4 | 6) => ("background", None),
        (1 | 3, _) => ("other", None),
        _ => return Understood::Skip(Skip::Notice),
    };
    let conversation = match &row.place {
        Place::In(conversation) => conversation.clone(),
        Place::Pending if out_of_time => return Understood::Skip(Skip::Notice),
        Place::Pending => return Understood::Incomplete,
    };
    if conversation.kind != ConversationKind::Group {
        return Understood::Skip(Skip::Notice);
    }
    Understood::Event(Event::Group(GroupChange {
        guid: row.guid.clone(),
        conversation,
        change: change.to_owned(),
        subject: subject.map(|subject| cut(subject, NAME_BYTES_MAX)),
        by: None,
        participants: Vec::new(),
        at,
    }))
}

/// Who wrote, and where. Without a chat the conversation is the one with the sender.
fn sender(row: &Row) -> Option<(Recipient, Conversation)> {
    let from = match (&row.handle, &row.place) {
        (Some(handle), _) => address(handle)?,
        (None, Place::In(place)) if place.kind == ConversationKind::Direct => address(&place.id)?,
        (None, Place::In(_) | Place::Pending) => return None,
    };
    let conversation = match &row.place {
        Place::In(conversation) => conversation.clone(),
        Place::Pending => {
            Conversation { kind: ConversationKind::Direct, id: from.address().to_owned() }
        }
    };
    Some((from, conversation))
}

/// An address of chat.db as a recipient. Some handles keep the punctuation that a contact was typed
/// with.
fn address(handle: &str) -> Option<Recipient> {
    let parsed = |text: &str| match text.parse::<Recipient>() {
        Ok(recipient @ (Recipient::Number(_) | Recipient::Email(_))) => Some(recipient),
        Ok(Recipient::Group(_) | Recipient::Service(_)) | Err(_) => None,
    };
    parsed(handle).or_else(|| {
        let bare: String =
            handle.chars().filter(|c| !matches!(c, ' ' | '-' | '(' | ')' | '.')).collect();
        parsed(&bare)
    })
    // Short codes, names and businesses write to people too, and what they write is not lost.
    .or_else(|| Recipient::service(handle.trim()).ok())
}

/// At most so many bytes, cut between characters, with a mark that it was cut.
fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes.saturating_sub('…'.len_utf8())));
        text.push('…');
    }
    text
}
