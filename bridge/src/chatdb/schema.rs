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
#[derive(Debug, Clone)]
pub(super) struct Schema {
    /// What most rows do not have, of one row.
    pub(super) rare: String,
    pub(super) rows_after: String,
    pub(super) rows_between: String,
    pub(super) rows_by_ids: String,
    pub(super) own_rows_after: String,
    /// Own rows by their dates; empty without an index on them.
    pub(super) own_dated: String,
    pub(super) states_by_ids: String,
    /// (message, chat) of a range of messages.
    pub(super) joins_between: String,
    /// The same of some messages.
    pub(super) joins_by_ids: String,
    /// (message, chat) of messages that lie in Recently Deleted; empty before macOS 13.
    pub(super) deleted_by_ids: String,
    /// Empty when the database has no attachment tables.
    pub(super) files_between: String,
    /// Empty when the database has no attachment tables.
    pub(super) files_by_ids: String,
    pub(super) chat_by_id: String,
    /// Empty when the database does not say who is in a chat.
    pub(super) participants: String,
    pub(super) has_properties: bool,
    /// What may change about a range of messages.
    pub(super) digests_between: String,
    /// The state of the files of a range of messages; empty without attachment tables.
    pub(super) file_states_between: String,
    /// Rows below a number that are dated in a range; empty where dates are not indexed.
    pub(super) twins: String,
    /// (row, date) in the order of dates: above a date and row, up to a date; empty where dates are
    /// not indexed.
    pub(super) dated_after: String,
}

/// Gives each column that a row is read from its place, so that query and reader cannot disagree.
macro_rules! row_columns {
    (
        $first:ident,
        common { $($common:ident = $common_sql:literal,)* }
        bits { $($bit:ident = $bit_sql:literal,)* }
        flags { $($flag:ident = $flag_sql:literal,)* }
        numbers { $($number:ident = $number_sql:literal,)* }
        texts { $($text:ident = $text_sql:literal,)* }
        beside { $($beside:ident = $beside_sql:literal,)* }
    ) => {
        /// Where the columns of a row query stand.
        pub(super) mod at {
            row_columns!(@places 0, $first, $($common,)* BITS,);
            /// From here on stands what most rows do not have, in a query of its own.
            pub(in crate::chatdb) const FIRST_RARE: usize = BITS + 1;
            row_columns!(@places FIRST_RARE, FLAGS, $($number,)* $($text,)* $($beside,)*);
        }
        /// Which bit of [`at::BITS`] says what; the lowest, whether the row has anything rare.
        pub(super) mod bit {
            row_columns!(@bits 0, RARE, $($bit,)*);
        }
        /// Which bit of [`at::FLAGS`] says what.
        pub(super) mod flag {
            row_columns!(@bits 0, $($flag,)*);
        }
        /// The columns behind [`bit`], in its order.
        const BIT_COLUMNS: &[&str] = &[$($bit_sql),*];
        /// The columns behind [`flag`], in its order: zero or NULL in most rows.
        const FLAG_COLUMNS: &[&str] = &[$($flag_sql),*];
        /// The columns of `message`, in their places after the row's number: what is read of every
        /// row …
        const COMMON_COLUMNS: &[&str] = &[$($common_sql),*];
        /// … the numbers that are zero or NULL in most rows …
        const RARE_NUMBERS: &[&str] = &[$($number_sql),*];
        /// … the texts and blobs that are NULL in most …
        const RARE_TEXTS: &[&str] = &[$($text_sql),*];
        /// … and what says nothing without one of these: a group's change without `item_type`, what
        /// a reaction is to without its type, and so on.
        const BESIDE_COLUMNS: &[&str] = &[$($beside_sql),*];
    };
    (@places $place:expr, $name:ident, $($rest:ident,)*) => {
        pub(in crate::chatdb) const $name: usize = $place;
        row_columns!(@places $place + 1, $($rest,)*);
    };
    (@places $place:expr,) => {};
    (@bits $place:expr, $name:ident, $($rest:ident,)*) => {
        pub(in crate::chatdb) const $name: i64 = 1 << $place;
        row_columns!(@bits $place + 1, $($rest,)*);
    };
    (@bits $place:expr,) => {};
}

