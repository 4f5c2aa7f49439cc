use proptest::prelude::*;

use super::*;

const STILL: View = View { suspected: false, stuck: false, quiet: true, still: true };
const OPEN: View = View { suspected: false, stuck: false, quiet: true, still: false };
const BUSY: View = View { suspected: false, stuck: false, quiet: false, still: false };

/// What plays Messages: how it answers, and what ends or cures it.
#[derive(Debug, Clone, Copy)]
struct App {
    running: bool,
    /// The step that makes it well; none when nothing does.
    sick: bool,
    cure: Option<Job>,
    ends_by: Job,
}

const WELL: App = App { running: true, sick: false, cure: None, ends_by: Job::Quit };

impl App {
    fn hung(ends_by: Job, cure: Option<Job>) -> Self {
        Self { running: true, sick: true, cure, ends_by }
    }

    fn answer(self) -> Answer {
        match (self.running, self.sick) {
            (false, _) => Answer::NotRunning,
            (true, true) => Answer::Hung,
            (true, false) => Answer::Fine,
        }
    }

    fn take(&mut self, job: Job) {
        let strength = |job: Job| match job {
            Job::Quit => 1,
            Job::Term => 2,
            Job::Kill => 3,
            Job::Probe | Job::Look | Job::Agents | Job::Open | Job::Windows => 0,
        };
        if strength(job) >= strength(self.ends_by) && strength(job) > 0 {
            self.running = false;
        }
        if job == Job::Open {
            self.running = true;
        }
        let stronger = |cure| strength(cure) > 0 && strength(job) > strength(cure);
        if self.cure.is_some_and(|cure| cure == job || stronger(cure)) {
            self.sick = false;
        }
    }
}

struct World {
    keeper: Keeper,
    app: App,
    now: Clocks,
    /// The bridges do as they are told, unless a test says otherwise.
    view: Option<View>,
    suspected: bool,
    paused: bool,
    job: Option<(Job, u64)>,
    steps: Vec<(u64, Job)>,
    news: Vec<News>,
}

impl World {
    fn new(app: App) -> Self {
        Self {
            keeper: Keeper::new(Policy::default()),
            app,
            now: Clocks { continuous: 1_000_000, awake: 500_000 },
            view: None,
            suspected: false,
            paused: false,
            job: None,
            steps: Vec::new(),
            news: Vec::new(),
        }
    }

    fn view(&self) -> View {
        let view = self.view.unwrap_or(if self.paused { STILL } else { OPEN });
        View { suspected: self.suspected, ..view }
    }

    fn event(&mut self, event: Event) {
        let view = self.view();
        for effect in self.keeper.step(event, view, self.now) {
            match effect {
                Effect::Run(job) => {
                    assert_eq!(self.job, None, "one at a time");
                    if job.is_step() {
                        assert!(view.still, "{job:?} while a bridge may send");
                        self.steps.push((self.now.continuous, job));
                    } else if job == Job::Probe {
                        assert!(view.quiet || view.stuck, "asked while a send runs");
                    }
                    // A question that is not answered takes as long as its script waits.
                    let silent = self.app.answer() == Answer::Hung;
                    let takes = match job {
                        Job::Probe | Job::Quit | Job::Windows if silent => 5_000,
                        Job::Probe
                        | Job::Quit
                        | Job::Look
                        | Job::Term
                        | Job::Kill
                        | Job::Agents
                        | Job::Open
                        | Job::Windows => 100,
                    };
                    self.job = Some((job, self.now.awake + takes));
                }
                Effect::Pause(pause) => {
                    assert_ne!(self.paused, pause, "said twice");
                    self.paused = pause;
                }
                Effect::Tell(news) => self.news.push(news),
            }
        }
    }

    /// A quarter of a second of being awake.
    fn tick(&mut self) {
        self.now.awake += 250;
        self.now.continuous += 250;
        if let Some((job, _)) = self.job.take_if(|(_, ends)| *ends <= self.now.awake) {
            self.app.take(job);
            self.event(match job {
                Job::Probe => Event::Answered(self.app.answer()),
                Job::Look => Event::Looked(Some(self.app.running)),
                Job::Quit | Job::Term | Job::Kill | Job::Agents | Job::Open | Job::Windows => {
                    Event::Stepped
                }
            });
        }
        self.event(Event::Tick);
    }

    fn live(&mut self, time: Duration) {
        for _ in 0..ms(time) / 250 {
            self.tick();
        }
    }

