//! What the API answers when it does not do what was asked: an outside message and, kept apart, the cause.
//!
//! Handlers return [`ApiError`]; [`answer`] turns every failed answer, whoever made it, into a problem (RFC 9457) with
//! the request's id, and logs the cause once. Nothing of a cause is ever sent.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use data_encoding::BASE32_DNSSEC;
use futures_util::FutureExt as _;
use protocol::UnixMs;
use protocol::api::{FieldError, PROBLEM_JSON, Problem};
use tracing::Instrument as _;

use crate::billing::Refusal;
use crate::clock;
use crate::server::AppState;
use crate::store::StoreError;

/// The header that carries a request's id.
pub const REQUEST_ID: &str = "x-request-id";
/// How long a caller is asked to wait when the store cannot take anything now.
const UNAVAILABLE_RETRY_S: u64 = 2;

/// The kinds of problem; each has one status, one stable code and one title.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The body is not JSON.
    MalformedJson,
    /// The body is not what it is announced as.
    MalformedBody,
    /// The batch stands where this cannot be done.
    BatchState,
    /// Fields, parameters or headers are wrong; `errors` names each.
    InvalidRequest,
    /// The `Idempotency-Key` header cannot be used.
    InvalidIdempotencyKey,
    /// No key, or one that does not open anything.
    Unauthenticated,
    /// The key may not do this.
    Forbidden,
    /// The key may not be used from where it was used.
    AddressNotAllowed,
    /// The key has ended or been replaced already.
    KeyEnded,
    /// A provider of SMS cannot be used as it is set up.
    ProviderNotReady,
    /// A call of a provider's that is not signed by it.
    NotSigned,
    /// The webhook endpoint is switched off.
    EndpointDisabled,
    /// The enrolment token does not exist, was used or is too old.
    InvalidEnrolmentToken,
    /// There is no such thing, or it is another tenant's.
    NotFound,
    /// The route does not know this method.
    MethodNotAllowed,
    /// A thing of this name exists.
    AlreadyExists,
    /// The message has ended; nothing is left to cancel.
    NotCancelable,
    /// The message may have been sent, whole or in part: sending it again could double it.
    NotRetryable,
    /// It is known what became of the message.
    NotUnknown,
    /// No host or phone can take the phone's place.
    CannotFailOver,
    /// A request with the same idempotency key is still running.
    IdempotencyKeyInUse,
    /// The idempotency key was used for another body.
    IdempotencyKeyReused,
    /// The tenant has as many of these as it may.
    LimitReached,
    /// The body did not come in time; nothing was done.
    BodyTooSlow,
    /// The body is longer than the limit.
    BodyTooLarge,
    /// The body is not announced as JSON.
    UnsupportedMediaType,
    /// Too many requests with this key.
    RateLimited,
    /// The body is not signed by who is said to have sent it.
    InvalidSignature,
    /// The plan's messages of this month are used up.
    QuotaExceeded,
    /// The credit does not pay for it.
    InsufficientCredit,
    /// A fault of ours.
    Internal,
    /// Not now; nothing was done.
    Unavailable,
    /// It took longer than the limit. What was asked may have been done.
    Timeout,
}

