//! The configuration: a commented TOML file, read once, checked once.
//!
//! [`DEFAULT`] is the file as shipped; every key in it has its default as value, so it doubles as the documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::api::{HoursPreset, ProviderKind, Tier};
use protocol::{Class, HostId};
use router_client::backoff::DELAY_MAX_MS;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use toml::de::DeTable;
use url::Url;

use crate::billing::stripe::{Api, Stripe};
use crate::billing::{Plans, Terms, UNLIMITED};
use crate::network::Network;
use crate::providers;
use crate::providers::seal::{KEY_ENV, KeyError, Seal};
use crate::rate::Rate;
use crate::store::keys::Tiers;
use crate::warming::{self, Step};

/// The commented default configuration.
pub const DEFAULT: &str = include_str!("config/default.toml");

/// The environment variable that gives the operator's token; it wins over the file.
pub const ADMIN_TOKEN_ENV: &str = "SWITCHBOARD_ADMIN_TOKEN";

/// Shortest operator's token. 16 characters of hexadecimal are 64 bits: not to be guessed over a network.
const ADMIN_TOKEN_CHARS_MIN: usize = 16;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the API and the hosts' links are served.
    pub listen: SocketAddr,
    /// The store's file.
    pub database: PathBuf,
    /// The operator's bearer token; without one the operator's routes refuse everybody.
    pub admin_token: Option<SecretString>,
    /// How long a shutdown waits for requests and sessions.
    pub drain: Duration,
    /// Proxies that are believed about who asks.
    pub trusted_proxies: Vec<Network>,
    /// Limits of the API.
    pub limits: Limits,
    /// Lives of messages.
    pub messages: Messages,
    /// How long things are kept.
    pub retention: Retention,
    /// Dispatch.
    pub dispatch: Dispatch,
    /// Whom phones may write to first, and how often without an answer.
    pub warming: warming::Policy,
    /// Leases.
    pub lease: Lease,
    /// See [`Link`].
    pub link: Link,
    /// Webhook delivery.
    pub webhooks: Webhooks,
    /// Rules for what may be sent.
    pub compliance: Arc<Compliance>,
    /// The plans that tenants may have.
    pub plans: Arc<Plans>,
    /// How Stripe is listened to, where it is.
    pub stripe: Option<Arc<Stripe>>,
    /// The log.
    pub log: Log,
    /// The router's own key, by which hosts that it dials know it.
    pub key_file: PathBuf,
    /// Hosts that the router dials.
    pub dial: Vec<Dial>,
    /// Providers of SMS.
    pub providers: Providers,
}

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
struct RawProviders {
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
struct RawDial {
    host: HostId,
    url: String,
    access_client_id: Option<String>,
    access_client_secret_file: Option<PathBuf>,
    access_client_secret_env: Option<String>,
    redial_max_ms: Option<u64>,
}

/// Limits of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The tier of keys that name none.
    pub tier: Tier,
    /// How often keys of the tier `starter` may be used.
    pub starter: Rate,
    /// How often keys of the tier `growth` may be used.
    pub growth: Rate,
    /// Longest request body in bytes.
    pub body_bytes: usize,
    /// Longest handling of one request in milliseconds.
    pub request_timeout_ms: u64,
}

impl Limits {
    /// How often keys of each tier may be used.
    pub fn tiers(&self) -> Tiers {
        Tiers { default: self.tier, starter: self.starter, growth: self.growth }
    }
}

/// Lives of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Messages {
    /// Life of a message that names none, in seconds.
    pub life_s: u32,
    /// The same for one-time codes.
    pub otp_life_s: u32,
    /// Longest life, and how far ahead a message may be scheduled, in seconds.
    pub ahead_s_max: u32,
    /// Messages of one batch that may wait in the queue to be sent.
    pub batch_queued: u32,
}

impl Messages {
    /// Life of a message of this class that names none, in seconds.
    pub fn life_s_of(&self, class: Class) -> u32 {
        match class {
            Class::Otp => self.otp_life_s,
            Class::Transactional | Class::Conversational | Class::Marketing => self.life_s,
        }
    }
}

/// How long things are kept that nobody needs any more, in days; 0: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "each says its unit, and all are days")]
pub struct Retention {
    /// Who was in a batch, after its end.
    pub recipients_days: u32,
    /// What a message was charged, once it cannot be given back any more.
    pub charges_days: u32,
    /// What the operator has read or changed of tenants' data.
    pub audit_days: u32,
    /// A batch that was never started, or is paused, since it was last changed.
    pub idle_batch_days: u32,
    /// Which channels reach a recipient, since that was last seen.
    pub capabilities_days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            recipients_days: 90,
            charges_days: 400,
            audit_days: 400,
            idle_batch_days: 30,
            capabilities_days: 90,
        }
    }
}

/// Dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dispatch {
    /// Attempts that one phone may have open at once.
    pub in_flight_per_phone: u32,
    /// Messages of one phone in a day (UTC).
    pub daily_cap: u32,
    /// Jobs claimed at once.
    pub claim_batch: u32,
    /// How long a claim holds before another worker may take it, in milliseconds.
    pub claim_ms: u64,
    /// How long after the dispatch a phone may still start the attempt, in milliseconds.
    pub start_window_ms: u64,
    /// After how long an attempt without an answer is offered again, in milliseconds.
    pub reoffer_ms: u64,
    /// How long past its last start an attempt on a lost host stays open before it is `unknown`, in milliseconds.
    pub host_lost_ms: u64,
    /// Attempts before a message fails.
    pub attempts: u32,
    /// Wait before the second attempt, in milliseconds; doubles each time.
    pub retry_first_ms: u64,
    /// How long it is believed that a channel does not reach a recipient, in milliseconds; 0: not at all.
    pub capability_ms: u64,
}

