//! Owners with a real child in the place of the bridge.

use std::path::Path;

use protocol::link::{PhoneReport, PhoneState, PowerLevel, PowerSource};
use protocol::pipe::Event;
use protocol::{MessageId, UnixMs};
use router_client::clock::continuous_now;
use tokio::time::Instant;

use super::owner::bridge_config;
use super::*;
use crate::phone::Order;

/// Every wait of these tests ends by then.
const PATIENCE: Duration = Duration::from_secs(20);

struct House {
    dir: tempfile::TempDir,
    pool: Pool,
    id: PhoneId,
    up: mpsc::Receiver<LinkInput>,
    surroundings: Surroundings,
    power: watch::Sender<Option<HostPower>>,
}

impl House {
    fn new(behaviour: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let id = PhoneId::new(1, [3; 10]);
        let (link, up) = mpsc::channel(64);
        let (power, powers) = watch::channel(None);
        let surroundings = Surroundings {
            state_dir: dir.path().to_owned(),
            tuning: Tuning {
                bridge: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_bridge.sh"),
                settings: Settings::default(),
                memory: MemoryLimits { soft: None, hard: None },
                cpu: CpuLimits {
                    soft_percent: None,
                    hard_percent: None,
                    over: Duration::from_mins(5),
                },
            },
            link: Some(link),
            local_epoch: 1,
            power: powers,
            stopping: CancellationToken::new(),
            killing: CancellationToken::new(),
            tracker: TaskTracker::new(),
        };
        let mut extra = toml::Table::new();
        extra.insert("behaviour".to_owned(), toml::Value::String(behaviour.to_owned()));
        let config = PhoneConfig {
            number: "+12025550190".parse().unwrap(),
            label: None,
            chat_db: "/db".into(),
            osascript: None,
            extra: Arc::new(extra),
        };
        let pool = Pool::start(&BTreeMap::from([(id.clone(), config)]), &surroundings);
        Self { dir, pool, id, up, surroundings, power }
    }

    fn handle(&self) -> Handle {
        self.pool.get(&self.id).unwrap()
    }

