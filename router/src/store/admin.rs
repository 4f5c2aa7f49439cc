//! What the operator owns: tenants, hosts, phones, enrolment.

use protocol::api::{Host, Phone, Tenant, UsablePhone};
use protocol::link::{EnrolPhone, EnrolRequest, EnrolResponse, EnrolledPhone, PhoneState};
use protocol::{Channel, HostId, PhoneId, Reason, TenantId, UnixMs};

use super::{Json, Row, StoreError, Tx, standby};
use crate::clock;
use crate::params;

/// Milliseconds of a day: phones count their messages by UTC days.
const DAY_MS: i64 = 86_400_000;
/// Where a new phone stands among equals; lower is preferred.
const WARMING_PRIORITY: u32 = 100;

/// Stores a tenant; [`StoreError::Constraint`] where the name is taken.
pub fn insert_tenant(tx: &mut Tx<'_>, tenant: &Tenant) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO tenants (id, name, brand, created_at) VALUES (?1, ?2, ?3, ?4)",
        params![tenant.id, tenant.name, tenant.brand, tenant.created_at],
    )?;
    Ok(())
}

/// There is such a tenant.
pub fn tenant_exists(tx: &mut Tx<'_>, tenant: &TenantId) -> Result<bool, StoreError> {
    Ok(tx
        .query_opt("SELECT 1 FROM tenants WHERE id = ?1", params![tenant], |row| row.int(0))?
        .is_some())
}

/// Tenants, newest first. One row more than `limit` where there is more.
pub fn list_tenants(
    tx: &mut Tx<'_>,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<Tenant>, StoreError> {
    tx.query(
        "SELECT id, name, brand, created_at FROM tenants WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
        params![before.unwrap_or("~"), limit.saturating_add(1)],
        |row| {
            Ok(Tenant {
                id: row.get(0)?,
                name: row.get(1)?,
                brand: row.get(2)?,
                created_at: row.get(3)?,
            })
        },
    )
}

/// Stores an enrolment token by its hash.
pub fn insert_enrolment_token(
    tx: &mut Tx<'_>,
    hash: &[u8; 32],
    expires_at: UnixMs,
    now: UnixMs,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO enrolment_tokens (hash, created_at, expires_at) VALUES (?1, ?2, ?3)",
        params![hash, now, expires_at],
    )?;
    Ok(())
}

/// Enrols a host with its phones and uses the token up, all or nothing. `None`: no such token, used, or too old.
///
/// A host that comes again with the same public key keeps its id and gets the phones that are new. A phone that another
/// host served moves to this one, unless this one is only to stand by; the other's lease ends by itself before this one
/// is given any.
pub fn enrol(
    tx: &mut Tx<'_>,
    token_hash: &[u8; 32],
    request: &EnrolRequest,
    public_key: &[u8; 32],
    now: UnixMs,
) -> Result<Option<EnrolResponse>, StoreError> {
    let used = tx.execute(
        "UPDATE enrolment_tokens SET used_at = ?2 WHERE hash = ?1 AND used_at IS NULL AND expires_at > ?2",
        params![token_hash, now],
    )?;
    if used == 0 {
        return Ok(None);
    }
    let host: HostId = tx.query_row(
        "INSERT INTO hosts (id, name, public_key, created_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (public_key) DO UPDATE SET name = excluded.name RETURNING id",
        params![HostId::new(now.0, clock::random()), request.name, public_key, now],
        |row| row.get(0),
    )?;
    tx.execute(
        "UPDATE enrolment_tokens SET host_id = ?2 WHERE hash = ?1",
        params![token_hash, host],
    )?;
    let mut phones = Vec::with_capacity(request.phones.len());
    for phone in &request.phones {
        phones.push(EnrolledPhone {
            phone: enrol_phone(tx, &host, phone, now)?,
            number: phone.number.clone(),
        });
    }
    Ok(Some(EnrolResponse { host, phones, router_key: None }))
}

