//! Accepting and dispatching beside a history: a router whose store holds a million messages and a long queue, and one
//! with an empty store, in turns.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::shelf::{Plan, Shelf};
use e2e::{clock, eventually};
use protocol::TenantId;
use rusqlite::{Connection, OpenFlags, named_params};
use tokio::time::Instant;

use crate::Figure;
use crate::percentile::per_second;
use crate::posts;
use crate::relay::{ask, id};
use crate::standin::Standins;

const ROUNDS: usize = 3;
/// Messages of a round: a second or so.
const ROUND: u32 = 3_000;
/// Of those, what goes to the phones in a round: less than all, because they take some more before they stop.
const GIVEN: usize = 2_700;
/// Hosts and the phones of each.
const HOSTS: u32 = 1;
const PHONES: u32 = 8;
const WITHIN: Duration = Duration::from_mins(2);

/// One router with what is asked of it.
struct Side {
    shelf: Shelf,
    key: String,
    accepted: Vec<f64>,
    given: Vec<f64>,
}

impl Side {
    async fn start(stored: u32, queued: u32) -> Result<Self> {
        let mut shelf = Shelf::start(Plan { phones: vec![], ..Plan::measured() }).await?;
        // A tenant without an endpoint: webhooks are not what is measured.
        let tenant = shelf.operator.create_tenant("Flat", "Flat").await?;
        let key = shelf.operator.create_key(&tenant.id).await?.secret;
        if stored > 0 {
            shelf.crash_router()?;
            let store = shelf.root().join("router.db");
            tokio::task::spawn_blocking(move || fill(&store, &tenant.id, (stored, queued)))
                .await
                .context("filling")??;
            shelf.start_router().await?;
        }
        Ok(Self { shelf, key, accepted: Vec::new(), given: Vec::new() })
    }

    async fn accept(&mut self, round: u32) -> Result<()> {
        let range = (round * ROUND, (round + 1) * ROUND);
        let ask = ask(self.key.clone());
        let (posts, took) = posts::run(self.shelf.addr(), range, ask, id).await?;
        self.accepted.push(per_second(posts.len(), took));
        self.until("everything waits for a phone", "ready = 1 OR held_reason IS NULL").await
    }

    /// Waits until no job is like that.
    async fn until(&self, what: &str, unlike: &str) -> Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let store = Connection::open_with_flags(self.shelf.root().join("router.db"), flags);
        let store = store.context("store")?;
        let sql = format!("SELECT COUNT(*) FROM jobs WHERE {unlike}");
        eventually(what, WITHIN, || async {
            let left: i64 = store.query_row(&sql, [], |row| row.get(0)).context("jobs")?;
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} do not")) })
        })
        .await
    }

    /// How fast what waits goes to the phones.
    async fn give(&mut self, phones: &Standins) -> Result<()> {
        let before = phones.came.sends();
        let began = Instant::now();
        phones.answer(true);
        phones.until(before + GIVEN, WITHIN).await?;
        self.given.push(per_second(phones.came.sends() - before, began.elapsed()));
        phones.answer(false);
        Ok(())
    }
}

pub(crate) async fn measure(stored: u32, queued: u32) -> Result<Vec<Figure>> {
    let mut empty = Side::start(0, 0).await.context("the empty store")?;
    let mut full = Side::start(stored, queued).await.context("the full store")?;
    let rounds = u32::try_from(ROUNDS).context("rounds")?;
    // The first round of each warms up and is not counted.
    for round in 0..=rounds {
        for side in [&mut empty, &mut full] {
            side.accept(round).await.context("accept")?;
        }
    }
    let mut phones = Vec::new();
    for side in [&empty, &full] {
        let url = side.shelf.url();
        let standins = Standins::start(&url, &side.shelf.operator, HOSTS, PHONES).await?;
        standins.answer(false);
        // All that waited is due now; the phones have their hands full, so that the rest stays where it is.
        side.until("everything is due", "held_reason = 'no_phone_available'").await?;
        phones.push(standins);
    }
    for _ in 0..=rounds {
        for (side, phones) in [&mut empty, &mut full].into_iter().zip(&phones) {
            side.give(phones).await.context("dispatch")?;
        }
    }
    for phones in phones {
        phones.answer(true);
        phones.stop().await;
    }
    let bytes = std::fs::metadata(full.shelf.root().join("router.db")).context("store")?.len();
    let mib = u32::try_from(bytes / (1024 * 1024)).context("store")?;
    let figures = vec![
        figure("flat: accept, 64 connections", &full.accepted, &empty.accepted, mib),
        figure(
            "flat: dispatch of what waits to phones that answer",
            &full.given,
            &empty.given,
            mib,
        ),
    ];
    for side in [empty, full] {
        side.shelf.stop().await?;
    }
    Ok(figures)
}

fn figure(what: &'static str, full: &[f64], empty: &[f64], mib: u32) -> Figure {
    let (full, empty) = (middle(full), middle(empty));
    Figure::new(
        what,
        format!("{full:.0} messages/s beside a history and a queue of {mib} MiB"),
        format!("{empty:.0} messages/s with an empty store"),
        Some(full / empty),
    )
}

