//! What one row is. Pure.

use protocol::pipe::{
    Conversation, ConversationKind, Event, GroupChange, Notice, Reaction, Received, UnknownKind,
};
use protocol::{Channel, Recipient, UnixMs};

use super::content::{Content, NAME_BYTES_MAX, TEXT_BYTES_MAX, cut, files, has_text, text};
use super::own::{Own, OwnMessage, OwnReaction};
use super::{Skip, Understood};
use crate::chatdb::{Place, Row};
use crate::payload::LINK_BALLOON;

/// What one row is. `out_of_time`: it is taken as it is, however incomplete.
pub fn understand(row: &Row, out_of_time: bool, late: bool, now: UnixMs) -> Understood {
    let at = row.at.unwrap_or(now);
    if row.item_type != 0 {
        return notice(row, out_of_time, at);
    }
    if row.flags.system {
        return said_by_system(row, out_of_time, "system", at);
    }
    match row.associated_type {
        // 2 and 3 are messages of apps that belong to an earlier one of their session.
        0 | 2 | 3 => message(row, out_of_time, late, at),
        1000 | 2000..=2007 | 3000..=3007 | 4000 => reaction(row, out_of_time, late, at),
        _ => unknown(row, out_of_time, at),
    }
}

fn message(row: &Row, out_of_time: bool, late: bool, at: UnixMs) -> Understood {
    let has_text = has_text(row);
    let is_app = row.balloon.as_deref().is_some_and(|balloon| balloon != LINK_BALLOON);
    let empty = !has_text && row.attachments.is_empty() && !is_app;
    // Taken back whole: no text, no part left, and on macOS 26 a flag. What it was is gone.
    if empty && (row.flags.empty || (row.part_count == Some(0) && !row.summary.is_empty())) {
        return Understood::Skip(Skip::Empty);
    }
    // The same of a message with files, whose joins remain.
    let is_gone = row.part_count == Some(0) && !row.summary.retracted.is_empty();
    if is_gone && !has_text && !row.shows_files() {
        return Understood::Skip(Skip::Empty);
    }
    let placed = row.place != Place::Pending;
    let complete = placed && !empty && !row.missing_attachments();
    // A body that cannot be decoded does not become decodable; the rest may still come.
    let complete = complete || (row.flags.undecodable && placed);
    if !complete && !out_of_time {
        return Understood::Incomplete;
    }
    if empty && !row.flags.undecodable && !row.flags.has_attachments {
        return Understood::Skip(Skip::Empty);
    }
    let Content { text, attachments, details } = Content::of(row);
    if row.from_me {
        return Understood::Own(Own::Message(OwnMessage {
            rowid: row.rowid,
            guid: row.guid.clone(),
            conversation: conversation_of_own(row),
            text,
            attachments,
            at,
            late,
            schedule: row.schedule,
            status: row.status,
            details,
        }));
    }
    let Some((from, conversation)) = sender(row) else { return unknown(row, true, at) };
    Understood::Event(Event::Received(Received {
        guid: row.guid.clone(),
        from,
        conversation,
        text,
        attachments,
        service: row.status.service.unwrap_or(Channel::Imessage),
        at,
        late,
        details,
    }))
}

