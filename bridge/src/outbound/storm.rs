//! Sends against a model of Messages that is told apart from what the bridge is told: asks are
//! counted where they arrive, rows appear when they like, and everything may happen in any order.
//! What the bridge knows it only knows through the answers to its own effects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use proptest::prelude::*;
use protocol::pipe::{EventLine, OutboundAttachment, Send};
use protocol::{Class, MessageId, Recipient, UnixMs};

use super::*;
use crate::config::Pacing;
use crate::osascript::{Disposition, of_number};

const T0: i64 = 1_700_000_000_000;

/// What Messages makes of one ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// A row, sent.
    Sent,
    /// A row with error 22; it stays so.
    Unregistered,
    /// A row with error 22, and a moment later the same text as SMS under a row of its own.
    Downgraded,
    /// A row with error 3.
    Network,
    /// A row that is never sent.
    Stuck,
    /// Nothing.
    Nothing,
    /// Not even asked: an AppleScript error from before the dispatch.
    NotResolved,
    /// -600.
    NotRunning,
}

const FATES: [Fate; 8] = [
    Fate::Sent,
    Fate::Unregistered,
    Fate::Downgraded,
    Fate::Network,
    Fate::Stuck,
    Fate::Nothing,
    Fate::NotResolved,
    Fate::NotRunning,
];

#[derive(Debug, Clone)]
enum Step {
    /// A command: which, with the words of another, how long it is good for.
    Send {
        n: u8,
        twin: bool,
        /// So many files go with it.
        files: usize,
        ttl_ms: i64,
    },
    /// A fetch ends, well or badly.
    Fetched(bool),
    Cancel(u8),
    Lease(u64),
    Revoke(u64),
    Ack,
    Usable(bool),
    /// The loop performs so many effects.
    Perform(usize),
    /// osascript ends; true when it says nothing useful.
    End {
        silent: bool,
    },
    /// A person, another device or iCloud puts a row of the same words beside ours.
    Stranger {
        n: u8,
        old: bool,
        loose: bool,
    },
    Wait(i64),
    Crash,
}

#[derive(Debug, Clone)]
struct Plan {
    fate: Fate,
    /// After the ask.
    row_after_ms: i64,
}

fn steps() -> impl Strategy<Value = (Vec<Step>, Vec<Plan>)> {
    let n = 0_u8..4;
    let step = prop_oneof![
        5 => (n.clone(), prop::bool::weighted(0.3), prop_oneof![4 => Just(0), 2 => 1_usize..4], 500_i64..200_000)
            .prop_map(|(n, twin, files, ttl_ms)| Step::Send { n, twin, files, ttl_ms }),
        1 => prop::bool::weighted(0.8).prop_map(Step::Fetched),
        1 => n.clone().prop_map(Step::Cancel),
        2 => (1_u64..4).prop_map(Step::Lease),
        1 => (0_u64..4).prop_map(Step::Revoke),
        1 => Just(Step::Ack),
        2 => prop::bool::weighted(0.8).prop_map(Step::Usable),
        12 => (1_usize..6).prop_map(Step::Perform),
        6 => prop::bool::weighted(0.2).prop_map(|silent| Step::End { silent }),
        1 => (n, any::<bool>(), any::<bool>())
            .prop_map(|(n, old, loose)| Step::Stranger { n, old, loose }),
        6 => prop_oneof![0_i64..400, 0_i64..3_000, 0_i64..30_000].prop_map(Step::Wait),
        1 => Just(Step::Crash),
    ];
    let plan = (prop::sample::select(&FATES[..]), prop_oneof![0_i64..300, 0_i64..40_000])
        .prop_map(|(fate, row_after_ms)| Plan { fate, row_after_ms });
    (prop::collection::vec(step, 1..120), prop::collection::vec(plan, 24))
}

/// A row of the model's chat.db, and since when it is there.
#[derive(Debug, Clone)]
struct Stored {
    from_ms: i64,
    dated: UnixMs,
    to: Recipient,
    content: Content,
    state: RowState,
}

/// One osascript.
#[derive(Debug, Clone)]
struct Script {
    attempt: Attempt,
    fate: Option<Fate>,
}

