//! From configuration to the last bridge's end.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use protocol::link::{PhoneReport, PhoneState};
use protocol::{HostId, PhoneId};
use router_client::clock::wall_now;
use router_client::doctor::Report;
use router_client::key::HostKey;
use router_client::link::{
    INPUT_QUEUE, Link, LinkConfig, LinkInput, LinkOutput, LinkStats, OUTPUT_QUEUE, SOCKET_QUEUE,
};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::canary;
use crate::cloudflared;
use crate::config::{Config, DEFAULT, public_key};
use crate::dialled::Door;
use crate::dispatch::{self, Dispatch};
use crate::doctor::{self, Tools};
use crate::files;
use crate::identity::{self, Identity, IdentityError, random};
use crate::messages_app;
use crate::network;
use crate::pool::{Pool, Surroundings, chain};
use crate::power;
use crate::program;
use crate::reload::{self, Followers, Reloader};
use crate::switchboard::{self, LinkState, Machine};

/// Files that the supervisor may have open: a few per phone, listeners, and room. launchd's default of 256 is little.
const OPEN_FILES: u64 = 10_240;
/// The whole of a stop in order: 10 s drain, 5 s TERM, KILL and reaping, inside launchd's `ExitTimeOut` of 25 s.
const STOP_WITHIN: Duration = Duration::from_secs(18);
/// What is left to the link, the API and cloudflared, with its grace of 3 s, after the last bridge's end.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// How often the metrics' memory is tidied, as its library asks for.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Why the supervisor ended without having been asked, with the exit status that says so (`sysexits(3)`).
#[derive(Debug)]
pub struct Failed {
    /// 78 bad configuration, 75 try again, 71 the system refused.
    pub status: u8,
    /// One line for people, with the remedy where there is one.
    pub message: String,
}

impl Failed {
    /// Bad configuration: nothing changes until somebody changes it.
    pub(crate) fn config(error: &dyn std::error::Error) -> Self {
        Self { status: 78, message: chain(error) }
    }

    /// Something that may be over soon.
    pub(crate) fn temporary(message: String) -> Self {
        Self { status: 75, message }
    }

    /// The system refused.
    pub(crate) fn system(doing: &str, error: &dyn std::error::Error) -> Self {
        Self { status: 71, message: format!("{doing}: {}", chain(error)) }
    }
}

/// The commented default configuration.
pub fn default_config() -> &'static str {
    DEFAULT
}

/// Checks a configuration file without running anything, and describes it in one line.
pub fn check_config(file: &Path) -> Result<String, Failed> {
    let config = Config::load(file).map_err(|error| Failed::config(&error))?;
    let router = match &config.router {
        Some(router) => format!("router {}", router.url),
        None => "no router".to_owned(),
    };
    Ok(format!(
        "{}: {} phone(s), {router}, dispatch API on {}",
        file.display(),
        config.phones.len(),
        config.dispatch.listen
    ))
}

/// Looks at everything that must be true on this Mac.
pub async fn diagnose(file: &Path, tools: &Tools) -> Result<Report, Failed> {
    let config = Config::load(file).map_err(|error| Failed::config(&error))?;
    Ok(doctor::examine(&config, tools).await)
}

