//! Connections with a limit on how many there are and on how long each may keep us waiting.
//!
//! The server underneath waits without end for a request's head, for the reader of an answer, and for the next request
//! of a connection. Here every connection must let something be written to it from time to time, or it is closed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Connections at once. Each costs some tens of kilobytes and a descriptor; a shelf of Macs and its tenants need a few
/// hundred.
pub(crate) const CONNECTIONS_MAX: usize = 8_192;
/// How long the head of a request, or the next request, may take. Links are never that quiet: both ends ping every 20 s.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// Rest after a failed accept that was not the caller's doing: usually there are no descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// Accepts connections, no more than [`CONNECTIONS_MAX`] at once; further ones wait in the system's queue.
#[derive(Debug)]
pub(crate) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    patience: Duration,
}

impl Bounded {
    /// `patience` is the longest that a connection may go without taking a byte from us.
    pub(crate) fn new(listener: TcpListener, connections: usize, patience: Duration) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections)), patience }
    }
}

impl Listener for Bounded {
    type Io = Patient<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            // Nobody closes the semaphore; if somebody did, connections would merely be uncounted.
            let place = Arc::clone(&self.places).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    // Small answers to waiting callers: they must not sit in a buffer until more comes.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "a connection keeps Nagle's algorithm");
                    }
                    return (Patient::new(stream, self.patience, place), address);
                }
                Err(error) if is_the_callers(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "no connection could be accepted");
                    sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The caller went away before it was accepted.
fn is_the_callers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// A connection that ends with an error when nothing could be written to it for too long.
#[derive(Debug)]
pub(crate) struct Patient<T> {
    io: T,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<T> Patient<T> {
    fn new(io: T, patience: Duration, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { io, patience, deadline: Box::pin(sleep(patience)), _place: place }
    }

    fn wrote(&mut self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(_))) {
            let deadline = Instant::now() + self.patience;
            self.deadline.set(sleep_until(deadline));
        }
    }

    /// Pending, and woken when the patience ends; an error when it has ended.
    fn wait<V>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<V>> {
        self.deadline.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // First the deadline: a caller that always has one more byte to give must not escape it.
        if self.deadline.is_elapsed() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        match Pin::new(&mut self.io).poll_read(context, buffer) {
            Poll::Ready(read) => Poll::Ready(read),
            Poll::Pending => self.wait(context),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.wrote(&written);
        if written.is_pending() { self.wait(context) } else { written }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.wrote(&written);
        if written.is_pending() { self.wait(context) } else { written }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        if flushed.is_pending() { self.wait(context) } else { flushed }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.io).poll_shutdown(context);
        if closed.is_pending() { self.wait(context) } else { closed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_trickles_is_cut_off() {
        let (mut caller, ours) = duplex(64);
        let mut ours = Patient::new(ours, LIMIT, None);
        let began = Instant::now();
        let trickle = async {
            while caller.write_all(b"x").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        };
        let reading = async {
            let mut byte = [0];
            loop {
                if let Err(error) = ours.read_exact(&mut byte).await {
                    return error.kind();
                }
            }
        };
        let kind = tokio::select! { () = trickle => unreachable!("it is never refused"), kind = reading => kind };
        assert_eq!(kind, io::ErrorKind::TimedOut);
        assert!(began.elapsed() <= LIMIT + Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_says_nothing_or_takes_nothing_is_cut_off() {
        let (_silent, ours) = duplex(64);
        let mut ours = Patient::new(ours, LIMIT, None);
        assert_eq!(ours.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (_deaf, ours) = duplex(64);
        let mut ours = Patient::new(ours, LIMIT, None);
        let refused = ours.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_conversation_may_last() {
        let (mut caller, ours) = duplex(64);
        let mut ours = Patient::new(ours, LIMIT, None);
        for _ in 0..10 {
            sleep(Duration::from_secs(9)).await;
            caller.write_all(b"?").await.unwrap();
            assert_eq!(ours.read_u8().await.unwrap(), b'?');
            ours.write_all(b"!").await.unwrap();
            assert_eq!(caller.read_u8().await.unwrap(), b'!');
        }
    }

    #[tokio::test]
    async fn no_more_connections_than_there_are_places() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let mut bounded = Bounded::new(tcp, 1, LIMIT);
        let _first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        let (first, _) = bounded.accept().await;
        let brief = Duration::from_millis(100);
        tokio::time::timeout(brief, bounded.accept()).await.unwrap_err();
        drop(first);
        tokio::time::timeout(LIMIT, bounded.accept()).await.unwrap();
    }
}
