//! `attributedBody` → text and attribute runs.
//!
//! Since macOS 13 the column `text` of most rows is NULL and the message is only in
//! `attributedBody`: an `NSAttributedString` written by `NSArchiver` as a *typedstream* (header `04
//! 0B "streamtyped"`). The format is a sequence of typed values; objects, classes and C strings
//! share one table of back-references, type strings and class names another, both counted from
//! 0x92.
//!
//! [`reader`] parses the stream into an arena of objects that borrow from the blob; this module
//! reads the attributed string out of it. Everything is bounded (see the constants below), nothing
//! panics, and an error says what was wrong at which byte. Because new macOS versions add
//! attributes, an error after the text was complete still carries it in [`DecodeError::salvaged`]:
//! a message is not lost because of its decoration. [`plain`] knows by heart how nearly every blob
//! begins, for when its text is all that is asked.
//!
//! Not in here: `NSKeyedArchiver` (that is a property list) and writing.

mod plain;
mod reader;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use reader::{Arena, Value};

/// Longest blob that is looked at. The longest text Messages sends is some 20,000 characters; data
/// detectors add a few hundred bytes a link. Four megabytes is far beyond both and still decodes in
/// milliseconds.
pub const BLOB_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting of objects. Real blobs use five levels.
pub const DEPTH_MAX: usize = 48;
/// Most objects, classes and C strings in one blob; real ones have tens. Bounds the arena.
pub const OBJECTS_MAX: usize = 65_536;
/// Most steps that one blob may cost: each value is one, as is each byte of a type string that is
/// searched for its end, and each value of a dictionary every time that a run names it. Bounds the
/// time for types that take no bytes, such as an array of empty structures, and for blobs that name
/// one large object many times. Real blobs take some hundred.
pub const STEPS_MAX: usize = 262_144;
/// Longest type string; the longest real one is `[607c]`.
pub const TYPES_BYTES_MAX: usize = 256;
/// Most values of a string, number, URL or data that are looked at; real ones have up to three.
pub const LEAF_VALUES_MAX: usize = 16;
/// Most bytes of attribute names and values that are copied out. A blob may refer to one long
/// string many times.
pub const ATTRIBUTE_BYTES_MAX: usize = 2 * BLOB_BYTES_MAX;
/// Longest chain of superclasses; `NSMutableAttributedString` has three links.
pub const INHERITANCE_MAX: usize = 16;

/// Attribute with the number of the message part that a run belongs to.
pub const MESSAGE_PART: &str = "__kIMMessagePartAttributeName";
/// Attribute with the transfer guid (`at_0_…`) of the attachment that a U+FFFC stands for.
pub const FILE_TRANSFER_GUID: &str = "__kIMFileTransferGUIDAttributeName";
/// Attribute with the address of a confirmed mention.
pub const MENTION: &str = "__kIMMentionConfirmedMention";
/// Attribute with the address of a link.
pub const LINK: &str = "__kIMLinkAttributeName";

/// Attribute with a one-time code.
pub const ONE_TIME_CODE: &str = "__kIMOneTimeCodeAttributeName";
/// Attribute with what a data detector found.
pub const DATA_DETECTED: &str = "__kIMDataDetectedAttributeName";
/// Attribute of a postal address.
pub const ADDRESS: &str = "__kIMAddressAttributeName";
/// Attribute of a date.
pub const CALENDAR_EVENT: &str = "__kIMCalendarEventAttributeName";
/// Attribute of an amount of money.
pub const MONEY: &str = "__kIMMoneyAttributeName";
/// Attribute of bold text.
pub const BOLD: &str = "__kIMTextBoldAttributeName";
/// Attribute of italic text.
pub const ITALIC: &str = "__kIMTextItalicAttributeName";
/// Attribute of underlined text.
pub const UNDERLINE: &str = "__kIMTextUnderlineAttributeName";
/// Attribute of struck-through text.
pub const STRIKETHROUGH: &str = "__kIMTextStrikethroughAttributeName";
/// Attribute of text that moves, with the number of the animation.
pub const ANIMATION: &str = "__kIMTextEffectAttributeName";
/// Attribute of an emoji that is a picture.
pub const EMOJI_IMAGE: &str = "__kIMEmojiImageAttributeName";
/// Attribute with what an audio message says.
pub const TRANSCRIPTION: &str = "IMAudioTranscription";

const BASE_WRITING_DIRECTION: &str = "__kIMBaseWritingDirectionAttributeName";
const FILENAME: &str = "__kIMFilenameAttributeName";

