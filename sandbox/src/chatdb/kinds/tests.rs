use std::collections::BTreeMap;

use rusqlite::Connection;

use super::attachment::{Parts, Transfer};
use super::balloon::App;
use super::flag::{ChatFilter, Filter, Schedule, poll_vote, to_self, unknown_item};
use super::group::GroupChange;
use super::reaction::{Reaction, Target, reaction};
use super::summary::Summary;
use super::text::{Animation, Mark, marked};
use super::*;
use crate::bplist::Plist;
use crate::chatdb::MacOs;
use crate::typedstream::Value;

const OWN: &str = "+15550100001";
const PEER: &str = "+12025550101";
const DATE: AppleNs = AppleNs(725_505_911_336_000_000);

struct Fixture {
    _dir: tempfile::TempDir,
    db: ChatDb,
    read: Connection,
    macos: MacOs,
}

/// A row as it is in the file, by column.
type Seen = BTreeMap<String, Sql>;

impl Fixture {
    fn new(macos: MacOs) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let db = ChatDb::open(&path, macos, OWN).unwrap();
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let read = Connection::open_with_flags(&path, flags).unwrap();
        Self { _dir: dir, db, read, macos }
    }

    fn on_every_schema(test: impl Fn(&mut Self)) {
        for macos in MacOs::ALL {
            test(&mut Self::new(macos));
        }
    }

    fn write(&mut self, row: &Row) -> Seen {
        self.db.write_joined(row).unwrap();
        self.seen(&row.guid)
    }

    fn seen(&self, guid: &str) -> Seen {
        self.row("SELECT * FROM message WHERE guid = ?", guid)
    }

    fn row(&self, sql: &str, key: &str) -> Seen {
        let mut statement = self.read.prepare(sql).unwrap();
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let read = |row: &rusqlite::Row<'_>| {
            names.iter().enumerate().map(|(n, name)| Ok((name.clone(), row.get(n)?))).collect()
        };
        statement.query_row([key], read).expect(sql)
    }

    fn all<T: rusqlite::types::FromSql>(&self, sql: &str) -> Vec<T> {
        let mut statement = self.read.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(|value| value.unwrap()).collect()
    }

    /// The value of a column in a row, where the schema has it.
    #[track_caller]
    fn expect(&self, seen: &Seen, column: &str, value: impl Into<Sql>) {
        if let Some(found) = seen.get(column) {
            assert_eq!(found, &value.into(), "{column} on {}", self.macos);
        }
    }

    fn address(&self, seen: &Seen, column: &str) -> String {
        let Sql::Integer(rowid) = seen[column] else { panic!("{column}") };
        self.all(&format!("SELECT id FROM handle WHERE ROWID = {rowid}")).remove(0)
    }
}

fn text_of(seen: &Seen) -> AttributedText {
    let Sql::Blob(blob) = &seen["attributedBody"] else { panic!("no attributedBody") };
    AttributedText::decode(blob).expect("a text")
}

fn summary_of(seen: &Seen) -> Summary {
    let Sql::Blob(blob) = &seen["message_summary_info"] else { panic!("no summary") };
    Summary::decode(blob).expect("a summary")
}

fn direct() -> Conversation {
    Conversation::Direct(PEER.to_owned())
}

fn group() -> Conversation {
    let members = [PEER, "+12025550102"].map(str::to_owned).to_vec();
    Conversation::Group { id: "chat500".to_owned(), members }
}

fn peer() -> Author {
    Author::Other(PEER.to_owned())
}

fn inbound(text: &str) -> Row {
    Row::text(peer(), direct(), DATE, text)
}

fn own(text: &str) -> Row {
    Row::text(Author::Me, direct(), DATE, text)
}

fn file(name: &str) -> Attachment {
    Attachment::new(format!("~/Library/Messages/Attachments/9b/11/X/{name}"), 42)
}

#[test]
fn a_text_names_the_one_before_it() {
    Fixture::on_every_schema(|f| {
        let (first, second) = (inbound("one"), own("two"));
        let seen = f.write(&first);
        assert_eq!(seen["reply_to_guid"], Sql::Null);
        f.expect(&seen, "is_delivered", 1);
        f.expect(&seen, "is_sent", 0);
        f.db.reopen().unwrap();
        let seen = f.write(&second);
        assert_eq!(
            seen["reply_to_guid"],
            Sql::Text(first.guid),
            "also after the file was reopened"
        );
        f.expect(&seen, "is_sent", 1);
        assert_eq!(seen["thread_originator_guid"], Sql::Null);
    });
}

