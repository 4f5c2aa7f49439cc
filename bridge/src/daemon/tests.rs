//! The loop with a real journal and a real child in the place of osascript, over in-memory pipes
//! and with a fake chat.db.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use protocol::pipe::{
    Command, Conversation, ConversationKind, Event as Fact, EventLine, NotReady, Received, Seek,
    Send, parse_up,
};
use protocol::{Channel, Class, E164, MessageId, PhoneId, Reason, Recipient, UnixMs};

use super::*;
use crate::attachments;
use crate::chatdb::Contact;
use crate::config::Pacing;
use crate::evidence::{NewFact, News, NoNews};
use crate::outbound::{Content, Dated, RowState};

/// What a test may change while the loop runs.
#[derive(Debug, Default)]
struct Shelf {
    rows: Vec<(i64, String, RowState)>,
    inbound: Vec<Fact>,
    told: usize,
    broken: Option<Reason>,
    /// A row appears for every send that is looked for.
    obliging: bool,
    pulse: crate::chatdb::Pulse,
}

#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Shelf>>);

impl Fake {
    fn shelf(&self) -> Result<std::sync::MutexGuard<'_, Shelf>, NotReady> {
        let shelf = self.0.lock().unwrap();
        match shelf.broken {
            Some(reason) => Err(NotReady { reason, remedy: "repair it".to_owned() }),
            None => Ok(shelf),
        }
    }
}

impl Evidence for Fake {
    fn refresh(&mut self) -> Result<(), NotReady> {
        self.shelf().map(drop)
    }
    fn mark(&mut self) -> Result<i64, NotReady> {
        Ok(self.shelf()?.rows.iter().map(|row| row.0).max().unwrap_or(0))
    }
    fn rows(
        &mut self,
        mark: i64,
        _since: UnixMs,
        _to: &Recipient,
        content: &Content,
    ) -> Result<Vec<RowState>, NotReady> {
        let text = match content {
            Content::Text(text) => text.as_str(),
            Content::File(path) => path.to_str().unwrap(),
        };
        let mut shelf = self.shelf()?;
        if shelf.obliging && !shelf.rows.iter().any(|row| row.1 == text) {
            let rowid = shelf.rows.iter().map(|row| row.0).max().unwrap_or(0) + 1;
            shelf.rows.push((rowid, text.to_owned(), sent_row(rowid)));
        }
        let fits = |row: &&(i64, String, RowState)| row.0 > mark && row.1 == text;
        Ok(shelf.rows.iter().filter(fits).map(|row| row.2.clone()).collect())
    }
    fn dated(
        &mut self,
        _between: (UnixMs, UnixMs),
        _to: &Recipient,
        text: &str,
    ) -> Result<Option<Vec<Dated>>, NotReady> {
        let shelf = self.shelf()?;
        let rows = shelf.rows.iter().filter(|row| row.1 == text);
        let dated = |row: &(i64, String, RowState)| Dated {
            at: UnixMs(row.0.saturating_mul(60_000)),
            row: row.2.clone(),
        };
        Ok(Some(rows.map(dated).collect()))
    }
    fn states(&mut self, rowids: &[i64]) -> Result<Vec<RowState>, NotReady> {
        let shelf = self.shelf()?;
        Ok(shelf
            .rows
            .iter()
            .filter(|row| rowids.contains(&row.0))
            .map(|row| row.2.clone())
            .collect())
    }
    fn numbers(&mut self, guids: &[String]) -> Result<Vec<(String, i64)>, NotReady> {
        let shelf = self.shelf()?;
        let rows = shelf.rows.iter().filter(|row| guids.contains(&row.2.guid));
        Ok(rows.map(|row| (row.2.guid.clone(), row.0)).collect())
    }
    fn contacts(&mut self, _address: &str) -> Result<Vec<Contact>, NotReady> {
        let _readable = self.shelf()?;
        let contact = |channel, error| Contact {
            guid: format!("{channel}"),
            channel,
            own: true,
            error,
            is_sent: error == 0,
            at: UnixMs(1),
        };
        Ok(vec![contact(Channel::Imessage, 22), contact(Channel::Sms, 0)])
    }
    fn chat_guid(
        &mut self,
        _to: &Recipient,
        _channel: Channel,
    ) -> Result<Option<String>, NotReady> {
        self.shelf().map(|_| None)
    }
    fn news(&mut self, _memory: &impl crate::reading::Memory, _now: Now) -> Result<News, NoNews> {
        let mut shelf = self.shelf()?;
        let facts = std::mem::take(&mut shelf.inbound);
        if facts.is_empty() {
            return Ok(News::default());
        }
        shelf.told += facts.len();
        let heard = |fact: &Fact| {
            let Fact::Received(received) = fact else { panic!("not a message: {fact:?}") };
            Some((received.guid.clone(), 7))
        };
        let facts = facts.into_iter().map(|fact| NewFact { heard: heard(&fact), fact }).collect();
        let cursor = Some(format!("{{\"told\":{}}}", shelf.told));
        Ok(News { facts, cursor, ..News::default() })
    }
    fn pulse(&mut self, _now: Now) -> Result<crate::chatdb::Pulse, NotReady> {
        self.shelf().map(|shelf| shelf.pulse)
    }
    fn longest_read_us(&self) -> u64 {
        0
    }

