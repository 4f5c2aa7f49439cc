//! What may happen to a chat.db while a bridge reads it, or while it does not: every message is told
//! exactly once, by its guid, and the bridge says so when the numbers mean something else.
//!
//! Messages, the bridge and every fault are processes of their own, since SQLite shares locks and
//! indexes inside of one.

#![cfg(test)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each looks for one kind of event among all that there are"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::fault_support::{FROM, Phone, Watching, be_the_sandbox, guid, wait_for};
use nix::sys::signal::Signal;
use protocol::pipe::{Event, TransferState};
use rusqlite::{Connection, params};
use sandbox::socket::Client;
use serde_json::json;

#[test]
#[ignore = "is the sandbox, which the other tests start as a process beside them"]
fn the_sandbox() {
    be_the_sandbox();
}

#[test]
fn a_rebuild_with_other_numbers_is_noticed_while_the_bridge_runs() {
    let mut phone = Phone::new(15);
    for (round, order) in ["shuffled", "reversed", "kept", "shuffled"].into_iter().enumerate() {
        phone.receive_some(order, 12);
        phone.fence();
        let before = phone.count("resync");
        phone.fault("rebuild", &["--order", order, "--seed", &round.to_string()]);
        phone.reopen();
        phone.receive_some("after", 2);
        phone.fence();
        // Once, or once more where it was read while one file took the other's place.
        assert!(phone.count("resync") > before, "{order}");
    }
    phone.told_once();
}

#[test]
fn what_comes_while_the_bridge_is_down_is_told_after_a_rebuild() {
    let mut phone = Phone::new(26);
    phone.receive_some("before", 10);
    phone.fence();
    for (round, killed) in [false, true].into_iter().enumerate() {
        if killed {
            phone.kill();
        } else {
            phone.stop();
        }
        phone.receive_some("unread", 10);
        phone.fault("rebuild", &["--seed", &format!("{}", round + 7)]);
        phone.reopen();
        phone.start();
        phone.fence();
        assert_eq!(phone.count("resync"), round + 1);
    }
    phone.told_once();
}

#[test]
fn a_rebuild_that_keeps_the_row_at_the_position_is_noticed() {
    let mut phone = Phone::new(15);
    phone.receive_some("before", 3);
    phone.fence();
    phone.stop();
    phone.receive_some("unread", 3);
    // By chance the last row that was read keeps its number; rows that were not are below it.
    let read: Vec<String> =
        phone.expected.iter().filter(|guid| phone.is_told(guid)).cloned().collect();
    let at = |guid: &str| {
        let database = Connection::open(phone.chat_db()).unwrap();
        let sql = "SELECT ROWID FROM message WHERE guid = ?1";
        database.query_row(sql, [guid], |row| row.get::<_, i64>(0)).unwrap()
    };
    let position = read.iter().map(|guid| (at(guid), guid.clone())).max().unwrap();
    let original = phone.path("original.db");
    phone.fault("backup", &["--to", original.to_str().unwrap()]);
    let seed = (1..500).find(|seed| {
        phone.fault("rebuild", &["--seed", &seed.to_string()]);
        let unread = phone.expected.iter().filter(|guid| !read.contains(guid));
        let fits =
            at(&position.1) == position.0 && unread.map(|guid| at(guid)).any(|n| n < position.0);
        if !fits {
            phone.fault("restore", &["--from", original.to_str().unwrap()]);
        }
        fits
    });
    assert!(seed.is_some(), "no such order");
    phone.reopen();
    phone.start();
    phone.fence();
    assert_eq!(phone.count("resync"), 1);
    phone.told_once();
}

