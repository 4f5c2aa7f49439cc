//! The public API: bodies of requests and answers, problems, and what webhooks carry.
//!
//! JSON in and out, `snake_case`, RFC 3339 times, cursor pages, problems as RFC 9457.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::link::{HostTunnel, PhoneState};
use crate::pipe::{Conversation, InboundAttachment};
use crate::{
    BatchId, Channel, ChannelChoice, Class, DeliveryId, E164, EndpointId, EventId, HostId, KeyId,
    MessageId, PhoneId, Reason, Recipient, Status, TenantId, UnixMs,
};

/// Media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Defines structs that travel in the public API.
macro_rules! bodies {
    ($( $(#[$meta:meta])* pub struct $name:ident { $($body:tt)* } )+) => { $(
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        $(#[$meta])*
        pub struct $name { $($body)* }
    )+ };
}

mod batches;
mod billing;
mod providers;
mod rules;
mod templates;

pub use batches::*;
pub use billing::*;
pub use providers::*;
pub use rules::*;
pub use templates::*;

crate::code::codes! {
    /// Why a phone is not moved to another host.
    pub enum MoveRefused {
        /// The phone is configured on one host alone: enrol a second one with `standby = true`.
        NoStandby = "no_standby",
        /// The host is not one of those that the phone is configured on.
        NotConfiguredThere = "not_configured_there",
        /// The host serves the phone already.
        AlreadyThere = "already_there",
        /// No host that could take over is there, ready and not drained; `force` does it all the same.
        StandbyNotReady = "standby_not_ready",
        /// Apple has blocked the phone's account, and it is the same on every host; `despite_block` hands a single phone over
        /// all the same.
        AccountBlocked = "account_blocked",
    }
}

crate::code::codes! {
    /// What has become of a message of which nobody knew.
    pub enum Settled {
        /// It stands in the phone's conversation.
        Sent = "sent",
        /// It does not.
        Failed = "failed",
    }
}

crate::code::codes! {
    /// How often a key may be used.
    pub enum Tier {
        /// For whoever begins: 10 requests a second, 50 at once, where the operator sets nothing else.
        Starter = "starter",
        /// For whoever has grown: 100 requests a second, 500 at once, where the operator sets nothing else.
        Growth = "growth",
        /// As it was made.
        Custom = "custom",
    }
}

bodies! {
/// `POST /v1/messages`.
#[serde(deny_unknown_fields)]
pub struct CreateMessage {
    /// Whom it goes to: an E.164 number, an e-mail address, or `group:` and an id.
    pub to: Recipient,
    /// Its text, 1 to 20,000 characters; this or `template`. May be left out where there is `media`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 20_000))]
    pub text: Option<String>,
    /// The template that the text is made from; this or `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<UseTemplate>,
    /// Files that go with it, before its text; the phone's bridge fetches them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_items = 20))]
    pub media: Vec<Media>,
    /// `auto` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<ChannelChoice>,
    /// Channels that are tried after the first one, in this order, each only after the one before has provably failed.
    /// Left out: RCS and then SMS after `auto`, none after a channel that was named. Empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_items = 3))]
    pub fallback: Option<Vec<Channel>>,
    /// `marketing`, to which all rules apply, when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The number to send from; any that fits when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<E164>,
    /// Not before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_at: Option<UnixMs>,
    /// Not after this time. Left out: 12 hours, 10 minutes for `otp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMs>,
    /// The same as a length of life, in seconds; not together with `expires_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub ttl_seconds: Option<u32>,
    /// Kept with the message and given back in every answer and webhook; at most 4 KiB of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A file that goes with a message.
#[derive(Eq)]
#[serde(deny_unknown_fields)]
pub struct Media {
    /// Where it is: HTTPS, on a public address, at most 2,048 characters.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 2048))]
    pub url: String,
    /// The name under which the recipient sees it; the URL's own when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 200))]
    pub name: Option<String>,
    /// The SHA-256 that it must have, in hexadecimal; not checked when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
}

/// Over which channels a recipient can be reached, as far as it is known.
pub struct Capabilities {
    /// Whom.
    pub recipient: Recipient,
    /// One entry a channel of which something is known, newest knowledge of each.
    pub channels: Vec<ChannelKnown>,
    /// When a phone was last asked what it knows, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<UnixMs>,
}

/// What is known of one channel of a recipient.
pub struct ChannelKnown {
    /// Which channel.
    pub channel: Channel,
    /// Whether it reaches the recipient.
    pub able: bool,
    /// When that was seen.
    pub at: UnixMs,
    /// Dispatch still goes by it; what is older is tried anew.
    pub fresh: bool,
}

/// `POST /v1/capabilities`.
#[serde(deny_unknown_fields)]
pub struct AskCapabilities {
    /// Whom: an E.164 number or an e-mail address.
    pub to: Recipient,
}

/// A message, as the API shows it.
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Outbound or inbound.
    pub direction: Direction,
    /// Where it stands.
    pub status: Status,
    /// Why it stands there, where that needs a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// While `queued`: what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_reason: Option<Reason>,
    /// While held or scheduled: when it is looked at again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<UnixMs>,
    /// The other side.
    pub to: Recipient,
    /// Our number, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<E164>,
    /// Our phone, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<PhoneId>,
    /// Its text.
    pub text: String,
    /// The template that the text was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<UsedTemplate>,
    /// Files that go with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub media: Vec<Media>,
    /// The batch that it is one of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// The channel asked for.
    pub channel: ChannelChoice,
    /// Channels to be tried after it, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Vec<Channel>>,
    /// The channel really used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_used: Option<Channel>,
    /// What rules apply.
    pub class: Class,
    /// Attempts so far.
    pub attempts: u32,
    /// Number of its newest event; grows with every event.
    pub sequence: u64,
    /// When it was accepted, or came in.
    pub created_at: UnixMs,
    /// When its newest event happened.
    pub updated_at: UnixMs,
    /// Not before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_at: Option<UnixMs>,
    /// Not after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMs>,
    /// What the tenant keeps with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// One step in a message's story.
pub struct MessageEvent {
    /// Its id.
    pub id: EventId,
    /// Which message.
    pub message: MessageId,
    /// Its place in the story, from 1.
    pub sequence: u64,
    /// What happened: a status, or `accepted`, `started`, `fallback`, `held`, `retry`, `refused`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When.
    pub at: UnixMs,
    /// On which phone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<PhoneId>,
    /// In which attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Over which channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// For people; never the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What the rules have decided about a message, as the ledger keeps it: proof of why it was sent, or was not.
pub struct RuleDecision {
    /// Its place among the decisions about the message, from 1.
    pub number: u64,
    /// When.
    pub at: UnixMs,
    /// `send`, `hold`, `block` or `expire`.
    pub verdict: String,
    /// The rule that holds or forbids it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Of a hold: when it is asked again; of a send: until when it may start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMs>,
    /// By which class's rules it was judged.
    pub class: Class,
    /// The version of the rules.
    pub rules: String,
    /// The version of the time zone data.
    pub zones: String,
    /// The SHA-256 of the text that was judged, in hexadecimal.
    pub text_sha256: String,
}

/// What the operator has found out about a message of which nobody knew whether it was sent.
#[serde(deny_unknown_fields)]
pub struct SettleMessage {
    /// What became of it.
    pub outcome: Settled,
}

/// RFC 9457, with a stable code and the fields that are wrong.
pub struct Problem {
    /// A URI that names the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This problem, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The kind, for programs.
    pub code: String,
    /// Id of the request, as in the `x-request-id` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Every field that is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// When a quota that is used up begins anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<UnixMs>,
}

/// A field that is wrong.
pub struct FieldError {
    /// JSON pointer to it, such as `/to`; for query parameters and headers their name.
    pub pointer: String,
    /// What is wrong, for programs.
    pub code: String,
    /// What is wrong, for people.
    pub detail: String,
}

/// A customer of the operator.
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its name.
    pub name: String,
    /// The name its recipients know, used in confirmations; the tenant's name when left out.
    pub brand: String,
    /// When it was made.
    pub created_at: UnixMs,
}

/// `POST /v1/admin/tenants`.
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Its name, 1 to 100 characters.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 100))]
    pub name: String,
    /// The name its recipients know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brand: Option<String>,
}

