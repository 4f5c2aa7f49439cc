//! A host that the router dials, with a stand-in for Cloudflare before it: real programs, a real message.

#![cfg(test)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use e2e::eventually;
use e2e::shelf::{Plan, Shelf, message};
use protocol::link::{Authorization, Enrolment, PATH, PROOF_HEADER};
use protocol::{HostId, Status};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const NUMBER: &str = "+12025550190";
const WITHIN: Duration = Duration::from_mins(1);
const CLIENT_ID: &str = "desk.access";
const SECRET: &str = "a-service-tokens-secret";
const AUDIENCE: &str = "4714c1358e65fe4b408ad6d432a5f878f08194bdb4752441fd56faefa9b2b6f2";

/// What the edge says of a request that it lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// A good token, signed by this one of its keys.
    Good(usize),
    /// One for another application.
    OtherAudience,
    /// One that is over.
    Expired,
    /// None: somebody came by another way.
    Nothing,
}

struct Edge {
    addr: SocketAddr,
    keys: [RsaKeyPair; 2],
    host: SocketAddr,
    says: Mutex<Says>,
    cut: Mutex<CancellationToken>,
}

impl Edge {
    async fn start(host: SocketAddr, tasks: &TaskTracker) -> Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the edge")?;
        let key = || RsaKeyPair::generate(KeySize::Rsa2048).context("a key");
        let edge = Arc::new(Self {
            addr: listener.local_addr().context("the edge")?,
            keys: [key()?, key()?],
            host,
            says: Mutex::new(Says::Good(0)),
            cut: Mutex::default(),
        });
        let (serving, tracker) = (Arc::clone(&edge), tasks.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let edge = Arc::clone(&serving);
                tracker.spawn(async move {
                    // Whoever goes away in the middle is not missed.
                    edge.serve(stream).await.unwrap_or_default();
                });
            }
        });
        Ok(edge)
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn say(&self, says: Says) {
        *self.says.lock().unwrap_or_else(PoisonError::into_inner) = says;
    }

    /// Ends every connection, as a release of the edge does.
    fn cut(&self) {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *cut).cancel();
    }

    async fn serve(&self, mut stream: TcpStream) -> Result<()> {
        let head = head(&mut stream).await?;
        if head.starts_with("GET /cdn-cgi/access/certs ") {
            let list = self.list().to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{list}",
                list.len()
            );
            return stream.write_all(answer.as_bytes()).await.context("keys");
        }
        let has = |name: &str, value: &str| {
            head.lines().any(|line| line.eq_ignore_ascii_case(&format!("{name}: {value}")))
        };
        if !has("cf-access-client-id", CLIENT_ID) || !has("cf-access-client-secret", SECRET) {
            let login = "HTTP/1.1 302 Found\r\nlocation: https://team.example/login\r\ncontent-length: 0\r\n\r\n";
            return stream.write_all(login.as_bytes()).await.context("login");
        }
        let says = *self.says.lock().unwrap_or_else(PoisonError::into_inner);
        let mut passed: Vec<String> = head
            .lines()
            .filter(|line| !line.is_empty() && !line.to_ascii_lowercase().starts_with("cf-"))
            .map(str::to_owned)
            .collect();
        passed.push("Cf-Ray: 8f00d-AMS".to_owned());
        passed.extend(self.token(says)?.map(|token| format!("Cf-Access-Jwt-Assertion: {token}")));
        let mut host = TcpStream::connect(self.host).await.context("the host")?;
        host.write_all(format!("{}\r\n\r\n", passed.join("\r\n")).as_bytes()).await?;
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner).clone();
        cut.run_until_cancelled(copy_bidirectional(&mut stream, &mut host)).await.transpose()?;
        Ok(())
    }

    fn list(&self) -> Value {
        let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let listed = |(kid, pair): (usize, &RsaKeyPair)| {
            // An RSAPublicKey of 2048 bits (RFC 8017, A.1.1): nine bytes before `n`, and 65537 at the end.
            let der = pair.public_key().as_ref();
            let n = encode(der.get(9..9 + 256).unwrap_or_default());
            let e = encode(&[1, 0, 1]);
            json!({ "kid": kid.to_string(), "kty": "RSA", "alg": "RS256", "use": "sig", "n": n, "e": e })
        };
        json!({ "keys": self.keys.iter().enumerate().map(listed).collect::<Vec<_>>() })
    }

    fn token(&self, says: Says) -> Result<Option<String>> {
        let now = e2e::clock::now().0.div_euclid(1_000);
        let (kid, audience, exp) = match says {
            Says::Good(kid) => (kid, AUDIENCE, now + 60),
            Says::OtherAudience => (0, "another", now + 60),
            Says::Expired => (0, AUDIENCE, now - 120),
            Says::Nothing => return Ok(None),
        };
        let pair = self.keys.get(kid).context("a key")?;
        let header = json!({ "alg": "RS256", "kid": kid.to_string() });
        let claims = json!({ "iss": self.url(), "aud": [audience], "exp": exp, "nbf": now - 300 });
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .context("signing")?;
        Ok(Some(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))))
    }
}

