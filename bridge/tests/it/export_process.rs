//! The program's `export` as a process: what stands in the file, and that an export that was killed
//! goes on and ends with the same bytes.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed assumption fails the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use sandbox::chatdb::MacOs;
use sandbox::generate::{self, Settings};
use serde_json::Value;

/// How long an export may take on a busy machine before the test gives up on it.
const LONGEST: Duration = Duration::from_mins(2);
/// Rows of the database that is exported while being killed; with their texts many times what lies
/// between two notes.
const LONG_ROWS: u32 = 8_000;
/// How many MiB lie between two notes.
const NOTE_EVERY: &str = "1";
/// Exports that are killed before one is let through.
const KILLS: usize = 5;

#[expect(clippy::disallowed_methods, reason = "the test starts the program itself")]
fn export(database: &Path, format: &str, more: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_switchboard-bridge"));
    command
        .args(["export", "--quiet", "--note-every", NOTE_EVERY, "--format", format, "--db"])
        .arg(database)
        .args(more)
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn exported(database: &Path, format: &str, more: &[&str]) -> String {
    let Output { status, stdout, stderr } = export(database, format, more).output().unwrap();
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn mixed(folder: &Path, macos: MacOs, messages: u64) -> PathBuf {
    let db = folder.join(format!("{macos:?}.db"));
    let settings = Settings {
        db: db.clone(),
        macos,
        messages,
        chats: 20,
        null_text_every: 0,
        mix: true,
        seed: 7,
    };
    generate::run(&settings).unwrap();
    db
}

fn guids(connection: &Connection, sql: &str) -> BTreeSet<String> {
    let mut select = connection.prepare(sql).unwrap();
    select.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// A night without a message, and somebody who has just bought a Mac.
#[test]
fn an_export_of_nothing_ends() {
    let folder = tempfile::tempdir().unwrap();
    let db = mixed(folder.path(), MacOs::Sequoia, 50);
    for format in ["jsonl", "txt"] {
        assert_eq!(exported(&db, format, &["--since", "2099-01-01T00:00:00Z"]), "");
    }
    let db = mixed(folder.path(), MacOs::ALL[0], 0);
    let file = folder.path().join("nothing.jsonl");
    exported(&db, "jsonl", &["--out", file.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(file).unwrap(), "");
}

#[test]
fn an_export_holds_every_row_of_a_mix_on_every_schema() {
    let folder = tempfile::tempdir().unwrap();
    for macos in MacOs::ALL {
        let db = mixed(folder.path(), macos, 1_500);
        let mut by_type: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in exported(&db, "jsonl", &[]).lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let guid = line["guid"].as_str().or(line["message"].as_str()).unwrap().to_owned();
            let kind = line["type"].as_str().unwrap().to_owned();
            assert!(
                by_type.entry(kind).or_default().insert(guid) || line["type"] == "edited",
                "{macos:?}: told twice: {line}"
            );
        }
        let told = |types: &[&str]| -> BTreeSet<String> {
            types.iter().filter_map(|kind| by_type.get(*kind)).flatten().cloned().collect()
        };
        let connection = Connection::open(&db).unwrap();
        // Stickers and votes are told as reactions, too.
        let reactions = "(associated_message_type BETWEEN 2000 AND 3999 \
                          OR associated_message_type IN (1000, 4000))";
        for (own, kind) in [(0, "reaction"), (1, "own_reaction")] {
            let sql = format!("SELECT guid FROM message WHERE is_from_me = {own} AND {reactions}");
            let (told, there) = (told(&[kind]), guids(&connection, &sql));
            let differ: Vec<_> = told.symmetric_difference(&there).collect();
            assert!(differ.is_empty() && !there.is_empty(), "{macos:?} {kind}: {differ:?}");
        }
        // Whatever is no reaction, no preview of a link and not empty is told in one way or another.
        let expected = guids(
            &connection,
            "SELECT guid FROM message WHERE COALESCE(balloon_bundle_id, '') \
             NOT LIKE '%URLBalloonProvider' AND (item_type <> 0 OR text <> '' OR \
             attributedBody IS NOT NULL OR cache_has_attachments = 1)",
        );
        let all: BTreeSet<String> = by_type.values().flatten().cloned().collect();
        let missing: Vec<_> = expected.difference(&all).collect();
        assert!(missing.is_empty(), "{macos:?}: not told: {missing:?}");
    }
}

#[test]
fn a_text_and_the_preview_of_its_link_are_one_wherever_a_batch_ends() {
    /// A batch begins above the row that an export begins above, and has so many numbers.
    const BATCH_ROWIDS: i64 = 400;
    let folder = tempfile::tempdir().unwrap();
    let db = mixed(folder.path(), MacOs::Tahoe, 2_000);
    let connection = Connection::open(&db).unwrap();
    let mut select = connection
        .prepare(
            "SELECT t.ROWID, t.guid FROM message t JOIN message p ON p.ROWID = t.ROWID + 1
             WHERE p.balloon_bundle_id LIKE '%URLBalloonProvider' AND p.payload_data IS NOT NULL
             AND t.balloon_bundle_id IS NULL AND t.ROWID > ?1 LIMIT 12",
        )
        .unwrap();
    let pairs: Vec<(i64, String)> = select
        .query_map([BATCH_ROWIDS], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(pairs.len() > 5, "the mix has links: {pairs:?}");
    let whole = exported(&db, "jsonl", &[]);
    for (text, guid) in pairs {
        let part = exported(&db, "jsonl", &["--since", &(text - BATCH_ROWIDS).to_string()]);
        // The text is the last one of its batch, and its preview the first one of the next.
        let lines: Vec<Value> = part
            .lines()
            .filter(|line| line.contains(&guid))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0]["preview"]["url"].is_string(), "{lines:?}");
        assert!(whole.ends_with(&part), "an export from {text} on is the end of the whole one");
    }
}

#[test]
fn texts_of_rows_and_of_bodies_are_exported_as_they_are_on_every_schema() {
    let folder = tempfile::tempdir().unwrap();
    for macos in MacOs::ALL {
        let db = folder.path().join(format!("{macos:?}.db"));
        let settings = Settings {
            db: db.clone(),
            macos,
            messages: 300,
            chats: 7,
            null_text_every: 3,
            mix: false,
            seed: 1,
        };
        generate::run(&settings).unwrap();
        let connection = Connection::open(&db).unwrap();
        let mut select = connection
            .prepare("SELECT guid, text, is_from_me FROM message ORDER BY ROWID")
            .unwrap();
        let rows: Vec<(String, Option<String>, bool)> = select
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let whole = exported(&db, "jsonl", &[]);
        let lines: Vec<Value> =
            whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), rows.len(), "{macos:?}");
        for (at, (line, (guid, text, own))) in lines.iter().zip(rows).enumerate() {
            assert_eq!(line["guid"], guid, "{macos:?}");
            assert_eq!(line["type"], if own { "sent" } else { "received" }, "{macos:?}");
            match text {
                Some(text) => assert_eq!(line["text"], text, "{macos:?}"),
                // Only in the body: each text of the generator ends with its number.
                None => {
                    assert!(line["text"].as_str().unwrap().ends_with(&format!(" #{at}")), "{line}");
                }
            }
        }
    }
}

