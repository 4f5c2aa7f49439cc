use proptest::prelude::*;

use super::*;

const S: ContinuousMs = 1_000;

fn policy() -> Policy {
    Policy::default()
}

/// What each uplink shows, second by second; every second is a round of all of them.
struct World {
    chooser: Chooser,
    now: ContinuousMs,
    switches: Vec<(ContinuousMs, usize, Why)>,
}

impl World {
    fn new(uplinks: usize) -> Self {
        Self { chooser: Chooser::new(policy(), uplinks, 0), now: 1_000 * S, switches: Vec::new() }
    }

    /// Lets time pass while the uplinks show this; the last decision.
    fn pass(&mut self, seconds: u64, shown: &[Seen]) -> Decision {
        let mut last = Decision::Stay(Stay::Fine);
        for _ in 0..seconds {
            self.now += S;
            for (uplink, seen) in shown.iter().enumerate() {
                self.chooser.saw(uplink, *seen, self.now);
            }
            last = self.chooser.decide(self.now);
            if let Decision::Switch { to, why } = last {
                self.chooser.switched(to, self.now);
                self.switches.push((self.now, to, why));
            }
        }
        last
    }
}

use Seen::{Captive as C, Good as G, Nothing as N};

#[test]
fn states_take_rounds_in_a_row() {
    let table: [(&[Seen], UplinkState); 9] = [
        (&[G], UplinkState::Unknown),
        (&[G, G], UplinkState::Good),
        (&[G, N, G], UplinkState::Unknown),
        (&[N, N], UplinkState::Unknown),
        (&[N, N, N], UplinkState::Down),
        (&[N, N, C], UplinkState::Captive),
        (&[G, G, N, N], UplinkState::Good),
        (&[G, G, N, N, G, N, N], UplinkState::Good),
        (&[G, G, C, C, N, G], UplinkState::Down),
    ];
    for (shown, wanted) in table {
        let mut chooser = Chooser::new(policy(), 1, 0);
        for (at, seen) in (1..).zip(shown) {
            chooser.saw(0, *seen, at * S);
        }
        assert_eq!(chooser.state(0), wanted, "{shown:?}");
    }
}

#[test]
fn a_lost_uplink_is_left_for_the_first_good_one_and_gone_back_to_when_it_has_proved_itself() {
    let mut world = World::new(3);
    world.pass(60, &[G, N, G]);
    assert_eq!(world.switches, []);
    let lost = world.now;
    world.pass(200, &[N, N, G]);
    assert_eq!(world.switches, [(lost + 3 * S, 2, Why::Lost)]);
    let back = world.now;
    assert_eq!(
        world.pass(30, &[G, N, G]),
        Decision::Stay(Stay::Proving { until: back + S + 120 * S })
    );
    // One fault, and the proof begins anew.
    world.pass(1, &[N, N, G]);
    let back = world.now;
    world.pass(200, &[G, N, G]);
    assert_eq!(world.switches[1..], [(back + 121 * S, 0, Why::Better)]);
}

#[test]
fn each_reason_to_stay_is_told() {
    let mut world = World::new(2);
    world.pass(10, &[G, N]);
    assert_eq!(world.pass(10, &[C, N]), Decision::Stay(Stay::NoOther));
    // It answers, once; that is not enough, and then it is.
    assert_eq!(world.pass(1, &[C, G]), Decision::Stay(Stay::NoOther));
    assert!(matches!(world.pass(1, &[C, G]), Decision::Switch { to: 1, why: Why::Lost }));
    let switched = world.now;
    // Now this one is lost, too soon.
    world.pass(10, &[G, N]);
    assert_eq!(
        world.chooser.decide(world.now),
        Decision::Stay(Stay::Settling { until: switched + 60 * S })
    );
    assert!(matches!(world.pass(50, &[G, N]), Decision::Switch { to: 0, why: Why::Lost }));
    world.pass(60, &[G, G]);
    world.pass(3, &[N, N]);
    world.chooser.saw(1, G, world.now);
    world.chooser.saw(1, G, world.now);
    world.chooser.failed(world.now);
    let until = world.now + 10 * S;
    assert_eq!(world.chooser.decide(world.now), Decision::Stay(Stay::Failed { until }));
    assert!(matches!(world.chooser.decide(until), Decision::Switch { to: 1, .. }));
}

