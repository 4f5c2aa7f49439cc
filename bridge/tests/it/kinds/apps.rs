//! Messages of apps, and the previews of links: together, late, and filled later.

use sandbox::chatdb::kinds::Row;
use sandbox::chatdb::kinds::balloon::App;
use serde_json::{Value, json};

use super::phone::{AT, inbound, noon, on_every_macos, received, text};

const LINK: &str = "https://example.test/a";

fn shown() -> Value {
    json!({ "url": LINK, "title": "A title" })
}

fn link() -> Value {
    json!([{ "start": 4, "length": 22, "kind": "link", "value": LINK }])
}

fn preview_row() -> Row {
    Row::new(super::phone::anna(), super::phone::direct(), noon(1)).url_preview(LINK, "A title")
}

fn late(message: &Row) -> Value {
    json!({
        "type": "preview",
        "message": message.guid,
        "preview": shown(),
        "at": "2026-11-22T12:00:01.000Z",
    })
}

#[test]
fn apps_are_told_with_bundle_id_and_what_their_payload_says() {
    on_every_macos(|phone| {
        for app in App::ALL {
            let row = inbound().app(app);
            let mut told = json!({ "id": app.bundle() });
            let said = match app {
                App::ApplePay => Some(("Apple Pay", "$12.50")),
                App::FindMy => Some(("Find My", "Started sharing location")),
                App::Polls => Some(("Polls", "Where shall we eat?")),
                App::GamePigeon => Some(("GamePigeon", "8 Ball")),
                App::DigitalTouch | App::Handwriting | App::UrlPreview => None,
            };
            if let Some((name, caption)) = said {
                told = json!({ "id": app.bundle(), "name": name, "caption": caption });
            }
            phone.tells(&row, received(&row, json!({ "app": told })));
        }
    });
}

#[test]
fn an_app_whose_payload_comes_within_two_seconds_is_told_with_it() {
    on_every_macos(|phone| {
        let row = inbound().app(App::ApplePay);
        phone.write(&row.clone().without_payload());
        phone.hears(&[]);
        phone.db.fill_payload(&row.guid, &row).unwrap();
        let app = json!({ "id": App::ApplePay.bundle(), "name": "Apple Pay", "caption": "$12.50" });
        phone.hears(&[received(&row, json!({ "app": app }))]);
        // A move in a game belongs to an earlier message of its session.
        let row = inbound().app(App::GamePigeon).with("associated_message_type", 2);
        phone.write(&row.clone().without_payload());
        phone.hears(&[]);
        phone.db.fill_payload(&row.guid, &row).unwrap();
        let app =
            json!({ "id": App::GamePigeon.bundle(), "name": "GamePigeon", "caption": "8 Ball" });
        phone.hears(&[received(&row, json!({ "app": app }))]);
        // One whose payload never comes is not lost.
        let row = inbound().app(App::Polls).without_payload();
        phone.write(&row);
        phone.hears(&[]);
        phone.later(2_000);
        phone.hears(&[received(&row, json!({ "app": { "id": App::Polls.bundle() } }))]);
    });
}

#[test]
fn a_link_and_its_preview_are_one_message() {
    on_every_macos(|phone| {
        let row = text(&format!("see {LINK}"));
        phone.write(&row);
        phone.hears(&[]);
        phone.later(900);
        phone.write(&preview_row());
        let expected = json!({
            "text": format!("see {LINK}"),
            "runs": link(),
            "preview": shown(),
        });
        phone.hears(&[received(&row, expected)]);
    });
}

#[test]
fn a_preview_that_is_filled_within_two_seconds_is_in_the_message() {
    on_every_macos(|phone| {
        let row = text(&format!("see {LINK}"));
        let preview = preview_row();
        phone.write(&row);
        phone.write(&preview.clone().without_payload());
        phone.hears(&[]);
        phone.later(1_000);
        phone.db.fill_payload(&preview.guid, &preview).unwrap();
        let expected = json!({
            "text": format!("see {LINK}"),
            "runs": link(),
            "preview": shown(),
        });
        phone.hears(&[received(&row, expected)]);
        phone.later(60_000);
        phone.hears(&[]);
    });
}

