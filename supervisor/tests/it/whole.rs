//! The whole supervisor as a process, with bridges that misbehave on request, through its dispatch API.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test starts processes, waits, and fails loudly"
)]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
#[cfg(target_os = "linux")]
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Every wait for a condition ends by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// One supervisor with its folder.
struct House {
    dir: tempfile::TempDir,
    process: Child,
    address: String,
    token: String,
    phones: Vec<String>,
    ended: bool,
}

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

fn supervisor() -> Command {
    Command::new(env!("CARGO_BIN_EXE_switchboard-supervisor"))
}

fn write_config(dir: &Path, behaviours: &[&str], more: &str) -> PathBuf {
    let phones: Vec<_> =
        behaviours.iter().enumerate().map(|(n, behaviour)| (n, *behaviour, *behaviour)).collect();
    write_phones(dir, &phones, more)
}

/// Phones by the last digit of their number, label and behaviour.
fn write_phones(dir: &Path, phones: &[(usize, &str, &str)], more: &str) -> PathBuf {
    let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_bridge.sh");
    let mut text = format!("state_dir = \"state\"\nbridge = {:?}\n", fake.display().to_string());
    for (n, label, behaviour) in phones {
        write!(
            text,
            "[[phones]]\nnumber = \"+1202555019{n}\"\nlabel = \"{label}\"\nchat_db = \"/db{n}\"\n\
             [phones.bridge]\nbehaviour = \"{behaviour}\"\n"
        )
        .unwrap();
    }
    text.push_str(
        "[dispatch]\nlisten = \"127.0.0.1:0\"\n[heartbeat]\nevery_ms = 300\nmissed = 3\nstart_deadline_ms = 1500\n\
         [restart]\nintensity = 2\n",
    );
    text.push_str(more);
    let file = dir.join("supervisor.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn alive(pid: i32) -> bool {
    // A zombie that nobody reaps still answers; it is dead all the same.
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.contains(") Z "));
    kill(Pid::from_raw(pid), None).is_ok() && !zombie
}

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

/// Starts a supervisor, and waits until it says where it listens.
fn begin(dir: &Path) -> (Child, String) {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
    let mut process = supervisor()
        .args(["run", "--config"])
        .arg(dir.join("supervisor.toml"))
        .env("RUST_LOG", "info")
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap_or_else(|error| {
        panic!("{error}: {}", std::fs::read_to_string(dir.join("log")).unwrap())
    });
    (process, ready["dispatch"].as_str().unwrap().to_owned())
}

impl House {
    fn new(behaviours: &[&str]) -> Self {
        Self::with(behaviours, "")
    }

    /// With more tables in its configuration.
    fn with(behaviours: &[&str], more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_config(dir.path(), behaviours, more);
        let (process, address) = begin(dir.path());
        let token = std::fs::read_to_string(dir.path().join("state/dispatch.token")).unwrap();
        let mut house = Self {
            dir,
            process,
            address,
            token: token.trim().to_owned(),
            phones: Vec::new(),
            ended: false,
        };
        let list = house.get("/v1/phones").body;
        let id_of = |behaviour: &&str| {
            let data = list["data"].as_array().unwrap();
            let phone = data.iter().find(|phone| phone["label"] == **behaviour).unwrap();
            phone["id"].as_str().unwrap().to_owned()
        };
        house.phones = behaviours.iter().map(id_of).collect();
        house
    }

    /// Another supervisor in the place of one that has ended.
    fn restart(&mut self) {
        assert!(self.ended);
        (self.process, self.address) = begin(self.dir.path());
        self.ended = false;
    }

