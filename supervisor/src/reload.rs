//! A changed configuration, taken while everything runs: only what differs is touched.
//!
//! A file that cannot be used changes nothing. What is fixed from the start (where state lies, who the router is, where
//! the dispatch API listens, the tunnel) keeps its old value and is named, key by key. Everything else is taken: phones by their
//! differences, what watches the machine and Messages by handing it its new settings.

use std::sync::Arc;

use protocol::PhoneId;
use router_client::clock::wall_now;
use serde::Serialize;
use tokio::sync::{Mutex, watch};

use crate::canary;
use crate::cloudflared;
use crate::config::{Config, ConfigError, RouterConfig};
use crate::identity::{self, IdentityError};
use crate::messages_app;
use crate::network;
use crate::news;
use crate::pool::{Changes, Pool, Surroundings, Tuning, chain};
use crate::power;
use crate::program;

/// Why a configuration was not taken. The old one stays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// The file cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It is not known who the phones are.
    #[error("the phones of the changed configuration")]
    Identity(#[from] IdentityError),
    /// Everything is on its way out.
    #[error("the supervisor is stopping")]
    Stopping,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reloaded {
    /// What it did to the phones.
    #[serde(flatten)]
    pub(crate) phones: Changes,
    /// Tables and keys besides the phones' that have changed and count from now on.
    pub(crate) taken: Vec<&'static str>,
    /// Keys that have changed in the file and keep their old value until the supervisor is restarted.
    pub(crate) needs_restart: Vec<&'static str>,
}

/// What follows the configuration while it runs, besides the phones.
#[derive(Debug, Clone)]
pub(crate) struct Followers {
    pub(crate) power: watch::Sender<power::Settings>,
    pub(crate) network: watch::Sender<network::Settings>,
    pub(crate) messages_app: watch::Sender<messages_app::Settings>,
    pub(crate) canaries: Arc<Mutex<canary::Pairs>>,
}

/// Takes changed configurations, one at a time.
#[derive(Debug, Clone)]
pub(crate) struct Reloader {
    /// The configuration that runs. Never held while something is waited for: whoever asks is answered.
    running: Arc<Mutex<Config>>,
    /// Held by the one that is being taken.
    turn: Arc<Mutex<()>>,
    pool: Pool,
    surroundings: Surroundings,
    followers: Followers,
}

impl Reloader {
    /// Over what was started with this configuration.
    pub(crate) fn new(
        running: Config,
        pool: Pool,
        surroundings: Surroundings,
        followers: Followers,
    ) -> Self {
        let (running, turn) = (Arc::new(Mutex::new(running)), Arc::default());
        Self { running, turn, pool, surroundings, followers }
    }

    /// What runs.
    pub(crate) async fn running(&self) -> Config {
        self.running.lock().await.clone()
    }

    /// Reads the file again and makes what runs what it says. Whoever gives up waiting does not stop it half-way.
    pub(crate) async fn reload(&self) -> Result<Reloaded, ReloadError> {
        if self.surroundings.stopping.is_cancelled() {
            return Err(ReloadError::Stopping);
        }
        let reloader = self.clone();
        let task = self.surroundings.tracker.spawn(async move { reloader.take().await });
        // A task ends early only with the runtime.
        let outcome = task.await.unwrap_or(Err(ReloadError::Stopping));
        let word = match &outcome {
            Ok(reloaded) => {
                tracing::info!(
                    started = reloaded.phones.started.len(),
                    stopped = reloaded.phones.stopped.len(),
                    replaced = reloaded.phones.replaced.len(),
                    untouched = reloaded.phones.untouched,
                    taken = ?reloaded.taken,
                    "the configuration was read again"
                );
                if !reloaded.phones.still_ending.is_empty() {
                    tracing::error!(phones = ?reloaded.phones.still_ending,
                        "still ending; what the configuration wants of them is done when they have ended");
                }
                if !reloaded.needs_restart.is_empty() {
                    tracing::warn!(keys = ?reloaded.needs_restart, "changed, and kept until the next start");
                }
                "taken"
            }
            Err(error) => {
                tracing::error!(
                    error = chain(error),
                    "the changed configuration was not taken; the old one stays"
                );
                "refused"
            }
        };
        metrics::counter!("switchboard_reloads_total", "outcome" => word).increment(1);
        outcome
    }

    async fn take(&self) -> Result<Reloaded, ReloadError> {
        let _turn = self.turn.lock().await;
        let running = self.running().await;
        let (wanted, needs_restart) = keep_fixed(&running, Config::load(&running.file)?);
        let taken = taken(&running, &wanted);
        let phones = self.make(wanted).await?;
        if !phones.still_ending.is_empty() {
            let (reloader, late) = (self.clone(), phones.still_ending.clone());
            self.surroundings.tracker.spawn(async move {
                let stopping = reloader.surroundings.stopping.clone();
                stopping.run_until_cancelled(reloader.finish(late)).await.unwrap_or(());
            });
        }
        Ok(Reloaded { phones, taken, needs_restart })
    }

    /// Makes the phones what this configuration says, which runs from then on.
    async fn make(&self, wanted: Config) -> Result<Changes, IdentityError> {
        let phones = identity::identify(&wanted, wall_now())?.phones;
        let surroundings = Surroundings { tuning: tuning(&wanted), ..self.surroundings.clone() };
        program::log_by(wanted.log.as_deref());
        let followers = &self.followers;
        news::tell(&followers.power, wanted.power.clone());
        news::tell(&followers.network, wanted.network.clone());
        news::tell(&followers.messages_app, wanted.messages_app.clone());
        let pairs = wanted.canaries.clone();
        *self.running.lock().await = wanted;
        let changes = self.pool.reload(&phones, &surroundings).await;
        // Whoever is to write must be there first.
        followers.canaries.lock().await.take(&pairs);
        Ok(changes)
    }

    /// Does what had to be put off, by the configuration that runs then: a later one has the last word.
    async fn finish(&self, mut late: Vec<PhoneId>) {
        while !late.is_empty() {
            self.pool.ended(&late).await;
            let _turn = self.turn.lock().await;
            let running = self.running().await;
            late = match self.make(running).await {
                Ok(changes) => {
                    tracing::info!(phones = ?late, still = ?changes.still_ending, "they have ended at last");
                    changes.still_ending
                }
                Err(error) => {
                    tracing::error!(
                        error = chain(&error),
                        "what was put off could not be done; reload again"
                    );
                    Vec::new()
                }
            };
        }
    }
}

/// What of a configuration is the same for all phones.
pub(crate) fn tuning(config: &Config) -> Tuning {
    Tuning {
        bridge: config.bridge.clone(),
        settings: config.settings.clone(),
        memory: config.memory,
        cpu: config.cpu,
    }
}

/// The names of those that differ.
fn differing<const N: usize>(
    fields: [(&'static str, bool); N],
) -> impl Iterator<Item = &'static str> {
    fields.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name)
}

/// The new configuration with the old one's values where they cannot change, and the names of those that would have.
fn keep_fixed(running: &Config, new: Config) -> (Config, Vec<&'static str>) {
    let mut names: Vec<_> =
        differing([("state_dir", running.state_dir != new.state_dir)]).collect();
    names.extend(router_keys(running.router.as_ref(), new.router.as_ref()));
    names.extend(tunnel_keys(running.cloudflared.as_ref(), new.cloudflared.as_ref()));
    let (old, wanted) = (&running.dispatch, &new.dispatch);
    names.extend(differing([
        ("[dispatch] listen", old.listen != wanted.listen),
        ("[dispatch] token_file", old.token_file != wanted.token_file),
        ("[dispatch] local_epoch", old.local_epoch != wanted.local_epoch),
    ]));
    // What proves the internet to the tunnel is read when that starts.
    if running.cloudflared.is_some() && running.network.anchors != new.network.anchors {
        names.push("[[network.anchors]], for [cloudflared]");
    }
    let kept = Config {
        state_dir: running.state_dir.clone(),
        router: running.router.clone(),
        dispatch: running.dispatch.clone(),
        cloudflared: running.cloudflared.clone(),
        // Where the router's health is asked for follows from [router].
        network: network::Settings { router: running.network.router.clone(), ..new.network },
        ..new
    };
    (kept, names)
}

/// The link is one for life: it dials, or is dialled, as it was made.
fn router_keys(old: Option<&RouterConfig>, new: Option<&RouterConfig>) -> Vec<&'static str> {
    let (old, new) = match (old, new) {
        (None, None) => return Vec::new(),
        (Some(old), Some(new)) => (old, new),
        (None, Some(_)) | (Some(_), None) => return vec!["[router]"],
    };
    let key = |router: &RouterConfig| {
        router.dialled.as_ref().and_then(|dialled| dialled.router_key.clone())
    };
    let access =
        |router: &RouterConfig| router.dialled.as_ref().and_then(|dialled| dialled.access.clone());
    differing([
        ("[router] url", old.url != new.url),
        ("[router] roots, extra_ca", old.roots != new.roots),
        ("[router] proxy", old.proxies != new.proxies),
        ("[router] redial_max_ms", old.redial_max != new.redial_max),
        ("[router] silence_ms", old.silence != new.silence),
        ("[router] dial", old.dialled.is_some() != new.dialled.is_some()),
        ("[router] router_key", key(old) != key(new)),
        ("[router.access]", access(old) != access(new)),
    ])
    .collect()
}

