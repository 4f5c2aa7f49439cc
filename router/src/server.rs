//! The HTTP server, and what every part of the router holds.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use protocol::{MessageId, UnixMs};
use router_client::key::HostKey;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::limit::RequestBodyLimitLayer;

use crate::auth::{self, Auth};
use crate::clock::Clock;
use crate::config::Config;
use crate::idempotency::InFlight;
use crate::lease::Policy;
use crate::lines::Lines;
use crate::link::Links;
use crate::listener::{Bounded, CONNECTIONS_MAX, PATIENCE};
use crate::metrics::{self, Metrics};
use crate::pool::{self, Caps, Pool};
use crate::providers::{self, Providers};
use crate::starts::Start;
use crate::steady::Steady;
use crate::store::queue::Turns;
use crate::store::{Store, StoreError, retention, tally};
use crate::{api, batches, dispatch, error, idempotency, link, store, webhooks};

/// What every part of the router holds; shared as [`AppState`].
#[derive(Debug)]
pub struct App {
    /// The checked configuration.
    pub config: Config,
    /// The store.
    pub store: Store,
    /// Where the present comes from.
    pub clock: Clock,
    /// This start, and how often the router died soon after the ones before it.
    pub start: Start,
    /// Whether the wall clock can be believed.
    pub steady: Steady,
    /// What wakes the workers.
    pub bells: Bells,
    /// The sessions of hosts.
    pub links: Links,
    /// The phones in memory.
    pub(crate) pool: pool::Shared,
    /// The providers of SMS in memory.
    pub providers: Providers,
    /// Whose turn it is in the queue; taken only by closures that the writing thread runs one after another.
    pub(crate) turns: Arc<Mutex<Turns>>,
    pub(crate) lines: Arc<Mutex<Lines>>,
    /// Every task of the router, so that shutdown can wait for them.
    pub tasks: TaskTracker,
    /// Cancelled when the router is to stop taking work.
    pub stop: CancellationToken,
    pub(crate) auth: Auth,
    pub(crate) in_flight: InFlight,
    pub(crate) outcomes: batches::outcomes::Outcomes,
    pub(crate) metrics: Metrics,
    /// The router's own key: hosts that it dials know it by that.
    pub(crate) key: HostKey,
}

/// The shared [`App`]; the state of every route.
pub type AppState = Arc<App>;

/// What wakes a sleeping worker. A ring while it works is kept until it sleeps.
#[derive(Debug, Default)]
pub struct Bells {
    /// A message or a phone has become available.
    pub dispatch: Notify,
    /// Webhook jobs were enqueued.
    pub webhooks: Notify,
    /// A batch was started, resumed or canceled.
    pub batches: Notify,
    /// A webhook endpoint was deleted, and what was delivered to it is to go.
    pub swept_endpoints: Notify,
}

/// Idle time between two rounds of the janitor.
const JANITOR_EVERY: Duration = Duration::from_secs(30);
/// Idle time between two rounds of pruning: what is kept for weeks may stay an hour longer.
const PRUNE_EVERY: Duration = Duration::from_hours(1);
/// Rest between two steps of pruning, for whoever else writes.
const PRUNE_REST: Duration = Duration::from_millis(50);
/// Age of the oldest sample of what waits: scrapers come every 15 s or more.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

impl App {
    /// How leases are given this moment.
    pub(crate) fn lease_policy(&self) -> Policy {
        let lease = self.config.lease;
        let ms = |value| i64::try_from(value).unwrap_or(i64::MAX);
        Policy {
            ttl_ms: ms(lease.ttl_ms),
            grace_ms: ms(lease.grace_ms),
            unfit_ms: ms(lease.unfit_ms),
            settle_ms: ms(lease.settle_ms),
            steady_ms: self.steady.look(self.clock.now(), tokio::time::Instant::now()),
        }
    }

