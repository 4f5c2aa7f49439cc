//! Batches over a real socket: recipients come in, become messages once each, and are paused, withdrawn and told of.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "JSON without the field asked for fails the test, as it should"
)]

use std::collections::BTreeSet;

use crate::api_support::{Answer, Router};
use protocol::BatchId;
use router::params;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

const CSV: &str = "text/csv";

/// A batch of this tenant's and its path.
async fn batch(router: &Router, key: &str, body: Value) -> (String, String) {
    let made = router.post("/v1/batches", key, &body).await;
    assert_eq!((made.status, &made.body["state"]), (201, &json!("draft")), "{made:?}");
    let id = made.body["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/batches/{id}");
    (id, path)
}

fn text() -> Value {
    json!({"name": "November", "text": "Hello", "class": "transactional"})
}

fn number(n: usize) -> String {
    format!("+1202555{n:04}")
}

/// So many recipients from `from` on, as CSV.
fn csv(from: usize, count: usize) -> String {
    let rows = (from..from + count).map(|n| format!("{}\n", number(n)));
    std::iter::once("to\n".to_owned()).chain(rows).collect()
}

struct Upload<'a> {
    path: &'a str,
    kind: &'a str,
    body: String,
    once: Option<&'a str>,
}

async fn add(router: &Router, key: &str, upload: Upload<'_>) -> Answer {
    let url = format!("{}{}", router.url, upload.path);
    let request = router.client.post(url).bearer_auth(key).header("content-type", upload.kind);
    let request = match upload.once {
        Some(once) => request.header("idempotency-key", once),
        None => request,
    };
    router.send(request.body(upload.body)).await
}

async fn add_csv(router: &Router, key: &str, path: &str, body: String) -> Answer {
    let path = &format!("{path}/recipients");
    add(router, key, Upload { path, kind: CSV, body, once: None }).await
}

/// The counts of an answer.
fn counts(answer: &Answer) -> [u64; 4] {
    assert_eq!(answer.status, 200, "{answer:?}");
    ["added", "duplicates", "invalid", "recipients"].map(|name| answer.body[name].as_u64().unwrap())
}