#[test]
fn another_file_in_its_place_is_noticed() {
    let mut phone = Phone::new(15);
    phone.receive_some("before", 8);
    phone.fence();
    // The same numbers, other messages.
    let mut other = Phone::without_bridge(15);
    other.receive_some("other", 8);
    let path = other.path("copy.db");
    other.fault("backup", &["--to", path.to_str().unwrap()]);
    for down in [false, true] {
        let before = phone.count("resync");
        if down {
            phone.kill();
            other.receive_some("more", 8);
            std::fs::remove_file(&path).unwrap();
            other.fault("backup", &["--to", path.to_str().unwrap()]);
        }
        phone.fault("restore", &["--from", path.to_str().unwrap()]);
        phone.reopen();
        phone.expected.extend(other.expected.iter().cloned());
        if down {
            phone.start();
        }
        phone.fence();
        assert!(phone.count("resync") > before);
    }
    phone.told_once();
}

#[test]
fn after_a_restored_backup_numbers_are_used_again_and_nothing_is_lost() {
    let mut phone = Phone::new(15);
    phone.receive_some("old", 5);
    phone.fence();
    let backup = phone.path("backup.db");
    phone.fault("backup", &["--to", backup.to_str().unwrap()]);
    phone.receive_some("gone", 5);
    phone.fence();
    // Fewer messages than were lost: their numbers were told before.
    phone.fault("restore", &["--from", backup.to_str().unwrap()]);
    phone.reopen();
    phone.receive_some("again", 2);
    phone.fence();
    let before = phone.count("resync");
    assert!(before > 0);
    // More than were lost, while nobody reads: only the guids show it.
    phone.kill();
    phone.fault("restore", &["--from", backup.to_str().unwrap()]);
    phone.reopen();
    phone.receive_some("overtaken", 9);
    phone.start();
    phone.fence();
    assert!(phone.count("resync") > before);
    phone.told_once();
}

#[test]
fn while_messages_holds_the_lock_the_bridge_waits() {
    let mut phone = Phone::new(15);
    for lock in ["write", "all", "busy"] {
        let running =
            phone.begin_fault("hold-lock", &["--ms", "1500", "--lock", lock], Some("held"));
        // The sandbox waits for it as well.
        phone.receive_some(lock, 2);
        running.end();
        phone.fence();
        phone.stop();
        phone.receive_some("before a start", 2);
        let running =
            phone.begin_fault("hold-lock", &["--ms", "1500", "--lock", lock], Some("held"));
        phone.start();
        running.end();
        phone.fence();
    }
    assert_eq!(phone.count("resync"), 0);
    phone.told_once();
}

#[test]
fn messages_come_through_a_storm_of_checkpoints() {
    let mut phone = Phone::new(26);
    let storm = phone.begin_fault("checkpoint-storm", &["--seconds", "4"], None);
    phone.receive_some("storm", 60);
    phone.kill();
    phone.receive_some("storm, unread", 20);
    phone.start();
    storm.end();
    phone.fence();
    phone.until("heartbeat", |phone| phone.longest_read_us > 0);
    println!("the longest read in the storm took {} µs", phone.longest_read_us);
    assert_eq!(phone.count("resync"), 0);
    phone.told_once();
}

/// Messages quits and starts: its WAL goes, and a new one comes.
fn recreate_wal(phone: &mut Phone) {
    wait_for("a moment without readers", || phone.try_fault("recreate-wal", &[]));
    phone.reopen();
}

#[test]
fn a_wal_that_is_made_anew_is_followed() {
    let mut phone = Phone::new(27);
    for _ in 0..4 {
        phone.receive_some("before", 3);
        recreate_wal(&mut phone);
        phone.receive_some("after", 3);
        phone.fence();
    }
    phone.stop();
    phone.receive_some("unread", 3);
    recreate_wal(&mut phone);
    phone.start();
    phone.fence();
    assert_eq!(phone.count("resync"), 0, "the numbers mean what they did");
    phone.told_once();
}