/// An API key, without its secret.
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// Whose.
    pub tenant: TenantId,
    /// A name for people.
    pub name: String,
    /// How it begins, to recognise it by.
    pub prefix: String,
    /// For the sandbox only; never touches a real phone.
    pub test: bool,
    /// What it may do.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The networks that it may be used from; from anywhere when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// How often it may be used.
    pub tier: Tier,
    /// Requests a second, in the long run.
    pub per_second: u32,
    /// Requests at once, after a pause.
    pub burst: u32,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMs>,
    /// The key that has taken its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_to: Option<KeyId>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<UnixMs>,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<UnixMs>,
}

/// `POST /v1/admin/keys`.
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// For which tenant.
    pub tenant: TenantId,
    /// A name for people, 1 to 100 characters.
    pub name: String,
    /// For the sandbox only.
    #[serde(default)]
    pub test: bool,
    /// When it ends; never when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMs>,
    /// What it may do: `messages:read`, `messages:write`, `webhooks`, `opt_outs:read`, `opt_outs:write`, `contacts`;
    /// everything when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// The networks that it may be used from, such as `192.0.2.0/24` or `2001:db8::1`; from anywhere when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// How often it may be used: `starter`, `growth`, or `custom` with `per_second` and `burst`; as the router is set up
    /// when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Requests a second in the long run, of `custom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000))]
    pub per_second: Option<u32>,
    /// Requests at once after a pause, of `custom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000))]
    pub burst: Option<u32>,
}

