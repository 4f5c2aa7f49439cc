//! The one place of this crate that reads clocks.
//!
//! Two clocks, two purposes. The *continuous* clock goes on while the machine sleeps and never jumps, so it measures
//! leases and silence; `std::time::Instant` on a Mac stands still during sleep and would keep a lease alive. The *wall*
//! clock dates what leaves the machine: signatures and frames.

use std::{sync::Arc, time::SystemTime};

use nix::time::{ClockId, clock_gettime};
use protocol::UnixMs;

/// Milliseconds on the continuous clock: since boot, sleep included. Comparable between processes of one boot only.
pub type ContinuousMs = u64;

/// Reads the continuous clock of this machine.
///
/// `CLOCK_MONOTONIC_RAW` on a Mac is `mach_continuous_time`; `CLOCK_BOOTTIME` is its equal on Linux.
pub fn continuous_now() -> ContinuousMs {
    #[cfg(target_vendor = "apple")]
    const CONTINUOUS: ClockId = ClockId::from_raw(nix::libc::CLOCK_MONOTONIC_RAW);
    #[cfg(not(target_vendor = "apple"))]
    const CONTINUOUS: ClockId = ClockId::CLOCK_BOOTTIME;
    let read = clock_gettime(CONTINUOUS).expect("the continuous clock of this system is readable");
    let ms = read.tv_sec() * 1_000 + read.tv_nsec() / 1_000_000;
    u64::try_from(ms).unwrap_or_default()
}

/// Reads the clock that stands still while the machine sleeps: with the continuous one it tells that it slept.
///
/// `CLOCK_UPTIME_RAW` on a Mac (`clock_gettime(3)`); `CLOCK_MONOTONIC` is its equal on Linux.
pub fn awake_now() -> ContinuousMs {
    #[cfg(target_vendor = "apple")]
    const AWAKE: ClockId = ClockId::from_raw(nix::libc::CLOCK_UPTIME_RAW);
    #[cfg(not(target_vendor = "apple"))]
    const AWAKE: ClockId = ClockId::CLOCK_MONOTONIC;
    let read = clock_gettime(AWAKE).expect("the clock of this system's waking time is readable");
    let ms = read.tv_sec() * 1_000 + read.tv_nsec() / 1_000_000;
    u64::try_from(ms).unwrap_or_default()
}

/// Reads the wall clock.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place of this crate that reads the wall clock"
)]
pub fn wall_now() -> UnixMs {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The two clocks as values, so that a test can pass its own.
#[derive(Clone)]
pub(crate) struct Clock {
    continuous: Arc<dyn Fn() -> ContinuousMs + Send + Sync>,
    wall: Arc<dyn Fn() -> UnixMs + Send + Sync>,
}

impl Clock {
    /// The clocks of this machine.
    pub(crate) fn machine() -> Self {
        Self { continuous: Arc::new(continuous_now), wall: Arc::new(wall_now) }
    }

    /// Clocks that follow tokio's time, which a test may pause; both begin at the given values.
    #[cfg(test)]
    pub(crate) fn of_tokio(continuous_start: ContinuousMs, wall_start: UnixMs) -> Self {
        let begin = tokio::time::Instant::now();
        let elapsed = move || u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        Self {
            continuous: Arc::new(move || continuous_start + elapsed()),
            wall: Arc::new(move || wall_start.plus_ms(i64::try_from(elapsed()).unwrap())),
        }
    }

    pub(crate) fn continuous(&self) -> ContinuousMs {
        (self.continuous)()
    }

    pub(crate) fn wall(&self) -> UnixMs {
        (self.wall)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_continuous_clock_does_not_go_back() {
        let first = continuous_now();
        let second = continuous_now();
        assert!(first > 0);
        assert!(second >= first);
    }
}
