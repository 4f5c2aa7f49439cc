//! The last log lines of one bridge, kept in memory for the dispatch API.

use std::collections::VecDeque;

use protocol::time::UnixMs;
use serde::Serialize;

/// Lines kept per phone: enough to see how a bridge ended, little enough to keep for a shelf of phones.
pub(crate) const RING_LINES: usize = 500;

/// One line of a bridge's stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LogLine {
    /// Its number, from 1 since the supervisor started: whoever follows asks for what comes after one.
    pub(crate) n: u64,
    /// When the supervisor read it.
    pub(crate) at: UnixMs,
    /// The line.
    pub(crate) line: String,
}

/// The last [`RING_LINES`] lines.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    lines: VecDeque<LogLine>,
    last: u64,
}

impl Ring {
    /// Adds a line and forgets the oldest when full.
    pub(crate) fn push(&mut self, at: UnixMs, line: String) {
        if self.lines.len() >= RING_LINES {
            self.lines.pop_front();
        }
        self.last = self.last.saturating_add(1);
        self.lines.push_back(LogLine { n: self.last, at, line });
    }

    /// The lines with a number above `after`, oldest first.
    pub(crate) fn after(&self, after: u64) -> Vec<LogLine> {
        self.lines.iter().filter(|line| line.n > after).cloned().collect()
    }

    /// The newest line.
    pub(crate) fn newest(&self) -> Option<&LogLine> {
        self.lines.back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_lines_and_their_numbers() {
        let mut ring = Ring::default();
        assert_eq!((ring.newest(), ring.after(0)), (None, Vec::new()));
        for n in 0..RING_LINES + 3 {
            ring.push(UnixMs(0), n.to_string());
        }
        let lines = ring.after(0);
        assert_eq!(lines.len(), RING_LINES);
        assert_eq!(lines.first().map(|line| (line.n, line.line.as_str())), Some((4, "3")));
        let last = u64::try_from(RING_LINES + 3).unwrap();
        assert_eq!(ring.newest().map(|line| line.n), Some(last));
        let rest: Vec<u64> = ring.after(last - 2).iter().map(|line| line.n).collect();
        assert_eq!(rest, [last - 1, last]);
        assert_eq!(ring.after(last), Vec::new());
    }
}
