//! What the host runs on, and whether it slept: read, judged purely, told.
//!
//! On a battery the router is told, so that work goes to others; when the battery is nearly empty the phones take no
//! new work and finish what is started. A sleep is noticed by two clocks that drift apart, because notifications of it
//! may be missed. `caffeinate` keeps the machine from sleeping in the first place.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::link::{HostPower, PowerLevel, PowerSource};
use router_client::clock::{ContinuousMs, awake_now, continuous_now};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::child::{self, Happened, RunError, Spec};
use crate::logs::Ring;
use crate::news;
use crate::pool::chain;

/// pmset answers from memory; once in five seconds costs nothing that can be measured.
pub(crate) const POLL: Duration = Duration::from_secs(5);
/// pmset answers in milliseconds; one that hangs must not hide the next answer for long.
const PMSET_WITHIN: Duration = Duration::from_secs(4);
/// A line per power source; a machine has two or three.
const PMSET_BYTES_MAX: usize = 16 * 1024;
/// Longest line of a program of the system that is worth reading.
const LINE_MAX: usize = 4 * 1024;
/// A worse level must be read so often in a row: a supply that tests its battery is on it for a moment.
const WORSE_READINGS: u32 = 2;
/// So many readings in a row without an answer, before what was read last is no longer believed.
const UNKNOWN_READINGS: u32 = 6;
/// How far above a limit a battery must be to count as no longer low; estimates waver.
const MARGIN: u8 = 5;
/// The two clocks are compared so often.
const SLEEP_LOOK: Duration = Duration::from_secs(1);
/// The clocks may differ by so much between two looks without a sleep: they are read one after the other.
const SLEPT_LEAST: Duration = Duration::from_secs(2);
/// First and longest wait before caffeinate is started again.
const CAFFEINATE_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// One that ran so long was a good one.
const CAFFEINATE_GOOD: Duration = Duration::from_mins(1);

/// When a battery is nearly empty, and when mains are back for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// At this charge or less.
    pub(crate) low_percent: u8,
    /// With so many minutes left or fewer.
    pub(crate) low_minutes: u32,
    /// A better level must last so long.
    pub(crate) steady: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { low_percent: 30, low_minutes: 10, steady: Duration::from_secs(30) }
    }
}

/// What is watched, and with which programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Tells what the machine runs on; none where that is not watched.
    pub(crate) pmset: Option<PathBuf>,
    /// Keeps the machine awake; none where that is not wanted.
    pub(crate) caffeinate: Option<PathBuf>,
    /// How often pmset is asked.
    pub(crate) poll: Duration,
    /// What counts as low.
    pub(crate) limits: Limits,
}

/// One answer of pmset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    source: PowerSource,
    percent: Option<u8>,
    minutes: Option<u32>,
}

impl Reading {
    /// A supply that says how full it is and not for how long.
    pub(crate) fn of(source: PowerSource, percent: u8) -> Self {
        Self { source, percent: Some(percent), minutes: None }
    }

    const NONE: Self = Self { source: PowerSource::Unknown, percent: None, minutes: None };
}

/// Whether a host takes no new work.
pub(crate) fn is_low(power: &HostPower) -> bool {
    match power.level {
        PowerLevel::Low => true,
        PowerLevel::Mains | PowerLevel::Battery | PowerLevel::Unknown => false,
    }
}

/// Reads what `pmset -g batt` prints. What it does not say is not known; nothing of it is an error.
///
/// The first line is `Now drawing from 'AC Power' | 'Battery Power' | 'UPS Power'`, and each source has a line like
/// ` -InternalBattery-0 (id=N)\t18%; discharging; 0:04 remaining present: true`.
fn parse(text: &str) -> Reading {
    let source = text
        .lines()
        .find_map(|line| line.split_once("drawing from '")?.1.split_once('\''))
        .map_or(PowerSource::Unknown, |(word, _)| match word {
            "AC Power" => PowerSource::Mains,
            "Battery Power" => PowerSource::Battery,
            "UPS Power" => PowerSource::Ups,
            _ => PowerSource::Unknown,
        });
    let batteries: Vec<Battery> = text.lines().filter_map(battery).collect();
    // With a battery inside and a supply outside, the one that is drawn from counts; where names do not tell, all do.
    let inside = source == PowerSource::Battery;
    let drawn = |battery: &&Battery| source == PowerSource::Unknown || battery.inside == inside;
    let mut counted: Vec<&Battery> = batteries.iter().filter(drawn).collect();
    if counted.is_empty() {
        counted = batteries.iter().collect();
    }
    Reading {
        source,
        percent: counted.iter().filter_map(|battery| battery.percent).min(),
        minutes: counted.iter().filter_map(|battery| battery.minutes).min(),
    }
}

