//! The events of one phone, for listeners of the dispatch API: a short memory and a broadcast.
//!
//! Nothing here is durable; the bridge's journal is. A listener that falls behind is told so and may come back with the
//! last id it has.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::link::EventFrame;
use protocol::pipe::Attempt;
use tokio::sync::broadcast;

/// Events that a listener may be behind before it is told that it missed some: the window of a bridge.
const LISTENER_QUEUE: usize = 256;
/// Events kept for listeners that come back.
const KEPT_EVENTS: usize = 1_024;
/// Bytes kept for listeners that come back, per phone.
const KEPT_BYTES: usize = 4 * 1024 * 1024;

/// One event, as it is sent to listeners.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// The journal that it stands in.
    pub(crate) journal: String,
    /// Its number there.
    pub(crate) seq: u64,
    /// Its type.
    pub(crate) kind: &'static str,
    /// The attempt that it is about.
    pub(crate) attempt: Option<Attempt>,
    /// The whole event as JSON.
    pub(crate) json: String,
    /// The bridge has said it before, to us.
    pub(crate) repeat: bool,
}

impl Item {
    /// The id under which listeners know it.
    pub(crate) fn id(&self) -> String {
        format!("{}:{}", self.journal, self.seq)
    }
}

/// The events of one phone.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Made for the first listener and given up after the last one: its queue is large, and most phones have nobody.
    sender: Option<broadcast::Sender<Arc<Item>>>,
    kept: VecDeque<Arc<Item>>,
    bytes: usize,
    newest: Option<(String, u64)>,
}

/// What a listener that comes back has missed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// These events, in order.
    All(Vec<Arc<Item>>),
    /// More than is kept: here is what is left.
    Some(Vec<Arc<Item>>),
}

impl Memory {
    fn subscribe(&mut self) -> broadcast::Receiver<Arc<Item>> {
        self.sender.get_or_insert_with(|| broadcast::Sender::new(LISTENER_QUEUE)).subscribe()
    }
}

impl Stream {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells every listener of an event.
    pub(crate) fn publish(&self, frame: &EventFrame) {
        let json = match serde_json::to_string(frame) {
            Ok(json) => json,
            Err(error) => {
                tracing::error!(phone = %frame.phone, seq = frame.seq, %error, "an event could not be written");
                return;
            }
        };
        let mut memory = self.memory();
        let repeat = memory
            .newest
            .as_ref()
            .is_some_and(|(journal, seq)| *journal == frame.journal && frame.seq <= *seq);
        let item = Arc::new(Item {
            journal: frame.journal.clone(),
            seq: frame.seq,
            kind: frame.event.kind(),
            attempt: frame.event.attempt().cloned(),
            json,
            repeat,
        });
        if !repeat {
            memory.newest = Some((frame.journal.clone(), frame.seq));
            memory.bytes += item.json.len();
            memory.kept.push_back(Arc::clone(&item));
            while memory.kept.len() > KEPT_EVENTS || memory.bytes > KEPT_BYTES {
                let Some(oldest) = memory.kept.pop_front() else { break };
                memory.bytes = memory.bytes.saturating_sub(oldest.json.len());
            }
        }
        // Sent under the lock, so that nothing falls between a listener's memory and its subscription. An error means
        // that nobody listens any more.
        if memory.sender.as_ref().is_some_and(|sender| sender.send(item).is_err()) {
            memory.sender = None;
        }
    }

    /// Every event from now on, the repeated ones included.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Arc<Item>> {
        self.memory().subscribe()
    }

    /// Every event from now on, and those since the one with the id `after`.
    pub(crate) fn listen_after(&self, after: &str) -> (Missed, broadcast::Receiver<Arc<Item>>) {
        let mut memory = self.memory();
        let receiver = memory.subscribe();
        let place = memory.kept.iter().position(|item| item.id() == after);
        let missed = match place {
            Some(place) => Missed::All(memory.kept.iter().skip(place + 1).cloned().collect()),
            None => Missed::Some(memory.kept.iter().cloned().collect()),
        };
        (missed, receiver)
    }
}

#[cfg(test)]
mod tests {
    use protocol::pipe::{AccountState, Event};
    use protocol::{PhoneId, UnixMs};

    use super::*;

    fn frame(journal: &str, seq: u64) -> EventFrame {
        EventFrame {
            phone: PhoneId::new(1, [0; 10]),
            journal: journal.to_owned(),
            seq,
            epoch: None,
            at: UnixMs(0),
            event: Event::Account { state: AccountState::Ready, detail: String::new() },
        }
    }

    fn seqs(items: &[Arc<Item>]) -> Vec<u64> {
        items.iter().map(|item| item.seq).collect()
    }

    #[test]
    fn a_listener_that_comes_back_gets_what_it_missed() {
        let stream = Stream::default();
        for seq in 1..=5 {
            stream.publish(&frame("a", seq));
        }
        let (missed, _) = stream.listen_after("a:3");
        assert!(matches!(missed, Missed::All(items) if seqs(&items) == [4, 5]));
        let (missed, _) = stream.listen_after("other:3");
        assert!(matches!(missed, Missed::Some(items) if seqs(&items) == [1, 2, 3, 4, 5]));
    }

    #[test]
    fn repeated_events_are_marked_and_a_new_journal_starts_anew() {
        let stream = Stream::default();
        let mut listener = stream.listen();
        for (journal, seq) in [("a", 1), ("a", 2), ("a", 1), ("a", 2), ("a", 3), ("b", 1)] {
            stream.publish(&frame(journal, seq));
        }
        let repeats: Vec<bool> = (0..6).map(|_| listener.try_recv().unwrap().repeat).collect();
        assert_eq!(repeats, [false, false, true, true, false, false]);
    }

    #[test]
    fn who_listens_again_after_nobody_did_hears_what_follows() {
        let stream = Stream::default();
        drop(stream.listen());
        stream.publish(&frame("a", 1));
        assert!(stream.memory().sender.is_none(), "nobody listens");
        let mut listener = stream.listen();
        stream.publish(&frame("a", 2));
        assert_eq!(listener.try_recv().unwrap().seq, 2);
    }

    #[test]
    fn the_memory_is_bounded() {
        let stream = Stream::default();
        for seq in 1..=3_000 {
            stream.publish(&frame("a", seq));
        }
        let (missed, _) = stream.listen_after("a:1");
        assert!(matches!(missed, Missed::Some(items) if items.len() == KEPT_EVENTS));
    }
}
