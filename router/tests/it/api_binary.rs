//! The program itself: its exit codes, its drain, and what is left after it was killed.
#![expect(clippy::disallowed_methods, reason = "these tests start the program under test")]
#![expect(
    clippy::indexing_slicing,
    reason = "JSON without the field asked for fails the test, as it should"
)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const ADMIN: &str = "operator-token-of-the-tests";

fn program(subcommand: &str, config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard-router"));
    command.stderr(Stdio::null());
    command
        .arg(subcommand)
        .arg("--config")
        .arg(config)
        .env_remove("SWITCHBOARD_ADMIN_TOKEN")
        .env_remove("RUST_LOG");
    command
}

fn run(subcommand: &str, config: &Path) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = program(subcommand, config)
        .stderr(Stdio::piped())
        .output()
        .expect("the program can be run");
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    (status.code(), text)
}

fn config(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("router.toml");
    std::fs::write(&path, text).expect("the program can be run");
    path
}

/// The program while it serves; killed when dropped.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start(config: &Path) -> Self {
        Self::spawn(&mut program("serve", config))
    }

    /// What is logged goes into `log.txt` beside the configuration.
    fn logging(config: &Path) -> Self {
        let log = std::fs::File::create(config.with_file_name("log.txt")).expect("it can be made");
        Self::spawn(program("serve", config).stderr(log))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program can be run");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("the program can be run"))
            .read_line(&mut line)
            .expect("the program can be run");
        let url = line.trim().strip_prefix("listening on ").expect("it says where").to_owned();
        Self { child, url }
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("it runs");
    }

    fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("the program can be run").code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Where it has ended already there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_bad_configuration_is_78_with_file_line_and_field() {
    let folder = tempfile::tempdir().unwrap();
    for (text, says) in [
        ("\nlissten = 1\n", "router.toml:2: lissten: unknown field `lissten`"),
        ("[limits]\n\nbody_bytes = \"x\"\n", "router.toml:3: limits.body_bytes: invalid type"),
        ("[limits]\nbody_bytes = 0\n", "router.toml:2: limits.body_bytes: 0 is not between"),
        ("admin_token = \"short\"\n", "router.toml:1: admin_token: 5 characters are too few"),
    ] {
        let path = config(folder.path(), text);
        for subcommand in ["check-config", "serve", "migrate", "healthcheck"] {
            let (code, output) = run(subcommand, &path);
            assert_eq!(code, Some(78), "{subcommand} {text:?}: {output}");
            assert!(output.contains(says), "{subcommand} {text:?}: {output}");
        }
    }
    let (code, output) = run("check-config", &folder.path().join("missing.toml"));
    assert_eq!(code, Some(78), "{output}");
    let (code, output) = run("check-config", &config(folder.path(), ""));
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("no admin token"), "{output}");
}

#[test]
fn it_serves_answers_health_checks_and_drains_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = config(
        folder.path(),
        &format!("listen = \"127.0.0.1:{port}\"\nadmin_token = \"{ADMIN}\"\n"),
    );
    assert_eq!(run("healthcheck", &path).0, Some(69));
    let (code, output) = run("migrate", &path);
    assert_eq!(code, Some(0), "{output}");
    let mut serving = Serving::start(&path);
    assert_eq!(serving.url, format!("http://127.0.0.1:{port}"));
    assert_eq!(run("healthcheck", &path).0, Some(0));
    let (code, output) = run("migrate", &path);
    assert_eq!(code, Some(1), "a second writer: {output}");
    assert!(output.contains("another router"), "{output}");
    serving.signal(Signal::SIGTERM);
    assert_eq!(serving.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_before_a_kill_is_there_after_it() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "listen = \"127.0.0.1:0\"\nadmin_token = \"{ADMIN}\"\n[limits]\ngrowth = {{ per_second = 100000, burst = 100000 }}\n"
    );
    let path = config(folder.path(), &text);
    let mut serving = Serving::start(&path);
    let client =
        reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy().build().unwrap();
    let post = async |url: String, key: &str, body: Value| -> Option<Value> {
        let answer = client.post(url).bearer_auth(key).json(&body).send().await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        answer.json().await.ok()
    };
    let url = serving.url.clone();
    let tenant =
        post(format!("{url}/v1/admin/tenants"), ADMIN, json!({"name": "Acme"})).await.unwrap();
    let body = json!({"tenant": tenant["id"], "name": "key"});
    let key = post(format!("{url}/v1/admin/keys"), ADMIN, body).await.unwrap();
    let key = key["secret"].as_str().unwrap().to_owned();

    // Eight senders at once; the program is killed while they are at it.
    let (accepted, mut answers) = tokio::sync::mpsc::channel::<String>(10_000);
    let senders = (0..8).map(|_| {
        let (accepted, key, url, post) = (accepted.clone(), key.clone(), url.clone(), &post);
        async move {
            let body = json!({"to": "+12025550143", "text": "hello", "class": "otp"});
            while let Some(message) = post(format!("{url}/v1/messages"), &key, body.clone()).await {
                accepted.send(message["id"].as_str().unwrap().to_owned()).await.unwrap();
            }
        }
    });
    let killer = async {
        let mut ids = Vec::new();
        while ids.len() < 100 {
            ids.push(answers.recv().await.unwrap());
        }
        serving.signal(Signal::SIGKILL);
        ids
    };
    let (mut ids, _) = tokio::join!(killer, futures_util::future::join_all(senders));
    drop(accepted);
    while let Some(id) = answers.recv().await {
        ids.push(id);
    }
    assert_eq!(serving.wait(), None, "it was killed");

    let serving = Serving::start(&path);
    for id in &ids {
        let answer = client
            .get(format!("{}/v1/messages/{id}", serving.url))
            .bearer_auth(&key)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{id} was accepted and is lost");
    }
}

