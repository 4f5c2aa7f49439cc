//! Reading real SQLite files with Apple's schemas: every version, every state of a file, and never
//! a write.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed assumption fails the test")]

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::archive::{Value, archive};
use bridge::chatdb::{Cause, ChatDb, Identity, Place, SentQuery, Sought, Verified, Watch, verify};
use bridge::inbound::{Batch, Inbox, Patience, Skip, Told, Window};
use bridge::typedstream::{FILE_TRANSFER_GUID, MESSAGE_PART};
use bridge::watch::{Args, Since, WatchError};
use protocol::pipe::{ConversationKind, Event, TransferState};
use protocol::{Channel, Reason, Recipient, UnixMs};
use rusqlite::{Connection, params};
use sandbox::chatdb::Conversation;
use sandbox::chatdb::kinds::{Author, Row as Written};
use sandbox::clock::AppleNs;
use tempfile::TempDir;

const VERSIONS: [u32; 6] = [12, 13, 14, 15, 26, 27];
/// The tables that the macOS 14 source does not have.
const JOINS: &str = "
    CREATE TABLE attachment (ROWID INTEGER PRIMARY KEY AUTOINCREMENT, guid TEXT UNIQUE NOT NULL, filename TEXT, mime_type TEXT,
        transfer_state INTEGER DEFAULT 0, transfer_name TEXT, total_bytes INTEGER DEFAULT 0, original_guid TEXT UNIQUE NOT NULL);
    CREATE TABLE chat_message_join (chat_id INTEGER REFERENCES chat (ROWID), message_id INTEGER REFERENCES message (ROWID),
        message_date INTEGER DEFAULT 0, PRIMARY KEY (chat_id, message_id));
    CREATE TABLE message_attachment_join (message_id INTEGER, attachment_id INTEGER, UNIQUE(message_id, attachment_id));
    CREATE INDEX chat_message_join_idx_message_id_only ON chat_message_join(message_id);";
/// 2026-11-22T12:00:00Z.
const NOON: UnixMs = UnixMs(1_795_348_800_000);
const ANNA: &str = "+12025550101";
const BERT: &str = "+12025550102";

/// A chat.db as Messages would have it, with a connection that writes to it.
struct Messages {
    folder: TempDir,
    connection: Connection,
}

/// A row to write.
struct New<'n> {
    guid: &'n str,
    from_me: bool,
    handle: Option<&'n str>,
    chat: Option<&'n str>,
    text: Option<&'n str>,
    body: Option<Vec<u8>>,
    service: &'n str,
    at: UnixMs,
    more: &'n [(&'n str, rusqlite::types::Value)],
}

impl Default for New<'_> {
    fn default() -> Self {
        Self {
            guid: "",
            from_me: false,
            handle: Some(ANNA),
            chat: Some("iMessage;-;+12025550101"),
            text: None,
            body: None,
            service: "iMessage",
            at: NOON,
            more: &[],
        }
    }
}

fn apple(at: UnixMs) -> i64 {
    (at.0 - 978_307_200_000) * 1_000_000
}

fn schema(version: u32) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/data/chatdb-schema/macos{version}.sql"));
    let sql = std::fs::read_to_string(path).unwrap();
    if version == 14 { sql + JOINS } else { sql }
}

impl Messages {
    fn new(version: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let connection = Self::create(&folder.path().join("chat.db"), version);
        Self { folder, connection }
    }

