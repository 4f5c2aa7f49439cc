//! cloudflared as a child: started, watched by what it says of itself and by what comes through it, restarted, ended.
//!
//! [`keeper`] decides purely. Around it one task owns the child; four small ones bring what happened: whether it is
//! ready (`/ready` on its metrics port), whether the internet is there, whether somebody comes through its public name,
//! and whether the network has changed. It is run by us and not by `cloudflared service install`, because that neither
//! notices a sleep nor a dead tunnel (facts: 6.3). It never updates itself: a program that replaces itself loses its
//! place among what was tried.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use protocol::link::{HostNetwork, TunnelState, UplinkState};
use router_client::clock::{continuous_now, wall_now};
use router_client::tls::{self, TlsRoots};
use serde::Deserialize;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::child::{self, Child, Happened, Spec, Voice};
use crate::files;
use crate::logs::Ring;
use crate::network::{Anchor, Prober};
use crate::pool::{chain, chance};
use crate::restart::Exit;

mod keeper;

pub(crate) use keeper::Unfit;
use keeper::{Action, Event, Keeper, Ready, Through};
pub(crate) use keeper::{Policy, Standing};

/// `/ready` is answered from memory.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// Once around the world and back, with room.
const THROUGH_WITHIN: Duration = Duration::from_secs(10);
/// One anchor's answer.
const INTERNET_WITHIN: Duration = Duration::from_secs(5);
/// Time is looked at so often, whatever else happens: the grace of one that is asked to end is some seconds.
const LOOK: Duration = Duration::from_millis(500);
/// What an orphan of an earlier life has left to end.
const ORPHAN_WITHIN: Duration = Duration::from_secs(5);
const ORPHAN_LOOK: Duration = Duration::from_millis(50);
/// What happened waits here for its owner; more than a handful means that the owner is busy with the child's end.
const EVENTS: usize = 16;
/// Longest line of stdout; it logs to stderr.
const LINE_MAX: usize = 4 * 1024;
/// `/ready` and `/healthz` are some dozens of bytes.
const BODY_BYTES_MAX: usize = 4 * 1024;
/// Which process was started last: a supervisor that was killed leaves it behind.
const PID_FILE: &str = "cloudflared.pid";
/// Its own grace; a live WebSocket is in flight for ever and always takes all of it (facts: 6.1).
const GRACE: &str = "3s";

/// What is run, and how it is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The program.
    pub(crate) program: PathBuf,
    /// The tunnel's token. It goes by file, because arguments show in `ps` (facts: 6.1).
    pub(crate) token_file: PathBuf,
    /// Where it tells how it is.
    pub(crate) metrics_port: u16,
    /// How it talks with the edge: `http2`, `quic` or `auto`.
    pub(crate) protocol: String,
    /// The public name of this supervisor's `/healthz`, if it is to be asked through the tunnel.
    pub(crate) probe: Option<Url>,
    /// How often it is asked whether it is ready, and the network looked at.
    pub(crate) poll: Duration,
    /// How often it is asked through its public name.
    pub(crate) probe_every: Duration,
    /// Who proves the internet where no uplinks are watched.
    pub(crate) anchors: Vec<Anchor>,
    /// Periods and the cap.
    pub(crate) policy: Policy,
}

/// What the keeping needs of the rest of the supervisor.
#[derive(Debug)]
pub(crate) struct Around {
    /// Takes how it stands.
    pub(crate) told: watch::Sender<Option<Standing>>,
    /// The ways to the internet, where they are watched.
    pub(crate) network: watch::Receiver<Option<HostNetwork>>,
    /// Notified when the machine has slept.
    pub(crate) woke: Arc<Notify>,
    /// Where tasks are counted.
    pub(crate) tracker: TaskTracker,
    /// Cancelled at the end.
    pub(crate) closing: CancellationToken,
}

