//! Stand-ins for Twilio and Telnyx: they check credentials and answer as the documents say.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub(crate) const ACCOUNT: &str = "AC00000000000000000000000000000001";
pub(crate) const TOKEN: &str = "token-of-the-twilio-account";
pub(crate) const API_KEY: &str = "KEY-of-the-telnyx-account";

/// What a stand-in does with the next request to send.
#[derive(Debug, Clone)]
pub(crate) enum Do {
    /// Answers this.
    Answer(u16, Value),
    /// Answers 429 with this `Retry-After`.
    TooMany(u32),
    /// Takes the request, keeps the message, and never answers.
    TakeAndHang,
    /// Takes the request, keeps the message, and breaks the connection by an answer that is none.
    TakeAndBreak,
    /// Takes nothing and never answers.
    Hang,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// A message that the provider has taken.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) id: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) status: String,
    pub(crate) created: String,
}

impl Taken {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

#[derive(Debug, Default)]
struct Inside {
    script: VecDeque<Do>,
    always: Option<Do>,
    asked: Vec<Asked>,
    taken: Vec<Taken>,
}

/// A provider on a free port.
#[derive(Debug)]
pub(crate) struct StandIn {
    pub(crate) url: String,
    inside: Arc<Mutex<Inside>>,
    _served: AbortOnDropHandle<()>,
}

type Shared = Arc<Mutex<Inside>>;

impl StandIn {
    pub(crate) async fn twilio() -> Self {
        Self::start(|shared| Router::new().fallback(twilio).with_state(shared)).await
    }

    pub(crate) async fn telnyx() -> Self {
        Self::start(|shared| Router::new().fallback(telnyx).with_state(shared)).await
    }

