//! A phone on several hosts: who serves it, who stands by, and how it changes hands.

use protocol::api::{FailOver, MoveRefused, PhoneHost, PhoneMove, ReplacedPhone};
use protocol::link::{PhoneState, PowerLevel};
use protocol::{E164, HostId, PhoneId, Reason, UnixMs};

use super::{Json, Row, StoreError, Tx};
use crate::lease::{self, Condition, Policy, Role};
use crate::params;

/// Beyond a lease and its grace, for which a serving host that does not answer is waited: a renewal, and what comes
/// between. A hand-over that takes longer has failed, and the host that serves the phone goes on.
const HAND_OVER_SLACK_MS: i64 = 10_000;

/// A host that stands by must have been heard of within this time to be chosen.
const HEARD_WITHIN_MS: i64 = 15_000;

/// The phones that a host serves, stands by for, or has served until another host was enrolled in its place: all of which
/// it has something to tell.
pub fn phones_of(tx: &mut Tx<'_>, host: &HostId) -> Result<Vec<PhoneId>, StoreError> {
    tx.query(
        "SELECT phone_id FROM phone_hosts WHERE host_id = ?1 ORDER BY phone_id",
        params![host],
        |row| row.parse(0),
    )
}

/// The phones that a host stands by for.
pub fn standby_of(tx: &mut Tx<'_>, host: &HostId) -> Result<Vec<PhoneId>, StoreError> {
    tx.query(
        "SELECT o.phone_id FROM phone_hosts o JOIN phones p ON p.id = o.phone_id
         WHERE o.host_id = ?1 AND o.retired_at IS NULL AND o.host_id <> COALESCE(p.host_id, '') ORDER BY o.phone_id",
        params![host],
        |row| row.get(0),
    )
}

/// Whether several hosts tell of a phone, or have told of it.
pub fn is_shared(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<bool, StoreError> {
    let hosts: u32 = tx.query_row(
        "SELECT count(*) FROM phone_hosts WHERE phone_id = ?1",
        params![phone],
        |row| row.get(0),
    )?;
    Ok(hosts > 1)
}

/// Makes a host one of those that a phone is configured on.
///
/// A host that serves the phone alone, without `standby`, takes it from the one that has served it so far, which is retired:
/// it gets the phone never again by itself, and is heard for what its journal has to tell. Those that stand by stay. A host
/// that is among them already changes nothing by coming again; one that was retired is one of them again.
pub fn enrolled(
    tx: &mut Tx<'_>,
    (phone, host): (&PhoneId, &HostId),
    standby: bool,
    now: UnixMs,
) -> Result<(), StoreError> {
    let serving: Option<HostId> =
        tx.query_row("SELECT host_id FROM phones WHERE id = ?1", params![phone], |row| row.get(0))?;
    let added = tx.execute(
        "INSERT INTO phone_hosts (phone_id, host_id, state, reasons, journal, changed_at, unready_since)
         VALUES (?1, ?2, 'stopped', '[]', NULL, ?3, ?3) ON CONFLICT (phone_id, host_id) DO UPDATE SET retired_at = NULL
         WHERE phone_hosts.retired_at IS NOT NULL",
        params![phone, host, now],
    )?;
    let takes = match &serving {
        None => true,
        Some(serving) => serving != host && added > 0 && !standby,
    };
    if !takes {
        return Ok(());
    }
    if let Some(serving) = serving.filter(|serving| serving != host) {
        tx.execute(
            "UPDATE phone_hosts SET retired_at = ?3 WHERE phone_id = ?1 AND host_id = ?2",
            params![phone, serving, now],
        )?;
        // What it was given is of an older epoch than the phone has now: it can be asked to give it back.
        next_epoch(tx, phone)?;
    }
    serve(tx, phone, host, now)
}

/// How a host stands to a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its role.
    pub role: Role,
    /// How the phone is there, where the host serves it and others stand by.
    pub condition: Option<Condition>,
}

