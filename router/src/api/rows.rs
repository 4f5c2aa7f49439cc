//! Rows of recipients out of a body that comes bit by bit: CSV, lines of JSON, or a JSON array. Pure: bytes in, rows out,
//! however they are cut. What is kept between two pieces is one row, of bounded length; a row that is longer, or that
//! cannot be read, is a fault of its own and says its line, and the next one begins behind it.

use std::collections::BTreeMap;

use csv_core::{ReadRecordResult, Reader};
use protocol::limits::TEMPLATE_VARIABLES_MAX;
use serde_json::Value;

use super::body;
use super::fields::escaped;
use crate::error::Code;

/// Longest row in bytes: 50 variables of 1,000 characters of ASCII and their names fit.
const ROW_BYTES_MAX: usize = 64 * 1024;
/// Most columns of CSV: the recipient and every variable.
const COLUMNS_MAX: usize = TEMPLATE_VARIABLES_MAX + 1;
/// The column, and the field, of the recipient.
const TO: &str = "to";

/// How the rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A header with `to` and the names of variables, then a line a row.
    Csv,
    /// An object a line.
    Lines,
    /// An array of objects.
    Array,
}

impl Format {
    /// By the media type of a body.
    pub(super) fn of(content_type: &str) -> Option<Self> {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        match media_type.to_ascii_lowercase().as_str() {
            "text/csv" => Some(Self::Csv),
            "application/x-ndjson" | "application/jsonl" => Some(Self::Lines),
            "application/json" => Some(Self::Array),
            _ => None,
        }
    }
}

/// One row as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Its line, from 1; in a JSON array its number, from 1.
    pub(super) line: u64,
    /// What stands in it, or why that cannot be said.
    pub(super) read: Result<Cells, Fault>,
}

/// What stands in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cells {
    pub(super) to: String,
    pub(super) variables: BTreeMap<String, String>,
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The field, such as `to` or `variables/name`; empty for the row as a whole.
    pub(super) field: String,
    pub(super) code: &'static str,
    pub(super) detail: String,
}

impl Fault {
    pub(super) fn new(
        field: impl Into<String>,
        code: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), code, detail: detail.into() }
    }
}

fn too_long() -> Fault {
    let detail = format!("The row has more than {ROW_BYTES_MAX} bytes; is a quote left open?");
    Fault::new("", "too_long", detail)
}

/// The body as a whole cannot be read from here on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(String);

/// Reads rows. Feed it until the body ends, then [`Rows::finish`].
#[derive(Debug)]
pub(super) enum Rows {
    Csv(Box<Csv>),
    Lines(Lines),
    Array(Array),
}

impl Rows {
    pub(super) fn new(format: Format) -> Self {
        match format {
            Format::Csv => Self::Csv(Box::new(Csv::new())),
            Format::Lines => Self::Lines(Lines { line: 1, row: Bounded::default() }),
            Format::Array => {
                Self::Array(Array { place: Place::Before, number: 0, row: Bounded::default() })
            }
        }
    }

    /// Takes a piece of the body; rows that are whole with it go to `out`.
    pub(super) fn feed(&mut self, bytes: &[u8], out: &mut Vec<Row>) -> Result<(), Broken> {
        match self {
            Self::Csv(csv) => csv.feed(bytes, out),
            Self::Lines(lines) => {
                lines.feed(bytes, out);
                Ok(())
            }
            Self::Array(array) => array.feed(bytes, out),
        }
    }

    /// The body has come to its end.
    pub(super) fn finish(&mut self, out: &mut Vec<Row>) -> Result<(), Broken> {
        match self {
            Self::Csv(csv) => csv.finish(out),
            Self::Lines(lines) => {
                lines.end(out);
                Ok(())
            }
            Self::Array(array) if array.place == Place::Behind => Ok(()),
            Self::Array(array) => {
                Err(Broken(format!("The array ends too early, behind {} rows.", array.number)))
            }
        }
    }
}

