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

use protocol::{MessageId, Status, TenantId, UnixMs};

use super::change::{self, Change};
use super::{Json, StoreError, Tx};
use crate::params;
use crate::pool::Room;
use crate::shares::{CLASSES, SANDBOX, Shares};

/// A job that has been claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The message.
    pub message: MessageId,
    /// Whose.
    pub tenant: TenantId,
    /// How often it has been claimed since a decision about it was last written down, this time included.
    pub claims: u32,
    /// The lane that it stood in, as [`crate::shares::rank`] counts.
    pub lane: u8,
}

/// What a claim took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// The jobs, the most urgent class first.
    pub jobs: Vec<Claimed>,
    /// More may be due.
    pub more: bool,
    /// More is due, and waits for a hand of its tenant's phones.
    pub full: bool,
}

/// Who had the last turn, in memory: a router that starts anew begins anew, and nobody loses more than a turn by it.
#[derive(Debug, Default)]
pub struct Turns {
    shares: Shares,
    last: [Option<TenantId>; CLASSES],
}

/// Jobs of each class that fall due in one claim; the next one moves more. A class has rows of its own, so that what is
/// urgent never waits for those that were due before it and matter less.
const PROMOTE_ROWS: usize = 512;

/// Claims up to `limit` due jobs, and of each tenant no more than its phones have hands: between classes by their weights,
/// between the tenants of a class in turn. What was claimed before and not decided, again and again, may be what ends the router: it is claimed alone, so that it takes
/// nothing else with it.
pub fn claim(
    tx: &mut Tx<'_>,
    turns: &mut Turns,
    now: UnixMs,
    limit: usize,
    room: Room<'_>,
) -> Result<Claim, StoreError> {
    promote(tx, now)?;
    let claim = match suspect(tx)? {
        Some(suspect) => Claim { jobs: vec![suspect], more: true, full: false },
        None => take_turns(tx, turns, limit, room)?,
    };
    if !claim.jobs.is_empty() {
        let messages: Vec<&MessageId> = claim.jobs.iter().map(|job| &job.message).collect();
        tx.execute("UPDATE jobs_in_hand SET messages = ?1 WHERE id = 1", params![Json(messages)])?;
    }
    Ok(claim)
}

