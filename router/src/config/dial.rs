//! `[[dial]]`: the hosts that the router dials.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::HostId;
use router_client::backoff::DELAY_MAX_MS;
use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

use super::check::Check;
use super::error::ConfigError;

/// A host that the router dials.
#[derive(Debug, Clone)]
pub struct Dial {
    /// Which host.
    pub host: HostId,
    /// Its public name.
    pub url: Url,
    /// What Cloudflare Access before it wants.
    pub access: Option<ServiceToken>,
    /// Longest delay before it is dialled again.
    pub redial_max: Duration,
}

/// A service token of Cloudflare Access.
#[derive(Debug, Clone)]
pub struct ServiceToken {
    /// Its client id.
    pub client_id: String,
    /// Its client secret.
    pub client_secret: SecretString,
}

/// One `[[dial]]`, before it is checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDial {
    host: HostId,
    url: String,
    access_client_id: Option<String>,
    access_client_secret_file: Option<PathBuf>,
    access_client_secret_env: Option<String>,
    redial_max_ms: Option<u64>,
}

/// The router's key lies beside the store: both are to be kept.
pub(super) const KEY_FILE: &str = "router.key";

pub(super) fn dials(
    raw: &[RawDial],
    folder: &Path,
    check: &Check<'_>,
) -> Result<Vec<Dial>, ConfigError> {
    let mut hosts = BTreeSet::new();
    raw.iter()
        .map(|dial| {
            let wrong = |what: String| check.wrong("dial", format!("{}: {what}", dial.host));
            if !hosts.insert(dial.host.to_string()) {
                return Err(wrong("is there twice".to_owned()));
            }
            let url: Url = dial.url.parse().map_err(|error| wrong(format!("`url`: {error}")))?;
            let own = match url.host() {
                Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
                Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
                Some(url::Host::Domain(name)) => name == "localhost",
                None => return Err(wrong("there is no host in `url`".to_owned())),
            };
            // A service token in the clear would open the door to whoever reads along.
            let clear = own && matches!(url.scheme(), "http" | "ws");
            if !clear && !matches!(url.scheme(), "https" | "wss") {
                return Err(wrong("`url` must be an https:// address".to_owned()));
            }
            let delay = dial.redial_max_ms.unwrap_or(DELAY_MAX_MS);
            check.range("dial.redial_max_ms", delay, 1, 600_000)?;
            Ok(Dial {
                host: dial.host.clone(),
                url,
                access: service_token(dial, folder, &wrong)?,
                redial_max: Duration::from_millis(delay),
            })
        })
        .collect()
}

fn service_token(
    dial: &RawDial,
    folder: &Path,
    wrong: &dyn Fn(String) -> ConfigError,
) -> Result<Option<ServiceToken>, ConfigError> {
    let secret = match (&dial.access_client_secret_file, &dial.access_client_secret_env) {
        (Some(_), Some(_)) => {
            return Err(wrong("the secret is given twice, by file and by environment".to_owned()));
        }
        (Some(file), None) => {
            let path = folder.join(file);
            let text = std::fs::read_to_string(&path)
                .map_err(|error| wrong(format!("{} cannot be read: {error}", path.display())))?;
            Some(text)
        }
        (None, Some(name)) => {
            let text = std::env::var(name).map_err(|error| wrong(format!("{name}: {error}")))?;
            Some(text)
        }
        (None, None) => None,
    };
    match (&dial.access_client_id, secret) {
        (Some(id), Some(secret)) if !secret.trim().is_empty() => Ok(Some(ServiceToken {
            client_id: id.clone(),
            client_secret: SecretString::from(secret.trim()),
        })),
        (None, None) => Ok(None),
        (_, _) => Err(wrong(
            "`access_client_id` needs its secret, `access_client_secret_file` or `access_client_secret_env`, and it them"
                .to_owned(),
        )),
    }
}
