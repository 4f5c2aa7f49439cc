//! The program is killed while a provider has a request of it and has not answered.
#![expect(clippy::disallowed_methods, reason = "this test starts the program under test")]
#![expect(
    clippy::unwrap_used,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::provider_support::{API_KEY, Do, StandIn};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use data_encoding::BASE64;
use serde_json::{Value, json};

pub(crate) const ADMIN: &str = "operator-token-of-the-tests";
const PUBLIC: &str = "https://sb.example";

/// The program while it serves; killed when dropped, as by SIGKILL.
pub(crate) struct Serving {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
}

impl Serving {
    pub(crate) fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_switchboard-router"))
            .args(["serve", "--config"])
            .arg(config)
            .env_remove("SWITCHBOARD_ADMIN_TOKEN")
            .env_remove("SWITCHBOARD_PROVIDERS_KEY")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { child, url, client }
    }

    pub(crate) async fn call(&self, request: reqwest::RequestBuilder) -> Value {
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert!((200..300).contains(&status), "{status}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    pub(crate) async fn post(&self, path: &str, key: &str, body: &Value) -> Value {
        let request = self.client.post(format!("{}{path}", self.url));
        self.call(request.bearer_auth(key).json(body)).await
    }

    async fn message(&self, id: &str, key: &str) -> Value {
        let request = self.client.get(format!("{}/v1/messages/{id}", self.url));
        self.call(request.bearer_auth(key)).await
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Where it has ended already there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_was_being_asked_for_when_the_router_was_killed_is_unknown_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let stand_in = StandIn::telnyx().await;
    let keys = folder.path().join("providers.key");
    std::fs::write(&keys, BASE64.encode(&[1; 32])).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = folder.path().join("router.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndatabase_log_mib = 0\nadmin_token = \"{ADMIN}\"\n[compliance]\nhours = \"off\"\n[providers]\n\
         public_url = \"{PUBLIC}\"\nkey_file = \"providers.key\"\nin_flight = 1\ntimeout_ms = 60000\n\
         allow_private = true\ntelnyx_url = \"{}\"\n",
        stand_in.url
    );
    std::fs::write(&config, text).unwrap();
    let first = Serving::start(&config);
    let tenant = first.post("/v1/admin/tenants", ADMIN, &json!({"name": "Acme"})).await;
    let body = json!({"tenant": tenant["id"], "name": "key"});
    let key =
        first.post("/v1/admin/keys", ADMIN, &body).await["secret"].as_str().unwrap().to_owned();
    let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let body = json!({"kind": "telnyx", "number": "+12025550100", "api_key": API_KEY,
        "public_key": BASE64.encode(pair.public_key().as_ref())});
    let set = first.client.put(format!("{}/v1/admin/providers/one", first.url));
    first.call(set.bearer_auth(ADMIN).json(&body)).await;
    first.post("/v1/admin/providers/one/enable", ADMIN, &Value::Null).await;

    stand_in.next(Do::TakeAndHang);
    let mut ids = Vec::new();
    for n in 0..3 {
        let to = format!("+1202555014{n}");
        let body = json!({"to": to, "text": "Hello", "class": "transactional"});
        let made = first.post("/v1/messages", &key, &body).await;
        ids.push(made["id"].as_str().unwrap().to_owned());
        // The first one is under way; the others are decided and wait behind it.
        eventually("it is given to the provider", async || {
            first.message(&ids[n], &key).await["status"] == "dispatching"
                && stand_in.taken().len() == 1
        })
        .await;
    }
    drop(first);

    let second = Serving::start(&config);
    for id in &ids[1..] {
        eventually("what was only decided is asked for", async || {
            stand_in.taken().iter().any(|taken| taken.field("tags").contains(id.as_str()))
        })
        .await;
    }
    let unknown = second.message(&ids[0], &key).await;
    assert_eq!(
        (&unknown["status"], &unknown["reason"], &unknown["attempts"]),
        (&json!("unknown"), &json!("provider_silent"), &json!(1))
    );
    // Each was asked for once.
    assert_eq!(stand_in.taken().len(), 3);
    let sends = stand_in.asked().into_iter().filter(|asked| asked.method == "POST").count();
    assert_eq!(sends, 3);

    // What the provider has to say of it settles it, over the address that the first life gave it.
    let taken = stand_in.taken()[0].clone();
    let query = taken.field("webhook_url").strip_prefix(PUBLIC).unwrap().to_owned();
    let report = json!({"data": {"event_type": "message.finalized", "payload": {
        "id": taken.id, "to": [{"phone_number": "+12025550140", "status": "delivered"}]}}});
    let text = report.to_string();
    let stamp = (router::clock::Clock::system().now().0 / 1_000).to_string();
    let signature = pair.sign(format!("{stamp}|{text}").as_bytes());
    let call = second
        .client
        .post(format!("{}{query}", second.url))
        .header("telnyx-signature-ed25519", BASE64.encode(signature.as_ref()))
        .header("telnyx-timestamp", stamp)
        .body(text);
    second.call(call).await;
    assert_eq!(second.message(&ids[0], &key).await["status"], "delivered");
}
