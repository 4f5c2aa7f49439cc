//! What goes wrong between two parts: answers that come twice or from the wrong side, opt-outs that overtake messages,
//! journals and stores that were lost, rows that are damaged.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use crate::link_support::*;
use protocol::link::{HostFrame, HostHealth, PhoneReport, PhoneState, RouterFrame};
use protocol::pipe::{
    Attempt, Command, Conversation, ConversationKind, Event, Received, Send as Sending,
};
use protocol::{Channel, MessageId, Reason, Status, TenantId, UnixMs};
use router::params;
use router::server::App;
use router::store::messages::{self, Filter, Window};

const ONE: &str = "+15550100190";
const TWO: &str = "+15550100191";
const TO: &str = "+12025550143";

fn refused(send: &Sending, reason: Reason) -> Event {
    Event::Refused(about(send, reason, true))
}

async fn cancel(app: &App, tenant: &TenantId, id: &MessageId) {
    let (tenant, id, now) = (tenant.clone(), id.clone(), app.clock.now());
    let asked = app.store.write(move |tx| messages::cancel(tx, &tenant, &id, now)).await.unwrap();
    assert!(matches!(asked, Some(messages::Canceled::Asked(_))), "{asked:?}");
}

/// Says a ping and answers every command that comes before its pong.
async fn commands_until_now(wire: &mut Wire, mark: i64) -> Vec<Command> {
    wire.say(&HostFrame::Ping { at: UnixMs(mark) }).await;
    let mut commands = Vec::new();
    wire.until(|frame| match frame {
        RouterFrame::Command { command, .. } => {
            commands.push(command.clone());
            None
        }
        RouterFrame::Pong { at } => (*at == UnixMs(mark)).then_some(()),
        _ => None,
    })
    .await;
    commands
}

/// A session whose bridge says that it has this journal.
async fn connect_with(router: &Router, host: &Host, journal: &str, state: PhoneState) -> Wire {
    let header = authorization(host, router.app.clock.now().0 / 1_000, &nonce());
    let mut wire = dial(router.address, Some(&header)).await.unwrap();
    let phone = PhoneReport { journal: Some(journal.to_owned()), ..report(&host.phones[0], state) };
    wire.say(&hello(vec![phone])).await;
    wire.welcome().await;
    wire
}

#[tokio::test]
async fn an_old_answer_that_comes_again_does_not_end_what_is_tried_again() {
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nretry_first_ms = 300\n", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let first = bridge.wire.send_command().await;
    bridge.event(Event::Failed(about(&first, Reason::Network, true))).await;
    // The answer to an offer that was repeated meanwhile.
    bridge.event(Event::Failed(about(&first, Reason::Network, true))).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Queued);
    let second = bridge.wire.send_command().await;
    assert_eq!(second.attempt, 2);
    bridge.event(Event::Failed(about(&first, Reason::Network, true))).await;
    bridge.event(Event::Unknown(about(&first, Reason::MessagesTimeout, true))).await;
    bridge.event(refused(&first, Reason::QueueFull)).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Dispatching);
    bridge.sends(&second).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Sent);
    // Nor does a doomed attempt overrule the one that was proven.
    assert!(!kinds(app, &tenant, &id).await.contains(&"failed".to_owned()));
}

#[tokio::test]
async fn a_failure_after_sent_is_believed_of_the_attempt_that_sent_alone() {
    let (router, tenant, host, mut bridge) =
        shelf("[dispatch]\nretry_first_ms = 100\n", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let first = bridge.wire.send_command().await;
    bridge.event(Event::Failed(about(&first, Reason::Network, true))).await;
    let second = bridge.wire.send_command().await;
    // It was sent after all, and the second attempt is withdrawn.
    let attempt = Attempt { message: id.clone(), attempt: 1 };
    bridge.event(Event::Sent { attempt, channel: Channel::Imessage, guid: "g".to_owned() }).await;
    // Even when the word of that is lost, the second attempt is not offered again.
    let seq = bridge.seq;
    drop(bridge);
    let mut bridge = Bridge::connect_at(&router, &host, seq).await;
    let commands = commands_until_now(&mut bridge.wire, 3).await;
    assert!(
        commands.iter().all(|command| matches!(command, Command::Cancel { attempt: 2, .. })),
        "{commands:?}"
    );
    bridge.event(Event::Failed(about(&second, Reason::Network, false))).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Sent);
}