struct Battery {
    inside: bool,
    percent: Option<u8>,
    minutes: Option<u32>,
}

fn battery(line: &str) -> Option<Battery> {
    let name = line.trim_start().strip_prefix('-')?;
    if name.contains("present: false") {
        return None;
    }
    // The name is the maker's, and may have a `%` of its own; a tab stands behind it.
    let charge = name.split_once('\t').map_or(name, |(_, charge)| charge);
    let (before, after) = charge.split_once('%')?;
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let percent = digits.parse().ok().filter(|percent| *percent <= 100);
    let mut words = after.split(';').map(str::trim).skip(1);
    // While it is charged the time is that to full, which says nothing about how long it lasts.
    let discharging = words.next() == Some("discharging");
    let minutes = words.next().filter(|_| discharging).and_then(minutes);
    // "0:00 remaining" beside a charge is an estimate that is not made yet; an empty battery shows by its charge.
    let minutes = minutes.filter(|minutes| *minutes > 0 || percent.is_none());
    Some(Battery { inside: name.starts_with("InternalBattery"), percent, minutes })
}

fn minutes(word: &str) -> Option<u32> {
    let (hours, minutes) = word.split_whitespace().next()?.split_once(':')?;
    let (hours, minutes): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
    hours.checked_mul(60)?.checked_add(minutes)
}

/// Turns readings into levels that do not flutter.
#[derive(Debug)]
pub(crate) struct Judge {
    limits: Limits,
    level: Option<PowerLevel>,
    /// Another level: how often in a row it was read, and since when.
    candidate: Option<(PowerLevel, u32, ContinuousMs)>,
}

impl Judge {
    pub(crate) fn new(limits: Limits) -> Self {
        Self::after(None, limits)
    }

    /// With the level that was believed before the limits changed: what cannot be read just then does not lift it.
    pub(crate) fn after(level: Option<PowerLevel>, limits: Limits) -> Self {
        Self { limits, level, candidate: None }
    }

    /// Takes a reading in; the change of level, if that was one.
    pub(crate) fn take(
        &mut self,
        reading: Reading,
        now: ContinuousMs,
    ) -> Option<(PowerLevel, PowerLevel)> {
        let wanted = self.wanted(reading);
        let Some(level) = self.level else {
            // A supervisor that starts on an empty battery must not take work first.
            self.level = Some(wanted);
            return Some((PowerLevel::Unknown, wanted));
        };
        if wanted == level {
            self.candidate = None;
            return None;
        }
        let (count, since) = match self.candidate {
            Some((candidate, count, since)) if candidate == wanted => {
                (count.saturating_add(1), since)
            }
            Some(_) | None => (1, now),
        };
        self.candidate = Some((wanted, count, since));
        let lasted = Duration::from_millis(now.saturating_sub(since));
        let believed = match (level, wanted) {
            // What is not known is no reason to take work up again.
            (PowerLevel::Low, PowerLevel::Unknown) => false,
            (_, PowerLevel::Unknown) => count >= UNKNOWN_READINGS,
            (PowerLevel::Mains | PowerLevel::Battery | PowerLevel::Unknown, PowerLevel::Low)
            | (PowerLevel::Mains, PowerLevel::Battery)
            | (PowerLevel::Unknown, PowerLevel::Battery | PowerLevel::Mains) => {
                count >= WORSE_READINGS
            }
            (PowerLevel::Low | PowerLevel::Battery, PowerLevel::Mains | PowerLevel::Battery)
            | (PowerLevel::Low, PowerLevel::Low)
            | (PowerLevel::Mains, PowerLevel::Mains) => lasted >= self.limits.steady,
        };
        if !believed {
            return None;
        }
        self.candidate = None;
        self.level = Some(wanted);
        Some((level, wanted))
    }

    /// The level that is believed.
    pub(crate) fn level(&self) -> PowerLevel {
        self.level.unwrap_or(PowerLevel::Unknown)
    }

    fn wanted(&self, reading: Reading) -> PowerLevel {
        match reading.source {
            PowerSource::Mains => PowerLevel::Mains,
            PowerSource::Unknown => PowerLevel::Unknown,
            PowerSource::Battery | PowerSource::Ups => {
                let was_low = self.level == Some(PowerLevel::Low);
                let margin = if was_low { MARGIN } else { 0 };
                let percent = self.limits.low_percent.saturating_add(margin);
                let minutes = self.limits.low_minutes.saturating_add(u32::from(margin));
                let low = match (reading.percent, reading.minutes) {
                    (None, None) => was_low,
                    (charge, left) => {
                        charge.is_some_and(|charge| charge <= percent)
                            || left.is_some_and(|left| left <= minutes)
                    }
                };
                if low { PowerLevel::Low } else { PowerLevel::Battery }
            }
        }
    }
}

