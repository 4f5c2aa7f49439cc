//! Webhooks of Stripe: whether they are signed by it, and what they ask for. Pure; `store::stripe` acts.
//!
//! Signatures by <https://docs.stripe.com/webhooks/signatures>: `t=SECONDS,v1=HEX,…`, HMAC-SHA256 over `SECONDS.BODY` with the
//! endpoint's secret as it is written. While a secret is rolled, one `v1` of each is there. Events are read as far as they are
//! needed, in the forms from before and after the API version 2025-03-31, which moved the price of an invoice's line. What an
//! event leaves out, `billing::invoice` asks for.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER_PERMISSIVE;
use protocol::TenantId;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

/// How far the time of a signature may be from ours, in seconds: what Stripe's own libraries take.
const TOLERANCE_S: i64 = 300;
/// Signatures of one header that are looked at. There are two while a secret is rolled.
const SIGNATURES_MAX: usize = 8;

/// How Stripe is listened to, and asked.
#[derive(Debug, Clone)]
pub struct Stripe {
    /// `whsec_…` of the endpoint.
    pub secret: SecretString,
    /// The plan that a price or a product stands for, by its id.
    pub plans: BTreeMap<String, String>,
    /// Credits that are added for each paid piece of a price or a product, by its id.
    pub credits: BTreeMap<String, u32>,
    /// How it is asked for what its events leave out.
    pub api: Option<Api>,
}

/// How Stripe is asked.
#[derive(Debug, Clone)]
pub struct Api {
    /// Where.
    pub base: url::Url,
    /// A key that may read invoices.
    pub key: SecretString,
    /// It is not Stripe's own address, but what the operator has put in its place.
    pub is_stand_in: bool,
}

/// Why a body is not taken for Stripe's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsigned {
    /// There is no header, or none of the form that is expected.
    Malformed,
    /// It was signed too long ago, or lies in the future.
    Stale,
    /// No signature fits.
    Wrong,
}

/// Whether Stripe has signed this body, at about this time.
pub fn verify(
    header: &str,
    body: &[u8],
    secret: &SecretString,
    now_s: i64,
) -> Result<(), Unsigned> {
    let mut time = None;
    let mut signatures = Vec::new();
    for part in header.split(',') {
        match part.trim().split_once('=') {
            Some(("t", text)) if time.is_none() => time = Some(text),
            Some(("v1", hex)) if signatures.len() < SIGNATURES_MAX => {
                signatures.extend(HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok());
            }
            Some(_) | None => {}
        }
    }
    let time = time.ok_or(Unsigned::Malformed)?;
    let at: i64 = time.parse().map_err(|_no_number| Unsigned::Malformed)?;
    if signatures.is_empty() {
        return Err(Unsigned::Malformed);
    }
    let mut signed = Vec::with_capacity(time.len() + 1 + body.len());
    signed.extend_from_slice(time.as_bytes());
    signed.push(b'.');
    signed.extend_from_slice(body);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
    // Compares in constant time.
    if !signatures.iter().any(|signature| hmac::verify(&key, &signed, signature).is_ok()) {
        return Err(Unsigned::Wrong);
    }
    if now_s.abs_diff(at) > TOLERANCE_S.unsigned_abs() {
        return Err(Unsigned::Stale);
    }
    Ok(())
}

/// An event, as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `evt_…` of Stripe's.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// When it was made, in seconds.
    pub created: i64,
    /// The customer that it is about.
    pub customer: Option<String>,
    /// The tenant that it names: in `client_reference_id`, or as `tenant` in the metadata.
    pub tenant: Option<TenantId>,
    /// What it asks for.
    pub news: News,
}

/// What an event asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A subscription is as it says.
    Subscription {
        /// `sub_…`.
        id: String,
        /// When it was made, in seconds; 0 where it does not say.
        since: i64,
        /// The plan of one that is paid for, `None` where no price of it stands for one; of one that has ended, the default.
        state: Subscription,
        /// Its place among events of the same second.
        rank: i64,
    },
    /// Something was paid for.
    Paid {
        /// Credits to add; 0 for what is no credits.
        credits: i64,
        /// The invoice or the session, booked once.
        reference: String,
    },
    /// An invoice was paid that has more lines than the event shows.
    PaidMore {
        /// The invoice.
        invoice: String,
    },
    /// A session has ended whose payment is told of by another event.
    Bound,
    /// Nothing that concerns us.
    Other,
}