struct Mac {
    outbound: Outbound,
    now: Now,
    last_seq: u64,
    acked: u64,
    journal: BTreeMap<Attempt, SendRecord>,
    claims: BTreeSet<String>,
    max_epoch: u64,
    told: Vec<Fact>,
    effects: VecDeque<Effect>,
    plans: VecDeque<Plan>,
    rows: Vec<Stored>,
    next_row: i64,
    /// Waiting for its script.
    waiting: Option<Attempt>,
    running: Option<Script>,
    /// Outlived its bridge.
    orphan: Option<Script>,
    /// Asks that arrived at Messages.
    /// By attempt, part and channel.
    asked: BTreeMap<(Attempt, usize, Channel), u32>,
    /// Fetches under way, and of how many files.
    fetches: BTreeMap<Attempt, usize>,
    lease: Option<(u64, i64)>,
    /// What Messages has sent again as SMS by itself.
    downgraded: BTreeSet<Attempt>,
    /// Some sends have the same words.
    twins: bool,
}

fn attempt(n: u8) -> Attempt {
    Attempt { message: MessageId::new(1, [n; 10]), attempt: 1 }
}

fn policy() -> Policy {
    Policy {
        channels: vec![Channel::Imessage, Channel::Sms],
        match_window_ms: 8_000,
        settle_window_ms: 10_000,
        sent_window_ms: 20_000,
        orphan_window_ms: 60_000,
        pacing: Pacing::Unlimited,
        allow_private: false,
    }
}

fn file() -> OutboundAttachment {
    OutboundAttachment { url: "https://example.com/a".to_owned(), name: None, sha256: None }
}

fn words(n: u8) -> (Recipient, String) {
    (Recipient::Number(format!("+120255501{n:02}").parse().unwrap()), format!("text {n}"))
}

impl Mac {
    fn new(plans: Vec<Plan>) -> Self {
        let now = Now { wall: UnixMs(T0), continuous_ms: 1_000_000 };
        Self {
            outbound: Outbound::restore(policy(), 0, 0, Default::default(), now),
            now,
            last_seq: 0,
            acked: 0,
            journal: BTreeMap::new(),
            claims: BTreeSet::new(),
            max_epoch: 0,
            told: Vec::new(),
            effects: VecDeque::new(),
            plans: plans.into(),
            rows: Vec::new(),
            next_row: 1,
            waiting: None,
            running: None,
            orphan: None,
            asked: BTreeMap::new(),
            lease: None,
            downgraded: BTreeSet::new(),
            twins: false,
            fetches: BTreeMap::new(),
        }
    }

    fn step(&mut self, event: Event) {
        let mut turn = Turn::new(self.last_seq);
        self.outbound.step(event, self.now, &mut turn);
        for change in turn.changes {
            match change {
                Change::Put(send) => {
                    self.journal.insert(send.attempt.clone(), *send);
                }
                Change::Told { attempt, told } => {
                    self.journal.get_mut(&attempt).unwrap().told = told;
                }
                Change::Claim { guid } => assert!(self.claims.insert(guid), "a row claimed twice"),
                Change::Event(EventLine { seq, event, .. }) => {
                    self.last_seq = seq;
                    self.told.push(event);
                }
                Change::MaxEpoch(epoch) => self.max_epoch = epoch,
                Change::Heard { .. }
                | Change::Seen { .. }
                | Change::Acked(_)
                | Change::Cursor(_)
                | Change::Account(_) => panic!("not of a send"),
            }
        }
        self.outbound.committed();
        self.effects.extend(turn.effects);
    }

    fn known(&self, attempt: &Attempt) -> Option<Told> {
        if self.outbound.knows(attempt) {
            return None;
        }
        self.journal.get(attempt).map(|send| send.told.clone())
    }

    fn there(&self) -> impl Iterator<Item = &Stored> {
        self.rows.iter().filter(|row| row.from_ms <= self.now.continuous_ms)
    }