    fn create(path: &Path, version: u32) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.execute_batch(&schema(version)).unwrap();
        connection
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("chat.db")
    }

    fn open(&self) -> ChatDb {
        ChatDb::open(self.path()).unwrap()
    }

    fn handle(&self, id: &str, service: &str) -> i64 {
        self.connection
            .execute("INSERT OR IGNORE INTO handle (id, service) VALUES (?1, ?2)", [id, service])
            .unwrap();
        self.connection
            .query_row(
                "SELECT ROWID FROM handle WHERE id = ?1 AND service = ?2",
                [id, service],
                |row| row.get(0),
            )
            .unwrap()
    }

    fn join(&self, chat: &str, rowid: i64) {
        let group = chat.contains(";+;");
        let identifier = chat.splitn(3, ';').nth(2).unwrap();
        let service = chat.split(';').next().unwrap();
        self.connection
            .execute(
                "INSERT OR IGNORE INTO chat (guid, style, chat_identifier, service_name) VALUES (?1, ?2, ?3, ?4)",
                params![chat, if group { 43 } else { 45 }, identifier, service],
            )
            .unwrap();
        self.connection
            .execute(
                "INSERT INTO chat_message_join (chat_id, message_id) SELECT ROWID, ?2 FROM chat WHERE guid = ?1",
                params![chat, rowid],
            )
            .unwrap();
    }

    fn attach(&self, rowid: i64, guid: &str) {
        self.connection
            .execute(
                "INSERT INTO attachment (guid, original_guid, transfer_name, mime_type, total_bytes, transfer_state, filename)
                 VALUES (?1, ?1, ?1 || '.png', 'image/png', 42, 5, '~/x')",
                [guid],
            )
            .unwrap();
        self.connection
            .execute(
                "INSERT INTO message_attachment_join (message_id, attachment_id) SELECT ?1, ROWID FROM attachment WHERE guid = ?2",
                params![rowid, guid],
            )
            .unwrap();
        self.set(rowid, "cache_has_attachments", 1);
    }

    fn write(&self, new: &New<'_>) -> i64 {
        let handle = new.handle.map_or(0, |id| self.handle(id, new.service));
        self.connection
            .execute(
                "INSERT INTO message (guid, is_from_me, handle_id, text, attributedBody, service, date) VALUES (?1,?2,?3,?4,?5,?6,?7)",
                params![new.guid, new.from_me, handle, new.text, new.body, new.service, apple(new.at)],
            )
            .unwrap();
        let rowid = self.connection.last_insert_rowid();
        for (column, value) in new.more {
            self.set(rowid, column, value.clone());
        }
        if let Some(chat) = new.chat {
            self.join(chat, rowid);
        }
        rowid
    }

    fn set(&self, rowid: i64, column: &str, value: impl rusqlite::ToSql) {
        let sql = format!("UPDATE message SET {column} = ?2 WHERE ROWID = ?1");
        self.connection.execute(&sql, params![rowid, value]).unwrap();
    }

    /// Puts a copy of this database in the place of another one.
    fn replace(&self, path: &Path) {
        self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        let copy = self.folder.path().join("copy.db");
        std::fs::copy(self.path(), &copy).unwrap();
        for suffix in ["-wal", "-shm"] {
            let file = PathBuf::from(format!("{}{suffix}", path.display()));
            if file.exists() {
                std::fs::remove_file(file).unwrap();
            }
        }
        std::fs::rename(copy, path).unwrap();
    }

    /// Apple's triggers call functions of Apple's code when something is deleted.
    fn delete(&self, rowid: i64) {
        let names: Vec<String> = self
            .connection
            .prepare("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        for name in names {
            self.connection.execute_batch(&format!("DROP TRIGGER \"{name}\"")).unwrap();
        }
        self.connection.execute("DELETE FROM message WHERE ROWID = ?1", [rowid]).unwrap();
    }

    fn text(&self, guid: &str, text: &str) -> i64 {
        self.write(&New { guid, body: Some(body(text)), ..New::default() })
    }

    fn sent(&self, guid: &str, text: &str) -> i64 {
        self.write(&New { guid, from_me: true, body: Some(body(text)), ..New::default() })
    }
}

fn body(text: &str) -> Vec<u8> {
    let part = [(MESSAGE_PART, Value::Number(0))];
    archive(text, &[(text.encode_utf16().count(), &part)])
}

fn number(text: &str) -> Recipient {
    text.parse().unwrap()
}

fn received(event: &Event) -> &protocol::pipe::Received {
    let Event::Received(received) = event else { panic!("not received: {event:?}") };
    received
}

#[test]
fn rows_of_every_macos_version_are_read_alike() {
    for version in VERSIONS {
        let messages = Messages::new(version);
        let inbound = messages.text("IN", "hé 😃");
        let plain = messages.write(&New { guid: "PLAIN", text: Some("plain"), ..New::default() });
        let group = messages.write(&New {
            guid: "GROUP",
            text: Some("all"),
            handle: Some(BERT),
            chat: Some("any;+;chat831"),
            ..New::default()
        });
        let own = messages.sent("OWN", "out");
        messages.set(own, "is_sent", 1);
        messages.set(own, "date_delivered", apple(NOON));
        let db = messages.open();
        let rows = db.rows_after(0, 1000).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.rowid, row.guid.as_str(), row.text.as_str(), row.from_me))
            .collect();
        assert_eq!(
            seen,
            [
                (inbound, "IN", "hé 😃", false),
                (plain, "PLAIN", "plain", false),
                (group, "GROUP", "all", false),
                (own, "OWN", "out", true)
            ],
            "macOS {version}"
        );
        assert!(
            rows.iter()
                .all(|row| row.at == Some(NOON) && row.status.service == Some(Channel::Imessage))
        );
        let Place::In(place) = &rows[2].place else { panic!("macOS {version}: no chat") };
        let place = &place.conversation;
        assert_eq!((place.kind, place.id.as_str()), (ConversationKind::Group, "chat831"));
        assert_eq!(rows[2].handle.as_deref(), Some(BERT));
        assert!(rows[3].status.is_sent);
        assert_eq!(rows[3].status.date_delivered, Some(NOON));
        let ids: Vec<i64> = rows.iter().map(|row| row.rowid).collect();
        assert_eq!(
            db.rows_by_ids(&ids).unwrap(),
            rows,
            "macOS {version}: both ways of reading agree"
        );
        assert_eq!(db.rows_after(inbound, 2).unwrap(), rows[1..3]);
        assert_eq!(db.rows_by_ids(&[own, 999]).unwrap(), rows[3..]);
        assert_eq!(db.max_rowid().unwrap(), own);
        assert_eq!(db.guid_at(own).unwrap().as_deref(), Some("OWN"));
        assert_eq!(db.guid_at(own + 1).unwrap(), None);
        assert_eq!(db.rowid_before(NOON).unwrap(), inbound - 1);
        assert_eq!(db.rowid_before(NOON.plus_ms(1)).unwrap(), own);
    }
}

