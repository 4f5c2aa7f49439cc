//! Binary property lists, as they stand in `message_summary_info` and `payload_data`, read in place.
//!
//! A list is a table of objects that refer to one another by number. Readers that turn it into a
//! tree copy an object as often as it is referred to: thirty arrays that each name the next one
//! twice are a few hundred bytes and a billion nodes. So nothing is expanded here. A [`Node`] is a
//! number in the table, its children are looked up when somebody asks for them, and every look costs
//! one of [`STEPS_MAX`]. Nothing is copied but texts that are asked for, which costs steps too, and no
//! bytes make it panic.
//! ([ADR 9](../../docs/adr/0009-own-bplist-reader.md))
//!
//! The format is that of Apple's `CFBinaryPlist`: `bplist00`, objects, a table of their offsets, and
//! a trailer of 32 bytes that says where the table is and which object is the root.

use std::cell::Cell;

/// Longest blob that is looked at. Histories of edits and payloads of apps have some kilobytes;
/// some apps put pictures into theirs.
pub const BLOB_BYTES_MAX: usize = 16 << 20;
/// Deepest way from the root to a node. Keyed archives of apps have about ten levels.
pub const DEPTH_MAX: u16 = 64;
/// Most steps in one list: a look at an object is one, and so is every [`STEP_BYTES`] of a text that
/// is copied. A history of fifty edits takes some five hundred.
pub const STEPS_MAX: u32 = 65_536;
/// A list may name one long text many times: whoever copies it pays by its length. All that may be
/// copied is then as long as the longest list, 16 MB.
pub const STEP_BYTES: usize = BLOB_BYTES_MAX / 65_536;

const MAGIC: &[u8] = b"bplist00";
const TRAILER_BYTES: usize = 32;

/// Why a blob is not a property list that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BplistError {
    /// It does not begin with `bplist00`.
    #[error("not a binary property list")]
    NotBplist,
    /// Longer than [`BLOB_BYTES_MAX`].
    #[error("longer than {BLOB_BYTES_MAX} bytes")]
    TooLong,
    /// The trailer or the table of offsets does not fit the blob.
    #[error("the trailer does not fit the blob")]
    Trailer,
}

/// A property list.
#[derive(Debug)]
pub struct Bplist<'b> {
    /// The objects: everything before the table of offsets.
    objects: &'b [u8],
    table: &'b [u8],
    offset_size: usize,
    reference_size: usize,
    root: usize,
    steps: Cell<u32>,
}

/// An object of a list.
#[derive(Debug, Clone, Copy)]
pub struct Node<'p, 'b> {
    list: &'p Bplist<'b>,
    object: Object<'b>,
    depth: u16,
}

