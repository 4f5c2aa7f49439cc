//! What fuzzers begin with, and what they have found, is replayed without a fuzzer. The folders are
//! in `fuzz/`; a new target has both before it has anything else.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failed assumption fails the test, and names the input that it failed at"
)]

use std::path::Path;

use bridge::fuzzing;

fn replay(target: &str, check: fn(&[u8])) {
    for kind in ["corpus", "regressions"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(kind).join(target);
        let mut inputs: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{} is empty", folder.display());
        inputs.sort();
        for input in inputs {
            // A failing check names no file: the last of these lines does.
            eprintln!("{}", input.display());
            check(&std::fs::read(&input).unwrap());
        }
    }
}

#[test]
fn bodies_keep_their_bounds() {
    replay("typedstream", fuzzing::typedstream);
}

#[test]
fn summaries_keep_their_bounds() {
    replay("summary", fuzzing::summary);
}

#[test]
fn payloads_keep_their_bounds() {
    replay("payload", fuzzing::payload);
}

#[test]
fn the_end_of_osascript_proves_no_more_than_it_may() {
    replay("osascript", fuzzing::osascript);
}
