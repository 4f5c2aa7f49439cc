//! No read grows with the database: counted in steps of SQLite's machine, not in time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::UnixMs;
use rusqlite::Connection;

use super::{ChatDb, IDS_MAX, PULSE_ROWS_DOCTOR};
use crate::clock::Now;
use crate::reading::{Forgetful, Reading};

/// Steps between two counts.
const STEPS_A_COUNT: i32 = 50;
/// Rows of the large database. One look at a column of each takes four times as many steps.
const ROWS: i64 = 40_000;
/// A batch of a thousand rows with the question whether each has anything rare, or five thousand entries of
/// an index, and a little more: ten milliseconds and less.
const STEPS_MAX: u64 = 150_000;
/// Reads one after another, of which each goes on where the one before has ended.
const READS: usize = 4;
/// 2026-11-22T12:00:00Z.
const NOON: UnixMs = UnixMs(1_795_348_800_000);
const DAY_MS: i64 = 86_400_000;

/// Steps of this and of the longest read of one connection.
#[derive(Debug, Default)]
pub(super) struct Steps {
    now: AtomicU64,
    longest: AtomicU64,
}

impl Steps {
    pub(super) fn count(self: &Arc<Self>, connection: &mut Connection) {
        let steps = Arc::clone(self);
        let count = move || {
            steps.now.fetch_add(u64::try_from(STEPS_A_COUNT).unwrap(), Ordering::Relaxed);
            false
        };
        connection.progress_handler(STEPS_A_COUNT, Some(count)).unwrap();
    }

    pub(super) fn settle(&self) {
        self.longest.fetch_max(self.now.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }
}

/// How the rows of a database are dated.
#[derive(Debug, Clone, Copy)]
enum Dated {
    /// All but the last hundred are years old.
    LongAgo,
    /// All are of today.
    Today,
}

/// A database with that many rows and Apple's indexes.
fn generate(folder: &Path, dated: Dated) -> PathBuf {
    let path = folder.join("chat.db");
    let connection = Connection::open(&path).unwrap();
    let schema = format!("{}/tests/data/chatdb-schema/macos15.sql", env!("CARGO_MANIFEST_DIR"));
    connection.execute_batch(&std::fs::read_to_string(schema).unwrap()).unwrap();
    // Apple's triggers call functions of its own, and indexes are made faster afterwards.
    drop_all(&connection, "trigger");
    let indexes = drop_all(&connection, "index");
    let (old, young) = match dated {
        Dated::LongAgo => (NOON.plus_ms(-2_000 * DAY_MS), 100),
        Dated::Today => (NOON.plus_ms(-DAY_MS), ROWS),
    };
    let date = |at: UnixMs| super::rows::apple_dates(at).0;
    connection
        .execute(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
             INSERT INTO message (guid, text, handle_id, service, date, is_from_me, is_sent)
             SELECT 'G' || n, 'text ' || n, 1, 'iMessage',
                    iif(n > ?2, ?3, ?4) + n * 1000000, n % 2, 1 FROM n",
            (ROWS, ROWS - young, date(NOON.plus_ms(-DAY_MS)), date(old)),
        )
        .unwrap();
    connection
        .execute_batch(
            "INSERT INTO handle (id, service) VALUES ('+12025550101', 'iMessage');
             INSERT INTO chat (guid, style, chat_identifier, service_name)
             VALUES ('iMessage;-;+12025550101', 45, '+12025550101', 'iMessage');
             INSERT INTO chat_message_join (chat_id, message_id, message_date)
             SELECT 1, ROWID, date FROM message;",
        )
        .unwrap();
    connection.execute_batch(&indexes.join(";")).unwrap();
    path
}

/// Drops every trigger, or every index, and gives what makes them.
fn drop_all(connection: &Connection, kind: &str) -> Vec<String> {
    let made: Vec<(String, String)> = connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = ?1 AND sql IS NOT NULL")
        .unwrap()
        .query_map([kind], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    for (name, _) in &made {
        connection.execute_batch(&format!("DROP {kind} \"{name}\"")).unwrap();
    }
    made.into_iter().map(|(_, sql)| sql).collect()
}

/// Everything that a bridge asks while it runs, in every state that it may find itself in: the steps of
/// the longest read, and where the rows of some days begin.
fn ask_everything(path: &Path) -> (u64, [i64; 5]) {
    let db = ChatDb::open(path).unwrap();
    assert_eq!(db.max_rowid().unwrap(), ROWS);
    let mut now = Now { wall: NOON, continuous_ms: 0 };
    let read = |reading: &mut Reading, now: &mut Now| {
        for _ in 0..READS {
            now.continuous_ms += 1_000;
            if !reading.read(&db, &Forgetful, IDS_MAX, *now).unwrap().more {
                return;
            }
        }
    };
    // The first look ever, one that goes on, one that reads all, and one at a foreign position.
    let mut first = Reading::restore(None, Vec::new());
    read(&mut first, &mut now);
    let at = |rowid: i64, identity: String| {
        let since = NOON.plus_ms(-3_000 * DAY_MS);
        format!(
            r#"{{"identity":"{identity}","rowid":{rowid},"guid":"G{rowid}","newest":{since},"since":{since}}}"#,
            since = since.0
        )
    };
    let identity = db.identity().unwrap().to_text();
    for cursor in [at(ROWS - 10, identity.clone()), at(1, identity), at(ROWS, "1:1:".to_owned())] {
        let mut reading = Reading::restore(Some(&cursor), Vec::new());
        reading.opened();
        read(&mut reading, &mut now);
    }
    let before = |days: i64| db.rowid_before(NOON.plus_ms(-days * DAY_MS)).unwrap();
    let edges = [0, 1, 2, 1_999, 3_000].map(before);
    db.pulse(PULSE_ROWS_DOCTOR, NOON).unwrap();
    db.census().unwrap();
    db.recent_unjoined().unwrap();
    db.highest_rowid_ever().unwrap();
    db.newest_date_at(ROWS).unwrap();
    let row = db.rows_by_ids(&[ROWS - 5]).unwrap().remove(0);
    db.original_of(&row).unwrap();
    db.rows_beside(&row, DAY_MS).unwrap();
    db.contacts("+12025550101").unwrap();
    (db.shared.longest_steps(), edges)
}

#[test]
fn no_read_grows_with_the_database_with_and_without_indexes() {
    for dated in [Dated::LongAgo, Dated::Today] {
        let folder = tempfile::tempdir().unwrap();
        let path = generate(folder.path(), dated);
        let (indexed, edges) = ask_everything(&path);
        let dropped = drop_all(&Connection::open(&path).unwrap(), "index");
        assert!(dropped.len() > 10, "the test is about indexes");
        let (bare, same) = ask_everything(&path);
        assert_eq!(edges, same, "the index and the table say the same");
        assert!(indexed.min(bare) > 1_000, "nothing was counted");
        assert!(indexed.max(bare) < STEPS_MAX, "{dated:?}: {indexed} and {bare}");
    }
}

#[test]
fn the_count_sees_a_read_of_the_whole_table() {
    let folder = tempfile::tempdir().unwrap();
    let db = ChatDb::open(generate(folder.path(), Dated::LongAgo)).unwrap();
    let _: i64 = db.one("SELECT MAX(+date) FROM message", []).unwrap();
    assert!(db.shared.longest_steps() > STEPS_MAX);
}