fn reaction(row: &Row, out_of_time: bool, late: bool, at: UnixMs) -> Understood {
    // A sticker's file may be joined a little later than its row.
    let complete = row.place != Place::Pending && !row.missing_attachments();
    if !complete && !out_of_time {
        return Understood::Incomplete;
    }
    let Some((part, target)) = row.associated_guid.as_deref().map(target) else {
        return unknown(row, true, at);
    };
    let target = target.to_owned();
    let kind = match row.associated_type {
        2000 | 3000 => "love",
        2001 | 3001 => "like",
        2002 | 3002 => "dislike",
        2003 | 3003 => "laugh",
        2004 | 3004 => "emphasize",
        2005 | 3005 => "question",
        2006 | 3006 => "emoji",
        4000 => "vote",
        // 1000 is a sticker that was put onto the message, 2007 one as a reaction.
        _ => "sticker",
    }
    .to_owned();
    let emoji = row.associated_emoji.clone().map(|emoji| cut(emoji, NAME_BYTES_MAX));
    let removed = (3000..4000).contains(&row.associated_type);
    let guid = row.guid.clone();
    let attachments = files(row);
    if row.from_me {
        return Understood::Own(Own::Reaction(OwnReaction {
            rowid: row.rowid,
            guid,
            conversation: conversation_of_own(row),
            target,
            part,
            kind,
            emoji,
            attachments,
            removed,
            at,
            late,
        }));
    }
    let Some((from, conversation)) = sender(row) else { return unknown(row, true, at) };
    Understood::Event(Event::Reaction(Reaction {
        guid,
        from,
        conversation,
        target,
        part,
        kind,
        emoji,
        attachments,
        removed,
        at,
        late,
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

/// Notices of the system, own doings included: mostly about a group.
fn notice(row: &Row, out_of_time: bool, at: UnixMs) -> Understood {
    let word = |address: &Option<std::sync::Arc<str>>| address.as_deref().map(str::to_owned);
    let (change, subject) = match (row.item_type, row.group_action) {
        // Somebody's number changed: not a change of the group's members.
        (1, _) if row.handle.is_some() && row.handle == row.other_handle => {
            return said_by_system(row, out_of_time, "number_changed", at);
        }
        (1, 0) => ("joined", word(&row.other_handle)),
        (1, 1) => ("removed", word(&row.other_handle)),
        (2, _) => ("renamed", row.group_title.clone()),
        (3, 0) => ("left", word(&row.handle)),
        (3, 1) => ("photo", None),
        (3, 2) => ("photo_removed", None),
        (3, 4) => ("background", None),
        (3, 6) => ("background_removed", None),
        (4, _) => {
            let kind = if row.share_status == 0 { "location_shared" } else { "location_stopped" };
            return said_by_system(row, out_of_time, kind, at);
        }
        (5, _) => return said_by_system(row, out_of_time, "audio_kept", at),
        (6, _) => return said_by_system(row, out_of_time, "shareplay", at),
        _ => return unknown(row, out_of_time, at),
    };
    let conversation = match &row.place {
        Place::In(chat) => chat.conversation.clone(),
        Place::Pending if out_of_time => return unknown(row, true, at),
        Place::Pending => return Understood::Incomplete,
    };
    Understood::Event(Event::Group(GroupChange {
        guid: row.guid.clone(),
        conversation,
        change: change.to_owned(),
        subject: subject.map(|subject| cut(subject, NAME_BYTES_MAX)),
        by: author(row),
        participants: row.participants.iter().map(ToString::to_string).collect(),
        at,
    }))
}

fn said_by_system(row: &Row, out_of_time: bool, kind: &str, at: UnixMs) -> Understood {
    let conversation = match (&row.place, sender(row)) {
        (Place::In(chat), _) => chat.conversation.clone(),
        (Place::Pending, _) if !out_of_time => return Understood::Incomplete,
        (Place::Pending, Some((_, conversation))) => conversation,
        (Place::Pending, None) => return unknown(row, true, at),
    };
    Understood::Event(Event::Notice(Notice {
        guid: row.guid.clone(),
        conversation,
        from: author(row),
        kind: kind.to_owned(),
        at,
    }))
}

/// A row that nobody understands is told with its numbers: what somebody wrote is never dropped.
fn unknown(row: &Row, out_of_time: bool, at: UnixMs) -> Understood {
    if row.place == Place::Pending && !out_of_time {
        return Understood::Incomplete;
    }
    let conversation = match &row.place {
        Place::In(chat) => Some(chat.conversation.clone()),
        Place::Pending => sender(row).map(|(_, conversation)| conversation),
    };
    Understood::Event(Event::UnknownKind(UnknownKind {
        guid: row.guid.clone(),
        conversation,
        from: author(row),
        from_me: row.from_me,
        item_type: row.item_type,
        group_action_type: row.group_action,
        associated_message_type: row.associated_type,
        message_action_type: row.message_action,
        balloon_bundle_id: row.balloon.clone().map(|balloon| cut(balloon, NAME_BYTES_MAX)),
        text: cut(text(row), TEXT_BYTES_MAX),
        at,
    }))
}

/// Who did it; none for the owner of the phone.
fn author(row: &Row) -> Option<Recipient> {
    if row.from_me { None } else { row.handle.as_deref().and_then(address) }
}

/// Where an own message went. Without a chat it is the conversation with its handle.
fn conversation_of_own(row: &Row) -> Option<Conversation> {
    match &row.place {
        Place::In(chat) => Some(chat.conversation.clone()),
        Place::Pending => row
            .handle
            .as_deref()
            .map(|handle| Conversation { kind: ConversationKind::Direct, id: handle.to_owned() }),
    }
}

/// Who wrote, and where. Without a chat the conversation is the one with the sender.
fn sender(row: &Row) -> Option<(Recipient, Conversation)> {
    let from = match (&row.handle, &row.place) {
        (Some(handle), _) => address(handle)?,
        (None, Place::In(chat)) if chat.conversation.kind == ConversationKind::Direct => {
            address(&chat.conversation.id)?
        }
        (None, Place::In(_) | Place::Pending) => return None,
    };
    let conversation = match &row.place {
        Place::In(chat) => chat.conversation.clone(),
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
