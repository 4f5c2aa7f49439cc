//! Ids: a prefix that says of what, and a UUIDv7 in base32, so that they sort by time.

use data_encoding::BASE32_DNSSEC;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Length of the part behind the prefix: 128 bits in base32.
const BODY_LEN: usize = 26;

/// Text that is not an id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id of the form {prefix} and 26 characters 0-9a-v")]
pub struct BadId {
    prefix: &'static str,
}

fn body(unix_ms: i64, random: [u8; 10]) -> String {
    let ms = u64::try_from(unix_ms).unwrap_or(0);
    let uuid = uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid();
    BASE32_DNSSEC.encode(uuid.as_bytes())
}

/// One text form only: what decodes must encode to the very same characters.
fn is_body(text: &str) -> bool {
    text.len() == BODY_LEN
        && BASE32_DNSSEC
            .decode(text.as_bytes())
            .is_ok_and(|bytes| BASE32_DNSSEC.encode(&bytes) == text)
}

macro_rules! ids {
    ($( $(#[$doc:meta])+ $name:ident = $prefix:literal, )+) => { $(
        $(#[$doc])+
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        crate::code::string_schema!($name, $prefix);

        impl $name {
            /// What every id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A new id for the given instant. Time and chance are the caller's.
            pub fn new(unix_ms: i64, random: [u8; 10]) -> Self {
                Self(format!("{}{}", $prefix, body(unix_ms, random)))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                match text.strip_prefix($prefix) {
                    Some(body) if is_body(body) => Ok(Self(text.to_owned())),
                    Some(_) | None => Err(BadId { prefix: $prefix }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )+ };
}

ids! {
    /// A customer of the operator.
    TenantId = "ten_",
    /// A number with its Apple account: the unit of the pool.
    PhoneId = "pho_",
    /// A macOS login session that runs one supervisor.
    HostId = "hst_",
    /// One text to one recipient, or from one sender.
    MessageId = "msg_",
    /// An API key.
    KeyId = "key_",
    /// A tenant's webhook endpoint.
    EndpointId = "whk_",
    /// One immutable fact about a message, contact or phone; also the `webhook-id`.
    EventId = "evt_",
    /// One event on its way to one webhook endpoint.
    DeliveryId = "dlv_",
    /// A tenant's text with variables.
    TemplateId = "tpl_",
    /// One text to many recipients.
    BatchId = "bat_",
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let message = MessageId::new(1, [7; 10]);
        assert!(message.as_str().parse::<TenantId>().is_err());
        for bad in [
            "",
            "msg_",
            "msg_0",
            "msg_zzzzzzzzzzzzzzzzzzzzzzzzzz",
            "MSG_00000000000000000000000000",
        ] {
            assert!(bad.parse::<MessageId>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn ids_sort_by_time_and_read_back(a in 0_i64..1 << 47, b in 0_i64..1 << 47, r: [u8; 10], s: [u8; 10]) {
            let (x, y) = (MessageId::new(a, r), MessageId::new(b, s));
            prop_assert_eq!(&x.as_str().parse::<MessageId>().unwrap(), &x);
            if a < b { prop_assert!(x < y); }
        }

        #[test]
        fn only_what_we_write_is_an_id(text in "msg_[0-9a-zA-Z]{24,28}") {
            if let Ok(id) = text.parse::<MessageId>() {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert_eq!(text.len(), 30);
            }
        }
    }
}
