//! Which tables and columns this database has, and the queries that follow from it.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::Connection;

use super::{Cause, NotReady};

/// Without these there is nothing to read.
const REQUIRED: &[(&str, &[&str])] = &[
    ("message", &["guid", "text", "date", "is_from_me", "handle_id", "service"]),
    ("chat", &["guid", "chat_identifier"]),
    ("handle", &["id"]),
    ("chat_message_join", &["chat_id", "message_id"]),
];

/// Queries for this database's columns, put together once.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) rows_after: String,
    pub(super) rows_by_ids: String,
    pub(super) own_rows_after: String,
    pub(super) states_by_ids: String,
    pub(super) joins_between: String,
    pub(super) joins_by_ids: String,
    /// Empty when the database has no attachment tables.
    pub(super) files_between: String,
    /// Empty when the database has no attachment tables.
    pub(super) files_by_ids: String,
    pub(super) has_properties: bool,
}

/// Columns of `message` that [`super::rows::Row::read`] takes, by position.
const ROW_COLUMNS: &[&str] = &[
    "guid",
    "is_from_me",
    "date",
    "service",
    "text",
    "item_type",
    "group_action_type",
    "group_title",
    "associated_message_type",
    "associated_message_guid",
    "associated_message_emoji",
    "balloon_bundle_id",
    "is_empty",
    "is_system_message",
    "cache_has_attachments",
    "schedule_type",
];

/// Columns of `message` that [`super::rows::StatusBits::read`] takes, by position.
const STATUS_COLUMNS: &[&str] = &[
    "service",
    "error",
    "is_sent",
    "is_delivered",
    "is_finished",
    "is_read",
    "was_downgraded",
    "date_delivered",
    "date_read",
];

/// Where the status columns begin in a row query: rowid, handle, other handle, body, then
/// [`ROW_COLUMNS`].
pub(super) const STATUS_AT: usize = 4 + 16;

const IN_IDS: &str = "IN (SELECT value FROM json_each(?1))";

impl Schema {
    /// Looks at the tables; a database without those of Messages is foreign.
    pub(super) fn probe(connection: &Connection, path: &Path) -> Result<Self, NotReady> {
        let sqlite = |error: rusqlite::Error| NotReady::of_sqlite(path, &error);
        let columns = |table: &str| columns(connection, table).map_err(sqlite);
        for (table, names) in REQUIRED {
            let has = columns(table)?;
            if let Some(missing) = names.iter().find(|name| !has.contains(**name)) {
                return Err(NotReady::new(
                    path,
                    Cause::Foreign,
                    format!("table {table} has no column {missing}"),
                ));
            }
        }
        let message = columns("message")?;
        let chat = columns("chat")?;
        let files = !columns("attachment")?.is_empty()
            && columns("message_attachment_join")?.contains("attachment_id");
        let indexed = has_index(connection, "chat_message_join", "message_id").map_err(sqlite)?;
        Ok(Self::queries(&message, &chat, &columns("attachment")?, files, indexed)
            .with_properties(columns("_SqliteDatabaseProperties")?.contains("key")))
    }

    fn with_properties(mut self, has: bool) -> Self {
        self.has_properties = has;
        self
    }

