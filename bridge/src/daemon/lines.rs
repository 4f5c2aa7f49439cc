//! The pipe itself: a thread that reads stdin, a thread that writes stdout. Threads, because both
//! are blocking files that no runtime can wait for.

use std::io::{self, BufRead, Read as _, Write as _};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use protocol::WireError;
use protocol::limits::LINE_BYTES_MAX;
use tokio::sync::{mpsc, oneshot};

use super::Input;

/// The thread that writes, and when it is through.
#[derive(Debug)]
pub(super) struct Writer {
    done: oneshot::Receiver<()>,
}

impl Writer {
    /// Waits until everything that was queued is written, but not for a listener that is stuck.
    /// The sender must be gone.
    pub(super) async fn finish(self, within: Duration) {
        match tokio::time::timeout(within, self.done).await {
            Ok(Ok(()) | Err(_)) => {}
            Err(_elapsed) => tracing::debug!("the supervisor does not read its last lines"),
        }
    }
}

/// How often it is looked whether whoever started this bridge is still there.
const PARENT_EVERY: Duration = Duration::from_secs(1);

/// A bridge without a supervisor promises to be gone within five seconds. One that is still there after this time hangs: it is
/// ended by a thread that waits for nothing else, or it would hold its phone for ever.
const OVERDUE: Duration = Duration::from_secs(8);

/// Does `end` after a time, whatever becomes of the loop and of the runtime.
#[expect(clippy::disallowed_methods, reason = "a thread of its own, which blocks nobody")]
fn end_after(time: Duration, end: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name("overdue".to_owned()).spawn(move || {
        std::thread::sleep(time);
        end();
    });
    if let Err(error) = thread {
        tracing::error!(%error, "nobody ends this bridge if it hangs now");
    }
}

/// No handler and no destructor runs: what is there to be kept is in the journal.
fn end_at_once() {
    tracing::error!("it hangs, and its supervisor is gone: it ends itself");
    if let Err(error) = kill(Pid::this(), Signal::SIGKILL) {
        tracing::error!(%error, "it cannot end itself");
    }
}

/// Starts reading stdin, taking signals, and watching the parent.
///
/// The end of stdin says at once that the supervisor is gone, unless somebody else holds the other end of that pipe: a
/// program that was started in an unlucky moment and never closed it. An orphan is given another parent, which cannot be
/// held up by anybody.
pub(super) fn read_stdin(inputs: mpsc::Sender<Input>) -> io::Result<()> {
    signals(inputs.clone(), getppid, || end_after(OVERDUE, end_at_once))?;
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let stdin = io::stdin().lock();
        read_lines(stdin, |input| {
            if matches!(input, Input::Eof) {
                end_after(OVERDUE, end_at_once);
            }
            inputs.blocking_send(input).is_ok()
        });
    })?;
    Ok(())
}

/// Reads lines until the end of the file, or until nobody takes them. One that is too long is
/// named, skipped to its newline, and the next one is read as usual.
fn read_lines(mut from: impl BufRead, mut give: impl FnMut(Input) -> bool) {
    let bound = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.by_ref().take(bound).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "stdin cannot be read");
                break;
            }
        }
        let input = if line.last() == Some(&b'\n') {
            line.pop();
            match String::from_utf8(std::mem::take(&mut line)) {
                Ok(line) => Input::Line(line),
                Err(_) => Input::BadLine(WireError::Malformed("not UTF-8".to_owned())),
            }
        } else if line.len() > LINE_BYTES_MAX {
            let skipped = skip_line(&mut from);
            let bytes = line.len().saturating_add(skipped);
            Input::BadLine(WireError::TooLong { bytes, max: LINE_BYTES_MAX })
        } else {
            // The file ended within a line: a supervisor that died while it wrote. Half a command
            // is no command.
            Input::BadLine(WireError::Malformed("ends within a line".to_owned()))
        };
        if !give(input) {
            return;
        }
    }
    give(Input::Eof);
}

/// Skips to the next newline; gives the number of bytes skipped.
fn skip_line(from: &mut impl BufRead) -> usize {
    let mut skipped = 0_usize;
    loop {
        let (taken, ended) = match from.fill_buf() {
            Ok([]) | Err(_) => return skipped,
            Ok(bytes) => match bytes.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at.saturating_add(1), true),
                None => (bytes.len(), false),
            },
        };
        from.consume(taken);
        skipped = skipped.saturating_add(taken);
        if ended {
            return skipped;
        }
    }
}

