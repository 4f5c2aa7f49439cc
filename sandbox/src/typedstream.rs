//! Writes attributedBody: an attributed string in the typedstream format of `NSArchiver`.
//!
//! What is written equals, byte for byte, what Messages writes for a plain text and for a mention
//! (see the tests). Strings, classes and objects are written once and then named by number, from
//! 0x92 on, in two tables: one of strings (types and class names), one of objects and classes.

use std::collections::HashMap;

/// An attribute's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// An `NSNumber` made from an `int`.
    Number(i32),
    /// An `NSString`.
    Text(String),
    /// An `NSURL` without a base.
    Url(String),
}

/// The attribute that every run of a message has: the index of its part.
pub const PART: &str = "__kIMMessagePartAttributeName";
/// The attribute of a link; its value is an URL.
pub const LINK: &str = "__kIMLinkAttributeName";
/// The attribute of a mention; its value is the address of the mentioned.
pub const MENTION: &str = "__kIMMentionConfirmedMention";

type Attributes = Vec<(String, Value)>;

/// A text and the attributes of its runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributedText {
    text: String,
    /// Whether it is written as the mutable classes, as Messages does for what a person typed.
    mutable: bool,
    /// Length in UTF-16 units, attributes. Together they cover the text.
    runs: Vec<(usize, Attributes)>,
}

impl AttributedText {
    /// A text of one part.
    pub fn plain(text: &str) -> Self {
        let len = text.encode_utf16().count();
        let part = vec![(PART.to_owned(), Value::Number(0))];
        let runs = if len == 0 { Vec::new() } else { vec![(len, part)] };
        Self { text: text.to_owned(), mutable: false, runs }
    }

    /// A text of one part in which every `http://` and `https://` address is a link.
    pub fn with_links(text: &str) -> Self {
        let mut attributed = Self::plain(text);
        let mut start = 0;
        for word in text.split_inclusive(char::is_whitespace) {
            let link = word.trim_end();
            if link.starts_with("https://") || link.starts_with("http://") {
                let len = link.encode_utf16().count();
                attributed = attributed.marked(start, len, LINK, &Value::Url(link.to_owned()));
            }
            start += word.encode_utf16().count();
        }
        attributed
    }

    /// The same with one more attribute on `len` UTF-16 units from `start`; what is beyond the
    /// end of the text is ignored.
    #[must_use]
    pub fn marked(mut self, start: usize, len: usize, key: &str, value: &Value) -> Self {
        let end = start.saturating_add(len);
        let mut at = 0;
        let mut runs = Vec::with_capacity(self.runs.len() + 2);
        for (run_len, attributes) in self.runs {
            let run_end = at + run_len;
            let cut_from = start.clamp(at, run_end);
            let cut_to = end.clamp(at, run_end);
            let mut marked = vec![(key.to_owned(), value.clone())];
            marked.extend(attributes.iter().cloned());
            runs.push((cut_from - at, attributes.clone()));
            runs.push((cut_to - cut_from, marked));
            runs.push((run_end - cut_to, attributes));
            at = run_end;
        }
        runs.retain(|(run_len, _)| *run_len > 0);
        self.runs = runs;
        self
    }

    /// The same, written as `NSMutableAttributedString` and `NSMutableString`.
    #[must_use]
    pub fn mutable(mut self) -> Self {
        self.mutable = true;
        self
    }

    /// The blob for the column `attributedBody`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new(self.text.len());
        let (outer, inner): (&[Class], &[Class]) = if self.mutable {
            (
                &[("NSMutableAttributedString", 0), ("NSAttributedString", 0), NS_OBJECT],
                &[("NSMutableString", 1), NS_STRING, NS_OBJECT],
            )
        } else {
            (&[("NSAttributedString", 0), NS_OBJECT], &[NS_STRING, NS_OBJECT])
        };
        out.types("@");
        out.object(outer);
        out.types("@");
        out.text(inner, &self.text);
        let mut known: Vec<&Attributes> = Vec::new();
        for (len, attributes) in &self.runs {
            out.types("iI");
            if let Some(index) = known.iter().position(|other| *other == attributes) {
                out.integer(signed(index + 1));
                out.length(*len);
                continue;
            }
            known.push(attributes);
            out.integer(signed(known.len()));
            out.length(*len);
            out.types("@");
            out.dictionary(attributes);
        }
        out.end();
        out.bytes
    }
}

