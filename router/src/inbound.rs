//! What phones report → the store. Each batch is one transaction; the acknowledgement goes out after its commit.
//!
//! Taken in order and once: of each (phone, journal) only the event after the last one taken counts; older ones are
//! merely acknowledged again, newer ones are dropped until the gap is filled. An answer about an attempt counts only
//! from the phone that the attempt was given to, and "not sent" only from the very journal.
//!
//! Nothing that was acknowledged is lost: what cannot be placed or taken in is kept as it came
//! ([`crate::store::inbound::keep_unplaced`]).

pub(crate) mod attempts;
pub(crate) mod received;

use std::collections::BTreeMap;

use protocol::link::EventFrame;
use protocol::pipe::{AccountState, Event};
use protocol::{MessageId, PhoneId, UnixMs};

use crate::retry;
use crate::server::App;
use crate::store::dispatch::DayCap;
use crate::store::{StoreError, Tx, capabilities, inbound as store, lease as journals};

/// What is to be done once the batch is on disk.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Messages whose other attempts are to be withdrawn.
    pub(crate) recall: Vec<MessageId>,
    /// Canaries that have arrived.
    pub(crate) canaries: Vec<MessageId>,
    /// A job or a free place has come up.
    pub(crate) dispatch: bool,
}

impl Effects {
    pub(crate) fn merge(&mut self, mut other: Self) {
        self.recall.append(&mut other.recall);
        self.canaries.append(&mut other.canaries);
        self.dispatch |= other.dispatch;
    }
}

/// What can be acknowledged: up to which event, per phone and journal.
pub type Acks = BTreeMap<(PhoneId, String), u64>;

/// Settings that the decisions about events take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) retry: retry::Policy,
    /// What a phone may do in a day.
    pub(crate) cap: DayCap,
}

/// The settings of this router.
pub(crate) fn rules(app: &App) -> Rules {
    let settings = app.config.dispatch;
    Rules {
        retry: retry::Policy {
            attempts_max: settings.attempts,
            first_wait_ms: i64::try_from(settings.retry_first_ms).unwrap_or(i64::MAX),
        },
        cap: DayCap { daily: settings.daily_cap, in_hand: settings.in_flight_per_phone },
    }
}

/// Takes in a batch of events from one host; its phones have been checked. Answers what may be acknowledged.
pub async fn take(app: &App, frames: Vec<EventFrame>) -> Result<Acks, StoreError> {
    let now = app.clock.now();
    let rules = rules(app);
    let copy = frames.clone();
    let (acks, effects) =
        match app.store.behind().write_often(move |tx| take_all(tx, rules, &copy, now)).await {
            Ok(taken) => taken,
            Err(error) if error.is_unavailable() => return Err(error),
            // One event cannot be taken in. The others are not to suffer.
            Err(_) => one_by_one(app, rules, frames, now).await?,
        };
    app.bells.webhooks.notify_one();
    if effects.dispatch {
        app.bells.dispatch.notify_one();
    }
    crate::canaries::arrived(app, &effects.canaries).await;
    for message in &effects.recall {
        crate::dispatch::recall(app, message).await;
    }
    Ok(acks)
}

async fn one_by_one(
    app: &App,
    rules: Rules,
    frames: Vec<EventFrame>,
    now: UnixMs,
) -> Result<(Acks, Effects), StoreError> {
    let (mut acks, mut effects) = (Acks::new(), Effects::default());
    for frame in frames {
        let (phone, journal, seq) = (frame.phone.clone(), frame.journal.clone(), frame.seq);
        let kind = frame.event.kind();
        let copy = frame.clone();
        let taken =
            app.store.write(move |tx| take_all(tx, rules, std::slice::from_ref(&frame), now)).await;
        match taken {
            Ok((more, new)) => {
                acks.extend(more);
                effects.merge(new);
            }
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => {
                // Repeating it for ever would stop everything that this phone has to say after it.
                tracing::error!(phone = %phone, seq, kind, error = %error, "inbound: an event cannot be taken in and is passed over");
                metrics::counter!("switchboard_inbound_passed_over_total", "type" => kind)
                    .increment(1);
                effects.merge(pass_over(app, copy, error.to_string(), now).await?);
                acks.insert((phone, journal), seq);
            }
        }
    }
    Ok((acks, effects))
}

/// Keeps an event that cannot be taken in, and what must not wait of it.
async fn pass_over(
    app: &App,
    frame: EventFrame,
    why: String,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    // What cannot be stopped, because it cannot be read, must not cost the person the opt-out.
    for stop in [true, false] {
        let (copy, reason) = (frame.clone(), why.clone());
        let salvaged = app
            .store
            .write(move |tx| {
                let told = (&copy.phone, copy.journal.as_str());
                let effects = if let Event::Received(message) = &copy.event {
                    received::salvage(tx, told, message, stop, now)?
                } else if let Event::Edited(edited) = &copy.event {
                    received::salvage_edit(tx, told.0, edited, stop, now)?
                } else {
                    Effects::default()
                };
                keep(tx, &copy, &reason, now)?;
                Ok(effects)
            })
            .await;
        match salvaged {
            Err(error) if !error.is_unavailable() => {
                tracing::error!(error = %error, stop, "inbound: what must not wait of an event cannot be saved");
            }
            salvaged => return salvaged,
        }
    }
    app.store.write(move |tx| keep(tx, &frame, &why, now)).await?;
    Ok(Effects::default())
}