row_columns! {
    ROWID,
    common {
        GUID = "guid",
        DATE = "date",
        TEXT = "text",
        BODY = "attributedBody",
        HANDLE = "handle_id",
        CALLER = "destination_caller_id",
        SUMMARY = "message_summary_info",
        PART_COUNT = "part_count",
        SERVICE = "service",
        DATE_DELIVERED = "date_delivered",
        DATE_READ = "date_read",
    }
    bits {
        FROM_ME = "is_from_me",
        HAS_ATTACHMENTS = "cache_has_attachments",
        IS_SENT = "is_sent",
        IS_DELIVERED = "is_delivered",
        IS_FINISHED = "is_finished",
        IS_READ = "is_read",
    }
    flags {
        WAS_DOWNGRADED = "was_downgraded",
        IS_EMPTY = "is_empty",
        IS_SYSTEM = "is_system_message",
        IS_AUDIO = "is_audio_message",
        IS_STEWIE = "is_stewie",
        OFF_GRID = "sent_or_received_off_grid",
        PENDING_SATELLITE = "is_pending_satellite_send",
        IS_SOS = "is_sos",
        IS_CRITICAL = "is_critical",
        TIME_SENSITIVE = "is_time_sensitive",
        IS_SPAM = "is_spam",
        AUTO_REPLY = "is_auto_reply",
        SCHEDULE_TYPE = "schedule_type",
    }
    numbers {
        ERROR = "error",
        ITEM_TYPE = "item_type",
        MESSAGE_ACTION = "message_action_type",
        ASSOCIATED_TYPE = "associated_message_type",
        DATE_EDITED = "date_edited",
        FILTER_ACTION = "filter_action",
    }
    texts {
        SUBJECT = "subject",
        BALLOON = "balloon_bundle_id",
        THREAD_GUID = "thread_originator_guid",
        EFFECT = "expressive_send_style_id",
    }
    beside {
        OTHER_HANDLE = "other_handle",
        GROUP_ACTION = "group_action_type",
        GROUP_TITLE = "group_title",
        SHARE_STATUS = "share_status",
        ASSOCIATED_GUID = "associated_message_guid",
        ASSOCIATED_EMOJI = "associated_message_emoji",
        THREAD_PART = "thread_originator_part",
        PAYLOAD = "payload_data",
        SCHEDULE_STATE = "schedule_state",
    }
}

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
        let has_index =
            |table: &str, column: &str| has_index(connection, table, column).map_err(sqlite);
        let tables = Tables {
            message: columns("message")?,
            chat: columns("chat")?,
            attachment: columns("attachment")?,
            files: columns("message_attachment_join")?.contains("attachment_id"),
            deleted: columns("chat_recoverable_message_join")?.contains("message_id"),
            members: columns("chat_handle_join")?.contains("handle_id"),
            joins_indexed: has_index("chat_message_join", "message_id")?,
            deleted_indexed: has_index("chat_recoverable_message_join", "message_id")?,
            dates_indexed: has_index("message", "date")?,
            properties: columns("_SqliteDatabaseProperties")?.contains("key"),
        };
        Ok(Self::queries(&tables))
    }

    fn queries(tables: &Tables) -> Self {
        let column = |has: &HashSet<String>, alias: &str, name: &str| {
            if has.contains(name) { format!("{alias}.{name}") } else { "NULL".to_owned() }
        };
        let message = |name: &str| column(&tables.message, "m", name);
        let row_column = |name: &str| match name {
            // Blobs are long and mostly on pages of their own: they are fetched where they say
            // something. Reactions keep in their summary what they are to, which is not asked.
            "payload_data" => {
                let (payload, balloon) = (message(name), message("balloon_bundle_id"));
                format!("CASE WHEN {balloon} IS NOT NULL THEN {payload} END")
            }
            "message_summary_info" => {
                let (summary, kind) = (message(name), message("associated_message_type"));
                format!("CASE WHEN ifnull({kind}, 0) = 0 THEN {summary} END")
            }
            name => message(name),
        };
        let list =
            |names: &[&str]| names.iter().map(|name| message(name)).collect::<Vec<_>>().join(", ");
        let status = list(STATUS_COLUMNS);
        let row_list = |names: &[&str]| {
            names.iter().map(|name| row_column(name)).collect::<Vec<_>>().join(", ")
        };
        let select = format!(
            "SELECT m.ROWID, {}, {} FROM message m",
            row_list(COMMON_COLUMNS),
            bits(&tables.message, BIT_COLUMNS, Some(has_rare(&tables.message))),
        );
        // SQLite computes every column of a row that it gives, asked for or not.
        let rare = format!(
            "SELECT {}, {}, {}, {} FROM message m WHERE m.ROWID = ?1",
            bits(&tables.message, FLAG_COLUMNS, None),
            row_list(RARE_NUMBERS),
            row_list(RARE_TEXTS),
            row_list(BESIDE_COLUMNS),
        );
        // Without an index that begins with message_id, the primary key (chat_id, message_id)
        // serves, one seek a chat; a plain join would read the whole table for every batch.
        let between = if tables.joins_indexed {
            "SELECT j.message_id, j.chat_id FROM chat_message_join j \
             WHERE j.message_id BETWEEN ?1 AND ?2"
        } else {
            "SELECT j.message_id, j.chat_id FROM chat c \
             CROSS JOIN chat_message_join j ON j.chat_id = c.ROWID \
             WHERE j.message_id BETWEEN ?1 AND ?2"
        };
        let by_ids = |table: &str, indexed: bool| {
            if indexed {
                format!(
                    "SELECT j.message_id, j.chat_id FROM json_each(?1) e \
                     CROSS JOIN {table} j ON j.message_id = e.value"
                )
            } else {
                format!(
                    "SELECT j.message_id, j.chat_id FROM json_each(?1) e CROSS JOIN chat c \
                     CROSS JOIN {table} j ON j.chat_id = c.ROWID AND j.message_id = e.value"
                )
            }
        };
        let files = |which: &str| {
            if !tables.files || tables.attachment.is_empty() {
                return String::new();
            }
            let names = [
                "guid",
                "transfer_name",
                "mime_type",
                "uti",
                "total_bytes",
                "transfer_state",
                "filename",
                "is_sticker",
                "hide_attachment",
                "emoji_image_short_description",
                "emoji_image_content_identifier",
            ]
            .map(|name| column(&tables.attachment, "a", name))
            .join(", ");
            format!(
                "SELECT j.message_id, {names} FROM message_attachment_join j \
                 CROSS JOIN attachment a ON a.ROWID = j.attachment_id \
                 WHERE j.message_id {which} ORDER BY j.message_id, j.attachment_id"
            )
        };
        let chat_columns =
            ["style", "is_filtered", "is_blackholed", "is_pending_review", "display_name"]
                .map(|name| column(&tables.chat, "c", name))
                .join(", ");
        Self {
            rare,
            // SQLite prepares a statement anew whenever another number is bound as its `LIMIT`, but
            // not for a sum.
            rows_after: format!("{select} WHERE m.ROWID > ?1 ORDER BY m.ROWID LIMIT ?2 + 0"),
            rows_between: format!("{select} WHERE m.ROWID > ?1 AND m.ROWID <= ?2 ORDER BY m.ROWID"),
            rows_by_ids: format!("{select} WHERE m.ROWID {IN_IDS} ORDER BY m.ROWID"),
            // `+` keeps the planner on the rowid: an index on is_from_me would visit every own row
            // there ever was. Newest first: what is looked for again and again is a row that was
            // not there the last time.
            own_rows_after: format!(
                "{select} WHERE m.ROWID > ?1 AND +m.is_from_me = 1 ORDER BY m.ROWID DESC LIMIT ?2 + 0"
            ),
            states_by_ids: format!(
                "SELECT m.ROWID, m.guid, {status} FROM message m WHERE m.ROWID {IN_IDS} ORDER BY m.ROWID",
            ),
            joins_between: between.to_owned(),
            joins_by_ids: by_ids("chat_message_join", tables.joins_indexed),
            deleted_by_ids: if tables.deleted {
                by_ids("chat_recoverable_message_join", tables.deleted_indexed)
            } else {
                String::new()
            },
            files_between: files("BETWEEN ?1 AND ?2"),
            files_by_ids: files(IN_IDS),
            chat_by_id: format!("SELECT c.guid, {chat_columns} FROM chat c WHERE c.ROWID = ?1"),
            participants: if tables.members {
                "SELECT handle_id FROM chat_handle_join WHERE chat_id = ?1 ORDER BY handle_id LIMIT ?2 + 0"
                    .to_owned()
            } else {
                String::new()
            },
            has_properties: tables.properties,
            digests_between: format!(
                "SELECT m.ROWID, {} FROM message m WHERE m.ROWID BETWEEN ?1 AND ?2 ORDER BY m.ROWID",
                // Lengths of texts and blobs are in the row's header; the blobs stay unread.
                [
                    "octet_length({text})",
                    "octet_length({attributedBody})",
                    "octet_length({message_summary_info})",
                    "octet_length({payload_data})",
                    "{date_edited}",
                    "{part_count}",
                    "{is_empty}",
                    "{schedule_state}",
                    "{cache_has_attachments}",
                ]
                .map(|digest| {
                    match digest.split_once('{').and_then(|(before, rest)| {
                        rest.split_once('}').map(|(name, after)| (before, name, after))
                    }) {
                        Some((before, name, after)) => format!("{before}{}{after}", message(name)),
                        None => digest.to_owned(),
                    }
                })
                .join(", ")
            ),
            file_states_between: if tables.files && !tables.attachment.is_empty() {
                format!(
                    "SELECT j.message_id, j.attachment_id, {} FROM message_attachment_join j \
                     CROSS JOIN attachment a ON a.ROWID = j.attachment_id \
                     WHERE j.message_id BETWEEN ?1 AND ?2",
                    column(&tables.attachment, "a", "transfer_state")
                )
            } else {
                String::new()
            },
            // `+` keeps the planner on the dates: by the number it would walk through all that is
            // older. By date, so that it stops where there are enough.
            twins: if tables.dates_indexed {
                format!(
                    "{select} WHERE m.ROWID IN (SELECT t.ROWID FROM message t \
                     WHERE t.date BETWEEN ?1 AND ?2 AND +t.ROWID < ?3 ORDER BY t.date LIMIT ?4 + 0) \
                     ORDER BY m.ROWID"
                )
            } else {
                String::new()
            },
            own_dated: if tables.dates_indexed {
                format!(
                    "{select} WHERE m.ROWID IN (SELECT t.ROWID FROM message t \
                     WHERE t.date BETWEEN ?1 AND ?2 AND +t.is_from_me = 1 ORDER BY t.date LIMIT ?3 + 0) \
                     ORDER BY m.ROWID"
                )
            } else {
                String::new()
            },
            dated_after: if tables.dates_indexed {
                "SELECT ROWID, date FROM message WHERE (date, ROWID) > (?1, ?2) AND date <= ?3 \
                 ORDER BY date, ROWID LIMIT ?4 + 0"
                    .to_owned()
            } else {
                String::new()
            },
        }
    }
}

