use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::pipe::{EventLine, OutboundAttachment, Send};
use protocol::{Class, MessageId, Recipient, UnixMs, limits};

use super::*;
use crate::config::Pacing;
use crate::osascript::{Disposition, of_number};

mod parts;
mod renumber;

const T0: i64 = 1_700_000_000_000;

fn at(ms: i64) -> Now {
    Now { wall: UnixMs(T0 + ms), continuous_ms: 1_000_000 + ms }
}

fn policy() -> Policy {
    Policy {
        channels: vec![Channel::Imessage, Channel::Rcs, Channel::Sms],
        match_window_ms: 8_000,
        settle_window_ms: 10_000,
        sent_window_ms: 20_000,
        orphan_window_ms: 60_000,
        pacing: Pacing::Unlimited,
        allow_private: false,
    }
}

fn message(n: u8) -> MessageId {
    MessageId::new(1, [n; 10])
}

fn attempt(n: u8) -> Attempt {
    Attempt { message: message(n), attempt: 1 }
}

fn file(url: &str) -> OutboundAttachment {
    OutboundAttachment { url: url.to_owned(), name: None, sha256: None }
}

fn command(n: u8) -> Send {
    Send {
        message: message(n),
        attempt: 1,
        epoch: 1,
        to: Recipient::Number(format!("+120255501{n:02}").parse().unwrap()),
        text: format!("text {n}"),
        attachments: Vec::new(),
        route: vec![Channel::Imessage, Channel::Sms],
        class: Class::Conversational,
        start_before: UnixMs(T0 + 600_000),
        conversation: None,
    }
}

fn row(rowid: i64) -> RowState {
    RowState {
        rowid,
        guid: format!("GUID-{rowid}"),
        channel: Some(Channel::Imessage),
        error: 0,
        is_sent: false,
        delivered: false,
        delivered_at: None,
        read_at: None,
        ghost: false,
        certain: true,
    }
}

fn sent(rowid: i64) -> RowState {
    RowState { is_sent: true, ..row(rowid) }
}

fn unregistered(rowid: i64) -> RowState {
    RowState { error: 22, ..row(rowid) }
}

/// Something that happens in the middle of a test.
type Happening = fn(&mut World);

/// A journal in memory, and the loop's part: commit, then answer effects as a test wants.
struct World {
    outbound: Outbound,
    now: Now,
    last_seq: u64,
    sends: BTreeMap<Attempt, SendRecord>,
    claims: BTreeSet<String>,
    max_epoch: u64,
    told: Vec<Fact>,
    effects: Vec<Effect>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            outbound: Outbound::restore(policy(), 0, 0, Default::default(), at(0)),
            now: at(0),
            last_seq: 0,
            sends: BTreeMap::new(),
            claims: BTreeSet::new(),
            max_epoch: 0,
            told: Vec::new(),
            effects: Vec::new(),
        };
        world.step(Event::OrphanGone);
        world.step(Event::Usable(true));
        world.lease(1);
        world
    }

    fn lease(&mut self, epoch: u64) {
        let issued_ms = u64::try_from(self.now.continuous_ms).unwrap();
        self.step(Event::Lease { epoch, ttl_ms: 500_000, issued_ms });
    }

    fn step(&mut self, event: Event) {
        let mut turn = Turn::new(self.last_seq);
        self.outbound.step(event, self.now, &mut turn);
        self.commit(turn);
    }

    fn commit(&mut self, turn: Turn) {
        for change in turn.changes {
            match change {
                Change::Put(send) => {
                    self.sends.insert(send.attempt.clone(), *send);
                }
                Change::Told { attempt, told } => {
                    if let Some(send) = self.sends.get_mut(&attempt) {
                        send.told = told;
                    }
                }
                Change::Claim { guid } => assert!(self.claims.insert(guid), "a row claimed twice"),
                Change::Event(EventLine { seq, event, .. }) => {
                    assert_eq!(seq, self.last_seq + 1, "events are contiguous");
                    self.last_seq = seq;
                    self.told.push(event);
                }
                Change::MaxEpoch(epoch) => {
                    assert!(epoch > self.max_epoch);
                    self.max_epoch = epoch;
                }
                Change::Heard { .. }
                | Change::Seen { .. }
                | Change::Acked(_)
                | Change::Cursor(_)
                | Change::Account(_) => {
                    panic!("not a change of a send")
                }
            }
        }
        self.outbound.committed();
        self.effects.extend(turn.effects);
    }

    /// What the journal would give a new life.
    fn crash(&mut self) {
        let live = self.sends.values().filter(|send| send.work().is_some()).cloned().collect();
        self.outbound =
            Outbound::restore(policy(), self.max_epoch, 0, (live, self.claims.clone()), self.now);
        self.effects.clear();
    }

    fn revive(&mut self) {
        self.crash();
        self.step(Event::OrphanGone);
        self.step(Event::Usable(true));
        self.lease(self.max_epoch);
    }

    fn wait(&mut self, ms: i64) {
        let mut left = ms;
        while left > 0 {
            let part = left.min(250);
            self.now = Now {
                wall: self.now.wall.plus_ms(part),
                continuous_ms: self.now.continuous_ms + part,
            };
            self.step(Event::Tick);
            left -= part;
        }
    }

    fn send(&mut self, send: Send) {
        let key = Attempt { message: send.message.clone(), attempt: send.attempt };
        let known = self
            .sends
            .get(&key)
            .filter(|_| !self.outbound.knows(&key))
            .map(|send| send.told.clone());
        self.step(Event::Send { send: Box::new(send), known });
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn prepares(&mut self) -> Vec<(Attempt, Channel)> {
        self.take_effects()
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Prepare { attempt, channel, .. } => Some((attempt, channel)),
                Effect::Confirm { .. }
                | Effect::HandOver { .. }
                | Effect::Abandon
                | Effect::KillOsascript
                | Effect::Find { .. }
                | Effect::ReadStates { .. }
                | Effect::Seek(_)
                | Effect::CheckOrphan
                | Effect::Fetch { .. }
                | Effect::StopFetch { .. }
                | Effect::EndOrphan { .. } => None,
            })
            .collect()
    }

    /// From the queue to the moment Messages has it.
    fn start(&mut self, n: u8, mark: i64) {
        self.step(Event::Prepared { attempt: attempt(n), mark });
        self.step(Event::Recorded { attempt: attempt(n) });
        self.step(Event::HandedOver { attempt: attempt(n) });
    }

    fn ended(&mut self) {
        self.step(Event::Ended { disposition: Disposition::Succeeded { output: String::new() } });
    }

    fn rows(&mut self, n: u8, rows: Vec<RowState>) {
        self.step(Event::Rows { attempt: attempt(n), rows });
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.told.iter().map(Fact::kind).collect()
    }

    fn phase(&self, n: u8) -> Option<Phase> {
        self.sends.get(&attempt(n)).and_then(SendRecord::phase).cloned()
    }

    fn last_reason(&self) -> Option<Reason> {
        let last = self.told.last()?;
        let (Fact::Refused(about) | Fact::Failed(about) | Fact::Unknown(about)) = last else {
            panic!("no reason in {last:?}")
        };
        Some(about.reason)
    }
}

