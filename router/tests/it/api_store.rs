//! The store's promises: what was answered is on disk, what failed left nothing, neighbours do not matter.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use protocol::{ChannelChoice, Class, TenantId, UnixMs};
use router::billing::Day;
use router::params;
use router::store::usage::{Numbers, Place};
use router::store::{Store, StoreError, Tx};

fn insert(tx: &mut Tx<'_>, recipient: &str, text: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO opt_outs (tenant_id, recipient, state, method, at, keyword) VALUES ('t', ?1, 's', 'm', 0, ?2)",
        params![recipient, text],
    )?;
    Ok(())
}

async fn recipients(store: &Store) -> Vec<String> {
    store
        .read(|tx| {
            tx.query("SELECT recipient FROM opt_outs ORDER BY recipient", params![], |row| {
                row.text(0)
            })
        })
        .await
        .expect("the store reads")
}

fn open(folder: &Path) -> Store {
    Store::open(&folder.join("store.db")).expect("the store opens")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closure_that_fails_or_panics_takes_back_its_own_rows_and_nobody_elses() {
    for how in ["once", "often", "both"] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let writes = (0..200_u32).map(|number| {
            let store = store.clone();
            async move {
                let work = move |tx: &mut Tx<'_>| {
                    insert(tx, &format!("{number:03}"), "")?;
                    match number % 5 {
                        // A row of the neighbour's would be refused by the primary key; ours is refused by our own.
                        1 => insert(tx, &format!("{number:03}"), ""),
                        2 => Err(StoreError::NoRow),
                        3 => panic!("on purpose"),
                        _ => Ok(()),
                    }
                };
                let answer = match how {
                    "often" => store.write_often(work).await,
                    "both" if number % 3 == 0 => store.write_often(work).await,
                    _ => store.write(work).await,
                };
                (number, answer)
            }
        });
        let answers = futures_util::future::join_all(writes).await;
        for (number, answer) in &answers {
            match (number % 5, answer) {
                (0 | 4, Ok(()))
                | (1, Err(StoreError::Constraint(_)))
                | (2, Err(StoreError::NoRow))
                | (3, Err(StoreError::Panicked)) => {}
                (_, other) => panic!("{number}: {other:?}"),
            }
        }
        let kept: Vec<String> =
            (0..200_u32).filter(|n| matches!(n % 5, 0 | 4)).map(|n| format!("{n:03}")).collect();
        assert_eq!(recipients(&store).await, kept, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_with_others_is_counted_and_answered_once_though_it_is_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let runs = Arc::new(AtomicU32::new(0));
    // The writer is busy, so that all that follows waits and shares a transaction.
    let busy = store.write_often(|_tx| {
        std::thread::park_timeout(Duration::from_millis(200));
        Ok(())
    });
    let tenant = TenantId::new(1, [1; 10]);
    let writes = (0..20_u32).map(|number| {
        let (store, runs, tenant) = (store.clone(), Arc::clone(&runs), tenant.clone());
        async move {
            store
                .write_often(move |tx| {
                    let run = runs.fetch_add(1, Ordering::Relaxed);
                    let place = Place {
                        tenant: tenant.clone(),
                        day: Day::of(UnixMs(0)),
                        class: Class::Otp,
                        channel: ChannelChoice::Auto,
                    };
                    tx.counts().add(place, Numbers { accepted: 1, ..Numbers::default() });
                    insert(tx, &format!("{number:02}"), "")?;
                    if number == 19 { Err(StoreError::NoRow) } else { Ok((number, run)) }
                })
                .await
        }
    });
    let (busy, answers) = tokio::join!(busy, futures_util::future::join_all(writes));
    busy.unwrap();
    assert!(runs.load(Ordering::Relaxed) > 20, "the last one failed, and its neighbours ran again");
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 19);
    let counted = store
        .read(|tx| tx.query_row("SELECT SUM(accepted) FROM usage", params![], |row| row.int(0)))
        .await
        .unwrap();
    assert_eq!(counted, 19);
    assert_eq!(recipients(&store).await.len(), 19);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_goes_before_what_is_worked_off_and_that_goes_on_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let done = Arc::new(std::sync::Mutex::new(Vec::new()));
    let busy = store.write_often(|_tx| {
        std::thread::park_timeout(Duration::from_millis(200));
        Ok(())
    });
    // A millisecond each: the transaction's time is over long before they are.
    let slow = |store: Store, name: &'static str| {
        let done = Arc::clone(&done);
        async move {
            let work = move |_tx: &mut Tx<'_>| {
                std::thread::park_timeout(Duration::from_millis(1));
                done.lock().unwrap().push(name);
                Ok(())
            };
            store.write_often(work).await.unwrap();
        }
    };
    let behind = (0..40).map(|_| slow(store.behind(), "behind"));
    let front = (0..40).map(|_| slow(store.clone(), "front"));
    let (busy, ..) = tokio::join!(
        busy,
        futures_util::future::join_all(behind),
        futures_util::future::join_all(front)
    );
    busy.unwrap();
    let done = done.lock().unwrap();
    let last = |name| done.iter().rposition(|done| *done == name).unwrap();
    let first = |name| done.iter().position(|done| *done == name).unwrap();
    assert!(last("front") < last("behind"), "{done:?}");
    assert!(first("behind") < last("front"), "{done:?}");
    assert_eq!(done.len(), 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_does_not_grow_without_end_while_there_is_always_something_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let writers = (0..8_u32).map(|writer| {
        let store = store.clone();
        async move {
            for number in 0..160_u32 {
                let name = format!("{writer}-{number}");
                store.write_often(move |tx| insert(tx, &name, &"x".repeat(500_000))).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(writers).await;
    let log = std::fs::metadata(folder.path().join("store.db-wal")).unwrap().len();
    // 640 MB were written.
    assert!(log < 300_000_000, "{log} bytes");
    assert_eq!(recipients(&store).await.len(), 1_280);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_files_taken_half_way_holds_all_that_was_answered_and_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for number in 0..50 {
        store.write(move |tx| insert(tx, &format!("answered-{number:02}"), "")).await.unwrap();
    }
    let from = folder.path().to_owned();
    let to = copy.path().to_owned();
    // The power goes while this one is under way: its rows are written and not committed.
    store
        .write(move |tx| {
            for number in 0..500 {
                insert(tx, &format!("half-done-{number}"), &"x".repeat(500))?;
            }
            for name in ["store.db", "store.db-wal"] {
                std::fs::copy(from.join(name), to.join(name)).unwrap();
            }
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(recipients(&store).await.len(), 550);
    let after = recipients(&open(copy.path())).await;
    assert_eq!(after.len(), 50);
    assert!(after.iter().all(|recipient| recipient.starts_with("answered-")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.write(|tx| insert(tx, "before", "")).await.unwrap();
    let limit = |pages: i64| {
        store.write(move |tx| {
            tx.query(&format!("PRAGMA max_page_count = {pages}"), params![], |row| row.int(0))?;
            Ok(())
        })
    };
    // SQLite takes no less than the file has: from now on it cannot grow.
    limit(1).await.unwrap();
    let big = "x".repeat(200_000);
    let refused = store.write(move |tx| insert(tx, "too-much", &big)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Full), "{refused:?}");
    assert!(refused.is_unavailable());
    assert_eq!(recipients(&store).await, ["before"]);
    limit(1_000_000).await.unwrap();
    store.write(|tx| insert(tx, "space-again", "")).await.unwrap();
    assert_eq!(recipients(&store).await, ["before", "space-again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_one_router() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let second = Store::open(&folder.path().join("store.db")).unwrap_err();
    assert!(matches!(second, StoreError::InUse), "{second:?}");
    // By another name too.
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(folder.path().join("store.db"), &link).unwrap();
    assert!(matches!(Store::open(&link).unwrap_err(), StoreError::InUse));
    drop(store);
    open(folder.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.write(|tx| insert(tx, "x", "")).await.unwrap();
    for name in ["store.db", "store.db-wal", "store.db-shm", "store.db.lock"] {
        let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_into_a_file_that_nobody_will_find() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (file, aside) = (folder.path().join("store.db"), folder.path().join("aside.db"));
    store.write(|tx| insert(tx, "before", "")).await.unwrap();
    std::fs::rename(&file, &aside).unwrap();
    let refused = store.write(|tx| insert(tx, "lost", "")).await.unwrap_err();
    assert!(matches!(refused, StoreError::Replaced) && refused.is_unavailable(), "{refused:?}");
    std::fs::write(&file, "another file").unwrap();
    store.write(|tx| insert(tx, "lost", "")).await.unwrap_err();
    std::fs::rename(&aside, &file).unwrap();
    store.write(|tx| insert(tx, "after", "")).await.unwrap();
    assert_eq!(recipients(&store).await, ["after", "before"]);
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let says = |path: &Path| {
        let error = Store::open(path).unwrap_err();
        let cause = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
        format!("{error}: {cause}")
    };
    let text = "This is a shopping list. ".repeat(1_000);
    std::fs::write(&path, &text).unwrap();
    assert!(says(&path).contains("not a database"), "{}", says(&path));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    assert!(says(&folder.path().join("no/store.db")).contains("No such file"));
    assert!(says(folder.path()).contains("directory") || says(folder.path()).contains("open"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_one_snapshot_and_cannot_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.read(|tx| insert(tx, "x", "")).await.unwrap_err();
    let (writer, handle) = (store.clone(), tokio::runtime::Handle::current());
    let (first, second) = store
        .read(move |tx| {
            let count = |tx: &mut Tx<'_>| {
                tx.query_row("SELECT count(*) FROM opt_outs", params![], |row| row.int(0))
            };
            let first = count(tx)?;
            handle.block_on(writer.write(|tx| insert(tx, "meanwhile", "")))?;
            Ok((first, count(tx)?))
        })
        .await
        .unwrap();
    assert_eq!((first, second), (0, 0));
    assert_eq!(recipients(&store).await, ["meanwhile"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_wait_share_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let wal = folder.path().join("store.db-wal");
    let (started, release) = (Arc::new(tokio::sync::Notify::new()), std::sync::mpsc::channel());
    let ring = Arc::clone(&started);
    let blocked = {
        let store = store.clone();
        let gate = release.1;
        tokio::task::JoinSet::from_iter([async move {
            store
                .write(move |_tx| {
                    ring.notify_one();
                    gate.recv_timeout(Duration::from_secs(10)).map_err(|_late| StoreError::Busy)
                })
                .await
        }])
    };
    started.notified().await;
    // All of these wait behind the one that is held: they are committed with it.
    let writes: Vec<_> = (0..100)
        .map(|number| {
            let store = store.clone();
            async move { store.write(move |tx| insert(tx, &format!("{number:03}"), "")).await }
        })
        .collect();
    let before = size(&wal);
    let mut waiting = tokio::task::JoinSet::from_iter(writes);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(size(&wal), before, "nothing is committed while the first is held");
    release.0.send(()).unwrap();
    while let Some(answer) = waiting.join_next().await {
        answer.unwrap().unwrap();
    }
    blocked.join_all().await.into_iter().for_each(|answer| answer.unwrap());
    // A commit writes every page that it touched once: a hundred commits would have written hundreds.
    let pages = (size(&wal) - before) / 4_096;
    assert!(pages < 50, "{pages} pages for 100 rows");
}

fn size(path: &PathBuf) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[tokio::test]
async fn a_log_that_is_long_from_the_start_has_what_was_committed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let length = |of: &Path| of.with_extension("db-wal").metadata().unwrap().len();
    let store = Store::open_with(&path, 2).unwrap();
    assert_eq!(length(&path), 2 << 20);
    for sql in ["CREATE TABLE long (n INTEGER)", "INSERT INTO long VALUES (1), (2)"] {
        store.write(move |tx| tx.execute(sql, &[])).await.unwrap();
    }
    assert_eq!(length(&path), 2 << 20, "it is written over");
    // The files as they lie there are those of a process that was killed.
    let copy = folder.path().join("copy.db");
    for ending in ["db", "db-wal"] {
        std::fs::copy(path.with_extension(ending), copy.with_extension(ending)).unwrap();
    }
    let again = Store::open_with(&copy, 4).unwrap();
    assert_eq!(length(&copy), 4 << 20);
    let sum = "SELECT SUM(n) FROM long";
    for store in [&store, &again] {
        let sum = store.read(move |tx| tx.query_row(sum, &[], |row| row.int(0))).await;
        assert_eq!(sum.unwrap(), 3);
    }
}
