//! Files and folders that only their owner may read, written whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The supervisor's own files are small; a larger one is not ours.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What could not be done with a file, and why.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub(crate) struct FileError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl FileError {
    /// True when the file is not there.
    pub(crate) fn is_missing(&self) -> bool {
        self.source.kind() == std::io::ErrorKind::NotFound
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { doing, path, source }
}

/// Creates a folder with mode 0700, with its parents, if it is not there.
pub(crate) fn create_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("creating", path))
}

/// Reads a small file.
pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(failed("reading", path))?;
    Ok(text)
}

/// Reads a small file that holds a secret; one that others may read is narrowed first, and that is logged.
pub(crate) fn read_secret(path: &Path) -> Result<String, FileError> {
    let mode = std::fs::metadata(path).map_err(failed("reading", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(file = %path.display(), mode = format!("{:o}", mode & 0o777),
            "a file with a secret was readable by others; narrowed to its owner");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(failed("narrowing the mode of", path))?;
    }
    read(path)
}

/// Writes a file with mode 0600: beside its place, to the disk, then renamed, so that a crash leaves the old one or
/// the new one.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), FileError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match std::fs::remove_file(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("removing", &beside)(error)),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(failed("creating", &beside))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed("writing", &beside))?;
    std::fs::rename(&beside, path).map_err(failed("replacing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_written_is_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        create_dir(&folder).unwrap();
        let file = folder.join("token");
        write_private(&file, "one").unwrap();
        std::fs::write(folder.join("token.new"), "left by a crash").unwrap();
        write_private(&file, "two").unwrap();
        assert_eq!(read(&file).unwrap(), "two");
        assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_that_others_may_read_is_narrowed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_secret(&file).unwrap(), "x");
        assert_eq!(mode(&file), 0o600);
        assert!(read(&dir.path().join("none")).unwrap_err().is_missing());
    }
}
