//! The configuration file: raw (as written) → checked (what the rest of the crate works with).

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use protocol::channel::Channel;
use protocol::id::PhoneId;
use protocol::number::E164;
use serde::Deserialize;

use crate::attachments::Limits;

/// The commented default, as `switchboard-bridge check-config --print-default` shows it.
pub const DEFAULT: &str = include_str!("default.toml");

/// A configuration file is a page of text; more is not one.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// A deadline beyond this would let one hanging osascript stop a phone for an hour.
const WINDOW_MS_MAX: u64 = 10 * 60 * 1000;
/// More than this a second is beyond what Messages.app takes, and beyond the clock's resolution.
const PER_SECOND_MAX: f64 = 1000.0;
/// A burst is a courtesy after a quiet time, not a way around the pace.
const BURST_MAX: u32 = 1000;

/// Apple's own limit for one message is said to be 100 MB; ten times as much cannot be a wish.
const ATTACHMENTS_MIB_MAX: u64 = 1024;

/// A fault of a moment has passed by then, and the message has not grown old.
const FETCH_PAUSE: Duration = Duration::from_secs(1);

/// With less, the journal could fill up between two looks.
const DISK_LOW_MIB_MIN: u64 = 16;
/// A pebibyte: more than any disk has, so that it can also be said that nothing is enough.
const DISK_LOW_MIB_MAX: u64 = 1024 * 1024 * 1024;

/// What is wrong with a configuration: always the file, and the line and field where they exist.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not valid TOML of the expected shape.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What the parser says; it names the field.
        message: String,
    },
    /// A field has a value that cannot be used.
    #[error("{}:{line}: `{field}`: {message}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The field as it is written.
        field: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    phone: String,
    number: String,
    state_dir: PathBuf,
    #[serde(default = "Raw::chat_db")]
    chat_db: PathBuf,
    #[serde(default = "Raw::osascript")]
    osascript: PathBuf,
    #[serde(default = "Raw::osascript_deadline_ms")]
    osascript_deadline_ms: u64,
    #[serde(default = "Raw::default_channels")]
    default_channels: Vec<Channel>,
    #[serde(default = "Raw::match_window_ms")]
    match_window_ms: u64,
    #[serde(default = "Raw::settle_window_ms")]
    settle_window_ms: u64,
    #[serde(default = "Raw::sent_window_ms")]
    sent_window_ms: u64,
    #[serde(default = "Raw::probe_interval_ms")]
    probe_interval_ms: u64,
    #[serde(default = "Raw::disk_low_mib")]
    disk_low_mib: u64,
    #[serde(default)]
    pacing: RawPacing,
    #[serde(default)]
    attachments: RawAttachments,
}

