use proptest::prelude::*;
use protocol::{
    Channel, Class, MessageId,
    link::{EventFrame, PhoneState, WelcomePhone},
    pipe::{Attempt, Event, Send},
};

use super::*;

const START: ContinuousMs = 1_000_000;
const WALL: UnixMs = UnixMs(1_795_348_800_000);

fn phone(number: u8) -> PhoneId {
    PhoneId::new(i64::from(number), [number; 10])
}

fn message() -> MessageId {
    MessageId::new(1, [1; 10])
}

fn report(phone: PhoneId, journal: &str) -> PhoneReport {
    PhoneReport {
        phone,
        journal: Some(journal.to_owned()),
        last_seq: 0,
        acked_seq: 0,
        epoch: None,
        state: PhoneState::Ready,
        reasons: Vec::new(),
    }
}

fn event_line(seq: u64) -> EventLine {
    let attempt = Attempt { message: message(), attempt: 1 };
    EventLine { seq, at: WALL, epoch: Some(1), event: Event::Accepted(attempt) }
}

fn local_event(phone: PhoneId, journal: &str, seq: u64) -> Input {
    Input::Local(LinkInput::Event { phone, journal: journal.to_owned(), line: event_line(seq) })
}

fn send_command() -> Command {
    Command::Send(Send {
        message: message(),
        attempt: 1,
        epoch: 1,
        to: "+12025550143".parse().unwrap(),
        text: "hello".to_owned(),
        attachments: Vec::new(),
        route: vec![Channel::Imessage],
        class: Class::Otp,
        start_before: WALL,
        conversation: None,
    })
}

/// A session with its clock.
struct Bench {
    session: Session,
    at: ContinuousMs,
}

impl Bench {
    fn new(reports: Vec<PhoneReport>) -> Self {
        let mut phones = Phones::default();
        for report in reports {
            phones.learn(LinkInput::Phone { report, started: true });
        }
        // The jitter of zero puts the first ping right behind the welcome.
        let session = Session::new("boot".to_owned(), "1.0.0".to_owned(), phones, 0);
        Self { session, at: START }
    }

    /// Opened and welcome, with journal `j` of phone 1 acknowledged up to `acked_seq`.
    fn live(acked_seq: u64, epoch: Option<u64>) -> Self {
        let mut bench = Self::new(vec![report(phone(1), "j")]);
        bench.step(Input::Opened);
        bench.step(Input::Frame(welcome(vec![WelcomePhone {
            phone: phone(1),
            epoch,
            ttl_ms: LEASE_TTL_MS,
            acked_seq,
        }])));
        bench
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        let wall = WALL.plus_ms(i64::try_from(self.at - START).unwrap());
        let out = self.session.step(input, Now { continuous: self.at, wall });
        // Everything leaves at once unless a test holds it back.
        for output in &out {
            if matches!(output, Output::Send(_)) {
                self.session.outbox -= 1;
            }
        }
        out
    }

    fn after(&mut self, ms: u64, input: Input) -> Vec<Output> {
        self.at += ms;
        self.step(input)
    }

    fn ack(&mut self, journal: &str, seq: u64) -> Vec<Output> {
        let journal = journal.to_owned();
        self.step(Input::Frame(RouterFrame::Ack { phone: phone(1), journal, seq }))
    }

    /// The same, while the wire shows that it is whole and nothing is answered.
    fn alive(&mut self, ms: u64) -> Vec<Output> {
        let until = self.at + ms;
        let mut out = Vec::new();
        while self.at < until {
            out.extend(self.pass((until - self.at).min(1_000)));
            if self.at < until {
                out.extend(self.step(Input::Frame(RouterFrame::Ping { at: WALL })));
            }
        }
        out
    }

    /// Ticks at every deadline until `ms` have passed, answering nothing.
    fn pass(&mut self, ms: u64) -> Vec<Output> {
        let until = self.at + ms;
        let mut out = Vec::new();
        while let Some(deadline) = self.session.deadline().filter(|at| *at <= until) {
            self.at = deadline.max(self.at);
            out.extend(self.step(Input::Tick));
        }
        self.at = until;
        out
    }
}

fn welcome(phones: Vec<WelcomePhone>) -> RouterFrame {
    RouterFrame::Welcome(Welcome { session: "s1".to_owned(), clock: WALL, phones, canaries: true })
}

fn sent(out: &[Output]) -> Vec<&HostFrame> {
    out.iter()
        .filter_map(|output| match output {
            Output::Send(frame) => Some(frame),
            Output::Deliver(_) | Output::End(_) => None,
        })
        .collect()
}