/// Runs until a signal says otherwise.
pub async fn run(file: &Path) -> Result<(), Failed> {
    let config = Config::load(file).map_err(|error| Failed::config(&error))?;
    program::log_by(config.log.as_deref());
    raise_open_files();
    files::create_dir(&config.state_dir)
        .map_err(|error| Failed::system("the folder that `state_dir` names", &error))?;
    let _lock = lock(&config.state_dir.join("supervisor.lock"))?;
    let Identity { phones, host, router_key } =
        identity::identify(&config, wall_now()).map_err(|error| unidentified(&error))?;
    let token = dispatch_token(&config.dispatch.token_file)?;
    let metrics = install_metrics()?;
    let mut signals = Signals::listen()?;
    let hangups = listen(SignalKind::hangup())?;
    let listener = TcpListener::bind(config.dispatch.listen).await.map_err(|error| {
        Failed::temporary(format!(
            "the dispatch API cannot listen on {}: {error}; set another [dispatch] listen",
            config.dispatch.listen
        ))
    })?;

    let address = listener
        .local_addr()
        .map_err(|error| Failed::system("the dispatch API's address", &error))?;

    let tracker = TaskTracker::new();
    let (stopping, killing, closing) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let linked = link(&config, host, router_key)?;
    let door = linked.as_ref().and_then(|linked| linked.door.clone());
    let redial = linked.as_ref().map(|linked| linked.link.redial());
    let (power_told, power) = watch::channel(None);
    let (network_told, network) = watch::channel(None);
    let (messages_told, messages_app) = watch::channel(None);
    let (tunnel_told, cloudflared) = watch::channel(None);
    if let Some(linked) = &linked {
        announce_phones(linked, phones.keys());
    }
    let surroundings = Surroundings {
        state_dir: config.state_dir.clone(),
        tuning: reload::tuning(&config),
        link: linked.as_ref().map(|linked| linked.inputs.clone()),
        local_epoch: config.dispatch.local_epoch,
        power: power.clone(),
        stopping: stopping.clone(),
        killing: killing.clone(),
        tracker: tracker.clone(),
    };
    // The owners get a tracker of their own: a stop waits for them first, then for the rest.
    let owners = TaskTracker::new();
    let surroundings = Surroundings { tracker: owners.clone(), ..surroundings };
    let pool = Pool::start(&phones, &surroundings);
    let post = canary::Post::default();
    let asks = linked.as_ref().map(|linked| &linked.inputs);
    let mut pairs = canary::Pairs::new((&pool, &post), asks, &tracker, &closing);
    pairs.take(&config.canaries);
    let network_seen = network.clone();
    let machine =
        Machine { power, network, messages_app, cloudflared, canaries: pairs.standings() };
    let followers = Followers {
        power: watch::Sender::new(config.power.clone()),
        network: watch::Sender::new(config.network.clone()),
        messages_app: watch::Sender::new(config.messages_app.clone()),
        canaries: Arc::new(Mutex::new(pairs)),
    };
    let reloader = Reloader::new(config.clone(), pool.clone(), surroundings, followers.clone());
    let (state, link_state) = watch::channel(match &linked {
        Some(_) => LinkState::Disconnected,
        None => LinkState::Standalone,
    });
    let mut stats: Option<Arc<LinkStats>> = None;
    if let Some(Linked { link, inputs, outputs, door: _ }) = linked {
        stats = Some(link.stats());
        tracker.spawn(link.run(closing.clone()));
        tracker.spawn(switchboard::forward(
            pool.clone(),
            outputs,
            inputs,
            (state, post),
            machine.clone(),
            closing.clone(),
        ));
    }
    let settings = followers.power.subscribe();
    power::start(&settings, &config.state_dir, power_told, &tracker, &closing);
    messages_app::start(
        followers.messages_app.subscribe(),
        &config.state_dir,
        &pool,
        messages_told,
        &tracker,
        &closing,
    );
    let around = network::Around {
        told: network_told,
        link: link_state.clone(),
        redial: redial.clone(),
        tracker: tracker.clone(),
        closing: closing.clone(),
    };
    network::start(followers.network.subscribe(), &config.state_dir, around);
    let woke = Arc::new(Notify::new());
    if let Some(settings) = &config.cloudflared {
        let around = cloudflared::Around {
            told: tunnel_told,
            network: network_seen,
            woke: Arc::clone(&woke),
            tracker: tracker.clone(),
            closing: closing.clone(),
        };
        cloudflared::start(settings, &config.state_dir, around);
    }
    let slept = pool.clone();
    let on_wake = move || {
        slept.drop_leases();
        slept.preflight();
        woke.notify_one();
        if let Some(redial) = &redial {
            redial.notify_one();
        }
    };
    tracker.spawn(power::watch_sleep(on_wake, closing.clone()));
    let routes = dispatch::routes(Dispatch::new(
        (pool.clone(), reloader.clone()),
        (link_state, stats, door),
        machine,
        token,
        metrics.clone(),
        closing.clone(),
    ));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        dispatch = %address,
        phones = pool.iter().count(),
        "running"
    );
    announce(address);
    let served = closing.clone();
    tracker.spawn(async move {
        let serve = axum::serve(listener, routes).with_graceful_shutdown(served.cancelled_owned());
        if let Err(error) = serve.await {
            tracing::error!(%error, "the dispatch API ended");
        }
    });
    let tidied = closing.clone();
    tracker.spawn(async move {
        let mut tick = tokio::time::interval(METRICS_UPKEEP);
        while tidied.run_until_cancelled(tick.tick()).await.is_some() {
            metrics.run_upkeep();
        }
    });

    tracker.spawn(reload_on(hangups, reloader, stopping.clone()));
    signals.asked_to_end().await;
    tracing::info!("stopping: bridges finish what is started");
    stopping.cancel();
    owners.close();
    tokio::select! {
        () = owners.wait() => {}
        () = tokio::time::sleep(STOP_WITHIN) => {
            tracing::error!("bridges did not end in time and are killed");
        }
        () = signals.asked_to_end() => tracing::warn!("asked again: ending at once"),
    }
    killing.cancel();
    closing.cancel();
    tracker.close();
    let all = async {
        owners.wait().await;
        tracker.wait().await;
    };
    if tokio::time::timeout(CLOSE_WITHIN, all).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Files that are missing or wrong need somebody to change them; a full disk may have room again.
fn unidentified(error: &IdentityError) -> Failed {
    match error {
        IdentityError::Enrolment(_)
        | IdentityError::NotEnrolled { .. }
        | IdentityError::Damaged { .. } => Failed::config(error),
        IdentityError::File(_) | IdentityError::NoChance => {
            Failed::system("the phones' ids", error)
        }
    }
}

/// One line on stdout for whoever started us by hand or from a script: it is there, and where (port 0 is any port).
fn announce(dispatch: SocketAddr) {
    use std::io::Write as _;
    let line = serde_json::json!({ "type": "ready", "dispatch": dispatch });
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        tracing::debug!(%error, "nobody reads stdout");
    }
}

