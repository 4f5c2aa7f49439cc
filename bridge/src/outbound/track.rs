//! Tracking: what becomes of a row that was found, and what time alone decides.

use protocol::pipe::{Attempt, AttemptReason, Event as Fact, Receipt};
use protocol::{Channel, Reason, Recipient, UnixMs};

use super::{
    BLIND_GRACE_MS, Change, Effect, Failing, Lane, ORPHAN_GRACE_MS, Outbound, Phase, RowState,
    SendRecord, Stage, TRACK_MS, Turn, Work, failure,
};
use crate::clock::Now;

/// A row that says "not registered" must say so for this long: Messages itself may turn such a
/// row into an SMS in the meantime, and then ours would be the second one.
const NOT_REGISTERED_GRACE_MS: i64 = 1_000;

/// Rows whose state is read again on every change: the young ones.
const HOT_MS: i64 = 2 * 60 * 1000;

/// Young rows read again in one turn.
const HOT_ROWS_A_TURN: usize = 1_024;

/// Older rows read again in one turn, in rotation, so that a turn stays short however many wait
/// for a receipt.
const COLD_ROWS_A_TURN: usize = 256;

impl Outbound {
    pub(super) fn read_states(&mut self, now: Now, turn: &mut Turn) {
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
    pub(super) fn observe(&mut self, attempt: &Attempt, row: &RowState, now: Now, turn: &mut Turn) {
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
                turn.effects.extend(Self::find_above(attempt, &work, rowid));
            }
            return;
        }
        self.failing.remove(attempt);
        if !work.is_last() {
            // Only what is sent for certain is followed by the next part.
            if row.is_sent || row.delivered || row.read_at.is_some() {
                self.part_sent(attempt, told_unknown, now, turn);
            }
            return;
        }

        let receipt = row.delivered_at.is_some() || (row.delivered && !work.is_anothers());
        let delivered = receipt && !is_group && channel != Channel::Sms;
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

    pub(super) fn tick(&mut self, now: Now, turn: &mut Turn) {
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

    pub(super) fn tick_tracked(&mut self, now: Now, turn: &mut Turn) {
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
    pub(super) fn unconfirmed(&mut self, attempt: &Attempt, now: Now, turn: &mut Turn) {
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
}
