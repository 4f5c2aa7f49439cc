//! The grammar of the stream: tags, compact numbers, back-references, type strings.

use std::cell::Cell;
use std::ops::Range;

use super::{
    BLOB_BYTES_MAX, Budget, DEPTH_MAX, INHERITANCE_MAX, LEAF_VALUES_MAX, OBJECTS_MAX, Problem,
    TYPES_BYTES_MAX,
};

/// A 16-bit number follows.
const TAG_TWO_BYTES: u8 = 0x81;
/// A 32-bit number follows.
const TAG_FOUR_BYTES: u8 = 0x82;
/// A float or double follows in full.
const TAG_FLOAT: u8 = 0x83;
/// Something that was not in the stream before follows.
const TAG_NEW: u8 = 0x84;
/// No object, class or string.
const TAG_NIL: u8 = 0x85;
/// The object's values end here.
const TAG_END: u8 = 0x86;
/// The first byte that is a back-reference (number 0); below are tags, of which 0x80 and 0x87 to
/// 0x91 are unused.
const FIRST_REFERENCE: u8 = 0x92;
/// What a text with a few runs has: room for as much is made at once.
const NAMES_USUAL: usize = 16;
const SLOTS_USUAL: usize = 32;
const VALUES_USUAL: usize = 48;
/// Of the header.
const STREAMER_VERSION: u8 = 4;

/// How far to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// To the end of the root object.
    End,
    /// To the end of the first string inside the root object.
    Text,
}

/// One value of an object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Integer(i64),
    Float(f64),
    /// A string of any kind, or an array of characters.
    Bytes(&'a [u8]),
    /// An object by its place in the arena; none for nil.
    Object(Option<usize>),
    /// A class, or a nil string: nothing that text is made of.
    Nothing,
}

/// What back-references of the object table point at.
#[derive(Debug)]
pub(super) enum Slot<'a> {
    /// The class is none until it has been read.
    Object {
        class: Option<usize>,
        /// Where its values stand in [`Arena::values`].
        values: Range<usize>,
    },
    Class {
        name: &'a [u8],
        superclass: Option<usize>,
    },
    CString(&'a [u8]),
}

/// All objects, classes and C strings of a stream, in the order of their back-reference numbers.
#[derive(Debug, Default)]
pub(super) struct Arena<'a> {
    pub(super) slots: Vec<Slot<'a>>,
    /// The values of all complete objects, those of one object side by side: one allocation for all.
    values: Vec<Value<'a>>,
    /// The first complete `NSString`: in an attributed string, its text.
    pub(super) first_text: Option<&'a [u8]>,
}

impl<'a> Arena<'a> {
    /// Class and values of an object.
    pub(super) fn object(&self, at: usize) -> Option<(usize, &[Value<'a>])> {
        match self.slots.get(at) {
            Some(Slot::Object { class: Some(class), values }) => {
                Some((*class, self.values.get(values.clone()).unwrap_or_default()))
            }
            Some(Slot::Object { class: None, .. } | Slot::Class { .. } | Slot::CString(_))
            | None => None,
        }
    }

    /// Whether the class or one of its superclasses has that name.
    pub(super) fn is_kind(&self, class: usize, wanted: &[u8]) -> bool {
        let mut next = Some(class);
        // A class may name itself as its superclass in a hostile blob: the walk is bounded.
        for _ in 0..INHERITANCE_MAX {
            match next.and_then(|at| self.slots.get(at)) {
                Some(Slot::Class { name, superclass }) => {
                    if *name == wanted {
                        return true;
                    }
                    next = *superclass;
                }
                Some(Slot::Object { .. } | Slot::CString(_)) | None => return false,
            }
        }
        false
    }

    /// The name of a class, for values that are only named.
    pub(super) fn class_name(&self, class: usize) -> &'a [u8] {
        match self.slots.get(class) {
            Some(Slot::Class { name, .. }) => name,
            Some(Slot::Object { .. } | Slot::CString(_)) | None => &[],
        }
    }

