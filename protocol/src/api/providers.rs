//! Providers of SMS that stand in where no phone can send, and why one is not asked.

use super::{Deserialize, Serialize};

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
        /// The text is longer than the provider takes.
        TextTooLong = "text_too_long",
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
}
