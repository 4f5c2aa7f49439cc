//! What must hold for any bytes at all, for fuzzers and for the tests that replay what they found.
//! Every function takes an input as a fuzzer makes it and panics when a property does not hold. Not
//! part of the API.

use std::fmt::Debug;

use serde::Serialize;

use crate::link::HostFrame;
use crate::pipe::{Event, Up};
use crate::wire::WireError;
use crate::{limits, link, pipe};

/// Lines of the pipe, in both directions.
pub fn pipe(bytes: &[u8]) {
    let Ok(line) = str::from_utf8(bytes) else { return };
    same_again(line, limits::LINE_BYTES_MAX, pipe::parse_command, |_| false);
    same_again(
        line,
        limits::LINE_BYTES_MAX,
        pipe::parse_up,
        |up| matches!(up, Up::Event(line) if matches!(line.event, Event::Other(_))),
    );
}

/// Frames of the link, in both directions.
pub fn link(bytes: &[u8]) {
    let Ok(frame) = str::from_utf8(bytes) else { return };
    same_again(
        frame,
        limits::FRAME_BYTES_MAX,
        link::parse_host,
        |frame| matches!(frame, HostFrame::Event(event) if matches!(event.event, Event::Other(_))),
    );
    same_again(frame, limits::FRAME_BYTES_MAX, link::parse_router, |_| false);
}

/// Longest error: a word of the sender, and the explanation of the JSON reader.
const ERROR_BYTES_MAX: usize = 1024;

/// What was understood says itself again in one line, and is understood as the same then. An event
/// that is merely kept (`is_kept`) may have been of a known type with a field twice: said again the
/// field stands there once, and the event is understood. From then on it stays the same.
fn same_again<T: Serialize + Debug + PartialEq>(
    line: &str,
    max: usize,
    parse: impl Fn(&str) -> Result<T, WireError>,
    is_kept: impl Fn(&T) -> bool,
) {
    let mut understood = match parse(line) {
        Ok(understood) => understood,
        Err(error) => {
            let said = error.to_string();
            assert!(said.len() <= ERROR_BYTES_MAX, "an error of {} bytes", said.len());
            return;
        }
    };
    assert!(line.len() <= max, "longer than its limit");
    let say = |what: &T| serde_json::to_string(what).expect("what was understood can be said");
    let mut said = say(&understood);
    if is_kept(&understood)
        && said.len() <= max
        && let Ok(again) = parse(&said)
    {
        said = say(&again);
        understood = again;
    }
    assert!(!said.contains('\n'), "two lines: {said:?}");
    // Defaults that were left out are said in full, which may be too long.
    if said.len() <= max {
        assert_eq!(parse(&said), Ok(understood), "another one comes back from {said}");
    }
}