#[test]
fn an_export_of_one_conversation_has_its_edits_and_nothing_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let db = mixed(folder.path(), MacOs::ALL[MacOs::ALL.len() - 1], 3_000);
    let whole = exported(&db, "jsonl", &[]);
    let lines: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Where each message is, by the database itself.
    let connection = Connection::open(&db).unwrap();
    let mut select = connection
        .prepare(
            "SELECT m.guid, c.chat_identifier FROM message m \
             JOIN chat_message_join j ON j.message_id = m.ROWID JOIN chat c ON c.ROWID = j.chat_id",
        )
        .unwrap();
    let place_of: BTreeMap<String, String> = select
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let of = |line: &Value| {
        place_of.get(line["guid"].as_str().or(line["message"].as_str()).unwrap()).cloned()
    };
    let edited = lines.iter().find(|line| line["type"] == "edited").expect("an edit in the mix");
    let wanted = of(edited).unwrap();
    let expected: String = whole
        .lines()
        .zip(&lines)
        .filter(|(_, line)| of(line).as_deref() == Some(&wanted))
        .flat_map(|(text, _)| [text, "\n"])
        .collect();
    let chosen = exported(&db, "jsonl", &["--conversation", &wanted]);
    for (chosen, expected) in chosen.lines().zip(expected.lines()) {
        assert_eq!(chosen, expected);
    }
    assert_eq!(chosen.len(), expected.len());
}