#[test]
fn a_preview_that_comes_or_is_filled_later_is_told_once() {
    let bare = |row: &Row| received(row, json!({ "text": format!("see {LINK}"), "runs": link() }));
    on_every_macos(|phone| {
        // The row itself comes late, whole.
        let row = text(&format!("see {LINK}"));
        phone.write(&row);
        phone.hears(&[]);
        phone.later(2_000);
        phone.hears(&[bare(&row)]);
        phone.write(&preview_row());
        phone.hears(&[late(&row)]);
    });
    on_every_macos(|phone| {
        // Both rows are there, and the payload comes after the message was told.
        let row = text(&format!("see {LINK}"));
        let preview = preview_row();
        phone.write(&row);
        phone.write(&preview.clone().without_payload());
        phone.hears(&[]);
        phone.later(2_000);
        phone.hears(&[bare(&row)]);
        phone.later(30_000);
        phone.hears(&[]);
        phone.db.fill_payload(&preview.guid, &preview).unwrap();
        phone.hears(&[late(&row)]);
    });
    on_every_macos(|phone| {
        // The payload is a placeholder until the page is loaded.
        let row = text(&format!("see {LINK}"));
        let preview = preview_row();
        phone.write(&row);
        phone.write(&preview.clone().placeholder(LINK));
        phone.hears(&[]);
        phone.later(2_000);
        phone.hears(&[bare(&row)]);
        phone.db.fill_payload(&preview.guid, &preview).unwrap();
        phone.hears(&[late(&row)]);
    });
    on_every_macos(|phone| {
        // The row comes late and bare, and is filled later still.
        let row = text(&format!("see {LINK}"));
        let preview = preview_row();
        phone.write(&row);
        phone.hears(&[]);
        phone.later(2_000);
        phone.hears(&[bare(&row)]);
        phone.write(&preview.clone().without_payload());
        phone.hears(&[]);
        phone.later(30_000);
        phone.hears(&[]);
        phone.db.fill_payload(&preview.guid, &preview).unwrap();
        phone.hears(&[late(&row)]);
    });
    on_every_macos(|phone| {
        // The row has nothing at all in it until everybody has stopped waiting.
        let row = text(&format!("see {LINK}"));
        let preview = preview_row();
        phone.write(&row);
        let empty = Row::new(super::phone::anna(), super::phone::direct(), noon(1))
            .guid(preview.guid.clone())
            .with("balloon_bundle_id", App::UrlPreview.bundle().to_owned());
        phone.write(&empty);
        phone.hears(&[]);
        phone.later(2_000);
        phone.hears(&[bare(&row)]);
        phone.later(10_000);
        phone.hears(&[]);
        phone.db.fill_payload(&preview.guid, &preview).unwrap();
        phone.hears(&[late(&row)]);
    });
}

#[test]
fn a_link_sent_alone_is_a_message_and_its_preview_follows_when_it_is_filled() {
    on_every_macos(|phone| {
        let row = inbound().url_preview(LINK, "A title");
        let runs = json!([{ "start": 0, "length": 22, "kind": "link", "value": LINK }]);
        phone
            .tells(&row, received(&row, json!({ "text": LINK, "runs": runs, "preview": shown() })));
        let row = inbound().url_preview(LINK, "A title");
        phone.write(&row.clone().without_payload());
        phone.hears(&[]);
        phone.later(2_000);
        phone.hears(&[received(&row, json!({ "text": LINK, "runs": runs }))]);
        phone.db.fill_payload(&row.guid, &row).unwrap();
        let expected =
            json!({ "type": "preview", "message": row.guid, "preview": shown(), "at": AT });
        phone.hears(&[expected]);
    });
}
