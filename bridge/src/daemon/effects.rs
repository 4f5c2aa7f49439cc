//! What the pure steps want done, done: each effect, and what it has led to.

use protocol::pipe::{NotReady, Seek};
use protocol::{Channel, Reason, Recipient};

use super::child::Job;
use super::{Daemon, Evidence, Now, chain};
use crate::osascript::{Failure, PrepareError, SEND};
use crate::outbound::{Content, Dated, Effect, Event, NotPrepared, Turn};

impl<E: Evidence> Daemon<E> {
    pub(super) fn perform(&mut self, effect: Effect, turn: &mut Turn) {
        let now = (self.clock)();
        match effect {
            Effect::Fetch { attempt, files } => self.fetch(attempt, files),
            Effect::StopFetch { attempt } => self.stop_fetch(&attempt),
            Effect::Prepare { attempt, to, channel, content } => {
                let event = match self.prepare(&to, channel, &content, now) {
                    Ok(mark) => Event::Prepared { attempt, mark },
                    Err(why) => Event::NotPrepared { attempt, why },
                };
                self.outbound.step(event, now, turn);
            }
            Effect::Confirm { attempt } => {
                let before = turn.effects.len();
                self.outbound.step(Event::Recorded { attempt }, now, turn);
                // What follows from this goes before everything else that waits: between the
                // gate's answer and the write of the script there is nothing.
                for effect in turn.effects.split_off(before) {
                    self.perform(effect, turn);
                }
            }
            Effect::HandOver { attempt } => {
                let handed = match self.waiting.take() {
                    Some((prepared, job)) => self.hand(prepared, SEND, job, now),
                    None => false,
                };
                let event = if handed {
                    Event::HandedOver { attempt }
                } else {
                    Event::NotHandedOver { attempt }
                };
                self.outbound.step(event, now, turn);
            }
            Effect::Abandon => {
                if let Some((prepared, job)) = self.waiting.take() {
                    let running = prepared.abandon();
                    self.wait_for(running, job, now);
                }
            }
            Effect::KillOsascript => {
                if let Some(child) = &self.child {
                    child.kill.cancel();
                }
            }
            Effect::Find { attempt, mark, since, to, content } => {
                if self.database_ready {
                    match self.evidence.rows(mark, since, &to, &content) {
                        Ok(rows) => self.outbound.step(Event::Rows { attempt, rows }, now, turn),
                        Err(why) => self.saw_database(Err(why)),
                    }
                }
            }
            Effect::ReadStates { rowids } => {
                if self.database_ready {
                    match self.evidence.states(&rowids) {
                        Ok(states) => self.outbound.step(Event::States(states), now, turn),
                        Err(why) => self.saw_database(Err(why)),
                    }
                }
            }
            Effect::Seek(seek) => match self.sought(&seek) {
                Ok(Some((rows, missing))) => {
                    self.outbound.step(Event::Sought { seek, rows, missing }, now, turn);
                }
                Ok(None) => tracing::info!("what another bridge had in hand cannot be looked for"),
                Err(why) => self.saw_database(Err(why)),
            },
            Effect::CheckOrphan => match self.osascript.orphan_runs() {
                Ok(runs) => {
                    self.health.orphan(runs);
                    if !runs {
                        self.outbound.step(Event::OrphanGone, now, turn);
                    }
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "osascript's lock cannot be looked at");
                }
            },
            Effect::EndOrphan { force } => {
                if let Err(error) = self.osascript.end_orphan(force) {
                    tracing::error!(error = chain(&error), "an earlier osascript cannot be ended");
                }
            }
        }
    }

    /// The rows that a lost bridge's sends may have, and how many of those that are known to have been sent have none.
    fn sought(&mut self, seek: &Seek) -> Result<Option<(Vec<Dated>, usize)>, NotReady> {
        let between = (seek.since, seek.until);
        let Some(rows) = self.evidence.dated(between, &seek.to, &seek.text)? else {
            return Ok(None);
        };
        let elsewhere: Vec<String> = seek
            .known
            .iter()
            .filter(|guid| !self.outbound.has_claimed(guid))
            .filter(|guid| !rows.iter().any(|dated| dated.row.guid == **guid))
            .cloned()
            .collect();
        // A row of another time is accounted for as well.
        let there = if elsewhere.is_empty() { 0 } else { self.evidence.numbers(&elsewhere)?.len() };
        Ok(Some((rows, elsewhere.len().saturating_sub(there))))
    }

    /// Starts a child that waits for its script, then reads the newest row: whatever this send
    /// writes lies above it.
    fn prepare(
        &mut self,
        to: &Recipient,
        channel: Channel,
        content: &Content,
        now: Now,
    ) -> Result<i64, NotPrepared> {
        let guid = match (to, self.evidence.chat_guid(to, channel)) {
            // Its own guid, whatever its prefix: turned into another, it would lead nowhere (imsg#90).
            (_, Ok(Some(guid))) => guid,
            (Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_), Ok(None)) => {
                String::new()
            }
            (Recipient::Group(_), Ok(None)) => {
                return Err(NotPrepared::Failed(Failure {
                    reason: Reason::NotResolved,
                    detail: "chat.db has no such group".to_owned(),
                    retryable: false,
                }));
            }
            (_, Err(why)) => {
                self.saw_database(Err(why));
                return Err(self.held());
            }
        };
        let address = match to {
            Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_) => to.address(),
            // A group's id as an address would make a new chat of that name (imsg#16).
            Recipient::Group(_) => "",
        };
        let (kind, value, job) = match content {
            Content::Text(text) => ("text", text.as_str(), Job::Text),
            // Names are made of what URLs and commands hold, which is Unicode.
            Content::File(path) => ("file", path.to_str().unwrap_or_default(), Job::File),
        };
        let args = [channel.service(), address, guid.as_str(), kind, value];
        let prepared = match self.osascript.prepare(&args) {
            Ok(prepared) => prepared,
            Err(PrepareError::Orphan) => {
                self.health.orphan(true);
                return Err(NotPrepared::Orphan);
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "osascript cannot be started");
                self.health.suspect(now.continuous_ms);
                return Err(self.held());
            }
        };
        match self.evidence.mark() {
            Ok(mark) => {
                self.waiting = Some((prepared, job));
                Ok(mark)
            }
            Err(why) => {
                let running = prepared.abandon();
                self.wait_for(running, job, now);
                self.saw_database(Err(why));
                Err(self.held())
            }
        }
    }

    fn held(&mut self) -> NotPrepared {
        self.usable = false;
        NotPrepared::Held
    }
}
