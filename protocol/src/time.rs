//! Instants: RFC 3339 in UTC on the wires, integer milliseconds since 1970 in stores.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// An instant, in milliseconds since 1970-01-01T00:00:00Z.
///
/// ```
/// use protocol::UnixMs;
/// let at: UnixMs = "2026-11-22T12:00:00.250Z".parse()?;
/// assert_eq!(at.0, 1_795_348_800_250);
/// assert_eq!(at.to_string(), "2026-11-22T12:00:00.250Z");
/// # Ok::<(), protocol::time::BadTime>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UnixMs(pub i64);

/// Text that is not an RFC 3339 instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time with an offset, such as 2026-11-22T12:00:00Z")]
pub struct BadTime;

impl UnixMs {
    /// This instant, `ms` milliseconds later (or earlier); stops at the ends of the range.
    #[must_use]
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this instant; negative when it is later.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::fmt::Display for UnixMs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at:.3}"),
            // Outside the years that RFC 3339 can write; the number still says which instant.
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl std::str::FromStr for UnixMs {
    type Err = BadTime;
    fn from_str(text: &str) -> Result<Self, BadTime> {
        text.parse::<jiff::Timestamp>()
            .map(|at| Self(at.as_millisecond()))
            .map_err(|_source| BadTime)
    }
}

impl Serialize for UnixMs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let at = jiff::Timestamp::from_millisecond(self.0).map_err(ser::Error::custom)?;
        serializer.collect_str(&format_args!("{at:.3}"))
    }
}

impl<'de> Deserialize<'de> for UnixMs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

crate::code::string_schema!(UnixMs, "2026-11-22T12:00:00.250Z");
