//! Quiet hours: when it is a decent time to write, wherever the recipient may be. Pure.
//!
//! A message may go out when every place that the recipient may be in allows it (the intersection), and otherwise waits
//! for the first instant at which all of them do. Windows are half-open and end some minutes early, because what is
//! handed to a phone is not on the recipient's screen yet.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use protocol::api::HoursPreset;
use serde::Deserialize;

use super::place::Place;

/// How far ahead an allowed instant is looked for, in days: over a week, so that every weekday is asked.
const DAYS_AHEAD: i64 = 8;

/// Rounds of looking for an instant that suits every place. Each round moves to the next window of some place; a week
/// of windows in two places that never meet is far fewer.
const ROUNDS_MAX: usize = 64;

/// A day in milliseconds.
const DAY_MS: i64 = 86_400_000;

/// From a minute of the local day to another, which is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: i16,
    to: i16,
}

impl Window {
    /// Reads `HH:MM-HH:MM`; the end may be 24:00.
    pub fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once('-')?;
        let window = Self { from: minutes(from)?, to: minutes(to)? };
        (window.from < window.to).then_some(window)
    }

    fn and(self, other: Self) -> Option<Self> {
        let both = Self { from: self.from.max(other.from), to: self.to.min(other.to) };
        (both.from < both.to).then_some(both)
    }
}

fn minutes(text: &str) -> Option<i16> {
    let (hours, minutes) = text.split_once(':')?;
    if hours.len() != 2
        || minutes.len() != 2
        || !text.bytes().all(|b| b.is_ascii_digit() || b == b':')
    {
        return None;
    }
    let (hours, minutes): (i16, i16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let all = hours * 60 + minutes;
    (minutes < 60 && all <= 24 * 60).then_some(all)
}

/// The hours of a week, as the data file writes them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWeek {
    week: String,
    saturday: Option<String>,
    sunday: Option<String>,
    holidays: Option<String>,
    also_in: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStates {
    week: String,
    states: BTreeMap<String, RawWeek>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawData {
    version: String,
    default: RawWeek,
    strict: RawWeek,
    us_states: RawStates,
}

/// The hours of federal holidays.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Holidays {
    LikeOtherDays,
    None,
    Own(Window),
}

/// The hours of a week under one rule.
#[derive(Debug, Clone, PartialEq)]
struct Week {
    /// From Monday to Friday.
    weekday: Option<Window>,
    saturday: Option<Window>,
    sunday: Option<Window>,
    holidays: Holidays,
    /// A zone in which the rule has to hold as well.
    also_in: Option<TimeZone>,
}

impl Week {
    fn read(raw: &RawWeek) -> Option<Self> {
        let day = |text: &Option<String>, otherwise: Option<Window>| match text.as_deref() {
            None => Some(otherwise),
            Some("none") => Some(None),
            Some(window) => Window::parse(window).map(Some),
        };
        let weekday = Some(Window::parse(&raw.week)?);
        Some(Self {
            weekday,
            saturday: day(&raw.saturday, weekday)?,
            sunday: day(&raw.sunday, weekday)?,
            holidays: match raw.holidays.as_deref() {
                None => Holidays::LikeOtherDays,
                Some("none") => Holidays::None,
                Some(window) => Holidays::Own(Window::parse(window)?),
            },
            also_in: match &raw.also_in {
                None => None,
                Some(zone) => Some(TimeZone::get(zone).ok()?),
            },
        })
    }

    fn on(&self, date: Date) -> Option<Window> {
        match self.holidays {
            Holidays::None if is_federal_holiday(date) => return None,
            Holidays::Own(window) if is_federal_holiday(date) => return Some(window),
            Holidays::LikeOtherDays | Holidays::None | Holidays::Own(_) => {}
        }
        match date.weekday() {
            Weekday::Saturday => self.saturday,
            Weekday::Sunday => self.sunday,
            Weekday::Monday
            | Weekday::Tuesday
            | Weekday::Wednesday
            | Weekday::Thursday
            | Weekday::Friday => self.weekday,
        }
    }
}

struct Data {
    version: String,
    default: Week,
    strict: Week,
    /// Of whoever keeps no hours but their own.
    always: Week,
    elsewhere_in_us: Week,
    states: BTreeMap<String, Week>,
}

/// `None` would block every message to which hours apply; a test keeps that from being shipped.
static DATA: LazyLock<Option<Data>> = LazyLock::new(|| {
    let raw: RawData = toml::from_str(include_str!("../../data/quiet-hours.toml")).ok()?;
    let plain = |week: String| RawWeek {
        week,
        saturday: None,
        sunday: None,
        holidays: None,
        also_in: None,
    };
    let states = raw.us_states.states.iter();
    Some(Data {
        version: raw.version,
        default: Week::read(&raw.default)?,
        strict: Week::read(&raw.strict)?,
        always: Week::read(&plain("00:00-24:00".to_owned()))?,
        elsewhere_in_us: Week::read(&plain(raw.us_states.week))?,
        states: states
            .map(|(state, week)| Some((state.clone(), Week::read(week)?)))
            .collect::<Option<_>>()?,
    })
});

/// The version of the hours that are compiled in.
pub fn version() -> &'static str {
    DATA.as_ref().map_or("none", |data| data.version.as_str())
}

