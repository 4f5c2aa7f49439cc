//! `message_summary_info` → what was edited and what was taken back.
//!
//! The column is a binary property list; of its keys, `ec` holds the texts that each part has had,
//! the first one first, and `rp` the parts that were taken back (measured on public rows, see
//! [`protocol::pipe::Version`] for what comes out). It is the only place that knows: `date_edited`
//! is set for both and may stay 0 although there is a history, and `date_retracted` is not used by
//! Apple in practice. Reactions keep other things in the same column, which are not looked at.

use std::collections::BTreeMap;

use protocol::UnixMs;
use protocol::pipe::Version;

use crate::bplist::{Bplist, BplistError, Node};
use crate::typedstream;

/// Most parts that are looked at; a message has a few.
pub const PARTS_MAX: usize = 128;
/// Most texts of one part that are kept, the newest ones. Messages allows five edits in 15 minutes.
pub const VERSIONS_MAX: usize = 64;
/// Most that may be spent on decoding the texts of one column, in bytes of their archives and steps
/// in them ([`typedstream::STEPS_MAX`]). A list may name one archive thousands of times. Fifty edits
/// of the longest text that Messages sends are a quarter of it; texts beyond it are versions that
/// cannot be read.
pub const WORK_MAX: usize = 4 << 20;
/// 2001-01-01T00:00:00Z in milliseconds since 1970.
const APPLE_EPOCH_MS: i64 = 978_307_200_000;

/// What became of the parts of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The parts that were edited, in order.
    pub edits: Vec<EditedPart>,
    /// The parts that were taken back, in order.
    pub retracted: Vec<u32>,
}

/// A part with the texts that it has had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditedPart {
    /// Which part.
    pub part: u32,
    /// The original first, the present one last; never empty.
    pub versions: Vec<Version>,
}

impl Summary {
    /// Nothing was edited or taken back.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.retracted.is_empty()
    }
}

/// Why a blob could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message_summary_info cannot be read")]
pub struct SummaryError(#[from] BplistError);

/// What reading a column took, for those who check that there is a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Steps in the list, of [`crate::bplist::STEPS_MAX`].
    pub(crate) list: u32,
    /// Spent on texts, of [`WORK_MAX`].
    pub(crate) texts: usize,
}

/// Reads the column. What has another form than the known one is passed over, piece by piece: one
/// strange part must not hide what happened to the others.
pub fn parse(blob: &[u8]) -> Result<Summary, SummaryError> {
    Ok(parse_counted(blob)?.0)
}

/// The same, and what it took.
pub(crate) fn parse_counted(blob: &[u8]) -> Result<(Summary, Work), SummaryError> {
    let plist = Bplist::parse(blob)?;
    let mut left = WORK_MAX;
    let summary = plist.root().map_or_else(Summary::default, |root| read(root, &mut left));
    Ok((summary, Work { list: plist.steps(), texts: WORK_MAX - left }))
}

fn read(root: Node<'_, '_>, left: &mut usize) -> Summary {
    let mut parts = BTreeMap::new();
    if let Some(history) = root.get("ec") {
        for (part, versions) in history.entries().take(PARTS_MAX) {
            let part = part.text().and_then(|part| part.parse::<u32>().ok());
            let versions = versions_of(versions, left);
            if let Some(part) = part
                // The first entry is what was there before: one alone is no edit.
                && versions.len() > 1
            {
                parts.insert(part, versions);
            }
        }
    }
    let mut retracted: Vec<u32> = root
        .get("rp")
        .into_iter()
        .flat_map(Node::items)
        .take(PARTS_MAX)
        .filter_map(|part| u32::try_from(part.integer()?).ok())
        .collect();
    retracted.sort_unstable();
    retracted.dedup();
    let edits = parts.into_iter().map(|(part, versions)| EditedPart { part, versions }).collect();
    Summary { edits, retracted }
}

fn versions_of(list: Node<'_, '_>, left: &mut usize) -> Vec<Version> {
    list.items()
        .skip(list.len().saturating_sub(VERSIONS_MAX))
        .filter_map(|version| {
            // What cannot be read was a version too, and this is the character for it.
            let text = text_of(version.get("t")?.data()?, left)
                .unwrap_or_else(|| char::REPLACEMENT_CHARACTER.to_string());
            let at = version.get("d").and_then(|date| date.real()).map_or(UnixMs(0), seconds);
            Some(Version { text, at })
        })
        .collect()
}

fn text_of(archive: &[u8], left: &mut usize) -> Option<String> {
    *left = left.checked_sub(archive.len())?;
    let (text, steps) = typedstream::decode_text_counted(archive);
    *left = left.saturating_sub(steps);
    match text {
        Ok(text) => Some(text),
        Err(error) => error.salvaged,
    }
}

/// Seconds since 2001 with a fraction; dates out of any plausible range are none.
fn seconds(since_2001: f64) -> UnixMs {
    // Far below the range in which a double counts milliseconds exactly.
    const PLAUSIBLE_S: f64 = 1e10;
    if !(0.0..PLAUSIBLE_S).contains(&since_2001) {
        return UnixMs(0);
    }
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "the range was checked, and there is no other conversion from a float"
    )]
    let ms = (since_2001 * 1000.0).round() as i64;
    UnixMs(APPLE_EPOCH_MS + ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sandbox::chatdb::kinds::summary::{Edition, Range, Summary as Written};
    use sandbox::typedstream::AttributedText;

    fn edition(at_s: f64, text: &str) -> Edition {
        Edition { at_s, text: AttributedText::plain(text).encode() }
    }

    #[test]
    fn the_history_of_each_part_is_read_in_order() {
        let mut written = Written::default();
        written.original.insert(0, Range { start: 0, len: 5 });
        written.editions.insert(
            0,
            vec![
                edition(700_000_000.25, "one"),
                edition(700_000_060.5, "two"),
                edition(700_000_061.0, "thrée"),
            ],
        );
        written.editions.insert(2, vec![edition(1.0, "a"), edition(2.0, "b")]);
        written.edited = vec![0, 2];
        written.retracted = vec![3, 1];
        let summary = parse(&written.encode()).unwrap();
        assert_eq!(summary.retracted, [1, 3]);
        let texts: Vec<Vec<&str>> = summary
            .edits
            .iter()
            .map(|edit| edit.versions.iter().map(|version| version.text.as_str()).collect())
            .collect();
        assert_eq!(texts, [vec!["one", "two", "thrée"], vec!["a", "b"]]);
        assert_eq!(summary.edits[1].part, 2);
        assert_eq!(summary.edits[0].versions[0].at, UnixMs(APPLE_EPOCH_MS + 700_000_000_250));
    }

    #[test]
    fn what_was_never_edited_has_no_history() {
        let mut written = Written::default();
        written.editions.insert(0, vec![edition(1.0, "only")]);
        assert!(parse(&written.encode()).unwrap().is_empty());
        assert!(parse(&Written::default().encode()).unwrap().is_empty());
        assert!(parse(b"nonsense").is_err());
    }

    #[test]
    fn a_version_that_cannot_be_decoded_is_still_a_version() {
        let mut written = Written::default();
        let broken = Edition { at_s: 2.0, text: b"nonsense".to_vec() };
        written.editions.insert(0, vec![edition(1.0, "first"), broken]);
        let summary = parse(&written.encode()).unwrap();
        assert_eq!(summary.edits[0].versions[1].text, "\u{fffd}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(parse(&bytes));
            let mut blob = b"bplist00".to_vec();
            blob.extend(bytes);
            drop(parse(&blob));
        }
    }
}
