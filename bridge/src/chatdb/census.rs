//! Which macOS this database looks like, and what in it is new to us.

use std::collections::HashSet;

use rusqlite::Connection;

use super::{ChatDb, NotReady};

/// Every table and column known, one table a line.
const KNOWN: &str = include_str!("known.txt");
/// Columns of `message` that came with a version of macOS, newest first: columns are only ever
/// added, and vary between Macs of one version, so this is a likeness and nothing to decide by.
const MARKS: &[(&str, &str)] = &[
    ("date_updated", "27"),
    ("is_time_sensitive", "26"),
    ("associated_message_emoji", "15"),
    ("is_stewie", "14"),
    ("date_edited", "13"),
    ("was_delivered_quietly", "12"),
];
/// Most names that are kept of what is unknown; a database of another program has any number.
const NAMES_MAX: usize = 200;

/// What a look at the schema found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// The macOS whose newest column is here; none for one older than 12.
    pub looks_like: Option<&'static str>,
    /// Columns of known tables that are new to us, as `table.column`, sorted.
    pub unknown_columns: Vec<String>,
    /// Tables that are new to us, sorted.
    pub unknown_tables: Vec<String>,
}

impl ChatDb {
    /// Compares the schema with every one that is known.
    pub fn census(&self) -> Result<Census, NotReady> {
        self.run(columns).map(|columns| take(&columns))
    }
}

/// Every (table, column) of the database.
fn columns(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    connection
        .prepare(
            "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c \
             WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

fn take(columns: &[(String, String)]) -> Census {
    let known: Vec<(&str, HashSet<&str>)> = KNOWN
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(": "))
        .map(|(table, columns)| (table, columns.split(' ').collect()))
        .collect();
    let mut unknown_columns = Vec::new();
    let mut unknown_tables = Vec::new();
    let mut looks_like = None;
    for (table, column) in columns {
        match known.iter().find(|(name, _)| name == table) {
            Some((_, names)) if names.contains(column.as_str()) => {}
            Some(_) => unknown_columns.push(format!("{table}.{column}")),
            None => unknown_tables.push(table.clone()),
        }
        if table == "message" {
            let rank = MARKS.iter().position(|(mark, _)| mark == column);
            looks_like = [looks_like, rank].into_iter().flatten().min();
        }
    }
    for names in [&mut unknown_columns, &mut unknown_tables] {
        names.sort_unstable();
        names.dedup();
        names.truncate(NAMES_MAX);
    }
    let looks_like = looks_like.and_then(|rank| MARKS.get(rank)).map(|(_, version)| *version);
    Census { looks_like, unknown_columns, unknown_tables }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(sql: &str) -> Census {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch(sql).unwrap();
        take(&columns(&database).unwrap())
    }

    fn schema(version: &str) -> String {
        let path =
            format!("{}/tests/data/chatdb-schema/macos{version}.sql", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn every_known_schema_is_recognised_and_holds_nothing_new() {
        for version in ["12", "13", "14", "15", "26", "27"] {
            let census = census(&schema(version));
            assert_eq!(census.looks_like, Some(version));
            assert_eq!(census.unknown_columns, Vec::<String>::new(), "{version}");
            assert_eq!(census.unknown_tables, Vec::<String>::new(), "{version}");
        }
    }

    #[test]
    fn what_is_new_is_named_and_does_not_change_the_likeness() {
        let sql = format!(
            "{}; ALTER TABLE message ADD COLUMN is_dream INTEGER; \
             ALTER TABLE chat ADD COLUMN mood TEXT; CREATE TABLE dreams (a, b);",
            schema("15")
        );
        let census = census(&sql);
        assert_eq!(census.looks_like, Some("15"));
        assert_eq!(census.unknown_columns, ["chat.mood", "message.is_dream"]);
        assert_eq!(census.unknown_tables, ["dreams"]);
    }

    #[test]
    fn an_old_or_foreign_database_looks_like_none() {
        assert_eq!(census("CREATE TABLE message (guid TEXT)").looks_like, None);
        assert_eq!(census("CREATE TABLE cars (id)").looks_like, None);
    }

    #[test]
    fn no_database_makes_the_names_endless() {
        let tables: Vec<String> = (0..300).map(|at| format!("CREATE TABLE t{at} (x);")).collect();
        assert_eq!(census(&tables.concat()).unknown_tables.len(), NAMES_MAX);
    }
}
