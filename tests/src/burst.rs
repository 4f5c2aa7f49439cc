//! Many messages through one bridge that is killed again and again, and the books afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail};
use protocol::MessageId;
use protocol::pipe::Event;
use tokio::time::Instant;

use crate::clock;
use crate::mac::{Mac, Options};

/// Messages given to the bridge and not sent yet.
const OUT_MAX: usize = 40;
/// What has no answer after this long was said to a bridge that is dead, and is said again.
const REPEAT_AFTER: Duration = Duration::from_millis(400);
/// Without any news for so long something is wrong.
const NEWS_WITHIN: Duration = Duration::from_mins(1);

/// How it went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Books {
    /// Messages given to the bridge.
    pub messages: usize,
    /// Of these, told as sent.
    pub sent: usize,
    /// Told as unknown, and not asked of Messages.
    pub unknown: usize,
    /// Told as unknown although Messages was asked.
    pub unknown_but_asked: usize,
    /// Asked of Messages more than once.
    pub doubled: usize,
    /// Told as sent and never asked.
    pub phantom: usize,
    /// In any other end, or asked and told as never sent.
    pub lost: usize,
    /// How often the bridge was killed.
    pub kills: usize,
}

impl Books {
    /// Whether nothing was lost and nothing doubled. A message that was being handed over when the bridge
    /// was killed, and that Messages was never asked for, may be unknown: nobody could know.
    pub fn agree(&self) -> bool {
        self.doubled == 0
            && self.lost == 0
            && self.phantom == 0
            && self.unknown_but_asked == 0
            && self.sent + self.unknown == self.messages
    }
}

/// Sends so many messages, with a SIGKILL on average every so many.
pub async fn run(messages: usize, kill_every: u64) -> Result<Books> {
    let options = Options {
        speed: 0.0,
        around: None,
        config: "match_window_ms = 3000\nsettle_window_ms = 3000".to_owned(),
    };
    let mut mac = Mac::new(&options).await?;
    mac.start().await?;
    let texts: Vec<(MessageId, String, String)> = (0..messages).map(message).collect();
    let mut books = Books { messages, ..Books::default() };
    let mut next = 0;
    let mut out: BTreeMap<MessageId, (usize, Instant)> = BTreeMap::new();
    let mut begun: BTreeSet<MessageId> = BTreeSet::new();
    let mut news = Instant::now();
    // Up to twice the mean, so that it is the mean.
    let mut left = clock::chance() % (2 * kill_every) + 1;
    loop {
        while out.len() < OUT_MAX
            && let Some((id, to, text)) = texts.get(next)
        {
            mac.send(id, to, text, &[])?;
            out.insert(id.clone(), (next, Instant::now()));
            next += 1;
        }
        if out.is_empty() {
            break;
        }
        mac.hear(Instant::now() + Duration::from_millis(20)).await?;
        for (id, (n, said)) in &mut out {
            let newest = mac.newest(id);
            if newest.is_some_and(|event| !matches!(event, Event::Accepted(_)))
                && begun.insert(id.clone())
            {
                left = left.saturating_sub(1);
                news = Instant::now();
            }
            if newest.is_none() && said.elapsed() >= REPEAT_AFTER {
                *said = Instant::now();
                if let Some((id, to, text)) = texts.get(*n) {
                    mac.send(id, to, text, &[])?;
                }
            }
        }
        out.retain(|id, _| !mac.newest(id).is_some_and(is_end));
        if left == 0 {
            left = clock::chance() % (2 * kill_every) + 1;
            // At any moment of what it is doing.
            tokio::time::sleep(Duration::from_micros(clock::chance() % 30_000)).await;
            mac.crash().await?;
            books.kills += 1;
            mac.start().await?;
        }
        if news.elapsed() >= NEWS_WITHIN {
            bail!("{} messages have no end: {}", out.len(), mac.log());
        }
    }
    count(&mac, &texts, &mut books)?;
    Ok(books)
}

/// A message of its own words, to one of a hundred numbers that the sandbox delivers to.
fn message(n: usize) -> (MessageId, String, String) {
    // At the end, where a UUID has no bits of its own.
    let mut random = [0; 10];
    if let Some(end) = random.last_chunk_mut() {
        *end = u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    }
    let id = MessageId::new(clock::now().0, random);
    (id, format!("+1202556{:04}", n % 100), format!("message {n}"))
}

fn is_end(event: &Event) -> bool {
    matches!(
        event,
        Event::Sent { .. }
            | Event::Delivered(_)
            | Event::Read(_)
            | Event::Failed(_)
            | Event::Unknown(_)
            | Event::Refused(_)
            | Event::Canceled(_)
            | Event::Expired(_)
    )
}

fn count(mac: &Mac, texts: &[(MessageId, String, String)], books: &mut Books) -> Result<()> {
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    for send in mac.asked()? {
        *asked.entry(send.text).or_default() += 1;
    }
    for (id, _, text) in texts {
        let asked = asked.get(text).copied().unwrap_or(0);
        if asked > 1 {
            books.doubled += 1;
        }
        match mac.newest(id) {
            Some(Event::Sent { .. } | Event::Delivered(_) | Event::Read(_)) => {
                books.sent += 1;
                if asked == 0 {
                    books.phantom += 1;
                }
            }
            Some(Event::Unknown(_)) if asked == 0 => books.unknown += 1,
            Some(Event::Unknown(_)) => books.unknown_but_asked += 1,
            _ => books.lost += 1,
        }
    }
    Ok(())
}
