//! What attempts at providers, their reports and their messages change in the store. Each function is (a part of) one
//! transaction; statuses, retries and what is told to tenants are those of phones.

use protocol::link::EventFrame;
use protocol::pipe::{Conversation, ConversationKind, Event, Received};
use protocol::{Channel, MessageId, PhoneId, Reason, Status, TenantId, UnixMs};

use super::{Fault, Found, Incoming, Outcome, Report, Stage};
use crate::inbound::attempts::{self, Told};
use crate::inbound::{Effects, Rules, received};
use crate::store::change::{self, Change};
use crate::store::dispatch as phones;
use crate::store::providers::{self as rows, Ordered};
use crate::store::{StoreError, Tx};

/// The journal of what comes in over a provider: there is no bridge that has one.
const JOURNAL: &str = "provider";

/// When a message that a provider has taken is looked for, after the last look: reports come within seconds, and where
/// none comes the carrier gives none, or it was lost.
const LOOKS_KNOWN_MS: [i64; 3] = [5 * 60_000, 3_600_000, 12 * 3_600_000];
/// The same for one of which it is not known whether the provider has taken it.
const LOOKS_UNKNOWN_MS: [i64; 6] =
    [30_000, 120_000, 600_000, 3_600_000, 6 * 3_600_000, 24 * 3_600_000];

fn next_look(known: bool, looks: u32, now: UnixMs) -> Option<UnixMs> {
    let waits: &[i64] = if known { &LOOKS_KNOWN_MS } else { &LOOKS_UNKNOWN_MS };
    let place = usize::try_from(looks).unwrap_or(usize::MAX);
    waits.get(place).map(|wait| now.plus_ms(*wait))
}

/// Takes up what waits for a provider: on disk as asked for before it is. What must not be sent any more, or not by
/// this provider now, is given back; it was never started.
pub(crate) fn claim(
    tx: &mut Tx<'_>,
    rules: Rules,
    (phone, usable): (&PhoneId, bool),
    limit: usize,
    now: UnixMs,
) -> Result<(Vec<Ordered>, Effects), StoreError> {
    let (mut claimed, mut effects) = (Vec::new(), Effects::default());
    for ordered in rows::offered(tx, phone, limit)? {
        let about = (&ordered.message, ordered.attempt);
        let too_late = ordered.start_before <= now || ordered.keep_until <= now;
        let back = if ordered.cancel_asked {
            Some(Reason::Canceled)
        } else if too_late {
            Some(Reason::Expired)
        } else if !usable {
            Some(Reason::ProviderRefused)
        } else {
            None
        };
        if let Some(reason) = back {
            let told = Told::NotStarted { reason };
            attempts::told(tx, rules, (&ordered.tenant, about, phone), told, now, &mut effects)?;
            continue;
        }
        phones::set_attempt_state(tx, &ordered.message, ordered.attempt, "started", now)?;
        rows::asked(tx, &ordered.tenant, about, now)?;
        claimed.push(Ordered { asked_at: Some(now), ..ordered });
    }
    Ok((claimed, effects))
}

/// What came of an attempt.
pub(crate) fn outcome(
    tx: &mut Tx<'_>,
    rules: Rules,
    (phone, ordered): (&PhoneId, &Ordered),
    outcome: &Outcome,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let mut effects = Effects::default();
    let tenant = &ordered.tenant;
    let about = (&ordered.message, ordered.attempt);
    let whose = (tenant, about, phone);
    match outcome {
        Outcome::Accepted { id } => {
            // A report may have come before the answer: then all this is known already.
            if !is_known(tx, whose)? {
                let known = rows::known_as(tx, tenant, about, id)?;
                taken(tx, whose, (id, known), now)?;
            }
        }
        Outcome::Unknown { detail } => {
            let told = Told::Unknown { reason: Reason::ProviderSilent, detail };
            attempts::told(tx, rules, whose, told, now, &mut effects)?;
            rows::look_again(tx, tenant, about, (next_look(false, 0, now), 0))?;
        }
        // A report has come before the answer: it was taken, whatever the answer says, and is not sent by another.
        Outcome::NotSent(_) if is_known(tx, whose)? => {}
        Outcome::NotSent(refusal) => {
            let (reason, detail) = (refusal.reason, refusal.detail.as_str());
            let told = match refusal.fault {
                Fault::OptedOut => {
                    effects.merge(opted_out(tx, whose, detail, now)?);
                    Told::Failed { reason, detail, retryable: false }
                }
                Fault::Message => Told::Failed { reason, detail, retryable: false },
                Fault::Provider | Fault::Unreachable => {
                    Told::Failed { reason, detail, retryable: true }
                }
                Fault::Busy { .. } => Told::NotStarted { reason },
            };
            attempts::told(tx, rules, whose, told, now, &mut effects)?;
        }
    }
    Ok(effects)
}