    fn hints(&mut self) -> Option<mpsc::Receiver<()>> {
        None
    }
}

fn sent_row(rowid: i64) -> RowState {
    RowState {
        rowid,
        guid: format!("GUID-{rowid}"),
        channel: Some(Channel::Imessage),
        error: 0,
        is_sent: true,
        delivered: false,
        delivered_at: None,
        read_at: None,
        ghost: false,
        certain: true,
    }
}

/// An osascript that is connected when asked and otherwise does `body`; what it sends is counted.
fn program(dir: &Path, body: &str) {
    let path = dir.join("osascript");
    let script = format!(
        "#!/bin/sh\nscript=$(cat)\ncase $script in '') exit 0;; *'connection status'*) {probe};; esac\n\
         echo \"$8\" >> {log}\n{body}\n",
        probe = "if [ -f \"$0.denied\" ]; then echo 'x (-1743)' >&2; exit 1; fi; \
                 [ ! -f \"$0.hangs\" ] || exec sleep 60; echo connected; exit 0",
        log = dir.join("sends").display(),
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Every wait of these tests ends by then.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bridge {
    dir: tempfile::TempDir,
    fake: Fake,
    input: mpsc::Sender<Input>,
    lines: mpsc::Receiver<String>,
    task: tokio::task::JoinHandle<Result<Exit, DaemonError>>,
    journal: String,
    heard: Vec<Up>,
}

fn config(dir: &Path) -> Config {
    Config {
        phone: PhoneId::new(1, [1; 10]),
        number: "+15550100001".parse::<E164>().unwrap(),
        state_dir: dir.to_owned(),
        chat_db: dir.join("chat.db"),
        osascript: dir.join("osascript"),
        osascript_deadline: Duration::from_millis(1_500),
        default_channels: vec![Channel::Imessage, Channel::Sms],
        match_window: Duration::from_millis(500),
        settle_window: Duration::from_millis(500),
        sent_window: Duration::from_secs(20),
        disk_low_mib: 16,
        probe_interval: Duration::from_mins(1),
        pacing: Pacing::Unlimited,
        attachments_dir: dir.join("attachments"),
        attachments: attachments::Limits {
            bytes_max: 1024,
            timeout: Duration::from_secs(10),
            pause: Duration::from_millis(1),
            types: vec!["image/".to_owned()],
            allow_private: true,
        },
    }
}

impl Bridge {
    fn start(dir: tempfile::TempDir, fake: Fake) -> Self {
        Self::start_with(dir, fake, |_| ())
    }

    fn start_with(dir: tempfile::TempDir, fake: Fake, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir.path());
        change(&mut config);
        let journal = Journal::open(
            &dir.path().join("journal.db"),
            &config.phone,
            "jrn_test",
            crate::clock::now(),
        )
        .unwrap();
        let id = journal.id().to_owned();
        let (input, inputs) = mpsc::channel(64);
        let (out, lines) = mpsc::channel(LINES_QUEUED_MAX);
        let daemon = Daemon::new(
            config,
            journal,
            fake.clone(),
            Ports { inputs, lines: out },
            crate::clock::now,
        )
        .unwrap();
        let tracker = TaskTracker::new();
        let task = tracker.spawn(daemon.run());
        Self { dir, fake, input, lines, task, journal: id, heard: Vec::new() }
    }

    fn new(body: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        program(dir.path(), body);
        let fake = Fake::default();
        fake.0.lock().unwrap().obliging = true;
        Self::start(dir, fake)
    }

    async fn say(&self, command: &Command) {
        let line = serde_json::to_string(command).unwrap();
        self.input.send(Input::Line(line)).await.unwrap();
    }

    async fn lease(&self) {
        let issued_ms = u64::try_from(crate::clock::now().continuous_ms).unwrap();
        self.say(&Command::Lease { epoch: 1, ttl_ms: 60_000, issued_ms }).await;
    }

    /// The next line that fits; what came before it is kept.
    async fn until(&mut self, fits: impl Fn(&Up) -> bool) -> Up {
        let waiting = async {
            loop {
                let line = self.lines.recv().await.expect("the bridge has ended");
                let up = parse_up(&line).unwrap();
                self.heard.push(up.clone());
                if fits(&up) {
                    return up;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .unwrap_or_else(|_| panic!("not heard; heard only {:?}", self.heard))
    }

    async fn event(&mut self, kind: &str) -> EventLine {
        let up = self.until(|up| matches!(up, Up::Event(line) if line.event.kind() == kind)).await;
        let Up::Event(line) = up else { panic!("{up:?}") };
        line
    }

    async fn ready(&mut self) {
        self.until(|up| *up == Up::Ready).await;
    }

    async fn end(self) -> (Exit, tempfile::TempDir, Fake) {
        self.input.send(Input::Eof).await.unwrap();
        let exit = tokio::time::timeout(Duration::from_secs(10), self.task).await.unwrap();
        (exit.unwrap().unwrap(), self.dir, self.fake)
    }

    fn sends(&self) -> Vec<String> {
        sends(self.dir.path())
    }

    /// What was asked of Messages by the time that so many are. An obliging shelf has a row as soon as it is
    /// looked for, which may be before the script has written its line.
    async fn sends_of(&self, count: usize) -> Vec<String> {
        let until = tokio::time::Instant::now() + PATIENCE;
        while self.sends().len() < count && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.sends()
    }
}

fn sends(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("sends")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn command(n: u8) -> Command {
    Command::Send(Send {
        message: MessageId::new(1, [n; 10]),
        attempt: 1,
        epoch: 1,
        to: "+12025550143".parse().map(Recipient::Number).unwrap(),
        text: format!("text {n}"),
        attachments: Vec::new(),
        route: vec![Channel::Imessage, Channel::Sms],
        class: Class::Otp,
        start_before: crate::clock::now().wall.plus_ms(60_000),
        conversation: None,
    })
}

fn received(n: u8) -> Fact {
    Fact::Received(Received {
        guid: format!("IN-{n}"),
        from: "+12025550177".parse().map(Recipient::Number).unwrap(),
        conversation: Conversation {
            kind: ConversationKind::Direct,
            id: "+12025550177".to_owned(),
        },
        text: "hello".to_owned(),
        attachments: Vec::new(),
        service: Channel::Imessage,
        at: UnixMs(1),
        late: false,
        details: Box::default(),
    })
}

#[tokio::test]
async fn a_message_goes_out_and_its_story_comes_back() {
    let mut bridge = Bridge::new("");
    let first = bridge.until(|_| true).await;
    assert!(
        matches!(first, Up::Hello(ref hello) if hello.last_seq == 0 && hello.journal == "jrn_test")
    );
    bridge.ready().await;
    bridge.say(&command(1)).await;
    bridge.event("accepted").await;
    bridge.lease().await;
    bridge.event("started").await;
    let sent = bridge.event("sent").await;
    assert_eq!(sent.epoch, Some(1));
    let seqs: Vec<u64> = bridge
        .heard
        .iter()
        .filter_map(|up| if let Up::Event(line) = up { Some(line.seq) } else { None })
        .collect();
    assert_eq!(seqs, (1..=sent.seq).collect::<Vec<_>>());
    assert_eq!(bridge.sends_of(1).await, ["text 1"]);
    assert_eq!(bridge.end().await.0, Exit::Asked);
}

#[tokio::test]
async fn without_a_lease_nothing_starts() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    bridge.say(&command(1)).await;
    bridge.event("accepted").await;
    // Two heartbeats' worth of ticks would be slow; the gate is asked on every one of them.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(bridge.sends(), Vec::<String>::new());
    assert_eq!(bridge.end().await.0, Exit::Asked);
}

#[tokio::test]
async fn what_is_known_of_an_address_is_told_when_it_is_asked_for() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    for (to, expected) in [
        ("+12025550143", vec![(Channel::Imessage, false), (Channel::Sms, true)]),
        ("group:chat1", vec![]),
    ] {
        let to: Recipient = to.parse().unwrap();
        bridge.say(&Command::Capability { to: to.clone() }).await;
        let about = |up: &Up| matches!(up, Up::Event(line) if matches!(&line.event, Fact::Capability(known) if known.to == to));
        let Up::Event(EventLine { event: Fact::Capability(known), .. }) = bridge.until(about).await
        else {
            panic!("nothing is told")
        };
        let known: Vec<_> = known.channels.iter().map(|c| (c.channel, c.able)).collect();
        assert_eq!(known, expected);
    }
}

#[tokio::test]
async fn a_repeated_send_is_sent_once() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    bridge.lease().await;
    let send = command(1);
    for _ in 0..5 {
        bridge.say(&send).await;
    }
    let sent = bridge.event("sent").await;
    bridge.say(&Command::Ack { journal: bridge.journal.clone(), seq: sent.seq }).await;
    bridge.say(&send).await;
    let again = bridge.event("sent").await;
    assert_eq!(again.seq, sent.seq + 1, "its present state, as a new event");
    assert_eq!(bridge.sends_of(1).await, ["text 1"]);
}

#[tokio::test]
async fn events_are_repeated_on_replay_from_the_first_that_is_not_acknowledged() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    bridge.lease().await;
    bridge.say(&command(1)).await;
    let sent = bridge.event("sent").await;
    bridge.say(&Command::Ack { journal: "jrn_other".to_owned(), seq: sent.seq }).await;
    bridge.say(&Command::Ack { journal: bridge.journal.clone(), seq: 1 }).await;
    bridge.say(&Command::Ack { journal: bridge.journal.clone(), seq: sent.seq + 100 }).await;
    bridge.heard.clear();
    bridge.say(&Command::Replay).await;
    let last = bridge.event("sent").await;
    assert_eq!(last, sent);
    let Some(Up::Event(first)) = bridge.heard.iter().find(|up| matches!(up, Up::Event(_))) else {
        panic!()
    };
    assert_eq!(first.seq, 2);
}

#[tokio::test]
async fn lines_that_make_no_sense_are_counted_and_the_session_goes_on() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    for line in ["", "{", "[]", "{\"type\":\"fly\"}", "{\"type\":\"send\"}", "\u{0}"] {
        bridge.input.send(Input::Line(line.to_owned())).await.unwrap();
    }
    bridge.lease().await;
    bridge.say(&command(1)).await;
    bridge.event("sent").await;
    let beat = bridge.until(|up| matches!(up, Up::Heartbeat(_))).await;
    assert!(matches!(beat, Up::Heartbeat(Heartbeat { refused_lines: 6, .. })), "{beat:?}");
}

