//! Stories across processes: a harness that starts whole shelves of phones, and what is told on it.
//!
//! - [`program`] starts and stops real programs, each in its own process group.
//! - [`shelf`] puts a router, a host and the sandbox together in one folder.
//! - [`second`] is another Mac for the same phone, which stands by.
//! - [`mac`] puts one bridge and the sandbox together, without a supervisor.
//! - [`burst`] sends message after message through such a bridge, and kills it.
//! - [`api`] speaks the public API as a tenant and as an operator would.
//! - [`sink`] is a webhook endpoint that checks every signature.
//! - [`proxy`] stands between host and router and cuts.
//! - [`stories`] are the five that every newcomer sees; the demo and the tests play the same ones.
//! - [`flow`] posts message after message while things break.
//! - [`ledger`] compares what was accepted with what the sandbox was really asked to send.
//!
//! Everything is real: processes, sockets, SQLite files, signals. A wait is for a condition with a
//! deadline ([`eventually`]), never a sleep that hopes.

pub mod api;
pub mod burst;
pub mod clock;
pub mod flow;
pub mod ledger;
pub mod mac;
pub mod program;
pub mod proxy;
pub mod second;
pub mod shelf;
pub mod sink;
pub mod stories;

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};

/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until `look` gives a value; fails with `what` and the last answer when the time is up.
///
/// `look` answers `Ok(Ok(value))` when the condition holds, `Ok(Err(state))` with what it saw while it
/// does not, and `Err` when looking itself failed in a way that ends the story.
pub async fn eventually<T, F, Fut>(what: &str, within: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Result<T, String>>>,
{
    let until = tokio::time::Instant::now() + within;
    loop {
        let seen = match look().await? {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if tokio::time::Instant::now() >= until {
            bail!("{what} did not happen within {within:?}; last seen: {seen}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