#[tokio::test]
async fn what_is_wanted_back_is_not_offered_again() {
    let (router, tenant, host, mut bridge) = shelf("[dispatch]\nreoffer_ms = 300\n", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    bridge.wire.send_command().await;
    drop(bridge);
    eventually("the host is offline", || async { !app.links.is_online(&host.id) }).await;
    cancel(app, &tenant, &id).await;
    router::dispatch::recall(app, &id).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let mut withdrawn = 0;
    while withdrawn < 3 {
        bridge
            .wire
            .until(|frame| match frame {
                RouterFrame::Command { command: Command::Send(_), .. } => {
                    panic!("what is wanted back is offered")
                }
                RouterFrame::Command { command: Command::Cancel { .. }, .. } => Some(()),
                _ => None,
            })
            .await;
        withdrawn += 1;
    }
    bridge.event(Event::Canceled(Attempt { message: id.clone(), attempt: 1 })).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Canceled);
}

#[tokio::test]
async fn stop_withdraws_from_a_phone_that_is_away_as_soon_as_it_is_back() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let (one, two) = (host(app, &[ONE]).await, host(app, &[TWO]).await);
    let mut away = Bridge::connect(&router, &one).await;
    let id = accept(app, &tenant, TO, |_| {}).await;
    away.wire.send_command().await;
    drop(away);
    eventually("the host is offline", || async { !app.links.is_online(&one.id) }).await;
    let mut other = Bridge::connect(&router, &two).await;
    other.event(received(TO, "guid-stop", "STOP", app.clock.now())).await;
    let mut back = Bridge::connect(&router, &one).await;
    let first = back
        .wire
        .until(|frame| match frame {
            RouterFrame::Command { command, .. } => Some(command.clone()),
            _ => None,
        })
        .await;
    assert_eq!(first, Command::Cancel { message: id.clone(), attempt: 1 });
    back.event(Event::Canceled(Attempt { message: id.clone(), attempt: 1 })).await;
    let end = message(app, &tenant, &id).await;
    assert_eq!((end.status, end.reason), (Status::Blocked, Some(Reason::OptedOut)));
}

#[tokio::test]
async fn another_journal_neither_gets_nor_answers_what_the_first_may_have_sent() {
    let (router, tenant, host, mut bridge) =
        shelf("[dispatch]\nin_flight_per_phone = 1\n", &[ONE]).await;
    let app = &router.app;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    drop(bridge);
    eventually("the host is offline", || async { !app.links.is_online(&host.id) }).await;
    let mut wire = connect_with(&router, &host, "journal-2", PhoneState::Ready).await;
    assert!(commands_until_now(&mut wire, 7).await.is_empty());
    // A bridge that has never heard of it says so; that proves nothing of the one before.
    for (seq, event) in [
        (1, refused(&send, Reason::StaleEpoch)),
        (2, Event::Canceled(Attempt { message: id.clone(), attempt: 1 })),
    ] {
        let frame = protocol::link::EventFrame {
            phone: host.phones[0].clone(),
            journal: "journal-2".to_owned(),
            seq,
            epoch: Some(1),
            at: app.clock.now(),
            event,
        };
        wire.say(&HostFrame::Event(frame)).await;
        wire.ack(seq).await;
    }
    assert!(commands_until_now(&mut wire, 8).await.is_empty());
    assert_eq!(message(app, &tenant, &id).await.status, Status::Dispatching);
    // It does not hold the new bridge's places.
    let next = accept(app, &tenant, TO, |_| {}).await;
    assert_eq!(wire.send_command().await.message, next);
}

