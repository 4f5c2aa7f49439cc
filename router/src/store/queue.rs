//! The queue: which jobs are due, and whose turn it is.
//!
//! A job is `ready` from the moment at which it is due until it is decided. The ready ones stand in an index by class and
//! tenant, the others in one by class and time; the first step of every claim moves over what has fallen due. So the next job
//! of a tenant, the next tenant of a class and the next job to fall due are one look-up each, however many there are.
//!
//! There is one dispatcher, which decides what it has claimed before it claims again: a claim writes which messages are in
//! hand and leaves the jobs as they are. [`put_off`] is for what could not be decided, and [`take_over`] for what a dead
//! router had in hand: it may be what ended it.

use std::collections::HashMap;

use protocol::{Class, MessageId, Status, TenantId, UnixMs};

use super::change::{self, Change};
use super::{Json, StoreError, Tx};
use crate::params;
use crate::shares::{CLASSES, Shares};

/// A job that has been claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The message.
    pub message: MessageId,
    /// Whose.
    pub tenant: TenantId,
    /// How often it has been claimed since a decision about it was last written down, this time included.
    pub claims: u32,
}

/// What a claim took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// The jobs, the most urgent class first.
    pub jobs: Vec<Claimed>,
    /// More may be due.
    pub more: bool,
}

/// Who had the last turn, in memory: a router that starts anew begins anew, and nobody loses more than a turn by it.
#[derive(Debug, Default)]
pub struct Turns {
    shares: Shares,
    last: [Option<TenantId>; CLASSES],
    /// When a tenant's messages that find all its phones busy are looked at again, the last of them.
    busy: HashMap<TenantId, UnixMs>,
}

impl Turns {
    /// When a message that found all its phones busy is looked at again. Those of one tenant are spread out, so that a
    /// long queue before one phone is not looked at as a whole, again and again.
    pub fn after_busy(&mut self, tenant: &TenantId, now: UnixMs) -> UnixMs {
        self.busy.retain(|_, last| *last > now);
        let first = now.plus_ms(BUSY_WAIT_MS);
        let last = self.busy.get(tenant).map_or(first, |last| last.plus_ms(BUSY_SPREAD_MS));
        let next = first.max(last);
        self.busy.insert(tenant.clone(), next);
        next
    }
}

/// When only phones that a message may not have are free, it is looked at again after this.
const BUSY_WAIT_MS: i64 = 500;

/// And the next one of the same tenant so much later: a phone sends about one a second.
const BUSY_SPREAD_MS: i64 = 2;

/// Jobs of each class that fall due in one claim; the next one moves more. A class has rows of its own, so that what is
/// urgent never waits for those that were due before it and matter less.
const PROMOTE_ROWS: usize = 512;

/// Claims up to `limit` due jobs: between classes by their weights, between the tenants of a class in turn. What was
/// claimed before and not decided, again and again, may be what ends the router: it is claimed alone, so that it takes
/// nothing else with it.
pub fn claim(
    tx: &mut Tx<'_>,
    turns: &mut Turns,
    now: UnixMs,
    limit: usize,
) -> Result<Claim, StoreError> {
    promote(tx, now)?;
    let claim = match suspect(tx)? {
        Some(suspect) => Claim { jobs: vec![suspect], more: true },
        None => take_turns(tx, turns, limit)?,
    };
    if !claim.jobs.is_empty() {
        let messages: Vec<&MessageId> = claim.jobs.iter().map(|job| &job.message).collect();
        tx.execute("UPDATE jobs_in_hand SET messages = ?1 WHERE id = 1", params![Json(messages)])?;
    }
    Ok(claim)
}

