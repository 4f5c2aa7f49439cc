//! What can be wrong with something that came over a wire.

use serde::de::DeserializeOwned;

/// A word that is not on the closed list it was read for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {list} {word:?}: expected one of {expected}")]
pub struct UnknownWord {
    list: &'static str,
    word: String,
    expected: String,
}

/// Longest part of a foreign word that an error repeats, in characters.
const WORD_SHOWN_MAX: usize = 40;

impl UnknownWord {
    pub(crate) fn new<'a>(
        list: &'static str,
        word: &str,
        expected: impl Iterator<Item = &'a str>,
    ) -> Self {
        let word = word.chars().take(WORD_SHOWN_MAX).collect();
        Self { list, word, expected: expected.collect::<Vec<_>>().join(", ") }
    }
}

/// Why a line or frame was refused. Never carries the content, which may hold a message's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than the limit of its wire, in bytes.
    #[error("{bytes} bytes, more than the {max} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Not a JSON object, or without a string `type`.
    #[error("not a JSON object with a `type`: {0}")]
    Malformed(String),
    /// A `type` that this build does not know.
    #[error("unknown type {0:?}")]
    UnknownType(String),
    /// A known type whose fields are wrong.
    #[error("bad {kind}: {detail}")]
    BadFields {
        /// The `type` it claims to be.
        kind: String,
        /// Which field, and what is wrong with it; never its value.
        detail: String,
    },
}

impl WireError {
    /// A short stable word for counters.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_long",
            Self::Malformed(_) => "malformed",
            Self::UnknownType(_) => "unknown_type",
            Self::BadFields { .. } => "bad_fields",
        }
    }
}

/// Longest explanation taken over from the JSON reader, in characters.
const DETAIL_CHARS_MAX: usize = 160;

/// Parses one tagged JSON object of at most `max` bytes.
///
/// `known` lists the tags of `T`, so that an unknown type is told from a known one with bad fields.
pub(crate) fn parse_tagged<T: DeserializeOwned>(
    text: &str,
    max: usize,
    known: &[&str],
) -> Result<T, WireError> {
    #[derive(serde::Deserialize)]
    struct Tag {
        #[serde(rename = "type")]
        kind: String,
    }
    if text.len() > max {
        return Err(WireError::TooLong { bytes: text.len(), max });
    }
    let tag: Tag = serde_json::from_str(text).map_err(|err| WireError::Malformed(place(&err)))?;
    if !known.contains(&tag.kind.as_str()) {
        return Err(WireError::UnknownType(tag.kind.chars().take(WORD_SHOWN_MAX).collect()));
    }
    serde_json::from_str(text)
        .map_err(|err| WireError::BadFields { kind: tag.kind, detail: field_error(&err) })
}

/// Where JSON itself is broken, without what stands there.
fn place(err: &serde_json::Error) -> String {
    let what = match err.classify() {
        serde_json::error::Category::Io => "input error",
        serde_json::error::Category::Syntax => "syntax error",
        serde_json::error::Category::Data => "no string `type`",
        serde_json::error::Category::Eof => "ends too early",
    };
    format!("{what} at column {}", err.column())
}

/// serde's own sentence, which names the field, without the values that it quotes: they may be
/// part of a message's text.
fn field_error(err: &serde_json::Error) -> String {
    let sentence = err.to_string();
    let sentence = match sentence.split_once("unknown variant `") {
        // The only place where serde puts a value between backticks; the words it expected follow.
        Some((before, after)) => {
            let rest = after.rsplit_once("`, expected").map_or("", |(_, rest)| rest);
            format!("{before}unknown variant …, expected{rest}")
        }
        None => sentence,
    };
    without_quoted(&sentence).chars().take(DETAIL_CHARS_MAX).collect()
}

/// The sentence with everything between double quotes left out; escaped quotes do not end it.
fn without_quoted(sentence: &str) -> String {
    let (mut kept, mut quoted, mut escaped) = (String::new(), false, false);
    for c in sentence.chars() {
        match (quoted, c) {
            (false, '"') => {
                kept.push('…');
                quoted = true;
            }
            (false, _) => kept.push(c),
            (true, '"') if !escaped => quoted = false,
            (true, _) => escaped = c == '\\' && !escaped,
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case")]
    enum Sample {
        Row {
            #[expect(dead_code, reason = "only its type matters")]
            number: u32,
            #[expect(dead_code, reason = "only its type matters")]
            channel: crate::Channel,
        },
    }

    proptest! {
        /// A field that should be something else never comes back in the error.
        #[test]
        fn a_wrong_value_is_never_repeated(secret in "[a-zA-Z\"\\\\`, ]{0,30}SECRET[a-zA-Z\"\\\\`, ]{0,30}") {
            for (number, channel) in [
                (serde_json::json!(secret), serde_json::json!("sms")),
                (serde_json::json!(1), serde_json::json!(secret)),
            ] {
                let line = serde_json::json!({"type": "row", "number": number, "channel": channel});
                let refused = super::parse_tagged::<Sample>(&line.to_string(), 4096, &["row"]);
                let said = refused.unwrap_err().to_string();
                prop_assert!(!said.contains("SECRET"), "{}", said);
                prop_assert!(said.contains("expected"), "{}", said);
            }
        }
    }
}
