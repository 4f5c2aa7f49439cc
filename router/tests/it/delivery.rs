//! What keeps messages from going, or makes them go in another order than they came: caps of phones, contacts who do not
//! answer.

#![expect(
    clippy::unwrap_used,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use crate::link_support::*;
use protocol::api::Message;
use protocol::pipe::{Attempt, Event};
use protocol::{Class, MessageId, Reason, Status, TenantId};
use router::server::App;
use router::store::messages::{self, Filter, NewMessage, Window};
use router::warming::DAY_MS;

const ONE: &str = "+15550100190";
const TWO: &str = "+15550100191";

fn stranger(n: u8) -> String {
    format!("+120255501{n:02}")
}

/// A message that is held for a reason, as it then stands.
async fn held(app: &App, tenant: &TenantId, id: &MessageId, reason: Reason) -> Message {
    eventually("it is held for that reason", || async {
        message(app, tenant, id).await.held_reason == Some(reason)
    })
    .await;
    message(app, tenant, id).await
}

const TWO_STRANGERS: &str = "[warming]\nnew_contacts = [{ from_day = 0, per_day = 2 }]\n";

#[tokio::test]
async fn a_phone_writes_to_no_more_strangers_than_its_age_allows() {
    let (router, tenant, _host, mut bridge) = shelf(TWO_STRANGERS, &[ONE]).await;
    let app = &router.app;
    for n in 1..=2 {
        accept(app, &tenant, &stranger(n), |_| {}).await;
        let send = bridge.wire.send_command().await;
        bridge.sends(&send).await;
    }
    let third = accept(app, &tenant, &stranger(3), |_| {}).await;
    let waits = held(app, &tenant, &third, Reason::WarmingCap).await;
    let first = count(app, "SELECT MIN(since) FROM phone_contacts").await;
    // Its life is an hour, the place is free in a day.
    assert_eq!(waits.next_at, waits.expires_at);
    let long = accept(app, &tenant, &stranger(4), |new| {
        new.expires_at = new.now.plus_ms(2 * DAY_MS);
    })
    .await;
    let waits = held(app, &tenant, &long, Reason::WarmingCap).await;
    assert_eq!(waits.next_at.unwrap().0, first + DAY_MS);
    // Whom it has met is no stranger, and who writes first is none either.
    let known = accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, known);
    bridge.sends(&send).await;
    bridge.event(received(&stranger(5), "guid-in", "Hello?", app.clock.now())).await;
    let answer = accept(app, &tenant, &stranger(5), |_| {}).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, answer);
    bridge.sends(&send).await;
    // Another phone has places of its own.
    let other = host(app, &[TWO]).await;
    let mut second = Bridge::connect(&router, &other).await;
    let mut went =
        [second.wire.send_command().await.message, second.wire.send_command().await.message];
    went.sort();
    assert_eq!(went, [third, long]);
}

#[tokio::test]
async fn a_place_that_was_not_used_is_given_back() {
    let (router, tenant, _host, mut bridge) =
        shelf("[warming]\nnew_contacts = [{ from_day = 0, per_day = 1 }]\n", &[ONE]).await;
    let app = &router.app;
    let first = accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    let second = accept(app, &tenant, &stranger(2), |_| {}).await;
    held(app, &tenant, &second, Reason::WarmingCap).await;
    assert_eq!(count(app, "SELECT messages_today FROM phones").await, 1);
    bridge.event(Event::Refused(about(&send, Reason::BadAddress, false))).await;
    assert_eq!(message(app, &tenant, &first).await.status, Status::Failed);
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, second);
    assert_eq!(count(app, "SELECT messages_today FROM phones").await, 1);
    assert_eq!(count(app, "SELECT COUNT(*) FROM phone_contacts").await, 1);
    assert_eq!(count(app, "SELECT SUM(unanswered) FROM bindings").await, 1);
    // What was tried and failed was seen by Apple: its place stays taken.
    bridge.event(Event::Failed(about(&send, Reason::NotRegistered, false))).await;
    let third = accept(app, &tenant, &stranger(3), |_| {}).await;
    held(app, &tenant, &third, Reason::WarmingCap).await;
    // An answer that is repeated gives nothing back a second time.
    let attempt = Attempt { message: first, attempt: 1 };
    bridge.event(Event::Expired(attempt)).await;
    assert_eq!(count(app, "SELECT messages_today FROM phones").await, 1);
    assert_eq!(count(app, "SELECT COUNT(*) FROM phone_contacts").await, 1);
}