#[tokio::test]
async fn one_damaged_message_does_not_stop_the_others() {
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nin_flight_per_phone = 1\n", &[ONE]).await;
    let app = &router.app;
    accept(app, &tenant, TO, |_| {}).await;
    let first = bridge.wire.send_command().await;
    let damaged = accept(app, &tenant, TO, |new| new.expires_at = new.now.plus_ms(200)).await;
    let which = damaged.clone();
    app.store
        .write(move |tx| {
            tx.execute("UPDATE messages SET channel_asked = 'pigeon' WHERE id = ?1", params![which])
        })
        .await
        .unwrap();
    // The sweep comes to the damaged one first.
    let short = accept(app, &tenant, TO, |new| new.expires_at = new.now.plus_ms(300)).await;
    reaches(app, &tenant, &short, Status::Expired).await;
    bridge.sends(&first).await;
    let next = accept(app, &tenant, TO, |_| {}).await;
    assert_eq!(bridge.wire.send_command().await.message, next);
    assert_eq!(
        count(
            app,
            "SELECT COUNT(*) FROM messages WHERE status = 'blocked' AND reason = 'check_failed'"
        )
        .await,
        1
    );
}

#[tokio::test]
async fn a_damaged_message_does_not_lose_a_stop() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let later = app.clock.now().plus_ms(600_000);
    let good = accept(app, &tenant, TO, |new| new.send_at = Some(later)).await;
    let damaged = accept(app, &tenant, TO, |new| new.send_at = Some(later)).await;
    app.store
        .write(move |tx| {
            tx.execute(
                "UPDATE messages SET channel_asked = 'pigeon' WHERE id = ?1",
                params![damaged],
            )
        })
        .await
        .unwrap();
    bridge.event(received(TO, "guid-stop", "STOP", app.clock.now())).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM opt_outs WHERE state = 'opted_out'").await, 1);
    assert_eq!(message(app, &tenant, &good).await.status, Status::Blocked);
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE status = 'blocked'").await, 2);
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE direction = 'inbound'").await, 1);
}

#[tokio::test]
async fn an_event_that_cannot_be_taken_in_is_kept_and_its_stop_honoured() {
    let (router, tenant, _host, mut bridge) =
        shelf("[dispatch]\nreoffer_ms = 600000\n", &[ONE]).await;
    let app = &router.app;
    let given = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    let later = app.clock.now().plus_ms(600_000);
    let waits = accept(app, &tenant, TO, |new| new.send_at = Some(later)).await;
    // Whatever fails behind it: here the story cannot be written.
    app.store
        .write(|tx| {
            tx.execute(
                "CREATE TRIGGER broken BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'broken'); END",
                params![],
            )
        })
        .await
        .unwrap();
    bridge.event(received(TO, "guid-stop", "STOP", app.clock.now())).await;
    assert_eq!(bridge.wire.cancel_command().await, (given, send.attempt));
    assert_eq!(message(app, &tenant, &waits).await.status, Status::Blocked);
    assert_eq!(count(app, "SELECT COUNT(*) FROM opt_outs WHERE state = 'opted_out'").await, 1);
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE direction = 'inbound'").await, 1);
    assert_eq!(count(app, "SELECT COUNT(*) FROM unplaced_events WHERE type = 'received'").await, 1);
}

#[tokio::test]
async fn a_phones_wrong_clock_does_not_delay_webhooks() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    endpoint(app, &tenant, "https://127.0.0.1/", "whsec_c2VjcmV0LW9mLXRoZS10ZXN0cw==").await;
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let id = accept(app, &tenant, TO, |_| {}).await;
    bridge.wire.send_command().await;
    bridge.seq += 1;
    let attempt = Attempt { message: id, attempt: 1 };
    let sent = Event::Sent { attempt, channel: Channel::Imessage, guid: "g".to_owned() };
    let HostFrame::Event(mut frame) = bridge.frame(bridge.seq, sent) else { unreachable!() };
    frame.at = app.clock.now().plus_ms(365 * 24 * 3_600_000);
    bridge.wire.say(&HostFrame::Event(frame)).await;
    bridge.wire.ack(bridge.seq).await;
    assert_eq!(
        count(
            app,
            "SELECT COUNT(*) FROM webhook_jobs WHERE type = 'message.sent'
             AND created_at < (SELECT MIN(created_at) FROM tenants) + 86400000"
        )
        .await,
        1
    );
}

