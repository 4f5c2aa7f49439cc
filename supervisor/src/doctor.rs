//! Everything that must be true on this Mac, each with its remedy; what is true of a phone is asked of its bridge's doctor.
//!
//! Programs of the system are asked, and what they print is judged by pure functions. A program that is not there, or
//! says what is not understood, makes a check `skipped`: nothing is concluded from silence. Permissions belong to
//! whoever asks, so a supervisor that launchd has started must ask for its phones; the dispatch API does that.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::statvfs::statvfs;
use nix::unistd::{Uid, User};
use router_client::doctor::{Check, Outcome, PhoneReport, Report};
use router_client::enrolment;
use tokio_util::task::TaskTracker;

use crate::child::{self, Spec};
use crate::cloudflared;
use crate::config::Config;
use crate::pool::chain;

/// The agent, as scripts/install names it.
const LABEL: &str = "org.switchboard.supervisor";
/// These programs answer in milliseconds; `sntp` waits for a server.
const TOOL_WITHIN: Duration = Duration::from_secs(8);
/// A bridge's doctor gives a question on the screen 15 s, and asks up to three accounts.
const BRIDGE_WITHIN: Duration = Duration::from_mins(1);
/// What a program may print, and how long a line of it may be.
const PRINTED_MAX: usize = 512 * 1024;
/// A host needs room for journals and attachments.
const DISK_LOW_MIB: u64 = 512;
const DISK_WARN_MIB: u64 = 4 * DISK_LOW_MIB;
/// Expiry is judged by this clock; beyond the second bound most messages are held or let through wrongly.
const CLOCK_WARN_S: f64 = 1.0;
const CLOCK_ERROR_S: f64 = 30.0;
/// Since this release cloudflared takes its token from a file: before, `ps` shows it.
const CLOUDFLARED_LEAST: (u32, u32, u32) = (2026, 7, 2);

/// Where the programs of the system are.
#[derive(Debug, Clone)]
pub enum Tools {
    /// At their own places: launchd's PATH has no others, and Homebrew is not on it.
    System,
    /// All in one folder, for trials.
    In(PathBuf),
}

impl Tools {
    fn find(&self, name: &str) -> Option<PathBuf> {
        let folders: &[&str] =
            &["/bin", "/usr/bin", "/usr/sbin", "/opt/homebrew/bin", "/usr/local/bin"];
        match self {
            Self::System => folders.iter().map(|folder| Path::new(folder).join(name)).collect(),
            Self::In(folder) => vec![folder.join(name)],
        }
        .into_iter()
        .find(|path| path.is_file())
    }
}

/// What a program said: its exit code and its stdout, or why there is neither.
type Said = Result<(i32, String), String>;

/// Looks at everything.
pub(crate) async fn examine(config: &Config, tools: &Tools) -> Report {
    let tracker = TaskTracker::new();
    let look = Look { tools, directory: &config.state_dir, tracker: &tracker };
    let phones = join_all(known_phones(config).into_iter().map(|file| look.phone(config, file)));
    // All at once: each program may be waited for, and whoever asks waits for all of them.
    let (mac, phones) = tokio::join!(look.mac(config.cloudflared.as_ref()), phones);
    let mut checks = vec![enrolled(config), disk(&config.state_dir, free_mib(&config.state_dir))];
    checks.extend(mac);
    if let Some(settings) = &config.cloudflared {
        let unfit = cloudflared::token(&settings.token_file);
        let connections = cloudflared::look(settings.metrics_port).await;
        checks.push(tunnel(settings, unfit, connections));
    }
    let mut reports = Vec::new();
    for phone in phones {
        match phone {
            Ok(report) => reports.push(report),
            Err(why) => checks.push(error(
                "phone",
                why,
                "Start the supervisor once: it writes what a phone's doctor needs.",
                69,
            )),
        }
    }
    if reports.len() < config.phones.len()
        && checks.iter().all(|(check, _)| check.subject != "phone")
    {
        checks.push(warning(
            "phone",
            format!("{} of {} phones have run here", reports.len(), config.phones.len()),
            "Start the supervisor with this configuration, then look again.",
        ));
    }
    Report::new(checks, reports)
}

