//! A store in memory for the tests of its statements, and how SQLite would read one.

use rusqlite::Connection;

use super::{Tx, Value, migrate};

/// A store with every table and nothing in it.
pub(crate) fn open() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    migrate(&mut connection).unwrap();
    connection
}

/// The same, where a row may name another that is not there: what a test does not look at need not be made.
pub(crate) fn open_loose() -> Connection {
    let connection = open();
    connection.pragma_update(None, "foreign_keys", false).unwrap();
    connection
}

/// The steps by which SQLite would carry out a statement, whatever its values are. No plan here depends on one.
pub(crate) fn plan(connection: &Connection, sql: &str) -> String {
    let values = vec![Value::Null; connection.prepare(sql).unwrap().parameter_count()];
    Tx::sqlite(connection)
        .query(&format!("EXPLAIN QUERY PLAN {sql}"), &values, |row| row.text(3))
        .unwrap()
        .join("; ")
}
