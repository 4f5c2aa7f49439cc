//! What is new in chat.db: what came in, what became of our sends, and the numbers of their rows when
//! it has others by now.

use std::collections::HashMap;

use protocol::pipe::{Event as Fact, NotReady};

use super::{BEHIND_TICK, Daemon, DaemonError, Evidence, Now, QUIET_TICK, TICK};
use crate::evidence::{NewFact, NoNews};
use crate::outbound::{Change, Event, Turn};

/// Without any hint chat.db is read this often all the same: hints may be lost, and a database that
/// cannot be read is tried again.
const DATABASE_POLL_MS: i64 = 1_000;

/// Reads of a backlog in one turn, each of some hundred rows: enough to catch up fast, few enough
/// that the turn stays short, its transaction small, and the position is kept also where all that
/// is read is passed over.
const READS_A_TURN: usize = 4;

impl<E: Evidence> Daemon<E> {
    /// Reads what is new in chat.db: what came in, and what became of our sends.
    pub(super) fn read_database(&mut self, now: Now, turn: &mut Turn) -> Result<(), DaemonError> {
        let result = match self.evidence.refresh() {
            Ok(()) => self.read_news(now, turn),
            Err(why) => Err(why.into()),
        };
        let result = match result {
            Ok(more) => Ok(more),
            Err(NoNews::NotReady(why)) => Err(why),
            Err(NoNews::Journal(error)) => return Err(error.into()),
        };
        if let Some(hints) = self.evidence.hints() {
            self.hints = Some(hints);
        }
        let more = matches!(result, Ok(true));
        let result = result.map(drop);
        let polled = (self.hints.is_none() && result.is_ok()) || more;
        self.database_tick = if more {
            BEHIND_TICK
        } else if polled || result.is_err() {
            TICK
        } else {
            QUIET_TICK
        };
        let pause_ms = if polled { 0 } else { DATABASE_POLL_MS };
        self.database_at_ms = now.continuous_ms.saturating_add(pause_ms);
        self.saw_database(result);
        if self.renumbered && self.database_ready {
            self.follow_numbers(now, turn);
        }
        if self.database_ready {
            self.heartbeat.last_poll = Some(now.wall);
            self.outbound.step(Event::DatabaseChanged, now, turn);
        }
        Ok(())
    }

    /// The rows of our sends have other numbers by now.
    fn follow_numbers(&mut self, now: Now, turn: &mut Turn) {
        let tracked = self.outbound.tracked();
        let guids: Vec<String> = tracked.iter().map(|(_, guid)| guid.clone()).collect();
        match self.evidence.numbers(&guids) {
            Ok(numbers) => {
                let numbers: HashMap<String, i64> = numbers.into_iter().collect();
                let found = tracked.into_iter().filter_map(|(attempt, guid)| {
                    numbers.get(&guid).map(|rowid| (attempt, *rowid))
                });
                self.renumbered = false;
                self.outbound.step(Event::Renumbered(found.collect()), now, turn);
            }
            // The next look asks again.
            Err(why) => self.saw_database(Err(why)),
        }
    }

    /// True when there is more than one turn should read.
    fn read_news(&mut self, now: Now, turn: &mut Turn) -> Result<bool, NoNews> {
        for _ in 0..READS_A_TURN {
            let news = self.evidence.news(&self.journal, now)?;
            for NewFact { fact, heard } in news.facts {
                if let Some((guid, print)) = heard {
                    turn.changes.push(Change::Heard { guid, print: Some(print) });
                }
                self.renumbered |= matches!(fact, Fact::Resync { .. });
                if let Fact::Received(received) = &fact {
                    self.heartbeat.last_inbound = Some(now.wall);
                    tracing::debug!(guid = received.guid, late = received.late, "received");
                }
                turn.tell(fact, now, self.outbound.max_epoch());
            }
            for guid in news.joined {
                turn.changes.push(Change::Heard { guid, print: None });
            }
            for (guid, seen) in news.seen {
                turn.changes.push(Change::Seen { guid, seen });
            }
            if let Some(cursor) = news.cursor {
                turn.changes.push(Change::Cursor(cursor));
            }
            if !news.more {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn saw_database(&mut self, result: Result<(), NotReady>) {
        if self.database_ready != result.is_ok() {
            match &result {
                Ok(()) => tracing::info!("chat.db is readable"),
                Err(why) => tracing::warn!(reason = %why.reason, remedy = why.remedy, "chat.db"),
            }
        }
        self.database_ready = result.is_ok();
        self.health.database(result);
    }
}