struct Linked {
    link: Link,
    inputs: mpsc::Sender<LinkInput>,
    outputs: mpsc::Receiver<LinkOutput>,
    /// Where the router comes in, where it dials.
    door: Option<Arc<Door>>,
}

fn link(
    config: &Config,
    host: Option<(HostId, HostKey)>,
    enrolled_key: Option<String>,
) -> Result<Option<Linked>, Failed> {
    let (Some(router), Some((host, key))) = (&config.router, host) else {
        return Ok(None);
    };
    let boot: [u8; 16] =
        random().map_err(|error| Failed::system("an id for this start", &error))?;
    let (inputs, taken) = mpsc::channel(INPUT_QUEUE);
    let (given, outputs) = mpsc::channel(OUTPUT_QUEUE);
    let (boot, version) = (HEXLOWER.encode(&boot), env!("CARGO_PKG_VERSION").to_owned());
    if let Some(dialled) = &router.dialled {
        let key_text = dialled.router_key.clone().or(enrolled_key);
        let router_key = key_text.as_deref().and_then(public_key).ok_or_else(|| Failed {
            status: 78,
            message: format!(
                "the router dials this host, and its key is not known: run `switchboard host enroll --config {}` \
                 again, or set `router_key` of [router]",
                config.file.display()
            ),
        })?;
        let access = dialled.access.clone().map(Access::new).transpose();
        let access = access.map_err(|error| Failed::config(&error))?;
        let (sockets, came) = mpsc::channel(SOCKET_QUEUE);
        let door = Door::new((host, key), router_key, access, sockets);
        let link = Link::accepting(boot, version, (came, router.silence), taken, given);
        return Ok(Some(Linked { link, inputs, outputs, door: Some(Arc::new(door)) }));
    }
    let link_config = LinkConfig {
        router: router.url.clone(),
        host,
        key,
        roots: router.roots.clone(),
        proxies: router.proxies.clone(),
        redial_max: router.redial_max,
        silence: router.silence,
        boot,
        version,
    };
    let link = Link::new(link_config, taken, given).map_err(|error| Failed::config(&error))?;
    Ok(Some(Linked { link, inputs, outputs, door: None }))
}

/// Tells the link of every phone before it dials, so that its first hello names them all and each gets its lease.
fn announce_phones<'a>(linked: &Linked, phones: impl Iterator<Item = &'a PhoneId>) {
    for phone in phones {
        let report = PhoneReport {
            phone: phone.clone(),
            journal: None,
            last_seq: 0,
            acked_seq: 0,
            epoch: None,
            state: PhoneState::Starting,
            reasons: Vec::new(),
        };
        // The queue is empty and longer than the largest set of phones; what did not fit would follow a moment later.
        if linked.inputs.try_send(LinkInput::Phone { report, started: false }).is_err() {
            tracing::debug!(%phone, "the link takes no more phones before it runs");
        }
    }
}

/// Takes the lock that only one supervisor can hold. The system frees it when we end, however we end.
fn lock(path: &Path) -> Result<File, Failed> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| Failed::system(&format!("opening {}", path.display()), &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failed::temporary(format!(
            "another supervisor holds {}: one state folder serves one supervisor",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => {
            Err(Failed::system(&format!("locking {}", path.display()), &error))
        }
    }
}

/// Reads the token of the dispatch API, or makes one.
fn dispatch_token(path: &Path) -> Result<SecretString, Failed> {
    match files::read_secret(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned().into()),
        Ok(_) => {}
        Err(error) if error.is_missing() => {}
        Err(error) => return Err(Failed::system("the dispatch token", &error)),
    }
    let bytes: [u8; 32] = random().map_err(|error| Failed::system("a dispatch token", &error))?;
    let token = HEXLOWER.encode(&bytes);
    files::write_private(path, &format!("{token}\n"))
        .map_err(|error| Failed::system("the dispatch token", &error))?;
    tracing::info!(file = %path.display(), "made a token for the dispatch API");
    Ok(token.into())
}

fn install_metrics() -> Result<PrometheusHandle, Failed> {
    PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| Failed::system("the metrics recorder", &error))
}

/// Raises the soft limit of open files as far as the hard one allows.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(OPEN_FILES);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failed> {
    signal(kind).map_err(|error| Failed::system("listening to signals", &error))
}

/// The signals that end us.
#[derive(Debug)]
pub(crate) struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    /// From now on.
    pub(crate) fn listen() -> Result<Self, Failed> {
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    /// Waits for TERM or INT.
    pub(crate) async fn asked_to_end(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Takes the configuration anew at every HUP. One that comes of a terminal that goes away finds nothing changed, and
/// none ever ends a supervisor.
async fn reload_on(
    mut hup: tokio::signal::unix::Signal,
    reloader: Reloader,
    stopping: CancellationToken,
) {
    while let Some(Some(())) = stopping.run_until_cancelled(hup.recv()).await {
        // What came of it is in the log; nobody waits for an answer.
        drop(reloader.reload().await);
    }
}