    fn queries(
        message: &HashSet<String>,
        chat: &HashSet<String>,
        attachment: &HashSet<String>,
        files: bool,
        indexed: bool,
    ) -> Self {
        let column = |has: &HashSet<String>, alias: &str, name: &str| {
            if has.contains(name) { format!("{alias}.{name}") } else { "NULL".to_owned() }
        };
        let list = |names: &[&str]| {
            names.iter().map(|name| column(message, "m", name)).collect::<Vec<_>>().join(", ")
        };
        // The body is long and mostly on overflow pages: it is fetched where the text is not in
        // `text`, and where the order of attachments is only in there.
        let body = if message.contains("attributedBody") {
            let has_files = column(message, "m", "cache_has_attachments");
            format!(
                "CASE WHEN m.text IS NULL OR m.text = '' OR {has_files} = 1 THEN m.attributedBody END"
            )
        } else {
            "NULL".to_owned()
        };
        let other = if message.contains("other_handle") {
            "LEFT JOIN handle o ON o.ROWID = m.other_handle"
        } else {
            "LEFT JOIN handle o ON 0"
        };
        let select = format!(
            "SELECT m.ROWID, h.id, o.id, {body}, {}, {} FROM message m \
             LEFT JOIN handle h ON h.ROWID = m.handle_id {other}",
            list(ROW_COLUMNS),
            list(STATUS_COLUMNS),
        );
        let chat_columns = format!("c.guid, {}", column(chat, "c", "style"));
        // Without an index that begins with message_id, the primary key (chat_id, message_id)
        // serves, one seek a chat; a plain join would read the whole table for every batch.
        let (between, by_ids) = if indexed {
            (
                "chat_message_join j CROSS JOIN chat c ON c.ROWID = j.chat_id",
                "json_each(?1) e CROSS JOIN chat_message_join j ON j.message_id = e.value \
                 CROSS JOIN chat c ON c.ROWID = j.chat_id",
            )
        } else {
            (
                "chat c CROSS JOIN chat_message_join j ON j.chat_id = c.ROWID",
                "json_each(?1) e CROSS JOIN chat c CROSS JOIN chat_message_join j \
                 ON j.chat_id = c.ROWID AND j.message_id = e.value",
            )
        };
        let (files_between, files_by_ids) = if files {
            let names =
                ["guid", "transfer_name", "mime_type", "total_bytes", "transfer_state", "filename"]
                    .map(|name| column(attachment, "a", name))
                    .join(", ");
            let from = |which: &str| {
                format!(
                    "SELECT j.message_id, {names} FROM message_attachment_join j \
                     CROSS JOIN attachment a ON a.ROWID = j.attachment_id \
                     WHERE j.message_id {which} ORDER BY j.message_id, j.attachment_id"
                )
            };
            (from("BETWEEN ?1 AND ?2"), from(IN_IDS))
        } else {
            (String::new(), String::new())
        };
        Self {
            rows_after: format!("{select} WHERE m.ROWID > ?1 ORDER BY m.ROWID LIMIT ?2"),
            rows_by_ids: format!("{select} WHERE m.ROWID {IN_IDS} ORDER BY m.ROWID"),
            // `+` keeps the planner on the rowid: an index on is_from_me would visit every own row
            // there ever was. Newest first: what is looked for again and again is a row that was
            // not there the last time.
            own_rows_after: format!(
                "{select} WHERE m.ROWID > ?1 AND +m.is_from_me = 1 ORDER BY m.ROWID DESC LIMIT ?2"
            ),
            states_by_ids: format!(
                "SELECT m.ROWID, m.guid, {} FROM message m WHERE m.ROWID {IN_IDS} ORDER BY m.ROWID",
                list(STATUS_COLUMNS)
            ),
            joins_between: format!(
                "SELECT j.message_id, {chat_columns} FROM {between} WHERE j.message_id BETWEEN ?1 AND ?2"
            ),
            joins_by_ids: format!("SELECT j.message_id, {chat_columns} FROM {by_ids}"),
            files_between,
            files_by_ids,
            has_properties: false,
        }
    }
}

/// Names of a table's columns; none for a table that does not exist.
fn columns(connection: &Connection, table: &str) -> rusqlite::Result<HashSet<String>> {
    connection
        .prepare("SELECT name FROM pragma_table_info(?1)")?
        .query_map([table], |row| row.get(0))?
        .collect()
}

/// Whether some complete index of the table begins with that column.
fn has_index(connection: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    connection
        .prepare(
            "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) l, pragma_index_info(l.name) i \
             WHERE l.partial = 0 AND i.seqno = 0 AND i.name = ?2)",
        )?
        .query_row([table, column], |row| row.get(0))
}
