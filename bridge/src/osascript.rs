//! The only place that starts osascript.
//!
//! `osascript -l AppleScript - ARG…`: the script goes down stdin, values only through argv, the
//! result comes up stdout, and stderr is a locked file in the state folder. The child inherits
//! the locked file description, so the lock lives exactly as long as the child: a bridge that was
//! killed and started anew sees by it whether an osascript of its predecessor is still running.
//!
//! A child is [prepared](Osascript::prepare) before the journal says `started`: it waits for its
//! script on stdin, and a bridge that dies in between leaves it with an empty script, which does
//! nothing. [`Prepared::hand_over`] is then one write to an empty pipe. Should osascript ever get a
//! part of it only (`PIPE_BUF` is 4,096 bytes on Linux and 512 on macOS), that does nothing either: a
//! script is compiled as a whole before it runs, and no beginning of ours is a whole one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use protocol::Reason;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

/// Sends one text or file, into an existing chat or to an address.
pub(crate) const SEND: &str = include_str!("scripts/send.applescript");
/// Asks for the state of the account.
pub(crate) const PROBE: &str = include_str!("scripts/probe.applescript");

/// Asks for the state of one account, without starting Messages.
pub(crate) const ACCOUNT: &str = include_str!("scripts/account.applescript");

/// osascript's error output: a line or two. More is cut; the number stands at the end.
const STDERR_TAIL_BYTES: u64 = 4 * 1024;
/// The result of a script: a word. More is not ours.
const STDOUT_BYTES_MAX: u64 = 4 * 1024;
/// After TERM, before KILL.
const TERM_GRACE: Duration = Duration::from_secs(1);
/// After the child has ended, for what it wrote to be read. A grandchild may hold the pipe open.
const DRAIN_GRACE: Duration = Duration::from_millis(500);
/// A process group that was sent KILL is gone after a moment; macOS answers EPERM while only
/// zombies are left in it.
const GROUP_GONE_GRACE: Duration = Duration::from_millis(500);
/// osascript writes a line when it fails. One that writes without end is ended before it has filled
/// the disk that the journal is on.
const STDERR_BYTES_MAX: u64 = 1024 * 1024;
/// How often the error output of a running one is looked at.
const STDERR_POLL: Duration = Duration::from_millis(250);
/// How often a killed group is looked at again.
const GROUP_GONE_POLL: Duration = Duration::from_millis(20);

/// Where and how long osascript runs.
#[derive(Debug, Clone)]
pub(crate) struct Osascript {
    program: PathBuf,
    stderr: PathBuf,
    /// The process group of the newest one, for the next life.
    group: PathBuf,
    deadline: Duration,
}

/// What the end of an osascript says about the text that it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Messages took the text, or so it says. The truth is a row in chat.db.
    Succeeded {
        /// What the script returned.
        output: String,
    },
    /// Messages was provably not asked to send.
    NotStarted(Failure),
    /// It may have been asked.
    MayHaveCompleted(Failure),
}

/// Why, for the event and for people; never the text of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    /// A short sentence of our own with the number, never osascript's words: those may quote.
    pub(crate) detail: String,
    /// Whether another attempt, here or elsewhere, may succeed.
    pub(crate) retryable: bool,
}

/// Why an osascript could not be prepared. Nothing was started in any of these cases.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// An osascript of an earlier life still runs.
    #[error("an earlier osascript is still running")]
    Orphan,
    /// The program is missing or may not be run.
    #[error("{} cannot be started", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file for its error output cannot be written.
    #[error("{} cannot be opened for osascript's error output", path.display())]
    Stderr {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// An osascript that runs and waits for its script.
#[derive(Debug)]
pub(crate) struct Prepared {
    running: Running,
    stdin: ChildStdin,
}

/// An osascript that has its script.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    group: Pid,
    stderr: PathBuf,
    deadline: Duration,
}

impl Osascript {
    pub(crate) fn new(program: PathBuf, state_dir: &Path, deadline: Duration) -> Self {
        Self {
            program,
            stderr: state_dir.join("osascript.stderr"),
            group: state_dir.join("osascript.group"),
            deadline,
        }
    }

    /// Whether an osascript of an earlier life still runs.
    pub(crate) fn orphan_runs(&self) -> Result<bool, PrepareError> {
        match self.lock() {
            Ok(_lock) => Ok(false),
            Err(PrepareError::Orphan) => Ok(true),
            Err(error @ (PrepareError::Spawn { .. } | PrepareError::Stderr { .. })) => Err(error),
        }
    }