/// Warming.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Warming {
    /// Without it there is no cap on contacts.
    enforce: bool,
    /// New contacts within 24 hours, by the phone's age.
    new_contacts: Vec<Step>,
    /// New contacts within an hour.
    new_contacts_per_hour: u32,
    /// Messages in a row that a contact may leave unanswered; 0 for any number.
    unanswered: u32,
}

/// Leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "the unit is last in every name")]
pub struct Lease {
    /// How long a lease holds, in milliseconds.
    pub ttl_ms: u64,
    /// How long after its end another host may be given it, in milliseconds.
    pub grace_ms: u64,
    /// A phone that cannot send for so long, though its host is there, is handed to a host that stands by, in
    /// milliseconds.
    pub unfit_ms: u64,
    /// A phone is not moved by itself again within this time, in milliseconds.
    pub settle_ms: u64,
}

/// Sessions with hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// A session in which nothing was said for so long is pinged, in milliseconds.
    pub ping_ms: u64,
    /// Nothing heard for so long, though it was asked for: the session is over, in milliseconds.
    pub silence_ms: u64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            ping_ms: protocol::link::IDLE_PING_MS,
            silence_ms: protocol::link::ROUTER_SILENCE_MS,
        }
    }
}

/// Webhook delivery.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhooks {
    /// Endpoints may be plain HTTP and at private or loopback addresses.
    pub allow_private: bool,
    /// Networks that endpoints may be in though they are not public.
    pub allow_networks: Vec<Network>,
    /// How long an endpoint may take to answer, in milliseconds.
    pub timeout_ms: u64,
    /// Deliveries to one endpoint at once.
    pub per_endpoint: u32,
    /// Deliveries at once in all.
    pub in_flight: u32,
    /// Endpoints of one tenant.
    pub endpoints_per_tenant: u32,
}

/// Rules for what may be sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compliance {
    /// The hours of tenants that have chosen none.
    pub hours: HoursPreset,
    /// How long before its end a window counts as over, in seconds.
    pub guard_s: u32,
    /// How long after a recipient's message one to them is an answer, in seconds.
    pub reply_s: u32,
    /// How long after a recipient's message an answer may come at night, in seconds.
    pub reply_at_night_s: u32,
    /// The longest life of a one-time code that is taken for one, in seconds.
    pub otp_life_s_max: u32,
    /// Words and phrases that no text of any tenant may have.
    pub blocked_words: Vec<String>,
}

impl Default for Compliance {
    fn default() -> Self {
        Self {
            hours: HoursPreset::Default,
            guard_s: 300,
            reply_s: 86_400,
            reply_at_night_s: 3_600,
            otp_life_s_max: 600,
            blocked_words: Vec::new(),
        }
    }
}

/// Money.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Billing {
    /// The plan of tenants that have been given none.
    default_plan: String,
    /// Plans by name.
    plans: BTreeMap<String, RawPlan>,
    /// Webhooks of Stripe.
    stripe: Option<RawStripe>,
}

/// Where Stripe is asked.
const STRIPE_API: &str = "https://api.stripe.com";

/// `[billing.stripe]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStripe {
    webhook_secret_file: Option<PathBuf>,
    webhook_secret_env: Option<String>,
    /// A key that may read invoices, for the lines that events leave out.
    api_key_file: Option<PathBuf>,
    api_key_env: Option<String>,
    /// Where Stripe is asked; its own address when left out.
    api_url: Option<String>,
    /// Plans by the id of a price or a product.
    #[serde(default)]
    plans: BTreeMap<String, String>,
    /// Credits of a paid piece, by the id of a price or a product.
    #[serde(default)]
    credits: BTreeMap<String, u32>,
}

/// One `[billing.plans.NAME]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    /// Messages accepted in a calendar month (UTC); any number when left out.
    messages_per_month: Option<u64>,
    /// Credits that each message costs; none when left out.
    credits_per_message: Option<u32>,
}

impl Default for Billing {
    fn default() -> Self {
        Self { default_plan: UNLIMITED.to_owned(), plans: BTreeMap::new(), stripe: None }
    }
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// What is logged, as `tracing-subscriber`'s filter.
    pub filter: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tier: Tier::Growth,
            starter: Rate { per_second: 10, burst: 50 },
            growth: Rate { per_second: 100, burst: 500 },
            body_bytes: 256 * 1024,
            request_timeout_ms: 30_000,
        }
    }
}

impl Default for Messages {
    fn default() -> Self {
        Self { life_s: 12 * 3_600, otp_life_s: 600, ahead_s_max: 35 * 86_400, batch_queued: 10_000 }
    }
}

impl Default for Dispatch {
    fn default() -> Self {
        Self {
            in_flight_per_phone: 32,
            daily_cap: 1_000,
            claim_batch: 256,
            claim_ms: 30_000,
            start_window_ms: 60_000,
            reoffer_ms: 5_000,
            host_lost_ms: 600_000,
            attempts: 3,
            retry_first_ms: 2_000,
            capability_ms: 86_400_000,
        }
    }
}