/// Bytes of one row, no more than a row may have.
#[derive(Debug, Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_over: bool,
}

impl Bounded {
    fn push(&mut self, byte: u8) {
        if self.bytes.len() < ROW_BYTES_MAX {
            self.bytes.push(byte);
        } else {
            self.is_over = true;
        }
    }

    /// What the row says, and room for the next one.
    fn take(&mut self) -> Result<Cells, Fault> {
        let read = if self.is_over { Err(too_long()) } else { cells(&self.bytes) };
        self.bytes.clear();
        self.is_over = false;
        read
    }
}

/// Reads `{"to": …, "variables": {…}}`.
fn cells(bytes: &[u8]) -> Result<Cells, Fault> {
    let value = body::parse(bytes).map_err(|error| match (error.code(), error.first()) {
        (Code::InvalidRequest, Some(repeated)) => {
            let field = repeated.pointer.trim_start_matches('/');
            Fault::new(field, "repeated", "It is given twice.")
        }
        _ => Fault::new("", "malformed_json", "The row is not JSON."),
    })?;
    let wrong = |field: &str, detail: &'static str| Fault::new(field, "wrong_type", detail);
    let Value::Object(mut fields) = value else {
        return Err(wrong("", "The row must be an object."));
    };
    let to = match fields.remove(TO) {
        Some(Value::String(to)) => to,
        None | Some(Value::Null) => return Err(Fault::new(TO, "required", "It is required.")),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            return Err(wrong(TO, "It must be a string."));
        }
    };
    let mut variables = BTreeMap::new();
    match fields.remove("variables") {
        None | Some(Value::Null) => {}
        Some(Value::Object(map)) => {
            for (name, value) in map {
                let Value::String(text) = value else {
                    let field = format!("variables/{}", escaped(&shown(&name)));
                    return Err(wrong(&field, "It must be a string."));
                };
                variables.insert(name, text);
            }
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            return Err(wrong("variables", "It must be an object of strings."));
        }
    }
    if let Some(name) = fields.keys().next() {
        let field = escaped(&shown(name));
        return Err(Fault::new(field, "unknown_field", "There is no such field."));
    }
    Ok(Cells { to, variables })
}

/// A name, as much of it as is repeated to whoever wrote it.
fn shown(name: &str) -> String {
    name.chars().take(100).collect()
}

/// An object a line.
#[derive(Debug)]
pub(super) struct Lines {
    line: u64,
    row: Bounded,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<Row>) {
        for byte in bytes {
            if *byte == b'\n' {
                self.end(out);
                self.line += 1;
            } else {
                self.row.push(*byte);
            }
        }
    }

    fn end(&mut self, out: &mut Vec<Row>) {
        if self.line == 1 && self.row.bytes.starts_with(b"\xef\xbb\xbf") {
            self.row.bytes.drain(..3);
        }
        if self.row.is_over || !self.row.bytes.trim_ascii().is_empty() {
            out.push(Row { line: self.line, read: self.row.take() });
        }
        self.row.bytes.clear();
    }
}

/// Where in an array the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    /// Behind the bracket: a row or the end.
    First,
    /// Behind a comma: a row.
    Next,
    /// In a row.
    Row {
        depth: u32,
        text: Text,
    },
    /// Behind a row: a comma or the end.
    After,
    Behind,
}

/// Whether brackets and commas are text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Outside,
    Inside,
    Escaped,
}

/// An array of objects.
#[derive(Debug)]
pub(super) struct Array {
    place: Place,
    number: u64,
    row: Bounded,
}