    /// The next input for the link that `pick` takes.
    async fn up<T>(&mut self, pick: impl Fn(&LinkInput) -> Option<T>) -> T {
        let found = async {
            loop {
                let input = self.up.recv().await.expect("the owners are gone");
                if let Some(found) = pick(&input) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the link was not told")
    }

    async fn report(&mut self, wanted: PhoneState) -> (PhoneReport, bool) {
        self.up(|input| match input {
            LinkInput::Phone { report, started } if report.state == wanted => {
                Some((report.clone(), *started))
            }
            LinkInput::Phone { .. }
            | LinkInput::Forget(_)
            | LinkInput::Released { .. }
            | LinkInput::Event { .. }
            | LinkInput::Canary(_)
            | LinkInput::Health(_) => None,
        })
        .await
    }

    fn lines(&self) -> String {
        let file = self.dir.path().join("phones").join(self.id.as_str()).join("lines");
        std::fs::read_to_string(file).unwrap_or_default()
    }

    async fn finish(self) {
        self.surroundings.stopping.cancel();
        self.surroundings.tracker.close();
        tokio::time::timeout(PATIENCE, self.surroundings.tracker.wait()).await.unwrap();
    }
}

fn send(message: &MessageId, epoch: u64) -> Command {
    Command::Send(protocol::pipe::Send {
        message: message.clone(),
        attempt: 1,
        epoch,
        to: "+12025550100".parse().unwrap(),
        text: "x".to_owned(),
        attachments: Vec::new(),
        route: vec![protocol::Channel::Imessage],
        class: protocol::Class::Otp,
        start_before: UnixMs(0),
        conversation: None,
    })
}

fn lease(epoch: u64) -> Command {
    Command::Lease { epoch, ttl_ms: 60_000, issued_ms: continuous_now() }
}

#[tokio::test]
async fn the_link_hears_of_a_new_bridge_and_its_events() {
    let mut house = House::new("good");
    let (report, started) = house.report(PhoneState::NotReady).await;
    assert!(started, "the first word after hello asks for the acknowledged seq");
    let journal = report.journal.unwrap();
    let (report, started) = house.report(PhoneState::Ready).await;
    assert_eq!((report.journal.as_ref(), started), (Some(&journal), false));

    let message = MessageId::new(5, [5; 10]);
    house.handle().ask(Ask::Command(send(&message, 4))).unwrap();
    let (from, seq, event) = house
        .up(|input| match input {
            LinkInput::Event { journal, line, .. } => {
                Some((journal.clone(), line.seq, line.event.clone()))
            }
            LinkInput::Phone { .. }
            | LinkInput::Forget(_)
            | LinkInput::Released { .. }
            | LinkInput::Canary(_)
            | LinkInput::Health(_) => None,
        })
        .await;
    assert_eq!((from, seq), (journal, 1));
    assert!(matches!(event, Event::Accepted(attempt) if attempt.message == message));
    // With a router the supervisor grants nothing and acknowledges nothing itself.
    assert!(!house.lines().contains("\"lease\"") && !house.lines().contains("\"ack\""));
    house.finish().await;
}

#[tokio::test]
async fn a_restarted_bridge_gets_the_lease_that_still_holds() {
    let mut house = House::new("good");
    house.report(PhoneState::Ready).await;
    house.handle().ask(Ask::Command(lease(7))).unwrap();
    house.handle().ask(Ask::Order(Order::Restart)).unwrap();
    house.report(PhoneState::Draining).await;
    house.report(PhoneState::Ready).await;
    assert_eq!(house.handle().lease().map(|lease| lease.epoch), Some(7));
    let until = Instant::now() + PATIENCE;
    while house.lines().matches("\"epoch\":7").count() < 2 {
        assert!(Instant::now() < until, "{}", house.lines());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    house.handle().ask(Ask::Command(Command::Revoke { epoch: 7 })).unwrap();
    house.handle().ask(Ask::Order(Order::Restart)).unwrap();
    house.report(PhoneState::Draining).await;
    house.report(PhoneState::Ready).await;
    assert_eq!(house.handle().lease(), None);
    assert_eq!(house.lines().matches("\"lease\"").count(), 2, "{}", house.lines());
    house.finish().await;
}

#[tokio::test]
async fn only_a_bridge_can_say_that_a_phone_is_released() {
    let mut house = House::new("good");
    house.report(PhoneState::Ready).await;
    house.handle().ask(Ask::Command(lease(7))).unwrap();
    house.handle().ask(Ask::Order(Order::Stop)).unwrap();
    house.report(PhoneState::Stopped).await;
    house.handle().ask(Ask::Command(Command::Release { epoch: 8 })).unwrap();
    // What comes next is of the start: nothing was said in the name of a bridge that does not run.
    house.handle().ask(Ask::Order(Order::Start)).unwrap();
    let next = |input: &LinkInput| match input {
        LinkInput::Released { .. } => Some(false),
        LinkInput::Phone { report, .. } if report.state == PhoneState::Ready => Some(true),
        LinkInput::Phone { .. }
        | LinkInput::Forget(_)
        | LinkInput::Event { .. }
        | LinkInput::Canary(_)
        | LinkInput::Health(_) => None,
    };
    assert!(house.up(next).await, "released without a bridge");
    assert_eq!(house.handle().lease(), None);
    house.finish().await;
}

#[tokio::test]
async fn on_low_power_a_bridge_is_offered_what_it_can_only_refuse_and_nothing_else() {
    let mut house = House::new("good");
    house.report(PhoneState::Ready).await;
    house.power.send_replace(Some(HostPower {
        level: PowerLevel::Low,
        source: PowerSource::Battery,
        percent: Some(4),
        minutes: None,
    }));
    house.report(PhoneState::NotReady).await;
    let [work, released] = [6, 7].map(|n| MessageId::new(n, [5; 10]));
    house.handle().ask(Ask::Command(lease(4))).unwrap();
    house.handle().ask(Ask::Command(send(&work, 4))).unwrap();
    house.handle().ask(Ask::Command(Command::Release { epoch: 5 })).unwrap();
    house.handle().ask(Ask::Command(send(&released, 4))).unwrap();
    let until = Instant::now() + PATIENCE;
    while !house.lines().contains(released.as_str()) {
        assert!(Instant::now() < until, "{}", house.lines());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!house.lines().contains(work.as_str()), "new work on an empty battery");
    house.finish().await;
}

#[tokio::test]
async fn a_link_that_takes_nothing_holds_up_no_bridge() {
    let mut house = House::new("good");
    house.report(PhoneState::Ready).await;
    let handle = house.handle().clone();
    let mut listener = handle.stream.listen();
    // Far more than the queue of the link holds, and nobody empties it.
    for n in 0..100 {
        handle.ask(Ask::Command(send(&MessageId::new(n, [5; 10]), 4))).unwrap();
    }
    for _ in 0..200 {
        tokio::time::timeout(PATIENCE, listener.recv()).await.unwrap().unwrap();
    }
    assert_eq!(handle.report().state, PhoneState::Ready);
    house.finish().await;
}

#[tokio::test]
async fn a_restart_writes_nothing_that_is_there_already() {
    use std::os::unix::fs::MetadataExt as _;
    let mut house = House::new("good");
    house.report(PhoneState::Ready).await;
    let file = house.dir.path().join("phones").join(house.id.as_str()).join("bridge.toml");
    let place = || std::fs::metadata(&file).unwrap().ino();
    let before = place();
    house.handle().ask(Ask::Order(Order::Restart)).unwrap();
    house.report(PhoneState::Draining).await;
    house.report(PhoneState::Ready).await;
    assert_eq!(place(), before);
    std::fs::write(&file, "half").unwrap();
    house.handle().ask(Ask::Order(Order::Restart)).unwrap();
    house.report(PhoneState::Draining).await;
    house.report(PhoneState::Ready).await;
    assert!(std::fs::read_to_string(&file).unwrap().contains("behaviour"));
    house.finish().await;
}

#[tokio::test]
async fn a_bridge_that_does_not_end_holds_up_no_reload_and_is_done_when_it_has_ended() {
    let mut house = House::new("ignores_stop");
    house.report(PhoneState::Ready).await;
    // Its owner knows the usual periods, the reload hurries.
    let mut hurried = house.surroundings.clone();
    let settings = &mut hurried.tuning.settings;
    (settings.stop_within, settings.term_within) = (Duration::ZERO, Duration::ZERO);
    let old = PhoneConfig::clone(&house.handle().config);
    let other = PhoneId::new(2, [4; 10]);
    let elsewhere = PhoneConfig { chat_db: "/other".into(), ..old.clone() };
    // Another phone is to have the chat.db of the one that ends, and a third one has its own.
    let third = PhoneId::new(3, [5; 10]);
    let wanted = BTreeMap::from([(other.clone(), old.clone()), (third.clone(), elsewhere)]);
    let changes = house.pool.reload(&wanted, &hurried).await;
    let ended = house.id.clone();
    assert_eq!(
        (changes.still_ending, changes.started, changes.stopped),
        (vec![ended.clone()], vec![third], vec![])
    );
    house.surroundings.killing.cancel();
    tokio::time::timeout(PATIENCE, house.pool.ended(std::slice::from_ref(&ended))).await.unwrap();
    let fresh = Surroundings { killing: CancellationToken::new(), ..hurried };
    let changes = house.pool.reload(&BTreeMap::from([(other.clone(), old)]), &fresh).await;
    assert!(changes.stopped.contains(&ended) && changes.started == [other], "{changes:?}");
    fresh.killing.cancel();
    house.finish().await;
}

#[test]
fn the_bridges_file_carries_its_own_settings_and_ours() {
    let mut extra: toml::Table =
        toml::from_str("osascript_deadline_ms = 5\n[pacing]\nburst = 2").unwrap();
    extra.insert("x".to_owned(), toml::Value::Boolean(true));
    let config = PhoneConfig {
        number: "+12025550190".parse().unwrap(),
        label: None,
        chat_db: "/a \"quoted\" place".into(),
        osascript: Some("/o".into()),
        extra: Arc::new(extra),
    };
    let text = bridge_config(&PhoneId::new(1, [0; 10]), &config, Path::new("/state"));
    let read: toml::Table = toml::from_str(&text).unwrap();
    assert_eq!(read["chat_db"].as_str(), Some("/a \"quoted\" place"));
    assert_eq!(read["pacing"]["burst"].as_integer(), Some(2));
    assert_eq!(read["osascript_deadline_ms"].as_integer(), Some(5));
    assert_eq!(read["state_dir"].as_str(), Some("/state"));
}