/// Its arguments (facts: 6.3).
fn arguments(settings: &Settings) -> Vec<OsString> {
    let metrics = format!("127.0.0.1:{}", settings.metrics_port);
    let words = ["--no-autoupdate", "tunnel", "--metrics", &metrics, "--grace-period", GRACE];
    let mut arguments: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    arguments.extend(["--protocol", &settings.protocol, "run", "--token-file"].map(OsString::from));
    arguments.push(settings.token_file.clone().into());
    arguments
}

/// Starts the keeping.
pub(crate) fn start(settings: &Settings, state_dir: &Path, around: Around) {
    let Around { told, network, woke, tracker, closing } = around;
    let (happened, events) = mpsc::channel(EVENTS);
    let watches =
        Watches { settings: settings.clone(), happened, standing: told.subscribe(), network, woke };
    let owner = Owner {
        keeper: Keeper::new(settings.policy),
        settings: settings.clone(),
        pid_file: state_dir.join(PID_FILE),
        directory: state_dir.to_owned(),
        tracker: tracker.clone(),
        child: None,
        told,
    };
    let ends = closing.clone();
    tracker.spawn(async move {
        closing.run_until_cancelled(watches.run()).await.unwrap_or(());
    });
    tracker.spawn(owner.run(events, ends));
}

/// The one task that owns the child.
struct Owner {
    keeper: Keeper,
    settings: Settings,
    pid_file: PathBuf,
    directory: PathBuf,
    tracker: TaskTracker,
    child: Option<Child>,
    told: watch::Sender<Option<Standing>>,
}

