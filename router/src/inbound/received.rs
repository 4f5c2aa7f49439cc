//! Messages from outside: whose they are, and whether they ask to be left alone.

use data_encoding::HEXLOWER;
use protocol::api::TenantRules;
use protocol::link::EventFrame;
use protocol::pipe::{Conversation, ConversationKind, Edited, Event, Received};
use protocol::{Channel, E164, EventId, MessageId, PhoneId, Recipient, TenantId, UnixMs, canary};

use super::Effects;
use crate::clock;
use crate::compliance::opt_out::{self, Asks, Words};
use crate::compliance::{OptOut, content};
use crate::facts;
use crate::store::dispatch as rows;
use crate::store::opt_outs::{self, Method, Turned, Wish};
use crate::store::{
    StoreError, Tx, canaries, capabilities, inbound as store, providers, rules, standby,
};

/// On a pooled phone, STOP counts for every tenant that has talked with its sender within this time.
const STOP_REACH_MS: i64 = 30 * 24 * 3_600 * 1_000;

/// A confirmation that comes later than this needs a justification (47 CFR 64.1200(a)(12)): it is dropped instead.
const CONFIRM_WITHIN_MS: i64 = 5 * 60 * 1_000;

const CONFIRM_STOP: &str =
    "You are unsubscribed and will get no more messages. Reply START to resubscribe.";
const CONFIRM_START: &str = "You are subscribed again. Reply STOP to unsubscribe.";

/// What is said of a tenant that has not said how it is reached: by an answer, which it is told of.
const HELP: &str = "Answer this message to reach us. Reply STOP to opt out.";

/// Whoever asks for help is answered once in this time, so that two machines do not talk for ever.
const HELP_EVERY_MS: i64 = 5 * 60 * 1_000;

/// What is kept of a text as evidence, in characters: more than any wish that is understood has.
const EVIDENCE_CHARS_MAX: usize = 500;

/// An inbound message: dedupe, attribute, store, and honour a keyword before anybody is told.
pub(crate) fn message(
    tx: &mut Tx<'_>,
    frame: &EventFrame,
    message: &Received,
    now: UnixMs,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let phone = &frame.phone;
    let journal = frame.journal.as_str();
    let shared = standby::is_shared(tx, phone)?;
    let told = (message.guid.as_str(), journal);
    let is_new = store::take_guid(tx, phone, told, now)?
        || (shared && store::is_no_twin(tx, phone, told, now)?);
    if !is_new {
        metrics::counter!("switchboard_inbound_duplicates_total").increment(1);
        if shared {
            store::told_twice(tx, phone, told, now)?;
            effects.merge(understood_at_last(tx, phone, message, now)?);
        }
        return Ok(());
    }
    if let Some((canary, sender)) = canary_of(tx, message)? {
        metrics::counter!("switchboard_inbound_canaries_total").increment(1);
        canaries::arrived(tx, (&canary, sender), (phone, journal), (frame.at, now))?;
        effects.canaries.push(canary);
        return Ok(());
    }
    let sandbox = store::is_sandbox(tx, phone)?;
    let talked = talked(tx, phone, message)?;
    if let Some(original) = original(tx, phone, message)? {
        // iCloud's second copy of what was taken in already. It is told to nobody again, but who asked to be left alone
        // is left alone, whatever became of the first copy.
        metrics::counter!("switchboard_inbound_copies_total").increment(1);
        let tenant = attribute(tx, phone, &talked)?;
        let whose = (tenant.as_ref(), &talked, sandbox);
        effects.merge(honour(tx, whose, (phone, &original), message, Heard::Stop, now)?);
        return Ok(());
    }
    let id = MessageId::new(now.0, clock::random());
    let tenant = attribute(tx, phone, &talked)?;
    // Another host of the same phone has told it, under a guid of its own: a text that the iPhone has relayed to both.
    // An iMessage has one guid on every device, so that one with another guid is another one.
    let owner = tenant.clone().unwrap_or_else(store::nobody);
    if shared
        && message.service != Channel::Imessage
        && let Some(twin) = store::twin(tx, &owner, (phone, journal), message)?
    {
        metrics::counter!("switchboard_inbound_duplicates_total").increment(1);
        return store::is_twin(tx, phone, (&message.guid, &twin));
    }
    let Some(tenant) = tenant else {
        // A stranger writes to a shared phone: the operator may see what it is, and no tenant. A STOP in it counts for
        // whoever says that the stranger is somebody to whom they have written.
        metrics::counter!("switchboard_inbound_unattributed_total").increment(1);
        tracing::warn!(phone = %phone, message = %id, "inbound: a message from an unknown contact belongs to no tenant");
        if !message.attachments.is_empty() {
            store::keep_unplaced(tx, frame, "belongs to no tenant", now)?;
        }
        let whose = (None, &talked, sandbox);
        effects.merge(honour(tx, whose, (phone, &id), message, Heard::All, now)?);
        return store::store_received(tx, (&store::nobody(), sandbox), (&id, phone), message, now);
    };
    let whose = (Some(&tenant), &talked, sandbox);
    effects.merge(honour(tx, whose, (phone, &id), message, Heard::All, now)?);
    store::store_received(tx, (&tenant, sandbox), (&id, phone), message, now)?;
    // What iCloud brings late was not written just now: an answer to it is none any more.
    let heard = if message.late { message.at.min(now) } else { now };
    capabilities::learn_from(tx, &tenant, &id, (message.service, true), message.at.min(now))?;
    rows::bind(tx, &tenant, (&message.from, phone), rows::Talk::Theirs, heard)?;
    // A member of a group that the tenant writes to has answered for the group.
    if let Some(group) = group(message)
        && store::talked_with(tx, phone, &group)?.with.iter().any(|(other, _)| *other == tenant)
    {
        rows::bind(tx, &tenant, (&group, phone), rows::Talk::Theirs, heard)?;
    }
    Ok(())
}

