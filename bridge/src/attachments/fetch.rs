//! Fetches the files of one message into their folders.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::digest;
use protocol::Reason;
use protocol::pipe::{Attempt, OutboundAttachment};
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use url::Url;

use super::kind::BadKind;
use super::{Limits, guard, kind, staging};
use crate::osascript::Failure;

/// A file is asked for so often before its message is given back: a moment's fault must not cost an attempt.
const TRIES: u32 = 3;
/// A server that takes longer than this to be reached is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that says nothing for so long has forgotten us.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Stores answer with one redirect to where the file really is; more than a few are a circle.
const REDIRECTS_MAX: usize = 3;

/// Why one file cannot be had.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Refused(guard::Refused),
    #[error("no client for HTTPS can be made")]
    Client,
    #[error("{0}")]
    Unreachable(&'static str),
    #[error("its server answered {}", .0.as_u16())]
    Status(StatusCode),
    #[error("it is larger than what a message may carry here, {0} bytes")]
    TooLarge(u64),
    #[error("it is empty")]
    Empty,
    #[error("{0}")]
    Kind(BadKind),
    #[error("its SHA-256 is another")]
    Mismatch,
    #[error("it cannot be written: {0}")]
    Disk(std::io::ErrorKind),
}

impl FetchError {
    /// Whether the next try may go better.
    fn may_pass(&self) -> bool {
        match self {
            // A file that is cut short has another sum; so has one that is just being replaced.
            Self::Unreachable(_) | Self::Disk(_) | Self::Mismatch => true,
            Self::Status(status) => {
                status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::Refused(_) | Self::Client | Self::TooLarge(_) | Self::Empty | Self::Kind(_) => {
                false
            }
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Refused(_)
            | Self::Client
            | Self::Unreachable(_)
            | Self::Status(_)
            | Self::Empty
            | Self::Disk(_) => Reason::AttachmentUnavailable,
            Self::TooLarge(_) => Reason::AttachmentTooLarge,
            Self::Kind(_) => Reason::AttachmentType,
            Self::Mismatch => Reason::AttachmentMismatch,
        }
    }
}

/// Fetches every file, one after another, each into a folder of its own below `folder`. Answers where they
/// are, in their order.
pub(crate) async fn all(
    attempt: &Attempt,
    files: &[OutboundAttachment],
    dir: &Path,
    limits: &Limits,
) -> Result<Vec<PathBuf>, Failure> {
    let folder = staging::folder(dir, attempt);
    let mut left = limits.bytes_max;
    let mut paths = Vec::with_capacity(files.len());
    for (index, file) in files.iter().enumerate() {
        let place = folder.join(index.to_string());
        let (path, bytes) =
            with_tries(file, &place, left, limits).await.map_err(|error| Failure {
                reason: error.reason(),
                // Which file, and never its URL: that may carry a secret.
                detail: format!("attachments[{index}]: {error}"),
                retryable: error.may_pass(),
            })?;
        left = left.saturating_sub(bytes);
        paths.push(path);
    }
    Ok(paths)
}

async fn with_tries(
    file: &OutboundAttachment,
    place: &Path,
    left: u64,
    limits: &Limits,
) -> Result<(PathBuf, u64), FetchError> {
    let mut tried = 1;
    loop {
        match one(file, place, left, limits).await {
            Err(error) if error.may_pass() && tried < TRIES => {
                tracing::info!(%error, tried, "a file is asked for again");
                tokio::time::sleep(limits.pause.saturating_mul(tried.pow(2))).await;
                tried += 1;
            }
            other => return other,
        }
    }
}

async fn one(
    file: &OutboundAttachment,
    place: &Path,
    left: u64,
    limits: &Limits,
) -> Result<(PathBuf, u64), FetchError> {
    let url = guard::check_url(&file.url, limits.allow_private).map_err(FetchError::Refused)?;
    let client = client(limits.allow_private).ok_or(FetchError::Client)?;
    let fetching = async {
        let response = client.get(url.clone()).send().await.map_err(|error| unreachable(&error))?;
        if !response.status().is_success() {
            return Err(FetchError::Status(response.status()));
        }
        if response.content_length().is_some_and(|length| length > left) {
            return Err(FetchError::TooLarge(limits.bytes_max));
        }
        let name = settled_name(file, &url, &response, limits)?;
        take(response, place, &name, left, limits.bytes_max, file.sha256.as_deref()).await
    };
    tokio::time::timeout(limits.timeout, fetching)
        .await
        .unwrap_or(Err(FetchError::Unreachable("it took longer than it may")))
}

fn settled_name(
    file: &OutboundAttachment,
    url: &Url,
    response: &reqwest::Response,
    limits: &Limits,
) -> Result<String, FetchError> {
    let said = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    // The URL that was asked for names it: where a store redirects to is its own affair.
    kind::settle(&super::name(file, url), said, &limits.types).map_err(FetchError::Kind)
}

/// Writes the body beside its place and moves it there when it is whole.
async fn take(
    mut response: reqwest::Response,
    place: &Path,
    name: &str,
    left: u64,
    limit: u64,
    sha256: Option<&str>,
) -> Result<(PathBuf, u64), FetchError> {
    let disk = |error: std::io::Error| FetchError::Disk(error.kind());
    staging::make(place).map_err(disk)?;
    // Beside its folder, so that the folder never holds anything but the whole file.
    let torso = place.with_extension("part");
    let mut out = staging::create(&torso).map_err(disk)?;
    let mut sum = digest::Context::new(&digest::SHA256);
    let mut bytes: u64 = 0;
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
        bytes = bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        if bytes > left {
            return Err(FetchError::TooLarge(limit));
        }
        sum.update(&chunk);
        // A chunk is some kilobytes: less than what the page cache takes without waiting.
        out.write_all(&chunk).map_err(disk)?;
    }
    if bytes == 0 {
        return Err(FetchError::Empty);
    }
    if sha256.is_some_and(|wanted| hex(sum.finish().as_ref()) != wanted) {
        return Err(FetchError::Mismatch);
    }
    let path = place.join(name);
    // On the disk before the journal says that it is here.
    tokio::task::spawn_blocking(move || out.sync_all().map(|()| out))
        .await
        .map_err(|_ended| FetchError::Disk(std::io::ErrorKind::Interrupted))?
        .map_err(disk)?;
    std::fs::rename(&torso, &path).map_err(disk)?;
    Ok((path, bytes))
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// The kind of fault, without the URL that reqwest's own words would name.
fn unreachable(error: &reqwest::Error) -> FetchError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(one) = cause {
        if let Some(refused) = one.downcast_ref::<guard::Refused>() {
            return FetchError::Refused(*refused);
        }
        cause = one.source();
    }
    FetchError::Unreachable(if error.is_timeout() {
        "its server did not answer in time"
    } else if error.is_redirect() {
        "its server sends us on and on"
    } else if error.is_connect() {
        "its server cannot be reached"
    } else {
        "the connection to its server broke"
    })
}

