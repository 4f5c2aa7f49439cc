//! Rows of all kinds, as the control commands ask for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{Phone, join_later};
use crate::chatdb::kinds::attachment::{Attachment, Parts, Transfer, folder};
use crate::chatdb::kinds::group::GroupChange;
use crate::chatdb::kinds::reaction::{Reaction, Target, reaction};
use crate::chatdb::kinds::text::{Mark, marked};
use crate::chatdb::kinds::{Author, Body, Row, RowService};
use crate::chatdb::{ChatDb, Conversation, Written};
use crate::clock::AppleNs;
use crate::socket::rows::{
    Change, Delete, Edit, FileState, FinishAttachment, Group, React, Receive, ScheduleMessage,
    TargetForm, Unsend,
};
use crate::typedstream::AttributedText;

/// When the preview of a link follows its text, at speed 1. Two seconds is the longest seen.
const PREVIEW_MS: u64 = 500;

/// Where files wait that are not downloaded, in the phone's folder.
const PENDING: &str = "pending";

/// Delays, at the sandbox's speed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delays {
    pub(super) join: Duration,
    pub(super) speed: f64,
}

fn reply(written: &Written) -> Value {
    json!({"rowid": written.rowid, "guid": written.guid})
}

fn changed(rowid: i64, guid: &str) -> Value {
    json!({"rowid": rowid, "guid": guid})
}

pub(super) async fn receive(
    phone: &Arc<Phone>,
    ask: Receive,
    delays: Delays,
) -> anyhow::Result<Value> {
    let (join, preview) = (delays.join, ask.preview.clone());
    let (text_after, text) = (ask.text_after_ms, ask.text.clone());
    let home = phone.folder.clone();
    let (row, late) = phone
        .act(move |db| {
            let mut row = received_row(db, &home, &ask)?;
            let late = match (&row.body, text_after) {
                (Body::Attributed(text), Some(_)) => Some(text.clone()),
                (Body::Attributed(_) | Body::Nothing | Body::Bare(_), _) => None,
            };
            if late.is_some() {
                row.body = Body::Nothing;
            }
            Ok((row, late))
        })
        .await?;
    let attachments: Vec<_> = row.attachments.iter().rev().map(|a| a.guid.clone()).collect();
    let second = preview.map(|title| {
        let url = text.split_whitespace().find(|word| word.contains("://")).unwrap_or(&text);
        let conversation = row.conversation.clone();
        (row.author.clone(), conversation, row.date, url.to_owned(), title)
    });
    let written = phone.write(move |db| db.write_row(&row)).await?;
    let written =
        if written.chat == 0 { written } else { join_later(phone, written, join).await? };
    if let (Some(text), Some(after)) = (late, text_after) {
        tokio::time::sleep(Duration::from_millis(after)).await;
        let guid = written.guid.clone();
        phone.write(move |db| db.complete_text(&guid, &text)).await?;
    }
    let mut value = reply(&written);
    if let Some(entries) = value.as_object_mut() {
        if !attachments.is_empty() {
            entries.insert("attachments".to_owned(), json!(attachments));
        }
        if let Some((author, Some(conversation), date, url, title)) = second {
            tokio::time::sleep(Duration::from_millis(PREVIEW_MS).mul_f64(delays.speed)).await;
            let date = date.minus_ms(-i64::try_from(PREVIEW_MS).unwrap_or_default());
            let row = Row::new(author, conversation, date).url_preview(&url, &title);
            let row = phone.write(move |db| db.write_row(&row)).await?;
            let row = join_later(phone, row, join).await?;
            entries.insert("preview".to_owned(), reply(&row));
        }
    }
    Ok(value)
}

