//! Messages that no phone can send, on their way over stand-ins for Twilio and Telnyx; what those report, and what is
//! written to their numbers.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::api_support::{ADMIN, Answer, Router, Tenant};
use crate::provider_support::{ACCOUNT, API_KEY, Do, StandIn, TOKEN};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use data_encoding::BASE64;
use serde_json::{Value, json};

const PUBLIC: &str = "https://sb.example/below";
const TELNYX: &str = "+12025550100";
const TWILIO: &str = "+12025550101";
const TO: &str = "+12025550143";

/// A router with both providers' stand-ins, a tenant, and nothing set up.
struct Scene {
    router: Router,
    tenant: Tenant,
    twilio: StandIn,
    telnyx: StandIn,
    _folder: tempfile::TempDir,
}

fn key_file(folder: &Path, keys: &[u8]) -> String {
    let path = folder.join("providers.key");
    let text: Vec<String> = keys.iter().map(|n| BASE64.encode(&[*n; 32])).collect();
    std::fs::write(&path, text.join("\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

impl Scene {
    async fn start() -> Self {
        Self::start_with("").await
    }

    async fn start_with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (twilio, telnyx) = (StandIn::twilio().await, StandIn::telnyx().await);
        let text = format!(
            "[dispatch]\nretry_first_ms = 50\n[providers]\npublic_url = \"{PUBLIC}\"\nkey_file = \"{}\"\n\
             connect_ms = 500\ntimeout_ms = 1000\nallow_private = true\ntwilio_url = \"{}\"\ntelnyx_url = \"{}\"\n{more}",
            key_file(folder.path(), &[1]),
            twilio.url,
            telnyx.url,
        );
        let router = Router::start_with(&text).await;
        let tenant = router.tenant("Acme").await;
        Self { router, tenant, twilio, telnyx, _folder: folder }
    }

    async fn put(&self, path: &str, body: &Value) -> Answer {
        let request = self.router.client.put(format!("{}{path}", self.router.url));
        self.router.send(request.bearer_auth(ADMIN).json(body)).await
    }

    async fn choices(&self, body: &Value) -> Answer {
        let url = format!("{}/v1/admin/provider_choices", self.router.url);
        let request = self.router.client.patch(url);
        self.router.send(request.bearer_auth(ADMIN).json(body)).await
    }

    async fn with_telnyx(&self) {
        let key = BASE64.encode(pair().public_key().as_ref());
        let body =
            json!({"kind": "telnyx", "number": TELNYX, "api_key": API_KEY, "public_key": key});
        let set = self.put("/v1/admin/providers/telnyx-1", &body).await;
        assert_eq!(set.status, 200, "{set:?}");
        self.enable("telnyx-1").await;
    }

    /// Set up and enabled, with its three conditions met.
    async fn with_twilio(&self, priority: u32) {
        let tenant = self.tenant.id.parse().unwrap();
        let now = self.router.app.clock.now();
        self.router
            .app
            .store
            .write(move |tx| {
                use router::store::usage::{Numbers, Place};
                let place = Place {
                    tenant,
                    day: router::billing::Day::of(now),
                    class: protocol::Class::Otp,
                    channel: protocol::ChannelChoice::Sms,
                };
                tx.counts().add(place, Numbers { sent: 5_001, ..Numbers::default() });
                Ok(())
            })
            .await
            .unwrap();
        let body = json!({"kind": "twilio", "number": TWILIO, "account": ACCOUNT, "auth_token": TOKEN,
            "priority": priority});
        let set = self.put("/v1/admin/providers/twilio-1", &body).await;
        assert_eq!(set.status, 200, "{set:?}");
        self.enable("twilio-1").await;
        let figures =
            json!({"mrr_usd": 15_001, "mrr_as_of": now.to_string(), "twilio_allowed": true});
        assert_eq!(self.choices(&figures).await.status, 200);
        self.router.until(async || self.standing("twilio-1").await["why_not"] == json!([])).await;
    }

    async fn enable(&self, name: &str) {
        let path = format!("/v1/admin/providers/{name}/enable");
        let enabled = self.router.post(&path, ADMIN, &Value::Null).await;
        assert_eq!((enabled.status, &enabled.body["enabled"]), (200, &json!(true)), "{enabled:?}");
    }

    async fn standing(&self, name: &str) -> Value {
        let list = self.router.get("/v1/admin/providers", ADMIN).await;
        let all = list.body["data"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["name"] == name).unwrap()
    }

    async fn send(&self, more: Value) -> String {
        let mut body = json!({"to": TO, "text": "Your table is ready", "class": "transactional"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = self.router.post("/v1/messages", &self.tenant.live, &body).await;
        assert_eq!(made.status, 202, "{made:?}");
        made.body["id"].as_str().unwrap().to_owned()
    }

    async fn message(&self, id: &str) -> Value {
        self.router.get(&format!("/v1/messages/{id}"), &self.tenant.live).await.body
    }

    async fn kinds(&self, id: &str) -> Vec<String> {
        let page = self.router.get(&format!("/v1/messages/{id}/events"), &self.tenant.live).await;
        let all = page.body["data"].as_array().unwrap().clone();
        all.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    }

    async fn reaches(&self, id: &str, status: &str) -> Value {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(15);
        loop {
            let message = self.message(id).await;
            if message["status"] == status {
                return message;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {status}: {message}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Telnyx calls: signed by this key, about `seconds` from now.
    async fn telnyx_calls(&self, query: &str, body: &Value, (own, seconds): (bool, i64)) -> Answer {
        let text = body.to_string();
        let stamp = (self.router.app.clock.now().0 / 1_000 + seconds).to_string();
        let other = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
        let signer = if own { &pair() } else { &other };
        let signature = BASE64.encode(signer.sign(format!("{stamp}|{text}").as_bytes()).as_ref());
        let request = self
            .router
            .client
            .post(format!("{}/v1/providers/telnyx/telnyx-1{query}", self.router.url))
            .header("telnyx-signature-ed25519", signature)
            .header("telnyx-timestamp", stamp)
            .body(text);
        self.router.send(request).await
    }

    /// Twilio calls: signed with this token, for the address that it was given.
    async fn twilio_calls(&self, query: &str, fields: &[(&str, &str)], token: &str) -> Answer {
        let mut sorted = fields.to_vec();
        sorted.sort_unstable();
        let mut signed = format!("{PUBLIC}/v1/providers/twilio/twilio-1{query}");
        for (name, value) in sorted {
            signed.push_str(name);
            signed.push_str(value);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, token.as_bytes());
        let signature = BASE64.encode(hmac::sign(&key, signed.as_bytes()).as_ref());
        let body: String =
            url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = self
            .router
            .client
            .post(format!("{}/v1/providers/twilio/twilio-1{query}", self.router.url))
            .header("x-twilio-signature", signature)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        self.router.send(request).await
    }
}

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap()
}

const OWN: (bool, i64) = (true, 0);

/// What Telnyx says of a message, in the shape of its documents.
fn report(id: &str, kind: &str, status: &str) -> Value {
    json!({"data": {"event_type": kind, "id": "e", "record_type": "event", "payload": {
        "id": id, "direction": "outbound", "from": {"phone_number": TELNYX},
        "to": [{"phone_number": TO, "status": status}], "text": "x", "media": [], "errors": []}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_phone_can_send_goes_over_a_provider_and_its_reports_only_climb() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    let id = scene.send(json!({})).await;
    scene.router.until(async || scene.kinds(&id).await.contains(&"started".to_owned())).await;
    let taken = scene.telnyx.taken();
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].field("to"), taken[0].field("from")), (TO, TELNYX));
    let message = scene.message(&id).await;
    assert_eq!((&message["status"], &message["from"]), (&json!("dispatching"), &json!(TELNYX)));
    let theirs = taken[0].id.as_str();
    for (kind, status, now) in [
        ("message.sent", "sent", "sent"),
        ("message.finalized", "delivered", "delivered"),
        // Again, and late: nothing of it changes anything.
        ("message.finalized", "delivered", "delivered"),
        ("message.sent", "sent", "delivered"),
        ("message.finalized", "delivery_failed", "delivered"),
        ("message.sent", "a word of tomorrow", "delivered"),
    ] {
        let told = scene.telnyx_calls("", &report(theirs, kind, status), OWN).await;
        assert_eq!(told.status, 200, "{status}: {told:?}");
        assert_eq!(scene.message(&id).await["status"], now, "{status}");
    }
    assert_eq!(scene.message(&id).await["channel_used"], "sms");
    assert_eq!(scene.kinds(&id).await, ["queued", "dispatching", "started", "sent", "delivered"]);
    // Nothing is open any more, and no phone of the pool has come up.
    assert_eq!(scene.router.get("/v1/admin/phones", ADMIN).await.body["data"], json!([]));
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_sign_is_refused_and_changes_nothing() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    scene.with_twilio(200).await;
    let id = scene.send(json!({})).await;
    scene.router.until(async || scene.telnyx.taken().len() == 1).await;
    let theirs = scene.telnyx.taken()[0].id.clone();
    let delivered = report(&theirs, "message.finalized", "delivered");
    for (what, how) in [("forged", (false, 0)), ("old", (true, -301)), ("early", (true, 301))] {
        let told = scene.telnyx_calls("", &delivered, how).await;
        assert_eq!((told.status, told.problem()), (403, "not_signed"), "{what}");
    }
    let stop = [("MessageSid", "SM1"), ("From", TO), ("To", TWILIO), ("Body", "STOP")];
    let told = scene.twilio_calls("", &stop, "another token").await;
    assert_eq!((told.status, told.problem()), (403, "not_signed"));
    // Signed for another address than the one that is called.
    let signed_for = scene.twilio_calls("?attempt=1", &stop, TOKEN).await;
    assert_eq!(signed_for.status, 200, "{signed_for:?}");
    let url = format!("{}/v1/providers/twilio/twilio-1", scene.router.url);
    let bare = scene.router.send(scene.router.client.post(url).body("MessageSid=SM2")).await;
    assert_eq!((bare.status, bare.problem()), (403, "not_signed"));
    let nobody = format!("{}/v1/providers/twilio/telnyx-1", scene.router.url);
    assert_eq!(scene.router.send(scene.router.client.post(nobody)).await.status, 404);
    assert_ne!(scene.message(&id).await["status"], "delivered");
    let understood = scene.telnyx_calls("", &json!({"data": 1}), OWN).await;
    assert_eq!((understood.status, understood.problem()), (422, "invalid_request"));
    // A report about a message of somebody else's account is taken, and is nothing.
    let strange = report("of-another-router", "message.finalized", "delivered");
    assert_eq!(scene.telnyx_calls("", &strange, OWN).await.status, 200);
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imessage_and_rcs_never_leave_the_shelf() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    let held = [
        scene.send(json!({"channel": "imessage"})).await,
        scene.send(json!({"channel": "rcs"})).await,
        scene.send(json!({"to": "a@example.com"})).await,
        scene.send(json!({"text": "x".repeat(1_601)})).await,
        scene.send(json!({"media": [{"url": "https://example.com/a.jpg"}]})).await,
    ];
    let sms = scene.send(json!({"channel": "sms", "to": "+12025550144"})).await;
    scene.router.until(async || scene.kinds(&sms).await.contains(&"started".to_owned())).await;
    for id in &held {
        let message = scene.message(id).await;
        assert_eq!(message["held_reason"], "no_phone_available", "{message}");
    }
    assert_eq!(scene.telnyx.taken().len(), 1);
    // Who allows SMS after iMessage has allowed it.
    let after = json!({"channel": "imessage", "fallback": ["sms"], "to": "+12025550145"});
    let after = scene.send(after).await;
    scene.router.until(async || scene.kinds(&after).await.contains(&"started".to_owned())).await;
    // The provider's own number may be asked for.
    let own = scene.send(json!({"from": TELNYX})).await;
    scene.router.until(async || scene.kinds(&own).await.contains(&"started".to_owned())).await;
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_which_provider_and_why_not() {
    let scene = Scene::start().await;
    let body = json!({"to": TO, "text": "Hello", "class": "transactional"});
    let check = async |body: &Value| {
        let answer = scene.router.post("/v1/messages:check", &scene.tenant.live, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    };
    assert!(check(&body).await.get("providers").is_none(), "there are none");
    scene.with_telnyx().await;
    let twilio = json!({"kind": "twilio", "number": TWILIO, "account": ACCOUNT, "auth_token": TOKEN,
        "priority": 1});
    assert_eq!(scene.put("/v1/admin/providers/twilio-1", &twilio).await.status, 200);
    scene.enable("twilio-1").await;
    let checked = check(&body).await;
    assert_eq!(
        checked["providers"],
        json!([
            {"provider": "telnyx-1", "chosen": true, "why_not": []},
            // The operator's figures are no tenant's business.
            {"provider": "twilio-1", "chosen": false, "why_not": ["not_allowed"]},
        ])
    );
    assert_eq!((&checked["verdict"], &checked["from"]), (&json!("send"), &json!(TELNYX)));
    assert_eq!(checked["route"], json!(["sms"]));
    let blue = json!({"to": TO, "text": "Hello", "channel": "imessage"});
    let checked = check(&blue).await;
    assert_eq!(checked["providers"][0]["why_not"], json!(["not_sms"]));
    assert_eq!(checked["verdict"], "hold");
    assert_eq!(
        scene.standing("twilio-1").await["why_not"],
        json!(["volume_too_low", "revenue_not_known", "not_allowed"])
    );
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twilio_is_asked_once_its_three_conditions_are_met() {
    let scene = Scene::start().await;
    scene.with_twilio(1).await;
    let id = scene.send(json!({"channel": "sms"})).await;
    scene.router.until(async || scene.twilio.taken().len() == 1).await;
    let taken = scene.twilio.taken()[0].clone();
    let report_to = taken.field("StatusCallback").to_owned();
    let query = report_to.strip_prefix(&format!("{PUBLIC}/v1/providers/twilio/twilio-1")).unwrap();
    let sid = taken.id.as_str();
    let said = |status| [("MessageSid", sid), ("MessageStatus", status), ("To", TO)];
    for status in ["sent", "delivered", "sent"] {
        let told = scene.twilio_calls(query, &said(status), TOKEN).await;
        assert_eq!(told.status, 200, "{told:?}");
        assert!(told.headers["content-type"].to_str().unwrap().starts_with("text/xml"));
    }
    assert_eq!(scene.message(&id).await["status"], "delivered");
    // Without the flag it is not asked any more: what comes then is held.
    assert_eq!(scene.choices(&json!({"twilio_allowed": false})).await.status, 200);
    let held = scene.send(json!({"channel": "sms"})).await;
    scene
        .router
        .until(async || scene.message(&held).await["held_reason"] == "no_phone_available")
        .await;
    assert_eq!(scene.twilio.taken().len(), 1);
    // With it, what is held goes.
    assert_eq!(scene.choices(&json!({"twilio_allowed": true})).await.status, 200);
    scene.router.until(async || scene.twilio.taken().len() == 2).await;
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_refuses_ends_or_goes_elsewhere() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    // The recipient's number is none: nobody else would send it either.
    scene.telnyx.next(Do::Answer(400, json!({"errors": [{"code": "40310", "title": "to"}]})));
    let id = scene.send(json!({"to": "+12025550145"})).await;
    let failed = scene.reaches(&id, "failed").await;
    assert_eq!((&failed["reason"], &failed["attempts"]), (&json!("bad_address"), &json!(1)));
    // Asked too often: it comes back when it was told to, and that is no failure of the message.
    scene.telnyx.next(Do::TooMany(1));
    let id = scene.send(json!({"to": "+12025550146"})).await;
    scene.router.until(async || scene.kinds(&id).await.contains(&"started".to_owned())).await;
    assert_eq!(scene.message(&id).await["attempts"], 2);
    assert_eq!(scene.standing("telnyx-1").await["failures_last_minute"], 0);
    // The settings of the first one are wrong: the other one sends it.
    scene.with_twilio(1).await;
    scene.twilio.always(Some(Do::Answer(400, json!({"code": 21606, "message": "From"}))));
    let id = scene.send(json!({"to": "+12025550147"})).await;
    scene.router.until(async || scene.kinds(&id).await.contains(&"started".to_owned())).await;
    assert_eq!(
        scene.kinds(&id).await,
        ["queued", "dispatching", "retry", "dispatching", "started"]
    );
    assert_eq!(scene.message(&id).await["from"], TELNYX);
    // Both: three attempts are the end.
    let broken = json!({"errors": [{"code": "10010"}]});
    scene.telnyx.always(Some(Do::Answer(403, broken)));
    let id = scene.send(json!({"to": "+12025550148"})).await;
    let failed = scene.reaches(&id, "failed").await;
    assert_eq!(
        (&failed["reason"], &failed["attempts"]),
        (&json!("provider_refused"), &json!(3)),
        "{failed}"
    );
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_told_the_provider_to_stop_is_opted_out_here() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    let stopped = json!({"errors": [{"code": "40300", "title": "Blocked due to STOP message"}]});
    scene.telnyx.next(Do::Answer(409, stopped));
    let id = scene.send(json!({})).await;
    let blocked = scene.reaches(&id, "blocked").await;
    assert_eq!(blocked["reason"], "opted_out");
    let out = scene.router.get("/v1/opt_outs", &scene.tenant.live).await;
    assert_eq!(out.body["data"][0]["recipient"], TO);
    assert_eq!(out.body["data"][0]["method"], "provider");
    let again = scene.send(json!({})).await;
    assert_eq!(scene.reaches(&again, "blocked").await["reason"], "opted_out");
    assert_eq!(scene.telnyx.asked().len(), 1);
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_answered_is_unknown_until_it_is_reported_and_never_sent_again() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    scene.telnyx.next(Do::TakeAndHang);
    let id = scene.send(json!({})).await;
    let unknown = scene.reaches(&id, "unknown").await;
    assert_eq!(unknown["reason"], "provider_silent");
    assert_eq!(scene.telnyx.taken().len(), 1);
    let taken = scene.telnyx.taken()[0].clone();
    // The report names the message by the address that the provider was given.
    let to = taken.field("webhook_url").to_owned();
    let query = to.strip_prefix(&format!("{PUBLIC}/v1/providers/telnyx/telnyx-1")).unwrap();
    let waits = report(&taken.id, "message.sent", "queued");
    assert_eq!(scene.telnyx_calls(query, &waits, OWN).await.status, 200);
    assert_eq!(scene.message(&id).await["status"], "unknown");
    let delivered = report(&taken.id, "message.finalized", "delivered");
    assert_eq!(scene.telnyx_calls(query, &delivered, OWN).await.status, 200);
    assert_eq!(scene.message(&id).await["status"], "delivered");
    // Another message's id at the same address is believed no more: this attempt has its id.
    let other = report("another", "message.finalized", "delivery_failed");
    assert_eq!(scene.telnyx_calls(query, &other, OWN).await.status, 200);
    assert_eq!(scene.message(&id).await["status"], "delivered");
    assert_eq!(scene.telnyx.asked().len(), 1);
    assert_eq!(scene.message(&id).await["attempts"], 1);
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_has_taken_is_paid_for_whatever_it_says_before_its_answer() {
    let scene = Scene::start_with("[billing.plans.paid]\ncredits_per_message = 2\n").await;
    scene.with_telnyx().await;
    let tenant = format!("/v1/admin/tenants/{}", scene.tenant.id);
    let plan = scene.put(&format!("{tenant}/billing"), &json!({"plan": "paid"})).await;
    assert_eq!(plan.status, 200, "{plan:?}");
    let paid = json!({"amount": 100, "reason": "bought"});
    let paid = scene.router.post(&format!("{tenant}/credits"), ADMIN, &paid).await;
    assert_eq!(paid.status, 201, "{paid:?}");
    let credit =
        async || scene.router.get(&format!("{tenant}/billing"), ADMIN).await.body["credit"].clone();
    let query_of = |taken: &crate::provider_support::Taken| {
        let to = taken.field("webhook_url");
        to.strip_prefix(&format!("{PUBLIC}/v1/providers/telnyx/telnyx-1")).unwrap().to_owned()
    };
    // It fails before the answer to the request has come.
    scene.telnyx.next(Do::TakeAndHang);
    let early = scene.send(json!({})).await;
    scene.router.until(async || scene.telnyx.taken().len() == 1).await;
    let taken = scene.telnyx.taken()[0].clone();
    let failed = report(&taken.id, "message.finalized", "delivery_failed");
    assert_eq!(scene.telnyx_calls(&query_of(&taken), &failed, OWN).await.status, 200);
    scene.reaches(&early, "failed").await;
    assert_eq!(credit().await, 98);
    // And after the answer was given up.
    scene.telnyx.next(Do::TakeAndHang);
    let late = scene.send(json!({"to": "+12025550144"})).await;
    scene.reaches(&late, "unknown").await;
    let taken = scene.telnyx.taken()[1].clone();
    let failed = report(&taken.id, "message.finalized", "delivery_failed");
    assert_eq!(scene.telnyx_calls(&query_of(&taken), &failed, OWN).await.status, 200);
    scene.reaches(&late, "failed").await;
    assert_eq!(credit().await, 96);
    // What it has turned away unread is given back.
    scene.telnyx.next(Do::Answer(400, json!({"errors": [{"code": "40310", "title": "to"}]})));
    let refused = scene.send(json!({"to": "+12025550145"})).await;
    scene.reaches(&refused, "failed").await;
    assert_eq!(credit().await, 96);
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_of_before_its_answer_is_looked_for_even_if_nothing_more_is_told() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    scene.telnyx.next(Do::TakeAndHang);
    let id = scene.send(json!({})).await;
    scene.router.until(async || scene.telnyx.taken().len() == 1).await;
    let taken = scene.telnyx.taken()[0].clone();
    let to = taken.field("webhook_url").to_owned();
    let query = to.strip_prefix(&format!("{PUBLIC}/v1/providers/telnyx/telnyx-1")).unwrap();
    let waits = report(&taken.id, "message.sent", "queued");
    assert_eq!(scene.telnyx_calls(query, &waits, OWN).await.status, 200);
    // Should the router end here, nothing but this row remembers that an end is still to come.
    let due = scene
        .router
        .app
        .store
        .read(|tx| {
            tx.query_row("SELECT look_at IS NOT NULL FROM provider_attempts", &[], |row| {
                row.get::<bool>(0)
            })
        })
        .await
        .unwrap();
    assert!(due);
    assert_eq!(scene.kinds(&id).await, ["queued", "dispatching", "started"]);
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_deleted_when_it_has_nothing_under_way_or_by_force() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    let path = "/v1/admin/providers/telnyx-1";
    let delete = async |query: &str| {
        let request = scene.router.client.delete(format!("{}{path}{query}", scene.router.url));
        scene.router.send(request.bearer_auth(ADMIN)).await
    };
    let id = scene.send(json!({})).await;
    scene.router.until(async || scene.kinds(&id).await.contains(&"started".to_owned())).await;
    let enabled = delete("?force=true").await;
    assert_eq!((enabled.status, enabled.problem()), (409, "provider_not_ready"));
    let disabled = scene.router.post(&format!("{path}/disable"), ADMIN, &Value::Null).await;
    assert_eq!(disabled.status, 200);
    let busy = delete("").await;
    assert_eq!((busy.status, busy.problem()), (409, "provider_not_ready"));
    // What it has is still followed, until it is deleted all the same.
    let theirs = scene.telnyx.taken()[0].id.clone();
    assert_eq!(delete("?force=true").await.status, 204);
    assert_eq!(scene.message(&id).await["status"], "unknown");
    assert_eq!(delete("").await.status, 404);
    let delivered = report(&theirs, "message.finalized", "delivered");
    assert_eq!(scene.telnyx_calls("", &delivered, OWN).await.status, 404);
    let list = scene.router.get("/v1/admin/providers", ADMIN).await;
    assert_eq!(list.body["data"], json!([]));
    // Nobody sends from its number any more.
    let from = json!({"to": TO, "text": "a", "from": TELNYX});
    let refused = scene.router.post("/v1/messages", &scene.tenant.live, &from).await;
    assert_eq!((refused.status, refused.problem()), (422, "invalid_request"));
    // Whoever has the number next goes on with its conversations; the report comes after all.
    scene.with_telnyx().await;
    assert_eq!(scene.telnyx_calls("", &delivered, OWN).await.status, 200);
    assert_eq!(scene.message(&id).await["status"], "delivered");
    let again = scene.send(json!({"from": TELNYX})).await;
    scene.router.until(async || scene.kinds(&again).await.contains(&"started".to_owned())).await;
    assert_eq!(scene.telnyx.taken().len(), 2);
    // Nor is the number lost to a phone, where it is moved to one.
    let enrol = async || {
        let token = scene.router.post("/v1/admin/enrolment_tokens", ADMIN, &json!({})).await;
        let body = json!({"token": token.body["token"], "name": "shelf",
            "public_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "phones": [{"number": TELNYX}]});
        scene.router.post("/v1/hosts/enroll", "", &body).await.status
    };
    assert_eq!(enrol().await, 422);
    let disabled = scene.router.post(&format!("{path}/disable"), ADMIN, &Value::Null).await;
    assert_eq!((disabled.status, delete("?force=true").await.status), (200, 204));
    assert_eq!(enrol().await, 200);
    let phones = scene.router.get("/v1/admin/phones", ADMIN).await.body["data"].clone();
    assert_eq!(phones[0]["number"], TELNYX);
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_provider_does_not_reach_says_nothing_of_how_it_does() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    scene.telnyx.always(Some(Do::Answer(400, json!({"errors": [{"code": "40309"}]}))));
    for n in 0..10 {
        let id = scene.send(json!({"to": format!("+1202555{:04}", 300 + n)})).await;
        let failed = scene.reaches(&id, "failed").await;
        assert_eq!(failed["reason"], "provider_refused");
    }
    let standing = scene.standing("telnyx-1").await;
    assert_eq!(
        (&standing["breaker"], &standing["failures_last_minute"]),
        (&json!("closed"), &json!(0))
    );
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_is_left_alone_and_messages_wait() {
    let scene = Scene::start().await;
    scene.with_telnyx().await;
    scene.telnyx.always(Some(Do::Answer(500, json!({}))));
    for n in 0..10 {
        let id = scene.send(json!({"to": format!("+1202555{:04}", 200 + n)})).await;
        scene.reaches(&id, "unknown").await;
    }
    assert_eq!(scene.standing("telnyx-1").await["breaker"], "open");
    let asked = scene.telnyx.asked().len();
    let id = scene.send(json!({})).await;
    scene
        .router
        .until(async || scene.message(&id).await["held_reason"] == "no_phone_available")
        .await;
    let next = scene.message(&id).await["next_at"].clone();
    assert_eq!(next, scene.standing("telnyx-1").await["shut_until"]);
    assert_eq!(scene.telnyx.asked().len(), asked);
    // New credentials have the benefit of the doubt, and what waits goes.
    scene.telnyx.always(None);
    scene.with_telnyx().await;
    scene.router.until(async || scene.telnyx.taken().len() == 1).await;
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_providers_number_comes_in_once_and_a_stop_counts() {
    let scene = Scene::start().await;
    // A second tenant, so that nothing is attributed for want of another one.
    let other = scene.router.tenant("Other").await;
    scene.with_telnyx().await;
    scene.with_twilio(1).await;
    scene.send(json!({})).await;
    scene.router.until(async || scene.twilio.taken().len() == 1).await;
    let written = [
        ("MessageSid", "SM00000000000000000000000000000aaa"),
        ("From", TO),
        ("To", TWILIO),
        ("Body", "Thank you"),
        ("NumMedia", "0"),
    ];
    for _ in 0..2 {
        assert_eq!(scene.twilio_calls("", &written, TOKEN).await.status, 200);
    }
    let inbound = scene.router.get("/v1/messages?direction=inbound", &scene.tenant.live).await;
    let all = inbound.body["data"].as_array().unwrap();
    assert_eq!(all.len(), 1, "{inbound:?}");
    assert_eq!((&all[0]["text"], &all[0]["from"]), (&json!("Thank you"), &json!(TWILIO)));
    assert_eq!((&all[0]["to"], &all[0]["channel_used"]), (&json!(TO), &json!("sms")));
    let none = scene.router.get("/v1/messages?direction=inbound", &other.live).await;
    assert_eq!(none.body["data"], json!([]));
    // Who has never been written to belongs to nobody.
    let stranger = [("MessageSid", "SM1"), ("From", "+12025550149"), ("To", TWILIO), ("Body", "?")];
    assert_eq!(scene.twilio_calls("", &stranger, TOKEN).await.status, 200);
    let inbound = scene.router.get("/v1/messages?direction=inbound", &scene.tenant.live).await;
    assert_eq!(inbound.body["data"].as_array().unwrap().len(), 1);

    // Nor does what is written to another number of the account.
    let elsewhere = [("MessageSid", "SM3"), ("From", TO), ("To", "+12025550199"), ("Body", "?")];
    assert_eq!(scene.twilio_calls("", &elsewhere, TOKEN).await.status, 200);
    let inbound = scene.router.get("/v1/messages?direction=inbound", &scene.tenant.live).await;
    assert_eq!(inbound.body["data"].as_array().unwrap().len(), 1);

    let stop = [("MessageSid", "SM2"), ("From", TO), ("To", TWILIO), ("Body", "Stop.")];
    assert_eq!(scene.twilio_calls("", &stop, TOKEN).await.status, 200);
    let out = scene.router.get("/v1/opt_outs", &scene.tenant.live).await;
    assert_eq!(out.body["data"][0]["recipient"], TO);
    assert_eq!(scene.router.get("/v1/opt_outs", &other.live).await.body["data"], json!([]));
    let blocked = scene.send(json!({})).await;
    assert_eq!(scene.reaches(&blocked, "blocked").await["reason"], "opted_out");
    // The provider confirms by itself: nothing of ours is on its way.
    assert_eq!(scene.twilio.taken().len(), 1);
    assert_eq!(scene.telnyx.taken().len(), 0);
    let outbound = scene.router.get("/v1/messages?direction=outbound", &scene.tenant.live).await;
    assert_eq!(outbound.body["data"].as_array().unwrap().len(), 2);
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_sealed_and_never_shown() {
    let scene = Scene::start().await;
    scene.with_twilio(1).await;
    scene.with_telnyx().await;
    let list = scene.router.get("/v1/admin/providers", ADMIN).await;
    let shown = format!("{}{:?}", list.body, scene.router.app.config);
    for secret in [TOKEN, API_KEY] {
        assert!(!shown.contains(secret), "{shown}");
        let bytes = std::fs::read(&scene.router.app.config.database).unwrap();
        let wal = scene.router.app.config.database.with_extension("db-wal");
        let bytes = [bytes, std::fs::read(wal).unwrap_or_default()].concat();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
    let url = list.body["data"][1]["webhook_url"].as_str().unwrap();
    assert_eq!(url, format!("{PUBLIC}/v1/providers/twilio/twilio-1"));
    let repeat = async || {
        let url = format!("{}/v1/admin/providers/twilio-1/test", scene.router.url);
        let request = scene.router.client.post(url).bearer_auth(ADMIN);
        scene.router.send(request.header("idempotency-key", "test-1")).await
    };
    let tested = repeat().await;
    assert_eq!((tested.status, &tested.body["works"]), (200, &json!(true)), "{tested:?}");
    // Wrong ones are told as such by the provider, and shown by nobody.
    let wrong = json!({"kind": "twilio", "number": TWILIO, "account": ACCOUNT,
        "auth_token": "a-wrong-token"});
    let set = scene.put("/v1/admin/providers/twilio-1", &wrong).await;
    assert_eq!((set.status, &set.body["enabled"]), (200, &json!(true)), "it stays enabled");
    let test = scene.router.post("/v1/admin/providers/twilio-1/test", ADMIN, &Value::Null).await;
    assert_eq!(test.body["works"], false);
    // The one of before, asked again, is not asked of the provider.
    let again = repeat().await;
    assert_eq!((again.status, &again.body), (200, &tested.body));
    assert!(again.headers.contains_key("idempotency-replayed"));
    assert!(!test.body.to_string().contains("a-wrong-token"), "{test:?}");
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_cannot_be_is_refused_by_field() {
    let scene = Scene::start().await;
    let key = BASE64.encode(pair().public_key().as_ref());
    let telnyx = |more: Value| {
        let mut body =
            json!({"kind": "telnyx", "number": TELNYX, "api_key": "k", "public_key": key});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (body, pointer) in [
        (json!({"kind": "nexmo", "number": TELNYX}), "/kind"),
        (json!({"kind": "twilio", "number": TELNYX, "auth_token": "t"}), "/account"),
        (telnyx(json!({"public_key": "x"})), "/public_key"),
        (telnyx(json!({"number": "12025550100"})), "/number"),
        (telnyx(json!({"auth_token": "t"})), "/auth_token"),
        (telnyx(json!({"priority": 10_001})), "/priority"),
    ] {
        let refused = scene.put("/v1/admin/providers/one", &body).await;
        assert_eq!((refused.status, refused.problem()), (422, "invalid_request"), "{body}");
        let named = refused.body["errors"].to_string();
        assert!(named.contains(&format!("\"{pointer}\"")), "{body}: {named}");
    }
    for name in ["One", "1", "a_b", &"a".repeat(33)] {
        let path = format!("/v1/admin/providers/{name}");
        assert_eq!(scene.put(&path, &telnyx(json!({}))).await.status, 404, "{name}");
    }
    assert_eq!(scene.put("/v1/admin/providers/one", &telnyx(json!({}))).await.status, 200);
    let twice = scene.put("/v1/admin/providers/two", &telnyx(json!({}))).await;
    assert_eq!((twice.status, twice.problem()), (409, "already_exists"));
    for path in ["nobody/enable", "nobody/disable", "nobody/test"] {
        let path = format!("/v1/admin/providers/{path}");
        assert_eq!(scene.router.post(&path, ADMIN, &Value::Null).await.status, 404, "{path}");
    }
    for (body, pointer) in [
        (json!({"switch_to": "nobody"}), "/switch_to"),
        (json!({"mrr_usd": 1}), "/mrr_as_of"),
        (json!({"mrr_as_of": "2026-01-01T00:00:00Z"}), "/mrr_usd"),
        (json!({"mrr_usd": 1, "mrr_as_of": "2999-01-01T00:00:00Z"}), "/mrr_as_of"),
    ] {
        let refused = scene.choices(&body).await;
        assert_eq!(refused.status, 422, "{body}");
        assert!(refused.body["errors"].to_string().contains(pointer), "{refused:?}");
    }
    // Its number is no phone's to have.
    let token = scene.router.post("/v1/admin/enrolment_tokens", ADMIN, &json!({})).await;
    assert!(token.status < 500, "{token:?}");
    scene.router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_or_a_public_address_nothing_is_enabled() {
    let router = Router::start().await;
    let body = json!({"kind": "telnyx", "number": TELNYX, "api_key": "k",
        "public_key": BASE64.encode(&[1; 32])});
    let request = router.client.put(format!("{}/v1/admin/providers/one", router.url));
    let refused = router.send(request.bearer_auth(ADMIN).json(&body)).await;
    assert_eq!((refused.status, refused.problem()), (409, "provider_not_ready"));
    assert!(refused.body["detail"].as_str().unwrap().contains("key_file"), "{refused:?}");
    router.stop().await;
}