fn delivered(out: &[Output]) -> Vec<&LinkOutput> {
    out.iter()
        .filter_map(|output| match output {
            Output::Deliver(delivery) => Some(delivery),
            Output::Send(_) | Output::End(_) => None,
        })
        .collect()
}

fn ended(out: &[Output]) -> Option<&Ended> {
    out.iter().find_map(|output| match output {
        Output::End(why) => Some(why),
        Output::Send(_) | Output::Deliver(_) => None,
    })
}

fn seqs(out: &[Output]) -> Vec<u64> {
    sent(out)
        .into_iter()
        .filter_map(|frame| match frame {
            HostFrame::Event(EventFrame { seq, .. }) => Some(*seq),
            HostFrame::Hello(_)
            | HostFrame::Renew { .. }
            | HostFrame::Phone(_)
            | HostFrame::Ping { .. }
            | HostFrame::Pong { .. }
            | HostFrame::Bye { .. }
            | HostFrame::Canary(_)
            | HostFrame::Released { .. } => None,
        })
        .collect()
}

fn acked(seq: u64, replay: bool) -> LinkOutput {
    LinkOutput::Ack { phone: phone(1), journal: "j".to_owned(), seq, replay }
}

fn lease(epoch: u64, issued_ms: ContinuousMs) -> LinkOutput {
    LinkOutput::Lease { phone: phone(1), epoch, ttl_ms: LEASE_TTL_MS, issued_ms }
}

fn lease_frame(epoch: u64, renewal: u64) -> Input {
    Input::Frame(RouterFrame::Lease { phone: phone(1), epoch, ttl_ms: LEASE_TTL_MS, renewal })
}

#[test]
fn hello_comes_first_and_tells_every_phone() {
    let mut bench = Bench::new(vec![report(phone(1), "j"), report(phone(2), "k")]);
    let out = bench.step(Input::Opened);
    let frames = sent(&out);
    let [HostFrame::Hello(hello)] = frames.as_slice() else { panic!("{out:?}") };
    assert_eq!(hello.protocol, PROTOCOL);
    assert_eq!(hello.clock, WALL);
    assert_eq!(hello.phones.len(), 2);
}

#[test]
fn no_welcome_within_ten_seconds_ends_the_session() {
    let mut bench = Bench::new(Vec::new());
    bench.step(Input::Opened);
    assert_eq!(bench.pass(HELLO_WITHIN_MS - 1), []);
    let out = bench.pass(1);
    assert_eq!(ended(&out), Some(&Ended::NoWelcome));
    assert_eq!(bench.session.lived_ms(bench.at), 0);
    assert!(!bench.session.was_live());
}

#[test]
fn welcome_brings_acks_and_leases_counted_from_hello() {
    let mut bench = Bench::new(vec![report(phone(1), "j")]);
    bench.step(Input::Opened);
    let frame = welcome(vec![WelcomePhone {
        phone: phone(1),
        epoch: Some(7),
        ttl_ms: LEASE_TTL_MS,
        acked_seq: 4,
    }]);
    let out = bench.after(900, Input::Frame(frame));
    let connected = LinkOutput::Connected { session: "s1".to_owned(), canaries: true };
    assert_eq!(delivered(&out), [&connected, &acked(4, true), &lease(7, START)]);
}

#[test]
fn a_canary_is_asked_about_only_where_that_is_answered() {
    let ask = protocol::link::CanaryAsk {
        message: protocol::canary::id(WALL, [1; 4]),
        from: phone(1),
        to: "+12025550191".parse().unwrap(),
    };
    let local = || Input::Local(LinkInput::Canary(ask.clone()));
    for canaries in [true, false] {
        let mut bench = Bench::new(Vec::new());
        bench.step(Input::Opened);
        assert_eq!(sent(&bench.step(local())), Vec::<&HostFrame>::new(), "before the welcome");
        let (session, clock) = ("s1".to_owned(), WALL);
        let frame = Welcome { session, clock, phones: Vec::new(), canaries };
        bench.step(Input::Frame(RouterFrame::Welcome(frame)));
        let out = bench.step(local());
        let asked = HostFrame::Canary(ask.clone());
        let wanted = if canaries { vec![&asked] } else { Vec::new() };
        assert_eq!(sent(&out), wanted);
    }
    let standing = protocol::link::CanaryStanding::NotSeen;
    let told = protocol::link::CanaryTold { message: ask.message.clone(), standing };
    let mut bench = Bench::live(4, None);
    let out = bench.step(Input::Frame(RouterFrame::Canary(told.clone())));
    assert_eq!(delivered(&out), [&LinkOutput::Canary(told)]);
}

