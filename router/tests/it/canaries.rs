//! A canary between phones of two hosts: who wrote it is told that it has arrived, and nobody else hears of it.

#![expect(
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use protocol::link::{CanaryAsk, CanaryStanding, HostFrame, PhoneState, RouterFrame};
use protocol::{MessageId, PhoneId, UnixMs, canary};

use crate::link_support::{
    Bridge, Host, Router, Wire, authorization, count, dial, hello, host, nonce, received, report,
    router, router_in, sandbox_host, tenant,
};

const ONE: &str = "+12025550191";
const TWO: &str = "+12025550192";
const THREE: &str = "+12025550193";

/// Nothing ends or is repeated by time alone while a test runs.
const LASTING: &str = "[lease]\nttl_ms = 600000\ngrace_ms = 1000\nsettle_ms = 0\n";

fn id(n: u8) -> MessageId {
    canary::id(router::clock::Clock::system().now(), [n; 4])
}

fn ask(message: &MessageId, from: &PhoneId, to: &str) -> HostFrame {
    let (message, from) = (message.clone(), from.clone());
    HostFrame::Canary(CanaryAsk { message, from, to: to.parse().expect("a number") })
}

async fn told(wire: &mut Wire, canary: &MessageId) -> CanaryStanding {
    wire.until(|frame| match frame {
        RouterFrame::Canary(told) if told.message == *canary => Some(told.standing.clone()),
        _ => None,
    })
    .await
}

async fn asked(wire: &mut Wire, canary: &MessageId, from: &PhoneId, to: &str) -> CanaryStanding {
    wire.say(&ask(canary, from, to)).await;
    told(wire, canary).await
}

/// Everything that comes until the router has answered a ping.
async fn said(wire: &mut Wire) -> Vec<RouterFrame> {
    let mut all = Vec::new();
    wire.say(&HostFrame::Ping { at: UnixMs(77) }).await;
    wire.until(|frame| {
        all.push(frame.clone());
        matches!(frame, RouterFrame::Pong { at: UnixMs(77) }).then_some(())
    })
    .await;
    all
}

async fn linked(router: &Router, host: &Host, state: PhoneState, last_seq: u64) -> Wire {
    let header = authorization(host, router.app.clock.now().0 / 1_000, &nonce());
    let mut wire = dial(router.address, Some(&header)).await.expect("the link opens");
    let report = protocol::link::PhoneReport { last_seq, ..report(&host.phones[0], state) };
    wire.say(&hello(vec![report])).await;
    assert!(wire.welcome().await.canaries, "the router says that it answers");
    wire
}

#[tokio::test]
async fn who_wrote_it_is_told_when_it_arrives_and_nobody_else_is() {
    let router = router(LASTING).await;
    tenant(&router.app, "Acme").await;
    let (one, two, three) = (
        host(&router.app, &[ONE]).await,
        host(&router.app, &[TWO]).await,
        host(&router.app, &[THREE]).await,
    );
    let mut writes = linked(&router, &one, PhoneState::Ready, 0).await;
    let mut hears = Bridge::connect(&router, &two).await;
    let mut other = linked(&router, &three, PhoneState::Ready, 0).await;
    let canary = id(1);
    let own = &one.phones[0];
    assert_eq!(asked(&mut writes, &canary, own, TWO).await, CanaryStanding::NotSeen);
    // Another host asks about it: in its own name it is not its canary, and in the other's it has no word.
    let (of_three, of_one) = (&three.phones[0], &one.phones[0]);
    assert_eq!(asked(&mut other, &canary, of_three, TWO).await, CanaryStanding::NotSeen);
    assert_eq!(asked(&mut other, &canary, of_one, TWO).await, CanaryStanding::Strange);

    let at = UnixMs(1_795_000_000_000);
    let text = canary::text(&canary);
    hears.event(received(ONE, "guid-1", &text, at)).await;
    let seen = told(&mut writes, &canary).await;
    let CanaryStanding::Seen { phone, host, .. } = seen else { panic!("{seen:?}") };
    assert_eq!((&phone, host.as_ref()), (&two.phones[0], Some(&two.id)));
    // Said again it is nothing new.
    hears.event(received(ONE, "guid-1", &text, at)).await;
    let again = asked(&mut writes, &canary, own, TWO).await;
    assert!(matches!(again, CanaryStanding::Seen { .. }), "{again:?}");
    assert_eq!(asked(&mut other, &canary, of_three, TWO).await, CanaryStanding::NotSeen);
    assert_eq!(asked(&mut other, &canary, of_one, TWO).await, CanaryStanding::Strange);
    for wire in [&mut other, &mut hears.wire] {
        let said = said(wire).await;
        assert!(!said.iter().any(|frame| matches!(frame, RouterFrame::Canary(_))), "{said:?}");
    }
    assert_eq!(count(&router.app, "SELECT count(*) FROM messages").await, 0);
    assert_eq!(count(&router.app, "SELECT count(*) FROM unplaced_events").await, 0);
}

