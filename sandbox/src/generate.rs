//! Makes a large chat.db quickly, to measure readers with.

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::chatdb::{ChatDb, MacOs};
use crate::clock::AppleNs;

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
}

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

    #[test]
    fn an_existing_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(&dir, MacOs::Sequoia);
        std::fs::write(&settings.db, "precious").unwrap();
        assert!(run(&settings).is_err());
        assert_eq!(std::fs::read_to_string(&settings.db).unwrap(), "precious");
    }
}
