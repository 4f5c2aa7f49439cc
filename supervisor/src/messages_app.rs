//! Keeps the Messages of this login session answering: asks it now and then, and restarts it when it does not.
//!
//! [`keeper`] decides, purely; here its decisions are carried out. Everything that touches Messages goes the way of a
//! send: osascript with its script on stdin, so that the same permission and the same queue of Apple events are tried.
//! Before anything is ended all bridges are told to [pause](protocol::pipe::Command::Pause) and have said that none of
//! their osascripts runs: a send that was begun is settled by its bridge, one that waits is begun afterwards.
//!
//! (facts on macOS: keeping Messages alive. `kickstart -k` of launchd does not restart an app, and the agents of Messages
//! are the system's own, so they are found by name and ended by signal; launchd starts them again.)

use std::future::{Future, pending};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use protocol::link::{HostMessagesApp, MessagesAppState, PhoneState};
use protocol::pipe::Command;
use protocol::{Reason, UnixMs};
use router_client::clock::{ContinuousMs, wall_now};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::child::{self, Printed, RunError, Spec};
use crate::files;
use crate::news;
use crate::phone::Report;
use crate::pool::{Ask, Pool, chain, ms};
use crate::power::Clocks;

pub(crate) mod keeper;

use keeper::{Answer, Effect, Event, Job, Keeper, News, Standing, View};

pub(crate) use keeper::Policy;

/// Asks something harmless, without starting Messages by the question: a `tell` would.
const PROBE: &str = include_str!("messages_app/probe.applescript");
/// Asks it to quit.
const QUIT: &str = include_str!("messages_app/quit.applescript");
/// Closes its windows: in a session in the background, one with a window open held events back until somebody clicked.
const WINDOWS: &str = include_str!("messages_app/windows.applescript");

/// osascript itself is given more: what it has not said then, it never will.
const OSASCRIPT_WITHIN: Duration = Duration::from_secs(10);
/// pgrep, kill and open end at once; `open` may wait for a cold disk.
const TOOL_WITHIN: Duration = Duration::from_secs(10);
/// A word or some numbers.
const BYTES_MAX: usize = 4 * 1024;
/// How the keeper looks at the world: seldom while all is well.
const CALM: Duration = Duration::from_secs(1);
const BUSY: Duration = Duration::from_millis(100);
/// A pause is asked for again so often, and lasts so long if it is not: a supervisor that dies ends it by that.
const PAUSE_EVERY: Duration = Duration::from_millis(500);
const PAUSE_FOR: Duration = Duration::from_secs(20);
/// A bridge kills an osascript at its deadline, and this much later it must have ended.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// After that it is still, or never will be.
pub(crate) const STILL_WITHIN: Duration = Duration::from_secs(10);
/// osascripts return after 0.1 s, and a send of 10 s was still one that arrived (facts on Messages: timeouts and errors):
/// from then on it is asked whether Messages answers at all.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// A text that has taken so long while Messages left us without an answer, too, is ended by its bridge and settled from
/// chat.db; what is not there by then dies with Messages, or is found later. (ADR 13.)
const TEXT_WITHIN: Duration = Duration::from_secs(15);
/// A bridge's own default of `osascript_deadline_ms`.
const BRIDGE_DEADLINE: Duration = Duration::from_mins(1);

/// When Messages was restarted, for the caps of the next life.
const RESTARTS_FILE: &str = "messages_app.restarts";
/// The longest window of a cap.
const REMEMBERED: Duration = Duration::from_hours(24);

/// The process of Messages.
const APP: &str = "Messages";
/// Its bundle, for `open`.
const BUNDLE: &str = "com.apple.MobileSMS";
/// Its agents. The kernel keeps 16 bytes of a name, and whether pgrep sees more is not known: both are matched.
const AGENTS: [&str; 3] = ["imagent", "identityservicesd?", "IMDPersistenceAg(ent)?"];

/// Programs of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tools {
    pub(crate) osascript: PathBuf,
    pub(crate) open: PathBuf,
    pub(crate) pgrep: PathBuf,
    pub(crate) kill: PathBuf,
}

/// Whether Messages is kept, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// None where nobody keeps it.
    pub(crate) tools: Option<Tools>,
    pub(crate) policy: Policy,
}