/// The routes that a test needs, over the program's own socket.
struct Caller {
    client: reqwest::Client,
    url: String,
    key: String,
}

impl Caller {
    async fn of(serving: &Serving) -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy().build();
        let client = client.expect("a client can be made");
        let operator = Self { client, url: serving.url.clone(), key: ADMIN.to_owned() };
        let (status, tenant) = operator.post("/v1/admin/tenants", &json!({"name": "Acme"})).await;
        assert_eq!(status, 201, "{tenant}");
        let body = json!({"tenant": tenant["id"], "name": "key"});
        let (status, key) = operator.post("/v1/admin/keys", &body).await;
        assert_eq!(status, 201, "{key}");
        let key = key["secret"].as_str().expect("it is shown once").to_owned();
        Self { key, ..operator }
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.client.post(format!("{}{path}", self.url)).json(body);
        Self::answer(request.bearer_auth(&self.key)).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let request = self.client.get(format!("{}{path}", self.url));
        Self::answer(request.bearer_auth(&self.key)).await
    }

    async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
        let answer = request.send().await.expect("it answers");
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or(Value::Null))
    }
}

fn local(folder: &Path, more: &str) -> PathBuf {
    config(folder, &format!("listen = \"127.0.0.1:0\"\nadmin_token = \"{ADMIN}\"\n{more}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_plain_text_without_secrets_or_what_people_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = local(folder.path(), "[log]\nfilter = \"trace\"\n");
    let serving = Serving::logging(&path);
    let caller = Caller::of(&serving).await;
    let body = json!({"to": "+12025550143", "text": "a-private-word"});
    assert_eq!(caller.post("/v1/messages", &body).await.0, 202);
    let bad = json!({"to": "+12025550143", "text": "a-private-word", "text2": "another"});
    assert_eq!(caller.post("/v1/messages", &bad).await.0, 422);
    assert_eq!(caller.get("/v1/messages").await.0, 200);
    let (status, _) =
        caller.post("/v1/webhook_endpoints", &json!({"url": "https://example.org/"})).await;
    assert_eq!(status, 201);
    serving.signal(Signal::SIGTERM);
    let mut serving = serving;
    assert_eq!(serving.wait(), Some(0));
    let log = std::fs::read_to_string(folder.path().join("log.txt")).unwrap();
    assert!(log.contains("serving") && log.contains("stopped"), "{log}");
    for secret in [ADMIN, caller.key.as_str(), "a-private-word", "whsec_", "\u{1b}"] {
        assert!(!log.contains(secret), "{secret:?} is in the log");
    }
}

/// What a full disk looks like to a program: its files may not grow any more.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_503_with_nothing_half_done_until_there_is_space_again() {
    let folder = tempfile::tempdir().unwrap();
    // The log grows as it is written: one that is long already has room when the disk has none.
    let settings =
        "database_log_mib = 0\n[limits]\ngrowth = { per_second = 100000, burst = 100000 }\n";
    let path = local(folder.path(), settings);
    // The signal that comes with the limit is what disks do not send.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" serve --config \"$1\""]);
    shell.arg(env!("CARGO_BIN_EXE_switchboard-router")).arg(&path).stderr(Stdio::null());
    let serving = Serving::spawn(&mut shell);
    let limit = |bytes: &str| {
        let id = serving.child.id().to_string();
        let set =
            Command::new("prlimit").args(["--pid", &id, &format!("--fsize={bytes}:")]).status();
        assert!(set.unwrap().success());
    };
    let caller = Caller::of(&serving).await;
    let body = json!({"to": "+12025550143", "text": "x".repeat(5_000), "class": "otp"});
    let (status, first) = caller.post("/v1/messages", &body).await;
    assert_eq!(status, 202);
    assert_eq!(caller.get("/readyz").await.0, 200);
    let wal = std::fs::metadata(folder.path().join("switchboard.db-wal")).unwrap().len();
    limit(&(wal + 10_000).to_string());
    let mut accepted = vec![first["id"].clone()];
    let mut refused = 0;
    for _ in 0..40 {
        match caller.post("/v1/messages", &body).await {
            (202, message) => accepted.push(message["id"].clone()),
            (503, problem) => {
                assert_eq!(problem["code"], "unavailable");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 30, "{refused}");
    // Not even room for the smallest commit.
    limit(&wal.to_string());
    assert_eq!(caller.get("/readyz").await.0, 503, "it says that it cannot take work");
    assert_eq!(caller.get("/healthz").await.0, 200);
    limit("unlimited");
    assert_eq!(caller.get("/readyz").await.0, 200);
    let (status, last) = caller.post("/v1/messages", &body).await;
    assert_eq!(status, 202, "{last}");
    accepted.push(last["id"].clone());
    let (_, list) = caller.get("/v1/messages?limit=100").await;
    let mut listed: Vec<Value> =
        list["data"].as_array().unwrap().iter().map(|message| message["id"].clone()).collect();
    listed.sort_by_key(ToString::to_string);
    accepted.sort_by_key(ToString::to_string);
    assert_eq!(listed, accepted);
}

#[test]
fn the_environments_log_filter_wins_over_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = local(folder.path(), "[log]\nfilter = \"info\"\n");
    for (filter, logs) in [("error", false), ("info", true), ("", true)] {
        let log = std::fs::File::create(folder.path().join("log.txt")).unwrap();
        let mut serving =
            Serving::spawn(program("serve", &path).env("RUST_LOG", filter).stderr(log));
        serving.signal(Signal::SIGTERM);
        assert_eq!(serving.wait(), Some(0));
        let log = std::fs::read_to_string(folder.path().join("log.txt")).unwrap();
        assert_eq!(log.contains("stopped"), logs, "{filter:?}: {log}");
    }
    let mut bad = program("serve", &path);
    let output = bad.env("RUST_LOG", "a=nolevel").stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("environment: RUST_LOG: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_signal_waits_for_what_runs_and_the_second_does_not() {
    use tokio::io::AsyncWriteExt as _;

    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let path = local(folder.path(), "drain_ms = 60000\n");
        let mut serving = Serving::start(&path);
        let address = serving.url.strip_prefix("http://").unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // A request whose body never comes to its end keeps it busy for half a minute.
        let request = "POST /v1/hosts/enroll HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                       content-length: 100\r\n\r\n{";
        stream.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        serving.signal(Signal::SIGTERM);
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(serving.child.try_wait().unwrap(), None, "it waits for the request");
        serving.signal(signal);
        let mut ended = None;
        for _ in 0..100 {
            ended = serving.child.try_wait().unwrap();
            if ended.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let ended = ended.expect("it ends at once");
        assert_eq!(ended.code(), Some(1), "{ended:?}");
    }
}

#[test]
fn an_address_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let path = config(folder.path(), &format!("listen = \"{address}\"\n"));
    let (code, output) = run("serve", &path);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains(&format!("cannot listen on {address}: Address already")), "{output}");
}

