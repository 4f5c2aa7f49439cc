//! The configuration file: raw (as written) → checked (what the rest of the crate works with).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use protocol::{E164, limits};
use router_client::link::{REDIAL_MAX, SILENCE};
use router_client::proxy::{Proxies, ProxyError};
use router_client::tls::TlsRoots;
use serde::Deserialize;
use toml::Spanned;
use url::Url;

use crate::access;
use crate::canary;
use crate::cloudflared;
use crate::messages_app;
use crate::network::services::NAME_BYTES_MAX;
use crate::network::{self, Anchor, UPLINKS_MAX, UplinkConfig};
use crate::phone::Settings;
use crate::power;
use crate::program;
use crate::resources::{CpuLimits, MemoryLimits};
use crate::restart::Policy;

/// The commented default, as `switchboard-supervisor check-config --print-default` shows it.
pub(crate) const DEFAULT: &str = include_str!("default.toml");

/// A configuration file is some pages of text; more is not one.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Beyond a day a period is a mistake of units.
const PERIOD_MS_MAX: u64 = 24 * 60 * 60 * 1_000;
/// Keys of the bridge's file that the supervisor writes itself.
const OWN_BRIDGE_KEYS: [&str; 5] = ["phone", "number", "state_dir", "chat_db", "osascript"];

