//! The rows of chat.db have other numbers: those that are tracked are found again by their guids.

use protocol::pipe::Attempt;

use super::{Change, Outbound, Phase, SendRecord, Turn};

impl Outbound {
    /// Guids of the rows that are tracked.
    pub(crate) fn tracked(&self) -> Vec<(Attempt, String)> {
        self.sends
            .iter()
            .filter_map(|(attempt, send)| match send.phase()? {
                Phase::Found { guid, .. } => Some((attempt.clone(), guid.clone())),
                Phase::Accepted
                | Phase::Started { .. }
                | Phase::Handed { .. }
                | Phase::Doubt { .. } => None,
            })
            .collect()
    }

    /// Takes up the rows at their new numbers. One that is not there any more is tracked no longer, and
    /// its send is over in its time. A mark says nothing any more: a row that is looked for may stand
    /// anywhere, and its date and its claim say that it is no older one.
    pub(super) fn renumbered(&mut self, found: &[(Attempt, i64)], turn: &mut Turn) {
        self.rows.clear();
        self.cold_from = 0;
        for (attempt, send) in &mut self.sends {
            let next = match send.phase().cloned() {
                Some(Phase::Found { guid, at, stage, told_unknown, .. }) => {
                    let mut found = found.iter().filter(|(other, _)| other == attempt);
                    let Some((_, rowid)) = found.next() else { continue };
                    self.rows.insert(*rowid, attempt.clone());
                    Phase::Found { rowid: *rowid, guid, at, stage, told_unknown }
                }
                Some(Phase::Started { at, .. }) => Phase::Started { mark: 0, at },
                Some(Phase::Handed { at, .. }) => Phase::Handed { mark: 0, at },
                Some(Phase::Doubt { at, .. }) => Phase::Doubt { mark: 0, at },
                Some(Phase::Accepted) | None => continue,
            };
            send.set_phase(next);
            turn.changes.push(Change::Put(Box::new(send.clone())));
        }
    }

    /// Its row is no longer tracked; another send's row that has its number by now is.
    pub(super) fn untrack(&mut self, attempt: &Attempt) {
        if let Some(Phase::Found { rowid, .. }) =
            self.sends.get(attempt).and_then(SendRecord::phase)
            && self.rows.get(rowid) == Some(attempt)
        {
            let rowid = *rowid;
            self.rows.remove(&rowid);
        }
    }
}
