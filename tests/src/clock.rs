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
