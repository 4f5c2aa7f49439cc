//! A chat.db that is written, renumbered and replaced in any order, and a reading of it that crashes
//! and goes on: nothing is told twice, and nothing is lost.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each looks for one kind of event among all that there are"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;
use protocol::pipe::{Event, Received};
use rusqlite::Connection;
use sandbox::chatdb::kinds::{Author, Body, Row as Writes};
use sandbox::chatdb::{ChatDb as Messages, Conversation, MacOs};
use sandbox::clock::AppleNs;
use sandbox::faults::{self, Order, Rebuild};
use sandbox::typedstream::AttributedText;

use super::*;
use crate::evidence;

const ANNA: &str = "+12025550101";
/// 2026-11-22T12:00:00Z.
const NOON: UnixMs = UnixMs(1_795_348_800_000);
/// Rows of one read: few, so that much lies between two.
const ROWS: usize = 7;
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

fn apple(at: UnixMs) -> AppleNs {
    AppleNs((at.0 - 978_307_200_000) * 1_000_000)
}

/// What a journal has: what was told, oldest first, and the position.
#[derive(Debug, Clone, Default)]
struct Told {
    heard: Vec<journal::Heard>,
    cursor: Option<String>,
    asked: std::cell::Cell<usize>,
}

impl Memory for Told {
    fn of_guids(&self, guids: &[&str]) -> Result<Vec<journal::Heard>, JournalError> {
        self.asked.set(self.asked.get() + guids.len());
        let fits = |heard: &&journal::Heard| guids.contains(&heard.guid.as_str());
        Ok(self.heard.iter().filter(fits).cloned().collect())
    }

    fn of_print(&self, print: u64) -> Result<Option<String>, JournalError> {
        let mut told = self.heard.iter().filter(|heard| heard.print == Some(print));
        Ok(told.next().map(|heard| heard.guid.clone()))
    }
}

impl Told {
    fn entry(&mut self, guid: String) -> &mut journal::Heard {
        let at = self.heard.iter().position(|heard| heard.guid == guid).unwrap_or_else(|| {
            self.heard.push(journal::Heard { guid, print: None, seen: None });
            self.heard.len() - 1
        });
        &mut self.heard[at]
    }

    /// As the daemon's transaction writes it down.
    fn commit(&mut self, news: evidence::News) -> Vec<Event> {
        let mut events = Vec::new();
        for new in news.facts {
            if let Some((guid, print)) = new.heard {
                self.entry(guid).print = Some(print);
            }
            events.push(new.fact);
        }
        for guid in news.joined {
            self.entry(guid);
        }
        for (guid, seen) in news.seen {
            self.entry(guid).seen = Some(seen);
        }
        self.cursor = news.cursor.or(self.cursor.take());
        events
    }
}

/// A row that was written, and what is still to come of it.
#[derive(Debug)]
struct Written {
    guid: String,
    text: String,
    joined: bool,
    filled: bool,
    edits: usize,
}

struct Phone {
    /// Removed with the phone.
    _dir: tempfile::TempDir,
    path: PathBuf,
    messages: Messages,
    written: Vec<Written>,
    now: Now,
    /// How much of what was told a new life has in memory, beside the journal.
    recalled: usize,
    /// Since the last read.
    renumbered: bool,
    database: Option<ChatDb>,
    reading: Reading,
    journal: Told,
    events: Vec<Event>,
}

impl Phone {
    fn new(recalled: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let messages = Messages::open(&path, MacOs::V27, "+15550100001").unwrap();
        let mut phone = Self {
            _dir: dir,
            path,
            messages,
            written: Vec::new(),
            now: Now { wall: NOON, continuous_ms: 1_000 },
            recalled,
            renumbered: false,
            database: None,
            reading: Reading::with_memory(None, Vec::new(), true),
            journal: Told::default(),
            events: Vec::new(),
        };
        phone.read(true);
        phone
    }

    fn pass(&mut self, ms: i64) {
        self.now.wall = self.now.wall.plus_ms(ms);
        self.now.continuous_ms += ms;
    }

    // ---- Messages ---------------------------------------------------------------------------

