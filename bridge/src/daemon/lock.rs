//! The lock of a phone: one bridge at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use protocol::UnixMs;
use protocol::lock::{FILE, Holder};

use super::DaemonError;

/// How long a lock is waited for that a child of a killed bridge may still hold. A fork becomes an
/// exec within milliseconds, on a busy machine within some hundred; a bridge that really runs holds
/// it for good.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// How often it is tried.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// The one bridge of a phone, for as long as this lives. The kernel gives the lock back when the
/// process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the lock, and waits a moment for it. A bridge that was killed may have been starting an
    /// osascript: between its fork and its exec the child holds every file of its parent, this lock
    /// among them, and gives it back by itself.
    pub(super) async fn wait_for(
        state_dir: &Path,
        started_at: UnixMs,
    ) -> Result<Self, DaemonError> {
        let mut waited = Duration::ZERO;
        loop {
            match Self::take(state_dir) {
                Err(DaemonError::Locked { .. }) if waited < LOCK_WAIT => {
                    tokio::time::sleep(LOCK_POLL).await;
                    waited = waited.saturating_add(LOCK_POLL);
                }
                taken => {
                    let lock = taken?;
                    lock.sign(started_at);
                    return Ok(lock);
                }
            }
        }
    }

    /// Writes down who holds it. A supervisor that cannot read that ends nobody, so a full disk is no reason to send nothing.
    fn sign(&self, started_at: UnixMs) {
        let holder = Holder {
            pid: std::process::id(),
            parent: std::os::unix::process::parent_id(),
            started_at,
        };
        let written = serde_json::to_vec(&holder).map_err(std::io::Error::from).and_then(|line| {
            self.0.set_len(0)?;
            (&self.0).write_all(&line)
        });
        if let Err(error) = written {
            tracing::warn!(%error, "who holds the lock cannot be written into it");
        }
    }

    pub(crate) fn take(state_dir: &Path) -> Result<Self, DaemonError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| DaemonError::StateDir { path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(unusable(state_dir))?;
        let path = state_dir.join(FILE);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(unusable(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(DaemonError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(DaemonError::StateDir { path, source }),
        }
    }
}
