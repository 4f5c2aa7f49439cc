use std::path::PathBuf;

use protocol::pipe::{Event as Fact, OutboundAttachment};
use protocol::{Channel, Class, MessageId, Reason, Recipient};

use super::*;
use crate::osascript::Failure;
use crate::outbound::{Phase, Stage, Wanted, Work};

const NOW: Now = Now { wall: UnixMs(1_700_000_000_000), continuous_ms: 5_000 };

fn phone() -> PhoneId {
    PhoneId::new(1, [1; 10])
}

fn open(dir: &Path) -> Journal {
    Journal::open(&dir.join("journal.db"), &phone(), "jrn_new", NOW).unwrap()
}

fn attempt(n: u8) -> Attempt {
    Attempt { message: MessageId::new(1, [n; 10]), attempt: 1 }
}

fn event(seq: u64) -> Change {
    Change::Event(EventLine {
        seq,
        at: NOW.wall,
        epoch: Some(3),
        event: Fact::Accepted(attempt(1)),
    })
}

fn wanted(name: &str, staged: Option<&str>) -> Wanted {
    let file = OutboundAttachment {
        url: format!("https://example.com/{name}?key=secret"),
        name: Some(name.to_owned()),
        sha256: None,
    };
    Wanted { file, staged: staged.map(PathBuf::from) }
}

fn send(n: u8, phase: Phase) -> SendRecord {
    let work = Work {
        epoch: 3,
        class: Class::Otp,
        to: Recipient::Number("+12025550143".parse().unwrap()),
        text: "secret 🎈 \"quoted\"".to_owned(),
        files: vec![wanted("a", Some("/tmp/Ä 1.png")), wanted("b", None)],
        done: 1,
        route: vec![Channel::Imessage, Channel::Sms],
        index: 1,
        start_before: NOW.wall.plus_ms(60_000),
        accepted_at: NOW.wall,
        failed: Some((
            Channel::Imessage,
            Failure {
                reason: Reason::NotRegistered,
                detail: "chat.db error 22".to_owned(),
                retryable: false,
            },
        )),
    };
    let told = Told { seq: 1, fact: Fact::Accepted(attempt(n)) };
    SendRecord::live(attempt(n), told, work, phase)
}

fn put(send: &SendRecord) -> Change {
    Change::Put(Box::new(send.clone()))
}

#[test]
fn every_state_of_a_send_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = NOW.wall;
    let found = |stage, told_unknown| Phase::Found {
        rowid: 12,
        guid: "GUID".to_owned(),
        at,
        stage,
        told_unknown,
    };
    let phases = [
        Phase::Accepted,
        Phase::Started { mark: 7, at },
        Phase::Handed { mark: 7, at },
        Phase::Doubt { mark: 7, at },
        found(Stage::Pending, true),
        found(Stage::Sent, false),
        found(Stage::Delivered, false),
    ];
    for phase in phases {
        let expected = send(1, phase);
        open(dir.path()).commit(&[put(&expected)], NOW).unwrap();
        assert_eq!(open(dir.path()).live_sends().unwrap(), [expected]);
    }
}

#[test]
fn what_is_over_keeps_neither_text_nor_recipient() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    let told = Told { seq: 2, fact: Fact::Canceled(attempt(1)) };
    let over = SendRecord::finished(attempt(1), told.clone(), NOW.wall);
    journal.commit(&[put(&send(1, Phase::Accepted)), put(&over)], NOW).unwrap();
    assert_eq!(journal.live_sends().unwrap(), []);
    assert_eq!(journal.told(&attempt(1)).unwrap(), Some(told));
    assert_eq!(journal.told(&attempt(2)).unwrap(), None);
    journal.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let bytes = std::fs::read(dir.path().join("journal.db")).unwrap();
    for trace in ["secret", "5550143"] {
        let there = bytes.windows(trace.len()).any(|window| window == trace.as_bytes());
        assert!(!there, "{trace} is still in the file");
    }
}

#[test]
fn a_turn_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    journal.commit(&[event(1)], NOW).unwrap();
    // The second event has a number that is taken: nothing of this turn may stay.
    let turn = [put(&send(1, Phase::Accepted)), Change::MaxEpoch(9), event(2), event(1)];
    assert!(matches!(journal.commit(&turn, NOW), Err(JournalError::Sqlite { .. })));
    drop(journal);
    let journal = open(dir.path());
    let meta = journal.meta().unwrap();
    assert_eq!((meta.last_seq, meta.max_epoch), (1, 0));
    assert_eq!(journal.live_sends().unwrap(), []);
    assert_eq!(journal.events(1, 10).unwrap().len(), 1);
}