struct Look<'a> {
    tools: &'a Tools,
    directory: &'a Path,
    tracker: &'a TaskTracker,
}

impl Look<'_> {
    /// What the system says of itself.
    async fn mac(&self, wanted: Option<&cloudflared::Settings>) -> Vec<(Check, u8)> {
        if matches!(self.tools, Tools::System) && !cfg!(target_os = "macos") {
            return vec![skipped("mac", "this machine is no Mac")];
        }
        let uid = Uid::current();
        let user = User::from_uid(uid).ok().flatten().map(|user| user.name).unwrap_or_default();
        let own = std::env::current_exe().unwrap_or_default().display().to_string();
        let domain = format!("gui/{uid}");
        let target = format!("{domain}/{LABEL}");
        let windows = "/Library/Preferences/com.apple.loginwindow";
        let updates = "/Library/Preferences/com.apple.SoftwareUpdate";
        let (manager, job, switched, signed, login, vault, power, update, time, tunnel) = tokio::join!(
            self.ask("launchctl", ["managername"]),
            self.ask("launchctl", ["print", &target]),
            self.ask("launchctl", ["print-disabled", &domain]),
            self.ask("codesign", ["-d", "-r-", &own]),
            self.ask("defaults", ["read", windows, "autoLoginUser"]),
            self.ask("fdesetup", ["status"]),
            self.ask("pmset", ["-g", "custom"]),
            self.ask("defaults", ["read", updates]),
            self.ask("sntp", ["time.apple.com"]),
            self.version(wanted),
        );
        vec![
            session(&manager),
            agent(&job, &switched, &target),
            signature(&signed),
            auto_login(&login, &user),
            file_vault(&vault),
            sleep(&power),
            auto_update(&update),
            clock(&time),
            cloudflared_version(&tunnel, wanted.is_some()),
        ]
    }

    /// The version of the cloudflared that is run, or else of any that is there.
    async fn version(&self, wanted: Option<&cloudflared::Settings>) -> Said {
        match wanted {
            Some(wanted) => {
                self.run(wanted.program.clone(), vec!["--version".into()], TOOL_WITHIN).await
            }
            None => self.ask("cloudflared", ["--version"]).await,
        }
    }

    async fn ask<const N: usize>(&self, name: &str, args: [&str; N]) -> Said {
        let program = self.tools.find(name).ok_or_else(|| format!("there is no {name} here"))?;
        self.run(program, args.into_iter().map(OsString::from).collect(), TOOL_WITHIN).await
    }

    async fn run(&self, program: PathBuf, args: Vec<OsString>, within: Duration) -> Said {
        // The state folder may not be there yet, and none of these programs cares where it stands.
        let directory = if self.directory.is_dir() { self.directory } else { Path::new("/") };
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let spec = Spec {
            program,
            args,
            directory: directory.to_owned(),
            name,
            line_max: PRINTED_MAX,
            voice: child::Voice::Bridge,
        };
        let printed = child::run(&spec, within, PRINTED_MAX, self.tracker).await;
        let printed = printed.map_err(|error| chain(&error))?;
        Ok((printed.status.code().unwrap_or(-1), printed.text))
    }

    async fn phone(&self, config: &Config, file: PathBuf) -> Result<PhoneReport, String> {
        let args = ["doctor".into(), "--json".into(), "--config".into(), file.clone().into()];
        let (_, text) = self.run(config.bridge.clone(), args.to_vec(), BRIDGE_WITHIN).await?;
        serde_json::from_str(&text).map_err(|error| {
            format!(
                "the bridge's doctor with {} said nothing that is understood: {error}",
                file.display()
            )
        })
    }
}

/// The configurations of this host's phones that have run here, as the supervisor wrote them.
fn known_phones(config: &Config) -> Vec<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Written {
        number: String,
    }
    let Ok(folders) = std::fs::read_dir(config.state_dir.join("phones")) else { return Vec::new() };
    let is_ours = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let written: Option<Written> = toml::from_str(&text).ok();
        written.is_some_and(|written| {
            config.phones.iter().any(|phone| phone.number.as_str() == written.number)
        })
    };
    let mut files: Vec<PathBuf> = folders
        .filter_map(|folder| Some(folder.ok()?.path().join("bridge.toml")))
        .filter(is_ours)
        .collect();
    files.sort();
    files
}