#[test]
fn a_send_goes_from_accepted_to_read() {
    let mut world = World::new();
    world.send(command(1));
    assert_eq!(world.prepares(), [(attempt(1), Channel::Imessage)]);
    world.step(Event::Prepared { attempt: attempt(1), mark: 10 });
    assert_eq!(world.phase(1), Some(Phase::Started { mark: 10, at: world.now.wall }));
    assert_eq!(world.take_effects(), [Effect::Confirm { attempt: attempt(1) }]);
    world.step(Event::Recorded { attempt: attempt(1) });
    assert_eq!(world.take_effects(), [Effect::HandOver { attempt: attempt(1) }]);
    world.step(Event::HandedOver { attempt: attempt(1) });
    world.ended();
    assert!(matches!(world.take_effects()[..], [Effect::Find { mark: 10, .. }]));
    world.rows(1, vec![row(11)]);
    assert_eq!(world.kinds(), ["accepted", "started"], "a row alone is not sent");
    world.step(Event::States(vec![sent(11)]));
    world.step(Event::States(vec![RowState { delivered: true, ..sent(11) }]));
    let read_at = Some(UnixMs(T0 + 5));
    world.step(Event::States(vec![RowState { delivered: true, read_at, ..sent(11) }]));
    assert_eq!(world.kinds(), ["accepted", "started", "sent", "delivered", "read"]);
    assert_eq!(world.phase(1), None);
    world.step(Event::States(vec![RowState { delivered: true, read_at, ..sent(11) }]));
    assert_eq!(world.told.len(), 5, "what is over is over");
}

#[test]
fn one_osascript_at_a_time_and_the_urgent_first() {
    let mut world = World::new();
    world.step(Event::Usable(false));
    for (n, class) in
        [(1, Class::Marketing), (2, Class::Conversational), (3, Class::Otp), (4, Class::Otp)]
    {
        world.send(Send { class, ..command(n) });
    }
    world.step(Event::Usable(true));
    let mut order = Vec::new();
    for mark in 0..4 {
        let prepares = world.prepares();
        assert_eq!(prepares.len(), 1);
        let n = (1..=4).find(|n| attempt(*n) == prepares[0].0).unwrap();
        order.push(n);
        world.start(n, mark);
        world.ended();
        world.rows(n, vec![sent(mark + 1)]);
    }
    assert_eq!(order, [3, 4, 2, 1]);
}

