//! Two uplinks as they are: a host, two routers, and an internet behind them, each a network namespace of its own. The
//! line behind one router dies in silence; the supervisor must say so, go over to the other, and come back.
//!
//! ```text
//!           office ── router ── line ──╮
//!     host                              internet: Switchboard's router, an anchor
//!           hotspot ─ router ── line ──╯
//! ```
//!
//! Namespaces need root and iproute2. Without them this fails; whoever wants to do without says so by
//! `SWITCHBOARD_WITHOUT_NAMESPACES=1`, and is told.

#![cfg(test)]
#![cfg(target_os = "linux")]

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::api::Api;
use e2e::eventually;
use e2e::program::{self, Program};
use e2e::shelf;
use nix::sched::{CloneFlags, setns};
use protocol::Status;
use protocol::link::{HostNetwork, PhoneState, UplinkState};
use reqwest::Method;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// For a busy machine; what is measured is printed.
const WITHIN: Duration = Duration::from_secs(90);
const INTERNET: &str = "10.99.0.1";
const NUMBER: &str = "+12025550190";
const OPERATOR: &str = "operator-of-two-uplinks";

const SETUP: &str = r"set -eu
for n in h a b n; do
  ip netns add $P$n
  ip netns exec $P$n sh -c 'cd /proc/sys/net/ipv4
    # A probe that is bound to the second uplink is answered over it, whatever the first route is.
    echo 0 > conf/all/rp_filter; echo 0 > conf/default/rp_filter; echo 1 > ip_forward'
  ip -n $P$n link set lo up
done
wire() { # NAMESPACE INTERFACE ADDRESS NAMESPACE INTERFACE ADDRESS
  ip link add $2 netns $P$1 type veth peer name $5 netns $P$4
  ip -n $P$1 addr add $3/24 dev $2; ip -n $P$4 addr add $6/24 dev $5
  ip -n $P$1 link set $2 up; ip -n $P$4 link set $5 up
}
wire h office  10.91.1.2 a inside 10.91.1.1
wire h hotspot 10.91.2.2 b inside 10.91.2.1
wire n left  10.91.11.1 a line 10.91.11.2
wire n right 10.91.12.1 b line 10.91.12.2
ip -n ${P}n addr add 10.99.0.1/32 dev lo
ip -n ${P}h route add default via 10.91.1.1 dev office metric 100
ip -n ${P}h route add default via 10.91.2.1 dev hotspot metric 200
ip -n ${P}a route add default via 10.91.11.1
ip -n ${P}b route add default via 10.91.12.1
ip -n ${P}n route add 10.91.1.0/24 via 10.91.11.2
ip -n ${P}n route add 10.91.2.0/24 via 10.91.12.2
";

/// Both ways, and without a word: the router in the office goes on answering for itself.
const CUT: &str =
    "ip -n ${P}a route add blackhole 10.99.0.1/32; ip -n ${P}a route add blackhole 10.91.1.2/32";
const MEND: &str =
    "ip -n ${P}a route del blackhole 10.99.0.1/32; ip -n ${P}a route del blackhole 10.91.1.2/32";

/// What macOS does with an order of services, as far as routes go: the first one that there is has the best metric.
const NETWORKSETUP: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$1" in
-listnetworkserviceorder)
  echo 'An asterisk (*) denotes that a network service is disabled.'
  n=0
  while read -r name; do
    n=$((n + 1))
    case "$name" in
    'Office LAN') device=office ;; 'iPhone USB') device=hotspot ;; *) device= ;;
    esac
    printf '(%s) %s\n(Hardware Port: %s, Device: %s)\n\n' "$n" "$name" "$name" "$device"
  done < order ;;
-ordernetworkservices)
  shift
  printf '%s\n' "$@" > order
  metric=100
  ip route flush exact 0.0.0.0/0
  for name; do
    case "$name" in
    'Office LAN') ip route add default via 10.91.1.1 dev office metric $metric ;;
    'iPhone USB') ip route add default via 10.91.2.1 dev hotspot metric $metric ;;
    esac
    metric=$((metric + 100))
  done ;;
*) exit 9 ;;
esac
"#;

/// The namespaces. Dropping them takes them away.
struct World {
    prefix: String,
}

