//! Every kind of row, written by the sandbox with the schema of every macOS, is exactly its event.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed assumption fails the test"
)]

use bridge::chatdb::ChatDb;
use bridge::inbound::{Batch, Inbox, Patience, Told};
use protocol::UnixMs;
use rusqlite::types::Value as Sql;
use sandbox::chatdb::kinds::attachment::{Attachment, Parts};
use sandbox::chatdb::kinds::balloon::App;
use sandbox::chatdb::kinds::flag::{self, Filter};
use sandbox::chatdb::kinds::group::{GroupChange, group_event};
use sandbox::chatdb::kinds::reaction::{Reaction, Target, reaction};
use sandbox::chatdb::kinds::{Author, Effect, Row, RowService};
use sandbox::chatdb::{ChatDb as Written, Conversation, MacOs};
use sandbox::clock::AppleNs;
use sandbox::typedstream::{self, AttributedText, Value as Mark};
use serde_json::{Value, json};
use tempfile::TempDir;

const ANNA: &str = "+12025550101";
const BERT: &str = "+12025550102";
const OWN: &str = "+12025550100";
const GUID: &str = "2E7A3D5C-8A5B-4C07-9E0F-1B6F4C2D9A11";
const OTHER: &str = "9B1F0C22-6A53-4C6E-8E57-53B1D2F7A0C4";
/// 2026-11-22T12:00:00Z as Apple counts.
const NOON: AppleNs = AppleNs(817_041_600_000_000_000);
const AT: &str = "2026-11-22T12:00:00.000Z";

/// A Mac's chat.db, and what a bridge hears of it.
struct Mac {
    folder: TempDir,
    written: Written,
    read: ChatDb,
    inbox: Inbox,
    now: UnixMs,
}

impl Mac {
    fn new(macos: MacOs) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.db");
        let written = Written::open(&path, macos, OWN).unwrap();
        let read = ChatDb::open(path).unwrap();
        let inbox = Inbox::new(0, None, Patience::default());
        Self { folder, written, read, inbox, now: UnixMs(NOON.unix_ms() + 1_000) }
    }

    fn write(&mut self, row: &Row) {
        self.written.write_joined(row).unwrap();
    }

    /// What is new, and what has become of the rows read so far.
    fn hear(&mut self) -> Vec<Value> {
        let held = self.read.rows_by_ids(&self.inbox.held()).unwrap();
        let old: Vec<i64> = (1..=self.inbox.read_to()).collect();
        let changed = self.read.rows_by_ids(&old).unwrap();
        let rows = self.read.rows_after(self.inbox.read_to(), 1000).unwrap();
        let batch = Batch { held: &held, changed: &changed, ..Batch::of(&rows) };
        let heard = self.inbox.take(batch, self.now).heard.into_iter();
        heard
            .filter_map(|heard| match heard.told {
                Told::Event(event) => Some(serde_json::to_value(event).unwrap()),
                Told::Own(_) => None,
            })
            .collect()
    }

    /// After everything that is waited for has come or not.
    fn hear_later(&mut self) -> Vec<Value> {
        let mut heard = self.hear();
        self.now = self.now.plus_ms(bridge::inbound::HOLD_MS);
        heard.extend(self.hear());
        heard
    }

    /// What Messages writes into a row later.
    fn update(&self, guid: &str, column: &str, value: &Sql) {
        let connection = rusqlite::Connection::open(self.folder.path().join("chat.db")).unwrap();
        let sql = format!("UPDATE message SET {column} = ?1 WHERE guid = ?2");
        // Apple's triggers call functions that the sandbox's own connection has.
        connection.pragma_update(None, "recursive_triggers", false).unwrap();
        assert_eq!(connection.execute(&sql, rusqlite::params![value, guid]).unwrap(), 1);
    }
}

fn anna() -> Author {
    Author::Other(ANNA.to_owned())
}

fn direct() -> Conversation {
    Conversation::Direct(ANNA.to_owned())
}

fn group() -> Conversation {
    Conversation::Group {
        id: "chat831".to_owned(),
        members: vec![ANNA.to_owned(), BERT.to_owned()],
    }
}

fn text(text: &str) -> Row {
    Row::text(anna(), direct(), NOON, text).guid(GUID)
}

/// The event of a text from Anna, with these fields beside or instead.
fn received(text: &str, more: &Value) -> Value {
    let mut event = json!({
        "type": "received", "guid": GUID, "from": ANNA,
        "conversation": { "kind": "direct", "id": ANNA },
        "text": text, "service": "imessage", "at": AT, "late": false,
    });
    for (key, value) in more.as_object().unwrap() {
        event[key] = value.clone();
    }
    event
}

