//! Checks a JSON body field by field and keeps every problem, so that a caller learns of all of them at once.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

use protocol::api::FieldError;
use protocol::{Channel, UnixMs};
use serde_json::{Map, Value};
use url::Url;

use crate::compliance::place;
use crate::error::ApiError;

/// Longest name of a time zone, in characters.
const ZONE_CHARS_MAX: usize = 60;

/// Unknown fields named in one answer; a body of thousands of them needs no thousand complaints.
const UNKNOWN_NAMED_MAX: usize = 20;

/// A body on its way to becoming checked values.
#[derive(Debug)]
pub(crate) struct Fields {
    left: Map<String, Value>,
    errors: Vec<FieldError>,
    pointer: String,
}

impl Fields {
    pub(crate) fn new(body: Value) -> Result<Self, ApiError> {
        Self::at(String::new(), body).map_err(|error| ApiError::invalid(vec![error]))
    }

    fn at(pointer: String, value: Value) -> Result<Self, FieldError> {
        match value {
            Value::Object(left) => Ok(Self { left, errors: Vec::new(), pointer }),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => Err(FieldError {
                pointer,
                code: "wrong_type".to_owned(),
                detail: "It must be a JSON object.".to_owned(),
            }),
        }
    }

    /// Keeps a problem with a field.
    pub(crate) fn wrong(&mut self, field: &str, code: &str, detail: impl Into<String>) {
        let pointer = format!("{}/{}", self.pointer, escaped(field));
        self.errors.push(FieldError { pointer, code: code.to_owned(), detail: detail.into() });
    }

    /// Keeps a problem with what a field holds under a name.
    pub(crate) fn wrong_below(
        &mut self,
        field: &str,
        name: &str,
        code: &str,
        detail: impl Into<String>,
    ) {
        let pointer = format!("{}/{}/{}", self.pointer, escaped(field), escaped(name));
        self.errors.push(FieldError { pointer, code: code.to_owned(), detail: detail.into() });
    }

    fn missing(&mut self, field: &str) {
        self.wrong(field, "required", "It is required.");
    }

    /// The field as it came; null is the same as left out.
    fn take(&mut self, field: &str) -> Option<Value> {
        self.left.remove(field).filter(|value| !value.is_null())
    }

    /// A text of so many characters.
    pub(crate) fn text(&mut self, field: &str, chars: RangeInclusive<usize>) -> Option<String> {
        match self.take(field)? {
            Value::String(text) => match unfit(&text, &chars) {
                None if !text.is_empty() && text.trim().is_empty() => {
                    self.wrong(field, "blank", "It has nothing but white space.");
                }
                None => return Some(text),
                Some((code, detail)) => self.wrong(field, code, detail),
            },
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => self.wrong(field, "wrong_type", "It must be a string."),
        }
        None
    }

    /// A text on one line: names, and whatever else is shown in a table.
    pub(crate) fn line(&mut self, field: &str, chars: RangeInclusive<usize>) -> Option<String> {
        let text = self.text(field, chars)?;
        if text.contains(char::is_control) {
            self.wrong(field, "invalid_character", "It must be one line.");
            return None;
        }
        Some(text)
    }

    /// [`Fields::line`], and it must be there.
    pub(crate) fn required_line(
        &mut self,
        field: &str,
        chars: RangeInclusive<usize>,
    ) -> Option<String> {
        if !self.has(field) {
            self.missing(field);
            return None;
        }
        self.line(field, chars)
    }

    /// [`Fields::text`], and it must be there.
    pub(crate) fn required_text(
        &mut self,
        field: &str,
        chars: RangeInclusive<usize>,
    ) -> Option<String> {
        if !self.has(field) {
            self.missing(field);
            return None;
        }
        self.text(field, chars)
    }

    /// A text that parses into a type of its own; `code` where it does not.
    pub(crate) fn parsed<T>(&mut self, field: &str, code: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        match self.take(field)? {
            Value::String(text) => match text.parse() {
                Ok(value) => return Some(value),
                Err(error) => self.wrong(field, code, format!("It is {error}.")),
            },
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => self.wrong(field, "wrong_type", "It must be a string."),
        }
        None
    }

    /// A word of a closed list; `code` where it is none of them.
    pub(crate) fn one_of<T>(&mut self, field: &str, code: &str, all: &[T]) -> Option<T>
    where
        T: Copy + std::fmt::Display,
    {
        match self.take(field)? {
            Value::String(text) => match word_of(&text, all) {
                Some(word) => return Some(word),
                None => self.wrong(field, code, must_be_one_of(field, all)),
            },
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => self.wrong(field, "wrong_type", "It must be a string."),
        }
        None
    }