impl Raw {
    fn chat_db() -> PathBuf {
        PathBuf::from("~/Library/Messages/chat.db")
    }
    fn osascript() -> PathBuf {
        PathBuf::from("/usr/bin/osascript")
    }
    fn osascript_deadline_ms() -> u64 {
        60_000
    }
    fn default_channels() -> Vec<Channel> {
        vec![Channel::Imessage, Channel::Sms]
    }
    fn match_window_ms() -> u64 {
        8_000
    }
    fn settle_window_ms() -> u64 {
        10_000
    }
    fn sent_window_ms() -> u64 {
        20_000
    }
    fn probe_interval_ms() -> u64 {
        60_000
    }
    fn disk_low_mib() -> u64 {
        512
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPacing {
    per_second: f64,
    burst: u32,
}

impl Default for RawPacing {
    fn default() -> Self {
        Self { per_second: 1.0, burst: 1 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAttachments {
    dir: Option<PathBuf>,
    max_mib: u64,
    timeout_ms: u64,
    types: Vec<String>,
    allow_private: bool,
}

impl Default for RawAttachments {
    fn default() -> Self {
        let types = [
            "image/",
            "video/",
            "audio/",
            "application/pdf",
            "application/vnd.apple.pkpass",
            "text/calendar",
            "text/plain",
            "text/vcard",
        ];
        Self {
            dir: None,
            max_mib: 100,
            timeout_ms: 120_000,
            types: types.map(str::to_owned).to_vec(),
            allow_private: false,
        }
    }
}

/// How fast a phone may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pacing {
    /// As fast as Messages.app takes them.
    Unlimited,
    /// One send an interval, `burst` at once after a quiet time.
    Paced {
        /// Microseconds between two sends, at least 1.
        interval_us: i64,
        /// At least 1.
        burst: u32,
    },
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Id of the phone in the pool.
    pub phone: PhoneId,
    /// The phone's own number.
    pub number: E164,
    /// Folder for journal, lock and osascript's error output; absolute.
    pub state_dir: PathBuf,
    /// The database of Messages.app; absolute.
    pub chat_db: PathBuf,
    /// The program that runs AppleScript; absolute.
    pub osascript: PathBuf,
    /// How long one osascript may take.
    pub osascript_deadline: Duration,
    /// The channels that this phone may use; not empty.
    pub default_channels: Vec<Channel>,
    /// How long the next send waits for the row of this one.
    pub match_window: Duration,
    /// How long a send in doubt is looked for before it is told as unknown.
    pub settle_window: Duration,
    /// How long a row may be neither sent nor failed before that is told as unknown.
    pub sent_window: Duration,
    /// How often the account is probed while nothing is being sent.
    pub probe_interval: Duration,
    /// Nothing is sent while less than this is free on the disk of `state_dir` or of Messages, in
    /// MiB.
    pub disk_low_mib: u64,
    /// How fast this phone may send.
    pub pacing: Pacing,
    /// Where files wait for Messages; absolute.
    pub attachments_dir: PathBuf,
    /// Which files may be fetched.
    pub attachments: Limits,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |path: &Path| -> std::io::Result<String> {
            use std::io::Read as _;
            let mut text = String::new();
            let file = std::fs::File::open(path)?;
            file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
            Ok(text)
        };
        let text =
            read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file; `path` is only named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_at(text, span.start)),
            message: error.message().to_owned(),
        })?;
        let wrong = |field: &'static str, message: String| ConfigError::Field {
            path: path.to_owned(),
            line: line_of(text, field),
            field,
            message,
        };
        let absolute = |field: &'static str, path: PathBuf| {
            let path = expand_home(path);
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(wrong(field, format!("`{}` is not an absolute path", path.display())))
            }
        };
        let window = |field: &'static str, ms: u64, least: u64| {
            if (least..=WINDOW_MS_MAX).contains(&ms) {
                Ok(Duration::from_millis(ms))
            } else {
                Err(wrong(field, format!("{ms} is not between {least} and {WINDOW_MS_MAX}")))
            }
        };

        let phone = PhoneId::from_str(&raw.phone)
            .map_err(|error| wrong("phone", format!("`{}`: {error}", raw.phone)))?;
        let number = E164::from_str(&raw.number)
            .map_err(|error| wrong("number", format!("`{}`: {error}", raw.number)))?;
        let mut default_channels = raw.default_channels;
        default_channels.dedup();
        if default_channels.is_empty() {
            return Err(wrong("default_channels", "must name at least one channel".to_owned()));
        }
        let match_window = window("match_window_ms", raw.match_window_ms, 1)?;
        let settle_window = window("settle_window_ms", raw.settle_window_ms, 1)?;
        if settle_window < match_window {
            return Err(wrong(
                "settle_window_ms",
                "must not be shorter than match_window_ms".to_owned(),
            ));
        }
        let chat_db = absolute("chat_db", raw.chat_db)?;
        let attachments_dir = match raw.attachments.dir {
            Some(dir) => absolute("dir", dir)?,
            None => chat_db.with_file_name("Attachments").join("switchboard"),
        };
        let osascript_deadline = window("osascript_deadline_ms", raw.osascript_deadline_ms, 100)?;
        Ok(Self {
            phone,
            number,
            state_dir: absolute("state_dir", raw.state_dir)?,
            chat_db,
            osascript: absolute("osascript", raw.osascript)?,
            osascript_deadline,
            default_channels,
            match_window,
            settle_window,
            sent_window: window("sent_window_ms", raw.sent_window_ms, 1)?,
            probe_interval: window("probe_interval_ms", raw.probe_interval_ms, 100)?,
            disk_low_mib: disk_low_mib(raw.disk_low_mib)
                .map_err(|message| wrong("disk_low_mib", message))?,
            pacing: pacing(&raw.pacing).map_err(|(field, message)| wrong(field, message))?,
            attachments_dir,
            attachments: Limits {
                bytes_max: attachments_bytes(raw.attachments.max_mib)
                    .map_err(|message| wrong("max_mib", message))?,
                timeout: window("timeout_ms", raw.attachments.timeout_ms, 100)?,
                pause: FETCH_PAUSE,
                types: media_types(raw.attachments.types)
                    .map_err(|message| wrong("types", message))?,
                allow_private: raw.attachments.allow_private,
            },
        })
    }
}

fn attachments_bytes(mib: u64) -> Result<u64, String> {
    if (1..=ATTACHMENTS_MIB_MAX).contains(&mib) {
        Ok(mib.saturating_mul(1024 * 1024))
    } else {
        Err(format!("{mib} is not between 1 and {ATTACHMENTS_MIB_MAX}"))
    }
}

fn media_types(types: Vec<String>) -> Result<Vec<String>, String> {
    let is_one = |kind: &String| {
        let plain = |c: char| c.is_ascii_graphic() && !c.is_ascii_uppercase();
        kind.split_once('/').is_some_and(|(half, _)| !half.is_empty()) && kind.chars().all(plain)
    };
    match types.iter().find(|kind| !is_one(kind)) {
        Some(bad) => Err(format!("`{bad}` is not a media type such as `image/png` or `image/`")),
        None => Ok(types),
    }
}

fn disk_low_mib(raw: u64) -> Result<u64, String> {
    if (DISK_LOW_MIB_MIN..=DISK_LOW_MIB_MAX).contains(&raw) {
        Ok(raw)
    } else {
        Err(format!("{raw} is not between {DISK_LOW_MIB_MIN} and {DISK_LOW_MIB_MAX}"))
    }
}

