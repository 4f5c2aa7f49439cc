//! What both programs do around their work: log, runtime, exit status.

use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::life::Failed;
use crate::log_file::{Kept, LogFile, trim_outputs};

/// What is logged, as `RUST_LOG` says: levels, for all and for single targets. What else an `EnvFilter` understands costs half a
/// mebibyte.
fn logged(wanted: Option<&str>) -> Targets {
    // A comma too many would stand for "errors, of all".
    let wanted = wanted.map(|wanted| {
        let directives = wanted.split(',').map(str::trim).filter(|one| !one.is_empty());
        directives.collect::<Vec<_>>().join(",")
    });
    wanted
        .and_then(|wanted| wanted.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO))
}

/// The most that any target logs: what is finer is not even looked at.
fn finest(logged: &Targets) -> LevelFilter {
    let levels = logged.iter().map(|(_, level)| level).chain(logged.default_level());
    levels.max().unwrap_or(LevelFilter::OFF)
}

/// Logs into files of a folder that rotate themselves; to stderr where that cannot be.
pub fn start_log_in(folder: &Path, kept: Kept) {
    match LogFile::open(folder, kept) {
        Ok(file) => {
            let logged = logged(std::env::var("RUST_LOG").ok().as_deref());
            tracing_subscriber::fmt()
                .with_max_level(finest(&logged))
                .with_writer(Mutex::new(file))
                .with_ansi(false)
                .finish()
                .with(logged)
                .init();
            if let Err(error) = trim_outputs() {
                tracing::warn!(%error, "what launchd keeps of stdout and stderr could not be cut");
            }
        }
        Err(error) => {
            start_log();
            // Phones are worth more than a log.
            tracing::error!(%error, folder = %folder.display(), "cannot log there; the log goes to stderr");
        }
    }
}

/// Threads that run tasks: one that is held up holds up no other phone.
const WORKERS: usize = 2;

/// Logs to stderr.
pub fn start_log() {
    let logged = logged(std::env::var("RUST_LOG").ok().as_deref());
    tracing_subscriber::fmt()
        .with_max_level(finest(&logged))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .finish()
        .with(logged)
        .init();
}

/// Runs a task to its end in a runtime of its own.
pub fn until_done(task: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    // A shelf of phones keeps not even one processor busy; each further thread costs its stack and its share of the heap.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|error| Failed {
            status: 71,
            message: format!("starting the runtime: {error}"),
        })?;
    let done = runtime.block_on(task);
    // Tasks that did not end in time are not waited for; a child that is dropped is killed with its group.
    runtime.shutdown_background();
    done
}

/// The exit status, with a line for people when there is something to say.
pub fn exit(program: &str, done: Result<(), Failed>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { status, message }) => {
            // Nothing is left to do when even stderr is gone.
            drop(writeln!(std::io::stderr().lock(), "{program}: {message}"));
            ExitCode::from(status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_what_was_asked_for_and_a_comma_too_many_changes_nothing() {
        let level = |wanted| finest(&logged(wanted));
        assert_eq!(level(None), LevelFilter::INFO);
        for wanted in ["warn", "warn,", ",warn", "warn, ,"] {
            assert_eq!(logged(Some(wanted)).default_level(), Some(LevelFilter::WARN), "{wanted}");
            assert_eq!(level(Some(wanted)), LevelFilter::WARN, "{wanted}");
        }
        assert_eq!(level(Some("warn,this=debug")), LevelFilter::DEBUG);
    }
}