/// Whether a blob says more than a text and its parts. A name stands in a blob in full where it is
/// used first, so that a search finds it without decoding anything; a text that holds such a name
/// is merely decoded whole.
pub fn is_notable(blob: &[u8]) -> bool {
    use memchr::memmem::Finder;
    static NAMES: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(PREFIX));
    static SPOKEN: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(TRANSCRIPTION));
    const PLAIN: [&[u8]; 2] = [b"MessagePartAttributeName", b"BaseWritingDirectionAttributeName"];
    const PREFIX: &[u8] = b"__kIM";
    if plain::is_all(blob) {
        return false;
    }
    NAMES.find_iter(blob).any(|at| {
        let name = blob.get(at + PREFIX.len()..).unwrap_or_default();
        !PLAIN.iter().any(|plain| name.starts_with(plain))
    }) || SPOKEN.find(blob).is_some()
}

/// What a blob holds: the text and what is said about stretches of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attributed {
    /// The text; U+FFFC stands for each attachment, U+FFFD for an app's message.
    pub text: String,
    /// Runs in order; together they cover the text, unless there are none at all.
    pub runs: Vec<Run>,
}

impl Attributed {
    /// The text of one run.
    pub fn text_of(&self, run: &Run) -> &str {
        self.text.get(run.bytes.clone()).unwrap_or_default()
    }

    /// Transfer guids of the attachments in the order in which the text shows them.
    pub fn transfer_guids(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().filter_map(|run| run.get(FILE_TRANSFER_GUID)).filter_map(Attribute::as_str)
    }
}

/// The name of an attribute.
pub type Name = Cow<'static, str>;

/// Names that need not be copied out of every blob.
const NAMES: [&str; 18] = [
    MESSAGE_PART,
    BASE_WRITING_DIRECTION,
    FILE_TRANSFER_GUID,
    DATA_DETECTED,
    LINK,
    MENTION,
    FILENAME,
    ONE_TIME_CODE,
    ADDRESS,
    CALENDAR_EVENT,
    MONEY,
    BOLD,
    ITALIC,
    UNDERLINE,
    STRIKETHROUGH,
    ANIMATION,
    EMOJI_IMAGE,
    TRANSCRIPTION,
];

/// A stretch of text with one set of attributes.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The stretch as Apple counts it: UTF-16 code units.
    pub utf16: Range<usize>,
    /// The same stretch in bytes of [`Attributed::text`], always on character boundaries.
    pub bytes: Range<usize>,
    /// Names and values, in the order of the archive; runs with the same set share it.
    pub attributes: Arc<[(Name, Attribute)]>,
}

impl Run {
    /// The value of the attribute of that name.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// `NSString`.
    Text(String),
    /// `NSNumber` with an integer.
    Integer(i64),
    /// `NSNumber` with a fraction.
    Float(f64),
    /// `NSURL`.
    Url(String),
    /// `NSData`; for data detectors a keyed archive.
    Data(Vec<u8>),
    /// Anything else, by the name of its class; its content is not looked at.
    Other(String),
}

impl Attribute {
    /// The string of a text or URL.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Url(text) => Some(text),
            Self::Integer(_) | Self::Float(_) | Self::Data(_) | Self::Other(_) => None,
        }
    }

    /// The number of an integer.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            Self::Text(_) | Self::Float(_) | Self::Url(_) | Self::Data(_) | Self::Other(_) => None,
        }
    }
}

/// Why a blob could not be decoded, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("typedstream, byte {at}: {problem}")]
pub struct DecodeError {
    /// Offset of the byte that did not fit.
    pub at: usize,
    /// What did not fit.
    #[source]
    pub problem: Problem,
    /// The text, when it was complete before the problem was met.
    pub salvaged: Option<String>,
}

/// What can be wrong with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Neither `streamtyped` nor `typedstream` at the start.
    #[error("not a typedstream")]
    NotTypedstream,
    /// Another version than 4.
    #[error("streamer version {0} instead of 4")]
    Version(u8),
    /// The blob ends in the middle of something.
    #[error("ends too early")]
    Truncated,
    /// Longer than [`BLOB_BYTES_MAX`].
    #[error("longer than {BLOB_BYTES_MAX} bytes")]
    TooLong,
    /// Nested deeper than [`DEPTH_MAX`], or more superclasses than [`INHERITANCE_MAX`].
    #[error("nested too deep")]
    TooDeep,
    /// More objects than [`OBJECTS_MAX`], more steps than [`STEPS_MAX`], or more to copy than
    /// [`ATTRIBUTE_BYTES_MAX`].
    #[error("too many objects or values")]
    TooMany,
    /// A tag that has no meaning in this place.
    #[error("unexpected tag 0x{0:02x}")]
    Tag(u8),
    /// A back-reference to nothing, or to something of another kind.
    #[error("reference to something that is not there")]
    Reference,
    /// A type string that this format does not have.
    #[error("unknown type encoding 0x{0:02x}")]
    TypeEncoding(u8),
    /// A negative length.
    #[error("negative length")]
    Length,
    /// The root is neither a string nor an attributed string.
    #[error("the root is not an attributed string")]
    NotText,
    /// The text is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A run that reaches beyond the text, or attributes that are not a dictionary.
    #[error("attribute run does not fit the text")]
    Run,
}

