//! What must hold for any bytes at all, for fuzzers and for the tests that replay what they found.
//! Every function takes an input as a fuzzer makes it and panics when a property does not hold. Not
//! part of the API.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use crate::typedstream::{Attribute, Attributed};
use crate::{bplist, osascript, payload, summary, typedstream};

/// U+FFFD is three bytes and may stand for a single one.
const LOSSY: usize = 3;

/// `attributedBody`: bounded work and output, runs that fit the text, and two readers that agree.
pub fn typedstream(bytes: &[u8]) {
    let (whole, steps) = typedstream::decode_counted(bytes);
    assert!(steps <= typedstream::STEPS_MAX, "{steps} steps");
    let (text, steps) = typedstream::decode_text_counted(bytes);
    assert!(steps <= typedstream::STEPS_MAX, "{steps} steps for the text");
    match (&whole, &text) {
        (Ok(decoded), _) => {
            attributed(decoded, bytes.len());
            assert!(
                decoded.runs.iter().all(|run| run.bytes.len() <= decoded.text.len()),
                "a run is longer than its text"
            );
        }
        (Err(error), _) => {
            assert!(error.at <= bytes.len(), "the error stands at byte {}", error.at);
            let salvaged = error.salvaged.as_ref().map_or(0, String::len);
            assert!(salvaged <= bytes.len() * LOSSY, "{salvaged} bytes were salvaged");
        }
    }
    match &text {
        Ok(text) => assert!(text.len() <= bytes.len(), "the text is longer than its blob"),
        Err(error) => assert!(error.at <= bytes.len(), "the error stands at byte {}", error.at),
    }
    // Whoever asks for the text alone sees what whoever asks for everything sees.
    if let (Err(whole), Ok(text)) = (&whole, &text) {
        assert_eq!(whole.salvaged.as_ref(), Some(text), "the salvaged text is another one");
    }
    std::hint::black_box(typedstream::is_notable(bytes));
}

fn attributed(decoded: &Attributed, input: usize) {
    assert!(decoded.text.len() <= input, "the text is longer than its blob");
    assert!(decoded.runs.len() <= typedstream::STEPS_MAX, "{} runs", decoded.runs.len());
    let (mut utf16, mut bytes) = (0, 0);
    let mut copied = 0_usize;
    let mut sets: Vec<&std::sync::Arc<[(typedstream::Name, Attribute)]>> = Vec::new();
    for run in &decoded.runs {
        assert_eq!((run.utf16.start, run.bytes.start), (utf16, bytes), "runs leave no gap");
        (utf16, bytes) = (run.utf16.end, run.bytes.end);
        let text = decoded.text.get(run.bytes.clone());
        let units = text.map(|text| text.encode_utf16().count());
        assert_eq!(units, Some(run.utf16.len()), "a run does not fit the text");
        if !sets.last().is_some_and(|last| std::sync::Arc::ptr_eq(last, &run.attributes)) {
            sets.push(&run.attributes);
        }
    }
    let mut addresses: Vec<_> = sets.iter().map(|set| (set.as_ptr().addr(), *set)).collect();
    addresses.sort_unstable_by_key(|(address, _)| *address);
    addresses.dedup_by_key(|(address, _)| *address);
    for (name, value) in addresses.iter().flat_map(|(_, set)| set.iter()) {
        copied += name.len();
        copied += match value {
            Attribute::Text(text) | Attribute::Url(text) => text.len(),
            Attribute::Data(bytes) => bytes.len(),
            // A class name that is no UTF-8 grows when it is shown.
            Attribute::Other(class) => class.len() / LOSSY,
            Attribute::Integer(_) | Attribute::Float(_) => 0,
        };
    }
    assert!(copied <= typedstream::ATTRIBUTE_BYTES_MAX, "{copied} bytes of attributes");
}

/// `message_summary_info`: bounded work, parts in order, histories with a before and an after.
pub fn summary(bytes: &[u8]) {
    everything(bytes);
    let Ok((found, work)) = summary::parse_counted(bytes) else { return };
    assert!(work.list <= bplist::STEPS_MAX, "{} steps", work.list);
    assert!(work.texts <= summary::WORK_MAX, "{} spent on texts", work.texts);
    assert!(found.edits.len() <= summary::PARTS_MAX, "{} parts", found.edits.len());
    assert!(found.retracted.len() <= summary::PARTS_MAX, "{} unsends", found.retracted.len());
    assert!(found.retracted.is_sorted_by(|a, b| a < b), "unsends are in order, once each");
    assert!(found.edits.is_sorted_by(|a, b| a.part < b.part), "parts are in order, once each");
    let versions = || found.edits.iter().flat_map(|edit| &edit.versions);
    for edit in &found.edits {
        let count = edit.versions.len();
        assert!((2..=summary::VERSIONS_MAX).contains(&count), "{count} versions");
    }
    let replaced = char::REPLACEMENT_CHARACTER.len_utf8() * versions().count();
    let copied: usize = versions().map(|version| version.text.len()).sum();
    assert!(copied <= LOSSY * summary::WORK_MAX + replaced, "{copied} bytes of texts");
}

/// Looks at every object of a property list in every way.
fn everything(bytes: &[u8]) {
    let Ok(list) = bplist::Bplist::parse(bytes) else { return };
    let mut copied = 0;
    let mut looks = 0_u32;
    let mut open: Vec<_> = list.root().into_iter().collect();
    while let Some(node) = open.pop() {
        looks += 1;
        copied += node.text().map_or(0, |text| text.len());
        std::hint::black_box((node.integer(), node.real(), node.boolean(), node.uid()));
        assert!(node.data().is_none_or(|data| data.len() <= bytes.len()), "data from nowhere");
        std::hint::black_box((node.get("ec").is_some(), node.item(1).is_some()));
        open.extend(node.items());
        open.extend(node.entries().flat_map(|(key, value)| [key, value]));
    }
    assert!(looks <= bplist::STEPS_MAX && list.steps() <= bplist::STEPS_MAX, "{looks} looks");
    // A text shorter than a step is free, but each was a look.
    let bound = LOSSY * (bplist::BLOB_BYTES_MAX + bplist::STEP_BYTES * 65_536);
    assert!(copied <= bound, "{copied} bytes of texts");
}

/// `payload_data`: bounded texts, and nothing said of what is no archive.
pub fn payload(bytes: &[u8]) {
    const ID: &str = "com.example.app";
    let app = payload::app(ID, bytes);
    let preview = payload::link_preview(bytes);
    assert_eq!(app.id, ID, "the id comes from its own column");
    let of_app = [app.name, app.caption, app.url];
    let of_preview = preview
        .map(|link| [Some(link.url), link.title, link.summary, link.site])
        .unwrap_or_default();
    for text in of_app.iter().chain(&of_preview).flatten() {
        assert!(!text.is_empty(), "an empty text is none");
        assert!(text.len() <= payload::TEXT_BYTES_MAX, "{} bytes", text.len());
        assert!(text.len() <= bytes.len() * LOSSY, "a text from nowhere");
    }
}

/// What osascript says at its end: the first four bytes are its wait status, of which a kernel fills
/// two, the next its output up to a zero byte, the rest its error output.
pub fn osascript(bytes: &[u8]) {
    let Some((status, rest)) = bytes.split_first_chunk::<4>() else { return };
    let status = ExitStatus::from_raw(i32::from_le_bytes(*status) & 0xffff);
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let (output, errors) = rest.split_at_checked(end).unwrap_or_default();
    osascript::check(status, output, &String::from_utf8_lossy(errors));
}