#[test]
fn marks_are_in_the_row() {
    Fixture::on_every_schema(|f| {
        let body = marked("ask Kunal", &[("Kunal", Mark::Mention("k@example.test".into()))]);
        let seen = f.write(&inbound("").body(body.clone()));
        assert_eq!(text_of(&seen), body);
        let bare = f.macos == MacOs::Monterey;
        assert_eq!(seen["text"] != Sql::Null, bare, "{}", f.macos);
        let moving = marked("wow", &[("wow", Mark::Animated(Animation::Explode))]);
        assert_eq!(text_of(&f.write(&inbound("").body(moving.clone()))), moving);
    });
}

#[test]
fn attachments_are_ordered_by_the_text_and_not_by_their_rows() {
    Fixture::on_every_schema(|f| {
        let row = Row::new(peer(), direct(), DATE);
        let parts = Parts::of(&row.guid)
            .file(file("a.png"))
            .text("between")
            .file(file("b.PDF").waiting())
            .file(file("c.unknown"));
        let seen = f.write(&row.clone().parts(parts));
        f.expect(&seen, "cache_has_attachments", 1);
        f.expect(&seen, "part_count", 4);
        let text = text_of(&seen);
        assert_eq!(text.text(), "\u{fffc}between\u{fffc}\u{fffc}");
        let guids: Vec<String> = f.all("SELECT guid FROM attachment ORDER BY ROWID");
        let expected = [3, 2, 0].map(|part| format!("at_{part}_{}", row.guid));
        assert_eq!(guids, expected);
        let joined: Vec<i64> = f.all("SELECT attachment_id FROM message_attachment_join");
        assert_eq!(joined.len(), 3);
        let one = |guid: &str| f.row("SELECT * FROM attachment WHERE guid = ?", guid);
        let png = one(&guids[2]);
        f.expect(&png, "uti", "public.png".to_owned());
        f.expect(&png, "mime_type", "image/png".to_owned());
        f.expect(&png, "total_bytes", 42);
        f.expect(&png, "transfer_state", 5);
        f.expect(&png, "transfer_name", "a.png".to_owned());
        f.expect(&png, "is_outgoing", 0);
        let pdf = one(&guids[1]);
        f.expect(&pdf, "uti", "com.adobe.pdf".to_owned());
        f.expect(&pdf, "transfer_state", 0);
        assert_eq!(one(&guids[0])["uti"], Sql::Null);
        for (transfer, number) in [(Transfer::Running, 3), (Transfer::Complete, 5)] {
            f.db.set_transfer(&guids[1], transfer).unwrap();
            let pdf = f.row("SELECT * FROM attachment WHERE guid = ?", &guids[1]);
            f.expect(&pdf, "transfer_state", number);
        }
        assert!(f.db.set_transfer("at_9_none", Transfer::Failed).is_err());
    });
}

