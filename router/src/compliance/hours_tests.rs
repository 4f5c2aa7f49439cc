use proptest::prelude::*;

use super::*;
use crate::compliance::place::{Contact, Places, Unknown, places};
use protocol::api::UnknownZone;

const GUARD_MS: i64 = 5 * 60_000;
const PLAIN: Rule = Rule { preset: HoursPreset::Default, own: None, guard_ms: 0 };

fn places_of(recipient: &str) -> Vec<Place> {
    let unknown = Unknown { policy: UnknownZone::Us50, tenant_zone: None };
    match places(&recipient.parse().unwrap(), &Contact::default(), unknown) {
        Places::Known(places) => places,
        other @ (Places::Refused | Places::Unreadable) => panic!("{other:?}"),
    }
}

fn ask(rule: &Rule, places: &[Place], now_ms: i64) -> Hours {
    at(rule, places, now_ms)
}

fn is_open(hours: Hours) -> bool {
    matches!(hours, Hours::Open { .. })
}

/// An instant, as `2026-03-08T08:30[America/New_York]`.
fn ms(text: &str) -> i64 {
    text.parse::<jiff::Zoned>().unwrap().timestamp().as_millisecond()
}

fn held_until(rule: &Rule, recipient: &str, at: &str) -> Option<String> {
    match ask(rule, &places_of(recipient), ms(at)) {
        Hours::Open { .. } => None,
        Hours::Closed { until_ms } => {
            Some(Timestamp::from_millisecond(until_ms).unwrap().to_string())
        }
        other @ (Hours::Never | Hours::Unreadable) => Some(format!("{other:?}")),
    }
}

#[test]
fn the_data_file_is_whole() {
    let data = DATA.as_ref().unwrap();
    assert_eq!(data.states.len(), 19);
    assert_ne!(version(), "none");
    for state in data.states.keys() {
        assert!(crate::compliance::place::is_state(state), "{state}");
    }
}

#[test]
fn windows_are_read_strictly() {
    for good in ["08:00-20:00", "00:00-24:00", "23:59-24:00"] {
        assert!(Window::parse(good).is_some(), "{good}");
    }
    for bad in [
        "",
        "08:00",
        "8:00-20:00",
        "08:00-08:00",
        "20:00-08:00",
        "08:60-20:00",
        "08:00-24:01",
        "+8:00-20:00",
        "08:00-20:00 ",
    ] {
        assert_eq!(Window::parse(bad), None, "{bad}");
    }
}

#[test]
fn it_is_held_until_every_zone_that_it_may_be_in_allows_it() {
    let new_york = "+12125550123";
    for (recipient, at, until) in [
        (new_york, "2026-07-01T08:00[America/New_York]", None),
        (new_york, "2026-07-01T07:59:59[America/New_York]", Some("2026-07-01T12:00:00Z")),
        (new_york, "2026-07-01T19:59:59[America/New_York]", None),
        (new_york, "2026-07-01T20:00[America/New_York]", Some("2026-07-02T12:00:00Z")),
        // Florida's panhandle keeps Central time, and 850 has both.
        ("+18505550123", "2026-07-01T08:30[America/New_York]", Some("2026-07-01T13:00:00Z")),
        ("+18505550123", "2026-07-01T09:00[America/New_York]", None),
        ("+18505550123", "2026-07-01T19:30[America/New_York]", None),
        ("+18505550123", "2026-07-01T19:30[America/Chicago]", Some("2026-07-02T13:00:00Z")),
        // In summer the Navajo Nation is an hour ahead of the rest of Arizona, in winter it is not.
        ("+19285550123", "2026-07-01T19:30[America/Phoenix]", Some("2026-07-02T15:00:00Z")),
        ("+19285550123", "2026-12-01T19:30[America/Phoenix]", None),
        // Orlando's overlay is Eastern, whatever the metadata says; Saskatchewan has no summer time.
        ("+16895550123", "2026-07-01T08:00[America/New_York]", None),
        ("+14745550123", "2026-07-01T08:00[America/Regina]", None),
        ("+447400123456", "2026-07-01T07:30[Europe/London]", Some("2026-07-01T07:00:00Z")),
    ] {
        assert_eq!(held_until(&PLAIN, recipient, at).as_deref(), until, "{recipient} {at}");
    }
}

