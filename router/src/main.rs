//! `switchboard-router`: serve, migrate, check-config, healthcheck.
//!
//! Exit codes are those of sysexits: 0 done, 1 failed, 69 not available (healthcheck), 74 the disk fails,
//! 78 bad configuration.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use router::clock::Clock;
use router::config::{Config, ConfigError, LogFormat};
use router::server::{self, App};
use router::store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Messages come and go in small pieces, from several threads: the system's allocator takes a sixth of the throughput.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// `EX_UNAVAILABLE`.
const UNAVAILABLE: u8 = 69;
/// `EX_CONFIG`: a process manager must not restart us fast for that.
const BAD_CONFIG: u8 = 78;
/// The environment variable that says what is logged; it wins over the file.
const LOG_ENV: &str = "RUST_LOG";
/// How long a health check waits for its answer.
const HEALTHCHECK_WAIT: Duration = Duration::from_secs(5);

/// The cloud side of Switchboard.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API and the hosts' links until told to stop.
    Serve(ConfigFile),
    /// Bring the store's schema up to date and exit. `serve` does the same at its start.
    Migrate(ConfigFile),
    /// Say whether the configuration can be used.
    CheckConfig(ConfigFile),
    /// Ask a running router whether it can take work; exits 0 or 69.
    Healthcheck(ConfigFile),
    /// Print the commented default configuration.
    DefaultConfig,
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SWITCHBOARD_ROUTER_CONFIG")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            let code = if error.is::<ConfigError>() { BAD_CONFIG } else { 1 };
            complain(&error);
            ExitCode::from(code)
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(file) => serve(&file.config),
        Command::Migrate(file) => migrate(&file.config),
        Command::CheckConfig(file) => {
            let config = Config::load(&file.config)?;
            if config.admin_token.is_none() {
                say("warning: there is no admin token, so the operator's routes refuse everybody")?;
            }
            say(&format!("{}: good", file.config.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Healthcheck(file) => healthcheck(&file.config),
        Command::DefaultConfig => {
            say(router::config::DEFAULT.trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn serve(path: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    log(&config)?;
    let runtime = runtime()?;
    // On one of the threads that serve: what starting needs for a moment (the routes, the API's document) is some megabytes,
    // and what a thread has given back is used again by that thread first.
    let served = runtime.block_on(runtime.spawn(start_and_serve(config)));
    // What still runs was given its time. The store survives a cut at any point, so nothing is waited for.
    runtime.shutdown_background();
    served.context("serving")?
}

async fn start_and_serve(config: Config) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr().context("reading the listening address")?;
    let database = config.database.clone();
    if config.admin_token.is_none() {
        tracing::warn!("there is no admin token: the operator's routes refuse everybody");
    }
    let app = App::open(config, Clock::system())
        .await
        .with_context(|| format!("opening the store {}", database.display()))?;
    raise_open_files();
    let mut signals = Signals::watch()?;
    say(&format!("listening on http://{address}"))?;
    tracing::info!(%address, database = %database.display(), "serving");
    let impatience = async {
        tokio::select! {
            () = signals.next() => {}
            () = app.stop.cancelled() => {}
        }
        tracing::info!("stopping: finishing what has begun");
        app.stop.cancel();
        signals.next().await;
    };
    tokio::select! {
        served = server::serve(&app, listener) => {
            served.context("serving")?;
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        () = impatience => {
            tracing::warn!("told to stop a second time: ending with work unfinished");
            Ok(ExitCode::FAILURE)
        }
        // Whoever keeps this process running starts it anew; what is on the disk by then is what counts.
        () = app.store.lost() => {
            tracing::error!("ending: the disk did not take what the store has written");
            Ok(ExitCode::from(EX_IOERR))
        }
    }
}

/// What sysexits say of a disk that fails.
const EX_IOERR: u8 = 74;

/// Open files that the router asks for: every connection is one, and the listener takes up to 8,192. macOS gives no
/// process more than 10,240.
const OPEN_FILES: u64 = 10_240;

/// Raises the soft limit of open files as far as the hard one allows; it is often 1,024, and 256 on a Mac.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(OPEN_FILES);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// The signals that ask for an end: the first for an orderly one, the second for one at once.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        let term = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
        let int = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
        Ok(Self { term, int })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

fn migrate(path: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    log(&config)?;
    Store::open(&config.database)
        .with_context(|| format!("migrating the store {}", config.database.display()))?;
    say(&format!("{}: up to date", config.database.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn healthcheck(path: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    let url = format!("http://{}/readyz", reachable(config.listen));
    // reqwest refuses to build a client without a TLS provider, even for plain HTTP; a second installation is harmless.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    let answer = runtime()?.block_on(async {
        let client = reqwest::Client::builder().timeout(HEALTHCHECK_WAIT).no_proxy().build()?;
        client.get(&url).send().await
    });
    match answer {
        Ok(response) if response.status().is_success() => {
            say("ready")?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(response) => {
            say(&format!("not ready: {url} answered {}", response.status()))?;
            Ok(ExitCode::from(UNAVAILABLE))
        }
        Err(error) => {
            say(&format!("not ready: {error}"))?;
            Ok(ExitCode::from(UNAVAILABLE))
        }
    }
}

/// The address under which this machine reaches what listens on `listen`.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, listen.port())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")
}

fn log(config: &Config) -> anyhow::Result<()> {
    let filter = log_filter(&config.log.filter, std::env::var_os(LOG_ENV))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_coloured(std::io::stderr().is_terminal(), std::env::var_os("NO_COLOR")));
    match config.log.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// What is logged: what the environment says, else what the configuration does.
fn log_filter(configured: &str, env: Option<OsString>) -> anyhow::Result<EnvFilter> {
    let Some(env) = env.filter(|value| !value.is_empty()) else {
        return configured.parse().context("reading log.filter");
    };
    let wrong = |message: String| ConfigError::Value {
        path: "environment".to_owned(),
        line: None,
        field: LOG_ENV,
        message,
    };
    let text = env.to_str().ok_or_else(|| wrong("is not UTF-8".to_owned()))?;
    Ok(text.parse::<EnvFilter>().map_err(|error| wrong(error.to_string()))?)
}

/// Colours are for people at a terminal who have not asked for none (no-color.org: any value but an empty one).
fn is_coloured(terminal: bool, no_color: Option<OsString>) -> bool {
    terminal && no_color.is_none_or(|value| value.is_empty())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("writing to standard output")
}

/// The error with its causes on one line. Where even stderr is gone there is nobody to tell.
fn complain(error: &anyhow::Error) {
    if writeln!(std::io::stderr().lock(), "switchboard-router: {error:#}").is_err() {
        tracing::debug!("standard error is closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environments_filter_wins_where_it_says_something() {
        let filter = |env: Option<&str>| log_filter("info", env.map(OsString::from));
        assert_eq!(filter(None).unwrap().to_string(), "info");
        assert_eq!(filter(Some("")).unwrap().to_string(), "info");
        assert_eq!(filter(Some("router=debug")).unwrap().to_string(), "router=debug");
        let error = filter(Some("a=nolevel")).unwrap_err();
        assert!(error.is::<ConfigError>());
        assert!(error.to_string().starts_with("environment: RUST_LOG: "), "{error}");
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        assert!(is_coloured(true, None));
        assert!(is_coloured(true, Some(OsString::new())));
        assert!(!is_coloured(true, Some("1".into())));
        assert!(!is_coloured(false, None));
    }
}
