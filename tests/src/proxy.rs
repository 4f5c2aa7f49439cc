//! A wire between host and router that can be cut: after a random number of bytes, again and again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// Bytes carried at once. Small, so that a cut falls inside frames as often as between them.
const CHUNK_BYTES: usize = 512;

/// A running proxy.
#[derive(Debug, Clone)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// A connection lives for at most so many bytes; 0 means for ever.
    life_bytes_max: AtomicU64,
    /// Wakes every connection, to be cut at once.
    now: tokio::sync::Notify,
    /// Wakes every connection, to carry nothing any more and stay open.
    silent: tokio::sync::Notify,
    cuts: AtomicU64,
    connections: AtomicU64,
}

impl Proxy {
    /// Starts one in front of `target`. It does not cut before it is told to.
    pub async fn start(target: SocketAddr, tasks: &TaskTracker) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("proxy")?;
        let addr = listener.local_addr().context("proxy")?;
        let shared = Arc::new(Shared {
            target,
            life_bytes_max: AtomicU64::new(0),
            now: tokio::sync::Notify::new(),
            silent: tokio::sync::Notify::new(),
            cuts: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        let inner = tasks.clone();
        tasks.spawn(async move {
            while let Ok((host, _)) = listener.accept().await {
                let shared = Arc::clone(&accepting);
                inner.spawn(async move { carry(host, &shared).await });
            }
        });
        Ok(Self { addr, shared })
    }

    /// Where hosts dial.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on every new connection is cut after at most so many bytes; 0 means never.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.life_bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// Cuts every connection that is up.
    pub fn cut_now(&self) {
        self.shared.now.notify_waiters();
    }

    /// Every connection that is up goes dead without a word: open for both sides, and nothing comes through. New ones are
    /// carried as ever.
    pub fn silence_now(&self) {
        self.shared.silent.notify_waiters();
    }

    /// Connections cut so far.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// Connections made so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

async fn carry(host: TcpStream, shared: &Shared) {
    let Ok(router) = TcpStream::connect(shared.target).await else { return };
    shared.connections.fetch_add(1, Ordering::Relaxed);
    // The life of a connection is fixed when it is made: a random share of the most allowed.
    let most = shared.life_bytes_max.load(Ordering::Relaxed);
    let mut left = if most == 0 { u64::MAX } else { crate::clock::chance() % most + 1 };
    let (mut host_in, mut host_out) = host.into_split();
    let (mut router_in, mut router_out) = router.into_split();
    let (mut up, mut down) = ([0_u8; CHUNK_BYTES], [0_u8; CHUNK_BYTES]);
    // Listened for from here on, so that neither is missed while something is being written.
    let (now, silent) = (shared.now.notified(), shared.silent.notified());
    tokio::pin!(now, silent);
    now.as_mut().enable();
    silent.as_mut().enable();
    loop {
        let (read, out): (_, &mut (dyn tokio::io::AsyncWrite + Unpin + Send)) = tokio::select! {
            read = host_in.read(&mut up) => (read.map(|n| up.get(..n)), &mut router_out),
            read = router_in.read(&mut down) => (read.map(|n| down.get(..n)), &mut host_out),
            () = &mut silent => {
                // Until somebody cuts it, or gives up and nobody is told.
                now.await;
                return;
            }
            () = &mut now => {
                shared.cuts.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        let Ok(Some(bytes)) = read else { return };
        if bytes.is_empty() {
            return;
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let allowed = usize::try_from(left.min(length)).unwrap_or(bytes.len());
        let Some(bytes) = bytes.get(..allowed) else { return };
        if out.write_all(bytes).await.is_err() {
            return;
        }
        left -= left.min(length);
        if left == 0 {
            // Both halves drop here, with whatever was still on the way: that is the cut.
            shared.cuts.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
}
