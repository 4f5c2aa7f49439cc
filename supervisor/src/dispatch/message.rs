//! The body of a request to send: checked field by field, so that every wrong one is named at once.

use protocol::api::FieldError;
use protocol::pipe::{Conversation, OutboundAttachment, Send};
use protocol::{Channel, Class, MessageId, Recipient, UnixMs, limits};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A message whose request does not say otherwise must be started within a minute: whoever asks is waiting.
const START_WITHIN_MS: i64 = 60_000;

/// Why a body was refused.
#[derive(Debug, PartialEq)]
pub(super) enum Refused {
    /// These fields are wrong.
    Fields(Vec<FieldError>),
    /// There is no lease to take an epoch from, or to compare one with.
    NoLease,
}

/// What is known of a phone's epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Epochs {
    /// That of the lease that it holds now.
    pub(super) held: Option<u64>,
    /// That of its newest lease, which may be over for the moment.
    pub(super) newest: Option<u64>,
}

/// The body as an object; the error says where it is broken, never what stands there.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_),
        ) => Err("the body must be a JSON object".to_owned()),
        Err(error) => {
            Err(format!("the body is not JSON: line {} column {}", error.line(), error.column()))
        }
    }
}

struct Fields {
    object: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    fn wrong(&mut self, field: &str, code: &str, detail: impl Into<String>) {
        self.errors.push(FieldError {
            pointer: format!("/{field}"),
            code: code.to_owned(),
            detail: detail.into(),
        });
    }

    /// The field's value, if it is there and not null.
    fn take<T: DeserializeOwned>(&mut self, field: &str) -> Option<T> {
        let value = self.object.remove(field).filter(|value| !value.is_null())?;
        match serde_json::from_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(field, "invalid", error.to_string());
                None
            }
        }
    }

    fn need<T: DeserializeOwned>(&mut self, field: &str) -> Option<T> {
        if self.object.get(field).is_none_or(Value::is_null) {
            self.wrong(field, "required", "must be given");
            return None;
        }
        self.take(field)
    }
}