/// One row is one event, on every macOS.
fn is_told(what: &str, row: impl Fn(MacOs) -> Row, event: impl Fn(MacOs) -> Value) {
    for macos in MacOs::ALL {
        let mut mac = Mac::new(macos);
        mac.write(&row(macos));
        let heard = mac.hear_later();
        assert_eq!(heard, [event(macos)], "{what} on macOS {}", macos.number());
        assert_eq!(mac.hear_later(), Vec::<Value>::new(), "{what} is told once");
    }
}

#[test]
fn texts_of_every_service_are_told_with_it() {
    for (service, channel) in [
        (RowService::Imessage, "imessage"),
        (RowService::Sms, "sms"),
        (RowService::Rcs, "rcs"),
        (RowService::RcsLower, "rcs"),
    ] {
        is_told(
            service.as_str(),
            |_| text("hello").over(service),
            |_| received("hello", &json!({ "service": channel })),
        );
    }
    is_told(
        "a satellite's text",
        |_| text("hello").over(RowService::ImessageLite),
        |_| received("hello", &json!({ "satellite": true })),
    );
    is_told(
        "a downgraded text",
        |_| text("hello").downgraded(),
        |_| received("hello", &json!({ "service": "sms", "downgraded": true })),
    );
}

#[test]
fn replies_effects_and_filters_are_told_with_their_text() {
    is_told(
        "a reply",
        |_| text("yes").replying_to(OTHER, 2, 0, 3),
        |_| received("yes", &json!({ "reply_to": { "guid": OTHER, "part": 2 } })),
    );
    is_told(
        "an effect",
        |_| text("bang").with_effect(Effect::Slam),
        |_| received("bang", &json!({ "effect": "slam" })),
    );
    is_told(
        "spam",
        |_| text("win").filtered(Filter::Spam),
        |_| received("win", &json!({ "spam": true })),
    );
    is_told(
        "a one-time code in no chat",
        |_| text("code 123456").without_chat(),
        |_| received("code 123456", &json!({})),
    );
}

#[test]
fn every_reaction_is_told_with_its_target_and_part() {
    let kinds = [
        (Reaction::Love, "love"),
        (Reaction::Like, "like"),
        (Reaction::Dislike, "dislike"),
        (Reaction::Laugh, "laugh"),
        (Reaction::Emphasise, "emphasize"),
        (Reaction::Question, "question"),
        (Reaction::Emoji("🦊".to_owned()), "emoji"),
    ];
    for (made, word) in kinds {
        for added in [true, false] {
            let of = |macos: MacOs| {
                let mut event = json!({
                    "type": "reaction", "guid": GUID, "from": ANNA,
                    "conversation": { "kind": "direct", "id": ANNA },
                    "target": OTHER, "part": 2, "reaction": word, "removed": !added, "at": AT,
                });
                // macOS 14 and older have no column for it.
                if word == "emoji" && macos >= MacOs::Sequoia {
                    event["emoji"] = json!("🦊");
                }
                event
            };
            let target = Target::Part(2, OTHER.to_owned());
            let row =
                |_| reaction((anna(), direct(), NOON), &made, &target, "hi", added).guid(GUID);
            is_told(word, row, of);
        }
    }
    for (target, part) in [
        (Target::Bare(OTHER.to_owned()), 0),
        (Target::Balloon(OTHER.to_owned()), 0),
        (Target::Part(11, OTHER.to_owned()), 11),
    ] {
        let row = |_| reaction((anna(), direct(), NOON), &Reaction::Love, &target, "hi", true);
        is_told(
            "a target",
            |macos| row(macos).guid(GUID),
            |_| {
                json!({
                    "type": "reaction", "guid": GUID, "from": ANNA,
                    "conversation": { "kind": "direct", "id": ANNA },
                    "target": OTHER, "part": part, "reaction": "love", "removed": false, "at": AT,
                })
            },
        );
    }
}

#[test]
fn every_change_of_a_group_is_told() {
    for (change, word, subject) in [
        (GroupChange::Joined(BERT.to_owned()), "joined", Some(BERT)),
        (GroupChange::Removed(BERT.to_owned()), "removed", Some(BERT)),
        (GroupChange::Renamed("Lunch".to_owned()), "renamed", Some("Lunch")),
        (GroupChange::Left, "left", Some(ANNA)),
        (GroupChange::PhotoSet, "photo", None),
        (GroupChange::PhotoRemoved, "photo_removed", None),
        (GroupChange::BackgroundSet, "background", None),
        (GroupChange::BackgroundRemoved, "background_removed", None),
    ] {
        is_told(
            word,
            |_| group_event(anna(), group(), NOON, &change).guid(GUID),
            |_| {
                let mut event = json!({
                    "type": "group", "guid": GUID, "conversation": { "kind": "group", "id": "chat831" },
                    "change": word, "by": ANNA, "participants": [ANNA, BERT], "at": AT,
                });
                if let Some(subject) = subject {
                    event["subject"] = json!(subject);
                }
                event
            },
        );
    }
}

