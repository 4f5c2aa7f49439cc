//! A bridge that no supervisor knows of holds its phone: the supervisor's own is refused until it is gone, and nothing is sent twice.

#![cfg(test)]

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::flow::{recipient, settle};
use e2e::program::Lines;
use e2e::shelf::{Plan, Shelf, message};
use e2e::{eventually, program};
use protocol::link::PhoneState;
use serde_json::{Value, json};

/// For a busy machine; nothing waits for its end.
const WITHIN: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phone_that_a_stray_bridge_holds_waits_for_its_end() -> Result<()> {
    let phones = vec![("+12025550190", "26")];
    let mut shelf = Shelf::start(Plan { phones, speed: 0.2, ..Plan::default() }).await?;
    let id = shelf.operator.phones().await?.first().context("a phone")?.id.clone();
    // Somebody starts it by hand, as one does to look at what is wrong, and lets it run.
    shelf.crash_supervisor()?;
    eventually("its own bridge has noticed", WITHIN, || async {
        let left = shelf.bridge_pids()?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
    })
    .await?;
    let config = shelf.root().join("host/phones").join(id.as_str()).join("bridge.toml");
    let config = config.display().to_string();
    let stray = Lines::start("switchboard-bridge", &["run", "--config", &config])?;
    stray.next(WITHIN).await.context("the stray says hello")?;
    let first = stray.pid();
    shelf.start_supervisor()?;

    let dispatch = shelf.dispatch()?;
    let phone = || async {
        let phones = dispatch.call::<Value>(reqwest::Method::GET, "/v1/phones", None, None).await;
        // It has only just been started.
        let phones = phones.and_then(|answer| Ok(answer?)).unwrap_or_default();
        phones.pointer("/data/0").cloned().unwrap_or_default()
    };
    eventually("bridges are refused and tried again", WITHIN, || async {
        let phone = phone().await;
        let refused = phone["last_exit"] == json!({"how": "code", "code": 75});
        let again = phone["restarts"].as_u64().is_some_and(|restarts| restarts >= 2);
        Ok(if refused && again { Ok(()) } else { Err(phone.to_string()) })
    })
    .await?;
    // The operator finds out why, and the router gives the phone nothing to send.
    let log: Value =
        dispatch.call(reqwest::Method::GET, &format!("/v1/phones/{id}/log"), None, None).await??;
    assert!(log.to_string().contains("is held by another bridge of this phone"), "{log}");
    let posted = shelf.tenant.send(&message(&recipient(1), "while nobody serves")?).await?.id;
    eventually("the router knows", WITHIN, || async {
        let phones = shelf.operator.phones().await?;
        let ready = phones.iter().any(|phone| phone.online && phone.state == PhoneState::Ready);
        Ok(if ready { Err(format!("{phones:?}")) } else { Ok(()) })
    })
    .await?;
    assert_eq!(shelf.asked()?.len(), 0);

    // However it ends, the system gives its lock back, and whoever comes next has the phone.
    program::crash_pid(first)?;
    drop(stray);
    shelf.all_ready(WITHIN).await?;
    let running = program::bridges(shelf.root())?;
    assert!(running.len() == 1 && running.iter().all(|(pid, _)| *pid != first), "{running:?}");
    let books = settle(&shelf, &[posted], WITHIN).await?;
    assert_eq!((books.sent, books.doubled.len(), books.lost.len()), (1, 0, 0), "{books:?}");
    shelf.stop().await
}

/// On Linux alone: elsewhere the system wakes a stopped process whose parent ends, and nothing hangs.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_that_hangs_and_has_lost_its_supervisor_is_ended_by_the_next_one() -> Result<()> {
    // Whoever is stopped and left alone in its session is woken. This process inherits it, so it is not alone.
    nix::sys::prctl::set_child_subreaper(true)?;
    let phones = vec![("+12025550191", "26")];
    let mut shelf = Shelf::start(Plan { phones, speed: 0.2, ..Plan::default() }).await?;
    let before = shelf.bridge_pids()?;
    let hung = *before.first().context("a bridge")?;
    // It does nothing any more: the end of its stdin means nothing to it, and TERM waits with the rest.
    program::freeze_pid(hung, true)?;
    eventually("it stands still", WITHIN, || async {
        let stat = std::fs::read_to_string(format!("/proc/{hung}/stat"))?;
        Ok(if stat.contains(") T ") { Ok(()) } else { Err(stat) })
    })
    .await?;
    // It is handed to whom nobody has seen hang yet.
    let posted = shelf.tenant.send(&message(&recipient(1), "while it hangs")?).await?.id;
    shelf.crash_supervisor()?;
    let began = tokio::time::Instant::now();
    shelf.start_supervisor()?;
    eventually("another bridge is there", WITHIN, || async {
        let after = shelf.bridge_pids()?;
        let replaced = !after.contains(&hung) && after.len() == 1;
        Ok(if replaced { Ok(()) } else { Err(format!("{hung} {after:?}")) })
    })
    .await?;
    shelf.all_ready(WITHIN).await?;
    println!("a hung orphan was replaced within {:?}", began.elapsed());
    let log = std::fs::read_to_string(shelf.root().join("supervisor.log"))?;
    assert!(log.contains("SIGKILL") && log.contains("whose supervisor is gone"), "{log}");
    let books = settle(&shelf, &[posted], WITHIN).await?;
    assert_eq!((books.sent, books.doubled.len(), books.lost.len()), (1, 0, 0), "{books:?}");
    shelf.stop().await
}