/// Starts the program until it listens, and the tenant's requests to it.
struct Tenant {
    client: reqwest::Client,
    key: String,
}

impl Tenant {
    async fn make(serving: &Serving) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let ask = async |path: &str, body: Value| -> Value {
            let request = client.post(format!("{}{path}", serving.url)).bearer_auth(ADMIN);
            let answer = request.json(&body).send().await.expect("it answers");
            answer.json().await.expect("JSON")
        };
        let tenant = ask("/v1/admin/tenants", json!({"name": "Acme"})).await;
        // The sandbox's story ends at once: no phone is needed.
        let key = ask("/v1/admin/keys", json!({"tenant": tenant["id"], "name": "k", "test": true}));
        let key = key.await["secret"].as_str().expect("a secret").to_owned();
        Self { client, key }
    }

    fn post(&self, serving: &Serving, path: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", serving.url)).bearer_auth(&self.key)
    }

    async fn get(&self, serving: &Serving, path: &str) -> String {
        let request = self.client.get(format!("{}{path}", serving.url)).bearer_auth(&self.key);
        request.send().await.expect("it answers").text().await.expect("text")
    }

    async fn batch(&self, serving: &Serving, path: &str) -> Value {
        serde_json::from_str(&self.get(serving, path).await).expect("JSON")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_goes_on_after_kills_with_nobody_lost_and_nobody_written_to_twice() {
    const RECIPIENTS: usize = 12_000;
    const KILLS: usize = 6;
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let folder = tempfile::tempdir().unwrap();
    let path = config(
        folder.path(),
        &format!(
            "listen = \"127.0.0.1:0\"\nadmin_token = \"{ADMIN}\"\n\
             [limits]\ngrowth = {{ per_second = 100000, burst = 100000 }}\n"
        ),
    );
    let mut serving = Serving::start(&path);
    let tenant = Tenant::make(&serving).await;
    let made = tenant.post(&serving, "/v1/batches").json(&json!({"name": "a", "text": "Hello"}));
    let made: Value = made.send().await.unwrap().json().await.unwrap();
    let batch = format!("/v1/batches/{}", made["id"].as_str().unwrap());
    let numbers = (0..RECIPIENTS).map(|n| format!("+1202{:07}", 2_000_000 + n));
    let csv = numbers.clone().fold("to\n".to_owned(), |csv, number| csv + &number + "\n");

    // Killed while a chunk comes in: its first rows are written, its last never came.
    let half = csv.get(..csv.len() / 2).unwrap();
    let address = serving.url.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {batch}/recipients HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: text/csv\r\n\
         idempotency-key: chunk\r\ncontent-length: {}\r\n\r\n{half}",
        tenant.key,
        csv.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await.unwrap();
    let store = rusqlite::Connection::open(folder.path().join("switchboard.db")).unwrap();
    let rows = || store.query_row("SELECT COUNT(*) FROM batch_recipients", [], |row| row.get(0));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while rows().unwrap_or(0) < 2_000 {
        assert!(tokio::time::Instant::now() < deadline, "no row was written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(store);
    serving.signal(Signal::SIGKILL);
    serving.wait();
    serving = Serving::start(&path);
    assert_eq!(tenant.batch(&serving, &batch).await["recipients"], 0);
    let again = tenant.post(&serving, &format!("{batch}/recipients")).body(csv);
    let again = again.header("content-type", "text/csv").header("idempotency-key", "chunk");
    let added: Value = again.send().await.unwrap().json().await.unwrap();
    assert_eq!(
        (&added["added"], &added["duplicates"]),
        (&json!(RECIPIENTS), &json!(0)),
        "nothing of the first try is left: {added}"
    );

    let started = tenant.post(&serving, &format!("{batch}/start")).send().await.unwrap();
    assert_eq!(started.status(), 200);
    let all = u64::try_from(RECIPIENTS).unwrap();
    let mut killed_in_the_middle = 0;
    let mut before = 0;
    for _ in 0..KILLS {
        let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
        loop {
            let now = tenant.batch(&serving, &batch).await["expanded"].as_u64().unwrap();
            if now > before || now == all {
                before = now;
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "it has not gone on");
        }
        serving.signal(Signal::SIGKILL);
        serving.wait();
        serving = Serving::start(&path);
        let now = tenant.batch(&serving, &batch).await["expanded"].as_u64().unwrap();
        assert!(now >= before, "what was told is there");
        killed_in_the_middle += usize::from(now < all);
    }
    assert!(killed_in_the_middle >= 2, "too fast to be hit: {killed_in_the_middle}");
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    while tenant.batch(&serving, &batch).await["state"] != "completed" {
        assert!(tokio::time::Instant::now() < deadline, "it does not come to its end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let done = tenant.batch(&serving, &batch).await;
    assert_eq!(done["outcomes"], json!({"delivered": RECIPIENTS}), "one message each: {done}");
    let export = tenant.get(&serving, &format!("{batch}/export?format=ndjson")).await;
    let rows: Vec<Value> = export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<String> = rows.iter().map(|row| row["to"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, numbers.collect::<Vec<_>>());
    let ids: std::collections::BTreeSet<&str> =
        rows.iter().map(|row| row["message"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), RECIPIENTS);
}
