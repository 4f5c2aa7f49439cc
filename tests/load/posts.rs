//! Many clients that post at once, each as soon as it has its answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::wire::Client;

/// As many connections as a busy tenant has.
pub(crate) const CONNECTIONS: usize = 64;

/// A request that was answered.
pub(crate) struct Post {
    /// What it was about.
    pub(crate) key: String,
    pub(crate) asked: Instant,
    pub(crate) took: Duration,
}

/// What is asked: the `n`th request, and what the answer to it was about.
pub(crate) type Ask = Arc<dyn Fn(u32) -> String + Send + Sync>;
pub(crate) type Key = fn(n: u32, body: &[u8]) -> Option<String>;

/// Posts `from` to `until`; each request with its time, and how long all took.
pub(crate) async fn run(
    to: SocketAddr,
    range: (u32, u32),
    ask: Ask,
    key: Key,
) -> Result<(Vec<Post>, Duration)> {
    over(CONNECTIONS, to, range, ask, key).await
}

/// The same over so many connections.
pub(crate) async fn over(
    connections: usize,
    to: SocketAddr,
    (from, until): (u32, u32),
    ask: Ask,
    key: Key,
) -> Result<(Vec<Post>, Duration)> {
    let next = Arc::new(AtomicU32::new(from));
    let tasks = TaskTracker::new();
    let began = Instant::now();
    let clients: Vec<_> = (0..connections)
        .map(|_| {
            let (next, ask) = (Arc::clone(&next), Arc::clone(&ask));
            tasks.spawn(async move {
                let mut client = Client::new(to);
                let mut posts = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= until {
                        return anyhow::Ok(posts);
                    }
                    let request = ask(n);
                    let asked = Instant::now();
                    let body = client.ask(&request).await?;
                    let key = key(n, &body).context("an answer about nothing")?;
                    posts.push(Post { key, asked, took: asked.elapsed() });
                }
            })
        })
        .collect();
    let mut posts = Vec::new();
    for client in clients {
        posts.extend(client.await.context("client")??);
    }
    Ok((posts, began.elapsed()))
}
