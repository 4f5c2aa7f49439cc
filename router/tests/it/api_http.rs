//! The API over a real socket: what goes in, and exactly what comes out.

use std::collections::BTreeSet;

use crate::api_support::{ADMIN, Router};
use serde_json::{Value, json};

/// (pointer, code) of every error in a problem, in order.
fn errors(problem: &Value) -> Vec<(String, String)> {
    problem["errors"]
        .as_array()
        .map(|errors| {
            errors
                .iter()
                .map(|error| {
                    (
                        error["pointer"].as_str().expect("it is text").to_owned(),
                        error["code"].as_str().expect("it is text").to_owned(),
                    )
                })
                .collect()
        })
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_accepted_stored_and_told() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let sent = router
        .post(
            "/v1/messages",
            &key,
            &json!({"to": "+12025550143", "text": "Hello", "class": "otp",
            "channel": "imessage", "metadata": {"order": "7"}}),
        )
        .await;
    assert_eq!(sent.status, 202, "{sent:?}");
    assert_eq!(sent.body["status"], "queued");
    assert_eq!(sent.body["to"], "+12025550143");
    assert_eq!(sent.body["metadata"]["order"], "7");
    assert_eq!(sent.body["sequence"], 1);
    let id = sent.body["id"].as_str().unwrap();

    let got = router.get(&format!("/v1/messages/{id}"), &key).await;
    assert_eq!(got.status, 200);
    // Dispatch may have looked at it meanwhile; what was accepted stays.
    for field in ["id", "to", "text", "class", "channel", "metadata", "created_at", "expires_at"] {
        assert_eq!(got.body[field], sent.body[field], "{field}");
    }
    let events = router.get(&format!("/v1/messages/{id}/events"), &key).await;
    assert_eq!(events.body["data"][0]["type"], "queued");
    assert_eq!(events.body["data"][0]["sequence"], 1);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_field_is_named_with_its_pointer() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let long = "x".repeat(20_001);
    let big = "y".repeat(4_096);
    let to = "+12025550143";
    for (body, expected) in [
        (json!({}), vec![("/to", "required"), ("/text", "required")]),
        (json!({"to": null, "text": null}), vec![("/to", "required"), ("/text", "required")]),
        (json!({"to": "12025550143", "text": "a"}), vec![("/to", "invalid_recipient")]),
        (json!({"to": "+1202", "text": "a"}), vec![("/to", "invalid_recipient")]),
        (json!({"to": "+120255501", "text": "a"}), vec![("/to", "impossible_number")]),
        (json!({"to": 5, "text": "a"}), vec![("/to", "wrong_type")]),
        (json!({"to": "a@b", "text": "a"}), vec![("/to", "invalid_recipient")]),
        (json!({"to": to, "text": ""}), vec![("/text", "too_short")]),
        (json!({"to": to, "text": long}), vec![("/text", "too_long")]),
        (json!({"to": to, "text": ["a"]}), vec![("/text", "wrong_type")]),
        (json!({"to": to, "text": "a\0b"}), vec![("/text", "invalid_character")]),
        (json!({"to": to, "media": []}), vec![("/text", "required")]),
        (
            json!({"to": to, "media": [{"url": "http://example.com/a"}, {}, {"url": "https://a:b@example.com/", "size": 1}]}),
            vec![
                ("/media/0/url", "invalid_url"),
                ("/media/1/url", "required"),
                ("/media/2/url", "invalid_url"),
                ("/media/2/size", "unknown_field"),
            ],
        ),
        (
            json!({"to": to, "media": [{"url": "https://example.com/a", "name": "a/b", "sha256": "z".repeat(64)}]}),
            vec![("/media/0/name", "invalid_name"), ("/media/0/sha256", "invalid_sha256")],
        ),
        (
            json!({"to": to, "text": "a", "fallback": ["sms", "fax"]}),
            vec![("/fallback/1", "unknown_channel")],
        ),
        (
            json!({"to": "ann@example.com", "text": "a", "fallback": ["sms"]}),
            vec![("/fallback", "channel_needs_number")],
        ),
        (json!({"to": to, "text": "a\u{1b}[2J"}), vec![("/text", "invalid_character")]),
        (json!({"to": to, "text": " \n\u{2003}"}), vec![("/text", "blank")]),
        (json!({"to": to, "text": "a", "channel": "fax"}), vec![("/channel", "unknown_channel")]),
        (json!({"to": to, "text": "a", "class": "spam"}), vec![("/class", "unknown_class")]),
        (
            json!({"to": "a@b.example", "text": "a", "channel": "sms"}),
            vec![("/channel", "channel_needs_number")],
        ),
        (json!({"to": to, "text": "a", "from": "me"}), vec![("/from", "invalid_number")]),
        (
            json!({"to": to, "text": "a", "from": "+12025550199"}),
            vec![("/from", "phone_not_allowed")],
        ),
        (json!({"to": to, "text": "a", "send_at": "soon"}), vec![("/send_at", "invalid_time")]),
        (
            json!({"to": to, "text": "a", "send_at": "2001-01-01T00:00:00Z"}),
            vec![("/send_at", "in_the_past")],
        ),
        (
            json!({"to": to, "text": "a", "send_at": "2901-01-01T00:00:00Z"}),
            vec![("/send_at", "too_far")],
        ),
        (
            json!({"to": to, "text": "a", "expires_at": "2001-01-01T00:00:00Z"}),
            vec![("/expires_at", "in_the_past")],
        ),
        (
            json!({"to": to, "text": "a", "expires_at": "2901-01-01T00:00:00Z"}),
            vec![("/expires_at", "too_far")],
        ),
        (json!({"to": to, "text": "a", "ttl_seconds": 0}), vec![("/ttl_seconds", "out_of_range")]),
        (
            json!({"to": to, "text": "a", "ttl_seconds": 1.5}),
            vec![("/ttl_seconds", "out_of_range")],
        ),
        (json!({"to": to, "text": "a", "ttl_seconds": "60"}), vec![("/ttl_seconds", "wrong_type")]),
        (
            json!({"to": to, "text": "a", "metadata": {"a": 1, "b/c": []}}),
            vec![("/metadata/a", "wrong_type"), ("/metadata/b~1c", "wrong_type")],
        ),
        (json!({"to": to, "text": "a", "metadata": {"a": big}}), vec![("/metadata", "too_long")]),
        (json!({"to": to, "text": "a", "metadata": "x"}), vec![("/metadata", "wrong_type")]),
        (json!({"to": to, "text": "a", "body": "b"}), vec![("/body", "unknown_field")]),
        (
            json!({"to": "x", "text": "", "class": "x", "hello~": 1}),
            vec![
                ("/to", "invalid_recipient"),
                ("/text", "too_short"),
                ("/class", "unknown_class"),
                ("/hello~0", "unknown_field"),
            ],
        ),
        (json!([]), vec![("", "wrong_type")]),
        (json!("text"), vec![("", "wrong_type")]),
    ] {
        let answer = router.post("/v1/messages", &key, &body).await;
        let shown: String = body.to_string().chars().take(120).collect();
        assert_eq!(answer.status, 422, "{shown}: {answer:?}");
        assert_eq!(answer.problem(), "invalid_request", "{shown}");
        let found = errors(&answer.body);
        let found: Vec<(&str, &str)> =
            found.iter().map(|(pointer, code)| (pointer.as_str(), code.as_str())).collect();
        assert_eq!(found, expected, "{shown}");
    }
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(10);
    let sooner = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(5);
    for (body, expected) in [
        (
            json!({"to": to, "text": "a", "send_at": soon, "expires_at": sooner}),
            ("/expires_at", "before_send_at"),
        ),
        (
            json!({"to": to, "text": "a", "ttl_seconds": 60, "expires_at": sooner}),
            ("/ttl_seconds", "conflict"),
        ),
    ] {
        let answer = router.post("/v1/messages", &key, &body).await;
        assert_eq!(
            errors(&answer.body),
            [(expected.0.to_owned(), expected.1.to_owned())],
            "{body}"
        );
    }
    let none = router.get("/v1/messages", &key).await;
    assert_eq!(none.body["data"], json!([]), "a refused body stored something");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_request_of_ours_is_a_problem_too() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let url = |path: &str| format!("{}{path}", router.url);
    let json_type = ("content-type", "application/json");

    let request = router.client.post(url("/v1/messages")).bearer_auth(&key);
    let broken = router.send(request.header(json_type.0, json_type.1).body("{\"to\": ")).await;
    assert_eq!((broken.status, broken.problem()), (400, "malformed_json"));
    assert!(broken.body["detail"].as_str().unwrap().contains("line 1"), "{broken:?}");

    let request = router.client.post(url("/v1/messages")).bearer_auth(&key);
    let body =
        r#"{"to": "+12025550143", "text": "a", "text": "b", "metadata": {"k": "1", "k": "2"}}"#;
    let twice = router.send(request.header(json_type.0, json_type.1).body(body)).await;
    assert_eq!((twice.status, twice.problem()), (422, "invalid_request"));
    let repeated = [("/text", "repeated"), ("/metadata/k", "repeated")];
    assert_eq!(errors(&twice.body), repeated.map(|(p, c)| (p.to_owned(), c.to_owned())));

    let request = router.client.post(url("/v1/messages")).bearer_auth(&key);
    let untyped = router.send(request.body("{}")).await;
    assert_eq!((untyped.status, untyped.problem()), (415, "unsupported_media_type"));

    let request = router.client.post(url("/v1/messages")).bearer_auth(&key);
    let form = router.send(request.header("content-type", "text/plain").body("{}")).await;
    assert_eq!((form.status, form.problem()), (415, "unsupported_media_type"));

    let request = router.client.post(url("/v1/messages")).bearer_auth(&key);
    let huge = " ".repeat(300_000);
    let large = router.send(request.header(json_type.0, json_type.1).body(huge)).await;
    assert_eq!((large.status, large.problem()), (413, "body_too_large"));

    let request = router.client.post(url("/v1/messages")).bearer_auth(&key);
    let deep = router.send(request.header(json_type.0, json_type.1).body("[".repeat(10_000))).await;
    assert_eq!((deep.status, deep.problem()), (400, "malformed_json"));

    let nowhere = router.get("/v1/nothing", &key).await;
    assert_eq!((nowhere.status, nowhere.problem()), (404, "not_found"));

    let put = router.send(router.client.put(url("/v1/messages")).bearer_auth(&key)).await;
    assert_eq!((put.status, put.problem()), (405, "method_not_allowed"));
    assert!(put.headers.contains_key("allow"), "{put:?}");

    for path in [
        "/v1/messages?limit=0",
        "/v1/messages?cursor=x",
        "/v1/messages?nope=1",
        "/v1/messages?status=x",
        // The cursor of a list of tenants.
        "/v1/messages?cursor=dGVuXzAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw",
    ] {
        let bad = router.get(path, &key).await;
        assert_eq!((bad.status, bad.problem()), (422, "invalid_request"), "{path}");
    }
    let twice: Vec<String> = [&broken, &nowhere]
        .iter()
        .map(|answer| answer.body["request_id"].as_str().unwrap().to_owned())
        .collect();
    assert_ne!(twice[0], twice[1]);
    assert_eq!(nowhere.headers["x-request-id"], twice[1]);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_good_key_opens_anything() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let other: String = tenant.live.chars().rev().take(20).collect();
    let mut forged = tenant.live.clone();
    forged.truncate(forged.len() - 20);
    forged.push_str(&other);

    for (path, good) in [("/v1/messages", tenant.live.as_str()), ("/v1/admin/tenants", ADMIN)] {
        let url = format!("{}{path}", router.url);
        let without = router.send(router.client.get(&url)).await;
        assert_eq!((without.status, without.problem()), (401, "unauthenticated"), "{path}");
        assert_eq!(without.headers["www-authenticate"], "Bearer");
        let basic = router.send(router.client.get(&url).basic_auth("user", Some(good))).await;
        assert_eq!(basic.status, 401, "{path}");
        for bad in ["", "sb_live_", "sb_live_nothing0nothing0", forged.as_str(), "é"] {
            let refused = router.get(path, bad).await;
            assert_eq!(
                (refused.status, refused.problem()),
                (401, "unauthenticated"),
                "{path} {bad}"
            );
        }
        assert_eq!(router.get(path, good).await.status, 200);
    }
    // The operator's token is no tenant's key, and the other way round.
    assert_eq!(router.get("/v1/messages", ADMIN).await.status, 401);
    assert_eq!(router.get("/v1/admin/keys", &tenant.live).await.status, 401);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_ends_when_it_is_revoked_or_its_time_is_up_and_does_only_what_its_scopes_say() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let make = |body: Value| {
        let router = &router;
        async move { router.post("/v1/admin/keys", ADMIN, &body).await }
    };
    let reader =
        make(json!({"tenant": tenant.id, "name": "reader", "scopes": ["messages:read"]})).await;
    assert_eq!(reader.status, 201, "{reader:?}");
    assert_eq!(reader.body["scopes"], json!(["messages:read"]));
    let secret = reader.body["secret"].as_str().unwrap();
    assert_eq!(router.get("/v1/messages", secret).await.status, 200);
    let refused =
        router.post("/v1/messages", secret, &json!({"to": "+12025550143", "text": "a"})).await;
    assert_eq!((refused.status, refused.problem()), (403, "forbidden"));
    assert_eq!(router.get("/v1/webhook_endpoints", secret).await.status, 403);
    assert_eq!(router.get("/v1/opt_outs", secret).await.status, 403);

    let id = reader.body["id"].as_str().unwrap();
    assert_eq!(router.delete(&format!("/v1/admin/keys/{id}"), ADMIN).await.status, 204);
    assert_eq!(router.get("/v1/messages", secret).await.status, 401);
    assert_eq!(router.delete(&format!("/v1/admin/keys/{id}"), ADMIN).await.status, 204);
    let unknown = "/v1/admin/keys/key_00000000000000000000000000";
    assert_eq!(router.delete(unknown, ADMIN).await.status, 404);

    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(1_500);
    let brief = make(json!({"tenant": tenant.id, "name": "brief", "expires_at": soon})).await;
    let secret = brief.body["secret"].as_str().unwrap();
    assert_eq!(router.get("/v1/messages", secret).await.status, 200);
    router.until(async || router.get("/v1/messages", secret).await.status == 401).await;

    let listed = router.get("/v1/admin/keys", ADMIN).await;
    assert!(!listed.body.to_string().contains("secret"), "{listed:?}");
    for (body, pointer, code) in [
        (json!({"name": "x"}), "/tenant", "required"),
        (json!({"tenant": "ten_1", "name": "x"}), "/tenant", "invalid_id"),
        (json!({"tenant": "ten_00000000000000000000000000", "name": "x"}), "/tenant", "not_found"),
        (json!({"tenant": tenant.id, "name": ""}), "/name", "too_short"),
        (
            json!({"tenant": tenant.id, "name": "x", "scopes": ["all"]}),
            "/scopes/0",
            "unknown_scope",
        ),
        (json!({"tenant": tenant.id, "name": "x", "test": "yes"}), "/test", "wrong_type"),
        (
            json!({"tenant": tenant.id, "name": "x", "expires_at": "2001-01-01T00:00:00Z"}),
            "/expires_at",
            "in_the_past",
        ),
    ] {
        let answer = make(body.clone()).await;
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        assert_eq!(errors(&answer.body), [(pointer.to_owned(), code.to_owned())], "{body}");
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_made_with_wrong_limits_is_refused_field_by_field() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let make = |more: Value| {
        let (router, tenant) = (&router, &tenant);
        async move {
            let mut body = json!({"tenant": tenant.id, "name": "x"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            router.post("/v1/admin/keys", ADMIN, &body).await
        }
    };
    for (more, wrong) in [
        (json!({"tier": "huge"}), vec![("/tier", "unknown_tier")]),
        (json!({"tier": "custom"}), vec![("/per_second", "required"), ("/burst", "required")]),
        (json!({"tier": "growth", "burst": 5}), vec![("/burst", "conflict")]),
        (
            json!({"tier": "custom", "per_second": 0, "burst": 1_000_001}),
            vec![
                ("/per_second", "out_of_range"),
                ("/burst", "out_of_range"),
                ("/per_second", "required"),
                ("/burst", "required"),
            ],
        ),
        (
            json!({"allow": ["192.0.2.0/24", "office", 5, "192.0.2.0/33"]}),
            vec![
                ("/allow/1", "invalid_network"),
                ("/allow/2", "invalid_network"),
                ("/allow/3", "invalid_network"),
            ],
        ),
        (json!({"allow": "192.0.2.0/24"}), vec![("/allow", "wrong_type")]),
        (json!({"allow": vec!["192.0.2.1"; 51]}), vec![("/allow", "too_many")]),
    ] {
        let answer = make(more.clone()).await;
        assert_eq!(answer.status, 422, "{more}: {answer:?}");
        let wrong: Vec<_> =
            wrong.into_iter().map(|(at, code)| (at.to_owned(), code.to_owned())).collect();
        assert_eq!(errors(&answer.body), wrong, "{more}");
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_has_the_rate_of_its_tier() {
    let router = Router::start_with("[limits]\ntier = \"starter\"\n").await;
    let tenant = router.tenant("Acme").await;
    for (more, tier, policy) in [
        (json!({}), "starter", "\"key\";q=50;w=5"),
        (json!({"tier": "growth"}), "growth", "\"key\";q=500;w=5"),
        (json!({"tier": "custom", "per_second": 3, "burst": 7}), "custom", "\"key\";q=7;w=3"),
    ] {
        let mut body = json!({"tenant": tenant.id, "name": "x"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = router.post("/v1/admin/keys", ADMIN, &body).await;
        assert_eq!((made.status, made.body["tier"].as_str()), (201, Some(tier)), "{made:?}");
        let answer = router.get("/v1/messages", made.body["secret"].as_str().unwrap()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.headers["ratelimit-policy"], policy);
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_only_from_the_networks_it_is_allowed_from() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let body = json!({"tenant": tenant.id, "name": "office", "allow": ["192.0.2.7/24", "::1"]});
    let made = router.post("/v1/admin/keys", ADMIN, &body).await;
    assert_eq!(made.body["allow"], json!(["192.0.2.0/24", "::1/128"]), "{made:?}");
    let secret = made.body["secret"].as_str().unwrap();
    let from = |forwarded: &'static str| {
        let request = router.client.get(format!("{}/v1/messages", router.url)).bearer_auth(secret);
        router.send(request.header("x-forwarded-for", forwarded))
    };
    // The tests stand where a proxy would.
    let refused = router.get("/v1/messages", secret).await;
    assert_eq!((refused.status, refused.problem()), (403, "address_not_allowed"));
    assert_eq!(from("192.0.2.99").await.status, 200);
    assert_eq!(from("192.0.3.1").await.status, 403);
    // What the caller claims to be stands before what the proxy saw.
    assert_eq!(from("192.0.2.99, 192.0.3.1").await.status, 403);
    assert_eq!(from("192.0.3.1, 192.0.2.99").await.status, 200);
    assert_eq!(from("nonsense").await.status, 403);
    router.stop().await;

    // Without a proxy to be believed, the header is a stranger's word.
    let router = Router::start_with("trusted_proxies = []\n").await;
    let tenant = router.tenant("Acme").await;
    let body = json!({"tenant": tenant.id, "name": "office", "allow": ["192.0.2.0/24"]});
    let made = router.post("/v1/admin/keys", ADMIN, &body).await;
    let secret = made.body["secret"].as_str().unwrap();
    let request = router.client.get(format!("{}/v1/messages", router.url)).bearer_auth(secret);
    let answer = router.send(request.header("x-forwarded-for", "192.0.2.99")).await;
    assert_eq!((answer.status, answer.problem()), (403, "address_not_allowed"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_works_beside_its_successor_for_as_long_as_it_was_told_to() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let body = json!({"tenant": tenant.id, "name": "shop", "scopes": ["messages:read"],
        "allow": ["127.0.0.0/8"], "tier": "custom", "per_second": 5, "burst": 9});
    let old = router.post("/v1/admin/keys", ADMIN, &body).await.body;
    let (id, secret) = (old["id"].as_str().unwrap(), old["secret"].as_str().unwrap());
    let rotate = format!("/v1/admin/keys/{id}/rotate");
    let refused = router.post(&rotate, ADMIN, &json!({"overlap_seconds": 2_592_001})).await;
    assert_eq!(errors(&refused.body), [("/overlap_seconds".to_owned(), "out_of_range".to_owned())]);
    let unknown = "/v1/admin/keys/key_00000000000000000000000000/rotate";
    assert_eq!(router.post(unknown, ADMIN, &json!({})).await.status, 404);

    let new = router.post(&rotate, ADMIN, &json!({"overlap_seconds": 3_600})).await;
    assert_eq!(new.status, 201, "{new:?}");
    for field in ["name", "scopes", "allow", "tier", "per_second", "burst", "test", "tenant"] {
        assert_eq!(new.body[field], old[field], "{field}");
    }
    let successor = new.body["secret"].as_str().unwrap();
    assert_ne!(successor, secret);
    for secret in [secret, successor] {
        assert_eq!(router.get("/v1/messages", secret).await.status, 200);
    }
    let again = router.post(&rotate, ADMIN, &json!({})).await;
    assert_eq!((again.status, again.problem()), (409, "key_ended"));
    let listed = router.get("/v1/admin/keys", ADMIN).await.body;
    let row = |id: &Value| {
        let rows = listed["data"].as_array().unwrap();
        rows.iter().find(|row| row["id"] == *id).unwrap().clone()
    };
    assert_eq!(row(&old["id"])["rotated_to"], new.body["id"]);
    assert!(
        row(&old["id"])["expires_at"].is_string() && row(&new.body["id"])["expires_at"].is_null()
    );

    // With no overlap, the old one is refused from the answer on, however fresh in memory.
    let id = new.body["id"].as_str().unwrap();
    let at_once = format!("/v1/admin/keys/{id}/rotate");
    let third = router.post(&at_once, ADMIN, &json!({"overlap_seconds": 0})).await;
    assert_eq!(router.get("/v1/messages", successor).await.status, 401);
    assert_eq!(
        router.get("/v1/messages", third.body["secret"].as_str().unwrap()).await.status,
        200
    );
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_key_sees_and_withdraws_nothing_but_the_sandboxs_messages() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let body = json!({"to": "+12025550143", "text": "a", "class": "otp"});
    let live = router.post("/v1/messages", &tenant.live, &body).await.body;
    let test = router.post("/v1/messages", &tenant.test, &body).await.body;
    let (live, test) = (live["id"].as_str().unwrap(), test["id"].as_str().unwrap());
    router.dead_letter(live).await;
    for path in ["/v1/messages", "/v1/dead-letters"] {
        let answer = router.get(&format!("{path}/{live}"), &tenant.test).await;
        assert_eq!((answer.status, answer.problem()), (404, "not_found"), "{path}");
        assert_eq!(router.get(&format!("{path}/{live}"), &tenant.live).await.status, 200);
    }
    for path in [format!("/v1/messages/{live}/cancel"), format!("/v1/dead-letters/{live}/retry")] {
        assert_eq!(router.post(&path, &tenant.test, &Value::Null).await.status, 404, "{path}");
    }
    let events = format!("/v1/messages/{live}/events");
    assert_eq!(router.get(&events, &tenant.test).await.status, 404);
    let discarded = router.delete(&format!("/v1/dead-letters/{live}"), &tenant.test).await;
    assert_eq!(discarded.status, 404);
    let listed = router.get("/v1/messages", &tenant.test).await.body;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    assert_eq!(listed["data"][0]["id"], test);
    assert_eq!(router.get("/v1/dead-letters", &tenant.test).await.body["data"], json!([]));
    assert_eq!(
        router.get("/v1/messages", &tenant.live).await.body["data"].as_array().unwrap().len(),
        2
    );
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_key_changes_nothing_that_live_messages_obey() {
    let router = Router::start_with("[webhooks]\nallow_private = true\n").await;
    let tenant = router.tenant("Acme").await;
    let (live, test) = (&tenant.live, &tenant.test);
    let put = async |key: &str, zone: &str| {
        let request = router.client.put(format!("{}/v1/contacts/+12025550143", router.url));
        router.send(request.bearer_auth(key).json(&json!({"time_zone": zone}))).await.status
    };
    // Opt-outs: neither is the other's to see, to make or to lift.
    let out = |who: &str| json!({"recipients": [who]});
    assert_eq!(router.post("/v1/opt_outs", live, &out("+12025550143")).await.body["added"], 1);
    assert_eq!(router.post("/v1/opt_outs", test, &out("+12025550144")).await.body["added"], 1);
    let evidence = json!({"source": "a form", "at": "2026-01-01T00:00:00Z", "text": "yes"});
    let lift = "/v1/opt_outs/+12025550143/lift";
    assert_eq!(router.post(lift, test, &evidence).await.status, 404);
    for (key, whom) in [(live, "+12025550143"), (test, "+12025550144")] {
        let page = router.get("/v1/opt_outs", key).await.body;
        let all: Vec<&Value> = page["data"].as_array().unwrap().iter().collect();
        assert_eq!((all.len(), &all[0]["recipient"]), (1, &json!(whom)));
        let steps = router.get("/v1/opt_outs/history", key).await.body;
        assert_eq!(steps["data"].as_array().unwrap().len(), 1);
        let verdict = async |to: &str| {
            let body = json!({"to": to, "text": "a", "class": "otp"});
            router.post("/v1/messages:check", key, &body).await.body["verdict"].clone()
        };
        assert_eq!(verdict(whom).await, "block");
        let other = if whom == "+12025550143" { "+12025550144" } else { "+12025550143" };
        assert_ne!(verdict(other).await, "block");
    }
    // Contacts.
    assert_eq!((put(live, "America/New_York").await, put(test, "Asia/Tokyo").await), (200, 200));
    let zone = router.get("/v1/contacts/+12025550143", live).await.body["time_zone"].clone();
    assert_eq!(zone, "America/New_York");
    assert_eq!(router.delete("/v1/contacts/+12025550143", test).await.status, 204);
    assert_eq!(router.get("/v1/contacts/+12025550143", live).await.status, 200);
    // Endpoints: each is told of its own world.
    let hook = json!({"url": "http://127.0.0.1:1/"});
    let made = async |key: &str| {
        let made = router.post("/v1/webhook_endpoints", key, &hook).await;
        assert_eq!(made.status, 201, "{made:?}");
        made.body["id"].as_str().unwrap().to_owned()
    };
    let (of_live, of_test) = (made(live).await, made(test).await);
    let path = format!("/v1/webhook_endpoints/{of_live}");
    for method in [reqwest::Method::GET, reqwest::Method::PATCH, reqwest::Method::DELETE] {
        let request = router.client.request(method.clone(), format!("{}{path}", router.url));
        let answer = router.send(request.bearer_auth(test).json(&json!({}))).await;
        assert_eq!(answer.status, 404, "{method}");
    }
    for verb in ["rotate_secret", "test"] {
        let answer = router.post(&format!("{path}/{verb}"), test, &json!({})).await;
        assert_eq!(answer.status, 404, "{verb}");
    }
    let listed = router.get("/v1/webhook_endpoints", test).await.body;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&listed["data"][0]["id"], &listed["data"][0]["test"]),
        (&json!(of_test), &json!(true))
    );
    for key in [live, test] {
        let body = json!({"to": "+12025550145", "text": "a", "class": "otp"});
        assert_eq!(router.post("/v1/messages", key, &body).await.status, 202);
    }
    let told = async |endpoint: &str| {
        let path = format!("/v1/webhook_endpoints/{endpoint}/deliveries");
        let page = router.get(&path, live).await.body;
        let all = page["data"].as_array().unwrap();
        all.iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let of_sandbox: BTreeSet<String> =
        words(&["message.queued", "message.sent", "message.delivered"]);
    assert_eq!(told(&of_test).await, of_sandbox);
    router.until(async || told(&of_live).await.contains("message.held")).await;
    assert!(!told(&of_live).await.contains("message.delivered"));
    let page = router.get(&format!("{path}/deliveries"), live).await.body;
    let delivery = format!("/v1/webhook_deliveries/{}", page["data"][0]["id"].as_str().unwrap());
    assert_eq!(router.get(&delivery, live).await.status, 200);
    assert_eq!(router.get(&delivery, test).await.status, 404);
    assert_eq!(router.post(&format!("{delivery}/replay"), test, &json!({})).await.status, 404);
    // Templates: used, and not changed.
    let template = json!({"name": "a", "text": "a"});
    let template = router.post("/v1/templates", live, &template).await.body["id"].clone();
    let path = format!("/v1/templates/{}", template.as_str().unwrap());
    assert_eq!(router.get(&path, test).await.status, 200);
    let request = router.client.patch(format!("{}{path}", router.url)).bearer_auth(test);
    assert_eq!(router.send(request.json(&json!({"text": "b"}))).await.status, 403);
    assert_eq!(router.delete(&path, test).await.status, 403);
    assert_eq!(router.delete(&path, live).await.status, 204);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_stays_of_the_sandbox_or_real_as_it_was_enrolled() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let enrol = |sandbox: bool, key: &'static str, number: &'static str| {
        let router = &router;
        async move {
            let made = router.post("/v1/admin/enrolment_tokens", ADMIN, &json!({})).await.body;
            let body = json!({"token": made["token"], "name": "shelf", "public_key": key,
                "phones": [{"number": number, "sandbox": sandbox}]});
            router.post("/v1/hosts/enroll", "", &body).await
        }
    };
    let (one, other) = (
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA",
    );
    assert_eq!(enrol(true, one, "+15550100190").await.status, 200);
    let refused = enrol(false, other, "+15550100190").await;
    assert_eq!(errors(&refused.body), [("/phones/0/sandbox".to_owned(), "other_kind".to_owned())]);
    let phones = router.get("/v1/admin/phones", ADMIN).await.body;
    assert_eq!(phones["data"][0]["sandbox"], true);
    assert_eq!(
        router.get("/v1/admin/hosts", ADMIN).await.body["data"].as_array().unwrap().len(),
        1
    );

    // Each kind of key may ask for a number of its own kind only.
    assert_eq!(enrol(false, other, "+15550100191").await.status, 200);
    for (key, from, status) in [
        (&tenant.test, "+15550100190", 202),
        (&tenant.test, "+15550100191", 422),
        (&tenant.live, "+15550100190", 422),
        (&tenant.live, "+15550100191", 202),
    ] {
        let body = json!({"to": "+12025550143", "text": "a", "from": from});
        let sent = router.post("/v1/messages", key, &body).await;
        assert_eq!(sent.status, status, "{from}: {sent:?}");
        if status == 202 {
            // Where there is a sandbox, the message goes there and no story is played.
            assert_eq!(sent.body["status"], "queued");
        }
    }
    let phone = |index: usize| phones["data"][index]["id"].as_str().unwrap().to_owned();
    let all = router.get("/v1/admin/phones", ADMIN).await.body;
    let real = all["data"][0]["id"].as_str().unwrap();
    let replaced = router
        .post(&format!("/v1/admin/phones/{real}/replace"), ADMIN, &json!({"by": phone(0)}))
        .await;
    assert_eq!((replaced.status, replaced.problem()), (409, "cannot_fail_over"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_idempotency_key_is_one_message() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let other = router.tenant("Other").await;
    let send = |key: String, idempotency: &'static str, body: Value| {
        let request = router
            .client
            .post(format!("{}/v1/messages", router.url))
            .bearer_auth(key)
            .header("idempotency-key", idempotency)
            .json(&body);
        router.send(request)
    };
    let body = json!({"to": "+12025550143", "text": "once"});
    let first = send(tenant.live.clone(), "k1", body.clone()).await;
    assert_eq!(first.status, 202);
    assert!(!first.headers.contains_key("idempotency-replayed"));
    // Quoted, and with its fields in another order: the same request.
    let again =
        send(tenant.live.clone(), "\"k1\"", json!({"text": "once", "to": "+12025550143"})).await;
    assert_eq!(again.status, 202);
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.body, first.body);
    let different =
        send(tenant.live.clone(), "k1", json!({"to": "+12025550143", "text": "twice"})).await;
    assert_eq!((different.status, different.problem()), (422, "idempotency_key_reused"));
    let foreign = send(other.live.clone(), "k1", body.clone()).await;
    assert_eq!(foreign.status, 202);
    assert_ne!(foreign.body["id"], first.body["id"]);
    let listed = router.get("/v1/messages", &tenant.live).await;
    assert_eq!(listed.body["data"].as_array().unwrap().len(), 1);

    let refused = send(tenant.live.clone(), "k2", json!({"to": "x", "text": "a"})).await;
    assert_eq!(refused.status, 422);
    assert_eq!(send(tenant.live.clone(), "k2", body.clone()).await.status, 202);
    let bad = send(tenant.live.clone(), "\"\"", body).await;
    assert_eq!((bad.status, bad.problem()), (400, "invalid_idempotency_key"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_replayed_even_when_its_request_would_be_refused_by_now() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let send = |key: &str, body: &Value| {
        let request = router
            .client
            .post(format!("{}/v1/messages", router.url))
            .bearer_auth(key)
            .header("idempotency-key", "k")
            .json(body);
        router.send(request)
    };
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(700);
    let body = json!({"to": "+12025550143", "text": "a", "send_at": soon});
    let first = send(&tenant.live, &body).await;
    assert_eq!(first.status, 202, "{first:?}");
    router.until(async || jiff::Timestamp::now() > soon).await;
    let again = send(&tenant.live, &body).await;
    assert_eq!(again.status, 202, "{again:?}");
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.body, first.body);
    let other = json!({"to": "+12025550143", "text": "b", "send_at": soon});
    let reused = send(&tenant.live, &other).await;
    assert_eq!((reused.status, reused.problem()), (422, "idempotency_key_reused"));
    // What a test key was answered says nothing of a live message.
    let body = json!({"to": "+12025550143", "text": "a"});
    let simulated = send(&tenant.test, &body).await;
    assert_eq!((simulated.status, simulated.body["status"].as_str()), (202, Some("delivered")));
    let reused = send(&tenant.live, &body).await;
    assert_eq!((reused.status, reused.problem()), (422, "idempotency_key_reused"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_one_key_at_once_make_one_message() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let answers = futures_util::future::join_all((0..20).map(|_| {
        let request = router
            .client
            .post(format!("{}/v1/messages", router.url))
            .bearer_auth(&tenant.live)
            .header("idempotency-key", "race")
            .json(&json!({"to": "+12025550143", "text": "once"}));
        router.send(request)
    }))
    .await;
    let accepted: Vec<_> = answers.iter().filter(|answer| answer.status == 202).collect();
    assert!(!accepted.is_empty());
    assert!(accepted.iter().all(|answer| answer.body["id"] == accepted[0].body["id"]));
    assert!(answers.iter().all(|answer| {
        answer.status == 202
            || (answer.status == 409 && answer.problem() == "idempotency_key_in_use")
    }));
    let listed = router.get("/v1/messages", &tenant.live).await;
    assert_eq!(listed.body["data"].as_array().unwrap().len(), 1);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_newest_first_and_filtered() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let mut ids = Vec::new();
    for number in 0..7 {
        let to = format!("+1202555010{}", number % 2);
        let sent = router
            .post("/v1/messages", &tenant.live, &json!({"to": to, "text": format!("{number}")}))
            .await;
        ids.push(sent.body["id"].as_str().unwrap().to_owned());
        // Ids of one millisecond are in no order; the pages' order is that of ids.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    ids.reverse();
    let mut found = Vec::new();
    let mut path = "/v1/messages?limit=3".to_owned();
    loop {
        let page = router.get(&path, &tenant.live).await.body;
        let rows = page["data"].as_array().unwrap();
        assert!(rows.len() <= 3);
        found.extend(rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        assert_eq!(page["has_more"].as_bool().unwrap(), page["next_cursor"].is_string());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/messages?limit=3&cursor={cursor}");
    }
    assert_eq!(found, ids);
    let even = router.get("/v1/messages?to=%2B12025550100", &tenant.live).await;
    assert_eq!(even.body["data"].as_array().unwrap().len(), 4);
    let inbound = router.get("/v1/messages?direction=inbound", &tenant.live).await;
    assert_eq!(inbound.body["data"], json!([]));
    let read = router.get("/v1/messages?status=read&direction=outbound", &tenant.live).await;
    assert_eq!(read.body["data"], json!([]));
    let all = router.get("/v1/admin/messages?limit=100", ADMIN).await;
    assert_eq!(all.body["data"].as_array().unwrap().len(), 7);
    assert_eq!(all.body["data"][0]["tenant"], json!(tenant.id));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_no_phone_has_is_canceled_at_once_and_only_once() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let sent = router
        .post(
            "/v1/messages",
            &tenant.live,
            &json!({"to": "+12025550143", "text": "a", "send_at": later}),
        )
        .await;
    assert_eq!(sent.body["status"], "scheduled");
    let path = format!("/v1/messages/{}", sent.body["id"].as_str().unwrap());
    let canceled = router
        .send(router.client.post(format!("{}{path}/cancel", router.url)).bearer_auth(&tenant.live))
        .await;
    assert_eq!(canceled.status, 200, "{canceled:?}");
    assert_eq!(canceled.body["status"], "canceled");
    assert_eq!(canceled.body["reason"], "canceled");
    let again = router
        .send(router.client.post(format!("{}{path}/cancel", router.url)).bearer_auth(&tenant.live))
        .await;
    assert_eq!((again.status, again.problem()), (409, "not_cancelable"));
    let events = router.get(&format!("{path}/events"), &tenant.live).await;
    let kinds: Vec<&str> = events.body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["scheduled", "canceled"]);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_key_lives_a_whole_life_without_a_phone() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let sent = router
        .post(
            "/v1/messages",
            &tenant.test,
            &json!({"to": "+12025550143", "text": "a", "from": "+12025550199"}),
        )
        .await;
    assert_eq!(sent.status, 202, "{sent:?}");
    assert_eq!(sent.body["status"], "delivered");
    let id = sent.body["id"].as_str().unwrap();
    let events = router.get(&format!("/v1/messages/{id}/events"), &tenant.test).await;
    let kinds: Vec<&str> = events.body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["queued", "sent", "delivered"]);
    let page = router.get(&format!("/v1/messages/{id}/events?limit=2"), &tenant.test).await.body;
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = router
        .get(&format!("/v1/messages/{id}/events?limit=2&cursor={cursor}"), &tenant.test)
        .await
        .body;
    assert_eq!(rest["data"][0]["sequence"], 3);
    assert_eq!(rest["has_more"], false);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_endpoints_show_their_secret_once() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let path = "/v1/webhook_endpoints";
    let make = || {
        let request = router
            .client
            .post(format!("{}{path}", router.url))
            .bearer_auth(&tenant.live)
            .header("idempotency-key", "hook")
            .json(&json!({"url": "http://127.0.0.1:9/hook", "events": ["message.sent"]}));
        router.send(request)
    };
    let made = make().await;
    assert_eq!(made.status, 201, "{made:?}");
    assert!(made.body["secret"].as_str().unwrap().starts_with("whsec_"));
    let replayed = make().await;
    assert_eq!(replayed.body["id"], made.body["id"]);
    assert!(replayed.body.get("secret").is_none(), "{replayed:?}");
    let id = made.body["id"].as_str().unwrap();
    let got = router.get(&format!("{path}/{id}"), &tenant.live).await;
    assert!(got.body.get("secret").is_none());
    assert_eq!(got.body["events"], json!(["message.sent"]));
    let deliveries = router.get(&format!("{path}/{id}/deliveries"), &tenant.live).await;
    assert_eq!(deliveries.body["data"], json!([]));
    assert_eq!(router.delete(&format!("{path}/{id}"), &tenant.live).await.status, 204);
    assert_eq!(router.get(&format!("{path}/{id}"), &tenant.live).await.status, 404);
    assert_eq!(router.delete(&format!("{path}/{id}"), &tenant.live).await.status, 404);
    for (body, pointer, code) in [
        (json!({}), "/url", "required"),
        (json!({"url": "hook"}), "/url", "invalid_url"),
        (json!({"url": "ftp://example.com/"}), "/url", "invalid_url"),
        (json!({"url": "https://user:pass@example.com/"}), "/url", "invalid_url"),
        (json!({"url": "https://example.com/#a"}), "/url", "invalid_url"),
        (
            json!({"url": "https://example.com/", "events": ["message.lost"]}),
            "/events/0",
            "unknown_type",
        ),
        (json!({"url": "https://example.com/", "events": "message.sent"}), "/events", "wrong_type"),
    ] {
        let answer = router.post(path, &tenant.live, &body).await;
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        assert_eq!(errors(&answer.body), [(pointer.to_owned(), code.to_owned())], "{body}");
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_token_enrols_once() {
    let router = Router::start().await;
    let token = async || {
        let made = router
            .send(
                router
                    .client
                    .post(format!("{}/v1/admin/enrolment_tokens", router.url))
                    .bearer_auth(ADMIN),
            )
            .await;
        assert_eq!(made.status, 201, "{made:?}");
        made.body["token"].as_str().unwrap().to_owned()
    };
    let key = "A".repeat(43);
    let body = |token: &str, number: &str| json!({"token": token, "name": "mini-1", "public_key": key, "phones": [{"number": number}]});
    let first = token().await;
    let enrol = async |body: Value| router.post("/v1/hosts/enroll", "", &body).await;

    for (bad, pointer, code) in [
        (
            json!({"token": first, "name": "m", "public_key": "AA", "phones": [{"number": "+12025550190"}]}),
            "/public_key",
            "invalid_key",
        ),
        (
            json!({"token": first, "name": "m", "public_key": key, "phones": []}),
            "/phones",
            "too_few",
        ),
        (json!({"token": first, "name": "m", "public_key": key}), "/phones", "required"),
        (
            json!({"token": first, "name": "m", "public_key": key, "phones": [{"number": "1"}]}),
            "/phones/0/number",
            "invalid_number",
        ),
        (
            json!({"token": first, "name": "m", "public_key": key, "phones": [{"number": "+12025550190", "x": 1}]}),
            "/phones/0/x",
            "unknown_field",
        ),
        (
            json!({"token": first, "name": "m", "public_key": key, "phones": [{"number": "+12025550190"}, {"number": "+12025550190"}]}),
            "/phones",
            "repeated",
        ),
        (
            json!({"token": first, "name": "m", "public_key": key, "phones": [{"number": "+12025550190", "channels": ["fax"]}]}),
            "/phones/0/channels/0",
            "unknown_channel",
        ),
    ] {
        let answer = enrol(bad.clone()).await;
        assert_eq!(answer.status, 422, "{bad}: {answer:?}");
        assert_eq!(errors(&answer.body), [(pointer.to_owned(), code.to_owned())], "{bad}");
    }
    // The token outlived the refusals.
    let enrolled = enrol(body(&first, "+12025550190")).await;
    assert_eq!(enrolled.status, 200, "{enrolled:?}");
    // An answer that was lost on the way can be had again, by whoever has the token.
    let third = token().await;
    let keyed = async |body: Value| {
        let request = router.client.post(format!("{}/v1/hosts/enroll", router.url)).json(&body);
        router.send(request.header("idempotency-key", "e")).await
    };
    let lost = keyed(body(&third, "+12025550192")).await;
    assert_eq!(keyed(body(&third, "+12025550192")).await.body, lost.body);
    assert_eq!(
        keyed(body("sbe_nothing", "+12025550192")).await.problem(),
        "idempotency_key_reused"
    );
    for bad in [first.as_str(), "sbe_nothing"] {
        let refused = enrol(body(bad, "+12025550191")).await;
        assert_eq!((refused.status, refused.problem()), (401, "invalid_enrolment_token"));
    }
    let second = token().await;
    let again = enrol(body(&second, "+12025550191")).await;
    assert_eq!(again.body["host"], enrolled.body["host"], "the same key is the same host");
    let hosts = router.get("/v1/admin/hosts", ADMIN).await;
    assert_eq!(hosts.body["data"].as_array().unwrap().len(), 1);
    assert_eq!(hosts.body["data"][0]["phones"].as_array().unwrap().len(), 3);
    let phones = router.get("/v1/admin/phones", ADMIN).await;
    assert_eq!(phones.body["data"].as_array().unwrap().len(), 3);
    assert_eq!(phones.body["data"][0]["channels"], json!(["imessage", "sms"]));
    assert_eq!(phones.body["data"][0]["online"], false);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_asks_too_often_is_told_when_to_come_back() {
    let router = Router::start_with("[limits]\ngrowth = { per_second = 1, burst = 3 }\n").await;
    let tenant = router.tenant("Acme").await;
    let mut last = None;
    for _ in 0..6 {
        last = Some(router.get("/v1/messages", &tenant.live).await);
    }
    let last = last.unwrap();
    assert_eq!((last.status, last.problem()), (429, "rate_limited"));
    assert_eq!(last.headers["retry-after"], "1");
    assert_eq!(last.headers["ratelimit-policy"], "\"key\";q=3;w=3");
    assert_eq!(last.headers["ratelimit"], "\"key\";r=0;t=1");
    for (header, value) in [("limit", "3"), ("remaining", "0"), ("reset", "1")] {
        assert_eq!(last.headers[format!("ratelimit-{header}").as_str()], value, "{header}");
    }
    // Another key of the same tenant has a bucket of its own.
    assert_eq!(router.get("/v1/messages", &tenant.test).await.status, 200);
    router.stop().await;
}

/// What comes back on a bare connection to which `request` was written, up to its end or `enough`.
async fn raw(router: &Router, request: &str, enough: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = router.url.strip_prefix("http://").expect("it is plain HTTP");
    let mut connection = tokio::net::TcpStream::connect(address).await.expect("it listens");
    connection.write_all(request.as_bytes()).await.expect("it takes bytes");
    let mut out = Vec::new();
    while !String::from_utf8_lossy(&out).contains(enough) {
        let read = connection.read_buf(&mut out);
        let read = tokio::time::timeout(std::time::Duration::from_secs(10), read).await;
        if read.expect("it answers in time").expect("it answers") == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_long_or_too_slow_is_refused_without_waiting_for_it() {
    let router = Router::start_with("[limits]\nrequest_timeout_ms = 600\n").await;
    let key = router.tenant("Acme").await.live;
    let head = |length: &str| {
        format!(
            "POST /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\n{length}\r\n\r\n"
        )
    };
    let long =
        raw(&router, &head("content-length: 999999999\r\nexpect: 100-continue"), "request_id")
            .await;
    assert!(long.starts_with("HTTP/1.1 413 ") && long.contains("body_too_large"), "{long}");
    let slow = format!("{}{{\"to\"", head("content-length: 50"));
    let slow = raw(&router, &slow, "request_id").await;
    assert!(slow.starts_with("HTTP/1.1 408 ") && slow.contains("body_too_slow"), "{slow}");
    let chunks =
        format!("{}4000\r\n{}\r\n", head("transfer-encoding: chunked"), " ".repeat(0x4000));
    let endless = format!("{chunks}{}", format!("4000\r\n{}\r\n", " ".repeat(0x4000)).repeat(20));
    let endless = raw(&router, &endless, "request_id").await;
    assert!(endless.starts_with("HTTP/1.1 413 "), "{endless}");
    let list = router.get("/v1/messages", &key).await;
    assert_eq!(list.body["data"], json!([]));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_or_hangs_is_a_problem_and_not_a_cut_connection() {
    use axum::routing::get;
    use tower::ServiceExt as _;
    async fn panics() {
        panic!("on purpose");
    }
    let router = Router::start_with("[limits]\nrequest_timeout_ms = 200\n").await;
    let app = std::sync::Arc::clone(&router.app);
    let routes: axum::Router = axum::Router::new()
        .route("/panics", get(panics))
        .route("/hangs", get(std::future::pending::<()>))
        .layer(axum::middleware::from_fn_with_state(app, router::error::answer));
    for (path, status, code) in [("/panics", 500, "internal"), ("/hangs", 504, "timeout")] {
        let request = axum::http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        let answer = routes.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let body = axum::body::to_bytes(answer.into_body(), 10_000).await.unwrap();
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["code"], code);
        assert!(!problem.to_string().contains("on purpose"), "{problem}");
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_metrics_and_the_document_need_no_key() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    router.post("/v1/messages", &tenant.live, &json!({"to": "+12025550143", "text": "a"})).await;
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(router.get(path, "").await.status, 200, "{path}");
    }
    let scrape = async || {
        let request = router.client.get(format!("{}/metrics", router.url));
        request.send().await.unwrap().text().await.unwrap()
    };
    // What waits is counted beside the requests, for the first time right after the start.
    router.until(async || scrape().await.contains("\nswitchboard_phones_ready ")).await;
    let text = scrape().await;
    assert!(text.contains("switchboard_messages_accepted_total"), "{text}");
    assert!(text.contains("route=\"/v1/messages\""), "{text}");
    for name in ["jobs_waiting", "webhook_jobs_pending", "unplaced_events", "phones_ready"] {
        assert!(text.contains(&format!("# HELP switchboard_{name} ")), "{name}: {text}");
        assert!(text.contains(&format!("\nswitchboard_{name} ")), "{name}: {text}");
    }
    // What callers make up is no label.
    for method in ["MADE", "UP"] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = router.client.request(method, format!("{}/v1/messages", router.url));
        assert_eq!(router.send(request).await.problem(), "method_not_allowed");
    }
    let request = router.client.get(format!("{}/metrics", router.url));
    let text = request.send().await.unwrap().text().await.unwrap();
    assert!(!text.contains("MADE") && text.contains("method=\"other\""), "{text}");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_reads_any_story_and_withdraws_any_message() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let sent = router
        .post(
            "/v1/messages",
            &tenant.live,
            &json!({"to": "+12025550143", "text": "a", "send_at": later}),
        )
        .await;
    let id = sent.body["id"].as_str().unwrap().to_owned();
    for more in ["", "/events", "/events?limit=1"] {
        let own = router.get(&format!("/v1/messages/{id}{more}"), &tenant.live).await;
        let same = router.get(&format!("/v1/admin/messages/{id}{more}"), ADMIN).await;
        assert_eq!((own.status, same.status), (200, 200), "{same:?}");
        assert_eq!(own.body, same.body, "{more}");
    }
    let cancel = format!("/v1/admin/messages/{id}/cancel");
    // A tenant's key opens none of it and changes nothing.
    let refused = router.post(&cancel, &tenant.live, &json!({})).await;
    assert_eq!((refused.status, refused.problem()), (401, "unauthenticated"));
    let own = router.get(&format!("/v1/messages/{id}"), &tenant.live).await;
    assert_eq!(own.body["status"], "scheduled");

    let canceled = router.post(&cancel, ADMIN, &json!({})).await;
    assert_eq!((canceled.status, &canceled.body["status"]), (200, &json!("canceled")));
    let own = router.get(&format!("/v1/messages/{id}"), &tenant.live).await;
    assert_eq!(own.body, canceled.body);
    let again = router.post(&cancel, ADMIN, &json!({})).await;
    assert_eq!((again.status, again.problem()), (409, "not_cancelable"));
    let story = router.get(&format!("/v1/admin/messages/{id}/events"), ADMIN).await;
    assert_eq!(story.body["data"][1]["type"], "canceled");

    let unknown = protocol::MessageId::new(1, [1; 10]).to_string();
    for id in [unknown.as_str(), "nonsense"] {
        for more in ["", "/events"] {
            let answer = router.get(&format!("/v1/admin/messages/{id}{more}"), ADMIN).await;
            assert_eq!((answer.status, answer.problem()), (404, "not_found"), "{id}{more}");
        }
        let answer =
            router.post(&format!("/v1/admin/messages/{id}/cancel"), ADMIN, &json!({})).await;
        assert_eq!((answer.status, answer.problem()), (404, "not_found"), "{id}");
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_is_shown_and_what_nobody_knew_is_settled_by_the_operator() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let body = json!({"to": "+12025550143", "text": "a", "class": "transactional"});
    let sent = router.post("/v1/messages", &tenant.live, &body).await;
    let id = sent.body["id"].as_str().unwrap().to_owned();
    let decisions = format!("/v1/messages/{id}/decisions");
    let shown = loop {
        let shown = router.get(&decisions, &tenant.live).await;
        assert_eq!(shown.status, 200, "{shown:?}");
        if shown.body["data"][0].is_object() {
            break shown;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let first = &shown.body["data"][0];
    assert_eq!(first["number"], 1);
    assert_eq!(
        (&first["verdict"], &first["reason"]),
        (&json!("hold"), &json!("no_phone_available"))
    );
    assert_eq!(
        first["text_sha256"],
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    );
    assert!(first["rules"].as_str().unwrap().contains('/'), "{first}");
    let admin = router.get(&format!("/v1/admin/messages/{id}/decisions"), ADMIN).await;
    assert_eq!(admin.body, shown.body);
    let other = router.tenant("Other").await;
    let foreign = router.get(&decisions, &other.live).await;
    assert_eq!((foreign.status, foreign.problem()), (404, "not_found"));

    let settle = format!("/v1/admin/messages/{id}/settle");
    for (body, status, code) in [
        (json!({"outcome": "failed"}), 409, "not_unknown"),
        (json!({"outcome": "lost"}), 422, "invalid_request"),
        (json!({}), 422, "invalid_request"),
        (json!({"outcome": "sent", "because": 1}), 422, "invalid_request"),
    ] {
        let refused = router.post(&settle, ADMIN, &body).await;
        assert_eq!((refused.status, refused.problem()), (status, code), "{body}: {refused:?}");
    }
    let refused = router.post(&settle, &tenant.live, &json!({"outcome": "sent"})).await;
    assert_eq!(refused.status, 401);
    let (whose, which) = (tenant.id.parse().unwrap(), id.parse().unwrap());
    let now = router.app.clock.now();
    let unknown = move |tx: &mut router::store::Tx<'_>| {
        use router::store::change::{self, Change};
        let reason = Some(protocol::Reason::HostLost);
        let change = Change { reason, ..Change::to(protocol::Status::Unknown, now) };
        router::store::dispatch::drop_job(tx, &whose, &which)?;
        change::make(tx, &whose, &which, &change)
    };
    assert!(router.app.store.write(unknown).await.unwrap());
    let settled = router.post(&settle, ADMIN, &json!({"outcome": "failed"})).await;
    assert_eq!((settled.status, &settled.body["status"]), (200, &json!("failed")), "{settled:?}");
    assert_eq!(settled.body["reason"], "host_lost");
    let again = router.post(&settle, ADMIN, &json!({"outcome": "sent"})).await;
    assert_eq!((again.status, again.problem()), (409, "not_unknown"));
    let story = router.get(&format!("/v1/messages/{id}/events"), &tenant.live).await;
    let last = story.body["data"].as_array().unwrap().last().unwrap();
    assert_eq!(last["detail"], "settled by the operator", "{story:?}");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_are_not_sent_in_lists() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let code = |to: &str| json!({"to": to, "text": "1234", "class": "otp"});
    let other = json!({"to": "+12025550145", "text": "a"});
    let list = json!({"messages": [code("+12025550143"), other, code("+12025550144")]});
    let answer = router.post("/v1/messages/batch", &tenant.live, &list).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!((&answer.body["accepted"], &answer.body["refused"]), (&json!(1), &json!(2)));
    let errors = &answer.body["results"][2]["errors"][0];
    assert_eq!(
        (&errors["code"], &errors["pointer"]),
        (&json!("not_for_batches"), &json!("/messages/2/class"))
    );
    let one = json!({"messages": [code("+12025550143"), other]});
    let answer = router.post("/v1/messages/batch", &tenant.live, &one).await;
    assert_eq!(answer.body["accepted"], 2, "{answer:?}");
    router.stop().await;
}

/// A message of somebody unknown, as a phone told it.
fn from_a_stranger(at: protocol::UnixMs) -> protocol::pipe::Received {
    protocol::pipe::Received {
        guid: "guid-of-a-stranger".to_owned(),
        conversation: protocol::pipe::Conversation {
            kind: protocol::pipe::ConversationKind::Direct,
            id: "+12025550177".to_owned(),
        },
        from: "+12025550177".parse().expect("it is a number"),
        text: "Who is this?".to_owned(),
        attachments: Vec::new(),
        service: protocol::Channel::Imessage,
        at,
        late: false,
        details: Box::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_reads_what_belongs_to_nobody() {
    use router::store::inbound;

    let router = Router::start().await;
    let now = router.app.clock.now();
    let id = protocol::MessageId::new(now.0, [2; 10]);
    let phone = protocol::PhoneId::new(now.0, [3; 10]);
    let (message, by) = (id.clone(), phone.clone());
    let store = router.app.store.clone();
    let taken = store
        .write(move |tx| {
            let received = from_a_stranger(now);
            inbound::store_received(
                tx,
                (&inbound::nobody(), false),
                (&message, &by),
                &received,
                now,
            )?;
            // The guid was pruned or never kept; the message itself is proof enough.
            inbound::take_guid(tx, &by, (&received.guid, "j"), now)
        })
        .await
        .unwrap();
    assert!(!taken, "a message reported again is taken twice");
    let got = router.get(&format!("/v1/admin/messages/{id}"), ADMIN).await;
    assert_eq!((got.status, &got.body["text"]), (200, &json!("Who is this?")), "{got:?}");
    let story = router.get(&format!("/v1/admin/messages/{id}/events"), ADMIN).await;
    assert_eq!(story.body["data"][0]["type"], "received");
    let cancel = router.post(&format!("/v1/admin/messages/{id}/cancel"), ADMIN, &json!({})).await;
    assert_eq!((cancel.status, cancel.problem()), (409, "not_cancelable"));

    let by = phone.clone();
    store
        .write(move |tx| {
            for seq in 1..=5 {
                let frame = protocol::link::EventFrame {
                    phone: by.clone(),
                    journal: "journal".to_owned(),
                    seq,
                    at: now,
                    epoch: None,
                    event: protocol::pipe::Event::Received(from_a_stranger(now)),
                };
                let at = now.plus_ms(i64::try_from(seq / 3).unwrap());
                inbound::keep_unplaced(tx, &frame, "belongs to no tenant", at)?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let mut seqs = Vec::new();
    let mut path = "/v1/admin/unplaced_events?limit=2".to_owned();
    loop {
        let page = router.get(&path, ADMIN).await;
        assert_eq!(page.status, 200, "{page:?}");
        for row in page.body["data"].as_array().unwrap() {
            assert_eq!(row["phone"], json!(phone));
            assert_eq!(row["journal"], "journal");
            assert_eq!(row["type"], "received");
            assert_eq!(row["why"], "belongs to no tenant");
            assert!(row["at"].is_string());
            assert_eq!(row["body"]["text"], "Who is this?");
            seqs.push(row["seq"].as_u64().unwrap());
        }
        let Some(cursor) = page.body["next_cursor"].as_str() else { break };
        path = format!("/v1/admin/unplaced_events?limit=2&cursor={cursor}");
    }
    assert_eq!(seqs, [5, 4, 3, 2, 1]);
    let foreign = router.get("/v1/admin/unplaced_events?cursor=bXNnXzA", ADMIN).await;
    assert_eq!((foreign.status, foreign.problem()), (422, "invalid_request"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_key_opens_no_route_of_the_operator() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let document = router.get("/openapi.json", "").await.body;
    let mut walked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        if !path.starts_with("/v1/admin/") {
            continue;
        }
        let path = path.replace("{id}", &protocol::MessageId::new(1, [1; 10]).to_string());
        for method in methods.as_object().unwrap().keys() {
            let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            for key in [&tenant.live, &tenant.test] {
                let url = format!("{}{path}", router.url);
                let request = router.client.request(method.clone(), url).bearer_auth(key);
                let answer = router.send(request).await;
                let found = (answer.status, answer.problem());
                assert_eq!(found, (401, "unauthenticated"), "{method} {path}");
            }
            walked += 1;
        }
    }
    assert!(walked >= 12, "only {walked} routes were walked");
    router.stop().await;
}

#[test]
fn the_document_is_the_committed_one() {
    let document = serde_json::to_string_pretty(&router::api::openapi()).unwrap();
    insta::assert_snapshot!("openapi", document);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_checked_rule_by_rule_without_being_sent() {
    let router = Router::start_with("[compliance]\nhours = \"strict\"\n").await;
    let tenant = router.tenant("Acme").await;
    let body = json!({"to": "+18505550143", "text": "Hello", "class": "otp", "ttl_seconds": 300});
    let answer = router.post("/v1/messages:check", &tenant.live, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let rules: Vec<_> = answer.body["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| (rule["rule"].as_str().unwrap(), rule["verdict"].as_str().unwrap()))
        .collect();
    assert_eq!(
        rules,
        [
            ("opt_out", "send"),
            ("expiry", "send"),
            ("quiet_hours", "send"),
            ("content", "send"),
            ("account", "send"),
            ("phone", "hold")
        ]
    );
    assert_eq!(
        (&answer.body["verdict"], &answer.body["reason"]),
        (&json!("hold"), &json!("no_phone_available"))
    );
    assert_eq!(answer.body["time_zones"], json!(["America/Chicago", "America/New_York"]));
    assert_eq!(
        answer.body["content"],
        json!({"characters": 5, "encoding": "gsm7", "segments": 1, "links": false})
    );
    assert!(answer.body.get("phone").is_none());
    // Without a sandbox the story of a test key's message is played, as POST does.
    let played = router.post("/v1/messages:check", &tenant.test, &body).await;
    assert_eq!((&played.body["verdict"], &played.body["from"]), (&json!("send"), &Value::Null));
    // An opt-out wins; a claim that is not proven is judged as marketing; what is to be sent later is judged as it will be.
    router
        .post(
            "/v1/opt_outs",
            &tenant.live,
            &json!({"recipients": ["+18505550143"], "source": "call"}),
        )
        .await;
    let sunday = json!({"to": "+18505550143", "text": "Hello", "class": "conversational", "send_at": next_sunday().unwrap()});
    let answer = router.post("/v1/messages:check", &tenant.live, &sunday).await;
    assert_eq!(
        (&answer.body["verdict"], &answer.body["reason"]),
        (&json!("block"), &json!("opted_out")),
        "{answer:?}"
    );
    assert_eq!(answer.body["class"], "marketing");
    let quiet = answer.body["rules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|rule| rule["rule"] == "quiet_hours")
        .unwrap();
    assert_eq!((&quiet["verdict"], &quiet["reason"]), (&json!("hold"), &json!("quiet_hours")));
    assert!(
        quiet["until"].as_str().unwrap().contains("T15:00:00")
            || quiet["until"].as_str().unwrap().contains("T16:00:00"),
        "{quiet}"
    );
    let wrong =
        router.post("/v1/messages:check", &tenant.live, &json!({"to": "x", "text": ""})).await;
    assert_eq!(wrong.status, 422);
    assert_eq!(router.get("/v1/messages", &tenant.live).await.body["data"], json!([]));
    router.stop().await;
}

/// Noon of a Sunday in Chicago that is at least a day away.
fn next_sunday() -> Option<String> {
    let today = jiff::Timestamp::now().in_tz("America/Chicago").ok()?.date();
    let sunday = today.tomorrow().ok()?.nth_weekday(1, jiff::civil::Weekday::Sunday).ok()?;
    Some(sunday.at(12, 0, 0, 0).in_tz("America/Chicago").ok()?.timestamp().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn opt_outs_are_kept_by_hand_and_lifted_only_with_evidence() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let (who, other) = ("+12025550143", "anna@example.org");
    let waiting =
        router.post("/v1/messages", &tenant.live, &json!({"to": who, "text": "hi"})).await;
    let wrong =
        router.post("/v1/opt_outs", &tenant.live, &json!({"recipients": [who, "nobody"]})).await;
    assert_eq!(
        (wrong.status, &wrong.body["errors"][0]["pointer"]),
        (422, &json!("/recipients/1")),
        "{wrong:?}"
    );
    assert_eq!(
        router.get("/v1/opt_outs", &tenant.live).await.body["data"],
        json!([]),
        "nothing was done"
    );
    let out = router
        .post(
            "/v1/opt_outs",
            &tenant.live,
            &json!({"recipients": [who, other, who], "source": "by phone"}),
        )
        .await;
    assert_eq!(out.body, json!({"added": 2, "already": 1, "stopped": 1}), "{out:?}");
    let id = waiting.body["id"].as_str().unwrap();
    let blocked = router.get(&format!("/v1/messages/{id}"), &tenant.live).await;
    assert_eq!(
        (&blocked.body["status"], &blocked.body["reason"]),
        (&json!("blocked"), &json!("opted_out"))
    );
    let lift = format!("/v1/opt_outs/{who}/lift");
    for bad in [
        json!({}),
        json!({"source": "form", "text": "yes"}),
        json!({"source": "form", "text": "yes", "at": "2999-01-01T00:00:00Z"}),
    ] {
        assert_eq!(router.post(&lift, &tenant.live, &bad).await.status, 422, "{bad}");
    }
    let agreed = |at: protocol::UnixMs| json!({"source": "web form", "at": at, "text": "I agree to get texts."});
    // A consent that they have taken back since.
    let older = agreed(protocol::UnixMs(router.app.clock.now().0 - 60_000));
    let refused = router.post(&lift, &tenant.live, &older).await;
    assert_eq!(
        (refused.status, &refused.body["errors"][0]["pointer"], &refused.body["errors"][0]["code"]),
        (422, &json!("/at"), &json!("consent_is_older")),
        "{refused:?}"
    );
    let evidence = agreed(router.app.clock.now());
    let again = async |path: &str, body: &Value, key: &str| {
        let request = router.client.post(format!("{}{path}", router.url)).bearer_auth(&tenant.live);
        router.send(request.header("idempotency-key", key).json(body)).await
    };
    assert_eq!(again(&lift, &evidence, "lift-1").await.status, 204);
    assert_eq!(
        router.post(&lift, &tenant.live, &evidence).await.status,
        404,
        "it is lifted already"
    );
    let repeated = again(&lift, &evidence, "lift-1").await;
    assert_eq!((repeated.status, repeated.body), (204, Value::Null));
    assert!(repeated.headers.contains_key("idempotency-replayed"));
    let other_body = agreed(protocol::UnixMs(router.app.clock.now().0 - 1));
    assert_eq!(again(&lift, &other_body, "lift-1").await.problem(), "idempotency_key_reused");
    let history =
        router.get(&format!("/v1/opt_outs/history?recipient=%2B{}", &who[1..]), &tenant.live).await;
    let steps: Vec<_> = history.body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["action"].as_str().unwrap())
        .collect();
    assert_eq!(steps, ["opted_in", "opted_out"]);
    assert_eq!(history.body["data"][0]["evidence"], evidence);
    assert_eq!(history.body["data"][1]["evidence"], json!({"source": "by phone"}));
    // The operator's word holds for every tenant, and no tenant lifts it.
    let all = router
        .post("/v1/admin/tenants/everybody/opt_outs", ADMIN, &json!({"recipients": [who]}))
        .await;
    assert_eq!(all.body["added"], 1, "{all:?}");
    assert_eq!(router.post(&lift, &tenant.live, &evidence).await.status, 404);
    let checked =
        router.post("/v1/messages:check", &tenant.live, &json!({"to": who, "text": "hi"})).await;
    assert_eq!(checked.body["reason"], "opted_out");
    let everybody = format!("/v1/admin/tenants/everybody/opt_outs/{who}/lift");
    assert_eq!(router.post(&everybody, ADMIN, &older).await.status, 422);
    let now = agreed(router.app.clock.now());
    assert_eq!(router.post(&everybody, ADMIN, &now).await.status, 204);
    // Whoever says STOP again after they had agreed is not written to, whatever is repeated.
    let anew = json!({"recipients": [who]});
    router
        .until(async || router.app.clock.now() > evidence["at"].as_str().unwrap().parse().unwrap())
        .await;
    assert_eq!(router.post("/v1/opt_outs", &tenant.live, &anew).await.body["added"], 1);
    assert_eq!(router.post(&lift, &tenant.live, &evidence).await.status, 422);
    assert_eq!(again(&lift, &evidence, "lift-1").await.status, 204, "the answer of then");
    let page = router.get("/v1/opt_outs", &tenant.live).await.body;
    assert!(page["data"].to_string().contains(who), "{page}");
    // So is the decision of whoever has looked at it.
    let step = history.body["data"][1]["id"].as_str().unwrap();
    let review = format!("/v1/opt_outs/history/{step}/review");
    assert_eq!(again(&review, &Value::Null, "look-1").await.status, 204);
    let repeated = again(&review, &Value::Null, "look-1").await;
    assert_eq!(repeated.status, 204);
    assert!(repeated.headers.contains_key("idempotency-replayed"));
    assert_eq!(router.get("/v1/admin/tenants/ten_x/opt_outs", ADMIN).await.status, 404);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_set_whole_and_every_wrong_field_is_named() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let path = format!("/v1/admin/tenants/{}/rules", tenant.id);
    let put = async |body: Value| {
        let request = router.client.put(format!("{}{path}", router.url)).bearer_auth(ADMIN);
        router.send(request.json(&body)).await
    };
    let bad = json!({
        "hours": "whenever", "hours_window": "9:00-18:000", "time_zone": "Mars/Base", "unknown_zone": "guess",
        "stop_words": ["alto", "..."], "segments_max": 0, "help_text": "", "transactional_hours": "no", "hour": 1,
    });
    let answer = put(bad).await;
    let mut pointers: Vec<_> = answer.body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["pointer"].as_str().unwrap().to_owned())
        .collect();
    pointers.sort();
    assert_eq!(
        pointers,
        [
            "/help_text",
            "/hour",
            "/hours",
            "/hours_window",
            "/segments_max",
            "/stop_words/1",
            "/time_zone",
            "/transactional_hours",
            "/unknown_zone"
        ],
        "{answer:?}"
    );
    let good = json!({"hours": "us_states", "stop_words": ["alto"], "transactional_hours": false});
    assert_eq!(put(good).await.status, 200);
    let read = router.get("/v1/rules", &tenant.live).await;
    assert_eq!(
        (&read.body["hours"], &read.body["stop_words"], &read.body["confirm_opt_out"]),
        (&json!("us_states"), &json!(["alto"]), &json!(true))
    );
    // What is left out goes back to its default.
    assert_eq!(put(json!({})).await.status, 200);
    assert!(router.get("/v1/rules", &tenant.live).await.body.get("hours").is_none());
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_shown_tried_again_as_a_new_message_and_discarded() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let body =
        json!({"to": "+12025550143", "text": "again", "ttl_seconds": 600, "metadata": {"a": "b"}});
    let mut ids = Vec::new();
    for _ in 0..3 {
        let sent = router.post("/v1/messages", &tenant.live, &body).await;
        ids.push(sent.body["id"].as_str().unwrap().to_owned());
        router.dead_letter(&ids[ids.len() - 1]).await;
    }
    for (path, key) in
        [("/v1/dead-letters", tenant.live.as_str()), ("/v1/admin/dead-letters", ADMIN)]
    {
        let page = router.get(path, key).await;
        assert_eq!(page.body["data"].as_array().unwrap().len(), 3, "{page:?}");
        let one = router.get(&format!("{path}/{}", ids[0]), key).await;
        assert_eq!((one.status, one.body["reason"].as_str()), (200, Some("attempts_exhausted")));
        assert_eq!(one.body["tenant"], tenant.id.as_str());
        assert_eq!(one.body["message"]["id"], ids[0].as_str());
    }
    let again = router
        .post(&format!("/v1/dead-letters/{}/retry", ids[0]), &tenant.live, &json!(null))
        .await;
    assert_eq!(again.status, 202, "{again:?}");
    assert_ne!(again.body["id"], ids[0].as_str());
    for (field, value) in
        [("text", json!("again")), ("metadata", json!({"a": "b"})), ("attempts", json!(0))]
    {
        assert_eq!(again.body[field], value, "{field}");
    }
    let old = router.get(&format!("/v1/messages/{}", ids[0]), &tenant.live).await;
    assert_eq!(old.body["status"], "failed", "the old one has ended and stays so");
    // Once only, and never what was sent after all.
    let path = format!("/v1/dead-letters/{}/retry", ids[0]);
    assert_eq!(router.post(&path, &tenant.live, &json!(null)).await.status, 404);
    let which = ids[1].clone();
    router
        .app
        .store
        .write(move |tx| {
            tx.execute("UPDATE messages SET status = 'sent' WHERE id = ?1", router::params![which])
        })
        .await
        .unwrap();
    let path = format!("/v1/admin/dead-letters/{}/retry", ids[1]);
    let refused = router.post(&path, ADMIN, &json!(null)).await;
    assert_eq!((refused.status, refused.problem()), (409, "not_retryable"));
    for (id, path, key) in [
        (&ids[1], "/v1/dead-letters", tenant.live.as_str()),
        (&ids[2], "/v1/admin/dead-letters", ADMIN),
    ] {
        assert_eq!(router.delete(&format!("{path}/{id}"), key).await.status, 204);
        assert_eq!(router.delete(&format!("{path}/{id}"), key).await.status, 404);
    }
    let page = router.get("/v1/admin/dead-letters", ADMIN).await;
    assert_eq!(page.body["data"], json!([]));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_changed_switched_off_and_on_tested_and_replayed() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let key = &tenant.live;
    let body = json!({"url": "http://127.0.0.1:1/hook", "description": "the shop"});
    let made = router.post("/v1/webhook_endpoints", key, &body).await.body;
    assert_eq!(made["description"], "the shop");
    let path = format!("/v1/webhook_endpoints/{}", made["id"].as_str().unwrap());
    let patch = |body: Value| {
        let request = router.client.patch(format!("{}{path}", router.url)).bearer_auth(key);
        router.send(request.json(&body))
    };
    for (body, pointer, code) in [
        (json!({"url": "ftp://a.example/"}), "/url", "invalid_url"),
        (json!({"url": "https://user:secret@a.example/"}), "/url", "invalid_url"),
        (json!({"events": ["message.lost"]}), "/events/0", "unknown_type"),
        (json!({"disabled": "yes"}), "/disabled", "wrong_type"),
        (json!({"secret": "whsec_AAAA"}), "/secret", "unknown_field"),
        (json!({"description": "x".repeat(201)}), "/description", "too_long"),
    ] {
        let answer = patch(body.clone()).await;
        assert_eq!(errors(&answer.body), [(pointer.to_owned(), code.to_owned())], "{body}");
    }
    let changed = patch(json!({"events": ["message.sent"], "description": ""})).await;
    assert_eq!(changed.body["events"], json!(["message.sent"]), "{changed:?}");
    assert!(changed.body["description"].is_null());
    assert_eq!(changed.body["url"], made["url"]);

    // A test comes whatever the types, and every attempt of it can be looked at.
    let tested = router.post(&format!("{path}/test"), key, &Value::Null).await;
    assert_eq!((tested.status, tested.body["type"].as_str()), (202, Some("webhook_endpoint.test")));
    let delivery = format!("/v1/webhook_deliveries/{}", tested.body["id"].as_str().unwrap());
    router
        .until(async || {
            !router.get(&delivery, key).await.body["attempts"].as_array().unwrap().is_empty()
        })
        .await;
    let shown = router.get(&delivery, key).await.body;
    assert!(shown["attempts"][0]["error"].as_str().unwrap().starts_with("could not connect"));
    assert!(shown["attempts"][0]["duration_ms"].is_u64());
    let replayed = router.post(&format!("{delivery}/replay"), key, &Value::Null).await;
    assert_eq!((replayed.status, replayed.body["state"].as_str()), (202, Some("pending")));

    let off = patch(json!({"disabled": true})).await.body;
    assert_eq!(off["disabled_reason"], "by_tenant");
    router.until(async || router.get(&delivery, key).await.body["state"] == "failed").await;
    let range = json!({"since": "2020-01-01T00:00:00Z"});
    for (path, body) in [
        (format!("{path}/test"), Value::Null),
        (format!("{path}/replay"), range.clone()),
        (format!("{delivery}/replay"), Value::Null),
    ] {
        let refused = router.post(&path, key, &body).await;
        assert_eq!((refused.status, refused.problem()), (409, "endpoint_disabled"), "{path}");
    }
    let on = patch(json!({"disabled": false})).await.body;
    assert!(on["disabled_at"].is_null() && on["failures"] == 0, "{on}");
    for (body, pointer, code) in [
        (json!({}), "/since", "required"),
        (json!({"since": "yesterday"}), "/since", "invalid_time"),
        (
            json!({"since": "2020-01-01T00:00:00Z", "until": "2020-01-01T00:00:00Z"}),
            "/until",
            "before_since",
        ),
        (json!({"since": "2020-01-01T00:00:00Z", "after": "evt_1"}), "/after", "invalid_id"),
    ] {
        let answer = router.post(&format!("{path}/replay"), key, &body).await;
        assert_eq!(errors(&answer.body), [(pointer.to_owned(), code.to_owned())], "{body}");
    }
    let replayed = router.post(&format!("{path}/replay"), key, &range).await;
    assert_eq!((replayed.status, &replayed.body), (202, &json!({"replayed": 1, "next": null})));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_has_so_many_numbers_and_no_more() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let put = async |number: usize, body: Value| {
        let path = format!("{}/v1/contacts/+1202555{number:04}", router.url);
        router.send(router.client.put(path).bearer_auth(&key).json(&body)).await
    };
    let anna = || json!({"person": "anna"});
    for number in 0..=20 {
        let made = put(number, anna()).await;
        assert_eq!((made.status, &made.body["person"]), (200, &json!("anna")), "{number}");
    }
    let refused = put(21, anna()).await;
    assert_eq!((refused.status, &refused.body["errors"][0]["pointer"]), (422, &json!("/person")));
    // One that is there already may be said again, and one that is somebody else's makes room.
    assert_eq!(put(20, anna()).await.status, 200);
    assert_eq!(put(0, json!({"person": ""})).await.status, 422);
    assert_eq!(put(0, json!({})).await.body.get("person"), None);
    assert_eq!(put(21, anna()).await.status, 200);
    router.stop().await;
}

/// Stories of several requests that are tried, each with what the one before has answered.
const STORIES: &str = "50";

/// Tries the API out by its document: whether what it describes is what is answered, what is wrong is refused, what is
/// right breaks nothing. What is tried is the same each time, so that a failure comes again.
async fn schemathesis(
    router: &Router,
    key: &str,
    which: [&'static str; 2],
    (phases, examples): (&'static str, &'static str),
) -> std::process::Output {
    let mut command = crate::python_support::program("schemathesis");
    let folder = tempfile::tempdir().expect("a folder for its notes");
    command
        .current_dir(folder.path())
        .env("CI", "1")
        .args(["run", &format!("{}/openapi.json", router.url)])
        .args(["--header", &format!("Authorization: Bearer {key}")])
        .args(which)
        .args(["--phases", phases, "--max-examples", examples])
        // What no schema can say is refused all the same: a number that no plan has, a time that is over.
        .args(["--exclude-checks", "positive_data_acceptance"])
        // One after another: Python's own parser fails at times when two threads ask it.
        .args(["--workers", "1", "--request-timeout", "20", "--no-color"])
        .args(["--generation-deterministic", "--warnings", "off"]);
    tokio::task::spawn_blocking(move || {
        let _kept = folder;
        command.output().expect("schemathesis runs")
    })
    .await
    .expect("it ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_does_what_its_document_says() {
    let router =
        Router::start_with("[limits]\ngrowth = { per_second = 100000, burst = 100000 }\n").await;
    let tenant = router.tenant("Acme").await;
    for (key, which) in [
        (tenant.test.as_str(), ["--exclude-path-regex", "^/v1/admin"]),
        (ADMIN, ["--include-path-regex", "^/v1/admin"]),
    ] {
        for (phases, examples, operations) in
            [("examples,coverage,fuzzing", "5", 25), ("stateful", STORIES, 15)]
        {
            let ran = schemathesis(&router, key, which, (phases, examples)).await;
            let said = String::from_utf8_lossy(&ran.stdout);
            let complained = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.success(), "{which:?} {phases}: {said}{complained}");
            // Something was tried: a run that finds no operation finds no failure either.
            let tested = said.split("Tested: ").nth(1);
            let tested = tested.and_then(|rest| rest.split_whitespace().next());
            let tested: u32 = tested.unwrap_or("none").parse().unwrap_or(0);
            assert!(tested >= operations, "{tested}: {said}");
        }
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_page_needs_no_key_and_nothing_from_elsewhere() {
    let router = Router::start().await;
    let response = router.client.get(format!("{}/docs", router.url)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    let policy = response.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let page = response.text().await.unwrap();
    assert!(page.contains("/v1/messages/{id}/cancel") && page.ends_with("</html>\n"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_origin_may_read_an_answer() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    for (method, path) in
        [("GET", "/v1/messages"), ("OPTIONS", "/v1/messages"), ("GET", "/openapi.json")]
    {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = router
            .client
            .request(method, format!("{}{path}", router.url))
            .bearer_auth(&key)
            .header("origin", "https://evil.example")
            .header("access-control-request-method", "POST");
        let answer = router.send(request).await;
        let opened = answer.headers.keys().find(|name| name.as_str().starts_with("access-control"));
        assert_eq!(opened, None, "{path}");
        assert!(answer.headers.contains_key("x-request-id"), "{path}");
    }
    router.stop().await;
}
