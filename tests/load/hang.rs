//! What hangs, until it sends again: bridges that stand still, and Messages under a send.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::eventually;
use e2e::program::{self, freeze_pid};
use e2e::shelf::{Plan, Shelf, message};
use protocol::Status;
use protocol::link::PhoneState;
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::p50_most_s;

/// For a busy machine.
const WITHIN: Duration = Duration::from_secs(150);

const NUMBERS: [&str; 10] = [
    "+12025550190",
    "+12025550191",
    "+12025550192",
    "+12025550193",
    "+12025550194",
    "+12025550195",
    "+12025550196",
    "+12025550197",
    "+12025550198",
    "+12025550199",
];
/// Heartbeats come every 5 s, and the bridges started together: they are stopped at ten moments of such a period.
const APART: Duration = Duration::from_millis(500);

pub(crate) async fn measure() -> Result<Vec<Figure>> {
    let mut bridges = bridges().await.context("bridges")?;
    let mut messages = vec![
        messages("kill").await.context("Messages, until KILL")?,
        messages("quit").await.context("Messages, until it is asked to quit")?,
    ];
    Ok(vec![
        Figure::new(
            "hang: SIGSTOP of a bridge → ready again",
            p50_most_s(&mut bridges),
            "promised: 20 s at most".to_owned(),
            None,
        ),
        Figure::new(
            "hang: Messages hangs under a send → the next one is sent",
            p50_most_s(&mut messages),
            "promised: 60 s at most".to_owned(),
            None,
        ),
    ])
}

async fn bridges() -> Result<Vec<Duration>> {
    let phones = NUMBERS.iter().map(|number| (*number, "26")).collect();
    let mut shelf = Shelf::start(Plan { phones, patient: true, ..Plan::measured() }).await?;
    let phones = shelf.all_ready(WITHIN).await?;
    let mut waits = Vec::new();
    for phone in phones {
        let before = shelf.bridge_pid(&phone)?.context("its bridge runs")?;
        let stopped = Instant::now();
        freeze_pid(before, true)?;
        let operator = shelf.dispatch()?;
        waits.push(shelf.tasks.spawn(async move {
            let path = format!("/v1/phones/{}", phone.id);
            eventually("the bridge is ready again", WITHIN, || async {
                let now: serde_json::Value =
                    operator.call(reqwest::Method::GET, &path, None, None).await??;
                let pid = now.pointer("/bridge/pid").and_then(serde_json::Value::as_u64);
                let is = now.pointer("/state").and_then(serde_json::Value::as_str);
                let again = is == Some(PhoneState::Ready.as_str())
                    && pid.is_some_and(|pid| pid != u64::from(before));
                Ok(if again { Ok(()) } else { Err(now.to_string()) })
            })
            .await?;
            anyhow::Ok(stopped.elapsed())
        }));
        tokio::time::sleep(APART).await;
    }
    let mut samples = Vec::new();
    for wait in waits {
        samples.push(wait.await.context("a wait")??);
    }
    shelf.stop().await?;
    Ok(samples)
}

/// Messages hangs, and is then asked to send; how long until it has sent what came after that.
async fn messages(until: &str) -> Result<Duration> {
    let plan = Plan {
        phones: vec![(NUMBERS[0], "26")],
        keeps_messages: Some(""),
        patient: true,
        ..Plan::measured()
    };
    let shelf = Shelf::start(plan).await?;
    // What hangs must have answered before: else it is the start that fails.
    let first = shelf.tenant.send(&message("+12025550100", "before")?).await?;
    sent(&shelf, &first.id).await?;
    let dir = shelf.world().display().to_string();
    program::run("switchboard-sandbox", &["hang-messages", "--until", until, "--dir", &dir], &[])?;
    let hung = Instant::now();
    shelf.tenant.send(&message("+12025550101", "under it")?).await?;
    let next = shelf.tenant.send(&message("+12025550102", "after it")?).await?;
    sent(&shelf, &next.id).await?;
    let took = hung.elapsed();
    shelf.stop().await?;
    Ok(took)
}

async fn sent(shelf: &Shelf, id: &protocol::MessageId) -> Result<()> {
    eventually("it is sent", WITHIN, || async {
        let now = shelf.tenant.message(id).await?;
        let there = matches!(now.status, Status::Sent | Status::Delivered | Status::Read);
        Ok(if there { Ok(()) } else { Err(format!("{:?} {:?}", now.status, now.reason)) })
    })
    .await
}