async fn head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 64 * 1024, "a head without an end");
        head.push(stream.read_u8().await.context("a head")?);
    }
    String::from_utf8(head).context("a head")
}

/// The router's own key, with which the test dials in its place.
struct Router {
    key: Ed25519KeyPair,
    host: HostId,
}

impl Router {
    fn load(shelf: &Shelf, host: &HostId) -> Result<Self> {
        let pem = std::fs::read_to_string(shelf.root().join("router.key")).context("router.key")?;
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = BASE64.decode(body.as_bytes()).context("router.key")?;
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).context("router.key")?;
        Ok(Self { key, host: host.clone() })
    }

    fn sign(&self, signed: &str, host: &HostId, ts: i64, nonce: &str) -> String {
        let sig = BASE64URL_NOPAD.encode(self.key.sign(signed.as_bytes()).as_ref());
        Authorization { host: host.clone(), ts, nonce: nonce.to_owned(), sig }.to_string()
    }

    /// A request that is right, so many seconds old.
    fn right(&self, age_s: i64, nonce: &str) -> String {
        let ts = e2e::clock::now().0.div_euclid(1_000) - age_s;
        let signed = Authorization::signed_by_router("GET", PATH, &self.host, ts, nonce);
        self.sign(&signed, &self.host, ts, nonce)
    }
}

/// Asks the edge for the link with this authorisation: the status of the answer, and its head.
async fn ask(edge: &Edge, authorization: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(edge.addr).await.context("the edge")?;
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nhost: desk.example\r\nauthorization: {authorization}\r\n\
         cf-access-client-id: {CLIENT_ID}\r\ncf-access-client-secret: {SECRET}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.context("asking")?;
    let head = head(&mut stream).await?;
    let status = head.split(' ').nth(1).context("a status")?.parse().context("a status")?;
    Ok((status, head))
}

