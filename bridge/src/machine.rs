//! What the system says of disks, folders and programs. Facts only: [`crate::checks`] judges them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::checks::history::Opened;
use crate::checks::machine::{Disk, Program};

/// The space on the disk of a folder.
#[cfg_attr(
    not(target_vendor = "apple"),
    expect(clippy::useless_conversion, reason = "on macOS blocks are counted in 32 bits")
)]
pub(crate) fn disk(path: &Path) -> Disk {
    match statvfs(path) {
        Ok(found) => Disk::Measured {
            // What may be used without being root; the number of blocks is of the fragment size.
            free: u64::from(found.blocks_available()).saturating_mul(found.fragment_size()),
        },
        Err(errno) => Disk::Unknown(errno.desc().to_owned()),
    }
}

/// Where Messages keeps attachments: beside its database. Before the first attachment there is no
/// such folder, and the one above is on the same disk.
pub(crate) fn attachments(chat_db: &Path) -> PathBuf {
    let beside = chat_db.parent().unwrap_or(chat_db);
    let attachments = beside.join("Attachments");
    if attachments.is_dir() { attachments } else { beside.to_owned() }
}

/// The mode of a file or folder; 0 when it cannot be told.
pub(crate) fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).map_or(0, |found| found.permissions().mode())
}

/// Whether a program is there and may be run.
pub(crate) fn program(path: &Path) -> Program {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
            Program::Executable
        }
        Ok(_) => Program::NotExecutable,
        Err(_) => Program::Missing,
    }
}

/// Opens the file and its folder as macOS asks for Full Disk Access: by looking, never by a
/// question. Only before SQLite has it open: closing a second descriptor would drop SQLite's locks.
pub(crate) fn open(path: &Path) -> Opened {
    let words = |error: std::io::Error| (error.raw_os_error(), error.to_string());
    let file = std::fs::File::open(path).map_err(words)?;
    drop(file);
    let folder = path.parent().unwrap_or(path);
    // Without it the WAL beside the database cannot be found.
    std::fs::read_dir(folder).map(drop).map_err(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(disk(dir.path()), Disk::Measured { free } if free > 0));
        assert!(matches!(disk(Path::new("/nowhere/at/all")), Disk::Unknown(_)));
        assert_eq!(program(&file), Program::NotExecutable);
        assert_eq!(program(dir.path()), Program::NotExecutable);
        assert_eq!(program(&dir.path().join("none")), Program::Missing);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(program(&file), Program::Executable);
        assert_eq!(mode(&file) & 0o777, 0o700);
        assert_eq!(open(&file), Ok(()));
        assert_eq!(open(&dir.path().join("none")).unwrap_err().0, Some(2));
    }

    #[test]
    fn attachments_lie_beside_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("chat.db");
        assert_eq!(attachments(&database), dir.path());
        std::fs::create_dir(dir.path().join("Attachments")).unwrap();
        assert_eq!(attachments(&database), dir.path().join("Attachments"));
    }
}
