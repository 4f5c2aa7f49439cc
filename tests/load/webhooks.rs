//! Webhooks to ten endpoints of one tenant, one of which takes connections and never answers, beside nine that all work.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::shelf::{Plan, Shelf};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::Figure;
use crate::percentile::per_second;
use crate::posts;
use crate::relay::{ask, id};
use crate::wire::{self, Hook};

/// Endpoints that answer.
const WORKING: usize = 9;
const TOLD_WITHIN: Duration = Duration::from_mins(2);

pub(crate) async fn measure(messages: u32) -> Result<Vec<Figure>> {
    let all_work = burst(messages, false).await.context("nine that work")?;
    let one_dead = burst(messages, true).await.context("one of ten dead")?;
    Ok(vec![Figure::new(
        "webhooks: nine endpoints that work beside a dead one, from the first request to the last delivery",
        format!("{one_dead:.0} deliveries/s"),
        format!("the same nine alone: {all_work:.0} deliveries/s; asked: 4000"),
        Some(one_dead / all_work),
    )])
}

/// Deliveries a second to the endpoints that work.
async fn burst(messages: u32, dead: bool) -> Result<f64> {
    let tasks = TaskTracker::new();
    let hook = Hook::start(&tasks, |_, body| wire::message_id(body)).await?;
    // It takes connections, reads nothing and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.context("a dead endpoint")?;
    let silent_addr = silent.local_addr().context("a dead endpoint")?;
    tasks.spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            held.push(stream);
        }
    });
    let shelf = Shelf::start(Plan { phones: vec![], ..Plan::measured() }).await?;
    let tenant = shelf.operator.create_tenant("Hooks", "Hooks").await?;
    let secret = shelf.operator.create_key(&tenant.id).await?.secret;
    let api = shelf.operator.with_token(&secret);
    let mut urls: Vec<String> = (0..WORKING).map(|n| format!("http://{}/{n}", hook.addr)).collect();
    if dead {
        urls.push(format!("http://{silent_addr}/"));
    }
    for url in urls {
        api.create_webhook_for(&url, &["message.queued"]).await?;
    }
    let began = Instant::now();
    let (posts, _) = posts::run(shelf.addr(), (0, messages), ask(secret), id).await?;
    let told = hook.take(posts.len() * WORKING, TOLD_WITHIN).await?;
    let last = told.iter().map(|(_, at)| *at).max().context("nothing was told")?;
    shelf.stop().await?;
    Ok(per_second(told.len(), last - began))
}
