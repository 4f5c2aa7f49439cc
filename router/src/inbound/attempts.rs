//! What a phone says of an attempt → the message's status, the next attempt, the tenant's webhooks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use protocol::link::EventFrame;
use protocol::pipe::{Attempt, Event};
use protocol::{Channel, MessageId, PhoneId, Reason, Status, TenantId, UnixMs, canary};

use super::{Effects, Rules};
use crate::facts;
use crate::retry::{self, Ended, Next};
use crate::shares;
use crate::store::capabilities;
use crate::store::change::{self, Change, Standing};
use crate::store::dead_letters;
use crate::store::dispatch::{self as rows, AttemptRow};
use crate::store::doubts;
use crate::store::events::{self, NewEvent};
use crate::store::inbound as store;
use crate::store::{StoreError, Tx};

/// The attempt that an event is about, as found in the store.
struct About<'a> {
    tenant: &'a TenantId,
    message: &'a MessageId,
    attempt: u32,
    phone: &'a PhoneId,
    row: &'a AttemptRow,
    /// Steps of this attempt that are still to be written, before whatever follows from the event.
    steps: &'a [NewEvent<'a>],
    at: UnixMs,
    now: UnixMs,
}

impl<'a> About<'a> {
    fn change(&self, status: Status) -> Change<'a> {
        Change {
            phone: Some(self.phone),
            attempt: Some(self.attempt),
            now: self.now,
            ..Change::to(status, self.at)
        }
    }

    fn step(&self, kind: &'a str) -> Change<'a> {
        Change {
            phone: Some(self.phone),
            attempt: Some(self.attempt),
            now: self.now,
            ..Change::step(kind, self.at)
        }
    }
}

/// What one batch has heard of attempts and has not written yet: a phone says `accepted`, `started` and often `sent` in
/// one breath, and the message's rows are written once for all of it.
#[derive(Debug, Default)]
pub(super) struct Heard {
    attempts: BTreeMap<(MessageId, u32), Known>,
}

/// An attempt as it stands after what was heard.
#[derive(Debug)]
struct Known {
    row: AttemptRow,
    /// What the row in the store does not say yet.
    unwritten: Vec<Step>,
}

/// A step that changes no status and is told to nobody.
#[derive(Debug)]
struct Step {
    state: &'static str,
    at: UnixMs,
    channel: Option<Channel>,
}

impl Known {
    /// The attempt has come as far as `state`, which is the name of the step too.
    fn step(&mut self, state: &'static str, at: UnixMs, channel: Option<Channel>) {
        state.clone_into(&mut self.row.state);
        self.unwritten.push(Step { state, at, channel });
    }

    /// What is not written yet, as the story has it.
    fn story(&self, attempt: u32) -> Vec<NewEvent<'_>> {
        let of = |step: &Step| NewEvent {
            phone: Some(&self.row.phone),
            attempt: Some(attempt),
            channel: step.channel,
            ..NewEvent::new(step.state, step.at)
        };
        self.unwritten.iter().map(of).collect()
    }

    fn write(
        &mut self,
        tx: &mut Tx<'_>,
        (message, attempt): (&MessageId, u32),
        now: UnixMs,
    ) -> Result<(), StoreError> {
        if !self.unwritten.is_empty() {
            rows::set_attempt_state(tx, message, attempt, &self.row.state, now)?;
            events::append(tx, &self.row.tenant, message, &self.story(attempt))?;
            self.unwritten.clear();
        }
        Ok(())
    }
}

impl Heard {
    /// The attempt that an event is about, with what was heard of it before.
    fn find(
        &mut self,
        tx: &mut Tx<'_>,
        (message, attempt): (&MessageId, u32),
        frame: &EventFrame,
        now: UnixMs,
    ) -> Result<Option<&mut Known>, StoreError> {
        match self.attempts.entry((message.clone(), attempt)) {
            Entry::Occupied(known) => Ok(Some(known.into_mut())),
            Entry::Vacant(place) => {
                let mut found = rows::attempt(tx, message, attempt)?;
                if found.is_none() {
                    let witness = (&frame.phone, frame.journal.as_str(), frame.epoch.unwrap_or(0));
                    found = rows::adopt(tx, message, attempt, witness, now)?;
                }
                Ok(found.map(|row| place.insert(Known { row, unwritten: Vec::new() })))
            }
        }
    }