#[tokio::test]
async fn who_was_never_written_to_is_still_a_stranger() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let rules = serde_json::json!({ "first_message_links": false });
    let (whose, rules) = (tenant.clone(), serde_json::from_value(rules).unwrap());
    assert!(
        app.store.write(move |tx| router::store::rules::set(tx, &whose, &rules)).await.unwrap()
    );
    accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.event(Event::Refused(about(&send, Reason::BadAddress, false))).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM bindings").await, 0);
    let link = |new: &mut NewMessage| "https://a.example".clone_into(&mut new.text);
    let first = accept(app, &tenant, &stranger(1), link).await;
    let end = reaches(app, &tenant, &first, Status::Blocked).await;
    assert_eq!(end.reason, Some(Reason::Content));
    // Whoever has written is known, whatever became of what was sent.
    bridge.event(received(&stranger(1), "guid-in", "Hello?", app.clock.now())).await;
    let second = accept(app, &tenant, &stranger(1), link).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, second);
    bridge.event(Event::Refused(about(&send, Reason::BadAddress, false))).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM bindings").await, 1);
}

#[tokio::test]
async fn what_was_never_started_changes_nothing_about_what_was_sent_before() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let before = accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;
    reaches(app, &tenant, &before, Status::Sent).await;
    // An answer to another phone, which counts for all of them.
    app.store
        .write(|tx| tx.execute("UPDATE bindings SET unanswered = 0", router::params![]))
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.event(Event::Refused(about(&send, Reason::BadAddress, false))).await;
    // A STOP to this phone is for whom the message before came from, and a reply answers whoever wrote last.
    let as_before =
        "SELECT COUNT(*) FROM bindings b WHERE unanswered = 0 AND last_direction = 'outbound'
        AND last_at = (SELECT MIN(first_offered_at) FROM attempts)";
    assert_eq!(count(app, as_before).await, 1);
}

#[tokio::test]
async fn what_nobody_knew_and_was_never_started_counts_for_nothing() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.event(Event::Accepted(Attempt { message: id.clone(), attempt: 1 })).await;
    let now = app.clock.now().plus_ms(DAY_MS);
    app.store
        .write(move |tx| {
            for given in router::store::dispatch::lost(tx, now, 8)? {
                router::store::dispatch::host_lost(tx, &given, now)?;
            }
            Ok(())
        })
        .await
        .unwrap();
    reaches(app, &tenant, &id, Status::Unknown).await;
    assert_eq!(count(app, "SELECT messages_today FROM phones").await, 1);
    for _ in 0..2 {
        bridge.event(Event::Canceled(Attempt { message: send.message.clone(), attempt: 1 })).await;
        let end = reaches(app, &tenant, &id, Status::Failed).await;
        assert_eq!(end.reason, Some(Reason::HostLost));
        assert_eq!(count(app, "SELECT messages_today FROM phones").await, 0);
        assert_eq!(count(app, "SELECT COUNT(*) FROM phone_contacts").await, 0);
        assert_eq!(count(app, "SELECT COUNT(*) FROM bindings").await, 0);
    }
    // chat.db has the last word, and who answers is known by it.
    let proof = Event::Sent {
        attempt: Attempt { message: send.message.clone(), attempt: 1 },
        guid: "guid-out".to_owned(),
        channel: protocol::Channel::Imessage,
    };
    bridge.event(proof).await;
    reaches(app, &tenant, &id, Status::Sent).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM bindings").await, 1);
}

#[tokio::test]
async fn a_message_that_is_tried_again_counts_as_one_without_an_answer() {
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nretry_first_ms = 10\n", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.event(Event::Failed(about(&send, Reason::Network, true))).await;
    let again = bridge.wire.send_command().await;
    assert_eq!((&again.message, again.attempt), (&id, 2));
    assert_eq!(count(app, "SELECT SUM(unanswered) FROM bindings").await, 1);
    bridge.sends(&again).await;
    reaches(app, &tenant, &id, Status::Sent).await;
    assert_eq!(count(app, "SELECT SUM(unanswered) FROM bindings").await, 1);
    assert_eq!(count(app, "SELECT COUNT(*) FROM bindings").await, 1);
}

