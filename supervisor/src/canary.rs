//! A canary: now and then one phone of this host writes to another one of it, and it is seen to arrive.
//!
//! Process health says nothing about whether a phone is heard: an address that Apple no longer advertises leaves every
//! light green (facts on macOS: detecting de-registration). A text between two own accounts does; one to oneself proves
//! nothing. It goes the way of every message, through the bridge with its lease, pacing and journal, at the end of the
//! queue. Who takes it for what it is: [`protocol::canary`]; the router keeps it from every tenant.
//!
//! Both phones are of this very host, checked with the configuration: nothing here can write to anybody else.

use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use protocol::link::PhoneState;
use protocol::pipe::{Command, Event, Send};
use protocol::{Channel, Class, E164, MessageId, Recipient, UnixMs, canary};
use router_client::clock::wall_now;
use serde::Serialize;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pool::{Ask, Handle, Pool, chance};

/// It must be started within this time, or it says nothing about now.
const START_WITHIN_MS: i64 = 60_000;
/// Periods differ by up to a fifth either way: a text at the same second every hour is a machine's.
const JITTER: f64 = 0.2;
/// How often a pair is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// One pair, as the operator configured it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Who writes.
    pub(crate) from: E164,
    /// Who is to hear it.
    pub(crate) to: E164,
    /// How often.
    pub(crate) every: Duration,
    /// One that has not arrived by then is lost.
    pub(crate) lost_after: Duration,
    /// So many lost in a row are an alarm.
    pub(crate) alarm_after: u32,
}

/// How a pair stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Standing {
    pub(crate) from: E164,
    pub(crate) to: E164,
    pub(crate) sent: u64,
    pub(crate) seen: u64,
    pub(crate) lost: u64,
    /// Not sent, because one of the two phones could not have been used anyway.
    pub(crate) skipped: u64,
    /// Lost in a row.
    pub(crate) lost_in_a_row: u32,
    pub(crate) alarm: bool,
    pub(crate) last_seen: Option<UnixMs>,
    pub(crate) last_latency_ms: Option<u64>,
}

/// What has changed about a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// It arrived, after so long.
    Seen { after: Duration, alarm_over: bool },
    /// It did not.
    Lost { alarm: bool },
}

/// One pair. Pure; times are since anything.
#[derive(Debug)]
struct Pair {
    settings: Settings,
    standing: Standing,
    next: Duration,
    /// The one that is on its way, and since when.
    pending: Option<(MessageId, Duration)>,
}

impl Pair {
    fn new(settings: Settings, chance: f64, now: Duration) -> Self {
        let standing = Standing {
            from: settings.from.clone(),
            to: settings.to.clone(),
            sent: 0,
            seen: 0,
            lost: 0,
            skipped: 0,
            lost_in_a_row: 0,
            alarm: false,
            last_seen: None,
            last_latency_ms: None,
        };
        // Not at once: a host that starts has other things to do, and hosts that start together need not write together.
        let next = now.saturating_add(settings.every.mul_f64(chance));
        Self { settings, standing, next, pending: None }
    }

    /// Whether one is to be written now; the next is due later, whatever becomes of it.
    fn is_due(&mut self, chance: f64, now: Duration) -> bool {
        let due = now >= self.next && self.pending.is_none();
        if due {
            let factor = 1.0 + JITTER * (2.0 * chance - 1.0);
            self.next = now.saturating_add(self.settings.every.mul_f64(factor));
        }
        due
    }

    fn sent(&mut self, id: MessageId, now: Duration) {
        self.standing.sent += 1;
        self.pending = Some((id, now));
    }

    fn arrived(&mut self, id: &MessageId, at: UnixMs, now: Duration) -> Option<News> {
        let (_, since) = self.pending.take_if(|(pending, _)| pending == id)?;
        let after = now.saturating_sub(since);
        let alarm_over = std::mem::take(&mut self.standing.alarm);
        self.standing.seen += 1;
        self.standing.lost_in_a_row = 0;
        self.standing.last_seen = Some(at);
        self.standing.last_latency_ms = u64::try_from(after.as_millis()).ok();
        Some(News::Seen { after, alarm_over })
    }

    fn tick(&mut self, now: Duration) -> Option<News> {
        let within = self.settings.lost_after;
        self.pending.take_if(|(_, since)| now.saturating_sub(*since) >= within)?;
        self.standing.lost += 1;
        self.standing.lost_in_a_row = self.standing.lost_in_a_row.saturating_add(1);
        let alarm =
            !self.standing.alarm && self.standing.lost_in_a_row >= self.settings.alarm_after;
        self.standing.alarm |= alarm;
        Some(News::Lost { alarm })
    }
}

