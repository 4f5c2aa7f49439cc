//! A whole router on a free port, with its store in a temporary folder.
#![expect(
    clippy::indexing_slicing,
    reason = "JSON without the field asked for fails the test, as it should"
)]

use std::time::Duration;

use reqwest::header::HeaderMap;
use router::clock::Clock;
use router::config::Config;
use router::server::{self, App, AppState};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// The operator's token of every test.
pub(crate) const ADMIN: &str = "operator-token-of-the-tests";

/// A running router.
pub(crate) struct Router {
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    pub(crate) app: AppState,
    served: JoinHandle<std::io::Result<()>>,
    _folder: tempfile::TempDir,
}

/// A tenant with a key of each kind.
pub(crate) struct Tenant {
    pub(crate) id: String,
    pub(crate) live: String,
    pub(crate) test: String,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The code of a problem; every refusal must be a whole one.
    pub(crate) fn problem(&self) -> &str {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], self.status, "{self:?}");
        assert!(
            self.body["request_id"].as_str().expect("the tests' router works").starts_with("req_"),
            "{self:?}"
        );
        assert!(self.body["title"].is_string() && self.body["type"].is_string(), "{self:?}");
        self.body["code"].as_str().expect("the tests' router works")
    }
}

impl Router {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// `more` is TOML behind the tests' own settings.
    pub(crate) async fn start_with(more: &str) -> Self {
        // A second router of the same process finds the provider installed.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let folder = tempfile::tempdir().expect("the tests' router works");
        let text =
            format!("admin_token = \"{ADMIN}\"\ndatabase_log_mib = 0\ndrain_ms = 2000\n{more}\n");
        let text = if more.contains("[webhooks]") {
            text
        } else {
            format!("{text}[webhooks]\nallow_private = true\n")
        };
        // Tests run at any hour; those about the hours choose their own.
        let text = if more.contains("[compliance]") {
            text
        } else {
            format!("{text}[compliance]\nhours = \"off\"\n")
        };
        let config = Config::parse(&text, &folder.path().join("router.toml"), None)
            .expect("the tests' router works");
        let app = App::open(config, Clock::system()).await.expect("the tests' router works");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the tests' router works");
        let url = format!("http://{}", listener.local_addr().expect("the tests' router works"));
        let serving = AppState::clone(&app);
        // Not on the router's own tasks: its drain waits for those.
        let served =
            TaskTracker::new().spawn(async move { server::serve(&serving, listener).await });
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(20))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .expect("the tests' router works");
        Self { url, client, app, served, _folder: folder }
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("the tests' router works");
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let bytes = response.bytes().await.expect("the tests' router works");
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status, headers, body }
    }

    pub(crate) async fn get(&self, path: &str, key: &str) -> Answer {
        self.send(self.client.get(format!("{}{path}", self.url)).bearer_auth(key)).await
    }

    pub(crate) async fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        let request = self.client.post(format!("{}{path}", self.url)).bearer_auth(key).json(body);
        self.send(request).await
    }

    pub(crate) async fn delete(&self, path: &str, key: &str) -> Answer {
        self.send(self.client.delete(format!("{}{path}", self.url)).bearer_auth(key)).await
    }

    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        let made = self.post("/v1/admin/tenants", ADMIN, &json!({"name": name})).await;
        assert_eq!(made.status, 201, "{made:?}");
        let id = made.body["id"].as_str().expect("the tests' router works").to_owned();
        let mut secrets = Vec::new();
        for test in [false, true] {
            let body = json!({"tenant": id, "name": "key", "test": test});
            let made = self.post("/v1/admin/keys", ADMIN, &body).await;
            assert_eq!(made.status, 201, "{made:?}");
            secrets.push(made.body["secret"].as_str().expect("the tests' router works").to_owned());
        }
        let test = secrets.pop().expect("the tests' router works");
        let live = secrets.pop().expect("the tests' router works");
        Tenant { id, live, test }
    }

    /// Waits until the condition holds; a test that waits longer has failed.
    pub(crate) async fn until(&self, condition: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !condition().await {
            assert!(tokio::time::Instant::now() < deadline, "it did not happen within 30 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops it the way a signal does, and checks that it drains.
    /// Ends a message as its third failure would.
    pub(crate) async fn dead_letter(&self, id: &str) {
        let id: protocol::MessageId = id.parse().expect("it is an id");
        let now = self.app.clock.now();
        self.app
            .store
            .write(move |tx| {
                use router::store::{change, dead_letters, dispatch, messages};
                let tenant = messages::owner(tx, &id)?.expect("there is such a message");
                let failed = change::Change::to(protocol::Status::Failed, now);
                change::make(tx, &tenant, &id, &failed)?;
                dispatch::drop_job(tx, &tenant, &id)?;
                let why = protocol::Reason::AttemptsExhausted;
                dead_letters::keep(tx, &tenant, &id, why, now)
            })
            .await
            .expect("it is a dead letter now");
    }

    pub(crate) async fn stop(self) {
        self.app.stop.cancel();
        let served = tokio::time::timeout(Duration::from_secs(10), self.served).await;
        served.expect("it drains").expect("it does not panic").expect("it serves");
    }
}
