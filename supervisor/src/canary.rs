//! A canary: now and then one phone of this host writes to another phone, and it is seen to arrive.
//!
//! Process health says nothing about whether a phone is heard: an address that Apple no longer advertises leaves every
//! light green (facts on macOS: detecting de-registration). A text between two own accounts does; one to oneself proves
//! nothing. It goes the way of every message, through the bridge with its lease, pacing and journal, at the end of the
//! queue. Who takes it for what it is: [`protocol::canary`]; the router keeps it from every tenant.
//!
//! Who hears it may be a phone of this host, which is looked at here, or one of another host, which only the router hears
//! ([`Post`]). It is asked before anything is written, so that no mistake of a digit writes to a stranger, and asked again
//! until it says how the canary has ended. A wire that is down makes the answer late and no canary lost: only a router that
//! has everything from a phone that is ready, and no canary among it, says that there was none.

use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use protocol::link::{CanaryAsk, CanaryStanding, CanaryTold, PhoneState};
use protocol::pipe::{Command, Event, Send};
use protocol::{Channel, Class, E164, MessageId, Recipient, UnixMs, canary};
use router_client::clock::wall_now;
use router_client::link::LinkInput;
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::news;
use crate::pool::{Ask, Handle, Pool, chance};

/// It must be started within this time, or it says nothing about now.
const START_WITHIN_MS: i64 = 60_000;
/// Periods differ by up to a fifth either way: a text at the same second every hour is a machine's.
const JITTER: f64 = 0.2;
/// How often a pair is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The router is asked again so often. It says of its own accord when one arrives; this is for a word that was lost.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The first answer, before anything is written, must come within this time: the link answers in a round-trip.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The router's word that one has not arrived counts so long after it should have: what a phone has noted by then is known
/// to the router from the next renewal of the leases, which is every five seconds.
const JUDGE_AFTER: Duration = Duration::from_secs(10);
/// So long after it should have arrived nobody waits for an answer any more. Until then no other one is written.
const GIVE_UP_AFTER: Duration = Duration::from_hours(1);
/// Answers of the router on their way to the pairs: some for each of them.
const TOLD: usize = 256;

/// One pair, as the operator configured it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Who writes.
    pub(crate) from: E164,
    /// Who is to hear it.
    pub(crate) to: E164,
    /// It is a phone of another host: the router says what it hears.
    pub(crate) remote: bool,
    /// How often.
    pub(crate) every: Duration,
    /// One that has not arrived by then is lost.
    pub(crate) lost_after: Duration,
    /// So many lost in a row are an alarm.
    pub(crate) alarm_after: u32,
}

impl Settings {
    /// Whether the two are the same pair, whatever their periods are.
    fn is_same_pair(&self, other: &Self) -> bool {
        (&self.from, &self.to, self.remote) == (&other.from, &other.to, other.remote)
    }
}

/// Why none was written, or why nobody knows what has become of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Why {
    /// The phone that writes, or one of this host that hears, is not here.
    NoPhone,
    /// One of the two is not ready.
    NotReady,
    /// The phone that writes has no lease: it waits for one, or another host serves it.
    NoLease,
    /// Its bridge has too much to do.
    Busy,
    /// The system gives no chance for an id.
    NoChance,
    /// There is no link with the router.
    NoLink,
    /// The router is older than canaries between hosts, and says nothing of them.
    RouterTooOld,
    /// The router does not answer.
    NoAnswer,
    /// The router knows no such pair: `to` is not the number of a phone of it, or one is of the sandbox and the other is not.
    NotAPhone,
    /// The router does not hear the phone now: its host is not linked, it is not ready, or it has more to say.
    Away,
    /// The bridge has it and has not started it: it was refused, withdrawn, or its time ran out before its turn.
    NotStarted,
}

impl Why {
    /// Every reason.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 11] = [
        Self::NoPhone,
        Self::NotReady,
        Self::NoLease,
        Self::Busy,
        Self::NoChance,
        Self::NoLink,
        Self::RouterTooOld,
        Self::NoAnswer,
        Self::NotAPhone,
        Self::Away,
        Self::NotStarted,
    ];

    /// For people.
    const fn words(self) -> &'static str {
        match self {
            Self::NoPhone => "a phone of the pair is not here",
            Self::NotReady => "a phone is not ready",
            Self::NoLease => "the phone that writes has no lease",
            Self::Busy => "the bridge is busy",
            Self::NoChance => "there is no randomness",
            Self::NoLink => "there is no link with the router",
            Self::RouterTooOld => {
                "the router is too old to tell what arrives at other hosts; upgrade it"
            }
            Self::NoAnswer => "the router does not answer",
            Self::NotAPhone => "the router has no such phone beside this one; is the number right?",
            Self::Away => "the router does not hear the phone that is written to",
            Self::NotStarted => "the bridge has not started it",
        }
    }
}

/// How a pair stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Standing {
    pub(crate) from: E164,
    pub(crate) to: E164,
    /// The phone that hears is another host's.
    pub(crate) remote: bool,
    pub(crate) sent: u64,
    pub(crate) seen: u64,
    pub(crate) lost: u64,
    /// Not sent, because one of the two phones could not have been used anyway, or nobody could have said what it hears; or
    /// handed to the bridge, which has not started it.
    pub(crate) skipped: u64,
    /// Sent, and nobody could say for long whether it has arrived: neither seen nor lost.
    pub(crate) unknown: u64,
    /// Why the last one was skipped or is unknown; none after one that was seen or lost.
    pub(crate) why: Option<Why>,
    /// Lost in a row.
    pub(crate) lost_in_a_row: u32,
    pub(crate) alarm: bool,
    pub(crate) last_seen: Option<UnixMs>,
    pub(crate) last_latency_ms: Option<u64>,
}

