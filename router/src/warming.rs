//! How many strangers a phone may write to, and how often somebody who does not answer. Pure: facts and the time come
//! in, a verdict comes out.
//!
//! Apple does not say what makes an account suspicious. What vendors of such lines publish is a cap on new contacts per
//! line and day, one per hour, and an end to writing to people who never answer; how a fresh line may grow is published
//! by nobody, so the table is configuration and its defaults are a guess.

use protocol::Class;
use serde::Deserialize;

/// A day and an hour, in milliseconds.
pub const DAY_MS: i64 = 24 * HOUR_MS;
const HOUR_MS: i64 = 3_600 * 1_000;

/// From an age on, so many new contacts within 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The phone's age in days from which this counts.
    pub from_day: u32,
    /// New contacts within 24 hours.
    pub per_day: u32,
}

/// What is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Without it nothing here is a limit.
    pub enforce: bool,
    /// By age, ascending; the first counts from day 0.
    pub steps: Vec<Step>,
    /// New contacts within an hour, at any age.
    pub per_hour: u32,
    /// Messages in a row that a contact may leave unanswered; 0 for any number.
    pub unanswered_max: u32,
}

impl Policy {
    /// How many new contacts a phone of this age may have within 24 hours.
    fn per_day(&self, age_ms: i64) -> usize {
        let day = age_ms.div_euclid(DAY_MS);
        let step = self.steps.iter().rev().find(|step| i64::from(step.from_day) <= day);
        // A clock that was set back makes a phone younger than the table begins.
        step.or(self.steps.first()).map_or(0, |step| places(step.per_day))
    }

    /// From when on a phone may have one more new contact: `now_ms`, or the very moment at which a place becomes free.
    ///
    /// `since_ms` is when the phone began its service, `recent` the times of its new contacts of the last 24 hours,
    /// ascending. Times that lie ahead, because a clock was set back, take a place like those of this moment.
    pub fn next_new_contact(&self, since_ms: i64, recent: &[i64], now_ms: i64) -> i64 {
        let free = |at_ms: i64| {
            let within = |window_ms: i64| {
                let out = recent.partition_point(|time| *time <= at_ms.saturating_sub(window_ms));
                recent.len().saturating_sub(out)
            };
            within(DAY_MS) < self.per_day(at_ms.saturating_sub(since_ms))
                && within(HOUR_MS) < places(self.per_hour)
        };
        if !self.enforce || free(now_ms) {
            return now_ms;
        }
        // A place becomes free when a contact leaves one of the windows, or when the phone comes of age.
        let leaving = recent
            .iter()
            .flat_map(|time| [time.saturating_add(HOUR_MS), time.saturating_add(DAY_MS)]);
        let of_age = self
            .steps
            .iter()
            .map(|step| since_ms.saturating_add(i64::from(step.from_day).saturating_mul(DAY_MS)));
        let mut moments: Vec<i64> =
            leaving.chain(of_age).filter(|moment| *moment > now_ms).collect();
        moments.sort_unstable();
        moments.into_iter().find(|moment| free(*moment)).unwrap_or(i64::MAX)
    }

    /// Whether somebody who has left so many messages in a row unanswered may be sent another one of this class. Codes
    /// and notices are asked for and need no answer.
    pub fn may_follow_up(&self, class: Class, unanswered: u32) -> bool {
        match class {
            Class::Otp | Class::Transactional => true,
            Class::Conversational | Class::Marketing => {
                !self.enforce || self.unanswered_max == 0 || unanswered < self.unanswered_max
            }
        }
    }
}

fn places(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> Policy {
        Policy {
            enforce: true,
            steps: vec![
                Step { from_day: 0, per_day: 10 },
                Step { from_day: 7, per_day: 25 },
                Step { from_day: 14, per_day: 50 },
            ],
            per_hour: 15,
            unanswered_max: 3,
        }
    }

    #[test]
    fn a_phone_grows_by_its_age() {
        for (day, cap) in [(0, 10), (6, 10), (7, 25), (13, 25), (14, 50), (4_000, 50), (-1, 10)] {
            assert_eq!(policy().per_day(day * DAY_MS), cap, "day {day}");
        }
        assert_eq!(policy().per_day(7 * DAY_MS - 1), 10);
    }

    #[test]
    fn the_eleventh_waits_until_the_first_is_a_day_old() {
        let recent: Vec<i64> = (1..=10).map(|n| n * 1_000).collect();
        let next = |recent: &[i64], now| policy().next_new_contact(0, recent, now);
        assert_eq!(next(&recent[..9], 20_000), 20_000);
        assert_eq!(next(&recent, 20_000), DAY_MS + 1_000);
        assert_eq!(next(&recent, DAY_MS + 999), DAY_MS + 1_000);
        assert_eq!(next(&recent, DAY_MS + 1_000), DAY_MS + 1_000);
    }

    #[test]
    fn the_sixteenth_of_an_hour_waits_for_the_hour() {
        let recent: Vec<i64> = (0..15).map(|n| 20 * DAY_MS + n).collect();
        assert_eq!(policy().next_new_contact(0, &recent, 20 * DAY_MS + 99), 20 * DAY_MS + HOUR_MS);
    }

    #[test]
    fn coming_of_age_frees_places_too() {
        let almost = 7 * DAY_MS - 1_000;
        let recent: Vec<i64> = (0..10).map(|n| almost - HOUR_MS - n).rev().collect();
        assert_eq!(policy().next_new_contact(0, &recent, almost), 7 * DAY_MS);
    }

    #[test]
    fn without_enforcement_nothing_waits() {
        let free = Policy { enforce: false, ..policy() };
        assert_eq!(free.next_new_contact(0, &vec![1; 5_000], 2), 2);
        assert!(free.may_follow_up(Class::Marketing, 1_000));
    }

    #[test]
    fn who_does_not_answer_is_left_alone_but_gets_their_codes() {
        let policy = policy();
        for class in [Class::Marketing, Class::Conversational] {
            assert!(policy.may_follow_up(class, 2));
            assert!(!policy.may_follow_up(class, 3));
        }
        for class in [Class::Otp, Class::Transactional] {
            assert!(policy.may_follow_up(class, 100));
        }
        assert!(Policy { unanswered_max: 0, ..policy }.may_follow_up(Class::Marketing, 100));
    }

    proptest! {
        /// What is promised holds at that moment, and at no moment before.
        #[test]
        fn the_promised_moment_is_the_first(
            mut recent in prop::collection::vec(0_i64..2 * DAY_MS, 0..40),
            age in 0_i64..20, now in DAY_MS..3 * DAY_MS, per_mille in 0_i64..1_000,
        ) {
            recent.sort_unstable();
            let policy = policy();
            let since = -age * DAY_MS;
            let promised = policy.next_new_contact(since, &recent, now);
            let counted = |at: i64, window: i64| recent.iter().filter(|time| **time > at - window).count();
            let free = |at: i64| {
                let cap = match (at - since) / DAY_MS { 0..7 => 10, 7..14 => 25, _ => 50 };
                counted(at, DAY_MS) < cap && counted(at, HOUR_MS) < 15
            };
            prop_assert!(promised >= now && free(promised));
            let before = now + (promised - now) / 1_000 * per_mille;
            prop_assert!(before == promised || !free(before), "{before} was free before {promised}");
            prop_assert!(promised == now || !free(promised - 1));
        }
    }
}
