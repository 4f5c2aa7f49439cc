//! Texts and files: runs, parts, drawn emoji, answers, effects, audio messages.

use sandbox::chatdb::kinds::attachment::{Attachment, Parts};
use sandbox::chatdb::kinds::text::{Animation, Mark, marked};
use sandbox::chatdb::kinds::{Effect, Row};
use serde_json::{Value, json};

use super::phone::{BERT, inbound, on_every_macos, own, received, sent, text, with};

const FOLDER: &str = "~/Library/Messages/Attachments/9b/11/X";

fn photo(name: &str) -> Attachment {
    Attachment::new(format!("{FOLDER}/{name}"), 42)
}

/// A file of 42 bytes that is here.
fn file(row: &Row, name: &str, (uti, mime): (&str, &str), part: u32, position: u32) -> Value {
    json!({
        "guid": format!("at_{part}_{}", row.guid),
        "name": name,
        "mime": mime,
        "uti": uti,
        "bytes": 42,
        "complete": true,
        "state": "complete",
        "path": format!("{FOLDER}/{name}"),
        "part": part,
        "position": position,
    })
}

const PNG: (&str, &str) = ("public.png", "image/png");

#[test]
fn a_text_is_told_with_its_subject() {
    on_every_macos(|phone| {
        let row = text("Grüße 😃").with("subject", "Lunch".to_owned());
        phone.tells(&row, received(&row, json!({ "text": "Grüße 😃", "subject": "Lunch" })));
        let row = own("and back");
        phone.tells(&row, sent(&row, json!({ "text": "and back" })));
    });
}

#[test]
fn what_is_said_about_stretches_is_told_in_characters() {
    let run = |start: u32, length: u32, kind: &str| json!({ "start": start, "length": length, "kind": kind });
    let valued = |start, length, kind, value: &str| {
        with(run(start, length, kind), json!({ "value": value }))
    };
    let cases = [
        (Mark::Mention(BERT.to_owned()), valued(2, 4, "mention", BERT)),
        (Mark::Link("https://x.test".to_owned()), valued(2, 4, "link", "https://x.test")),
        (Mark::OneTimeCode, valued(2, 4, "one_time_code", "4711")),
        (Mark::Detected, run(2, 4, "detected")),
        (Mark::Address, run(2, 4, "address")),
        (Mark::CalendarEvent, run(2, 4, "date")),
        (Mark::Money, run(2, 4, "money")),
        (Mark::Bold, run(2, 4, "bold")),
        (Mark::Italic, run(2, 4, "italic")),
        (Mark::Underline, run(2, 4, "underline")),
        (Mark::Strikethrough, run(2, 4, "strikethrough")),
        (Mark::Animated(Animation::Shake), valued(2, 4, "animation", "shake")),
    ];
    on_every_macos(|phone| {
        for (mark, expected) in &cases {
            let is_link = matches!(mark, Mark::Link(_));
            let row = inbound().body(marked("😃 4711 x", &[("4711", mark.clone())]));
            phone.write(&row);
            if is_link {
                // Its preview may follow.
                assert_eq!(phone.hear(), [Value::Null; 0]);
                phone.later(2_000);
            }
            phone.hears(&[received(&row, json!({ "text": "😃 4711 x", "runs": [expected] }))]);
        }
    });
}

#[test]
fn files_and_stretches_of_text_carry_the_numbers_of_their_parts() {
    on_every_macos(|phone| {
        let row = inbound();
        let parts = Parts::of(&row.guid)
            .text("first")
            .file(photo("a.png"))
            .attributed(&marked("ask Bert", &[("Bert", Mark::Mention(BERT.to_owned()))]))
            .file(photo("b.png"));
        let row = row.parts(parts);
        let expected = json!({
            "text": "firstask Bert",
            "attachments": [file(&row, "a.png", PNG, 1, 5), file(&row, "b.png", PNG, 3, 13)],
            "runs": [{ "start": 9, "length": 4, "kind": "mention", "value": BERT }],
            "parts": [
                { "part": 0, "start": 0, "length": 5 },
                { "part": 2, "start": 5, "length": 8 },
            ],
        });
        phone.tells(&row, received(&row, expected));

        let row = inbound();
        let parts = Parts::of(&row.guid).file(photo("c.png")).text("below");
        let row = row.parts(parts);
        let expected = json!({
            "text": "below",
            "attachments": [file(&row, "c.png", PNG, 0, 0)],
            "parts": [{ "part": 1, "start": 0, "length": 5 }],
        });
        phone.tells(&row, received(&row, expected));
    });
}

#[test]
fn texts_beside_each_other_are_parts_too() {
    on_every_macos(|phone| {
        let row = inbound();
        let parts = Parts::of(&row.guid).text("one").text("zwei");
        let row = row.parts(parts);
        let mut expected = json!({ "text": "onezwei" });
        // Before macOS 13 there is no count of parts, and nothing else says that there are two.
        if phone.is(13) {
            let stretches = json!([
                { "part": 0, "start": 0, "length": 3 },
                { "part": 1, "start": 3, "length": 4 },
            ]);
            expected = with(expected, json!({ "parts": stretches }));
        }
        phone.tells(&row, received(&row, expected));
    });
}

