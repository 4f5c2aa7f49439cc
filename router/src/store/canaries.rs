//! The canaries that have arrived, and who may hear of them.

use protocol::link::{CanaryAsk, PhoneState};
use protocol::{E164, HostId, MessageId, PhoneId, UnixMs};

use super::{StoreError, Tx};
use crate::params;

/// One that came so long ago is forgotten: who wrote it has stopped asking long ago.
const KEPT_MS: i64 = 2 * 86_400_000;

/// Notes that a canary has arrived, and forgets old ones. The first that tells of it counts.
pub fn arrived(
    tx: &mut Tx<'_>,
    (message, sender): (&MessageId, &E164),
    (phone, journal): (&PhoneId, &str),
    (at, now): (UnixMs, UnixMs),
) -> Result<(), StoreError> {
    // By when they came: the time in an id is whatever its writer put there. A shelf's canaries of two days are few.
    tx.execute("DELETE FROM canaries WHERE taken_at < ?1", params![now.plus_ms(-KEPT_MS)])?;
    tx.execute(
        "INSERT INTO canaries (message_id, phone_id, sender, host_id, at, taken_at)
         VALUES (?1, ?2, ?3, (SELECT host_id FROM phone_hosts WHERE phone_id = ?2 AND journal = ?4), ?5, ?6)
         ON CONFLICT (message_id, phone_id) DO NOTHING",
        params![message, phone, sender, journal, at, now],
    )?;
    Ok(())
}

/// The phone that is to hear a canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hearer {
    /// Which phone.
    pub phone: PhoneId,
    /// The host that serves it, and whether the phone is ready there.
    pub host: Option<(HostId, bool)>,
}

/// The phone that a host's canary is for; `None` unless the host has the phone that writes, and both are of the sandbox or
/// neither is.
pub fn hearer(
    tx: &mut Tx<'_>,
    host: &HostId,
    ask: &CanaryAsk,
) -> Result<Option<Hearer>, StoreError> {
    tx.query_opt(
        "SELECT t.id, o.host_id, o.state FROM phones t
         JOIN phones f ON f.id = ?1 AND f.sandbox = t.sandbox AND f.id <> t.id
         JOIN phone_hosts w ON w.phone_id = f.id AND w.host_id = ?2
         LEFT JOIN phone_hosts o ON o.phone_id = t.id AND o.host_id = t.host_id
         WHERE t.number = ?3 AND t.provider IS NULL",
        params![ask.from, host, ask.to],
        |row| {
            let host: Option<HostId> = row.get(1)?;
            let ready = row.opt_text(2)?.as_deref() == Some(PhoneState::Ready.as_str());
            Ok(Hearer { phone: row.get(0)?, host: host.map(|host| (host, ready)) })
        },
    )
}

/// A canary that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The host that told of it, where that is known.
    pub host: Option<HostId>,
    /// When the phone's bridge noted it.
    pub at: UnixMs,
    /// When it was taken in here.
    pub taken_at: UnixMs,
}

/// How a canary of that phone has arrived at this one.
pub fn arrival(
    tx: &mut Tx<'_>,
    ask: &CanaryAsk,
    phone: &PhoneId,
) -> Result<Option<Arrival>, StoreError> {
    tx.query_opt(
        "SELECT c.host_id, c.at, c.taken_at FROM canaries c JOIN phones f ON f.id = ?3 AND f.number = c.sender
         WHERE c.message_id = ?1 AND c.phone_id = ?2",
        params![ask.message, phone, ask.from],
        |row| Ok(Arrival { host: row.get(0)?, at: row.get(1)?, taken_at: row.get(2)? }),
    )
}
