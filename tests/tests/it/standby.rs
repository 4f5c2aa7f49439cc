//! One phone on two Macs, messages flowing: a host is lost, hands over, freezes whole and in part. At no moment do both
//! send, by the sandboxes' own count.

#![cfg(test)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::eventually;
use e2e::flow::{Flow, recipient, settle};
use e2e::ledger;
use e2e::program;
use e2e::second::{self, Second, sends, stands_by};
use e2e::shelf::{Plan, Shelf, message};
use protocol::UnixMs;
use serde_json::Value;

const NUMBER: &str = "+12025550190";

/// Three shorter leases than in life, so that the test is; what it measures scales with them.
const LEASES: &str = "[lease]\nttl_ms = 9000\ngrace_ms = 1000\nsettle_ms = 0\nunfit_ms = 600000\n";

/// For a busy machine; what is measured is printed.
const WITHIN: Duration = Duration::from_secs(90);

const EVERY: Duration = Duration::from_millis(200);

/// Waits until the Mac of `world` is asked for more than it was.
async fn sends_from(world: &Path, what: &str) -> Result<()> {
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

/// What the account has sent on the Mac of `from` comes to its other Mac, whose sandbox lives in `to`. How many that were.
fn copy_by_icloud(from: &Path, to: &Path) -> Result<usize> {
    let text = std::fs::read_to_string(from.join("sends.jsonl")).context("sends")?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        let line: Value = serde_json::from_str(line).context("sends")?;
        let field = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default();
        let at: UnixMs = serde_json::from_value(line.get("at").cloned().unwrap_or_default())?;
        let age_ms = e2e::clock::now().since(at).to_string();
        let to = to.display().to_string();
        let (address, words) = (field("to"), field("text"));
        let args = ["receive", "--dir", &to, "--phone", NUMBER, "--own", "--age-ms", &age_ms];
        let args = [&args[..], &["--from", address, "--text", words]].concat();
        program::run("switchboard-sandbox", &args, &[])?;
    }
    Ok(whole.lines().count())
}

/// The statuses of all messages, by how many there are of each.
async fn statuses(shelf: &Shelf) -> Result<BTreeMap<String, usize>> {
    let mut count = BTreeMap::new();
    for message in shelf.tenant.messages().await? {
        *count.entry(message.status.to_string()).or_default() += 1;
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_mac_had_sent_is_seen_by_the_other_and_what_it_had_not_is_given_up()
-> Result<()> {
    const MESSAGES: u64 = 60;
    let plan = Plan { phones: vec![(NUMBER, "26")], speed: 1.0, router: LEASES, ..Plan::default() };
    let mut shelf = Shelf::start(plan).await?;
    let second = Second::start(&shelf, NUMBER).await?;
    let (one, two) = (shelf.world(), second.world());
    stands_by(&shelf).await?;
    for n in 0..MESSAGES {
        let body = message(&recipient(n), &format!("lost {n}"))?;
        let key = format!("lost-{n}");
        shelf.tenant.send_until_answered(&body, &key, Duration::from_secs(20)).await?;
    }
    sends_from(&one, "the first Mac sends").await?;
    // The bridge works on, and nobody hears of it.
    program::freeze_pid(shelf.supervisor_pid()?, true)?;
    let before = sends(&one)?.len();
    eventually("a send of which nobody has heard", WITHIN, || async {
        let now = sends(&one)?.len();
        Ok(if now > before + 1 { Ok(()) } else { Err(format!("{now} sends")) })
    })
    .await?;
    shelf.lose_host()?;
    let asked = copy_by_icloud(&one, &two)?;
    // All that was sent is known, by whichever of the two; the rest the other one has sent, or nobody knows.
    eventually("what the other Mac sees is settled", WITHIN, || async {
        let messages = shelf.tenant.messages().await?;
        let open = messages.iter().any(|one| !one.status.is_final());
        let books = ledger::compare(&messages, &ledger::asked(&one.join("sends.jsonl"))?);
        let unheard = books.unknown_but_sent.len();
        let said =
            format!("open: {open}, unknown but sent: {unheard}, {:?}", statuses(&shelf).await?);
        Ok(if open || unheard > 0 { Err(said) } else { Ok(()) })
    })
    .await?;
    println!("{asked} asked of the first Mac; while it is gone: {:?}", statuses(&shelf).await?);
    // Its journal says of all the others that they were never started.
    shelf.start_supervisor()?;
    eventually("nothing is unknown any more", WITHIN, || async {
        let count = statuses(&shelf).await?;
        Ok(if count.contains_key("unknown") { Err(format!("{count:?}")) } else { Ok(()) })
    })
    .await?;
    println!("when it is back: {:?}", statuses(&shelf).await?);
    let mut all = ledger::asked(&one.join("sends.jsonl"))?;
    all.extend(ledger::asked(&two.join("sends.jsonl"))?);
    let books = ledger::compare(&shelf.tenant.messages().await?, &all);
    ensure!(books.doubled.is_empty(), "sent twice: {:?}", books.doubled);
    ensure!(books.phantom.is_empty(), "never asked for: {:?}", books.phantom);
    let open = books.lost.iter().find(|one| !one.contains("asked 0 times"));
    ensure!(open.is_none(), "sent, and told otherwise: {open:?}");
    second.stop().await?;
    shelf.stop().await
}
