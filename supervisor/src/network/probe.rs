//! One round of probes over one uplink.
//!
//! Every socket is bound to the uplink's interface (`IP_BOUND_IF` on macOS, `SO_BINDTODEVICE` on Linux), so that the
//! answer says something about that uplink, whatever the routes say. Only hosts in the internet are asked: an agent may
//! not talk to its neighbours without consent (facts: local network privacy).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use router_client::tls::{self, TlsError, TlsRoots};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use url::Url;

use super::choice::Seen;
use crate::files;
use crate::pool::chain;

/// The next one is asked when the one before has not answered for so long: a healthy uplink costs one answer.
const STAGGER: Duration = Duration::from_millis(500);
/// No answer that is waited for is longer; a portal's page is.
const BODY_BYTES_MAX: usize = 4 * 1024;
/// How long a name is looked up before the addresses of last time are taken.
const LOOKUP_WITHIN: Duration = Duration::from_secs(1);
/// Addresses are believed so long without asking again.
const ADDRESSES_FRESH: Duration = Duration::from_mins(5);
/// Names that are remembered; the configuration names a few.
const NAMES_MAX: usize = 32;

/// Whom to ask, and what only they answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// The question.
    pub(crate) url: Url,
    /// The status of the answer.
    pub(crate) status: u16,
    /// What its body must have in it.
    pub(crate) body: Option<String>,
    /// Which certificates it may show.
    pub(crate) roots: TlsRoots,
}

impl Anchor {
    /// What an answer says of the uplink that it came over.
    fn judge(&self, status: u16, body: &str) -> Seen {
        let right = self.body.as_ref().is_none_or(|wanted| body.contains(wanted.as_str()));
        if status == self.status && right { Seen::Good } else { Seen::Captive }
    }
}

/// What one round saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Round {
    /// Of the uplink.
    pub(crate) seen: Seen,
    /// Whether the router answered, where there is one.
    pub(crate) router: Option<bool>,
}

impl Round {
    /// Whether somebody answered who is only in the internet.
    pub(crate) fn is_good(self) -> bool {
        self.seen == Seen::Good
    }
}

/// Probes over one uplink.
#[derive(Debug)]
pub(crate) struct Prober {
    interface: String,
    /// The router comes first, where there is one.
    targets: Vec<(Anchor, reqwest::Client)>,
    has_router: bool,
}

/// Why there are no probes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// The certificates could not be read.
    #[error("TLS for the probes")]
    Tls(#[from] TlsError),
    /// The library refused.
    #[error("setting up probes")]
    Http(#[from] reqwest::Error),
}

impl Prober {
    /// Asks the router and the anchors over an interface, each for at most `within`.
    pub(crate) fn new(
        interface: &str,
        router: Option<&Anchor>,
        anchors: &[Anchor],
        within: Duration,
        addresses: &Addresses,
    ) -> Result<Self, ProbeError> {
        let client = |anchor: &Anchor| -> Result<reqwest::Client, ProbeError> {
            let plain = builder(anchor, within)?;
            let bound = plain.interface(interface).dns_resolver(Arc::new(addresses.clone()));
            Ok(bound.build()?)
        };
        let targets = router
            .into_iter()
            .chain(anchors)
            .map(|anchor| Ok((anchor.clone(), client(anchor)?)))
            .collect::<Result<_, ProbeError>>()?;
        Ok(Self { interface: interface.to_owned(), targets, has_router: router.is_some() })
    }

    /// Asks the anchors by whatever way the routes say.
    pub(crate) fn anywhere(anchors: &[Anchor], within: Duration) -> Result<Self, ProbeError> {
        let target = |anchor: &Anchor| Ok((anchor.clone(), builder(anchor, within)?.build()?));
        let targets = anchors.iter().map(target).collect::<Result<_, ProbeError>>()?;
        Ok(Self { interface: String::new(), targets, has_router: false })
    }

    /// The interface that it is bound to.
    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    /// One round: the router, and the anchors one after the other while nobody has answered rightly; all at once in
    /// haste, when the first ones have not answered last time.
    pub(crate) async fn round(&self, haste: bool) -> Round {
        let began = Instant::now();
        let stagger = if haste { Duration::ZERO } else { STAGGER };
        let mut asked: FuturesUnordered<_> = (0_u32..)
            .zip(&self.targets)
            .map(|(at, (anchor, client))| async move {
                tokio::time::sleep_until(began + stagger * at).await;
                (at, ask(anchor, client).await)
            })
            .collect();
        let mut round = Round { seen: Seen::Nothing, router: None };
        while let Some((at, seen)) = asked.next().await {
            if at == 0 && self.has_router {
                round.router = Some(seen == Seen::Good);
            }
            round.seen = match (round.seen, seen) {
                (Seen::Good, _) | (_, Seen::Good) => Seen::Good,
                (Seen::Captive, _) | (_, Seen::Captive) => Seen::Captive,
                (Seen::Nothing, Seen::Nothing) => Seen::Nothing,
            };
            // The router's own answer is waited for: a slow one must not look like none.
            if round.seen == Seen::Good && (round.router.is_some() || !self.has_router) {
                break;
            }
        }
        round
    }
}

/// What asks one anchor. A proxy's answer says nothing about the uplink, and a kept connection nothing about now.
fn builder(anchor: &Anchor, within: Duration) -> Result<reqwest::ClientBuilder, ProbeError> {
    let settings = if anchor.url.scheme() == "https" {
        tls::client_config(&anchor.roots)?
    } else {
        // Never used; the system's certificates may be broken without harm to plain questions.
        tls::no_roots()?
    };
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(settings)
        .no_proxy()
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(within)
        .user_agent(concat!("switchboard/", env!("CARGO_PKG_VERSION"))))
}