/// The shelf, once its host has been enrolled, with the router dialling from now on.
async fn turn(shelf: &mut Shelf, edge: &Edge) -> Result<HostId> {
    let root = shelf.root().to_owned();
    let enrolment = std::fs::read_to_string(root.join("host/enrolment.json"))?;
    let enrolment: Enrolment = serde_json::from_str(&enrolment)?;
    ensure!(enrolment.router_key.is_some(), "enrolment tells the router's key");
    shelf.crash_supervisor()?;
    shelf.crash_router()?;
    let file = root.join("supervisor.toml");
    let text = std::fs::read_to_string(&file)?;
    let more = format!(
        "redial_max_ms = 200\ndial = \"in\"\n[router.access]\nteam = \"{}\"\naudience = \"{AUDIENCE}\"\n",
        edge.url()
    );
    ensure!(text.contains("redial_max_ms = 200\n"));
    std::fs::write(&file, text.replacen("redial_max_ms = 200\n", &more, 1))?;
    let file = root.join("router.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(root.join("desk.secret"), SECRET)?;
    let more = format!(
        "[[dial]]\nhost = \"{}\"\nurl = \"{}\"\naccess_client_id = \"{CLIENT_ID}\"\n\
         access_client_secret_file = \"desk.secret\"\nredial_max_ms = 200\n",
        enrolment.host,
        edge.url()
    );
    std::fs::write(&file, format!("{text}\n{more}"))?;
    shelf.start_router().await?;
    shelf.start_supervisor()?;
    shelf.all_ready(WITHIN).await?;
    Ok(enrolment.host)
}

/// A message of its own is delivered, and Messages was asked for it once.
async fn delivers(shelf: &Shelf, text: &str) -> Result<()> {
    let sent = shelf.tenant.send(&message("+12125550101", text)?).await?;
    eventually("the message is delivered", WITHIN, || async {
        let status = shelf.tenant.message(&sent.id).await?.status;
        let done = matches!(status, Status::Delivered | Status::Read);
        Ok(if done { Ok(()) } else { Err(format!("{status:?}")) })
    })
    .await?;
    let asked = shelf.asked()?.into_iter().filter(|asked| asked.text == text).count();
    ensure!(asked == 1, "{asked} sends of one message");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_behind_cloudflare_is_dialled_and_nobody_else_is_let_in() -> Result<()> {
    let plan = Plan { phones: vec![(NUMBER, "15")], speed: 0.1, ..Plan::default() };
    let mut shelf = Shelf::start(plan).await?;
    let edge = Edge::start(shelf.dispatch_addr(), &shelf.tasks).await?;
    let host = turn(&mut shelf, &edge).await?;
    delivers(&shelf, "through the tunnel").await?;

    // Cut, and signed by the other key when it comes back: both are listed.
    edge.say(Says::Good(1));
    edge.cut();
    delivers(&shelf, "through another connection").await?;

    // What a stranger meets who knows the way. The test has the router's key, so it can be almost right.
    let router = Router::load(&shelf, &host)?;
    let right = |nonce: &str| router.right(0, nonce);
    let now = e2e::clock::now().0.div_euclid(1_000);
    let nonce = "nonce-nonce-nonce-0";
    let hosts = Authorization::signed("GET", PATH, &host, now, nonce);
    let other = HostId::new(1, [1; 10]);
    let others = Authorization::signed_by_router("GET", PATH, &other, now, nonce);
    for (name, authorization) in [
        ("the dispatch token's scheme", "Bearer x".to_owned()),
        ("a signature of the other side's kind", router.sign(&hosts, &host, now, nonce)),
        ("one for another host", router.sign(&others, &other, now, nonce)),
        ("one of two minutes ago", router.right(120, nonce)),
    ] {
        let (status, _) = ask(&edge, &authorization).await?;
        ensure!(status == 401, "{name}: {status}");
    }
    for (says, expected) in [(Says::Nothing, 403), (Says::OtherAudience, 403), (Says::Expired, 403)]
    {
        edge.say(says);
        let (status, _) = ask(&edge, &right(&format!("nonce-nonce-{says:?}"))).await?;
        ensure!(status == expected, "{says:?}: {status}");
    }
    edge.say(Says::Good(0));
    // A router that is right is let in, and the host proves itself to it; the same request a second time is not.
    let once = right("nonce-nonce-nonce-1");
    let (status, head) = ask(&edge, &once).await?;
    ensure!(status == 101 && head.to_ascii_lowercase().contains(PROOF_HEADER), "{status}: {head}");
    ensure!(ask(&edge, &once).await?.0 == 401, "a request is good once");

    // Through the tunnel there is the link and the health, and nothing else of the dispatch API, whatever token one has.
    for (path, expected) in
        [("/healthz", 200), ("/metrics", 404), ("/v1/phones", 404), ("/readyz", 404)]
    {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client
            .get(format!("{}{path}", edge.url()))
            .header("cf-access-client-id", CLIENT_ID)
            .header("cf-access-client-secret", SECRET)
            .send()
            .await?;
        ensure!(answer.status() == expected, "{path}: {}", answer.status());
    }

    // The connection of the test took the place of the router's, which has dialled again since.
    delivers(&shelf, "after all of that").await?;
    shelf.stop().await
}