/// A tunnel that is started anew cuts the link off for a while, which no reload does.
fn tunnel_keys(
    old: Option<&cloudflared::Settings>,
    new: Option<&cloudflared::Settings>,
) -> Vec<&'static str> {
    let (old, new) = match (old, new) {
        (None, None) => return Vec::new(),
        (Some(old), Some(new)) => (old, new),
        (None, Some(_)) | (Some(_), None) => return vec!["[cloudflared] run"],
    };
    differing([
        ("[cloudflared] program", old.program != new.program),
        ("[cloudflared] token_file", old.token_file != new.token_file),
        ("[cloudflared] metrics_port", old.metrics_port != new.metrics_port),
        ("[cloudflared] protocol", old.protocol != new.protocol),
        ("[cloudflared] probe", old.probe != new.probe),
        ("[cloudflared] poll_ms", old.poll != new.poll),
        ("[cloudflared] probe_every_ms", old.probe_every != new.probe_every),
        ("[cloudflared] settle_ms, unready_ms, restarts_per_hour", old.policy != new.policy),
    ])
    .collect()
}

/// What differs between what ran and what runs now, besides the phones.
fn taken(old: &Config, new: &Config) -> Vec<&'static str> {
    let beats = |config: &Config| crate::phone::Settings {
        policy: old.settings.policy,
        ..config.settings.clone()
    };
    differing([
        ("bridge", old.bridge != new.bridge),
        ("log", old.log != new.log),
        ("[heartbeat]", beats(old) != beats(new)),
        ("[restart]", old.settings.policy != new.settings.policy),
        ("[memory]", old.memory != new.memory),
        ("[cpu]", old.cpu != new.cpu),
        ("[power]", old.power != new.power),
        ("[network]", old.network != new.network),
        ("[messages_app]", old.messages_app != new.messages_app),
        ("[[canary]]", old.canaries != new.canaries),
    ])
    .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(more: &str) -> Config {
        let text = format!(
            "state_dir = \"/state\"\n{more}\n[[phones]]\nnumber = \"+12025550190\"\nchat_db = \"/db\"\n"
        );
        Config::parse(Path::new("/etc/supervisor.toml"), &text).unwrap()
    }

    #[test]
    fn what_is_fixed_keeps_its_value_and_is_named() {
        let running = config("");
        let (kept, names) = keep_fixed(&running, config("bridge = \"/other\""));
        assert_eq!((kept.bridge.as_path(), names), (Path::new("/other"), vec![]));

        let text = "state_dir = \"/elsewhere\"\n[[phones]]\nnumber = \"+12025550191\"\nchat_db = \"/db\"\n\
                    [router]\nurl = \"wss://router.example\"\n\
                    [dispatch]\nlisten = \"127.0.0.1:9\"\ntoken_file = \"/token\"\nlocal_epoch = 4\n";
        let new = Config::parse(Path::new("/etc/supervisor.toml"), text).unwrap();
        let (kept, names) = keep_fixed(&running, new);
        assert_eq!(
            names,
            [
                "state_dir",
                "[router]",
                "[dispatch] listen",
                "[dispatch] token_file",
                "[dispatch] local_epoch"
            ]
        );
        assert_eq!((&kept.state_dir, &kept.dispatch), (&running.state_dir, &running.dispatch));
        assert_eq!(kept.router, None);
        assert_eq!(kept.phones.first().map(|phone| phone.number.as_str()), Some("+12025550191"));
    }

    #[test]
    fn each_key_that_waits_for_a_restart_is_named_and_everything_else_is_taken() {
        let base =
            "[router]\nurl = \"wss://a.example\"\n[cloudflared]\nrun = true\nprogram = \"/a\"\n";
        // What is changed by it, what of that waits, and what is taken.
        let table: [(&str, &[&str], &[&str]); 18] = [
            ("", &[], &[]),
            ("url = \"wss://b.example\"", &["[router] url"], &[]),
            ("roots = \"/pem\"", &["[router] roots, extra_ca"], &[]),
            ("proxy = \"none\"", &["[router] proxy"], &[]),
            ("redial_max_ms = 9", &["[router] redial_max_ms"], &[]),
            ("silence_ms = 3000", &["[router] silence_ms"], &[]),
            ("dial = \"in\"", &["[router] dial"], &[]),
            ("metrics_port = 9", &["[cloudflared] metrics_port"], &[]),
            ("protocol = \"quic\"", &["[cloudflared] protocol"], &[]),
            ("settle_ms = 9", &["[cloudflared] settle_ms, unready_ms, restarts_per_hour"], &[]),
            ("log = \"debug\"", &[], &["log"]),
            ("[heartbeat]\nmissed = 9", &[], &["[heartbeat]"]),
            ("[restart]\nintensity = 9", &[], &["[restart]"]),
            ("[memory]\nsoft_mib = 9", &[], &["[memory]"]),
            ("[cpu]\nover_s = 9", &[], &["[cpu]"]),
            ("[power]\nlow_percent = 9", &[], &["[power]"]),
            ("[messages_app]\nprobe_every_s = 9", &[], &["[messages_app]"]),
            (
                "[network]\nevery_ms = 900\n[[network.anchors]]\nurl = \"http://b.example\"\nbody = \"b\"",
                &["[[network.anchors]], for [cloudflared]"],
                &["[network]"],
            ),
        ];
        let running = config(base);
        for (change, waits, taken_too) in table {
            let keys = [
                "url",
                "roots",
                "proxy",
                "redial_max_ms",
                "silence_ms",
                "dial",
                "metrics_port",
                "protocol",
                "settle_ms",
                "log",
            ];
            let text = match keys.into_iter().find(|key| change.starts_with(&format!("{key} ="))) {
                Some("log") => format!("{change}\n{base}"),
                Some("url") => base.replace("url = \"wss://a.example\"", change),
                None | Some("metrics_port" | "protocol" | "settle_ms") => format!("{base}{change}"),
                Some(_) => base.replace("[cloudflared]", &format!("{change}\n[cloudflared]")),
            };
            let (kept, names) = keep_fixed(&running, config(&text));
            assert_eq!(
                (names.as_slice(), taken(&running, &kept).as_slice()),
                (waits, taken_too),
                "{change}"
            );
        }
    }
}