/// Whether a row has anything that most have not. Asking that of SQLite at once is cheaper than
/// fetching forty columns of a row that are empty.
fn has_rare(message: &HashSet<String>) -> String {
    let has = |name: &&&str| message.contains(**name);
    let numbers =
        RARE_NUMBERS.iter().chain(FLAG_COLUMNS).filter(has).map(|name| format!("m.{name}"));
    let texts = RARE_TEXTS.iter().filter(has).map(|name| format!("m.{name} IS NOT NULL"));
    let any = numbers.chain(texts).collect::<Vec<_>>().join(" OR ");
    if any.is_empty() { "0".to_owned() } else { format!("CASE WHEN {any} THEN 1 ELSE 0 END") }
}

/// Everything with a yes or no as one number, behind a lowest bit where there is one: fetching a cell
/// costs several times what SQLite takes to compute it. NULL is a no, like a column that is not there.
fn bits(message: &HashSet<String>, names: &[&str], lowest: Option<String>) -> String {
    let mut bits = "0".to_owned();
    // The first named is the lowest bit, so the last one is shifted furthest.
    for name in names.iter().rev() {
        let bit = if message.contains(*name) { format!("(m.{name} IS TRUE)") } else { "0".into() };
        bits = format!("({bits}) * 2 + {bit}");
    }
    match lowest {
        Some(lowest) => format!("({bits}) * 2 + ({lowest})"),
        None => bits,
    }
}

/// What the database has.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says of another table whether it is there, or indexed"
)]
struct Tables {
    message: HashSet<String>,
    chat: HashSet<String>,
    attachment: HashSet<String>,
    files: bool,
    deleted: bool,
    members: bool,
    joins_indexed: bool,
    deleted_indexed: bool,
    dates_indexed: bool,
    properties: bool,
}

/// Names of a table's columns; none for a table that does not exist.
fn columns(connection: &Connection, table: &str) -> rusqlite::Result<HashSet<String>> {
    connection
        .prepare("SELECT name FROM pragma_table_info(?1)")?
        .query_map([table], |row| row.get(0))?
        .collect()
}

/// Whether some complete index of the table begins with that column.
pub(super) fn has_index(
    connection: &Connection,
    table: &str,
    column: &str,
) -> rusqlite::Result<bool> {
    connection
        .prepare(
            "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) l, pragma_index_info(l.name) i \
             WHERE l.partial = 0 AND i.seqno = 0 AND i.name = ?2)",
        )?
        .query_row([table, column], |row| row.get(0))
}
