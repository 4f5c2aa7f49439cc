//! The host's link as the supervisor uses it: two bounded channels and one future.
//!
//! ```no_run
//! # async fn example(config: router_client::link::LinkConfig) -> Result<(), Box<dyn std::error::Error>> {
//! use router_client::link::{INPUT_QUEUE, Link, OUTPUT_QUEUE};
//! use tokio::sync::mpsc;
//! use tokio_util::sync::CancellationToken;
//!
//! let (input, inputs) = mpsc::channel(INPUT_QUEUE);
//! let (output, mut outputs) = mpsc::channel(OUTPUT_QUEUE);
//! let shutdown = CancellationToken::new();
//! Link::new(config, inputs, output)?.run(shutdown).await;
//! # drop(input); outputs.recv().await;
//! # Ok(())
//! # }
//! ```
//!
//! The supervisor tells the link of every phone it has ([`LinkInput::Phone`]) and hands it every event line that a bridge
//! writes ([`LinkInput::Event`]), connected or not. The link forwards an event when it is the next one of its journal and
//! drops it otherwise: the bridge repeats what is not acknowledged. Neither channel can block the other: while
//! deliveries wait for the supervisor, the link goes on taking inputs.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures_util::{Sink, Stream};
use protocol::{
    HostId, PhoneId,
    link::{CanaryAsk, CanaryTold, HOST_SILENCE_MS, HostHealth, PhoneReport},
    pipe::{Command, EventLine},
};
use tokio::{
    sync::{Notify, mpsc},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    backoff::{self, Backoff, Patience},
    clock::{Clock, ContinuousMs},
    dialler::{self, Dialler},
    key::HostKey,
    proxy::{Proxies, ProxyError},
    session::Phones,
    tls::{TlsError, TlsRoots},
};

pub use crate::session::Ended;

/// Capacity the supervisor should give the channel of [`LinkInput`]: one full event window of a bridge.
pub const INPUT_QUEUE: usize = 256;
/// Capacity the supervisor should give the channel of [`LinkOutput`]: a burst of commands to a few phones.
pub const OUTPUT_QUEUE: usize = 256;

/// What the link has to know.
#[derive(Debug)]
pub struct LinkConfig {
    /// The router: `https://router.example` (or `wss`), or plain `http://127.0.0.1:7070` (or `ws`).
    pub router: Url,
    /// This host, as enrolled.
    pub host: HostId,
    /// The key whose public half was enrolled.
    pub key: HostKey,
    /// Which certificates the router may show.
    pub roots: TlsRoots,
    /// The proxy on the way to it.
    pub proxies: Proxies,
    /// Longest delay before a lost link is dialled again; [`REDIAL_MAX`] unless an operator knows better.
    pub redial_max: Duration,
    /// How long nothing may be heard of the router; [`SILENCE`] unless an operator knows the network better.
    pub silence: Duration,
    /// A new one each time the supervisor starts.
    pub boot: String,
    /// Version of the supervisor, for the router's table of hosts.
    pub version: String,
}

/// Why a link could not be made from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum LinkConfigError {
    /// The router's address is not one that can be dialled.
    #[error("router address {url}: {detail}")]
    Router {
        /// The address.
        url: String,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// The environment names a proxy that cannot be used.
    #[error("the environment's {variable}")]
    Proxy {
        /// Which variable.
        variable: &'static str,
        /// What is wrong with it.
        #[source]
        source: ProxyError,
    },
    /// The certificates could not be read.
    #[error("TLS for the router")]
    Tls(#[from] TlsError),
}

/// Longest delay before a lost link is dialled again, where the operator says nothing else.
pub const REDIAL_MAX: Duration = Duration::from_millis(backoff::DELAY_MAX_MS);

/// How long nothing may be heard of the router, though it was asked, where the operator says nothing else.
pub const SILENCE: Duration = Duration::from_millis(HOST_SILENCE_MS);

/// What the supervisor tells the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkInput {
    /// How a phone stands now; to be told at the start, when its bridge says hello, and at every change of its state.
    Phone {
        /// The phone. Its `epoch` may be left out: the link fills in the newest it was granted.
        report: PhoneReport,
        /// A bridge has said hello: the link asks the router how far its journal is acknowledged, and answers with
        /// [`LinkOutput::Ack`] and `replay`.
        started: bool,
    },
    /// The phone is no longer one of this host's.
    Forget(PhoneId),
    /// One journaled event, as the bridge wrote it.
    Event {
        /// Whose.
        phone: PhoneId,
        /// Which journal.
        journal: String,
        /// The event with its number.
        line: EventLine,
    },
    /// Nothing older than this epoch is, or will be, handed to Messages: the answer to [`LinkOutput::Release`].
    Released {
        /// Which phone.
        phone: PhoneId,
        /// The release's epoch.
        epoch: u64,
    },
    /// A question about a canary. Dropped where the router does not answer such: whoever waits asks again.
    Canary(CanaryAsk),
    /// How the host is; travels with the next renewal.
    Health(HostHealth),
}

