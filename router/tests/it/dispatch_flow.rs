//! From an accepted message to its end, with a real store, a real socket and a scripted phone.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use std::time::Duration;

use crate::link_support::*;
use protocol::link::{HostFrame, HostHealth, PhoneState};
use protocol::pipe::{Attempt, Event, Receipt};
use protocol::{Channel, ChannelChoice, Class, Reason, Recipient, Status};
use router::store::{messages, rules};

const ONE: &str = "+15550100190";
const TWO: &str = "+15550100191";
const TO: &str = "+12025550143";

#[tokio::test]
async fn a_message_is_sent_delivered_and_read() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |new| new.text = "Hello, you".to_owned()).await;
    let send = bridge.wire.send_command().await;
    assert_eq!((&send.message, send.attempt, send.epoch), (&id, 1, bridge.epoch));
    assert_eq!((send.text.as_str(), send.to.to_string().as_str()), ("Hello, you", TO));
    assert_eq!(send.route, [Channel::Imessage, Channel::Sms]);
    let life = send.start_before.since(app.clock.now());
    assert!((50_000..=60_000).contains(&life), "{life}");
    assert_eq!(message(app, &tenant, &id).await.status, Status::Dispatching);

    bridge.sends(&send).await;
    let sent = message(app, &tenant, &id).await;
    assert_eq!((sent.status, sent.channel_used), (Status::Sent, Some(Channel::Imessage)));
    assert_eq!(sent.from.unwrap().as_str(), ONE);
    let attempt = Attempt { message: id.clone(), attempt: 1 };
    let receipt = Receipt { attempt, guid: "g".to_owned(), at: app.clock.now() };
    bridge.event(Event::Read(receipt.clone())).await;
    // A receipt that comes late changes nothing.
    bridge.event(Event::Delivered(receipt)).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Read);
    assert_eq!(
        kinds(app, &tenant, &id).await,
        ["queued", "dispatching", "accepted", "started", "sent", "read"]
    );
    assert_eq!(count(app, "SELECT COUNT(*) FROM jobs").await, 0);
    assert_eq!(count(app, "SELECT COUNT(*) FROM attempts WHERE state <> 'done'").await, 0);
    assert_eq!(count(app, "SELECT messages_today FROM phones").await, 1);
}

#[tokio::test]
async fn without_a_phone_a_message_is_held_and_goes_as_soon_as_one_is_ready() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let host = host(app, &[ONE]).await;
    let id = accept(app, &tenant, TO, |_| {}).await;
    eventually("it is held", || async {
        message(app, &tenant, &id).await.held_reason == Some(Reason::NoPhoneAvailable)
    })
    .await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Queued);

    // Connected, but not ready.
    let mut wire = {
        let header = authorization(&host, app.clock.now().0 / 1_000, &nonce());
        dial(router.address, Some(&header)).await.unwrap()
    };
    wire.say(&hello(vec![report(&host.phones[0], PhoneState::Starting)])).await;
    wire.welcome().await;
    wire.say(&HostFrame::Phone(report(&host.phones[0], PhoneState::Ready))).await;
    let send = wire.send_command().await;
    assert_eq!(send.message, id);
    let now = message(app, &tenant, &id).await;
    assert_eq!((now.status, now.held_reason, now.next_at), (Status::Dispatching, None, None));
    let story = kinds(app, &tenant, &id).await;
    assert_eq!(
        story,
        ["queued", "held", "dispatching"],
        "it is held once, however often it is looked at"
    );
}

#[tokio::test]
async fn three_failures_are_the_end_and_each_is_a_new_attempt() {
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nretry_first_ms = 100\n", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    for attempt in 1..=3 {
        let send = bridge.wire.send_command().await;
        assert_eq!(send.attempt, attempt);
        bridge.event(Event::Failed(about(&send, Reason::Network, true))).await;
    }
    let end = reaches(app, &tenant, &id, Status::Failed).await;
    assert_eq!((end.reason, end.attempts), (Some(Reason::Network), 3));
    assert_eq!(
        kinds(app, &tenant, &id).await,
        [
            "queued",
            "dispatching",
            "retry",
            "dispatching",
            "retry",
            "dispatching",
            "failed",
            "dead_letter"
        ]
    );
}