    fn sleep(&mut self, time: Duration) {
        self.now.continuous += ms(time);
    }

    fn taken(&self) -> Vec<Job> {
        self.steps.iter().map(|(_, job)| *job).collect()
    }

    fn recovered_after(&self) -> Vec<u64> {
        let after = |news: &News| match news {
            News::Recovered { after_ms } => Some(*after_ms),
            News::Began(_) | News::CameBack | News::GaveUp(_) => None,
        };
        self.news.iter().filter_map(after).collect()
    }
}

#[test]
fn one_that_answers_is_asked_now_and_then_and_left_alone() {
    let mut world = World::new(WELL);
    assert_eq!(world.keeper.standing(), Standing::Unknown);
    world.live(Duration::from_hours(2));
    assert_eq!((world.taken(), world.keeper.standing()), (vec![], Standing::Ok));
    assert_eq!(world.news, []);
}

#[test]
fn each_illness_is_met_with_the_least_that_helps() {
    use Job::{Agents, Kill, Open, Quit, Term, Windows};
    let round = [Quit, Term, Kill, Open];
    let cases: [(App, Vec<Job>); 5] = [
        (App { running: false, ..WELL }, vec![Open, Windows]),
        (App::hung(Quit, Some(Quit)), vec![Quit, Open, Windows]),
        (App::hung(Term, Some(Term)), vec![Quit, Term, Open, Windows]),
        (App::hung(Kill, Some(Kill)), vec![Quit, Term, Kill, Open, Windows]),
        (
            App::hung(Kill, Some(Agents)),
            [&round[..], &[Quit, Term, Kill, Agents, Open, Windows]].concat(),
        ),
    ];
    for (ill, wanted) in cases {
        let mut world = World::new(WELL);
        world.live(Duration::from_mins(1));
        world.app = ill;
        world.live(Duration::from_mins(3));
        assert_eq!(world.taken(), wanted, "{ill:?}");
        assert_eq!(world.keeper.standing(), Standing::Ok, "{ill:?}");
        assert!(!world.paused);
        let [after] = world.recovered_after()[..] else { panic!("{:?}", world.news) };
        // All but the last rung within the minute that is promised, from the first question in vain on.
        let rounds = u64::from(wanted.contains(&Agents)) + 1;
        assert!(after < 40_000 * rounds, "{ill:?}: {after} ms");
    }
}

#[test]
fn a_send_that_takes_its_usual_time_is_left_alone_and_one_that_does_not_is_asked_about() {
    const STUCK: View = View { stuck: true, ..BUSY };
    let mut world = World::new(WELL);
    world.live(Duration::from_mins(1));
    // Messages is slow with it, and answers: nothing is done, however long it takes.
    for view in [BUSY, STUCK] {
        world.view = Some(view);
        world.live(Duration::from_mins(1));
        assert_eq!((world.taken(), world.keeper.standing()), (vec![], Standing::Ok), "{view:?}");
    }
    // It does not answer either: the bridges are told at once, and end it themselves.
    world.app = App::hung(Job::Kill, Some(Job::Kill));
    let hung = world.now.continuous;
    while !world.paused {
        world.tick();
        assert!(world.now.continuous < hung + 11_000, "a question is due every 5 s and lasts 5 s");
    }
    assert_eq!(world.taken(), [], "nothing is done to Messages under a send");
    world.view = None;
    world.live(Duration::from_mins(1));
    assert_eq!(world.taken(), [Job::Quit, Job::Term, Job::Kill, Job::Open, Job::Windows]);
    assert_eq!(world.keeper.standing(), Standing::Ok);
}

#[test]
fn what_nothing_helps_against_is_told_and_not_touched_again_until_the_caps_allow_it() {
    let mut world = World::new(App::hung(Job::Kill, None));
    world.live(Duration::from_mins(5));
    assert_eq!(world.keeper.standing(), Standing::Degraded(Stuck::InVain));
    assert!(!world.paused, "bridges find for themselves that nothing goes");
    let opened = |world: &World| world.taken().iter().filter(|job| **job == Job::Open).count();
    assert_eq!(opened(&world), 2);
    world.live(Duration::from_mins(50));
    assert_eq!(opened(&world), 3, "three an hour");
    assert_eq!(world.keeper.standing(), Standing::Degraded(Stuck::InVain));
    world.live(Duration::from_hours(23));
    assert_eq!(opened(&world), 10, "ten a day");
    // Somebody has mended it.
    world.app = WELL;
    world.live(Duration::from_mins(2));
    assert_eq!(world.keeper.standing(), Standing::Ok);
    assert_eq!(world.news.last(), Some(&News::CameBack));
}

