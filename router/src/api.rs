//! The public API and the operator's, one resource a file.
//!
//! Handlers check what came in ([`fields`]), run one store function and shape the answer; what they share is here.

mod admin;
mod audit;
mod batches;
mod billing;
mod body;
mod capabilities;
mod check;
mod contacts;
mod dead_letters;
mod docs;
mod export;
mod failover;
mod fields;
mod health;
mod hosts;
mod keys;
mod messages;
mod opt_outs;
mod overlap;
mod pages;
mod phones;
mod providers;
mod recipients;
mod rows;
mod rules;
mod stripe;
mod templates;
mod tenants;
mod usage;
mod webhook_endpoints;

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use protocol::Reason;
use protocol::api::PROBLEM_JSON;
use protocol::limits::PAGE_ROWS_MAX;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::OpenApi as _;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{Object, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, ObjectBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use self::body::{JsonBody, OptionalJsonBody, ReadAwayLayer};
use crate::auth;
use crate::error::{ApiError, Code};
use crate::server::AppState;

/// The id in a path. Text that is no id names nothing, so it is a 404 like an id that is not there.
#[derive(Debug)]
pub(crate) struct PathId<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for PathId<T>
where
    T: std::str::FromStr,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_rejection| ApiError::not_found())?;
        text.parse().map(Self).map_err(|_no_id| ApiError::not_found())
    }
}

/// Longest body of several messages: 1,000 of a few kilobytes each.
pub(crate) const LONG_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Longest body that is read as it comes: a million recipients with their variables.
pub(crate) const STREAMED_BODY_BYTES: usize = 256 * 1024 * 1024;
/// How much longer a body may take that is read as it comes. A connection to which nothing is written for a minute and the
/// time of an ordinary request is closed (`listener::PATIENCE`); the caller should be told before that.
const STREAMED_LONGER: Duration = Duration::from_secs(50);

/// The routes, by how long a body they take. The caller gives each its limit, and all of them the state.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) ordinary: Router<AppState>,
    pub(crate) long: Router<AppState>,
    pub(crate) streamed: Router<AppState>,
}

/// How much longer than others a request on this route may take.
pub(crate) fn longer(method: &str, route: &str) -> Duration {
    let streamed = method == "POST" && route == "/v1/batches/{id}/recipients";
    if streamed { STREAMED_LONGER } else { Duration::ZERO }
}

/// The whole API with its document.
pub(crate) fn routes(app: &AppState) -> Routes {
    let Documented { ordinary, long, streamed } = documented(Some(app));
    let (router, mut document) = ordinary.split_for_parts();
    let refused = || async { ApiError::new(Code::MethodNotAllowed) };
    let (long, more) = long.split_for_parts();
    document.merge(more);
    let (streamed, more) = streamed.split_for_parts();
    document.merge(more);
    // Written once: anybody may ask for it as often as they like.
    let document = completed(document);
    let failed = |error| ApiError::new(Code::Internal).caused_by(error);
    let page = serde_json::to_value(&document)
        .map(|document| Bytes::from(docs::page(&document)))
        .map_err(failed);
    let document = serde_json::to_vec(&document).map(Bytes::from).map_err(failed);
    let ordinary = router
        .route(
            "/openapi.json",
            axum::routing::get(move || async move {
                let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                document.map(|document| ([json], document))
            }),
        )
        .route(
            "/docs",
            axum::routing::get(move || async move {
                let html = HeaderValue::from_static("text/html; charset=utf-8");
                let policy = HeaderValue::from_static(docs::POLICY);
                let headers =
                    [(header::CONTENT_TYPE, html), (header::CONTENT_SECURITY_POLICY, policy)];
                page.map(|page| (headers, page))
            }),
        )
        .fallback(|| async { ApiError::not_found() })
        .method_not_allowed_fallback(refused);
    Routes {
        ordinary,
        long: long.method_not_allowed_fallback(refused),
        streamed: streamed.method_not_allowed_fallback(refused),
    }
}

/// The API's document, `OpenAPI` 3.1, as it is served at `/openapi.json`.
pub fn openapi() -> OpenApi {
    let Documented { ordinary, long, streamed } = documented(None);
    completed(ordinary.merge(long).merge(streamed).into_openapi())
}

