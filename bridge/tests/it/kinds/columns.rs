//! What columns alone say: services, satellites, filters, Send Later, Recently Deleted, rows in no
//! chat, rows to oneself, kinds that nobody knows.

use bridge::chatdb::{SentQuery, Sought};
use sandbox::chatdb::kinds::flag::{ChatFilter, Filter, Schedule, to_self, unknown_item};
use sandbox::chatdb::kinds::{Author, Row, RowService};
use serde_json::{Value, json};

use super::phone::{
    ANNA, AT, OWN, anna, direct, in_direct, inbound, noon, on_every_macos, own, received, sent,
    text, with,
};

#[test]
fn every_service_is_its_channel() {
    on_every_macos(|phone| {
        for (service, channel, more) in [
            (RowService::Imessage, "imessage", json!({})),
            (RowService::Sms, "sms", json!({})),
            (RowService::Rcs, "rcs", json!({})),
            (RowService::RcsLower, "rcs", json!({})),
            (RowService::ImessageLite, "imessage", json!({ "satellite": true })),
        ] {
            let row = text("x").over(service);
            let expected = json!({ "text": "x", "service": channel });
            phone.tells(&row, received(&row, with(expected, more)));
        }
    });
}

#[test]
fn a_message_that_became_an_sms_says_so_in_either_direction() {
    on_every_macos(|phone| {
        let row = own("x").downgraded();
        phone.tells(&row, sent(&row, json!({ "text": "x", "downgraded": true })));
        let row = text("x").downgraded();
        let expected = json!({ "text": "x", "service": "sms", "downgraded": true });
        phone.tells(&row, received(&row, expected));
    });
}

#[test]
fn satellites_and_calls_for_help_are_said() {
    on_every_macos(|phone| {
        let row = text("x").by_satellite();
        phone.tells(&row, received(&row, json!({ "text": "x", "satellite": true })));
        let row = own("x").waiting_for_satellite();
        let expected = json!({ "text": "x", "satellite": true, "sent": false });
        phone.tells(&row, sent(&row, expected));
        let row = text("help").emergency();
        let mut expected = json!({ "text": "help", "satellite": true });
        // The columns came with macOS 14.
        if phone.is(14) {
            expected = with(expected, json!({ "sos": true, "critical": true }));
        }
        phone.tells(&row, received(&row, expected));
    });
}

#[test]
fn what_the_filters_say_is_told_and_nothing_is_left_out() {
    on_every_macos(|phone| {
        let row = text("x").filtered(Filter::Spam);
        phone.tells(&row, received(&row, json!({ "text": "x", "spam": true })));
        for (filter, name) in [
            (Filter::Allowed, None),
            (Filter::Junk, Some("junk")),
            (Filter::Promotion(1), Some("promotion")),
            (Filter::Transaction(2), Some("transaction")),
        ] {
            let row = text("x").filtered(filter);
            let mut expected = json!({ "text": "x" });
            // The column came with macOS 27.
            if let Some(name) = name.filter(|_| phone.is(27)) {
                expected = with(expected, json!({ "filter": name }));
            }
            phone.tells(&row, received(&row, expected));
        }
        let row = text("x").with("is_auto_reply", 1);
        phone.tells(&row, received(&row, json!({ "text": "x", "auto_reply": true })));
    });
}

#[test]
fn what_is_said_of_a_chat_counts_for_what_is_in_it() {
    let plain = ChatFilter::default();
    on_every_macos(|phone| {
        for (filter, name, since) in [
            (ChatFilter { filtered: 1, ..plain }, Some("unknown_sender"), 12),
            (ChatFilter { filtered: 2, ..plain }, Some("junk"), 12),
            (ChatFilter { filtered: 9, ..plain }, Some("filter_9"), 12),
            (ChatFilter { blackholed: true, ..plain }, Some("blocked"), 12),
            (ChatFilter { pending_review: true, ..plain }, Some("pending_review"), 26),
            (plain, None, 12),
        ] {
            let row = text("x");
            let written = phone.db.write_joined(&row).unwrap();
            phone.db.set_chat_filter(written.chat, filter).unwrap();
            let name = name.filter(|_| phone.is(since));
            let more = name.map_or(json!({}), |name| json!({ "filter": name }));
            phone.hears(&[received(&row, with(json!({ "text": "x" }), more))]);
        }
    });
}

