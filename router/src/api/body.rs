//! Request bodies: JSON, announced as such, whole in time, and saying everything once.

use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::{BoxFuture, Either, MapOk};
use futures_util::{StreamExt as _, TryFutureExt as _};
use protocol::api::FieldError;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use tower::{Layer, Service};

use super::fields::escaped;
use crate::error::{ApiError, Code};
use crate::server::AppState;

/// Repeated names that one answer lists.
const REPEATED_NAMED_MAX: usize = 20;

/// A request body: JSON, announced as such.
#[derive(Debug)]
pub(crate) struct JsonBody(pub(crate) Value);

impl FromRequest<AppState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(not_json());
        }
        parse(&bytes_of(request, app).await?).map(Self)
    }
}

/// A request body that may be left out altogether.
#[derive(Debug)]
pub(crate) struct OptionalJsonBody(pub(crate) Value);

impl FromRequest<AppState> for OptionalJsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let json = is_json(request.headers());
        let bytes = bytes_of(request, app).await?;
        if bytes.is_empty() {
            return Ok(Self(Value::Object(Map::new())));
        }
        if !json {
            return Err(not_json());
        }
        parse(&bytes).map(Self)
    }
}

/// The longest body that is read to its end although it is refused.
const READ_AWAY_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How long that may take.
const READ_AWAY_WITHIN: Duration = Duration::from_secs(2);

/// Reads a body that is longer than so many bytes and drops it, so that its sender can read the refusal: most clients send all
/// of a body before they look for an answer, and a connection that is closed meanwhile tells them nothing. Not where the
/// sender waits to be asked for the body, and not without end.
///
/// It stands before every request, so that it is a service and not a function: those are put into a box for each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadAwayLayer(pub(crate) usize);

impl<S> Layer<S> for ReadAwayLayer {
    type Service = ReadAway<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ReadAway { inner, limit: u64::try_from(self.0).unwrap_or(u64::MAX) }
    }
}

/// What [`ReadAwayLayer`] puts around a service.
#[derive(Debug, Clone)]
pub(crate) struct ReadAway<S> {
    inner: S,
    limit: u64,
}

impl<S> Service<Request> for ReadAway<S>
where
    S: Service<Request, Response: IntoResponse>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<
        MapOk<S::Future, fn(S::Response) -> Response>,
        BoxFuture<'static, Result<Response, S::Error>>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let headers = request.headers();
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let length = length.and_then(|length| length.parse::<u64>().ok()).unwrap_or(0);
        let long = length > self.limit && length <= READ_AWAY_BYTES_MAX;
        if !long || headers.contains_key(header::EXPECT) {
            return Either::Left(self.inner.call(request).map_ok(IntoResponse::into_response));
        }
        Either::Right(Box::pin(async {
            let mut body = request.into_body().into_data_stream();
            let away = async { while let Some(Ok(_dropped)) = body.next().await {} };
            // Whether it came to its end or not, the answer is the same.
            drop(tokio::time::timeout(READ_AWAY_WITHIN, away).await);
            Ok(ApiError::new(Code::BodyTooLarge).into_response())
        }))
    }
}

fn not_json() -> ApiError {
    ApiError::new(Code::UnsupportedMediaType).detail("Send Content-Type: application/json.")
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let media_type = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

async fn bytes_of(request: Request, app: &AppState) -> Result<Bytes, ApiError> {
    // Half of what the whole request may take, so that the caller is told what was slow, and that nothing was done.
    let wait = Duration::from_millis(app.config.limits.request_timeout_ms / 2);
    let Ok(read) = tokio::time::timeout(wait, Bytes::from_request(request, app)).await else {
        return Err(ApiError::new(Code::BodyTooSlow));
    };
    read.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return ApiError::new(Code::BodyTooLarge);
        }
        ApiError::new(Code::MalformedJson).detail("The body ended too early.")
    })
}

pub(super) fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let mut repeated = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = Once { place: &Place::Top, repeated: &mut repeated }
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value))
        .map_err(|error| {
            // Where, not what: the body may hold the text of a message.
            ApiError::new(Code::MalformedJson).detail(format!(
                "It is not JSON at line {}, column {}.",
                error.line(),
                error.column()
            ))
        })?;
    if repeated.is_empty() {
        return Ok(value);
    }
    Err(ApiError::invalid(repeated))
}

/// Where in a body something stands; written out only when it is complained about.
enum Place<'a> {
    Top,
    Field(&'a Place<'a>, &'a str),
    Entry(&'a Place<'a>, usize),
}

impl Place<'_> {
    fn pointer(&self) -> String {
        match self {
            Self::Top => String::new(),
            Self::Field(above, name) => format!("{}/{}", above.pointer(), escaped(name)),
            Self::Entry(above, index) => format!("{}/{index}", above.pointer()),
        }
    }
}

/// Reads a value and notes names that an object holds twice. Readers disagree on which of the two counts (RFC 8259,
/// section 4), so a body that says two things is refused instead of being read one way.
struct Once<'a> {
    place: &'a Place<'a>,
    repeated: &'a mut Vec<FieldError>,
}

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let place = Place::Entry(self.place, out.len());
            let entry = Once { place: &place, repeated: &mut *self.repeated };
            let Some(value) = entries.next_element_seed(entry)? else { return Ok(out.into()) };
            out.push(value);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let place = Place::Field(self.place, &name);
            let field = Once { place: &place, repeated: &mut *self.repeated };
            let value = fields.next_value_seed(field)?;
            if out.contains_key(&name) && self.repeated.len() < REPEATED_NAMED_MAX {
                self.repeated.push(FieldError {
                    pointer: place.pointer(),
                    code: "repeated".to_owned(),
                    detail: "It is given twice.".to_owned(),
                });
            }
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_json_is_told_by_place_and_never_by_content() {
        for bad in [
            "",
            " ",
            "{",
            "{\"a\": ",
            "{} {}",
            "{\"a\": NaN}",
            "{\"a\": 1e999}",
            "{\"a\": 01}",
            "{'a': 1}",
            "{\"a\": 1,}",
            "{\"secret\": \"\\ud800\"}",
            "{\"secret\": \"\\udc00x\"}",
            "{\"secret\": \"a\nb\"}",
            "\u{feff}{}",
            "nul",
            &"[".repeat(10_000),
            &"{\"a\":".repeat(10_000),
        ] {
            let error = parse(bad.as_bytes()).unwrap_err();
            assert_eq!(error.code(), Code::MalformedJson, "{bad:.40}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
        assert_eq!(parse(b"{\"a\": \"\xff\"}").unwrap_err().code(), Code::MalformedJson);
    }

    #[test]
    fn a_name_given_twice_is_refused_by_its_pointer() {
        let body = br#"{"a": 1, "b": {"x/y": [0, {"k": 1, "k": null}]}, "a": 1}"#;
        let error = parse(body).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
        let shown = format!("{error:?}");
        assert!(shown.contains("\"/b/x~1y/1/k\"") && shown.contains("\"/a\""), "{shown}");
        let many = format!("{{{}\"a\": 1}}", "\"a\": 1, ".repeat(1_000));
        assert!(format!("{:?}", parse(many.as_bytes()).unwrap_err()).len() < 10_000);
    }

    proptest! {
        #[test]
        fn whatever_says_everything_once_reads_as_it_always_did(text in "\\PC{0,60}|[\\[\\]{}:,\"0-9eE.+\\- a-c]{0,40}") {
            if let Ok(value) = parse(text.as_bytes()) {
                prop_assert_eq!(value, serde_json::from_str::<Value>(&text).unwrap());
            }
        }
    }
}