    fn raw(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn ask_as(&self, token: &str, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
        Answer { status, head: head.to_lowercase(), body }
    }

    fn get(&self, path: &str) -> Answer {
        self.ask_as(&self.token, "GET", path, "")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask_as(&self.token, "POST", path, &body.to_string())
    }

    fn phone(&self, n: usize) -> Value {
        self.get(&format!("/v1/phones/{}", self.phones[n])).body
    }

    fn wait_state(&self, n: usize, state: &str) -> Value {
        wait_for(&format!("phone {n} {state}; log:\n{}", self.log()), || {
            Some(self.phone(n)).filter(|phone| phone["state"] == state)
        })
    }

    fn order(&self, n: usize, order: &str) {
        let answer = self.post(&format!("/v1/phones/{}/{order}", self.phones[n]), &json!({}));
        assert_eq!(answer.status, 202, "{}", answer.body);
    }

    fn send(&self, n: usize, body: &Value) -> Answer {
        self.post(&format!("/v1/phones/{}/messages", self.phones[n]), body)
    }

    fn folder(&self, n: usize) -> PathBuf {
        self.dir.path().join("state/phones").join(&self.phones[n])
    }

    /// Process ids of every bridge (and grandchild) of a phone so far.
    fn pids(&self, n: usize) -> Vec<i32> {
        std::fs::read_to_string(self.folder(n).join("pids"))
            .unwrap_or_default()
            .lines()
            .map(|line| line.parse().unwrap())
            .collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let answer = self.get("/metrics");
        let text = answer.body.as_str().unwrap().to_owned();
        text.lines()
            .find(|line| line.starts_with(name) && line.contains(label))
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), signal).unwrap();
    }

    fn wait_end(&mut self) -> ExitStatus {
        let process = &mut self.process;
        let status = wait_for("the supervisor's end", || process.try_wait().unwrap());
        self.ended = true;
        status
    }

    fn wait_all_gone(&self) {
        for n in 0..self.phones.len() {
            for pid in self.pids(n) {
                wait_for(&format!("the end of process {pid} of phone {n}"), || {
                    (!alive(pid)).then_some(())
                });
            }
        }
    }

    /// Ends the supervisor in order and proves that it left nobody behind.
    fn finish(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_end();
        assert!(status.success(), "{status}: {}", self.log());
        self.wait_all_gone();
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if !self.ended {
            // A test has failed; what it says is more interesting than what happens here.
            drop(self.process.kill());
            drop(self.process.wait());
            for n in 0..self.phones.len() {
                for pid in self.pids(n) {
                    // Most of them are gone already.
                    kill(Pid::from_raw(-pid), Signal::SIGKILL).unwrap_or_default();
                }
            }
        }
    }
}

fn text() -> Value {
    json!({"to": "+12025550100", "text": "hello"})
}

#[test]
fn a_message_is_handed_over_and_its_events_are_heard() {
    let house = House::new(&["good"]);
    let phone = house.wait_state(0, "ready");
    assert_eq!(phone["epoch"], 1);
    assert_eq!(house.get("/readyz").status, 200);

    let mut listener = house.raw(&format!(
        "GET /v1/phones/{}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        house.phones[0], house.token
    ));
    let mut head = [0; 64];
    listener.read_exact(&mut head).unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200"));

    let answer = house.send(0, &text());
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(answer.body["answer"], "accepted");
    assert_eq!(answer.body["event"]["event"]["message"], answer.body["message"]);

    let mut heard = String::new();
    while !heard.contains("event: started") {
        let mut more = [0; 1024];
        let read = listener.read(&mut more).unwrap();
        assert!(read > 0, "the stream ended after: {heard}");
        heard.push_str(&String::from_utf8_lossy(&more[..read]));
    }
    let journal = phone["bridge"]["journal"].as_str().unwrap();
    assert!(heard.contains(&format!("id: {journal}:1")), "{heard}");

    // Who comes back with the first id gets the second event again, and only that.
    let mut listener = house.raw(&format!(
        "GET /v1/phones/{}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nlast-event-id: {journal}:1\r\n\r\n",
        house.phones[0], house.token
    ));
    let mut heard = String::new();
    while !heard.contains("event: started") {
        let mut more = [0; 1024];
        let read = listener.read(&mut more).unwrap();
        assert!(read > 0);
        heard.push_str(&String::from_utf8_lossy(&more[..read]));
    }
    assert!(!heard.contains("event: accepted") && !heard.contains("lagged"), "{heard}");

    let lines = wait_for("the acknowledgement", || {
        let lines = std::fs::read_to_string(house.folder(0).join("lines")).unwrap();
        lines.contains("\"type\":\"ack\"").then_some(lines)
    });
    for wanted in ["\"type\":\"lease\"", "\"type\":\"replay\"", "\"epoch\":1"] {
        assert!(lines.contains(wanted), "{wanted} in {lines}");
    }
    assert!(house.metric("switchboard_events_total", "local").unwrap() >= 2.0);
    assert!(!house.log().contains("hello\""), "a text in the log");
    house.finish();
}