/// Says of every operation what is true of all: how it refuses, and that a POST takes an idempotency key.
fn completed(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in [
            ("get", item.get.as_mut()),
            ("post", item.post.as_mut()),
            ("put", item.put.as_mut()),
            ("patch", item.patch.as_mut()),
            ("delete", item.delete.as_mut()),
        ] {
            if let Some(operation) = operation {
                operation.operation_id = Some(operation_id(method, path));
            }
        }
        let get = item.get.as_mut();
        let others =
            [item.post.as_mut(), item.put.as_mut(), item.patch.as_mut(), item.delete.as_mut(), get];
        for operation in others.into_iter().flatten() {
            let problem = RefOr::Ref(Ref::from_schema_name("Problem"));
            let content = ContentBuilder::new().schema(Some(problem)).build();
            let refusal = ResponseBuilder::new()
                .description("Anything else: refused, or failed.")
                .content(PROBLEM_JSON, content)
                .build();
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter
                    && parameter.name == "limit"
                {
                    let rows = ObjectBuilder::new()
                        .schema_type(Type::Integer)
                        .minimum(Some(1_u32))
                        .maximum(Some(PAGE_ROWS_MAX));
                    parameter.schema = Some(RefOr::T(rows.build().into()));
                }
            }
            operation.responses.responses.insert("default".to_owned(), RefOr::T(refusal));
        }
        if let Some(post) = item.post.as_mut() {
            let key = ParameterBuilder::new()
                .name("Idempotency-Key")
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some(
                    "1 to 255 visible ASCII characters, bare or quoted. The same key and body is done once and \
                     answered alike for a day.",
                ))
                .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
                .build();
            post.parameters.get_or_insert_default().push(RefOr::T(key));
        }
    }
    if let Some(components) = document.components.as_mut() {
        for schema in components.schemas.values_mut() {
            allow_null(schema);
        }
    }
    document
}

/// The name of an operation: its method and the words of its path, which no two share.
fn operation_id(method: &str, path: &str) -> String {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

/// Says of every property that may be left out that null is the same as that.
fn allow_null(schema: &mut RefOr<Schema>) {
    let RefOr::T(Schema::Object(object)) = schema else { return };
    let Object { properties, required, .. } = object;
    for (_, property) in properties.iter_mut().filter(|(name, _)| !required.contains(*name)) {
        let kind = match property {
            RefOr::T(Schema::Object(inner)) => &mut inner.schema_type,
            RefOr::T(Schema::Array(inner)) => &mut inner.schema_type,
            RefOr::Ref(inner) => {
                let null = ObjectBuilder::new().schema_type(Type::Null).build();
                let either = OneOfBuilder::new()
                    .item(Schema::Object(null))
                    .item(RefOr::Ref(inner.clone()))
                    .build();
                *property = RefOr::T(Schema::OneOf(either));
                continue;
            }
            RefOr::T(_) => continue,
        };
        if let SchemaType::Type(one) = kind
            && *one != Type::Null
        {
            *kind = SchemaType::Array(vec![one.clone(), Type::Null]);
        }
    }
}

/// The routes with their documentation, as in [`Routes`].
struct Documented {
    ordinary: OpenApiRouter<AppState>,
    long: OpenApiRouter<AppState>,
    streamed: OpenApiRouter<AppState>,
}

/// Every route with its documentation; guarded by keys where there is a state to check them with.
fn documented(app: Option<&AppState>) -> Documented {
    let open = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(providers::twilio))
        .routes(routes!(providers::telnyx))
        .routes(routes!(hosts::enrol))
        .routes(routes!(stripe::webhook));
    let mut tenant = OpenApiRouter::new()
        .routes(routes!(messages::create, messages::list))
        .routes(routes!(messages::get))
        .routes(routes!(messages::events))
        .routes(routes!(messages::decisions))
        .routes(routes!(messages::cancel))
        .routes(routes!(webhook_endpoints::create, webhook_endpoints::list))
        .routes(routes!(
            webhook_endpoints::get,
            webhook_endpoints::update,
            webhook_endpoints::delete
        ))
        .routes(routes!(webhook_endpoints::rotate_secret))
        .routes(routes!(webhook_endpoints::test))
        .routes(routes!(webhook_endpoints::replay))
        .routes(routes!(webhook_endpoints::delivery))
        .routes(routes!(webhook_endpoints::replay_delivery))
        .routes(routes!(webhook_endpoints::deliveries))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::get, dead_letters::discard))
        .routes(routes!(dead_letters::retry))
        .routes(routes!(check::check))
        .routes(routes!(opt_outs::create, opt_outs::list))
        .routes(routes!(opt_outs::lift))
        .routes(routes!(opt_outs::history))
        .routes(routes!(opt_outs::review))
        .routes(routes!(capabilities::list, capabilities::ask))
        .routes(routes!(capabilities::get))
        .routes(routes!(contacts::list))
        .routes(routes!(contacts::get, contacts::put, contacts::delete))
        .routes(routes!(phones::usable))
        .routes(routes!(rules::own))
        .routes(routes!(templates::create, templates::list))
        .routes(routes!(templates::get, templates::update, templates::delete))
        .routes(routes!(templates::versions))
        .routes(routes!(templates::preview))
        .routes(routes!(usage::own))
        .routes(routes!(billing::own))
        .routes(routes!(billing::credits))
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::get))
        .routes(routes!(batches::start))
        .routes(routes!(batches::pause))
        .routes(routes!(batches::resume))
        .routes(routes!(batches::cancel))
        .routes(routes!(export::export));
    let mut long = OpenApiRouter::new().routes(routes!(messages::create_many));
    let mut streamed = OpenApiRouter::new().routes(routes!(recipients::add, batches::recipients));
    let mut operator = OpenApiRouter::new()
        .routes(routes!(audit::list))
        .routes(routes!(billing::plans))
        .routes(routes!(hosts::create_token))
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::phones))
        .routes(routes!(providers::list))
        .routes(routes!(providers::set, providers::delete))
        .routes(routes!(providers::enable))
        .routes(routes!(providers::disable))
        .routes(routes!(providers::test))
        .routes(routes!(providers::choose))
        .routes(routes!(phones::get));
    // What belongs to tenants: each look at it is written down. So is what moves phones, which is whom their messages come
    // from.
    let mut tenants = OpenApiRouter::new()
        .routes(routes!(tenants::create, tenants::list))
        .routes(routes!(rules::get, rules::put))
        .routes(routes!(billing::get, billing::put))
        .routes(routes!(billing::change_credit, billing::credits_of))
        .routes(routes!(usage::all))
        .routes(routes!(opt_outs::create_as_operator, opt_outs::list_as_operator))
        .routes(routes!(opt_outs::lift_as_operator))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(admin::messages))
        .routes(routes!(admin::message))
        .routes(routes!(admin::events))
        .routes(routes!(admin::decisions))
        .routes(routes!(admin::settle))
        .routes(routes!(admin::cancel))
        .routes(routes!(dead_letters::admin_list))
        .routes(routes!(dead_letters::admin_get, dead_letters::admin_discard))
        .routes(routes!(dead_letters::admin_retry))
        .routes(routes!(admin::unplaced_events))
        .routes(routes!(phones::update))
        .routes(routes!(failover::phone))
        .routes(routes!(failover::host))
        .routes(routes!(failover::drain))
        .routes(routes!(failover::undrain))
        .routes(routes!(failover::replace));
    if let Some(app) = app {
        let keyed = || from_fn_with_state(AppState::clone(app), auth::tenant);
        tenant = tenant.route_layer(keyed());
        long = long.route_layer(keyed());
        streamed = streamed.route_layer(keyed());
        tenants =
            tenants.route_layer(from_fn_with_state(AppState::clone(app), audit::written_down));
        operator = operator
            .merge(tenants)
            .route_layer(from_fn_with_state(AppState::clone(app), auth::operator));
    } else {
        operator = operator.merge(tenants);
    }
    // Answers hold messages and secrets: no cache on the way may keep them.
    let no_store = HeaderValue::from_static("no-store");
    let no_store = SetResponseHeaderLayer::overriding(header::CACHE_CONTROL, no_store);
    Documented {
        ordinary: open.merge(tenant).merge(operator).layer(no_store.clone()),
        long: long.layer(no_store.clone()),
        streamed: streamed.layer(no_store),
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Switchboard",
        description = "Send and receive iMessage, RCS and SMS through your own Macs and iPhones.\n\n\
            Errors are `application/problem+json` (RFC 9457) with a stable `code`, the `request_id` and, where fields \
            are wrong, `errors`. Every POST takes an `Idempotency-Key`."
    ),
    modifiers(&Security, &ReasonCodes),
    components(schemas(
        protocol::api::Problem,
        protocol::api::WebhookBody,
        protocol::api::UsagePeriod
    )),
    tags(
        (name = "messages", description = "Send, follow, withdraw."),
        (name = "batches", description = "One text to many recipients."),
        (name = "templates", description = "Texts with variables, in versions."),
        (name = "webhooks", description = "Where events are posted, by Standard Webhooks 1.0."),
        (name = "opt-outs", description = "Who must not be written to."),
        (name = "capabilities", description = "Over which channels the people you write to can be reached."),
        (name = "contacts", description = "What you know of the people you write to."),
        (name = "rules", description = "What your messages are held to."),
        (name = "billing", description = "What you have used, and what it costs."),
        (name = "hosts", description = "How a Mac joins."),
        (name = "providers", description = "Called by providers of SMS alone."),
        (name = "operator", description = "For the operator's token alone."),
        (name = "health", description = "For machines that watch the router.")
    )
)]
struct Document;

