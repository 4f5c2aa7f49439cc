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
mod intake;
mod lane;
mod model;
mod parts;
mod renumber;
mod seek;
mod settle;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod tests;
mod track;

use std::collections::{BTreeMap, BTreeSet};

use protocol::pipe::{Attempt, Event as Fact};
use protocol::{Channel, Reason};

use crate::clock::Now;
use crate::config::{Config, Pacing};
use crate::gate::Gate;
use crate::osascript::Failure;
use crate::pacing::Pace;

pub(crate) use model::{
    Body, Change, Content, Dated, Effect, Event, NotPrepared, Phase, RowState, SendRecord, Stage,
    Told, Turn, Wanted, Work,
};

/// Sends waiting for their turn. At one a second this is a quarter of an hour, longer than any
/// `start_before` that a router gives; more would only expire here.
pub(crate) const QUEUE_MAX: usize = 1_000;

/// How long what became of a send is still looked for: receipts, and rows of sends in doubt.
const TRACK_MS: i64 = 48 * 60 * 60 * 1000;

/// An orphan past its deadline is asked to end first; after this long it is made to.
const ORPHAN_GRACE_MS: i64 = 1_000;

/// When chat.db cannot be read, a send in doubt waits this much longer for it before the doubt
/// is told all the same.
const BLIND_GRACE_MS: i64 = 60_000;

/// What of the configuration matters here.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) channels: Vec<Channel>,
    pub(crate) match_window_ms: i64,
    pub(crate) settle_window_ms: i64,
    pub(crate) sent_window_ms: i64,
    pub(crate) orphan_window_ms: i64,
    pub(crate) pacing: Pacing,
    /// Whether files may come from private addresses.
    pub(crate) allow_private: bool,
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
            allow_private: config.attachments.allow_private,
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

/// A place in the queue: the class's rank, what has not begun after what has, the order of acceptance.
type Place = (u8, bool, u64);

/// Everything that is not final, and the lane.
#[derive(Debug)]
pub(crate) struct Outbound {
    policy: Policy,
    gate: Gate,
    pace: Pace,
    lane: Lane,
    sends: BTreeMap<Attempt, SendRecord>,
    /// What starts next.
    queue: BTreeMap<Place, Attempt>,
    accepted: u64,
    /// Sends of more than one part.
    several: BTreeSet<Attempt>,
    /// Sends whose files are being fetched.
    fetching: BTreeSet<Attempt>,
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
            several: BTreeSet::new(),
            fetching: BTreeSet::new(),
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
            outbound.note_parts(&send);
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
            Event::Seek { seek, known } => self.seek(*seek, known, now, turn),
            Event::Sought { seek, rows, missing } => self.sought(&seek, rows, missing, now, turn),
            Event::Lease { epoch, ttl_ms, issued_ms } => {
                self.see(epoch, turn);
                if let Err(bad) = self.gate.grant(epoch, ttl_ms, issued_ms, now) {
                    tracing::warn!(epoch, ttl_ms, ?bad, "lease not taken");
                }
            }
            Event::Revoke { epoch } => self.gate.revoke(epoch),
            Event::Release { epoch } => self.release(epoch, now, turn),
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
            Event::Fetched { attempt, files } => self.fetched(&attempt, files, now, turn),
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
            Event::Renumbered(found) => self.renumbered(&found, turn),
            Event::DatabaseChanged => {
                self.look(now, turn);
                self.read_states(now, turn);
            }
            Event::Drain { deadline_ms } => self.stop_by(deadline_ms, true, now, turn),
            Event::Stop { deadline_ms } => self.stop_by(deadline_ms, false, now, turn),
            Event::Tick => self.tick(now, turn),
        }
        self.advance(now, turn);
        self.fetch(turn);
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

    /// Whether nothing is under way that time alone would move.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_idle() && self.sends.is_empty()
    }

    /// Whether no script of a send runs or can still begin by what was decided before. An earlier bridge's orphan
    /// counts: it may be handing something over.
    pub(crate) fn hands_nothing(&self) -> bool {
        match self.lane {
            Lane::Idle | Lane::Probing | Lane::Matching { .. } => true,
            Lane::Preparing { .. }
            | Lane::Recording { .. }
            | Lane::Handing { .. }
            | Lane::Running { .. }
            | Lane::Ending
            | Lane::Orphan { .. } => false,
        }
    }

    /// Whether it was told to end, and may.
    pub(crate) fn is_done(&self) -> bool {
        let Some(stop) = self.stop else { return false };
        match self.lane {
            Lane::Idle | Lane::Orphan { .. } => !self.finishes_parts() || !self.has_begun_parts(),
            Lane::Matching { .. } => !stop.match_rows || stop.killed,
            Lane::Preparing { .. }
            | Lane::Recording { .. }
            | Lane::Handing { .. }
            | Lane::Running { .. }
            | Lane::Ending
            | Lane::Probing => false,
        }
    }

    /// Whether the row of this guid belongs to one of our sends.
    pub(crate) fn has_claimed(&self, guid: &str) -> bool {
        self.claimed.contains(guid)
    }

    /// Those that have files, and are not over.
    pub(crate) fn with_files(&self) -> impl Iterator<Item = &Attempt> {
        self.sends
            .iter()
            .filter(|(_, send)| send.work().is_some_and(|work| !work.files.is_empty()))
            .map(|(attempt, _)| attempt)
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
        let between = |attempt: &&Attempt| self.is_between_parts(attempt);
        let between = self.several.iter().filter(between).count();
        self.sends.values().filter(pending).count().saturating_add(between)
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
            let place = (work.class.rank(), work.done == 0, self.accepted);
            self.queue.insert(place, send.attempt.clone());
        }
    }

    fn dequeue(&mut self, attempt: &Attempt) {
        self.queue.retain(|_, queued| queued != attempt);
    }

    fn forget_traces(&mut self, attempt: &Attempt) {
        self.settling.remove(attempt);
        self.doubts.remove(attempt);
        self.failing.remove(attempt);
        // No longer tracked; claimed it stays, so that another send with the same words cannot take it
        // for its own.
        self.untrack(attempt);
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
        self.several.remove(attempt);
        if self.fetching.remove(attempt) {
            turn.effects.push(Effect::StopFetch { attempt: attempt.clone() });
        }
    }

    fn finish_new(&mut self, attempt: Attempt, fact: Fact, now: Now, turn: &mut Turn) {
        let told = turn.tell(fact, now, self.gate.max_epoch());
        let record = SendRecord::finished(attempt.clone(), told, now.wall);
        self.over = true;
        turn.changes.push(Change::Put(Box::new(record.clone())));
        self.sends.insert(attempt, record);
    }
}