/// Checks a body. The epoch of the phone's present lease is used when the body names none; `chance` makes the message's
/// id when the body has none.
///
/// An epoch that nobody has granted is refused here: a bridge believes what it is sent, and one message from the future
/// would make it refuse every lease that comes before it, for good.
pub(super) fn check(
    object: Map<String, Value>,
    epochs: Epochs,
    now: UnixMs,
    chance: [u8; 10],
) -> Result<Send, Refused> {
    let mut fields = Fields { object, errors: Vec::new() };
    let message = fields.take("message").unwrap_or_else(|| MessageId::new(now.0, chance));
    let attempt: u32 = fields.take("attempt").unwrap_or(1);
    if attempt == 0 {
        fields.wrong("attempt", "out_of_range", "attempts are numbered from 1");
    }
    let epoch: Option<u64> = fields.take("epoch");
    if let (Some(epoch), Some(newest)) = (epoch, epochs.newest)
        && epoch > newest
    {
        let detail = format!("is newer than the phone's lease, whose epoch is {newest}");
        fields.wrong("epoch", "out_of_range", detail);
    }
    let to: Option<Recipient> = fields.need("to");
    let text: String = fields.take("text").unwrap_or_default();
    let attachments: Vec<OutboundAttachment> = fields.take("attachments").unwrap_or_default();
    if attachments.len() > limits::ATTACHMENTS_MAX {
        let detail = format!("at most {} attachments", limits::ATTACHMENTS_MAX);
        fields.wrong("attachments", "too_many", detail);
    }
    if text.chars().count() > limits::TEXT_CHARS_MAX {
        let detail = format!("at most {} characters", limits::TEXT_CHARS_MAX);
        fields.wrong("text", "too_long", detail);
    }
    let text_is_wrong = fields.errors.iter().any(|error| error.pointer == "/text");
    if text.is_empty() && attachments.is_empty() && !text_is_wrong {
        fields.wrong("text", "required", "must not be empty without attachments");
    }
    let route: Vec<Channel> =
        fields.take("route").unwrap_or_else(|| vec![Channel::Imessage, Channel::Sms]);
    if route.is_empty() {
        fields.wrong("route", "required", "must name at least one channel");
    }
    let class = fields.take("class").unwrap_or(Class::Transactional);
    let start_before = fields.take("start_before").unwrap_or_else(|| now.plus_ms(START_WITHIN_MS));
    let conversation: Option<Conversation> = fields.take("conversation");
    if let (Some(to), true) = (to, fields.errors.is_empty()) {
        let epoch = match epoch {
            Some(epoch) => epochs.newest.and(Some(epoch)),
            None => epochs.held,
        }
        .ok_or(Refused::NoLease)?;
        return Ok(Send {
            message,
            attempt,
            epoch,
            to,
            text,
            attachments,
            route,
            class,
            start_before,
            conversation,
        });
    }
    Err(Refused::Fields(fields.errors))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: UnixMs = UnixMs(1_795_348_800_000);
    const HELD: Epochs = Epochs { held: Some(7), newest: Some(7) };

    fn pointers(body: &Value) -> Vec<String> {
        let object = object(body.to_string().as_bytes()).unwrap();
        match check(object, HELD, NOW, [0; 10]) {
            Err(Refused::Fields(errors)) => errors.into_iter().map(|error| error.pointer).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_short_body_is_filled_in() {
        let object = object(br#"{"to":"+12025550100","text":"hi","colour":1}"#).unwrap();
        let send = check(object, HELD, NOW, [0; 10]).unwrap();
        assert_eq!((send.attempt, send.epoch), (1, 7));
        assert_eq!(send.start_before, NOW.plus_ms(60_000));
        assert_eq!(send.route, [Channel::Imessage, Channel::Sms]);
    }

    #[test]
    fn an_epoch_comes_from_a_lease_and_never_from_the_future() {
        let with = |epoch: Option<u64>, epochs: Epochs| {
            let body = json!({"to": "+12025550100", "text": "hi", "epoch": epoch}).to_string();
            check(object(body.as_bytes()).unwrap(), epochs, NOW, [0; 10]).map(|send| send.epoch)
        };
        let over = Epochs { held: None, newest: Some(7) };
        assert_eq!(with(None, HELD), Ok(7));
        assert_eq!(with(Some(7), HELD), Ok(7));
        // The bridge knows best what is stale.
        assert_eq!(with(Some(3), HELD), Ok(3));
        assert_eq!(with(None, over), Err(Refused::NoLease));
        assert_eq!(with(Some(7), over), Ok(7));
        assert_eq!(with(None, Epochs::default()), Err(Refused::NoLease));
        assert_eq!(with(Some(3), Epochs::default()), Err(Refused::NoLease));
        for future in [8, u64::MAX] {
            for epochs in [HELD, over] {
                let Err(Refused::Fields(errors)) = with(Some(future), epochs) else {
                    panic!("{future} was taken");
                };
                assert_eq!(errors[0].pointer, "/epoch");
            }
        }
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let table = [
            (json!({}), vec!["/to", "/text"]),
            (json!({"to": 7, "text": "x"}), vec!["/to"]),
            (json!({"to": "nonsense", "text": 5}), vec!["/to", "/text"]),
            (json!({"to": "+12025550100", "text": ""}), vec!["/text"]),
            (json!({"to": "+12025550100", "text": "x".repeat(20_001)}), vec!["/text"]),
            (json!({"to": "+12025550100", "text": "x", "attempt": 0}), vec!["/attempt"]),
            (json!({"to": "+12025550100", "text": "x", "attempt": -1}), vec!["/attempt"]),
            (json!({"to": "+12025550100", "text": "x", "message": "x"}), vec!["/message"]),
            (json!({"to": "+12025550100", "text": "x", "route": []}), vec!["/route"]),
            (json!({"to": "+12025550100", "text": "x", "route": ["fax"]}), vec!["/route"]),
            (json!({"to": "+12025550100", "text": "x", "class": "spam"}), vec!["/class"]),
            (json!({"to": "+12025550100", "text": "x", "start_before": 5}), vec!["/start_before"]),
            (json!({"to": "+12025550100", "text": "x", "epoch": "1"}), vec!["/epoch"]),
        ];
        for (body, wanted) in table {
            assert_eq!(pointers(&body), wanted, "{body}");
        }
    }

    #[test]
    fn what_is_not_an_object_is_refused_without_being_repeated() {
        for body in ["", "[]", "7", "{\"text\":\"secret", "null"] {
            let error = object(body.as_bytes()).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
