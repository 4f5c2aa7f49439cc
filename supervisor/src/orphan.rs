//! A bridge that outlived its supervisor and does not end: found by the lock that it holds, and ended.
//!
//! A bridge whose supervisor is gone ends by itself within seconds. One that hangs does not, and the phone would be refused to
//! every bridge after it. It is never adopted: nobody has its pipes. A bridge that somebody runs by hand is nobody's orphan,
//! and is waited for.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::PhoneId;
use protocol::lock::{FILE, Holder};

use crate::files;
use crate::resources::{self, Born};

/// A bridge notes when it began a moment after it did: later on a machine that has much to do.
const NOTED_WITHIN_S: i64 = 10;
/// Both times are cut to whole seconds.
const ROUNDED_S: i64 = 1;
/// How often it is looked whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Whether the process that has the holder's id now is the holder, and has lost its supervisor.
fn is_orphan(holder: &Holder, born: &Born) -> bool {
    let noted_s = holder.started_at.0.div_euclid(1_000);
    let before_s = noted_s.saturating_sub(born.at_s);
    (-ROUNDED_S..=NOTED_WITHIN_S).contains(&before_s) && born.parent != Some(holder.parent)
}

/// The orphan that holds the lock of this folder, if one does.
fn find(directory: &Path) -> Option<Holder> {
    let path = directory.join(FILE);
    // Whoever only wrote the file and is gone holds nothing; then this is let go of at once.
    if !matches!(File::open(&path).ok()?.try_lock(), Err(TryLockError::WouldBlock)) {
        return None;
    }
    let holder: Holder = serde_json::from_str(&files::read(&path).ok()?).ok()?;
    let born = resources::born(holder.pid)?;
    is_orphan(&holder, &born).then_some(holder)
}

/// Asks the orphan that holds this folder to end, and ends it when it has not within `term_within`.
pub(crate) async fn end(phone: PhoneId, directory: PathBuf, term_within: Duration) {
    let Some(orphan) = find(&directory) else { return };
    signal(&phone, orphan, Signal::SIGTERM);
    let gone = async {
        while find(&directory) == Some(orphan) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(term_within, gone).await.is_ok() {
        return;
    }
    // Looked at once more: nobody else is to be met.
    if find(&directory) == Some(orphan) {
        signal(&phone, orphan, Signal::SIGKILL);
    }
}

fn signal(phone: &PhoneId, orphan: Holder, signal: Signal) {
    let Ok(pid) = i32::try_from(orphan.pid) else { return };
    metrics::counter!("switchboard_orphans_signalled_total", "phone" => phone.to_string(), "signal" => signal.as_str())
        .increment(1);
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) => {
            tracing::warn!(%phone, pid, %signal, "a bridge whose supervisor is gone holds the phone and is ended");
        }
        Err(error) => {
            tracing::warn!(%phone, pid, %signal, %error, "a bridge whose supervisor is gone could not be ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::UnixMs;

    use super::*;

    #[test]
    fn only_the_holder_itself_without_its_parent_is_an_orphan() {
        let holder = Holder { pid: 7, parent: 70, started_at: UnixMs(100_900) };
        let born = |at_s, parent| Born { at_s, parent: Some(parent) };
        let cases = [
            (born(100, 1), true),
            (born(101, 1), true),
            (born(90, 1), true),
            // Another one has its id: it began later, or was there long before.
            (born(102, 1), false),
            (born(89, 1), false),
            // Whoever started it is there.
            (born(100, 70), false),
            (Born { at_s: 100, parent: None }, true),
        ];
        for (born, expected) in cases {
            assert_eq!(is_orphan(&holder, &born), expected, "{born:?}");
        }
    }

    #[test]
    fn a_file_that_nobody_locks_or_that_says_nothing_finds_nobody() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()), None);
        let path = dir.path().join(FILE);
        let own = resources::born(std::process::id()).unwrap();
        let (pid, started_at) = (std::process::id(), UnixMs(own.at_s * 1_000));
        let orphan = Holder { pid, parent: u32::MAX, started_at };
        std::fs::write(&path, serde_json::to_string(&orphan).unwrap()).unwrap();
        assert_eq!(find(dir.path()), None, "it is not locked");
        let lock = File::open(&path).unwrap();
        lock.try_lock().unwrap();
        assert_eq!(find(dir.path()), Some(orphan));
        let parent = std::os::unix::process::parent_id();
        let served = Holder { parent, ..orphan };
        std::fs::write(&path, serde_json::to_string(&served).unwrap()).unwrap();
        assert_eq!(find(dir.path()), None, "its parent is there");
        std::fs::write(&path, "").unwrap();
        assert_eq!(find(dir.path()), None, "an older bridge says nothing");
    }
}