#[test]
fn the_gate_is_asked_again_after_the_fsync() {
    // What happens between `started` and the script, what becomes of the send, and what is told.
    let cases: [(&str, Happening, &[&str]); 6] = [
        ("revoked", |world| world.step(Event::Revoke { epoch: 1 }), &["accepted"]),
        ("released", |world| world.step(Event::Release { epoch: 2 }), &["accepted", "refused"]),
        (
            "an epoch of before released",
            |world| world.step(Event::Release { epoch: 0 }),
            &["accepted"],
        ),
        ("newer epoch", |world| world.lease(2), &["accepted", "refused"]),
        ("too late", |world| world.now = at(600_000), &["accepted", "expired"]),
        ("stopping", |world| world.step(Event::Stop { deadline_ms: 5_000 }), &["accepted"]),
    ];
    for (name, happens, expected) in cases {
        let mut world = World::new();
        world.send(command(1));
        world.step(Event::Prepared { attempt: attempt(1), mark: 10 });
        world.take_effects();
        happens(&mut world);
        world.step(Event::Recorded { attempt: attempt(1) });
        assert_eq!(world.take_effects(), [Effect::Abandon], "{name}");
        assert_eq!(world.kinds(), expected, "{name}");
        if expected.len() == 1 {
            assert_eq!(
                world.phase(1),
                Some(Phase::Accepted),
                "{name}: it was provably not started"
            );
        }
    }
}

#[test]
fn nothing_starts_while_the_phone_cannot_send() {
    let mut world = World::new();
    world.step(Event::Usable(false));
    world.send(command(1));
    assert_eq!(world.prepares(), []);
    world.step(Event::Usable(true));
    assert_eq!(world.prepares().len(), 1);
    world.step(Event::NotPrepared { attempt: attempt(1), why: NotPrepared::Held });
    world.wait(1_000);
    assert_eq!(world.prepares(), [], "held until the daemon says that it may go on");
    world.step(Event::Usable(true));
    assert_eq!(world.prepares().len(), 1);
}

#[test]
fn the_route_goes_on_only_after_a_provable_failure() {
    // Disposition of osascript; does the route go on, and what was told.
    let cases = [
        (of_number(-1728), true, None),
        (of_number(-1719), true, None),
        (of_number(-2753), true, None),
        (of_number(-600), false, Some("failed")),
        (of_number(-1743), false, Some("failed")),
        (of_number(-1700), false, Some("failed")),
        (of_number(-1712), false, None),
        (of_number(-609), false, None),
        (of_number(1002), false, None),
    ];
    for (disposition, walks, end) in cases {
        let mut world = World::new();
        world.send(command(1));
        world.start(1, 10);
        world.take_effects();
        world.step(Event::Ended { disposition: disposition.clone() });
        let prepares = world.prepares();
        assert_eq!(prepares == [(attempt(1), Channel::Sms)], walks, "{disposition:?}");
        match end {
            Some(kind) => assert_eq!(world.kinds().last(), Some(&kind), "{disposition:?}"),
            None if walks => assert_eq!(world.kinds().last(), Some(&"fallback"), "{disposition:?}"),
            None => {
                // In doubt: looked for, then told, and never started again.
                assert_eq!(world.kinds().last(), Some(&"started"), "{disposition:?}");
                world.wait(10_000);
                world.rows(1, vec![]);
                assert_eq!(world.kinds().last(), Some(&"unknown"), "{disposition:?}");
                world.wait(60_000);
                assert_eq!(world.prepares(), [], "{disposition:?}");
            }
        }
    }
}

#[test]
fn a_number_without_imessage_gets_an_sms_after_a_grace() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.take_effects();
    world.rows(1, vec![unregistered(11)]);
    assert_eq!(world.prepares(), [], "Messages may still turn it into an SMS itself");
    world.wait(1_000);
    world.step(Event::States(vec![unregistered(11)]));
    assert_eq!(world.kinds(), ["accepted", "started"], "another row may be the truth");
    world.rows(1, vec![unregistered(11)]);
    assert_eq!(world.kinds(), ["accepted", "started", "fallback"]);
    assert_eq!(world.prepares(), [(attempt(1), Channel::Sms)]);
    world.start(1, 11);
    world.ended();
    // The failed row fits the same words; it is taken.
    world.rows(1, vec![unregistered(11), RowState { channel: Some(Channel::Sms), ..sent(12) }]);
    assert_eq!(world.kinds(), ["accepted", "started", "fallback", "started", "sent"]);
    assert!(
        matches!(world.told.last(), Some(Fact::Sent { channel: Channel::Sms, guid, .. }) if guid == "GUID-12")
    );
    assert_eq!(world.phase(1), None, "no receipt ever comes for an SMS");
}

