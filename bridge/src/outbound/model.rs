//! What a send is made of, and what goes in and out of a step.

use std::path::PathBuf;

use protocol::pipe::{Attempt, Event as Fact, EventLine, OutboundAttachment, Seek, Send};
use protocol::{Channel, Class, Recipient, UnixMs};

use crate::chatdb::{Sought, fold};
use crate::clock::Now;
use crate::inbound::Seen;
use crate::osascript::{Disposition, Failure};

/// One send as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SendRecord {
    pub(crate) attempt: Attempt,
    /// What was last said about it.
    pub(crate) told: Told,
    pub(crate) body: Body,
}

/// A send that is over keeps neither text nor recipient: only that it was, so that a repeated
/// command cannot start it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Live { work: Box<Work>, phase: Phase },
    Final { at: UnixMs },
}

/// An event that was journaled about a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) seq: u64,
    pub(crate) fact: Fact,
}

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) epoch: u64,
    pub(crate) class: Class,
    pub(crate) to: Recipient,
    /// Empty when it is files alone.
    pub(crate) text: String,
    /// Sent one by one before the text: Messages takes one thing at a time.
    pub(crate) files: Vec<Wanted>,
    /// How many of its parts, files and text, have been sent.
    pub(crate) done: usize,
    /// Not empty.
    pub(crate) route: Vec<Channel>,
    /// Which channel of the route it is at.
    pub(crate) index: usize,
    pub(crate) start_before: UnixMs,
    pub(crate) accepted_at: UnixMs,
    /// The channel before this one, and why it failed.
    pub(crate) failed: Option<(Channel, Failure)>,
}

impl Work {
    /// The epoch of what another bridge has sent: leases begin with 1.
    pub(crate) const ANOTHERS: u64 = 0;

    /// It was sent from another device of the account. Such rows say "delivered" without a date as soon as they come,
    /// which is no receipt of the recipient's.
    pub(crate) fn is_anothers(&self) -> bool {
        self.epoch == Self::ANOTHERS
    }

    pub(crate) fn channel(&self) -> Option<Channel> {
        self.route.get(self.index).copied()
    }

    /// Files and text.
    pub(crate) fn parts(&self) -> usize {
        self.files.len().saturating_add(usize::from(!self.text.is_empty()))
    }

    /// Whether nothing follows the part that it is at.
    pub(crate) fn is_last(&self) -> bool {
        self.done.saturating_add(1) >= self.parts()
    }

    /// The part that it is at; nothing while its file is not here.
    pub(crate) fn content(&self) -> Option<Content> {
        self.sought().map(|sought| match sought {
            Sought::Text(text) => Content::Text(text.to_owned()),
            Sought::File(path) => Content::File(path.to_owned()),
        })
    }

    /// What the row of that part must hold.
    fn sought(&self) -> Option<Sought<'_>> {
        match self.files.get(self.done) {
            Some(file) => file.staged.as_deref().map(Sought::File),
            None => Some(Sought::Text(&self.text)),
        }
    }

    /// Whether a row of the one could be taken for one of the other: the same recipient, and words or a
    /// file that read the same, as Messages rewrites what [`fold`] makes equal.
    pub(crate) fn is_twin_of(&self, other: &Self) -> bool {
        self.to == other.to
            && match (self.sought(), other.sought()) {
                (Some(Sought::Text(left)), Some(Sought::Text(right))) => {
                    left == right || fold(left) == fold(right)
                }
                (Some(Sought::File(left)), Some(Sought::File(right))) => left == right,
                (Some(Sought::Text(_) | Sought::File(_)) | None, _) => false,
            }
    }

    /// Whether every file is here. None is sent before all are, so that what cannot be fetched stops the
    /// whole message and not its second half.
    pub(crate) fn is_staged(&self) -> bool {
        self.files.iter().all(|file| file.staged.is_some())
    }
}

/// A file that goes with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) file: OutboundAttachment,
    /// Where its copy is, once it is here.
    pub(crate) staged: Option<PathBuf>,
}

/// What one osascript sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Text(String),
    /// The staged copy of a file, by its absolute path.
    File(PathBuf),
}

impl Content {
    /// What its row must hold.
    pub(crate) fn sought(&self) -> Sought<'_> {
        match self {
            Self::Text(text) => Sought::Text(text),
            Self::File(path) => Sought::File(path),
        }
    }
}

/// How far a send is. `mark` is the newest row of chat.db before it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It may be started.
    Accepted,
    /// An osascript waits for its script; it may or may not have it.
    Started { mark: i64, at: UnixMs },
    /// An osascript has its script.
    Handed { mark: i64, at: UnixMs },
    /// `unknown` was told; it is still looked for.
    Doubt { mark: i64, at: UnixMs },
    /// Its row is known.
    Found { rowid: i64, guid: String, at: UnixMs, stage: Stage, told_unknown: bool },
}

