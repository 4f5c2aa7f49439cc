//! Reads back what the encoder writes: an edit starts from the row as it is in the file.
//!
//! It knows the classes of [`Value`] and nothing else, and gives up on anything it does not know.
//! Lengths are checked against what is there and nesting is bounded, so that no blob can do harm.

use super::{
    APP_CHAR, AttributedText, Attributes, END, FIRST, FOUR_BYTES, NEW, NIL, TWO_BYTES, Value,
};

/// Dictionaries in dictionaries. A one-time code has two levels.
const DEPTH_MAX: u32 = 8;

impl AttributedText {
    /// The text of a blob, or nothing if it is not one that this writer could have made.
    pub fn decode(blob: &[u8]) -> Option<Self> {
        let rest = blob.strip_prefix(b"\x04\x0bstreamtyped\x81\xe8\x03")?;
        let mut from = Decoder { rest, strings: Vec::new(), objects: Vec::new() };
        from.types("@")?;
        from.tag(NEW)?;
        from.objects.push(Entry::Open);
        let mutable = match from.class()?.as_str() {
            "NSMutableAttributedString" => true,
            "NSAttributedString" => false,
            _ => return None,
        };
        from.types("@")?;
        let Value::Text(text) = from.object(0)? else { return None };
        let mut known: Vec<Attributes> = Vec::new();
        let mut runs = Vec::new();
        while from.peek()? != END {
            from.types("iI")?;
            let index = usize::try_from(from.integer()?).ok()?;
            let len = from.length()?;
            if index == known.len() + 1 {
                from.types("@")?;
                let Value::Dictionary(attributes) = from.object(0)? else { return None };
                known.push(attributes);
            }
            runs.push((len, known.get(index.checked_sub(1)?)?.clone()));
        }
        let covered: usize = runs.iter().map(|(len, _)| *len).sum();
        // A text without runs is one that nothing is known about, as of some apps.
        let whole = covered == text.encode_utf16().count() || text == APP_CHAR.to_string();
        whole.then_some(Self { text, mutable, runs })
    }
}

enum Entry {
    /// An object that is not complete: nothing may name it.
    Open,
    Class(String),
    CString(String),
    Object(Value),
}

struct Decoder<'a> {
    rest: &'a [u8],
    strings: Vec<String>,
    objects: Vec<Entry>,
}

