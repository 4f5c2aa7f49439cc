//! Channels: the three services that Messages sends by.

use crate::code::codes;

codes! {
    /// A service of Messages, in the order in which `auto` tries them.
    pub enum Channel {
        /// Apple's own service, between Apple accounts.
        Imessage = "imessage",
        /// The carriers' successor of SMS, through the account's iPhone.
        Rcs = "rcs",
        /// SMS through the account's iPhone.
        Sms = "sms",
    }
}

impl Channel {
    /// The service's name in AppleScript and in chat.db's `service` columns.
    pub const fn service(self) -> &'static str {
        match self {
            Self::Imessage => "iMessage",
            Self::Rcs => "RCS",
            Self::Sms => "SMS",
        }
    }

    /// The channel of a row by chat.db's `service`, in whatever case it is written (a lower-case
    /// `rcs` has been seen). iMessage over satellite (`iMessageLite`) counts as iMessage.
    pub fn of_service(service: &str) -> Option<Self> {
        if service.eq_ignore_ascii_case("iMessage") || service.eq_ignore_ascii_case("iMessageLite")
        {
            Some(Self::Imessage)
        } else if service.eq_ignore_ascii_case("RCS") {
            Some(Self::Rcs)
        } else if service.eq_ignore_ascii_case("SMS") {
            Some(Self::Sms)
        } else {
            None
        }
    }
}

codes! {
    /// What a request may ask for.
    pub enum ChannelChoice {
        /// iMessage where the recipient has it, else RCS, else SMS.
        Auto = "auto",
        /// iMessage or not at all.
        Imessage = "imessage",
        /// RCS or not at all.
        Rcs = "rcs",
        /// SMS or not at all.
        Sms = "sms",
    }
}

impl From<Channel> for ChannelChoice {
    fn from(channel: Channel) -> Self {
        match channel {
            Channel::Imessage => Self::Imessage,
            Channel::Rcs => Self::Rcs,
            Channel::Sms => Self::Sms,
        }
    }
}

impl ChannelChoice {
    /// The one channel asked for, or none for `auto`.
    pub const fn only(self) -> Option<Channel> {
        match self {
            Self::Auto => None,
            Self::Imessage => Some(Channel::Imessage),
            Self::Rcs => Some(Channel::Rcs),
            Self::Sms => Some(Channel::Sms),
        }
    }
}