    fn write(&mut self, text: &str, age_ms: i64, (joined, filled): (bool, bool)) -> String {
        let at = apple(self.now.wall.plus_ms(-age_ms));
        let conversation = Conversation::Direct(ANNA.to_owned());
        let mut row = Writes::text(Author::Other(ANNA.to_owned()), conversation, at, text);
        if !filled {
            row.body = Body::Nothing;
        }
        let wrote = self.messages.write_row(&row).unwrap();
        let guid = wrote.guid.clone();
        let text = text.to_owned();
        self.written.push(Written { guid: wrote.guid, text, joined: false, filled, edits: 0 });
        if joined {
            self.complete(self.written.len() - 1);
        }
        guid
    }

    fn sql(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
        connection
    }

    /// What has been missing of a row comes: first its chat, then its text.
    fn complete(&mut self, which: usize) {
        let Some(row) = self.written.get_mut(which) else { return };
        if !row.joined {
            row.joined = true;
            // Its number may be another one by now; the chat is the only one.
            let guid = row.guid.clone();
            self.sql()
                .execute(
                    "INSERT INTO chat_message_join (chat_id, message_id, message_date)
                     SELECT (SELECT ROWID FROM chat), ROWID, date FROM message WHERE guid = ?1",
                    [guid],
                )
                .unwrap();
        } else if !row.filled {
            row.filled = true;
            let (guid, text) = (row.guid.clone(), AttributedText::with_links(&row.text));
            self.messages.complete_text(&guid, &text).unwrap();
        }
    }

    fn edit(&mut self, which: usize) {
        let at = apple(self.now.wall);
        let Some(row) = self.written.get_mut(which).filter(|row| row.filled) else { return };
        row.edits += 1;
        let (guid, text) = (row.guid.clone(), format!("{} edit {}", row.text, row.edits));
        self.messages.edit(&guid, 0, &text, at).unwrap();
    }

    /// Other numbers in the same file: every row has another one. Once between two reads, since a second
    /// time could bring a row back to its number; in a new file that would be noticed.
    fn renumber(&mut self, by: usize) {
        if std::mem::replace(&mut self.renumbered, true) {
            return;
        }
        let mut connection = self.sql();
        let tx = connection.transaction().unwrap();
        let ids: Vec<i64> = tx
            .prepare("SELECT ROWID FROM message ORDER BY ROWID")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        tx.execute_batch(
            "PRAGMA defer_foreign_keys = ON;
             UPDATE chat_message_join SET message_id = message_id + 1000000;
             UPDATE message SET ROWID = ROWID + 1000000;",
        )
        .unwrap();
        let mut places: Vec<usize> = (0..ids.len()).collect();
        if let Some(others) = ids.len().checked_sub(1).filter(|others| *others > 0) {
            places.rotate_left(1 + by % others);
        }
        for (old, place) in ids.iter().zip(places) {
            let (old, new) = (old + 1_000_000, ids[place]);
            tx.execute("UPDATE message SET ROWID = ?2 WHERE ROWID = ?1", (old, new)).unwrap();
            let joins = "UPDATE chat_message_join SET message_id = ?2 WHERE message_id = ?1";
            tx.execute(joins, (old, new)).unwrap();
        }
        // Numbers that were never given out before are not given out now either.
        tx.execute(
            "UPDATE sqlite_sequence SET seq = (SELECT MAX(ROWID) FROM message)
             WHERE name = 'message' AND EXISTS (SELECT 1 FROM message)",
            [],
        )
        .unwrap();
        tx.commit().unwrap();
    }

    /// Other numbers in another file.
    fn rebuild(&mut self, seed: u64) {
        let db = self.path.clone();
        faults::rebuild(&Rebuild { db, order: Order::Shuffled, first: 1, seed }).unwrap();
        self.messages.reopen().unwrap();
    }

    // ---- the bridge -------------------------------------------------------------------------

    /// One read, of possibly several.
    fn read_some(&mut self) {
        let database = self.database.take().unwrap();
        let read = self.reading.read(&database, &self.journal, ROWS, self.now).unwrap();
        self.database = Some(database);
        let events = self.journal.commit(evidence::news(read));
        self.events.extend(events);
    }