/// Starts the keeper, if there is to be one; changed settings are taken while it runs.
pub(crate) fn start(
    settings: watch::Receiver<Settings>,
    directory: &Path,
    pool: &Pool,
    told: watch::Sender<Option<HostMessagesApp>>,
    tracker: &TaskTracker,
    closing: &CancellationToken,
) {
    let around = Around {
        directory: directory.to_owned(),
        pool: pool.clone(),
        told,
        tracker: tracker.clone(),
    };
    let closing = closing.clone();
    tracker.spawn(async move {
        // A step that is being taken is dropped, and its program killed.
        closing.run_until_cancelled(keep(settings, around)).await.unwrap_or(());
    });
}

/// What a keeper works with, whatever its settings are.
struct Around {
    directory: PathBuf,
    pool: Pool,
    told: watch::Sender<Option<HostMessagesApp>>,
    tracker: TaskTracker,
}

/// Keeps it whenever that is wanted.
async fn keep(mut settings: watch::Receiver<Settings>, around: Around) {
    loop {
        let now = settings.borrow_and_update().clone();
        if let Some(tools) = now.tools {
            Keeping::new(tools, now.policy, &around).run(&mut settings).await;
            tracing::info!("Messages is not kept any more");
            around.told.send_replace(None);
            show(None);
        } else if settings.changed().await.is_err() {
            return;
        }
    }
}

/// The state it is in, for who measures; none when nobody keeps it.
fn show(state: Option<MessagesAppState>) {
    for known in MessagesAppState::ALL {
        let is = if Some(known) == state { 1.0 } else { 0.0 };
        metrics::gauge!("switchboard_messages_app_state", "state" => known.as_str()).set(is);
    }
}

type Working = Pin<Box<dyn Future<Output = Event> + Send>>;

#[derive(Debug, Default)]
struct Counts {
    recoveries: u64,
    failures: u64,
    last_recovery_ms: Option<u64>,
}

struct Keeping {
    keeper: Keeper,
    /// Restarts of the last day, as they are written down for the next life, and the newest of them by its clock.
    restarts: Vec<UnixMs>,
    written: Option<ContinuousMs>,
    hands: Hands,
    pool: Pool,
    told: watch::Sender<Option<HostMessagesApp>>,
    job: Option<Working>,
    /// When the bridges were last asked to pause; none when they may go on.
    pausing: Option<Instant>,
    counts: Counts,
    since: (Standing, UnixMs),
}

impl Keeping {
    fn new(tools: Tools, policy: Policy, around: &Around) -> Self {
        let (directory, tracker) = (around.directory.clone(), around.tracker.clone());
        let (now, wall) = (Clocks::read(), wall_now());
        let restarts = load(&directory.join(RESTARTS_FILE), wall);
        let mut keeper = Keeper::new(policy);
        keeper.remember(restarts.iter().map(|at| age(*at, wall)), now);
        Self {
            written: keeper.last_restart(),
            restarts,
            keeper,
            hands: Hands { tools, directory, tracker },
            pool: around.pool.clone(),
            told: around.told.clone(),
            job: None,
            pausing: None,
            counts: Counts::default(),
            since: (Standing::Unknown, wall),
        }
    }

    /// Takes changed settings. False when nobody is to keep it any more: what was begun is ended first, or Messages would stay
    /// closed and the bridges would wait.
    fn goes_on(&mut self, settings: &mut watch::Receiver<Settings>) -> bool {
        if settings.has_changed().unwrap_or(false) {
            let Settings { tools, policy } = settings.borrow_and_update().clone();
            if let Some(tools) = tools {
                self.hands.tools = tools;
                self.keeper.retune(policy, Clocks::read());
            }
        }
        let wanted = settings.borrow().tools.is_some();
        wanted || self.job.is_some() || self.keeper.standing() == Standing::Recovering
    }

    /// Until nobody is to keep it any more.
    async fn run(mut self, settings: &mut watch::Receiver<Settings>) {
        self.report(Clocks::read());
        while self.goes_on(settings) {
            let look = if self.job.is_some() || self.pausing.is_some() { BUSY } else { CALM };
            let working = async {
                match &mut self.job {
                    Some(job) => job.await,
                    None => pending().await,
                }
            };
            let event = tokio::select! {
                event = working => {
                    self.job = None;
                    event
                }
                () = tokio::time::sleep(look) => Event::Tick,
            };
            if self.pausing.is_some_and(|at| at.elapsed() >= PAUSE_EVERY) {
                self.pause(true);
            }
            let now = Clocks::read();
            let view = view(&self.pool);
            for effect in self.keeper.step(event, view, now) {
                match effect {
                    Effect::Run(job) => self.job = Some(self.begin(job)),
                    Effect::Pause(pause) => self.pause(pause),
                    Effect::Tell(news) => self.tell(news),
                }
            }
            self.write_down();
            self.report(now);
        }
    }

