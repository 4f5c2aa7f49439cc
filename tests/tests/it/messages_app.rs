//! Messages hangs, and its keeper brings it back: real processes, with the sandbox as Messages, pgrep, kill and open.

#![cfg(test)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::program;
use e2e::shelf::{Plan, Shelf, message};
use e2e::{api::Api, eventually};
use protocol::link::{HostMessagesApp, MessagesAppState, PhoneState};
use protocol::{MessageId, Status};
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

const NUMBER: &str = "+12025550190";
/// For a busy machine; what is measured is printed.
const WITHIN: Duration = Duration::from_secs(150);

async fn keeper(dispatch: &Api) -> Result<HostMessagesApp> {
    let host: Value = dispatch.call(Method::GET, "/v1/host", None, None).await??;
    serde_json::from_value(host["messages_app"].clone()).context("the host keeps Messages")
}

async fn reaches(shelf: &Shelf, wanted: MessagesAppState) -> Result<HostMessagesApp> {
    let dispatch = shelf.dispatch()?;
    eventually(&format!("Messages is {}", wanted.as_str()), WITHIN, || async {
        let keeper = keeper(&dispatch).await?;
        Ok(if keeper.state == wanted { Ok(keeper) } else { Err(format!("{keeper:?}")) })
    })
    .await
}

fn sandbox(shelf: &Shelf, args: &[&str]) -> Result<String> {
    let dir = shelf.world().display().to_string();
    let args: Vec<&str> = args.iter().copied().chain(["--dir", &dir]).collect();
    program::run("switchboard-sandbox", &args, &[])
}

/// Messages of the only phone, as the sandbox knows it.
fn app(shelf: &Shelf) -> Result<Value> {
    let list: Value = serde_json::from_str(&sandbox(shelf, &["list"])?).context("list")?;
    list.pointer("/phones/0").cloned().context("a phone")
}

async fn start(plan: Plan) -> Result<Shelf> {
    let shelf = Shelf::start(Plan { phones: vec![(NUMBER, "26")], speed: 0.2, ..plan }).await?;
    reaches(&shelf, MessagesAppState::Ok).await?;
    Ok(shelf)
}

async fn sent(shelf: &Shelf, id: &MessageId) -> Result<()> {
    eventually("it is sent", WITHIN, || async {
        let now = shelf.tenant.message(id).await?;
        let there = matches!(now.status, Status::Sent | Status::Delivered | Status::Read);
        Ok(if there { Ok(()) } else { Err(format!("{:?} {:?}", now.status, now.reason)) })
    })
    .await
}

fn times_asked(shelf: &Shelf, text: &str) -> Result<usize> {
    Ok(shelf.asked()?.iter().filter(|asked| asked.text == text).count())
}

/// From the moment in which Messages hangs to the moment in which it sends again; what was written meanwhile is sent
/// once.
async fn hangs_and_is_brought_back(plan: Plan, until: &str) -> Result<Duration> {
    let shelf = start(plan).await?;
    let first = app(&shelf)?;
    sandbox(&shelf, &["hang-messages", "--until", until])?;
    let hung = Instant::now();
    reaches(&shelf, MessagesAppState::Recovering).await?;
    let held = shelf.tenant.send(&message("+12025550100", "held")?).await?;
    sent(&shelf, &held.id).await?;
    let took = hung.elapsed();
    println!("{until}: sends again {:.1} s after it hung", took.as_secs_f64());
    ensure!(times_asked(&shelf, "held")? == 1, "{:?}", shelf.asked()?);
    let keeper = reaches(&shelf, MessagesAppState::Ok).await?;
    ensure!(keeper.recoveries == 1 && keeper.last_recovery_ms.is_some(), "{keeper:?}");
    let app = app(&shelf)?;
    ensure!(app["pid"] != first["pid"] && app["windows"] == false, "{app}");
    let metrics = shelf.dispatch()?.text("/metrics").await?;
    for line in [
        "switchboard_messages_app_state{state=\"ok\"} 1",
        "switchboard_messages_app_recoveries_total 1",
        "switchboard_messages_app_steps_total{step=\"windows\"} 1",
    ] {
        ensure!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    shelf.stop().await?;
    Ok(took)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_usual_timing_it_sends_again_by_itself() {
    let plan = Plan { keeps_messages: Some(""), ..Plan::default() };
    hangs_and_is_brought_back(plan, "kill").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_agents_are_to_blame_is_brought_back_by_ending_them_too() {
    let quick = Some("probe_every_s = 1\nopen_within_s = 2\n");
    let plan = Plan { keeps_messages: quick, ..Plan::default() };
    hangs_and_is_brought_back(plan, "agents").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_hangs_with_it_is_ended_by_its_own_deadline_and_never_said_again() {
    let plan = Plan {
        keeps_messages: Some("probe_every_s = 1\nopen_within_s = 5\n"),
        bridges: "osascript_deadline_ms = 8000\nsettle_window_ms = 2000\nmatch_window_ms = 2000",
        ..Plan::default()
    };
    let played = async {
        let shelf = start(plan).await?;
        // It hangs at the very moment in which it is asked to send.
        sandbox(&shelf, &["hang-messages", "--until", "quit"])?;
        let first = shelf.tenant.send(&message("+12025550100", "first")?).await?;
        let second = shelf.tenant.send(&message("+12025550101", "second")?).await?;
        sent(&shelf, &second.id).await?;
        let first = shelf.tenant.message(&first.id).await?;
        let keeper = reaches(&shelf, MessagesAppState::Ok).await?;
        // Which of the two was on its way when it hung is chance; neither was ever said twice.
        for text in ["first", "second"] {
            ensure!(times_asked(&shelf, text)? <= 1, "{text}: {:?}", shelf.asked()?);
        }
        println!("the first is {:?} ({:?}); {keeper:?}", first.status, first.reason);
        shelf.stop().await
    };
    played.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_helps_against_is_told_and_not_touched_any_more() {
    let plan = Plan {
        keeps_messages: Some(
            "probe_every_s = 1\nopen_within_s = 2\nrestarts_per_hour = 2\nrestarts_per_day = 2\n",
        ),
        ..Plan::default()
    };
    let played = async {
        let shelf = start(plan).await?;
        sandbox(&shelf, &["hang-messages", "--until", "never"])?;
        let keeper = reaches(&shelf, MessagesAppState::Degraded).await?;
        ensure!(keeper.why.as_deref() == Some("restarted_in_vain"), "{keeper:?}");
        ensure!(keeper.remedy.is_some() && keeper.restarts_last_hour == 2, "{keeper:?}");
        let before = app(&shelf)?;
        let held = shelf.tenant.send(&message("+12025550100", "held")?).await?;
        // Asked again and again meanwhile, and left alone: a restart would show by another process.
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until {
            let now = app(&shelf)?;
            ensure!(now["pid"] == before["pid"], "{before} became {now}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let phones = shelf.operator.phones().await?;
        ensure!(phones.iter().all(|phone| phone.state == PhoneState::NotReady), "{phones:?}");
        ensure!(shelf.tenant.message(&held.id).await?.status == Status::Queued, "it is held");
        ensure!(times_asked(&shelf, "held")? == 0, "{:?}", shelf.asked()?);
        shelf.stop().await
    };
    played.await.unwrap();
}
