use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW_S: i64 = 1_795_348_800;
const AUDIENCE: &str = "4714c1358e65fe4b408ad6d432a5f878f08194bdb4752441fd56faefa9b2b6f2";

/// Two keys, made once: that takes a while.
fn pair(number: usize) -> &'static RsaKeyPair {
    static PAIRS: OnceLock<[RsaKeyPair; 2]> = OnceLock::new();
    let make = || RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    &PAIRS.get_or_init(|| [make(), make()])[number]
}

fn listed(kid: &str, pair: &RsaKeyPair) -> Value {
    // An RSAPublicKey of 2048 bits (RFC 8017, A.1.1): nine bytes before `n`, and 65537 at the end.
    let der = pair.public_key().as_ref();
    let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    json!({
        "kid": kid, "kty": "RSA", "alg": "RS256", "use": "sig",
        "n": encode(&der[9..9 + 256]),
        "e": encode(&der[der.len() - 3..]),
    })
}

fn list(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys, "public_cert": { "kid": "x", "cert": "" } }).to_string().into_bytes()
}

fn settings() -> Settings {
    Settings {
        issuer: "https://team.cloudflareaccess.com".parse().unwrap(),
        audience: AUDIENCE.to_owned(),
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://team.cloudflareaccess.com", "aud": [AUDIENCE], "type": "app",
        "iat": NOW_S - 10, "nbf": NOW_S - 10, "exp": NOW_S + 60, "common_name": "x.access", "sub": "",
    })
}

fn sign(header: &Value, claims: &Value, pair: &RsaKeyPair) -> String {
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
}

fn header() -> Value {
    json!({ "alg": "RS256", "kid": "a", "typ": "JWT" })
}

/// The claims with one of them changed, or taken away.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims
}

fn judge(text: &str) -> Result<(), Refused> {
    let keys = keys(&list(&[listed("a", pair(0))])).unwrap();
    verify(&token(text)?, &keys, &settings(), NOW_S)
}

#[test]
fn a_token_of_the_team_for_this_application_is_good() {
    assert_eq!(judge(&sign(&header(), &claims(), pair(0))), Ok(()));
    let one = with("aud", json!(AUDIENCE));
    assert_eq!(judge(&sign(&header(), &one, pair(0))), Ok(()));
}

#[test]
fn everything_else_is_refused_for_its_reason() {
    let table = [
        ("aud", json!(["another"]), Refused::Audience),
        ("aud", json!([]), Refused::Audience),
        ("aud", Value::Null, Refused::Malformed),
        ("iss", json!("https://other.cloudflareaccess.com"), Refused::Issuer),
        ("iss", Value::Null, Refused::Malformed),
        ("exp", json!(NOW_S - 60), Refused::Expired),
        ("exp", Value::Null, Refused::Malformed),
        ("nbf", json!(NOW_S + 61), Refused::NotYet),
    ];
    for (name, value, expected) in table {
        let token = sign(&header(), &with(name, value.clone()), pair(0));
        assert_eq!(judge(&token), Err(expected), "{name}: {value}");
    }
    // Clocks differ by up to a minute.
    for (name, value) in
        [("exp", json!(NOW_S - 59)), ("nbf", json!(NOW_S + 60)), ("nbf", Value::Null)]
    {
        assert_eq!(judge(&sign(&header(), &with(name, value), pair(0))), Ok(()), "{name}");
    }
}

#[test]
fn a_token_does_not_choose_how_it_is_checked() {
    assert_eq!(judge(&sign(&header(), &claims(), pair(1))), Err(Refused::Signature));
    for algorithm in ["none", "HS256", "RS512", "rs256"] {
        let header = json!({ "alg": algorithm, "kid": "a" });
        assert_eq!(judge(&sign(&header, &claims(), pair(0))), Err(Refused::Algorithm));
    }
    let other = json!({ "alg": "RS256", "kid": "b" });
    assert!(matches!(judge(&sign(&other, &claims(), pair(0))), Err(Refused::UnknownKey(_))));
    let good = sign(&header(), &claims(), pair(0));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    assert_eq!(judge(&format!("{signed}.")), Err(Refused::Signature));
    let longer = BASE64URL_NOPAD.encode(with("exp", json!(NOW_S + 9_999)).to_string().as_bytes());
    let (head, _) = signed.split_once('.').unwrap();
    assert_eq!(judge(&format!("{head}.{longer}.{signature}")), Err(Refused::Signature));
    for text in ["", "..", "a.b", "a.b.c", &"x".repeat(TOKEN_BYTES_MAX + 1), &format!("{good}=")] {
        assert_eq!(judge(text), Err(Refused::Malformed), "{text}");
    }
}

#[test]
fn of_a_list_only_keys_for_rsa_are_taken() {
    let mut other = listed("b", pair(0));
    other["kty"] = json!("EC");
    let found = keys(&list(&[listed("a", pair(0)), other, json!({ "kid": "c" })])).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(keys(b"<html>"), None);
}

