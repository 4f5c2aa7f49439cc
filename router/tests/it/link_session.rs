//! The link over real sockets, with a host that does what its script says.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use crate::link_support::*;
use protocol::link::{
    CLOCK_SKEW, HostFrame, HostHealth, HostTunnel, PROBLEM_HEADER, PhoneState, RouterFrame,
    TunnelState, close,
};
use protocol::{PhoneId, UnixMs};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::Message as Ws;

const ONE: &str = "+15550100190";

fn status_of(error: &tungstenite::Error) -> Option<u16> {
    match error {
        tungstenite::Error::Http(answer) => Some(answer.status().as_u16()),
        _ => None,
    }
}

#[tokio::test]
async fn a_host_that_is_not_who_it_says_is_turned_away() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let now_s = router.app.clock.now().0 / 1_000;
    let good = authorization(&host, now_s, &nonce());
    let stranger = Host { id: protocol::HostId::new(1, [7; 10]), key: host.key, phones: vec![] };
    let cases = [
        ("no header", None),
        ("a bearer token", Some("Bearer sb_live_x".to_owned())),
        ("an unknown host", Some(authorization(&stranger, now_s, &nonce()))),
        ("a signature over something else", Some(good.replace("nonce=\"", "nonce=\"x"))),
        ("an old request", Some(authorization(&stranger, now_s - 90, &nonce()))),
    ];
    for (case, header) in cases {
        let error = dial(router.address, header.as_deref()).await.err().expect(case);
        assert_eq!(status_of(&error), Some(401), "{case}");
        // Whose clock is wrong is told so: it comes again as soon as it is right.
        let problem = if case == "an old request" { CLOCK_SKEW } else { "unauthorized" };
        let header = |name: &str| match &error {
            tungstenite::Error::Http(answer) => answer.headers().get(name).cloned(),
            _ => None,
        };
        assert_eq!(header(PROBLEM_HEADER).unwrap(), problem, "{case}");
        assert!(header("date").is_some(), "{case}");
    }
}

#[tokio::test]
async fn a_request_is_good_once() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let header = authorization(&host, router.app.clock.now().0 / 1_000, &nonce());
    assert!(dial(router.address, Some(&header)).await.is_ok());
    let error = dial(router.address, Some(&header)).await.err().unwrap();
    assert_eq!(status_of(&error), Some(401));
}

async fn dialled(router: &Router, host: &Host) -> Wire {
    let header = authorization(host, router.app.clock.now().0 / 1_000, &nonce());
    dial(router.address, Some(&header)).await.unwrap()
}

#[tokio::test]
async fn hello_is_answered_with_leases_and_marks() {
    let router = router("").await;
    let host = host(&router.app, &[ONE, "+15550100191"]).await;
    let mut wire = dialled(&router, &host).await;
    let reports = host.phones.iter().map(|phone| report(phone, PhoneState::Ready)).collect();
    wire.say(&hello(reports)).await;
    let welcome = wire.welcome().await;
    assert_eq!(welcome.phones.len(), 2);
    for phone in &welcome.phones {
        assert_eq!((phone.epoch, phone.ttl_ms, phone.acked_seq), (Some(1), 15_000, 0));
    }
    assert!(router.app.links.is_online(&host.id));
    assert_eq!(count(&router.app, "SELECT COUNT(*) FROM phones WHERE state = 'ready'").await, 2);
    assert_eq!(count(&router.app, "SELECT COUNT(*) FROM hosts WHERE session IS NOT NULL").await, 1);

    drop(wire);
    eventually("the host is offline", || async { !router.app.links.is_online(&host.id) }).await;
    eventually("its session is gone from the store", || async {
        count(&router.app, "SELECT COUNT(*) FROM hosts WHERE session IS NOT NULL").await == 0
    })
    .await;
}

