//! The program is killed again and again while an endpoint has webhooks of it and has not answered.
#![expect(clippy::disallowed_methods, reason = "the endpoint lives as long as the test")]
#![expect(
    clippy::unwrap_used,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::provider_crash::{ADMIN, Serving, eventually};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// An endpoint that takes everything, and answers only when it is told to.
#[derive(Clone, Default)]
struct Endpoint {
    answers: Arc<AtomicBool>,
    /// The ids, in order, and when each came.
    taken: Arc<Mutex<Vec<(String, i64)>>>,
}

impl Endpoint {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let routes = axum::Router::new().fallback(take).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        url
    }

    fn taken(&self) -> Vec<(String, i64)> {
        self.taken.lock().unwrap().clone()
    }

    /// How often it has seen each event, in the order in which they first came.
    fn counts(&self) -> Vec<usize> {
        let mut counts: Vec<(String, usize)> = Vec::new();
        for (id, _at) in self.taken() {
            match counts.iter_mut().find(|(seen, _count)| *seen == id) {
                Some((_seen, count)) => *count += 1,
                None => counts.push((id, 1)),
            }
        }
        counts.into_iter().map(|(_id, count)| count).collect()
    }

    async fn sees(&self, counts: &[usize]) {
        eventually(&format!("it sees {counts:?}"), async || self.counts() == counts).await;
    }
}

async fn take(State(endpoint): State<Endpoint>, headers: HeaderMap) -> StatusCode {
    let id = headers.get("webhook-id").unwrap().to_str().unwrap().to_owned();
    let at = router::clock::Clock::system().now().0;
    endpoint.taken.lock().unwrap().push((id, at));
    if !endpoint.answers.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_mins(5)).await;
    }
    StatusCode::NO_CONTENT
}

/// What the store says of the newest start: when, after how many deaths, and whether it has ended well.
fn newest_start(folder: &Path) -> (i64, i64, bool) {
    let store = rusqlite::Connection::open(folder.join("switchboard.db")).unwrap();
    store
        .query_row("SELECT started_at, deaths, stopped FROM starts", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap()
}

#[tokio::test]
async fn a_router_that_dies_at_each_start_does_not_post_the_same_webhooks_at_each_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("router.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndatabase_log_mib = 0\nadmin_token = \"{ADMIN}\"\n[webhooks]\nallow_private = true\ntimeout_ms = 60000\n"
    );
    std::fs::write(&config, text).unwrap();
    let endpoint = Endpoint::default();
    let url = endpoint.start().await;

    let first = Serving::start(&config);
    let tenant = first.post("/v1/admin/tenants", ADMIN, &json!({"name": "Acme"})).await;
    let body = json!({"tenant": tenant["id"], "name": "key"});
    let key =
        first.post("/v1/admin/keys", ADMIN, &body).await["secret"].as_str().unwrap().to_owned();
    let made = first.post("/v1/webhook_endpoints", &key, &json!({"url": url})).await;
    let test = format!("/v1/webhook_endpoints/{}/test", made["id"].as_str().unwrap());
    first.post(&test, &key, &Value::Null).await;
    endpoint.sees(&[1]).await;
    drop(first);

    // One death says nothing: what was under way is due at once.
    let second = Serving::start(&config);
    endpoint.sees(&[2]).await;
    drop(second);

    // Two in a row do: what was under way waits, and what is new does not.
    let third = Serving::start(&config);
    third.post(&test, &key, &Value::Null).await;
    endpoint.sees(&[2, 1]).await;
    let (started_at, deaths, _) = newest_start(folder.path());
    assert_eq!(deaths, 2);
    endpoint.sees(&[3, 1]).await;
    let (_id, at) = endpoint.taken().last().unwrap().clone();
    assert!(at >= started_at + 5_000, "it came {} ms after the start", at - started_at);
    drop(third);

    // After a pause there is a life without one, and after that the next pause, which goes on from life to life.
    for deaths in 3..6 {
        let next = Serving::start(&config);
        next.post(&test, &key, &Value::Null).await;
        let mut seen = vec![4, 2];
        seen.extend(vec![1; deaths - 2]);
        endpoint.sees(&seen).await;
        assert_eq!(newest_start(folder.path()).1, i64::try_from(deaths).unwrap());
    }

    // A life that was long enough forgives; then everything that waits is due at once.
    endpoint.answers.store(true, Ordering::SeqCst);
    rusqlite::Connection::open(folder.path().join("switchboard.db"))
        .unwrap()
        .execute("UPDATE starts SET started_at = started_at - 600000", [])
        .unwrap();
    let last = Serving::start(&config);
    endpoint.sees(&[5, 3, 2, 2, 2]).await;
    let deliveries =
        format!("{}/v1/webhook_endpoints/{}/deliveries", last.url, made["id"].as_str().unwrap());
    eventually("all are written down as delivered", async || {
        let page = last.call(last.client.get(&deliveries).bearer_auth(&key)).await;
        let data = page["data"].as_array().unwrap();
        data.len() == 5 && data.iter().all(|delivery| delivery["state"] == "delivered")
    })
    .await;

    // An end in order is no death.
    kill(Pid::from_raw(i32::try_from(last.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    eventually("it ends", async || newest_start(folder.path()).2).await;
    drop(last);
    drop(Serving::start(&config));
    assert_eq!(newest_start(folder.path()).1, 0);
}
