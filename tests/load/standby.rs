//! One phone on two Macs, with the leases of life: one Mac is lost, and one hands over.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::flow::Flow;
use e2e::second::{Second, hand_over, sends_from, stands_by};
use e2e::shelf::{Plan, Shelf};
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::p50_most_s;

const NUMBER: &str = "+12025550190";
/// Small beside what is measured.
const EVERY: Duration = Duration::from_millis(50);
const MOST: u64 = 1_000_000;

pub(crate) async fn measure(losses: u32, hand_overs: u32) -> Result<Vec<Figure>> {
    let plan = Plan { phones: vec![(NUMBER, "26")], speed: 0.2, patient: true, ..Plan::measured() };
    let mut shelf = Shelf::start(plan).await?;
    let mut second = Second::start(&shelf, NUMBER).await?;
    let (one, two) = (shelf.world(), second.world());
    stands_by(&shelf).await?;
    let flow = Flow::start(&shelf.tasks, shelf.tenant.clone(), "standby", EVERY, MOST);
    sends_from(&one, "the first host sends").await?;

    let mut lost = Vec::new();
    for _ in 0..losses {
        shelf.lose_host()?;
        lost.push(sends_from(&two, "the first host is lost, the second sends").await?);
        shelf.start_supervisor()?;
        stands_by(&shelf).await?;
        second.lose()?;
        lost.push(sends_from(&one, "the second host is lost, the first sends").await?);
        second.start_supervisor()?;
        stands_by(&shelf).await?;
    }

    let mut planned = Vec::new();
    for n in 0..hand_overs {
        let to = if n % 2 == 0 { two.clone() } else { one.clone() };
        let began = Instant::now();
        // The command returns some time after the phone is the other host's; messages flow all the time.
        let sends = shelf.tasks.spawn(async move {
            sends_from(&to, "handed over, the other host sends").await?;
            anyhow::Ok(began.elapsed())
        });
        tokio::task::block_in_place(|| hand_over(&shelf, NUMBER))?;
        planned.push(sends.await.context("the other host sends")??);
        stands_by(&shelf).await?;
    }
    flow.stop().await.context("the flow")?;
    second.stop().await?;
    shelf.stop().await?;
    Ok(vec![
        Figure::new(
            "standby: SIGKILL of a host's supervisor and bridges → the other host sends",
            p50_most_s(&mut lost),
            "promised: 25 s at most; leases of 15 s and 5 s".to_owned(),
            None,
        ),
        Figure::new(
            "standby: `switchboard failover phone` is typed → the other host sends",
            p50_most_s(&mut planned),
            "promised: 1 s at most".to_owned(),
            None,
        ),
    ])
}