impl Owner {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, closing: CancellationToken) {
        self.end_orphan().await;
        let mut tick = every(self.settings.poll.min(LOOK));
        let mut stopping = false;
        let mut watched = true;
        while !self.keeper.is_stopped() {
            let event = tokio::select! {
                () = closing.cancelled(), if !stopping => {
                    stopping = true;
                    Event::Stop
                }
                exit = ended(&mut self.child) => {
                    self.child = None;
                    self.note_exit(exit);
                    Event::Ended(exit)
                }
                // The watches end first when everything does.
                event = events.recv(), if watched => event.unwrap_or_else(|| {
                    watched = false;
                    Event::Tick
                }),
                _ = tick.tick() => Event::Tick,
            };
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        let mut event = Some(event);
        while let Some(happened) = event.take() {
            let action = self.keeper.step(happened, continuous_now(), chance());
            match action {
                Some(Action::Start) => event = Some(self.start()),
                Some(Action::Term) => {
                    if let Some(why) = self.keeper.restarting() {
                        let why = why.as_str();
                        tracing::warn!(target: "cloudflared", why, "cloudflared is restarted");
                        metrics::counter!("switchboard_cloudflared_restarts_total", "why" => why)
                            .increment(1);
                    }
                    self.signal(Signal::SIGTERM);
                }
                Some(Action::Kill) => {
                    tracing::warn!(target: "cloudflared", "cloudflared does not end and is killed");
                    self.signal(Signal::SIGKILL);
                }
                None => {}
            }
        }
        self.tell();
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // One that is gone, or refuses, shows by its end or by the next signal.
            let met = child.signal(signal);
            tracing::debug!(target: "cloudflared", ?signal, ?met, "signalled");
        }
    }

    /// Starts it, unless something that somebody must change is in the way.
    fn start(&mut self) -> Event {
        if let Some(unfit) = unfit(&self.settings) {
            return Event::Unfit(unfit);
        }
        let spec = Spec {
            program: self.settings.program.clone(),
            args: arguments(&self.settings),
            directory: self.directory.clone(),
            name: "cloudflared".to_owned(),
            line_max: LINE_MAX,
            voice: Voice::Cloudflared,
        };
        match child::start(&spec, &Arc::new(Mutex::new(Ring::default())), &self.tracker) {
            Ok(child) => {
                let pid = child.pid();
                if let Err(error) = files::write_private(&self.pid_file, &format!("{pid}\n")) {
                    tracing::warn!(error = chain(&error), "cloudflared would not be found again");
                }
                metrics::counter!("switchboard_cloudflared_starts_total").increment(1);
                tracing::info!(target: "cloudflared", pid, "cloudflared is started");
                self.child = Some(child);
                Event::Started
            }
            Err(error) => {
                tracing::error!(target: "cloudflared", error = chain(&error), "it does not start");
                Event::Unfit(Unfit::NotStarted)
            }
        }
    }

    fn note_exit(&self, exit: Exit) {
        let outcome = match exit {
            Exit::Code { code } => code.to_string(),
            Exit::Signal { .. } => "signal".to_owned(),
            Exit::Killed { .. } | Exit::Replaced { .. } | Exit::NotStarted => "other".to_owned(),
        };
        if self.keeper.is_running() {
            tracing::warn!(target: "cloudflared", ?exit, "cloudflared ended by itself");
        }
        metrics::counter!("switchboard_cloudflared_exits_total", "code" => outcome).increment(1);
        if let Err(error) = std::fs::remove_file(&self.pid_file) {
            tracing::debug!(%error, "its pid was not noted");
        }
    }

    fn tell(&self) {
        let standing = {
            let before = self.told.borrow();
            self.keeper.standing(before.as_ref(), continuous_now(), wall_now())
        };
        let up = if standing.state == TunnelState::Ready { 1.0 } else { 0.0 };
        metrics::gauge!("switchboard_cloudflared_ready").set(up);
        let connections = u32::try_from(standing.connections).unwrap_or(u32::MAX);
        metrics::gauge!("switchboard_cloudflared_connections").set(f64::from(connections));
        let capped = if standing.capped { 1.0 } else { 0.0 };
        metrics::gauge!("switchboard_cloudflared_capped").set(capped);
        self.told.send_if_modified(|told| {
            let changed = told.as_ref() != Some(&standing);
            if changed {
                say(told.as_ref(), &standing);
                *told = Some(standing);
            }
            changed
        });
    }

    /// Ends what an earlier supervisor, killed without a word, has left behind: it holds the metrics port.
    async fn end_orphan(&self) {
        let Some(pid) = files::read(&self.pid_file).ok().and_then(|text| text.trim().parse().ok())
        else {
            return;
        };
        let group = Pid::from_raw(pid);
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            // Ids are given again: it must be a program that was given our token's file.
            if !is_ours(pid, &self.settings.token_file) {
                return;
            }
            let met = killpg(group, signal);
            tracing::warn!(target: "cloudflared", pid, ?signal, ?met, "one of an earlier life is ended");
            let until = tokio::time::Instant::now() + ORPHAN_WITHIN;
            // A dying process loses its arguments first and its port last.
            while tokio::time::Instant::now() < until {
                if arguments_of(pid).is_none() {
                    return;
                }
                tokio::time::sleep(ORPHAN_LOOK).await;
            }
        }
    }
}

/// Says once, for people, what has changed.
fn say(before: Option<&Standing>, now: &Standing) {
    let told = |standing: &Standing| (standing.state, standing.why);
    if before.map(told) == Some(told(now)) {
        return;
    }
    match (now.state, now.why) {
        (TunnelState::Ready, None) => {
            tracing::info!(target: "cloudflared", connections = now.connections, "the tunnel is up");
        }
        (TunnelState::Unready, None)
            if before.is_some_and(|before| before.state == TunnelState::Ready) =>
        {
            tracing::warn!(target: "cloudflared", "the tunnel is down");
        }
        (_, Some(why)) if now.remedy.is_some() => {
            tracing::error!(target: "cloudflared", why, remedy = now.remedy, "the tunnel is not up");
        }
        (_, _) => {}
    }
}

/// When the child ends, how; never, where there is none.
async fn ended(child: &mut Option<Child>) -> Exit {
    let Some(child) = child else { return std::future::pending().await };
    loop {
        if let Happened::Exited(status) = child.next().await {
            use std::os::unix::process::ExitStatusExt as _;
            return match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code { code },
                (None, Some(signal)) => Exit::Signal { signal },
                (None, None) => Exit::NotStarted,
            };
        }
    }
}