impl Default for Warming {
    fn default() -> Self {
        let step = |(from_day, per_day)| Step { from_day, per_day };
        Self {
            enforce: true,
            new_contacts: [(0, 10), (7, 25), (14, 50)].map(step).to_vec(),
            new_contacts_per_hour: 15,
            unanswered: 5,
        }
    }
}

impl From<Warming> for warming::Policy {
    fn from(raw: Warming) -> Self {
        Self {
            enforce: raw.enforce,
            steps: raw.new_contacts,
            per_hour: raw.new_contacts_per_hour,
            unanswered_max: raw.unanswered,
        }
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self { ttl_ms: 15_000, grace_ms: 5_000, unfit_ms: 60_000, settle_ms: 300_000 }
    }
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            allow_private: false,
            allow_networks: Vec::new(),
            timeout_ms: 10_000,
            per_endpoint: 16,
            in_flight: 384,
            endpoints_per_tenant: 20,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

/// The file as written, before it is checked. No `Debug`: it holds the token in the clear.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    listen: SocketAddr,
    database: PathBuf,
    admin_token: Option<String>,
    admin_token_file: Option<PathBuf>,
    drain_ms: u64,
    trusted_proxies: Vec<Network>,
    limits: Limits,
    messages: Messages,
    retention: Retention,
    dispatch: Dispatch,
    warming: Warming,
    lease: Lease,
    link: Link,
    webhooks: Webhooks,
    compliance: Compliance,
    billing: Billing,
    log: Log,
    key_file: Option<PathBuf>,
    dial: Vec<RawDial>,
    providers: RawProviders,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7_070)),
            database: PathBuf::from("switchboard.db"),
            admin_token: None,
            admin_token_file: None,
            drain_ms: 10_000,
            trusted_proxies: ["127.0.0.0/8", "::1/128"]
                .map(|network| network.parse().expect("a network"))
                .to_vec(),
            limits: Limits::default(),
            messages: Messages::default(),
            retention: Retention::default(),
            dispatch: Dispatch::default(),
            warming: Warming::default(),
            lease: Lease::default(),
            link: Link::default(),
            webhooks: Webhooks::default(),
            compliance: Compliance::default(),
            billing: Billing::default(),
            log: Log::default(),
            key_file: None,
            dial: Vec::new(),
            providers: RawProviders::default(),
        }
    }
}

/// Why a configuration cannot be used; names the file and, where there is one, line and field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot be read")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not the TOML that is expected.
    #[error("{path}:{line}: {}{message}", colon(field.as_ref()))]
    Parse {
        /// Which file.
        path: String,
        /// Which line, from 1.
        line: usize,
        /// Which field, dotted, where one can be told.
        field: Option<String>,
        /// What is wrong there.
        message: String,
    },
    /// A value that cannot work.
    #[error("{path}:{} {field}: {message}", line.map(|line| format!("{line}:")).unwrap_or_default())]
    Value {
        /// Which file.
        path: String,
        /// Which line, from 1, where the value stands in the file.
        line: Option<usize>,
        /// Which field, dotted.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

fn colon(field: Option<&String>) -> String {
    field.map(|field| format!("{field}: ")).unwrap_or_default()
}

impl Config {
    /// Reads and checks the file. Relative paths in it count from its folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let mut config = Self::parse(&text, path, std::env::var(ADMIN_TOKEN_ENV).ok())?;
        if let Ok(keys) = std::env::var(KEY_ENV) {
            let seal = Seal::parse(&SecretString::from(keys), KEY_ENV);
            let wrong =
                |error: KeyError| Check { path, text: "" }.wrong(KEY_ENV, error.to_string());
            config.providers.seal = Some(Arc::new(seal.map_err(wrong)?));
        }
        Ok(config)
    }

    /// Checks the text of a file. `admin_token` is what the environment gave.
    pub fn parse(
        text: &str,
        path: &Path,
        admin_token: Option<String>,
    ) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let field = field_at(DeTable::parse_recoverable(text).0.get_ref(), offset, "")
                .or_else(|| error.span().and_then(|span| text.get(span)).and_then(bare_key));
            // The message may repeat the value, and this one is secret.
            let secret = field.as_deref() == Some("admin_token");
            let message = if secret { "must be a string, once" } else { error.message() };
            ConfigError::Parse {
                path: path.display().to_string(),
                line: line_of(text, offset),
                field,
                message: message.to_owned(),
            }
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let check = Check { path, text };
        check.all(&raw)?;
        let database = folder.join(&raw.database);
        Ok(Self {
            listen: raw.listen,
            key_file: raw
                .key_file
                .as_ref()
                .map_or_else(|| database.with_file_name(KEY_FILE), |file| folder.join(file)),
            dial: dials(&raw, folder, &check)?,
            stripe: stripe(&raw.billing, folder, &check)?.map(Arc::new),
            providers: providers_of(&raw.providers, folder, &check)?,
            plans: Arc::new(plans(&raw.billing, &check)?),
            database,
            admin_token: admin_token_of(&raw, folder, admin_token, &check)?,
            drain: Duration::from_millis(raw.drain_ms),
            trusted_proxies: raw.trusted_proxies,
            limits: raw.limits,
            messages: raw.messages,
            retention: raw.retention,
            dispatch: raw.dispatch,
            warming: raw.warming.into(),
            lease: raw.lease,
            link: raw.link,
            webhooks: raw.webhooks,
            compliance: Arc::new(raw.compliance),
            log: raw.log,
        })
    }
}