/// What has changed about a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// It arrived, after so long.
    Seen { after: Duration, alarm_over: bool },
    /// It did not.
    Lost { alarm: bool },
    /// Nobody can say.
    Unknown(Why),
    /// It was not written.
    Skipped(Why),
}

/// What follows from a word of the router.
#[derive(Debug, PartialEq, Eq)]
enum Follows {
    Nothing,
    /// The phone is heard: it may be written to.
    Write(MessageId),
    News(News),
}

/// The one that is under way.
#[derive(Debug)]
enum Way {
    /// The router was asked whether the phone is heard; nothing is written yet.
    Asked { id: MessageId, since: Duration },
    /// It is written, at this hour; who has to ask the router has done so last at `asked`.
    /// `away`: when nobody could say last what the phone hears.
    Written { id: MessageId, since: Duration, at: UnixMs, asked: Duration, away: Option<Duration> },
}

/// One pair. Pure; times are since anything.
#[derive(Debug)]
struct Pair {
    settings: Settings,
    standing: Standing,
    next: Duration,
    way: Option<Way>,
}

impl Pair {
    fn new(settings: Settings, chance: f64, now: Duration) -> Self {
        let standing = Standing {
            from: settings.from.clone(),
            to: settings.to.clone(),
            remote: settings.remote,
            sent: 0,
            seen: 0,
            lost: 0,
            skipped: 0,
            unknown: 0,
            why: None,
            lost_in_a_row: 0,
            alarm: false,
            last_seen: None,
            last_latency_ms: None,
        };
        // Not at once: a host that starts has other things to do, and hosts that start together need not write together.
        let next = now.saturating_add(settings.every.mul_f64(chance));
        Self { settings, standing, next, way: None }
    }

    /// Goes by other periods from now on. The next is due no later than a period from now.
    fn retune(&mut self, settings: Settings, now: Duration) {
        self.next = self.next.min(now.saturating_add(settings.every));
        self.settings = settings;
    }

    /// Whether one is to be written now; the next is due later, whatever becomes of it.
    fn is_due(&mut self, chance: f64, now: Duration) -> bool {
        let due = now >= self.next && self.way.is_none();
        if due {
            let factor = 1.0 + JITTER * (2.0 * chance - 1.0);
            self.next = now.saturating_add(self.settings.every.mul_f64(factor));
        }
        due
    }

    /// The router is asked whether the phone is heard.
    fn asks(&mut self, id: MessageId, now: Duration) {
        self.way = Some(Way::Asked { id, since: now });
    }

    fn sent(&mut self, id: MessageId, at: UnixMs, now: Duration) {
        self.standing.sent += 1;
        self.way = Some(Way::Written { id, since: now, at, asked: now, away: None });
    }

    fn skipped(&mut self, why: Why) -> News {
        self.way = None;
        self.standing.skipped += 1;
        self.standing.why = Some(why);
        self.not_ours(why);
        News::Skipped(why)
    }

    /// What another host writes, or nobody, raises no alarm here any more.
    fn not_ours(&mut self, why: Why) {
        if matches!(why, Why::NoPhone | Why::NoLease | Why::NotAPhone) {
            self.standing.alarm = false;
            self.standing.lost_in_a_row = 0;
        }
    }

    fn unknown(&mut self, why: Why) -> News {
        self.way = None;
        self.standing.unknown += 1;
        self.standing.why = Some(why);
        self.not_ours(why);
        News::Unknown(why)
    }

    fn seen(&mut self, at: UnixMs, after: Duration) -> News {
        let alarm_over = std::mem::take(&mut self.standing.alarm);
        self.way = None;
        self.standing.seen += 1;
        self.standing.why = None;
        self.standing.lost_in_a_row = 0;
        self.standing.last_seen = Some(at);
        self.standing.last_latency_ms = u64::try_from(after.as_millis()).ok();
        News::Seen { after, alarm_over }
    }

    fn lost(&mut self) -> News {
        self.way = None;
        self.standing.lost += 1;
        self.standing.why = None;
        self.standing.lost_in_a_row = self.standing.lost_in_a_row.saturating_add(1);
        let alarm =
            !self.standing.alarm && self.standing.lost_in_a_row >= self.settings.alarm_after;
        self.standing.alarm |= alarm;
        News::Lost { alarm }
    }

    /// One has arrived at a phone of this host.
    fn arrived(&mut self, id: &MessageId, at: UnixMs, now: Duration) -> Option<News> {
        match &self.way {
            Some(Way::Written { id: pending, since, .. }) if pending == id => {
                let after = now.saturating_sub(*since);
                Some(self.seen(at, after))
            }
            Some(Way::Asked { .. } | Way::Written { .. }) | None => None,
        }
    }

    /// The bridge of the phone that writes will never start it: whatever that is, no canary was lost.
    fn not_started(&mut self, id: &MessageId) -> Option<News> {
        match &self.way {
            Some(Way::Written { id: pending, .. }) if pending == id => {
                self.standing.sent = self.standing.sent.saturating_sub(1);
                Some(self.skipped(Why::NotStarted))
            }
            Some(Way::Asked { .. } | Way::Written { .. }) | None => None,
        }
    }

