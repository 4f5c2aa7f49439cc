//! From SIGKILL of a bridge to ready again.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::program::crash_pid;
use e2e::shelf::{Plan, Shelf};
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::p50_p99;

const SAMPLES: usize = 20;
const READY_WITHIN: Duration = Duration::from_secs(30);

pub(crate) async fn measure() -> Result<Vec<Figure>> {
    let shelf =
        Shelf::start(Plan { phones: vec![("+12025550190", "26")], ..Plan::default() }).await?;
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        let before = shelf.bridge_pids()?.first().copied().context("a bridge runs")?;
        let killed = Instant::now();
        crash_pid(before)?;
        shelf.ready_with_another_pid(before, READY_WITHIN).await?;
        samples.push(killed.elapsed());
        // Long enough that the restart counts as forgiven, so that each sample is a first restart.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    shelf.stop().await?;
    Ok(vec![Figure::new(
        "restart: SIGKILL of a bridge → ready again",
        p50_p99(&mut samples),
        "promised: under 1 s to running".to_owned(),
        None,
    )])
}