/// TERM and INT end the bridge in good order; HUP means nothing to it.
fn signals(
    inputs: mpsc::Sender<Input>,
    parent: impl Fn() -> Pid + Send + 'static,
    orphaned: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let born_of = parent();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut overdue = Some(orphaned);
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let mut look = tokio::time::interval(PARENT_EVERY);
            loop {
                let input = tokio::select! {
                    _ = terminate.recv() => Input::Terminate,
                    _ = interrupt.recv() => Input::Terminate,
                    _ = hangup.recv() => continue,
                    _ = look.tick() => {
                        if parent() == born_of {
                            continue;
                        }
                        if let Some(orphaned) = overdue.take() {
                            tracing::warn!("whoever started this bridge is gone");
                            orphaned();
                        }
                        Input::Eof
                    }
                };
                if inputs.send(input).await.is_err() {
                    return;
                }
            }
        });
    })?;
    Ok(())
}

/// Starts writing stdout.
pub(super) fn write_stdout(queued_max: usize) -> io::Result<(mpsc::Sender<String>, Writer)> {
    let (lines, mut queued) = mpsc::channel::<String>(queued_max);
    let (finished, done) = oneshot::channel();
    std::thread::Builder::new().name("stdout".to_owned()).spawn(move || {
        let mut stdout = io::stdout().lock();
        while let Some(line) = queued.blocking_recv() {
            let written = stdout
                .write_all(line.as_bytes())
                .and_then(|()| stdout.write_all(b"\n"))
                .and_then(|()| if queued.is_empty() { stdout.flush() } else { Ok(()) });
            if let Err(error) = written {
                // Nobody listens; the end of stdin says the same.
                tracing::warn!(%error, "stdout cannot be written");
                break;
            }
        }
        // Nobody may wait for it any more.
        if finished.send(()).is_err() {
            tracing::debug!("the writer ended last");
        }
    })?;
    Ok((lines, Writer { done }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<String> {
        let mut inputs = Vec::new();
        read_lines(bytes, |input| {
            inputs.push(match input {
                Input::Line(line) if line.len() > 20 => format!("line of {}", line.len()),
                Input::Line(line) => line,
                Input::BadLine(error) => format!("bad: {}", error.label()),
                Input::Eof => "eof".to_owned(),
                other @ (Input::Terminate
                | Input::DatabaseChanged
                | Input::Ended(..)
                | Input::Fetched(..)
                | Input::Tick) => panic!("{other:?}"),
            });
            true
        });
        inputs
    }

    #[test]
    fn lines_are_read_whole_and_the_end_is_told() {
        assert_eq!(read(b"one\ntwo\n"), ["one", "two", "eof"]);
        assert_eq!(read(b""), ["eof"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn whoever_has_another_parent_is_told_that_the_supervisor_is_gone() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicI32, Ordering};
        let parent = Arc::new(AtomicI32::new(77));
        let asked = Arc::clone(&parent);
        let (inputs, mut heard) = mpsc::channel(4);
        let (orphaned, told_once) = std::sync::mpsc::channel();
        let parent_now = move || Pid::from_raw(asked.load(Ordering::Relaxed));
        signals(inputs, parent_now, move || orphaned.send(()).unwrap()).unwrap();
        assert!(tokio::time::timeout(PARENT_EVERY * 2, heard.recv()).await.is_err(), "it is there");
        parent.store(1, Ordering::Relaxed);
        let told = tokio::time::timeout(PARENT_EVERY * 20, heard.recv()).await.unwrap();
        assert!(matches!(told, Some(Input::Eof)), "{told:?}");
        assert_eq!(told_once.try_recv(), Ok(()), "and the end is certain from then on");
    }

    #[test]
    fn what_hangs_is_ended_by_a_thread_that_waits_for_nothing() {
        let (ended, heard) = std::sync::mpsc::channel();
        end_after(Duration::from_millis(10), move || ended.send(()).unwrap());
        // This thread is the one that hangs.
        assert_eq!(heard.recv_timeout(Duration::from_secs(20)), Ok(()));
    }

    #[test]
    fn half_a_line_is_no_command() {
        assert_eq!(read(b"one\n{\"type\":\"replay\"}"), ["one", "bad: malformed", "eof"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_one_read() {
        let mut bytes = vec![b'x'; LINE_BYTES_MAX + 1];
        bytes.extend_from_slice(b"\nnext\n");
        assert_eq!(read(&bytes), ["bad: too_long", "next", "eof"]);
        let mut exact = vec![b'x'; LINE_BYTES_MAX];
        exact.push(b'\n');
        assert_eq!(read(&exact), [format!("line of {LINE_BYTES_MAX}"), "eof".to_owned()]);
    }

    #[test]
    fn what_is_not_text_is_refused() {
        assert_eq!(read(b"\xff\xfe\nnext\n"), ["bad: malformed", "next", "eof"]);
    }
}
