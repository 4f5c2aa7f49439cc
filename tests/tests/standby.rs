//! One phone on two Macs, messages flowing: a host is lost, hands over, freezes whole and in part. At no moment do both
//! send, by the sandboxes' own count.

#![cfg(test)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::eventually;
use e2e::flow::{Flow, settle};
use e2e::ledger;
use e2e::program::{self, Program};
use e2e::shelf::{Plan, Shelf, free_addr};
use protocol::api::Phone;
use protocol::link::PhoneState;
use serde_json::Value;
use tokio::time::Instant;

const NUMBER: &str = "+12025550190";

/// Three shorter leases than in life, so that the test is; what it measures scales with them.
const LEASES: &str = "[lease]\nttl_ms = 9000\ngrace_ms = 1000\nsettle_ms = 0\nunfit_ms = 600000\n";

/// For a busy machine; what is measured is printed.
const WITHIN: Duration = Duration::from_secs(90);

const EVERY: Duration = Duration::from_millis(200);

/// The second Mac: its own Messages with its own chat.db, its own supervisor.
struct Second {
    dir: PathBuf,
    supervisor: Program,
    sandbox: Program,
}

impl Second {
    async fn start(shelf: &Shelf) -> Result<Self> {
        let dir = shelf.root().join("second");
        let (world, config) = (dir.join("phones"), dir.join("supervisor.toml"));
        std::fs::create_dir_all(&dir).context("second")?;
        let phone = format!("{NUMBER}=26");
        let at = world.display().to_string();
        let sandbox = Program::start(
            "switchboard-sandbox",
            &["phones", "--dir", &at, "--phone", &phone, "--speed", "0.2"],
            &[],
            &dir.join("sandbox.log"),
        )?;
        let socket = world.join("messages.sock");
        eventually("the second sandbox listens", WITHIN, || async {
            let up = std::os::unix::net::UnixStream::connect(&socket).map(drop);
            Ok(up.map_err(|error| error.to_string()))
        })
        .await?;
        let home = world.join(NUMBER.trim_start_matches('+'));
        let text = format!(
            "state_dir = \"{}\"\n[router]\nurl = \"{}\"\nredial_max_ms = 200\n[dispatch]\nlisten = \"{}\"\n\
             [[phones]]\nnumber = \"{NUMBER}\"\nstandby = true\nchat_db = \"{}\"\nosascript = \"{}\"\n\
             [phones.bridge.pacing]\nper_second = 0.0\n",
            dir.join("host").display(),
            shelf.url(),
            free_addr()?,
            home.join("chat.db").display(),
            home.join("osascript").display(),
        );
        std::fs::write(&config, text).context("second's configuration")?;
        let config = config.display().to_string();
        let token = [("SWITCHBOARD_ADMIN_TOKEN", shelf.operator_token())];
        let enrol =
            ["--url", &shelf.url(), "host", "enroll", "--name", "second", "--config", &config];
        program::run("switchboard", &enrol, &token)?;
        let log = dir.join("supervisor.log");
        let supervisor =
            Program::start("switchboard-supervisor", &["run", "--config", &config], &[], &log)?;
        Ok(Self { dir, supervisor, sandbox })
    }
}

/// Everything that Messages was asked for on one Mac: when, and what.
fn sends(world: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(world.join("sends.jsonl")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).context("sends")?;
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            Ok((field("at"), field("text")))
        })
        .collect()
}

async fn phone(shelf: &Shelf) -> Result<Phone> {
    shelf.operator.phones().await?.pop().context("a phone")
}

/// Waits until the standby could take over.
async fn stands_by(shelf: &Shelf) -> Result<()> {
    eventually("a host stands by", WITHIN, || async {
        let phone = phone(shelf).await?;
        let able = phone
            .hosts
            .iter()
            .any(|host| !host.active && host.online && host.state == PhoneState::Ready);
        Ok(if able { Ok(()) } else { Err(format!("{:?}", phone.hosts)) })
    })
    .await
}

/// Waits until the Mac of `world` is asked for more than it was; how long that took.
async fn sends_from(world: &Path, what: &str) -> Result<Duration> {
    let (before, since) = (sends(world)?.len(), Instant::now());
    eventually(what, WITHIN, || async {
        let now = sends(world)?.len();
        Ok(if now > before { Ok(()) } else { Err(format!("{now} sends, as before")) })
    })
    .await?;
    println!("{what}: {:.1} s", since.elapsed().as_secs_f64());
    Ok(since.elapsed())
}

fn hand_over(shelf: &Shelf) -> Result<()> {
    let token = [("SWITCHBOARD_ADMIN_TOKEN", shelf.operator_token())];
    let args = ["--url", &shelf.url(), "failover", "phone", NUMBER];
    let said = program::run("switchboard", &args, &token)?;
    ensure!(said.contains("done in"), "{said}");
    println!("planned: {}", said.lines().last().unwrap_or_default().trim());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_macs_never_send_for_one_phone_at_once() -> Result<()> {
    let plan = Plan { phones: vec![(NUMBER, "26")], speed: 0.2, router: LEASES, ..Plan::default() };
    let mut shelf = Shelf::start(plan).await?;
    let second = Second::start(&shelf).await?;
    let (one, two) = (shelf.world(), second.dir.join("phones"));
    let first_state = shelf.root().join("host");
    stands_by(&shelf).await?;
    let flow = Flow::start(&shelf.tasks, shelf.tenant.clone(), "standby", EVERY, 2_000);
    sends_from(&one, "the first host sends").await?;

    // Lost without a word: supervisor and bridge at once.
    shelf.crash_supervisor()?;
    for (id, _) in program::bridges(&first_state)? {
        // It may have ended by itself meanwhile: its supervisor is gone.
        program::crash_pid(id).unwrap_or_default();
    }
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
    program::freeze_pid(second.supervisor.pid(), true)?;
    sends_from(&one, "supervisor frozen, the first host sends").await?;
    program::freeze_pid(second.supervisor.pid(), false)?;
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
    let Second { supervisor, sandbox, .. } = second;
    supervisor.stop(Duration::from_secs(25)).await?;
    sandbox.stop(Duration::from_secs(25)).await?;
    shelf.stop().await
}
