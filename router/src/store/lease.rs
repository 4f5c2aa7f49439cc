//! Hosts and their phones as the link sees them: sessions, reports, journals and leases.

use std::collections::BTreeSet;

use protocol::link::{PhoneReport, PhoneState, PowerLevel};
use protocol::{HostId, PhoneId, Reason, UnixMs};

use super::{Json, StoreError, Tx, dispatch, standby};
use crate::lease::{self, Decision, Lease, Policy, Role};
use crate::params;

/// The Ed25519 key of an enrolled host.
pub fn public_key(tx: &mut Tx<'_>, host: &HostId) -> Result<Option<Vec<u8>>, StoreError> {
    tx.query_opt("SELECT public_key FROM hosts WHERE id = ?1", params![host.as_str()], |row| {
        row.get(0)
    })
}

/// Notes that a host has a session, and with what program.
pub fn session_began(
    tx: &mut Tx<'_>,
    host: &HostId,
    session: &str,
    (boot, version): (&str, &str),
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE hosts SET session = ?2, boot = ?3, version = ?4, last_seen_at = ?5 WHERE id = ?1",
        params![host.as_str(), session, boot, version, now],
    )?;
    Ok(())
}

/// Notes that a host was heard of, and what it runs on where it says so.
pub fn host_seen(
    tx: &mut Tx<'_>,
    host: &HostId,
    power: Option<PowerLevel>,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE hosts SET last_seen_at = ?2, power = ?3 WHERE id = ?1",
        params![host.as_str(), now, power.map(PowerLevel::as_str)],
    )?;
    Ok(())
}

/// Notes that a session has ended, unless a newer one has taken its place.
pub fn session_ended(tx: &mut Tx<'_>, host: &HostId, session: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE hosts SET session = NULL WHERE id = ?1 AND session = ?2",
        params![host.as_str(), session],
    )?;
    Ok(())
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// The phone is not this host's; nothing was written.
    Foreign,
    /// The host stands by for the phone, which another one serves.
    Standby,
    /// As before.
    Same,
    /// It can send now and could not before.
    BecameReady,
    /// It was ready before; its state has changed.
    LeftReady,
    /// It changed between two states in which it cannot send.
    Changed,
}

/// Writes down what a host says of a phone, if the phone is that host's.
pub fn report(
    tx: &mut Tx<'_>,
    host: &HostId,
    report: &PhoneReport,
    now: UnixMs,
) -> Result<Reported, StoreError> {
    let phone = report.phone.as_str();
    let before = tx.query_opt(
        "SELECT o.state, o.reasons, o.journal, p.host_id = o.host_id, p.blocked_at
         FROM phone_hosts o JOIN phones p ON p.id = o.phone_id WHERE o.phone_id = ?1 AND o.host_id = ?2",
        params![phone, host],
        |row| {
            let reasons = row.get::<Json<Vec<Reason>>>(1)?.0;
            let serves = row.get::<Option<bool>>(3)?.unwrap_or(false);
            Ok((row.text(0)?, reasons, row.opt_text(2)?, serves, row.get::<Option<UnixMs>>(4)?))
        },
    )?;
    let Some((state, reasons, journal, serves, blocked_at)) = before else {
        return Ok(Reported::Foreign);
    };
    if serves {
        block(tx, report, blocked_at, now)?;
    }
    // A report without a journal comes before the bridge's first hello and says nothing against the old one.
    let new_journal = report.journal.clone().or_else(|| journal.clone());
    let new_state = report.state.as_str();
    let same = state == new_state && reasons == report.reasons;
    if same && journal == new_journal {
        return Ok(if serves { Reported::Same } else { Reported::Standby });
    }
    tx.execute(
        "UPDATE phone_hosts SET state = ?3, reasons = ?4, journal = ?5,
             changed_at = CASE WHEN ?6 THEN changed_at ELSE ?7 END,
             unready_since = CASE WHEN ?3 = 'ready' THEN NULL ELSE COALESCE(unready_since, ?7) END
         WHERE phone_id = ?1 AND host_id = ?2",
        params![phone, host, new_state, Json(&report.reasons), new_journal, same, now],
    )?;
    if !serves {
        return Ok(Reported::Standby);
    }
    tx.execute(
        "UPDATE phones SET state = ?2, reasons = ?3, journal = ?4, updated_at = ?5 WHERE id = ?1",
        params![phone, new_state, Json(&report.reasons), new_journal, now],
    )?;
    let ready = PhoneState::Ready.as_str();
    Ok(match (state == ready, new_state == ready) {
        (false, true) => Reported::BecameReady,
        (true, false) => Reported::LeftReady,
        (true, true) | (false, false) => Reported::Changed,
    })
}

