//! The router's HTTP API, as the commands use it: one request, its answer, or a failure that says what to do.

use std::time::Duration;

use protocol::api::{PROBLEM_JSON, Page, Problem};
use reqwest::{Method, Response, StatusCode, header};
use router_client::proxy::{Proxies, Proxy};
use router_client::tls::{self, TlsRoots};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use url::{Host, Url};

use super::{ADMIN_TOKEN_ENV, Global, failure::Failure};

/// Pages of a list at most: 100 rows each, more than a terminal can show.
const PAGES_MAX: usize = 100;
/// An answer at most. A page of 100 messages of 20,000 four-byte characters has 8 MiB.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Connecting takes milliseconds or does not work.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Waits before the repetitions of what may be repeated.
const RETRY_AFTER: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// In whose name a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The operator, by the admin token.
    Operator,
    /// A tenant, by an API key.
    Tenant,
    /// Either would do, and neither secret was given.
    TenantOrOperator,
    /// Nobody: the body carries what counts.
    Anybody,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    who: Who,
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<Value>,
    /// A body that is no JSON, with its media type.
    raw: Option<(&'static str, Vec<u8>)>,
    idempotency_key: Option<String>,
    /// Asks once, and waits so long for what takes its time.
    patience: Option<Duration>,
}

impl Request {
    pub(crate) fn get(who: Who, path: impl Into<String>) -> Self {
        Self::new(who, Method::GET, path.into())
    }

    pub(crate) fn post(who: Who, path: impl Into<String>) -> Self {
        Self::new(who, Method::POST, path.into())
    }

    pub(crate) fn put(who: Who, path: impl Into<String>) -> Self {
        Self::new(who, Method::PUT, path.into())
    }

    pub(crate) fn patch(who: Who, path: impl Into<String>) -> Self {
        Self::new(who, Method::PATCH, path.into())
    }

    pub(crate) fn delete(who: Who, path: impl Into<String>) -> Self {
        Self::new(who, Method::DELETE, path.into())
    }

    fn new(who: Who, method: Method, path: String) -> Self {
        Self {
            who,
            method,
            path,
            query: Vec::new(),
            body: None,
            raw: None,
            idempotency_key: None,
            patience: None,
        }
    }

    pub(crate) fn query(mut self, name: &'static str, value: String) -> Self {
        self.query.push((name, value));
        self
    }

    pub(crate) fn body(mut self, body: &impl Serialize) -> Result<Self, Failure> {
        let body = serde_json::to_value(body).map_err(|error| {
            Failure::Local(anyhow::Error::new(error).context("write the request"))
        })?;
        self.body = Some(body);
        Ok(self)
    }

    /// A body as it is, of this media type.
    pub(crate) fn raw(mut self, media_type: &'static str, body: Vec<u8>) -> Self {
        self.raw = Some((media_type, body));
        self
    }

    /// With a key the router does it once, however often it is asked: such a request is repeated on network errors.
    pub(crate) fn idempotency_key(mut self, key: String) -> Self {
        self.idempotency_key = Some(key);
        self
    }

    /// What takes long is waited for, at least so long, and asked once: each question begins the work anew.
    pub(crate) fn patiently(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    fn may_be_repeated(&self) -> bool {
        self.patience.is_none()
            && ([Method::GET, Method::PUT].contains(&self.method) || self.idempotency_key.is_some())
    }
}

/// A connection to one router.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    timeout: Duration,
    admin_token: Option<SecretString>,
    api_key: Option<SecretString>,
}

fn of_library(proxy: &Proxy) -> Result<reqwest::Proxy, Failure> {
    let (address, credentials) = proxy.parts();
    let known = reqwest::Proxy::all(address)
        .map_err(|error| Failure::Local(anyhow::Error::new(error).context("set up the proxy")))?;
    Ok(match credentials {
        Some((user, password)) => known.basic_auth(user, password),
        None => known,
    })
}

/// What one try came to.
enum Tried {
    Answer(Value),
    /// It may work the next time.
    Again(Failure),
    No(Failure),
}