fn ok(subject: &str, found: impl Into<String>) -> (Check, u8) {
    (Check::new(subject, Outcome::Ok, found), 0)
}

fn skipped(subject: &str, why: impl Into<String>) -> (Check, u8) {
    (Check::new(subject, Outcome::Skipped, why), 0)
}

fn warning(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> (Check, u8) {
    (Check::new(subject, Outcome::Warning, found).with_remedy(remedy), 0)
}

fn error(
    subject: &str,
    found: impl Into<String>,
    remedy: impl Into<String>,
    exit: u8,
) -> (Check, u8) {
    (Check::new(subject, Outcome::Error, found).with_remedy(remedy), exit)
}

fn enrolled(config: &Config) -> (Check, u8) {
    let subject = "enrolment";
    if config.router.is_none() {
        return ok(subject, "this host stands alone, without a router");
    }
    match enrolment::load(&config.state_dir) {
        Ok((enrolment, _)) => ok(subject, format!("{} at {}", enrolment.host, enrolment.router)),
        Err(failed) => error(
            subject,
            chain(&failed),
            format!("Run `switchboard host enroll --config {}`.", config.file.display()),
            78,
        ),
    }
}

#[cfg_attr(
    not(target_vendor = "apple"),
    expect(clippy::useless_conversion, reason = "on macOS blocks are counted in 32 bits")
)]
fn free_mib(path: &Path) -> Option<u64> {
    // Before the first start there is no folder; the one above it is on the same disk.
    let there = path.ancestors().find(|folder| folder.is_dir())?;
    let found = statvfs(there).ok()?;
    Some(u64::from(found.blocks_available()).saturating_mul(found.fragment_size()) / 1024 / 1024)
}

fn disk(path: &Path, free_mib: Option<u64>) -> (Check, u8) {
    let place = path.display();
    match free_mib {
        None => skipped("disk", format!("the space at {place} cannot be measured")),
        Some(free) if free < DISK_LOW_MIB => error(
            "disk",
            format!("{free} MiB free at {place}"),
            "Free space: journals cannot be written soon.",
            75,
        ),
        Some(free) if free < DISK_WARN_MIB => {
            warning("disk", format!("{free} MiB free at {place}"), "Free some space.")
        }
        Some(free) => ok("disk", format!("{free} MiB free at {place}")),
    }
}

/// `launchctl managername` prints Aqua, Background or System (launchctl(1)). Apple events reach Messages from Aqua only.
fn session(said: &Said) -> (Check, u8) {
    match said {
        Ok((0, text)) if text.trim() == "Aqua" => {
            ok("session", "the login session at the screen (Aqua)")
        }
        Ok((0, text)) if !text.trim().is_empty() => error(
            "session",
            format!("a session of the kind {}, from which Messages cannot be reached", text.trim()),
            "Log in at the screen, and let launchd start the supervisor there (scripts/install); not over ssh.",
            69,
        ),
        other => skipped("session", silent("launchctl managername", other)),
    }
}

/// Only the exit code of `print` is to be relied on: 113 is "not found". `print-disabled` has a line a label.
fn agent(job: &Said, switched: &Said, target: &str) -> (Check, u8) {
    if let Ok((0, text)) = switched {
        let own = text.lines().find(|line| line.contains(&format!("\"{LABEL}\"")));
        let value = own.and_then(|line| line.split_once("=>")).map(|(_, value)| value.trim());
        if matches!(value, Some("disabled" | "true")) {
            return error(
                "agent",
                "it is switched off",
                format!(
                    "Run `launchctl enable {target}` and scripts/install; look at System Settings → General → Login \
                     Items → Allow in the Background, too."
                ),
                69,
            );
        }
    }
    match job {
        Ok((0, _)) => ok("agent", format!("{target} is loaded")),
        Ok((113, _)) => warning(
            "agent",
            format!("launchd does not know {target}: after a login nothing starts the supervisor"),
            "Run scripts/install; where it is, look at System Settings → General → Login Items.",
        ),
        other => skipped("agent", silent("launchctl print", other)),
    }
}

