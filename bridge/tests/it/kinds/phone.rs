//! A phone whose database is written on one side and read on the other.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bridge::chatdb::ChatDb as Reader;
use bridge::inbound::{Batch, Inbox, Own, Patience, Told};
use protocol::UnixMs;
use sandbox::chatdb::kinds::{Author, Row};
use sandbox::chatdb::{ChatDb, Conversation, MacOs};
use sandbox::clock::AppleNs;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const ANNA: &str = "+12025550101";
pub(crate) const BERT: &str = "+12025550102";
pub(crate) const OWN: &str = "+15550100001";
pub(crate) const GROUP: &str = "chat500";
/// 2026-11-22T12:00:00Z.
pub(crate) const NOON: UnixMs = UnixMs(1_795_348_800_000);
pub(crate) const AT: &str = "2026-11-22T12:00:00.000Z";

/// Seconds after noon as chat.db has them.
pub(crate) fn noon(seconds: i64) -> AppleNs {
    AppleNs((NOON.0 - 978_307_200_000 + seconds * 1000) * 1_000_000)
}

pub(crate) fn anna() -> Author {
    Author::Other(ANNA.to_owned())
}

pub(crate) fn direct() -> Conversation {
    Conversation::Direct(ANNA.to_owned())
}

pub(crate) fn group() -> Conversation {
    Conversation::Group { id: GROUP.to_owned(), members: vec![ANNA.to_owned(), BERT.to_owned()] }
}

/// An empty row of Anna's.
pub(crate) fn inbound() -> Row {
    Row::new(anna(), direct(), noon(0))
}

/// A text of Anna's.
pub(crate) fn text(text: &str) -> Row {
    Row::text(anna(), direct(), noon(0), text)
}

/// An own text.
pub(crate) fn own(text: &str) -> Row {
    Row::text(Author::Me, direct(), noon(0), text)
}

/// One side writes, the other reads.
pub(crate) struct Phone {
    pub(crate) macos: MacOs,
    pub(crate) db: ChatDb,
    pub(crate) reader: Reader,
    inbox: Inbox,
    now: UnixMs,
    _folder: TempDir,
}

/// Runs a test on a phone of every macOS, and says on which it failed.
pub(crate) fn on_every_macos(test: impl Fn(&mut Phone)) {
    for macos in MacOs::ALL {
        let mut phone = Phone::new(macos);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&mut phone))) {
            let mut out = std::io::stderr().lock();
            std::io::Write::write_fmt(&mut out, format_args!("on macOS {}\n", macos.number()))
                .unwrap();
            resume_unwind(panic);
        }
    }
}

impl Phone {
    fn new(macos: MacOs) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.db");
        let db = ChatDb::open(&path, macos, OWN).unwrap();
        let reader = Reader::open(path).unwrap();
        let inbox = Inbox::new(0, None, Patience::default());
        Self { macos, db, reader, inbox, now: NOON, _folder: folder }
    }

    /// Whether this macOS is that one or newer.
    pub(crate) fn is(&self, number: u8) -> bool {
        self.macos.number() >= number
    }

    /// Time passes.
    pub(crate) fn later(&mut self, ms: i64) {
        self.now = self.now.plus_ms(ms);
    }

    /// Now, as it stands on the wire.
    pub(crate) fn now_text(&self) -> String {
        serde_json::from_value(serde_json::to_value(self.now).unwrap()).unwrap()
    }

    /// Writes a row and puts it into its chat.
    pub(crate) fn write(&mut self, row: &Row) {
        self.db.write_joined(row).unwrap();
    }

    /// One turn of reading. Everything that was read before is offered again.
    pub(crate) fn hear(&mut self) -> Vec<Value> {
        let held = self.reader.rows_by_ids(&self.inbox.held()).unwrap();
        let rows = self.reader.rows_after(self.inbox.read_to(), 1000).unwrap();
        let changed = self.reader.rows_after(0, 1000).unwrap();
        let batch = Batch { held: &held, changed: &changed, ..Batch::of(&rows) };
        let heard = self.inbox.take(batch, self.now).heard;
        heard.into_iter().map(|heard| said(heard.told)).collect()
    }

    /// What is told now, and nothing else, and nothing of it again.
    pub(crate) fn hears(&mut self, expected: &[Value]) {
        let heard = self.hear();
        assert_eq!(pretty(&heard), pretty(expected));
        self.now = self.now.plus_ms(1);
        assert_eq!(pretty(&self.hear()), pretty(&[]), "told twice");
    }

    /// Writes a row, and this is what is told.
    pub(crate) fn tells(&mut self, row: &Row, expected: Value) {
        self.write(row);
        self.hears(&[expected]);
    }
}

/// For a difference that can be read.
fn pretty(values: &[Value]) -> String {
    serde_json::to_string_pretty(values).unwrap()
}

/// What was told, as JSON: events as they stand on the wire.
fn said(told: Told) -> Value {
    match told {
        Told::Event(event) => serde_json::to_value(event).unwrap(),
        Told::Own(Own::Message(own)) => {
            let mut said = json!({
                "type": "own",
                "guid": own.guid,
                "conversation": own.conversation,
                "text": own.text,
                "at": own.at,
                "sent": own.status.is_sent,
            });
            if let Some(state) = own.schedule {
                said = with(said, json!({ "schedule": state }));
            }
            if !own.attachments.is_empty() {
                said = with(said, json!({ "attachments": own.attachments }));
            }
            with(said, serde_json::to_value(own.details).unwrap())
        }
        Told::Own(Own::Reaction(own)) => json!({
            "type": "own_reaction",
            "guid": own.guid,
            "conversation": own.conversation,
            "target": own.target,
            "part": own.part,
            "reaction": own.kind,
            "removed": own.removed,
            "at": own.at,
        }),
    }
}

/// The first with what the second says, too.
pub(crate) fn with(mut base: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("not an object: {more}") };
    base.as_object_mut().unwrap().extend(more);
    base
}

pub(crate) fn in_direct() -> Value {
    json!({ "kind": "direct", "id": ANNA })
}

pub(crate) fn in_group() -> Value {
    json!({ "kind": "group", "id": GROUP })
}

/// A message of Anna's with nothing in it but what `more` says.
pub(crate) fn received(row: &Row, more: Value) -> Value {
    let base = json!({
        "type": "received",
        "guid": row.guid,
        "from": ANNA,
        "conversation": in_direct(),
        "text": "",
        "service": "imessage",
        "at": AT,
        "late": false,
    });
    with(base, more)
}

/// An own message, sent.
pub(crate) fn sent(row: &Row, more: Value) -> Value {
    let base = json!({
        "type": "own",
        "guid": row.guid,
        "conversation": in_direct(),
        "text": "",
        "at": AT,
        "sent": true,
    });
    with(base, more)
}