#[tokio::test]
async fn a_permanent_failure_is_the_end_at_once() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.event(Event::Failed(about(&send, Reason::NotRegistered, false))).await;
    let end = message(app, &tenant, &id).await;
    assert_eq!((end.status, end.reason), (Status::Failed, Some(Reason::NotRegistered)));
}

#[tokio::test]
async fn an_attempt_that_was_not_started_may_go_to_another_phone() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let (one, two) = (host(app, &[ONE]).await, host(app, &[TWO]).await);
    let mut first = Bridge::connect(&router, &one).await;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let send = first.wire.send_command().await;
    let mut second = Bridge::connect(&router, &two).await;
    // The first phone stops being able before it answers.
    let not_ready = HostFrame::Phone(report(&first.phone, PhoneState::NotReady));
    first.wire.say(&not_ready).await;
    let attempt = Attempt { message: id.clone(), attempt: send.attempt };
    first.event(Event::Expired(attempt)).await;
    let again = second.wire.send_command().await;
    assert_eq!((&again.message, again.attempt), (&id, 2));
    second.sends(&again).await;
    let end = message(app, &tenant, &id).await;
    assert_eq!((end.status, end.phone), (Status::Sent, Some(two.phones[0].clone())));
}

#[tokio::test]
async fn doubt_is_never_tried_again_and_resolved_by_what_the_phone_says_later() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.event(Event::Unknown(about(&send, Reason::MessagesTimeout, true))).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Unknown);
    assert_eq!(count(app, "SELECT COUNT(*) FROM jobs").await, 0);
    let attempt = Attempt { message: id.clone(), attempt: 1 };
    bridge.event(Event::Sent { attempt, channel: Channel::Imessage, guid: "g".to_owned() }).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Sent);
}

#[tokio::test]
async fn an_unanswered_offer_is_repeated_and_survives_a_new_session_and_a_new_router() {
    let settings = "[dispatch]\nreoffer_ms = 1000\n";
    let router = router(settings).await;
    let tenant = tenant(&router.app, "Acme").await;
    let host = host(&router.app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let id = accept(&router.app, &tenant, TO, |_| {}).await;
    let first = bridge.wire.send_command().await;
    let second = bridge.wire.send_command().await;
    assert_eq!(first, second, "the very same offer");
    drop(bridge);
    let mut bridge = Bridge::connect(&router, &host).await;
    assert_eq!(bridge.wire.send_command().await, first);
    drop(bridge);
    let folder = router.stop().await;
    let router = router_in(folder, settings).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    assert_eq!(bridge.wire.send_command().await, first);
    bridge.sends(&first).await;
    assert_eq!(message(&router.app, &tenant, &id).await.status, Status::Sent);
}

#[tokio::test]
async fn a_host_that_is_gone_for_good_leaves_its_messages_unknown() {
    let (router, tenant, host, mut bridge) =
        shelf("[dispatch]\nstart_window_ms = 1000\nhost_lost_ms = 1000\n", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    drop(bridge);
    let end = reaches(app, &tenant, &id, Status::Unknown).await;
    assert_eq!(end.reason, Some(Reason::HostLost));
    assert_eq!(count(app, "SELECT COUNT(*) FROM jobs").await, 0);
    // It comes back after all, and what it says counts.
    let mut bridge = Bridge::connect(&router, &host).await;
    bridge.sends(&send).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Sent);
}

#[tokio::test]
async fn a_recall_reaches_the_phone_and_its_answer_is_the_outcome() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    let (whose, which, now) = (tenant.clone(), id.clone(), app.clock.now());
    let asked = app.store.write(move |tx| messages::cancel(tx, &whose, &which, now)).await.unwrap();
    assert!(matches!(asked, Some(messages::Canceled::Asked(_))));
    router::dispatch::recall(app, &id).await;
    assert_eq!(bridge.wire.cancel_command().await, (id.clone(), send.attempt));
    bridge.event(Event::Canceled(Attempt { message: id.clone(), attempt: 1 })).await;
    let end = message(app, &tenant, &id).await;
    assert_eq!((end.status, end.reason), (Status::Canceled, Some(Reason::Canceled)));
    assert_eq!(count(app, "SELECT COUNT(*) FROM jobs").await, 0);
}

