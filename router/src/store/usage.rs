//! What tenants have used, counted by day, class and channel in the transaction of what is counted.
//!
//! Counting costs a message no statement: a closure adds to [`Counts`] in memory, the writer adds up those of all closures
//! that it commits together, and writes each row once before the commit. A closure that fails takes its counts with it.

use std::collections::BTreeMap;

use protocol::api::{UsagePeriod, UsageRow};
use protocol::{ChannelChoice, Class, TenantId};

use super::{Row, StoreError, Tx};
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
        // What is given back of a month before counts where it was given back: a month can have more of it than it accepted.
        |row| Ok(u64::try_from(row.int(0)?).unwrap_or(0)),
    )
}

/// Which rows of the usage are asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Days or months.
    pub period: UsagePeriod,
    /// The first and the last day.
    pub days: (Day, Day),
    /// Only rows behind this one.
    pub after: Option<Cursor>,
    /// Rows of a page; one more is answered where there is more.
    pub limit: u32,
}

/// How far a page has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Whose row was the last; empty where one tenant's rows are listed.
    tenant: String,
    /// Which row of that tenant's; `None`: all of them.
    row: Option<OfTenant>,
}

/// A row of one tenant's: its period, as the store has it, class and channel.
type OfTenant = (i64, String, String);

impl Cursor {
    /// As it stands in a cursor of the API.
    pub fn of(row: &UsageRow) -> String {
        let period: String = row.period.chars().filter(char::is_ascii_digit).collect();
        let tenant = row.tenant.as_ref().map_or("", TenantId::as_str);
        format!("{tenant}/{period}/{}/{}", row.class, row.channel)
    }

    /// Behind everything of a tenant's.
    pub fn behind(tenant: &str) -> String {
        tenant.to_owned()
    }
}

impl std::str::FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if !text.contains('/') {
            let tenant: TenantId = text.parse().map_err(|_no_id| ())?;
            return Ok(Self { tenant: tenant.to_string(), row: None });
        }
        let mut parts = text.split('/');
        let mut next = || parts.next().ok_or(());
        let (tenant, period, class, channel) = (next()?, next()?, next()?, next()?);
        let period = period.parse().map_err(|_no_number| ())?;
        let known = class.parse::<Class>().is_ok() && channel.parse::<ChannelChoice>().is_ok();
        if !known || parts.next().is_some() {
            return Err(());
        }
        let row = Some((period, class.to_owned(), channel.to_owned()));
        Ok(Self { tenant: tenant.to_owned(), row })
    }
}

/// The usage of a tenant, newest first. Answers one row more than asked for where there is more.
pub fn of_tenant(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    asked: &Asked,
) -> Result<Vec<UsageRow>, StoreError> {
    let after = asked.after.as_ref().and_then(|after| after.row.as_ref());
    rows(tx, tenant.as_str(), asked, (after, asked.limit.saturating_add(1)), false)
}

/// Tenants that one page looks at: most of them have used nothing in the days that are asked for, where those are few.
const LOOKED_AT: usize = 500;

/// The usage of everybody, by tenant, the newest first, and of each the newest row first. Answers one row more than asked
/// for where there is more. What is summed up is that of the tenants of the page, and of so many without any; where there may
/// be more behind those, the last of them.
pub fn of_all(
    tx: &mut Tx<'_>,
    asked: &Asked,
) -> Result<(Vec<UsageRow>, Option<String>), StoreError> {
    let wanted = usize::try_from(asked.limit.saturating_add(1)).unwrap_or(usize::MAX);
    let mut all = Vec::new();
    let mut last: Option<String> = None;
    if let Some(Cursor { tenant, row }) = &asked.after {
        if row.is_some() {
            all = rows(tx, tenant, asked, (row.as_ref(), asked.limit.saturating_add(1)), true)?;
        }
        last = Some(tenant.clone());
    }
    for _ in 0..LOOKED_AT {
        let left = wanted.saturating_sub(all.len());
        if left == 0 {
            return Ok((all, None));
        }
        let before = last.as_deref().unwrap_or("~");
        let next = tx.query_row(BEFORE, params![before], |row| row.opt_text(0))?;
        let Some(next) = next else { return Ok((all, None)) };
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        all.extend(rows(tx, &next, asked, (None, left), true)?);
        last = Some(next);
    }
    let last = last.filter(|_| all.len() < wanted);
    Ok((all, last))
}

/// The next tenant that has used anything, by the primary key.
const BEFORE: &str = "SELECT MAX(tenant_id) FROM usage WHERE tenant_id < ?1";

fn rows(
    tx: &mut Tx<'_>,
    tenant: &str,
    asked: &Asked,
    (after, limit): (Option<&OfTenant>, u32),
    named: bool,
) -> Result<Vec<UsageRow>, StoreError> {
    let divisor: i64 = match asked.period {
        UsagePeriod::Day => 1,
        UsagePeriod::Month => 100,
    };
    // Behind whatever any row has.
    let (period, class, channel) = match after {
        Some((period, class, channel)) => (*period, class.as_str(), channel.as_str()),
        None => (i64::MAX, "~", "~"),
    };
    let (from, to) = (asked.days.0.number(), asked.days.1.number());
    tx.query(OF_TENANT, params![tenant, from, to, divisor, period, class, channel, limit], |row| {
        read(row, asked.period, named)
    })
}

const OF_TENANT: &str = "SELECT tenant_id, period, class, channel, CAST(SUM(accepted) AS BIGINT),
         CAST(SUM(segments) AS BIGINT), CAST(SUM(sent) AS BIGINT), CAST(SUM(returned) AS BIGINT),
         CAST(SUM(credits) AS BIGINT), CAST(SUM(credits_returned) AS BIGINT)
     FROM (SELECT tenant_id, day / ?4 AS period, class, channel, accepted, segments, sent, returned, credits,
               credits_returned FROM usage WHERE tenant_id = ?1 AND day BETWEEN ?2 AND ?3) AS counted
     WHERE (period, class, channel) < (?5, ?6, ?7)
     GROUP BY tenant_id, period, class, channel
     ORDER BY period DESC, class DESC, channel DESC LIMIT ?8";

fn read(row: &Row<'_>, by: UsagePeriod, of_all: bool) -> Result<UsageRow, StoreError> {
    let period = row.int(1)?;
    let name = match by {
        UsagePeriod::Day => Day::from_number(period).map(|day| day.to_string()),
        UsagePeriod::Month => Month::from_number(period).map(|month| month.to_string()),
    };
    let tenant: TenantId = row.get(0)?;
    Ok(UsageRow {
        period: name.ok_or_else(|| StoreError::Corrupt(format!("{period} is no {by}")))?,
        tenant: of_all.then_some(tenant),
        class: row.get(2)?,
        channel: row.get(3)?,
        accepted: row.get(4)?,
        segments: row.get(5)?,
        sent: row.get(6)?,
        returned: row.get(7)?,
        credits: row.get(8)?,
        credits_returned: row.get(9)?,
    })
}