    /// Ends an osascript of an earlier life by its process group. Only while the lock shows that it,
    /// or something it has started, is still there: so long the number is not given to others.
    pub(crate) fn end_orphan(&self, force: bool) -> Result<(), PrepareError> {
        if !self.orphan_runs()? {
            return Ok(());
        }
        let group = std::fs::read_to_string(&self.group)
            .ok()
            .and_then(|text| text.trim().parse::<i32>().ok())
            // 0 is our own group, 1 and -1 are everybody.
            .filter(|group| *group > 1);
        if let Some(group) = group {
            let signal = if force { Signal::SIGKILL } else { Signal::SIGTERM };
            signal_group(Pid::from_raw(group), signal);
        } else {
            tracing::debug!("the group of the earlier osascript is not known");
        }
        Ok(())
    }

    /// Notes the group of the child that was just started. Without the note a successor can only
    /// wait, which is no reason not to send.
    fn note_group(&self, group: Pid) {
        let noted = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&self.group)
            .and_then(|mut file| file.write_all(group.as_raw().to_string().as_bytes()));
        if let Err(error) = noted {
            tracing::warn!(%error, "the group of osascript could not be noted");
        }
    }

    fn lock(&self) -> Result<File, PrepareError> {
        let failed = |source| PrepareError::Stderr { path: self.stderr.clone(), source };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.stderr)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(PrepareError::Orphan),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Starts osascript with these arguments, in its own process group, waiting for its script.
    #[expect(clippy::disallowed_methods, reason = "this module is the one that starts osascript")]
    pub(crate) fn prepare(&self, args: &[&str]) -> Result<Prepared, PrepareError> {
        let stderr = self.lock()?;
        // Only under the lock: a file that an orphan still writes to is left as it is.
        stderr
            .set_len(0)
            .map_err(|source| PrepareError::Stderr { path: self.stderr.clone(), source })?;
        // The note of the one before must not be taken for this one's.
        match std::fs::remove_file(&self.group) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(PrepareError::Stderr { path: self.group.clone(), source });
            }
        }
        let spawn = |source| PrepareError::Spawn { program: self.program.clone(), source };
        let mut child = Command::new(&self.program)
            .args(["-l", "AppleScript", "-"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(stderr))
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(spawn)?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let (Some(stdin), Some(group)) = (child.stdin.take(), group) else {
            return Err(spawn(io::Error::other("the child has no stdin or no id")));
        };
        self.note_group(group);
        let running =
            Running { child, group, stderr: self.stderr.clone(), deadline: self.deadline };
        Ok(Prepared { running, stdin })
    }
}

impl Prepared {
    /// Gives it the script. An error means that it got none of it.
    pub(crate) fn hand_over(self, script: &str) -> Result<Running, Box<(Running, io::Error)>> {
        let Self { running, stdin } = self;
        let written = stdin
            .into_owned_fd()
            .map(File::from)
            // One write: the pipe is empty and holds more than a script.
            .and_then(|mut pipe| pipe.write_all(script.as_bytes()));
        match written {
            Ok(()) => Ok(running),
            Err(error) => Err(Box::new((running, error))),
        }
    }

    /// Ends it before it was given anything.
    pub(crate) fn abandon(self) -> Running {
        // The script pipe closes only after the child was told to die: an empty script does
        // nothing, but it need not even run.
        signal_group(self.running.group, Signal::SIGKILL);
        self.running
    }
}

