//! What happens to a row after it was written. Each is one transaction.

use rusqlite::types::Value as Sql;
use rusqlite::{OptionalExtension as _, params};

use super::attachment::Transfer;
use super::flag::{ChatFilter, Schedule};
use super::group::{GroupChange, group_event};
use super::summary::{Content, Summary};
use super::{Author, Row, count};
use crate::bplist::Plist;
use crate::chatdb::{Chat, ChatDb, ChatDbError, Conversation, MacOs, Result, Written, sqlite};
use crate::clock::AppleNs;
use crate::outcome::Service;
use crate::typedstream::AttributedText;

/// A message that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its row.
    pub rowid: i64,
    /// When it was sent.
    pub date: AppleNs,
    /// Its chat's row; 0 if it is in none.
    pub chat: i64,
    /// Its text and history.
    pub content: Content,
}

/// Row, date, text twice, summary and chat, as they are read.
type Columns = (i64, i64, Option<Vec<u8>>, Option<String>, Option<Vec<u8>>, Option<i64>);

impl ChatDb {
    /// The message of that guid.
    pub fn stored(&self, guid: &str) -> Result<Stored> {
        let sql = "SELECT m.ROWID, m.date, m.attributedBody, m.text, m.message_summary_info,
             (SELECT j.chat_id FROM chat_message_join j WHERE j.message_id = m.ROWID LIMIT 1)
             FROM message m WHERE m.guid = ?";
        let row: Option<Columns> = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut s| {
                let read = |r: &rusqlite::Row<'_>| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?))
                };
                s.query_row([guid], read).optional()
            })
            .map_err(sqlite("cannot read the message"))?;
        let Some((rowid, date, blob, bare, summary, chat)) = row else {
            return Err(ChatDbError::NoSuchMessage(guid.to_owned()));
        };
        let text = match blob {
            Some(blob) => AttributedText::decode(&blob).ok_or_else(|| {
                ChatDbError::Impossible(format!("the text of {guid} is not one of the sandbox's"))
            })?,
            None => AttributedText::plain(&bare.unwrap_or_default()),
        };
        // Reactions keep other things there, which have no parts.
        let summary = summary.and_then(|bytes| Summary::decode(&bytes)).unwrap_or_default();
        let content = Content { text, summary };
        Ok(Stored { rowid, date: AppleNs(date), chat: chat.unwrap_or(0), content })
    }

    /// Updates columns, leaving out what the file does not have.
    fn change(&self, rowid: i64, values: Vec<(&'static str, Sql)>) -> Result<()> {
        let doing = sqlite("cannot update the message");
        let known = self.columns.get("message").cloned().unwrap_or_default();
        let (names, mut values): (Vec<_>, Vec<_>) =
            values.into_iter().filter(|(name, _)| known.contains(*name)).unzip();
        if names.is_empty() {
            return Ok(());
        }
        let sql = format!("UPDATE message SET {} = ? WHERE ROWID = ?", names.join(" = ?, "));
        values.push(rowid.into());
        let mut statement = self.conn.prepare_cached(&sql).map_err(&doing)?;
        statement.execute(rusqlite::params_from_iter(values)).map_err(&doing)?;
        Ok(())
    }

    fn store(&mut self, rowid: i64, content: &Content, at: AppleNs) -> Result<()> {
        let parts = content.text.parts().len();
        let nothing = parts == 0;
        let (text, blob) = if nothing {
            (Sql::Text(String::new()), Sql::Null)
        } else {
            let bare = self.macos.fills_text().then(|| content.text.text().to_owned());
            (bare.map_or(Sql::Null, Sql::Text), Sql::Blob(content.text.encode()))
        };
        let mut values = vec![
            ("text", text),
            ("attributedBody", blob),
            ("message_summary_info", Sql::Blob(content.summary.encode())),
            ("part_count", count(parts).into()),
        ];
        // The row of macOS 27 that is public has a history and no date.
        if self.macos != MacOs::V27 {
            values.push(("date_edited", at.0.into()));
        }
        if nothing && self.macos >= MacOs::Tahoe {
            values.push(("is_empty", 1.into()));
        }
        values.push(("date_updated", at.0.into()));
        self.together(|db| db.change(rowid, values))
    }

    /// A part gets another text.
    pub fn edit(&mut self, guid: &str, part: u32, text: &str, at: AppleNs) -> Result<i64> {
        let stored = self.stored(guid)?;
        let edited = stored.content.edited(part, text, (stored.date, at));
        let content = edited.map_err(|error| ChatDbError::Impossible(error.to_string()))?;
        self.store(stored.rowid, &content, at)?;
        Ok(stored.rowid)
    }

    /// One part is taken back, or all.
    pub fn unsend(&mut self, guid: &str, part: Option<u32>, at: AppleNs) -> Result<i64> {
        let stored = self.stored(guid)?;
        let unsent = match part {
            Some(part) => stored.content.unsent(part),
            None => stored.content.unsent_whole(),
        };
        let content = unsent.map_err(|error| ChatDbError::Impossible(error.to_string()))?;
        self.store(stored.rowid, &content, at)?;
        Ok(stored.rowid)
    }

    /// A text arrives in a row that was written without.
    pub fn complete_text(&mut self, guid: &str, text: &AttributedText) -> Result<i64> {
        let rowid = self.stored(guid)?.rowid;
        let blob = Sql::Blob(text.encode());
        let parts = count(text.parts().len()).into();
        let values = vec![("attributedBody", blob), ("part_count", parts)];
        self.together(|db| db.change(rowid, values))?;
        Ok(rowid)
    }

    /// The content of an app's message or of a preview arrives in a row that was written without.
    pub fn fill_payload(&mut self, guid: &str, filled: &Row) -> Result<i64> {
        let rowid = self.stored(guid)?.rowid;
        let payload = filled.columns().get("payload_data").cloned().unwrap_or(Sql::Null);
        self.together(|db| db.change(rowid, vec![("payload_data", payload)]))?;
        Ok(rowid)
    }

    /// A Send Later message is sent, or fails. Its `date` becomes when that was.
    pub fn set_schedule(&mut self, guid: &str, state: Schedule, at: AppleNs) -> Result<i64> {
        let rowid = self.stored(guid)?.rowid;
        let mut values = vec![("schedule_state", state.number().into())];
        match state {
            Schedule::Pending => {}
            Schedule::Sent => values.extend([
                ("date", at.0.into()),
                ("is_finished", 1.into()),
                ("is_sent", 1.into()),
            ]),
            Schedule::Failed => values.extend([
                ("is_finished", 1.into()),
                ("is_sent", 0.into()),
                // 4: it could not be sent.
                ("error", 4.into()),
            ]),
        }
        self.together(|db| db.change(rowid, values))?;
        Ok(rowid)
    }

    /// Where the file of an attachment is, or will be.
    pub fn attachment_path(&self, guid: &str) -> Result<String> {
        self.conn
            .prepare_cached("SELECT filename FROM attachment WHERE guid = ?")
            .and_then(|mut s| s.query_row([guid], |row| row.get(0)).optional())
            .map_err(sqlite("cannot read the attachment"))?
            .ok_or_else(|| ChatDbError::NoSuchMessage(format!("attachment {guid}")))
    }

    /// The chat that a message is in.
    pub fn chat_of_message(&self, guid: &str) -> Result<Option<Chat>> {
        let sql = "SELECT c.guid FROM message m JOIN chat_message_join j ON j.message_id = m.ROWID
             JOIN chat c ON c.ROWID = j.chat_id WHERE m.guid = ? LIMIT 1";
        let chat: Option<String> = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row([guid], |row| row.get(0)).optional())
            .map_err(sqlite("cannot find the chat"))?;
        match chat {
            Some(chat) => self.chat_of_guid(&chat),
            None => Ok(None),
        }
    }

    /// The file of an attachment is on its way, there, or failed. Its path.
    pub fn set_transfer(&mut self, guid: &str, transfer: Transfer) -> Result<String> {
        let doing = sqlite("cannot update the attachment");
        let sql = "UPDATE attachment SET transfer_state = ? WHERE guid = ? RETURNING filename";
        let path: Option<String> = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row((transfer.number(), guid), |row| row.get(0)).optional())
            .map_err(&doing)?;
        path.ok_or_else(|| ChatDbError::NoSuchMessage(format!("attachment {guid}")))
    }

    /// A message goes to Recently Deleted, where it stays 30 days: its row remains, in no chat.
    /// macOS 12 has no such place and deletes it at once.
    pub fn delete_message(&mut self, guid: &str, at: AppleNs) -> Result<i64> {
        let Stored { rowid, chat, .. } = self.stored(guid)?;
        if chat == 0 {
            return Err(ChatDbError::Impossible(format!("{guid} is in no chat")));
        }
        let kept = self.has_table("chat_recoverable_message_join");
        self.together(|db| {
            if kept {
                let values = vec![
                    ("chat_id", chat.into()),
                    ("message_id", rowid.into()),
                    ("delete_date", at.0.into()),
                ];
                db.insert("chat_recoverable_message_join", values)?;
            }
            // Apple's trigger deletes the message if it is in neither of the two tables.
            db.update("DELETE FROM chat_message_join WHERE message_id = ?", [rowid])
        })?;
        self.newest.remove(&chat);
        Ok(rowid)
    }

    /// A message comes back from Recently Deleted.
    pub fn recover_message(&mut self, guid: &str) -> Result<i64> {
        let Stored { rowid, date, .. } = self.stored(guid)?;
        self.together(|db| {
            let sql = "SELECT chat_id FROM chat_recoverable_message_join WHERE message_id = ?";
            let chat: Option<i64> = db
                .conn
                .query_row(sql, [rowid], |row| row.get(0))
                .optional()
                .map_err(sqlite("cannot find what was deleted"))?;
            let Some(chat) = chat else {
                return Err(ChatDbError::Impossible(format!("{guid} is not deleted")));
            };
            db.join(&Written { rowid, guid: guid.to_owned(), chat, date })?;
            db.update("DELETE FROM chat_recoverable_message_join WHERE message_id = ?", [rowid])
        })?;
        Ok(rowid)
    }

    /// A chat is filtered.
    pub fn set_chat_filter(&mut self, chat: i64, filter: ChatFilter) -> Result<()> {
        self.update(
            "UPDATE chat SET is_filtered = ?, is_blackholed = ? WHERE ROWID = ?",
            params![filter.filtered, filter.blackholed, chat],
        )?;
        if self.columns.get("chat").is_some_and(|known| known.contains("is_pending_review")) {
            let sql = "UPDATE chat SET is_pending_review = ? WHERE ROWID = ?";
            self.update(sql, params![filter.pending_review, chat])?;
        }
        Ok(())
    }

    /// Who is in a group, if there is one of that id.
    pub fn group_members(&self, id: &str) -> Result<Option<Vec<String>>> {
        let doing = sqlite("cannot read the group");
        let find = "SELECT ROWID FROM chat WHERE style = 43 AND chat_identifier = ?
             ORDER BY ROWID DESC LIMIT 1";
        let chat: Option<i64> =
            self.conn.query_row(find, [id], |row| row.get(0)).optional().map_err(&doing)?;
        let Some(chat) = chat else { return Ok(None) };
        let sql = "SELECT DISTINCT h.id FROM chat_handle_join j
             JOIN handle h ON h.ROWID = j.handle_id WHERE j.chat_id = ? ORDER BY h.id";
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_map([chat], |row| row.get(0))?.collect())
            .map(Some)
            .map_err(&doing)
    }

    /// Writes a change of a group and what it means for the chat: who is in it, its name, its
    /// photo. Not joined yet.
    pub fn write_group_event(
        &mut self,
        author: &Author,
        (id, members): (&str, &[String]),
        change: &GroupChange,
        date: AppleNs,
    ) -> Result<Written> {
        let members: Vec<String> = members
            .iter()
            .filter(|member| match change {
                GroupChange::Removed(who) => who != *member,
                GroupChange::Left => *author != Author::Other((*member).clone()),
                GroupChange::Joined(_)
                | GroupChange::Renamed(_)
                | GroupChange::PhotoSet
                | GroupChange::PhotoRemoved
                | GroupChange::BackgroundSet
                | GroupChange::BackgroundRemoved
                | GroupChange::NumberChanged => true,
            })
            .cloned()
            .collect();
        let conversation = Conversation::Group { id: id.to_owned(), members };
        let row = group_event(author.clone(), conversation, date, change).guid(self.next_guid());
        self.together(|db| {
            let written = db.write_row_here(&row)?;
            let account = Service::Imessage.as_str();
            match change {
                GroupChange::Joined(who) => {
                    let handle = db.handle(who, account)?;
                    let values =
                        vec![("chat_id", written.chat.into()), ("handle_id", handle.into())];
                    db.insert("chat_handle_join", values)?;
                }
                GroupChange::Removed(who) => db.remove_from_chat(written.chat, who)?,
                GroupChange::Left => {
                    if let Author::Other(who) = author {
                        db.remove_from_chat(written.chat, who)?;
                    }
                }
                GroupChange::Renamed(title) => {
                    let sql = "UPDATE chat SET display_name = ? WHERE ROWID = ?";
                    db.update(sql, params![title, written.chat])?;
                }
                GroupChange::PhotoSet => {
                    let photo = Plist::map([("groupPhotoGuid", Plist::Text(db.next_guid()))]);
                    let sql = "UPDATE chat SET properties = ? WHERE ROWID = ?";
                    db.update(sql, params![photo.encode(), written.chat])?;
                }
                GroupChange::PhotoRemoved => {
                    let sql = "UPDATE chat SET properties = NULL WHERE ROWID = ?";
                    db.update(sql, params![written.chat])?;
                }
                GroupChange::BackgroundSet
                | GroupChange::BackgroundRemoved
                | GroupChange::NumberChanged => {}
            }
            Ok(written)
        })
    }

    /// On any of the services that somebody is in it with.
    fn remove_from_chat(&self, chat: i64, who: &str) -> Result<()> {
        self.update(
            "DELETE FROM chat_handle_join WHERE chat_id = ?
             AND handle_id IN (SELECT ROWID FROM handle WHERE id = ?)",
            params![chat, who],
        )
    }
}
