//! The sandbox as osascript: a script on stdin or in a file, arguments, one reply.
//!
//! Started as `DIR/<number>/osascript`, a symbolic link to the sandbox. The folder names the
//! phone, and `DIR/messages.sock` is its Messages. No runtime and no argument parser: this is a
//! program that must start in a few milliseconds.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::applescript::{self, Content, EventError, Messages};
use crate::socket::{Client, Reply, Request};

/// What AppleScript waits for an Apple event when the script does not say.
const EVENT_TIMEOUT: Duration = Duration::from_mins(2);

/// The largest script that is read. Real ones have less than 4 KiB.
const SCRIPT_BYTES_MAX: u64 = 1024 * 1024;

/// Whether this is how the program was called.
pub fn is_called(argv0: &Path) -> bool {
    argv0.file_name().is_some_and(|name| name == "osascript")
}

/// Runs as osascript. `args` begins with the name that the program was called by.
pub fn main(args: &[OsString]) -> ExitCode {
    let mut stderr = io::stderr().lock();
    let (prefix, error) = match run(args) {
        Ok(Some(result)) => {
            let mut stdout = io::stdout().lock();
            // Nobody reads: nothing to be done about it, as in the real one.
            return match writeln!(stdout, "{result}").and_then(|()| stdout.flush()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        Ok(None) => return ExitCode::SUCCESS,
        Err(Failed::Script { file, error }) => (format!("{file}:"), error.to_string()),
        Err(Failed::Usage(message)) => ("osascript: ".to_owned(), message),
    };
    // The exit code says it as well.
    writeln!(stderr, "{prefix}{error}").map_or(ExitCode::FAILURE, |()| ExitCode::FAILURE)
}

enum Failed {
    Usage(String),
    Script { file: String, error: applescript::ScriptError },
}

fn run(args: &[OsString]) -> Result<Option<String>, Failed> {
    let usage = |message: &str| Failed::Usage(message.to_owned());
    let mut args = args.iter();
    let argv0 = args.next().map(PathBuf::from).unwrap_or_default();
    let mut rest: Vec<String> = Vec::new();
    for arg in args {
        rest.push(arg.to_str().ok_or_else(|| usage("an argument is not UTF-8"))?.to_owned());
    }
    let mut rest = rest.into_iter().peekable();
    let mut script: Option<(String, String)> = None;
    while let Some(option) = rest.next_if(|arg| arg.starts_with('-') && arg != "-") {
        match option.as_str() {
            "-l" => match rest.next().as_deref() {
                Some("AppleScript") => {}
                Some(_) | None => return Err(usage("only AppleScript is spoken here")),
            },
            "-e" => {
                let line = rest.next().ok_or_else(|| usage("option requires an argument -- e"))?;
                let (_, script) = script.get_or_insert_with(|| ("-e".to_owned(), String::new()));
                script.push_str(&line);
                script.push('\n');
            }
            "--" => break,
            other => return Err(Failed::Usage(format!("illegal option {other}"))),
        }
    }
    let (file, script) = if let Some(given) = script {
        given
    } else {
        let file = rest.next().unwrap_or_else(|| "-".to_owned());
        let script = read_script(&file)
            .map_err(|error| Failed::Usage(format!("couldn’t read “{file}”: {error}")))?;
        (file, script)
    };
    let argv: Vec<String> = rest.collect();
    let phone = phone_folder(&argv0)
        .ok_or_else(|| usage("the sandbox’s osascript is called by its path, DIR/<number>/…"))?;
    let mut remote = Remote { phone, client: None };
    applescript::run(&script, &argv, &mut remote).map_err(|error| Failed::Script { file, error })
}

fn read_script(file: &str) -> io::Result<String> {
    let mut script = String::new();
    if file == "-" {
        io::stdin().lock().take(SCRIPT_BYTES_MAX).read_to_string(&mut script)?;
    } else {
        std::fs::File::open(file)?.take(SCRIPT_BYTES_MAX).read_to_string(&mut script)?;
    }
    Ok(script)
}

/// `DIR/<number>`. A name without a folder was found through PATH.
pub(crate) fn phone_folder(argv0: &Path) -> Option<PathBuf> {
    let folder = match argv0.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        Some(_) | None => std::env::split_paths(&std::env::var_os("PATH")?)
            .find(|folder| folder.join(argv0).is_file())?,
    };
    std::path::absolute(folder).ok()
}

/// Messages, at the other end of the socket.
struct Remote {
    phone: PathBuf,
    client: Option<Client>,
}

impl Remote {
    fn number(&self) -> String {
        self.phone.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn ask(&mut self, request: &Request, timeout_s: Option<u64>) -> Result<Value, EventError> {
        let timeout = timeout_s.map_or(EVENT_TIMEOUT, Duration::from_secs);
        let mut client = if let Some(client) = self.client.take() {
            client
        } else {
            let dir = self.phone.parent().unwrap_or(&self.phone);
            // Whatever the reason (it goes into the sentence): nobody is there.
            Client::connect(dir).map_err(|error| {
                let message = format!("Application isn’t running. [{error}]");
                EventError { number: -600, message }
            })?
        };
        match client.ask(request, Some(timeout)) {
            Ok(Reply::Done { value }) => {
                self.client = Some(client);
                Ok(value)
            }
            Ok(Reply::EventError { number, message }) => {
                let usual = EventError::new(number);
                Err(message.map_or(usual, |message| EventError { number, message }))
            }
            // Until somebody kills this process. `client` stays open, so the phone stays blocked.
            Ok(Reply::Hang) => loop {
                std::thread::park();
            },
            Ok(Reply::Refused { message }) => Err(EventError { number: -10_000, message }),
            Err(error) => {
                let late = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
                // Otherwise it was there and is gone: what it did with the event nobody knows.
                Err(EventError::new(if late.contains(&error.kind()) { -1712 } else { -609 }))
            }
        }
    }
}

fn parted(content: Content<'_>) -> (String, Option<String>) {
    match content {
        Content::Text(text) => (text.to_owned(), None),
        Content::File(path) => (String::new(), Some(path.to_owned())),
    }
}

impl Messages for Remote {
    fn account(&mut self, service: &str, timeout_s: Option<u64>) -> Result<(), EventError> {
        let request = Request::Account { phone: self.number(), service: service.to_owned() };
        self.ask(&request, timeout_s).map(drop)
    }

    fn connection_status(
        &mut self,
        service: &str,
        timeout_s: Option<u64>,
    ) -> Result<String, EventError> {
        let request =
            Request::ConnectionStatus { phone: self.number(), service: service.to_owned() };
        let value = self.ask(&request, timeout_s)?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    }

    fn count_accounts(&mut self, timeout_s: Option<u64>) -> Result<i64, EventError> {
        let value = self.ask(&Request::CountAccounts { phone: self.number() }, timeout_s)?;
        Ok(value.as_i64().unwrap_or_default())
    }

    fn is_running(&mut self) -> bool {
        // The system's own question: Messages hears nothing of it, so one that hangs runs as well.
        self.ask(&Request::IsRunning { phone: self.number() }, Some(5)) == Ok(Value::Bool(true))
    }

    fn quit(&mut self, timeout_s: Option<u64>) -> Result<(), EventError> {
        self.ask(&Request::AskToQuit { phone: self.number() }, timeout_s).map(drop)
    }

    fn close_windows(&mut self, timeout_s: Option<u64>) -> Result<(), EventError> {
        self.ask(&Request::CloseWindows { phone: self.number() }, timeout_s).map(drop)
    }

    fn is_file(&mut self, path: &str) -> bool {
        Path::new(path).is_file()
    }

    fn chat(&mut self, guid: &str, timeout_s: Option<u64>) -> Result<(), EventError> {
        let request = Request::Chat { phone: self.number(), chat: guid.to_owned() };
        self.ask(&request, timeout_s).map(drop)
    }

    fn send_to_participant(
        &mut self,
        service: &str,
        address: &str,
        content: Content<'_>,
        timeout_s: Option<u64>,
    ) -> Result<(), EventError> {
        let (text, file) = parted(content);
        let request = Request::Send {
            phone: self.number(),
            service: service.to_owned(),
            to: address.to_owned(),
            text,
            file,
        };
        self.ask(&request, timeout_s).map(drop)
    }

    fn send_to_chat(
        &mut self,
        guid: &str,
        content: Content<'_>,
        timeout_s: Option<u64>,
    ) -> Result<(), EventError> {
        let (text, file) = parted(content);
        let request =
            Request::SendToChat { phone: self.number(), chat: guid.to_owned(), text, file };
        self.ask(&request, timeout_s).map(drop)
    }

    fn log(&mut self, line: &str) {
        let mut stderr = io::stderr().lock();
        // `log` has nowhere to report that stderr is closed.
        writeln!(stderr, "{line}").unwrap_or_default();
    }
}