    /// The bytes of an `NSString`.
    pub(super) fn string_bytes(&self, at: usize) -> Option<&'a [u8]> {
        let (class, values) = self.object(at)?;
        if !self.is_kind(class, b"NSString") {
            return None;
        }
        values.iter().take(LEAF_VALUES_MAX).find_map(|value| match value {
            Value::Bytes(bytes) => Some(*bytes),
            Value::Integer(_) | Value::Float(_) | Value::Object(_) | Value::Nothing => None,
        })
    }
}

/// Memory that one blob after another is parsed in: made anew for each, it takes longer than parsing a
/// short text.
#[derive(Default)]
struct Scratch {
    slots: Vec<Slot<'static>>,
    values: Vec<Value<'static>>,
    names: Vec<&'static [u8]>,
    open: Vec<Value<'static>>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Most elements of a kind that are kept for the next blob: some kilobytes.
const KEPT_MAX: usize = 256;

/// The memory of one vector for another, whose elements differ in what they borrow from alone: nothing
/// is allocated.
fn emptied<T, U>(mut full: Vec<T>) -> Vec<U> {
    full.clear();
    if full.capacity() > KEPT_MAX {
        return Vec::new();
    }
    full.into_iter().filter_map(|_| None).collect()
}

impl Drop for Arena<'_> {
    fn drop(&mut self) {
        let kept = SCRATCH.take();
        let slots = emptied(std::mem::take(&mut self.slots));
        let values = emptied(std::mem::take(&mut self.values));
        SCRATCH.set(Scratch { slots, values, ..kept });
    }
}

impl Drop for Reader<'_, '_> {
    fn drop(&mut self) {
        let kept = SCRATCH.take();
        let names = emptied(std::mem::take(&mut self.names));
        let open = emptied(std::mem::take(&mut self.open));
        SCRATCH.set(Scratch { names, open, ..kept });
    }
}

type Parsed<T> = Result<T, Problem>;

struct Reader<'a, 'r> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
    until: Until,
    /// Set when [`Until::Text`] is reached; everything returns as fast as it can.
    done: bool,
    /// Type strings and class names, in the order of their back-reference numbers.
    names: Vec<&'a [u8]>,
    /// Values of the objects that are not complete, the innermost last.
    open: Vec<Value<'a>>,
    arena: &'r mut Arena<'a>,
    budget: &'r mut Budget,
}

/// Parses the stream into `arena` and gives the place of the root object, or offset and problem.
/// What was parsed before a problem stays in `arena`.
pub(super) fn parse<'a>(
    blob: &'a [u8],
    until: Until,
    arena: &mut Arena<'a>,
    budget: &mut Budget,
) -> Result<usize, (usize, Problem)> {
    if blob.len() > BLOB_BYTES_MAX {
        return Err((BLOB_BYTES_MAX, Problem::TooLong));
    }
    let scratch = SCRATCH.take();
    arena.slots = emptied(scratch.slots);
    arena.values = emptied(scratch.values);
    let (mut names, mut open) = (emptied(scratch.names), emptied(scratch.open));
    // A text with one run takes about so many.
    arena.slots.reserve(SLOTS_USUAL);
    arena.values.reserve(VALUES_USUAL);
    names.reserve(NAMES_USUAL);
    open.reserve(VALUES_USUAL);
    let mut reader = Reader {
        bytes: blob,
        at: 0,
        big_endian: false,
        until,
        done: false,
        names,
        open,
        arena,
        budget,
    };
    reader.root().map_err(|problem| (reader.at, problem))
}