/// How a host stands to a phone; `None` when the phone was never configured there. A retired host stands by and is never fit.
pub fn standing(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    host: &HostId,
    now: UnixMs,
) -> Result<Option<Standing>, StoreError> {
    tx.query_opt(
        "SELECT p.host_id = ?2, p.handed_to, p.handed_until, o.state, o.reasons, COALESCE(o.unready_since, o.changed_at),
             p.moved_at, h.power, h.drained_at,
             (SELECT count(*) FROM phone_hosts WHERE phone_id = p.id AND retired_at IS NULL), p.blocked_at IS NOT NULL,
             o.retired_at IS NOT NULL
         FROM phones p JOIN phone_hosts o ON o.phone_id = p.id AND o.host_id = ?2 JOIN hosts h ON h.id = ?2
         WHERE p.id = ?1",
        params![phone, host],
        |row| {
            let serves: bool = row.get::<Option<bool>>(0)?.unwrap_or(false);
            let until: Option<i64> = row.get(2)?;
            let heir: Option<HostId> =
                row.get::<Option<HostId>>(1)?.filter(|_| until.is_some_and(|until| until > now.0));
            let state = state_of(row, 3)?;
            let drained = row.get::<Option<i64>>(8)?.is_some();
            let blocked: bool = row.get(10)?;
            let retired: bool = row.get(11)?;
            let role = match &heir {
                Some(heir) if heir == host => Role::Heir,
                Some(_) if serves => Role::Leaving,
                Some(_) => Role::Standby { fit: false },
                None if serves => Role::Active,
                None => {
                    let fit = state == PhoneState::Ready && !drained && !blocked && !retired;
                    Role::Standby { fit }
                }
            };
            let relieved = role == Role::Active && row.int(9)? > 1;
            let condition = Condition {
                state,
                reasons: row.get::<Json<Vec<Reason>>>(4)?.0,
                since_ms: row.int(5)?,
                blocked,
                moved_ms: row.get(6)?,
                called_off_ms: until.filter(|until| *until <= now.0),
                power: row.opt_text(7)?.map(|word| power_of(&word)),
                drained,
            };
            Ok(Standing { role, condition: relieved.then_some(condition) })
        },
    )
}

/// A word that a newer program has written stands for what can do least.
fn state_of(row: &Row<'_>, index: usize) -> Result<PhoneState, StoreError> {
    Ok(PhoneState::of(&row.text(index)?).unwrap_or(PhoneState::Stopped))
}

fn power_of(word: &str) -> PowerLevel {
    PowerLevel::ALL.into_iter().find(|level| level.as_str() == word).unwrap_or(PowerLevel::Unknown)
}

/// Begins to hand a phone over, when the host that serves it cannot do it well and another one can.
pub fn relieve(
    tx: &mut Tx<'_>,
    policy: Policy,
    (phone, condition): (&PhoneId, &Condition),
    now: UnixMs,
) -> Result<bool, StoreError> {
    if !lease::unfit(policy, condition, now.0) {
        return Ok(false);
    }
    let candidates = candidates(tx, phone, now)?;
    let Some(heir) = fittest(&candidates) else { return Ok(false) };
    tracing::warn!(
        phone = %phone, to = %heir, state = condition.state.as_str(), reasons = ?condition.reasons,
        drained = condition.drained, power = ?condition.power,
        "lease: the phone is handed to a host that stands by"
    );
    begin(tx, policy, (phone, heir), now)?;
    Ok(true)
}

/// A host that stands by for a phone.
struct Candidate {
    host: HostId,
    /// Ready, heard of, not drained.
    able: bool,
    /// On a battery it is nobody's first choice.
    on_battery: bool,
}

/// The hosts that stand by for a phone, those that have been as they are for longest first.
fn candidates(tx: &mut Tx<'_>, phone: &PhoneId, now: UnixMs) -> Result<Vec<Candidate>, StoreError> {
    tx.query(
        "SELECT o.host_id, o.state = 'ready' AND h.session IS NOT NULL AND h.last_seen_at >= ?2 AND h.drained_at IS NULL,
             h.power
         FROM phone_hosts o JOIN phones p ON p.id = o.phone_id JOIN hosts h ON h.id = o.host_id
         WHERE o.phone_id = ?1 AND o.host_id <> COALESCE(p.host_id, '') AND o.retired_at IS NULL ORDER BY o.changed_at",
        params![phone, now.plus_ms(-HEARD_WITHIN_MS)],
        |row| {
            let power = row.opt_text(2)?.map(|word| power_of(&word));
            Ok(Candidate {
                host: row.get(0)?,
                able: row.get::<Option<bool>>(1)?.unwrap_or(false),
                on_battery: matches!(power, Some(PowerLevel::Battery | PowerLevel::Low)),
            })
        },
    )
}

