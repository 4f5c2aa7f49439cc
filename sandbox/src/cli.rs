//! The commands.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::daemon::{self, Settings};
use crate::generate;
use crate::outcome::{self, Service};
use crate::socket::{Account, Client, Reply, Request};
use crate::truth::{self, CountBy};
use crate::world::PhoneSpec;

/// How long a control command waits. A row can be told to stay long without its chat.
const REPLY_TIMEOUT: Duration = Duration::from_mins(1);

/// A Messages.app for machines that are not Macs.
#[derive(Debug, Parser)]
#[command(name = "switchboard-sandbox", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Dir {
    /// The sandbox's folder.
    #[arg(long)]
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ServiceArg {
    #[value(name = "iMessage", alias = "imessage")]
    Imessage,
    #[value(name = "RCS", alias = "rcs")]
    Rcs,
    #[value(name = "SMS", alias = "sms")]
    Sms,
}

impl From<ServiceArg> for Service {
    fn from(service: ServiceArg) -> Self {
        match service {
            ServiceArg::Imessage => Self::Imessage,
            ServiceArg::Rcs => Self::Rcs,
            ServiceArg::Sms => Self::Sms,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AccountArg {
    Connected,
    Connecting,
    Disconnected,
    Missing,
    NoPermission,
}

impl From<AccountArg> for Account {
    fn from(account: AccountArg) -> Self {
        match account {
            AccountArg::Connected => Self::Connected,
            AccountArg::Connecting => Self::Connecting,
            AccountArg::Disconnected => Self::Disconnected,
            AccountArg::Missing => Self::Missing,
            AccountArg::NoPermission => Self::NoPermission,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the phones until SIGTERM; prints a line of JSON when they are ready.
    Phones {
        #[command(flatten)]
        dir: Dir,
        /// A phone and the macOS of its Mac: +15550100001=15 (12, 13, 14, 15, 26 or 27).
        #[arg(long = "phone", required = true)]
        phones: Vec<PhoneSpec>,
        /// Every delay is multiplied by this; 0 is at once.
        #[arg(long, default_value_t = 1.0)]
        speed: f64,
    },
    /// Lets a text arrive at a phone.
    Receive {
        #[command(flatten)]
        dir: Dir,
        /// The phone that receives it.
        #[arg(long)]
        phone: String,
        /// Who wrote it.
        #[arg(long)]
        from: String,
        /// What.
        #[arg(long)]
        text: String,
        /// Over which service.
        #[arg(long, default_value = "iMessage")]
        service: ServiceArg,
        /// The group that it was written to (chat…).
        #[arg(long)]
        group: Option<String>,
        /// Another member of that group.
        #[arg(long = "member")]
        members: Vec<String>,
        /// How many milliseconds its row stays without a chat.
        #[arg(long)]
        join_after_ms: Option<u64>,
    },
    /// Lets iCloud insert an old message: a second copy of one that is there (--copy-of), or one
    /// that was sent hours ago.
    Late {
        #[command(flatten)]
        dir: Dir,
        /// The phone.
        #[arg(long)]
        phone: String,
        /// The guid of the message to copy.
        #[arg(long, conflicts_with_all = ["from", "text"])]
        copy_of: Option<String>,
        /// Who wrote it.
        #[arg(long, required_unless_present = "copy_of")]
        from: Option<String>,
        /// What.
        #[arg(long, required_unless_present = "copy_of")]
        text: Option<String>,
        /// How old it is.
        #[arg(long, default_value_t = 14)]
        hours: i64,
    },
    /// Lets the recipient read an own message: the one of that guid, or the newest.
    #[command(alias = "mark-read")]
    Read {
        #[command(flatten)]
        dir: Dir,
        /// The phone that sent it.
        #[arg(long)]
        phone: String,
        /// Which.
        #[arg(long)]
        guid: Option<String>,
    },
    /// Lists what Messages was really asked to send, and took.
    Sends {
        #[command(flatten)]
        dir: Dir,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Counts instead of lists.
        #[arg(long)]
        count_by: Option<CountBy>,
        /// Only what reaches its recipient.
        #[arg(long)]
        reached: bool,
    },
    /// Changes how the account of a phone (or of all) is.
    Account {
        #[command(flatten)]
        dir: Dir,
        /// The phone; all if it is not named.
        #[arg(long)]
        phone: Option<String>,
        /// How it is from now on.
        #[arg(long)]
        status: AccountArg,
    },
    /// Lets Messages quit on a phone (or on all): osascript gets -600.
    QuitMessages {
        #[command(flatten)]
        dir: Dir,
        /// The phone; all if it is not named.
        #[arg(long)]
        phone: Option<String>,
    },
    /// Starts Messages again.
    StartMessages {
        #[command(flatten)]
        dir: Dir,
        /// The phone; all if it is not named.
        #[arg(long)]
        phone: Option<String>,
    },
    /// Shows the phones and how they are.
    List {
        #[command(flatten)]
        dir: Dir,
    },
    /// Ends the phones.
    Stop {
        #[command(flatten)]
        dir: Dir,
    },
    /// Prints which number has which outcome.
    Outcomes,
    /// Makes a large chat.db.
    Generate(generate::Settings),
}

/// Runs a command. `args` begins with the name that the program was called by.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = Cli::try_parse_from(args).unwrap_or_else(|error| error.exit());
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The exit code says it as well.
            writeln!(io::stderr().lock(), "switchboard-sandbox: {error:#}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Phones { dir: Dir { dir }, phones, speed } => {
            tracing_subscriber::fmt()
                .with_writer(io::stderr)
                .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                .init();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("cannot start the runtime")?;
            let result = runtime.block_on(daemon::run(&Settings { dir, phones, speed }));
            // Steps that are still to come are forgotten, as when a Mac is switched off.
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        }
        Command::Receive { dir, phone, from, text, service, group, members, join_after_ms } => {
            let service = service.into();
            ask(
                &dir.dir,
                &Request::Receive {
                    phone,
                    from,
                    text,
                    service,
                    group,
                    members,
                    age_ms: 0,
                    join_after_ms,
                },
            )
        }
        Command::Late { dir, phone, copy_of: Some(guid), .. } => {
            ask(&dir.dir, &Request::LateCopy { phone, guid })
        }
        Command::Late { dir, phone, copy_of: None, from, text, hours } => ask(
            &dir.dir,
            &Request::Receive {
                phone,
                from: from.context("--from is missing")?,
                text: text.context("--text is missing")?,
                service: Service::Imessage,
                group: None,
                members: Vec::new(),
                age_ms: hours.saturating_mul(3_600_000),
                join_after_ms: None,
            },
        ),
        Command::Read { dir, phone, guid } => ask(&dir.dir, &Request::Read { phone, guid }),
        Command::Sends { dir, json, count_by, reached } => sends(&dir.dir, json, count_by, reached),
        Command::Account { dir, phone, status } => {
            ask(&dir.dir, &Request::SetAccount { phone, account: status.into() })
        }
        Command::QuitMessages { dir, phone } => ask(&dir.dir, &Request::Quit { phone }),
        Command::StartMessages { dir, phone } => ask(&dir.dir, &Request::Start { phone }),
        Command::List { dir } => ask(&dir.dir, &Request::List),
        Command::Stop { dir } => ask(&dir.dir, &Request::Stop),
        Command::Outcomes => print(&outcome::table()),
        Command::Generate(settings) => generate::run(&settings),
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        // `| head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(error).context("cannot write"),
    }
}

fn ask(dir: &Path, request: &Request) -> anyhow::Result<()> {
    let mut client =
        Client::connect(dir).with_context(|| format!("no sandbox runs in {}", dir.display()))?;
    let reply = client.ask(request, Some(REPLY_TIMEOUT)).context("the sandbox did not answer")?;
    match reply {
        Reply::Done { value: Value::Null } => Ok(()),
        Reply::Done { value } => print(&format!("{value}\n")),
        Reply::Refused { message } => bail!(message),
        Reply::EventError { number, .. } => bail!("error {number}"),
        Reply::Hang => bail!("the sandbox hangs"),
    }
}

fn sends(dir: &Path, json: bool, by: Option<CountBy>, reached: bool) -> anyhow::Result<()> {
    let mut sends = truth::sends(dir)
        .with_context(|| format!("cannot read {} in {}", truth::SENDS, dir.display()))?;
    sends.retain(|send| send.reaches || !reached);
    let mut out = String::new();
    match (by, json) {
        (Some(by), true) => {
            out.push_str(&serde_json::to_string(&truth::count(&sends, by))?);
            out.push('\n');
        }
        (Some(by), false) => {
            for (key, count) in truth::count(&sends, by) {
                out.push_str(&format_row(&[&count.to_string(), &key]));
            }
        }
        (None, true) => {
            for send in &sends {
                out.push_str(&serde_json::to_string(send)?);
                out.push('\n');
            }
        }
        (None, false) => {
            for send in &sends {
                let service = send.service.as_str();
                out.push_str(&format_row(&[
                    &send.at,
                    &send.phone,
                    &send.to,
                    service,
                    &send.outcome,
                    &send.text,
                ]));
            }
        }
    }
    print(&out)
}

/// One line, tabs between, none inside.
fn format_row(fields: &[&str]) -> String {
    let fields: Vec<String> = fields.iter().map(|f| f.replace(['\n', '\t', '\r'], " ")).collect();
    let mut row = fields.join("\t");
    row.push('\n');
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chatdb::MacOs;

    #[test]
    fn the_commands_are_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_phone_is_a_number_and_a_macos() {
        for good in ["+15550100001=15", "+15550100001=26", "+15550100001"] {
            good.parse::<PhoneSpec>().expect(good);
        }
        for bad in ["15550100001=15", "+15550100001=16", "+1555=", ""] {
            assert!(bad.parse::<PhoneSpec>().is_err(), "{bad}");
        }
        assert_eq!("27".parse::<MacOs>().unwrap(), MacOs::V27);
    }
}
