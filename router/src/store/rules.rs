//! What the rules need to know of a message, and what they have decided.

use data_encoding::HEXLOWER;
use protocol::api::{RuleDecision, TenantRules};
use protocol::{Class, MessageId, Reason, Recipient, TenantId, UnixMs};

use super::inbound::nobody;
use super::{StoreError, Tx};
use crate::compliance::place::Contact;
use crate::compliance::{OptOut, Verdict};
use crate::params;

/// A tenant's rules; the defaults where it has chosen none.
pub fn of_tenant(tx: &mut Tx<'_>, tenant: &TenantId) -> Result<Option<TenantRules>, StoreError> {
    let json = tx
        .query_opt("SELECT rules FROM tenants WHERE id = ?1", params![tenant], |row| row.text(0))?;
    json.map(|json| parse(&json)).transpose()
}

fn parse(json: &str) -> Result<TenantRules, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::corrupt("tenants.rules", error))
}

/// Replaces a tenant's rules. False when there is no such tenant. What they hold is to be looked at again: [`look_again`].
pub fn set(tx: &mut Tx<'_>, tenant: &TenantId, rules: &TenantRules) -> Result<bool, StoreError> {
    let json = serde_json::to_string(rules)
        .map_err(|error| StoreError::corrupt("tenants.rules", error))?;
    let changed =
        tx.execute("UPDATE tenants SET rules = ?2 WHERE id = ?1", params![tenant, json])?;
    Ok(changed > 0)
}

/// Asks again about a tenant's messages that wait for their hour, because the hours have changed: `limit` of them, those after
/// `after` in the order of their ids. Answers the last one; `None` when there was none.
pub fn look_again(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    after: Option<&MessageId>,
    limit: usize,
    now: UnixMs,
) -> Result<Option<MessageId>, StoreError> {
    let after = after.map_or("", MessageId::as_str);
    let woken: Vec<MessageId> =
        tx.query(LOOK_AGAIN, params![tenant, Reason::QuietHours, now, after, limit], |row| {
            row.get(0)
        })?;
    Ok(woken.into_iter().max())
}

pub(super) const LOOK_AGAIN: &str = "UPDATE jobs SET run_at = ?3 WHERE message_id IN (
         SELECT message_id FROM jobs WHERE held_reason = ?2 AND tenant_id = ?1 AND message_id > ?4
         ORDER BY message_id LIMIT ?5)
     RETURNING message_id";

/// What stands in the store about (tenant, recipient), as far as the rules ask for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// The tenant's rules.
    pub rules: TenantRules,
    /// Whether the recipient has opted out.
    pub opt_out: OptOut,
    /// What the tenant says of the recipient.
    pub contact: Contact,
    /// When the recipient last wrote to the tenant.
    pub last_inbound_ms: Option<i64>,
    /// The tenant has never talked with the recipient.
    pub first_message: bool,
}

/// Everything that is known, in one look: of the sandbox what its own phones and test keys have learnt, of the others what
/// they have. An error where there is no such tenant, or a row cannot be read.
pub fn known(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
) -> Result<Known, StoreError> {
    let found = tx.query_opt(KNOWN, params![tenant, recipient, nobody(), test], |row| {
        let known = Known {
            rules: parse(&row.text(0)?)?,
            opt_out: opt_out(row.opt_text(1)?.as_deref(), row.opt_text(2)?.as_deref()),
            contact: Contact { time_zone: row.opt_text(3)?, state: row.opt_text(4)? },
            last_inbound_ms: row.get(5)?,
            first_message: row.int(6)? == 0,
        };
        Ok((known, row.opt_text(7)?))
    })?;
    let (mut known, person) = found.ok_or(StoreError::NoRow)?;
    // Few are known by more than one number or address: nobody else pays for asking.
    if let Some(person) = person
        && known.opt_out == OptOut::Clear
    {
        known.opt_out = person_opt_out(tx, (tenant, test), &person)?;
    }
    Ok(known)
}

/// Whether a person has opted out on any number or address that is known to be theirs.
fn person_opt_out(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    person: &str,
) -> Result<OptOut, StoreError> {
    let all = tx.query(OF_PERSON, params![tenant, test, person, nobody()], |row| {
        Ok(opt_out(row.opt_text(0)?.as_deref(), row.opt_text(1)?.as_deref()))
    })?;
    Ok(if all.contains(&OptOut::OptedOut) {
        OptOut::OptedOutElsewhere
    } else if all.contains(&OptOut::Unreadable) {
        OptOut::Unreadable
    } else {
        OptOut::Clear
    })
}

pub(super) const OF_PERSON: &str = "SELECT o.state, everybody.state FROM contacts c
     LEFT JOIN opt_outs o ON o.tenant_id = ?1 AND o.test = ?2 AND o.recipient = c.recipient
     LEFT JOIN opt_outs everybody ON everybody.tenant_id = ?4 AND everybody.test = 0 AND everybody.recipient = c.recipient
     WHERE c.tenant_id = ?1 AND c.test = ?2 AND c.person = ?3";