/// What is in the way of a start.
pub(crate) fn unfit(settings: &Settings) -> Option<Unfit> {
    let token = token(&settings.token_file);
    // It would end itself, and say so only in its log: a pinned port that is taken is fatal (facts: 6.1).
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, settings.metrics_port));
    token.or_else(|| match std::net::TcpListener::bind(address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => Some(Unfit::PortTaken),
        Ok(_) | Err(_) => None,
    })
}

/// What is wrong with the token's file.
pub(crate) fn token(file: &Path) -> Option<Unfit> {
    match std::fs::metadata(file) {
        Ok(found) if !found.is_file() || found.len() == 0 => Some(Unfit::TokenMissing),
        Ok(found) if found.permissions().mode() & 0o077 != 0 => Some(Unfit::TokenExposed),
        Ok(_) => None,
        Err(_) => Some(Unfit::TokenMissing),
    }
}

/// Whether a process was started with our token's file.
fn is_ours(pid: i32, token_file: &Path) -> bool {
    arguments_of(pid).is_some_and(|words| words.iter().any(|word| word == token_file.as_os_str()))
}

/// What a process was started with; none when it has ended, reaped or not.
fn arguments_of(pid: i32) -> Option<Vec<OsString>> {
    let pid = sysinfo::Pid::from_u32(u32::try_from(pid).ok()?);
    let mut system = System::new().ok()?;
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        true,
        ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always),
    );
    let process = system.process(pid)?;
    let ended = [sysinfo::ProcessStatus::Zombie, sysinfo::ProcessStatus::Dead];
    (!ended.contains(&process.status())).then(|| process.cmd().to_vec())
}

/// Those who bring what happened.
struct Watches {
    settings: Settings,
    happened: mpsc::Sender<Event>,
    standing: watch::Receiver<Option<Standing>>,
    network: watch::Receiver<Option<HostNetwork>>,
    woke: Arc<Notify>,
}

impl Watches {
    async fn run(self) {
        tokio::join!(self.readiness(), self.internet(), self.through(), self.changes());
    }

    fn state(&self) -> TunnelState {
        self.standing.borrow().as_ref().map_or(TunnelState::Waiting, |standing| standing.state)
    }

    async fn tell(&self, event: Event) {
        if self.happened.send(event).await.is_err() {
            // The owner ends last; without it nobody needs to know.
            tracing::trace!(?event, "nobody keeps cloudflared any more");
        }
    }

    async fn readiness(&self) {
        let address = format!("http://127.0.0.1:{}/ready", self.settings.metrics_port);
        let Some(client) = client(READY_WITHIN, None) else { return };
        let mut tick = every(self.settings.poll);
        loop {
            tick.tick().await;
            if matches!(self.state(), TunnelState::Ready | TunnelState::Unready) {
                self.tell(Event::Ready(ask_ready(&client, &address).await)).await;
            }
        }
    }

    /// Only while it matters: an anchor in the internet is not asked for fun.
    async fn internet(&self) {
        let prober = Prober::anywhere(&self.settings.anchors, INTERNET_WITHIN);
        let prober = match prober {
            Ok(prober) => prober,
            Err(error) => {
                tracing::error!(error = chain(&error), "the internet is not looked for");
                return;
            }
        };
        let mut tick = every(self.settings.poll);
        loop {
            tick.tick().await;
            // Where uplinks are only observed, which one is in use is not known; the anchors are asked by whatever it is.
            let watched =
                self.network.borrow().as_ref().filter(|network| network.switches).map(is_good);
            let matters = self.standing.borrow().as_ref().is_some_and(Standing::asks_for_internet);
            let there = match watched {
                Some(there) => there,
                None if matters => Some(prober.round(false).await.is_good()),
                None => continue,
            };
            self.tell(Event::Internet(there)).await;
        }
    }

