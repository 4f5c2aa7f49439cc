//! When a webhook is tried again. Pure: the random part is an argument.

const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;

/// Waits before each attempt, as the Standard Webhooks specification recommends them: three days in all.
const WAITS_MS: [i64; 10] = [
    0,
    5 * SECOND_MS,
    5 * MINUTE_MS,
    30 * MINUTE_MS,
    2 * HOUR_MS,
    5 * HOUR_MS,
    10 * HOUR_MS,
    14 * HOUR_MS,
    20 * HOUR_MS,
    24 * HOUR_MS,
];

/// An endpoint that asks for patience gets at most this much, so that it cannot park its webhooks for ever.
const RETRY_AFTER_MAX_MS: i64 = 24 * HOUR_MS;

/// The wait after `made` attempts; `None` when that was the last.
///
/// `chance` is any number; it moves the wait by up to a fifth either way, so that endpoints that failed together
/// do not come back together. `retry_after_ms` is what the endpoint asked for and can only lengthen the wait.
pub fn wait_ms(made: u32, chance: u16, retry_after_ms: Option<i64>) -> Option<i64> {
    let base = *WAITS_MS.get(usize::try_from(made).ok()?)?;
    let permille = 800 + i64::from(chance) * 400 / i64::from(u16::MAX);
    let wait = base / 1_000 * permille;
    let asked = retry_after_ms.unwrap_or(0).clamp(0, RETRY_AFTER_MAX_MS);
    Some(wait.max(asked))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn there_are_ten_attempts_over_three_days() {
        let middle = u16::MAX / 2;
        let waits: Vec<i64> = (1..).map_while(|made| wait_ms(made, middle, None)).collect();
        assert_eq!(waits.len(), 9);
        assert_eq!(waits[0], 4_995);
        let total_h = waits.iter().sum::<i64>() / HOUR_MS;
        assert!((74..=77).contains(&total_h), "{total_h}");
    }

    #[test]
    fn an_endpoint_may_ask_for_more_patience_within_reason() {
        assert_eq!(wait_ms(1, 0, Some(60_000)), Some(60_000));
        assert_eq!(wait_ms(2, 0, Some(1)), Some(240_000));
        assert_eq!(wait_ms(1, 0, Some(i64::MAX)), Some(RETRY_AFTER_MAX_MS));
        assert_eq!(wait_ms(1, 0, Some(-5)), Some(4_000));
    }

    proptest! {
        #[test]
        fn a_wait_is_within_a_fifth_of_its_base(made in 0_u32..12, chance: u16) {
            match (wait_ms(made, chance, None), WAITS_MS.get(usize::try_from(made).unwrap())) {
                (Some(wait), Some(base)) => prop_assert!(wait >= base * 8 / 10 && wait <= base * 12 / 10),
                (None, None) => {}
                (wait, base) => prop_assert!(false, "{:?} {:?}", wait, base),
            }
        }
    }
}
