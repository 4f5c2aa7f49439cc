//! Accepted → dispatched → sent → told: the whole way through a router to stand-in phones without pacing and back to the
//! tenant's hook, beside Kannel on the same machine in the same run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::shelf::{Plan, Shelf};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::Figure;
use crate::kannel::Kannel;
use crate::percentile::{p50_p99, per_second, percentile};
use crate::posts::{self, Ask, Key, Post};
use crate::standin::Standins;
use crate::wire::{self, Hook};

/// Bursts of each; they take turns, so that a noisy minute meets both.
const ROUNDS: u32 = 3;
/// Hosts and the phones of each.
const HOSTS: u32 = 2;
const PHONES: u32 = 16;
const TOLD_WITHIN: Duration = Duration::from_mins(1);

/// Rates of the rounds and latencies of all of them.
#[derive(Default)]
pub(crate) struct Rounds {
    rates: Vec<f64>,
    latencies: Vec<Duration>,
}

impl Rounds {
    /// One burst: posted over all connections, over when the last was told of.
    pub(crate) async fn burst(
        &mut self,
        to: std::net::SocketAddr,
        hook: &Hook,
        (round, messages): (u32, u32),
        (ask, key): (Ask, Key),
    ) -> Result<()> {
        let began = Instant::now();
        let range = (round * messages, (round + 1) * messages);
        let (posts, _) = posts::run(to, range, ask, key).await?;
        let told = hook.take(posts.len(), TOLD_WITHIN).await?;
        let last = told.iter().map(|(_, at)| *at).max().context("nothing was told")?;
        self.add(per_second(posts.len(), last - began), latencies(&posts, told)?);
        Ok(())
    }

    /// Takes in a round.
    pub(crate) fn add(&mut self, rate: f64, latencies: impl IntoIterator<Item = Duration>) {
        self.rates.push(rate);
        self.latencies.extend(latencies);
    }

    /// The middle one.
    pub(crate) fn rate(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(0.0)
    }

    pub(crate) fn say(&mut self) -> String {
        let rates: Vec<String> = self.rates.iter().map(|rate| format!("{rate:.0}")).collect();
        let times = p50_p99(&mut self.latencies);
        format!("{:.0} messages/s (of {}), {times}", self.rate(), rates.join(", "))
    }
}

/// From the request to the report, of each message; every one was told of.
fn latencies(posts: &[Post], told: Vec<(String, Instant)>) -> Result<Vec<Duration>> {
    let mut first: HashMap<String, Instant> = HashMap::with_capacity(told.len());
    for (key, at) in told {
        first.entry(key).or_insert(at);
    }
    posts
        .iter()
        .map(|post| {
            let at = first.get(&post.key).with_context(|| format!("{} was not told", post.key))?;
            Ok(*at - post.asked)
        })
        .collect()
}

/// Everybody has a number of their own, and is written to now and then.
pub(crate) fn recipient(n: u32) -> String {
    format!("+1212{:07}", 2_000_000 + n.wrapping_mul(7_919) % 200_000)
}

pub(crate) fn ask(key: String) -> Ask {
    Arc::new(move |n| {
        let text = format!("Your table number {n} is ready. We keep it for ten minutes.");
        let body =
            serde_json::json!({ "to": recipient(n), "text": text, "class": "transactional" });
        wire::post("/v1/messages", &key, &body)
    })
}

pub(crate) fn id(_n: u32, answer: &[u8]) -> Option<String> {
    wire::message_id(answer)
}

/// The key of a tenant that is told of what was sent, and of nothing else: as Kannel's sender is.
pub(crate) async fn sender(shelf: &Shelf, hook: &Hook) -> Result<String> {
    let tenant = shelf.operator.create_tenant("Sender", "Sender").await?;
    let secret = shelf.operator.create_key(&tenant.id).await?.secret;
    let url = format!("http://{}/", hook.addr);
    shelf.operator.with_token(&secret).create_webhook_for(&url, &["message.sent"]).await?;
    Ok(secret)
}

pub(crate) async fn measure(messages: u32) -> Result<Vec<Figure>> {
    let tasks = TaskTracker::new();
    let hook = Hook::start(&tasks, |_, body| wire::message_id(body)).await?;
    let plan = Plan { phones: vec![], webhooks: "per_endpoint = 64", ..Plan::measured() };
    let shelf = Shelf::start(plan).await?;
    let secret = sender(&shelf, &hook).await?;
    let phones = Standins::start(&shelf.url(), &shelf.operator, HOSTS, PHONES).await?;
    let kannel = Kannel::start(None).await?;

    let (mut ours, mut theirs) = (Rounds::default(), Rounds::default());
    for round in 0..ROUNDS {
        let key: Key = id;
        let how = (ask(secret.clone()), key);
        ours.burst(shelf.addr(), &hook, (round, messages), how).await.context("ours")?;
        if let Some(kannel) = &kannel {
            kannel.burst(&mut theirs, (round, messages)).await.context("Kannel")?;
        }
    }
    // One at a time: what a quiet system takes.
    let mut quiet = Vec::new();
    for n in 0..20 {
        let range = (ROUNDS * messages + n, ROUNDS * messages + n + 1);
        let (posts, _) = posts::run(shelf.addr(), range, ask(secret.clone()), id).await?;
        quiet.extend(latencies(&posts, hook.take(1, TOLD_WITHIN).await?)?);
    }
    let given = u32::try_from(phones.came.sends()).context("sends")?;
    ensure!(given >= ROUNDS * messages, "{given} sends");
    phones.stop().await;
    shelf.stop().await?;
    let ratio = kannel.is_some().then(|| ours.rate() / theirs.rate());
    let baseline = match kannel {
        Some(_) => format!("Kannel, file store without fsync, fakesmsc, reports: {}", theirs.say()),
        None => "NO BASELINE: Kannel is not installed on this machine".to_owned(),
    };
    Ok(vec![
        Figure::new(
            "through: accepted, on disk → stand-in phones → sent → webhook, 64 connections",
            ours.say(),
            baseline,
            ratio,
        ),
        Figure::new(
            "through to stand-in phones and back, one message at a time",
            format!("p50 {:.2} ms", percentile(&mut quiet, 50).as_secs_f64() * 1e3),
            String::new(),
            None,
        ),
    ])
}