#[tokio::test]
async fn a_senders_wrong_clock_does_not_undo_a_stop() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    let now = app.clock.now();
    let tomorrow = now.plus_ms(24 * 3_600_000);
    bridge.event(received(TO, "g-1", "STOP", now.plus_ms(-5_000))).await;
    bridge.event(received(TO, "g-2", "START", tomorrow)).await;
    bridge.event(received(TO, "g-3", "STOP", now.plus_ms(-1_000))).await;
    let id = accept(app, &tenant, TO, |_| {}).await;
    reaches(app, &tenant, &id, Status::Blocked).await;
    // What iCloud brings late is as old as it says.
    bridge.event(received(TO, "g-4", "START", app.clock.now())).await;
    let Event::Received(mut late) = received(TO, "g-5", "STOP", now.plus_ms(-60_000)) else {
        unreachable!()
    };
    late.late = true;
    bridge.event(Event::Received(late)).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM opt_outs WHERE state = 'opted_in'").await, 1);
}

/// A message that iCloud has put in late, and what it is a copy of.
fn copy(of: &str, guid: &str, text: &str, at: UnixMs) -> Event {
    let Event::Received(mut copy) = received(TO, guid, text, at) else { unreachable!() };
    copy.late = true;
    copy.details.copy_of = Some(of.to_owned());
    Event::Received(copy)
}

#[tokio::test]
async fn a_late_copy_of_a_known_message_is_acknowledged_and_told_to_nobody() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    endpoint(app, &tenant, "https://127.0.0.1/", "whsec_c2VjcmV0LW9mLXRoZS10ZXN0cw==").await;
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let then = app.clock.now().plus_ms(-14 * 3_600_000);
    bridge.event(received(TO, "g-1", "hello", then)).await;
    bridge.event(copy("g-1", "g-2", "hello", then)).await;
    bridge.event(copy("g-1", "g-2", "hello", then)).await;
    bridge.event(copy("g-2", "g-3", "hello", then)).await;
    let inbound = "SELECT COUNT(*) FROM messages WHERE direction = 'inbound'";
    let told = "SELECT COUNT(*) FROM webhook_jobs WHERE type = 'message.received'";
    // The third names a guid that was never taken in under its own name: it is a message.
    assert_eq!((count(app, inbound).await, count(app, told).await), (2, 2));
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE guid IN ('g-1', 'g-3')").await, 2);
    assert_eq!(count(app, "SELECT COUNT(*) FROM unplaced_events").await, 0);
}

#[tokio::test]
async fn a_copy_of_what_nobody_knows_is_a_message_and_marked_as_late() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    endpoint(app, &tenant, "https://127.0.0.1/", "whsec_c2VjcmV0LW9mLXRoZS10ZXN0cw==").await;
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let then = app.clock.now().plus_ms(-14 * 3_600_000);
    // Another sender's message under that guid is no original either.
    bridge.event(received("+12025550144", "g-0", "hello", then)).await;
    bridge.event(copy("g-0", "g-1", "hello", then)).await;
    bridge.event(copy("g-9", "g-2", "again", then)).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE guid IN ('g-1', 'g-2')").await, 2);
    assert_eq!(
        count(
            app,
            "SELECT COUNT(*) FROM webhook_jobs WHERE type = 'message.received' AND body LIKE '%\"late\":true%'"
        )
        .await,
        2
    );
}

