//! What everybody but the owner has of a phone: how it stands, its lease, and the way to ask for something.

use std::sync::{Arc, Mutex, PoisonError};

use protocol::PhoneId;
use protocol::pipe::Command;
use router_client::clock::{ContinuousMs, continuous_now};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Tuning;
use crate::config::PhoneConfig;
use crate::logs::{LogLine, Ring};
use crate::phone::{Order, Report};
use crate::stream::Stream;

/// What is asked of the owner of a phone.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Start, stop and so on.
    Order(Order),
    /// A line for the bridge.
    Command(Command),
    /// What is the same for all phones has changed.
    Tune(Box<Tuning>),
}

/// Why something was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    /// The owner has too much to do.
    #[error("the phone has too many commands waiting")]
    Busy,
    /// The phone or the whole supervisor is stopping.
    #[error("the phone is being stopped")]
    Gone,
}

/// What everybody but the owner has of a phone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    /// Its id.
    pub(crate) id: PhoneId,
    /// What the operator configured.
    pub(crate) config: Arc<PhoneConfig>,
    /// Boxed, because the queue keeps room for some of them and commands are large.
    pub(super) asks: mpsc::Sender<Box<Ask>>,
    pub(super) report: watch::Receiver<Report>,
    pub(super) lease: watch::Receiver<Option<Lease>>,
    /// Its events.
    pub(crate) stream: Arc<Stream>,
    pub(super) logs: Arc<Mutex<Ring>>,
    /// Cancelled when this phone is to stop in order.
    pub(super) end: CancellationToken,
    /// Cancelled when its owner has ended.
    pub(super) ended: CancellationToken,
}

/// The newest lease of a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Its epoch.
    pub(crate) epoch: u64,
    pub(super) ttl_ms: u64,
    pub(super) issued_ms: ContinuousMs,
}

impl Lease {
    /// Whether it still holds, on the continuous clock.
    pub(crate) fn holds(&self, now: ContinuousMs) -> bool {
        now < self.issued_ms.saturating_add(self.ttl_ms)
    }

    /// One as it is granted.
    #[cfg(test)]
    pub(crate) fn new(epoch: u64, ttl_ms: u64, issued_ms: ContinuousMs) -> Self {
        Self { epoch, ttl_ms, issued_ms }
    }

    /// How long ago its renewal was asked for.
    pub(crate) fn age_ms(&self, now: ContinuousMs) -> u64 {
        now.saturating_sub(self.issued_ms)
    }

    /// How long it still holds.
    pub(crate) fn left_ms(&self, now: ContinuousMs) -> u64 {
        self.issued_ms.saturating_add(self.ttl_ms).saturating_sub(now)
    }

    pub(super) fn command(self) -> Command {
        Command::Lease { epoch: self.epoch, ttl_ms: self.ttl_ms, issued_ms: self.issued_ms }
    }
}

impl Handle {
    /// Asks the owner for something, never waiting.
    pub(crate) fn ask(&self, ask: Ask) -> Result<(), NotTaken> {
        self.asks.try_send(Box::new(ask)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => NotTaken::Busy,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Gone,
        })
    }

    /// How the phone stands.
    pub(crate) fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// The lease that it holds now.
    pub(crate) fn lease(&self) -> Option<Lease> {
        self.lease.borrow().filter(|lease| lease.holds(continuous_now()))
    }

    /// The epoch of its newest lease, over or not, unless that was revoked.
    pub(crate) fn newest_epoch(&self) -> Option<u64> {
        self.lease.borrow().map(|lease| lease.epoch)
    }

    /// The bridge's last log lines, of those with a number above `after`.
    pub(crate) fn logs(&self, after: u64) -> Vec<LogLine> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).after(after)
    }
}
