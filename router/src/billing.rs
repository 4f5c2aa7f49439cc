//! Plans, quotas and credits: what is decided about money. No store, no clock; `store::credit` acts on it.
//!
//! A plan says how many messages a month (UTC) may be accepted and how many credits each costs. Both are reserved when a
//! message is accepted, and given back if no phone ever begins to send it. Who pays is charged: the tenant itself, or the
//! tenant that its account names. The plan `unlimited` is always there and costs nothing.

use std::collections::BTreeMap;

use protocol::UnixMs;

pub mod invoice;
pub mod stripe;

/// The plan of whoever has none, unless the configuration names another.
pub const UNLIMITED: &str = "unlimited";

/// The parts of a quota, in percent, whose use is told once a month each.
pub const WARN_AT: [u32; 2] = [80, 100];

/// What a plan allows and costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// Messages accepted in a month; `None` for any number.
    pub quota: Option<u64>,
    /// Credits that each message costs.
    pub price: u32,
}

impl Terms {
    /// Nothing is counted against anything.
    pub const fn are_free(self) -> bool {
        self.quota.is_none() && self.price == 0
    }
}

/// The plans that the operator has set up, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plans {
    default: String,
    all: BTreeMap<String, Terms>,
}

impl Default for Plans {
    fn default() -> Self {
        Self {
            default: UNLIMITED.to_owned(),
            all: BTreeMap::from([(UNLIMITED.to_owned(), Terms::default())]),
        }
    }
}

impl Plans {
    /// `None` where the default plan is none of them.
    pub fn new(default: String, plans: impl IntoIterator<Item = (String, Terms)>) -> Option<Self> {
        let mut all = Self::default().all;
        all.extend(plans);
        all.contains_key(&default).then_some(Self { default, all })
    }

    /// The terms of a plan; `None` for the default one. No answer where there is no such plan.
    pub fn terms(&self, plan: Option<&str>) -> Option<Terms> {
        self.all.get(plan.unwrap_or(&self.default)).copied()
    }

    /// The name of the default plan.
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// All plans by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Terms)> {
        self.all.iter().map(|(name, terms)| (name.as_str(), *terms))
    }
}

/// A day of the calendar (UTC) as a number such as 20261127: sorts, and is read by people in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(i64);

/// A month of the calendar (UTC) as a number such as 202611.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month(i64);

impl Day {
    /// The day that an instant lies in.
    pub fn of(at: UnixMs) -> Self {
        let date = jiff::Timestamp::from_millisecond(at.0)
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
            .to_zoned(jiff::tz::TimeZone::UTC)
            .date();
        Self(
            i64::from(date.year()) * 10_000 + i64::from(date.month()) * 100 + i64::from(date.day()),
        )
    }

    /// From a number of the store; what is no day is refused.
    pub fn from_number(number: i64) -> Option<Self> {
        let part = |divisor: i64, modulus: i64| i8::try_from(number / divisor % modulus).ok();
        let year = i16::try_from(number / 10_000).ok()?;
        jiff::civil::Date::new(year, part(100, 100)?, part(1, 100)?).ok().map(|_date| Self(number))
    }

    /// As the store has it.
    pub const fn number(self) -> i64 {
        self.0
    }

    /// The month that it lies in.
    pub const fn month(self) -> Month {
        Month(self.0 / 100)
    }
}

impl Month {
    /// The month that an instant lies in.
    pub fn of(at: UnixMs) -> Self {
        Day::of(at).month()
    }

    /// From a number of the store; what is no month is refused.
    pub fn from_number(number: i64) -> Option<Self> {
        Day::from_number(number.checked_mul(100)?.checked_add(1)?).map(Day::month)
    }

    /// As the store has it.
    pub const fn number(self) -> i64 {
        self.0
    }

    /// Its first day.
    pub const fn first(self) -> Day {
        Day(self.0 * 100 + 1)
    }

