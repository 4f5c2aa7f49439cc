//! A phone on two hosts: who sends, how it changes hands, and what becomes of what was under way.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a script that meets something else than it expects has failed, and says where"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::link_support::{
    Came, DEADLINE, Host, Router, Wire, about, accept, authorization, count, dial, enrol,
    eventually, hello, kinds, message, nonce, reaches, received, report, router, tenant,
};
use protocol::link::{
    EventFrame, HostFrame, HostHealth, HostPower, PhoneReport, PhoneState, PowerLevel, PowerSource,
    RouterFrame,
};
use protocol::pipe::{
    Attempt, Command, Conversation, ConversationKind, Event, Reaction, Received, Seek, Send,
};
use protocol::{Channel, PhoneId, Reason, Status, UnixMs};
use router::clock::random;
use router::lease::{Decision, Policy};
use router::params;
use router::server::App;
use router::store::{Tx, admin, lease as rows, standby};

const ONE: &str = "+12025550191";
const TWO: &str = "+12025550192";
const TO: &str = "+12025550143";

/// The shortest lease that the configuration allows, and a phone that is soon found unfit.
const SOON: &str = "[lease]\nttl_ms = 4000\ngrace_ms = 1000\nunfit_ms = 1000\nsettle_ms = 0\n\
                    [dispatch]\nreoffer_ms = 1000\n";

/// Nothing ends or is repeated by time alone while a test runs, however busy the machine is.
const LASTING: &str = "[lease]\nttl_ms = 600000\ngrace_ms = 1000\nunfit_ms = 600000\nsettle_ms = 0\n\
                       [dispatch]\nreoffer_ms = 600000\n";

/// A Mac that does what the test says.
struct Mac {
    wire: Wire,
    phone: PhoneId,
    /// Empty while its bridge has not spoken.
    journal: &'static str,
    state: PhoneState,
    /// Why it is not ready, where it is not.
    reasons: Vec<Reason>,
    power: Option<PowerLevel>,
    seq: u64,
    renewal: u64,
    epoch: Option<u64>,
}

async fn a_host(app: &App, number: &str, standby: bool) -> Host {
    let key = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&random::<32>()).unwrap();
    if standby {
        crate::link_support::enrol_standby(app, key, &[number]).await
    } else {
        enrol(app, key, &[number]).await
    }
}

impl Mac {
    async fn connect(
        router: &Router,
        host: &Host,
        journal: &'static str,
        state: PhoneState,
    ) -> Self {
        let header = authorization(host, router.app.clock.now().0 / 1_000, &nonce());
        let wire = dial(router.address, Some(&header)).await.unwrap();
        let phone = host.phones[0].clone();
        let reasons = match state {
            PhoneState::NotReady => vec![Reason::DatabasePermission],
            _ => vec![],
        };
        let mut mac = Self {
            wire,
            phone,
            journal,
            state,
            reasons,
            power: None,
            seq: 0,
            renewal: 0,
            epoch: None,
        };
        let report = mac.report();
        mac.wire.say(&hello(vec![report])).await;
        let welcome = mac.wire.welcome().await;
        mac.seq = welcome.phones[0].acked_seq;
        mac.epoch = welcome.phones[0].epoch;
        mac
    }

    fn report(&self) -> PhoneReport {
        PhoneReport {
            journal: Some(self.journal.to_owned()).filter(|journal| !journal.is_empty()),
            epoch: self.epoch,
            reasons: self.reasons.clone(),
            ..report(&self.phone, self.state)
        }
    }

    async fn renew(&mut self) {
        self.renewal += 1;
        let power = self.power.map(|level| HostPower {
            level,
            source: PowerSource::Unknown,
            percent: None,
            minutes: None,
        });
        let health = HostHealth { power, ..HostHealth::default() };
        let frame = HostFrame::Renew { renewal: self.renewal, phones: vec![self.report()], health };
        self.wire.say(&frame).await;
    }

    /// The epoch of the next lease, however it comes about.
    async fn leased(&mut self) -> (u64, u64) {
        let lease = self.wire.until(|frame| match frame {
            RouterFrame::Lease { epoch, renewal, .. } => Some((*epoch, *renewal)),
            _ => None,
        });
        let (epoch, renewal) = lease.await;
        self.epoch = Some(epoch);
        (epoch, renewal)
    }

    /// The next question for what another host had in hand.
    async fn sought(&mut self) -> Seek {
        self.wire
            .until(|frame| match frame {
                RouterFrame::Command { command: Command::Seek(seek), .. } => Some(seek.clone()),
                _ => None,
            })
            .await
    }

    /// The next attempt that it is asked to give up.
    async fn canceled(&mut self) -> Attempt {
        self.wire
            .until(|frame| match frame {
                RouterFrame::Command { command: Command::Cancel { message, attempt }, .. } => {
                    Some(Attempt { message: message.clone(), attempt: *attempt })
                }
                _ => None,
            })
            .await
    }

    async fn asked_to_release(&mut self) -> u64 {
        self.wire
            .until(|frame| match frame {
                RouterFrame::Release { epoch, .. } => Some(*epoch),
                _ => None,
            })
            .await
    }

