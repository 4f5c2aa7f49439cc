//! `message_summary_info`: the only place that knows a message's edits and unsends.
//!
//! The keys are two letters: `otr` the original ranges of the parts, `ep` the edited parts, `ec`
//! the history of each (the first entry is the original), `rp` the retracted parts. What is
//! written equals, byte for byte, three public rows (see the tests).

use std::collections::BTreeMap;

use super::count;
use crate::bplist::Plist;
use crate::clock::AppleNs;
use crate::typedstream::AttributedText;

/// Where a part was before anything was edited, in UTF-16 units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Its start (`lo`).
    pub start: i64,
    /// Its length (`le`).
    pub len: i64,
}

/// One text that a part had.
#[derive(Debug, Clone, PartialEq)]
pub struct Edition {
    /// Since when (`d`): seconds since 2001 with a fraction, not nanoseconds.
    pub at_s: f64,
    /// The text (`t`), a typedstream.
    pub text: Vec<u8>,
}

/// What is in the column.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Summary {
    /// `otr`.
    pub original: BTreeMap<u32, Range>,
    /// `ec`.
    pub editions: BTreeMap<u32, Vec<Edition>>,
    /// `ep`.
    pub edited: Vec<u32>,
    /// `rp`.
    pub retracted: Vec<u32>,
}

/// Why a message cannot be changed like that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The part is not there, or no more.
    #[error("the message has no part {0}")]
    NoSuchPart(u32),
}

/// What a message says, and its history.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// The text as it is now.
    pub text: AttributedText,
    /// What became of it.
    pub summary: Summary,
}

impl Summary {
    fn remember(&mut self, text: &AttributedText) {
        if self.original.is_empty() {
            let ranges = text.parts().into_iter().map(|part| {
                (part.number, Range { start: count(part.start), len: count(part.len) })
            });
            self.original = ranges.collect();
        }
    }

    /// The column's value.
    pub fn encode(&self) -> Vec<u8> {
        let ust = ("ust".to_owned(), Plist::Bool(true));
        let numbers =
            |parts: &[u32]| Plist::Array(parts.iter().map(|p| Plist::Int(i64::from(*p))).collect());
        let retracted = ("rp".to_owned(), numbers(&self.retracted));
        let ranges = hashed(&self.original).map(|(part, range)| {
            let range = [("lo", Plist::Int(range.start)), ("le", Plist::Int(range.len))];
            (part.to_string(), Plist::map(range))
        });
        let original = ("otr".to_owned(), Plist::Map(ranges.collect()));
        if self.edited.is_empty() && self.editions.is_empty() {
            return Plist::Map(vec![ust, retracted, original]).encode();
        }
        let editions = hashed(&self.editions).map(|(part, editions)| {
            let editions = editions.iter().map(|edition| {
                let text = Plist::Data(edition.text.clone());
                Plist::map([("t", text), ("d", Plist::Real(edition.at_s))])
            });
            (part.to_string(), Plist::Array(editions.collect()))
        });
        let editions = ("ec".to_owned(), Plist::Map(editions.collect()));
        let edited = ("ep".to_owned(), numbers(&self.edited));
        let mut all = vec![editions, ust, original, edited];
        if !self.retracted.is_empty() {
            all.push(retracted);
        }
        Plist::Map(all).encode()
    }

