//! From COMMIT in chat.db to the event on the bridge's stdout.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::program::Lines;
use rusqlite::Connection;
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::p50_p99;

const SAMPLES: u32 = 200;
/// A bridge that has not begun after so many half seconds never will.
const WARM_MAX: u32 = 40;
const SEEN_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn measure() -> Result<Vec<Figure>> {
    Ok(vec![
        Figure::new(
            "wake: COMMIT in chat.db → event on the bridge's stdout, with file events",
            latencies(&[]).await?,
            "promised: p50 5 ms, p99 25 ms".to_owned(),
            None,
        ),
        Figure::new(
            "wake: the same by polling alone",
            latencies(&["--poll-only"]).await?,
            "promised: 260 ms at most".to_owned(),
            None,
        ),
    ])
}

async fn latencies(more: &[&str]) -> Result<String> {
    let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").context("folder")?;
    let path = dir.path().join("chat.db").display().to_string();
    let args = [
        "generate",
        "--db",
        &path,
        "--macos",
        "15",
        "--messages",
        "1000",
        "--null-text-every",
        "3",
    ];
    e2e::program::run("switchboard-sandbox", &args, &[])?;
    let mut db = Connection::open(&path).context("chat.db")?;
    db.pragma_update(None, "journal_mode", "WAL").context("WAL")?;
    let mut args = vec!["watch", "--db", &path, "--since", "now"];
    args.extend(more);
    let bridge = Lines::start("switchboard-bridge", &args)?;
    // Rows until the first is seen: then the bridge watches.
    let mut n = 0;
    loop {
        insert(&mut db, n, "warm")?;
        n += 1;
        if bridge.next(Duration::from_millis(500)).await.is_ok() {
            break;
        }
        ensure!(n < WARM_MAX, "the bridge does not begin to watch");
    }
    let mut samples = Vec::new();
    for n in n..n + SAMPLES {
        let text = format!("wake {n}");
        let committed = insert(&mut db, n, &text)?;
        loop {
            let (at, line) = bridge.next(SEEN_WITHIN).await.with_context(|| text.clone())?;
            if line.contains(&text) {
                samples.push(at.saturating_duration_since(committed));
                break;
            }
        }
        // Commits at different moments of the polling interval.
        tokio::time::sleep(Duration::from_millis(u64::from(n * 37 % 300))).await;
    }
    ensure!(samples.len() > 100, "too few samples");
    let most = samples.iter().max().copied().unwrap_or_default();
    let shares = p50_p99(&mut samples);
    Ok(format!("{shares}, most {:.2} ms", most.as_secs_f64() * 1e3))
}

/// An inbound row as Apple writes it, in one transaction; gives the moment after COMMIT.
fn insert(db: &mut Connection, n: u32, text: &str) -> Result<Instant> {
    // Apple's triggers call functions of its own; none of them fires on these inserts.
    let tx = db.transaction().context("begin")?;
    let date: i64 = tx
        .query_row("SELECT ifnull(max(date), 0) + 1000000 FROM message", [], |row| row.get(0))
        .context("date")?;
    tx.execute(
        "INSERT INTO message (guid, text, handle_id, service, date, is_from_me, is_finished, is_delivered) \
         VALUES (?1, ?2, (SELECT min(ROWID) FROM handle), 'iMessage', ?3, 0, 1, 1)",
        (format!("WAKE-{n}"), text, date),
    )
    .context("message")?;
    let row = tx.last_insert_rowid();
    tx.execute(
        "INSERT INTO chat_message_join (chat_id, message_id, message_date) \
         VALUES ((SELECT min(ROWID) FROM chat), ?1, ?2)",
        (row, date),
    )
    .context("join")?;
    tx.commit().context("commit")?;
    Ok(Instant::now())
}