/// What is wrong with a configuration: always the file, and the line and field where they exist.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not valid TOML of the expected shape.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What the parser says; it names the field.
        message: String,
    },
    /// A field has a value that cannot be used.
    #[error("{}:{line}: `{field}`: {message}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The field as it is written.
        field: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    state_dir: Spanned<PathBuf>,
    log: Option<Spanned<String>>,
    bridge: Option<Spanned<PathBuf>>,
    phones: Spanned<Vec<RawPhone>>,
    router: Option<RawRouter>,
    #[serde(default)]
    dispatch: RawDispatch,
    #[serde(default)]
    heartbeat: RawHeartbeat,
    #[serde(default)]
    restart: RawRestart,
    #[serde(default)]
    memory: RawMemory,
    #[serde(default)]
    cpu: RawCpu,
    #[serde(default)]
    power: RawPower,
    #[serde(default)]
    canary: Vec<RawCanary>,
    #[serde(default)]
    messages_app: RawMessagesApp,
    #[serde(default)]
    network: RawNetwork,
    #[serde(default)]
    cloudflared: RawCloudflared,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPhone {
    number: Spanned<String>,
    label: Option<String>,
    chat_db: Spanned<PathBuf>,
    osascript: Option<Spanned<PathBuf>>,
    bridge: Option<Spanned<toml::Table>>,
    standby: Option<Spanned<bool>>,
    // Only enrolment reads it.
    #[serde(rename = "sandbox")]
    _sandbox: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRouter {
    url: Spanned<String>,
    roots: Option<Spanned<String>>,
    extra_ca: Option<Spanned<PathBuf>>,
    proxy: Option<Spanned<String>>,
    redial_max_ms: Option<Spanned<u64>>,
    silence_ms: Option<Spanned<u64>>,
    dial: Option<Spanned<String>>,
    router_key: Option<Spanned<String>>,
    access: Option<RawAccess>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAccess {
    team: Spanned<String>,
    audience: Spanned<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDispatch {
    listen: Option<Spanned<String>>,
    token_file: Option<Spanned<PathBuf>>,
    local_epoch: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawHeartbeat {
    every_ms: Option<Spanned<u64>>,
    missed: Option<Spanned<u32>>,
    start_deadline_ms: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRestart {
    intensity: Option<Spanned<u32>>,
    window_s: Option<Spanned<u64>>,
    delay_max_ms: Option<Spanned<u64>>,
    parked_retry_s: Option<Spanned<u64>>,
    forgive_after_s: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMemory {
    soft_mib: Option<Spanned<u64>>,
    hard_mib: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCpu {
    soft_percent: Option<Spanned<u64>>,
    hard_percent: Option<Spanned<u64>>,
    over_s: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPower {
    watch: Option<bool>,
    stay_awake: Option<bool>,
    poll_ms: Option<Spanned<u64>>,
    low_percent: Option<Spanned<u64>>,
    low_minutes: Option<Spanned<u64>>,
    steady_s: Option<Spanned<u64>>,
    pmset: Option<Spanned<PathBuf>>,
    caffeinate: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCanary {
    from: Spanned<String>,
    to: Spanned<String>,
    every_s: Option<Spanned<u64>>,
    lost_after_s: Option<Spanned<u64>>,
    alarm_after: Option<Spanned<u32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMessagesApp {
    keep: Option<bool>,
    probe_every_s: Option<Spanned<u64>>,
    open_within_s: Option<Spanned<u64>>,
    wake_quiet_s: Option<Spanned<u64>>,
    restarts_per_hour: Option<Spanned<u32>>,
    restarts_per_day: Option<Spanned<u32>>,
    osascript: Option<Spanned<PathBuf>>,
    open: Option<Spanned<PathBuf>>,
    pgrep: Option<Spanned<PathBuf>>,
    kill: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNetwork {
    helper: Option<Spanned<PathBuf>>,
    every_ms: Option<Spanned<u64>>,
    standby_every_ms: Option<Spanned<u64>>,
    timeout_ms: Option<Spanned<u64>>,
    down_after: Option<Spanned<u32>>,
    up_after: Option<Spanned<u32>>,
    hold_s: Option<Spanned<u64>>,
    fail_back_s: Option<Spanned<u64>>,
    switches: Option<Spanned<u32>>,
    window_s: Option<Spanned<u64>>,
    lock_s: Option<Spanned<u64>>,
    anchors: Option<Spanned<Vec<RawAnchor>>>,
    uplinks: Option<Spanned<Vec<RawUplink>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCloudflared {
    run: bool,
    program: Option<Spanned<PathBuf>>,
    token_file: Option<Spanned<PathBuf>>,
    metrics_port: Option<Spanned<u16>>,
    protocol: Option<Spanned<String>>,
    probe: Option<Spanned<String>>,
    poll_ms: Option<Spanned<u64>>,
    settle_ms: Option<Spanned<u64>>,
    unready_ms: Option<Spanned<u64>>,
    probe_every_ms: Option<Spanned<u64>>,
    restarts_per_hour: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAnchor {
    url: Spanned<String>,
    status: Option<Spanned<u16>>,
    body: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUplink {
    name: Spanned<String>,
    interface: Option<Spanned<String>>,
    service: Option<Spanned<String>>,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The file that it was read from; absolute.
    pub(crate) file: PathBuf,
    /// Folder of everything that the supervisor keeps; absolute.
    pub(crate) state_dir: PathBuf,
    /// What the supervisor logs, where the environment does not say.
    pub(crate) log: Option<String>,
    /// The bridge program; absolute.
    pub(crate) bridge: PathBuf,
    /// The phones of this host; at least one, no number twice.
    pub(crate) phones: Vec<PhoneConfig>,
    /// The router, unless this host stands alone.
    pub(crate) router: Option<RouterConfig>,
    /// The local dispatch API.
    pub(crate) dispatch: DispatchConfig,
    /// Liveness and restarts.
    pub(crate) settings: Settings,
    /// What a bridge may use.
    pub(crate) memory: MemoryLimits,
    /// What a bridge may have of a processor.
    pub(crate) cpu: CpuLimits,
    /// Power and sleep.
    pub(crate) power: power::Settings,
    /// The Messages of this login session.
    pub(crate) messages_app: messages_app::Settings,
    /// Pairs of phones of this host that write to each other.
    pub(crate) canaries: Vec<canary::Settings>,
    /// The ways to the internet.
    pub(crate) network: network::Settings,
    /// The tunnel to Cloudflare, where one is run.
    pub(crate) cloudflared: Option<cloudflared::Settings>,
}

/// One phone, as the operator configured it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PhoneConfig {
    /// Its number.
    pub(crate) number: E164,
    /// What people call it.
    pub(crate) label: Option<String>,
    /// The database of Messages.app; absolute.
    pub(crate) chat_db: PathBuf,
    /// What runs AppleScript, when it is not osascript itself; absolute.
    pub(crate) osascript: Option<PathBuf>,
    /// Further settings of the bridge, held once by all that know the phone.
    pub(crate) extra: Arc<toml::Table>,
}

impl PhoneConfig {
    /// All of it that a bridge is started with: two that agree in this need no new bridge.
    pub(crate) fn essence(&self) -> Self {
        Self { label: None, ..self.clone() }
    }
}

/// The router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouterConfig {
    /// Where it is.
    pub(crate) url: Url,
    /// Which certificates it may show.
    pub(crate) roots: TlsRoots,
    /// The proxy on the way to it.
    pub(crate) proxies: Proxies,
    /// Longest delay before it is dialled again.
    pub(crate) redial_max: Duration,
    /// How long nothing may be heard of it.
    pub(crate) silence: Duration,
    /// How it is known, where it dials this host; none where this host dials.
    pub(crate) dialled: Option<DialledConfig>,
}

/// How a router that dials is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DialledConfig {
    /// Its public key; where there is none, that of the enrolment.
    pub(crate) router_key: Option<String>,
    /// What Cloudflare Access must say, where it stands before this host.
    pub(crate) access: Option<access::Settings>,
}

/// The local dispatch API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DispatchConfig {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Its token; absolute.
    pub(crate) token_file: PathBuf,
    /// The epoch of leases granted here when there is no router.
    pub(crate) local_epoch: u64,
}

/// The text and name of a file that is being checked.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn wrong<T>(
        &self,
        field: &'static str,
        at: &Spanned<T>,
        message: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Field {
            path: self.path.to_owned(),
            line: line_at(self.text, at.span().start),
            field,
            message: message.into(),
        }
    }

    /// Makes a path absolute, counting from the file's folder.
    fn absolute(
        &self,
        field: &'static str,
        path: &Spanned<PathBuf>,
    ) -> Result<PathBuf, ConfigError> {
        let written = path.get_ref();
        if written.as_os_str().is_empty() {
            return Err(self.wrong(field, path, "must not be empty"));
        }
        let folder = self.path.parent().unwrap_or_else(|| Path::new("."));
        std::path::absolute(folder.join(expand_home(written)))
            .map_err(|error| self.wrong(field, path, error.to_string()))
    }

    fn period(
        &self,
        field: &'static str,
        value: Option<&Spanned<u64>>,
        default: Duration,
        unit_ms: u64,
    ) -> Result<Duration, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        let most = PERIOD_MS_MAX / unit_ms;
        match value.get_ref() {
            n if (1..=most).contains(n) => Ok(Duration::from_millis(n * unit_ms)),
            n => Err(self.wrong(field, value, format!("{n} is not between 1 and {most}"))),
        }
    }

    fn count(
        &self,
        field: &'static str,
        value: Option<&Spanned<u32>>,
        default: u32,
    ) -> Result<u32, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        match value.get_ref() {
            n if (1..=1_000).contains(n) => Ok(*n),
            n => Err(self.wrong(field, value, format!("{n} is not between 1 and 1000"))),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |path: &Path| -> std::io::Result<(PathBuf, String)> {
            use std::io::Read as _;
            let mut text = String::new();
            let file = std::fs::File::open(path)?;
            let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
            if u64::try_from(read).is_ok_and(|bytes| bytes > FILE_BYTES_MAX) {
                // Half a file might be a valid one with half of the phones.
                let detail = format!("it is longer than {FILE_BYTES_MAX} bytes");
                return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, detail));
            }
            Ok((std::path::absolute(path)?, text))
        };
        let (absolute, text) =
            read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&absolute, &text)
    }

    /// Checks the text of a file; `path` is named in errors, and relative paths count from its folder.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source { path, text };
        let raw: Raw = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_at(text, span.start)),
            message: error.message().to_owned(),
        })?;
        let state_dir = source.absolute("state_dir", &raw.state_dir)?;
        if let Some(log) = raw.log.as_ref().filter(|log| !program::is_log(log.get_ref())) {
            let message = "must be a level (error, warn, info, debug, trace, off), or levels of single targets such as \
                           \"info,supervisor::network=debug\"";
            return Err(source.wrong("log", log, message));
        }
        let bridge = match &raw.bridge {
            Some(path) => source.absolute("bridge", path)?,
            None => beside_self("switchboard-bridge"),
        };
        let phones = phones(&source, &raw.phones)?;
        for phone in raw.phones.get_ref() {
            if let Some(standby) = phone.standby.as_ref().filter(|standby| *standby.get_ref())
                && raw.router.is_none()
            {
                // Without a router each of the two hosts would grant the phone to itself.
                let message = "stands by for another host, which takes a [router] to say who sends";
                return Err(source.wrong("standby", standby, message));
            }
        }
        let router = raw.router.as_ref().map(|raw| router(&source, raw)).transpose()?;
        let dispatch = dispatch(&source, &raw.dispatch, &state_dir)?;
        let defaults = Settings::default();
        let beat = &raw.heartbeat;
        let ms = 1;
        let seconds = 1_000;
        let heartbeat_every =
            source.period("every_ms", beat.every_ms.as_ref(), defaults.heartbeat_every, ms)?;
        let policy = Policy::default();
        let again = &raw.restart;
        let intensity = again.intensity.as_ref();
        let settings = Settings {
            heartbeat_every,
            missed_max: source.count("missed", beat.missed.as_ref(), defaults.missed_max)?,
            start_deadline: source.period(
                "start_deadline_ms",
                beat.start_deadline_ms.as_ref(),
                defaults.start_deadline,
                ms,
            )?,
            policy: Policy {
                intensity: usize::try_from(source.count("intensity", intensity, 5)?)
                    .unwrap_or(policy.intensity),
                window: source.period(
                    "window_s",
                    again.window_s.as_ref(),
                    policy.window,
                    seconds,
                )?,
                delay_max: source.period(
                    "delay_max_ms",
                    again.delay_max_ms.as_ref(),
                    policy.delay_max,
                    ms,
                )?,
                parked_retry: source.period(
                    "parked_retry_s",
                    again.parked_retry_s.as_ref(),
                    policy.parked_retry,
                    seconds,
                )?,
                forgive_after: source.period(
                    "forgive_after_s",
                    again.forgive_after_s.as_ref(),
                    policy.forgive_after,
                    seconds,
                )?,
                ..policy
            },
            ..defaults
        };
        let memory = memory(&source, &raw.memory)?;
        let cpu = cpu(&source, &raw.cpu)?;
        let power = power(&source, &raw.power)?;
        let known = (phones.as_slice(), router.is_some());
        let canaries =
            raw.canary.iter().map(|raw| canary(&source, raw, known)).collect::<Result<_, _>>()?;
        let messages_app = messages_app(&source, &raw.messages_app, &phones)?;
        let network = network(&source, &raw.network, router.as_ref())?;
        let cloudflared =
            cloudflared(&source, &raw.cloudflared, &state_dir, &dispatch, &network.anchors)?;
        Ok(Self {
            file: path.to_owned(),
            state_dir,
            log: raw.log.map(Spanned::into_inner),
            bridge,
            phones,
            router,
            dispatch,
            settings,
            memory,
            cpu,
            power,
            messages_app,
            canaries,
            network,
            cloudflared,
        })
    }
}