    /// The router says something of a canary.
    fn told(&mut self, told: &CanaryTold, now: Duration) -> Follows {
        let within = self.settings.lost_after;
        match &self.way {
            Some(Way::Asked { id, .. }) if *id == told.message => match &told.standing {
                CanaryStanding::NotSeen => Follows::Write(id.clone()),
                CanaryStanding::Strange => Follows::News(self.skipped(Why::NotAPhone)),
                CanaryStanding::Away | CanaryStanding::Unknown | CanaryStanding::Seen { .. } => {
                    Follows::News(self.skipped(Why::Away))
                }
            },
            Some(Way::Written { id, since, at: written, asked, away }) if *id == told.message => {
                match &told.standing {
                    CanaryStanding::Seen { at, waited_ms, .. } => {
                        let waited = Duration::from_millis(*waited_ms);
                        let mut after = now.saturating_sub(*since).saturating_sub(waited);
                        if after > within {
                            // Late as the router heard of it: its phone may have noted it in time and been cut off. Only
                            // the hours say, for which the clocks of two hosts need not agree exactly.
                            let noted = u64::try_from(at.since(*written)).unwrap_or(0);
                            after = after.min(Duration::from_millis(noted));
                        }
                        let at = *at;
                        let away = away.is_some();
                        Follows::News(if after <= within {
                            self.seen(at, after)
                        } else if away {
                            // A host that is cut off is as a rule cut off from Apple as well: so late says nothing.
                            self.unknown(Why::Away)
                        } else {
                            self.lost()
                        })
                    }
                    CanaryStanding::NotSeen => {
                        // Whoever comes back hears only then what was written meanwhile.
                        let heard_from = away.map_or(*since, |away| away.max(*since));
                        let judged = heard_from.saturating_add(within).saturating_add(JUDGE_AFTER);
                        if *asked >= judged { Follows::News(self.lost()) } else { Follows::Nothing }
                    }
                    // The phone was taken from this host, or is one no longer.
                    CanaryStanding::Strange => Follows::News(self.unknown(Why::NotAPhone)),
                    CanaryStanding::Away | CanaryStanding::Unknown => {
                        self.is_away(now);
                        Follows::Nothing
                    }
                }
            }
            Some(Way::Asked { .. } | Way::Written { .. }) | None => Follows::Nothing,
        }
    }

    /// Nobody can say now what the phone hears.
    fn is_away(&mut self, now: Duration) {
        if let Some(Way::Written { away, .. }) = &mut self.way {
            *away = Some(now);
        }
    }

    /// The canary that the router is to be asked about again now.
    fn question(&mut self, now: Duration) -> Option<MessageId> {
        match &mut self.way {
            Some(Way::Written { id, asked, .. })
                if self.settings.remote && now.saturating_sub(*asked) >= ASK_EVERY =>
            {
                *asked = now;
                Some(id.clone())
            }
            Some(Way::Asked { .. } | Way::Written { .. }) | None => None,
        }
    }

    /// Time has passed. Nobody answers for the reason `road`, where there is one.
    fn tick(&mut self, road: Option<Why>, now: Duration) -> Option<News> {
        let within = self.settings.lost_after;
        if road.is_some() {
            self.is_away(now);
        }
        match &self.way {
            Some(Way::Asked { since, .. }) => {
                let over = now.saturating_sub(*since) >= ANSWER_WITHIN;
                over.then(|| self.skipped(road.unwrap_or(Why::NoAnswer)))
            }
            Some(Way::Written { since, .. }) if self.settings.remote => {
                let over = now.saturating_sub(*since) >= within.saturating_add(GIVE_UP_AFTER);
                over.then(|| self.unknown(road.unwrap_or(Why::Away)))
            }
            Some(Way::Written { since, .. }) => {
                let over = now.saturating_sub(*since) >= within;
                over.then(|| match road {
                    Some(why) => self.unknown(why),
                    None => self.lost(),
                })
            }
            None => None,
        }
    }
}

/// How the router can be asked about canaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Road {
    /// There is no session.
    Down,
    /// It does not answer such questions: it is older than they are.
    Deaf,
    /// It answers.
    Open,
}

impl Road {
    /// Why nobody answers.
    const fn why(self) -> Option<Why> {
        match self {
            Self::Down => Some(Why::NoLink),
            Self::Deaf => Some(Why::RouterTooOld),
            Self::Open => None,
        }
    }
}

/// What the router says of canaries, from the switch to the pairs.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    road: watch::Sender<Road>,
    told: broadcast::Sender<CanaryTold>,
}

impl Default for Post {
    fn default() -> Self {
        Self { road: watch::Sender::new(Road::Down), told: broadcast::Sender::new(TOLD) }
    }
}

impl Post {
    /// The way to the router is another.
    pub(crate) fn road_is(&self, road: Road) {
        self.road.send_replace(road);
    }

    /// The router has said something.
    pub(crate) fn tell(&self, told: CanaryTold) {
        // Nobody listens where no pair is another host's.
        drop(self.told.send(told));
    }
}

/// What the task of a pair works with.
struct Around {
    pool: Pool,
    post: Post,
    /// Where questions go, when there is a router.
    link: Option<mpsc::Sender<LinkInput>>,
}

/// How each pair stands, in the order of the configuration.
pub(crate) type Standings = watch::Receiver<Vec<watch::Receiver<Standing>>>;

