//! Does to a chat.db what readers have to survive. Each works on a path, with or without phones
//! that run; a sandbox whose file was replaced goes on with the old one until `reopen`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::chance::Chance;
use crate::chatdb::remove_wal;
use crate::clock::{AppleNs, pause};

/// How long another writer is waited for.
const BUSY: Duration = Duration::from_secs(5);

/// How often a lock is tried for that is taken.
const LOCK_TRIES: u32 = 500;
/// How long between tries.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Pages that a backup copies at a time.
const BACKUP_PAGES: i32 = 4096;

/// The key in `kvtable` that the faults write, and remove at the end.
const KEY: &str = "switchboardSandbox";

/// In which order rows are numbered anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// By chance: the newest message may be any number, as was seen after a rebuild (openAGI#36).
    Shuffled,
    /// The newest first.
    Reversed,
    /// As they are, without gaps.
    Kept,
}

/// `rebuild`
#[derive(Debug, Clone, Args)]
pub struct Rebuild {
    /// The chat.db.
    #[arg(long)]
    pub db: PathBuf,
    /// How rows are numbered.
    #[arg(long, default_value = "shuffled")]
    pub order: Order,
    /// The smallest number.
    #[arg(long, default_value_t = 1)]
    pub first: i64,
    /// Of the order by chance.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// `backup`
#[derive(Debug, Clone, Args)]
pub struct Backup {
    /// The chat.db.
    #[arg(long)]
    pub db: PathBuf,
    /// Where the copy goes; it must not exist.
    #[arg(long)]
    pub to: PathBuf,
}

/// `restore`
#[derive(Debug, Clone, Args)]
pub struct Restore {
    /// The chat.db.
    #[arg(long)]
    pub db: PathBuf,
    /// The copy, which stays.
    #[arg(long)]
    pub from: PathBuf,
}

/// Whom a lock keeps out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lock {
    /// Writers. Readers go on, as always in WAL mode.
    Write,
    /// Everybody: all locks of the WAL's index. SQLite tries again inside of itself, for up to ten
    /// seconds, so a reader just takes long.
    All,
    /// Everybody, who get `SQLITE_BUSY` at once: all locks, and the index looks as while it is
    /// recovered.
    Busy,
}

/// `hold-lock`
#[derive(Debug, Clone, Args)]
pub struct HoldLock {
    /// The chat.db.
    #[arg(long)]
    pub db: PathBuf,
    /// How long.
    #[arg(long)]
    pub ms: u64,
    /// Whom it keeps out.
    #[arg(long, default_value = "busy")]
    pub lock: Lock,
}

/// `checkpoint-storm`
#[derive(Debug, Clone, Args)]
pub struct CheckpointStorm {
    /// The chat.db.
    #[arg(long)]
    pub db: PathBuf,
    /// How long.
    #[arg(long)]
    pub seconds: u64,
}

/// `recreate-wal`
#[derive(Debug, Clone, Args)]
pub struct RecreateWal {
    /// The chat.db.
    #[arg(long)]
    pub db: PathBuf,
}

fn open(db: &Path) -> anyhow::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(db, flags)
        .with_context(|| format!("cannot open {}", db.display()))?;
    conn.busy_timeout(BUSY).context("cannot set the timeout")?;
    Ok(conn)
}

/// All of the WAL goes into the file, so that it can be deleted.
fn empty_wal(conn: &Connection) -> anyhow::Result<()> {
    let busy: bool = conn
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .context("cannot checkpoint")?;
    if busy {
        bail!("a reader keeps the WAL busy; nothing was changed");
    }
    Ok(())
}

fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut path = db.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// The new file takes the place of the old one, whose WAL is empty by now.
fn replace(db: &Path, by: &Path) -> anyhow::Result<()> {
    // A WAL of the old file must never meet the new one.
    remove_wal(db)?;
    std::fs::rename(by, db).with_context(|| format!("cannot replace {}", db.display()))
}

/// Tables whose rows are numbered anew.
const NUMBERED: [&str; 4] = ["message", "chat", "handle", "attachment"];

/// The table that a column refers to by number.
fn refers_to(table: &str, column: &str) -> Option<&'static str> {
    if column.eq_ignore_ascii_case("ROWID") {
        return NUMBERED.into_iter().find(|known| *known == table);
    }
    match (table, column) {
        (_, "chat_id") | ("chat_service" | "chat_lookup", "chat") => Some("chat"),
        (_, "message_id") => Some("message"),
        (_, "attachment_id") => Some("attachment"),
        (_, "handle_id") | ("message", "other_handle") => Some("handle"),
        _ => None,
    }
}

