//! Attempts of which nobody knows what became of them, and what could be mistaken for one of them.

use protocol::{MessageId, PhoneId, Reason, Recipient, UnixMs};

use super::{StoreError, Tx};
use crate::doubt::{Doubt, Twin};
use crate::params;

/// The newest messages of a phone to one recipient among which those of the same words are looked for. They were sent
/// within minutes of the one in doubt; a recipient is not written to so often in a month.
const TWINS_MAX: usize = 500;

/// The newest attempts of messages that have been `unknown` since `after`, and have to be asked about anew at `now`:
/// often at first, for a copy of what was sent comes at once as a rule, and then ever more seldom. With `all` also those
/// that were asked about just now.
pub fn list(
    tx: &mut Tx<'_>,
    (after, now): (UnixMs, UnixMs),
    all: bool,
    limit: usize,
) -> Result<Vec<Doubt>, StoreError> {
    let pauses = (FIRST_PAUSE_MS, PAUSES_PER_AGE);
    let values = params![after, now, all, pauses.0, pauses.1, limit, Reason::HostLost];
    tx.query(LIST, values, |row| {
        Ok(Doubt {
            message: row.get(0)?,
            attempt: row.get(1)?,
            phone: row.get(2)?,
            epoch: row.get(3)?,
            journal_at: row.get(4)?,
            serving: row.get(5)?,
            recipient: row.get(6)?,
            text: row.opt_text(7)?.unwrap_or_default(),
            since: row.get(8)?,
            until: row.get(9)?,
        })
    })
}

/// No question is repeated sooner.
const FIRST_PAUSE_MS: i64 = 2_000;

/// The pause between two questions is the age of the doubt divided by this.
const PAUSES_PER_AGE: i64 = 4;

pub(super) const LIST: &str = "SELECT message_id, attempt, phone_id, epoch, journal_at, serving, recipient, text, since, until FROM (
     SELECT a.message_id, a.attempt, a.phone_id, a.epoch, m.recipient, m.text, a.offered_at,
         CASE WHEN m.reason = ?7 THEN
             (SELECT h.id FROM phone_hosts o JOIN hosts h ON h.id = o.host_id AND h.session IS NOT NULL
              WHERE o.phone_id = a.phone_id AND o.journal = a.journal LIMIT 1) END AS journal_at,
         CASE WHEN p.journal <> a.journal THEN
             (SELECT h.id FROM hosts h WHERE h.id = p.host_id AND h.session IS NOT NULL) END AS serving,
         COALESCE(a.first_offered_at, a.offered_at) AS since,
         CASE WHEN a.start_before < m.updated_at THEN a.start_before ELSE m.updated_at END AS until
     FROM messages m JOIN attempts a ON a.message_id = m.id AND a.attempt = m.attempts
     JOIN phones p ON p.id = a.phone_id
     WHERE m.status = 'unknown' AND m.updated_at > ?1 AND a.journal IS NOT NULL AND p.provider IS NULL
         AND (?3 OR (?2 - a.offered_at >= ?4 AND (?2 - a.offered_at) * ?5 >= ?2 - m.updated_at))
 ) WHERE journal_at IS NOT NULL OR serving IS NOT NULL ORDER BY offered_at LIMIT ?6";

/// Notes that an attempt was asked about.
pub fn asked(
    tx: &mut Tx<'_>,
    (message, attempt): (&MessageId, u32),
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(ASKED, params![message, attempt, now])?;
    Ok(())
}

const ASKED: &str =
    "UPDATE attempts SET offered_at = ?3 WHERE message_id = ?1 AND attempt = ?2 AND state = 'done'";

/// What a phone was given for a recipient, by whomever: the newest messages, each with the time in which it can have been
/// sent.
pub fn twins(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    recipient: &Recipient,
) -> Result<Vec<Twin>, StoreError> {
    tx.query(TWINS, params![phone, recipient, TWINS_MAX], |row| {
        Ok(Twin {
            message: row.get(0)?,
            attempt: row.get(1)?,
            status: row.get(2)?,
            text: row.opt_text(3)?.unwrap_or_default(),
            guid: row.opt_text(4)?,
            since: row.get(5)?,
            until: row.get(6)?,
            served: row.get(7)?,
        })
    })
}

pub(super) const TWINS: &str = "SELECT m.id, m.attempts, m.status, m.text, m.guid,
         MIN(COALESCE(a.first_offered_at, a.offered_at)), MAX(a.start_before),
         MAX(COALESCE(a.attempt = m.attempts AND a.journal = p.journal, 0))
     FROM bindings b JOIN messages m ON m.tenant_id = b.tenant_id AND m.recipient = b.recipient
     JOIN attempts a ON a.message_id = m.id JOIN phones p ON p.id = a.phone_id
     WHERE b.phone_id = ?1 AND b.recipient = ?2 AND m.direction = 'outbound' AND a.phone_id = ?1
     GROUP BY m.id ORDER BY m.id DESC LIMIT ?3";

/// Another outbound message of this phone that is known to have this guid.
pub fn owner_of_guid(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    guid: &str,
    but: &MessageId,
) -> Result<Option<MessageId>, StoreError> {
    tx.query_opt(
        "SELECT id FROM messages WHERE phone_id = ?1 AND guid = ?2 AND id <> ?3 AND direction = 'outbound' LIMIT 1",
        params![phone, guid, but],
        |row| row.get(0),
    )
}
