//! Real blobs decode right, corrupt ones are errors, and nothing panics or takes long.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed assumption fails the test"
)]

use std::path::{Path, PathBuf};

use crate::archive::{Value, archive};
use bridge::typedstream::{
    Attribute, Attributed, BLOB_BYTES_MAX, FILE_TRANSFER_GUID, LINK, MENTION, MESSAGE_PART,
    Problem, decode, decode_text,
};
use data_encoding::BASE64;
use proptest::prelude::*;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn blob(name: &str) -> Vec<u8> {
    std::fs::read(data().join("typedstream").join(name)).unwrap()
}

fn good_blobs() -> Vec<Vec<u8>> {
    let mut blobs: Vec<_> = [
        "closed-rings-1.bin",
        "closed-rings-2.bin",
        "completed-workout-1.bin",
        "completed-workout-2.bin",
        "regular-text.bin",
        "tweet.bin",
        "user-mention.bin",
    ]
    .map(blob)
    .into();
    blobs.extend(row_bodies().into_iter().map(|(_, body)| body));
    blobs
}

/// The bodies in the rows of JSON, with the file they are in.
fn row_bodies() -> Vec<(String, Vec<u8>)> {
    let mut bodies = Vec::new();
    for entry in std::fs::read_dir(data().join("messages-rows")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let rows: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        if let Some(body) = rows[0]["attributedBody"].as_str() {
            let body = BASE64.decode(body.strip_prefix("data:;base64,").unwrap().as_bytes());
            bodies.push((path.file_stem().unwrap().display().to_string(), body.unwrap()));
        }
    }
    assert_eq!(bodies.len(), 5, "rows with a body");
    bodies
}

/// Runs as (UTF-16 from, to, names and short forms of the values).
type Shape = (usize, usize, Vec<String>);

fn shape(decoded: &Attributed) -> Vec<Shape> {
    let short = |value: &Attribute| match value {
        Attribute::Text(text) => format!("{text:?}"),
        Attribute::Integer(number) => number.to_string(),
        Attribute::Float(number) => format!("{number:?}"),
        Attribute::Url(url) => format!("<{url}>"),
        Attribute::Data(data) => format!("{} bytes", data.len()),
        Attribute::Other(class) => class.clone(),
    };
    decoded
        .runs
        .iter()
        .map(|run| {
            let attributes =
                run.attributes.iter().map(|(key, value)| format!("{key}={}", short(value)));
            (run.utf16.start, run.utf16.end, attributes.collect())
        })
        .collect()
}

const RINGS: &str =
    "$(kIMTranscriptPluginBreadcrumbTextReceiverIdentifier) closed all three Activity rings.";
const WORKOUT: &str = "$(kIMTranscriptPluginBreadcrumbTextReceiverIdentifier) completed a workout.";
const TWEET: &str = "https://twitter.com/chrismessina/status/1423827232510812167";

