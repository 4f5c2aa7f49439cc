//! The one place where the sandbox reads the clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds between 1970-01-01 and 2001-01-01, where Apple's clocks start.
const APPLE_EPOCH_S: i64 = 978_307_200;

/// A moment as chat.db holds it: nanoseconds since 2001-01-01T00:00:00Z.
///
/// macOS wrote seconds before 10.13; every version that the sandbox imitates writes nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppleNs(
    /// The nanoseconds.
    pub i64,
);

impl AppleNs {
    /// Now, by the wall clock.
    #[expect(clippy::disallowed_methods, reason = "the sandbox reads the clock here only")]
    pub fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ns = i64::try_from(since_1970.as_nanos()).unwrap_or(i64::MAX);
        Self(ns.saturating_sub(APPLE_EPOCH_S.saturating_mul(1_000_000_000)))
    }

    /// This moment in milliseconds since 1970, which is what everything but Apple counts in.
    pub fn unix_ms(self) -> i64 {
        (self.0 / 1_000_000).saturating_add(APPLE_EPOCH_S.saturating_mul(1_000))
    }

    /// This moment moved into the past.
    #[must_use]
    pub fn minus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_sub(ms.saturating_mul(1_000_000)))
    }

    /// This moment in RFC 3339, UTC, with milliseconds.
    pub fn rfc3339(self) -> String {
        match jiff::Timestamp::from_millisecond(self.unix_ms()) {
            Ok(at) => format!("{at:.3}"),
            Err(_) => String::from("-"),
        }
    }
}

/// Waits, in a command that has nothing else to do.
#[expect(clippy::disallowed_methods, reason = "commands without a runtime may block")]
pub fn pause(time: std::time::Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apples_zero_is_the_first_of_january_2001() {
        assert_eq!(AppleNs(0).rfc3339(), "2001-01-01T00:00:00.000Z");
        assert_eq!(AppleNs(676_558_543_155_999_900).rfc3339(), "2022-06-10T12:55:43.155Z");
    }

    #[test]
    fn now_is_after_the_sandbox_was_written() {
        assert!(AppleNs::now().0 > 780_000_000_000_000_000);
    }
}