    fn insert(
        &mut self,
        to: Recipient,
        content: Content,
        after_ms: i64,
        change: impl Fn(&mut RowState),
    ) {
        // Numbers are given out when a row appears.
        let mut state = RowState {
            rowid: 0,
            guid: format!("G{}", self.next_row),
            channel: Some(Channel::Imessage),
            error: 0,
            is_sent: false,
            delivered: false,
            delivered_at: None,
            read_at: None,
            ghost: false,
            certain: true,
        };
        change(&mut state);
        self.next_row += 1;
        let from_ms = self.now.continuous_ms + after_ms;
        let dated = self.now.wall.plus_ms(after_ms);
        self.rows.push(Stored { from_ms, dated, to, content, state });
        self.number();
    }

    fn number(&mut self) {
        let now = self.now.continuous_ms;
        let mut newest = self.rows.iter().map(|row| row.state.rowid).max().unwrap_or(0);
        self.rows.sort_by_key(|row| row.from_ms);
        for row in &mut self.rows {
            if row.from_ms <= now && row.state.rowid == 0 {
                newest += 1;
                row.state.rowid = newest;
            }
        }
    }

    /// The script arrives: what Messages does from here on does not depend on any bridge.
    fn ask(&mut self, attempt: &Attempt, channel: Channel) -> Fate {
        let plan = self.plans.pop_front().unwrap_or(Plan { fate: Fate::Sent, row_after_ms: 30 });
        let (to, text, part) = {
            let work = self.outbound.sends[attempt].work().unwrap();
            (work.to.clone(), work.content().unwrap(), work.done)
        };
        let fate = match (channel, plan.fate) {
            // Nobody is unregistered with SMS.
            (Channel::Sms, Fate::Unregistered | Fate::Downgraded) => Fate::Sent,
            (_, fate) => fate,
        };
        let after = plan.row_after_ms;
        match fate {
            Fate::NotResolved | Fate::NotRunning => return fate,
            Fate::Nothing => {}
            Fate::Sent => self.insert(to, text, after, |row| {
                row.is_sent = true;
                row.channel = Some(channel);
            }),
            Fate::Unregistered => self.insert(to, text, after, |row| row.error = 22),
            Fate::Downgraded => {
                self.insert(to.clone(), text.clone(), after, |row| row.error = 22);
                self.insert(to, text, after + 500, |row| {
                    row.is_sent = true;
                    row.channel = Some(Channel::Sms);
                });
            }
            Fate::Network => self.insert(to, text, after, |row| row.error = 3),
            Fate::Stuck => self.insert(to, text, after, |_| {}),
        }
        *self.asked.entry((attempt.clone(), part, channel)).or_default() += 1;
        fate
    }