#[tokio::test]
async fn an_opted_out_recipient_is_blocked() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let other = crate::link_support::tenant(app, "Other").await;
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let first = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;

    let later = app.clock.now().plus_ms(600_000);
    let waiting = accept(app, &tenant, TO, |new| new.send_at = Some(later)).await;
    bridge.event(received(TO, "guid-stop", "Stop.", app.clock.now())).await;
    // What waited is blocked in the same transaction; one confirmation goes out from the same phone.
    assert_eq!(message(app, &tenant, &waiting).await.status, Status::Blocked);
    let confirmation = bridge.wire.send_command().await;
    assert!(confirmation.text.starts_with("Acme: You are unsubscribed"), "{}", confirmation.text);
    assert_eq!(confirmation.to.to_string(), TO);
    bridge.sends(&confirmation).await;

    let second = accept(app, &tenant, TO, |_| {}).await;
    let end = reaches(app, &tenant, &second, Status::Blocked).await;
    assert_eq!(end.reason, Some(Reason::OptedOut));
    assert_eq!(message(app, &tenant, &first).await.status, Status::Sent);
    // Another tenant's messages still go: it had never written from this phone.
    let foreign = accept(app, &other, TO, |_| {}).await;
    assert_eq!(bridge.wire.send_command().await.message, foreign);

    // A second STOP changes nothing and is not confirmed; START lifts it.
    let outbound = count(app, "SELECT COUNT(*) FROM messages WHERE kind = 'confirmation'").await;
    bridge.event(received(TO, "guid-stop-2", "STOP", app.clock.now())).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE kind = 'confirmation' AND tenant_id = (SELECT tenant_id FROM messages ORDER BY id LIMIT 1)").await, outbound);
    bridge.event(received(TO, "guid-start", "start", app.clock.now())).await;
    let third = accept(app, &tenant, TO, |_| {}).await;
    reaches(app, &tenant, &third, Status::Dispatching).await;
}

#[tokio::test]
async fn stop_withdraws_what_a_phone_already_has() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.seq += 1;
    let stop = bridge.frame(bridge.seq, received(TO, "guid-stop", "STOP", app.clock.now()));
    bridge.wire.say(&stop).await;
    assert_eq!(bridge.wire.cancel_command().await, (id.clone(), send.attempt));
    bridge.event(Event::Canceled(Attempt { message: id.clone(), attempt: 1 })).await;
    let end = reaches(app, &tenant, &id, Status::Blocked).await;
    assert_eq!(end.reason, Some(Reason::OptedOut));
}

#[tokio::test]
async fn a_message_whose_life_is_over_expires() {
    // Without a phone it would fail for want of one; here the one there is has its hands full.
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nin_flight_per_phone = 1\n", &[ONE]).await;
    let app = &router.app;
    accept(app, &tenant, TO, |_| {}).await;
    bridge.wire.send_command().await;
    let id = accept(app, &tenant, TO, |new| new.expires_at = new.now.plus_ms(300)).await;
    let end = reaches(app, &tenant, &id, Status::Expired).await;
    assert_eq!(end.reason, Some(Reason::Expired));
    assert_eq!(count(app, "SELECT COUNT(*) FROM jobs").await, 0);
}

