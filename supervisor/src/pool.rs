//! One owner task per phone, and the table of their states.
//!
//! The owner ([`owner`]) holds the child process; everybody else holds a [`Handle`]. What to do is decided by
//! [`crate::phone`]; the owner does it: it starts, writes, signals, and passes on what the bridge says. Which phones there
//! are is here, also after the configuration has changed.

mod handle;
mod owner;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use protocol::PhoneId;
use protocol::link::HostPower;
use protocol::pipe::Command;
use router_client::link::LinkInput;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::PhoneConfig;
use crate::phone::Settings;
use crate::plan::{self, Action};
use crate::resources::{CpuLimits, MemoryLimits};
pub(crate) use handle::{Ask, Handle, Lease, NotTaken};
use owner::start_owner;

/// What a bridge has left to end after its KILL before a reload goes on without it.
const ENDS_WITHIN: Duration = Duration::from_secs(3);
/// How long an owner that has much to do is waited for with new periods.
const TUNE_WITHIN: Duration = Duration::from_secs(1);

/// What is the same for all phones and may change while they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// The bridge program, as of its next start.
    pub(crate) bridge: PathBuf,
    /// Periods and policy.
    pub(crate) settings: Settings,
    /// What a bridge may use.
    pub(crate) memory: MemoryLimits,
    pub(crate) cpu: CpuLimits,
}

/// What every owner needs.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// The supervisor's state folder.
    pub(crate) state_dir: PathBuf,
    /// What may change while the phones run.
    pub(crate) tuning: Tuning,
    /// Where events and states go, when there is a router.
    pub(crate) link: Option<mpsc::Sender<LinkInput>>,
    /// The epoch of leases granted here, when there is none.
    pub(crate) local_epoch: u64,
    /// What the host runs on.
    pub(crate) power: watch::Receiver<Option<HostPower>>,
    /// Cancelled when everything is to stop in order.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when everything is to end at once.
    pub(crate) killing: CancellationToken,
    /// Where tasks run.
    pub(crate) tracker: TaskTracker,
}

/// All phones of this host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    phones: Arc<RwLock<BTreeMap<PhoneId, Handle>>>,
}

/// What a changed configuration has done to the phones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Changes {
    /// They are new.
    pub(crate) started: Vec<PhoneId>,
    /// They are not wanted any more.
    pub(crate) stopped: Vec<PhoneId>,
    /// Their settings are others: their bridges were stopped in order and started anew.
    pub(crate) replaced: Vec<PhoneId>,
    /// They were to be stopped or replaced and have not ended yet; they, and who would read their chat.db, are done when
    /// they have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) still_ending: Vec<PhoneId>,
    /// How many were not touched.
    pub(crate) untouched: usize,
}

impl Pool {
    /// Starts an owner for each wanted phone.
    pub(crate) fn start(
        wanted: &BTreeMap<PhoneId, PhoneConfig>,
        surroundings: &Surroundings,
    ) -> Self {
        let pool = Self::default();
        for (id, action) in plan::plan(wanted, &BTreeMap::new()) {
            match (action, wanted.get(&id)) {
                (Action::Start, Some(config)) => pool.add(id, config, surroundings),
                // Nothing runs yet, so there is nothing to stop or to replace.
                (Action::Start | Action::Stop | Action::Replace, _) => {}
            }
        }
        pool
    }