    /// Notes a restart that has just been counted, before its first step has ended.
    fn write_down(&mut self) {
        let last = self.keeper.last_restart();
        if last == self.written {
            return;
        }
        self.written = last;
        let wall = wall_now();
        self.restarts.push(wall);
        self.restarts.retain(|at| age(*at, wall) < REMEMBERED);
        let lines: Vec<String> = self.restarts.iter().map(|at| at.0.to_string()).collect();
        let file = self.hands.directory.join(RESTARTS_FILE);
        if let Err(error) = files::write_private(&file, &lines.join("\n")) {
            // In this life they count all the same.
            tracing::warn!(error = %chain(&error), "a restart of Messages could not be written down");
        }
    }

    fn begin(&self, job: Job) -> Working {
        if job.is_step() {
            metrics::counter!("switchboard_messages_app_steps_total", "step" => job.as_str())
                .increment(1);
            tracing::warn!(step = job.as_str(), "Messages is being restarted");
        }
        let hands = self.hands.clone();
        Box::pin(async move { hands.take(job).await })
    }

    fn pause(&mut self, pause: bool) {
        self.pausing = pause.then(Instant::now);
        let for_ms = if pause { ms(PAUSE_FOR) } else { 0 };
        let end_after_ms = pause.then(|| ms(TEXT_WITHIN));
        for phone in self.pool.iter() {
            // One that does not take it does not say that it is still either, and is asked again.
            if let Err(error) = phone.ask(Ask::Command(Command::Pause { for_ms, end_after_ms })) {
                tracing::debug!(phone = %phone.id, %error, "a phone was not asked to pause");
            }
        }
    }

    fn tell(&mut self, news: News) {
        match news {
            News::Began(answer) => {
                let why = word(answer);
                metrics::counter!("switchboard_messages_app_failures_total", "why" => why)
                    .increment(1);
                tracing::error!(why, "Messages does not answer: phones pause, and it is restarted");
            }
            News::Recovered { after_ms } => {
                self.counts.recoveries += 1;
                self.counts.last_recovery_ms = Some(after_ms);
                metrics::counter!("switchboard_messages_app_recoveries_total").increment(1);
                metrics::histogram!("switchboard_messages_app_recovery_seconds")
                    .record(Duration::from_millis(after_ms).as_secs_f64());
                tracing::warn!(after_ms, "Messages was restarted and answers again");
            }
            News::CameBack => tracing::info!("Messages answers again; nobody has restarted it"),
            News::GaveUp(stuck) => {
                self.counts.failures += 1;
                metrics::counter!("switchboard_messages_app_given_up_total", "why" => stuck.as_str())
                    .increment(1);
                tracing::error!(
                    why = stuck.as_str(),
                    remedy = stuck.remedy(),
                    "Messages is degraded; it is watched, and not touched for now"
                );
            }
        }
    }

    fn report(&mut self, now: Clocks) {
        let standing = self.keeper.standing();
        if self.since.0 != standing {
            self.since = (standing, wall_now());
        }
        let (state, stuck) = match standing {
            Standing::Unknown => (MessagesAppState::Unknown, None),
            Standing::Ok => (MessagesAppState::Ok, None),
            Standing::Recovering => (MessagesAppState::Recovering, None),
            Standing::Degraded(stuck) => (MessagesAppState::Degraded, Some(stuck)),
        };
        show(Some(state));
        let report = HostMessagesApp {
            state,
            why: stuck.map(|stuck| stuck.as_str().to_owned()),
            remedy: stuck.map(|stuck| stuck.remedy().to_owned()),
            since: self.since.1,
            recoveries: self.counts.recoveries,
            failures: self.counts.failures,
            last_recovery_ms: self.counts.last_recovery_ms,
            restarts_last_hour: self.keeper.restarts_last_hour(now),
        };
        news::tell(&self.told, Some(report));
    }
}