/// What the link tells the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkOutput {
    /// The router has welcomed this host.
    Connected {
        /// Id of the session, for logs.
        session: String,
        /// It answers questions about canaries.
        canaries: bool,
    },
    /// The session is over, or an attempt to make one has failed. Leases go on until their deadline.
    Disconnected {
        /// Why.
        why: Ended,
        /// When the next attempt is made.
        redial_in: Duration,
    },
    /// For the phone's bridge: `send` or `cancel`.
    Command {
        /// Which phone.
        phone: PhoneId,
        /// The epoch under which the router dispatched it.
        epoch: u64,
        /// The line for the pipe.
        command: Command,
    },
    /// The phone may send until `issued_ms + ttl_ms`, less the bridge's margin.
    Lease {
        /// Which phone.
        phone: PhoneId,
        /// The lease's epoch.
        epoch: u64,
        /// How long it holds from `issued_ms`.
        ttl_ms: u64,
        /// When the renewal that it answers was sent, on the continuous clock.
        issued_ms: ContinuousMs,
    },
    /// The phone may no longer send under this epoch.
    Revoke {
        /// Which phone.
        phone: PhoneId,
        /// The epoch that ends.
        epoch: u64,
    },
    /// The phone goes to another host: everything older than this epoch ends. To be answered with
    /// [`LinkInput::Released`].
    Release {
        /// Which phone.
        phone: PhoneId,
        /// The epoch from which on others may send.
        epoch: u64,
    },
    /// How a canary stands, as the router knows.
    Canary(CanaryTold),
    /// The router has every event of this journal up to `seq`.
    Ack {
        /// Whose.
        phone: PhoneId,
        /// Which journal.
        journal: String,
        /// Up to and including.
        seq: u64,
        /// The listener is new or has missed something: after the ack, tell the bridge to `replay`.
        replay: bool,
    },
}

/// Counts of a link's life, to be read at any time.
#[derive(Debug, Default)]
pub struct LinkStats {
    connected: AtomicBool,
    sessions: AtomicU64,
    forwarded: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    stray: AtomicU64,
    rewinds: AtomicU64,
    /// In milliseconds and one more; 0 before the first.
    rtt: AtomicU64,
    down: Mutex<Option<String>>,
}

impl LinkStats {
    /// Why there is no session, in the words of the last end; none while there is one, or before the first attempt ended.
    pub fn down(&self) -> Option<String> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_down(&self, why: Option<String>) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// True while a session is welcome.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Sessions that were welcomed.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// The newest time from a ping to the router's answer, in milliseconds; none before the first answer.
    pub fn rtt_ms(&self) -> Option<u64> {
        self.rtt.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Events forwarded to the router.
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Events dropped because they were not the next of their journal; the bridge repeats them when needed.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Frames of the router that could not be understood.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Frames of the router that named a phone, journal or renewal this host does not have.
    pub fn stray(&self) -> u64 {
        self.stray.load(Ordering::Relaxed)
    }

    /// Times that events were offered again because the router did not acknowledge them.
    pub fn rewinds(&self) -> u64 {
        self.rewinds.load(Ordering::Relaxed)
    }

    pub(crate) fn set_connected(&self, connected: bool) {
        if connected {
            self.set_down(None);
            self.sessions.fetch_add(1, Ordering::Relaxed);
        }
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, counts: &crate::session::Counts) {
        self.forwarded.fetch_add(counts.forwarded, Ordering::Relaxed);
        self.dropped.fetch_add(counts.dropped, Ordering::Relaxed);
        self.refused.fetch_add(counts.refused, Ordering::Relaxed);
        self.stray.fetch_add(counts.stray, Ordering::Relaxed);
        self.rewinds.fetch_add(counts.rewinds, Ordering::Relaxed);
        if let Some(rtt_ms) = counts.rtt_ms {
            self.rtt.store(rtt_ms.saturating_add(1), Ordering::Relaxed);
        }
    }
}

/// What a WebSocket carries.
pub use tokio_tungstenite::tungstenite::Message;
/// Why a WebSocket is closed.
pub use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// A WebSocket that somebody else has opened.
pub trait MessageSocket:
    Stream<Item = Result<Message, String>> + Sink<Message, Error = String> + Send + Unpin
{
}
impl<T> MessageSocket for T where
    T: Stream<Item = Result<Message, String>> + Sink<Message, Error = String> + Send + Unpin
{
}

/// One that came in.
pub type Socket = Box<dyn MessageSocket>;

/// Capacity that the channel of [`Socket`] needs: the newest counts, and a few may come at once.
pub const SOCKET_QUEUE: usize = 4;

/// Who dials.
enum Way {
    /// This side.
    Dial(Box<Dialler>),
    /// The router; what it has opened comes in here.
    Accept { boot: String, version: String, sockets: mpsc::Receiver<Socket> },
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dial(dialler) => f.debug_tuple("Dial").field(dialler).finish(),
            Self::Accept { boot, .. } => {
                f.debug_struct("Accept").field("boot", boot).finish_non_exhaustive()
            }
        }
    }
}