    /// Makes the phones that run those that are wanted. What is the same keeps its bridge, its lease and whatever it
    /// is doing. Phones that stop or change finish what is started first, and all of them have ended before any is
    /// started: a chat.db that moves from one phone to another is never read by two bridges. One that does not end in its time
    /// holds up nobody else.
    pub(crate) async fn reload(
        &self,
        wanted: &BTreeMap<PhoneId, PhoneConfig>,
        surroundings: &Surroundings,
    ) -> Changes {
        let running: BTreeMap<PhoneId, Handle> = self.snapshot();
        // One that was asked to end by an earlier reload is none that may stay, whatever it was.
        let is = |handle: &Handle| (!handle.end.is_cancelled()).then(|| handle.config.essence());
        let plan = plan::plan(
            &wanted.iter().map(|(id, config)| (id.clone(), Some(config.essence()))).collect(),
            &running.iter().map(|(id, handle)| (id.clone(), is(handle))).collect(),
        );
        let ending = plan.iter().filter(|(_, action)| *action != Action::Start);
        let ending: Vec<&Handle> = ending.filter_map(|(id, _)| running.get(id)).collect();
        for handle in &ending {
            handle.end.cancel();
        }
        let settings = &surroundings.tuning.settings;
        let within = settings.stop_within + settings.term_within + ENDS_WITHIN;
        let all = futures_util::future::join_all(ending.iter().map(|one| one.ended.cancelled()));
        let late = tokio::time::timeout(within, all).await.is_err();
        let mut changes = Changes::default();
        if surroundings.stopping.is_cancelled() {
            return changes;
        }
        let still: BTreeMap<PhoneId, PathBuf> = ending
            .iter()
            .filter(|handle| late && !handle.ended.is_cancelled())
            .map(|handle| (handle.id.clone(), handle.config.chat_db.clone()))
            .collect();
        let reads = |id: &PhoneId| wanted.get(id).map(|config| config.chat_db.clone());
        let plan = plan::possible(plan, &still, reads);
        changes.still_ending = still.into_keys().collect();
        for (id, action) in plan {
            match (action, wanted.get(&id)) {
                (Action::Stop, _) | (Action::Start | Action::Replace, None) => {
                    self.remove(&id, surroundings).await;
                    changes.stopped.push(id);
                }
                (Action::Replace, Some(config)) => {
                    self.add(id.clone(), config, surroundings);
                    changes.replaced.push(id);
                }
                (Action::Start, Some(config)) => {
                    self.add(id.clone(), config, surroundings);
                    changes.started.push(id);
                }
            }
        }
        let touched = [&changes.started, &changes.replaced, &changes.still_ending];
        for handle in
            self.iter().filter(|handle| !touched.iter().any(|ids| ids.contains(&handle.id)))
        {
            changes.untouched += 1;
            self.relabel(&handle.id, wanted);
            let tuned = Ask::Tune(Box::new(surroundings.tuning.clone()));
            let told = handle.asks.send_timeout(Box::new(tuned), TUNE_WITHIN).await;
            // An owner that has ended has nothing to be told.
            if let Err(mpsc::error::SendTimeoutError::Timeout(_)) = told {
                tracing::warn!(phone = %handle.id, "too busy to be told of changed periods; the next reload tells it again");
            }
        }
        changes
    }

    /// Waits until these have ended.
    pub(crate) async fn ended(&self, phones: &[PhoneId]) {
        for handle in phones.iter().filter_map(|id| self.get(id)) {
            handle.ended.cancelled().await;
        }
    }

    fn add(&self, id: PhoneId, config: &PhoneConfig, surroundings: &Surroundings) {
        let handle = start_owner(id.clone(), config.clone(), surroundings);
        self.phones.write().unwrap_or_else(PoisonError::into_inner).insert(id, handle);
    }

    async fn remove(&self, id: &PhoneId, surroundings: &Surroundings) {
        self.phones.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(link) = &surroundings.link {
            // Without a link there is nobody left who could announce the phone.
            drop(link.send(LinkInput::Forget(id.clone())).await);
        }
    }

    /// What people call a phone is not worth a new bridge.
    fn relabel(&self, id: &PhoneId, wanted: &BTreeMap<PhoneId, PhoneConfig>) {
        let mut phones = self.phones.write().unwrap_or_else(PoisonError::into_inner);
        if let (Some(handle), Some(config)) = (phones.get_mut(id), wanted.get(id)) {
            handle.config = Arc::new(config.clone());
        }
    }

    fn snapshot(&self) -> BTreeMap<PhoneId, Handle> {
        self.phones.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The phone with this id.
    pub(crate) fn get(&self, id: &PhoneId) -> Option<Handle> {
        self.phones.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Every phone, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Handle> + use<> {
        self.snapshot().into_values()
    }

    /// Takes every lease back until it is granted anew: this machine slept, and others may have gone on meanwhile.
    pub(crate) fn drop_leases(&self) {
        for phone in self.iter() {
            let Some(epoch) = phone.newest_epoch() else { continue };
            if let Err(error) = phone.ask(Ask::Command(Command::Revoke { epoch })) {
                // The continuous clock ends it all the same.
                tracing::warn!(phone = %phone.id, %error, "a lease could not be taken back after a sleep");
            }
        }
    }

    /// Has every bridge look at its Mac, its chat.db and its account now: what they saw last was before this machine slept.
    pub(crate) fn preflight(&self) {
        for phone in self.iter() {
            if let Err(error) = phone.ask(Ask::Command(Command::Preflight)) {
                // It looks by itself when it is due.
                tracing::debug!(phone = %phone.id, %error, "a bridge was not asked to look anew");
            }
        }
    }

    /// Restarts of all bridges since the supervisor started.
    pub(crate) fn restarts(&self) -> u64 {
        self.iter().map(|phone| phone.report.borrow().restarts).sum()
    }
}

/// In whole milliseconds, as wires and logs have them.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A number in 0..1; without randomness there is only less jitter.
pub(crate) fn chance() -> f64 {
    let mut bytes = [0_u8; 4];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(aws_lc_rs::error::Unspecified) => 0.5,
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