#[tokio::test]
async fn a_clock_that_is_behind_keeps_a_bridge_from_sending_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "");
    let fake = Fake::default();
    fake.0.lock().unwrap().pulse =
        crate::chatdb::Pulse { own_ahead: 3, senders_ahead: 3, ..crate::chatdb::Pulse::default() };
    let mut bridge = Bridge::start(dir, fake);
    bridge.event("account").await;
    let up = bridge
        .until(|up| {
            matches!(up, Up::NotReady { reasons } if !reasons.iter().any(|why| why.reason == Reason::Starting))
        })
        .await;
    let Up::NotReady { reasons } = up else { panic!() };
    let codes: Vec<Reason> = reasons.iter().map(|why| why.reason).collect();
    assert_eq!(codes, [Reason::ClockWrong]);
    // What is taken all the same is kept, and not started.
    bridge.lease().await;
    bridge.say(&command(1)).await;
    bridge.event("accepted").await;
    bridge.until(|up| matches!(up, Up::Heartbeat(_))).await;
    assert!(bridge.sends().is_empty());
}

#[tokio::test]
async fn a_database_that_cannot_be_read_is_told_and_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "");
    let fake = Fake::default();
    fake.0.lock().unwrap().broken = Some(Reason::DatabasePermission);
    let mut bridge = Bridge::start(dir, fake);
    let up = bridge
        .until(|up| {
            matches!(up, Up::NotReady { reasons } if reasons.iter().any(|why| why.reason == Reason::DatabasePermission))
        })
        .await;
    assert!(matches!(up, Up::NotReady { reasons } if reasons[0].remedy == "repair it"));
    bridge.lease().await;
    bridge.say(&command(1)).await;
    bridge.event("accepted").await;
    {
        let mut shelf = bridge.fake.0.lock().unwrap();
        shelf.broken = None;
        shelf.obliging = true;
    }
    bridge.ready().await;
    bridge.event("sent").await;
}