#[test]
fn messages_own_downgrade_is_not_doubled() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.take_effects();
    world.rows(1, vec![unregistered(11)]);
    world.wait(500);
    world.step(Event::States(vec![RowState { channel: Some(Channel::Sms), ..sent(11) }]));
    world.wait(5_000);
    assert_eq!(world.kinds(), ["accepted", "started", "sent"]);
    assert!(matches!(world.told.last(), Some(Fact::Sent { channel: Channel::Sms, .. })));
    assert_eq!(world.prepares(), []);
}

#[test]
fn the_last_channel_fails_with_the_reason_of_its_row() {
    let cases = [
        (22, Reason::NotRegistered, false),
        (3, Reason::Network, true),
        (10, Reason::Network, true),
        (20, Reason::ServiceRejected, false),
        (21, Reason::BadAddress, false),
        (33, Reason::AccountUnusable, false),
        (4, Reason::NotDelivered, false),
        (25, Reason::NotDelivered, false),
    ];
    for (error, reason, retryable) in cases {
        let mut world = World::new();
        world.send(Send { route: vec![Channel::Imessage], ..command(1) });
        world.start(1, 10);
        world.ended();
        world.rows(1, vec![RowState { error, ..row(11) }]);
        world.wait(1_000);
        world.step(Event::States(vec![RowState { error, ..row(11) }]));
        world.rows(1, vec![]);
        let Some(Fact::Failed(about)) = world.told.last() else { panic!("{error}") };
        assert_eq!((about.reason, about.retryable), (reason, retryable), "{error}");
        assert_eq!(about.detail, format!("chat.db error {error}"));
    }
}

#[test]
fn an_error_after_sent_is_told_but_never_tried_again() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.rows(1, vec![sent(11)]);
    world.take_effects();
    world.step(Event::States(vec![unregistered(11)]));
    let Some(Fact::Failed(about)) = world.told.last() else { panic!() };
    assert!(!about.retryable);
    world.wait(5_000);
    assert_eq!(world.prepares(), []);
}

#[test]
fn the_row_counts_even_while_osascript_still_runs_and_whatever_it_says_later() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.rows(1, vec![sent(11)]);
    assert_eq!(world.kinds(), ["accepted", "started", "sent"]);
    world.send(command(2));
    world.take_effects();
    world.wait(1_000);
    assert_eq!(world.prepares(), [], "it still has the lane");
    world.step(Event::Ended { disposition: of_number(-1728) });
    assert_eq!(world.kinds(), ["accepted", "started", "sent", "accepted"]);
    assert_eq!(world.prepares(), [(attempt(2), Channel::Imessage)]);
}

#[test]
fn unknown_may_still_become_sent_or_failed() {
    for (late, kind) in [(sent(11), "sent"), (RowState { error: 3, ..row(11) }, "failed")] {
        let mut world = World::new();
        world.send(Send { route: vec![Channel::Imessage], ..command(1) });
        world.start(1, 10);
        world.ended();
        world.wait(9_000);
        world.send(command(2));
        assert!(world.prepares().contains(&(attempt(2), Channel::Imessage)), "the lane is free");
        world.wait(1_500);
        world.rows(1, vec![]);
        assert_eq!(world.last_reason(), Some(Reason::NoEvidence));
        world.wait(60_000);
        world.rows(1, vec![late]);
        world.rows(1, vec![]);
        assert_eq!(world.kinds().last(), Some(&kind));
        if let Some(Fact::Failed(about)) = world.told.last() {
            assert!(!about.retryable, "somebody may have acted on the doubt");
        }
    }
}

#[test]
fn the_route_does_not_go_on_once_doubt_was_told() {
    // Of a send without a row, and of one whose row was neither sent nor failed.
    for found in [false, true] {
        let mut world = World::new();
        world.send(command(1));
        world.start(1, 10);
        world.ended();
        if found {
            world.rows(1, vec![row(11)]);
            world.wait(21_000);
        } else {
            world.wait(10_500);
            world.rows(1, vec![]);
        }
        assert_eq!(world.kinds().last(), Some(&"unknown"));
        world.rows(1, vec![unregistered(11)]);
        world.step(Event::States(vec![unregistered(11)]));
        world.wait(1_000);
        world.step(Event::States(vec![unregistered(11)]));
        world.take_effects();
        world.rows(1, vec![]);
        assert_eq!(world.kinds().last(), Some(&"failed"));
        world.wait(5_000);
        assert_eq!(world.prepares(), [], "found: {found}");
    }
}

#[test]
fn a_text_that_messages_sends_again_under_a_new_row_is_not_sent_a_third_time() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.rows(1, vec![unregistered(11)]);
    world.wait(1_000);
    world.take_effects();
    world.step(Event::States(vec![unregistered(11)]));
    assert!(matches!(world.take_effects()[..], [Effect::Find { mark: 11, .. }]));
    world.rows(1, vec![RowState { channel: Some(Channel::Sms), ..sent(12) }]);
    assert_eq!(world.kinds(), ["accepted", "started", "sent"]);
    world.wait(5_000);
    assert_eq!(world.prepares(), []);
}

