//! `[billing]`: plans, and how Stripe is listened to and asked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

use super::check::Check;
use super::error::ConfigError;
use crate::billing::stripe::{Api, Stripe};
use crate::billing::{Plans, Terms, UNLIMITED};

/// Money.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Billing {
    /// The plan of tenants that have been given none.
    default_plan: String,
    /// Plans by name.
    plans: BTreeMap<String, RawPlan>,
    /// Webhooks of Stripe.
    stripe: Option<RawStripe>,
}

impl Default for Billing {
    fn default() -> Self {
        Self { default_plan: UNLIMITED.to_owned(), plans: BTreeMap::new(), stripe: None }
    }
}

/// `[billing.stripe]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStripe {
    webhook_secret_file: Option<PathBuf>,
    webhook_secret_env: Option<String>,
    /// A key that may read invoices, for the lines that events leave out.
    api_key_file: Option<PathBuf>,
    api_key_env: Option<String>,
    /// Where Stripe is asked; its own address when left out.
    api_url: Option<String>,
    /// Plans by the id of a price or a product.
    #[serde(default)]
    plans: BTreeMap<String, String>,
    /// Credits of a paid piece, by the id of a price or a product.
    #[serde(default)]
    credits: BTreeMap<String, u32>,
}

/// One `[billing.plans.NAME]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    /// Messages accepted in a calendar month (UTC); any number when left out.
    messages_per_month: Option<u64>,
    /// Credits that each message costs; none when left out.
    credits_per_message: Option<u32>,
}

/// Where Stripe is asked.
const STRIPE_API: &str = "https://api.stripe.com";

/// Longest name of a plan, in characters.
const PLAN_NAME_MAX: usize = 50;

/// Most messages of a plan in a month; and most credits of a message. Their product fits the store's numbers many times.
const QUOTA_MAX: u64 = 1_000_000_000;

const PRICE_MAX: u32 = 1_000_000;

pub(super) fn plans(billing: &Billing, check: &Check<'_>) -> Result<Plans, ConfigError> {
    for (name, plan) in &billing.plans {
        let wrong = |what: String| Err(check.wrong("billing.plans", format!("{name}: {what}")));
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
        if name.is_empty() || name.len() > PLAN_NAME_MAX || !name.chars().all(word) {
            return wrong(format!(
                "a name has 1 to {PLAN_NAME_MAX} small letters, digits, _ and -"
            ));
        }
        if name == UNLIMITED {
            return wrong("it is always there and costs nothing: choose another name".to_owned());
        }
        if plan.messages_per_month.is_some_and(|quota| quota > QUOTA_MAX) {
            return wrong(format!("messages_per_month is more than {QUOTA_MAX}"));
        }
        if plan.credits_per_message.is_some_and(|price| price > PRICE_MAX) {
            return wrong(format!("credits_per_message is more than {PRICE_MAX}"));
        }
    }
    let terms = |plan: &RawPlan| Terms {
        quota: plan.messages_per_month,
        price: plan.credits_per_message.unwrap_or(0),
    };
    let all = billing.plans.iter().map(|(name, plan)| (name.clone(), terms(plan)));
    Plans::new(billing.default_plan.clone(), all).ok_or_else(|| {
        check.wrong("billing.default_plan", format!("there is no plan {:?}", billing.default_plan))
    })
}

pub(super) fn stripe(
    billing: &Billing,
    folder: &Path,
    check: &Check<'_>,
) -> Result<Option<Stripe>, ConfigError> {
    let Some(raw) = &billing.stripe else { return Ok(None) };
    let wrong = |what: String| check.wrong("billing.stripe", what);
    let secret_of = |file: &Option<PathBuf>, env: &Option<String>| match (file, env) {
        (Some(file), None) => {
            let path = folder.join(file);
            std::fs::read_to_string(&path)
                .map(Some)
                .map_err(|error| wrong(format!("{} cannot be read: {error}", path.display())))
        }
        (None, Some(name)) => {
            std::env::var(name).map(Some).map_err(|error| wrong(format!("{name}: {error}")))
        }
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(wrong("a secret is in a file or in the environment".to_owned())),
    };
    let secret =
        secret_of(&raw.webhook_secret_file, &raw.webhook_secret_env)?.ok_or_else(|| {
            wrong(
                "give the endpoint's secret, by webhook_secret_file or by webhook_secret_env"
                    .to_owned(),
            )
        })?;
    if !secret.trim().starts_with("whsec_") {
        return Err(wrong(
            "the secret must be the endpoint's, which begins with whsec_".to_owned(),
        ));
    }
    let known = |plan: &str| plan == UNLIMITED || billing.plans.contains_key(plan);
    if let Some((price, plan)) = raw.plans.iter().find(|(_, plan)| !known(plan)) {
        return Err(wrong(format!("plans: {price}: there is no plan {plan:?}")));
    }
    if raw.credits.values().any(|credits| *credits > PRICE_MAX) {
        return Err(wrong(format!("credits: more than {PRICE_MAX} for one piece")));
    }
    let api = match secret_of(&raw.api_key_file, &raw.api_key_env)? {
        Some(key) => {
            let base = raw.api_url.as_deref().unwrap_or(STRIPE_API);
            let base = base.parse().map_err(|error| wrong(format!("api_url: {error}")))?;
            let is_stand_in = raw.api_url.is_some();
            Some(Api { base, key: SecretString::from(key.trim()), is_stand_in })
        }
        None if raw.api_url.is_some() => {
            return Err(wrong("api_url is of use with an api_key_file only".to_owned()));
        }
        None => None,
    };
    Ok(Some(Stripe {
        api,
        secret: SecretString::from(secret.trim()),
        plans: raw.plans.clone(),
        credits: raw.credits.clone(),
    }))
}
