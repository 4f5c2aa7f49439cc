//! The public API, as a tenant's program and an operator's tool would call it.

use std::sync::Once;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use protocol::api::{
    CreateKey, CreateMessage, CreateTenant, CreateWebhookEndpoint, CreatedKey,
    CreatedWebhookEndpoint, Message, MessageEvent, OptOut, Page, Phone, Problem, Tenant,
};
use protocol::{MessageId, TenantId};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A caller with one bearer token.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// An answer that is not a success.
#[derive(Debug, thiserror::Error)]
#[error("{status}: {}", .problem.as_ref().map_or("no problem body", |problem| problem.code.as_str()))]
pub struct Refused {
    /// The HTTP status.
    pub status: StatusCode,
    /// What the router says about it.
    pub problem: Option<Problem>,
}

/// Installs the TLS provider that every client needs; harmless when it is there already.
fn provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap_or_default();
    });
}

impl Api {
    /// A caller of the router at `base`.
    pub fn new(base: &str, token: &str) -> Result<Self> {
        provider();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(10))
            .no_proxy()
            .build()
            .context("HTTP client")?;
        Ok(Self { http, base: base.to_owned(), token: token.to_owned() })
    }

    /// Another caller of the same router.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// One request; `Err(Refused)` inside when the router says no.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
        idempotency_key: Option<&str>,
    ) -> Result<Result<T, Refused>> {
        let mut request =
            self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        if let Some(key) = idempotency_key {
            request = request.header("Idempotency-Key", format!("\"{key}\""));
        }
        let answer = request.send().await.with_context(|| format!("calling {path}"))?;
        let status = answer.status();
        let text = answer.text().await.context("reading the answer")?;
        if status.is_success() {
            let value = serde_json::from_str(&text)
                .with_context(|| format!("answer of {path} is not what was expected: {text}"))?;
            return Ok(Ok(value));
        }
        Ok(Err(Refused { status, problem: serde_json::from_str(&text).ok() }))
    }

    /// Sends CSV.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        csv: String,
        within: Duration,
    ) -> Result<T> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
        let request = request.header("Content-Type", "text/csv").timeout(within).body(csv);
        let answer = request.send().await.with_context(|| format!("calling {path}"))?;
        let status = answer.status();
        let text = answer.text().await.context("reading the answer")?;
        if !status.is_success() {
            bail!("{path}: {status}: {text}");
        }
        serde_json::from_str(&text).context("the answer")
    }

    /// What is at a path, as it stands.
    pub async fn text(&self, path: &str) -> Result<String> {
        let request = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token);
        let answer = request.send().await.with_context(|| format!("calling {path}"))?;
        answer.text().await.context("reading the answer")
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(self.call(Method::GET, path, None, None).await??)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_value(body).context("body")?;
        Ok(self.call(Method::POST, path, Some(body), None).await??)
    }

    /// Posts a message.
    pub async fn send(&self, message: &CreateMessage) -> Result<Message> {
        self.post("/v1/messages", message).await
    }

    /// Posts a message again and again under one key until the router has answered: what a careful
    /// tenant does while a router is being restarted.
    pub async fn send_until_answered(
        &self,
        message: &CreateMessage,
        key: &str,
        within: Duration,
    ) -> Result<Message> {
        let until = tokio::time::Instant::now() + within;
        loop {
            let body = serde_json::to_value(message).context("body")?;
            let error = match self.call(Method::POST, "/v1/messages", Some(body), Some(key)).await {
                Ok(Ok(message)) => return Ok(message),
                Ok(Err(refused))
                    if refused.status.is_server_error()
                        || matches!(
                            refused.status,
                            StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS
                        ) =>
                {
                    anyhow::Error::from(refused)
                }
                Ok(Err(refused)) => return Err(refused.into()),
                Err(error) => error,
            };
            if tokio::time::Instant::now() >= until {
                bail!("no answer within {within:?}: {error:#}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A message as it stands.
    pub async fn message(&self, id: &MessageId) -> Result<Message> {
        self.get(&format!("/v1/messages/{id}")).await
    }

    /// A message's story so far, oldest first.
    pub async fn events(&self, id: &MessageId) -> Result<Vec<MessageEvent>> {
        let page: Page<MessageEvent> =
            self.get(&format!("/v1/messages/{id}/events?limit=100")).await?;
        let mut events = page.data;
        events.sort_by_key(|event| event.sequence);
        Ok(events)
    }

    /// Every message of the tenant, page by page.
    pub async fn messages(&self) -> Result<Vec<Message>> {
        self.pages("/v1/messages").await
    }

    async fn pages<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let page: Page<T> = self.get(&format!("{path}?limit=100{cursor}")).await?;
            all.extend(page.data);
            match page.next_cursor {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(all),
            }
        }
    }

    /// The tenant's opt-outs.
    pub async fn opt_outs(&self) -> Result<Vec<OptOut>> {
        let page: Page<OptOut> = self.get("/v1/opt_outs").await?;
        Ok(page.data)
    }

    /// Registers a webhook endpoint for all events.
    pub async fn create_webhook(&self, url: &str) -> Result<CreatedWebhookEndpoint> {
        self.create_webhook_for(url, &[]).await
    }

    /// Registers a webhook endpoint for these events.
    pub async fn create_webhook_for(
        &self,
        url: &str,
        events: &[&str],
    ) -> Result<CreatedWebhookEndpoint> {
        let events = events.iter().map(|&event| event.to_owned()).collect();
        let body = CreateWebhookEndpoint { url: url.to_owned(), events, description: None };
        self.post("/v1/webhook_endpoints", &body).await
    }

    /// Every phone, for operators.
    pub async fn phones(&self) -> Result<Vec<Phone>> {
        self.pages("/v1/admin/phones").await
    }

    /// Makes a tenant, for operators.
    pub async fn create_tenant(&self, name: &str, brand: &str) -> Result<Tenant> {
        let body = CreateTenant { name: name.to_owned(), brand: Some(brand.to_owned()) };
        self.post("/v1/admin/tenants", &body).await
    }

    /// Makes a key, for operators.
    pub async fn create_key(&self, tenant: &TenantId) -> Result<CreatedKey> {
        let body = CreateKey {
            tenant: tenant.clone(),
            name: "story".to_owned(),
            test: false,
            expires_at: None,
            scopes: None,
            allow: Vec::new(),
            tier: None,
            per_second: None,
            burst: None,
        };
        self.post("/v1/admin/keys", &body).await
    }

    /// The router answers at all.
    pub async fn healthy(&self) -> bool {
        let answer = self.http.get(format!("{}/healthz", self.base)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}
