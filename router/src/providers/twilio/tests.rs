use axum::http::{HeaderMap, HeaderValue};
use url::Url;

use super::*;
use crate::providers::Limits;

fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The example of Twilio's own libraries.
const EXAMPLE: [(&str, &str); 5] = [
    ("CallSid", "CA1234567890ABCDE"),
    ("Caller", "+14158675309"),
    ("Digits", "1234"),
    ("From", "+14158675309"),
    ("To", "+18005551212"),
];
const EXAMPLE_URL: &str = "https://mycompany.com/myapp.php?foo=1&bar=2";
const EXAMPLE_SIGNATURE: &str = "RSOYDt4T1cUTdK1PDd93/VVr8B8=";

#[test]
fn the_signature_of_twilios_own_example_is_good_and_of_nothing_else() {
    let token = SecretString::from("12345");
    let url: Url = EXAMPLE_URL.parse().unwrap();
    let good = pairs(&EXAMPLE);
    assert!(signed_by(&token, &url, &good, EXAMPLE_SIGNATURE));
    // The order in which fields come does not matter, and a field that is there twice counts once.
    let mut reversed = good.clone();
    reversed.reverse();
    reversed.push(good[0].clone());
    assert!(signed_by(&token, &url, &reversed, EXAMPLE_SIGNATURE));
    // Nor does a port that Twilio has been given.
    let ported: Url = "https://mycompany.com:443/myapp.php?foo=1&bar=2".parse().unwrap();
    assert!(signed_by(&token, &ported, &good, EXAMPLE_SIGNATURE));
    let other: Url = "https://mycompany.com:8443/myapp.php?foo=1&bar=2".parse().unwrap();
    assert!(signed_by(&token, &other, &good, EXAMPLE_SIGNATURE));

    let mut more = good.clone();
    more.push(("Extra".to_owned(), String::new()));
    let mut changed = good.clone();
    changed[2].1 = "1235".to_owned();
    let elsewhere: Url = "https://mycompany.com/myapp.php?foo=1&bar=3".parse().unwrap();
    let (empty, wrong) = (SecretString::from(""), SecretString::from("12346"));
    for (what, token, url, fields, signature) in [
        ("a field more", &token, &url, &more, EXAMPLE_SIGNATURE),
        ("a field changed", &token, &url, &changed, EXAMPLE_SIGNATURE),
        ("another address", &token, &elsewhere, &good, EXAMPLE_SIGNATURE),
        ("another token", &wrong, &url, &good, EXAMPLE_SIGNATURE),
        ("an empty token", &empty, &url, &good, EXAMPLE_SIGNATURE),
        ("no signature", &token, &url, &good, ""),
        ("no base64", &token, &url, &good, "!"),
        ("a part of it", &token, &url, &good, "RSOYDt4T1cU="),
    ] {
        assert!(!signed_by(token, url, fields, signature), "{what}");
    }
}

fn answer(status: u16, body: &str) -> Answer {
    Answer { status, retry_after_ms: None, body: body.as_bytes().to_vec() }
}