#[test]
fn attachments_come_in_the_order_of_the_text() {
    for version in VERSIONS {
        let messages = Messages::new(version);
        let file = |guid| [(FILE_TRANSFER_GUID, Value::Text(guid))];
        let (second, first) = (file("at_1_X"), file("at_0_X"));
        let body = archive("\u{fffc}and\u{fffc}", &[(1, &second), (3, &[]), (1, &first)]);
        let rowid = messages.write(&New { guid: "X", body: Some(body), ..New::default() });
        let db = messages.open();
        let row = || db.rows_by_ids(&[rowid]).unwrap().remove(0);
        assert!(row().missing_attachments(), "before their joins");
        messages.attach(rowid, "at_0_X");
        assert!(row().missing_attachments());
        messages.attach(rowid, "at_1_X");
        let row = row();
        assert!(!row.missing_attachments());
        let names: Vec<_> = row.attachments.iter().map(|file| file.guid.as_str()).collect();
        assert_eq!(names, ["at_1_X", "at_0_X"], "macOS {version}");
        assert_eq!(row.attachments[0].name.as_deref(), Some("at_1_X.png"));
        assert_eq!(
            (row.attachments[0].bytes, row.attachments[0].state),
            (42, TransferState::Complete)
        );
        assert_eq!(row.visible_text(), "and");
    }
}

#[test]
fn a_send_is_found_by_chat_and_text_above_the_mark_only() {
    for version in VERSIONS {
        let messages = Messages::new(version);
        messages.sent("OLD", "hello");
        let db = messages.open();
        let mark = db.max_rowid().unwrap();
        let anna = number(ANNA);
        let query = |text: &'static str| SentQuery {
            above_rowid: mark,
            to: &anna,
            content: Sought::Text(text),
            channel: None,
        };
        let guids = |query: &SentQuery<'_>| -> Vec<String> {
            db.find_sent(query).unwrap().into_iter().map(|row| row.guid).collect()
        };
        assert_eq!(guids(&query("hello")), [""; 0], "an older one of the same text is not it");
        messages.text("INBOUND", "hello");
        messages.write(&New {
            guid: "ELSEWHERE",
            from_me: true,
            handle: Some(BERT),
            chat: Some("iMessage;-;+12025550102"),
            body: Some(body("hello")),
            ..New::default()
        });
        messages.sent("OTHER TEXT", "hello there");
        assert_eq!(guids(&query("hello")), [""; 0]);
        // In no chat yet, but with the right handle.
        let pending = messages.write(&New {
            guid: "MINE",
            from_me: true,
            chat: None,
            body: Some(body("hello")),
            ..New::default()
        });
        let found = db.find_sent(&query(" hello\n")).unwrap();
        assert_eq!(
            (found[0].guid.as_str(), found[0].exact, found[0].placed),
            ("MINE", true, false)
        );
        messages.join("any;-;+12025550101", pending);
        assert!(db.find_sent(&query("hello")).unwrap()[0].placed);
        // Rewritten by Messages, and sent as SMS in a chat of its own.
        messages.write(&New {
            guid: "SMART",
            from_me: true,
            chat: Some("SMS;-;+12025550101"),
            service: "SMS",
            text: Some("it\u{2019}s \u{201c}me\u{201d}\u{2026}"),
            ..New::default()
        });
        let found = db.find_sent(&query("it's \"me\"...")).unwrap();
        assert_eq!((found[0].guid.as_str(), found[0].exact), ("SMART", false));
        let only = |channel| SentQuery { channel: Some(channel), ..query("it's \"me\"...") };
        assert_eq!(guids(&only(Channel::Imessage)), [""; 0]);
        assert_eq!(guids(&only(Channel::Sms)), ["SMART"]);
        // A group, by its id; a direct message with its name does not count.
        messages.write(&New {
            guid: "TO GROUP",
            from_me: true,
            handle: None,
            chat: Some("any;+;chat831"),
            body: Some(body("all")),
            ..New::default()
        });
        let group = number("group:chat831");
        let to_group = SentQuery { to: &group, ..query("all") };
        assert_eq!(guids(&to_group), ["TO GROUP"]);
        assert_eq!(guids(&query("all")), [""; 0]);
    }
}

#[test]
fn what_the_account_sent_in_a_time_is_found_by_date_whoever_sent_it() {
    let mut indexed = 0;
    for version in VERSIONS {
        let messages = Messages::new(version);
        let at = |guid, minute: i64, handle| {
            messages.write(&New {
                guid,
                from_me: true,
                handle: Some(handle),
                chat: (handle != ANNA)
                    .then_some("any;-;+12025550102")
                    .or(Some("any;-;+12025550101")),
                at: NOON.plus_ms(minute * 60_000),
                body: Some(body("hello")),
                ..New::default()
            })
        };
        // In an order that is not that of their dates, as iCloud puts them in.
        at("LATER", 30, ANNA);
        at("SECOND", 12, ANNA);
        at("FIRST", 11, ANNA);
        at("BEFORE", 2, ANNA);
        at("TO BERT", 12, BERT);
        messages.text("INBOUND", "hello");
        let db = messages.open();
        let anna = number(ANNA);
        let between = (NOON.plus_ms(600_000), NOON.plus_ms(900_000));
        // Some of the schemas were published without their indexes.
        let Some(found) = db.find_dated(between, &anna, "hello").unwrap() else { continue };
        indexed += 1;
        let guids: Vec<&str> = found.iter().map(|row| row.guid.as_str()).collect();
        assert_eq!(guids, ["FIRST", "SECOND"]);
        assert!(found.iter().all(|row| row.certain));
        assert_eq!(db.find_dated(between, &anna, "hell").unwrap().unwrap(), []);
    }
    assert!(indexed > 0);
}

