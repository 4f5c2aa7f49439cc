//! The process behind the phones: listens on the socket until it is told to stop.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::socket::{LINE_BYTES_MAX, Reply, Request, socket_path};
use crate::world::{Outcome, PhoneSpec, World};

/// Longest path of a Unix socket, as macOS has it; Linux has four bytes more.
const SOCKET_PATH_BYTES_MAX: usize = 103;

/// What `phones` was told.
#[derive(Debug)]
pub struct Settings {
    /// The sandbox's folder.
    pub dir: PathBuf,
    /// The phones.
    pub phones: Vec<PhoneSpec>,
    /// Every delay is multiplied by this; 0 is at once.
    pub speed: f64,
}

/// Runs until SIGTERM, SIGINT or the request to stop. Prints a line when it listens.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    if !(0.0..=1_000.0).contains(&settings.speed) {
        bail!("--speed is a factor from 0 (at once) to 1000");
    }
    std::fs::create_dir_all(&settings.dir)
        .with_context(|| format!("cannot make {}", settings.dir.display()))?;
    let dir = std::fs::canonicalize(&settings.dir)
        .with_context(|| format!("cannot find {}", settings.dir.display()))?;
    let lock = std::fs::File::create(dir.join("messages.lock")).context("cannot make the lock")?;
    if lock.try_lock().is_err() {
        bail!("another sandbox runs in {}", dir.display());
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let tasks = TaskTracker::new();
    let world = World::open(&dir, &settings.phones, settings.speed, &program, tasks.clone())?;
    let world = Arc::new(world);
    let listener = listen(&dir)?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    ready(&world)?;
    let stop = CancellationToken::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let connection = serve(stream, Arc::clone(&world), stop.clone());
                    drop(tasks.spawn(stop.clone().run_until_cancelled_owned(connection)));
                }
                Err(error) => {
                    // Out of file descriptors, mostly. Connections that end give some back.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = stop.cancelled() => break,
        }
    }
    info!("stopping");
    stop.cancel();
    match std::fs::remove_file(socket_path(&dir)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("cannot remove the socket"),
    }
}

fn listen(dir: &Path) -> anyhow::Result<UnixListener> {
    let path = socket_path(dir);
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        bail!("{} is too long for a socket; choose a shorter folder", path.display());
    }
    // The lock says that nobody listens there any more.
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("cannot remove the old socket"),
    }
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .context("cannot protect the socket")?;
    Ok(listener)
}

fn ready(world: &World) -> anyhow::Result<()> {
    let mut line = world.list();
    if let Some(line) = line.as_object_mut() {
        line.insert("type".to_owned(), Value::from("ready"));
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .context("cannot say that the phones are ready")
}

/// One connection: requests and replies until it ends.
async fn serve(stream: UnixStream, world: Arc<World>, stop: CancellationToken) {
    if let Err(error) = try_serve(stream, &world, &stop).await {
        // A killed osascript ends its connection in the middle; that is what it is for.
        info!(%error, "a connection ended");
    }
}

async fn try_serve(
    stream: UnixStream,
    world: &Arc<World>,
    stop: &CancellationToken,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let max = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
    loop {
        let mut line = Vec::new();
        if (&mut read).take(max).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let outcome = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => world.handle(request).await,
            Err(error) => Outcome::Reply(Reply::Refused { message: error.to_string() }),
        };
        match outcome {
            Outcome::Reply(reply) => say(&mut write, &reply).await?,
            Outcome::Hang(turn) => {
                say(&mut write, &Reply::Hang).await?;
                // Nothing more comes from a hanging osascript but its end.
                let mut byte = [0];
                while read.read(&mut byte).await? > 0 {}
                drop(turn);
                return Ok(());
            }
            Outcome::Stop => {
                say(&mut write, &Reply::Done { value: Value::Null }).await?;
                stop.cancel();
                return Ok(());
            }
        }
    }
}

async fn say(write: &mut (impl tokio::io::AsyncWrite + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}