#[test]
fn the_public_rows_with_attachments_and_reactions_are_reproduced() {
    let json: serde_json::Value =
        serde_json::from_str(include_str!("../../../testdata/fixture1.json")).unwrap();
    let guid = json[0]["guid"].as_str().unwrap();
    Fixture::on_every_schema(|f| {
        let date = AppleNs(json[0]["date"].as_i64().unwrap());
        let delivered = json[0]["date_delivered"].as_i64().unwrap();
        let files = [0, 1].map(|n| json[1][n]["filename"].as_str().unwrap());
        let parts = Parts::of(guid)
            .file(Attachment::new(files[0], 1))
            .text("1")
            .file(Attachment::new(files[1], 1))
            .text("2");
        let before = Row::text(Author::Me, direct(), date, "before")
            .guid(json[0]["reply_to_guid"].as_str().unwrap());
        f.write(&before);
        let row = Row::new(Author::Me, direct(), date)
            .guid(guid)
            .parts(parts)
            .with("date_delivered", delivered)
            .with("message_summary_info", Plist::map([("ust", Plist::Bool(true))]).encode())
            .delivered_quietly();
        let seen = f.write(&row);
        // What names the phone, and what iCloud keeps about the row, is the writer's own; `text`
        // is NULL in most rows of newer versions.
        let other = ["ROWID", "handle_id", "account", "account_guid", "destination_caller_id"];
        let icloud = ["ck_sync_state", "ck_record_id", "ck_record_change_tag"];
        for (column, value) in json[0].as_object().unwrap() {
            let Some(found) = seen.get(column) else { continue };
            if other.contains(&column.as_str())
                || icloud.contains(&column.as_str())
                || (column == "text" && f.macos != MacOs::Monterey)
            {
                continue;
            }
            let expected = match (value.as_i64(), value.as_str()) {
                (Some(number), _) => Sql::Integer(number),
                (None, None) => Sql::Null,
                (None, Some(text)) => match text.strip_prefix("data:;base64,") {
                    Some(blob) => Sql::Blob(data_encoding::BASE64.decode(blob.as_bytes()).unwrap()),
                    None => Sql::Text(text.to_owned()),
                },
            };
            assert_eq!(found, &expected, "{column} on {}", f.macos);
        }
        for (n, expected) in json[2].as_array().unwrap().iter().enumerate() {
            let part = u32::try_from(n).unwrap();
            let target = Target::Part(part, guid.to_owned());
            let kind = &Reaction::CLASSIC[n];
            let row = reaction((Author::Me, direct(), date), kind, &target, "x", true);
            let seen = f.write(&row);
            let number = expected["associated_message_type"].as_i64().unwrap();
            f.expect(&seen, "associated_message_type", number);
            let named = expected["associated_message_guid"].as_str().unwrap();
            f.expect(&seen, "associated_message_guid", named.to_owned());
            f.expect(&seen, "is_from_me", 1);
        }
    });
}

#[test]
fn every_reaction_can_be_added_and_removed() {
    Fixture::on_every_schema(|f| {
        let target = own("hello");
        f.write(&target);
        let mut kinds = Reaction::CLASSIC.to_vec();
        kinds.push(Reaction::Emoji("🦀".into()));
        kinds.push(Reaction::Sticker(file("s.heic")));
        for (n, kind) in (0_i64..).zip(&kinds) {
            for (added, number) in [(true, 2000 + n), (false, 3000 + n)] {
                let to = Target::Part(0, target.guid.clone());
                let row = reaction((peer(), direct(), DATE), kind, &to, "hello", added);
                let seen = f.write(&row);
                f.expect(&seen, "associated_message_type", number);
                f.expect(&seen, "associated_message_guid", format!("p:0/{}", target.guid));
                f.expect(&seen, "associated_message_range_length", 5);
                let emoji = match kind {
                    Reaction::Emoji(emoji) => Sql::Text(emoji.clone()),
                    Reaction::Love
                    | Reaction::Like
                    | Reaction::Dislike
                    | Reaction::Laugh
                    | Reaction::Emphasise
                    | Reaction::Question
                    | Reaction::Sticker(_) => Sql::Null,
                };
                f.expect(&seen, "associated_message_emoji", emoji);
                let sticker = i64::from(added && number == 2007);
                f.expect(&seen, "cache_has_attachments", sticker);
            }
        }
        let stickers: Vec<i64> = f.all("SELECT is_sticker FROM attachment");
        assert_eq!(stickers, [1]);
        for (to, expected) in [
            (Target::Balloon("G".into()), "bp:G"),
            (Target::Bare("G".into()), "G"),
            (Target::Part(3, "G".into()), "p:3/G"),
        ] {
            let who = (Author::Me, group(), DATE);
            let seen = f.write(&reaction(who, &Reaction::Like, &to, "", true));
            f.expect(&seen, "associated_message_guid", expected.to_owned());
            f.expect(&seen, "handle_id", 0);
        }
        let stuck = Row::new(peer(), direct(), DATE)
            .sticker_on(&Target::Part(0, target.guid.clone()), file("cat.png"));
        let seen = f.write(&stuck);
        f.expect(&seen, "associated_message_type", 1000);
    });
}

