//! The rules at work: over the real API, a real store, a real socket and a scripted phone.

#![expect(
    clippy::unwrap_used,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use crate::link_support::*;
use protocol::pipe::{Attempt, Conversation, ConversationKind, Edited, Event, Received, Version};
use protocol::{Class, Reason, Recipient, Status};
use router::store::contacts::{self, Said};
use router::store::{opt_outs, rules};
use router::{params, server};
use serde_json::{Value, json};

const ONE: &str = "+15550100190";
/// In New York.
const TO: &str = "+12125550143";
/// Whatever the hour is, it is none of this tenant's: a window of one minute that is not now.
const NOT_NOW: &str = "[compliance]\nhours = \"default\"\n";

/// A window of the tenant's own that is over, or has not begun, in New York at this moment.
fn closed_window(now: protocol::UnixMs) -> String {
    let local =
        jiff::Timestamp::from_millisecond(now.0).unwrap().in_tz("America/New_York").unwrap();
    if local.hour() < 12 { "15:00-16:00".to_owned() } else { "08:30-09:30".to_owned() }
}

async fn set_rules(app: &server::App, tenant: &protocol::TenantId, body: Value) {
    let whose = tenant.clone();
    let new: protocol::api::TenantRules = serde_json::from_value(body).unwrap();
    assert!(app.store.write(move |tx| rules::set(tx, &whose, &new)).await.unwrap());
    router::dispatch::rules_changed(app, tenant).await.unwrap();
}

async fn texts(app: &server::App, sql: &'static str) -> Vec<String> {
    app.store.read(move |tx| tx.query(sql, params![], |row| row.text(0))).await.unwrap()
}

#[tokio::test]
async fn marketing_is_held_at_night_and_goes_when_the_tenant_knows_better() {
    let (router, tenant, _host, mut bridge) = shelf(NOT_NOW, &[ONE]).await;
    let app = &router.app;
    set_rules(app, &tenant, json!({"hours_window": closed_window(app.clock.now())})).await;
    let id = accept(app, &tenant, TO, |new| new.class = Class::Marketing).await;
    eventually("it is held", || async {
        message(app, &tenant, &id).await.held_reason == Some(Reason::QuietHours)
    })
    .await;
    let held = message(app, &tenant, &id).await;
    assert_eq!(held.status, Status::Queued);
    assert!(held.next_at.unwrap() > app.clock.now(), "{held:?}");
    // It is told the hour, and comes within a minute of it.
    let turn = count(app, "SELECT run_at FROM jobs").await - held.next_at.unwrap().0;
    assert!((0..60_000).contains(&turn), "{turn}");
    // A one-time code does not wait.
    let code = accept(app, &tenant, TO, |new| {
        new.class = Class::Otp;
        new.expires_at = new.now.plus_ms(300_000);
    })
    .await;
    assert_eq!(bridge.wire.send_command().await.message, code);
    // The hours are given up by the operator: it goes at once.
    set_rules(app, &tenant, json!({"hours": "off"})).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.message, id);
    assert_eq!(
        texts(app, "SELECT verdict || ' ' || COALESCE(reason, '-') || ' ' || class FROM decisions ORDER BY message_id, number").await,
        ["hold quiet_hours marketing", "send - marketing", "send - otp"],
        "each decision stands in the ledger once"
    );
    let hashes = texts(app, "SELECT hex(text_hash) FROM decisions").await;
    assert!(hashes.iter().all(|hash| hash.len() == 64), "{hashes:?}");
}

#[tokio::test]
async fn what_is_on_its_way_when_the_hour_is_over_is_not_started() {
    let (router, tenant, host, mut bridge) = shelf(NOT_NOW, &[ONE]).await;
    let app = &router.app;
    // They wrote an hour ago less ten seconds: the answer may come at night for ten seconds more.
    set_rules(app, &tenant, json!({"hours_window": closed_window(app.clock.now())})).await;
    let (whose, now) = (tenant.clone(), app.clock.now());
    let (phone, asked) = (host.phones[0].clone(), now.plus_ms(-3_590_000));
    app.store
        .write(move |tx| {
            tx.execute(
                "INSERT INTO bindings (tenant_id, recipient, phone_id, last_at, last_direction, last_inbound_at)
                 VALUES (?1, ?2, ?3, ?4, 'inbound', ?4)",
                params![whose, TO, phone, asked],
            )
        })
        .await
        .unwrap();
    accept(app, &tenant, TO, |new| new.class = Class::Conversational).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.start_before, asked.plus_ms(3_600_000));
}