/// Which file a path leads to, however it is written.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Database {
    /// A file that is there: links and letter case play no part.
    File { device: u64, inode: u64 },
    /// Where one may come to be.
    Path(PathBuf),
}

impl Database {
    fn at(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        if let Ok(found) = std::fs::metadata(path) {
            return Self::File { device: found.dev(), inode: found.ino() };
        }
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        match (folder, path.file_name()) {
            (Some(folder), Some(name)) => Self::Path(folder.join(name)),
            (_, _) => Self::Path(path.to_owned()),
        }
    }
}

fn phones(
    source: &Source<'_>,
    raw: &Spanned<Vec<RawPhone>>,
) -> Result<Vec<PhoneConfig>, ConfigError> {
    let count = raw.get_ref().len();
    if count == 0 || count > limits::PHONES_PER_HOST_MAX {
        let message = format!("{count} phones: a host serves 1 to {}", limits::PHONES_PER_HOST_MAX);
        return Err(source.wrong("phones", raw, message));
    }
    let mut numbers = BTreeSet::new();
    let mut databases = BTreeMap::new();
    let mut phones = Vec::with_capacity(count);
    for phone in raw.get_ref() {
        let number: E164 = phone.number.get_ref().parse().map_err(|error| {
            source.wrong("number", &phone.number, format!("`{}`: {error}", phone.number.get_ref()))
        })?;
        if !numbers.insert(number.as_str().to_owned()) {
            return Err(source.wrong("number", &phone.number, "is configured twice"));
        }
        let chat_db = source.absolute("chat_db", &phone.chat_db)?;
        // Two bridges on one database would be two senders on one account, and each would take what the other
        // receives for its own. Another osascript changes nothing of that.
        if let Some(other) = databases.insert(Database::at(&chat_db), number.clone()) {
            let message = format!("belongs to {other} too; every phone needs its own");
            return Err(source.wrong("chat_db", &phone.chat_db, message));
        }
        let osascript =
            phone.osascript.as_ref().map(|path| source.absolute("osascript", path)).transpose()?;
        let extra = match &phone.bridge {
            None => toml::Table::new(),
            Some(table) => {
                if let Some(own) =
                    OWN_BRIDGE_KEYS.iter().find(|key| table.get_ref().contains_key(**key))
                {
                    let message = format!("`{own}` is set by the supervisor; take it out");
                    return Err(source.wrong("bridge", table, message));
                }
                table.get_ref().clone()
            }
        };
        let (label, extra) = (phone.label.clone(), Arc::new(extra));
        phones.push(PhoneConfig { number, label, chat_db, osascript, extra });
    }
    Ok(phones)
}

fn router(source: &Source<'_>, raw: &RawRouter) -> Result<RouterConfig, ConfigError> {
    let url: Url = raw.url.get_ref().parse().map_err(|error| {
        source.wrong("url", &raw.url, format!("`{}`: {error}", raw.url.get_ref()))
    })?;
    if !matches!(url.scheme(), "http" | "https" | "ws" | "wss") || url.host_str().is_none() {
        return Err(source.wrong("url", &raw.url, "must be an https:// or http:// address"));
    }
    let roots = match &raw.roots {
        None => TlsRoots::Platform,
        Some(roots) if roots.get_ref() == "platform" => TlsRoots::Platform,
        Some(roots) => {
            let path = Spanned::new(roots.span(), PathBuf::from(roots.get_ref()));
            TlsRoots::File(source.absolute("roots", &path)?)
        }
    };
    let roots = match (roots, &raw.extra_ca) {
        (roots, None) => roots,
        (TlsRoots::File(_), Some(more)) => {
            let message = "is added to what the system trusts; with a file as `roots` nothing else is trusted, so put \
                           the certificate into that file";
            return Err(source.wrong("extra_ca", more, message));
        }
        (TlsRoots::Platform | TlsRoots::PlatformAnd(_), Some(more)) => {
            TlsRoots::PlatformAnd(source.absolute("extra_ca", more)?)
        }
    };
    let proxies = match &raw.proxy {
        None => Proxies::Environment,
        Some(proxy) => proxy
            .get_ref()
            .parse()
            .map_err(|error: ProxyError| source.wrong("proxy", proxy, error.to_string()))?,
    };
    let redial_max = source.period("redial_max_ms", raw.redial_max_ms.as_ref(), REDIAL_MAX, 1)?;
    let silence = source.period("silence_ms", raw.silence_ms.as_ref(), SILENCE, 1)?;
    // Below that a busy router would be taken for a dead wire; above it every lease is over before it is noticed.
    if let Some(given) =
        raw.silence_ms.as_ref().filter(|given| !(2_500..=15_000).contains(given.get_ref()))
    {
        let message = format!("{} is not between 2500 and 15000", given.get_ref());
        return Err(source.wrong("silence_ms", given, message));
    }
    let dialled = dialled(source, raw)?;
    Ok(RouterConfig { url, roots, proxies, redial_max, silence, dialled })
}

fn dialled(source: &Source<'_>, raw: &RawRouter) -> Result<Option<DialledConfig>, ConfigError> {
    match raw.dial.as_ref().map(|dial| (dial, dial.get_ref().as_str())) {
        Some((_, "in")) => {}
        None | Some((_, "out")) => {
            if let Some(key) = &raw.router_key {
                return Err(source.wrong("router_key", key, "counts with `dial = \"in\"` only"));
            }
            if let Some(access) = &raw.access {
                let message = "counts with `dial = \"in\"` only";
                return Err(source.wrong("access", &access.team, message));
            }
            return Ok(None);
        }
        Some((dial, _)) => {
            return Err(source.wrong("dial", dial, "must be \"out\" or \"in\": who dials"));
        }
    }
    let router_key = raw
        .router_key
        .as_ref()
        .map(|key| match public_key(key.get_ref()) {
            Some(_) => Ok(key.get_ref().clone()),
            None => Err(source.wrong("router_key", key, "is not 32 bytes in unpadded base64url")),
        })
        .transpose()?;
    let access = raw.access.as_ref().map(|raw| access(source, raw)).transpose()?;
    Ok(Some(DialledConfig { router_key, access }))
}

/// An Ed25519 public key, as enrolment writes it.
pub(crate) fn public_key(text: &str) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text.as_bytes()).ok().filter(|key| key.len() == 32)
}

