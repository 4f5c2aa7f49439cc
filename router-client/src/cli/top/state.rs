//! What `top` knows and what keys do to it. Pure: answers, keys and the time come in.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use protocol::api::{Host, Phone};
use protocol::link::{HostTunnel, PhoneState, TunnelState};
use protocol::{HostId, PhoneId, Reason, UnixMs};
use ratatui::crossterm::event::{KeyCode, KeyModifiers};

/// Rates are of this time.
const RATE_OVER_MS: i64 = 60_000;
/// A rate is told after so long: before that one message would count as sixty a minute.
const RATE_AFTER_MS: i64 = 5_000;
/// Samples kept for it.
const SAMPLES_MAX: usize = 600;
/// A filter has no more characters.
const FILTER_MAX: usize = 64;

/// What the router said.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) hosts: Vec<Host>,
    pub(super) phones: Vec<Phone>,
    /// What waits, where it was asked for.
    pub(super) held: Option<Held>,
}

/// Messages that wait, by what for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) by_reason: Vec<(Reason, usize)>,
    /// There are more than were looked at.
    pub(super) more: bool,
}

impl Held {
    pub(super) fn of(reasons: impl Iterator<Item = Reason>, more: bool) -> Self {
        let mut by_reason: Vec<(Reason, usize)> = Vec::new();
        for reason in reasons {
            match by_reason.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, count)) => *count += 1,
                None => by_reason.push((reason, 1)),
            }
        }
        by_reason.sort_by_key(|(reason, count)| (Reverse(*count), reason.as_str()));
        Self { by_reason, more }
    }

    pub(super) fn count(&self) -> usize {
        self.by_reason.iter().map(|(_, count)| count).sum()
    }
}

/// By what phones are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Alarms,
    Number,
    Host,
    Rate,
    Today,
    Open,
}

impl Sort {
    const ALL: [Self; 6] =
        [Self::Alarms, Self::Number, Self::Host, Self::Rate, Self::Today, Self::Open];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Alarms => "alarms",
            Self::Number => "number",
            Self::Host => "host",
            Self::Rate => "rate",
            Self::Today => "today",
            Self::Open => "open",
        }
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|one| *one == self).unwrap_or(0);
        Self::ALL.get(at + 1).copied().unwrap_or(Self::Alarms)
    }
}

/// How bad something is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    /// Somebody must act, or nothing is sent.
    Bad,
    /// It may pass, or there is no reserve.
    Warning,
    None,
}

/// What keys mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Looking,
    /// The filter is being typed.
    Typing,
    /// Help is shown.
    Help,
}

/// What a key leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    End,
}

/// Everything that a frame is made of.
#[derive(Debug)]
pub(super) struct State {
    pub(super) url: String,
    pub(super) interval: Duration,
    pub(super) colours: bool,
    pub(super) now: UnixMs,
    pub(super) hosts: Vec<Host>,
    pub(super) phones: Vec<Phone>,
    pub(super) held: Option<Held>,
    /// When the router last answered.
    pub(super) answered: Option<UnixMs>,
    /// Why it does not, and since when.
    pub(super) lost: Option<(String, UnixMs)>,
    pub(super) sort: Sort,
    pub(super) reverse: bool,
    pub(super) filter: String,
    pub(super) mode: Mode,
    pub(super) selected: usize,
    /// Rows of phones that fit on the screen, as it was last drawn.
    pub(super) page: usize,
    /// Messages of today by phone, as they were.
    samples: VecDeque<(UnixMs, BTreeMap<PhoneId, u64>)>,
}

impl State {
    pub(super) fn new(url: String, interval: Duration, filter: String) -> Self {
        Self {
            url,
            interval,
            colours: false,
            now: UnixMs(0),
            hosts: Vec::new(),
            phones: Vec::new(),
            held: None,
            answered: None,
            lost: None,
            sort: Sort::Alarms,
            reverse: false,
            filter,
            mode: Mode::Looking,
            selected: 0,
            page: 1,
            samples: VecDeque::new(),
        }
    }

