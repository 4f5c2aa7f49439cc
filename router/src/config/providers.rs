//! `[providers]`: how providers of SMS are asked, and how they reach us.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::api::ProviderKind;
use serde::Deserialize;
use url::Url;

use super::check::Check;
use super::error::ConfigError;
use crate::providers;
use crate::providers::seal::Seal;

/// How providers of SMS are asked, and how they reach us. Who they are is in the store.
#[derive(Debug, Clone)]
pub struct Providers {
    /// How the internet reaches this router.
    pub public_url: Option<Url>,
    /// The keys for their credentials.
    pub seal: Option<Arc<Seal>>,
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for an answer, the connection included.
    pub timeout: Duration,
    /// Requests to one provider at once.
    pub in_flight: usize,
    /// Where Twilio's API is.
    pub twilio_url: Url,
    /// Where Telnyx's API is.
    pub telnyx_url: Url,
    /// Those may be private and without TLS.
    pub allow_private: bool,
}

impl Providers {
    /// How patient their clients are.
    pub fn limits(&self) -> providers::Limits {
        let allow_private = self.allow_private;
        providers::Limits { connect: self.connect, request: self.timeout, allow_private }
    }

    /// The address that a provider reports to; `None` while it is not known how it reaches us.
    pub fn webhook_url(&self, kind: ProviderKind, name: &str) -> Option<Url> {
        let mut url = self.public_url.clone()?;
        url.path_segments_mut().ok()?.pop_if_empty().extend([
            "v1",
            "providers",
            kind.as_str(),
            name,
        ]);
        Some(url)
    }
}

/// `[providers]`, before it is checked.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawProviders {
    public_url: Option<String>,
    key_file: Option<PathBuf>,
    connect_ms: u64,
    timeout_ms: u64,
    in_flight: u32,
    twilio_url: String,
    telnyx_url: String,
    allow_private: bool,
}

impl Default for RawProviders {
    fn default() -> Self {
        Self {
            public_url: None,
            key_file: None,
            connect_ms: 3_000,
            timeout_ms: 10_000,
            in_flight: 16,
            twilio_url: providers::twilio::BASE.to_owned(),
            telnyx_url: providers::telnyx::BASE.to_owned(),
            allow_private: false,
        }
    }
}

pub(super) fn providers_of(
    raw: &RawProviders,
    folder: &Path,
    check: &Check<'_>,
) -> Result<Providers, ConfigError> {
    check.range("providers.connect_ms", raw.connect_ms, 100, 60_000)?;
    // A request that ends while it is still connecting would count as one that may have been read.
    check.range(
        "providers.timeout_ms",
        raw.timeout_ms,
        raw.connect_ms.saturating_add(100),
        120_000,
    )?;
    check.range("providers.in_flight", raw.in_flight, 1, 1_000)?;
    let url = |field: &'static str, text: &str| {
        let url: Url = text.parse().map_err(|error| check.wrong(field, format!("{error}")))?;
        let clear = raw.allow_private && url.scheme() == "http";
        if !clear && url.scheme() != "https" {
            return Err(check.wrong(field, "must be an https:// address"));
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Err(check.wrong(field, "must have no query, fragment or user in it"));
        }
        Ok(url)
    };
    let public_url = raw.public_url.as_deref().map(|text| url("providers.public_url", text));
    let seal = raw.key_file.as_ref().map(|file| {
        Seal::load(&folder.join(file))
            .map(Arc::new)
            .map_err(|error| check.wrong("providers.key_file", error.to_string()))
    });
    Ok(Providers {
        public_url: public_url.transpose()?,
        seal: seal.transpose()?,
        connect: Duration::from_millis(raw.connect_ms),
        timeout: Duration::from_millis(raw.timeout_ms),
        in_flight: usize::try_from(raw.in_flight).unwrap_or(usize::MAX),
        twilio_url: url("providers.twilio_url", &raw.twilio_url)?,
        telnyx_url: url("providers.telnyx_url", &raw.telnyx_url)?,
        allow_private: raw.allow_private,
    })
}
