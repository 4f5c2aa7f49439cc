//! Texts with variables: `Hello {{name}}.` Pure, and nothing but that: no conditions, no loops, no functions, so that a
//! text of a tenant's can do nothing but be written out.
//!
//! `{{` begins a variable, `}}` ends it, white space around its name counts for nothing, and `\{{` stands for the two
//! braces themselves. Everything else is text. Values are written as they are and never read again, so that no
//! recipient's name can become a variable.

use std::collections::{BTreeMap, BTreeSet};

use protocol::limits::{TEMPLATE_VARIABLES_MAX, TEXT_CHARS_MAX, VARIABLE_NAME_BYTES_MAX};

const OPEN: &str = "{{";
const CLOSE: &str = "}}";

/// What a text is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// The place of its name in [`Template::names`].
    Variable(usize),
}

/// A text with variables that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
    names: Vec<String>,
}

/// Why a text is no template. The text itself is never repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A variable begins and does not end.
    #[error(
        "a variable begins with {{{{ at character {at} and does not end; write \\{{{{ for the braces themselves"
    )]
    Unclosed {
        /// The character, from 1.
        at: usize,
    },
    /// What stands between the braces is no name.
    #[error(
        "what stands in the braces at character {at} is no name: letters, digits and _, not beginning with a digit, at \
         most {VARIABLE_NAME_BYTES_MAX}"
    )]
    Name {
        /// The character, from 1.
        at: usize,
    },
    /// Too many variables.
    #[error("it has more than {TEMPLATE_VARIABLES_MAX} variables")]
    TooMany,
}

impl Fault {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unclosed { .. } => "unclosed_variable",
            Self::Name { .. } => "invalid_variable_name",
            Self::TooMany => "too_many_variables",
        }
    }
}

/// Why a template cannot be written out with these values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// It has no such variable.
    Unknown(String),
    /// This variable is neither given nor has it a default.
    Missing(String),
    /// The whole text would have so many characters.
    TooLong(usize),
    /// The whole text would be nothing but white space.
    Blank,
}

impl Lack {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown_variable",
            Self::Missing(_) => "missing_variable",
            Self::TooLong(_) => "too_long",
            Self::Blank => "blank",
        }
    }
}

/// Whether this can be the name of a variable.
pub fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.len() <= VARIABLE_NAME_BYTES_MAX
        && name.bytes().all(good)
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

impl Template {
    /// Reads a text.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let mut read = Self { pieces: Vec::new(), names: Vec::new() };
        let mut plain = String::new();
        let mut rest = text;
        let place = |rest: &str| text.chars().count().saturating_sub(rest.chars().count()) + 1;
        loop {
            let Some(open) = rest.find(OPEN) else {
                plain.push_str(rest);
                break;
            };
            let (before, from) = rest.split_at(open);
            if let Some(before) = before.strip_suffix('\\') {
                plain.push_str(before);
                plain.push_str(OPEN);
                rest = from.strip_prefix(OPEN).unwrap_or_default();
                continue;
            }
            plain.push_str(before);
            let inner = from.strip_prefix(OPEN).unwrap_or_default();
            let Some((name, after)) = inner.split_once(CLOSE) else {
                return Err(Fault::Unclosed { at: place(from) });
            };
            let name = name.trim();
            if !is_name(name) {
                return Err(Fault::Name { at: place(from) });
            }
            if !plain.is_empty() {
                read.pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            let known = read.names.iter().position(|known| known == name);
            let index = known.unwrap_or(read.names.len());
            if known.is_none() {
                if index == TEMPLATE_VARIABLES_MAX {
                    return Err(Fault::TooMany);
                }
                read.names.push(name.to_owned());
            }
            read.pieces.push(Piece::Variable(index));
            rest = after;
        }
        if !plain.is_empty() {
            read.pieces.push(Piece::Text(plain));
        }
        Ok(read)
    }

    /// A text without variables, whatever braces it has: what stands for itself.
    pub fn plain(text: &str) -> Self {
        Self { pieces: vec![Piece::Text(text.to_owned())], names: Vec::new() }
    }

