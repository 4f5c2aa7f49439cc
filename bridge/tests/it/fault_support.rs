//! A phone of the sandbox, which is a process of its own, and a bridge beside it that may be killed
//! and started again. What the bridge says in all its lives is kept by number, as the router does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::pipe::{Command, Event, EventLine, Received, Up, parse_up};
use sandbox::socket::{Client, Reply};
use serde_json::{Value, json};
use tokio::time::Instant;

pub(crate) const NUMBER: &str = "+15550100001";
pub(crate) const FROM: &str = "+12025550143";

/// The sandbox's command line, as JSON, for the process that is the sandbox.
const SANDBOX_ARGS: &str = "SWITCHBOARD_SANDBOX_ARGS";
/// Delays of the sandbox are multiplied by this.
const SPEED: &str = "0.05";
/// How long a condition is waited for on a machine that is busy with other things.
const WITHIN: Duration = Duration::from_secs(40);

/// Is the sandbox, in the process that was started for it.
pub(crate) fn be_the_sandbox() {
    let args = std::env::var(SANDBOX_ARGS).expect("the other tests start this one");
    let args: Vec<String> = serde_json::from_str(&args).unwrap();
    let code = sandbox::cli::main(args.into_iter().map(Into::into).collect());
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
}

/// This very program, which becomes the sandbox: so it is there whatever else was built.
#[expect(clippy::disallowed_methods, reason = "a test that starts the program")]
fn sandbox(args: &[&str]) -> Program {
    let args: Vec<&str> = ["switchboard-sandbox"].iter().chain(args).copied().collect();
    let mut program = Program::new(std::env::current_exe().unwrap());
    program
        .args(["reading_faults::the_sandbox", "--exact", "--ignored", "--nocapture", "--quiet"])
        .env(SANDBOX_ARGS, serde_json::to_string(&args).unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    program
}

/// Waits for a condition.
#[expect(clippy::disallowed_methods, reason = "a test that waits for another process")]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Waits for its end, which must be a good one.
    pub(crate) fn end(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Waits for a line that contains this.
    fn says(&mut self, word: &str) {
        let mut line = String::new();
        let mut out = BufReader::new(self.0.stdout.as_mut().unwrap());
        while !line.contains(word) {
            line.clear();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "it ended without saying {word}");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, mostly.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One life of the bridge.
struct Life {
    child: Child,
    lines: Receiver<Up>,
    journal: String,
}

/// A phone, what it was sent, and what its bridge has said.
pub(crate) struct Phone {
    life: Option<Life>,
    world: Running,
    client: Client,
    dir: tempfile::TempDir,
    /// Every event of every life, by number.
    pub(crate) events: BTreeMap<u64, EventLine>,
    /// Guids of what was sent and is to be told once.
    pub(crate) expected: BTreeSet<String>,
    /// How often each message was told.
    told: BTreeMap<String, usize>,
    pub(crate) longest_read_us: u64,
    fences: u32,
}

impl Phone {
    /// A phone without messages, and a bridge that has begun to read it.
    pub(crate) fn new(macos: u32) -> Self {
        let mut phone = Self::without_bridge(macos);
        phone.start();
        phone.fence();
        phone
    }

    pub(crate) fn without_bridge(macos: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        let spec = format!("{NUMBER}={macos}");
        let mut program = sandbox(&["phones", "--dir", at, "--phone", &spec, "--speed", SPEED]);
        let mut world = Running(program.spawn().unwrap());
        world.says("\"ready\"");
        let client = Client::connect(dir.path()).unwrap();
        let osascript = dir.path().join("connected");
        std::fs::write(&osascript, "#!/bin/sh\ncat > /dev/null\necho connected\n").unwrap();
        std::fs::set_permissions(&osascript, std::fs::Permissions::from_mode(0o755)).unwrap();
        let digits = NUMBER.trim_start_matches('+');
        let config = format!(
            "phone = \"pho_00000000000000000000000000\"\nnumber = \"{NUMBER}\"\n\
             state_dir = \"{at}/state\"\nchat_db = \"{at}/{digits}/chat.db\"\n\
             osascript = \"{at}/connected\"\n",
        );
        std::fs::write(dir.path().join("bridge.toml"), config).unwrap();
        Self {
            life: None,
            world,
            client,
            dir,
            events: BTreeMap::new(),
            expected: BTreeSet::new(),
            told: BTreeMap::new(),
            longest_read_us: 0,
            fences: 0,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn chat_db(&self) -> PathBuf {
        self.path(NUMBER.trim_start_matches('+')).join("chat.db")
    }

    // ---- the bridge -------------------------------------------------------------------------

    #[expect(clippy::disallowed_methods, reason = "a test that starts the program")]
    pub(crate) fn start(&mut self) {
        assert!(self.life.is_none(), "it runs");
        let mut child = Program::new(env!("CARGO_BIN_EXE_switchboard-bridge"))
            .args(["run", "--config"])
            .arg(self.path("bridge.toml"))
            .env("RUST_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (give, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines() {
                // A killed bridge may leave half a line.
                let Ok(up) = parse_up(&line.unwrap_or_default()) else { continue };
                if give.send(up).is_err() {
                    return;
                }
            }
        });
        self.life = Some(Life { child, lines, journal: String::new() });
        self.until("hello", |phone| {
            phone.life.as_ref().is_some_and(|life| !life.journal.is_empty())
        });
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut life = self.life.take().expect("it runs");
        life.child.kill().unwrap();
        life.child.wait().unwrap();
        // What it had written is heard, as the supervisor would.
        while let Ok(up) = life.lines.recv() {
            self.hear(up);
        }
    }

    /// Ends it in good order.
    pub(crate) fn stop(&mut self) {
        let mut life = self.life.take().expect("it runs");
        drop(life.child.stdin.take());
        while let Ok(up) = life.lines.recv() {
            self.hear(up);
        }
        let status = life.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.life.as_ref().expect("it runs").child.id();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }

    /// Listens until something holds.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !holds(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let life = self.life.as_ref().expect("it runs");
            match life.lines.recv_timeout(left) {
                Ok(up) => self.hear(up),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => panic!(
                    "no {what}; missing {:?}; told: {:?}",
                    self.missing(),
                    self.events.values().map(|line| line.event.kind()).collect::<Vec<_>>()
                ),
            }
        }
    }

    fn hear(&mut self, up: Up) {
        match up {
            Up::Hello(hello) => {
                if let Some(life) = &mut self.life {
                    life.journal = hello.journal;
                }
            }
            Up::Event(line) => {
                let seq = line.seq;
                let next = self.events.last_key_value().map_or(1, |(last, _)| last + 1);
                assert!(seq <= next, "{seq} comes after {next}");
                let before = self.events.insert(seq, line.clone());
                if before.is_none()
                    && let Event::Received(received) = &line.event
                {
                    *self.told.entry(received.guid.clone()).or_default() += 1;
                }
                assert!(before.is_none_or(|before| before == line), "an event changed: {line:?}");
                self.acknowledge(seq);
            }
            Up::Heartbeat(beat) => {
                self.longest_read_us = self.longest_read_us.max(beat.longest_read_us);
            }
            Up::Ready | Up::NotReady { .. } | Up::Released { .. } => {}
        }
    }

    fn acknowledge(&mut self, seq: u64) {
        let Some(life) = &mut self.life else { return };
        let ack = Command::Ack { journal: life.journal.clone(), seq };
        let mut line = serde_json::to_string(&ack).unwrap();
        line.push('\n');
        if let Some(stdin) = life.child.stdin.as_mut() {
            // It may have been killed.
            drop(stdin.write_all(line.as_bytes()));
        }
    }

    // ---- Messages ---------------------------------------------------------------------------

    /// Asks the sandbox for something, and gives its answer.
    pub(crate) fn ask(&mut self, request: Value) -> Value {
        let request = serde_json::from_value(request).unwrap();
        match self.client.ask(&request, Some(WITHIN)).unwrap() {
            Reply::Done { value } => value,
            other @ (Reply::EventError { .. } | Reply::Hang | Reply::Refused { .. }) => {
                panic!("{other:?}")
            }
        }
    }

    /// A request about this phone.
    pub(crate) fn request(what: &str, more: &Value) -> Value {
        let mut request = json!({"ask": what, "phone": NUMBER});
        let entries = more.as_object().unwrap().clone();
        request.as_object_mut().unwrap().extend(entries);
        request
    }

    /// Lets a message arrive that is to be told once; gives the sandbox's answer.
    pub(crate) fn receive_with(&mut self, text: &str, more: &Value) -> Value {
        let mut request =
            Self::request("receive", &json!({"from": FROM, "text": text, "service": "iMessage"}));
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let written = self.ask(request);
        self.expected.insert(guid(&written));
        written
    }

    pub(crate) fn receive(&mut self, text: &str) -> String {
        guid(&self.receive_with(text, &json!({})))
    }

    pub(crate) fn receive_some(&mut self, what: &str, count: usize) {
        for n in 0..count {
            self.receive(&format!("{what} {n}"));
        }
    }

    /// Lets something happen to a message.
    pub(crate) fn change(&mut self, what: &str, guid: &str, more: &Value) {
        let mut request = Self::request(what, &json!({"guid": guid}));
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ask(request);
    }

    /// Messages goes on with the file that is there now.
    pub(crate) fn reopen(&mut self) {
        self.ask(json!({"ask": "reopen", "phone": NUMBER}));
    }

    /// Does something to the file, as a process of its own; gives whether it could be done.
    pub(crate) fn try_fault(&self, command: &str, more: &[&str]) -> bool {
        let path = self.chat_db();
        let mut args = vec![command, "--db", path.to_str().unwrap()];
        args.extend(more);
        sandbox(&args).output().unwrap().status.success()
    }

    pub(crate) fn fault(&self, command: &str, more: &[&str]) {
        assert!(self.try_fault(command, more), "{command} {more:?}");
    }

    /// The same, and goes on meanwhile.
    pub(crate) fn begin_fault(&self, command: &str, more: &[&str], says: Option<&str>) -> Running {
        let path = self.chat_db();
        let mut args = vec![command, "--db", path.to_str().unwrap()];
        args.extend(more);
        let mut running = Running(sandbox(&args).spawn().unwrap());
        if let Some(word) = says {
            running.says(word);
        }
        running
    }

    // ---- what was told ----------------------------------------------------------------------

    #[expect(clippy::wildcard_enum_match_arm, reason = "one kind of many is looked for")]
    pub(crate) fn received(&self) -> impl Iterator<Item = &Received> {
        self.events.values().filter_map(|line| match &line.event {
            Event::Received(received) => Some(received),
            _ => None,
        })
    }

    pub(crate) fn is_told(&self, guid: &str) -> bool {
        self.told.contains_key(guid)
    }

    pub(crate) fn is_all_told(&self) -> bool {
        self.expected.len() <= self.told.len() && self.missing().is_empty()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.events.values().filter(|line| line.event.kind() == kind).count()
    }

    fn missing(&self) -> Vec<&String> {
        self.expected.iter().filter(|guid| !self.is_told(guid)).collect()
    }

    /// Lets one more message arrive, and waits until that and everything before it has been told.
    pub(crate) fn fence(&mut self) {
        self.fences += 1;
        self.receive(&format!("fence {}", self.fences));
        self.until("message", Self::is_all_told);
    }

    /// Every message was told exactly once, also after one more restart.
    pub(crate) fn told_once(&mut self) {
        self.fence();
        self.stop();
        self.start();
        self.fence();
        let repeated: Vec<_> = self.told.iter().filter(|(_, times)| **times != 1).collect();
        assert!(repeated.is_empty(), "repeated: {repeated:?}");
        let unexpected: Vec<_> =
            self.told.keys().filter(|guid| !self.expected.contains(*guid)).collect();
        assert!(unexpected.is_empty(), "never sent: {unexpected:?}");
        let seqs: Vec<u64> = self.events.keys().copied().collect();
        let all: Vec<u64> = (1..=u64::try_from(seqs.len()).unwrap()).collect();
        assert_eq!(seqs, all, "every event of every life, in order");
        assert_eq!(self.world.0.try_wait().unwrap(), None, "Messages goes on");
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        if let Some(life) = &mut self.life {
            drop(life.child.kill());
            drop(life.child.wait());
        }
    }
}

/// The guid in an answer of the sandbox.
pub(crate) fn guid(written: &Value) -> String {
    written["guid"].as_str().unwrap_or_else(|| panic!("no guid in {written}")).to_owned()
}

/// `switchboard-bridge watch` on a file, and the guids that it tells.
pub(crate) struct Watching {
    running: Running,
    lines: Receiver<Value>,
    pub(crate) told: Vec<String>,
    pub(crate) resyncs: usize,
}

impl Watching {
    #[expect(clippy::disallowed_methods, reason = "a test that starts the program")]
    pub(crate) fn start(path: &Path, more: &[&str]) -> Self {
        let mut child = Program::new(env!("CARGO_BIN_EXE_switchboard-bridge"))
            .args(["watch", "--since", "start", "--db"])
            .arg(path)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (give, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if give.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { running: Running(child), lines, told: Vec::new(), resyncs: 0 }
    }

    /// Listens until all of these are told.
    pub(crate) fn until_told(&mut self, expected: &BTreeSet<String>) {
        let deadline = Instant::now() + WITHIN;
        while !expected.iter().all(|guid| self.told.contains(guid)) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("{} of {} were told", self.told.len(), expected.len()));
            match line["type"].as_str() {
                Some("received") => self.told.push(line["guid"].as_str().unwrap().to_owned()),
                Some("resync") => self.resyncs += 1,
                _ => {}
            }
        }
        assert_eq!(self.running.0.try_wait().unwrap(), None);
    }
}
