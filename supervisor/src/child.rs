//! The only place of the supervisor that starts processes.
//!
//! Every child leads its own process group, so that one signal reaches it and everything it started; its three streams
//! are pipes, read and written by tasks of its own with bounded queues, so that a child that floods, stalls or stops
//! reading holds up nobody else. Pipes on macOS are not close-on-exec from birth (Rust's standard library sets the flag
//! after `pipe(2)`), so two starts at once could leak one child's stdin into the other, and the end of file that tells
//! a bridge that its supervisor is gone would never come: one lock around all starts prevents that.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::lines::{Line, Lines};
use crate::logs::Ring;
use router_client::clock::wall_now;

/// Lines of a child's stdout waiting for their owner. A full queue stops the reading, then the child: back-pressure
/// on the one that causes it.
const STDOUT_QUEUE: usize = 64;
/// Lines waiting to be written to a child: more than a session's burst of commands, at most some megabytes.
const STDIN_QUEUE: usize = 256;
/// Bytes read from a child's stdout at once: a line or two of an ordinary bridge. Each of many phones has such a buffer.
const READ_BYTES: usize = 512;
/// And from its stderr, which is seldom written to.
const LOG_READ_BYTES: usize = 256;
/// One write to a child's stdin must end within this time; a healthy bridge reads at once.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Longest log line that is kept of a child's stderr; the rest of the line is dropped.
const LOG_LINE_MAX: usize = 8 * 1024;
/// Log lines a second that are passed on to the supervisor's own log; all of them go into the ring.
const LOG_LINES_A_SECOND: u32 = 200;
/// After a child's end, what it had written is still read for this long: its last words say why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A child that closes a stream usually ends a moment later, with a status that says more than the closing: it is
/// reported only when the child is still there after this time.
const CLOSED_GRACE: Duration = Duration::from_secs(1);

/// Held while a child is started, so that no other child can inherit its pipes.
static SPAWNING: Mutex<()> = Mutex::new(());

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// The program's path.
    pub(crate) program: PathBuf,
    /// Its arguments; they never carry secrets.
    pub(crate) args: Vec<OsString>,
    /// Its working directory.
    pub(crate) directory: PathBuf,
    /// The name under which its log lines appear.
    pub(crate) name: String,
    /// Longest stdout line in bytes.
    pub(crate) line_max: usize,
    /// Whose log lines it writes.
    pub(crate) voice: Voice,
}

/// Under which target a child's log lines appear among ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voice {
    /// A bridge, or a program of the system that is run to its end.
    Bridge,
    /// cloudflared.
    Cloudflared,
}

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// The operating system refused.
    #[error("starting {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It ended before its process id could be read, or a pipe is missing.
    #[error("{program} started without {what}")]
    Incomplete {
        /// The program.
        program: PathBuf,
        /// What is missing.
        what: &'static str,
    },
}

/// What a child did.
#[derive(Debug)]
pub(crate) enum Happened {
    /// A line on its stdout, whole or not.
    Line(Line),
    /// It has closed its stdout and goes on running.
    StdoutClosed,
    /// A write to its stdin did not end in time, or it has closed its stdin and goes on running.
    NotReading,
    /// It ended; its group has been swept and its last words were delivered before this.
    Exited(ExitStatus),
}

/// What the tasks around a child tell its owner.
#[derive(Debug)]
enum Told {
    Line(Line),
    StdoutClosed,
    StdinClosed,
    WriteStuck,
}

/// A stream that a child has closed.
#[derive(Debug, Clone, Copy)]
enum Closed {
    Stdin,
    Stdout,
}

/// What a signal to a group met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signalled {
    /// It was delivered to somebody.
    Sent,
    /// Nobody is left in the group.
    Gone,
    /// Somebody is there who may not be signalled. On macOS this is also the answer for a group of which only a dead,
    /// unreaped leader is left, so it is asked again rather than believed.
    Refused,
}

/// Why a line was not queued for a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotQueued {
    /// The queue is full: the child does not keep up.
    #[error("the bridge does not keep up with its commands")]
    Full,
    /// The child's stdin is closed.
    #[error("the bridge has closed its input")]
    Closed,
}

