//! The providers in memory: who is set up, how their APIs do, how much they have in hand.
//!
//! Dispatch asks one thing first, and without a lock: whether any provider is enabled at all. What is here is read from
//! the store when the router starts and whenever the operator changes something; breakers and rests are of this process
//! alone and begin anew with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::api::{ProviderKind, ProviderStanding};
use protocol::{PhoneId, TenantId, UnixMs};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::breaker::Breaker;
use super::choice::{self, Candidate, Need, twilio_refused};
use super::telnyx::{self, Telnyx};
use super::twilio::{self, Twilio};
use super::{Client, Provider};
use crate::config;
use crate::store::providers::{self as rows, ProviderRow};
use crate::store::{Store, StoreError, Tx};

/// Attempts that may wait for a provider for each one that may be under way with it: what waits is decided already, and
/// should not wait long.
const WAITING_PER_PLACE: usize = 4;

/// What of a provider's settings is no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Twilio's `AccountSid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Twilio's messaging service, or Telnyx's messaging profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The SID of Twilio's API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_sid: Option<String>,
    /// Telnyx's public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// A provider's secrets, as they are sealed. No `Debug`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Secrets {
    /// Twilio's token of the account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<String>,
    /// The secret of Twilio's API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_secret: Option<String>,
    /// Telnyx's API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Secrets {
    /// As they are sealed.
    pub fn text(&self) -> Result<SecretString, serde_json::Error> {
        serde_json::to_string(self).map(SecretString::from)
    }
}

/// What a provider's secrets are bound to.
pub fn place(kind: ProviderKind, name: &str) -> String {
    format!("{kind}:{name}")
}

/// Makes the client of a provider; the answer is what is wrong where it cannot be made.
pub fn client(
    kind: ProviderKind,
    settings: &Settings,
    secrets: &SecretString,
    config: &config::Providers,
) -> Result<Arc<dyn Provider>, String> {
    let secrets: Secrets = serde_json::from_str(secrets.expose_secret())
        .map_err(|_unreadable| "its credentials cannot be read: set them again".to_owned())?;
    let missing = |what: &str| format!("it has no {what}: set it again");
    match kind {
        ProviderKind::Twilio => {
            let account = settings.account.clone().ok_or_else(|| missing("account"))?;
            let token = secrets.auth_token.ok_or_else(|| missing("auth_token"))?;
            let api_key = settings.api_key_sid.clone().zip(secrets.api_key_secret);
            let secrets = twilio::Secrets {
                auth_token: SecretString::from(token),
                api_key: api_key.map(|(sid, secret)| (sid, SecretString::from(secret))),
            };
            let client = Client::new(config.twilio_url.clone(), config.limits());
            Ok(Arc::new(Twilio::new(client, account, settings.service.clone(), secrets)))
        }
        ProviderKind::Telnyx => {
            let key = secrets.api_key.ok_or_else(|| missing("api_key"))?;
            let public = settings.public_key.as_deref().ok_or_else(|| missing("public_key"))?;
            let public = telnyx::public_key(public).map_err(|error| error.to_string())?;
            let client = Client::new(config.telnyx_url.clone(), config.limits());
            let key = SecretString::from(key);
            Ok(Arc::new(Telnyx::new(client, key, settings.service.clone(), public)))
        }
    }
}

/// The providers; clones share the memory.
#[derive(Debug, Clone)]
pub struct Providers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: config::Providers,
    on: AtomicBool,
    state: Mutex<State>,
    bell: Notify,
    /// Held from the reading of the rows until they are taken in: of two who load, the one that has read less must not have
    /// the last word.
    loading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    chosen: rows::Chosen,
    sms_a_day: Option<u64>,
    all: Vec<Live>,
}

/// One provider in memory.
#[derive(Debug, Clone)]
struct Live {
    row: ProviderRow,
    settings: Settings,
    provider: Result<Arc<dyn Provider>, String>,
    breaker: Breaker,
    rests_until: Option<UnixMs>,
    in_flight: usize,
}

impl Live {
    fn usable(&self) -> bool {
        self.row.enabled && self.provider.is_ok()
    }

    fn candidate(&self, switched_to: Option<&str>, now: UnixMs) -> Candidate {
        Candidate {
            name: self.row.name.clone(),
            kind: self.row.kind,
            phone: self.row.phone.clone(),
            number: self.row.number.clone(),
            enabled: self.usable(),
            switched_to: switched_to == Some(self.row.name.as_str()),
            priority: self.row.priority,
            breaker: self.breaker.state(now),
            shut_until: self.breaker.shut_until(now),
            rests_until: self.rests_until,
            full: false,
            tried: false,
        }
    }
}