#[tokio::test]
async fn a_stop_in_a_late_copy_counts_and_a_start_in_one_does_not() {
    let router = router("").await;
    let app = &router.app;
    tenant(app, "Acme").await;
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let then = app.clock.now().plus_ms(-14 * 3_600_000);
    let out = "SELECT COUNT(*) FROM opt_outs WHERE state = 'opted_out'";
    bridge.event(received(TO, "g-1", "STOP", then)).await;
    // The opt-out was lost, as by a restored backup; the message was not.
    app.store.write(|tx| tx.execute("DELETE FROM opt_outs", params![])).await.unwrap();
    bridge.event(copy("g-1", "g-2", "STOP", then)).await;
    assert_eq!(count(app, out).await, 1);
    bridge.event(received(TO, "g-3", "START", then.plus_ms(1_000))).await;
    bridge.event(received(TO, "g-4", "STOP", then.plus_ms(2_000))).await;
    bridge.event(copy("g-3", "g-5", "START", then.plus_ms(1_000))).await;
    assert_eq!(count(app, out).await, 1);
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE direction = 'inbound'").await, 3);
}

#[tokio::test]
async fn a_confirmation_that_a_newer_wish_overtakes_is_not_sent() {
    let router = router("").await;
    let app = &router.app;
    tenant(app, "Acme").await;
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    bridge.wire.say(&HostFrame::Phone(report(&bridge.phone, PhoneState::NotReady))).await;
    for (guid, text) in [("g-1", "stop"), ("g-2", "start"), ("g-3", "stop")] {
        bridge.event(received(TO, guid, text, app.clock.now())).await;
    }
    assert_eq!(
        count(
            app,
            "SELECT COUNT(*) FROM messages WHERE kind = 'confirmation' AND status = 'queued'"
        )
        .await,
        1
    );
    bridge.wire.say(&HostFrame::Phone(report(&bridge.phone, PhoneState::Ready))).await;
    let only = bridge.wire.send_command().await;
    assert!(only.text.contains("unsubscribed"), "{}", only.text);
    assert_eq!(count(app, "SELECT COUNT(*) FROM jobs").await, 0);
}

#[tokio::test]
async fn what_belongs_to_no_tenant_is_kept_for_the_operator_alone() {
    let router = router("").await;
    let app = &router.app;
    let (acme, other) = (tenant(app, "Acme").await, tenant(app, "Other").await);
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    bridge.event(received(TO, "g-1", "Who is this?", app.clock.now())).await;
    bridge.event(received(TO, "g-2", "STOP", app.clock.now())).await;
    bridge.event(received(TO, "g-2", "STOP", app.clock.now())).await;
    let page = Window { before: None, limit: 10 };
    let (all, mine, theirs) = app
        .store
        .read(move |tx| {
            let filter = Filter::default();
            Ok((
                messages::list_all(tx, None, &filter, &page)?,
                messages::list(tx, &acme, &filter, &page)?,
                messages::list(tx, &other, &filter, &page)?,
            ))
        })
        .await
        .unwrap();
    let texts: Vec<&str> = all.iter().map(|(_, message)| message.text.as_str()).collect();
    assert_eq!(texts, ["STOP", "Who is this?"]);
    assert!(mine.is_empty() && theirs.is_empty());
    for table in [
        "SELECT COUNT(*) FROM opt_outs",
        "SELECT COUNT(*) FROM bindings",
        "SELECT COUNT(*) FROM webhook_jobs",
        "SELECT COUNT(*) FROM jobs",
        "SELECT COUNT(*) FROM messages WHERE kind = 'confirmation'",
    ] {
        assert_eq!(count(app, table).await, 0, "{table}");
    }
    let nobody = all[0].0.clone();
    assert_eq!(nobody, router::store::inbound::nobody());
    let known =
        app.store.read(move |tx| router::store::admin::tenant_exists(tx, &nobody)).await.unwrap();
    assert!(!known, "no key can be made for it");
    // What happens to it later is part of its story.
    let unsent = protocol::pipe::Unsent {
        guid: "g-1".to_owned(),
        parts: Vec::new(),
        from_me: false,
        at: app.clock.now(),
    };
    bridge.event(Event::Unsent(unsent)).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM message_events WHERE type = 'unsent'").await, 1);
}

