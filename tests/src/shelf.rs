//! A whole shelf in one folder: router, one host, the sandbox with its phones, a tenant, a sink.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use protocol::api::{CreateMessage, Phone};
use protocol::link::PhoneState;
use protocol::{ChannelChoice, Class, E164, Recipient};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::api::Api;
use crate::eventually;
use crate::ledger::{self, Asked};
use crate::program::{self, Program};
use crate::proxy::Proxy;
use crate::sink::Sink;

/// Programs start in well under a second; a loaded machine may need much more.
const START_WITHIN: Duration = Duration::from_secs(30);
/// And so much for each phone: its chat.db is made, and its bridge reads it, beside all the others.
const START_OF_ONE: Duration = Duration::from_millis(500);

/// What stories wait less for than life does: of `[router]`, and after that.
const HASTE: (&str, &str) = (
    "# Stories break the wire hundreds of times; life waits longer.\nredial_max_ms = 200\n",
    "\n[restart]\n# Stories kill a bridge far more often than life does.\nintensity = 1000\nforgive_after_s = 1\n\
     delay_max_ms = 200\n",
);

/// What a shelf is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The phones: number and the macOS version whose schema their chat.db has. None: a router alone.
    pub phones: Vec<(&'static str, &'static str)>,
    /// Phones of the same sandbox that another host serves.
    pub elsewhere: Vec<(&'static str, &'static str)>,
    /// How fast the sandbox plays: 1 is life, 0 is at once.
    pub speed: f64,
    /// Sends a second and phone; 0 is without pacing.
    pub per_second: f64,
    /// A wire that can be cut lies between host and router.
    pub with_proxy: bool,
    /// The supervisor waits between two tries as it does in life.
    pub patient: bool,
    /// Attempts open on one phone at once.
    pub in_flight: u32,
    /// The Messages of the first phone is kept, with these further lines of `[messages_app]`.
    pub keeps_messages: Option<&'static str>,
    /// A program of the workspace that stands in for the bridges; then there is no sandbox either.
    pub stand_in: Option<&'static str>,
    /// Further settings of every bridge.
    pub bridges: &'static str,
    /// Further settings of the router's `[webhooks]`.
    pub webhooks: &'static str,
    /// The router's store has its log at full length from the start, as one that has run for a while; else it grows.
    pub long_log: bool,
    /// Further tables of the router's configuration.
    pub router: &'static str,
    /// Further lines at the end of the supervisor's configuration.
    pub more: &'static str,
    /// Where everything is kept; a temporary folder when none is given.
    pub dir: Option<PathBuf>,
}

impl Plan {
    /// What is measured: a router as it is shipped.
    pub fn measured() -> Self {
        Self { long_log: true, ..Self::default() }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            phones: vec![("+12025550190", "15"), ("+12025550191", "26"), ("+12025550192", "27")],
            elsewhere: Vec::new(),
            speed: 1.0,
            per_second: 0.0,
            with_proxy: false,
            patient: false,
            in_flight: 32,
            keeps_messages: None,
            stand_in: None,
            bridges: "",
            webhooks: "",
            long_log: false,
            router: "",
            more: "",
            dir: None,
        }
    }
}

/// A running shelf. Dropping it kills everything that it started.
#[derive(Debug)]
pub struct Shelf {
    /// The operator.
    pub operator: Api,
    /// The tenant.
    pub tenant: Api,
    /// The tenant's key, for people who want to try.
    pub key: String,
    /// The tenant's webhook endpoint.
    pub sink: Sink,
    /// The wire that can be cut, where the plan asked for one.
    pub proxy: Option<Proxy>,
    /// The tasks of sink and proxy.
    pub tasks: TaskTracker,
    router: Option<Program>,
    supervisor: Option<Program>,
    sandbox: Option<Program>,
    plan: Plan,
    root: PathBuf,
    router_addr: SocketAddr,
    dispatch_addr: SocketAddr,
    operator_token: String,
    /// Removed with the shelf, unless the caller named a folder.
    _temporary: Option<TempDir>,
}

