//! The configuration: a commented TOML file, read once, checked once.
//!
//! [`DEFAULT`] is the file as shipped; every key in it has its default as value, so it doubles as the documentation.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use toml::de::DeTable;

use crate::billing::Plans;
use crate::billing::stripe::Stripe;
use crate::network::Network;
use crate::providers::seal::{KEY_ENV, KeyError, Seal};
use crate::warming;

mod check;
mod dial;
mod error;
mod money;
mod providers;
mod settings;

pub use check::RATE_MAX;
pub use dial::{Dial, ServiceToken};
pub use error::ConfigError;
pub use providers::Providers;
pub use settings::{
    Compliance, Dispatch, Lease, Limits, Link, Log, LogFormat, Messages, Retention, Webhooks,
};

use check::Check;
use dial::{KEY_FILE, RawDial, dials};
use error::{bare_key, field_at, line_of};
use money::{Billing, plans, stripe};
use providers::{RawProviders, providers_of};
use settings::Warming;

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
    /// How long its log is from the start, in MiB.
    pub database_log_mib: u32,
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

/// The file as written, before it is checked. No `Debug`: it holds the token in the clear.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    listen: SocketAddr,
    database: PathBuf,
    database_log_mib: u32,
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
            database_log_mib: 256,
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
            dial: dials(&raw.dial, folder, &check)?,
            stripe: stripe(&raw.billing, folder, &check)?.map(Arc::new),
            providers: providers_of(&raw.providers, folder, &check)?,
            plans: Arc::new(plans(&raw.billing, &check)?),
            database,
            database_log_mib: raw.database_log_mib,
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

#[cfg(test)]
mod tests {
    use protocol::HostId;
    use router_client::backoff::DELAY_MAX_MS;

    use super::*;
    use crate::billing::Terms;

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
        assert_eq!(shipped.database_log_mib, built_in.database_log_mib);
        assert_eq!(shipped.drain_ms, built_in.drain_ms);
        assert_eq!(shipped.trusted_proxies, built_in.trusted_proxies);
        assert_eq!(shipped.limits, built_in.limits);
        assert_eq!(shipped.messages, built_in.messages);
        assert_eq!(shipped.retention, built_in.retention);
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