/// Starts one task a pair; what they find is told in the order of the configuration.
pub(crate) fn start(
    pairs: &[Settings],
    pool: &Pool,
    tracker: &TaskTracker,
    closing: &CancellationToken,
) -> Vec<watch::Receiver<Standing>> {
    let start = |settings: &Settings| {
        let pair = Pair::new(settings.clone(), chance(), Duration::ZERO);
        let (told, standing) = watch::channel(pair.standing.clone());
        let (pool, closing) = (pool.clone(), closing.clone());
        tracker.spawn(async move {
            closing.run_until_cancelled(keep(pair, pool, told)).await.unwrap_or(());
        });
        standing
    };
    pairs.iter().map(start).collect()
}

async fn keep(mut pair: Pair, pool: Pool, told: watch::Sender<Standing>) {
    let began = Instant::now();
    let mut heard = None;
    loop {
        let arrived = if let Some(heard) = &mut heard {
            tokio::time::timeout(LOOK, arrival(heard, &pair.settings.from)).await.ok()
        } else {
            tokio::time::sleep(LOOK).await;
            None
        };
        let now = began.elapsed();
        let mut news = None;
        match arrived {
            Some(Some(id)) => news = pair.arrived(&id, wall_now(), now),
            // The phone was replaced by a changed configuration.
            Some(None) => heard = None,
            None => {}
        }
        let news = news.or_else(|| pair.tick(now));
        if let Some(news) = news {
            tell(&pair, news);
        }
        if pair.is_due(chance(), now) {
            match write(&pair.settings, &pool) {
                Ok((id, listening)) => {
                    heard = Some(listening);
                    count(&pair, "sent");
                    pair.sent(id, now);
                }
                Err(why) => {
                    pair.standing.skipped += 1;
                    count(&pair, "skipped");
                    tracing::info!(from = %pair.settings.from, to = %pair.settings.to, why, "no canary was sent");
                }
            }
        }
        let alarm = if pair.standing.alarm { 1.0 } else { 0.0 };
        metrics::gauge!("switchboard_canary_alarm", labels(&pair).to_vec()).set(alarm);
        told.send_if_modified(|old| {
            let changed = *old != pair.standing;
            if changed {
                old.clone_from(&pair.standing);
            }
            changed
        });
    }
}

fn find(pool: &Pool, number: &E164) -> Option<Handle> {
    pool.iter().find(|phone| phone.config.number == *number)
}

type Heard = broadcast::Receiver<std::sync::Arc<crate::stream::Item>>;

/// Writes one, if both phones are fit: what is known to be down needs no canary, and its loss would say nothing.
fn write(settings: &Settings, pool: &Pool) -> Result<(MessageId, Heard), &'static str> {
    let from = find(pool, &settings.from).ok_or("the phone that writes is not here")?;
    let to = find(pool, &settings.to).ok_or("the phone that hears is not here")?;
    if [&from, &to].iter().any(|phone| phone.report().state != PhoneState::Ready) {
        return Err("a phone is not ready");
    }
    let epoch = from.lease().ok_or("the phone that writes has no lease")?.epoch;
    let now = wall_now();
    let mut chance = [0; 4];
    SystemRandom::new().fill(&mut chance).map_err(|_unspecified| "there is no randomness")?;
    let id = canary::id(now, chance);
    let send = Send {
        message: id.clone(),
        attempt: 1,
        epoch,
        to: Recipient::Number(settings.to.clone()),
        text: canary::text(&id),
        attachments: Vec::new(),
        // Only iMessage tells of the account; and nobody pays for it.
        route: vec![Channel::Imessage],
        class: Class::Marketing,
        start_before: UnixMs(now.0.saturating_add(START_WITHIN_MS)),
        conversation: None,
    };
    // Listening starts before sending, so that it cannot be missed.
    let heard = to.stream.listen();
    from.ask(Ask::Command(Command::Send(send))).map_err(|_not_taken| "the bridge is busy")?;
    Ok((id, heard))
}

