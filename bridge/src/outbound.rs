//! The life of every send, and of the queue before Messages.app. Pure: events in, changes and
//! effects out; the daemon commits the changes (one transaction, one fsync) before it performs
//! the effects.
//!
//! ```text
//! accepted ─▶ started ─▶ handed ─▶ found ─▶ final        each journaled before the next step
//!    ▲           │          │        │
//!    │           │          ├────────┼──▶ doubt ("unknown" was told; still looked for, 48 h)
//!    └───────────┴──────────┴────────┘    provably not sent: next channel of the route, or failed
//! ```
//!
//! Invariants:
//! - Only `accepted` is ever started. What a crash left in `started` or `handed` is settled by
//!   looking into chat.db, never by trying again.
//! - One osascript at a time: the [`Lane`].
//! - The route goes on only after a provable failure: an error of chat.db on the very row, or an
//!   AppleScript error from before the dispatch. Never on doubt.

mod failure;
mod model;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use protocol::pipe::{Attempt, AttemptReason, Event as Fact, Receipt, Send};
use protocol::{Channel, Reason, Recipient, UnixMs, limits};

use crate::clock::Now;
use crate::config::{Config, Pacing};
use crate::gate::{Gate, Verdict};
use crate::osascript::{Disposition, Failure};
use crate::pacing::Pace;

pub(crate) use model::{
    Body, Change, Effect, Event, NotPrepared, Phase, RowState, SendRecord, Stage, Told, Turn, Work,
};

/// Sends waiting for their turn. At one a second this is a quarter of an hour, longer than any
/// `start_before` that a router gives; more would only expire here.
pub(crate) const QUEUE_MAX: usize = 1_000;

/// How long what became of a send is still looked for: receipts, and rows of sends in doubt.
const TRACK_MS: i64 = 48 * 60 * 60 * 1000;

/// A row that says "not registered" must say so for this long: Messages itself may turn such a
/// row into an SMS in the meantime, and then ours would be the second one.
const NOT_REGISTERED_GRACE_MS: i64 = 1_000;

/// Rows dated this much before their send was accepted are others': iCloud puts old messages in
/// with new numbers, and a rebuilt database numbers all anew, so that the same words of last week
/// may stand above the mark. The slack is for a wall clock that is set back meanwhile.
const DATE_SLACK_MS: i64 = 2 * 60 * 1000;

/// An orphan past its deadline is asked to end first; after this long it is made to.
const ORPHAN_GRACE_MS: i64 = 1_000;

/// When chat.db cannot be read, a send in doubt waits this much longer for it before the doubt
/// is told all the same.
const BLIND_GRACE_MS: i64 = 60_000;

/// Rows whose state is read again on every change: the young ones.
const HOT_MS: i64 = 2 * 60 * 1000;

/// Young rows read again in one turn.
const HOT_ROWS_A_TURN: usize = 1_024;

/// Older rows read again in one turn, in rotation, so that a turn stays short however many wait
/// for a receipt.
const COLD_ROWS_A_TURN: usize = 256;

/// Sends in doubt looked for in one turn.
const LOOKS_A_TURN: usize = 16;

/// An age divided by this is the pause between two looks for a send in doubt.
const LOOK_BACKOFF: i64 = 8;

/// What of the configuration matters here.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) channels: Vec<Channel>,
    pub(crate) match_window_ms: i64,
    pub(crate) settle_window_ms: i64,
    pub(crate) sent_window_ms: i64,
    pub(crate) orphan_window_ms: i64,
    pub(crate) pacing: Pacing,
}

impl Policy {
    pub(crate) fn of(config: &Config) -> Self {
        let ms = |time: std::time::Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        Self {
            channels: config.default_channels.clone(),
            match_window_ms: ms(config.match_window),
            settle_window_ms: ms(config.settle_window),
            sent_window_ms: ms(config.sent_window),
            orphan_window_ms: ms(config.osascript_deadline),
            pacing: config.pacing,
        }
    }
}

/// Who has the one osascript.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lane {
    /// An osascript of an earlier life may still run. Nothing starts, nothing is settled.
    Orphan { until_ms: i64 },
    /// Nobody.
    Idle,
    /// The child is being started; nothing is journaled yet.
    Preparing { attempt: Attempt },
    /// `started` is on its way to the disk.
    Recording { attempt: Attempt },
    /// The script is being written.
    Handing { attempt: Attempt },
    /// Messages has it.
    Running { attempt: Attempt, since_ms: i64 },
    /// The child was given nothing, or its send is over; it only has to end.
    Ending,
    /// It has ended; the next send waits until this one's row is there.
    Matching { attempt: Attempt, until_ms: i64 },
    /// The account is being asked for its state.
    Probing,
}

/// How long a send without a row is looked for before that is told. Volatile: after a restart
/// the time begins anew.
#[derive(Debug, Clone)]
struct Settling {
    until_ms: i64,
    reason: Reason,
    detail: String,
    ghost: bool,
}

/// What a row says that failed.
#[derive(Debug, Clone)]
struct Failing {
    /// Since when it says so (continuous clock).
    since_ms: i64,
    failure: Failure,
    /// It has said so for long enough, and another row is being looked for.
    ripe: bool,
}

/// Everything that is not final, and the lane.
#[derive(Debug)]
pub(crate) struct Outbound {
    policy: Policy,
    gate: Gate,
    pace: Pace,
    lane: Lane,
    sends: BTreeMap<Attempt, SendRecord>,
    /// (rank of class, order of acceptance): what starts next.
    queue: BTreeMap<(u8, u64), Attempt>,
    accepted: u64,
    settling: BTreeMap<Attempt, Settling>,
    /// Sends in doubt, with the time of the next look (continuous clock).
    doubts: BTreeMap<Attempt, i64>,
    /// Rows that are tracked.
    rows: BTreeMap<i64, Attempt>,
    /// Guids of the rows that belong to a send, tracked or over: a row belongs to one only.
    claimed: BTreeSet<String>,
    /// Where the rotation through the older rows stands.
    cold_from: i64,
    /// Rows that say that they failed, and what they say; not believed yet.
    failing: BTreeMap<Attempt, Failing>,
    /// Something became final since the last commit.
    over: bool,
    usable: bool,
    stop: Option<Stopping>,
    acked_seq: u64,
}

