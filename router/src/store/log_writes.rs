//! The store's log, written by one call a commit.
//!
//! SQLite writes each page of a commit into its log by two calls to the system, and a message changes some fifteen pages:
//! that was a quarter of what the writer did. This is a layer over SQLite's own way to files (a VFS, sqlite.org/vfs.html)
//! that keeps what is written to a log in memory until the page that ends a commit, or until SQLite wants it on disk, or read.
//! Every other file is the layer's below, untouched.
//!
//! It is sound for two reasons. The frame that ends a commit says so in its head (sqlite.org/walformat.html), and SQLite
//! writes it last, and only then tells other connections, through the index in shared memory, how far the log goes. And
//! `cache_spill` is off, which [`open`] sets: a log is written from the beginning of a commit to its end and at no other time,
//! so that nothing is kept while a transaction goes on or after it was taken back, and what cannot be written is an error of
//! the commit itself, which takes everything back. (With it on, pages of an open transaction go into the log and count from then on, though only for
//! their own connection.) A process that dies in between leaves what it would have left by dying between two writes: a log
//! whose end counts for nothing.

#![expect(unsafe_code, reason = "SQLite's interface to files is one of C")]

use std::ffi::{CStr, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use rusqlite::{Connection, OpenFlags, ffi};

use super::StoreError;

const NAME: &CStr = c"switchboard-log";

/// What is kept at most, 31 pages with their heads: a commit that is larger is written in parts. SQLite's own way to files
/// takes less than 128 KiB in a call (`seekAndWriteFd` in `os_unix.c`).
const KEPT_MAX: usize = 31 * 4_120;

/// What was written and not handed on: one stretch of the file.
#[derive(Debug, Default)]
struct Kept {
    from: i64,
    bytes: Vec<u8>,
    /// What comes next is the page that ends a commit.
    ends: bool,
}

/// Bytes of a frame's head.
const HEAD: usize = 24;

/// Whether this is the head of a frame that ends a commit: its second number is the size of the database after it, and 0
/// in all other frames.
fn ends_commit(bytes: &[u8]) -> bool {
    bytes.len() == HEAD && bytes.get(4..8).is_some_and(|size| size.iter().any(|byte| *byte != 0))
}

impl Kept {
    /// Takes in a write that goes on where the stretch ends; false, and nothing is taken, where it does not.
    fn take(&mut self, at: i64, bytes: &[u8]) -> bool {
        if self.bytes.is_empty() {
            self.from = at;
        }
        let end = i64::try_from(self.bytes.len()).ok().and_then(|len| self.from.checked_add(len));
        let fits = self.bytes.len().saturating_add(bytes.len()) <= KEPT_MAX;
        let goes_on = self.bytes.is_empty() || (fits && end == Some(at));
        if goes_on {
            self.bytes.extend_from_slice(bytes);
        }
        goes_on
    }
}

/// An open log. The file of the layer below lies behind it in the same memory, which SQLite has set aside for both.
#[repr(C)]
struct Log {
    base: ffi::sqlite3_file,
    kept: *mut Kept,
}

/// Opens a database whose log is written by one call a commit. What a transaction changes stays in memory until then.
pub(super) fn open(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    register()?;
    let connection = Connection::open_with_flags_and_vfs(path, flags, NAME)?;
    connection.pragma_update(None, "cache_spill", false)?;
    Ok(connection)
}

/// Makes the layer known to SQLite, once a process.
fn register() -> Result<(), StoreError> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    let code = *REGISTERED.get_or_init(|| {
        // SAFETY: a null name asks for the default, which lives as long as the process.
        let below = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        // SAFETY: it is null or points to a VFS that is never changed.
        let Some(found) = (unsafe { below.as_ref() }) else { return ffi::SQLITE_NOTFOUND };
        let Ok(size) = c_int::try_from(size_of::<Log>()) else { return ffi::SQLITE_TOOBIG };
        // Everything but opening is the same, and asks nothing of the VFS that it is called with.
        let layer = ffi::sqlite3_vfs {
            szOsFile: size.saturating_add(found.szOsFile),
            zName: NAME.as_ptr(),
            pNext: ptr::null_mut(),
            pAppData: below.cast::<c_void>(),
            xOpen: Some(open_file),
            ..*found
        };
        let layer = Box::into_raw(Box::new(layer));
        // SAFETY: the VFS is whole, and is given up by nobody while the process lives.
        unsafe { ffi::sqlite3_vfs_register(layer, 0) }
    });
    if code == ffi::SQLITE_OK {
        return Ok(());
    }
    Err(StoreError::Schema(format!("SQLite does not take the log's layer: code {code}")))
}