/// A running child. Dropping it kills its whole group.
#[derive(Debug)]
pub(crate) struct Child {
    process: tokio::process::Child,
    group: Pid,
    told: mpsc::Receiver<Told>,
    stdin: Option<mpsc::Sender<String>>,
    log: JoinHandle<()>,
    pipes: [JoinHandle<()>; 2],
    /// A stream that it closed, and when that is reported.
    closed: Option<(Closed, Instant)>,
    /// Set when it has ended: its status, and until when its last words are awaited.
    ended: Option<(ExitStatus, Instant)>,
}

/// Starts a child in its own group with piped streams.
pub(crate) fn start(
    spec: &Spec,
    ring: &Arc<Mutex<Ring>>,
    tracker: &TaskTracker,
) -> Result<Child, SpawnError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this module is the one place that starts children"
    )]
    let mut command = tokio::process::Command::new(&spec.program);
    command
        .args(&spec.args)
        .current_dir(&spec.directory)
        // Keys of other programs of ours that an operator may have in the environment are none of the child's business.
        .env_remove("SWITCHBOARD_ADMIN_TOKEN")
        .env_remove("SWITCHBOARD_ENROLMENT_TOKEN")
        .env_remove("SWITCHBOARD_API_KEY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut process = {
        // A poisoned lock only means that another start panicked; the lock protects no data.
        let _alone = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
        command
            .spawn()
            .map_err(|source| SpawnError::Start { program: spec.program.clone(), source })?
    };
    let missing = |what| SpawnError::Incomplete { program: spec.program.clone(), what };
    let group = process
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .map(Pid::from_raw)
        .ok_or_else(|| missing("a process id"))?;
    let stdin = process.stdin.take().ok_or_else(|| missing("stdin"))?;
    let stdout = process.stdout.take().ok_or_else(|| missing("stdout"))?;
    let stderr = process.stderr.take().ok_or_else(|| missing("stderr"))?;

    let (report, told) = mpsc::channel(STDOUT_QUEUE);
    let (queue, lines) = mpsc::channel(STDIN_QUEUE);
    let log = tracker.spawn(read_stderr(stderr, spec.name.clone(), spec.voice, Arc::clone(ring)));
    let pipes = [
        tracker.spawn(read_stdout(stdout, spec.line_max, report.clone())),
        tracker.spawn(write_stdin(stdin, lines, report)),
    ];
    Ok(Child { process, group, told, stdin: Some(queue), log, pipes, closed: None, ended: None })
}

/// What a program printed that ran to its end.
#[derive(Debug)]
pub(crate) struct Printed {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Its stdout.
    pub(crate) text: String,
    /// The last line of its stderr.
    pub(crate) complaint: Option<String>,
}

/// Why there is no output of a program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// It did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It did not end in time, and was killed with its group.
    #[error("{program} did not end within {} ms and was killed", within.as_millis())]
    Late {
        /// The program.
        program: PathBuf,
        /// Its deadline.
        within: Duration,
    },
    /// It printed what cannot be what it was asked for.
    #[error("{program} printed {what}")]
    Odd {
        /// The program.
        program: PathBuf,
        /// What was odd.
        what: String,
    },
}

/// Runs a program to its end, within a deadline, and keeps at most `bytes_max` of what it prints.
pub(crate) async fn run(
    spec: &Spec,
    within: Duration,
    bytes_max: usize,
    tracker: &TaskTracker,
) -> Result<Printed, RunError> {
    run_with(spec, None, within, bytes_max, tracker).await
}

/// The same for a program that reads something.
pub(crate) async fn run_with(
    spec: &Spec,
    input: Option<&str>,
    within: Duration,
    bytes_max: usize,
    tracker: &TaskTracker,
) -> Result<Printed, RunError> {
    let ring = Arc::new(Mutex::new(Ring::default()));
    let mut child = start(spec, &ring, tracker)?;
    if let Some(Err(refused)) = input.map(|input| child.write(input.to_owned())) {
        // The queue is new and empty; whatever it is, the program meets the end of its input and says so.
        tracing::debug!(%refused, "a program was not given its input");
    }
    // Nothing more is said to it: whoever waits for input meets its end.
    child.stdin = None;
    let odd = |what: String| RunError::Odd { program: spec.program.clone(), what };
    let read = async {
        let mut text = String::new();
        loop {
            match child.next().await {
                Happened::Line(Line::Whole(line)) => {
                    if text.len() + line.len() >= bytes_max {
                        return Err(odd(format!("more than {bytes_max} bytes")));
                    }
                    text.push_str(&line);
                    text.push('\n');
                }
                Happened::Line(Line::Cut { bytes }) => {
                    return Err(odd(format!("half a line of {bytes} bytes")));
                }
                Happened::Line(Line::TooLong { bytes }) => {
                    return Err(odd(format!("a line of {bytes} bytes")));
                }
                Happened::Line(Line::NotText) => {
                    return Err(odd("what is not UTF-8".to_owned()));
                }
                // The end of the program says more than the end of a stream.
                Happened::StdoutClosed | Happened::NotReading => {}
                Happened::Exited(status) => return Ok((status, text)),
            }
        }
    };
    let (status, text) = tokio::time::timeout(within, read)
        .await
        .map_err(|_elapsed| RunError::Late { program: spec.program.clone(), within })??;
    let complaint =
        ring.lock().unwrap_or_else(PoisonError::into_inner).newest().map(|line| line.line.clone());
    Ok(Printed { status, text, complaint })
}