#[test]
fn local_hours_stay_what_they_are_when_the_clocks_change() {
    for day in ["2026-03-07", "2026-03-08", "2026-03-09", "2026-10-31", "2026-11-01", "2026-11-02"]
    {
        let at = |time: &str| format!("{day}T{time}[America/New_York]");
        assert!(held_until(&PLAIN, "+12125550123", &at("07:59")).is_some(), "{day}");
        assert_eq!(held_until(&PLAIN, "+12125550123", &at("08:00")), None, "{day}");
        assert_eq!(held_until(&PLAIN, "+12125550123", &at("19:59")), None, "{day}");
        assert!(held_until(&PLAIN, "+12125550123", &at("20:00")).is_some(), "{day}");
    }
}

#[test]
fn a_window_ends_some_minutes_early_and_never_begins_late() {
    let rule = Rule { guard_ms: GUARD_MS, ..PLAIN };
    let place = places_of("+12125550123");
    let end = ms("2026-07-01T19:55[America/New_York]");
    assert_eq!(ask(&rule, &place, end - 1), Hours::Open { until_ms: end });
    assert!(matches!(ask(&rule, &place, end), Hours::Closed { .. }));
    assert_eq!(held_until(&rule, "+12125550123", "2026-07-01T08:00[America/New_York]"), None);
}

#[test]
fn a_number_that_says_nothing_waits_for_hawaii_and_stops_with_new_york() {
    let unknown = "+18005550123";
    assert!(held_until(&PLAIN, unknown, "2026-07-01T13:59[America/New_York]").is_some());
    assert_eq!(held_until(&PLAIN, unknown, "2026-07-01T14:00[America/New_York]"), None);
    assert_eq!(held_until(&PLAIN, unknown, "2026-07-01T19:59[America/New_York]"), None);
    assert!(held_until(&PLAIN, unknown, "2026-07-01T20:00[America/New_York]").is_some());
}

#[test]
fn states_have_days_and_hours_of_their_own() {
    let states = Rule { preset: HoursPreset::UsStates, ..PLAIN };
    for (number, at, open) in [
        // Connecticut begins at nine, Kentucky at ten, New York at eight.
        ("+12035550123", "2026-07-01T08:30[America/New_York]", false),
        ("+12035550123", "2026-07-01T09:00[America/New_York]", true),
        ("+15025550123", "2026-07-01T09:30[America/New_York]", false),
        ("+12125550123", "2026-07-01T20:30[America/New_York]", true),
        ("+13055550123", "2026-07-01T20:30[America/New_York]", false),
        // Texas at noon on Sundays; El Paso keeps Mountain time, and the statute is read as Central.
        ("+12145550123", "2026-07-05T11:00[America/Chicago]", false),
        ("+12145550123", "2026-07-05T12:00[America/Chicago]", true),
        ("+19155550123", "2026-07-01T20:30[America/Denver]", false),
        // Alabama: nothing on Sundays and holidays. Pennsylvania: nothing on holidays.
        ("+12055550123", "2026-07-05T12:00[America/Chicago]", false),
        ("+12055550123", "2026-11-26T12:00[America/Chicago]", false),
        ("+12155550123", "2026-11-26T12:00[America/New_York]", false),
        ("+12155550123", "2026-11-25T12:00[America/New_York]", true),
        // The fourth of July of 2026 is a Saturday, observed on the Friday.
        ("+12155550123", "2026-07-03T12:00[America/New_York]", false),
        ("+12155550123", "2026-07-02T12:00[America/New_York]", true),
    ] {
        assert_eq!(held_until(&states, number, at).is_none(), open, "{number} {at}");
    }
}

#[test]
fn the_strict_week_satisfies_every_state() {
    let strict = Rule { preset: HoursPreset::Strict, ..PLAIN };
    let states = Rule { preset: HoursPreset::UsStates, ..PLAIN };
    let start = ms("2026-06-29T00:00[America/New_York]");
    for number in [
        "+12055550123",
        "+12035550123",
        "+15025550123",
        "+12145550123",
        "+14015550123",
        "+16015550123",
    ] {
        let places = places_of(number);
        for half_hours in 0..(14 * 48) {
            let now = start + half_hours * 1_800_000;
            if matches!(ask(&strict, &places, now), Hours::Open { .. }) {
                assert!(matches!(ask(&states, &places, now), Hours::Open { .. }), "{number} {now}");
            }
        }
    }
}