#[tokio::test]
async fn what_happens_to_a_message_that_nobody_knows_is_kept() {
    let router = router("").await;
    let app = &router.app;
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let unsent = protocol::pipe::Unsent {
        guid: "never-seen".to_owned(),
        parts: Vec::new(),
        from_me: false,
        at: app.clock.now(),
    };
    bridge.event(Event::Unsent(unsent)).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM unplaced_events WHERE type = 'unsent'").await, 1);
}

#[tokio::test]
async fn a_reply_in_a_group_belongs_to_who_wrote_to_the_group() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    crate::link_support::tenant(app, "Other").await;
    let host = host(app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    accept(app, &tenant, "group:chat831", |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;
    let Event::Received(reply) = received(TO, "g-1", "Hello all", app.clock.now()) else {
        unreachable!()
    };
    let conversation = Conversation { kind: ConversationKind::Group, id: "chat831".to_owned() };
    bridge.event(Event::Received(Received { conversation, ..reply })).await;
    let owner = app
        .store
        .read(|tx| {
            tx.query_row(
                "SELECT tenant_id FROM messages WHERE direction = 'inbound'",
                params![],
                |row| row.get::<TenantId>(0),
            )
        })
        .await
        .unwrap();
    assert_eq!(owner, tenant);
    // It answers what the tenant wrote to the group, which has not written too often without an answer.
    let answered = "SELECT COUNT(*) FROM bindings WHERE recipient = 'group:chat831' AND unanswered = 0 AND last_direction = 'inbound'";
    assert_eq!(count(app, answered).await, 1);
}

#[tokio::test]
async fn a_message_that_waited_for_its_turn_in_the_end_has_expired_and_not_failed() {
    let router = router("[dispatch]\nin_flight_per_phone = 1\n").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let host = host(app, &[ONE]).await;
    let first = accept(app, &tenant, TO, |_| {}).await;
    let short = accept(app, &tenant, TO, |new| new.expires_at = new.now.plus_ms(4_000)).await;
    eventually("no phone is there for either", || async {
        message(app, &tenant, &first).await.held_reason == Some(Reason::NoPhoneAvailable)
            && message(app, &tenant, &short).await.held_reason == Some(Reason::NoPhoneAvailable)
    })
    .await;
    let mut bridge = Bridge::connect(&router, &host).await;
    assert_eq!(bridge.wire.send_command().await.message, first);
    let end = reaches(app, &tenant, &short, Status::Expired).await;
    assert_eq!(end.reason, Some(Reason::Expired));
    let last = "SELECT COUNT(*) FROM decisions WHERE verdict = 'expire'";
    assert_eq!(count(app, last).await, 1);
}

#[tokio::test]
async fn a_message_for_which_no_phone_is_found_fails_with_that_reason() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    endpoint(app, &tenant, "https://127.0.0.1/", "whsec_c2VjcmV0LW9mLXRoZS10ZXN0cw==").await;
    let id = accept(app, &tenant, TO, |new| new.expires_at = new.now.plus_ms(300)).await;
    let end = reaches(app, &tenant, &id, Status::Failed).await;
    assert_eq!(end.reason, Some(Reason::NoPhoneAvailable));
    assert_eq!(kinds(app, &tenant, &id).await, ["queued", "held", "failed"]);
    assert_eq!(count(app, "SELECT COUNT(*) FROM jobs").await, 0);
    assert_eq!(
        count(app, "SELECT COUNT(*) FROM webhook_jobs WHERE type = 'message.failed'").await,
        1
    );
}

