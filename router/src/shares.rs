//! Whose turn it is: between classes by weight, between tenants in turn. Pure: what waits comes in, how many of each are
//! taken goes out.

use protocol::Class;

/// How many classes the queue knows: those of messages in the order of their ranks, and last whatever goes to the sandbox,
/// which has phones of its own.
pub const CLASSES: usize = Class::ALL.len() + 1;

/// What each class gets when all of them wait: a code goes before everything that matters less, and yet one message in 85 is
/// marketing while codes flow for ever.
const WEIGHTS: [u64; CLASSES] = [64, 16, 4, 1, 4];

/// The class of the queue in which a message stands.
pub const fn rank(class: Class, sandbox: bool) -> u8 {
    if sandbox { SANDBOX } else { class.rank() }
}

/// The class of what goes to the sandbox.
pub const SANDBOX: u8 = 4;

/// How many turns a class has when all of them wait.
pub fn weight(rank: u8) -> u64 {
    WEIGHTS.get(usize::from(rank)).copied().unwrap_or(1)
}

/// What a turn costs a class of weight 1.
const STRIDE: u64 = 64;

/// Turns between classes. Each turn moves a class ahead by what it costs it; the one that is furthest behind is next, the
/// more urgent among equals.
#[derive(Debug, Clone, Default)]
pub struct Shares {
    ahead: [u64; CLASSES],
    waited: [bool; CLASSES],
    /// Where the class stood that had the last turn.
    clock: u64,
}

impl Shares {
    /// Begins a round in which these classes have something waiting. One that had nothing before has saved up nothing.
    pub fn begin(&mut self, waiting: [bool; CLASSES]) {
        for (class, ahead) in self.ahead.iter_mut().enumerate() {
            if at(waiting, class) && !at(self.waited, class) {
                *ahead = self.clock.max(*ahead);
            }
        }
        self.waited = waiting;
    }

    /// How many of each class are next, of `count` in all.
    pub fn next(&mut self, count: usize) -> [usize; CLASSES] {
        let mut taken = [0; CLASSES];
        for _ in 0..count {
            let next = (0..CLASSES)
                .filter(|class| self.waited(*class))
                .min_by_key(|class| (self.ahead(*class), *class));
            let Some(next) = next else { break };
            self.clock = self.ahead(next);
            self.move_by(next, 1);
            if let Some(taken) = taken.get_mut(next) {
                *taken += 1;
            }
        }
        taken
    }

    /// A class had fewer than its turns: the rest is given back, and it waits no more.
    pub fn ran_out(&mut self, class: usize, unused: usize) {
        self.move_by(class, -i64::try_from(unused).unwrap_or(i64::MAX));
        if let Some(waited) = self.waited.get_mut(class) {
            *waited = false;
        }
    }

    /// Whether any class has something waiting.
    pub fn any(&self) -> bool {
        self.waited.contains(&true)
    }

    fn move_by(&mut self, class: usize, turns: i64) {
        let cost = STRIDE / WEIGHTS.get(class).copied().unwrap_or(1);
        let by = i64::try_from(cost).unwrap_or(1).saturating_mul(turns);
        if let Some(ahead) = self.ahead.get_mut(class) {
            *ahead = ahead.saturating_add_signed(by);
        }
    }

    fn ahead(&self, class: usize) -> u64 {
        self.ahead.get(class).copied().unwrap_or(u64::MAX)
    }

    fn waited(&self, class: usize) -> bool {
        at(self.waited, class)
    }
}

fn at(all: [bool; CLASSES], class: usize) -> bool {
    all.get(class).copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_class_alone_gets_everything() {
        let mut shares = Shares::default();
        shares.begin([false, false, true, false, false]);
        assert_eq!(shares.next(10), [0, 0, 10, 0, 0]);
    }

    #[test]
    fn all_at_once_share_by_weight() {
        let mut shares = Shares::default();
        shares.begin([true; 5]);
        assert_eq!(shares.next(890), [640, 160, 40, 10, 40]);
    }

    #[test]
    fn who_comes_late_has_saved_up_nothing_and_owes_nothing() {
        let mut shares = Shares::default();
        for _ in 0..1_000 {
            shares.begin([false, false, false, true, false]);
            shares.next(64);
        }
        // A code comes, and goes at once.
        shares.begin([true, false, false, true, false]);
        assert_eq!(shares.next(1), [1, 0, 0, 0, 0]);
        for _ in 0..1_000 {
            shares.begin([true, false, false, false, false]);
            shares.next(64);
        }
        // Marketing does not catch up with all that went meanwhile.
        shares.begin([true, false, false, true, false]);
        let [codes, _, _, marketing, _] = shares.next(65);
        assert!(codes >= 63 && marketing <= 2, "{codes} {marketing}");
    }

    #[test]
    fn one_at_a_time_nobody_starves() {
        let mut shares = Shares::default();
        let mut taken = [0; 5];
        for _ in 0..890 {
            shares.begin([true; 5]);
            for (all, one) in taken.iter_mut().zip(shares.next(1)) {
                *all += one;
            }
        }
        assert_eq!(taken, [640, 160, 40, 10, 40]);
    }

    #[test]
    fn what_went_while_others_slept_is_not_held_against_it() {
        let mut shares = Shares::default();
        shares.begin([false, false, false, true, false]);
        shares.next(10_000);
        shares.begin([false; 5]);
        shares.begin([true, false, false, true, false]);
        let [codes, _, _, marketing, _] = shares.next(130);
        assert!(codes >= 128 && marketing >= 1, "{codes} {marketing}");
    }

    #[test]
    fn every_message_has_a_class_of_the_queue() {
        let ranks: Vec<u8> = Class::ALL.iter().map(|class| rank(*class, false)).collect();
        assert_eq!(ranks, [0, 1, 2, 3]);
        assert!(Class::ALL.iter().all(|class| rank(*class, true) == SANDBOX));
        assert_eq!(usize::from(SANDBOX), CLASSES - 1);
        assert_eq!(weight(SANDBOX), 4);
    }

    proptest! {
        #[test]
        fn no_turn_is_lost_and_none_goes_to_who_does_not_wait(
            rounds in prop::collection::vec((any::<[bool; 5]>(), 0_usize..100), 1..50),
        ) {
            let mut shares = Shares::default();
            for (waiting, count) in rounds {
                shares.begin(waiting);
                let taken = shares.next(count);
                let expected = if waiting.contains(&true) { count } else { 0 };
                prop_assert_eq!(taken.iter().sum::<usize>(), expected);
                prop_assert!(taken.iter().zip(waiting).all(|(taken, waits)| waits || *taken == 0));
            }
        }
    }
}
