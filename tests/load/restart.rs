//! From SIGKILL of a child to ready again: the real bridge, and one and the same child under our supervisor and others.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::program::crash_pid;
use e2e::shelf::{Plan, Shelf};
use tokio::time::Instant;

use crate::Figure;
use crate::others::{Keeper, Kind};
use crate::percentile::{p50_p99, percentile};

const READY_WITHIN: Duration = Duration::from_secs(30);
/// A child that has lived for more than a second has not crashed at once, for any of them.
const LIFE: Duration = Duration::from_millis(1_200);

pub(crate) async fn measure(crashes: usize) -> Result<Vec<Figure>> {
    let shelf =
        Shelf::start(Plan { phones: vec![("+12025550190", "26")], ..Plan::measured() }).await?;
    let mut keepers = Vec::new();
    let mut missing = Vec::new();
    for kind in Kind::ALL {
        match Keeper::start(kind).await? {
            Some(keeper) => keepers.push((keeper, Vec::new())),
            None => missing.push(kind),
        }
    }
    for kind in &missing {
        let name = kind.name();
        writeln!(std::io::stderr().lock(), "NOT INSTALLED, NOT MEASURED: {name}")
            .context("stderr")?;
    }
    let mut bridge = Vec::new();
    // In turns, so that whatever else this machine does meets all of them alike.
    for _ in 0..crashes {
        let round = Instant::now();
        let before = shelf.bridge_pids()?.first().copied().context("a bridge runs")?;
        let killed = Instant::now();
        crash_pid(before)?;
        shelf.ready_with_another_pid(before, READY_WITHIN).await?;
        bridge.push(killed.elapsed());
        for (keeper, samples) in &mut keepers {
            samples.push(keeper.crash_child().await?);
        }
        // All of them have that long; who was first has more.
        tokio::time::sleep_until((round + LIFE).max(Instant::now() + LIFE / 2)).await;
    }
    shelf.stop().await?;
    let mut figures = vec![Figure::new(
        "restart: SIGKILL of a bridge → ready again, as the local API tells",
        format!("{}, {crashes} crashes", p50_p99(&mut bridge)),
        "promised: p99 under 1 s".to_owned(),
        None,
    )];
    let mut ours = None;
    for (keeper, samples) in &mut keepers {
        let what = match keeper.kind {
            Kind::Ours => "restart: SIGKILL of a stand-in child → it says ready",
            Kind::Supervisord => "restart: the same child, by supervisord",
            Kind::Runit => "restart: the same child, by runit (runsv)",
            Kind::S6 => "restart: the same child, by s6 (s6-supervise)",
            Kind::Monit => "restart: the same child, by monit, which looks every second",
            Kind::Pm2 => "restart: the same child, by pm2",
        };
        let beside = match ours {
            None => "the others below, same child, same run".to_owned(),
            Some((p50, p99)) => format!(
                "ours takes {:.2} of its median, {:.2} of its p99",
                share(p50, percentile(samples, 50)),
                share(p99, percentile(samples, 99))
            ),
        };
        figures.push(Figure::new(what, p50_p99(samples), beside, None));
        ours.get_or_insert((percentile(samples, 50), percentile(samples, 99)));
    }
    for kind in missing {
        figures.push(Figure::new(
            "restart: not installed, not measured",
            kind.name().to_owned(),
            String::new(),
            None,
        ));
    }
    for (keeper, _) in keepers {
        keeper.stop().await?;
    }
    Ok(figures)
}

fn share(part: Duration, whole: Duration) -> f64 {
    part.as_secs_f64() / whole.as_secs_f64()
}