impl Running {
    /// Waits for its end, or ends it: at the deadline, or when `kill` is cancelled.
    pub(crate) async fn finish(mut self, kill: CancellationToken) -> Disposition {
        let stdout = self.child.stdout.take();
        let reading = async {
            let mut output = Vec::new();
            if let Some(stdout) = stdout {
                // What was read before an error or the bound still counts.
                if let Err(error) = stdout.take(STDOUT_BYTES_MAX).read_to_end(&mut output).await {
                    tracing::debug!(%error, "osascript's output could not be read");
                }
            }
            output
        };
        tokio::pin!(reading);
        let mut output = None;
        let deadline = tokio::time::sleep(self.deadline);
        tokio::pin!(deadline);
        let mut poll = tokio::time::interval(STDERR_POLL);
        let ended = loop {
            tokio::select! {
                status = self.child.wait() => break Some(status),
                bytes = &mut reading, if output.is_none() => output = Some(bytes),
                _ = poll.tick() => if self.floods() { break None },
                () = &mut deadline => break None,
                () = kill.cancelled() => break None,
            }
        };
        let killed = ended.is_none();
        let status = match ended {
            Some(status) => status,
            None => self.end().await,
        };
        // Whatever it left behind in its group must not outlive it: it would hold the lock, and
        // might still talk to Messages.
        self.sweep().await;
        let output = match output {
            Some(bytes) => bytes,
            None => tokio::time::timeout(DRAIN_GRACE, &mut reading).await.unwrap_or_default(),
        };
        let number = self.error_number();
        match status {
            Ok(status) if !killed => disposition(status, number, &output),
            Ok(_) => doubt(
                Reason::MessagesTimeout,
                format!("osascript was killed after at most {} ms", self.deadline.as_millis()),
            ),
            Err(error) => doubt(
                Reason::MessagesTimeout,
                format!("osascript could not be waited for: {}", error.kind()),
            ),
        }
    }

    /// TERM, a moment, KILL.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        signal_group(self.group, Signal::SIGTERM);
        if let Ok(status) = tokio::time::timeout(TERM_GRACE, self.child.wait()).await {
            return status;
        }
        signal_group(self.group, Signal::SIGKILL);
        self.child.wait().await
    }

    /// Kills what is left of the group and waits until it is gone.
    async fn sweep(&self) {
        let gone = async {
            while signal_group(self.group, Signal::SIGKILL) {
                tokio::time::sleep(GROUP_GONE_POLL).await;
            }
        };
        if tokio::time::timeout(GROUP_GONE_GRACE, gone).await.is_err() {
            tracing::warn!(group = self.group.as_raw(), "a process of osascript's group remains");
        }
    }

    fn floods(&self) -> bool {
        std::fs::metadata(&self.stderr).is_ok_and(|file| file.len() > STDERR_BYTES_MAX)
    }

    fn error_number(&self) -> Option<i32> {
        match tail(&self.stderr) {
            Ok(text) => error_number(&text),
            Err(error) => {
                tracing::warn!(%error, "osascript's error output could not be read");
                None
            }
        }
    }
}