#[tokio::test]
async fn what_arrived_is_told_by_the_next_router_and_in_the_next_session() {
    let first = router(LASTING).await;
    let (one, two) = (host(&first.app, &[ONE]).await, host(&first.app, &[TWO]).await);
    let (canary, own) = (id(2), &one.phones[0]);
    let mut writes = linked(&first, &one, PhoneState::Ready, 0).await;
    let mut hears = Bridge::connect(&first, &two).await;
    assert_eq!(asked(&mut writes, &canary, own, TWO).await, CanaryStanding::NotSeen);
    drop(writes);
    hears.event(received(ONE, "guid-1", &canary::text(&canary), UnixMs(5))).await;
    drop(hears);

    let second = router_in(first.stop().await, LASTING).await;
    let mut writes = linked(&second, &one, PhoneState::Ready, 0).await;
    // The host that heard it has not come back, and need not.
    let seen = asked(&mut writes, &canary, own, TWO).await;
    assert!(
        matches!(&seen, CanaryStanding::Seen { phone, .. } if *phone == two.phones[0]),
        "{seen:?}"
    );
}

#[tokio::test]
async fn that_it_was_not_seen_is_said_only_of_a_phone_that_is_heard() {
    let router = router(LASTING).await;
    let (one, two) = (host(&router.app, &[ONE]).await, host(&router.app, &[TWO]).await);
    let sandbox = sandbox_host(&router.app, &[THREE]).await;
    let (canary, own) = (id(3), &one.phones[0]);
    let mut writes = linked(&router, &one, PhoneState::Ready, 0).await;
    assert_eq!(asked(&mut writes, &canary, own, TWO).await, CanaryStanding::Away, "not linked");
    for (state, last_seq, wanted) in [
        (PhoneState::NotReady, 0, CanaryStanding::Away),
        // It has noted something that the router has not got yet.
        (PhoneState::Ready, 1, CanaryStanding::Away),
        (PhoneState::Ready, 0, CanaryStanding::NotSeen),
    ] {
        let _hears = linked(&router, &two, state, last_seq).await;
        let standing = asked(&mut writes, &canary, own, TWO).await;
        assert_eq!(standing, wanted, "{state:?} {last_seq}");
    }
    let _sandbox = linked(&router, &sandbox, PhoneState::Ready, 0).await;
    for strange in [ONE, THREE, "+14155550123"] {
        let standing = asked(&mut writes, &canary, own, strange).await;
        assert_eq!(standing, CanaryStanding::Strange, "{strange}");
    }
    // What is no canary's id is not answered.
    let other = MessageId::new(1, [9; 10]);
    writes.say(&ask(&other, own, TWO)).await;
    let said = said(&mut writes).await;
    assert!(!said.iter().any(|frame| matches!(frame, RouterFrame::Canary(_))), "{said:?}");
}