/// Numbers all rows anew. Prints how many of each table there are.
pub fn rebuild(fault: &Rebuild) -> anyhow::Result<Value> {
    let new = beside(&fault.db, ".rebuild");
    remove(&new)?;
    remove_wal(&new)?;
    let old = open(&fault.db)?;
    empty_wal(&old)?;
    let conn = Connection::open(&new).context("cannot make the new file")?;
    // Tables are copied in the order of the schema, which references do not follow.
    conn.execute_batch("PRAGMA synchronous=OFF; PRAGMA journal_mode=OFF; PRAGMA foreign_keys=OFF;")
        .context("cannot prepare the new file")?;
    conn.execute("ATTACH ? AS old", [fault.db.to_string_lossy()])
        .context("cannot read the old file")?;
    let counts = copy_renumbered(&conn, fault)?;
    conn.execute_batch("DETACH old; PRAGMA journal_mode=WAL;")
        .context("cannot finish the new file")?;
    conn.close().map_err(|(_, error)| error).context("cannot close the new file")?;
    // What came in the meantime would be lost; Messages itself is the only writer and is this one.
    empty_wal(&old)?;
    leave_wal(old)?;
    replace(&fault.db, &new)?;
    Ok(counts)
}

/// Closes without a checkpoint and without removing the WAL, which would happen by name.
fn leave_wal(conn: Connection) -> anyhow::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .context("cannot leave the WAL alone")?;
    conn.close().map_err(|(_, error)| error).context("cannot close chat.db")
}

fn copy_renumbered(conn: &Connection, fault: &Rebuild) -> anyhow::Result<Value> {
    let schema = |kind: &str| -> rusqlite::Result<Vec<(String, String)>> {
        let sql = format!(
            "SELECT name, sql FROM old.sqlite_schema WHERE {kind} AND sql IS NOT NULL
             AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
        );
        conn.prepare(&sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    let tables = schema("type = 'table'").context("cannot read the schema")?;
    let later = schema("type <> 'table'").context("cannot read the schema")?;
    conn.execute_batch("BEGIN").context("cannot begin")?;
    for (_, sql) in &tables {
        conn.execute_batch(sql).context("cannot make a table")?;
    }
    let mut chance = Chance::new(fault.seed);
    let mut counts = serde_json::Map::new();
    for table in NUMBERED {
        let doing = || format!("cannot number {table}");
        let mut rows: Vec<i64> = conn
            .prepare(&format!("SELECT ROWID FROM old.{table} ORDER BY ROWID"))
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .with_context(doing)?;
        match fault.order {
            Order::Shuffled => chance.shuffle(&mut rows),
            Order::Reversed => rows.reverse(),
            Order::Kept => {}
        }
        counts.insert(table.to_owned(), rows.len().into());
        let make = format!("CREATE TEMP TABLE new_{table} (old INTEGER PRIMARY KEY, new INTEGER)");
        conn.execute_batch(&make).with_context(doing)?;
        let insert = format!("INSERT INTO new_{table} VALUES (?, ?)");
        let mut insert = conn.prepare(&insert).with_context(doing)?;
        for (old, new) in rows.into_iter().zip(fault.first..) {
            insert.execute([old, new]).with_context(doing)?;
        }
    }
    for (table, _) in &tables {
        let doing = || format!("cannot copy {table}");
        let columns: Vec<String> = conn
            .prepare("SELECT name FROM pragma_table_info(?)")
            .and_then(|mut statement| statement.query_map([table], |row| row.get(0))?.collect())
            .with_context(doing)?;
        let values = columns.iter().map(|column| match refers_to(table, column) {
            // What refers to no row (0, most often) stays.
            Some(to) => format!(
                "coalesce((SELECT new FROM new_{to} WHERE old = t.\"{column}\"), t.\"{column}\")"
            ),
            None => format!("t.\"{column}\""),
        });
        let values: Vec<_> = values.collect();
        let names: Vec<_> = columns.iter().map(|column| format!("\"{column}\"")).collect();
        let (names, values) = (names.join(","), values.join(","));
        let copy = format!(
            "INSERT INTO main.\"{table}\" ({names}) SELECT {values} FROM old.\"{table}\" t"
        );
        conn.execute_batch(&copy).with_context(doing)?;
    }
    for (name, sql) in &later {
        conn.execute_batch(sql).with_context(|| format!("cannot make {name}"))?;
    }
    conn.execute_batch("COMMIT").context("cannot commit")?;
    Ok(Value::Object(counts))
}

/// Copies what a reader would see.
pub fn backup(fault: &Backup) -> anyhow::Result<()> {
    if fault.to.exists() {
        bail!("{} exists already", fault.to.display());
    }
    let from = Connection::open_with_flags(&fault.db, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| format!("cannot open {}", fault.db.display()))?;
    let mut to = Connection::open(&fault.to).context("cannot make the copy")?;
    rusqlite::backup::Backup::new(&from, &mut to)
        .and_then(|backup| backup.run_to_completion(BACKUP_PAGES, Duration::ZERO, None))
        .context("cannot copy")
}

/// Puts a copy back.
pub fn restore(fault: &Restore) -> anyhow::Result<()> {
    let new = beside(&fault.db, ".restore");
    std::fs::copy(&fault.from, &new)
        .with_context(|| format!("cannot copy {}", fault.from.display()))?;
    // Not a chat.db: better found out before it is in place.
    let tables: i64 = Connection::open(&new)
        .and_then(|conn| {
            let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'message'";
            conn.query_row(sql, [], |row| row.get(0))
        })
        .with_context(|| format!("{} is no chat.db", fault.from.display()))?;
    if tables == 0 {
        remove(&new)?;
        bail!("{} is no chat.db", fault.from.display());
    }
    replace(&fault.db, &new)
}

/// The locks of a WAL's index: bytes 120 to 127 of the file (SQLite, wal.c).
const SHM_LOCKS: (i64, i64) = (120, 8);

/// The byte of the index that is changed: of the first copy of the header, which then differs from
/// the second one. If this program is killed meanwhile, the next reader recovers the index.
const SHM_SPOILED: u64 = 8;

/// Holds a lock for a while. Prints a line when it has it.
pub fn hold_lock(fault: &HoldLock) -> anyhow::Result<()> {
    let conn = open(&fault.db)?;
    let wait = Duration::from_millis(fault.ms);
    match fault.lock {
        Lock::Write => {
            conn.execute_batch("BEGIN IMMEDIATE").context("cannot lock")?;
            say_held()?;
            pause(wait);
            conn.execute_batch("ROLLBACK").context("cannot unlock")
        }
        Lock::All | Lock::Busy => {
            // Makes the index, if nobody has the file open.
            conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
                .context("cannot read")?;
            let path = beside(&fault.db, "-shm");
            let shm = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            lock_index(&shm)?;
            let mut byte = [0];
            shm.read_exact_at(&mut byte, SHM_SPOILED).context("cannot read the index")?;
            if fault.lock == Lock::Busy {
                let spoiled = byte.map(|byte| !byte);
                shm.write_all_at(&spoiled, SHM_SPOILED).context("cannot write the index")?;
            }
            say_held()?;
            pause(wait);
            // Nobody could change it meanwhile.
            shm.write_all_at(&byte, SHM_SPOILED).context("cannot write the index")?;
            drop(shm);
            // Only now: closing the database would try to take locks.
            drop(conn);
            Ok(())
        }
    }
}

fn say_held() -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", json!({"type": "held"}))
        .and_then(|()| stdout.flush())
        .context("cannot say that the lock is held")
}

/// Takes all locks as SQLite does. They end with the file descriptor.
fn lock_index(shm: &std::fs::File) -> anyhow::Result<()> {
    let kind = i16::try_from(nix::libc::F_WRLCK).context("no such lock here")?;
    let whence = i16::try_from(nix::libc::SEEK_SET).context("no such origin here")?;
    let (l_start, l_len) = SHM_LOCKS;
    let lock = nix::libc::flock { l_type: kind, l_whence: whence, l_start, l_len, l_pid: 0 };
    for _ in 0..LOCK_TRIES {
        match nix::fcntl::fcntl(shm, nix::fcntl::FcntlArg::F_SETLK(&lock)) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => pause(LOCK_PAUSE),
            Err(error) => return Err(error).context("cannot lock"),
        }
    }
    bail!("readers and writers hold the locks all the time")
}