    /// Opens the store and makes what the parts share. Nothing runs yet.
    pub async fn open(config: Config, clock: Clock) -> Result<AppState, StoreError> {
        let metrics = Metrics::install();
        let path = config.database.clone();
        let log_mib = config.database_log_mib;
        let store = tokio::task::spawn_blocking(move || Store::open_with(&path, log_mib))
            .await
            .map_err(|_panicked| StoreError::Panicked)??;
        // After the store: what is wrong with their folder is told of the store.
        let key = own_key(&config.key_file)?;
        // Whatever sessions stand there ended with the process that had them.
        store.write(store::admin::forget_sessions).await?;
        let (plans, now) = (Arc::clone(&config.plans), clock.now());
        for plan in store.write(move |tx| store::accounts::apply(tx, &plans, now)).await? {
            tracing::warn!(
                plan,
                "tenants have a plan that is not configured; what it said last goes on for them"
            );
        }
        let pool = Pool::new(Caps {
            warming: Arc::new(config.warming.clone()),
            daily: config.dispatch.daily_cap,
            in_flight: config.dispatch.in_flight_per_phone,
        });
        let providers = Providers::new(config.providers.clone());
        providers.load(&store).await?;
        let start = store.write(move |tx| store::starts::begin(tx, now)).await?;
        let pause_ms = start.quiet_until.since(start.at);
        if pause_ms > 0 {
            tracing::warn!(
                deaths = start.deaths,
                pause_ms,
                "the router died soon after each of its last starts; what it may have had in hand waits"
            );
        }
        Ok(Arc::new(Self {
            config,
            providers,
            pool: Arc::new(Mutex::new(pool)),
            turns: Arc::default(),
            lines: Arc::default(),
            store,
            steady: Steady::new(clock.now(), tokio::time::Instant::now()),
            clock,
            start,
            bells: Bells::default(),
            links: Links::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            auth: Auth::default(),
            in_flight: InFlight::default(),
            outcomes: batches::outcomes::Outcomes::default(),
            metrics,
            key,
        }))
    }
}

/// Reads the router's key, or makes one at the first start.
fn own_key(file: &Path) -> Result<HostKey, StoreError> {
    // The folder is the store's, whose mode is the operator's business.
    HostKey::load_or_generate_beside(file).map(|(key, _new)| key).map_err(|error| {
        StoreError::Open {
            path: file.display().to_string(),
            source: Arc::new(std::io::Error::other(error)),
        }
    })
}

/// Every route, with what stands around all of them.
pub fn router(app: &AppState) -> Router {
    let api::Routes { ordinary, long, streamed } = api::routes(app);
    // By the announced length where there is one: before a byte of the body is read, or asked for by 100 Continue.
    // What stands around all routes is put around them at once: each layer by itself costs every request a box.
    let limited = |bytes| (RequestBodyLimitLayer::new(bytes), DefaultBodyLimit::disable());
    let body_bytes = app.config.limits.body_bytes;
    ordinary
        .merge(link::routes())
        .layer((api::ReadAwayLayer(body_bytes), limited(body_bytes)))
        .merge(long.layer(limited(body_bytes.max(api::LONG_BODY_BYTES))))
        .merge(streamed.layer(limited(api::STREAMED_BODY_BYTES)))
        .layer(from_fn_with_state(AppState::clone(app), error::answer))
        .with_state(AppState::clone(app))
}

/// Runs the workers and serves `listener` until `app.stop` is cancelled; then drains, for as long as the configuration
/// allows.
pub async fn serve(app: &AppState, listener: TcpListener) -> std::io::Result<()> {
    dispatch::start(app);
    webhooks::start(app);
    providers::start(app);
    batches::start(app);
    link::start(app);
    app.tasks.spawn(janitor(AppState::clone(app)));
    app.tasks.spawn(prune(AppState::clone(app)));
    app.tasks.spawn(sample(AppState::clone(app)));

    // The handling of a request may take its whole time before the first byte of the answer is written.
    let patience = PATIENCE + Duration::from_millis(app.config.limits.request_timeout_ms);
    let listener = Bounded::new(listener, CONNECTIONS_MAX, patience);
    let stop = app.stop.clone();
    let service = router(app).into_make_service_with_connect_info::<auth::Peer>();
    let server = axum::serve(listener, service)
        .with_graceful_shutdown(async move { stop.cancelled().await });
    let drained = async {
        app.stop.cancelled().await;
        tokio::time::sleep(app.config.drain).await;
    };
    tokio::select! {
        served = server => served?,
        () = drained => tracing::warn!("requests were still running when the drain ended"),
    }
    app.stop.cancel();
    app.tasks.close();
    if tokio::time::timeout(app.config.drain, app.tasks.wait()).await.is_err() {
        tracing::warn!(tasks = app.tasks.len(), "tasks were still running when the drain ended");
    } else if let Err(error) = app.store.write(store::starts::end).await {
        tracing::warn!(error = %error, "the end was not written down; the next start takes it for a death");
    }
    Ok(())
}

