use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use axum::http::{HeaderMap, HeaderValue};
use protocol::UnixMs;
use url::Url;

use super::*;
use crate::providers::Limits;

fn answer(status: u16, body: &str) -> Answer {
    Answer { status, retry_after_ms: Some(2_000), body: body.as_bytes().to_vec() }
}

#[test]
fn an_answer_is_an_acceptance_a_refusal_or_a_doubt() {
    type Is = fn(&Outcome) -> bool;
    fn refused(outcome: &Outcome, fault: Fault) -> bool {
        matches!(outcome, Outcome::NotSent(refusal) if refusal.fault == fault)
    }
    let cases: [(u16, &str, Is); 15] = [
        (200, r#"{"data":{"id":"a-b","to":[{"status":"queued"}]}}"#, |o| {
            *o == Outcome::Accepted { id: "a-b".to_owned() }
        }),
        (200, r#"{"data":{}}"#, |o| matches!(o, Outcome::Unknown { .. })),
        (409, r#"{"errors":[{"code":"40300","title":"STOP"}]}"#, |o| refused(o, Fault::OptedOut)),
        (400, r#"{"errors":[{"code":"40310"}]}"#, |o| refused(o, Fault::Message)),
        (400, r#"{"errors":[{"code":40310}]}"#, |o| refused(o, Fault::Message)),
        (400, r#"{"errors":[{"code":"40305"}]}"#, |o| refused(o, Fault::Provider)),
        (400, r#"{"errors":[{"code":"49999"}]}"#, |o| refused(o, Fault::Unreachable)),
        (403, r#"{"errors":[{"code":"40309"}]}"#, |o| refused(o, Fault::Unreachable)),
        (403, r#"{"errors":[{"code":"10010"}]}"#, |o| refused(o, Fault::Provider)),
        (401, r#"{"errors":[{"code":"10009"}]}"#, |o| refused(o, Fault::Provider)),
        (403, "<html>", |o| refused(o, Fault::Provider)),
        (302, "", |o| refused(o, Fault::Provider)),
        // What says so may have done it.
        (303, "", |o| matches!(o, Outcome::Unknown { .. })),
        (429, r#"{"errors":[{"code":"10011"}]}"#, |o| {
            refused(o, Fault::Busy { wait_ms: Some(2_000) })
        }),
        (500, r#"{"errors":[{"code":"10007"}]}"#, |o| matches!(o, Outcome::Unknown { .. })),
    ];
    for (status, body, is) in cases {
        let outcome = judge(&answer(status, body));
        assert!(is(&outcome), "{status} {body}: {outcome:?}");
    }
}

#[test]
fn a_public_key_is_32_bytes_in_base64() {
    assert_eq!(public_key(&BASE64.encode(&[7; 32])).unwrap(), [7; 32]);
    for bad in ["", "x", &BASE64.encode(&[7; 31]), &BASE64.encode(&[7; 44])] {
        assert_eq!(public_key(bad), Err(BadPublicKey), "{bad}");
    }
}

const NOW: UnixMs = UnixMs(1_800_000_000_000);

/// Reads a body that was signed so many seconds from now, by the account's key or another one.
fn read(body: &str, seconds: i64, own: bool) -> Result<News, Disbelieved> {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let other = Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap();
    let stamp = (NOW.0 / 1_000 + seconds).to_string();
    let signer = if own { &pair } else { &other };
    let signature = signer.sign(format!("{stamp}|{body}").as_bytes());
    let mut headers = HeaderMap::new();
    let signature = BASE64.encode(signature.as_ref());
    headers.insert(SIGNATURE, HeaderValue::from_str(&signature).unwrap());
    headers.insert(TIMESTAMP, HeaderValue::from_str(&stamp).unwrap());
    let limits = Limits {
        connect: std::time::Duration::from_secs(1),
        request: std::time::Duration::from_secs(2),
        allow_private: true,
    };
    let client = Client::new(BASE.parse().unwrap(), limits);
    let key = pair.public_key().as_ref().to_vec();
    let telnyx = Telnyx::new(client, SecretString::from("KEY"), None, key);
    let url: Url = "https://sb.example/v1/providers/telnyx/main".parse().unwrap();
    let call = Call { url: &url, headers: &headers, body: body.as_bytes(), now: NOW };
    if own && seconds == 0 {
        // One byte more, another time, or no signature at all: none of it is believed.
        let longer = format!("{body} ");
        let mut later = headers.clone();
        later.insert(TIMESTAMP, HeaderValue::from_str(&(NOW.0 / 1_000 + 1).to_string()).unwrap());
        for forged in [
            Call { body: longer.as_bytes(), ..call },
            Call { headers: &later, ..call },
            Call { headers: &HeaderMap::new(), ..call },
        ] {
            assert!(matches!(telnyx.read(&forged), Err(Disbelieved::Signature)));
        }
    }
    telnyx.read(&call)
}

/// The shape that Telnyx documents, with this kind, status and errors.
fn event(kind: &str, status: &str, errors: &str) -> String {
    format!(
        r#"{{"data":{{"event_type":"{kind}","id":"e","occurred_at":"2026-01-23T18:10:02.574Z","record_type":"event",
            "payload":{{"id":"40385f64","direction":"outbound","from":{{"phone_number":"+18665550001"}},
            "to":[{{"phone_number":"+18445550001","status":"{status}"}}],"text":"Hello, World!","media":[],
            "errors":[{errors}],"type":"SMS"}}}},"meta":{{"attempt":1}}}}"#
    )
}

#[test]
fn a_signed_body_is_a_report_or_a_message() {
    for (kind, status, errors, stage) in [
        ("message.sent", "sent", "", Stage::Sent),
        ("message.finalized", "delivered", "", Stage::Delivered),
        ("message.finalized", "delivery_unconfirmed", "", Stage::Sent),
        (
            "message.finalized",
            "delivery_failed",
            r#"{"code":"40001"}"#,
            Stage::Failed { opted_out: false },
        ),
        (
            "message.finalized",
            "sending_failed",
            r#"{"code":"40300"}"#,
            Stage::Failed { opted_out: true },
        ),
    ] {
        let Ok(News::Report(report)) = read(&event(kind, status, errors), 0, true) else {
            panic!("{status}")
        };
        assert_eq!((report.id.as_str(), report.stage), ("40385f64", stage), "{status}");
        assert_eq!(report.at, Some(UnixMs(1_769_191_802_574)), "{status}");
        assert_eq!(report.detail.is_some(), !errors.is_empty(), "{status}");
    }
    let written = event("message.received", "delivered", "");
    let Ok(News::Incoming(incoming)) = read(&written, 0, true) else { panic!("a message") };
    assert_eq!((incoming.id.as_str(), incoming.text.as_str()), ("40385f64", "Hello, World!"));
    assert_eq!(
        (incoming.from.to_string().as_str(), incoming.to.as_str()),
        ("+18665550001", "+18445550001")
    );
    assert!(matches!(read(&event("message.sent", "soon", ""), 0, true), Ok(News::Nothing)));
    assert!(matches!(read(&event("number.ported", "x", ""), 0, true), Ok(News::Nothing)));
    for bad in ["", "{}", "[]", r#"{"data":{"event_type":"message.sent","payload":{}}}"#] {
        assert!(matches!(read(bad, 0, true), Err(Disbelieved::Body)), "{bad}");
    }
}

#[test]
fn what_was_signed_long_ago_or_by_somebody_else_is_not_believed() {
    let body = event("message.sent", "sent", "");
    for seconds in [-300, 0, 300] {
        assert!(read(&body, seconds, true).is_ok(), "{seconds}");
    }
    for seconds in [-301, 301] {
        assert!(matches!(read(&body, seconds, true), Err(Disbelieved::Time)), "{seconds}");
    }
    assert!(matches!(read(&body, 0, false), Err(Disbelieved::Signature)));
    // Old and forged: who cannot sign is told nothing of the time.
    assert!(matches!(read(&body, -301, false), Err(Disbelieved::Signature)));
}
