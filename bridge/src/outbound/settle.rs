//! Settling: which row of chat.db is which send's, and when doubt is told.

use protocol::Reason;
use protocol::pipe::{Attempt, AttemptReason, Event as Fact};

use super::{
    Change, Effect, Failing, Lane, Outbound, Phase, RowState, SendRecord, Settling, Stage, Turn,
    Work,
};
use crate::clock::Now;

/// Rows dated this much before their send was accepted are others': iCloud puts old messages in
/// with new numbers, and a rebuilt database numbers all anew, so that the same words of last week
/// may stand above the mark. The slack is for a wall clock that is set back meanwhile.
const DATE_SLACK_MS: i64 = 2 * 60 * 1000;

/// Sends in doubt looked for in one turn.
const LOOKS_A_TURN: usize = 16;

/// An age divided by this is the pause between two looks for a send in doubt.
const LOOK_BACKOFF: i64 = 8;

impl Outbound {
    pub(super) fn settle(&mut self, attempt: &Attempt, now: Now, reason: Reason, detail: String) {
        let until_ms = now.continuous_ms.saturating_add(self.policy.settle_window_ms);
        self.settling.insert(attempt.clone(), Settling { until_ms, reason, detail, ghost: false });
    }

    /// The orphan is gone: what it did is in chat.db from now on.
    pub(super) fn resettle(&mut self, now: Now) {
        for settling in self.settling.values_mut() {
            settling.until_ms = now.continuous_ms.saturating_add(self.policy.settle_window_ms);
        }
    }

    pub(super) fn find(&self, attempt: &Attempt) -> Option<Effect> {
        let send = self.sends.get(attempt)?;
        let work = send.work()?;
        let mark = match send.phase()? {
            Phase::Started { mark, .. }
            | Phase::Handed { mark, .. }
            | Phase::Doubt { mark, .. } => *mark,
            Phase::Accepted | Phase::Found { .. } => return None,
        };
        Self::find_above(attempt, work, mark)
    }

    pub(super) fn find_above(attempt: &Attempt, work: &Work, mark: i64) -> Option<Effect> {
        Some(Effect::Find {
            attempt: attempt.clone(),
            mark,
            since: work.accepted_at.plus_ms(-DATE_SLACK_MS),
            to: work.to.clone(),
            content: work.content()?,
        })
    }

    /// Looks for the rows of everything that has none.
    pub(super) fn look(&mut self, now: Now, turn: &mut Turn) {
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

    pub(super) fn rows_found(
        &mut self,
        attempt: &Attempt,
        rows: &[RowState],
        now: Now,
        turn: &mut Turn,
    ) {
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
        let is_twin = |other: &Work| other.is_twin_of(work);
        (!self.in_lane(attempt) && self.lane_work().is_some_and(is_twin))
            || (matches!(phase, Phase::Doubt { .. }) && self.has_unsettled_twin(attempt, work))
    }

    /// Its row has failed, and this is another row that fits and has not, if there is one. Messages may
    /// have sent the text again as SMS under a new row, or the failed row was that of an earlier
    /// send with the same words: then a second try would be one too many.
    pub(super) fn believe_failure(
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
            self.untrack(attempt);
            self.adopt(attempt, &row, now, turn);
            return;
        }
        self.provably_failed(attempt, &failure, now, turn);
    }

    pub(super) fn in_lane(&self, attempt: &Attempt) -> bool {
        self.lane_attempt() == Some(attempt)
    }

    pub(super) fn lane_attempt(&self) -> Option<&Attempt> {
        match &self.lane {
            Lane::Preparing { attempt }
            | Lane::Recording { attempt }
            | Lane::Handing { attempt }
            | Lane::Running { attempt, .. }
            | Lane::Matching { attempt, .. } => Some(attempt),
            Lane::Orphan { .. } | Lane::Idle | Lane::Ending | Lane::Probing => None,
        }
    }

    pub(super) fn lane_work(&self) -> Option<&Work> {
        let send = self.sends.get(self.lane_attempt()?)?;
        match send.phase()? {
            Phase::Started { .. } | Phase::Handed { .. } => send.work(),
            Phase::Accepted | Phase::Doubt { .. } | Phase::Found { .. } => None,
        }
    }

    pub(super) fn adopt(&mut self, attempt: &Attempt, row: &RowState, now: Now, turn: &mut Turn) {
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

    pub(super) fn tell_doubt(&mut self, attempt: &Attempt, now: Now, turn: &mut Turn) {
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
}