/// Runs a script of this world, with `P` the beginning of its namespaces' names.
fn shell(prefix: &str, script: &str) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let env = [("PATH", path.as_str()), ("P", prefix)];
    let ended = program::foreign(Path::new("/bin/sh"), &["-c", script], &env).unwrap();
    if ended.code == Some(0) { Ok(()) } else { Err(format!("{}{}", ended.out, ended.err)) }
}

impl World {
    /// None when somebody has said that it shall not be.
    fn new() -> Option<Self> {
        if std::env::var_os("SWITCHBOARD_WITHOUT_NAMESPACES").is_some() {
            println!("NOT TESTED: SWITCHBOARD_WITHOUT_NAMESPACES is set");
            return None;
        }
        let world = Self { prefix: format!("swb{}", std::process::id()) };
        if let Err(said) = shell(&world.prefix, SETUP) {
            panic!(
                "network namespaces could not be made: {said}\nthis test needs root and iproute2 (`ip`); to do without \
                 it, set SWITCHBOARD_WITHOUT_NAMESPACES=1"
            );
        }
        world.enter("n");
        Some(world)
    }

    fn run(&self, script: &str) {
        if let Err(said) = shell(&self.prefix, script) {
            panic!("{script}: {said}");
        }
    }

    /// From now on this thread, and what it starts, has its sockets there.
    fn enter(&self, namespace: &str) {
        let file = File::open(format!("/run/netns/{}{namespace}", self.prefix)).unwrap();
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Starts a program on the host.
    fn start(&self, name: &str, args: &[&str], log: &Path) -> Program {
        self.enter("h");
        let program = Program::start(name, args, &[], log).unwrap();
        self.enter("n");
        program
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(said) = shell(&self.prefix, "for n in h a b n; do ip netns del $P$n; done") {
            println!("left over: {said}");
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Everything that runs; the programs end before their world does.
struct House {
    supervisor: Option<Program>,
    _others: Vec<Program>,
    operator: Api,
    tenant: Api,
    dir: TempDir,
    world: World,
}

impl House {
    /// The internet with Switchboard's router, and a host with one phone and two uplinks.
    async fn new(network: &str) -> Option<Self> {
        let world = World::new()?;
        let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").unwrap();
        anchor().await;
        let root = dir.path();
        let router = format!(
            "listen = \"{INTERNET}:7070\"\ndatabase = \"router.db\"\ndatabase_log_mib = 0\n[webhooks]\nallow_private = true\n[compliance]\nhours = \"off\"\n"
        );
        std::fs::write(root.join("router.toml"), router).unwrap();
        let router = Program::start(
            "switchboard-router",
            &["serve", "--config", text(&root.join("router.toml"))],
            &[("SWITCHBOARD_ADMIN_TOKEN", OPERATOR)],
            &root.join("router.log"),
        )
        .unwrap();
        let url = format!("http://{INTERNET}:7070");
        let operator = Api::new(&url, OPERATOR).unwrap();
        eventually("the router answers", WITHIN, || {
            let operator = operator.clone();
            async move { Ok(if operator.healthy().await { Ok(()) } else { Err(String::new()) }) }
        })
        .await
        .unwrap();
        let tenant = operator.create_tenant("Zur Post", "Zur Post").await.unwrap();
        let key = operator.create_key(&tenant.id).await.unwrap();
        let tenant = operator.with_token(&key.secret);

        let phones = root.join("phones");
        let args =
            ["phones", "--dir", text(&phones), "--phone", &format!("{NUMBER}=26"), "--speed", "0"];
        let sandbox =
            Program::start("switchboard-sandbox", &args, &[], &root.join("sandbox.log")).unwrap();
        eventually("the sandbox listens", WITHIN, || {
            let there = phones.join("messages.sock").exists();
            async move { Ok(if there { Ok(()) } else { Err("no socket".to_owned()) }) }
        })
        .await
        .unwrap();
        let phone = phones.join(NUMBER.trim_start_matches('+'));
        let config = format!(
            "state_dir = \"state\"\n[router]\nurl = \"{url}\"\n[dispatch]\nlisten = \"127.0.0.1:7180\"\n\
             [[phones]]\nnumber = \"{NUMBER}\"\nchat_db = \"{}\"\nosascript = \"{}\"\n\
             [phones.bridge]\ndisk_low_mib = 16\n\
             {network}\n[[network.anchors]]\nurl = \"http://{INTERNET}:8080/\"\nbody = \"Success\"\n",
            phone.join("chat.db").display(),
            phone.join("osascript").display(),
        );
        let file = root.join("supervisor.toml");
        std::fs::write(&file, config).unwrap();
        program::run(
            "switchboard",
            &["--url", &url, "host", "enroll", "--config", text(&file)],
            &[("SWITCHBOARD_ADMIN_TOKEN", OPERATOR)],
        )
        .unwrap();

        let networksetup = root.join("networksetup");
        std::fs::write(&networksetup, NETWORKSETUP).unwrap();
        std::fs::set_permissions(&networksetup, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(root.join("order"), "VPN\nOffice LAN\niPhone USB\n").unwrap();
        let socket = root.join("helper.sock");
        let args = ["--socket", text(&socket), "--uid", "0", "--networksetup", text(&networksetup)];
        let helper = world.start("switchboard-helper", &args, &root.join("helper.log"));
        let mut house = Self {
            supervisor: None,
            _others: vec![router, sandbox, helper],
            operator,
            tenant,
            dir,
            world,
        };
        house.start_supervisor();
        house.ready().await;
        Some(house)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start_supervisor(&mut self) {
        let (config, log) = (self.path("supervisor.toml"), self.path("supervisor.log"));
        let args = ["run", "--config", text(&config)];
        self.supervisor = Some(self.world.start("switchboard-supervisor", &args, &log));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("supervisor.log")).unwrap_or_default()
    }

    /// Waits until the phone can send.
    async fn ready(&self) {
        let ready = eventually("the phone is ready", WITHIN, || async {
            let phones = self.operator.phones().await?;
            let ready = phones.iter().any(|phone| {
                phone.online && phone.state == PhoneState::Ready && phone.epoch.is_some()
            });
            Ok(if ready { Ok(()) } else { Err(format!("{phones:?}")) })
        });
        ready.await.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
    }

    /// An answer of the host's own API, asked there.
    async fn ask(&self, path: &str) -> Option<Value> {
        let token = std::fs::read_to_string(self.path("state/dispatch.token")).ok()?;
        let api = Api::new("http://127.0.0.1:7180", token.trim()).unwrap();
        self.world.enter("h");
        let answer = api.call::<Value>(Method::GET, path, None, None).await;
        self.world.enter("n");
        answer.ok()?.ok()
    }

    /// Waits until the host says this of its uplinks, and says how long that took.
    async fn network(&self, what: &str, chosen: &str, states: [UplinkState; 2]) -> Duration {
        let began = Instant::now();
        let said = eventually(what, WITHIN, || async {
            let host = self.ask("/v1/host").await.unwrap_or_default();
            let Ok(network) = serde_json::from_value::<HostNetwork>(host["network"].clone()) else {
                return Ok(Err(host.to_string()));
            };
            let now: Vec<_> = network.uplinks.iter().map(|uplink| uplink.state).collect();
            let right = network.chosen == chosen && now == states;
            Ok(if right { Ok(()) } else { Err(format!("{network:?}")) })
        });
        said.await.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
        began.elapsed()
    }

    /// Sends a message and waits until a phone has really sent it; how long that took.
    async fn send(&self, body: &str) -> Duration {
        let began = Instant::now();
        let message = self.tenant.send(&shelf::message("+12125550101", body).unwrap()).await;
        let id = message.unwrap().id;
        let sent = eventually("the message is sent", WITHIN, || async {
            let message = self.tenant.message(&id).await?;
            let sent = matches!(message.status, Status::Sent | Status::Delivered | Status::Read);
            Ok(if sent { Ok(()) } else { Err(format!("{message:?}")) })
        });
        sent.await.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
        began.elapsed()
    }

    /// How often the link has come up.
    fn links(&self) -> usize {
        self.log().matches("linked with the router").count()
    }

    async fn linked_more_often_than(&self, before: usize) {
        let linked = eventually("the link is there again", WITHIN, || async {
            Ok(if self.links() > before { Ok(()) } else { Err("not yet".to_owned()) })
        });
        linked.await.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
    }
}

/// Answers in the internet what proves it.
async fn anchor() {
    let listener = TcpListener::bind((INTERNET, 8080)).await.unwrap();
    TaskTracker::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = [0; 1024];
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nSuccess";
            if stream.read(&mut question).await.is_ok() {
                drop(stream.write_all(answer).await);
            }
        }
    });
}

const GOOD: UplinkState = UplinkState::Good;
const DOWN: UplinkState = UplinkState::Down;

#[tokio::test]
async fn a_dead_line_behind_a_living_router_is_noticed_and_the_other_uplink_named() {
    let network = "[network]\nstandby_every_ms = 5000\nhold_s = 1\nfail_back_s = 5\n\
                   [[network.uplinks]]\nname = \"office\"\ninterface = \"office\"\n\
                   [[network.uplinks]]\nname = \"hotspot\"\ninterface = \"hotspot\"\n";
    let Some(house) = House::new(network).await else { return };
    house.network("both are good", "office", [GOOD, GOOD]).await;
    house.world.run(CUT);
    // Nobody here can switch, so what is in use stays what it is, and it is said what would help.
    let lost = house.network("the office is lost", "office", [DOWN, GOOD]).await;
    let named = || house.log().matches("another uplink should be chosen").count();
    let advised = eventually("the other is named", WITHIN, || async {
        Ok(if named() > 0 { Ok(()) } else { Err(house.log()) })
    });
    advised.await.unwrap();
    println!("uplink lost -> the other named: {} ms", lost.as_millis());
    // The standby is watched as well, and an office that is back and good needs no advice.
    house.world.run(MEND);
    let back = house.network("the office is back", "office", [GOOD, GOOD]).await;
    println!("uplink back -> good again: {} ms", back.as_millis());
    // The line of the standby is unplugged: that is no reason to do anything.
    house.world.run("ip -n ${P}h link set hotspot down");
    house.network("the hotspot is down", "office", [GOOD, DOWN]).await;
    let log = house.log();
    assert_eq!((named(), log.matches("another uplink is chosen").count()), (1, 0), "{log}");
}

#[tokio::test]
async fn a_supervisor_goes_over_to_the_other_uplink_sends_over_it_and_comes_back() {
    let dir = "helper = \"helper.sock\"\nhold_s = 5\nfail_back_s = 10\n";
    let network = format!(
        "[network]\n{dir}[[network.uplinks]]\nname = \"office\"\nservice = \"Office LAN\"\n\
         [[network.uplinks]]\nname = \"hotspot\"\nservice = \"iPhone USB\"\n"
    );
    let Some(mut house) = House::new(&network).await else { return };
    let order = |house: &House| std::fs::read_to_string(house.path("order")).unwrap();
    let kept = house.path("state/network.order");
    house.network("both are good", "office", [GOOD, GOOD]).await;
    println!("a message, to begin with: {} ms", house.send("before").await.as_millis());
    let links = house.links();

    house.world.run(CUT);
    let sent = house.send("over the other").await;
    println!("uplink lost -> a message sent over the other: {} ms", sent.as_millis());
    assert!(house.links() > links, "the link was dialled anew");
    house.network("the hotspot is chosen", "hotspot", [DOWN, GOOD]).await;
    assert_eq!(order(&house), "VPN\niPhone USB\nOffice LAN\n");
    let mode = std::fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // A crash in the middle of the outage: the next one stays where the internet is.
    house.supervisor.take().unwrap().crash().unwrap();
    let links = house.links();
    house.start_supervisor();
    house.linked_more_often_than(links).await;
    house.network("still the hotspot", "hotspot", [DOWN, GOOD]).await;
    println!("a message after a crash: {} ms", house.send("after a crash").await.as_millis());
    assert_eq!(order(&house), "VPN\niPhone USB\nOffice LAN\n");

    let links = house.links();
    house.world.run(MEND);
    let back = house.network("the office is back", "office", [GOOD, GOOD]).await;
    println!("uplink back -> chosen again (10 s of proof): {} ms", back.as_millis());
    assert_eq!(order(&house), "VPN\nOffice LAN\niPhone USB\n");
    assert!(!kept.exists(), "nothing is left to undo");
    house.linked_more_often_than(links).await;
    println!("a message over the first again: {} ms", house.send("back").await.as_millis());
    let supervisor = house.supervisor.take().unwrap();
    assert!(supervisor.stop(WITHIN).await.unwrap().success());
}