#[test]
fn a_crash_before_the_commit_leaves_the_turn_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    journal.commit(&[event(1)], NOW).unwrap();
    // The process dies within a transaction: what is on the disk is copied as it is.
    let tx = journal.connection.transaction().unwrap();
    write(&tx, &event(2), NOW).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for name in ["journal.db", "journal.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    drop(tx);
    let after = open(copy.path());
    assert_eq!(after.meta().unwrap().last_seq, 1);
    assert_eq!(after.id(), "jrn_new");
}

#[test]
fn acknowledged_events_are_forgotten_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    journal.commit(&[event(1), event(2), event(3), Change::Acked(2)], NOW).unwrap();
    journal.commit(&[Change::Acked(1)], NOW).unwrap();
    let seqs: Vec<u64> = journal.events(1, 10).unwrap().iter().map(|line| line.seq).collect();
    assert_eq!(seqs, [3]);
    journal.commit(&[Change::Acked(3)], NOW).unwrap();
    drop(journal);
    let meta = open(dir.path()).meta().unwrap();
    assert_eq!((meta.last_seq, meta.acked_seq), (3, 3), "the count survives its events");
}

#[test]
fn epoch_cursor_claims_and_what_was_heard_survive() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    let changes = [
        Change::MaxEpoch(7),
        Change::MaxEpoch(5),
        Change::Cursor("{}".to_owned()),
        Change::Account("Ready ".to_owned()),
        Change::Claim { guid: "A".to_owned() },
        Change::Claim { guid: "A".to_owned() },
        Change::Heard { guid: "H".to_owned(), print: Some(u64::MAX) },
        Change::Heard { guid: "H".to_owned(), print: Some(u64::MAX) },
    ];
    journal.commit(&changes, NOW).unwrap();
    drop(journal);
    let journal = open(dir.path());
    let meta = journal.meta().unwrap();
    assert_eq!(meta.max_epoch, 7, "an epoch never goes back");
    assert_eq!(meta.cursor.as_deref(), Some("{}"));
    assert_eq!(meta.account.as_deref(), Some("Ready "));
    assert_eq!(journal.claims().unwrap(), BTreeSet::from(["A".to_owned()]));
    let heard = journal.heard(10).unwrap();
    assert_eq!(heard.len(), 1);
    assert_eq!((heard[0].guid.as_str(), heard[0].print), ("H", Some(u64::MAX)));
}

#[test]
fn what_is_over_is_remembered_for_a_week() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    let told = Told { seq: 1, fact: Fact::Canceled(attempt(1)) };
    let changes = [
        put(&SendRecord::finished(attempt(1), told, NOW.wall)),
        put(&send(2, Phase::Accepted)),
        Change::Claim { guid: "A".to_owned() },
    ];
    journal.commit(&changes, NOW).unwrap();
    let later = |ms| Now { wall: NOW.wall.plus_ms(ms), ..NOW };
    journal.prune(None, later(FINAL_KEPT_MS - 1)).unwrap();
    assert!(journal.told(&attempt(1)).unwrap().is_some());
    journal.prune(None, later(FINAL_KEPT_MS + 1)).unwrap();
    assert_eq!(journal.told(&attempt(1)).unwrap(), None);
    assert_eq!(journal.claims().unwrap(), BTreeSet::new());
    assert_eq!(journal.live_sends().unwrap().len(), 1, "what is not over is not pruned");
}

#[test]
fn what_was_heard_is_found_by_guid_and_by_content_however_much_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    let heard = |n: u64| Change::Heard { guid: format!("G{n}"), print: Some(n % 1_000) };
    let changes: Vec<Change> = (0..3_000).map(heard).collect();
    journal.commit(&changes, NOW).unwrap();
    let seen = Seen::untold();
    let changes = [
        Change::Seen { guid: "G7".to_owned(), seen: seen.clone() },
        Change::Heard { guid: "JOINED".to_owned(), print: None },
    ];
    journal.commit(&changes, NOW).unwrap();
    let found = journal.heard_of(&["G7", "G3000", "JOINED"]).unwrap();
    let expected = [
        Heard { guid: "G7".to_owned(), print: Some(7), seen: Some(seen) },
        Heard { guid: "JOINED".to_owned(), print: None, seen: None },
    ];
    assert_eq!(found, expected);
    assert_eq!(journal.heard_as(7).unwrap().as_deref(), Some("G1007"), "the first in order");
    assert_eq!(journal.heard_as(1_000).unwrap(), None);
    let plan: String = journal
        .connection
        .query_row(
            "EXPLAIN QUERY PLAN SELECT guid FROM heard WHERE print = 7 ORDER BY at_ms, guid LIMIT 1",
            [],
            |row| row.get(3),
        )
        .unwrap();
    assert!(plan.contains("heard_print"), "{plan}");
}

