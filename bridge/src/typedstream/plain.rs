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
    let (length, rest) = match rest {
        [TWO_BYTES, low, high, rest @ ..] => (u16::from_le_bytes([*low, *high]), rest),
        [length @ ..=ONE_BYTE_MAX, rest @ ..] => (u16::from(*length), rest),
        _ => return None,
    };
    let (text, rest) = rest.split_at_checked(usize::from(length))?;
    (rest.first() == Some(&END)).then_some(text)
}