#[test]
fn an_old_answer_proves_nothing() {
    let mut chooser = Chooser::new(policy(), 2, 0);
    for at in 1..=2 {
        chooser.saw(0, G, at * S);
        chooser.saw(1, G, at * S);
    }
    for at in 30..=32 {
        chooser.saw(0, N, at * S);
    }
    assert_eq!(chooser.decide(32 * S), Decision::Stay(Stay::NoOther));
    chooser.saw(1, G, 33 * S);
    assert_eq!(chooser.decide(33 * S), Decision::Switch { to: 1, why: Why::Lost });
}

#[test]
fn after_a_sleep_everything_must_be_shown_again() {
    let mut world = World::new(2);
    world.pass(200, &[N, G]);
    assert_eq!(world.chooser.chosen(), 1);
    world.now += 3_600 * S;
    world.pass(1, &[G, G]);
    assert_eq!(world.chooser.state(0), UplinkState::Unknown);
    assert_eq!(world.chooser.state(1), UplinkState::Unknown);
    world.pass(100, &[G, G]);
    assert_eq!(world.chooser.chosen(), 1, "an hour of sleep is no proof");
}

#[test]
fn flapping_is_locked_on_what_works_and_an_outage_that_lasts_breaks_the_lock() {
    let mut world = World::new(2);
    world.pass(5, &[G, G]);
    while !world.chooser.is_locked(world.now) {
        world.pass(65, &[N, G]);
        world.pass(125, &[G, G]);
        assert!(world.now < 4_000 * S, "locked after {:?}", world.switches);
    }
    // Out and back take a little more than three minutes: the sixth switch is within a quarter of an hour.
    assert_eq!(world.switches.len(), 6);
    let locked_on = world.chooser.chosen();
    let other = 1 - locked_on;
    let mut shown = [G, G];
    shown[locked_on] = N;
    let lost = world.now;
    assert!(matches!(world.pass(200, &shown), Decision::Stay(Stay::Locked { .. })));
    world.pass(110, &shown);
    assert_eq!(world.switches.last().unwrap(), &(lost + 301 * S, other, Why::Lost));
    // And when the lock is over, it goes back as ever.
    world.pass(40 * 60, &[G, G]);
    assert_eq!(world.chooser.chosen(), 0);
    assert!(!world.chooser.is_locked(world.now));
}

#[test]
fn who_stands_by_is_asked_rarely_until_it_matters() {
    let mut chooser = Chooser::new(policy(), 3, 1);
    let paces = |chooser: &Chooser| [chooser.pace(0), chooser.pace(1), chooser.pace(2)];
    assert_eq!(paces(&chooser), [Pace::Usual; 3], "nothing is known yet");
    for at in 1..=3 {
        for (uplink, seen) in [N, G, G].into_iter().enumerate() {
            chooser.saw(uplink, seen, at * S);
        }
    }
    assert_eq!(paces(&chooser), [Pace::Usual, Pace::Usual, Pace::Rare]);
    chooser.saw(1, N, 4 * S);
    assert_eq!(paces(&chooser), [Pace::Quick; 3]);
    chooser.saw(1, N, 5 * S);
    chooser.saw(1, N, 6 * S);
    assert_eq!(paces(&chooser), [Pace::Usual; 3], "lost: no haste helps any more");
    chooser.saw(0, G, 7 * S);
    assert_eq!(chooser.pace(0), Pace::Quick, "one more answer decides");
}

#[test]
fn what_somebody_else_chose_is_where_it_goes_on_from() {
    let mut world = World::new(2);
    world.pass(5, &[G, G]);
    world.chooser.found(1);
    world.chooser.found(7);
    assert_eq!(world.chooser.chosen(), 1);
    world.pass(130, &[G, G]);
    assert_eq!(world.chooser.chosen(), 0, "the preferred one is gone back to");
}

fn seen() -> impl Strategy<Value = Seen> {
    prop_oneof![Just(G), Just(C), Just(N)]
}