/// Name and version of a class.
type Class = (&'static str, u8);

const NS_OBJECT: Class = ("NSObject", 0);
const NS_STRING: Class = ("NSString", 1);

/// Tags of the format. Numbers of things already written start at `FIRST`.
const TWO_BYTES: u8 = 0x81;
const FOUR_BYTES: u8 = 0x82;
const NEW: u8 = 0x84;
const NIL: u8 = 0x85;
const END: u8 = 0x86;
const FIRST: i32 = -110;

struct Encoder {
    bytes: Vec<u8>,
    strings: HashMap<String, i32>,
    classes: HashMap<&'static str, i32>,
    numbers: HashMap<i32, i32>,
    c_strings: HashMap<&'static str, i32>,
    /// How many objects, classes and C strings are written, which is the number of the next.
    objects: i32,
}

impl Encoder {
    fn new(text_len: usize) -> Self {
        let mut bytes = Vec::with_capacity(text_len.saturating_add(256));
        bytes.extend_from_slice(b"\x04\x0bstreamtyped\x81\xe8\x03");
        Self {
            bytes,
            strings: HashMap::new(),
            classes: HashMap::new(),
            numbers: HashMap::new(),
            c_strings: HashMap::new(),
            objects: 0,
        }
    }

    /// A signed integer: one byte unless that would be a tag or too small.
    fn integer(&mut self, value: i32) {
        if let (Ok(byte), true) = (i8::try_from(value), value >= FIRST) {
            self.bytes.extend_from_slice(&byte.to_le_bytes());
        } else if let Ok(short) = i16::try_from(value) {
            self.bytes.push(TWO_BYTES);
            self.bytes.extend_from_slice(&short.to_le_bytes());
        } else {
            self.bytes.push(FOUR_BYTES);
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// An unsigned integer: a length.
    fn length(&mut self, value: usize) {
        if let (Ok(byte), true) = (u8::try_from(value), value < 0x80) {
            self.bytes.push(byte);
        } else if let Ok(short) = u16::try_from(value) {
            self.bytes.push(TWO_BYTES);
            self.bytes.extend_from_slice(&short.to_le_bytes());
        } else {
            // A text of more than 4 GiB cannot come from any caller; SQLite would refuse it too.
            let long = u32::try_from(value).unwrap_or(u32::MAX);
            self.bytes.push(FOUR_BYTES);
            self.bytes.extend_from_slice(&long.to_le_bytes());
        }
    }

    fn next_object(&mut self) -> i32 {
        let number = self.objects;
        self.objects += 1;
        number
    }

    /// A string of the string table: written once, then by number.
    fn types(&mut self, string: &str) {
        if let Some(number) = self.strings.get(string) {
            self.integer(FIRST.saturating_add(*number));
            return;
        }
        self.strings.insert(string.to_owned(), signed(self.strings.len()));
        self.bytes.push(NEW);
        self.length(string.len());
        self.bytes.extend_from_slice(string.as_bytes());
    }

    /// The head of an object of a class, given with its ancestors.
    fn object(&mut self, classes: &[Class]) {
        self.bytes.push(NEW);
        self.next_object();
        for (name, version) in classes {
            if let Some(number) = self.classes.get(name) {
                self.integer(FIRST.saturating_add(*number));
                return;
            }
            self.bytes.push(NEW);
            self.types(name);
            self.bytes.push(*version);
            let number = self.next_object();
            self.classes.insert(name, number);
        }
        self.bytes.push(NIL);
    }

    fn end(&mut self) {
        self.bytes.push(END);
    }

    fn text(&mut self, classes: &[Class], text: &str) {
        self.object(classes);
        self.types("+");
        self.length(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
        self.end();
    }

    fn dictionary(&mut self, attributes: &Attributes) {
        self.object(&[("NSDictionary", 0), NS_OBJECT]);
        self.types("i");
        self.integer(signed(attributes.len()));
        for (key, value) in attributes {
            self.types("@");
            self.text(&[NS_STRING, NS_OBJECT], key);
            self.types("@");
            match value {
                Value::Number(number) => self.number(*number),
                Value::Text(text) => self.text(&[NS_STRING, NS_OBJECT], text),
                Value::Url(url) => {
                    self.object(&[("NSURL", 0), NS_OBJECT]);
                    self.types("c");
                    // 0: no base URL.
                    self.integer(0);
                    self.types("@");
                    self.text(&[NS_STRING, NS_OBJECT], url);
                    self.end();
                }
            }
        }
        self.end();
    }

    /// An `NSNumber`. Small numbers are one object in Apple's runtime, so each is written once.
    fn number(&mut self, value: i32) {
        if let Some(number) = self.numbers.get(&value) {
            self.integer(FIRST.saturating_add(*number));
            return;
        }
        self.numbers.insert(value, self.objects);
        self.object(&[("NSNumber", 0), ("NSValue", 0), NS_OBJECT]);
        self.types("*");
        self.c_string("i");
        self.types("i");
        self.integer(value);
        self.end();
    }

    /// A C string is an object whose content is in the string table.
    fn c_string(&mut self, string: &'static str) {
        if let Some(number) = self.c_strings.get(string) {
            self.integer(FIRST.saturating_add(*number));
            return;
        }
        let number = self.next_object();
        self.c_strings.insert(string, number);
        self.bytes.push(NEW);
        self.types(string);
    }
}

/// Counts here are bounded by the number of runs of one text.
fn signed(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_text_is_what_messages_writes() {
        let expected = include_bytes!("../testdata/regular-text.bin");
        assert_eq!(AttributedText::plain("Haha yeah 😃").encode(), expected);
    }

    #[test]
    fn a_mention_is_what_messages_writes() {
        let expected = include_bytes!("../testdata/user-mention.bin");
        let text = AttributedText::plain("foo Kunal foo").mutable().marked(
            4,
            5,
            MENTION,
            &Value::Text("user00@test.test".into()),
        );
        assert_eq!(text.encode(), expected);
    }

    /// The bytes of the length that follows the first `+`, and what comes after.
    fn after_plus(blob: &[u8]) -> &[u8] {
        let at = blob.windows(3).position(|w| w == b"\x84\x01+").expect("a text");
        &blob[at + 3..]
    }

    #[test]
    fn lengths_are_of_one_two_or_four_bytes() {
        for (len, head) in [
            (1, vec![0x01]),
            (0x7f, vec![0x7f]),
            (0x80, vec![0x81, 0x80, 0x00]),
            (0xffff, vec![0x81, 0xff, 0xff]),
            (0x1_0000, vec![0x82, 0, 0, 1, 0]),
        ] {
            let text = "x".repeat(len);
            let blob = AttributedText::plain(&text).encode();
            let rest = after_plus(&blob);
            assert_eq!(&rest[..head.len()], head, "{len}");
            assert_eq!(&rest[head.len()..head.len() + len], text.as_bytes());
            // After the text: its end, the type of a run, run 1, and again the length.
            let run = &rest[head.len() + len..];
            assert_eq!(&run[..6], b"\x86\x84\x02iI\x01");
            assert_eq!(&run[6..6 + head.len()], head);
        }
    }

    #[test]
    fn a_text_is_counted_in_bytes_and_its_run_in_utf_16_units() {
        let text = "é€😃".repeat(20);
        let blob = AttributedText::plain(&text).encode();
        let rest = after_plus(&blob);
        assert_eq!(&rest[..3], [0x81, 180, 0]);
        assert_eq!(&rest[183..190], b"\x86\x84\x02iI\x01\x50");
    }

    #[test]
    fn an_empty_text_has_no_runs() {
        let blob = AttributedText::plain("").encode();
        assert_eq!(&after_plus(&blob), b"\x00\x86\x86");
    }

    #[test]
    fn a_link_is_a_run_of_its_own() {
        let text = AttributedText::with_links("😃 see https://example.test/x now");
        let lengths: Vec<_> = text.runs.iter().map(|(len, _)| *len).collect();
        assert_eq!(lengths, [7, 22, 4]);
        assert_eq!(text.runs[1].1[0].1, Value::Url("https://example.test/x".into()));
        assert_eq!(text.runs[0].1, text.runs[2].1);
        assert!(text.encode().windows(5).any(|w| w == b"NSURL"));
    }

    #[test]
    fn a_mark_beyond_the_end_is_ignored() {
        let plain = AttributedText::plain("abc");
        assert_eq!(plain.clone().marked(5, 9, LINK, &Value::Number(1)), plain);
        assert_eq!(plain.clone().marked(1, usize::MAX, LINK, &Value::Number(1)).runs.len(), 2);
        let empty = AttributedText::plain("");
        assert_eq!(empty.clone().marked(0, 1, LINK, &Value::Number(1)), empty);
    }
}
