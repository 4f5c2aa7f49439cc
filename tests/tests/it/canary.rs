//! Two phones write to each other to see that both work, on one host or on two, and no tenant hears of it.

#![cfg(test)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::eventually;
use e2e::program;
use e2e::second::Second;
use e2e::shelf::{Plan, Shelf};
use protocol::api::Direction;
use protocol::{UnixMs, canary};
use reqwest::Method;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(40);
const PAIR: &str = r#"
[[canary]]
from = "+12025550190"
to = "+12025550191"
every_s = 2
lost_after_s = 20
"#;

async fn standing(shelf: &Shelf) -> Result<Value> {
    let host: Value = shelf.dispatch()?.call(Method::GET, "/v1/host", None, None).await??;
    host.pointer("/canaries/0").cloned().context("a pair")
}

async fn played() -> Result<()> {
    let phones = vec![("+12025550190", "26"), ("+12025550191", "15")];
    let shelf = Shelf::start(Plan { phones, speed: 0.2, more: PAIR, ..Plan::default() }).await?;
    let pair = eventually("canaries arrive", WITHIN, || async {
        let pair = standing(&shelf).await?;
        let seen = pair["seen"].as_u64().is_some_and(|seen| seen >= 3);
        Ok(if seen { Ok(pair) } else { Err(pair.to_string()) })
    })
    .await?;
    println!("{pair}");
    ensure!(pair["lost"] == 0 && pair["alarm"] == false, "{pair}");
    let asked = shelf.asked()?;
    ensure!(asked.len() >= 3, "{asked:?}");
    ensure!(
        asked.iter().all(|ask| {
            ask.phone == "+12025550190"
                && ask.to == "+12025550191"
                && canary::of_text(&ask.text).is_some()
        }),
        "{asked:?}"
    );

    // The same words of a stranger are a message like any other; it comes after all canaries that were seen.
    let phones = shelf.operator.phones().await?;
    let to = phones.iter().find(|phone| phone.number.as_str() == "+12025550191").context("to")?;
    let words = canary::text(&canary::id(UnixMs(1_795_000_000_000), [1; 4]));
    shelf.receive(&to.number, "+14155550123", &words)?;
    let inbound = eventually("what a stranger writes is told", WITHIN, || async {
        let all = shelf.tenant.messages().await?;
        Ok(if all.is_empty() { Err("nothing".to_owned()) } else { Ok(all) })
    })
    .await?;
    ensure!(
        inbound.len() == 1
            && inbound.iter().all(|message| {
                message.direction == Direction::Inbound && message.text == words
            }),
        "a canary reached a tenant: {inbound:?}"
    );
    let unplaced: Value =
        shelf.operator.call(Method::GET, "/v1/admin/unplaced_events", None, None).await??;
    ensure!(unplaced["data"] == serde_json::json!([]), "{unplaced}");
    let all: Value = shelf.operator.call(Method::GET, "/v1/admin/messages", None, None).await??;
    ensure!(all["data"].as_array().is_some_and(|all| all.len() == 1), "{all}");
    let metrics = shelf.dispatch()?.text("/metrics").await?;
    for line in ["switchboard_canary_seconds", "outcome=\"seen\"", "switchboard_canary_alarm"] {
        ensure!(metrics.contains(line), "{line} is missing in {metrics}");
    }

    // A phone that is known to be down is not asked to prove it.
    let before = standing(&shelf).await?;
    program::run(
        "switchboard-sandbox",
        &[
            "account",
            "--dir",
            &shelf.world().display().to_string(),
            "--phone",
            "+12025550191",
            "--status",
            "missing",
        ],
        &[],
    )?;
    let dispatch = shelf.dispatch()?;
    let path = format!("/v1/phones/{}/restart", to.id);
    let _view: Value =
        dispatch.call(Method::POST, &path, Some(serde_json::json!({})), None).await??;
    eventually("canaries are skipped", WITHIN, || async {
        let pair = standing(&shelf).await?;
        let skipped = pair["skipped"].as_u64() > before["skipped"].as_u64().map(|n| n + 1);
        Ok(if skipped && pair["lost"] == 0 { Ok(()) } else { Err(pair.to_string()) })
    })
    .await?;
    shelf.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn canaries_are_seen_to_arrive_and_told_to_no_tenant() {
    played().await.unwrap();
}

/// Who writes, who hears on another host, who is another host's and hears nothing, and a stranger.
const FROM: &str = "+12025550190";
const TO: &str = "+12025550191";
const DEAF: &str = "+12025550192";
const STRANGER: &str = "+14155550123";

const ACROSS: &str = r#"
[[canary]]
from = "+12025550190"
to = "+12025550191"
every_s = 2
lost_after_s = 10
[[canary]]
from = "+12025550190"
to = "+12025550192"
every_s = 2
lost_after_s = 1
alarm_after = 1
[[canary]]
from = "+12025550190"
to = "+14155550123"
every_s = 2
"#;

/// How each pair stands: the one that is heard, the one that is not, the stranger's.
async fn pairs(shelf: &Shelf) -> Result<[Value; 3]> {
    let host: Value = shelf.dispatch()?.call(Method::GET, "/v1/host", None, None).await??;
    let pairs: Vec<Value> = serde_json::from_value(host["canaries"].clone())?;
    pairs.try_into().map_err(|pairs| anyhow::anyhow!("three pairs: {pairs:?}"))
}

/// Waits until the first pair stands so.
async fn until(shelf: &Shelf, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(what, WITHIN, || async {
        let [heard, ..] = pairs(shelf).await?;
        Ok(if holds(&heard) { Ok(heard) } else { Err(heard.to_string()) })
    })
    .await
}

fn number(pair: &Value, field: &str) -> u64 {
    pair[field].as_u64().unwrap_or(u64::MAX)
}

async fn played_across() -> Result<()> {
    let mut shelf = Shelf::start(Plan {
        phones: vec![(FROM, "26")],
        elsewhere: vec![(TO, "15")],
        speed: 0.2,
        more: ACROSS,
        ..Plan::default()
    })
    .await?;
    // Nobody hears these phones yet, so nobody is written to.
    let pair = until(&shelf, "canaries are skipped", |pair| number(pair, "skipped") > 0).await?;
    ensure!(number(&pair, "sent") == 0 && pair["why"] == "not_a_phone", "{pair}");

    let beside = Second::beside(&shelf, TO)?;
    let pair = until(&shelf, "canaries arrive", |pair| number(pair, "seen") >= 3).await?;
    println!("{pair}");
    ensure!(number(&pair, "lost") == 0 && pair["remote"] == true, "{pair}");
    ensure!(pair["why"] == Value::Null && number(&pair, "last_latency_ms") < 10_000, "{pair}");

    // The host that hears is cut off while one is under way, and the router is killed: what has arrived is told when both
    // are there again, later than it was due.
    program::freeze_pid(beside.supervisor_pid()?, true)?;
    let settled =
        |pair: &Value| number(pair, "seen") + number(pair, "lost") + number(pair, "unknown");
    let under_way = |pair: &Value| number(pair, "sent") > settled(pair);
    let pair = until(&shelf, "one is under way", |pair| under_way(pair)).await;
    shelf.crash_router()?;
    program::freeze_pid(beside.supervisor_pid()?, false)?;
    let before = pair?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let [late, ..] = pairs(&shelf).await?;
    ensure!(settled(&late) == settled(&before) && under_way(&late), "{before} {late}");
    shelf.start_router().await?;
    let known = settled(&before);
    let pair = until(&shelf, "it is known", |pair| settled(pair) > known).await?;
    println!("{pair}");
    ensure!(number(&pair, "lost") == 0 && number(&pair, "unknown") == 0, "{pair}");
    ensure!(number(&pair, "last_latency_ms") < 10_000, "the outage is none of its own: {pair}");
    let seen = number(&pair, "seen");
    until(&shelf, "others follow", |pair| number(pair, "seen") > seen).await?;

    // A phone that is well by every light and hears nothing: its Messages is in another world.
    let deaf = Second::start(&shelf, DEAF).await?;
    let lost = eventually("one is lost", WITHIN, || async {
        let [_, lost, _] = pairs(&shelf).await?;
        Ok(if number(&lost, "lost") > 0 { Ok(lost) } else { Err(lost.to_string()) })
    })
    .await?;
    println!("{lost}");
    ensure!(lost["alarm"] == true && number(&lost, "seen") == 0, "{lost}");

    // Nobody was written to who is no phone of this router, and no tenant has heard of any of it.
    let [_, _, stranger] = pairs(&shelf).await?;
    ensure!(number(&stranger, "sent") == 0 && stranger["why"] == "not_a_phone", "{stranger}");
    let asked = shelf.asked()?;
    ensure!(asked.iter().all(|ask| ask.phone == FROM && ask.to != STRANGER), "{asked:?}");
    ensure!(shelf.tenant.messages().await?.is_empty(), "a canary reached a tenant");
    let all: Value = shelf.operator.call(Method::GET, "/v1/admin/messages", None, None).await??;
    ensure!(all["data"] == serde_json::json!([]), "{all}");
    let unplaced: Value =
        shelf.operator.call(Method::GET, "/v1/admin/unplaced_events", None, None).await??;
    ensure!(unplaced["data"] == serde_json::json!([]), "{unplaced}");
    deaf.stop().await?;
    beside.stop().await?;
    shelf.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn canaries_to_another_host_are_told_by_the_router_however_late() {
    played_across().await.unwrap();
}
