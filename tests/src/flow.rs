//! A steady flow of messages, each with a text of its own, posted as a careful tenant posts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use protocol::MessageId;
use protocol::api::Message;
use tokio_util::task::TaskTracker;

use crate::api::Api;
use crate::ledger::{self, Books};
use crate::shelf::{Shelf, message};

/// A tenant gives up only when the router has been away for longer than any restart takes.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);

/// Numbers that the sandbox treats alike: on iMessage, sent and delivered.
const RECIPIENTS: u64 = 100;

/// Messages being posted in the background.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    posted: tokio::task::JoinHandle<Result<Vec<MessageId>>>,
}

/// Recipient number `n`: an area code and one of the ten numbers 555-0100 to 555-0109.
pub fn recipient(n: u64) -> String {
    format!("+1{}555010{}", 210 + (n / 10) % 10, n % 10)
}

impl Flow {
    /// Posts one message every `every` until told to stop, or until `most` are accepted.
    pub fn start(tasks: &TaskTracker, tenant: Api, name: &str, every: Duration, most: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let name = name.to_owned();
        let posted = tasks.spawn(async move {
            let mut ids = Vec::new();
            let mut ticks = tokio::time::interval(every);
            for n in 0..most {
                ticks.tick().await;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let body = message(&recipient(n % RECIPIENTS), &format!("{name} {n}"))?;
                let key = format!("{name}-{n}");
                let accepted = tenant.send_until_answered(&body, &key, ANSWER_WITHIN).await?;
                ids.push(accepted.id);
            }
            Ok(ids)
        });
        Self { stop, posted }
    }

    /// Waits until the most that were asked for are accepted.
    pub async fn done(self) -> Result<Vec<MessageId>> {
        self.posted.await.context("the flow")?
    }

    /// Stops after the message in hand.
    pub async fn stop(self) -> Result<Vec<MessageId>> {
        self.stop.store(true, Ordering::Relaxed);
        self.posted.await.context("the flow")?
    }
}

/// Waits until every message has come to an end (or the time is up), then compares the books.
pub async fn settle(shelf: &Shelf, accepted: &[MessageId], within: Duration) -> Result<Books> {
    let until = tokio::time::Instant::now() + within;
    loop {
        let messages = of(shelf, accepted).await?;
        let open = messages.iter().filter(|message| !message.status.is_final()).count();
        if open == 0 || tokio::time::Instant::now() >= until {
            return Ok(ledger::compare(&messages, &shelf.asked()?));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn of(shelf: &Shelf, accepted: &[MessageId]) -> Result<Vec<Message>> {
    let wanted: std::collections::BTreeSet<_> = accepted.iter().collect();
    let mut messages = shelf.tenant.messages().await?;
    messages.retain(|message| wanted.contains(&message.id));
    Ok(messages)
}
