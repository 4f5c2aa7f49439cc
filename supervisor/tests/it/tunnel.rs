//! cloudflared as a child of the supervisor, both as processes. The program is a stand-in that does what is known of the
//! real one (`fake_cloudflared.py`).
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test starts processes, waits, and fails loudly"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Every wait for a condition ends by then.
const PATIENCE: Duration = Duration::from_secs(20);

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn alive(pid: i32) -> bool {
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.contains(") Z "));
    kill(Pid::from_raw(pid), None).is_ok() && !zombie
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The internet and Cloudflare's edge: answers 200 as an anchor and a supervisor do, or 530, as the edge does.
struct Edge {
    port: u16,
    lost: Arc<AtomicBool>,
}

impl Edge {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let lost = Arc::new(AtomicBool::new(false));
        let says = Arc::clone(&lost);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut line = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {}
                let health = line.starts_with("GET /healthz");
                let (status, body) = match (health, says.load(Ordering::Relaxed)) {
                    (true, true) => (530, "error code: 1033"),
                    (true, false) => (200, "{\"status\":\"ok\"}"),
                    (false, _) => (200, "Success"),
                };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                // Whoever has gone needs no answer.
                drop(stream.write_all(answer.as_bytes()));
            }
        });
        Self { port, lost }
    }
}

/// A folder with a configuration, and the supervisor that runs on it.
struct Mac {
    folder: tempfile::TempDir,
    metrics_port: u16,
    supervisor: Option<(Child, String)>,
}

impl Mac {
    fn new(edge: &Edge, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let metrics_port = free_port();
        let text = format!(
            "state_dir = \"state\"\nbridge = \"{}\"\n\
             [[phones]]\nnumber = \"+12025550191\"\nchat_db = \"/db\"\n[phones.bridge]\nbehaviour = \"good\"\n\
             [dispatch]\nlisten = \"127.0.0.1:0\"\n\
             [[network.anchors]]\nurl = \"http://127.0.0.1:{port}/anchor\"\nbody = \"Success\"\n\
             [cloudflared]\nrun = true\nprogram = \"{}\"\ntoken_file = \"tunnel/token\"\nmetrics_port = {metrics_port}\n\
             probe = \"http://127.0.0.1:{port}/healthz\"\npoll_ms = 40\nprobe_every_ms = 40\nunready_ms = 1500\n{more}",
            tests.join("fake_bridge.sh").display(),
            tests.join("fake_cloudflared.py").display(),
            port = edge.port,
        );
        std::fs::write(folder.path().join("supervisor.toml"), text).unwrap();
        std::fs::create_dir(folder.path().join("tunnel")).unwrap();
        let mac = Self { folder, metrics_port, supervisor: None };
        mac.say("token", "a-secret-token");
        mac.mode(0o600);
        mac
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("tunnel").join(name)
    }

    fn say(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn mode(&self, mode: u32) {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.path("token"), mode).unwrap();
    }

    fn start(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_switchboard-supervisor"))
            .args(["run", "--config"])
            .arg(self.folder.path().join("supervisor.toml"))
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let ready: Value =
            serde_json::from_str(&ready).unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        self.supervisor = Some((process, ready["dispatch"].as_str().unwrap().to_owned()));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let (process, _) = self.supervisor.as_ref().unwrap();
        kill(Pid::from_raw(process.id().try_into().unwrap()), signal).unwrap();
    }

    fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        self.signal(signal);
        self.supervisor.take().unwrap().0.wait().unwrap()
    }

    fn ask(&self, path: &str) -> String {
        let (_, address) = self.supervisor.as_ref().unwrap();
        let token =
            std::fs::read_to_string(self.folder.path().join("state/dispatch.token")).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
            token.trim()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// How the tunnel stands, as the dispatch API tells it.
    fn tunnel(&self) -> Value {
        let host: Value = serde_json::from_str(&self.ask("/v1/host")).unwrap();
        host["cloudflared"].clone()
    }

    fn wait_until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let until = Instant::now() + PATIENCE;
        loop {
            let tunnel = self.tunnel();
            if is(&tunnel) {
                return tunnel;
            }
            last.clone_from(&tunnel);
            assert!(Instant::now() < until, "waited for {what}: {last}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_ready(&self) {
        self.wait_until("the tunnel", |tunnel| tunnel["state"] == "ready");
    }

    fn starts(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("starts")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn pid(&self) -> i32 {
        self.starts().last().unwrap()["pid"].as_i64().unwrap().try_into().unwrap()
    }

    fn metric(&self, line: &str) -> bool {
        self.ask("/metrics").lines().any(|found| found == line)
    }
}

impl Drop for Mac {
    fn drop(&mut self) {
        if let Some((mut process, _)) = self.supervisor.take() {
            // The end of a failed test, too.
            drop(process.kill());
            drop(process.wait());
            for start in self.starts() {
                let pid: i32 = start["pid"].as_i64().unwrap().try_into().unwrap();
                kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or(());
            }
        }
    }
}

#[test]
fn a_tunnel_is_started_as_it_should_be_told_and_ended_in_order() {
    let mut mac = Mac::new(&Edge::new(), "");
    mac.start();
    mac.wait_ready();
    let tunnel = mac.tunnel();
    assert_eq!((&tunnel["connections"], &tunnel["why"]), (&Value::from(4), &Value::Null));
    let start = &mac.starts()[0];
    assert_eq!(start["token"], "a-secret-token");
    let line: Vec<&str> =
        start["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert!(!line.join(" ").contains("a-secret-token"), "`ps` shows arguments: {line:?}");
    wait_for("metrics", || mac.metric("switchboard_cloudflared_ready 1").then_some(()));
    wait_for("a question through the name", || {
        mac.ask("/metrics").contains("probes_total{outcome=\"answered\"}").then_some(())
    });
    let pid = mac.pid();
    // Its lines are ours, under its own name, and as grave as it says.
    wait_for("its log", || {
        let own = "INFO cloudflared: Registered tunnel connection connIndex=0";
        mac.log().contains(own).then_some(())
    });
    // What is in flight keeps it for its grace, and the supervisor waits for that.
    mac.say("flight", "");
    assert!(mac.end(Signal::SIGTERM).success());
    assert!(!alive(pid));
    assert_eq!(std::fs::read_to_string(mac.path("ends")).unwrap(), "TERM\n");
    assert!(mac.log().contains("Tunnel server stopped"), "it was not killed: {}", mac.log());
}

#[test]
fn one_that_is_not_ready_or_not_heard_through_is_restarted_and_not_for_ever() {
    let edge = Edge::new();
    let mut mac = Mac::new(&edge, "restarts_per_hour = 2\n");
    mac.start();
    mac.wait_ready();
    mac.say("ready", "503");
    wait_for("a restart", || (mac.starts().len() == 2).then_some(()));
    std::fs::remove_file(mac.path("ready")).unwrap();
    mac.wait_ready();
    edge.lost.store(true, Ordering::Relaxed);
    wait_for("another restart", || (mac.starts().len() == 3).then_some(()));
    let capped = mac.wait_until("the cap", |tunnel| tunnel["capped"] == true);
    assert_eq!(capped["why"], "restarted_too_often");
    assert_eq!((&capped["restarts_last_hour"], &capped["restarts"]), (&2.into(), &2.into()));
    assert!(capped["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{capped}");
    for why in ["unready", "lost"] {
        let line = format!("switchboard_cloudflared_restarts_total{{why=\"{why}\"}} 1");
        assert!(mac.metric(&line), "{why}: {}", mac.ask("/metrics"));
    }
    edge.lost.store(false, Ordering::Relaxed);
    mac.wait_until("the end of the cap", |tunnel| tunnel["capped"] == false);
    assert_eq!(mac.starts().len(), 3);
}

#[test]
fn one_that_ends_is_started_again_and_one_that_cannot_run_is_told_with_its_remedy() {
    let mut mac = Mac::new(&Edge::new(), "");
    mac.start();
    mac.wait_ready();
    kill(Pid::from_raw(mac.pid()), Signal::SIGKILL).unwrap();
    wait_for("a second life", || (mac.starts().len() == 2).then_some(()));
    mac.wait_ready();
    // It does not understand its arguments, which no new try will change.
    mac.say("exit", "255");
    kill(Pid::from_raw(mac.pid()), Signal::SIGKILL).unwrap();
    let told = mac.wait_until("usage", |tunnel| tunnel["why"] == "usage");
    assert_eq!(told["last_exit"]["code"], 255);
    assert!(told["remedy"].as_str().unwrap().contains("update it"));
    mac.end(Signal::SIGTERM);

    std::fs::remove_file(mac.path("exit")).unwrap();
    let other = TcpListener::bind(("127.0.0.1", mac.metrics_port)).unwrap();
    let starts = mac.starts().len();
    mac.start();
    let told = mac.wait_until("the port", |tunnel| tunnel["why"] == "port_taken");
    assert!(told["remedy"].as_str().unwrap().contains("metrics_port"));
    mac.end(Signal::SIGTERM);
    drop(other);
    mac.mode(0o644);
    mac.start();
    mac.wait_until("the token", |tunnel| tunnel["why"] == "token_exposed");
    assert_eq!(mac.starts().len(), starts, "with a token that others can read nothing is started");
    mac.end(Signal::SIGTERM);
}

#[test]
fn what_a_killed_supervisor_left_behind_is_ended_before_a_new_one_starts() {
    let mut mac = Mac::new(&Edge::new(), "");
    mac.start();
    mac.wait_ready();
    let orphan = mac.pid();
    mac.end(Signal::SIGKILL);
    assert!(alive(orphan), "macOS ends nobody's children with him");
    mac.start();
    mac.wait_ready();
    assert!(!alive(orphan));
    assert_eq!(mac.starts().len(), 2);
    mac.end(Signal::SIGTERM);
}