    /// Forgets a message after it has written what was heard of it, but for what it answers: the attempt that something
    /// else is to be written about now.
    fn take(
        &mut self,
        tx: &mut Tx<'_>,
        message: &MessageId,
        attempt: u32,
        now: UnixMs,
    ) -> Result<Option<Known>, StoreError> {
        let taken = self.attempts.remove(&(message.clone(), attempt));
        let of_message = (message.clone(), 0)..=(message.clone(), u32::MAX);
        let others: Vec<u32> = self.attempts.range(of_message).map(|(key, _)| key.1).collect();
        for other in others {
            if let Some(mut known) = self.attempts.remove(&(message.clone(), other)) {
                known.write(tx, (message, other), now)?;
            }
        }
        Ok(taken)
    }

    /// Writes all that was heard.
    pub(super) fn write(self, tx: &mut Tx<'_>, now: UnixMs) -> Result<(), StoreError> {
        for ((message, attempt), mut known) in self.attempts {
            known.write(tx, (&message, attempt), now)?;
        }
        Ok(())
    }
}

pub(super) fn apply(
    tx: &mut Tx<'_>,
    (rules, heard): (Rules, &mut Heard),
    frame: &EventFrame,
    now: UnixMs,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let Some(Attempt { message, attempt }) = frame.event.attempt() else { return Ok(()) };
    let attempt = *attempt;
    if canary::is_id(message) {
        // A host writes from one of its phones to another to see that both work: no tenant's, and not offered from here.
        return Ok(());
    }
    let found = heard.find(tx, (message, attempt), frame, now)?;
    let Some(known) = found.filter(|known| known.row.phone == frame.phone) else {
        // Of another router's time, or not this phone's to speak of.
        metrics::counter!("switchboard_inbound_strange_attempts_total").increment(1);
        tracing::warn!(phone = %frame.phone, message = %message, attempt, "inbound: no such attempt on this phone");
        return store::keep_unplaced(tx, frame, "no such attempt on this phone", now);
    };
    // What chat.db shows was sent, whoever read it there. That something was not sent is known only to the journal
    // that was asked to: a new one has never heard of it, and says so.
    let proof = matches!(frame.event, Event::Sent { .. } | Event::Delivered(_) | Event::Read(_));
    let others = known.row.journal.as_ref().is_some_and(|journal| *journal != frame.journal);
    if !proof && others {
        metrics::counter!("switchboard_inbound_strange_attempts_total").increment(1);
        tracing::warn!(phone = %frame.phone, message = %message, attempt, "inbound: another journal's attempt");
        return store::keep_unplaced(tx, frame, "another journal's attempt", now);
    }
    // These two are written with what comes after them.
    if let Event::Accepted(_) = &frame.event {
        if known.row.state == "offered" {
            known.step("accepted", frame.at, None);
        }
        return Ok(());
    }
    if let Event::Started { channel, .. } = &frame.event {
        if known.row.state != "done" {
            known.step("started", frame.at, Some(*channel));
        }
        return Ok(());
    }
    let Some(mut known) = heard.take(tx, message, attempt, now)? else {
        return Err(StoreError::NoRow);
    };
    if !matches!(frame.event, Event::Sent { .. }) || others {
        known.write(tx, (message, attempt), now)?;
    }
    // A Mac that looks for what another one has sent judges by the words: a row that is known to be another message's is
    // no proof, whatever it says.
    if let (true, Event::Sent { guid, .. }) = (others, &frame.event)
        && let Some(owner) = doubts::owner_of_guid(tx, &frame.phone, guid, message)?
    {
        tracing::error!(phone = %frame.phone, message = %message, owner = %owner, "inbound: the proof is another message's");
        return store::keep_unplaced(tx, frame, "the proof is another message's", now);
    }
    let steps = known.story(attempt);
    let about = About {
        tenant: &known.row.tenant,
        message,
        attempt,
        phone: &frame.phone,
        row: &known.row,
        steps: &steps,
        at: frame.at,
        now,
    };
    match &frame.event {
        Event::Fallback { from, to, reason, detail, .. } => {
            if *reason == Reason::NotRegistered {
                learn(tx, &about, *from, false)?;
            }
            let step = Change {
                channel: Some(*to),
                reason: Some(*reason),
                detail: some_text(detail),
                ..about.step("fallback")
            };
            change::make(tx, about.tenant, message, &step)?;
            Ok(())
        }
        Event::Sent { channel, guid, .. } => {
            let Some(before) = change::standing(tx, about.tenant, message)? else {
                return Err(StoreError::NoRow);
            };
            let of = (about.tenant, before.test);
            let at = about.at.min(about.now);
            capabilities::learn(tx, of, &before.recipient, (*channel, true), at)?;
            let change =
                Change { channel: Some(*channel), guid: Some(guid), ..about.change(Status::Sent) };
            proven_of(tx, &about, (&before, &change), effects)
        }
        Event::Delivered(receipt) => {
            let change = Change {
                guid: Some(&receipt.guid),
                at: receipt.at,
                ..about.change(Status::Delivered)
            };
            proven(tx, &about, &change, effects)
        }
        Event::Read(receipt) => {
            let change =
                Change { guid: Some(&receipt.guid), at: receipt.at, ..about.change(Status::Read) };
            proven(tx, &about, &change, effects)
        }
        Event::Unknown(why) => {
            // Said again of an attempt that was answered before, it says nothing of the newer one.
            if about.row.state == "done" {
                return Ok(());
            }
            done(tx, &about, effects)?;
            let change = Change {
                reason: Some(why.reason),
                detail: some_text(&why.detail),
                channel: why.channel,
                ..about.change(Status::Unknown)
            };
            change::make(tx, about.tenant, message, &change)?;
            Ok(())
        }
        Event::Failed(why) => {
            if let (Reason::NotRegistered, Some(channel)) = (why.reason, why.channel) {
                learn(tx, &about, channel, false)?;
            }
            let ended = Ended::Failed { retryable: why.retryable };
            not_sent(tx, rules, &about, ended, (why.reason, &why.detail), effects)
        }
        Event::Refused(why) => {
            // These three say that it came too late or that the phone was full: nothing against the message.
            let passing =
                matches!(why.reason, Reason::StaleEpoch | Reason::QueueFull | Reason::Expired);
            let ended = Ended::NotStarted { retryable: why.retryable || passing };
            not_sent(tx, rules, &about, ended, (why.reason, &why.detail), effects)
        }
        Event::Expired(_) => {
            let ended = Ended::NotStarted { retryable: true };
            not_sent(tx, rules, &about, ended, (Reason::Expired, ""), effects)
        }
        Event::Canceled(_) => {
            let ended = Ended::NotStarted { retryable: true };
            not_sent(tx, rules, &about, ended, (Reason::Canceled, ""), effects)
        }
        Event::Accepted(_)
        | Event::Started { .. }
        | Event::Received(_)
        | Event::Reaction(_)
        | Event::Edited(_)
        | Event::Unsent(_)
        | Event::Attachment(_)
        | Event::Preview(_)
        | Event::Group(_)
        | Event::Notice(_)
        | Event::UnknownKind(_)
        | Event::Capability(_)
        | Event::Resync { .. }
        | Event::Account { .. }
        | Event::Other(_) => Ok(()),
    }
}

