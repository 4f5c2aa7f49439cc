//! What is said to the supervisor: events until they are acknowledged, signals, the sign of life.

use protocol::pipe::Up;
use tokio::sync::mpsc;

use super::{Daemon, DaemonError, Evidence, Now};

/// Events read from the journal at a time.
const EVENTS_A_READ: usize = 64;

impl<E: Evidence> Daemon<E> {
    /// Says the events that are due. A listener that does not read is not waited for: they are in
    /// the journal.
    pub(super) fn emit(&mut self) -> Result<(), DaemonError> {
        while let Some((from, count)) = self.window.due() {
            let events = self.journal.events(from, count.min(EVENTS_A_READ))?;
            if events.first().is_none_or(|event| event.seq != from) {
                // Cannot be: the journal keeps what is not acknowledged.
                tracing::error!(from, "an event is missing in the journal");
                return Ok(());
            }
            for event in events {
                let seq = event.seq;
                if !self.say(&Up::Event(event)) {
                    return Ok(());
                }
                self.window.said(seq, (self.clock)().continuous_ms);
            }
        }
        Ok(())
    }

    /// False when the listener does not read.
    pub(super) fn say(&self, up: &Up) -> bool {
        let line = match serde_json::to_string(up) {
            Ok(line) => line,
            Err(error) => {
                tracing::error!(%error, "a line cannot be written as JSON");
                return false;
            }
        };
        match self.ports.lines.try_send(line) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    pub(super) fn beat(&mut self, now: Now) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.heartbeat.osascript_age_ms = self.child.as_ref().map(|child| {
            u64::try_from(now.continuous_ms.saturating_sub(child.since_ms)).unwrap_or(0)
        });
        // An osascript of an earlier life may be sending; only its lock tells. Ours holds the same one.
        self.heartbeat.paused = self.health.is_paused()
            && (self.child.is_some() || matches!(self.osascript.orphan_runs(), Ok(false)));
        self.heartbeat.queued = count(self.outbound.queued());
        self.heartbeat.in_flight = count(self.outbound.in_flight());
        self.heartbeat.unacked = self.window.unacked();
        let longest = self.evidence.longest_read_us();
        self.heartbeat.longest_read_us = self.heartbeat.longest_read_us.max(longest);
        self.say(&Up::Heartbeat(self.heartbeat.clone()));
    }
}
