//! Where Stripe posts its events.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::api::{Problem, StripeTaken};

use super::json;
use crate::billing::invoice;
use crate::billing::stripe::{self, News, Unsigned};
use crate::error::{ApiError, Code};
use crate::server::AppState;
use crate::store::stripe::{Outcome, take};

const SIGNATURE: &str = "stripe-signature";

/// Take an event of Stripe's
///
/// For Stripe alone, which signs what it posts. Not there unless the operator has set it up. The same event again changes
/// nothing; one that concerns nothing here is answered with 200 as well.
#[utoipa::path(post, path = "/v1/stripe/webhook", tag = "billing",
    request_body(content = Object, description = "The event, as Stripe has signed it."),
    params(("Stripe-Signature" = Option<String>, Header, description = "`t=SECONDS,v1=HEX`: HMAC-SHA256 over `SECONDS.BODY`.")),
    responses(
        (status = 200, description = "Taken.", body = StripeTaken),
        (status = 400, description = "Not signed by Stripe within five minutes, or not an event.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Not set up.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long.", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now: it is to be sent again.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn webhook(
    State(app): State<AppState>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let stripe = app.config.stripe.as_ref().ok_or_else(ApiError::not_found)?;
    let now = app.clock.now();
    let header = headers.get(SIGNATURE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if let Err(unsigned) = stripe::verify(header, &body, &stripe.secret, now.0.div_euclid(1_000)) {
        let (why, detail) = match unsigned {
            Unsigned::Malformed => {
                ("malformed", "There is no Stripe-Signature of the form t=…,v1=….")
            }
            Unsigned::Stale => {
                ("stale", "It was signed more than five minutes ago, or later than now.")
            }
            Unsigned::Wrong => ("wrong", "No signature fits the body and the endpoint's secret."),
        };
        tracing::warn!(why, "stripe: a body that it has not signed was refused");
        count("unsigned");
        return Err(ApiError::new(Code::InvalidSignature).detail(detail));
    }
    let Some(mut event) =
        serde_json::from_slice(&body).ok().and_then(|value| stripe::read(&value, stripe))
    else {
        count("unreadable");
        return Err(ApiError::new(Code::MalformedJson).detail("It is not an event of Stripe's."));
    };
    if let (News::PaidMore { invoice }, Some(api)) = (&event.news, &stripe.api) {
        let credits = invoice::credits(api, invoice, &stripe.credits).await.map_err(|why| {
            count("unanswered");
            tracing::warn!(event = %event.id, invoice, why, "stripe: it was asked for the lines of an invoice in vain");
            ApiError::new(Code::Unavailable).detail("Stripe was asked for the invoice's lines in vain.")
        })?;
        event.news = News::Paid { credits, reference: invoice.clone() };
    }
    let (plans, told) = (Arc::clone(&app.config.plans), event.clone());
    let outcome = app.store.write(move |tx| take(tx, &told, &plans, now)).await?;
    count(outcome.as_str());
    let (id, kind, outcome_word) = (&event.id, &event.kind, outcome.as_str());
    match outcome {
        Outcome::UnknownCustomer
        | Outcome::UnknownTenant
        | Outcome::UnknownPrice
        | Outcome::Incomplete
        | Outcome::TooMuch => {
            tracing::warn!(event = %id, kind = %kind, outcome = outcome_word, "stripe: an event changed nothing");
        }
        Outcome::PlanSet
        | Outcome::CreditAdded
        | Outcome::Bound
        | Outcome::Repeated
        | Outcome::Outdated
        | Outcome::Ignored => {
            tracing::info!(event = %id, kind = %kind, outcome = outcome_word, "stripe: an event was taken");
        }
    }
    Ok(json(StatusCode::OK, &StripeTaken { outcome: outcome_word.to_owned() }))
}

fn count(outcome: &'static str) {
    metrics::counter!("switchboard_stripe_events_total", "outcome" => outcome).increment(1);
}
