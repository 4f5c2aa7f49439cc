//! `POST /v1/messages` with fsync over 64 connections, beside what SQLite's group commit and axum
//! alone can do here.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::routing::post;
use e2e::shelf::{Plan, Shelf};
use rusqlite::Connection;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::Figure;
use crate::kannel::Kannel;
use crate::percentile::{p50_p99, per_second};
use crate::posts::{self, Ask, CONNECTIONS, Key, Post};
use crate::relay::{Rounds, ask, id};

/// Rows that one accepted message writes: itself, its event, its job.
const ROWS_PER_MESSAGE: usize = 3;

pub(crate) async fn measure(messages: u32) -> Result<Vec<Figure>> {
    // A router without phones: accepting is measured alone, nothing is dispatched.
    let shelf = Shelf::start(Plan { phones: vec![], ..Plan::default() }).await?;
    let (accept, mut latencies) =
        load(shelf.addr(), (ask(shelf.key.clone()), id), messages).await?;
    shelf.stop().await?;
    let beside = beside_kannel(messages).await?;

    let tasks = TaskTracker::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("hello")?;
    let hello = listener.local_addr().context("hello")?;
    let routes = Router::new().route("/v1/messages", post(|_body: String| async { "{}" }));
    tasks.spawn(async move { axum::serve(listener, routes).await });
    // The same requests; the answer is about nothing.
    let key: Key = |n, _| Some(n.to_string());
    let (bare, mut bare_latencies) = load(hello, (ask("none".to_owned()), key), messages).await?;
    let group = tokio::task::spawn_blocking(group_commit).await.context("group commit")??;

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
            format!("SQLite group commit of 64 × 3 rows, synchronous=FULL: {group:.0} messages/s"),
            Some(accept / group),
        ),
        beside,
    ])
}

/// Connections that Kannel is asked over, and we beside it.
const BESIDE: usize = 32;

/// Both over 32 connections in turns, so that a noisy moment meets both.
async fn beside_kannel(messages: u32) -> Result<Figure> {
    let kannel = Kannel::start().await?;
    let shelf = Shelf::start(Plan { phones: vec![], ..Plan::default() }).await?;
    let (mut ours, mut theirs) = (Rounds::default(), Rounds::default());
    for round in 0..3 {
        let range = (round * messages, (round + 1) * messages);
        let key: Key = id;
        let taken = posts::over(BESIDE, shelf.addr(), range, ask(shelf.key.clone()), key).await?;
        let (rate, latencies) = rated(taken);
        ours.add(rate, latencies);
        if let Some(kannel) = &kannel {
            let (rate, latencies) = rated(kannel.take(BESIDE, range).await?);
            theirs.add(rate, latencies);
        }
    }
    shelf.stop().await?;
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

/// What SQLite can do here when 64 messages share one commit.
fn group_commit() -> Result<f64> {
    const COMMITS: usize = 200;
    let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").context("folder")?;
    let mut db = Connection::open(dir.path().join("raw.db")).context("database")?;
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; \
         CREATE TABLE rows (id TEXT PRIMARY KEY, tenant TEXT, body TEXT, at BIGINT);",
    )
    .context("schema")?;
    let began = Instant::now();
    let per_commit = CONNECTIONS * ROWS_PER_MESSAGE;
    for commit in 0..COMMITS {
        let tx = db.transaction().context("begin")?;
        {
            let mut insert = tx
                .prepare_cached("INSERT INTO rows VALUES (?1, 'ten_1', ?2, 1)")
                .context("insert")?;
            for row in 0..per_commit {
                insert
                    .execute((format!("msg_{commit:08}{row:08}"), "x".repeat(200)))
                    .context("insert")?;
            }
        }
        tx.commit().context("commit")?;
    }
    Ok(per_second(COMMITS * CONNECTIONS, began.elapsed()))
}