#[tokio::test]
async fn a_phone_is_never_given_more_than_its_hands_hold_and_expiry_reaches_what_waits() {
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nin_flight_per_phone = 2\n", &[ONE]).await;
    let app = &router.app;
    for _ in 0..5 {
        accept(app, &tenant, TO, |_| {}).await;
    }
    let short = accept(app, &tenant, TO, |new| new.expires_at = new.now.plus_ms(500)).await;
    let first = bridge.wire.send_command().await;
    bridge.wire.send_command().await;
    reaches(app, &tenant, &short, Status::Expired).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM attempts WHERE state <> 'done'").await, 2);
    bridge.sends(&first).await;
    bridge.wire.send_command().await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM attempts WHERE state <> 'done'").await, 2);
}

#[tokio::test]
async fn with_one_phone_away_and_one_used_up_a_message_is_looked_at_again_at_midnight() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let (_away, used_up) = (host(app, &[ONE]).await, host(app, &[TWO]).await);
    let _bridge = Bridge::connect(&router, &used_up).await;
    let phone = used_up.phones[0].clone();
    app.store
        .write(move |tx| {
            tx.execute("UPDATE phones SET daily_cap = 0 WHERE id = ?1", router::params![phone])
        })
        .await
        .unwrap();
    let day = 86_400_000;
    let midnight = (app.clock.now().0.div_euclid(day) + 1) * day;
    let id = accept(app, &tenant, TO, |new| new.expires_at = new.now.plus_ms(2 * day)).await;
    let short = accept(app, &tenant, TO, |new| new.expires_at = new.now.plus_ms(1_500)).await;
    eventually("they are held", || async {
        message(app, &tenant, &id).await.held_reason == Some(Reason::NoPhoneAvailable)
            && message(app, &tenant, &short).await.held_reason == Some(Reason::NoPhoneAvailable)
    })
    .await;
    assert_eq!(message(app, &tenant, &id).await.next_at.unwrap().0, midnight);
    let short = message(app, &tenant, &short).await;
    assert_eq!(short.next_at, short.expires_at, "no later than it lives");
}

#[tokio::test]
async fn urgent_classes_go_first() {
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nin_flight_per_phone = 1\n", &[ONE]).await;
    let app = &router.app;
    accept(app, &tenant, TO, |_| {}).await;
    let blocking = bridge.wire.send_command().await;
    let marketing = accept(app, &tenant, TO, |_| {}).await;
    let otp = accept(app, &tenant, TO, |new| {
        new.class = Class::Otp;
        new.expires_at = new.now.plus_ms(300_000);
    })
    .await;
    bridge.sends(&blocking).await;
    let next = bridge.wire.send_command().await;
    assert_eq!(next.message, otp);
    bridge.sends(&next).await;
    assert_eq!(bridge.wire.send_command().await.message, marketing);
}

#[tokio::test]
async fn a_code_goes_before_a_campaign_that_waits_for_the_same_phone() {
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nin_flight_per_phone = 1\n", &[ONE]).await;
    let app = &router.app;
    let two = host(app, &[TWO]).await;
    // Another one is idle all the time, so that the campaign is looked at again and again.
    let _idle = Bridge::connect(&router, &two).await;
    let from_one = |new: &mut messages::NewMessage| {
        new.from = Some(ONE.parse().unwrap());
        new.class = Class::Transactional;
    };
    accept(app, &tenant, TO, from_one).await;
    let blocking = bridge.wire.send_command().await;
    let mut campaign = Vec::new();
    for _ in 0..30 {
        campaign.push(accept(app, &tenant, TO, from_one).await);
    }
    let code = accept(app, &tenant, TO, |new| {
        from_one(new);
        new.class = Class::Otp;
        new.expires_at = new.now.plus_ms(300_000);
    })
    .await;
    eventually("all of them stand in a line", || async {
        count(app, "SELECT COUNT(*) FROM jobs WHERE ready = 0 AND held_reason IS NULL").await == 31
    })
    .await;
    bridge.sends(&blocking).await;
    let next = bridge.wire.send_command().await;
    assert_eq!(next.message, code);
    bridge.sends(&next).await;
    // Those of one millisecond are in no order but that of their ids.
    campaign.sort();
    for message in &campaign[..3] {
        let next = bridge.wire.send_command().await;
        assert_eq!(next.message, *message, "in the order in which they came");
        bridge.sends(&next).await;
    }
}

