//! `host enroll` and `host token`: how a Mac becomes one of the router's hosts; `host reload`: a changed configuration is
//! taken by the supervisor that runs on this Mac; `host doctor` and `host logs`: what it sees and what its bridges log.
//!
//! Enrolment makes a key on the Mac and gives its public half to the router with a one-time token. It may be repeated:
//! the same key keeps the host's id, new phones are added, and what a phone can send by is
//! brought up to date.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use protocol::{
    Channel, E164, PhoneId,
    api::EnrolmentToken,
    link::{EnrolPhone, EnrolRequest, EnrolResponse, Enrolment},
};
use router_client::doctor::Report;
use router_client::{
    enrolment::{self, KEY_FILE},
    key::HostKey,
    proxy::{Proxies, ProxyError},
    tls::TlsRoots,
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::json;
use url::Url;

use super::{
    ADMIN_TOKEN_ENV, Global,
    client::{Client, Request, Who, typed},
    failure::Failure,
    screen::{Screen, time},
    secret_env,
};

mod logs;

/// A configuration file at most; the supervisor has the same limit.
const CONFIG_BYTES_MAX: u64 = 256 * 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Enrols this Mac with the phones of its supervisor's configuration; may be repeated
    ///
    /// Needs the operator's token in `SWITCHBOARD_ADMIN_TOKEN`, or a one-time token from `switchboard host token` as
    /// `--token` or in `SWITCHBOARD_ENROLMENT_TOKEN`.
    ///
    /// The router learns what each phone can send by from `default_channels` in its `[phones.bridge]`, and takes
    /// iMessage and SMS where that is left out. Enrol again after changing it.
    Enroll {
        /// The supervisor's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// A name for this host; that of the machine when left out
        #[arg(long)]
        name: Option<String>,
    },
    /// Makes a token with which one host can be enrolled, once
    Token,
    /// Has the supervisor of this Mac take its changed configuration; phones that are the same go on undisturbed
    ///
    /// Speaks with the dispatch API that the configuration names, and waits until bridges that have to stop have
    /// finished what they had started. A file that cannot be used changes nothing.
    Reload {
        /// The supervisor's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Checks everything that must be true on this Mac, each with its remedy, as the supervisor that runs here sees it
    ///
    /// Ends with 0, or with the code of what explains the rest: 69 Messages, its account or the session cannot be used,
    /// 75 temporary, 77 a permission is missing, 78 the configuration is wrong. A question that waits on the screen is
    /// waited for; give --timeout 90s where there are many phones.
    Doctor {
        /// The supervisor's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Shows what a phone's bridge logged last, from the supervisor of this Mac
    Logs(logs::Args),
}

/// Where a supervisor's dispatch API listens unless it is told otherwise.
const DISPATCH_DEFAULT: &str = "127.0.0.1:7180";
/// The token of the dispatch API, in the state folder unless it is told otherwise.
const DISPATCH_TOKEN_FILE: &str = "dispatch.token";

/// Environment of a one-time token.
const ENROLMENT_TOKEN_ENV: &str = "SWITCHBOARD_ENROLMENT_TOKEN";

/// What enrolment needs of the supervisor's configuration; the rest is checked by the supervisor.
#[derive(Debug, Deserialize)]
struct SupervisorConfig {
    state_dir: PathBuf,
    #[serde(default)]
    phones: Vec<SupervisorPhone>,
    router: Option<SupervisorRouter>,
    #[serde(default)]
    dispatch: SupervisorDispatch,
}

#[derive(Debug, Default, Deserialize)]
struct SupervisorDispatch {
    listen: Option<String>,
    token_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct SupervisorPhone {
    number: E164,
    label: Option<String>,
    #[serde(default)]
    standby: bool,
    #[serde(default)]
    sandbox: bool,
    #[serde(default)]
    bridge: SupervisorBridge,
}

/// Of the settings of a phone's bridge, those that the router has to know.
#[derive(Debug, Default, Deserialize)]
struct SupervisorBridge {
    #[serde(default, deserialize_with = "some_channels")]
    default_channels: Option<Vec<Channel>>,
}

#[derive(Debug, Deserialize)]
struct SupervisorRouter {
    url: String,
    roots: Option<String>,
    extra_ca: Option<PathBuf>,
    proxy: Option<String>,
}

pub(crate) async fn run(
    screen: &mut Screen,
    global: &Global,
    command: Command,
) -> Result<(), Failure> {
    match command {
        Command::Token => token(screen, &Client::new(global)?).await,
        Command::Enroll { config, name } => enroll(screen, global, &config, name).await,
        Command::Reload { config } => reload(screen, global, &config).await,
        Command::Doctor { config } => doctor(screen, global, &config).await,
        Command::Logs(args) => logs::run(screen, global, &args).await,
    }
}

/// What the supervisor says to have done.
#[derive(Debug, Deserialize)]
struct Reloaded {
    started: Vec<PhoneId>,
    stopped: Vec<PhoneId>,
    replaced: Vec<PhoneId>,
    #[serde(default)]
    still_ending: Vec<PhoneId>,
    untouched: u64,
    #[serde(default)]
    taken: Vec<String>,
    needs_restart: Vec<String>,
}

/// Exit code of a reload after which something of the file still waits for a restart.
const NEEDS_RESTART: u8 = 3;

/// The dispatch API of the supervisor that a configuration belongs to.
fn dispatch(global: &Global, path: &Path) -> Result<Client, Failure> {
    let config = read_config(path)?;
    let listen = config.dispatch.listen.as_deref().unwrap_or(DISPATCH_DEFAULT);
    let base = Url::parse(&format!("http://{listen}")).map_err(|error| {
        wrong(path, &format!("`listen` of [dispatch]: {error}"), "ADDRESS:PORT")
    })?;
    let file = match &config.dispatch.token_file {
        Some(file) => absolute(path, file)?,
        None => absolute(path, &config.state_dir)?.join(DISPATCH_TOKEN_FILE),
    };
    let token = std::fs::read_to_string(&file).map_err(|error| {
        Failure::usage(
            format!("{}: {error}", file.display()),
            "the supervisor makes this file when it starts; run this command as its user",
        )
    })?;
    Ok(Client::to(&base, &global.without_secrets())?.with_admin_token(Some(token)))
}

/// A bridge's doctor may take a minute, while somebody is asked for consent on the screen.
const DOCTOR_WITHIN: Duration = Duration::from_secs(100);

async fn doctor(screen: &mut Screen, global: &Global, path: &Path) -> Result<(), Failure> {
    let client = dispatch(global, path)?;
    let request = Request::get(Who::Operator, "/v1/doctor").patiently(DOCTOR_WITHIN);
    let answer = match client.call(&request).await {
        Ok(answer) => answer,
        Err(Failure::Unreachable { detail, .. }) => {
            return Err(Failure::Unhealthy {
                code: 69,
                detail: format!("the supervisor of this Mac does not answer: {detail}"),
                remedy: format!(
                    "start it (scripts/install); `switchboard-supervisor doctor --config {}` looks without it, with \
                     the permissions of this terminal",
                    path.display()
                ),
            });
        }
        Err(failure) => return Err(failure),
    };
    let report: Report = typed(answer.clone())?;
    if screen.is_json() {
        screen.json(&answer)?;
    } else {
        let mut text = Vec::new();
        report.write_table(&mut text)?;
        screen.bytes(&text)?;
    }
    if report.ready {
        return Ok(());
    }
    Err(Failure::Unhealthy {
        code: report.exit_code,
        detail: "this Mac cannot work as it is".to_owned(),
        remedy: "do what stands behind each arrow".to_owned(),
    })
}

async fn reload(screen: &mut Screen, global: &Global, path: &Path) -> Result<(), Failure> {
    let client = dispatch(global, path)?;
    let answer = client.call(&Request::post(Who::Operator, "/v1/reload")).await?;
    let done: Reloaded = typed(answer.clone())?;
    if screen.is_json() {
        screen.json(&answer)?;
        return waits(&done);
    }
    let rows = [
        ("started", &done.started),
        ("stopped", &done.stopped),
        ("replaced", &done.replaced),
        ("still ending", &done.still_ending),
    ]
    .into_iter()
    .flat_map(|(what, phones)| phones.iter().map(move |id| [id.to_string(), what.to_owned()]));
    screen.table(["PHONE", "NOW"], rows.collect(), "no phone had to be touched")?;
    screen.line(&format!("{} phones went on undisturbed", done.untouched))?;
    if !done.still_ending.is_empty() {
        screen.line("what is still ending is done as the file says when it has ended")?;
    }
    if !done.taken.is_empty() {
        screen.line(&format!("changed, and counting from now on: {}", done.taken.join(", ")))?;
    }
    waits(&done)
}

/// What runs is what the file says, or the exit code tells that it is not.
fn waits(done: &Reloaded) -> Result<(), Failure> {
    if done.needs_restart.is_empty() {
        return Ok(());
    }
    Err(Failure::Unhealthy {
        code: NEEDS_RESTART,
        detail: format!("changed, and not taken before a restart: {}", done.needs_restart.join(", ")),
        remedy: "everything else is taken; restart the supervisor when its phones may pause for some seconds: TERM, and \
                 launchd or systemd starts it again"
            .to_owned(),
    })
}

async fn token(screen: &mut Screen, client: &Client) -> Result<(), Failure> {
    let answer = client.call(&Request::post(Who::Operator, "/v1/admin/enrolment_tokens")).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    let made: EnrolmentToken = typed(answer)?;
    screen.line(&made.token)?;
    screen.line(&format!("good for one host, until {}", time(made.expires_at)))
}

async fn enroll(
    screen: &mut Screen,
    global: &Global,
    path: &Path,
    name: Option<String>,
) -> Result<(), Failure> {
    let config = read_config(path)?;
    if config.phones.is_empty() {
        return Err(wrong(path, "there is no [[phones]] in it", "add the phones of this Mac"));
    }
    let state_dir = absolute(path, &config.state_dir)?;
    let router = router_url(global, path, config.router.as_ref())?;
    let client = client(global, &router, path, config.router.as_ref())?;
    let token = if let Some(token) = one_time_token(global) {
        token
    } else {
        let request = Request::post(Who::Operator, "/v1/admin/enrolment_tokens");
        typed::<EnrolmentToken>(client.call(&request).await?)?.token
    };

    // The key first: were the answer lost, the next try brings the same key and gets the same host.
    let (key, is_new) = HostKey::load_or_generate(&state_dir.join(KEY_FILE)).map_err(local)?;
    let body = EnrolRequest {
        token,
        name: name.unwrap_or_else(machine_name),
        public_key: key.public_base64url(),
        phones: config
            .phones
            .into_iter()
            .map(|phone| EnrolPhone {
                number: phone.number,
                label: phone.label,
                channels: phone.bridge.default_channels,
                standby: phone.standby,
                sandbox: phone.sandbox,
            })
            .collect(),
    };
    let request = Request::post(Who::Anybody, "/v1/hosts/enroll").body(&body)?;
    let answer: EnrolResponse = typed(client.call(&request).await?)?;
    let enrolled = Enrolment {
        router: router.as_str().trim_end_matches('/').to_owned(),
        host: answer.host,
        phones: answer.phones,
        router_key: answer.router_key,
    };
    enrolment::store(&state_dir, &enrolled).map_err(local)?;
    report(screen, &state_dir, &enrolled, is_new)
}

fn report(
    screen: &mut Screen,
    state_dir: &Path,
    enrolled: &Enrolment,
    is_new: bool,
) -> Result<(), Failure> {
    if screen.is_json() {
        return screen.json(&json!({
            "host": enrolled.host,
            "router": enrolled.router,
            "phones": enrolled.phones,
            "state_dir": state_dir,
            "new_key": is_new,
        }));
    }
    let key = if is_new { "with a new key" } else { "with the key it had" };
    screen.line(&format!("host {} is enrolled at {}, {key}", enrolled.host, enrolled.router))?;
    let rows = enrolled.phones.iter().map(|p| [p.phone.to_string(), p.number.to_string()]);
    screen.table(["PHONE", "NUMBER"], rows.collect(), "without phones")?;
    screen.line(&format!("key and enrolment are in {}", state_dir.display()))
}

/// The token of one enrolment: `--token`, or its environment. The operator's own token is never taken for one.
fn one_time_token(global: &Global) -> Option<String> {
    global
        .token
        .clone()
        .or_else(|| secret_env(ENROLMENT_TOKEN_ENV))
        .map(|token| token.trim().to_owned())
}

fn client(
    global: &Global,
    base: &Url,
    path: &Path,
    router: Option<&SupervisorRouter>,
) -> Result<Client, Failure> {
    let (roots, proxies) = trust_and_way(global, path, router)?;
    // Here `--token` is the one-time token; the operator's can only come from the environment.
    Ok(Client::by(base, &global.without_secrets(), &roots, &proxies)?
        .with_admin_token(secret_env(ADMIN_TOKEN_ENV)))
}

/// The same certificates and the same proxy as the link will use; options go before.
fn trust_and_way(
    global: &Global,
    path: &Path,
    router: Option<&SupervisorRouter>,
) -> Result<(TlsRoots, Proxies), Failure> {
    let mut roots = global.roots();
    let mut proxies = Proxies::Environment;
    if let Some(router) = router {
        let file = router.roots.as_deref().filter(|roots| *roots != "platform");
        match (roots, file, &router.extra_ca) {
            (TlsRoots::Platform, Some(file), _) => {
                roots = TlsRoots::File(absolute(path, Path::new(file))?);
            }
            (TlsRoots::Platform, None, Some(file)) => {
                roots = TlsRoots::PlatformAnd(absolute(path, file)?);
            }
            (given, _, _) => roots = given,
        }
        if let Some(proxy) = &router.proxy {
            proxies = proxy.parse().map_err(|error: ProxyError| {
                Failure::usage(
                    format!("{}: `proxy` of [router] {error}", path.display()),
                    "see `switchboard-supervisor default-config`",
                )
            })?;
        }
    }
    Ok((roots, proxies))
}

fn read_config(path: &Path) -> Result<SupervisorConfig, Failure> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| {
            wrong(path, &error.to_string(), "--config names the supervisor's configuration file")
        })?;
    if u64::try_from(text.len()).is_ok_and(|bytes| bytes > CONFIG_BYTES_MAX) {
        let detail = format!("longer than {CONFIG_BYTES_MAX} bytes");
        return Err(wrong(path, &detail, "--config names the supervisor's configuration file"));
    }
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
        });
        wrong(
            path,
            &format!("line {line}: {}", error.message()),
            "`switchboard-supervisor check-config` checks all of it",
        )
    })
}