/// What hours are to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Whose.
    pub preset: HoursPreset,
    /// The tenant's own, which must allow it too.
    pub own: Option<Window>,
    /// How long before its end a window counts as over.
    pub guard_ms: i64,
}

/// What the hours say of an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hours {
    /// It may be sent, and until when.
    Open {
        /// The first instant at which it may not.
        until_ms: i64,
    },
    /// Not now.
    Closed {
        /// The first instant at which it may; later than now.
        until_ms: i64,
    },
    /// The places have no hour in common within the days ahead.
    Never,
    /// The rules or a date cannot be reckoned with.
    Unreadable,
}

/// May something be sent to any of `places` at `now_ms`? Asks them all.
pub fn at(rule: &Rule, places: &[Place], now_ms: i64) -> Hours {
    answer(rule, places, now_ms).unwrap_or(Hours::Unreadable)
}

/// A date or rule that cannot be reckoned with.
#[derive(Debug)]
struct Unreadable;

fn answer(rule: &Rule, places: &[Place], now_ms: i64) -> Result<Hours, Unreadable> {
    let data = DATA.as_ref().ok_or(Unreadable)?;
    let clocks = clocks(rule, data, places);
    if clocks.is_empty() {
        return Err(Unreadable);
    }
    let last = now_ms.checked_add(DAYS_AHEAD * DAY_MS).ok_or(Unreadable)?;
    let mut at = now_ms;
    for _round in 0..ROUNDS_MAX {
        let mut next = at;
        for clock in &clocks {
            match clock.next(at)? {
                Some(open) => next = next.max(open),
                None => return Ok(Hours::Never),
            }
        }
        if next == at {
            if at > now_ms {
                return Ok(Hours::Closed { until_ms: at });
            }
            let mut until_ms = i64::MAX;
            for clock in &clocks {
                until_ms = until_ms.min(clock.ends(at)?);
            }
            return Ok(Hours::Open { until_ms });
        }
        if next > last {
            return Ok(Hours::Never);
        }
        at = next;
    }
    Ok(Hours::Never)
}

/// One zone under one rule.
struct Clock<'a> {
    zone: &'a TimeZone,
    week: &'a Week,
    own: Option<Window>,
    guard_ms: i64,
}

/// Every zone that has to be asked, with the rule that holds there; each pair once.
fn clocks<'a>(rule: &Rule, data: &'a Data, places: &'a [Place]) -> Vec<Clock<'a>> {
    let mut clocks: Vec<Clock<'a>> = Vec::with_capacity(places.len());
    let mut add = |zone: &'a TimeZone, week: &'a Week| {
        let known = clocks.iter().any(|clock| std::ptr::eq(clock.week, week) && clock.zone == zone);
        if !known {
            clocks.push(Clock { zone, week, own: rule.own, guard_ms: rule.guard_ms });
        }
    };
    for place in places {
        let week = match (rule.preset, &place.state) {
            (HoursPreset::Strict, _) => &data.strict,
            (HoursPreset::UsStates, Some(state)) => {
                data.states.get(state).unwrap_or(&data.elsewhere_in_us)
            }
            // Asked only where the tenant has hours of its own.
            (HoursPreset::Off, _) => &data.always,
            (HoursPreset::Default, _) | (HoursPreset::UsStates, None) => &data.default,
        };
        add(&place.zone, week);
        if let Some(also) = &week.also_in {
            add(also, week);
        }
    }
    clocks
}

