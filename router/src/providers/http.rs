//! One request to a provider's API: bounded in time and size, and never made twice.

use std::time::Duration;

use protocol::UnixMs;
use reqwest::header::RETRY_AFTER;
use reqwest::{RequestBuilder, Url};

use super::{Fault, Outcome, Reason, Refusal};
use crate::webhooks::guard;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 * 1_024;

/// Longest explanation that is kept, in characters.
const DETAIL_CHARS_MAX: usize = 200;

/// The longest that a provider is left alone because it asks for it.
const RETRY_AFTER_MAX_MS: i64 = 5 * 60_000;

/// How patient the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the connection, with name and TLS.
    pub connect: Duration,
    /// For the whole request, its connection included; longer than `connect`.
    pub request: Duration,
    /// The provider's address may be private and without TLS.
    pub allow_private: bool,
}

/// The client of one provider's API.
#[derive(Debug, Clone)]
pub struct Client {
    inner: reqwest::Client,
    base: Url,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after_ms: Option<i64>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// Nothing of the request was written: there was no connection.
    pub(crate) never_asked: bool,
    /// For people: without the address, which may hold an account's name.
    pub(crate) detail: String,
}

impl Client {
    /// For the API at `base`.
    pub fn new(base: Url, limits: Limits) -> Self {
        if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
            tracing::debug!("providers: the TLS provider was there already");
        }
        let policy =
            guard::Policy { allow_private: limits.allow_private, networks: Vec::new().into() };
        let inner = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            // A request that may have been written is not written again.
            .retry(reqwest::retry::never())
            .no_proxy()
            .dns_resolver(guard::PublicResolver::new(policy))
            .connect_timeout(limits.connect)
            .timeout(limits.request)
            .user_agent(concat!("Switchboard/", env!("CARGO_PKG_VERSION")))
            .build()
            .expect("a client without files to read is built from constants");
        Self { inner, base }
    }

    /// An address of the API: each part of the path is one segment, whatever stands in it.
    pub(crate) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        // An http address can always have a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    pub(crate) fn get(&self, url: Url) -> RequestBuilder {
        self.inner.get(url)
    }

    pub(super) fn post(&self, url: Url) -> RequestBuilder {
        self.inner.post(url)
    }
}

/// Makes the request, once.
pub(crate) async fn ask(request: RequestBuilder) -> Result<Answer, NoAnswer> {
    let mut answer = request.send().await.map_err(|error| no_answer(&error))?;
    let status = answer.status().as_u16();
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after_ms = retry_after
        .and_then(|text| text.trim().parse::<i64>().ok())
        .map(|seconds| seconds.saturating_mul(1_000).clamp(0, RETRY_AFTER_MAX_MS));
    let mut body = Vec::new();
    while body.len() < ANSWER_BYTES_MAX {
        match answer.chunk().await {
            Ok(Some(chunk)) => {
                let room = ANSWER_BYTES_MAX - body.len();
                body.extend(chunk.iter().take(room));
            }
            // A refusal is one by its status; an acceptance without its id is a doubt.
            Err(error) if (200..300).contains(&status) => return Err(no_answer(&error)),
            Ok(None) | Err(_) => break,
        }
    }
    Ok(Answer { status, retry_after_ms, body })
}

fn no_answer(error: &reqwest::Error) -> NoAnswer {
    let never_asked = error.is_connect() || error.is_builder();
    let innermost = std::iter::successors(std::error::Error::source(error), |inner| inner.source())
        .last()
        .map_or_else(|| "the request failed".to_owned(), ToString::to_string);
    let what = match (never_asked, error.is_timeout()) {
        (true, true) => "no connection in time".to_owned(),
        (true, false) => format!("could not connect: {innermost}"),
        (false, true) => "no answer in time".to_owned(),
        (false, false) => format!("the connection broke: {innermost}"),
    };
    NoAnswer { never_asked, detail: short(&what) }
}

/// What no answer means for an attempt to send.
pub(super) fn unanswered(none: NoAnswer) -> Outcome {
    if none.never_asked {
        return Outcome::NotSent(refused_by_provider(none.detail));
    }
    Outcome::Unknown { detail: none.detail }
}

/// What statuses mean that mean the same everywhere; `None` for those whose body says more.
pub(super) fn judge_status(answer: &Answer) -> Option<Outcome> {
    match answer.status {
        429 => Some(Outcome::NotSent(Refusal {
            fault: Fault::Busy { wait_ms: answer.retry_after_ms },
            reason: Reason::ProviderRefused,
            detail: "answered 429: too many requests".to_owned(),
        })),
        // It may have read the request before it gave up, or have done what was asked before it failed.
        408 | 500..=599 => Some(Outcome::Unknown { detail: format!("answered {}", answer.status) }),
        // "See other" is what some say who have done what was asked.
        303 => Some(Outcome::Unknown { detail: "answered 303".to_owned() }),
        // Not a redirect is followed: nobody there has read the request.
        100..=199 | 300..=399 => {
            Some(Outcome::NotSent(refused_by_provider(format!("answered {}", answer.status))))
        }
        _ => None,
    }
}

/// Whose fault a refusal is that says nothing that is known: that of the provider's settings where it does not let us in or
/// knows nothing at this address, and otherwise that of this one request. One tenant's messages must not keep those of all
/// others from going out.
pub(super) fn fault_of_status(status: u16) -> Fault {
    if matches!(status, 401 | 403 | 404 | 405) { Fault::Provider } else { Fault::Unreachable }
}

pub(super) fn refused_by_provider(detail: String) -> Refusal {
    Refusal { fault: Fault::Provider, reason: Reason::ProviderRefused, detail }
}

/// What is shown of a provider's words: without what steers terminals, and not without end.
pub(super) fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(DETAIL_CHARS_MAX).collect()
}

/// An RFC 3339 time.
pub(super) fn time(text: &str) -> Option<UnixMs> {
    text.parse::<jiff::Timestamp>().ok().map(|at| UnixMs(at.as_millisecond()))
}
