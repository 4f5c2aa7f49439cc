//! Templates: texts with variables, in versions that never change.

use std::collections::BTreeMap;

use protocol::api::{Template, TemplateVersion};
use protocol::{TemplateId, TenantId, UnixMs};

use super::{Json, Row, StoreError, Tx};
use crate::params;
use crate::template;

/// Makes a template with its first version.
pub fn insert(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    new: &Template,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO templates (id, tenant_id, name, version, created_at, updated_at, test)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![new.id, tenant, new.name, new.version, new.created_at, new.updated_at, test],
    )?;
    insert_version(tx, tenant, new)
}

fn insert_version(tx: &mut Tx<'_>, tenant: &TenantId, new: &Template) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO template_versions (template_id, version, tenant_id, text, defaults, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![new.id, new.version, tenant, new.text, Json(&new.defaults), new.updated_at],
    )?;
    Ok(())
}

/// Writes a template as it is now; `version` where that is a new one.
pub fn update(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    now: &Template,
    is_new_version: bool,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE templates SET name = ?3, version = ?4, updated_at = ?5 WHERE id = ?1 AND tenant_id = ?2",
        params![now.id, tenant, now.name, now.version, now.updated_at],
    )?;
    if is_new_version {
        insert_version(tx, tenant, now)?;
    }
    Ok(())
}

/// A template in its newest version.
pub fn get(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &TemplateId,
) -> Result<Option<Template>, StoreError> {
    tx.query_opt(
        &format!("{COLUMNS} WHERE t.id = ?1 AND t.tenant_id = ?2 AND t.deleted_at IS NULL"),
        params![id, tenant],
        read,
    )
}

const COLUMNS: &str =
    "SELECT t.id, t.name, t.version, v.text, v.defaults, t.created_at, t.updated_at
     FROM templates t JOIN template_versions v ON v.template_id = t.id AND v.version = t.version";

/// A tenant's templates, newest first. Answers one row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<Template>, StoreError> {
    // Behind every id: ids are prefix and 0-9a-v.
    let before = before.unwrap_or("~");
    tx.query(
        &format!(
            "{COLUMNS} WHERE t.tenant_id = ?1 AND t.id < ?2 AND t.deleted_at IS NULL
             ORDER BY t.id DESC LIMIT ?3"
        ),
        params![tenant, before, limit.saturating_add(1)],
        read,
    )
}

/// One version of a template, deleted or not: what is under way goes on.
pub fn pinned(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &TemplateId,
    version: u32,
) -> Result<Option<TemplateVersion>, StoreError> {
    tx.query_opt(
        "SELECT version, text, defaults, created_at FROM template_versions
         WHERE template_id = ?1 AND tenant_id = ?2 AND version = ?3",
        params![id, tenant, version],
        read_version,
    )
}

/// A template's versions before `before`, newest first. Answers one row more than `limit` where there is more.
pub fn versions(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &TemplateId,
    before: u32,
    limit: u32,
) -> Result<Vec<TemplateVersion>, StoreError> {
    tx.query(
        "SELECT version, text, defaults, created_at FROM template_versions
         WHERE template_id = ?1 AND tenant_id = ?2 AND version < ?3 ORDER BY version DESC LIMIT ?4",
        params![id, tenant, before, limit.saturating_add(1)],
        read_version,
    )
}

/// Whether another of the tenant's templates has this name.
pub fn is_taken(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    name: &str,
    but: &TemplateId,
) -> Result<bool, StoreError> {
    let found = tx.query_opt(
        "SELECT 1 FROM templates WHERE tenant_id = ?1 AND name = ?2 AND deleted_at IS NULL AND id <> ?3",
        params![tenant, name, but],
        |row| row.int(0),
    )?;
    Ok(found.is_some())
}

/// How many templates a tenant has.
pub fn count(tx: &mut Tx<'_>, tenant: &TenantId) -> Result<u32, StoreError> {
    tx.query_row(
        "SELECT COUNT(*) FROM templates WHERE tenant_id = ?1 AND deleted_at IS NULL",
        params![tenant],
        |row| row.get(0),
    )
}

/// Whether a template was made with a test key; `None` where the tenant has none such.
pub fn is_test(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &TemplateId,
) -> Result<Option<bool>, StoreError> {
    tx.query_opt(
        "SELECT test FROM templates WHERE id = ?1 AND tenant_id = ?2 AND deleted_at IS NULL",
        params![id, tenant],
        |row| row.get(0),
    )
}

/// Deletes a template: nothing new is made from it. False where the tenant has none such.
pub fn delete(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &TemplateId,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let rows = tx.execute(
        "UPDATE templates SET deleted_at = ?3 WHERE id = ?1 AND tenant_id = ?2 AND deleted_at IS NULL",
        params![id, tenant, now],
    )?;
    Ok(rows > 0)
}

/// The variables of a text that was a template when it was written down.
fn names(text: &str) -> Result<Vec<String>, StoreError> {
    let read = template::Template::parse(text)
        .map_err(|fault| StoreError::corrupt("template_versions.text", fault.code()))?;
    Ok(read.names().to_vec())
}

fn read(row: &Row<'_>) -> Result<Template, StoreError> {
    let text = row.text(3)?;
    Ok(Template {
        id: row.get(0)?,
        name: row.text(1)?,
        version: row.get(2)?,
        variables: names(&text)?,
        text,
        defaults: row.get::<Json<BTreeMap<String, String>>>(4)?.0,
        created_at: row.get(5)?,
        updated_at: row.get(6)?,
    })
}

fn read_version(row: &Row<'_>) -> Result<TemplateVersion, StoreError> {
    let text = row.text(1)?;
    Ok(TemplateVersion {
        version: row.get(0)?,
        variables: names(&text)?,
        text,
        defaults: row.get::<Json<BTreeMap<String, String>>>(2)?.0,
        created_at: row.get(3)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::in_memory;

    #[test]
    fn a_list_reads_its_page_alone() {
        let sql = format!(
            "{COLUMNS} WHERE t.tenant_id = ?1 AND t.id < ?2 AND t.deleted_at IS NULL
             ORDER BY t.id DESC LIMIT ?3"
        );
        let plan = in_memory::plan(&in_memory::open(), &sql);
        assert!(plan.contains("templates_by_tenant (tenant_id=? AND id<?)"), "{plan}");
        assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{plan}");
    }
}