/// The two clocks, read one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clocks {
    /// Goes on while the machine sleeps.
    pub(crate) continuous: ContinuousMs,
    /// Stands still while it does.
    pub(crate) awake: ContinuousMs,
}

impl Clocks {
    /// What they show now.
    pub(crate) fn read() -> Self {
        Self { continuous: continuous_now(), awake: awake_now() }
    }
}

/// How long the machine slept between two looks at the clocks, if it did: the one went on, the other stood still.
pub(crate) fn slept(before: Clocks, now: Clocks) -> Option<Duration> {
    let continuous = now.continuous.saturating_sub(before.continuous);
    let awake = now.awake.saturating_sub(before.awake);
    let asleep = Duration::from_millis(continuous.saturating_sub(awake));
    (asleep > SLEPT_LEAST).then_some(asleep)
}

/// Looks at the clocks until `closing`, and calls `on_wake` after each sleep.
pub(crate) async fn watch_sleep(on_wake: impl Fn() + Send, closing: CancellationToken) {
    let mut tick = tokio::time::interval(SLEEP_LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = Clocks::read();
    while closing.run_until_cancelled(tick.tick()).await.is_some() {
        let now = Clocks::read();
        if let Some(asleep) = slept(before, now) {
            metrics::counter!("switchboard_sleeps_total").increment(1);
            metrics::counter!("switchboard_slept_seconds_total").increment(asleep.as_secs());
            tracing::warn!(
                seconds = asleep.as_secs(),
                "this machine slept: leases are dropped and the link is dialled anew; a shelf must not sleep, \
                 see `pmset -g assertions` and the runbook"
            );
            on_wake();
        }
        before = now;
    }
}

/// Starts what is configured: the watch of the power source and the keeper of wakefulness. Changed settings are taken while
/// they run.
pub(crate) fn start(
    settings: &watch::Receiver<Settings>,
    directory: &Path,
    told: watch::Sender<Option<HostPower>>,
    tracker: &TaskTracker,
    closing: &CancellationToken,
) {
    let (folder, tasks) = (directory.to_owned(), tracker.clone());
    let awake = async move |settings: Settings| {
        let Some(caffeinate) = &settings.caffeinate else { return };
        let args = ["-dimsu".into(), "-w".into(), std::process::id().to_string().into()];
        keep_awake(&spec(caffeinate, &args, &folder, "caffeinate"), &tasks).await;
    };
    let same = |old: &Settings, new: &Settings| old.caffeinate == new.caffeinate;
    let (followed, ends) = (settings.clone(), closing.clone());
    tracker.spawn(async move { until(&ends, follow(followed, same, awake)).await });

    let (folder, tasks) = (directory.to_owned(), tracker.clone());
    let watched = async move |settings: Settings| {
        let Some(pmset) = &settings.pmset else {
            if told.send_replace(None).is_some() {
                show(None);
            }
            return;
        };
        let spec = spec(pmset, &["-g".into(), "batt".into()], &folder, "pmset");
        watch_power(&spec, &settings, &told, &tasks).await;
    };
    let same = |old: &Settings, new: &Settings| {
        (&old.pmset, old.poll, old.limits) == (&new.pmset, new.poll, new.limits)
    };
    let (followed, ends) = (settings.clone(), closing.clone());
    tracker.spawn(async move { until(&ends, follow(followed, same, watched)).await });
}

/// Runs something that has no end of its own until `closing`; what it holds is dropped, and a child with it.
async fn until(closing: &CancellationToken, task: impl Future<Output = ()>) {
    closing.run_until_cancelled(task).await.unwrap_or(());
}

/// Does something by the settings, and anew by those that follow unless they are the same for it.
async fn follow(
    mut settings: watch::Receiver<Settings>,
    same: impl Fn(&Settings, &Settings) -> bool,
    task: impl AsyncFn(Settings),
) {
    loop {
        let now = settings.borrow_and_update().clone();
        let others = async {
            if settings.wait_for(|new| !same(&now, new)).await.is_err() {
                // Nobody is left who could change them.
                std::future::pending::<()>().await;
            }
        };
        let run = async {
            task(now.clone()).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = others => {}
            () = run => {}
        }
    }
}

fn spec(program: &Path, args: &[std::ffi::OsString], directory: &Path, name: &str) -> Spec {
    Spec {
        program: program.to_owned(),
        args: args.to_vec(),
        directory: directory.to_owned(),
        name: name.to_owned(),
        line_max: LINE_MAX,
        voice: child::Voice::Bridge,
    }
}

async fn watch_power(
    spec: &Spec,
    settings: &Settings,
    told: &watch::Sender<Option<HostPower>>,
    tracker: &TaskTracker,
) {
    let level = told.borrow().as_ref().map(|power| power.level);
    let mut judge = Judge::after(level, settings.limits);
    let mut tick = tokio::time::interval(settings.poll);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tick.tick().await;
        let reading = match read(spec, tracker).await {
            Ok(reading) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("pmset answers again");
                }
                reading
            }
            Err(error) => {
                metrics::counter!("switchboard_power_reads_failed_total").increment(1);
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = %chain(&error),
                        "what this machine runs on cannot be read; without a battery set [power] watch = false");
                }
                Reading::NONE
            }
        };
        let change = judge.take(reading, continuous_now());
        let power = HostPower {
            level: judge.level(),
            source: reading.source,
            percent: reading.percent,
            minutes: reading.minutes,
        };
        if let Some((from, to)) = change {
            tell_change(from, to, &power);
        }
        count(&power);
        news::tell(told, Some(power));
    }
}

