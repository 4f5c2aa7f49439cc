//! Writes binary property lists byte for byte as Apple's `CFBinaryPlist` does, which the columns
//! `message_summary_info` and `payload_data` hold. The crate `plist` reads them; its writer
//! numbers objects in another order.
//!
//! Objects are numbered depth first, of a dictionary all keys before the values; scalars that
//! are equal are written once.

use std::collections::HashMap;

/// A value. Dictionaries keep the order that they are given in, because Apple's is that of a hash
/// table and no other rule would reproduce it.
#[derive(Debug, Clone, PartialEq)]
pub enum Plist {
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A double.
    Real(f64),
    /// A string.
    Text(String),
    /// Bytes.
    Data(Vec<u8>),
    /// A reference of a keyed archive.
    Uid(u8),
    /// An array.
    Array(Vec<Self>),
    /// A dictionary.
    Map(Vec<(String, Self)>),
}

impl Plist {
    /// A string.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A dictionary.
    pub fn map<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The binary property list.
    pub fn encode(&self) -> Vec<u8> {
        let mut objects = Objects::default();
        objects.add(self);
        objects.write()
    }

    /// What [`Plist::encode`] wrote, or anybody else, without dates.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        from_crate(plist::Value::from_reader(std::io::Cursor::new(bytes)).ok()?)
    }

    /// The value of a key, if this is a dictionary that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => {
                entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
            }
            Self::Bool(_)
            | Self::Int(_)
            | Self::Real(_)
            | Self::Text(_)
            | Self::Data(_)
            | Self::Uid(_)
            | Self::Array(_) => None,
        }
    }
}

fn from_crate(value: plist::Value) -> Option<Plist> {
    Some(match value {
        plist::Value::Boolean(value) => Plist::Bool(value),
        plist::Value::Integer(value) => Plist::Int(value.as_signed()?),
        plist::Value::Real(value) => Plist::Real(value),
        plist::Value::String(value) => Plist::Text(value),
        plist::Value::Data(value) => Plist::Data(value),
        plist::Value::Uid(value) => Plist::Uid(u8::try_from(value.get()).ok()?),
        plist::Value::Array(values) => {
            Plist::Array(values.into_iter().map(from_crate).collect::<Option<_>>()?)
        }
        plist::Value::Dictionary(entries) => Plist::Map(
            entries
                .into_iter()
                .map(|(key, value)| Some((key, from_crate(value)?)))
                .collect::<Option<_>>()?,
        ),
        // Dates are in none of the lists that are read here; the crate may learn more kinds.
        plist::Value::Date(_) | _ => return None,
    })
}

enum Object {
    Scalar(Vec<u8>),
    /// The tag, and the numbers of the members; of a dictionary, keys then values.
    Container(u8, usize, Vec<usize>),
}

#[derive(Default)]
struct Objects {
    objects: Vec<Object>,
    scalars: HashMap<Vec<u8>, usize>,
}

impl Objects {
    fn add(&mut self, value: &Plist) -> usize {
        match value {
            Plist::Bool(value) => self.scalar(vec![if *value { 0x09 } else { 0x08 }]),
            Plist::Int(value) => self.scalar(integer(*value)),
            Plist::Real(value) => {
                let mut bytes = vec![0x23];
                bytes.extend(value.to_be_bytes());
                self.scalar(bytes)
            }
            Plist::Text(text) => self.text(text),
            Plist::Data(data) => {
                let mut bytes = head(0x40, data.len());
                bytes.extend(data);
                self.scalar(bytes)
            }
            Plist::Uid(value) => self.scalar(vec![0x80, *value]),
            Plist::Array(values) => {
                let number = self.open();
                let members = values.iter().map(|value| self.add(value)).collect();
                self.close(number, 0xa0, values.len(), members)
            }
            Plist::Map(entries) => {
                let number = self.open();
                let mut members: Vec<_> = entries.iter().map(|(key, _)| self.text(key)).collect();
                for (_, value) in entries {
                    let member = self.add(value);
                    members.push(member);
                }
                self.close(number, 0xd0, entries.len(), members)
            }
        }
    }

    fn open(&mut self) -> usize {
        self.objects.push(Object::Scalar(Vec::new()));
        self.objects.len() - 1
    }

    fn close(&mut self, number: usize, tag: u8, len: usize, members: Vec<usize>) -> usize {
        if let Some(object) = self.objects.get_mut(number) {
            *object = Object::Container(tag, len, members);
        }
        number
    }

