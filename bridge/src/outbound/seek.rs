//! What a lost bridge had in hand: whether it was sent, by the copies that the account's other devices get.
//!
//! Proof here is a row of the right text, recipient and time of which nothing else can be the reason. Whatever leaves a
//! choice (other sends of the same words, a row that has not come yet) leaves the doubt as it is: the question comes again.

use protocol::pipe::{Attempt, Event as Fact, Seek};
use protocol::{Channel, Class};

use super::{Change, Dated, Effect, Outbound, Phase, SendRecord, Stage, Told, Turn, Work};
use crate::chatdb::fold;
use crate::clock::Now;

/// Two rows of the same words within this time are copies of one message: iCloud puts old ones in again under another
/// guid, with their date or with that of its second. Two sends of ours are further apart, for the second of them waits until the
/// first has its row.
const COPY_MS: i64 = 1_000;

impl Outbound {
    /// Attempts that are known here are answered for as with `cancel`; the others are looked for.
    pub(super) fn seek(
        &mut self,
        seek: Seek,
        known: Vec<(Attempt, Told)>,
        now: Now,
        turn: &mut Turn,
    ) {
        let mut known: std::collections::BTreeMap<Attempt, Told> = known.into_iter().collect();
        let mut seek = seek;
        seek.attempts.retain(|attempt| !self.retell(attempt, known.remove(attempt), now, turn));
        if !seek.attempts.is_empty() && !seek.text.trim().is_empty() {
            turn.effects.push(Effect::Seek(Box::new(seek)));
        }
    }

    pub(super) fn sought(
        &mut self,
        seek: &Seek,
        rows: Vec<Dated>,
        missing: usize,
        now: Now,
        turn: &mut Turn,
    ) {
        let (attempts, contested) = (seek.attempts.len(), self.contests(seek));
        let found = if contested || missing > 0 {
            Vec::new()
        } else {
            let known = |guid: &str| {
                self.claimed.contains(guid) || seek.known.iter().any(|known| known == guid)
            };
            prove(attempts, rows, known)
        };
        tracing::info!(
            attempts,
            found = found.len(),
            contested,
            missing,
            "looked for what another bridge had in hand"
        );
        for (attempt, row) in seek.attempts.iter().zip(found) {
            // Asked for twice in one turn.
            if !self.knows(attempt) && !self.claimed.contains(&row.row.guid) {
                self.adopt_sought(attempt, seek, &row, now, turn);
            }
        }
    }

    /// A send of our own with the same words has no row yet, or may get another one: what comes may be its row.
    fn contests(&self, seek: &Seek) -> bool {
        let folded = fold(&seek.text);
        self.sends.values().any(|send| {
            let (Some(work), Some(phase)) = (send.work(), send.phase()) else { return false };
            let unsettled = match phase {
                Phase::Started { .. } | Phase::Handed { .. } | Phase::Doubt { .. } => true,
                Phase::Found { .. } => self.failing.contains_key(&send.attempt),
                Phase::Accepted => false,
            };
            unsettled
                && work.to == seek.to
                && (work.text == seek.text || fold(&work.text) == folded)
        })
    }

    /// From here on it is tracked like any other send whose row was found late.
    fn adopt_sought(
        &mut self,
        attempt: &Attempt,
        seek: &Seek,
        found: &Dated,
        now: Now,
        turn: &mut Turn,
    ) {
        let row = &found.row;
        let channel = row.channel.unwrap_or(Channel::Imessage);
        let work = Work {
            epoch: Work::ANOTHERS,
            class: Class::Marketing,
            to: seek.to.clone(),
            text: seek.text.clone(),
            files: Vec::new(),
            done: 0,
            route: vec![channel],
            index: 0,
            start_before: seek.until,
            accepted_at: seek.since,
            failed: None,
        };
        let fact = Fact::Sent { attempt: attempt.clone(), channel, guid: row.guid.clone() };
        let told = turn.tell(fact, now, self.gate.max_epoch());
        let phase = Phase::Found {
            rowid: row.rowid,
            guid: row.guid.clone(),
            at: now.wall,
            stage: Stage::Sent,
            told_unknown: true,
        };
        let record = SendRecord::live(attempt.clone(), told, work, phase);
        turn.changes.push(Change::Put(Box::new(record.clone())));
        turn.changes.push(Change::Claim { guid: row.guid.clone() });
        self.claimed.insert(row.guid.clone());
        self.rows.insert(row.rowid, attempt.clone());
        self.sends.insert(attempt.clone(), record);
        self.observe(attempt, row, now, turn);
    }
}

