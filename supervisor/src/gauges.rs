//! How phones stand and what their bridges say of themselves, as gauges: set when the metrics are read, so that ages are of
//! that moment.

use protocol::UnixMs;
use protocol::link::PhoneState;
use protocol::pipe::Heartbeat;
use router_client::clock::ContinuousMs;

use crate::pool::Lease;

/// Stands for what is not known: ages and counts are never below nothing, and a gauge that is not set keeps its last
/// value, which would look like news.
const UNKNOWN: f64 = -1.0;

/// Whole seconds from then to now.
pub(crate) fn age_s(at: Option<UnixMs>, now: UnixMs) -> Option<u64> {
    at.map(|at| u64::try_from(now.since(at) / 1_000).unwrap_or(0))
}

/// Each gauge with its value.
fn of(beat: Option<&Heartbeat>, now: UnixMs) -> [(&'static str, f64); 13] {
    let number = |of: fn(&Heartbeat) -> u64| beat.map_or(UNKNOWN, |beat| float(of(beat)));
    let some = |of: fn(&Heartbeat) -> Option<u64>| beat.and_then(of).map_or(UNKNOWN, float);
    let age = |of: fn(&Heartbeat) -> Option<UnixMs>| {
        beat.and_then(|beat| age_s(of(beat), now)).map_or(UNKNOWN, float)
    };
    [
        ("switchboard_phone_last_inbound_age_seconds", age(|beat| beat.last_inbound)),
        ("switchboard_phone_last_receipt_age_seconds", age(|beat| beat.last_receipt)),
        ("switchboard_phone_last_poll_age_seconds", age(|beat| beat.last_poll)),
        ("switchboard_phone_own_last_hour", number(|beat| beat.own_last_hour)),
        (
            "switchboard_phone_not_registered_last_hour",
            number(|beat| beat.not_registered_last_hour),
        ),
        ("switchboard_phone_queued", number(|beat| beat.queued)),
        ("switchboard_phone_in_flight", number(|beat| beat.in_flight)),
        ("switchboard_phone_unacked", number(|beat| beat.unacked)),
        ("switchboard_phone_longest_read_microseconds", number(|beat| beat.longest_read_us)),
        ("switchboard_phone_osascripts", number(|beat| beat.osascript_ended)),
        ("switchboard_phone_osascript_milliseconds", number(|beat| beat.osascript_total_ms)),
        ("switchboard_phone_osascript_last_milliseconds", some(|beat| beat.osascript_last_ms)),
        ("switchboard_phone_osascript_age_milliseconds", some(|beat| beat.osascript_age_ms)),
    ]
}

/// Sets the gauges of one phone that its bridge speaks of.
pub(crate) fn set(phone: &str, beat: Option<&Heartbeat>, now: UnixMs) {
    for (name, value) in of(beat, now) {
        metrics::gauge!(name, "phone" => phone.to_owned()).set(value);
    }
}

/// Sets the gauges of one phone that its supervisor knows: which state it is in, and how old its lease is, if it has one.
pub(crate) fn set_standing(
    phone: &str,
    state: PhoneState,
    lease: Option<Lease>,
    now: ContinuousMs,
) {
    for one in PhoneState::ALL {
        let is = if one == state { 1.0 } else { 0.0 };
        metrics::gauge!("switchboard_phone_state", "phone" => phone.to_owned(), "state" => one.as_str())
            .set(is);
    }
    let (age, left) = of_lease(lease, now);
    metrics::gauge!("switchboard_phone_lease_age_seconds", "phone" => phone.to_owned()).set(age);
    metrics::gauge!("switchboard_phone_lease_left_seconds", "phone" => phone.to_owned()).set(left);
}

/// Seconds since the renewal of a lease was asked for, and until it ends.
fn of_lease(lease: Option<Lease>, now: ContinuousMs) -> (f64, f64) {
    let seconds = |ms: u64| float(ms) / 1_000.0;
    lease.map_or((UNKNOWN, UNKNOWN), |lease| {
        (seconds(lease.age_ms(now)), seconds(lease.left_ms(now)))
    })
}

/// A gauge is a float; what is counted here is far below where that loses whole numbers.
fn float(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(beat: Option<&Heartbeat>, name: &str) -> f64 {
        let all = of(beat, UnixMs(100_000));
        all.iter().find(|(found, _)| found.ends_with(name)).unwrap().1
    }

    #[test]
    fn a_lease_ages_until_it_is_over() {
        let lease = Lease::new(1, 15_000, 10_000);
        assert_eq!(of_lease(None, 12_500), (UNKNOWN, UNKNOWN));
        assert_eq!(of_lease(Some(lease), 12_500), (2.5, 12.5));
        assert_eq!(of_lease(Some(lease), 26_000), (16.0, 0.0));
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
    fn what_is_not_known_is_below_nothing_and_the_rest_is_as_it_was_said() {
        assert!(of(None, UnixMs(100_000)).iter().all(|(_, value)| *value == UNKNOWN));
        let beat = Heartbeat {
            last_inbound: Some(UnixMs(58_500)),
            // From a clock that is ahead.
            last_receipt: Some(UnixMs(200_000)),
            own_last_hour: 9,
            not_registered_last_hour: 7,
            longest_read_us: 1_234,
            osascript_ended: 3,
            osascript_total_ms: 2_400,
            osascript_last_ms: Some(800),
            ..Heartbeat::default()
        };
        for (name, wanted) in [
            ("last_inbound_age_seconds", 41.0),
            ("last_receipt_age_seconds", 0.0),
            ("last_poll_age_seconds", UNKNOWN),
            ("own_last_hour", 9.0),
            ("not_registered_last_hour", 7.0),
            ("longest_read_microseconds", 1_234.0),
            ("queued", 0.0),
            ("osascripts", 3.0),
            ("osascript_milliseconds", 2_400.0),
            ("osascript_last_milliseconds", 800.0),
            ("osascript_age_milliseconds", UNKNOWN),
        ] {
            assert_eq!(value(Some(&beat), name), wanted, "{name}");
        }
    }
}