impl Code {
    /// Status, code and title.
    pub const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::MalformedJson => {
                (StatusCode::BAD_REQUEST, "malformed_json", "The body is not JSON")
            }
            Self::MalformedBody => {
                (StatusCode::BAD_REQUEST, "malformed_body", "The body cannot be read")
            }
            Self::BatchState => {
                (StatusCode::CONFLICT, "batch_state", "The batch stands where this cannot be done")
            }
            Self::InvalidRequest => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "The request is not valid")
            }
            Self::InvalidIdempotencyKey => (
                StatusCode::BAD_REQUEST,
                "invalid_idempotency_key",
                "The idempotency key cannot be used",
            ),
            Self::Unauthenticated => {
                (StatusCode::UNAUTHORIZED, "unauthenticated", "A valid key is needed")
            }
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "The key may not do this"),
            Self::AddressNotAllowed => (
                StatusCode::FORBIDDEN,
                "address_not_allowed",
                "The key may not be used from this address",
            ),
            Self::ProviderNotReady => {
                (StatusCode::CONFLICT, "provider_not_ready", "The provider cannot be used")
            }
            Self::NotSigned => {
                (StatusCode::FORBIDDEN, "not_signed", "The signature is not the provider's")
            }
            Self::EndpointDisabled => {
                (StatusCode::CONFLICT, "endpoint_disabled", "The endpoint is switched off")
            }
            Self::KeyEnded => (StatusCode::CONFLICT, "key_ended", "The key has ended already"),
            Self::InvalidEnrolmentToken => (
                StatusCode::UNAUTHORIZED,
                "invalid_enrolment_token",
                "The enrolment token cannot be used",
            ),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "There is no such resource"),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "The route does not know this method",
            ),
            Self::AlreadyExists => {
                (StatusCode::CONFLICT, "already_exists", "One of this name exists")
            }
            Self::NotCancelable => {
                (StatusCode::CONFLICT, "not_cancelable", "The message has ended already")
            }
            Self::NotRetryable => {
                (StatusCode::CONFLICT, "not_retryable", "The message may have been sent")
            }
            Self::NotUnknown => {
                (StatusCode::CONFLICT, "not_unknown", "It is known what became of the message")
            }
            Self::CannotFailOver => {
                (StatusCode::CONFLICT, "cannot_fail_over", "Nothing can take the phone's place")
            }
            Self::IdempotencyKeyInUse => (
                StatusCode::CONFLICT,
                "idempotency_key_in_use",
                "A request with this idempotency key is still running",
            ),
            Self::IdempotencyKeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "The idempotency key was used for another request",
            ),
            Self::LimitReached => (StatusCode::CONFLICT, "limit_reached", "A limit is reached"),
            Self::BodyTooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "body_too_slow", "The body did not come in time")
            }
            Self::BodyTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too long")
            }
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body must be JSON",
            ),
            Self::RateLimited => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limited", "Too many requests")
            }
            Self::InvalidSignature => {
                (StatusCode::BAD_REQUEST, "invalid_signature", "The signature is not valid")
            }
            Self::QuotaExceeded => {
                (StatusCode::TOO_MANY_REQUESTS, "quota_exceeded", "The plan's messages are used up")
            }
            Self::InsufficientCredit => (
                StatusCode::PAYMENT_REQUIRED,
                "insufficient_credit",
                "The credit does not pay for it",
            ),
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side")
            }
            Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The service is not available now")
            }
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout", "The request took too long"),
        }
    }

    /// The problem that a bare status stands for, when it was not we who refused.
    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthenticated,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            StatusCode::SERVICE_UNAVAILABLE => Self::Unavailable,
            other if other.is_client_error() => Self::InvalidRequest,
            _ => Self::Internal,
        }
    }
}