fn access(source: &Source<'_>, raw: &RawAccess) -> Result<access::Settings, ConfigError> {
    let team = raw.team.get_ref();
    let wrong = || {
        let message = "must be the team's name, or its whole https:// address";
        source.wrong("access.team", &raw.team, message)
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let address = if !team.is_empty() && team.bytes().all(plain) {
        format!("https://{team}.cloudflareaccess.com")
    } else {
        team.clone()
    };
    let issuer: Url = address.parse().map_err(|_form| wrong())?;
    // Keys that come without TLS are anybody's; a trial on one machine has no TLS.
    let own = issuer.host_str().is_some_and(|host| host == "127.0.0.1" || host == "localhost");
    let secure = issuer.scheme() == "https" || (issuer.scheme() == "http" && own);
    if !secure || issuer.path() != "/" || issuer.query().is_some() {
        return Err(wrong());
    }
    let audience = raw.audience.get_ref().trim();
    if audience.is_empty() {
        let message = "must be the audience tag of the Access application";
        return Err(source.wrong("access.audience", &raw.audience, message));
    }
    Ok(access::Settings { issuer, audience: audience.to_owned() })
}

fn dispatch(
    source: &Source<'_>,
    raw: &RawDispatch,
    state_dir: &Path,
) -> Result<DispatchConfig, ConfigError> {
    let listen = match &raw.listen {
        None => SocketAddr::from(([127, 0, 0, 1], 7180)),
        Some(listen) => {
            let address: SocketAddr = listen.get_ref().parse().map_err(|error| {
                source.wrong("listen", listen, format!("`{}`: {error}", listen.get_ref()))
            })?;
            if !address.ip().is_loopback() {
                return Err(source.wrong(
                    "listen",
                    listen,
                    format!("{address} is not on the loopback interface (127.0.0.1 or [::1])"),
                ));
            }
            address
        }
    };
    let token_file = match &raw.token_file {
        None => state_dir.join("dispatch.token"),
        Some(path) => source.absolute("token_file", path)?,
    };
    let local_epoch = match &raw.local_epoch {
        None => 1,
        Some(epoch) if *epoch.get_ref() == 0 => {
            return Err(source.wrong("local_epoch", epoch, "must be at least 1"));
        }
        Some(epoch) => *epoch.get_ref(),
    };
    Ok(DispatchConfig { listen, token_file, local_epoch })
}

fn memory(source: &Source<'_>, raw: &RawMemory) -> Result<MemoryLimits, ConfigError> {
    let bytes = |value: Option<&Spanned<u64>>, default: u64| {
        let mib = value.map_or(default, |value| *value.get_ref());
        (mib > 0).then(|| mib.saturating_mul(1024 * 1024))
    };
    let limits = MemoryLimits {
        soft: bytes(raw.soft_mib.as_ref(), 512),
        hard: bytes(raw.hard_mib.as_ref(), 1024),
    };
    match (limits.soft, limits.hard, raw.hard_mib.as_ref().or(raw.soft_mib.as_ref())) {
        (Some(soft), Some(hard), Some(written)) if hard < soft => {
            Err(source.wrong("hard_mib", written, "must not be less than soft_mib"))
        }
        (_, _, _) => Ok(limits),
    }
}

fn cpu(source: &Source<'_>, raw: &RawCpu) -> Result<CpuLimits, ConfigError> {
    let percent = |value: Option<&Spanned<u64>>, default: u64| {
        let percent = value.map_or(default, |value| *value.get_ref());
        (percent > 0).then_some(percent)
    };
    let limits = CpuLimits {
        soft_percent: percent(raw.soft_percent.as_ref(), 90),
        hard_percent: percent(raw.hard_percent.as_ref(), 150),
        over: source.period("over_s", raw.over_s.as_ref(), Duration::from_mins(5), 1_000)?,
    };
    let written = raw.hard_percent.as_ref().or(raw.soft_percent.as_ref());
    match (limits.soft_percent, limits.hard_percent, written) {
        (Some(soft), Some(hard), Some(written)) if hard < soft => {
            Err(source.wrong("hard_percent", written, "must not be less than soft_percent"))
        }
        (_, _, _) => Ok(limits),
    }
}

fn power(source: &Source<'_>, raw: &RawPower) -> Result<power::Settings, ConfigError> {
    // Both programs are a Mac's own; elsewhere they are used only when they are asked for.
    let mac = cfg!(target_os = "macos");
    let program = |wanted: Option<bool>, field, path: Option<&Spanned<PathBuf>>, own: &str| {
        if !wanted.unwrap_or(mac || path.is_some()) {
            return Ok(None);
        }
        path.map_or_else(|| Ok(PathBuf::from(own)), |path| source.absolute(field, path)).map(Some)
    };
    let within = |field, value: Option<&Spanned<u64>>, default: u64, most: u64| {
        let Some(value) = value else { return Ok(default) };
        match value.get_ref() {
            n if *n <= most => Ok(*n),
            n => Err(source.wrong(field, value, format!("{n} is not between 0 and {most}"))),
        }
    };
    let limits = power::Limits::default();
    let percent =
        within("low_percent", raw.low_percent.as_ref(), u64::from(limits.low_percent), 100)?;
    let minutes =
        within("low_minutes", raw.low_minutes.as_ref(), u64::from(limits.low_minutes), 24 * 60)?;
    let steady = source.period("steady_s", raw.steady_s.as_ref(), limits.steady, 1_000)?;
    Ok(power::Settings {
        pmset: program(raw.watch, "pmset", raw.pmset.as_ref(), "/usr/bin/pmset")?,
        caffeinate: program(
            raw.stay_awake,
            "caffeinate",
            raw.caffeinate.as_ref(),
            "/usr/bin/caffeinate",
        )?,
        poll: source.period("poll_ms", raw.poll_ms.as_ref(), power::POLL, 1)?,
        limits: power::Limits {
            low_percent: u8::try_from(percent).unwrap_or(limits.low_percent),
            low_minutes: u32::try_from(minutes).unwrap_or(limits.low_minutes),
            steady,
        },
    })
}

fn canary(
    source: &Source<'_>,
    raw: &RawCanary,
    (phones, has_router): (&[PhoneConfig], bool),
) -> Result<canary::Settings, ConfigError> {
    let own = |written: &Spanned<String>| {
        let number = written.get_ref();
        let phone = phones.iter().find(|phone| phone.number.as_str() == number);
        phone.map(|phone| phone.number.clone())
    };
    let from = own(&raw.from).ok_or_else(|| {
        source.wrong("from", &raw.from, "is not the number of a phone of this file")
    })?;
    // Whom the router does not know as one of its phones is not written to either, so that no mistake of a digit writes to a
    // stranger again and again.
    let (to, remote) = match own(&raw.to) {
        Some(to) => (to, false),
        None if has_router => {
            let number = raw.to.get_ref().parse();
            let number = number.map_err(|_bad| source.wrong("to", &raw.to, "is not a number"))?;
            (number, true)
        }
        None => {
            let what = "is not the number of a phone of this file, and without [router] nobody knows another";
            return Err(source.wrong("to", &raw.to, what));
        }
    };
    if from == to {
        return Err(source.wrong(
            "to",
            &raw.to,
            "must be another phone: one that hears itself proves nothing",
        ));
    }
    let every = source.period("every_s", raw.every_s.as_ref(), Duration::from_mins(15), 1_000)?;
    let lost =
        source.period("lost_after_s", raw.lost_after_s.as_ref(), Duration::from_mins(2), 1_000)?;
    Ok(canary::Settings {
        from,
        to,
        remote,
        every,
        lost_after: lost,
        alarm_after: source.count("alarm_after", raw.alarm_after.as_ref(), 3)?,
    })
}

/// One that is opened more often than this within an hour is not kept, it is hammered.
const RESTARTS_MAX: u32 = 60;

fn messages_app(
    source: &Source<'_>,
    raw: &RawMessagesApp,
    phones: &[PhoneConfig],
) -> Result<messages_app::Settings, ConfigError> {
    let defaults = messages_app::Policy::default();
    let program = |field, path: Option<&Spanned<PathBuf>>, own: &str| {
        path.map_or_else(|| Ok(PathBuf::from(own)), |path| source.absolute(field, path))
    };
    let cap = |field, value: Option<&Spanned<u32>>, default: u32| match value {
        Some(value) if *value.get_ref() > RESTARTS_MAX => Err(source.wrong(
            field,
            value,
            format!("{} is more than {RESTARTS_MAX}", value.get_ref()),
        )),
        Some(value) => Ok(*value.get_ref()),
        None => Ok(default),
    };
    let seconds = |field, value: &Option<Spanned<u64>>, default| {
        source.period(field, value.as_ref(), default, 1_000)
    };
    // Messages is a Mac's own; elsewhere something is kept only when its programs are named.
    let named =
        [&raw.osascript, &raw.open, &raw.pgrep, &raw.kill].iter().all(|path| path.is_some());
    let keep = raw.keep.unwrap_or(cfg!(target_os = "macos") || named);
    let tools = messages_app::Tools {
        osascript: program("osascript", raw.osascript.as_ref(), "/usr/bin/osascript")?,
        open: program("open", raw.open.as_ref(), "/usr/bin/open")?,
        pgrep: program("pgrep", raw.pgrep.as_ref(), "/usr/bin/pgrep")?,
        kill: program("kill", raw.kill.as_ref(), "/bin/kill")?,
    };
    let longest = phones.iter().map(|phone| messages_app::deadline(&phone.extra)).max();
    Ok(messages_app::Settings {
        tools: keep.then_some(tools),
        policy: messages_app::Policy {
            probe_every: seconds("probe_every_s", &raw.probe_every_s, defaults.probe_every)?,
            open_within: seconds("open_within_s", &raw.open_within_s, defaults.open_within)?,
            wake_quiet: seconds("wake_quiet_s", &raw.wake_quiet_s, defaults.wake_quiet)?,
            per_hour: cap("restarts_per_hour", raw.restarts_per_hour.as_ref(), defaults.per_hour)?,
            per_day: cap("restarts_per_day", raw.restarts_per_day.as_ref(), defaults.per_day)?,
            // A bridge whose script is past its deadline is waited for no longer.
            pause_within: longest
                .map_or(defaults.pause_within, |longest| longest + messages_app::STILL_WITHIN),
            ..defaults
        },
    })
}

/// The longest name of an interface, without the closing zero (`IFNAMSIZ`).
const INTERFACE_BYTES_MAX: usize = 15;
/// Anchors of one host: two or three prove what there is to prove.
const ANCHORS_MAX: usize = 8;

fn network(
    source: &Source<'_>,
    raw: &RawNetwork,
    router: Option<&RouterConfig>,
) -> Result<network::Settings, ConfigError> {
    let defaults = network::Policy::default();
    let helper = raw.helper.as_ref().map(|path| source.absolute("helper", path)).transpose()?;
    let every = source.period("every_ms", raw.every_ms.as_ref(), network::EVERY, 1)?;
    let within = source.period("timeout_ms", raw.timeout_ms.as_ref(), network::WITHIN, 1)?;
    let standby = raw.standby_every_ms.as_ref();
    let standby_every =
        source.period("standby_every_ms", standby, network::STANDBY_EVERY.max(every), 1)?;
    let seconds = |field, value: &Option<Spanned<u64>>, default| {
        source.period(field, value.as_ref(), default, 1_000)
    };
    let switches = source.count("switches", raw.switches.as_ref(), 6)?;
    let policy = network::Policy {
        down_after: source.count("down_after", raw.down_after.as_ref(), defaults.down_after)?,
        up_after: source.count("up_after", raw.up_after.as_ref(), defaults.up_after)?,
        hold: seconds("hold_s", &raw.hold_s, defaults.hold)?,
        fail_back: seconds("fail_back_s", &raw.fail_back_s, defaults.fail_back)?,
        switches_max: usize::try_from(switches).unwrap_or(defaults.switches_max),
        window: seconds("window_s", &raw.window_s, defaults.window)?,
        lock: seconds("lock_s", &raw.lock_s, defaults.lock)?,
        // An answer of the round before this one is fresh, and the planned wait between two rounds is no gap.
        fresh: (every * 3).max(every + within * 2),
        gap: defaults.gap.max((standby_every.max(every) + within) * 2),
        ..defaults
    };
    let router = router.map(router_health).transpose().map_err(|()| {
        let message = "its health cannot be asked for".to_owned();
        ConfigError::Field { path: source.path.to_owned(), line: 1, field: "url", message }
    })?;
    let anchors = anchors(source, raw)?;
    if let (Some(written), true, None) = (&raw.anchors, anchors.is_empty(), &router) {
        let message = "without a router there must be one: nobody is asked";
        return Err(source.wrong("anchors", written, message));
    }
    Ok(network::Settings {
        uplinks: uplinks(source, raw, helper.is_some())?,
        helper,
        router,
        anchors,
        every,
        standby_every,
        within,
        policy,
    })
}

/// What the router answers at its health address, as nobody else does.
fn router_health(router: &RouterConfig) -> Result<Anchor, ()> {
    let mut url = router.url.clone();
    let scheme = if matches!(url.scheme(), "https" | "wss") { "https" } else { "http" };
    url.set_scheme(scheme)?;
    let path = format!("{}/healthz", url.path().trim_end_matches('/'));
    url.set_path(&path);
    let body = Some("{\"status\":\"ok\"}".to_owned());
    Ok(Anchor { url, status: 200, body, roots: router.roots.clone() })
}

fn anchors(source: &Source<'_>, raw: &RawNetwork) -> Result<Vec<Anchor>, ConfigError> {
    let anchor = |url: Url, status, body| Anchor { url, status, body, roots: TlsRoots::Platform };
    let Some(written) = &raw.anchors else {
        // facts: network fail-over. The second is what a Mac itself looks for portals with.
        let apple = "http://captive.apple.com/hotspot-detect.html";
        let defaults =
            [("https://cp.cloudflare.com/generate_204", 204, None), (apple, 200, Some("Success"))];
        return Ok(defaults
            .into_iter()
            .filter_map(|(url, status, body)| {
                Some(anchor(url.parse().ok()?, status, body.map(str::to_owned)))
            })
            .collect());
    };
    if written.get_ref().len() > ANCHORS_MAX {
        let message = format!("more than {ANCHORS_MAX}");
        return Err(source.wrong("anchors", written, message));
    }
    written
        .get_ref()
        .iter()
        .map(|raw| {
            let bad = |message: String| source.wrong("anchors.url", &raw.url, message);
            let url: Url = raw
                .url
                .get_ref()
                .parse()
                .map_err(|error| bad(format!("`{}`: {error}", raw.url.get_ref())))?;
            if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
                return Err(bad("must be an https:// or http:// address".to_owned()));
            }
            let status = raw.status.as_ref().map_or(200, |status| *status.get_ref());
            if let Some(written) = &raw.status
                && !(200..300).contains(&status)
            {
                return Err(source.wrong("anchors.status", written, "must be 200 to 299"));
            }
            // A portal answers 200 to everything.
            if raw.body.as_ref().is_none_or(String::is_empty) && status != 204 {
                return Err(bad(
                    "needs a `body` that only this address answers with, or `status = 204`"
                        .to_owned(),
                ));
            }
            Ok(anchor(url, status, raw.body.clone()))
        })
        .collect()
}

