//! What tenants know of the people they write to; what test keys say of them, messages of the sandbox alone obey.

use protocol::api::Contact;
use protocol::{Reason, Recipient, TenantId, UnixMs};

use super::{Row, StoreError, Tx, dispatch};
use crate::params;

/// What a tenant says of somebody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// IANA name of a time zone.
    pub time_zone: Option<String>,
    /// Two letters, of the United States.
    pub state: Option<String>,
    /// Whose number or address it is, in the tenant's own word.
    pub person: Option<String>,
}

/// Numbers and addresses that a person may have besides one: a STOP there looks at all of them.
pub const OTHERS_MAX: usize = 20;

/// Writes down what a tenant knows of somebody, in place of what it knew before. What waits for its hour there is looked at
/// again.
pub fn put(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
    known: &Said,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO contacts (tenant_id, recipient, time_zone, state, created_at, updated_at, test, person)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7)
         ON CONFLICT (tenant_id, test, recipient) DO UPDATE SET time_zone = excluded.time_zone,
             state = excluded.state, updated_at = excluded.updated_at, person = excluded.person",
        params![tenant, recipient, known.time_zone, known.state, now, test, known.person],
    )?;
    dispatch::wake_for(tx, (tenant, recipient), Reason::QuietHours, now)
}

/// One contact.
pub fn get(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
) -> Result<Option<Contact>, StoreError> {
    tx.query_opt(
        "SELECT recipient, time_zone, state, created_at, updated_at, person FROM contacts
         WHERE tenant_id = ?1 AND test = ?3 AND recipient = ?2",
        params![tenant, recipient, test],
        contact,
    )
}

/// A tenant's contacts by recipient, after `after`. Answers one row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    after: &str,
    limit: u32,
) -> Result<Vec<Contact>, StoreError> {
    tx.query(
        "SELECT recipient, time_zone, state, created_at, updated_at, person FROM contacts
         WHERE tenant_id = ?1 AND test = ?4 AND recipient > ?2 ORDER BY recipient LIMIT ?3",
        params![tenant, after, limit.saturating_add(1), test],
        contact,
    )
}

/// Forgets what was known of somebody; false when nothing was.
pub fn delete(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
) -> Result<bool, StoreError> {
    let deleted = tx.execute(
        "DELETE FROM contacts WHERE tenant_id = ?1 AND test = ?3 AND recipient = ?2",
        params![tenant, recipient, test],
    )?;
    Ok(deleted > 0)
}

/// The other numbers and addresses of the person whose this one is.
pub fn others(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    recipient: &Recipient,
) -> Result<Vec<Recipient>, StoreError> {
    tx.query(OTHERS, params![tenant, test, recipient, OTHERS_MAX], |row| row.get(0))
}

pub(super) const OTHERS: &str = "SELECT o.recipient FROM contacts c JOIN contacts o
         ON o.tenant_id = ?1 AND o.test = ?2 AND o.person = c.person AND o.recipient <> ?3
     WHERE c.tenant_id = ?1 AND c.test = ?2 AND c.recipient = ?3 AND c.person IS NOT NULL LIMIT ?4";

/// How many numbers and addresses a person has besides this one.
pub fn besides(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    (recipient, person): (&Recipient, &str),
) -> Result<usize, StoreError> {
    tx.query_row(
        "SELECT COUNT(*) FROM contacts
         WHERE tenant_id = ?1 AND test = ?2 AND person = ?3 AND recipient <> ?4",
        params![tenant, test, person, recipient],
        |row| row.get::<u64>(0),
    )
    .map(|count| usize::try_from(count).unwrap_or(usize::MAX))
}

fn contact(row: &Row<'_>) -> Result<Contact, StoreError> {
    Ok(Contact {
        recipient: row.get(0)?,
        time_zone: row.opt_text(1)?,
        state: row.opt_text(2)?,
        created_at: row.get(3)?,
        updated_at: row.get(4)?,
        person: row.opt_text(5)?,
    })
}
