//! `webhooks` and `opt-outs`, in a tenant's name.

use clap::Subcommand;
use protocol::{
    DeliveryId, EndpointId,
    api::{
        CreateWebhookEndpoint, CreatedWebhookEndpoint, ReplayWebhooks, ReplayedWebhooks,
        RotateSecret, UpdateWebhookEndpoint, WebhookDelivery, WebhookEndpoint,
    },
};
use router_client::clock;
use serde_json::json;

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    screen::{NOTHING, Screen, or_nothing, time},
    span::{self, Span},
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
        /// What to write down about it
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Lists the endpoints
    List,
    /// Switches an endpoint on again; what it has missed can be replayed
    Enable {
        /// The endpoint
        id: EndpointId,
    },
    /// Switches an endpoint off; what waits for it fails
    Disable {
        /// The endpoint
        id: EndpointId,
    },
    /// Gives an endpoint a new secret, shown this once; the old one signs beside it for a while
    Rotate {
        /// The endpoint
        id: EndpointId,
        /// How long the old secret signs, too
        #[arg(long, value_parser = span::parse, value_name = "TIME", default_value = "24h")]
        overlap: Span,
    },
    /// Posts a test event to an endpoint
    Test {
        /// The endpoint
        id: EndpointId,
    },
    /// Posts again what an endpoint has missed
    Replay {
        /// The endpoint
        id: EndpointId,
        /// What happened within this time, such as 6h
        #[arg(long, value_parser = span::parse, value_name = "TIME")]
        since: Span,
        /// What was delivered, too
        #[arg(long)]
        delivered: bool,
    },
    /// Posts one event again
    Redeliver {
        /// The delivery
        id: DeliveryId,
    },
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
        Command::Add { endpoint, events, description } => {
            let body = CreateWebhookEndpoint { url: endpoint.to_string(), events, description };
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
                let why = endpoint.disabled_reason.unwrap_or_default();
                let state = match (endpoint.disabled_at, endpoint.failing_since) {
                    (Some(at), _) => format!("disabled {} {why}", time(at)).trim_end().to_owned(),
                    (None, Some(since)) => format!("failing since {}", time(since)),
                    (None, None) => "enabled".to_owned(),
                };
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
        Command::Enable { id } => switch(screen, client, &id, false).await,
        Command::Disable { id } => switch(screen, client, &id, true).await,
        Command::Rotate { id, overlap } => {
            let body = RotateSecret { overlap_seconds: Some(overlap.seconds()) };
            let path = format!("{ENDPOINTS}/{id}/rotate_secret");
            let answer = client.call(&Request::post(Who::Tenant, path).body(&body)?).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let rotated: CreatedWebhookEndpoint = typed(answer)?;
            screen.line(&format!("secret, shown this once: {}", rotated.secret))?;
            let until = time(rotated.endpoint.old_secret_until);
            screen.line(&format!("the old one signs beside it until {until}"))
        }
        Command::Test { id } => {
            let request = Request::post(Who::Tenant, format!("{ENDPOINTS}/{id}/test"));
            on_its_way(screen, client.call(&request).await?)
        }
        Command::Redeliver { id } => {
            let request = Request::post(Who::Tenant, format!("/v1/webhook_deliveries/{id}/replay"));
            on_its_way(screen, client.call(&request).await?)
        }
        Command::Replay { id, since, delivered } => {
            let since = clock::wall_now().plus_ms(-since.ms());
            let (mut after, mut count) = (None, 0_u64);
            loop {
                let body = ReplayWebhooks { since, until: None, delivered, after };
                let request = Request::post(Who::Tenant, format!("{ENDPOINTS}/{id}/replay"));
                let answer = client.call(&request.body(&body)?).await?;
                let replayed: ReplayedWebhooks = typed(answer)?;
                count = count.saturating_add(replayed.replayed);
                after = replayed.next;
                if after.is_none() {
                    break;
                }
            }
            if screen.is_json() {
                return screen.json(&json!({ "id": id, "replayed": count }));
            }
            screen.line(&format!("{count} deliveries are on their way again"))
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

async fn switch(
    screen: &mut Screen,
    client: &Client,
    id: &EndpointId,
    disabled: bool,
) -> Result<(), Failure> {
    let body =
        UpdateWebhookEndpoint { disabled: Some(disabled), ..UpdateWebhookEndpoint::default() };
    let request = Request::patch(Who::Tenant, format!("{ENDPOINTS}/{id}")).body(&body)?;
    let answer = client.call(&request).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    screen.line(&format!("endpoint {id} is {}", if disabled { "off" } else { "on" }))
}

fn on_its_way(screen: &mut Screen, answer: serde_json::Value) -> Result<(), Failure> {
    if screen.is_json() {
        return screen.json(&answer);
    }
    let delivery: WebhookDelivery = typed(answer)?;
    screen.line(&format!("delivery {} is on its way", delivery.id))?;
    screen.line(&format!("next: switchboard webhooks deliveries {}", delivery.endpoint))
}