/// Requests a second, and at once, of a key: more than a router answers.
pub const RATE_MAX: u32 = 1_000_000;
/// Longest that something is kept which is not kept for ever: a century.
const DAYS_MAX: u32 = 36_500;
/// Steps of a phone's growth: far more than anybody would keep in mind.
const STEPS_MAX: usize = 32;
/// New contacts of a phone in a day. The times of so many are looked at for each choice; Apple blocks far below.
const NEW_CONTACTS_MAX: u32 = 1_000;

struct Check<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Check<'_> {
    fn wrong(&self, field: &'static str, message: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            path: self.path.display().to_string(),
            line: offset_of(self.text, field).map(|offset| line_of(self.text, offset)),
            field,
            message: message.into(),
        }
    }

    fn range<T: PartialOrd + std::fmt::Display + Copy>(
        &self,
        field: &'static str,
        value: T,
        low: T,
        high: T,
    ) -> Result<(), ConfigError> {
        if value >= low && value <= high {
            return Ok(());
        }
        Err(self.wrong(field, format!("{value} is not between {low} and {high}")))
    }

    fn all(&self, raw: &Raw) -> Result<(), ConfigError> {
        let Raw { limits, messages, dispatch, warming, lease, link, .. } = raw;
        let Raw { webhooks, compliance, log, .. } = raw;
        if raw.database.as_os_str().is_empty() {
            return Err(self.wrong("database", "is empty"));
        }
        self.range("drain_ms", raw.drain_ms, 0, 600_000)?;
        if limits.tier == Tier::Custom {
            return Err(self.wrong("limits.tier", "\"custom\" is what single keys may be"));
        }
        for (per_second, burst, rate) in [
            ("limits.starter.per_second", "limits.starter.burst", limits.starter),
            ("limits.growth.per_second", "limits.growth.burst", limits.growth),
        ] {
            self.range(per_second, rate.per_second, 1, RATE_MAX)?;
            self.range(burst, rate.burst, 1, RATE_MAX)?;
        }
        // A text of 20,000 four-byte characters, every one escaped (12 bytes), must fit.
        self.range("limits.body_bytes", limits.body_bytes, 256 * 1024, 16 * 1024 * 1024)?;
        self.range("limits.request_timeout_ms", limits.request_timeout_ms, 100, 600_000)?;
        self.range("messages.ahead_s_max", messages.ahead_s_max, 60, 400 * 86_400)?;
        self.range("messages.life_s", messages.life_s, 1, messages.ahead_s_max)?;
        self.range("messages.otp_life_s", messages.otp_life_s, 1, messages.ahead_s_max)?;
        self.range("messages.batch_queued", messages.batch_queued, 1_000, 1_000_000)?;
        for (field, days) in [
            ("retention.recipients_days", raw.retention.recipients_days),
            ("retention.charges_days", raw.retention.charges_days),
            ("retention.audit_days", raw.retention.audit_days),
            ("retention.idle_batch_days", raw.retention.idle_batch_days),
            ("retention.capabilities_days", raw.retention.capabilities_days),
        ] {
            self.range(field, days, 0, DAYS_MAX)?;
        }
        self.range("dispatch.in_flight_per_phone", dispatch.in_flight_per_phone, 1, 10_000)?;
        self.range("dispatch.daily_cap", dispatch.daily_cap, 1, 1_000_000)?;
        self.range("dispatch.claim_batch", dispatch.claim_batch, 1, 1_000)?;
        self.range("dispatch.claim_ms", dispatch.claim_ms, 100, 600_000)?;
        self.range("dispatch.start_window_ms", dispatch.start_window_ms, 1_000, 3_600_000)?;
        self.range("dispatch.reoffer_ms", dispatch.reoffer_ms, 100, 600_000)?;
        self.range("dispatch.host_lost_ms", dispatch.host_lost_ms, 0, 86_400_000)?;
        self.range("dispatch.attempts", dispatch.attempts, 1, 20)?;
        self.range("dispatch.retry_first_ms", dispatch.retry_first_ms, 1, 600_000)?;
        self.range("dispatch.capability_ms", dispatch.capability_ms, 0, 2_592_000_000)?;
        self.growth(&warming.new_contacts)?;
        self.range("warming.new_contacts_per_hour", warming.new_contacts_per_hour, 1, 1_000)?;
        self.range("warming.unanswered", warming.unanswered, 0, 1_000)?;
        // The bridge stops 3 s before the end of a lease, and renews every 5 s.
        self.range("lease.ttl_ms", lease.ttl_ms, 4_000, 600_000)?;
        // A host that is asked has some round trips' time to answer.
        self.range("link.ping_ms", link.ping_ms, 500, 20_000)?;
        self.range("link.silence_ms", link.silence_ms, link.ping_ms.saturating_mul(2), 600_000)?;
        self.range("lease.grace_ms", lease.grace_ms, 0, 600_000)?;
        self.range("lease.unfit_ms", lease.unfit_ms, 1_000, 86_400_000)?;
        self.range("lease.settle_ms", lease.settle_ms, 0, 86_400_000)?;
        self.range("webhooks.timeout_ms", webhooks.timeout_ms, 100, 60_000)?;
        self.range("webhooks.per_endpoint", webhooks.per_endpoint, 1, 1_000)?;
        self.range("webhooks.in_flight", webhooks.in_flight, webhooks.per_endpoint, 10_000)?;
        self.range("webhooks.endpoints_per_tenant", webhooks.endpoints_per_tenant, 1, 1_000)?;
        self.range("compliance.guard_s", compliance.guard_s, 0, 3_600)?;
        self.range("compliance.reply_s", compliance.reply_s, 60, 30 * 86_400)?;
        self.range(
            "compliance.reply_at_night_s",
            compliance.reply_at_night_s,
            0,
            compliance.reply_s,
        )?;
        self.range("compliance.otp_life_s_max", compliance.otp_life_s_max, 10, 3_600)?;
        if compliance.blocked_words.iter().any(|word| !word.contains(char::is_alphanumeric)) {
            return Err(
                self.wrong("compliance.blocked_words", "has an entry without a letter or digit")
            );
        }
        log.filter
            .parse::<tracing_subscriber::EnvFilter>()
            .map(drop)
            .map_err(|error| self.wrong("log.filter", error.to_string()))
    }

    /// A phone only ever grows, from its first day on.
    fn growth(&self, steps: &[Step]) -> Result<(), ConfigError> {
        let wrong = |message: String| Err(self.wrong("warming.new_contacts", message));
        if steps.first().is_none_or(|first| first.from_day != 0) {
            return wrong("the first step must be from_day = 0".to_owned());
        }
        if steps.len() > STEPS_MAX {
            return wrong(format!("{} steps are more than {STEPS_MAX}", steps.len()));
        }
        for step in steps {
            if !(1..=NEW_CONTACTS_MAX).contains(&step.per_day) {
                return wrong(format!(
                    "per_day = {} is not between 1 and {NEW_CONTACTS_MAX}",
                    step.per_day
                ));
            }
        }
        for (before, after) in steps.iter().zip(steps.iter().skip(1)) {
            if after.from_day <= before.from_day || after.per_day < before.per_day {
                return wrong(format!(
                    "from_day = {} must come after {} and allow as many at least",
                    after.from_day, before.from_day
                ));
            }
        }
        Ok(())
    }
}