#[test]
fn restarts_of_an_earlier_life_count() {
    let mut world = World::new(App::hung(Job::Kill, None));
    // The third of them is of the time before the machine was started.
    let ages = [5_000, 1_000, 600].map(Duration::from_secs);
    world.keeper.remember(ages.into_iter(), world.now);
    world.live(Duration::from_mins(10));
    assert_eq!(world.keeper.standing(), Standing::Degraded(Stuck::TooOften));
    assert_eq!(world.taken(), []);
    world.live(Duration::from_hours(1));
    assert!(world.taken().contains(&Job::Open), "they are forgotten in time");
}

#[test]
fn one_that_cannot_be_ended_is_not_opened_twice() {
    let mut world = World::new(App::hung(Job::Kill, None));
    world.live(Duration::from_secs(1));
    for _ in 0..400 {
        world.tick();
        // KILL does not reach it.
        world.app.running = true;
    }
    assert_eq!(world.taken(), [Job::Quit, Job::Term, Job::Kill]);
    assert_eq!(world.keeper.standing(), Standing::Degraded(Stuck::NotEnded));
}

#[test]
fn a_send_that_runs_is_waited_for_and_one_that_ends_may_have_been_all_that_was_wrong() {
    let mut world = World::new(App::hung(Job::Quit, Some(Job::Quit)));
    world.view = Some(OPEN);
    world.live(Duration::from_secs(12));
    assert!(world.paused, "{:?}", world.news);
    world.view = Some(BUSY);
    world.live(Duration::from_secs(40));
    assert_eq!(world.taken(), []);
    world.app = WELL;
    world.view = None;
    world.live(Duration::from_secs(2));
    assert_eq!((world.taken(), world.paused), (vec![], false));
    assert_eq!(world.keeper.standing(), Standing::Ok);
    assert_eq!(world.news.last(), Some(&News::CameBack));

    // And one whose bridge never holds still is not risked.
    world.app = App::hung(Job::Quit, Some(Job::Quit));
    world.live(Duration::from_secs(20));
    world.view = Some(OPEN);
    world.live(Duration::from_mins(2));
    assert_eq!(world.taken(), []);
    assert_eq!(world.keeper.standing(), Standing::Degraded(Stuck::NotStill));
}

#[test]
fn nothing_is_asked_while_a_send_runs() {
    let mut world = World::new(App::hung(Job::Quit, None));
    world.view = Some(BUSY);
    world.live(Duration::from_hours(1));
    assert_eq!((world.job, world.taken()), (None, vec![]));
}

#[test]
fn what_a_bridge_has_met_saves_a_question() {
    let mut told = World::new(WELL);
    told.live(Duration::from_secs(22));
    let mut untold = World::new(WELL);
    untold.live(Duration::from_secs(22));
    for (world, suspected) in [(&mut told, true), (&mut untold, false)] {
        world.app = App::hung(Job::Quit, Some(Job::Quit));
        world.suspected = suspected;
        let mut waited = 0;
        while world.steps.is_empty() {
            world.tick();
            waited += 250;
            assert!(waited < 60_000);
        }
        // One question of five seconds, instead of a wait and two of them.
        assert_eq!(waited < 7_000, suspected, "{waited}");
    }
    // What nobody but a bridge finds is no reason.
    let mut alone = World::new(WELL);
    alone.suspected = true;
    alone.live(Duration::from_hours(1));
    assert_eq!((alone.taken(), alone.keeper.standing()), (vec![], Standing::Ok));
}

#[test]
fn a_question_on_the_screen_and_a_denied_permission_are_told_and_nothing_is_restarted() {
    for (answer, stuck) in [
        (Answer::Withheld, Stuck::Withheld),
        (Answer::Denied, Stuck::Denied),
        (Answer::Unasked, Stuck::Unasked),
    ] {
        let mut keeper = Keeper::new(Policy::default());
        let mut now = Clocks { continuous: 1_000_000, awake: 500_000 };
        let mut told = Vec::new();
        let mut event = Event::Tick;
        for _ in 0..20_000 {
            let mut next = Event::Tick;
            for effect in keeper.step(event, STILL, now) {
                match effect {
                    Effect::Run(Job::Probe) => next = Event::Answered(answer),
                    Effect::Run(job) => panic!("{job:?}"),
                    Effect::Pause(_) => panic!("nobody need wait"),
                    Effect::Tell(news) => told.push(news),
                }
            }
            event = next;
            now.awake += 250;
            now.continuous += 250;
        }
        assert_eq!(told, [News::GaveUp(stuck)], "once, not again and again");
        assert_eq!(keeper.standing(), Standing::Degraded(stuck));
    }
}