impl Clock<'_> {
    /// The window of a local day, as instants: from, and up to when.
    fn window(&self, date: Date) -> Result<Option<(i64, i64)>, Unreadable> {
        let window = match (self.week.on(date), self.own) {
            (None, _) => None,
            (Some(window), None) => Some(window),
            (Some(window), Some(own)) => window.and(own),
        };
        let Some(window) = window else { return Ok(None) };
        let (from, to) = (self.instant(date, window.from)?, self.instant(date, window.to)?);
        Ok(Some((from, to.saturating_sub(self.guard_ms))))
    }

    /// A minute of a local day. One that the clocks jump over is when they have jumped; of one that comes twice it is
    /// the first, which ends a window early rather than late.
    fn instant(&self, date: Date, minute: i16) -> Result<i64, Unreadable> {
        let (date, minute) = if minute >= 24 * 60 { (later(date, 1)?, 0) } else { (date, minute) };
        let (hour, minute) = (i8::try_from(minute / 60), i8::try_from(minute % 60));
        let (Ok(hour), Ok(minute)) = (hour, minute) else { return Err(Unreadable) };
        let local = date.at(hour, minute, 0, 0).to_zoned(self.zone.clone());
        Ok(local.map_err(|_out_of_range| Unreadable)?.timestamp().as_millisecond())
    }

    fn today(&self, at_ms: i64) -> Result<Date, Unreadable> {
        let at = Timestamp::from_millisecond(at_ms).map_err(|_out_of_range| Unreadable)?;
        Ok(at.to_zoned(self.zone.clone()).date())
    }

    /// The first instant from `at_ms` on at which it is open; none when there is none in the days ahead.
    fn next(&self, at_ms: i64) -> Result<Option<i64>, Unreadable> {
        let today = self.today(at_ms)?;
        for days in 0..=DAYS_AHEAD {
            if let Some((from, to)) = self.window(later(today, days)?)?
                && at_ms < to
                && from < to
            {
                return Ok(Some(from.max(at_ms)));
            }
        }
        Ok(None)
    }

    /// When the window ends that `at_ms` is in.
    fn ends(&self, at_ms: i64) -> Result<i64, Unreadable> {
        self.window(self.today(at_ms)?)?.map(|(_, to)| to).ok_or(Unreadable)
    }
}

fn later(date: Date, days: i64) -> Result<Date, Unreadable> {
    date.checked_add(days.days()).map_err(|_out_of_range| Unreadable)
}

/// A federal holiday of the United States (5 U.S.C. 6103), on its day or on the one it is observed.
fn is_federal_holiday(date: Date) -> bool {
    use Weekday::{Friday, Monday, Thursday};
    let fixed = |date: Date| {
        matches!((date.month(), date.day()), (1, 1) | (6, 19) | (7, 4) | (11, 11) | (12, 25))
    };
    let nth = |month: i8, nth: i8, weekday: Weekday| {
        date.month() == month
            && date.nth_weekday_of_month(nth, weekday).is_ok_and(|day| day == date)
    };
    // What falls on a Saturday is observed on the Friday before, on a Sunday on the Monday after.
    let observed = match date.weekday() {
        Friday => date.tomorrow().is_ok_and(fixed),
        Monday => date.yesterday().is_ok_and(fixed),
        Weekday::Tuesday | Weekday::Wednesday | Thursday | Weekday::Saturday | Weekday::Sunday => {
            false
        }
    };
    fixed(date)
        || observed
        || nth(1, 3, Monday)
        || nth(2, 3, Monday)
        || nth(5, -1, Monday)
        || nth(9, 1, Monday)
        || nth(10, 2, Monday)
        || nth(11, 4, Thursday)
}

#[cfg(test)]
#[path = "hours_tests.rs"]
mod tests;
