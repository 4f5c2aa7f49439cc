//! `switchboard-supervisor`: the life story is arguments, log, run, exit status.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use supervisor::Kept;

/// Runs and restarts the bridges of this Mac, keeps the link with the router, serves the local dispatch API.
#[derive(Debug, Parser)]
#[command(name = "switchboard-supervisor", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until TERM or INT. Ends with 78 on a bad configuration, 75 when another one runs.
    Run {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Log into `supervisor.log` in this folder, and put it aside when it is full. Without it the log is stderr.
        #[arg(long, value_name = "DIR")]
        log_dir: Option<PathBuf>,
        /// A log file is full with so many MiB.
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        log_mib: u64,
        /// So many log files are kept.
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        log_files: u32,
    },
    /// Check a configuration file and run nothing.
    CheckConfig {
        /// The configuration file.
        #[arg(long, required_unless_present = "print_default")]
        config: Option<PathBuf>,
        /// Print the commented default instead.
        #[arg(long)]
        print_default: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Run { config, log_dir, log_mib, log_files } => {
            let kept = Kept { bytes: log_mib * 1024 * 1024, files: log_files };
            match log_dir {
                Some(folder) => supervisor::start_log_in(&folder, kept),
                None => supervisor::start_log(),
            }
            supervisor::until_done(supervisor::run(&config))
        }
        Command::CheckConfig { print_default: true, .. } => {
            say(supervisor::default_config());
            Ok(())
        }
        Command::CheckConfig { config, print_default: false } => {
            supervisor::check_config(&config.unwrap_or_default())
                .map(|summary| say(&format!("{summary}\n")))
        }
    };
    supervisor::exit("switchboard-supervisor", done)
}

fn say(text: &str) {
    // A closed stdout (`… | head`) is no failure.
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
}
