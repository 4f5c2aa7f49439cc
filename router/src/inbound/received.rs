//! Messages from outside: whose they are, and whether they ask to be left alone.

use protocol::api::Direction;
use protocol::pipe::Received;
use protocol::{MessageId, PhoneId, TenantId, UnixMs};

use super::Effects;
use crate::clock;
use crate::compliance::opt_out::{self, Asks};
use crate::store::dispatch as rows;
use crate::store::inbound::{self as store, Turned};
use crate::store::{StoreError, Tx};

/// On a pooled phone, STOP counts for every tenant that has talked with its sender within this time.
const STOP_REACH_MS: i64 = 30 * 24 * 3_600 * 1_000;

/// A confirmation that comes later than this needs a justification (47 CFR 64.1200(a)(12)): it is dropped instead.
const CONFIRM_WITHIN_MS: i64 = 5 * 60 * 1_000;

const CONFIRM_STOP: &str =
    "You are unsubscribed and will get no more messages. Reply START to resubscribe.";
const CONFIRM_START: &str = "You are subscribed again. Reply STOP to unsubscribe.";

/// Longest keyword kept as evidence, in characters.
const KEYWORD_CHARS_MAX: usize = 64;

/// An inbound message: dedupe, attribute, store, and honour a keyword before anybody is told.
pub(super) fn message(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    message: &Received,
    now: UnixMs,
    effects: &mut Effects,
) -> Result<(), StoreError> {
    if !store::take_guid(tx, phone, &message.guid, now)? {
        metrics::counter!("switchboard_inbound_duplicates_total").increment(1);
        return Ok(());
    }
    let talked = store::talked_with(tx, phone, &message.from)?;
    let Some(tenant) = attribute(tx, phone, &talked)? else {
        // A stranger writes to a shared phone: nobody's message.
        metrics::counter!("switchboard_inbound_unattributed_total").increment(1);
        tracing::warn!(phone = %phone, "inbound: a message from an unknown contact belongs to no tenant");
        return Ok(());
    };
    let id = MessageId::new(now.0, clock::random());
    if let Some(asks) = opt_out::asks(&message.text) {
        for tenant in reach(&tenant, &talked, now) {
            effects.merge(honour(tx, &tenant, (phone, &id), message, asks, now)?);
        }
    }
    store::store_received(tx, &tenant, (&id, phone), message, now)?;
    rows::bind(tx, &tenant, (&message.from, phone), Direction::Inbound, now)
}

/// Whose message it is: the phone's own tenant, else the one that last talked with the sender there, else the only
/// tenant there is.
fn attribute(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    talked: &[(TenantId, UnixMs)],
) -> Result<Option<TenantId>, StoreError> {
    if let Some(tenant) = store::exclusive_tenant(tx, phone)? {
        return Ok(Some(tenant));
    }
    if let Some((tenant, _)) = talked.first() {
        return Ok(Some(tenant.clone()));
    }
    store::only_tenant(tx)
}

/// Every tenant that a keyword counts for.
fn reach(tenant: &TenantId, talked: &[(TenantId, UnixMs)], now: UnixMs) -> Vec<TenantId> {
    let mut all: Vec<TenantId> = talked
        .iter()
        .filter(|(_, at)| now.since(*at) <= STOP_REACH_MS)
        .map(|(tenant, _)| tenant.clone())
        .collect();
    if !all.contains(tenant) {
        all.push(tenant.clone());
    }
    all
}

fn honour(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (phone, id): (&PhoneId, &MessageId),
    message: &Received,
    asks: Asks,
    now: UnixMs,
) -> Result<Effects, StoreError> {
    let mut effects = Effects::default();
    let keyword: String = message.text.trim().chars().take(KEYWORD_CHARS_MAX).collect();
    let recipient = &message.from;
    let turned = store::set_opt_out(
        tx,
        (tenant, recipient),
        asks == Asks::Stop,
        (&keyword, id),
        message.at,
    )?;
    if turned == Turned::Nothing {
        return Ok(effects);
    }
    let (kind, wording) = match asks {
        Asks::Stop => {
            effects.recall.extend(store::block_waiting(tx, tenant, recipient, now)?);
            ("contact.opted_out", CONFIRM_STOP)
        }
        Asks::Start => ("contact.opted_in", CONFIRM_START),
    };
    metrics::counter!("switchboard_opt_outs_total", "type" => kind).increment(1);
    store::tell_contact(tx, tenant, kind, (recipient, phone, id), now)?;
    let expires_at = message.at.plus_ms(CONFIRM_WITHIN_MS);
    if expires_at > now {
        store::queue_confirmation(tx, tenant, (phone, message), wording, (now, expires_at))?;
        effects.dispatch = true;
    }
    Ok(effects)
}

/// Something that happened to an earlier message, found by its guid on this phone.
pub(super) fn about(
    tx: &mut Tx<'_>,
    phone: &PhoneId,
    kind: &'static str,
    (guid, at): (&str, UnixMs),
    what: &impl serde::Serialize,
) -> Result<(), StoreError> {
    let Some((tenant, id)) = store::by_guid(tx, phone, guid)? else {
        metrics::counter!("switchboard_inbound_unattributed_total").increment(1);
        return Ok(());
    };
    let change = serde_json::to_value(what).map_err(|error| StoreError::corrupt("event", error))?;
    store::happened_to(tx, (&tenant, &id), phone, kind, change, at)
}