/// What became of an attempt shows whether its channel reaches the recipient.
fn learn(
    tx: &mut Tx<'_>,
    about: &About<'_>,
    channel: Channel,
    able: bool,
) -> Result<(), StoreError> {
    let at = about.at.min(about.now);
    capabilities::learn_from(tx, about.tenant, about.message, (channel, able), at)
}

/// What is known of an attempt at a provider of SMS.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Told<'a> {
    /// It was sent, and has come so far.
    Sent {
        /// How far.
        status: Status,
        /// When.
        at: UnixMs,
        /// The provider's id.
        id: &'a str,
    },
    /// Nobody knows.
    Unknown {
        /// Why.
        reason: Reason,
        /// For people.
        detail: &'a str,
    },
    /// It was asked for and not sent.
    Failed {
        /// Why.
        reason: Reason,
        /// For people.
        detail: &'a str,
        /// Another try could go better.
        retryable: bool,
    },
    /// It was not asked for, or turned away unread.
    NotStarted {
        /// Why.
        reason: Reason,
    },
}

/// Whose attempt it is: the tenant's, which one, on which number.
pub(crate) type Whose<'a> = (&'a TenantId, (&'a MessageId, u32), &'a PhoneId);

/// Takes what is known of an attempt at a provider as if a phone had said it.
pub(crate) fn told(
    tx: &mut Tx<'_>,
    rules: Rules,
    (tenant, (message, attempt), phone): Whose<'_>,
    told: Told<'_>,
    now: UnixMs,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let Some(row) = rows::attempt(tx, message, attempt)? else { return Err(StoreError::NoRow) };
    let about = About { tenant, message, attempt, phone, row: &row, steps: &[], at: now, now };
    match told {
        Told::Sent { status, at, id } => {
            let about = About { at, ..about };
            let change =
                Change { channel: Some(Channel::Sms), guid: Some(id), ..about.change(status) };
            proven(tx, &about, &change, effects)
        }
        Told::Unknown { reason, detail } => {
            if row.state == "done" {
                return Ok(());
            }
            done(tx, &about, effects)?;
            let change = Change {
                reason: Some(reason),
                detail: some_text(detail),
                channel: Some(Channel::Sms),
                ..about.change(Status::Unknown)
            };
            change::make(tx, tenant, message, &change)?;
            Ok(())
        }
        Told::Failed { reason, detail, retryable } => {
            let ended = Ended::Failed { retryable };
            not_sent(tx, rules, &about, ended, (reason, detail), effects)
        }
        Told::NotStarted { reason } => {
            let ended = Ended::NotStarted { retryable: true };
            not_sent(tx, rules, &about, ended, (reason, ""), effects)
        }
    }
}