#[test]
fn a_failed_row_is_not_believed_while_osascript_runs() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.rows(1, vec![unregistered(11)]);
    world.take_effects();
    world.wait(5_000);
    world.step(Event::States(vec![unregistered(11)]));
    assert!(!world.take_effects().iter().any(|effect| matches!(effect, Effect::Find { .. })));
    assert_eq!(world.kinds(), ["accepted", "started"]);
    world.ended();
    assert!(world.effects.contains(&Effect::ReadStates { rowids: vec![11] }));
    world.step(Event::States(vec![unregistered(11)]));
    world.rows(1, vec![]);
    assert_eq!(world.kinds(), ["accepted", "started", "fallback"]);
}

#[test]
fn a_row_that_may_be_anybodys_is_taken_only_when_no_better_one_comes() {
    let loose = |rowid| RowState { certain: false, ..sent(rowid) };
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.rows(1, vec![loose(11)]);
    assert_eq!(world.kinds(), ["accepted", "started"]);
    world.rows(1, vec![loose(11), sent(12)]);
    assert!(matches!(world.told.last(), Some(Fact::Sent { guid, .. }) if guid == "GUID-12"));

    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.wait(10_000);
    world.rows(1, vec![loose(11)]);
    assert_eq!(world.kinds(), ["accepted", "started", "sent"]);
}

#[test]
fn an_orphan_past_its_deadline_is_ended_and_a_probe_that_meets_one_waits_for_it() {
    let mut world = World::new();
    world.step(Event::OrphanMet);
    world.send(command(1));
    world.wait(59_750);
    assert!(world.effects.iter().all(|effect| *effect == Effect::CheckOrphan));
    world.wait(250);
    assert!(world.effects.contains(&Effect::EndOrphan { force: false }));
    world.wait(1_000);
    assert!(world.effects.contains(&Effect::EndOrphan { force: true }));
    world.take_effects();
    world.step(Event::OrphanGone);
    assert_eq!(world.prepares(), [(attempt(1), Channel::Imessage)]);
}

#[test]
fn a_ghost_is_named() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.wait(10_000);
    world.rows(1, vec![RowState { ghost: true, ..row(11) }]);
    assert_eq!(world.last_reason(), Some(Reason::GhostRow));
}

#[test]
fn a_row_that_is_never_sent_is_told_as_unknown_once() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.rows(1, vec![row(11)]);
    world.wait(60_000);
    assert_eq!(world.kinds(), ["accepted", "started", "unknown"]);
    assert_eq!(world.last_reason(), Some(Reason::NotConfirmed));
    world.step(Event::States(vec![sent(11)]));
    assert_eq!(world.kinds().last(), Some(&"sent"));
}

#[test]
fn the_same_words_twice_never_share_a_row() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.wait(10_500);
    world.rows(1, vec![]);
    let twin = Send { to: command(1).to, text: command(1).text, ..command(2) };
    world.send(twin);
    world.start(2, 10);
    world.rows(1, vec![sent(11)]);
    assert!(
        matches!(world.phase(1), Some(Phase::Doubt { .. })),
        "the newer one has the first right"
    );
    world.rows(2, vec![sent(11)]);
    world.rows(1, vec![sent(11)]);
    assert!(matches!(world.phase(1), Some(Phase::Doubt { .. })));
    world.revive();
    world.rows(1, vec![sent(11)]);
    assert!(matches!(world.phase(1), Some(Phase::Doubt { .. })), "also in the next life");
    world.rows(1, vec![sent(11), sent(12)]);
    assert!(matches!(world.told.last(), Some(Fact::Sent { guid, .. }) if guid == "GUID-12"));
}

#[test]
fn what_a_crash_left_is_settled_and_never_started_again() {
    let crashes: [(&str, Happening); 3] = [
        ("started", |world| world.step(Event::Prepared { attempt: attempt(1), mark: 10 })),
        ("handed", |world| world.start(1, 10)),
        ("ended", |world| {
            world.start(1, 10);
            world.ended();
        }),
    ];
    for (name, until) in crashes {
        for found in [true, false] {
            let mut world = World::new();
            world.send(command(1));
            until(&mut world);
            world.crash();
            world.step(Event::Usable(true));
            world.lease(1);
            world.wait(15_000);
            assert!(
                !world.take_effects().iter().any(|effect| matches!(effect, Effect::Find { .. })),
                "{name}: while the orphan runs nothing is settled"
            );
            world.step(Event::OrphanGone);
            assert!(
                world
                    .take_effects()
                    .iter()
                    .any(|effect| matches!(effect, Effect::Find { mark: 10, .. }))
            );
            if found {
                world.rows(1, vec![sent(11)]);
                assert_eq!(world.kinds().last(), Some(&"sent"), "{name}");
            } else {
                world.wait(10_000);
                world.rows(1, vec![]);
                assert_eq!(world.last_reason(), Some(Reason::BridgeInterrupted), "{name}");
            }
            world.send(command(1));
            world.wait(60_000);
            assert_eq!(world.prepares(), [], "{name}");
        }
    }
}