/// A database of texts of two kilobytes each.
fn long(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chatdb-schema/macos27.sql");
    connection.execute_batch(&fs::read_to_string(schema).unwrap()).unwrap();
    connection
        .execute_batch(&format!(
            "BEGIN;
             INSERT INTO handle (id, service) VALUES ('+12025550101', 'iMessage');
             INSERT INTO chat (guid, style, chat_identifier) VALUES ('any;-;+12025550101', 45, '+12025550101');
             WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {LONG_ROWS})
             INSERT INTO message (guid, text, handle_id, service, date, is_from_me, is_sent)
             SELECT 'GUID-' || n, hex(zeroblob(1000)) || n, 1, 'iMessage', 700000000000000000 + n * 60000000000, n % 2, n % 2 FROM n;
             INSERT INTO chat_message_join (chat_id, message_id) SELECT 1, ROWID FROM message;
             COMMIT;"
        ))
        .unwrap();
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Waits until the export has noted more than `noted` bytes and written beyond that, and kills it;
/// gives what it had noted. None when it ended before.
#[expect(clippy::disallowed_methods, reason = "a deadline of the test itself")]
fn kill_beyond(mut child: Child, out: &Path, noted: u64) -> Option<u64> {
    let give_up = std::time::SystemTime::now() + LONGEST;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return None;
        }
        let note = fs::read_to_string(beside(out, ".partial.note")).ok();
        let note: Option<Value> = note.map(|text| serde_json::from_str(&text).unwrap());
        let now = note.and_then(|note| note["bytes"].as_u64()).unwrap_or(0);
        let there = fs::metadata(beside(out, ".partial")).map_or(0, |file| file.len());
        if now > noted && there > now {
            child.kill().unwrap();
            child.wait().unwrap();
            return Some(now);
        }
        assert!(std::time::SystemTime::now() < give_up, "no note was made");
        std::thread::yield_now();
    }
}

#[test]
fn an_export_that_is_killed_goes_on_and_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("chat.db");
    long(&db);
    for format in ["jsonl", "txt"] {
        let whole = exported(&db, format, &[]).into_bytes();
        let out = folder.path().join(format!("out.{format}"));
        let to = ["--out", out.to_str().unwrap()];
        let mut noted = 0;
        let mut kills = 0;
        while kills < KILLS {
            let child = export(&db, format, &to).spawn().unwrap();
            let Some(now) = kill_beyond(child, &out, noted) else { break };
            noted = now;
            kills += 1;
            if kills == 1 {
                // An export that began anew would put the right byte here again.
                let partial = beside(&out, ".partial");
                let file = fs::OpenOptions::new().write(true).open(partial).unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, b"X", 0).unwrap();
            }
        }
        assert!(kills > 0, "the export was never interrupted");
        if !out.exists() {
            exported(&db, format, &to);
        }
        let mut gone_on = fs::read(&out).unwrap();
        assert_eq!(gone_on[0], b'X', "it began anew");
        gone_on[0] = whole[0];
        assert!(gone_on == whole, "{format}: other bytes after {kills} kills");
        for left in [".partial", ".partial.note", ".partial.note.new"] {
            assert!(!beside(&out, left).exists(), "{left} was left");
        }
    }
}

#[test]
fn an_export_does_not_go_on_in_a_database_that_was_replaced_or_with_other_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("chat.db");
    long(&db);
    let out = folder.path().join("out.jsonl");
    let to = ["--out", out.to_str().unwrap()];
    let child = export(&db, "jsonl", &to).spawn().unwrap();
    kill_beyond(child, &out, 0).expect("killed in the middle");
    let refused = |format: &str, db: &Path| {
        let Output { status, stderr, .. } = export(db, format, &to).output().unwrap();
        assert_eq!(status.code(), Some(78));
        let said = String::from_utf8(stderr).unwrap();
        assert!(said.contains("--restart"), "{said}");
        assert!(!out.exists());
        said
    };
    assert!(refused("txt", &db).contains("other arguments"));
    let connection = Connection::open(&db).unwrap();
    // As a rebuild does it: the same messages under other numbers.
    connection
        .execute_batch(
            "PRAGMA foreign_keys = OFF; UPDATE message SET ROWID = ROWID + 1000000;
             UPDATE chat_message_join SET message_id = message_id + 1000000;",
        )
        .unwrap();
    drop(connection);
    assert!(refused("jsonl", &db).contains("rebuilt"));
    exported(&db, "jsonl", &[to[0], to[1], "--restart", "--until", "2000-01-01T00:00:00Z"]);
    assert_eq!(fs::read(&out).unwrap(), b"", "nothing is that old");
    let Output { status, .. } = export(&db, "jsonl", &to).output().unwrap();
    assert_eq!(status.code(), Some(78), "an export never replaces a file");
}

#[test]
fn a_second_export_into_the_same_file_is_refused_while_the_first_is_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let db = mixed(folder.path(), MacOs::ALL[0], 10);
    let out = folder.path().join("out.txt");
    let held = fs::File::create(beside(&out, ".partial")).unwrap();
    held.try_lock().unwrap();
    let to = ["--out", out.to_str().unwrap()];
    let Output { status, stderr, .. } = export(&db, "txt", &to).output().unwrap();
    assert_eq!(status.code(), Some(75), "{}", String::from_utf8_lossy(&stderr));
    drop(held);
    exported(&db, "txt", &to);
    assert!(out.exists());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("chat.db");
    long(&db);
    let mut child = export(&db, "jsonl", &[]).spawn().unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}