/// Whether the provider has said by which id it knows an attempt.
fn is_known(
    tx: &mut Tx<'_>,
    (tenant, about, _phone): attempts::Whose<'_>,
) -> Result<bool, StoreError> {
    Ok(rows::attempt(tx, tenant, about)?.is_some_and(|row| row.id.is_some()))
}

/// The provider has an attempt, by its answer or by a report that came before it or in its place. From here on it costs,
/// however it ends, and is looked for where no report of its end comes.
fn taken(
    tx: &mut Tx<'_>,
    (tenant, about, phone): attempts::Whose<'_>,
    (id, known): (&str, bool),
    now: UnixMs,
) -> Result<(), StoreError> {
    let step = Change {
        phone: Some(phone),
        attempt: Some(about.1),
        channel: Some(Channel::Sms),
        detail: Some(id),
        ..Change::step("started", now)
    };
    change::make(tx, tenant, about.0, &step)?;
    rows::look_again(tx, tenant, about, (next_look(known, 0, now), 0))
}

/// The recipient has told the provider to be left alone: that counts here, too, for everybody who has written to them
/// from this number.
fn opted_out(
    tx: &mut Tx<'_>,
    (tenant, (message, _), phone): (&TenantId, (&MessageId, u32), &PhoneId),
    detail: &str,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let Some(sent) = phones::outbound(tx, tenant, message)? else { return Ok(Effects::default()) };
    received::opted_out_at_provider(tx, tenant, (phone, &sent.recipient), detail, now)
}

/// What a provider says of one of our messages. `hint` is what it was told of it when it was asked. `None`: it is none
/// that this provider was asked for.
pub(crate) fn report(
    tx: &mut Tx<'_>,
    rules: Rules,
    phone: &PhoneId,
    hint: Option<(&MessageId, u32)>,
    report: &Report,
    now: UnixMs,
) -> Result<Option<Effects>, StoreError> {
    let found = rows::by_provider_id(tx, phone, &report.id)?;
    let (tenant, message, attempt) = match (found, hint) {
        (Some(found), _) => found,
        (None, Some(hint)) => {
            let Some((tenant, None)) = rows::by_own_id(tx, phone, hint)? else { return Ok(None) };
            if !rows::known_as(tx, &tenant, hint, &report.id)? {
                return Ok(None);
            }
            taken(tx, (&tenant, hint, phone), (&report.id, true), now)?;
            (tenant, hint.0.clone(), hint.1)
        }
        (None, None) => return Ok(None),
    };
    let mut effects = Effects::default();
    let about = (&message, attempt);
    let whose = (&tenant, about, phone);
    let at = report.at.map_or(now, |at| at.min(now));
    let sent = |status| Told::Sent { status, at, id: &report.id };
    let told = match report.stage {
        // It is there, and that is all: what is unknown stays so until more is known.
        Stage::Waiting => return Ok(Some(effects)),
        Stage::Sent => sent(Status::Sent),
        Stage::Delivered => sent(Status::Delivered),
        Stage::Read => sent(Status::Read),
        Stage::Failed { opted_out: out } => {
            let detail = report.detail.as_deref().unwrap_or("");
            if out {
                effects.merge(opted_out(tx, whose, detail, now)?);
            }
            let reason = if out { Reason::OptedOut } else { Reason::NotDelivered };
            Told::Failed { reason, detail, retryable: false }
        }
    };
    attempts::told(tx, rules, whose, told, now, &mut effects)?;
    if report.stage != Stage::Sent {
        rows::look_again(tx, &tenant, about, (None, 0))?;
    }
    Ok(Some(effects))
}

