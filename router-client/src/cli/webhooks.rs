//! `webhooks` and `opt-outs`, in a tenant's name.

use clap::Subcommand;
use protocol::{
    EndpointId,
    api::{CreateWebhookEndpoint, CreatedWebhookEndpoint, WebhookDelivery, WebhookEndpoint},
};
use serde_json::json;

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    screen::{NOTHING, Screen, or_nothing, time},
};

const ENDPOINTS: &str = "/v1/webhook_endpoints";
/// Deliveries that are shown unless asked otherwise.
const DELIVERIES_DEFAULT: u32 = 50;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Adds an endpoint; its secret is shown this once
    Add {
        /// Where events are posted
        // Not called `url`: an argument shares its name with the global option of that name.
        #[arg(value_name = "URL")]
        endpoint: url::Url,
        /// A type that it gets, such as message.sent; may be repeated; all when left out
        #[arg(long = "event", value_name = "TYPE", value_parser = event_type)]
        events: Vec<String>,
    },
    /// Lists the endpoints
    List,
    /// Removes an endpoint
    Remove {
        /// The endpoint
        id: EndpointId,
    },
    /// Lists what was posted to an endpoint, and what came of it
    Deliveries {
        /// The endpoint
        id: EndpointId,
        /// So many at most
        #[arg(long, default_value_t = DELIVERIES_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
}

fn event_type(text: &str) -> Result<String, String> {
    if protocol::api::WEBHOOK_TYPES.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("expected one of {}", protocol::api::WEBHOOK_TYPES.join(", ")))
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    command: Command,
) -> Result<(), Failure> {
    match command {
        Command::Add { endpoint, events } => {
            let body = CreateWebhookEndpoint { url: endpoint.to_string(), events };
            let answer = client.call(&Request::post(Who::Tenant, ENDPOINTS).body(&body)?).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let created: CreatedWebhookEndpoint = typed(answer)?;
            screen.line(&format!("endpoint {} → {}", created.endpoint.id, created.endpoint.url))?;
            screen.line(&format!("secret, shown this once: {}", created.secret))
        }
        Command::List => {
            let page = client.list(Who::Tenant, ENDPOINTS, &[], usize::MAX).await?;
            if screen.is_json() {
                return screen.json(&page);
            }
            let rows = typed_rows::<WebhookEndpoint>(&page)?.into_iter().map(|endpoint| {
                let state = endpoint.disabled_at.map_or_else(
                    || "enabled".to_owned(),
                    |at| {
                        let why = endpoint.disabled_reason.unwrap_or_default();
                        format!("disabled {} {why}", time(at)).trim_end().to_owned()
                    },
                );
                let events = if endpoint.events.is_empty() {
                    "all".to_owned()
                } else {
                    endpoint.events.join(",")
                };
                [endpoint.id.to_string(), endpoint.url, events, state]
            });
            screen.table(
                ["ENDPOINT", "URL", "EVENTS", "STATE"],
                rows.collect(),
                "there is no endpoint: `switchboard webhooks add URL` makes one",
            )
        }
        Command::Remove { id } => {
            let request = Request::delete(Who::Tenant, format!("{ENDPOINTS}/{id}"));
            let answer = client.call(&request).await?;
            if screen.is_json() {
                let nothing_said = json!({ "id": id });
                return screen.json(if answer.is_null() { &nothing_said } else { &answer });
            }
            screen.line(&format!("endpoint {id} is removed"))
        }
        Command::Deliveries { id, limit } => {
            let path = format!("{ENDPOINTS}/{id}/deliveries");
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let page = client.list(Who::Tenant, &path, &[], limit).await?;
            if screen.is_json() {
                return screen.json(&page);
            }
            let rows = typed_rows::<WebhookDelivery>(&page)?.into_iter().map(|delivery| {
                let last = delivery.attempts.last();
                let outcome = last.map_or_else(
                    || NOTHING.to_owned(),
                    |attempt| match (&attempt.status, &attempt.error) {
                        (Some(status), None) => status.to_string(),
                        (Some(status), Some(error)) => format!("{status} {error}"),
                        (None, Some(error)) => error.clone(),
                        (None, None) => NOTHING.to_owned(),
                    },
                );
                [
                    delivery.id.to_string(),
                    delivery.kind,
                    delivery.state,
                    delivery.attempts.len().to_string(),
                    outcome,
                    or_nothing(last.map(|attempt| format!("{} ms", attempt.duration_ms))),
                    time(delivery.next_at),
                    time(delivery.created_at),
                ]
            });
            screen.table(
                ["DELIVERY", "TYPE", "STATE", "TRIES", "LAST ANSWER", "TOOK", "NEXT", "CREATED"],
                rows.collect(),
                "nothing was posted yet",
            )
        }
    }
}
