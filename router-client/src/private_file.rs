//! Files that only their owner may read: mode 0600, in a directory of mode 0700, replaced as a whole or not at all.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Mode of the directory: its owner alone may list it.
pub(crate) const DIR_MODE: u32 = 0o700;
/// Mode of a file: its owner alone may read it.
pub(crate) const FILE_MODE: u32 = 0o600;
/// Keys and enrolments are small; a larger file is not one of ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why a private file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// Others than the owner may read the file.
    #[error(
        "{path} is readable by others (mode {mode:o}); run `chmod 600 {path}`, and make a new key if somebody may have read it"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is too large to be one of ours.
    #[error("{path} is longer than {FILE_BYTES_MAX} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl PrivateFileError {
    /// True when the file does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Creates the directory with its parents; one that exists is narrowed to its owner.
pub(crate) fn create_dir(path: &Path) -> Result<(), PrivateFileError> {
    let fail = |doing| move |source| PrivateFileError::Io { doing, path: path.to_owned(), source };
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(path)
        .map_err(fail("create directory"))?;
    std::fs::set_permissions(path, Permissions::from_mode(DIR_MODE))
        .map_err(fail("set the mode of directory"))
}

/// Reads a file that nobody else may read.
pub(crate) fn read(path: &Path) -> Result<String, PrivateFileError> {
    let fail = |doing| move |source| PrivateFileError::Io { doing, path: path.to_owned(), source };
    let file = File::open(path).map_err(fail("open"))?;
    let mode = file.metadata().map_err(fail("look at"))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PrivateFileError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(fail("read"))?;
    if u64::try_from(read).is_ok_and(|bytes| bytes > FILE_BYTES_MAX) {
        return Err(PrivateFileError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

/// Writes the file beside its place, to the disk, and renames it: a crash leaves the old one or the new one.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), PrivateFileError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let fail = |doing| move |source| PrivateFileError::Io { doing, path: path.to_owned(), source };
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(fail("remove what a crash left beside")(error));
        }
        Ok(()) | Err(_) => {}
    }
    // create_new: never through a symbolic link that somebody else put there.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&beside)
        .map_err(fail("create beside"))?;
    file.write_all(text.as_bytes()).map_err(fail("write"))?;
    file.sync_all().map_err(fail("sync"))?;
    std::fs::rename(&beside, path).map_err(fail("replace"))?;
    if let Some(parent) = path.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail("sync the directory of"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn only_the_owner_may_read_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("state");
        create_dir(&place).unwrap();
        let file = place.join("key");
        write(&file, "secret").unwrap();
        assert_eq!((mode(&place), mode(&file)), (DIR_MODE, FILE_MODE));
        assert_eq!(read(&file).unwrap(), "secret");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        write(&file, "secret").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let error = read(&file).unwrap_err();
        assert!(matches!(error, PrivateFileError::Exposed { mode: 0o640, .. }));
        assert!(error.to_string().contains("chmod 600"));
    }

    #[test]
    fn a_new_text_replaces_the_old_one_and_a_left_over_does_not_stop_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        write(&file, "old").unwrap();
        std::fs::write(dir.path().join("key.new"), "half").unwrap();
        write(&file, "new").unwrap();
        assert_eq!(read(&file).unwrap(), "new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_and_an_oversized_file_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("none")).unwrap_err().is_missing());
        let file = dir.path().join("large");
        write(&file, &"x".repeat(64 * 1024 + 1)).unwrap();
        assert!(matches!(read(&file).unwrap_err(), PrivateFileError::TooLong { .. }));
    }
}