/// What a look-up has found. Where nothing is ever found of a message, it is `unknown` in the end.
pub(crate) fn looked(
    tx: &mut Tx<'_>,
    rules: Rules,
    (phone, ordered): (&PhoneId, &Ordered),
    found: &Found,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let about = (&ordered.message, ordered.attempt);
    let tenant = &ordered.tenant;
    let looks = ordered.looks.saturating_add(1);
    let mut effects = Effects::default();
    let mut known = ordered.id.is_some();
    // Before the report, which ends the looking where it is final.
    let next = next_look(known, looks, now);
    rows::look_again(tx, tenant, about, (next, looks))?;
    if let Found::Message(one) = found {
        known = true;
        if let Some(more) = report(tx, rules, phone, Some(about), one, now)? {
            effects.merge(more);
        }
    }
    if next.is_none() {
        let open = phones::attempt(tx, about.0, about.1)?.is_some_and(|row| row.state != "done");
        if open {
            let detail = if known { "no report of its end" } else { "not found" };
            let told = Told::Unknown { reason: Reason::ProviderSilent, detail };
            attempts::told(tx, rules, (tenant, about, phone), told, now, &mut effects)?;
        }
    }
    Ok(effects)
}

/// The provider is to be deleted: what waits for it is given back, and of what it was asked for nobody will hear any more.
/// Answers how many attempts that were.
pub(crate) fn given_up(
    tx: &mut Tx<'_>,
    rules: Rules,
    phone: &PhoneId,
    limit: usize,
    now: UnixMs,
) -> Result<(usize, Effects), StoreError> {
    let mut effects = Effects::default();
    let all = rows::under_way(tx, phone, limit)?;
    for ordered in &all {
        let about = (&ordered.message, ordered.attempt);
        let told = if ordered.asked_at.is_none() {
            Told::NotStarted { reason: Reason::ProviderRefused }
        } else {
            Told::Unknown { reason: Reason::ProviderSilent, detail: "the provider was deleted" }
        };
        attempts::told(tx, rules, (&ordered.tenant, about, phone), told, now, &mut effects)?;
    }
    rows::look_no_more(tx, phone, limit)?;
    Ok((all.len(), effects))
}

/// What was being asked for when the router ended is unknown: it may have been sent, and is not sent again.
pub(crate) fn orphaned(
    tx: &mut Tx<'_>,
    rules: Rules,
    limit: usize,
    now: UnixMs,
) -> Result<(usize, Effects), StoreError> {
    let mut effects = Effects::default();
    let orphans = rows::orphans(tx, limit)?;
    for (phone, ordered) in &orphans {
        let outcome_of = Outcome::Unknown { detail: "the router ended while it asked".to_owned() };
        effects.merge(outcome(tx, rules, (phone, ordered), &outcome_of, now)?);
    }
    Ok((orphans.len(), effects))
}

/// A message to a provider's number, taken as one to a phone: once, with its STOP honoured before anybody is told.
pub(crate) fn incoming(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    incoming: &Incoming,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let message = Received {
        guid: incoming.id.clone(),
        conversation: Conversation {
            kind: ConversationKind::Direct,
            id: incoming.from.to_string(),
        },
        from: incoming.from.clone(),
        text: incoming.text.clone(),
        attachments: Vec::new(),
        service: Channel::Sms,
        at: incoming.at.map_or(now, |at| at.min(now)),
        late: false,
        details: Box::default(),
    };
    let frame = EventFrame {
        phone: phone.clone(),
        journal: JOURNAL.to_owned(),
        seq: 0,
        epoch: None,
        at: now,
        event: Event::Received(message.clone()),
    };
    let mut effects = Effects::default();
    received::message(tx, &frame, &message, now, &mut effects)?;
    Ok(effects)
}