#[tokio::test]
async fn a_phone_of_another_host_gets_no_lease() {
    let router = router("").await;
    let mine = host(&router.app, &[ONE]).await;
    let other = host(&router.app, &["+15550100191"]).await;
    let mut wire = dialled(&router, &mine).await;
    let foreign = other.phones[0].clone();
    wire.say(&hello(vec![
        report(&foreign, PhoneState::Ready),
        report(&mine.phones[0], PhoneState::Ready),
    ]))
    .await;
    let welcome = wire.welcome().await;
    let phones: Vec<&PhoneId> = welcome.phones.iter().map(|phone| &phone.phone).collect();
    assert_eq!(phones, [&mine.phones[0]]);
    assert_eq!(count(&router.app, "SELECT COUNT(*) FROM leases").await, 1);

    // Nor by renewing, and what it claims to hold is taken away.
    let claimed =
        protocol::link::PhoneReport { epoch: Some(3), ..report(&foreign, PhoneState::Ready) };
    let renew =
        HostFrame::Renew { renewal: 1, phones: vec![claimed], health: HostHealth::default() };
    wire.say(&renew).await;
    let revoked = wire
        .until(|frame| match frame {
            RouterFrame::Revoke { phone, epoch } => Some((phone.clone(), *epoch)),
            RouterFrame::Lease { .. } => panic!("a lease for a foreign phone"),
            _ => None,
        })
        .await;
    assert_eq!(revoked, (foreign.clone(), 3));

    // Nor are its events taken.
    let event = received("+12025550143", "g1", "hi", UnixMs(1));
    let frame = HostFrame::Event(protocol::link::EventFrame {
        phone: foreign,
        journal: "journal-1".to_owned(),
        seq: 1,
        epoch: None,
        at: UnixMs(1),
        event,
    });
    wire.say(&frame).await;
    wire.say(&HostFrame::Ping { at: UnixMs(5) }).await;
    wire.until(|frame| match frame {
        RouterFrame::Pong { at } => (*at == UnixMs(5)).then_some(()),
        RouterFrame::Ack { .. } => panic!("a foreign event was acknowledged"),
        _ => None,
    })
    .await;
    assert_eq!(count(&router.app, "SELECT COUNT(*) FROM phone_journals").await, 0);
}

#[tokio::test]
async fn the_operator_sees_how_the_tunnel_of_a_host_is_while_it_is_there() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let shown = || router.app.links.tunnel(&host.id);
    // One that knows of none, as an older supervisor does.
    let renew = serde_json::json!({"type": "renew", "renewal": 1, "phones": [], "health": {}});
    bridge.wire.say_text(renew.to_string()).await;
    let tunnel = HostTunnel {
        state: TunnelState::Unready,
        why: None,
        remedy: None,
        since: UnixMs(1_795_000_000_000),
        connections: 0,
        restarts: 2,
        restarts_last_hour: 1,
        capped: false,
    };
    let health = HostHealth { tunnel: Some(tunnel.clone()), ..HostHealth::default() };
    bridge.wire.say(&HostFrame::Renew { renewal: 2, phones: Vec::new(), health }).await;
    eventually("it is kept", || async { shown() == Some(tunnel.clone()) }).await;
    // It has none any more.
    let health = HostHealth::default();
    bridge.wire.say(&HostFrame::Renew { renewal: 3, phones: Vec::new(), health }).await;
    eventually("it is forgotten", || async { shown().is_none() }).await;
    // What this build does not know is shown as that, and holds up nothing.
    let health =
        serde_json::json!({"tunnel": {"state": "resting", "since": "2026-11-22T12:00:00Z"}});
    let renew = serde_json::json!({"type": "renew", "renewal": 4, "phones": [], "health": health});
    bridge.wire.say_text(renew.to_string()).await;
    eventually("its state is another", || async {
        shown().is_some_and(|tunnel| tunnel.state == TunnelState::Unknown)
    })
    .await;
    drop(bridge);
    eventually("the host is gone", || async { shown().is_none() }).await;
}

#[tokio::test]
async fn a_renewal_is_answered_by_its_number_with_the_same_epoch() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    for renewal in 1..=3 {
        let mut phone = report(&bridge.phone, PhoneState::Ready);
        phone.epoch = Some(bridge.epoch);
        let frame =
            HostFrame::Renew { renewal, phones: vec![phone], health: HostHealth::default() };
        bridge.wire.say(&frame).await;
        let lease = bridge
            .wire
            .until(|frame| match frame {
                RouterFrame::Lease { epoch, renewal, ttl_ms, .. } => {
                    Some((*epoch, *renewal, *ttl_ms))
                }
                _ => None,
            })
            .await;
        assert_eq!(lease, (bridge.epoch, renewal, 15_000));
    }
}