#[test]
fn reactions_scheduled_messages_and_empty_rows_are_not_sends() {
    let messages = Messages::new(27);
    let own = |guid, text: Option<&'static str>, more: &[(&str, rusqlite::types::Value)]| {
        messages.write(&New { guid, from_me: true, text, more, ..New::default() })
    };
    own("REACTION", Some("hi"), &[("associated_message_type", 2000.into())]);
    own("LATER", Some("hi"), &[("schedule_type", 2.into())]);
    own("NOTICE", Some("hi"), &[("item_type", 2.into())]);
    own("EMPTY", None, &[]);
    let db = messages.open();
    let anna = number(ANNA);
    for text in ["hi", "", " ", "\u{fffc}"] {
        let query =
            SentQuery { above_rowid: 0, to: &anna, content: Sought::Text(text), channel: None };
        let found: Vec<_> = db.find_sent(&query).unwrap().into_iter().map(|row| row.guid).collect();
        assert!(found.iter().all(|guid| guid == "EMPTY"), "{text:?} found {found:?}");
        assert!(text.trim().is_empty() || found.is_empty());
    }
}

#[test]
fn a_ghost_row_is_own_empty_and_in_no_chat() {
    let messages = Messages::new(26);
    let ghost = messages.write(&New {
        guid: "GHOST",
        from_me: true,
        handle: Some("chat831"),
        chat: None,
        text: Some(""),
        service: "SMS",
        ..New::default()
    });
    messages.write(&New { guid: "IN CHAT", from_me: true, ..New::default() });
    messages.write(&New {
        guid: "TEXT",
        from_me: true,
        chat: None,
        text: Some("x"),
        ..New::default()
    });
    messages.write(&New { guid: "INBOUND", chat: None, ..New::default() });
    let db = messages.open();
    let guids = |above, to: &str| -> Vec<String> {
        db.ghost_rows(above, &number(to)).unwrap().into_iter().map(|row| row.guid).collect()
    };
    assert_eq!(guids(0, "group:chat831"), ["GHOST"]);
    assert_eq!(guids(ghost, "group:chat831"), [""; 0]);
    assert_eq!(guids(0, ANNA), [""; 0], "its handle is another one");
    let unjoined: Vec<_> = db.recent_unjoined().unwrap().into_iter().map(|row| row.guid).collect();
    assert_eq!(unjoined, ["GHOST", "TEXT", "INBOUND"]);
}

#[test]
fn states_follow_the_columns() {
    for version in VERSIONS {
        let messages = Messages::new(version);
        let rowid = messages.sent("OWN", "x");
        let db = messages.open();
        let state = || db.send_states(&[rowid, 77]).unwrap().remove(0);
        assert_eq!(db.send_states(&[rowid, 77]).unwrap().len(), 1);
        assert!(!state().status.is_sent && state().status.error == 0);
        let version_before = db.data_version().unwrap();
        assert_eq!(db.data_version().unwrap(), version_before);
        for (column, value) in [
            ("is_sent", 1),
            ("is_finished", 1),
            ("is_delivered", 1),
            ("error", 22),
            ("was_downgraded", 1),
        ] {
            messages.set(rowid, column, value);
        }
        assert_ne!(db.data_version().unwrap(), version_before);
        messages.set(rowid, "date_read", apple(NOON));
        messages.set(rowid, "service", "rcs");
        let status = state().status;
        assert!(
            status.is_sent && status.is_finished && status.is_delivered && status.was_downgraded
        );
        assert_eq!(
            (status.error, status.date_read, status.service),
            (22, Some(NOON), Some(Channel::Rcs))
        );
        messages.set(rowid, "date_read", i64::MAX);
        assert_eq!(state().status.date_read, None, "bogus dates are none");
    }
}

#[test]
fn an_existing_chat_is_found_in_the_form_of_the_database() {
    let messages = Messages::new(26);
    for chat in ["iMessage;-;+12025550101", "SMS;-;+12025550101", "any;+;chat831"] {
        let rowid = messages.write(&New {
            guid: chat,
            chat: Some(chat),
            text: Some("x"),
            ..New::default()
        });
        assert!(rowid > 0);
    }
    let db = messages.open();
    let chat = |to: &str, channel| {
        db.existing_chat_for(&number(to), channel).unwrap().map(|chat| chat.guid)
    };
    assert_eq!(chat(ANNA, Channel::Imessage).as_deref(), Some("iMessage;-;+12025550101"));
    assert_eq!(chat(ANNA, Channel::Sms).as_deref(), Some("SMS;-;+12025550101"));
    assert_eq!(chat(ANNA, Channel::Rcs), None);
    assert_eq!(chat(BERT, Channel::Imessage), None);
    assert_eq!(chat("group:chat831", Channel::Imessage).as_deref(), Some("any;+;chat831"));
    assert_eq!(chat("group:+12025550101", Channel::Imessage), None, "a direct chat is not a group");
}

