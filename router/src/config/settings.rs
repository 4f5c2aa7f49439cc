//! What each section of the file says, with its defaults.

use protocol::Class;
use protocol::api::{HoursPreset, Tier};
use serde::Deserialize;

use crate::network::Network;
use crate::rate::Rate;
use crate::store::keys::Tiers;
use crate::warming::{self, Step};

/// Limits of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The tier of keys that name none.
    pub tier: Tier,
    /// How often keys of the tier `starter` may be used.
    pub starter: Rate,
    /// How often keys of the tier `growth` may be used.
    pub growth: Rate,
    /// Longest request body in bytes.
    pub body_bytes: usize,
    /// Longest handling of one request in milliseconds.
    pub request_timeout_ms: u64,
}

impl Limits {
    /// How often keys of each tier may be used.
    pub fn tiers(&self) -> Tiers {
        Tiers { default: self.tier, starter: self.starter, growth: self.growth }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tier: Tier::Growth,
            starter: Rate { per_second: 10, burst: 50 },
            growth: Rate { per_second: 100, burst: 500 },
            body_bytes: 256 * 1024,
            request_timeout_ms: 30_000,
        }
    }
}

/// Lives of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Messages {
    /// Life of a message that names none, in seconds.
    pub life_s: u32,
    /// The same for one-time codes.
    pub otp_life_s: u32,
    /// Longest life, and how far ahead a message may be scheduled, in seconds.
    pub ahead_s_max: u32,
    /// Messages of one batch that may wait in the queue to be sent.
    pub batch_queued: u32,
}

impl Messages {
    /// Life of a message of this class that names none, in seconds.
    pub fn life_s_of(&self, class: Class) -> u32 {
        match class {
            Class::Otp => self.otp_life_s,
            Class::Transactional | Class::Conversational | Class::Marketing => self.life_s,
        }
    }
}

impl Default for Messages {
    fn default() -> Self {
        Self { life_s: 12 * 3_600, otp_life_s: 600, ahead_s_max: 35 * 86_400, batch_queued: 10_000 }
    }
}

/// How long things are kept that nobody needs any more, in days; 0: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "each says its unit, and all are days")]
pub struct Retention {
    /// Who was in a batch, after its end.
    pub recipients_days: u32,
    /// What a message was charged, once it cannot be given back any more.
    pub charges_days: u32,
    /// What the operator has read or changed of tenants' data.
    pub audit_days: u32,
    /// A batch that was never started, or is paused, since it was last changed.
    pub idle_batch_days: u32,
    /// Which channels reach a recipient, since that was last seen.
    pub capabilities_days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            recipients_days: 90,
            charges_days: 400,
            audit_days: 400,
            idle_batch_days: 30,
            capabilities_days: 90,
        }
    }
}

/// Dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dispatch {
    /// Attempts that one phone may have open at once.
    pub in_flight_per_phone: u32,
    /// Messages of one phone in a day (UTC).
    pub daily_cap: u32,
    /// Jobs claimed at once.
    pub claim_batch: u32,
    /// How long a claim holds before another worker may take it, in milliseconds.
    pub claim_ms: u64,
    /// How long after the dispatch a phone may still start the attempt, in milliseconds.
    pub start_window_ms: u64,
    /// After how long an attempt without an answer is offered again, in milliseconds.
    pub reoffer_ms: u64,
    /// How long past its last start an attempt on a lost host stays open before it is `unknown`, in milliseconds.
    pub host_lost_ms: u64,
    /// Attempts before a message fails.
    pub attempts: u32,
    /// Wait before the second attempt, in milliseconds; doubles each time.
    pub retry_first_ms: u64,
    /// How long it is believed that a channel does not reach a recipient, in milliseconds; 0: not at all.
    pub capability_ms: u64,
}

impl Default for Dispatch {
    fn default() -> Self {
        Self {
            in_flight_per_phone: 32,
            daily_cap: 1_000,
            claim_batch: 256,
            claim_ms: 30_000,
            start_window_ms: 60_000,
            reoffer_ms: 5_000,
            host_lost_ms: 600_000,
            attempts: 3,
            retry_first_ms: 2_000,
            capability_ms: 86_400_000,
        }
    }
}