#[test]
fn the_api_wants_its_token_and_names_what_is_wrong() {
    let house = House::new(&["good"]);
    house.wait_state(0, "ready");
    let phone = format!("/v1/phones/{}", house.phones[0]);
    for token in ["", "wrong", &house.token[1..], &format!("{}x", house.token)] {
        let answer = house.ask_as(token, "GET", "/v1/phones", "");
        assert_eq!((answer.status, &answer.body["code"]), (401, &json!("unauthorised")));
        assert_eq!(answer.body["type"], "urn:switchboard:problem:unauthorised");
        assert!(answer.head.contains("content-type: application/problem+json"));
        assert!(answer.head.contains("www-authenticate: bearer"));
    }
    assert_eq!(house.ask_as("", "GET", "/healthz", "").status, 200);
    assert_eq!(house.ask_as("", "GET", "/v1/nowhere", "").status, 401);

    let messages = format!("{phone}/messages");
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(1024 * 1024));
    let table = [
        ("GET", "/v1/phones/pho_unknown", "", 404, "phone_not_found"),
        ("GET", "/v1/nowhere", "", 404, "not_found"),
        ("GET", "/nowhere", "", 404, "not_found"),
        ("DELETE", phone.as_str(), "", 405, "method_not_allowed"),
        ("POST", messages.as_str(), "{\"to\":", 400, "malformed"),
        ("POST", messages.as_str(), "[]", 400, "malformed"),
        ("POST", messages.as_str(), "{}", 422, "invalid"),
        ("POST", messages.as_str(), &large, 413, "too_large"),
        ("POST", "/v1/phones/x/stop", "", 404, "phone_not_found"),
    ];
    for (method, path, body, status, code) in table {
        let answer = house.ask_as(&house.token, method, path, body);
        assert_eq!(
            (answer.status, &answer.body["code"]),
            (status, &json!(code)),
            "{method} {path}"
        );
        let kind = format!("urn:switchboard:problem:{code}");
        assert_eq!(answer.body["type"], kind, "{method} {path}");
        assert!(answer.head.contains("content-type: application/problem+json"), "{path}");
        assert!(answer.head.contains(answer.body["request_id"].as_str().unwrap()));
    }
    let answer = house.post(&messages, &json!({"to": "nobody", "text": ""}));
    let pointers: Vec<&str> = answer.body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(pointers, ["/to", "/text"]);
    house.finish();
}

#[test]
fn the_document_is_served_to_everybody_on_this_mac() {
    let house = House::new(&["good"]);
    let answer = house.ask_as("", "GET", "/openapi.json", "");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let file: Value =
        serde_json::from_str(include_str!("../../src/dispatch/openapi.json")).unwrap();
    assert_eq!(answer.body, file);
    for path in file["paths"].as_object().unwrap().keys() {
        let there =
            house.ask_as(&house.token, "PATCH", &path.replace("{id}", &house.phones[0]), "");
        assert_eq!(there.status, 405, "{path}");
    }
    house.finish();
}

#[test]
fn orders_stop_start_and_restart_a_bridge() {
    let house = House::new(&["grandchild"]);
    house.wait_state(0, "ready");
    house.order(0, "stop");
    house.wait_state(0, "stopped");
    house.wait_all_gone();
    assert_eq!(house.get("/readyz").status, 503);
    let refused = house.send(0, &text());
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("bridge_not_running")));
    assert!(refused.head.contains("retry-after"));
    house.order(0, "start");
    let first = house.wait_state(0, "ready")["bridge"]["pid"].clone();
    house.order(0, "restart");
    wait_for("another process", || {
        let phone = house.phone(0);
        (phone["state"] == "ready" && phone["bridge"]["pid"] != first).then_some(())
    });
    house.order(0, "drain");
    house.wait_state(0, "stopped");
    house.finish();
}

#[test]
fn a_crash_loop_is_parked_and_its_log_is_kept() {
    let house = House::new(&["exit:3", "good"]);
    let phone = house.wait_state(0, "parked");
    assert_eq!(phone["last_exit"], json!({"how": "code", "code": 3}));
    assert_eq!(house.pids(0).len(), 3, "one start and two restarts");
    assert_eq!(house.metric("switchboard_parked_total", &house.phones[0]), Some(1.0));
    // The other phone does not care.
    house.wait_state(1, "ready");
    assert_eq!(house.send(1, &text()).body["answer"], "accepted");
    house.finish();
}

#[test]
fn exits_for_an_outside_cause_are_waited_out() {
    let house = House::new(&["exit:77", "exit:78", "exit:69"]);
    for (n, cause) in ["permission", "configuration", "unavailable"].iter().enumerate() {
        let phone = house.wait_state(n, "backoff");
        assert_eq!(phone["waits_for"], *cause);
        assert_eq!(house.pids(n).len(), 1);
    }
    house.finish();
}

