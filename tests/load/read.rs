//! A bridge decoding a large chat.db, a third of it with `text` NULL, beside a bare SELECT.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::program;
use rusqlite::{Connection, OpenFlags};
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::per_second;

pub(crate) fn measure(rows: u32, made: Option<&Path>) -> Result<Vec<Figure>> {
    let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").context("folder")?;
    let own = dir.path().join("chat.db");
    let db = made.unwrap_or(&own);
    let path = db.display().to_string();
    if !db.exists() {
        let count = rows.to_string();
        let args = [
            "generate",
            "--db",
            &path,
            "--macos",
            "15",
            "--messages",
            &count,
            "--null-text-every",
            "3",
        ];
        program::run("switchboard-sandbox", &args, &[])?;
    }
    // Once to have the file in memory, so that both are measured without the disk.
    select_alone(db)?;
    let (bare_rows, bare) = select_alone(db)?;
    let began = Instant::now();
    let args = ["watch", "--db", &path, "--since", "start", "--once"];
    let (lines, memory) = program::count_lines("switchboard-bridge", &args)?;
    let took = began.elapsed();
    ensure!(lines > 0, "the bridge printed nothing");
    let rate = per_second(bare_rows, took);
    Ok(vec![Figure::new(
        "read: bridge decodes and prints a chat.db, a third with text NULL",
        format!("{rate:.0} rows/s ({bare_rows} rows, {lines} events), peak {} MiB", memory / 1024),
        format!("bare SELECT of the same columns {bare:.0} rows/s"),
        Some(rate / bare),
    )])
}

/// The columns that the bridge reads, fetched and dropped.
pub(crate) fn select_alone(db: &Path) -> Result<(usize, f64)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(db, flags).context("chat.db")?;
    let mut select = db
        .prepare(
            "SELECT m.ROWID, m.guid, m.text, m.attributedBody, m.service, m.error, m.date, m.date_read, \
             m.date_delivered, m.is_from_me, m.is_sent, m.is_delivered, m.is_finished, m.item_type, \
             m.associated_message_type, m.associated_message_guid, m.was_downgraded, h.id, c.guid, c.style \
             FROM message m LEFT JOIN handle h ON h.ROWID = m.handle_id \
             LEFT JOIN chat_message_join j ON j.message_id = m.ROWID \
             LEFT JOIN chat c ON c.ROWID = j.chat_id ORDER BY m.ROWID",
        )
        .context("select")?;
    let began = Instant::now();
    let mut rows = select.query([]).context("select")?;
    let (mut count, mut bytes) = (0_usize, 0_usize);
    while let Some(row) = rows.next().context("row")? {
        count += 1;
        for column in 0..20 {
            bytes += match row.get_ref(column).context("column")? {
                rusqlite::types::ValueRef::Text(data) | rusqlite::types::ValueRef::Blob(data) => {
                    data.len()
                }
                rusqlite::types::ValueRef::Null
                | rusqlite::types::ValueRef::Integer(_)
                | rusqlite::types::ValueRef::Real(_) => 1,
            };
        }
    }
    ensure!(bytes > 0, "the database is empty");
    Ok((count, per_second(count, began.elapsed())))
}
