//! What a lost host had in hand, and whom to ask what became of it. Pure.
//!
//! Two can know: the journal that was given the attempt, when its host is back, and the chat.db of the Mac that serves the phone
//! now, which gets a copy of what other devices of the account send. The journal is asked to give the attempt up: what
//! it never had, or had not started, it never will. chat.db is asked for a row of the text, recipient and time, and the
//! bridge there answers only where the row proves it ([`protocol::pipe::Seek`]); what could be mistaken for it is told along.

use protocol::pipe::{Attempt, Seek};
use protocol::{HostId, MessageId, PhoneId, Recipient, Status, UnixMs};

/// For so long the truth is looked for. A bridge keeps for a week what it knows of an attempt: asked later, it would
/// answer for one that it has forgotten.
pub const LOOKED_FOR_MS: i64 = 6 * 86_400_000;

/// How far the clocks of two machines may be apart, and how much later than it was asked Messages may do its work.
const SLACK_MS: i64 = 2 * 60 * 1000;

/// The newest attempt of an `unknown` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// Which message.
    pub message: MessageId,
    /// Which attempt.
    pub attempt: u32,
    /// On which phone.
    pub phone: PhoneId,
    /// Under which epoch.
    pub epoch: u64,
    /// The host whose bridge has the journal that was given it, when it is there and its journal has not been heard: it was
    /// lost.
    pub journal_at: Option<HostId>,
    /// The host that serves the phone now, when it is there and its bridge has another journal.
    pub serving: Option<HostId>,
    /// Whom it went to.
    pub recipient: Recipient,
    /// Its text.
    pub text: String,
    /// When it was first given to the phone.
    pub since: UnixMs,
    /// When it can no longer have been started: by its own time, or because the host was known to be gone.
    pub until: UnixMs,
}

/// A message of the same phone to the same recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Twin {
    /// Which message.
    pub message: MessageId,
    /// Its newest attempt.
    pub attempt: u32,
    /// What is known of it.
    pub status: Status,
    /// Its text.
    pub text: String,
    /// Messages' id, where it is known.
    pub guid: Option<String>,
    /// When it was first given to the phone.
    pub since: UnixMs,
    /// When it was not to be started any more.
    pub until: UnixMs,
    /// Its newest attempt is with the bridge that serves the phone now.
    pub served: bool,
}

/// What is asked of the chat.db of the serving host about a doubt, and about those that cannot be told from it. `None`
/// where no row could be a proof.
pub fn question(doubt: &Doubt, twins: &[Twin]) -> Option<Seek> {
    if doubt.text.trim().is_empty() {
        // Files alone: each Mac keeps its copy elsewhere.
        return None;
    }
    let alike: Vec<&Twin> =
        twins.iter().filter(|twin| reads_like(&twin.text, &doubt.text)).collect();
    let (mut since, mut until) = (doubt.since, doubt.until);
    let near = |twin: &Twin, since: UnixMs, until: UnixMs| {
        twin.since <= until.plus_ms(2 * SLACK_MS) && twin.until.plus_ms(2 * SLACK_MS) >= since
    };
    // Those in doubt make the time wider, which may bring in more of them.
    loop {
        let before = (since, until);
        for twin in alike.iter().filter(|twin| twin.status == Status::Unknown) {
            if near(twin, since, until) {
                since = since.min(twin.since);
                until = until.max(twin.until);
            }
        }
        if (since, until) == before {
            break;
        }
    }
    let mut attempts = vec![(doubt.since, doubt.message.clone(), doubt.attempt)];
    let mut known = Vec::new();
    for twin in alike.into_iter().filter(|twin| near(twin, since, until)) {
        if twin.message == doubt.message {
            continue;
        }
        match twin.status {
            Status::Unknown if twin.text.trim() == doubt.text.trim() => {
                attempts.push((twin.since, twin.message.clone(), twin.attempt));
            }
            // Its row would read like this one's.
            Status::Unknown => return None,
            Status::Sent | Status::Delivered | Status::Read => known.push(twin.guid.clone()?),
            // What the serving bridge has, it tells from this by itself. What a former host has still to answer for
            // may have a row as well.
            Status::Dispatching if !twin.served => return None,
            Status::Queued
            | Status::Scheduled
            | Status::Dispatching
            | Status::Failed
            | Status::Blocked
            | Status::Expired
            | Status::Canceled
            | Status::Received => {}
        }
    }
    attempts.sort();
    let attempts = attempts.into_iter().map(|(_, message, attempt)| Attempt { message, attempt });
    Some(Seek {
        to: doubt.recipient.clone(),
        text: doubt.text.clone(),
        since: since.plus_ms(-SLACK_MS),
        until: until.plus_ms(SLACK_MS),
        attempts: attempts.collect(),
        known,
    })
}