/// No new work; what remains is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stopping {
    /// Continuous clock, after which a running osascript is killed.
    deadline_ms: i64,
    /// A drain also waits for the row of what it sent; a stop leaves that to the next life.
    match_rows: bool,
    killed: bool,
}

impl Outbound {
    /// Takes up what the journal holds. Nothing starts before the daemon has said whether an
    /// orphan runs.
    pub(crate) fn restore(
        policy: Policy,
        max_epoch: u64,
        acked_seq: u64,
        (sends, claimed): (Vec<SendRecord>, BTreeSet<String>),
        now: Now,
    ) -> Self {
        let pace = Pace::new(policy.pacing);
        let mut outbound = Self {
            lane: Lane::Orphan {
                until_ms: now.continuous_ms.saturating_add(policy.orphan_window_ms),
            },
            policy,
            gate: Gate::new(max_epoch),
            pace,
            sends: BTreeMap::new(),
            queue: BTreeMap::new(),
            accepted: 0,
            settling: BTreeMap::new(),
            doubts: BTreeMap::new(),
            rows: BTreeMap::new(),
            claimed,
            cold_from: 0,
            failing: BTreeMap::new(),
            over: false,
            usable: false,
            stop: None,
            acked_seq,
        };
        let mut sends = sends;
        sends.sort_by_key(|send| send.work().map(|work| (work.accepted_at, send.attempt.clone())));
        for send in sends {
            let attempt = send.attempt.clone();
            match send.phase() {
                Some(Phase::Accepted) => outbound.enqueue(&send),
                Some(Phase::Started { .. } | Phase::Handed { .. }) => outbound.settle(
                    &attempt,
                    now,
                    Reason::BridgeInterrupted,
                    "the bridge ended while Messages had it".to_owned(),
                ),
                Some(Phase::Doubt { .. }) => {
                    outbound.doubts.insert(attempt.clone(), now.continuous_ms);
                }
                Some(Phase::Found { rowid, .. }) => {
                    outbound.rows.insert(*rowid, attempt.clone());
                }
                None => continue,
            }
            outbound.sends.insert(attempt, send);
        }
        outbound
    }

    /// One event. The caller commits the changes in `turn` before it performs its effects.
    pub(crate) fn step(&mut self, event: Event, now: Now, turn: &mut Turn) {
        match event {
            Event::Send { send, known } => self.take(*send, known, now, turn),
            Event::Cancel { attempt, known } => self.cancel(attempt, known, now, turn),
            Event::Lease { epoch, ttl_ms, issued_ms } => {
                self.see(epoch, turn);
                if let Err(bad) = self.gate.grant(epoch, ttl_ms, issued_ms, now) {
                    tracing::warn!(epoch, ttl_ms, ?bad, "lease not taken");
                }
            }
            Event::Revoke { epoch } => self.gate.revoke(epoch),
            Event::Acked { seq } => self.acked_seq = self.acked_seq.max(seq),
            Event::Usable(usable) => self.usable = usable,
            Event::OrphanGone => {
                if let Lane::Orphan { .. } = self.lane {
                    self.lane = Lane::Idle;
                    self.resettle(now);
                    self.look(now, turn);
                }
            }
            Event::OrphanMet => {
                if self.lane == Lane::Idle {
                    self.await_orphan(now);
                }
            }
            Event::Prepared { attempt, mark } => self.prepared(attempt, mark, now, turn),
            Event::NotPrepared { attempt, why } => self.not_prepared(&attempt, why, now, turn),
            Event::Recorded { attempt } => self.recorded(attempt, now, turn),
            Event::HandedOver { attempt } => self.handed_over(attempt, now, turn),
            Event::NotHandedOver { attempt } => self.not_handed_over(&attempt, now, turn),
            Event::Ended { disposition } => self.ended(disposition, now, turn),
            Event::Probing => {
                if self.lane == Lane::Idle {
                    self.lane = Lane::Probing;
                }
            }
            Event::ProbeEnded => {
                if self.lane == Lane::Probing {
                    self.lane = Lane::Idle;
                }
            }
            Event::Rows { attempt, rows } => self.rows_found(&attempt, &rows, now, turn),
            Event::States(states) => {
                for state in &states {
                    if let Some(attempt) = self.rows.get(&state.rowid).cloned() {
                        self.observe(&attempt, state, now, turn);
                    }
                }
            }
            Event::DatabaseChanged => {
                self.look(now, turn);
                self.read_states(now, turn);
            }
            Event::Drain { deadline_ms } => self.stop_by(deadline_ms, true, now, turn),
            Event::Stop { deadline_ms } => self.stop_by(deadline_ms, false, now, turn),
            Event::Tick => self.tick(now, turn),
        }
        self.advance(now, turn);
    }

    /// After the commit: what became final is only in the journal from now on.
    pub(crate) fn committed(&mut self) {
        if std::mem::take(&mut self.over) {
            self.sends.retain(|_, send| send.work().is_some());
        }
    }

    /// Whether this attempt is in memory. The daemon asks the journal about the others.
    pub(crate) fn knows(&self, attempt: &Attempt) -> bool {
        self.sends.contains_key(attempt)
    }

    /// Whether a probe may take the lane.
    pub(crate) fn is_idle(&self) -> bool {
        self.lane == Lane::Idle && self.stop.is_none()
    }

    /// Whether it was told to end, and may.
    pub(crate) fn is_done(&self) -> bool {
        let Some(stop) = self.stop else { return false };
        match self.lane {
            Lane::Idle | Lane::Orphan { .. } => true,
            Lane::Matching { .. } => !stop.match_rows || stop.killed,
            Lane::Preparing { .. }
            | Lane::Recording { .. }
            | Lane::Handing { .. }
            | Lane::Running { .. }
            | Lane::Ending
            | Lane::Probing => false,
        }
    }