/// The link of one host, not yet running.
#[derive(Debug)]
pub struct Link {
    way: Way,
    redial_max: Duration,
    silence: Duration,
    inputs: mpsc::Receiver<LinkInput>,
    outputs: mpsc::Sender<LinkOutput>,
    stats: Arc<LinkStats>,
    clock: Clock,
    redial: Arc<Notify>,
}

impl Link {
    /// Checks the configuration. Nothing is dialled yet.
    pub fn new(
        config: LinkConfig,
        inputs: mpsc::Receiver<LinkInput>,
        outputs: mpsc::Sender<LinkOutput>,
    ) -> Result<Self, LinkConfigError> {
        let waits = (config.redial_max, config.silence);
        Ok(Self::by(Way::Dial(Box::new(Dialler::new(config)?)), waits, inputs, outputs))
    }

    /// A link that the router dials. Who opens a socket is checked before it comes in; a newer one ends the session of
    /// the one before.
    pub fn accepting(
        boot: String,
        version: String,
        (sockets, silence): (mpsc::Receiver<Socket>, Duration),
        inputs: mpsc::Receiver<LinkInput>,
        outputs: mpsc::Sender<LinkOutput>,
    ) -> Self {
        let way = Way::Accept { boot, version, sockets };
        Self::by(way, (REDIAL_MAX, silence), inputs, outputs)
    }

    fn by(
        way: Way,
        (redial_max, silence): (Duration, Duration),
        inputs: mpsc::Receiver<LinkInput>,
        outputs: mpsc::Sender<LinkOutput>,
    ) -> Self {
        Self {
            way,
            redial_max,
            silence,
            inputs,
            outputs,
            stats: Arc::new(LinkStats::default()),
            clock: Clock::machine(),
            redial: Arc::new(Notify::new()),
        }
    }

    /// Counts that go on growing while the link runs.
    pub fn stats(&self) -> Arc<LinkStats> {
        Arc::clone(&self.stats)
    }

    /// Asks for another connection at once, whatever the link is doing: notified after a sleep or a change of network,
    /// when the old one may be dead without anybody having said so.
    pub fn redial(&self) -> Arc<Notify> {
        Arc::clone(&self.redial)
    }

    /// Keeps the link until `shutdown` is cancelled or the supervisor has dropped its side of a channel. A running
    /// session is ended with `bye` and a close, within a few seconds.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut phones = Phones::default();
        let mut backoff = Backoff::new(self.redial_max);
        let mut patience = Patience::new(self.silence);
        let mut successor = None;
        loop {
            let (way, sockets) = match &mut self.way {
                Way::Dial(dialler) => (Ok(dialler), None),
                Way::Accept { boot, version, sockets } => (Err((boot, version)), Some(sockets)),
            };
            let mut desk = dialler::Desk {
                sockets,
                successor: &mut successor,
                inputs: &mut self.inputs,
                outputs: &self.outputs,
                stats: &self.stats,
                clock: &self.clock,
                shutdown: &shutdown,
                redial: &self.redial,
                silence_ms: patience.silence_ms(),
            };
            let (why, lived_ms) = match &way {
                Ok(dialler) => dialler.attempt(&mut desk, &mut phones).await,
                Err((boot, version)) => {
                    dialler::accept(boot, version, &mut desk, &mut phones).await
                }
            };
            if shutdown.is_cancelled() || matches!(why, Ended::Shutdown) {
                tracing::info!("link closed");
                return;
            }
            patience.ended(matches!(why, Ended::Silent(_)), lived_ms);
            let delay_ms = match way {
                Ok(_) => backoff.next(why.redial_cause(), lived_ms, dialler::random_u64()),
                // Its next connection is taken whenever it comes.
                Err(_) => 0,
            };
            let redial_in = Duration::from_millis(delay_ms);
            self.stats.set_down(Some(why.to_string()));
            // The supervisor says this for people, once; here is what it does not know.
            tracing::debug!(%why, lived_ms, redial_in_ms = delay_ms, "link down");
            if !desk.rest(LinkOutput::Disconnected { why, redial_in }, redial_in, &mut phones).await
            {
                return;
            }
        }
    }
}