impl Child {
    /// Its process id, which is also its group's.
    pub(crate) fn pid(&self) -> i32 {
        self.group.as_raw()
    }

    /// Queues one line for its stdin, never waiting.
    pub(crate) fn write(&self, line: String) -> Result<(), NotQueued> {
        let Some(stdin) = &self.stdin else {
            return Err(NotQueued::Closed);
        };
        stdin.try_send(line).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => NotQueued::Full,
            mpsc::error::TrySendError::Closed(_) => NotQueued::Closed,
        })
    }

    /// Sends a signal to its whole group.
    pub(crate) fn signal(&self, signal: Signal) -> Signalled {
        signal_group(self.group, signal)
    }

    /// What it does next. May be dropped at any point and called again. After `Exited` it must not be called again.
    pub(crate) async fn next(&mut self) -> Happened {
        loop {
            if let Some((status, until)) = self.ended {
                match tokio::time::timeout_at(until, self.told.recv()).await {
                    Ok(Some(Told::Line(line))) => return Happened::Line(line),
                    Ok(Some(Told::StdinClosed | Told::WriteStuck)) => {}
                    Ok(Some(Told::StdoutClosed) | None) | Err(_) => {
                        if !self.log.is_finished() {
                            // What is left of the log is lost only when a stray descendant holds the pipe open.
                            drop(tokio::time::timeout_at(until, &mut self.log).await);
                        }
                        return Happened::Exited(status);
                    }
                }
                continue;
            }
            let reported_at = self.closed.map(|(_, at)| at);
            tokio::select! {
                Some(told) = self.told.recv() => match told {
                    Told::Line(line) => return Happened::Line(line),
                    Told::WriteStuck => return Happened::NotReading,
                    Told::StdoutClosed => self.close(Closed::Stdout),
                    Told::StdinClosed => self.close(Closed::Stdin),
                },
                status = self.process.wait() => self.end(status),
                () = tokio::time::sleep_until(reported_at.unwrap_or_else(Instant::now)), if reported_at.is_some() => {
                    match self.closed.take() {
                        Some((Closed::Stdout, _)) => return Happened::StdoutClosed,
                        Some((Closed::Stdin, _)) => return Happened::NotReading,
                        None => {}
                    }
                }
            }
        }
    }

    fn close(&mut self, stream: Closed) {
        self.closed.get_or_insert((stream, Instant::now() + CLOSED_GRACE));
    }

    fn end(&mut self, status: std::io::Result<ExitStatus>) {
        // Whatever the leader has left behind must not outlive it: it may hold the journal or the pipes. The id cannot
        // have been given to another group in these microseconds.
        match self.signal(Signal::SIGKILL) {
            Signalled::Sent => {
                tracing::debug!(group = self.pid(), "swept what an ended child left");
            }
            Signalled::Gone | Signalled::Refused => {}
        }
        self.stdin = None;
        let status = status.unwrap_or_else(|error| {
            // Only possible when somebody else reaped our child.
            tracing::error!(group = self.pid(), %error, "waiting for a child failed");
            ExitStatus::default()
        });
        self.ended = Some((status, Instant::now() + LAST_WORDS));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.log.abort();
        for task in &self.pipes {
            task.abort();
        }
        if self.ended.is_none() {
            match self.signal(Signal::SIGKILL) {
                Signalled::Sent | Signalled::Gone => {}
                Signalled::Refused => {
                    tracing::warn!(group = self.pid(), "a dropped child could not be signalled");
                }
            }
        }
    }
}