    /// The variables, in the order of their first use.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The whole text, or everything that stands against it.
    pub fn render(
        &self,
        defaults: &BTreeMap<String, String>,
        values: &BTreeMap<String, String>,
    ) -> Result<String, Vec<Lack>> {
        let known: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        let unknown = values.keys().filter(|name| !known.contains(name.as_str()));
        let mut lacks: Vec<Lack> = unknown.map(|name| Lack::Unknown(name.clone())).collect();
        let mut filled = Vec::with_capacity(self.names.len());
        for name in &self.names {
            match values.get(name).or_else(|| defaults.get(name)) {
                Some(value) => filled.push(value.as_str()),
                None => lacks.push(Lack::Missing(name.clone())),
            }
        }
        if !lacks.is_empty() {
            return Err(lacks);
        }
        let value = |index: usize| filled.get(index).copied().unwrap_or_default();
        let parts = self.pieces.iter().map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Variable(index) => value(*index),
        });
        // Before it is put together: a value that stands in a text a thousand times must not fill the memory.
        let chars = parts.clone().fold(0_usize, |all, part| {
            if all > TEXT_CHARS_MAX { all } else { all + part.chars().count() }
        });
        if chars > TEXT_CHARS_MAX {
            return Err(vec![Lack::TooLong(chars)]);
        }
        let text: String = parts.collect();
        if text.trim().is_empty() {
            return Err(vec![Lack::Blank]);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The text as it was read, but for white space in braces.
    fn source(read: &Template) -> String {
        let written = read.pieces.iter().map(|piece| match piece {
            Piece::Text(text) => {
                // From the right: a single brace may stand before an escape, never between one and a variable.
                let parts: Vec<&str> = text.rsplit(OPEN).collect();
                parts.into_iter().rev().collect::<Vec<_>>().join("\\{{")
            }
            Piece::Variable(index) => format!("{{{{{}}}}}", read.names[*index]),
        });
        written.collect()
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn render(text: &str, values: &[(&str, &str)]) -> Result<String, Vec<Lack>> {
        Template::parse(text).unwrap().render(&BTreeMap::new(), &map(values))
    }

    #[test]
    fn variables_are_replaced_wherever_they_stand() {
        for (text, expected) in [
            ("Hello {{name}}.", "Hello Anna."),
            ("{{name}}{{ name }}{{\tname\n}}", "AnnaAnnaAnna"),
            ("no variable", "no variable"),
            ("a } b }} c { d", "a } b }} c { d"),
            ("\\{{name}} is {{name}}", "{{name}} is Anna"),
            ("{{name}}}", "Anna}"),
            ("é{{name}}\u{1f468}", "éAnna\u{1f468}"),
        ] {
            let read = Template::parse(text).unwrap();
            let names = read.names().iter().map(|name| (name.as_str(), "Anna"));
            let values = map(&names.collect::<Vec<_>>());
            assert_eq!(read.render(&map(&[]), &values).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_value_is_never_read_as_a_template() {
        assert_eq!(
            render("{{a}} {{b}}", &[("a", "{{b}}"), ("b", "\\{{a}}")]).unwrap(),
            "{{b}} \\{{a}}"
        );
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let lacks = render("{{a}} {{b}}", &[("b", "x"), ("c", "y")]).unwrap_err();
        assert_eq!(lacks, [Lack::Unknown("c".to_owned()), Lack::Missing("a".to_owned())]);
        let read = Template::parse("{{a}} {{b}}").unwrap();
        let text = read.render(&map(&[("a", "1"), ("b", "2")]), &map(&[("b", "")])).unwrap();
        assert_eq!(text, "1 ", "an empty value is a value");
    }

    #[test]
    fn a_text_that_grows_too_long_is_refused_before_it_is_made() {
        let text = "{{a}}".repeat(4_000);
        let long = "x".repeat(1_000);
        let lacks = render(&text, &[("a", &long)]).unwrap_err();
        assert!(matches!(lacks[..], [Lack::TooLong(chars)] if chars > TEXT_CHARS_MAX), "{lacks:?}");
        assert_eq!(render("{{a}}", &[("a", " \n")]).unwrap_err(), [Lack::Blank]);
    }

    #[test]
    fn faults_say_where() {
        for (text, fault) in [
            ("é {{", Fault::Unclosed { at: 3 }),
            ("a {{name", Fault::Unclosed { at: 3 }),
            ("a {{name} }", Fault::Unclosed { at: 3 }),
            ("{{}}", Fault::Name { at: 1 }),
            ("{{a b}}", Fault::Name { at: 1 }),
            ("{{1a}}", Fault::Name { at: 1 }),
            ("{{é}}", Fault::Name { at: 1 }),
            ("{{a.b}}", Fault::Name { at: 1 }),
            ("{{#if a}}", Fault::Name { at: 1 }),
            ("{{{a}}}", Fault::Name { at: 1 }),
            ("ok {{a}} {{{{b}}", Fault::Name { at: 10 }),
        ] {
            assert_eq!(Template::parse(text).unwrap_err(), fault, "{text}");
        }
        let long = format!("{{{{{}}}}}", "a".repeat(VARIABLE_NAME_BYTES_MAX + 1));
        assert_eq!(Template::parse(&long).unwrap_err(), Fault::Name { at: 1 });
        let many: Vec<String> =
            (0..=TEMPLATE_VARIABLES_MAX).map(|n| format!("{{{{v{n}}}}}")).collect();
        let many = many.concat();
        assert_eq!(Template::parse(&many).unwrap_err(), Fault::TooMany);
        let shown = Fault::Unclosed { at: 3 }.to_string();
        assert!(shown.contains("{{ at character 3") && shown.contains("\\{{"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_written_as_it_was(
            text in "\\PC{0,40}|[{}\\\\ a-c]{0,40}|(\\{\\{[a-c]{1,2}\\}\\}|\\\\\\{\\{|[{} x\\\\]){0,12}",
            value in "\\PC{0,20}|[{}\\\\a]{0,8}",
        ) {
            let Ok(read) = Template::parse(&text) else { return Ok(()) };
            // What it says again means the same.
            prop_assert_eq!(&Template::parse(&source(&read)).unwrap(), &read);
            let values: BTreeMap<String, String> =
                read.names().iter().map(|name| (name.clone(), value.clone())).collect();
            match read.render(&BTreeMap::new(), &values) {
                Ok(out) => {
                    let expected: String = read.pieces.iter().map(|piece| match piece {
                        Piece::Text(text) => text.as_str(),
                        Piece::Variable(_) => value.as_str(),
                    }).collect();
                    prop_assert_eq!(out, expected);
                }
                Err(lacks) => prop_assert_eq!(lacks, vec![Lack::Blank]),
            }
            if !text.contains(OPEN) {
                prop_assert_eq!(read.names().len(), 0);
                prop_assert_eq!(source(&read), text);
            }
        }
    }
}
