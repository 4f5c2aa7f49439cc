//! The few places where the engines spell the same statement differently.
//!
//! `OR FAIL` stands in a statement that runs for every message, writes several rows and sets off nothing. Without it SQLite copies
//! each page that the statement changes, to be able to take back that statement alone; whoever gets an error here takes back
//! more than that, the rows of the whole closure. Where there are triggers that call a function it copies them all the same.

use std::borrow::Cow;

/// How an engine spells what the shared SQL leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Takes the shared SQL as it is.
    Sqlite,
    /// Wants `$1` for `?1`.
    Postgres,
}

impl Dialect {
    /// The statement as this engine wants it. Quoted text is left alone.
    pub fn translate(self, sql: &str) -> Cow<'_, str> {
        match self {
            Self::Sqlite => Cow::Borrowed(sql),
            Self::Postgres => Cow::Owned(match sql.strip_prefix("INSERT OR FAIL ") {
                Some(rest) => format!("INSERT {}", dollar_parameters(rest)),
                None => dollar_parameters(sql),
            }),
        }
    }
}

fn dollar_parameters(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut quote = None;
    for character in sql.chars() {
        match quote {
            Some(open) if character == open => quote = None,
            None if character == '\'' || character == '"' => quote = Some(character),
            None if character == '?' => {
                out.push('$');
                continue;
            }
            Some(_) | None => {}
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_takes_the_shared_sql_unchanged() {
        let sql = "SELECT a FROM t WHERE b = ?1";
        assert!(matches!(Dialect::Sqlite.translate(sql), Cow::Borrowed(same) if same == sql));
    }

    #[test]
    fn postgres_parameters_are_dollars_and_quoted_text_stays() {
        assert_eq!(
            Dialect::Postgres.translate("UPDATE t SET a = ?1, q = 'why?', \"c?\" = ?12"),
            "UPDATE t SET a = $1, q = 'why?', \"c?\" = $12"
        );
        assert_eq!(
            Dialect::Postgres.translate("INSERT OR FAIL INTO t (a) VALUES (?1)"),
            "INSERT INTO t (a) VALUES ($1)"
        );
    }
}