#[tokio::test]
async fn a_code_that_lives_too_long_has_no_codes_turn() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let lane = |id: MessageId| {
        let sql = "SELECT class_rank FROM jobs WHERE message_id = ?1";
        app.store.read(move |tx| tx.query_row(sql, router::params![id], |row| row.int(0)))
    };
    let code = accept(app, &tenant, &stranger(1), |new| {
        new.class = Class::Otp;
        new.expires_at = new.now.plus_ms(300_000);
    })
    .await;
    let other = accept(app, &tenant, &stranger(2), |new| {
        new.class = Class::Otp;
        new.expires_at = new.now.plus_ms(DAY_MS);
    })
    .await;
    for id in [&code, &other] {
        held(app, &tenant, id, Reason::NoPhoneAvailable).await;
    }
    assert_eq!(lane(code).await.unwrap(), i64::from(Class::Otp.rank()));
    assert_eq!(lane(other.clone()).await.unwrap(), i64::from(Class::Marketing.rank()));
    assert_eq!(kinds(app, &tenant, &other).await, ["queued", "held"], "its story has no detour");
}

#[tokio::test]
async fn a_recipients_messages_are_listed_newest_first_whether_they_are_on_their_way_or_over() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let far = |new: &mut NewMessage| {
        new.send_at = Some(new.now.plus_ms(DAY_MS));
        new.expires_at = new.now.plus_ms(2 * DAY_MS);
    };
    let mut all = Vec::new();
    for n in 0..3 {
        all.push(accept(app, &tenant, &stranger(1), far).await);
        let sent = accept(app, &tenant, &stranger(1), |_| {}).await;
        let send = bridge.wire.send_command().await;
        bridge.sends(&send).await;
        reaches(app, &tenant, &sent, Status::Sent).await;
        all.push(sent);
        accept(app, &tenant, &stranger(2 + n), far).await;
    }
    // Those of one millisecond are in no order but that of their ids.
    all.sort();
    all.reverse();
    let mut before = None;
    let mut listed = Vec::new();
    for _page in 0..3 {
        let window = Window { before, limit: 2 };
        let filter = Filter { recipient: Some(stranger(1).parse().unwrap()), ..Filter::default() };
        let tenant = tenant.clone();
        let page = app.store.read(move |tx| messages::list(tx, &tenant, &filter, &window));
        let page: Vec<MessageId> =
            page.await.unwrap().into_iter().take(2).map(|message| message.id).collect();
        before = page.last().map(ToString::to_string);
        listed.extend(page);
    }
    assert_eq!(listed, all);
}

#[tokio::test]
async fn when_every_phone_has_sent_its_day_a_message_fails() {
    let router = router("[dispatch]\ndaily_cap = 1\n").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let first = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &first).await;
    accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;
    let second = accept(app, &tenant, &stranger(1), |_| {}).await;
    let end = reaches(app, &tenant, &second, Status::Failed).await;
    assert_eq!(end.reason, Some(Reason::NoPhoneAvailable));
    // A phone that is away may still come back today.
    host(app, &[TWO]).await;
    let third = accept(app, &tenant, &stranger(1), |_| {}).await;
    held(app, &tenant, &third, Reason::NoPhoneAvailable).await;
    // A phone may have a cap of its own.
    app.store
        .write(|tx| tx.execute("UPDATE phones SET daily_cap = 2 WHERE messages_today = 1", &[]))
        .await
        .unwrap();
    router::dispatch::phone_became_able(app).await.unwrap();
    assert_eq!(bridge.wire.send_command().await.message, third);
}

#[tokio::test]
async fn a_place_of_the_day_that_is_given_back_is_another_messages() {
    let router = router("[dispatch]\ndaily_cap = 1\n").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let here = host(app, &[ONE]).await;
    // Away, and may come back today.
    host(app, &[TWO]).await;
    let mut bridge = Bridge::connect(&router, &here).await;
    let first = accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, first);
    let second = accept(app, &tenant, &stranger(2), |_| {}).await;
    held(app, &tenant, &second, Reason::NoPhoneAvailable).await;
    bridge.event(Event::Refused(about(&send, Reason::BadAddress, false))).await;
    reaches(app, &tenant, &first, Status::Failed).await;
    assert_eq!(bridge.wire.send_command().await.message, second);
}

#[tokio::test]
async fn every_place_of_the_day_that_is_given_back_is_filled() {
    let router = router("[dispatch]\ndaily_cap = 3\n").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let here = host(app, &[ONE]).await;
    host(app, &[TWO]).await;
    let mut bridge = Bridge::connect(&router, &here).await;
    let mut turned_down = Vec::new();
    for contact in 1..=3 {
        accept(app, &tenant, &stranger(contact), |_| {}).await;
        turned_down.push(bridge.wire.send_command().await);
    }
    // The first waits for the phone that is away, whatever becomes free.
    let away = TWO.parse().unwrap();
    let asks = accept(app, &tenant, &stranger(4), |new| new.from = Some(away)).await;
    held(app, &tenant, &asks, Reason::NoPhoneAvailable).await;
    let mut waiting = Vec::new();
    for contact in 5..=7 {
        let id = accept(app, &tenant, &stranger(contact), |_| {}).await;
        held(app, &tenant, &id, Reason::NoPhoneAvailable).await;
        waiting.push(id);
    }
    for send in &turned_down {
        bridge.event(Event::Refused(about(send, Reason::BadAddress, false))).await;
    }
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push(bridge.wire.send_command().await.message);
    }
    sent.sort();
    assert_eq!(sent, waiting);
}