#[test]
fn kinds_that_nobody_knows_come_with_their_numbers() {
    is_told(
        "item_type 99",
        |_| flag::unknown_item(anna(), direct(), NOON).guid(GUID),
        |_| {
            json!({
                "type": "unknown_kind", "guid": GUID, "from": ANNA,
                "conversation": { "kind": "direct", "id": ANNA }, "item_type": 99,
                "group_action_type": 98, "associated_message_type": 0, "message_action_type": 0,
                 "at": AT,
            })
        },
    );
}

/// A text, a file and another text: parts 0, 1 and 2.
fn three_parts() -> Row {
    let parts =
        Parts::of(GUID).text("look: ").file(Attachment::new("/tmp/a.heic", 12)).text(" nice?");
    Row::new(anna(), direct(), NOON).guid(GUID).parts(parts)
}

#[test]
fn edits_and_unsends_name_the_parts_that_messages_counts() {
    for macos in MacOs::ALL {
        // macOS 12 has neither.
        if macos == MacOs::Monterey {
            continue;
        }
        let mut mac = Mac::new(macos);
        mac.write(&three_parts());
        let heard = mac.hear_later();
        assert_eq!(heard[0]["text"], "look:  nice?", "{heard:?}");
        assert_eq!(heard[0]["attachments"][0]["part"], 1);
        let later = AppleNs(NOON.0 + 60_000_000_000);
        mac.written.edit(GUID, 2, " better?", later).unwrap();
        assert_eq!(
            mac.hear_later(),
            [json!({
                "type": "edited", "guid": GUID, "part": 2, "text": " better?",
                "history": [
                    { "text": " nice?", "at": AT },
                    { "text": " better?", "at": "2026-11-22T12:01:00.000Z" },
                ],
                "at": "2026-11-22T12:01:00.000Z",
            })]
        );
        mac.written.unsend(GUID, Some(1), later).unwrap();
        let unsent = |parts: &[u32], now: UnixMs| {
            let mut event =
                json!({ "type": "unsent", "guid": GUID, "at": "2026-11-22T12:01:00.000Z" });
            // macOS 27 writes no date: it is when it was seen.
            if macos == MacOs::V27 {
                event["at"] = serde_json::to_value(now).unwrap();
            }
            // All of it: no parts are named.
            if !parts.is_empty() {
                event["parts"] = json!(parts);
            }
            event
        };
        let now = mac.now;
        assert_eq!(mac.hear_later(), [unsent(&[1], now)]);
        // What is left keeps its number.
        mac.written.edit(GUID, 2, " best?", later).unwrap();
        let heard = mac.hear_later();
        assert_eq!((heard.len(), &heard[0]["part"]), (1, &json!(2)), "{heard:?}");
        mac.written.unsend(GUID, None, later).unwrap();
        let now = mac.now;
        assert_eq!(mac.hear_later(), [unsent(&[], now)]);
    }
}

#[test]
fn apps_and_recordings_are_told_with_what_they_say() {
    is_told(
        "an app",
        |_| Row::new(anna(), direct(), NOON).guid(GUID).app(App::ApplePay),
        |_| {
            received(
                "",
                &json!({ "app": {
                    "id": App::ApplePay.bundle(), "name": "Apple Pay", "caption": "$12.50",
                }}),
            )
        },
    );
    for macos in MacOs::ALL {
        let mut mac = Mac::new(macos);
        let recording = Attachment::new("/tmp/a.caf", 12);
        mac.write(&Row::new(anna(), direct(), NOON).guid(GUID).audio(recording, "good morning"));
        let heard = mac.hear_later();
        assert_eq!(heard.len(), 1);
        assert_eq!((&heard[0]["audio"], &heard[0]["text"]), (&json!(true), &json!("")));
        assert_eq!(heard[0]["transcription"], "good morning");
    }
}

