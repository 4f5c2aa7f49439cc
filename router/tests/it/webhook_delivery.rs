//! The delivery worker against endpoints on this machine that answer as told.

#![expect(
    clippy::unwrap_used,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::link_support::*;
use aws_lc_rs::hmac;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use data_encoding::BASE64;
use protocol::api::WebhookData;
use protocol::{EndpointId, Status, TenantId};
use router::params;
use router::server::App;
use router::store::webhook_jobs;
use tokio::net::TcpListener;

const SECRET: &str = "whsec_c2VjcmV0LW9mLXRoZS10ZXN0cw==";
const OPEN: &str = "[webhooks]\nallow_private = true\ntimeout_ms = 1000\nper_endpoint = 2\n";

/// A request, as it came.
#[derive(Debug, Clone)]
struct Hook {
    path: String,
    id: String,
    timestamp: String,
    signature: String,
    body: String,
}

#[derive(Clone, Default)]
struct Sink {
    hooks: Arc<Mutex<Vec<Hook>>>,
    /// Lets `/late/…` answer.
    answers: Arc<tokio::sync::Notify>,
}

impl Sink {
    fn hooks(&self) -> Vec<Hook> {
        self.hooks.lock().unwrap().clone()
    }

    fn at(&self, path: &str) -> Vec<Hook> {
        self.hooks().into_iter().filter(|hook| hook.path == path).collect()
    }

    async fn wait_for(&self, path: &str, count: usize) -> Vec<Hook> {
        eventually(&format!("{count} at {path}"), || async { self.at(path).len() >= count }).await;
        self.at(path)
    }
}

/// Answers by path: `/ok`, `/status/500`, `/slow`, `/redirect`, `/retry`.
async fn answer(
    State(sink): State<Sink>,
    headers: HeaderMap,
    request: axum::extract::Request,
) -> axum::response::Response {
    let path = request.uri().path().to_owned();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "application/json");
    sink.hooks.lock().unwrap().push(Hook {
        path: path.clone(),
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
        body: String::from_utf8(body.to_vec()).unwrap(),
    });
    match path.as_str() {
        "/ok" | "/bad-secrets" | "/bad-count" | "/bad-types" => {
            StatusCode::NO_CONTENT.into_response()
        }
        "/talks" => {
            (StatusCode::BAD_GATEWAY, "no\0 upstream\u{1b}[31m ".repeat(20_000)).into_response()
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_mins(1)).await;
            StatusCode::OK.into_response()
        }
        "/redirect" => (StatusCode::TEMPORARY_REDIRECT, [("location", "/ok")]).into_response(),
        "/retry" => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3600")]).into_response(),
        other => {
            let late = other.strip_prefix("/late/");
            if late.is_some() {
                sink.answers.notified().await;
            }
            let code = late.or_else(|| other.strip_prefix("/status/")).unwrap().parse().unwrap();
            StatusCode::from_u16(code).unwrap().into_response()
        }
    }
}

async fn sink(router: &Router) -> (Sink, SocketAddr) {
    let sink = Sink::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = axum::Router::new().fallback(answer).with_state(sink.clone());
    let stop = router.app.stop.clone();
    router.app.tasks.spawn(async move {
        let gone = stop.clone();
        tokio::select! {
            served = async { axum::serve(listener, routes).await } => served.unwrap(),
            () = gone.cancelled() => {}
        }
    });
    (sink, address)
}

async fn enqueue(app: &App, tenant: &TenantId, kind: &'static str) -> usize {
    let (tenant, now) = (tenant.clone(), app.clock.now());
    let count = app
        .store
        .write(move |tx| {
            let data = WebhookData {
                tenant: Some(tenant.clone()),
                sequence: Some(7),
                ..WebhookData::default()
            };
            webhook_jobs::enqueue(tx, (&tenant, false), kind, &data, now)
        })
        .await
        .unwrap();
    app.bells.webhooks.notify_one();
    count
}

/// State of the endpoint's only job, attempts, and how far ahead the next is, in milliseconds.
async fn job(app: &App, endpoint: &EndpointId) -> (String, i64, i64) {
    let (endpoint, now) = (endpoint.clone(), app.clock.now().0);
    app.store
        .read(move |tx| {
            tx.query_row(
                "SELECT state, attempts, run_at FROM webhook_jobs WHERE endpoint_id = ?1 ORDER BY id DESC",
                params![endpoint],
                |row| Ok((row.text(0)?, row.int(1)?, row.int(2)? - now)),
            )
        })
        .await
        .unwrap()
}

async fn tried(app: &App, endpoint: &EndpointId, attempts: i64) -> (String, i64, i64) {
    eventually("it was tried", || async { job(app, endpoint).await.1 >= attempts }).await;
    job(app, endpoint).await
}