/// The pairs of this host, one task each.
#[derive(Debug)]
pub(crate) struct Pairs {
    running: Vec<Running>,
    told: watch::Sender<Vec<watch::Receiver<Standing>>>,
    pool: Pool,
    post: Post,
    /// Where questions go, when there is a router.
    link: Option<mpsc::Sender<LinkInput>>,
    tracker: TaskTracker,
    closing: CancellationToken,
}

/// One of them.
#[derive(Debug)]
struct Running {
    settings: watch::Sender<Settings>,
    standing: watch::Receiver<Standing>,
    /// Cancelled when it is not configured any more.
    end: CancellationToken,
}

impl Pairs {
    /// None yet.
    pub(crate) fn new(
        (pool, post): (&Pool, &Post),
        link: Option<&mpsc::Sender<LinkInput>>,
        tracker: &TaskTracker,
        closing: &CancellationToken,
    ) -> Self {
        Self {
            running: Vec::new(),
            told: watch::Sender::default(),
            pool: pool.clone(),
            post: post.clone(),
            link: link.cloned(),
            tracker: tracker.clone(),
            closing: closing.clone(),
        }
    }

    /// How they stand, whichever they are.
    pub(crate) fn standings(&self) -> Standings {
        self.told.subscribe()
    }

    /// Has these pairs run. Who writes to whom is what a pair is: one that is there already keeps what it has counted and the
    /// canary that is under way, and goes by other periods from now on.
    pub(crate) fn take(&mut self, wanted: &[Settings]) {
        let mut before = std::mem::take(&mut self.running);
        for settings in wanted {
            let same = |running: &Running| running.settings.borrow().is_same_pair(settings);
            let running = match before.iter().position(same) {
                Some(at) => before.swap_remove(at),
                None => self.start(settings.clone()),
            };
            news::tell(&running.settings, settings.clone());
            self.running.push(running);
        }
        for gone in before {
            gone.end.cancel();
        }
        self.told
            .send_replace(self.running.iter().map(|running| running.standing.clone()).collect());
    }

    fn start(&self, settings: Settings) -> Running {
        let pair = Pair::new(settings.clone(), chance(), Duration::ZERO);
        let names = labels(&pair).to_vec();
        let (told, standing) = watch::channel(pair.standing.clone());
        let (settings, followed) = watch::channel(settings);
        let around =
            Around { pool: self.pool.clone(), post: self.post.clone(), link: self.link.clone() };
        let end = self.closing.child_token();
        let ends = end.clone();
        self.tracker.spawn(async move {
            ends.run_until_cancelled(keep(pair, around, told, followed)).await.unwrap_or(());
            // Nobody alarms for a pair that is none any more.
            metrics::gauge!("switchboard_canary_alarm", names).set(0.0);
        });
        Running { settings, standing, end }
    }
}

async fn keep(
    mut pair: Pair,
    around: Around,
    told: watch::Sender<Standing>,
    mut settings: watch::Receiver<Settings>,
) {
    let began = Instant::now();
    let router = pair.settings.remote.then(|| around.post.told.subscribe());
    let mut ears = Ears { local: None, writer: None, router };
    loop {
        let came = tokio::time::timeout(LOOK, ears.next(&pair.settings.from)).await.ok();
        let now = began.elapsed();
        if settings.has_changed().unwrap_or(false) {
            pair.retune(settings.borrow_and_update().clone(), now);
        }
        let road = *around.post.road.borrow();
        let deaf = if pair.settings.remote { road.why() } else { deaf(&pair, &around, &ears) };
        let mut news = None;
        match came {
            Some(Came::Arrived(id)) => news = pair.arrived(&id, wall_now(), now),
            Some(Came::NotStarted(id)) => news = pair.not_started(&id),
            Some(Came::Told(said)) => match pair.told(&said, now) {
                Follows::Nothing => {}
                Follows::News(what) => news = Some(what),
                Follows::Write(id) => news = write(&mut pair, &around, (id, now), &mut ears),
            },
            None => {}
        }
        if let Some(news) = news.or_else(|| pair.tick(deaf, now)) {
            tell(&pair, news);
        }
        if let Some(id) = pair.question(now) {
            // What cannot be asked now is asked the next time.
            if let Err(why) = ask(&pair.settings, &around, id) {
                tracing::debug!(why = why.words(), "the router is not asked about a canary now");
            }
        }
        if pair.is_due(chance(), now)
            && let Some(news) = begin(&mut pair, &around, (road, now), &mut ears)
        {
            tell(&pair, news);
        }
        if pair.way.is_none() {
            // What else it sends is nobody's business here.
            ears.writer = None;
        }
        let alarm = if pair.standing.alarm { 1.0 } else { 0.0 };
        metrics::gauge!("switchboard_canary_alarm", labels(&pair).to_vec()).set(alarm);
        news::tell(&told, pair.standing.clone());
    }
}

/// Why a phone of this host does not hear now what was written to it, if it does not: that says nothing about its account.
fn deaf(pair: &Pair, around: &Around, ears: &Ears) -> Option<Why> {
    let hears = find(&around.pool, &pair.settings.to)
        .is_some_and(|to| to.report().state == PhoneState::Ready);
    (!hears || ears.local.is_none()).then_some(Why::NotReady)
}