/// Channels, each once. None at all would be a phone that can never send; its bridge refuses that, too.
fn some_channels<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Channel>>, D::Error> {
    let mut channels: Vec<Channel> = Vec::new();
    for channel in Vec::<Channel>::deserialize(deserializer)? {
        if !channels.contains(&channel) {
            channels.push(channel);
        }
    }
    if channels.is_empty() {
        return Err(D::Error::custom("`default_channels` must name at least one channel"));
    }
    Ok(Some(channels))
}

/// The router's address over HTTP: as asked, or as configured for the link.
fn router_url(
    global: &Global,
    path: &Path,
    router: Option<&SupervisorRouter>,
) -> Result<Url, Failure> {
    let url = match (&global.url, router) {
        (Some(url), _) => url.clone(),
        (None, Some(router)) => Url::parse(&router.url)
            .map_err(|error| wrong(path, &format!("`url` of [router]: {error}"), "see --url"))?,
        (None, None) => {
            return Err(wrong(path, "there is no [router] in it", "add it, or give --url"));
        }
    };
    let scheme = match url.scheme() {
        "http" | "https" => return Ok(url),
        "ws" => "http",
        "wss" => "https",
        other => {
            let detail = format!("the router's address has the scheme {other}");
            return Err(wrong(path, &detail, "use https:// or http://"));
        }
    };
    // The library refuses to change the scheme of some addresses in place; the text has no such scruples.
    let rest = url.as_str().split_once(':').map_or("", |(_, rest)| rest);
    Url::parse(&format!("{scheme}:{rest}"))
        .map_err(|error| wrong(path, &error.to_string(), "use https:// or http://"))
}