    async fn release(&mut self, epoch: u64) {
        self.epoch = None;
        self.wire.say(&HostFrame::Released { phone: self.phone.clone(), epoch }).await;
    }

    async fn tell(&mut self, event: Event) {
        self.seq += 1;
        let frame = HostFrame::Event(EventFrame {
            phone: self.phone.clone(),
            journal: self.journal.to_owned(),
            seq: self.seq,
            epoch: self.epoch,
            at: UnixMs(1),
            event,
        });
        self.wire.say(&frame).await;
        self.wire.ack(self.seq).await;
    }

    /// Nothing of these has come before the answer to a ping.
    async fn has_heard_nothing_of(&mut self, unwanted: fn(&RouterFrame) -> bool) {
        self.wire.say(&HostFrame::Ping { at: UnixMs(7) }).await;
        loop {
            match self.wire.next().await {
                Came::Frame(frame) if matches!(*frame, RouterFrame::Pong { at: UnixMs(7) }) => {
                    return;
                }
                Came::Frame(frame) => assert!(!unwanted(&frame), "{frame:?}"),
                Came::Closed(code) => panic!("closed: {code:?}"),
            }
        }
    }
}

fn attempt(send: &Send) -> Attempt {
    Attempt { message: send.message.clone(), attempt: send.attempt }
}

fn sent(send: &Send) -> Event {
    Event::Sent {
        attempt: attempt(send),
        channel: send.route[0],
        guid: format!("g-{}", send.message),
    }
}

