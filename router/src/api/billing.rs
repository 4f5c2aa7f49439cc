//! Plans, who pays, and credits: the operator sets them, tenants read them.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::TenantId;
use protocol::api::{
    ChangeCredit, CreditEntry, CreditSource, FieldError, Page, Plan, Problem, SetBilling,
    TenantBilling,
};
use serde_json::Value;

use super::fields::Fields;
use super::pages::{page, window};
use super::{JsonBody, PathId, json};
use crate::auth::{Caller, Scope};
use crate::billing::{Month, Plans};
use crate::error::{ApiError, Code};
use crate::idempotency::{self, Post, Reply};
use crate::server::AppState;
use crate::store::accounts::{self, PayerRefused};
use crate::store::ledger::{self, AMOUNT_MAX, Booked, NewEntry};
use crate::store::{StoreError, Tx, admin, stripe};

/// Longest name of a plan, in characters.
const PLAN_CHARS_MAX: usize = 50;
/// Longest id of a customer of Stripe's, in characters; theirs have about 20.
const CUSTOMER_CHARS_MAX: usize = 100;
/// Longest reason or reference, in characters.
const REASON_CHARS_MAX: usize = 200;

/// Your plan and your credit
#[utoipa::path(get, path = "/v1/billing", tag = "billing", security(("api_key" = [])),
    responses(
        (status = 200, description = "How they stand.", body = TenantBilling),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn own(State(app): State<AppState>, caller: Caller) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    show(&app, caller.tenant).await
}

/// Changes of your credit, newest first
///
/// What messages cost stands in the usage.
#[utoipa::path(get, path = "/v1/credits", tag = "billing", security(("api_key" = [])),
    params(
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<CreditEntry>),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn credits(
    State(app): State<AppState>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesRead)?;
    entries(&app, caller.tenant, raw.as_deref()).await
}

/// A tenant's plan and credit
#[utoipa::path(get, path = "/v1/admin/tenants/{id}/billing", tag = "operator", security(("admin_token" = [])),
    params(("id" = String, Path, description = "The tenant's id.")),
    responses(
        (status = 200, description = "How they stand.", body = TenantBilling),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such tenant.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<AppState>,
    PathId(tenant): PathId<TenantId>,
) -> Result<Response, ApiError> {
    show(&app, tenant).await
}

async fn show(app: &AppState, tenant: TenantId) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let plans = Arc::clone(&app.config.plans);
    let found = app.store.read(move |tx| standing(tx, &tenant, &plans, now)).await?;
    Ok(json(StatusCode::OK, &found.ok_or_else(ApiError::not_found)?))
}

fn standing(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    plans: &Plans,
    now: protocol::UnixMs,
) -> Result<Option<TenantBilling>, StoreError> {
    let month = Month::of(now);
    Ok(accounts::get(tx, tenant, now)?.map(|account| TenantBilling {
        tenant: tenant.clone(),
        plan_is_default: account.plan.is_none(),
        plan: account.plan.unwrap_or_else(|| plans.default_name().to_owned()),
        messages_per_month: account.terms.quota,
        credits_per_message: account.terms.price,
        month: month.to_string(),
        used: account.used,
        resets_at: month.ends_at(),
        credit: account.credit,
        billing_account_id: account.payer,
        stripe_customer_id: account.stripe_customer,
    }))
}

/// Set a tenant's plan, and who pays
///
/// What is left out goes back to its default. What was used this month stays used.
#[utoipa::path(put, path = "/v1/admin/tenants/{id}/billing", tag = "operator", request_body = SetBilling,
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The tenant's id.")),
    responses(
        (status = 200, description = "How they stand now.", body = TenantBilling),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such tenant.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another tenant is this customer of Stripe's.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong: there is no such plan, or the other tenant cannot pay for this one.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn put(
    State(app): State<AppState>,
    PathId(tenant): PathId<TenantId>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let new = checked(body, &app.config.plans)?;
    let now = app.clock.now();
    let plans = Arc::clone(&app.config.plans);
    let standing = app
        .store
        .transact(move |tx| {
            if !admin::tenant_exists(tx, &tenant)? {
                return Err(ApiError::not_found());
            }
            accounts::set_payer(tx, &tenant, new.billing_account_id.as_ref(), &plans, now)?
                .map_err(cannot_pay)?;
            let customer = new.stripe_customer_id.as_deref();
            let is_new = match stripe::bind(tx, &tenant, customer, &plans, now) {
                Err(StoreError::Constraint(_)) => Err(ApiError::new(Code::AlreadyExists)
                    .detail("Another tenant is this customer of Stripe's.")),
                other => Ok(other?),
            }?;
            // Said once more of a customer that was known, it comes to the same as the first time.
            let told = match customer {
                Some(customer) if is_new || new.plan.is_none() => {
                    stripe::plan_that_counts(tx, &tenant, customer, &plans)?
                }
                Some(_) | None => None,
            };
            // Once, for a quota that is new warns of itself; which plans there are was looked up before.
            let plan = told.or(new.plan);
            accounts::set_plan(tx, &tenant, plan.as_deref(), &plans, now)?;
            Ok(standing(tx, &tenant, &plans, now)?)
        })
        .await?;
    Ok(json(StatusCode::OK, &standing.ok_or_else(ApiError::not_found)?))
}

