//! Reactions: every kind, added and taken back, to every form of target.

use sandbox::chatdb::kinds::attachment::Attachment;
use sandbox::chatdb::kinds::flag::poll_vote;
use sandbox::chatdb::kinds::reaction::{Reaction, Target, reaction};
use sandbox::chatdb::kinds::{Author, Row};
use serde_json::{Value, json};

use super::phone::{
    ANNA, AT, anna, direct, group, in_direct, in_group, inbound, noon, on_every_macos, with,
};

const MESSAGE: &str = "262F0210-126B-40E1-8247-C3EECF585C66";

fn told(row: &Row, part: u32, kind: &str, more: Value) -> Value {
    let base = json!({
        "type": "reaction",
        "guid": row.guid,
        "from": ANNA,
        "conversation": in_direct(),
        "target": MESSAGE,
        "part": part,
        "reaction": kind,
        "removed": false,
        "at": AT,
    });
    with(base, more)
}

fn sticker() -> Attachment {
    Attachment::new("~/Library/Messages/StickerCache/s.heic", 7)
}

fn sticker_file(row: &Row) -> Value {
    json!([{
        "guid": format!("at_0_{}", row.guid),
        "name": "s.heic",
        "mime": "image/heic",
        "uti": "public.heic",
        "bytes": 7,
        "complete": true,
        "state": "complete",
        "path": "~/Library/Messages/StickerCache/s.heic",
        "part": 0,
        "position": 0,
        "sticker": true,
    }])
}

#[test]
fn the_six_are_told_added_and_removed_with_message_and_part() {
    let names = ["love", "like", "dislike", "laugh", "emphasize", "question"];
    let targets = [
        (Target::Part(0, MESSAGE.to_owned()), 0),
        (Target::Part(11, MESSAGE.to_owned()), 11),
        (Target::Balloon(MESSAGE.to_owned()), 0),
        (Target::Bare(MESSAGE.to_owned()), 0),
    ];
    on_every_macos(|phone| {
        for (kind, name) in Reaction::CLASSIC.iter().zip(names) {
            for (target, part) in &targets {
                for added in [true, false] {
                    let row = reaction((anna(), direct(), noon(0)), kind, target, "quoted", added);
                    phone.tells(&row, told(&row, *part, name, json!({ "removed": !added })));
                }
            }
        }
    });
}

#[test]
fn any_emoji_is_told() {
    on_every_macos(|phone| {
        let target = Target::Part(1, MESSAGE.to_owned());
        for added in [true, false] {
            let party = Reaction::Emoji("🎉".to_owned());
            let row = reaction((anna(), direct(), noon(0)), &party, &target, "quoted", added);
            // The column came with macOS 15; rows of this type on an older one have no emoji.
            let emoji = if phone.is(15) { json!({ "emoji": "🎉" }) } else { json!({}) };
            let expected = told(&row, 1, "emoji", with(json!({ "removed": !added }), emoji));
            phone.tells(&row, expected);
        }
    });
}

#[test]
fn stickers_are_told_with_their_files_wherever_they_are_put() {
    on_every_macos(|phone| {
        let target = Target::Part(1, MESSAGE.to_owned());
        let stuck = Reaction::Sticker(sticker());
        let row = reaction((anna(), direct(), noon(0)), &stuck, &target, "quoted", true);
        phone.tells(&row, told(&row, 1, "sticker", json!({ "attachments": sticker_file(&row) })));
        let row = reaction((anna(), direct(), noon(0)), &stuck, &target, "quoted", false);
        phone.tells(&row, told(&row, 1, "sticker", json!({ "removed": true })));
        let row = inbound().sticker_on(&target, sticker());
        phone.tells(&row, told(&row, 1, "sticker", json!({ "attachments": sticker_file(&row) })));
    });
}

#[test]
fn reactions_in_groups_and_own_ones_are_told_where_they_belong() {
    on_every_macos(|phone| {
        let target = Target::Part(0, MESSAGE.to_owned());
        let row = reaction((anna(), group(), noon(0)), &Reaction::Love, &target, "x", true);
        phone.tells(&row, told(&row, 0, "love", json!({ "conversation": in_group() })));
        let row = reaction((Author::Me, direct(), noon(0)), &Reaction::Like, &target, "x", true);
        let expected = json!({
            "type": "own_reaction",
            "guid": row.guid,
            "conversation": in_direct(),
            "target": MESSAGE,
            "part": 0,
            "reaction": "like",
            "removed": false,
            "at": AT,
        });
        phone.tells(&row, expected);
    });
}

#[test]
fn a_vote_in_a_poll_is_told() {
    on_every_macos(|phone| {
        let row = poll_vote(anna(), direct(), noon(0), MESSAGE);
        phone.tells(&row, told(&row, 0, "vote", json!({})));
    });
}