    async fn through(&self) {
        let Some(probe) = &self.settings.probe else { return };
        let Some(client) = client(THROUGH_WITHIN, Some(probe)) else { return };
        let mut tick = every(self.settings.probe_every);
        let mut withheld = false;
        loop {
            tick.tick().await;
            if self.state() != TunnelState::Ready {
                continue;
            }
            let through = ask_through(&client, probe).await;
            let word = match through {
                Through::Answered => "answered",
                Through::Lost => "lost",
                Through::Withheld => "withheld",
            };
            metrics::counter!("switchboard_cloudflared_probes_total", "outcome" => word)
                .increment(1);
            if through == Through::Withheld && !std::mem::replace(&mut withheld, true) {
                tracing::warn!(
                    target: "cloudflared", %probe,
                    "Cloudflare Access wants a login for `probe` of [cloudflared]: let its path bypass Access, or nobody \
                     can tell whether the tunnel leads here"
                );
            }
            self.tell(Event::Through(through)).await;
        }
    }

    async fn changes(&self) {
        let mut tick = every(self.settings.poll);
        let mut network = self.network.clone();
        let mut chosen = chosen_of(&network);
        let mut own = own_address().await;
        let mut network_watched = true;
        loop {
            let changed = tokio::select! {
                () = self.woke.notified() => true,
                changed = network.changed(), if network_watched => {
                    network_watched = changed.is_ok();
                    let now = chosen_of(&network);
                    std::mem::replace(&mut chosen, now.clone()) != now
                }
                _ = tick.tick() => {
                    let now = own_address().await;
                    // Without any address there is nothing to go to yet.
                    now.is_some() && std::mem::replace(&mut own, now) != now
                }
            };
            if changed {
                tracing::info!(target: "cloudflared", "the network has changed, or this machine has slept");
                self.tell(Event::Changed).await;
            }
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick
}

fn chosen_of(network: &watch::Receiver<Option<HostNetwork>>) -> Option<String> {
    network.borrow().as_ref().map(|network| network.chosen.clone())
}

/// Whether the uplink in use leads to the internet; none where that is not known yet.
fn is_good(network: &HostNetwork) -> Option<bool> {
    let chosen = network.uplinks.iter().find(|uplink| uplink.name == network.chosen)?;
    match chosen.state {
        UplinkState::Good => Some(true),
        UplinkState::Captive | UplinkState::Down => Some(false),
        UplinkState::Unknown => None,
    }
}

/// The address that the default route goes out by. Nothing is sent: connecting a datagram socket asks the routes alone.
async fn own_address() -> Option<IpAddr> {
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    // An address for documentation, so that nobody is meant.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).await.ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|own| !own.is_unspecified())
}

/// A client for one question at a time over a new connection each.
fn client(within: Duration, of: Option<&Url>) -> Option<reqwest::Client> {
    let secure = of.is_some_and(|url| url.scheme() == "https");
    let settings = if secure { tls::client_config(&TlsRoots::Platform) } else { tls::no_roots() };
    let built = settings.map_err(|error| chain(&error)).and_then(|settings| {
        reqwest::Client::builder()
            .tls_backend_preconfigured(settings)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(within)
            .user_agent(concat!("switchboard/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| chain(&error))
    });
    match built {
        Ok(client) => Some(client),
        Err(error) => {
            tracing::error!(target: "cloudflared", error, "cloudflared cannot be asked how it is");
            None
        }
    }
}

async fn answer(client: &reqwest::Client, url: &str) -> Result<(u16, Vec<u8>), reqwest::Error> {
    let mut response = client.get(url).send().await?;
    let mut body = Vec::new();
    while body.len() < BODY_BYTES_MAX {
        let Some(chunk) = response.chunk().await? else { break };
        body.extend_from_slice(&chunk);
    }
    Ok((response.status().as_u16(), body))
}

async fn ask_ready(client: &reqwest::Client, address: &str) -> Ready {
    match answer(client, address).await {
        Ok((status, body)) => ready(status, &body),
        Err(error) => {
            tracing::trace!(target: "cloudflared", error = chain(&error), "/ready is not answered");
            Ready::No
        }
    }
}

/// What `/ready` says: 200 with `{"status":200,"readyConnections":4,"connectorId":…}`, or 503 (facts: 6.1).
fn ready(status: u16, body: &[u8]) -> Ready {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "readyConnections")]
        connections: u64,
    }
    if status != 200 {
        return Ready::No;
    }
    // The status is what counts; the number is for people.
    let connections = serde_json::from_slice(body).map_or(1, |body: Body| body.connections);
    Ready::Yes { connections }
}

async fn ask_through(client: &reqwest::Client, probe: &Url) -> Through {
    match answer(client, probe.as_str()).await {
        Ok((status, body)) => through(status, &body),
        Err(error) => {
            tracing::debug!(target: "cloudflared", error = chain(&error), "nobody comes through");
            Through::Lost
        }
    }
}

/// What an answer through the public name says. Access answers in our place with the way to a login; everything else
/// that is not us is the edge, which found nobody behind the tunnel (502, 530 and others).
fn through(status: u16, body: &[u8]) -> Through {
    match status {
        200 if body.starts_with(b"{\"status\":\"ok\"}") => Through::Answered,
        302 | 303 | 307 | 401 | 403 => Through::Withheld,
        _ => Through::Lost,
    }
}

/// One look for a doctor: how a running one says that it is.
pub(crate) async fn look(metrics_port: u16) -> Option<u64> {
    let client = client(READY_WITHIN, None)?;
    match ask_ready(&client, &format!("http://127.0.0.1:{metrics_port}/ready")).await {
        Ready::Yes { connections } => Some(connections),
        Ready::No => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folder: &Path) -> Settings {
        Settings {
            program: "/opt/homebrew/bin/cloudflared".into(),
            token_file: folder.join("cloudflared.token"),
            metrics_port: 0,
            protocol: "http2".to_owned(),
            probe: None,
            poll: Duration::from_secs(2),
            probe_every: Duration::from_mins(1),
            anchors: Vec::new(),
            policy: Policy::default(),
        }
    }

    #[test]
    fn its_arguments_pin_the_port_and_show_no_token() {
        let settings = Settings { metrics_port: 7181, ..settings(Path::new("/state")) };
        let line: Vec<String> =
            arguments(&settings).iter().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(
            line.join(" "),
            "--no-autoupdate tunnel --metrics 127.0.0.1:7181 --grace-period 3s --protocol http2 run --token-file \
             /state/cloudflared.token"
        );
    }

    #[test]
    fn answers_are_judged() {
        let body = br#"{"status":200,"readyConnections":3,"connectorId":"x"}"#;
        assert_eq!(ready(200, body), Ready::Yes { connections: 3 });
        assert_eq!(ready(200, b"OK"), Ready::Yes { connections: 1 });
        assert_eq!(ready(503, br#"{"status":503,"readyConnections":0}"#), Ready::No);
        for (status, body, expected) in [
            (200, "{\"status\":\"ok\"}", Through::Answered),
            (200, "<html>login</html>", Through::Lost),
            (302, "", Through::Withheld),
            (403, "", Through::Withheld),
            (502, "", Through::Lost),
            (530, "error code: 1033", Through::Lost),
        ] {
            assert_eq!(through(status, body.as_bytes()), expected, "{status}");
        }
    }

    #[test]
    fn a_token_that_others_may_read_or_a_port_that_is_taken_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(folder.path());
        assert_eq!(unfit(&settings), Some(Unfit::TokenMissing));
        std::fs::write(&settings.token_file, "").unwrap();
        assert_eq!(unfit(&settings), Some(Unfit::TokenMissing), "an empty one is none");
        std::fs::write(&settings.token_file, "secret").unwrap();
        let mode = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&settings.token_file, mode).unwrap();
        };
        mode(0o640);
        assert_eq!(unfit(&settings), Some(Unfit::TokenExposed));
        mode(0o600);
        assert_eq!(unfit(&settings), None);
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        settings.metrics_port = other.local_addr().unwrap().port();
        assert_eq!(unfit(&settings), Some(Unfit::PortTaken));
    }
}
