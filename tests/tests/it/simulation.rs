//! A day of faults in virtual time: three Macs, two phones, one router, of which only what decides is real: the router's
//! leases, the bridges' gates, the supervisors' restarts, plans, uplinks, power and care of Messages. All else, the clocks,
//! the wires and the faults, is drawn from a seed. Half an hour of faults and half an hour of peace take turns: whatever
//! happens, two hosts never send for one phone; and in peace every phone is served within its time.
//!
//! Several seeds share the day. The same seed is the same faults, and `SWITCHBOARD_SEED=7` plays a whole day of that one.

#![cfg(test)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::LazyLock;
use std::time::Duration;

use bridge::clock::Now;
use bridge::simulation::{Answer, Gate};
use protocol::link::{PhoneState, PowerLevel, PowerSource};
use protocol::{PhoneId, Reason, UnixMs};
use router::lease::{self, Condition, Decision, Lease, Policy, Role};
use router::steady::Steady;
use supervisor::simulation::{Act, Bridges, Came, Said, Supervisor, Time};

/// Each plays its share of the day: what can go wrong lies in how faults meet, and another seed has them meet otherwise.
const SEEDS: [u64; 4] = [1, 2, 3, 4];

/// Everything is looked at so often.
const STEP: i64 = 250;

const HOSTS: usize = 3;
const PHONES: usize = 2;
/// The second stands by for both phones, the third for the first one alone.
const CONFIGURED: [[bool; PHONES]; HOSTS] = [[true, true], [true, true], [true, false]];

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// What the configuration of a router has as defaults.
const TTL: i64 = 15 * SECOND;
const GRACE: i64 = 5 * SECOND;
/// A host renews so often.
const RENEW: i64 = 5 * SECOND;
/// A hand-over that has not come by then is called off.
const HAND_OVER: i64 = TTL + GRACE + 10 * SECOND;
/// A host is dialled out of a session in which nothing was heard for so long.
const SILENCE: i64 = 15 * SECOND;
/// launchd starts a supervisor again not sooner than this after its last start.
const THROTTLE: i64 = 5 * SECOND;
/// A script that was begun under a lease may run on for so long after the lease's end: what the bridge takes off it, and
/// the router's grace.
const SCRIPT_MAX: i64 = 7 * SECOND;

/// The longest that a phone may be unserved once nothing goes wrong any more: all its hosts were parked, and are tried
/// every five minutes and up to a fifth later.
const SERVED_WITHIN: i64 = 7 * MINUTE + 30 * SECOND;

/// A wall clock begins here.
const EPOCH: i64 = 1_790_000_000_000;

static IDS: LazyLock<[PhoneId; PHONES]> =
    LazyLock::new(|| std::array::from_fn(|n| PhoneId::new(1, [u8::try_from(n).unwrap_or(0); 10])));

fn phone(n: usize) -> PhoneId {
    IDS[n].clone()
}

/// What is on a wire.
#[derive(Debug, Clone)]
enum Frame {
    Renew { n: u64, reports: Vec<Report>, power: Option<PowerLevel> },
    Released { phone: usize, epoch: u64 },
    Lease { phone: usize, epoch: u64, renewal: u64 },
    Revoke { phone: usize, epoch: u64 },
    Release { phone: usize, epoch: u64 },
    Send { phone: usize, epoch: u64, start_before: i64 },
}

#[derive(Debug, Clone)]
struct Report {
    phone: usize,
    state: PhoneState,
    reasons: Vec<Reason>,
    epoch: u64,
}

#[derive(Debug)]
struct OnWire {
    host: usize,
    session: u64,
    up: bool,
    frame: Frame,
}

/// The process of a bridge.
#[derive(Debug)]
struct Process {
    gate: Gate,
    born: i64,
    greeted: bool,
    ready: Option<bool>,
    beat: i64,
    turns: u64,
    frozen_until: i64,
    paused_until: i64,
    script_until: i64,
    releasing: Option<u64>,
    queue: VecDeque<(u64, i64)>,
}

#[derive(Debug)]
struct Host {
    boot: i64,
    /// How much of the time since boot it has slept.
    slept: i64,
    wall: i64,
    lost_until: i64,
    asleep_until: i64,
    frozen_until: i64,
    supervisor: Option<(Supervisor, u64)>,
    launched: i64,
    down_since: i64,
    bridges: [Option<Process>; PHONES],
    /// A script that outlives the bridge that began it.
    orphans: [i64; PHONES],
    /// What the journals keep.
    seen: [u64; PHONES],
    crashes_until: [i64; PHONES],
    removed_until: [i64; PHONES],
    settings: [u8; PHONES],
    leases: [Option<(u64, u64)>; PHONES],
    /// Epochs that the link has met.
    met: [u64; PHONES],
    session: Option<u64>,
    redial: i64,
    heard: i64,
    renewed: i64,
    renewals: VecDeque<(u64, u64)>,
    renewal: u64,
    uplink: usize,
    uplinks_down_until: [i64; 2],
    probed: i64,
    battery_until: i64,
    level: PowerLevel,
    messages: Messages,
    pauses: bool,
    doing: Option<(i64, Doing)>,
    cures: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Messages {
    Fine,
    /// `stubborn`: it refuses whatever may be refused.
    Hung {
        stubborn: bool,
    },
    Gone,
}

#[derive(Debug, Clone, Copy)]
enum Doing {
    Probe,
    Look,
    Open,
    Step { may_refuse: bool },
}

/// What the router's store has of a phone.
#[derive(Debug)]
struct Row {
    lease: Option<Lease>,
    serving: usize,
    handed: Option<(usize, i64)>,
    moved: Option<i64>,
    reports: [(PhoneState, Vec<Reason>, i64); HOSTS],
    newest: u64,
}

#[derive(Debug)]
struct Router {
    down_until: i64,
    wall: i64,
    /// When its clock was last set, or it was started: since then it runs evenly.
    set_at: i64,
    steady: Steady,
    rows: [Row; PHONES],
    /// Of each host: its session, when it was heard of, its last renewal, its power.
    hosts: [(Option<u64>, i64, u64, Option<PowerLevel>); HOSTS],
    waits: [[Option<i64>; PHONES]; HOSTS],
}

#[derive(Debug, Default)]
struct Counts {
    faults: u64,
    grants: u64,
    planned: u64,
    started: u64,
    spawned: u64,
    cures: u64,
    switches: u64,
    served_ms_max: i64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.faults += other.faults;
        self.grants += other.grants;
        self.planned += other.planned;
        self.started += other.started;
        self.spawned += other.spawned;
        self.cures += other.cures;
        self.switches += other.switches;
        self.served_ms_max = self.served_ms_max.max(other.served_ms_max);
    }
}