/// Sends `signal` to a process group and says what it met.
fn signal_group(group: Pid, signal: Signal) -> Signalled {
    match killpg(group, signal) {
        Ok(()) => Signalled::Sent,
        Err(Errno::EPERM) => Signalled::Refused,
        // ESRCH: nobody there. EINVAL cannot happen for a signal of the enum.
        Err(_) => Signalled::Gone,
    }
}

async fn read_stdout(stdout: ChildStdout, line_max: usize, report: mpsc::Sender<Told>) {
    let mut lines = Lines::new(BufReader::with_capacity(READ_BYTES, stdout), line_max);
    loop {
        let told = match lines.next().await {
            Ok(Some(line)) => Told::Line(line),
            Ok(None) => Told::StdoutClosed,
            Err(error) => {
                tracing::warn!(%error, "reading a child's stdout failed");
                Told::StdoutClosed
            }
        };
        let last = matches!(told, Told::StdoutClosed);
        // The owner has gone when this fails; so does the reader.
        if report.send(told).await.is_err() || last {
            return;
        }
    }
}

async fn read_stderr(stderr: ChildStderr, name: String, voice: Voice, ring: Arc<Mutex<Ring>>) {
    let mut lines = Lines::new(BufReader::with_capacity(LOG_READ_BYTES, stderr), LOG_LINE_MAX);
    let mut second = Instant::now();
    let mut passed = 0_u32;
    let mut withheld = 0_u64;
    loop {
        let text = match lines.next().await {
            Ok(Some(Line::Whole(text))) => text,
            Ok(Some(Line::TooLong { bytes } | Line::Cut { bytes })) => {
                format!("[a log line of {bytes} bytes was not kept]")
            }
            Ok(Some(Line::NotText)) => "[a log line was not UTF-8]".to_owned(),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(phone = name, %error, "reading a bridge's log failed");
                return;
            }
        };
        if second.elapsed() >= Duration::from_secs(1) {
            if withheld > 0 {
                tracing::warn!(phone = name, withheld, "a bridge logs too much; see its log ring");
            }
            (second, passed, withheld) = (Instant::now(), 0, 0);
        }
        if passed < LOG_LINES_A_SECOND {
            passed += 1;
            pass_on(voice, &name, &text);
        } else {
            withheld += 1;
        }
        ring.lock().unwrap_or_else(PoisonError::into_inner).push(wall_now(), text);
    }
}

/// How grave a bridge's log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grave {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Takes a bridge's log line apart: how grave it is, and what it says without its own time, which is ours, and without
/// the name of its program. What is not a line of its log is what the system says when something went wrong: a panic,
/// a loader that misses a library.
fn understand(line: &str) -> (Grave, &str) {
    let said = line.split_once(' ').and_then(|(time, rest)| {
        let is_time = time.ends_with('Z')
            && time.contains('T')
            && time.starts_with(|c: char| c.is_ascii_digit());
        let (level, text) = rest.trim_start().split_once(' ').filter(|_| is_time)?;
        let grave = match level {
            // The short words are cloudflared's (zerolog's console writer).
            "ERROR" | "FTL" | "ERR" => Grave::Error,
            "WARN" | "WRN" => Grave::Warn,
            "INFO" | "INF" => Grave::Info,
            "DEBUG" | "DBG" => Grave::Debug,
            "TRACE" => Grave::Trace,
            _ => return None,
        };
        let text = text.trim_start();
        Some((grave, text.strip_prefix("bridge::").unwrap_or(text)))
    });
    said.unwrap_or((Grave::Warn, line))
}

/// Passes a child's log line on as one of our own.
fn pass_on(voice: Voice, name: &str, line: &str) {
    let (grave, text) = understand(line);
    if voice == Voice::Cloudflared {
        match grave {
            Grave::Error => tracing::error!(target: "cloudflared", "{text}"),
            Grave::Warn => tracing::warn!(target: "cloudflared", "{text}"),
            Grave::Info => tracing::info!(target: "cloudflared", "{text}"),
            Grave::Debug => tracing::debug!(target: "cloudflared", "{text}"),
            Grave::Trace => tracing::trace!(target: "cloudflared", "{text}"),
        }
        return;
    }
    // Most lines name the phone themselves.
    let phone = (!text.contains(name)).then_some(name);
    match grave {
        Grave::Error => tracing::error!(target: "bridge", phone, "{text}"),
        Grave::Warn => tracing::warn!(target: "bridge", phone, "{text}"),
        Grave::Info => tracing::info!(target: "bridge", phone, "{text}"),
        Grave::Debug => tracing::debug!(target: "bridge", phone, "{text}"),
        Grave::Trace => tracing::trace!(target: "bridge", phone, "{text}"),
    }
}