/// What another host of the phone has told before and perhaps could not read: a STOP in it counts, as of when it was written.
fn understood_at_last(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    message: &Received,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let Some(came) = store::came_in(tx, phone, &message.guid)? else {
        return Ok(Effects::default());
    };
    if came.text.as_ref() == Some(&message.text) {
        return Ok(Effects::default());
    }
    let late = Received { late: true, ..message.clone() };
    let talked = talked(tx, phone, &late)?;
    let whose = (came.owner(), &talked, store::is_sandbox(tx, phone)?);
    honour(tx, whose, (phone, &came.id), &late, Heard::Stop, now)
}

/// The group that a message was written into.
fn group(message: &Received) -> Option<Recipient> {
    let conversation = &message.conversation;
    (conversation.kind == ConversationKind::Group)
        .then(|| Recipient::Group(conversation.id.clone()))
}

/// What can be saved of a message that could not be taken in as it should: its text, and that it says STOP. With `stop`
/// what is on its way to its sender is stopped as well.
pub(super) fn salvage(
    tx: &mut Tx<'_>,
    (phone, journal): (&PhoneId, &str),
    message: &Received,
    stop: bool,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let mut effects = Effects::default();
    if !store::take_guid(tx, phone, (&message.guid, journal), now)? {
        return Ok(effects);
    }
    if canary_of(tx, message)?.is_some() {
        return Ok(effects);
    }
    let talked = talked(tx, phone, message)?;
    let sandbox = store::is_sandbox(tx, phone)?;
    let tenant = attribute(tx, phone, &talked)?;
    let id = if let Some(original) = original(tx, phone, message)? {
        original
    } else {
        let id = MessageId::new(now.0, clock::random());
        let owner = tenant.clone().unwrap_or_else(store::nobody);
        store::store_received(tx, (&owner, sandbox), (&id, phone), message, now)?;
        id
    };
    let whose = (tenant.as_ref(), &talked, sandbox);
    let recall = save_stop(tx, whose, (phone, &id), message, stop, now)?;
    effects.recall.extend(recall);
    Ok(effects)
}