/// Longest name of a plan, in characters.
const PLAN_NAME_MAX: usize = 50;
/// Most messages of a plan in a month; and most credits of a message. Their product fits the store's numbers many times.
const QUOTA_MAX: u64 = 1_000_000_000;
const PRICE_MAX: u32 = 1_000_000;

fn plans(billing: &Billing, check: &Check<'_>) -> Result<Plans, ConfigError> {
    for (name, plan) in &billing.plans {
        let wrong = |what: String| Err(check.wrong("billing.plans", format!("{name}: {what}")));
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
        if name.is_empty() || name.len() > PLAN_NAME_MAX || !name.chars().all(word) {
            return wrong(format!(
                "a name has 1 to {PLAN_NAME_MAX} small letters, digits, _ and -"
            ));
        }
        if name == UNLIMITED {
            return wrong("it is always there and costs nothing: choose another name".to_owned());
        }
        if plan.messages_per_month.is_some_and(|quota| quota > QUOTA_MAX) {
            return wrong(format!("messages_per_month is more than {QUOTA_MAX}"));
        }
        if plan.credits_per_message.is_some_and(|price| price > PRICE_MAX) {
            return wrong(format!("credits_per_message is more than {PRICE_MAX}"));
        }
    }
    let terms = |plan: &RawPlan| Terms {
        quota: plan.messages_per_month,
        price: plan.credits_per_message.unwrap_or(0),
    };
    let all = billing.plans.iter().map(|(name, plan)| (name.clone(), terms(plan)));
    Plans::new(billing.default_plan.clone(), all).ok_or_else(|| {
        check.wrong("billing.default_plan", format!("there is no plan {:?}", billing.default_plan))
    })
}

