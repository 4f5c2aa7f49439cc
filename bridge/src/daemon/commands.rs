//! What comes in: lines of the supervisor, its end, and what else wakes the loop.

use protocol::pipe::{
    AccountState, Attempt, Capability, ChannelCapability, Command, Event as Fact, parse_command,
};
use protocol::{Recipient, WireError};

use super::child::Job;
use super::{Daemon, DaemonError, Evidence, Input, Now};
use crate::checks::messages::Remembered;
use crate::outbound::{Change, Event, Turn};

/// Our supervisor is gone: of the 5 s until our end, three are kept for killing a running osascript
/// that resists (a tick, TERM and its grace, KILL, its group, its pipe), and for the last lines.
const ORPHANED_DEADLINE_MS: i64 = 2_000;

impl<E: Evidence> Daemon<E> {
    pub(super) fn input(
        &mut self,
        input: Input,
        now: Now,
        turn: &mut Turn,
    ) -> Result<(), DaemonError> {
        match input {
            Input::Line(line) => match parse_command(&line) {
                Ok(command) => self.command(command, now, turn)?,
                Err(error) => self.refuse(&error),
            },
            Input::BadLine(error) => self.refuse(&error),
            Input::Eof => {
                tracing::info!("the supervisor is gone: ending");
                self.stop(now, turn);
            }
            Input::Terminate => {
                tracing::info!("asked to end by a signal");
                self.stop(now, turn);
            }
            Input::DatabaseChanged => {
                self.heartbeat.last_change = Some(now.wall);
                self.read_database(now, turn)?;
            }
            Input::Fetched(fetched) => self.fetched(fetched, now, turn),
            Input::Ended(child, disposition) => self.child_ended(child, disposition, now, turn),
            Input::Tick => {
                self.health.tick(now.continuous_ms);
                self.window.tick(now.continuous_ms);
                if now.continuous_ms >= self.database_at_ms {
                    self.read_database(now, turn)?;
                }
                self.outbound.step(Event::Tick, now, turn);
            }
        }
        Ok(())
    }

    fn stop(&mut self, now: Now, turn: &mut Turn) {
        self.outbound.step(Event::Stop { deadline_ms: ORPHANED_DEADLINE_MS }, now, turn);
    }

    fn refuse(&mut self, error: &WireError) {
        self.heartbeat.refused_lines = self.heartbeat.refused_lines.saturating_add(1);
        // The label and the field, never the content.
        tracing::warn!(what = error.label(), "a line of the supervisor was refused");
    }

    fn command(&mut self, command: Command, now: Now, turn: &mut Turn) -> Result<(), DaemonError> {
        let event = match command {
            Command::Send(send) => {
                let attempt = Attempt { message: send.message.clone(), attempt: send.attempt };
                let known = self.known(&attempt)?;
                Event::Send { send: Box::new(send), known }
            }
            Command::Cancel { message, attempt } => {
                let attempt = Attempt { message, attempt };
                let known = self.known(&attempt)?;
                Event::Cancel { attempt, known }
            }
            Command::Seek(seek) => {
                let mut known = Vec::new();
                for attempt in &seek.attempts {
                    known.extend(self.known(attempt)?.map(|told| (attempt.clone(), told)));
                }
                Event::Seek { seek: Box::new(seek), known }
            }
            Command::Lease { epoch, ttl_ms, issued_ms } => {
                Event::Lease { epoch, ttl_ms, issued_ms }
            }
            Command::Revoke { epoch } => Event::Revoke { epoch },
            Command::Release { epoch } => {
                self.releasing = Some(epoch);
                Event::Release { epoch }
            }
            Command::Ack { journal, seq } => {
                if journal != self.journal.id() || !self.window.ack(seq, now.continuous_ms) {
                    return Ok(());
                }
                turn.changes.push(Change::Acked(seq));
                Event::Acked { seq }
            }
            Command::Replay => {
                self.window.replay(now.continuous_ms);
                self.health.forget_said();
                return Ok(());
            }
            Command::Capability { to } => {
                let channels = self.capabilities(&to);
                let known = Capability { to, channels };
                turn.tell(Fact::Capability(known), now, self.outbound.max_epoch());
                return Ok(());
            }
            Command::Pause { for_ms, end_after_ms } => {
                self.pause(for_ms, end_after_ms, now, turn);
                return Ok(());
            }
            Command::Block { blocked } => {
                self.block(blocked, now, turn);
                return Ok(());
            }
            Command::Preflight => {
                tracing::info!("everything is looked at now");
                self.machine_at_ms = now.continuous_ms;
                self.database_at_ms = now.continuous_ms;
                self.health.ask_by(now.continuous_ms);
                return Ok(());
            }
            Command::Drain { deadline_ms } => Event::Drain { deadline_ms: bounded(deadline_ms) },
            Command::Stop { deadline_ms } => Event::Stop { deadline_ms: bounded(deadline_ms) },
        };
        self.outbound.step(event, now, turn);
        Ok(())
    }

