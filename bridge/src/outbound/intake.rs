//! What comes in: attempts taken or refused, withdrawn, told again.

use std::collections::BTreeSet;

use protocol::pipe::{Attempt, AttemptReason, Event as Fact, OutboundAttachment, Send};
use protocol::{Channel, Reason, Recipient, limits};

use super::{Change, Outbound, Phase, QUEUE_MAX, SendRecord, Told, Turn, Wanted, Work, failure};
use crate::attachments;
use crate::clock::Now;

fn wanted(files: Vec<OutboundAttachment>) -> Vec<Wanted> {
    files.into_iter().map(|file| Wanted { file, staged: None }).collect()
}

impl Outbound {
    pub(super) fn take(&mut self, send: Send, known: Option<Told>, now: Now, turn: &mut Turn) {
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
            Some((Reason::StaleEpoch, String::new()))
        } else if now.wall >= send.start_before {
            self.finish_new(attempt.clone(), Fact::Expired(attempt), now, turn);
            return;
        } else {
            self.refusal(&send)
        };
        if let Some((reason, detail)) = refusal {
            let fact = Fact::Refused(AttemptReason {
                attempt: attempt.clone(),
                reason,
                detail,
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
            text: if send.text.trim().is_empty() { String::new() } else { send.text },
            files: wanted(send.attachments),
            done: 0,
            route,
            index: 0,
            start_before: send.start_before,
            accepted_at: now.wall,
            failed: None,
        };
        let told = turn.tell(Fact::Accepted(attempt.clone()), now, self.gate.max_epoch());
        let record = SendRecord::live(attempt.clone(), told, work, Phase::Accepted);
        turn.changes.push(Change::Put(Box::new(record.clone())));
        self.note_parts(&record);
        self.enqueue(&record);
        self.sends.insert(attempt, record);
    }

    pub(super) fn refusal(&self, send: &Send) -> Option<(Reason, String)> {
        if let Some(detail) = self.bad_content(send) {
            return Some((Reason::BadContent, detail));
        }
        let reason = if send.route.iter().all(|channel| !self.policy.channels.contains(channel)) {
            Reason::UnknownChannel
        } else if self.route(send).is_empty() {
            Reason::BadAddress
        } else if self.queue.len() >= QUEUE_MAX {
            Reason::QueueFull
        } else {
            return None;
        };
        Some((reason, String::new()))
    }

    /// What is wrong with text or files, by field; never a word of them.
    fn bad_content(&self, send: &Send) -> Option<String> {
        if send.text.trim().is_empty() && send.attachments.is_empty() {
            return Some("text: is empty, and there are no attachments".to_owned());
        }
        // A NUL ends an argument of a program: the rest of the text would be lost.
        if send.text.contains('\0') {
            return Some("text: has a NUL in it".to_owned());
        }
        if send.text.chars().count() > limits::TEXT_CHARS_MAX {
            return Some(format!("text: is longer than {} characters", limits::TEXT_CHARS_MAX));
        }
        if send.attachments.len() > limits::ATTACHMENTS_MAX {
            return Some(format!("attachments: are more than {}", limits::ATTACHMENTS_MAX));
        }
        send.attachments.iter().enumerate().find_map(|(index, file)| {
            let bad = attachments::check(file, self.policy.allow_private).err()?;
            Some(format!("attachments[{index}].{bad}"))
        })
    }

    /// The channels that this phone has and that can reach the recipient, in the order asked for.
    pub(super) fn route(&self, send: &Send) -> Vec<Channel> {
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

    pub(super) fn cancel(
        &mut self,
        attempt: Attempt,
        known: Option<Told>,
        now: Now,
        turn: &mut Turn,
    ) {
        let waiting = self
            .sends
            .get(&attempt)
            .is_some_and(|send| matches!(send.phase(), Some(Phase::Accepted)));
        if waiting {
            let begun = self.sends.get(&attempt).and_then(SendRecord::work).filter(|w| w.done > 0);
            let fact = match begun {
                None => Fact::Canceled(attempt.clone()),
                Some(work) => {
                    let failure = failure::partly(work, Reason::Canceled, "");
                    failure::failed(&attempt, &failure, work.channel())
                }
            };
            self.finish(&attempt, Some(fact), now, turn);
        } else if !self.retell(&attempt, known, now, turn) {
            // Never heard of: a tombstone, so that a send that comes later cannot start.
            self.finish_new(attempt.clone(), Fact::Canceled(attempt), now, turn);
        }
    }

    /// A command about an attempt that is known already. Its newest event is told again, unless
    /// it is still on its way.
    pub(super) fn retell(
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

    pub(super) fn see(&mut self, epoch: u64, turn: &mut Turn) {
        if self.gate.see(epoch) {
            turn.changes.push(Change::MaxEpoch(epoch));
        }
    }
}