fn keep(tx: &mut Tx<'_>, frame: &EventFrame, why: &str, now: UnixMs) -> Result<(), StoreError> {
    store::keep_unplaced(tx, frame, why, now)?;
    journals::set_acked_seq(tx, &frame.phone, &frame.journal, frame.seq, now)
}

fn take_all(
    tx: &mut Tx<'_>,
    rules: Rules,
    frames: &[EventFrame],
    now: UnixMs,
) -> Result<(Acks, Effects), StoreError> {
    let (mut acks, mut effects) = (Acks::new(), Effects::default());
    let mut moved = Acks::new();
    let mut epochs: BTreeMap<&PhoneId, u64> = BTreeMap::new();
    let mut heard = attempts::Heard::default();
    for frame in frames {
        if let Some(epoch) = frame.epoch {
            let newest = epochs.entry(&frame.phone).or_default();
            *newest = epoch.max(*newest);
        }
        let key = (frame.phone.clone(), frame.journal.clone());
        let acked = match acks.get(&key) {
            Some(acked) => *acked,
            None => journals::acked_seq(tx, &frame.phone, &frame.journal)?,
        };
        let next = acked.saturating_add(1);
        if frame.seq == next {
            apply(tx, (rules, &mut heard), frame, now, &mut effects)?;
            metrics::counter!("switchboard_inbound_events_total", "type" => frame.event.kind())
                .increment(1);
            moved.insert(key.clone(), next);
            acks.insert(key, next);
        } else {
            if frame.seq > next {
                metrics::counter!("switchboard_inbound_gaps_total").increment(1);
            }
            acks.insert(key, acked);
        }
    }
    heard.write(tx, now)?;
    for (phone, epoch) in epochs {
        journals::heard_epoch(tx, phone, epoch)?;
    }
    for ((phone, journal), seq) in &moved {
        journals::set_acked_seq(tx, phone, journal, *seq, now)?;
    }
    // Nothing taken yet of a journal: there is nothing to acknowledge.
    acks.retain(|_, seq| *seq > 0);
    Ok((acks, effects))
}

fn apply(
    tx: &mut Tx<'_>,
    state: (Rules, &mut attempts::Heard),
    frame: &EventFrame,
    now: UnixMs,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    match &frame.event {
        Event::Accepted(_)
        | Event::Refused(_)
        | Event::Started { .. }
        | Event::Fallback { .. }
        | Event::Sent { .. }
        | Event::Delivered(_)
        | Event::Read(_)
        | Event::Failed(_)
        | Event::Unknown(_)
        | Event::Canceled(_)
        | Event::Expired(_) => attempts::apply(tx, state, frame, now, effects),
        Event::Received(message) => received::message(tx, frame, message, now, effects),
        Event::Reaction(reaction) => {
            received::about(tx, frame, (&reaction.target, reaction.at), reaction, now)
        }
        Event::Edited(edited) => received::edited(tx, frame, edited, now, effects),
        Event::Unsent(unsent) => received::about(tx, frame, (&unsent.guid, unsent.at), unsent, now),
        Event::Attachment(change) => {
            received::about(tx, frame, (&change.message, change.at), change, now)
        }
        Event::Preview(change) => {
            received::about(tx, frame, (&change.message, change.at), change, now)
        }
        Event::Group(change) => {
            tracing::info!(phone = %frame.phone, change = %change.change, "inbound: a group changed");
            Ok(())
        }
        Event::Notice(notice) => {
            tracing::debug!(phone = %frame.phone, notice = %notice.kind, "inbound: a notice of the system");
            Ok(())
        }
        Event::UnknownKind(kind) => {
            tracing::warn!(phone = %frame.phone, item_type = kind.item_type, associated_message_type = kind.associated_message_type, "inbound: a row of an unknown kind");
            store::keep_unplaced(tx, frame, "of a kind that is not known", now)
        }
        Event::Capability(answer) => capabilities::answered(tx, &frame.phone, answer, now),
        Event::Resync { why } => {
            tracing::warn!(phone = %frame.phone, why, "inbound: a phone's chat.db was read again");
            Ok(())
        }
        Event::Account { state: AccountState::Blocked, .. } => {
            tracing::error!(phone = %frame.phone, "inbound: Apple has blocked a phone's account: nothing is sent by it, and no other host takes it over");
            Ok(())
        }
        Event::Account { state, .. } => {
            tracing::info!(phone = %frame.phone, state = ?state, "inbound: the account's state changed");
            Ok(())
        }
        Event::Other(other) => {
            tracing::warn!(phone = %frame.phone, kind = %other.kind, "inbound: an event that this router does not understand");
            store::keep_unplaced(tx, frame, "not understood by this router", now)
        }
    }
}