async fn error_of(app: &App) -> (Option<i64>, String) {
    app.store
        .read(|tx| {
            tx.query_row(
                "SELECT status, error FROM webhook_attempts ORDER BY at DESC",
                params![],
                |row| Ok((row.get(0)?, row.opt_text(1)?.unwrap_or_default())),
            )
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn a_webhook_is_signed_and_delivered_once() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let endpoint = endpoint(app, &tenant, &format!("http://{address}/ok"), SECRET).await;
    assert_eq!(enqueue(app, &tenant, "message.sent").await, 1);
    let hook = sink.wait_for("/ok", 1).await.remove(0);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64.decode(&SECRET.as_bytes()[6..]).unwrap());
    let signed = format!("{}.{}.{}", hook.id, hook.timestamp, hook.body);
    let signature = BASE64.decode(hook.signature.strip_prefix("v1,").unwrap().as_bytes()).unwrap();
    hmac::verify(&key, signed.as_bytes(), &signature).unwrap();
    let age = app.clock.now().0 / 1_000 - hook.timestamp.parse::<i64>().unwrap();
    assert!((0..=5).contains(&age), "{age}");
    assert!(hook.id.starts_with("evt_"), "{}", hook.id);
    let body: serde_json::Value = serde_json::from_str(&hook.body).unwrap();
    assert_eq!(body["type"], "message.sent");
    assert_eq!(body["data"]["sequence"], 7);
    assert_eq!(body["data"]["tenant"], tenant.as_str());
    assert_eq!(tried(app, &endpoint, 1).await.0, "delivered");
    // Nothing more comes of it.
    enqueue(app, &tenant, "message.delivered").await;
    assert_eq!(sink.wait_for("/ok", 2).await.len(), 2);
    eventually("both attempts are written down", || async {
        count(app, "SELECT COUNT(*) FROM webhook_attempts WHERE status = 204 AND error IS NULL")
            .await
            == 2
    })
    .await;
}

#[tokio::test]
async fn a_failure_is_tried_again_on_schedule_under_the_same_id() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let endpoint = endpoint(app, &tenant, &format!("http://{address}/status/500"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    let (state, attempts, wait) = tried(app, &endpoint, 1).await;
    assert_eq!((state.as_str(), attempts), ("pending", 1));
    assert!((3_500..=6_100).contains(&wait), "{wait}");
    assert_eq!(error_of(app).await, (Some(500), "answered 500".to_owned()));
    // Its time comes.
    app.store
        .write(|tx| tx.execute("UPDATE webhook_jobs SET run_at = 0", params![]))
        .await
        .unwrap();
    app.bells.webhooks.notify_one();
    let (_, _, wait) = tried(app, &endpoint, 2).await;
    assert!((230_000..=360_100).contains(&wait), "{wait}");
    let hooks = sink.wait_for("/status/500", 2).await;
    assert_eq!(hooks[0].id, hooks[1].id);
    assert_eq!(hooks[0].body, hooks[1].body);
    assert_eq!(count(app, "SELECT COUNT(*) FROM webhook_attempts").await, 2);
    assert_eq!(
        count(app, "SELECT COUNT(*) FROM webhook_endpoints WHERE failing_since IS NOT NULL").await,
        1
    );
}

#[tokio::test]
async fn the_tenth_failure_is_the_last() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (_sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let endpoint = endpoint(app, &tenant, &format!("http://{address}/status/503"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    tried(app, &endpoint, 1).await;
    app.store
        .write(|tx| tx.execute("UPDATE webhook_jobs SET run_at = 0, attempts = 9", params![]))
        .await
        .unwrap();
    app.bells.webhooks.notify_one();
    assert_eq!(tried(app, &endpoint, 10).await.0, "failed");
}

#[tokio::test]
async fn an_endpoint_may_ask_for_patience() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (_sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let endpoint = endpoint(app, &tenant, &format!("http://{address}/retry"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    let (_, _, wait) = tried(app, &endpoint, 1).await;
    assert!((3_590_000..=3_600_000).contains(&wait), "{wait}");
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_is_not_followed() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let endpoint = endpoint(app, &tenant, &format!("http://{address}/redirect"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    assert_eq!(tried(app, &endpoint, 1).await.0, "pending");
    assert!(sink.at("/ok").is_empty());
    assert_eq!(error_of(app).await, (Some(307), "redirects are not followed".to_owned()));
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_switched_off_and_the_others_are_told() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let gone = endpoint(app, &tenant, &format!("http://{address}/status/410"), SECRET).await;
    endpoint(app, &tenant, &format!("http://{address}/ok"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    let hooks = sink.wait_for("/ok", 2).await;
    assert!(hooks[1].body.contains("webhook_endpoint.disabled"), "{}", hooks[1].body);
    assert!(hooks[1].body.contains(gone.as_str()));
    assert_eq!(job(app, &gone).await.0, "failed");
    assert_eq!(
        count(app, "SELECT COUNT(*) FROM webhook_endpoints WHERE disabled_reason = 'gone'").await,
        1
    );
    assert_eq!(enqueue(app, &tenant, "message.read").await, 1, "the one that is left");
}

#[tokio::test]
async fn an_endpoint_that_has_moved_is_not_judged_by_its_old_address() {
    let router = router(OPEN).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let whose = endpoint(app, &tenant, "http://127.0.0.1:1/new", SECRET).await;
    let of = |url: &str| webhook_jobs::Target {
        endpoint: whose.clone(),
        tenant: tenant.clone(),
        url: url.to_owned(),
        secrets: Vec::new(),
        disabled: false,
    };
    let (old, new, now) =
        (of("http://127.0.0.1:1/old"), of("http://127.0.0.1:1/new"), app.clock.now());
    app.store
        .write(move |tx| {
            assert!(!webhook_jobs::is_there(tx, &old)?);
            assert_eq!(webhook_jobs::fails(tx, &old, (now, now))?, None);
            webhook_jobs::pause(tx, &old, now)?;
            assert!(!webhook_jobs::disable(tx, &old, "gone", now)?);
            let untouched = "SELECT COUNT(*) FROM webhook_endpoints
                 WHERE failures = 0 AND paused_until IS NULL AND disabled_at IS NULL";
            assert_eq!(tx.query_row(untouched, params![], |row| row.int(0))?, 1);
            assert!(webhook_jobs::is_there(tx, &new)?);
            assert_eq!(webhook_jobs::fails(tx, &new, (now, now))?, Some((now, 1)));
            // Nor does what went well there make up for what fails here.
            webhook_jobs::works(tx, &old)?;
            assert_eq!(webhook_jobs::fails(tx, &new, (now, now))?, Some((now, 2)));
            Ok(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn what_an_old_address_answers_with_gone_is_tried_at_the_new_one() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let whose = endpoint(app, &tenant, &format!("http://{address}/late/410"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    sink.wait_for("/late/410", 1).await;
    // It moves while its old address is about to answer.
    let url = format!("http://{address}/ok");
    app.store
        .write(move |tx| tx.execute("UPDATE webhook_endpoints SET url = ?1", params![url]))
        .await
        .unwrap();
    sink.answers.notify_one();
    let (state, _, wait) = tried(app, &whose, 1).await;
    assert_eq!(state, "pending");
    assert!(wait > 0, "{wait}");
    assert_eq!(error_of(app).await.0, Some(410));
    app.store
        .write(|tx| tx.execute("UPDATE webhook_jobs SET run_at = 0", params![]))
        .await
        .unwrap();
    app.bells.webhooks.notify_one();
    sink.wait_for("/ok", 1).await;
    assert_eq!(tried(app, &whose, 2).await.0, "delivered");
}

#[tokio::test]
async fn an_endpoint_that_is_deleted_is_gone_at_once_and_its_deliveries_step_by_step() {
    use router::store::webhook_endpoints as rows;
    let router = router(OPEN).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let whose = endpoint(app, &tenant, "http://127.0.0.1:1/", SECRET).await;
    let other = endpoint(app, &tenant, "http://127.0.0.1:1/", SECRET).await;
    let (owner, deleted, kept, now) =
        (tenant.clone(), whose.clone(), other.clone(), app.clock.now());
    app.store
        .write(move |tx| {
            for (endpoint, prefix, count) in [(&deleted, "a", 2_500), (&kept, "b", 1)] {
                tx.execute(
                    "INSERT INTO webhook_jobs
                         (id, endpoint_id, tenant_id, event_id, type, body, state, run_at, attempts, created_at)
                     WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?4)
                     SELECT 'dlv_' || ?3 || i, ?1, ?2, 'evt_1', 'message.sent', '{}', 'delivered', 1, 1, 1 FROM n",
                    params![endpoint, owner, prefix, count],
                )?;
            }
            tx.execute(
                "INSERT INTO webhook_attempts (job_id, attempt, at, ms) SELECT id, 1, 1, 1 FROM webhook_jobs",
                params![],
            )?;
            // A step sweeps nothing of an endpoint that is there.
            assert!(!rows::sweep(tx, &kept)?);
            assert!(rows::get(tx, (&owner, false), &kept)?.is_some());
            assert!(rows::delete(tx, (&owner, false), &deleted, now)?);
            // Nobody sees it any more, whatever is left of it.
            assert!(!rows::delete(tx, (&owner, false), &deleted, now)?);
            assert!(rows::get(tx, (&owner, false), &deleted)?.is_none());
            assert_eq!(rows::list(tx, (&owner, false), None, 10)?.len(), 1);
            assert_eq!(rows::count(tx, &owner)?, 1);
            assert!(!rows::rotate(tx, &owner, (&deleted, "whsec_"), (now, now))?);
            let jobs = "SELECT COUNT(*) FROM webhook_jobs";
            assert_eq!(tx.query_row(jobs, params![], |row| row.int(0))?, 2_501);
            assert!(rows::sweep(tx, &deleted)?);
            assert_eq!(tx.query_row(jobs, params![], |row| row.int(0))?, 1_501);
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(enqueue(app, &tenant, "message.read").await, 1, "the one that is left");
    // The rest goes by itself, as it would after a restart.
    app.bells.swept_endpoints.notify_one();
    let left = "SELECT COUNT(*) FROM webhook_jobs WHERE id LIKE 'dlv_a%'";
    eventually("nothing is left", || async {
        count(app, left).await == 0
            && count(app, "SELECT COUNT(*) FROM webhook_endpoints").await == 1
    })
    .await;
    let attempts = "SELECT COUNT(*) FROM webhook_attempts WHERE job_id LIKE 'dlv_a%'";
    assert_eq!(count(app, attempts).await, 0);
    assert_eq!(count(app, "SELECT COUNT(*) FROM webhook_jobs WHERE id = 'dlv_b1'").await, 1);
}

#[tokio::test]
async fn every_secret_signs_until_its_own_end_however_often_it_is_replaced() {
    use router::store::webhook_endpoints as rows;
    let router = router(OPEN).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let whose = endpoint(app, &tenant, "http://127.0.0.1:1/", "first").await;
    let now = app.clock.now();
    app.store
        .write(move |tx| {
            let signs = |tx: &mut router::store::Tx<'_>, after_ms: i64| {
                let at = now.plus_ms(after_ms);
                let next = webhook_jobs::next(tx, &whose, at, None, (&Default::default(), 1))?;
                Ok::<_, router::store::StoreError>(next.unwrap().target.secrets)
            };
            let turn = |tx: &mut router::store::Tx<'_>, secret: &str, end_ms: i64| {
                rows::rotate(tx, &tenant, (&whose, secret), (now.plus_ms(end_ms), now))
            };
            // As it was written before there could be several.
            tx.execute(
                "UPDATE webhook_endpoints SET previous_secret = 'zeroth', previous_until = ?1",
                params![now.plus_ms(50)],
            )?;
            assert_eq!(signs(tx, 0)?, ["first", "zeroth"]);
            assert!(turn(tx, "second", 100)?);
            assert!(turn(tx, "third", 200)?);
            assert_eq!(signs(tx, 0)?, ["third", "second", "first", "zeroth"]);
            assert_eq!(signs(tx, 60)?, ["third", "second", "first"]);
            assert_eq!(signs(tx, 100)?, ["third", "second"]);
            assert_eq!(signs(tx, 200)?, ["third"]);
            let seen = rows::get(tx, (&tenant, false), &whose)?.unwrap();
            assert_eq!(seen.old_secret_until, Some(now.plus_ms(200)));
            // There is an end to it: the one that would have ended first goes.
            assert!(turn(tx, "fourth", 300)?);
            assert!(turn(tx, "fifth", 300)?);
            assert_eq!(signs(tx, 0)?, ["fifth", "fourth", "third", "second", "first"]);
            // Whoever wants no overlap has lost a secret, and wants none that is older.
            assert!(turn(tx, "sixth", 0)?);
            assert_eq!(signs(tx, 0)?, ["sixth"]);
            Ok(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn an_endpoint_that_has_failed_for_five_days_is_switched_off() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (_sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let endpoint = endpoint(app, &tenant, &format!("http://{address}/status/500"), SECRET).await;
    let five_days = app.clock.now().plus_ms(-5 * 24 * 3_600 * 1_000);
    app.store
        .write(move |tx| {
            tx.execute("UPDATE webhook_endpoints SET failing_since = ?1", params![five_days])
        })
        .await
        .unwrap();
    enqueue(app, &tenant, "message.sent").await;
    tried(app, &endpoint, 1).await;
    assert_eq!(
        count(app, "SELECT COUNT(*) FROM webhook_endpoints WHERE disabled_reason = 'failing'")
            .await,
        1
    );
    assert_eq!(job(app, &endpoint).await.0, "failed");
}

#[tokio::test]
async fn a_slow_endpoint_delays_nobody_and_gets_no_more_than_its_share() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let slow = tenant(app, "Slow").await;
    let quick = tenant(app, "Quick").await;
    endpoint(app, &slow, &format!("http://{address}/slow"), SECRET).await;
    endpoint(app, &quick, &format!("http://{address}/ok"), SECRET).await;
    for _ in 0..20 {
        enqueue(app, &slow, "message.sent").await;
    }
    sink.wait_for("/slow", 2).await;
    let since = tokio::time::Instant::now();
    for _ in 0..50 {
        enqueue(app, &quick, "message.sent").await;
    }
    sink.wait_for("/ok", 50).await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    // The places of the slow one turn over only as its deadlines pass.
    let turns = usize::try_from(since.elapsed().as_secs()).unwrap() + 3;
    assert!(sink.at("/slow").len() <= 2 * turns, "{}", sink.at("/slow").len());
    eventually("a slow answer is a failure", || async {
        count(app, "SELECT COUNT(*) FROM webhook_attempts WHERE error = 'no answer in time'").await
            > 0
    })
    .await;
}

#[tokio::test]
async fn private_addresses_are_not_called() {
    let router = router("").await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let port = address.port();
    let cases = [
        (format!("https://127.0.0.1:{port}/ok"), "its address is not public"),
        (format!("https://[::ffff:127.0.0.1]:{port}/ok"), "its address is not public"),
        (format!("https://169.254.169.254:{port}/ok"), "its address is not public"),
        (format!("https://10.0.0.1:{port}/ok"), "its address is not public"),
        (format!("https://localhost:{port}/ok"), "its name has no public address"),
        (format!("http://127.0.0.1:{port}/ok"), "not https"),
        ("file:///etc/passwd".to_owned(), "not an http or https URL with a host"),
    ];
    for (url, why) in cases {
        let endpoint = endpoint(app, &tenant, &url, SECRET).await;
        enqueue(app, &tenant, "message.sent").await;
        tried(app, &endpoint, 1).await;
        assert_eq!(error_of(app).await, (None, why.to_owned()), "{url}");
        app.store
            .write(|tx| tx.execute("UPDATE webhook_endpoints SET disabled_at = 1", params![]))
            .await
            .unwrap();
    }
    assert!(sink.hooks().is_empty());
}

#[tokio::test]
async fn nobody_there_is_a_failure_with_a_reason() {
    let router = router(OPEN).await;
    let app = &router.app;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let tenant = tenant(app, "Acme").await;
    let endpoint = endpoint(app, &tenant, &format!("http://{closed}/?token=hidden"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    tried(app, &endpoint, 1).await;
    let (status, error) = error_of(app).await;
    assert_eq!(status, None);
    assert!(error.starts_with("could not connect"), "{error}");
    assert!(!error.contains("hidden"), "{error}");
}

#[tokio::test]
async fn what_a_router_had_under_way_is_delivered_by_the_next() {
    let patient = OPEN.replace("timeout_ms = 1000", "timeout_ms = 60000");
    let first = router_in(tempfile::tempdir().unwrap(), &patient).await;
    let tenant = tenant(&first.app, "Acme").await;
    let (sink, address) = sink(&first).await;
    endpoint(&first.app, &tenant, &format!("http://{address}/slow"), SECRET).await;
    enqueue(&first.app, &tenant, "message.sent").await;
    let before = sink.wait_for("/slow", 1).await;
    // It ends without an answer, and so without a word in the store. Its store goes on while its tasks still hold it, as
    // that of a process that is killed does not: a copy of its files is what such a process leaves.
    let folder = tempfile::tempdir().unwrap();
    let left = first.app.config.database.clone();
    for file in [left.clone(), left.with_extension("db-wal")] {
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    drop(first);
    let second = router_in(folder, OPEN).await;
    let (sink, address) = self::sink(&second).await;
    let url = format!("http://{address}/ok");
    second
        .app
        .store
        .write(move |tx| tx.execute("UPDATE webhook_endpoints SET url = ?1", params![url]))
        .await
        .unwrap();
    let hooks = sink.wait_for("/ok", 1).await;
    assert_eq!(hooks[0].id, before[0].id);
}

#[tokio::test]
async fn a_delivery_that_hangs_is_made_once_and_holds_up_nothing_but_its_place() {
    let patient = OPEN.replace("timeout_ms = 1000", "timeout_ms = 60000");
    let router = router(&patient).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let (sink, address) = sink(&router).await;
    let whose = endpoint(app, &tenant, &format!("http://{address}/slow"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    sink.wait_for("/slow", 1).await;
    // What comes after it goes to where the endpoint is by then.
    let url = format!("http://{address}/ok");
    app.store
        .write(move |tx| {
            let sql = "UPDATE webhook_endpoints SET url = ?1 WHERE id = ?2";
            tx.execute(sql, params![url, whose])
        })
        .await
        .unwrap();
    for count in 1..=20 {
        enqueue(app, &tenant, "message.sent").await;
        sink.wait_for("/ok", count).await;
    }
    assert_eq!(sink.at("/slow").len(), 1, "it is under way, and not made again");
}

#[tokio::test]
async fn an_endpoint_gets_only_what_it_asked_for() {
    let router = router(OPEN).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let stranger = crate::link_support::tenant(app, "Other").await;
    endpoint(app, &tenant, "http://127.0.0.1:1/", SECRET).await;
    app.store
        .write(|tx| {
            tx.execute("UPDATE webhook_endpoints SET events = '[\"message.failed\"]'", params![])
        })
        .await
        .unwrap();
    assert_eq!(enqueue(app, &tenant, "message.sent").await, 0);
    assert_eq!(enqueue(app, &tenant, "message.failed").await, 1);
    assert_eq!(enqueue(app, &stranger, "message.failed").await, 0);
}

#[tokio::test]
async fn a_messages_life_is_told_in_sequence() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    endpoint(app, &tenant, &format!("http://{address}/ok"), SECRET).await;
    let id = accept(app, &tenant, "+12025550143", |_| {}).await;
    sink.wait_for("/ok", 2).await;
    let host = host(app, &["+15550100190"]).await;
    let mut bridge = Bridge::connect(&router, &host).await;
    let send = bridge.wire.send_command().await;
    bridge.sends(&send).await;
    bridge.event(received("+12025550143", "guid-1", "STOP", app.clock.now())).await;
    let confirmation = bridge.wire.send_command().await;
    bridge.sends(&confirmation).await;
    reaches(app, &tenant, &id, Status::Sent).await;
    let hooks = sink.wait_for("/ok", 5).await;
    let mut told: Vec<(String, u64)> = hooks
        .iter()
        .map(|hook| {
            let body: serde_json::Value = serde_json::from_str(&hook.body).unwrap();
            (
                body["type"].as_str().unwrap().to_owned(),
                body["data"]["sequence"].as_u64().unwrap_or(0),
            )
        })
        .collect();
    told.sort();
    let told: Vec<(&str, u64)> = told.iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
    // Our own confirmation is not among them.
    assert_eq!(
        told,
        [
            ("contact.opted_out", 0),
            ("message.held", 2),
            ("message.queued", 1),
            ("message.received", 1),
            ("message.sent", 6),
        ]
    );
}

#[tokio::test]
async fn how_the_answer_began_is_kept_and_no_more_of_it() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (_sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let endpoint = endpoint(app, &tenant, &format!("http://{address}/talks"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    tried(app, &endpoint, 1).await;
    let kept = app
        .store
        .read(|tx| {
            tx.query_row("SELECT response FROM webhook_attempts", params![], |row| row.text(0))
        })
        .await
        .unwrap();
    assert!(kept.starts_with("no  upstream [31m no"), "{kept}");
    assert_eq!(kept.len(), 1_024);
    assert_eq!(error_of(app).await, (Some(502), "answered 502".to_owned()));
}

#[tokio::test]
async fn one_outage_that_fails_many_deliveries_under_way_opens_the_breaker_once() {
    let many = OPEN.replace("per_endpoint = 2", "per_endpoint = 16");
    let router = router(&many).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    endpoint(app, &tenant, &format!("http://{address}/late/500"), SECRET).await;
    for _ in 0..16 {
        enqueue(app, &tenant, "message.sent").await;
    }
    sink.wait_for("/late/500", 16).await;
    eventually("all is written down", || async {
        sink.answers.notify_waiters();
        count(app, "SELECT SUM(attempts) FROM webhook_jobs").await >= 16
    })
    .await;
    assert_eq!(count(app, "SELECT failures FROM webhook_endpoints").await, 5);
    let ends = count(app, "SELECT paused_until FROM webhook_endpoints").await - app.clock.now().0;
    assert!(ends <= 12_000, "{ends}");
}

#[tokio::test]
async fn a_damaged_row_keeps_nobody_but_itself_from_what_is_delivered() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let mut damaged = Vec::new();
    for path in ["bad-secrets", "bad-count", "bad-types"] {
        damaged.push(endpoint(app, &tenant, &format!("http://{address}/{path}"), SECRET).await);
    }
    endpoint(app, &tenant, &format!("http://{address}/ok"), SECRET).await;
    let (secrets, failures, types) = (damaged[0].clone(), damaged[1].clone(), damaged[2].clone());
    app.store
        .write(move |tx| {
            tx.execute(
                "UPDATE webhook_endpoints SET events = x'ff' WHERE id = ?1",
                params![types],
            )?;
            tx.execute(
                "UPDATE webhook_endpoints SET previous_secret = '[what' WHERE id = ?1",
                params![secrets],
            )?;
            tx.execute(
                "UPDATE webhook_endpoints SET failures = 'many' WHERE id = ?1",
                params![failures],
            )
        })
        .await
        .unwrap();
    assert_eq!(enqueue(app, &tenant, "message.sent").await, 4);
    sink.wait_for("/ok", 1).await;
    sink.wait_for("/bad-types", 1).await;
    // More of them than are looked at in one go: none of those behind them is kept waiting.
    app.store
        .write(|tx| {
            tx.execute(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9)
                 INSERT INTO webhook_jobs
                     (id, endpoint_id, tenant_id, event_id, type, body, state, run_at, attempts, created_at)
                 SELECT 'dlv_damaged' || n.i, j.endpoint_id, j.tenant_id, 'none', j.type, j.body, 'pending',
                     j.run_at - 1, 0, j.created_at
                 FROM n CROSS JOIN webhook_jobs j JOIN webhook_endpoints e ON e.id = j.endpoint_id WHERE e.url LIKE '%/ok'",
                params![],
            )
        })
        .await
        .unwrap();
    assert_eq!(enqueue(app, &tenant, "message.read").await, 4);
    sink.wait_for("/ok", 2).await;
    let failed =
        "SELECT COUNT(*) FROM webhook_jobs WHERE id LIKE 'dlv_damaged%' AND state = 'failed'";
    assert_eq!(count(app, failed).await, 9);
    // A time that is none is not waited for.
    app.store
        .write(|tx| {
            tx.execute(
                "INSERT INTO webhook_jobs
                     (id, endpoint_id, tenant_id, event_id, type, body, state, run_at, attempts, created_at)
                 SELECT 'dlv_damaged_time', endpoint_id, tenant_id, event_id, type, body, 'pending', 1.5, 0, created_at
                 FROM webhook_jobs WHERE state = 'delivered' LIMIT 1",
                params![],
            )
        })
        .await
        .unwrap();
    app.bells.webhooks.notify_one();
    eventually("it is failed", || async { count(app, failed).await == 10 }).await;
    // What is whole again gets all that waited for it.
    app.store
        .write(|tx| {
            tx.execute(
                "UPDATE webhook_endpoints SET previous_secret = NULL, failures = 0",
                params![],
            )
        })
        .await
        .unwrap();
    enqueue(app, &tenant, "message.delivered").await;
    sink.wait_for("/bad-secrets", 3).await;
    sink.wait_for("/bad-count", 3).await;
}

#[tokio::test]
async fn an_endpoint_that_fails_again_and_again_is_left_alone_and_nothing_is_used_up_meanwhile() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    endpoint(app, &tenant, &format!("http://{address}/status/500"), SECRET).await;
    for _ in 0..20 {
        enqueue(app, &tenant, "message.sent").await;
    }
    let paused = "SELECT COUNT(*) FROM webhook_endpoints WHERE paused_until IS NOT NULL";
    eventually("it is left alone", || async { count(app, paused).await == 1 }).await;
    // Two at a time at first, then one: the fifth failure may have one beside it.
    let tried = sink.at("/status/500").len();
    assert!((5..=6).contains(&tried), "{tried}");
    let untouched = "SELECT COUNT(*) FROM webhook_jobs WHERE attempts = 0 AND state = 'pending'";
    eventually("all is written down", || async {
        count(app, "SELECT SUM(attempts) FROM webhook_jobs").await
            == i64::try_from(sink.at("/status/500").len()).unwrap()
    })
    .await;
    assert_eq!(count(app, untouched).await, 20 - i64::try_from(tried).unwrap());
    let ends = app
        .store
        .read(|tx| {
            tx.query_row("SELECT paused_until FROM webhook_endpoints", params![], |row| row.int(0))
        })
        .await
        .unwrap()
        - app.clock.now().0;
    assert!((5_000..=24_000).contains(&ends), "{ends}");

    // It works again; the pause ends: one shows it, and the others follow.
    let url = format!("http://{address}/ok");
    app.store
        .write(move |tx| {
            tx.execute("UPDATE webhook_endpoints SET url = ?1, paused_until = 1", params![url])
        })
        .await
        .unwrap();
    app.bells.webhooks.notify_one();
    sink.wait_for("/ok", 20 - tried).await;
    eventually("it counts as sound", || async {
        count(
            app,
            "SELECT COUNT(*) FROM webhook_endpoints
             WHERE failures = 0 AND paused_until IS NULL AND failing_since IS NULL",
        )
        .await
            == 1
    })
    .await;
    let delivered = "SELECT COUNT(*) FROM webhook_jobs WHERE state = 'delivered' AND attempts = 1";
    eventually("the others have followed", || async {
        count(app, delivered).await == 20 - i64::try_from(tried).unwrap()
    })
    .await;
}

#[tokio::test]
async fn what_was_replayed_has_its_whole_schedule_before_it_again() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let whose = endpoint(app, &tenant, &format!("http://{address}/status/503"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    tried(app, &whose, 1).await;
    app.store
        .write(|tx| tx.execute("UPDATE webhook_jobs SET run_at = 0, attempts = 9", params![]))
        .await
        .unwrap();
    app.bells.webhooks.notify_one();
    assert_eq!(tried(app, &whose, 10).await.0, "failed");
    let (owner, endpoint, now) = (tenant.clone(), whose.clone(), app.clock.now());
    let replayed = app
        .store
        .write(move |tx| {
            use router::store::webhook_endpoints::{self as rows, Range};
            let range = Range {
                since: now.plus_ms(-60_000),
                until: now.plus_ms(1),
                delivered: false,
                after: None,
            };
            rows::replay_range(tx, &owner, &endpoint, &range, (now, 10))
        })
        .await
        .unwrap();
    assert_eq!(replayed, (1, None));
    app.bells.webhooks.notify_one();
    let (state, attempts, wait) = tried(app, &whose, 11).await;
    assert_eq!((state.as_str(), attempts), ("pending", 11));
    assert!((3_500..=6_100).contains(&wait), "{wait}");
    // The log has them all, under one id.
    assert_eq!(count(app, "SELECT COUNT(*) FROM webhook_attempts").await, 3);
    let hooks = sink.at("/status/503");
    assert!(hooks.iter().all(|hook| hook.id == hooks[0].id));
}

#[tokio::test]
async fn a_range_is_replayed_in_steps_that_meet_each_delivery_once() {
    let router = router(OPEN).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let stranger = crate::link_support::tenant(app, "Other").await;
    let whose = endpoint(app, &tenant, "http://127.0.0.1:1/", SECRET).await;
    let of_stranger = endpoint(app, &stranger, "http://127.0.0.1:1/", SECRET).await;
    for _ in 0..5 {
        enqueue(app, &tenant, "message.sent").await;
        enqueue(app, &stranger, "message.sent").await;
    }
    let end = "UPDATE webhook_jobs SET state = 'delivered'";
    eventually("all have been tried", || async {
        count(app, "SELECT COUNT(*) FROM webhook_attempts").await == 10
    })
    .await;
    app.store
        .write(move |tx| {
            tx.execute("UPDATE webhook_endpoints SET disabled_at = 1", params![])?;
            tx.execute(end, params![])
        })
        .await
        .unwrap();
    let now = app.clock.now();
    let replay = |delivered, endpoint: &EndpointId, after| {
        let (tenant, endpoint) = (tenant.clone(), endpoint.clone());
        app.store.write(move |tx| {
            use router::store::webhook_endpoints::{self as rows, Range};
            let until = now.plus_ms(1);
            let range = Range { since: now.plus_ms(-60_000), until, delivered, after };
            let done = rows::replay_range(tx, &tenant, &endpoint, &range, (now, 2))?;
            // As if each were delivered at once.
            tx.execute(end, params![])?;
            Ok(done)
        })
    };
    assert_eq!(replay(false, &whose, None).await.unwrap(), (0, None));
    assert_eq!(replay(true, &of_stranger, None).await.unwrap(), (0, None), "another tenant's");
    let (mut after, mut counts) = (None, Vec::new());
    loop {
        let (count, next) = replay(true, &whose, after).await.unwrap();
        counts.push(count);
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(counts, [2, 2, 1]);
}

/// Checks requests as a tenant's program in another language does, with the library that the specification comes with.
const VERIFY: &str = "
import json, sys
from standardwebhooks import Webhook, WebhookVerificationError
for case in json.load(sys.stdin):
    try:
        Webhook(case['secret']).verify(case['body'], case['headers'])
        print('good')
    except WebhookVerificationError:
        print('bad')
";

/// Runs a script with something on its standard input.
fn run_script(script: &str, input: &str) -> Output {
    let mut child = crate::python_support::program("python")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn a_library_of_another_language_believes_the_signatures_of_both_secrets_and_no_others() {
    let router = router(OPEN).await;
    let app = &router.app;
    let (sink, address) = sink(&router).await;
    let tenant = tenant(app, "Acme").await;
    let whose = endpoint(app, &tenant, &format!("http://{address}/ok"), SECRET).await;
    enqueue(app, &tenant, "message.sent").await;
    sink.wait_for("/ok", 1).await;
    let new = "whsec_YW5vdGhlci1zZWNyZXQtb2YtdGhlLXRlc3Rz";
    let rotate = |secret: &'static str, overlap_ms: i64| {
        let (tenant, whose, now) = (tenant.clone(), whose.clone(), app.clock.now());
        app.store.write(move |tx| {
            use router::store::webhook_endpoints as rows;
            rows::rotate(tx, &tenant, (&whose, secret), (now.plus_ms(overlap_ms), now))
        })
    };
    assert!(rotate(new, 3_600_000).await.unwrap());
    enqueue(app, &tenant, "message.sent").await;
    sink.wait_for("/ok", 2).await;
    // A rotation without an overlap: the secret before it is worth nothing at once.
    let newest = "whsec_dGhlLW5ld2VzdC1vZi10aGUtc2VjcmV0cw==";
    assert!(rotate(newest, 0).await.unwrap());
    enqueue(app, &tenant, "message.sent").await;
    let hooks = sink.wait_for("/ok", 3).await;
    let case = |hook: &Hook, secret: &str, change: &dyn Fn(&mut Hook)| {
        let mut hook = hook.clone();
        change(&mut hook);
        serde_json::json!({"secret": secret, "body": hook.body, "headers": {
            "webhook-id": hook.id, "webhook-timestamp": hook.timestamp, "webhook-signature": hook.signature}})
    };
    let as_it_is: &dyn Fn(&mut Hook) = &|_| {};
    let cases = [
        (case(&hooks[0], SECRET, as_it_is), "good"),
        (case(&hooks[0], new, as_it_is), "bad"),
        (case(&hooks[1], SECRET, as_it_is), "good"),
        (case(&hooks[1], new, as_it_is), "good"),
        (case(&hooks[1], newest, as_it_is), "bad"),
        (case(&hooks[1], new, &|hook| hook.body.push(' ')), "bad"),
        (case(&hooks[1], new, &|hook| hook.id.push('x')), "bad"),
        (case(&hooks[1], new, &|hook| hook.timestamp = "1".to_owned()), "bad"),
        (case(&hooks[2], newest, as_it_is), "good"),
        (case(&hooks[2], new, as_it_is), "bad"),
        (case(&hooks[2], SECRET, as_it_is), "bad"),
    ];
    let input: Vec<_> = cases.iter().map(|(case, _)| case).collect();
    let input = serde_json::to_string(&input).unwrap();
    let ran = tokio::task::spawn_blocking(move || run_script(VERIFY, &input));
    let ran = ran.await.unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    let said: Vec<&str> = said.lines().collect();
    let expected: Vec<&str> = cases.iter().map(|(_, expected)| *expected).collect();
    assert_eq!(said, expected, "{}", String::from_utf8_lossy(&ran.stderr));
}
