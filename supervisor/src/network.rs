//! The ways to the internet: probed each for itself, chosen purely, switched through the root helper.
//!
//! macOS stays with the first network service that has a link, though a dead line lie behind it. So each uplink is
//! probed by sockets that are bound to its interface ([`probe`]); [`choice`] steadies what they see and decides;
//! [`order`] has the helper put the services into another order, and keeps what it was. After a switch the link is
//! dialled anew at once: its old connection stays on the old uplink. Without a helper all of this is observed and told, and a
//! switch that is due is advised and never counted as made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::link::{HostNetwork, HostUplink, UplinkState};
use router_client::clock::{ContinuousMs, continuous_now};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::helper::Helper;
use crate::news;
use crate::pool::chain;
use crate::switchboard::LinkState;

pub(crate) mod choice;
mod order;
mod probe;
pub(crate) mod services;

use choice::{Chooser, Decision, Pace, Seen, Stay, Why, after};
use order::{Orders, Seat};
use probe::{Addresses, Round};

pub(crate) use choice::Policy;
pub(crate) use probe::{Anchor, Prober};

/// Uplinks of one host; nobody has so many.
pub(crate) const UPLINKS_MAX: usize = 8;
/// An uplink in use is probed so often.
pub(crate) const EVERY: Duration = Duration::from_secs(5);
/// One that stands by: a telephone's line is paid for.
pub(crate) const STANDBY_EVERY: Duration = Duration::from_mins(1);
/// One answer is waited for so long.
pub(crate) const WITHIN: Duration = Duration::from_secs(3);
/// When something is about to be decided.
const QUICK: Duration = Duration::from_secs(1);
/// The clocks are looked at so often: timers stand still while the machine sleeps.
const LOOK: Duration = Duration::from_secs(1);
/// The order of services is read so often: somebody may change it by hand, and a telephone's interface changes.
const ORDER_EVERY: Duration = Duration::from_mins(1);
/// When the helper did not answer.
const ORDER_AGAIN: Duration = Duration::from_secs(10);
/// After a switch the link is dialled at once, and again after these when it is still down: a route may come late.
const REDIAL_AFTER: [Duration; 3] =
    [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(5)];
/// What was made of the order, until it is undone.
const ORDER_FILE: &str = "network.order";
/// Addresses of those who are probed.
const ADDRESSES_FILE: &str = "network.addresses";

/// One configured uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UplinkConfig {
    /// What people call it.
    pub(crate) name: String,
    /// Its interface; where there is none, that of its service.
    pub(crate) interface: Option<String>,
    /// The exact name of its network service.
    pub(crate) service: Option<String>,
}

/// What is watched, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// In order of preference; none where nothing is watched.
    pub(crate) uplinks: Vec<UplinkConfig>,
    /// The socket of the root helper; without one, it is only observed.
    pub(crate) helper: Option<PathBuf>,
    /// The router's own health, where there is a router.
    pub(crate) router: Option<Anchor>,
    /// Others who prove the internet.
    pub(crate) anchors: Vec<Anchor>,
    /// How often the uplink in use is probed.
    pub(crate) every: Duration,
    /// How often one that stands by is.
    pub(crate) standby_every: Duration,
    /// How long an answer is waited for.
    pub(crate) within: Duration,
    /// What steadies the choice.
    pub(crate) policy: Policy,
}

/// What the watch needs of the rest of the supervisor.
#[derive(Debug, Clone)]
pub(crate) struct Around {
    /// Takes what is found.
    pub(crate) told: watch::Sender<Option<HostNetwork>>,
    /// How the link stands.
    pub(crate) link: watch::Receiver<LinkState>,
    /// Dials it anew.
    pub(crate) redial: Option<Arc<Notify>>,
    /// Where tasks are counted.
    pub(crate) tracker: TaskTracker,
    /// Cancelled at the end.
    pub(crate) closing: CancellationToken,
}