/// The one client of this process, made when the first file is wanted: most phones send none, and the roots
/// of trust cost memory. No proxy from the environment: it would see every URL and stand between the guard
/// and the address.
fn client(allow_private: bool) -> Option<reqwest::Client> {
    static CLIENTS: [OnceLock<Option<reqwest::Client>>; 2] = [OnceLock::new(), OnceLock::new()];
    let [strict, open] = &CLIENTS;
    let cell = if allow_private { open } else { strict };
    cell.get_or_init(|| make_client(allow_private)).clone()
}

fn make_client(allow_private: bool) -> Option<reqwest::Client> {
    // Another part of the process may have installed the same provider: then there is one, which is all we need.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("the TLS provider was there already");
    }
    let redirects = reqwest::redirect::Policy::custom(move |next| {
        if next.previous().len() > REDIRECTS_MAX {
            return next.error("too many redirects");
        }
        match guard::check_parsed(next.url(), allow_private) {
            Ok(()) => next.follow(),
            Err(refused) => next.error(refused),
        }
    });
    let made = reqwest::Client::builder()
        .redirect(redirects)
        .no_proxy()
        .referer(false)
        .dns_resolver(guard::PublicResolver::new(allow_private))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .pool_max_idle_per_host(1)
        .user_agent(concat!("Switchboard/", env!("CARGO_PKG_VERSION")))
        .build();
    made.inspect_err(|error| tracing::error!(%error, "no client for HTTPS can be made")).ok()
}

#[cfg(test)]
mod tests;