#[tokio::test]
async fn a_recipient_keeps_its_phone_and_a_number_asked_for_is_used() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let (one, two) = (host(app, &[ONE]).await, host(app, &[TWO]).await);
    let mut first = Bridge::connect(&router, &one).await;
    accept(app, &tenant, TO, |_| {}).await;
    let send = first.wire.send_command().await;
    first.sends(&send).await;
    let mut second = Bridge::connect(&router, &two).await;
    // The second phone has sent less today, but the recipient knows the first.
    let sticky = accept(app, &tenant, TO, |_| {}).await;
    assert_eq!(first.wire.send_command().await.message, sticky);
    let asked = accept(app, &tenant, TO, |new| new.from = Some(TWO.parse().unwrap())).await;
    assert_eq!(second.wire.send_command().await.message, asked);
    let stranger = accept(app, &tenant, "+12025550144", |_| {}).await;
    assert_eq!(second.wire.send_command().await.message, stranger);
    let nobody =
        accept(app, &tenant, TO, |new| new.from = Some("+15550100199".parse().unwrap())).await;
    let end = reaches(app, &tenant, &nobody, Status::Failed).await;
    assert_eq!(end.reason, Some(Reason::PhoneNotAllowed));
}

#[tokio::test]
async fn a_channel_asked_for_is_the_only_one_tried() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    accept(app, &tenant, TO, |new| new.channel = ChannelChoice::Sms).await;
    assert_eq!(bridge.wire.send_command().await.route, [Channel::Sms]);
    accept(app, &tenant, "ann@example.com", |_| {}).await;
    assert_eq!(bridge.wire.send_command().await.route, [Channel::Imessage]);
    let rcs = accept(app, &tenant, TO, |new| new.channel = ChannelChoice::Rcs).await;
    eventually("it is held", || async {
        message(app, &tenant, &rcs).await.held_reason == Some(Reason::NoPhoneAvailable)
    })
    .await;
}

