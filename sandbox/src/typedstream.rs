//! Writes attributedBody: an attributed string in the typedstream format of `NSArchiver`.
//!
//! What is written equals, byte for byte, what Messages writes for a plain text and for a mention
//! (see the tests). Strings, classes and objects are written once and then named by number, from
//! 0x92 on, in two tables: one of strings (types and class names), one of objects and classes.

mod decode;
mod parts;

use std::collections::HashMap;

pub use parts::Part;

/// An attribute's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// An `NSNumber` made from an `int`.
    Number(i32),
    /// An `NSNumber` made from a `long`, as newer code makes them.
    Quad(i32),
    /// An `NSMutableData`.
    Data(Vec<u8>),
    /// An `NSDictionary` with strings as keys.
    Dictionary(Vec<(String, Self)>),
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
/// The attribute of an attachment; its value is the guid of the row in `attachment`.
pub const FILE: &str = "__kIMFileTransferGUIDAttributeName";
/// The attribute of an attachment's name.
pub const FILENAME: &str = "__kIMFilenameAttributeName";
/// The attribute of a one-time code; its value is a dictionary.
pub const ONE_TIME_CODE: &str = "__kIMOneTimeCodeAttributeName";
/// The attribute of what a data detector found; its value is an archive.
pub const DATA_DETECTED: &str = "__kIMDataDetectedAttributeName";
/// As [`DATA_DETECTED`], of a postal address.
pub const ADDRESS: &str = "__kIMAddressAttributeName";
/// As [`DATA_DETECTED`], of a date.
pub const CALENDAR_EVENT: &str = "__kIMCalendarEventAttributeName";
/// As [`DATA_DETECTED`], of an amount of money.
pub const MONEY: &str = "__kIMMoneyAttributeName";
/// The attribute of bold text; its value is 1, as with the other styles.
pub const BOLD: &str = "__kIMTextBoldAttributeName";
/// The attribute of italic text.
pub const ITALIC: &str = "__kIMTextItalicAttributeName";
/// The attribute of underlined text.
pub const UNDERLINE: &str = "__kIMTextUnderlineAttributeName";
/// The attribute of text that is struck through.
pub const STRIKETHROUGH: &str = "__kIMTextStrikethroughAttributeName";
/// The attribute of animated text; its value is the animation's number.
pub const EFFECT: &str = "__kIMTextEffectAttributeName";
/// The attribute of an attachment that is a character of the text; its value is 1.
pub const EMOJI_IMAGE: &str = "__kIMEmojiImageAttributeName";
/// The attribute of an audio message; its value is what was said.
pub const TRANSCRIPTION: &str = "IMAudioTranscription";
/// The attribute of the direction of writing: -1 is the natural one.
pub const WRITING_DIRECTION: &str = "__kIMBaseWritingDirectionAttributeName";
/// Stands in the text for an attachment.
pub const ATTACHMENT_CHAR: char = '\u{fffc}';
/// Stands in the text for an app's message.
pub const APP_CHAR: char = '\u{fffd}';

