//! The program beside a writer in another process, as it stands beside Messages. SQLite shares
//! locks and WAL indexes inside one process, so what happens when a WAL is deleted and created
//! again can only be seen across two.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed assumption fails the test"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use rusqlite::Connection;

/// Ends the program when the test ends, however it ends.
struct Program {
    child: Child,
    lines: Receiver<serde_json::Value>,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "the test starts the program itself")]
fn watch(database: &Path) -> Program {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_switchboard-bridge"))
        .args(["watch", "--since", "start", "--db"])
        .arg(database)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let (send, lines) = sync_channel(100);
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            if send.send(serde_json::from_str(&line).unwrap()).is_err() {
                return;
            }
        }
    });
    Program { child, lines }
}

impl Program {
    fn expect(&self, guid: &str) {
        let line = self
            .lines
            .recv_timeout(Duration::from_secs(20))
            .unwrap_or_else(|_| panic!("{guid} was not told"));
        assert_eq!(line["guid"], guid, "{line}");
    }
}

fn write(connection: &Connection, guid: &str) {
    connection
        .execute_batch(&format!(
            "BEGIN;
             INSERT INTO message (guid, text, handle_id, service, date) VALUES ('{guid}', 'x', 1, 'iMessage', 800000000000000000);
             INSERT INTO chat_message_join (chat_id, message_id) VALUES (1, last_insert_rowid());
             COMMIT;"
        ))
        .unwrap();
}

#[test]
fn messages_are_told_across_a_wal_that_is_deleted_and_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.db");
    let program = watch(&path);
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chatdb-schema/macos27.sql");
    let open = || {
        let connection = Connection::open(&path).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    };
    let mut connection = open();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.execute_batch(&std::fs::read_to_string(schema).unwrap()).unwrap();
    connection
        .execute_batch(
            "INSERT INTO handle (id, service) VALUES ('+12025550101', 'iMessage');
             INSERT INTO chat (guid, style, chat_identifier) VALUES ('any;-;+12025550101', 45, '+12025550101');",
        )
        .unwrap();
    write(&connection, "FIRST");
    program.expect("FIRST");
    for round in 0..3 {
        // Messages quits: its database is folded together, and WAL and index go.
        connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        drop(connection);
        for suffix in ["-wal", "-shm"] {
            std::fs::remove_file(folder.path().join(format!("chat.db{suffix}"))).unwrap();
        }
        connection = open();
        for at in 0..3 {
            let guid = format!("{round}.{at}");
            write(&connection, &guid);
            program.expect(&guid);
        }
    }
    let check: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}
