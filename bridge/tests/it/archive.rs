//! A small writer of typedstreams, as `NSArchiver` writes an attributed string.

#![expect(clippy::unwrap_used, reason = "a failed assumption fails the test")]

/// What an attribute may hold here.
pub(crate) enum Value<'v> {
    Number(i64),
    Text(&'v str),
}

const OBJECT: &[(&str, u8)] = &[("NSObject", 0)];
const STRING: &[(&str, u8)] = &[("NSString", 1), ("NSObject", 0)];
const NUMBER: &[(&str, u8)] = &[("NSNumber", 0), ("NSValue", 0), ("NSObject", 0)];
const DICTIONARY: &[(&str, u8)] = &[("NSDictionary", 0), ("NSObject", 0)];
const ATTRIBUTED: &[(&str, u8)] = &[("NSAttributedString", 0), ("NSObject", 0)];

#[derive(Default)]
struct Archiver {
    out: Vec<u8>,
    names: Vec<String>,
    /// Objects, classes (by name) and C strings (by content, with a mark) share one count.
    objects: Vec<String>,
}

/// An attributed string. Each run has a length in UTF-16 code units and its attributes, of which
/// equal sets are not shared.
pub(crate) fn archive(text: &str, runs: &[(usize, &[(&str, Value<'_>)])]) -> Vec<u8> {
    let mut archiver = Archiver::default();
    archiver.out.extend_from_slice(b"\x04\x0bstreamtyped\x81\xe8\x03");
    archiver.name("@");
    archiver.begin(ATTRIBUTED);
    archiver.name("@");
    archiver.string(text);
    for (at, (length, attributes)) in runs.iter().enumerate() {
        archiver.name("iI");
        archiver.integer(i64::try_from(at).unwrap() + 1);
        archiver.length(*length);
        archiver.name("@");
        archiver.begin(DICTIONARY);
        archiver.name("i");
        archiver.integer(i64::try_from(attributes.len()).unwrap());
        for (key, value) in *attributes {
            archiver.name("@");
            archiver.string(key);
            archiver.name("@");
            match value {
                Value::Text(text) => archiver.string(text),
                Value::Number(number) => archiver.number(*number),
            }
        }
        archiver.end();
    }
    archiver.end();
    archiver.out
}

impl Archiver {
    fn reference(&mut self, number: usize) {
        self.integer(i64::try_from(number).unwrap() - 110);
    }

    fn integer(&mut self, number: i64) {
        if (-110..=127).contains(&number) {
            self.out.extend_from_slice(&i8::try_from(number).unwrap().to_le_bytes());
        } else if let Ok(number) = i16::try_from(number) {
            self.out.push(0x81);
            self.out.extend_from_slice(&number.to_le_bytes());
        } else {
            self.out.push(0x82);
            self.out.extend_from_slice(&i32::try_from(number).unwrap().to_le_bytes());
        }
    }

    fn length(&mut self, length: usize) {
        if let Ok(length @ 0..=0x7f) = u8::try_from(length) {
            self.out.push(length);
        } else if let Ok(length) = u16::try_from(length) {
            self.out.push(0x81);
            self.out.extend_from_slice(&length.to_le_bytes());
        } else {
            self.out.push(0x82);
            self.out.extend_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        }
    }

    fn name(&mut self, name: &str) {
        if let Some(known) = self.names.iter().position(|other| other == name) {
            self.reference(known);
        } else {
            self.names.push(name.to_owned());
            self.out.push(0x84);
            self.length(name.len());
            self.out.extend_from_slice(name.as_bytes());
        }
    }

    fn begin(&mut self, classes: &[(&str, u8)]) {
        self.out.push(0x84);
        self.objects.push(String::new());
        for (class, version) in classes {
            if let Some(known) = self.objects.iter().position(|other| other == class) {
                self.reference(known);
                return;
            }
            self.out.push(0x84);
            self.name(class);
            self.out.push(*version);
            self.objects.push((*class).to_owned());
        }
        assert_eq!(classes.last(), OBJECT.last(), "every class descends from NSObject");
        self.out.push(0x85);
    }

    fn end(&mut self) {
        self.out.push(0x86);
    }

    fn string(&mut self, text: &str) {
        self.begin(STRING);
        self.name("+");
        self.length(text.len());
        self.out.extend_from_slice(text.as_bytes());
        self.end();
    }

    fn number(&mut self, number: i64) {
        self.begin(NUMBER);
        self.name("*");
        if let Some(known) = self.objects.iter().position(|other| other == "*i") {
            self.reference(known);
        } else {
            self.out.push(0x84);
            self.name("i");
            self.objects.push("*i".to_owned());
        }
        self.name("i");
        self.integer(number);
        self.end();
    }
}