fn pacing(raw: &RawPacing) -> Result<Pacing, (&'static str, String)> {
    if !(0.0..=PER_SECOND_MAX).contains(&raw.per_second) {
        return Err((
            "per_second",
            format!("{} is not between 0 (unlimited) and {PER_SECOND_MAX}", raw.per_second),
        ));
    }
    if !(1..=BURST_MAX).contains(&raw.burst) {
        return Err(("burst", format!("{} is not between 1 and {BURST_MAX}", raw.burst)));
    }
    if raw.per_second == 0.0 {
        return Ok(Pacing::Unlimited);
    }
    let interval = Duration::try_from_secs_f64(1.0 / raw.per_second)
        .map_err(|error| ("per_second", format!("{}: {error}", raw.per_second)))?;
    let interval_us = i64::try_from(interval.as_micros())
        .map_err(|error| ("per_second", format!("{}: {error}", raw.per_second)))?;
    Ok(Pacing::Paced { interval_us: interval_us.max(1), burst: raw.burst })
}

/// A leading `~/` is the home folder: the only abbreviation that people write in such files.
fn expand_home(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        (Ok(_) | Err(_), _) => path,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// The line on which a field is set, else the first: good enough to put a cursor there.
fn line_of(text: &str, field: &str) -> usize {
    let sets = |line: &str| {
        line.trim_start().strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(sets).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("bridge.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_compiled_in_default_is_valid_and_shows_the_defaults() {
        let shown = parse(DEFAULT).unwrap();
        // With every comment that shows a default taken away, the result must be the same.
        let uncommented: String = DEFAULT
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => {
                    rest
                }
                Some(_) | None => line,
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        assert_ne!(uncommented, DEFAULT);
        let explicit = parse(&uncommented).unwrap();
        assert_eq!(format!("{shown:?}"), format!("{explicit:?}"));
        assert_eq!(shown.pacing, Pacing::Paced { interval_us: 1_000_000, burst: 1 });
        assert_eq!(shown.osascript_deadline, Duration::from_mins(1));
        assert!(shown.chat_db.is_absolute(), "{}", shown.chat_db.display());
    }

    #[test]
    fn errors_name_file_line_and_field() {
        let base = DEFAULT;
        let cases: &[(String, &str)] = &[
            (
                base.replace("number = \"+15550100001\"", "number = \"555\""),
                "bridge.toml:7: `number`",
            ),
            (base.replace("phone = \"pho_", "phone = \"msg_"), "bridge.toml:6: `phone`"),
            (base.replace("state_dir = \"/usr", "state_dir = \"usr"), "`state_dir`: `usr/"),
            (
                base.replace("# match_window_ms = 8000", "match_window_ms = 0"),
                "`match_window_ms`: 0",
            ),
            (
                base.replace("# match_window_ms = 8000", "match_window_ms = 20000"),
                "`settle_window_ms`",
            ),
            (base.replace("# per_second = 1.0", "per_second = -1.0"), "`per_second`: -1"),
            (base.replace("# per_second = 1.0", "per_second = nan"), "`per_second`: NaN"),
            (base.replace("# burst = 1", "burst = 0"), "`burst`: 0"),
            (base.replace("# disk_low_mib = 512", "disk_low_mib = 15"), "`disk_low_mib`: 15"),
            (base.replace("# max_mib = 100", "max_mib = 0"), "`max_mib`: 0"),
            (base.replace("# timeout_ms = 120000", "timeout_ms = 1"), "`timeout_ms`: 1"),
            (
                base.replace("# allow_private", "types = [\"png\"]\n# allow_private"),
                "`types`: `png`",
            ),
            (base.replace("# allow_private", "dir = \"x\"\n# allow_private"), "`dir`: `x`"),
            (
                base.replace(
                    "# default_channels = [\"imessage\", \"sms\"]",
                    "default_channels = []",
                ),
                "`default_channels`",
            ),
            (
                base.replace(
                    "# default_channels = [\"imessage\", \"sms\"]",
                    "default_channels = [\"fax\"]",
                ),
                "fax",
            ),
            (format!("surprise = 1\n{base}"), "bridge.toml:1: unknown field `surprise`"),
            (base.replace("number = ", "numero = "), "bridge.toml:7: unknown field `numero`"),
            ("phone = ".to_owned(), "bridge.toml:1:"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "expected {expected:?} in {error:?}");
        }
    }

    #[test]
    fn a_pace_is_turned_into_an_interval() {
        let with = |per_second: &str| {
            parse(&DEFAULT.replace("# per_second = 1.0", &format!("per_second = {per_second}")))
                .unwrap()
                .pacing
        };
        assert_eq!(with("0.0"), Pacing::Unlimited);
        assert_eq!(with("0"), Pacing::Unlimited);
        assert_eq!(with("4"), Pacing::Paced { interval_us: 250_000, burst: 1 });
        assert_eq!(with("0.5"), Pacing::Paced { interval_us: 2_000_000, burst: 1 });
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nowhere/bridge.toml")).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/bridge.toml: cannot be read");
    }
}