impl Shelf {
    /// Starts everything, enrols the host, makes a tenant, a key and a webhook endpoint, and waits
    /// until every phone is ready.
    pub async fn start(plan: Plan) -> Result<Self> {
        let (root, temporary) = if let Some(dir) = &plan.dir {
            (dir.clone(), None)
        } else {
            // A short path: the sandbox's socket lies below it, and such paths have about 100 bytes.
            let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp");
            let mut dir = dir.context("temporary folder")?;
            // For whoever wants to see what was left behind.
            dir.disable_cleanup(std::env::var_os("SWITCHBOARD_KEEP_FILES").is_some());
            (dir.path().to_owned(), Some(dir))
        };
        std::fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        let tasks = TaskTracker::new();
        let sink = Sink::start(&tasks).await?;
        let router_addr = free_addr()?;
        let proxy =
            if plan.with_proxy { Some(Proxy::start(router_addr, &tasks).await?) } else { None };
        let operator_token =
            format!("operator-{:016x}{:016x}", crate::clock::chance(), crate::clock::chance());
        let operator = Api::new(&format!("http://{router_addr}"), &operator_token)?;
        let mut shelf = Self {
            tenant: operator.clone(),
            operator,
            key: String::new(),
            sink,
            proxy,
            tasks,
            router: None,
            supervisor: None,
            sandbox: None,
            plan,
            root,
            router_addr,
            dispatch_addr: free_addr()?,
            operator_token,
            _temporary: temporary,
        };
        shelf.write_configs()?;
        shelf.start_router().await?;
        shelf.make_tenant().await?;
        if !shelf.plan.phones.is_empty() {
            let phones = u32::try_from(shelf.plan.phones.len()).context("phones")?;
            let within = START_WITHIN + START_OF_ONE * phones;
            if shelf.plan.stand_in.is_none() {
                shelf.start_sandbox(within).await?;
            }
            shelf.enrol()?;
            shelf.start_supervisor()?;
            shelf.all_ready(within).await?;
        }
        Ok(shelf)
    }

    fn write_configs(&self) -> Result<()> {
        let Self { root, router_addr, dispatch_addr, .. } = self;
        let Plan { per_second, in_flight, phones, bridges, webhooks, .. } = &self.plan;
        let log_mib = if self.plan.long_log { 256 } else { 0 };
        let router = format!(
            r#"listen = "{router_addr}"
database = "router.db"
database_log_mib = {log_mib}

[limits]
growth = {{ per_second = 100000, burst = 100000 }}

[dispatch]
in_flight_per_phone = {in_flight}
daily_cap = 1000000

[warming]
# Stories and loads write to thousands of strangers from phones of this very minute.
enforce = false

[webhooks]
# The sink listens on the loopback interface.
allow_private = true
{webhooks}

[compliance]
# Stories are played at any hour.
hours = "off"
"#
        );
        write(&root.join("router.toml"), &format!("{router}\n{}", self.plan.router))?;
        let host_side = self.proxy.as_ref().map_or(*router_addr, Proxy::addr);
        let (redial, restart) = if self.plan.patient { ("", "") } else { HASTE };
        let bridge = match self.plan.stand_in {
            Some(program) => format!("bridge = \"{}\"", program::path_of(program)?.display()),
            None => String::new(),
        };
        let mut supervisor = format!(
            r#"state_dir = "{}"
{bridge}

[router]
url = "http://{host_side}"
{redial}
[dispatch]
listen = "{dispatch_addr}"
{restart}"#,
            root.join("host").display(),
        );
        for (number, _) in phones {
            let dir = self.phone_dir(number);
            write!(
                supervisor,
                r#"
[[phones]]
number = "{number}"
chat_db = "{}"
osascript = "{}"

[phones.bridge]
{bridges}
[phones.bridge.pacing]
per_second = {per_second:.1}
"#,
                dir.join("chat.db").display(),
                dir.join("osascript").display(),
            )
            .context("supervisor.toml")?;
        }
        if let (Some(more), Some((number, _))) = (self.plan.keeps_messages, phones.first()) {
            let dir = self.phone_dir(number);
            supervisor.push_str("\n[messages_app]\n");
            for tool in ["osascript", "open", "pgrep", "kill"] {
                writeln!(supervisor, "{tool} = \"{}\"", dir.join(tool).display())
                    .context("supervisor.toml")?;
            }
            supervisor.push_str(more);
        }
        supervisor.push_str(self.plan.more);
        write(&root.join("supervisor.toml"), &supervisor)
    }

    /// Where the sandbox keeps one phone.
    pub fn phone_dir(&self, number: &str) -> PathBuf {
        self.world().join(number.trim_start_matches('+'))
    }

    /// Where the sandbox keeps all of them.
    pub fn world(&self) -> PathBuf {
        self.root.join("phones")
    }