#[test]
fn a_second_welcome_changes_nothing() {
    let mut bench = Bench::live(4, None);
    let out = bench.step(Input::Frame(welcome(Vec::new())));
    assert_eq!(delivered(&out), Vec::<&LinkOutput>::new());
    assert!(bench.session.is_live());
    assert_eq!(bench.session.take_counts().stray, 1);
}

#[test]
fn renewals_are_numbered_and_leases_count_from_their_sending() {
    let mut bench = Bench::live(0, Some(7));
    let out = bench.alive(RENEW_EVERY_MS);
    let asked = bench.at;
    assert!(
        sent(&out).iter().any(|frame| matches!(
            frame,
            HostFrame::Renew { renewal: 1, phones, .. } if phones[0].epoch == Some(7)
        )),
        "{out:?}"
    );
    let out = bench.after(4_000, lease_frame(7, 1));
    assert_eq!(delivered(&out), [&lease(7, asked)]);
    let out = bench.alive(RENEW_EVERY_MS - 4_000);
    assert!(sent(&out).iter().any(|frame| matches!(frame, HostFrame::Renew { renewal: 2, .. })));
}

#[test]
fn leases_that_cannot_be_trusted_are_not_passed_on() {
    let cases: [(&str, u64, Input); 4] = [
        ("a renewal that was never asked", 0, lease_frame(7, 9)),
        ("an older epoch", 0, lease_frame(6, 0)),
        ("over when it comes", LEASE_TTL_MS, lease_frame(8, 0)),
        (
            "another host's phone",
            0,
            Input::Frame(RouterFrame::Lease {
                phone: phone(9),
                epoch: 7,
                ttl_ms: LEASE_TTL_MS,
                renewal: 0,
            }),
        ),
    ];
    for (why, after, input) in cases {
        let mut bench = Bench::live(0, Some(7));
        // Heard of the router in between, so that the silence does not end the session first.
        bench.after(after / 2, Input::Frame(RouterFrame::Pong { at: WALL }));
        let out = bench.after(after - after / 2, input);
        assert_eq!(delivered(&out), Vec::<&LinkOutput>::new(), "{why}");
        assert_eq!(bench.session.take_counts().stray, 1, "{why}");
    }
}

#[test]
fn the_newest_epoch_survives_the_session() {
    let bench = Bench::live(0, Some(7));
    let phones = bench.session.into_phones();
    assert_eq!(phones.all()[0].epoch, Some(7));
}

#[test]
fn events_are_forwarded_in_order_and_nothing_else_is() {
    let mut bench = Bench::live(4, None);
    assert_eq!(seqs(&bench.step(local_event(phone(1), "j", 5))), [5]);
    for (why, input) in [
        ("a gap", local_event(phone(1), "j", 7)),
        ("forwarded before", local_event(phone(1), "j", 5)),
        ("acknowledged long ago", local_event(phone(1), "j", 2)),
        ("another journal", local_event(phone(1), "x", 6)),
        ("another phone", local_event(phone(2), "j", 6)),
    ] {
        assert_eq!(seqs(&bench.step(input)), Vec::<u64>::new(), "{why}");
    }
    assert_eq!(seqs(&bench.step(local_event(phone(1), "j", 6))), [6]);
    let counts = bench.session.take_counts();
    assert_eq!((counts.forwarded, counts.dropped), (2, 5));
}

#[test]
fn nothing_is_forwarded_before_welcome() {
    let mut bench = Bench::new(vec![report(phone(1), "j")]);
    bench.step(Input::Opened);
    assert_eq!(sent(&bench.step(local_event(phone(1), "j", 1))), Vec::<&HostFrame>::new());
}

#[test]
fn a_new_journal_is_asked_about_before_its_events_go() {
    let mut bench = Bench::live(4, None);
    let told = LinkInput::Phone { report: report(phone(1), "k"), started: true };
    let out = bench.step(Input::Local(told));
    assert!(matches!(sent(&out)[..], [HostFrame::Phone(_)]), "{out:?}");
    assert_eq!(seqs(&bench.step(local_event(phone(1), "k", 1))), Vec::<u64>::new());
    // An answer about the old journal is not the answer.
    assert_eq!(delivered(&bench.ack("j", 4)), Vec::<&LinkOutput>::new());
    let out = bench.ack("k", 0);
    let answer = LinkOutput::Ack { phone: phone(1), journal: "k".to_owned(), seq: 0, replay: true };
    assert_eq!(delivered(&out), [&answer]);
    assert_eq!(seqs(&bench.step(local_event(phone(1), "k", 1))), [1]);
}

