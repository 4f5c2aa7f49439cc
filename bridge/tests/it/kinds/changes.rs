//! Edits and unsends: from `message_summary_info`, whole and by part, before and after a message was
//! told.

use sandbox::chatdb::kinds::Row;
use sandbox::chatdb::kinds::attachment::{Attachment, Parts};
use serde_json::{Value, json};

use super::phone::{AT, Phone, inbound, noon, on_every_macos, own, received, sent, text, with};

/// `n` seconds after noon.
fn after(n: i64) -> String {
    format!("2026-11-22T12:00:{n:02}.000Z")
}

fn edited(row: &Row, part: u32, history: &[(&str, String)]) -> Value {
    let (text, at) = history.last().unwrap();
    let versions: Vec<Value> =
        history.iter().map(|(text, at)| json!({ "text": text, "at": at })).collect();
    json!({
        "type": "edited",
        "guid": row.guid,
        "part": part,
        "text": text,
        "history": versions,
        "at": at,
    })
}

/// macOS 12 has no `date_edited`, and 27 was seen to leave it empty: then it is when it was noticed.
fn unsent(phone: &Phone, row: &Row, parts: &[u32], seconds: i64) -> Value {
    let is_dated = phone.is(13) && !phone.is(27);
    let at = if is_dated { after(seconds) } else { phone.now_text() };
    let base = json!({ "type": "unsent", "guid": row.guid, "at": at });
    if parts.is_empty() { base } else { with(base, json!({ "parts": parts })) }
}

fn three_parts() -> Row {
    let row = inbound();
    let photo = Attachment::new("~/Library/Messages/Attachments/9b/11/X/a.png", 42);
    let parts = Parts::of(&row.guid).text("one").file(photo).text("three");
    row.parts(parts)
}

#[test]
fn an_edit_is_told_with_every_text_that_the_part_has_had() {
    on_every_macos(|phone| {
        let row = text("first");
        phone.tells(&row, received(&row, json!({ "text": "first" })));
        phone.db.edit(&row.guid, 0, "second 😃", noon(5)).unwrap();
        let mut history = vec![("first", AT.to_owned()), ("second 😃", after(5))];
        phone.hears(&[edited(&row, 0, &history)]);
        phone.db.edit(&row.guid, 0, "third", noon(9)).unwrap();
        history.push(("third", after(9)));
        phone.hears(&[edited(&row, 0, &history)]);

        let row = own("mine");
        phone.tells(&row, sent(&row, json!({ "text": "mine" })));
        phone.db.edit(&row.guid, 0, "mine too", noon(5)).unwrap();
        let history = [("mine", AT.to_owned()), ("mine too", after(5))];
        phone.hears(&[with(edited(&row, 0, &history), json!({ "from_me": true }))]);
    });
}

#[test]
fn an_edit_of_one_part_names_that_part() {
    on_every_macos(|phone| {
        let row = three_parts();
        phone.write(&row);
        assert_eq!(phone.hear().len(), 1);
        phone.db.edit(&row.guid, 2, "drei", noon(5)).unwrap();
        phone.hears(&[edited(&row, 2, &[("three", AT.to_owned()), ("drei", after(5))])]);
    });
}

#[test]
fn parts_are_taken_back_one_by_one_and_keep_their_numbers() {
    on_every_macos(|phone| {
        let row = three_parts();
        phone.write(&row);
        assert_eq!(phone.hear().len(), 1);
        phone.db.unsend(&row.guid, Some(1), noon(5)).unwrap();
        let expected = unsent(phone, &row, &[1], 5);
        phone.hears(&[expected]);
        phone.db.unsend(&row.guid, Some(0), noon(6)).unwrap();
        let expected = unsent(phone, &row, &[0], 6);
        phone.hears(&[expected]);
        // What is left is still part 2.
        phone.db.edit(&row.guid, 2, "drei", noon(7)).unwrap();
        phone.hears(&[edited(&row, 2, &[("three", AT.to_owned()), ("drei", after(7))])]);
    });
}

#[test]
fn what_is_left_of_a_message_of_which_a_part_was_taken_back_says_which_part_it_is() {
    on_every_macos(|phone| {
        let row = inbound();
        let parts = Parts::of(&row.guid).text("one").text("two").text("three");
        let row = row.parts(parts);
        phone.write(&row);
        phone.db.unsend(&row.guid, Some(0), noon(5)).unwrap();
        phone.db.unsend(&row.guid, Some(1), noon(6)).unwrap();
        let expected = json!({
            "text": "three",
            "parts": [{ "part": 2, "start": 0, "length": 5 }],
        });
        let taken_back = unsent(phone, &row, &[0, 1], 6);
        phone.hears(&[received(&row, expected), taken_back]);
    });
}

#[test]
fn what_is_left_is_taken_back_whole_and_that_is_one_event() {
    on_every_macos(|phone| {
        let row = three_parts();
        phone.write(&row);
        assert_eq!(phone.hear().len(), 1);
        phone.db.unsend(&row.guid, Some(1), noon(5)).unwrap();
        let expected = unsent(phone, &row, &[1], 5);
        phone.hears(&[expected]);
        // macOS 12 knows no unsends, and has no count of parts to say that none is left.
        if !phone.is(13) {
            return;
        }
        phone.db.unsend(&row.guid, None, noon(6)).unwrap();
        let expected = unsent(phone, &row, &[], 6);
        phone.hears(&[expected]);
    });
}

#[test]
fn a_message_taken_back_whole_is_told_so_once() {
    on_every_macos(|phone| {
        for row in [text("gone"), three_parts()] {
            phone.write(&row);
            assert_eq!(phone.hear().len(), 1);
            phone.db.unsend(&row.guid, None, noon(5)).unwrap();
            // A message of several parts loses its files one by one; macOS 12 knows no unsends, and
            // has no count of parts to say that none is left.
            let heard = phone.hear();
            let [change] = heard.as_slice() else { panic!("{heard:?}") };
            assert_eq!(change["type"], "unsent");
            assert_eq!(change["guid"], row.guid);
            phone.hears(&[]);
        }
    });
}

#[test]
fn what_was_edited_before_it_was_read_is_told_as_it_is_and_then_with_its_history() {
    on_every_macos(|phone| {
        let row = text("first");
        phone.write(&row);
        phone.db.edit(&row.guid, 0, "second", noon(5)).unwrap();
        let history = [("first", AT.to_owned()), ("second", after(5))];
        phone.hears(&[received(&row, json!({ "text": "second" })), edited(&row, 0, &history)]);
    });
}
