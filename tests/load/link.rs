//! From the cut of the wire to the moment in which a message posted just then has reached Messages.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::eventually;
use e2e::shelf::{Plan, Shelf, message};
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::{p50_most_s, p50_p99};

const WITHIN: Duration = Duration::from_mins(2);
const NUMBER: &str = "+12025550190";
/// Cuts in life's own way of waiting, one after the other.
const ROW: usize = 5;
/// Silent cuts: each needs a link that has lived for a while, and is noticed after seconds.
const SILENT: usize = 10;

pub(crate) async fn measure(cuts: usize) -> Result<Vec<Figure>> {
    let plan = Plan { phones: vec![(NUMBER, "26")], with_proxy: true, ..Plan::measured() };
    let shelf = Shelf::start(plan.clone()).await?;
    let mut baseline = Vec::new();
    let mut samples = Vec::new();
    for n in 0..cuts {
        baseline.push(through(&shelf, &format!("whole {n}"), Wire::Whole).await?);
        samples.push(through(&shelf, &format!("cut {n}"), Wire::Cut).await?);
    }
    let mut silent = Vec::new();
    for n in 0..cuts.min(SILENT) {
        // After a life in which the link would have shown a slow network, and at any moment between two pings.
        let between = e2e::clock::chance() % protocol::link::IDLE_PING_MS;
        tokio::time::sleep(Duration::from_millis(protocol::link::LEASE_TTL_MS + between)).await;
        silent.push(through(&shelf, &format!("silent {n}"), Wire::Silent).await?);
    }
    shelf.stop().await?;
    // A row of cuts, with the waits of life: the first is redialled at once, the others after ever more.
    let shelf = Shelf::start(Plan { patient: true, ..plan }).await?;
    let mut row = Vec::new();
    for n in 0..ROW {
        row.push(through(&shelf, &format!("row {n}"), Wire::Cut).await?);
    }
    shelf.stop().await?;
    Ok(vec![
        Figure::new(
            "link: cut → a message posted then is in Messages",
            format!("{}, {cuts} cuts", p50_p99(&mut samples)),
            format!("with the wire whole {}", p50_p99(&mut baseline)),
            None,
        ),
        Figure::new(
            "link: cut five times within a minute, with the usual waits",
            p50_most_s(&mut row),
            "promised: p99 under 5 s".to_owned(),
            None,
        ),
        Figure::new(
            "link: the wire goes dead without a word, and is whole for whoever dials anew",
            p50_most_s(&mut silent),
            "promised: p99 under 5 s".to_owned(),
            None,
        ),
    ])
}

/// What happens to the wire before a message is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Whole,
    Cut,
    Silent,
}

async fn through(shelf: &Shelf, text: &str, wire: Wire) -> Result<Duration> {
    let proxy = shelf.proxy.as_ref().context("the plan has a proxy")?;
    let began = Instant::now();
    match wire {
        Wire::Whole => {}
        Wire::Cut => proxy.cut_now(),
        Wire::Silent => proxy.silence_now(),
    }
    shelf.tenant.send(&message("+12105550100", text)?).await?;
    eventually("Messages is asked", WITHIN, || async {
        let there = shelf.asked()?.iter().any(|asked| asked.text == text);
        Ok(if there { Ok(()) } else { Err("not yet".to_owned()) })
    })
    .await?;
    Ok(began.elapsed())
}