    /// [`Fields::parsed`], and it must be there.
    pub(crate) fn required_parsed<T>(&mut self, field: &str, code: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        if !self.has(field) {
            self.missing(field);
            return None;
        }
        self.parsed(field, code)
    }

    /// A time.
    pub(crate) fn time(&mut self, field: &str) -> Option<UnixMs> {
        self.parsed(field, "invalid_time")
    }

    /// True or false.
    pub(crate) fn boolean(&mut self, field: &str) -> Option<bool> {
        match self.take(field)? {
            Value::Bool(value) => return Some(value),
            Value::Null
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => self.wrong(field, "wrong_type", "It must be true or false."),
        }
        None
    }

    /// A whole number in a range.
    pub(crate) fn number(&mut self, field: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.take(field)?;
        let Value::Number(number) = value else {
            self.wrong(field, "wrong_type", "It must be a whole number.");
            return None;
        };
        let whole = number.as_u64().and_then(|number| u32::try_from(number).ok());
        let good = whole.filter(|number| range.contains(number));
        if good.is_none() {
            let (low, high) = (range.start(), range.end());
            self.wrong(
                field,
                "out_of_range",
                format!("It must be a whole number from {low} to {high}."),
            );
        }
        good
    }

    /// A whole number in a range that may be below zero.
    pub(crate) fn integer(&mut self, field: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.take(field)?;
        let Value::Number(number) = value else {
            self.wrong(field, "wrong_type", "It must be a whole number.");
            return None;
        };
        let good = number.as_i64().filter(|number| range.contains(number));
        if good.is_none() {
            let (low, high) = (range.start(), range.end());
            self.wrong(
                field,
                "out_of_range",
                format!("It must be a whole number from {low} to {high}."),
            );
        }
        good
    }

    /// A list of at most so many values, each through `check` with its own pointer.
    pub(crate) fn list<T>(
        &mut self,
        field: &str,
        max: usize,
        mut check: impl FnMut(&mut Self, &str, Value) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = self.take(field)?;
        let Value::Array(items) = value else {
            self.wrong(field, "wrong_type", "It must be a list.");
            return None;
        };
        if items.len() > max {
            self.wrong(
                field,
                "too_many",
                format!("It has {} entries; {max} are allowed.", items.len()),
            );
            return None;
        }
        let mut out = Vec::with_capacity(items.len());
        let pointer = self.pointer.clone();
        self.pointer = format!("{pointer}/{}", escaped(field));
        for (index, item) in items.into_iter().enumerate() {
            if let Some(item) = check(self, &index.to_string(), item) {
                out.push(item);
            }
        }
        self.pointer = pointer;
        Some(out)
    }

    /// A list of channels; detail for those that are none.
    pub(crate) fn channels(&mut self, field: &str, detail: &str) -> Option<Vec<Channel>> {
        self.list(field, Channel::ALL.len(), |fields, index, item| {
            let channel = item.as_str().and_then(|word| word.parse().ok());
            if channel.is_none() {
                fields.wrong(index, "unknown_channel", detail);
            }
            channel
        })
    }

    /// A list of words of a closed list; code and detail for those that are none of them.
    pub(crate) fn words(
        &mut self,
        field: &str,
        all: &[&str],
        (code, detail): (&str, &str),
    ) -> Option<Vec<String>> {
        self.list(field, all.len(), |fields, index, item| match item {
            Value::String(text) if all.contains(&text.as_str()) => Some(text),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {
                fields.wrong(index, code, detail);
                None
            }
        })
    }

    /// A list of objects, each checked with fields of its own.
    pub(crate) fn objects<T>(
        &mut self,
        field: &str,
        max: usize,
        mut check: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.list(field, max, |fields, index, item| {
            match Self::at(format!("{}/{index}", fields.pointer), item) {
                Ok(mut inner) => {
                    let value = check(&mut inner);
                    inner.name_unknown();
                    fields.errors.append(&mut inner.errors);
                    value
                }
                Err(error) => {
                    fields.errors.push(error);
                    None
                }
            }
        })
    }

