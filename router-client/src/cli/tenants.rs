//! `tenants` and `keys`: who may use the router.

use clap::Subcommand;
use protocol::{
    KeyId, TenantId,
    api::{ApiKey, CreateKey, CreateTenant, CreatedKey, RotateKey, Tenant, Tier},
};
use router_client::clock;
use serde_json::json;

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    screen::{Screen, time},
    span::{self, Span},
};

#[derive(Debug, Subcommand)]
pub(crate) enum TenantsCommand {
    /// Lists the tenants
    List,
    /// Makes a tenant
    Create {
        /// Its name
        name: String,
        /// The name its recipients know, used in confirmations
        #[arg(long)]
        brand: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Makes an API key; its secret is shown this once
    Create {
        /// For which tenant
        #[arg(long)]
        tenant: TenantId,
        /// A name to know it by
        #[arg(long)]
        name: String,
        /// When it ends, such as 90d; never when left out
        #[arg(long, value_parser = span::parse, value_name = "TIME")]
        expires: Option<Span>,
        /// A test key: its messages reach phones of the sandbox alone
        ///
        /// Where there is none, the router plays a fixed story for each of them at once (queued, sent, delivered), with
        /// its webhooks, so that an integration can be tried out. No recipient gets anything.
        #[arg(long)]
        test: bool,
        /// What it may do, such as messages:write; may be repeated; everything when left out
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// A network that it may be used from, such as 192.0.2.0/24; may be repeated; from anywhere when left out
        #[arg(long, value_name = "NETWORK")]
        allow: Vec<String>,
        /// How often it may be used: starter, growth or custom; as the router is set up when left out
        #[arg(long, value_name = "TIER")]
        tier: Option<Tier>,
        /// Requests a second in the long run, of a custom tier
        #[arg(long, value_name = "N", requires = "burst")]
        per_second: Option<u32>,
        /// Requests at once after a pause, of a custom tier
        #[arg(long, value_name = "N", requires = "per_second")]
        burst: Option<u32>,
    },
    /// Lists the keys
    List {
        /// Of this tenant only
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Puts a new key into the place of another; its secret is shown this once
    Rotate {
        /// The key's id, not its secret
        id: KeyId,
        /// How long the old key still works, such as 1h
        #[arg(long, value_parser = span::parse, value_name = "TIME", default_value = "24h")]
        overlap: Span,
        /// Ends the old key at once
        #[arg(long, conflicts_with = "overlap")]
        at_once: bool,
    },
    /// Ends a key at once
    Revoke {
        /// The key's id, not its secret
        id: KeyId,
    },
}

pub(crate) async fn tenants(
    screen: &mut Screen,
    client: &Client,
    command: Option<TenantsCommand>,
) -> Result<(), Failure> {
    match command.unwrap_or(TenantsCommand::List) {
        TenantsCommand::List => {
            let page = client.list(Who::Operator, "/v1/admin/tenants", &[], usize::MAX).await?;
            if screen.is_json() {
                return screen.json(&page);
            }
            let rows = typed_rows::<Tenant>(&page)?
                .into_iter()
                .map(|t| [t.id.to_string(), t.name, t.brand, time(t.created_at)]);
            screen.table(
                ["TENANT", "NAME", "BRAND", "CREATED"],
                rows.collect(),
                "there is no tenant: `switchboard tenants create NAME` makes one",
            )
        }
        TenantsCommand::Create { name, brand } => {
            let request = Request::post(Who::Operator, "/v1/admin/tenants")
                .body(&CreateTenant { name, brand })?;
            let answer = client.call(&request).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let tenant: Tenant = typed(answer)?;
            screen.line(&format!("tenant {} ({})", tenant.id, tenant.name))?;
            screen
                .line(&format!("next: switchboard keys create --tenant {} --name NAME", tenant.id))
        }
    }
}

/// A key that was just made, with the secret that nobody is shown again.
fn say_once(screen: &mut Screen, created: &CreatedKey) -> Result<(), Failure> {
    screen.line(&format!("key {} ({})", created.key.id, created.key.name))?;
    screen.line(&format!("secret, shown this once: {}", created.secret))
}

pub(crate) async fn keys(
    screen: &mut Screen,
    client: &Client,
    command: KeysCommand,
) -> Result<(), Failure> {
    match command {
        KeysCommand::Create {
            tenant,
            name,
            expires,
            test,
            scopes,
            allow,
            tier,
            per_second,
            burst,
        } => {
            // A rate of its own is what makes a tier custom.
            let tier = tier.or(per_second.map(|_rate| Tier::Custom));
            let expires_at = expires.map(|span| clock::wall_now().plus_ms(span.ms()));
            let request = Request::post(Who::Operator, "/v1/admin/keys").body(&CreateKey {
                tenant,
                name,
                test,
                expires_at,
                scopes: (!scopes.is_empty()).then_some(scopes),
                allow,
                tier,
                per_second,
                burst,
            })?;
            let answer = client.call(&request).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            say_once(screen, &typed(answer)?)?;
            screen.line("next: export SWITCHBOARD_API_KEY=…, then switchboard send --to … --text …")
        }
        KeysCommand::List { tenant } => {
            let filters: Vec<_> =
                tenant.iter().map(|tenant| ("tenant", tenant.to_string())).collect();
            let page = client.list(Who::Operator, "/v1/admin/keys", &filters, usize::MAX).await?;
            if screen.is_json() {
                return screen.json(&page);
            }
            let rows = typed_rows::<ApiKey>(&page)?.into_iter().map(|key| {
                let state = match (key.revoked_at, key.expires_at) {
                    (Some(at), _) => format!("revoked {}", time(at)),
                    (None, Some(at)) => format!("until {}", time(at)),
                    (None, None) => "unlimited".to_owned(),
                };
                let kind = if key.test { "test" } else { "live" };
                let rate = format!("{} ({}/s, {})", key.tier, key.per_second, key.burst);
                let from =
                    if key.allow.is_empty() { "anywhere".to_owned() } else { key.allow.join(",") };
                [
                    key.id.to_string(),
                    key.tenant.to_string(),
                    key.name,
                    key.prefix,
                    kind.to_owned(),
                    state,
                    rate,
                    from,
                    time(key.last_used_at),
                ]
            });
            screen.table(
                ["KEY", "TENANT", "NAME", "BEGINS", "KIND", "VALID", "RATE", "FROM", "LAST USED"],
                rows.collect(),
                "there is no key: `switchboard keys create --tenant ID --name NAME` makes one",
            )
        }
        KeysCommand::Rotate { id, overlap, at_once } => {
            let overlap_seconds = Some(if at_once { 0 } else { overlap.seconds() });
            let request = Request::post(Who::Operator, format!("/v1/admin/keys/{id}/rotate"))
                .body(&RotateKey { overlap_seconds })?;
            let answer = client.call(&request).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            say_once(screen, &typed(answer)?)?;
            screen.line(&match overlap_seconds {
                Some(0) => format!("key {id} has ended"),
                Some(_) | None => {
                    format!("key {id} ends by itself: `switchboard keys list` says when")
                }
            })
        }
        KeysCommand::Revoke { id } => {
            let request = Request::delete(Who::Operator, format!("/v1/admin/keys/{id}"));
            let answer = client.call(&request).await?;
            if screen.is_json() {
                let nothing_said = json!({ "id": id });
                return screen.json(if answer.is_null() { &nothing_said } else { &answer });
            }
            screen.line(&format!("key {id} is revoked"))
        }
    }
}
