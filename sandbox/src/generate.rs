//! Makes a large chat.db quickly, to measure readers with.

pub(crate) mod mix;

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::chance::Chance;
use crate::chatdb::{ChatDb, MacOs};
use crate::clock::AppleNs;
use mix::Mixer;

/// Rows a transaction.
const BATCH: u64 = 20_000;

/// The number that the file's phone has.
const OWNER: &str = "+15550100001";

/// What to make.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// The file; it must not exist.
    #[arg(long)]
    pub db: PathBuf,
    /// Whose schema.
    #[arg(long, default_value = "15")]
    pub macos: MacOs,
    /// How many messages.
    #[arg(long, default_value_t = 1_000_000)]
    pub messages: u64,
    /// How many conversations.
    #[arg(long, default_value_t = 500)]
    pub chats: u64,
    /// `text` is NULL in every n-th message, the text then being in `attributedBody` only.
    /// 1: in all of them; 0: in none.
    #[arg(long, default_value_t = 1)]
    pub null_text_every: u64,
    /// A realistic mix of all kinds instead of plain texts, the same for the same seed.
    #[arg(long, conflicts_with = "null_text_every")]
    pub mix: bool,
    /// The seed of the mix.
    #[arg(long, default_value_t = 1, requires = "mix")]
    pub seed: u64,
}

/// Rows a transaction of the mix.
const MIX_BATCH: u64 = 10_000;

/// When the last message of a mix was sent: 2026-07-01T00:00:00Z. Not now, because the same seed is
/// to make the same file.
const MIX_END: AppleNs = AppleNs(804_556_800_000_000_000);

/// Between two messages of a mix.
const MIX_STEP_MS: i64 = 60_000;

/// Texts of the lengths that people write.
const TEXTS: [&str; 8] = [
    "ok",
    "Haha yeah 😃",
    "On my way, ten minutes.",
    "Your code is 482913. It is valid for 10 minutes.",
    "Könnten wir das auf morgen verschieben? Ich schaffe es heute leider nicht mehr.",
    "See https://example.test/orders/1029384 for where your parcel is now",
    "Hi! This is a reminder of your appointment tomorrow at 9:30. Reply C to confirm, R to move it \
     to another day, or STOP to receive no more of these.",
    "今日は少し遅れます。先に始めていてください。",
];

/// Makes it. Progress goes to stderr, a line a second or so.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    if settings.db.exists() {
        bail!("{} exists already", settings.db.display());
    }
    if settings.chats == 0 {
        bail!("--chats must be at least 1");
    }
    if settings.mix {
        return run_mix(settings);
    }
    let mut db = ChatDb::bare(&settings.db, settings.macos, OWNER)?;
    // One minute apart, the last one now.
    let count = i64::try_from(settings.messages).context("too many messages")?;
    let first = AppleNs::now().minus_ms(count.saturating_mul(60_000));
    let mut next = 0;
    while next < settings.messages {
        let end = next.saturating_add(BATCH).min(settings.messages);
        db.together(|db| {
            for n in next..end {
                let minutes = i64::try_from(n).unwrap_or(i64::MAX);
                let date = first.minus_ms(minutes.saturating_mul(-60_000));
                let null = settings.null_text_every;
                // Every third is an own one, delivered.
                let row = crate::chatdb::Bulk {
                    from: &address(n % settings.chats),
                    text: &text(n),
                    own: n % 3 == 0,
                    null_text: null != 0 && n % null == 0,
                    date,
                };
                db.write_bulk(&row)?;
            }
            Ok(())
        })?;
        next = end;
        if next % (BATCH * 5) == 0 || next == settings.messages {
            writeln!(io::stderr().lock(), "{next} of {} messages", settings.messages)
                .context("cannot write progress")?;
        }
    }
    writeln!(io::stderr().lock(), "making the indexes").context("cannot write progress")?;
    db.finish()?;
    Ok(())
}

fn run_mix(settings: &Settings) -> anyhow::Result<()> {
    let mut db = ChatDb::bare(&settings.db, settings.macos, OWNER)?;
    let mut chance = Chance::new(settings.seed);
    db.seed_guids(Chance::new(chance.number()));
    let mut mixer = Mixer::new(chance.number(), OWNER, settings.macos, settings.chats);
    let count = i64::try_from(settings.messages).context("too many messages")?;
    let mut date = MIX_END.minus_ms(count.saturating_mul(MIX_STEP_MS));
    let mut rows = 0;
    while rows < settings.messages {
        let end = rows.saturating_add(MIX_BATCH).min(settings.messages);
        db.together(|db| {
            while rows < end {
                date = date.minus_ms(-MIX_STEP_MS);
                // A link at the very end goes without its preview.
                let left = usize::try_from(settings.messages - rows).unwrap_or(usize::MAX);
                for made in mixer.next(date, &text(rows)).into_iter().take(left) {
                    db.write_made(&made)?;
                    rows += 1;
                }
            }
            Ok(())
        })?;
        if rows % (MIX_BATCH * 10) < 2 || rows == settings.messages {
            writeln!(io::stderr().lock(), "{rows} of {} messages", settings.messages)
                .context("cannot write progress")?;
        }
    }
    writeln!(io::stderr().lock(), "making the indexes").context("cannot write progress")?;
    db.finish()?;
    Ok(())
}