/// Where a subscription stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// It gives this plan.
    Gives(String),
    /// It gives no plan that is known here.
    UnknownPrice,
    /// It gives none any more.
    Ended,
    /// Its first payment is not made yet.
    Pending,
}

/// Reads an event. `None` where it is none.
pub fn read(body: &Value, stripe: &Stripe) -> Option<Event> {
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let id = text(body.get("id")?)?;
    let kind = text(body.get("type")?)?;
    let created = body.get("created")?.as_i64()?;
    let object = body.get("data")?.get("object")?;
    let customer = object.get("customer").and_then(id_of);
    let tenant = [
        "/client_reference_id",
        "/metadata/tenant",
        "/parent/subscription_details/metadata/tenant",
        "/subscription_details/metadata/tenant",
    ]
    .iter()
    .find_map(|path| object.pointer(path)?.as_str()?.parse().ok());
    let reference = || object.get("id").and_then(id_of);
    let news = match kind.as_str() {
        "customer.subscription.created"
        | "customer.subscription.updated"
        | "customer.subscription.deleted" => News::Subscription {
            id: reference()?,
            since: object.get("created").and_then(Value::as_i64).unwrap_or(0),
            state: subscription(object, kind.ends_with("deleted"), &stripe.plans),
            rank: match kind.as_str() {
                "customer.subscription.created" => 0,
                "customer.subscription.updated" => 1,
                _ => 2,
            },
        },
        // An event shows ten lines at most. Where no line gives credits, the others do not either.
        "invoice.paid" if has_more(object.get("lines")) && !stripe.credits.is_empty() => {
            News::PaidMore { invoice: reference()? }
        }
        "invoice.paid" => News::Paid {
            credits: object.get("lines").map_or(0, |lines| credits_of(lines, &stripe.credits)),
            reference: reference()?,
        },
        "checkout.session.completed" | "checkout.session.async_payment_succeeded" => {
            let paid = object.get("payment_status").and_then(Value::as_str) == Some("paid");
            let once = object.get("mode").and_then(Value::as_str) == Some("payment");
            let credits = object.pointer("/metadata/credits").and_then(Value::as_str);
            let credits = credits.and_then(|text| text.parse().ok()).filter(|sum: &i64| *sum > 0);
            // What a subscription costs is told by its invoices.
            match credits {
                // Where an invoice is made of it, that is told of as well, and may give credits by its price: what is
                // one payment is booked under one name.
                Some(credits) if paid && once => {
                    let invoice = object.get("invoice").and_then(id_of);
                    News::Paid { credits, reference: invoice.or_else(reference)? }
                }
                Some(_) | None => News::Bound,
            }
        }
        _ => News::Other,
    };
    Some(Event { id, kind, created, customer, tenant, news })
}

/// An id that stands there alone, or as the field of an object that was expanded.
fn id_of(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("id")?.as_str()).map(ToOwned::to_owned)
}

fn subscription(object: &Value, deleted: bool, plans: &BTreeMap<String, String>) -> Subscription {
    let status = object.get("status").and_then(Value::as_str).unwrap_or_default();
    if deleted {
        return Subscription::Ended;
    }
    match status {
        // A payment that is late is tried again for days; whoever pays late is not cut off at once.
        "active" | "trialing" | "past_due" => {
            let items = object.pointer("/items/data").and_then(Value::as_array);
            let plan = items.into_iter().flatten().find_map(|item| mapped(item, plans));
            plan.cloned().map_or(Subscription::UnknownPrice, Subscription::Gives)
        }
        "canceled" | "unpaid" | "incomplete_expired" | "paused" => Subscription::Ended,
        _ => Subscription::Pending,
    }
}

/// The lines of a list of Stripe's.
fn lines(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("data").and_then(Value::as_array).into_iter().flatten()
}

fn has_more(list: Option<&Value>) -> bool {
    list.and_then(|list| list.get("has_more")?.as_bool()).unwrap_or(false)
}

/// The credits that a page of an invoice's lines gives.
pub fn credits_of(page: &Value, credits: &BTreeMap<String, u32>) -> i64 {
    lines(page).map(|line| credits_of_line(line, credits)).fold(0, i64::saturating_add)
}

/// Behind which line the next page begins; `None` where this one is the last.
pub fn next_page(page: &Value) -> Option<&str> {
    if !has_more(Some(page)) {
        return None;
    }
    lines(page).last()?.get("id")?.as_str()
}

