//! A changed configuration, taken while everything runs: only what differs is touched.
//!
//! A file that cannot be used changes nothing. What is fixed from the start (where state lies, who the router is, where
//! the dispatch API listens) keeps its old value and is named.

use std::sync::Arc;

use protocol::PhoneId;
use router_client::clock::wall_now;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::config::{Config, ConfigError};
use crate::identity::{self, IdentityError};
use crate::network;
use crate::pool::{Changes, Pool, Surroundings, Tuning, chain};

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
    /// Fields that have changed in the file and keep their old value until the supervisor is restarted.
    pub(crate) needs_restart: Vec<&'static str>,
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
}

impl Reloader {
    /// Over what was started with this configuration.
    pub(crate) fn new(running: Config, pool: Pool, surroundings: Surroundings) -> Self {
        let (running, turn) = (Arc::new(Mutex::new(running)), Arc::default());
        Self { running, turn, pool, surroundings }
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
                    "the configuration was read again"
                );
                if !reloaded.phones.still_ending.is_empty() {
                    tracing::error!(phones = ?reloaded.phones.still_ending,
                        "still ending; what the configuration wants of them is done when they have ended");
                }
                if !reloaded.needs_restart.is_empty() {
                    tracing::warn!(fields = ?reloaded.needs_restart, "changed, and kept until the next start");
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
        let phones = self.make(wanted).await?;
        if !phones.still_ending.is_empty() {
            let (reloader, late) = (self.clone(), phones.still_ending.clone());
            self.surroundings.tracker.spawn(async move {
                let stopping = reloader.surroundings.stopping.clone();
                stopping.run_until_cancelled(reloader.finish(late)).await.unwrap_or(());
            });
        }
        Ok(Reloaded { phones, needs_restart })
    }

    /// Makes the phones what this configuration says, which runs from then on.
    async fn make(&self, wanted: Config) -> Result<Changes, IdentityError> {
        let phones = identity::identify(&wanted, wall_now())?.phones;
        let surroundings = Surroundings { tuning: tuning(&wanted), ..self.surroundings.clone() };
        *self.running.lock().await = wanted;
        Ok(self.pool.reload(&phones, &surroundings).await)
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

/// The new configuration with the old one's values where they cannot change, and the names of those that would have.
fn keep_fixed(running: &Config, new: Config) -> (Config, Vec<&'static str>) {
    let router = |config: &Config| config.router.clone();
    // Where the router's health is asked for follows from [router].
    let network = |config: &Config| network::Settings { router: None, ..config.network.clone() };
    let changed = [
        ("state_dir", running.state_dir != new.state_dir),
        ("[router]", router(running) != router(&new)),
        ("[power]", running.power != new.power),
        ("[[canary]]", running.canaries != new.canaries),
        ("[messages_app]", running.messages_app != new.messages_app),
        ("[network]", network(running) != network(&new)),
        ("[cloudflared]", running.cloudflared != new.cloudflared),
        ("[dispatch] listen", running.dispatch.listen != new.dispatch.listen),
        ("[dispatch] token_file", running.dispatch.token_file != new.dispatch.token_file),
        ("[dispatch] local_epoch", running.dispatch.local_epoch != new.dispatch.local_epoch),
    ];
    let names = changed.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect();
    let kept = Config {
        state_dir: running.state_dir.clone(),
        router: router(running),
        dispatch: running.dispatch.clone(),
        power: running.power.clone(),
        canaries: running.canaries.clone(),
        messages_app: running.messages_app.clone(),
        network: running.network.clone(),
        cloudflared: running.cloudflared.clone(),
        ..new
    };
    (kept, names)
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
}