#[test]
fn a_change_of_state_does_not_stop_the_events() {
    let mut bench = Bench::live(4, None);
    let mut changed = report(phone(1), "j");
    changed.state = PhoneState::NotReady;
    let out = bench.step(Input::Local(LinkInput::Phone { report: changed, started: false }));
    assert!(matches!(sent(&out)[..], [HostFrame::Phone(_)]), "{out:?}");
    assert_eq!(seqs(&bench.step(local_event(phone(1), "j", 5))), [5]);
    assert_eq!(delivered(&bench.ack("j", 4)), [&acked(4, false)]);
}

#[test]
fn a_bridge_that_starts_between_hello_and_welcome_is_told_to_the_router() {
    let mut bench = Bench::new(vec![report(phone(1), "j")]);
    bench.step(Input::Opened);
    let told = LinkInput::Phone { report: report(phone(1), "k"), started: true };
    assert_eq!(bench.step(Input::Local(told)), []);
    let out = bench.step(Input::Frame(welcome(vec![WelcomePhone {
        phone: phone(1),
        epoch: None,
        ttl_ms: 0,
        acked_seq: 4,
    }])));
    assert!(!delivered(&out).iter().any(|output| matches!(output, LinkOutput::Ack { .. })));
    assert!(sent(&out).iter().any(|frame| matches!(
        frame,
        HostFrame::Phone(report) if report.journal.as_deref() == Some("k")
    )));
}

#[test]
fn an_unanswered_question_is_asked_again() {
    let mut bench = Bench::live(4, None);
    let told = LinkInput::Phone { report: report(phone(1), "k"), started: true };
    bench.step(Input::Local(told));
    let out = bench.alive(ASK_AGAIN_MS);
    let asked = sent(&out).into_iter().filter(|frame| matches!(frame, HostFrame::Phone(_))).count();
    assert_eq!(asked, 1);
}

#[test]
fn an_answer_that_was_too_low_is_corrected_with_a_replay() {
    let mut bench = Bench::live(4, None);
    bench.step(Input::Local(LinkInput::Phone { report: report(phone(1), "j"), started: true }));
    // The ack of an older event was still on its way when the bridge started anew.
    assert_eq!(delivered(&bench.ack("j", 5)), [&acked(5, true)]);
    assert_eq!(delivered(&bench.ack("j", 8)), [&acked(8, true)]);
    assert_eq!(seqs(&bench.step(local_event(phone(1), "j", 9))), [9]);
}

#[test]
fn events_that_are_not_acknowledged_are_offered_again() {
    let mut bench = Bench::live(4, None);
    bench.step(local_event(phone(1), "j", 5));
    bench.step(local_event(phone(1), "j", 6));
    bench.ack("j", 5);
    let out = bench.alive(REWIND_AFTER_MS);
    assert!(delivered(&out).contains(&&acked(5, true)), "{out:?}");
    assert_eq!(bench.session.take_counts().rewinds, 1);
    assert_eq!(seqs(&bench.step(local_event(phone(1), "j", 6))), [6]);
}

#[test]
fn a_quiet_journal_is_not_rewound() {
    let mut bench = Bench::live(4, None);
    bench.alive(50_000);
    bench.step(local_event(phone(1), "j", 5));
    bench.alive(REWIND_AFTER_MS - 1);
    assert_eq!(bench.session.take_counts().rewinds, 0);
}

#[test]
fn a_router_whose_wire_lives_and_that_answers_nothing_is_left_after_three_pings() {
    let mut bench = Bench::live(0, None);
    let out = bench.alive(SILENCE_MS - 1);
    let pings = sent(&out).into_iter().filter(|f| matches!(f, HostFrame::Ping { .. })).count();
    // At 20, 40 and, one millisecond from now, 60 s; the first went out with the welcome.
    assert_eq!(pings, 2);
    assert_eq!(ended(&out), None);
    let out = bench.pass(1);
    assert_eq!(ended(&out), Some(&Ended::Silent(SILENCE_MS)));
    assert_eq!(bench.session.lived_ms(bench.at), SILENCE_MS);
}

