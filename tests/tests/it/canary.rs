//! Two phones of a host write to each other to see that both work, and no tenant hears of it.

#![cfg(test)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::eventually;
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
    e2e::program::run(
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