#[test]
fn reading_never_changes_the_database_or_its_wal() {
    for version in VERSIONS {
        let messages = Messages::new(version);
        for at in 0..50 {
            messages.text(&format!("G{at}"), "text");
        }
        let bytes = |path: &Path| {
            let wal = PathBuf::from(format!("{}-wal", path.display()));
            (std::fs::read(path).unwrap(), std::fs::read(wal).ok())
        };
        let read = |path: &Path| {
            let db = ChatDb::open(path).unwrap();
            let rows = db.rows_after(0, 1000).unwrap();
            assert_eq!(rows.len(), 50);
            let ids: Vec<i64> = rows.iter().map(|row| row.rowid).collect();
            db.rows_by_ids(&ids).unwrap();
            db.send_states(&ids).unwrap();
            db.recent_unjoined().unwrap();
            db.identity().unwrap();
            db.cursor_at(20).unwrap();
            db.data_version().unwrap();
        };
        let path = messages.path();
        let before = bytes(&path);
        assert!(before.1.as_ref().is_some_and(|wal| !wal.is_empty()), "the test is about a WAL");
        read(&path);
        assert!(before == bytes(&path), "macOS {version}: while Messages has it open");
        // As the last one to close: a copy of both files that nobody else has open.
        let copy = messages.folder.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::copy(
            messages.folder.path().join("chat.db-wal"),
            messages.folder.path().join("copy.db-wal"),
        )
        .unwrap();
        let before = bytes(&copy);
        read(&copy);
        assert!(before == bytes(&copy), "macOS {version}: as the last one to close");
    }
}

#[test]
fn a_database_that_cannot_be_read_says_why_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let cause = |path: &Path| {
        let error = ChatDb::open(path).unwrap_err();
        assert!(error.to_string().contains(error.cause.remedy()));
        assert!(error.to_signal().remedy.contains(error.cause.remedy()));
        error.cause
    };
    assert_eq!(cause(&folder.path().join("none.db")), Cause::Missing);
    assert_eq!(cause(&folder.path().join("none/chat.db")), Cause::Missing);
    assert_eq!(cause(Path::new(":memory:")), Cause::Missing);
    assert_eq!(cause(folder.path()), Cause::Empty);
    assert_eq!(cause(&file("empty.db", b"")), Cause::Empty);
    assert_eq!(cause(&file("text.db", &b"not a database ".repeat(100))), Cause::Foreign);
    let foreign = folder.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE message (guid TEXT)").unwrap();
    assert_eq!(cause(&foreign), Cause::Foreign);
    let reasons: BTreeSet<_> =
        [Cause::Missing, Cause::Denied, Cause::Locked, Cause::Foreign].map(Cause::reason).into();
    assert_eq!(
        reasons,
        BTreeSet::from([
            Reason::DatabaseMissing,
            Reason::DatabasePermission,
            Reason::DatabaseLocked,
            Reason::DatabaseForeign
        ])
    );

    // A whole database, folded into one file, cut at many places: an error or fewer rows, never a
    // panic.
    let messages = Messages::new(15);
    for at in 0..200 {
        messages.text(&format!("G{at}"), &"long text ".repeat(20));
    }
    messages.connection.execute_batch("PRAGMA journal_mode = delete").unwrap();
    let whole = std::fs::read(messages.path()).unwrap();
    let mut damaged = 0;
    for length in (1..whole.len()).step_by(whole.len() / 60) {
        let path = file("cut.db", &whole[..length]);
        let read = ChatDb::open(&path).and_then(|db| db.rows_after(0, 1000));
        match read {
            Ok(rows) => assert!(rows.len() <= 200),
            Err(error) => {
                assert!(matches!(error.cause, Cause::Damaged | Cause::Foreign), "{error}");
                damaged += 1;
            }
        }
    }
    assert!(damaged > 30, "a cut database is noticed ({damaged} of 60)");
}

#[test]
fn a_locked_database_is_said_to_be_locked() {
    let messages = Messages::new(15);
    messages.text("G", "x");
    messages.connection.execute_batch("PRAGMA journal_mode = delete; BEGIN EXCLUSIVE").unwrap();
    assert_eq!(ChatDb::open(messages.path()).unwrap_err().cause, Cause::Locked);
    messages.connection.execute_batch("COMMIT").unwrap();
    assert_eq!(messages.open().rows_after(0, 9).unwrap().len(), 1);
}

#[test]
fn a_forbidden_database_asks_for_full_disk_access() {
    let messages = Messages::new(15);
    let path = messages.path();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&path).is_ok() {
        // Root may open anything: the code that SQLite gives is checked instead.
        return;
    }
    let error = ChatDb::open(&path).unwrap_err();
    assert_eq!(error.cause, Cause::Denied);
    assert!(error.to_string().contains("Full Disk Access"));
}

#[test]
fn a_cursor_survives_deletions_and_notices_a_rebuild() {
    let messages = Messages::new(15);
    let first = messages.text("A", "a");
    let last = messages.text("B", "b");
    let db = messages.open();
    let cursor = db.cursor_at(last).unwrap();
    assert_eq!((cursor.rowid, cursor.guid.as_str()), (last, "B"));
    assert_eq!(Identity::from_text(&cursor.identity.to_text()), Some(cursor.identity.clone()));
    let check = |db: &ChatDb| verify(&cursor, &db.cursor_facts(&cursor).unwrap());
    assert_eq!(check(&db), Verified::Good);
    messages.delete(last);
    assert_eq!(db.max_rowid().unwrap(), first);
    assert_eq!(check(&db), Verified::Good, "rowids are not given out again");
    assert_eq!(db.cursor_at(last).unwrap().guid, "A");
    messages.text("C", "c");
    assert_eq!(check(&db), Verified::Good);

    let other = Messages::new(15);
    other.text("X", "x");
    assert!(matches!(check(&other.open()), Verified::Resync(_)), "younger");
    other.text("Y", "y");
    assert!(matches!(check(&other.open()), Verified::Resync(_)), "renumbered");
}

