//! Time and chance: the two things a decision takes as arguments, and the one place they come from.

use std::cell::RefCell;
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

/// `N` bytes nobody can foresee, that were drawn when they are asked for and lay nowhere before: keys and secrets.
///
/// # Panics
///
/// As [`random`].
pub fn secret<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    fill(&mut bytes);
    bytes
}

/// `N` bytes nobody can foresee: ids, jitter.
///
/// # Panics
///
/// When the operating system refuses to give randomness. There is no safe way on from that.
pub fn random<const N: usize>() -> [u8; N] {
    thread_local! {
        static DRAWN: RefCell<Drawn> = const { RefCell::new(Drawn { bytes: [0; DRAWN_BYTES], left: 0 }) };
    }
    DRAWN.with_borrow_mut(Drawn::take)
}

/// Bytes that are drawn at once: a draw costs the same whether it is of ten bytes or of these, and a message's ids take
/// several.
const DRAWN_BYTES: usize = 1_024;

/// Random bytes of which each is given out once; what was given out is not kept.
struct Drawn {
    bytes: [u8; DRAWN_BYTES],
    /// How many at the front are still to be given out.
    left: usize,
}

impl Drawn {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.left < N {
            // Nothing of it counts until all of it is there.
            self.left = 0;
            fill(&mut self.bytes);
            self.left = DRAWN_BYTES;
        }
        let stock = self.bytes.get_mut(..self.left);
        match stock.and_then(<[u8]>::split_last_chunk_mut) {
            Some((_, last)) => {
                self.left -= N;
                std::mem::replace(last, [0; N])
            }
            // More than is ever drawn at once.
            None => secret(),
        }
    }
}

fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the operating system gives randomness");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_random_bytes_are_given_out_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1_000 {
            assert!(seen.insert(random::<10>().to_vec()));
            assert!(seen.insert(random::<32>().to_vec()));
        }
        assert!(seen.insert(random::<2_000>().to_vec()));
        assert!(seen.iter().all(|bytes| bytes.iter().any(|byte| *byte != 0)));
    }

    #[test]
    fn what_was_given_out_is_not_kept() {
        let mut drawn = Drawn { bytes: [0; DRAWN_BYTES], left: 0 };
        let taken: [u8; 32] = drawn.take();
        assert_eq!(drawn.left, DRAWN_BYTES - 32);
        assert!(!drawn.bytes.windows(32).any(|bytes| bytes == taken));
    }

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