/// Keeps whether the account of a phone is blocked, by the word of the host that serves it.
fn block(
    tx: &mut Tx<'_>,
    report: &PhoneReport,
    before: Option<UnixMs>,
    now: UnixMs,
) -> Result<(), StoreError> {
    let phone = &report.phone;
    match (before.is_some(), lease::blocked(before.is_some(), report.state, &report.reasons)) {
        (false, true) => {
            tracing::error!(%phone, "lease: the account is blocked, says its host: nothing is sent, and no host takes over");
            // A hand-over that was begun when nobody knew is called off.
            tx.execute(
                "UPDATE phones SET blocked_at = ?2, handed_until = CASE WHEN handed_until > ?2 THEN ?2 ELSE handed_until END
                 WHERE id = ?1",
                params![phone, now],
            )?;
        }
        (true, false) => {
            tracing::warn!(%phone, "lease: the account is not blocked any more, says its host");
            tx.execute("UPDATE phones SET blocked_at = NULL WHERE id = ?1", params![phone])?;
        }
        (true, true) | (false, false) => {}
    }
    Ok(())
}

/// The last event of a journal that has been taken in; 0 when none has.
pub fn acked_seq(tx: &mut Tx<'_>, phone: &PhoneId, journal: &str) -> Result<u64, StoreError> {
    let seq = tx.query_opt(
        "SELECT acked_seq FROM phone_journals WHERE phone_id = ?1 AND journal = ?2",
        params![phone.as_str(), journal],
        |row| row.get(0),
    )?;
    Ok(seq.unwrap_or(0))
}

/// Moves the mark of a journal forward; a smaller mark than the one that stands changes nothing.
pub fn set_acked_seq(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    journal: &str,
    seq: u64,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO phone_journals (phone_id, journal, acked_seq, updated_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (phone_id, journal) DO UPDATE SET acked_seq = excluded.acked_seq,
             updated_at = excluded.updated_at
         WHERE excluded.acked_seq > phone_journals.acked_seq",
        params![phone.as_str(), journal, seq, now],
    )?;
    Ok(())
}

/// The lease of a phone, as it stands.
pub fn current(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<Option<Lease>, StoreError> {
    tx.query_opt(
        "SELECT host_id, epoch, expires_at, released FROM leases WHERE phone_id = ?1",
        params![phone.as_str()],
        |row| {
            Ok(Lease {
                host: row.text(0)?,
                epoch: row.get(1)?,
                expires_ms: row.int(2)?,
                released: row.get(3)?,
            })
        },
    )
}

/// Largest epoch taken over from a host. Epochs grow by one with each change of hands; a larger claim is a fault of the
/// host's, and must not use up the numbers.
const EPOCH_MAX: u64 = 1 << 40;

/// Lifts the epoch of a phone's lease above one that its bridge has seen: a bridge refuses older ones, and only it may
/// remember, when the store was restored from an old copy and the supervisor has started anew. Its host learns the
/// new epoch with its next renewal. Answers whether it was lifted.
pub fn heard_epoch(tx: &mut Tx<'_>, phone: &PhoneId, seen: u64) -> Result<bool, StoreError> {
    if seen > EPOCH_MAX {
        return Ok(false);
    }
    let lifted = tx.execute(
        "UPDATE leases SET epoch = ?2 + 1 WHERE phone_id = ?1 AND epoch < ?2",
        params![phone, seen],
    )?;
    Ok(lifted > 0)
}

/// An answer to a host that asked for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What it gets.
    pub decision: Decision,
    /// The phone was without a live lease until now: it may have become able.
    pub lapsed: bool,
    /// The asker serves the phone and is to give it up: what it holds of older epochs ends.
    pub release: Option<u64>,
    /// The asker has the phone now, and another host had it before.
    pub took: Option<Took>,
}

/// How a phone came to another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Took {
    /// Its last host had released it.
    pub planned: bool,
    /// Attempts of which nobody knows what became of them.
    pub lost: usize,
}