#[test]
fn a_message_by_send_later_is_never_sent_before_it_is() {
    on_every_macos(|phone| {
        let row = own("later").scheduled(noon(3_600));
        let due = json!({ "text": "later", "sent": false, "at": "2026-11-22T13:00:00.000Z" });
        // The columns came with macOS 15.
        let more = if phone.is(15) { json!({ "schedule": 1 }) } else { json!({}) };
        phone.tells(&row, sent(&row, with(due, more)));
        if !phone.is(15) {
            return;
        }
        let anna = ANNA.parse().unwrap();
        let query =
            SentQuery { above_rowid: 0, to: &anna, content: Sought::Text("later"), channel: None };
        assert_eq!(phone.reader.find_sent(&query).unwrap(), [], "it is not the row of a send");
        // Some rows have the other type.
        let row = own("later").scheduled(noon(3_600)).with("schedule_type", 1);
        phone.write(&row);
        let heard = phone.hear();
        assert_eq!(heard[0]["schedule"], 1, "{heard:?}");
        assert_eq!(phone.reader.find_sent(&query).unwrap(), []);
        phone.db.set_schedule(&row.guid, Schedule::Sent, noon(3_600)).unwrap();
        let rows = phone.reader.rows_after(0, 10).unwrap();
        let states: Vec<_> = rows.iter().map(|row| (row.schedule, row.status.is_sent)).collect();
        assert_eq!(states, [(Some(1), false), (Some(2), true)]);
    });
}

#[test]
fn what_lies_in_recently_deleted_is_told_as_deleted() {
    on_every_macos(|phone| {
        let row = text("gone");
        phone.write(&row);
        phone.db.delete_message(&row.guid, noon(1)).unwrap();
        // macOS 12 has no such place: the row is gone with its join.
        let expected = received(&row, json!({ "text": "gone", "deleted": true }));
        let expected = if phone.is(13) { vec![expected] } else { Vec::new() };
        phone.hears(&expected);
        if phone.is(13) {
            // Brought back it is no news.
            phone.db.recover_message(&row.guid).unwrap();
            phone.hears(&[]);
        }
        // Deleted after it was told, neither.
        let row = text("told");
        phone.tells(&row, received(&row, json!({ "text": "told" })));
        phone.db.delete_message(&row.guid, noon(1)).unwrap();
        phone.hears(&[]);
    });
}

#[test]
fn a_row_in_no_chat_is_told_after_a_while_in_the_conversation_with_its_sender() {
    on_every_macos(|phone| {
        let code =
            Row::text(Author::Other("22395".to_owned()), direct(), noon(0), "Your code is 4711")
                .over(RowService::Sms)
                .without_chat();
        phone.write(&code);
        phone.hears(&[]);
        phone.later(10_000);
        let expected = json!({
            "from": "service:22395",
            "conversation": { "kind": "direct", "id": "22395" },
            "text": "Your code is 4711",
            "service": "sms",
        });
        phone.hears(&[received(&code, expected)]);
        // So is one of somebody with a number.
        let row = text("words").without_chat();
        phone.write(&row);
        phone.hears(&[]);
        phone.later(10_000);
        phone.hears(&[received(&row, json!({ "text": "words" }))]);
    });
}

#[test]
fn what_is_written_to_oneself_is_marked_in_either_direction() {
    let mine = json!({ "kind": "direct", "id": OWN });
    on_every_macos(|phone| {
        for is_own in [true, false] {
            let row = to_self(OWN, noon(0), "note", is_own);
            let more = json!({ "conversation": mine, "text": "note", "to_self": true });
            let expected = if is_own {
                sent(&row, more)
            } else {
                received(&row, with(more, json!({ "from": OWN })))
            };
            phone.tells(&row, expected);
        }
    });
}

#[test]
fn kinds_that_nobody_knows_come_through_with_their_numbers() {
    let told = |row: &Row, numbers: [i64; 3], more: Value| {
        let [item, action, associated] = numbers;
        let base = json!({
            "type": "unknown_kind",
            "guid": row.guid,
            "conversation": in_direct(),
            "from": ANNA,
            "item_type": item,
            "group_action_type": action,
            "associated_message_type": associated,
            "message_action_type": 0,
            "at": AT,
        });
        with(base, more)
    };
    on_every_macos(|phone| {
        let row = unknown_item(anna(), direct(), noon(0));
        phone.tells(&row, told(&row, [99, 98, 0], json!({})));
        let row = text("words").with("associated_message_type", 5001);
        phone.tells(&row, told(&row, [0, 0, 5001], json!({ "text": "words" })));
        let row = inbound().with("item_type", 3).with("group_action_type", 77);
        phone.tells(&row, told(&row, [3, 77, 0], json!({})));
        let row = inbound()
            .with("item_type", 98)
            .with("message_action_type", 5)
            .with("balloon_bundle_id", "com.example.tomorrow".to_owned());
        let more = json!({
            "message_action_type": 5,
            "balloon_bundle_id": "com.example.tomorrow",
        });
        phone.tells(&row, told(&row, [98, 0, 0], more));
        // A reaction that does not say to what is none.
        let row = inbound().with("associated_message_type", 2000);
        phone.tells(&row, told(&row, [0, 0, 2000], json!({})));
    });
}