    fn scalar(&mut self, bytes: Vec<u8>) -> usize {
        if let Some(number) = self.scalars.get(&bytes) {
            return *number;
        }
        let number = self.objects.len();
        self.objects.push(Object::Scalar(bytes.clone()));
        self.scalars.insert(bytes, number);
        number
    }

    fn text(&mut self, text: &str) -> usize {
        let bytes = if text.is_ascii() {
            let mut bytes = head(0x50, text.len());
            bytes.extend(text.as_bytes());
            bytes
        } else {
            let mut bytes = head(0x60, text.encode_utf16().count());
            bytes.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
            bytes
        };
        self.scalar(bytes)
    }

    fn write(&self) -> Vec<u8> {
        let ref_size = size_of_number(self.objects.len());
        let mut out = b"bplist00".to_vec();
        let mut offsets = Vec::with_capacity(self.objects.len());
        for object in &self.objects {
            offsets.push(out.len());
            match object {
                Object::Scalar(bytes) => out.extend(bytes),
                Object::Container(tag, len, members) => {
                    out.extend(head(*tag, *len));
                    for member in members {
                        number(&mut out, *member, ref_size);
                    }
                }
            }
        }
        let table = out.len();
        let offset_size = size_of_number(table);
        for offset in offsets {
            number(&mut out, offset, offset_size);
        }
        out.extend([0; 6]);
        for size in [offset_size, ref_size] {
            number(&mut out, size, 1);
        }
        for value in [self.objects.len(), 0, table] {
            number(&mut out, value, 8);
        }
        out
    }
}

/// How many bytes hold numbers up to this.
fn size_of_number(max: usize) -> usize {
    match max {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        _ => 4,
    }
}

/// A number in so many bytes, the highest first.
fn number(out: &mut Vec<u8>, value: usize, size: usize) {
    let bytes = u64::try_from(value).unwrap_or(u64::MAX).to_be_bytes();
    out.extend(bytes.iter().skip(bytes.len().saturating_sub(size)));
}

fn integer(value: i64) -> Vec<u8> {
    let mut bytes;
    if let Ok(value) = u8::try_from(value) {
        bytes = vec![0x10, value];
    } else if let Ok(value) = u16::try_from(value) {
        bytes = vec![0x11];
        bytes.extend(value.to_be_bytes());
    } else if let Ok(value) = u32::try_from(value) {
        bytes = vec![0x12];
        bytes.extend(value.to_be_bytes());
    } else {
        bytes = vec![0x13];
        bytes.extend(value.to_be_bytes());
    }
    bytes
}

/// A tag with a length: in its lower half if that is less than 15, else as an integer after it.
fn head(tag: u8, len: usize) -> Vec<u8> {
    match u8::try_from(len) {
        Ok(short) if short < 15 => vec![tag | short],
        _ => {
            let mut bytes = vec![tag | 0x0f];
            bytes.extend(integer(i64::try_from(len).unwrap_or(i64::MAX)));
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn real(base64: &str) -> Vec<u8> {
        data_encoding::BASE64.decode(base64.as_bytes()).unwrap()
    }

    #[test]
    fn small_lists_are_what_messages_writes() {
        let ust = Plist::map([("ust", Plist::Bool(true))]);
        let expected = "YnBsaXN0MDDRAQJTdXN0CQgLDwAAAAAAAAEBAAAAAAAAAAMAAAAAAAAAAAAAAAAAAAAQ";
        assert_eq!(ust.encode(), real(expected));
        let both = Plist::map([("amc", Plist::Int(0)), ("ust", Plist::Bool(true))]);
        let expected =
            "YnBsaXN0MDDSAQIDBFNhbWNTdXN0EAAJCA0RFRcAAAAAAAABAQAAAAAAAAAFAAAAAAAAAAAAAAAAAAAAGA==";
        assert_eq!(both.encode(), real(expected));
    }

    #[test]
    fn every_kind_and_size_comes_back() {
        let value = Plist::map([
            ("bool", Plist::Array(vec![Plist::Bool(true), Plist::Bool(false)])),
            ("int", Plist::Array([-1, 0, 255, 256, 65_536, 1 << 40].map(Plist::Int).to_vec())),
            ("real", Plist::Real(725_505_911.336)),
            ("Ünïcode 😃", Plist::text("é".repeat(300))),
            ("ascii", Plist::text("x".repeat(70_000))),
            ("data", Plist::Data(vec![7; 300])),
            ("uid", Plist::Uid(9)),
            ("many", Plist::Array((0..400).map(Plist::Int).collect())),
        ]);
        assert_eq!(Plist::decode(&value.encode()), Some(value));
        assert_eq!(Plist::decode(b"bplist00 not one"), None);
    }
}