/// The one that could take the phone over this moment, if there is one.
fn fittest(candidates: &[Candidate]) -> Option<&HostId> {
    candidates.iter().find(|one| one.able && !one.on_battery).map(|one| &one.host)
}

/// Begins a hand-over: from here on nothing is dispatched to the host that serves the phone, and it is granted nothing.
/// What was dispatched before is of an older epoch than the lease has now.
fn begin(
    tx: &mut Tx<'_>,
    policy: Policy,
    (phone, heir): (&PhoneId, &HostId),
    now: UnixMs,
) -> Result<(), StoreError> {
    let within_ms =
        policy.ttl_ms.saturating_add(policy.grace_ms).saturating_add(HAND_OVER_SLACK_MS);
    tx.execute(
        "UPDATE phones SET handed_to = ?2, handed_until = ?3, updated_at = ?4 WHERE id = ?1",
        params![phone, heir, now.plus_ms(within_ms), now],
    )?;
    next_epoch(tx, phone)
}

/// Makes the epoch of a phone's lease newer than all that was dispatched.
fn next_epoch(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE leases SET epoch = epoch + 1, released = 0 WHERE phone_id = ?1",
        params![phone],
    )?;
    Ok(())
}

/// What the operator has brought about.
#[derive(Debug, Clone, PartialEq)]
pub struct Begun {
    /// What the operator is told.
    pub told: PhoneMove,
    /// The epoch whose release the serving host is asked for.
    pub epoch: Option<u64>,
    /// The phone's account counts as blocked.
    pub blocked: bool,
}

/// Hands a phone over by the operator's wish: to the host that is named, or to the fittest that stands by. With `force` also
/// to one that is not there; with `despite_block` also one whose account counts as blocked.
pub fn hand_over(
    tx: &mut Tx<'_>,
    policy: Policy,
    phone: &PhoneId,
    ask: &FailOver,
    now: UnixMs,
) -> Result<Option<Begun>, StoreError> {
    let found = tx.query_opt(
        "SELECT host_id, blocked_at IS NOT NULL FROM phones WHERE id = ?1",
        params![phone],
        |row| Ok((row.get::<Option<HostId>>(0)?, row.get::<bool>(1)?)),
    )?;
    let Some((from, blocked)) = found else { return Ok(None) };
    let heir = match heir(tx, phone, (from.as_ref(), ask.to.as_ref()), ask.force, now)? {
        // Said last: whoever lifts the block for this move should know that there is somebody to take the phone.
        Ok(_) if blocked && !ask.despite_block => Err(MoveRefused::AccountBlocked),
        other => other,
    };
    let heir = match heir {
        Ok(heir) => heir,
        Err(why) => {
            let told = PhoneMove { phone: phone.clone(), from, to: None, refused: Some(why) };
            return Ok(Some(Begun { told, epoch: None, blocked }));
        }
    };
    begin(tx, policy, (phone, &heir), now)?;
    let epoch = super::lease::current(tx, phone)?.map(|lease| lease.epoch);
    let told = PhoneMove { phone: phone.clone(), from, to: Some(heir), refused: None };
    Ok(Some(Begun { told, epoch, blocked }))
}

fn heir(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    (from, to): (Option<&HostId>, Option<&HostId>),
    force: bool,
    now: UnixMs,
) -> Result<Result<HostId, MoveRefused>, StoreError> {
    let others = candidates(tx, phone, now)?;
    let chosen = match to {
        Some(to) if Some(to) == from => return Ok(Err(MoveRefused::AlreadyThere)),
        Some(to) => match others.iter().find(|one| one.host == *to) {
            None => return Ok(Err(MoveRefused::NotConfiguredThere)),
            Some(one) => (one.able || force).then_some(&one.host),
        },
        None if others.is_empty() => return Ok(Err(MoveRefused::NoStandby)),
        None => fittest(&others).or(others.first().filter(|_| force).map(|one| &one.host)),
    };
    Ok(chosen.cloned().ok_or(MoveRefused::StandbyNotReady))
}