/// `POST /v1/admin/keys/{id}/rotate`; the body may be left out.
#[serde(deny_unknown_fields)]
#[derive(Default)]
pub struct RotateKey {
    /// How long the old key still works, 0 to 30 days; a day when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 2_592_000))]
    pub overlap_seconds: Option<u32>,
}

/// A new API key. The secret is shown this once.
pub struct CreatedKey {
    /// The key.
    #[serde(flatten)]
    pub key: ApiKey,
    /// What goes behind `Authorization: Bearer`.
    pub secret: String,
}

/// A one-time token with which a host is enrolled.
pub struct EnrolmentToken {
    /// The token; shown this once.
    pub token: String,
    /// When it ends.
    pub expires_at: UnixMs,
}

/// A host, as operators see it.
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its link is up.
    pub online: bool,
    /// When the router last heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<UnixMs>,
    /// Version of its supervisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The phones that it serves.
    pub phones: Vec<PhoneId>,
    /// The phones for which it stands by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standby_phones: Vec<PhoneId>,
    /// It is given nothing new since then: an operator drains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained_at: Option<UnixMs>,
    /// How its tunnel is, as it last said while its link is up; left out where it runs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<HostTunnel>,
    /// When it was enrolled.
    pub created_at: UnixMs,
}

/// One of the hosts that a phone is configured on.
pub struct PhoneHost {
    /// Which host.
    pub host: HostId,
    /// It serves the phone; the others stand by.
    pub active: bool,
    /// Its link is up.
    pub online: bool,
    /// What the phone's bridge is doing there.
    pub state: PhoneState,
    /// Why it is not ready there.
    pub reasons: Vec<Reason>,
    /// When the host last spoke of the phone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<UnixMs>,
}

/// A phone, as operators see it.
pub struct Phone {
    /// Its id.
    pub id: PhoneId,
    /// Its number.
    pub number: E164,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The host that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Every host that it is configured on, the serving one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<PhoneHost>,
    /// The host that it is being handed over to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_to: Option<HostId>,
    /// The phone that has taken its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<PhoneId>,
    /// It is of the sandbox: it takes what test keys send and nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandbox: bool,
    /// Its host's link is up.
    pub online: bool,
    /// What its bridge is doing.
    pub state: PhoneState,
    /// Why it is not ready.
    pub reasons: Vec<Reason>,
    /// What it can send by.
    pub channels: Vec<Channel>,
    /// The epoch of its lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// When the lease ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<UnixMs>,
    /// Messages sent today (UTC).
    pub messages_today: u64,
    /// Attempts given to it that have no end yet.
    pub in_flight: u64,
    /// When it was last given a message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<UnixMs>,
    /// The tenant that it is reserved for; without one it is pooled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive_to: Option<TenantId>,
    /// Messages that it sends in a day (UTC) at most, where it has a cap of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily_cap: Option<u32>,
    /// Among phones that have sent as much today, those with less are taken first.
    #[serde(default)]
    pub warming_priority: u32,
    /// Since when its number is used: its age, by which it may meet new contacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_service_at: Option<UnixMs>,
}

/// A phone, as a tenant sees it that may use it.
pub struct UsablePhone {
    /// Its id.
    pub id: PhoneId,
    /// Its number, for `from`.
    pub number: E164,
    /// It is the tenant's alone; otherwise it is of the pool that all tenants share.
    pub exclusive: bool,
    /// It is of the sandbox: test keys alone reach it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandbox: bool,
    /// It can be given messages now. What asks for one that cannot waits.
    pub ready: bool,
    /// What it can send by.
    pub channels: Vec<Channel>,
}

