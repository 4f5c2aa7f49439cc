//! Asks providers for what was decided, and looks for what they have not reported.
//!
//! The queue is the store: an attempt that is `offered` waits, one that is `started` is being asked for. A process that
//! ends between the two commits leaves it `started`, which the next one takes for what it is: unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protocol::{E164, PhoneId, UnixMs};
use tokio::time::Instant;

use super::desk::Ready;
use super::record;
use super::{Fault, Found, Order, Outcome, Provider, Sought};
use crate::inbound::{Effects, Rules};
use crate::server::AppState;
use crate::store::StoreError;
use crate::store::providers::{self as rows, Ordered};

/// How long it sleeps at most while there are providers, so that a lost ring costs a moment only.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How long it waits after the store has failed it.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How often SMS are counted, for whom that is a condition.
const COUNT_EVERY_MS: i64 = 5 * 60_000;
/// Attempts of a former life settled in one transaction.
const ORPHANS: usize = 256;
/// Messages looked for at one provider in one turn, one after another.
const LOOKS: usize = 16;
/// A provider that asks to be left alone without saying for how long.
const REST_MS: i64 = 1_000;

/// Starts the worker.
pub(crate) fn start(app: &AppState) {
    let app = AppState::clone(app);
    app.tasks.clone().spawn(async move { run(&app).await });
}

