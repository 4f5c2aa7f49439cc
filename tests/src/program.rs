//! Real programs: started in a process group of their own, killed with everything they started.

use std::fs::{File, OpenOptions};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// A running program. Dropping it kills its process group.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
}

/// The folder that the workspace's programs were built into: where this program itself lies.
pub fn bin_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    let dir = own.parent().context("own folder")?;
    Ok(if dir.ends_with("deps") {
        dir.parent().context("target folder")?.to_owned()
    } else {
        dir.to_owned()
    })
}

/// Path of one of the workspace's programs.
pub fn path_of(name: &str) -> Result<PathBuf> {
    let path = bin_dir()?.join(name);
    if !path.exists() {
        bail!("{} is not built: run `cargo build --workspace --bins` first", path.display());
    }
    Ok(path)
}

/// A command that is ready to be started.
fn command(path: &Path) -> Command {
    #[expect(clippy::disallowed_methods, reason = "this harness is where stories start programs")]
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    command
}

/// Runs one of the workspace's programs to its end and gives what it wrote to stdout.
pub fn run(name: &str, args: &[&str], env: &[(&str, &str)]) -> Result<String> {
    let output = command(&path_of(name)?)
        .args(args)
        .envs(env.iter().copied())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} {} ended with {}: {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    String::from_utf8(output.stdout).context("output is not UTF-8")
}

/// Runs one of the workspace's programs to its end, however that is, and gives its exit code and what
/// it wrote to stdout.
pub fn outcome(name: &str, args: &[&str]) -> Result<(Option<i32>, String)> {
    let output = command(&path_of(name)?)
        .args(args)
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    let text = String::from_utf8(output.stdout).context("output is not UTF-8")?;
    Ok((output.status.code(), text))
}

/// How a program that is none of ours ended: its exit code and what it wrote.
#[derive(Debug)]
pub struct Ended {
    /// None when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to stdout.
    pub out: String,
    /// What it wrote to stderr.
    pub err: String,
}