/// `PATCH /v1/admin/phones/{id}`: what is left out stays as it is.
#[serde(deny_unknown_fields)]
#[derive(Default)]
pub struct UpdatePhone {
    /// A name for people; empty for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 100))]
    pub label: Option<String>,
    /// The tenant that it is reserved for, by its id; `everybody` puts it into the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive_to: Option<String>,
    /// Messages that it sends in a day (UTC) at most; 0 for as many as is configured for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 1_000_000))]
    pub daily_cap: Option<u32>,
    /// Among phones that have sent as much today, those with less are taken first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 1_000_000))]
    pub warming_priority: Option<u32>,
    /// Since when its number is used, for one that was in use before it was enrolled here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_service_at: Option<UnixMs>,
}

/// `POST /v1/admin/phones/{id}/failover` and `POST /v1/admin/hosts/{id}/failover`.
#[serde(deny_unknown_fields)]
pub struct FailOver {
    /// The host that takes over; the fittest of those that stand by when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<HostId>,
    /// Also to a host that is not ready or not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Also a phone whose account counts as blocked: the other host sends by the same account. Of a single phone only, and
    /// written down in the audit log.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub despite_block: bool,
}

/// What becomes of the phones of a fail-over.
pub struct FailedOver {
    /// One line a phone.
    pub phones: Vec<PhoneMove>,
}

/// What becomes of one phone.
pub struct PhoneMove {
    /// Which phone.
    pub phone: PhoneId,
    /// The host that has served it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<HostId>,
    /// The host that takes over; none where nothing can be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<HostId>,
    /// Why nothing can be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<MoveRefused>,
}

/// `POST /v1/admin/phones/{id}/replace`.
#[serde(deny_unknown_fields)]
pub struct ReplacePhone {
    /// The phone that takes its place; the phone's own id undoes it.
    pub by: PhoneId,
}

/// What was moved from one phone to another.
pub struct ReplacedPhone {
    /// The phone that is out of use.
    pub phone: PhoneId,
    /// The phone in its place.
    pub by: PhoneId,
    /// Conversations that go on there.
    pub conversations: u64,
    /// Waiting messages that had asked for the old number.
    pub messages: u64,
}

/// A webhook endpoint, without its secret.
pub struct WebhookEndpoint {
    /// Its id.
    pub id: EndpointId,
    /// Where events are posted.
    pub url: String,
    /// The types that it gets; empty means all.
    pub events: Vec<String>,
    /// When it was switched off, by whom or what: see `disabled_reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_at: Option<UnixMs>,
    /// Why it was switched off: `gone` (it answered 410), `failing` (for five days), `by_tenant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
    /// What its owner has written down about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// It was made with a test key: it is told what happens in the sandbox, and nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test: bool,
    /// Since when every attempt has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<UnixMs>,
    /// Attempts that have failed since one did not.
    #[serde(default)]
    pub failures: u32,
    /// It is left alone until then: too many attempts have failed in a row, or it has asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<UnixMs>,
    /// Until when what is posted is signed with the secret before the present one, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_secret_until: Option<UnixMs>,
    /// When it was made.
    pub created_at: UnixMs,
}

/// `PATCH /v1/webhook_endpoints/{id}`: what is left out stays as it is.
#[serde(deny_unknown_fields)]
#[derive(Default)]
pub struct UpdateWebhookEndpoint {
    /// Where events are posted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The types that it gets; an empty list means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<String>>,
    /// What to write down about it, up to 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 200))]
    pub description: Option<String>,
    /// `true` switches it off, and what waits for it fails; `false` switches it on again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}

/// `POST /v1/webhook_endpoints/{id}/rotate_secret`; the body may be left out.
#[serde(deny_unknown_fields)]
#[derive(Default)]
pub struct RotateSecret {
    /// How long what is posted is signed with the old secret, too: 0 to 7 days; a day when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 604_800))]
    pub overlap_seconds: Option<u32>,
}

/// `POST /v1/webhook_endpoints/{id}/replay`.
#[serde(deny_unknown_fields)]
pub struct ReplayWebhooks {
    /// Deliveries from this time on.
    pub since: UnixMs,
    /// Deliveries before this time; now when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMs>,
    /// Those that were delivered, too, and not only those that failed.
    #[serde(default)]
    pub delivered: bool,
    /// Only later ones than this: the `next` of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<DeliveryId>,
}

/// What is delivered again.
pub struct ReplayedWebhooks {
    /// How many deliveries.
    pub replayed: u64,
    /// What to pass as `after` for the rest; null when that was all.
    pub next: Option<DeliveryId>,
}

/// `POST /v1/webhook_endpoints`.
#[serde(deny_unknown_fields)]
pub struct CreateWebhookEndpoint {
    /// Where events are posted; `https://`, or `http://` where the operator allows it.
    pub url: String,
    /// The types that it gets; all when left out or empty.
    #[serde(default)]
    pub events: Vec<String>,
    /// What to write down about it, up to 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 200))]
    pub description: Option<String>,
}

/// A new webhook endpoint. The secret is shown this once.
pub struct CreatedWebhookEndpoint {
    /// The endpoint.
    #[serde(flatten)]
    pub endpoint: WebhookEndpoint,
    /// `whsec_…`: what signatures are checked with.
    pub secret: String,
}

/// One event on its way to one endpoint.
pub struct WebhookDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// To which endpoint.
    pub endpoint: EndpointId,
    /// Which event; the `webhook-id` header.
    pub event: EventId,
    /// The event's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `pending`, `delivered` or `failed`.
    pub state: String,
    /// Every try so far.
    pub attempts: Vec<WebhookAttempt>,
    /// When it is tried next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<UnixMs>,
    /// When the event happened.
    pub created_at: UnixMs,
}