async fn run(app: &AppState) {
    while let Err(error) = adopt(app).await {
        tracing::warn!(error = %error, "providers: the store does not answer");
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(STORE_PAUSE) => {}
        }
    }
    let looking = Arc::new(AtomicBool::new(false));
    let mut counted_at = UnixMs(i64::MIN);
    loop {
        if app.providers.are_none() {
            tokio::select! {
                () = app.stop.cancelled() => return,
                () = app.providers.rung() => {}
            }
            continue;
        }
        let sleep = match turn(app, &looking, &mut counted_at).await {
            Ok(()) => SLEEP_MAX,
            Err(error) => {
                tracing::warn!(error = %error, "providers: the store does not answer");
                STORE_PAUSE
            }
        };
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = app.providers.rung() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// What the decisions about attempts take.
pub(crate) fn rules(app: &AppState) -> Rules {
    crate::inbound::rules(app)
}

/// Settles what a former life of the router was asking for.
async fn adopt(app: &AppState) -> Result<(), StoreError> {
    let rules = rules(app);
    loop {
        let now = app.clock.now();
        let (count, effects) =
            app.store.write(move |tx| record::orphaned(tx, rules, ORPHANS, now)).await?;
        follow(app, &effects).await;
        if count < ORPHANS {
            return Ok(());
        }
    }
}

async fn turn(
    app: &AppState,
    looking: &Arc<AtomicBool>,
    counted_at: &mut UnixMs,
) -> Result<(), StoreError> {
    let now = app.clock.now();
    if app.providers.need_counting()
        && (now.since(*counted_at) >= COUNT_EVERY_MS || now < *counted_at)
    {
        *counted_at = now;
        let sms = app.store.read(move |tx| rows::sms_a_day(tx, now)).await?;
        if app.providers.counted(sms, now) {
            crate::dispatch::phone_became_able(app).await?;
        }
    }
    let all = app.providers.ready(now);
    for one in &all {
        take_up(app, one, now).await?;
    }
    if !looking.swap(true, Ordering::AcqRel) {
        let (app, looking) = (AppState::clone(app), Arc::clone(looking));
        app.tasks.clone().spawn(async move {
            for one in &all {
                if let Err(error) = look(&app, one).await {
                    tracing::warn!(error = %error, "providers: the store does not answer");
                }
            }
            looking.store(false, Ordering::Release);
        });
    }
    Ok(())
}

/// Takes up what waits for one provider, and begins to ask.
async fn take_up(app: &AppState, one: &Ready, now: UnixMs) -> Result<(), StoreError> {
    let phone = one.phone.clone();
    // One that cannot be asked gives back all that waits, whoever is under way with it.
    let limit = if one.usable { one.free } else { ORPHANS };
    if limit == 0 || app.store.read(move |tx| rows::waiting(tx, &phone, 1)).await? == 0 {
        return Ok(());
    }
    let (rules, phone, usable) = (rules(app), one.phone.clone(), one.usable);
    let (claimed, effects) =
        app.store.write(move |tx| record::claim(tx, rules, (&phone, usable), limit, now)).await?;
    follow(app, &effects).await;
    let Some(provider) = &one.provider else { return Ok(()) };
    for ordered in claimed {
        app.providers.begins(&one.name);
        let (app, one) = (AppState::clone(app), one.clone());
        let provider = Arc::clone(provider);
        app.tasks.clone().spawn(async move {
            attempt(&app, &one, provider.as_ref(), ordered).await;
            app.providers.ends(&one.name);
            app.providers.ring();
        });
    }
    Ok(())
}

/// One attempt: asks, judges how the API does, writes down what came of it.
async fn attempt(app: &AppState, one: &Ready, provider: &dyn Provider, ordered: Ordered) {
    let began = Instant::now();
    let outcome = match order(app, one, &ordered) {
        Some(order) => provider.send(&order).await,
        // No such message is ever decided; nobody was asked.
        None => Outcome::NotSent(super::Refusal {
            fault: Fault::Message,
            reason: protocol::Reason::BadAddress,
            detail: "the recipient is no number".to_owned(),
        }),
    };
    let now = app.clock.now();
    let label = match &outcome {
        Outcome::Accepted { .. } => "accepted",
        Outcome::NotSent(_) => "not_sent",
        Outcome::Unknown { .. } => "unknown",
    };
    metrics::counter!("switchboard_provider_attempts_total", "provider" => one.name.clone(), "outcome" => label)
        .increment(1);
    metrics::histogram!("switchboard_provider_seconds", "provider" => one.name.clone())
        .record(began.elapsed().as_secs_f64());
    match &outcome {
        Outcome::Accepted { .. } => app.providers.answered(&one.name, true, now),
        Outcome::Unknown { detail } => {
            tracing::warn!(provider = %one.name, message = %ordered.message, detail, "providers: nobody knows whether it was sent");
            app.providers.answered(&one.name, false, now);
        }
        Outcome::NotSent(refusal) => {
            tracing::info!(provider = %one.name, message = %ordered.message, detail = %refusal.detail, "providers: not sent");
            match refusal.fault {
                // It has understood what it was asked: its API works.
                Fault::Message | Fault::OptedOut | Fault::Unreachable => {
                    app.providers.answered(&one.name, true, now);
                }
                Fault::Provider => app.providers.answered(&one.name, false, now),
                Fault::Busy { wait_ms } => {
                    app.providers.rests(&one.name, now.plus_ms(wait_ms.unwrap_or(REST_MS)));
                }
            }
        }
    }
    write_down(app, one, ordered, outcome).await;
}

/// Writes an outcome down, however long the store takes: what is not on disk would be unknown after a restart.
async fn write_down(app: &AppState, one: &Ready, ordered: Ordered, outcome: Outcome) {
    let rules = rules(app);
    loop {
        let now = app.clock.now();
        let (phone, ordered, outcome) = (one.phone.clone(), ordered.clone(), outcome.clone());
        let (message, attempt) = (ordered.message.clone(), ordered.attempt);
        let written = app
            .store
            .write(move |tx| record::outcome(tx, rules, (&phone, &ordered), &outcome, now))
            .await;
        match written {
            Ok(effects) => return follow(app, &effects).await,
            Err(error) if error.is_unavailable() => {
                tracing::warn!(message = %message, error = %error, "providers: an outcome is not on disk yet");
                tokio::select! {
                    () = app.stop.cancelled() => return,
                    () = tokio::time::sleep(STORE_PAUSE) => {}
                }
            }
            Err(error) => {
                // The message's own row is damaged: at least the attempt is over, and is not taken up again.
                tracing::error!(message = %message, error = %error, "providers: an outcome cannot be written down");
                let done = app
                    .store
                    .write(move |tx| {
                        crate::store::dispatch::set_attempt_state(
                            tx, &message, attempt, "done", now,
                        )
                    })
                    .await;
                if let Err(error) = done {
                    tracing::error!(error = %error, "providers: nor can it be ended");
                }
                return;
            }
        }
    }
}

fn order(app: &AppState, one: &Ready, ordered: &Ordered) -> Option<Order> {
    let to: E164 = ordered.recipient.number()?.clone();
    let now = ordered.asked_at.unwrap_or_else(|| app.clock.now());
    let mut report_to = app.providers.config().webhook_url(one.row.kind, &one.name)?;
    report_to
        .query_pairs_mut()
        .append_pair("message", ordered.message.as_str())
        .append_pair("attempt", &ordered.attempt.to_string());
    Some(Order {
        message: ordered.message.clone(),
        attempt: ordered.attempt,
        to,
        from: one.row.number.clone(),
        text: ordered.text.clone(),
        life_s: ordered.keep_until.since(now) / 1_000,
        report_to,
    })
}

/// Looks for what a provider has not reported.
async fn look(app: &AppState, one: &Ready) -> Result<(), StoreError> {
    let Some(provider) = &one.provider else { return Ok(()) };
    let (phone, now) = (one.phone.clone(), app.clock.now());
    let due = app.store.read(move |tx| rows::to_look_up(tx, &phone, now, LOOKS)).await?;
    for ordered in due {
        if app.stop.is_cancelled() {
            return Ok(());
        }
        let found = match (order(app, one, &ordered), ordered.asked_at) {
            (Some(order), Some(asked_at)) => {
                let sought = Sought { order, id: ordered.id.clone(), asked_at };
                provider.look_up(&sought).await
            }
            (_, _) => Found::Nothing,
        };
        if let Found::Failed(why) = &found {
            tracing::info!(provider = %one.name, message = %ordered.message, why, "providers: a look-up failed");
        }
        let (rules, phone, now): (Rules, PhoneId, UnixMs) =
            (rules(app), one.phone.clone(), app.clock.now());
        let effects = app
            .store
            .write(move |tx| record::looked(tx, rules, (&phone, &ordered), &found, now))
            .await?;
        follow(app, &effects).await;
    }
    Ok(())
}

/// What follows a commit.
pub(crate) async fn follow(app: &AppState, effects: &Effects) {
    app.bells.webhooks.notify_one();
    if effects.dispatch {
        app.bells.dispatch.notify_one();
    }
    for message in &effects.recall {
        crate::dispatch::recall(app, message).await;
    }
}