#[test]
fn keys_are_asked_for_when_that_can_help_and_no_more_often() {
    let second = 1_000;
    let known = |asked: u64, answered: bool, since: Option<u64>| Ring {
        keys: keys(&list(&[listed("a", pair(0))])).unwrap(),
        since,
        asked: Some((asked, answered)),
    };
    assert!(Ring::default().wants("a", 0), "nothing is known");
    let ring = known(0, true, Some(0));
    for (kid, at_s, wanted) in [
        ("a", 1, false),
        ("a", 3_599, false),
        ("a", 3_600, true),
        // Anybody may name a key that nobody knows.
        ("b", 59, false),
        ("b", 60, true),
        ("b", 3_600, true),
    ] {
        assert_eq!(ring.wants(kid, at_s * second), wanted, "{kid} {at_s}");
    }
    let failed = Ring { asked: Some((0, false)), ..Ring::default() };
    assert!(!failed.wants("a", 4 * second) && failed.wants("a", 5 * second));
    let failed = known(3_600 * second, false, Some(0));
    assert!(!failed.wants("a", 3_604 * second) && failed.wants("a", 3_605 * second));
}

/// A team's domain that lists what it is told to, and counts who asks.
struct Team {
    access: Access,
    now: AtomicU64,
    asked: Arc<AtomicUsize>,
    lists: Arc<std::sync::Mutex<Option<Vec<u8>>>>,
    issuer: String,
}

impl Team {
    async fn new(first: Option<Vec<u8>>) -> Self {
        let (asked, lists) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new(first)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let (counted, listed) = (Arc::clone(&asked), Arc::clone(&lists));
        let answer = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let list = listed.lock().unwrap().clone();
            async move { list.ok_or(axum::http::StatusCode::BAD_GATEWAY) }
        };
        let routes = axum::Router::new().route(CERTS, axum::routing::get(answer));
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        let settings = Settings { issuer: issuer.parse().unwrap(), audience: AUDIENCE.to_owned() };
        let access = Access::new(settings).unwrap();
        Self { access, now: AtomicU64::new(0), asked, lists, issuer }
    }

    async fn check(&self, kid: &str, number: usize) -> Result<(), Refused> {
        let claims = with("iss", json!(self.issuer));
        let token = sign(&json!({ "alg": "RS256", "kid": kid }), &claims, pair(number));
        self.access.check(Some(&token), NOW_S, || self.now.load(Ordering::Relaxed)).await
    }

    fn pass(&self, span: Duration) {
        self.now.fetch_add(ms(span), Ordering::Relaxed);
    }

    fn lists(&self, list: Option<Vec<u8>>) {
        *self.lists.lock().unwrap() = list;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn new_keys_are_found_when_they_are_named_and_old_ones_are_good_while_they_are_listed() {
    let team = Team::new(Some(list(&[listed("a", pair(0))]))).await;
    assert_eq!(team.check("a", 0).await, Ok(()));
    assert_eq!((team.check("a", 0).await, team.asked()), (Ok(()), 1));
    // Rotated: both are listed for a week.
    team.lists(Some(list(&[listed("a", pair(0)), listed("b", pair(1))])));
    assert!(matches!(team.check("b", 1).await, Err(Refused::UnknownKey(_))));
    assert_eq!(team.asked(), 1, "not twice within a minute");
    team.pass(UNKNOWN_EVERY);
    assert_eq!((team.check("b", 1).await, team.check("a", 0).await), (Ok(()), Ok(())));
    team.lists(Some(list(&[listed("b", pair(1))])));
    team.pass(FRESH);
    assert!(matches!(team.check("a", 0).await, Err(Refused::UnknownKey(_))));
    assert_eq!(team.check("b", 1).await, Ok(()));
    assert_eq!(team.asked(), 3);
}

#[tokio::test]
async fn without_keys_nobody_is_let_in_and_that_may_pass() {
    let team = Team::new(None).await;
    let refused = team.check("a", 0).await.unwrap_err();
    assert!(refused.may_pass() && refused.to_string().contains("502"), "{refused}");
    assert!(team.check("a", 0).await.unwrap_err().may_pass());
    assert_eq!(team.asked(), 1, "it is not hammered");
    team.lists(Some(list(&[listed("a", pair(0))])));
    team.pass(FAILED_EVERY);
    assert_eq!(team.check("a", 0).await, Ok(()));
    // What is known is good for its hour, and not longer.
    team.lists(None);
    team.pass(Duration::from_secs(3_599));
    assert_eq!(team.check("a", 0).await, Ok(()));
    team.pass(Duration::from_secs(1));
    assert!(matches!(team.check("a", 0).await, Err(Refused::NoKeys(_))));
    let missing = team.access.check(None, NOW_S, || 0).await;
    assert_eq!(missing, Err(Refused::Missing));
}

proptest! {
    #[test]
    fn no_token_and_no_list_is_too_odd(text: String, bytes: Vec<u8>) {
        if let Ok(token) = token(&text) {
            prop_assert!(verify(&token, &Keys::new(), &settings(), NOW_S).is_err());
        }
        keys(&bytes);
    }
}