/// The rows that prove `attempts` sends, oldest first; none where they leave a choice.
fn prove(attempts: usize, mut rows: Vec<Dated>, known: impl Fn(&str) -> bool) -> Vec<Dated> {
    // What failed was not sent, here or elsewhere.
    rows.retain(|dated| dated.row.error == 0 || dated.row.is_sent);
    rows.sort_by_key(|dated| (dated.at, dated.row.rowid));
    let mut proof: Vec<Dated> = Vec::new();
    let mut from = 0;
    while let Some(first) = rows.get(from) {
        // One message and the copies of it.
        let chained = rows.iter().skip(from).scan(first.at, |last, dated| {
            let near = dated.at.since(*last) < COPY_MS;
            *last = dated.at;
            near.then_some(dated)
        });
        let message: Vec<&Dated> = chained.collect();
        from = from.saturating_add(message.len());
        if message.iter().any(|dated| known(&dated.row.guid)) {
            continue;
        }
        match message.as_slice() {
            [one] if one.row.certain && one.row.is_sent => {
                proof.push((*one).clone());
            }
            // It has not been sent yet, may be somebody else's, or is two.
            [..] => return Vec::new(),
        }
    }
    if proof.len() == attempts { proof } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use protocol::UnixMs;

    use super::super::RowState;
    use super::*;

    fn row(n: i64, at: i64) -> Dated {
        let row = RowState {
            rowid: n,
            guid: format!("G{n}"),
            channel: Some(Channel::Imessage),
            error: 0,
            is_sent: true,
            delivered: true,
            delivered_at: None,
            read_at: None,
            ghost: false,
            certain: true,
        };
        Dated { at: UnixMs(at), row }
    }

    fn with(n: i64, at: i64, change: fn(&mut RowState)) -> Dated {
        let mut dated = row(n, at);
        change(&mut dated.row);
        dated
    }

    fn proven(attempts: usize, rows: Vec<Dated>, known: &[&str]) -> Vec<i64> {
        let proof = prove(attempts, rows, |guid| known.contains(&guid));
        proof.iter().map(|dated| dated.row.rowid).collect()
    }

    #[test]
    fn only_what_leaves_no_choice_is_proof() {
        let none: &[i64] = &[];
        for (what, attempts, rows, known, expected) in [
            ("its row", 1, vec![row(1, 5_000)], &[][..], &[1][..]),
            ("no row", 1, vec![], &[], none),
            ("somebody wrote the same by hand", 1, vec![row(1, 5_000), row(2, 9_000)], &[], none),
            ("one of two is not there yet", 2, vec![row(1, 5_000)], &[], none),
            ("both, by age", 2, vec![row(3, 9_000), row(4, 5_000)], &[], &[4, 3]),
            ("another send's row alone", 1, vec![row(1, 5_000)], &["G1"], none),
            ("beside another send's", 1, vec![row(1, 5_000), row(2, 9_000)], &["G1"], &[2]),
            ("a copy of another send's", 1, vec![row(1, 5_000), row(2, 5_000)], &["G1"], none),
            ("a copy dated to the second", 1, vec![row(1, 5_900), row(2, 5_000)], &["G1"], none),
            ("two copies of its own", 1, vec![row(1, 5_000), row(2, 5_000)], &[], none),
            (
                "failed elsewhere",
                1,
                vec![with(1, 5_000, |r| {
                    r.error = 22;
                    r.is_sent = false;
                })],
                &[],
                none,
            ),
            ("not sent yet", 1, vec![with(1, 5_000, |r| r.is_sent = false)], &[], none),
            ("perhaps to somebody else", 1, vec![with(1, 5_000, |r| r.certain = false)], &[], none),
        ] {
            assert_eq!(proven(attempts, rows, known), expected, "{what}");
        }
    }
}