    fn perform(&mut self) -> Result<bool, TestCaseError> {
        let Some(effect) = self.effects.pop_front() else { return Ok(false) };
        match effect {
            Effect::Prepare { attempt, .. } => {
                if self.orphan.is_some() {
                    self.step(Event::NotPrepared { attempt, why: NotPrepared::Orphan });
                } else {
                    prop_assert!(self.waiting.is_none() && self.running.is_none(), "two at a time");
                    self.waiting = Some(attempt.clone());
                    let mark = self.there().map(|row| row.state.rowid).max().unwrap_or(0);
                    self.step(Event::Prepared { attempt, mark });
                }
            }
            Effect::Confirm { attempt } => {
                let rest = std::mem::take(&mut self.effects);
                self.step(Event::Recorded { attempt });
                while !self.effects.is_empty() {
                    self.perform()?;
                }
                self.effects = rest.into_iter().chain(std::mem::take(&mut self.effects)).collect();
            }
            Effect::HandOver { attempt } => {
                prop_assert_eq!(self.waiting.take(), Some(attempt.clone()));
                let work = self.outbound.sends[&attempt].work().unwrap().clone();
                let (epoch, until) = self.lease.unwrap_or((0, i64::MIN));
                prop_assert!(
                    epoch == work.epoch
                        && self.now.continuous_ms < until
                        && self.now.wall < work.start_before,
                    "without a right"
                );
                let channel = work.channel().unwrap();
                let doubted = self
                    .told
                    .iter()
                    .any(|fact| matches!(fact, Fact::Unknown(about) if about.attempt == attempt));
                prop_assert!(!doubted, "after doubt: {:?}", attempt);
                let fate = self.ask(&attempt, channel);
                // Of two with the same words nobody can tell whose SMS it was.
                prop_assert!(
                    channel == Channel::Imessage
                        || self.twins
                        || !self.downgraded.contains(&attempt),
                    "Messages has sent it as SMS itself: {:?}",
                    attempt
                );
                if fate == Fate::Downgraded {
                    self.downgraded.insert(attempt.clone());
                }
                let asked = (attempt.clone(), work.done, channel);
                let asks = self.asked.get(&asked).copied().unwrap_or(0);
                prop_assert!(work.is_staged(), "before its files are here: {:?}", attempt);
                prop_assert!(asks <= 1, "asked twice: {:?} {:?}", attempt, channel);
                self.running = Some(Script { attempt: attempt.clone(), fate: Some(fate) });
                self.step(Event::HandedOver { attempt });
            }
            Effect::Abandon => {
                if let Some(attempt) = self.waiting.take() {
                    self.running = Some(Script { attempt, fate: None });
                }
            }
            Effect::KillOsascript => self.end(true),
            Effect::Fetch { attempt, files } => {
                prop_assert!(self.fetches.len() < 2, "more than two fetches");
                self.fetches.insert(attempt, files.len());
            }
            Effect::StopFetch { attempt } => {
                self.fetches.remove(&attempt);
            }
            Effect::Find { attempt, mark, since, to, content } => {
                let mut rows: Vec<RowState> = self
                    .there()
                    .filter(|row| row.state.rowid > mark && row.dated >= since)
                    .filter(|row| row.content == content && (row.to == to || !row.state.certain))
                    .map(|row| row.state.clone())
                    .collect();
                rows.sort_by_key(|row| row.rowid);
                self.step(Event::Rows { attempt, rows });
            }
            Effect::ReadStates { rowids } => {
                let states = self
                    .there()
                    .filter(|row| rowids.contains(&row.state.rowid))
                    .map(|row| row.state.clone())
                    .collect();
                self.step(Event::States(states));
            }
            Effect::CheckOrphan => {
                if self.orphan.is_none() {
                    self.step(Event::OrphanGone);
                }
            }
            // No lost bridge is asked about in this storm.
            Effect::Seek(_) => {}
            Effect::EndOrphan { force } => {
                if force {
                    self.orphan = None;
                }
            }
        }
        Ok(true)
    }

    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..1_000 {
            if !self.perform()? {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("effects without end"))
    }

    fn end(&mut self, silent: bool) {
        let Some(script) = self.running.take() else { return };
        let disposition = match script.fate {
            _ if silent => of_number(-1712),
            Some(Fate::NotResolved) => of_number(-1728),
            Some(Fate::NotRunning) => of_number(-600),
            Some(
                Fate::Sent
                | Fate::Unregistered
                | Fate::Downgraded
                | Fate::Network
                | Fate::Stuck
                | Fate::Nothing,
            )
            | None => Disposition::Succeeded { output: String::new() },
        };
        tracing::trace!(?script.attempt, "ended");
        self.step(Event::Ended { disposition });
    }

    fn wait(&mut self, ms: i64) -> Result<(), TestCaseError> {
        let mut left = ms;
        while left > 0 {
            let part = left.min(250);
            left -= part;
            self.now = Now {
                wall: self.now.wall.plus_ms(part),
                continuous_ms: self.now.continuous_ms + part,
            };
            self.number();
            self.step(Event::Tick);
            self.settle()?;
        }
        Ok(())
    }

    fn lease(&mut self, epoch: u64) {
        let issued_ms = u64::try_from(self.now.continuous_ms).unwrap();
        if epoch >= self.max_epoch {
            self.lease = Some((epoch, self.now.continuous_ms + 500_000 - 3_000));
        }
        self.step(Event::Lease { epoch, ttl_ms: 500_000, issued_ms });
    }

    fn crash(&mut self) {
        // The child that waits reads an empty script; the one that runs goes on.
        self.waiting = None;
        self.fetches.clear();
        self.orphan = self.running.take().or(self.orphan.take());
        self.lease = None;
        self.effects.clear();
        let live = self.journal.values().filter(|send| send.work().is_some()).cloned().collect();
        let sends = (live, self.claims.clone());
        self.outbound = Outbound::restore(policy(), self.max_epoch, self.acked, sends, self.now);
        self.step(Event::Usable(true));
    }