    /// Where everything lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The router's base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.router_addr)
    }

    /// Where the router listens.
    pub fn addr(&self) -> SocketAddr {
        self.router_addr
    }

    /// Process id of the router.
    pub fn router_pid(&self) -> Result<u32> {
        self.router.as_ref().map(Program::pid).context("the router runs")
    }

    /// The operator's token.
    pub fn operator_token(&self) -> &str {
        &self.operator_token
    }

    async fn start_sandbox(&mut self, within: Duration) -> Result<()> {
        let mut args = vec!["phones".to_owned(), "--dir".to_owned(), text(&self.world())];
        for (number, macos) in self.plan.phones.iter().chain(&self.plan.elsewhere) {
            args.extend(["--phone".to_owned(), format!("{number}={macos}")]);
        }
        args.extend(["--speed".to_owned(), format!("{}", self.plan.speed)]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let log = self.root.join("sandbox.log");
        let mut sandbox = Program::start("switchboard-sandbox", &args, &[], &log)?;
        let socket = self.world().join("messages.sock");
        eventually("the sandbox listens", within, || {
            let up = std::os::unix::net::UnixStream::connect(&socket).map(drop);
            let ended = sandbox.check();
            async move { ended.map(|()| up.map_err(|error| error.to_string())) }
        })
        .await
        .with_context(|| tail(&log))?;
        self.sandbox = Some(sandbox);
        Ok(())
    }

    /// Starts the router; also after [`Shelf::crash_router`].
    pub async fn start_router(&mut self) -> Result<()> {
        let config = text(&self.root.join("router.toml"));
        let log = self.root.join("router.log");
        let mut router = Program::start(
            "switchboard-router",
            &["serve", "--config", &config],
            &[("SWITCHBOARD_ADMIN_TOKEN", &self.operator_token)],
            &log,
        )?;
        let operator = self.operator.clone();
        eventually("the router answers", START_WITHIN, || {
            let ended = router.check();
            let operator = operator.clone();
            async move {
                ended?;
                Ok(if operator.healthy().await { Ok(()) } else { Err("no answer".to_owned()) })
            }
        })
        .await
        .with_context(|| tail(&log))?;
        self.router = Some(router);
        Ok(())
    }

    fn enrol(&self) -> Result<()> {
        let config = text(&self.root.join("supervisor.toml"));
        program::run(
            "switchboard",
            &["--url", &self.url(), "host", "enroll", "--config", &config],
            &[("SWITCHBOARD_ADMIN_TOKEN", &self.operator_token)],
        )
        .map(drop)
    }

    /// Starts the supervisor, as launchd would; also after [`Shelf::crash_supervisor`].
    pub fn start_supervisor(&mut self) -> Result<()> {
        let config = text(&self.root.join("supervisor.toml"));
        let log = self.root.join("supervisor.log");
        let supervisor =
            Program::start("switchboard-supervisor", &["run", "--config", &config], &[], &log)?;
        self.supervisor = Some(supervisor);
        Ok(())
    }

    async fn make_tenant(&mut self) -> Result<()> {
        let tenant = self.operator.create_tenant("Zur Post", "Zur Post").await?;
        let key = self.operator.create_key(&tenant.id).await?;
        self.tenant = self.operator.with_token(&key.secret);
        self.key = key.secret;
        let endpoint = self.tenant.create_webhook(self.sink.url()).await?;
        self.sink.set_secret(&endpoint.secret)
    }

    /// Waits until every phone can send.
    pub async fn all_ready(&mut self, within: Duration) -> Result<Vec<Phone>> {
        let wanted = self.plan.phones.len();
        let operator = self.operator.clone();
        let supervisor = self.supervisor.as_mut().context("the supervisor runs")?;
        eventually("every phone is ready", within, || {
            let ended = supervisor.check();
            let operator = operator.clone();
            async move {
                ended?;
                let phones = operator.phones().await?;
                let ready = phones
                    .iter()
                    .filter(|phone| {
                        phone.online && phone.state == PhoneState::Ready && phone.epoch.is_some()
                    })
                    .count();
                let states: Vec<_> = phones
                    .iter()
                    .map(|phone| format!("{} {:?} {:?}", phone.number, phone.state, phone.reasons))
                    .collect();
                Ok(if ready == wanted { Ok(phones) } else { Err(states.join(", ")) })
            }
        })
        .await
        .with_context(|| tail(&self.root.join("supervisor.log")))
    }

    /// Kills the router without a warning.
    pub fn crash_router(&mut self) -> Result<()> {
        self.router.take().context("the router runs")?.crash()
    }

    /// Kills the supervisor without a warning. Its bridges notice by themselves.
    pub fn crash_supervisor(&mut self) -> Result<()> {
        self.supervisor.take().context("the supervisor runs")?.crash()
    }

    /// The host is gone without a word: its supervisor and every bridge of it.
    pub fn lose_host(&mut self) -> Result<()> {
        self.crash_supervisor()?;
        program::crash_bridges(&self.root.join("host"))
    }

    /// Process id of the sandbox, where there is one.
    pub fn sandbox_pid(&self) -> Option<u32> {
        self.sandbox.as_ref().map(Program::pid)
    }

    /// Process id of the supervisor.
    pub fn supervisor_pid(&self) -> Result<u32> {
        self.supervisor.as_ref().map(Program::pid).context("the supervisor runs")
    }

    /// Process ids of the running bridges.
    pub fn bridge_pids(&self) -> Result<Vec<u32>> {
        Ok(program::bridges(&self.root)?.into_iter().map(|(id, _)| id).collect())
    }

    /// Process id of the bridge of one phone.
    pub fn bridge_pid(&self, phone: &Phone) -> Result<Option<u32>> {
        let running = program::bridges(&self.root)?;
        Ok(running.into_iter().find(|(_, line)| line.contains(phone.id.as_str())).map(|(id, _)| id))
    }

    /// Where that listens.
    pub fn dispatch_addr(&self) -> SocketAddr {
        self.dispatch_addr
    }

    /// The host's local dispatch API, as a program on that Mac would call it.
    pub fn dispatch(&self) -> Result<Api> {
        let file = self.root.join("host/dispatch.token");
        let token = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Api::new(&format!("http://{}", self.dispatch_addr), token.trim())
    }

    /// Waits until a shelf's only bridge is ready again, as another process than `before`.
    pub async fn ready_with_another_pid(&self, before: u32, within: Duration) -> Result<()> {
        let dispatch = self.dispatch()?;
        eventually("the bridge is ready again", within, || async {
            let phones: serde_json::Value =
                dispatch.call(reqwest::Method::GET, "/v1/phones", None, None).await??;
            let phone = phones.pointer("/data/0").cloned().unwrap_or_default();
            let pid = phone.pointer("/bridge/pid").and_then(serde_json::Value::as_u64);
            let ready =
                phone.pointer("/state").and_then(serde_json::Value::as_str) == Some("ready");
            let again = ready && pid.is_some_and(|pid| pid != u64::from(before));
            Ok(if again { Ok(()) } else { Err(phone.to_string()) })
        })
        .await
    }

    /// Somebody writes to one of the phones.
    pub fn receive(&self, phone: &E164, from: &str, body: &str) -> Result<()> {
        let dir = text(&self.world());
        program::run(
            "switchboard-sandbox",
            &["receive", "--dir", &dir, "--phone", phone.as_str(), "--from", from, "--text", body],
            &[],
        )
        .map(drop)
    }

    /// What Messages was really asked to send, by the sandbox's own count.
    pub fn asked(&self) -> Result<Vec<Asked>> {
        ledger::asked(&self.world().join("sends.jsonl"))
    }

    /// Stops everything in order, and fails when something does not stop by itself.
    pub async fn stop(mut self) -> Result<()> {
        const STOP_WITHIN: Duration = Duration::from_secs(25);
        for (name, program) in [
            ("supervisor", self.supervisor.take()),
            ("router", self.router.take()),
            ("sandbox", self.sandbox.take()),
        ] {
            if let Some(program) = program {
                let status = program.stop(STOP_WITHIN).await?;
                if !status.success() {
                    bail!(
                        "the {name} ended with {status}: {}",
                        tail(&self.root.join(format!("{name}.log")))
                    );
                }
            }
        }
        let left = program::bridges(&self.root)?;
        if !left.is_empty() {
            bail!("bridges are left over: {left:?}");
        }
        Ok(())
    }
}

/// A message with nothing but defaults.
pub fn message(to: &str, body: &str) -> Result<CreateMessage> {
    let to: Recipient = to.parse().with_context(|| format!("recipient {to}"))?;
    Ok(CreateMessage {
        to,
        text: Some(body.to_owned()),
        template: None,
        media: Vec::new(),
        channel: Some(ChannelChoice::Auto),
        fallback: None,
        class: Some(Class::Marketing),
        from: None,
        send_at: None,
        expires_at: None,
        ttl_seconds: None,
        metadata: None,
    })
}

/// An address that nobody uses now.
pub fn free_addr() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("free port")?;
    listener.local_addr().context("free port")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn write(path: &Path, content: &str) -> Result<()> {
    std::fs::write(path, content).with_context(|| path.display().to_string())
}

/// The last lines of a log, for an error that should explain itself.
fn tail(log: &Path) -> String {
    const LINES: usize = 30;
    let content = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = content.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    format!("{}:\n{}", log.display(), lines.get(from..).unwrap_or_default().join("\n"))
}