fn received_row(db: &ChatDb, home: &Path, ask: &Receive) -> anyhow::Result<Row> {
    let conversation = match &ask.group {
        Some(id) => {
            let mut members = ask.members.clone();
            if !ask.own && !members.contains(&ask.from) {
                members.push(ask.from.clone());
            }
            Conversation::Group { id: id.clone(), members }
        }
        None => Conversation::Direct(ask.from.clone()),
    };
    let author = if ask.own { Author::Me } else { Author::Other(ask.from.clone()) };
    let date = AppleNs::now().minus_ms(ask.age_ms);
    let mut row = Row::new(author, conversation, date);
    let mut text = AttributedText::with_links(&ask.text);
    if !ask.mentions.is_empty() {
        let mut marks = Vec::new();
        for mention in &ask.mentions {
            let (name, address) = mention.split_once('=').context("a mention is NAME=ADDRESS")?;
            if !ask.text.contains(name) {
                bail!("the text does not contain {name:?}");
            }
            marks.push((name, Mark::Mention(address.to_owned())));
        }
        text = marked(&ask.text, &marks);
    }
    let mut files = Vec::new();
    for (n, file) in ask.attach.iter().enumerate() {
        let part = if ask.text.is_empty() || ask.said.is_some() { n } else { n + 1 };
        files.push(stored_file(
            home,
            &format!("at_{part}_{}", row.guid),
            file,
            ask.attach_pending,
        )?);
    }
    row = match (ask.said.as_deref(), files.is_empty()) {
        (Some(said), false) => {
            let mut files = files.into_iter();
            let recording = files.next().context("an audio message needs a file")?;
            let mut parts = Parts::of(&row.guid).recording(recording, said);
            for file in files {
                parts = parts.file(file);
            }
            row.parts(parts).with("is_audio_message", 1)
        }
        (_, false) => {
            let mut parts = Parts::of(&row.guid);
            if !ask.text.is_empty() {
                parts = parts.attributed(&text);
            }
            for file in files {
                parts = parts.file(file);
            }
            row.parts(parts)
        }
        (_, true) => row.body(text),
    };
    if let Some(answered) = &ask.reply_to {
        let (guid, part) = match answered.rsplit_once(':') {
            Some((guid, part)) => (guid, part.parse().context("a part is a number")?),
            None => (answered.as_str(), 0),
        };
        let parts = db.stored(guid)?.content.text.parts();
        let part = parts
            .iter()
            .find(|known| known.number == part)
            .with_context(|| format!("{guid} has no part {part}"))?;
        row = row.replying_to(guid, part.number, part.start, part.len);
    }
    if let Some(effect) = ask.effect {
        row = row.with_effect(effect);
    }
    row = row.over(ask.service);
    Ok(if ask.no_chat { row.without_chat() } else { row })
}

/// Copies a file to where Messages would keep it, or to where it waits until it is downloaded.
pub(super) fn stored_file(
    home: &Path,
    guid: &str,
    file: &Path,
    pending: bool,
) -> anyhow::Result<Attachment> {
    let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
    let path = home.join("Attachments").join(folder(guid)).join(name);
    let to = if pending { home.join(PENDING).join(guid) } else { path.clone() };
    let parent = to.parent().context("a path without a folder")?;
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let bytes = std::fs::copy(file, &to)
        .with_context(|| format!("cannot copy {} to {}", file.display(), to.display()))?;
    let attachment = Attachment::new(path, bytes);
    Ok(if pending { attachment.waiting() } else { attachment })
}

pub(super) async fn react(phone: &Arc<Phone>, ask: React, delays: Delays) -> anyhow::Result<Value> {
    let home = phone.folder.clone();
    let row = phone
        .act(move |db| {
            let chat = db
                .chat_of_message(&ask.guid)?
                .with_context(|| format!("{} is in no chat", ask.guid))?;
            let author = match (&ask.from, ask.own, &chat.conversation) {
                (_, true, _) => Author::Me,
                (Some(from), false, _) | (None, false, Conversation::Direct(from)) => {
                    Author::Other(from.clone())
                }
                (None, false, Conversation::Group { .. }) => bail!("--from or --own is missing"),
            };
            let target = match ask.form {
                TargetForm::Part => Target::Part(ask.part, ask.guid.clone()),
                TargetForm::Balloon => Target::Balloon(ask.guid.clone()),
                TargetForm::Bare => Target::Bare(ask.guid.clone()),
            };
            let kind = match &ask.sticker {
                Some(file) => {
                    // Its guid comes with the message that it is the only part of.
                    let guid = crate::chatdb::new_guid();
                    Reaction::Sticker(stored_file(&home, &guid, file, false)?)
                }
                None => Reaction::named(&ask.reaction),
            };
            let parts = db.stored(&ask.guid)?.content.text.parts();
            let quoted = parts.into_iter().find(|part| part.number == ask.part);
            let quoted = quoted.map(|part| part.text).unwrap_or_default();
            let who = (author, chat.conversation, AppleNs::now());
            let row = reaction(who, &kind, &target, &quoted, !ask.remove);
            Ok(row.over(RowService::from(chat.service)))
        })
        .await?;
    let written = phone.write(move |db| db.write_row(&row)).await?;
    Ok(reply(&join_later(phone, written, delays.join).await?))
}