    /// Accepted and not started.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Started and not known to be sent.
    pub(crate) fn in_flight(&self) -> usize {
        let pending = |send: &&SendRecord| {
            matches!(
                send.phase(),
                Some(
                    Phase::Started { .. }
                        | Phase::Handed { .. }
                        | Phase::Found { stage: Stage::Pending, .. }
                )
            )
        };
        self.sends.values().filter(pending).count()
    }

    pub(crate) fn max_epoch(&self) -> u64 {
        self.gate.max_epoch()
    }

    /// Milliseconds until something falls due by itself that the regular tick would find late.
    pub(crate) fn due_in_ms(&self, now: Now) -> Option<i64> {
        (self.lane == Lane::Idle && !self.queue.is_empty() && self.usable)
            .then(|| self.pace.wait_ms(now.continuous_ms))
            .filter(|wait| *wait > 0)
    }

    // ---- commands -------------------------------------------------------------------------

    fn take(&mut self, send: Send, known: Option<Told>, now: Now, turn: &mut Turn) {
        let attempt = Attempt { message: send.message.clone(), attempt: send.attempt };
        if self.retell(&attempt, known, now, turn) {
            return;
        }
        if self.stop.is_some() {
            // Not journaled and not answered: it will be offered again, to the next life.
            tracing::info!(message = %send.message, attempt = send.attempt, "not taken: stopping");
            return;
        }
        let stale = send.epoch < self.gate.max_epoch();
        self.see(send.epoch, turn);
        let refusal = if stale {
            Some(Reason::StaleEpoch)
        } else if now.wall >= send.start_before {
            self.finish_new(attempt.clone(), Fact::Expired(attempt), now, turn);
            return;
        } else {
            self.refusal(&send)
        };
        if let Some(reason) = refusal {
            let fact = Fact::Refused(AttemptReason {
                attempt: attempt.clone(),
                reason,
                detail: String::new(),
                retryable: !matches!(reason, Reason::BadContent | Reason::BadAddress),
                channel: None,
            });
            self.finish_new(attempt, fact, now, turn);
            return;
        }
        let route = self.route(&send);
        let work = Work {
            epoch: send.epoch,
            class: send.class,
            to: send.to,
            text: send.text,
            route,
            index: 0,
            start_before: send.start_before,
            accepted_at: now.wall,
            failed: None,
        };
        let told = turn.tell(Fact::Accepted(attempt.clone()), now, self.gate.max_epoch());
        let record = SendRecord::live(attempt.clone(), told, work, Phase::Accepted);
        turn.changes.push(Change::Put(Box::new(record.clone())));
        self.enqueue(&record);
        self.sends.insert(attempt, record);
    }

    fn refusal(&self, send: &Send) -> Option<Reason> {
        if !send.attachments.is_empty() {
            return Some(Reason::AttachmentsUnsupported);
        }
        // A NUL ends an argument of a program: the rest of the text would be lost.
        if send.text.trim().is_empty()
            || send.text.contains('\0')
            || send.text.chars().count() > limits::TEXT_CHARS_MAX
        {
            return Some(Reason::BadContent);
        }
        if send.route.iter().all(|channel| !self.policy.channels.contains(channel)) {
            return Some(Reason::UnknownChannel);
        }
        if self.route(send).is_empty() {
            return Some(Reason::BadAddress);
        }
        (self.queue.len() >= QUEUE_MAX).then_some(Reason::QueueFull)
    }