    /// The router has answered, or has not. What it said last stays on the screen.
    pub(super) fn came(&mut self, came: Result<Snapshot, String>, now: UnixMs) {
        self.now = now;
        let snapshot = match came {
            Ok(snapshot) => snapshot,
            Err(why) => {
                let since = self.lost.take().map_or(now, |(_, since)| since);
                self.lost = Some((why, since));
                return;
            }
        };
        (self.lost, self.answered) = (None, Some(now));
        let today = snapshot.phones.iter().map(|phone| (phone.id.clone(), phone.messages_today));
        self.samples.push_back((now, today.collect()));
        while self.samples.len() > SAMPLES_MAX
            || self.samples.front().is_some_and(|(at, _)| now.since(*at) > RATE_OVER_MS)
        {
            self.samples.pop_front();
        }
        (self.hosts, self.phones) = (snapshot.hosts, snapshot.phones);
        if snapshot.held.is_some() {
            self.held = snapshot.held;
        }
        self.selected = self.selected.min(self.rows().len().saturating_sub(1));
    }

    /// Messages a minute of one phone; `None` before that can be said.
    pub(super) fn rate(&self, phone: &PhoneId) -> Option<f64> {
        let ((first, then), (last, now)) = (self.samples.front()?, self.samples.back()?);
        let ms = last.since(*first);
        if ms < RATE_AFTER_MS {
            return None;
        }
        let (before, after) = (then.get(phone)?, now.get(phone)?);
        // At midnight the count begins anew.
        let sent = u32::try_from(after.saturating_sub(*before)).unwrap_or(u32::MAX);
        Some(f64::from(sent) * 60_000.0 / f64::from(u32::try_from(ms).unwrap_or(u32::MAX)))
    }

    pub(super) fn rate_of_all(&self) -> Option<f64> {
        let rates: Option<Vec<f64>> =
            self.phones.iter().map(|phone| self.rate(&phone.id)).collect();
        rates.map(|rates| rates.iter().sum())
    }

    pub(super) fn host_name(&self, id: Option<&HostId>) -> String {
        let Some(id) = id else { return String::new() };
        let found = self.hosts.iter().find(|host| host.id == *id);
        found.map_or_else(|| id.to_string(), |host| host.name.clone())
    }

    /// For how long the lease still holds, in milliseconds.
    pub(super) fn lease_left(&self, phone: &Phone) -> Option<i64> {
        phone.lease_until.map(|until| until.since(self.now)).filter(|left| *left > 0)
    }

    /// How many hosts could take a phone over, and how many stand by.
    pub(super) fn standby(phone: &Phone) -> (usize, usize) {
        let others = phone.hosts.iter().filter(|host| !host.active);
        let able = others.clone().filter(|host| host.online && host.state == PhoneState::Ready);
        (able.count(), others.count())
    }

    pub(super) fn alarm_of(&self, phone: &Phone) -> Alarm {
        if phone.replaced_by.is_some() {
            return Alarm::None;
        }
        // While the router does not answer, leases run out on the screen alone.
        let leased = self.lost.is_some() || self.lease_left(phone).is_some();
        if !(phone.online && leased) {
            return Alarm::Bad;
        }
        match phone.state {
            PhoneState::Parked | PhoneState::NotReady | PhoneState::Stopped => Alarm::Bad,
            PhoneState::Starting | PhoneState::Draining | PhoneState::Backoff => Alarm::Warning,
            PhoneState::Ready => match Self::standby(phone) {
                (0, 1..) => Alarm::Warning,
                _ if phone.handed_to.is_some() => Alarm::Warning,
                _ => Alarm::None,
            },
        }
    }