/// Signals a group; false when nobody is left in it.
fn signal_group(group: Pid, signal: Signal) -> bool {
    match killpg(group, signal) {
        // EPERM is macOS's answer for a group of zombies: they are about to be gone.
        Ok(()) | Err(Errno::EPERM) => true,
        Err(Errno::ESRCH) => false,
        Err(errno) => {
            tracing::warn!(%errno, "osascript's group could not be signalled");
            false
        }
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(STDERR_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(STDERR_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The number in parentheses at the end of the last line that has one there. Only the number is
/// looked at: the words are localised and hold typographic apostrophes. Numbers in the middle of a
/// line are not osascript's: an error may quote what somebody wrote.
fn error_number(text: &str) -> Option<i32> {
    text.lines().rev().find_map(|line| {
        let (_, number) = line.trim_end().strip_suffix(')')?.rsplit_once('(')?;
        number.trim().parse().ok()
    })
}

fn doubt(reason: Reason, detail: String) -> Disposition {
    Disposition::MayHaveCompleted(Failure { reason, detail, retryable: false })
}

fn disposition(status: ExitStatus, number: Option<i32>, output: &[u8]) -> Disposition {
    if status.success() {
        let output = String::from_utf8_lossy(output).trim().to_owned();
        return unsent(&output).unwrap_or(Disposition::Succeeded { output });
    }
    // One that was killed from outside may have written about something before.
    match number.filter(|_| status.code().is_some_and(|code| code != 0)) {
        Some(number) => of_number(number),
        // It died of something else than AppleScript: nothing says how far it came.
        None => doubt(Reason::NoEvidence, format!("osascript ended with {status} and no number")),
    }
}

/// What our script says when it has met an error before anything was handed to Messages: `unsent`, what
/// could not be had (`chat` or `file`), and the number. Whatever the number would mean elsewhere, nothing
/// was sent.
fn unsent(output: &str) -> Option<Disposition> {
    let (what, number) = output.strip_prefix("unsent ")?.split_once(' ')?;
    let number = number.parse().ok()?;
    if what == "file" {
        return Some(Disposition::NotStarted(Failure {
            reason: Reason::AttachmentUnavailable,
            detail: format!("AppleScript {number} for the staged file"),
            retryable: true,
        }));
    }
    Some(match of_number(number) {
        Disposition::NotStarted(failure) => Disposition::NotStarted(failure),
        // In doubt only after a send: here there was none.
        Disposition::MayHaveCompleted(failure) if is_about_messages(failure.reason) => {
            Disposition::NotStarted(Failure { retryable: true, ..failure })
        }
        Disposition::MayHaveCompleted(_) | Disposition::Succeeded { .. } => {
            Disposition::NotStarted(Failure {
                reason: Reason::NotResolved,
                detail: format!("AppleScript {number} for the chat"),
                retryable: true,
            })
        }
    })
}

/// Whether a failure may be one of Messages itself rather than of this one send.
pub(crate) fn is_about_messages(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::AutomationDenied
            | Reason::AutomationConsent
            | Reason::MessagesNotRunning
            | Reason::MessagesTimeout
            | Reason::MessagesConnectionLost
    )
}

/// What must hold for whatever osascript says at its end; see [`crate::fuzzing`].
pub(crate) fn check(status: ExitStatus, output: &[u8], errors: &str) {
    let number = error_number(errors);
    let prefixed = String::from_utf8_lossy(output).trim().starts_with("unsent ");
    match disposition(status, number, output) {
        Disposition::Succeeded { output: said } => {
            assert!(status.success(), "{status} is no success");
            // U+FFFD is three bytes and may stand for a single one.
            assert!(said.len() <= output.len() * 3, "more than it said");
        }
        // That nothing was sent is believed of our script's own word, and of an exit with a number
        // that proves it; of nothing else.
        Disposition::NotStarted(failure) => {
            let proven = status.success() && prefixed;
            let numbered = status.code().is_some_and(|code| code != 0) && number.is_some();
            assert!(proven || numbered, "{status} proves nothing");
            assert_own_words(&failure.detail);
        }
        Disposition::MayHaveCompleted(failure) => {
            assert!(!status.success() && !failure.retryable, "doubt is never tried again");
            let unnumbered = format!("osascript ended with {status} and no number");
            if failure.detail != unnumbered {
                assert_own_words(&failure.detail);
            }
        }
    }
}

/// A detail is a sentence of ours with a number: what osascript says may quote a message.
fn assert_own_words(detail: &str) {
    let number = detail.strip_prefix("AppleScript ").and_then(|rest| rest.split(' ').next());
    let number = number.and_then(|number| number.parse::<i32>().ok());
    let ours = number.is_some_and(|number| {
        ["", " for the chat", " for the staged file"]
            .iter()
            .any(|about| *detail == format!("AppleScript {number}{about}"))
    });
    assert!(ours, "words that are not ours: {detail}");
}

/// What an AppleScript error number proves. Whatever is not known to come before the Apple event
/// was dispatched is in doubt.
pub(crate) fn of_number(number: i32) -> Disposition {
    let not_started = |reason, retryable| {
        Disposition::NotStarted(Failure {
            reason,
            detail: format!("AppleScript {number}"),
            retryable,
        })
    };
    match number {
        // Permanent on this Mac until its user grants it; another phone can send the message.
        -1743 => not_started(Reason::AutomationDenied, true),
        // macOS would have to ask its user first (Apple documents it for the permission query; whether
        // osascript ever prints it is unverified): nothing was dispatched.
        -1744 => not_started(Reason::AutomationConsent, true),
        // The program is not running (-600) or could not be launched: nothing received the event.
        -600 | -10_810 | -10_827 => not_started(Reason::MessagesNotRunning, true),
        // The object could not be found: resolved before `send` is dispatched.
        -1728 => not_started(Reason::NotResolved, true),
        // No such account: the `whose` found nothing (-1719), or its variable was never set (-2753).
        -1719 | -2753 => not_started(Reason::AccountUnusable, true),
        // A value of the wrong kind, or a script that does not compile: a fault of ours.
        -1700 | -2740 | -2741 => not_started(Reason::ScriptFault, false),
        -1712 => doubt(Reason::MessagesTimeout, "AppleScript -1712".to_owned()),
        -609 => doubt(Reason::MessagesConnectionLost, "AppleScript -609".to_owned()),
        _ => doubt(Reason::NoEvidence, format!("AppleScript {number}")),
    }
}

#[cfg(test)]
mod tests;
