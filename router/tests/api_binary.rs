//! The program itself: its exit codes, its drain, and what is left after it was killed.
#![expect(clippy::disallowed_methods, reason = "these tests start the program under test")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

const ADMIN: &str = "operator-token-of-the-tests";

fn program(subcommand: &str, config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard-router"));
    command.arg(subcommand).arg("--config").arg(config).env_remove("SWITCHBOARD_ADMIN_TOKEN");
    command
}

fn run(subcommand: &str, config: &Path) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        program(subcommand, config).output().expect("the program can be run");
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
        let mut child = program("serve", config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program can be run");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("the program can be run"))
            .read_line(&mut line)
            .expect("the program can be run");
        let url = line.trim().strip_prefix("listening on ").expect("it says where").to_owned();
        Self { child, url }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .arg(name)
                .arg(id)
                .status()
                .expect("the program can be run")
                .success()
        );
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
        ("\nlissten = 1\n", "router.toml:2: unknown field `lissten`"),
        ("[limits]\nburst = 0\n", "router.toml: limits.burst: 0 is not between"),
        ("admin_token = \"short\"\n", "admin_token: 5 characters are too few"),
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
    serving.signal("-TERM");
    assert_eq!(serving.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_before_a_kill_is_there_after_it() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "listen = \"127.0.0.1:0\"\nadmin_token = \"{ADMIN}\"\n[limits]\nrequests_per_second = 100000\nburst = 100000\n"
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
        serving.signal("-KILL");
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