#[test]
fn accepted_survives_a_crash_and_starts_in_the_next_life() {
    let mut world = World::new();
    world.step(Event::Usable(false));
    world.send(command(1));
    world.revive();
    assert_eq!(world.prepares(), [(attempt(1), Channel::Imessage)]);
}

#[test]
fn a_repeated_command_is_answered_once_what_was_told_is_acknowledged() {
    let mut world = World::new();
    world.send(command(1));
    world.send(command(1));
    assert_eq!(world.kinds(), ["accepted"], "it is still on its way");
    world.step(Event::Acked { seq: 1 });
    world.send(command(1));
    assert_eq!(world.kinds(), ["accepted", "accepted"]);
    assert_eq!(world.prepares().len(), 1);
    // Over and out of memory: the journal knows.
    world.start(1, 10);
    world.ended();
    let read_at = Some(UnixMs(T0));
    world.rows(1, vec![RowState { read_at, ..sent(11) }]);
    assert!(!world.outbound.knows(&attempt(1)));
    world.step(Event::Acked { seq: world.last_seq });
    world.send(command(1));
    assert_eq!(world.kinds().last(), Some(&"read"));
    assert_eq!(world.prepares(), []);
}

#[test]
fn what_cannot_be_sent_is_refused_and_stays_refused() {
    let email = Recipient::Email("a@example.com".to_owned());
    let cases = [
        (Send { text: String::new(), ..command(1) }, Reason::BadContent),
        (Send { text: "a\0b".to_owned(), ..command(1) }, Reason::BadContent),
        (Send { text: "x".repeat(limits::TEXT_CHARS_MAX + 1), ..command(1) }, Reason::BadContent),
        (Send { route: vec![], ..command(1) }, Reason::UnknownChannel),
        (Send { route: vec![Channel::Sms], to: email, ..command(1) }, Reason::BadAddress),
        (
            Send { attachments: vec![file("http://example.com/a")], ..command(1) },
            Reason::BadContent,
        ),
        (
            Send {
                attachments: vec![file("https://example.com/a"); limits::ATTACHMENTS_MAX + 1],
                ..command(1)
            },
            Reason::BadContent,
        ),
    ];
    for (send, reason) in cases {
        let mut world = World::new();
        world.send(send);
        assert_eq!(world.last_reason(), Some(reason));
        world.send(command(1));
        assert_eq!(world.prepares(), [], "refused is refused: {reason}");
    }
    let mut world = World::new();
    world.lease(3);
    world.send(command(1));
    assert_eq!(world.last_reason(), Some(Reason::StaleEpoch));
    let mut world = World::new();
    world.send(Send { start_before: world.now.wall, ..command(1) });
    assert_eq!(world.kinds(), ["expired"]);
}

#[test]
fn a_full_queue_says_so() {
    let mut world = World::new();
    world.step(Event::Usable(false));
    for n in 0..=QUEUE_MAX {
        let attempt = u32::try_from(n).unwrap() + 1;
        world.send(Send { attempt, ..command(1) });
    }
    assert_eq!(world.last_reason(), Some(Reason::QueueFull));
    assert_eq!(world.outbound.queued(), QUEUE_MAX);
}

#[test]
fn canceling_works_until_it_is_started_and_before_it_was_heard_of() {
    let mut world = World::new();
    world.step(Event::Usable(false));
    world.send(command(1));
    world.step(Event::Cancel { attempt: attempt(1), known: None });
    world.step(Event::Cancel { attempt: attempt(2), known: None });
    assert_eq!(world.kinds(), ["accepted", "canceled", "canceled"]);
    world.step(Event::Usable(true));
    world.send(command(1));
    world.send(command(2));
    assert_eq!(world.prepares(), [], "a tombstone is not started");
    world.send(command(3));
    world.start(3, 10);
    world.step(Event::Acked { seq: world.last_seq });
    world.step(Event::Cancel { attempt: attempt(3), known: None });
    assert_eq!(world.kinds().last(), Some(&"started"), "its present state");
}

#[test]
fn withdrawn_while_its_child_was_being_started() {
    let mut world = World::new();
    world.send(command(1));
    world.step(Event::Cancel { attempt: attempt(1), known: None });
    world.take_effects();
    world.step(Event::Prepared { attempt: attempt(1), mark: 1 });
    assert_eq!(world.take_effects(), [Effect::Abandon]);
    world.send(command(2));
    assert_eq!(world.prepares(), [], "the abandoned child still has the lane");
    world.step(Event::Ended { disposition: of_number(0) });
    assert_eq!(world.prepares(), [(attempt(2), Channel::Imessage)]);
}

