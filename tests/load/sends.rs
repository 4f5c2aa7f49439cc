//! Ten thousand messages through one bridge with a SIGKILL on average every twenty: what is lost, what is
//! doubled, and how fast it goes all the same.

use anyhow::{Result, ensure};
use e2e::burst;
use tokio::time::Instant;

use crate::Figure;

/// Between two kills, on average.
const KILL_EVERY: u64 = 20;

pub(crate) async fn measure(messages: usize) -> Result<Vec<Figure>> {
    let began = Instant::now();
    let books = burst::run(messages, KILL_EVERY).await?;
    let took = began.elapsed().as_secs_f64();
    ensure!(books.agree(), "the books do not agree: {books:?}");
    let rate = u32::try_from(books.messages).map_or(f64::MAX, f64::from) / took;
    Ok(vec![Figure::new(
        "sends: one bridge, SIGKILL on average every 20",
        format!(
            "{} sends, {} kills: {} lost, {} doubled, {} unknown; {rate:.0} a second",
            books.messages, books.kills, books.lost, books.doubled, books.unknown
        ),
        "promised: 0 lost, 0 doubled".to_owned(),
        None,
    )])
}
