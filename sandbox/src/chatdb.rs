//! Writes a chat.db as Messages writes it.
//!
//! Every function is one transaction, because a reader must be able to see each step alone: the
//! row before its chat, `is_sent` before `is_delivered`. Inserts name only columns that the file
//! has, so one writer serves the schemas of all versions.
//!
//! `synchronous` is OFF: what Apple chose is not ours to imitate, no reader can see it, and load
//! tests want hundreds of texts a second.

pub mod kinds;
mod schema;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::chance::Chance;
use crate::clock::AppleNs;
use crate::outcome::{FirstLook, Service};
use crate::typedstream::AttributedText;
pub use schema::{MacOs, UnknownMacOs};

/// How long a writer waits for another one. Nobody else writes; a reader that copies the file may.
const BUSY: Duration = Duration::from_secs(5);

/// Statements kept prepared: a dozen updates, and inserts, of which every kind of row has its own.
const STATEMENTS: usize = 256;

/// Why chat.db could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ChatDbError {
    /// SQLite refused.
    #[error("{doing}")]
    Sqlite {
        /// What was being done.
        doing: &'static str,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// A file could not be removed or made.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// There is no such row.
    #[error("chat.db has no such message: {0}")]
    NoSuchMessage(String),
    /// The row is there, but what is wanted of it cannot be.
    #[error("{0}")]
    Impossible(String),
}

fn sqlite(doing: &'static str) -> impl Fn(rusqlite::Error) -> ChatDbError {
    move |source| ChatDbError::Sqlite { doing, source }
}

type Result<T> = std::result::Result<T, ChatDbError>;

/// A conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conversation {
    /// With one address.
    Direct(String),
    /// A group: its id (`chat…`) and the addresses of the others in it.
    Group {
        /// The id, such as `chat500`.
        id: String,
        /// The others.
        members: Vec<String>,
    },
}

/// An existing chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chat {
    /// Its row.
    pub rowid: i64,
    /// Its service as of the last message.
    pub service: Service,
    /// Who is in it.
    pub conversation: Conversation,
}

/// A row that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its number in this file.
    pub rowid: i64,
    /// Its guid.
    pub guid: String,
    /// The chat that it is to be joined to.
    pub chat: i64,
    /// Its date.
    pub date: AppleNs,
}

/// A text that a phone received.
#[derive(Debug, Clone)]
pub struct Inbound<'a> {
    /// Its guid, which for iMessage and RCS is the sender's.
    pub guid: String,
    /// Who wrote it.
    pub from: &'a str,
    /// Where.
    pub conversation: &'a Conversation,
    /// Over which service.
    pub service: Service,
    /// What.
    pub text: &'a str,
    /// When it was sent, by the sender's clock.
    pub date: AppleNs,
}

/// A text that a phone sends.
#[derive(Debug, Clone)]
pub struct Outbound<'a> {
    /// Its guid.
    pub guid: String,
    /// Where to.
    pub conversation: &'a Conversation,
    /// Over which service.
    pub service: Service,
    /// What.
    pub text: &'a str,
    /// When.
    pub date: AppleNs,
    /// How the row looks at first.
    pub look: FirstLook,
}

/// A row of a generated file.
#[derive(Debug)]
pub(crate) struct Bulk<'a> {
    /// The other one.
    pub(crate) from: &'a str,
    pub(crate) text: &'a str,
    /// Sent by the phone, and delivered.
    pub(crate) own: bool,
    pub(crate) null_text: bool,
    pub(crate) date: AppleNs,
}

/// A connection that writes one phone's chat.db.
#[derive(Debug)]
pub struct ChatDb {
    conn: Connection,
    path: PathBuf,
    macos: MacOs,
    number: String,
    /// The same in every row of this phone.
    account_guid: String,
    columns: Columns,
    /// The newest guid per chat, which the next row names in `reply_to_guid`.
    newest: HashMap<i64, String>,
    /// Chat and handle per address, of a generated file.
    correspondents: HashMap<String, (i64, i64)>,
    /// Where guids come from if a file is to be the same every time.
    guids: Cell<Option<Chance>>,
}