/// One turn of reading, as the daemon makes it.
fn hear(db: &ChatDb, inbox: &mut Inbox, now: UnixMs) -> Vec<Event> {
    let held = db.rows_by_ids(&inbox.held()).unwrap();
    let rows = db.rows_after(inbox.read_to(), 1000).unwrap();
    let batch = Batch { held: &held, ..Batch::of(&rows) };
    let heard = inbox.take(batch, now).heard.into_iter();
    heard
        .filter_map(|heard| match heard.told {
            Told::Event(event) => Some(event),
            Told::Own(_) => None,
        })
        .collect()
}

fn inbox() -> Inbox {
    Inbox::new(0, None, Patience::default())
}

#[test]
fn a_row_before_its_join_is_held_and_then_told_anyway() {
    let messages = Messages::new(26);
    let db = messages.open();
    let mut inbox = inbox();
    let joined_later =
        messages.write(&New { guid: "LATER", chat: None, text: Some("1"), ..New::default() });
    let never = messages.write(&New {
        guid: "NEVER",
        chat: None,
        text: Some("2"),
        handle: Some(BERT),
        ..New::default()
    });
    messages.text("WHOLE", "3");
    let told: Vec<_> =
        hear(&db, &mut inbox, NOON).iter().map(|e| received(e).guid.clone()).collect();
    assert_eq!(told, ["WHOLE"], "others do not wait");
    assert_eq!(inbox.held(), [joined_later, never]);
    assert_eq!(inbox.safe_rowid(), joined_later - 1, "what is remembered stays below");
    messages.join("any;+;chat831", joined_later);
    let events = hear(&db, &mut inbox, NOON.plus_ms(9_999));
    assert_eq!(events.len(), 1);
    assert_eq!(received(&events[0]).conversation.id, "chat831");
    assert_eq!(inbox.safe_rowid(), never - 1);
    let events = hear(&db, &mut inbox, NOON.plus_ms(10_000));
    let last = received(&events[0]);
    assert_eq!((last.guid.as_str(), last.conversation.kind), ("NEVER", ConversationKind::Direct));
    assert_eq!(last.conversation.id, BERT);
    assert_eq!(inbox.held(), [0; 0]);
    assert_eq!(inbox.safe_rowid(), db.max_rowid().unwrap());
    assert_eq!(hear(&db, &mut inbox, NOON.plus_ms(20_000)), []);
}

#[test]
fn text_and_files_that_come_by_a_later_update_are_waited_for() {
    let messages = Messages::new(15);
    let db = messages.open();
    let mut inbox = inbox();
    let text = messages.write(&New { guid: "TEXT", ..New::default() });
    let photo = messages.write(&New { guid: "PHOTO", text: Some("\u{fffc}"), ..New::default() });
    let gone = messages.write(&New { guid: "GONE", ..New::default() });
    assert_eq!(hear(&db, &mut inbox, NOON), []);
    messages.set(text, "attributedBody", body("here"));
    messages.attach(photo, "at_0_P");
    messages.delete(gone);
    let events = hear(&db, &mut inbox, NOON.plus_ms(500));
    assert_eq!(received(&events[0]).text, "here");
    assert_eq!(
        (received(&events[1]).text.as_str(), received(&events[1]).attachments.len()),
        ("", 1)
    );
    assert_eq!(inbox.held(), [gone]);
    assert_eq!(hear(&db, &mut inbox, NOON.plus_ms(10_500)), []);
    assert_eq!(inbox.held(), [0; 0], "a row that is gone is not waited for");
    messages.write(&New { guid: "NOTHING", ..New::default() });
    assert_eq!(hear(&db, &mut inbox, NOON.plus_ms(11_000)), []);
    assert_eq!(hear(&db, &mut inbox, NOON.plus_ms(21_000)), []);
    assert_eq!(inbox.skipped().get(&Skip::Empty), Some(&1));
}

#[test]
fn what_icloud_puts_in_afterwards_is_late_and_a_wrong_clock_is_not_believed() {
    let messages = Messages::new(15);
    let hours = |n: i64| NOON.plus_ms(n * 3_600_000);
    for (guid, at) in [
        ("FUTURE", hours(48)),
        ("NEW", hours(-1)),
        ("SIX", hours(-6)),
        ("OLD", hours(-7)),
        ("AGAIN", hours(0)),
    ] {
        messages.write(&New { guid, text: Some(guid), at, ..New::default() });
    }
    let late: Vec<_> = hear(&messages.open(), &mut inbox(), NOON)
        .iter()
        .map(|event| (received(event).guid.clone(), received(event).late))
        .collect();
    let expected =
        [("FUTURE", false), ("NEW", false), ("SIX", false), ("OLD", true), ("AGAIN", false)];
    assert_eq!(late, expected.map(|(guid, late)| (guid.to_owned(), late)));
}