/// Writes a STOP down and nothing else of what follows from it, but that what is on its way is stopped, with `stop`; answers
/// what phones have of it.
fn save_stop(
    tx: &mut Tx<'_>,
    (owner, talked, sandbox): (Option<&TenantId>, &store::Talked, bool),
    (phone, id): (&PhoneId, &MessageId),
    message: &Received,
    stop: bool,
    now: UnixMs,
) -> Result<Vec<MessageId>, StoreError> {
    let mut recall = Vec::new();
    for tenant in &reach(owner, talked, now) {
        let (asks, _rules) = asked(tx, tenant, message)?;
        for asks in asks.into_iter().filter(|asks| asks.is_stop()) {
            for test in modes(asks, sandbox) {
                let is_owner = owner == Some(tenant);
                for recipient in spoken_for(tx, (tenant, is_owner), phone, message, asks)? {
                    let who = ((tenant, test), &recipient);
                    let turned = record(tx, who, (phone, id), message, asks, now)?;
                    if stop && turned == Turned::Over {
                        recall.extend(store::block_waiting(tx, who.0, &recipient, now)?.1);
                    }
                }
            }
        }
    }
    Ok(recall)
}

/// [`salvage`] of an edit.
pub(super) fn salvage_edit(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    edited: &Edited,
    stop: bool,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let mut effects = Effects::default();
    if let Some((came, message)) = as_message(tx, phone, edited, now)? {
        let talked = talked(tx, phone, &message)?;
        let whose = (came.owner(), &talked, store::is_sandbox(tx, phone)?);
        let recall = save_stop(tx, whose, (phone, &came.id), &message, stop, now)?;
        effects.recall.extend(recall);
    }
    Ok(effects)
}

/// The canary that a host has had written from one of its phones, and the sender: the text is nothing but a canary's, and
/// its sender is a phone of ours. From anybody else it is a message like all others.
fn canary_of<'a>(
    tx: &mut Tx<'_>,
    message: &'a Received,
) -> Result<Option<(MessageId, &'a E164)>, StoreError> {
    let Some(canary) = canary::of_text(&message.text) else { return Ok(None) };
    match &message.from {
        Recipient::Number(number) => {
            Ok(store::is_own_number(tx, number)?.then_some((canary, number)))
        }
        Recipient::Email(_) | Recipient::Group(_) | Recipient::Service(_) => Ok(None),
    }
}

/// The message that this one is a late copy of, where it is here. A copy of what never came is a message.
fn original(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    message: &Received,
) -> Result<Option<MessageId>, StoreError> {
    match message.details.copy_of.as_deref() {
        Some(guid) => store::received_as(tx, phone, (guid, &message.from)),
        None => Ok(None),
    }
}

/// Who has talked with the sender of a message on this phone, or, where it was written into a group, with the group;
/// the newest first.
fn talked(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    message: &Received,
) -> Result<store::Talked, StoreError> {
    let mut talked = store::talked_with(tx, phone, &message.from)?;
    if let Some(group) = group(message) {
        let mut with_group = store::talked_with(tx, phone, &group)?.with;
        // What is written into a group answers who writes to that group, whoever else knows the sender. Who does both stands
        // here twice: each of the two has its own age.
        with_group.append(&mut talked.with);
        talked.with = with_group;
    }
    Ok(talked)
}

/// Whose message it is: the phone's own tenant, else the one that last talked with the sender there, else the only
/// tenant there is.
fn attribute(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    talked: &store::Talked,
) -> Result<Option<TenantId>, StoreError> {
    if let Some(tenant) = store::exclusive_tenant(tx, phone)? {
        return Ok(Some(tenant));
    }
    if let Some((tenant, _)) = talked.with.first() {
        return Ok(Some(tenant.clone()));
    }
    store::only_tenant(tx)
}