#[test]
fn a_bridge_that_asks_to_be_tried_again_is() {
    let house = House::new(&["exit:75"]);
    // Like a crash: again at once, then later, then parked.
    let phone = house.wait_state(0, "parked");
    assert_eq!(phone["last_exit"], json!({"how": "code", "code": 75}));
    assert_eq!(house.pids(0).len(), 3);
    house.finish();
}

#[test]
fn a_slow_start_within_its_time_is_no_hang() {
    let house = House::new(&["slow"]);
    house.wait_state(0, "ready");
    assert_eq!(house.pids(0).len(), 1, "it was not restarted");
    house.finish();
}

#[test]
fn a_bridge_that_takes_too_much_memory_is_killed_and_restarted() {
    let house = House::with(&["eats", "good"], "[memory]\nsoft_mib = 30\nhard_mib = 40\n");
    wait_for("it is killed for its memory", || {
        (house.phone(0)["last_exit"] == json!({"how": "killed", "why": "memory"})).then_some(())
    });
    wait_for("a second process", || (house.pids(0).len() >= 2).then_some(()));
    assert_eq!(house.pids(1).len(), 1, "the other one is as small as ever");
    house.finish();
}

#[test]
fn a_bridge_that_works_without_end_is_killed_and_restarted() {
    let house =
        House::with(&["busy", "good"], "[cpu]\nsoft_percent = 4\nhard_percent = 5\nover_s = 2\n");
    wait_for("it is killed for its share of the processor", || {
        (house.phone(0)["last_exit"] == json!({"how": "killed", "why": "cpu"})).then_some(())
    });
    let first = house.pids(0)[0];
    wait_for("its end", || (!alive(first)).then_some(()));
    wait_for("a second process", || (house.pids(0).len() >= 2).then_some(()));
    assert!(house.metric("switchboard_bridge_cpu_percent", &house.phones[0]).unwrap() > 5.0);
    assert_eq!(house.pids(1).len(), 1, "the other one works as little as ever");
    house.finish();
}

#[test]
fn a_bridge_that_works_too_much_is_replaced_in_order() {
    let house =
        House::with(&["busy", "good"], "[cpu]\nsoft_percent = 5\nhard_percent = 0\nover_s = 2\n");
    wait_for("a second process", || (house.pids(0).len() >= 2).then_some(()));
    let phone = house.phone(0);
    assert_eq!(
        phone["last_exit"],
        json!({"how": "replaced", "why": "cpu"}),
        "drained, not killed: {phone}"
    );
    assert_eq!(house.pids(1).len(), 1, "the other one works as little as ever");
    house.finish();
}

#[test]
fn a_supervisor_that_is_killed_leaves_no_bridge_and_the_next_one_adopts_none() {
    let mut house = House::new(&["good", "grandchild"]);
    for n in 0..2 {
        house.wait_state(n, "ready");
    }
    let before: Vec<Vec<i32>> = (0..2).map(|n| house.pids(n)).collect();
    house.signal(Signal::SIGKILL);
    house.wait_end();
    // The end of their input tells them.
    for leader in [before[0][0], before[1][0]] {
        wait_for("the end of an orphan", || (!alive(leader)).then_some(()));
    }
    house.restart();
    for (n, before) in before.iter().enumerate() {
        house.wait_state(n, "ready");
        let new = house.pids(n).split_off(before.len());
        assert!(!new.is_empty() && new.iter().all(|pid| !before.contains(pid)), "{new:?}");
    }
    // What outlived its bridge has no supervisor by now that could have known of it.
    kill(Pid::from_raw(-before[1][0]), Signal::SIGKILL).unwrap_or_default();
    house.finish();
}

/// The real one ends itself when it hangs; whatever does not is ended by whoever needs the phone.
#[cfg(target_os = "linux")]
#[test]
fn what_hangs_and_has_lost_its_supervisor_is_ended_by_the_next_one() {
    let mut house = House::new(&["hangs", "good"]);
    house.wait_state(0, "ready");
    let hung = house.pids(0)[0];
    house.signal(Signal::SIGKILL);
    house.wait_end();
    // Its input ends, its output breaks, and whoever started it is gone.
    std::thread::sleep(Duration::from_secs(1));
    assert!(alive(hung));
    let began = Instant::now();
    house.restart();
    house.wait_state(1, "ready");
    assert!(alive(hung), "nobody else waits for it");
    wait_for("its end", || (!alive(hung)).then_some(()));
    // TERM came first, and it had its time.
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    for signal in ["SIGTERM", "SIGKILL"] {
        let counted = house.metric("switchboard_orphans_signalled_total", signal);
        assert_eq!(counted, Some(1.0), "{signal}");
    }
    // Two that were refused meanwhile are as many as these settings allow before a phone is parked.
    house.order(0, "restart");
    house.wait_state(0, "ready");
    let pids = house.pids(0);
    assert!(pids.iter().filter(|pid| alive(**pid)).count() == 1, "{pids:?}");
    println!("replaced within {:?}", began.elapsed());
    // It hangs as the first one did, and belongs to its supervisor.
    house.signal(Signal::SIGKILL);
    house.wait_end();
    for pid in house.pids(0) {
        kill(Pid::from_raw(-pid), Signal::SIGKILL).unwrap_or_default();
    }
}