impl Array {
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<Row>) -> Result<(), Broken> {
        for byte in bytes {
            self.place = self.step(*byte, out)?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8, out: &mut Vec<Row>) -> Result<Place, Broken> {
        let white = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match self.place {
            Place::Row { depth, text } => Ok(self.within(byte, (depth, text), out)),
            place if white => Ok(place),
            Place::Before if byte == b'[' => Ok(Place::First),
            Place::First | Place::After if byte == b']' => Ok(Place::Behind),
            Place::After if byte == b',' => Ok(Place::Next),
            Place::First | Place::Next if byte == b'{' => {
                self.number += 1;
                self.row.push(byte);
                Ok(Place::Row { depth: 1, text: Text::Outside })
            }
            Place::Before => Err(Broken("The body must be a JSON array of rows.".to_owned())),
            Place::First | Place::Next | Place::After | Place::Behind => Err(Broken(format!(
                "Behind {} rows stands neither an object nor the end of the array.",
                self.number
            ))),
        }
    }

    fn within(&mut self, byte: u8, (depth, text): (u32, Text), out: &mut Vec<Row>) -> Place {
        self.row.push(byte);
        let (depth, text) = match (text, byte) {
            (Text::Escaped, _) | (Text::Inside, 0x00..=0x21 | 0x23..=0x5b | 0x5d..=0xff) => {
                (depth, Text::Inside)
            }
            (Text::Inside, b'\\') => (depth, Text::Escaped),
            (Text::Outside, b'"') => (depth, Text::Inside),
            (Text::Outside, b'{' | b'[') => (depth.saturating_add(1), Text::Outside),
            (Text::Outside, b'}' | b']') => (depth.saturating_sub(1), Text::Outside),
            (Text::Inside, b'"') | (Text::Outside, _) => (depth, Text::Outside),
        };
        if depth > 0 {
            return Place::Row { depth, text };
        }
        out.push(Row { line: self.number, read: self.row.take() });
        Place::After
    }
}

/// A header and a line a row.
#[derive(Debug)]
pub(super) struct Csv {
    reader: Reader,
    /// Names of the columns, once the header was read, and which of them is the recipient.
    header: Option<(Vec<String>, usize)>,
    /// What has been read of the row: its bytes without quotes, and where its cells end.
    bytes: Vec<u8>,
    bytes_used: usize,
    ends: Vec<usize>,
    ends_used: usize,
    is_over: bool,
    /// Ends of lines so far, and the line on which the row began; none between two rows.
    newlines: u64,
    began: Option<u64>,
}

impl Csv {
    fn new() -> Self {
        Self {
            reader: Reader::new(),
            header: None,
            bytes: vec![0; ROW_BYTES_MAX],
            bytes_used: 0,
            // One more, so that one column too many is seen.
            ends: vec![0; COLUMNS_MAX + 1],
            ends_used: 0,
            is_over: false,
            newlines: 0,
            began: None,
        }
    }

    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<Row>) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let read = self.step(bytes, out)?;
            bytes = bytes.get(read..).unwrap_or_default();
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<Row>) -> Result<(), Broken> {
        // No input says that there is no more; the last row may lack its newline.
        self.step(&[], out)?;
        if self.header.is_none() {
            return Err(Broken("The body is empty: the first line must be a header.".to_owned()));
        }
        Ok(())
    }

    fn step(&mut self, bytes: &[u8], out: &mut Vec<Row>) -> Result<usize, Broken> {
        // Empty lines, and the second half of a line's end, belong to no row.
        if let (None, Some(end @ (b'\r' | b'\n'))) = (self.began, bytes.first()) {
            self.newlines += u64::from(*end == b'\n');
            return Ok(1);
        }
        let line = *self.began.get_or_insert(self.newlines + 1);
        let room = self.bytes.get_mut(self.bytes_used..).unwrap_or_default();
        let ends = self.ends.get_mut(self.ends_used..).unwrap_or_default();
        let (result, read, written, ended) = self.reader.read_record(bytes, room, ends);
        self.bytes_used += written;
        self.ends_used += ended;
        let ends = bytes.iter().take(read).filter(|byte| **byte == b'\n');
        self.newlines += u64::try_from(ends.count()).unwrap_or(0);
        match result {
            ReadRecordResult::InputEmpty | ReadRecordResult::End => {}
            // What is too long is read to its end and not kept.
            ReadRecordResult::OutputFull => {
                self.is_over = true;
                self.bytes_used = 0;
            }
            ReadRecordResult::OutputEndsFull => {
                self.is_over = true;
                self.ends_used = 0;
            }
            ReadRecordResult::Record => {
                let is_over = std::mem::take(&mut self.is_over);
                self.began = None;
                let (written, ended) = (self.bytes_used, self.ends_used);
                (self.bytes_used, self.ends_used) = (0, 0);
                self.record(line, is_over, (written, ended), out)?;
            }
        }
        Ok(read)
    }

    fn record(
        &mut self,
        line: u64,
        is_over: bool,
        (written, ended): (usize, usize),
        out: &mut Vec<Row>,
    ) -> Result<(), Broken> {
        let bytes = self.bytes.get(..written).unwrap_or_default();
        let ends = self.ends.get(..ended).unwrap_or_default();
        let Some((names, to)) = &self.header else {
            self.header = Some(header(is_over, bytes, ends)?);
            return Ok(());
        };
        let read = if is_over { Err(too_long()) } else { row(names, *to, bytes, ends) };
        out.push(Row { line, read });
        Ok(())
    }
}