#[tokio::test]
async fn what_comes_in_is_told_with_its_cursor() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    bridge.fake.0.lock().unwrap().inbound = vec![received(1), received(2)];
    bridge.event("received").await;
    bridge.event("received").await;
    let (_, dir, _) = bridge.end().await;
    let journal = Journal::open(
        &dir.path().join("journal.db"),
        &config(dir.path()).phone,
        "jrn_other",
        crate::clock::now(),
    )
    .unwrap();
    assert_eq!(journal.meta().unwrap().cursor.as_deref(), Some("{\"told\":2}"));
    assert_eq!(journal.heard(10).unwrap().len(), 2);
}

#[tokio::test]
async fn a_denied_permission_ends_the_bridge_with_its_own_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "");
    std::fs::write(dir.path().join("osascript.denied"), "").unwrap();
    let mut bridge = Bridge::start(dir, Fake::default());
    let account = bridge.event("account").await;
    assert!(matches!(account.event, Fact::Account { state: AccountState::NoPermission, .. }));
    bridge
        .until(|up| {
            matches!(up, Up::NotReady { reasons } if reasons.iter().any(|why| why.reason == Reason::AutomationDenied))
        })
        .await;
    assert_eq!(bridge.task.await.unwrap().unwrap(), Exit::NoPermission);
}