#[tokio::test]
async fn a_claim_that_is_not_proven_is_judged_as_marketing() {
    let (router, tenant, _host, _bridge) = shelf(NOT_NOW, &[ONE]).await;
    let app = &router.app;
    set_rules(app, &tenant, json!({"hours_window": closed_window(app.clock.now())})).await;
    let long_code = accept(app, &tenant, TO, |new| {
        new.class = Class::Otp;
        new.expires_at = new.now.plus_ms(700_000);
    })
    .await;
    let no_answer = accept(app, &tenant, TO, |new| new.class = Class::Conversational).await;
    // Ten minutes from when it is to be sent, but nobody waits for a code that is ordered for later.
    let later_code = accept(app, &tenant, TO, |new| {
        new.class = Class::Otp;
        new.send_at = Some(new.now.plus_ms(1_000));
        new.expires_at = new.now.plus_ms(600_500);
    })
    .await;
    for id in [long_code, no_answer, later_code] {
        eventually("it is held", || async {
            message(app, &tenant, &id).await.held_reason == Some(Reason::QuietHours)
        })
        .await;
    }
    assert_eq!(texts(app, "SELECT DISTINCT class FROM decisions").await, ["marketing"]);
}

#[tokio::test]
async fn what_is_no_code_is_no_further_message_to_who_never_answers() {
    let (router, tenant, host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let (whose, phone, now) = (tenant.clone(), host.phones[0].clone(), app.clock.now());
    app.store
        .write(move |tx| {
            tx.execute(
                "INSERT INTO bindings (tenant_id, recipient, phone_id, last_at, last_direction, unanswered)
                 VALUES (?1, ?2, ?3, ?4, 'outbound', 100)",
                params![whose, TO, phone, now],
            )
        })
        .await
        .unwrap();
    let claimed = accept(app, &tenant, TO, |new| {
        new.class = Class::Otp;
        new.expires_at = new.now.plus_ms(12 * 3_600_000);
    })
    .await;
    eventually("it is held", || async {
        message(app, &tenant, &claimed).await.held_reason == Some(Reason::Unanswered)
    })
    .await;
    let rank = i64::from(Class::Marketing.rank());
    assert_eq!(count(app, "SELECT class_rank FROM jobs").await, rank, "it takes its turn as such");
    let code = accept(app, &tenant, TO, |new| {
        new.class = Class::Otp;
        new.expires_at = new.now.plus_ms(600_000);
    })
    .await;
    assert_eq!(bridge.wire.send_command().await.message, code);
}

#[tokio::test]
async fn what_icloud_brings_late_is_no_question_of_now() {
    let (router, tenant, _host, mut bridge) = shelf(NOT_NOW, &[ONE]).await;
    let app = &router.app;
    set_rules(app, &tenant, json!({"hours_window": closed_window(app.clock.now())})).await;
    let yesterday = app.clock.now().plus_ms(-25 * 3_600_000);
    let Event::Received(late) = received(TO, "late", "Are you there?", yesterday) else { panic!() };
    bridge.event(Event::Received(Received { late: true, ..late })).await;
    let answer = accept(app, &tenant, TO, |new| new.class = Class::Conversational).await;
    eventually("it is held", || async {
        message(app, &tenant, &answer).await.held_reason == Some(Reason::QuietHours)
    })
    .await;
    // What they write now is one; the late copy of an older one takes nothing from it.
    bridge.event(received(TO, "now", "Hello?", app.clock.now())).await;
    let Event::Received(late) = received(TO, "later", "And now?", yesterday) else { panic!() };
    bridge.event(Event::Received(Received { late: true, ..late })).await;
    let answer = accept(app, &tenant, TO, |new| new.class = Class::Conversational).await;
    assert_eq!(bridge.wire.send_command().await.message, answer);
}

#[tokio::test]
async fn content_is_blocked_by_its_rule_and_the_text_is_not_repeated() {
    let router = router("[compliance]\nhours = \"off\"\nblocked_words = [\"casino\"]\n").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    set_rules(
        app,
        &tenant,
        json!({"blocked_words": ["free money"], "first_message_links": false, "segments_max": 2}),
    )
    .await;
    for (text, detail) in [
        ("Come to the CASINO", "blocked_words_for_all"),
        ("free   Money", "blocked_words"),
        ("see https://shop.example", "link_in_first_message"),
        ("ê".repeat(140).as_str(), "too_many_segments"),
    ] {
        let id = accept(app, &tenant, TO, |new| new.text = text.to_owned()).await;
        let end = reaches(app, &tenant, &id, Status::Blocked).await;
        assert_eq!(end.reason, Some(Reason::Content), "{text}");
        let which = id.to_string();
        let said: Option<String> = app
            .store
            .read(move |tx| {
                tx.query_row("SELECT detail FROM messages WHERE id = ?1", params![which], |row| {
                    row.opt_text(0)
                })
            })
            .await
            .unwrap();
        assert_eq!(said.as_deref(), Some(detail), "{text}");
    }
}

#[tokio::test]
async fn words_in_every_dress_opt_out_before_the_tenant_hears_of_them() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    set_rules(
        app,
        &tenant,
        json!({"stop_words": ["alto"], "help_text": "This is Acme, 1-800-ACME."}),
    )
    .await;
    let now = app.clock.now();
    for (from, text, state) in [
        ("+12125550151", "please stop texting me", Some("inferred")),
        ("+12125550152", "ALTO!", Some("keyword")),
        ("+12125550153", "ＳＴＯＰ", Some("keyword")),
        ("+12125550154", "cancel my appointment", None),
        ("+12125550155", "Liked “Reply STOP to opt out”", None),
        ("+12125550156", "STOP 12345", None),
    ] {
        bridge.event(received(from, &format!("guid{from}"), text, now)).await;
        let (whose, who): (_, Recipient) = (tenant.clone(), from.parse().unwrap());
        let found = app
            .store
            .read(move |tx| opt_outs::list(tx, (&whose, false), "", 100))
            .await
            .unwrap()
            .into_iter()
            .find(|row| row.recipient == who);
        assert_eq!(found.map(|row| row.method).as_deref(), state, "{text}");
    }
    // What was inferred, and what may have been meant, waits for a person.
    let whose = tenant.clone();
    let open = opt_outs::Steps { to_review: true, recipient: None };
    let steps = app
        .store
        .read(move |tx| opt_outs::history(tx, (&whose, false), &open, None, 100))
        .await
        .unwrap();
    let shown: Vec<_> =
        steps.iter().map(|step| (step.action.as_str(), step.text.as_deref().unwrap())).collect();
    assert_eq!(
        shown,
        [("possible", "cancel my appointment"), ("opted_out", "please stop texting me")]
    );
    assert!(steps.iter().all(|step| !step.rules.is_empty() && step.phone.is_some()));
    // HELP is answered once in a while, and never to who has opted out.
    for (from, guid) in [("+12125550157", "h1"), ("+12125550157", "h2"), ("+12125550153", "h3")] {
        bridge.event(received(from, guid, "Help", now)).await;
    }
    let answers =
        texts(app, "SELECT text FROM messages WHERE kind = 'confirmation' AND text LIKE '%1-800%'")
            .await;
    assert_eq!(answers, ["Acme: This is Acme, 1-800-ACME. Reply STOP to unsubscribe."]);
}

