//! The root helper: what only root may do about the network, and nothing else.
//!
//! Only an administrator may change the order of network services (facts: network fail-over, privileges), and a
//! supervisor is none. So a second, small program runs as root, listens on a socket of its own and knows two verbs. It runs one program by a fixed path, without a shell; every name that it hands on stands in the list
//! that this program has just printed itself; what it did, it reads back. One question a connection, one at a time.

use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Uid, chown};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::child::{self, RunError, Spec};
use crate::life::{Failed, Signals};
use crate::lines::{Line, Lines};
use crate::network::services::{self, Odd, SERVICES_MAX, Service};
use crate::pool::chain;

/// The longest question and answer: every name of the longest list, with room.
const LINE_MAX: usize = 64 * 1024;
/// A question comes at once, or not at all.
const QUESTION_WITHIN: Duration = Duration::from_secs(2);
/// The list is read from memory.
const LIST_WITHIN: Duration = Duration::from_secs(5);
/// An order is written to disk, and the system takes it.
const ORDER_WITHIN: Duration = Duration::from_secs(10);
/// The list once more before and after.
const ANSWER_WITHIN: Duration =
    ORDER_WITHIN.saturating_add(LIST_WITHIN).saturating_add(LIST_WITHIN);
/// What networksetup prints is some lines a service.
const PRINTED_BYTES_MAX: usize = 64 * 1024;
/// Connections that wait at once. There is one supervisor, which asks one thing at a time.
const CONNECTIONS_MAX: usize = 4;

/// What may be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
enum Question {
    /// The network services, in order.
    Services {},
    /// Puts them into another order; every one is named.
    Order {
        /// Their names.
        services: Vec<String>,
    },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// The services as they are now.
    Services(Vec<Service>),
    /// It was not done, for this reason.
    Refused(String),
}

/// Why a verb was not carried out.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// The program could not be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It says that it failed.
    #[error("networksetup said `{0}`")]
    Said(String),
    /// Its list is not one.
    #[error(transparent)]
    Odd(#[from] Odd),
    /// Another set of names than the services that there are.
    #[error("an order must name every network service once, by its exact name")]
    Names,
    /// The order is not what it was to become.
    #[error("networksetup did it, and the order is another one")]
    Other,
}

/// How the helper is started.
#[derive(Debug, Clone)]
pub struct HelperOptions {
    /// Where it listens.
    pub socket: PathBuf,
    /// Who may ask, besides root: the user whose supervisor it serves.
    pub uid: u32,
    /// The program that changes the order.
    pub networksetup: PathBuf,
}

/// Serves until TERM or INT.
pub async fn serve(options: HelperOptions) -> Result<(), Failed> {
    let mut signals = Signals::listen()?;
    let listener = listen(&options).await?;
    tracing::info!(socket = %options.socket.display(), uid = options.uid, "the root helper listens");
    let (tracker, closing) = (TaskTracker::new(), CancellationToken::new());
    let server = Server {
        networksetup: Arc::new(Mutex::new(options.networksetup)),
        uid: options.uid,
        tracker: tracker.clone(),
    };
    tokio::select! {
        () = server.accept(&listener, &closing) => {}
        () = signals.asked_to_end() => {}
    }
    closing.cancel();
    tracker.close();
    // An order that is half-way is carried out first.
    if tokio::time::timeout(ANSWER_WITHIN, tracker.wait()).await.is_err() {
        tracing::warn!("a question was still being answered");
    }
    if let Err(error) = std::fs::remove_file(&options.socket) {
        tracing::debug!(%error, "the socket is gone already");
    }
    Ok(())
}

/// Takes the place of a socket that a helper before has left, and of nothing else.
async fn listen(options: &HelperOptions) -> Result<UnixListener, Failed> {
    let socket = &options.socket;
    let at = format!("the socket {}", socket.display());
    match std::fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => {
            let message = format!("{at}: something else is there");
            return Err(Failed { status: 78, message });
        }
        Ok(_) if UnixStream::connect(socket).await.is_ok() => {
            return Err(Failed::temporary(format!("{at}: another helper listens there")));
        }
        Ok(_) => std::fs::remove_file(socket).map_err(|error| Failed::system(&at, &error))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failed::system(&at, &error)),
    }
    let listener = UnixListener::bind(socket).map_err(|error| Failed::system(&at, &error))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| Failed::system(&at, &error))?;
    chown(socket, Some(Uid::from_raw(options.uid)), None)
        .map_err(|error| Failed::system(&at, &error))?;
    Ok(listener)
}

/// Root could do it all without asking.
fn is_welcome(served: u32, asking: u32) -> bool {
    asking == served || asking == 0
}

#[derive(Debug, Clone)]
struct Server {
    /// Locked while it runs: one verb at a time.
    networksetup: Arc<Mutex<PathBuf>>,
    uid: u32,
    tracker: TaskTracker,
}