/// The designated requirement is what macOS keeps permissions under. One of a single build (`cdhash`, as ad-hoc
/// signatures have it) loses them with the next.
fn signature(said: &Said) -> (Check, u8) {
    let remedy = "Sign with a certificate that stays: scripts/install --identity NAME. Then give Full Disk Access and \
                  Automation once more.";
    match said {
        Ok((0, text)) => {
            let requirement = text.lines().find_map(|line| line.split_once("designated =>"));
            match requirement.map(|(_, words)| words.trim()) {
                Some(words) if words.starts_with("cdhash") => {
                    warning("signature", "ad hoc: every new build loses its permissions", remedy)
                }
                Some(words) => ok("signature", words.to_owned()),
                None => skipped("signature", "codesign names no requirement"),
            }
        }
        Ok((1, _)) => warning("signature", "this program is not signed", remedy),
        other => skipped("signature", silent("codesign -d", other)),
    }
}

/// `defaults read … autoLoginUser` prints a name, or fails where there is none.
fn auto_login(said: &Said, user: &str) -> (Check, u8) {
    let remedy =
        "In System Settings → Users & Groups, log in automatically as the user of this host.";
    match said {
        Ok((0, text)) if text.trim() == user => {
            ok("auto_login", format!("{user} is logged in at a start"))
        }
        Ok((0, text)) => warning(
            "auto_login",
            format!("{} is logged in at a start, not {user}", text.trim()),
            remedy,
        ),
        Ok((1, _)) => warning(
            "auto_login",
            "after a restart nobody is logged in, and nothing is sent",
            remedy,
        ),
        other => skipped("auto_login", silent("defaults read", other)),
    }
}

/// `fdesetup status` prints `FileVault is On.` or `FileVault is Off.`
fn file_vault(said: &Said) -> (Check, u8) {
    match said {
        Ok((_, text)) if text.contains("FileVault is On") => warning(
            "filevault",
            "on: after a restart somebody must type the password at the screen",
            "Switch it off in System Settings → Privacy & Security, if this Mac is kept under lock; before a planned \
             restart, `sudo fdesetup authrestart`.",
        ),
        Ok((_, text)) if text.contains("FileVault is Off") => ok("filevault", "off"),
        other => skipped("filevault", silent("fdesetup status", other)),
    }
}

/// `pmset -g custom` prints a section a source of power; mains are what a shelf runs on. pmset takes keys that a model
/// does not support without a word, so what it does not print is not asked for.
fn sleep(said: &Said) -> (Check, u8) {
    let Ok((0, text)) = said else { return skipped("sleep", silent("pmset -g custom", said)) };
    let mains = text
        .lines()
        .skip_while(|line| line.trim() != "AC Power:")
        .skip(1)
        .take_while(|line| line.starts_with(char::is_whitespace));
    let values: Vec<(&str, &str)> = mains
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect();
    if values.is_empty() {
        return skipped("sleep", "pmset names no settings for mains");
    }
    let wanted = [
        ("sleep", "0"),
        ("disksleep", "0"),
        ("displaysleep", "0"),
        ("autorestart", "1"),
        ("womp", "1"),
        ("powernap", "0"),
        ("standby", "0"),
        ("autopoweroff", "0"),
    ];
    let wrong: Vec<(&str, &str, &str)> = wanted
        .into_iter()
        .filter_map(|(key, right)| {
            let (_, now) = values.iter().find(|(name, value)| *name == key && *value != right)?;
            Some((key, *now, right))
        })
        .collect();
    if wrong.is_empty() {
        return ok("sleep", "this Mac stays awake and starts again after a loss of power");
    }
    let now: Vec<_> = wrong.iter().map(|(key, now, _)| format!("{key} {now}")).collect();
    let right: Vec<_> = wrong.iter().map(|(key, _, right)| format!("{key} {right}")).collect();
    warning(
        "sleep",
        format!("on mains: {}", now.join(", ")),
        format!("Run `sudo pmset -a {}`.", right.join(" ")),
    )
}