fn take_turns(tx: &mut Tx<'_>, turns: &mut Turns, limit: usize) -> Result<Claim, StoreError> {
    // What was taken of a tenant in this very claim stands first among its due jobs.
    let mut taken_of: HashMap<(usize, TenantId), usize> = HashMap::new();
    let mut claim = |tx: &mut Tx<'_>, class: usize, tenant: &TenantId, count: usize| {
        let before = taken_of.entry((class, tenant.clone())).or_default();
        let got = tx.query(CLAIM, params![class, tenant, count, *before], |row| {
            let claims = row.get::<u32>(1)?.saturating_add(1);
            Ok(Claimed { message: row.get(0)?, tenant: tenant.clone(), claims })
        })?;
        *before = before.saturating_add(got.len());
        Ok::<_, StoreError>(got)
    };
    let mut waiting = [false; CLASSES];
    for (class, waits) in waiting.iter_mut().enumerate() {
        *waits = tx.query_row(WAITS, params![class], |row| row.get(0))?;
    }
    let mut of_class: [Vec<Claimed>; CLASSES] = Default::default();
    let mut room = limit;
    turns.shares.begin(waiting);
    while room > 0 && turns.shares.any() {
        for (class, count) in turns.shares.next(room).into_iter().enumerate() {
            let (Some(taken), Some(last)) = (of_class.get_mut(class), turns.last.get_mut(class))
            else {
                continue;
            };
            let before = taken.len();
            let mut left = count;
            let mut lanes = lanes(tx, class, last.as_ref(), left)?;
            while left > 0 && !lanes.is_empty() {
                let share = left.div_ceil(lanes.len());
                let mut longer = Vec::new();
                for tenant in lanes {
                    let asked = share.min(left);
                    if asked == 0 {
                        break;
                    }
                    let got = claim(tx, class, &tenant, asked)?;
                    left = left.saturating_sub(got.len());
                    *last = Some(tenant.clone());
                    if got.len() == asked {
                        longer.push(tenant);
                    }
                    taken.extend(got);
                }
                lanes = longer;
            }
            room = room.saturating_sub(taken.len().saturating_sub(before));
            if left > 0 {
                turns.shares.ran_out(class, left);
            }
        }
    }
    let mut jobs = Vec::with_capacity(limit);
    for mut taken in of_class {
        // Ids sort by the time of acceptance.
        taken.sort_by(|left, right| left.message.cmp(&right.message));
        jobs.append(&mut taken);
    }
    Ok(Claim { more: room == 0, jobs })
}

const WAITS: &str = "SELECT EXISTS (SELECT 1 FROM jobs WHERE ready = 1 AND class_rank = ?1)";

const CLAIM: &str =
    "SELECT message_id, claims FROM jobs WHERE ready = 1 AND class_rank = ?1 AND tenant_id = ?2
     ORDER BY run_at LIMIT ?3 OFFSET ?4";

fn suspect(tx: &mut Tx<'_>) -> Result<Option<Claimed>, StoreError> {
    tx.query_opt(SUSPECT, params![], |row| {
        let claims = row.get::<u32>(2)?.saturating_add(1);
        Ok(Claimed { message: row.get(0)?, tenant: row.get(1)?, claims })
    })
}

const SUSPECT: &str = "SELECT message_id, tenant_id, claims FROM jobs WHERE ready = 1 AND claims > 1 ORDER BY run_at LIMIT 1";

/// Puts off what was claimed and could not be decided; what was decided after all stays as it is.
pub fn put_off(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    message: &MessageId,
    until: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE jobs SET run_at = ?3, ready = 0, claims = claims + 1
         WHERE message_id = ?1 AND tenant_id = ?2 AND ready = 1",
        params![message, tenant, until],
    )?;
    Ok(())
}

