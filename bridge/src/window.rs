//! Which events are on the pipe: a window over the journal, go-back-N. Pure.
//!
//! Events beyond the window stay in the journal until room is made by acknowledgements; when none
//! come for a while, or the listener asks, everything from the first unacknowledged one on is
//! said again.

use protocol::limits::EVENT_WINDOW;

/// Without progress for this long, what is unacknowledged is said again.
const REPEAT_AFTER_MS: i64 = 15_000;

/// Where the pipe stands in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// The newest event of the journal.
    last: u64,
    /// The newest one acknowledged.
    acked: u64,
    /// The newest one said since the last start over.
    said: u64,
    /// Continuous clock of the last progress: an acknowledgement, or a start over.
    progress_ms: i64,
}

impl Window {
    pub(crate) fn new(last: u64, acked: u64, now_ms: i64) -> Self {
        Self { last, acked, said: acked, progress_ms: now_ms }
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    pub(crate) fn unacked(&self) -> u64 {
        self.last.saturating_sub(self.acked)
    }

    /// The journal has grown.
    pub(crate) fn grown(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// An acknowledgement; true when it was news and events may be forgotten. One beyond the
    /// journal is not believed.
    pub(crate) fn ack(&mut self, seq: u64, now_ms: i64) -> bool {
        if seq <= self.acked || seq > self.last {
            return false;
        }
        self.acked = seq;
        self.said = self.said.max(seq);
        self.progress_ms = now_ms;
        true
    }

    /// The listener is new.
    pub(crate) fn replay(&mut self, now_ms: i64) {
        self.said = self.acked;
        self.progress_ms = now_ms;
    }

    /// Starts over when nothing has moved for too long; true when it does.
    pub(crate) fn tick(&mut self, now_ms: i64) -> bool {
        let stuck =
            self.said > self.acked && now_ms.saturating_sub(self.progress_ms) >= REPEAT_AFTER_MS;
        if stuck {
            self.replay(now_ms);
        }
        stuck
    }

    /// The events to say now, first and how many.
    pub(crate) fn due(&self) -> Option<(u64, usize)> {
        let window = u64::try_from(EVENT_WINDOW).unwrap_or(u64::MAX);
        let end = self.last.min(self.acked.saturating_add(window));
        let count = usize::try_from(end.saturating_sub(self.said)).unwrap_or(EVENT_WINDOW);
        (count > 0).then_some((self.said.saturating_add(1), count))
    }

    /// Everything up to this event was said.
    pub(crate) fn said(&mut self, seq: u64, now_ms: i64) {
        if self.said == self.acked {
            // The clock for a repetition begins with the first event that waits for an answer.
            self.progress_ms = now_ms;
        }
        self.said = self.said.max(seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: u64 = 256;

    #[test]
    fn no_more_than_the_window_is_on_the_pipe() {
        let mut window = Window::new(1_000, 0, 0);
        assert_eq!(window.due(), Some((1, 256)));
        window.said(256, 0);
        assert_eq!(window.due(), None);
        assert!(window.ack(100, 1));
        assert_eq!(window.due(), Some((257, 100)));
    }

    #[test]
    fn what_is_not_acknowledged_is_said_again_after_a_while() {
        let mut window = Window::new(10, 4, 0);
        window.said(10, 1_000);
        assert!(!window.tick(15_999));
        assert!(window.tick(16_000));
        assert_eq!(window.due(), Some((5, 6)));
    }

    #[test]
    fn progress_puts_the_repetition_off() {
        let mut window = Window::new(10, 0, 0);
        window.said(10, 0);
        assert!(window.ack(5, 14_000));
        assert!(!window.tick(16_000));
        assert!(window.tick(29_000));
    }

    #[test]
    fn a_new_listener_hears_everything_that_is_not_acknowledged() {
        let mut window = Window::new(10, 4, 0);
        window.said(10, 0);
        window.replay(1);
        assert_eq!(window.due(), Some((5, 6)));
    }

    #[test]
    fn an_acknowledgement_of_what_never_was_is_not_believed() {
        let mut window = Window::new(10, 4, 0);
        assert!(!window.ack(11, 0));
        assert!(!window.ack(4, 0));
        assert_eq!(window.acked(), 4);
    }

    proptest! {
        /// Events reach a listener that drops lines and restarts at any time, each at least once
        /// and in order, and no more than the window is ever unacknowledged on the pipe.
        #[test]
        fn every_event_is_said_until_it_is_acknowledged(
            steps in prop::collection::vec((0_u8..5, 0_u64..40), 1..200)
        ) {
            let mut window = Window::new(0, 0, 0);
            let (mut now, mut heard, mut last) = (0_i64, 0_u64, 0_u64);
            let say = |window: &mut Window, heard: &mut u64, lost: bool, now: i64| {
                if let Some((from, count)) = window.due() {
                    let to = from + u64::try_from(count).unwrap() - 1;
                    assert!(to <= window.acked() + WINDOW);
                    if !lost && from <= *heard + 1 { *heard = (*heard).max(to); }
                    window.said(to, now);
                }
            };
            for (kind, amount) in steps {
                match kind {
                    0 => { last += amount; window.grown(last); }
                    1 => say(&mut window, &mut heard, false, now),
                    2 => say(&mut window, &mut heard, true, now),
                    3 => { window.ack(heard.saturating_sub(amount), now); }
                    _ => { now += i64::try_from(amount).unwrap() * 1_000; window.tick(now); }
                }
                prop_assert!(window.acked() <= heard && heard <= last);
            }
            for _ in 0..20 {
                now += REPEAT_AFTER_MS;
                window.tick(now);
                say(&mut window, &mut heard, false, now);
                window.ack(heard, now);
            }
            prop_assert_eq!(heard, last);
            prop_assert_eq!(window.unacked(), 0);
        }
    }
}
