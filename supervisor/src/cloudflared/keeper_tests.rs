use proptest::prelude::*;

use super::*;

const SECOND: ContinuousMs = 1_000;
const READY: Event = Event::Ready(Ready::Yes { connections: 4 });
const UNREADY: Event = Event::Ready(Ready::No);
const LOST: Event = Event::Through(Through::Lost);

fn code(code: i32) -> Event {
    Event::Ended(Exit::Code { code })
}

/// A keeper with its clock.
struct Bench {
    keeper: Keeper,
    now: ContinuousMs,
}

impl Bench {
    /// Started a moment ago.
    fn started() -> Self {
        let mut bench = Self { keeper: Keeper::new(Policy::default()), now: 1_000_000 };
        assert_eq!(bench.step(Event::Tick), Some(Action::Start));
        assert_eq!(bench.step(Event::Started), None);
        bench
    }

    /// Ready, with the internet there for long.
    fn ready() -> Self {
        let mut bench = Self::started();
        assert_eq!(bench.step(READY), None);
        assert_eq!(bench.step(Event::Internet(Some(true))), None);
        bench.now += 3_600 * SECOND;
        assert_eq!(bench.standing().state, TunnelState::Ready);
        bench
    }

    fn standing(&self) -> Standing {
        self.keeper.standing(None, self.now, UnixMs(0))
    }

    fn step(&mut self, event: Event) -> Option<Action> {
        self.keeper.step(event, self.now, 0.0)
    }

    /// The same event every second, until something is to be done; the seconds that took.
    fn until(&mut self, event: Event, most: u64) -> Option<(u64, Action)> {
        (0..=most).find_map(|second| {
            let action = self.step(event);
            if action.is_none() {
                self.now += SECOND;
            }
            action.map(|action| (second, action))
        })
    }

    /// A restart that works.
    fn restarted(&mut self) {
        assert_eq!(self.step(code(0)), Some(Action::Start));
        assert_eq!(self.step(Event::Started), None);
    }
}

#[test]
fn with_the_internet_there_it_may_be_unready_for_thirty_seconds() {
    let mut bench = Bench::ready();
    assert_eq!(bench.until(UNREADY, 60), Some((30, Action::Term)));
    assert_eq!(bench.keeper.restarting(), Some(Why::Unready));
    bench.restarted();
    assert_eq!(bench.standing().restarts_last_hour, 1);
    assert_eq!(bench.until(UNREADY, 60), Some((30, Action::Term)), "a new one has its own time");
}

#[test]
fn during_an_outage_it_is_left_alone_and_right_after_one_it_has_its_time() {
    let mut bench = Bench::ready();
    for internet in [Some(false), None] {
        bench.step(Event::Internet(internet));
        assert_eq!(bench.until(UNREADY, 600), None, "{internet:?}");
    }
    bench.step(Event::Internet(Some(true)));
    assert_eq!(bench.until(UNREADY, 60), Some((30, Action::Term)));
}

#[test]
fn one_good_answer_begins_the_count_anew() {
    let mut bench = Bench::ready();
    assert_eq!(bench.until(UNREADY, 28), None);
    bench.step(READY);
    assert_eq!(bench.until(UNREADY, 29), None);
}

#[test]
fn after_a_change_it_must_be_ready_within_ten_seconds() {
    // Not ready, for whatever reason, also without the internet: the restart is the way to the new network.
    let mut bench = Bench::ready();
    bench.step(Event::Internet(Some(false)));
    bench.step(Event::Changed);
    assert_eq!(bench.until(UNREADY, 60), Some((10, Action::Term)));
    assert_eq!(bench.keeper.restarting(), Some(Why::Changed));
    // Ready at the end of them: it has survived, and the change is forgotten.
    let mut bench = Bench::ready();
    bench.step(Event::Changed);
    assert_eq!(bench.until(UNREADY, 8), None);
    assert_eq!(bench.until(READY, 5), None);
    assert_eq!(bench.until(UNREADY, 20), None);
}

#[test]
fn a_sleep_counts_for_nothing() {
    let mut bench = Bench::ready();
    assert_eq!(bench.until(UNREADY, 20), None);
    bench.now += 3_600 * SECOND;
    assert_eq!(bench.step(Event::Changed), None, "the hour was slept through");
    assert_eq!(bench.step(READY), None);
}

#[test]
fn three_lost_questions_through_a_ready_one_are_enough() {
    let mut bench = Bench::ready();
    assert_eq!(bench.until(LOST, 1), None);
    assert_eq!(bench.step(Event::Through(Through::Answered)), None);
    assert_eq!(bench.until(LOST, 5), Some((2, Action::Term)));
    assert_eq!(bench.keeper.restarting(), Some(Why::Lost));
    bench.restarted();
    assert_eq!(bench.until(LOST, 5), None, "it is not ready: that is another matter");
    bench.step(READY);
    assert_eq!(bench.until(Event::Through(Through::Withheld), 9), None, "a login proves nothing");
    assert_eq!(bench.until(LOST, 5), Some((2, Action::Term)));
}