#[test]
fn kinds_of_rows_become_their_events() {
    let messages = Messages::new(27);
    let target = "262F0210-126B-40E1-8247-C3EECF585C66";
    let reaction = |guid, kind: i64, about: String| {
        messages.write(&New {
            guid,
            more: &[
                ("associated_message_type", kind.into()),
                ("associated_message_guid", about.into()),
                ("associated_message_emoji", "🎉".to_owned().into()),
            ],
            ..New::default()
        });
    };
    reaction("R1", 2000, format!("p:2/{target}"));
    reaction("R2", 3006, format!("bp:{target}"));
    reaction("R3", 1000, format!("p:0/{target}"));
    let notice = |guid, chat, more: &[(&str, rusqlite::types::Value)]| {
        messages.write(&New { guid, chat: Some(chat), from_me: true, more, ..New::default() });
    };
    let bert = messages.handle(BERT, "iMessage");
    notice(
        "N1",
        "any;+;chat1",
        &[("item_type", 2.into()), ("group_title", "Friends".to_owned().into())],
    );
    notice("N2", "any;+;chat1", &[("item_type", 1.into()), ("other_handle", bert.into())]);
    notice("N3", "any;-;+12025550101", &[("item_type", 2.into())]);
    notice("N4", "any;+;chat1", &[("item_type", 6.into())]);
    messages.sent("OWN", "own");
    messages.write(&New {
        guid: "SHORT",
        handle: Some("22395"),
        chat: Some("SMS;-;22395"),
        text: Some("code"),
        ..New::default()
    });
    messages.write(&New {
        guid: "TYPED",
        handle: Some("+1 (202) 555-0102"),
        text: Some("x"),
        ..New::default()
    });
    messages.text("LINK", "look https://example.org");
    let written = Written::text(
        Author::Other(ANNA.to_owned()),
        Conversation::Direct(ANNA.to_owned()),
        AppleNs(apple(NOON)),
        "",
    )
    .url_preview("https://example.org", "A title");
    let preview = written.columns()["payload_data"].clone();
    messages.write(&New {
        guid: "PREVIEW",
        text: Some("https://example.org"),
        more: &[
            ("balloon_bundle_id", "com.apple.messages.URLBalloonProvider".to_owned().into()),
            ("payload_data", preview),
        ],
        ..New::default()
    });
    messages.write(&New { guid: "BAD", body: Some(vec![4; 40]), ..New::default() });
    let mut inbox = inbox();
    let events = hear(&messages.open(), &mut inbox, NOON);
    let told: Vec<String> = events
        .iter()
        .map(|event| {
            if let Event::Reaction(r) = event {
                let about = r.target == target;
                format!("{} {} {} {} {about}", r.guid, r.kind, r.part, r.removed)
            } else if let Event::Notice(n) = event {
                format!("{} {} {}", n.guid, n.kind, n.conversation.id)
            } else if let Event::Group(g) = event {
                format!("{} {} {:?} {}", g.guid, g.change, g.subject, g.conversation.id)
            } else {
                let r = received(event);
                format!("{} {} {}", r.guid, r.from, r.text)
            }
        })
        .collect();
    assert_eq!(
        told,
        [
            "R1 love 2 false true",
            "R2 emoji 0 true true",
            "R3 sticker 0 false true",
            "N1 renamed Some(\"Friends\") chat1",
            "N2 joined Some(\"+12025550102\") chat1",
            "N3 renamed None +12025550101",
            "N4 shareplay chat1",
            "SHORT service:22395 code",
            "TYPED +12025550102 x",
            "LINK +12025550101 look https://example.org",
            "BAD +12025550101 \u{fffd}",
        ]
    );
    let skipped: Vec<_> = inbox.skipped().iter().map(|(why, count)| (*why, *count)).collect();
    assert_eq!(skipped, [(Skip::LinkPreview, 1)]);
}

#[test]
fn a_resynchronisation_tells_the_window_once() {
    let messages = Messages::new(15);
    messages.text("KNOWN", "1");
    let mut inbox = inbox();
    assert_eq!(hear(&messages.open(), &mut inbox, NOON).len(), 1);
    let other = Messages::new(15);
    other.write(&New {
        guid: "ANCIENT",
        text: Some("0"),
        at: NOON.plus_ms(-9 * 86_400_000),
        ..New::default()
    });
    other.text("MISSED", "2");
    other.text("KNOWN", "1");
    let db = other.open();
    let since = NOON.plus_ms(-7 * 86_400_000);
    inbox.resync(0, Window { up_to: db.max_rowid().unwrap(), since });
    let told: Vec<_> =
        hear(&db, &mut inbox, NOON).iter().map(|e| received(e).guid.clone()).collect();
    assert_eq!(told, ["MISSED"]);
    other.write(&New { guid: "AFTER", text: Some("3"), at: since.plus_ms(-1), ..New::default() });
    assert_eq!(hear(&db, &mut inbox, NOON).len(), 1, "the window is for the old rows only");
}