#[test]
fn a_wire_on_which_nothing_comes_is_asked_and_left_when_it_does_not_answer() {
    let mut bench = Bench::live(0, Some(7));
    let pings = |out: &[Output]| {
        sent(out).into_iter().filter(|f| matches!(f, HostFrame::Ping { .. })).count()
    };
    assert_eq!(pings(&bench.pass(ASK_AFTER_MS - 1)), 0);
    assert_eq!(pings(&bench.pass(1)), 1, "asked once");
    let out = bench.pass(HOST_SILENCE_MS - ASK_AFTER_MS - 1);
    assert_eq!((pings(&out), ended(&out)), (0, None));
    assert_eq!(ended(&bench.pass(1)), Some(&Ended::Silent(HOST_SILENCE_MS)));
}

#[test]
fn the_time_from_a_ping_to_its_pong_is_known() {
    let mut bench = Bench::live(0, Some(7));
    let out = bench.pass(ASK_AFTER_MS);
    let ping = sent(&out)
        .into_iter()
        .find_map(|frame| if let HostFrame::Ping { at } = frame { Some(*at) } else { None });
    // One of another ping says nothing of this one.
    bench.step(Input::Frame(RouterFrame::Pong { at: UnixMs(1) }));
    assert_eq!(bench.session.take_counts().rtt_ms, None);
    for rtt_ms in [Some(42), None] {
        bench.after(42, Input::Frame(RouterFrame::Pong { at: ping.unwrap() }));
        assert_eq!(bench.session.take_counts().rtt_ms, rtt_ms, "each ping is answered once");
    }
    let stats = crate::link::LinkStats::default();
    assert_eq!(stats.rtt_ms(), None);
    for rtt_ms in [Some(0), Some(42)] {
        stats.add(&Counts { rtt_ms, ..Counts::default() });
        stats.add(&Counts::default());
        assert_eq!(stats.rtt_ms(), rtt_ms);
    }
}

#[test]
fn an_answer_in_the_last_moment_keeps_the_session_and_an_operator_may_wait_for_longer() {
    for silence_ms in [HOST_SILENCE_MS, 12_000] {
        let mut bench = Bench::live(0, None);
        bench.session = bench.session.with_silence(silence_ms);
        for _ in 0..4 {
            assert_eq!(ended(&bench.pass(silence_ms - 1)), None);
            bench.step(Input::Frame(RouterFrame::Pong { at: WALL }));
        }
        assert_eq!(ended(&bench.pass(silence_ms)), Some(&Ended::Silent(silence_ms)));
    }
}

#[test]
fn what_is_not_read_is_not_missed() {
    let mut bench = Bench::live(0, None);
    bench.pass(HOST_SILENCE_MS - 1);
    // What came is not taken by the supervisor, so the socket stays unread.
    bench.session.does_not_listen(bench.at);
    assert_eq!(ended(&bench.pass(HOST_SILENCE_MS - 1)), None);
    assert_eq!(ended(&bench.pass(1)), Some(&Ended::Silent(HOST_SILENCE_MS)));
}

#[test]
fn a_process_that_stood_still_asks_before_it_gives_up() {
    let mut bench = Bench::live(0, None);
    bench.alive(5_000);
    // The wire was well until it stopped; what has come since lies in the socket, behind this tick.
    let out = bench.after(10_000, Input::Tick);
    assert_eq!(ended(&out), None);
    assert_eq!(sent(&out).into_iter().filter(|f| matches!(f, HostFrame::Ping { .. })).count(), 1);
}

#[test]
fn with_a_lease_a_router_without_answers_is_left_with_the_lease() {
    let mut bench = Bench::live(0, Some(7));
    let out = bench.alive(LEASED_SILENCE_MS);
    assert_eq!(ended(&out), Some(&Ended::Silent(LEASED_SILENCE_MS)));
    let mut bench = Bench::live(0, Some(7));
    let revoke = RouterFrame::Revoke { phone: phone(1), epoch: 7 };
    let out = bench.step(Input::Frame(revoke));
    assert_eq!(delivered(&out), [&LinkOutput::Revoke { phone: phone(1), epoch: 7 }]);
    assert_eq!(ended(&bench.alive(SILENCE_MS - 1)), None);
}

#[test]
fn a_machine_that_slept_ends_the_session_when_it_wakes() {
    let mut bench = Bench::live(0, None);
    let out = bench.after(8 * 3_600_000, Input::Tick);
    assert!(matches!(ended(&out), Some(Ended::Silent(_))));
}

