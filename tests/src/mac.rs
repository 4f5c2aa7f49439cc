//! One Mac without a supervisor: the sandbox, one bridge on its pipe, and whatever kills them. What the bridge
//! says in all its lives is kept by number and acknowledged, as a supervisor and a router would.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use protocol::pipe::{Attempt, Command, Event, EventLine, OutboundAttachment, Send, Up, parse_up};
use protocol::{Channel, Class, MessageId, Recipient};
use tokio::time::Instant;

use crate::clock;
use crate::eventually;
use crate::ledger::{Asked, asked};
use crate::program::{Program, Talk};

/// The number of the phone.
pub const NUMBER: &str = "+15550100001";

/// A lease is renewed this long before its end.
const LEASE_MS: u64 = 60_000;
const RENEW_EVERY: Duration = Duration::from_secs(20);
const START_WITHIN: Duration = Duration::from_secs(20);

/// A Mac.
#[derive(Debug)]
pub struct Mac {
    dir: tempfile::TempDir,
    _sandbox: Program,
    bridge: Option<Talk>,
    journal: String,
    epoch: u64,
    renew_at: Instant,
    /// What the bridge has said, by number.
    events: BTreeMap<u64, EventLine>,
    /// The newest event of each attempt, and how many there were.
    newest: BTreeMap<MessageId, (Event, usize)>,
}

/// What is particular about a Mac.
#[derive(Debug, Clone)]
pub struct Options {
    /// How fast the sandbox plays: 1 is life, 0 is at once.
    pub speed: f64,
    /// Shell commands that run as osascript around the real one, which is `"$real"`; its arguments are `"$@"`.
    pub around: Option<String>,
    /// More lines of the bridge's configuration, above its tables.
    pub config: String,
}

impl Mac {
    /// A Mac whose bridge does not run yet.
    pub async fn new(options: &Options) -> Result<Self> {
        // A short path: the sandbox's socket lies below it, and such paths have about 100 bytes.
        let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").context("folder")?;
        let root = dir.path().join("world");
        let (at, speed) = (root.display().to_string(), options.speed.to_string());
        let phone = format!("{NUMBER}=26");
        let args = ["phones", "--dir", &at, "--phone", &phone, "--speed", &speed];
        let log = dir.path().join("sandbox.log");
        let mut sandbox = Program::start("switchboard-sandbox", &args, &[], &log)?;
        let socket = root.join("messages.sock");
        eventually("the sandbox listens", START_WITHIN, || {
            let (there, ended) = (socket.exists(), sandbox.check());
            async move { ended.map(|()| if there { Ok(()) } else { Err("no socket".to_owned()) }) }
        })
        .await?;
        let folder = root.join(NUMBER.trim_start_matches('+'));
        let real = folder.join("osascript");
        let osascript = match &options.around {
            None => real,
            Some(around) => around_it(dir.path(), &real, around)?,
        };
        let config = format!(
            "phone = \"pho_00000000000000000000000000\"\nnumber = \"{NUMBER}\"\n\
             state_dir = \"{}\"\nchat_db = \"{}\"\nosascript = \"{}\"\n{}\n\
             [pacing]\nper_second = 0\n[attachments]\nallow_private = true\n",
            dir.path().join("state").display(),
            folder.join("chat.db").display(),
            osascript.display(),
            options.config,
        );
        std::fs::write(dir.path().join("bridge.toml"), config).context("configuration")?;
        Ok(Self {
            dir,
            _sandbox: sandbox,
            bridge: None,
            journal: String::new(),
            epoch: 1,
            renew_at: Instant::now(),
            events: BTreeMap::new(),
            newest: BTreeMap::new(),
        })
    }

    /// Where a file of this Mac is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    // ---- the bridge ---------------------------------------------------------------------------

    /// Starts the bridge and gives it a lease.
    pub async fn start(&mut self) -> Result<()> {
        ensure!(self.bridge.is_none(), "it runs");
        let config = self.path("bridge.toml").display().to_string();
        let log = self.path("bridge.log");
        self.bridge = Some(Talk::start("switchboard-bridge", &["run", "--config", &config], &log)?);
        let until = Instant::now() + START_WITHIN;
        self.journal.clear();
        while self.journal.is_empty() {
            ensure!(self.hear(until).await?, "it says no hello: {}", self.log());
        }
        self.renew_at = Instant::now();
        self.renew();
        Ok(())
    }

    /// Whether the bridge runs, or has ended by itself or by another's hand.
    pub fn runs(&mut self) -> Result<bool> {
        self.bridge.as_mut().map_or(Ok(false), Talk::runs)
    }