/// Writes a little and checkpoints in all four ways, again and again. Prints how often.
pub fn checkpoint_storm(fault: &CheckpointStorm) -> anyhow::Result<Value> {
    let conn = open(&fault.db)?;
    let ms = i64::try_from(fault.seconds).unwrap_or(i64::MAX).saturating_mul(1_000);
    let end = AppleNs::now().minus_ms(ms.saturating_neg());
    let (mut checkpoints, mut busy) = (0_u64, 0_u64);
    while AppleNs::now() < end {
        for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
            touch(&conn, checkpoints)?;
            let sql = format!("PRAGMA wal_checkpoint({mode})");
            let blocked: bool =
                conn.query_row(&sql, [], |row| row.get(0)).context("cannot checkpoint")?;
            checkpoints += 1;
            busy += u64::from(blocked);
        }
    }
    conn.execute("DELETE FROM kvtable WHERE key = ?", [KEY]).context("cannot tidy up")?;
    Ok(json!({"checkpoints": checkpoints, "busy": busy}))
}

fn touch(conn: &Connection, value: u64) -> anyhow::Result<()> {
    let value = i64::try_from(value).unwrap_or_default();
    conn.execute("INSERT OR REPLACE INTO kvtable (key, value) VALUES (?, ?)", (KEY, value))
        .context("cannot write")?;
    Ok(())
}

/// Deletes the WAL and its index under whoever has them open, and makes new ones.
pub fn recreate_wal(fault: &RecreateWal) -> anyhow::Result<()> {
    let conn = open(&fault.db)?;
    empty_wal(&conn)?;
    leave_wal(conn)?;
    remove_wal(&fault.db)?;
    let conn = open(&fault.db)?;
    touch(&conn, 0)?;
    conn.execute("DELETE FROM kvtable WHERE key = ?", [KEY]).context("cannot tidy up")?;
    leave_wal(conn)
}

#[cfg(test)]
mod tests;