/// Runs any program to its end, with nothing in its environment but `env`.
pub fn foreign(path: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Ended> {
    let output = command(path)
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .with_context(|| format!("cannot start {}", path.display()))?;
    let text = |bytes| String::from_utf8(bytes).context("output is not UTF-8");
    Ok(Ended { code: output.status.code(), out: text(output.stdout)?, err: text(output.stderr)? })
}

impl Program {
    /// Starts one of the workspace's programs; both its outputs are appended to `log`.
    pub fn start(name: &str, args: &[&str], env: &[(&str, &str)], log: &Path) -> Result<Self> {
        Self::start_at(&path_of(name)?, args, env, log)
    }

    /// Starts any program; both its outputs are appended to `log`.
    pub fn start_at(path: &Path, args: &[&str], env: &[(&str, &str)], log: &Path) -> Result<Self> {
        let log = append(log)?;
        let child = command(path)
            .args(args)
            .envs(env.iter().copied())
            .stdout(log.try_clone().context("log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        Ok(Self { name: path.display().to_string(), child })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a chance to tidy up: this process alone, as a crash would.
    pub fn crash(mut self) -> Result<()> {
        self.child.kill().context("kill")?;
        self.child.wait().context("wait")?;
        Ok(())
    }

    /// Asks it to stop and waits; after `within` it is killed and that is an error.
    pub async fn stop(mut self, within: Duration) -> Result<ExitStatus> {
        kill(pid(self.child.id())?, Signal::SIGTERM).context("SIGTERM")?;
        let until = tokio::time::Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().context("wait")? {
                return Ok(status);
            }
            if tokio::time::Instant::now() >= until {
                bail!("{} did not stop within {within:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Fails when it has already ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("wait")? {
            Some(status) => match status.signal() {
                Some(signal) => bail!("{} was ended by signal {signal}", self.name),
                None => bail!("{} ended by itself with {status}", self.name),
            },
            None => Ok(()),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let Ok(group) = pid(self.child.id()) else { return };
        // Errors mean that the group is gone already, which is what is wanted.
        killpg(group, Signal::SIGKILL).unwrap_or_default();
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

fn pid(id: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(id).context("process id")?))
}

/// Kills one process by its id, as a crash would.
pub fn crash_pid(id: u32) -> Result<()> {
    kill(pid(id)?, Signal::SIGKILL).with_context(|| format!("SIGKILL to {id}"))
}

/// Where a program of this name lies, by `PATH`; none where it is not installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Seconds that a process has had of the processors, its threads included; none where it has ended, or where there is
/// no `/proc`.
pub fn cpu_seconds(id: u32) -> Option<f64> {
    /// Ticks of `/proc/PID/stat` in a second; Linux has had 100 for ever.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name may hold spaces; what follows its bracket does not.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    // utime and stime: the 14th and 15th field, of which two stand before the bracket.
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_A_SECOND)
}

/// Stops one process in its tracks, as a debugger or a starved machine does, or lets it go on.
pub fn freeze_pid(id: u32, frozen: bool) -> Result<()> {
    let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
    kill(pid(id)?, signal).with_context(|| format!("{signal} to {id}"))
}

/// What serves a phone, be it a stand-in.
const BRIDGES: [&str; 2] = ["switchboard-bridge", "switchboard-load-child"];

/// Ids of the running bridges whose configuration lies below `dir`, with their command lines.
pub fn bridges(dir: &Path) -> Result<Vec<(u32, String)>> {
    let below = dir.display().to_string();
    let mut running = processes()?;
    let is_bridge = |line: &str| BRIDGES.iter().any(|name| line.contains(name));
    running.retain(|(_, line)| is_bridge(line) && line.contains(&below));
    Ok(running)
}

/// Kills every bridge whose configuration lies below `dir`, as a machine that loses its power would.
pub fn crash_bridges(dir: &Path) -> Result<()> {
    for (id, _) in bridges(dir)? {
        // It may have ended by itself meanwhile: its supervisor is gone.
        crash_pid(id).unwrap_or_default();
    }
    Ok(())
}

/// Every process with its command line: from /proc where there is one, else from ps.
fn processes() -> Result<Vec<(u32, String)>> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return listed_by_ps() };
    let mut running = Vec::new();
    for entry in entries {
        let entry = entry.context("/proc")?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile, and a zombie has no command line: neither runs.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if !line.is_empty() {
            running.push((id, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    Ok(running)
}

fn listed_by_ps() -> Result<Vec<(u32, String)>> {
    let listed = command(Path::new("/bin/ps"))
        .args(["-axww", "-o", "pid=,command="])
        .output()
        .context("cannot start ps")?;
    Ok(String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|line| {
            let (id, rest) = line.trim().split_once(' ')?;
            Some((id.parse().ok()?, rest.to_owned()))
        })
        .collect())
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Runs a script through an osascript-like program, as a bridge would: script on stdin, values in argv.
pub fn script(osascript: &Path, script: &str, args: &[&str]) -> Result<()> {
    use std::io::Write as _;
    let mut child = command(osascript)
        .args(["-l", "AppleScript", "-"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("osascript")?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(script.as_bytes()).context("stdin")?;
    drop(stdin);
    let status = child.wait().context("osascript")?;
    if !status.success() {
        bail!("osascript ended with {status}");
    }
    Ok(())
}

/// Runs one of the workspace's programs to its end; gives the lines that it wrote and the most memory
/// that it was seen to use, in KiB.
pub fn count_lines(name: &str, args: &[&str]) -> Result<(usize, u64)> {
    /// A look at the memory costs a process; so many reads of the pipe lie between two.
    const LOOK_EVERY: usize = 128;
    use std::io::Read as _;
    let mut child =
        command(&path_of(name)?).args(args).stdout(Stdio::piped()).spawn().context("start")?;
    let mut out = child.stdout.take().context("stdout")?;
    let mut buffer = vec![0_u8; 1 << 16];
    let (mut lines, mut peak) = (0, 0);
    for turn in 0_usize.. {
        if turn % LOOK_EVERY == 0 {
            peak = peak.max(resident_kib(child.id()));
        }
        let read = out.read(&mut buffer).context("stdout")?;
        if read == 0 {
            break;
        }
        lines += buffer.iter().take(read).filter(|byte| **byte == b'\n').count();
    }
    let status = child.wait().context("wait")?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    Ok((lines, peak))
}

/// Runs a program to its end with its output thrown away; gives how long that took and the most memory
/// that it was seen to use, in KiB.
pub fn time_and_memory(path: &Path, args: &[&str]) -> Result<(Duration, u64)> {
    /// The peak is kept by the system, so that only what was added in the last moment is missed.
    const LOOK_EVERY: Duration = Duration::from_millis(5);
    let began = tokio::time::Instant::now();
    let mut child = command(path)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", path.display()))?;
    let mut peak = 0;
    loop {
        peak = peak.max(resident_kib(child.id()));
        if let Some(status) = child.try_wait().context("wait")? {
            if !status.success() {
                bail!("{} ended with {status}", path.display());
            }
            return Ok((began.elapsed(), peak));
        }
        #[expect(clippy::disallowed_methods, reason = "a load has nothing else to do meanwhile")]
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The most that a process had resident, in KiB, or what it has now where the system does not say; 0 when it has ended.
pub fn resident_kib(id: u32) -> u64 {
    let number = |text: &str| text.trim().trim_end_matches("kB").trim().parse().ok();
    let seen = match std::fs::read_to_string(format!("/proc/{id}/status")) {
        Ok(status) => status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(number),
        Err(_) => command(Path::new("/bin/ps"))
            .args(["-o", "rss=", "-p", &id.to_string()])
            .output()
            .ok()
            .and_then(|listed| number(&String::from_utf8_lossy(&listed.stdout))),
    };
    seen.unwrap_or(0)
}

/// What a process has resident now, in KiB; 0 when it has ended, or where there is no `/proc`.
pub fn resident_now_kib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|text| text.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// A program whose lines are read with the moment of their arrival.
#[derive(Debug)]
pub struct Lines {
    program: Program,
    lines: std::sync::Arc<
        tokio::sync::Mutex<tokio::sync::mpsc::Receiver<(tokio::time::Instant, String)>>,
    >,
}

/// A program that is spoken to in lines: its stdin, and [`Lines`].
#[derive(Debug)]
pub struct Talk {
    lines: Lines,
    stdin: std::process::ChildStdin,
}

impl Talk {
    /// Starts one of the workspace's programs; its log is appended to `log`.
    pub fn start(name: &str, args: &[&str], log: &Path) -> Result<Self> {
        let (lines, stdin) = Lines::start_with(name, args, Stdio::from(append(log)?))?;
        Ok(Self { lines, stdin })
    }

    /// Says a line; false when nobody is there any more.
    pub fn say(&mut self, line: &str) -> bool {
        use std::io::Write as _;
        self.stdin.write_all(format!("{line}\n").as_bytes()).is_ok()
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.lines.program.child.try_wait().context("wait")?.is_none())
    }

    /// What it says.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Ends it without a chance to tidy up, and gives the lines that it had still said. What it has started
    /// goes on.
    pub async fn crash(self) -> Result<Vec<String>> {
        let Self { lines, stdin } = self;
        let Lines { program, lines } = lines;
        // An osascript is in a group of its own, and goes on.
        program.crash()?;
        drop(stdin);
        let mut rest = Vec::new();
        let mut lines = lines.lock().await;
        while let Some((_, line)) = lines.recv().await {
            rest.push(line);
        }
        Ok(rest)
    }
}

/// Lines that wait to be looked at.
const LINES_WAITING_MAX: usize = 1_024;

impl Lines {
    /// Starts one of the workspace's programs.
    pub fn start(name: &str, args: &[&str]) -> Result<Self> {
        let (mut lines, stdin) = Self::start_with(name, args, Stdio::inherit())?;
        // Held open as long as the program is: a bridge ends with its stdin.
        lines.program.child.stdin = Some(stdin);
        Ok(lines)
    }

    fn start_with(
        name: &str,
        args: &[&str],
        log: Stdio,
    ) -> Result<(Self, std::process::ChildStdin)> {
        use std::io::{BufRead as _, BufReader};
        let mut child = command(&path_of(name)?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdin = child.stdin.take().context("stdin")?;
        let out = child.stdout.take().context("stdout")?;
        let (sender, lines) = tokio::sync::mpsc::channel(LINES_WAITING_MAX);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(std::result::Result::ok) {
                if sender.blocking_send((tokio::time::Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let program = Program { name: name.to_owned(), child };
        let lines = std::sync::Arc::new(tokio::sync::Mutex::new(lines));
        Ok((Self { program, lines }, stdin))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// The next line.
    pub async fn next(&self, within: Duration) -> Result<(tokio::time::Instant, String)> {
        let mut lines = self.lines.lock().await;
        tokio::time::timeout(within, lines.recv())
            .await
            .with_context(|| format!("{} said nothing for {within:?}", self.program.name))?
            .with_context(|| format!("{} has ended", self.program.name))
    }
}