fn stripe(
    billing: &Billing,
    folder: &Path,
    check: &Check<'_>,
) -> Result<Option<Stripe>, ConfigError> {
    let Some(raw) = &billing.stripe else { return Ok(None) };
    let wrong = |what: String| check.wrong("billing.stripe", what);
    let secret_of = |file: &Option<PathBuf>, env: &Option<String>| match (file, env) {
        (Some(file), None) => {
            let path = folder.join(file);
            std::fs::read_to_string(&path)
                .map(Some)
                .map_err(|error| wrong(format!("{} cannot be read: {error}", path.display())))
        }
        (None, Some(name)) => {
            std::env::var(name).map(Some).map_err(|error| wrong(format!("{name}: {error}")))
        }
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(wrong("a secret is in a file or in the environment".to_owned())),
    };
    let secret =
        secret_of(&raw.webhook_secret_file, &raw.webhook_secret_env)?.ok_or_else(|| {
            wrong(
                "give the endpoint's secret, by webhook_secret_file or by webhook_secret_env"
                    .to_owned(),
            )
        })?;
    if !secret.trim().starts_with("whsec_") {
        return Err(wrong(
            "the secret must be the endpoint's, which begins with whsec_".to_owned(),
        ));
    }
    let known = |plan: &str| plan == UNLIMITED || billing.plans.contains_key(plan);
    if let Some((price, plan)) = raw.plans.iter().find(|(_, plan)| !known(plan)) {
        return Err(wrong(format!("plans: {price}: there is no plan {plan:?}")));
    }
    if raw.credits.values().any(|credits| *credits > PRICE_MAX) {
        return Err(wrong(format!("credits: more than {PRICE_MAX} for one piece")));
    }
    let api = match secret_of(&raw.api_key_file, &raw.api_key_env)? {
        Some(key) => {
            let base = raw.api_url.as_deref().unwrap_or(STRIPE_API);
            let base = base.parse().map_err(|error| wrong(format!("api_url: {error}")))?;
            let is_stand_in = raw.api_url.is_some();
            Some(Api { base, key: SecretString::from(key.trim()), is_stand_in })
        }
        None if raw.api_url.is_some() => {
            return Err(wrong("api_url is of use with an api_key_file only".to_owned()));
        }
        None => None,
    };
    Ok(Some(Stripe {
        api,
        secret: SecretString::from(secret.trim()),
        plans: raw.plans.clone(),
        credits: raw.credits.clone(),
    }))
}

fn providers_of(
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

/// The router's key lies beside the store: both are to be kept.
const KEY_FILE: &str = "router.key";

fn dials(raw: &Raw, folder: &Path, check: &Check<'_>) -> Result<Vec<Dial>, ConfigError> {
    let mut hosts = BTreeSet::new();
    raw.dial
        .iter()
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

fn admin_token_of(
    raw: &Raw,
    folder: &Path,
    env: Option<String>,
    check: &Check<'_>,
) -> Result<Option<SecretString>, ConfigError> {
    if raw.admin_token.is_some() && raw.admin_token_file.is_some() {
        return Err(check.wrong("admin_token_file", "admin_token is given too: give one of them"));
    }
    let (field, token) = if let Some(token) = env {
        (ADMIN_TOKEN_ENV, SecretString::from(token))
    } else if let Some(file) = &raw.admin_token_file {
        let path = folder.join(file);
        let text = std::fs::read_to_string(&path).map(SecretString::from).map_err(|error| {
            check.wrong("admin_token_file", format!("{} cannot be read: {error}", path.display()))
        })?;
        ("admin_token_file", SecretString::from(text.expose_secret().trim()))
    } else if let Some(token) = &raw.admin_token {
        ("admin_token", SecretString::from(token.clone()))
    } else {
        return Ok(None);
    };
    let length = token.expose_secret().len();
    if length < ADMIN_TOKEN_CHARS_MIN {
        return Err(check.wrong(
            field,
            format!("{length} characters are too few: at least {ADMIN_TOKEN_CHARS_MIN}"),
        ));
    }
    if !token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(check.wrong(field, "must be visible ASCII characters, to travel in a header"));
    }
    Ok(Some(token))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })
}

/// The complaint is about a key itself, such as one that stands there a second time.
fn bare_key(text: &str) -> Option<String> {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!text.is_empty() && text.chars().all(bare)).then(|| text.to_owned())
}

/// The dotted name of the field whose key or value stands at `offset`.
fn field_at(table: &DeTable<'_>, offset: usize, above: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = format!("{above}{}", key.get_ref());
        let below = value.get_ref().as_table();
        below.and_then(|table| field_at(table, offset, &format!("{name}."))).or_else(|| {
            let stands = |span: Range<usize>| (span.start..=span.end).contains(&offset);
            let here = match below {
                None => stands(value.span()),
                // A complaint about a whole table stands at its header.
                Some(_) => value.span().start == offset,
            };
            (stands(key.span()) || here).then_some(name)
        })
    })
}

