//! SIGKILL at random moments while messages flow: nothing lost, nothing sent twice.
//!
//! The truth is the sandbox's own count of what Messages was asked to send. A message may end as
//! `unknown` only when Messages was never asked for it and nobody could have known.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::clock::chance;
use e2e::flow::{Flow, settle};
use e2e::ledger::Books;
use e2e::program::crash_pid;
use e2e::shelf::{Plan, Shelf};

/// Kills of each kind of process.
const KILLS: usize = 50;

/// Between two kills: long enough that something is going on again, short enough that restarts
/// themselves are hit too.
const PAUSE_MS: std::ops::Range<u64> = 50..450;

/// Ten messages a second over three phones: at every moment several are on their way.
const EVERY: Duration = Duration::from_millis(100);

/// More than flow in the time that the kills take.
const MOST: u64 = 2_000;

/// After the last kill everything must find its end within this time.
const SETTLE_WITHIN: Duration = Duration::from_secs(90);

fn plan() -> Plan {
    Plan { speed: 0.2, ..Plan::default() }
}

async fn pause() {
    let ms = PAUSE_MS.start + chance() % (PAUSE_MS.end - PAUSE_MS.start);
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// The outcome of a run, printed for people and checked for all.
#[expect(clippy::print_stdout, reason = "the counts are what this test is for")]
fn check(what: &str, kills: usize, books: &Books) {
    println!(
        "{what}: {kills} kills, {} accepted, {} sent, {} unknown, {} doubled, {} lost",
        books.accepted,
        books.sent,
        books.unknown,
        books.doubled.len(),
        books.lost.len()
    );
    assert!(books.accepted > kills, "too few messages flowed: {books:?}");
    assert_eq!(books.doubled, Vec::<String>::new(), "sent twice");
    assert_eq!(books.lost, Vec::<String>::new(), "lost");
    assert_eq!(books.phantom, Vec::<String>::new(), "shown as sent, never asked for");
    assert_eq!(books.unknown_but_sent, Vec::<String>::new(), "sent, but not settled");
    // Killed between the journal's last word and the script: rare, and said openly.
    assert!(books.unknown <= kills, "{} unknown after {kills} kills", books.unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bridges_may_die_at_any_moment() -> Result<()> {
    let mut shelf = Shelf::start(plan()).await?;
    let flow = Flow::start(&shelf.tasks, shelf.tenant.clone(), "b", EVERY, MOST);
    let mut kills = 0;
    while kills < KILLS {
        pause().await;
        let running = shelf.bridge_pids()?;
        let Some(index) = usize::try_from(chance())?.checked_rem(running.len()) else { continue };
        let Some(pid) = running.get(index) else { continue };
        // It may have ended since: then this was no kill.
        kills += usize::from(crash_pid(*pid).is_ok());
    }
    let accepted = flow.stop().await?;
    shelf.all_ready(SETTLE_WITHIN).await?;
    let books = settle(&shelf, &accepted, SETTLE_WITHIN).await?;
    check("bridge", kills, &books);
    shelf.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_supervisor_may_die_at_any_moment() -> Result<()> {
    let mut shelf = Shelf::start(plan()).await?;
    let flow = Flow::start(&shelf.tasks, shelf.tenant.clone(), "s", EVERY, MOST);
    for _ in 0..KILLS {
        pause().await;
        shelf.crash_supervisor()?;
        shelf.start_supervisor()?;
    }
    let accepted = flow.stop().await?;
    shelf.all_ready(SETTLE_WITHIN).await?;
    let books = settle(&shelf, &accepted, SETTLE_WITHIN).await?;
    check("supervisor", KILLS, &books);
    shelf.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_router_may_die_at_any_moment() -> Result<()> {
    let mut shelf = Shelf::start(plan()).await?;
    let flow = Flow::start(&shelf.tasks, shelf.tenant.clone(), "r", EVERY, MOST);
    for _ in 0..KILLS {
        pause().await;
        shelf.crash_router()?;
        shelf.start_router().await.context("restarting the router")?;
    }
    let accepted = flow.stop().await?;
    shelf.all_ready(SETTLE_WITHIN).await?;
    let books = settle(&shelf, &accepted, SETTLE_WITHIN).await?;
    check("router", KILLS, &books);
    shelf.stop().await
}
