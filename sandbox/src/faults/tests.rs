use super::*;
use crate::chatdb::kinds::attachment::{Attachment, Parts};
use crate::chatdb::kinds::{Author, Row};
use crate::chatdb::{ChatDb, Conversation, MacOs};

const PEERS: [&str; 3] = ["+12025550101", "+12025550102", "+12025550103"];

/// A file with thirty messages of three people, a third with attachments.
fn filled(dir: &tempfile::TempDir, macos: MacOs) -> (PathBuf, ChatDb) {
    let path = dir.path().join("chat.db");
    let mut db = ChatDb::open(&path, macos, "+15550100001").unwrap();
    for n in 0..30_usize {
        let from = PEERS[n % 3].to_owned();
        let conversation = Conversation::Direct(from.clone());
        let date = AppleNs(i64::try_from(n).unwrap() * 1_000_000_000);
        let row = Row::new(Author::Other(from), conversation, date).guid(format!("G{n:02}"));
        let parts = Parts::of(&row.guid).text(&format!("text {n}"));
        let row = if n % 3 == 0 {
            row.parts(parts.file(Attachment::new(format!("~/{n}.png"), 1)))
        } else {
            row.parts(parts)
        };
        db.write_joined(&row).unwrap();
    }
    (path, db)
}

fn rows(path: &Path, sql: &str) -> Vec<String> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut statement = conn.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(|value| value.unwrap()).collect()
}

/// Everything but the numbers.
const CONTENT: &str = "SELECT m.guid || h.id || c.guid || ifnull(a.guid, '-') || m.date
     FROM message m JOIN handle h ON h.ROWID = m.handle_id
     JOIN chat_message_join j ON j.message_id = m.ROWID JOIN chat c ON c.ROWID = j.chat_id
     JOIN chat_handle_join p ON p.chat_id = c.ROWID AND p.handle_id = h.ROWID
     LEFT JOIN message_attachment_join ma ON ma.message_id = m.ROWID
     LEFT JOIN attachment a ON a.ROWID = ma.attachment_id ORDER BY m.guid";
const NUMBERS: &str = "SELECT guid || '=' || ROWID FROM message ORDER BY guid";
const SCHEMA: &str =
    "SELECT type || name || ifnull(sql, '') FROM sqlite_schema ORDER BY type, name";

#[test]
fn a_rebuilt_file_has_the_same_messages_under_other_numbers() {
    for macos in MacOs::ALL {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut db) = filled(&dir, macos);
        let (content, numbers) = (rows(&path, CONTENT), rows(&path, NUMBERS));
        assert_eq!(content.len(), 30, "{macos}");
        let schema = rows(&path, SCHEMA);
        let fault = Rebuild { db: path.clone(), order: Order::Shuffled, first: 100, seed: 3 };
        assert_eq!(rebuild(&fault).unwrap()["message"], 30);
        assert_eq!(rows(&path, CONTENT), content, "{macos}");
        assert_eq!(rows(&path, SCHEMA), schema, "{macos}");
        let after = rows(&path, NUMBERS);
        assert_ne!(after, numbers);
        assert!(after.iter().all(|row| row[4..].parse::<i64>().unwrap() >= 100), "{after:?}");
        let mut sorted = after.clone();
        sorted.sort_by_key(|row| row[4..].parse::<i64>().unwrap());
        assert_ne!(sorted, after, "the numbers follow no order");
        // The writer goes on with the new file when it is told to.
        db.reopen().unwrap();
        let from = PEERS[0].to_owned();
        let conversation = Conversation::Direct(from.clone());
        let row = Row::text(Author::Other(from), conversation, AppleNs::now(), "new");
        assert_eq!(db.write_joined(&row).unwrap().rowid, 130, "{macos}");
        assert_eq!(rows(&path, "PRAGMA integrity_check"), ["ok"]);
    }
}

#[test]
fn the_orders_are_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _db) = filled(&dir, MacOs::Tahoe);
    let before = rows(&path, NUMBERS);
    let fault = |order| Rebuild { db: path.clone(), order, first: 1, seed: 1 };
    rebuild(&fault(Order::Kept)).unwrap();
    assert_eq!(rows(&path, NUMBERS), before);
    rebuild(&fault(Order::Reversed)).unwrap();
    let after = rows(&path, NUMBERS);
    assert_eq!((after[0].as_str(), after[29].as_str()), ("G00=30", "G29=1"));
}

#[test]
fn a_restored_backup_is_the_file_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut db) = filled(&dir, MacOs::Sequoia);
    let to = dir.path().join("copy.db");
    backup(&Backup { db: path.clone(), to: to.clone() }).unwrap();
    assert!(backup(&Backup { db: path.clone(), to: to.clone() }).is_err(), "never over a file");
    let content = rows(&path, CONTENT);
    let from = PEERS[1].to_owned();
    let more = Row::text(
        Author::Other(from.clone()),
        Conversation::Direct(from),
        AppleNs::now(),
        "after the backup",
    );
    db.write_joined(&more).unwrap();
    assert_eq!(rows(&path, CONTENT).len(), 31);
    restore(&Restore { db: path.clone(), from: to.clone() }).unwrap();
    assert_eq!(rows(&path, CONTENT), content);
    db.reopen().unwrap();
    assert_eq!(db.write_joined(&more).unwrap().rowid, 31, "numbers are used again");
    std::fs::write(&to, "no database").unwrap();
    assert!(restore(&Restore { db: path.clone(), from: to }).is_err());
    assert_eq!(rows(&path, CONTENT).len(), 31, "what is no chat.db does not replace one");
}

#[test]
fn a_storm_changes_nothing_but_the_wal() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut db) = filled(&dir, MacOs::Ventura);
    let content = rows(&path, CONTENT);
    let count = checkpoint_storm(&CheckpointStorm { db: path.clone(), seconds: 1 }).unwrap();
    assert!(count["checkpoints"].as_u64().unwrap() >= 4);
    assert_eq!(rows(&path, CONTENT), content);
    recreate_wal(&RecreateWal { db: path.clone() }).unwrap();
    assert!(path.with_file_name("chat.db-wal").exists());
    db.reopen().unwrap();
    let from = PEERS[0].to_owned();
    let conversation = Conversation::Direct(from.clone());
    db.write_joined(&Row::text(Author::Other(from), conversation, AppleNs::now(), "x")).unwrap();
    assert_eq!(rows(&path, CONTENT).len(), 31);
    assert_eq!(rows(&path, "SELECT key FROM kvtable WHERE key LIKE 'switchboard%'").len(), 0);
}
