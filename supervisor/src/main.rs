//! `switchboard-supervisor`: the life story is arguments, log, run, exit status.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use supervisor::Failed;
use tracing_subscriber::EnvFilter;

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
    },
    /// Serve one supervisor as root: read and change the order of network services, and nothing else.
    Helper {
        /// The socket to listen on; the supervisor's `[network] helper` names it.
        #[arg(long, default_value = "/var/run/org.switchboard.helper.sock")]
        socket: PathBuf,
        /// The user whose supervisor may ask.
        #[arg(long)]
        uid: u32,
        /// Another program in the place of networksetup.
        #[arg(long, default_value = "/usr/sbin/networksetup")]
        networksetup: PathBuf,
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
        Command::Run { config } => {
            start_log();
            until_done(supervisor::run(&config))
        }
        Command::Helper { socket, uid, networksetup } => {
            start_log();
            let options = supervisor::HelperOptions { socket, uid, networksetup };
            until_done(supervisor::serve_helper(options))
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
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { status, message }) => {
            // Nothing is left to do when even stderr is gone.
            drop(writeln!(std::io::stderr().lock(), "switchboard-supervisor: {message}"));
            ExitCode::from(status)
        }
    }
}

fn until_done(task: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
            Failed { status: 71, message: format!("starting the runtime: {error}") }
        })?;
    let done = runtime.block_on(task);
    // Tasks that did not end in time are not waited for; a child that is dropped is killed with its group.
    runtime.shutdown_background();
    done
}

fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

fn say(text: &str) {
    // A closed stdout (`… | head`) is no failure.
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
}
