//! The wire between host and router is cut at random bytes while messages flow.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::eventually;
use e2e::flow::{Flow, settle};
use e2e::shelf::{Plan, Shelf};

const MESSAGES: u64 = 500;
const CUTS: u64 = 200;

/// What goes over the wire is what wears it out: where the messages came through before it was cut often enough, as many
/// follow.
const FLOWS_MAX: u64 = 4;
const CUT_WITHIN: Duration = Duration::from_secs(75);

/// A connection lives for a random share of so many bytes, both ways together: a handshake and a
/// hello need about 2 KiB, a message's frames as much again. Many die before they are welcome.
const LIFE_BYTES_MAX: u64 = 12_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_cut_200_times_loses_and_doubles_nothing() -> Result<()> {
    let plan = Plan { with_proxy: true, speed: 0.2, ..Plan::default() };
    let mut shelf = Shelf::start(plan).await?;
    let proxy = shelf.proxy.clone().context("the plan has a proxy")?;
    // The connection that is up was made before; the next ones are short.
    proxy.cut_after(LIFE_BYTES_MAX);
    proxy.cut_now();
    let every = Duration::from_millis(40);
    let mut accepted = Vec::new();
    let mut flows = 0;
    while flows < FLOWS_MAX {
        flows += 1;
        let flow = format!("c{flows}");
        let flow = Flow::start(&shelf.tasks, shelf.tenant.clone(), &flow, every, MESSAGES);
        accepted.extend(flow.done().await?);
        let enough = eventually("the wire is cut often enough", CUT_WITHIN, || async {
            let cuts = proxy.cuts();
            Ok(if cuts >= CUTS { Ok(()) } else { Err(format!("{cuts} cuts")) })
        });
        if enough.await.is_ok() {
            break;
        }
    }
    ensure!(proxy.cuts() >= CUTS, "{} cuts", proxy.cuts());
    proxy.cut_after(0);
    // How soon it is back is measured elsewhere; here nothing may be lost, however busy the machine is.
    shelf.all_ready(Duration::from_mins(3)).await?;
    let books = settle(&shelf, &accepted, Duration::from_secs(90)).await?;
    println!(
        "link: {} cuts, {} connections, {} accepted, {} sent, {} unknown, {} doubled, {} lost",
        proxy.cuts(),
        proxy.connections(),
        books.accepted,
        books.sent,
        books.unknown,
        books.doubled.len(),
        books.lost.len()
    );
    assert_eq!(u64::try_from(books.accepted)?, flows * MESSAGES);
    assert_eq!(books.doubled, Vec::<String>::new(), "sent twice");
    assert_eq!(books.lost, Vec::<String>::new(), "lost");
    assert_eq!(books.phantom, Vec::<String>::new(), "shown as sent, never asked for");
    assert_eq!(books.unknown, 0, "a cut wire leaves nothing in doubt: {books:?}");
    shelf.stop().await
}