/// Grants or renews the lease of a phone for `host`, or says until when another host has it.
///
/// `at_least` is the newest epoch that the host says it has seen: a router whose store was restored from an old copy
/// must not hand out an epoch that bridges already refuse.
pub fn ask(
    tx: &mut Tx<'_>,
    policy: Policy,
    (phone, host): (&PhoneId, &HostId),
    at_least: Option<u64>,
    now: UnixMs,
) -> Result<Asked, StoreError> {
    let Some(mut standing) = standby::standing(tx, phone, host, now)? else {
        return Err(StoreError::NoRow);
    };
    // Before anything is decided: a hand-over that begins here must name an epoch that the host's bridge does not know.
    let lifted = match at_least {
        Some(seen) => heard_epoch(tx, phone, seen)?,
        None => false,
    };
    if let Some(condition) = &standing.condition
        && standby::relieve(tx, policy, (phone, condition), now)?
    {
        standing.role = Role::Leaving;
    }
    let role = standing.role;
    let current = current(tx, phone)?;
    let lapsed = current.as_ref().is_none_or(|lease| !lease::live(lease, host.as_str(), now.0));
    let decision = lease::decide(policy, current.as_ref(), (host.as_str(), role), now.0);
    let (mut granted, renewed) = match decision {
        Decision::Refuse { .. } => {
            let release = current
                .filter(|lease| role == Role::Leaving && !lease.released)
                .map(|lease| lease.epoch);
            return Ok(Asked { decision, lapsed, release, took: None });
        }
        Decision::Grant(lease) => (lease, false),
        Decision::Renew(lease) => (lease, true),
    };
    // The first lease of all: there was none to be lifted.
    if let Some(seen) = at_least.filter(|seen| (granted.epoch + 1..=EPOCH_MAX).contains(seen)) {
        granted.epoch = seen.saturating_add(1);
    }
    let renewed = renewed && !lifted;
    tx.execute(
        "INSERT INTO leases (phone_id, epoch, host_id, granted_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (phone_id) DO UPDATE SET epoch = excluded.epoch, host_id = excluded.host_id,
             granted_at = CASE WHEN ?6 THEN leases.granted_at ELSE excluded.granted_at END,
             expires_at = excluded.expires_at, released = 0",
        params![phone.as_str(), granted.epoch, host.as_str(), now, granted.expires_ms, renewed],
    )?;
    let decision = if renewed { Decision::Renew(granted) } else { Decision::Grant(granted) };
    let took = match role {
        Role::Heir | Role::Standby { .. } => {
            let released = current.as_ref().is_some_and(|lease| lease.released);
            let answers = match current.filter(|_| !released) {
                Some(lease) => hears(tx, &lease.host, now.plus_ms(-policy.ttl_ms))?,
                None => released,
            };
            let lost = take_over(tx, (phone, host), answers, now)?;
            Some(Took { planned: released, lost })
        }
        Role::Active | Role::Leaving => None,
    };
    Ok(Asked { decision, lapsed, release: None, took })
}

/// Whether a host has a session and was heard of since `since`.
fn hears(tx: &mut Tx<'_>, host: &str, since: UnixMs) -> Result<bool, StoreError> {
    let found = tx.query_opt(
        "SELECT 1 FROM hosts WHERE id = ?1 AND session IS NOT NULL AND last_seen_at > ?2",
        params![host, since],
        |row| row.int(0),
    )?;
    Ok(found.is_some())
}

/// The phone is served by `host` from now on. The one that served it `answers` for what it has in hand when it is there:
/// it has released the phone, or only its bridge is away. What a host has that is gone is as good as lost: its attempts
/// become `unknown`, and whoever learns the truth later may still say it. Answers how many these are.
fn take_over(
    tx: &mut Tx<'_>,
    (phone, host): (&PhoneId, &HostId),
    answers: bool,
    now: UnixMs,
) -> Result<usize, StoreError> {
    standby::serve(tx, phone, host, now)?;
    let mut lost = 0;
    if !answers {
        for given in dispatch::of_other_journals(tx, phone)? {
            dispatch::host_lost(tx, &given, now)?;
            lost += 1;
        }
    }
    Ok(lost)
}

/// A phone that a host says nothing of is not configured there any more: what it last said of it does not hold.
pub fn not_reported(
    tx: &mut Tx<'_>,
    host: &HostId,
    own: &[PhoneId],
    reported: &BTreeSet<PhoneId>,
    now: UnixMs,
) -> Result<(), StoreError> {
    for phone in own.iter().filter(|phone| !reported.contains(*phone)) {
        let stopped = PhoneReport {
            phone: phone.clone(),
            journal: None,
            last_seq: 0,
            acked_seq: 0,
            epoch: None,
            state: PhoneState::Stopped,
            reasons: Vec::new(),
        };
        report(tx, host, &stopped, now)?;
    }
    Ok(())
}