/// The phones that a host serves.
pub fn served_by(tx: &mut Tx<'_>, host: &HostId) -> Result<Vec<PhoneId>, StoreError> {
    tx.query("SELECT id FROM phones WHERE host_id = ?1 ORDER BY id", params![host], |row| {
        row.get(0)
    })
}

/// There is such a host.
pub fn host_exists(tx: &mut Tx<'_>, host: &HostId) -> Result<bool, StoreError> {
    let found =
        tx.query_opt("SELECT 1 FROM hosts WHERE id = ?1", params![host], |row| row.int(0))?;
    Ok(found.is_some())
}

/// Gives a host nothing new from now on, or again. False when there is no such host.
pub fn drain(
    tx: &mut Tx<'_>,
    host: &HostId,
    drained: bool,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let since = drained.then_some(now);
    let changed = tx.execute(
        "UPDATE hosts SET drained_at = CASE WHEN ?2 IS NULL THEN NULL ELSE COALESCE(drained_at, ?2) END WHERE id = ?1",
        params![host, since],
    )?;
    Ok(changed > 0)
}

/// Notes that the host that serves a phone sends no more under epochs older than `epoch`. Answers the host that waits
/// for it; `None` when nobody does, or the word is of an earlier hand-over.
pub fn released(
    tx: &mut Tx<'_>,
    (phone, host): (&PhoneId, &HostId),
    epoch: u64,
    now: UnixMs,
) -> Result<Option<HostId>, StoreError> {
    let heir = tx
        .query_opt(
            "SELECT handed_to FROM phones WHERE id = ?1 AND host_id = ?2 AND handed_until > ?3",
            params![phone, host, now],
            |row| row.get::<Option<HostId>>(0),
        )?
        .flatten();
    if heir.is_none() {
        return Ok(None);
    }
    let changed = tx.execute(
        "UPDATE leases SET released = 1 WHERE phone_id = ?1 AND host_id = ?2 AND epoch = ?3",
        params![phone, host, epoch],
    )?;
    Ok(heir.filter(|_| changed > 0))
}

/// Makes `host` the one that serves the phone.
pub fn serve(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    host: &HostId,
    now: UnixMs,
) -> Result<(), StoreError> {
    type Found = (PhoneState, Json<Vec<Reason>>, Option<String>, Option<UnixMs>);
    let (state, reasons, journal, blocked_at): Found = tx.query_row(
        "SELECT o.state, o.reasons, o.journal, p.blocked_at FROM phone_hosts o JOIN phones p ON p.id = o.phone_id
         WHERE o.phone_id = ?1 AND o.host_id = ?2",
        params![phone, host],
        |row| Ok((state_of(row, 0)?, row.get(1)?, row.opt_text(2)?, row.get(3)?)),
    )?;
    let blocked = lease::blocked(blocked_at.is_some(), state, &reasons.0);
    let blocked_at = blocked.then(|| blocked_at.unwrap_or(now));
    tx.execute(
        "UPDATE phones SET host_id = ?2, state = ?3, reasons = ?4, journal = ?5, handed_to = NULL, handed_until = NULL,
             moved_at = CASE WHEN host_id IS NULL THEN NULL ELSE ?6 END, updated_at = ?6, blocked_at = ?7
         WHERE id = ?1",
        params![phone, host, state.as_str(), reasons, journal, now, blocked_at],
    )?;
    Ok(())
}