pub(super) const KNOWN: &str = "SELECT t.rules, o.state, everybody.state, c.time_zone, c.state,
         (SELECT MAX(b.last_inbound_at) FROM bindings b CROSS JOIN phones p
          WHERE b.tenant_id = ?1 AND b.recipient = ?2 AND p.id = b.phone_id AND p.sandbox = ?4),
         EXISTS (SELECT 1 FROM bindings b CROSS JOIN phones p
                 WHERE b.tenant_id = ?1 AND b.recipient = ?2 AND p.id = b.phone_id AND p.sandbox = ?4),
         c.person
     FROM tenants t
     LEFT JOIN opt_outs o ON o.tenant_id = ?1 AND o.test = ?4 AND o.recipient = ?2
     LEFT JOIN opt_outs everybody ON everybody.tenant_id = ?3 AND everybody.test = 0 AND everybody.recipient = ?2
     LEFT JOIN contacts c ON c.tenant_id = ?1 AND c.test = ?4 AND c.recipient = ?2
     WHERE t.id = ?1";

/// The stricter of the tenant's own entry and everybody's.
fn opt_out(own: Option<&str>, everybodys: Option<&str>) -> OptOut {
    let one = |state: Option<&str>| match state {
        None | Some("opted_in") => OptOut::Clear,
        Some("opted_out") => OptOut::OptedOut,
        Some(_) => OptOut::Unreadable,
    };
    match (one(own), one(everybodys)) {
        (OptOut::OptedOut, _) | (_, OptOut::OptedOut) => OptOut::OptedOut,
        (OptOut::Unreadable, _) | (_, OptOut::Unreadable) => OptOut::Unreadable,
        (OptOut::Clear | OptOut::OptedOutElsewhere, OptOut::Clear | OptOut::OptedOutElsewhere) => {
            OptOut::Clear
        }
    }
}

/// A decision as the ledger keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What was decided.
    pub verdict: Verdict,
    /// By which class's rules.
    pub class: Class,
    /// The version of the rules and of the hours.
    pub rules: &'a str,
    /// The version of the time zone data.
    pub zones: &'a str,
    /// The SHA-256 of the text.
    pub text_hash: &'a [u8],
}

/// Writes a decision into the ledger, unless the message's newest one says the same.
pub fn record(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    decision: &Decision<'_>,
    now: UnixMs,
) -> Result<(), StoreError> {
    let (reason, until) = match decision.verdict {
        Verdict::Send { until_ms: i64::MAX } | Verdict::Expire => (None, None),
        Verdict::Send { until_ms } => (None, Some(until_ms)),
        // A hold that has no moment lasts as long as the message lives.
        Verdict::Hold { until_ms: i64::MAX, reason } | Verdict::Block { reason, .. } => {
            (Some(reason), None)
        }
        Verdict::Hold { until_ms, reason } => (Some(reason), Some(until_ms)),
    };
    let values = params![
        id,
        tenant,
        now,
        decision.verdict.as_str(),
        reason,
        until,
        decision.class,
        decision.rules,
        decision.zones,
        decision.text_hash
    ];
    // Most messages are decided once.
    let first = tx.execute(
        "INSERT INTO decisions
             (message_id, number, tenant_id, at, verdict, reason, until, class, rules, zones, text_hash)
         VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (message_id, number) DO NOTHING",
        values,
    )?;
    if first == 0 {
        tx.execute(
            "INSERT INTO decisions
                 (message_id, number, tenant_id, at, verdict, reason, until, class, rules, zones, text_hash)
             SELECT ?1, n.number + 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10
             FROM (SELECT MAX(number) AS number FROM decisions WHERE message_id = ?1) n
             JOIN decisions d ON d.message_id = ?1 AND d.number = n.number
             WHERE d.verdict <> ?4 OR COALESCE(d.reason, '') <> COALESCE(?5, '')
                 OR COALESCE(d.until, 0) <> COALESCE(?6, 0)",
            values,
        )?;
    }
    Ok(())
}

/// What was decided about a message, oldest first.
pub fn decisions(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    after: u64,
    limit: u32,
) -> Result<Vec<RuleDecision>, StoreError> {
    tx.query(
        "SELECT number, at, verdict, reason, until, class, rules, zones, text_hash FROM decisions
         WHERE message_id = ?1 AND tenant_id = ?2 AND number > ?3 ORDER BY number LIMIT ?4",
        params![id, tenant, after, limit],
        |row| {
            Ok(RuleDecision {
                number: row.get(0)?,
                at: row.get(1)?,
                verdict: row.text(2)?,
                reason: row.get(3)?,
                until: row.get(4)?,
                class: row.get(5)?,
                rules: row.text(6)?,
                zones: row.text(7)?,
                text_sha256: HEXLOWER.encode(&row.get::<Vec<u8>>(8)?),
            })
        },
    )
}
