//! What both programs do around their work: log, runtime, exit status.

use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, reload};

use crate::life::Failed;
use crate::log_file::{Kept, LogFile, trim_outputs};

/// What is logged: levels, for all and for single targets. What else an `EnvFilter` understands costs half a mebibyte.
fn logged(wanted: Option<&str>) -> Targets {
    wanted
        .and_then(|wanted| tidy(wanted).parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO))
}

/// A comma too many would stand for "errors, of all".
fn tidy(wanted: &str) -> String {
    let directives = wanted.split(',').map(str::trim).filter(|one| !one.is_empty());
    directives.collect::<Vec<_>>().join(",")
}

/// Whether that says what is to be logged. A target alone would be one, and is nearly always a level with a slip in it.
pub(crate) fn is_log(wanted: &str) -> bool {
    let tidy = tidy(wanted);
    let is_level = |level: &str| level.parse::<LevelFilter>().is_ok();
    !tidy.is_empty()
        && tidy.parse::<Targets>().is_ok()
        && tidy.split(',').all(|one| is_level(one.rsplit('=').next().unwrap_or_default()))
}

/// What the environment says; it is stronger than a configuration.
fn of_environment() -> Option<String> {
    std::env::var("RUST_LOG").ok()
}

/// Changes what the log of this process takes.
static LOG: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

fn start_log_by(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static, ansi: bool) {
    let (targets, handle) = reload::Layer::new(logged(of_environment().as_deref()));
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(ansi);
    tracing_subscriber::registry().with(targets).with(lines).init();
    // There is one log a process, and the first one is it.
    drop(LOG.set(handle));
}

/// Logs what a configuration says, from now on, unless the environment has said it.
pub(crate) fn log_by(wanted: Option<&str>) {
    let Some(log) = LOG.get().filter(|_| of_environment().is_none()) else { return };
    if let Err(error) = log.reload(logged(wanted)) {
        tracing::warn!(%error, "what is logged could not be changed");
    }
}

/// Logs into files of a folder that rotate themselves; to stderr where that cannot be.
pub fn start_log_in(folder: &Path, kept: Kept) {
    match LogFile::open(folder, kept) {
        Ok(file) => {
            start_log_by(Mutex::new(file), false);
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

/// Logs to stderr.
pub fn start_log() {
    start_log_by(std::io::stderr, std::io::IsTerminal::is_terminal(&std::io::stderr()));
}

/// Threads that run tasks: one that is held up holds up no other phone.
const WORKERS: usize = 2;

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
        assert_eq!(logged(None).default_level(), Some(LevelFilter::INFO));
        for wanted in ["warn", "warn,", ",warn", "warn, ,"] {
            assert_eq!(logged(Some(wanted)).default_level(), Some(LevelFilter::WARN), "{wanted}");
        }
        let one = logged(Some("warn,this=debug"));
        assert!(one.would_enable("this::part", &tracing::Level::DEBUG));
        assert!(!one.would_enable("that", &tracing::Level::INFO));
    }

    #[test]
    fn a_configuration_names_levels() {
        for (wanted, is) in [
            ("info", true),
            ("off", true),
            ("info,supervisor::network=debug", true),
            ("supervisor=trace,", true),
            ("", false),
            (",", false),
            ("inof", false),
            ("info,supervisor::network", false),
            ("supervisor=loud", false),
        ] {
            assert_eq!(is_log(wanted), is, "{wanted}");
        }
    }
}
