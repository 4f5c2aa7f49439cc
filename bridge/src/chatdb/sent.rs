//! Which own row is which send.

use std::ffi::OsStr;
use std::path::Path;

use protocol::pipe::ConversationKind;
use protocol::{Channel, Recipient, UnixMs};

use super::rows::{OBJECT_REPLACEMENT, Place, Row, StatusBits};

/// Which send a row is looked for.
#[derive(Debug, Clone)]
pub struct SentQuery<'q> {
    /// The newest rowid before the send.
    pub above_rowid: i64,
    /// Whom it went to.
    pub to: &'q Recipient,
    /// What was sent.
    pub content: Sought<'q>,
    /// Only rows of this service; none for any, which is right where Messages may have fallen back
    /// to SMS itself.
    pub channel: Option<Channel>,
}

/// What a row must hold to be the send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sought<'q> {
    /// This text.
    Text(&'q str),
    /// The file that was handed to Messages under this absolute path.
    File(&'q Path),
}

/// A row that is the send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentRow {
    /// Number of the row.
    pub rowid: i64,
    /// Apple's id of the message.
    pub guid: String,
    /// The same text or path; false when Messages has rewritten the text or put the file elsewhere.
    pub exact: bool,
    /// In the right chat; false when the row is in no chat yet.
    pub placed: bool,
    /// Its chat or its handle is the recipient's; false when it has neither and may be anybody's.
    pub certain: bool,
    /// When.
    pub at: Option<UnixMs>,
    /// What may still change.
    pub status: StatusBits,
}

/// Whether a row is the send that is looked for.
pub(super) fn sent_row(row: Row, query: &SentQuery<'_>) -> Option<SentRow> {
    if !row.is_plain() || row.schedule.is_some() {
        return None;
    }
    if query.channel.is_some() && query.channel != row.status.service {
        return None;
    }
    if !may_be_to(&row, query.to) {
        return None;
    }
    let likeness = match query.content {
        Sought::Text(text) => text_likeness(&row, text)?,
        Sought::File(path) => file_likeness(&row, path)?,
    };
    let at_home = match (&row.place, query.to) {
        (Place::In(_), _) => true,
        (Place::Pending, Recipient::Group(_)) => false,
        // A handle that is there was compared.
        (Place::Pending, Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_)) => {
            row.handle.is_some()
        }
    };
    Some(SentRow {
        certain: at_home && likeness != Likeness::Namesake,
        rowid: row.rowid,
        guid: row.guid,
        exact: likeness == Likeness::Exact,
        placed: matches!(row.place, Place::In(_)),
        at: row.at,
        status: row.status,
    })
}

/// How much what a row holds is what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Likeness {
    Exact,
    /// The same text after folding.
    Rewritten,
    /// A file of the same name elsewhere: it may be a copy that Messages has made of ours, and it
    /// may be another file.
    Namesake,
}

fn text_likeness(row: &Row, sent: &str) -> Option<Likeness> {
    let text = row.visible_text();
    if text == sent.trim() {
        return Some(Likeness::Exact);
    }
    // An empty text would fold equal to any other empty one: that is a ghost, not a match.
    (!text.is_empty() && fold(&text) == fold(sent)).then_some(Likeness::Rewritten)
}

/// A staged file has a folder of its own, so its path names this send and no other
/// (`attachment.filename` holds it, with `~` for the home folder, as imsg reports). Whether every macOS
/// leaves it there is unverified; a copy keeps at least its name.
fn file_likeness(row: &Row, sent: &Path) -> Option<Likeness> {
    let [file] = row.attachments.as_slice() else { return None };
    // A text beside the file would be another message: ours go one by one.
    if !row.visible_text().is_empty() {
        return None;
    }
    let stored = file.filename.as_deref().map(Path::new);
    if stored.is_some_and(|stored| is_same_path(stored, sent)) {
        return Some(Likeness::Exact);
    }
    let name = sent.file_name().and_then(OsStr::to_str);
    let stored = file.name.as_deref().or_else(|| stored?.file_name()?.to_str());
    (name.is_some() && stored == name).then_some(Likeness::Namesake)
}