impl Client {
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        Self::to(&global.url(), global)
    }

    pub(crate) fn to(base: &Url, global: &Global) -> Result<Self, Failure> {
        Self::by(base, global, &global.roots(), &Proxies::Environment)
    }

    /// A client of the router at `base` that trusts `roots` and takes the way that `proxies` say.
    pub(crate) fn by(
        base: &Url,
        global: &Global,
        roots: &TlsRoots,
        proxies: &Proxies,
    ) -> Result<Self, Failure> {
        let tls = match base.scheme() {
            "https" => tls::client_config(roots)
                .map_err(|error| Failure::usage(error.to_string(), "see --ca"))?,
            // Never used, but the library wants one; building it must not depend on the system's certificates.
            "http" => tls::no_roots()
                .map_err(|error| Failure::Local(anyhow::Error::new(error).context("set up TLS")))?,
            scheme => {
                return Err(Failure::usage(
                    format!("the router's address has the scheme {scheme}"),
                    "use http:// or https://",
                ));
            }
        };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("switchboard/", env!("CARGO_PKG_VERSION")))
            .timeout(global.timeout.duration())
            .connect_timeout(CONNECT_WITHIN.min(global.timeout.duration()))
            // Credentials go to the address that was given and nowhere else.
            .redirect(reqwest::redirect::Policy::none());
        match proxies {
            Proxies::Environment if is_loopback(base) => builder = builder.no_proxy(),
            // The library reads the environment by itself.
            Proxies::Environment => {}
            Proxies::Direct => builder = builder.no_proxy(),
            Proxies::Through(proxy) => builder = builder.proxy(of_library(proxy)?),
        }
        let http = builder
            .build()
            .map_err(|error| Failure::Local(anyhow::Error::new(error).context("set up HTTP")))?;
        let secret = |text: String| SecretString::from(text.trim().to_owned());
        Ok(Self {
            http,
            base: base.clone(),
            timeout: global.timeout.duration(),
            admin_token: global.admin_token().map(secret),
            api_key: global.api_key().map(secret),
        })
    }

    /// The same client with another operator's token.
    pub(crate) fn with_admin_token(mut self, token: Option<String>) -> Self {
        self.admin_token = token.map(|token| SecretString::from(token.trim().to_owned()));
        self
    }

    /// In whose name messages are looked at and withdrawn: the narrower secret goes first.
    pub(crate) fn messages_as(&self) -> Who {
        match (&self.api_key, &self.admin_token) {
            (Some(_), _) => Who::Tenant,
            (None, Some(_)) => Who::Operator,
            (None, None) => Who::TenantOrOperator,
        }
    }

    /// One answer.
    pub(crate) async fn call(&self, request: &Request) -> Result<Value, Failure> {
        let mut waits = RETRY_AFTER.iter();
        loop {
            let failure = match self.attempt(request).await {
                Tried::Answer(value) => return Ok(value),
                Tried::No(failure) => return Err(failure),
                Tried::Again(failure) => failure,
            };
            match waits.next() {
                Some(wait) if request.may_be_repeated() => tokio::time::sleep(*wait).await,
                Some(_) | None => return Err(failure),
            }
        }
    }

    /// The rows of a list, page by page, `rows_max` at most.
    pub(crate) async fn list(
        &self,
        who: Who,
        path: &str,
        filters: &[(&'static str, String)],
        rows_max: usize,
    ) -> Result<Page<Value>, Failure> {
        let mut all = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut request = Request::get(who, path);
            request.query.extend_from_slice(filters);
            if let Some(cursor) = cursor.take() {
                request.query.push(("cursor", cursor));
            }
            let page: Page<Value> = typed(self.call(&request).await?)?;
            all.extend(page.data);
            let more = page.has_more && page.next_cursor.is_some();
            if !more || all.len() >= rows_max {
                let cut = all.len() > rows_max;
                all.truncate(rows_max);
                let next_cursor = if cut { None } else { page.next_cursor };
                return Ok(Page { data: all, next_cursor, has_more: more || cut });
            }
            cursor = page.next_cursor;
        }
        Ok(Page { data: all, next_cursor: cursor, has_more: true })
    }

    /// An answer that may be long, bit by bit as it comes. Asked once: what was written down is not taken back.
    pub(crate) async fn download(
        &self,
        request: &Request,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut response = match self.send(request).await {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => match self.judge(request, response).await {
                Tried::No(failure) | Tried::Again(failure) => return Err(failure),
                Tried::Answer(_) => return Ok(()),
            },
            Err(Tried::No(failure) | Tried::Again(failure)) => return Err(failure),
            Err(Tried::Answer(_)) => return Ok(()),
        };
        loop {
            match response.chunk().await {
                Ok(Some(bytes)) => take(&bytes)?,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.unreachable(&error)),
            }
        }
    }

    async fn attempt(&self, request: &Request) -> Tried {
        match self.send(request).await {
            Ok(response) => self.judge(request, response).await,
            Err(tried) => tried,
        }
    }

    async fn send(&self, request: &Request) -> Result<Response, Tried> {
        let url = self.url(request).map_err(Tried::No)?;
        let mut building = self.http.request(request.method.clone(), url);
        match (request.who, &self.admin_token, &self.api_key) {
            (Who::Anybody, _, _) => {}
            (Who::Operator, Some(token), _) | (Who::Tenant, _, Some(token)) => {
                building = building.bearer_auth(token.expose_secret());
            }
            (who @ (Who::Operator | Who::Tenant | Who::TenantOrOperator), _, _) => {
                return Err(Tried::No(missing(who)));
            }
        }
        if let Some(patience) = request.patience {
            building = building.timeout(patience.max(self.timeout));
        }
        if let Some(key) = &request.idempotency_key {
            building = building.header("Idempotency-Key", key);
        }
        if let Some(body) = &request.body {
            building = building.json(body);
        }
        if let Some((media_type, body)) = &request.raw {
            building = building.header(header::CONTENT_TYPE, *media_type).body(body.clone());
        }
        building.send().await.map_err(|error| {
            if error.is_builder() {
                // Nothing was sent: the only part that comes unchecked from outside is the secret or the key.
                return Tried::No(Failure::usage(
                    "the token, API key or idempotency key has characters that no header can carry",
                    "look for a newline or a control character in it",
                ));
            }
            Tried::Again(self.unreachable(&error))
        })
    }

    async fn judge(&self, request: &Request, response: Response) -> Tried {
        let status = response.status();
        let problem_type = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(PROBLEM_JSON));
        let bytes = match self.bytes(response).await {
            Ok(bytes) => bytes,
            Err(tried) => return tried,
        };
        if status.is_success() {
            if bytes.is_empty() {
                return Tried::Answer(Value::Null);
            }
            return match serde_json::from_slice(&bytes) {
                Ok(value) => Tried::Answer(value),
                Err(error) => Tried::No(strange(&format!("an answer that is not JSON ({error})"))),
            };
        }
        let problem: Option<Problem> =
            problem_type.then(|| serde_json::from_slice(&bytes).ok()).flatten();
        let gone = matches!(
            status,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        );
        let failure = match (status, problem) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, problem) => {
                refused_by_key(request.who, status, problem)
            }
            (_, Some(problem)) => Failure::Refused { problem: Box::new(problem) },
            (_, None) if gone => Failure::Unreachable {
                url: self.base.to_string(),
                detail: format!("something in front of it answers HTTP {status}"),
            },
            (_, None) => strange(&format!("HTTP {status} without a problem document")),
        };
        // The first request with this key may still be running on a connection that was lost here.
        let running = status == StatusCode::CONFLICT && request.idempotency_key.is_some();
        if gone || running { Tried::Again(failure) } else { Tried::No(failure) }
    }

    async fn bytes(&self, mut response: Response) -> Result<Vec<u8>, Tried> {
        let mut bytes = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return Ok(bytes),
                Err(error) => return Err(Tried::Again(self.unreachable(&error))),
            }
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(Tried::No(strange("an answer that does not end")));
            }
        }
    }

    fn url(&self, request: &Request) -> Result<Url, Failure> {
        let base = self.base.as_str().trim_end_matches('/');
        let mut url = Url::parse(&format!("{base}{}", request.path)).map_err(|error| {
            Failure::usage(format!("the router's address: {error}"), "see --url")
        })?;
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        Ok(url)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        // The library's own sentence repeats the address; the innermost cause says what happened.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let detail =
            if error.is_timeout() { "no answer in time".to_owned() } else { cause.to_string() };
        Failure::Unreachable { url: self.base.to_string(), detail }
    }
}

