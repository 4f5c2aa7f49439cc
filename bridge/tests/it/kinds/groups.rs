//! What happens to groups, and what the system says.

use sandbox::chatdb::kinds::group::GroupChange;
use sandbox::chatdb::kinds::{Author, Row};
use serde_json::{Value, json};

use super::phone::{
    ANNA, AT, BERT, GROUP, Phone, anna, direct, group, in_direct, in_group, noon, on_every_macos,
    with,
};

const CARL: &str = "+12025550103";

fn change(phone: &mut Phone, author: &Author, members: &[&str], change: &GroupChange) -> Value {
    let members: Vec<String> = members.iter().map(|member| (*member).to_owned()).collect();
    let written = phone.db.write_group_event(author, (GROUP, &members), change, noon(0)).unwrap();
    phone.db.join(&written).unwrap();
    let heard = phone.hear();
    let [told] = heard.as_slice() else { panic!("{heard:?}") };
    phone.hears(&[]);
    let mut told = told.clone();
    let guid = told.as_object_mut().unwrap().remove("guid");
    assert_eq!(guid, Some(Value::from(written.guid)));
    told
}

fn told(change: &str, participants: &[&str], more: Value) -> Value {
    let base = json!({
        "type": "group",
        "conversation": in_group(),
        "change": change,
        "by": ANNA,
        "participants": participants,
        "at": AT,
    });
    with(base, more)
}

#[test]
fn every_change_of_a_group_is_told_with_who_is_in_it_then() {
    on_every_macos(|phone| {
        let two = [ANNA, BERT];
        let heard = change(phone, &anna(), &two, &GroupChange::Joined(CARL.to_owned()));
        assert_eq!(heard, told("joined", &[ANNA, BERT, CARL], json!({ "subject": CARL })));
        let three = [ANNA, BERT, CARL];
        let heard = change(phone, &anna(), &three, &GroupChange::Removed(CARL.to_owned()));
        assert_eq!(heard, told("removed", &two, json!({ "subject": CARL })));
        let heard = change(phone, &anna(), &two, &GroupChange::Renamed("Friends".to_owned()));
        assert_eq!(heard, told("renamed", &two, json!({ "subject": "Friends" })));
        for (what, name) in [
            (GroupChange::PhotoSet, "photo"),
            (GroupChange::PhotoRemoved, "photo_removed"),
            (GroupChange::BackgroundSet, "background"),
            (GroupChange::BackgroundRemoved, "background_removed"),
        ] {
            assert_eq!(change(phone, &anna(), &two, &what), told(name, &two, json!({})));
        }
        let bert = Author::Other(BERT.to_owned());
        let heard = change(phone, &bert, &two, &GroupChange::Left);
        assert_eq!(heard, told("left", &[ANNA], json!({ "subject": BERT, "by": BERT })));
    });
}

#[test]
fn what_the_owner_of_the_phone_does_is_by_nobody() {
    on_every_macos(|phone| {
        let what = GroupChange::Renamed("Mine".to_owned());
        let heard = change(phone, &Author::Me, &[ANNA, BERT], &what);
        let mut expected = told("renamed", &[ANNA, BERT], json!({ "subject": "Mine" }));
        expected.as_object_mut().unwrap().remove("by");
        assert_eq!(heard, expected);
    });
}

fn notice(row: &Row, conversation: &Value, kind: &str) -> Value {
    json!({
        "type": "notice",
        "guid": row.guid,
        "conversation": conversation,
        "from": ANNA,
        "notice": kind,
        "at": AT,
    })
}

#[test]
fn a_new_number_is_no_change_of_the_group() {
    on_every_macos(|phone| {
        let heard = change(phone, &anna(), &[ANNA, BERT], &GroupChange::NumberChanged);
        let expected = json!({
            "type": "notice",
            "conversation": in_group(),
            "from": ANNA,
            "notice": "number_changed",
            "at": AT,
        });
        assert_eq!(heard, expected);
    });
}

#[test]
fn notices_are_told_by_their_kind() {
    on_every_macos(|phone| {
        let row = |item: i64| Row::new(anna(), direct(), noon(0)).with("item_type", item);
        for (row, kind) in [
            (row(4), "location_shared"),
            (row(4).with("share_status", 1), "location_stopped"),
            (row(5), "audio_kept"),
            (row(6), "shareplay"),
        ] {
            phone.tells(&row, notice(&row, &in_direct(), kind));
        }
        let row = Row::text(anna(), direct(), noon(0), "x").with("is_system_message", 1);
        phone.tells(&row, notice(&row, &in_direct(), "system"));
        let row = Row::new(anna(), group(), noon(0)).with("item_type", 6);
        phone.tells(&row, notice(&row, &in_group(), "shareplay"));
    });
}
