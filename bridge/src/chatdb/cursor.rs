//! The cursor, and whether it still points at what it pointed at.

use super::Identity;

/// How far back a resynchronisation reads by date. Replays by iCloud were seen up to 14.5 hours
/// old, phones are off for days.
pub const RESYNC_WINDOW_MS: i64 = 7 * 24 * 3_600_000;

/// Up to where a database has been read. Moved only after the events are journaled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Of which database.
    pub identity: Identity,
    /// Up to and including this row; 0 is the beginning.
    pub rowid: i64,
    /// The guid that the row had; empty for rowid 0.
    pub guid: String,
}

/// What the database says now about a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorFacts {
    /// Which database is there now.
    pub identity: Identity,
    /// The guid of the row at the cursor, if the row exists.
    pub guid: Option<String>,
    /// The largest rowid that the database ever gave out.
    pub highest_rowid_ever: i64,
}

/// Whether to go on from a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// Go on from it.
    Good,
    /// Rowids no longer mean what they meant: read the last [`RESYNC_WINDOW_MS`] by date, pass over
    /// known guids, and set the cursor anew.
    Resync(ResyncReason),
}

/// Why a cursor is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResyncReason {
    /// Another row has its number: the database was rebuilt.
    Renumbered,
    /// The database never gave out that number: another, younger file.
    Younger,
    /// The file is another one, or holds another database.
    Replaced,
}

impl ResyncReason {
    /// For logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Renumbered => "renumbered",
            Self::Younger => "younger",
            Self::Replaced => "replaced",
        }
    }
}

/// Decides whether a cursor still holds.
///
/// Both must be as they were: the file, and the guid at the number. In another file the same guid may
/// stand at the same number by chance or because little was renumbered, and what had not been read
/// yet may stand below it. In the same file another state may have been written, which the guid
/// shows. Where only the row is gone the file may go on: rows are deleted, numbers are not reused.
pub fn verify(cursor: &Cursor, facts: &CursorFacts) -> Verified {
    if facts.highest_rowid_ever < cursor.rowid {
        return Verified::Resync(ResyncReason::Younger);
    }
    match &facts.guid {
        Some(guid) if *guid != cursor.guid => Verified::Resync(ResyncReason::Renumbered),
        Some(_) | None if is_same_file(&cursor.identity, &facts.identity) => Verified::Good,
        Some(_) | None => Verified::Resync(ResyncReason::Replaced),
    }
}

/// The device does not count: it is numbered anew whenever its volume is mounted, and only one volume
/// has this path.
fn is_same_file(left: &Identity, right: &Identity) -> bool {
    let as_old = match (left.born_ns, right.born_ns) {
        (Some(left), Some(right)) => left == right,
        // Noted before it was, or on a volume that does not tell.
        (None, _) | (_, None) => true,
    };
    left.inode == right.inode && as_old && left.unique == right.unique
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64, unique: Option<&str>) -> Identity {
        Identity { device: 1, inode, born_ns: None, unique: unique.map(str::to_owned) }
    }

    fn born(inode: u64, at_ns: i64) -> Identity {
        Identity { born_ns: Some(at_ns), ..file(inode, None) }
    }

    #[test]
    fn a_cursor_holds_exactly_while_rowids_mean_the_same() {
        use ResyncReason::{Renumbered, Replaced, Younger};
        let cases = [
            // identity then, cursor's rowid and guid; identity now, guid now, highest; expected
            ((file(5, None), 7, "A"), (file(5, None), Some("A"), 9), Verified::Good),
            ((file(5, None), 7, "A"), (file(5, None), None, 9), Verified::Good),
            ((file(5, None), 7, "A"), (file(5, None), None, 7), Verified::Good),
            (
                (file(5, Some("u")), 7, "A"),
                (Identity { device: 2, ..file(5, Some("u")) }, Some("A"), 9),
                Verified::Good,
            ),
            // Another file, whatever stands at the number in it.
            ((file(5, None), 7, "A"), (file(6, None), Some("A"), 9), Verified::Resync(Replaced)),
            (
                (file(5, Some("u")), 7, "A"),
                (file(6, Some("u")), Some("A"), 9),
                Verified::Resync(Replaced),
            ),
            (
                (file(5, Some("u")), 7, "A"),
                (file(6, Some("u")), None, 9),
                Verified::Resync(Replaced),
            ),
            (
                (file(5, Some("u")), 7, "A"),
                (file(5, Some("v")), Some("A"), 9),
                Verified::Resync(Replaced),
            ),
            ((file(5, None), 7, "A"), (file(5, None), Some("B"), 9), Verified::Resync(Renumbered)),
            ((file(5, None), 7, "A"), (file(6, None), None, 9), Verified::Resync(Replaced)),
            (
                (file(5, Some("u")), 7, "A"),
                (file(5, Some("v")), None, 9),
                Verified::Resync(Replaced),
            ),
            ((file(5, None), 9000, "A"), (file(6, None), None, 5), Verified::Resync(Younger)),
            ((file(5, None), 9000, "A"), (file(5, None), None, 5), Verified::Resync(Younger)),
            // A file that has the inode of one that is gone.
            ((born(5, 70), 7, "A"), (born(5, 71), Some("A"), 9), Verified::Resync(Replaced)),
            ((born(5, 70), 7, "A"), (born(5, 70), Some("A"), 9), Verified::Good),
            ((file(5, None), 7, "A"), (born(5, 70), Some("A"), 9), Verified::Good),
            // The beginning of a database that was empty.
            ((file(5, None), 0, ""), (file(5, None), None, 0), Verified::Good),
            ((file(5, None), 0, ""), (file(5, None), None, 3), Verified::Good),
        ];
        for ((was, rowid, guid), (now, guid_now, highest), expected) in cases {
            let cursor = Cursor { identity: was, rowid, guid: guid.to_owned() };
            let facts = CursorFacts {
                identity: now,
                guid: guid_now.map(str::to_owned),
                highest_rowid_ever: highest,
            };
            assert_eq!(verify(&cursor, &facts), expected, "{cursor:?} {facts:?}");
        }
    }

    #[test]
    fn an_identity_reads_back_from_its_text() {
        let both = Identity { unique: Some("A#B".to_owned()), ..born(1, -5) };
        for identity in [file(0, None), file(u64::MAX, Some("A:B")), born(7, 9), both] {
            assert_eq!(Identity::from_text(&identity.to_text()), Some(identity));
        }
        assert_eq!(Identity::from_text(""), None);
        assert_eq!(Identity::from_text("1:x:"), None);
    }
}