    /// Reads all there is. Without `commit` the bridge crashes before it is written down.
    fn read(&mut self, commit: bool) {
        for turn in 0.. {
            assert!(turn < 1_000, "it comes to no end");
            let database = match self.database.take() {
                Some(database) if !database.is_stale() => database,
                Some(_) | None => {
                    self.reading.opened();
                    ChatDb::open(&self.path).unwrap()
                }
            };
            let read = self.reading.read(&database, &self.journal, ROWS, self.now).unwrap();
            self.database = Some(database);
            let more = read.more;
            if !commit {
                self.restart();
                return;
            }
            self.renumbered = false;
            let events = self.journal.commit(evidence::news(read));
            self.events.extend(events);
            if !more {
                return;
            }
        }
    }

    fn restart(&mut self) {
        self.database = None;
        let from = self.journal.heard.len().saturating_sub(self.recalled);
        let heard = self.journal.heard[from..].to_vec();
        self.reading = Reading::with_memory(self.journal.cursor.as_deref(), heard, from == 0);
    }

    /// Everything comes, and is read.
    fn settle(&mut self) {
        for which in 0..self.written.len() {
            self.complete(which);
            self.complete(which);
        }
        for _ in 0..3 {
            self.read(true);
            self.pass(11_000);
        }
        self.pass(VERIFY_EVERY_MS);
        self.read(true);
    }

    fn received(&self) -> Vec<&Received> {
        let received = self.events.iter().filter_map(|event| match event {
            Event::Received(received) => Some(received),
            _ => None,
        });
        received.collect()
    }

    fn resyncs(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Resync { .. })).count()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { age_ms: i64, joined: bool, filled: bool },
    Complete(usize),
    Edit(usize),
    Renumber(usize),
    Rebuild(u64),
    Read,
    Crash,
    Restart,
    Pass(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..30 * MINUTE_MS, any::<bool>(), prop::bool::weighted(0.8))
            .prop_map(|(age_ms, joined, filled)| Step::Write { age_ms, joined, filled }),
        4 => (0..20_usize).prop_map(Step::Complete),
        3 => (0..20_usize).prop_map(Step::Edit),
        1 => (0..50_usize).prop_map(Step::Renumber),
        1 => (0..50_u64).prop_map(Step::Rebuild),
        5 => Just(Step::Read),
        2 => Just(Step::Crash),
        2 => Just(Step::Restart),
        2 => (0..12_000_i64).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_each_message_is_told_once_and_its_edits_in_order(
        steps in prop::collection::vec(step(), 1..50),
        recalled in prop_oneof![Just(2_usize), Just(1_000)],
    ) {
        let mut phone = Phone::new(recalled);
        for step in steps {
            match step {
                Step::Write { age_ms, joined, filled } => {
                    let text = format!("text {}", phone.written.len());
                    phone.write(&text, age_ms, (joined, filled));
                }
                Step::Complete(which) => phone.complete(which),
                Step::Edit(which) => phone.edit(which),
                Step::Renumber(by) => phone.renumber(by),
                Step::Rebuild(seed) => phone.rebuild(seed),
                Step::Read => phone.read(true),
                Step::Crash => phone.read(false),
                Step::Restart => phone.restart(),
                Step::Pass(ms) => phone.pass(ms),
            }
        }
        phone.settle();
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for received in phone.received() {
            prop_assert_eq!(&received.details.copy_of, &None, "{}", received.guid);
            *times.entry(&received.guid).or_default() += 1;
        }
        for row in &phone.written {
            prop_assert_eq!(times.get(row.guid.as_str()), Some(&1), "{:?}", row);
            let told: Vec<usize> = phone
                .events
                .iter()
                .filter_map(|event| match event {
                    Event::Edited(edit) if edit.guid == row.guid => Some(edit.history.len()),
                    _ => None,
                })
                // A text that came after its row was told has no history.
                .filter(|texts| *texts > 0)
                .collect();
            prop_assert!(told.is_sorted_by(|one, next| one < next), "{:?} of {:?}", told, row);
            let expected = if row.edits == 0 { None } else { Some(row.edits + 1) };
            prop_assert_eq!(told.last().copied(), expected, "{:?}", row);
        }
        prop_assert_eq!(times.len(), phone.written.len());
    }
}

