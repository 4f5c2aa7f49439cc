//! The store's promises: what was answered is on disk, what failed left nothing, neighbours do not matter.

use std::path::{Path, PathBuf};
use std::time::Duration;

use router::params;
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
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let writes = (0..200_u32).map(|number| {
        let store = store.clone();
        async move {
            let answer = store
                .write(move |tx| {
                    insert(tx, &format!("{number:03}"), "")?;
                    match number % 5 {
                        // A row of the neighbour's would be refused by the primary key; ours is refused by our own.
                        1 => insert(tx, &format!("{number:03}"), ""),
                        2 => Err(StoreError::NoRow),
                        3 => panic!("on purpose"),
                        _ => Ok(()),
                    }
                })
                .await;
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
    assert_eq!(recipients(&store).await, kept);
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
    let (started, release) =
        (std::sync::Arc::new(tokio::sync::Notify::new()), std::sync::mpsc::channel());
    let ring = std::sync::Arc::clone(&started);
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