/// How far a row is, as told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Pending,
    Sent,
    Delivered,
}

impl SendRecord {
    pub(crate) fn live(attempt: Attempt, told: Told, work: Work, phase: Phase) -> Self {
        Self { attempt, told, body: Body::Live { work: Box::new(work), phase } }
    }

    pub(crate) fn finished(attempt: Attempt, told: Told, at: UnixMs) -> Self {
        Self { attempt, told, body: Body::Final { at } }
    }

    /// Nothing when it is over.
    pub(crate) fn work(&self) -> Option<&Work> {
        match &self.body {
            Body::Live { work, .. } => Some(work),
            Body::Final { .. } => None,
        }
    }

    /// Nothing when it is over.
    pub(crate) fn phase(&self) -> Option<&Phase> {
        match &self.body {
            Body::Live { phase, .. } => Some(phase),
            Body::Final { .. } => None,
        }
    }

    pub(super) fn set_phase(&mut self, next: Phase) {
        match &mut self.body {
            Body::Live { phase, .. } => *phase = next,
            Body::Final { .. } => {}
        }
    }

    /// The part that it is at has been sent; the next one may start.
    pub(super) fn next_part(&mut self) {
        match &mut self.body {
            Body::Live { work, phase } => {
                work.done = work.done.saturating_add(1);
                *phase = Phase::Accepted;
            }
            Body::Final { .. } => {}
        }
    }

    /// Its files are here, in their order.
    pub(super) fn stage(&mut self, paths: Vec<PathBuf>) {
        match &mut self.body {
            Body::Live { work, .. } => {
                for (file, path) in work.files.iter_mut().zip(paths) {
                    file.staged = Some(path);
                }
            }
            Body::Final { .. } => {}
        }
    }

    pub(super) fn next_channel(&mut self, from: Channel, failure: Failure) {
        match &mut self.body {
            Body::Live { work, phase } => {
                work.index = work.index.saturating_add(1);
                work.failed = Some((from, failure));
                *phase = Phase::Accepted;
            }
            Body::Final { .. } => {}
        }
    }

    pub(super) fn finish(&mut self, at: UnixMs) {
        self.body = Body::Final { at };
    }
}

/// The state of an own row, in our words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are facts about a row, each independent of the others"
)]
pub(crate) struct RowState {
    pub(crate) rowid: i64,
    pub(crate) guid: String,
    /// The service of the row; none when it is not one of ours.
    pub(crate) channel: Option<Channel>,
    pub(crate) error: i64,
    pub(crate) is_sent: bool,
    pub(crate) delivered: bool,
    pub(crate) delivered_at: Option<UnixMs>,
    pub(crate) read_at: Option<UnixMs>,
    /// A row that leads nowhere: no text, no chat (imsg#90).
    pub(crate) ghost: bool,
    /// It is known to have gone to this recipient. Not so for a row that is in no chat (yet) and
    /// has no handle either: that one may be anybody's.
    pub(crate) certain: bool,
}

/// An own row and its date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dated {
    pub(crate) at: UnixMs,
    pub(crate) row: RowState,
}

