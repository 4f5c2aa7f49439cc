//! How fast bodies are decoded: `cargo bench -p bridge --bench typedstream`.

#[path = "../tests/it/archive.rs"]
mod archive;

use archive::{Value, archive};
use bridge::typedstream::{MENTION, MESSAGE_PART, decode, decode_text};
use divan::{Bencher, counter::BytesCount};

fn main() {
    divan::main();
}

/// What a message of so many characters looks like: a part number, and a mention every hundred
/// characters.
fn body(characters: usize) -> Vec<u8> {
    let part = [(MESSAGE_PART, Value::Number(0))];
    let mention = [(MENTION, Value::Text("anna@example.org")), (MESSAGE_PART, Value::Number(0))];
    let mut runs: Vec<(usize, &[(&str, Value<'_>)])> = Vec::new();
    let mut left = characters;
    while left > 100 {
        runs.push((95, &part));
        runs.push((5, &mention));
        left -= 100;
    }
    runs.push((left, &part));
    archive(&"x".repeat(characters), &runs)
}

const REAL: &[u8] = include_bytes!("../tests/data/typedstream/regular-text.bin");
const LINK: &[u8] = include_bytes!("../tests/data/typedstream/tweet.bin");

#[divan::bench]
fn a_short_message(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::of_slice(REAL)).bench(|| decode(divan::black_box(REAL)));
}

#[divan::bench]
fn a_short_message_text_only(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::of_slice(REAL)).bench(|| decode_text(divan::black_box(REAL)));
}

#[divan::bench]
fn a_link(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::of_slice(LINK)).bench(|| decode(divan::black_box(LINK)));
}

#[divan::bench(args = [100, 1_000, 20_000])]
fn a_message_of_so_many_characters(bencher: Bencher<'_, '_>, characters: usize) {
    let body = body(characters);
    bencher.counter(BytesCount::of_slice(&body)).bench(|| decode(divan::black_box(&body)));
}
