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

/// 9999-01-01T00:00:00Z; how far into that year an instant may lie is jiff's to say.
const YEAR_9999: i64 = 253_370_764_800_000;
const DAY_MS: i64 = 86_400_000;

/// `2026-11-22T12:00:00.250Z`, for the years 1970 to 9998. Every event has such instants and an
/// export has millions: this takes a tenth of what a general formatter does.
fn written(at: UnixMs) -> Option<[u8; 24]> {
    if !(0..YEAR_9999).contains(&at.0) {
        return None;
    }
    let (day, ms) = (at.0 / DAY_MS, at.0 % DAY_MS);
    // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last.
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let date = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);

    let digit = |number: i64| b'0'.saturating_add(u8::try_from(number % 10).unwrap_or(0));
    let two = |number: i64| [digit(number / 10), digit(number)];
    let [y1, y2] = two(year / 100);
    let [y3, y4] = two(year);
    let [m1, m2] = two(month);
    let [d1, d2] = two(date);
    let [h1, h2] = two(ms / 3_600_000);
    let [n1, n2] = two(ms / 60_000 % 60);
    let [s1, s2] = two(ms / 1_000 % 60);
    let [f2, f3] = two(ms);
    let f1 = digit(ms / 100);
    Some([
        y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', n1, n2, b':', s1, s2, b'.',
        f1, f2, f3, b'Z',
    ])
}

impl std::fmt::Display for UnixMs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(text) = written(*self).as_ref().and_then(|text| str::from_utf8(text).ok()) {
            return f.write_str(text);
        }
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
        if let Some(text) = written(*self).as_ref().and_then(|text| str::from_utf8(text).ok()) {
            return serializer.serialize_str(text);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn days_at_the_ends_of_months_and_years_are_written_right() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800_001, "2024-02-29T00:00:00.001Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (YEAR_9999 - 1, "9998-12-31T23:59:59.999Z"),
            (YEAR_9999, "9999-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(UnixMs(ms).to_string(), text);
            assert_eq!(serde_json::to_string(&UnixMs(ms)).unwrap(), format!("\"{text}\""));
        }
    }

    proptest! {
        #[test]
        fn every_instant_is_written_as_jiff_writes_it(ms in 0..YEAR_9999) {
            let at = jiff::Timestamp::from_millisecond(ms).unwrap();
            prop_assert_eq!(UnixMs(ms).to_string(), format!("{at:.3}"));
        }
    }
}