/// Starts what is configured; changed settings are taken while it runs.
pub(crate) fn start(settings: watch::Receiver<Settings>, state_dir: &Path, around: Around) {
    let (tracker, closing, state_dir) =
        (around.tracker.clone(), around.closing.clone(), state_dir.to_owned());
    tracker.spawn(async move {
        closing.run_until_cancelled(watch(settings, &state_dir, around)).await.unwrap_or(());
    });
}

/// Watches the uplinks that are configured, one set after the other.
async fn watch(mut settings: watch::Receiver<Settings>, state_dir: &Path, around: Around) {
    let file = state_dir.join(ORDER_FILE);
    let mut addresses = None;
    loop {
        let now = settings.borrow_and_update().clone();
        let seats = |uplink: &UplinkConfig| uplink.service.clone().unwrap_or_default();
        let services = now.uplinks.iter().map(seats).collect();
        let orders = now
            .helper
            .clone()
            .map(|socket| Orders::load(Helper::new(socket), file.clone(), services));
        if orders.is_none() && file.exists() {
            tracing::error!(
                file = %file.display(),
                "the order of network services was changed for uplinks that are gone, and without [network] helper it \
                 cannot be undone: the file says what it was"
            );
        }
        if now.uplinks.is_empty() {
            around.told.send_replace(None);
            // What an earlier life has changed is undone even when nothing is watched any more.
            let undone = async {
                if let Some(orders) = orders.filter(Orders::has_changed) {
                    undo(orders).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = undone => {}
                changed = settings.changed() => if changed.is_err() { return },
            }
        } else {
            let addresses = addresses
                .get_or_insert_with(|| {
                    Addresses::load(&state_dir.join(ADDRESSES_FILE), &around.tracker)
                })
                .clone();
            Watch::new(now, addresses, orders, around.clone()).run(&mut settings).await;
        }
    }
}

async fn undo(mut orders: Orders) {
    while let Err(error) = orders.look().await {
        tracing::error!(
            error = chain(&error),
            "the order of network services that an earlier supervisor has changed cannot be undone yet"
        );
        tokio::time::sleep(ORDER_AGAIN).await;
    }
}

/// One uplink, as it lives.
#[derive(Debug)]
struct Live {
    /// What its probes go out by, once that is known.
    seat: Seat,
    prober: Option<Prober>,
    due: ContinuousMs,
    router: Option<bool>,
}

#[derive(Debug)]
struct Watch {
    settings: Settings,
    addresses: Addresses,
    chooser: Chooser,
    uplinks: Vec<Live>,
    orders: Option<Orders>,
    order_due: ContinuousMs,
    order_failing: bool,
    /// Without a helper: what somebody should switch to, so that each is said once.
    advised: Option<usize>,
    /// The last reason to stay, so that each is said once.
    stays: Option<std::mem::Discriminant<Stay>>,
    /// When the uplink in use gave its last right answer.
    good_at: Option<ContinuousMs>,
    around: Around,
}

impl Watch {
    fn new(
        settings: Settings,
        addresses: Addresses,
        orders: Option<Orders>,
        around: Around,
    ) -> Self {
        let live = |uplink: &UplinkConfig| Live {
            seat: uplink.interface.clone().map_or(Seat::Unknown, Seat::Interface),
            prober: None,
            due: 0,
            router: None,
        };
        Self {
            chooser: Chooser::new(settings.policy, settings.uplinks.len(), 0),
            uplinks: settings.uplinks.iter().map(live).collect(),
            settings,
            addresses,
            orders,
            order_due: 0,
            order_failing: false,
            advised: None,
            stays: None,
            good_at: None,
            around,
        }
    }

    /// Until other uplinks are to be watched, or switched in another way.
    async fn run(mut self, settings: &mut watch::Receiver<Settings>) {
        let mut link_watched = true;
        loop {
            if settings.has_changed().unwrap_or(false) {
                let new = settings.borrow_and_update().clone();
                if !self.retune(new) {
                    self.forget();
                    return;
                }
            }
            self.look_at_order().await;
            self.probe().await;
            self.decide().await;
            self.tell();
            let now = continuous_now();
            let next = self.uplinks.iter().map(|live| live.due).min().unwrap_or(now);
            let wait = Duration::from_millis(next.saturating_sub(now)).min(LOOK);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = self.around.link.changed(), if link_watched => {
                    link_watched = changed.is_ok();
                    let down = *self.around.link.borrow_and_update() == LinkState::Disconnected;
                    if down {
                        // Whether that is the uplink or the router is what the probes are for.
                        let soon = after(continuous_now(), QUICK);
                        for live in &mut self.uplinks {
                            live.due = live.due.min(soon);
                        }
                    }
                }
            }
        }
    }

    /// Takes changed periods and anchors. False when the uplinks themselves are others: those begin anew.
    fn retune(&mut self, new: Settings) -> bool {
        if (&new.uplinks, &new.helper) != (&self.settings.uplinks, &self.settings.helper) {
            return false;
        }
        self.chooser.retune(new.policy);
        for live in &mut self.uplinks {
            // They ask whom they were made to ask.
            live.prober = None;
            live.due = 0;
        }
        self.settings = new;
        true
    }

    /// Nobody watches these any more.
    fn forget(&self) {
        metrics::gauge!("switchboard_uplink_locked").set(0.0);
        for uplink in &self.settings.uplinks {
            show(&uplink.name, None, false, false);
        }
    }

    /// Reads the order of services, when it is time, and takes over what it says.
    async fn look_at_order(&mut self) {
        let now = continuous_now();
        let Some(orders) = &mut self.orders else { return };
        if now < self.order_due {
            return;
        }
        match orders.look().await {
            Ok(found) => {
                self.order_due = after(now, ORDER_EVERY);
                if std::mem::take(&mut self.order_failing) {
                    tracing::info!("the root helper answers again");
                }
                for ((live, config), seat) in
                    self.uplinks.iter_mut().zip(&self.settings.uplinks).zip(found.seats)
                {
                    if config.interface.is_none() && live.seat != seat {
                        live.seat = seat;
                        live.due = 0;
                    }
                }
                if let Some(chosen) = found.chosen
                    && chosen != self.chooser.chosen()
                {
                    let name = self.name(chosen);
                    tracing::info!(
                        uplink = name,
                        "this uplink's service is the first in the order"
                    );
                    self.chooser.found(chosen);
                    self.good_at = None;
                }
            }
            Err(error) => {
                self.order_due = after(now, ORDER_AGAIN);
                metrics::counter!("switchboard_network_helper_failures_total").increment(1);
                if !std::mem::replace(&mut self.order_failing, true) {
                    tracing::error!(
                        error = chain(&error),
                        "the order of network services cannot be read: uplinks are observed and not switched"
                    );
                }
            }
        }
    }

    /// Probes the uplinks whose time has come, all at once, and takes in what that shows.
    async fn probe(&mut self) {
        let now = continuous_now();
        let (settings, addresses, chooser) = (&self.settings, &self.addresses, &self.chooser);
        let due = self.uplinks.iter_mut().enumerate().filter(|(_, live)| live.due <= now);
        let rounds = due.map(|(at, live)| async move {
            let haste = chooser.pace(at) == Pace::Quick;
            (at, live.round(settings, addresses, haste).await)
        });
        let rounds = futures_util::future::join_all(rounds).await;
        let done = continuous_now();
        let changes: Vec<_> = rounds
            .into_iter()
            .filter_map(|(at, round)| {
                // Nothing is concluded from a question that could not be asked.
                let round = round?;
                if let Some(live) = self.uplinks.get_mut(at) {
                    live.router = round.router;
                }
                self.count_round(at, round);
                if at == self.chooser.chosen() && round.seen == Seen::Good {
                    self.good_at = Some(done);
                }
                self.chooser.saw(at, round.seen, done).map(|change| (at, change))
            })
            .collect();
        for (at, (from, to)) in changes {
            let (uplink, from) = (self.name(at), from.as_str());
            match to {
                UplinkState::Good => tracing::info!(uplink, from, "the uplink is good"),
                UplinkState::Captive => {
                    tracing::warn!(uplink, from, "a portal answers over the uplink: log in there");
                }
                UplinkState::Down | UplinkState::Unknown => {
                    tracing::warn!(uplink, from, to = to.as_str(), "the uplink leads nowhere");
                }
            }
        }
        for at in 0..self.uplinks.len() {
            let next = match self.chooser.pace(at) {
                // From the beginning of this round: that nobody answers takes time enough.
                Pace::Quick => after(now, QUICK.min(self.settings.every)),
                Pace::Usual => after(done, self.settings.every),
                Pace::Rare => after(done, self.settings.standby_every),
            };
            if let Some(live) = self.uplinks.get_mut(at) {
                let asked = live.due <= now;
                // The pace of one may change by what another has shown.
                live.due = if asked { next } else { live.due.min(next) };
            }
        }
    }

    async fn decide(&mut self) {
        let now = continuous_now();
        match self.chooser.decide(now) {
            Decision::Stay(stay) => {
                self.advised = None;
                self.say_stay(stay);
            }
            Decision::Switch { to, why } => match self.orders.take() {
                Some(mut orders) => {
                    self.switch(&mut orders, to, why).await;
                    self.orders = Some(orders);
                }
                None => self.advise(to, why),
            },
        }
    }

    /// Says what would be done with a helper. Nothing has been switched by that: what is in use stays what it is, and the
    /// link is left alone.
    fn advise(&mut self, to: usize, why: Why) {
        if self.advised.replace(to) == Some(to) {
            return;
        }
        self.stays = None;
        tracing::warn!(
            uplink = self.name(self.chooser.chosen()),
            to = self.name(to),
            reason = why.as_str(),
            "another uplink should be chosen; without [network] helper nobody here can do that"
        );
    }

    async fn switch(&mut self, orders: &mut Orders, to: usize, why: Why) {
        let (from, name) = (self.name(self.chooser.chosen()), self.name(to));
        let reason = why.as_str();
        if let Err(error) = orders.put_first(to).await {
            metrics::counter!("switchboard_network_helper_failures_total").increment(1);
            tracing::error!(
                from,
                to = name,
                reason,
                error = chain(&error),
                "the uplink could not be switched; that is tried again"
            );
            self.chooser.failed(continuous_now());
            // What the order is now is found out first.
            self.order_due = 0;
            return;
        }
        let now = continuous_now();
        let locked = self.chooser.switched(to, now);
        let since_good_ms = self.good_at.map(|at| now.saturating_sub(at));
        metrics::counter!("switchboard_uplink_switches_total", "to" => name.clone(), "why" => reason)
            .increment(1);
        tracing::warn!(from, to = name, reason, since_good_ms, "another uplink is chosen");
        if locked {
            tracing::error!(
                uplink = name,
                "too many switches: it stays here for a while; see the runbook, flapping uplinks"
            );
        }
        self.good_at = None;
        self.stays = None;
        for live in &mut self.uplinks {
            live.due = 0;
        }
        if let Some(redial) = self.around.redial.clone() {
            let (link, closing) = (self.around.link.clone(), self.around.closing.clone());
            self.around.tracker.spawn(async move {
                closing.run_until_cancelled(dial_anew(redial, link)).await.unwrap_or(());
            });
        }
    }

    fn say_stay(&mut self, stay: Stay) {
        let kind = std::mem::discriminant(&stay);
        if self.stays.replace(kind) == Some(kind) {
            return;
        }
        let uplink = self.name(self.chooser.chosen());
        let left = |until: ContinuousMs| until.saturating_sub(continuous_now()) / 1_000;
        match stay {
            Stay::Fine => tracing::debug!(uplink, "the uplink is kept"),
            Stay::NoOther => tracing::error!(uplink, "the uplink is lost, and no other is good"),
            Stay::Settling { until } => {
                tracing::info!(
                    uplink,
                    seconds = left(until),
                    "the last switch is too young for another"
                );
            }
            Stay::Proving { until } => {
                tracing::info!(
                    uplink,
                    seconds = left(until),
                    "a preferred uplink is good again and must prove itself"
                );
            }
            Stay::Locked { until } => {
                tracing::error!(
                    uplink,
                    seconds = left(until),
                    "a switch is due, and there were too many"
                );
            }
            Stay::Failed { until } => {
                tracing::debug!(uplink, seconds = left(until), "the switch is tried again");
            }
        }
    }

    fn name(&self, uplink: usize) -> String {
        self.settings.uplinks.get(uplink).map(|config| config.name.clone()).unwrap_or_default()
    }

    fn count_round(&self, uplink: usize, round: Round) {
        let outcome = match round.seen {
            Seen::Good => "good",
            Seen::Captive => "captive",
            Seen::Nothing => "nothing",
        };
        metrics::counter!("switchboard_uplink_rounds_total", "uplink" => self.name(uplink), "outcome" => outcome)
            .increment(1);
    }

    fn tell(&self) {
        let locked = self.chooser.is_locked(continuous_now());
        let uplinks: Vec<HostUplink> = (0..)
            .zip(&self.uplinks)
            .map(|(at, live)| HostUplink {
                name: self.name(at),
                state: self.chooser.state(at),
                router: live.router,
            })
            .collect();
        metrics::gauge!("switchboard_uplink_locked").set(flag(locked));
        for (at, uplink) in uplinks.iter().enumerate() {
            let (chosen, advised) = (at == self.chooser.chosen(), self.advised == Some(at));
            show(&uplink.name, Some(uplink.state), chosen, advised);
        }
        let network = HostNetwork {
            chosen: self.name(self.chooser.chosen()),
            switches: self.orders.is_some(),
            locked,
            uplinks,
        };
        news::tell(&self.around.told, Some(network));
    }
}

