//! One phone on two Macs, messages flowing: a host is lost, hands over, freezes whole and in part. At no moment do both
//! send, by the sandboxes' own count.

#![cfg(test)]

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::flow::{Flow, settle};
use e2e::ledger;
use e2e::program;
use e2e::second::{self, Second, sends, stands_by};
use e2e::shelf::{Plan, Shelf};

const NUMBER: &str = "+12025550190";

/// Three shorter leases than in life, so that the test is; what it measures scales with them.
const LEASES: &str = "[lease]\nttl_ms = 9000\ngrace_ms = 1000\nsettle_ms = 0\nunfit_ms = 600000\n";

/// For a busy machine; what is measured is printed.
const WITHIN: Duration = Duration::from_secs(90);

const EVERY: Duration = Duration::from_millis(200);

/// Waits until the Mac of `world` is asked for more than it was.
async fn sends_from(world: &std::path::Path, what: &str) -> Result<()> {
    let took = second::sends_from(world, what).await?;
    println!("{what}: {:.1} s", took.as_secs_f64());
    Ok(())
}

fn hand_over(shelf: &Shelf) -> Result<()> {
    println!("planned: {}", second::hand_over(shelf, NUMBER)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_macs_never_send_for_one_phone_at_once() -> Result<()> {
    let plan = Plan { phones: vec![(NUMBER, "26")], speed: 0.2, router: LEASES, ..Plan::default() };
    let mut shelf = Shelf::start(plan).await?;
    let second = Second::start(&shelf, NUMBER).await?;
    let (one, two) = (shelf.world(), second.world());
    let first_state = shelf.root().join("host");
    stands_by(&shelf).await?;
    let flow = Flow::start(&shelf.tasks, shelf.tenant.clone(), "standby", EVERY, 2_000);
    sends_from(&one, "the first host sends").await?;

    // Lost without a word: supervisor and bridge at once.
    shelf.lose_host()?;
    sends_from(&two, "host lost, the standby sends").await?;
    shelf.start_supervisor()?;
    stands_by(&shelf).await?;

    // In order, back to the first.
    hand_over(&shelf)?;
    sends_from(&one, "handed over, the first host sends").await?;
    stands_by(&shelf).await?;

    // The whole first Mac freezes for longer than its lease, in the middle of its work, and goes on.
    let mut frozen = vec![shelf.supervisor_pid()?];
    frozen.extend(program::bridges(&first_state)?.into_iter().map(|(id, _)| id));
    for id in &frozen {
        program::freeze_pid(*id, true)?;
    }
    sends_from(&two, "host frozen, the standby sends").await?;
    for id in &frozen {
        program::freeze_pid(*id, false)?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    stands_by(&shelf).await?;

    // Only the second's supervisor freezes: its bridge lives and has work, and the router does not hear of it.
    program::freeze_pid(second.supervisor_pid()?, true)?;
    sends_from(&one, "supervisor frozen, the first host sends").await?;
    program::freeze_pid(second.supervisor_pid()?, false)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stands_by(&shelf).await?;

    let accepted = flow.stop().await?;
    settle(&shelf, &accepted, WITHIN).await?;
    // Journals of returned hosts may still be settling what was `unknown`.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut all: Vec<(String, String, u8)> = Vec::new();
    for (world, mac) in [(&one, 1), (&two, 2)] {
        all.extend(sends(world)?.into_iter().map(|(at, text)| (at, text, mac)));
    }
    all.sort();
    let turns = all.windows(2).filter(|pair| pair[0].2 != pair[1].2).count();
    let asked: Vec<ledger::Asked> = [&one, &two]
        .into_iter()
        .map(|world| ledger::asked(&world.join("sends.jsonl")))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    let books = ledger::compare(&shelf.tenant.messages().await?, &asked);
    println!(
        "{} accepted, {} sent, {} unknown and never asked of Messages, {} told as not sent; {turns} changes of hands",
        books.accepted,
        books.sent,
        books.unknown,
        books.lost.len()
    );
    ensure!(books.doubled.is_empty(), "sent twice: {:?}", books.doubled);
    ensure!(books.phantom.is_empty(), "never asked for: {:?}", books.phantom);
    ensure!(books.unknown_but_sent.is_empty(), "sent and not known: {:?}", books.unknown_but_sent);
    let open = books.lost.iter().find(|one| {
        !one.contains("(failed, asked 0 times)") && !one.contains("(expired, asked 0 times)")
    });
    ensure!(open.is_none(), "without an honest end: {open:?}");
    ensure!(turns == 4, "{turns} changes of hands where there were four: two hosts sent at once");
    second.stop().await?;
    shelf.stop().await
}