/// The columns per table.
type Columns = HashMap<&'static str, HashSet<String>>;

/// A new guid, in upper case as Apple writes them.
pub fn new_guid() -> String {
    let mut random = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut random).expect("the system has random numbers");
    uuid::Builder::from_random_bytes(random).into_uuid().to_string().to_uppercase()
}

impl ChatDb {
    fn new(conn: Connection, columns: Columns, path: &Path, macos: MacOs, number: &str) -> Self {
        let account_guid = account_guid(number);
        let (path, number) = (path.to_owned(), number.to_owned());
        let (newest, correspondents) = (HashMap::new(), HashMap::new());
        let guids = Cell::new(None);
        Self { conn, path, macos, number, account_guid, columns, newest, correspondents, guids }
    }

    /// From now on guids come from this sequence.
    pub(crate) fn seed_guids(&self, chance: Chance) {
        self.guids.set(Some(chance));
    }

    fn next_guid(&self) -> String {
        let Some(mut chance) = self.guids.get() else { return new_guid() };
        let guid = chance.guid();
        self.guids.set(Some(chance));
        guid
    }

    /// Opens a phone's chat.db, or makes it with the schema of that macOS. An existing file keeps
    /// its schema.
    pub fn open(path: &Path, macos: MacOs, number: &str) -> Result<Self> {
        let (conn, columns) = connect(path, macos)?;
        Ok(Self::new(conn, columns, path, macos, number))
    }

