//! Texts with runs: mentions, links, codes, dates and money that were found, styles, animations.

use crate::bplist::Plist;
use crate::typedstream::{self, AttributedText, Value};

/// How a text moves. No public row confirms the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Animation {
    /// Waves run through it.
    Ripple,
    /// It grows.
    Big,
    /// It opens.
    Bloom,
    /// It nods.
    Nod,
    /// It shakes.
    Shake,
    /// It trembles.
    Jitter,
    /// It shrinks.
    Small,
    /// It bursts.
    Explode,
}

impl Animation {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ripple,
        Self::Big,
        Self::Bloom,
        Self::Nod,
        Self::Shake,
        Self::Jitter,
        Self::Small,
        Self::Explode,
    ];

    /// The value of the attribute.
    pub const fn number(self) -> i32 {
        match self {
            Self::Ripple => 4,
            Self::Big => 5,
            Self::Bloom => 6,
            Self::Nod => 8,
            Self::Shake => 9,
            Self::Jitter => 10,
            Self::Small => 11,
            Self::Explode => 12,
        }
    }
}

/// What is said about some characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// They name the one with this address.
    Mention(String),
    /// They lead to this URL.
    Link(String),
    /// They are a one-time code.
    OneTimeCode,
    /// A data detector found something that no other mark is for, such as a phone number.
    Detected,
    /// They are a postal address.
    Address,
    /// They are a date.
    CalendarEvent,
    /// They are an amount of money.
    Money,
    /// They are bold.
    Bold,
    /// They are italic.
    Italic,
    /// They are underlined.
    Underline,
    /// They are struck through.
    Strikethrough,
    /// They move.
    Animated(Animation),
}

impl Mark {
    /// The attribute, for these characters at that place.
    fn attribute(&self, found: &str, start: usize, len: usize) -> (&'static str, Value) {
        let one = Value::Number(1);
        let archive = |kind| Value::Data(scanner_result(kind, found, start, len));
        match self {
            Self::Mention(address) => (typedstream::MENTION, Value::Text(address.clone())),
            Self::Link(url) => (typedstream::LINK, Value::Url(url.clone())),
            Self::OneTimeCode => {
                let code = || Value::Text(found.to_owned());
                let entries = vec![("displayCode".to_owned(), code()), ("code".to_owned(), code())];
                (typedstream::ONE_TIME_CODE, Value::Dictionary(entries))
            }
            Self::Detected => (typedstream::DATA_DETECTED, archive("PhoneNumber")),
            Self::Address => (typedstream::ADDRESS, archive("FullAddress")),
            Self::CalendarEvent => (typedstream::CALENDAR_EVENT, archive("DateTime")),
            Self::Money => (typedstream::MONEY, archive("Money")),
            Self::Bold => (typedstream::BOLD, one),
            Self::Italic => (typedstream::ITALIC, one),
            Self::Underline => (typedstream::UNDERLINE, one),
            Self::Strikethrough => (typedstream::STRIKETHROUGH, one),
            Self::Animated(animation) => (typedstream::EFFECT, Value::Number(animation.number())),
        }
    }
}

/// A text of one part with marks, each on the first occurrence of its characters. Characters that
/// do not occur are not marked.
pub fn marked(text: &str, marks: &[(&str, Mark)]) -> AttributedText {
    let mut attributed = AttributedText::plain(text).mutable();
    for (found, mark) in marks {
        let Some((before, _)) = text.split_once(found) else { continue };
        let (start, len) = (before.encode_utf16().count(), found.encode_utf16().count());
        let (key, value) = mark.attribute(found, start, len);
        attributed = attributed.marked(start, len, key, &value);
    }
    attributed
}

