//! Providers of SMS that stand in where no phone can send, and why one is not asked.

use super::{Deserialize, E164, PhoneId, Serialize, UnixMs};

crate::code::codes! {
    /// Who sells SMS.
    pub enum ProviderKind {
        /// Twilio.
        Twilio = "twilio",
        /// Telnyx.
        Telnyx = "telnyx",
    }
}

crate::code::codes! {
    /// How a provider is treated by what its API has answered in the last minute.
    pub enum BreakerState {
        /// It is asked as if nothing were wrong.
        Closed = "closed",
        /// It has failed too often and is left alone for a while.
        Open = "open",
        /// It is given a message now and then, to show that it works.
        HalfOpen = "half_open",
    }
}

crate::code::codes! {
    /// Why a provider is not asked to send a message.
    pub enum ProviderWhyNot {
        /// A phone can send it, or will in a moment.
        PhonesFirst = "phones_first",
        /// The operator has not enabled it.
        Disabled = "disabled",
        /// The message may not go as SMS: another channel was asked for.
        NotSms = "not_sms",
        /// The recipient is no telephone number.
        NotANumber = "not_a_number",
        /// The message was made with a test key.
        Sandbox = "sandbox",
        /// The message has to come from another number.
        OtherNumber = "other_number",
        /// Files go with the message: only its text could be sent.
        HasFiles = "has_files",
        /// The text is longer than the provider takes.
        TextTooLong = "text_too_long",
        /// The message has little time left, and the provider cannot be told to give it up after that.
        LifeTooShort = "life_too_short",
        /// The router sends no more than 5,000 SMS a day: Twilio is not worth it.
        VolumeTooLow = "volume_too_low",
        /// The monthly recurring revenue is not over 15,000 USD: Twilio is not worth it.
        RevenueTooLow = "revenue_too_low",
        /// The figure of the monthly recurring revenue is missing or older than 45 days.
        RevenueNotKnown = "revenue_not_known",
        /// The operator has not set the flag that allows Twilio.
        NotAllowed = "not_allowed",
        /// Too many of its answers were failures within a minute.
        BreakerOpen = "breaker_open",
        /// It has asked to be left alone for a moment.
        Resting = "resting",
        /// As many messages wait for it as may.
        Full = "full",
    }
}

bodies! {
/// Whether a provider would be asked to send a message.
pub struct CheckedProvider {
    /// Its name.
    pub provider: String,
    /// It would be asked.
    pub chosen: bool,
    /// Why it would not be: every reason there is. Empty for one that stands behind the chosen one.
    pub why_not: Vec<ProviderWhyNot>,
}

/// Sets up a provider of SMS. Which fields are needed depends on its kind.
#[serde(deny_unknown_fields)]
pub struct SetProvider {
    /// What it is.
    pub kind: ProviderKind,
    /// The number that it sends from and that is written to; with a messaging service, one of its numbers.
    pub number: E164,
    /// Lower is asked first, from 0 to 10,000; 100 when left out.
    #[cfg_attr(feature = "openapi", schema(maximum = 10_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Twilio's messaging service (`MG…`), which then sends in the number's place, or Telnyx's messaging profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Twilio: the account's SID (`AC…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Twilio: the account's token. It signs what Twilio reports, so it is needed beside an API key, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<WriteOnly>,
    /// Twilio: the SID of an API key, which then stands in the token's place for what is asked of Twilio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_sid: Option<String>,
    /// Twilio: that key's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret: Option<WriteOnly>,
    /// Telnyx: an API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<WriteOnly>,
    /// Telnyx: the account's public key, as the portal shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// How a provider of SMS is set up, and how it does.
pub struct ProviderStanding {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ProviderKind,
    /// The number that it sends from.
    pub number: E164,
    /// Under which id that number stands in messages and events, as a phone's does.
    pub phone: PhoneId,
    /// Twilio: the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Its messaging service or profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The operator has enabled it.
    pub enabled: bool,
    /// The operator has switched to it: it is asked before all others.
    pub switched_to: bool,
    /// Lower is asked first.
    pub priority: u32,
    /// What is wrong with how it is set up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Which conditions for asking it at all are not met.
    pub why_not: Vec<ProviderWhyNot>,
    /// How it is treated by what its API has answered.
    pub breaker: BreakerState,
    /// It is asked for nothing before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shut_until: Option<UnixMs>,
    /// It has asked to be left alone until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rests_until: Option<UnixMs>,
    /// What its API has answered within the last minute.
    pub answers_last_minute: u32,
    /// How much of that were failures.
    pub failures_last_minute: u32,
    /// Messages that it is being asked for.
    pub in_flight: u32,
    /// Which key its credentials are sealed with.
    pub key_id: String,
    /// Where it reports, and where what is written to its number has to be sent; left out while `public_url` is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// When it was last changed.
    pub updated_at: UnixMs,
}

/// All providers of SMS.
pub struct ProviderList {
    /// They, by name.
    pub data: Vec<ProviderStanding>,
    /// What holds for all of them.
    pub choices: ProviderChoices,
}

/// What a provider has answered to a test of its credentials.
pub struct ProviderTest {
    /// It has answered as it should.
    pub works: bool,
    /// Its words, for people.
    pub detail: String,
}

/// What holds for all providers of SMS.
pub struct ProviderChoices {
    /// The one that is asked before all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switched_to: Option<String>,
    /// Monthly recurring revenue in US dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mrr_usd: Option<u32>,
    /// Of when that figure is. It is believed for 45 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mrr_as_of: Option<UnixMs>,
    /// The flag that allows Twilio.
    pub twilio_allowed: bool,
    /// SMS sent a day: the better one of yesterday and today (UTC). Counted every five minutes while there is a Twilio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sms_a_day: Option<u64>,
}

/// Sets what holds for all providers of SMS; what is left out stays as it is.
#[serde(deny_unknown_fields)]
pub struct SetProviderChoices {
    /// The provider that is asked before all others from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch_to: Option<String>,
    /// True: back to priorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch_back: Option<bool>,
    /// Monthly recurring revenue in US dollars; with its date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mrr_usd: Option<u32>,
    /// Of when that figure is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mrr_as_of: Option<UnixMs>,
    /// The flag that allows Twilio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twilio_allowed: Option<bool>,
}
}

/// A secret on its way in: it is never shown, not even where somebody prints what it stands in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WriteOnly(pub String);

impl std::fmt::Debug for WriteOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

crate::code::string_schema!(WriteOnly, "a-secret-that-is-never-shown-again");