    async fn start(routes: impl FnOnce(Shared) -> Router) -> Self {
        let inside = Shared::default();
        let app = routes(Arc::clone(&inside));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it has an address"));
        let served = TaskTracker::new().spawn(async move {
            axum::serve(listener, app).await.expect("it serves");
        });
        Self { url, inside, _served: AbortOnDropHandle::new(served) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.inside.lock().expect("no test panics with it")
    }

    /// The next request to send meets this.
    pub(crate) fn next(&self, what: Do) {
        self.lock().script.push_back(what);
    }

    /// All requests to send meet this, until told otherwise.
    pub(crate) fn always(&self, what: Option<Do>) {
        self.lock().always = what;
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.lock().taken.clone()
    }

    pub(crate) fn set_status(&self, id: &str, status: &str) {
        let mut inside = self.lock();
        let found = inside.taken.iter_mut().find(|taken| taken.id == id);
        status.clone_into(&mut found.expect("it was taken").status);
    }
}

fn now(inside: &mut Inside, asked: Asked, send: bool) -> Option<Do> {
    inside.asked.push(asked);
    if send { inside.script.pop_front().or_else(|| inside.always.clone()) } else { None }
}

fn answer(status: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, axum::Json(body.clone())).into_response()
}

async fn twilio(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = String::from_utf8(body.to_vec()).expect("a form is text");
    let asked = Asked { method: method.clone(), headers: headers.clone(), body: text.clone() };
    let login = format!("{ACCOUNT}:{TOKEN}");
    let login = format!("Basic {}", data_encoding::BASE64.encode(login.as_bytes()));
    let base = format!("/2010-04-01/Accounts/{ACCOUNT}/Messages");
    let send = method == Method::POST && uri.path() == format!("{base}.json");
    let (next, number) = {
        let mut inside = shared.lock().expect("no test panics with it");
        (now(&mut inside, asked, send), inside.taken.len() + 1)
    };
    if headers.get("authorization").is_none_or(|value| value.as_bytes() != login.as_bytes()) {
        return answer(401, &json!({"code": 20003, "message": "Authenticate", "status": 401}));
    }
    if !send {
        let inside = shared.lock().expect("no test panics with it");
        let all = inside.taken.iter().rev().map(resource);
        if uri.path() == format!("{base}.json") {
            let to = url::Url::parse(&format!("http://x{uri}")).expect("a path");
            let to = to.query_pairs().find(|(name, _)| name == "To").map(|(_, to)| to.into_owned());
            let to = to.unwrap_or_default();
            let messages: Vec<Value> =
                all.filter(|one| to.is_empty() || one["to"] == to.as_str()).collect();
            return answer(200, &json!({"messages": messages, "page": 0}));
        }
        let id =
            uri.path().strip_prefix(&format!("{base}/")).and_then(|id| id.strip_suffix(".json"));
        let found = all.into_iter().find(|one| id.is_some_and(|id| one["sid"] == id));
        return found.map_or_else(
            || answer(404, &json!({"code": 20404, "message": "not found", "status": 404})),
            |one| answer(200, &one),
        );
    }
    let form: Vec<(String, String)> =
        url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
    let taken = Taken {
        id: format!("SM{number:032}"),
        fields: form,
        status: "queued".to_owned(),
        created: jiff::fmt::rfc2822::to_string(&jiff::Zoned::now()).expect("the present is a time"),
    };
    let first = resource(&taken);
    let keep = || shared.lock().expect("no test panics with it").taken.push(taken);
    match next {
        None => {
            keep();
            answer(201, &first)
        }
        Some(other) => meet(other, keep).await,
    }
}

async fn meet(what: Do, keep: impl FnOnce()) -> Response {
    match what {
        Do::Answer(status, body) => answer(status, &body),
        Do::TooMany(seconds) => {
            let body = json!({"code": 20429, "message": "Too many requests"});
            let mut response = answer(429, &body);
            response.headers_mut().insert("retry-after", seconds.into());
            response
        }
        Do::TakeAndHang => {
            keep();
            std::future::pending().await
        }
        Do::TakeAndBreak => {
            keep();
            let body = json!(null);
            let mut response = answer(201, &body);
            // Longer than what comes: the connection breaks in the middle.
            response.headers_mut().insert("content-length", 4_000.into());
            response
        }
        Do::Hang => std::future::pending().await,
    }
}

fn resource(taken: &Taken) -> Value {
    json!({
        "sid": taken.id, "status": taken.status, "to": taken.field("To"), "from": taken.field("From"),
        "messaging_service_sid": null, "body": taken.field("Body"), "date_created": taken.created,
        "error_code": null, "error_message": null, "num_segments": "1",
    })
}

async fn telnyx(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = String::from_utf8(body.to_vec()).expect("JSON is text");
    let asked = Asked { method: method.clone(), headers: headers.clone(), body: text.clone() };
    let send = method == Method::POST && uri.path() == "/v2/messages";
    let (next, number) = {
        let mut inside = shared.lock().expect("no test panics with it");
        (now(&mut inside, asked, send), inside.taken.len() + 1)
    };
    let login = format!("Bearer {API_KEY}");
    if headers.get("authorization").is_none_or(|value| value.as_bytes() != login.as_bytes()) {
        let error = json!({"code": "10009", "title": "Authentication failed"});
        return answer(401, &json!({"errors": [error]}));
    }
    let message = |taken: &Taken| {
        json!({"data": {"id": taken.id, "record_type": "message",
            "to": [{"phone_number": taken.field("to"), "status": taken.status}]}})
    };
    if !send {
        if uri.path() == "/v2/messaging_profiles" {
            return answer(200, &json!({"data": []}));
        }
        let inside = shared.lock().expect("no test panics with it");
        let found =
            inside.taken.iter().find(|one| uri.path() == format!("/v2/messages/{}", one.id));
        let none = json!({"errors": [{"code": "10005", "title": "Resource not found"}]});
        return found.map_or_else(|| answer(404, &none), |one| answer(200, &message(one)));
    }
    let fields: Value = serde_json::from_str(&text).expect("JSON");
    let fields = fields.as_object().expect("an object").iter();
    let fields = fields.map(|(name, value)| {
        (name.clone(), value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned))
    });
    let taken = Taken {
        id: format!("40385f64-0000-0000-0000-{number:012}"),
        fields: fields.collect(),
        status: "queued".to_owned(),
        created: String::new(),
    };
    let first = message(&taken);
    let keep = || shared.lock().expect("no test panics with it").taken.push(taken);
    match next {
        None => {
            keep();
            answer(200, &first)
        }
        Some(other) => meet(other, keep).await,
    }
}