#[test]
fn edits_and_unsends_are_in_the_summary() {
    Fixture::on_every_schema(|f| {
        let row = inbound("one");
        f.write(&row);
        for (n, text) in [(1, "two"), (2, "three")] {
            f.db.edit(&row.guid, 0, text, DATE.minus_ms(-10_000 * n)).unwrap();
        }
        let seen = f.seen(&row.guid);
        assert_eq!(text_of(&seen).text(), "three");
        let summary = summary_of(&seen);
        assert_eq!(summary.edited, [0]);
        assert_eq!(summary.editions[&0].len(), 3, "the first is the original");
        let edited = if f.macos == MacOs::V27 { 0 } else { DATE.minus_ms(-20_000).0 };
        f.expect(&seen, "date_edited", edited);
        f.expect(&seen, "date_retracted", 0);
        f.db.unsend(&row.guid, None, DATE.minus_ms(-30_000)).unwrap();
        let seen = f.seen(&row.guid);
        assert_eq!(summary_of(&seen).retracted, [0]);
        assert_eq!(seen["text"], Sql::Text(String::new()));
        assert_eq!(seen["attributedBody"], Sql::Null);
        f.expect(&seen, "part_count", 0);
        f.expect(&seen, "is_empty", i64::from(f.macos >= MacOs::Tahoe));
        assert!(f.db.unsend(&row.guid, None, DATE).is_err(), "it is gone already");
        assert!(f.db.edit("nowhere", 0, "x", DATE).is_err());
    });
}

#[test]
fn a_part_can_be_unsent_alone() {
    Fixture::on_every_schema(|f| {
        let row = Row::new(Author::Me, direct(), DATE);
        let parts = Parts::of(&row.guid).text("a").file(file("a.png")).text("b");
        let row = row.parts(parts);
        f.write(&row);
        f.db.unsend(&row.guid, Some(1), DATE).unwrap();
        let seen = f.seen(&row.guid);
        assert_eq!(text_of(&seen).text(), "ab");
        assert_eq!(summary_of(&seen).retracted, [1]);
        f.expect(&seen, "part_count", 2);
        f.expect(&seen, "is_empty", 0);
        assert!(f.db.unsend(&row.guid, Some(1), DATE).is_err());
    });
}

#[test]
fn answers_and_effects_are_columns() {
    Fixture::on_every_schema(|f| {
        let first = own("first 😃");
        f.write(&first);
        let answer = inbound("second").replying_to(&first.guid, 0, 0, 8);
        let seen = f.write(&answer);
        f.expect(&seen, "thread_originator_guid", first.guid.clone());
        f.expect(&seen, "thread_originator_part", "0:0:8".to_owned());
        for effect in Effect::ALL {
            let seen = f.write(&inbound("boo").with_effect(effect));
            f.expect(&seen, "expressive_send_style_id", effect.id().to_owned());
        }
    });
}

#[test]
fn apps_and_previews_have_bundle_and_payload() {
    Fixture::on_every_schema(|f| {
        for app in App::ALL {
            let seen = f.write(&Row::new(peer(), direct(), DATE).app(app));
            f.expect(&seen, "balloon_bundle_id", app.bundle().to_owned());
            assert!(matches!(&seen["payload_data"], Sql::Blob(blob) if !blob.is_empty()));
            assert_eq!(text_of(&seen).text(), "\u{fffd}");
        }
        let handwriting = include_bytes!("../../../testdata/handwriting-payload.bin").to_vec();
        let payloads: Vec<Vec<u8>> =
            f.all("SELECT payload_data FROM message WHERE balloon_bundle_id LIKE '%Handwriting%'");
        assert_eq!(payloads, [handwriting]);
        let link = inbound("see https://example.test/a");
        f.write(&link);
        let later = Row::new(peer(), direct(), DATE.minus_ms(-1_500));
        let preview = later.url_preview("https://example.test/a", "Example");
        let seen = f.write(&preview);
        f.expect(&seen, "balloon_bundle_id", App::UrlPreview.bundle().to_owned());
        assert_eq!(seen["reply_to_guid"], Sql::Text(link.guid));
    });
}

#[test]
fn an_audio_message_says_what_was_said() {
    Fixture::on_every_schema(|f| {
        let row = Row::new(peer(), direct(), DATE).audio(file("Audio Message.caf"), "hello there");
        let seen = f.write(&row);
        f.expect(&seen, "is_audio_message", 1);
        let said = Value::Text("hello there".to_owned());
        let text = text_of(&seen);
        assert!(text.runs()[0].1.contains(&("IMAudioTranscription".to_owned(), said)));
        let uti: Vec<String> = f.all("SELECT uti FROM attachment");
        assert_eq!(uti, ["com.apple.coreaudio-format"]);
    });
}

