//! Lengths of time as people write them: `30s`, `10m`, `12h`, `90d`.

use std::time::Duration;

/// A length of time, in whole seconds, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    seconds: u32,
}

impl Span {
    pub(crate) fn seconds(self) -> u32 {
        self.seconds
    }

    pub(crate) fn duration(self) -> Duration {
        Duration::from_secs(u64::from(self.seconds))
    }

    pub(crate) fn ms(self) -> i64 {
        i64::from(self.seconds) * 1_000
    }
}

/// Reads a number with its unit.
pub(crate) fn parse(text: &str) -> Result<Span, String> {
    let wrong = || format!("{text:?} is not a length of time such as 30s, 10m, 12h or 90d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number = text.strip_suffix(unit).ok_or_else(wrong)?;
    let unit_seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    // `parse` would take a sign.
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds = number
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_mul(unit_seconds))
        .filter(|seconds| *seconds > 0)
        .ok_or_else(wrong)?;
    Ok(Span { seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood_and_everything_else_is_refused() {
        let seconds = |text| parse(text).map(Span::seconds).ok();
        assert_eq!(seconds("30s"), Some(30));
        assert_eq!(seconds("10m"), Some(600));
        assert_eq!(seconds("12h"), Some(43_200));
        assert_eq!(seconds("90d"), Some(7_776_000));
        assert_eq!(seconds("2w"), Some(1_209_600));
        for wrong in
            ["", "s", "0s", "-1s", "+1s", "1", "1.5h", "1ü", "99999999999d", "50000d", " 1s"]
        {
            assert_eq!(seconds(wrong), None, "{wrong:?}");
        }
    }
}
