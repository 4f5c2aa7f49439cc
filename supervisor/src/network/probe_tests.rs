use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const WITHIN: Duration = Duration::from_secs(1);

/// A server that answers every question with this, or not at all.
async fn server(answer: Option<&'static str>) -> Anchor {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/healthz", listener.local_addr().unwrap()).parse().unwrap();
    TaskTracker::new().spawn(async move {
        let mut deaf = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let Some(answer) = answer else {
                deaf.push(stream);
                continue;
            };
            let mut question = [0; 1024];
            if stream.read(&mut question).await.is_ok() {
                drop(stream.write_all(answer.as_bytes()).await);
            }
        }
    });
    Anchor { url, status: 200, body: Some("Success".to_owned()), roots: TlsRoots::Platform }
}

const RIGHT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nSuccess";
/// A portal answers for everybody, with a page or with the way to one.
const PAGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nLogin";
const ELSEWHERE: &str =
    "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 7\r\n\r\nSuccess";

fn prober(interface: &str, router: Option<&Anchor>, anchors: &[Anchor]) -> Prober {
    let dir = tempfile::tempdir().unwrap();
    let addresses = Addresses::load(&dir.path().join("addresses"), &TaskTracker::new());
    Prober::new(interface, router, anchors, WITHIN, &addresses).unwrap()
}

fn loopback() -> &'static str {
    if cfg!(target_os = "macos") { "lo0" } else { "lo" }
}

#[tokio::test]
async fn a_portal_is_told_from_the_internet_and_from_nothing() {
    let (right, page, elsewhere) =
        (server(Some(RIGHT)).await, server(Some(PAGE)).await, server(Some(ELSEWHERE)).await);
    let (deaf, broken) = (server(None).await, server(Some("HTTP/1.1 twohundred\r\n\r\n")).await);
    let none = Anchor { url: "http://127.0.0.1:1/".parse().unwrap(), ..right.clone() };
    let no_content = Anchor { status: 204, body: None, ..page.clone() };
    let table = [
        (None, vec![right.clone()], Seen::Good, None),
        (None, vec![page.clone()], Seen::Captive, None),
        (None, vec![elsewhere.clone()], Seen::Captive, None),
        (None, vec![no_content], Seen::Captive, None),
        (None, vec![none.clone()], Seen::Nothing, None),
        (None, vec![deaf.clone()], Seen::Nothing, None),
        (None, vec![broken], Seen::Nothing, None),
        // One right answer outweighs what others say.
        (None, vec![none.clone(), page.clone(), right.clone()], Seen::Good, None),
        (None, vec![none.clone(), page.clone(), deaf.clone()], Seen::Captive, None),
        // A router that is down is no uplink that is down.
        (Some(right.clone()), vec![none.clone()], Seen::Good, Some(true)),
        (Some(none.clone()), vec![right.clone()], Seen::Good, Some(false)),
        (Some(deaf), vec![right.clone()], Seen::Good, Some(false)),
        (Some(none.clone()), vec![page.clone()], Seen::Captive, Some(false)),
        (Some(none.clone()), vec![none], Seen::Nothing, Some(false)),
    ];
    for (router, anchors, seen, answered) in table {
        for haste in [false, true] {
            let round = prober(loopback(), router.as_ref(), &anchors).round(haste).await;
            assert_eq!(round, Round { seen, router: answered }, "{router:?} {anchors:?} {haste}");
        }
    }
}

#[tokio::test]
async fn nothing_comes_over_an_interface_that_is_not_there() {
    let right = server(Some(RIGHT)).await;
    let round = prober("none9", None, &[right]).round(false).await;
    assert_eq!(round.seen, Seen::Nothing);
}

#[tokio::test]
async fn a_name_is_remembered_over_restarts_and_taken_when_it_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("addresses");
    let tracker = TaskTracker::new();
    let find = |name: &str| Addresses::load(&file, &tracker).find(name.to_owned());
    let local = find("localhost").await;
    assert!(local.iter().all(IpAddr::is_loopback) && !local.is_empty(), "{local:?}");
    assert!(std::fs::read_to_string(&file).unwrap().contains("localhost"));
    // No label is so long (RFC 1035), so that nobody is asked for it; what is remembered is what there is.
    let nowhere = format!("{}.invalid", "x".repeat(64));
    assert_eq!(find(&nowhere).await, Vec::<IpAddr>::new());
    std::fs::write(&file, format!(r#"{{"{nowhere}":["192.0.2.7"]}}"#)).unwrap();
    assert_eq!(find(&nowhere).await, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    // A file that is none is no reason to fail.
    std::fs::write(&file, "{").unwrap();
    assert_eq!(find("localhost").await, local);
}