fn some_text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn done(tx: &mut Tx<'_>, about: &About<'_>, effects: &mut Effects) -> Result<(), StoreError> {
    if about.row.state != "done" {
        rows::set_attempt_state(tx, about.message, about.attempt, "done", about.now)?;
        // A place on this phone is free again.
        effects.dispatch = true;
    }
    Ok(())
}

/// chat.db shows it as sent: that overrules every guess, and no other attempt may begin.
fn proven(
    tx: &mut Tx<'_>,
    about: &About<'_>,
    change: &Change<'_>,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let Some(before) = change::standing(tx, about.tenant, about.message)? else {
        return Err(StoreError::NoRow);
    };
    proven_of(tx, about, (&before, change), effects)
}

/// [`proven`] of a message that was looked up.
fn proven_of(
    tx: &mut Tx<'_>,
    about: &About<'_>,
    (before, change): (&Standing, &Change<'_>),
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let of = (about.tenant, about.message);
    done(tx, about, effects)?;
    change::make_of(tx, of, before, about.steps, change)?;
    if matches!(before.status, Status::Failed | Status::Expired | Status::Canceled)
        && !before.internal
    {
        // It was believed not to have been sent, and what it counted for may have been given back: whoever answers is known
        // again.
        rows::bind_anew(tx, about.tenant, (&before.recipient, about.phone), about.now)?;
    }
    // What a phone has, or has sent, waits for none: it has no job.
    if !matches!(before.status, Status::Dispatching | Status::Sent | Status::Delivered) {
        rows::drop_job(tx, about.tenant, about.message)?;
    }
    if before.attempts > 1 && !rows::open_attempts(tx, about.tenant, about.message)?.is_empty() {
        // Written down, so that it holds when the word of it is lost: what is sent must not be offered again.
        rows::want_back(tx, about.tenant, about.message, None)?;
        effects.recall.push(about.message.clone());
    }
    Ok(())
}

/// The attempt provably sent nothing: try again, or end.
fn not_sent(
    tx: &mut Tx<'_>,
    rules: Rules,
    about: &About<'_>,
    ended: Ended,
    (reason, detail): (Reason, &str),
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let was_open = about.row.state != "done";
    done(tx, about, effects)?;
    let Some(message) = rows::outbound(tx, about.tenant, about.message)? else {
        return Err(StoreError::NoRow);
    };
    let not_started = matches!(ended, Ended::NotStarted { .. });
    let give_back = |tx: &mut Tx<'_>| {
        let of = (about.message, about.attempt);
        let whom = (&message.recipient, about.phone);
        let counts = (message.internal, rules.cap);
        rows::give_back(tx, about.tenant, of, whom, counts, about.now)
    };
    if was_open && not_started {
        give_back(tx)?;
    }
    // Only the newest attempt of a message that is still being sent decides what comes next. Later news about one
    // that was given up (the host came back, an error after `sent`) can still change the status, not start anything.
    let decides =
        was_open && message.status == Status::Dispatching && message.attempts == about.attempt;
    let status = match (ended, reason) {
        (Ended::NotStarted { .. }, Reason::Expired) => Status::Expired,
        (Ended::NotStarted { .. }, Reason::Canceled) => Status::Canceled,
        (Ended::Failed { .. } | Ended::NotStarted { .. }, _) => Status::Failed,
    };
    let detail = some_text(detail);
    if !decides {
        // An answer that comes again must not end what is being tried again, and an attempt that fails beside one that
        // was proven says nothing: only the end that this very attempt brought about can change.
        if !was_open && message.status.is_final() && message.attempts == about.attempt {
            // A lost host's journal was asked to give it up, and does: nobody wanted the message back.
            let given_up = reason == Reason::Canceled
                && message.status == Status::Unknown
                && !message.cancel_asked;
            let (status, reason, detail) = if given_up {
                (
                    Status::Failed,
                    Reason::HostLost,
                    Some("the host came back and had not started it"),
                )
            } else {
                (status, reason, detail)
            };
            let change = Change { reason: Some(reason), detail, ..about.change(status) };
            let changed = change::make(tx, about.tenant, about.message, &change)?;
            // It counted for as long as nobody knew.
            if changed && not_started && message.status == Status::Unknown {
                give_back(tx)?;
            }
        }
        return Ok(());
    }
    if message.cancel_asked {
        let (status, reason) = crate::dispatch::withdrawn(message.recall_reason);
        let change = Change { reason: Some(reason), ..about.change(status) };
        change::make(tx, about.tenant, about.message, &change)?;
        if status == Status::Blocked {
            facts::blocked(tx, (about.tenant, about.message), reason, about.now)?;
        }
        return Ok(());
    }
    let failures = match ended {
        Ended::Failed { .. } => rows::failures(tx, about.tenant, about.message)?.saturating_add(1),
        Ended::NotStarted { .. } => 0,
    };
    let life = (about.now.0, message.expires_at.0);
    match retry::next(rules.retry, ended, failures, about.attempt, life) {
        Next::Again { at_ms } => {
            let kind = match ended {
                Ended::Failed { .. } => "retry",
                Ended::NotStarted { .. } => "refused",
            };
            let change = Change {
                kind,
                reason: Some(reason),
                detail,
                next_at: Some(UnixMs(at_ms)),
                tell: false,
                ..about.change(Status::Queued)
            };
            change::make(tx, about.tenant, about.message, &change)?;
            if !not_started && !message.internal {
                // The next attempt counts for this message.
                let whom = (&message.recipient, about.phone);
                rows::one_less_unanswered(tx, about.tenant, whom)?;
            }
            rows::put_job(
                tx,
                (about.tenant, about.message),
                shares::rank(message.class, message.test),
                UnixMs(at_ms),
                None,
            )?;
            effects.dispatch = true;
        }
        Next::GiveUp => {
            let change = Change { reason: Some(reason), detail, ..about.change(Status::Failed) };
            change::make(tx, about.tenant, about.message, &change)?;
            if ended == (Ended::Failed { retryable: true }) && !message.internal {
                let why = Reason::AttemptsExhausted;
                dead_letters::keep(tx, about.tenant, about.message, why, about.now)?;
            }
        }
        Next::Expire => {
            let change =
                Change { reason: Some(Reason::Expired), detail, ..about.change(Status::Expired) };
            change::make(tx, about.tenant, about.message, &change)?;
        }
    }
    Ok(())
}