#[test]
fn six_restarts_in_an_hour_are_all_and_that_is_told() {
    let mut bench = Bench::ready();
    for _ in 0..6 {
        bench.step(READY);
        assert_eq!(bench.until(LOST, 5), Some((2, Action::Term)));
        bench.restarted();
    }
    bench.step(READY);
    assert_eq!(bench.until(LOST, 60), None);
    let standing = bench.standing();
    assert!(standing.capped && standing.why == Some("restarted_too_often"), "{standing:?}");
    bench.step(Event::Through(Through::Answered));
    assert!(!bench.standing().capped);
    bench.now += 3_600 * SECOND;
    assert_eq!(bench.until(LOST, 5), Some((2, Action::Term)), "the hour is over");
}

#[test]
fn how_it_stands_is_as_old_as_its_state_and_every_restart_counts() {
    let mut bench = Bench::started();
    let first = bench.keeper.standing(None, bench.now, UnixMs(1_000));
    assert_eq!(
        (first.state, first.since, first.restarts),
        (TunnelState::Unready, UnixMs(1_000), 0)
    );
    bench.step(UNREADY);
    let same = bench.keeper.standing(Some(&first), bench.now, UnixMs(2_000));
    assert_eq!(same, first, "an hour later it is the same");
    bench.step(READY);
    let ready = bench.keeper.standing(Some(&same), bench.now, UnixMs(3_000));
    assert_eq!((ready.state, ready.since), (TunnelState::Ready, UnixMs(3_000)));
    // One that ended by itself, and one that we ended.
    assert_eq!(bench.step(code(1)), Some(Action::Start));
    bench.step(Event::Started);
    bench.step(READY);
    assert_eq!(bench.until(LOST, 5), Some((2, Action::Term)));
    bench.restarted();
    let host = bench.keeper.standing(Some(&ready), bench.now, UnixMs(4_000)).to_host();
    assert_eq!((host.restarts, host.restarts_last_hour, host.since), (2, 1, UnixMs(4_000)));
}

#[test]
fn one_that_does_not_end_in_its_grace_is_killed_once() {
    let mut bench = Bench::ready();
    assert_eq!(bench.step(Event::Stop), Some(Action::Term));
    assert_eq!(bench.until(Event::Tick, 60), Some((4, Action::Kill)));
    assert_eq!(bench.until(Event::Stop, 60), None);
    assert_eq!(bench.step(Event::Ended(Exit::Signal { signal: 9 })), None);
    assert!(bench.keeper.is_stopped());
}

#[test]
fn a_stop_overtakes_a_restart() {
    let mut bench = Bench::ready();
    bench.step(Event::Changed);
    assert_eq!(bench.until(UNREADY, 20), Some((10, Action::Term)));
    assert_eq!(bench.step(Event::Stop), None, "it was asked already");
    assert_eq!(bench.step(code(0)), None);
    assert!(bench.keeper.is_stopped());
}

#[test]
fn how_it_ended_says_when_it_is_started_again() {
    for (exit, lived_s, expected) in [
        (Exit::Code { code: 1 }, 1, 0),
        (Exit::Code { code: 0 }, 1, 0),
        (Exit::Signal { signal: 9 }, 1, 0),
        (Exit::Code { code: 11 }, 60, 0),
        (Exit::Code { code: 255 }, 60, 300),
    ] {
        let mut bench = Bench::started();
        bench.now += lived_s * SECOND;
        let begun = bench.now;
        let action = bench
            .step(Event::Ended(exit))
            .or_else(|| bench.until(Event::Tick, 400).map(|(_, action)| action));
        assert_eq!(action, Some(Action::Start));
        assert_eq!((bench.now - begun) / SECOND, expected, "{exit:?}");
    }
    // Crash after crash waits longer, and is no restart of ours.
    let mut bench = Bench::started();
    assert_eq!(bench.step(code(1)), Some(Action::Start));
    bench.step(Event::Started);
    assert_eq!(bench.step(code(1)), None);
    assert_eq!(bench.until(Event::Tick, 5), Some((1, Action::Start)));
    // One that updates itself in a circle is one that crashes.
    bench.step(Event::Started);
    assert_eq!(bench.step(code(11)), None);
    assert_eq!(bench.standing().restarts_last_hour, 0);
}

#[test]
fn what_somebody_must_change_is_told_and_looked_at_again() {
    for unfit in [Unfit::PortTaken, Unfit::TokenMissing, Unfit::TokenExposed, Unfit::NotStarted] {
        let mut bench = Bench { keeper: Keeper::new(Policy::default()), now: 0 };
        bench.step(Event::Tick);
        assert_eq!(bench.step(Event::Unfit(unfit)), None);
        let standing = bench.standing();
        assert_eq!((standing.state, standing.why), (TunnelState::Waiting, Some(unfit.as_str())));
        assert!(standing.remedy.is_some());
        assert_eq!(bench.until(Event::Tick, 60), Some((30, Action::Start)));
    }
}