#[test]
fn a_ping_is_answered_with_its_own_time() {
    let mut bench = Bench::live(0, None);
    let out = bench.step(Input::Frame(RouterFrame::Ping { at: UnixMs(42) }));
    assert_eq!(sent(&out), [&HostFrame::Pong { at: UnixMs(42) }]);
}

#[test]
fn commands_of_the_router_are_passed_on_and_the_supervisors_are_not() {
    let command =
        |command| Input::Frame(RouterFrame::Command { phone: phone(1), epoch: 1, command });
    let mut bench = Bench::live(0, None);
    let out = bench.step(command(send_command()));
    let passed = LinkOutput::Command { phone: phone(1), epoch: 1, command: send_command() };
    assert_eq!(delivered(&out), [&passed]);
    for forbidden in [
        Command::Stop { deadline_ms: 0 },
        Command::Drain { deadline_ms: 0 },
        Command::Replay,
        Command::Revoke { epoch: 1 },
        Command::Ack { journal: "j".to_owned(), seq: 9 },
        Command::Lease { epoch: 9, ttl_ms: 1_000_000, issued_ms: 0 },
    ] {
        assert_eq!(bench.step(command(forbidden)), []);
    }
    assert_eq!(bench.session.take_counts().stray, 6);
}

#[test]
fn a_frame_that_is_not_understood_is_counted_and_the_session_kept() {
    let mut bench = Bench::live(0, None);
    let error = protocol::link::parse_router(r#"{"type":"dance"}"#).unwrap_err();
    assert_eq!(error, WireError::UnknownType("dance".to_owned()));
    assert_eq!(bench.step(Input::Refused(error)), []);
    assert!(bench.session.is_live());
    assert_eq!(bench.session.take_counts().refused, 1);
}

#[test]
fn goodbye_waits_for_the_close_code_but_not_for_ever() {
    let bye = || Input::Frame(RouterFrame::Bye { reason: "draining".to_owned() });
    let closed = Ended::Closed { code: close::DRAINING, reason: String::new() };
    let mut bench = Bench::live(0, None);
    assert_eq!(bench.after(60_000 - 1, bye()), []);
    assert_eq!(ended(&bench.step(Input::Gone(closed.clone()))), Some(&closed));
    assert_eq!(closed.redial_cause(), Cause::Draining);
    assert_eq!(bench.session.lived_ms(bench.at), 60_000 - 1);

    let mut bench = Bench::live(0, None);
    bench.step(bye());
    let said = Ended::Bye("draining".to_owned());
    assert_eq!(ended(&bench.pass(CLOSE_WITHIN_MS)), Some(&said));

    let mut bench = Bench::live(0, None);
    bench.step(bye());
    let out = bench.step(Input::Gone(Ended::Lost("reset".to_owned())));
    assert_eq!(ended(&out), Some(&said));
}

#[test]
fn a_stop_says_goodbye() {
    let mut bench = Bench::live(0, None);
    let out = bench.step(Input::Stop);
    assert!(matches!(sent(&out)[..], [HostFrame::Bye { .. }]));
    assert_eq!(ended(&out), Some(&Ended::Shutdown));
    assert_eq!(bench.step(local_event(phone(1), "j", 1)), [], "nothing follows the end");
}

#[test]
fn a_router_that_does_not_read_holds_back_the_events_and_is_left() {
    let mut bench = Bench::live(0, None);
    for seq in 1.. {
        if !bench.session.takes_input() {
            assert_eq!(bench.session.outbox, OUTBOX_INPUT_MAX);
            assert_eq!(seqs(&bench.step(local_event(phone(1), "j", seq))), Vec::<u64>::new());
            break;
        }
        bench.step(local_event(phone(1), "j", seq));
        bench.session.outbox += 1;
    }
    let mut end = None;
    for _ in 0..=OUTBOX_MAX {
        let out = bench.step(Input::Frame(RouterFrame::Ping { at: WALL }));
        bench.session.outbox += sent(&out).len();
        if let Some(why) = ended(&out) {
            end = Some(why.clone());
            break;
        }
    }
    assert_eq!(end, Some(Ended::OutboxFull(OUTBOX_MAX + 1)));
}

#[test]
fn ends_are_sorted_by_what_helps_against_them() {
    let closed = |code| Ended::Closed { code, reason: String::new() };
    for (why, cause) in [
        (Ended::Upgrade { status: 401 }, Cause::Refused),
        (Ended::Upgrade { status: 403 }, Cause::Refused),
        (Ended::ClockSkew { ahead_s: None }, Cause::Skewed),
        (Ended::Upgrade { status: 503 }, Cause::Lost),
        (closed(close::NOT_AUTHORISED), Cause::Refused),
        (closed(close::PROTOCOL_TOO_OLD), Cause::Refused),
        (closed(close::REPLACED), Cause::Replaced),
        (closed(close::DRAINING), Cause::Draining),
        (closed(1_006), Cause::Lost),
        (Ended::Silent(1), Cause::Lost),
    ] {
        assert_eq!(why.redial_cause(), cause, "{why}");
    }
}

#[test]
fn more_phones_than_a_host_may_have_are_refused() {
    let mut phones = Phones::default();
    for number in 0..=limits::PHONES_PER_HOST_MAX {
        let report = report(phone(u8::try_from(number).unwrap()), "j");
        phones.learn(LinkInput::Phone { report, started: true });
    }
    assert_eq!(phones.all().len(), limits::PHONES_PER_HOST_MAX);
}

// The model: a bridge with a journal, a session that may be cut at any moment, a router that counts. Whatever happens,
// once it stops happening every event has reached the router exactly once and in order.

/// One thing that may happen.
#[derive(Clone, Debug)]
enum Turn {
    Journal,
    BridgeRestarts,
    StateChanges,
    ToRouter(usize),
    ToHost(usize),
    RouterFails,
    Cut,
    Time(u64),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        6 => Just(Turn::Journal),
        1 => Just(Turn::BridgeRestarts),
        1 => Just(Turn::StateChanges),
        4 => (1_usize..6).prop_map(Turn::ToRouter),
        4 => (1_usize..6).prop_map(Turn::ToHost),
        1 => Just(Turn::RouterFails),
        1 => Just(Turn::Cut),
        2 => (0_u64..20_000).prop_map(Turn::Time),
    ];
    prop::collection::vec(turn, 0..120)
}