/// A path as the supervisor understands it: `~` is the home folder, and relative ones count from the file's folder.
fn absolute(config: &Path, path: &Path) -> Result<PathBuf, Failure> {
    let expanded = match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        (Ok(_) | Err(_), _) => path.to_owned(),
    };
    let folder = config.parent().unwrap_or_else(|| Path::new("."));
    std::path::absolute(folder.join(expanded)).map_err(local)
}

fn machine_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "host".to_owned())
}

fn wrong(path: &Path, detail: &str, remedy: &str) -> Failure {
    Failure::usage(format!("{}: {detail}", path.display()), remedy)
}

fn local(error: impl Into<anyhow::Error>) -> Failure {
    Failure::Local(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_links_scheme_becomes_that_of_http() {
        let config = |url: &str| SupervisorRouter {
            url: url.to_owned(),
            roots: None,
            extra_ca: None,
            proxy: None,
        };
        let global = Global::for_test();
        for (written, used) in [
            ("wss://router.example", "https://router.example/"),
            ("ws://127.0.0.1:7070", "http://127.0.0.1:7070/"),
            ("https://router.example/base", "https://router.example/base"),
        ] {
            let url = router_url(&global, Path::new("f"), Some(&config(written))).unwrap();
            assert_eq!(url.as_str(), used);
        }
        assert!(router_url(&global, Path::new("f"), Some(&config("ftp://x"))).is_err());
        assert!(router_url(&global, Path::new("f"), None).is_err());
    }

    #[test]
    fn paths_count_from_the_configuration() {
        let path = absolute(Path::new("/etc/sb/supervisor.toml"), Path::new("state")).unwrap();
        assert_eq!(path, Path::new("/etc/sb/state"));
        let path = absolute(Path::new("/etc/sb/supervisor.toml"), Path::new("/var/sb")).unwrap();
        assert_eq!(path, Path::new("/var/sb"));
    }
}