/// Whether a path of chat.db, in which `~` may stand for the home folder, is this absolute one.
fn is_same_path(stored: &Path, sent: &Path) -> bool {
    if stored == sent {
        return true;
    }
    match (stored.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest) == sent,
        (Ok(_) | Err(_), _) => false,
    }
}

/// Whether nothing speaks against the row having gone to this recipient.
pub(super) fn may_be_to(row: &Row, to: &Recipient) -> bool {
    match (&row.place, to) {
        (Place::In(chat), Recipient::Group(id)) => {
            let place = &chat.conversation;
            place.kind == ConversationKind::Group && place.id == *id
        }
        (Place::In(chat), Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_)) => {
            let place = &chat.conversation;
            place.kind == ConversationKind::Direct
                && (same_address(&place.id, to.address())
                    || row.handle.as_deref().is_some_and(|h| same_address(h, to.address())))
        }
        (Place::Pending, Recipient::Group(_)) => true,
        (Place::Pending, Recipient::Number(_) | Recipient::Email(_) | Recipient::Service(_)) => {
            row.handle.as_deref().is_none_or(|handle| same_address(handle, to.address()))
        }
    }
}

/// Whether two addresses are the same: e-mail addresses in any case, numbers with any punctuation.
pub fn same_address(left: &str, right: &str) -> bool {
    if left == right {
        return true;
    }
    if left.contains('@') || right.contains('@') {
        return left.eq_ignore_ascii_case(right);
    }
    let digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).collect::<Vec<_>>();
    left.starts_with('+') && right.starts_with('+') && digits(left) == digits(right)
}

/// A text with everything made equal that Messages is known to rewrite: quotes, dashes, the
/// ellipsis, spaces, invisible characters.
pub fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{201c}'..='\u{201f}' | '«' | '»' | '\u{2033}' => folded.push('"'),
            '\u{2018}'..='\u{201b}' | '\u{2032}' | '`' | '´' => folded.push('\''),
            '\u{2026}' => folded.push_str("..."),
            '-' | '\u{2010}'..='\u{2015}' => {
                // Two hyphens become one dash.
                if !folded.ends_with('-') {
                    folded.push('-');
                }
            }
            OBJECT_REPLACEMENT
            | '\u{200b}'..='\u{200f}'
            | '\u{2060}'
            | '\u{feff}'
            | '\u{fe0e}'
            | '\u{fe0f}' => {}
            space if space.is_whitespace() => {
                if !folded.is_empty() && !folded.ends_with(' ') {
                    folded.push(' ');
                }
            }
            other => folded.push(other),
        }
    }
    folded.truncate(folded.trim_end().len());
    folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_messages_rewrites_folds_equal_and_nothing_else() {
        for (sent, stored) in [
            ("\"Hi\" -- it's me...", "\u{201c}Hi\u{201d} \u{2014} it\u{2019}s me\u{2026}"),
            ("a  b\n", " a\u{a0}b"),
            ("x\u{fe0f}", "x"),
        ] {
            assert_eq!(fold(sent), fold(stored));
        }
        for (left, right) in [("Hi", "hi"), ("a b", "ab"), ("1.5", "15"), ("a-b", "ab"), ("é", "e")]
        {
            assert_ne!(fold(left), fold(right));
        }
    }

    #[test]
    fn addresses_compare_by_what_they_reach() {
        assert!(same_address("Anna@Example.org", "anna@example.org"));
        assert!(same_address("+1 (202) 555-0101", "+12025550101"));
        assert!(!same_address("+12025550101", "+12025550102"));
        assert!(!same_address("2025550101", "+12025550101"));
        assert!(!same_address("", "+12025550101"));
    }

    proptest! {
        #[test]
        fn folding_twice_changes_nothing(text in "\\PC{0,60}|[ \\-\"'.\u{2019}\u{2026}\u{2014}\n]{0,20}") {
            let once = fold(&text);
            prop_assert_eq!(fold(&once), once);
        }
    }
}