/// Another supervisor is there and serves the phone: its bridge is nobody's orphan.
#[cfg(target_os = "linux")]
#[test]
fn a_bridge_whose_parent_lives_is_waited_for_and_not_ended() {
    let house = House::new(&["good"]);
    house.wait_state(0, "ready");
    house.order(0, "stop");
    house.wait_state(0, "stopped");
    // As somebody who looks at it by hand would start it.
    let config = house.folder(0).join("bridge.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("\"good\"", "\"hangs\"");
    let by_hand = house.dir.path().join("by-hand.toml");
    std::fs::write(&by_hand, text).unwrap();
    let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_bridge.sh");
    let mut stray = Command::new(fake)
        .args(["run", "--config"])
        .arg(&by_hand)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let stray_pid = i32::try_from(stray.id()).unwrap();
    wait_for("it holds the phone", || {
        let held = std::fs::read_to_string(house.folder(0).join("bridge.lock")).ok()?;
        held.contains(&stray_pid.to_string()).then_some(())
    });
    house.order(0, "start");
    house.wait_state(0, "ready");
    house.order(0, "restart");
    std::thread::sleep(Duration::from_secs(6));
    assert!(alive(stray_pid));
    assert_eq!(house.metric("switchboard_orphans_signalled_total", ""), None);
    // What it waits with ends with it.
    kill(Pid::from_raw(-stray_pid), Signal::SIGKILL).unwrap();
    stray.wait().unwrap();
    house.finish();
}

#[test]
fn a_bridge_that_is_never_ready_lives() {
    let house = House::new(&["never_ready"]);
    let phone = house.wait_state(0, "not_ready");
    wait_for("the reason", || {
        (house.phone(0)["not_ready"][0]["reason"] == "account_offline").then_some(())
    });
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(house.phone(0)["bridge"]["pid"], phone["bridge"]["pid"]);
    assert_eq!(house.get("/readyz").status, 503);
    house.finish();
}

#[test]
fn bridges_without_a_sign_of_life_are_killed_and_restarted() {
    let house = House::new(&["mute", "stops_beating", "other_protocol"]);
    for (n, why) in ["no_hello", "no_heartbeat", "other_protocol"].iter().enumerate() {
        wait_for(&format!("phone {n} killed for {why}"), || {
            (house.phone(n)["last_exit"] == json!({"how": "killed", "why": why})).then_some(())
        });
        wait_for("a second process", || (house.pids(n).len() >= 2).then_some(()));
        let first = house.pids(n)[0];
        wait_for("the first one's end", || (!alive(first)).then_some(()));
    }
    assert!(house.metric("switchboard_heartbeats_missed_total", &house.phones[1]).unwrap() >= 3.0);
    house.finish();
}

#[test]
fn floods_hold_up_nobody_else() {
    let house = House::new(&["floods_stdout", "floods_stderr", "good"]);
    house.wait_state(2, "ready");
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(house.send(2, &text()).body["answer"], "accepted");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // How soon a flood has come so far is the machine's affair: the other bridge may be done before.
    wait_for("a hundred refused lines", || {
        (house.metric("switchboard_lines_refused_total", &house.phones[0])? > 100.0).then_some(())
    });
    wait_for("a full ring", || {
        let log = house.get(&format!("/v1/phones/{}/log", house.phones[1]));
        (log.body["data"].as_array()?.len() == 500).then_some(())
    });
    // Refused lines do not kill: the heartbeats between them count.
    house.wait_state(0, "ready");
    assert_eq!(house.pids(0).len(), 1);
    // What the flooded bridges said a thousand times is not a thousand times in our log.
    assert!(house.log().lines().count() < 5_000);
    house.finish();
}

