use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use router_client::tls::TlsRoots;

use super::*;

/// Every wait of these tests ends by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers `answer` to everybody, which may be changed.
async fn portal(answer: watch::Receiver<&'static str>) -> Anchor {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    TaskTracker::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = [0; 1024];
            let body = *answer.borrow();
            let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            if stream.read(&mut question).await.is_ok() {
                drop(stream.write_all(text.as_bytes()).await);
            }
        }
    });
    Anchor { url, status: 200, body: Some("Success".to_owned()), roots: TlsRoots::Platform }
}

fn uplink(name: &str, interface: &str) -> UplinkConfig {
    UplinkConfig { name: name.to_owned(), interface: Some(interface.to_owned()), service: None }
}

fn fast(uplinks: Vec<UplinkConfig>, anchors: Vec<Anchor>) -> Settings {
    let ms = Duration::from_millis;
    Settings {
        uplinks,
        helper: None,
        router: None,
        anchors,
        every: ms(20),
        standby_every: ms(100),
        within: ms(500),
        policy: Policy { hold: ms(50), fail_back: ms(200), fresh: ms(600), ..Policy::default() },
    }
}

#[tokio::test]
async fn without_a_helper_a_switch_is_advised_and_nothing_is_recorded_or_dialled() {
    let loopback = if cfg!(target_os = "macos") { "lo0" } else { "lo" };
    let (say, answer) = watch::channel("Success");
    let dir = tempfile::tempdir().unwrap();
    let (told, mut network) = watch::channel(None);
    let redial = Arc::new(Notify::new());
    let (_state, link) = watch::channel(LinkState::Connected);
    let (tracker, closing) = (TaskTracker::new(), CancellationToken::new());
    let around = Around {
        told,
        link,
        redial: Some(Arc::clone(&redial)),
        tracker: tracker.clone(),
        closing: closing.clone(),
    };
    // The first is preferred and not there.
    let uplinks = vec![uplink("office", "none9"), uplink("hotspot", loopback)];
    let (_settings, settings) = watch::channel(fast(uplinks, vec![portal(answer).await]));
    start(settings, dir.path(), around);
    let mut wait = async |what: &str, chosen: &str, states: [UplinkState; 2]| {
        let right = |network: &Option<HostNetwork>| {
            network.as_ref().is_some_and(|network| {
                assert!(!network.switches);
                let now: Vec<_> = network.uplinks.iter().map(|uplink| uplink.state).collect();
                network.chosen == chosen && now == states
            })
        };
        let waited = tokio::time::timeout(PATIENCE, network.wait_for(right)).await.is_ok();
        assert!(waited, "{what}: {:?}", *network.borrow());
    };
    wait("lost", "office", [UplinkState::Down, UplinkState::Good]).await;
    say.send_replace("Please log in");
    wait("a portal", "office", [UplinkState::Down, UplinkState::Captive]).await;
    say.send_replace("Success");
    wait("logged in", "office", [UplinkState::Down, UplinkState::Good]).await;
    closing.cancel();
    tracker.close();
    tokio::time::timeout(PATIENCE, tracker.wait()).await.expect("all tasks end");
    // A notice would wait for whoever asks first.
    let dialled = tokio::time::timeout(Duration::ZERO, redial.notified()).await.is_ok();
    assert!(!dialled, "the link was dialled for a switch that nobody made");
}