#[test]
fn a_drawn_emoji_is_a_file_in_the_part_of_its_text() {
    on_every_macos(|phone| {
        let drawn = photo("emoji.heic").showing("a fox in a hat");
        let row = inbound();
        let parts = Parts::of(&row.guid).text("look ").emoji(drawn.clone()).more_text(" nice");
        let row = row.parts(parts);
        let mut expected = file(&row, "emoji.heic", ("public.heic", "image/heic"), 0, 5);
        expected = with(expected, json!({ "guid": drawn.guid, "emoji_image": true }));
        // Before macOS 15 there is no column for what it shows.
        if phone.is(15) {
            expected = with(expected, json!({ "description": "a fox in a hat" }));
        }
        let expected = json!({ "text": "look  nice", "attachments": [expected] });
        phone.tells(&row, received(&row, expected));
    });
}

#[test]
fn an_answer_names_the_originator_and_its_part() {
    on_every_macos(|phone| {
        let first = text("question");
        phone.tells(&first, received(&first, json!({ "text": "question" })));
        let row = text("answer").replying_to(&first.guid, 2, 7, 3);
        let expected = json!({ "text": "answer", "reply_to": { "guid": first.guid, "part": 2 } });
        phone.tells(&row, received(&row, expected));
        // `reply_to_guid` names the message before in every row, and is no answer.
        let row = text("next");
        phone.tells(&row, received(&row, json!({ "text": "next" })));
    });
}

#[test]
fn effects_have_names() {
    let names = [
        "slam",
        "loud",
        "gentle",
        "invisible_ink",
        "echo",
        "spotlight",
        "balloons",
        "confetti",
        "heart",
        "lasers",
        "fireworks",
        "sparkles",
        "shooting_star",
    ];
    on_every_macos(|phone| {
        for (effect, name) in Effect::ALL.into_iter().zip(names) {
            let row = text("wow").with_effect(effect);
            phone.tells(&row, received(&row, json!({ "text": "wow", "effect": name })));
        }
        let id = "com.apple.messages.effect.CKTomorrowEffect";
        let row = text("wow").with("expressive_send_style_id", id.to_owned());
        phone.tells(&row, received(&row, json!({ "text": "wow", "effect": id })));
    });
}

#[test]
fn an_audio_message_is_told_with_what_was_said() {
    on_every_macos(|phone| {
        let row = inbound().audio(photo("Audio Message.caf"), "see you at noon");
        let recording =
            file(&row, "Audio Message.caf", ("com.apple.coreaudio-format", "audio/x-caf"), 0, 0);
        let expected = json!({
            "attachments": [recording],
            "audio": true,
            "transcription": "see you at noon",
        });
        phone.tells(&row, received(&row, expected));
    });
}

#[test]
fn whatever_others_put_into_a_message_it_fits_into_a_line() {
    // Control characters take six bytes of a line each.
    let bells = |count: usize| "\u{7}".repeat(count);
    on_every_macos(|phone| {
        let row = inbound().with("subject", bells(5_000));
        let mut parts = Parts::of(&row.guid);
        for n in 0..150 {
            let mention = Mark::Mention(bells(2_000));
            let word = format!("{n}{}", bells(700));
            parts = parts.attributed(&marked(&word, &[(&word, mention)]));
            let mut drawn = Attachment::new(format!("{FOLDER}/{}", bells(2_000)), 42);
            drawn.shows = Some(bells(1_000));
            parts = parts.file(drawn);
        }
        let row = row.parts(parts).with("is_audio_message", 1);
        phone.write(&row);
        let heard = phone.hear();
        let [told] = heard.as_slice() else { panic!("{}", heard.len()) };
        let bytes = serde_json::to_vec(told).unwrap().len();
        let most = protocol::limits::LINE_BYTES_MAX - 4_096;
        assert!((600_000..most).contains(&bytes), "{bytes}");
        let text = told["text"].as_str().unwrap();
        assert!(text.len() > 99_000, "the text goes before all else: {}", text.len());
        assert!(!told["attachments"].as_array().unwrap().is_empty());
        phone.hears(&[]);
    });
}

#[test]
fn a_file_that_is_not_here_yet_is_told_as_such_and_then_when_it_comes() {
    on_every_macos(|phone| {
        let row = inbound();
        let parts = Parts::of(&row.guid).file(photo("a.png").waiting());
        let row = row.parts(parts);
        let here = file(&row, "a.png", PNG, 0, 0);
        let waiting = with(here.clone(), json!({ "complete": false, "state": "pending" }));
        phone.tells(&row, received(&row, json!({ "attachments": [waiting] })));
        let guid = format!("at_0_{}", row.guid);
        phone
            .db
            .set_transfer(&guid, sandbox::chatdb::kinds::attachment::Transfer::Complete)
            .unwrap();
        let heard = phone.hear();
        let [change] = heard.as_slice() else { panic!("{heard:?}") };
        assert_eq!(change["type"], "attachment");
        assert_eq!(change["message"], row.guid);
        assert_eq!(change["attachment"], here);
        phone.hears(&[]);
    });
}