#[test]
fn federal_holidays_are_those_of_the_statute() {
    for (day, holiday) in [
        ("2026-01-01", true),
        ("2026-01-19", true),
        ("2026-02-16", true),
        ("2026-05-25", true),
        ("2026-06-19", true),
        ("2026-07-03", true),
        ("2026-07-04", true),
        ("2026-09-07", true),
        ("2026-10-12", true),
        ("2026-11-11", true),
        ("2026-11-26", true),
        ("2026-12-25", true),
        ("2027-12-31", true),
        ("2026-11-27", false),
        ("2026-12-24", false),
        ("2026-05-18", false),
    ] {
        assert_eq!(is_federal_holiday(day.parse().unwrap()), holiday, "{day}");
    }
}

#[test]
fn places_that_have_no_hour_in_common_say_so() {
    let far = |zone: &str| Place { zone: TimeZone::get(zone).unwrap(), state: None };
    let both = [far("Pacific/Kiritimati"), far("Pacific/Niue")];
    // Twenty-five hours apart, twelve-hour windows: they meet. With two-hour ones they never do.
    let narrow = Rule { own: Window::parse("09:00-10:00"), ..PLAIN };
    assert_eq!(ask(&narrow, &both, ms("2026-07-01T12:00[UTC]")), Hours::Never);
    assert_eq!(ask(&PLAIN, &[], 0), Hours::Unreadable);
    assert_eq!(ask(&PLAIN, &both, i64::MAX), Hours::Unreadable);
    // The tenant's own hours lie outside what the preset allows.
    let outside = Rule { own: Window::parse("21:00-22:00"), ..PLAIN };
    assert_eq!(ask(&outside, &places_of("+12125550123"), 0), Hours::Never);
}

fn any_recipient() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "+12125550123",
        "+18505550123",
        "+19285550123",
        "+19075550123",
        "+18085550123",
        "+18005550123",
        "+447400123456",
        "+919812345678",
        "+61412345678",
        "+9779841234567",
        "+12055550123",
        "+14015550123",
    ])
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let preset = prop::sample::select(vec![
        HoursPreset::Default,
        HoursPreset::Strict,
        HoursPreset::UsStates,
    ]);
    (preset, any::<bool>(), 0_i64..=GUARD_MS).prop_map(|(preset, own, guard_ms)| Rule {
        preset,
        own: if own { Window::parse("09:00-19:00") } else { None },
        guard_ms,
    })
}

proptest! {
    /// The first allowed instant is allowed, and the one before it is not.
    #[test]
    fn what_is_held_until_an_instant_is_free_at_it(
        rule in any_rule(), recipient in any_recipient(), now in 1_750_000_000_000_i64..1_900_000_000_000,
    ) {
        let places = places_of(recipient);
        match ask(&rule, &places, now) {
            Hours::Closed { until_ms } => {
                prop_assert!(until_ms > now);
                prop_assert!(is_open(ask(&rule, &places, until_ms)));
                prop_assert_eq!(ask(&rule, &places, until_ms - 1), Hours::Closed { until_ms });
            }
            Hours::Open { until_ms } => {
                prop_assert!(until_ms > now);
                prop_assert!(is_open(ask(&rule, &places, until_ms - 1)));
                prop_assert!(!is_open(ask(&rule, &places, until_ms)));
            }
            Hours::Never => {}
            Hours::Unreadable => prop_assert!(false, "it is unreadable"),
        }
    }

    /// Another place that it may be in never makes a closed hour an open one.
    #[test]
    fn knowing_less_never_opens_a_window(
        rule in any_rule(), left in any_recipient(), right in any_recipient(), now in 1_750_000_000_000_i64..1_900_000_000_000,
    ) {
        let (left, right) = (places_of(left), places_of(right));
        let both: Vec<Place> = left.iter().chain(&right).cloned().collect();
        if matches!(ask(&rule, &both, now), Hours::Open { .. }) {
            prop_assert!(is_open(ask(&rule, &left, now)));
            prop_assert!(is_open(ask(&rule, &right, now)));
        }
    }
}