    /// An object, checked with fields of its own.
    pub(crate) fn object<T>(
        &mut self,
        field: &str,
        check: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(field)?;
        match Self::at(format!("{}/{}", self.pointer, escaped(field)), value) {
            Ok(mut inner) => {
                let value = check(&mut inner);
                inner.name_unknown();
                self.errors.append(&mut inner.errors);
                value
            }
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    /// A map of at most so many texts, each of so many characters and readable. The names are the caller's to judge.
    pub(crate) fn texts(
        &mut self,
        field: &str,
        max: usize,
        chars: RangeInclusive<usize>,
    ) -> Option<BTreeMap<String, String>> {
        let Value::Object(map) = self.take(field)? else {
            self.wrong(field, "wrong_type", "It must be an object of strings.");
            return None;
        };
        if map.len() > max {
            let detail = format!("It has {} entries; {max} are allowed.", map.len());
            self.wrong(field, "too_many", detail);
            return None;
        }
        let mut out = BTreeMap::new();
        for (name, value) in map {
            let Value::String(text) = value else {
                self.wrong_below(field, &name, "wrong_type", "It must be a string.");
                continue;
            };
            match unfit(&text, &chars) {
                None => drop(out.insert(name, text)),
                Some((code, detail)) => self.wrong_below(field, &name, code, detail),
            }
        }
        Some(out)
    }

    /// A map from text to text, at most so many bytes as JSON.
    pub(crate) fn text_map(
        &mut self,
        field: &str,
        bytes_max: usize,
    ) -> Option<BTreeMap<String, String>> {
        let value = self.take(field)?;
        let bytes = value.to_string().len();
        if bytes > bytes_max {
            self.wrong(
                field,
                "too_long",
                format!("It has {bytes} bytes as JSON; {bytes_max} are allowed."),
            );
            return None;
        }
        let Value::Object(map) = value else {
            self.wrong(field, "wrong_type", "It must be an object of strings.");
            return None;
        };
        let mut out = BTreeMap::new();
        for (name, value) in map {
            if let Value::String(text) = value {
                out.insert(name, text);
            } else {
                self.wrong_below(field, &name, "wrong_type", "It must be a string.");
            }
        }
        Some(out)
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.left.get(field).is_some_and(|value| !value.is_null())
    }

    /// Marks a field as one that must be there.
    pub(crate) fn require(&mut self, field: &str) {
        if !self.has(field) {
            self.missing(field);
        }
    }

    fn name_unknown(&mut self) {
        let unknown: Vec<String> = self
            .left
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, _)| name.chars().take(100).collect())
            .take(UNKNOWN_NAMED_MAX)
            .collect();
        self.left.clear();
        for name in unknown {
            self.wrong(&name, "unknown_field", "There is no such field.");
        }
    }

    /// The name of a time zone.
    pub(crate) fn time_zone(&mut self, field: &str) -> Option<String> {
        let zone = self.line(field, 1..=ZONE_CHARS_MAX);
        if zone.as_deref().is_some_and(|zone| !place::is_zone(zone)) {
            self.wrong(field, "unknown_time_zone", "No time zone has this name.");
        }
        zone
    }

    /// Everything that was wrong, or nothing. Ask for it after the last field.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        self.name_unknown();
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid(self.errors))
    }

    /// [`Fields::finish`] for a body whose required fields are not all there: never `Ok`.
    pub(crate) fn refuse(mut self) -> ApiError {
        self.name_unknown();
        ApiError::invalid(self.errors)
    }
}

/// Why a text is not of so many characters that somebody can read: code and detail.
pub(crate) fn unfit(text: &str, chars: &RangeInclusive<usize>) -> Option<(&'static str, String)> {
    let count = text.chars().count();
    if !chars.contains(&count) {
        let code = if count < *chars.start() { "too_short" } else { "too_long" };
        let (low, high) = (chars.start(), chars.end());
        return Some((code, format!("It has {count} characters; {low} to {high} are allowed.")));
    }
    // NUL ends an argument of a program and is refused by PostgreSQL; the others steer terminals and show nothing.
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    let control = text.chars().find(|c| steers(*c))?;
    let detail = format!("It holds the control character U+{:04X}.", u32::from(control));
    Some(("invalid_character", detail))
}

/// An absolute URL of the web, or why it is none that anybody may be sent to.
pub(super) fn web_url(text: &str, allow_plain: bool) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_no_url| "It is not an absolute URL.")?;
    let is_web = url.scheme() == "https" || (allow_plain && url.scheme() == "http");
    if !is_web || !url.has_host() {
        return Err("It must begin with https://.");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("It must not carry a user name or password.");
    }
    Ok(url)
}

/// The word of a closed list that is spelled so.
pub(super) fn word_of<T: Copy + std::fmt::Display>(text: &str, all: &[T]) -> Option<T> {
    all.iter().copied().find(|word| word.to_string() == text)
}

/// What is said of a word that is not on its list.
pub(super) fn must_be_one_of<T: std::fmt::Display>(name: &str, all: &[T]) -> String {
    let words: Vec<String> = all.iter().map(ToString::to_string).collect();
    format!("`{name}` must be one of {}.", words.join(", "))
}