#[test]
fn broken_lines_are_counted_and_survived() {
    let house = House::new(&["oversized", "half_line"]);
    house.wait_state(0, "ready");
    assert_eq!(house.pids(0).len(), 1);
    assert_eq!(house.metric("switchboard_lines_refused_total", "too_long"), Some(1.0));
    house.wait_state(1, "parked");
    assert_eq!(house.metric("switchboard_lines_refused_total", "cut"), Some(3.0));
    house.finish();
}

#[test]
fn a_bridge_that_cannot_be_commanded_is_killed() {
    let house = House::new(&["closes_stdin", "deaf"]);
    house.wait_state(1, "ready");
    // More than a pipe holds; the deaf one reads none of it.
    let large = json!({"to": "+12025550100", "text": "x".repeat(19_000)});
    let senders: Vec<_> = (0..12).map(|_| large.clone()).collect();
    std::thread::scope(|scope| {
        for body in &senders {
            scope.spawn(|| house.send(1, body));
        }
    });
    for n in 0..2 {
        wait_for(&format!("phone {n} killed"), || {
            (house.phone(n)["last_exit"] == json!({"how": "killed", "why": "not_reading"}))
                .then_some(())
        });
    }
    let mut house = house;
    house.signal(Signal::SIGTERM);
    // Both ignore a stop over the pipe; a second signal makes it short.
    std::thread::sleep(Duration::from_millis(300));
    house.signal(Signal::SIGTERM);
    assert!(house.wait_end().success());
    house.wait_all_gone();
}

#[test]
fn a_bridge_that_ignores_everything_is_gone_in_time() {
    let mut house = House::new(&["ignores_stop", "good"]);
    house.wait_state(0, "ready");
    let began = Instant::now();
    house.signal(Signal::SIGTERM);
    assert!(house.wait_end().success());
    let took = began.elapsed();
    assert!(took > Duration::from_secs(14) && took < Duration::from_secs(20), "{took:?}");
    house.wait_all_gone();
}

#[test]
fn a_changed_configuration_touches_only_what_differs() {
    let house = House::new(&["good", "never_ready", "grandchild"]);
    house.wait_state(0, "ready");
    house.wait_state(1, "not_ready");
    house.wait_state(2, "ready");
    let phones = [(0, "renamed", "good"), (1, "mended", "good"), (3, "new", "good")];
    write_phones(house.dir.path(), &phones, "");
    let answer = house.post("/v1/reload", &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["stopped"], json!([house.phones[2]]));
    assert_eq!(answer.body["replaced"], json!([house.phones[1]]));
    assert_eq!(answer.body["started"].as_array().unwrap().len(), 1);
    assert_eq!((&answer.body["untouched"], &answer.body["needs_restart"]), (&json!(1), &json!([])));

    // The same bridge as before, under another name.
    assert_eq!(house.pids(0).len(), 1);
    assert!(alive(house.pids(0)[0]));
    assert_eq!(
        (&house.phone(0)["label"], &house.phone(0)["state"]),
        (&json!("renamed"), &json!("ready"))
    );
    // Another bridge with the new settings, after the end of the old one.
    house.wait_state(1, "ready");
    let pids = house.pids(1);
    assert!(pids.len() == 2 && !alive(pids[0]), "{pids:?}");
    // Gone, with all that it had started.
    assert_eq!(house.get(&format!("/v1/phones/{}", house.phones[2])).status, 404);
    for pid in house.pids(2) {
        wait_for("the end of what was stopped", || (!alive(pid)).then_some(()));
    }
    let new = answer.body["started"][0].as_str().unwrap().to_owned();
    wait_for("the new phone", || {
        Some(house.get(&format!("/v1/phones/{new}"))).filter(|phone| phone.body["state"] == "ready")
    });
    // Nothing has changed since.
    let answer = house.post("/v1/reload", &json!({}));
    assert_eq!((answer.status, &answer.body["untouched"]), (200, &json!(3)), "{}", answer.body);
    assert_eq!(house.metric("switchboard_reloads_total", "taken"), Some(2.0));
    house.finish();
}

#[test]
fn periods_are_taken_by_bridges_that_run() {
    let house = House::new(&["good"]);
    house.wait_state(0, "ready");
    // It says that it is alive every 100 ms, which is not enough any more.
    let file = write_config(house.dir.path(), &["good"], "");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("every_ms = 300", "every_ms = 10")).unwrap();
    assert_eq!(house.post("/v1/reload", &json!({})).body["untouched"], 1);
    wait_for("a restart for want of a sign of life", || (house.pids(0).len() > 1).then_some(()));
    house.finish();
}