pub(super) async fn edit(phone: &Arc<Phone>, ask: Edit) -> anyhow::Result<Value> {
    let guid = ask.guid.clone();
    let edit = move |db: &mut ChatDb| db.edit(&ask.guid, ask.part, &ask.text, AppleNs::now());
    Ok(changed(phone.write(edit).await?, &guid))
}

pub(super) async fn unsend(phone: &Arc<Phone>, ask: Unsend) -> anyhow::Result<Value> {
    let guid = ask.guid.clone();
    let unsend = move |db: &mut ChatDb| db.unsend(&ask.guid, ask.part, AppleNs::now());
    Ok(changed(phone.write(unsend).await?, &guid))
}

pub(super) async fn group(phone: &Arc<Phone>, ask: Group, delays: Delays) -> anyhow::Result<Value> {
    let change = match ask.change {
        Change::Join { who } => GroupChange::Joined(who),
        Change::Leave => GroupChange::Left,
        Change::Remove { who } => GroupChange::Removed(who),
        Change::Rename { title } => GroupChange::Renamed(title),
        Change::Photo { remove: false } => GroupChange::PhotoSet,
        Change::Photo { remove: true } => GroupChange::PhotoRemoved,
        Change::Background { remove: false } => GroupChange::BackgroundSet,
        Change::Background { remove: true } => GroupChange::BackgroundRemoved,
        Change::Number => GroupChange::NumberChanged,
    };
    let author = ask.by.map_or(Author::Me, Author::Other);
    let id = ask.id;
    let written = phone
        .act(move |db| {
            let members =
                db.group_members(&id)?.with_context(|| format!("there is no group {id}"))?;
            Ok(db.write_group_event(&author, (&id, &members), &change, AppleNs::now())?)
        })
        .await?;
    Ok(reply(&join_later(phone, written, delays.join).await?))
}

pub(super) async fn finish_attachment(
    phone: &Arc<Phone>,
    ask: FinishAttachment,
) -> anyhow::Result<Value> {
    let waiting = phone.folder.join(PENDING).join(&ask.guid);
    let guid = ask.guid.clone();
    let path = phone
        .act(move |db| {
            let transfer = match ask.state {
                FileState::Downloading => Transfer::Running,
                FileState::Complete => Transfer::Complete,
                FileState::Failed => Transfer::Failed,
            };
            if transfer == Transfer::Complete && waiting.exists() {
                // The file is there before the row says so.
                let path = PathBuf::from(db.attachment_path(&guid)?);
                let parent = path.parent().context("a path without a folder")?;
                std::fs::create_dir_all(parent)
                    .with_context(|| format!("cannot make {}", parent.display()))?;
                std::fs::rename(&waiting, &path)
                    .with_context(|| format!("cannot make {}", path.display()))?;
            }
            Ok(db.set_transfer(&guid, transfer)?)
        })
        .await?;
    Ok(json!({"guid": ask.guid, "path": path}))
}

pub(super) async fn schedule(
    phone: &Arc<Phone>,
    ask: ScheduleMessage,
    delays: Delays,
) -> anyhow::Result<Value> {
    if let (Some(guid), Some(state)) = (ask.guid, ask.state) {
        let named = guid.clone();
        let set = move |db: &mut ChatDb| db.set_schedule(&named, state, AppleNs::now());
        return Ok(changed(phone.write(set).await?, &guid));
    }
    let (to, text) = (ask.to.context("--to is missing")?, ask.text.context("--text is missing")?);
    let due = AppleNs::now().minus_ms(ask.after_ms.saturating_neg());
    let row = Row::text(Author::Me, Conversation::Direct(to), due, &text).scheduled(due);
    let written = phone.write(move |db| db.write_row(&row)).await?;
    Ok(reply(&join_later(phone, written, delays.join).await?))
}

pub(super) async fn delete(phone: &Arc<Phone>, ask: Delete) -> anyhow::Result<Value> {
    let guid = ask.guid.clone();
    let delete = move |db: &mut ChatDb| {
        if ask.recover {
            db.recover_message(&ask.guid)
        } else {
            db.delete_message(&ask.guid, AppleNs::now())
        }
    };
    Ok(changed(phone.write(delete).await?, &guid))
}