/// Every tenant that a keyword counts for.
fn reach(tenant: Option<&TenantId>, talked: &store::Talked, now: UnixMs) -> Vec<TenantId> {
    let mut all: Vec<TenantId> = Vec::new();
    let fresh = |at: &UnixMs| now.since(*at) <= STOP_REACH_MS;
    for (known, _) in talked.with.iter().chain(&talked.as_others).filter(|(_, at)| fresh(at)) {
        if !all.contains(known) {
            all.push(known.clone());
        }
    }
    if let Some(tenant) = tenant
        && !all.contains(tenant)
    {
        all.push(tenant.clone());
    }
    all
}

/// Whom a message speaks for to a tenant: its sender, and with a STOP that is written into a group to which the tenant writes
/// the group as well, for what is sent there reaches the sender, too. Everybody else in it is left as they are.
fn spoken_for(
    tx: &mut Tx<'_>,
    (tenant, is_owner): (&TenantId, bool),
    phone: &PhoneId,
    message: &Received,
    asks: Asks,
) -> Result<Vec<Recipient>, StoreError> {
    let mut all = vec![message.from.clone()];
    if asks.is_stop()
        && let Some(group) = group(message)
        && (is_owner || is_among(tenant, &store::talked_with(tx, phone, &group)?.with))
    {
        all.push(group);
    }
    Ok(all)
}

fn is_among(tenant: &TenantId, talked: &[(TenantId, UnixMs)]) -> bool {
    talked.iter().any(|(other, _)| other == tenant)
}

/// What the message asks for by a tenant's words, with that tenant's rules. Rules that cannot be read take nothing away:
/// the words that always count still do.
fn asked(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    message: &Received,
) -> Result<(Option<Asks>, TenantRules), StoreError> {
    let rules = match rules::of_tenant(tx, tenant) {
        Ok(rules) => rules.unwrap_or_default(),
        Err(error) if error.is_unavailable() => return Err(error),
        Err(error) => {
            tracing::error!(tenant = %tenant, error = %error, "inbound: a tenant's rules cannot be read, so only the common keywords count");
            TenantRules::default()
        }
    };
    let words = Words { stop: &rules.stop_words, start: &rules.start_words };
    Ok((opt_out::asks(&message.text, words), rules))
}

/// Which wishes of a message are heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// All.
    All,
    /// That to be left alone: what else it says was heard before, or is not said clearly.
    Stop,
}

/// Does what a message asks for, for every tenant that it counts for.
///
/// Of who merely says that they know the sender a STOP is heard, and the START that takes it back, and nobody is told anything
/// in their name: a confirmation is a message like others, and whoever answers it talks with that tenant.
fn honour(
    tx: &mut Tx<'_>,
    (owner, talked, sandbox): (Option<&TenantId>, &store::Talked, bool),
    about: (&PhoneId, &MessageId),
    message: &Received,
    heard: Heard,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let mut effects = Effects::default();
    for tenant in &reach(owner, talked, now) {
        let is_owner = owner == Some(tenant);
        let knows = is_owner || is_among(tenant, &talked.with);
        let (asks, rules) = asked(tx, tenant, message)?;
        let asks = asks.filter(|asks| match heard {
            Heard::All => knows || asks.is_stop() || *asks == Asks::Start,
            Heard::Stop => asks.is_stop(),
        });
        let Some(asks) = asks else { continue };
        if asks == Asks::Help {
            effects.merge(help(tx, (tenant, &rules, sandbox), about, message, now)?);
            continue;
        }
        let confirms = knows && rules.confirm_opt_out;
        let whose = (tenant, is_owner, confirms, sandbox);
        effects.merge(turn(tx, whose, about, message, asks, now)?);
    }
    Ok(effects)
}