#[test]
fn a_configuration_that_cannot_be_used_changes_nothing_and_what_is_fixed_is_named() {
    let house = House::new(&["good"]);
    house.wait_state(0, "ready");
    let file = house.dir.path().join("supervisor.toml");
    for (text, named) in [
        ("state_dir = \"state\"\nphones = 4\n".to_owned(), "supervisor.toml:2"),
        (std::fs::read_to_string(&file).unwrap().replace("+12025550190", "12"), "`number`"),
        (std::fs::read_to_string(&file).unwrap().replace("missed = 3", "missed = 0"), "`missed`"),
    ] {
        let good = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text).unwrap();
        let answer = house.post("/v1/reload", &json!({}));
        assert_eq!((answer.status, &answer.body["code"]), (422, &json!("invalid_configuration")));
        assert!(answer.body["detail"].as_str().unwrap().contains(named), "{}", answer.body);
        std::fs::write(&file, good).unwrap();
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(house.post("/v1/reload", &json!({})).status, 422);
    assert_eq!((house.pids(0).len(), &house.phone(0)["state"]), (1, &json!("ready")));

    write_config(house.dir.path(), &["good"], "[router]\nurl = \"wss://router.example\"\n");
    let answer = house.post("/v1/reload", &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["needs_restart"], json!(["[router]"]));
    assert_eq!(house.pids(0).len(), 1);
    house.finish();
}

#[test]
fn what_watches_the_machine_follows_the_configuration_and_no_bridge_is_touched() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file.display().to_string()
    };
    let pmset = program(
        "pmset",
        "#!/bin/sh\necho \"Now drawing from 'Battery Power'\"\n\
         printf ' -InternalBattery-0 (id=1)\\t60%%; discharging; 4:00 remaining present: true\\n'\n",
    );
    let caffeinate = program(
        "caffeinate",
        &format!("#!/bin/sh\necho $$ >> {}/awake\nexec sleep 1000\n", dir.path().display()),
    );
    let mac = |low: u8| format!("[power]\npmset = {pmset:?}\npoll_ms = 50\nlow_percent = {low}\n");
    let house = House::with(&["good", "never_ready"], &mac(30));
    house.wait_state(0, "ready");
    house.wait_state(1, "not_ready");
    let before = (house.pids(0), house.pids(1));
    let host = || house.get("/v1/host").body;
    wait_for("the battery", || (host()["power"]["level"] == "battery").then_some(()));
    let reload = |more: &str, taken: Value| {
        write_config(house.dir.path(), &["good", "never_ready"], more);
        let answer = house.post("/v1/reload", &json!({})).body;
        assert_eq!((&answer["taken"], &answer["needs_restart"]), (&taken, &json!([])), "{answer}");
        assert_eq!(answer["untouched"], 2, "{answer}");
    };

    // What is low is another charge now: the phones take no new work, and no bridge has noticed.
    reload(&mac(70), json!(["[power]"]));
    house.wait_state(0, "not_ready");
    assert_eq!(host()["power"]["level"], "low");
    // Awake, too, beside the same watch.
    reload(&format!("{}caffeinate = {caffeinate:?}\n", mac(70)), json!(["[power]"]));
    let awake = wait_for("caffeinate", || {
        std::fs::read_to_string(dir.path().join("awake")).ok()?.trim().parse::<i32>().ok()
    });
    // Nothing is watched any more: nothing is low, and nobody is kept awake.
    reload("", json!(["[power]"]));
    house.wait_state(0, "ready");
    assert_eq!(host()["power"], Value::Null);
    wait_for("caffeinate's end", || (!alive(awake)).then_some(()));

    // Pairs come, change their periods and go.
    let pair = |every: u32| {
        format!("[[canary]]\nfrom = \"+12025550190\"\nto = \"+12025550191\"\nevery_s = {every}\n")
    };
    reload(&pair(1), json!(["[[canary]]"]));
    wait_for("one was due", || (host()["canaries"][0]["skipped"].as_u64()? > 0).then_some(()));
    reload(&pair(900), json!(["[[canary]]"]));
    assert!(host()["canaries"][0]["skipped"].as_u64().unwrap() > 0, "what was counted is kept");
    // An uplink that is not there, asked as its settings say.
    let network = |down: u32| {
        format!(
            "[network]\nevery_ms = 50\ntimeout_ms = 50\ndown_after = {down}\n[[network.anchors]]\n\
             url = \"http://127.0.0.1:9/\"\nbody = \"x\"\n[[network.uplinks]]\nname = \"office\"\ninterface = \"none9\"\n"
        )
    };
    reload(&network(1_000), json!(["[network]", "[[canary]]"]));
    assert_eq!(host()["canaries"], json!([]));
    let state = || host()["network"]["uplinks"][0]["state"].clone();
    wait_for("it is watched", || (state() == "unknown").then_some(()));
    reload(&network(2), json!(["[network]"]));
    wait_for("it is down", || (state() == "down").then_some(()));
    reload("[messages_app]\nprobe_every_s = 7\n", json!(["[network]", "[messages_app]"]));
    wait_for("nothing is watched", || host()["network"].is_null().then_some(()));
    // The same bridges all the while.
    assert_eq!((house.pids(0), house.pids(1)), before);
    assert!(alive(before.0[0]) && alive(before.1[0]));
    house.finish();
}