#[tokio::test]
async fn the_operators_opt_out_holds_for_every_tenant() {
    let router = router("").await;
    let app = &router.app;
    let (left, right) = (tenant(app, "Left").await, tenant(app, "Right").await);
    let nobody = router::store::inbound::nobody();
    let (who, now): (Recipient, _) = (TO.parse().unwrap(), app.clock.now());
    app.store
        .write(move |tx| {
            let wish = opt_outs::Wish {
                action: "opted_out",
                method: opt_outs::Method::Operator,
                message: None,
                text: None,
                evidence: None,
                rules: "t",
                at: now,
                late: false,
            };
            opt_outs::turn(
                tx,
                ((&nobody, false), &who),
                &wish,
                &protocol::EventId::new(now.0, [7; 10]),
            )
        })
        .await
        .unwrap();
    for tenant in [left, right] {
        let id = accept(app, &tenant, TO, |_| {}).await;
        assert_eq!(
            reaches(app, &tenant, &id, Status::Blocked).await.reason,
            Some(Reason::OptedOut)
        );
        let other = accept(app, &tenant, "+12125550144", |_| {}).await;
        eventually("it waits for a phone only", || async {
            message(app, &tenant, &other).await.held_reason == Some(Reason::NoPhoneAvailable)
        })
        .await;
    }
}