const WINDOW: u64 = 8;

/// The world of the model.
struct World {
    bench: Bench,
    /// Frames on the wire that have not arrived.
    up: VecDeque<HostFrame>,
    down: VecDeque<RouterFrame>,
    /// The bridge: newest event, acknowledged, said since it started, last progress.
    last: u64,
    acked: u64,
    said: u64,
    progress: ContinuousMs,
    /// The router: every event that it took, in order; fails the next one.
    taken: Vec<u64>,
    fails: bool,
    /// The highest event forwarded in this session.
    forwarded: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            bench: Bench::new(vec![report(phone(1), "j")]),
            up: VecDeque::new(),
            down: VecDeque::new(),
            last: 0,
            acked: 0,
            said: 0,
            progress: START,
            taken: Vec::new(),
            fails: false,
            forwarded: 0,
        };
        world.step(Input::Opened);
        world
    }

    fn step(&mut self, input: Input) {
        let out = self.bench.step(input);
        let mut again = false;
        let mut over = false;
        for output in out {
            match output {
                Output::Send(frame) => {
                    if let HostFrame::Event(event) = &frame {
                        assert!(event.seq <= self.forwarded + 1, "a gap was forwarded");
                        self.forwarded = self.forwarded.max(event.seq);
                    }
                    self.up.push_back(frame);
                }
                Output::Deliver(LinkOutput::Ack { seq, replay, .. }) => {
                    assert!(seq <= self.last, "an event was acknowledged that never was");
                    if seq > self.acked {
                        self.acked = seq;
                        self.progress = self.bench.at;
                    }
                    again |= replay;
                }
                Output::Deliver(_) => {}
                Output::End(_) => over = true,
            }
        }
        if over {
            return self.redial();
        }
        if again {
            self.said = self.acked;
        }
        self.say();
    }

    /// The bridge says what it has not said, within its window.
    fn say(&mut self) {
        self.said = self.said.max(self.acked);
        while self.said < self.last && self.said < self.acked + WINDOW {
            self.said += 1;
            self.step(local_event(phone(1), "j", self.said));
        }
    }

    fn redial(&mut self) {
        self.up.clear();
        self.down.clear();
        let session = Session::new(String::new(), String::new(), Phones::default(), 0);
        let old = std::mem::replace(&mut self.bench.session, session);
        self.bench.session = Session::new("boot".to_owned(), "1".to_owned(), old.into_phones(), 0);
        self.forwarded = u64::try_from(self.taken.len()).unwrap();
        self.step(Input::Opened);
    }

    fn router_takes(&mut self, frame: HostFrame) {
        let have = u64::try_from(self.taken.len()).unwrap();
        let ack = |seq| RouterFrame::Ack { phone: phone(1), journal: "j".to_owned(), seq };
        match frame {
            HostFrame::Hello(_) => {
                self.down.push_back(welcome(vec![WelcomePhone {
                    phone: phone(1),
                    epoch: Some(1),
                    ttl_ms: LEASE_TTL_MS,
                    acked_seq: have,
                }]));
            }
            HostFrame::Phone(_) => self.down.push_back(ack(have)),
            HostFrame::Event(event) if event.seq == have + 1 => {
                if std::mem::take(&mut self.fails) {
                    return;
                }
                self.taken.push(event.seq);
                self.down.push_back(ack(event.seq));
            }
            HostFrame::Event(event) if event.seq <= have => self.down.push_back(ack(have)),
            HostFrame::Renew { renewal, .. } => self.down.push_back(RouterFrame::Lease {
                phone: phone(1),
                epoch: 1,
                ttl_ms: LEASE_TTL_MS,
                renewal,
            }),
            HostFrame::Ping { at } => self.down.push_back(RouterFrame::Pong { at }),
            // A gap is dropped, never acknowledged.
            HostFrame::Event(_)
            | HostFrame::Pong { .. }
            | HostFrame::Bye { .. }
            | HostFrame::Canary(_)
            | HostFrame::Released { .. } => {}
        }
    }

    fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::Journal => {
                self.last += 1;
                self.say();
            }
            Turn::BridgeRestarts => {
                self.said = self.acked;
                let mut report = report(phone(1), "j");
                report.last_seq = self.last;
                self.step(Input::Local(LinkInput::Phone { report, started: true }));
            }
            Turn::StateChanges => {
                let mut report = report(phone(1), "j");
                report.state = PhoneState::Draining;
                self.step(Input::Local(LinkInput::Phone { report, started: false }));
            }
            Turn::ToRouter(frames) => {
                for _ in 0..*frames {
                    if let Some(frame) = self.up.pop_front() {
                        self.router_takes(frame);
                    }
                }
            }
            Turn::ToHost(frames) => {
                for _ in 0..*frames {
                    if let Some(frame) = self.down.pop_front() {
                        self.step(Input::Frame(frame));
                    }
                }
            }
            Turn::RouterFails => self.fails = true,
            Turn::Cut => self.redial(),
            Turn::Time(ms) => {
                self.bench.at += ms;
                self.step(Input::Tick);
                if self.acked < self.last && self.bench.at - self.progress >= 15_000 {
                    self.progress = self.bench.at;
                    self.said = self.acked;
                    self.say();
                }
            }
        }
    }

    /// Nothing bad happens any more: everything must arrive in bounded time.
    fn settle(&mut self) {
        self.fails = false;
        for _ in 0..400 {
            if self.acked == self.last {
                return;
            }
            self.turn(&Turn::ToRouter(1_000));
            self.turn(&Turn::ToHost(1_000));
            self.turn(&Turn::Time(1_000));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_event_arrives_exactly_once_and_in_order(turns in turns()) {
        let mut world = World::new();
        for turn in &turns {
            world.turn(turn);
            let expected: Vec<u64> = (1..=u64::try_from(world.taken.len()).unwrap()).collect();
            prop_assert_eq!(&world.taken, &expected);
        }
        world.settle();
        prop_assert_eq!(world.acked, world.last);
        prop_assert_eq!(u64::try_from(world.taken.len()).unwrap(), world.last);
    }
}

/// What is logged while `work` runs.
fn logged(work: impl FnOnce()) -> String {
    use std::sync::{Arc, Mutex};
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let page = Page::default();
    let writer = page.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(log, work);
    let bytes = page.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_clock_that_is_more_than_a_minute_off_is_told_and_a_smaller_difference_is_not() {
    for (off_ms, told) in [(60_000, false), (-60_000, false), (61_000, true), (-61_000, true)] {
        let log = logged(|| {
            let mut bench = Bench::new(Vec::new());
            bench.step(Input::Opened);
            let (session, clock) = ("s1".to_owned(), WALL.plus_ms(off_ms));
            let frame = RouterFrame::Welcome(Welcome {
                session,
                clock,
                phones: Vec::new(),
                canaries: false,
            });
            let out = bench.step(Input::Frame(frame));
            let live = matches!(delivered(&out)[..], [LinkOutput::Connected { .. }]);
            assert!(live, "a difference ends no session: {out:?}");
        });
        assert_eq!(log.contains("the router's clock differs"), told, "{off_ms}: {log}");
    }
}