#[test]
fn a_drawn_emoji_is_told_with_its_place_and_its_file() {
    for macos in MacOs::ALL {
        let part = || (typedstream::PART.to_owned(), Mark::Number(0));
        let guid = format!("at_0_{GUID}");
        let drawn = vec![
            part(),
            (typedstream::FILE.to_owned(), Mark::Text(guid.clone())),
            ("__kIMEmojiImageAttributeName".to_owned(), Mark::Number(1)),
        ];
        let mark = typedstream::ATTACHMENT_CHAR.to_string();
        let body = AttributedText::from_runs(&[
            ("so ", vec![part()]),
            (mark.as_str(), drawn),
            (" it is", vec![part()]),
        ]);
        let mut row = Row::new(anna(), direct(), NOON).guid(GUID).body(body);
        let mut file = Attachment::new("/tmp/emoji.heic", 12);
        file.guid.clone_from(&guid);
        row.attachments.push(file);
        let mut mac = Mac::new(macos);
        mac.write(&row);
        let heard = mac.hear_later();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0]["text"], "so  it is");
        assert_eq!(heard[0]["attachments"][0]["guid"], guid);
        assert_eq!(heard[0]["attachments"][0]["part"], 0);
        assert_eq!(
            heard[0]["runs"],
            json!([{ "start": 3, "length": 0, "kind": "emoji_image", "value": guid }])
        );
    }
}

const LINK: &str = "https://example.test/a";

fn payload_of(row: &Row) -> Sql {
    row.columns().get("payload_data").unwrap().clone()
}

fn preview_event() -> Value {
    json!({
        "type": "preview", "message": GUID,
        "preview": { "url": LINK, "title": "A title" }, "at": AT,
    })
}

#[test]
fn a_link_alone_is_told_with_its_preview() {
    is_told(
        "a link",
        |_| text(LINK).url_preview(LINK, "A title"),
        |_| {
            received(
                LINK,
                &json!({
                    "preview": { "url": LINK, "title": "A title" },
                    "runs": [{ "start": 0, "length": LINK.len(), "kind": "link", "value": LINK }],
                }),
            )
        },
    );
}

#[test]
fn what_a_preview_shows_is_told_once_when_it_comes_by_a_later_update() {
    for macos in MacOs::ALL {
        let full = text(LINK).url_preview(LINK, "A title");
        // A link alone is one row.
        let mut mac = Mac::new(macos);
        mac.write(&full.clone().with("payload_data", Sql::Null));
        let heard = mac.hear_later();
        assert_eq!((heard.len(), &heard[0]["type"]), (1, &json!("received")), "{heard:?}");
        assert_eq!(heard[0].get("preview"), None);
        mac.update(GUID, "payload_data", &payload_of(&full));
        assert_eq!(mac.hear_later(), [preview_event()]);
        assert_eq!(mac.hear_later(), Vec::<Value>::new(), "once");
        // Beside a text it is a row of its own, which comes with the text or after it.
        for after in [false, true] {
            let mut mac = Mac::new(macos);
            let blank = full.clone().guid(OTHER).with("payload_data", Sql::Null);
            mac.write(&text(&format!("see {LINK} now")));
            if after {
                assert_eq!(mac.hear_later().len(), 1);
            }
            mac.write(&blank);
            assert_eq!(mac.hear_later().len(), usize::from(!after));
            mac.update(OTHER, "payload_data", &payload_of(&full));
            assert_eq!(mac.hear_later(), [preview_event()], "after: {after}");
            assert_eq!(mac.hear_later(), Vec::<Value>::new(), "once");
        }
    }
}

#[test]
fn whatever_others_put_into_a_message_it_fits_into_a_line() {
    // Control characters take six bytes of a line each.
    let bells = |count: usize| "\u{7}".repeat(count);
    for macos in MacOs::ALL {
        let mut mac = Mac::new(macos);
        let mut parts = Parts::of(GUID);
        for n in 0..150 {
            let word = format!("{n}{}", bells(700));
            let mention =
                (typedstream::MENTION.to_owned(), Mark::Text(format!("{n}{}", bells(2_000))));
            parts = parts.attributed(&AttributedText::from_runs(&[(&word, vec![mention])]));
            parts = parts.file(Attachment::new(format!("/{n}/{}.png", bells(2_000)), 42));
        }
        let row = Row::new(anna(), direct(), NOON).guid(GUID).parts(parts);
        mac.write(&row.with("subject", bells(5_000)).with("is_audio_message", 1));
        let heard = mac.hear();
        let [told] = heard.as_slice() else { panic!("{}", heard.len()) };
        let bytes = serde_json::to_vec(told).unwrap().len();
        let most = protocol::limits::LINE_BYTES_MAX - 4_096;
        assert!((600_000..most).contains(&bytes), "{bytes}");
        let text = told["text"].as_str().unwrap();
        assert!(text.len() > 99_000, "the text goes before all else: {}", text.len());
        assert!(!told["attachments"].as_array().unwrap().is_empty());
        assert_eq!(mac.hear(), Vec::<Value>::new(), "and once");
    }
}