    /// When the next one begins: what is used up then begins anew.
    pub fn ends_at(self) -> UnixMs {
        let (year, month) = (self.0 / 100, self.0 % 100);
        let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
        let first = i16::try_from(year)
            .ok()
            .zip(i8::try_from(month).ok())
            .and_then(|(year, month)| jiff::civil::Date::new(year, month, 1).ok());
        first
            .and_then(|first| first.to_zoned(jiff::tz::TimeZone::UTC).ok())
            .map_or(UnixMs(i64::MAX), |first| UnixMs(first.timestamp().as_millisecond()))
    }
}

/// Text that is no day of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a day, such as 2026-11-27")]
pub struct BadDay;

impl std::str::FromStr for Day {
    type Err = BadDay;

    fn from_str(text: &str) -> Result<Self, BadDay> {
        // Ten characters, or jiff would take a time of that day as well.
        let date: jiff::civil::Date = Some(text)
            .filter(|text| text.len() == 10)
            .ok_or(BadDay)?
            .parse()
            .map_err(|_no_date| BadDay)?;
        let (year, month) = (i64::from(date.year()), i64::from(date.month()));
        Self::from_number(year * 10_000 + month * 100 + i64::from(date.day())).ok_or(BadDay)
    }
}

impl std::fmt::Display for Day {
    /// `2026-11-27`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
    }
}

impl std::fmt::Display for Month {
    /// `2026-11`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 100, self.0 % 100)
    }
}

/// Why a message is not accepted for want of money. Nothing was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The plan's messages of this month are used up, or would be by so many.
    QuotaExceeded {
        /// Messages of the plan in a month.
        quota: u64,
        /// Messages that could still be accepted.
        left: u64,
        /// When the quota begins anew.
        resets_at: UnixMs,
    },
    /// The credit does not pay for it.
    InsufficientCredit {
        /// Credits that are there; below zero where they were taken.
        credit: i64,
        /// Credits that it would cost.
        needed: u64,
        /// Messages that the credit would pay for.
        left: u64,
    },
}

impl Refusal {
    /// Messages that would still be accepted.
    pub const fn left(self) -> u64 {
        match self {
            Self::QuotaExceeded { left, .. } | Self::InsufficientCredit { left, .. } => left,
        }
    }
}

/// How an account stands that has refused so many messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What its plan says.
    pub terms: Terms,
    /// Messages of this month.
    pub used: u64,
    /// Its credit.
    pub credit: i64,
}

/// Why `units` were refused by an account that stands like this. `None` where they would not be.
pub fn refusal(standing: &Standing, units: u64, month: Month) -> Option<Refusal> {
    let Standing { terms, used, credit } = *standing;
    if let Some(quota) = terms.quota
        && used.saturating_add(units) > quota
    {
        let left = quota.saturating_sub(used);
        return Some(Refusal::QuotaExceeded { quota, left, resets_at: month.ends_at() });
    }
    let needed = units.saturating_mul(u64::from(terms.price));
    let there = u64::try_from(credit).unwrap_or(0);
    if needed > there {
        let left = there.checked_div(u64::from(terms.price)).unwrap_or(0);
        return Some(Refusal::InsufficientCredit { credit, needed, left });
    }
    None
}