/// A name as it stands in a JSON pointer (RFC 6901).
pub(super) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(fields: Fields) -> Vec<(String, String)> {
        let mut fields = fields;
        fields.name_unknown();
        fields.errors.into_iter().map(|error| (error.pointer, error.code)).collect()
    }

    #[test]
    fn every_problem_is_kept_with_its_pointer() {
        let mut fields = Fields::new(json!({
            "short": "", "number": 7, "list": ["ok", 3], "objects": [{"a": 1}, 2], "a/b~c": 1, "nothing": null
        }))
        .unwrap();
        assert_eq!(fields.text("short", 1..=5), None);
        assert_eq!(fields.text("number", 1..=5), None);
        assert_eq!(fields.required_text("absent", 1..=5), None);
        fields.list("list", 5, |fields, index, item| {
            if !item.is_string() {
                fields.wrong(index, "wrong_type", "");
            }
            Some(())
        });
        fields.objects("objects", 5, |_inner| Some(()));
        let pairs = found(fields);
        let pairs: Vec<(&str, &str)> =
            pairs.iter().map(|(pointer, code)| (pointer.as_str(), code.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("/short", "too_short"),
                ("/number", "wrong_type"),
                ("/absent", "required"),
                ("/list/1", "wrong_type"),
                ("/objects/0/a", "unknown_field"),
                ("/objects/1", "wrong_type"),
                ("/a~1b~0c", "unknown_field"),
            ]
        );
    }

    #[test]
    fn an_unknown_word_is_told_the_known_ones() {
        use protocol::Class;
        let mut fields = Fields::new(json!({"class": "OTP", "good": "otp", "odd": 1})).unwrap();
        assert_eq!(fields.one_of("good", "unknown_class", Class::ALL), Some(Class::Otp));
        assert_eq!(fields.one_of("absent", "unknown_class", Class::ALL), None);
        assert_eq!(fields.one_of("class", "unknown_class", Class::ALL), None);
        assert_eq!(fields.one_of("odd", "unknown_class", Class::ALL), None);
        let told: Vec<(&str, &str)> = fields
            .errors
            .iter()
            .map(|error| (error.code.as_str(), error.detail.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (
                    "unknown_class",
                    "`class` must be one of otp, transactional, conversational, marketing."
                ),
                ("wrong_type", "It must be a string."),
            ]
        );
    }

    #[test]
    fn a_body_that_is_no_object_is_one_problem() {
        for body in [json!([]), json!("x"), json!(1), json!(null), json!(true)] {
            Fields::new(body).unwrap_err();
        }
    }

    #[test]
    fn characters_are_counted_and_not_bytes() {
        let mut fields = Fields::new(json!({"text": "ééééé"})).unwrap();
        assert_eq!(fields.text("text", 1..=5).as_deref(), Some("ééééé"));
        fields.finish().unwrap();
    }

    #[test]
    fn a_text_must_be_readable() {
        for (text, code) in [
            ("a\0b", "invalid_character"),
            ("\u{1b}[31m", "invalid_character"),
            ("a\u{7f}", "invalid_character"),
            ("\u{85}", "invalid_character"),
            (" \n\t\u{a0}", "blank"),
        ] {
            let mut fields = Fields::new(json!({ "text": text })).unwrap();
            assert_eq!(fields.text("text", 1..=9), None);
            assert_eq!(found(fields), [("/text".to_owned(), code.to_owned())], "{text:?}");
        }
        for text in
            ["a\r\n\tb", "\u{202e}\u{5d0}", "\u{1f468}\u{200d}\u{1f469}", "\u{fffc}", "\u{e000}"]
        {
            let mut fields = Fields::new(json!({ "text": text })).unwrap();
            assert_eq!(fields.text("text", 1..=9).as_deref(), Some(text));
        }
        for text in ["a\nb", "a\tb", "\u{1b}"] {
            let mut fields = Fields::new(json!({ "name": text })).unwrap();
            assert_eq!(fields.required_line("name", 1..=9), None);
            assert_eq!(found(fields), [("/name".to_owned(), "invalid_character".to_owned())]);
        }
    }

    #[test]
    fn numbers_are_whole_and_in_range() {
        for bad in [json!(-1), json!(1.5), json!("1"), json!(11), json!(u64::MAX)] {
            let mut fields = Fields::new(json!({ "n": bad })).unwrap();
            assert_eq!(fields.number("n", 1..=10), None);
            fields.finish().unwrap_err();
        }
    }
}
