//! `POST /v1/messages` with fsync, beside what SQLite's group commit and axum alone can do here, and beside Kannel.
//!
//! The phones have their hands full, as they do whenever more comes in than they send: what is accepted stays in the
//! queue. Kannel's own is held up in the same way.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::routing::post;
use e2e::eventually;
use e2e::shelf::{Plan, Shelf};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::Figure;
use crate::kannel::Kannel;
use crate::percentile::{p50_p99, per_second};
use crate::posts::{self, Ask, CONNECTIONS, Key, Post};
use crate::relay::{Rounds, ask, id, sender};
use crate::standin::Standins;
use crate::wire::{self, Hook};

/// What an accepted message writes: itself, its event, its job. The order suits what refers to what.
const TABLES: [&str; 3] = ["messages", "message_events", "jobs"];

/// A router whose phones take a few messages each, answer nothing and so get no more.
struct Full {
    shelf: Shelf,
    phones: Standins,
    /// Whose messages are accepted: somebody who is told of what was sent, which none of them is.
    key: String,
}

impl Full {
    async fn start() -> Result<Self> {
        let shelf = Shelf::start(Plan { phones: vec![], ..Plan::measured() }).await?;
        let phones = Standins::start(&shelf.url(), &shelf.operator, 1, PHONES).await?;
        phones.answer(false);
        let wanted = PHONES * Plan::measured().in_flight;
        let hook = Hook::start(&TaskTracker::new(), |_, body| wire::message_id(body)).await?;
        let key = sender(&shelf, &hook).await?;
        let range = (FILLING, FILLING + 2 * wanted);
        posts::run(shelf.addr(), range, ask(key.clone()), id).await.context("filling")?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let store = Connection::open_with_flags(shelf.root().join("router.db"), flags);
        let store = store.context("store")?;
        eventually("the phones have their hands full", FULL_WITHIN, || async {
            let given = "SELECT COUNT(*) FROM attempts";
            let given: u32 = store.query_row(given, [], |row| row.get(0)).context("attempts")?;
            Ok(if given >= wanted { Ok(()) } else { Err(format!("{given} of {wanted}")) })
        })
        .await?;
        Ok(Self { shelf, phones, key })
    }

    async fn stop(self) -> Result<()> {
        self.phones.answer(true);
        self.phones.stop().await;
        self.shelf.stop().await
    }
}

const PHONES: u32 = 16;
/// Where the numbers of what fills them begin: beyond those of any round.
const FILLING: u32 = 1_000_000_000;
const FULL_WITHIN: Duration = Duration::from_secs(20);

pub(crate) async fn measure(messages: u32) -> Result<Vec<Figure>> {
    let full = Full::start().await?;
    let key = full.key.clone();
    let (accept, mut latencies) = load(full.shelf.addr(), (ask(key), id), messages).await?;
    let store = full.shelf.root().join("router.db");
    let group = tokio::task::spawn_blocking(move || group_commit(&store))
        .await
        .context("group commit")??;
    full.stop().await?;
    let beside = beside_kannel(messages).await?;

    let tasks = TaskTracker::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("hello")?;
    let hello = listener.local_addr().context("hello")?;
    let routes = Router::new().route("/v1/messages", post(|_body: String| async { "{}" }));
    tasks.spawn(async move { axum::serve(listener, routes).await });
    // The same requests; the answer is about nothing.
    let key: Key = |n, _| Some(n.to_string());
    let (bare, mut bare_latencies) = load(hello, (ask("none".to_owned()), key), messages).await?;

    Ok(vec![
        Figure::new(
            "accept: POST /v1/messages, 64 connections, on disk",
            format!("{accept:.0} requests/s, {}", p50_p99(&mut latencies)),
            format!("axum hello-world {bare:.0} requests/s, {}", p50_p99(&mut bare_latencies)),
            Some(accept / bare),
        ),
        Figure::new(
            "accept, beside the store alone",
            format!("{accept:.0} messages/s"),
            format!(
                "SQLite group commit of 64 messages with the same rows and indexes, synchronous=FULL: {group:.0} messages/s"
            ),
            Some(accept / group),
        ),
        beside,
    ])
}

/// Connections that Kannel is asked over, and we beside it.
const BESIDE: usize = 32;

