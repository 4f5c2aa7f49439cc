//! What was told, so that nothing is told twice: guids, contents, and what has become of messages.
//! Pure; the journal keeps the same for the next life.

use std::collections::{HashMap, HashSet, VecDeque};

use aws_lc_rs::digest::{SHA256, digest};

use super::changes::Seen;
use crate::chatdb::{Place, Row};

/// Guids remembered: what a busy phone hears in a week and more, in some megabytes. For what is beyond
/// the journal is asked.
pub const KNOWN_MAX: usize = 50_000;
/// Messages of which more is remembered than that they were told. They are those with edits, unsends
/// and open files of two days.
const SEEN_MAX: usize = 10_000;

/// A guid in 16 bytes: enough that no two messages are ever taken for one another.
type Short = u128;

/// What was told.
#[derive(Debug)]
pub struct Known {
    max: usize,
    guids: HashSet<Short>,
    order: VecDeque<(Short, Option<u64>)>,
    /// Guids by content.
    prints: HashMap<u64, String>,
    seen: HashMap<String, Seen>,
    seen_order: VecDeque<String>,
    /// Something was told that is not in here (any more).
    forgetful: bool,
}

fn short(guid: &str) -> Short {
    // A UUID is its own number; whatever else Apple writes is hashed.
    uuid::Uuid::try_parse(guid).map_or_else(
        |_| {
            let hash = digest(&SHA256, guid.as_bytes());
            hash.as_ref().first_chunk().map_or(0, |bytes| u128::from_be_bytes(*bytes))
        },
        |uuid| uuid.as_u128(),
    )
}

impl Known {
    /// Room for so many guids; none for whoever needs no memory.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            guids: HashSet::new(),
            order: VecDeque::new(),
            prints: HashMap::new(),
            seen: HashMap::new(),
            seen_order: VecDeque::new(),
            forgetful: false,
        }
    }

    /// More was told than is in here: whoever keeps all of it is to be asked about the rest.
    pub fn is_part(&mut self) {
        self.forgetful = true;
    }

    /// Whether all that was told of a message is in here. If not, it may have been told all the same.
    pub fn is_sure_of(&self, guid: &str) -> bool {
        !self.forgetful || (self.has(guid) && self.seen.contains_key(guid))
    }

    /// Whether a message of that guid has been told.
    pub fn has(&self, guid: &str) -> bool {
        self.max > 0 && self.guids.contains(&short(guid))
    }

    /// Whether anything is remembered of it: that it was told, or that there was nothing in it.
    pub fn remembers(&self, guid: &str) -> bool {
        self.has(guid) || self.seen.contains_key(guid)
    }

    /// A message of that guid has been told.
    pub fn learn(&mut self, guid: &str, print: Option<u64>) {
        // Whoever remembers nothing need not know the number either.
        if self.max == 0 {
            return;
        }
        let key = short(guid);
        if !self.guids.insert(key) {
            return;
        }
        if self.order.len() >= self.max
            && let Some((oldest, print)) = self.order.pop_front()
        {
            self.forgetful = true;
            self.guids.remove(&oldest);
            if let Some(print) = print {
                self.prints.remove(&print);
            }
        }
        self.order.push_back((key, print));
        if let Some(print) = print {
            self.prints.entry(print).or_insert_with(|| guid.to_owned());
        }
    }

    /// The guid of what was told with this content.
    pub fn by_print(&self, print: u64) -> Option<String> {
        self.prints.get(&print).cloned()
    }

    /// What was told of a message.
    pub fn seen(&self, guid: &str) -> Seen {
        self.seen.get(guid).cloned().unwrap_or_default()
    }

    /// Remembers what was told of a message; true when that is news.
    pub fn remember(&mut self, guid: &str, seen: Seen) -> bool {
        if self.max == 0 {
            return false;
        }
        match self.seen.get_mut(guid) {
            Some(before) if *before == seen => false,
            Some(before) => {
                *before = seen;
                true
            }
            None if seen.is_plain() => false,
            None => {
                if self.seen_order.len() >= SEEN_MAX
                    && let Some(oldest) = self.seen_order.pop_front()
                {
                    self.forgetful = true;
                    self.seen.remove(&oldest);
                }
                self.seen_order.push_back(guid.to_owned());
                self.seen.insert(guid.to_owned(), seen);
                true
            }
        }
    }
}

/// The content of a message as a number: conversation, sender, direction, text and date. Copies that
/// iCloud puts in have new guids and row numbers, and all of this in common. It is kept in journals:
/// the form must not change.
pub(crate) fn print(row: &Row) -> u64 {
    let mut bytes = Vec::with_capacity(row.text.len() + 128);
    let mut add = |part: &[u8]| {
        bytes.extend(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend(part);
    };
    let conversation = match &row.place {
        Place::In(chat) => chat.conversation.id.as_str(),
        Place::Pending => "",
    };
    add(conversation.as_bytes());
    add(row.handle.as_deref().unwrap_or_default().as_bytes());
    add(&[u8::from(row.from_me)]);
    add(row.text.as_bytes());
    add(&row.associated_type.to_be_bytes());
    add(row.associated_guid.as_deref().unwrap_or_default().as_bytes());
    add(&row.at.map_or(0, |at| at.0).to_be_bytes());
    let hash = digest(&SHA256, &bytes);
    hash.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_left_memory_may_have_been_told_all_the_same() {
        let mut known = Known::new(3);
        for guid in ["A", "B", "C"] {
            known.learn(guid, None);
        }
        assert!(known.is_sure_of("A") && known.is_sure_of("NEW"), "all that was told is here");
        known.learn("D", None);
        assert!(!known.has("A"));
        for guid in ["A", "D", "NEW"] {
            assert!(!known.is_sure_of(guid), "{guid}: more may have been told of it");
        }
        known.remember("D", Seen::untold());
        assert!(known.is_sure_of("D"));
        let mut part = Known::new(3);
        part.is_part();
        assert!(!part.is_sure_of("A"));
    }
}
