//! Many phones on one supervisor: what it and its bridges cost, with nothing to do and with a message a second each.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::flow::recipient;
use e2e::program;
use e2e::shelf::{Plan, Shelf, message};
use protocol::E164;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Figure;
use crate::idle::mib;
use crate::percentile::per_second;

/// Area codes; ten numbers of 555-01xx each.
const AREAS: [u16; 20] = [
    202, 203, 205, 206, 207, 208, 209, 301, 302, 303, 304, 305, 307, 308, 309, 310, 312, 313, 314,
    315,
];
/// Until caches are as large as they get, and the start is over.
const SETTLE: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(20);
const PROMISED: &str = "promised: under 15 MB (14.3 MiB)";
/// Messages posted at once: posting is never what is measured.
const POSTERS: usize = 16;

/// What serves the phones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// Bridges, with the sandbox as Messages.
    Whole,
    /// Stand-ins that answer at once: what is measured is the supervisor.
    StandIns,
}

pub(crate) async fn measure(phones: u16, whole: u16) -> Result<Vec<Figure>> {
    let mut figures = vec![idle(1).await.context("one phone")?];
    figures.extend(many(phones, Served::StandIns).await.context("many stand-ins")?);
    if whole > 0 {
        figures.extend(many(whole, Served::Whole).await.context("many phones")?);
    }
    Ok(figures)
}

fn numbers(phones: u16) -> Vec<E164> {
    let all = AREAS.iter().flat_map(|area| (0..10).map(move |n| format!("+1{area}555019{n}")));
    all.take(phones.into()).filter_map(|number| number.parse().ok()).collect()
}

async fn shelf(phones: u16, served: Served) -> Result<Shelf> {
    // The plan's numbers live as long as the program, which ends soon.
    let phones = numbers(phones).iter().map(|number| (&*number.to_string().leak(), "26")).collect();
    let stand_in = match served {
        Served::Whole => None,
        Served::StandIns => Some("switchboard-load-child"),
    };
    Shelf::start(Plan { phones, patient: true, stand_in, ..Plan::measured() }).await
}

async fn idle(phones: u16) -> Result<Figure> {
    let shelf = shelf(phones, Served::Whole).await?;
    tokio::time::sleep(SETTLE).await;
    let before = Cost::of(&shelf)?;
    tokio::time::sleep(MEASURED).await;
    let cost = Cost::of(&shelf)?.since(&before);
    shelf.stop().await?;
    Ok(Figure::new(
        "phones: the supervisor of one phone, idle",
        cost.supervisor.text(MEASURED),
        PROMISED.to_owned(),
        None,
    ))
}

async fn many(phones: u16, served: Served) -> Result<Vec<Figure>> {
    let shelf = shelf(phones, served).await?;
    tokio::time::sleep(SETTLE).await;
    let before = Cost::of(&shelf)?;
    tokio::time::sleep(MEASURED).await;
    let idle = Cost::of(&shelf)?.since(&before);

    let before = Cost::of(&shelf)?;
    let began = Instant::now();
    let posted = post(&shelf, phones).await?;
    let took = began.elapsed();
    let busy = Cost::of(&shelf)?.since(&before);
    let sent = sent(&shelf, served).await?;
    shelf.stop().await?;
    let count = f64::from(phones);
    let each = |cost: &Cost| {
        let bridges = &cost.bridges;
        format!(
            "{:.2} % of a processor, {:.1} MiB resident each",
            bridges.seconds / took_seconds(cost) * 100.0 / count,
            mib(bridges.kib) / count
        )
    };
    let asked = per_second(posted, took);
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let router = busy.router.seconds / took.as_secs_f64();
    let flow = format!("{asked:.0} accepted a second, {:.0} sent", per_second(sent, took));
    Ok(match served {
        Served::StandIns => vec![
            Figure::new(
                "phones: the supervisor of stand-ins, idle",
                idle.supervisor.text(MEASURED),
                format!("{phones} phones; {PROMISED}"),
                None,
            ),
            Figure::new(
                "phones: the supervisor of stand-ins, one message a second each",
                busy.supervisor.text(took),
                format!("{flow}; of {processors} processors the router had {router:.2}"),
                None,
            ),
        ],
        Served::Whole => vec![
            Figure::new(
                "phones: the supervisor of all of them, idle",
                idle.supervisor.text(MEASURED),
                format!("{phones} phones; {PROMISED}"),
                None,
            ),
            Figure::new("phones: their bridges, idle", each(&idle), String::new(), None),
            Figure::new(
                "phones: the supervisor, one message a second each",
                busy.supervisor.text(took),
                flow,
                None,
            ),
            Figure::new(
                "phones: their bridges, one message a second each",
                each(&busy),
                format!(
                    "of {processors} processors the router had {router:.2}, the sandbox without its osascripts {:.2}",
                    busy.sandbox.seconds / took.as_secs_f64()
                ),
                None,
            ),
        ],
    })
}