/// The middle one of all but the first.
fn middle(rates: &[f64]) -> f64 {
    let mut rates: Vec<f64> = rates.iter().skip(1).copied().collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a router leaves behind after so many messages, and so many more that wait for a phone, written directly: by way
/// of the API it would take longer than everything that is measured.
fn fill(store: &Path, tenant: &TenantId, (stored, queued): (u32, u32)) -> Result<()> {
    let mut db = Connection::open(store).context("store")?;
    // Of this writing nothing has to survive a crash.
    db.execute_batch(
        "PRAGMA synchronous = OFF; PRAGMA cache_size = -524288; PRAGMA wal_autocheckpoint = 100000;
         PRAGMA foreign_keys = OFF; PRAGMA temp_store = MEMORY;",
    )
    .context("store")?;
    let tx = db.transaction().context("store")?;
    let now = clock::now().0;
    tx.execute_batch(
        "CREATE TEMP TABLE filled (n INTEGER PRIMARY KEY, id TEXT, recipient TEXT, at BIGINT, held BIGINT);",
    )
    .context("store")?;
    tx.execute(
        "INSERT INTO filled WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :all)
         SELECT n, 'msg_0' || printf('%019d', n) || '000000',
             '+1212' || printf('%07d', 2000000 + (n * 7919) % 200000), :now - (:all - n) * 100, n > :stored FROM n",
        named_params! { ":all": stored + queued, ":stored": stored, ":now": now },
    )
    .context("filled")?;
    let tenant = tenant.as_str();
    for sql in [
        "INSERT INTO messages (id, tenant_id, direction, kind, test, recipient, phone_id, channel_asked, channel_used,
             class, text, status, held_reason, next_at, expires_at, attempts, sequence, guid, cancel_asked, created_at,
             updated_at, on_the_way)
         SELECT id, :tenant, 'outbound', 'tenant', 0, recipient, CASE WHEN held THEN NULL ELSE 'pho_' || printf('%025d0', n % 8) END,
             'auto', CASE WHEN held THEN NULL ELSE 'imessage' END, 'transactional',
             'Your table number ' || n || ' is ready. We keep it for ten minutes.',
             CASE WHEN held THEN 'queued' ELSE 'sent' END, CASE WHEN held THEN 'no_phone_available' END,
             CASE WHEN held THEN at + 43200000 END, at + 43200000, NOT held, CASE WHEN held THEN 2 ELSE 5 END,
             CASE WHEN held THEN NULL ELSE 'guid-' || n END, 0, at, at, held FROM filled",
        "INSERT INTO message_events (id, message_id, tenant_id, sequence, type, at)
         SELECT 'evt_' || n || '-' || s.column1, id, :tenant, s.column1, s.column2, at
         FROM filled, (VALUES (1, 'queued'), (2, 'dispatching'), (3, 'accepted'), (4, 'started'), (5, 'sent')) s
         WHERE s.column1 <= CASE WHEN held THEN 2 ELSE 5 END",
        "INSERT INTO decisions (message_id, number, tenant_id, at, verdict, class, rules, zones, text_hash)
         SELECT id, 1, :tenant, at, 'send', 'transactional', '1/1', '2026a', zeroblob(32) FROM filled",
        "INSERT INTO attempts (message_id, attempt, tenant_id, phone_id, epoch, journal, state, route, offered_at,
             start_before, answered_at, first_offered_at)
         SELECT id, 1, :tenant, 'pho_' || printf('%025d0', n % 8), 1, 'j', 'done', '[\"imessage\",\"sms\"]', at, at + 60000, at, at
         FROM filled WHERE NOT held",
        "INSERT INTO bindings (tenant_id, recipient, phone_id, last_at, last_direction, unanswered)
         SELECT :tenant, recipient, 'pho_' || printf('%025d0', MIN(n) % 8), MAX(at), 'outbound', 1 FROM filled GROUP BY recipient",
        "INSERT INTO phone_contacts (recipient, phone_id, since, counted, attempts, heard)
         SELECT recipient, 'pho_' || printf('%025d0', MIN(n) % 8), MIN(at) - 86400000, 1, 1, 0 FROM filled WHERE :tenant IS NOT NULL
         GROUP BY recipient",
        "INSERT INTO jobs (message_id, tenant_id, run_at, class_rank, held_reason, ready)
         SELECT id, :tenant, at + 43200000, 1, 'no_phone_available', 0 FROM filled WHERE held",
    ] {
        tx.execute(sql, named_params! { ":tenant": tenant }).with_context(|| sql.to_owned())?;
    }
    tx.commit().context("store")?;
    db.execute_batch("DROP TABLE temp.filled; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA optimize;")
        .context("store")?;
    let made: i64 =
        db.query_row("SELECT COUNT(*) FROM messages", [], |row| row.get(0)).context("store")?;
    ensure!(made == i64::from(stored + queued), "{made} messages");
    Ok(())
}