/// Restarts of the last day that an earlier life has written down; what cannot be read is no reason not to start.
fn load(file: &Path, now: UnixMs) -> Vec<UnixMs> {
    let text = files::read(file).unwrap_or_default();
    let times = text.lines().filter_map(|line| line.trim().parse().ok().map(UnixMs));
    let mut times: Vec<UnixMs> = times.filter(|at| age(*at, now) < REMEMBERED).collect();
    times.sort_unstable_by_key(|at| at.0);
    times
}

/// Nothing for what is in the future of a clock that was set back: it counts longest.
fn age(at: UnixMs, now: UnixMs) -> Duration {
    Duration::from_millis(u64::try_from(now.since(at)).unwrap_or(0))
}

/// What all bridges together say.
fn view(pool: &Pool) -> View {
    pool.iter().map(|phone| of_phone(&phone.report(), deadline(&phone.config.extra))).fold(
        View { suspected: false, stuck: false, quiet: true, still: true },
        |all, one| View {
            suspected: all.suspected || one.suspected,
            stuck: all.stuck || one.stuck,
            quiet: all.quiet && one.quiet,
            still: all.still && one.still,
        },
    )
}

/// By when a bridge with these settings has ended an osascript by itself.
pub(crate) fn deadline(bridge: &toml::Table) -> Duration {
    let written = bridge.get("osascript_deadline_ms").and_then(toml::Value::as_integer);
    written
        .and_then(|ms| u64::try_from(ms).ok())
        .map_or(BRIDGE_DEADLINE, Duration::from_millis)
        .saturating_add(KILLED_WITHIN)
}

fn of_phone(report: &Report, deadline: Duration) -> View {
    let suspected = report.not_ready.iter().any(|not| {
        matches!(
            not.reason,
            Reason::MessagesTimeout | Reason::MessagesNotRunning | Reason::MessagesConnectionLost
        )
    });
    let away = match report.state {
        PhoneState::Stopped | PhoneState::Parked => true,
        // What waits for a permission waits for minutes; what crashed is back in a moment, and its send may run on.
        PhoneState::Backoff => report.waits_for.is_some(),
        PhoneState::Starting | PhoneState::Ready | PhoneState::NotReady | PhoneState::Draining => {
            false
        }
    };
    if away {
        return View { suspected, stuck: false, quiet: true, still: true };
    }
    let Some(heartbeat) = &report.heartbeat else {
        // It has said nothing yet: a send of its predecessor may run.
        return View { suspected, stuck: false, quiet: false, still: false };
    };
    let age = heartbeat.osascript_age_ms.map(Duration::from_millis);
    let quiet = age.is_none_or(|age| age > deadline);
    let stuck = age.is_some_and(|age| age >= STUCK_AFTER);
    View { suspected, stuck, quiet, still: quiet && heartbeat.paused }
}

/// What carries the steps out.
#[derive(Debug, Clone)]
struct Hands {
    tools: Tools,
    directory: PathBuf,
    tracker: TaskTracker,
}

impl Hands {
    async fn take(&self, job: Job) -> Event {
        match job {
            Job::Probe => Event::Answered(self.ask().await),
            Job::Look => Event::Looked(self.pids(APP).await.map(|pids| !pids.is_empty())),
            Job::Quit => self.script(job, QUIT).await,
            Job::Windows => self.script(job, WINDOWS).await,
            Job::Term => self.signal(job, "-TERM", &[APP]).await,
            Job::Kill => self.signal(job, "-KILL", &[APP]).await,
            Job::Agents => self.signal(job, "-TERM", &AGENTS).await,
            Job::Open => {
                // In the background and hidden. (facts on macOS: keeping Messages alive.)
                let done = self.run(&self.tools.open, &["-g", "-j", "-b", BUNDLE], None).await;
                note(job, &done);
                Event::Stepped
            }
        }
    }

    async fn ask(&self) -> Answer {
        let asked = self.run(&self.tools.osascript, &OSASCRIPT, Some(PROBE)).await;
        let answer = answer(&asked);
        if answer != Answer::Fine {
            note(Job::Probe, &asked);
            tracing::warn!(answer = word(answer), "Messages was asked in vain");
        }
        metrics::counter!("switchboard_messages_app_probes_total", "answer" => word(answer))
            .increment(1);
        answer
    }