/// The attributes of a run, in the order in which they are written.
pub type Attributes = Vec<(String, Value)>;

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

    /// A text made of runs, each with its attributes.
    pub fn from_runs(runs: &[(&str, Attributes)]) -> Self {
        let text = runs.iter().map(|(text, _)| *text).collect();
        let runs = runs
            .iter()
            .map(|(text, attributes)| (text.encode_utf16().count(), attributes.clone()))
            .filter(|(len, _)| *len > 0)
            .collect();
        Self { text, mutable: false, runs }
    }

    /// The characters alone.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Each run: its length in UTF-16 units and its attributes.
    pub fn runs(&self) -> &[(usize, Attributes)] {
        &self.runs
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
/// How often an attribute's name is written before it is named by number.
const KEYS_WRITTEN_MAX: u32 = 3;

struct Encoder {
    bytes: Vec<u8>,
    strings: HashMap<String, i32>,
    classes: HashMap<&'static str, i32>,
    numbers: HashMap<(&'static str, i32), i32>,
    /// How often each key was written, and the number of the last time.
    keys: HashMap<String, (u32, i32)>,
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
            keys: HashMap::new(),
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
            self.key(key);
            self.types("@");
            self.value(value);
        }
        self.end();
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Number(number) => self.number("i", *number),
            Value::Quad(number) => self.number("q", *number),
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
            Value::Data(data) => {
                self.object(&[("NSMutableData", 0), ("NSData", 0), NS_OBJECT]);
                self.types("i");
                self.integer(signed(data.len()));
                self.types(&format!("[{}c]", data.len()));
                self.bytes.extend_from_slice(data);
                self.end();
            }
            Value::Dictionary(entries) => self.dictionary(entries),
        }
    }

    /// An attribute's name. In the public blobs the name of the file attribute is one object from
    /// the start, while the others are written three times before they are named by number.
    fn key(&mut self, key: &str) {
        let times = if key == FILE { 1 } else { KEYS_WRITTEN_MAX };
        if let Some((written, number)) = self.keys.get(key).copied() {
            if written >= times {
                self.integer(FIRST.saturating_add(number));
                return;
            }
            self.keys.insert(key.to_owned(), (written + 1, self.objects));
        } else {
            self.keys.insert(key.to_owned(), (1, self.objects));
        }
        self.text(&[NS_STRING, NS_OBJECT], key);
    }

    /// An `NSNumber`. Small numbers are one object in Apple's runtime, so each is written once.
    fn number(&mut self, code: &'static str, value: i32) {
        if let Some(number) = self.numbers.get(&(code, value)) {
            self.integer(FIRST.saturating_add(*number));
            return;
        }
        self.numbers.insert((code, value), self.objects);
        self.object(&[("NSNumber", 0), ("NSValue", 0), NS_OBJECT]);
        self.types("*");
        self.c_string(code);
        self.types(code);
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

    fn part(part: i32) -> (String, Value) {
        (PART.to_owned(), Value::Number(part))
    }

    fn key(key: &str, value: Value) -> (String, Value) {
        (key.to_owned(), value)
    }

    /// A blob of the fixture of that name.
    fn fixture(json: &str) -> Vec<u8> {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        let blob = json[0]["attributedBody"].as_str().unwrap();
        let blob = blob.strip_prefix("data:;base64,").unwrap();
        data_encoding::BASE64.decode(blob.as_bytes()).unwrap()
    }

    #[test]
    fn attachments_between_texts_are_what_messages_writes() {
        let expected = fixture(include_str!("../testdata/fixture1.json"));
        let at = |n: i32| Value::Text(format!("at_{n}_262F0210-126B-40E1-8247-C3EECF585C66"));
        let text = AttributedText::from_runs(&[
            ("\u{fffc}", vec![key(FILE, at(0)), part(0)]),
            ("1", vec![part(1)]),
            ("\u{fffc}", vec![key(FILE, at(2)), part(2)]),
            ("2", vec![part(3)]),
        ]);
        assert_eq!(text.mutable().encode(), expected);
    }

    #[test]
    fn long_numbers_are_what_messages_writes() {
        let expected = fixture(include_str!("../testdata/fixture2.json"));
        let at =
            |n: i32| key(FILE, Value::Text(format!("at_{n}_829D7284-F1C6-4848-B7C7-C4190EA416BD")));
        let direction = || key(WRITING_DIRECTION, Value::Quad(-1));
        let part = |n| key(PART, Value::Quad(n));
        let text = AttributedText::from_runs(&[
            ("part 0", vec![direction(), part(0)]),
            ("\u{fffc}", vec![direction(), part(1), at(1)]),
            ("part 2", vec![direction(), part(2)]),
            ("\u{fffc}", vec![direction(), part(3), at(3)]),
            ("part 4", vec![direction(), part(4)]),
        ]);
        assert_eq!(text.mutable().encode(), expected);
    }

    #[test]
    fn a_detected_link_is_what_messages_writes() {
        let expected: &[u8] = include_bytes!("../testdata/tweet.bin");
        let url = "https://twitter.com/chrismessina/status/1423827232510812167";
        let archive = expected.windows(6).position(|w| w == b"bplist").unwrap();
        let found = Value::Data(expected[archive..archive + 607].to_vec());
        let attributes =
            vec![key(DATA_DETECTED, found), part(0), key(LINK, Value::Url(url.to_owned()))];
        let text = AttributedText::from_runs(&[(url, attributes)]);
        assert_eq!(text.mutable().encode(), expected);
    }

    #[test]
    fn what_activity_apps_say_is_what_messages_writes() {
        let expected = include_bytes!("../testdata/completed-workout-1.bin");
        let text = "$(kIMTranscriptPluginBreadcrumbTextReceiverIdentifier) completed a workout.";
        let flags = key("__kIMBreadcrumbTextOptionFlags", Value::Quad(0));
        assert_eq!(AttributedText::from_runs(&[(text, vec![flags])]).encode(), expected);
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