async fn post(router: &Router, path: &str, body: &str) -> (u16, String) {
    let url = format!("http://{}{path}", router.address);
    let request = reqwest::Client::new()
        .post(url)
        .bearer_auth("an-admin-token-for-tests")
        .header("content-type", "application/json")
        .body(body.to_owned());
    let answer = tokio::time::timeout(DEADLINE, request.send()).await.unwrap().unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn a_host_that_is_gone_is_replaced_and_settles_its_messages_when_it_returns() {
    let router = router(SOON).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    assert_eq!(first.phones, second.phones, "it is one phone");
    let mut active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    assert_eq!((active.epoch, standby.epoch), (Some(1), None));
    // One is started there, of another nobody knows whether it was even taken.
    let started = accept(app, &tenant, TO, |_| {}).await;
    let send = active.wire.send_command().await;
    active.tell(Event::Accepted(attempt(&send))).await;
    active.tell(Event::Started { attempt: attempt(&send), channel: send.route[0] }).await;
    let offered = accept(app, &tenant, "+12025550144", |_| {}).await;
    let unanswered = active.wire.send_command().await;
    standby.renew().await;
    standby.has_heard_nothing_of(|frame| matches!(frame, RouterFrame::Lease { .. })).await;
    drop(active);
    let waits = accept(app, &tenant, "+12025550145", |_| {}).await;
    // It does not ask: the lease comes by itself, and counts from its last renewal.
    assert_eq!(standby.leased().await, (2, 1));
    for id in [&started, &offered] {
        let end = reaches(app, &tenant, id, Status::Unknown).await;
        assert_eq!(end.reason, Some(Reason::HostLost));
    }
    let here = standby.wire.send_command().await;
    assert_eq!((&here.message, here.epoch), (&waits, 2), "and nothing of the other host's");
    standby.tell(sent(&here)).await;
    reaches(app, &tenant, &waits, Status::Sent).await;
    // Back again, it stands by, and its journal says what became of the two.
    let mut back = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    assert_eq!(back.epoch, None);
    back.tell(sent(&send)).await;
    reaches(app, &tenant, &started, Status::Sent).await;
    back.tell(Event::Refused(about(&unanswered, Reason::StaleEpoch, true))).await;
    reaches(app, &tenant, &offered, Status::Failed).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM attempts").await, 3, "nothing was sent again");
}

#[tokio::test]
async fn what_was_lost_is_asked_of_the_standbys_chat_db_and_of_the_journal_that_returns() {
    let router = router(SOON).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let mut active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    // The same words went out just before: whatever shows that must not be taken for what comes now.
    accept(app, &tenant, TO, |_| {}).await;
    let before = active.wire.send_command().await;
    active.tell(sent(&before)).await;
    let started = accept(app, &tenant, TO, |_| {}).await;
    let running = active.wire.send_command().await;
    active.tell(Event::Started { attempt: attempt(&running), channel: running.route[0] }).await;
    let offered = accept(app, &tenant, "+12025550144", |_| {}).await;
    let unanswered = active.wire.send_command().await;
    standby.renew().await;
    drop(active);
    standby.leased().await;
    for id in [&started, &offered] {
        reaches(app, &tenant, id, Status::Unknown).await;
    }
    let seeks = [standby.sought().await, standby.sought().await];
    let of = |send: &Send| seeks.iter().find(|seek| seek.to == send.to).unwrap();
    assert_eq!(of(&running).attempts, [attempt(&running)]);
    assert_eq!(
        (&of(&running).text, &of(&running).known),
        (&running.text, &vec![format!("g-{}", before.message)])
    );
    let asked = of(&unanswered);
    assert_eq!((&asked.attempts, &asked.known), (&vec![attempt(&unanswered)], &vec![]));
    assert!(asked.since < app.clock.now() && asked.since < asked.until);
    // The row of another message proves nothing, whatever is said of it; nor is silence an answer.
    let wrong = Event::Sent {
        attempt: attempt(&unanswered),
        channel: Channel::Imessage,
        guid: format!("g-{}", before.message),
    };
    standby.tell(wrong).await;
    assert_eq!(message(app, &tenant, &offered).await.status, Status::Unknown);
    standby.tell(sent(&running)).await;
    let settled = reaches(app, &tenant, &started, Status::Sent).await;
    assert_eq!(settled.channel_used, Some(Channel::Imessage));
    // It is asked about again, until something is known.
    assert_eq!(standby.sought().await.attempts, [attempt(&unanswered)]);
    // Its journal returns: what it was never given, it gives up for good.
    let mut back = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let given_up = back.canceled().await;
    assert_eq!(given_up, attempt(&unanswered));
    back.tell(Event::Canceled(given_up)).await;
    let end = reaches(app, &tenant, &offered, Status::Failed).await;
    assert_eq!(end.reason, Some(Reason::HostLost));
    let story = kinds(app, &tenant, &offered).await;
    assert_eq!(story.last().map(String::as_str), Some("failed"), "{story:?}");
    assert_eq!(count(app, "SELECT COUNT(*) FROM attempts").await, 3, "nothing was sent again");
}

#[tokio::test]
async fn a_lost_message_that_its_journal_proves_unsent_ends_as_failed() {
    let router = router(SOON).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let mut active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    let lost = accept(app, &tenant, TO, |_| {}).await;
    let send = active.wire.send_command().await;
    active.tell(Event::Started { attempt: attempt(&send), channel: send.route[0] }).await;
    standby.renew().await;
    drop(active);
    standby.leased().await;
    reaches(app, &tenant, &lost, Status::Unknown).await;
    let mut back = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    back.tell(Event::Failed(about(&send, Reason::ServiceRejected, true))).await;
    let end = reaches(app, &tenant, &lost, Status::Failed).await;
    assert_eq!(end.reason, Some(Reason::ServiceRejected));
    // Its sender was told that nobody knows and may have acted on it: it is not tried again, retryable or not.
    assert_eq!(count(app, "SELECT COUNT(*) FROM attempts").await, 1);
    assert_eq!(count(app, "SELECT COUNT(*) FROM jobs").await, 0);
}

#[tokio::test]
async fn a_planned_hand_over_goes_on_where_the_first_host_stopped() {
    let router = router(LASTING).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let mut active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    let runs = accept(app, &tenant, TO, |_| {}).await;
    let running = active.wire.send_command().await;
    active.tell(Event::Accepted(attempt(&running))).await;
    active.tell(Event::Started { attempt: attempt(&running), channel: running.route[0] }).await;
    let waits = accept(app, &tenant, "+12025550144", |_| {}).await;
    let waiting = active.wire.send_command().await;
    let unheard = accept(app, &tenant, "+12025550146", |_| {}).await;
    let on_its_way = active.wire.send_command().await;
    let path = format!("/v1/admin/phones/{}/failover", active.phone);
    let (status, body) = post(&router, &path, "").await;
    assert_eq!(status, 202, "{body}");
    assert!(body.contains(second.id.as_str()), "{body}");
    // From here on nothing new goes to the first, and nothing to the second before the first has let go.
    let new = accept(app, &tenant, "+12025550145", |_| {}).await;
    let epoch = active.asked_to_release().await;
    assert_eq!(epoch, 2);
    active.renew().await;
    assert_eq!(active.asked_to_release().await, 2, "asked again, and granted nothing");
    active
        .has_heard_nothing_of(|frame| match frame {
            RouterFrame::Command { command: Command::Send(send), .. } => send.attempt > 1,
            _ => false,
        })
        .await;
    standby.has_heard_nothing_of(|frame| matches!(frame, RouterFrame::Lease { .. })).await;
    active.tell(Event::Refused(about(&waiting, Reason::StaleEpoch, true))).await;
    active.release(epoch).await;
    // Its lease is longer than anything is waited for here: that the other host has one says that it was not waited for.
    assert_eq!(standby.leased().await.0, 3);
    // An offer may come twice: dispatch and what repeats offers to a host that has just come may meet in one millisecond.
    let mut got = BTreeSet::new();
    while got.len() < 2 {
        got.insert(standby.wire.send_command().await.message);
    }
    assert_eq!(got, BTreeSet::from([waits.clone(), new.clone()]));
    // What was on its way to the first host when it let go, it has to give back before anybody else may send it: it is
    // offered there once more, after the word that it is to start nothing.
    assert_eq!(active.asked_to_release().await, 3);
    let late = active.wire.send_command().await;
    assert_eq!((&late.message, late.attempt, late.epoch), (&unheard, on_its_way.attempt, 1));
    active.tell(Event::Refused(about(&late, Reason::StaleEpoch, true))).await;
    let given_back = loop {
        let message = standby.wire.send_command().await.message;
        if !got.contains(&message) {
            break message;
        }
    };
    assert_eq!(given_back, unheard);
    // What was running is the first host's to tell.
    active.tell(sent(&running)).await;
    reaches(app, &tenant, &runs, Status::Sent).await;
    assert!(!kinds(app, &tenant, &runs).await.contains(&"unknown".to_owned()));
}

#[tokio::test]
async fn a_phone_that_was_just_handed_over_goes_back_before_its_first_host_has_asked_for_it() {
    let router = router(LASTING).await;
    let app = &router.app;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let mut one = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut two = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    let path = format!("/v1/admin/phones/{}/failover", one.phone);
    assert_eq!(post(&router, &path, "").await.0, 202);
    let epoch = one.asked_to_release().await;
    one.release(epoch).await;
    let (taken, _) = two.leased().await;
    // No renewal of the first host's comes in between: it is the standby all the same.
    assert_eq!(post(&router, &path, "").await.0, 202);
    let epoch = two.asked_to_release().await;
    two.release(epoch).await;
    let (back, renewal) = one.leased().await;
    assert!(back > taken && renewal == 0, "{back} after {taken}, renewal {renewal}");
}

#[tokio::test]
async fn what_a_bridge_took_that_was_away_at_the_hand_over_goes_to_the_other_host() {
    let router = router(SOON).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let mut active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    let taken = accept(app, &tenant, TO, |_| {}).await;
    let send = active.wire.send_command().await;
    active.tell(Event::Accepted(attempt(&send))).await;
    // Its bridge is parked: the host is there, and nobody can say that the phone is released.
    active.state = PhoneState::Parked;
    active.renew().await;
    assert_eq!(active.asked_to_release().await, 2);
    tokio::time::sleep(Duration::from_secs(3)).await;
    active.renew().await;
    assert_eq!(standby.leased().await.0, 3, "when the lease is over");
    // The bridge is back, in the sense of the two that matter here: it hears what it is told.
    while active.asked_to_release().await < 3 {}
    assert_eq!(message(app, &tenant, &taken).await.status, Status::Dispatching);
    active.tell(Event::Refused(about(&send, Reason::StaleEpoch, true))).await;
    let again = standby.wire.send_command().await;
    assert_eq!((&again.message, again.attempt, again.epoch), (&taken, 2, 3));
    standby.tell(sent(&again)).await;
    reaches(app, &tenant, &taken, Status::Sent).await;
    // It is given back once; asked for something that it does not have, the host says so, and nothing is sent for it.
    active.tell(Event::Refused(about(&send, Reason::StaleEpoch, true))).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM attempts").await, 2);
}

#[tokio::test]
async fn an_old_store_asks_for_the_release_of_an_epoch_that_the_bridge_does_not_know() {
    let router = router(SOON).await;
    let app = &router.app;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let path = format!("/v1/admin/hosts/{}/drain", first.id);
    assert_eq!(post(&router, &path, "").await.0, 202);
    drop(active);
    let _standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    // The store is a copy from long ago: the host has had epoch 40. With its first word the hand-over begins.
    let header = authorization(&first, app.clock.now().0 / 1_000, &nonce());
    let mut wire = dial(router.address, Some(&header)).await.unwrap();
    let knows = PhoneReport {
        journal: Some("j-1".to_owned()),
        epoch: Some(40),
        ..report(&first.phones[0], PhoneState::Ready)
    };
    wire.say(&hello(vec![knows])).await;
    let epoch = wire.until(|frame| match frame {
        RouterFrame::Release { epoch, .. } => Some(*epoch),
        _ => None,
    });
    assert_eq!(epoch.await, 42);
}

#[tokio::test]
async fn a_phone_that_its_host_does_not_speak_of_is_not_ready_there() {
    let router = router(SOON).await;
    let app = &router.app;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let _active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    let ready = "SELECT COUNT(*) FROM phone_hosts WHERE state = 'ready'";
    assert_eq!(count(app, ready).await, 2);
    // Taken out of its configuration while it runs, or with a restart.
    let renew = HostFrame::Renew { renewal: 9, phones: vec![], health: HostHealth::default() };
    standby.wire.say(&renew).await;
    eventually("it is not ready there", || async { count(app, ready).await == 1 }).await;
    standby.renew().await;
    eventually("it is there again", || async { count(app, ready).await == 2 }).await;
    let header = authorization(&first, app.clock.now().0 / 1_000, &nonce());
    let mut wire = dial(router.address, Some(&header)).await.unwrap();
    wire.say(&hello(vec![])).await;
    wire.welcome().await;
    assert_eq!(count(app, ready).await, 1);
    assert_eq!(count(app, "SELECT COUNT(*) FROM phones WHERE state = 'ready'").await, 0);
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_waited_for_until_its_lease_is_over() {
    let router = router(SOON).await;
    let app = &router.app;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    let since = tokio::time::Instant::now();
    let path = format!("/v1/admin/hosts/{}/failover", first.id);
    let (status, body) = post(&router, &path, &format!("{{\"to\":\"{}\"}}", second.id)).await;
    assert_eq!(status, 202, "{body}");
    assert_eq!(standby.leased().await.0, 3);
    assert!(since.elapsed() > Duration::from_millis(4_500), "{:?}", since.elapsed());
    drop(active);
}

#[tokio::test]
async fn only_a_host_that_can_take_over_is_chosen() {
    let router = router(SOON).await;
    let app = &router.app;
    let first = a_host(app, ONE, false).await;
    let active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let path = format!("/v1/admin/phones/{}/failover", active.phone);
    let refused = async |body: &str, word: &str| {
        let (status, answer) = post(&router, &path, body).await;
        assert_eq!(status, 409, "{answer}");
        assert!(answer.contains("cannot_fail_over") && answer.contains(word), "{word}: {answer}");
    };
    refused("", "one host alone").await;
    let second = a_host(app, ONE, true).await;
    let elsewhere = a_host(app, TWO, false).await;
    refused("", "ready").await;
    refused(&format!("{{\"to\":\"{}\"}}", second.id), "ready").await;
    refused(&format!("{{\"to\":\"{}\"}}", first.id), "already").await;
    refused(&format!("{{\"to\":\"{}\"}}", elsewhere.id), "not one of those").await;
    let (status, answer) = post(&router, &path, "{\"to\":\"nowhere\"}").await;
    assert_eq!(status, 422, "{answer}");
    assert!(answer.contains("/to"), "{answer}");
    // Not ready is not able, and forced is forced.
    let _ill = Mac::connect(&router, &second, "j-2", PhoneState::NotReady).await;
    refused("", "ready").await;
    assert_eq!(post(&router, &path, "{\"force\":true}").await.0, 202);
}

#[tokio::test]
async fn a_phone_that_its_host_cannot_serve_goes_to_one_that_can() {
    for case in ["not_ready", "battery", "drained"] {
        let router = router(SOON).await;
        let app = &router.app;
        let first = a_host(app, ONE, false).await;
        let second = a_host(app, ONE, true).await;
        let mut active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
        let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
        active.renew().await;
        active.leased().await;
        match case {
            "not_ready" => {
                active.state = PhoneState::NotReady;
                active.reasons = vec![Reason::DatabasePermission];
            }
            "battery" => active.power = Some(PowerLevel::Battery),
            _ => {
                let path = format!("/v1/admin/hosts/{}/drain", first.id);
                assert_eq!(post(&router, &path, "").await.0, 202);
            }
        }
        active.renew().await;
        if case == "not_ready" {
            // Not at once: a bridge may be restarting.
            active.leased().await;
            standby.has_heard_nothing_of(|frame| matches!(frame, RouterFrame::Lease { .. })).await;
            tokio::time::sleep(Duration::from_millis(1_100)).await;
            active.renew().await;
        }
        let epoch = active.asked_to_release().await;
        active.release(epoch).await;
        assert_eq!(standby.leased().await.0, 3, "{case}");
    }
}

#[tokio::test]
async fn a_hand_over_that_does_not_come_about_is_called_off() {
    let router = router(SOON).await;
    let app = &router.app;
    let first = a_host(app, ONE, false).await;
    a_host(app, ONE, true).await;
    let active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let path = format!("/v1/admin/phones/{}/failover", active.phone);
    assert_eq!(post(&router, &path, "{\"force\":true}").await.0, 202);
    let roles = async |after_ms: i64| {
        let (phone, host, at) =
            (active.phone.clone(), first.id.clone(), app.clock.now().plus_ms(after_ms));
        let standing = app.store.read(move |tx| standby::standing(tx, &phone, &host, at)).await;
        standing.unwrap().unwrap().role
    };
    assert_eq!(roles(14_000).await, router::lease::Role::Leaving);
    assert_eq!(roles(16_000).await, router::lease::Role::Active);
}

fn reaction(guid: &str, target: &str) -> Event {
    Event::Reaction(Reaction {
        guid: guid.to_owned(),
        from: TO.parse().unwrap(),
        conversation: Conversation { kind: ConversationKind::Direct, id: TO.to_owned() },
        target: target.to_owned(),
        part: 0,
        kind: "like".to_owned(),
        emoji: None,
        attachments: Vec::new(),
        removed: false,
        at: UnixMs(10),
        late: false,
    })
}

/// A text that came to the iPhone and was relayed to a Mac.
fn relayed_text(guid: &str, text: &str, at: UnixMs) -> Event {
    match received(TO, guid, text, at) {
        Event::Received(message) => Event::Received(Received { service: Channel::Sms, ..message }),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_two_hosts_see_of_one_phone_is_told_once() {
    let router = router(SOON).await;
    let app = &router.app;
    tenant(app, "Acme").await;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let mut active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    let at = UnixMs(1_000_000);
    // The same guid on both; the same text twice in a row; a relayed text, with a guid of each Mac's own.
    for (mac, relayed) in [(&mut active, "sms-1"), (&mut standby, "sms-2")] {
        mac.tell(received(TO, "a", "ok", at)).await;
        mac.tell(received(TO, "b", "ok", at.plus_ms(900))).await;
        mac.tell(relayed_text(relayed, "by text", at.plus_ms(1_000))).await;
        mac.tell(reaction("r", "a")).await;
    }
    // The same words twice, of which the second host has not seen the first; iMessages and texts.
    let second = received(TO, "i-2", "again", at.plus_ms(1_000));
    active.tell(received(TO, "i-1", "again", at)).await;
    standby.tell(second.clone()).await;
    active.tell(second).await;
    let second = relayed_text("s-2", "twice", at.plus_ms(1_000));
    active.tell(relayed_text("s-1", "twice", at)).await;
    standby.tell(second.clone()).await;
    active.tell(second).await;
    // When it sees the first after all, it is none of the two again.
    standby.tell(relayed_text("s-1-late", "twice", at)).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE text = 'again'").await, 2);
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE text = 'twice'").await, 2);
    // The first says something else a minute later, and only the second hears more.
    standby.tell(relayed_text("sms-3", "by text", at.plus_ms(60_000))).await;
    standby.tell(received(TO, "c", "ok", at.plus_ms(1_500))).await;
    let Event::Received(stop) = received(TO, "d", "STOP", at.plus_ms(70_000)) else { panic!() };
    standby.tell(Event::Received(Received { ..stop })).await;
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE direction = 'inbound'").await, 10);
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE text = 'ok'").await, 3);
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE text = 'by text'").await, 2);
    assert_eq!(count(app, "SELECT COUNT(*) FROM message_events WHERE type = 'reaction'").await, 1);
    assert_eq!(count(app, "SELECT COUNT(*) FROM opt_outs WHERE state = 'opted_out'").await, 1);
}

#[tokio::test]
async fn a_stop_that_only_the_second_host_can_read_counts() {
    let router = router(SOON).await;
    let app = &router.app;
    tenant(app, "Acme").await;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let mut active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let mut standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    let at = app.clock.now();
    let out = "SELECT COUNT(*) FROM opt_outs WHERE state = 'opted_out'";
    active.tell(received(TO, "a", "\u{fffd}", at)).await;
    standby.tell(received(TO, "a", "STOP", at)).await;
    assert_eq!(count(app, out).await, 1);
    // It is one message, and older than what is said after it, whoever tells it when.
    active.tell(received(TO, "b", "START", at.plus_ms(1))).await;
    assert_eq!(count(app, out).await, 0);
    active.tell(received(TO, "c", "ok", at)).await;
    standby.tell(received(TO, "c", "STOP", at)).await;
    assert_eq!(count(app, out).await, 0);
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE direction = 'inbound'").await, 3);
}

#[tokio::test]
async fn a_number_that_is_gone_is_served_by_another_phone() {
    let router = router(SOON).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let old = a_host(app, ONE, false).await;
    let new = a_host(app, TWO, false).await;
    // Both are known, only the second is there; one message asks for the number of the first, one talked with it.
    let whose = tenant.clone();
    let (of, to) = (old.phones[0].clone(), TO);
    app.store
        .write(move |tx| {
            tx.execute(
                "INSERT INTO bindings (tenant_id, recipient, phone_id, last_at, last_direction, last_inbound_at)
                 VALUES (?1, ?2, ?3, 5, 'inbound', 5)",
                router::params![whose, to, of],
            )
        })
        .await
        .unwrap();
    let asks = accept(app, &tenant, TO, |new| new.from = Some(ONE.parse().unwrap())).await;
    let mut there = Mac::connect(&router, &new, "j-2", PhoneState::Ready).await;
    eventually("it is held", || async {
        message(app, &tenant, &asks).await.held_reason == Some(Reason::NoPhoneAvailable)
    })
    .await;
    let path = format!("/v1/admin/phones/{}/replace", old.phones[0]);
    let (status, body) = post(&router, &path, &format!("{{\"by\":\"{}\"}}", new.phones[0])).await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("\"conversations\":1") && body.contains("\"messages\":1"), "{body}");
    // That somebody has written goes along, so that a message that is not sent takes no conversation away.
    assert_eq!(count(app, "SELECT COUNT(*) FROM bindings WHERE last_inbound_at = 5").await, 2);
    let send = there.wire.send_command().await;
    assert_eq!(send.message, asks);
    there.tell(sent(&send)).await;
    let end = reaches(app, &tenant, &asks, Status::Sent).await;
    assert_eq!(end.phone, Some(new.phones[0].clone()));
    // In circles nobody is served.
    let back = format!("/v1/admin/phones/{}/replace", new.phones[0]);
    assert_eq!(post(&router, &back, &format!("{{\"by\":\"{}\"}}", old.phones[0])).await.0, 409);
    // Undone, the first is itself again.
    let (status, _) = post(&router, &path, &format!("{{\"by\":\"{}\"}}", old.phones[0])).await;
    assert_eq!(status, 200);
    let mut again = Mac::connect(&router, &old, "j-1", PhoneState::Ready).await;
    let id = accept(app, &tenant, TO, |new| new.from = Some(ONE.parse().unwrap())).await;
    assert_eq!(again.wire.send_command().await.message, id);
}

/// What a host would be granted if it asked at a time.
async fn asks(app: &App, phone: &PhoneId, host: &Host, at: UnixMs) -> Decision {
    let policy = Policy {
        ttl_ms: 4_000,
        grace_ms: 1_000,
        unfit_ms: 1_000,
        settle_ms: 0,
        steady_ms: i64::MAX,
    };
    let (phone, host) = (phone.clone(), host.id.clone());
    let asked = app.store.write(move |tx| rows::ask(tx, policy, (&phone, &host), None, at)).await;
    asked.unwrap().decision
}

#[tokio::test]
async fn a_blocked_account_is_taken_over_by_nobody_whatever_becomes_of_its_host() {
    let router = router(LASTING).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let mut active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let _standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    // A hand-over under way is called off when the block becomes known.
    let path = format!("/v1/admin/phones/{}/failover", active.phone);
    assert_eq!(post(&router, &path, "").await.0, 202);
    active.asked_to_release().await;
    active.state = PhoneState::NotReady;
    active.reasons = vec![Reason::AccountBlocked];
    active.renew().await;
    active.leased().await;
    drop(active);
    // It boots, and says nothing yet of a block; then it is gone for good.
    let booting = Mac::connect(&router, &first, "j-1", PhoneState::Starting).await;
    let phone = booting.phone.clone();
    drop(booting);
    let long_after = app.clock.now().plus_ms(3_600_000);
    let decision = asks(app, &phone, &second, long_after).await;
    assert!(matches!(decision, Decision::Refuse { .. }), "{decision:?}");
    let held = accept(app, &tenant, TO, |_| {}).await;
    let id = phone.clone();
    let shown = app.store.read(move |tx| admin::phone(tx, &id, long_after)).await.unwrap().unwrap();
    assert_eq!(
        (shown.state.as_str(), &shown.reasons[..]),
        ("starting", &[Reason::AccountBlocked][..])
    );

    // Nor by the way, when it is drained or its host is to give everything up.
    for what in ["drain", "failover"] {
        let all = format!("/v1/admin/hosts/{}/{what}", first.id);
        let (status, body) = post(&router, &all, "").await;
        assert_eq!(status, 202, "{body}");
        assert!(body.contains("\"refused\":\"account_blocked\""), "{what}: {body}");
        assert!(!body.contains("\"to\""), "{what}: {body}");
    }
    let all = format!("/v1/admin/hosts/{}/failover", first.id);
    assert_eq!(post(&router, &all, "{\"despite_block\":true}").await.0, 422);
    let (status, body) = post(&router, &path, "").await;
    assert_eq!(status, 409, "{body}");
    assert!(body.contains("blocked the phone's account"), "{body}");
    let written =
        "SELECT COUNT(*) FROM audit_log WHERE action LIKE '% despite_block' AND status = 202";
    assert_eq!(count(app, written).await, 0);

    // On purpose, and written down. The host that has it now says that it is not blocked.
    let (status, body) = post(&router, &path, "{\"despite_block\":true}").await;
    assert_eq!(status, 202, "{body}");
    assert_eq!(count(app, written).await, 1);
    let over = |tx: &mut Tx<'_>| tx.execute("UPDATE leases SET expires_at = 0", params![]);
    app.store.write(over).await.unwrap();
    let decision = asks(app, &phone, &second, app.clock.now()).await;
    assert!(matches!(decision, Decision::Grant(_)), "{decision:?}");
    assert_eq!(count(app, "SELECT COUNT(*) FROM phones WHERE blocked_at IS NOT NULL").await, 0);
    assert_eq!(message(app, &tenant, &held).await.status, Status::Queued);
}

#[tokio::test]
async fn a_host_that_another_was_enrolled_in_place_of_is_heard_and_its_messages_are_sent_once() {
    let router = router(SOON).await;
    let app = &router.app;
    let tenant = tenant(app, "Acme").await;
    let first = a_host(app, ONE, false).await;
    let mut old = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    // One is started, of another nobody knows whether it was taken.
    let started = accept(app, &tenant, TO, |_| {}).await;
    let send = old.wire.send_command().await;
    old.tell(Event::Accepted(attempt(&send))).await;
    old.tell(Event::Started { attempt: attempt(&send), channel: send.route[0] }).await;
    let offered = accept(app, &tenant, "+12025550144", |_| {}).await;
    let unanswered = old.wire.send_command().await;

    // The bridge of the new one has not spoken: whether it is the same one is not known, and it is offered nothing.
    let second = a_host(app, ONE, false).await;
    let mut new = Mac::connect(&router, &second, "", PhoneState::Starting).await;
    assert_eq!(new.epoch, None);
    let taken = new.leased().await.0;
    assert!(taken > unanswered.epoch);
    let again = old.wire.send_command().await;
    assert_eq!((&again.message, again.attempt), (&offered, 1), "whoever was asked is asked again");
    new.has_heard_nothing_of(|frame| matches!(frame, RouterFrame::Command { .. })).await;
    while old.asked_to_release().await < taken {}

    // The old one is not granted the phone, and what it knows counts, a STOP also.
    old.renew().await;
    old.tell(sent(&send)).await;
    reaches(app, &tenant, &started, Status::Sent).await;
    old.tell(received(TO, "g-stop", "STOP", app.clock.now())).await;
    eventually("the STOP counts", async || count(app, "SELECT COUNT(*) FROM opt_outs").await == 1)
        .await;
    old.tell(Event::Refused(about(&unanswered, Reason::StaleEpoch, true))).await;
    old.has_heard_nothing_of(|frame| matches!(frame, RouterFrame::Lease { .. })).await;
    (new.journal, new.state) = ("j-2", PhoneState::Ready);
    new.renew().await;
    let here = new.wire.send_command().await;
    assert_eq!((&here.message, here.attempt), (&offered, 2));
    new.tell(sent(&here)).await;
    reaches(app, &tenant, &offered, Status::Sent).await;
    // What both have seen is told once, and the old one connects as before.
    new.tell(received(TO, "g-stop", "STOP", app.clock.now())).await;
    drop(old);
    let old = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    assert_eq!((old.epoch, old.seq > 0), (None, true));
    assert_eq!(count(app, "SELECT COUNT(*) FROM messages WHERE direction = 'inbound'").await, 1);

    // It stands by for nobody until it is enrolled again.
    let path = format!("/v1/admin/phones/{}/failover", new.phone);
    let (status, body) = post(&router, &path, "").await;
    assert_eq!(status, 409, "{body}");
    let hosts = app.store.read(|tx| admin::list_hosts(tx, None, 10)).await.unwrap();
    assert!(hosts.iter().all(|host| host.standby_phones.is_empty()), "{hosts:?}");
    let long_after = app.clock.now().plus_ms(3_600_000);
    let decision = asks(app, &new.phone, &first, long_after).await;
    assert!(matches!(decision, Decision::Refuse { .. }), "{decision:?}");
    let (phone, host) = (new.phone.clone(), first.id.clone());
    let enrol = move |tx: &mut Tx<'_>| standby::enrolled(tx, (&phone, &host), true, long_after);
    app.store.write(enrol).await.unwrap();
    let (status, body) = post(&router, &path, "").await;
    assert_eq!(status, 202, "{body}");
}

#[tokio::test]
async fn a_blocked_phone_that_is_enrolled_elsewhere_is_blocked_until_it_is_ready_there() {
    let router = router(LASTING).await;
    let app = &router.app;
    let blocked = "SELECT COUNT(*) FROM phones WHERE blocked_at IS NOT NULL";
    let first = a_host(app, ONE, false).await;
    let mut old = Mac::connect(&router, &first, "j-1", PhoneState::NotReady).await;
    old.reasons = vec![Reason::AccountBlocked];
    old.renew().await;
    old.leased().await;
    let second = a_host(app, ONE, false).await;
    let mut new = Mac::connect(&router, &second, "j-2", PhoneState::NotReady).await;
    assert_eq!(
        count(app, blocked).await,
        1,
        "it misses a permission, and knows nothing of a block"
    );
    (new.state, new.reasons) = (PhoneState::Ready, vec![Reason::AccountBlocked]);
    new.renew().await;
    new.has_heard_nothing_of(|frame| matches!(frame, RouterFrame::Lease { .. })).await;
    assert_eq!(count(app, blocked).await, 1, "its account is the blocked one");
    new.reasons.clear();
    new.renew().await;
    new.has_heard_nothing_of(|frame| matches!(frame, RouterFrame::Lease { .. })).await;
    assert_eq!(count(app, blocked).await, 0);
    // The old one's word is not asked for any more.
    old.renew().await;
    old.has_heard_nothing_of(|frame| matches!(frame, RouterFrame::Lease { .. })).await;
    assert_eq!(count(app, blocked).await, 0);
}

#[tokio::test]
async fn a_phone_that_is_ill_in_turns_has_been_ill_all_the_time() {
    let router = router(LASTING).await;
    let app = &router.app;
    let first = a_host(app, ONE, false).await;
    let second = a_host(app, ONE, true).await;
    let active = Mac::connect(&router, &first, "j-1", PhoneState::Ready).await;
    let _standby = Mac::connect(&router, &second, "j-2", PhoneState::Ready).await;
    let now = app.clock.now();
    let since = async |state: PhoneState, reasons: &[Reason], after_ms: i64| {
        let (host, at) = (first.id.clone(), now.plus_ms(after_ms));
        let mut told = report(&active.phone, state);
        told.reasons = reasons.to_vec();
        let work = move |tx: &mut Tx<'_>| {
            rows::report(tx, &host, &told, at)?;
            Ok(standby::standing(tx, &told.phone, &host, at)?.unwrap().condition.unwrap().since_ms)
        };
        app.store.write(work).await.unwrap()
    };
    let began = now.plus_ms(10_000).0;
    assert_eq!(since(PhoneState::NotReady, &[Reason::MessagesTimeout], 10_000).await, began);
    assert_eq!(since(PhoneState::Backoff, &[], 30_000).await, began);
    assert_eq!(since(PhoneState::NotReady, &[], 50_000).await, began);
    assert_eq!(since(PhoneState::NotReady, &[Reason::DatabaseLocked], 65_000).await, began);
    since(PhoneState::Ready, &[], 70_000).await;
    let again = now.plus_ms(80_000).0;
    assert_eq!(since(PhoneState::NotReady, &[Reason::MessagesTimeout], 80_000).await, again);
}