/// Takes over what another router had in hand when it ended: what is still due was claimed once more without a decision.
/// What was so twice may be what ends it, and is not looked at before `quiet_until`, where there is a pause: whatever else is
/// due goes first, and nothing wakes it that others wait for.
pub fn take_over(tx: &mut Tx<'_>, quiet_until: Option<UnixMs>) -> Result<(), StoreError> {
    let Json(messages): Json<Vec<MessageId>> =
        tx.query_row("SELECT messages FROM jobs_in_hand WHERE id = 1", params![], |row| {
            row.get(0)
        })?;
    for message in messages {
        tx.execute(
            "UPDATE jobs SET claims = claims + 1,
                 ready = CASE WHEN claims > 0 AND run_at < ?2 THEN 0 ELSE ready END,
                 held_reason = CASE WHEN claims > 0 AND run_at < ?2 THEN NULL ELSE held_reason END,
                 run_at = CASE WHEN claims > 0 AND run_at < ?2 THEN ?2 ELSE run_at END
             WHERE message_id = ?1 AND ready = 1",
            params![message, quiet_until],
        )?;
    }
    tx.execute("UPDATE jobs_in_hand SET messages = '[]' WHERE id = 1", params![])?;
    Ok(())
}

/// Up to `limit` tenants with ready jobs of a class, those after the one that had the last turn first.
fn lanes(
    tx: &mut Tx<'_>,
    class: usize,
    last: Option<&TenantId>,
    limit: usize,
) -> Result<Vec<TenantId>, StoreError> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let last = last.map_or("", TenantId::as_str);
    let mut lanes =
        tx.query(LANES, params![class, last, "~", limit], |row| row.get::<TenantId>(0))?;
    if lanes.len() < limit && !last.is_empty() {
        let rest = limit.saturating_sub(lanes.len());
        lanes.extend(tx.query(LANES, params![class, "", last, rest], |row| row.get(0))?);
    }
    Ok(lanes)
}

/// The recursion jumps from tenant to tenant along the index, past all that each has waiting.
const LANES: &str = "WITH RECURSIVE lanes (tenant, number) AS (
         SELECT (SELECT MIN(tenant_id) FROM jobs
                 WHERE ready = 1 AND class_rank = ?1 AND tenant_id > ?2 AND tenant_id <= ?3), 1
         UNION ALL
         SELECT (SELECT MIN(j.tenant_id) FROM jobs j
                 WHERE j.ready = 1 AND j.class_rank = ?1 AND j.tenant_id > lanes.tenant AND j.tenant_id <= ?3),
             lanes.number + 1
         FROM lanes WHERE lanes.tenant IS NOT NULL AND lanes.number < ?4)
     SELECT tenant FROM lanes WHERE tenant IS NOT NULL";

/// Moves over what has fallen due. A message whose time to be sent has come is queued from now on.
fn promote(tx: &mut Tx<'_>, now: UnixMs) -> Result<(), StoreError> {
    let due = tx.query(PROMOTE, params![now, PROMOTE_ROWS], |row| {
        Ok((row.get::<MessageId>(0)?, row.get::<TenantId>(1)?))
    })?;
    for (message, tenant) in due {
        let scheduled = tx.query_opt(
            "SELECT 1 FROM messages WHERE id = ?1 AND status = ?2",
            params![message, Status::Scheduled],
            |row| row.int(0),
        )?;
        if scheduled.is_none() {
            continue;
        }
        match change::make(tx, &tenant, &message, &Change::to(Status::Queued, now)) {
            Ok(_changed) => {}
            Err(error) if error.is_unavailable() => return Err(error),
            // Whoever decides about it meets the same, and ends it.
            Err(error) => {
                tracing::error!(message = %message, error = %error, "dispatch: a scheduled message cannot be read");
            }
        }
    }
    Ok(())
}