struct World {
    random: fastrand::Rng,
    base: tokio::time::Instant,
    now: i64,
    calm: bool,
    wire: BinaryHeap<Reverse<(i64, u64)>>,
    frames: BTreeMap<u64, OnWire>,
    frame: u64,
    sessions: u64,
    router: Router,
    hosts: Vec<Host>,
    counts: Counts,
    story: VecDeque<String>,
}

fn host_name(n: usize) -> String {
    format!("h{n}")
}

fn count_ms(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

impl Host {
    fn new() -> Self {
        Self {
            boot: -HOUR,
            slept: 0,
            wall: 0,
            lost_until: 0,
            asleep_until: 0,
            frozen_until: 0,
            supervisor: None,
            launched: -THROTTLE,
            down_since: 0,
            bridges: [const { None }; PHONES],
            orphans: [0; PHONES],
            seen: [0; PHONES],
            crashes_until: [0; PHONES],
            removed_until: [0; PHONES],
            settings: [0; PHONES],
            leases: [None; PHONES],
            met: [0; PHONES],
            session: None,
            redial: 0,
            heard: 0,
            renewed: 0,
            renewals: VecDeque::new(),
            renewal: 0,
            uplink: 0,
            uplinks_down_until: [0; 2],
            probed: 0,
            battery_until: 0,
            level: PowerLevel::Mains,
            messages: Messages::Fine,
            pauses: false,
            doing: None,
            cures: Vec::new(),
        }
    }

    /// The clocks as a process on this host reads them.
    fn now(&self, now: i64) -> Now {
        Now { wall: UnixMs(EPOCH + now + self.wall), continuous_ms: now - self.boot }
    }

    fn time(&self, now: i64, since: u64) -> Time {
        let continuous = now - self.boot;
        Time { continuous: count_ms(continuous), awake: count_ms(continuous - self.slept), since }
    }

    fn runs(&self, now: i64) -> bool {
        now >= self.lost_until && now >= self.asleep_until
    }

    fn link_up(&self, now: i64) -> bool {
        self.runs(now)
            && self.supervisor.is_some()
            && now >= self.frozen_until
            && now >= self.uplinks_down_until[self.uplink]
    }

    fn wanted(&self, host: usize, now: i64) -> BTreeMap<PhoneId, u8> {
        (0..PHONES)
            .filter(|n| CONFIGURED[host][*n] && now >= self.removed_until[*n])
            .map(|n| (phone(n), self.settings[n]))
            .collect()
    }

    /// What the bridges say of themselves, for the keeper of Messages.
    fn view(&self, now: i64) -> Bridges {
        let all = || self.bridges.iter().flatten();
        let quiet = all().all(|bridge| now >= bridge.script_until);
        Bridges {
            suspected: all().any(|bridge| bridge.ready == Some(false)),
            // No script lasts that long here.
            stuck: false,
            quiet,
            still: quiet && all().all(|bridge| now < bridge.paused_until),
        }
    }

    /// Everything in memory is gone.
    fn supervisor_ends(&mut self, now: i64) {
        if let Some((supervisor, _)) = self.supervisor.take() {
            self.cures = supervisor.cures().to_vec();
        }
        self.down_since = now;
        self.session = None;
        self.leases = [None; PHONES];
        self.met = [0; PHONES];
        self.renewals.clear();
        self.doing = None;
        self.pauses = false;
        for n in 0..PHONES {
            self.bridge_ends(n);
        }
    }

    fn bridge_ends(&mut self, n: usize) {
        if let Some(bridge) = self.bridges[n].take() {
            self.seen[n] = bridge.gate.max_epoch();
            self.orphans[n] = bridge.script_until;
        }
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let base = tokio::time::Instant::now();
        let row = || Row {
            lease: None,
            serving: 0,
            handed: None,
            moved: None,
            reports: std::array::from_fn(|_| (PhoneState::Stopped, Vec::new(), 0)),
            newest: 0,
        };
        Self {
            random: fastrand::Rng::with_seed(seed),
            base,
            now: 0,
            calm: true,
            wire: BinaryHeap::new(),
            frames: BTreeMap::new(),
            frame: 0,
            sessions: 0,
            router: Router {
                down_until: 0,
                wall: 0,
                set_at: 0,
                steady: Steady::new(UnixMs(EPOCH), base),
                rows: std::array::from_fn(|_| row()),
                hosts: [(None, 0, 0, None); HOSTS],
                waits: [[None; PHONES]; HOSTS],
            },
            hosts: (0..HOSTS).map(|_| Host::new()).collect(),
            counts: Counts::default(),
            story: VecDeque::new(),
        }
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        let at = Duration::from_millis(count_ms(self.now));
        self.story.push_back(format!("{:>10.1} {}", at.as_secs_f64(), what()));
        if self.story.len() > 40 {
            self.story.pop_front();
        }
    }

    /// Once in so many seconds, on average, while there are faults.
    fn strikes(&mut self, seconds: u32) -> bool {
        let strikes = !self.calm && self.random.u32(0..seconds) == 0;
        self.counts.faults += u64::from(strikes);
        strikes
    }

    fn within(&mut self, least_s: i64, most_s: i64) -> i64 {
        self.random.i64(least_s * SECOND..=most_s * SECOND)
    }

    fn router_up(&self) -> bool {
        self.now >= self.router.down_until
    }

    fn router_wall(&self) -> i64 {
        EPOCH + self.now + self.router.wall
    }

    fn policy(&self) -> Policy {
        let at = self.base + Duration::from_millis(count_ms(self.now));
        Policy {
            ttl_ms: TTL,
            grace_ms: GRACE,
            unfit_ms: MINUTE,
            settle_ms: 5 * MINUTE,
            steady_ms: self.router.steady.look(UnixMs(self.router_wall()), at),
        }
    }

    // ---- the wires ----

    fn put(&mut self, host: usize, up: bool, frame: &Frame) {
        let Some(session) = (if up { self.hosts[host].session } else { self.router.hosts[host].0 })
        else {
            return;
        };
        let copies = match self.random.u32(0..100) {
            0 | 1 if !self.calm => 0,
            2 | 3 if !self.calm => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let late = !self.calm && self.random.u32(0..50) == 0;
            let takes = if late { self.within(1, 20) } else { self.random.i64(10..300) };
            self.frame += 1;
            self.wire.push(Reverse((self.now + takes, self.frame)));
            let frame = frame.clone();
            self.frames.insert(self.frame, OnWire { host, session, up, frame });
        }
    }

    fn arrives(&mut self, id: u64) {
        let Some(OnWire { host, session, up, frame }) = self.frames.remove(&id) else { return };
        let link_up = self.hosts[host].link_up(self.now);
        if up {
            if self.router_up() && link_up && self.router.hosts[host].0 == Some(session) {
                self.router_takes(host, frame);
            }
        } else if self.hosts[host].session == Some(session) && link_up {
            self.hosts[host].heard = self.now;
            self.host_takes(host, &frame);
        }
    }

    // ---- the router ----

    fn router_takes(&mut self, host: usize, frame: Frame) {
        let wall = self.router_wall();
        match frame {
            Frame::Renew { n, reports, power } => {
                let newest = self.router.hosts[host].2.max(n);
                self.router.hosts[host] = (self.router.hosts[host].0, self.now, newest, power);
                for n in 0..PHONES {
                    let told = reports.iter().find(|report| report.phone == n);
                    let (state, reasons) = match told {
                        Some(report) => (report.state, report.reasons.clone()),
                        None => (PhoneState::Stopped, Vec::new()),
                    };
                    let last = &mut self.router.rows[n].reports[host];
                    if (last.0, &last.1) != (state, &reasons) {
                        *last = (state, reasons, wall);
                    }
                    match told {
                        Some(report) => self.asks(host, n, report.epoch, newest),
                        None => self.router.waits[host][n] = None,
                    }
                }
            }
            Frame::Released { phone, epoch } => {
                let row = &mut self.router.rows[phone];
                let waits = row.handed.filter(|(_, until)| *until > wall);
                if let (Some((heir, _)), Some(lease)) = (waits, row.lease.as_mut())
                    && row.serving == host
                    && lease.epoch == epoch
                    && lease.host == host_name(host)
                {
                    lease.released = true;
                    self.tell(|| format!("phone {phone} released by {host} under {epoch}"));
                    self.ask_again(heir, phone);
                }
            }
            Frame::Lease { .. }
            | Frame::Revoke { .. }
            | Frame::Release { .. }
            | Frame::Send { .. } => {}
        }
    }

    fn role(&self, host: usize, n: usize) -> Role {
        let (row, wall) = (&self.router.rows[n], self.router_wall());
        let heir = row.handed.filter(|(_, until)| *until > wall).map(|(heir, _)| heir);
        let ready = row.reports[host].0 == PhoneState::Ready;
        match heir {
            Some(heir) if heir == host => Role::Heir,
            Some(_) if row.serving == host => Role::Leaving,
            Some(_) => Role::Standby { fit: false },
            None if row.serving == host => Role::Active,
            None => Role::Standby { fit: ready },
        }
    }

    /// A hand-over begins, if there is a host that could take the phone.
    fn begin(&mut self, n: usize) -> bool {
        let wall = self.router_wall();
        let able = |host: usize| {
            let (session, heard, _, power) = self.router.hosts[host];
            host != self.router.rows[n].serving
                && self.router.rows[n].reports[host].0 == PhoneState::Ready
                && session.is_some()
                && heard >= self.now - 15 * SECOND
                && !matches!(power, Some(PowerLevel::Battery | PowerLevel::Low))
        };
        let Some(heir) = (0..HOSTS).find(|host| able(*host)) else { return false };
        let row = &mut self.router.rows[n];
        row.handed = Some((heir, wall + HAND_OVER));
        if let Some(lease) = &mut row.lease {
            lease.epoch += 1;
            lease.released = false;
        }
        self.tell(|| format!("phone {n} is to go to {heir}"));
        true
    }

    fn asks(&mut self, host: usize, n: usize, seen: u64, renewal: u64) {
        let (policy, wall) = (self.policy(), self.router_wall());
        if let Some(lease) = &mut self.router.rows[n].lease
            && lease.epoch < seen
        {
            lease.epoch = seen + 1;
        }
        if self.role(host, n) == Role::Active {
            let row = &self.router.rows[n];
            let (state, reasons, since_ms) = row.reports[host].clone();
            let condition = Condition {
                state,
                reasons,
                since_ms,
                blocked: false,
                moved_ms: row.moved,
                called_off_ms: row.handed.map(|(_, until)| until).filter(|until| *until <= wall),
                power: self.router.hosts[host].3,
                drained: false,
            };
            if lease::unfit(policy, &condition, wall) {
                self.begin(n);
            }
        }
        let role = self.role(host, n);
        let current = self.router.rows[n].lease.clone();
        let name = host_name(host);
        match lease::decide(policy, current.as_ref(), (&name, role), wall) {
            Decision::Refuse { until_ms } => {
                self.router.waits[host][n] = Some(until_ms);
                match current.filter(|lease| role == Role::Leaving && !lease.released) {
                    Some(lease) => {
                        self.put(host, false, &Frame::Release { phone: n, epoch: lease.epoch });
                    }
                    None if seen > 0 => {
                        self.put(host, false, &Frame::Revoke { phone: n, epoch: seen });
                    }
                    None => {}
                }
            }
            Decision::Renew(lease) => {
                self.router.waits[host][n] = None;
                self.granted(host, n, &lease, renewal);
            }
            Decision::Grant(lease) => {
                self.router.waits[host][n] = None;
                self.counts.grants += 1;
                let planned = current.as_ref().is_some_and(|lease| lease.released);
                self.counts.planned += u64::from(planned);
                self.tell(|| format!("phone {n} to {host} under {} ({planned})", lease.epoch));
                let row = &mut self.router.rows[n];
                if let Some(current) = &current {
                    assert!(lease.epoch > current.epoch, "an epoch that was granted before");
                }
                if row.serving != host {
                    row.moved = Some(wall);
                }
                (row.serving, row.handed) = (host, None);
                self.granted(host, n, &lease, renewal);
                for other in (0..HOSTS).filter(|other| *other != host) {
                    let (gate, script) = self.sends_at(other, n);
                    assert!(!gate, "host {other} may still send for phone {n}");
                    assert!(!script, "a script of host {other} still runs for phone {n}");
                }
            }
        }
    }

    fn granted(&mut self, host: usize, n: usize, lease: &Lease, renewal: u64) {
        let row = &mut self.router.rows[n];
        assert!(lease.epoch >= row.newest, "epoch {} after {}", lease.epoch, row.newest);
        row.newest = lease.epoch;
        row.lease = Some(lease.clone());
        self.put(host, false, &Frame::Lease { phone: n, epoch: lease.epoch, renewal });
    }

    /// Whether the gate of a host is open for a phone, and whether a script runs there that a bridge has begun.
    fn sends_at(&self, host: usize, n: usize) -> (bool, bool) {
        let it = &self.hosts[host];
        if self.now < it.lost_until {
            return (false, false);
        }
        let script = match &it.bridges[n] {
            Some(bridge) => self.now < bridge.script_until,
            None => false,
        };
        let gate =
            it.bridges[n].as_ref().is_some_and(|bridge| bridge.gate.is_open(it.now(self.now)));
        (gate, script || self.now < it.orphans[n])
    }

    fn ask_again(&mut self, host: usize, n: usize) {
        let (session, _, renewal, _) = self.router.hosts[host];
        if session.is_some() && self.router.waits[host][n].is_some() {
            self.asks(host, n, 0, renewal);
        }
    }

    fn router_second(&mut self) {
        if !self.router_up() {
            return;
        }
        let wall = self.router_wall();
        for host in 0..HOSTS {
            let silent = self.router.hosts[host].1 < self.now - MINUTE;
            if self.router.hosts[host].0.is_some() && silent {
                self.router.hosts[host].0 = None;
            }
            for n in 0..PHONES {
                if self.router.waits[host][n].is_some_and(|until| until <= wall) {
                    self.ask_again(host, n);
                }
            }
        }
        for n in 0..PHONES {
            let row = &self.router.rows[n];
            let (serving, wants) = (row.serving, self.random.u32(0..4) == 0);
            let handed = row.handed.is_some_and(|(_, until)| until > wall);
            let live = row.lease.clone().filter(|lease| {
                !handed
                    && row.reports[serving].0 == PhoneState::Ready
                    && lease::live(lease, &host_name(serving), wall)
            });
            if let Some(lease) = live.filter(|_| wants) {
                let start_before = wall + MINUTE;
                let send = Frame::Send { phone: n, epoch: lease.epoch, start_before };
                self.put(serving, false, &send);
            }
            if self.strikes(700) {
                self.begin(n);
            }
        }
    }

    // ---- the hosts ----

    fn host_takes(&mut self, host: usize, frame: &Frame) {
        let now = self.now;
        let it = &mut self.hosts[host];
        match *frame {
            Frame::Lease { phone: n, epoch, renewal } => {
                let asked = it.renewals.iter().find(|(number, _)| *number == renewal);
                let Some((_, issued)) = asked.copied().filter(|_| epoch >= it.met[n]) else {
                    return;
                };
                it.met[n] = epoch;
                it.leases[n] = Some((epoch, issued));
                self.lease(host, n, epoch, issued);
            }
            Frame::Revoke { phone: n, epoch } => {
                it.leases[n] = it.leases[n].filter(|(held, _)| *held > epoch);
                if let Some(bridge) = &mut it.bridges[n] {
                    bridge.gate.revoke(epoch);
                }
            }
            Frame::Release { phone: n, epoch } => {
                it.met[n] = it.met[n].max(epoch);
                it.leases[n] = None;
                let bridge = it.bridges[n].as_mut().filter(|bridge| bridge.greeted);
                if let Some(bridge) = bridge.filter(|bridge| now >= bridge.frozen_until) {
                    bridge.gate.release(epoch);
                    bridge.releasing = Some(epoch);
                }
            }
            Frame::Send { phone: n, epoch, start_before } => {
                if let Some(bridge) = it.bridges[n].as_mut().filter(|bridge| bridge.greeted) {
                    bridge.gate.see(epoch);
                    bridge.queue.push_back((epoch, start_before));
                }
            }
            Frame::Renew { .. } | Frame::Released { .. } => {}
        }
    }

    fn lease(&mut self, host: usize, n: usize, epoch: u64, issued: u64) {
        let it = &mut self.hosts[host];
        let now = it.now(self.now);
        if let Some(bridge) = it.bridges[n].as_mut().filter(|bridge| bridge.greeted) {
            // Frozen, it reads the line when it goes on: nothing in it says that it is late but the clock.
            let seen = bridge.gate.max_epoch();
            bridge.gate.lease(epoch, count_ms(TTL), issued, now);
            assert!(bridge.gate.max_epoch() >= seen, "a bridge has forgotten an epoch");
        }
    }

    fn acts(&mut self, host: usize, acts: Vec<Act>) {
        for act in acts {
            let now = self.now;
            let it = &mut self.hosts[host];
            let number = |id: &PhoneId| IDS.iter().position(|one| one == id).unwrap_or(0);
            match act {
                Act::Spawn(id) => {
                    let n = number(&id);
                    assert!(it.bridges[n].is_none(), "two bridges for phone {n} on host {host}");
                    let bridge = Process {
                        gate: Gate::new(it.seen[n]),
                        born: now,
                        greeted: false,
                        ready: None,
                        beat: now,
                        turns: 0,
                        frozen_until: 0,
                        paused_until: 0,
                        script_until: 0,
                        releasing: None,
                        queue: VecDeque::new(),
                    };
                    it.bridges[n] = Some(bridge);
                    self.counts.spawned += 1;
                }
                Act::Greet(id) => {
                    let n = number(&id);
                    if let Some(bridge) = &mut it.bridges[n] {
                        bridge.greeted = true;
                        bridge.paused_until = if it.pauses { now + 30 * SECOND } else { 0 };
                    }
                    if let Some((epoch, issued)) = it.leases[n] {
                        self.lease(host, n, epoch, issued);
                    }
                }
                Act::Ask(id) | Act::End(id) => {
                    let n = number(&id);
                    if it.bridges[n].is_some() {
                        it.bridge_ends(n);
                        self.said(host, n, Said::Signalled);
                    }
                }
                Act::Switch(to) => {
                    it.uplink = to;
                    it.session = None;
                    it.redial = now + 200;
                    self.counts.switches += 1;
                    self.tell(|| format!("host {host} goes to uplink {to}"));
                }
                Act::Pause(pause) => {
                    it.pauses = pause;
                    for bridge in it.bridges.iter_mut().flatten() {
                        bridge.paused_until = if pause { now + 30 * SECOND } else { 0 };
                    }
                }
                Act::Probe => it.doing = Some((now + 300, Doing::Probe)),
                Act::Look => it.doing = Some((now + 100, Doing::Look)),
                Act::Open => it.doing = Some((now + 500, Doing::Open)),
                Act::Step(what, may_refuse) => {
                    it.doing = Some((now + 300, Doing::Step { may_refuse }));
                    let busy = it.bridges.iter().flatten().any(|bridge| now < bridge.script_until);
                    assert!(!busy, "Messages of host {host} is ended ({what}) under a send");
                    self.tell(|| format!("host {host}: {what}"));
                }
            }
        }
    }

    fn said(&mut self, host: usize, n: usize, said: Said) {
        let (now, chance) = (self.now, self.random.f64());
        let it = &mut self.hosts[host];
        let Some((supervisor, since)) = &mut it.supervisor else { return };
        let since = *since;
        let time = Time {
            continuous: count_ms(now - it.boot),
            awake: count_ms(now - it.boot - it.slept),
            since,
        };
        let acts = supervisor.said(&phone(n), said, time, chance);
        self.acts(host, acts);
    }

    fn messages(&mut self, host: usize, came: Came) {
        let it = &mut self.hosts[host];
        let view = it.view(self.now);
        let Some(since) = it.supervisor.as_ref().map(|(_, since)| *since) else { return };
        let time = it.time(self.now, since);
        let Some((supervisor, _)) = &mut it.supervisor else { return };
        let before = supervisor.cures().len();
        let acts = supervisor.messages(came, view, time);
        self.counts.cures += u64::from(supervisor.cures().len() > before);
        self.acts(host, acts);
    }

    /// A moment of one host.
    fn host_moment(&mut self, host: usize) {
        let now = self.now;
        if !self.hosts[host].runs(now) || now < self.hosts[host].frozen_until {
            self.frozen_supervisor_moment(host);
            return;
        }
        if self.hosts[host].supervisor.is_none() {
            let it = &mut self.hosts[host];
            if now >= it.launched + THROTTLE && now >= it.down_since + 200 {
                it.launched = now;
                let since = it.time(now, 0).awake;
                let time = it.time(now, since);
                let supervisor = Supervisor::new(2, it.uplink, it.cures.clone(), time);
                it.supervisor = Some((supervisor, since));
                it.redial = now + 300;
            }
            return;
        }
        for n in 0..PHONES {
            self.bridge_moment(host, n);
        }
        let it = &mut self.hosts[host];
        if let Some((_, doing)) = it.doing.filter(|(at, _)| *at <= now) {
            it.doing = None;
            let came = self.done(host, doing);
            self.messages(host, came);
        }
        self.link_moment(host);
    }

    /// Bridges go on while their supervisor stands still.
    fn frozen_supervisor_moment(&mut self, host: usize) {
        if self.hosts[host].runs(self.now) {
            for n in 0..PHONES {
                self.sends(host, n);
            }
        }
    }

    fn done(&mut self, host: usize, doing: Doing) -> Came {
        let refuses = self.random.bool();
        let it = &mut self.hosts[host];
        match doing {
            Doing::Probe => match it.messages {
                Messages::Fine => Came::Fine,
                Messages::Hung { .. } => Came::Hung,
                Messages::Gone => Came::NotRunning,
            },
            Doing::Look => Came::Runs(it.messages != Messages::Gone),
            Doing::Open => {
                it.messages = Messages::Fine;
                Came::Stepped
            }
            Doing::Step { may_refuse } => {
                let stubborn = matches!(it.messages, Messages::Hung { stubborn: true });
                if it.messages != Messages::Fine && !(may_refuse && (stubborn || refuses)) {
                    it.messages = Messages::Gone;
                }
                Came::Stepped
            }
        }
    }

    fn bridge_moment(&mut self, host: usize, n: usize) {
        let now = self.now;
        let it = &mut self.hosts[host];
        let hung = it.messages != Messages::Fine;
        let crashes = now < it.crashes_until[n];
        let Some(bridge) = &mut it.bridges[n] else { return };
        if now < bridge.frozen_until {
            return;
        }
        let age = now - bridge.born;
        let mut said = Vec::new();
        if !bridge.greeted && age >= 300 {
            if crashes {
                it.bridge_ends(n);
                self.said(host, n, Said::Exited(1));
                return;
            }
            said.push(Said::Hello);
        } else if bridge.greeted && age >= 500 {
            if bridge.ready != Some(!hung) {
                bridge.ready = Some(!hung);
                said.push(if hung { Said::NotReady } else { Said::Ready });
            }
            if now >= bridge.beat + 5 * SECOND {
                (bridge.beat, bridge.turns) = (now, bridge.turns + 1);
                said.push(Said::Beat(bridge.turns));
            }
        }
        for one in said {
            self.said(host, n, one);
        }
        self.sends(host, n);
    }

    fn sends(&mut self, host: usize, n: usize) {
        let (now, length) = (self.now, self.random.i64(300..SCRIPT_MAX));
        let it = &mut self.hosts[host];
        let clocks = it.now(now);
        let orphan = now < it.orphans[n];
        let Some(bridge) = it.bridges[n].as_mut().filter(|bridge| now >= bridge.frozen_until)
        else {
            return;
        };
        let free = now >= bridge.script_until && !orphan;
        let may = free && bridge.ready == Some(true) && now >= bridge.paused_until;
        if let Some((epoch, start_before)) = bridge.queue.front().copied() {
            match bridge.gate.ask(epoch, UnixMs(start_before), clocks) {
                Answer::Start if may => {
                    assert!(clocks.wall.0 < start_before, "started too late");
                    bridge.queue.pop_front();
                    bridge.script_until = now + length;
                    self.counts.started += 1;
                }
                Answer::Never => {
                    bridge.queue.pop_front();
                }
                Answer::Start | Answer::Wait => {}
            }
        }
        let released = bridge.releasing.filter(|_| now >= bridge.script_until && !orphan);
        if let Some(epoch) = released
            && now >= it.frozen_until
        {
            if let Some(bridge) = &mut it.bridges[n] {
                bridge.releasing = None;
            }
            self.put(host, true, &Frame::Released { phone: n, epoch });
        }
    }

    fn link_moment(&mut self, host: usize) {
        let now = self.now;
        if self.hosts[host].session.is_some() && now - self.hosts[host].heard > SILENCE {
            self.hosts[host].session = None;
            self.hosts[host].redial = now + self.random.i64(100..2_000);
        }
        let dials = self.hosts[host].session.is_none() && now >= self.hosts[host].redial;
        if dials {
            if self.router_up() && self.hosts[host].link_up(now) {
                self.sessions += 1;
                let it = &mut self.hosts[host];
                it.session = Some(self.sessions);
                (it.heard, it.renewal) = (now, 0);
                it.renewals.clear();
                self.router.hosts[host] = (it.session, now, 0, None);
                self.router.waits[host] = [None; PHONES];
                self.renew(host);
            } else {
                self.hosts[host].redial = now + self.random.i64(200..2_000);
            }
        } else if self.hosts[host].session.is_some() && now >= self.hosts[host].renewed + RENEW {
            self.hosts[host].renewal += 1;
            self.renew(host);
        }
    }

    fn renew(&mut self, host: usize) {
        let now = self.now;
        let it = &mut self.hosts[host];
        let issued = it.time(now, 0).continuous;
        it.renewals.push_back((it.renewal, issued));
        if it.renewals.len() > 8 {
            it.renewals.pop_front();
        }
        it.renewed = now;
        let Some((supervisor, _)) = &it.supervisor else { return };
        let reports = (0..PHONES)
            .filter_map(|n| {
                let (state, reasons) = supervisor.phone(&phone(n))?;
                Some(Report { phone: n, state, reasons, epoch: it.met[n] })
            })
            .collect();
        let frame = Frame::Renew { n: it.renewal, reports, power: Some(it.level) };
        self.put(host, true, &frame);
    }

    /// A second of one host: what is watched so often.
    fn host_second(&mut self, host: usize) {
        let now = self.now;
        let awake = self.hosts[host].runs(now) && now >= self.hosts[host].frozen_until;
        if !awake || self.hosts[host].supervisor.is_none() {
            return;
        }
        let chance = self.random.f64();
        let it = &mut self.hosts[host];
        let wanted = it.wanted(host, now);
        let Some(since) = it.supervisor.as_ref().map(|(_, since)| *since) else { return };
        let time = it.time(now, since);
        let Some((supervisor, _)) = &mut it.supervisor else { return };
        let mut acts = supervisor.configure(&wanted, time);
        acts.extend(supervisor.tick(time, chance));
        if now - it.probed >= 5 * SECOND {
            it.probed = now;
            for uplink in 0..2 {
                let answers = now >= it.uplinks_down_until[uplink];
                acts.extend(supervisor.probed(uplink, answers, time));
            }
            let (source, percent) = if now < it.battery_until {
                let left = (it.battery_until - now) / MINUTE;
                (PowerSource::Ups, u8::try_from(left.clamp(0, 100)).unwrap_or(100) * 5 % 101)
            } else {
                (PowerSource::Mains, 100)
            };
            it.level = supervisor.power(source, percent, time);
        }
        if it.pauses {
            for bridge in it.bridges.iter_mut().flatten() {
                bridge.paused_until = now + 30 * SECOND;
            }
        }
        self.acts(host, acts);
        if self.hosts[host].doing.is_none() {
            self.messages(host, Came::Nothing);
        }
    }

    // ---- what goes wrong ----

    fn faults(&mut self) {
        for host in 0..HOSTS {
            self.host_faults(host);
        }
        if self.strikes(2_000) {
            self.router.down_until = self.now + self.within(1, 30);
            self.router.hosts = [(None, 0, 0, None); HOSTS];
            self.router.waits = [[None; PHONES]; HOSTS];
            for it in &mut self.hosts {
                it.session = None;
                it.redial = self.now + 300;
            }
            // What knew that the clock has run evenly is gone.
            let at = self.base + Duration::from_millis(count_ms(self.router.down_until));
            let wall = EPOCH + self.router.down_until + self.router.wall;
            self.router.steady = Steady::new(UnixMs(wall), at);
            self.router.set_at = self.router.down_until;
            self.tell(|| "the router ends".to_owned());
        }
        if self.strikes(2_500) {
            self.router.wall += self.random.i64(-HOUR..HOUR);
            self.router.set_at = self.now;
            let wall = self.router.wall;
            self.tell(|| format!("the router's clock is set to {wall:+}"));
        }
    }

    fn host_faults(&mut self, host: usize) {
        let now = self.now;
        if self.strikes(4_000) {
            let lasts = self.within(30, 900);
            self.tell(|| format!("host {host} is lost for {} s", lasts / SECOND));
            self.loses(host, lasts);
        }
        if self.strikes(4_000) && self.hosts[host].runs(now) {
            let lasts = self.within(3, 600);
            self.tell(|| format!("host {host} sleeps for {} s", lasts / SECOND));
            let it = &mut self.hosts[host];
            it.asleep_until = now + lasts;
            it.slept += lasts;
            // What the watch of the two clocks does when it wakes; until then nobody runs.
            it.session = None;
            it.redial = it.asleep_until + SECOND;
            if self.random.bool() {
                it.leases = [None; PHONES];
                for bridge in it.bridges.iter_mut().flatten() {
                    bridge.gate.revoke(u64::MAX);
                }
            }
            for n in 0..PHONES {
                // Scripts stand still with everything else.
                if let Some(bridge) = &mut it.bridges[n]
                    && bridge.script_until > now
                {
                    bridge.script_until = now;
                }
            }
        }
        if self.strikes(2_000) {
            self.tell(|| format!("the supervisor of {host} ends"));
            self.hosts[host].supervisor_ends(now);
        }
        if self.strikes(2_000) {
            self.hosts[host].frozen_until = now + self.within(5, 40);
            self.tell(|| format!("the supervisor of {host} stands still"));
        }
        if self.strikes(5_000) {
            self.hosts[host].wall += self.random.i64(-HOUR..HOUR);
            self.tell(|| format!("the clock of {host} is set"));
        }
        if self.strikes(300) {
            self.hosts[host].session = None;
            self.hosts[host].redial = now + self.random.i64(50..3_000);
        }
        if self.strikes(1_500) {
            let uplink = self.random.usize(0..2);
            self.hosts[host].uplinks_down_until[uplink] = now + self.within(10, 400);
            self.tell(|| format!("uplink {uplink} of {host} is down"));
        }
        if self.strikes(3_000) {
            self.hosts[host].battery_until = now + self.within(60, 1_200);
            self.tell(|| format!("host {host} is on its battery"));
        }
        if self.strikes(3_000) {
            let stubborn = self.random.bool();
            self.hosts[host].messages =
                if self.random.bool() { Messages::Hung { stubborn } } else { Messages::Gone };
            self.tell(|| format!("Messages of {host} does not answer"));
        }
        for n in 0..PHONES {
            if self.strikes(500) && self.hosts[host].bridges[n].is_some() {
                self.crash(host, n);
            }
            if self.strikes(1_000) {
                let until = now + self.within(5, 60);
                if let Some(bridge) = &mut self.hosts[host].bridges[n] {
                    bridge.frozen_until = until;
                }
                self.tell(|| format!("bridge {n} of {host} hangs"));
            }
            if self.strikes(3_000) {
                self.hosts[host].crashes_until[n] = now + self.within(10, 1_200);
                self.tell(|| format!("bridge {n} of {host} ends whenever it starts"));
                self.crash(host, n);
            }
            if self.strikes(5_000) {
                self.hosts[host].removed_until[n] = now + self.within(30, 600);
                self.tell(|| format!("phone {n} is taken out of {host}"));
            }
            if self.strikes(5_000) {
                let settings = &mut self.hosts[host].settings[n];
                *settings = settings.wrapping_add(1);
            }
        }
    }

    fn crash(&mut self, host: usize, n: usize) {
        if self.hosts[host].bridges[n].is_some() {
            self.hosts[host].bridge_ends(n);
            self.said(host, n, Said::Signalled);
        }
    }

    fn loses(&mut self, host: usize, lasts: i64) {
        let now = self.now;
        let it = &mut self.hosts[host];
        it.supervisor_ends(now);
        it.lost_until = now + lasts;
        (it.boot, it.slept) = (it.lost_until, 0);
        // What is measured since the start begins anew, and so does what a script does.
        it.cures.clear();
        it.orphans = [0; PHONES];
        it.launched = it.lost_until - THROTTLE;
        it.messages = Messages::Fine;
        (it.asleep_until, it.frozen_until) = (0, 0);
    }

    /// From here on nothing goes wrong any more.
    fn ends_all_faults(&mut self) {
        let now = self.now;
        self.calm = true;
        self.router.down_until = self.router.down_until.min(now);
        // Somebody sets the clocks right, which is one more jump.
        if std::mem::take(&mut self.router.wall) != 0 {
            self.router.set_at = now;
        }
        for it in &mut self.hosts {
            it.wall = 0;
            if now < it.lost_until {
                (it.lost_until, it.boot, it.launched) = (now, now, now - THROTTLE);
            }
            if now < it.asleep_until {
                it.slept -= it.asleep_until - now;
                it.asleep_until = now;
            }
            it.frozen_until = it.frozen_until.min(now);
            it.crashes_until = it.crashes_until.map(|until| until.min(now));
            it.removed_until = it.removed_until.map(|until| until.min(now));
            it.uplinks_down_until = it.uplinks_down_until.map(|until| until.min(now));
            it.battery_until = it.battery_until.min(now);
            // Whatever the keeper could not heal within its caps, somebody heals by hand.
            it.messages = Messages::Fine;
            for bridge in it.bridges.iter_mut().flatten() {
                bridge.frozen_until = bridge.frozen_until.min(now);
            }
        }
        self.tell(|| "nothing goes wrong any more".to_owned());
    }

    // ---- what must hold ----

    fn holds(&self) {
        for n in 0..PHONES {
            let open: Vec<usize> = (0..HOSTS).filter(|host| self.sends_at(*host, n).0).collect();
            assert!(open.len() <= 1, "the gates of {open:?} are open for phone {n} at once");
        }
    }

    fn is_served(&self, n: usize) -> bool {
        (0..HOSTS).any(|host| {
            let ready = self.hosts[host].bridges[n].as_ref().and_then(|bridge| bridge.ready);
            self.sends_at(host, n).0 && ready == Some(true)
        })
    }

    fn moment(&mut self) {
        while let Some(Reverse((at, id))) =
            self.wire.peek().copied().filter(|next| next.0.0 <= self.now)
        {
            self.wire.pop();
            debug_assert!(at <= self.now);
            self.arrives(id);
        }
        for host in 0..HOSTS {
            self.host_moment(host);
        }
        if self.now % SECOND == 0 {
            self.router_second();
            for host in 0..HOSTS {
                self.host_second(host);
            }
            self.faults();
            self.holds();
        }
        self.now += STEP;
    }

    fn runs_for(&mut self, ms: i64) {
        let until = self.now + ms;
        while self.now < until {
            self.moment();
        }
    }

    /// How long it takes until a phone is served, by anybody but `not`.
    fn served_after(&mut self, n: usize, not: Option<usize>, within: i64, what: &str) -> i64 {
        let since = self.now;
        loop {
            let by_another = not.is_none_or(|not| self.router.rows[n].serving != not);
            if by_another && self.is_served(n) {
                return self.now - since;
            }
            let took = self.now - since;
            assert!(took <= within, "{what}: phone {n} is not served after {took} ms");
            self.moment();
        }
    }

    /// In peace: one thing at a time, each with the time that is promised for it.
    fn drills(&mut self) {
        for n in 0..PHONES {
            let serving = self.router.rows[n].serving;
            let others = (0..HOSTS).filter(|host| *host != serving);
            let standby =
                others.clone().any(|host| self.router.rows[n].reports[host].0 == PhoneState::Ready);
            assert!(standby, "nobody stands by for phone {n}");
            match self.random.u32(0..4) {
                0 => {
                    self.loses(serving, 3 * MINUTE);
                    self.served_after(n, Some(serving), 25 * SECOND, "a host is lost");
                    self.runs_for(4 * MINUTE);
                }
                1 => {
                    assert!(self.begin(n), "nobody can take phone {n}");
                    // Asked with the next renewal, as an operator's wish is at once.
                    let within = RENEW + SCRIPT_MAX + 2 * SECOND;
                    self.served_after(n, Some(serving), within, "handed over");
                    self.runs_for(MINUTE);
                }
                2 => {
                    self.hosts[serving].supervisor_ends(self.now);
                    let within = THROTTLE + 2 * SECOND;
                    self.served_after(n, None, within, "a supervisor ends");
                    self.runs_for(MINUTE);
                }
                _ => {
                    let forgiven = match &self.hosts[serving].supervisor {
                        Some((supervisor, _)) => supervisor.is_forgiven(&phone(n)),
                        None => false,
                    };
                    self.crash(serving, n);
                    let within = if forgiven { SECOND } else { 90 * SECOND };
                    self.served_after(n, None, within, "a bridge ends");
                    self.runs_for(MINUTE);
                }
            }
        }
    }

    fn plays(&mut self, lasts: i64) {
        self.runs_for(MINUTE);
        while self.now < lasts {
            self.calm = false;
            self.runs_for(30 * MINUTE);
            self.ends_all_faults();
            let since = self.now;
            // A router whose clock was set back does not know when leases end that it has granted before.
            let clock = self.router.set_at + lease::LONGEST_MS + GRACE + 10 * SECOND - self.now;
            for n in 0..PHONES {
                self.served_after(n, None, SERVED_WITHIN.max(clock), "after the faults");
            }
            self.counts.served_ms_max = self.counts.served_ms_max.max(self.now - since);
            // Whoever can serve does by the end of this, so that one may be lost.
            self.runs_for(12 * MINUTE);
            for n in 0..PHONES {
                assert!(self.is_served(n), "phone {n} is not served in peace");
            }
            self.drills();
        }
    }
}

/// Tells the seed and what came last when a day ends badly.
struct Witness(u64, World);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in &self.1.story {
                eprintln!("{line}");
            }
            eprintln!("the day of SWITCHBOARD_SEED={} ended badly at {} ms", self.0, self.1.now);
        }
    }
}

#[test]
fn a_day_of_faults_never_lets_two_hosts_send_and_ends_well() {
    let asked = std::env::var("SWITCHBOARD_SEED").ok();
    let asked = asked.map(|seed| vec![seed.parse().expect("SWITCHBOARD_SEED is a number")]);
    let seeds = asked.unwrap_or_else(|| SEEDS.to_vec());
    let share = DAY / i64::try_from(seeds.len()).expect("a few seeds");
    let mut all = Counts::default();
    for seed in seeds {
        let mut part = Witness(seed, World::new(seed));
        part.1.plays(share);
        println!("{seed}: {:?}", part.1.counts);
        all.add(&part.1.counts);
    }
    let Counts { faults, grants, planned, started, spawned, cures, switches, .. } = all;
    let enough = [
        (faults, 200),
        (grants, 100),
        (planned, 30),
        (started, 10_000),
        (spawned, 200),
        (cures, 10),
        (switches, 20),
    ];
    assert!(
        enough.iter().all(|(had, least)| had >= least),
        "too little happened on this day: {all:?}"
    );
}