#[tokio::test]
async fn the_end_of_stdin_kills_a_hanging_osascript_and_the_next_life_settles_it() {
    let mut bridge = Bridge::new("sleep 60");
    bridge.fake.0.lock().unwrap().obliging = false;
    bridge.ready().await;
    bridge.lease().await;
    bridge.say(&command(1)).await;
    bridge.event("started").await;
    let began = tokio::time::Instant::now();
    let (exit, dir, fake) = bridge.end().await;
    assert_eq!(exit, Exit::Asked);
    // The script would go on for a minute.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let mut bridge = Bridge::start(dir, fake);
    bridge.lease().await;
    let unknown = bridge.event("unknown").await;
    assert!(
        matches!(unknown.event, Fact::Unknown(about) if about.reason == Reason::BridgeInterrupted)
    );
    bridge.say(&command(1)).await;
    // A second message shows that the lane is free and the first still not started again.
    bridge.fake.0.lock().unwrap().obliging = true;
    bridge.say(&command(2)).await;
    bridge
        .until(|up| matches!(up, Up::Event(line) if line.event.kind() == "started" && line.seq > 3))
        .await;
    assert!(!bridge.sends().iter().skip(1).any(|text| text == "text 1"), "never a second time");
}

#[tokio::test]
async fn many_messages_are_each_sent_once_and_in_order_of_acceptance() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    bridge.lease().await;
    for n in 0..30 {
        bridge.say(&command(n)).await;
    }
    let mut sent = BTreeMap::new();
    while sent.len() < 30 {
        let line = bridge.event("sent").await;
        *sent.entry(line.event.attempt().unwrap().message.clone()).or_insert(0) += 1;
    }
    assert!(sent.values().all(|times| *times == 1));
    let expected: Vec<String> = (0..30).map(|n| format!("text {n}")).collect();
    assert_eq!(bridge.sends_of(expected.len()).await, expected);
}

#[test]
fn one_bridge_a_phone() {
    let dir = tempfile::tempdir().unwrap();
    let lock = Lock::take(dir.path()).unwrap();
    let error = Lock::take(dir.path()).unwrap_err();
    assert_eq!(error.exit(), Exit::TryAgain);
    drop(lock);
    Lock::take(dir.path()).unwrap();
}

#[tokio::test]
async fn a_lock_says_who_has_it_and_since_when() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(protocol::lock::FILE);
    // What was there is gone, however long it was.
    std::fs::write(&file, "x".repeat(1_000)).unwrap();
    let lock = Lock::wait_for(dir.path(), UnixMs(7)).await.unwrap();
    let holder: protocol::lock::Holder =
        serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((holder.pid, holder.started_at), (std::process::id(), UnixMs(7)));
    assert_eq!(holder.parent, std::os::unix::process::parent_id());
    drop(lock);
}

#[tokio::test]
async fn a_nearly_full_disk_keeps_a_bridge_from_sending_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "exit 0");
    let fake = Fake::default();
    fake.0.lock().unwrap().obliging = true;
    // No disk has so much.
    let mut bridge = Bridge::start_with(dir, fake, |config| config.disk_low_mib = 1 << 30);
    let low = |up: &Up| match up {
        Up::NotReady { reasons } => reasons.iter().map(|why| why.reason).collect::<Vec<_>>(),
        Up::Event(_) | Up::Hello(_) | Up::Ready | Up::Released { .. } | Up::Heartbeat(_) => {
            Vec::new()
        }
    };
    // Nothing else once the account has answered.
    let said = bridge.until(|up| low(up) == [Reason::DiskLow]).await;
    let Up::NotReady { reasons } = said else { panic!("{said:?}") };
    assert!(reasons[0].remedy.contains("Free space"), "{reasons:?}");
    bridge.lease().await;
    bridge.say(&command(1)).await;
    bridge.event("accepted").await;
    bridge.until(|up| matches!(up, Up::Heartbeat(beat) if beat.queued == 1)).await;
    assert_eq!(bridge.sends(), Vec::<String>::new());
    bridge.end().await;
}