#[derive(Debug, Clone, Copy)]
enum Object<'b> {
    Bool(bool),
    Integer(i64),
    /// Reals, and dates, which are seconds since 2001.
    Real(f64),
    Data(&'b [u8]),
    Ascii(&'b [u8]),
    Utf16(&'b [u8]),
    Uid(u64),
    /// References.
    Array(&'b [u8]),
    /// References of the keys, then of the values.
    Map(&'b [u8], &'b [u8]),
}

/// A big-endian number of 1 to 8 bytes.
fn big_endian(bytes: &[u8]) -> Option<u64> {
    (1..=8)
        .contains(&bytes.len())
        .then(|| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn position(bytes: &[u8]) -> Option<usize> {
    usize::try_from(big_endian(bytes)?).ok()
}

impl<'b> Bplist<'b> {
    /// Looks at the trailer; nothing else is read yet.
    pub fn parse(blob: &'b [u8]) -> Result<Self, BplistError> {
        if blob.len() > BLOB_BYTES_MAX {
            return Err(BplistError::TooLong);
        }
        if !blob.starts_with(MAGIC) {
            return Err(BplistError::NotBplist);
        }
        Self::trailer(blob).ok_or(BplistError::Trailer)
    }

    fn trailer(blob: &'b [u8]) -> Option<Self> {
        let (body, trailer) = blob.split_at_checked(blob.len().checked_sub(TRAILER_BYTES)?)?;
        let offset_size = usize::from(*trailer.get(6)?);
        let reference_size = usize::from(*trailer.get(7)?);
        let count = position(trailer.get(8..16)?)?;
        let root = position(trailer.get(16..24)?)?;
        let begins = position(trailer.get(24..32)?)?;
        let sizes = 1..=8;
        if !sizes.contains(&offset_size) || !sizes.contains(&reference_size) || root >= count {
            return None;
        }
        let (objects, table) = body.split_at_checked(begins)?;
        let table = table.get(..count.checked_mul(offset_size)?)?;
        Some(Self {
            objects,
            table,
            offset_size,
            reference_size,
            root,
            steps: Cell::new(STEPS_MAX),
        })
    }

    /// The root; none when it is of no kind that we know.
    pub fn root(&self) -> Option<Node<'_, 'b>> {
        self.node(self.root, 0)
    }

    /// How many steps were taken, for those who check that there is a bound.
    pub fn steps(&self) -> u32 {
        STEPS_MAX - self.steps.get()
    }

    fn spend(&self, steps: usize) -> Option<()> {
        self.steps.set(self.steps.get().checked_sub(u32::try_from(steps).ok()?)?);
        Some(())
    }

    fn node(&self, number: usize, depth: u16) -> Option<Node<'_, 'b>> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.spend(1)?;
        let object = self.object(number)?;
        Some(Node { list: self, object, depth })
    }

    fn object(&self, number: usize) -> Option<Object<'b>> {
        let at = number.checked_mul(self.offset_size)?;
        let offset = position(self.table.get(at..at.checked_add(self.offset_size)?)?)?;
        let (marker, rest) = self.objects.get(offset..)?.split_first()?;
        let low = usize::from(marker & 0x0f);
        Some(match marker >> 4 {
            0x0 => match low {
                0x8 => Object::Bool(false),
                0x9 => Object::Bool(true),
                _ => return None,
            },
            0x1 => Object::Integer(integer(rest, low)?),
            0x2 => Object::Real(real(rest, low)?),
            0x3 => Object::Real(real(rest, 3)?),
            0x4 => {
                let (count, rest) = count(rest, low)?;
                Object::Data(rest.get(..count)?)
            }
            0x5 => {
                let (count, rest) = count(rest, low)?;
                Object::Ascii(rest.get(..count)?)
            }
            0x6 => {
                let (count, rest) = count(rest, low)?;
                Object::Utf16(rest.get(..count.checked_mul(2)?)?)
            }
            0x8 => Object::Uid(big_endian(rest.get(..low + 1)?)?),
            0xa | 0xc => {
                let (count, rest) = count(rest, low)?;
                Object::Array(rest.get(..count.checked_mul(self.reference_size)?)?)
            }
            0xd => {
                let (count, rest) = count(rest, low)?;
                let length = count.checked_mul(self.reference_size)?;
                let (keys, rest) = rest.split_at_checked(length)?;
                Object::Map(keys, rest.get(..length)?)
            }
            _ => return None,
        })
    }
}

/// An integer of 1, 2, 4, 8 or 16 bytes. Those below eight bytes are unsigned; of sixteen the lower
/// half is taken, which holds everything that Apple writes.
fn integer(bytes: &[u8], exponent: usize) -> Option<i64> {
    match exponent {
        0..=2 => i64::try_from(big_endian(bytes.get(..1 << exponent)?)?).ok(),
        3 => Some(big_endian(bytes.get(..8)?)?.cast_signed()),
        4 => Some(big_endian(bytes.get(8..16)?)?.cast_signed()),
        _ => None,
    }
}

fn real(bytes: &[u8], exponent: usize) -> Option<f64> {
    match exponent {
        2 => Some(f64::from(f32::from_be_bytes(*bytes.first_chunk()?))),
        3 => Some(f64::from_be_bytes(*bytes.first_chunk()?)),
        _ => None,
    }
}

/// The count in a marker, or in the integer that follows it.
fn count(bytes: &[u8], low: usize) -> Option<(usize, &[u8])> {
    if low != 0x0f {
        return Some((low, bytes));
    }
    let (marker, rest) = bytes.split_first()?;
    if marker >> 4 != 0x1 {
        return None;
    }
    let exponent = usize::from(marker & 0x0f);
    let length = usize::try_from(integer(rest, exponent)?).ok()?;
    Some((length, rest.get(1_usize.checked_shl(u32::try_from(exponent).ok()?)?..)?))
}

impl<'p, 'b> Node<'p, 'b> {
    fn child(&self, reference: &[u8]) -> Option<Self> {
        self.list.node(position(reference)?, self.depth.saturating_add(1))
    }

    /// The value of a key of a dictionary.
    pub fn get(&self, key: &str) -> Option<Self> {
        let Object::Map(keys, values) = self.object else { return None };
        let size = self.list.reference_size;
        let at = keys
            .chunks_exact(size)
            .position(|reference| self.child(reference).is_some_and(|name| name.is_text(key)))?;
        self.child(values.chunks_exact(size).nth(at)?)
    }

    /// Keys and values of a dictionary, in its order; nothing for other kinds.
    pub fn entries(self) -> impl Iterator<Item = (Self, Self)> + use<'p, 'b> {
        let (keys, values): (&[u8], &[u8]) = match self.object {
            Object::Map(keys, values) => (keys, values),
            Object::Bool(_)
            | Object::Integer(_)
            | Object::Real(_)
            | Object::Data(_)
            | Object::Ascii(_)
            | Object::Utf16(_)
            | Object::Uid(_)
            | Object::Array(_) => (&[], &[]),
        };
        let size = self.list.reference_size;
        keys.chunks_exact(size)
            .zip(values.chunks_exact(size))
            .map_while(move |(key, value)| Some((self.child(key)?, self.child(value)?)))
    }

    /// The members of an array; nothing for other kinds.
    pub fn items(self) -> impl Iterator<Item = Self> + use<'p, 'b> {
        self.references()
            .chunks_exact(self.list.reference_size)
            .map_while(move |reference| self.child(reference))
    }

    /// How many members an array has; none for other kinds.
    pub fn len(&self) -> usize {
        self.references().len() / self.list.reference_size
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One member of an array.
    pub fn item(&self, index: usize) -> Option<Self> {
        self.child(self.references().chunks_exact(self.list.reference_size).nth(index)?)
    }

    fn references(&self) -> &'b [u8] {
        match self.object {
            Object::Array(references) => references,
            Object::Bool(_)
            | Object::Integer(_)
            | Object::Real(_)
            | Object::Data(_)
            | Object::Ascii(_)
            | Object::Utf16(_)
            | Object::Uid(_)
            | Object::Map(..) => &[],
        }
    }

    /// Whether it is this text, without copying it.
    pub fn is_text(&self, text: &str) -> bool {
        match self.object {
            Object::Ascii(bytes) => bytes == text.as_bytes(),
            Object::Utf16(bytes) => utf16(bytes).eq(text.encode_utf16()),
            Object::Bool(_)
            | Object::Integer(_)
            | Object::Real(_)
            | Object::Data(_)
            | Object::Uid(_)
            | Object::Array(_)
            | Object::Map(..) => false,
        }
    }

    /// A string; none as well when no steps are left to copy it.
    pub fn text(&self) -> Option<String> {
        match self.object {
            Object::Ascii(bytes) => {
                self.list.spend(bytes.len() / STEP_BYTES)?;
                Some(String::from_utf8_lossy(bytes).into_owned())
            }
            Object::Utf16(bytes) => {
                self.list.spend(bytes.len() / STEP_BYTES)?;
                let chars = char::decode_utf16(utf16(bytes));
                Some(chars.map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
            }
            Object::Bool(_)
            | Object::Integer(_)
            | Object::Real(_)
            | Object::Data(_)
            | Object::Uid(_)
            | Object::Array(_)
            | Object::Map(..) => None,
        }
    }

    /// An integer.
    pub fn integer(&self) -> Option<i64> {
        if let Object::Integer(number) = self.object { Some(number) } else { None }
    }

    /// A real, a date (seconds since 2001) or a small integer.
    pub fn real(&self) -> Option<f64> {
        match self.object {
            Object::Real(number) => Some(number),
            Object::Integer(number) => i32::try_from(number).ok().map(f64::from),
            Object::Bool(_)
            | Object::Data(_)
            | Object::Ascii(_)
            | Object::Utf16(_)
            | Object::Uid(_)
            | Object::Array(_)
            | Object::Map(..) => None,
        }
    }

    /// A boolean.
    pub fn boolean(&self) -> Option<bool> {
        if let Object::Bool(flag) = self.object { Some(flag) } else { None }
    }

    /// Bytes.
    pub fn data(&self) -> Option<&'b [u8]> {
        if let Object::Data(bytes) = self.object { Some(bytes) } else { None }
    }

    /// A reference of a keyed archive: a number in its own table.
    pub fn uid(&self) -> Option<usize> {
        if let Object::Uid(number) = self.object { usize::try_from(number).ok() } else { None }
    }
}

fn utf16(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_be_bytes(*unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A list of these objects, with one byte for offsets (two where they do not fit) and references.
    pub(crate) fn list(objects: &[&[u8]], root: u8) -> Vec<u8> {
        let mut blob = MAGIC.to_vec();
        let mut offsets = Vec::new();
        for object in objects {
            offsets.push(u16::try_from(blob.len()).unwrap());
            blob.extend_from_slice(object);
        }
        let table = u64::try_from(blob.len()).unwrap();
        blob.extend(offsets.iter().flat_map(|offset| offset.to_be_bytes()));
        blob.extend([0, 0, 0, 0, 0, 0, 2, 1]);
        blob.extend(u64::try_from(objects.len()).unwrap().to_be_bytes());
        blob.extend(u64::from(root).to_be_bytes());
        blob.extend(table.to_be_bytes());
        blob
    }

    #[test]
    fn every_kind_is_read() {
        let objects: &[&[u8]] = &[
            b"\xd4\x01\x02\x03\x04\x05\x06\x07\x08",
            b"\x51a",
            b"\x62\x00\xe9\xd8\x3d",
            b"\x51c",
            b"\x51d",
            b"\x10\xff",
            b"\x23\x40\x09\x21\xfb\x54\x44\x2d\x18",
            b"\xa3\x09\x0a\x0b",
            b"\x42hi",
            b"\x09",
            b"\x81\x01\x02",
            b"\x13\xff\xff\xff\xff\xff\xff\xff\xfe",
        ];
        let blob = list(objects, 0);
        let plist = Bplist::parse(&blob).unwrap();
        let root = plist.root().unwrap();
        assert_eq!(root.get("a").unwrap().integer(), Some(255));
        assert_eq!(root.get("a").unwrap().real(), Some(255.0));
        assert!((root.get("é\u{fffd}").map_or(0.0, |pi| pi.real().unwrap())).abs() < f64::EPSILON);
        let pi = root.entries().nth(1).unwrap();
        assert_eq!(pi.0.text().unwrap(), "é\u{fffd}", "half a surrogate pair is replaced");
        assert!((pi.1.real().unwrap() - std::f64::consts::PI).abs() < 1e-9);
        let array = root.get("c").unwrap();
        assert_eq!(array.item(0).unwrap().boolean(), Some(true));
        assert_eq!(array.item(1).unwrap().uid(), Some(258));
        assert_eq!(array.items().nth(2).unwrap().integer(), Some(-2));
        assert_eq!(array.items().count(), 3);
        assert_eq!(root.get("d").unwrap().data(), Some(&b"hi"[..]));
        assert!(root.get("e").is_none() && root.item(0).is_none() && array.get("a").is_none());
    }

    fn walk(node: Node<'_, '_>) -> u64 {
        1 + node.items().map(walk).sum::<u64>()
    }

    #[test]
    fn what_is_shared_a_billion_times_is_looked_at_a_bounded_number_of_times() {
        // Forty arrays, each naming the next one twice: 2^40 nodes for whoever expands them.
        let objects: Vec<Vec<u8>> =
            (0..40_u8).map(|at| vec![0xa2, at + 1, at + 1]).chain([b"\x51x".to_vec()]).collect();
        let borrowed: Vec<&[u8]> = objects.iter().map(Vec::as_slice).collect();
        let blob = list(&borrowed, 0);
        assert!(blob.len() < 400);
        let plist = Bplist::parse(&blob).unwrap();
        assert!(walk(plist.root().unwrap()) <= u64::from(STEPS_MAX));
    }

    #[test]
    fn a_list_that_holds_itself_ends_at_the_depth() {
        let blob = list(&[b"\xa1\x00"], 0);
        let plist = Bplist::parse(&blob).unwrap();
        let mut node = plist.root().unwrap();
        let mut depth = 0;
        while let Some(next) = node.item(0) {
            node = next;
            depth += 1;
        }
        assert_eq!(depth, DEPTH_MAX);
    }

    #[test]
    fn steps_are_given_up_to_the_bound_and_not_one_more() {
        let blob = list(&[b"\xa1\x01", b"\x09"], 0);
        let plist = Bplist::parse(&blob).unwrap();
        let root = plist.root().unwrap();
        let mut looks = 1;
        while root.item(0).is_some() {
            looks += 1;
        }
        assert_eq!(looks, STEPS_MAX);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(Bplist::parse(b"").unwrap_err(), BplistError::NotBplist);
        assert_eq!(Bplist::parse(b"bplist00").unwrap_err(), BplistError::Trailer);
        let long = vec![0; BLOB_BYTES_MAX + 1];
        assert_eq!(Bplist::parse(&long).unwrap_err(), BplistError::TooLong);
        let good = list(&[b"\x09"], 0);
        assert!(Bplist::parse(&good).is_ok());
        assert_eq!(Bplist::parse(&list(&[b"\x09"], 1)).unwrap_err(), BplistError::Trailer);
        for cut in 8..good.len() {
            let cut = Bplist::parse(&good[..cut]);
            assert!(cut.is_err(), "{cut:?}");
        }
    }

    fn look_at_everything(blob: &[u8]) {
        let Ok(plist) = Bplist::parse(blob) else { return };
        let mut open: Vec<Node<'_, '_>> = plist.root().into_iter().collect();
        while let Some(node) = open.pop() {
            std::hint::black_box((node.text(), node.integer(), node.real(), node.data()));
            std::hint::black_box((node.get("ec").is_some(), node.item(1).is_some(), node.uid()));
            std::hint::black_box(node.boolean());
            open.extend(node.items());
            open.extend(node.entries().flat_map(|(key, value)| [key, value]));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            look_at_everything(&bytes);
            let mut blob = MAGIC.to_vec();
            blob.extend(&bytes);
            look_at_everything(&blob);
        }

        #[test]
        fn no_damaged_list_makes_it_panic(at in any::<prop::sample::Index>(), byte: u8) {
            let objects: &[&[u8]] =
                &[b"\xd2\x01\x02\x03\x04", b"\x51a", b"\x5f\x10\x0311c", b"\xa2\x00\x01", b"\x63\0a\0b\0c"];
            let mut blob = list(objects, 0);
            let at = at.index(blob.len());
            blob[at] = byte;
            look_at_everything(&blob);
        }
    }
}
