//! What would become of a message, without sending it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use protocol::api::{CheckedMessage, CreateMessage, Problem, RuleName, RuleVerdict};
use protocol::{Reason, UnixMs};

use super::messages::checked;
use super::{JsonBody, json};
use crate::auth::{Caller, Scope};
use crate::billing::Refusal;
use crate::compliance::place::Places;
use crate::compliance::{self, Facts, SEND, Verdict, content};
use crate::dispatch::{self, Preview};
use crate::error::ApiError;
use crate::facts::{self, Subject};
use crate::server::AppState;
use crate::store::credit;
use crate::store::messages::{self, NewMessage};

/// Check a message without sending it
///
/// Every rule's verdict, the first instant at which they all allow it, and the phone that would send it, or the provider
/// where no phone can. A message with `send_at` is judged as it would be then.
#[utoipa::path(post, path = "/v1/messages:check", tag = "messages", request_body = CreateMessage,
    security(("api_key" = [])),
    responses(
        (status = 200, description = "What would become of it.", body = CheckedMessage),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn check(
    State(app): State<AppState>,
    caller: Caller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let now = app.clock.now();
    let new = checked(body, caller.test, &app.config.messages, now)?;
    let shared = AppState::clone(&app);
    let answer = app
        .store
        // Nothing is written; the pool belongs to who writes.
        .transact(move |tx| {
            let new = new.written(tx, &caller.tenant)?;
            let at = new.send_at.unwrap_or(now);
            let subject = Subject {
                recipient: &new.recipient,
                text: &new.text,
                class: new.class,
                internal: false,
                test: new.test,
                accepted_at: now,
                expires_at: new.expires_at,
            };
            let facts = match facts::gather(tx, &shared.config.compliance, &caller.tenant, &subject)
            {
                Err(error) if error.is_unavailable() => return Err(ApiError::from(error)),
                facts => facts.ok(),
            };
            let class = facts.as_ref().map_or(new.class, |facts| facts.applied(at.0).class);
            let preview = dispatch::preview(tx, &shared, &caller.tenant, (&new, class), now)?;
            let accepted = if new.test {
                let played = !messages::has_sandbox(tx, &caller.tenant)?;
                Accepted { played, refusal: None }
            } else {
                let refusal = credit::would_refuse(tx, &caller.tenant, now)?;
                Accepted { played: false, refusal }
            };
            Ok(report(facts.as_ref(), &new, (preview, accepted), at))
        })
        .await?;
    Ok(json(StatusCode::OK, &answer))
}

/// What accepting it would come to.
struct Accepted {
    /// No phone is asked: where there is no sandbox, the story of a test key's message is played.
    played: bool,
    /// Whoever pays has no room for it.
    refusal: Option<Refusal>,
}

fn report(
    facts: Option<&Facts>,
    new: &NewMessage,
    (preview, accepted): (Preview, Accepted),
    at: UnixMs,
) -> CheckedMessage {
    let Preview { phone, providers } = preview;
    let mut verdict = compliance::check(facts.ok_or(&()), at.0);
    let mut rules: Vec<RuleVerdict> = facts
        .map(|facts| compliance::explain(facts, at.0))
        .unwrap_or_default()
        .into_iter()
        .map(|(name, verdict)| rule(name, verdict))
        .collect();
    let pays = match accepted.refusal {
        Some(Refusal::QuotaExceeded { .. }) => Verdict::block(Reason::QuotaExceeded),
        Some(Refusal::InsufficientCredit { .. }) => Verdict::block(Reason::InsufficientCredit),
        None => SEND,
    };
    rules.push(rule(RuleName::Account, pays));
    if accepted.refusal.is_some() && !matches!(verdict, Verdict::Block { .. }) {
        // It would be refused at once, whatever it might wait for.
        verdict = pays;
    }
    let (chosen, phones) = match phone {
        Ok(chosen) => (Some(chosen), SEND),
        Err(_) if accepted.played => (None, SEND),
        Err(no_phone) => (None, no_phone),
    };
    rules.push(rule(RuleName::Phone, phones));
    if matches!(verdict, Verdict::Send { .. }) && !matches!(phones, Verdict::Send { .. }) {
        verdict = phones;
    }
    let next_allowed_at = match verdict {
        Verdict::Send { .. } => Some(at),
        Verdict::Hold { until_ms, .. } if until_ms < new.expires_at.0 => Some(UnixMs(until_ms)),
        Verdict::Hold { .. } | Verdict::Block { .. } | Verdict::Expire => None,
    };
    let time_zones = match facts.map(|facts| &facts.places) {
        Some(Places::Known(places)) => {
            let mut names: Vec<String> = places
                .iter()
                .filter_map(|place| place.zone.iana_name())
                .map(ToOwned::to_owned)
                .collect();
            names.sort();
            names.dedup();
            names
        }
        Some(Places::Refused | Places::Unreadable) | None => Vec::new(),
    };
    let whole = rule(RuleName::Phone, verdict);
    CheckedMessage {
        verdict: whole.verdict,
        reason: whole.reason,
        detail: whole.detail,
        next_allowed_at,
        class: facts.map_or(new.class, |facts| facts.applied(at.0).class),
        rules,
        time_zones,
        content: content::report(&new.text),
        from: chosen.as_ref().map(|(_, number)| number.clone()),
        route: chosen.as_ref().map(|(choice, _)| choice.route.clone()).unwrap_or_default(),
        phone: chosen.map(|(choice, _)| choice.phone),
        providers,
        rules_version: facts::versions().0.to_owned(),
    }
}

fn rule(rule: RuleName, verdict: Verdict) -> RuleVerdict {
    let (reason, detail, until) = match verdict {
        Verdict::Send { until_ms } => (None, None, Some(until_ms)),
        Verdict::Hold { until_ms, reason } => (Some(reason), None, Some(until_ms)),
        Verdict::Block { reason, detail } => (Some(reason), detail, None),
        Verdict::Expire => (Some(Reason::Expired), None, None),
    };
    RuleVerdict {
        rule,
        verdict: verdict.as_str().to_owned(),
        reason,
        detail: detail.map(ToOwned::to_owned),
        until: until.filter(|until| *until != i64::MAX).map(UnixMs),
    }
}