/// The n-th correspondent.
fn address(n: u64) -> String {
    format!("+1202556{:04}", n % 10_000)
}

/// The n-th text: each is different, so that a reader cannot be fast by accident.
fn text(n: u64) -> String {
    let pick = usize::try_from(n % 8).unwrap_or_default();
    let text = TEXTS.get(pick).copied().unwrap_or_default();
    format!("{text} #{n}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &tempfile::TempDir, macos: MacOs) -> Settings {
        Settings {
            db: dir.path().join("chat.db"),
            macos,
            messages: 250,
            chats: 7,
            null_text_every: 3,
            mix: false,
            seed: 1,
        }
    }

    #[test]
    fn every_schema_can_be_made() {
        for macos in MacOs::ALL {
            let dir = tempfile::tempdir().unwrap();
            let settings = settings(&dir, macos);
            run(&settings).unwrap();
            let conn = rusqlite::Connection::open(&settings.db).unwrap();
            let count = |sql: &str| conn.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap();
            assert_eq!(count("SELECT count(*) FROM message"), 250);
            assert_eq!(count("SELECT count(*) FROM chat_message_join"), 250);
            assert_eq!(count("SELECT count(*) FROM message WHERE text IS NULL"), 84);
            assert_eq!(count("SELECT count(*) FROM message WHERE attributedBody IS NULL"), 0);
            assert_eq!(count("SELECT count(*) FROM chat"), 7);
            assert_eq!(count("SELECT count(*) FROM message WHERE is_from_me = 1"), 84);
            assert!(count("SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'") > 5);
            let mode: String = conn.query_row("PRAGMA journal_mode", [], |r| r.get(0)).unwrap();
            assert_eq!(mode, "wal");
        }
    }

    /// Everything in a file, but for the numbers that SQLite keeps for itself.
    fn dump(path: &std::path::Path) -> Vec<String> {
        let conn = rusqlite::Connection::open(path).unwrap();
        let mut all = Vec::new();
        for table in ["message", "attachment", "chat", "handle", "chat_message_join"] {
            let mut statement = conn.prepare(&format!("SELECT * FROM {table}")).unwrap();
            let columns = statement.column_count();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let values: Vec<rusqlite::types::Value> =
                    (0..columns).map(|n| row.get(n).unwrap()).collect();
                all.push(format!("{table} {values:?}"));
            }
        }
        all
    }

    #[test]
    fn the_same_seed_makes_the_same_mix() {
        for macos in MacOs::ALL {
            let [one, same, other] = [1, 1, 2].map(|seed| mixed(macos, seed, 800));
            let first = dump(&one.1);
            assert!(first == dump(&same.1), "{macos}: the same seed, another file");
            assert!(first != dump(&other.1), "{macos}: another seed, the same file");
        }
    }

    fn mixed(macos: MacOs, seed: u64, messages: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(&dir, macos);
        (settings.mix, settings.seed, settings.messages) = (true, seed, messages);
        settings.chats = 40;
        run(&settings).unwrap();
        (dir, settings.db)
    }

    #[test]
    fn the_mix_has_every_kind() {
        for macos in MacOs::ALL {
            let (_dir, db) = mixed(macos, 1, 6_000);
            let conn = rusqlite::Connection::open(&db).unwrap();
            let count = |filter: &str| -> i64 {
                let sql = format!("SELECT count(*) FROM message WHERE {filter}");
                conn.query_row(&sql, [], |row| row.get(0)).unwrap()
            };
            assert_eq!(count("1"), 6_000);
            for (filter, at_least) in [
                ("associated_message_type BETWEEN 2000 AND 2007", 600),
                ("associated_message_type BETWEEN 3000 AND 3007", 40),
                ("associated_message_type = 1000", 3),
                ("cache_has_attachments = 1", 450),
                ("thread_originator_guid IS NOT NULL", 150),
                ("balloon_bundle_id LIKE '%URLBalloon%'", 100),
                ("balloon_bundle_id LIKE '%Plugin%'", 20),
                ("expressive_send_style_id IS NOT NULL", 15),
                ("is_audio_message = 1", 15),
                ("item_type IN (1, 2, 3)", 15),
                ("item_type = 99 OR associated_message_type = 4000", 1),
                ("service = 'SMS'", 150),
                ("service IN ('RCS', 'rcs')", 40),
                ("service = 'iMessageLite'", 1),
                ("was_downgraded = 1", 5),
                ("error = 22", 5),
                ("text = '' AND attributedBody IS NULL", 5),
                ("ROWID NOT IN (SELECT message_id FROM chat_message_join)", 10),
            ] {
                assert!(count(filter) >= at_least, "{macos}: {filter}: {}", count(filter));
            }
            let check: String =
                conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
        }
    }

    #[test]
    fn the_documented_shares_are_those_of_the_mix() {
        let readme = include_str!("../README.md");
        let mut sum = 0;
        for (_, share, name) in mix::MIX {
            let line = format!("| {name} | {}.{:02} |", share / 100, share % 100);
            assert!(readme.contains(&line), "{line}");
            sum += share;
        }
        assert_eq!(sum, 10_000);
    }

    #[test]
    fn an_existing_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(&dir, MacOs::Sequoia);
        std::fs::write(&settings.db, "precious").unwrap();
        assert!(run(&settings).is_err());
        assert_eq!(std::fs::read_to_string(&settings.db).unwrap(), "precious");
    }
}