/// What a data detector says it found: a keyed archive of a `DDScannerResult`, in the form of the
/// public blob of a detected link.
fn scanner_result(kind: &str, found: &str, start: usize, len: usize) -> Vec<u8> {
    let class = |names: &[&str]| {
        let names: Vec<_> = names.iter().copied().map(Plist::text).collect();
        let first = names.first().cloned().unwrap_or_else(|| Plist::text("NSObject"));
        Plist::map([("$classname", first), ("$classes", Plist::Array(names))])
    };
    let (start, len) = (super::count(start), super::count(len));
    let objects = vec![
        Plist::text("$null"),
        Plist::map([
            ("MS", Plist::Uid(6)),
            ("$class", Plist::Uid(10)),
            ("AR", Plist::Uid(2)),
            ("T", Plist::Uid(7)),
            ("P", Plist::Int(1)),
            ("SR", Plist::Uid(8)),
            ("VN", Plist::Int(1)),
        ]),
        Plist::map([
            ("NS.rangeval.length", Plist::Uid(3)),
            ("NS.rangeval.location", Plist::Uid(4)),
            ("NS.special", Plist::Int(4)),
            ("$class", Plist::Uid(5)),
        ]),
        Plist::Int(len),
        Plist::Int(start),
        class(&["NSValue", "NSObject"]),
        Plist::text(found),
        Plist::text(kind),
        Plist::map([("NS.objects", Plist::Array(Vec::new())), ("$class", Plist::Uid(9))]),
        class(&["NSMutableArray", "NSArray", "NSObject"]),
        class(&["DDScannerResult", "NSObject"]),
        Plist::Int(1),
    ];
    let top = Plist::map([("version", Plist::Uid(11)), ("dd-result", Plist::Uid(1))]);
    super::balloon::archive(top, objects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::typedstream::PART;

    /// The attributes of the run of these characters.
    fn attribute(text: &AttributedText, key: &str) -> Option<(usize, Value)> {
        text.runs().iter().find_map(|(len, attributes)| {
            attributes.iter().find(|(name, _)| name == key).map(|(_, value)| (*len, value.clone()))
        })
    }

    #[test]
    fn a_mention_is_what_messages_writes() {
        let marks = [("Kunal", Mark::Mention("user00@test.test".into()))];
        let expected = include_bytes!("../../../testdata/user-mention.bin");
        assert_eq!(marked("foo Kunal foo", &marks).encode(), expected);
    }

    #[test]
    fn every_mark_is_on_its_characters() {
        let text = "😃 A b 42 c";
        for (mark, key) in [
            (Mark::Link("https://example.test".into()), "__kIMLinkAttributeName"),
            (Mark::OneTimeCode, "__kIMOneTimeCodeAttributeName"),
            (Mark::Detected, "__kIMDataDetectedAttributeName"),
            (Mark::Address, "__kIMAddressAttributeName"),
            (Mark::CalendarEvent, "__kIMCalendarEventAttributeName"),
            (Mark::Money, "__kIMMoneyAttributeName"),
            (Mark::Bold, "__kIMTextBoldAttributeName"),
            (Mark::Italic, "__kIMTextItalicAttributeName"),
            (Mark::Underline, "__kIMTextUnderlineAttributeName"),
            (Mark::Strikethrough, "__kIMTextStrikethroughAttributeName"),
            (Mark::Animated(Animation::Shake), "__kIMTextEffectAttributeName"),
        ] {
            let marked = marked(text, &[("42", mark)]);
            assert_eq!(marked.text(), text);
            assert_eq!(attribute(&marked, key).expect(key).0, 2);
            let again = AttributedText::decode(&marked.encode()).expect(key);
            assert_eq!(again, marked);
            assert!(again.runs().iter().all(|(_, a)| a.iter().any(|(name, _)| name == PART)));
        }
        assert_eq!(marked(text, &[("absent", Mark::Bold)]).runs().len(), 1);
    }

    #[test]
    fn a_detector_says_where_and_what() {
        let marked = marked("call 555-0100 now", &[("555-0100", Mark::Detected)]);
        let Some((_, Value::Data(archive))) = attribute(&marked, typedstream::DATA_DETECTED) else {
            panic!("no archive")
        };
        let archive = Plist::decode(&archive).expect("a property list");
        let Some(Plist::Array(objects)) = archive.get("$objects") else { panic!("no objects") };
        assert_eq!(objects[3..5], [Plist::Int(8), Plist::Int(5)]);
        assert_eq!(objects[6], Plist::text("555-0100"));
    }
}