impl Server {
    async fn accept(&self, listener: &UnixListener, closing: &CancellationToken) {
        let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (server, closing) = (self.clone(), closing.clone());
            self.tracker.spawn(async move {
                server.answer(stream, &closing).await;
                drop(place);
            });
        }
    }

    async fn answer(&self, mut stream: UnixStream, closing: &CancellationToken) {
        // getpeereid on macOS, SO_PEERCRED on Linux.
        match stream.peer_cred() {
            Ok(peer) if is_welcome(self.uid, peer.uid()) => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "somebody else asked");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "who asks cannot be told");
                return;
            }
        }
        let (read, _) = stream.split();
        let mut lines = Lines::new(BufReader::new(read), LINE_MAX);
        let question = tokio::select! {
            () = closing.cancelled() => return,
            line = tokio::time::timeout(QUESTION_WITHIN, lines.next()) => line,
        };
        let question = match question {
            Ok(Ok(Some(Line::Whole(line)))) => serde_json::from_str::<Question>(&line),
            Ok(
                Ok(Some(Line::Cut { .. } | Line::TooLong { .. } | Line::NotText) | None) | Err(_),
            )
            | Err(_) => {
                tracing::debug!("a connection without a question");
                return;
            }
        };
        let answer = match question {
            Err(error) => Answer::Refused(format!("no question that is known: {error}")),
            Ok(question) => match self.perform(&question).await {
                Ok(services) => Answer::Services(services),
                Err(error) => {
                    tracing::error!(?question, error = chain(&error), "not done");
                    Answer::Refused(chain(&error))
                }
            },
        };
        let Ok(mut line) = serde_json::to_string(&answer) else { return };
        line.push('\n');
        if let Err(error) = stream.write_all(line.as_bytes()).await {
            tracing::debug!(%error, "nobody waits for the answer");
        }
    }

    async fn perform(&self, question: &Question) -> Result<Vec<Service>, Refused> {
        let program = self.networksetup.lock().await;
        let list = || self.list(&program);
        match question {
            Question::Services {} => list().await,
            Question::Order { services: wanted } => {
                let before = services::names(&list().await?);
                // The names are the system's own words for what there is: nothing else reaches the program.
                if wanted.len() > SERVICES_MAX || !services::same_names(&before, wanted) {
                    return Err(Refused::Names);
                }
                let args = std::iter::once("-ordernetworkservices")
                    .chain(wanted.iter().map(String::as_str));
                self.run(&program, args, ORDER_WITHIN).await?;
                tracing::info!(?before, now = ?wanted, "the order of network services was changed");
                let after = list().await?;
                if services::names(&after) == *wanted { Ok(after) } else { Err(Refused::Other) }
            }
        }
    }

    async fn list(&self, program: &Path) -> Result<Vec<Service>, Refused> {
        let text = self.run(program, ["-listnetworkserviceorder"], LIST_WITHIN).await?;
        Ok(services::parse(&text)?)
    }

    async fn run<'a>(
        &self,
        program: &Path,
        args: impl IntoIterator<Item = &'a str>,
        within: Duration,
    ) -> Result<String, Refused> {
        let spec = Spec {
            program: program.to_owned(),
            args: args.into_iter().map(OsString::from).collect(),
            directory: PathBuf::from("/"),
            name: "networksetup".to_owned(),
            line_max: LINE_MAX,
            voice: child::Voice::Bridge,
        };
        let printed = child::run(&spec, within, PRINTED_BYTES_MAX, &self.tracker).await?;
        // Unverified: whether every failure has an exit status. The word stands in what it prints.
        let error = printed.text.lines().find(|line| line.starts_with("** Error"));
        match error {
            None if printed.status.success() => Ok(printed.text),
            said => {
                let said = said.map(str::to_owned).or(printed.complaint);
                Err(Refused::Said(said.unwrap_or_else(|| printed.status.to_string())))
            }
        }
    }
}

/// Why the helper gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperError {
    /// Nobody listens.
    #[error("the root helper at {} cannot be asked", socket.display())]
    Connect {
        /// Where it should.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Who listens is neither root nor ourselves.
    #[error("who listens at {} is user {uid}, not root", socket.display())]
    Stranger {
        /// Where.
        socket: PathBuf,
        /// Who.
        uid: u32,
    },
    /// It went away, or said what is no answer.
    #[error("the root helper gave no answer")]
    NoAnswer,
    /// It did not do it.
    #[error("the root helper refused: {0}")]
    Refused(String),
}

/// Asks the helper.
#[derive(Debug, Clone)]
pub(crate) struct Helper {
    socket: PathBuf,
}

impl Helper {
    /// The one that listens there.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The network services, in order.
    pub(crate) async fn services(&self) -> Result<Vec<Service>, HelperError> {
        self.ask(&Question::Services {}).await
    }

    /// Puts them into another order, and says what it is then.
    pub(crate) async fn order(&self, wanted: &[String]) -> Result<Vec<Service>, HelperError> {
        self.ask(&Question::Order { services: wanted.to_vec() }).await
    }

    async fn ask(&self, question: &Question) -> Result<Vec<Service>, HelperError> {
        let asked = tokio::time::timeout(ANSWER_WITHIN + QUESTION_WITHIN, self.exchange(question));
        match asked.await.unwrap_or(Err(HelperError::NoAnswer))? {
            Answer::Services(services) => Ok(services),
            Answer::Refused(why) => Err(HelperError::Refused(why)),
        }
    }

    async fn exchange(&self, question: &Question) -> Result<Answer, HelperError> {
        let failed = |source| HelperError::Connect { socket: self.socket.clone(), source };
        let mut stream = UnixStream::connect(&self.socket).await.map_err(failed)?;
        let uid = stream.peer_cred().map_err(failed)?.uid();
        if uid != 0 && uid != Uid::current().as_raw() {
            return Err(HelperError::Stranger { socket: self.socket.clone(), uid });
        }
        let mut line = serde_json::to_string(question).map_err(|_never| HelperError::NoAnswer)?;
        line.push('\n');
        stream.write_all(line.as_bytes()).await.map_err(failed)?;
        let mut lines = Lines::new(BufReader::new(stream), LINE_MAX);
        match lines.next().await {
            Ok(Some(Line::Whole(line))) => {
                serde_json::from_str(&line).map_err(|_odd| HelperError::NoAnswer)
            }
            Ok(Some(Line::Cut { .. } | Line::TooLong { .. } | Line::NotText) | None) | Err(_) => {
                Err(HelperError::NoAnswer)
            }
        }
    }
}

#[cfg(test)]
#[path = "helper_tests.rs"]
pub(crate) mod tests;