#[tokio::test]
async fn a_contacts_zone_counts_before_the_number() {
    let (router, tenant, _host, mut bridge) = shelf(NOT_NOW, &[ONE]).await;
    let app = &router.app;
    // The tenant writes between one and three in the afternoon. Somebody who lives where it is one o'clock now is written
    // to, whatever hour the area code suggests.
    let local = jiff::Timestamp::from_millisecond(app.clock.now().0).unwrap().in_tz("UTC").unwrap();
    let shift = 13 - i32::from(local.hour());
    let zone = match shift {
        0 => "Etc/GMT".to_owned(),
        // The signs of these names are the other way round.
        1.. => format!("Etc/GMT-{shift}"),
        _ => format!("Etc/GMT+{}", -shift),
    };
    set_rules(app, &tenant, json!({"hours_window": "13:00-15:00"})).await;
    let (whose, who, now): (_, Recipient, _) =
        (tenant.clone(), TO.parse().unwrap(), app.clock.now());
    app.store
        .write(move |tx| {
            let said = Said { time_zone: Some(zone), ..Said::default() };
            contacts::put(tx, (&whose, false), &who, &said, now)
        })
        .await
        .unwrap();
    let id = accept(app, &tenant, TO, |new| new.class = Class::Marketing).await;
    assert_eq!(bridge.wire.send_command().await.message, id);
}

#[tokio::test]
async fn who_opts_out_on_one_number_is_not_written_to_on_another_of_theirs() {
    let (router, tenant, _host, mut bridge) = shelf(NOT_NOW, &[ONE]).await;
    let app = &router.app;
    set_rules(app, &tenant, json!({"hours_window": closed_window(app.clock.now())})).await;
    let (mail, stranger) = ("anna@example.com", "+12125550199");
    for (who, person) in [(TO, "anna"), (mail, "anna"), (stranger, "somebody else")] {
        // An address says nothing of where somebody is.
        let time_zone = (who == mail).then(|| "America/New_York".to_owned());
        let said = Said { person: Some(person.to_owned()), time_zone, ..Said::default() };
        let (whose, who, now): (_, Recipient, _) =
            (tenant.clone(), who.parse().unwrap(), app.clock.now());
        app.store
            .write(move |tx| contacts::put(tx, (&whose, false), &who, &said, now))
            .await
            .unwrap();
    }
    let held = async |to: &str| {
        let id = accept(app, &tenant, to, |new| new.class = Class::Marketing).await;
        eventually("it is held", || async {
            message(app, &tenant, &id).await.held_reason == Some(Reason::QuietHours)
        })
        .await;
        id
    };
    let (to_mail, to_stranger) = (held(mail).await, held(stranger).await);
    bridge.event(received(TO, "g1", "STOP", app.clock.now())).await;
    assert_eq!(message(app, &tenant, &to_mail).await.reason, Some(Reason::OptedOut));
    assert_eq!(message(app, &tenant, &to_stranger).await.status, Status::Queued);
    let next = accept(app, &tenant, mail, |_| {}).await;
    assert_eq!(reaches(app, &tenant, &next, Status::Blocked).await.reason, Some(Reason::OptedOut));
    // They have opted out of the other, too: who takes one of both back is not told to be back.
    let confirmed = "SELECT COUNT(*) FROM messages WHERE kind = 'confirmation'";
    bridge.event(received(mail, "g2", "STOP", app.clock.now())).await;
    assert_eq!(count(app, confirmed).await, 2);
    bridge.event(received(TO, "g3", "START", app.clock.now())).await;
    assert_eq!(count(app, confirmed).await, 2);
    let next = accept(app, &tenant, TO, |_| {}).await;
    assert_eq!(reaches(app, &tenant, &next, Status::Blocked).await.reason, Some(Reason::OptedOut));
    bridge.event(received(mail, "g4", "START", app.clock.now())).await;
    assert_eq!(count(app, confirmed).await, 3);
    held(TO).await;
    held(mail).await;
}