#[test]
fn group_events_change_the_group() {
    Fixture::on_every_schema(|f| {
        f.write(&Row::text(peer(), group(), DATE, "hi"));
        let steps = [
            (GroupChange::Joined("+12025550103".into()), (1, 0)),
            (GroupChange::Removed("+12025550102".into()), (1, 1)),
            (GroupChange::Renamed("Crabs".into()), (2, 0)),
            (GroupChange::PhotoSet, (3, 1)),
            (GroupChange::BackgroundSet, (3, 4)),
            (GroupChange::BackgroundRemoved, (3, 6)),
            (GroupChange::NumberChanged, (1, 0)),
            (GroupChange::Left, (3, 0)),
        ];
        for (change, (item, action)) in steps {
            let members = f.db.group_members("chat500").unwrap().expect("the group");
            let written =
                f.db.write_group_event(&peer(), ("chat500", &members), &change, DATE).unwrap();
            f.db.join(&written).unwrap();
            let seen = f.seen(&written.guid);
            f.expect(&seen, "item_type", item);
            f.expect(&seen, "group_action_type", action);
            assert_eq!(f.address(&seen, "handle_id"), PEER);
            match &change {
                GroupChange::Joined(who) | GroupChange::Removed(who) => {
                    assert_eq!(&f.address(&seen, "other_handle"), who);
                }
                GroupChange::NumberChanged => {
                    assert_eq!(seen["other_handle"], seen["handle_id"]);
                }
                GroupChange::Renamed(title) => {
                    f.expect(&seen, "group_title", title.clone());
                    assert_eq!(&f.all::<String>("SELECT display_name FROM chat")[0], title);
                }
                GroupChange::PhotoSet => {
                    let properties = f.all::<Vec<u8>>("SELECT properties FROM chat").remove(0);
                    let properties = Plist::decode(&properties).expect("a property list");
                    assert!(properties.get("groupPhotoGuid").is_some());
                }
                GroupChange::Left
                | GroupChange::PhotoRemoved
                | GroupChange::BackgroundSet
                | GroupChange::BackgroundRemoved => {}
            }
        }
        assert_eq!(f.db.group_members("chat500").unwrap().unwrap(), ["+12025550103"]);
        assert_eq!(f.db.group_members("chat501").unwrap(), None);
    });
}

#[test]
fn services_are_spelled_as_they_are_seen() {
    Fixture::on_every_schema(|f| {
        for service in RowService::ALL {
            let row = inbound("x").over(service);
            let seen = f.write(&row);
            f.expect(&seen, "service", service.as_str().to_owned());
            let chat = f.db.chat_of_message(&row.guid).unwrap().expect("a chat");
            assert_eq!(chat.service.as_str(), service.account());
        }
        let seen = f.write(&own("x").downgraded());
        f.expect(&seen, "was_downgraded", 1);
        f.expect(&seen, "service", "SMS".to_owned());
        f.expect(&seen, "is_delivered", 0);
    });
}

#[test]
fn flags_are_written_where_the_schema_has_them() {
    Fixture::on_every_schema(|f| {
        for (row, column, value) in [
            (inbound("x").filtered(Filter::Spam), "is_spam", 1),
            (inbound("x").filtered(Filter::Allowed), "filter_action", 1),
            (inbound("x").filtered(Filter::Junk), "filter_action", 2),
            (inbound("x").filtered(Filter::Promotion(7)), "filter_sub_action", 7),
            (inbound("x").filtered(Filter::Transaction(7)), "filter_action", 4),
            (own("x").waiting_for_satellite(), "is_pending_satellite_send", 1),
            (own("x").by_satellite(), "sent_or_received_off_grid", 1),
            (own("x").by_satellite(), "is_stewie", 1),
            (own("x").emergency(), "is_sos", 1),
            (own("x").delivered_quietly(), "was_delivered_quietly", 1),
            (poll_vote(peer(), direct(), DATE, "G"), "associated_message_type", 4000),
            (unknown_item(peer(), direct(), DATE), "item_type", 99),
        ] {
            let seen = f.write(&row);
            f.expect(&seen, column, value);
        }
        let has = |column: &str| f.db.columns["message"].contains(column);
        assert_eq!(has("filter_action"), f.macos == MacOs::V27);
        assert_eq!(has("is_stewie"), f.macos >= MacOs::Sonoma);
        let filter = ChatFilter { filtered: 2, blackholed: true, pending_review: true };
        f.db.set_chat_filter(1, filter).unwrap();
        let chat = f.row("SELECT * FROM chat WHERE ROWID = ?", "1");
        for (column, value) in [("is_filtered", 2), ("is_blackholed", 1), ("is_pending_review", 1)]
        {
            f.expect(&chat, column, value);
        }
    });
}