const PROMOTE: &str = "UPDATE jobs SET ready = 1 WHERE message_id IN (
         SELECT * FROM (SELECT message_id FROM jobs WHERE ready = 0 AND class_rank = 0 AND run_at <= ?1 ORDER BY run_at LIMIT ?2)
         UNION ALL
         SELECT * FROM (SELECT message_id FROM jobs WHERE ready = 0 AND class_rank = 1 AND run_at <= ?1 ORDER BY run_at LIMIT ?2)
         UNION ALL
         SELECT * FROM (SELECT message_id FROM jobs WHERE ready = 0 AND class_rank = 2 AND run_at <= ?1 ORDER BY run_at LIMIT ?2)
         UNION ALL
         SELECT * FROM (SELECT message_id FROM jobs WHERE ready = 0 AND class_rank = 3 AND run_at <= ?1 ORDER BY run_at LIMIT ?2))
     RETURNING message_id, tenant_id";

/// When the next job falls due.
pub fn next_due(tx: &mut Tx<'_>) -> Result<Option<UnixMs>, StoreError> {
    tx.query_row(NEXT_DUE, params![], |row| row.get(0))
}

const NEXT_DUE: &str = "SELECT CASE WHEN EXISTS (SELECT 1 FROM jobs WHERE ready = 1) THEN 0
     ELSE (SELECT MIN(due) FROM (
         SELECT MIN(run_at) AS due FROM jobs WHERE ready = 0 AND class_rank = 0
         UNION ALL SELECT MIN(run_at) FROM jobs WHERE ready = 0 AND class_rank = 1
         UNION ALL SELECT MIN(run_at) FROM jobs WHERE ready = 0 AND class_rank = 2
         UNION ALL SELECT MIN(run_at) FROM jobs WHERE ready = 0 AND class_rank = 3)) END";