#[tokio::test]
async fn a_clock_that_must_be_wrong_keeps_a_bridge_from_being_ready() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "exit 0");
    let fake = Fake::default();
    fake.0.lock().unwrap().pulse.own_ahead = 1;
    fake.0.lock().unwrap().pulse.senders_ahead = 2;
    let mut bridge = Bridge::start(dir, fake);
    bridge
        .until(|up| match up {
            Up::NotReady { reasons } => {
                reasons.iter().map(|why| why.reason).eq([Reason::ClockWrong])
            }
            Up::Event(_) | Up::Hello(_) | Up::Ready | Up::Released { .. } | Up::Heartbeat(_) => {
                false
            }
        })
        .await;
    bridge.end().await;
}

#[tokio::test]
async fn a_heartbeat_tells_what_the_newest_rows_say() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "exit 0");
    let fake = Fake::default();
    fake.0.lock().unwrap().pulse = crate::chatdb::Pulse {
        newest_inbound: Some(UnixMs(1_795_000_000_000)),
        newest_receipt: Some(UnixMs(1_795_000_001_000)),
        own_last_hour: 9,
        not_registered_last_hour: 7,
        ..crate::chatdb::Pulse::default()
    };
    let mut bridge = Bridge::start(dir, fake);
    let beat = bridge.until(|up| matches!(up, Up::Heartbeat(_))).await;
    let Up::Heartbeat(beat) = beat else { panic!("{beat:?}") };
    assert_eq!(beat.last_inbound, Some(UnixMs(1_795_000_000_000)));
    assert_eq!(beat.last_receipt, Some(UnixMs(1_795_000_001_000)));
    assert_eq!((beat.own_last_hour, beat.not_registered_last_hour), (9, 7));
    bridge.end().await;
}

#[tokio::test]
async fn a_paused_bridge_leaves_messages_alone_and_sends_what_waits_afterwards_once() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    bridge.lease().await;
    bridge.say(&Command::Pause { for_ms: 30_000, end_after_ms: None }).await;
    // Said at once, and not only with the next regular sign of life.
    let beat = bridge.until(|up| matches!(up, Up::Heartbeat(beat) if beat.paused)).await;
    let Up::Heartbeat(beat) = beat else { panic!("{beat:?}") };
    assert_eq!(beat.osascript_age_ms, None);
    let message = command(1);
    bridge.say(&message).await;
    bridge.event("accepted").await;
    bridge.until(|up| matches!(up, Up::Heartbeat(beat) if beat.queued == 1)).await;
    assert_eq!(bridge.sends(), Vec::<String>::new());
    bridge.say(&Command::Pause { for_ms: 0, end_after_ms: None }).await;
    bridge.until(|up| *up == Up::Ready).await;
    bridge.event("sent").await;
    assert_eq!(bridge.sends_of(1).await, ["text 1"]);
    bridge.end().await;
}

#[tokio::test]
async fn a_pause_ends_a_question_that_is_on_its_way_and_waits_for_a_send() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "sleep 1");
    let fake = Fake::default();
    fake.0.lock().unwrap().obliging = true;
    let patient = |config: &mut Config| config.osascript_deadline = Duration::from_mins(1);
    let mut bridge = Bridge::start_with(dir, fake, patient);
    bridge.ready().await;
    bridge.lease().await;
    bridge.say(&command(1)).await;
    bridge.event("started").await;
    bridge.say(&Command::Pause { for_ms: 30_000, end_after_ms: None }).await;
    let busy = bridge.until(|up| matches!(up, Up::Heartbeat(beat) if beat.paused)).await;
    let Up::Heartbeat(busy) = busy else { panic!("{busy:?}") };
    assert!(busy.osascript_age_ms.is_some(), "{busy:?}");
    bridge.until(|up| matches!(up, Up::Heartbeat(beat) if is_quiet(beat))).await;
    assert_eq!(bridge.sends(), ["text 1"]);
    // The question that follows a pause hangs; the next pause need not wait for it.
    std::fs::write(bridge.dir.path().join("osascript.hangs"), "").unwrap();
    bridge.say(&Command::Pause { for_ms: 0, end_after_ms: None }).await;
    bridge.until(|up| matches!(up, Up::Heartbeat(beat) if beat.osascript_age_ms.is_some())).await;
    bridge.say(&Command::Pause { for_ms: 30_000, end_after_ms: None }).await;
    bridge.until(|up| matches!(up, Up::Heartbeat(beat) if is_quiet(beat))).await;
    bridge.end().await;
}

