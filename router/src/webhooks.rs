//! Delivers webhooks: sign, post, write down how it went, try again or give up.
//!
//! The outbox is filled in the transactions that change state ([`crate::store::webhook_jobs::enqueue`]). One task
//! takes what is due, with a bound for each endpoint, so that a slow endpoint fills its own places and nobody else's;
//! the deliveries run beside it. An endpoint that fails gets one delivery at a time, and after some failures in a row
//! none for a while ([`breaker`]); while places are scarce, everybody gets one. What is under way is known to the worker
//! alone: what a dead router had under way is due when the next one starts, so that an endpoint may see an event twice,
//! under the same `webhook-id`; where routers die again and again, after a pause ([`crate::starts`]).

pub mod breaker;
pub mod guard;
pub mod schedule;
pub mod signature;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use protocol::api::WebhookData;
use protocol::{DeliveryId, EndpointId, UnixMs};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::breaker::State;
use crate::clock;
use crate::config;
use crate::server::AppState;
use crate::store::webhook_jobs::{self as jobs, After, Attempt, DueJob, Target};
use crate::store::{StoreError, webhook_endpoints};

/// How long a delivery still counts as under way that could not be written down: it is not to be made again and again while
/// the store is full.
const UNWRITTEN_PAUSE: Duration = Duration::from_secs(30);

/// How long the worker sleeps at most, so that a lost ring or a moved clock costs a moment only.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// How long the worker waits after the store has failed it.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked for endpoints that are deleted, so that a lost ring costs a while only: nobody waits for it.
const SWEEP_EVERY: Duration = Duration::from_mins(10);

/// An endpoint that has failed for so long without one success is switched off: five days.
const FAILING_MAX_MS: i64 = 5 * 24 * 3_600 * 1_000;

/// Longest explanation kept with an attempt, in characters.
const ERROR_CHARS_MAX: usize = 200;

/// What is kept of an answer's body, in bytes: enough for an error message.
const RESPONSE_BYTES_MAX: usize = 1_024;

/// What is read of an answer's body, in bytes, so that its connection can be used again; longer ones cost theirs.
const RESPONSE_READ_MAX: usize = 64 * 1_024;

/// Starts the delivery worker.
pub fn start(app: &AppState) {
    let app = AppState::clone(app);
    let sweeper = AppState::clone(&app);
    app.tasks.clone().spawn(async move { sweep(&sweeper).await });
    app.tasks.clone().spawn(async move { Worker::new(app).run().await });
}

