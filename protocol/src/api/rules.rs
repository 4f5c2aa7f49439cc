//! Rules: what a tenant chooses, what was decided, who must not be written to.

use super::{
    Channel, CheckedProvider, Class, Deserialize, E164, EventId, MessageId, PhoneId, Reason,
    Recipient, Serialize, UnixMs,
};

crate::code::codes! {
    /// In which hours messages may be sent, by the recipient's clock.
    pub enum HoursPreset {
        /// From 8 to 20 o'clock, every day.
        Default = "default",
        /// From 10 to 18 on weekdays, to 17 on Saturdays, not on Sundays and holidays: lawful in every state.
        Strict = "strict",
        /// By the rule of each state of the United States; elsewhere as `default`.
        UsStates = "us_states",
        /// At any hour. The operator's to choose.
        Off = "off",
    }
}

crate::code::codes! {
    /// What becomes of a message to somebody of whom no time zone is known.
    pub enum UnknownZone {
        /// It is sent when it is a decent hour in all fifty states.
        Us50 = "us50",
        /// The tenant's own time zone counts.
        Tenant = "tenant",
        /// It is not sent.
        Reject = "reject",
    }
}

crate::code::codes! {
    /// How a text travels as SMS.
    pub enum Encoding {
        /// 160 characters to a segment.
        Gsm7 = "gsm7",
        /// 70 characters to a segment.
        Ucs2 = "ucs2",
    }
}

crate::code::codes! {
    /// A rule that a message is asked about before it is sent.
    pub enum RuleName {
        /// Whether the recipient has opted out.
        OptOut = "opt_out",
        /// Whether its time is over.
        Expiry = "expiry",
        /// Whether it is a decent hour where the recipient may be.
        QuietHours = "quiet_hours",
        /// Whether its text may be sent.
        Content = "content",
        /// Whether whoever pays for it has quota and credit left; asked when it is accepted.
        Account = "account",
        /// Whether a phone can send it.
        Phone = "phone",
    }
}

bodies! {
/// The rules that a tenant's messages are held to. What is left out is the operator's default.
#[serde(default)]
pub struct TenantRules {
    /// In which hours marketing may be sent; the operator's default when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<HoursPreset>,
    /// Hours of the tenant's own, which must allow it too, such as `09:00-18:00`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours_window: Option<String>,
    /// Whether the hours are kept for transactional messages too.
    pub transactional_hours: bool,
    /// The tenant's own time zone, by its IANA name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// What becomes of messages to somebody of whom no time zone is known.
    pub unknown_zone: UnknownZone,
    /// Words that opt out, beside the ones that always do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop_words: Vec<String>,
    /// Words that lift an opt-out, beside the ones that always do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start_words: Vec<String>,
    /// Whether an opt-out is confirmed by one message, and HELP is answered where `help_text` is left out.
    pub confirm_opt_out: bool,
    /// The answer to HELP. When left out, one of ours with your name, or none without `confirm_opt_out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help_text: Option<String>,
    /// Words and phrases that no text may have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_words: Vec<String>,
    /// Whether the first message to somebody may have a link.
    pub first_message_links: bool,
    /// SMS segments that a text may have at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments_max: Option<u32>,
}

/// What a text is made of.
pub struct ContentReport {
    /// Its length in characters.
    pub characters: u32,
    /// How it travels as SMS.
    pub encoding: Encoding,
    /// In how many SMS.
    pub segments: u32,
    /// Whether it has a link.
    pub links: bool,
}

/// What one rule says of a message.
pub struct RuleVerdict {
    /// Which rule.
    pub rule: RuleName,
    /// `send`, `hold`, `block` or `expire`.
    pub verdict: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Which part of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Of `hold`: when it may be sent. Of `send`: until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMs>,
}

/// The answer to `POST /v1/messages:check`: what would become of a message if it were sent now.
pub struct CheckedMessage {
    /// `send`, `hold`, `block` or `expire`.
    pub verdict: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Which part of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The first instant at which the rules allow it; left out when they never do or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_allowed_at: Option<UnixMs>,
    /// By which class's rules it is judged: what the class that was given claims has to be verifiable.
    pub class: Class,
    /// Every rule's own verdict, in the order in which they are asked.
    pub rules: Vec<RuleVerdict>,
    /// The time zones that the recipient may be in.
    pub time_zones: Vec<String>,
    /// What its text is made of.
    pub content: ContentReport,
    /// The phone that would send it, or the provider's number among the phones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<PhoneId>,
    /// That phone's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<E164>,
    /// The channels it would try, in order.
    pub route: Vec<Channel>,
    /// The providers of SMS that stand in where no phone can send: which one would, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<CheckedProvider>,
    /// The version of the rules.
    pub rules_version: String,
}

/// A recipient who must not be written to.
pub struct OptOut {
    /// Who.
    pub recipient: Recipient,
    /// How: `keyword`, `inferred`, `api`, `import`, `operator` or `provider`.
    pub method: String,
    /// When.
    pub at: UnixMs,
    /// The message that said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
}

/// Opts recipients out: by their word, or from a list that was kept elsewhere.
#[serde(deny_unknown_fields)]
pub struct CreateOptOuts {
    /// Who; at most 1,000.
    pub recipients: Vec<Recipient>,
    /// Where it is known from, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// What a list of opt-outs did.
pub struct CreatedOptOuts {
    /// Opted out by this.
    pub added: u32,
    /// Had opted out already.
    pub already: u32,
    /// Messages that waited to go to them and are blocked now, or are asked back from a phone.
    pub stopped: u32,
}

/// Lifts an opt-out: only with the evidence of a new consent.
#[serde(deny_unknown_fields)]
pub struct LiftOptOut {
    /// Where the consent was given, such as `web form`.
    pub source: String,
    /// When.
    pub at: UnixMs,
    /// What was consented to, in the words shown.
    pub text: String,
}

/// A step in the history of a recipient's wish.
pub struct OptOutEvent {
    /// Its id.
    pub id: EventId,
    /// Who.
    pub recipient: Recipient,
    /// `opted_out`, `opted_in`, `possible` or `help`.
    pub action: String,
    /// `keyword`, `inferred`, `api`, `import` or `operator`.
    pub method: String,
    /// When.
    pub at: UnixMs,
    /// The message that said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// Where it came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<PhoneId>,
    /// What was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Where else it is known from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<serde_json::Value>,
    /// The version of the rules that judged it.
    pub rules: String,
    /// When a person looked at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reviewed_at: Option<UnixMs>,
}

/// What a tenant knows of somebody, better than their number tells it.
#[serde(deny_unknown_fields)]
pub struct PutContact {
    /// IANA name of a time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Two letters, of the United States.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Your own word for who it is, 1 to 100 characters. Numbers and addresses with the same word are one person's: when
    /// one of them opts out, none of them is written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 100))]
    pub person: Option<String>,
}

/// Somebody of whom a tenant knows something.
pub struct Contact {
    /// Who.
    pub recipient: Recipient,
    /// IANA name of a time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Two letters, of the United States.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whose it is besides others with the same word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<String>,
    /// When it was first written down.
    pub created_at: UnixMs,
    /// When it was last changed.
    pub updated_at: UnixMs,
}
}

impl Default for TenantRules {
    fn default() -> Self {
        Self {
            hours: None,
            hours_window: None,
            transactional_hours: true,
            time_zone: None,
            unknown_zone: UnknownZone::Us50,
            stop_words: Vec::new(),
            start_words: Vec::new(),
            confirm_opt_out: true,
            help_text: None,
            blocked_words: Vec::new(),
            first_message_links: true,
            segments_max: None,
        }
    }
}