fn credits_of_line(line: &Value, credits: &BTreeMap<String, u32>) -> i64 {
    let pieces = line.get("quantity").and_then(Value::as_i64).unwrap_or(1).max(0);
    let amount = line.get("amount").and_then(Value::as_i64).unwrap_or(0);
    // A trial that costs nothing gives no credits, nor does what is taken off the bill for the rest of a period.
    if amount <= 0 || is_proration(line) {
        return 0;
    }
    mapped(line, credits).map_or(0, |each| i64::from(*each).saturating_mul(pieces))
}

/// Whether a line is the share of a period for which a subscription was changed: what it is for is given in full by the
/// invoice of the period.
fn is_proration(line: &Value) -> bool {
    [
        "/proration",
        "/parent/subscription_item_details/proration",
        "/parent/invoice_item_details/proration",
    ]
    .iter()
    .any(|path| line.pointer(path).and_then(Value::as_bool) == Some(true))
}

/// What the price of an item or a line, or else its product, stands for.
fn mapped<'a, T>(line: &Value, by_id: &'a BTreeMap<String, T>) -> Option<&'a T> {
    [
        "/price",
        "/price/product",
        "/pricing/price_details/price",
        "/pricing/price_details/product",
        "/plan",
        "/plan/product",
    ]
    .iter()
    .find_map(|path| by_id.get(&line.pointer(path).and_then(id_of)?))
}

/// Where one of a customer's subscriptions stands, by the newest event about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Which subscription.
    pub subscription: String,
    /// When it was made, in seconds; 0 where that is not known.
    pub since: i64,
    /// The plan that it gives; `None` where it gives none any more.
    pub plan: Option<String>,
}

/// Which of a customer's subscriptions counts: of those that give a plan the one that was made last.
pub fn counts(all: &[Told]) -> Option<&Told> {
    all.iter()
        .filter(|told| told.plan.is_some())
        .max_by_key(|told| (told.since, told.subscription.as_str()))
}

/// What follows from a word about a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// The customer is on this plan; `None` for the default one.
    To(Option<String>),
    /// Another subscription counts, and still does.
    Unmoved,
    /// None gave a plan before, and none does now: the plan that the tenant has came from elsewhere.
    Foreign,
}

