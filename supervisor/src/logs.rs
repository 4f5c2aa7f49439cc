//! The last log lines of one bridge, kept in memory for the dispatch API.

use std::collections::VecDeque;

use protocol::time::UnixMs;
use serde::Serialize;

/// Lines kept per phone: enough to see how a bridge ended, little enough to keep for a shelf of phones.
pub(crate) const RING_LINES: usize = 500;

/// One line of a bridge's stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LogLine {
    /// When the supervisor read it.
    pub(crate) at: UnixMs,
    /// The line.
    pub(crate) line: String,
}

/// The last [`RING_LINES`] lines.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    lines: VecDeque<LogLine>,
}

impl Ring {
    /// Adds a line and forgets the oldest when full.
    pub(crate) fn push(&mut self, line: LogLine) {
        if self.lines.len() >= RING_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The lines, oldest first.
    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.lines.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_lines() {
        let mut ring = Ring::default();
        for n in 0..RING_LINES + 3 {
            ring.push(LogLine { at: UnixMs(0), line: n.to_string() });
        }
        let lines = ring.lines();
        assert_eq!(lines.len(), RING_LINES);
        assert_eq!(lines.first().map(|line| line.line.as_str()), Some("3"));
    }
}