/// A provider that can be asked.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Its name.
    pub name: String,
    /// Under which id its number stands among phones.
    pub phone: PhoneId,
    /// As it stands in the store.
    pub row: ProviderRow,
    /// Whoever asks it.
    pub provider: Option<Arc<dyn Provider>>,
    /// It may be asked for more now.
    pub usable: bool,
    /// How many more may be under way.
    pub free: usize,
}

impl Providers {
    /// None, until they are loaded.
    pub fn new(config: config::Providers) -> Self {
        let inner = Inner {
            config,
            on: AtomicBool::new(false),
            state: Mutex::default(),
            bell: Notify::new(),
            loading: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// How they are set up.
    pub fn config(&self) -> &config::Providers {
        &self.inner.config
    }

    /// No provider is enabled: nothing here concerns a message.
    pub fn are_off(&self) -> bool {
        !self.inner.on.load(Ordering::Acquire)
    }

    /// There is no provider at all, enabled or not.
    pub fn are_none(&self) -> bool {
        self.state().all.is_empty()
    }

    /// Wakes whoever asks them.
    pub fn ring(&self) {
        self.inner.bell.notify_one();
    }

    /// Waits for somebody to ring.
    pub async fn rung(&self) {
        self.inner.bell.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all of them anew. What was sealed with an older key is sealed with the first one.
    pub async fn load(&self, store: &Store) -> Result<(), StoreError> {
        let _alone = self.inner.loading.lock().await;
        let (all, chosen) = store.read(|tx| Ok((rows::list(tx)?, rows::chosen(tx)?))).await?;
        let mut live = Vec::with_capacity(all.len());
        let mut anew = Vec::new();
        for row in all {
            let settings: Settings = serde_json::from_str(&row.settings).unwrap_or_default();
            let provider = match self.open(&row, &settings, &mut anew) {
                Ok(provider) => Ok(provider),
                Err(why) => {
                    tracing::error!(provider = %row.name, why, "providers: one cannot be used");
                    Err(why)
                }
            };
            live.push((row, settings, provider));
        }
        for (name, before, after) in anew {
            store.write(move |tx| rows::reseal(tx, &name, (&before, &after))).await?;
        }
        let mut state = self.state();
        let before = std::mem::take(&mut state.all);
        state.all = live
            .into_iter()
            .map(|(row, settings, provider)| {
                let old = before.iter().find(|old| old.row.name == row.name);
                // A failing key that was replaced has the benefit of the doubt.
                let same = old.filter(|old| old.row.sealed.bytes == row.sealed.bytes);
                Live {
                    breaker: same.map(|old| old.breaker.clone()).unwrap_or_default(),
                    rests_until: same.and_then(|old| old.rests_until),
                    in_flight: old.map_or(0, |old| old.in_flight),
                    row,
                    settings,
                    provider,
                }
            })
            .collect();
        state.chosen = chosen;
        self.inner.on.store(state.all.iter().any(Live::usable), Ordering::Release);
        drop(state);
        self.ring();
        Ok(())
    }

    fn open(
        &self,
        row: &ProviderRow,
        settings: &Settings,
        anew: &mut Vec<(String, super::seal::Sealed, super::seal::Sealed)>,
    ) -> Result<Arc<dyn Provider>, String> {
        let seal = self.inner.config.seal.as_ref();
        let seal = seal.ok_or("there is no key for its credentials: set `providers.key_file`")?;
        let place = place(row.kind, &row.name);
        let secrets = seal.open(&place, &row.sealed).map_err(|error| error.to_string())?;
        if row.sealed.key_id != seal.key_id()
            && let Ok(sealed) = seal.seal(&place, &secrets)
        {
            anew.push((row.name.clone(), row.sealed.clone(), sealed));
        }
        client(row.kind, settings, &secrets, &self.inner.config)
    }

    /// Chooses a provider for a message, or says why none. Where one is chosen, it counts as asked.
    pub fn choose(
        &self,
        tx: &mut Tx<'_>,
        whose: Option<(&TenantId, &protocol::MessageId)>,
        need: &Need<'_>,
        now: UnixMs,
    ) -> Result<(choice::Chosen, Option<Candidate>), StoreError> {
        let (mut candidates, figures) = {
            let state = self.state();
            let to = state.chosen.switched_to.as_deref();
            let all: Vec<Candidate> =
                state.all.iter().map(|live| live.candidate(to, now)).collect();
            (all, state.chosen.figures(state.sms_a_day))
        };
        let places = self.inner.config.in_flight.saturating_mul(WAITING_PER_PLACE);
        let tried = match whose {
            Some((tenant, message)) => rows::tried(tx, tenant, message)?,
            None => Vec::new(),
        };
        for candidate in candidates.iter_mut().filter(|candidate| candidate.enabled) {
            candidate.full = rows::waiting(tx, &candidate.phone, places)? >= places;
            candidate.tried = tried.contains(&candidate.phone);
        }
        let chosen = choice::choose(need, &candidates, &figures, now);
        let who = chosen.index.and_then(|index| candidates.get(index).cloned());
        Ok((chosen, who))
    }

    /// A message was given to a provider, on disk or about to be.
    pub fn gave(&self, name: &str, now: UnixMs) {
        self.with(name, |live| live.breaker.gave(now));
    }

    /// One more is under way, or one less.
    pub fn begins(&self, name: &str) {
        self.with(name, |live| live.in_flight = live.in_flight.saturating_add(1));
    }

    /// What was under way has ended.
    pub fn ends(&self, name: &str) {
        self.with(name, |live| live.in_flight = live.in_flight.saturating_sub(1));
    }

    /// A provider's API has answered, well or not.
    pub fn answered(&self, name: &str, good: bool, now: UnixMs) {
        let mut told = None;
        self.with(name, |live| {
            if live.breaker.answered(good, now) {
                told = Some(live.breaker.state(now));
            }
        });
        if let Some(state) = told {
            tracing::warn!(provider = name, state = %state, "providers: the breaker has turned");
        }
    }

    /// A provider wants to be left alone until then.
    pub fn rests(&self, name: &str, until: UnixMs) {
        self.with(name, |live| live.rests_until = live.rests_until.max(Some(until)));
    }

    /// Takes in how many SMS were sent within a day. True when Twilio may be asked from now on and could not before, or
    /// the other way round.
    pub fn counted(&self, sms: u64, now: UnixMs) -> bool {
        let mut state = self.state();
        let before = twilio_refused(&state.chosen.figures(state.sms_a_day), now).is_empty();
        state.sms_a_day = Some(sms);
        before != twilio_refused(&state.chosen.figures(state.sms_a_day), now).is_empty()
    }

    /// There is somebody for whom SMS have to be counted.
    pub fn need_counting(&self) -> bool {
        self.state().all.iter().any(|live| live.row.kind == ProviderKind::Twilio)
    }

    fn with(&self, name: &str, change: impl FnOnce(&mut Live)) {
        if let Some(live) = self.state().all.iter_mut().find(|live| live.row.name == name) {
            change(live);
        }
    }

    /// All of them, for whoever asks them.
    ///
    /// Twilio's conditions are asked again here: what was decided while they were met may have waited, and goes back.
    pub fn ready(&self, now: UnixMs) -> Vec<Ready> {
        let places = self.inner.config.in_flight;
        let state = self.state();
        let twilio = twilio_refused(&state.chosen.figures(state.sms_a_day), now).is_empty();
        state
            .all
            .iter()
            .map(|live| Ready {
                name: live.row.name.clone(),
                phone: live.row.phone.clone(),
                row: live.row.clone(),
                provider: live.provider.as_ref().ok().map(Arc::clone),
                usable: live.usable()
                    && (live.row.kind != ProviderKind::Twilio || twilio)
                    && live.breaker.state(now) != protocol::api::BreakerState::Open
                    && live.rests_until.is_none_or(|until| until <= now),
                free: places.saturating_sub(live.in_flight),
            })
            .collect()
    }

    /// One of them, by name and kind, enabled or not.
    pub fn find(&self, kind: ProviderKind, name: &str) -> Option<Ready> {
        let all = self.ready(UnixMs(0));
        all.into_iter().find(|one| one.name == name && one.row.kind == kind)
    }

    /// How they all stand, for the operator.
    pub fn show(&self, now: UnixMs) -> Vec<ProviderStanding> {
        let state = self.state();
        let figures = state.chosen.figures(state.sms_a_day);
        state
            .all
            .iter()
            .map(|live| {
                let (answers, failures) = live.breaker.last_minute(now);
                let why_not = match live.row.kind {
                    ProviderKind::Twilio => twilio_refused(&figures, now),
                    ProviderKind::Telnyx => Vec::new(),
                };
                ProviderStanding {
                    name: live.row.name.clone(),
                    kind: live.row.kind,
                    number: live.row.number.clone(),
                    phone: live.row.phone.clone(),
                    account: live.settings.account.clone(),
                    service: live.settings.service.clone(),
                    enabled: live.row.enabled,
                    switched_to: state.chosen.switched_to.as_ref() == Some(&live.row.name),
                    priority: u32::try_from(live.row.priority).unwrap_or(0),
                    problem: live.provider.as_ref().err().cloned(),
                    why_not,
                    breaker: live.breaker.state(now),
                    shut_until: live.breaker.shut_until(now),
                    rests_until: live.rests_until.filter(|until| *until > now),
                    answers_last_minute: answers,
                    failures_last_minute: failures,
                    in_flight: u32::try_from(live.in_flight).unwrap_or(u32::MAX),
                    key_id: live.row.sealed.key_id.clone(),
                    webhook_url: self
                        .inner
                        .config
                        .webhook_url(live.row.kind, &live.row.name)
                        .map(String::from),
                    updated_at: live.row.updated_at,
                }
            })
            .collect()
    }

    /// What is chosen for all of them, and how many SMS were counted.
    pub fn chosen(&self) -> (rows::Chosen, Option<u64>) {
        let state = self.state();
        (state.chosen.clone(), state.sms_a_day)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::params;
    use crate::providers::seal::Sealed;

    fn none() -> Providers {
        Providers::new(config::Providers {
            public_url: None,
            seal: None,
            connect: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            in_flight: 4,
            twilio_url: "http://127.0.0.1:1".parse().unwrap(),
            telnyx_url: "http://127.0.0.1:1".parse().unwrap(),
            allow_private: true,
        })
    }

    #[test]
    fn twilio_is_not_asked_for_what_was_decided_while_its_conditions_were_met() {
        let providers = none();
        let now = UnixMs(1_700_000_000_000);
        let settings = Settings { account: Some("AC1".to_owned()), ..Settings::default() };
        let secrets = Secrets { auth_token: Some("t".to_owned()), ..Secrets::default() };
        let secrets = secrets.text().unwrap();
        let made = client(ProviderKind::Twilio, &settings, &secrets, providers.config()).unwrap();
        let row = ProviderRow {
            name: "twilio-1".to_owned(),
            kind: ProviderKind::Twilio,
            phone: PhoneId::new(1, [1; 10]),
            number: "+12025550100".parse().unwrap(),
            settings: String::new(),
            sealed: Sealed { key_id: String::new(), bytes: Vec::new() },
            enabled: true,
            priority: 1,
            updated_at: now,
        };
        providers.state().all.push(Live {
            row,
            settings,
            provider: Ok(made),
            breaker: Breaker::default(),
            rests_until: None,
            in_flight: 0,
        });
        let usable = |figures: (Option<u64>, Option<u64>, bool)| {
            let mut state = providers.state();
            (state.sms_a_day, state.chosen.twilio_allowed) = (figures.0, figures.2);
            state.chosen.mrr = figures.1.map(|cents| (cents, now));
            drop(state);
            providers.ready(now)[0].usable
        };
        let much = Some(100_000_000);
        assert!(usable((Some(5_001), much, true)));
        for refused in [
            (Some(5_001), much, false),
            (Some(5_001), Some(0), true),
            (Some(5_001), None, true),
            (Some(5_000), much, true),
            (None, much, true),
        ] {
            assert!(!usable(refused), "{refused:?}");
        }
        // Nobody else has conditions.
        providers.state().all[0].row.kind = ProviderKind::Telnyx;
        assert!(usable((None, None, false)));
    }

    #[tokio::test]
    async fn of_two_changes_at_once_the_last_one_counts() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.db")).unwrap();
        let providers = none();
        // One is under way; what it has read is older than the change that follows.
        let first = providers.inner.loading.lock().await;
        let mut second = std::pin::pin!(providers.load(&store));
        let waits = tokio::time::timeout(Duration::from_millis(200), &mut second).await;
        assert!(waits.is_err(), "nobody reads while another takes in what it has read");
        let change = "INSERT INTO provider_choices (id, twilio_allowed, switched_to) VALUES (1, 1, 'telnyx-1')
             ON CONFLICT (id) DO UPDATE SET twilio_allowed = 1, switched_to = 'telnyx-1'";
        store.write(move |tx| tx.execute(change, params![])).await.unwrap();
        drop(first);
        second.await.unwrap();
        assert_eq!(providers.state().chosen.switched_to.as_deref(), Some("telnyx-1"));
    }
}