#[test]
fn after_a_sleep_nothing_is_judged_or_ended_for_a_while() {
    let mut world = World::new(App::hung(Job::Quit, Some(Job::Quit)));
    world.live(Duration::from_secs(5));
    // One question was in vain; the machine sleeps, and all is well when it has woken.
    world.sleep(Duration::from_hours(8));
    world.live(Duration::from_secs(29));
    assert_eq!(world.taken(), []);
    assert!(!world.paused);
    world.app = WELL;
    world.live(Duration::from_mins(2));
    assert_eq!((world.taken(), world.keeper.standing()), (vec![], Standing::Ok));

    // It falls asleep while the bridges are being stilled.
    world.app = App::hung(Job::Quit, Some(Job::Quit));
    world.view = Some(OPEN);
    while !world.paused {
        world.tick();
    }
    world.sleep(Duration::from_mins(10));
    world.view = None;
    world.live(Duration::from_secs(29));
    assert_eq!(world.taken(), []);
    world.live(Duration::from_mins(1));
    assert_eq!(world.taken(), [Job::Quit, Job::Open, Job::Windows]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whatever Messages, the bridges and the machine do: the caps hold, nothing is done to Messages while a bridge
    /// may send or just after a sleep (`World` asserts the first), and in the end it is well or told.
    #[test]
    fn caps_hold_and_it_ends_well_or_told(
        doings in prop::collection::vec((0_u8..10, 0_u32..400, any::<bool>()), 1..60),
        end in 0_u8..4,
    ) {
        let mut world = World::new(WELL);
        // What was before its first look it cannot know.
        world.tick();
        let mut woke = Vec::new();
        for (doing, ticks, suspected) in doings {
            match doing {
                0 => world.app = WELL,
                1 => world.app = App::hung(Job::Quit, Some(Job::Quit)),
                2 => world.app = App::hung(Job::Term, Some(Job::Term)),
                3 => world.app = App::hung(Job::Kill, Some(Job::Agents)),
                4 => world.app = App::hung(Job::Kill, None),
                5 => world.app.running = false,
                6 => world.view = Some(BUSY),
                7 => world.view = Some(OPEN),
                8 => {
                    world.sleep(Duration::from_secs(u64::from(ticks) + 3));
                    woke.push(world.now.continuous);
                }
                _ => world.view = None,
            }
            world.suspected = suspected;
            for _ in 0..ticks {
                world.tick();
            }
        }
        world.view = None;
        world.app = match end {
            0 => WELL,
            1 => App::hung(Job::Term, Some(Job::Term)),
            2 => App::hung(Job::Kill, None),
            _ => App { running: false, ..WELL },
        };
        world.live(Duration::from_hours(3));
        let standing = world.keeper.standing();
        let told = matches!(standing, Standing::Degraded(_) | Standing::Recovering);
        prop_assert_eq!((standing == Standing::Ok, told), (end != 2, end == 2));
        world.app = WELL;
        world.live(Duration::from_mins(5));
        prop_assert_eq!(world.keeper.standing(), Standing::Ok);
        prop_assert!(!world.paused);

        let policy = Policy::default();
        let mut began = Vec::new();
        let mut before = None;
        for (at, job) in &world.steps {
            // A restart begins with the question to quit, or with opening what has ended by itself.
            let ending = matches!(before, Some(Job::Quit | Job::Term | Job::Kill | Job::Agents));
            if *job == Job::Quit || (*job == Job::Open && !ending) {
                began.push(*at);
            }
            before = Some(*job);
        }
        for (window, cap) in [(HOUR, policy.per_hour), (DAY, policy.per_day)] {
            for at in &began {
                let inside = began.iter().filter(|other| (*at..at + ms(window)).contains(*other));
                prop_assert!(inside.count() <= usize::try_from(cap).unwrap(), "{began:?}");
            }
        }
        for (at, job) in &world.steps {
            let ends = matches!(job, Job::Quit | Job::Term | Job::Kill | Job::Agents);
            let just = woke.iter().any(|woke| *at >= *woke && *at < woke + ms(policy.wake_quiet));
            prop_assert!(!(ends && just), "{job:?} just after a sleep");
        }
    }
}
