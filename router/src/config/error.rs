//! What is said of a configuration that cannot be used, and where in the file it stands.

use std::ops::Range;

use toml::de::DeTable;

/// Why a configuration cannot be used; names the file and, where there is one, line and field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot be read")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not the TOML that is expected.
    #[error("{path}:{line}: {}{message}", colon(field.as_ref()))]
    Parse {
        /// Which file.
        path: String,
        /// Which line, from 1.
        line: usize,
        /// Which field, dotted, where one can be told.
        field: Option<String>,
        /// What is wrong there.
        message: String,
    },
    /// A value that cannot work.
    #[error("{path}:{} {field}: {message}", line.map(|line| format!("{line}:")).unwrap_or_default())]
    Value {
        /// Which file.
        path: String,
        /// Which line, from 1, where the value stands in the file.
        line: Option<usize>,
        /// Which field, dotted.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

fn colon(field: Option<&String>) -> String {
    field.map(|field| format!("{field}: ")).unwrap_or_default()
}

/// The complaint is about a key itself, such as one that stands there a second time.
pub(super) fn bare_key(text: &str) -> Option<String> {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!text.is_empty() && text.chars().all(bare)).then(|| text.to_owned())
}

/// The dotted name of the field whose key or value stands at `offset`.
pub(super) fn field_at(table: &DeTable<'_>, offset: usize, above: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = format!("{above}{}", key.get_ref());
        let below = value.get_ref().as_table();
        below.and_then(|table| field_at(table, offset, &format!("{name}."))).or_else(|| {
            let stands = |span: Range<usize>| (span.start..=span.end).contains(&offset);
            let here = match below {
                None => stands(value.span()),
                // A complaint about a whole table stands at its header.
                Some(_) => value.span().start == offset,
            };
            (stands(key.span()) || here).then_some(name)
        })
    })
}

/// Where the value of a field stands, if the file gives it.
pub(super) fn offset_of(text: &str, field: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut names = field.split('.').peekable();
    while let Some(name) = names.next() {
        let value = table.get(name)?;
        if names.peek().is_none() {
            return Some(value.span().start);
        }
        table = value.get_ref().as_table()?;
    }
    None
}

pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
