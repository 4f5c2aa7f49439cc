use proptest::prelude::*;
use tokio::io::duplex;

use super::*;

fn proxy(address: &str) -> Proxy {
    address.parse().unwrap()
}

/// What the environment of `pairs` says about a router at `host:port`.
fn toward(pairs: &[(&str, &str)], host: &str, port: u16) -> Option<String> {
    let variable = |name: &str| {
        pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    Proxies::Environment.toward(host, port, true, variable).unwrap().map(|proxy| proxy.to_string())
}

#[test]
fn addresses_are_understood_and_others_refused_without_being_repeated() {
    for (written, shown) in [
        ("http://proxy.example:3128", "proxy.example:3128"),
        ("proxy.example:3128", "proxy.example:3128"),
        ("http://proxy.example/", "proxy.example:80"),
        ("http://u:p@[::1]:8080", "[::1]:8080"),
    ] {
        assert_eq!(proxy(written).to_string(), shown, "{written}");
    }
    for (written, why) in [
        ("", ProxyError::NotAnAddress),
        ("http://", ProxyError::NotAnAddress),
        ("socks5://u:geheim@proxy:1080", ProxyError::Scheme),
        ("https://u:geheim@proxy", ProxyError::Scheme),
        ("http://u:%ff@proxy", ProxyError::Credentials),
        ("http://u:%4@proxy", ProxyError::Credentials),
    ] {
        let refused = written.parse::<Proxy>().unwrap_err();
        assert_eq!(refused, why, "{written}");
        assert!(!refused.to_string().contains("geheim"));
    }
}

#[test]
fn a_setting_is_a_word_or_an_address() {
    assert_eq!("environment".parse(), Ok(Proxies::Environment));
    assert_eq!("none".parse(), Ok(Proxies::Direct));
    assert_eq!("http://p:1".parse(), Ok(Proxies::Through(proxy("http://p:1"))));
    assert_ne!(proxy("http://a:b@p:1"), proxy("http://a:c@p:1"), "a new password is a change");
    let none = |_: &str| None;
    let named = Proxies::Through(proxy("p:1"));
    assert_eq!(named.toward("localhost", 1, false, none), Ok(Some(proxy("p:1"))));
}

#[test]
fn credentials_are_sent_as_they_are_meant_and_shown_nowhere() {
    let proxy = proxy("http://desk%40office:ge%3Aheim@proxy.example:3128");
    let request = proxy.request("router.example", 443);
    let plain = BASE64.encode(b"desk@office:ge:heim");
    assert_eq!(
        request,
        format!(
            "CONNECT router.example:443 HTTP/1.1\r\nHost: router.example:443\r\n\
             Proxy-Authorization: Basic {plain}\r\n\r\n"
        )
    );
    let shown = format!("{proxy} {proxy:?} {:?}", Proxies::Through(proxy.clone()));
    assert!(!shown.contains("heim") && !shown.contains(&plain), "{shown}");
    assert!(self::proxy("p:1").request("::1", 443).starts_with("CONNECT [::1]:443 HTTP/1.1\r\n"));
}

#[test]
fn the_environment_names_a_proxy_for_tls_beyond_this_machine() {
    let both = [("HTTPS_PROXY", "upper:1"), ("https_proxy", "lower:2")];
    assert_eq!(toward(&both, "router.example", 443).as_deref(), Some("upper:1"));
    assert_eq!(toward(&both[1..], "router.example", 443).as_deref(), Some("lower:2"));
    let emptied = [("HTTPS_PROXY", ""), ("https_proxy", "lower:2")];
    assert_eq!(toward(&emptied, "router.example", 443).as_deref(), Some("lower:2"));
    assert_eq!(toward(&[], "router.example", 443), None);
    for own in ["localhost", "127.0.0.1", "::1"] {
        assert_eq!(toward(&both, own, 443), None, "{own}");
    }
    let variable = |_: &str| Some("p:1".to_owned());
    assert_eq!(Proxies::Environment.toward("router.example", 80, false, variable), Ok(None));
    assert_eq!(Proxies::Direct.toward("router.example", 443, true, variable), Ok(None));
    let wrong = |name: &str| (name == "https_proxy").then(|| "ftp://x".to_owned());
    let refused = Proxies::Environment.toward("router.example", 443, true, wrong);
    assert_eq!(refused, Err(("https_proxy", ProxyError::Scheme)));
}

#[test]
fn no_proxy_names_hosts_domains_addresses_and_networks() {
    for (list, host, excepted) in [
        ("*", "router.example", true),
        ("", "router.example", false),
        ("router.example", "router.example", true),
        ("router.example", "ROUTER.example.", true),
        ("example", "router.example", true),
        (".example", "router.example", true),
        ("*.example", "router.example", true),
        ("outer.example", "router.example", false),
        ("other, router.example ,more", "router.example", true),
        ("router.example:443", "router.example", true),
        ("router.example:8443", "router.example", false),
        ("10.0.0.0/8", "10.1.2.3", true),
        ("10.0.0.0/8", "11.1.2.3", false),
        ("0.0.0.0/0", "11.1.2.3", true),
        ("10.0.0.0/33", "10.0.0.0", false),
        ("10.1.2.3", "10.1.2.3", true),
        ("10.1.2.3:443", "10.1.2.3", true),
        ("2.3", "10.1.2.3", false),
        ("fd00::/8", "fd12::1", true),
        ("fd00::/8", "fe80::1", false),
        ("fd12::1", "fd12::1", true),
        ("[fd12::1]:443", "fd12::1", true),
        ("[fd12::1]:80", "fd12::1", false),
        ("10.0.0.0/8", "router.example", false),
        (".", "router.example", false),
    ] {
        assert_eq!(is_excepted(list, host, 443), excepted, "{list} {host}");
    }
}

/// A proxy that answers so, and what is made of it; the rest is what is still in the stream.
async fn answered(answer: &[u8]) -> (Result<(), ProxyFailure>, Vec<u8>) {
    let (mut near, mut far) = duplex(64 * 1024);
    far.write_all(answer).await.unwrap();
    let (mut rest, mut request) = (Vec::new(), vec![0; 4]);
    let tunnel = proxy("p:1").tunnel(&mut near, "router.example", 443).await;
    far.read_exact(&mut request).await.unwrap();
    assert_eq!(request, b"CONN");
    drop(far);
    near.read_to_end(&mut rest).await.unwrap();
    (tunnel, rest)
}

#[tokio::test(start_paused = true)]
async fn an_accepted_tunnel_begins_right_after_the_answer() {
    for line in ["HTTP/1.1 200 Connection established\r\nVia: x", "HTTP/1.0 204"] {
        let (tunnel, rest) = answered(format!("{line}\r\n\r\nhello").as_bytes()).await;
        assert_eq!((tunnel, rest.as_slice()), (Ok(()), b"hello".as_slice()), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_refuses_is_told_with_a_remedy() {
    for (status, word) in
        [(407, "credentials"), (403, "NO_PROXY"), (502, "cannot reach the router"), (302, "302")]
    {
        let (tunnel, _) = answered(format!("HTTP/1.1 {status} x\r\n\r\n").as_bytes()).await;
        let refused = tunnel.unwrap_err();
        assert_eq!(refused, ProxyFailure::Refused { status });
        assert!(refused.to_string().contains(word), "{refused}");
        assert_eq!(refused.is_refusal(), matches!(status, 407 | 403));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_kind_without_an_end_or_too_late_is_given_up() {
    let endless = "HTTP/1.1 200 x\r\n".repeat(ANSWER_BYTES_MAX / 8);
    for (answer, word) in [
        (b"SSH-2.0-x\r\n\r\n".as_slice(), "not HTTP"),
        (b"HTTP/1.1 2000 x\r\n\r\n", "not HTTP"),
        (endless.as_bytes(), "more than"),
        // Nothing more comes: paused time runs out at once.
        (b"HTTP/1.1 200", "no answer within"),
    ] {
        let why = answered(answer).await.0.unwrap_err().to_string();
        assert!(why.contains(word) && why.contains("allows CONNECT"), "{why}");
    }
}

proptest! {
    #[test]
    fn no_answer_and_no_list_is_too_odd(answer: Vec<u8>, list: String, host: String) {
        status(&answer);
        is_excepted(&list, &host, 443);
        drop(list.parse::<Proxies>());
    }

    #[test]
    fn what_is_percent_encoded_comes_out_again(text: String) {
        let encoded = text.bytes().fold(String::new(), |encoded, byte| encoded + &format!("%{byte:02x}"));
        prop_assert_eq!(percent_decoded(&encoded), Some(text));
    }
}
