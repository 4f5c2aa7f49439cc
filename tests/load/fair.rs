//! A long queue of one tenant: what a router holds in memory for it, and what it means for another tenant's one code.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::program;
use e2e::shelf::{Plan, Shelf};
use protocol::MessageId;
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::{p50_p99, per_second, percentile};
use crate::posts;
use crate::relay::{ask, id};
use crate::standin::Standins;
use crate::wire;

/// Hosts and the phones of each: few, so that the queue stays long while codes come.
const HOSTS: u32 = 1;
const PHONES: u32 = 4;
/// Codes, one at a time.
const CODES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
const CODE_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn measure(queued: u32) -> Result<Vec<Figure>> {
    let shelf = Shelf::start(Plan { phones: vec![], ..Plan::measured() }).await?;
    let pid = shelf.router_pid()?;
    let started = program::resident_now_kib(pid);
    let long = shelf.operator.create_tenant("Long", "Long").await?;
    let long = shelf.operator.create_key(&long.id).await?.secret;
    let one = shelf.operator.create_tenant("One", "One").await?;
    let one = shelf.operator.create_key(&one.id).await?.secret;
    let (posts, took) = posts::run(shelf.addr(), (0, queued), ask(long), id).await?;
    let rate = per_second(posts.len(), took);
    let resident = program::resident_now_kib(pid);

    let phones = Standins::start(&shelf.url(), &shelf.operator, HOSTS, PHONES).await?;
    // It flows.
    phones.until(200, CODE_WITHIN).await?;
    let mut waits = Vec::new();
    for n in 0..CODES {
        let body = serde_json::json!({
            "to": crate::relay::recipient(n), "text": format!("Your code is {n:06}."), "class": "otp"
        });
        let asked = Instant::now();
        let body = wire::post("/v1/messages", &one, &body);
        let answer = wire::Client::new(shelf.addr()).ask(&body).await?;
        let id: MessageId =
            wire::message_id(&answer).context("an answer about nothing")?.parse()?;
        let came = loop {
            if let Some(came) = phones.came.code(&id) {
                break came;
            }
            ensure!(asked.elapsed() < CODE_WITHIN, "{id} did not reach a phone");
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        waits.push(came - asked);
        tokio::time::sleep(PAUSE).await;
    }
    let given = phones.came.sends();
    ensure!(
        given < usize::try_from(queued).context("queue")?,
        "the queue was over before the codes were: {given}"
    );
    let longest = percentile(&mut waits, 100);
    let busy = program::resident_now_kib(pid);
    phones.stop().await;
    shelf.stop().await?;
    Ok(vec![
        Figure::new(
            "queue: what the router has resident, messages accepted and queued",
            format!(
                "{:.1} MiB with {queued}; {:.1} MiB while they go out",
                mib(resident),
                mib(busy)
            ),
            format!("asked: 64 MB; {:.1} MiB after its start", mib(started)),
            None,
        ),
        Figure::new(
            "fair: one tenant's code while another's queue goes out, request → phone",
            format!(
                "longest of {CODES}: {:.0} ms, {}",
                longest.as_secs_f64() * 1e3,
                p50_p99(&mut waits)
            ),
            format!("asked: 1 s; {queued} came in at {rate:.0} messages/s"),
            None,
        ),
    ])
}

fn mib(kib: u64) -> f64 {
    u32::try_from(kib).map_or(f64::MAX, f64::from) / 1024.0
}