/// Opts a tenant's contact out or in, or writes down that it perhaps wants that.
fn turn(
    tx: &mut Tx<'_>,
    (tenant, is_owner, confirms, sandbox): (&TenantId, bool, bool, bool),
    (phone, id): (&PhoneId, &MessageId),
    message: &Received,
    asks: Asks,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let mut effects = Effects::default();
    for test in modes(asks, sandbox) {
        for recipient in spoken_for(tx, (tenant, is_owner), phone, message, asks)? {
            let who = ((tenant, test), &recipient);
            if record(tx, who, (phone, id), message, asks, now)? == Turned::Nothing {
                continue;
            }
            let who = (tenant, test);
            // What we would have confirmed before this is no longer true.
            store::drop_confirmations(tx, who, &recipient, now)?;
            let (kind, wording) = if asks.is_stop() {
                effects.recall.extend(store::block_waiting(tx, who, &recipient, now)?.1);
                ("contact.opted_out", CONFIRM_STOP)
            } else {
                ("contact.opted_in", CONFIRM_START)
            };
            metrics::counter!("switchboard_opt_outs_total", "type" => kind).increment(1);
            store::tell_contact(tx, who, kind, (&recipient, phone, id), now)?;
            // Who is still out on another number or address of theirs is not told that they are back, and only who wrote is
            // told anything.
            let holds = asks.is_stop() || may_write(tx, who, &recipient)?;
            if confirms && test == sandbox && holds && recipient == message.from {
                effects.merge(confirm(tx, tenant, (phone, message), wording, now)?);
            }
        }
    }
    Ok(effects)
}

/// Whether no opt-out stands against a recipient, as far as that can be read.
fn may_write(
    tx: &mut Tx<'_>,
    who: (&TenantId, bool),
    recipient: &Recipient,
) -> Result<bool, StoreError> {
    match rules::known(tx, who, recipient) {
        Ok(known) => Ok(known.opt_out == OptOut::Clear),
        Err(error) if error.is_unavailable() => Err(error),
        Err(_unreadable) => Ok(false),
    }
}

/// Whose messages a wish concerns: those of the sandbox (`true`), or the others. A phone of the sandbox may be written to by
/// a real person all the same: a STOP there counts for both, and everything else for the sandbox alone.
fn modes(asks: Asks, sandbox: bool) -> impl Iterator<Item = bool> {
    let both = sandbox && asks.is_stop();
    [Some(sandbox), both.then_some(false)].into_iter().flatten()
}

/// A provider of SMS says that a recipient has told it to be left alone by this number. It counts for everybody whom a
/// STOP to that number counts for.
pub(crate) fn opted_out_at_provider(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (phone, recipient): (&PhoneId, &Recipient),
    detail: &str,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let mut effects = Effects::default();
    let talked = store::talked_with(tx, phone, recipient)?;
    for reached in reach(Some(tenant), &talked, now) {
        let wish = Wish {
            action: "opted_out",
            method: Method::Provider,
            message: None,
            text: None,
            evidence: Some(serde_json::json!({ "source": detail })),
            rules: facts::versions().0,
            at: now,
            late: false,
        };
        let event = EventId::new(now.0, clock::random());
        if opt_outs::turn(tx, ((&reached, false), recipient), &wish, &event)? == Turned::Nothing {
            continue;
        }
        let who = (&reached, false);
        store::drop_confirmations(tx, who, recipient, now)?;
        effects.recall.extend(store::block_waiting(tx, who, recipient, now)?.1);
        metrics::counter!("switchboard_opt_outs_total", "type" => "contact.opted_out").increment(1);
        store::tell_opt_out(tx, who, "contact.opted_out", recipient, now)?;
    }
    Ok(effects)
}

/// Queues the one answer of ours, unless it would come too late, or a provider's number was written to: providers answer
/// STOP, START and HELP themselves.
fn confirm(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (phone, message): (&PhoneId, &Received),
    wording: &str,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let expires_at = message.at.min(now).plus_ms(CONFIRM_WITHIN_MS);
    if expires_at <= now || providers::is_provider(tx, phone)? {
        return Ok(Effects::default());
    }
    store::queue_confirmation(tx, tenant, (phone, message), wording, (now, expires_at))?;
    Ok(Effects { dispatch: true, ..Effects::default() })
}

