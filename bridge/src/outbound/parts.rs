//! Messages of several parts: files first, one by one, then the text. Each part is a send of its own to
//! Messages, with its own mark, row and doubt; the next one starts when the row of the one before says that
//! it was sent. What cannot go on ends as `failed{partly_sent}`, which nobody may try again.

use std::path::PathBuf;

use protocol::pipe::Attempt;

use super::{Change, Effect, Outbound, Phase, SendRecord, Turn, Work, failure};
use crate::clock::Now;
use crate::osascript::Failure;

/// Messages whose files are fetched at the same time. More would compete for the line that the next
/// message to start is waiting for.
const FETCHES_MAX: usize = 2;

impl Outbound {
    /// Remembers which sends have several parts.
    pub(super) fn note_parts(&mut self, send: &SendRecord) {
        if send.work().is_some_and(|work| work.parts() > 1) {
            self.several.insert(send.attempt.clone());
        }
    }

    /// Whether this one may start now: its files are here, and nothing comes between the parts of another
    /// message to the same recipient.
    pub(super) fn may_begin(&self, attempt: &Attempt, work: &Work) -> bool {
        let comes_between = || {
            self.several.iter().any(|other| {
                other != attempt
                    && self.is_under_way(other)
                    && self
                        .sends
                        .get(other)
                        .and_then(SendRecord::work)
                        .is_some_and(|other| other.to == work.to)
            })
        };
        work.is_staged()
            && self.may_go_on(attempt)
            && !comes_between()
            && !self.has_unsettled_twin(attempt, work)
    }

    /// Whether another send of the same words to the same recipient is out and has no row yet, or one that
    /// says that it failed and is not believed yet. With both on their way nobody could tell whose row is
    /// whose, so this one waits until that one is settled, or told as unknown.
    pub(super) fn has_unsettled_twin(&self, attempt: &Attempt, work: &Work) -> bool {
        self.settling.keys().chain(self.failing.keys()).any(|other| {
            let other_work = || self.sends.get(other).and_then(SendRecord::work);
            other != attempt && other_work().is_some_and(|other| other.is_twin_of(work))
        })
    }

    /// Whether it may start although the bridge may be about to end: a drain finishes what is begun.
    pub(super) fn may_go_on(&self, attempt: &Attempt) -> bool {
        let has_begun =
            || self.sends.get(attempt).and_then(SendRecord::work).is_some_and(|work| work.done > 0);
        self.stop.is_none() || (self.finishes_parts() && has_begun())
    }

    /// Whether a drain is on, and has time.
    pub(super) fn finishes_parts(&self) -> bool {
        self.stop.is_some_and(|stop| stop.match_rows && !stop.killed)
    }

    /// Whether a message is begun that a drain should finish.
    pub(super) fn has_begun_parts(&self) -> bool {
        self.several.iter().any(|attempt| self.is_under_way(attempt))
    }

    /// Some of its parts are sent, and the next one is not started.
    pub(super) fn is_between_parts(&self, attempt: &Attempt) -> bool {
        let Some(send) = self.sends.get(attempt) else { return false };
        matches!(send.phase(), Some(Phase::Accepted))
            && send.work().is_some_and(|work| work.done > 0)
    }

    /// It has begun, a part is still to come, and nothing speaks against that it comes.
    fn is_under_way(&self, attempt: &Attempt) -> bool {
        let Some(send) = self.sends.get(attempt) else { return false };
        let (Some(work), Some(phase)) = (send.work(), send.phase()) else { return false };
        match phase {
            Phase::Accepted => work.done > 0,
            Phase::Started { .. } | Phase::Handed { .. } => true,
            Phase::Found { told_unknown, .. } => !work.is_last() && !told_unknown,
            Phase::Doubt { .. } => false,
        }
    }

    /// The row of a part says that it was sent, and another part follows.
    pub(super) fn part_sent(
        &mut self,
        attempt: &Attempt,
        told_unknown: bool,
        now: Now,
        turn: &mut Turn,
    ) {
        self.forget_traces(attempt);
        let Some(send) = self.sends.get_mut(attempt) else { return };
        send.next_part();
        let send = send.clone();
        if told_unknown && let Some(work) = send.work() {
            // Somebody may have acted on the doubt: the rest must not follow out of nothing.
            let failure = failure::partly(work, protocol::Reason::NotConfirmed, "");
            let fact = failure::failed(attempt, &failure, work.channel());
            self.finish(attempt, Some(fact), now, turn);
            return;
        }
        turn.changes.push(Change::Put(Box::new(send.clone())));
        self.enqueue(&send);
    }

    // ---- files ------------------------------------------------------------------------------

    /// Has the files fetched of what will start next. Called after every event: what a restart or a full
    /// house has left out is found here again.
    pub(super) fn fetch(&mut self, turn: &mut Turn) {
        if self.stop.is_some() {
            return;
        }
        for attempt in self.queue.values() {
            if self.fetching.len() >= FETCHES_MAX {
                return;
            }
            let Some(work) = self.sends.get(attempt).and_then(SendRecord::work) else { continue };
            if work.is_staged() || self.fetching.contains(attempt) {
                continue;
            }
            self.fetching.insert(attempt.clone());
            turn.effects.push(Effect::Fetch {
                attempt: attempt.clone(),
                files: work.files.iter().map(|wanted| wanted.file.clone()).collect(),
            });
        }
    }

    /// Its files are here, or cannot be had.
    pub(super) fn fetched(
        &mut self,
        attempt: &Attempt,
        files: Result<Vec<PathBuf>, Failure>,
        now: Now,
        turn: &mut Turn,
    ) {
        if !self.fetching.remove(attempt) {
            // Withdrawn in the meantime.
            return;
        }
        let Some(send) = self.sends.get_mut(attempt) else { return };
        match files {
            Ok(paths) => {
                send.stage(paths);
                turn.changes.push(Change::Put(Box::new(send.clone())));
            }
            // Nothing was asked of Messages, so no channel has failed.
            Err(failure) => {
                self.finish(attempt, Some(failure::failed(attempt, &failure, None)), now, turn);
            }
        }
    }
}