/// Writes many messages at once.
fn write_many(phone: &mut Phone, count: i64) {
    let like = phone.write("many", 0, (true, true));
    let mut connection = phone.sql();
    let tx = connection.transaction().unwrap();
    for n in 0..count {
        tx.execute(
            "INSERT INTO message (guid, text, handle_id, service, date, is_finished)
             SELECT ?2, ?2, handle_id, service, date + ?3, 1 FROM message WHERE guid = ?1",
            (&like, format!("MANY-{n}"), n * 1_000_000),
        )
        .unwrap();
        tx.execute(
            "INSERT INTO chat_message_join (chat_id, message_id)
             SELECT ROWID, last_insert_rowid() FROM chat",
            [],
        )
        .unwrap();
    }
    tx.commit().unwrap();
}

#[test]
fn an_old_row_that_changes_is_seen_although_something_changes_all_the_time() {
    let mut phone = Phone::new(100);
    write_many(&mut phone, 3_000);
    phone.read(true);
    let sql = "UPDATE message SET is_empty = 1, part_count = 0, text = NULL, message_summary_info =
                   (SELECT message_summary_info FROM message WHERE guid = ?1) WHERE guid = ?2";
    // What an unsend looks like is copied from one.
    let unsent = phone.write("unsent", 0, (true, true));
    phone.messages.unsend(&unsent, None, apple(phone.now.wall)).unwrap();
    phone.sql().execute(sql, (&unsent, "MANY-2000")).unwrap();
    let is_told = |event: &Event| matches!(event, Event::Unsent(was) if was.guid == "MANY-2000");
    let mut turns = 0;
    while !phone.events.iter().any(is_told) {
        turns += 1;
        assert!(turns < 20, "the rotation never gets there");
        phone.write("busy", 0, (true, true));
        phone.read_some();
    }
    assert_eq!(phone.events.iter().filter(|event| is_told(event)).count(), 1);
}

#[test]
fn more_than_is_kept_in_memory_is_asked_of_the_journal() {
    let mut phone = Phone::new(3);
    let texts: Vec<String> = (0..40).map(|n| format!("text {n}")).collect();
    for text in &texts {
        phone.write(text, 0, (true, true));
    }
    phone.read(true);
    phone.restart();
    phone.rebuild(5);
    phone.settle();
    assert!(phone.journal.asked.get() >= 37, "{}", phone.journal.asked.get());
    assert_eq!((phone.received().len(), phone.resyncs()), (40, 1));
    // Where all of it is in memory nothing is asked.
    let mut phone = Phone::new(1_000);
    for text in &texts {
        phone.write(text, 0, (true, true));
    }
    phone.read(true);
    phone.restart();
    phone.rebuild(5);
    phone.settle();
    assert_eq!((phone.received().len(), phone.journal.asked.get()), (40, 0));
}

#[test]
fn a_copy_is_recognised_however_long_ago_its_original_was_told() {
    let mut phone = Phone::new(3);
    let original = phone.write("the first", 8 * HOUR_MS, (true, true));
    for n in 0..20 {
        phone.write(&format!("text {n}"), 0, (true, true));
    }
    phone.read(true);
    phone.restart();
    let copy = phone.messages.write_late_copy(&original).unwrap();
    phone.messages.join(&copy).unwrap();
    // The original is not there any more, so that only the journal knows it.
    phone.sql().execute("UPDATE message SET date = 0 WHERE guid = ?1", [&original]).unwrap();
    phone.settle();
    let received = phone.received();
    let copy = received.last().unwrap();
    assert_eq!(copy.details.copy_of.as_deref(), Some(original.as_str()));
    assert!(copy.late);
    assert_eq!(received.len(), 22);
}

#[test]
fn the_same_words_twice_in_a_second_are_two_messages() {
    let mut phone = Phone::new(100);
    phone.write("before", 0, (true, true));
    phone.read(true);
    phone.write("ha", 1_700, (true, true));
    phone.write("ha", 1_400, (true, true));
    phone.rebuild(1);
    phone.settle();
    let told: Vec<_> =
        phone.received().into_iter().map(|one| (one.text.as_str(), &one.details.copy_of)).collect();
    assert_eq!(told, [("before", &None), ("ha", &None), ("ha", &None)]);
}

