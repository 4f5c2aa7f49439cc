//! `audit`: what was read or changed of tenants' data in the operator's name.

use clap::Args;
use protocol::{TenantId, api::AuditEntry};

use super::{
    client::{Client, Who, typed_rows},
    failure::Failure,
    screen::{Screen, or_nothing, time},
};

/// Rows that are shown unless asked otherwise.
const ROWS_DEFAULT: u32 = 50;

#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Of this tenant's data only
    #[arg(long)]
    tenant: Option<TenantId>,
    /// So many at most
    #[arg(long, default_value_t = ROWS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

pub(crate) async fn run(screen: &mut Screen, client: &Client, audit: Audit) -> Result<(), Failure> {
    let filters: Vec<_> =
        audit.tenant.iter().map(|tenant| ("tenant", tenant.to_string())).collect();
    let limit = usize::try_from(audit.limit).unwrap_or(usize::MAX);
    let page = client.list(Who::Operator, "/v1/admin/audit_log", &filters, limit).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<AuditEntry>(&page)?.into_iter().map(|entry| {
        [
            time(entry.at),
            or_nothing(entry.tenant.map(|tenant| tenant.to_string())),
            entry.action,
            entry.target,
            or_nothing(entry.status.map(|status| status.to_string())),
            or_nothing(entry.address),
        ]
    });
    screen.table(
        ["AT", "TENANT", "ACTION", "TARGET", "ANSWER", "FROM"],
        rows.collect(),
        "nobody has touched tenants' data in the operator's name",
    )
}
