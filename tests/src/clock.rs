//! The only place of this package that reads the wall clock.

use protocol::UnixMs;

/// Now.
pub fn now() -> UnixMs {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A number that is different each time; for names and for the moments of faults, not for secrets.
pub fn chance() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    // A new hasher's keys come from the system's randomness.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Milliseconds on the clock that leases count on: it runs while the machine sleeps.
pub fn continuous_ms() -> u64 {
    use nix::sys::time::TimeValLike as _;
    #[cfg(not(target_vendor = "apple"))]
    let id = nix::time::ClockId::CLOCK_BOOTTIME;
    #[cfg(target_vendor = "apple")]
    let id = nix::time::ClockId::from_raw(nix::libc::CLOCK_MONOTONIC_RAW);
    let Ok(time) = nix::time::clock_gettime(id) else { return 0 };
    u64::try_from(time.num_milliseconds()).unwrap_or(0)
}

/// Nanoseconds on a clock that all processes of this machine share, for times that begin in one and end in another.
pub fn shared_ns() -> u64 {
    use nix::sys::time::TimeValLike as _;
    let Ok(time) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) else { return 0 };
    u64::try_from(time.num_nanoseconds()).unwrap_or(0)
}