#[test]
fn waiting_sends_expire_and_a_failed_channel_is_what_is_told_of() {
    let mut world = World::new();
    world.step(Event::Usable(false));
    world.send(command(1));
    world.now = at(600_000);
    world.step(Event::Tick);
    assert_eq!(world.kinds(), ["accepted", "expired"]);

    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.step(Event::Usable(false));
    world.step(Event::Ended { disposition: of_number(-1728) });
    world.now = at(600_000);
    world.step(Event::Tick);
    assert_eq!(world.kinds(), ["accepted", "started", "fallback", "failed"]);
    assert_eq!(world.last_reason(), Some(Reason::NotResolved));
}

#[test]
fn a_group_is_not_walked_and_ends_with_sent() {
    let mut world = World::new();
    let to = Recipient::Group("chat123".to_owned());
    world.send(Send { to, ..command(1) });
    world.start(1, 10);
    world.ended();
    world.rows(1, vec![sent(11)]);
    assert_eq!(world.kinds(), ["accepted", "started", "sent"]);
    assert_eq!(world.phase(1), None);
}

#[test]
fn stopping_starts_nothing_and_kills_at_its_deadline() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.step(Event::Stop { deadline_ms: 3_500 });
    world.send(command(2));
    assert_eq!(world.sends.len(), 1, "not taken: it will be offered again");
    assert!(!world.outbound.is_done());
    world.take_effects();
    world.wait(3_500);
    assert!(world.effects.contains(&Effect::KillOsascript));
    assert_eq!(world.effects.iter().filter(|effect| **effect == Effect::KillOsascript).count(), 1);
    world.step(Event::Ended { disposition: of_number(-1712) });
    assert!(world.outbound.is_done());
    assert!(matches!(world.phase(1), Some(Phase::Handed { .. })), "the next life settles it");
}

#[test]
fn draining_also_waits_for_the_row() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.step(Event::Drain { deadline_ms: 60_000 });
    world.ended();
    assert!(!world.outbound.is_done());
    world.rows(1, vec![row(11)]);
    assert!(world.outbound.is_done());
}

#[test]
fn a_replaced_database_cannot_lend_its_numbers() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.rows(1, vec![row(11)]);
    world.step(Event::States(vec![RowState { guid: "OTHER".to_owned(), ..sent(11) }]));
    assert_eq!(world.kinds(), ["accepted", "started"]);
}

// ---- properties -----------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Step {
    Send { n: u8, twin: bool, ttl_ms: i64 },
    Cancel(u8),
    Lease(u64),
    Revoke(u64),
    Ack,
    Usable(bool),
    Answer(bool),
    Ended(usize),
    Rows { n: u8, rowid: i64, shape: u8 },
    States { rowid: i64, shape: u8 },
    Wait(i64),
    Changed,
    Crash,
    Stray(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = 0_u8..4;
    let step = prop_oneof![
        4 => (n.clone(), any::<bool>(), 0_i64..100_000).prop_map(|(n, twin, ttl_ms)| Step::Send { n, twin, ttl_ms }),
        1 => n.clone().prop_map(Step::Cancel),
        2 => (1_u64..4).prop_map(Step::Lease),
        1 => (0_u64..4).prop_map(Step::Revoke),
        1 => Just(Step::Ack),
        2 => prop::bool::weighted(0.8).prop_map(Step::Usable),
        12 => prop::bool::weighted(0.9).prop_map(Step::Answer),
        4 => (0_usize..8).prop_map(Step::Ended),
        5 => (n.clone(), 0_i64..30, 0_u8..6).prop_map(|(n, rowid, shape)| Step::Rows { n, rowid, shape }),
        5 => (0_i64..30, 0_u8..6).prop_map(|(rowid, shape)| Step::States { rowid, shape }),
        4 => (0_i64..15_000).prop_map(Step::Wait),
        1 => Just(Step::Changed),
        1 => Just(Step::Crash),
        1 => n.prop_map(Step::Stray),
    ];
    prop::collection::vec(step, 1..120)
}

fn shaped(rowid: i64, shape: u8) -> RowState {
    match shape {
        0 => row(rowid),
        1 => sent(rowid),
        2 => unregistered(rowid),
        3 => RowState { delivered: true, read_at: Some(UnixMs(T0)), ..sent(rowid) },
        4 => RowState { error: 3, ..row(rowid) },
        _ => RowState { ghost: true, ..row(rowid) },
    }
}

fn end(which: usize) -> Disposition {
    [0, -1728, -1712, -600, -1743, -609, -2753, -1700].get(which).map_or(
        Disposition::Succeeded { output: String::new() },
        |number| match number {
            0 => Disposition::Succeeded { output: String::new() },
            number => of_number(*number),
        },
    )
}

