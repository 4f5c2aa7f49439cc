//! The gate, for the simulation of whole hosts in `tests/`. Not part of the API.

use protocol::UnixMs;

use crate::clock::Now;
use crate::gate::{self, Verdict};

/// What the gate says of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It may start now.
    Start,
    /// Not now, and not never.
    Wait,
    /// Never: its epoch or its time is over.
    Never,
}

/// The gate of one bridge's life. What it answers follows the calls of the bridge itself.
#[derive(Debug, Clone)]
pub struct Gate(gate::Gate);

impl Gate {
    /// As a bridge begins whose journal has seen `max_epoch`.
    pub fn new(max_epoch: u64) -> Self {
        Self(gate::Gate::new(max_epoch))
    }

    /// The newest epoch that was seen: it is in the journal.
    pub fn max_epoch(&self) -> u64 {
        self.0.max_epoch()
    }

    /// The supervisor says a lease.
    pub fn lease(&mut self, epoch: u64, ttl_ms: u64, issued_ms: u64, now: Now) {
        self.0.see(epoch);
        // One that is not taken leaves the gate as it is.
        let _taken = self.0.grant(epoch, ttl_ms, issued_ms, now).is_ok();
    }

    /// A lease is taken back.
    pub fn revoke(&mut self, epoch: u64) {
        self.0.revoke(epoch);
    }

    /// The phone is to go to another host.
    pub fn release(&mut self, epoch: u64) {
        self.0.see(epoch);
        self.0.close();
    }

    /// A command of this epoch was taken.
    pub fn see(&mut self, epoch: u64) {
        self.0.see(epoch);
    }

    /// Whether a send may start.
    pub fn ask(&self, epoch: u64, start_before: UnixMs, now: Now) -> Answer {
        match self.0.ask(epoch, start_before, now) {
            Verdict::Start => Answer::Start,
            Verdict::Wait(_) => Answer::Wait,
            Verdict::Stale | Verdict::Expired => Answer::Never,
        }
    }

    /// Whether it is open for anything.
    pub fn is_open(&self, now: Now) -> bool {
        self.ask(self.max_epoch(), UnixMs(i64::MAX), now) == Answer::Start
    }
}