    pub(super) fn alarm_of_host(host: &Host) -> Alarm {
        match (host.online, host.drained_at) {
            (false, _) => Alarm::Bad,
            (true, Some(_)) => Alarm::Warning,
            (true, None) if Self::dead_tunnel(host).is_some() => Alarm::Warning,
            (true, None) => Alarm::None,
        }
    }

    /// The tunnel of a host, where it is not up: nobody reaches the host by its public name.
    fn dead_tunnel(host: &Host) -> Option<&HostTunnel> {
        host.tunnel.as_ref().filter(|tunnel| tunnel.state != TunnelState::Ready)
    }

    /// What is wrong, in words, the worst first.
    pub(super) fn alarms(&self) -> Vec<(Alarm, String)> {
        let hosts = self.hosts.iter().filter_map(|host| {
            let what = match (Self::alarm_of_host(host), host.last_seen_at) {
                (Alarm::Bad, Some(seen)) => {
                    format!(
                        "host {} is down, last heard of {} ago",
                        host.name,
                        short(self.now.since(seen))
                    )
                }
                (Alarm::Bad, None) => format!("host {} was never here", host.name),
                (Alarm::Warning, _) if host.drained_at.is_some() => {
                    format!("host {} is drained", host.name)
                }
                (Alarm::Warning, _) => {
                    let tunnel = Self::dead_tunnel(host)?;
                    let why =
                        tunnel.why.as_deref().map_or_else(String::new, |why| format!(": {why}"));
                    let (state, age) = (tunnel.state.as_str(), short(self.now.since(tunnel.since)));
                    format!("the tunnel of {} is {state} for {age}{why}", host.name)
                }
                (Alarm::None, _) => return None,
            };
            Some((Self::alarm_of_host(host), what))
        });
        let phones = self.phones.iter().filter_map(|phone| {
            let alarm = self.alarm_of(phone);
            let host = self.host_name(phone.host.as_ref());
            let what = match (alarm, phone.state) {
                (Alarm::None, _) => return None,
                // Its host is told already.
                _ if !phone.online => return None,
                (Alarm::Bad, PhoneState::Ready) => {
                    format!("{} has no lease on {host}", phone.number)
                }
                (_, PhoneState::Ready) if phone.handed_to.is_some() => {
                    format!("{} is being handed over by {host}", phone.number)
                }
                (_, PhoneState::Ready) => format!("{} has nobody ready to stand by", phone.number),
                (
                    _,
                    PhoneState::Parked
                    | PhoneState::NotReady
                    | PhoneState::Stopped
                    | PhoneState::Starting
                    | PhoneState::Draining
                    | PhoneState::Backoff,
                ) => format!("{} on {host}: {}", phone.number, state_of(phone)),
            };
            Some((alarm, what))
        });
        let mut alarms: Vec<(Alarm, String)> = hosts.chain(phones).collect();
        alarms.sort_by_key(|(alarm, _)| *alarm);
        alarms
    }

    fn matches(&self, words: &[&str]) -> bool {
        let wanted = self.filter.to_lowercase();
        wanted.is_empty() || words.iter().any(|word| word.to_lowercase().contains(&wanted))
    }

    /// The hosts that are shown, those with an alarm first.
    pub(super) fn host_rows(&self) -> Vec<&Host> {
        let of_phones: Vec<&HostId> =
            self.rows().iter().filter_map(|phone| phone.host.as_ref()).collect();
        let mut rows: Vec<&Host> = self
            .hosts
            .iter()
            .filter(|host| {
                self.matches(&[&host.name, host.id.as_str()]) || of_phones.contains(&&host.id)
            })
            .collect();
        rows.sort_by(|a, b| {
            (Self::alarm_of_host(a), &a.name).cmp(&(Self::alarm_of_host(b), &b.name))
        });
        rows
    }