/// How it is for a while: what each uplink shows, for so many rounds, so far apart.
fn weather() -> impl Strategy<Value = (Vec<Seen>, u64, u64)> {
    (prop::collection::vec(seen(), 3), 1_u64..80, prop_oneof![Just(S), Just(5 * S), Just(60 * S)])
}

/// What a test knows of an uplink by itself.
#[derive(Default, Clone)]
struct Known {
    rounds: Vec<(ContinuousMs, Seen)>,
}

impl Known {
    fn in_a_row(&self, good: bool) -> usize {
        self.rounds.iter().rev().take_while(|(_, seen)| (*seen == G) == good).count()
    }

    /// Three bad ones in a row have come since there were two good ones in a row, and the last is bad.
    fn is_lost(&self) -> bool {
        let good = |window: &[(ContinuousMs, Seen)]| window.iter().all(|(_, seen)| *seen == G);
        let bad = |window: &[(ContinuousMs, Seen)]| window.iter().all(|(_, seen)| *seen != G);
        let lost_at = self.rounds.windows(3).rposition(bad).map(|at| at + 2);
        let good_at = self.rounds.windows(2).rposition(good).map(|at| at + 1);
        lost_at > good_at && self.in_a_row(false) > 0
    }

    fn clean_for(&self, now: ContinuousMs) -> ContinuousMs {
        let clean = self.rounds.iter().rev().take_while(|(_, seen)| *seen == G);
        clean.last().map_or(0, |(at, _)| now - at)
    }
}

proptest! {
    /// Whatever the weather: nobody goes to an uplink that is not known to be good, leaves one that is not known to be
    /// lost for a worse one, goes back without proof, or switches more often than allowed.
    #[test]
    fn no_switch_without_proof(
        weathers in prop::collection::vec(weather(), 1..40),
        refused in prop::collection::vec(any::<bool>(), 64),
    ) {
        let policy = policy();
        let ms = |period: Duration| u64::try_from(period.as_millis()).unwrap();
        let mut chooser = Chooser::new(policy, 3, 0);
        let mut known = vec![Known::default(); 3];
        let mut switches: Vec<ContinuousMs> = Vec::new();
        let mut refused = refused.into_iter();
        let mut now = 0;
        for (shown, rounds, apart) in weathers {
            for _ in 0..rounds {
                now += apart;
                for (uplink, seen) in shown.iter().enumerate() {
                    chooser.saw(uplink, *seen, now);
                    known[uplink].rounds.push((now, *seen));
                }
                let Decision::Switch { to, why } = chooser.decide(now) else { continue };
                let from = chooser.chosen();
                prop_assert_ne!(from, to);
                prop_assert!(known[to].in_a_row(true) >= 2);
                match why {
                    Why::Lost => prop_assert!(known[from].is_lost()),
                    Why::Better => {
                        prop_assert!(to < from);
                        prop_assert!(known[to].clean_for(now) >= ms(policy.fail_back));
                    }
                }
                if let Some(last) = switches.last() {
                    prop_assert!(now - last >= ms(policy.hold));
                }
                if refused.next().unwrap_or(false) {
                    chooser.failed(now);
                    prop_assert_eq!(chooser.decide(now), Decision::Stay(Stay::Failed { until: now + ms(policy.again) }));
                    continue;
                }
                chooser.switched(to, now);
                prop_assert_eq!(chooser.chosen(), to);
                switches.push(now);
            }
        }
        let most = policy.switches_max
            + usize::try_from(policy.window.as_secs() / policy.rescue_after.as_secs()).unwrap();
        for (at, first) in switches.iter().enumerate() {
            let within = switches[at..].iter().filter(|it| **it - first < ms(policy.window)).count();
            prop_assert!(within <= most, "{} switches in a window: {:?}", within, switches);
        }
    }

    /// Whatever came before: with one good uplink that stays good, and none other, it ends there.
    #[test]
    fn in_the_end_it_is_where_the_internet_is(
        weathers in prop::collection::vec(weather(), 0..20),
        good in 0_usize..3,
    ) {
        let mut world = World::new(3);
        for (shown, rounds, _) in weathers {
            world.pass(rounds, &shown);
        }
        let mut shown = [N; 3];
        shown[good] = G;
        world.pass(6 * 60, &shown);
        prop_assert_eq!(world.chooser.chosen(), good);
    }
}