#[tokio::test]
async fn what_waits_for_an_answer_goes_when_an_earlier_one_did_not() {
    let router = router("[warming]\nunanswered = 1\n").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let here = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &here).await;
    let first = accept(app, &tenant, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, first);
    let second = accept(app, &tenant, &stranger(1), |_| {}).await;
    held(app, &tenant, &second, Reason::Unanswered).await;
    bridge.event(Event::Refused(about(&send, Reason::BadAddress, false))).await;
    reaches(app, &tenant, &first, Status::Failed).await;
    assert_eq!(bridge.wire.send_command().await.message, second);
}

#[tokio::test]
async fn who_does_not_answer_is_left_alone_until_they_do() {
    let router = router("[warming]\nunanswered = 2\n").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let other = crate::link_support::tenant(app, "Other").await;
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    for _ in 0..2 {
        accept(app, &tenant, &stranger(1), |_| {}).await;
        let send = bridge.wire.send_command().await;
        bridge.sends(&send).await;
    }
    let third = accept(app, &tenant, &stranger(1), |_| {}).await;
    let waits = held(app, &tenant, &third, Reason::Unanswered).await;
    assert_eq!(waits.next_at, waits.expires_at);
    // A code is asked for, and another tenant has asked nothing yet.
    let code = accept(app, &tenant, &stranger(1), |new| {
        new.class = Class::Otp;
        new.expires_at = new.now.plus_ms(300_000);
    })
    .await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, code);
    bridge.sends(&send).await;
    let others = accept(app, &other, &stranger(1), |_| {}).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, others);
    // The phone talked with both; exclusive to one, the answer is that one's.
    let whose = tenant.clone();
    app.store
        .write(move |tx| {
            tx.execute("UPDATE phones SET exclusive_tenant_id = ?1", router::params![whose])
        })
        .await
        .unwrap();
    bridge.event(received(&stranger(1), "guid-in", "Yes?", app.clock.now())).await;
    assert_eq!(bridge.wire.send_command().await.message, third);
}

#[tokio::test]
async fn a_scheduled_message_is_queued_when_its_time_comes_and_not_before() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let later = app.clock.now().plus_ms(300);
    let id = accept(app, &tenant, &stranger(1), |new| new.send_at = Some(later)).await;
    let never = accept(app, &tenant, &stranger(2), |new| new.send_at = Some(later)).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Scheduled);
    let (whose, which, now) = (tenant.clone(), never.clone(), app.clock.now());
    app.store.write(move |tx| messages::cancel(tx, &whose, &which, now)).await.unwrap();
    // There is no phone: what happens by its time alone.
    reaches(app, &tenant, &id, Status::Queued).await;
    assert!(app.clock.now() >= later);
    held(app, &tenant, &id, Reason::NoPhoneAvailable).await;
    assert_eq!(kinds(app, &tenant, &id).await, ["scheduled", "queued", "held"]);
    assert_eq!(kinds(app, &tenant, &never).await, ["scheduled", "canceled"]);
}

#[tokio::test]
async fn what_ends_the_router_again_and_again_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let app = open(folder.path(), "").await;
    let tenant = tenant(&app, "Acme").await;
    let bad = accept(&app, &tenant, &stranger(1), |_| {}).await;
    let good = accept(&app, &tenant, &stranger(2), |_| {}).await;
    // Claimed five times, and each time the router ended.
    for claims in 2..=5 {
        let which = bad.clone();
        app.store
            .write(move |tx| {
                let sql = "UPDATE jobs SET claims = ?2 WHERE message_id = ?1";
                tx.execute(sql, router::params![which, claims])
            })
            .await
            .unwrap();
        if claims < 5 {
            // It is looked at alone, found to be harmless this time, and waits like any other.
            let ran = router::dispatch::run_once(&app).await.unwrap();
            assert_eq!((ran.held, ran.ended, ran.more), (1, 0, true));
            assert_eq!(count(&app, "SELECT SUM(claims) FROM jobs").await, 0);
            let sql = "UPDATE jobs SET ready = 1, run_at = 0";
            app.store.write(move |tx| tx.execute(sql, &[])).await.unwrap();
        }
    }
    let ran = router::dispatch::run_once(&app).await.unwrap();
    assert_eq!((ran.held, ran.ended), (0, 1));
    let end = message(&app, &tenant, &bad).await;
    assert_eq!((end.status, end.reason), (Status::Failed, Some(Reason::Poisoned)));
    assert_eq!(kinds(&app, &tenant, &bad).await, ["queued", "held", "failed", "dead_letter"]);
    router::dispatch::run_once(&app).await.unwrap();
    assert_eq!(message(&app, &tenant, &good).await.status, Status::Queued);
}

