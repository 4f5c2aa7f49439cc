//! One attempt at Twilio and at Telnyx, against stand-ins on a real socket.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use std::time::Duration;

use crate::provider_support::{ACCOUNT, API_KEY, Do, StandIn, TOKEN};
use protocol::{MessageId, UnixMs};
use router::clock::Clock;
use router::providers::telnyx::Telnyx;
use router::providers::twilio::{Secrets, Twilio};
use router::providers::{Client, Fault, Found, Limits, Order, Outcome, Provider, Sought, Stage};
use secrecy::SecretString;
use serde_json::json;

fn client(base: &str) -> Client {
    let limits = Limits {
        connect: Duration::from_millis(500),
        request: Duration::from_secs(1),
        allow_private: true,
    };
    Client::new(base.parse().unwrap(), limits)
}

fn twilio(base: &str, token: &str) -> Twilio {
    let secrets = Secrets { auth_token: SecretString::from(token), api_key: None };
    Twilio::new(client(base), ACCOUNT.to_owned(), None, secrets)
}

fn telnyx(base: &str, key: &str) -> Telnyx {
    Telnyx::new(client(base), SecretString::from(key), None, vec![1; 32])
}

fn order(text: &str) -> Order {
    Order {
        message: MessageId::new(1, [1; 10]),
        attempt: 2,
        to: "+12025550143".parse().unwrap(),
        from: "+12025550100".parse().unwrap(),
        text: text.to_owned(),
        life_s: 90,
        report_to: "https://sb.example/v1/providers/x/main?message=m&attempt=2".parse().unwrap(),
    }
}

fn refused(outcome: &Outcome) -> Fault {
    match outcome {
        Outcome::NotSent(refusal) => refusal.fault,
        Outcome::Accepted { .. } | Outcome::Unknown { .. } => panic!("not a refusal: {outcome:?}"),
    }
}

#[tokio::test]
async fn twilio_is_asked_with_a_form_and_says_its_id() {
    let stand_in = StandIn::twilio().await;
    let text = "Grüße & +1 = 100 % 🙂";
    let outcome = twilio(&stand_in.url, TOKEN).send(&order(text)).await;
    let taken = stand_in.taken();
    assert_eq!(outcome, Outcome::Accepted { id: taken[0].id.clone() });
    assert_eq!(taken[0].field("Body"), text);
    assert_eq!((taken[0].field("To"), taken[0].field("From")), ("+12025550143", "+12025550100"));
    assert_eq!(taken[0].field("ValidityPeriod"), "90");
    assert_eq!(taken[0].field("StatusCallback"), order(text).report_to.as_str());
    // A messaging service stands in the number's place, and a key in the token's.
    let secrets = Secrets {
        auth_token: SecretString::from(TOKEN),
        api_key: Some(("SK1".to_owned(), SecretString::from("secret"))),
    };
    let service = Some("MG1".to_owned());
    let other = Twilio::new(client(&stand_in.url), ACCOUNT.to_owned(), service, secrets);
    assert_eq!(refused(&other.send(&order("x")).await), Fault::Provider);
    let asked = stand_in.asked();
    assert!(asked[1].body.contains("MessagingServiceSid=MG1") && !asked[1].body.contains("From="));
    let login = asked[1].headers["authorization"].to_str().unwrap();
    assert_eq!(login, format!("Basic {}", data_encoding::BASE64.encode(b"SK1:secret")));
}

#[tokio::test]
async fn telnyx_is_asked_with_json_and_says_its_id() {
    let stand_in = StandIn::telnyx().await;
    let outcome = telnyx(&stand_in.url, API_KEY).send(&order("Hello")).await;
    let taken = stand_in.taken();
    assert_eq!(outcome, Outcome::Accepted { id: taken[0].id.clone() });
    for (name, value) in [
        ("from", "+12025550100"),
        ("to", "+12025550143"),
        ("text", "Hello"),
        ("type", "SMS"),
        ("use_profile_webhooks", "false"),
        ("webhook_url", order("").report_to.as_str()),
    ] {
        assert_eq!(taken[0].field(name), value, "{name}");
    }
    assert_eq!(
        refused(&telnyx(&stand_in.url, "KEY-wrong").send(&order("x")).await),
        Fault::Provider
    );
    assert_eq!(stand_in.taken().len(), 1);
}

