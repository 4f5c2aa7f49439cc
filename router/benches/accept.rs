//! What accepting a message costs: the bare group commit against the whole store function, by callers at once.
//!
//! `cargo bench -p router --bench accept`. Every iteration answers `CALLERS` writes that were waiting together, each
//! durable (`synchronous=FULL`); items per second are writes per second.

use divan::Bencher;
use divan::counter::ItemsCount;
use protocol::{ChannelChoice, Class, MessageId, TenantId, UnixMs};
use router::clock;
use router::params;
use router::store::messages::{self, NewMessage};
use router::store::{Store, StoreError, Tx};

/// Callers whose writes wait at once.
const CALLERS: [usize; 4] = [1, 8, 64, 512];

fn main() {
    divan::main();
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    store: Store,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn open() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let store = Store::open(&folder.path().join("store.db")).expect("the store opens");
        Self { runtime, store, _folder: folder }
    }

    fn run(&self, callers: usize, work: fn(&mut Tx<'_>) -> Result<(), StoreError>) {
        self.runtime.block_on(async {
            let writes = (0..callers).map(|_| self.store.write(work));
            for answer in futures_util::future::join_all(writes).await {
                answer.expect("the write is taken");
            }
        });
    }
}

fn row(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let recipient = MessageId::new(0, clock::random());
    tx.execute(
        "INSERT INTO opt_outs (tenant_id, recipient, state, method, at) VALUES ('t', ?1, 's', 'm', 0)",
        params![recipient],
    )?;
    Ok(())
}

fn message(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let now = UnixMs(1_795_348_800_000);
    let tenant = TenantId::new(now.0, [7; 10]);
    let new = NewMessage {
        id: MessageId::new(now.0, clock::random()),
        test: false,
        recipient: "+12025550143".parse().expect("it is a number"),
        from: None,
        channel: ChannelChoice::Auto,
        fallback: None,
        media: Vec::new(),
        class: Class::Transactional,
        text: "Your order 7 is on its way and will be there on Thursday.".to_owned(),
        template: None,
        batch: None,
        metadata: None,
        send_at: None,
        expires_at: now.plus_ms(3_600_000),
        now,
    };
    let Ok(reservation) = messages::reserve(tx, &tenant, &new)? else {
        return Err(StoreError::NoRow);
    };
    messages::accept(tx, &tenant, &new, &reservation).map(drop)
}

#[divan::bench(args = CALLERS, sample_count = 50)]
fn group_commit_of_one_row(bencher: Bencher<'_, '_>, callers: usize) {
    let bench = Bench::open();
    bencher.counter(ItemsCount::new(callers)).bench_local(|| bench.run(callers, row));
}

#[divan::bench(args = CALLERS, sample_count = 50)]
fn accept_a_message(bencher: Bencher<'_, '_>, callers: usize) {
    let bench = Bench::open();
    bencher.counter(ItemsCount::new(callers)).bench_local(|| bench.run(callers, message));
}