#[tokio::test]
async fn a_phone_that_moves_to_another_host_is_leased_there_only_after_ttl_and_grace() {
    let router = router("[lease]\nttl_ms = 4000\ngrace_ms = 1000\n").await;
    let app = &router.app;
    let old = host(app, &[ONE]).await;
    let bridge = Bridge::connect(&router, &old).await;
    assert_eq!(bridge.epoch, 1);
    let new = host(app, &[ONE]).await;
    assert_eq!(new.phones, old.phones);
    let header = authorization(&new, app.clock.now().0 / 1_000, &nonce());
    let mut wire = dial(router.address, Some(&header)).await.unwrap();
    wire.say(&hello(vec![report(&new.phones[0], PhoneState::Ready)])).await;
    assert_eq!(wire.welcome().await.phones[0].epoch, None, "the old host may still be sending");
    let since = tokio::time::Instant::now();
    let mut renewal = 0;
    let epoch = loop {
        renewal += 1;
        let phones = vec![report(&new.phones[0], PhoneState::Ready)];
        wire.say(&HostFrame::Renew { renewal, phones, health: HostHealth::default() }).await;
        wire.say(&HostFrame::Ping { at: app.clock.now() }).await;
        let granted = wire
            .until(|frame| match frame {
                protocol::link::RouterFrame::Lease { epoch, .. } => Some(Some(*epoch)),
                protocol::link::RouterFrame::Pong { .. } => Some(None),
                _ => None,
            })
            .await;
        match granted {
            Some(epoch) => break epoch,
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert_eq!(epoch, 3, "one for what the old host is to give back, one for the new host");
    assert!(since.elapsed() > Duration::from_millis(4_500), "{:?}", since.elapsed());
}

#[tokio::test]
async fn what_cannot_be_checked_is_not_sent() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let host = host(app, &[ONE]).await;
    // An opt-out written by a version that this one does not understand.
    let whose = tenant.clone();
    app.store
        .write(move |tx| {
            tx.execute(
                "INSERT INTO opt_outs (tenant_id, test, recipient, state, method, at)
                 VALUES (?1, 0, ?2, 'perhaps', 'api', 1)",
                router::params![whose, TO],
            )
        })
        .await
        .unwrap();
    let unclear = accept(app, &tenant, TO, |_| {}).await;
    // A row that no version writes.
    let soon = app.clock.now().plus_ms(300);
    let broken = accept(app, &tenant, "+12025550144", |new| new.send_at = Some(soon)).await;
    let which = broken.clone();
    app.store
        .write(move |tx| {
            tx.execute(
                "UPDATE messages SET channel_asked = 'pigeon' WHERE id = ?1",
                router::params![which],
            )
        })
        .await
        .unwrap();
    let mut bridge = Bridge::connect(&router, &host).await;
    let end = reaches(app, &tenant, &unclear, Status::Blocked).await;
    assert_eq!(end.reason, Some(Reason::CheckFailed));
    eventually("the broken one is blocked", || async {
        count(
            app,
            "SELECT COUNT(*) FROM messages WHERE status = 'blocked' AND reason = 'check_failed'",
        )
        .await
            == 2
    })
    .await;
    // The others go on.
    let good = accept(app, &tenant, "+12025550145", |_| {}).await;
    assert_eq!(bridge.wire.send_command().await.message, good);
    assert_eq!(count(app, "SELECT COUNT(*) FROM attempts").await, 1);
}

#[tokio::test]
async fn a_phone_whose_lease_has_lapsed_gets_nothing_until_it_is_renewed() {
    let (router, tenant, _host, mut bridge) =
        shelf("[lease]\nttl_ms = 4000\ngrace_ms = 1000\n", &[ONE]).await;
    let app = &router.app;
    app.store
        .write(|tx| tx.execute("UPDATE leases SET expires_at = 1", router::params![]))
        .await
        .unwrap();
    let id = accept(app, &tenant, TO, |_| {}).await;
    eventually("it is held", || async {
        message(app, &tenant, &id).await.held_reason == Some(Reason::NoPhoneAvailable)
    })
    .await;
    let mut phone = report(&bridge.phone, PhoneState::Ready);
    phone.epoch = Some(bridge.epoch);
    let renew = HostFrame::Renew { renewal: 1, phones: vec![phone], health: HostHealth::default() };
    bridge.wire.say(&renew).await;
    let send = bridge.wire.send_command().await;
    assert_eq!((send.message, send.epoch), (id, bridge.epoch));
}

#[tokio::test]
async fn a_test_keys_message_reaches_the_sandbox_and_no_real_phone_in_any_way() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let (real, sandbox) = (host(app, &[ONE]).await, sandbox_host(app, &[TWO]).await);
    let mut real = Bridge::connect(&router, &real).await;
    // They have talked before, on the real phone: it is the sticky one.
    real.event(received(TO, "guid-1", "Hello?", app.clock.now())).await;
    let test = |change: fn(&mut messages::NewMessage)| {
        accept(app, &tenant, TO, move |new| {
            (new.test, new.class) = (true, Class::Otp);
            change(new);
        })
    };
    // The sandbox is away: what is for it waits for it.
    let waits = test(|_| {}).await;
    eventually("it is held", || async {
        message(app, &tenant, &waits).await.held_reason == Some(Reason::NoPhoneAvailable)
    })
    .await;
    let asked = test(|new| new.from = Some(ONE.parse().unwrap())).await;
    let refused = reaches(app, &tenant, &asked, Status::Failed).await;
    assert_eq!(refused.reason, Some(Reason::PhoneNotAllowed));

    // A live message goes past it to the real phone; nothing else has come there.
    let live = accept(app, &tenant, TO, |_| {}).await;
    let send = real.wire.send_command().await;
    assert_eq!(send.message, live);
    real.sends(&send).await;

    let mut sandbox = Bridge::connect(&router, &sandbox).await;
    let send = sandbox.wire.send_command().await;
    assert_eq!(send.message, waits);
    // A failure's next attempt, and a dead letter that is tried again, stay there too.
    sandbox.event(Event::Failed(about(&send, Reason::NotRegistered, false))).await;
    reaches(app, &tenant, &waits, Status::Failed).await;
    let (whose, id, now) = (tenant.clone(), waits.clone(), app.clock.now());
    let again = app
        .store
        .write(move |tx| {
            use router::store::dead_letters::{self, Retried};
            dead_letters::keep(tx, &whose, &id, Reason::AttemptsExhausted, now)?;
            let new = protocol::MessageId::new(now.0, [7; 10]);
            match dead_letters::retry(tx, &whose, &id, (new, now))?.unwrap() {
                Retried::As(message) => Ok(message.id),
                Retried::MayHaveBeenSent => panic!("it was not sent"),
                Retried::Refused(refusal) => panic!("it costs nothing: {refusal:?}"),
            }
        })
        .await
        .unwrap();
    app.bells.dispatch.notify_one();
    let send = sandbox.wire.send_command().await;
    assert_eq!(send.message, again);
    sandbox.sends(&send).await;
    assert_eq!(message(app, &tenant, &again).await.from.unwrap().as_str(), TWO);
}

