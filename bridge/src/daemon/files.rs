//! Files that go with a message: fetched beside the loop, and swept when Messages has long had them.

use std::path::PathBuf;

use protocol::pipe::{Attempt, OutboundAttachment};
use tokio_util::sync::CancellationToken;

use super::{Daemon, Evidence, Now};
use crate::attachments;
use crate::osascript::Failure;
use crate::outbound::{Event, Turn};

/// Whose files were fetched, and where they are or why they are not.
pub(crate) type Fetched = (Attempt, Result<Vec<PathBuf>, Failure>);

impl<E: Evidence> Daemon<E> {
    /// Fetches the files of a send beside the loop.
    pub(super) fn fetch(&mut self, attempt: Attempt, files: Vec<OutboundAttachment>) {
        let stop = CancellationToken::new();
        self.fetches.insert(attempt.clone(), stop.clone());
        let done = self.fetched.0.clone();
        let dir = self.config.attachments_dir.clone();
        let limits = self.config.attachments.clone();
        self.tracker.spawn(async move {
            let fetching = attachments::fetch::all(&attempt, &files, &dir, &limits);
            let Some(files) = stop.run_until_cancelled(fetching).await else { return };
            // The loop may have ended by itself; the next life fetches them again.
            if done.send((attempt, files)).await.is_err() {
                tracing::debug!("files came after the loop");
            }
        });
    }

    /// Lets files go away that Messages has long had.
    pub(super) fn sweep_staged(&self, now: Now) {
        let dir = self.config.attachments_dir.clone();
        let live: Vec<PathBuf> = self
            .outbound
            .with_files()
            .map(|attempt| attachments::staging::folder(&dir, attempt))
            .collect();
        self.tracker.spawn_blocking(move || {
            match attachments::staging::sweep(&dir, &live, now.wall) {
                Ok((0, 0)) => {}
                Ok((removed, stuck)) => tracing::info!(removed, stuck, "files of old sends"),
                Err(error) => {
                    tracing::warn!(%error, dir = %dir.display(), "cannot be swept");
                }
            }
        });
    }

    pub(super) fn stop_fetch(&mut self, attempt: &Attempt) {
        if let Some(fetch) = self.fetches.remove(attempt) {
            fetch.cancel();
        }
    }

    pub(super) fn fetched(&mut self, (attempt, files): Fetched, now: Now, turn: &mut Turn) {
        self.fetches.remove(&attempt);
        if let Err(failure) = &files {
            tracing::warn!(message = %attempt.message, reason = %failure.reason, detail = failure.detail, "a file cannot be had");
        }
        self.outbound.step(Event::Fetched { attempt, files }, now, turn);
    }
}