/// A job as it is accepted: due at `run_at`, or at once.
pub fn add(
    tx: &mut Tx<'_>,
    (tenant, message): (&TenantId, &MessageId),
    class: Class,
    (run_at, now): (UnixMs, UnixMs),
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO jobs (message_id, tenant_id, run_at, class_rank, ready) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![message, tenant, run_at, class.rank(), run_at <= now],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{dispatch as rows, in_memory};

    const NOW: UnixMs = UnixMs(1_000_000);

    fn tenant(n: u8) -> TenantId {
        TenantId::new(1, [n; 10])
    }

    /// So many jobs of a tenant, due one after another.
    fn fill(connection: &rusqlite::Connection, whose: u8, class: Class, count: usize) {
        let mut tx = Tx::sqlite(connection);
        let newest =
            "SELECT COALESCE(MAX(CAST(substr(message_id, 19, 6) AS INTEGER)), 0) FROM jobs";
        let before = tx.query_row(newest, params![], |row| row.int(0)).unwrap();
        tx.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?5)
                 INSERT INTO jobs (message_id, tenant_id, run_at, class_rank, ready)
                 SELECT ?1 || printf('%06d', ?6 + i) || '000000', ?2, ?3 + i, ?4, 1 FROM n",
            params!["msg_00000000000000", tenant(whose), 0, class.rank(), count, before],
        )
        .unwrap();
    }

    fn turn(connection: &rusqlite::Connection, turns: &mut Turns, limit: usize) -> Vec<Claimed> {
        let mut tx = Tx::sqlite(connection);
        let jobs = claim(&mut tx, turns, NOW, limit).unwrap().jobs;
        decide(connection, &jobs);
        jobs
    }

    /// What was decided to be sent has no job any more.
    fn decide(connection: &rusqlite::Connection, jobs: &[Claimed]) {
        let mut tx = Tx::sqlite(connection);
        for job in jobs {
            rows::drop_job(&mut tx, &job.tenant, &job.message).unwrap();
        }
    }

    fn of(jobs: &[Claimed], whose: u8) -> usize {
        jobs.iter().filter(|job| job.tenant == tenant(whose)).count()
    }

    #[test]
    fn one_tenants_hundred_thousand_do_not_delay_anothers_one() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        fill(&connection, 1, Class::Marketing, 100_000);
        assert_eq!(of(&turn(&connection, &mut turns, 64), 1), 64);
        fill(&connection, 2, Class::Otp, 1);
        fill(&connection, 3, Class::Marketing, 1);
        let next = turn(&connection, &mut turns, 8);
        assert_eq!(next[0].tenant, tenant(2), "the code goes first");
        assert_eq!((of(&next, 1), of(&next, 2), of(&next, 3)), (6, 1, 1));
    }

    #[test]
    fn what_falls_due_later_and_is_urgent_does_not_wait_for_all_that_fell_due_before_it() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        fill(&connection, 1, Class::Marketing, 100_000);
        fill(&connection, 1, Class::Conversational, 10_000);
        fill(&connection, 2, Class::Otp, 1);
        fill(&connection, 3, Class::Transactional, 1);
        let wait =
            "UPDATE jobs SET ready = 0, run_at = CASE WHEN class_rank < 2 THEN ?1 ELSE run_at END";
        Tx::sqlite(&connection).execute(wait, params![NOW]).unwrap();
        let next = turn(&connection, &mut turns, 64);
        assert_eq!(
            next[..2].iter().map(|job| &job.tenant).collect::<Vec<_>>(),
            [&tenant(2), &tenant(3)]
        );
        assert_eq!(next.len(), 64, "the rest goes to those that wait as well");
        let ready = Tx::sqlite(&connection)
            .query_row("SELECT count(*) FROM jobs WHERE ready = 1", params![], |row| {
                row.get::<usize>(0)
            })
            .unwrap();
        assert_eq!(ready, 2 * PROMOTE_ROWS + 2 - 64, "a claim moves no more than it has to");
    }

    #[test]
    fn less_urgent_classes_fall_due_beside_a_flood_of_codes() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        fill(&connection, 1, Class::Otp, 10_000);
        fill(&connection, 2, Class::Marketing, 2);
        Tx::sqlite(&connection).execute("UPDATE jobs SET ready = 0", params![]).unwrap();
        assert_eq!(of(&turn(&connection, &mut turns, 64), 2), 1);
        while !turn(&connection, &mut turns, 4_000).is_empty() {}
        assert_eq!(next_due(&mut Tx::sqlite(&connection)).unwrap(), None, "all of it goes");
    }

    #[test]
    fn the_classes_of_the_statements_are_all_there_are() {
        for class in 0..CLASSES {
            for sql in [PROMOTE, NEXT_DUE] {
                assert!(sql.contains(&format!("class_rank = {class}")), "{sql}");
            }
        }
        assert!(!PROMOTE.contains(&format!("class_rank = {CLASSES}")));
    }

    #[test]
    fn tenants_take_turns_however_few_are_taken_at_once() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        for whose in 1..=5 {
            fill(&connection, whose, Class::Transactional, 100);
        }
        let mut all = Vec::new();
        for _ in 0..50 {
            all.extend(turn(&connection, &mut turns, 2));
        }
        for whose in 1..=5 {
            assert_eq!(of(&all, whose), 20, "tenant {whose}");
        }
        assert_eq!(turn(&connection, &mut turns, 1_000).len(), 400, "what is left is taken whole");
    }

    #[test]
    fn marketing_moves_while_codes_flow_for_ever() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        fill(&connection, 1, Class::Marketing, 100);
        let mut marketing = 0;
        for _ in 0..100 {
            fill(&connection, 2, Class::Otp, 13);
            marketing += of(&turn(&connection, &mut turns, 13), 1);
        }
        assert_eq!(marketing, 20, "one in 65");
    }

    #[test]
    fn what_was_claimed_and_never_decided_is_claimed_alone() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        fill(&connection, 1, Class::Otp, 3);
        for round in 1..=2 {
            let jobs = claim(&mut tx, &mut turns, NOW, 8).unwrap().jobs;
            assert_eq!(jobs.len(), 3);
            assert!(jobs.iter().all(|job| job.claims == round));
            // The router ended, and another one starts.
            take_over(&mut tx, None).unwrap();
        }
        fill(&connection, 1, Class::Otp, 5);
        for _ in 0..3 {
            let jobs = claim(&mut tx, &mut turns, NOW, 8).unwrap().jobs;
            assert_eq!((jobs.len(), jobs[0].claims), (1, 3));
            decide(&connection, &jobs);
        }
        assert_eq!(turn(&connection, &mut turns, 8).len(), 5);
    }

    #[test]
    fn only_what_was_in_hand_and_is_still_due_counts_as_undecided() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        fill(&connection, 1, Class::Otp, 4);
        let jobs = claim(&mut tx, &mut turns, NOW, 3).unwrap().jobs;
        decide(&connection, &jobs[..1]);
        put_off(&mut tx, &jobs[1].tenant, &jobs[1].message, NOW.plus_ms(5)).unwrap();
        take_over(&mut tx, None).unwrap();
        take_over(&mut tx, None).unwrap();
        let claims = |message: &MessageId| {
            Tx::sqlite(&connection)
                .query_opt(
                    "SELECT claims, ready FROM jobs WHERE message_id = ?1",
                    params![message],
                    |row| Ok((row.int(0)?, row.int(1)?)),
                )
                .unwrap()
        };
        assert_eq!(claims(&jobs[0].message), None, "it was decided");
        assert_eq!(claims(&jobs[1].message), Some((1, 0)), "it was put off");
        assert_eq!(claims(&jobs[2].message), Some((1, 1)), "it may be what ended the router");
        let later = claim(&mut tx, &mut turns, NOW.plus_ms(5), 8).unwrap().jobs;
        assert_eq!(later.iter().map(|job| job.claims).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[test]
    fn what_may_end_the_router_lets_everything_else_go_first() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        fill(&connection, 1, Class::Otp, 1);
        let quiet = NOW.plus_ms(5_000);
        for _ in 0..2 {
            assert_eq!(claim(&mut tx, &mut turns, NOW, 8).unwrap().jobs.len(), 1);
            take_over(&mut tx, Some(quiet)).unwrap();
        }
        fill(&connection, 2, Class::Marketing, 3);
        assert_eq!(of(&turn(&connection, &mut turns, 8), 2), 3);
        assert_eq!(next_due(&mut tx).unwrap(), Some(quiet));
        let late = claim(&mut tx, &mut turns, quiet, 8).unwrap().jobs;
        assert_eq!(late.iter().map(|job| job.claims).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_queue_before_busy_phones_is_looked_at_bit_by_bit() {
        let mut turns = Turns::default();
        let at: Vec<i64> = (0..3).map(|_| turns.after_busy(&tenant(1), NOW).0 - NOW.0).collect();
        assert_eq!(at, [500, 502, 504]);
        assert_eq!(turns.after_busy(&tenant(2), NOW).0 - NOW.0, 500);
        assert_eq!(turns.after_busy(&tenant(1), NOW.plus_ms(600)).0 - NOW.0, 1_100);
    }

    #[test]
    fn every_step_goes_along_an_index() {
        let connection = in_memory::open_loose();
        for (sql, indexes) in [
            (CLAIM, &["jobs_ready (class_rank=? AND tenant_id=?)"][..]),
            (SUSPECT, &["jobs_suspect"]),
            (WAITS, &["jobs_ready (class_rank=?)"]),
            (LANES, &["jobs_ready (class_rank=? AND tenant_id>? AND tenant_id<?)"]),
            (PROMOTE, &["jobs_waiting (class_rank=? AND run_at<?)"]),
            (NEXT_DUE, &["jobs_ready", "jobs_waiting (class_rank=?)"]),
        ] {
            let plan = in_memory::plan(&connection, sql);
            for index in indexes {
                assert!(plan.contains(index), "{sql}: {plan}");
            }
            assert!(!plan.contains("TEMP B-TREE"), "{sql}: {plan}");
        }
    }
}