#[tokio::test]
async fn a_pause_ends_a_text_that_has_had_its_time_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "sleep 1000");
    let patient = |config: &mut Config| config.osascript_deadline = Duration::from_mins(1);
    let mut bridge = Bridge::start_with(dir, Fake::default(), patient);
    bridge.ready().await;
    bridge.lease().await;
    bridge.say(&command(1)).await;
    bridge.event("started").await;
    assert_eq!(bridge.sends_of(1).await, ["text 1"]);
    let pause = |end_after_ms| Command::Pause { for_ms: 30_000, end_after_ms: Some(end_after_ms) };
    // It has not had its time.
    bridge.say(&pause(60_000)).await;
    let busy = bridge.until(|up| matches!(up, Up::Heartbeat(beat) if beat.paused)).await;
    assert!(matches!(&busy, Up::Heartbeat(beat) if beat.osascript_age_ms.is_some()), "{busy:?}");
    bridge.say(&pause(0)).await;
    bridge.until(|up| matches!(up, Up::Heartbeat(beat) if is_quiet(beat))).await;
    // Nobody knows what became of it, and so it is told.
    bridge.event("unknown").await;
    assert_eq!(bridge.sends(), ["text 1"]);
    bridge.end().await;
}

#[tokio::test]
async fn after_a_sleep_the_account_is_asked_at_once_and_the_phone_stays_ready_meanwhile() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    let asked = |up: &Up| matches!(up, Up::Heartbeat(beat) if beat.osascript_ended == 1);
    let beat = bridge.until(asked).await;
    let Up::Heartbeat(beat) = beat else { panic!("{beat:?}") };
    assert!(beat.osascript_last_ms.is_some_and(|ms| ms == beat.osascript_total_ms), "{beat:?}");
    // The next question is due in a minute. What nobody understands is refused, and nothing else comes of it.
    bridge.input.send(Input::Line("{\"type\":\"of_tomorrow\"}".to_owned())).await.unwrap();
    bridge.say(&Command::Preflight).await;
    let asked = |up: &Up| matches!(up, Up::Heartbeat(beat) if beat.osascript_ended == 2);
    let beat = bridge.until(asked).await;
    assert!(matches!(&beat, Up::Heartbeat(beat) if beat.refused_lines == 1), "{beat:?}");
    assert!(
        !bridge
            .heard
            .iter()
            .skip_while(|up| **up != Up::Ready)
            .any(|up| matches!(up, Up::NotReady { .. }))
    );
    bridge.end().await;
}

fn is_quiet(beat: &Heartbeat) -> bool {
    beat.paused && beat.osascript_age_ms.is_none()
}

#[tokio::test]
async fn a_blocked_account_stops_what_waits_and_is_kept_over_a_restart() {
    let mut bridge = Bridge::new("");
    bridge.ready().await;
    bridge.say(&command(1)).await;
    bridge.event("accepted").await;
    bridge.say(&Command::Block { blocked: true }).await;
    // The lease comes in the same breath: the message would start now.
    bridge.lease().await;
    let told = bridge.event("account").await;
    assert!(matches!(told.event, Fact::Account { state: AccountState::Blocked, .. }), "{told:?}");
    let blocked = |up: &Up| match up {
        Up::NotReady { reasons } => {
            reasons.iter().map(|why| why.reason).eq([Reason::AccountBlocked])
        }
        Up::Event(_) | Up::Hello(_) | Up::Ready | Up::Released { .. } | Up::Heartbeat(_) => false,
    };
    bridge.until(blocked).await;
    let (_, dir, fake) = bridge.end().await;
    assert_eq!(sends(dir.path()), Vec::<String>::new());

    let mut bridge = Bridge::start(dir, fake);
    bridge.until(blocked).await;
    bridge.lease().await;
    bridge.until(|up| matches!(up, Up::Heartbeat(beat) if beat.queued == 1)).await;
    assert_eq!(bridge.sends(), Vec::<String>::new());
    bridge.say(&Command::Block { blocked: false }).await;
    bridge.ready().await;
    bridge.event("sent").await;
    assert_eq!(bridge.sends_of(1).await, ["text 1"]);
    bridge.end().await;
}

/// A question about attempts of another bridge with this text.
fn seek(text: &str, attempts: &[u8], known: &[&str]) -> Command {
    let attempts = attempts.iter().map(|n| MessageId::new(1, [*n; 10]));
    Command::Seek(Seek {
        to: "+12025550143".parse().map(Recipient::Number).unwrap(),
        text: text.to_owned(),
        since: UnixMs(1),
        until: UnixMs(4_000_000_000_000),
        attempts: attempts.map(|message| Attempt { message, attempt: 1 }).collect(),
        known: known.iter().map(|guid| (*guid).to_owned()).collect(),
    })
}