/// A refusal or a failure, with what the caller is told and what is only logged.
#[derive(Clone, Debug)]
pub struct ApiError {
    code: Code,
    detail: Option<Cow<'static, str>>,
    errors: Vec<FieldError>,
    retry_after_s: Option<u64>,
    resets_at: Option<UnixMs>,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl ApiError {
    /// A problem of this kind with nothing more to say.
    pub fn new(code: Code) -> Self {
        Self {
            code,
            detail: None,
            errors: Vec::new(),
            retry_after_s: None,
            resets_at: None,
            cause: None,
        }
    }

    /// With a sentence for the caller.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With what is to be logged and never sent.
    #[must_use]
    pub fn caused_by(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// With the time after which it is worth trying again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Fields that are wrong, all of them.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(Code::InvalidRequest) }
    }

    /// There is no such resource, or it is another tenant's: the same answer.
    pub fn not_found() -> Self {
        Self::new(Code::NotFound)
    }

    /// There is no quota or no credit for it.
    pub fn refused(refusal: Refusal, now: UnixMs) -> Self {
        match refusal {
            Refusal::QuotaExceeded { quota, left, resets_at } => {
                let detail = format!(
                    "The plan has {quota} messages a month, of which {left} are left. They begin anew at {resets_at}."
                );
                let seconds = u64::try_from(resets_at.since(now)).unwrap_or(0).div_ceil(1_000);
                Self {
                    resets_at: Some(resets_at),
                    ..Self::new(Code::QuotaExceeded).detail(detail).retry_after(seconds)
                }
            }
            Refusal::InsufficientCredit { credit, needed, .. } => Self::new(
                Code::InsufficientCredit,
            )
            .detail(format!(
                "It costs {needed} credits and {credit} are there. Whoever pays has to add some."
            )),
        }
    }

    /// The kind of problem.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The first field that is wrong.
    pub(crate) fn first(&self) -> Option<&FieldError> {
        self.errors.first()
    }

    /// Every field that is wrong, as a part of a body that begins at `above`.
    pub(crate) fn into_errors(self, above: &str) -> Vec<FieldError> {
        let below = |error: FieldError| FieldError {
            pointer: format!("{above}{}", error.pointer),
            ..error
        };
        self.errors.into_iter().map(below).collect()
    }

    fn problem(&self, request_id: &str) -> Problem {
        let (status, code, title) = self.code.parts();
        Problem {
            kind: format!("urn:switchboard:problem:{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.as_ref().map(ToString::to_string),
            code: code.to_owned(),
            request_id: Some(request_id.to_owned()),
            errors: self.errors.clone(),
            resets_at: self.resets_at,
        }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code.parts().1)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_unavailable() {
            return Self::new(Code::Unavailable)
                .detail("Nothing was done; try again.")
                .retry_after(UNAVAILABLE_RETRY_S)
                .caused_by(error);
        }
        Self::new(Code::Internal).caused_by(error)
    }
}

impl IntoResponse for ApiError {
    /// The status alone, with the error beside it; [`answer`] writes the body, because it knows the request's id.
    fn into_response(self) -> Response {
        let mut response = self.code.parts().0.into_response();
        if self.code == Code::BodyTooLarge {
            // The rest of the body is not read, so the connection ends here. A client that is not told would use it again.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The id of a request, for whoever handles it.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

/// Around every route: gives the request its id, bounds its time, catches a panic, and turns failures into problems.
pub async fn answer(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let request_id = format!("req_{}", BASE32_DNSSEC.encode(&clock::random::<16>()));
    request.extensions_mut().insert(RequestId(request_id.clone()));
    let method = known(request.method());
    // The route, not the path: labels must not grow with ids.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!("request", %request_id, method, route);

    let began = tokio::time::Instant::now();
    let limit = Duration::from_millis(app.config.limits.request_timeout_ms)
        + crate::api::longer(method, &route);
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone());
    let response = match tokio::time::timeout(limit, handled).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => ApiError::new(Code::Internal).caused_by(Panicked).into_response(),
        Err(_elapsed) => ApiError::new(Code::Timeout).into_response(),
    };

    let mut response = span.in_scope(|| finish(response, &request_id));
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let status = response.status();
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| tracing::debug!(status = status.as_u16(), ms, "answered"));
    metrics::counter!("switchboard_http_requests_total",
 "method" => method, "route" => route.clone(), "status" => status.as_u16().to_string())
    .increment(1);
    metrics::histogram!("switchboard_http_request_seconds", "route" => route)
        .record(began.elapsed());
    response
}

/// The method as a label. Callers may make up methods of their own, and each would be a time series for ever.
fn known(method: &Method) -> &'static str {
    [
        Method::GET,
        Method::POST,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::PUT,
        Method::PATCH,
    ]
    .iter()
    .zip(["GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"])
    .find_map(|(known, label)| (known == method).then_some(label))
    .unwrap_or("other")
}

#[derive(Debug, thiserror::Error)]
#[error("the handler panicked")]
struct Panicked;

fn finish(mut response: Response, request_id: &str) -> Response {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let error = response
        .extensions_mut()
        .remove::<ApiError>()
        .unwrap_or_else(|| ApiError::new(Code::of_status(status)));
    log(&error);
    let problem = error.problem(request_id);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut out = Response::new(Body::from(body));
    *out.status_mut() = error.code.parts().0;
    // What the refusing layer said in headers (Allow, RateLimit, WWW-Authenticate) stays said.
    for (name, value) in response.headers() {
        if *name != header::CONTENT_LENGTH && *name != header::CONTENT_TYPE {
            out.headers_mut().append(name, value.clone());
        }
    }
    out.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    if let Some(seconds) = error.retry_after_s {
        out.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.code == Code::Unauthenticated {
        out.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    out
}

fn log(error: &ApiError) {
    let code = error.code.parts().1;
    let Some(cause) = &error.cause else {
        tracing::debug!(code, "refused");
        return;
    };
    let mut chain = cause.to_string();
    let mut source = cause.source();
    while let Some(next) = source {
        chain.push_str(": ");
        chain.push_str(&next.to_string());
        source = next.source();
    }
    tracing::error!(code, cause = chain, "request failed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_unavailable_and_a_damaged_row_is_internal() {
        assert_eq!(ApiError::from(StoreError::Full).code(), Code::Unavailable);
        assert_eq!(ApiError::from(StoreError::Busy).code(), Code::Unavailable);
        assert_eq!(ApiError::from(StoreError::Corrupt("x".to_owned())).code(), Code::Internal);
    }

    #[test]
    fn a_cause_is_never_sent() {
        let error = ApiError::from(StoreError::Corrupt("the secret cause".to_owned()));
        let problem = serde_json::to_string(&error.problem("req_1")).unwrap();
        assert!(!problem.contains("secret cause"), "{problem}");
    }
}
