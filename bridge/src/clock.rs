//! The one place of this crate that reads a clock. Decisions take a [`Now`] as an argument.

use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};
use protocol::time::UnixMs;

/// The clock that keeps counting while the machine sleeps. A lease measured on any other clock
/// would still look valid after the lid has been closed for an hour.
#[cfg(target_vendor = "apple")]
const CONTINUOUS: ClockId = ClockId::from_raw(nix::libc::CLOCK_MONOTONIC_RAW);
#[cfg(not(target_vendor = "apple"))]
const CONTINUOUS: ClockId = ClockId::CLOCK_BOOTTIME;

/// Both clocks, read once a turn of the event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, for `start_before` and for what is written down.
    pub wall: UnixMs,
    /// The machine's continuous clock in milliseconds, for leases and for waiting.
    pub continuous_ms: i64,
}

impl Now {
    /// About when this machine was started: tells a journal's reader whether a row is older than the boot.
    pub fn boot_ms(self) -> i64 {
        self.wall.0.saturating_sub(self.continuous_ms)
    }
}

/// Reads both clocks.
#[expect(clippy::disallowed_methods, reason = "this module is the one place that reads a clock")]
pub fn now() -> Now {
    let wall = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    // A clock that cannot be read says that every lease has ended: nothing is sent.
    let continuous_ms = clock_gettime(CONTINUOUS).map_or(i64::MAX, |time| time.num_milliseconds());
    Now { wall: UnixMs(wall), continuous_ms }
}

/// The continuous clock in microseconds, for measuring how long something took.
pub fn continuous_us() -> i64 {
    clock_gettime(CONTINUOUS).map_or(0, |time| time.num_microseconds())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_run_forward() {
        let first = now();
        let second = now();
        assert!(second.continuous_ms >= first.continuous_ms);
        assert!(first.continuous_ms > 0, "the continuous clock must exist on this system");
        assert!(first.wall.0 > 1_700_000_000_000);
    }
}
