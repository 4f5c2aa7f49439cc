//! The lines of an invoice that an event of Stripe's leaves out: it shows ten at most.
//!
//! `GET /v1/invoices/{id}/lines` by <https://docs.stripe.com/api/invoice-line-item/retrieve>.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde_json::Value;

use super::stripe::{Api, credits_of, next_page};
use crate::providers::http::{Client, Limits, ask};

/// Lines of a page: what an answer of the length that is read surely has room for.
const PAGE_LINES: &str = "50";
/// Pages that are asked for: Stripe gives an invoice 250 lines, and subscriptions fewer.
const PAGES_MAX: usize = 20;
/// For the connection, and for each page: Stripe waits no longer than some seconds for our answer.
const PATIENCE: Limits = Limits {
    connect: Duration::from_secs(3),
    request: Duration::from_secs(5),
    allow_private: false,
};

/// The credits that all lines of an invoice give together; what is wrong, where that cannot be found out.
pub async fn credits(
    api: &Api,
    invoice: &str,
    credits: &BTreeMap<String, u32>,
) -> Result<i64, String> {
    let limits = Limits { allow_private: api.is_stand_in, ..PATIENCE };
    let client = Client::new(api.base.clone(), limits);
    let mut sum = 0_i64;
    let mut after: Option<String> = None;
    for _page in 0..PAGES_MAX {
        let mut url = client.url(&["v1", "invoices", invoice, "lines"]);
        url.query_pairs_mut().append_pair("limit", PAGE_LINES);
        if let Some(after) = &after {
            url.query_pairs_mut().append_pair("starting_after", after);
        }
        let request = client.get(url).bearer_auth(api.key.expose_secret());
        let answer = ask(request).await.map_err(|none| none.detail)?;
        if !answer.is_good() {
            return Err(format!("answered {}", answer.status));
        }
        let page: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| format!("an answer that is not understood: {error}"))?;
        sum = sum.saturating_add(credits_of(&page, credits));
        match next_page(&page) {
            Some(line) => after = Some(line.to_owned()),
            None => return Ok(sum),
        }
    }
    Err(format!("more than {PAGES_MAX} pages of lines"))
}
