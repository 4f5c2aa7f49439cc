//! Percentiles of a handful of samples.

use std::time::Duration;

/// The value below which `percent` of the samples lie; zero when there are none.
pub(crate) fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    samples.get(last * percent / 100).copied().unwrap_or_default()
}

/// Median and 99th percentile as text, in milliseconds.
pub(crate) fn p50_p99(samples: &mut [Duration]) -> String {
    let p50 = percentile(samples, 50);
    let p99 = percentile(samples, 99);
    format!("p50 {:.2} ms, p99 {:.2} ms", p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3)
}

/// Median and longest as text, in seconds, of a handful.
pub(crate) fn p50_most_s(samples: &mut [Duration]) -> String {
    let (p50, most) = (percentile(samples, 50), percentile(samples, 100));
    let n = samples.len();
    format!("p50 {:.2} s, most {:.2} s, of {n}", p50.as_secs_f64(), most.as_secs_f64())
}

/// So many in so long, as a rate.
pub(crate) fn per_second(count: usize, took: Duration) -> f64 {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    f64::from(count) / took.as_secs_f64()
}
