//! Which channels a message is tried over: what was asked for, and what is known of its recipient.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use crate::link_support::*;
use protocol::api::Media;
use protocol::link::RouterFrame;
use protocol::pipe::{Attempt, Capability, ChannelCapability, Command, Event, Send};
use protocol::{Channel, ChannelChoice, Reason, Recipient, Status, TenantId};
use router::dispatch;
use router::server::App;
use router::store::capabilities;

const ONE: &str = "+15550100190";
const TO: &str = "+12025550143";
const AUTO: [Channel; 3] = [Channel::Imessage, Channel::Rcs, Channel::Sms];
const WITHOUT_IMESSAGE: [Channel; 2] = [Channel::Rcs, Channel::Sms];

/// A phone with every channel.
async fn bridge(router: &Router, host: &Host) -> Bridge {
    let all = "UPDATE phones SET channels = '[\"imessage\",\"rcs\",\"sms\"]'";
    router.app.store.write(move |tx| tx.execute(all, router::params![])).await.unwrap();
    Bridge::connect(router, host).await
}

fn attempt(send: &Send) -> Attempt {
    Attempt { message: send.message.clone(), attempt: send.attempt }
}

fn fell_back(send: &Send, from: Channel, to: Channel, reason: Reason) -> Event {
    Event::Fallback { attempt: attempt(send), from, to, reason, detail: String::new() }
}

async fn next_route(bridge: &mut Bridge, app: &App, tenant: &TenantId) -> Vec<Channel> {
    accept(app, tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;
    send.route
}

#[tokio::test]
async fn a_message_names_what_is_tried_after_its_channel_and_what_goes_with_it() {
    let router = router("").await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let host = host(app, &[ONE]).await;
    let mut bridge = bridge(&router, &host).await;
    let menu = Media {
        url: "https://example.com/menu.pdf".to_owned(),
        name: Some("Menu.pdf".to_owned()),
        sha256: Some("ab".repeat(32)),
    };
    let file = menu.clone();
    let id = accept(app, &tenant, TO, move |new| {
        new.channel = ChannelChoice::Imessage;
        new.fallback = Some(vec![Channel::Sms]);
        new.media = vec![file];
        new.text = String::new();
    })
    .await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.route, [Channel::Imessage, Channel::Sms]);
    assert_eq!((send.text.as_str(), send.attachments.len()), ("", 1));
    assert_eq!(send.attachments[0].url, menu.url);
    assert_eq!(
        (&send.attachments[0].name, &send.attachments[0].sha256),
        (&menu.name, &menu.sha256)
    );
    // What was lost on its way is offered again whole.
    drop(bridge);
    let mut again = Bridge::connect_at(&router, &host, 0).await;
    let offered = again.wire.send_command().await;
    assert_eq!((offered.message, offered.attachments), (id.clone(), send.attachments));
    let shown = message(app, &tenant, &id).await;
    assert_eq!((shown.media, shown.fallback), (vec![menu], Some(vec![Channel::Sms])));

    accept(app, &tenant, TO, |new| new.fallback = Some(Vec::new())).await;
    assert_eq!(again.wire.send_command().await.route, [Channel::Imessage], "auto, and no other");
}