/// Asks pmset once. An exit that is no success, or no answer in it, is an error.
async fn read(spec: &Spec, tracker: &TaskTracker) -> Result<Reading, RunError> {
    let printed = child::run(spec, PMSET_WITHIN, PMSET_BYTES_MAX, tracker).await?;
    let odd = |what: String| RunError::Odd { program: spec.program.clone(), what };
    if !printed.status.success() {
        let complaint = printed.complaint.unwrap_or_else(|| "nothing".to_owned());
        return Err(odd(format!("`{complaint}` and ended with {}", printed.status)));
    }
    let reading = parse(&printed.text);
    if reading == Reading::NONE {
        let first: String =
            printed.text.lines().next().unwrap_or_default().chars().take(80).collect();
        return Err(odd(format!("`{first}`, which names no power source")));
    }
    Ok(reading)
}

fn tell_change(from: PowerLevel, to: PowerLevel, power: &HostPower) {
    let (percent, minutes) = (power.percent, power.minutes);
    metrics::counter!("switchboard_power_changes_total", "from" => from.as_str(), "to" => to.as_str())
        .increment(1);
    match to {
        PowerLevel::Low => tracing::error!(
            ?percent,
            ?minutes,
            "the battery is nearly empty: phones finish what is started and take nothing new"
        ),
        PowerLevel::Battery => {
            tracing::warn!(?percent, ?minutes, "running on a battery; the router is told");
        }
        PowerLevel::Mains | PowerLevel::Unknown => {
            tracing::info!(from = from.as_str(), to = to.as_str(), "power");
        }
    }
}

/// The level that is believed, for who measures; none when nobody looks.
fn show(level: Option<PowerLevel>) {
    for known in PowerLevel::ALL {
        let is = if Some(known) == level { 1.0 } else { 0.0 };
        metrics::gauge!("switchboard_power_level", "level" => known.as_str()).set(is);
    }
}

fn count(power: &HostPower) {
    show(Some(power.level));
    if let Some(percent) = power.percent {
        metrics::gauge!("switchboard_power_percent").set(percent);
    }
    // Below nothing: an estimate that is not made must not look like the last one.
    let minutes = power.minutes.map_or(-1.0, f64::from);
    metrics::gauge!("switchboard_power_minutes").set(minutes);
}

/// Keeps caffeinate running: it ends with us by `-w`, and is started again when it ends before. (`-s` works on mains
/// only, and nothing of it stops a closed lid: caffeinate(8).)
async fn keep_awake(spec: &Spec, tracker: &TaskTracker) {
    let (first, longest) = CAFFEINATE_AGAIN;
    let mut delay = first;
    loop {
        let ring = Arc::new(Mutex::new(Ring::default()));
        let began = tokio::time::Instant::now();
        let why = match child::start(spec, &ring, tracker) {
            Ok(mut child) => {
                metrics::counter!("switchboard_caffeinate_starts_total").increment(1);
                metrics::gauge!("switchboard_caffeinate_up").set(1.0);
                let status = loop {
                    if let Happened::Exited(status) = child.next().await {
                        break status;
                    }
                };
                status.to_string()
            }
            Err(error) => chain(&error),
        };
        metrics::gauge!("switchboard_caffeinate_up").set(0.0);
        if began.elapsed() >= CAFFEINATE_GOOD {
            delay = first;
        }
        let again_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(
            why,
            again_ms,
            "caffeinate ended: this machine may sleep until it runs again"
        );
        tokio::time::sleep(delay).await;
        delay = delay.saturating_mul(2).min(longest);
    }
}

#[cfg(test)]
mod tests;