async fn write_stdin(
    mut stdin: ChildStdin,
    mut lines: mpsc::Receiver<String>,
    report: mpsc::Sender<Told>,
) {
    while let Some(mut line) = lines.recv().await {
        line.push('\n');
        let told =
            match tokio::time::timeout(WRITE_DEADLINE, stdin.write_all(line.as_bytes())).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "writing to a child failed");
                    Told::StdinClosed
                }
                Err(_) => Told::WriteStuck,
            };
        // An error means that the owner has gone, and with it whoever could act on this.
        drop(report.send(told).await);
        return;
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::kill;

    use super::*;

    /// Every wait of these tests ends by then.
    const PATIENCE: Duration = Duration::from_secs(10);

    struct Started {
        child: Child,
        ring: Arc<Mutex<Ring>>,
    }

    fn sh(script: &str) -> Started {
        let spec = Spec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            directory: std::env::temp_dir(),
            name: "test".to_owned(),
            line_max: 1_000,
            voice: Voice::Bridge,
        };
        let ring = Arc::new(Mutex::new(Ring::default()));
        let child = start(&spec, &ring, &TaskTracker::new()).unwrap();
        Started { child, ring }
    }

    impl Started {
        async fn next(&mut self) -> Happened {
            tokio::time::timeout(PATIENCE, self.child.next()).await.expect("nothing happened")
        }

        async fn line(&mut self) -> String {
            let happened = self.next().await;
            let Happened::Line(Line::Whole(line)) = happened else { panic!("{happened:?}") };
            line
        }

        async fn exit(&mut self) -> ExitStatus {
            loop {
                if let Happened::Exited(status) = self.next().await {
                    return status;
                }
            }
        }
    }

    fn alive(pid: i32) -> bool {
        // A zombie that nobody has reaped yet still answers; it is dead all the same.
        let dead = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| stat.contains(") Z "));
        kill(Pid::from_raw(pid), None).is_ok() && !dead
    }

    async fn wait_until_gone(pid: i32) {
        let until = Instant::now() + PATIENCE;
        while alive(pid) {
            assert!(Instant::now() < until, "process {pid} still lives");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn lines_go_both_ways_and_the_last_words_are_heard() {
        let mut started = sh("read line; echo \"got $line\"; echo log >&2; printf half; exit 7");
        started.child.write("hello".to_owned()).unwrap();
        assert_eq!(started.line().await, "got hello");
        assert!(matches!(started.next().await, Happened::Line(Line::Cut { bytes: 4 })));
        assert_eq!(started.exit().await.code(), Some(7));
        assert_eq!(started.ring.lock().unwrap().after(0).len(), 1);
    }

    #[tokio::test]
    async fn an_oversized_line_is_named_and_the_next_one_is_read() {
        let mut started = sh("head -c 100000 /dev/zero | tr '\\0' a; echo; echo after");
        assert!(matches!(started.next().await, Happened::Line(Line::TooLong { bytes: 100_000 })));
        assert_eq!(started.line().await, "after");
    }

    #[tokio::test]
    async fn a_grandchild_does_not_outlive_the_leader() {
        let mut started = sh("sleep 1000 & echo $!; exit 0");
        let grandchild: i32 = started.line().await.parse().unwrap();
        assert_eq!(started.exit().await.code(), Some(0));
        wait_until_gone(grandchild).await;
    }

    #[tokio::test]
    async fn a_child_that_ignores_term_is_ended_by_kill_with_its_group() {
        let mut started = sh("trap '' TERM; sleep 1000 & echo $!; while :; do sleep 1; done");
        let grandchild: i32 = started.line().await.parse().unwrap();
        assert_eq!(started.child.signal(Signal::SIGTERM), Signalled::Sent);
        assert!(
            tokio::time::timeout(Duration::from_millis(300), started.child.next()).await.is_err()
        );
        assert_eq!(started.child.signal(Signal::SIGKILL), Signalled::Sent);
        assert_eq!(started.exit().await.code(), None);
        wait_until_gone(grandchild).await;
    }

    #[tokio::test]
    async fn a_dropped_child_is_killed_with_its_group() {
        let mut started = sh("sleep 1000 & echo $!; wait");
        let grandchild: i32 = started.line().await.parse().unwrap();
        let pid = started.child.pid();
        drop(started);
        wait_until_gone(grandchild).await;
        wait_until_gone(pid).await;
    }

    #[tokio::test]
    async fn a_closed_stdout_of_a_living_child_is_reported() {
        let mut started = sh("exec >&-; sleep 1000");
        assert!(matches!(started.next().await, Happened::StdoutClosed));
    }

    #[tokio::test]
    async fn a_closed_stdin_of_a_living_child_is_reported_on_writing() {
        let mut started = sh("exec <&-; echo ready; sleep 1000");
        assert_eq!(started.line().await, "ready");
        started.child.write("x".to_owned()).unwrap();
        assert!(matches!(started.next().await, Happened::NotReading));
    }

    #[tokio::test]
    async fn a_flood_on_stderr_is_kept_short() {
        let mut started = sh("i=0; while [ $i -lt 5000 ]; do echo line $i >&2; i=$((i+1)); done");
        assert_eq!(started.exit().await.code(), Some(0));
        let lines = started.ring.lock().unwrap().after(0);
        assert_eq!(lines.len(), crate::logs::RING_LINES);
        assert_eq!(lines.last().map(|line| line.line.as_str()), Some("line 4999"));
    }

    #[tokio::test]
    async fn a_stray_that_never_stops_talking_does_not_hide_the_end() {
        let mut started =
            sh("perl -e 'setpgrp(0, 0); $| = 1; print \"x\\n\" while 1' & read line; exit 3");
        assert_eq!(started.line().await, "x");
        started.child.write("go".to_owned()).unwrap();
        assert_eq!(started.exit().await.code(), Some(3));
    }

    #[test]
    fn a_log_line_keeps_its_gravity_and_loses_its_own_time() {
        let table = [
            (
                "2026-11-22T12:32:18.183297Z  INFO bridge::daemon: chat.db is readable phone=\"x\"",
                (Grave::Info, "daemon: chat.db is readable phone=\"x\""),
            ),
            (
                "2026-11-22T12:32:18.183297Z ERROR bridge: out of order",
                (Grave::Error, "bridge: out of order"),
            ),
            ("2026-11-22T12:32:18Z  WARN rusqlite: slow", (Grave::Warn, "rusqlite: slow")),
            ("2026-11-22T12:32:18Z DEBUG a: b", (Grave::Debug, "a: b")),
            ("2026-11-22T12:32:18Z TRACE a: b", (Grave::Trace, "a: b")),
            (
                "thread 'main' panicked at src/main.rs:1:1:",
                (Grave::Warn, "thread 'main' panicked at src/main.rs:1:1:"),
            ),
            (
                "2026-11-22T12:32:18Z INF Registered tunnel connection connIndex=0",
                (Grave::Info, "Registered tunnel connection connIndex=0"),
            ),
            ("2026-11-22T12:32:18Z ERR no", (Grave::Error, "no")),
            ("2026-11-22T12:32:18Z SOON a: b", (Grave::Warn, "2026-11-22T12:32:18Z SOON a: b")),
            ("THEZ INFO a", (Grave::Warn, "THEZ INFO a")),
            ("", (Grave::Warn, "")),
        ];
        for (line, wanted) in table {
            assert_eq!(understand(line), wanted, "{line}");
        }
    }

    #[tokio::test]
    async fn a_child_that_does_not_read_fills_its_queue_and_not_our_memory() {
        let started = sh("sleep 1000");
        let line = "x".repeat(100_000);
        let mut refused = None;
        for _ in 0..STDIN_QUEUE + 10 {
            tokio::task::yield_now().await;
            if let Err(error) = started.child.write(line.clone()) {
                refused = Some(error);
                break;
            }
        }
        assert_eq!(refused, Some(NotQueued::Full));
    }

    #[tokio::test]
    async fn what_cannot_be_started_says_so() {
        let spec = Spec {
            program: "/nonexistent/bridge".into(),
            args: Vec::new(),
            directory: std::env::temp_dir(),
            name: "test".to_owned(),
            line_max: 1_000,
            voice: Voice::Bridge,
        };
        let ring = Arc::new(Mutex::new(Ring::default()));
        let error = start(&spec, &ring, &TaskTracker::new()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/bridge"));
    }
}