#[test]
fn a_preview_that_is_filled_in_another_life_is_told_once() {
    const LINK: &str = "https://example.test/a";
    for (recalled, empty) in [(0, false), (0, true), (100, false), (100, true)] {
        let mut phone = Phone::new(recalled);
        let message = phone.write(&format!("see {LINK}"), 0, (true, true));
        let (anna, at) = (Author::Other(ANNA.to_owned()), apple(phone.now.wall));
        let new = || Writes::new(anna.clone(), Conversation::Direct(ANNA.to_owned()), at);
        let whole = new().url_preview(LINK, "A title");
        // Messages writes the row first: with its text at most.
        let bare = if empty {
            let balloon = whole.columns()["balloon_bundle_id"].clone();
            new().guid(whole.guid.clone()).with("balloon_bundle_id", balloon)
        } else {
            whole.clone().without_payload()
        };
        phone.messages.write_joined(&bare).unwrap();
        phone.settle();
        assert_eq!(phone.received().len(), 1, "{recalled} {empty}");
        phone.restart();
        phone.read(true);
        phone.messages.fill_payload(&whole.guid, &whole).unwrap();
        phone.read(true);
        phone.restart();
        phone.settle();
        let told: Vec<_> = phone
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Preview(told) => Some((&told.message, told.preview.title.as_deref())),
                _ => None,
            })
            .collect();
        assert_eq!(told, [(&message, Some("A title"))], "{recalled} {empty}");
        assert_eq!(phone.received().len(), 1);
    }
}

#[test]
fn in_a_window_late_is_what_is_old_beside_what_was_read_before() {
    let mut phone = Phone::new(100);
    phone.pass(48 * HOUR_MS);
    phone.write("before", 0, (true, true));
    phone.read(true);
    phone.pass(20 * HOUR_MS);
    for (text, age_ms) in [("late", 30 * HOUR_MS), ("old", 19 * HOUR_MS), ("new", 0)] {
        phone.write(text, age_ms, (true, true));
    }
    phone.rebuild(2);
    phone.settle();
    let mut late: Vec<_> =
        phone.received().into_iter().map(|one| (one.text.as_str(), one.late)).collect();
    late.sort_unstable();
    assert_eq!(late, [("before", false), ("late", true), ("new", false), ("old", false)]);
}

#[test]
fn a_resynchronisation_tells_nothing_that_was_there_before_the_first_look() {
    let mut phone = Phone::new(100);
    // As if it were new: what it has is history to a bridge without a journal.
    phone.write("history", 0, (true, true));
    phone.read(true);
    phone.events.clear();
    phone.journal = Told::default();
    phone.pass(2 * HOUR_MS);
    phone.restart();
    phone.read(true);
    phone.write("news", 0, (true, true));
    phone.rebuild(4);
    phone.settle();
    let told: Vec<_> = phone.received().into_iter().map(|one| one.text.as_str()).collect();
    assert_eq!((told, phone.resyncs()), (vec!["news"], 1));
}

#[test]
fn a_position_says_how_far_back_what_was_told_is_needed() {
    let beside = |newest: Option<UnixMs>, window| Beside { newest, window, since: None };
    let identity = Identity { device: 1, inode: 2, born_ns: None, unique: None };
    let cursor = Cursor { identity, rowid: 3, guid: "G".to_owned() };
    let needed = |beside| needed_since(&text(&cursor, beside));
    assert_eq!(needed(beside(None, None)), None);
    let week = NOON.plus_ms(-RESYNC_WINDOW_MS - AHEAD_MS);
    assert_eq!(needed(beside(Some(NOON), None)), Some(week));
    let long_ago = NOON.plus_ms(-100 * 24 * HOUR_MS);
    let window = Some(Window { up_to: 9, since: long_ago });
    assert_eq!(needed(beside(Some(NOON), window)), Some(long_ago.plus_ms(-AHEAD_MS)));
}