    /// Recorded in the turn in which it was said, before anything of that turn can start.
    fn block(&mut self, blocked: bool, now: Now, turn: &mut Turn) {
        if blocked == self.health.is_blocked() {
            return;
        }
        self.health.block(blocked, now.continuous_ms);
        self.hold(now, turn);
        if blocked {
            tracing::error!("the account is blocked, by the word of an operator: nothing is sent");
            let detail = "by the word of an operator".to_owned();
            self.tell_account(AccountState::Blocked, detail, now, turn);
        } else {
            tracing::warn!("the account is not blocked any more, by the word of an operator");
            // The next answer is news, and what is kept until then is no block.
            self.account = None;
            turn.changes.push(Change::Account(String::new()));
        }
    }

    /// From here on nothing starts, also not by what else comes in this very turn.
    fn hold(&mut self, now: Now, turn: &mut Turn) {
        self.usable = false;
        self.outbound.step(Event::Usable(false), now, turn);
    }

    pub(super) fn tell_account(
        &mut self,
        state: AccountState,
        detail: String,
        now: Now,
        turn: &mut Turn,
    ) {
        let account = Remembered { state, detail: detail.clone() }.to_text();
        self.account = Some(account.clone());
        turn.changes.push(Change::Account(account));
        turn.tell(Fact::Account { state, detail }, now, self.outbound.max_epoch());
    }

    /// Nothing talks to Messages while it is restarted. A question that is on its way is ended, for nobody
    /// waits for its answer; a text when it has had its time, and is settled as at its own deadline. A file
    /// has that alone: how long Messages reads one is not known.
    fn pause(&mut self, for_ms: u64, end_after_ms: Option<u64>, now: Now, turn: &mut Turn) {
        let was = self.health.is_paused();
        self.health.pause(for_ms, now.continuous_ms);
        if self.health.is_paused() {
            self.hold(now, turn);
        }
        if let Some(child) = self.child.as_ref().filter(|_| self.health.is_paused()) {
            let ran_ms = now.continuous_ms.saturating_sub(child.since_ms);
            let is_late = || end_after_ms.is_some_and(|after_ms| ran_ms >= bounded(after_ms));
            let ends = match child.job {
                Job::Probe => true,
                Job::Text => is_late(),
                Job::File => false,
            };
            if ends {
                child.kill.cancel();
            }
        }
        if was != self.health.is_paused() {
            tracing::info!(paused = !was, "Messages is restarted by its keeper, or that is over");
        }
        // Whoever asked waits to hear that nothing runs.
        self.heartbeat_at_ms = now.continuous_ms;
    }

    /// What is known of the channels of an address: nothing of groups and services, nor while chat.db cannot
    /// be read.
    fn capabilities(&mut self, to: &Recipient) -> Vec<ChannelCapability> {
        match to {
            Recipient::Number(_) | Recipient::Email(_) => {}
            Recipient::Group(_) | Recipient::Service(_) => return Vec::new(),
        }
        match self.evidence.contacts(to.address()) {
            Ok(contacts) => {
                crate::capability::known(&contacts, |guid| self.outbound.has_claimed(guid))
            }
            Err(why) => {
                self.saw_database(Err(why));
                Vec::new()
            }
        }
    }

    fn known(&self, attempt: &Attempt) -> Result<Option<crate::outbound::Told>, DaemonError> {
        if self.outbound.knows(attempt) { Ok(None) } else { Ok(self.journal.told(attempt)?) }
    }
}

fn bounded(deadline_ms: u64) -> i64 {
    i64::try_from(deadline_ms).unwrap_or(i64::MAX)
}