/// Both over 32 connections in turns, so that a noisy moment meets both.
async fn beside_kannel(messages: u32) -> Result<Figure> {
    let kannel = Kannel::start(Some(PHONES)).await?;
    let full = Full::start().await?;
    let (mut ours, mut theirs) = (Rounds::default(), Rounds::default());
    for round in 0..3 {
        let range = (round * messages, (round + 1) * messages);
        let key: Key = id;
        let ask = ask(full.key.clone());
        let taken = posts::over(BESIDE, full.shelf.addr(), range, ask, key).await?;
        let (rate, latencies) = rated(taken);
        ours.add(rate, latencies);
        if let Some(kannel) = &kannel {
            let (rate, latencies) = rated(kannel.take(BESIDE, range).await?);
            theirs.add(rate, latencies);
        }
    }
    full.stop().await?;
    let (baseline, ratio) = match kannel {
        Some(_) => (
            format!("Kannel, file store without fsync: {}", theirs.say()),
            Some(ours.rate() / theirs.rate()),
        ),
        None => ("NO BASELINE: Kannel is not installed on this machine".to_owned(), None),
    };
    Ok(Figure::new("accept, 32 connections", ours.say(), baseline, ratio))
}

async fn load(
    to: SocketAddr,
    (ask, key): (Ask, Key),
    messages: u32,
) -> Result<(f64, Vec<Duration>)> {
    Ok(rated(posts::run(to, (0, messages), ask, key).await?))
}

/// Requests a second, and how long each took.
fn rated((posts, took): (Vec<Post>, Duration)) -> (f64, Vec<Duration>) {
    (per_second(posts.len(), took), posts.iter().map(|post| post.took).collect())
}

/// How fast SQLite alone writes what the router has written, 64 messages in a commit: the same rows into tables with the
/// same indexes, through nothing but prepared statements.
fn group_commit(store: &Path) -> Result<f64> {
    const MESSAGES: usize = 200 * CONNECTIONS;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let written = Connection::open_with_flags(store, flags).context("store")?;
    let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").context("folder")?;
    let mut db = Connection::open(dir.path().join("raw.db")).context("database")?;
    db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;").context("database")?;
    let mut inserts = Vec::new();
    let mut rows: Vec<Vec<Vec<Value>>> = Vec::new();
    for table in TABLES {
        let schema = "SELECT sql FROM sqlite_master WHERE tbl_name = ?1 AND sql IS NOT NULL ORDER BY type DESC";
        let mut schema = written.prepare(schema).context("schema")?;
        for sql in schema.query_map([table], |row| row.get::<_, String>(0)).context("schema")? {
            db.execute_batch(&sql.context("schema")?).context(table)?;
        }
        let key = if table == "messages" { "id" } else { "message_id" };
        // What a phone has been given was written more than once.
        let sql = format!(
            "SELECT t.* FROM {table} t JOIN messages m ON m.id = t.{key}
             WHERE m.status = 'queued' ORDER BY m.id LIMIT {MESSAGES}"
        );
        let mut all = written.prepare(&sql).context(table)?;
        let columns = all.column_count();
        let places: Vec<String> = (1..=columns).map(|place| format!("?{place}")).collect();
        inserts.push(format!("INSERT INTO {table} VALUES ({})", places.join(", ")));
        let read = |row: &rusqlite::Row<'_>| (0..columns).map(|column| row.get(column)).collect();
        let all = all.query_map([], read).context(table)?;
        rows.push(all.collect::<rusqlite::Result<_>>().context(table)?);
    }
    let messages = rows.iter().map(Vec::len).min().context("rows")?;
    ensure!(messages > 10 * CONNECTIONS, "{messages} messages are too few to measure");
    let began = Instant::now();
    for first in (0..messages).step_by(CONNECTIONS) {
        let tx = db.transaction().context("begin")?;
        for message in first..messages.min(first + CONNECTIONS) {
            for (insert, rows) in inserts.iter().zip(&rows) {
                let mut insert = tx.prepare_cached(insert).context("insert")?;
                let row = rows.get(message).context("row")?;
                insert.execute(rusqlite::params_from_iter(row)).context("insert")?;
            }
        }
        tx.commit().context("commit")?;
    }
    Ok(per_second(messages, began.elapsed()))
}
