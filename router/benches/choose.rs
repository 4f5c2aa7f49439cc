//! What deciding about a message and choosing its phone costs, by phones in the pool.
//!
//! `cargo bench -p router --bench choose`. `decide_and_pick` is the two decisions alone, on what is in memory;
//! `with_its_dispatch` also writes the phone's row and takes that in, as dispatch does for each message, and
//! `after_anothers_change` reads the phone anew, as after a report. All are to be the same for ten phones and ten thousand.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use divan::Bencher;
use divan::counter::ItemsCount;
use protocol::api::TenantRules;
use protocol::{Channel, Class, HostId, PhoneId, Recipient, TenantId, UnixMs};
use router::compliance::place::Contact;
use router::compliance::{self, OptOut};
use router::config::Compliance;
use router::facts::{self, Subject};
use router::params;
use router::pool::{Caps, Pool, Presence, Shared};
use router::store::dispatch::Relations;
use router::store::rules::Known;
use router::store::{Store, StoreError, Tx};
use router::warming::{DAY_MS, Policy, Step};

const PHONES: [u32; 3] = [10, 1_000, 10_000];
const NOW: UnixMs = UnixMs(20_000 * DAY_MS);
const WANTED: [Channel; 3] = [Channel::Imessage, Channel::Rcs, Channel::Sms];
/// Messages of one sample.
const MESSAGES: usize = 1_000;

fn main() {
    divan::main();
}

/// Every host has a session.
struct Everybody;

impl Presence for Everybody {
    fn online(&self, _host: &HostId) -> bool {
        true
    }

    fn take_changed(&self) -> HashSet<HostId> {
        HashSet::new()
    }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    store: Store,
    pool: Shared,
    _folder: tempfile::TempDir,
}

fn phone(n: u32) -> PhoneId {
    let mut chance = [0; 10];
    chance[..4].copy_from_slice(&n.to_be_bytes());
    PhoneId::new(1, chance)
}

fn insert(tx: &mut Tx<'_>, phones: u32) -> Result<(), StoreError> {
    let host = HostId::new(1, [1; 10]);
    tx.execute(
        "INSERT INTO hosts (id, name, public_key, created_at) VALUES (?1, 'h', x'01', 0)",
        params![host],
    )?;
    for n in 0..phones {
        tx.execute(
            "INSERT INTO phones (id, number, host_id, state, reasons, channels, warming_priority, messages_today, day,
                 created_at, updated_at)
             VALUES (?1, ?2, ?3, 'ready', '[]', '[\"imessage\",\"sms\"]', 0, ?4, ?5, 0, 0)",
            params![phone(n), format!("+1555{n:07}"), host, n % 7, NOW.0 / DAY_MS],
        )?;
        tx.execute(
            "INSERT INTO leases (phone_id, epoch, host_id, granted_at, expires_at) VALUES (?1, 1, ?2, 0, ?3)",
            params![phone(n), host, NOW.plus_ms(DAY_MS)],
        )?;
    }
    Ok(())
}

impl Bench {
    fn with(phones: u32) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let store = Store::open(&folder.path().join("store.db")).expect("the store opens");
        let warming = Policy {
            enforce: true,
            steps: vec![Step { from_day: 0, per_day: 50 }],
            per_hour: 50,
            unanswered_max: 5,
        };
        let caps = Caps { warming: Arc::new(warming), daily: 1_000_000, in_flight: u32::MAX };
        let pool = Arc::new(Mutex::new(Pool::new(caps)));
        let bench = Self { runtime, store, pool, _folder: folder };
        bench.write(move |tx, pool| {
            insert(tx, phones)?;
            pool.catch_up(tx, &Everybody, NOW, true)
        });
        bench
    }

    fn write(
        &self,
        work: impl FnOnce(&mut Tx<'_>, &mut Pool) -> Result<(), StoreError> + Send + 'static,
    ) {
        let pool = Arc::clone(&self.pool);
        let done = self.store.write(move |tx| work(tx, &mut pool.lock().expect("it is whole")));
        self.runtime.block_on(done).expect("the write is taken");
    }
}

fn choose(pool: &Pool) -> PhoneId {
    // A number in two time zones, a text of one SMS: what most messages are.
    let recipient: Recipient = "+18505550143".parse().expect("it is a number");
    let known = Known {
        rules: TenantRules::default(),
        opt_out: OptOut::Clear,
        contact: Contact::default(),
        last_inbound_ms: None,
        first_message: true,
    };
    let subject = Subject {
        recipient: &recipient,
        text: &"Your table is ready. ".repeat(7),
        class: Class::Marketing,
        internal: false,
        test: false,
        accepted_at: NOW,
        expires_at: UnixMs(i64::MAX),
    };
    let facts = facts::of(&Compliance::default(), &known, &subject);
    divan::black_box(compliance::check::<()>(Ok(&facts), NOW.0));
    let tenant = TenantId::new(1, [1; 10]);
    let picked = pool.pick((&tenant, false), None, &Relations::default(), &WANTED, NOW);
    picked.expect("there is a phone").0.phone
}

#[divan::bench(args = PHONES, sample_count = 100)]
fn decide_and_pick(bencher: Bencher<'_, '_>, phones: u32) {
    let bench = Bench::with(phones);
    let pool = bench.pool.lock().expect("it is whole");
    bencher.counter(ItemsCount::new(MESSAGES)).bench_local(|| {
        for _ in 0..MESSAGES {
            divan::black_box(choose(&pool));
        }
    });
}

#[divan::bench(args = PHONES, sample_count = 20)]
fn with_its_dispatch(bencher: Bencher<'_, '_>, phones: u32) {
    in_one_commit(bencher, phones, true);
}

#[divan::bench(args = PHONES, sample_count = 20)]
fn after_anothers_change(bencher: Bencher<'_, '_>, phones: u32) {
    in_one_commit(bencher, phones, false);
}

/// Chooses and counts the message; whether the pool is told, or has to find out.
fn in_one_commit(bencher: Bencher<'_, '_>, phones: u32, told: bool) {
    let bench = Bench::with(phones);
    bencher.counter(ItemsCount::new(MESSAGES)).bench_local(|| {
        bench.write(move |tx, pool| {
            for _ in 0..MESSAGES {
                pool.catch_up(tx, &Everybody, NOW, false)?;
                let chosen = choose(pool);
                tx.execute(
                    "UPDATE phones SET messages_today = CASE WHEN day = ?2 THEN messages_today + 1 ELSE 1 END,
                         day = ?2, last_used_at = ?3 WHERE id = ?1",
                    params![chosen, NOW.0 / DAY_MS, NOW],
                )?;
                if told {
                    pool.gave(tx, &chosen, false, NOW)?;
                }
            }
            Ok(())
        });
    });
}