    /// The phones that are shown, in their order.
    pub(super) fn rows(&self) -> Vec<&Phone> {
        let mut rows: Vec<&Phone> = self
            .phones
            .iter()
            .filter(|phone| {
                let host = self.host_name(phone.host.as_ref());
                let label = phone.label.clone().unwrap_or_default();
                let words =
                    [phone.number.as_str(), phone.id.as_str(), &state_of(phone), &host, &label];
                self.matches(&words)
            })
            .collect();
        let number = |a: &&Phone, b: &&Phone| a.number.as_str().cmp(b.number.as_str());
        match self.sort {
            Sort::Alarms => rows
                .sort_by(|a, b| self.alarm_of(a).cmp(&self.alarm_of(b)).then_with(|| number(a, b))),
            Sort::Number => rows.sort_by(number),
            Sort::Host => rows.sort_by(|a, b| {
                let name = |phone: &Phone| self.host_name(phone.host.as_ref());
                name(a).cmp(&name(b)).then_with(|| number(a, b))
            }),
            Sort::Rate => rows.sort_by(|a, b| {
                let rate = |phone: &Phone| self.rate(&phone.id).unwrap_or(0.0);
                rate(b).total_cmp(&rate(a)).then_with(|| number(a, b))
            }),
            Sort::Today => rows
                .sort_by(|a, b| b.messages_today.cmp(&a.messages_today).then_with(|| number(a, b))),
            Sort::Open => {
                rows.sort_by(|a, b| b.in_flight.cmp(&a.in_flight).then_with(|| number(a, b)));
            }
        }
        if self.reverse {
            rows.reverse();
        }
        rows
    }

    /// A key was pressed.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other keys mean nothing")]
    pub(super) fn key(&mut self, code: KeyCode, with: KeyModifiers) -> Next {
        if with.contains(KeyModifiers::CONTROL) {
            return if matches!(code, KeyCode::Char('c' | 'd')) { Next::End } else { Next::GoOn };
        }
        if self.mode == Mode::Typing {
            match code {
                KeyCode::Enter => self.mode = Mode::Looking,
                KeyCode::Esc => {
                    self.mode = Mode::Looking;
                    self.filter.clear();
                }
                KeyCode::Backspace => {
                    self.filter.pop();
                }
                KeyCode::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
                _ => {}
            }
            self.selected = 0;
            return Next::GoOn;
        }
        if std::mem::replace(&mut self.mode, Mode::Looking) == Mode::Help
            && code != KeyCode::Char('q')
        {
            return Next::GoOn;
        }
        let last = self.rows().len().saturating_sub(1);
        let page = self.page.max(1);
        match code {
            KeyCode::Char('q') => return Next::End,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Char('/') => self.mode = Mode::Typing,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s') => (self.sort, self.reverse) = (self.sort.next(), false),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.selected = (self.selected + 1).min(last),
            KeyCode::PageUp => self.selected = self.selected.saturating_sub(page),
            KeyCode::PageDown => self.selected = (self.selected + page).min(last),
            KeyCode::Home | KeyCode::Char('g') => self.selected = 0,
            KeyCode::End | KeyCode::Char('G') => self.selected = last,
            _ => {}
        }
        Next::GoOn
    }
}

/// A phone's state with its reasons.
pub(super) fn state_of(phone: &Phone) -> String {
    let reasons: Vec<&str> = phone.reasons.iter().map(|reason| reason.as_str()).collect();
    let mut state = phone.state.as_str().to_owned();
    if !phone.online {
        // What its host said last is not what is so.
        state = format!("no link, was {state}");
    }
    if !reasons.is_empty() {
        state = format!("{state}: {}", reasons.join(", "));
    }
    if phone.handed_to.is_some() {
        state.push_str(", handed over");
    }
    if phone.replaced_by.is_some() {
        state.push_str(", replaced");
    }
    state
}

/// A time in few characters.
pub(super) fn short(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    match seconds {
        0..=99 => format!("{seconds}s"),
        100..=5_999 => format!("{}m", seconds / 60),
        6_000..=359_999 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
