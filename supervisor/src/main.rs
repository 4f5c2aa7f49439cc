//! `switchboard-supervisor`: the life story is arguments, log, run, exit status.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use supervisor::{Failed, Kept, Tools};

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
    /// Check everything that must be true on this Mac, each with its remedy.
    ///
    /// Permissions belong to whoever asks: from a terminal they are the terminal's. `switchboard host doctor` asks the
    /// supervisor that launchd runs.
    Doctor {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// One JSON object instead of tables.
        #[arg(long)]
        json: bool,
        /// A folder with other programs in the place of the system's, for trials.
        #[arg(long, value_name = "DIR", hide = true)]
        tools: Option<PathBuf>,
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
        Command::Doctor { config, json, tools } => {
            supervisor::start_log();
            return doctor(&config, json, tools);
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

fn doctor(config: &Path, json: bool, tools: Option<PathBuf>) -> ExitCode {
    let tools = tools.map_or(Tools::System, Tools::In);
    let mut code = 0;
    let done = supervisor::until_done(async {
        let report = supervisor::diagnose(config, &tools).await?;
        code = report.exit_code;
        let mut out = anstream::stdout().lock();
        let written = if json {
            serde_json::to_writer(&mut out, &report)
                .map_err(std::io::Error::from)
                .and_then(|()| writeln!(out))
        } else {
            report.write_table(&mut out)
        };
        written
            .map_err(|error| Failed { status: 75, message: format!("writing the report: {error}") })
    });
    if done.is_ok() {
        ExitCode::from(code)
    } else {
        supervisor::exit("switchboard-supervisor", done)
    }
}

fn say(text: &str) {
    // A closed stdout (`… | head`) is no failure.
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
}
