//! The lane: one osascript at a time, from the next send in the queue to what its end proves.

use protocol::Reason;
use protocol::pipe::{Attempt, AttemptReason, Event as Fact};

use super::{Change, Effect, Lane, NotPrepared, Outbound, Phase, SendRecord, Turn, Work, failure};
use crate::clock::Now;
use crate::gate::Verdict;
use crate::osascript::{Disposition, Failure};

impl Outbound {
    pub(super) fn advance(&mut self, now: Now, turn: &mut Turn) {
        if self.lane != Lane::Idle || !self.usable {
            return;
        }
        if self.stop.is_some() && !self.finishes_parts() {
            return;
        }
        let mut over = Vec::new();
        let mut next = None;
        for attempt in self.queue.values() {
            let Some(work) = self.sends.get(attempt).and_then(SendRecord::work) else { continue };
            match self.gate.ask(work.epoch, work.start_before, now) {
                Verdict::Start if self.may_begin(attempt, work) => {
                    next = Some((attempt.clone(), work));
                    break;
                }
                Verdict::Start | Verdict::Wait(_) => {}
                Verdict::Stale | Verdict::Expired => over.push(attempt.clone()),
            }
        }
        if let Some((attempt, work)) = next
            && self.pace.wait_ms(now.continuous_ms) == 0
            && let Some(channel) = work.channel()
            && let Some(content) = work.content()
        {
            turn.effects.push(Effect::Prepare {
                attempt: attempt.clone(),
                to: work.to.clone(),
                channel,
                content,
            });
            self.pace.take(now.continuous_ms);
            self.lane = Lane::Preparing { attempt };
        }
        for attempt in over {
            self.never(&attempt, now, turn);
        }
    }

    /// The gate is closed, also for a lease that is newer than what a router with an old store asks to be released: the
    /// other host may send as soon as this one has said so. The queue is given back at once, also while Messages cannot be
    /// used; what is being started meets the closed gate by itself.
    pub(super) fn release(&mut self, epoch: u64, now: Now, turn: &mut Turn) {
        self.see(epoch, turn);
        self.gate.close();
        let waiting: Vec<Attempt> = self.queue.values().cloned().collect();
        for attempt in waiting {
            self.never(&attempt, now, turn);
        }
    }

    /// The gate says never.
    pub(super) fn never(&mut self, attempt: &Attempt, now: Now, turn: &mut Turn) {
        let Some(work) = self.sends.get(attempt).and_then(SendRecord::work) else { return };
        if work.done > 0 {
            let why = match self.gate.ask(work.epoch, work.start_before, now) {
                Verdict::Start | Verdict::Wait(_) => return,
                Verdict::Stale => Reason::StaleEpoch,
                Verdict::Expired => Reason::Expired,
            };
            let failure = failure::partly(work, why, "");
            let fact = failure::failed(attempt, &failure, work.channel());
            self.finish(attempt, Some(fact), now, turn);
            return;
        }
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

    pub(super) fn prepared(&mut self, attempt: Attempt, mark: i64, now: Now, turn: &mut Turn) {
        if self.lane != (Lane::Preparing { attempt: attempt.clone() }) {
            turn.effects.push(Effect::Abandon);
            return;
        }
        let stopping = !self.may_go_on(&attempt);
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

    pub(super) fn not_prepared(
        &mut self,
        attempt: &Attempt,
        why: NotPrepared,
        now: Now,
        turn: &mut Turn,
    ) {
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

    pub(super) fn await_orphan(&mut self, now: Now) {
        let until_ms = now.continuous_ms.saturating_add(self.policy.orphan_window_ms);
        self.lane = Lane::Orphan { until_ms };
    }

    /// `started` is on the disk. The gate is asked once more, with a fresh clock: between this
    /// and the write of the script there is nothing.
    pub(super) fn recorded(&mut self, attempt: Attempt, now: Now, turn: &mut Turn) {
        if self.lane != (Lane::Recording { attempt: attempt.clone() }) {
            return;
        }
        let verdict = self
            .sends
            .get(&attempt)
            .and_then(SendRecord::work)
            .map(|work| self.gate.ask(work.epoch, work.start_before, now));
        if verdict == Some(Verdict::Start) && self.may_go_on(&attempt) {
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

    pub(super) fn handed_over(&mut self, attempt: Attempt, now: Now, turn: &mut Turn) {
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
    pub(super) fn not_handed_over(&mut self, attempt: &Attempt, now: Now, turn: &mut Turn) {
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

    pub(super) fn ended(&mut self, disposition: Disposition, now: Now, turn: &mut Turn) {
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
    pub(super) fn provably_failed(
        &mut self,
        attempt: &Attempt,
        failure: &Failure,
        now: Now,
        turn: &mut Turn,
    ) {
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
        if work.done > 0 {
            // Another channel, or another phone, would send the first parts again.
            let failure = failure::partly(work, failure.reason, &failure.detail);
            let fact = failure::failed(attempt, &failure, from);
            self.finish(attempt, Some(fact), now, turn);
            return;
        }
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
}