    async fn script(&self, job: Job, script: &str) -> Event {
        note(job, &self.run(&self.tools.osascript, &OSASCRIPT, Some(script)).await);
        Event::Stepped
    }

    /// Processes of this user with this name; none where that cannot be told.
    async fn pids(&self, name: &str) -> Option<Vec<String>> {
        let user = nix::unistd::getuid().to_string();
        let done = self.run(&self.tools.pgrep, &["-u", &user, "-x", name], None).await;
        let pids = pids(&done);
        if pids.is_none() {
            note(Job::Look, &done);
        }
        pids
    }

    async fn signal(&self, job: Job, signal: &str, names: &[&str]) -> Event {
        let mut args = vec![signal.to_owned()];
        for name in names {
            args.extend(self.pids(name).await.unwrap_or_default());
        }
        if args.len() > 1 {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            note(job, &self.run(&self.tools.kill, &args, None).await);
        }
        Event::Stepped
    }

    async fn run(
        &self,
        program: &Path,
        args: &[&str],
        input: Option<&str>,
    ) -> Result<Printed, RunError> {
        let spec = Spec {
            program: program.to_owned(),
            args: args.iter().map(Into::into).collect(),
            directory: self.directory.clone(),
            name: "messages_app".to_owned(),
            line_max: BYTES_MAX,
            voice: child::Voice::Bridge,
        };
        let within = if input.is_some() { OSASCRIPT_WITHIN } else { TOOL_WITHIN };
        child::run_with(&spec, input, within, BYTES_MAX, &self.tracker).await
    }
}

/// As the bridges start it.
const OSASCRIPT: [&str; 3] = ["-l", "AppleScript", "-"];

/// Nothing depends on how a step ended: whether Messages runs and answers is looked for after it.
fn note(job: Job, done: &Result<Printed, RunError>) {
    let step = job.as_str();
    match done {
        Ok(printed) if printed.status.success() => {}
        Ok(printed) => {
            let (status, complaint) = (printed.status, printed.complaint.as_deref());
            tracing::info!(step, %status, complaint, "a step did not end well");
        }
        Err(error) => tracing::warn!(step, error = %chain(error), "a step could not be taken"),
    }
}

fn answer(asked: &Result<Printed, RunError>) -> Answer {
    match asked {
        Ok(printed) if printed.status.success() && printed.text.trim() == "not running" => {
            Answer::NotRunning
        }
        Ok(printed) if printed.status.success() => Answer::Fine,
        Ok(printed) => match printed.complaint.as_deref().and_then(error_number) {
            Some(-600) => Answer::NotRunning,
            Some(-609) => Answer::Lost,
            Some(-1712) => Answer::Hung,
            Some(-1743 | -1744) => Answer::Denied,
            // Messages has answered, with an error.
            Some(_) => Answer::Fine,
            None => Answer::Unasked,
        },
        // The script has a timeout of its own: what hangs is not Messages.
        Err(RunError::Late { .. }) => Answer::Withheld,
        Err(RunError::Spawn(_) | RunError::Odd { .. }) => Answer::Unasked,
    }
}

/// The number in parentheses at the end: the words before it are localised.
fn error_number(complaint: &str) -> Option<i32> {
    let (_, number) = complaint.trim_end().strip_suffix(')')?.rsplit_once('(')?;
    number.trim().parse().ok()
}

/// pgrep ends with 1 when it finds nobody, and with more when it cannot look (pgrep(1)).
fn pids(done: &Result<Printed, RunError>) -> Option<Vec<String>> {
    let printed = done.as_ref().ok()?;
    match printed.status.code() {
        Some(0) => {
            let is_pid = |word: &&str| word.parse::<u32>().is_ok_and(|pid| pid > 1);
            let pids: Vec<String> =
                printed.text.split_whitespace().filter(is_pid).map(str::to_owned).collect();
            (!pids.is_empty()).then_some(pids)
        }
        Some(1) => Some(Vec::new()),
        Some(_) | None => None,
    }
}

const fn word(answer: Answer) -> &'static str {
    match answer {
        Answer::Fine => "fine",
        Answer::NotRunning => "not_running",
        Answer::Hung => "hung",
        Answer::Lost => "lost",
        Answer::Withheld => "withheld",
        Answer::Denied => "denied",
        Answer::Unasked => "unasked",
    }
}

#[cfg(test)]
mod tests;