#[tokio::test]
async fn a_watch_sees_commits_and_a_new_file() {
    async fn change(changes: &mut tokio::sync::mpsc::Receiver<()>, what: &str) {
        tokio::time::timeout(Duration::from_secs(10), changes.recv())
            .await
            .unwrap_or_else(|_| panic!("not noticed: {what}"))
            .unwrap();
    }
    /// Takes what is left of earlier changes.
    async fn settle(changes: &mut tokio::sync::mpsc::Receiver<()>) {
        while tokio::time::timeout(Duration::from_millis(600), changes.recv()).await.is_ok() {}
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.db");
    let (watch, mut changes) = Watch::start(&path).unwrap();
    change(&mut changes, "the first one").await;
    settle(&mut changes).await;
    let messages = Messages { connection: Messages::create(&path, 15), folder };
    change(&mut changes, "the file is created").await;
    settle(&mut changes).await;
    messages.text("A", "a");
    change(&mut changes, "a commit").await;
    settle(&mut changes).await;
    assert!(watch.counters().polls() > 2);
    let idle = watch.counters().changes();
    settle(&mut changes).await;
    assert_eq!(watch.counters().changes(), idle, "nothing happens while nothing changes");

    let db = messages.open();
    assert!(!db.is_stale());
    let guids = |path: &Path| -> Vec<String> {
        ChatDb::open(path)
            .unwrap()
            .rows_after(0, 9)
            .unwrap()
            .into_iter()
            .map(|row| row.guid)
            .collect()
    };
    assert_eq!(guids(&path), ["A"]);

    // Another database takes its place.
    let other = Messages::new(27);
    other.text("X", "x");
    other.replace(&path);
    change(&mut changes, "another file").await;
    assert!(watch.counters().reopened() >= 2);
    assert!(db.is_stale());
    assert_eq!(guids(&path), ["X"]);
    drop(watch);
    let end = tokio::time::timeout(Duration::from_secs(5), async {
        while changes.recv().await.is_some() {}
    });
    end.await.expect("the thread ends with its watch");
}

#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Out {
    fn lines(&self) -> Vec<serde_json::Value> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Type and guid of each line.
    fn words(&self) -> Vec<String> {
        let word = |line: &serde_json::Value| {
            format!(
                "{} {}",
                line["type"].as_str().unwrap(),
                line["guid"].as_str().unwrap_or_default()
            )
        };
        self.lines().iter().map(word).collect()
    }

    async fn wait_for(&self, count: usize) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while self.lines().len() < count {
            assert!(tokio::time::Instant::now() < deadline, "only {:?}", self.words());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn watching_once_tells_everything_in_order_and_ends() {
    for version in VERSIONS {
        let messages = Messages::new(version);
        messages.text("IN", "hé");
        let own = messages.sent("OWN", "out");
        messages.set(own, "is_sent", 1);
        messages.set(own, "is_delivered", 1);
        messages.set(own, "date_read", apple(NOON));
        let failed = messages.sent("BAD", "out");
        messages.set(failed, "error", 22);
        messages.sent("SENDING", "out");
        messages.write(&New { guid: "UNJOINED", chat: None, text: Some("x"), ..New::default() });
        let out = Out::default();
        let args = |since| Args { db: messages.path(), since, once: true, poll_only: false };
        bridge::watch::run(args(Since::Start), out.clone()).await.unwrap();
        assert_eq!(
            out.words(),
            ["received IN", "sent OWN", "failed BAD", "pending SENDING", "received UNJOINED"],
            "macOS {version}"
        );
        assert_eq!(out.lines()[0]["text"], "hé");
        assert_eq!(out.lines()[1]["delivered"], true);
        assert_eq!(out.lines()[1]["read_at"], NOON.to_string());
        assert_eq!(out.lines()[2]["error"], 22);
        // Inbound lines are the protocol's events.
        serde_json::from_value::<Event>(out.lines().swap_remove(0)).unwrap();
        for (since, lines) in [
            (Since::Rowid(failed - 1), 3),
            (Since::Now, 0),
            (Since::At(NOON), 5),
            (Since::At(NOON.plus_ms(1)), 0),
        ] {
            let out = Out::default();
            bridge::watch::run(args(since), out.clone()).await.unwrap();
            assert_eq!(out.lines().len(), lines, "{since:?}");
        }
    }
    let missing = Args {
        db: "/nonexistent/chat.db".into(),
        since: Since::Start,
        once: true,
        poll_only: false,
    };
    let ended = bridge::watch::run(missing, Out::default()).await;
    assert!(matches!(ended, Err(WatchError::NotReady(why)) if why.cause == Cause::Missing));
}

#[tokio::test]
async fn watching_follows_receipts_and_a_replaced_database() {
    let messages = Messages::new(26);
    messages.text("BEFORE", "not told");
    let out = Out::default();
    let args = Args { db: messages.path(), since: Since::Now, once: false, poll_only: false };
    let reader = out.clone();
    let now = UnixMs(jiff::Timestamp::now().as_millisecond());
    tokio::select! {
        ended = bridge::watch::run(args, out) => panic!("ended: {ended:?}"),
        () = async {
            // Let it find its beginning.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let own = messages.write(&New { guid: "OWN", from_me: true, text: Some("x"), at: now, ..New::default() });
            messages.set(own, "is_sent", 1);
            reader.wait_for(1).await;
            messages.set(own, "is_delivered", 1);
            reader.wait_for(2).await;
            messages.write(&New { guid: "IN", text: Some("x"), at: now, ..New::default() });
            reader.wait_for(3).await;
            messages.set(own, "date_read", apple(now));
            reader.wait_for(4).await;
            assert_eq!(reader.words(), ["sent OWN", "delivered OWN", "received IN", "read OWN"]);

            // A rebuilt database: other numbers, one known message, one missed.
            let other = Messages::new(27);
            for (guid, at) in [("OLD", UnixMs(now.0 - 30 * 86_400_000)), ("IN", now), ("MISSED", now)] {
                other.write(&New { guid, text: Some("x"), at, ..New::default() });
            }
            other.replace(&messages.path());
            reader.wait_for(6).await;
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert_eq!(reader.words()[4..], ["resync ", "received MISSED"]);
        } => {}
    }
}
