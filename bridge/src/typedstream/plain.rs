//! The text of a blob that begins as nearly all of them do.
//!
//! Messages writes the root of a body in one of two forms, byte for byte the same up to the length of
//! the text. Comparing those bytes costs a fraction of parsing them; whatever differs anywhere is the
//! parser's.

use super::BLOB_BYTES_MAX;

/// Up to the length of the text: `NSAttributedString` with an `NSString`, as Messages writes it.
const PLAIN: &[u8] =
    b"\x04\x0bstreamtyped\x81\xe8\x03\x84\x01@\x84\x84\x84\x12NSAttributedString\0\
\x84\x84\x08NSObject\0\x85\x92\x84\x84\x84\x08NSString\x01\x94\x84\x01+";
/// The same of `NSMutableAttributedString` with an `NSMutableString`, as drafts and edits are kept.
pub(super) const MUTABLE: &[u8] =
    b"\x04\x0bstreamtyped\x81\xe8\x03\x84\x01@\x84\x84\x84\x19NSMutableAttributedString\0\
\x84\x84\x12NSAttributedString\0\x84\x84\x08NSObject\0\x85\x92\x84\x84\x84\x0fNSMutableString\x01\
\x84\x84\x08NSString\x01\x95\x84\x01+";
/// What follows a text that is one part: a run, whose length stands between these, with the number of
/// the part, 0, as its only attribute.
const ONE_RUN: &[u8] = b"\x86\x84\x02iI\x01";
const PART_0: &[u8] =
    b"\x92\x84\x84\x84\x0cNSDictionary\0\x94\x84\x01i\x01\x92\x84\x96\x96\x1d__kIMMessagePartAttributeName\
\x86\x92\x84\x84\x84\x08NSNumber\0\x84\x84\x07NSValue\0\x94\x84\x01*\x84\x99\x99\0\x86\x86\x86";
/// A number of two bytes follows.
const TWO_BYTES: u8 = 0x81;
/// The largest number that is written as itself.
const ONE_BYTE_MAX: u8 = 0x7f;
/// The end of an object, here of the string.
const END: u8 = 0x86;

/// The bytes of the text, where the blob has one of the two usual forms up to its end.
pub(super) fn text(blob: &[u8]) -> Option<&[u8]> {
    if blob.len() > BLOB_BYTES_MAX {
        return None;
    }
    let rest = blob.strip_prefix(PLAIN).or_else(|| blob.strip_prefix(MUTABLE))?;
    let (text, rest) = text_first(rest)?;
    (rest.first() == Some(&END)).then_some(text)
}

/// Whether the blob is a text of one part of which nothing else is said.
pub(super) fn is_all(blob: &[u8]) -> bool {
    let rest = blob.strip_prefix(PLAIN).and_then(text_first).map(|(_, rest)| rest);
    let rest = rest.and_then(|rest| rest.strip_prefix(ONE_RUN)).and_then(number_first);
    rest.is_some_and(|(_, rest)| rest == PART_0)
}

fn text_first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = number_first(bytes)?;
    rest.split_at_checked(length.into())
}

fn number_first(bytes: &[u8]) -> Option<(u16, &[u8])> {
    match bytes {
        [TWO_BYTES, low, high, rest @ ..] => Some((u16::from_le_bytes([*low, *high]), rest)),
        [number @ ..=ONE_BYTE_MAX, rest @ ..] => Some((u16::from(*number), rest)),
        _ => None,
    }
}