/// How an uplink stands, for who measures; without a state when nobody watches it.
fn show(name: &str, state: Option<UplinkState>, chosen: bool, advised: bool) {
    metrics::gauge!("switchboard_uplink_chosen", "uplink" => name.to_owned()).set(flag(chosen));
    metrics::gauge!("switchboard_uplink_advised", "uplink" => name.to_owned()).set(flag(advised));
    for known in UplinkState::ALL {
        metrics::gauge!("switchboard_uplink_state", "uplink" => name.to_owned(), "state" => known.as_str())
            .set(flag(Some(known) == state));
    }
}

const fn flag(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

impl Live {
    /// One round; none when it cannot be asked over this uplink.
    async fn round(
        &mut self,
        settings: &Settings,
        addresses: &Addresses,
        haste: bool,
    ) -> Option<Round> {
        let interface = match &self.seat {
            Seat::Interface(interface) => interface,
            // A telephone that is not plugged in.
            Seat::Nowhere => return Some(Round { seen: Seen::Nothing, router: None }),
            Seat::Unknown => return None,
        };
        if self.prober.as_ref().is_none_or(|prober| prober.interface() != interface) {
            let (router, anchors) = (settings.router.as_ref(), &settings.anchors);
            match Prober::new(interface, router, anchors, settings.within, addresses) {
                Ok(prober) => self.prober = Some(prober),
                Err(error) => {
                    tracing::error!(
                        interface,
                        error = chain(&error),
                        "no probes over this interface"
                    );
                    self.prober = None;
                }
            }
        }
        Some(self.prober.as_ref()?.round(haste).await)
    }
}

async fn dial_anew(redial: Arc<Notify>, link: watch::Receiver<LinkState>) {
    for (at, wait) in REDIAL_AFTER.into_iter().enumerate() {
        tokio::time::sleep(wait).await;
        if at == 0 || *link.borrow() == LinkState::Disconnected {
            redial.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