/// The cells of a record, in text; `None` where they are not UTF-8.
fn texts<'a>(bytes: &'a [u8], ends: &[usize]) -> Option<Vec<&'a str>> {
    let mut from = 0;
    let mut cells = Vec::with_capacity(ends.len());
    for end in ends {
        cells.push(std::str::from_utf8(bytes.get(from..*end)?).ok()?);
        from = *end;
    }
    Some(cells)
}

fn header(is_over: bool, bytes: &[u8], ends: &[usize]) -> Result<(Vec<String>, usize), Broken> {
    let found = texts(bytes, ends).filter(|names| !is_over && names.len() <= COLUMNS_MAX);
    let Some(names) = found else {
        return Err(Broken(format!(
            "The first line must be a header in UTF-8 of at most {COLUMNS_MAX} columns."
        )));
    };
    let names: Vec<String> = names.into_iter().map(|name| name.trim().to_owned()).collect();
    let Some(to) = names.iter().position(|name| name == TO) else {
        let found: Vec<String> = names.iter().map(|name| shown(name)).collect();
        return Err(Broken(format!(
            "The header has no column `to`; it has {}. Columns are separated by commas.",
            found.join(", ")
        )));
    };
    let twice = names
        .iter()
        .enumerate()
        .find(|(at, name)| names.iter().take(*at).any(|other| other == *name));
    if let Some((_, name)) = twice {
        return Err(Broken(format!("The header has the column {} twice.", shown(name))));
    }
    Ok((names, to))
}

