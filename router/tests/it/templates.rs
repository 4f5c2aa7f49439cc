//! Templates over a real socket: kept in versions, written out, sent.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "JSON without the field asked for fails the test, as it should"
)]

use crate::api_support::{ADMIN, Answer, Router};
use serde_json::{Value, json};

/// (pointer, code) of everything that was refused.
fn wrong(answer: &Answer) -> Vec<(&str, &str)> {
    assert_eq!((answer.status, answer.problem()), (422, "invalid_request"), "{answer:?}");
    let word = |value: &'_ Value| -> &str {
        Box::leak(value.as_str().unwrap().to_owned().into_boxed_str())
    };
    let errors = answer.body["errors"].as_array().unwrap();
    errors.iter().map(|error| (word(&error["pointer"]), word(&error["code"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_a_new_version_and_what_was_sent_stays_as_it_was() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let new = json!({"name": "greeting", "text": "Hello {{name}}, {{ what }}.", "defaults": {"what": "welcome"}});
    let made = router.post("/v1/templates", &key, &new).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.body["version"], 1);
    assert_eq!(made.body["variables"], json!(["name", "what"]));
    let id = made.body["id"].as_str().unwrap();
    let path = format!("/v1/templates/{id}");
    let patch = async |body: Value| {
        let request = router.client.patch(format!("{}{path}", router.url)).bearer_auth(&key);
        router.send(request.json(&body)).await
    };

    let send = async |template: Value| {
        let body = json!({"to": "+12025550143", "class": "otp", "template": template});
        router.post("/v1/messages", &key, &body).await
    };
    let first = send(json!({"id": id, "variables": {"name": "{{what}}"}})).await;
    assert_eq!(first.status, 202, "{first:?}");
    assert_eq!(first.body["text"], "Hello {{what}}, welcome.", "a value is no template");
    assert_eq!(first.body["template"], json!({"id": id, "version": 1}));

    let same = patch(json!({"text": new["text"], "name": null})).await;
    assert_eq!((same.status, &same.body["version"]), (200, &json!(1)), "nothing has changed");
    let renamed = patch(json!({"name": "hello"})).await;
    assert_eq!((&renamed.body["version"], &renamed.body["name"]), (&json!(1), &json!("hello")));
    let refused = patch(json!({"text": "Bye {{name}}."})).await;
    assert_eq!(wrong(&refused), [("/defaults/what", "unknown_variable")]);
    let changed = patch(json!({"text": "Bye {{name}}.", "defaults": {}})).await;
    assert_eq!((changed.status, &changed.body["version"]), (200, &json!(2)), "{changed:?}");

    let newest = send(json!({"id": id, "variables": {"name": "Anna"}})).await;
    assert_eq!(newest.body["text"], "Bye Anna.");
    let older = send(json!({"id": id, "version": 1, "variables": {"name": "Anna"}})).await;
    assert_eq!(older.body["text"], "Hello Anna, welcome.");
    let message = format!("/v1/messages/{}", first.body["id"].as_str().unwrap());
    let kept = router.get(&message, &key).await.body;
    assert_eq!((&kept["text"], &kept["template"]), (&first.body["text"], &first.body["template"]));

    let page = router.get(&format!("{path}/versions?limit=1"), &key).await.body;
    assert_eq!((&page["data"][0]["version"], &page["has_more"]), (&json!(2), &json!(true)));
    let next = format!("{path}/versions?limit=1&cursor={}", page["next_cursor"].as_str().unwrap());
    let page = router.get(&next, &key).await.body;
    assert_eq!(page["data"][0]["text"], new["text"]);
    assert_eq!(page["has_more"], false);

    assert_eq!(router.delete(&path, &key).await.status, 204);
    assert_eq!(router.delete(&path, &key).await.status, 404);
    assert_eq!(router.get(&path, &key).await.status, 404);
    assert_eq!(router.get("/v1/templates", &key).await.body["data"], json!([]));
    let gone = send(json!({"id": id, "variables": {"name": "Anna"}})).await;
    assert_eq!(wrong(&gone), [("/template/id", "unknown_template")]);
    let again = router.post("/v1/templates", &key, &json!({"name": "hello", "text": "x"})).await;
    assert_eq!(again.status, 201, "the name is free again: {again:?}");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_template_or_its_use_is_named() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let long = "x".repeat(1_001);
    let many: Vec<String> = (0..51).map(|n| format!("{{{{v{n}}}}}")).collect();
    let many = many.concat();
    for (body, expected) in [
        (json!({}), vec![("/name", "required"), ("/text", "required")]),
        (json!({"name": "a", "text": "{{"}), vec![("/text", "unclosed_variable")]),
        (json!({"name": "a", "text": "{{#if x}}"}), vec![("/text", "invalid_variable_name")]),
        (json!({"name": "a", "text": many}), vec![("/text", "too_many_variables")]),
        (json!({"name": "a\nb", "text": "a"}), vec![("/name", "invalid_character")]),
        (
            json!({"name": "a", "text": "{{a}}", "defaults": {"a": long, "b/c": "x"}}),
            vec![("/defaults/a", "too_long"), ("/defaults/b~1c", "unknown_variable")],
        ),
        (
            json!({"name": "a", "text": "{{a}}", "defaults": {"a": 1}}),
            vec![("/defaults/a", "wrong_type")],
        ),
        (
            json!({"name": "a", "text": "{{a}}", "defaults": {"a": "\u{1b}[2J"}}),
            vec![("/defaults/a", "invalid_character")],
        ),
        (json!({"name": "a", "text": "a", "defaults": []}), vec![("/defaults", "wrong_type")]),
        (json!({"name": "a", "text": "a", "body": 1}), vec![("/body", "unknown_field")]),
    ] {
        let answer = router.post("/v1/templates", &key, &body).await;
        assert_eq!(wrong(&answer), expected, "{body}");
    }
    let body = json!({"name": "a", "text": "{{a}}{{a}}{{b}}", "defaults": {"b": ""}});
    let made = router.post("/v1/templates", &key, &body).await;
    let id = made.body["id"].as_str().unwrap();
    let taken = router.post("/v1/templates", &key, &json!({"name": "a", "text": "x"})).await;
    assert_eq!((taken.status, taken.problem()), (409, "already_exists"));
    let nobody = "tpl_00000000000000000000000000";
    let to = "+12025550143";
    for (template, expected) in [
        (json!({"id": id}), vec![("/template/variables/a", "missing_variable")]),
        (
            json!({"id": id, "variables": {"x": "1"}}),
            vec![
                ("/template/variables/x", "unknown_variable"),
                ("/template/variables/a", "missing_variable"),
            ],
        ),
        (json!({"id": id, "variables": {"a": ""}}), vec![("/template/variables", "blank")]),
        (json!({"id": id, "variables": {"a": long}}), vec![("/template/variables/a", "too_long")]),
        (json!({"id": id, "version": 2}), vec![("/template/version", "unknown_version")]),
        (json!({"id": id, "version": 0}), vec![("/template/version", "out_of_range")]),
        (json!({"id": nobody}), vec![("/template/id", "unknown_template")]),
        (json!({"id": "msg_1"}), vec![("/template/id", "invalid_id")]),
        (json!({"id": id, "text": "x"}), vec![("/template/text", "unknown_field")]),
        (json!([]), vec![("/template", "wrong_type")]),
    ] {
        for path in ["/v1/messages", "/v1/messages:check"] {
            let body = json!({"to": to, "template": template});
            let answer = router.post(path, &key, &body).await;
            assert_eq!(wrong(&answer), expected, "{path} {template}");
        }
    }
    let both = json!({"to": to, "text": "x", "template": {"id": id, "variables": {"a": "1"}}});
    let both = router.post("/v1/messages", &key, &both).await;
    assert_eq!(wrong(&both), [("/template", "conflict")]);
    // 20 times the longest value and a word more is too long, though each value is not.
    let body = json!({"name": "long", "text": format!("{} end", "{{a}}".repeat(20))});
    let made = router.post("/v1/templates", &key, &body).await;
    let id = made.body["id"].as_str().unwrap();
    let full = json!({"variables": {"a": "x".repeat(1_000)}});
    let answer = router.post(&format!("/v1/templates/{id}/preview"), &key, &full).await;
    assert_eq!(wrong(&answer), [("/variables", "too_long")]);
    assert_eq!(router.get("/v1/messages", &key).await.body["data"], json!([]));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_says_what_would_be_sent_and_whether_it_may() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let key = &tenant.live;
    let body = json!({"name": "a", "text": "{{name}} €", "defaults": {"name": "you"}});
    let made = router.post("/v1/templates", key, &body).await;
    let path = format!("/v1/templates/{}/preview", made.body["id"].as_str().unwrap());
    // Without a body too.
    let request = router.client.post(format!("{}{path}", router.url)).bearer_auth(key);
    let plain = router.send(request).await;
    assert_eq!(plain.status, 200, "{plain:?}");
    assert_eq!(plain.body["text"], "you €");
    assert_eq!(plain.body["content"]["characters"], 5);
    assert_eq!(
        (&plain.body["content"]["segments"], &plain.body["allowed"]),
        (&json!(1), &json!(true))
    );
    let long = router.post(&path, key, &json!({"variables": {"name": "ж".repeat(69)}})).await;
    assert_eq!(long.body["content"]["segments"], 2, "{long:?}");
    let rules = json!({"blocked_words": ["viagra"], "segments_max": 1});
    let url = format!("{}/v1/admin/tenants/{}/rules", router.url, tenant.id);
    let set = router.send(router.client.put(url).bearer_auth(ADMIN).json(&rules)).await;
    assert_eq!(set.status, 200, "{set:?}");
    for (name, detail) in [("Viagra!", "blocked_words"), (&"ж".repeat(69), "too_many_segments")] {
        let answer = router.post(&path, key, &json!({"variables": {"name": name}})).await;
        assert_eq!((answer.status, &answer.body["allowed"]), (200, &json!(false)), "{answer:?}");
        assert_eq!(answer.body["detail"], detail);
    }
    assert_eq!(router.get("/v1/messages", key).await.body["data"], json!([]), "nothing was sent");
    router.stop().await;
}