/// The file of the layer below.
///
/// # Safety
///
/// `file` is a log that [`open_file`] was called with.
unsafe fn below(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: the memory has room for both, by `szOsFile`.
    unsafe { file.cast::<Log>().add(1).cast::<ffi::sqlite3_file>() }
}

/// Calls a method of the file below.
macro_rules! pass {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        // SAFETY: SQLite calls methods of open files alone, and that of the layer below is open as long as ours.
        unsafe {
            let file = below($file);
            match (*(*file).pMethods).$method {
                Some(method) => method(file $(, $argument)*),
                None => ffi::SQLITE_IOERR,
            }
        }
    }};
}

/// Hands on what is kept. What cannot be written is forgotten: it is an error of the commit that wanted it, and counts for
/// nothing (above).
///
/// # Safety
///
/// `file` is an open log.
unsafe fn hand_on(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: an open log has its own, and SQLite uses a file from one thread at a time.
    let kept = unsafe { &mut *(*file.cast::<Log>()).kept };
    if kept.bytes.is_empty() {
        return ffi::SQLITE_OK;
    }
    let code = match c_int::try_from(kept.bytes.len()) {
        Ok(length) => {
            let bytes = kept.bytes.as_ptr().cast::<c_void>();
            pass!(file, xWrite, bytes, length, kept.from)
        }
        Err(_too_long) => ffi::SQLITE_IOERR_WRITE,
    };
    kept.bytes.clear();
    code
}

/// Hands on what is kept, and then calls a method of the file below.
macro_rules! hand_on_and_pass {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        // SAFETY: SQLite calls methods of open files alone.
        match unsafe { hand_on($file) } {
            ffi::SQLITE_OK => pass!($file, $method $(, $argument)*),
            code => code,
        }
    }};
}

unsafe extern "C" fn open_file(
    layer: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the layer is the one of `register`, which holds the one below.
    let (vfs, open) = unsafe {
        let vfs = (*layer).pAppData.cast::<ffi::sqlite3_vfs>();
        (vfs, (*vfs).xOpen)
    };
    let Some(open) = open else { return ffi::SQLITE_CANTOPEN };
    if flags & ffi::SQLITE_OPEN_WAL == 0 {
        // SAFETY: the memory is enough for both layers, and so for the one below alone.
        return unsafe { open(vfs, name, file, flags, out) };
    }
    // SAFETY: the memory is enough for both; without methods a file counts as not open.
    unsafe {
        (*file).pMethods = ptr::null();
        let inner = below(file);
        (*inner).pMethods = ptr::null();
        let code = open(vfs, name, inner, flags, out);
        if code != ffi::SQLITE_OK {
            if let Some(methods) = (*inner).pMethods.as_ref()
                && let Some(close) = methods.xClose
            {
                close(inner);
            }
            return code;
        }
        (*file.cast::<Log>()).kept = Box::into_raw(Box::default());
        (*file).pMethods = &raw const METHODS;
    }
    ffi::SQLITE_OK
}