#[tokio::test]
async fn what_another_bridge_has_sent_is_told_when_its_row_proves_it_and_never_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "");
    let fake = Fake::default();
    let elsewhere = |rowid| RowState { delivered: true, ..sent_row(rowid) };
    let mut bridge = Bridge::start(dir, fake.clone());
    bridge.ready().await;
    bridge.lease().await;
    // Nothing is there, then only what is known to be another message's: neither says anything.
    bridge.say(&seek("text 1", &[1], &[])).await;
    fake.0.lock().unwrap().rows.push((7, "text 1".to_owned(), elsewhere(7)));
    bridge.say(&seek("text 1", &[1], &["GUID-7"])).await;
    // One that is known and has not come: the row may be its.
    bridge.say(&seek("text 1", &[1], &["GUID-99"])).await;
    bridge.say(&Command::Capability { to: "+12025550143".parse().unwrap() }).await;
    bridge.event("capability").await;
    let told = |bridge: &Bridge| {
        let mut kinds = Vec::new();
        for up in &bridge.heard {
            if let Up::Event(line) = up
                && line.event.attempt().is_some()
            {
                kinds.push(line.event.kind());
            }
        }
        kinds
    };
    assert_eq!(told(&bridge), Vec::<&str>::new());
    bridge.say(&seek("text 1", &[1], &[])).await;
    let sent = bridge.event("sent").await;
    assert!(matches!(&sent.event, Fact::Sent { guid, .. } if guid == "GUID-7"), "{sent:?}");
    // It is its own by now: the row proves nothing for the next one, and whoever asks for it to be sent hears the same.
    bridge.say(&seek("text 1", &[2], &[])).await;
    bridge.say(&Command::Ack { journal: bridge.journal.clone(), seq: sent.seq }).await;
    bridge.say(&command(1)).await;
    let again = bridge.event("sent").await;
    assert_eq!(again.event, sent.event);
    // It did not say when it was delivered, which the row of another device always looks like; now it does.
    {
        let mut shelf = fake.0.lock().unwrap();
        shelf.rows[0].2.delivered_at = Some(UnixMs(9));
    }
    bridge.event("delivered").await;
    assert_eq!(told(&bridge), ["sent", "sent", "delivered"]);
    assert_eq!(bridge.sends(), Vec::<String>::new());
    assert_eq!(bridge.end().await.0, Exit::Asked);
}

#[tokio::test]
async fn a_row_is_nobodys_while_a_send_of_the_same_words_waits_for_its_own() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "");
    let fake = Fake::default();
    let mut bridge = Bridge::start(dir, fake.clone());
    bridge.ready().await;
    bridge.lease().await;
    bridge.say(&command(1)).await;
    bridge.event("unknown").await;
    // Whose it is, of the two, nobody can tell. It stands below the mark of the one in doubt.
    fake.0.lock().unwrap().rows.push((0, "text 1".to_owned(), sent_row(0)));
    bridge.say(&seek("text 1", &[2], &[])).await;
    bridge.say(&Command::Capability { to: "+12025550143".parse().unwrap() }).await;
    bridge.event("capability").await;
    assert!(
        !bridge.heard.iter().any(|up| matches!(up, Up::Event(line) if line.event.kind() == "sent"))
    );
    assert_eq!(bridge.end().await.0, Exit::Asked);
}

#[tokio::test]
async fn a_phone_that_goes_to_another_host_is_released_when_no_script_runs() {
    // The script takes its time: until it has ended, Messages may still be given its text.
    let mut bridge = Bridge::new("sleep 1");
    bridge.ready().await;
    bridge.lease().await;
    bridge.say(&command(1)).await;
    bridge.event("started").await;
    bridge.say(&command(2)).await;
    bridge.event("accepted").await;
    bridge.say(&Command::Release { epoch: 2 }).await;
    // What was waiting is given back at once, so that the other host can send it.
    let given_back = bridge.event("refused").await;
    let Fact::Refused(why) = &given_back.event else { panic!("{given_back:?}") };
    assert_eq!((why.reason, why.retryable), (Reason::StaleEpoch, true));
    assert!(!bridge.heard.contains(&Up::Released { epoch: 2 }), "a script runs");
    bridge.until(|up| *up == Up::Released { epoch: 2 }).await;
    assert_eq!(bridge.sends_of(1).await.len(), 1);
    // A lease of before, which was still on its way, opens nothing; nothing older is taken.
    bridge.lease().await;
    bridge.say(&command(3)).await;
    bridge.event("refused").await;
    // Asked again, it says so again: the first answer may have got lost.
    bridge.say(&Command::Release { epoch: 2 }).await;
    bridge.until(|up| *up == Up::Released { epoch: 2 }).await;
    assert_eq!(bridge.sends().len(), 1);
    bridge.end().await;
}
