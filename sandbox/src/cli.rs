//! The commands.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::chatdb::kinds::RowService;
use crate::daemon::{self, Settings};
use crate::faults;
use crate::generate;
use crate::outcome;
use crate::socket::{Account, Client, Cure, Reply, Request, rows};
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
    /// Lets a message arrive at a phone, from outside or from another device of its owner.
    Receive {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        ask: rows::Receive,
    },
    /// Lets somebody react to a message, or take it back.
    React {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        ask: rows::React,
    },
    /// Edits a message.
    Edit {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        ask: rows::Edit,
    },
    /// Unsends a message, or a part of it.
    Unsend {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        ask: rows::Unsend,
    },
    /// Changes a group.
    Group {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        ask: rows::Group,
    },
    /// Lets a file arrive that was not downloaded yet (receive --attach-pending).
    FinishAttachment {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        ask: rows::FinishAttachment,
    },
    /// Writes a Send Later message, or says what became of one.
    Schedule {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        ask: rows::ScheduleMessage,
    },
    /// Moves a message to Recently Deleted, or back.
    Delete {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        ask: rows::Delete,
    },
    /// Lets the phones open their chat.db anew, after another file was put in its place.
    Reopen {
        #[command(flatten)]
        dir: Dir,
        /// The phone; all if it is not named.
        #[arg(long)]
        phone: Option<String>,
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
    /// Lets Messages hang: no Apple event is answered.
    HangMessages {
        #[command(flatten)]
        dir: Dir,
        /// The phone; all if it is not named.
        #[arg(long)]
        phone: Option<String>,
        /// What makes it answer again.
        #[arg(long)]
        until: Cure,
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
    /// Copies a chat.db into a new file with other row numbers, and puts it in its place.
    Rebuild(faults::Rebuild),
    /// Copies a chat.db, with what is in its WAL.
    Backup(faults::Backup),
    /// Puts a copy in the place of a chat.db: its row numbers jump back.
    Restore(faults::Restore),
    /// Holds a lock on a chat.db.
    HoldLock(faults::HoldLock),
    /// Writes and checkpoints a chat.db all the time.
    CheckpointStorm(faults::CheckpointStorm),
    /// Deletes the WAL of a chat.db and makes it anew.
    RecreateWal(faults::RecreateWal),
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
        Command::Receive { dir, mut ask } => {
            for file in &mut ask.attach {
                *file = absolute(file)?;
            }
            self::ask(&dir.dir, &Request::Receive(ask))
        }
        Command::React { dir, mut ask } => {
            if let Some(file) = &mut ask.sticker {
                *file = absolute(file)?;
            }
            self::ask(&dir.dir, &Request::React(ask))
        }
        Command::Edit { dir, ask } => self::ask(&dir.dir, &Request::Edit(ask)),
        Command::Unsend { dir, ask } => self::ask(&dir.dir, &Request::Unsend(ask)),
        Command::Group { dir, ask } => self::ask(&dir.dir, &Request::Group(ask)),
        Command::FinishAttachment { dir, ask } => {
            self::ask(&dir.dir, &Request::FinishAttachment(ask))
        }
        Command::Schedule { dir, ask } => self::ask(&dir.dir, &Request::Schedule(ask)),
        Command::Delete { dir, ask } => self::ask(&dir.dir, &Request::Delete(ask)),
        Command::Reopen { dir, phone } => ask(&dir.dir, &Request::Reopen { phone }),
        Command::Late { dir, phone, copy_of: Some(guid), .. } => {
            ask(&dir.dir, &Request::LateCopy { phone, guid })
        }
        Command::Late { dir, phone, copy_of: None, from, text, hours } => ask(
            &dir.dir,
            &Request::Receive(rows::Receive {
                phone,
                from: from.context("--from is missing")?,
                text: text.context("--text is missing")?,
                service: RowService::Imessage,
                group: None,
                members: Vec::new(),
                age_ms: hours.saturating_mul(3_600_000),
                join_after_ms: None,
                text_after_ms: None,
                attach: Vec::new(),
                attach_pending: false,
                reply_to: None,
                effect: None,
                mentions: Vec::new(),
                own: false,
                preview: None,
                said: None,
                no_chat: false,
            }),
        ),
        Command::Read { dir, phone, guid } => ask(&dir.dir, &Request::Read { phone, guid }),
        Command::Sends { dir, json, count_by, reached } => sends(&dir.dir, json, count_by, reached),
        Command::Account { dir, phone, status } => {
            ask(&dir.dir, &Request::SetAccount { phone, account: status.into() })
        }
        Command::QuitMessages { dir, phone } => ask(&dir.dir, &Request::Quit { phone }),
        Command::StartMessages { dir, phone } => ask(&dir.dir, &Request::Start { phone }),
        Command::HangMessages { dir, phone, until } => {
            ask(&dir.dir, &Request::Hang { phone, until })
        }
        Command::List { dir } => ask(&dir.dir, &Request::List),
        Command::Stop { dir } => ask(&dir.dir, &Request::Stop),
        Command::Outcomes => print(&outcome::table()),
        Command::Generate(settings) => generate::run(&settings),
        Command::Rebuild(fault) => print(&format!("{}\n", faults::rebuild(&fault)?)),
        Command::Backup(fault) => faults::backup(&fault),
        Command::Restore(fault) => faults::restore(&fault),
        Command::HoldLock(fault) => faults::hold_lock(&fault),
        Command::CheckpointStorm(fault) => {
            print(&format!("{}\n", faults::checkpoint_storm(&fault)?))
        }
        Command::RecreateWal(fault) => faults::recreate_wal(&fault),
    }
}

/// A file as the sandbox's process finds it, which runs in another folder.
fn absolute(file: &Path) -> anyhow::Result<PathBuf> {
    std::fs::canonicalize(file).with_context(|| format!("there is no file {}", file.display()))
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