#[test]
fn send_later_is_sent_later() {
    Fixture::on_every_schema(|f| {
        for (state, (number, sent, error)) in
            [(Schedule::Sent, (2, 1, 0)), (Schedule::Failed, (3, 0, 4))]
        {
            let row = own("later").scheduled(DATE);
            let seen = f.write(&row);
            f.expect(&seen, "schedule_type", 2);
            f.expect(&seen, "schedule_state", 1);
            f.expect(&seen, "is_sent", 0);
            f.db.set_schedule(&row.guid, state, DATE.minus_ms(-5)).unwrap();
            let seen = f.seen(&row.guid);
            f.expect(&seen, "schedule_state", number);
            f.expect(&seen, "is_sent", sent);
            f.expect(&seen, "error", error);
        }
    });
}

#[test]
fn a_deleted_message_stays_in_no_chat_and_can_come_back() {
    Fixture::on_every_schema(|f| {
        let row = inbound("x");
        f.write(&row);
        f.db.delete_message(&row.guid, DATE).unwrap();
        let joins: Vec<i64> = f.all("SELECT message_id FROM chat_message_join");
        assert!(joins.is_empty());
        let guids: Vec<String> = f.all("SELECT guid FROM message");
        if f.macos == MacOs::Monterey {
            assert!(guids.is_empty(), "macOS 12 keeps nothing");
            return;
        }
        assert_eq!(guids, std::slice::from_ref(&row.guid));
        let dates: Vec<i64> = f.all("SELECT delete_date FROM chat_recoverable_message_join");
        assert_eq!(dates, [DATE.0]);
        assert!(f.db.delete_message(&row.guid, DATE).is_err());
        f.db.recover_message(&row.guid).unwrap();
        assert_eq!(f.all::<i64>("SELECT message_id FROM chat_message_join").len(), 1);
        assert!(f.all::<i64>("SELECT 1 FROM chat_recoverable_message_join").is_empty());
        assert!(f.db.recover_message(&row.guid).is_err());
    });
}

#[test]
fn to_oneself_and_in_no_chat() {
    Fixture::on_every_schema(|f| {
        for own in [true, false] {
            let seen = f.write(&to_self(OWN, DATE, "note", own));
            f.expect(&seen, "is_from_me", i64::from(own));
            assert_eq!(f.address(&seen, "handle_id"), OWN);
        }
        let chats: Vec<i64> = f.all("SELECT chat_id FROM chat_message_join");
        assert_eq!(chats, [1, 1]);
        let body = marked("code 123456", &[("123456", Mark::OneTimeCode)]);
        let code = inbound("").body(body.clone()).over(RowService::Sms).without_chat();
        let seen = f.write(&code);
        assert_eq!(text_of(&seen), body);
        assert_eq!(f.all::<i64>("SELECT 1 FROM chat_message_join").len(), 2);
    });
}

#[test]
fn a_text_can_come_later() {
    Fixture::on_every_schema(|f| {
        let row = Row::new(peer(), direct(), DATE);
        let seen = f.write(&row);
        assert_eq!((&seen["text"], &seen["attributedBody"]), (&Sql::Null, &Sql::Null));
        f.db.complete_text(&row.guid, &AttributedText::plain("at last")).unwrap();
        assert_eq!(text_of(&f.seen(&row.guid)).text(), "at last");
    });
}

#[test]
fn a_guid_of_a_row_or_an_attachment_is_written_once() {
    let mut f = Fixture::new(MacOs::Sequoia);
    let row = Row::new(peer(), direct(), DATE);
    let row = row.clone().parts(Parts::of(&row.guid).file(file("a.png")));
    f.write(&row);
    assert!(f.db.write_row(&row).is_err());
    let other = Row { guid: new_guid(), ..row };
    assert!(f.db.write_row(&other).is_err());
    assert_eq!(f.db.messages().unwrap(), 1, "a row is written with its attachments or not at all");
}