fn enrol_phone(
    tx: &mut Tx<'_>,
    host: &HostId,
    phone: &EnrolPhone,
    now: UnixMs,
) -> Result<PhoneId, StoreError> {
    let channels = phone.channels.as_deref().unwrap_or(&[Channel::Imessage, Channel::Sms]);
    let id = tx.query_row(
        "INSERT INTO phones (id, number, host_id, label, state, reasons, channels, warming_priority,
            messages_today, day, created_at, updated_at, sandbox)
         VALUES (?1, ?2, NULL, ?3, 'stopped', '[]', ?4, ?5, 0, ?6, ?7, ?7, ?8)
         ON CONFLICT (number) DO UPDATE SET channels = excluded.channels,
            label = coalesce(excluded.label, phones.label), updated_at = excluded.updated_at, provider = NULL
         RETURNING id",
        params![
            PhoneId::new(now.0, clock::random()),
            phone.number,
            phone.label,
            Json(channels),
            WARMING_PRIORITY,
            now.0.div_euclid(DAY_MS),
            now,
            phone.sandbox
        ],
        |row| row.get(0),
    )?;
    standby::enrolled(tx, (&id, host), phone.standby, now)?;
    Ok(id)
}

/// The numbers among these that were enrolled before as what they are not to be now, of the sandbox or real, or that are a
/// provider's. A phone stays what it was: messages that wait for the one must not go to the other.
pub fn enrolled_otherwise(
    tx: &mut Tx<'_>,
    phones: &[EnrolPhone],
) -> Result<Vec<usize>, StoreError> {
    let mut otherwise = Vec::new();
    for (index, phone) in phones.iter().enumerate() {
        let known = tx.query_opt(
            "SELECT 1 FROM phones WHERE number = ?1 AND (sandbox <> ?2
                 OR EXISTS (SELECT 1 FROM providers v WHERE v.phone_id = phones.id))",
            params![phone.number, phone.sandbox],
            |row| row.int(0),
        )?;
        if known.is_some() {
            otherwise.push(index);
        }
    }
    Ok(otherwise)
}

/// Writes a row and takes it away again: proof that commits reach the disk. A transaction that changes no page (an
/// UPDATE to the same value is one) would touch no file.
pub fn prove_writable(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO schema_migrations (version, name, sha256, applied_at) VALUES (0, 'probe', '', 0)",
        params![],
    )?;
    tx.execute("DELETE FROM schema_migrations WHERE version = 0", params![])?;
    Ok(())
}

/// Forgets the sessions of hosts: they were another process's.
pub fn forget_sessions(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute("UPDATE hosts SET session = NULL WHERE session IS NOT NULL", params![])?;
    Ok(())
}

/// Hosts, newest first. One row more than `limit` where there is more.
pub fn list_hosts(
    tx: &mut Tx<'_>,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<Host>, StoreError> {
    let mut hosts = tx.query(
        "SELECT id, name, session, last_seen_at, version, created_at, drained_at FROM hosts
         WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
        params![before.unwrap_or("~"), limit.saturating_add(1)],
        |row| {
            Ok(Host {
                id: row.get(0)?,
                name: row.get(1)?,
                online: row.opt_text(2)?.is_some(),
                last_seen_at: row.get(3)?,
                version: row.get(4)?,
                phones: Vec::new(),
                standby_phones: Vec::new(),
                drained_at: row.get(6)?,
                tunnel: None,
                created_at: row.get(5)?,
            })
        },
    )?;
    for host in &mut hosts {
        host.phones = standby::served_by(tx, &host.id)?;
        host.standby_phones = standby::standby_of(tx, &host.id)?;
    }
    Ok(hosts)
}

/// Phones, newest first. One row more than `limit` where there is more.
pub fn list_phones(
    tx: &mut Tx<'_>,
    before: Option<&str>,
    limit: u32,
    now: UnixMs,
) -> Result<Vec<Phone>, StoreError> {
    let today = now.0.div_euclid(DAY_MS);
    let mut phones = tx.query(
        &format!("{PHONES} WHERE p.id < ?3 AND p.provider IS NULL ORDER BY p.id DESC LIMIT ?4"),
        params![today, now, before.unwrap_or("~"), limit.saturating_add(1)],
        read_phone,
    )?;
    for phone in &mut phones {
        phone.hosts = standby::hosts_of(tx, &phone.id)?;
    }
    Ok(phones)
}