#[tokio::test]
async fn a_newer_session_ends_the_older() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let mut older = Bridge::connect(&router, &host).await;
    let newer = Bridge::connect(&router, &host).await;
    assert_eq!(older.wire.closed().await, Some(close::REPLACED));
    assert_eq!(newer.epoch, older.epoch);
    assert!(router.app.links.is_online(&host.id));
}

#[tokio::test]
async fn an_old_protocol_is_told_so() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let mut wire = dialled(&router, &host).await;
    wire.say_text(
        r#"{"type":"hello","protocol":0,"version":"0","boot":"b","clock":"2026-01-01T00:00:00Z","phones":[]}"#
            .to_owned(),
    )
    .await;
    assert_eq!(wire.closed().await, Some(close::PROTOCOL_TOO_OLD));
    assert!(!router.app.links.is_online(&host.id));
}

#[tokio::test]
async fn something_else_than_hello_at_first_ends_it() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    for first in
        [r#"{"type":"ping","at":"2026-01-01T00:00:00Z"}"#, "nonsense", r#"{"type":"what"}"#]
    {
        let mut wire = dialled(&router, &host).await;
        wire.say_text(first.to_owned()).await;
        assert_eq!(wire.closed().await, Some(1002), "{first}");
    }
}

#[tokio::test]
async fn frames_that_cannot_be_understood_do_not_end_a_session() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    for bad in
        ["", "[]", "{", r#"{"type":"of_tomorrow"}"#, r#"{"type":"event","phone":"x"}"#, "\"text\""]
    {
        bridge.wire.say_text(bad.to_owned()).await;
    }
    bridge.wire.say_raw(Ws::Binary(vec![0, 1, 2].into())).await.unwrap();
    bridge.wire.say(&HostFrame::Ping { at: UnixMs(9) }).await;
    bridge
        .wire
        .until(|frame| match frame {
            RouterFrame::Pong { at } => (*at == UnixMs(9)).then_some(()),
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn a_frame_beyond_the_limit_ends_the_session() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let long = format!("{{\"type\":\"{}\"}}", "x".repeat(protocol::limits::FRAME_BYTES_MAX));
    // The router may hang up before everything is written.
    let _sent = bridge.wire.say_raw(Ws::Text(long.into())).await;
    bridge.wire.closed().await;
    eventually("the host is offline", || async { !router.app.links.is_online(&host.id) }).await;
}

#[tokio::test]
async fn a_stopping_router_says_so() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    router.app.stop.cancel();
    assert_eq!(bridge.wire.closed().await, Some(close::DRAINING));
}

#[tokio::test]
async fn an_event_is_taken_once_and_in_order() {
    let router = router("").await;
    tenant(&router.app, "Acme").await;
    let host = host(&router.app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let now = router.app.clock.now();
    let event = |n: u64| received("+12025550143", &format!("guid-{n}"), "hi", now);

    // Two before the first: dropped, not acknowledged.
    let early = bridge.frame(3, event(3));
    bridge.wire.say(&early).await;
    bridge.event(event(1)).await;
    bridge.event(event(2)).await;
    // Again what was taken: acknowledged, not taken.
    let again = bridge.frame(1, event(1));
    bridge.wire.say(&again).await;
    bridge.wire.ack(2).await;
    assert_eq!(count(&router.app, "SELECT COUNT(*) FROM messages").await, 2);
    bridge.event(event(3)).await;
    assert_eq!(count(&router.app, "SELECT COUNT(*) FROM messages").await, 3);
    assert_eq!(count(&router.app, "SELECT acked_seq FROM phone_journals").await, 3);

    // The next session goes on where this one was.
    drop(bridge);
    let mut bridge = Bridge::connect_at(&router, &host, 3).await;
    // A new journal begins anew; what it says again by guid is a duplicate.
    let mut phone = report(&bridge.phone, PhoneState::Ready);
    phone.journal = Some("journal-2".to_owned());
    bridge.wire.say(&HostFrame::Phone(phone)).await;
    bridge
        .wire
        .until(|frame| match frame {
            RouterFrame::Ack { journal, seq, .. } if journal == "journal-2" => {
                (*seq == 0).then_some(())
            }
            _ => None,
        })
        .await;
    let HostFrame::Event(mut repeated) = bridge.frame(1, event(2)) else { unreachable!() };
    repeated.journal = "journal-2".to_owned();
    bridge.wire.say(&HostFrame::Event(repeated)).await;
    bridge.wire.ack(1).await;
    assert_eq!(count(&router.app, "SELECT COUNT(*) FROM messages").await, 3);
}

#[tokio::test]
async fn many_events_at_once_are_all_taken_and_acknowledged() {
    let router = router("").await;
    tenant(&router.app, "Acme").await;
    let host = host(&router.app, &[ONE]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let now = router.app.clock.now();
    for seq in 1..=600 {
        let frame = bridge.frame(seq, received("+12025550143", &format!("guid-{seq}"), "hi", now));
        bridge.wire.say(&frame).await;
    }
    bridge.wire.ack(600).await;
    assert_eq!(
        count(&router.app, "SELECT COUNT(*) FROM messages WHERE direction = 'inbound'").await,
        600
    );
}

#[tokio::test]
async fn a_host_that_says_nothing_is_hung_up_on() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let mut wire = dialled(&router, &host).await;
    let since = tokio::time::Instant::now();
    let code = tokio::time::timeout(DEADLINE * 2, wire.hung_up()).await.unwrap();
    assert_eq!(code, Some(1002));
    assert!(since.elapsed() >= std::time::Duration::from_secs(9), "{:?}", since.elapsed());
}

#[tokio::test]
async fn an_epoch_that_the_host_has_seen_is_never_undercut() {
    let router = router("").await;
    let host = host(&router.app, &[ONE]).await;
    let mut wire = dialled(&router, &host).await;
    let seen = protocol::link::PhoneReport {
        epoch: Some(41),
        ..report(&host.phones[0], PhoneState::Ready)
    };
    wire.say(&hello(vec![seen])).await;
    assert_eq!(wire.welcome().await.phones[0].epoch, Some(42));
    // A number that cannot be true is not taken over.
    let absurd = protocol::link::PhoneReport {
        epoch: Some(u64::MAX),
        ..report(&host.phones[0], PhoneState::Ready)
    };
    wire.say(&HostFrame::Renew { renewal: 1, phones: vec![absurd], health: HostHealth::default() })
        .await;
    wire.until(|frame| match frame {
        RouterFrame::Lease { epoch, .. } => (*epoch == 42).then_some(()),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn a_host_of_which_nothing_is_heard_is_taken_for_gone_and_one_that_answers_pings_stays() {
    let router = router("[link]\nping_ms = 500\nsilence_ms = 1500\n").await;
    let (silent, alive) =
        (host(&router.app, &[ONE]).await, host(&router.app, &["+15550100191"]).await);
    let mut wires = Vec::new();
    for host in [&silent, &alive] {
        let mut wire = dialled(&router, host).await;
        wire.say(&hello(vec![report(&host.phones[0], PhoneState::Ready)])).await;
        wire.welcome().await;
        wires.push(wire);
    }
    let (mut answering, mut quiet) = (wires.pop().unwrap(), wires.pop().unwrap());
    // One is pinged until it is given up; the other one answers three times as long.
    let mut pings = 0;
    let code = loop {
        match quiet.next().await {
            Came::Frame(frame) => pings += i32::from(matches!(*frame, RouterFrame::Ping { .. })),
            Came::Closed(code) => break code,
        }
        let ping = answering.until(|frame| match frame {
            RouterFrame::Ping { at } => Some(*at),
            _ => None,
        });
        let at = ping.await;
        answering.say(&HostFrame::Pong { at }).await;
    };
    assert_eq!(code, Some(1_000));
    assert!(pings >= 2, "{pings}");
    eventually("it counts as gone", || async { !router.app.links.is_online(&silent.id) }).await;
    assert!(router.app.links.is_online(&alive.id));
}
