//! Whom a message goes to or came from: an E.164 number, an e-mail address, an existing group, or
//! a service that only ever writes first.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits;

/// A telephone number in E.164 form: `+`, then 7 to 15 digits, the first not zero.
///
/// This is the form only. Whether such a number can exist is for the router to judge, with
/// numbering plans that change more often than this crate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct E164(String);

/// Shortest and longest E.164 number, in digits without the `+`. Seven is the shortest in use
/// with a country code; fifteen is ITU-T's limit.
const DIGITS: std::ops::RangeInclusive<usize> = 7..=15;

/// Text that names no recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRecipient {
    /// Not `+` and 7 to 15 digits.
    #[error(
        "not an E.164 number: `+`, country code and number, 7 to 15 digits, such as +12025550143"
    )]
    Number,
    /// Not an e-mail address that Messages could know.
    #[error("not an e-mail address")]
    Email,
    /// Not a group's id.
    #[error("not a group: `group:` and the id that a received message of it carried")]
    Group,
    /// No name that a service could have.
    #[error("not a service: `service:` and the name that a received message of it carried")]
    Service,
}

impl E164 {
    /// The number as text, with its `+`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits without the `+`.
    pub fn digits(&self) -> &str {
        self.0.trim_start_matches('+')
    }
}

impl std::fmt::Display for E164 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

impl std::str::FromStr for E164 {
    type Err = BadRecipient;
    fn from_str(text: &str) -> Result<Self, BadRecipient> {
        let digits = text.strip_prefix('+').ok_or(BadRecipient::Number)?;
        let good = DIGITS.contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.starts_with('0');
        good.then(|| Self(text.to_owned())).ok_or(BadRecipient::Number)
    }
}

/// Whom a message goes to or came from; one string on every wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Recipient {
    /// A telephone number.
    Number(E164),
    /// An e-mail address, lower case; reachable by iMessage only.
    Email(String),
    /// An existing group conversation, by the id that chat.db has for it; `group:` on the wire.
    Group(String),
    /// A sender with neither: a short code, a name, a business; `service:` on the wire. Messages
    /// come from such, and none is sent to them.
    Service(String),
}

const GROUP_PREFIX: &str = "group:";
const SERVICE_PREFIX: &str = "service:";

impl Recipient {
    /// The address as Messages knows it: number, e-mail address or group id, without our prefix.
    pub fn address(&self) -> &str {
        match self {
            Self::Number(number) => number.as_str(),
            Self::Email(address) | Self::Group(address) | Self::Service(address) => address,
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<&E164> {
        match self {
            Self::Number(number) => Some(number),
            Self::Email(_) | Self::Group(_) | Self::Service(_) => None,
        }
    }

    /// A sender that is neither number nor e-mail address, as chat.db names it.
    pub fn service(name: &str) -> Result<Self, BadRecipient> {
        let good = !name.is_empty()
            && name.len() <= limits::SERVICE_NAME_BYTES_MAX
            && !name.chars().any(char::is_control);
        good.then(|| Self::Service(name.to_owned())).ok_or(BadRecipient::Service)
    }
}

impl std::fmt::Display for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => f.pad(number.as_str()),
            Self::Email(address) => f.pad(address),
            Self::Group(id) => f.pad(&format!("{GROUP_PREFIX}{id}")),
            Self::Service(name) => f.pad(&format!("{SERVICE_PREFIX}{name}")),
        }
    }
}

impl std::str::FromStr for Recipient {
    type Err = BadRecipient;
    fn from_str(text: &str) -> Result<Self, BadRecipient> {
        if let Some(id) = text.strip_prefix(GROUP_PREFIX) {
            let good = !id.is_empty()
                && id.len() <= limits::GROUP_ID_BYTES_MAX
                && id.bytes().all(|byte| byte.is_ascii_graphic());
            return good.then(|| Self::Group(id.to_owned())).ok_or(BadRecipient::Group);
        }
        if let Some(name) = text.strip_prefix(SERVICE_PREFIX) {
            return Self::service(name);
        }
        if text.contains('@') {
            email(text).map(Self::Email)
        } else {
            text.parse().map(Self::Number)
        }
    }
}

/// The part of RFC 5321 that Apple accounts use: one `@`, no spaces, a dotted domain.
fn email(text: &str) -> Result<String, BadRecipient> {
    let (local, domain) = text.split_once('@').ok_or(BadRecipient::Email)?;
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    let quoted = text.bytes().any(|byte| matches!(byte, b'"' | b'<' | b'>' | b',' | b';' | b'\\'));
    let labels = domain.split('.').all(|label| !label.is_empty());
    let good = printable
        && !quoted
        && labels
        && domain.contains('.')
        && !domain.contains('@')
        && !local.is_empty()
        && text.len() <= limits::EMAIL_BYTES_MAX;
    good.then(|| text.to_ascii_lowercase()).ok_or(BadRecipient::Email)
}

macro_rules! as_string {
    ($($name:ident),+) => { $(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )+ };
}
as_string!(E164, Recipient);

crate::code::string_schema!(E164, "+12025550143");
crate::code::string_schema!(Recipient, "+12025550143");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_have_one_form() {
        for good in ["+12025550143", "+4917012345678", "+6831234"] {
            assert_eq!(good.parse::<E164>().unwrap().as_str(), good);
        }
        for bad in [
            "12025550143",
            "+",
            "+1",
            "+0123456789",
            "+1202555014x",
            "+1 202 555 0143",
            "+1234567890123456",
            "",
            "+１２０２５５５０１４３",
        ] {
            assert_eq!(bad.parse::<E164>(), Err(BadRecipient::Number), "{bad}");
        }
    }

    #[test]
    fn a_recipient_is_a_number_an_address_or_a_group() {
        assert!(matches!("+12025550143".parse(), Ok(Recipient::Number(_))));
        assert_eq!("Anna@Example.org".parse(), Ok(Recipient::Email("anna@example.org".to_owned())));
        assert_eq!("group:chat831".parse(), Ok(Recipient::Group("chat831".to_owned())));
        assert_eq!("service:22395".parse(), Recipient::service("22395"));
        assert_eq!("service:urn:biz:1-2".parse(), Recipient::service("urn:biz:1-2"));
        for (bad, why) in [
            ("a@b", BadRecipient::Email),
            ("@example.org", BadRecipient::Email),
            ("a b@example.org", BadRecipient::Email),
            ("a@b@example.org", BadRecipient::Email),
            ("a@example..org", BadRecipient::Email),
            ("group:", BadRecipient::Group),
            ("group:a b", BadRecipient::Group),
            ("chat831", BadRecipient::Number),
            ("22395", BadRecipient::Number),
            ("service:", BadRecipient::Service),
            ("service:a\nb", BadRecipient::Service),
        ] {
            assert_eq!(bad.parse::<Recipient>(), Err(why), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_reads_back_the_same(text in "\\PC{0,40}|\\+[0-9]{5,17}|(group|service):\\PC{0,9}|[a-z]{1,5}@[a-z.]{1,9}") {
            if let Ok(recipient) = text.parse::<Recipient>() {
                prop_assert_eq!(recipient.to_string().parse::<Recipient>(), Ok(recipient));
            }
        }
    }
}