#[test]
fn what_is_logged_follows_the_configuration_where_the_environment_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let write = |log: &str| {
        let file = write_config(dir.path(), &["good"], "");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("log = \"{log}\"\n{text}")).unwrap();
        file
    };
    let file = write("warn");
    let log = dir.path().join("log");
    let mut process = supervisor()
        .args(["run", "--config"])
        .arg(&file)
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let logged = || std::fs::read_to_string(&log).unwrap();
    assert!(!logged().contains("running"), "{}", logged());
    write("info");
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap());
    kill(pid, Signal::SIGHUP).unwrap();
    wait_for("the next line", || logged().contains("read again").then_some(()));
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(process.wait().unwrap().success());
    assert!(logged().contains("stopped"), "{}", logged());
}

#[test]
fn a_hangup_takes_the_configuration_anew_and_ends_nothing() {
    let mut house = House::new(&["good", "never_ready"]);
    house.wait_state(0, "ready");
    house.signal(Signal::SIGHUP);
    wait_for("the hangup in the log", || house.log().contains("read again").then_some(()));
    assert_eq!(house.send(0, &text()).body["answer"], "accepted");
    write_config(house.dir.path(), &["good"], "");
    house.signal(Signal::SIGHUP);
    wait_for("the end of the phone that was taken out", || {
        (house.get(&format!("/v1/phones/{}", house.phones[1])).status == 404).then_some(())
    });
    assert_eq!(house.pids(0).len(), 1);
    house.signal(Signal::SIGKILL);
    assert!(!house.wait_end().success());
    house.wait_all_gone();
}

fn run_once(config: &Path) -> (Option<i32>, String) {
    let output = supervisor().args(["run", "--config"]).arg(config).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_second_supervisor_on_one_folder_is_told_to_try_again() {
    let house = House::new(&["good"]);
    let (code, error) = run_once(&house.dir.path().join("supervisor.toml"));
    assert_eq!(code, Some(75), "{error}");
    assert!(error.contains("supervisor.lock"), "{error}");
    house.finish();
}

#[test]
fn bad_configurations_end_with_78_and_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), &["good"], "[colours]\n");
    let (code, error) = run_once(&config);
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("supervisor.toml:") && error.contains("colours"), "{error}");

    let config = write_config(dir.path(), &["good"], "[router]\nurl = \"http://127.0.0.1:1\"\n");
    let (code, error) = run_once(&config);
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("switchboard host enroll"), "{error}");

    let other = tempfile::tempdir().unwrap();
    let shared = write_config(other.path(), &["good", "good"], "");
    let text = std::fs::read_to_string(&shared).unwrap().replace("/db1", "/db0");
    std::fs::write(&shared, text).unwrap();
    let (code, error) = run_once(&shared);
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("supervisor.toml:12: `chat_db`: belongs to +12025550190"), "{error}");

    let (code, _) = run_once(&dir.path().join("missing.toml"));
    assert_eq!(code, Some(78));
    let check = |config: &Path| {
        supervisor().args(["check-config", "--config"]).arg(config).output().unwrap().status.code()
    };
    assert_eq!(check(&config), Some(0));
    let default = supervisor().args(["check-config", "--print-default"]).output().unwrap();
    let file = dir.path().join("default.toml");
    std::fs::write(&file, default.stdout).unwrap();
    assert_eq!(check(&file), Some(0));
}

#[test]
fn the_files_of_a_supervisor_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let house = House::new(&["good"]);
    house.wait_state(0, "ready");
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let state = house.dir.path().join("state");
    assert_eq!(mode(state.clone()), 0o700);
    assert_eq!(mode(state.join("dispatch.token")), 0o600);
    assert_eq!(mode(house.folder(0)), 0o700);
    assert_eq!(mode(house.folder(0).join("bridge.toml")), 0o600);
    house.finish();
}
