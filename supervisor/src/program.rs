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
fn logged() -> Targets {
    let wanted = std::env::var("RUST_LOG").ok().and_then(|wanted| wanted.parse().ok());
    wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO))
}

/// Logs into files of a folder that rotate themselves; to stderr where that cannot be.
pub fn start_log_in(folder: &Path, kept: Kept) {
    match LogFile::open(folder, kept) {
        Ok(file) => {
            tracing_subscriber::fmt()
                .with_max_level(LevelFilter::TRACE)
                .with_writer(Mutex::new(file))
                .with_ansi(false)
                .finish()
                .with(logged())
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
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .finish()
        .with(logged())
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