    /// What is in the column, or nothing if it is not such a value.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let plist = Plist::decode(bytes)?;
        let entries = |key: &str| match plist.get(key) {
            Some(Plist::Map(entries)) => Some(entries.clone()),
            Some(_) => None,
            None => Some(Vec::new()),
        };
        let numbers = |key: &str| match plist.get(key) {
            Some(Plist::Array(values)) => values
                .iter()
                .map(|value| {
                    let Plist::Int(value) = value else { return None };
                    u32::try_from(*value).ok()
                })
                .collect(),
            Some(_) => None,
            None => Some(Vec::new()),
        };
        let mut original = BTreeMap::new();
        for (part, range) in entries("otr")? {
            let (Some(Plist::Int(start)), Some(Plist::Int(len))) =
                (range.get("lo"), range.get("le"))
            else {
                return None;
            };
            original.insert(part.parse().ok()?, Range { start: *start, len: *len });
        }
        let mut editions = BTreeMap::new();
        for (part, list) in entries("ec")? {
            let Plist::Array(list) = list else { return None };
            let list: Option<Vec<_>> = list
                .iter()
                .map(|edition| match (edition.get("d"), edition.get("t")) {
                    (Some(Plist::Real(at_s)), Some(Plist::Data(text))) => {
                        Some(Edition { at_s: *at_s, text: text.clone() })
                    }
                    _ => None,
                })
                .collect();
            editions.insert(part.parse().ok()?, list?);
        }
        Some(Self { original, editions, edited: numbers("ep")?, retracted: numbers("rp")? })
    }
}

impl Content {
    /// The same with another text in one part.
    pub fn edited(
        &self,
        part: u32,
        text: &str,
        (sent, at): (AppleNs, AppleNs),
    ) -> Result<Self, ChangeError> {
        let parts = self.text.parts();
        let before = parts
            .into_iter()
            .find(|known| known.number == part)
            .ok_or(ChangeError::NoSuchPart(part))?;
        let mut summary = self.summary.clone();
        summary.remember(&self.text);
        let editions = summary.editions.entry(part).or_default();
        if editions.is_empty() {
            let text = AttributedText::plain(&before.text).encode();
            editions.push(Edition { at_s: seconds(sent), text });
        }
        let text_blob = AttributedText::plain(text).encode();
        editions.push(Edition { at_s: seconds(at), text: text_blob });
        if !summary.edited.contains(&part) {
            summary.edited.push(part);
        }
        Ok(Self { text: self.text.with_part(part, text), summary })
    }

    /// The same without one part.
    pub fn unsent(&self, part: u32) -> Result<Self, ChangeError> {
        if !self.text.parts().iter().any(|known| known.number == part) {
            return Err(ChangeError::NoSuchPart(part));
        }
        let mut summary = self.summary.clone();
        summary.remember(&self.text);
        summary.retracted.push(part);
        Ok(Self { text: self.text.without_part(part), summary })
    }

    /// The same with nothing left.
    pub fn unsent_whole(&self) -> Result<Self, ChangeError> {
        let parts = self.text.parts();
        if parts.is_empty() {
            return Err(ChangeError::NoSuchPart(0));
        }
        parts.iter().try_fold(self.clone(), |content, part| content.unsent(part.number))
    }
}

fn seconds(at: AppleNs) -> f64 {
    // Twelve digits and a fraction: a double holds microseconds of that, as in public rows.
    std::time::Duration::from_nanos(u64::try_from(at.0).unwrap_or_default()).as_secs_f64()
}