fn uplinks(
    source: &Source<'_>,
    raw: &RawNetwork,
    switches: bool,
) -> Result<Vec<UplinkConfig>, ConfigError> {
    let Some(written) = &raw.uplinks else { return Ok(Vec::new()) };
    let count = written.get_ref().len();
    if !(1..=UPLINKS_MAX).contains(&count) {
        let message = format!("{count} uplinks: a host has 1 to {UPLINKS_MAX}");
        return Err(source.wrong("uplinks", written, message));
    }
    let mut seen = BTreeSet::new();
    let mut checked = Vec::with_capacity(count);
    for uplink in written.get_ref() {
        let name = uplink.name.get_ref();
        let fits = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        if name.is_empty() || name.len() > 32 || !name.bytes().all(fits) {
            let message = "must be 1 to 32 letters, digits, signs or spaces";
            return Err(source.wrong("uplinks.name", &uplink.name, message));
        }
        if let Some(interface) = &uplink.interface {
            let word = interface.get_ref();
            let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
            if word.is_empty() || word.len() > INTERFACE_BYTES_MAX || !word.bytes().all(fits) {
                let message = "is no name of an interface, such as en0";
                return Err(source.wrong("uplinks.interface", interface, message));
            }
        }
        if let Some(service) = &uplink.service
            && (service.get_ref().is_empty() || service.get_ref().len() > NAME_BYTES_MAX)
        {
            let message = "is no name of a network service";
            return Err(source.wrong("uplinks.service", service, message));
        }
        match (&uplink.interface, &uplink.service) {
            (_, None) if switches => {
                let message = "needs its `service`: with a helper the order of services is changed";
                return Err(source.wrong("uplinks.name", &uplink.name, message));
            }
            (None, _) if !switches => {
                let message = "needs its `interface`: only the helper can find that of a service";
                return Err(source.wrong("uplinks.name", &uplink.name, message));
            }
            (_, _) => {}
        }
        let service = |it: &str| format!("service {it}");
        let keys = [
            Some(format!("name {name}")),
            uplink.interface.as_ref().map(|it| format!("interface {}", it.get_ref())),
            uplink.service.as_ref().map(|it| service(it.get_ref())),
        ];
        for key in keys.into_iter().flatten() {
            if !seen.insert(key.clone()) {
                let message = format!("the {key} is there twice");
                return Err(source.wrong("uplinks.name", &uplink.name, message));
            }
        }
        let value = |field: &Option<Spanned<String>>| field.as_ref().map(|it| it.get_ref().clone());
        checked.push(UplinkConfig {
            name: name.clone(),
            interface: value(&uplink.interface),
            service: value(&uplink.service),
        });
    }
    Ok(checked)
}