/// It is time for one: it is written, or the router is asked whether anybody would hear it.
fn begin(
    pair: &mut Pair,
    around: &Around,
    (road, now): (Road, Duration),
    ears: &mut Ears,
) -> Option<News> {
    let Some(id) = new_id() else { return Some(pair.skipped(Why::NoChance)) };
    if !pair.settings.remote {
        return write(pair, around, (id, now), ears);
    }
    let fit = writer(&pair.settings, &around.pool)
        .and_then(|_fit| road.why().map_or(Ok(()), Err))
        .and_then(|()| ask(&pair.settings, around, id.clone()));
    match fit {
        Ok(()) => {
            pair.asks(id, now);
            None
        }
        Err(why) => Some(pair.skipped(why)),
    }
}

/// Asks the router how a canary stands.
fn ask(settings: &Settings, around: &Around, message: MessageId) -> Result<(), Why> {
    let from = find(&around.pool, &settings.from).ok_or(Why::NoPhone)?.id;
    let ask = CanaryAsk { message, from, to: settings.to.clone() };
    let link = around.link.as_ref().ok_or(Why::NoLink)?;
    link.try_send(LinkInput::Canary(ask)).map_err(|_full| Why::Busy)
}

fn find(pool: &Pool, number: &E164) -> Option<Handle> {
    pool.iter().find(|phone| phone.config.number == *number)
}

fn new_id() -> Option<MessageId> {
    let mut chance = [0; 4];
    SystemRandom::new().fill(&mut chance).ok()?;
    Some(canary::id(wall_now(), chance))
}

/// The phone that writes and the epoch of its lease, if it can: what is known to be down needs no canary.
fn writer(settings: &Settings, pool: &Pool) -> Result<(Handle, u64), Why> {
    let from = find(pool, &settings.from).ok_or(Why::NoPhone)?;
    if from.report().state != PhoneState::Ready {
        return Err(Why::NotReady);
    }
    let epoch = from.lease().ok_or(Why::NoLease)?.epoch;
    Ok((from, epoch))
}

/// Writes one, if both phones are fit: the loss of any other would say nothing.
fn write(
    pair: &mut Pair,
    around: &Around,
    (id, now): (MessageId, Duration),
    ears: &mut Ears,
) -> Option<News> {
    match hand_over(&pair.settings, &around.pool, &id) {
        Ok((local, writer)) => {
            (ears.local, ears.writer) = (local, Some(writer));
            count(pair, "sent");
            pair.sent(id, wall_now(), now);
            None
        }
        Err(why) => Some(pair.skipped(why)),
    }
}

/// Gives it to the bridge; answers what is heard from now on at the phone that hears, if it is here, and at the one that writes.
fn hand_over(
    settings: &Settings,
    pool: &Pool,
    id: &MessageId,
) -> Result<(Option<Heard>, Heard), Why> {
    let (from, epoch) = writer(settings, pool)?;
    let heard = if settings.remote {
        None
    } else {
        let to = find(pool, &settings.to).ok_or(Why::NoPhone)?;
        if to.report().state != PhoneState::Ready {
            return Err(Why::NotReady);
        }
        // Listening starts before sending, so that it cannot be missed.
        Some(to.stream.listen())
    };
    let send = Send {
        message: id.clone(),
        attempt: 1,
        epoch,
        to: Recipient::Number(settings.to.clone()),
        text: canary::text(id),
        attachments: Vec::new(),
        // Only iMessage tells of the account; and nobody pays for it.
        route: vec![Channel::Imessage],
        class: Class::Marketing,
        start_before: UnixMs(wall_now().0.saturating_add(START_WITHIN_MS)),
        conversation: None,
    };
    let writer = from.stream.listen();
    from.ask(Ask::Command(Command::Send(send))).map_err(|_not_taken| Why::Busy)?;
    Ok((heard, writer))
}

type Heard = broadcast::Receiver<std::sync::Arc<crate::stream::Item>>;

/// What a pair listens to.
struct Ears {
    /// The phone of this host that is to hear, once it was written to.
    local: Option<Heard>,
    /// The phone that writes, while one is under way.
    writer: Option<Heard>,
    /// The router, for a phone of another host.
    router: Option<broadcast::Receiver<CanaryTold>>,
}

/// What was heard.
enum Came {
    /// A canary at the phone of this host.
    Arrived(MessageId),
    /// A message that the phone that writes will never start.
    NotStarted(MessageId),
    /// A word of the router.
    Told(CanaryTold),
}

impl Ears {
    /// The next that is heard; never, where there is nobody to listen to.
    async fn next(&mut self, from: &E164) -> Came {
        loop {
            tokio::select! {
                told = where_there_is(self.router.as_mut().map(broadcast::Receiver::recv)) => match told {
                    Ok(told) => return Came::Told(told),
                    // What was missed is asked for again.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => self.router = None,
                },
                arrived = where_there_is(self.local.as_mut().map(|heard| arrival(heard, from))) => match arrived {
                    Some(id) => return Came::Arrived(id),
                    // The phone was replaced by a changed configuration.
                    None => self.local = None,
                },
                ended = where_there_is(self.writer.as_mut().map(not_started)) => match ended {
                    Some(id) => return Came::NotStarted(id),
                    None => self.writer = None,
                },
            }
        }
    }
}

async fn where_there_is<F: Future>(ear: Option<F>) -> F::Output {
    match ear {
        Some(ear) => ear.await,
        None => std::future::pending().await,
    }
}