/// One try to deliver a webhook.
pub struct WebhookAttempt {
    /// When.
    pub at: UnixMs,
    /// What the endpoint answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// How the answer's body began, up to 1,024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
}

/// One look of the operator at what belongs to tenants, or one change of it.
pub struct AuditEntry {
    /// Its id.
    pub id: EventId,
    /// When.
    pub at: UnixMs,
    /// Whose data; none where it was everybody's or nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// Method and route, such as `GET /v1/admin/messages/{id}`.
    pub action: String,
    /// Path and query, as they were asked for.
    pub target: String,
    /// Where the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The request's id.
    pub request_id: String,
    /// What was answered; none where no answer was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// A message whose attempts are used up, or that ended the router again and again.
pub struct DeadLetter {
    /// Whose.
    pub tenant: TenantId,
    /// Since when it is one.
    pub at: UnixMs,
    /// `attempts_exhausted` or `poisoned`; why its last attempt failed is the message's own `reason`.
    pub reason: Reason,
    /// The message.
    pub message: Message,
}

/// What a webhook carries, by Standard Webhooks 1.0.
pub struct WebhookBody {
    /// Such as `message.sent`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it happened.
    pub timestamp: UnixMs,
    /// About what.
    pub data: WebhookData,
}

/// What happened, as webhooks tell it. Fields that do not apply are left out.
#[derive(Default)]
pub struct WebhookData {
    /// Whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// The message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// The batch that has ended, or was paused because nothing pays for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// Number of the event in the message's story: later ones have higher numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Where the message stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Outbound or inbound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// The other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<Recipient>,
    /// Our number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<E164>,
    /// Our phone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<PhoneId>,
    /// The channel really used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When a held message is looked at again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<UnixMs>,
    /// An inbound message's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// An inbound message's conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub conversation: Option<Conversation>,
    /// What came with an inbound message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub attachments: Vec<InboundAttachment>,
    /// An inbound message that iCloud delivered long after it was sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// What the tenant keeps with the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Reactions, edits, unsends and group changes: the event as the phone told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub change: Option<serde_json::Value>,
    /// How much of a quota is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaWarning>,
}
}

/// Which way a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From a tenant.
    Outbound,
    /// To a tenant.
    Inbound,
}

impl Direction {
    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// A page of rows, newest first unless the route says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// The rows.
    pub data: Vec<T>,
    /// What to pass as `cursor` for the next page; null on the last.
    pub next_cursor: Option<String>,
    /// There is a next page.
    pub has_more: bool,
}

/// The type of the event that `POST /v1/webhook_endpoints/{id}/test` posts. An endpoint gets it whatever types it wants.
pub const WEBHOOK_TEST: &str = "webhook_endpoint.test";

/// Types of webhook events.
pub const WEBHOOK_TYPES: &[&str] = &[
    "message.queued",
    "message.held",
    "message.sent",
    "message.delivered",
    "message.read",
    "message.failed",
    "message.blocked",
    "message.expired",
    "message.canceled",
    "message.unknown",
    "message.dead_letter",
    "message.received",
    "message.reaction",
    "message.edited",
    "message.unsent",
    "batch.completed",
    "batch.canceled",
    "batch.paused",
    "contact.opted_out",
    "contact.opted_in",
    "phone.online",
    "phone.offline",
    "webhook_endpoint.disabled",
    "usage.quota_warning",
];