#[tokio::test]
async fn an_epoch_that_a_bridge_has_seen_is_never_undercut() {
    let (router, tenant, _host, mut bridge) = shelf("", &[ONE]).await;
    let app = &router.app;
    accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.epoch, 1);
    // The store was restored from a copy, and the supervisor does not remember either: only the bridge does.
    bridge.epoch = 9;
    bridge.event(refused(&send, Reason::StaleEpoch)).await;
    let renew = HostFrame::Renew {
        renewal: 1,
        phones: vec![report(&bridge.phone, PhoneState::Ready)],
        health: HostHealth::default(),
    };
    bridge.wire.say(&renew).await;
    let (mut lease, mut again) = (None, None);
    while lease.is_none() || again.is_none() {
        match bridge.wire.next().await {
            Came::Frame(frame) => match *frame {
                RouterFrame::Lease { epoch, .. } => lease = Some(epoch),
                RouterFrame::Command { command: Command::Send(send), .. } => again = Some(send),
                _ => {}
            },
            Came::Closed(code) => panic!("closed: {code:?}"),
        }
    }
    assert_eq!(lease, Some(10));
    assert_eq!(again.map(|send| (send.attempt, send.epoch)), Some((2, 10)));
}

#[tokio::test]
async fn an_attempt_that_the_store_has_forgotten_is_not_made_again() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let host = host(app, &[ONE]).await;
    let id = accept(app, &tenant, TO, |_| {}).await;
    let retried = accept(app, &tenant, TO, |_| {}).await;
    // The store was restored from a copy made before the message went to a phone; the phone remembers.
    let mut wire = connect_with(&router, &host, "journal-1", PhoneState::NotReady).await;
    let attempt = |id: &MessageId| Attempt { message: id.clone(), attempt: 1 };
    let sent =
        Event::Sent { attempt: attempt(&id), channel: Channel::Imessage, guid: "g".to_owned() };
    let failed = Event::Failed(protocol::pipe::AttemptReason {
        attempt: attempt(&retried),
        reason: Reason::Network,
        detail: String::new(),
        retryable: true,
        channel: None,
    });
    for (seq, event) in [
        (1, Event::Accepted(attempt(&id))),
        (2, Event::Accepted(attempt(&retried))),
        (3, sent),
        (4, failed),
    ] {
        let frame = protocol::link::EventFrame {
            phone: host.phones[0].clone(),
            journal: "journal-1".to_owned(),
            seq,
            epoch: Some(1),
            at: app.clock.now(),
            event,
        };
        wire.say(&HostFrame::Event(frame)).await;
        wire.ack(seq).await;
        if seq == 1 {
            assert_eq!(message(app, &tenant, &id).await.status, Status::Dispatching);
        }
    }
    assert_eq!(message(app, &tenant, &id).await.status, Status::Sent);
    wire.say(&HostFrame::Phone(report(&host.phones[0], PhoneState::Ready))).await;
    let again = wire.send_command().await;
    assert_eq!((again.message, again.attempt), (retried, 2));
    // A tenant's message is not a host's to speak of when it already is with another.
    assert_eq!(count(app, "SELECT COUNT(*) FROM attempts").await, 3);
}

#[tokio::test]
async fn a_store_restored_from_a_backup_goes_on_where_the_bridge_still_can() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let host = host(app, &[ONE]).await;
    // The bridge was told that 50 events are kept and has forgotten them; this store knows of none.
    let header = authorization(&host, app.clock.now().0 / 1_000, &nonce());
    let mut wire = dial(router.address, Some(&header)).await.unwrap();
    let phone = host.phones[0].clone();
    let seen = PhoneReport { last_seq: 50, acked_seq: 50, ..report(&phone, PhoneState::Ready) };
    wire.say(&hello(vec![seen])).await;
    let welcome = wire.welcome().await;
    assert_eq!(welcome.phones[0].acked_seq, 50);
    let epoch = welcome.phones[0].epoch.expect("the lease is granted");
    let mut bridge = Bridge { wire, phone, seq: 50, epoch };
    let id = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;
    assert_eq!(message(app, &tenant, &id).await.status, Status::Sent);
    // It is remembered, and a report that knows less changes nothing.
    drop(bridge);
    Bridge::connect_at(&router, &host, 53).await;
}
