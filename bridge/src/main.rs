//! `switchboard-bridge`: one process per phone.
//!
//! Arguments, log, configuration, then one command. Exit codes are those of `sysexits.h`: 0 done, or
//! asked to stop; 69 a check failed, 75 try again, 77 permission missing, 78 bad configuration (64
//! for arguments that make no sense).

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use bridge::config::Config;
use bridge::exit::Exit;
use bridge::{archive, daemon, doctor, manual, watch};
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// `EX_USAGE`.
const USAGE: u8 = 64;
/// The runtime's workers only move bytes and wait for children; the loop has the main thread.
const WORKERS: usize = 2;

#[derive(Parser)]
#[command(name = "switchboard-bridge", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve one phone over stdin and stdout until stdin ends.
    Run {
        /// The configuration of this phone.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print what happens in a chat.db as JSON lines; nothing is sent and nothing is kept.
    Watch(watch::Args),
    /// Write everything that a chat.db holds as JSON lines, or as text for people; read-only.
    Export(archive::Args),
    /// Check a configuration and say what is wrong with it.
    CheckConfig {
        /// The configuration to check.
        #[arg(long, value_name = "FILE", required_unless_present = "print_default")]
        config: Option<PathBuf>,
        /// Print the commented default instead.
        #[arg(long)]
        print_default: bool,
    },
    /// Check everything that must be true on this Mac, each with its remedy.
    Doctor {
        /// The configuration of the phone.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Write completions for a shell to standard output.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write manual pages into a folder.
    Man {
        /// The folder; it is made when it is not there.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            // Where even this cannot be written, the exit code says it.
            return error.print().map_or(ExitCode::from(USAGE), |()| ExitCode::from(code));
        }
    };
    let logged = logged(std::env::var("RUST_LOG").ok().as_deref());
    tracing_subscriber::fmt()
        .with_max_level(finest(&logged))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .finish()
        .with(logged)
        .init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return Exit::TryAgain.into();
        }
    };
    let exit = runtime.block_on(act(arguments.command));
    // Threads that read stdin cannot be ended; they must not keep the process.
    runtime.shutdown_background();
    match exit {
        Ok(exit) => exit.into(),
        Err((exit, error)) => {
            tracing::error!("{error:#}");
            exit.into()
        }
    }
}

/// What is logged, as `RUST_LOG` says: levels, for all and for single targets. What else an `EnvFilter` understands costs half a
/// mebibyte in every bridge.
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

async fn act(command: Command) -> Result<Exit, (Exit, anyhow::Error)> {
    let load = |path: &PathBuf| Config::load(path).map_err(|error| (Exit::BadConfig, error.into()));
    let unwritable = |error: std::io::Error| (Exit::TryAgain, error.into());
    match command {
        Command::Run { config } => {
            daemon::run(load(&config)?).await.map_err(|error| (error.exit(), error.into()))
        }
        Command::Watch(arguments) => watch::run(arguments, std::io::stdout().lock())
            .await
            .map(|()| Exit::Asked)
            .map_err(|error| (Exit::Unhealthy, error.into())),
        Command::Export(arguments) => archive::run(&arguments, std::io::stdout().lock())
            .map(|()| Exit::Asked)
            .map_err(|error| (error.exit(), error.into())),
        Command::CheckConfig { config, print_default } => {
            let mut stdout = std::io::stdout().lock();
            if print_default {
                stdout.write_all(bridge::config::DEFAULT.as_bytes()).map_err(unwritable)?;
            } else if let Some(path) = config {
                let config = load(&path)?;
                writeln!(stdout, "{}: good, for {}", path.display(), config.phone)
                    .map_err(unwritable)?;
            }
            Ok(Exit::Asked)
        }
        Command::Doctor { config, json } => {
            let report = doctor::examine(&load(&config)?).await;
            // Colours only on a terminal, and never where NO_COLOR says so.
            let mut stdout = anstream::stdout().lock();
            let written =
                if json { report.write_json(&mut stdout) } else { report.write_table(&mut stdout) };
            written.map_err(unwritable)?;
            Ok(report.exit())
        }
        Command::Completions { shell } => {
            manual::completions(&mut Arguments::command(), shell, &mut std::io::stdout().lock())
                .map(|()| Exit::Asked)
                .map_err(unwritable)
        }
        Command::Man { dir } => {
            manual::pages(Arguments::command(), &dir).map(|()| Exit::Asked).map_err(|error| {
                let error = anyhow::Error::from(error);
                (Exit::TryAgain, error.context(format!("write manual pages to {}", dir.display())))
            })
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
