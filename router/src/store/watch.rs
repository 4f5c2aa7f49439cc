//! Which phones have changed, whoever changed them and however: what is kept of them in memory is read anew.
//!
//! Triggers on the writing connection call a function of ours with the phone's id, and the ids stand in memory: rows for
//! them would be written, and taken back out, several times a message. A change that is rolled back stays noted, which
//! costs one look. What changes no choice (a report's time, an offer that is repeated) is not noted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use protocol::PhoneId;
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;

use super::{StoreError, Tx};
use crate::params;

const TRIGGERS: &str = "
    CREATE TEMP TRIGGER phone_added AFTER INSERT ON main.phones BEGIN SELECT note_phone(NEW.id); END;
    CREATE TEMP TRIGGER phone_changed AFTER UPDATE ON main.phones BEGIN SELECT note_phone(NEW.id); END;
    CREATE TEMP TRIGGER phone_gone AFTER DELETE ON main.phones BEGIN SELECT note_phone(OLD.id); END;
    CREATE TEMP TRIGGER lease_added AFTER INSERT ON main.leases BEGIN SELECT note_phone(NEW.phone_id); END;
    CREATE TEMP TRIGGER lease_changed AFTER UPDATE ON main.leases BEGIN SELECT note_phone(NEW.phone_id); END;
    CREATE TEMP TRIGGER lease_gone AFTER DELETE ON main.leases BEGIN SELECT note_phone(OLD.phone_id); END;
    CREATE TEMP TRIGGER attempt_added AFTER INSERT ON main.attempts BEGIN SELECT note_phone(NEW.phone_id); END;
    CREATE TEMP TRIGGER attempt_changed AFTER UPDATE OF state, journal, first_offered_at ON main.attempts BEGIN
        SELECT note_phone(NEW.phone_id); END;
    CREATE TEMP TRIGGER attempt_gone AFTER DELETE ON main.attempts BEGIN SELECT note_phone(OLD.phone_id); END;
    CREATE TEMP TRIGGER contact_added AFTER INSERT ON main.phone_contacts WHEN NEW.counted = 1 BEGIN
        SELECT note_phone(NEW.phone_id); END;
    CREATE TEMP TRIGGER contact_changed AFTER UPDATE OF counted, since ON main.phone_contacts BEGIN
        SELECT note_phone(NEW.phone_id); END;
    CREATE TEMP TRIGGER contact_gone AFTER DELETE ON main.phone_contacts BEGIN SELECT note_phone(OLD.phone_id); END;
    CREATE TEMP TRIGGER host_changed AFTER UPDATE OF drained_at ON main.hosts BEGIN
        SELECT note_phone(id) FROM main.phones WHERE host_id = NEW.id; END;
";

/// Begins to note what this connection changes.
pub(crate) fn start(connection: &Connection) -> Result<(), StoreError> {
    let noted: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let phones = Arc::clone(&noted);
    connection.create_scalar_function("note_phone", 1, flags, move |call| {
        let id = call.get_raw(0).as_str()?;
        let mut phones = lock(&phones);
        if !phones.contains(id) {
            phones.insert(id.to_owned());
        }
        Ok(0_i64)
    })?;
    let phones = Arc::clone(&noted);
    connection.create_scalar_function("forget_phone", 1, flags, move |call| {
        lock(&phones).remove(call.get_raw(0).as_str()?);
        Ok(0_i64)
    })?;
    connection.create_scalar_function("noted_phones", 0, flags, move |_call| {
        let phones = std::mem::take(&mut *lock(&noted));
        Ok(phones.into_iter().collect::<Vec<_>>().join("\n"))
    })?;
    connection.execute_batch(TRIGGERS)?;
    Ok(())
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The phones that have changed since this was last asked.
pub fn take_changed_phones(tx: &mut Tx<'_>) -> Result<Vec<PhoneId>, StoreError> {
    let ids = tx.query_row("SELECT noted_phones()", params![], |row| row.text(0))?;
    ids.lines()
        .map(|id| id.parse().map_err(|error| StoreError::corrupt("phone_id", error)))
        .collect()
}

/// Crosses a phone off the list of those that have changed: what was written is known already.
pub(crate) fn known_change(tx: &mut Tx<'_>, phone: &PhoneId) -> Result<(), StoreError> {
    tx.query_row("SELECT forget_phone(?1)", params![phone], |_row| Ok(()))
}

/// A number that changes whenever another connection has written to the file.
pub fn file_version(tx: &mut Tx<'_>) -> Result<i64, StoreError> {
    tx.query_row("PRAGMA data_version", params![], |row| row.int(0))
}