    fn fetched(&mut self, well: bool) {
        let Some((attempt, count)) = self.fetches.pop_first() else { return };
        let path = |n: usize| PathBuf::from(format!("/{}/{n}", attempt.message));
        let files = if well {
            Ok((0..count).map(path).collect())
        } else {
            Err(Failure {
                reason: Reason::AttachmentUnavailable,
                detail: String::new(),
                retryable: true,
            })
        };
        self.step(Event::Fetched { attempt, files });
    }

    fn last_of(&self, attempt: &Attempt) -> Option<&Fact> {
        self.told.iter().rev().find(|fact| fact.attempt() == Some(attempt))
    }
}

fn play(steps: Vec<Step>, plans: Vec<Plan>) -> Result<(), TestCaseError> {
    let mut mac = Mac::new(plans);
    mac.step(Event::OrphanGone);
    mac.step(Event::Usable(true));
    mac.lease(1);
    for step in steps {
        match step {
            Step::Fetched(well) => mac.fetched(well),
            Step::Send { n, twin, files, ttl_ms } => {
                let (to, text) = words(if twin { 0 } else { n });
                mac.twins |= twin;
                let send = Send {
                    message: attempt(n).message,
                    attempt: 1,
                    epoch: mac.max_epoch.max(1),
                    to,
                    text,
                    attachments: vec![file(); files],
                    route: vec![Channel::Imessage, Channel::Sms],
                    class: Class::Otp,
                    start_before: mac.now.wall.plus_ms(ttl_ms),
                    conversation: None,
                };
                let known = mac.known(&attempt(n));
                mac.step(Event::Send { send: Box::new(send), known });
            }
            Step::Cancel(n) => {
                let known = mac.known(&attempt(n));
                mac.step(Event::Cancel { attempt: attempt(n), known });
            }
            Step::Lease(epoch) => mac.lease(epoch),
            Step::Revoke(epoch) => {
                mac.lease = mac.lease.filter(|(held, _)| *held > epoch);
                mac.step(Event::Revoke { epoch });
            }
            Step::Ack => {
                mac.acked = mac.last_seq;
                mac.step(Event::Acked { seq: mac.last_seq });
            }
            Step::Usable(usable) => mac.step(Event::Usable(usable)),
            Step::Perform(times) => {
                for _ in 0..times {
                    mac.perform()?;
                }
            }
            Step::End { silent } => mac.end(silent),
            Step::Stranger { n, old, loose } => {
                let (to, text) = words(n);
                mac.insert(to, Content::Text(text), 0, |row| {
                    row.is_sent = true;
                    row.certain = !loose;
                });
                if old
                    && let Some(row) =
                        mac.rows.iter_mut().find(|row| row.from_ms == mac.now.continuous_ms)
                {
                    row.dated = row.dated.plus_ms(-86_400_000);
                }
            }
            Step::Wait(ms) => mac.wait(ms)?,
            Step::Crash => mac.crash(),
        }
    }
    // The world calms down: osascripts end, the phone is usable and leased, all rows appear.
    mac.settle()?;
    mac.end(false);
    mac.orphan = None;
    mac.step(Event::Usable(true));
    for _ in 0..30 {
        mac.lease(mac.max_epoch);
        mac.fetched(true);
        mac.fetched(true);
        mac.wait(5_000)?;
        mac.end(false);
        mac.settle()?;
    }
    mac.wait(120_000)?;
    let attempts: Vec<Attempt> = mac.journal.keys().cloned().collect();
    for attempt in attempts {
        let last = mac.last_of(&attempt).map(Fact::kind);
        let is_answered = matches!(
            last,
            Some("sent" | "failed" | "unknown" | "canceled" | "expired" | "refused")
        );
        prop_assert!(is_answered, "without an end: {:?} {:?}", attempt, mac.journal.get(&attempt));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn in_any_storm_each_channel_is_asked_once_never_after_doubt_and_every_send_has_an_end(
        (steps, plans) in steps()
    ) {
        play(steps, plans)?;
    }
}
