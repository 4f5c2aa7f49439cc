//! Turns batches into messages, page by page, behind everything else.
//!
//! A page is one transaction with the place that the batch has come to ([`batches::step`]), so that a router that is
//! ended anywhere goes on from there. Between two pages everybody else writes. The batches of all tenants take turns,
//! and none has more than `messages.batch_queued` messages in the queue that could be sent: what is not there yet can
//! still be paused, and does not grow old there.

pub mod outcomes;

use std::time::Duration;

use protocol::api::BatchState;
use protocol::{BatchId, TenantId};

use crate::server::{App, AppState};
use crate::store::StoreError;
use crate::store::batches::{self, AT_WORK_ROWS, Measure, Step};

/// Recipients of a page.
pub const PAGE_ROWS: u32 = 1_000;

/// How long the loop sleeps where there is nothing to do, or nothing that can be done yet.
const SLEEP: Duration = Duration::from_millis(500);
/// How long it waits after the store has failed it.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Starts the loop.
pub fn start(app: &AppState) {
    let app = AppState::clone(app);
    app.tasks.clone().spawn(async move { run(&app).await });
}

async fn run(app: &App) {
    loop {
        let sleep = match turn(app).await {
            Ok(true) => Duration::ZERO,
            Ok(false) => SLEEP,
            Err(error) => {
                tracing::warn!(error = %error, "batches: the store does not answer");
                STORE_PAUSE
            }
        };
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = app.bells.batches.notified() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// One page of every batch that has one; whether anything was done.
pub async fn turn(app: &App) -> Result<bool, StoreError> {
    let (mut done, mut after) = (false, None);
    // However many there are, each has its turn before the first one has its next.
    loop {
        let (behind, now) = (after.clone(), app.clock.now());
        let found = app
            .store
            .read(move |tx| batches::at_work(tx, behind.as_ref(), now, AT_WORK_ROWS))
            .await?;
        let is_last = found.len() < AT_WORK_ROWS;
        after = found.last().map(|(_tenant, id)| id.clone());
        done |= pages(app, found).await?;
        if is_last || app.stop.is_cancelled() {
            return Ok(done);
        }
    }
}

/// One page of each of these batches; whether anything was done.
async fn pages(app: &App, found: Vec<(TenantId, BatchId)>) -> Result<bool, StoreError> {
    let measure = Measure { page: PAGE_ROWS, lives: app.config.messages };
    let mut done = false;
    for (tenant, id) in found {
        if app.stop.is_cancelled() {
            return Ok(false);
        }
        let now = app.clock.now();
        let (whose, batch) = (tenant.clone(), id.clone());
        let stepped = app
            .store
            .behind()
            .write(move |tx| batches::step(tx, &whose, &batch, &measure, now))
            .await;
        match stepped {
            Ok(Step::Waits) => continue,
            Ok(Step::Expanded(messages)) => {
                metrics::counter!("switchboard_messages_accepted_total")
                    .increment(messages.try_into().unwrap_or(0));
                app.bells.dispatch.notify_one();
            }
            Ok(Step::Canceled(messages)) => {
                for message in &messages {
                    crate::dispatch::recall(app, message).await;
                }
            }
            Ok(Step::Turned(state)) => {
                tracing::info!(batch = %id, state = BatchState::as_str(state), "batches: one has come further");
            }
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => {
                // One that cannot be read must not keep the others back, nor be tried twice a second for ever.
                tracing::error!(batch = %id, error = %error, "batches: a step failed, so the batch is paused");
                app.store.write(move |tx| batches::stall(tx, &tenant, &id, now)).await?;
            }
        }
        done = true;
        app.bells.webhooks.notify_one();
    }
    Ok(done)
}
