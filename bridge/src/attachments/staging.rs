//! The folders in which files wait for Messages, and how they go away.
//!
//! `DIR/MESSAGE-ATTEMPT/N/NAME`, everything for this user only. The default folder lies among Messages' own
//! attachments: what its sandbox may read differs from version to version (`~/Pictures` and `~/Downloads` have
//! been reported both ways), its own folder has been readable in all of them.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::MessageId;
use protocol::UnixMs;
use protocol::pipe::Attempt;

/// A staged file is kept for a week: as long as its send is remembered, and longer than Messages has been
/// seen to need it.
const KEPT: Duration = Duration::from_hours(7 * 24);

/// The folder of one attempt.
pub(crate) fn folder(dir: &Path, attempt: &Attempt) -> PathBuf {
    dir.join(format!("{}-{}", attempt.message, attempt.attempt))
}

/// Makes a folder for one file, for this user only.
pub(crate) fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Opens a file that must not be there, or only as the torso of an earlier try. Written by us, it has no
/// quarantine mark, which a browser's download would have.
pub(crate) fn create(path: &Path) -> io::Result<std::fs::File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)
}

/// Removes the folders of attempts that were last written to more than a week ago and are not among `live`.
/// Anything else in the folder is not ours. Answers how many were removed and how many could not be.
pub(crate) fn sweep(dir: &Path, live: &[PathBuf], now: UnixMs) -> io::Result<(usize, usize)> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(error) => return Err(error),
    };
    let kept_ms = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
    let (mut removed, mut stuck) = (0, 0);
    for entry in entries {
        let path = entry?.path();
        if !is_ours(&path) || live.contains(&path) {
            continue;
        }
        let is_old = std::fs::symlink_metadata(&path)
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| now.since(unix_ms(at)) >= kept_ms);
        if !is_old {
            continue;
        }
        // One that resists must not keep the others.
        match std::fs::remove_dir_all(&path) {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a folder of sent files stays");
                stuck += 1;
            }
        }
    }
    Ok((removed, stuck))
}

/// Whether a folder has the name of an attempt's.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.rsplit_once('-').is_some_and(|(message, attempt)| {
        message.parse::<MessageId>().is_ok() && attempt.parse::<u32>().is_ok()
    })
}

fn unix_ms(at: std::time::SystemTime) -> UnixMs {
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn only_old_folders_of_attempts_that_are_over_go_away() {
        let dir = tempfile::tempdir().unwrap();
        let attempt = |n: u32| Attempt { message: MessageId::new(1, [7; 10]), attempt: n };
        for n in 1..=3 {
            let place = folder(dir.path(), &attempt(n)).join("0");
            make(&place).unwrap();
            std::fs::write(place.join("a.png"), b"x").unwrap();
        }
        std::fs::create_dir(dir.path().join("somebody-else")).unwrap();
        let live = [folder(dir.path(), &attempt(2))];
        let now = unix_ms(std::fs::metadata(&live[0]).unwrap().modified().unwrap());
        let week = i64::try_from(KEPT.as_millis()).unwrap();

        assert_eq!(sweep(dir.path(), &live, now.plus_ms(week - 60_000)).unwrap(), (0, 0));
        assert_eq!(sweep(dir.path(), &live, now.plus_ms(week + 60_000)).unwrap(), (2, 0));
        assert!(live[0].join("0/a.png").exists());
        assert!(dir.path().join("somebody-else").exists());
        assert_eq!(sweep(&dir.path().join("missing"), &live, now).unwrap(), (0, 0));
    }

    #[test]
    fn what_is_staged_is_for_this_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/0");
        make(&place).unwrap();
        std::fs::write(place.join("x"), b"torso").unwrap();
        create(&place.join("x")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&place), mode(&place.join("x"))), (0o700, 0o600));
        assert_eq!(std::fs::read(place.join("x")).unwrap(), b"");
    }
}