    /// Makes a chat.db that has its tables only; [`ChatDb::finish`] adds indexes and triggers.
    pub(crate) fn bare(path: &Path, macos: MacOs, number: &str) -> Result<Self> {
        let conn = Connection::open(path).map_err(sqlite("cannot create chat.db"))?;
        conn.execute_batch(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;
             PRAGMA cache_size=-64000;",
        )
        .map_err(sqlite("cannot prepare chat.db"))?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS);
        conn.execute_batch(macos.tables()).map_err(sqlite("cannot make the tables"))?;
        let columns = columns_of(&conn)?;
        Ok(Self::new(conn, columns, path, macos, number))
    }

    /// Makes the indexes and triggers and leaves the file in WAL mode.
    pub(crate) fn finish(self) -> Result<()> {
        let doing = sqlite("cannot make the indexes");
        self.conn.execute_batch(self.macos.indexes()).map_err(&doing)?;
        self.conn
            .execute_batch("PRAGMA locking_mode=NORMAL; PRAGMA journal_mode=WAL;")
            .map_err(&doing)
    }

    /// Runs `write` in one transaction.
    pub(crate) fn together<T>(&mut self, write: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.conn.execute_batch("BEGIN IMMEDIATE").map_err(sqlite("cannot begin"))?;
        match write(self) {
            Ok(value) => {
                self.conn.execute_batch("COMMIT").map_err(sqlite("cannot commit"))?;
                Ok(value)
            }
            Err(error) => {
                // The first error is the one to report; after it SQLite may have rolled back.
                if !self.conn.is_autocommit() {
                    self.conn.execute_batch("ROLLBACK").map_err(sqlite("cannot roll back"))?;
                }
                Err(error)
            }
        }
    }

    /// Inserts a row, leaving out what the file has no column for.
    fn insert(&self, table: &'static str, values: Vec<(&'static str, Sql)>) -> Result<i64> {
        let doing = sqlite("cannot insert a row");
        let empty = HashSet::new();
        let known = self.columns.get(table).unwrap_or(&empty);
        let (names, values): (Vec<_>, Vec<_>) =
            values.into_iter().filter(|(name, _)| known.contains(*name)).unzip();
        let marks = vec!["?"; names.len()].join(",");
        let sql = format!("INSERT OR IGNORE INTO {table} ({}) VALUES ({marks})", names.join(","));
        let mut statement = self.conn.prepare_cached(&sql).map_err(&doing)?;
        statement.execute(rusqlite::params_from_iter(values)).map_err(&doing)?;
        Ok(self.conn.last_insert_rowid())
    }

    fn has_table(&self, table: &str) -> bool {
        self.columns.contains_key(table)
    }

    /// The handle of an address on a service. One person has one per service.
    fn handle(&self, address: &str, service: &str) -> Result<i64> {
        let find = "SELECT ROWID FROM handle WHERE id = ? AND service = ?";
        let found: Option<i64> = self
            .conn
            .prepare_cached(find)
            .and_then(|mut s| s.query_row((address, service), |r| r.get(0)).optional())
            .map_err(sqlite("cannot read handles"))?;
        if let Some(rowid) = found {
            return Ok(rowid);
        }
        let country = if address.starts_with("+1") { Sql::Text("us".into()) } else { Sql::Null };
        self.insert(
            "handle",
            vec![
                ("id", Sql::Text(address.into())),
                ("country", country),
                ("service", Sql::Text(service.into())),
            ],
        )
    }

    /// The guid of a conversation's chat: from macOS 26 on it starts with `any` whatever the
    /// service is.
    pub fn chat_guid(&self, conversation: &Conversation, service: Service) -> String {
        self.chat_guid_on(conversation, service.as_str())
    }

    fn chat_guid_on(&self, conversation: &Conversation, service: &str) -> String {
        let prefix = if self.macos.has_any_guids() { "any" } else { service };
        match conversation {
            Conversation::Direct(address) => format!("{prefix};-;{address}"),
            Conversation::Group { id, .. } => format!("{prefix};+;{id}"),
        }
    }

    /// The chat of a conversation, made if it is new, with its handles.
    fn chat(&self, conversation: &Conversation, service: &str) -> Result<i64> {
        let doing = sqlite("cannot find the chat");
        let guid = self.chat_guid_on(conversation, service);
        let (style, identifier, members): (i64, &str, &[String]) = match conversation {
            Conversation::Direct(address) => (45, address, std::slice::from_ref(address)),
            Conversation::Group { id, members } => (43, id, members),
        };
        let found: Option<(i64, String)> = self
            .conn
            .prepare_cached("SELECT ROWID, service_name FROM chat WHERE guid = ?")
            .and_then(|mut s| s.query_row([&guid], |r| Ok((r.get(0)?, r.get(1)?))).optional())
            .map_err(&doing)?;
        let rowid = if let Some((rowid, named)) = found {
            if named != service {
                self.conn
                    .prepare_cached("UPDATE chat SET service_name = ? WHERE ROWID = ?")
                    .and_then(|mut s| s.execute((service, rowid)))
                    .map_err(&doing)?;
            }
            rowid
        } else {
            let room = match conversation {
                Conversation::Direct(_) => Sql::Null,
                Conversation::Group { id, .. } => Sql::Text(id.clone()),
            };
            let group = Sql::Text(self.next_guid());
            self.insert(
                "chat",
                vec![
                    ("guid", Sql::Text(guid)),
                    ("style", style.into()),
                    ("state", 3.into()),
                    ("account_id", Sql::Text(self.account_guid.clone())),
                    ("chat_identifier", Sql::Text(identifier.into())),
                    ("service_name", Sql::Text(service.into())),
                    ("room_name", room),
                    ("account_login", Sql::Text(format!("P:{}", self.number))),
                    ("last_addressed_handle", Sql::Text(self.number.clone())),
                    ("display_name", Sql::Text(String::new())),
                    ("group_id", group.clone()),
                    ("original_group_id", group),
                    ("successful_query", 1.into()),
                ],
            )?
        };
        for member in members {
            let handle = self.handle(member, service)?;
            self.insert(
                "chat_handle_join",
                vec![("chat_id", rowid.into()), ("handle_id", handle.into())],
            )?;
        }
        if self.has_table("chat_service") {
            self.insert(
                "chat_service",
                vec![("service", Sql::Text(service.into())), ("chat", rowid.into())],
            )?;
        }
        Ok(rowid)
    }

    /// What the columns `text` and `attributedBody` hold. macOS 12 fills both; from 13 on `text`
    /// is NULL in most rows, so it is in all of these.
    fn body(&self, text: &str) -> (Sql, Sql) {
        let blob = Sql::Blob(AttributedText::with_links(text).encode());
        (if self.macos.fills_text() { Sql::Text(text.into()) } else { Sql::Null }, blob)
    }

    /// The message before this one in its chat, which every row names in `reply_to_guid`; this
    /// one is then the newest.
    fn previous(&mut self, chat: i64, guid: &str) -> Result<Option<String>> {
        if chat == 0 {
            return Ok(None);
        }
        if let Some(before) = self.newest.insert(chat, guid.to_owned()) {
            return Ok(Some(before));
        }
        // The first one since the file was opened.
        let sql = "SELECT m.guid FROM chat_message_join j JOIN message m ON m.ROWID = j.message_id
             WHERE j.chat_id = ? ORDER BY j.message_id DESC LIMIT 1";
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row([chat], |row| row.get(0)).optional())
            .map_err(sqlite("cannot find the previous message"))
    }

    /// What a row of either direction has.
    fn message(
        &mut self,
        (guid, service, date): (&str, &str, AppleNs),
        (text, blob): (Sql, Sql),
        (chat, handle): (i64, i64),
        mut more: Vec<(&'static str, Sql)>,
    ) -> Result<i64> {
        let before = self.previous(chat, guid)?;
        let mut values = vec![
            ("guid", Sql::Text(guid.into())),
            ("text", text),
            ("attributedBody", blob),
            ("handle_id", handle.into()),
            ("version", 10.into()),
            ("service", Sql::Text(service.into())),
            ("account", Sql::Text(format!("P:{}", self.number))),
            ("account_guid", Sql::Text(self.account_guid.clone())),
            ("destination_caller_id", Sql::Text(self.number.clone())),
            ("date", date.0.into()),
            ("date_read", 0.into()),
            ("date_delivered", 0.into()),
            ("date_played", 0.into()),
            ("time_expressive_send_played", 0.into()),
            ("date_retracted", 0.into()),
            ("date_edited", 0.into()),
            ("was_data_detected", 1.into()),
            ("ck_record_id", Sql::Text(String::new())),
            ("ck_record_change_tag", Sql::Text(String::new())),
            ("sort_id", 0.into()),
            ("part_count", 1.into()),
            ("reply_to_guid", before.map_or(Sql::Null, Sql::Text)),
        ];
        // What is more particular wins.
        values.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
        values.append(&mut more);
        let rowid = self.insert("message", values)?;
        if self.conn.changes() == 0 {
            // `INSERT OR IGNORE` ignores a guid that is there already.
            return Err(ChatDbError::NoSuchMessage(format!("{guid} is there already")));
        }
        Ok(rowid)
    }

    /// An own text's row, not yet in its chat.
    pub fn write_outbound(&mut self, outbound: &Outbound<'_>) -> Result<Written> {
        let ghost = outbound.look == FirstLook::Ghost;
        self.together(|db| {
            let handle = match outbound.conversation {
                // A ghost names the SMS handle (imsg#90).
                Conversation::Direct(to) if ghost => db.handle(to, Service::Sms.as_str())?,
                Conversation::Direct(to) => db.handle(to, outbound.service.as_str())?,
                Conversation::Group { id, .. } if ghost => db.handle(id, Service::Sms.as_str())?,
                Conversation::Group { .. } => 0,
            };
            let chat =
                if ghost { 0 } else { db.chat(outbound.conversation, outbound.service.as_str())? };
            let (finished, error) = match outbound.look {
                FirstLook::Sending | FirstLook::Ghost => (0, 0),
                FirstLook::Failed(error) => (1, error),
            };
            let body =
                if ghost { (Sql::Text(String::new()), Sql::Null) } else { db.body(outbound.text) };
            let rowid = db.message(
                (&outbound.guid, outbound.service.as_str(), outbound.date),
                body,
                (chat, handle),
                vec![
                    ("is_from_me", 1.into()),
                    ("is_finished", finished.into()),
                    ("error", error.into()),
                ],
            )?;
            Ok(Written { rowid, guid: outbound.guid.clone(), chat, date: outbound.date })
        })
    }

    /// A received text's row, not yet in its chat.
    pub fn write_inbound(&mut self, inbound: &Inbound<'_>) -> Result<Written> {
        self.together(|db| {
            let handle = db.handle(inbound.from, inbound.service.as_str())?;
            let chat = db.chat(inbound.conversation, inbound.service.as_str())?;
            let body = db.body(inbound.text);
            let rowid = db.message(
                (&inbound.guid, inbound.service.as_str(), inbound.date),
                body,
                (chat, handle),
                vec![("is_finished", 1.into()), ("is_delivered", 1.into())],
            )?;
            Ok(Written { rowid, guid: inbound.guid.clone(), chat, date: inbound.date })
        })
    }

    /// A finished row in its chat, inside of a transaction that the caller has begun.
    pub(crate) fn write_bulk(&mut self, bulk: &Bulk<'_>) -> Result<()> {
        let service = Service::Imessage;
        let (chat, handle) = if let Some(known) = self.correspondents.get(bulk.from) {
            *known
        } else {
            let conversation = Conversation::Direct(bulk.from.to_owned());
            let named = service.as_str();
            let known = (self.chat(&conversation, named)?, self.handle(bulk.from, named)?);
            self.correspondents.insert(bulk.from.to_owned(), known);
            known
        };
        let blob = Sql::Blob(AttributedText::with_links(bulk.text).encode());
        let text = if bulk.null_text { Sql::Null } else { Sql::Text(bulk.text.into()) };
        let own = i64::from(bulk.own);
        let more = vec![
            ("is_from_me", own.into()),
            ("is_sent", own.into()),
            ("is_delivered", 1.into()),
            ("is_finished", 1.into()),
            ("is_read", (1 - own).into()),
        ];
        let guid = new_guid();
        let rowid =
            self.message((&guid, service.as_str(), bulk.date), (text, blob), (chat, handle), more)?;
        self.join(&Written { rowid, guid, chat, date: bulk.date })
    }

    /// What iCloud does when it catches up: the same message again, with its old date, a new guid
    /// and a new row (claude-plugins-official#5224).
    pub fn write_late_copy(&mut self, guid: &str) -> Result<Written> {
        let doing = sqlite("cannot read the message to copy");
        let read = "SELECT m.text, m.attributedBody, m.handle_id, m.service, m.date, m.is_from_me,
             m.is_sent, m.is_delivered, j.chat_id FROM message m
             JOIN chat_message_join j ON j.message_id = m.ROWID WHERE m.guid = ?";
        let row = self
            .conn
            .prepare_cached(read)
            .and_then(|mut s| {
                s.query_row([guid], |r| {
                    let body: (Sql, Sql) = (r.get(0)?, r.get(1)?);
                    let service: String = r.get(3)?;
                    let flags: [i64; 3] = [r.get(5)?, r.get(6)?, r.get(7)?];
                    let ids: (i64, i64, i64) = (r.get(2)?, r.get(4)?, r.get(8)?);
                    Ok((body, service, flags, ids))
                })
                .optional()
            })
            .map_err(&doing)?;
        let Some((body, service, [from_me, sent, delivered], (handle, date, chat))) = row else {
            return Err(ChatDbError::NoSuchMessage(guid.to_owned()));
        };
        let (guid, date) = (new_guid(), AppleNs(date));
        let more = vec![
            ("is_from_me", from_me.into()),
            ("is_sent", sent.into()),
            ("is_delivered", delivered.into()),
            ("is_finished", 1.into()),
            ("is_read", 1.into()),
        ];
        let rowid =
            self.together(|db| db.message((&guid, &service, date), body, (chat, handle), more))?;
        Ok(Written { rowid, guid, chat, date })
    }

    /// Puts a row into its chat.
    pub fn join(&mut self, written: &Written) -> Result<()> {
        self.insert(
            "chat_message_join",
            vec![
                ("chat_id", written.chat.into()),
                ("message_id", written.rowid.into()),
                ("message_date", written.date.0.into()),
            ],
        )?;
        Ok(())
    }

    fn update(&self, sql: &'static str, values: impl rusqlite::Params) -> Result<()> {
        self.conn
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .map_err(sqlite("cannot update the message"))?;
        Ok(())
    }

    /// Handed to Apple's servers.
    pub fn set_sent(&mut self, rowid: i64) -> Result<()> {
        self.update("UPDATE message SET is_finished = 1, is_sent = 1 WHERE ROWID = ?", [rowid])
    }

    /// Sent as SMS by Messages itself. The handle is then the SMS one, the chat stays.
    pub fn set_downgraded(&mut self, rowid: i64, to: &str) -> Result<()> {
        self.together(|db| {
            let handle = db.handle(to, Service::Sms.as_str())?;
            db.update(
                "UPDATE message SET service = 'SMS', was_downgraded = 1, is_finished = 1,
                 is_sent = 1, handle_id = ? WHERE ROWID = ?",
                params![handle, rowid],
            )
        })
    }

    /// Not sent, for this reason.
    pub fn set_failed(&mut self, rowid: i64, error: i64) -> Result<()> {
        let sql = "UPDATE message SET is_finished = 1, is_sent = 0, error = ? WHERE ROWID = ?";
        self.update(sql, [error, rowid])
    }

    /// On the recipient's device. Exactly these columns change (platform-imessage's fixtures).
    pub fn set_delivered(&mut self, rowid: i64, at: AppleNs) -> Result<()> {
        let sql = "UPDATE message SET is_delivered = 1, date_delivered = ? WHERE ROWID = ?";
        self.update(sql, [at.0, rowid])
    }

    /// Read by the recipient, and so delivered.
    pub fn set_read(&mut self, rowid: i64, at: AppleNs) -> Result<()> {
        self.update(
            "UPDATE message SET is_read = 1, date_read = ?1, is_delivered = 1,
             date_delivered = CASE WHEN date_delivered > 0 THEN date_delivered ELSE ?1 END
             WHERE ROWID = ?2",
            [at.0, rowid],
        )
    }

    /// The own message of that guid, or the newest one that was sent.
    pub fn own_message(&self, guid: Option<&str>) -> Result<i64> {
        let sql = "SELECT ROWID FROM message WHERE is_from_me = 1 AND is_sent = 1
             AND (?1 IS NULL OR guid = ?1) ORDER BY ROWID DESC LIMIT 1";
        self.conn
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row([guid], |row| row.get(0)).optional())
            .map_err(sqlite("cannot find the message"))?
            .ok_or_else(|| {
                let what = guid.map_or_else(|| "nothing was sent yet".to_owned(), str::to_owned);
                ChatDbError::NoSuchMessage(what)
            })
    }

    /// The chat of exactly that guid, if Messages has it.
    pub fn chat_of_guid(&self, guid: &str) -> Result<Option<Chat>> {
        let doing = sqlite("cannot find the chat");
        let sql = "SELECT ROWID, style, chat_identifier, service_name FROM chat WHERE guid = ?";
        let row: Option<(i64, i64, String, String)> = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut statement| {
                let read = |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?));
                statement.query_row([guid], read).optional()
            })
            .map_err(&doing)?;
        let Some((rowid, style, id, service)) = row else { return Ok(None) };
        let service = Service::named(&service).unwrap_or(Service::Imessage);
        let conversation = if style == 43 {
            let sql = "SELECT DISTINCT h.id FROM chat_handle_join j
                 JOIN handle h ON h.ROWID = j.handle_id WHERE j.chat_id = ? ORDER BY h.id";
            let members = self
                .conn
                .prepare_cached(sql)
                .and_then(|mut s| s.query_map([rowid], |r| r.get(0))?.collect())
                .map_err(&doing)?;
            Conversation::Group { id, members }
        } else {
            Conversation::Direct(id)
        };
        Ok(Some(Chat { rowid, service, conversation }))
    }

    /// Whether there is a group of that id (`chat…`).
    pub fn has_group(&self, id: &str) -> Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM chat WHERE style = 43 AND chat_identifier = ?")
            .and_then(|mut statement| statement.exists([id]))
            .map_err(sqlite("cannot find the chat"))
    }

    /// How many messages there are.
    pub fn messages(&self) -> Result<i64> {
        self.conn
            .prepare_cached("SELECT count(*) FROM message")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(sqlite("cannot count messages"))
    }

    /// Writes the WAL into the file, deletes it and its index, and opens the file anew, as happens
    /// when Messages quits (imsg#126). Readers keep the deleted files open until they look.
    pub fn drop_wal(&mut self) -> Result<()> {
        let doing = sqlite("cannot drop the WAL");
        self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(&doing)?;
        self.close()?;
        remove_wal(&self.path)?;
        (self.conn, self.columns) = connect(&self.path, self.macos)?;
        Ok(())
    }

    /// Opens the file anew: another one may be in its place. The old one is left as it is, without
    /// the checkpoint and the removal of the WAL that the last connection otherwise ends with,
    /// since a WAL of that name now belongs to the new one.
    pub fn reopen(&mut self) -> Result<()> {
        self.conn
            .set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(sqlite("cannot leave the old file alone"))?;
        self.close()?;
        (self.conn, self.columns) = connect(&self.path, self.macos)?;
        self.newest.clear();
        self.correspondents.clear();
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let doing = sqlite("cannot close chat.db");
        // In memory only while the file is closed.
        let none = Connection::open_in_memory().map_err(&doing)?;
        std::mem::replace(&mut self.conn, none).close().map_err(|(_, error)| doing(error))
    }
}

