//! An account that Apple has blocked: its phone sends nothing at once, and what is meant for it goes nowhere else.

#![cfg(test)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::eventually;
use e2e::shelf::{Plan, Shelf, message};
use protocol::api::CreateMessage;
use protocol::link::PhoneState;
use protocol::{MessageId, Reason, Status};
use reqwest::Method;
use serde_json::{Value, json};

const BLOCKED: &str = "+12025550190";
const OTHER: &str = "+12025550191";
const WITHIN: Duration = Duration::from_secs(40);

async fn say(shelf: &Shelf, word: &str) -> Result<()> {
    let phones = shelf.operator.phones().await?;
    let phone = phones.iter().find(|phone| phone.number.as_str() == BLOCKED).context("phone")?;
    let path = format!("/v1/phones/{}/{word}", phone.id);
    let _view: Value = shelf.dispatch()?.call(Method::POST, &path, Some(json!({})), None).await??;
    Ok(())
}

/// Waits until the router knows the phone as blocked, and the other one as ready.
async fn is_blocked(shelf: &Shelf) -> Result<()> {
    eventually("the router knows of the block", WITHIN, || async {
        let phones = shelf.operator.phones().await?;
        let is = phones.iter().all(|phone| {
            if phone.number.as_str() == BLOCKED {
                phone.state == PhoneState::NotReady && phone.reasons == [Reason::AccountBlocked]
            } else {
                phone.online && phone.state == PhoneState::Ready
            }
        });
        Ok(if is { Ok(()) } else { Err(format!("{phones:?}")) })
    })
    .await
}

async fn reaches(shelf: &Shelf, id: &MessageId, wanted: &[Status]) -> Result<()> {
    eventually("it has its status", WITHIN, || async {
        let now = shelf.tenant.message(id).await?;
        Ok(if wanted.contains(&now.status) { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await
}

async fn played() -> Result<()> {
    const SENT: [Status; 3] = [Status::Sent, Status::Delivered, Status::Read];
    let phones = vec![(BLOCKED, "26"), (OTHER, "15")];
    // One message in five seconds: there is always one that waits in the bridge.
    let plan = Plan { phones, speed: 0.0, per_second: 0.2, ..Plan::default() };
    let mut shelf = Shelf::start(plan).await?;
    let from = |n: usize| -> Result<CreateMessage> {
        let from = Some(BLOCKED.parse().context("number")?);
        Ok(CreateMessage { from, ..message("+12025550100", &format!("from it {n}"))? })
    };
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(shelf.tenant.send(&from(n)?).await?.id);
    }
    let [first, ..] = &ids[..] else { unreachable!("there are four") };
    reaches(&shelf, first, &SENT).await?;
    say(&shelf, "block").await?;
    is_blocked(&shelf).await?;
    let before = shelf.asked()?.len();
    let later = shelf.tenant.send(&from(4)?).await?;
    // Whoever does not care for the number is served by the other phone.
    let any = shelf.tenant.send(&message("+12025550101", "from any")?).await?;
    reaches(&shelf, &any.id, &SENT).await?;

    // A host that starts anew still knows.
    shelf.crash_supervisor()?;
    shelf.start_supervisor()?;
    is_blocked(&shelf).await?;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let asked = shelf.asked()?;
    ensure!(asked.len() == before + 1, "{before}, then {asked:?}");
    ensure!(
        asked.iter().all(|ask| ask.phone == BLOCKED || !ask.text.starts_with("from it")),
        "nothing of it went by another phone: {asked:?}"
    );
    ensure!(shelf.tenant.message(&later.id).await?.status == Status::Queued, "it is held");

    say(&shelf, "unblock").await?;
    for id in ids.iter().chain([&later.id]) {
        reaches(&shelf, id, &SENT).await?;
    }
    let asked = shelf.asked()?;
    for n in 0..5 {
        let text = format!("from it {n}");
        let times: Vec<_> = asked.iter().filter(|ask| ask.text == text).collect();
        ensure!(times.len() == 1 && times.iter().all(|ask| ask.phone == BLOCKED), "{asked:?}");
    }
    shelf.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_account_sends_nothing_and_nothing_of_it_goes_elsewhere() {
    played().await.unwrap();
}