    /// The channels that this phone has and that can reach the recipient, in the order asked for.
    fn route(&self, send: &Send) -> Vec<Channel> {
        let mut seen = BTreeSet::new();
        let usable = send.route.iter().copied().filter(|channel| {
            let reaches = match send.to {
                Recipient::Number(_) | Recipient::Group(_) => true,
                Recipient::Email(_) => *channel == Channel::Imessage,
                // Messages come from services; none is sent to them.
                Recipient::Service(_) => false,
            };
            reaches && self.policy.channels.contains(channel) && seen.insert(*channel)
        });
        match send.to {
            Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_) => usable.collect(),
            // A group has its own service; there is nothing to walk.
            Recipient::Group(_) => usable.take(1).collect(),
        }
    }

    fn cancel(&mut self, attempt: Attempt, known: Option<Told>, now: Now, turn: &mut Turn) {
        let waiting = self
            .sends
            .get(&attempt)
            .is_some_and(|send| matches!(send.phase(), Some(Phase::Accepted)));
        if waiting {
            let fact = Fact::Canceled(attempt.clone());
            self.finish(&attempt, Some(fact), now, turn);
        } else if !self.retell(&attempt, known, now, turn) {
            // Never heard of: a tombstone, so that a send that comes later cannot start.
            self.finish_new(attempt.clone(), Fact::Canceled(attempt), now, turn);
        }
    }

    /// A command about an attempt that is known already. Its newest event is told again, unless
    /// it is still on its way.
    fn retell(
        &mut self,
        attempt: &Attempt,
        known: Option<Told>,
        now: Now,
        turn: &mut Turn,
    ) -> bool {
        let max_epoch = self.gate.max_epoch();
        if let Some(send) = self.sends.get_mut(attempt) {
            if send.told.seq <= self.acked_seq {
                send.told = turn.tell(send.told.fact.clone(), now, max_epoch);
                turn.changes
                    .push(Change::Told { attempt: attempt.clone(), told: send.told.clone() });
            }
            return true;
        }
        let Some(told) = known else { return false };
        if told.seq <= self.acked_seq {
            let told = turn.tell(told.fact, now, max_epoch);
            turn.changes.push(Change::Told { attempt: attempt.clone(), told });
        }
        true
    }

    fn see(&mut self, epoch: u64, turn: &mut Turn) {
        if self.gate.see(epoch) {
            turn.changes.push(Change::MaxEpoch(epoch));
        }
    }

    fn stop_by(&mut self, deadline_ms: i64, match_rows: bool, now: Now, turn: &mut Turn) {
        if self.lane == Lane::Probing {
            // Nothing is lost with a question.
            turn.effects.push(Effect::KillOsascript);
        }
        let deadline_ms = now.continuous_ms.saturating_add(deadline_ms);
        // The stricter of two orders holds.
        self.stop = Some(match self.stop {
            Some(held) => Stopping {
                deadline_ms: held.deadline_ms.min(deadline_ms),
                match_rows: held.match_rows && match_rows,
                killed: held.killed,
            },
            None => Stopping { deadline_ms, match_rows, killed: false },
        });
    }

    // ---- the queue and the lane -----------------------------------------------------------

    fn enqueue(&mut self, send: &SendRecord) {
        if let Some(work) = send.work() {
            self.accepted += 1;
            self.queue.insert((work.class.rank(), self.accepted), send.attempt.clone());
        }
    }

    fn dequeue(&mut self, attempt: &Attempt) {
        self.queue.retain(|_, queued| queued != attempt);
    }

    fn advance(&mut self, now: Now, turn: &mut Turn) {
        if self.lane != Lane::Idle || self.stop.is_some() || !self.usable {
            return;
        }
        let mut over = Vec::new();
        let mut next = None;
        for attempt in self.queue.values() {
            let Some(work) = self.sends.get(attempt).and_then(SendRecord::work) else { continue };
            match self.gate.ask(work.epoch, work.start_before, now) {
                Verdict::Start => {
                    next = Some((attempt.clone(), work));
                    break;
                }
                Verdict::Wait(_) => {}
                Verdict::Stale | Verdict::Expired => over.push(attempt.clone()),
            }
        }
        if let Some((attempt, work)) = next
            && self.pace.wait_ms(now.continuous_ms) == 0
            && let Some(channel) = work.channel()
        {
            turn.effects.push(Effect::Prepare {
                attempt: attempt.clone(),
                to: work.to.clone(),
                channel,
                text: work.text.clone(),
            });
            self.pace.take(now.continuous_ms);
            self.lane = Lane::Preparing { attempt };
        }
        for attempt in over {
            self.never(&attempt, now, turn);
        }
    }

    /// The gate says never.
    fn never(&mut self, attempt: &Attempt, now: Now, turn: &mut Turn) {
        let Some(work) = self.sends.get(attempt).and_then(SendRecord::work) else { return };
        let fact = match (&work.failed, self.gate.ask(work.epoch, work.start_before, now)) {
            (_, Verdict::Start | Verdict::Wait(_)) => return,
            // An earlier channel was tried and failed: that is what its sender should hear.
            (Some((channel, failure)), Verdict::Stale | Verdict::Expired) => {
                failure::failed(attempt, failure, Some(*channel))
            }
            (None, Verdict::Expired) => Fact::Expired(attempt.clone()),
            (None, Verdict::Stale) => Fact::Refused(AttemptReason {
                attempt: attempt.clone(),
                reason: Reason::StaleEpoch,
                detail: String::new(),
                retryable: true,
                channel: None,
            }),
        };
        self.finish(attempt, Some(fact), now, turn);
    }

    fn prepared(&mut self, attempt: Attempt, mark: i64, now: Now, turn: &mut Turn) {
        if self.lane != (Lane::Preparing { attempt: attempt.clone() }) {
            turn.effects.push(Effect::Abandon);
            return;
        }
        let stopping = self.stop.is_some();
        let waiting =
            |send: &&mut SendRecord| !stopping && matches!(send.phase(), Some(Phase::Accepted));
        let Some(send) = self.sends.get_mut(&attempt).filter(waiting) else {
            // Withdrawn in the meantime.
            self.lane = Lane::Ending;
            turn.effects.push(Effect::Abandon);
            return;
        };
        send.set_phase(Phase::Started { mark, at: now.wall });
        turn.changes.push(Change::Put(Box::new(send.clone())));
        turn.effects.push(Effect::Confirm { attempt: attempt.clone() });
        self.dequeue(&attempt);
        self.lane = Lane::Recording { attempt };
    }

    fn not_prepared(&mut self, attempt: &Attempt, why: NotPrepared, now: Now, turn: &mut Turn) {
        if self.lane != (Lane::Preparing { attempt: attempt.clone() }) {
            return;
        }
        self.lane = Lane::Idle;
        match why {
            NotPrepared::Failed(failure) => {
                self.dequeue(attempt);
                self.provably_failed(attempt, &failure, now, turn);
            }
            // It stays where it is in the queue, until the daemon says that it may go on.
            NotPrepared::Held => self.usable = false,
            NotPrepared::Orphan => self.await_orphan(now),
        }
    }

    fn await_orphan(&mut self, now: Now) {
        let until_ms = now.continuous_ms.saturating_add(self.policy.orphan_window_ms);
        self.lane = Lane::Orphan { until_ms };
    }

    /// `started` is on the disk. The gate is asked once more, with a fresh clock: between this
    /// and the write of the script there is nothing.
    fn recorded(&mut self, attempt: Attempt, now: Now, turn: &mut Turn) {
        if self.lane != (Lane::Recording { attempt: attempt.clone() }) {
            return;
        }
        let verdict = self
            .sends
            .get(&attempt)
            .and_then(SendRecord::work)
            .map(|work| self.gate.ask(work.epoch, work.start_before, now));
        if verdict == Some(Verdict::Start) && self.stop.is_none() {
            turn.effects.push(Effect::HandOver { attempt: attempt.clone() });
            self.lane = Lane::Handing { attempt };
            return;
        }
        // Provably not started: the child was given nothing.
        turn.effects.push(Effect::Abandon);
        self.lane = Lane::Ending;
        if let Some(send) = self.sends.get_mut(&attempt) {
            send.set_phase(Phase::Accepted);
            let send = send.clone();
            turn.changes.push(Change::Put(Box::new(send.clone())));
            self.enqueue(&send);
        }
        self.never(&attempt, now, turn);
    }

    fn handed_over(&mut self, attempt: Attempt, now: Now, turn: &mut Turn) {
        if self.lane != (Lane::Handing { attempt: attempt.clone() }) {
            return;
        }
        let max_epoch = self.gate.max_epoch();
        if let Some(send) = self.sends.get_mut(&attempt)
            && let Some(Phase::Started { mark, .. }) = send.phase().cloned()
            && let Some(channel) = send.work().and_then(Work::channel)
        {
            send.set_phase(Phase::Handed { mark, at: now.wall });
            send.told =
                turn.tell(Fact::Started { attempt: attempt.clone(), channel }, now, max_epoch);
            turn.changes.push(Change::Put(Box::new(send.clone())));
        }
        self.lane = Lane::Running { attempt, since_ms: now.continuous_ms };
    }

    /// The pipe was closed at the other end: osascript died before it had the script.
    fn not_handed_over(&mut self, attempt: &Attempt, now: Now, turn: &mut Turn) {
        if self.lane != (Lane::Handing { attempt: attempt.clone() }) {
            return;
        }
        self.lane = Lane::Ending;
        let failure = Failure {
            reason: Reason::ScriptFault,
            detail: "osascript ended before it took the script".to_owned(),
            retryable: true,
        };
        self.provably_failed(attempt, &failure, now, turn);
    }

    fn ended(&mut self, disposition: Disposition, now: Now, turn: &mut Turn) {
        let attempt = match std::mem::replace(&mut self.lane, Lane::Idle) {
            Lane::Running { attempt, .. } => attempt,
            Lane::Ending => return,
            other @ (Lane::Orphan { .. }
            | Lane::Idle
            | Lane::Preparing { .. }
            | Lane::Recording { .. }
            | Lane::Handing { .. }
            | Lane::Matching { .. }
            | Lane::Probing) => {
                self.lane = other;
                return;
            }
        };
        let handed = |send: &SendRecord| matches!(send.phase(), Some(Phase::Handed { .. }));
        if !self.sends.get(&attempt).is_some_and(handed) {
            // Its row was found while osascript still ran: that is the truth, whatever it says.
            if self.failing.contains_key(&attempt)
                && let Some(Phase::Found { rowid, .. }) =
                    self.sends.get(&attempt).and_then(SendRecord::phase)
            {
                turn.effects.push(Effect::ReadStates { rowids: vec![*rowid] });
            }
            return;
        }
        let (window_ms, reason, detail) = match disposition {
            Disposition::NotStarted(failure) => {
                self.provably_failed(&attempt, &failure, now, turn);
                return;
            }
            Disposition::Succeeded { .. } => {
                (self.policy.match_window_ms, Reason::NoEvidence, String::new())
            }
            Disposition::MayHaveCompleted(failure) => {
                (self.policy.settle_window_ms, failure.reason, failure.detail)
            }
        };
        self.settle(&attempt, now, reason, detail);
        turn.effects.extend(self.find(&attempt));
        self.lane =
            Lane::Matching { attempt, until_ms: now.continuous_ms.saturating_add(window_ms) };
    }

    /// It was not sent, and that is proven: the next channel, or the end. Once `unknown` was told,
    /// somebody may have acted on it: then the proof is told, and nothing follows from it here or
    /// elsewhere.
    fn provably_failed(&mut self, attempt: &Attempt, failure: &Failure, now: Now, turn: &mut Turn) {
        self.forget_traces(attempt);
        let Some(send) = self.sends.get_mut(attempt) else { return };
        let doubted = match send.phase() {
            Some(Phase::Doubt { .. } | Phase::Found { told_unknown: true, .. }) => true,
            Some(
                Phase::Accepted
                | Phase::Started { .. }
                | Phase::Handed { .. }
                | Phase::Found { told_unknown: false, .. },
            )
            | None => false,
        };
        let failure = &Failure { retryable: failure.retryable && !doubted, ..failure.clone() };
        let Some(work) = send.work() else { return };
        let from = work.channel();
        let next = work.route.get(work.index.saturating_add(1)).copied();
        let walks_on = !doubted && failure::walks_on(failure.reason);
        if let (Some(from), Some(to), true) = (from, next, walks_on) {
            send.next_channel(from, failure.clone());
            let fact = Fact::Fallback {
                attempt: attempt.clone(),
                from,
                to,
                reason: failure.reason,
                detail: failure.detail.clone(),
            };
            send.told = turn.tell(fact, now, self.gate.max_epoch());
            turn.changes.push(Change::Put(Box::new(send.clone())));
            let send = send.clone();
            self.enqueue(&send);
            return;
        }
        self.finish(attempt, Some(failure::failed(attempt, failure, from)), now, turn);
    }

    // ---- settling -------------------------------------------------------------------------

    fn settle(&mut self, attempt: &Attempt, now: Now, reason: Reason, detail: String) {
        let until_ms = now.continuous_ms.saturating_add(self.policy.settle_window_ms);
        self.settling.insert(attempt.clone(), Settling { until_ms, reason, detail, ghost: false });
    }

    /// The orphan is gone: what it did is in chat.db from now on.
    fn resettle(&mut self, now: Now) {
        for settling in self.settling.values_mut() {
            settling.until_ms = now.continuous_ms.saturating_add(self.policy.settle_window_ms);
        }
    }

    fn find(&self, attempt: &Attempt) -> Option<Effect> {
        let send = self.sends.get(attempt)?;
        let work = send.work()?;
        let mark = match send.phase()? {
            Phase::Started { mark, .. }
            | Phase::Handed { mark, .. }
            | Phase::Doubt { mark, .. } => *mark,
            Phase::Accepted | Phase::Found { .. } => return None,
        };
        Some(Self::find_above(attempt, work, mark))
    }

    fn find_above(attempt: &Attempt, work: &Work, mark: i64) -> Effect {
        Effect::Find {
            attempt: attempt.clone(),
            mark,
            since: work.accepted_at.plus_ms(-DATE_SLACK_MS),
            to: work.to.clone(),
            text: work.text.clone(),
        }
    }

    /// Looks for the rows of everything that has none.
    fn look(&mut self, now: Now, turn: &mut Turn) {
        // The one in the lane first: a row belongs to the newest send that it fits, and an older
        // doubt about the same words takes what is left.
        let mut attempts: Vec<Attempt> = match &self.lane {
            Lane::Running { attempt, .. } | Lane::Matching { attempt, .. } => vec![attempt.clone()],
            // What the orphan does is not done yet.
            Lane::Orphan { until_ms } if now.continuous_ms < *until_ms => return,
            Lane::Orphan { .. }
            | Lane::Idle
            | Lane::Preparing { .. }
            | Lane::Recording { .. }
            | Lane::Handing { .. }
            | Lane::Ending
            | Lane::Probing => Vec::new(),
        };
        for attempt in self.settling.keys() {
            if !attempts.contains(attempt) {
                attempts.push(attempt.clone());
            }
        }
        let due = self.doubts.iter().filter(|(_, at)| **at <= now.continuous_ms);
        attempts.extend(due.map(|(attempt, _)| attempt.clone()).take(LOOKS_A_TURN));
        for attempt in attempts {
            if let Some(next) = self.doubts.get_mut(&attempt)
                && let Some(Phase::Doubt { at, .. }) =
                    self.sends.get(&attempt).and_then(SendRecord::phase)
            {
                let age = now.wall.since(*at).max(0);
                *next = now.continuous_ms.saturating_add(age / LOOK_BACKOFF);
            }
            turn.effects.extend(self.find(&attempt));
        }
    }

    fn rows_found(&mut self, attempt: &Attempt, rows: &[RowState], now: Now, turn: &mut Turn) {
        let Some(send) = self.sends.get(attempt) else { return };
        let (Some(work), Some(phase)) = (send.work(), send.phase()) else { return };
        let contested = self.is_contested(attempt, work, phase);
        let free = |row: &&RowState| !row.ghost && !self.claimed.contains(&row.guid);
        let certain = rows.iter().filter(free).find(|row| row.certain).cloned();
        match phase {
            Phase::Accepted => {}
            Phase::Found { .. } => {
                if !contested {
                    let good = |row: &&RowState| row.certain && (row.error == 0 || row.is_sent);
                    let other = rows.iter().filter(free).find(good).cloned();
                    self.believe_failure(attempt, other, now, turn);
                }
            }
            Phase::Started { .. } | Phase::Handed { .. } | Phase::Doubt { .. } => {
                let is_over = self
                    .settling
                    .get(attempt)
                    .is_some_and(|settling| now.continuous_ms >= settling.until_ms);
                // A row whose join does not come is better than none, but only at the end: in its
                // first moments anybody's row looks like that.
                let found = certain
                    .or_else(|| rows.iter().filter(free).find(|_| is_over).cloned())
                    .filter(|_| !contested);
                if let Some(row) = found {
                    self.adopt(attempt, &row, now, turn);
                    return;
                }
                let ghost = rows.iter().any(|row| row.ghost);
                if let Some(settling) = self.settling.get_mut(attempt) {
                    settling.ghost |= ghost;
                    if is_over && !contested {
                        self.tell_doubt(attempt, now, turn);
                    }
                }
            }
        }
    }

    /// Whether another send of the same words to the same recipient has the better right to a new
    /// row: the one in the lane, one whose row has failed and may have been followed by another,
    /// and, where this one is in doubt already, one that is not.
    fn is_contested(&self, attempt: &Attempt, work: &Work, phase: &Phase) -> bool {
        let is_twin = |other: &Attempt| {
            let other = self.sends.get(other).and_then(SendRecord::work);
            other.is_some_and(|other| other.to == work.to && other.text == work.text)
        };
        let lane = !self.in_lane(attempt)
            && self.lane_work().is_some_and(|other| other.to == work.to && other.text == work.text);
        let is_doubt = matches!(phase, Phase::Doubt { .. });
        let mut waiting = self.failing.keys().chain(self.settling.keys());
        lane || (is_doubt && waiting.any(|other| other != attempt && is_twin(other)))
    }

    /// Its row has failed, and this is another row that fits and has not, if there is one. Messages may
    /// have sent the text again as SMS under a new row, or the failed row was that of an earlier
    /// send with the same words: then a second try would be one too many.
    fn believe_failure(
        &mut self,
        attempt: &Attempt,
        other: Option<RowState>,
        now: Now,
        turn: &mut Turn,
    ) {
        let ripe = |failing: &&Failing| failing.ripe;
        let Some(failing) = self.failing.get(attempt).filter(ripe) else { return };
        let failure = failing.failure.clone();
        if let Some(row) = other {
            self.failing.remove(attempt);
            if let Some(Phase::Found { rowid, .. }) =
                self.sends.get(attempt).and_then(SendRecord::phase)
            {
                let rowid = *rowid;
                self.rows.remove(&rowid);
            }
            self.adopt(attempt, &row, now, turn);
            return;
        }
        self.provably_failed(attempt, &failure, now, turn);
    }

    fn in_lane(&self, attempt: &Attempt) -> bool {
        self.lane_attempt() == Some(attempt)
    }

    fn lane_attempt(&self) -> Option<&Attempt> {
        match &self.lane {
            Lane::Preparing { attempt }
            | Lane::Recording { attempt }
            | Lane::Handing { attempt }
            | Lane::Running { attempt, .. }
            | Lane::Matching { attempt, .. } => Some(attempt),
            Lane::Orphan { .. } | Lane::Idle | Lane::Ending | Lane::Probing => None,
        }
    }

    fn lane_work(&self) -> Option<&Work> {
        let send = self.sends.get(self.lane_attempt()?)?;
        match send.phase()? {
            Phase::Started { .. } | Phase::Handed { .. } => send.work(),
            Phase::Accepted | Phase::Doubt { .. } | Phase::Found { .. } => None,
        }
    }

    fn adopt(&mut self, attempt: &Attempt, row: &RowState, now: Now, turn: &mut Turn) {
        self.settling.remove(attempt);
        let was_doubt = self.doubts.remove(attempt).is_some();
        let Some(send) = self.sends.get_mut(attempt) else { return };
        let told_unknown =
            was_doubt || matches!(send.phase(), Some(Phase::Found { told_unknown: true, .. }));
        send.set_phase(Phase::Found {
            rowid: row.rowid,
            guid: row.guid.clone(),
            at: now.wall,
            stage: Stage::Pending,
            told_unknown,
        });
        turn.changes.push(Change::Put(Box::new(send.clone())));
        turn.changes.push(Change::Claim { guid: row.guid.clone() });
        self.claimed.insert(row.guid.clone());
        self.rows.insert(row.rowid, attempt.clone());
        if matches!(&self.lane, Lane::Matching { attempt: matching, .. } if matching == attempt) {
            self.lane = Lane::Idle;
        }
        self.observe(attempt, row, now, turn);
    }

    fn tell_doubt(&mut self, attempt: &Attempt, now: Now, turn: &mut Turn) {
        let Some(settling) = self.settling.remove(attempt) else { return };
        let Some(send) = self.sends.get_mut(attempt) else { return };
        let (Some(Phase::Started { mark, .. } | Phase::Handed { mark, .. }), channel) =
            (send.phase().cloned(), send.work().and_then(Work::channel))
        else {
            return;
        };
        let fact = Fact::Unknown(AttemptReason {
            attempt: attempt.clone(),
            reason: if settling.ghost { Reason::GhostRow } else { settling.reason },
            detail: settling.detail,
            retryable: false,
            channel,
        });
        send.set_phase(Phase::Doubt { mark, at: now.wall });
        send.told = turn.tell(fact, now, self.gate.max_epoch());
        turn.changes.push(Change::Put(Box::new(send.clone())));
        self.doubts.insert(attempt.clone(), now.continuous_ms);
        if matches!(&self.lane, Lane::Matching { attempt: matching, .. } if matching == attempt) {
            self.lane = Lane::Idle;
        }
    }

    // ---- tracking -------------------------------------------------------------------------

    fn read_states(&mut self, now: Now, turn: &mut Turn) {
        if self.rows.is_empty() {
            return;
        }
        let mut rowids = Vec::new();
        let mut cold = Vec::new();
        // Young rows stand at the end: the walk stops at the first old one, and at what one turn
        // may read.
        for (rowid, attempt) in self.rows.iter().rev().take(HOT_ROWS_A_TURN) {
            let young = |phase: &Phase| matches!(phase, Phase::Found { at, .. } if now.wall.since(*at) < HOT_MS);
            if !self.sends.get(attempt).and_then(SendRecord::phase).is_some_and(young) {
                break;
            }
            rowids.push(*rowid);
        }
        for rowid in self.rows.range(self.cold_from..).map(|(rowid, _)| *rowid) {
            if cold.len() >= COLD_ROWS_A_TURN {
                break;
            }
            cold.push(rowid);
        }
        self.cold_from = match cold.last() {
            Some(last) if cold.len() >= COLD_ROWS_A_TURN => last.saturating_add(1),
            Some(_) | None => 0,
        };
        rowids.extend(cold);
        rowids.sort_unstable();
        rowids.dedup();
        turn.effects.push(Effect::ReadStates { rowids });
    }

    /// What chat.db says about a row that belongs to a send.
    fn observe(&mut self, attempt: &Attempt, row: &RowState, now: Now, turn: &mut Turn) {
        let max_epoch = self.gate.max_epoch();
        let Some(send) = self.sends.get_mut(attempt) else { return };
        let Some(Phase::Found { rowid, guid, at, stage, told_unknown }) = send.phase().cloned()
        else {
            return;
        };
        if row.guid != guid {
            // The file was replaced: the same number, another row.
            return;
        }
        let Some(work) = send.work().cloned() else { return };
        let asked = work.channel();
        let channel = row.channel.or(asked).unwrap_or(Channel::Imessage);
        let is_group = matches!(work.to, Recipient::Group(_));

        if row.error != 0 && !row.is_sent {
            let mut failure = failure::of_row(row.error);
            if stage != Stage::Pending {
                // It was told as sent: no second try may follow from this.
                failure.retryable = false;
                let fact = failure::failed(attempt, &failure, Some(channel));
                self.finish(attempt, Some(fact), now, turn);
                return;
            }
            let grace_ms =
                if failure.reason == Reason::NotRegistered { NOT_REGISTERED_GRACE_MS } else { 0 };
            let failing = self.failing.entry(attempt.clone()).or_insert_with(|| Failing {
                since_ms: now.continuous_ms,
                failure: failure.clone(),
                ripe: false,
            });
            failing.failure = failure;
            let is_old = now.continuous_ms.saturating_sub(failing.since_ms) >= grace_ms;
            let runs =
                matches!(&self.lane, Lane::Running { attempt: running, .. } if running == attempt);
            // While osascript still runs, Messages is not done with it.
            if is_old && !runs {
                failing.ripe = true;
                // Another row may be the truth.
                turn.effects.push(Self::find_above(attempt, &work, rowid));
            }
            return;
        }
        self.failing.remove(attempt);

        let delivered = row.delivered && !is_group && channel != Channel::Sms;
        let read = row.read_at.filter(|_| !is_group && channel != Channel::Sms);
        let mut reached = stage;
        let mut facts = Vec::new();
        if stage == Stage::Pending && (row.is_sent || delivered || read.is_some()) {
            reached = Stage::Sent;
            facts.push(Fact::Sent { attempt: attempt.clone(), channel, guid: guid.clone() });
        }
        let receipt = |at: Option<UnixMs>| Receipt {
            attempt: attempt.clone(),
            guid: guid.clone(),
            at: at.unwrap_or(now.wall),
        };
        if reached == Stage::Sent && (delivered || read.is_some()) {
            reached = Stage::Delivered;
            facts.push(Fact::Delivered(receipt(row.delivered_at.or(read))));
        }
        if read.is_some() {
            facts.push(Fact::Read(receipt(read)));
        }
        // Messages may have downgraded it: then no receipt will ever come.
        let over =
            read.is_some() || (reached != Stage::Pending && (is_group || channel == Channel::Sms));
        if facts.is_empty() && !over {
            return;
        }
        for fact in facts {
            send.told = turn.tell(fact, now, max_epoch);
        }
        if over {
            self.finish(attempt, None, now, turn);
        } else {
            send.set_phase(Phase::Found { rowid, guid, at, stage: reached, told_unknown });
            turn.changes.push(Change::Put(Box::new(send.clone())));
        }
    }

    // ---- time -----------------------------------------------------------------------------

    fn tick(&mut self, now: Now, turn: &mut Turn) {
        if let Lane::Orphan { until_ms } = self.lane {
            if now.continuous_ms >= until_ms {
                let force = now.continuous_ms >= until_ms.saturating_add(ORPHAN_GRACE_MS);
                turn.effects.push(Effect::EndOrphan { force });
            }
            turn.effects.push(Effect::CheckOrphan);
        }
        if let Lane::Matching { until_ms, .. } = self.lane
            && now.continuous_ms >= until_ms
        {
            // It goes on settling in the background; the next may start.
            self.lane = Lane::Idle;
        }
        if let Some(stop) = &mut self.stop
            && now.continuous_ms >= stop.deadline_ms
            && !stop.killed
        {
            stop.killed = true;
            turn.effects.push(Effect::KillOsascript);
        }
        let waiting: Vec<Attempt> = self.queue.values().cloned().collect();
        for attempt in waiting {
            let is_preparing = matches!(&self.lane, Lane::Preparing { attempt: preparing } if *preparing == attempt);
            if !is_preparing {
                self.never(&attempt, now, turn);
            }
        }
        self.look(now, turn);
        let blind: Vec<Attempt> = self
            .settling
            .iter()
            .filter(|(_, settling)| {
                now.continuous_ms >= settling.until_ms.saturating_add(BLIND_GRACE_MS)
            })
            .map(|(attempt, _)| attempt.clone())
            .collect();
        for attempt in blind {
            self.tell_doubt(&attempt, now, turn);
        }
        self.tick_tracked(now, turn);
    }

    fn tick_tracked(&mut self, now: Now, turn: &mut Turn) {
        let mut unconfirmed = Vec::new();
        let mut old = Vec::new();
        for (attempt, send) in &self.sends {
            match send.phase() {
                Some(Phase::Found { at, stage, told_unknown, .. }) => {
                    let age = now.wall.since(*at);
                    if age >= TRACK_MS {
                        old.push(attempt.clone());
                    } else if *stage == Stage::Pending
                        && !told_unknown
                        && age >= self.policy.sent_window_ms
                    {
                        unconfirmed.push(attempt.clone());
                    }
                }
                Some(Phase::Doubt { at, .. }) if now.wall.since(*at) >= TRACK_MS => {
                    old.push(attempt.clone());
                }
                Some(
                    Phase::Accepted
                    | Phase::Started { .. }
                    | Phase::Handed { .. }
                    | Phase::Doubt { .. },
                )
                | None => {}
            }
        }
        for attempt in old {
            self.finish(&attempt, None, now, turn);
        }
        for attempt in unconfirmed {
            self.unconfirmed(&attempt, now, turn);
        }
        if !self.failing.is_empty() {
            let rowids = self
                .failing
                .keys()
                .filter_map(|attempt| match self.sends.get(attempt).and_then(SendRecord::phase) {
                    Some(Phase::Found { rowid, .. }) => Some(*rowid),
                    Some(
                        Phase::Accepted
                        | Phase::Started { .. }
                        | Phase::Handed { .. }
                        | Phase::Doubt { .. },
                    )
                    | None => None,
                })
                .collect();
            turn.effects.push(Effect::ReadStates { rowids });
        }
    }

    /// The row has been neither sent nor failed for too long.
    fn unconfirmed(&mut self, attempt: &Attempt, now: Now, turn: &mut Turn) {
        let max_epoch = self.gate.max_epoch();
        let Some(send) = self.sends.get_mut(attempt) else { return };
        let channel = send.work().and_then(Work::channel);
        let Some(Phase::Found { rowid, guid, at, stage, .. }) = send.phase().cloned() else {
            return;
        };
        send.set_phase(Phase::Found { rowid, guid, at, stage, told_unknown: true });
        let fact = Fact::Unknown(AttemptReason {
            attempt: attempt.clone(),
            reason: Reason::NotConfirmed,
            detail: String::new(),
            retryable: false,
            channel,
        });
        send.told = turn.tell(fact, now, max_epoch);
        turn.changes.push(Change::Put(Box::new(send.clone())));
    }

    // ---- the end of a send ----------------------------------------------------------------

    fn forget_traces(&mut self, attempt: &Attempt) {
        self.settling.remove(attempt);
        self.doubts.remove(attempt);
        self.failing.remove(attempt);
        if let Some(Phase::Found { rowid, .. }) =
            self.sends.get(attempt).and_then(SendRecord::phase)
        {
            // No longer tracked; claimed it stays, so that another send with the same words cannot
            // take it for its own.
            let rowid = *rowid;
            self.rows.remove(&rowid);
        }
        if matches!(&self.lane, Lane::Matching { attempt: matching, .. } if matching == attempt) {
            self.lane = Lane::Idle;
        }
    }

    fn finish(&mut self, attempt: &Attempt, fact: Option<Fact>, now: Now, turn: &mut Turn) {
        self.dequeue(attempt);
        self.forget_traces(attempt);
        let max_epoch = self.gate.max_epoch();
        let Some(send) = self.sends.get_mut(attempt) else { return };
        if let Some(fact) = fact {
            send.told = turn.tell(fact, now, max_epoch);
        }
        send.finish(now.wall);
        self.over = true;
        turn.changes.push(Change::Put(Box::new(send.clone())));
    }

    fn finish_new(&mut self, attempt: Attempt, fact: Fact, now: Now, turn: &mut Turn) {
        let told = turn.tell(fact, now, self.gate.max_epoch());
        let record = SendRecord::finished(attempt.clone(), told, now.wall);
        self.over = true;
        turn.changes.push(Change::Put(Box::new(record.clone())));
        self.sends.insert(attempt, record);
    }
}