/// Turns an answer into what the contract says it is.
pub(crate) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value)
        .map_err(|error| strange(&format!("an unexpected answer ({error})")))
}

/// Turns a page into typed rows.
pub(crate) fn typed_rows<T: DeserializeOwned>(page: &Page<Value>) -> Result<Vec<T>, Failure> {
    page.data.iter().cloned().map(typed).collect()
}

fn strange(detail: &str) -> Failure {
    Failure::Strange { detail: format!("the router gave {detail}") }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn credentials(who: Who) -> (&'static str, String) {
    match who {
        Who::Operator => ("the operator's token", format!("put it into {ADMIN_TOKEN_ENV}")),
        Who::Tenant => (
            "a tenant's API key",
            "put it into SWITCHBOARD_API_KEY; `switchboard keys create` makes one".to_owned(),
        ),
        Who::TenantOrOperator => (
            "a tenant's API key or the operator's token",
            format!("put it into SWITCHBOARD_API_KEY or {ADMIN_TOKEN_ENV}"),
        ),
        Who::Anybody => (
            "an enrolment token",
            "`switchboard host token` makes a new one; each can be used once".to_owned(),
        ),
    }
}

fn missing(who: Who) -> Failure {
    let (what, remedy) = credentials(who);
    let detail = format!("this command needs {what}");
    Failure::NotAuthorised { problem: None, detail, remedy }
}

fn refused_by_key(who: Who, status: StatusCode, problem: Option<Problem>) -> Failure {
    let (what, remedy) = credentials(who);
    let words = problem.as_ref().map_or_else(
        || status.to_string(),
        |problem| problem.detail.clone().unwrap_or_else(|| problem.title.clone()),
    );
    let detail = format!("the router does not accept {what}: {words}");
    Failure::NotAuthorised { problem: problem.map(Box::new), detail, remedy }
}