/// Sweeps what was delivered to endpoints that are deleted, when the router starts and whenever one is deleted: a step of
/// each in turn, behind everything else.
async fn sweep(app: &AppState) {
    loop {
        let sleep = match sweep_step(app).await {
            Ok(true) => Duration::ZERO,
            Ok(false) => SWEEP_EVERY,
            Err(error) => {
                tracing::warn!(error = %error, "webhooks: the store does not answer");
                STORE_PAUSE
            }
        };
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = app.bells.swept_endpoints.notified() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// Whether there may be more.
async fn sweep_step(app: &AppState) -> Result<bool, StoreError> {
    let mut more = false;
    for endpoint in app.store.read(webhook_endpoints::deleted).await? {
        more |= app.store.behind().write(move |tx| webhook_endpoints::sweep(tx, &endpoint)).await?;
    }
    Ok(more)
}

/// The owner of all deliveries.
struct Worker {
    app: AppState,
    client: reqwest::Client,
    /// Deliveries under way.
    busy: HashMap<EndpointId, BTreeSet<DeliveryId>>,
    done: mpsc::Receiver<(EndpointId, DeliveryId)>,
    ended: mpsc::Sender<(EndpointId, DeliveryId)>,
    policy: guard::Policy,
    /// Turns so far: each begins with another endpoint, so that scarce places go round.
    turns: usize,
    /// The endpoints whose rows were found damaged: said once, and not in every turn.
    damaged: BTreeSet<String>,
}

impl Worker {
    fn new(app: AppState) -> Self {
        // As many as there can be deliveries: telling of an end never waits.
        let (ended, done) = mpsc::channel(places(app.config.webhooks.in_flight));
        let settings = &app.config.webhooks;
        let policy = guard::Policy {
            allow_private: settings.allow_private,
            networks: settings.allow_networks.clone().into(),
        };
        let client = client(settings, policy.clone());
        let (busy, damaged) = (HashMap::new(), BTreeSet::new());
        Self { app, client, busy, done, ended, policy, turns: 0, damaged }
    }

    async fn run(mut self) {
        let app = AppState::clone(&self.app);
        loop {
            let sleep = match self.turn().await {
                Ok(sleep) => sleep,
                Err(error) => {
                    tracing::warn!(error = %error, "webhooks: the store does not answer");
                    STORE_PAUSE
                }
            };
            tokio::select! {
                () = app.stop.cancelled() => return,
                () = app.bells.webhooks.notified() => {}
                () = tokio::time::sleep(sleep) => {}
                Some(ended) = self.done.recv() => self.ended(&ended),
            }
            while let Ok(ended) = self.done.try_recv() {
                self.ended(&ended);
            }
        }
    }

    fn ended(&mut self, (endpoint, delivery): &(EndpointId, DeliveryId)) {
        if let Some(under_way) = self.busy.get_mut(endpoint) {
            under_way.remove(delivery);
            if under_way.is_empty() {
                self.busy.remove(endpoint);
            }
        }
    }

    /// Starts what is due and fits; answers how long nothing more can fall due.
    async fn turn(&mut self) -> Result<Duration, StoreError> {
        let (in_flight, per_endpoint) = {
            let settings = &self.app.config.webhooks;
            (places(settings.in_flight), places(settings.per_endpoint))
        };
        let now = self.app.clock.now();
        let left_alone = self.app.start.leaves_alone(now);
        let found = self.app.store.read(move |tx| jobs::waiting_endpoints(tx, left_alone)).await?;
        let mut waiting = Vec::with_capacity(found.len());
        for read in found {
            match read {
                Ok(endpoint) => waiting.push(endpoint),
                Err((endpoint, error)) => self.passes_over(endpoint, &error),
            }
        }
        let now = self.app.clock.now();
        let mut sleep = SLEEP_MAX;
        let mut free = in_flight.saturating_sub(self.busy.values().map(BTreeSet::len).sum());
        self.turns = self.turns.wrapping_add(1);
        if !waiting.is_empty() {
            let first = self.turns % waiting.len();
            waiting.rotate_left(first);
        }
        let mut wanted = Vec::new();
        for jobs::Waiting { endpoint, due, failures, paused_until } in waiting {
            let state = State::of(failures, paused_until, now);
            let Some(due) = due else { continue };
            let due = match state {
                State::Open { until } => due.max(until),
                State::HalfOpen | State::Closed => due,
            };
            if due > now {
                let wait = u64::try_from(due.since(now)).unwrap_or(0);
                sleep = sleep.min(Duration::from_millis(wait));
                continue;
            }
            let under_way = self.busy.get(&endpoint);
            let taken = under_way.map_or(0, BTreeSet::len);
            // Many that fail or are slow leave room for the others.
            let scarce = free * 2 < in_flight;
            let share = if state == State::Closed && !scarce { per_endpoint } else { 1 };
            let limit = share.saturating_sub(taken).min(free);
            // A full endpoint is looked at again when one of its deliveries has ended.
            if limit > 0 {
                free -= limit;
                wanted.push((under_way.cloned().unwrap_or_default(), endpoint, limit));
            }
        }
        if wanted.is_empty() {
            return Ok(sleep);
        }
        let found = self
            .app
            .store
            .read(move |tx| {
                let mut found = Vec::with_capacity(wanted.len());
                for (under_way, endpoint, limit) in &wanted {
                    match jobs::next(tx, endpoint, now, left_alone, (under_way, *limit)) {
                        Ok(None) => {}
                        Ok(Some(next)) => found.push(Ok(next)),
                        Err(error) if error.is_unavailable() => return Err(error),
                        Err(error) => found.push(Err((endpoint.as_str().to_owned(), error))),
                    }
                }
                Ok(found)
            })
            .await?;
        for next in found {
            let jobs::Next { target, jobs, later, damaged } = match next {
                Ok(next) => next,
                Err((endpoint, error)) => {
                    self.passes_over(endpoint, &error);
                    continue;
                }
            };
            if !damaged.is_empty() {
                self.app.store.behind().write(move |tx| jobs::fail_damaged(tx, &damaged)).await?;
                // They stood in the places of others.
                sleep = Duration::ZERO;
            }
            if target.disabled {
                // The rest of a long queue is for the next turns.
                let endpoint = target.endpoint;
                self.app.store.behind().write(move |tx| jobs::fail_pending(tx, &endpoint)).await?;
                sleep = Duration::ZERO;
                continue;
            }
            if let Some(later) = later.filter(|later| *later > now) {
                sleep = sleep.min(Duration::from_millis(later.since(now).unsigned_abs()));
            }
            for job in jobs {
                self.deliver(target.clone(), job);
            }
        }
        Ok(sleep)
    }

    /// One endpoint that cannot be read does not keep the others from what is theirs.
    fn passes_over(&mut self, endpoint: String, error: &StoreError) {
        if !self.damaged.contains(&endpoint) {
            tracing::error!(endpoint, error = %error, "webhooks: an endpoint's row is damaged; nothing goes to it");
            self.damaged.insert(endpoint);
        }
    }

    fn deliver(&mut self, target: Target, job: DueJob) {
        self.busy.entry(target.endpoint.clone()).or_default().insert(job.id.clone());
        let (app, client, policy, ended) = (
            AppState::clone(&self.app),
            self.client.clone(),
            self.policy.clone(),
            self.ended.clone(),
        );
        self.app.tasks.spawn(async move {
            let over = (target.endpoint.clone(), job.id.clone());
            attempt(&app, (&client, &policy), target, job).await;
            // The worker is gone only when the router stops.
            if ended.send(over).await.is_err() {
                tracing::debug!("webhooks: a delivery ended after its worker");
            }
        });
    }
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Delivered(StatusCode),
    Gone,
    Failed { status: Option<StatusCode>, error: String, retry_after_ms: Option<i64> },
}

/// What went out and what came back.
#[derive(Debug)]
struct Posted {
    outcome: Outcome,
    /// How the answer's body began.
    response: Option<String>,
    /// How long it took.
    ms: u64,
    /// When it began and when it was over.
    at: (UnixMs, UnixMs),
}

/// One delivery: post, then write down.
async fn attempt(
    app: &AppState,
    (client, policy): (&reqwest::Client, &guard::Policy),
    target: Target,
    job: DueJob,
) {
    let at = app.clock.now();
    let started = Instant::now();
    let (outcome, response) = post(client, policy, (&target, &job), at).await;
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let label = match &outcome {
        Outcome::Delivered(_) => "delivered",
        Outcome::Gone => "gone",
        Outcome::Failed { .. } => "failed",
    };
    metrics::counter!("switchboard_webhook_attempts_total", "outcome" => label).increment(1);
    let id = job.id.clone();
    let posted = Posted { outcome, response, ms, at: (at, app.clock.now()) };
    let disabled =
        app.store.behind().write_often(move |tx| write_down(tx, &target, &job, &posted)).await;
    match disabled {
        Ok(false) => {}
        Ok(true) => app.bells.webhooks.notify_one(),
        // It falls due again: once more is better than never.
        Err(error) => {
            tracing::warn!(delivery = %id, error = %error, "webhooks: an attempt was not written down");
            tokio::select! {
                () = app.stop.cancelled() => {}
                () = tokio::time::sleep(UNWRITTEN_PAUSE) => {}
            }
        }
    }
}

async fn post(
    client: &reqwest::Client,
    policy: &guard::Policy,
    (target, job): (&Target, &DueJob),
    at: UnixMs,
) -> (Outcome, Option<String>) {
    let failed =
        |error: String| (Outcome::Failed { status: None, error, retry_after_ms: None }, None);
    let url = match guard::check_url(&target.url, policy) {
        Ok(url) => url,
        Err(refused) => return failed(refused.to_string()),
    };
    let timestamp_s = at.0.div_euclid(1_000);
    let event = job.event.as_str();
    let signature = match signature::sign_all(&target.secrets, event, timestamp_s, &job.body) {
        Ok(signature) => signature,
        Err(bad) => return failed(bad.to_string()),
    };
    let sent = client
        .post(url)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header("webhook-id", event)
        .header("webhook-timestamp", timestamp_s.to_string())
        .header("webhook-signature", signature)
        .body(job.body.clone())
        .send()
        .await;
    match sent {
        Ok(answer) => {
            let retry_after_ms = retry_after_ms(answer.headers().get(RETRY_AFTER));
            let outcome = judge(answer.status(), retry_after_ms);
            (outcome, beginning(answer).await)
        }
        Err(error) => failed(explain(&error)),
    }
}

/// How the body of an answer begins. What came of the delivery is said by the status, whatever becomes of the body.
async fn beginning(mut answer: reqwest::Response) -> Option<String> {
    let (mut kept, mut read) = (Vec::new(), 0);
    while read < RESPONSE_READ_MAX
        && let Ok(Some(chunk)) = answer.chunk().await
    {
        read += chunk.len();
        let room = RESPONSE_BYTES_MAX - kept.len();
        kept.extend(chunk.iter().take(room));
    }
    let text = String::from_utf8_lossy(&kept);
    // Such characters steer terminals, and PostgreSQL takes no NUL.
    let readable = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { ' ' } else { c };
    let text: String = text.chars().map(readable).collect();
    (!text.trim().is_empty()).then_some(text)
}

/// What a status means. Only 2xx is success: a redirect is not followed, because the tenant gave this address.
fn judge(status: StatusCode, retry_after_ms: Option<i64>) -> Outcome {
    if status.is_success() {
        return Outcome::Delivered(status);
    }
    if status == StatusCode::GONE {
        return Outcome::Gone;
    }
    let error = if status.is_redirection() {
        "redirects are not followed".to_owned()
    } else {
        format!("answered {}", status.as_u16())
    };
    Outcome::Failed { status: Some(status), error, retry_after_ms }
}

/// `Retry-After` in seconds; the form with a date is not worth trusting a foreign clock for.
fn retry_after_ms(header: Option<&HeaderValue>) -> Option<i64> {
    let seconds: i64 = header?.to_str().ok()?.trim().parse().ok()?;
    Some(seconds.saturating_mul(1_000))
}

/// Why no answer came, for the tenant's eyes: without the URL, whose query may hold a secret.
fn explain(error: &reqwest::Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<guard::Refused>() {
            return refused.to_string();
        }
        cause = inner.source();
    }
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let innermost = std::iter::successors(std::error::Error::source(error), |inner| inner.source())
        .last()
        .map_or_else(|| "the request failed".to_owned(), ToString::to_string);
    let what = if error.is_connect() { "could not connect" } else { "the request failed" };
    format!("{what}: {innermost}").chars().take(ERROR_CHARS_MAX).collect()
}

/// Writes down how it went; true when new webhooks were enqueued by that.
fn write_down(
    tx: &mut crate::store::Tx<'_>,
    target: &Target,
    job: &DueJob,
    posted: &Posted,
) -> Result<bool, StoreError> {
    let number = job.attempts.saturating_add(1);
    let (at, now) = posted.at;
    let response = posted.response.clone();
    let mut attempt = Attempt { at, status: None, error: None, ms: posted.ms, response };
    let again = |retry_after_ms| {
        let chance = u16::from_le_bytes(clock::random());
        let made = number.saturating_sub(job.round_from);
        schedule::wait_ms(made, chance, retry_after_ms)
            .map_or(After::GiveUp, |wait| After::Retry { at: now.plus_ms(wait) })
    };
    match &posted.outcome {
        Outcome::Delivered(status) => {
            attempt.status = Some(status.as_u16());
            jobs::finish(tx, &job.id, number, &attempt, After::Delivered)?;
            jobs::works(tx, target)?;
            Ok(false)
        }
        Outcome::Gone => {
            attempt.status = Some(StatusCode::GONE.as_u16());
            attempt.error = Some("answered 410: the endpoint is gone".to_owned());
            if !jobs::is_there(tx, target)? {
                // It has moved meanwhile: that the old address is gone is as it should be, and the new one is still to be
                // tried.
                jobs::finish(tx, &job.id, number, &attempt, again(None))?;
                return Ok(false);
            }
            jobs::finish(tx, &job.id, number, &attempt, After::GiveUp)?;
            switch_off(tx, target, "gone", now)
        }
        Outcome::Failed { status, error, retry_after_ms } => {
            attempt.status = status.map(|status| status.as_u16());
            attempt.error = Some(error.clone());
            jobs::finish(tx, &job.id, number, &attempt, again(*retry_after_ms))?;
            let Some((since, failures)) = jobs::fails(tx, target, posted.at)? else {
                return Ok(false);
            };
            if now.since(since) >= FAILING_MAX_MS {
                return switch_off(tx, target, "failing", now);
            }
            let chance = u16::from_le_bytes(clock::random());
            if let Some(pause) = breaker::pause_ms(failures, chance, *retry_after_ms) {
                jobs::pause(tx, target, now.plus_ms(pause))?;
            }
            Ok(false)
        }
    }
}

/// Switches an endpoint off and tells the tenant's other endpoints.
fn switch_off(
    tx: &mut crate::store::Tx<'_>,
    target: &Target,
    reason: &str,
    now: UnixMs,
) -> Result<bool, StoreError> {
    if !jobs::disable(tx, target, reason, now)? {
        return Ok(false);
    }
    tracing::warn!(endpoint = %target.endpoint, reason, "webhooks: an endpoint was switched off");
    let data = WebhookData {
        tenant: Some(target.tenant.clone()),
        detail: Some(format!("{} was switched off: {reason}", target.endpoint)),
        ..WebhookData::default()
    };
    let test = webhook_endpoints::is_test(tx, &target.tenant, &target.endpoint)?;
    Ok(jobs::enqueue(tx, (&target.tenant, test), "webhook_endpoint.disabled", &data, now)? > 0)
}

/// The one client of all deliveries: no redirects, no proxy from the environment (it would see every URL and stand
/// between the guard and the address), and names resolved by the guard.
fn client(settings: &config::Webhooks, policy: guard::Policy) -> reqwest::Client {
    // Another part of the process may have installed the same provider: then there is one, which is all we need.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("webhooks: the TLS provider was there already");
    }
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .dns_resolver(guard::PublicResolver::new(policy))
        .timeout(Duration::from_millis(settings.timeout_ms))
        .pool_max_idle_per_host(places(settings.per_endpoint))
        .user_agent(concat!("Switchboard/", env!("CARGO_PKG_VERSION")))
        .build()
        .expect("a client without files to read is built from constants")
}

fn places(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).max(1)
}
