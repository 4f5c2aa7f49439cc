//! HTTP/1.1 by hand, both ends: what makes a load and what counts its end must cost little beside what is measured, and
//! the same whatever is measured.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Longest head and body: everything here is far shorter.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// A message off the wire.
struct Message {
    /// First line and headers, without the blank line.
    head: String,
    body: Vec<u8>,
}

/// A connection with what was read of it and not yet used.
struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true).context("nodelay")?;
        Ok(Self { stream, read: Vec::with_capacity(4_096) })
    }

    /// The next message; `None` when the other side has closed between two.
    async fn next(&mut self) -> Result<Option<Message>> {
        let head_bytes = loop {
            if let Some(at) = find(&self.read, b"\r\n\r\n") {
                break at;
            }
            if !self.more().await? {
                ensure!(self.read.is_empty(), "closed within a message");
                return Ok(None);
            }
        };
        let rest = self.read.split_off(head_bytes + 4);
        let mut head = std::mem::replace(&mut self.read, rest);
        head.truncate(head_bytes);
        let head = String::from_utf8(head).context("head")?;
        let body_bytes = match header(&head, "content-length") {
            Some(length) => length.parse::<usize>().context("content-length")?,
            None if header(&head, "transfer-encoding").is_some() => bail!("chunked: {head}"),
            None => 0,
        };
        ensure!(body_bytes <= MESSAGE_BYTES_MAX, "a body of {body_bytes} bytes");
        while self.read.len() < body_bytes {
            ensure!(self.more().await?, "closed within a body");
        }
        let rest = self.read.split_off(body_bytes);
        let body = std::mem::replace(&mut self.read, rest);
        Ok(Some(Message { head, body }))
    }

    async fn more(&mut self) -> Result<bool> {
        ensure!(self.read.len() <= 2 * MESSAGE_BYTES_MAX, "a message that never ends");
        Ok(self.stream.read_buf(&mut self.read).await.context("reading")? > 0)
    }
}

fn find(all: &[u8], wanted: &[u8]) -> Option<usize> {
    all.windows(wanted.len()).position(|window| window == wanted)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// One of many clients: asks, waits for the answer, asks again.
pub(crate) struct Client {
    to: SocketAddr,
    wire: Option<Wire>,
}

impl Client {
    pub(crate) fn new(to: SocketAddr) -> Self {
        Self { to, wire: None }
    }

    /// Sends a whole request; the answer's body, where it is a success.
    pub(crate) async fn ask(&mut self, request: &str) -> Result<Vec<u8>> {
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::new(TcpStream::connect(self.to).await.context("connecting")?)?,
        };
        wire.stream.write_all(request.as_bytes()).await.context("asking")?;
        let answer = wire.next().await?.context("no answer")?;
        let status = answer.head.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2'), "{}", answer.head);
        if !header(&answer.head, "connection")
            .is_some_and(|word| word.eq_ignore_ascii_case("close"))
        {
            self.wire = Some(wire);
        }
        Ok(answer.body)
    }
}

/// A whole `POST` of JSON.
pub(crate) fn post(path: &str, key: &str, body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: load\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// What came to a hook: the keys in order, each with its time.
type Seen = Arc<Mutex<Vec<(String, Instant)>>>;

/// An endpoint that notes what each request is about and answers `200` with nothing.
#[derive(Clone)]
pub(crate) struct Hook {
    pub(crate) addr: SocketAddr,
    seen: Seen,
}

impl Hook {
    /// `key` finds what a request is about, in its first line or in its body; what is about nothing is only answered.
    pub(crate) async fn start(
        tasks: &TaskTracker,
        key: fn(head: &str, body: &[u8]) -> Option<String>,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("hook")?;
        let addr = listener.local_addr().context("hook")?;
        let seen = Seen::default();
        let (all, noted) = (tasks.clone(), Arc::clone(&seen));
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&noted);
                // A caller that breaks off has nothing more to say; what is missing shows in the count.
                all.spawn(async move { answer(stream, key, &seen).await.unwrap_or_default() });
            }
        });
        Ok(Self { addr, seen })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<(String, Instant)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for so many requests, and takes them: key and time of each.
    pub(crate) async fn take(
        &self,
        count: usize,
        within: Duration,
    ) -> Result<Vec<(String, Instant)>> {
        let until = Instant::now() + within;
        loop {
            let came = self.seen().len();
            if came >= count {
                return Ok(std::mem::take(&mut *self.seen()));
            }
            ensure!(Instant::now() < until, "{came} of {count} came to the hook");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn answer(
    stream: TcpStream,
    key: fn(&str, &[u8]) -> Option<String>,
    seen: &Mutex<Vec<(String, Instant)>>,
) -> Result<()> {
    let mut wire = Wire::new(stream)?;
    while let Some(request) = wire.next().await? {
        if let Some(key) = key(&request.head, &request.body) {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push((key, Instant::now()));
        }
        wire.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
    }
    Ok(())
}

/// The id of the message that a JSON text speaks of.
pub(crate) fn message_id(body: &[u8]) -> Option<String> {
    let at = find(body, b"\"msg_")?;
    let id = body.get(at + 1..)?.split(|byte| *byte == b'"').next()?;
    String::from_utf8(id.to_vec()).ok()
}
