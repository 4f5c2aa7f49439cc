//! What tenants have used, counted by day, class and channel in the transaction of what is counted.
//!
//! Counting costs a message no statement: a closure adds to [`Counts`] in memory, the writer adds up those of all closures
//! that it commits together, and writes each row once before the commit. A closure that fails takes its counts with it.

use std::collections::BTreeMap;

use protocol::{ChannelChoice, Class, TenantId};

use super::{StoreError, Tx};
use crate::billing::{Day, Month};
use crate::params;

/// Whose row it is, and which.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Who sends.
    pub tenant: TenantId,
    /// When.
    pub day: Day,
    /// What for.
    pub class: Class,
    /// The channel that was used, or else asked for.
    pub channel: ChannelChoice,
}

/// Numbers of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Messages accepted.
    pub accepted: u64,
    /// Segments of those, if they all went as SMS.
    pub segments: u64,
    /// Messages that were seen as sent.
    pub sent: u64,
    /// Messages given back, because no phone ever began to send them.
    pub returned: u64,
    /// Credits charged.
    pub credits: u64,
    /// Credits given back.
    pub credits_returned: u64,
}

impl Numbers {
    fn add(&mut self, more: Self) {
        for (sum, more) in [
            (&mut self.accepted, more.accepted),
            (&mut self.segments, more.segments),
            (&mut self.sent, more.sent),
            (&mut self.returned, more.returned),
            (&mut self.credits, more.credits),
            (&mut self.credits_returned, more.credits_returned),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// What a transaction has counted and not written yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    rows: BTreeMap<Place, Numbers>,
}

impl Counts {
    /// Counts something.
    pub fn add(&mut self, place: Place, more: Numbers) {
        self.rows.entry(place).or_default().add(more);
    }

    /// Takes over what another transaction has counted.
    pub(super) fn merge(&mut self, other: Self) {
        for (place, more) in other.rows {
            self.add(place, more);
        }
    }
}

/// Writes what was counted, one statement a row.
pub(super) fn write(tx: &mut Tx<'_>, counts: &Counts) -> Result<(), StoreError> {
    for (place, numbers) in &counts.rows {
        tx.execute(
            "INSERT INTO usage (tenant_id, day, class, channel, accepted, segments, sent, returned, credits,
                 credits_returned) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (tenant_id, day, class, channel) DO UPDATE SET
                 accepted = usage.accepted + excluded.accepted, segments = usage.segments + excluded.segments,
                 sent = usage.sent + excluded.sent, returned = usage.returned + excluded.returned,
                 credits = usage.credits + excluded.credits,
                 credits_returned = usage.credits_returned + excluded.credits_returned",
            params![
                place.tenant,
                place.day.number(),
                place.class,
                place.channel,
                numbers.accepted,
                numbers.segments,
                numbers.sent,
                numbers.returned,
                numbers.credits,
                numbers.credits_returned
            ],
        )?;
    }
    Ok(())
}

/// Messages of a month that count against the quota of `payer`: its own, unless another pays for them, and those of the
/// tenants that it pays for. For a plan with a quota that comes after one without.
pub fn accepted_in(tx: &mut Tx<'_>, payer: &TenantId, month: Month) -> Result<u64, StoreError> {
    let days = (month.number().saturating_mul(100), month.number().saturating_mul(100) + 99);
    tx.query_row(
        "SELECT CAST(COALESCE(SUM(accepted - returned), 0) AS BIGINT) FROM usage
         WHERE day BETWEEN ?2 AND ?3 AND (
             tenant_id = ?1 AND NOT EXISTS (
                 SELECT 1 FROM billing_accounts WHERE tenant_id = ?1 AND payer_id IS NOT NULL)
             OR tenant_id IN (SELECT tenant_id FROM billing_accounts WHERE payer_id = ?1))",
        params![payer, days.0, days.1],
        |row| row.get(0),
    )
}