impl<'a> Reader<'a, '_> {
    fn root(&mut self) -> Parsed<usize> {
        self.header()?;
        // The first typed value is the root; what NSArchiver writes after it (nothing, in practice)
        // is not ours.
        let tag = self.byte()?;
        let types = self.name(tag)?.ok_or(Problem::NotText)?;
        if types != b"@" {
            return Err(Problem::NotText);
        }
        self.object(0)?.ok_or(Problem::NotText)
    }

    fn header(&mut self) -> Parsed<()> {
        let version = self.byte()?;
        let length = self.byte()?;
        if length != 11 {
            return Err(Problem::NotTypedstream);
        }
        self.big_endian = match self.take(11)? {
            b"streamtyped" => false,
            b"typedstream" => true,
            _ => return Err(Problem::NotTypedstream),
        };
        if version != STREAMER_VERSION {
            return Err(Problem::Version(version));
        }
        // The version of the system that wrote it: 1000 on every Mac since 10.0.
        let tag = self.byte()?;
        self.integer(tag, false)?;
        Ok(())
    }

    fn byte(&mut self) -> Parsed<u8> {
        let byte = *self.bytes.get(self.at).ok_or(Problem::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, length: usize) -> Parsed<&'a [u8]> {
        let end = self.at.checked_add(length).ok_or(Problem::Truncated)?;
        let bytes = self.bytes.get(self.at..end).ok_or(Problem::Truncated)?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut bytes: [u8; N] = self.take(N)?.try_into().or(Err(Problem::Truncated))?;
        if self.big_endian {
            bytes.reverse();
        }
        Ok(bytes)
    }

    /// A compact number: one byte, or a tag and two or four bytes.
    fn integer(&mut self, tag: u8, signed: bool) -> Parsed<i64> {
        Ok(match tag {
            TAG_TWO_BYTES => {
                let bytes = self.array::<2>()?;
                if signed {
                    i16::from_le_bytes(bytes).into()
                } else {
                    u16::from_le_bytes(bytes).into()
                }
            }
            TAG_FOUR_BYTES => {
                let bytes = self.array::<4>()?;
                if signed {
                    i32::from_le_bytes(bytes).into()
                } else {
                    u32::from_le_bytes(bytes).into()
                }
            }
            0x80 | TAG_FLOAT..FIRST_REFERENCE => return Err(self.unexpected(tag)),
            small if signed => small.cast_signed().into(),
            small => small.into(),
        })
    }

    /// Length of a string: a compact number that is not negative.
    fn length(&mut self, tag: u8) -> Parsed<usize> {
        usize::try_from(self.integer(tag, false)?).or(Err(Problem::Length))
    }

    /// Steps back onto the tag that did not fit, so that the error points at it.
    fn unexpected(&mut self, tag: u8) -> Problem {
        self.at = self.at.saturating_sub(1);
        Problem::Tag(tag)
    }

    /// Number of a back-reference: compact, counted from [`FIRST_REFERENCE`].
    fn reference(&mut self, tag: u8) -> Parsed<usize> {
        let first = i64::from(FIRST_REFERENCE.cast_signed());
        let number = self.integer(tag, true)?;
        number.checked_sub(first).and_then(|n| usize::try_from(n).ok()).ok_or(Problem::Reference)
    }

    /// A type string or class name, new or known; none for nil.
    fn name(&mut self, tag: u8) -> Parsed<Option<&'a [u8]>> {
        match tag {
            TAG_NEW => {
                let tag = self.byte()?;
                let length = self.length(tag)?;
                let name = self.take(length)?;
                if self.names.len() >= OBJECTS_MAX {
                    return Err(Problem::TooMany);
                }
                self.names.push(name);
                Ok(Some(name))
            }
            TAG_NIL => Ok(None),
            tag => {
                let number = self.reference(tag)?;
                self.names.get(number).map(|name| Some(*name)).ok_or(Problem::Reference)
            }
        }
    }

    fn push(&mut self, slot: Slot<'a>) -> Parsed<usize> {
        if self.arena.slots.len() >= OBJECTS_MAX {
            return Err(Problem::TooMany);
        }
        self.arena.slots.push(slot);
        Ok(self.arena.slots.len() - 1)
    }

    /// An object, new or known; none for nil.
    fn object(&mut self, depth: usize) -> Parsed<Option<usize>> {
        let tag = self.byte()?;
        match tag {
            TAG_NIL => Ok(None),
            TAG_NEW => {
                if depth >= DEPTH_MAX {
                    return Err(Problem::TooDeep);
                }
                // An object takes its number before its class does.
                let place = self.push(Slot::Object { class: None, values: 0..0 })?;
                let class = self.class()?.ok_or(Problem::Reference)?;
                let first = self.open.len();
                self.contents(depth)?;
                if self.done {
                    return Ok(Some(place));
                }
                let start = self.arena.values.len();
                self.arena.values.extend(self.open.drain(first..));
                let values = start..self.arena.values.len();
                if let Some(slot) = self.arena.slots.get_mut(place) {
                    *slot = Slot::Object { class: Some(class), values };
                }
                if self.arena.first_text.is_none()
                    && let Some(text) = self.arena.string_bytes(place)
                {
                    self.arena.first_text = Some(text);
                    self.done = self.until == Until::Text;
                }
                Ok(Some(place))
            }
            tag => {
                let number = self.reference(tag)?;
                match self.arena.slots.get(number) {
                    Some(Slot::Object { .. }) => Ok(Some(number)),
                    Some(Slot::Class { .. } | Slot::CString(_)) | None => Err(Problem::Reference),
                }
            }
        }
    }

    /// Typed values up to the end tag.
    fn contents(&mut self, depth: usize) -> Parsed<()> {
        loop {
            let tag = self.byte()?;
            if tag == TAG_END {
                return Ok(());
            }
            let mut types = match self.name(tag)? {
                Some(types) if types.len() <= TYPES_BYTES_MAX => types,
                Some(_) => return Err(Problem::TooMany),
                None => return Err(self.unexpected(tag)),
            };
            while !types.is_empty() {
                self.value(&mut types, depth)?;
                if self.done {
                    return Ok(());
                }
            }
        }
    }

    /// A class with its superclasses, new or known; none for nil.
    fn class(&mut self) -> Parsed<Option<usize>> {
        let mut first = None;
        let mut child: Option<usize> = None;
        for _ in 0..INHERITANCE_MAX {
            let tag = self.byte()?;
            let (place, more) = match tag {
                TAG_NIL => (None, false),
                TAG_NEW => {
                    let tag = self.byte()?;
                    let name = self.name(tag)?.ok_or(Problem::Reference)?;
                    let tag = self.byte()?;
                    self.integer(tag, true)?;
                    (Some(self.push(Slot::Class { name, superclass: None })?), true)
                }
                tag => {
                    let number = self.reference(tag)?;
                    match self.arena.slots.get(number) {
                        Some(Slot::Class { .. }) => (Some(number), false),
                        Some(Slot::Object { .. } | Slot::CString(_)) | None => {
                            return Err(Problem::Reference);
                        }
                    }
                }
            };
            match child.and_then(|child| self.arena.slots.get_mut(child)) {
                Some(Slot::Class { superclass, .. }) => *superclass = place,
                Some(Slot::Object { .. } | Slot::CString(_)) | None => first = place,
            }
            if !more {
                return Ok(first);
            }
            child = place;
        }
        Err(Problem::TooDeep)
    }

    /// One value of the type that `types` begins with; `types` moves on behind it.
    fn value(&mut self, types: &mut &'a [u8], depth: usize) -> Parsed<()> {
        self.budget.spend(1)?;
        let Some((kind, rest)) = types.split_first() else { return Err(Problem::TypeEncoding(0)) };
        *types = rest;
        let value = match kind {
            b'c' => Value::Integer(self.byte()?.cast_signed().into()),
            b'C' | b'B' => Value::Integer(self.byte()?.into()),
            b's' | b'i' | b'l' | b'q' => {
                let tag = self.byte()?;
                Value::Integer(self.integer(tag, true)?)
            }
            b'S' | b'I' | b'L' | b'Q' => {
                let tag = self.byte()?;
                Value::Integer(self.integer(tag, false)?)
            }
            b'f' => match self.byte()? {
                TAG_FLOAT => Value::Float(f32::from_le_bytes(self.array()?).into()),
                tag => self.whole_float(tag)?,
            },
            b'd' => match self.byte()? {
                TAG_FLOAT => Value::Float(f64::from_le_bytes(self.array()?)),
                tag => self.whole_float(tag)?,
            },
            b'+' => {
                let tag = self.byte()?;
                let length = self.length(tag)?;
                Value::Bytes(self.take(length)?)
            }
            b'*' => self.c_string()?,
            b':' | b'%' => {
                let tag = self.byte()?;
                self.name(tag)?.map_or(Value::Nothing, Value::Bytes)
            }
            b'@' => Value::Object(self.object(depth + 1)?),
            b'#' => {
                self.class()?;
                Value::Nothing
            }
            b'!' => Value::Nothing,
            b'[' => return self.elements(types, depth),
            b'{' => return self.members(types, depth),
            other => return Err(Problem::TypeEncoding(*other)),
        };
        self.open.push(value);
        Ok(())
    }

    /// A float without a fraction is written as a compact number.
    fn whole_float(&mut self, tag: u8) -> Parsed<Value<'a>> {
        let number = self.integer(tag, true)?;
        Ok(i32::try_from(number).map_or(Value::Integer(number), |whole| Value::Float(whole.into())))
    }

    /// A C string: its bytes are a name of the name table, but it has a number in the object table
    /// as well.
    fn c_string(&mut self) -> Parsed<Value<'a>> {
        let tag = self.byte()?;
        match tag {
            TAG_NIL => Ok(Value::Nothing),
            TAG_NEW => {
                let tag = self.byte()?;
                let bytes = self.name(tag)?.ok_or(Problem::Reference)?;
                self.push(Slot::CString(bytes))?;
                Ok(Value::Bytes(bytes))
            }
            tag => {
                let number = self.reference(tag)?;
                match self.arena.slots.get(number) {
                    Some(Slot::CString(bytes)) => Ok(Value::Bytes(bytes)),
                    Some(Slot::Object { .. } | Slot::Class { .. }) | None => {
                        Err(Problem::Reference)
                    }
                }
            }
        }
    }

    /// `[607c]`: so many values of one type; characters are raw bytes.
    fn elements(&mut self, types: &mut &'a [u8], depth: usize) -> Parsed<()> {
        let digits = types.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, element) = types.split_at(digits);
        let count = str::from_utf8(number)
            .ok()
            .and_then(|number| number.parse::<usize>().ok())
            .ok_or(Problem::TypeEncoding(b'['))?;
        let length = type_length(element)?;
        self.budget.spend(digits.saturating_add(length))?;
        let (element, rest) = element.split_at_checked(length).ok_or(Problem::Truncated)?;
        let Some((b']', rest)) = rest.split_first() else {
            return Err(Problem::TypeEncoding(b'['));
        };
        *types = rest;
        if matches!(element, b"c" | b"C") {
            let bytes = self.take(count)?;
            self.open.push(Value::Bytes(bytes));
            return Ok(());
        }
        // Types nest in the type string itself, without an object in between.
        if depth >= DEPTH_MAX {
            return Err(Problem::TooDeep);
        }
        for _ in 0..count {
            let mut one = element;
            self.value(&mut one, depth + 1)?;
            if self.done {
                break;
            }
        }
        Ok(())
    }

    /// `{name=types}`: the values of the types.
    fn members(&mut self, types: &mut &'a [u8], depth: usize) -> Parsed<()> {
        let name =
            types.iter().position(|byte| *byte == b'=').ok_or(Problem::TypeEncoding(b'{'))?;
        self.budget.spend(name)?;
        let (_, mut inside) =
            types.split_at_checked(name + 1).ok_or(Problem::TypeEncoding(b'{'))?;
        // Types nest in the type string itself, without an object in between.
        if depth >= DEPTH_MAX {
            return Err(Problem::TooDeep);
        }
        loop {
            match inside.split_first() {
                None => return Err(Problem::TypeEncoding(b'{')),
                Some((b'}', rest)) => {
                    *types = rest;
                    return Ok(());
                }
                Some(_) => self.value(&mut inside, depth + 1)?,
            }
            if self.done {
                return Ok(());
            }
        }
    }
}

/// Length of the first type in a type string. Brackets are counted, so that it takes one pass
/// however deep they nest.
fn type_length(types: &[u8]) -> Parsed<usize> {
    let mut open = 0_usize;
    for (at, byte) in types.iter().enumerate() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.checked_sub(1).ok_or(Problem::TypeEncoding(*byte))?,
            _ => {}
        }
        if open == 0 {
            return Ok(at + 1);
        }
    }
    Err(Problem::TypeEncoding(b'['))
}
