//! How fast a chat.db is read: `cargo bench -p bridge --bench read`.

#[path = "../tests/it/archive.rs"]
mod archive;

use std::io::sink;
use std::path::Path;

use archive::{Value, archive};
use bridge::chatdb::{ChatDb, SentQuery, Sought};
use bridge::typedstream::{LINK, MESSAGE_PART};
use bridge::watch::{Args, Since};
use divan::{Bencher, counter::ItemsCount};
use protocol::Recipient;
use rusqlite::{Connection, params};
use tempfile::TempDir;

fn main() {
    divan::main();
}

/// Messages in the database; each in one of [`CHATS`].
const MESSAGES: i64 = 20_000;
const CHATS: i64 = 200;

/// With the indexes that macOS 15 has, or with the bare tables of macOS 27.
fn database(version: u32) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut connection = Connection::open(folder.path().join("chat.db")).expect("a database");
    let schema = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/data/chatdb-schema/macos{version}.sql"));
    connection.pragma_update(None, "journal_mode", "wal").expect("WAL");
    connection
        .execute_batch(&std::fs::read_to_string(schema).expect("a schema"))
        .expect("Apple's tables");
    let body = |text: &str| {
        let part = [(MESSAGE_PART, Value::Number(0)), (LINK, Value::Text("https://example.org"))];
        archive(text, &[(text.len(), &part)])
    };
    let fill = connection.transaction().expect("a transaction");
    for chat in 1..=CHATS {
        let address = format!("+1202{:07}", 5_550_000 + chat);
        fill.execute("INSERT INTO handle (id, service) VALUES (?1, 'iMessage')", [&address])
            .expect("a handle");
        fill.execute(
            "INSERT INTO chat (guid, style, chat_identifier, service_name) VALUES ('any;-;' || ?1, 45, ?1, 'iMessage')",
            [&address],
        )
        .expect("a chat");
    }
    for rowid in 1..=MESSAGES {
        let chat = rowid % CHATS + 1;
        let text = format!("message {rowid}, a text of an ordinary length for a message");
        fill.execute(
            "INSERT INTO message (guid, is_from_me, handle_id, attributedBody, service, date, is_sent) VALUES (?1, ?2, ?3, ?4, 'iMessage', ?5, ?2)",
            params![
                format!("GUID-{rowid:032}"),
                rowid % 2,
                chat,
                body(&text),
                800_000_000_000_000_000 + rowid
            ],
        )
        .expect("a message");
        fill.execute(
            "INSERT INTO chat_message_join (chat_id, message_id) VALUES (?1, ?2)",
            [chat, rowid],
        )
        .expect("a join");
    }
    fill.commit().expect("a commit");
    folder
}

#[divan::bench(args = [15, 27], sample_count = 10)]
fn everything_as_json_lines(bencher: Bencher<'_, '_>, version: u32) {
    let folder = database(version);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let args = Args {
        db: folder.path().join("chat.db"),
        since: Since::Start,
        once: true,
        poll_only: false,
    };
    bencher
        .counter(ItemsCount::new(MESSAGES.unsigned_abs()))
        .bench_local(|| runtime.block_on(bridge::watch::run(args.clone(), sink())));
}

#[divan::bench(args = [15, 27])]
fn the_newest_row(bencher: Bencher<'_, '_>, version: u32) {
    let folder = database(version);
    let db = ChatDb::open(folder.path().join("chat.db")).expect("readable");
    bencher.bench_local(|| db.rows_after(MESSAGES - 1, 1000));
}

#[divan::bench]
fn the_row_of_a_send(bencher: Bencher<'_, '_>) {
    let folder = database(15);
    let db = ChatDb::open(folder.path().join("chat.db")).expect("readable");
    let to: Recipient = "+12025550101".parse().expect("a number");
    let query = SentQuery {
        above_rowid: MESSAGES - 1,
        to: &to,
        content: Sought::Text("no such text"),
        channel: None,
    };
    bencher.bench_local(|| db.find_sent(&query));
}

#[divan::bench]
fn a_poll_without_a_change(bencher: Bencher<'_, '_>) {
    let folder = database(15);
    let db = ChatDb::open(folder.path().join("chat.db")).expect("readable");
    bencher.bench_local(|| db.data_version());
}
