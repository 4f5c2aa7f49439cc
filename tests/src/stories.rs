//! The five stories that every newcomer sees, played through the public API.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use protocol::api::{Message, MessageEvent, Phone};
use protocol::{Channel, MessageId, Reason, Status};
use rusqlite::{Connection, OpenFlags};

use crate::eventually;
use crate::shelf::{Shelf, message};

/// No step of a story takes longer, even on a busy machine.
const STEP_WITHIN: Duration = Duration::from_secs(30);

/// How long a thing that must not happen is waited for.
const QUIET: Duration = Duration::from_millis(1_500);

/// Who takes part: the sandbox does for each number what its table says.
mod cast {
    /// On iMessage; gets and reads everything.
    pub(super) const READER: &str = "+12025550101";
    /// Not on iMessage; reachable by SMS.
    pub(super) const GREEN: &str = "+12025550110";
    /// On iMessage; Messages takes its time over everything that goes there.
    pub(super) const SLOW: &str = "+12025550115";
}

/// Tells a story's steps as they happen.
pub trait Narrator {
    /// One step of a message's story, and how long after the step before it.
    fn step(&mut self, event: &MessageEvent, after_ms: i64);
    /// Anything else worth a line.
    fn note(&mut self, line: &str);
}

/// Nobody listens.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Narrator for Silent {
    fn step(&mut self, _event: &MessageEvent, _after_ms: i64) {}
    fn note(&mut self, _line: &str) {}
}

/// A story: its name, what must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Story {
    /// Sent, delivered, read.
    Read,
    /// Error 22 seen, then SMS.
    Fallback,
    /// A reply comes back.
    Reply,
    /// STOP is honoured.
    Stop,
    /// A bridge dies while its send is in flight.
    Crash,
}

impl Story {
    /// All five, in the order in which they are told.
    pub const ALL: [Self; 5] = [Self::Read, Self::Fallback, Self::Reply, Self::Stop, Self::Crash];

    /// What it is about.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "an iMessage is sent, delivered and read",
            Self::Fallback => "a number without iMessage gets an SMS",
            Self::Reply => "a reply comes back",
            Self::Stop => "STOP is honoured",
            Self::Crash => "a bridge is killed while sending",
        }
    }

    /// What must come of it.
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Read => "sent, delivered, read",
            Self::Fallback => "error 22, then sms; ends as sent on the same phone",
            Self::Reply => "message.received, decoded from attributedBody",
            Self::Stop => "opted out, one confirmation, then blocked (opted_out)",
            Self::Crash => "restarted, settled from chat.db, sent once",
        }
    }

    /// Plays it; gives what was seen.
    pub async fn play(self, shelf: &mut Shelf, narrator: &mut dyn Narrator) -> Result<String> {
        match self {
            Self::Read => read(shelf, narrator).await,
            Self::Fallback => fallback(shelf, narrator).await,
            Self::Reply => reply(shelf, narrator).await,
            Self::Stop => stop(shelf, narrator).await,
            Self::Crash => crash(shelf, narrator).await,
        }
    }
}

/// Follows a message until `done` says so; tells every step once.
pub async fn follow(
    shelf: &Shelf,
    id: &MessageId,
    narrator: &mut dyn Narrator,
    done: impl Fn(&[MessageEvent]) -> bool,
) -> Result<Vec<MessageEvent>> {
    follow_on(shelf, id, narrator, Vec::new(), done).await
}