/// Answers HELP, in the tenant's words where it has chosen some: not to who has opted out, and not again within minutes.
fn help(
    tx: &mut Tx<'_>,
    (tenant, rules, sandbox): (&TenantId, &TenantRules, bool),
    (phone, id): (&PhoneId, &MessageId),
    message: &Received,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let wording = match &rules.help_text {
        Some(text) => format!("{text} Reply STOP to unsubscribe."),
        None if rules.confirm_opt_out => HELP.to_owned(),
        // The tenant answers by itself.
        None => return Ok(Effects::default()),
    };
    let about = ((tenant, sandbox), &message.from);
    let out = rules::known(tx, about.0, about.1)?.opt_out != OptOut::Clear;
    if out || opt_outs::helped_since(tx, about, now.plus_ms(-HELP_EVERY_MS))? {
        return Ok(Effects::default());
    }
    let wish = Wish {
        action: "help",
        method: Method::Keyword,
        message: Some((id, phone)),
        text: Some(&message.text),
        evidence: None,
        rules: facts::versions().0,
        at: now,
        late: false,
    };
    opt_outs::note(tx, about, &wish, &EventId::new(now.0, clock::random()))?;
    confirm(tx, tenant, (phone, message), &wording, now)
}

/// Writes the wish down. A sender's clock may be wrong: nobody writes in the future, and a STOP that comes in always counts,
/// whatever it says of its time, unless iCloud brings it late: then it is as old as it says. What is kept of its time is
/// the sender's, so that a START that was written after it and told later still counts.
fn record(
    tx: &mut Tx<'_>,
    about: ((&TenantId, bool), &Recipient),
    (phone, id): (&PhoneId, &MessageId),
    message: &Received,
    asks: Asks,
    now: UnixMs,
) -> Result<Turned, StoreError> {
    let evidence: String = message.text.trim().chars().take(EVIDENCE_CHARS_MAX).collect();
    let (action, method) = match asks {
        Asks::Stop => ("opted_out", Method::Keyword),
        Asks::StopInferred => ("opted_out", Method::Inferred),
        Asks::Start => ("opted_in", Method::Keyword),
        Asks::PerhapsStop => ("possible", Method::Inferred),
        Asks::Help => ("help", Method::Keyword),
    };
    let wish = Wish {
        action,
        method,
        message: Some((id, phone)),
        text: Some(&evidence),
        evidence: None,
        rules: facts::versions().0,
        at: message.at.min(now),
        // A bridge tells what has waited for it in an order of its own. Only an opt-out is not compared with what stands.
        late: message.late || !asks.is_stop(),
    };
    let event = EventId::new(now.0, clock::random());
    match asks {
        Asks::Stop | Asks::StopInferred | Asks::Start => opt_outs::turn(tx, about, &wish, &event),
        Asks::PerhapsStop | Asks::Help => {
            opt_outs::note(tx, about, &wish, &event)?;
            Ok(Turned::Nothing)
        }
    }
}

/// An edit. What a message says now may be that its sender wants to be left alone; so may be the text of a message that came
/// into chat.db before its text did, which a bridge tells in the same way. Whoever edits a message into a START has not
/// asked for more as clearly as one has to.
pub(super) fn edited(
    tx: &mut Tx<'_>,
    frame: &EventFrame,
    edited: &Edited,
    now: UnixMs,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    let phone = &frame.phone;
    let Some(of) = placed(tx, frame, &edited.guid, now)? else { return Ok(()) };
    if let Some((came, message)) = as_message(tx, phone, edited, now)? {
        let talked = talked(tx, phone, &message)?;
        let whose = (came.owner(), &talked, store::is_sandbox(tx, phone)?);
        effects.merge(honour(tx, whose, (phone, &came.id), &message, Heard::Stop, now)?);
    }
    happened(tx, frame, of, edited, (edited.at, now))
}

