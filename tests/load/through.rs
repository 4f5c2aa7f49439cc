//! Accepted → osascript → `sent` recorded: three phones, no pacing, a sandbox that answers at once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::flow::recipient;
use e2e::shelf::{Plan, Shelf, message};
use protocol::api::MessageEvent;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::{p50_p99, per_second};

/// Messages being posted at once.
const POSTERS: usize = 16;

const SENT_WITHIN: Duration = Duration::from_mins(5);

pub(crate) async fn measure(messages: u64) -> Result<Vec<Figure>> {
    let shelf = Shelf::start(Plan { speed: 0.0, ..Plan::measured() }).await?;
    let idle = burst(&shelf, "one", 1).await?;
    ensure!(idle.0.is_finite(), "one message goes through");
    // One at a time: the latency of a quiet system.
    let mut quiet = Vec::new();
    for n in 0..30 {
        let (_, latencies) = burst(&shelf, &format!("quiet {n}"), 1).await?;
        quiet.extend(latencies);
    }
    let (rate, mut busy) = burst(&shelf, "busy", messages).await?;
    let world = shelf.world();
    let phone = shelf.phone_dir("+12025550190");
    let scripts = tokio::task::spawn_blocking(move || osascript_alone(&world, &phone))
        .await
        .context("osascript")??;
    shelf.stop().await?;
    // One osascript at a time per phone is Messages' rule; three phones run side by side.
    let limit = scripts * 3.0;
    Ok(vec![
        Figure::new(
            "through: accepted → osascript → sent, 3 phones, all at once",
            format!("{rate:.0} messages/s, {}", p50_p99(&mut busy)),
            format!("osascript alone, 3 × {scripts:.0} a second"),
            Some(rate / limit),
        ),
        Figure::new(
            "through, one message at a time",
            p50_p99(&mut quiet),
            format!("osascript alone {:.2} ms", 1e3 / scripts),
            None,
        ),
    ])
}

/// Posts them all and waits until each is sent; rate over all, latency of each.
async fn burst(shelf: &Shelf, name: &str, messages: u64) -> Result<(f64, Vec<Duration>)> {
    // Enough that posting never is what is measured.
    let posters = Arc::new(Semaphore::new(POSTERS));
    let began = Instant::now();
    let mut posts = Vec::new();
    for n in 0..messages {
        let body = message(&recipient(n % 100), &format!("{name} {n}"))?;
        let tenant = shelf.tenant.clone();
        let turn = Arc::clone(&posters);
        posts.push(shelf.tasks.spawn(async move {
            let _turn = turn.acquire().await.context("posters")?;
            anyhow::Ok(tenant.send(&body).await?.id)
        }));
    }
    let mut ids = Vec::new();
    for post in posts {
        ids.push(post.await.context("post")??);
    }
    let mut latencies = Vec::new();
    let mut done = began.elapsed();
    let until = Instant::now() + SENT_WITHIN;
    for id in ids {
        loop {
            let events = shelf.tenant.events(&id).await?;
            if let Some(ms) = queued_to_sent(&events) {
                latencies.push(Duration::from_millis(ms));
                break;
            }
            ensure!(Instant::now() < until, "{id} was not sent");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        done = began.elapsed();
    }
    Ok((per_second(latencies.len(), done), latencies))
}

fn queued_to_sent(events: &[MessageEvent]) -> Option<u64> {
    let queued = events.iter().find(|event| event.kind == "queued")?;
    let sent = events.iter().find(|event| event.kind == "sent")?;
    u64::try_from(sent.at.since(queued.at)).ok().or(Some(0))
}

/// How many a second the sandbox's osascript alone can do for one phone, one after the other.
fn osascript_alone(_world: &std::path::Path, phone: &std::path::Path) -> Result<f64> {
    const RUNS: usize = 100;
    let script = "on run argv\n\ttell application \"Messages\"\n\t\tset theAccount to 1st account whose service type = iMessage\n\t\tsend (item 2 of argv) to participant (item 1 of argv) of theAccount\n\tend tell\nend run\n";
    let began = Instant::now();
    for n in 0..RUNS {
        let text = format!("bare {n}");
        e2e::program::script(&phone.join("osascript"), script, &[&recipient(0), &text])?;
    }
    Ok(per_second(RUNS, began.elapsed()))
}