/// Where Homebrew and Cloudflare's own package put it; launchd's PATH has neither.
const CLOUDFLARED: [&str; 2] = ["/opt/homebrew/bin/cloudflared", "/usr/local/bin/cloudflared"];

fn cloudflared(
    source: &Source<'_>,
    raw: &RawCloudflared,
    state_dir: &Path,
    dispatch: &DispatchConfig,
    anchors: &[Anchor],
) -> Result<Option<cloudflared::Settings>, ConfigError> {
    let defaults = cloudflared::Policy::default();
    let installed = CLOUDFLARED.iter().map(Path::new).find(|path| path.exists());
    let program = raw.program.as_ref().map_or_else(
        || Ok(installed.unwrap_or(Path::new(CLOUDFLARED[0])).to_owned()),
        |path| source.absolute("program", path),
    )?;
    let token_file = match &raw.token_file {
        Some(path) => source.absolute("token_file", path)?,
        None => state_dir.join("cloudflared.token"),
    };
    let metrics_port = raw.metrics_port.as_ref().map_or(7181, |port| *port.get_ref());
    if let Some(written) = &raw.metrics_port
        && (metrics_port == 0 || metrics_port == dispatch.listen.port())
    {
        let message = "must be a port of its own: `/ready` is asked there";
        return Err(source.wrong("metrics_port", written, message));
    }
    let protocol = raw.protocol.as_ref().map_or("http2", |word| word.get_ref().as_str());
    if let Some(written) = &raw.protocol
        && !matches!(protocol, "http2" | "quic" | "auto")
    {
        return Err(source.wrong("protocol", written, "must be http2, quic or auto"));
    }
    let probe = raw
        .probe
        .as_ref()
        .map(|probe| {
            let bad = |message: String| source.wrong("probe", probe, message);
            let url: Url =
                probe.get_ref().parse().map_err(|error: url::ParseError| bad(error.to_string()))?;
            if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
                return Err(bad("must be the public https:// address of /healthz".to_owned()));
            }
            Ok(url)
        })
        .transpose()?;
    let period = |field, value: &Option<Spanned<u64>>, default| {
        source.period(field, value.as_ref(), default, 1)
    };
    let per_hour = match &raw.restarts_per_hour {
        Some(value) if *value.get_ref() > RESTARTS_MAX => {
            let message = format!("{} is more than {RESTARTS_MAX}", value.get_ref());
            return Err(source.wrong("restarts_per_hour", value, message));
        }
        Some(value) => usize::try_from(*value.get_ref()).unwrap_or(defaults.per_hour),
        None => defaults.per_hour,
    };
    let settings = cloudflared::Settings {
        program,
        token_file,
        metrics_port,
        protocol: protocol.to_owned(),
        probe,
        poll: period("poll_ms", &raw.poll_ms, Duration::from_secs(2))?,
        probe_every: period("probe_every_ms", &raw.probe_every_ms, Duration::from_mins(1))?,
        anchors: anchors.to_vec(),
        policy: cloudflared::Policy {
            settle: period("settle_ms", &raw.settle_ms, defaults.settle)?,
            unready: period("unready_ms", &raw.unready_ms, defaults.unready)?,
            per_hour,
            ..defaults
        },
    };
    Ok(raw.run.then_some(settings))
}

/// The program of this name in the folder of our own: both are installed together, at one fixed path.
fn beside_self(name: &str) -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|own| own.parent().map(|folder| folder.join(name)))
        .unwrap_or_else(|| PathBuf::from("/usr/local/bin").join(name))
}

