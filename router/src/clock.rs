//! Time and chance: the two things a decision takes as arguments, and the one place they come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use protocol::time::UnixMs;

/// Where the present comes from: the machine, or a test's hand.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's wall clock.
    pub fn system() -> Self {
        Self { source: Source::System }
    }

    /// A clock that stands still until it is told otherwise.
    pub fn manual(now: UnixMs) -> Self {
        Self { source: Source::Manual(Arc::new(AtomicI64::new(now.0))) }
    }

    /// The present.
    pub fn now(&self) -> UnixMs {
        match &self.source {
            Source::System => system_now(),
            Source::Manual(ms) => UnixMs(ms.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock on. The machine's clock is not ours to move; there this does nothing.
    pub fn advance(&self, ms: i64) {
        match &self.source {
            Source::System => {}
            Source::Manual(now) => {
                now.fetch_add(ms, Ordering::SeqCst);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the crate's one reading of the wall clock")]
fn system_now() -> UnixMs {
    let since_epoch =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMs(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// `N` bytes nobody can foresee: ids, keys, secrets, jitter.
///
/// # Panics
///
/// When the operating system refuses to give randomness. There is no safe way on from that.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(UnixMs(1_000));
        let same = clock.clone();
        assert_eq!(clock.now(), UnixMs(1_000));
        same.advance(250);
        assert_eq!(clock.now(), UnixMs(1_250));
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random::<16>(), random::<16>());
    }
}