/// What may still be spent on a blob.
#[derive(Debug)]
struct Budget {
    /// Of [`STEPS_MAX`].
    steps: usize,
    /// Of [`ATTRIBUTE_BYTES_MAX`].
    bytes: usize,
}

impl Budget {
    fn new() -> Self {
        Self { steps: STEPS_MAX, bytes: ATTRIBUTE_BYTES_MAX }
    }

    fn spend(&mut self, steps: usize) -> Result<(), Problem> {
        self.steps = self.steps.checked_sub(steps).ok_or(Problem::TooMany)?;
        Ok(())
    }

    fn copy(&mut self, bytes: usize) -> Result<(), Problem> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or(Problem::TooMany)?;
        Ok(())
    }

    fn spent(&self) -> usize {
        STEPS_MAX - self.steps
    }
}

/// Decodes text and runs.
pub fn decode(blob: &[u8]) -> Result<Attributed, DecodeError> {
    decode_counted(blob).0
}

/// The same, and how many steps it took.
pub(crate) fn decode_counted(blob: &[u8]) -> (Result<Attributed, DecodeError>, usize) {
    let mut budget = Budget::new();
    let decoded = decode_within(blob, &mut budget);
    (decoded, budget.spent())
}

fn decode_within(blob: &[u8], budget: &mut Budget) -> Result<Attributed, DecodeError> {
    let mut arena = Arena::default();
    let parsed = reader::parse(blob, reader::Until::End, &mut arena, budget);
    let text_of = |arena: &Arena<'_>| {
        arena.first_text.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    let root = match parsed {
        Ok(root) => root,
        Err((at, problem)) => {
            return Err(DecodeError { at, problem, salvaged: text_of(&arena) });
        }
    };
    attributed(&arena, root, budget).map_err(|problem| DecodeError {
        at: blob.len(),
        problem,
        salvaged: text_of(&arena),
    })
}

/// Decodes the text alone and stops there, which is several times cheaper than [`decode`].
pub fn decode_text(blob: &[u8]) -> Result<String, DecodeError> {
    text(blob).map(str::to_owned)
}

/// The same, where it stands in the blob.
pub(crate) fn text(blob: &[u8]) -> Result<&str, DecodeError> {
    text_within(blob, &mut Budget::new())
}

/// The same as [`decode_text`], and how many steps it took.
pub(crate) fn decode_text_counted(blob: &[u8]) -> (Result<String, DecodeError>, usize) {
    let mut budget = Budget::new();
    let decoded = text_within(blob, &mut budget).map(str::to_owned);
    (decoded, budget.spent())
}

fn text_within<'b>(blob: &'b [u8], budget: &mut Budget) -> Result<&'b str, DecodeError> {
    if let Some(bytes) = plain::text(blob) {
        return utf8(bytes);
    }
    parse_text_within(blob, budget)
}

/// By the grammar alone, whatever form the blob has.
fn parse_text_within<'b>(blob: &'b [u8], budget: &mut Budget) -> Result<&'b str, DecodeError> {
    let mut arena = Arena::default();
    let fail = |at, problem| DecodeError { at, problem, salvaged: None };
    let parsed = reader::parse(blob, reader::Until::Text, &mut arena, budget);
    if let Some(bytes) = arena.first_text {
        return utf8(bytes);
    }
    match parsed {
        Ok(_) => Err(fail(blob.len(), Problem::NotText)),
        Err((at, problem)) => Err(fail(at, problem)),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    str::from_utf8(bytes).map_err(|_not_utf8| DecodeError {
        at: 0,
        problem: Problem::NotUtf8,
        salvaged: Some(String::from_utf8_lossy(bytes).into_owned()),
    })
}