/// Goes on following after the steps that have been told.
async fn follow_on(
    shelf: &Shelf,
    id: &MessageId,
    narrator: &mut dyn Narrator,
    mut told: Vec<MessageEvent>,
    done: impl Fn(&[MessageEvent]) -> bool,
) -> Result<Vec<MessageEvent>> {
    let until = tokio::time::Instant::now() + STEP_WITHIN;
    loop {
        let events = shelf.tenant.events(id).await?;
        for event in events.get(told.len()..).unwrap_or_default() {
            let after = told.last().map_or(0, |before| event.at.since(before.at));
            // A receipt carries chat.db's time, which may lie before the moment of noticing `sent`.
            narrator.step(event, after.max(0));
            told.push(event.clone());
        }
        if done(&told) {
            return Ok(told);
        }
        if tokio::time::Instant::now() >= until {
            let kinds: Vec<_> = told.iter().map(|event| event.kind.as_str()).collect();
            bail!("{id} is stuck after {}", kinds.join(", "));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn has(events: &[MessageEvent], kind: &str) -> bool {
    events.iter().any(|event| event.kind == kind)
}

fn kinds(events: &[MessageEvent]) -> String {
    events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>().join(", ")
}

async fn phone_of(shelf: &Shelf, message: &Message) -> Result<Phone> {
    let id = message.phone.as_ref().context("the message has a phone")?;
    let phones = shelf.operator.phones().await?;
    phones.into_iter().find(|phone| &phone.id == id).context("the phone exists")
}

fn asked_times(shelf: &Shelf, text: &str) -> Result<usize> {
    Ok(shelf.asked()?.iter().filter(|asked| asked.text == text).count())
}

async fn read(shelf: &mut Shelf, narrator: &mut dyn Narrator) -> Result<String> {
    let text = "Your table for four is ready – “Zur Post” 🍲";
    let accepted = shelf.tenant.send(&message(cast::READER, text)?).await?;
    let events = follow(shelf, &accepted.id, narrator, |events| has(events, "read")).await?;
    let now = shelf.tenant.message(&accepted.id).await?;
    ensure!(now.status == Status::Read, "status is {}", now.status);
    ensure!(now.channel_used == Some(Channel::Imessage), "channel is {:?}", now.channel_used);
    ensure!(has(&events, "sent") && has(&events, "delivered"), "events are {}", kinds(&events));
    ensure!(asked_times(shelf, text)? == 1, "Messages was not asked exactly once");
    webhooks(shelf, &accepted.id, &["message.sent", "message.delivered", "message.read"]).await?;
    Ok("sent, delivered, read".to_owned())
}

/// Waits until the tenant's endpoint has these, in this order, all with good signatures.
async fn webhooks(shelf: &Shelf, id: &MessageId, wanted: &[&str]) -> Result<()> {
    eventually("the webhooks arrive", STEP_WITHIN, || async {
        let refused = shelf.sink.refused();
        ensure!(refused.is_empty(), "webhooks were refused: {refused:?}");
        let seen = shelf.sink.types_of(id);
        let matching: Vec<_> = seen.iter().filter(|kind| wanted.contains(&kind.as_str())).collect();
        Ok(if matching == wanted { Ok(()) } else { Err(seen.join(", ")) })
    })
    .await
}

async fn fallback(shelf: &mut Shelf, narrator: &mut dyn Narrator) -> Result<String> {
    let text = "Your parcel waits at the front desk.";
    let accepted = shelf.tenant.send(&message(cast::GREEN, text)?).await?;
    let events = follow(shelf, &accepted.id, narrator, |events| has(events, "sent")).await?;
    let now = shelf.tenant.message(&accepted.id).await?;
    ensure!(now.status == Status::Sent, "status is {}", now.status);
    ensure!(now.channel_used == Some(Channel::Sms), "channel is {:?}", now.channel_used);
    let error = events
        .iter()
        .find(|event| event.kind == "fallback" && event.reason == Some(Reason::NotRegistered))
        .with_context(|| format!("no fallback for not_registered in {}", kinds(&events)))?;
    let detail = error.detail.clone().unwrap_or_default();
    ensure!(detail.contains("22"), "the fallback does not name error 22: {detail:?}");
    let phones: std::collections::BTreeSet<_> =
        events.iter().filter_map(|event| event.phone.as_ref()).collect();
    ensure!(phones.len() == 1, "it wandered over {} phones", phones.len());
    let asked = shelf.asked()?;
    let services: Vec<_> =
        asked.iter().filter(|a| a.text == text).map(|a| a.service.as_str()).collect();
    ensure!(services == ["iMessage", "SMS"], "Messages was asked by {services:?}");
    webhooks(shelf, &accepted.id, &["message.sent"]).await?;
    tokio::time::sleep(QUIET).await;
    let now = shelf.tenant.message(&accepted.id).await?;
    ensure!(now.status == Status::Sent, "an SMS has no receipts, yet it is {}", now.status);
    Ok("error 22, then sms; sent; one phone".to_owned())
}

async fn reply(shelf: &mut Shelf, narrator: &mut dyn Narrator) -> Result<String> {
    let accepted = shelf.tenant.send(&message(cast::READER, "Shall we keep your table?")?).await?;
    follow(shelf, &accepted.id, narrator, |events| has(events, "sent")).await?;
    let sent = shelf.tenant.message(&accepted.id).await?;
    let phone = phone_of(shelf, &sent).await?;
    let text = "Yes please – we are late: 20:30 🙏";
    shelf.receive(&phone.number, cast::READER, text)?;
    let body = eventually("message.received arrives", STEP_WITHIN, || async {
        let seen = shelf.sink.events();
        let found = seen.into_iter().find(|event| {
            event.kind == "message.received" && event.data.text.as_deref() == Some(text)
        });
        Ok(found.ok_or_else(|| "no such webhook".to_owned()))
    })
    .await?;
    ensure!(
        body.data.recipient.as_ref().map(ToString::to_string).as_deref() == Some(cast::READER),
        "it came from {:?}",
        body.data.recipient
    );
    ensure!(body.data.phone.as_ref() == Some(&phone.id), "it came to {:?}", body.data.phone);
    narrator.note(&format!(
        "message.received from {}: {} characters",
        cast::READER,
        text.chars().count()
    ));
    let (plain, blob) = newest_inbound(&shelf.phone_dir(phone.number.as_str()).join("chat.db"))?;
    ensure!(plain.is_none(), "chat.db has the text in the open; the story needs attributedBody");
    ensure!(blob > 0, "chat.db has no attributedBody");
    Ok(format!("message.received; text NULL, attributedBody {blob} bytes"))
}

/// Plain text and size of the attributed text of the newest message from outside.
fn newest_inbound(chat_db: &std::path::Path) -> Result<(Option<String>, i64)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(chat_db, flags).context("chat.db")?;
    db.query_row(
        "SELECT text, ifnull(length(attributedBody), 0) FROM message \
         WHERE is_from_me = 0 ORDER BY ROWID DESC LIMIT 1",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
    .context("newest inbound row")
}

async fn stop(shelf: &mut Shelf, narrator: &mut dyn Narrator) -> Result<String> {
    let accepted =
        shelf.tenant.send(&message(cast::READER, "Today: dumplings at half price.")?).await?;
    follow(shelf, &accepted.id, narrator, |events| has(events, "sent")).await?;
    let sent = shelf.tenant.message(&accepted.id).await?;
    let phone = phone_of(shelf, &sent).await?;
    shelf.receive(&phone.number, cast::READER, "STOP")?;
    eventually("contact.opted_out arrives", STEP_WITHIN, || async {
        let told = shelf.sink.events().iter().any(|event| event.kind == "contact.opted_out");
        Ok(if told { Ok(()) } else { Err("no such webhook".to_owned()) })
    })
    .await?;
    narrator.note("contact.opted_out");
    let listed = shelf.tenant.opt_outs().await?;
    ensure!(
        listed.iter().any(|out| out.recipient.to_string() == cast::READER),
        "the opt-out is not listed"
    );
    let confirmations = || -> Result<usize> {
        Ok(shelf
            .asked()?
            .iter()
            .filter(|asked| asked.to == cast::READER && asked.text.contains("unsubscribed"))
            .count())
    };
    eventually("the confirmation goes out", STEP_WITHIN, || {
        let count = confirmations();
        async move { Ok(if count? == 1 { Ok(()) } else { Err("none yet".to_owned()) }) }
    })
    .await?;
    narrator.note("confirmation sent");
    // Somebody who says it twice is not written to twice.
    shelf.receive(&phone.number, cast::READER, "Stop.")?;
    let text = "Tomorrow: noodles.";
    let refused = shelf.tenant.send(&message(cast::READER, text)?).await?;
    let events = follow(shelf, &refused.id, narrator, |events| has(events, "blocked")).await?;
    let now = shelf.tenant.message(&refused.id).await?;
    ensure!(now.status == Status::Blocked, "status is {}", now.status);
    ensure!(now.reason == Some(Reason::OptedOut), "reason is {:?}", now.reason);
    ensure!(!has(&events, "started"), "it was started all the same");
    tokio::time::sleep(QUIET).await;
    ensure!(asked_times(shelf, text)? == 0, "Messages was asked to send it all the same");
    ensure!(confirmations()? == 1, "{} confirmations were sent", confirmations()?);
    webhooks(shelf, &refused.id, &["message.blocked"]).await?;
    Ok("opted out, one confirmation, blocked (opted_out)".to_owned())
}

async fn crash(shelf: &mut Shelf, narrator: &mut dyn Narrator) -> Result<String> {
    let text = "The kitchen closes at ten.";
    let accepted = shelf.tenant.send(&message(cast::SLOW, text)?).await?;
    let told = follow(shelf, &accepted.id, narrator, |events| has(events, "started")).await?;
    let started = shelf.tenant.message(&accepted.id).await?;
    let phone = phone_of(shelf, &started).await?;
    let before = shelf.bridge_pid(&phone)?.context("the bridge runs")?;
    crate::program::crash_pid(before)?;
    narrator.note(&format!("SIGKILL to the bridge of {} (pid {before})", phone.number));
    let after = eventually("the bridge is restarted", STEP_WITHIN, || {
        let now = shelf.bridge_pid(&phone);
        async move {
            Ok(match now? {
                Some(pid) if pid != before => Ok(pid),
                Some(_) | None => Err("not yet".to_owned()),
            })
        }
    })
    .await?;
    narrator.note(&format!("the supervisor restarted it (pid {after})"));
    let events = follow_on(shelf, &accepted.id, narrator, told, |events| {
        has(events, "sent") || has(events, "failed") || has(events, "unknown")
    })
    .await?;
    ensure!(has(&events, "sent"), "events are {}", kinds(&events));
    let starts = events.iter().filter(|event| event.kind == "started").count();
    ensure!(starts == 1, "it was started {starts} times");
    // A second ask would come within the time that the slow osascript takes.
    tokio::time::sleep(QUIET).await;
    let times = asked_times(shelf, text)?;
    ensure!(times == 1, "Messages was asked {times} times");
    Ok("restarted, settled from chat.db, sent once".to_owned())
}
