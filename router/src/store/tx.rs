//! A transaction as store functions see it.

use rusqlite::Connection;
use rusqlite::types::{ToSqlOutput, ValueRef};

use super::usage::{self, Counts};
use super::{Column, FromColumn, StoreError, Value};

/// One open transaction. It ends when the closure that got it returns: `Ok` commits, `Err` takes everything back.
#[derive(Debug)]
pub struct Tx<'a> {
    engine: Engine<'a>,
    /// Transactions so far whose rows were taken back after somebody had remembered them.
    losses: u64,
    remembered: bool,
    counts: Counts,
}

#[derive(Debug)]
enum Engine<'a> {
    Sqlite(&'a Connection),
}

/// One answered row; columns by index, in the order of the SELECT.
#[derive(Debug)]
pub struct Row<'a> {
    engine: EngineRow<'a>,
}

#[derive(Debug)]
enum EngineRow<'a> {
    Sqlite(&'a rusqlite::Row<'a>),
}

impl<'a> Tx<'a> {
    pub(crate) fn sqlite(connection: &'a Connection) -> Self {
        Self::after(connection, 0)
    }

    pub(crate) fn after(connection: &'a Connection, losses: u64) -> Self {
        let engine = Engine::Sqlite(connection);
        Self { engine, losses, remembered: false, counts: Counts::default() }
    }

    /// For what keeps in memory what it reads here. The number that is answered is another one once any such transaction
    /// was rolled back: what was remembered may never have been true, and has to be forgotten.
    pub fn remember(&mut self) -> u64 {
        self.remembered = true;
        self.losses
    }

    pub(super) fn is_remembered(&self) -> bool {
        self.remembered
    }

    /// What tenants have used in this transaction. It is written before the commit, together with that of others.
    pub fn counts(&mut self) -> &mut Counts {
        &mut self.counts
    }

    pub(super) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Writes what was counted so far. The writer does it for whatever it commits; what is run on a connection of its own
    /// has nobody who would.
    pub fn write_counts(&mut self) -> Result<(), StoreError> {
        let counts = self.take_counts();
        usage::write(self, &counts)
    }

    /// Runs a statement that answers no rows; answers how many rows it changed.
    pub fn execute(&mut self, sql: &str, params: &[Value]) -> Result<usize, StoreError> {
        match self.engine {
            Engine::Sqlite(connection) => {
                let mut statement = connection.prepare_cached(sql)?;
                Ok(statement.execute(rusqlite::params_from_iter(params))?)
            }
        }
    }

    /// The rows of a query, each through `map`. Bound it with LIMIT wherever the data could be many.
    pub fn query<T>(
        &mut self,
        sql: &str,
        params: &[Value],
        mut map: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        match self.engine {
            Engine::Sqlite(connection) => {
                let mut statement = connection.prepare_cached(sql)?;
                let mut rows = statement.query(rusqlite::params_from_iter(params))?;
                let mut out = Vec::new();
                while let Some(row) = rows.next()? {
                    out.push(map(&Row { engine: EngineRow::Sqlite(row) })?);
                }
                Ok(out)
            }
        }
    }

    /// The first row of a query, or `None` where it answers none.
    ///
    /// The statement is run to its end, so that an `INSERT … RETURNING` has taken effect.
    pub fn query_opt<T>(
        &mut self,
        sql: &str,
        params: &[Value],
        map: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.query(sql, params, map)?.into_iter().next())
    }

    /// The first row of a query that always has one; [`StoreError::NoRow`] where it has none.
    pub fn query_row<T>(
        &mut self,
        sql: &str,
        params: &[Value],
        map: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.query_opt(sql, params, map)?.ok_or(StoreError::NoRow)
    }
}

impl Row<'_> {
    /// The column at `index`, as `T`.
    pub fn get<T: FromColumn>(&self, index: usize) -> Result<T, StoreError> {
        match self.engine {
            EngineRow::Sqlite(row) => {
                let column = match row.get_ref(index)? {
                    ValueRef::Null => Column::Null,
                    ValueRef::Integer(number) => Column::Integer(number),
                    ValueRef::Text(bytes) => {
                        Column::Text(std::str::from_utf8(bytes).map_err(|error| {
                            StoreError::Corrupt(format!("column {index} is not UTF-8: {error}"))
                        })?)
                    }
                    ValueRef::Blob(bytes) => Column::Blob(bytes),
                    ValueRef::Real(_) => {
                        return Err(StoreError::Corrupt(format!(
                            "column {index} is a floating-point number"
                        )));
                    }
                };
                T::from_column(column).map_err(|error| name_column(error, index))
            }
        }
    }

    /// The column at `index` as an integer.
    pub fn int(&self, index: usize) -> Result<i64, StoreError> {
        self.get(index)
    }

    /// The column at `index` as text.
    pub fn text(&self, index: usize) -> Result<String, StoreError> {
        self.get(index)
    }

    /// The column at `index` as text or NULL.
    pub fn opt_text(&self, index: usize) -> Result<Option<String>, StoreError> {
        self.get(index)
    }

    /// The column at `index`, text, parsed into a type of its own (ids, words).
    pub fn parse<T>(&self, index: usize) -> Result<T, StoreError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let text: String = self.get(index)?;
        text.parse().map_err(|error| StoreError::Corrupt(format!("column {index}: {error}")))
    }

    /// [`Row::parse`] for a column that may be NULL.
    pub fn parse_opt<T>(&self, index: usize) -> Result<Option<T>, StoreError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let text: Option<String> = self.get(index)?;
        text.map(|text| {
            text.parse().map_err(|error| StoreError::Corrupt(format!("column {index}: {error}")))
        })
        .transpose()
    }
}

fn name_column(error: StoreError, index: usize) -> StoreError {
    if let StoreError::Corrupt(detail) = error {
        return StoreError::Corrupt(format!("column {index}: {detail}"));
    }
    error
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}