impl Decoder<'_> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }

    fn bytes(&mut self, len: usize) -> Option<&[u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    fn tag(&mut self, tag: u8) -> Option<()> {
        (self.byte()? == tag).then_some(())
    }

    /// A signed integer that begins with this byte.
    fn integer_from(&mut self, head: u8) -> Option<i32> {
        match head {
            TWO_BYTES => Some(i32::from(i16::from_le_bytes(self.bytes(2)?.try_into().ok()?))),
            FOUR_BYTES => Some(i32::from_le_bytes(self.bytes(4)?.try_into().ok()?)),
            byte => Some(i32::from(i8::from_le_bytes([byte]))),
        }
    }

    fn integer(&mut self) -> Option<i32> {
        let head = self.byte()?;
        self.integer_from(head)
    }

    /// An unsigned integer.
    fn length(&mut self) -> Option<usize> {
        match self.byte()? {
            TWO_BYTES => Some(usize::from(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))),
            FOUR_BYTES => usize::try_from(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?)).ok(),
            byte => Some(usize::from(byte)),
        }
    }

    fn utf8(&mut self) -> Option<String> {
        let len = self.length()?;
        String::from_utf8(self.bytes(len)?.to_vec()).ok()
    }

    /// The number of something written before.
    fn reference(&mut self, head: u8) -> Option<usize> {
        usize::try_from(self.integer_from(head)?.checked_sub(FIRST)?).ok()
    }

    /// A string of the string table.
    fn shared(&mut self) -> Option<String> {
        let head = self.byte()?;
        if head == NEW {
            let string = self.utf8()?;
            self.strings.push(string.clone());
            return Some(string);
        }
        let index = self.reference(head)?;
        self.strings.get(index).cloned()
    }

    fn types(&mut self, expected: &str) -> Option<()> {
        (self.shared()? == expected).then_some(())
    }

    /// A class and its ancestors; its own name.
    fn class(&mut self) -> Option<String> {
        let mut first = None;
        // Bounded by the blob: each turn takes a byte at least.
        loop {
            let head = self.byte()?;
            let (name, last) = match head {
                NEW => {
                    let name = self.shared()?;
                    self.byte()?;
                    self.objects.push(Entry::Class(name.clone()));
                    (name, false)
                }
                NIL => return first,
                _ => {
                    let index = self.reference(head)?;
                    let Entry::Class(name) = self.objects.get(index)? else { return None };
                    (name.clone(), true)
                }
            };
            first.get_or_insert(name);
            if last {
                return first;
            }
        }
    }

    fn object(&mut self, depth: u32) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        let head = self.byte()?;
        if head != NEW {
            let index = self.reference(head)?;
            let Entry::Object(value) = self.objects.get(index)? else { return None };
            return Some(value.clone());
        }
        let index = self.objects.len();
        self.objects.push(Entry::Open);
        let class = self.class()?;
        let value = match class.as_str() {
            "NSString" | "NSMutableString" => {
                self.types("+")?;
                Value::Text(self.utf8()?)
            }
            "NSNumber" => self.number()?,
            "NSURL" => {
                self.types("c")?;
                (self.integer()? == 0).then_some(())?;
                self.types("@")?;
                let Value::Text(url) = self.object(depth + 1)? else { return None };
                Value::Url(url)
            }
            "NSData" | "NSMutableData" => {
                self.types("i")?;
                let len = usize::try_from(self.integer()?).ok()?;
                self.types(&format!("[{len}c]"))?;
                Value::Data(self.bytes(len)?.to_vec())
            }
            "NSDictionary" => {
                self.types("i")?;
                let count = self.integer()?;
                let mut entries = Vec::new();
                for _ in 0..count {
                    self.types("@")?;
                    let Value::Text(key) = self.object(depth + 1)? else { return None };
                    self.types("@")?;
                    entries.push((key, self.object(depth + 1)?));
                }
                Value::Dictionary(entries)
            }
            _ => return None,
        };
        self.tag(END)?;
        *self.objects.get_mut(index)? = Entry::Object(value.clone());
        Some(value)
    }

    fn number(&mut self) -> Option<Value> {
        self.types("*")?;
        let head = self.byte()?;
        let code = if head == NEW {
            self.objects.push(Entry::Open);
            let index = self.objects.len() - 1;
            let code = self.shared()?;
            *self.objects.get_mut(index)? = Entry::CString(code.clone());
            code
        } else {
            let index = self.reference(head)?;
            let Entry::CString(code) = self.objects.get(index)? else { return None };
            code.clone()
        };
        self.types(&code)?;
        let value = self.integer()?;
        match code.as_str() {
            "i" => Some(Value::Number(value)),
            "q" => Some(Value::Quad(value)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REAL: [&[u8]; 5] = [
        include_bytes!("../../testdata/regular-text.bin"),
        include_bytes!("../../testdata/user-mention.bin"),
        include_bytes!("../../testdata/tweet.bin"),
        include_bytes!("../../testdata/closed-rings-1.bin"),
        include_bytes!("../../testdata/completed-workout-1.bin"),
    ];

    #[test]
    fn what_messages_wrote_is_read_and_written_again() {
        for blob in REAL {
            let text = AttributedText::decode(blob).unwrap_or_else(|| panic!("{blob:?}"));
            assert_eq!(text.encode(), blob, "{text:?}");
        }
    }

    /// This one names a key by number earlier than the writer would, for no reason that is known.
    #[test]
    fn what_the_writer_would_write_otherwise_is_read_too() {
        let blob = include_bytes!("../../testdata/completed-workout-2.bin");
        let text = AttributedText::decode(blob).expect("a text");
        assert_eq!(text.text(), "💥\u{fffd}");
        assert_ne!(text.encode(), blob);
        assert_eq!(AttributedText::decode(&text.encode()), Some(text));
    }

    #[test]
    fn what_is_cut_or_corrupt_is_not_a_text() {
        assert_eq!(AttributedText::decode(include_bytes!("../../testdata/crashing.bin")), None);
        for blob in REAL {
            for end in 0..blob.len() - 1 {
                assert_eq!(AttributedText::decode(&blob[..end]), None, "{end}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_with_any_mark_comes_back(
            text in "\\PC{0,200}", start in 0_usize..210, len in 0_usize..210, number in any::<i32>(),
        ) {
            let marks = Value::Dictionary(vec![
                ("n".to_owned(), Value::Number(number)),
                ("q".to_owned(), Value::Quad(number)),
                ("d".to_owned(), Value::Data(text.clone().into_bytes())),
                ("u".to_owned(), Value::Url(text.clone())),
            ]);
            let marked = AttributedText::plain(&text).marked(start, len, super::super::LINK, &marks);
            prop_assert_eq!(AttributedText::decode(&marked.encode()), Some(marked));
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut blob = b"\x04\x0bstreamtyped\x81\xe8\x03\x84\x01@".to_vec();
            blob.extend(bytes);
            AttributedText::decode(&blob);
        }
    }
}