/// Keeps what grows from growing without end.
async fn janitor(app: AppState) {
    let mut every = tokio::time::interval(JANITOR_EVERY);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _tick = every.tick() => {}
        }
        app.metrics.upkeep();
        let before = app.clock.now().plus_ms(-idempotency::KEPT_MS);
        // Small steps, so that no writer waits behind a long one; the rest is for the next round's steps.
        loop {
            match app.store.write(move |tx| store::idempotency::forget(tx, before)).await {
                Ok(0) => break,
                Ok(_) if app.stop.is_cancelled() => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "old idempotency keys were not forgotten");
                    break;
                }
            }
        }
    }
}

/// Deletes what is kept for a while only, in small steps.
async fn prune(app: AppState) {
    let mut every = tokio::time::interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _tick = every.tick() => {}
        }
        let now = app.clock.now();
        for old in Old::ALL {
            delete(&app, old, now).await;
        }
    }
}

/// What is kept for a while.
#[derive(Debug, Clone, Copy)]
enum Old {
    /// Proofs and records of work that is over.
    Records,
    /// Who was in a batch.
    Recipients,
    /// What messages were charged.
    Charges,
    /// What the operator did.
    Audit,
    /// Batches that nobody goes on with.
    IdleBatches,
    /// Which channels reach whom.
    Capabilities,
}

impl Old {
    const ALL: [Self; 6] = [
        Self::Records,
        Self::Recipients,
        Self::Charges,
        Self::Audit,
        Self::IdleBatches,
        Self::Capabilities,
    ];
}

/// What was looked at last, where not everything that is looked at is deleted.
#[derive(Debug, Default)]
struct Place {
    charges: Option<MessageId>,
    capabilities: Option<retention::Known>,
}

/// So many days ago; `None` for what is kept for ever.
fn days_before(now: UnixMs, days: u32) -> Option<UnixMs> {
    (days > 0).then(|| now.plus_ms(-i64::from(days) * 86_400_000))
}

/// Deletes what has been kept long enough, with a rest after each step, until there is nothing more or the router stops.
async fn delete(app: &App, old: Old, now: UnixMs) {
    let mut place = Place::default();
    loop {
        match step(app, old, now, &mut place).await {
            Ok(0) => return,
            Ok(rows) => tracing::debug!(?old, rows, "what was kept long enough was deleted"),
            Err(error) => {
                tracing::warn!(?old, %error, "what was kept long enough was not deleted");
                return;
            }
        }
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(PRUNE_REST) => {}
        }
    }
}

/// Deletes some; answers 0 when there is nothing more.
async fn step(app: &App, old: Old, now: UnixMs, place: &mut Place) -> Result<usize, StoreError> {
    let kept = app.config.retention;
    let store = &app.store;
    match old {
        Old::Records => {
            let before = now.plus_ms(-retention::KEPT_MS);
            Ok(store.write(move |tx| retention::prune(tx, before)).await?.rows())
        }
        Old::Recipients => match days_before(now, kept.recipients_days) {
            Some(before) => store.write(move |tx| retention::recipients(tx, before, now)).await,
            None => Ok(0),
        },
        Old::Charges => {
            let Some(before) = days_before(now, kept.charges_days) else { return Ok(0) };
            let after = place.charges.take();
            let (_deleted, last) =
                store.write(move |tx| retention::charges(tx, before, after.as_ref())).await?;
            place.charges = last;
            Ok(usize::from(place.charges.is_some()))
        }
        Old::Audit => match days_before(now, kept.audit_days) {
            Some(before) => store.write(move |tx| retention::audit(tx, before)).await,
            None => Ok(0),
        },
        Old::IdleBatches => {
            let Some(before) = days_before(now, kept.idle_batch_days) else { return Ok(0) };
            let withdrawn = store.write(move |tx| retention::idle_batches(tx, before, now)).await?;
            if withdrawn > 0 {
                app.bells.batches.notify_one();
            }
            Ok(withdrawn)
        }
        Old::Capabilities => {
            let Some(before) = days_before(now, kept.capabilities_days) else { return Ok(0) };
            let after = place.capabilities.take();
            let (_deleted, last) =
                store.write(move |tx| retention::capabilities(tx, before, after.as_ref())).await?;
            place.capabilities = last;
            Ok(usize::from(place.capabilities.is_some()))
        }
    }
}

/// Keeps the numbers of what waits fresh.
async fn sample(app: AppState) {
    let mut every = tokio::time::interval(SAMPLE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut holding = BTreeSet::new();
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _tick = every.tick() => {}
        }
        match app.store.read(tally::take).await {
            Ok(tally) => metrics::show(&tally, &mut holding),
            Err(error) => tracing::warn!(%error, "what waits was not counted"),
        }
    }
}