#[tokio::test]
async fn what_is_on_its_way_is_withdrawn_when_its_recipient_turns_out_to_have_opted_out() {
    // Phones are asked at once or not within this test.
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nreoffer_ms = 600000\n", &[ONE]).await;
    let app = &router.app;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}", router.address);
    let key = client.post(format!("{url}/v1/admin/keys")).bearer_auth("an-admin-token-for-tests");
    let key = key.json(&json!({"tenant": tenant, "name": "key"})).send().await.unwrap();
    let key: Value = key.json().await.unwrap();
    let secret = key.get("secret").and_then(Value::as_str).unwrap();
    let say = async |request: reqwest::RequestBuilder, body: Value| {
        let answer = request.bearer_auth(secret).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    let person = async |who: &str, person: &str| {
        say(client.put(format!("{url}/v1/contacts/{who}")), json!({"person": person})).await;
    };
    let later = app.clock.now().plus_ms(600_000);
    for (name, out, other, out_is_last) in [
        ("anna", "+12125550161", "+12125550162", false),
        ("berta", "+12125550163", "+12125550164", true),
    ] {
        let body = json!({"recipients": [out], "source": "by telephone"});
        say(client.post(format!("{url}/v1/opt_outs")), body).await;
        let given = accept(app, &tenant, other, |_| {}).await;
        let send = bridge.wire.send_command().await;
        assert_eq!(send.message, given);
        let waits = accept(app, &tenant, other, |new| new.send_at = Some(later)).await;
        let (first, last) = if out_is_last { (other, out) } else { (out, other) };
        person(first, name).await;
        person(last, "somebody else").await;
        assert_eq!(message(app, &tenant, &waits).await.status, Status::Scheduled, "{name}");
        person(last, name).await;
        assert_eq!(message(app, &tenant, &waits).await.reason, Some(Reason::OptedOut), "{name}");
        assert_eq!(bridge.wire.cancel_command().await, (given.clone(), send.attempt), "{name}");
        bridge.event(Event::Canceled(Attempt { message: given.clone(), attempt: 1 })).await;
        let end = message(app, &tenant, &given).await;
        assert_eq!((end.status, end.reason), (Status::Blocked, Some(Reason::OptedOut)), "{name}");
    }
}

#[tokio::test]
async fn rules_that_cannot_be_read_stop_everything_but_a_stop() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    app.store
        .write(|tx| tx.execute("UPDATE tenants SET rules = '{\"hours\": 7}'", params![]))
        .await
        .unwrap();
    let id = accept(app, &tenant, TO, |_| {}).await;
    assert_eq!(reaches(app, &tenant, &id, Status::Blocked).await.reason, Some(Reason::CheckFailed));
    bridge.event(received(TO, "g1", "STOP", app.clock.now())).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM opt_outs WHERE state = 'opted_out'").await, 1);
}

/// What stands for `TO`, with its time.
async fn stands(app: &server::App) -> Vec<String> {
    texts(app, "SELECT state || ' ' || at FROM opt_outs ORDER BY at").await
}

#[tokio::test]
async fn a_start_from_a_backlog_counts_behind_the_stop_before_it() {
    let (router, _tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let minutes_ago = |minutes: i64| app.clock.now().plus_ms(-minutes * 60_000);
    let (ten, ten_five) = (minutes_ago(120), minutes_ago(115));
    bridge.event(received(TO, "g1", "STOP", ten)).await;
    assert_eq!(stands(app).await, [format!("opted_out {}", ten.0)]);
    // Of one moment: nobody knows which came last.
    bridge.event(received(TO, "g2", "START", ten)).await;
    assert_eq!(stands(app).await, [format!("opted_out {}", ten.0)]);
    bridge.event(received(TO, "g3", "START", ten_five)).await;
    assert_eq!(stands(app).await, [format!("opted_in {}", ten_five.0)]);
    // One that comes in now counts, however old it says it is, and is the newest wish.
    bridge.event(received(TO, "g4", "STOP", ten)).await;
    assert_eq!(stands(app).await, [format!("opted_out {}", ten_five.0)]);
    // Said again later, it outlasts what was said between.
    let (before, again) = (minutes_ago(90), minutes_ago(80));
    bridge.event(received(TO, "g5", "STOP", again)).await;
    bridge.event(received(TO, "g6", "START", before)).await;
    assert_eq!(stands(app).await, [format!("opted_out {}", again.0)]);
}

#[tokio::test]
async fn an_opt_out_counts_after_the_clock_went_back() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    // What stands was written down by a clock that was an hour ahead.
    let (whose, ahead) = (tenant.clone(), app.clock.now().plus_ms(3_600_000));
    app.store
        .write(move |tx| {
            tx.execute(
                "INSERT INTO opt_outs (tenant_id, recipient, state, method, at) VALUES (?1, ?2, 'opted_in', 'keyword', ?3)",
                params![whose, TO, ahead],
            )
        })
        .await
        .unwrap();
    bridge.event(received(TO, "g1", "STOP", app.clock.now())).await;
    assert_eq!(stands(app).await, [format!("opted_out {}", ahead.0)]);
}

