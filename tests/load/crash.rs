//! From SIGKILL of the supervisor to the moment in which all its phones send again, with launchd's throttle.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::eventually;
use e2e::shelf::{Plan, Shelf, message};
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::p50_most_s;

/// `ThrottleInterval` of our plist: no start sooner than this after the last one.
const THROTTLE: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_mins(1);
const NUMBERS: [&str; 3] = ["+12025550190", "+12025550191", "+12025550192"];

pub(crate) async fn measure() -> Result<Vec<Figure>> {
    const SAMPLES: usize = 4;
    let mut shelf = Shelf::start(Plan { patient: true, ..Plan::measured() }).await?;
    sending(&shelf, "before").await?;
    let (mut settled, mut at_once) = (Vec::new(), Vec::new());
    let mut started = Instant::now();
    for n in 0..SAMPLES {
        // One that has run for longer than the throttle is started again at once.
        tokio::time::sleep_until(started + THROTTLE).await;
        settled.push(crash(&mut shelf, &mut started, &format!("settled {n}")).await?);
        // The worst moment: it has just begun to send.
        at_once.push(crash(&mut shelf, &mut started, &format!("at once {n}")).await?);
    }
    shelf.stop().await?;
    Ok(vec![
        Figure::new(
            "crash: SIGKILL of a supervisor that has run for 5 s → all 3 phones send",
            p50_most_s(&mut settled),
            "promised: 10 s at most".to_owned(),
            None,
        ),
        Figure::new(
            "crash: the same as soon as it sends, with launchd's throttle of 5 s between starts",
            p50_most_s(&mut at_once),
            "promised: 10 s at most".to_owned(),
            None,
        ),
    ])
}

async fn crash(shelf: &mut Shelf, started: &mut Instant, name: &str) -> Result<Duration> {
    let killed = Instant::now();
    shelf.crash_supervisor()?;
    tokio::time::sleep_until(*started + THROTTLE).await;
    shelf.start_supervisor()?;
    *started = Instant::now();
    sending(shelf, name).await.context("after a crash")?;
    Ok(killed.elapsed())
}

/// Has every phone send something, and waits until Messages was asked for all of it.
async fn sending(shelf: &Shelf, name: &str) -> Result<()> {
    for number in NUMBERS {
        let mut text = message("+12105550100", &format!("{name} from {number}"))?;
        text.from = Some(number.parse().context("a number")?);
        shelf.tenant.send(&text).await?;
    }
    eventually("every phone sends", WITHIN, || async {
        let asked = shelf.asked()?;
        let sent = NUMBERS.iter().filter(|number| {
            let text = format!("{name} from {number}");
            asked.iter().any(|asked| asked.text == text)
        });
        let sent = sent.count();
        Ok(if sent == NUMBERS.len() { Ok(()) } else { Err(format!("{sent} of them")) })
    })
    .await
}