fn take_turns(
    tx: &mut Tx<'_>,
    turns: &mut Turns,
    limit: usize,
    mut hands: Room<'_>,
) -> Result<Claim, StoreError> {
    // What was taken of a tenant in this very claim stands first among its due jobs.
    let mut taken_of: HashMap<(usize, TenantId), usize> = HashMap::new();
    let mut claim = |tx: &mut Tx<'_>, class: usize, tenant: &TenantId, count: usize| {
        let before = taken_of.entry((class, tenant.clone())).or_default();
        let got = tx.query(CLAIM, params![class, tenant, count, *before], |row| {
            let claims = row.get::<u32>(1)?.saturating_add(1);
            let lane = u8::try_from(class).unwrap_or(u8::MAX);
            Ok(Claimed { message: row.get(0)?, tenant: tenant.clone(), claims, lane })
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
            let mut lanes = open_lanes(tx, class, last.as_ref(), left, &mut hands)?;
            while left > 0 && !lanes.is_empty() {
                let share = left.div_ceil(lanes.len());
                let mut longer = Vec::new();
                for tenant in lanes {
                    if left == 0 {
                        break;
                    }
                    let asked = hands.of(&tenant, of_sandbox(class), share.min(left));
                    if asked == 0 {
                        continue;
                    }
                    let got = claim(tx, class, &tenant, asked)?;
                    hands.take(&tenant, of_sandbox(class), got.len());
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
    Ok(Claim { more: room == 0, jobs, full: hands.is_full() })
}

/// Whether a lane is the sandbox's, which has hands of its own.
fn of_sandbox(class: usize) -> bool {
    class == usize::from(SANDBOX)
}

const WAITS: &str = "SELECT EXISTS (SELECT 1 FROM jobs WHERE ready = 1 AND class_rank = ?1)";

const CLAIM: &str =
    "SELECT message_id, claims FROM jobs WHERE ready = 1 AND class_rank = ?1 AND tenant_id = ?2
     ORDER BY run_at LIMIT ?3 OFFSET ?4";

fn suspect(tx: &mut Tx<'_>) -> Result<Option<Claimed>, StoreError> {
    tx.query_opt(SUSPECT, params![], |row| {
        let claims = row.get::<u32>(2)?.saturating_add(1);
        Ok(Claimed { message: row.get(0)?, tenant: row.get(1)?, claims, lane: row.get(3)? })
    })
}

const SUSPECT: &str = "SELECT message_id, tenant_id, claims, class_rank FROM jobs WHERE ready = 1 AND claims > 1 ORDER BY run_at LIMIT 1";

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
    let_go(tx)
}

/// Nothing is in hand any more: a router that ends in order has left what it had claimed.
pub fn let_go(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute("UPDATE jobs_in_hand SET messages = '[]' WHERE id = 1", params![])?;
    Ok(())
}

/// Up to `limit` tenants with ready jobs of a class whose phones have a hand for one, those after the one that had the last
/// turn first. Whoever's phones are full is passed over, a look-up each.
fn open_lanes(
    tx: &mut Tx<'_>,
    class: usize,
    last: Option<&TenantId>,
    limit: usize,
    hands: &mut Room<'_>,
) -> Result<Vec<TenantId>, StoreError> {
    let mut open = Vec::new();
    let last = last.map_or("", TenantId::as_str);
    for (after, until) in [(last, "~"), ("", last)] {
        let mut after = after.to_owned();
        while open.len() < limit && after.as_str() < until {
            let lanes = tx.query(LANES, params![class, after, until, LANES_TOGETHER], |row| {
                row.get::<TenantId>(0)
            })?;
            let all = lanes.len() < LANES_TOGETHER;
            if let Some(last) = lanes.last() {
                last.as_str().clone_into(&mut after);
            }
            let wanted = limit.saturating_sub(open.len());
            let lanes =
                lanes.into_iter().filter(|tenant| hands.of(tenant, of_sandbox(class), 1) > 0);
            open.extend(lanes.take(wanted));
            if all {
                break;
            }
        }
    }
    Ok(open)
}

/// Tenants that are looked up at once.
const LANES_TOGETHER: usize = 64;

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
         SELECT * FROM (SELECT message_id FROM jobs WHERE ready = 0 AND class_rank = 3 AND run_at <= ?1 ORDER BY run_at LIMIT ?2)
         UNION ALL
         SELECT * FROM (SELECT message_id FROM jobs WHERE ready = 0 AND class_rank = 4 AND run_at <= ?1 ORDER BY run_at LIMIT ?2))
     RETURNING message_id, tenant_id";

/// When the next job falls due: now, where one is, unless those that are wait for a hand.
pub fn next_due(tx: &mut Tx<'_>, full: bool) -> Result<Option<UnixMs>, StoreError> {
    tx.query_row(NEXT_DUE, params![!full], |row| row.get(0))
}

const NEXT_DUE: &str = "SELECT CASE WHEN ?1 AND EXISTS (SELECT 1 FROM jobs WHERE ready = 1) THEN 0
     ELSE (SELECT MIN(due) FROM (
         SELECT MIN(run_at) AS due FROM jobs WHERE ready = 0 AND class_rank = 0
         UNION ALL SELECT MIN(run_at) FROM jobs WHERE ready = 0 AND class_rank = 1
         UNION ALL SELECT MIN(run_at) FROM jobs WHERE ready = 0 AND class_rank = 2
         UNION ALL SELECT MIN(run_at) FROM jobs WHERE ready = 0 AND class_rank = 3
         UNION ALL SELECT MIN(run_at) FROM jobs WHERE ready = 0 AND class_rank = 4)) END";

/// Has a message that stands in a line (see [`crate::lines`]) claimed before all others of its lane. False where it does
/// not wait any more, or for something else.
pub fn call(tx: &mut Tx<'_>, tenant: &TenantId, message: &MessageId) -> Result<bool, StoreError> {
    let called = tx.execute(
        "UPDATE jobs SET ready = 1, run_at = 0
         WHERE message_id = ?1 AND tenant_id = ?2 AND held_reason IS NULL",
        params![message, tenant],
    )?;
    Ok(called > 0)
}

/// A job as it is accepted: due at `run_at`, or at once.
pub fn add(
    tx: &mut Tx<'_>,
    (tenant, message): (&TenantId, &MessageId),
    class_rank: u8,
    (run_at, now): (UnixMs, UnixMs),
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO jobs (message_id, tenant_id, run_at, class_rank, ready) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![message, tenant, run_at, class_rank, run_at <= now],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use protocol::Class;

    use super::*;
    use crate::pool::{Caps, Pool};
    use crate::store::{dispatch as rows, in_memory};
    use crate::warming;

    const NOW: UnixMs = UnixMs(1_000_000);

    fn tenant(n: u8) -> TenantId {
        TenantId::new(1, [n; 10])
    }

    /// Where no phone is able, whatever is due is taken.
    fn pool() -> Pool {
        hands(&[])
    }

    fn hands(free: &[(Option<TenantId>, bool, u64)]) -> Pool {
        let warming =
            warming::Policy { enforce: false, steps: vec![], per_hour: 0, unanswered_max: 0 };
        let caps = Caps { warming: warming.into(), daily: 1_000, in_flight: 4 };
        Pool::with_hands(caps, free)
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
        let jobs = claim(&mut tx, turns, NOW, limit, pool().room()).unwrap().jobs;
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
        assert_eq!(next_due(&mut Tx::sqlite(&connection), false).unwrap(), None, "all of it goes");
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
            let jobs = claim(&mut tx, &mut turns, NOW, 8, pool().room()).unwrap().jobs;
            assert_eq!(jobs.len(), 3);
            assert!(jobs.iter().all(|job| job.claims == round));
            // The router ended, and another one starts.
            take_over(&mut tx, None).unwrap();
        }
        fill(&connection, 1, Class::Otp, 5);
        for _ in 0..3 {
            let jobs = claim(&mut tx, &mut turns, NOW, 8, pool().room()).unwrap().jobs;
            assert_eq!((jobs.len(), jobs[0].claims), (1, 3));
            decide(&connection, &jobs);
        }
        assert_eq!(turn(&connection, &mut turns, 8).len(), 5);
    }

    #[test]
    fn what_was_let_go_did_not_end_the_router() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        fill(&connection, 1, Class::Otp, 2);
        for _ in 0..6 {
            let jobs = claim(&mut tx, &mut turns, NOW, 8, pool().room()).unwrap().jobs;
            assert_eq!(jobs.iter().map(|job| job.claims).collect::<Vec<_>>(), [1, 1]);
            let_go(&mut tx).unwrap();
            take_over(&mut tx, None).unwrap();
        }
    }

    #[test]
    fn only_what_was_in_hand_and_is_still_due_counts_as_undecided() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        fill(&connection, 1, Class::Otp, 4);
        let jobs = claim(&mut tx, &mut turns, NOW, 3, pool().room()).unwrap().jobs;
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
        let later = claim(&mut tx, &mut turns, NOW.plus_ms(5), 8, pool().room()).unwrap().jobs;
        assert_eq!(later.iter().map(|job| job.claims).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[test]
    fn what_may_end_the_router_lets_everything_else_go_first() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        fill(&connection, 1, Class::Otp, 1);
        let quiet = NOW.plus_ms(5_000);
        for _ in 0..2 {
            assert_eq!(claim(&mut tx, &mut turns, NOW, 8, pool().room()).unwrap().jobs.len(), 1);
            take_over(&mut tx, Some(quiet)).unwrap();
        }
        fill(&connection, 2, Class::Marketing, 3);
        assert_eq!(of(&turn(&connection, &mut turns, 8), 2), 3);
        assert_eq!(next_due(&mut tx, false).unwrap(), Some(quiet));
        let late = claim(&mut tx, &mut turns, quiet, 8, pool().room()).unwrap().jobs;
        assert_eq!(late.iter().map(|job| job.claims).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn whoever_has_no_hand_free_keeps_its_place_and_is_in_nobodys_way() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        let mut free: Vec<_> = (1..=200).map(|n| (Some(tenant(n)), false, 0)).collect();
        for whose in 1..=200 {
            fill(&connection, whose, Class::Marketing, 10);
        }
        free[149].2 = 3;
        let claimed = claim(&mut tx, &mut turns, NOW, 8, hands(&free).room()).unwrap();
        assert_eq!((of(&claimed.jobs, 150), claimed.jobs.len()), (3, 3));
        assert!(claimed.full && !claimed.more);
        decide(&connection, &claimed.jobs);
        assert_eq!(next_due(&mut tx, true).unwrap(), None, "a bell rings for the rest");
        assert_eq!(next_due(&mut tx, false).unwrap(), Some(UnixMs(0)));
        // What is more urgent goes first when there is a hand, whatever waited before it.
        fill(&connection, 7, Class::Otp, 1);
        free[149].2 = 0;
        free[6].2 = 1;
        let claimed = claim(&mut tx, &mut turns, NOW, 8, hands(&free).room()).unwrap().jobs;
        assert_eq!(claimed.len(), 1);
        decide(&connection, &claimed);
        let left = tx
            .query_row("SELECT count(*) FROM jobs WHERE class_rank = 0", params![], |row| {
                row.int(0)
            })
            .unwrap();
        assert_eq!(left, 0, "the code");
        // Who has no phone that is able is told why it waits.
        fill(&connection, 250, Class::Marketing, 100);
        let claimed = claim(&mut tx, &mut turns, NOW, 80, hands(&free).room()).unwrap().jobs;
        assert_eq!((of(&claimed, 250), of(&claimed, 7)), (79, 1));
    }

    #[test]
    fn hands_that_all_share_are_given_once() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        for whose in 1..=3 {
            fill(&connection, whose, Class::Transactional, 10);
        }
        let pool = hands(&[(None, false, 4), (Some(tenant(2)), false, 2), (None, true, 50)]);
        let claimed = claim(&mut tx, &mut turns, NOW, 64, pool.room()).unwrap();
        assert_eq!(claimed.jobs.len(), 6, "not the sandbox's");
        assert!(of(&claimed.jobs, 2) >= 2, "{claimed:?}");
        assert!(claimed.full);
    }

    #[test]
    fn the_sandbox_has_a_lane_and_hands_of_its_own() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        fill(&connection, 1, Class::Otp, 10);
        let id = MessageId::new(1, [9; 10]);
        add(&mut tx, (&tenant(1), &id), SANDBOX, (NOW, NOW)).unwrap();
        let pool = hands(&[(None, false, 0), (None, true, 1)]);
        let claimed = claim(&mut tx, &mut turns, NOW, 64, pool.room()).unwrap();
        assert_eq!(claimed.jobs.iter().map(|job| &job.message).collect::<Vec<_>>(), [&id]);
    }

    #[test]
    fn whoever_is_called_is_the_next_of_its_lane() {
        let (connection, mut turns) = (in_memory::open_loose(), Turns::default());
        let mut tx = Tx::sqlite(&connection);
        fill(&connection, 1, Class::Transactional, 100);
        let (id, held) = (MessageId::new(1, [9; 10]), MessageId::new(1, [8; 10]));
        let rank = Class::Transactional.rank();
        rows::put_job(&mut tx, (&tenant(1), &id), rank, NOW.plus_ms(500), None).unwrap();
        rows::put_job(&mut tx, (&tenant(1), &held), rank, NOW, Some(protocol::Reason::QuietHours))
            .unwrap();
        assert!(call(&mut tx, &tenant(1), &id).unwrap());
        assert!(!call(&mut tx, &tenant(1), &held).unwrap(), "it waits for its hour");
        assert!(!call(&mut tx, &tenant(2), &id).unwrap(), "another's");
        let next = claim(&mut tx, &mut turns, NOW.plus_ms(-1), 1, pool().room()).unwrap().jobs;
        assert_eq!(next[0].message, id);
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