/// The next message that the bridge of a phone will never start; none when the stream has ended.
async fn not_started(heard: &mut Heard) -> Option<MessageId> {
    loop {
        match heard.recv().await {
            Ok(item) if matches!(item.kind, "refused" | "canceled" | "expired") => {
                if let Some(attempt) = &item.attempt {
                    return Some(attempt.message.clone());
                }
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

/// The next canary of that phone; none when the stream has ended.
async fn arrival(heard: &mut Heard, from: &E164) -> Option<MessageId> {
    #[derive(serde::Deserialize)]
    struct Frame {
        event: Event,
    }
    loop {
        match heard.recv().await {
            Ok(item) if item.kind == "received" => {
                let Ok(Frame { event: Event::Received(message) }) =
                    serde_json::from_str(&item.json)
                else {
                    continue;
                };
                if message.from == Recipient::Number(from.clone())
                    && let Some(id) = canary::of_text(&message.text)
                {
                    return Some(id);
                }
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

fn labels(pair: &Pair) -> [metrics::Label; 2] {
    [
        metrics::Label::new("from", pair.settings.from.to_string()),
        metrics::Label::new("to", pair.settings.to.to_string()),
    ]
}

fn count(pair: &Pair, outcome: &'static str) {
    let [from, to] = labels(pair);
    let labels = [from, to, metrics::Label::new("outcome", outcome)];
    metrics::counter!("switchboard_canaries_total", labels.to_vec()).increment(1);
}

fn tell(pair: &Pair, news: News) {
    let (from, to) = (&pair.settings.from, &pair.settings.to);
    match news {
        News::Seen { after, alarm_over } => {
            count(pair, "seen");
            metrics::histogram!("switchboard_canary_seconds", labels(pair).to_vec())
                .record(after.as_secs_f64());
            if alarm_over {
                tracing::warn!(%from, %to, "a canary has arrived again");
            }
        }
        News::Lost { alarm } => {
            count(pair, "lost");
            let in_a_row = pair.standing.lost_in_a_row;
            if alarm {
                tracing::error!(%from, %to, in_a_row,
                    "canaries do not arrive: one of these phones does not send or is not heard");
            } else {
                tracing::warn!(%from, %to, in_a_row, "a canary was lost");
            }
        }
        News::Unknown(why) => {
            count(pair, "unknown");
            tracing::warn!(%from, %to, why = why.words(), "nobody knows whether a canary has arrived");
        }
        News::Skipped(why) => {
            count(pair, "skipped");
            tracing::info!(%from, %to, why = why.words(), "no canary was sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_mins(15);
    const LOST: Duration = Duration::from_mins(2);
    const ALARM: News = News::Lost { alarm: true };
    const MISS: News = News::Lost { alarm: false };

    fn pair() -> Pair {
        of(false)
    }

    fn of(remote: bool) -> Pair {
        let settings = Settings {
            remote,
            from: "+12025550190".parse().unwrap(),
            to: "+12025550191".parse().unwrap(),
            every: EVERY,
            lost_after: LOST,
            alarm_after: 3,
        };
        Pair::new(settings, 0.5, Duration::ZERO)
    }

    fn id(n: u8) -> MessageId {
        canary::id(UnixMs(5), [n; 4])
    }

    #[test]
    fn one_is_written_each_period_give_or_take_a_fifth_and_never_two_at_once() {
        let mut pair = pair();
        assert!(!pair.is_due(0.0, EVERY.mul_f64(0.49)) && pair.is_due(0.0, EVERY / 2));
        let first = EVERY / 2;
        assert!(!pair.is_due(0.5, first + EVERY.mul_f64(0.79)));
        assert!(pair.is_due(0.999, first + EVERY.mul_f64(0.81)));
        let second = first + EVERY.mul_f64(0.81);
        assert!(!pair.is_due(0.5, second + EVERY.mul_f64(1.19)));
        pair.sent(id(1), UnixMs(5), second);
        assert!(!pair.is_due(0.5, second + EVERY * 2), "one is on its way");
        assert_eq!(pair.arrived(&id(2), UnixMs(9), second + LOOK), None, "another one");
        let seen = pair.arrived(&id(1), UnixMs(9), second + LOOK);
        assert_eq!(seen, Some(News::Seen { after: LOOK, alarm_over: false }));
        assert!(pair.is_due(0.5, second + EVERY * 2));
        assert_eq!((pair.standing.sent, pair.standing.seen, pair.standing.lost), (1, 1, 0));
    }

    #[test]
    fn other_periods_count_at_once_and_nothing_that_was_counted_is_lost() {
        let mut pair = pair();
        pair.sent(id(1), UnixMs(5), Duration::ZERO);
        let shorter = Settings { every: S * 60, lost_after: S * 30, ..pair.settings.clone() };
        pair.retune(shorter, S);
        assert_eq!(pair.tick(None, S * 29), None);
        assert_eq!(pair.tick(None, S * 30), Some(MISS), "the one under way goes by them, too");
        assert!(!pair.is_due(0.5, S * 60) && pair.is_due(0.5, S * 61));
        assert_eq!((pair.standing.sent, pair.standing.lost_in_a_row), (1, 1));
        let longer = Settings { every: EVERY, ..pair.settings.clone() };
        pair.retune(longer, S * 62);
        assert!(pair.is_due(0.5, S * 121), "what was due soon stays so");
    }

    /// Two are written, and nobody hears of them in time.
    fn lose_two(pair: &mut Pair) {
        for n in 1..=2 {
            pair.sent(id(n), UnixMs(5), Duration::ZERO);
            assert_eq!(pair.tick(None, LOST), Some(MISS));
        }
    }

    #[test]
    fn whoever_could_not_listen_at_the_end_has_not_lost_it() {
        let mut pair = pair();
        lose_two(&mut pair);
        pair.sent(id(3), UnixMs(5), Duration::ZERO);
        let away = Some(Why::NotReady);
        assert_eq!(pair.tick(away, LOST.saturating_sub(S)), None, "it may come back in time");
        assert_eq!(pair.tick(away, LOST), Some(News::Unknown(Why::NotReady)));
        let Standing { lost, unknown, alarm, .. } = pair.standing;
        assert_eq!((lost, unknown, alarm), (2, 1, false));
    }

    #[test]
    fn lost_ones_in_a_row_are_an_alarm_that_is_raised_once_and_ends_with_the_next_that_arrives() {
        let mut pair = pair();
        let mut now = Duration::ZERO;
        for (n, wanted) in [(1, MISS), (2, MISS), (3, ALARM), (4, MISS)] {
            pair.sent(id(n), UnixMs(5), now);
            assert_eq!(pair.tick(None, now + LOST.mul_f64(0.99)), None);
            now += LOST;
            assert_eq!(pair.tick(None, now), Some(wanted), "{n}");
            assert_eq!(pair.tick(None, now), None);
            // What comes too late is no proof: somebody may have mended it by hand meanwhile.
            assert_eq!(pair.arrived(&id(n), UnixMs(9), now), None);
        }
        assert!(pair.standing.alarm);
        pair.sent(id(5), UnixMs(5), now);
        let seen = pair.arrived(&id(5), UnixMs(9), now + LOOK);
        assert_eq!(seen, Some(News::Seen { after: LOOK, alarm_over: true }));
        assert!(!pair.standing.alarm && pair.standing.lost_in_a_row == 0);
        assert_eq!((pair.standing.lost, pair.standing.last_latency_ms), (4, Some(1_000)));
    }

    #[test]
    fn one_that_the_bridge_does_not_start_is_skipped_and_says_nothing_of_who_hears() {
        let mut pair = pair();
        lose_two(&mut pair);
        pair.sent(id(3), UnixMs(5), Duration::ZERO);
        assert_eq!(pair.not_started(&id(4)), None, "another message");
        let skipped = Some(News::Skipped(Why::NotStarted));
        assert_eq!(pair.not_started(&id(3)), skipped);
        assert_eq!((pair.not_started(&id(3)), pair.tick(None, LOST)), (None, None), "told once");
        let Standing { sent, skipped, lost, lost_in_a_row, alarm, .. } = pair.standing;
        assert_eq!((sent, skipped, lost, lost_in_a_row, alarm), (2, 1, 2, 2, false));
        // One that has only been asked for is not the bridge's yet.
        let mut pair = of(true);
        pair.asks(id(1), Duration::ZERO);
        assert_eq!(pair.not_started(&id(1)), None);
    }

    #[tokio::test]
    async fn what_the_bridge_of_the_writing_phone_will_not_start_is_heard() {
        use protocol::pipe::{Attempt, AttemptReason};
        let attempt = |n| Attempt { message: id(n), attempt: 1 };
        let stream = crate::stream::Stream::default();
        let mut ears = Ears { local: None, writer: Some(stream.listen()), router: None };
        let refused = AttemptReason {
            attempt: attempt(1),
            reason: protocol::Reason::StaleEpoch,
            detail: String::new(),
            retryable: true,
            channel: None,
        };
        let told = [
            Event::Accepted(attempt(9)),
            Event::Refused(refused),
            Event::Canceled(attempt(2)),
            Event::Expired(attempt(3)),
        ];
        for (event, seq) in told.into_iter().zip(1..) {
            stream.publish(&protocol::link::EventFrame {
                phone: protocol::PhoneId::new(1, [1; 10]),
                journal: "j".to_owned(),
                seq,
                epoch: None,
                at: UnixMs(5),
                event,
            });
        }
        let from = "+12025550190".parse().unwrap();
        for n in 1..=3 {
            let came = ears.next(&from).await;
            assert!(matches!(came, Came::NotStarted(said) if said == id(n)), "{n}");
        }
    }

    fn told(n: u8, standing: CanaryStanding) -> CanaryTold {
        CanaryTold { message: id(n), standing }
    }

    fn seen_at(at: i64, waited_ms: u64) -> CanaryStanding {
        let phone = protocol::PhoneId::new(1, [1; 10]);
        CanaryStanding::Seen { phone, host: None, at: UnixMs(at), waited_ms }
    }

    const S: Duration = Duration::from_secs(1);

    /// A pair whose canary 1 was written at the hour 1,000,000.
    fn under_way() -> Pair {
        let mut pair = of(true);
        pair.asks(id(1), Duration::ZERO);
        assert_eq!(pair.told(&told(2, CanaryStanding::NotSeen), S), Follows::Nothing, "another's");
        assert_eq!(pair.told(&told(1, CanaryStanding::NotSeen), S), Follows::Write(id(1)));
        pair.sent(id(1), UnixMs(1_000_000), Duration::ZERO);
        pair
    }

    #[test]
    fn nothing_is_written_to_who_is_not_known_to_be_heard() {
        for (said, why) in [
            (Some(CanaryStanding::Away), Why::Away),
            (Some(CanaryStanding::Unknown), Why::Away),
            (Some(CanaryStanding::Strange), Why::NotAPhone),
            (None, Why::NoAnswer),
        ] {
            let mut pair = of(true);
            pair.asks(id(1), Duration::ZERO);
            assert_eq!(pair.tick(None, ANSWER_WITHIN.saturating_sub(S)), None);
            match said {
                Some(standing) => {
                    let follows = pair.told(&told(1, standing), S);
                    assert_eq!(follows, Follows::News(News::Skipped(why)));
                }
                None => assert_eq!(pair.tick(None, ANSWER_WITHIN), Some(News::Skipped(why))),
            }
            assert_eq!((pair.standing.skipped, pair.standing.why), (1, Some(why)));
            assert!(pair.standing.sent == 0 && pair.way.is_none() && !pair.standing.alarm);
        }
        let mut pair = of(true);
        pair.asks(id(1), Duration::ZERO);
        let news = pair.tick(Road::Deaf.why(), ANSWER_WITHIN);
        assert_eq!(news, Some(News::Skipped(Why::RouterTooOld)));
    }

    #[test]
    fn what_the_router_has_known_for_a_while_did_not_take_that_long() {
        for (now, at, waited_ms, after) in [
            (3, 1_002_000, 0, Some(3)),
            // The link of this host was down for five minutes.
            (303, 1_003_000, 300_000, Some(3)),
            // That of the other one was: it says itself when it was noted, and its clock may be a little behind.
            (303, 1_004_000, 1_000, Some(4)),
            (303, 999_000, 1_000, Some(0)),
            // It has really come too late, however long the router waited to be asked.
            (303, 1_150_000, 100_000, None),
        ] {
            let mut pair = under_way();
            let follows = pair.told(&told(1, seen_at(at, waited_ms)), S * now);
            let wanted = match after {
                Some(after) => News::Seen { after: S * after, alarm_over: false },
                None => MISS,
            };
            assert_eq!(follows, Follows::News(wanted), "{now} {at} {waited_ms}");
            let again = pair.told(&told(1, seen_at(at, waited_ms)), S * now);
            assert_eq!(again, Follows::Nothing, "said twice");
        }
    }

    #[test]
    fn one_is_lost_only_when_the_router_says_so_and_was_asked_late_enough() {
        let mut pair = under_way();
        assert_eq!(pair.question(ASK_EVERY.saturating_sub(S)), None);
        let mut now = Duration::ZERO;
        while now + ASK_EVERY < LOST + JUDGE_AFTER {
            now += ASK_EVERY;
            assert_eq!(pair.question(now), Some(id(1)));
            assert_eq!(pair.question(now), None);
            let early = pair.told(&told(1, CanaryStanding::NotSeen), now + S);
            assert_eq!((early, pair.tick(None, now + S)), (Follows::Nothing, None), "{now:?}");
        }
        now += ASK_EVERY;
        assert_eq!(
            pair.told(&told(1, CanaryStanding::NotSeen), now),
            Follows::Nothing,
            "to an old question"
        );
        assert_eq!(pair.question(now), Some(id(1)));
        assert_eq!(pair.told(&told(1, CanaryStanding::NotSeen), now), Follows::News(MISS));
        assert_eq!(pair.standing.lost, 1);
    }

    /// A Mac that is cut off hears only afterwards what was written to it meanwhile, and may say before that it has heard all.
    #[test]
    fn whoever_was_away_has_the_whole_time_again() {
        for nothing in [CanaryStanding::Away, CanaryStanding::Unknown] {
            let mut pair = under_way();
            let back = LOST + JUDGE_AFTER + S;
            assert_eq!(pair.question(back), Some(id(1)));
            assert_eq!(pair.told(&told(1, nothing), back), Follows::Nothing);
            let judged = back + LOST + JUDGE_AFTER;
            assert_eq!(pair.question(judged.saturating_sub(S)), Some(id(1)));
            assert_eq!(pair.told(&told(1, CanaryStanding::NotSeen), judged), Follows::Nothing);
            let asked = judged.saturating_sub(S) + ASK_EVERY;
            assert_eq!(pair.question(asked), Some(id(1)));
            assert_eq!(pair.told(&told(1, CanaryStanding::NotSeen), asked), Follows::News(MISS));
        }
        // The same where this host was cut off.
        let mut pair = under_way();
        assert_eq!(pair.tick(Some(Why::NoLink), LOST * 2), None);
        assert_eq!(pair.question(LOST * 2 + S), Some(id(1)));
        let at_once = pair.told(&told(1, CanaryStanding::NotSeen), LOST * 2 + S);
        assert_eq!(at_once, Follows::Nothing);
        let late = pair.told(&told(1, seen_at(1_500_000, 0)), LOST * 2 + S * 2);
        assert_eq!(late, Follows::News(News::Unknown(Why::Away)));
    }

    #[test]
    fn what_nobody_can_say_is_neither_seen_nor_lost() {
        for (road, why) in
            [(Road::Down, Why::NoLink), (Road::Deaf, Why::RouterTooOld), (Road::Open, Why::Away)]
        {
            let mut pair = under_way();
            assert_eq!(pair.tick(road.why(), (LOST + GIVE_UP_AFTER).saturating_sub(S)), None);
            assert!(!pair.is_due(0.5, EVERY * 2), "one is on its way");
            let news = pair.tick(road.why(), LOST + GIVE_UP_AFTER);
            assert_eq!(news, Some(News::Unknown(why)));
            let Standing { unknown, lost, lost_in_a_row, alarm, .. } = pair.standing;
            assert_eq!((unknown, lost, lost_in_a_row, alarm), (1, 0, 0, false));
        }
        let mut pair = under_way();
        let follows = pair.told(&told(1, CanaryStanding::Strange), S);
        assert_eq!(follows, Follows::News(News::Unknown(Why::NotAPhone)));
    }
}