fn row(names: &[String], to: usize, bytes: &[u8], ends: &[usize]) -> Result<Cells, Fault> {
    if ends.len() != names.len() {
        let detail = format!("It has {} columns; the header has {}.", ends.len(), names.len());
        return Err(Fault::new("", "wrong_columns", detail));
    }
    let Some(cells) = texts(bytes, ends) else {
        return Err(Fault::new("", "not_utf8", "The row is not UTF-8."));
    };
    let recipient = cells.get(to).map(|cell| cell.trim()).unwrap_or_default();
    if recipient.is_empty() {
        return Err(Fault::new(TO, "required", "It is required."));
    }
    // A cell without anything in it is a variable that is not given.
    let given = names
        .iter()
        .zip(&cells)
        .enumerate()
        .filter(|(at, (_, cell))| *at != to && !cell.is_empty());
    let variables = given.map(|(_, (name, cell))| (name.clone(), (*cell).to_owned())).collect();
    Ok(Cells { to: recipient.to_owned(), variables })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Told = Vec<(u64, Result<String, (String, &'static str)>)>;

    /// Line, and recipient with variables or field and code, of every row; read in pieces of so many bytes.
    fn read(format: Format, body: &[u8], piece: usize) -> Result<Told, Broken> {
        let (mut rows, mut out) = (Rows::new(format), Vec::new());
        for piece in body.chunks(piece.max(1)) {
            rows.feed(piece, &mut out)?;
        }
        rows.finish(&mut out)?;
        Ok(out
            .into_iter()
            .map(|row| {
                let told = row.read.map(|cells| {
                    let given =
                        cells.variables.iter().map(|(name, value)| format!(" {name}={value}"));
                    let variables = given.collect::<Vec<_>>().concat();
                    format!("{}{variables}", cells.to)
                });
                (row.line, told.map_err(|fault| (fault.field, fault.code)))
            })
            .collect())
    }

    fn good(line: u64, told: &str) -> (u64, Result<String, (String, &'static str)>) {
        (line, Ok(told.to_owned()))
    }

    fn bad(
        line: u64,
        field: &str,
        code: &'static str,
    ) -> (u64, Result<String, (String, &'static str)>) {
        (line, Err((field.to_owned(), code)))
    }

    #[test]
    fn csv_is_read_with_its_quotes_its_gaps_and_its_faults() {
        let body = "\u{feff}name, to ,note\r\nAnna,+1,\"a \"\"b\"\"\nc\"\r\n\r\nBert,+2,\n,+3,x\nCarl,,x\nDora,+4\nEmil,+5,a,b\nlast,+6,é";
        let told = read(Format::Csv, body.as_bytes(), usize::MAX).unwrap();
        assert_eq!(
            told,
            [
                good(2, "+1 name=Anna note=a \"b\"\nc"),
                good(5, "+2 name=Bert"),
                good(6, "+3 note=x"),
                bad(7, "to", "required"),
                bad(8, "", "wrong_columns"),
                bad(9, "", "wrong_columns"),
                good(10, "+6 name=last note=é"),
            ]
        );
        assert_eq!(
            read(Format::Csv, b"to\n\xff\n+1\n", 1).unwrap(),
            [bad(2, "", "not_utf8"), good(3, "+1")]
        );
        assert_eq!(read(Format::Csv, b"to", 1).unwrap(), []);
    }

    #[test]
    fn a_header_that_cannot_be_used_is_told() {
        for (body, told) in [
            ("", "is empty"),
            ("\n\n", "is empty"),
            ("a;to;b\n1;2;3\n", "it has a;to;b."),
            ("phone,name\n", "it has phone, name."),
            ("to,a,a\n", "column a twice"),
            (&"a,".repeat(100), "at most 51 columns"),
            (&format!("to,\"{}", "x".repeat(200_000)), "at most 51 columns"),
        ] {
            let Broken(words) = read(Format::Csv, body.as_bytes(), 7).unwrap_err();
            assert!(words.contains(told), "{words}");
        }
    }

    #[test]
    fn a_row_without_end_is_one_fault_and_no_memory() {
        let long = format!("to,a\n+1,\"{}\n+2,b\n", "x\n".repeat(100_000));
        assert_eq!(read(Format::Csv, long.as_bytes(), 4_096).unwrap(), [bad(2, "", "too_long")]);
        let long = format!("{{\"to\": \"{}\"}}\n{{\"to\": \"+1\"}}", "x".repeat(100_000));
        let told = read(Format::Lines, long.as_bytes(), 4_096).unwrap();
        assert_eq!(told, [bad(1, "", "too_long"), good(2, "+1")]);
        let long = format!("[{{\"to\": \"{}\"}}, {{\"to\": \"+1\"}}]", "}\\\"".repeat(50_000));
        let told = read(Format::Array, long.as_bytes(), 4_096).unwrap();
        assert_eq!(told, [bad(1, "", "too_long"), good(2, "+1")]);
    }

    #[test]
    fn objects_are_read_from_lines_and_arrays_alike() {
        let objects = [
            r#"{"to": "+1", "variables": {"a": "}],{\"", "b": ""}}"#,
            r#"{"to": 1}"#,
            r#"{"to": null}"#,
            r#"{"to": "+1", "variables": {"x/y": 1}}"#,
            r#"{"to": "+1", "variables": []}"#,
            r#"{"to": "+1", "text": "a"}"#,
            r#"{"to": "+1", "to": "+2"}"#,
            r#"{"to": "+1",}"#,
        ];
        let expected = [
            good(1, "+1 a=}],{\" b="),
            bad(2, "to", "wrong_type"),
            bad(3, "to", "required"),
            bad(4, "variables/x~1y", "wrong_type"),
            bad(5, "variables", "wrong_type"),
            bad(6, "text", "unknown_field"),
            bad(7, "to", "repeated"),
            bad(8, "", "malformed_json"),
        ];
        let lines = objects.join("\r\n");
        let array = format!(" [ {} ] ", objects.join(" , \n"));
        for piece in [1, 3, usize::MAX] {
            assert_eq!(read(Format::Lines, lines.as_bytes(), piece).unwrap(), expected);
            assert_eq!(read(Format::Array, array.as_bytes(), piece).unwrap(), expected);
        }
        let blank = "\u{feff}{\"to\": \"+1\"}\n\n  \nx\n[]";
        let told = read(Format::Lines, blank.as_bytes(), 2).unwrap();
        assert_eq!(told, [good(1, "+1"), bad(4, "", "malformed_json"), bad(5, "", "wrong_type")]);
        assert_eq!(read(Format::Array, b"[]", 1).unwrap(), []);
    }

    #[test]
    fn an_array_that_is_none_is_told_by_place() {
        for (body, told) in [
            ("", "ends too early, behind 0 rows"),
            ("{}", "must be a JSON array"),
            ("[{\"to\": \"+1\"}", "ends too early, behind 1 rows"),
            ("[{\"to\": \"+1\"", "ends too early"),
            ("[{} {}]", "Behind 1 rows"),
            ("[{},]", "Behind 1 rows"),
            ("[,{}]", "Behind 0 rows"),
            ("[1]", "Behind 0 rows"),
            ("[] x", "Behind 0 rows"),
        ] {
            let Broken(words) = read(Format::Array, body.as_bytes(), 1).unwrap_err();
            assert!(words.contains(told), "{body}: {words}");
        }
    }

    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..80),
            "to,a\n([+0-9a\",\r\n]{0,8}\n){0,6}".prop_map(String::into_bytes),
            "\\[?(\\{\"to\": ?\"[+0-9\\\\\"}{]{0,4}\"\\}[,\n ]?){0,4}\\]?"
                .prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn however_a_body_is_cut_it_says_the_same(body in bodies(), piece in 1_usize..9) {
            for format in [Format::Csv, Format::Lines, Format::Array] {
                prop_assert_eq!(read(format, &body, piece), read(format, &body, usize::MAX), "{:?}", format);
            }
        }

        #[test]
        fn csv_is_read_as_the_library_for_whole_files_reads_it(
            cells in proptest::collection::vec(("[+0-9]{1,4}", "[a-z \",\r\n]{0,6}"), 0..6),
            piece in 1_usize..9,
        ) {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(["to", "a"]).unwrap();
            for (to, value) in &cells {
                writer.write_record([to, value]).unwrap();
            }
            let told = read(Format::Csv, &writer.into_inner().unwrap(), piece).unwrap();
            let told: Vec<String> = told.into_iter().map(|(_, told)| told.unwrap()).collect();
            let given = cells.iter().map(|(to, value)| {
                if value.is_empty() { to.clone() } else { format!("{to} a={value}") }
            });
            prop_assert_eq!(told, given.collect::<Vec<_>>());
        }
    }
}