/// Where the value of a field stands, if the file gives it.
fn offset_of(text: &str, field: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut names = field.split('.').peekable();
    while let Some(name) = names.next() {
        let value = table.get(name)?;
        if names.peek().is_none() {
            return Some(value.span().start);
        }
        table = value.get_ref().as_table()?;
    }
    None
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/switchboard/router.toml"), None)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_file_says_what_the_code_does() {
        let shipped: Raw = toml::from_str(DEFAULT).unwrap();
        let built_in = Raw::default();
        assert_eq!(shipped.listen, built_in.listen);
        assert_eq!(shipped.database, built_in.database);
        assert_eq!(shipped.drain_ms, built_in.drain_ms);
        assert_eq!(shipped.trusted_proxies, built_in.trusted_proxies);
        assert_eq!(shipped.limits, built_in.limits);
        assert_eq!(shipped.messages, built_in.messages);
        assert_eq!(shipped.dispatch, built_in.dispatch);
        assert_eq!(shipped.warming, built_in.warming);
        assert_eq!(shipped.lease, built_in.lease);
        assert_eq!(shipped.link, built_in.link);
        assert_eq!(shipped.webhooks, built_in.webhooks);
        assert_eq!(shipped.compliance, built_in.compliance);
        assert_eq!(shipped.billing, built_in.billing);
        assert_eq!(shipped.log, built_in.log);
        assert_eq!(shipped.providers, built_in.providers);
        parse(DEFAULT).unwrap();
    }

    #[test]
    fn plans_that_cannot_be_meant_are_refused() {
        let plans = parse(
            "[billing]\ndefault_plan = \"free\"\n[billing.plans.free]\nmessages_per_month = 100\n",
        );
        let free = Terms { quota: Some(100), price: 0 };
        assert_eq!(plans.unwrap().plans.terms(None), Some(free));
        for (text, complaint) in [
            ("[billing]\ndefault_plan = \"free\"\n", "billing.default_plan: there is no plan"),
            ("[billing.plans.unlimited]\n", "always there"),
            ("[billing.plans.\"No Good\"]\n", "small letters"),
            ("[billing.plans.a]\nmessages_per_month = 10_000_000_000\n", "is more than"),
            ("[billing.plans.a]\ncredits_per_message = 10_000_000\n", "is more than"),
            ("[billing.plans.a]\nper_day = 1\n", "unknown field"),
            ("[billing.stripe]\n", "give the endpoint's secret"),
            ("[billing.stripe]\nwebhook_secret_env = \"NOT_THERE_AT_ALL\"\n", "NOT_THERE_AT_ALL"),
            ("[billing.stripe]\nwebhook_secret_file = \"/dev/null\"\n", "begins with whsec_"),
            (
                "[billing.stripe]\nwebhook_secret_file = \"a\"\nwebhook_secret_env = \"A\"\n",
                "in a file or in the environment",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }

    #[test]
    fn every_key_stands_in_the_default_file() {
        let shipped: toml::Table = toml::from_str(DEFAULT).unwrap();
        for (table, keys) in [
            ("limits", 5),
            ("messages", 4),
            ("dispatch", 10),
            ("warming", 4),
            ("lease", 4),
            ("link", 2),
            ("webhooks", 6),
            // Two more stand there as comments: they have no default.
            ("providers", 6),
            ("compliance", 6),
            ("billing", 1),
            ("log", 2),
        ] {
            assert_eq!(shipped[table].as_table().unwrap().len(), keys, "{table}");
        }
    }

    #[test]
    fn relative_paths_count_from_the_files_folder() {
        let config = parse("database = \"data/router.db\"").unwrap();
        assert_eq!(config.database, Path::new("/etc/switchboard/data/router.db"));
        let config = parse("database = \"/var/lib/router.db\"").unwrap();
        assert_eq!(config.database, Path::new("/var/lib/router.db"));
    }

    #[test]
    fn a_bad_file_is_refused_by_line_and_field() {
        for (text, says) in [
            (
                "listen = \"127.0.0.1:7070\"\nlissten = 1\n",
                "router.toml:2: lissten: unknown field `lissten`",
            ),
            ("[limits]\ngrowth.burst = -1\n", "router.toml:2: limits.growth.burst: invalid value"),
            ("[limits]\nbody_bytes = \"x\"\n", "router.toml:2: limits.body_bytes: invalid type"),
            ("[limits]\ntier = \"custom\"\n", "router.toml:2: limits.tier: \"custom\" is what"),
            ("[limits]\ntier = \"big\"\n", "router.toml:2: limits.tier: unknown variant"),
            ("[limits]\nstarter = { per_second = 5 }\n", "router.toml:2: limits.starter"),
            ("trusted_proxies = [\"here\"]\n", "router.toml:1: trusted_proxies: not a network"),
            ("[limits]\nbrust = 1\n", "router.toml:2: limits.brust: unknown field"),
            ("limits = 5\n", "router.toml:1: limits: invalid type"),
            ("\n[limitz]\n", "router.toml:2: limitz: unknown field"),
            ("listen = \"nowhere\"\n", "router.toml:1: listen: invalid"),
            ("limits.body_bytes = -1\n", "router.toml:1: limits.body_bytes: invalid value"),
            (
                "limits = { growth = { per_second = 1, burst = 0 } }\n",
                "router.toml:1: limits.growth.burst: 0 is not between 1 and",
            ),
            (
                "[limits]\n\ngrowth.per_second = 0\ngrowth.burst = 1\n",
                "router.toml:3: limits.growth.per_second: 0 is not between 1 and",
            ),
            ("[limits]\nbody_bytes = 65536\n", "router.toml:2: limits.body_bytes: 65536 is not"),
            ("[lease]\nttl_ms = 10\n", "router.toml:2: lease.ttl_ms"),
            ("[log]\nfilter = \"a=nolevel\"\n", "router.toml:2: log.filter"),
            (
                "[warming]\nnew_contacts = []\n",
                "router.toml:2: warming.new_contacts: the first step",
            ),
            (
                "[warming]\nnew_contacts = [{ from_day = 1, per_day = 5 }]\n",
                "router.toml:2: warming.new_contacts: the first step must be from_day = 0",
            ),
            (
                "[warming]\nnew_contacts = [{ from_day = 0, per_day = 0 }]\n",
                "router.toml:2: warming.new_contacts: per_day = 0 is not between 1 and 1000",
            ),
            (
                "[warming]\nnew_contacts = [{ from_day = 0, per_day = 5 }, { from_day = 3, per_day = 4 }]\n",
                "from_day = 3 must come after 0 and allow as many at least",
            ),
            (
                "[warming]\nnew_contacts = [{ from_day = 0, perday = 5 }]\n",
                "router.toml:2: warming.new_contacts",
            ),
            (
                "[providers]\ntimeout_ms = 3000\n",
                "router.toml:2: providers.timeout_ms: 3000 is not between 3100 and",
            ),
            (
                "[providers]\npublic_url = \"http://a.example\"\n",
                "router.toml:2: providers.public_url: must be an https:// address",
            ),
            (
                "[providers]\nkey_file = \"none\"\n",
                "router.toml:2: providers.key_file: /etc/switchboard/none cannot be read",
            ),
            ("[log]\nformat = \"xml\"\n", "router.toml:2: log.format: unknown variant"),
            ("admin_token = \"short\"", "router.toml:1: admin_token: 5 characters are too few"),
            (
                "admin_token = \"sixteen_chars_\u{e9}\"",
                "router.toml:1: admin_token: must be visible",
            ),
            (
                "\nadmin_token_file = \"none\"",
                "router.toml:2: admin_token_file: /etc/switchboard/none cannot",
            ),
            ("database = \"\"", "router.toml:1: database: is empty"),
            (
                "admin_token = \"0123456789abcdef\"\nadmin_token_file = \"x\"",
                "router.toml:2: admin_token_file: admin_token is given too",
            ),
            ("listen = ", "router.toml:1: listen: "),
            ("drain_ms = 1\n[listen]\nport = 1\n", "router.toml:2: listen: "),
            ("[listen]\n", "router.toml:1: listen: "),
            ("listen = { port = 1 }\n", "router.toml:1: listen: "),
            ("[[limits]]\n", "router.toml:1: limits"),
            ("drain_ms = 1\ndrain_ms = 2\n", "router.toml:2: drain_ms: duplicate key"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_environments_token_wins_and_is_never_shown() {
        let config = Config::parse(
            "admin_token = \"token-of-the-file\"",
            Path::new("router.toml"),
            Some("token-of-the-environment".to_owned()),
        )
        .unwrap();
        assert_eq!(
            config.admin_token.as_ref().map(|token| token.expose_secret().to_owned()).as_deref(),
            Some("token-of-the-environment")
        );
        assert!(!format!("{config:?}").contains("token-of"));
    }

    #[test]
    fn a_token_file_is_read_beside_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "0123456789abcdef\n").unwrap();
        let path = folder.path().join("router.toml");
        let config = Config::parse("admin_token_file = \"token\"", &path, None).unwrap();
        assert_eq!(config.admin_token.unwrap().expose_secret(), "0123456789abcdef");
        let missing = Config::parse("admin_token_file = \"none\"", &path, None).unwrap_err();
        assert!(missing.to_string().contains("none cannot be read: No such file"), "{missing}");
    }

    #[test]
    fn a_host_that_is_dialled_is_checked_and_its_secret_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("desk.secret"), "geheim-geheim\n").unwrap();
        let path = folder.path().join("router.toml");
        let host = HostId::new(1, [1; 10]);
        let dial = |url: &str, more: &str| {
            let text = format!("[[dial]]\nhost = \"{host}\"\nurl = \"{url}\"\n{more}\n");
            Config::parse(&text, &path, None).map_err(|error| error.to_string())
        };
        let token = "access_client_id = \"x.access\"\naccess_client_secret_file = \"desk.secret\"";
        let config = dial("https://desk.example", token).unwrap();
        assert!(!format!("{config:?}").contains("geheim"));
        let access = config.dial[0].access.as_ref().unwrap();
        assert_eq!(access.client_secret.expose_secret(), "geheim-geheim");
        assert_eq!(config.key_file, folder.path().join("router.key"));
        assert!(dial("http://127.0.0.1:7180", "").unwrap().dial[0].access.is_none());
        // The example of the default file, with a host and a secret in it.
        let example: String = DEFAULT
            .lines()
            .skip_while(|line| *line != "# [[dial]]")
            .filter_map(|line| line.strip_prefix("# "))
            .flat_map(|line| [line, "\n"])
            .collect();
        std::fs::write(folder.path().join("desk-1.secret"), "geheim").unwrap();
        let example = example.replace("hst_…", host.as_str());
        let example = Config::parse(&example, &path, None).unwrap();
        assert_eq!(example.dial[0].redial_max, Duration::from_millis(DELAY_MAX_MS));
        let twice = format!("[[dial]]\nhost = \"{host}\"\nurl = \"https://b\"");
        for (url, more, says) in [
            ("http://desk.example", "", "must be an https:// address"),
            ("ftp://127.0.0.1", "", "must be an https:// address"),
            ("https://a", &twice, "is there twice"),
            ("https://a", "access_client_id = \"x\"", "needs its secret"),
            ("https://a", "access_client_secret_file = \"desk.secret\"", "needs its secret"),
            (
                "https://a",
                "access_client_id = \"x\"\naccess_client_secret_file = \"none\"",
                "none cannot",
            ),
            (
                "https://a",
                "access_client_id = \"x\"\naccess_client_secret_env = \"SWITCHBOARD_NO_SUCH\"",
                "SWITCHBOARD_NO_SUCH",
            ),
            ("https://a", "redial_max_ms = 0", "redial_max_ms"),
            ("https://a", "token = 1", "token"),
        ] {
            let said = dial(url, more).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn a_token_of_the_wrong_type_is_not_repeated() {
        let error = parse("admin_token = 1234567890123456").unwrap_err();
        assert!(error.ends_with("router.toml:1: admin_token: must be a string, once"), "{error}");
    }
}