#[test]
fn real_blobs_decode_to_their_text_and_runs() {
    let flags = "__kIMBreadcrumbTextOptionFlags=0".to_owned();
    let part = |n: i64| format!("{MESSAGE_PART}={n}");
    let breadcrumb = |text: &str| {
        vec![
            (0, 2, vec!["__kIMBaseWritingDirectionAttributeName=-1".to_owned(), part(0)]),
            (
                2,
                3,
                vec![
                    "__kIMBaseWritingDirectionAttributeName=-1".to_owned(),
                    format!("__kIMBreadcrumbTextMarkerAttributeName={text:?}"),
                    flags.clone(),
                ],
            ),
        ]
    };
    let cases: Vec<(&str, &str, Vec<Shape>)> = vec![
        ("closed-rings-1.bin", RINGS, vec![(0, 87, vec![flags.clone()])]),
        ("closed-rings-2.bin", "\u{1f4aa}\u{fffd}", breadcrumb(RINGS)),
        ("completed-workout-1.bin", WORKOUT, vec![(0, 75, vec![flags.clone()])]),
        ("completed-workout-2.bin", "\u{1f4a5}\u{fffd}", breadcrumb(WORKOUT)),
        ("regular-text.bin", "Haha yeah 😃", vec![(0, 12, vec![part(0)])]),
        (
            "tweet.bin",
            TWEET,
            vec![(
                0,
                59,
                vec![
                    "__kIMDataDetectedAttributeName=607 bytes".to_owned(),
                    part(0),
                    format!("{LINK}=<{TWEET}>"),
                ],
            )],
        ),
        (
            "user-mention.bin",
            "foo Kunal foo",
            vec![
                (0, 4, vec![part(0)]),
                (4, 9, vec![format!("{MENTION}=\"user00@test.test\""), part(0)]),
                (9, 13, vec![part(0)]),
            ],
        ),
    ];
    for (name, text, runs) in cases {
        let decoded = decode(&blob(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(decoded.text, text, "{name}");
        assert_eq!(shape(&decoded), runs, "{name}");
        assert_eq!(decode_text(&blob(name)).unwrap(), text, "{name}");
    }
}

#[test]
fn the_mention_is_the_text_of_its_run() {
    let decoded = decode(&blob("user-mention.bin")).unwrap();
    let mentions: Vec<_> = decoded
        .runs
        .iter()
        .filter(|run| run.get(MENTION).is_some())
        .map(|run| decoded.text_of(run))
        .collect();
    assert_eq!(mentions, ["Kunal"]);
}

#[test]
fn a_corrupt_blob_is_an_error_at_a_byte() {
    let error = decode(&blob("crashing.bin")).unwrap_err();
    assert_eq!((error.at, error.problem), (15, Problem::Reference), "{error}");
    assert_eq!(error.salvaged, None);
    assert!(decode_text(&blob("crashing.bin")).is_err());
}

#[test]
fn bodies_of_real_rows_decode() {
    for (name, body) in row_bodies() {
        let decoded = decode(&body).unwrap_or_else(|error| panic!("{name}: {error}"));
        let rows: serde_json::Value = serde_json::from_slice(
            &std::fs::read(data().join("messages-rows").join(format!("{name}.json"))).unwrap(),
        )
        .unwrap();
        if let Some(text) = rows[0]["text"].as_str() {
            assert_eq!(decoded.text, text, "{name}");
        }
        let guids: Vec<_> = rows[1]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|file| file["attachmentID"].as_str())
            .collect();
        assert_eq!(decoded.transfer_guids().collect::<Vec<_>>(), guids, "{name}");
        let end = decoded.runs.last().unwrap().utf16.end;
        assert_eq!(end, decoded.text.encode_utf16().count(), "{name}: runs cover the text");
    }
    let text = |wanted: &str| {
        let bodies = row_bodies();
        let (_, body) = bodies.iter().find(|(name, _)| name == wanted).unwrap();
        decode_text(body).unwrap()
    };
    assert_eq!(text("fixture1"), "\u{fffc}1\u{fffc}2");
    assert_eq!(text("partial_trailing_unsends"), "a");
}

#[test]
fn a_blob_cut_anywhere_is_an_error_and_never_another_text() {
    for blob in good_blobs() {
        let text = decode(&blob).unwrap().text;
        for length in 0..blob.len() {
            let cut = &blob[..length];
            let error = decode(cut).expect_err("a cut blob is not whole");
            assert!(error.at <= length, "{error}");
            if let Some(salvaged) = error.salvaged {
                assert_eq!(salvaged, text);
            }
            if let Ok(decoded) = decode_text(cut) {
                assert_eq!(decoded, text);
            }
        }
    }
}

#[test]
fn the_writer_of_these_tests_writes_as_apple_does() {
    let runs: &[(usize, &[_])] = &[(12, &[(MESSAGE_PART, Value::Number(0))])];
    assert_eq!(archive("Haha yeah 😃", runs), blob("regular-text.bin"));
}

#[test]
fn lengths_of_every_size_are_read() {
    for length in [0, 1, 127, 128, 255, 256, 40_000, 65_535, 65_536, 200_000] {
        let text = "x".repeat(length);
        let runs: &[(usize, &[_])] = &[(length, &[(MESSAGE_PART, Value::Number(1000))])];
        let decoded = decode(&archive(&text, runs)).unwrap();
        assert_eq!(decoded.text.len(), length);
        assert_eq!(decoded.runs[0].utf16, 0..length);
        assert_eq!(decoded.runs[0].get(MESSAGE_PART).unwrap().as_integer(), Some(1000));
    }
}

#[test]
fn a_big_endian_stream_is_read() {
    // NSString "hé" as a PowerPC Mac archived it, with a two-byte length to show the order.
    let mut blob = b"\x04\x0btypedstream\x81\x03\xe8\x84\x01@\x84\x84\x84\x08NSString\x01\x85\x84\x01+\x81\x00\x03h".to_vec();
    blob.extend_from_slice("é".as_bytes());
    blob.push(0x86);
    assert_eq!(decode(&blob).unwrap(), Attributed { text: "hé".to_owned(), runs: vec![] });
}

#[test]
fn what_is_not_understood_is_said_with_its_place() {
    let good = blob("regular-text.bin");
    let at = |place: usize, byte: u8| {
        let mut blob = good.clone();
        blob[place] = byte;
        let error = decode(&blob).unwrap_err();
        (error.at, error.problem)
    };
    assert_eq!(at(0, 3), (13, Problem::Version(3)));
    assert_eq!(at(2, b'S'), (13, Problem::NotTypedstream));
    // The reference to NSObject becomes one to something that is not a class.
    assert_eq!(at(0x45, 0x92).1, Problem::Reference);
    // The reference to NSObject becomes one to nothing.
    assert_eq!(at(0x45, 0xf0).1, Problem::Reference);
    assert_eq!(at(0x48, b'?').1, Problem::TypeEncoding(b'?'));
    // A run longer than the text: the text is whole all the same.
    let mut long = good.clone();
    long[0x5e] = 13;
    let error = decode(&long).unwrap_err();
    assert_eq!(error.problem, Problem::Run);
    assert_eq!(error.salvaged.as_deref(), Some("Haha yeah 😃"));
    // A run that ends inside the surrogate pair.
    long[0x5e] = 11;
    assert_eq!(decode(&long).unwrap_err().problem, Problem::Run);
    // Not UTF-8.
    let mut latin = good.clone();
    latin[0x4a] = 0xe9;
    assert_eq!(decode(&latin).unwrap_err().problem, Problem::NotUtf8);
    assert!(decode(&latin).unwrap_err().salvaged.unwrap().contains("yeah"));
    assert_eq!(decode(b"").unwrap_err().problem, Problem::Truncated);
    assert_eq!(decode(&vec![0; BLOB_BYTES_MAX + 1]).unwrap_err().problem, Problem::TooLong);
}

/// Header, then a root object of class `NSString` whose first values have these types.
fn hostile(types: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut blob =
        b"\x04\x0bstreamtyped\x81\xe8\x03\x84\x01@\x84\x84\x84\x08NSString\x01\x85\x84".to_vec();
    blob.push(0x81);
    blob.extend_from_slice(&u16::try_from(types.len()).unwrap().to_le_bytes());
    blob.extend_from_slice(types);
    blob.extend_from_slice(rest);
    blob
}

#[test]
fn hostile_blobs_take_bounded_work() {
    let deep_objects = {
        // Objects in objects, each of the class of the first.
        let mut blob = hostile(b"@", b"");
        for _ in 0..100_000 {
            blob.extend_from_slice(b"\x84\x93\x93");
        }
        blob
    };
    let many_objects = hostile(b"@", &b"\x84\x93\x86\x93".repeat(500_000));
    let many_classes = {
        let mut blob = b"\x04\x0bstreamtyped\x81\xe8\x03\x84\x01@\x84".to_vec();
        blob.extend_from_slice(&b"\x84\x84\x01A\x00".repeat(100_000));
        blob
    };
    let cases = [
        ("nested objects", deep_objects),
        ("objects side by side", many_objects),
        ("superclasses", many_classes),
        ("a huge array of nothing", hostile(b"[99999999999999!]", b"\x86")),
        ("arrays in arrays", hostile(&b"[9999".repeat(40), b"\x86")),
        ("arrays in arrays of nothing", hostile(b"[9999[9999[9999[9999!]]]]", b"\x86")),
        ("structures in structures", hostile(&b"{a=".repeat(80), b"\x86")),
        ("a long type string", hostile(&b"i".repeat(60_000), &b"\0".repeat(60_000))),
        ("a length beyond the end", hostile(b"+", b"\x82\xff\xff\xff\xff")),
        ("a negative count", hostile(b"[-1c]", b"\x86")),
    ];
    for (what, blob) in cases {
        assert!(decode(&blob).is_err(), "{what}");
        // Counts the steps, and that they stay below their bound.
        bridge::fuzzing::typedstream(&blob);
    }
    // One long value named by many sets of attributes must not be copied out for each of them.
    let long = "y".repeat(1 << 20);
    let attributes = [(LINK, Value::Text(&long))];
    let mut blob = archive(&"x".repeat(60_000), &[(1, attributes.as_slice())]);
    blob.pop();
    for number in 2_u16..30_000 {
        // `iI` is name 5, `@` name 0; the dictionary is object 5, counted from 0x92.
        blob.extend_from_slice(&[0x97, 0x81]);
        blob.extend_from_slice(&number.to_le_bytes());
        blob.extend_from_slice(&[1, 0x92, 0x97]);
    }
    blob.push(0x86);
    assert_eq!(decode(&blob).unwrap_err().problem, Problem::TooMany);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(decode(&bytes).is_err());
        let mut blob = b"\x04\x0bstreamtyped\x81\xe8\x03\x84\x01@\x84\x84\x84".to_vec();
        blob.extend_from_slice(&bytes);
        drop(decode(&blob));
        drop(decode_text(&blob));
    }

    #[test]
    fn mutated_blobs_never_panic(
        which in 0_usize..12,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut blob = good_blobs()[which].clone();
        for (place, byte) in changes {
            let place = place.index(blob.len());
            blob[place] = byte;
        }
        if let Ok(decoded) = decode(&blob) {
            for run in &decoded.runs {
                prop_assert!(decoded.text.get(run.bytes.clone()).is_some());
                prop_assert_eq!(decoded.text_of(run).encode_utf16().count(), run.utf16.len());
            }
        }
        drop(decode_text(&blob));
    }

    #[test]
    fn what_is_written_reads_back(
        parts in proptest::collection::vec("\\PC{0,20}", 1..5),
        number in -200_000_i64..200_000,
    ) {
        let text: String = parts.concat();
        let attributes = [(MESSAGE_PART, Value::Number(number)), (FILE_TRANSFER_GUID, Value::Text("at_0_X"))];
        let runs: Vec<_> =
            parts.iter().map(|part| (part.encode_utf16().count(), attributes.as_slice())).collect();
        let blob = archive(&text, &runs);
        let decoded = decode(&blob).unwrap();
        prop_assert_eq!(&decoded.text, &text);
        prop_assert_eq!(decode_text(&blob).unwrap(), text);
        let read: Vec<_> = decoded.runs.iter().map(|run| decoded.text_of(run).to_owned()).collect();
        prop_assert_eq!(read, parts);
        for run in &decoded.runs {
            prop_assert_eq!(run.get(MESSAGE_PART).unwrap().as_integer(), Some(number));
        }
    }
}
