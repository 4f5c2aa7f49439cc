//! `switchboard-helper`: what a supervisor needs of root, and nothing else. A program of its own, so that what runs as
//! root lies where only root can replace it, and does not change with every supervisor.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use supervisor::HelperOptions;

/// Reads and changes the order of network services for one supervisor. Started as root by launchd.
#[derive(Debug, Parser)]
#[command(name = "switchboard-helper", version)]
struct Arguments {
    /// The socket to listen on; the supervisor's `[network] helper` names it.
    #[arg(long, default_value = "/var/run/org.switchboard.helper.sock")]
    socket: PathBuf,
    /// The user whose supervisor may ask.
    #[arg(long)]
    uid: u32,
    /// Another program in the place of networksetup.
    #[arg(long, default_value = "/usr/sbin/networksetup")]
    networksetup: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { socket, uid, networksetup } = Arguments::parse();
    supervisor::start_log();
    let options = HelperOptions { socket, uid, networksetup };
    supervisor::exit(
        "switchboard-helper",
        supervisor::until_done(supervisor::serve_helper(options)),
    )
}