/// Warming.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Warming {
    /// Without it there is no cap on contacts.
    pub(super) enforce: bool,
    /// New contacts within 24 hours, by the phone's age.
    pub(super) new_contacts: Vec<Step>,
    /// New contacts within an hour.
    pub(super) new_contacts_per_hour: u32,
    /// Messages in a row that a contact may leave unanswered; 0 for any number.
    pub(super) unanswered: u32,
}

impl Default for Warming {
    fn default() -> Self {
        let step = |(from_day, per_day)| Step { from_day, per_day };
        Self {
            enforce: true,
            new_contacts: [(0, 10), (7, 25), (14, 50)].map(step).to_vec(),
            new_contacts_per_hour: 15,
            unanswered: 5,
        }
    }
}

impl From<Warming> for warming::Policy {
    fn from(raw: Warming) -> Self {
        Self {
            enforce: raw.enforce,
            steps: raw.new_contacts,
            per_hour: raw.new_contacts_per_hour,
            unanswered_max: raw.unanswered,
        }
    }
}

/// Leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "the unit is last in every name")]
pub struct Lease {
    /// How long a lease holds, in milliseconds.
    pub ttl_ms: u64,
    /// How long after its end another host may be given it, in milliseconds.
    pub grace_ms: u64,
    /// A phone that cannot send for so long, though its host is there, is handed to a host that stands by, in
    /// milliseconds.
    pub unfit_ms: u64,
    /// A phone is not moved by itself again within this time, in milliseconds.
    pub settle_ms: u64,
}

impl Default for Lease {
    fn default() -> Self {
        Self { ttl_ms: 15_000, grace_ms: 5_000, unfit_ms: 60_000, settle_ms: 300_000 }
    }
}

/// Sessions with hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// A session in which nothing was said for so long is pinged, in milliseconds.
    pub ping_ms: u64,
    /// Nothing heard for so long, though it was asked for: the session is over, in milliseconds.
    pub silence_ms: u64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            ping_ms: protocol::link::IDLE_PING_MS,
            silence_ms: protocol::link::ROUTER_SILENCE_MS,
        }
    }
}

/// Webhook delivery.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhooks {
    /// Endpoints may be plain HTTP and at private or loopback addresses.
    pub allow_private: bool,
    /// Networks that endpoints may be in though they are not public.
    pub allow_networks: Vec<Network>,
    /// How long an endpoint may take to answer, in milliseconds.
    pub timeout_ms: u64,
    /// Deliveries to one endpoint at once.
    pub per_endpoint: u32,
    /// Deliveries at once in all.
    pub in_flight: u32,
    /// Endpoints of one tenant.
    pub endpoints_per_tenant: u32,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            allow_private: false,
            allow_networks: Vec::new(),
            timeout_ms: 10_000,
            per_endpoint: 16,
            in_flight: 384,
            endpoints_per_tenant: 20,
        }
    }
}

/// Rules for what may be sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compliance {
    /// The hours of tenants that have chosen none.
    pub hours: HoursPreset,
    /// How long before its end a window counts as over, in seconds.
    pub guard_s: u32,
    /// How long after a recipient's message one to them is an answer, in seconds.
    pub reply_s: u32,
    /// How long after a recipient's message an answer may come at night, in seconds.
    pub reply_at_night_s: u32,
    /// The longest life of a one-time code that is taken for one, in seconds.
    pub otp_life_s_max: u32,
    /// Words and phrases that no text of any tenant may have.
    pub blocked_words: Vec<String>,
}

impl Default for Compliance {
    fn default() -> Self {
        Self {
            hours: HoursPreset::Default,
            guard_s: 300,
            reply_s: 86_400,
            reply_at_night_s: 3_600,
            otp_life_s_max: 600,
            blocked_words: Vec::new(),
        }
    }
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// What is logged, as `tracing-subscriber`'s filter.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}
