//! Plans, credits, usage and Stripe over the real API.
#![expect(
    clippy::unwrap_used,
    reason = "JSON without the field asked for fails the test, as it should"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::api_support::{ADMIN, Answer, Router, Tenant};
use aws_lc_rs::hmac;
use serde_json::{Value, json};

const PLANS: &str = "[billing.plans.small]\nmessages_per_month = 20\n\
    [billing.plans.paid]\ncredits_per_message = 2\n\
    [billing.plans.tight]\nmessages_per_month = 2\ncredits_per_message = 1\n";
const SECRET: &str = "whsec_of_the_tests";

fn text() -> Value {
    json!({"to": "+12025550143", "text": "Hello", "class": "transactional", "channel": "sms"})
}

async fn put(router: &Router, tenant: &Tenant, body: Value) -> Answer {
    let path = format!("{}/v1/admin/tenants/{}/billing", router.url, tenant.id);
    router.send(router.client.put(path).bearer_auth(ADMIN).json(&body)).await
}

async fn add(router: &Router, tenant: &Tenant, body: Value) -> Answer {
    router.post(&format!("/v1/admin/tenants/{}/credits", tenant.id), ADMIN, &body).await
}

async fn billing(router: &Router, tenant: &Tenant) -> Value {
    let answer = router.get("/v1/billing", &tenant.live).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_requests_at_once_get_what_the_plan_has_and_no_more() {
    let router = Router::start_with(PLANS).await;
    let (quota, credit) = (router.tenant("Quota").await, router.tenant("Credit").await);
    assert_eq!(put(&router, &quota, json!({"plan": "small"})).await.status, 200);
    assert_eq!(put(&router, &credit, json!({"plan": "paid"})).await.status, 200);
    assert_eq!(add(&router, &credit, json!({"amount": 31, "reason": "start"})).await.status, 201);
    for (tenant, accepted, code, status) in
        [(&quota, 20, "quota_exceeded", 429), (&credit, 15, "insufficient_credit", 402)]
    {
        let body = text();
        let all = (0..64).map(|_| router.post("/v1/messages", &tenant.live, &body));
        let all = futures_util::future::join_all(all).await;
        assert_eq!(all.iter().filter(|answer| answer.status == 202).count(), accepted);
        for refused in all.iter().filter(|answer| answer.status != 202) {
            assert_eq!((refused.status, refused.problem()), (status, code));
        }
        // Who asks before is told so, too.
        let asked = router.post("/v1/messages:check", &tenant.live, &body).await;
        assert_eq!(
            (&asked.body["verdict"], &asked.body["reason"]),
            (&json!("block"), &json!(code))
        );
        // A test key sends all the same.
        assert_eq!(router.post("/v1/messages", &tenant.test, &body).await.status, 202);
    }
    let refused = router.post("/v1/messages", &quota.live, &text()).await;
    let resets_at = billing(&router, &quota).await["resets_at"].clone();
    assert_eq!(refused.body["resets_at"], resets_at);
    let seconds: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=31 * 86_400).contains(&seconds), "{seconds}");
    assert!(refused.body["detail"].as_str().unwrap().contains("20 messages a month"));
    let stands = billing(&router, &credit).await;
    assert_eq!((&stands["credit"], &stands["used"]), (&json!(1), &json!(15)));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pays_is_set_and_what_cannot_be_is_refused() {
    let router = Router::start_with(PLANS).await;
    let (agent, customer) = (router.tenant("Agent").await, router.tenant("Customer").await);
    let fresh = billing(&router, &customer).await;
    assert_eq!((&fresh["plan"], &fresh["plan_is_default"]), (&json!("unlimited"), &json!(true)));
    put(&router, &agent, json!({"plan": "tight"})).await;
    add(&router, &agent, json!({"amount": 5, "reason": "start"})).await;
    let paid = put(&router, &customer, json!({"billing_account_id": agent.id})).await;
    assert_eq!((paid.status, &paid.body["billing_account_id"]), (200, &json!(agent.id)));
    for status in [202, 202, 429] {
        assert_eq!(router.post("/v1/messages", &customer.live, &text()).await.status, status);
    }
    assert_eq!(billing(&router, &agent).await["credit"], 3);
    // The customer's messages stand in the customer's usage, and the agent has sent none.
    let rows = router.get("/v1/usage", &customer.live).await.body["data"].clone();
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    assert_eq!((&rows[0]["accepted"], &rows[0]["credits"]), (&json!(2), &json!(2)));
    assert_eq!((&rows[0]["class"], &rows[0]["channel"]), (&json!("transactional"), &json!("sms")));
    assert_eq!(router.get("/v1/usage", &agent.live).await.body["data"], json!([]));
    for (of, body, code) in [
        (&customer, json!({"plan": "large"}), "unknown_plan"),
        (&customer, json!({"billing_account_id": customer.id}), "pays_for_itself"),
        (&agent, json!({"billing_account_id": customer.id}), "is_paid_for"),
        (
            &customer,
            json!({"billing_account_id": "ten_00000000000000000000000000"}),
            "unknown_tenant",
        ),
        (&customer, json!({"billing_account_id": "me"}), "invalid_id"),
    ] {
        let refused = put(&router, of, body.clone()).await;
        assert_eq!((refused.status, refused.problem()), (422, "invalid_request"), "{body}");
        assert_eq!(refused.body["errors"][0]["code"], code, "{refused:?}");
    }
    // A refusal changed nothing of it.
    assert_eq!(billing(&router, &customer).await["billing_account_id"], json!(agent.id));
    let gone = Tenant {
        id: "ten_00000000000000000000000000".to_owned(),
        live: String::new(),
        test: String::new(),
    };
    assert_eq!(put(&router, &gone, json!({})).await.status, 404);
    assert_eq!(add(&router, &gone, json!({"amount": 1, "reason": "x"})).await.status, 404);
    let names: Vec<Value> = router.get("/v1/admin/plans", ADMIN).await.body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plan| plan["name"].clone())
        .collect();
    assert_eq!(names, ["paid", "small", "tight", "unlimited"]);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_credit_stands_in_the_ledger_once() {
    let router = Router::start_with(PLANS).await;
    let tenant = router.tenant("Acme").await;
    let invoice = json!({"amount": 100, "reason": "invoice", "reference": "in-7"});
    let first = add(&router, &tenant, invoice.clone()).await;
    assert_eq!((first.status, &first.body["balance"]), (201, &json!(100)));
    let again = add(&router, &tenant, invoice).await;
    assert_eq!((again.status, &again.body["id"]), (200, &first.body["id"]));
    let other = json!({"amount": 101, "reason": "invoice", "reference": "in-7"});
    assert_eq!(add(&router, &tenant, other).await.problem(), "already_exists");
    let taken = json!({"amount": -130, "reason": "mistake"});
    assert_eq!(add(&router, &tenant, taken).await.body["balance"], -30);
    for (body, pointer) in [
        (json!({"amount": 0, "reason": "x"}), "/amount"),
        (json!({"amount": 1.5, "reason": "x"}), "/amount"),
        (json!({"amount": "5", "reason": "x"}), "/amount"),
        (json!({"amount": 2_000_000_000_000_i64, "reason": "x"}), "/amount"),
        (json!({"reason": "x"}), "/amount"),
        (json!({"amount": 1}), "/reason"),
    ] {
        let refused = add(&router, &tenant, body.clone()).await;
        assert_eq!(
            (refused.status, &refused.body["errors"][0]["pointer"]),
            (422, &json!(pointer)),
            "{body}"
        );
    }
    // The same request under its key is booked once, too.
    let path = format!("{}/v1/admin/tenants/{}/credits", router.url, tenant.id);
    for _ in 0..2 {
        let request = router.client.post(&path).bearer_auth(ADMIN).header("idempotency-key", "k");
        let sent = router.send(request.json(&json!({"amount": 7, "reason": "once"}))).await;
        assert_eq!((sent.status, &sent.body["balance"]), (201, &json!(-23)));
    }
    let first = router.get("/v1/credits?limit=2", &tenant.live).await.body;
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = router.get(&format!("/v1/credits?limit=2&cursor={cursor}"), &tenant.live).await.body;
    let mut amounts: Vec<i64> = [&first, &rest]
        .iter()
        .flat_map(|page| page["data"].as_array().unwrap())
        .map(|entry| entry["amount"].as_i64().unwrap())
        .collect();
    amounts.sort_unstable();
    assert_eq!((amounts, &rest["has_more"]), (vec![-130, 7, 100], &json!(false)));
    let log = router.get(&format!("/v1/admin/audit_log?tenant={}", tenant.id), ADMIN).await.body;
    let written = log["data"].to_string();
    assert!(written.contains("POST /v1/admin/tenants/{id}/credits"), "{written}");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_read_page_by_page_by_day_and_by_month() {
    let router = Router::start().await;
    let (one, other) = (router.tenant("One").await, router.tenant("Other").await);
    for tenant in [&one, &other] {
        for class in ["otp", "transactional", "marketing"] {
            let body = json!({"to": "+12025550143", "text": "x", "class": class});
            assert_eq!(router.post("/v1/messages", &tenant.live, &body).await.status, 202);
        }
    }
    // Two days of other months, as if somebody had sent then.
    let tenants = [one.id.clone(), other.id.clone()];
    router
        .app
        .store
        .write(move |tx| {
            for tenant in &tenants {
                for day in [20_250_115, 20_250_116, 20_250_201] {
                    tx.execute(
                        "INSERT INTO usage (tenant_id, day, class, channel, accepted, segments, sent, returned,
                             credits, credits_returned) VALUES (?1, ?2, 'otp', 'sms', 2, 3, 1, 1, 4, 2)",
                        router::params![tenant, i64::from(day)],
                    )?;
                }
            }
            Ok(())
        })
        .await
        .unwrap();
    let pages = async |path: &str, key: &str| {
        let mut rows = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = router.get(&format!("{path}&limit=2{cursor}"), key).await;
            assert_eq!(page.status, 200, "{page:?}");
            rows.extend(page.body["data"].as_array().unwrap().clone());
            match page.body["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return rows,
            }
        }
    };
    let periods = |rows: &[Value]| {
        rows.iter().map(|row| row["period"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let days = pages("/v1/usage?period=day&from=2025-01-01&to=2025-12-31", &one.live).await;
    assert_eq!(periods(&days), ["2025-02-01", "2025-01-16", "2025-01-15"]);
    let months = pages("/v1/usage?from=2025-01-01", &one.live).await;
    assert_eq!(months.len(), 5, "{months:?}");
    assert_eq!(periods(&months)[3..], ["2025-02", "2025-01"]);
    assert_eq!(months[4]["segments"], 6);
    assert!(months.iter().all(|row| row.get("tenant").is_none()));
    // This month alone, unless asked otherwise.
    assert_eq!(pages("/v1/usage?period=month", &one.live).await.len(), 3);
    let all = pages("/v1/admin/usage?from=2025-01-01", ADMIN).await;
    assert_eq!(all.len(), 10);
    assert_eq!(all.iter().filter(|row| row["tenant"] == json!(one.id)).count(), 5);
    // Tenants without any in these days are looked past, and only so many on one page.
    router
        .app
        .store
        .write(|tx| {
            for number in 0..600_i64 {
                tx.execute(
                    "INSERT INTO usage (tenant_id, day, class, channel, accepted, segments, sent, returned, credits,
                         credits_returned) VALUES (?1, 20240101, 'otp', 'sms', 1, 1, 1, 0, 0, 0)",
                    // Behind every id of ours.
                    router::params![format!("ten_v{number:025}")],
                )?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let first = router.get("/v1/admin/usage?from=2025-01-01", ADMIN).await.body;
    assert_eq!((&first["data"], &first["has_more"]), (&json!([]), &json!(true)));
    assert_eq!(pages("/v1/admin/usage?from=2025-01-01", ADMIN).await, all);
    let path = format!("/v1/admin/usage?tenant={}", one.id);
    assert_eq!(pages(&path, ADMIN).await.len(), 3);
    for bad in ["period=week", "from=2025-13-01", "to=yesterday", "cursor=AAAA", "tenant=x"] {
        assert_eq!(router.get(&format!("/v1/usage?{bad}"), &one.live).await.status, 422, "{bad}");
    }
    router.stop().await;
}

/// Posts an event as Stripe would.
async fn told(router: &Router, event: &Value) -> Answer {
    let body = event.to_string();
    let seconds = router.app.clock.now().0 / 1_000;
    let header = signed(seconds, &body);
    let request = router.client.post(format!("{}/v1/stripe/webhook", router.url));
    router.send(request.header("stripe-signature", header).body(body)).await
}

fn signed(seconds: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    format!("t={seconds},v1={}", data_encoding::HEXLOWER.encode(tag.as_ref()))
}

fn subscription(id: &str, kind: &str, created: i64, customer: &str, price: &str) -> Value {
    json!({"id": id, "object": "event", "type": format!("customer.subscription.{kind}"), "created": created,
        "data": {"object": {"id": format!("sub_{customer}"), "object": "subscription", "customer": customer,
            "status": "active", "items": {"data": [{"price": {"id": price, "product": "prod_x"}}]}}}})
}

async fn with_stripe() -> Router {
    with_stripe_and("").await
}

/// `more` is TOML of `[billing.stripe]`.
async fn with_stripe_and(more: &str) -> Router {
    // The secret comes from a file as in life; the router of the tests reads its own folder.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{SECRET}\n")).unwrap();
    let more = format!(
        "{PLANS}[billing.stripe]\nwebhook_secret_file = \"{}\"\n{more}\
         plans = {{ price_small = \"small\", price_paid = \"paid\" }}\ncredits = {{ price_credit = 500 }}\n",
        file.path().display()
    );
    Router::start_with(&more).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stripe_moves_plans_forwards_and_never_back() {
    let router = with_stripe().await;
    let tenant = router.tenant("Acme").await;
    let outcome = async |event: &Value| {
        let answer = told(&router, event).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["outcome"].as_str().unwrap().to_owned()
    };
    let plan = async || billing(&router, &tenant).await["plan"].clone();
    // Stripe tells of a subscription before it tells whose it is.
    let created = subscription("evt_1", "created", 100, "cus_1", "price_small");
    assert_eq!(outcome(&created).await, "unknown_customer");
    assert_eq!(plan().await, "unlimited");
    let session = json!({"id": "evt_2", "type": "checkout.session.completed", "created": 101,
        "data": {"object": {"id": "cs_1", "mode": "subscription", "payment_status": "paid", "customer": "cus_1",
            "client_reference_id": tenant.id}}});
    assert_eq!(outcome(&session).await, "bound");
    assert_eq!(plan().await, "small");
    let newer = subscription("evt_3", "updated", 200, "cus_1", "price_paid");
    assert_eq!(outcome(&newer).await, "plan_set");
    assert_eq!(outcome(&newer).await, "repeated");
    let older = subscription("evt_4", "updated", 150, "cus_1", "price_small");
    assert_eq!(outcome(&older).await, "outdated");
    assert_eq!(plan().await, "paid");
    let strange = subscription("evt_5", "updated", 300, "cus_1", "price_of_another_shop");
    assert_eq!(outcome(&strange).await, "unknown_price");
    let nobody = subscription("evt_6", "updated", 300, "cus_2", "price_small");
    assert_eq!(outcome(&nobody).await, "unknown_customer");
    // An invoice adds credits once, whatever events tell of it.
    let invoice = |event: &str| {
        json!({"id": event, "type": "invoice.paid", "created": 310, "data": {"object": {"id": "in_1",
            "customer": "cus_1", "lines": {"data": [{"quantity": 2, "amount": 900,
                "pricing": {"price_details": {"price": "price_credit"}}}]}}}})
    };
    assert_eq!(outcome(&invoice("evt_7")).await, "credit_added");
    assert_eq!(outcome(&invoice("evt_7")).await, "repeated");
    assert_eq!(outcome(&invoice("evt_8")).await, "repeated");
    assert_eq!(billing(&router, &tenant).await["credit"], 1_000);
    let ended = subscription("evt_9", "deleted", 400, "cus_1", "price_paid");
    assert_eq!(outcome(&ended).await, "plan_set");
    let stands = billing(&router, &tenant).await;
    assert_eq!((&stands["plan"], &stands["plan_is_default"]), (&json!("unlimited"), &json!(true)));
    let late = subscription("evt_10", "updated", 399, "cus_1", "price_paid");
    assert_eq!(outcome(&late).await, "outdated");
    let other =
        json!({"id": "evt_11", "type": "charge.refunded", "created": 500, "data": {"object": {}}});
    assert_eq!(outcome(&other).await, "ignored");
    // Another tenant cannot be the same customer, and an event cannot say so either.
    let second = router.tenant("Second").await;
    let taken = put(&router, &second, json!({"stripe_customer_id": "cus_1"})).await;
    assert_eq!((taken.status, taken.problem()), (409, "already_exists"));
    let mut false_name = subscription("evt_12", "updated", 500, "cus_1", "price_small");
    false_name["data"]["object"]["metadata"] = json!({"tenant": second.id});
    assert_eq!(outcome(&false_name).await, "unknown_tenant");
    // The operator says by hand whose customer cus_2 is, of whom a subscription was told before; again, it is the same.
    for time in ["first", "second"] {
        let bound = put(&router, &second, json!({"stripe_customer_id": "cus_2"})).await;
        assert_eq!(bound.body["plan"], "small", "{time}");
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_paid_before_it_was_told_by_whom_is_not_lost() {
    let router = with_stripe().await;
    let tenant = router.tenant("Acme").await;
    let outcome = async |event: &Value| told(&router, event).await.body["outcome"].clone();
    let invoice = |event: &str, id: &str, price: &str| {
        json!({"id": event, "type": "invoice.paid", "created": 310, "data": {"object": {"id": id,
            "customer": "cus_1", "lines": {"data": [{"quantity": 2, "amount": 900,
                "pricing": {"price_details": {"price": price}}}]}}}})
    };
    assert_eq!(outcome(&invoice("evt_1", "in_1", "price_credit")).await, "unknown_customer");
    // Sent again, and told of by another event, it still counts once.
    assert_eq!(outcome(&invoice("evt_1", "in_1", "price_credit")).await, "unknown_customer");
    assert_eq!(outcome(&invoice("evt_2", "in_1", "price_credit")).await, "unknown_customer");
    assert_eq!(outcome(&invoice("evt_3", "in_2", "price_credit")).await, "unknown_customer");
    let session = json!({"id": "evt_4", "type": "checkout.session.completed", "created": 311,
        "data": {"object": {"id": "cs_1", "mode": "subscription", "payment_status": "paid", "customer": "cus_1",
            "client_reference_id": tenant.id}}});
    assert_eq!(outcome(&session).await, "bound");
    assert_eq!(billing(&router, &tenant).await["credit"], 2_000);
    // What was left undone then is found to be done when it is sent again.
    assert_eq!(outcome(&invoice("evt_3", "in_2", "price_credit")).await, "repeated");
    assert_eq!(billing(&router, &tenant).await["credit"], 2_000);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_never_gave_the_plan_takes_none_away() {
    let router = with_stripe().await;
    let tenant = router.tenant("Acme").await;
    let own = json!({"plan": "paid", "stripe_customer_id": "cus_1"});
    assert_eq!(put(&router, &tenant, own).await.status, 200);
    // A first payment that was never made.
    let mut lapsed = subscription("evt_1", "updated", 200, "cus_1", "price_small");
    lapsed["data"]["object"]["status"] = json!("incomplete_expired");
    assert_eq!(told(&router, &lapsed).await.body["outcome"], "ignored");
    assert_eq!(billing(&router, &tenant).await["plan"], "paid");
    // What is told of it late gives nothing either.
    let late = subscription("evt_2", "created", 199, "cus_1", "price_small");
    assert_eq!(told(&router, &late).await.body["outcome"], "outdated");
    assert_eq!(billing(&router, &tenant).await["plan"], "paid");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_subscription_undoes_no_newer_ones_plan() {
    let router = with_stripe().await;
    let tenant = router.tenant("Acme").await;
    put(&router, &tenant, json!({"stripe_customer_id": "cus_1"})).await;
    let outcome =
        async |event: &str, kind: &str, created: i64, (id, since, price): (&str, i64, &str)| {
            let mut event = subscription(event, kind, created, "cus_1", price);
            event["data"]["object"]["id"] = json!(id);
            event["data"]["object"]["created"] = json!(since);
            told(&router, &event).await.body["outcome"].as_str().unwrap().to_owned()
        };
    let plan = async || billing(&router, &tenant).await["plan"].clone();
    let (old, new) = (("sub_old", 100, "price_small"), ("sub_new", 200, "price_paid"));
    assert_eq!(outcome("evt_1", "created", 100, old).await, "plan_set");
    // That the older one is renewed is told before the newer one, which was made before that.
    assert_eq!(outcome("evt_2", "updated", 250, old).await, "plan_set");
    assert_eq!(outcome("evt_3", "created", 200, new).await, "plan_set");
    assert_eq!(outcome("evt_4", "updated", 300, old).await, "outdated");
    assert_eq!(plan().await, "paid");
    assert_eq!(outcome("evt_5", "deleted", 310, old).await, "outdated");
    assert_eq!(plan().await, "paid");
    assert_eq!(outcome("evt_6", "deleted", 400, new).await, "plan_set");
    assert_eq!(plan().await, "unlimited");
    assert_eq!(outcome("evt_7", "updated", 309, old).await, "outdated");
    assert_eq!(outcome("evt_8", "updated", 401, old).await, "plan_set");
    assert_eq!(plan().await, "small");
    // When the newer one ends, the older one that goes on counts at once, by what was told of it last.
    assert_eq!(outcome("evt_20", "updated", 410, new).await, "plan_set");
    assert_eq!(plan().await, "paid");
    assert_eq!(outcome("evt_21", "deleted", 420, new).await, "plan_set");
    assert_eq!(plan().await, "small");
    // Of a customer who is nobody yet, too.
    for (event, created, (id, since, price)) in
        [("evt_10", 200, new), ("evt_11", 300, old), ("evt_12", 301, old)]
    {
        let mut event = subscription(event, "updated", created, "cus_2", price);
        event["data"]["object"]["id"] = json!(id);
        event["data"]["object"]["created"] = json!(since);
        assert_eq!(told(&router, &event).await.body["outcome"], "unknown_customer");
    }
    let second = router.tenant("Second").await;
    let bound = put(&router, &second, json!({"stripe_customer_id": "cus_2"})).await;
    assert_eq!(bound.body["plan"], "paid");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_late_of_a_subscription_that_has_ended_gives_no_plan() {
    let router = with_stripe().await;
    let tenant = router.tenant("Acme").await;
    put(&router, &tenant, json!({"stripe_customer_id": "cus_1"})).await;
    let mut number = 0;
    let mut outcome = async |customer: &str, kind: &str, created: i64, of: (&str, i64, &str)| {
        number += 1;
        let mut event = subscription(&format!("evt_{number}"), kind, created, customer, of.2);
        event["data"]["object"]["id"] = json!(of.0);
        event["data"]["object"]["created"] = json!(of.1);
        told(&router, &event).await.body["outcome"].as_str().unwrap().to_owned()
    };
    let (counts, dead) = (("sub_a", 100, "price_small"), ("sub_b", 200, "price_paid"));
    assert_eq!(outcome("cus_1", "created", 100, counts).await, "plan_set");
    // The newer one was made and ended again; its end is told first, and an earlier word of that after it.
    assert_eq!(outcome("cus_1", "deleted", 300, dead).await, "outdated");
    assert_eq!(outcome("cus_1", "deleted", 210, dead).await, "outdated");
    assert_eq!(outcome("cus_1", "created", 200, dead).await, "outdated");
    assert_eq!(outcome("cus_1", "updated", 300, dead).await, "outdated");
    assert_eq!(billing(&router, &tenant).await["plan"], "small");
    // Another customer's of the same name is another one.
    assert_eq!(outcome("cus_3", "created", 200, dead).await, "unknown_customer");
    // Of a customer who is nobody yet, too.
    assert_eq!(outcome("cus_2", "created", 100, counts).await, "unknown_customer");
    assert_eq!(outcome("cus_2", "deleted", 300, dead).await, "unknown_customer");
    assert_eq!(outcome("cus_2", "created", 200, dead).await, "outdated");
    let second = router.tenant("Second").await;
    let bound = put(&router, &second, json!({"stripe_customer_id": "cus_2"})).await;
    assert_eq!(bound.body["plan"], "small");
    // One that was only unpaid gives its plan when it is paid.
    assert_eq!(outcome("cus_1", "updated", 301, dead).await, "plan_set");
    assert_eq!(billing(&router, &tenant).await["plan"], "paid");
    router.stop().await;
}

/// An invoice with so many lines, of which an event shows ten; each is one piece of 500 credits.
fn long_invoice(event: &str) -> Value {
    json!({"id": event, "type": "invoice.paid", "created": 310, "data": {"object": {"id": "in_1",
        "customer": "cus_1", "lines": {"has_more": true, "url": "/v1/invoices/in_1/lines", "data": page(0, 10)}}}})
}

fn page(from: usize, lines: usize) -> Vec<Value> {
    let price = json!({"price_details": {"price": "price_credit"}});
    let line = |number| json!({"id": format!("il_{number}"), "quantity": 1, "amount": 900, "pricing": price});
    (from..from + lines).map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_of_more_lines_than_an_event_shows_loses_no_credits() {
    // Stripe's API, of which the second page fails once.
    let fails = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fails);
    let api = axum::Router::new().route(
        "/v1/invoices/{id}/lines",
        axum::routing::get(async move |uri: axum::http::Uri, headers: axum::http::HeaderMap| {
            assert_eq!(headers["authorization"], "Bearer rk_test");
            match uri.query().unwrap() {
                "limit=50" => Ok(axum::Json(json!({"data": page(0, 50), "has_more": true}))),
                "limit=50&starting_after=il_49" if failing.swap(false, Ordering::SeqCst) => {
                    Err(500)
                }
                "limit=50&starting_after=il_49" => {
                    Ok(axum::Json(json!({"data": page(50, 13), "has_more": false})))
                }
                other => panic!("{other}"),
            }
            .map_err(|status| axum::http::StatusCode::from_u16(status).unwrap())
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served =
        tokio_util::task::TaskTracker::new().spawn(async move { axum::serve(listener, api).await });
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "rk_test\n").unwrap();
    let more =
        format!("api_key_file = \"{}\"\napi_url = \"http://{address}\"\n", key.path().display());
    let router = with_stripe_and(&more).await;
    let tenant = router.tenant("Acme").await;
    put(&router, &tenant, json!({"stripe_customer_id": "cus_1"})).await;
    // Stripe posts again what is not answered with 200.
    assert_eq!(told(&router, &long_invoice("evt_1")).await.status, 503);
    assert_eq!(billing(&router, &tenant).await["credit"], 0);
    assert!(!fails.load(Ordering::SeqCst));
    for (event, outcome) in
        [("evt_1", "credit_added"), ("evt_1", "repeated"), ("evt_2", "repeated")]
    {
        assert_eq!(told(&router, &long_invoice(event)).await.body["outcome"], outcome, "{event}");
    }
    assert_eq!(billing(&router, &tenant).await["credit"], 63 * 500);
    router.stop().await;
    served.abort();
    // Without a key nothing is added, so that the whole can be later.
    let router = with_stripe().await;
    let tenant = router.tenant("Acme").await;
    put(&router, &tenant, json!({"stripe_customer_id": "cus_1"})).await;
    for _ in 0..2 {
        assert_eq!(told(&router, &long_invoice("evt_1")).await.body["outcome"], "incomplete");
    }
    assert_eq!(billing(&router, &tenant).await["credit"], 0);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_and_its_invoice_add_credits_once() {
    let router = with_stripe().await;
    let session = |event: &str, number: u8, tenant: &str| {
        json!({"id": event, "type": "checkout.session.completed", "created": 311,
            "data": {"object": {"id": format!("cs_{number}"), "mode": "payment", "payment_status": "paid",
                "customer": format!("cus_{number}"), "invoice": format!("in_{number}"),
                "client_reference_id": tenant, "metadata": {"credits": "500"}}}})
    };
    let invoice = |event: &str, number: u8| {
        json!({"id": event, "type": "invoice.paid", "created": 310, "data": {"object": {
            "id": format!("in_{number}"), "customer": format!("cus_{number}"),
            "lines": {"has_more": false, "data": page(0, 1)}}}})
    };
    let outcome = async |event: &Value| told(&router, event).await.body["outcome"].clone();
    // In either order, and where it is not known yet whose customer it is.
    let one = router.tenant("One").await;
    assert_eq!(outcome(&session("evt_1", 1, &one.id)).await, "credit_added");
    assert_eq!(outcome(&invoice("evt_2", 1)).await, "repeated");
    let two = router.tenant("Two").await;
    put(&router, &two, json!({"stripe_customer_id": "cus_2"})).await;
    assert_eq!(outcome(&invoice("evt_3", 2)).await, "credit_added");
    assert_eq!(outcome(&session("evt_4", 2, &two.id)).await, "repeated");
    let three = router.tenant("Three").await;
    assert_eq!(outcome(&invoice("evt_5", 3)).await, "unknown_customer");
    assert_eq!(outcome(&session("evt_6", 3, &three.id)).await, "repeated");
    for tenant in [one, two, three] {
        assert_eq!(billing(&router, &tenant).await["credit"], 500);
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_has_not_signed_changes_nothing() {
    let router = with_stripe().await;
    let tenant = router.tenant("Acme").await;
    put(&router, &tenant, json!({"stripe_customer_id": "cus_1"})).await;
    let body = subscription("evt_1", "created", 100, "cus_1", "price_small").to_string();
    let now = router.app.clock.now().0 / 1_000;
    let other = body.replace("price_small", "price_paid");
    for (header, body) in [
        (None, &body),
        (Some("t=1,v1=00".to_owned()), &body),
        (Some(signed(now - 400, &body)), &body),
        (Some(signed(now + 400, &body)), &body),
        (Some(signed(now, &body)), &other),
    ] {
        let request = router.client.post(format!("{}/v1/stripe/webhook", router.url));
        let request = match &header {
            Some(header) => request.header("stripe-signature", header),
            None => request,
        };
        let refused = router.send(request.body(body.clone())).await;
        assert_eq!((refused.status, refused.problem()), (400, "invalid_signature"), "{header:?}");
    }
    assert_eq!(told(&router, &json!(["no", "event"])).await.problem(), "malformed_json");
    assert_eq!(billing(&router, &tenant).await["plan"], "unlimited");
    router.stop().await;
    // Where it is not set up, there is nothing.
    let without = Router::start().await;
    assert_eq!(told(&without, &json!({})).await.problem(), "not_found");
    without.stop().await;
}