fn checked(body: Value, plans: &Plans) -> Result<SetBilling, ApiError> {
    let mut fields = Fields::new(body)?;
    let plan = fields.line("plan", 1..=PLAN_CHARS_MAX);
    if let Some(name) = &plan
        && plans.terms(Some(name)).is_none()
    {
        let all: Vec<&str> = plans.iter().map(|(name, _)| name).collect();
        let detail = format!("There is no such plan. There are: {}.", all.join(", "));
        fields.wrong("plan", "unknown_plan", detail);
    }
    let billing_account_id = fields.parsed("billing_account_id", "invalid_id");
    let stripe_customer_id = fields.line("stripe_customer_id", 1..=CUSTOMER_CHARS_MAX);
    fields.finish()?;
    Ok(SetBilling { plan, billing_account_id, stripe_customer_id })
}

fn cannot_pay(refused: PayerRefused) -> ApiError {
    let (code, detail) = match refused {
        PayerRefused::Unknown => ("unknown_tenant", "There is no such tenant."),
        PayerRefused::Itself => {
            ("pays_for_itself", "A tenant pays for itself when this is left out.")
        }
        PayerRefused::IsPaidFor => (
            "is_paid_for",
            "Somebody else pays for that tenant; name the one that pays in the end.",
        ),
        PayerRefused::PaysForOthers => {
            ("pays_for_others", "This tenant pays for others, so nobody can pay for it.")
        }
    };
    ApiError::invalid(vec![FieldError {
        pointer: "/billing_account_id".to_owned(),
        code: code.to_owned(),
        detail: detail.to_owned(),
    }])
}

/// The plans that are configured
#[utoipa::path(get, path = "/v1/admin/plans", tag = "operator", security(("admin_token" = [])),
    responses(
        (status = 200, description = "All of them, by name.", body = Page<Plan>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn plans(State(app): State<AppState>) -> Response {
    let plans = &app.config.plans;
    let data = plans
        .iter()
        .map(|(name, terms)| Plan {
            name: name.to_owned(),
            is_default: name == plans.default_name(),
            messages_per_month: terms.quota,
            credits_per_message: terms.price,
        })
        .collect();
    json(StatusCode::OK, &Page::<Plan> { data, next_cursor: None, has_more: false })
}

/// Add credits to a tenant, or take some
///
/// The same `reference` is booked once: again, with the same amount, it is answered with what was booked.
#[utoipa::path(post, path = "/v1/admin/tenants/{id}/credits", tag = "operator", request_body = ChangeCredit,
    security(("admin_token" = [])),
    params(("id" = String, Path, description = "The tenant's id.")),
    responses(
        (status = 200, description = "This reference was booked before.", body = CreditEntry),
        (status = 201, description = "Booked.", body = CreditEntry),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such tenant.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "This reference was booked before with another amount, or the credit would be too large.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are wrong.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn change_credit(
    State(app): State<AppState>,
    PathId(tenant): PathId<TenantId>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let route = format!("POST /v1/admin/tenants/{tenant}/credits");
    let post = Post::new("operator".to_owned(), route, &headers, &body)?;
    let (plans, now) = (Arc::clone(&app.config.plans), app.clock.now());
    idempotency::post(&app, post, entry(body), move |tx, new| {
        if !admin::tenant_exists(tx, &tenant)? {
            return Err(ApiError::not_found());
        }
        match ledger::book(tx, &tenant, &new, &plans, now)? {
            Booked::New(entry) => Reply::new(StatusCode::CREATED, &entry),
            Booked::Before(entry) if entry.amount == new.amount => {
                Reply::new(StatusCode::OK, &entry)
            }
            Booked::Before(entry) => Err(ApiError::new(Code::AlreadyExists)
                .detail(format!("This reference was booked with {} credits.", entry.amount))),
            Booked::TooMuch => Err(ApiError::new(Code::LimitReached)
                .detail("The credit would be larger than an account can have.")),
        }
    })
    .await
}

fn entry(body: Value) -> Result<NewEntry, ApiError> {
    let mut fields = Fields::new(body)?;
    fields.require("amount");
    let amount = fields.integer("amount", -AMOUNT_MAX..=AMOUNT_MAX);
    if amount == Some(0) {
        fields.wrong("amount", "out_of_range", "It changes nothing.");
    }
    let reason = fields.required_line("reason", 1..=REASON_CHARS_MAX);
    let reference = fields.line("reference", 1..=REASON_CHARS_MAX);
    let (Some(amount), Some(reason)) = (amount, reason) else { return Err(fields.refuse()) };
    fields.finish()?;
    Ok(NewEntry { amount, source: CreditSource::Operator, reason, reference })
}

/// Changes of a tenant's credit, newest first
#[utoipa::path(get, path = "/v1/admin/tenants/{id}/credits", tag = "operator", security(("admin_token" = [])),
    params(
        ("id" = String, Path, description = "The tenant's id."),
        ("limit" = Option<u32>, Query, description = "Rows, 1 to 100; 50 when left out."),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses(
        (status = 200, description = "A page.", body = Page<CreditEntry>),
        (status = 401, description = "Not the operator's token.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such tenant.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn credits_of(
    State(app): State<AppState>,
    PathId(tenant): PathId<TenantId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    entries(&app, tenant, raw.as_deref()).await
}

async fn entries(
    app: &AppState,
    tenant: TenantId,
    raw: Option<&str>,
) -> Result<Response, ApiError> {
    let asked = window(raw)?;
    let (before, limit) = (asked.after_id::<protocol::EventId>()?, asked.limit);
    let rows = app
        .store
        .read(move |tx| {
            if !admin::tenant_exists(tx, &tenant)? {
                return Ok(None);
            }
            ledger::list(tx, &tenant, before.as_deref(), limit).map(Some)
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(json(StatusCode::OK, &page(rows, limit, |entry| entry.id.to_string())))
}