#[tokio::test]
async fn a_stop_on_a_number_that_was_never_written_to_reaches_who_wrote_to_the_person() {
    let (router, acme, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let other = tenant(app, "Other").await;
    let mail = "anna@example.com";
    for (whose, who) in [(&acme, TO), (&acme, mail), (&other, mail)] {
        let said = Said { person: Some("anna".to_owned()), ..Said::default() };
        let (whose, who, now): (_, Recipient, _) =
            (whose.clone(), who.parse().unwrap(), app.clock.now());
        app.store
            .write(move |tx| contacts::put(tx, (&whose, false), &who, &said, now))
            .await
            .unwrap();
    }
    accept(app, &acme, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;
    bridge.event(received(mail, "g1", "STOP", app.clock.now())).await;
    let out =
        texts(app, "SELECT tenant_id || ' ' || recipient FROM opt_outs WHERE state = 'opted_out'")
            .await;
    assert_eq!(out, [format!("{acme} {mail}")], "the other tenant has not written from this phone");
    let next = accept(app, &acme, TO, |_| {}).await;
    assert_eq!(reaches(app, &acme, &next, Status::Blocked).await.reason, Some(Reason::OptedOut));
    // What the tenant says of the address nobody has checked: what is written from there is not shown to it.
    let inbound = texts(app, "SELECT tenant_id FROM messages WHERE direction = 'inbound'").await;
    assert_eq!(inbound, [router::store::inbound::nobody().to_string()]);
    let told = texts(app, "SELECT type FROM webhook_jobs WHERE type = 'message.received'").await;
    assert_eq!(told, [""; 0]);
}

fn edited(guid: &str, text: &str, from_me: bool, at: protocol::UnixMs) -> Event {
    Event::Edited(Edited {
        guid: guid.to_owned(),
        part: 0,
        text: text.to_owned(),
        history: Vec::new(),
        from_me,
        at,
    })
}

#[tokio::test]
async fn a_message_that_becomes_a_stop_counts_as_one() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let other = "+12125550144";
    let now = app.clock.now();
    // It came into chat.db before its text.
    bridge.event(received(TO, "g1", "", now)).await;
    bridge.event(received(other, "g2", "ok", now)).await;
    for (guid, text, from_me) in
        [("g2", "STOP", true), ("g2", "okay", false), ("g3", "STOP", false)]
    {
        bridge.event(edited(guid, text, from_me, now)).await;
    }
    assert_eq!(stands(app).await, [""; 0]);
    let waits = accept(app, &tenant, TO, |new| new.send_at = Some(now.plus_ms(600_000))).await;
    bridge.event(edited("g1", "STOP", false, now)).await;
    assert_eq!(stands(app).await, [format!("opted_out {}", now.0)]);
    assert_eq!(reaches(app, &tenant, &waits, Status::Blocked).await.reason, Some(Reason::OptedOut));
    let confirmed = "SELECT recipient FROM messages WHERE kind = 'confirmation'";
    assert_eq!(texts(app, confirmed).await, [TO]);
    // Who comes back after it is not stopped by a phone that is read again, and nobody comes back by an edit.
    let later = now.plus_ms(1);
    bridge.event(received(TO, "g4", "START", later)).await;
    assert_eq!(stands(app).await, [format!("opted_in {}", later.0)]);
    bridge.event(edited("g1", "STOP", false, now.plus_ms(-600_000))).await;
    assert_eq!(stands(app).await, [format!("opted_in {}", later.0)]);
    bridge.event(received(TO, "g5", "STOP", later)).await;
    assert_eq!(texts(app, confirmed).await.len(), 3, "one each time");
    bridge.event(edited("g2", "START", false, later)).await;
    bridge.event(edited("g5", "START", false, later)).await;
    assert_eq!(stands(app).await, [format!("opted_out {}", later.0)]);
    // Somebody changes their mind about what they have said.
    let Event::Edited(mut changed) = edited("g2", "Please stop texting me", false, later) else {
        panic!()
    };
    changed.history = ["ok", changed.text.as_str()]
        .map(|text| Version { text: text.to_owned(), at: later })
        .into();
    bridge.event(Event::Edited(changed)).await;
    let out = "SELECT recipient FROM opt_outs WHERE state = 'opted_out' ORDER BY recipient";
    assert_eq!(texts(app, out).await, [TO, other]);
}

#[tokio::test]
async fn a_stop_in_a_group_stops_what_goes_to_the_group_and_nobody_else_in_it() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let group = "group:chat831";
    accept(app, &tenant, group, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;
    let later = app.clock.now().plus_ms(600_000);
    let waits = accept(app, &tenant, group, |new| new.send_at = Some(later)).await;
    let Event::Received(mut said) = received(TO, "g1", "STOP", app.clock.now()) else { panic!() };
    said.conversation = Conversation { kind: ConversationKind::Group, id: "chat831".to_owned() };
    bridge.event(Event::Received(said.clone())).await;
    assert_eq!(reaches(app, &tenant, &waits, Status::Blocked).await.reason, Some(Reason::OptedOut));
    let out = "SELECT recipient FROM opt_outs WHERE state = 'opted_out' ORDER BY recipient";
    assert_eq!(texts(app, out).await, [TO, group]);
    let confirmed = "SELECT recipient FROM messages WHERE kind = 'confirmation'";
    assert_eq!(texts(app, confirmed).await, [TO], "the group is not written to again");
    let next = accept(app, &tenant, group, |_| {}).await;
    assert_eq!(reaches(app, &tenant, &next, Status::Blocked).await.reason, Some(Reason::OptedOut));
    // One of them may come back, and says nothing for the others.
    let at = said.at.plus_ms(1);
    let start = Received { guid: "g2".to_owned(), text: "START".to_owned(), at, ..said.clone() };
    bridge.event(Event::Received(start)).await;
    assert_eq!(texts(app, out).await, [group]);
    // What is edited into a STOP says it to the group, too.
    app.store.write(|tx| tx.execute("DELETE FROM opt_outs", params![])).await.unwrap();
    let chat = Received { guid: "g3".to_owned(), text: "Hm".to_owned(), at, ..said };
    bridge.event(Event::Received(chat)).await;
    bridge.event(edited("g3", "Stop texting me", false, at)).await;
    assert_eq!(texts(app, out).await, [TO, group]);
}

#[tokio::test]
async fn who_has_written_to_a_group_long_ago_and_to_its_member_lately_is_reached_by_a_stop() {
    let (router, acme, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let other = tenant(app, "Other").await;
    let group = "group:chat831";
    for (whose, who) in [(&acme, group), (&acme, TO), (&other, group)] {
        accept(app, whose, who, |_| {}).await;
        let send = bridge.wire.send_command().await;
        bridge.sends(&send).await;
    }
    let (whose, long_ago) = (acme.clone(), app.clock.now().plus_ms(-40 * 86_400_000));
    app.store
        .write(move |tx| {
            tx.execute(
                "UPDATE bindings SET last_at = ?2 WHERE tenant_id = ?1 AND recipient = ?3",
                params![whose, long_ago, group],
            )
        })
        .await
        .unwrap();
    let Event::Received(mut said) = received(TO, "g1", "STOP", app.clock.now()) else { panic!() };
    said.conversation = Conversation { kind: ConversationKind::Group, id: "chat831".to_owned() };
    bridge.event(Event::Received(said)).await;
    let out = "SELECT tenant_id FROM opt_outs WHERE state = 'opted_out' AND recipient NOT LIKE 'group:%' ORDER BY tenant_id";
    let mut both = [acme.to_string(), other.to_string()];
    both.sort();
    assert_eq!(texts(app, out).await, both);
}

#[tokio::test]
async fn a_stop_in_an_edit_counts_whatever_else_of_it_cannot_be_read() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let now = app.clock.now();
    bridge.event(received(TO, "g1", "ok", now)).await;
    let waits = accept(app, &tenant, TO, |new| new.send_at = Some(now.plus_ms(600_000))).await;
    // What happened to it cannot be written down.
    let damage = "UPDATE messages SET class = 'x' WHERE direction = 'inbound'";
    app.store.write(move |tx| tx.execute(damage, params![])).await.unwrap();
    bridge.event(edited("g1", "STOP", false, now)).await;
    assert_eq!(stands(app).await, [format!("opted_out {}", now.0)]);
    assert_eq!(reaches(app, &tenant, &waits, Status::Blocked).await.reason, Some(Reason::OptedOut));
}

#[tokio::test]
async fn who_merely_says_that_a_sender_is_theirs_hears_a_stop_and_nothing_else() {
    let (router, acme, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let other = tenant(app, "Other").await;
    let (own, now) = ("+12125550199", app.clock.now());
    for (whose, who) in [(&acme, TO), (&other, own)] {
        let id = accept(app, whose, who, |_| {}).await;
        let send = bridge.wire.send_command().await;
        assert_eq!(send.message, id);
        bridge.sends(&send).await;
    }
    for who in [own, TO] {
        let said = Said { person: Some("theirs".to_owned()), ..Said::default() };
        let (whose, who): (_, Recipient) = (other.clone(), who.parse().unwrap());
        app.store
            .write(move |tx| contacts::put(tx, (&whose, false), &who, &said, now))
            .await
            .unwrap();
    }
    bridge.event(received(TO, "g1", "HELP", now)).await;
    bridge.event(received(TO, "g2", "how do I unsubscribe from this?", now)).await;
    let noted = "SELECT DISTINCT tenant_id FROM opt_out_events";
    assert_eq!(texts(app, noted).await, [acme.to_string()]);
    bridge.event(received(TO, "g3", "STOP", now)).await;
    let out = "SELECT tenant_id FROM opt_outs WHERE state = 'opted_out' ORDER BY tenant_id";
    let mut both = [acme.to_string(), other.to_string()];
    both.sort();
    assert_eq!(texts(app, out).await, both);
    // Nothing is said in its name, or an answer to that would be shown to it.
    let confirmed = "SELECT DISTINCT tenant_id FROM messages WHERE kind = 'confirmation'";
    assert_eq!(texts(app, confirmed).await, [acme.to_string()]);
    // The START that follows takes back what was opted out.
    bridge.event(received(TO, "g4", "START", now.plus_ms(1))).await;
    assert_eq!(texts(app, out).await, [""; 0]);
    let read = "SELECT DISTINCT tenant_id FROM messages WHERE direction = 'inbound'";
    assert_eq!(texts(app, read).await, [acme.to_string()]);
}

#[tokio::test]
async fn the_operators_opt_out_asks_back_what_is_on_its_way() {
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nreoffer_ms = 600000\n", &[ONE]).await;
    let app = &router.app;
    let given = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    let later = app.clock.now().plus_ms(600_000);
    let waits = accept(app, &tenant, TO, |new| new.send_at = Some(later)).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/v1/admin/tenants/everybody/opt_outs", router.address);
    let body = json!({"recipients": [TO], "source": "by telephone"});
    let asked = client.post(url).bearer_auth("an-admin-token-for-tests").json(&body);
    let answer: Value = asked.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer, json!({"added": 1, "already": 0, "stopped": 2}));
    assert_eq!(bridge.wire.cancel_command().await, (given.clone(), send.attempt));
    assert_eq!(message(app, &tenant, &waits).await.reason, Some(Reason::OptedOut));
    // The ledger's last word of it is why it was not sent after all.
    let (message, attempt) = (given.clone(), send.attempt);
    bridge.event(Event::Canceled(Attempt { message, attempt })).await;
    reaches(app, &tenant, &given, Status::Blocked).await;
    let ledger =
        "SELECT verdict || ' ' || COALESCE(reason, '-') FROM decisions ORDER BY message_id, number";
    assert_eq!(texts(app, ledger).await, ["send -", "block opted_out", "block opted_out"]);
}

#[tokio::test]
async fn a_tenant_without_words_of_its_own_answers_help_with_its_name() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;
    for guid in ["h1", "h2"] {
        bridge.event(received(TO, guid, "HELP", app.clock.now())).await;
    }
    let said = "SELECT text FROM messages WHERE kind = 'confirmation'";
    assert_eq!(
        texts(app, said).await,
        ["Acme: Answer this message to reach us. Reply STOP to opt out."]
    );
    // Who wants no word of ours answers by itself.
    set_rules(app, &tenant, json!({"confirm_opt_out": false})).await;
    bridge.event(received("+12125550144", "h3", "HELP", app.clock.now())).await;
    assert_eq!(texts(app, said).await.len(), 1);
}