struct Security;

impl utoipa::Modify for Security {
    fn modify(&self, openapi: &mut OpenApi) {
        let components = openapi.components.get_or_insert_default();
        for (name, description) in [
            (
                "api_key",
                "A tenant's key: `sb_live_…`, or `sb_test_…` which reaches phones of the sandbox alone.",
            ),
            ("admin_token", "The operator's token."),
        ] {
            let scheme = HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some(description))
                .build();
            components.add_security_scheme(name, SecurityScheme::Http(scheme));
        }
    }
}

/// Lists every reason code with its meaning in the document.
struct ReasonCodes;

impl utoipa::Modify for ReasonCodes {
    fn modify(&self, openapi: &mut OpenApi) {
        let mut text = openapi.info.description.take().unwrap_or_default();
        text.push_str("\n\n## Reason codes\n\n| code | meaning |\n|---|---|\n");
        for reason in Reason::ALL {
            text.push_str("| `");
            text.push_str(reason.as_str());
            text.push_str("` | ");
            text.push_str(reason.meaning());
            text.push_str(" |\n");
        }
        openapi.info.description = Some(text);
    }
}

/// JSON with a status, for the answers that are not kept under an idempotency key.
pub(crate) fn json(status: StatusCode, body: &impl serde::Serialize) -> Response {
    (status, Json(body)).into_response()
}
