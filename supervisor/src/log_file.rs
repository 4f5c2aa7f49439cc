//! The supervisor's own log: a file that is put aside when it is full, and so many of those.
//!
//! It is rotated here and not by `newsyslog`, because launchd opens a job's outputs once and goes on writing into the
//! renamed file; the new one stays empty and the old one grows for ever. What launchd opened for us is left for panics,
//! and cut when it has grown. (`tracing-appender` rotates by time only, and a crash loop fills a disk in an hour.)

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What launchd keeps of stdout and stderr may grow to so much between two starts; it is panics and one line a start.
const OUTPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// A file is put aside before it grows beyond this.
    pub bytes: u64,
    /// Files in all, with the one that is written.
    pub files: u32,
}

/// A log file that rotates itself. Every write is one whole line, as the subscriber makes them.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    kept: Kept,
    file: File,
    bytes: u64,
}

impl LogFile {
    /// Opens `supervisor.log` in a folder, which is made when it is not there.
    pub(crate) fn open(folder: &Path, kept: Kept) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join("supervisor.log");
        let file = open(&path)?;
        // One that somebody made by hand, or copied: numbers of people stand in it.
        file.set_permissions(Permissions::from_mode(0o600))?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, kept, file, bytes })
    }

    fn aside(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }

    /// Puts the full file aside, and every earlier one a place further; the last one goes.
    fn rotate(&mut self) {
        let shift = |log: &Self| -> io::Result<File> {
            if log.kept.files < 2 {
                std::fs::remove_file(&log.path)?;
            } else {
                for n in (1..log.kept.files - 1).rev() {
                    match std::fs::rename(log.aside(n), log.aside(n + 1)) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        Ok(()) | Err(_) => {}
                    }
                }
                std::fs::rename(&log.path, log.aside(1))?;
            }
            open(&log.path)
        };
        match shift(self) {
            Ok(file) => self.file = file,
            // The folder is gone, or the disk full of something else. What is written stays bounded whatever happens;
            // where even this fails, the system has taken the file away from us.
            Err(_) => drop(self.file.set_len(0)),
        }
        self.bytes = 0;
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.bytes > 0 && self.bytes.saturating_add(length) > self.kept.bytes {
            self.rotate();
        }
        let written = self.file.write(line)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Empties what launchd keeps of our stdout and stderr when it has grown large. Such a file is opened for appending, so
/// that it may be cut in place.
pub(crate) fn trim_outputs() -> io::Result<()> {
    trim(&io::stdout(), OUTPUT_BYTES_MAX)?;
    trim(&io::stderr(), OUTPUT_BYTES_MAX)
}

fn trim(output: &impl AsFd, bytes_max: u64) -> io::Result<()> {
    let file = File::from(output.as_fd().try_clone_to_owned()?);
    let found = file.metadata()?;
    if found.is_file() && found.len() > bytes_max { file.set_len(0) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_kept_is_the_newest_whole_lines_and_no_more_than_that() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("logs");
        let mut log = LogFile::open(&folder, Kept { bytes: 100, files: 3 }).unwrap();
        // 20 bytes a line, 5 lines a file, 15 lines in three files.
        for n in 0..38 {
            log.write_all(format!("line {n:014}\n").as_bytes()).unwrap();
        }
        assert_eq!(names(&folder), ["supervisor.log", "supervisor.log.1", "supervisor.log.2"]);
        let mut kept = String::new();
        for name in names(&folder).iter().rev() {
            let file = folder.join(name);
            assert_eq!(mode(&file), 0o600, "{name}");
            let text = std::fs::read_to_string(file).unwrap();
            assert!(text.len() <= 100, "{name}: {}", text.len());
            kept.push_str(&text);
        }
        let expected: String =
            (25..38).flat_map(|n| ["line ".to_owned(), format!("{n:014}\n")]).collect();
        assert_eq!(kept, expected);
        assert_eq!(mode(&folder), 0o700);
    }

    #[test]
    fn the_next_start_goes_on_in_the_same_file_and_takes_it_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("supervisor.log");
        std::fs::write(&file, "x".repeat(90)).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let mut log = LogFile::open(dir.path(), Kept { bytes: 100, files: 2 }).unwrap();
        assert_eq!(mode(&file), 0o600);
        log.write_all(b"0123456789").unwrap();
        assert_eq!(names(dir.path()), ["supervisor.log"]);
        log.write_all(b"next").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "next");
        assert_eq!(names(dir.path()), ["supervisor.log", "supervisor.log.1"]);
    }

    #[test]
    fn a_line_longer_than_a_file_is_written_once_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(dir.path(), Kept { bytes: 10, files: 1 }).unwrap();
        for line in ["a line that is too long\n", "short\n", "another too long line\n"] {
            log.write_all(line.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(dir.path().join("supervisor.log")).unwrap(), line);
        }
        assert_eq!(names(dir.path()), ["supervisor.log"]);
    }

    #[test]
    fn a_folder_that_is_taken_away_neither_fails_nor_grows_anything() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("logs");
        let mut log = LogFile::open(&folder, Kept { bytes: 10, files: 2 }).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        for _ in 0..100 {
            log.write_all(b"12345678\n").unwrap();
        }
        assert!(log.file.metadata().unwrap().len() <= 10);
    }

    #[test]
    fn an_output_that_has_grown_is_emptied_and_a_small_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = open(&dir.path().join("launchd.err.log")).unwrap();
        file.write_all(b"a panic\n").unwrap();
        trim(&file, 8).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8);
        trim(&file, 7).unwrap();
        file.write_all(b"next\n").unwrap();
        let text = std::fs::read_to_string(dir.path().join("launchd.err.log")).unwrap();
        assert_eq!(text, "next\n", "no hole where the old end was");
    }
}