#[test]
fn a_change_shortens_the_wait_after_crashes() {
    let mut bench = Bench::started();
    for _ in 0..5 {
        bench.step(code(1));
        bench.until(Event::Tick, 60);
        bench.step(Event::Started);
    }
    bench.step(code(1));
    bench.step(Event::Changed);
    assert_eq!(bench.until(Event::Tick, 60), Some((10, Action::Start)));
}

/// It has ended so often that it is parked.
fn parked() -> Bench {
    let mut bench = Bench::started();
    for _ in 0..5 {
        bench.step(code(1));
        bench.until(Event::Tick, 60);
        bench.step(Event::Started);
    }
    assert_eq!(bench.step(code(1)), None);
    bench
}

#[test]
fn the_end_of_an_outage_shortens_the_wait_and_nothing_else_does() {
    let standing = parked().standing();
    assert!(standing.asks_for_internet(), "{standing:?}");
    let mut bench = parked();
    for internet in [Some(false), None] {
        bench.step(Event::Internet(internet));
    }
    assert_eq!(bench.until(Event::Internet(Some(false)), 120), None);
    assert_eq!(bench.until(Event::Internet(Some(true)), 60), Some((10, Action::Start)));
    // With the internet there all the time it has nothing to do with its ends.
    let mut bench = Bench::started();
    bench.step(Event::Internet(Some(true)));
    for _ in 0..5 {
        bench.step(code(1));
        bench.until(Event::Internet(Some(true)), 60);
        bench.step(Event::Started);
    }
    bench.step(code(1));
    assert_eq!(bench.until(Event::Internet(Some(true)), 299), None);
    // Nor has it with what somebody must change.
    let mut bench = Bench::started();
    bench.step(code(255));
    assert!(!bench.standing().asks_for_internet());
    bench.step(Event::Internet(Some(true)));
    assert_eq!(bench.until(Event::Tick, 299), None);
}

#[test]
fn ten_minutes_ready_forgive_also_when_it_is_not_ready_at_its_end() {
    for (ready_s, first) in [(599, None), (600, Some(Action::Start))] {
        let mut bench = Bench::started();
        assert_eq!(bench.step(code(1)), Some(Action::Start));
        bench.step(Event::Started);
        bench.step(READY);
        bench.now += ready_s * SECOND;
        bench.step(UNREADY);
        assert_eq!(bench.step(code(1)), first, "{ready_s}");
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(READY),
        Just(UNREADY),
        Just(LOST),
        Just(Event::Through(Through::Answered)),
        Just(Event::Through(Through::Withheld)),
        any::<Option<bool>>().prop_map(Event::Internet),
        Just(Event::Changed),
        Just(Event::Tick),
        prop_oneof![Just(0), Just(1), Just(11), Just(255)].prop_map(code),
    ]
}

proptest! {
    // Seeded: the same cases in every run.
    #![proptest_config(ProptestConfig {
        cases: 400,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x5b1d),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn there_is_never_more_than_one_nor_more_restarts_than_allowed(
        events in prop::collection::vec((any_event(), 0_u64..40, any::<bool>()), 1..300),
        stop_at in 0_usize..300,
    ) {
        let policy = Policy::default();
        let mut keeper = Keeper::new(policy);
        let (mut now, mut alive, mut asked) = (0, false, false);
        let mut restarts: Vec<ContinuousMs> = Vec::new();
        for (at, (event, wait_s, fit)) in events.into_iter().enumerate() {
            now += wait_s * SECOND;
            let event = if at >= stop_at { Event::Stop } else { event };
            // Only what lives can end.
            let event = if matches!(event, Event::Ended(_)) && !alive { Event::Tick } else { event };
            if let Event::Ended(_) = event {
                (alive, asked) = (false, false);
            }
            match keeper.step(event, now, 0.5) {
                Some(Action::Start) => {
                    prop_assert!(!alive && at < stop_at, "started twice, or after the stop");
                    alive = fit;
                    let answer = if fit { Event::Started } else { Event::Unfit(Unfit::PortTaken) };
                    prop_assert_eq!(keeper.step(answer, now, 0.5), None);
                }
                Some(Action::Term) => {
                    prop_assert!(alive && !asked);
                    asked = true;
                    if at < stop_at {
                        restarts.push(now);
                    }
                }
                Some(Action::Kill) => prop_assert!(alive && asked),
                None => {}
            }
            prop_assert_eq!(keeper.is_running(), alive && !asked);
        }
        for window in restarts.windows(policy.per_hour + 1) {
            prop_assert!(window[policy.per_hour] - window[0] >= ms(HOUR));
        }
    }
}