    /// `kill -9`, or what is left to do where somebody else has done that. The osascript that runs goes on.
    pub async fn crash(&mut self) -> Result<()> {
        if let Some(bridge) = self.bridge.take() {
            for line in bridge.crash().await? {
                self.take(&line);
            }
        }
        Ok(())
    }

    fn renew(&mut self) {
        if Instant::now() < self.renew_at {
            return;
        }
        self.renew_at = Instant::now() + RENEW_EVERY;
        self.say(&Command::Lease {
            epoch: self.epoch,
            ttl_ms: LEASE_MS,
            issued_ms: clock::continuous_ms(),
        });
    }

    /// Says something to the bridge, if it is there to hear it.
    pub fn say(&mut self, command: &Command) {
        if let (Some(bridge), Ok(line)) = (&mut self.bridge, serde_json::to_string(command))
            && !bridge.say(&line)
        {
            // Dead already: whoever waits for an answer will see that.
        }
    }

    /// Asks for a text to be sent, with files; may be said as often as one likes.
    pub fn send(
        &mut self,
        message: &MessageId,
        to: &str,
        text: &str,
        files: &[String],
    ) -> Result<()> {
        let to: Recipient = to.parse().context("recipient")?;
        let attachments = files.iter().map(|url| OutboundAttachment {
            url: url.clone(),
            name: None,
            sha256: None,
        });
        let send = Send {
            message: message.clone(),
            attempt: 1,
            epoch: self.epoch,
            to,
            text: text.to_owned(),
            attachments: attachments.collect(),
            route: vec![Channel::Imessage, Channel::Sms],
            class: Class::Transactional,
            start_before: clock::now().plus_ms(600_000),
            conversation: None,
        };
        self.say(&Command::Send(send));
        Ok(())
    }

    /// Hears one line, until a moment; false when there was none, or the bridge has ended.
    pub async fn hear(&mut self, until: Instant) -> Result<bool> {
        self.renew();
        let Some(bridge) = &self.bridge else { return Ok(false) };
        let within = until.saturating_duration_since(Instant::now());
        let Ok((_, line)) = bridge.lines().next(within).await else { return Ok(false) };
        self.take(&line);
        Ok(true)
    }

    fn take(&mut self, line: &str) {
        // A killed bridge may leave half a line.
        match parse_up(line) {
            Ok(Up::Hello(hello)) => self.journal = hello.journal,
            Ok(Up::Event(event)) => {
                let seq = event.seq;
                if let Some(Attempt { message, .. }) = event.event.attempt()
                    && !self.events.contains_key(&seq)
                {
                    let known = self.newest.entry(message.clone());
                    let count = known.or_insert_with(|| (event.event.clone(), 0));
                    *count = (event.event.clone(), count.1 + 1);
                }
                self.events.insert(seq, event);
                let journal = self.journal.clone();
                self.say(&Command::Ack { journal, seq });
            }
            Ok(Up::Ready | Up::NotReady { .. } | Up::Released { .. } | Up::Heartbeat(_))
            | Err(_) => {}
        }
    }

    // ---- what was said and done ---------------------------------------------------------------

    /// The newest event of a message.
    pub fn newest(&self, message: &MessageId) -> Option<&Event> {
        self.newest.get(message).map(|(event, _)| event)
    }

    /// The kinds of a message's events, in their order; repetitions of the newest are left out.
    pub fn story(&self, message: &MessageId) -> Vec<&'static str> {
        let about = |line: &&EventLine| line.event.attempt().is_some_and(|a| a.message == *message);
        let mut kinds: Vec<_> =
            self.events.values().filter(about).map(|line| line.event.kind()).collect();
        kinds.dedup();
        kinds
    }

    /// What Messages was really asked to send, and took, by the sandbox's own count.
    pub fn asked(&self) -> Result<Vec<Asked>> {
        asked(&self.path("world/sends.jsonl"))
    }

    /// The end of the bridge's log, for whoever has to find out.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.path("bridge.log")).unwrap_or_default();
        let from = text.len().saturating_sub(2_000);
        text.get(from..).unwrap_or_default().to_owned()
    }
}

fn around_it(dir: &Path, real: &Path, around: &str) -> Result<PathBuf> {
    let path = dir.join("osascript");
    let script =
        format!("#!/bin/sh\nreal='{}'\ndir='{}'\n{around}\n", real.display(), dir.display());
    std::fs::write(&path, script).context("osascript")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).context("osascript")?;
    Ok(path)
}