/// Everything that can happen to the sends of a phone.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A command; `known` is what the journal has about it when it is no longer in memory.
    Send {
        send: Box<Send>,
        known: Option<Told>,
    },
    Cancel {
        attempt: Attempt,
        known: Option<Told>,
    },
    /// Attempts of another bridge are looked for; `known` is what the journal has about them, of those that it has.
    Seek {
        seek: Box<Seek>,
        known: Vec<(Attempt, Told)>,
    },
    /// The answer to [`Effect::Seek`]: the own rows with that text of that time. `missing` of what is known to have been
    /// sent in the same words are not in chat.db. Not said while it cannot be read, or cannot tell.
    Sought {
        seek: Box<Seek>,
        rows: Vec<Dated>,
        missing: usize,
    },
    Lease {
        epoch: u64,
        ttl_ms: u64,
        issued_ms: u64,
    },
    Revoke {
        epoch: u64,
    },
    /// The phone goes to another host: nothing older than this epoch is started any more.
    Release {
        epoch: u64,
    },
    /// The listener has every event up to `seq`.
    Acked {
        seq: u64,
    },
    Drain {
        deadline_ms: i64,
    },
    Stop {
        deadline_ms: i64,
    },
    /// Whether database and account allow sending at all.
    Usable(bool),
    /// No osascript of an earlier life runs.
    OrphanGone,
    /// One does, or something that it left behind.
    OrphanMet,
    /// The answer to [`Effect::Prepare`]: a child waits, and this is the newest row.
    Prepared {
        attempt: Attempt,
        mark: i64,
    },
    NotPrepared {
        attempt: Attempt,
        why: NotPrepared,
    },
    /// The answer to [`Effect::Confirm`]: the changes so far are on the disk.
    Recorded {
        attempt: Attempt,
    },
    /// The answers to [`Effect::HandOver`].
    HandedOver {
        attempt: Attempt,
    },
    NotHandedOver {
        attempt: Attempt,
    },
    /// The answer to [`Effect::Fetch`]: where the files are, in their order, or why not.
    Fetched {
        attempt: Attempt,
        files: Result<Vec<PathBuf>, Failure>,
    },
    /// The osascript of the lane has ended.
    Ended {
        disposition: Disposition,
    },
    /// A probe takes, and leaves, the lane.
    Probing,
    ProbeEnded,
    /// The answer to [`Effect::Find`], oldest first. Not said while chat.db cannot be read.
    Rows {
        attempt: Attempt,
        rows: Vec<RowState>,
    },
    /// The answer to [`Effect::ReadStates`].
    States(Vec<RowState>),
    /// All rows of chat.db have other numbers: these are those of [`Outbound::tracked`] that are
    /// still there.
    ///
    /// [`Outbound::tracked`]: super::Outbound::tracked
    Renumbered(Vec<(Attempt, i64)>),
    DatabaseChanged,
    Tick,
}

/// Why no osascript waits for a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotPrepared {
    /// This send cannot be made.
    Failed(Failure),
    /// None can be made now.
    Held,
    /// An osascript of an earlier life still runs.
    Orphan,
}

/// What the journal must hold before any effect of the same turn is performed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The send as it is now.
    Put(Box<SendRecord>),
    /// What was last told of a send that is otherwise unchanged.
    Told {
        attempt: Attempt,
        told: Told,
    },
    /// This row belongs to one of our sends, for good.
    Claim {
        guid: String,
    },
    Event(EventLine),
    /// What came in under this guid has been told. `print` is its content as a number.
    Heard {
        guid: String,
        print: Option<u64>,
    },
    /// What has been told of the message of this guid since.
    Seen {
        guid: String,
        seen: Seen,
    },
    MaxEpoch(u64),
    /// The listener has every event up to this one; they are forgotten.
    Acked(u64),
    /// How far chat.db has been told.
    Cursor(String),
    /// What was last told of the account.
    Account(String),
}

/// What is to be done after the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Start an osascript that waits for its script, and read the newest row.
    Prepare {
        attempt: Attempt,
        to: Recipient,
        channel: Channel,
        content: Content,
    },
    /// Fetch the files of a send; it does not start before they are here.
    Fetch {
        attempt: Attempt,
        files: Vec<OutboundAttachment>,
    },
    /// They are no longer wanted.
    StopFetch {
        attempt: Attempt,
    },
    /// Say so when the changes are on the disk.
    Confirm {
        attempt: Attempt,
    },
    /// Write the script.
    HandOver {
        attempt: Attempt,
    },
    /// End the waiting osascript without a script.
    Abandon,
    /// End the running osascript.
    KillOsascript,
    /// Look for the rows of a send above its mark that are not dated before `since`.
    Find {
        attempt: Attempt,
        mark: i64,
        since: UnixMs,
        to: Recipient,
        content: Content,
    },
    ReadStates {
        rowids: Vec<i64>,
    },
    /// Look for what another bridge of the account may have sent.
    Seek(Box<Seek>),
    CheckOrphan,
    /// End an osascript of an earlier life that has outlived its deadline.
    EndOrphan {
        force: bool,
    },
}

/// What the steps of one turn of the event loop leave behind.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) changes: Vec<Change>,
    pub(crate) effects: Vec<Effect>,
    /// The newest event of the journal, these changes included.
    pub(crate) last_seq: u64,
}

impl Turn {
    pub(crate) fn new(last_seq: u64) -> Self {
        Self { last_seq, ..Self::default() }
    }

    /// Numbers an event and puts it among the changes.
    pub(crate) fn tell(&mut self, fact: Fact, now: Now, max_epoch: u64) -> Told {
        self.last_seq = self.last_seq.saturating_add(1);
        let epoch = (max_epoch > 0).then_some(max_epoch);
        let line = EventLine { seq: self.last_seq, at: now.wall, epoch, event: fact.clone() };
        self.changes.push(Change::Event(line));
        Told { seq: self.last_seq, fact }
    }
}