/// The hosts of a phone, the serving one first.
pub fn hosts_of(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<Vec<PhoneHost>, StoreError> {
    tx.query(
        "SELECT o.host_id, o.host_id = p.host_id, h.session, o.state, o.reasons, h.last_seen_at
         FROM phone_hosts o JOIN phones p ON p.id = o.phone_id JOIN hosts h ON h.id = o.host_id
         WHERE o.phone_id = ?1 AND o.retired_at IS NULL ORDER BY o.host_id <> COALESCE(p.host_id, ''), o.host_id",
        params![phone],
        |row| {
            Ok(PhoneHost {
                host: row.get(0)?,
                active: row.get::<Option<bool>>(1)?.unwrap_or(false),
                online: row.opt_text(2)?.is_some(),
                state: state_of(row, 3)?,
                reasons: row.get::<Json<Vec<Reason>>>(4)?.0,
                seen_at: row.get(5)?,
            })
        },
    )
}

/// Why a phone cannot take another one's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CannotReplace {
    /// There is no such phone.
    NoPhone,
    /// There is no phone of the id in `by`.
    NoSuccessor,
    /// The successor is itself replaced by another one.
    SuccessorReplaced,
    /// The two are reserved for different tenants.
    OtherTenant,
    /// One is of the sandbox and the other is not.
    OtherKind,
}

/// Puts `by` into the place of `phone`: what is reserved for a tenant, and the conversations, go on there; the phone
/// itself gets nothing any more. The phone's own id in `by` undoes the last of these; conversations stay on both.
pub fn replace(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    by: &PhoneId,
    now: UnixMs,
) -> Result<Result<ReplacedPhone, CannotReplace>, StoreError> {
    type Found = (E164, Option<String>, Option<PhoneId>, bool);
    let mut find = |phone: &PhoneId| -> Result<Option<Found>, StoreError> {
        tx.query_opt(
            "SELECT number, exclusive_tenant_id, replaced_by, sandbox FROM phones WHERE id = ?1 AND provider IS NULL",
            params![phone],
            |row| Ok((row.get(0)?, row.opt_text(1)?, row.get(2)?, row.get(3)?)),
        )
    };
    let Some((number, tenant, _, sandbox)) = find(phone)? else {
        return Ok(Err(CannotReplace::NoPhone));
    };
    let mut moved =
        ReplacedPhone { phone: phone.clone(), by: by.clone(), conversations: 0, messages: 0 };
    if phone == by {
        tx.execute(
            "UPDATE phones SET replaced_by = NULL, updated_at = ?2 WHERE id = ?1",
            params![phone, now],
        )?;
        return Ok(Ok(moved));
    }
    let Some((_, of_successor, further, of_sandbox)) = find(by)? else {
        return Ok(Err(CannotReplace::NoSuccessor));
    };
    if further.is_some() {
        return Ok(Err(CannotReplace::SuccessorReplaced));
    }
    if sandbox != of_sandbox {
        return Ok(Err(CannotReplace::OtherKind));
    }
    if of_successor.is_some() && of_successor != tenant {
        return Ok(Err(CannotReplace::OtherTenant));
    }
    tx.execute(
        "UPDATE phones SET replaced_by = ?2, updated_at = ?3 WHERE id = ?1",
        params![phone, by, now],
    )?;
    // Whoever was replaced by this phone is served by its successor.
    tx.execute(
        "UPDATE phones SET replaced_by = ?2, updated_at = ?3 WHERE replaced_by = ?1",
        params![phone, by, now],
    )?;
    tx.execute(
        "UPDATE phones SET exclusive_tenant_id = ?2, updated_at = ?3 WHERE id = ?1",
        params![by, tenant, now],
    )?;
    moved.conversations = u64::try_from(tx.execute(
        // What went unanswered stays where it was sent: it is counted over all phones.
        "INSERT INTO bindings (tenant_id, recipient, phone_id, last_at, last_direction, last_inbound_at)
         SELECT tenant_id, recipient, ?2, last_at, last_direction, last_inbound_at FROM bindings WHERE phone_id = ?1
         ON CONFLICT (recipient, phone_id, tenant_id) DO UPDATE SET last_at = excluded.last_at,
             last_direction = excluded.last_direction,
             last_inbound_at = COALESCE(MAX(excluded.last_inbound_at, bindings.last_inbound_at),
                 excluded.last_inbound_at, bindings.last_inbound_at)
         WHERE excluded.last_at > bindings.last_at",
        params![phone, by],
    )?)
    .unwrap_or(u64::MAX);
    moved.messages = tx.query_row(
        "SELECT count(*) FROM messages WHERE status IN ('queued', 'scheduled') AND asked_from = ?1",
        params![number],
        |row| row.get(0),
    )?;
    Ok(Ok(moved))
}
