//! What both programs do around their work: log, runtime, exit status.

use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::life::Failed;

/// Logs to stderr, as `RUST_LOG` says.
pub fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// Runs a task to its end in a runtime of its own.
pub fn until_done(task: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
            Failed { status: 71, message: format!("starting the runtime: {error}") }
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