/// What follows from all that was known before a word about `subscription`, and all that is known with it.
pub fn moved(before: &[Told], after: &[Told], subscription: &str) -> Moved {
    let was = counts(before).map(|told| told.subscription.as_str());
    match counts(after) {
        Some(is) if is.subscription == subscription || was != Some(is.subscription.as_str()) => {
            Moved::To(is.plan.clone())
        }
        Some(_) => Moved::Unmoved,
        None if was.is_some() => Moved::To(None),
        None => Moved::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1"}"#;

    fn secret() -> SecretString {
        SecretString::from("whsec_test")
    }

    fn sign(secret: &str, time: i64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signed = [time.to_string().as_bytes(), b".", body].concat();
        data_encoding::HEXLOWER.encode(hmac::sign(&key, &signed).as_ref())
    }

    #[test]
    fn only_what_stripe_signed_in_time_is_taken() {
        let good = sign("whsec_test", 1_000, BODY);
        // As `printf '1000.{"id":"evt_1"}' | openssl dgst -sha256 -hmac whsec_test` says.
        let known = "387e46d34ab34bb0f3624adcaa371a0332240720155daad95713dfea27253ccd";
        assert_eq!(good, known);
        let other = sign("whsec_other", 1_000, BODY);
        let check = |header: &str, now| verify(header, BODY, &secret(), now);
        assert_eq!(check(&format!("t=1000,v1={good}"), 1_000), Ok(()));
        assert_eq!(check(&format!("t=1000, v1={good}"), 1_300), Ok(()));
        // Two secrets while one is rolled; an older scheme beside them.
        assert_eq!(check(&format!("t=1000,v1={other},v1={good},v0=00"), 700), Ok(()));
        assert_eq!(check(&format!("t=1000,v1={good}"), 1_301), Err(Unsigned::Stale));
        assert_eq!(check(&format!("t=1000,v1={good}"), 699), Err(Unsigned::Stale));
        assert_eq!(check(&format!("t=1001,v1={good}"), 1_000), Err(Unsigned::Wrong));
        assert_eq!(check(&format!("t=1000,v1={other}"), 1_000), Err(Unsigned::Wrong));
        assert_eq!(check(&format!("t=1000,v0={good}"), 1_000), Err(Unsigned::Malformed));
        assert_eq!(
            verify(&format!("t=1000,v1={good}"), b"{}", &secret(), 1_000),
            Err(Unsigned::Wrong)
        );
        for bad in ["", "t=,v1=", "v1=00", "t=x,v1=00", "t=1000,v1=zz", "t=1000"] {
            assert_eq!(check(bad, 1_000), Err(Unsigned::Malformed), "{bad:?}");
        }
    }

    fn stripe() -> Stripe {
        let plan = |id: &str, plan: &str| (id.to_owned(), plan.to_owned());
        Stripe {
            secret: secret(),
            plans: BTreeMap::from([plan("price_a", "starter"), plan("prod_b", "growth")]),
            credits: BTreeMap::from([("price_c".to_owned(), 500)]),
            api: None,
        }
    }

    fn event(kind: &str, object: &Value) -> Event {
        let body = json!({"id": "evt_1", "type": kind, "created": 7, "data": {"object": object}});
        read(&body, &stripe()).unwrap()
    }

    #[test]
    fn a_subscription_gives_the_plan_of_its_price_or_product() {
        let of = |kind: &str, status: &str, price: Value| {
            let object = json!({"id": "sub_1", "customer": "cus_1", "status": status,
                "items": {"data": [{"price": price}]}});
            let event = event(&format!("customer.subscription.{kind}"), &object);
            let News::Subscription { state, .. } = event.news else { panic!("{event:?}") };
            state
        };
        let price = json!({"id": "price_a", "product": "prod_z"});
        let gives = |plan: &str| Subscription::Gives(plan.to_owned());
        for status in ["active", "trialing", "past_due"] {
            assert_eq!(of("updated", status, price.clone()), gives("starter"), "{status}");
        }
        assert_eq!(
            of("created", "active", json!({"id": "x", "product": "prod_b"})),
            gives("growth")
        );
        assert_eq!(of("created", "active", json!({"id": "x"})), Subscription::UnknownPrice);
        for status in ["canceled", "unpaid", "incomplete_expired", "paused"] {
            assert_eq!(of("updated", status, price.clone()), Subscription::Ended, "{status}");
        }
        assert_eq!(of("deleted", "active", price.clone()), Subscription::Ended);
        assert_eq!(of("created", "incomplete", price), Subscription::Pending);
    }

    #[test]
    fn what_is_paid_for_adds_credits_in_the_forms_of_both_versions() {
        let tenant = TenantId::new(1, [1; 10]);
        let line = |pricing: Value| {
            let mut line = json!({"quantity": 2, "amount": 100});
            line.as_object_mut().unwrap().extend(pricing.as_object().unwrap().clone());
            line
        };
        for (pricing, credits) in [
            (json!({"pricing": {"price_details": {"price": "price_c", "product": "p"}}}), 1_000),
            (json!({"pricing": {"price_details": {"price": {"id": "price_c"}}}}), 1_000),
            (json!({"price": {"id": "price_c", "product": "p"}}), 1_000),
            (json!({"price": {"id": "price_a"}}), 0),
            (json!({"price": {"id": "price_c"}, "amount": -100}), 0),
            // A trial's invoice, and what does not say what it costs.
            (json!({"price": {"id": "price_c"}, "amount": 0}), 0),
            (json!({"price": {"id": "price_c"}, "amount": null}), 0),
            // A share of a period, as either version says it.
            (json!({"price": {"id": "price_c"}, "proration": true}), 0),
            (json!({"price": {"id": "price_c"}, "proration": false}), 1_000),
            (
                json!({"price": {"id": "price_c"},
                    "parent": {"subscription_item_details": {"proration": true}}}),
                0,
            ),
        ] {
            let invoice = json!({"id": "in_1", "customer": {"id": "cus_1"}, "lines": {"data": [line(pricing)]},
                "parent": {"subscription_details": {"metadata": {"tenant": tenant}}}});
            let event = event("invoice.paid", &invoice);
            let reference = "in_1".to_owned();
            assert_eq!(event.news, News::Paid { credits, reference });
            assert_eq!(event.customer.as_deref(), Some("cus_1"));
            assert_eq!(event.tenant.as_ref(), Some(&tenant));
        }
        let session = |mode: &str, status: &str| {
            event(
                "checkout.session.completed",
                &json!({"id": "cs_1", "mode": mode, "payment_status": status, "customer": null,
                    "client_reference_id": tenant, "metadata": {"credits": "250"}}),
            )
        };
        let paid = session("payment", "paid");
        assert_eq!(paid.news, News::Paid { credits: 250, reference: "cs_1".to_owned() });
        assert_eq!((paid.customer, paid.tenant), (None, Some(tenant.clone())));
        assert_eq!(session("payment", "unpaid").news, News::Bound);
        assert_eq!(session("subscription", "paid").news, News::Bound);
        assert_eq!(event("charge.refunded", &json!({})).news, News::Other);
    }

    #[test]
    fn what_is_no_event_is_not_read() {
        for body in [json!({}), json!([]), json!({"id": "e", "type": "x", "created": "1"})] {
            assert_eq!(read(&body, &stripe()), None);
        }
    }

    #[test]
    fn more_lines_than_are_shown_are_not_taken_for_all() {
        let lines = json!({"data": [{"id": "il_1", "amount": 900, "price": {"id": "price_c"}}], "has_more": true});
        let invoice = json!({"id": "in_1", "customer": "cus_1", "lines": lines});
        let more = News::PaidMore { invoice: "in_1".to_owned() };
        assert_eq!(event("invoice.paid", &invoice).news, more);
        assert_eq!((credits_of(&lines, &stripe().credits), next_page(&lines)), (500, Some("il_1")));
        assert_eq!(next_page(&json!({"data": [{"id": "il_1"}], "has_more": false})), None);
        // Nobody sells credits here: there is nothing to miss.
        let body =
            json!({"id": "e", "type": "invoice.paid", "created": 7, "data": {"object": invoice}});
        let without = Stripe { credits: BTreeMap::new(), ..stripe() };
        let none = News::Paid { credits: 0, reference: "in_1".to_owned() };
        assert_eq!(read(&body, &without).unwrap().news, none);
    }

    #[test]
    fn a_session_and_its_invoice_are_one_payment() {
        for (invoice, reference) in
            [(json!("in_1"), "in_1"), (json!({"id": "in_1"}), "in_1"), (json!(null), "cs_1")]
        {
            let session = json!({"id": "cs_1", "mode": "payment", "payment_status": "paid",
                "invoice": invoice, "metadata": {"credits": "250"}});
            let event = event("checkout.session.completed", &session);
            assert_eq!(event.news, News::Paid { credits: 250, reference: reference.to_owned() });
        }
    }

    #[test]
    fn the_newest_that_gives_a_plan_counts() {
        let told = |subscription: &str, since, plan: Option<&str>| Told {
            subscription: subscription.to_owned(),
            since,
            plan: plan.map(ToOwned::to_owned),
        };
        let to = |plan: Option<&str>| Moved::To(plan.map(ToOwned::to_owned));
        let (old, new) = (told("z_old", 5, Some("small")), told("a_new", 6, Some("large")));
        let (old_over, new_over) = (told("z_old", 5, None), told("a_new", 6, None));
        for (before, after, word, expected) in [
            (vec![], vec![old.clone()], "z_old", to(Some("small"))),
            (vec![old.clone()], vec![old.clone(), new.clone()], "a_new", to(Some("large"))),
            (vec![new.clone()], vec![old.clone(), new.clone()], "z_old", Moved::Unmoved),
            (
                vec![old.clone(), new.clone()],
                vec![old.clone(), new_over.clone()],
                "a_new",
                to(Some("small")),
            ),
            (
                vec![old.clone(), new.clone()],
                vec![old_over.clone(), new.clone()],
                "z_old",
                Moved::Unmoved,
            ),
            (
                vec![old_over.clone(), new.clone()],
                vec![old_over.clone(), new_over.clone()],
                "a_new",
                to(None),
            ),
            (vec![old.clone()], vec![old.clone(), new_over.clone()], "a_new", Moved::Unmoved),
            (vec![], vec![old_over.clone()], "z_old", Moved::Foreign),
            (vec![old_over.clone()], vec![old_over, new_over], "a_new", Moved::Foreign),
            (vec![new.clone()], vec![new], "a_new", to(Some("large"))),
        ] {
            assert_eq!(moved(&before, &after, word), expected, "{before:?} {after:?}");
        }
    }
}