async fn ask(anchor: &Anchor, client: &reqwest::Client) -> Seen {
    let answered = async {
        let mut response = client.get(anchor.url.clone()).send().await?;
        let mut body = Vec::new();
        while body.len() < BODY_BYTES_MAX {
            let Some(chunk) = response.chunk().await? else { break };
            body.extend_from_slice(&chunk);
        }
        Ok::<_, reqwest::Error>((response.status().as_u16(), body))
    };
    match answered.await {
        Ok((status, body)) => anchor.judge(status, &String::from_utf8_lossy(&body)),
        Err(error) => {
            tracing::trace!(url = %anchor.url, error = chain(&error), "a probe was not answered");
            Seen::Nothing
        }
    }
}

/// Addresses of the hosts that are asked. The system's resolver asks over the uplink that is in use, which may be the
/// dead one: what a name was last is taken when it does not answer, over restarts, too.
#[derive(Clone)]
pub(crate) struct Addresses {
    inner: Arc<Inner>,
}

struct Inner {
    file: PathBuf,
    known: Mutex<BTreeMap<String, Known>>,
    tracker: TaskTracker,
}

#[derive(Debug, Default)]
struct Known {
    addresses: Vec<IpAddr>,
    at: Option<Instant>,
    /// A lookup that is under way: names are never looked up twice at once, as each may hang for half a minute.
    asking: Option<watch::Receiver<bool>>,
}

impl std::fmt::Debug for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Addresses").field("file", &self.inner.file).finish_non_exhaustive()
    }
}

impl Addresses {
    /// With what was known in an earlier life, if that is still there.
    pub(crate) fn load(file: &Path, tracker: &TaskTracker) -> Self {
        let text = files::read(file).unwrap_or_default();
        let remembered: BTreeMap<String, Vec<IpAddr>> =
            serde_json::from_str(&text).unwrap_or_default();
        let known = remembered
            .into_iter()
            .take(NAMES_MAX)
            .map(|(name, addresses)| (name, Known { addresses, ..Known::default() }))
            .collect();
        let (file, tracker) = (file.to_owned(), tracker.clone());
        Self { inner: Arc::new(Inner { file, known: Mutex::new(known), tracker }) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(self, name: String) -> Vec<IpAddr> {
        let Some(mut asking) = self.asking(&name) else {
            return self.known(&name);
        };
        // Whether it came in time or not: what is known then is what there is.
        drop(tokio::time::timeout(LOOKUP_WITHIN, asking.wait_for(|done| *done)).await);
        self.known(&name)
    }

    fn known(&self, name: &str) -> Vec<IpAddr> {
        self.lock().get(name).map(|known| known.addresses.clone()).unwrap_or_default()
    }

    /// The lookup that is under way, or a new one; none when there is nothing to look up.
    fn asking(&self, name: &str) -> Option<watch::Receiver<bool>> {
        let mut all = self.lock();
        if all.len() >= NAMES_MAX && !all.contains_key(name) {
            return None;
        }
        let known = all.entry(name.to_owned()).or_default();
        if known.at.is_some_and(|at| at.elapsed() < ADDRESSES_FRESH) {
            return None;
        }
        if known.asking.is_none() {
            let (done, asking) = watch::channel(false);
            known.asking = Some(asking);
            let (this, name) = (self.clone(), name.to_owned());
            self.inner.tracker.spawn(async move { this.look_up(name, done).await });
        }
        known.asking.clone()
    }

    async fn look_up(&self, name: String, done: watch::Sender<bool>) {
        let found: Vec<IpAddr> = match tokio::net::lookup_host((name.as_str(), 0)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => {
                tracing::debug!(name, %error, "a name was not found");
                Vec::new()
            }
        };
        let changed = {
            let mut all = self.lock();
            let known = all.entry(name).or_default();
            known.asking = None;
            if found.is_empty() {
                None
            } else {
                known.at = Some(Instant::now());
                let changed = known.addresses != found;
                known.addresses = found;
                let all = all.iter().map(|(name, known)| (name, &known.addresses));
                changed.then(|| serde_json::to_string(&all.collect::<BTreeMap<_, _>>()))
            }
        };
        if let Some(Ok(text)) = changed
            && let Err(error) = files::write_private(&self.inner.file, &text)
        {
            tracing::debug!(error = chain(&error), "addresses are not remembered");
        }
        done.send_replace(true);
    }
}

impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.clone().find(name.as_str().to_owned());
        Box::pin(async move {
            // The port is the question's.
            let found: Vec<SocketAddr> =
                found.await.into_iter().map(|address| SocketAddr::new(address, 0)).collect();
            if found.is_empty() {
                return Err("it was never found".into());
            }
            let found: Addrs = Box::new(found.into_iter());
            Ok(found)
        })
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