/// What somebody else's message says now, as if it came in like that.
fn as_message(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    edited: &Edited,
    now: UnixMs,
) -> Result<Option<(store::CameIn, Received)>, StoreError> {
    if edited.from_me {
        return Ok(None);
    }
    let Some(came) = store::came_in(tx, phone, &edited.guid)? else { return Ok(None) };
    let conversation = match &came.group {
        Some(group) => Conversation { kind: ConversationKind::Group, id: group.clone() },
        None => Conversation { kind: ConversationKind::Direct, id: came.from.to_string() },
    };
    // A text that came after its message is as old as that, and is told with the time at which it was read.
    let (at, late) = if edited.history.is_empty() {
        (came.at, true)
    } else {
        // A phone that is read again tells what was edited long ago, and what was said since stands.
        (edited.at, now.since(edited.at) > CONFIRM_WITHIN_MS)
    };
    let message = Received {
        guid: edited.guid.clone(),
        from: came.from.clone(),
        conversation,
        text: edited.text.clone(),
        attachments: Vec::new(),
        service: came.service,
        at,
        late,
        details: Box::default(),
    };
    Ok(Some((came, message)))
}

/// Something that happened to an earlier message, found by its guid on this phone.
pub(super) fn about(
    tx: &mut Tx<'_>,
    frame: &EventFrame,
    (guid, at): (&str, UnixMs),
    what: &impl serde::Serialize,
    now: UnixMs,
) -> Result<(), StoreError> {
    match placed(tx, frame, guid, now)? {
        Some(of) => happened(tx, frame, of, what, (at, now)),
        None => Ok(()),
    }
}

/// Whose message it is about, and which; `None` where that is not known, or another host has told it.
fn placed(
    tx: &mut Tx<'_>,
    frame: &EventFrame,
    guid: &str,
    now: UnixMs,
) -> Result<Option<(TenantId, MessageId)>, StoreError> {
    let phone = &frame.phone;
    let Some(of) = store::by_guid(tx, phone, guid)? else {
        metrics::counter!("switchboard_inbound_unattributed_total").increment(1);
        store::keep_unplaced(tx, frame, "about a message that we do not know", now)?;
        return Ok(None);
    };
    // Only what was placed counts as told: another host may have the message that this one is about.
    if standby::is_shared(tx, phone)?
        && let Some(what) = identity(&frame.event)
        && store::told_elsewhere(tx, phone, (&what, &frame.journal), now)?
    {
        metrics::counter!("switchboard_inbound_duplicates_total").increment(1);
        return Ok(None);
    }
    Ok(Some(of))
}

fn happened(
    tx: &mut Tx<'_>,
    frame: &EventFrame,
    (tenant, id): (TenantId, MessageId),
    what: &impl serde::Serialize,
    (at, now): (UnixMs, UnixMs),
) -> Result<(), StoreError> {
    let change = serde_json::to_value(what).map_err(|error| StoreError::corrupt("event", error))?;
    store::happened_to(tx, (&tenant, &id), &frame.phone, frame.event.kind(), change, (at, now))
}

/// By what the same thing is known when another host of the phone tells it; `None` for what is not told of messages.
/// Only what Apple's servers give to every device counts: paths and times of arrival are each Mac's own.
fn identity(event: &Event) -> Option<String> {
    match event {
        Event::Reaction(reaction) => Some(format!("reaction {}", reaction.guid)),
        // A text that came after its message is told with each Mac's own time.
        Event::Edited(edited) if edited.history.is_empty() => {
            let text = HEXLOWER.encode(&content::hash(&edited.text));
            Some(format!("edited {} {} {text}", edited.guid, edited.part))
        }
        Event::Edited(edited) => {
            let (guid, part, versions) = (&edited.guid, edited.part, edited.history.len());
            Some(format!("edited {guid} {part} {versions} {}", edited.at))
        }
        Event::Unsent(unsent) => Some(format!("unsent {} {:?}", unsent.guid, unsent.parts)),
        Event::Attachment(change) => {
            let (message, file) = (&change.message, &change.attachment);
            Some(format!("attachment {message} {} {:?}", file.guid, file.state))
        }
        Event::Preview(change) => Some(format!("preview {}", change.message)),
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
        | Event::Expired(_)
        | Event::Received(_)
        | Event::Group(_)
        | Event::Notice(_)
        | Event::UnknownKind(_)
        | Event::Capability(_)
        | Event::Resync { .. }
        | Event::Account { .. }
        | Event::Other(_) => None,
    }
}
