//! A webhook endpoint: checks every signature as a tenant should, keeps every event.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::hmac;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use data_encoding::BASE64;
use protocol::MessageId;
use protocol::api::WebhookBody;
use tokio_util::task::TaskTracker;

/// Oldest and newest timestamp that is believed, in seconds from now.
const TOLERANCE_S: i64 = 300;

/// What came in so far.
#[derive(Debug, Default)]
struct Seen {
    secret: Option<Vec<u8>>,
    ids: HashSet<String>,
    events: Vec<WebhookBody>,
    refused: Vec<String>,
}

/// A running endpoint on the loopback interface.
#[derive(Debug, Clone)]
pub struct Sink {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

impl Sink {
    /// Starts one on a free port.
    pub async fn start(tasks: &TaskTracker) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("sink")?;
        let url = format!("http://{}/hooks", listener.local_addr().context("sink")?);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let routes = Router::new().route("/hooks", post(take)).with_state(Arc::clone(&seen));
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                report(&error.to_string());
            }
        });
        Ok(Self { url, seen })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The secret of the endpoint that the router made; before it is known everything is refused.
    pub fn set_secret(&self, secret: &str) -> Result<()> {
        let body = secret.strip_prefix("whsec_").context("a secret begins with whsec_")?;
        let key = BASE64.decode(body.as_bytes()).context("a secret is base64")?;
        self.lock().secret = Some(key);
        Ok(())
    }

    /// Every event with a good signature, in the order of arrival, each `webhook-id` once.
    pub fn events(&self) -> Vec<WebhookBody> {
        self.lock().events.clone()
    }

    /// The types of the events about one message, in the order of their sequence numbers.
    pub fn types_of(&self, message: &MessageId) -> Vec<String> {
        let mut events: Vec<_> = self
            .events()
            .into_iter()
            .filter(|event| event.data.message.as_ref() == Some(message))
            .collect();
        events.sort_by_key(|event| event.data.sequence);
        events.into_iter().map(|event| event.kind).collect()
    }

    /// What was refused, and why.
    pub fn refused(&self) -> Vec<String> {
        self.lock().refused.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn take(
    State(seen): State<Arc<Mutex<Seen>>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    match check(seen.secret.as_deref(), &headers, &body) {
        Ok((id, event)) => {
            if seen.ids.insert(id) {
                seen.events.push(event);
            }
            (StatusCode::OK, String::new())
        }
        Err(error) => {
            seen.refused.push(format!("{error:#}"));
            (StatusCode::UNAUTHORIZED, format!("{error:#}"))
        }
    }
}

/// Standard Webhooks 1.0: HMAC-SHA256 over `id.timestamp.body`, compared in constant time.
fn check(secret: Option<&[u8]>, headers: &HeaderMap, body: &[u8]) -> Result<(String, WebhookBody)> {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .with_context(|| format!("no {name} header"))
    };
    let id = header("webhook-id")?;
    let timestamp = header("webhook-timestamp")?;
    let age = crate::clock::now().0 / 1000 - timestamp.parse::<i64>().context("timestamp")?;
    if age.abs() > TOLERANCE_S {
        bail!("timestamp is {age} s away");
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.context("no secret yet")?);
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    let good = header("webhook-signature")?
        .split(' ')
        .filter_map(|signature| signature.strip_prefix("v1,"))
        .filter_map(|signature| BASE64.decode(signature.as_bytes()).ok())
        .any(|signature| hmac::verify(&key, &signed, &signature).is_ok());
    if !good {
        bail!("the signature is not right");
    }
    Ok((id.to_owned(), serde_json::from_slice(body).context("body")?))
}

/// The sink has no caller to tell; its end shows in the story, and here why.
#[expect(clippy::print_stderr, reason = "a harness speaks to people")]
fn report(error: &str) {
    eprintln!("webhook sink ended: {error}");
}