/// Asks the operator's route for a phone, with a change; answers status and body.
async fn set_phone(
    router: &Router,
    phone: &str,
    change: serde_json::Value,
) -> (u16, serde_json::Value) {
    let request = reqwest::Client::new()
        .patch(format!("http://{}/v1/admin/phones/{phone}", router.address))
        .bearer_auth("an-admin-token-for-tests")
        .json(&change);
    let answer = tokio::time::timeout(DEADLINE, request.send()).await.unwrap().unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn the_operator_says_whom_a_phone_is_for_how_old_it_is_and_how_much_it_sends() {
    let router = router("[warming]\nnew_contacts = [{ from_day = 0, per_day = 1 }, { from_day = 30, per_day = 50 }]\n").await;
    let app = &router.app;
    let (one, other) = (tenant(app, "One").await, tenant(app, "Other").await);
    let host = host(app, &[ONE]).await;
    let phone = host.phones[0].to_string();
    let mut bridge = Bridge::connect(&router, &host).await;
    for (change, pointer, code) in [
        (serde_json::json!({"exclusive_to": "ten_1"}), "/exclusive_to", "invalid_id"),
        (
            serde_json::json!({"exclusive_to": "ten_00000000000000000000000000"}),
            "/exclusive_to",
            "unknown_tenant",
        ),
        (serde_json::json!({"daily_cap": 1_000_001}), "/daily_cap", "out_of_range"),
        (
            serde_json::json!({"in_service_at": "2126-01-01T00:00:00Z"}),
            "/in_service_at",
            "in_the_future",
        ),
        (serde_json::json!({"cap": 1}), "/cap", "unknown_field"),
    ] {
        let (status, body) = set_phone(&router, &phone, change).await;
        assert_eq!(status, 422, "{body}");
        assert_eq!(
            (&body["errors"][0]["pointer"], &body["errors"][0]["code"]),
            (&pointer.into(), &code.into())
        );
    }
    let nobodys = set_phone(&router, "pho_00000000000000000000000000", serde_json::json!({})).await;
    assert_eq!(nobodys.0, 404, "{nobodys:?}");

    let change = serde_json::json!({"exclusive_to": one.to_string(), "label": "Shop"});
    let (status, body) = set_phone(&router, &phone, change).await;
    assert_eq!((status, &body["exclusive_to"]), (200, &one.to_string().into()), "{body}");
    let waits = accept(app, &other, &stranger(1), |_| {}).await;
    held(app, &other, &waits, Reason::NoPhoneAvailable).await;
    let goes = accept(app, &one, &stranger(2), |_| {}).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, goes);
    bridge.sends(&send).await;

    // Everybody's again: what waited for a phone may have it, but for the one stranger that it has met today.
    let (status, body) =
        set_phone(&router, &phone, serde_json::json!({"exclusive_to": "everybody"})).await;
    assert_eq!((status, body.get("exclusive_to")), (200, None), "{body}");
    assert_eq!(body["label"], "Shop", "what is left out stays");
    held(app, &other, &waits, Reason::WarmingCap).await;
    // Its number is older than its enrolment.
    let (status, body) =
        set_phone(&router, &phone, serde_json::json!({"in_service_at": "2024-05-01T00:00:00Z"}))
            .await;
    assert_eq!(status, 200, "{body}");
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, waits);
    bridge.sends(&send).await;

    let (status, body) = set_phone(&router, &phone, serde_json::json!({"daily_cap": 2})).await;
    assert_eq!((status, &body["messages_today"]), (200, &2.into()), "{body}");
    let over = accept(app, &one, &stranger(2), |_| {}).await;
    let end = reaches(app, &one, &over, Status::Failed).await;
    assert_eq!(end.reason, Some(Reason::NoPhoneAvailable), "all are at their cap");
    let (_, body) = set_phone(&router, &phone, serde_json::json!({"daily_cap": 0})).await;
    assert_eq!(body.get("daily_cap"), None, "as configured for all");
    accept(app, &one, &stranger(2), |_| {}).await;
    bridge.wire.send_command().await;
}