/// Whether two texts could be taken for each other. Messages rewrites quotes, dashes and spaces; letters and digits it
/// leaves alone, so more is alike here than is rewritten.
fn reads_like(left: &str, right: &str) -> bool {
    let words = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    words(left) == words(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn message(n: u8) -> MessageId {
        MessageId::new(1, [n; 10])
    }

    fn doubt() -> Doubt {
        Doubt {
            message: message(1),
            attempt: 1,
            phone: PhoneId::new(1, [9; 10]),
            epoch: 1,
            journal_at: None,
            serving: None,
            recipient: "+12025550143".parse().unwrap(),
            text: "It's ready".to_owned(),
            since: UnixMs(100 * MINUTE),
            until: UnixMs(101 * MINUTE),
        }
    }

    fn twin(n: u8, status: Status, minute: i64) -> Twin {
        Twin {
            message: message(n),
            attempt: 1,
            status,
            text: "It's ready".to_owned(),
            guid: status.is_sent().then(|| format!("G{n}")),
            since: UnixMs(minute * MINUTE),
            until: UnixMs((minute + 1) * MINUTE),
            served: false,
        }
    }

    /// The numbers of the messages asked about, the guids that are accounted for, and the time in minutes.
    fn asked(twins: &[Twin]) -> Option<(Vec<MessageId>, Vec<String>, i64, i64)> {
        let seek = question(&doubt(), twins)?;
        let messages = seek.attempts.into_iter().map(|attempt| attempt.message).collect();
        Some((messages, seek.known, seek.since.0 / MINUTE, seek.until.0 / MINUTE))
    }

    #[test]
    fn what_cannot_be_told_apart_is_asked_about_together() {
        let one = |n| vec![message(n)];
        assert_eq!(asked(&[]), Some((one(1), vec![], 98, 103)));
        // The store's own row of the doubt is among the twins.
        assert_eq!(asked(&[twin(1, Status::Unknown, 100)]), Some((one(1), vec![], 98, 103)));
        let sent = twin(2, Status::Delivered, 99);
        assert_eq!(asked(&[sent]), Some((one(1), vec!["G2".to_owned()], 98, 103)));
        let chain = [twin(3, Status::Unknown, 96), twin(4, Status::Unknown, 91)];
        let all = vec![message(4), message(3), message(1)];
        assert_eq!(asked(&chain), Some((all, vec![], 89, 103)), "one near the other");
        for far in [60, 140] {
            let others = [twin(2, Status::Sent, far), twin(3, Status::Unknown, far)];
            assert_eq!(asked(&others), Some((one(1), vec![], 98, 103)), "{far}");
        }
        let other = Twin { text: "It is ready".to_owned(), ..twin(2, Status::Unknown, 100) };
        assert_eq!(asked(&[other]), Some((one(1), vec![], 98, 103)), "other words");
    }

    #[test]
    fn where_no_row_could_be_a_proof_nothing_is_asked() {
        let rewritten = Twin { text: "It’s ready".to_owned(), ..twin(2, Status::Unknown, 100) };
        assert_eq!(asked(&[rewritten]), None);
        assert_eq!(asked(&[twin(2, Status::Dispatching, 100)]), None, "a former host will tell");
        let ours = Twin { served: true, ..twin(2, Status::Dispatching, 100) };
        assert!(asked(&[ours]).is_some(), "the bridge that is asked knows its own");
        assert!(asked(&[twin(2, Status::Failed, 100)]).is_some(), "it has no row");
        assert_eq!(question(&Doubt { text: " ".to_owned(), ..doubt() }, &[]), None);
    }
}