/// A log has no shared memory and no pages to be mapped: those belong to the database's own file.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes an open file once.
    let handed_on = unsafe { hand_on(file) };
    // SAFETY: nobody uses the file after this, and what is kept was made by `open_file`.
    drop(unsafe { Box::from_raw((*file.cast::<Log>()).kept) });
    let closed = pass!(file, xClose);
    if handed_on == ffi::SQLITE_OK { closed } else { handed_on }
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    into: *mut c_void,
    length: c_int,
    at: i64,
) -> c_int {
    hand_on_and_pass!(file, xRead, into, length, at)
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    at: i64,
) -> c_int {
    let Ok(size) = usize::try_from(length) else { return ffi::SQLITE_IOERR_WRITE };
    // SAFETY: SQLite gives as many bytes as it says, and they stay as they are during the call.
    let written = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), size) };
    // SAFETY: an open log has its own, and SQLite uses a file from one thread at a time.
    let kept = || unsafe { &mut *(*file.cast::<Log>()).kept };
    let ends = std::mem::replace(&mut kept().ends, ends_commit(written));
    if !kept().take(at, written) {
        // SAFETY: the log is open.
        let code = unsafe { hand_on(file) };
        if code != ffi::SQLITE_OK {
            return code;
        }
        // What is alone is always taken.
        if !kept().take(at, written) {
            return ffi::SQLITE_IOERR_WRITE;
        }
    }
    if ends {
        // SAFETY: the log is open.
        return unsafe { hand_on(file) };
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    hand_on_and_pass!(file, xTruncate, size)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    hand_on_and_pass!(file, xSync, flags)
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    hand_on_and_pass!(file, xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    pass!(file, xLock, level)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    pass!(file, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, is: *mut c_int) -> c_int {
    pass!(file, xCheckReservedLock, is)
}

unsafe extern "C" fn file_control(
    file: *mut ffi::sqlite3_file,
    what: c_int,
    argument: *mut c_void,
) -> c_int {
    hand_on_and_pass!(file, xFileControl, what, argument)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    pass!(file, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    pass!(file, xDeviceCharacteristics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_that_ends_a_commit_is_known() {
        let mut head = [0_u8; HEAD];
        head[3] = 9;
        assert!(!ends_commit(&head), "a page of many");
        head[5] = 1;
        assert!(ends_commit(&head));
        assert!(!ends_commit(&[1; 32]), "the log's own head");
        assert!(!ends_commit(&[1; 4096]), "a page");
    }

    #[test]
    fn what_goes_on_is_kept_and_what_does_not_is_not() {
        let mut kept = Kept::default();
        assert!(kept.take(32, b"abc"));
        assert!(kept.take(35, b"de"));
        for (at, bytes) in [(32, &b"x"[..]), (36, b"x"), (38, b"x"), (0, b"x")] {
            assert!(!kept.take(at, bytes), "{at}");
        }
        assert!(!kept.take(37, &vec![0; KEPT_MAX]), "too much for one call");
        assert_eq!((kept.from, kept.bytes.as_slice()), (32, &b"abcde"[..]));
        kept.bytes.clear();
        assert!(kept.take(7, &vec![0; KEPT_MAX + 1]), "what is alone is always taken");
    }

    fn open(path: &Path, layer: bool) -> Connection {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = if layer {
            super::open(path, flags).unwrap()
        } else {
            Connection::open_with_flags(path, flags).unwrap()
        };
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 50;",
            )
            .unwrap();
        connection
    }

    fn sum(connection: &Connection) -> (i64, i64) {
        connection
            .query_row("SELECT COUNT(*), COALESCE(SUM(length(body)), 0) FROM t", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap()
    }

    fn whole(connection: &Connection) -> bool {
        let check: String =
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        check == "ok"
    }

    /// A cache of ten pages would make SQLite write pages of an open transaction into the log, and read them back from there.
    #[test]
    fn what_is_committed_is_there_for_everybody_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut writer = open(&path, true);
        writer.execute_batch("PRAGMA cache_size = 10").unwrap();
        writer.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)").unwrap();
        let log = || std::fs::metadata(path.with_extension("db-wal")).unwrap().len();
        let (same, other) = (open(&path, true), open(&path, false));
        let mut expected = (0, 0);
        for round in 0..40_i64 {
            let tx = writer.transaction().unwrap();
            for row in 0..60 {
                let body = "x".repeat(usize::try_from(200 + round * 17 + row).unwrap());
                tx.execute("INSERT INTO t (body) VALUES (?1)", [&body]).unwrap();
                tx.execute("UPDATE t SET body = body || 'y' WHERE id % 7 = ?1", [row % 7]).unwrap();
            }
            let within = sum(&tx);
            let before = log();
            assert_eq!((sum(&same), sum(&other)), (expected, expected), "round {round}");
            if round % 3 == 2 {
                tx.rollback().unwrap();
                assert_eq!(log(), before, "nothing of it was written");
            } else {
                tx.commit().unwrap();
                expected = within;
            }
            assert_eq!((sum(&same), sum(&other)), (expected, expected), "round {round}");
        }
        assert!(whole(&writer) && whole(&other));
        drop((writer, same));
        assert_eq!(sum(&open(&path, false)), expected);
    }

    /// The files as they lie there at any moment are those of a process that was killed.
    #[test]
    fn a_copy_taken_at_any_moment_has_whole_commits_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut writer = open(&path, true);
        writer.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = 10").unwrap();
        writer.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)").unwrap();
        let mut copies = 0;
        for round in 0..30 {
            let tx = writer.transaction().unwrap();
            for row in 0..50 {
                tx.execute("INSERT INTO t (body) VALUES (?1)", ["x".repeat(100 + row)]).unwrap();
                if row % 10 == 9 {
                    let copy = folder.path().join(format!("{copies}.db"));
                    std::fs::copy(&path, &copy).unwrap();
                    let log = path.with_extension("db-wal");
                    std::fs::copy(log, copy.with_extension("db-wal")).unwrap();
                    let left = open(&copy, copies % 2 == 0);
                    assert!(whole(&left));
                    assert_eq!(sum(&left).0, round * 50, "what was not committed is not there");
                    copies += 1;
                }
            }
            tx.commit().unwrap();
        }
    }

    /// A log over a file that takes nothing, as on a full disk.
    #[repr(C)]
    struct Full {
        log: Log,
        inner: ffi::sqlite3_file,
    }

    unsafe extern "C" fn full(
        _file: *mut ffi::sqlite3_file,
        _bytes: *const c_void,
        _length: c_int,
        _at: i64,
    ) -> c_int {
        ffi::SQLITE_FULL
    }

    unsafe extern "C" fn synced(_file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
        ffi::SQLITE_OK
    }

    static TAKES_NOTHING: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
        xWrite: Some(full),
        xSync: Some(synced),
        xClose: None,
        xRead: None,
        xTruncate: None,
        xFileSize: None,
        ..METHODS
    };

    #[test]
    fn what_cannot_be_written_is_an_error_of_the_sync_that_wanted_it_and_of_no_later_one() {
        let kept = Box::into_raw(Box::default());
        let base = ffi::sqlite3_file { pMethods: &raw const METHODS };
        let inner = ffi::sqlite3_file { pMethods: &raw const TAKES_NOTHING };
        let mut both = Full { log: Log { base, kept }, inner };
        let file = (&raw mut both).cast::<ffi::sqlite3_file>();
        let bytes = [7_u8; 4_120];
        let put = |at| {
            // SAFETY: the log is whole, with the file below behind it.
            unsafe { write(file, bytes.as_ptr().cast(), 4_120, at) }
        };
        // SAFETY: as above.
        let done = || unsafe { sync(file, ffi::SQLITE_SYNC_NORMAL) };
        assert_eq!((put(32), put(4_152)), (ffi::SQLITE_OK, ffi::SQLITE_OK));
        assert_eq!(done(), ffi::SQLITE_FULL, "the commit fails");
        assert_eq!(done(), ffi::SQLITE_OK, "what counts for nothing is not written again");
        assert_eq!((put(32), put(32)), (ffi::SQLITE_OK, ffi::SQLITE_FULL), "nor is it hidden");
        // A commit fails with its last page, whether it is synced or not.
        let mut head = [0_u8; HEAD];
        head[7] = 1;
        // SAFETY: as above.
        let head = unsafe { write(file, head.as_ptr().cast(), 24, 32) };
        assert_eq!((head, put(56)), (ffi::SQLITE_OK, ffi::SQLITE_FULL), "the commit fails");
        assert_eq!((put(32), done()), (ffi::SQLITE_OK, ffi::SQLITE_FULL), "this is none");
        // SAFETY: nobody uses it after this.
        drop(unsafe { Box::from_raw(kept) });
    }
}