#[tokio::test]
async fn a_channel_that_did_not_reach_somebody_is_left_out_for_a_day_and_for_that_tenant() {
    let router = router("[warming]\nunanswered = 0\n").await;
    let app = &router.app;
    let (tenant, other) = (tenant(app, "Acme").await, tenant(app, "Other").await);
    let host = host(app, &[ONE]).await;
    let mut bridge = bridge(&router, &host).await;

    let first = accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    assert_eq!(send.route, AUTO);
    bridge.event(fell_back(&send, Channel::Imessage, Channel::Rcs, Reason::NotRegistered)).await;
    bridge.event(fell_back(&send, Channel::Rcs, Channel::Sms, Reason::Network)).await;
    let sent =
        Event::Sent { attempt: attempt(&send), channel: Channel::Sms, guid: "G1".to_owned() };
    bridge.event(sent).await;
    reaches(app, &tenant, &first, Status::Sent).await;

    assert_eq!(
        next_route(&mut bridge, app, &tenant).await,
        WITHOUT_IMESSAGE,
        "a fault of the network says nothing"
    );
    // Asked for by its name, it is tried: the failure answers, a guess does not.
    accept(app, &tenant, TO, |new| new.channel = ChannelChoice::Imessage).await;
    let named = bridge.wire.send_command().await;
    assert_eq!(named.route, [Channel::Imessage]);
    bridge.event(Event::Failed(about(&named, Reason::NotRegistered, false))).await;
    assert_eq!(
        next_route(&mut bridge, app, &other).await,
        AUTO,
        "what another tenant has learnt is its own"
    );

    // A day later it is tried again.
    let day = i64::try_from(app.config.dispatch.capability_ms).unwrap();
    app.store
        .write(move |tx| tx.execute("UPDATE capabilities SET at = at - ?1", router::params![day]))
        .await
        .unwrap();
    assert_eq!(next_route(&mut bridge, app, &tenant).await, AUTO);

    // Who writes by iMessage has it.
    accept(app, &tenant, TO, |_| {}).await;
    let send = bridge.wire.send_command().await;
    bridge.event(fell_back(&send, Channel::Imessage, Channel::Rcs, Reason::NotRegistered)).await;
    let sent =
        Event::Sent { attempt: attempt(&send), channel: Channel::Sms, guid: "G2".to_owned() };
    bridge.event(sent).await;
    assert_eq!(next_route(&mut bridge, app, &tenant).await, WITHOUT_IMESSAGE);
    bridge.event(received(TO, "IN1", "new phone", app.clock.now())).await;
    assert_eq!(next_route(&mut bridge, app, &tenant).await, AUTO);
}

#[tokio::test]
async fn a_phone_that_is_asked_answers_who_asked_and_nobody_else() {
    let router = router("[warming]\nunanswered = 0\n").await;
    let app = &router.app;
    let (tenant, other) = (tenant(app, "Acme").await, tenant(app, "Other").await);
    let host = host(app, &[ONE]).await;
    let mut bridge = bridge(&router, &host).await;
    let to: Recipient = TO.parse().unwrap();
    let (asks, whom, state) = (tenant.clone(), to.clone(), std::sync::Arc::clone(app));
    let now = app.clock.now();
    app.store
        .write(move |tx| {
            let question = dispatch::whom_to_ask(tx, &state, (&asks, false), &whom, now)?;
            let question = question.expect("there is a phone");
            capabilities::asked(tx, (&asks, false), (&question.phone, &whom), now)?;
            dispatch::ask(&state, question, whom);
            Ok(())
        })
        .await
        .unwrap();
    let asked = bridge
        .wire
        .until(|frame| match frame {
            RouterFrame::Command { command: Command::Capability { to }, .. } => Some(to.clone()),
            _ => None,
        })
        .await;
    assert_eq!(asked, to);
    let channels = vec![
        ChannelCapability { channel: Channel::Imessage, able: false, at: now, own_result: false },
        // A clock that is ahead must not make an answer last.
        ChannelCapability {
            channel: Channel::Sms,
            able: true,
            at: now.plus_ms(400 * 86_400_000),
            own_result: false,
        },
    ];
    bridge.event(Event::Capability(Capability { to: to.clone(), channels })).await;
    let known = async |whose: &TenantId| {
        let (whose, whom) = (whose.clone(), to.clone());
        app.store
            .read(move |tx| capabilities::get(tx, (&whose, false), &whom, now.plus_ms(-1)))
            .await
            .unwrap()
    };
    let answer = known(&tenant).await;
    let told: Vec<_> = answer.channels.iter().map(|c| (c.channel, c.able, c.fresh)).collect();
    assert_eq!(told, [(Channel::Imessage, false, true), (Channel::Sms, true, true)]);
    assert!(answer.channels.iter().all(|known| known.at <= app.clock.now()));
    assert_eq!(answer.asked_at, Some(now));
    let nothing = known(&other).await;
    assert_eq!((nothing.channels, nothing.asked_at), (Vec::new(), None));
    assert_eq!(next_route(&mut bridge, app, &tenant).await, WITHOUT_IMESSAGE);
}