#[test]
fn an_answer_is_an_acceptance_a_refusal_or_a_doubt() {
    type Is = fn(&Outcome) -> bool;
    fn refused(outcome: &Outcome, fault: Fault) -> bool {
        matches!(outcome, Outcome::NotSent(refusal) if refusal.fault == fault)
    }
    let cases: [(u16, &str, Is); 21] = [
        (201, r#"{"sid":"SM1","status":"queued"}"#, |o| {
            *o == Outcome::Accepted { id: "SM1".to_owned() }
        }),
        (200, r#"{"sid":"SM1","status":"accepted","body":null}"#, |o| {
            matches!(o, Outcome::Accepted { .. })
        }),
        (201, "", |o| matches!(o, Outcome::Unknown { .. })),
        (201, "<html>", |o| matches!(o, Outcome::Unknown { .. })),
        (400, r#"{"code":21610,"message":"unsubscribed"}"#, |o| refused(o, Fault::OptedOut)),
        (400, r#"{"code":21211,"message":"To"}"#, |o| refused(o, Fault::Message)),
        (400, r#"{"code":21614}"#, |o| refused(o, Fault::Message)),
        (400, r#"{"code":21617}"#, |o| refused(o, Fault::Message)),
        (400, r#"{"code":21606,"message":"From"}"#, |o| refused(o, Fault::Provider)),
        (400, r#"{"code":21408}"#, |o| refused(o, Fault::Unreachable)),
        (403, r#"{"code":21612}"#, |o| refused(o, Fault::Unreachable)),
        (403, r#"{"code":20005}"#, |o| refused(o, Fault::Provider)),
        (401, r#"{"code":20003,"message":"Authenticate"}"#, |o| refused(o, Fault::Provider)),
        (404, "", |o| refused(o, Fault::Provider)),
        (400, r#"{"code":29999}"#, |o| refused(o, Fault::Unreachable)),
        (302, "", |o| refused(o, Fault::Provider)),
        (429, r#"{"code":20429}"#, |o| refused(o, Fault::Busy { wait_ms: None })),
        (408, "", |o| matches!(o, Outcome::Unknown { .. })),
        (500, r#"{"code":20500}"#, |o| matches!(o, Outcome::Unknown { .. })),
        (503, "", |o| matches!(o, Outcome::Unknown { .. })),
        // What the status says counts, not what a body claims.
        (504, r#"{"code":21610}"#, |o| matches!(o, Outcome::Unknown { .. })),
    ];
    for (status, body, is) in cases {
        let outcome = judge(&answer(status, body));
        assert!(is(&outcome), "{status} {body}: {outcome:?}");
    }
}

#[test]
fn every_status_has_its_stage() {
    let failed = Stage::Failed { opted_out: false };
    for (status, code, expected) in [
        ("accepted", None, Some(Stage::Waiting)),
        ("queued", None, Some(Stage::Waiting)),
        ("sending", None, Some(Stage::Waiting)),
        ("sent", None, Some(Stage::Sent)),
        ("delivered", None, Some(Stage::Delivered)),
        ("read", None, Some(Stage::Read)),
        ("undelivered", Some("30003"), Some(failed)),
        ("failed", Some("30008"), Some(failed)),
        ("failed", Some("21610"), Some(Stage::Failed { opted_out: true })),
        ("of tomorrow", None, None),
    ] {
        assert_eq!(stage(status, code), expected, "{status}");
    }
}

fn twilio() -> Twilio {
    let limits = Limits {
        connect: std::time::Duration::from_secs(1),
        request: std::time::Duration::from_secs(2),
        allow_private: true,
    };
    let client = Client::new(BASE.parse().unwrap(), limits);
    let secrets = Secrets { auth_token: SecretString::from("12345"), api_key: None };
    Twilio::new(client, "AC1".to_owned(), None, secrets)
}

fn read(fields: &[(&str, &str)]) -> Result<News, Disbelieved> {
    let url: Url = "https://sb.example/v1/providers/twilio/main".parse().unwrap();
    let body: String =
        form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"12345");
    let tag = hmac::sign(&key, signed_text(url.as_str(), &pairs(fields)).as_bytes());
    let mut headers = HeaderMap::new();
    headers.insert(SIGNATURE, HeaderValue::from_str(&BASE64.encode(tag.as_ref())).unwrap());
    let call = Call { url: &url, headers: &headers, body: body.as_bytes(), now: UnixMs(0) };
    let signed = twilio().read(&call);
    // The same without its signature is not even looked at.
    let none = HeaderMap::new();
    let unsigned = twilio().read(&Call { headers: &none, ..call });
    assert!(matches!(unsigned, Err(Disbelieved::Signature)));
    signed
}

#[test]
fn a_signed_form_is_a_report_or_a_message() {
    let sent = read(&[("MessageSid", "SM1"), ("MessageStatus", "sent"), ("To", "+1")]);
    let Ok(News::Report(report)) = sent else { panic!("a report") };
    assert_eq!((report.id.as_str(), report.stage, report.detail), ("SM1", Stage::Sent, None));
    let failed = [
        ("MessageSid", "SM1"),
        ("MessageStatus", "undelivered"),
        ("ErrorCode", "30003"),
        ("ErrorMessage", "Unreachable\u{7}"),
    ];
    let Ok(News::Report(report)) = read(&failed) else { panic!("a report") };
    assert_eq!(report.detail.as_deref(), Some("undelivered, error 30003 Unreachable"));
    let written = [
        ("MessageSid", "SM2"),
        ("SmsStatus", "received"),
        ("From", "+12025550143"),
        ("To", "+12025550100"),
        ("Body", "Héllo & + %"),
        ("NumMedia", "1"),
    ];
    let Ok(News::Incoming(incoming)) = read(&written) else { panic!("a message") };
    assert_eq!(incoming.text, "Héllo & + %");
    assert_eq!((incoming.files, incoming.to.as_str()), (1, "+12025550100"));
    assert_eq!(incoming.from.to_string(), "+12025550143");
    let code = [("MessageSid", "SM3"), ("From", "55555"), ("To", "+12025550100"), ("Body", "")];
    let Ok(News::Incoming(incoming)) = read(&code) else { panic!("a message") };
    assert_eq!(incoming.from.to_string(), "service:55555");
    assert!(matches!(read(&[("MessageSid", "SM1"), ("MessageStatus", "soon")]), Ok(News::Nothing)));
    assert!(matches!(read(&[("From", "+12025550143")]), Err(Disbelieved::Body)));
    assert!(matches!(read(&[]), Err(Disbelieved::Body)));
}