/// Updates that restart the Mac by themselves. `defaults read` prints `    Key = 1;` a line; what is not there is on.
fn auto_update(said: &Said) -> (Check, u8) {
    let Ok((0, text)) = said else {
        return skipped("auto_update", silent("defaults read com.apple.SoftwareUpdate", said));
    };
    let off = |key: &str| {
        text.lines().filter_map(|line| line.split_once('=')).any(|(name, value)| {
            name.trim().trim_matches('"') == key && value.trim().trim_end_matches(';') == "0"
        })
    };
    let keys = [
        "AutomaticDownload",
        "AutomaticallyInstallMacOSUpdates",
        "CriticalUpdateInstall",
        // Background Security Improvements restart a Mac, too (26.1).
        "SplatEnabled",
    ];
    let on: Vec<&str> = keys.into_iter().filter(|key| !off(key)).collect();
    if on.is_empty() {
        return ok("auto_update", "this Mac does not update by itself");
    }
    warning(
        "auto_update",
        format!("this Mac may restart by itself: {} not switched off", on.join(", ")),
        "In System Settings → General → Software Update, switch automatic updates off, or run `sudo defaults write \
         /Library/Preferences/com.apple.SoftwareUpdate KEY -bool false` for each.",
    )
}

/// `sntp SERVER` prints a line that begins with the offset in seconds: `+0.004391 +/- 0.012 time.apple.com …`.
fn clock(said: &Said) -> (Check, u8) {
    let offset = said.as_ref().ok().filter(|(code, _)| *code == 0).and_then(|(_, text)| {
        text.lines().find_map(|line| {
            let (offset, _) = line.split_once("+/-")?;
            // Newer ones begin with date and time.
            offset.split_whitespace().next_back()?.parse::<f64>().ok()
        })
    });
    let Some(offset) = offset else { return skipped("clock", silent("sntp", said)) };
    let found = format!("{offset:+.3} s from time.apple.com");
    let remedy = "In System Settings → General → Date & Time, set date and time automatically.";
    if offset.abs() > CLOCK_ERROR_S {
        error("clock", found, remedy, 75)
    } else if offset.abs() > CLOCK_WARN_S {
        warning("clock", found, remedy)
    } else {
        ok("clock", found)
    }
}

/// `cloudflared --version` prints `cloudflared version 2026.8.2 (built …)`.
fn cloudflared_version(said: &Said, wanted: bool) -> (Check, u8) {
    let Ok((0, text)) = said else {
        if wanted {
            let remedy =
                "Install it (`brew install cloudflared`), or set `program` of [cloudflared].";
            return error("cloudflared", silent("cloudflared --version", said), remedy, 69);
        }
        return skipped(
            "cloudflared",
            format!("{}; a host that dials out needs none", silent("cloudflared", said)),
        );
    };
    let version = text.split_whitespace().find_map(|word| {
        let mut parts = word.split('.').map(str::parse::<u32>);
        Some((parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?))
    });
    match version {
        None => skipped("cloudflared", "it names no version"),
        Some((year, month, patch)) if (year, month, patch) < CLOUDFLARED_LEAST => warning(
            "cloudflared",
            format!(
                "{year}.{month}.{patch} takes its token on the command line, where `ps` shows it"
            ),
            "Update it to 2026.7.2 or newer.",
        ),
        Some((year, month, patch)) => ok("cloudflared", format!("{year}.{month}.{patch}")),
    }
}

/// Whether the tunnel that is configured can be run, and whether it is up now.
fn tunnel(
    settings: &cloudflared::Settings,
    unfit: Option<cloudflared::Unfit>,
    connections: Option<u64>,
) -> (Check, u8) {
    let subject = "tunnel";
    if let Some(unfit) = unfit {
        let found = format!("{}: {}", settings.token_file.display(), unfit.as_str());
        return error(subject, found, unfit.remedy(), 78);
    }
    match connections {
        Some(connections) => ok(subject, format!("up, with {connections} connections")),
        None => warning(
            subject,
            format!("`/ready` on 127.0.0.1:{} does not answer 200", settings.metrics_port),
            "Start the supervisor; where it runs, see `cloudflared` in `GET /v1/host` and in its log.",
        ),
    }
}

/// Why nothing is concluded from an answer.
fn silent(what: &str, said: &Said) -> String {
    match said {
        Ok((code, _)) => format!("`{what}` ended with {code} and says nothing that is understood"),
        Err(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests;