/// How many were sent, by the sandbox's count, or with stand-ins by the router's, which may still have to hear of the last.
async fn sent(shelf: &Shelf, served: Served) -> Result<usize> {
    match served {
        Served::Whole => Ok(shelf.asked()?.len()),
        Served::StandIns => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let messages = shelf.tenant.messages().await?;
            Ok(messages.iter().filter(|message| message.status.is_sent()).count())
        }
    }
}

fn took_seconds(cost: &Cost) -> f64 {
    cost.over.as_secs_f64()
}

/// One message a second from each phone; how many were accepted.
async fn post(shelf: &Shelf, phones: u16) -> Result<usize> {
    let posters = Arc::new(Semaphore::new(POSTERS));
    let numbers = numbers(phones);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::from(phones));
    let until = Instant::now() + MEASURED;
    let mut posts = Vec::new();
    for (n, from) in numbers.iter().cycle().enumerate() {
        if Instant::now() >= until {
            break;
        }
        ticks.tick().await;
        let mut body = message(&recipient(u64::try_from(n)? % 100), &format!("phones {n}"))?;
        body.from = Some(from.clone());
        let turn = Arc::clone(&posters).acquire_owned().await.context("posters")?;
        let tenant = shelf.tenant.clone();
        posts.push(shelf.tasks.spawn(async move {
            let _turn = turn;
            anyhow::Ok(tenant.send(&body).await?.id)
        }));
    }
    let posted = posts.len();
    for post in posts {
        post.await.context("post")??;
    }
    Ok(posted)
}

/// What some processes have used of the processors, and have resident now.
#[derive(Debug, Clone, Default)]
struct Used {
    seconds: f64,
    kib: u64,
}

impl Used {
    fn of(ids: &[u32]) -> Result<Self> {
        let mut used = Self::default();
        for id in ids {
            used.seconds += program::cpu_seconds(*id).context("a process has ended")?;
            used.kib += program::resident_now_kib(*id);
        }
        Ok(used)
    }

    fn since(&self, before: &Self) -> Self {
        Self { seconds: self.seconds - before.seconds, kib: self.kib }
    }

    fn text(&self, over: Duration) -> String {
        let share = self.seconds / over.as_secs_f64() * 100.0;
        format!("{share:.2} % of a processor, {:.1} MiB resident", mib(self.kib))
    }
}

#[derive(Debug, Clone)]
struct Cost {
    at: Instant,
    over: Duration,
    supervisor: Used,
    bridges: Used,
    router: Used,
    sandbox: Used,
}

impl Cost {
    fn of(shelf: &Shelf) -> Result<Self> {
        let sandbox: Vec<u32> = shelf.sandbox_pid().into_iter().collect();
        let bridges = shelf.bridge_pids()?;
        ensure!(!bridges.is_empty(), "no bridge runs");
        Ok(Self {
            at: Instant::now(),
            over: Duration::ZERO,
            supervisor: Used::of(&[shelf.supervisor_pid()?])?,
            bridges: Used::of(&bridges)?,
            router: Used::of(&[shelf.router_pid()?])?,
            sandbox: Used::of(&sandbox)?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            at: self.at,
            over: self.at - before.at,
            supervisor: self.supervisor.since(&before.supervisor),
            bridges: self.bridges.since(&before.bridges),
            router: self.router.since(&before.router),
            sandbox: self.sandbox.since(&before.sandbox),
        }
    }
}