#[tokio::test]
async fn what_was_not_asked_was_not_sent_and_what_was_not_answered_may_have_been() {
    let (one, two) = (StandIn::twilio().await, StandIn::telnyx().await);
    let both: [(&StandIn, Box<dyn Provider>); 2] =
        [(&one, Box::new(twilio(&one.url, TOKEN))), (&two, Box::new(telnyx(&two.url, API_KEY)))];
    for (stand_in, provider) in &both {
        for doubt in [
            Do::TakeAndHang,
            Do::TakeAndBreak,
            Do::Hang,
            Do::Answer(500, json!({})),
            Do::Answer(503, json!({})),
            Do::Answer(200, json!({"nothing": "to see"})),
        ] {
            let what = format!("{doubt:?}");
            stand_in.next(doubt);
            let asked = stand_in.asked().len();
            let outcome = provider.send(&order("x")).await;
            assert!(matches!(outcome, Outcome::Unknown { .. }), "{what}: {outcome:?}");
            assert_eq!(stand_in.asked().len(), asked + 1, "{what}: it is asked once");
        }
        stand_in.next(Do::TooMany(7));
        let busy = refused(&provider.send(&order("x")).await);
        assert_eq!(busy, Fault::Busy { wait_ms: Some(7_000) });
    }
    // A port where nobody listens any more.
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let nobody: [Box<dyn Provider>; 2] =
        [Box::new(twilio(&gone, TOKEN)), Box::new(telnyx(&gone, API_KEY))];
    for provider in nobody {
        assert_eq!(refused(&provider.send(&order("x")).await), Fault::Provider);
    }
}

#[tokio::test]
async fn a_private_address_is_not_called_unless_it_is_allowed() {
    let stand_in = StandIn::telnyx().await;
    let url = stand_in.url.replace("127.0.0.1", "localhost");
    let limits = Limits {
        connect: Duration::from_millis(500),
        request: Duration::from_secs(1),
        allow_private: false,
    };
    let strict = Client::new(url.parse().unwrap(), limits);
    let strict = Telnyx::new(strict, SecretString::from(API_KEY), None, vec![1; 32]);
    assert_eq!(refused(&strict.send(&order("x")).await), Fault::Provider);
    assert!(stand_in.asked().is_empty());
}

#[tokio::test]
async fn a_message_is_found_by_its_id_or_by_what_it_says() {
    let (one, two) = (StandIn::twilio().await, StandIn::telnyx().await);
    let (twilio, telnyx) = (twilio(&one.url, TOKEN), telnyx(&two.url, API_KEY));
    let now = Clock::system().now();
    let sought = |text: &str, id: Option<String>| Sought { order: order(text), id, asked_at: now };
    one.next(Do::TakeAndHang);
    assert!(matches!(twilio.send(&order("one")).await, Outcome::Unknown { .. }));
    let id = one.taken()[0].id.clone();
    one.set_status(&id, "delivered");
    let found = |report: Found| match report {
        Found::Message(report) => (report.id, report.stage),
        Found::Nothing | Found::Failed(_) => panic!("not found: {report:?}"),
    };
    assert_eq!(found(twilio.look_up(&sought("one", None)).await), (id.clone(), Stage::Delivered));
    assert_eq!(found(twilio.look_up(&sought("", Some(id))).await).1, Stage::Delivered);
    // Another text, another time, another number: not this one.
    assert_eq!(twilio.look_up(&sought("two", None)).await, Found::Nothing);
    let later = Sought { asked_at: UnixMs(now.0 + 3_600_000), ..sought("one", None) };
    assert_eq!(twilio.look_up(&later).await, Found::Nothing);
    // Two that could be it say nothing of either.
    assert!(matches!(twilio.send(&order("one")).await, Outcome::Accepted { .. }));
    assert_eq!(twilio.look_up(&sought("one", None)).await, Found::Nothing);
    let none = sought("", Some("SM9".to_owned()));
    assert_eq!(twilio.look_up(&none).await, Found::Nothing);

    let Outcome::Accepted { id } = telnyx.send(&order("one")).await else { panic!("it is taken") };
    two.set_status(&id, "delivery_failed");
    let failed = Stage::Failed { opted_out: false };
    assert_eq!(found(telnyx.look_up(&sought("", Some(id))).await).1, failed);
    assert_eq!(telnyx.look_up(&sought("one", None)).await, Found::Nothing);
}

#[tokio::test]
async fn a_test_of_the_credentials_sends_nothing() {
    let (one, two) = (StandIn::twilio().await, StandIn::telnyx().await);
    assert!(twilio(&one.url, TOKEN).test().await.is_ok());
    let wrong = twilio(&one.url, "wrong").test().await.unwrap_err();
    assert!(wrong.contains("20003") && !wrong.contains(TOKEN), "{wrong}");
    assert!(telnyx(&two.url, API_KEY).test().await.is_ok());
    assert!(telnyx(&two.url, "wrong").test().await.unwrap_err().contains("10009"));
    assert!(one.taken().is_empty() && two.taken().is_empty());
}
