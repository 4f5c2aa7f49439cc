//! The one osascript that runs: what it is for, its script, its end, and what that says of Messages.

use protocol::Reason;
use protocol::pipe::AccountState;
use tokio_util::sync::CancellationToken;

use super::{Daemon, Evidence, Now, chain};
use crate::checks::messages::Remembered;
use crate::osascript::{
    Disposition, Failure, PROBE, PrepareError, Prepared, Running, is_about_messages,
};
use crate::outbound::{Event, Turn};

/// What the one child is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    Text,
    File,
    Probe,
}

impl Job {
    pub(super) const fn is_send(self) -> bool {
        match self {
            Self::Text | Self::File => true,
            Self::Probe => false,
        }
    }
}

/// The child that runs.
#[derive(Debug)]
pub(super) struct Child {
    /// Tells its end from that of an earlier one, which may be heard of late.
    pub(super) id: u64,
    pub(super) job: Job,
    pub(super) since_ms: i64,
    pub(super) kill: CancellationToken,
}

/// Which child has ended, and what that says.
pub(super) type Ending = (u64, Disposition);

impl<E: Evidence> Daemon<E> {
    pub(super) fn probe(&mut self, now: Now, turn: &mut Turn) {
        self.health.probing(now.continuous_ms);
        let disposition = match self.osascript.prepare(&[]) {
            Ok(prepared) => {
                self.outbound.step(Event::Probing, now, turn);
                self.hand(prepared, PROBE, Job::Probe, now);
                return;
            }
            Err(PrepareError::Orphan) => {
                // Whoever waits for its end also says when it has come.
                self.health.orphan(true);
                self.outbound.step(Event::OrphanMet, now, turn);
                return;
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "osascript cannot be started");
                Disposition::NotStarted(cannot_start(&error))
            }
        };
        self.probed(&disposition, now, turn);
    }

    fn probed(&mut self, disposition: &Disposition, now: Now, turn: &mut Turn) {
        let news = self.health.probed(disposition, now.continuous_ms);
        let account = Remembered { state: news.state, detail: news.detail.clone() }.to_text();
        // A blocked account may well be connected.
        if self.account.as_ref() == Some(&account) || self.health.is_blocked() {
            return;
        }
        match news.state {
            AccountState::Ready => tracing::info!("the account is connected"),
            AccountState::Degraded
            | AccountState::SignedOut
            | AccountState::Blocked
            | AccountState::NoPermission => {
                tracing::warn!(state = ?news.state, detail = news.detail, "the account cannot send");
            }
        }
        self.tell_account(news.state, news.detail, now, turn);
    }

    /// Gives a child its script and waits for its end elsewhere; false when it took nothing.
    pub(super) fn hand(
        &mut self,
        prepared: Prepared,
        script: &'static str,
        job: Job,
        now: Now,
    ) -> bool {
        let (running, handed) = match prepared.hand_over(script) {
            Ok(running) => (running, true),
            Err(failed) => {
                let (running, error) = *failed;
                tracing::warn!(%error, "osascript ended before it took its script");
                (running, false)
            }
        };
        self.wait_for(running, job, now);
        handed
    }

    pub(super) fn wait_for(&mut self, running: Running, job: Job, now: Now) {
        let kill = CancellationToken::new();
        self.children = self.children.saturating_add(1);
        let id = self.children;
        let ended = self.ended.0.clone();
        let finish = running.finish(kill.clone());
        self.tracker.spawn(async move {
            // The loop may have ended by itself; then nobody asks any more.
            if ended.send((id, finish.await)).await.is_err() {
                tracing::debug!("an osascript ended after the loop");
            }
        });
        self.child = Some(Child { id, job, since_ms: now.continuous_ms, kill });
    }

    pub(super) fn child_ended(
        &mut self,
        id: u64,
        disposition: Disposition,
        now: Now,
        turn: &mut Turn,
    ) {
        let Some(child) = self.child.take_if(|child| child.id == id) else { return };
        let ran_ms = u64::try_from(now.continuous_ms.saturating_sub(child.since_ms)).unwrap_or(0);
        self.heartbeat.osascript_ended = self.heartbeat.osascript_ended.saturating_add(1);
        self.heartbeat.osascript_total_ms =
            self.heartbeat.osascript_total_ms.saturating_add(ran_ms);
        self.heartbeat.osascript_last_ms = Some(ran_ms);
        if self.health.is_paused() {
            self.heartbeat_at_ms = now.continuous_ms;
        }
        match child.job {
            Job::Probe => {
                if !child.kill.is_cancelled() {
                    self.probed(&disposition, now, turn);
                }
                self.outbound.step(Event::ProbeEnded, now, turn);
            }
            Job::Text | Job::File => {
                let suspicious = match &disposition {
                    Disposition::Succeeded { .. } => None,
                    Disposition::NotStarted(failure) | Disposition::MayHaveCompleted(failure) => {
                        Some(failure)
                    }
                };
                if let Some(failure) = suspicious {
                    tracing::warn!(reason = %failure.reason, detail = failure.detail, "osascript");
                    if is_about_messages(failure.reason) {
                        // Only an answer can say whether it was this send or Messages itself.
                        self.health.suspect(now.continuous_ms);
                        self.usable = false;
                        self.outbound.step(Event::Usable(false), now, turn);
                    }
                }
                self.outbound.step(Event::Ended { disposition }, now, turn);
            }
        }
    }
}

fn cannot_start(error: &PrepareError) -> Failure {
    let detail = match error {
        PrepareError::Orphan => "an earlier osascript still runs",
        PrepareError::Spawn { .. } => "osascript cannot be started",
        PrepareError::Stderr { .. } => "state_dir cannot be written",
    };
    Failure { reason: Reason::ScriptFault, detail: detail.to_owned(), retryable: true }
}