async fn state(router: &Router, key: &str, path: &str) -> Value {
    router.get(path, key).await.body["state"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recipient_gets_one_message_with_its_own_words() {
    let router = Router::start().await;
    // The sandbox's story ends at once: nothing waits for a phone.
    let key = router.tenant("Acme").await.test;
    let template =
        json!({"name": "a", "text": "Dear {{name}}, {{what}}!", "defaults": {"name": "you"}});
    let template = router.post("/v1/templates", &key, &template).await.body;
    let body = json!({
        "name": "November", "class": "transactional", "metadata": {"campaign": "7"},
        "template": {"id": template["id"], "variables": {"what": "hello"}},
    });
    let (id, path) = batch(&router, &key, body).await;
    let empty = router.post(&format!("{path}/start"), &key, &Value::Null).await;
    assert_eq!((empty.status, empty.problem()), (409, "batch_state"));

    let rows = "to,name,what\n+12025550100,Anna,\n+12025550101,,bye\n+12025550100,Again,\nnobody,x,y\n+12025550102,\"B\nC\",\n";
    let added = add_csv(&router, &key, &path, rows.to_owned()).await;
    assert_eq!(counts(&added), [3, 1, 1, 3]);
    assert_eq!(added.body["errors"][0]["line"], 5);
    assert_eq!(added.body["errors"][0]["field"], "to");
    assert_eq!(added.body["errors"][0]["code"], "invalid_recipient");
    let lines =
        "{\"to\":\"+12025550102\"}\n{\"to\":\"+12025550103\",\"variables\":{\"name\":\"D\"}}\n";
    let to = &format!("{path}/recipients");
    let ndjson = "application/x-ndjson; charset=utf-8";
    let upload = Upload { path: to, kind: ndjson, body: lines.to_owned(), once: None };
    assert_eq!(counts(&add(&router, &key, upload).await), [1, 1, 0, 4]);
    let array = router.post(to, &key, &json!([{"to": "anna@example.com", "variables": {}}])).await;
    assert_eq!(counts(&array), [1, 0, 0, 5]);
    // The version is pinned, whatever becomes of the template.
    assert_eq!(
        router
            .delete(&format!("/v1/templates/{}", template["id"].as_str().unwrap()), &key)
            .await
            .status,
        204
    );

    let started = router.post(&format!("{path}/start"), &key, &Value::Null).await;
    assert_eq!((started.status, &started.body["recipients"]), (200, &json!(5)), "{started:?}");
    router.until(async || state(&router, &key, &path).await == "completed").await;
    let done = router.get(&path, &key).await.body;
    assert_eq!(done["outcomes"], json!({"delivered": 5}), "{done}");
    assert_eq!(
        (&done["expanded"], &done["duplicates"], &done["invalid"]),
        (&json!(5), &json!(2), &json!(1))
    );
    let page = router.get("/v1/messages", &key).await.body;
    let mut told: Vec<(&str, &str)> = page["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| {
            assert_eq!(
                (&message["batch"], &message["metadata"]["campaign"]),
                (&json!(id), &json!("7"))
            );
            (message["to"].as_str().unwrap(), message["text"].as_str().unwrap())
        })
        .collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            ("+12025550100", "Dear Anna, hello!"),
            ("+12025550101", "Dear you, bye!"),
            ("+12025550102", "Dear B\nC, hello!"),
            ("+12025550103", "Dear D, hello!"),
            ("anna@example.com", "Dear you, hello!"),
        ]
    );
    // Page by page, and as a file.
    let first = router.get(&format!("{to}?limit=2"), &key).await.body;
    assert_eq!(first["data"][0]["to"], "+12025550100");
    assert_eq!(
        (&first["data"][1]["number"], &first["data"][1]["status"]),
        (&json!(2), &json!("delivered"))
    );
    let next = format!("{to}?limit=4&cursor={}", first["next_cursor"].as_str().unwrap());
    let last = router.get(&next, &key).await.body;
    assert_eq!((last["data"].as_array().unwrap().len(), &last["has_more"]), (3, &json!(false)));
    let export = async |format: &str| {
        let url = format!("{}{path}/export{format}", router.url);
        let response = router.client.get(url).bearer_auth(&key).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.text().await.unwrap()
    };
    let file = export("").await;
    assert_eq!(file.lines().count(), 6, "{file}");
    assert!(
        file.starts_with("number,to,message,status,reason,updated_at\n1,+12025550100,msg_"),
        "{file}"
    );
    let file = export("?format=ndjson").await;
    let rows: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), &rows[4]["to"]), (5, &json!("anna@example.com")));
    assert_eq!(export("?status=failed").await.lines().count(), 1, "the header alone");
    assert_eq!(export("?status=delivered").await, export("").await);
    let bad = router.get(&format!("{path}/export?format=xls"), &key).await;
    assert_eq!((bad.status, bad.problem()), (422, "invalid_request"));
    // What has ended does not begin again.
    for word in ["pause", "resume", "start", "cancel"] {
        let refused = router.post(&format!("{path}/{word}"), &key, &Value::Null).await;
        assert_eq!((refused.status, refused.problem()), (409, "batch_state"), "{word}");
    }
    let late = add_csv(&router, &key, &path, csv(0, 1)).await;
    assert_eq!((late.status, late.problem()), (409, "batch_state"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_added_once_and_whole_or_not_at_all() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let (id, path) = batch(&router, &key, text()).await;
    let to = &format!("{path}/recipients");
    let rows = async || {
        let id: BatchId = id.parse().unwrap();
        let sql = "SELECT COUNT(*) FROM batch_recipients WHERE batch_id = ?1";
        router
            .app
            .store
            .read(move |tx| tx.query_row(sql, params![id], |row| row.int(0)))
            .await
            .unwrap()
    };
    // Cut in the middle, after more than a page of good rows.
    let half = csv(0, 3_000);
    let address = router.url.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {to} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: text/csv\r\ncontent-length: {}\r\n\r\n",
        half.len() + 10
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(half.as_bytes()).await.unwrap();
    router.until(async || rows().await >= 2_000).await;
    assert_eq!(router.get(&path, &key).await.body["recipients"], 0, "they do not count yet");
    let other = add_csv(&router, &key, &path, csv(0, 1)).await;
    assert_eq!((other.status, other.problem()), (409, "batch_state"), "one chunk at a time");
    drop(socket);
    let retry = async || {
        add(&router, &key, Upload { path: to, kind: CSV, body: csv(0, 3_000), once: Some("one") })
            .await
    };
    router.until(async || is_free(&router, &key, &path).await).await;
    let added = retry().await;
    assert_eq!(counts(&added), [3_000, 0, 0, 3_000], "nothing of the cut chunk is left");
    assert_eq!(rows().await, 3_000);
    // The same chunk again is answered and not added; another body under its key is refused.
    let replayed = retry().await;
    assert_eq!(
        (&replayed.body, replayed.headers.contains_key("idempotency-replayed")),
        (&added.body, true)
    );
    let other = Upload { path: to, kind: CSV, body: csv(0, 2_999), once: Some("one") };
    let other = add(&router, &key, other).await;
    assert_eq!((other.status, other.problem()), (422, "idempotency_key_reused"));
    assert_eq!(counts(&add_csv(&router, &key, &path, csv(2_999, 2)).await), [1, 1, 0, 3_001]);
    assert_eq!(
        router.get(&path, &key).await.body["duplicates"],
        1,
        "a repeated chunk counts nothing"
    );
    // All or nothing, where that is wanted.
    let url = format!("{}{to}?on_invalid=refuse", router.url);
    let body = format!("{}nobody\n\n+1202\n", csv(5_000, 1_500));
    let request = router.client.post(url).bearer_auth(&key).header("content-type", CSV).body(body);
    let refused = router.send(request).await;
    assert_eq!((refused.status, refused.problem()), (422, "invalid_request"));
    assert_eq!(refused.body["errors"][0]["pointer"], "line 1502: to");
    assert_eq!(refused.body["errors"][1]["pointer"], "line 1504: to");
    assert_eq!(rows().await, 3_001);
    for (kind, body, status, code) in [
        (CSV, "phone\n+12025550100\n", 400, "malformed_body"),
        (CSV, "", 400, "malformed_body"),
        ("application/json", "[{\"to\": \"+12025559100\"}, ", 400, "malformed_body"),
        ("application/json", "{}", 400, "malformed_body"),
        ("text/plain", "to\n", 415, "unsupported_media_type"),
    ] {
        let answer =
            add(&router, &key, Upload { path: to, kind, body: body.to_owned(), once: None }).await;
        assert_eq!((answer.status, answer.problem()), (status, code), "{kind} {body}");
    }
    let query = router.post(&format!("{to}?on_invalid=x"), &key, &json!([])).await;
    assert_eq!((query.status, query.problem()), (422, "invalid_request"));
    assert_eq!(rows().await, 3_001);
    router.stop().await;
}

/// No other chunk is being added any more: the broken connection has been noticed.
async fn is_free(router: &Router, key: &str, path: &str) -> bool {
    add_csv(router, key, path, "to\n".to_owned()).await.status == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_rows_are_told_by_line_and_bounded() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let template = json!({"name": "a", "text": "{{name}}"});
    let template = router.post("/v1/templates", &key, &template).await.body;
    let body = json!({"name": "b", "template": {"id": template["id"]}, "channel": "sms"});
    let (_, path) = batch(&router, &key, body).await;
    let long = "x".repeat(1_001);
    let rows = format!(
        "to,name,city\n+12025550100,Anna,\n+12025550101,,\n+12025550102,B,Rome\na@b.example,C,\n+120255501,D,\n+12025550103,{long},\n+12025550104, ,\n+12025550105,\u{1b}[2J,\n"
    );
    let added = add_csv(&router, &key, &path, rows).await;
    assert_eq!(counts(&added), [1, 0, 7, 1]);
    let told: Vec<(u64, &str, &str)> = added.body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| {
            (
                error["line"].as_u64().unwrap(),
                error["field"].as_str().unwrap(),
                error["code"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (3, "variables/name", "missing_variable"),
            (4, "variables/city", "unknown_variable"),
            (5, "to", "channel_needs_number"),
            (6, "to", "impossible_number"),
            (7, "variables/name", "too_long"),
            (8, "variables", "blank"),
            (9, "variables/name", "invalid_character"),
        ]
    );
    let many = format!("to,name\n{}", "nobody,x\n".repeat(10_000));
    let added = add_csv(&router, &key, &path, many).await;
    assert_eq!(counts(&added), [0, 0, 10_000, 1]);
    assert_eq!(added.body["errors"].as_array().unwrap().len(), 100);
    for (body, expected) in [
        (json!({}), vec!["/name", "/text"]),
        (json!({"name": "a", "text": "a", "template": {"id": template["id"]}}), vec!["/template"]),
        (
            json!({"name": "a", "template": {"id": template["id"], "variables": {"x": "1"}}}),
            vec!["/template/variables/x"],
        ),
        (
            json!({"name": "a", "template": {"id": template["id"], "version": 9}}),
            vec!["/template/version"],
        ),
        (json!({"name": "a", "text": "a", "send_at": "2001-01-01T00:00:00Z"}), vec!["/send_at"]),
        (json!({"name": "a", "text": "a", "from": "+12025550199"}), vec!["/from"]),
        // A short life makes no code of what many get, and neither do words of each one's own.
        (json!({"name": "a", "text": "a", "class": "otp", "ttl_seconds": 300}), vec!["/class"]),
        (json!({"name": "a", "template": {"id": template["id"]}, "class": "otp"}), vec!["/class"]),
    ] {
        let answer = router.post("/v1/batches", &key, &body).await;
        assert_eq!((answer.status, answer.problem()), (422, "invalid_request"), "{answer:?}");
        let errors = answer.body["errors"].as_array().unwrap();
        let pointers: Vec<&str> =
            errors.iter().map(|error| error["pointer"].as_str().unwrap()).collect();
        assert_eq!(pointers, expected, "{body}");
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_paused_resumed_and_withdrawn_in_the_middle() {
    let router = Router::start_with("[messages]\nbatch_queued = 1000\n").await;
    let key = router.tenant("Acme").await.live;
    let hook = json!({"url": "http://127.0.0.1:1/", "events": ["batch.canceled"]});
    let hook = router.post("/v1/webhook_endpoints", &key, &hook).await.body;
    let (_, path) = batch(&router, &key, text()).await;
    assert_eq!(counts(&add_csv(&router, &key, &path, csv(0, 3_000)).await)[0], 3_000);
    let turn = async |word: &str| {
        let answer = router.post(&format!("{path}/{word}"), &key, &Value::Null).await;
        assert_eq!(answer.status, 200, "{word}: {answer:?}");
        answer.body["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(turn("start").await, "running");
    assert_eq!(turn("start").await, "running", "a second time changes nothing");
    let expanded = async || router.get(&path, &key).await.body["expanded"].as_u64().unwrap();
    router.until(async || expanded().await >= 1_000).await;
    assert_eq!(turn("pause").await, "paused");
    let then = expanded().await;
    assert_eq!(turn("pause").await, "paused");
    // A page that was under way when it was paused came before or after; none comes now.
    router::batches::turn(&router.app).await.unwrap();
    assert_eq!(expanded().await, then);
    assert_eq!(turn("resume").await, "running");
    // Nobody can send, so that what waits is held and makes room for the rest.
    router.until(async || expanded().await == 3_000).await;
    assert_eq!(state(&router, &key, &path).await, "running", "its messages have not ended");
    assert_eq!(turn("cancel").await, "canceling");
    router.until(async || state(&router, &key, &path).await == "canceled").await;
    let done = router.get(&path, &key).await.body;
    assert_eq!(done["outcomes"], json!({"canceled": 3_000}), "{done}");
    assert_eq!(turn("cancel").await, "canceled");
    let deliveries = format!("/v1/webhook_endpoints/{}/deliveries", hook["id"].as_str().unwrap());
    let deliveries = router.get(&deliveries, &key).await.body;
    assert_eq!(
        deliveries["data"].as_array().unwrap().len(),
        1,
        "its end is told once: {deliveries}"
    );
    assert_eq!(deliveries["data"][0]["type"], "batch.canceled");
    // A draft is withdrawn with nothing to cancel; a scheduled one does nothing before its time.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(10);
    let mut later = text();
    later["send_at"] = json!(soon);
    let (_, path) = batch(&router, &key, later).await;
    add_csv(&router, &key, &path, csv(0, 1)).await;
    let started = router.post(&format!("{path}/start"), &key, &Value::Null).await;
    assert_eq!(started.body["state"], "scheduled");
    router::batches::turn(&router.app).await.unwrap();
    let now = router.get(&path, &key).await.body;
    assert_eq!((&now["state"], &now["expanded"]), (&json!("scheduled"), &json!(0)));
    router.post(&format!("{path}/cancel"), &key, &Value::Null).await;
    router.until(async || state(&router, &key, &path).await == "canceled").await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_nobody_starts_ends_and_says_why() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let (_, path) = batch(&router, &key, text()).await;
    assert_eq!(add_csv(&router, &key, &path, csv(0, 2)).await.status, 200);
    let now = router.app.clock.now();
    let withdrawn = router
        .app
        .store
        .write(move |tx| router::store::retention::idle_batches(tx, now.plus_ms(1), now))
        .await
        .unwrap();
    assert_eq!(withdrawn, 1);
    router.until(async || state(&router, &key, &path).await == "canceled").await;
    let ended = router.get(&path, &key).await.body;
    assert_eq!((&ended["reason"], &ended["recipients"]), (&json!("expired"), &json!(2)), "{ended}");
    assert!(ended["ended_at"].is_string(), "so that its recipients go in time: {ended}");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_messages_are_accepted_or_refused_each_by_itself() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let path = "/v1/messages/batch";
    let body = json!({"messages": [
        {"to": "+12025550143", "text": "one", "class": "transactional"},
        {"to": "nobody", "text": ""},
        {"to": "+12025550144", "template": {"id": "tpl_00000000000000000000000000"}},
        7,
        {"to": "+12025550145", "text": "two", "class": "transactional"},
    ]});
    let send = async || {
        let request = router.client.post(format!("{}{path}", router.url)).bearer_auth(&key);
        router.send(request.header("idempotency-key", "k").json(&body)).await
    };
    let answer = send().await;
    assert_eq!(
        (answer.status, &answer.body["accepted"], &answer.body["refused"]),
        (200, &json!(2), &json!(3)),
        "{answer:?}"
    );
    let results = answer.body["results"].as_array().unwrap();
    assert_eq!(
        results.iter().map(|one| one["status"].as_u64().unwrap()).collect::<Vec<_>>(),
        [202, 422, 422, 422, 202]
    );
    assert_eq!(results[1]["errors"][0]["pointer"], "/messages/1/to");
    assert_eq!(results[2]["errors"][0]["pointer"], "/messages/2/template/id");
    assert_eq!(results[3]["errors"][0]["pointer"], "/messages/3");
    assert_eq!(results[4]["message"]["text"], "two");
    assert_eq!(send().await.body, answer.body, "a repeated request is answered and not done");
    assert_eq!(router.get("/v1/messages", &key).await.body["data"].as_array().unwrap().len(), 2);
    // Far beyond what other routes take.
    let long: Vec<Value> = (0..1_000)
        .map(|n| json!({"to": number(n), "text": "x".repeat(1_000), "class": "transactional"}))
        .collect();
    let many = router.post(path, &key, &json!({"messages": long})).await;
    assert_eq!((many.status, &many.body["accepted"]), (200, &json!(1_000)));
    for (body, code) in [
        (json!({"messages": []}), "too_few"),
        (json!({}), "required"),
        (json!({"messages": vec![json!(1); 1_001]}), "too_many"),
        (json!({"messages": 1}), "wrong_type"),
    ] {
        let refused = router.post(path, &key, &body).await;
        assert_eq!((refused.status, refused.problem()), (422, "invalid_request"));
        assert_eq!(refused.body["errors"][0]["code"], code);
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_of_codes_from_earlier_becomes_marketing() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let (_, path) = batch(&router, &key, text()).await;
    assert_eq!(add_csv(&router, &key, &path, csv(0, 2)).await.status, 200);
    let sql = "UPDATE batches SET class = 'otp'";
    router.app.store.write(move |tx| tx.execute(sql, params![])).await.unwrap();
    assert_eq!(router.post(&format!("{path}/start"), &key, &Value::Null).await.status, 200);
    router.until(async || router.get(&path, &key).await.body["expanded"] == 2).await;
    let made = router.get("/v1/messages", &key).await.body;
    let classes: Vec<&str> =
        made["data"].as_array().unwrap().iter().map(|one| one["class"].as_str().unwrap()).collect();
    assert_eq!(classes, ["marketing", "marketing"]);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_be_read_is_paused_and_says_so() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let (_, path) = batch(&router, &key, text()).await;
    assert_eq!(add_csv(&router, &key, &path, csv(0, 3)).await.status, 200);
    let break_it = |variables: &'static str| {
        router.app.store.write(move |tx| {
            tx.execute(
                "UPDATE batch_recipients SET variables = ?1 WHERE position = 2",
                router::params![variables],
            )
        })
    };
    break_it("{").await.unwrap();
    assert_eq!(router.post(&format!("{path}/start"), &key, &Value::Null).await.status, 200);
    router.until(async || router.get(&path, &key).await.body["state"] == "paused").await;
    let paused = router.get(&path, &key).await.body;
    assert_eq!((&paused["reason"], &paused["expanded"]), (&json!("check_failed"), &json!(0)));
    // Whoever has mended it goes on with it.
    break_it("{}").await.unwrap();
    assert_eq!(router.post(&format!("{path}/resume"), &key, &Value::Null).await.status, 200);
    router.until(async || router.get(&path, &key).await.body["expanded"] == 3).await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_are_listed_by_what_came_of_them_in_pages_that_look_at_so_many() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.test;
    let (_, path) = batch(&router, &key, text()).await;
    // More than one page looks at, and of these only the last one has failed.
    assert_eq!(add_csv(&router, &key, &path, csv(0, 5_100)).await.status, 200);
    let started = router.post(&format!("{path}/start"), &key, &Value::Null).await;
    assert_eq!(started.status, 200, "{started:?}");
    router.until(async || router.get(&path, &key).await.body["state"] == "completed").await;
    router
        .app
        .store
        .write(|tx| {
            tx.execute(
                "UPDATE messages SET status = 'failed' WHERE id = (
                     SELECT message_id FROM batch_recipients WHERE position = 5100)",
                router::params![],
            )
        })
        .await
        .unwrap();
    let list = async |query: &str| {
        let page = router.get(&format!("{path}/recipients?{query}"), &key).await;
        assert_eq!(page.status, 200, "{page:?}");
        page.body
    };
    let first = list("status=failed").await;
    assert_eq!((&first["data"], &first["has_more"]), (&json!([]), &json!(true)));
    let rest =
        list(&format!("status=failed&cursor={}", first["next_cursor"].as_str().unwrap())).await;
    assert_eq!((&rest["data"][0]["number"], &rest["has_more"]), (&json!(5_100), &json!(false)));
    let few = list("status=delivered&limit=2").await;
    assert_eq!((few["data"].as_array().unwrap().len(), &few["has_more"]), (2, &json!(true)));
    let next =
        list(&format!("status=delivered&limit=2&cursor={}", few["next_cursor"].as_str().unwrap()))
            .await;
    assert_eq!(next["data"][0]["number"], 3);
    let wrong = router.get(&format!("{path}/recipients?status=lost"), &key).await;
    assert_eq!((wrong.status, wrong.problem()), (422, "invalid_request"));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_keys_see_and_send_what_is_of_the_sandbox_alone() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let (_, live) = batch(&router, &tenant.live, text()).await;
    let (_, test) = batch(&router, &tenant.test, text()).await;
    for (path, key, status) in [
        (&live, &tenant.live, 200),
        (&live, &tenant.test, 404),
        (&test, &tenant.live, 200),
        (&test, &tenant.test, 200),
    ] {
        assert_eq!(router.get(path, key).await.status, status);
    }
    assert_eq!(add_csv(&router, &tenant.test, &live, csv(0, 1)).await.status, 404);
    let listed = router.get("/v1/batches", &tenant.test).await.body;
    let ids: BTreeSet<&str> =
        listed["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert!(ids.len() == 1 && test.ends_with(ids.first().unwrap()), "{ids:?}");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_uses_what_both_its_quota_and_its_credit_pay_for() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let key = &tenant.live;
    let id = tenant.id.clone();
    let sql = "INSERT INTO billing_accounts (tenant_id, quota, price, credit, month, used, warned, updated_at)
         VALUES (?1, 800, 2, 1000, 0, 0, 0, 0)";
    router.app.store.write(move |tx| tx.execute(sql, params![id])).await.unwrap();
    let (_, path) = batch(&router, key, text()).await;
    add_csv(&router, key, &path, csv(0, 3_000)).await;
    router.post(&format!("{path}/start"), key, &Value::Null).await;
    router.until(async || state(&router, key, &path).await == "paused").await;
    let paused = router.get(&path, key).await.body;
    assert_eq!(
        (&paused["expanded"], &paused["reason"]),
        (&json!(500), &json!("insufficient_credit")),
        "{paused}"
    );
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_come_at_once_are_added_or_told_to_wait() {
    let router = Router::start().await;
    let key = router.tenant("Acme").await.live;
    let (_, path) = batch(&router, &key, text()).await;
    let sender = async |which: usize| {
        let mut added = 0;
        for n in 0..15 {
            let answer = add_csv(&router, &key, &path, csv((which * 15 + n) * 3, 3)).await;
            match answer.status {
                200 => added += 3,
                status => {
                    assert_eq!((status, answer.problem()), (409, "batch_state"), "{answer:?}");
                }
            }
        }
        added
    };
    let added = futures_util::future::join_all((0..8).map(sender)).await;
    let recipients = router.get(&path, &key).await.body["recipients"].as_u64().unwrap();
    assert_eq!(recipients, added.iter().sum::<u64>());
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_nothing_pays_for_pauses_and_loses_nobody() {
    let router = Router::start().await;
    let tenant = router.tenant("Acme").await;
    let key = &tenant.live;
    let quota = async |quota: u32| {
        let id = tenant.id.clone();
        let sql = "INSERT INTO billing_accounts (tenant_id, quota, price, credit, month, used, warned, updated_at)
             VALUES (?1, ?2, 0, 0, 0, 0, 0, 0) ON CONFLICT (tenant_id) DO UPDATE SET quota = excluded.quota";
        router.app.store.write(move |tx| tx.execute(sql, params![id, quota])).await.unwrap();
    };
    quota(1_500).await;
    let hook = json!({"url": "http://127.0.0.1:1/", "events": ["batch.paused"]});
    let hook = router.post("/v1/webhook_endpoints", key, &hook).await.body;
    let (_, path) = batch(&router, key, text()).await;
    add_csv(&router, key, &path, csv(0, 3_000)).await;
    router.post(&format!("{path}/start"), key, &Value::Null).await;
    router.until(async || state(&router, key, &path).await == "paused").await;
    let paused = router.get(&path, key).await.body;
    assert_eq!(
        (&paused["expanded"], &paused["reason"]),
        (&json!(1_500), &json!("quota_exceeded")),
        "what is paid for is used: {paused}"
    );
    let deliveries = format!("/v1/webhook_endpoints/{}/deliveries", hook["id"].as_str().unwrap());
    let deliveries = router.get(&deliveries, key).await.body;
    assert_eq!(deliveries["data"][0]["type"], "batch.paused", "{deliveries}");
    quota(10_000).await;
    let resumed = router.post(&format!("{path}/resume"), key, &Value::Null).await;
    assert_eq!((resumed.status, resumed.body.get("reason")), (200, None));
    router.until(async || router.get(&path, key).await.body["expanded"] == 3_000).await;
    let all = router.get(&path, key).await.body["outcomes"].clone();
    let all: u64 = all.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(all, 3_000);
    router.stop().await;
}