const PHONES: &str = "SELECT p.id, p.number, p.label, p.host_id, h.session, p.state, p.reasons, p.channels, l.epoch, l.expires_at,
        CASE WHEN p.day = ?1 THEN p.messages_today ELSE 0 END,
        (SELECT count(*) FROM attempts a WHERE a.phone_id = p.id AND a.state <> 'done'), p.last_used_at,
        CASE WHEN p.handed_until > ?2 THEN p.handed_to END, p.replaced_by, p.sandbox, p.exclusive_tenant_id,
        p.daily_cap, p.warming_priority, COALESCE(p.in_service_at, p.created_at), p.blocked_at IS NOT NULL
     FROM phones p LEFT JOIN hosts h ON h.id = p.host_id LEFT JOIN leases l ON l.phone_id = p.id";

/// One phone.
pub fn phone(tx: &mut Tx<'_>, id: &PhoneId, now: UnixMs) -> Result<Option<Phone>, StoreError> {
    let today = now.0.div_euclid(DAY_MS);
    let sql = format!("{PHONES} WHERE p.id = ?3 AND p.provider IS NULL");
    let Some(mut phone) = tx.query_opt(&sql, params![today, now, id], read_phone)? else {
        return Ok(None);
    };
    phone.hosts = standby::hosts_of(tx, id)?;
    Ok(Some(phone))
}

/// Phones that a tenant may use, newest first: its own, and those of the pool; of the sandbox or of the others. Those whose
/// place another one has taken are not among them. One row more than `limit` where there is more.
pub fn usable_phones(
    tx: &mut Tx<'_>,
    (tenant, sandbox): (&TenantId, bool),
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<UsablePhone>, StoreError> {
    tx.query(
        "SELECT p.id, p.number, p.exclusive_tenant_id IS NOT NULL, p.sandbox, p.state, p.blocked_at IS NOT NULL, h.session,
             p.channels
         FROM phones p LEFT JOIN hosts h ON h.id = p.host_id
         WHERE p.id < ?3 AND p.sandbox = ?2 AND p.provider IS NULL AND p.replaced_by IS NULL
             AND (p.exclusive_tenant_id IS NULL OR p.exclusive_tenant_id = ?1)
         ORDER BY p.id DESC LIMIT ?4",
        params![tenant, sandbox, before.unwrap_or("~"), limit.saturating_add(1)],
        |row| {
            let (state, is_blocked): (PhoneState, bool) = (row.get(4)?, row.get(5)?);
            Ok(UsablePhone {
                id: row.get(0)?,
                number: row.get(1)?,
                exclusive: row.get(2)?,
                sandbox: row.get(3)?,
                ready: state == PhoneState::Ready && !is_blocked && row.opt_text(6)?.is_some(),
                channels: row.get::<Json<Vec<Channel>>>(7)?.0,
            })
        },
    )
}

/// Writes down what the operator decides of a phone.
pub fn set_phone(tx: &mut Tx<'_>, phone: &Phone, now: UnixMs) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE phones SET label = ?2, exclusive_tenant_id = ?3, daily_cap = ?4, warming_priority = ?5,
             in_service_at = ?6, updated_at = ?7 WHERE id = ?1",
        params![
            phone.id,
            phone.label,
            phone.exclusive_to,
            phone.daily_cap,
            phone.warming_priority,
            phone.in_service_at,
            now
        ],
    )?;
    Ok(())
}

fn read_phone(row: &Row<'_>) -> Result<Phone, StoreError> {
    let Json(mut reasons): Json<Vec<Reason>> = row.get(6)?;
    // A block stands though the host that has told of it says nothing at the moment.
    if row.get(20)? && !reasons.contains(&Reason::AccountBlocked) {
        reasons.push(Reason::AccountBlocked);
    }
    Ok(Phone {
        id: row.get(0)?,
        number: row.get(1)?,
        label: row.get(2)?,
        host: row.get(3)?,
        online: row.opt_text(4)?.is_some(),
        state: row.get(5)?,
        reasons,
        channels: row.get::<Json<Vec<Channel>>>(7)?.0,
        epoch: row.get(8)?,
        lease_until: row.get(9)?,
        messages_today: row.get(10)?,
        in_flight: row.get(11)?,
        last_used_at: row.get(12)?,
        hosts: Vec::new(),
        handed_to: row.get(13)?,
        replaced_by: row.get(14)?,
        sandbox: row.get(15)?,
        exclusive_to: row.get(16)?,
        daily_cap: row.get(17)?,
        warming_priority: row.get(18)?,
        in_service_at: row.get(19)?,
    })
}