/// Deletes the WAL of a chat.db and its index.
pub(crate) fn remove_wal(db: &Path) -> Result<()> {
    for suffix in ["-wal", "-shm"] {
        let mut path = db.to_owned().into_os_string();
        path.push(suffix);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(ChatDbError::Io { doing: "remove", path: path.into(), source });
            }
        }
    }
    Ok(())
}

/// A guid made from the phone's number.
fn account_guid(number: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, number.as_bytes());
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string().to_uppercase()
}

fn connect(path: &Path, macos: MacOs) -> Result<(Connection, Columns)> {
    let doing = sqlite("cannot open chat.db");
    let conn = Connection::open(path).map_err(&doing)?;
    conn.busy_timeout(BUSY).map_err(&doing)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    conn.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;").map_err(&doing)?;
    schema::register_functions(&conn).map_err(&doing)?;
    let exists: bool = conn
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'message')",
            [],
            |row| row.get(0),
        )
        .map_err(&doing)?;
    if !exists {
        let making = sqlite("cannot make chat.db");
        conn.execute_batch("BEGIN").map_err(&making)?;
        conn.execute_batch(macos.tables()).map_err(&making)?;
        conn.execute_batch(macos.indexes()).map_err(&making)?;
        conn.execute_batch("COMMIT").map_err(&making)?;
    }
    let columns = columns_of(&conn)?;
    Ok((conn, columns))
}

/// The tables that the sandbox writes.
const TABLES: [&str; 10] = [
    "message",
    "chat",
    "handle",
    "attachment",
    "chat_message_join",
    "chat_handle_join",
    "chat_service",
    "message_attachment_join",
    "chat_recoverable_message_join",
    "sync_deleted_messages",
];

fn columns_of(conn: &Connection) -> Result<Columns> {
    let doing = sqlite("cannot read the columns of chat.db");
    let mut columns = HashMap::new();
    for table in TABLES {
        let names: HashSet<String> = conn
            .prepare("SELECT name FROM pragma_table_info(?)")
            .and_then(|mut statement| statement.query_map([table], |row| row.get(0))?.collect())
            .map_err(&doing)?;
        if !names.is_empty() {
            columns.insert(table, names);
        }
    }
    Ok(columns)
}

#[cfg(test)]
mod tests;