#[tokio::test]
async fn what_is_said_to_the_sandbox_is_answered_there_and_lifts_no_opt_out() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let (real, sandbox) = (host(app, &[ONE]).await, sandbox_host(app, &[TWO]).await);
    let mut real = Bridge::connect(&router, &real).await;
    let mut sandbox = Bridge::connect(&router, &sandbox).await;
    sandbox.event(received(TO, "guid-1", "STOP", app.clock.now())).await;
    let confirmation = sandbox.wire.send_command().await;
    assert!(confirmation.text.contains("unsubscribed"), "{}", confirmation.text);
    sandbox.sends(&confirmation).await;
    sandbox.event(received(TO, "guid-2", "START", app.clock.now())).await;
    let confirmation = sandbox.wire.send_command().await;
    assert!(confirmation.text.contains("subscribed again"), "{}", confirmation.text);
    sandbox.sends(&confirmation).await;
    // The sandbox may write again, and nobody else.
    let again = accept(app, &tenant, TO, |new| new.test = true).await;
    let send = sandbox.wire.send_command().await;
    assert_eq!(send.message, again);
    sandbox.sends(&send).await;
    let blocked = accept(app, &tenant, TO, |_| {}).await;
    let end = reaches(app, &tenant, &blocked, Status::Blocked).await;
    assert_eq!(end.reason, Some(Reason::OptedOut));
    assert_eq!(
        count(app, "SELECT COUNT(*) FROM messages WHERE direction = 'inbound' AND test = 1").await,
        2
    );
    // Nor has it made them a contact of the tenant's, who is written to as one that has answered.
    for (test, knows) in [(true, true), (false, false)] {
        let (whose, who) = (tenant.clone(), TO.parse::<Recipient>().unwrap());
        let known = app.store.read(move |tx| rules::known(tx, (&whose, test), &who)).await.unwrap();
        assert_eq!((known.last_inbound_ms.is_some(), known.first_message), (knows, !knows));
    }
    // On a real phone it counts.
    real.event(received(TO, "guid-3", "START", app.clock.now())).await;
    let confirmation = real.wire.send_command().await;
    real.sends(&confirmation).await;
    let sent = accept(app, &tenant, TO, |_| {}).await;
    let send = real.wire.send_command().await;
    assert_eq!(send.message, sent);
}