/// Reads the attributed string at `root` out of the arena.
fn attributed(arena: &Arena<'_>, root: usize, budget: &mut Budget) -> Result<Attributed, Problem> {
    if let Some(text) = string_at(arena, root, budget)? {
        return Ok(Attributed { text, runs: Vec::new() });
    }
    let (class, values) = arena.object(root).ok_or(Problem::NotText)?;
    if !arena.is_kind(class, b"NSAttributedString") {
        return Err(Problem::NotText);
    }
    let mut values = values.iter();
    let Some(Value::Object(Some(string))) = values.next() else {
        return Err(Problem::NotText);
    };
    let text = string_at(arena, *string, budget)?.ok_or(Problem::NotText)?;
    let runs = runs(arena, &text, &mut values, budget)?;
    Ok(Attributed { text, runs })
}

/// Runs are pairs (number of the attribute set, length); a number that is met for the first time is
/// followed by its dictionary.
fn runs<'v>(
    arena: &Arena<'_>,
    text: &str,
    values: &mut impl Iterator<Item = &'v Value<'v>>,
    budget: &mut Budget,
) -> Result<Vec<Run>, Problem> {
    let mut runs = Vec::new();
    let mut sets: Vec<Arc<[(Name, Attribute)]>> = Vec::new();
    // Characters, code units and bytes of such a text are the same, and need not be walked through.
    let is_ascii = text.is_ascii();
    let mut rest = if is_ascii { "" } else { text }.chars();
    let (mut utf16, mut byte) = (0_usize, 0_usize);
    while let Some(value) = values.next() {
        let Value::Integer(number) = value else { return Err(Problem::Run) };
        let Some(Value::Integer(length)) = values.next() else { return Err(Problem::Run) };
        let number =
            usize::try_from(*number).ok().and_then(|n| n.checked_sub(1)).ok_or(Problem::Run)?;
        let length = usize::try_from(*length).ok().ok_or(Problem::Run)?;
        if number > sets.len() {
            return Err(Problem::Run);
        }
        if number == sets.len() {
            let Some(Value::Object(set)) = values.next() else { return Err(Problem::Run) };
            sets.push(match set {
                Some(set) => dictionary(arena, *set, budget)?.into(),
                None => Arc::default(),
            });
        }
        let end = utf16.checked_add(length).ok_or(Problem::Run)?;
        let (mut at, start) = (utf16, byte);
        if is_ascii {
            (at, byte) = (end.min(text.len()), end);
        }
        while at < end {
            let next = rest.next().ok_or(Problem::Run)?;
            at += next.len_utf16();
            byte += next.len_utf8();
        }
        // A run that cuts a surrogate pair in two would leave the next one between characters.
        if at != end {
            return Err(Problem::Run);
        }
        runs.push(Run {
            utf16: utf16..end,
            bytes: start..byte,
            attributes: sets.get(number).cloned().unwrap_or_default(),
        });
        utf16 = end;
    }
    Ok(runs)
}

/// `NSDictionary`: a count, then keys and values in turn. Keys that are not strings are passed
/// over.
fn dictionary(
    arena: &Arena<'_>,
    at: usize,
    budget: &mut Budget,
) -> Result<Vec<(Name, Attribute)>, Problem> {
    let (class, values) = arena.object(at).ok_or(Problem::Run)?;
    if !arena.is_kind(class, b"NSDictionary") {
        return Err(Problem::Run);
    }
    // The same dictionary may be named by many runs.
    budget.spend(values.len())?;
    let mut objects = values.iter().filter_map(|value| match value {
        Value::Object(object) => Some(*object),
        Value::Integer(_) | Value::Float(_) | Value::Bytes(_) | Value::Nothing => None,
    });
    let mut pairs = Vec::with_capacity(values.len() / 2);
    while let (Some(key), Some(value)) = (objects.next(), objects.next()) {
        if let (Some(key), Some(value)) = (key, value)
            && let Some(key) = name_at(arena, key, budget)?
        {
            pairs.push((key, attribute(arena, value, budget)?));
        }
    }
    Ok(pairs)
}