/// Entries in the order of Apple's hash table: of one to three keys from small to large, of four
/// as in the one public row that has so many.
fn hashed<T>(entries: &BTreeMap<u32, T>) -> impl Iterator<Item = (u32, &T)> {
    let mut order: Vec<u32> = entries.keys().copied().collect();
    if order == [0, 1, 2, 3] {
        order = vec![3, 1, 2, 0];
    }
    order.into_iter().filter_map(|key| entries.get(&key).map(|value| (key, value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chatdb::kinds::attachment::{Attachment, Parts};

    /// Summary, text and `date` of a public row.
    fn row(json: &str) -> (Vec<u8>, Vec<u8>, i64) {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        let blob = |column: &str| {
            let blob = json[0][column].as_str().unwrap().strip_prefix("data:;base64,").unwrap();
            data_encoding::BASE64.decode(blob.as_bytes()).unwrap()
        };
        (blob("message_summary_info"), blob("attributedBody"), json[0]["date"].as_i64().unwrap())
    }

    fn content(parts: Parts) -> Content {
        Content { text: parts.finish().0, summary: Summary::default() }
    }

    fn file() -> Attachment {
        Attachment::new("/tmp/a.png", 1)
    }

    #[test]
    fn leading_parts_unsent_are_what_messages_writes() {
        let (summary, text, _) =
            row(include_str!("../../../testdata/partial_leading_unsends.json"));
        let sent = content(Parts::of("G").file(file()).file(file()).text("a"));
        let left = sent.unsent(0).unwrap().unsent(1).unwrap();
        assert_eq!(left.summary.encode(), summary);
        assert_eq!(left.text.encode(), text);
    }

    #[test]
    fn middle_parts_unsent_are_what_messages_writes() {
        let json = include_str!("../../../testdata/partial_multiple_middle_adjacent_unsend.json");
        let (summary, text, _) = row(json);
        let parts = Parts::of("G")
            .text("begin middle multiple adjacent unsend")
            .file(file())
            .file(file())
            .text("end middle multiple adjacent unsend");
        let left = content(parts).unsent(1).unwrap().unsent(2).unwrap();
        assert_eq!(left.summary.encode(), summary);
        assert_eq!(left.text.encode(), text);
    }

    #[test]
    fn an_edit_and_trailing_parts_unsent_are_what_messages_writes() {
        let (summary, text, date) =
            row(include_str!("../../../testdata/partial_trailing_unsends.json"));
        let sent = content(Parts::of("G").text("trailing attachments").file(file()).file(file()));
        let at = AppleNs(725_505_920_689_707_000);
        let left = sent.edited(0, "a", (AppleNs(date), at)).unwrap();
        let left = left.unsent(1).unwrap().unsent(2).unwrap();
        // The moment of the edit is known from the row only, to the last bit of its double.
        let real = Summary::decode(&summary).expect("a summary");
        let mut made = left.summary;
        let known = real.editions[&0][1].at_s;
        let edition = &mut made.editions.get_mut(&0).unwrap()[1];
        assert!((edition.at_s - known).abs() < 1e-6);
        edition.at_s = known;
        assert_eq!(made.encode(), summary);
        assert_eq!(left.text.encode(), text);
    }

    #[test]
    fn a_history_has_the_original_first_and_comes_back() {
        let mut content = content(Parts::of("G").text("one").text("two"));
        for (n, text) in ["three 😃", "four", "five"].into_iter().enumerate() {
            let at = AppleNs(i64::try_from(n).unwrap() * 1_000_000_000);
            content = content.edited(1, text, (AppleNs(500_000_000), at)).unwrap();
        }
        assert_eq!(content.text.text(), "onefive");
        let again = Summary::decode(&content.summary.encode()).expect("a summary");
        assert_eq!(again, content.summary);
        let texts: Vec<_> = again.editions[&1]
            .iter()
            .map(|edition| AttributedText::decode(&edition.text).unwrap().text().to_owned())
            .collect();
        assert_eq!(texts, ["two", "three 😃", "four", "five"]);
        assert_eq!((again.edited.as_slice(), again.retracted.as_slice()), (&[1][..], &[][..]));
        assert_eq!(again.original[&1], Range { start: 3, len: 3 }, "ranges are the original ones");
    }

    #[test]
    fn what_is_gone_cannot_change() {
        let content = content(Parts::of("G").text("one").text("two"));
        assert_eq!(content.unsent(2), Err(ChangeError::NoSuchPart(2)));
        let left = content.unsent(0).unwrap();
        assert_eq!(left.unsent(0), Err(ChangeError::NoSuchPart(0)));
        let now = (AppleNs(0), AppleNs(0));
        assert_eq!(left.edited(0, "x", now), Err(ChangeError::NoSuchPart(0)));
        let none = content.unsent_whole().unwrap();
        assert_eq!(none.summary.retracted, [0, 1]);
        assert_eq!(none.text.text(), "");
        assert_eq!(none.unsent_whole(), Err(ChangeError::NoSuchPart(0)));
        assert_eq!(Summary::decode(b"no"), None);
    }
}
