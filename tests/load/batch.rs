//! A batch of very many recipients: taken in as CSV and turned into messages, with the memory of the router, beside what
//! SQLite can do here with one prepared INSERT.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::program;
use e2e::shelf::{Plan, Shelf};
use protocol::api::{AddedRecipients, Batch, Template};
use rusqlite::Connection;
use serde_json::json;
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::per_second;

/// Rows of one chunk.
const CHUNK: u32 = 100_000;
/// Rows of one commit, of the baseline as of a page.
const PAGE: u32 = 1_000;
const CHUNK_WITHIN: Duration = Duration::from_secs(80);
/// The longest that nothing may move.
const STILL_MAX: Duration = Duration::from_mins(1);

pub(crate) async fn measure(recipients: u32) -> Result<Vec<Figure>> {
    let router = "[messages]\nbatch_queued = 1000000\n";
    let shelf = Shelf::start(Plan { phones: vec![], router, ..Plan::measured() }).await?;
    let tenant = shelf.operator.create_tenant("Batch", "Batch").await?;
    let api = shelf.operator.with_token(&shelf.operator.create_key(&tenant.id).await?.secret);
    let template =
        json!({"name": "a", "text": "Hello {{name}}, your order {{order}} is on its way."});
    let template: Template =
        api.call(reqwest::Method::POST, "/v1/templates", Some(template), None).await??;
    let body = json!({"name": "a", "class": "transactional", "template": {"id": template.id}});
    let batch: Batch = api.call(reqwest::Method::POST, "/v1/batches", Some(body), None).await??;
    let path = format!("/v1/batches/{}", batch.id);
    let pid = shelf.router_pid()?;
    let idle = program::resident_now_kib(pid);

    let began = Instant::now();
    for from in (0..recipients).step_by(usize::try_from(CHUNK)?) {
        let count = CHUNK.min(recipients - from);
        let added: AddedRecipients =
            api.upload(&format!("{path}/recipients"), csv(from, count), CHUNK_WITHIN).await?;
        ensure!(added.added == u64::from(count), "a chunk was not taken: {added:?}");
    }
    let taken = per_second(usize::try_from(recipients)?, began.elapsed());
    let after_intake = program::resident_kib(pid);

    let began = Instant::now();
    api.call::<Batch>(reqwest::Method::POST, &format!("{path}/start"), None, None).await??;
    let (mut last, mut moved) = (0, Instant::now());
    // How long another tenant's request takes meanwhile.
    let mut slowest = Duration::ZERO;
    while last < u64::from(recipients) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = Instant::now();
        let message = e2e::shelf::message("+12025550143", "meanwhile")?;
        shelf.tenant.send(&message).await?;
        slowest = slowest.max(asked.elapsed());
        // The list says how far it is without counting outcomes.
        let page: protocol::api::Page<Batch> =
            api.call(reqwest::Method::GET, "/v1/batches", None, None).await??;
        let now = page.data.first().context("the batch is gone")?.expanded;
        if now > last {
            (last, moved) = (now, Instant::now());
        } else if moved.elapsed() > STILL_MAX {
            bail!("it stands still at {now}");
        }
    }
    let expanded = per_second(usize::try_from(recipients)?, began.elapsed());
    let peak = program::resident_kib(pid);
    let folder = shelf.root().to_owned();
    let bare = tokio::task::spawn_blocking(move || inserts(&folder, recipients))
        .await
        .context("the baseline")??;
    shelf.stop().await?;
    let limit = format!("a bare prepared INSERT, 1,000 rows a commit, on disk: {bare:.0} rows/s");
    let mib = |kib: u64| kib / 1024;
    Ok(vec![
        Figure::new(
            "batch: recipients taken in as CSV, checked, deduplicated",
            format!(
                "{taken:.0} rows/s ({recipients} rows), resident {} MiB before, peak {} MiB",
                mib(idle),
                mib(after_intake)
            ),
            limit.clone(),
            Some(taken / bare),
        ),
        Figure::new(
            "batch: recipients turned into messages while they are dispatched",
            format!(
                "{expanded:.0} messages/s, peak {} MiB; the slowest of another tenant's requests {} ms",
                mib(peak),
                slowest.as_millis()
            ),
            limit,
            Some(expanded / bare),
        ),
    ])
}

/// So many rows from `from` on.
fn csv(from: u32, count: u32) -> String {
    use std::fmt::Write as _;
    let mut rows = "to,name,order\n".to_owned();
    for n in from..from + count {
        let _infallible = writeln!(rows, "+1202{:07},Anna {n},{n}", 2_000_000 + n);
    }
    rows
}

/// What SQLite can do here: one table, one index, one prepared statement.
fn inserts(folder: &Path, rows: u32) -> Result<f64> {
    let mut db = Connection::open(folder.join("bare.db")).context("database")?;
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; \
         CREATE TABLE rows (id TEXT PRIMARY KEY, recipient TEXT, variables TEXT);",
    )
    .context("schema")?;
    let began = Instant::now();
    for from in (0..rows).step_by(usize::try_from(PAGE)?) {
        let tx = db.transaction().context("begin")?;
        {
            let mut insert =
                tx.prepare_cached("INSERT INTO rows VALUES (?1, ?2, ?3)").context("insert")?;
            for n in from..(from + PAGE).min(rows) {
                let variables = format!("{{\"name\":\"Anna {n}\",\"order\":\"{n}\"}}");
                let values = (format!("bat_{n:026}"), format!("+1202{n:07}"), variables);
                insert.execute(values).context("insert")?;
            }
        }
        tx.commit().context("commit")?;
    }
    Ok(per_second(usize::try_from(rows)?, began.elapsed()))
}