#[test]
fn by_polling_alone_nothing_is_missed_and_nothing_repeated() {
    for more in [&["--poll-only"][..], &[]] {
        let mut phone = Phone::without_bridge(15);
        phone.receive_some("before", 5);
        let mut watching = Watching::start(&phone.chat_db(), more);
        watching.until_told(&phone.expected);
        phone.receive_some("new", 5);
        watching.until_told(&phone.expected);
        recreate_wal(&mut phone);
        phone.receive_some("another WAL", 5);
        watching.until_told(&phone.expected);
        phone.fault("rebuild", &[]);
        phone.reopen();
        phone.receive_some("rebuilt", 5);
        watching.until_told(&phone.expected);
        let once: BTreeSet<&String> = watching.told.iter().collect();
        assert_eq!(once.len(), watching.told.len(), "{more:?}");
        assert!(watching.resyncs > 0, "{more:?}");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the bridge is to sleep for a while")]
fn a_machine_that_was_asleep_reads_what_came_meanwhile() {
    let mut phone = Phone::new(15);
    // In the middle of a read it would keep its lock for as long as it sleeps, and no WAL could be made anew.
    wait_for("a sleep between two reads", || {
        phone.signal(Signal::SIGSTOP);
        let between = phone.try_fault("recreate-wal", &[]);
        if !between {
            phone.signal(Signal::SIGCONT);
        }
        between
    });
    phone.reopen();
    phone.receive_some("asleep", 10);
    recreate_wal(&mut phone);
    phone.receive_some("still asleep", 10);
    std::thread::sleep(Duration::from_millis(1_500));
    phone.signal(Signal::SIGCONT);
    phone.fence();
    phone.told_once();
}

const FORTNIGHT_MS: i64 = 14 * 86_400_000;

#[test]
fn what_has_happened_to_old_messages_in_two_weeks_is_told_after_them() {
    let mut phone = Phone::without_bridge(15);
    phone.start();
    phone.until("ready", |phone| phone.path("state/journal.db").exists());
    let file = phone.path("photo.png");
    std::fs::write(&file, b"not really a picture").unwrap();
    let old = json!({"age_ms": FORTNIGHT_MS});
    // Before the bridge began there was nothing, so that its first message is its oldest.
    let edited = guid(&phone.receive_with("edited", &old));
    let unsent = guid(&phone.receive_with("unsent", &old));
    let text = "see https://example.org/page";
    let whole = json!({"age_ms": FORTNIGHT_MS, "preview": "A page"});
    phone.receive_with(text, &whole);
    let link = guid(&phone.receive_with(text, &old));
    let more = json!({"age_ms": FORTNIGHT_MS, "attach": [file], "attach_pending": true});
    let photo = phone.receive_with("photo", &more);
    phone.until("messages", Phone::is_all_told);
    phone.stop();
    phone.change("edit", &edited, &json!({"text": "edited once"}));
    phone.change("edit", &edited, &json!({"text": "edited twice"}));
    phone.change("unsend", &unsent, &json!({}));
    phone.change("finish_attachment", photo["attachments"][0].as_str().unwrap(), &json!({}));
    preview(&phone, &link);
    // More than the newest rows, which are looked at in any case.
    phone.receive_some("of today", 230);
    for killed in [true, false] {
        phone.start();
        phone.fence();
        phone.until("changes", |phone| {
            ["edited", "unsent", "attachment", "preview"].iter().all(|kind| phone.count(kind) > 0)
        });
        if killed {
            phone.kill();
        } else {
            phone.stop();
        }
    }
    phone.start();
    phone.told_once();
    let told: Vec<&Event> = phone.events.values().map(|line| &line.event).collect();
    let texts: Vec<&str> = told
        .iter()
        .filter_map(|event| match event {
            Event::Edited(edit) if edit.guid == edited => Some(edit.text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(texts, ["edited twice"]);
    let unsends =
        told.iter().filter(|event| matches!(event, Event::Unsent(was) if was.guid == unsent));
    assert_eq!((unsends.count(), phone.count("unsent")), (1, 1));
    let files: Vec<TransferState> = told
        .iter()
        .filter_map(|event| match event {
            Event::Attachment(change) if change.message == guid(&photo) => {
                Some(change.attachment.state)
            }
            _ => None,
        })
        .collect();
    assert_eq!(files, [TransferState::Complete]);
    let previews: Vec<&str> = told
        .iter()
        .filter_map(|event| match event {
            Event::Preview(change) => Some(change.message.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(previews, [link]);
}

/// Writes the preview of a text's link, as Messages does: a row of its own beside it, here with what
/// that of another text shows.
fn preview(phone: &Phone, of: &str) {
    let database = Connection::open(phone.chat_db()).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    database
        .execute(
            "INSERT INTO message (guid, text, handle_id, service, date, is_finished, balloon_bundle_id,
                                  payload_data)
             SELECT 'PREVIEW', p.text, m.handle_id, m.service, m.date + 500000000, 1,
                    p.balloon_bundle_id, p.payload_data
             FROM message m JOIN message p ON p.payload_data IS NOT NULL WHERE m.guid = ?1",
            [of],
        )
        .unwrap();
    database
        .execute(
            "INSERT INTO chat_message_join (chat_id, message_id, message_date)
             SELECT j.chat_id, (SELECT ROWID FROM message WHERE guid = 'PREVIEW'), m.date
             FROM message m JOIN chat_message_join j ON j.message_id = m.ROWID WHERE m.guid = ?1",
            [of],
        )
        .unwrap();
}

/// Writes many messages at once.
fn write_many(phone: &mut Phone, what: &str, count: i64) {
    let like = phone.receive(what);
    let mut database = Connection::open(phone.chat_db()).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    let tx = database.transaction().unwrap();
    for n in 0..count {
        let guid = format!("{what}-{n}");
        tx.execute(
            "INSERT INTO message (guid, text, handle_id, service, date, is_finished)
             SELECT ?2, ?2, handle_id, service, date + ?3, 1 FROM message WHERE guid = ?1",
            params![like, guid, n],
        )
        .unwrap();
        tx.execute(
            "INSERT INTO chat_message_join (chat_id, message_id, message_date)
             SELECT j.chat_id, last_insert_rowid(), m.date
             FROM message m JOIN chat_message_join j ON j.message_id = m.ROWID WHERE m.guid = ?1",
            [&like],
        )
        .unwrap();
        phone.expected.insert(guid);
    }
    tx.commit().unwrap();
}

#[test]
fn killed_again_and_again_in_a_resynchronisation_it_goes_on_with_it() {
    let mut phone = Phone::new(15);
    write_many(&mut phone, "known", 2_500);
    phone.fence();
    phone.kill();
    write_many(&mut phone, "unread", 2_500);
    phone.fault("rebuild", &["--seed", "3"]);
    phone.reopen();
    for heard in [1, 2, 500, 1_200] {
        let before = phone.events.len();
        phone.start();
        phone.until("more events", |phone| phone.events.len() >= before + heard);
        phone.kill();
    }
    phone.start();
    phone.fence();
    assert_eq!(phone.count("resync"), 1, "begun once, whatever interrupts it");
    phone.told_once();
}

/// What was told of late copies: of which message each is said to be one.
fn copies(phone: &Phone) -> Vec<(String, bool, Option<String>)> {
    phone
        .received()
        .filter(|received| received.late || received.details.copy_of.is_some())
        .map(|received| (received.guid.clone(), received.late, received.details.copy_of.clone()))
        .collect()
}

#[test]
fn late_copies_are_matched_to_what_was_told_before_and_after_a_restart() {
    let mut phone = Phone::new(15);
    let original = guid(&phone.receive_with("hello", &json!({"age_ms": 10 * 3_600_000})));
    phone.fence();
    let mut expected = Vec::new();
    for restarted in [false, true] {
        if restarted {
            phone.kill();
        }
        let copy = guid(&phone.ask(Phone::request("late_copy", &json!({"guid": original}))));
        phone.expected.insert(copy.clone());
        expected.push((copy, true, Some(original.clone())));
        if restarted {
            // What the original says can be read in the journal alone, as a number.
            let database = Connection::open(phone.chat_db()).unwrap();
            database.busy_timeout(Duration::from_secs(10)).unwrap();
            let changed = "UPDATE message SET text = 'x', attributedBody = NULL WHERE guid = ?1";
            database.execute(changed, [&original]).unwrap();
            phone.start();
        }
        phone.fence();
    }
    // A stranger's old message is late, and a copy of nothing.
    let stray = phone.receive_with("old news", &json!({"age_ms": 20 * 3_600_000}));
    expected.push((guid(&stray), true, None));
    phone.told_once();
    let first = (original, true, None);
    let told: Vec<_> = copies(&phone).into_iter().filter(|copy| *copy != first).collect();
    assert_eq!(told, expected);
}

#[test]
fn edits_unsends_and_files_are_told_once_across_restarts() {
    let mut phone = Phone::new(26);
    let file = phone.path("photo.png");
    std::fs::write(&file, b"not really a picture").unwrap();
    let text = phone.receive("first");
    let more = json!({"attach": [file], "attach_pending": true});
    let photo = phone.receive_with("", &more);
    phone.fence();
    let attachment = photo["attachments"][0].as_str().unwrap().to_owned();
    let mut edits = Vec::new();
    for round in 0..4 {
        match round {
            1 => phone.stop(),
            2 => phone.kill(),
            _ => {}
        }
        let words = format!("edit {round}");
        phone.change("edit", &text, &json!({"text": words}));
        edits.push(words);
        let state = if round == 2 { "complete" } else { "downloading" };
        if round < 3 {
            phone.change("finish_attachment", &attachment, &json!({"state": state}));
        }
        if matches!(round, 1 | 2) {
            phone.start();
        }
        phone.until("edit", |phone| phone.count("edited") == round + 1);
    }
    phone.kill();
    phone.change("unsend", &text, &json!({}));
    phone.start();
    phone.until("unsend", |phone| phone.count("unsent") == 1);
    phone.told_once();
    let told: Vec<String> = phone
        .events
        .values()
        .filter_map(|line| match &line.event {
            Event::Edited(edit) => Some(edit.text.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(told, edits);
    assert_eq!((phone.count("unsent"), phone.count("attachment")), (1, 1));
}

#[test]
fn a_row_before_its_chat_or_its_text_is_waited_for_and_told_whole() {
    let mut phone = Phone::new(15);
    let dir = phone.path("");
    for more in [json!({"join_after_ms": 1_200}), json!({"text_after_ms": 1_200})] {
        let mut request = Phone::request(
            "receive",
            &json!({"from": FROM, "text": "whole", "service": "iMessage"}),
        );
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = serde_json::from_value(request).unwrap();
        let dir = dir.clone();
        let writing = std::thread::spawn(move || {
            let mut client = Client::connect(&dir).unwrap();
            client.ask(&request, Some(Duration::from_secs(30))).unwrap()
        });
        // Another message, which does not wait for the first, says that its row is there; and then
        // the bridge has one life more.
        phone.fence();
        phone.kill();
        phone.start();
        let reply = writing.join().unwrap();
        let sandbox::socket::Reply::Done { value } = reply else { panic!("{reply:?}") };
        phone.expected.insert(guid(&value));
        phone.fence();
    }
    phone.told_once();
    let whole = phone
        .received()
        .filter(|received| received.text == "whole" && received.conversation.id == FROM);
    assert_eq!(whole.count(), 2);
}

#[test]
fn a_text_that_comes_long_after_its_row_is_told_as_an_edit() {
    let mut phone = Phone::new(15);
    let more = json!({"text_after_ms": 11_500});
    // The row is taken as it is after ten seconds; there is nothing in it, so nothing is told.
    let guid = guid(&phone.receive_with("at last", &more));
    phone.until("text", |phone| {
        phone.received().any(|received| received.guid == guid && received.text == "at last")
    });
    phone.told_once();
}
