//! Messages that two phones of an operator exchange to see that both work. Nobody asked for them and nobody is told of
//! them, so they are known by themselves: the id has a sign in it, and the text is nothing but the id.

use data_encoding::BASE32_DNSSEC;

use crate::{MessageId, UnixMs};

/// What the text begins with.
const MARK: &str = "Switchboard canary ";
/// Stands where other ids have 48 bits of chance.
const SIGN: [u8; 6] = *b"canary";
/// Where in a UUIDv7: after its time, its version and its variant, and the first of its chance.
const SIGN_AT: std::ops::Range<usize> = 9..15;

/// The id of a new one. Time and chance are the caller's.
pub fn id(at: UnixMs, chance: [u8; 4]) -> MessageId {
    let [first @ .., last] = chance;
    let mut random = [0; 10];
    let parts = first.into_iter().chain(SIGN).chain([last]);
    for (place, byte) in random.iter_mut().zip(parts) {
        *place = byte;
    }
    MessageId::new(at.0, random)
}

/// Whether this is the id of one.
pub fn is_id(id: &MessageId) -> bool {
    id.as_str()
        .strip_prefix(MessageId::PREFIX)
        .and_then(|body| BASE32_DNSSEC.decode(body.as_bytes()).ok())
        .is_some_and(|bytes| bytes.get(SIGN_AT) == Some(&SIGN[..]))
}

/// What is sent.
pub fn text(id: &MessageId) -> String {
    format!("{MARK}{id}")
}

/// The id of the one whose whole text this is.
pub fn of_text(text: &str) -> Option<MessageId> {
    text.strip_prefix(MARK)?.parse().ok().filter(is_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_known_by_its_id_and_its_text_and_nothing_else_is() {
        let canary = id(UnixMs(1_795_000_000_000), [0xff; 4]);
        assert!(is_id(&canary));
        assert_eq!(of_text(&text(&canary)), Some(canary.clone()));
        let other = MessageId::new(1_795_000_000_000, [7; 10]);
        assert!(!is_id(&other));
        for not in [
            text(&other),
            format!("{} STOP", text(&canary)),
            format!(" {}", text(&canary)),
            canary.to_string(),
            MARK.to_owned(),
            "STOP".to_owned(),
        ] {
            assert_eq!(of_text(&not), None, "{not}");
        }
        assert_ne!(id(UnixMs(1), [0; 4]), id(UnixMs(1), [1, 0, 0, 0]));
        assert_ne!(id(UnixMs(1), [0; 4]), id(UnixMs(1), [0, 0, 0, 1]));
    }
}