/// A leading `~/` is the home folder: the only abbreviation that people write in such files.
fn expand_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        (Ok(_) | Err(_), _) => path.to_owned(),
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/switchboard/supervisor.toml"), text)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_canary_flies_to_a_phone_of_this_host_or_to_one_that_the_router_knows() {
        let second = "[[phones]]\nnumber = \"+15550100002\"\nchat_db = \"/second\"\n";
        let refused = |from: &str, to: &str| {
            let pair = format!("[[canary]]\nfrom = \"{from}\"\nto = \"{to}\"\n");
            parse(&format!("{DEFAULT}\n{second}{pair}")).err()
        };
        assert_eq!(refused("+15550100001", "+15550100002"), None);
        for (from, to, what) in [
            (
                "+15550100001",
                "+12025550100",
                "`to`: is not the number of a phone of this file, and",
            ),
            ("+12025550100", "+15550100001", "`from`: is not the number of a phone"),
            ("+15550100001", "+15550100001", "`to`: must be another phone"),
        ] {
            let said = refused(from, to).unwrap();
            assert!(said.contains(what), "{said}");
        }
        let pair = |to: &str| {
            let router = "[router]\nurl = \"https://router.example\"\n";
            let pair = format!("[[canary]]\nfrom = \"+15550100001\"\nto = \"{to}\"\n");
            parse(&format!("{DEFAULT}\n{second}{router}{pair}"))
                .map(|config| config.canaries.iter().map(|pair| pair.remote).collect::<Vec<_>>())
        };
        assert_eq!(pair("+12025550100"), Ok(vec![true]));
        assert_eq!(pair("+15550100002"), Ok(vec![false]));
        assert!(pair("0100").unwrap_err().contains("`to`: is not a number"));
    }

    #[test]
    fn a_router_that_dials_is_known_by_its_key_and_by_access() {
        let router = |more: &str| {
            parse(&format!("{DEFAULT}\n[router]\nurl = \"https://router.example\"\n{more}\n"))
                .map(|config| config.router.unwrap().dialled)
        };
        let key = "A".repeat(43);
        let access = "[router.access]\nteam = \"acme\"\naudience = \"tag\"";
        let all = router(&format!("dial = \"in\"\nrouter_key = \"{key}\"\n{access}"));
        let all = all.unwrap().unwrap();
        assert_eq!(all.router_key, Some(key));
        let access = all.access.unwrap();
        assert_eq!(access.issuer.as_str(), "https://acme.cloudflareaccess.com/");
        assert_eq!(router("dial = \"out\""), Ok(None));
        for (more, what) in [
            ("dial = \"both\"", "`dial`: must be"),
            ("router_key = \"x\"", "`router_key`: counts with"),
            ("dial = \"in\"\nrouter_key = \"x\"", "`router_key`: is not 32 bytes"),
            ("[router.access]\nteam = \"acme\"\naudience = \"tag\"", "`access`: counts with"),
            (
                "dial = \"in\"\n[router.access]\nteam = \"acme\"\naudience = \"\"",
                "`access.audience`",
            ),
            (
                "dial = \"in\"\n[router.access]\nteam = \"http://acme.example\"\naudience = \"tag\"",
                "`access.team`",
            ),
            ("dial = \"in\"\n[router.access]\nteam = \"\"\naudience = \"tag\"", "`access.team`"),
        ] {
            let said = router(more).unwrap_err();
            assert!(said.contains(what), "{said}");
        }
    }

    #[test]
    fn what_cloudflared_is_given_is_checked() {
        let said = |more: &str| parse(&format!("{DEFAULT}\n[cloudflared]\n{more}\n")).err();
        assert_eq!(said("run = true"), None);
        for (more, what) in [
            ("metrics_port = 7180", "`metrics_port`: must be a port of its own"),
            ("metrics_port = 0", "`metrics_port`: "),
            ("protocol = \"udp\"", "`protocol`: must be"),
            ("probe = \"mac.example.com\"", "`probe`: "),
            ("restarts_per_hour = 61", "`restarts_per_hour`: 61 is more than 60"),
            ("token = \"x\"", "token"),
        ] {
            let said = said(more).unwrap();
            assert!(said.contains(what), "{said}");
        }
    }

    #[test]
    fn the_way_to_the_router_is_checked_and_a_password_is_not_repeated() {
        let router = |more: &str| {
            parse(&format!("{DEFAULT}\n[router]\nurl = \"https://router.example\"\n{more}\n"))
                .map(|config| config.router.unwrap())
        };
        let more = router("extra_ca = \"office.pem\"\nproxy = \"http://u:geheim@p:3128\"").unwrap();
        assert_eq!(more.roots, TlsRoots::PlatformAnd("/etc/switchboard/office.pem".into()));
        assert_eq!(more.proxies, "http://u:geheim@p:3128".parse().unwrap());
        assert!(!format!("{more:?}").contains("geheim"));
        assert_eq!(router("proxy = \"none\"").unwrap().proxies, Proxies::Direct);
        assert_eq!(router("").unwrap().silence, SILENCE);
        assert_eq!(router("silence_ms = 9000").unwrap().silence, Duration::from_secs(9));
        for bad in ["silence_ms = 2499", "silence_ms = 15001"] {
            let said = router(bad).unwrap_err();
            assert!(said.contains("`silence_ms`:") && said.contains("2500 and 15000"), "{said}");
        }
        let said = router("roots = \"own.pem\"\nextra_ca = \"office.pem\"").unwrap_err();
        assert!(said.contains("`extra_ca`: is added to"), "{said}");
        let said = router("proxy = \"socks5://u:geheim@p\"").unwrap_err();
        assert!(said.contains("`proxy`: ") && !said.contains("geheim"), "{said}");
    }

    #[test]
    fn the_compiled_in_default_is_valid_and_shows_the_defaults() {
        let shown = parse(DEFAULT).unwrap();
        assert!(shown.router.is_none());
        assert_eq!(shown.settings, Settings::default());
        assert_eq!(shown.dispatch.listen.to_string(), "127.0.0.1:7180");
        // With every comment that shows a default taken away, what it shows must be the default.
        let uncommented: String = DEFAULT
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest.starts_with('[')
                        || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) =>
                {
                    rest
                }
                Some(_) | None => line,
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let explicit = parse(&uncommented).unwrap();
        assert_eq!(explicit.settings, shown.settings);
        assert_eq!(explicit.memory, shown.memory);
        assert_eq!(explicit.cpu, shown.cpu);
        assert_eq!(explicit.messages_app.policy, shown.messages_app.policy);
        assert_eq!(explicit.messages_app.policy.per_hour, 3);
        assert!(shown.canaries.is_empty(), "nobody writes unless that is wanted");
        let [canary] = &explicit.canaries[..] else { panic!("{:?}", explicit.canaries) };
        let plain = "[[canary]]\nfrom = \"+15550100002\"\nto = \"+15550100001\"\n";
        let second = "[[phones]]\nnumber = \"+15550100002\"\nchat_db = \"/second\"\n";
        let plain = parse(&format!("{DEFAULT}\n{second}{plain}")).unwrap().canaries;
        assert_eq!((plain[0].every, plain[0].alarm_after), (canary.every, canary.alarm_after));
        assert_eq!(plain[0].lost_after, canary.lost_after);
        assert_eq!(explicit.power.limits, shown.power.limits);
        let network = |settings: network::Settings| network::Settings {
            uplinks: Vec::new(),
            helper: None,
            router: None,
            ..settings
        };
        assert_eq!(network(explicit.network.clone()), network(shown.network.clone()));
        assert_eq!(explicit.network.policy, network::Policy::default());
        assert_eq!(explicit.network.uplinks.len(), 2);
        assert!(shown.network.uplinks.is_empty() && shown.network.helper.is_none());
        assert_eq!(explicit.cloudflared, None, "it is run only where that is wanted");
        let run = |text: &str| {
            parse(&text.replace("run = false", "run = true")).unwrap().cloudflared.unwrap()
        };
        let plain = run(&format!("{DEFAULT}\n[cloudflared]\nrun = false\n"));
        let shown_of_it = cloudflared::Settings { probe: None, ..run(&uncommented) };
        assert_eq!(cloudflared::Settings { program: plain.program.clone(), ..shown_of_it }, plain);
        let health = explicit.network.router.unwrap().url;
        assert_eq!(health.as_str(), "https://router.example.com/healthz");
        assert_eq!(explicit.dispatch.listen, shown.dispatch.listen);
        assert_eq!(explicit.dispatch.local_epoch, shown.dispatch.local_epoch);
        let router = explicit.router.unwrap();
        assert_eq!(router.url.as_str(), "https://router.example.com/");
        assert_eq!(router.roots, TlsRoots::Platform);
        assert_eq!(router.proxies, Proxies::Environment);
        assert_eq!(router.dialled, None);
        assert_eq!(explicit.phones[0].label.as_deref(), Some("desk 1"));
        let extra: Vec<&str> = explicit.phones[0].extra.keys().map(String::as_str).collect();
        assert_eq!(extra, ["default_channels", "osascript_deadline_ms"]);
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read_by_half() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("supervisor.toml");
        let phone = "state_dir = \"/s\"\n[[phones]]\nnumber = \"+15550100001\"\nchat_db = \"/c\"\n";
        std::fs::write(&file, format!("{phone}{}", "# more\n".repeat(40_000))).unwrap();
        let error = Config::load(&file).unwrap_err();
        assert!(crate::pool::chain(&error).contains("longer than"), "{error:?}");
    }

    #[test]
    fn two_phones_with_one_database_are_refused_however_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("supervisor.toml");
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("b")).unwrap();
        let two = |one: &str, other: &str| {
            let phone = |number: &str, path: &str| {
                format!(
                    "[[phones]]\nnumber = \"{number}\"\nchat_db = \"{path}\"\nosascript = \"/{path}\"\n"
                )
            };
            let phones = [phone("+15550100001", one), phone("+15550100002", other)].concat();
            std::fs::write(&file, format!("state_dir = \"s\"\n{phones}")).unwrap();
            Config::load(&file).map_err(|error| error.to_string())
        };
        let refused = |one: &str, other: &str| {
            let error = two(one, other).unwrap_err();
            let place = format!("{}:8: `chat_db`: belongs to +15550100001 too", file.display());
            assert!(error.starts_with(&place), "{one} {other}: {error}");
        };
        // Not yet there: the folder tells.
        for other in ["a/chat.db", "./a//chat.db", "a/../a/chat.db", "b/chat.db"] {
            refused("a/chat.db", other);
        }
        // There: the file itself tells.
        std::fs::write(dir.path().join("a/chat.db"), "").unwrap();
        std::os::unix::fs::symlink("a/chat.db", dir.path().join("link.db")).unwrap();
        for other in ["a/chat.db", "b/chat.db", "link.db"] {
            refused("a/chat.db", other);
        }
        std::fs::write(dir.path().join("a/other.db"), "").unwrap();
        assert_eq!(two("a/chat.db", "a/other.db").unwrap().phones.len(), 2);
        assert_eq!(two("a/chat.db", "nowhere/chat.db").unwrap().phones.len(), 2);
    }

    #[test]
    fn paths_count_from_the_file_and_from_the_home_folder() {
        let text = "state_dir = \"state\"\nbridge = \"../bin/b\"\n[[phones]]\nnumber = \"+15550100001\"\nchat_db = \"~/x\"\n";
        let config = parse(text).unwrap();
        assert_eq!(config.state_dir, Path::new("/etc/switchboard/state"));
        assert_eq!(config.dispatch.token_file, Path::new("/etc/switchboard/state/dispatch.token"));
        assert_eq!(config.phones[0].chat_db, std::env::home_dir().unwrap().join("x"));
        assert!(config.bridge.is_absolute());
    }

    #[test]
    fn errors_name_file_line_and_field() {
        let base = "state_dir = \"/s\"\n[[phones]]\nnumber = \"+15550100001\"\nchat_db = \"/c\"\n";
        let with = |more: &str| format!("{base}{more}");
        let anchor = |more: &str| with(&format!("\n[[network.anchors]]\n{more}\n"));
        let uplink = |more: &str| with(&format!("\n[[network.uplinks]]\n{more}\n"));
        let table = [
            ("state_dir = 1\n".to_owned(), "supervisor.toml:1: "),
            ("state_dir = \"/s\"\nphones = []\n".to_owned(), ":2: `phones`"),
            ("state_dir = \"/s\"\n".to_owned(), "phones"),
            (base.replace("+15550100001", "555"), ":3: `number`: `555`"),
            (base.replace("\"/c\"", "\"\""), ":4: `chat_db`"),
            (with("colour = 1\n"), ":5: unknown field `colour`"),
            (with("[[phones]]\nnumber = \"+15550100001\"\nchat_db = \"/d\"\n"), ":6: `number`"),
            (with("[[phones]]\nnumber = \"+15550100002\"\nchat_db = \"/c\"\n"), ":7: `chat_db`"),
            (with("[phones.bridge]\nphone = \"x\"\n"), "`bridge`: `phone` is set by"),
            (with("[router]\nurl = \"nonsense\"\n"), ":6: `url`"),
            (with("[router]\nurl = \"ftp://x\"\n"), ":6: `url`"),
            (with("[dispatch]\nlisten = \"0.0.0.0:80\"\n"), ":6: `listen`"),
            (with("[dispatch]\nlisten = \"localhost\"\n"), ":6: `listen`"),
            (with("[dispatch]\nlocal_epoch = 0\n"), ":6: `local_epoch`"),
            (with("[heartbeat]\nmissed = 0\n"), ":6: `missed`"),
            (with("[heartbeat]\nevery_ms = 0\n"), ":6: `every_ms`"),
            (with("[restart]\nwindow_s = 100000000\n"), ":6: `window_s`"),
            (with("[power]\nlow_percent = 101\n"), ":6: `low_percent`"),
            (with("[power]\nlow_minutes = 1441\n"), ":6: `low_minutes`"),
            (with("[power]\npoll_ms = 0\n"), ":6: `poll_ms`"),
            (with("[power]\nsteady_s = 0\n"), ":6: `steady_s`"),
            (with("[power]\npmset = \"\"\n"), ":6: `pmset`"),
            (with("[power]\nwatts = 1\n"), "watts"),
            (with("[network]\nhelper = \"\"\n"), ":6: `helper`"),
            (with("[network]\nevery_ms = 0\n"), ":6: `every_ms`"),
            (with("[network]\nstandby_every_ms = 0\n"), ":6: `standby_every_ms`"),
            (with("[network]\ntimeout_ms = 0\n"), ":6: `timeout_ms`"),
            (with("[network]\ndown_after = 0\n"), ":6: `down_after`"),
            (with("[network]\nup_after = 0\n"), ":6: `up_after`"),
            (with("[network]\nhold_s = 0\n"), ":6: `hold_s`"),
            (with("[network]\nfail_back_s = 0\n"), ":6: `fail_back_s`"),
            (with("[network]\nswitches = 0\n"), ":6: `switches`"),
            (with("[network]\nwindow_s = 0\n"), ":6: `window_s`"),
            (with("[network]\nlock_s = 0\n"), ":6: `lock_s`"),
            (with("[network]\nuplinks = []\n"), ":6: `uplinks`"),
            (with("[network]\ncolour = 1\n"), "colour"),
            (with("[network]\nanchors = []\n"), ":6: `anchors`: without a router"),
            (anchor("url = \"ftp://x\""), ":7: `anchors.url`: must be"),
            (anchor("url = \"nonsense\""), ":7: `anchors.url`: `nonsense`"),
            (anchor("url = \"http://x\""), ":7: `anchors.url`: needs a `body`"),
            (anchor("url = \"http://x\"\nstatus = 302\nbody = \"x\""), ":8: `anchors.status`"),
            (uplink("name = \"\"\ninterface = \"en0\""), ":7: `uplinks.name`"),
            (uplink("name = \"a\"\ninterface = \"en/0\""), ":8: `uplinks.interface`"),
            (uplink("name = \"a\"\nservice = \"\""), ":8: `uplinks.service`"),
            (uplink("name = \"a\"\nservice = \"A\""), "needs its `interface`"),
            (
                with(
                    "[network]\nhelper = \"/h\"\n[[network.uplinks]]\nname = \"a\"\ninterface = \"en0\"\n",
                ),
                "needs its `service`",
            ),
            (
                uplink(
                    "name = \"a\"\ninterface = \"en0\"\n[[network.uplinks]]\nname = \"b\"\ninterface = \"en0\"",
                ),
                ":10: `uplinks.name`: the interface en0 is there twice",
            ),
            (with("[memory]\nsoft_mib = 10\nhard_mib = 5\n"), ":7: `hard_mib`"),
            (with("[cpu]\nsoft_percent = 90\nhard_percent = 50\n"), ":7: `hard_percent`"),
            (with("[cpu]\nover_s = 0\n"), ":6: `over_s`"),
        ];
        for (text, wanted) in table {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(wanted), "{error}\nshould name {wanted}");
            assert!(error.starts_with("/etc/switchboard/supervisor.toml:"), "{error}");
        }
    }
}