/// The value of an attribute, by the class of the object.
fn attribute(arena: &Arena<'_>, at: usize, budget: &mut Budget) -> Result<Attribute, Problem> {
    if let Some(text) = string_at(arena, at, budget)? {
        return Ok(Attribute::Text(text));
    }
    let (class, values) = arena.object(at).ok_or(Problem::Reference)?;
    let other = |budget: &mut Budget| {
        let name = arena.class_name(class);
        budget.copy(name.len())?;
        Ok(Attribute::Other(String::from_utf8_lossy(name).into_owned()))
    };
    if arena.is_kind(class, b"NSNumber") {
        // The first value is the C string with the type, the second the number.
        let number = values.iter().take(LEAF_VALUES_MAX).find_map(|value| match value {
            Value::Integer(number) => Some(Attribute::Integer(*number)),
            Value::Float(number) => Some(Attribute::Float(*number)),
            Value::Bytes(_) | Value::Object(_) | Value::Nothing => None,
        });
        return number.map_or_else(|| other(budget), Ok);
    }
    if arena.is_kind(class, b"NSURL") {
        // A flag, the base URL if the flag says so, then the string; the last object is the string.
        let last = values.iter().rev().take(LEAF_VALUES_MAX).find_map(|value| match value {
            Value::Object(object) => *object,
            Value::Integer(_) | Value::Float(_) | Value::Bytes(_) | Value::Nothing => None,
        });
        let text = match last {
            Some(last) => string_at(arena, last, budget)?,
            None => None,
        };
        return text.map_or_else(|| other(budget), |text| Ok(Attribute::Url(text)));
    }
    if arena.is_kind(class, b"NSData") {
        let bytes = values.iter().take(LEAF_VALUES_MAX).find_map(|value| match value {
            Value::Bytes(bytes) => Some(*bytes),
            Value::Integer(_) | Value::Float(_) | Value::Object(_) | Value::Nothing => None,
        });
        return match bytes {
            Some(bytes) => {
                budget.copy(bytes.len())?;
                Ok(Attribute::Data(bytes.to_vec()))
            }
            None => other(budget),
        };
    }
    other(budget)
}

/// The content of an `NSString`; none if the object is something else.
fn string_at(arena: &Arena<'_>, at: usize, budget: &mut Budget) -> Result<Option<String>, Problem> {
    match arena.string_bytes(at) {
        None => Ok(None),
        Some(bytes) => {
            budget.copy(bytes.len())?;
            match str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => Err(Problem::NotUtf8),
            }
        }
    }
}

/// The same of one that names an attribute.
fn name_at(arena: &Arena<'_>, at: usize, budget: &mut Budget) -> Result<Option<Name>, Problem> {
    let Some(bytes) = arena.string_bytes(at) else { return Ok(None) };
    if let Some(known) = NAMES.iter().find(|known| known.as_bytes() == bytes) {
        budget.copy(bytes.len())?;
        return Ok(Some(Cow::Borrowed(known)));
    }
    Ok(string_at(arena, at, budget)?.map(Cow::Owned))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REAL: [&[u8]; 3] = [
        include_bytes!("../tests/data/typedstream/regular-text.bin"),
        include_bytes!("../tests/data/typedstream/tweet.bin"),
        include_bytes!("../tests/data/typedstream/user-mention.bin"),
    ];

    fn parsed(blob: &[u8]) -> Result<String, DecodeError> {
        parse_text_within(blob, &mut Budget::new()).map(str::to_owned)
    }

    /// A real blob whose text is another one.
    fn with_text(blob: &[u8], text: &[u8]) -> Vec<u8> {
        let old = plain::text(blob).unwrap();
        let end = memchr::memmem::find(blob, old).unwrap() + old.len();
        let head = memchr::memmem::find(blob, b"\x84\x01+").unwrap() + 3;
        let mut made = blob[..head].to_vec();
        if let Ok(length @ ..=0x7f) = u8::try_from(text.len()) {
            made.push(length);
        } else {
            made.push(0x81);
            made.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        }
        made.extend(text);
        made.extend(&blob[end..]);
        made
    }

    #[test]
    fn what_is_known_by_heart_is_what_messages_writes() {
        for blob in REAL {
            let text = plain::text(blob).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
            assert_eq!(text, parsed(blob).ok());
        }
        assert_eq!(REAL.map(plain::is_all), [true, false, false]);
        let mutable = [plain::MUTABLE, b"\x02hi\x86"].concat();
        assert_eq!(plain::text(&mutable), Some(&b"hi"[..]));
        assert_eq!(parsed(&mutable).as_deref(), Ok("hi"));
    }

    proptest! {
        #[test]
        fn by_heart_and_by_the_grammar_it_is_the_same_text(
            which in 0..REAL.len(),
            text in "\\PC{0,400}",
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cut in any::<prop::sample::Index>(),
            whole: bool,
        ) {
            let mut blob = with_text(REAL[which], text.as_bytes());
            for (at, byte) in changes {
                let at = at.index(blob.len());
                blob[at] = byte;
            }
            if !whole {
                blob.truncate(cut.index(blob.len()));
            }
            prop_assert_eq!(decode_text(&blob), parsed(&blob));
        }
    }
}