#[test]
fn what_was_heard_is_kept_for_ninety_days_and_as_long_as_it_may_be_needed() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    let heard = [Change::Heard { guid: "H".to_owned(), print: None }];
    journal.commit(&heard, NOW).unwrap();
    let later = |ms| Now { wall: NOW.wall.plus_ms(ms), ..NOW };
    let is_there = |journal: &Journal| !journal.heard_of(&["H"]).unwrap().is_empty();
    journal.prune(None, later(HEARD_KEPT_MS)).unwrap();
    assert!(is_there(&journal));
    journal.prune(Some(NOW.wall), later(3 * HEARD_KEPT_MS)).unwrap();
    assert!(is_there(&journal), "the phone was off all the time");
    journal.prune(Some(NOW.wall.plus_ms(1)), later(HEARD_KEPT_MS + 1)).unwrap();
    assert!(!is_there(&journal));
}

#[test]
fn a_journal_is_never_taken_for_another_phone_or_a_newer_program() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    drop(open(dir.path()));
    let other = PhoneId::new(1, [2; 10]);
    let error = Journal::open(&path, &other, "jrn_new", NOW).unwrap_err();
    assert!(error.to_string().contains(phone().as_str()), "{error}");
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Journal::open(&path, &phone(), "jrn_new", NOW).unwrap_err();
    assert!(matches!(error, JournalError::Foreign { .. }), "{error}");
}

#[test]
fn a_damaged_journal_is_an_error_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    std::fs::write(
        &path,
        "this is not a database, and it is long enough to be looked at".repeat(20),
    )
    .unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(
        Journal::open(&path, &phone(), "jrn_new", NOW),
        Err(JournalError::Sqlite { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn only_its_owner_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    journal.commit(&[event(1)], NOW).unwrap();
    for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

/// Every statement of the journal, as it stands in the source.
fn statements() -> Vec<&'static str> {
    let sources = [include_str!("../journal.rs"), include_str!("rows.rs")];
    let literals = sources.into_iter().flat_map(|source| source.split('"'));
    let verbs = ["SELECT ", "INSERT ", "UPDATE ", "DELETE "];
    literals.filter(|text| verbs.iter().any(|verb| text.trim_start().starts_with(verb))).collect()
}

fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    explain.raw_query().mapped(|row| row.get(3)).collect::<Result<_, _>>().unwrap()
}

#[test]
fn every_statement_finds_its_rows_by_an_index_whatever_is_bound_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let statements = statements();
    assert!(statements.len() >= 22, "{} found", statements.len());
    for sql in statements {
        let stable = plan(&journal.connection, sql);
        let qpsg = DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG;
        journal.connection.set_db_config(qpsg, false).unwrap();
        assert_eq!(plan(&journal.connection, sql), stable, "no plan depends on a value: {sql}");
        journal.connection.set_db_config(qpsg, true).unwrap();
        // One row, and what is read whole at a start.
        let whole = sql.contains("meta") || sql.ends_with("FROM claims");
        let scans = stable.iter().any(|step| step.starts_with("SCAN") && !step.contains("INDEX"));
        assert!(whole || !scans, "{sql}: {stable:?}");
    }
}

#[test]
fn no_statement_is_planned_again_while_the_journal_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path());
    let again = |journal: &Journal| -> i32 {
        let count = |sql: &&str| {
            let statement = journal.connection.prepare_cached(sql).unwrap();
            statement.get_status(rusqlite::StatementStatus::RePrepare)
        };
        statements().iter().map(count).sum()
    };
    let story = |n: u8| {
        let at = UnixMs(NOW.wall.0 + i64::from(n));
        let seen = Change::Heard { guid: format!("guid {n}"), print: Some(u64::from(n)) };
        let (seq, id) = (u64::from(n), attempt(n));
        let phases = [
            Phase::Accepted,
            Phase::Started { mark: i64::from(n), at },
            Phase::Handed { mark: i64::from(n), at },
        ];
        let mut changes: Vec<Change> =
            phases.into_iter().map(|phase| put(&send(n, phase))).collect();
        changes.extend([event(seq), seen, Change::Claim { guid: format!("own {n}") }]);
        changes.extend([Change::Cursor(format!("{n}")), Change::Acked(seq.saturating_sub(3))]);
        (changes, id)
    };
    for n in 1..60 {
        let (changes, id) = story(n);
        journal.commit(&changes, NOW).unwrap();
        assert!(journal.told(&id).unwrap().is_some());
        assert_eq!(journal.events(u64::from(n), 10).unwrap().len(), 1);
        assert!(journal.heard_as(u64::from(n)).unwrap().is_some());
    }
    assert_eq!(again(&journal), 0);
}
