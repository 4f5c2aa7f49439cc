//! What is said on `DIR/messages.sock`: JSON lines, one request, one reply, as often as wanted.

pub mod rows;

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The socket's name in the sandbox's folder.
pub const SOCKET: &str = "messages.sock";

/// Longest line. A text of 20,000 characters has at most 80 KB, escaped at most six times that.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;

/// How the iMessage account of a phone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Account {
    /// Signed in.
    Connected,
    /// Not yet.
    Connecting,
    /// Signed out or without network.
    Disconnected,
    /// There is no account: a script that names it gets -2753.
    Missing,
    /// Automation is not granted: every Apple event gets -1743.
    NoPermission,
}

/// What makes a Messages that hangs answer again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Cure {
    /// It still quits when it is asked to.
    Quit,
    /// TERM.
    Term,
    /// It refuses TERM.
    Kill,
    /// Opened anew it hangs again, until its agents were ended as well.
    Agents,
    /// Nothing.
    Never,
}

/// What is asked of the sandbox, by osascript and by the control commands. A phone is named by
/// its number, with or without `+`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// osascript: is there an account of this service?
    Account {
        /// The phone.
        phone: String,
        /// As the script names it.
        service: String,
    },
    /// osascript: the account's connection status.
    ConnectionStatus {
        /// The phone.
        phone: String,
        /// As the script names it.
        service: String,
    },
    /// osascript: how many accounts?
    CountAccounts {
        /// The phone.
        phone: String,
    },
    /// osascript: does Messages run? It does not hear of this itself.
    IsRunning {
        /// The phone.
        phone: String,
    },
    /// osascript: quit.
    AskToQuit {
        /// The phone.
        phone: String,
    },
    /// osascript: close all windows.
    CloseWindows {
        /// The phone.
        phone: String,
    },
    /// pgrep: which processes are there?
    Processes {
        /// The phone.
        phone: String,
    },
    /// kill: end a process.
    Signal {
        /// The phone.
        phone: String,
        /// Which.
        pid: u32,
        /// KILL instead of TERM.
        kill: bool,
    },
    /// From now on Messages hangs: no Apple event is answered.
    Hang {
        /// The phone.
        phone: Option<String>,
        /// Until this was done.
        until: Cure,
    },
    /// osascript: send to an address.
    Send {
        /// The phone.
        phone: String,
        /// As the script names it.
        service: String,
        /// The address.
        to: String,
        /// The text; empty with a file.
        text: String,
        /// The path of a file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
    },
    /// osascript: is there a chat of this guid?
    Chat {
        /// The phone.
        phone: String,
        /// The chat's guid.
        chat: String,
    },
    /// osascript: send into a chat.
    SendToChat {
        /// The phone.
        phone: String,
        /// The chat's guid.
        chat: String,
        /// The text; empty with a file.
        text: String,
        /// The path of a file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
    },
    /// A message arrives from outside.
    Receive(rows::Receive),
    /// Somebody reacts to a message.
    React(rows::React),
    /// A message is edited.
    Edit(rows::Edit),
    /// A message or a part of it is unsent.
    Unsend(rows::Unsend),
    /// A group changes.
    Group(rows::Group),
    /// A file is downloaded.
    FinishAttachment(rows::FinishAttachment),
    /// A Send Later message is written, or sent.
    Schedule(rows::ScheduleMessage),
    /// A message goes to Recently Deleted, or comes back.
    Delete(rows::Delete),
    /// Opens chat.db anew, because another file was put in its place.
    Reopen {
        /// The phone.
        phone: Option<String>,
    },
    /// iCloud inserts a second copy of a message, with the old date and a new guid.
    LateCopy {
        /// The phone.
        phone: String,
        /// The message to copy.
        guid: String,
    },
    /// The recipient reads an own message.
    Read {
        /// The phone.
        phone: String,
        /// Which; the newest sent one if it is not named.
        guid: Option<String>,
    },
    /// Changes the account of one phone or of all.
    SetAccount {
        /// The phone.
        phone: Option<String>,
        /// How it is from now on.
        account: Account,
    },
    /// Messages quits on one phone or on all: Apple events get -600.
    Quit {
        /// The phone.
        phone: Option<String>,
    },
    /// Messages starts again.
    Start {
        /// The phone.
        phone: Option<String>,
    },
    /// The phones and how they are.
    List,
    /// Ends the sandbox.
    Stop,
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done, with what was asked for.
    Done {
        /// The answer.
        #[serde(default)]
        value: Value,
    },
    /// The Apple event failed.
    EventError {
        /// Such as -1728.
        number: i32,
        /// The sentence, if Apple's usual one will not do.
        message: Option<String>,
    },
    /// osascript is to hang. The phone takes no further Apple event until this connection ends.
    Hang,
    /// A control command could not be carried out.
    Refused {
        /// Why.
        message: String,
    },
}

/// A connection to the sandbox, blocking: osascript must start in milliseconds, so it has no
/// runtime, and the control commands need none.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the sandbox in this folder.
    pub fn connect(dir: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket_path(dir))?;
        let lines = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, lines })
    }

    /// One request and its reply. `timeout` bounds the wait for the reply.
    pub fn ask(&mut self, request: &Request, timeout: Option<Duration>) -> io::Result<Reply> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.write_all(&line)?;
        // Zero is not a timeout that the system accepts.
        let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
        self.stream.set_read_timeout(timeout)?;
        let mut reply = String::new();
        if self.lines.read_line(&mut reply)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&reply)?)
    }
}

/// Where the socket of a folder is.
pub fn socket_path(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_are_plain_json() {
        let send = Request::Send {
            phone: "15550100001".into(),
            service: "iMessage".into(),
            to: "+12025550100".into(),
            text: "a \"b\"".into(),
            file: None,
        };
        let line = serde_json::to_string(&send).unwrap();
        assert_eq!(
            line,
            r#"{"ask":"send","phone":"15550100001","service":"iMessage","to":"+12025550100","text":"a \"b\""}"#
        );
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), send);
        let reply: Reply =
            serde_json::from_str(r#"{"reply":"event_error","number":-1728}"#).unwrap();
        assert_eq!(reply, Reply::EventError { number: -1728, message: None });
        assert!(serde_json::from_str::<Request>(r#"{"ask":"read","phone":"1","more":1}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"ask":"fly"}"#).is_err());
        let receive = r#"{"ask":"receive","phone":"1","from":"2","text":"t","service":"rcs"}"#;
        let Request::Receive(receive) = serde_json::from_str(receive).unwrap() else { panic!() };
        assert_eq!(receive.service.as_str(), "rcs");
        let more = r#"{"ask":"edit","phone":"1","guid":"G","text":"t","more":1}"#;
        assert!(serde_json::from_str::<Request>(more).is_err());
        let group = r#"{"ask":"group","phone":"1","group":"chat5","change":"rename","title":"t"}"#;
        let parsed: Request = serde_json::from_str(group).unwrap();
        let line = serde_json::to_string(&parsed).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), parsed);
    }

    #[test]
    fn the_longest_text_fits_a_line() {
        // Control characters are the worst: six bytes each in JSON.
        let text = "\u{1}".repeat(20_000);
        let send = Request::SendToChat { phone: "1".into(), chat: "c".into(), text, file: None };
        assert!(serde_json::to_vec(&send).unwrap().len() < LINE_BYTES_MAX);
    }
}