/// A model of the outside: which script was handed over, and when a lease allowed it.
fn play(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut world = World::new();
    let mut handed: BTreeMap<(Attempt, usize), u32> = BTreeMap::new();
    let mut lease: Option<(u64, i64)> = Some((1, world.now.continuous_ms + 500_000 - 3_000));
    for step in steps {
        match step {
            Step::Send { n, twin, ttl_ms } => {
                let base = if twin { 0 } else { n };
                let send = Send {
                    to: command(base).to,
                    text: command(base).text,
                    epoch: world.max_epoch.max(1),
                    start_before: world.now.wall.plus_ms(ttl_ms),
                    ..command(n)
                };
                world.send(send);
            }
            Step::Cancel(n) => {
                let known = world
                    .sends
                    .get(&attempt(n))
                    .filter(|_| !world.outbound.knows(&attempt(n)))
                    .map(|send| send.told.clone());
                world.step(Event::Cancel { attempt: attempt(n), known });
            }
            Step::Lease(epoch) => {
                let before = world.max_epoch;
                world.lease(epoch);
                if epoch >= before {
                    // A lease of the same epoch is never shortened; here they only grow.
                    lease = Some((epoch, world.now.continuous_ms + 500_000 - 3_000));
                }
            }
            Step::Revoke(epoch) => {
                world.step(Event::Revoke { epoch });
                lease = lease.filter(|(held, _)| *held > epoch);
            }
            Step::Ack => world.step(Event::Acked { seq: world.last_seq }),
            Step::Usable(usable) => world.step(Event::Usable(usable)),
            // The loop answers what it was asked, well or badly.
            Step::Answer(well) => {
                let mut effects: std::collections::VecDeque<_> = world.take_effects().into();
                while let Some(effect) = effects.pop_front() {
                    match effect {
                        Effect::Prepare { attempt, .. } => world.step(if well {
                            Event::Prepared { attempt, mark: 5 }
                        } else {
                            Event::NotPrepared { attempt, why: NotPrepared::Held }
                        }),
                        Effect::Confirm { attempt } => {
                            world.step(Event::Recorded { attempt });
                            // As the loop does: what follows from the gate's answer comes first.
                            for effect in world.take_effects().into_iter().rev() {
                                effects.push_front(effect);
                            }
                        }
                        Effect::HandOver { attempt } => {
                            let work = world.outbound.sends[&attempt].work().unwrap().clone();
                            let Some((epoch, until)) = lease else {
                                return Err(TestCaseError::fail("a start without a lease"));
                            };
                            prop_assert_eq!(epoch, work.epoch);
                            prop_assert!(world.now.continuous_ms < until);
                            prop_assert!(world.now.wall < work.start_before);
                            if well {
                                let starts =
                                    handed.entry((attempt.clone(), work.index)).or_default();
                                *starts += 1;
                                prop_assert_eq!(*starts, 1, "started twice: {:?}", attempt);
                                world.step(Event::HandedOver { attempt });
                            } else {
                                world.step(Event::NotHandedOver { attempt });
                            }
                        }
                        Effect::CheckOrphan => world.step(Event::OrphanGone),
                        Effect::EndOrphan { .. }
                        | Effect::Fetch { .. }
                        | Effect::StopFetch { .. }
                        | Effect::Abandon
                        | Effect::KillOsascript
                        | Effect::Find { .. }
                        | Effect::ReadStates { .. }
                        | Effect::Seek(_) => {}
                    }
                }
            }
            Step::Ended(which) => world.step(Event::Ended { disposition: end(which) }),
            Step::Rows { n, rowid, shape } => world.rows(n, vec![shaped(rowid, shape)]),
            Step::States { rowid, shape } => world.step(Event::States(vec![shaped(rowid, shape)])),
            Step::Wait(ms) => world.wait(ms),
            Step::Changed => world.step(Event::DatabaseChanged),
            Step::Crash => {
                world.crash();
                lease = None;
                let live: BTreeMap<_, _> = world
                    .sends
                    .iter()
                    .filter(|(_, send)| send.work().is_some())
                    .map(|(attempt, send)| (attempt.clone(), send.clone()))
                    .collect();
                prop_assert_eq!(&world.outbound.sends, &live, "the journal gives the same sends");
            }
            // Answers to questions that were never asked.
            Step::Stray(n) => {
                world.step(Event::HandedOver { attempt: attempt(n) });
                world.step(Event::NotHandedOver { attempt: attempt(n) });
                world.step(Event::ProbeEnded);
                world.step(Event::OrphanGone);
            }
        }
        // What is in memory is what the journal has, at every moment.
        for (attempt, send) in &world.outbound.sends {
            prop_assert_eq!(world.sends.get(attempt), Some(send));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_happens_nothing_starts_twice_or_without_a_lease(steps in steps()) {
        play(steps)?;
    }
}