/// The next canary of that phone; none when the stream has ended.
async fn arrival(heard: &mut Heard, from: &E164) -> Option<MessageId> {
    #[derive(serde::Deserialize)]
    struct Frame {
        event: Event,
    }
    loop {
        match heard.recv().await {
            Ok(item) if item.kind == "received" => {
                let Ok(Frame { event: Event::Received(message) }) =
                    serde_json::from_str(&item.json)
                else {
                    continue;
                };
                if message.from == Recipient::Number(from.clone())
                    && let Some(id) = canary::of_text(&message.text)
                {
                    return Some(id);
                }
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

fn labels(pair: &Pair) -> [metrics::Label; 2] {
    [
        metrics::Label::new("from", pair.settings.from.to_string()),
        metrics::Label::new("to", pair.settings.to.to_string()),
    ]
}

fn count(pair: &Pair, outcome: &'static str) {
    let [from, to] = labels(pair);
    let labels = [from, to, metrics::Label::new("outcome", outcome)];
    metrics::counter!("switchboard_canaries_total", labels.to_vec()).increment(1);
}

fn tell(pair: &Pair, news: News) {
    let (from, to) = (&pair.settings.from, &pair.settings.to);
    match news {
        News::Seen { after, alarm_over } => {
            count(pair, "seen");
            metrics::histogram!("switchboard_canary_seconds", labels(pair).to_vec())
                .record(after.as_secs_f64());
            if alarm_over {
                tracing::warn!(%from, %to, "a canary has arrived again");
            }
        }
        News::Lost { alarm } => {
            count(pair, "lost");
            let in_a_row = pair.standing.lost_in_a_row;
            if alarm {
                tracing::error!(%from, %to, in_a_row,
                    "canaries do not arrive: one of these phones does not send or is not heard");
            } else {
                tracing::warn!(%from, %to, in_a_row, "a canary was lost");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_mins(15);
    const LOST: Duration = Duration::from_mins(2);
    const ALARM: News = News::Lost { alarm: true };
    const MISS: News = News::Lost { alarm: false };

    fn pair() -> Pair {
        let settings = Settings {
            from: "+12025550190".parse().unwrap(),
            to: "+12025550191".parse().unwrap(),
            every: EVERY,
            lost_after: LOST,
            alarm_after: 3,
        };
        Pair::new(settings, 0.5, Duration::ZERO)
    }

    fn id(n: u8) -> MessageId {
        canary::id(UnixMs(5), [n; 4])
    }

    #[test]
    fn one_is_written_each_period_give_or_take_a_fifth_and_never_two_at_once() {
        let mut pair = pair();
        assert!(!pair.is_due(0.0, EVERY.mul_f64(0.49)) && pair.is_due(0.0, EVERY / 2));
        let first = EVERY / 2;
        assert!(!pair.is_due(0.5, first + EVERY.mul_f64(0.79)));
        assert!(pair.is_due(0.999, first + EVERY.mul_f64(0.81)));
        let second = first + EVERY.mul_f64(0.81);
        assert!(!pair.is_due(0.5, second + EVERY.mul_f64(1.19)));
        pair.sent(id(1), second);
        assert!(!pair.is_due(0.5, second + EVERY * 2), "one is on its way");
        assert_eq!(pair.arrived(&id(2), UnixMs(9), second + LOOK), None, "another one");
        let seen = pair.arrived(&id(1), UnixMs(9), second + LOOK);
        assert_eq!(seen, Some(News::Seen { after: LOOK, alarm_over: false }));
        assert!(pair.is_due(0.5, second + EVERY * 2));
        assert_eq!((pair.standing.sent, pair.standing.seen, pair.standing.lost), (1, 1, 0));
    }

    #[test]
    fn lost_ones_in_a_row_are_an_alarm_that_is_raised_once_and_ends_with_the_next_that_arrives() {
        let mut pair = pair();
        let mut now = Duration::ZERO;
        for (n, wanted) in [(1, MISS), (2, MISS), (3, ALARM), (4, MISS)] {
            pair.sent(id(n), now);
            assert_eq!(pair.tick(now + LOST.mul_f64(0.99)), None);
            now += LOST;
            assert_eq!(pair.tick(now), Some(wanted), "{n}");
            assert_eq!(pair.tick(now), None);
            // What comes too late is no proof: somebody may have mended it by hand meanwhile.
            assert_eq!(pair.arrived(&id(n), UnixMs(9), now), None);
        }
        assert!(pair.standing.alarm);
        pair.sent(id(5), now);
        let seen = pair.arrived(&id(5), UnixMs(9), now + LOOK);
        assert_eq!(seen, Some(News::Seen { after: LOOK, alarm_over: true }));
        assert!(!pair.standing.alarm && pair.standing.lost_in_a_row == 0);
        assert_eq!((pair.standing.lost, pair.standing.last_latency_ms), (4, Some(1_000)));
    }
}