/// The percentages that are to be told now that `used` of `quota` are used and `warned` was the last one told.
pub fn warnings(quota: u64, used: u64, warned: u32) -> impl Iterator<Item = u32> {
    WARN_AT.into_iter().filter(move |percent| {
        let reached = u128::from(used) * 100 >= u128::from(quota) * u128::from(*percent);
        *percent > warned && reached
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> UnixMs {
        text.parse().unwrap()
    }

    #[test]
    fn months_end_where_the_next_begins() {
        for (now, month, ends) in [
            ("2026-11-27T13:00:00Z", "2026-11", "2026-12-01T00:00:00Z"),
            ("2026-12-31T23:59:59.999Z", "2026-12", "2027-01-01T00:00:00Z"),
            ("2028-02-29T00:00:00Z", "2028-02", "2028-03-01T00:00:00Z"),
            ("2026-01-01T00:00:00Z", "2026-01", "2026-02-01T00:00:00Z"),
        ] {
            let of = Month::of(at(now));
            assert_eq!((of.to_string().as_str(), of.ends_at()), (month, at(ends)));
            assert_eq!(Month::from_number(of.number()), Some(of));
        }
        assert_eq!(Day::of(at("2026-11-07T23:59:59Z")).to_string(), "2026-11-07");
        assert_eq!("2026-11-07".parse(), Ok(Day::of(at("2026-11-07T23:59:59Z"))));
        for bad in ["", "2026-02-30", "2026-11", "20261107", "2026-11-07T00:00:00", "-026-11-07"] {
            assert_eq!(bad.parse::<Day>(), Err(BadDay), "{bad}");
        }
        for bad in [0, 202_613, 202_600, -1, i64::MAX] {
            assert_eq!(Month::from_number(bad), None, "{bad}");
        }
        for bad in [20_260_230, 20_261_301, 0, i64::MAX, -20_261_127] {
            assert_eq!(Day::from_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_refusal_says_what_would_still_go() {
        let month = Month::of(at("2026-11-27T13:00:00Z"));
        let terms = Terms { quota: Some(10), price: 3 };
        let standing = |used, credit| Standing { terms, used, credit };
        let resets_at = at("2026-12-01T00:00:00Z");
        assert_eq!(
            refusal(&standing(8, 100), 3, month),
            Some(Refusal::QuotaExceeded { quota: 10, left: 2, resets_at })
        );
        assert_eq!(
            refusal(&standing(0, 8), 3, month),
            Some(Refusal::InsufficientCredit { credit: 8, needed: 9, left: 2 })
        );
        assert_eq!(refusal(&standing(0, -5), 1, month).map(Refusal::left), Some(0));
        assert_eq!(refusal(&standing(7, 9), 3, month), None);
        let free = Standing { terms: Terms::default(), used: 0, credit: -5 };
        assert_eq!(refusal(&free, u64::MAX, month), None);
    }

    #[test]
    fn warnings_come_at_eighty_and_a_hundred_percent() {
        let told = |quota, used, warned| warnings(quota, used, warned).collect::<Vec<_>>();
        assert_eq!(told(10, 7, 0), [0_u32; 0]);
        assert_eq!(told(10, 8, 0), [80]);
        assert_eq!(told(10, 9, 80), [0_u32; 0]);
        assert_eq!(told(10, 10, 80), [100]);
        // Several at once may jump over the first.
        assert_eq!(told(10, 10, 0), [80, 100]);
        assert_eq!(told(10, 10, 100), [0_u32; 0]);
        assert_eq!(told(3, 2, 0), [0_u32; 0]);
        assert_eq!(told(u64::MAX, u64::MAX, 80), [100]);
    }

    #[test]
    fn the_default_plan_is_one_of_the_plans() {
        let small = || [("small".to_owned(), Terms { quota: Some(5), price: 0 })];
        assert_eq!(Plans::new("other".to_owned(), small()), None);
        let plans = Plans::new("small".to_owned(), small()).unwrap();
        assert_eq!(plans.terms(None).unwrap().quota, Some(5));
        assert!(plans.terms(Some(UNLIMITED)).unwrap().are_free());
        assert_eq!(plans.terms(Some("other")), None);
    }

    proptest! {
        #[test]
        fn what_is_left_is_accepted_and_one_more_is_not(
            quota in proptest::option::of(0_u64..50), price in 0_u32..5, used in 0_u64..60, credit in -20_i64..200,
        ) {
            let month = Month::of(UnixMs(0));
            let standing = Standing { terms: Terms { quota, price }, used, credit };
            if let Some(refused) = refusal(&standing, 1_000, month) {
                // The first limit that is met says what is left of it; the other may be the narrower one.
                let left = refused.left();
                prop_assert!(refusal(&standing, left + 1, month).is_some());
                let other = refusal(&standing, left, month).map(Refusal::left);
                prop_assert!(other.is_none_or(|narrower| narrower <= left));
            }
        }
    }
}
