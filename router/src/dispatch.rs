//! From a due job to a command on its way to a phone.
//!
//! claim → facts → decide → record → hand over. A claim writes down what is in hand, so that a message that ends the
//! router is known when it starts again. Deciding and recording are one transaction per message: the verdict, the
//! phone, the attempt, its epoch, the counters, the story and the webhooks are all on disk or none is. Only after that
//! commit is the command handed to the host's session; should it get lost there, it is offered again until the phone answers,
//! which a phone takes once. What is wanted back (a cancel, an opt-out) is not offered again, but recalled until the
//! phone answers. An attempt belongs to the journal it was given to: a bridge with another one is not asked to send
//! what the first may have sent.
//!
//! The loop sleeps until a bell rings (a new message, a phone that became ready, an attempt that ended), the next job
//! falls due, or a second is over.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::api::{CheckedProvider, Media};
use protocol::link::RouterFrame;
use protocol::pipe::{Attempt, Command, OutboundAttachment, Send};
use protocol::{
    Channel, Class, HostId, MessageId, PhoneId, Reason, Recipient, Status, TenantId, UnixMs,
};

use crate::compliance::Verdict;
use crate::config::Compliance;
use crate::doubt;
use crate::facts::{self, Subject};
use crate::lines::{Line, Lines, Waiting};
use crate::link::Links;
use crate::pool;
use crate::providers::Providers;
use crate::providers::choice::{self, Need};
use crate::resolve::{self, Unable};
use crate::route;
use crate::server::{App, AppState};
use crate::shares;
use crate::store::capabilities;
use crate::store::change::{self, Change};
use crate::store::dead_letters;
use crate::store::dispatch::{self as rows, Former, Given, NewAttempt, Offer, Outbound};
use crate::store::doubts;
use crate::store::queue::{self, Claim, Claimed, Turns};
use crate::store::rules as rule_rows;
use crate::store::{StoreError, Tx, providers as provider_rows};
use crate::warming;

/// How long the loop sleeps at most, so that a lost ring or a moved clock costs a moment only.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Shortest sleep after a turn that did all it could: work that cannot be done yet must not be asked for in a circle.
const SLEEP_MIN: Duration = Duration::from_millis(20);

/// How long the loop waits after the store has failed it.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// How often a job may be claimed without a decision about it: so often has it ended the worker, or kept it from the
/// store.
const CLAIMS_MAX: u32 = 5;

/// Messages that are decided in one closure.
const TOGETHER: usize = 4;

/// The first of lines that are called in one claim.
const CALLED_MAX: usize = 64;

/// How often offers are repeated, recalls repeated, lost attempts and overdue jobs looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Rows of one sweep of each kind; the next sweep takes the rest.
const SWEEP_ROWS: usize = 256;

/// Rows that a sweep ends in one closure.
const ENDED_TOGETHER: usize = 32;

/// Messages of each tenant that look at once whether a phone that has become able has a place for a stranger.
const WAKE_WARMING_EACH: usize = 32;

/// Held jobs woken in one transaction, so that no other writer waits behind a long queue.
const WAKE_ROWS: usize = 512;

/// Starts the dispatch loop.
pub fn start(app: &AppState) {
    let (sweeping, app) = (AppState::clone(app), AppState::clone(app));
    app.tasks.clone().spawn(async move { run(&app).await });
    sweeping.tasks.clone().spawn(async move { sweep_now_and_then(&sweeping).await });
}

/// Sweeps beside the loop: what is over must not make wait what is to be sent.
async fn sweep_now_and_then(app: &AppState) {
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        match sweep(app).await {
            Ok(()) => {}
            Err(error) if error.is_unavailable() => {
                tracing::warn!(error = %error, "dispatch: the store does not answer a sweep");
            }
            // One row that cannot be read must not keep everything else from being looked at.
            Err(error) => tracing::error!(error = %error, "dispatch: a sweep failed"),
        }
    }
}

async fn run(app: &AppState) {
    let quiet_until = (app.start.quiet_until > app.start.at).then_some(app.start.quiet_until);
    while let Err(error) = app.store.write(move |tx| queue::take_over(tx, quiet_until)).await {
        tracing::warn!(error = %error, "dispatch: the store does not answer");
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(STORE_PAUSE) => {}
        }
    }
    let mut ahead = None;
    loop {
        let sleep = match turn(app, &mut ahead).await {
            Ok(sleep) => sleep,
            Err(error) => {
                tracing::warn!(error = %error, "dispatch: the store does not answer");
                STORE_PAUSE
            }
        };
        tokio::select! {
            () = app.stop.cancelled() => break,
            () = app.bells.dispatch.notified() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
    // What was claimed and not looked at did not end this router.
    if let Err(error) = app.store.write(queue::let_go).await {
        tracing::warn!(%error, "what was in hand at the end is taken for what may have caused it");
    }
}

async fn turn(app: &AppState, ahead: &mut Option<Claim>) -> Result<Duration, StoreError> {
    let done = work(app, ahead).await?;
    if done.more {
        return Ok(Duration::ZERO);
    }
    let now = app.clock.now();
    // For what waits for a hand a bell rings when one becomes free.
    let due = app.store.read(move |tx| queue::next_due(tx, done.full)).await?;
    let wait = due
        .map_or(SLEEP_MAX, |due| Duration::from_millis(u64::try_from(due.since(now)).unwrap_or(0)));
    Ok(wait.clamp(SLEEP_MIN, SLEEP_MAX))
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ran {
    /// Messages given to a phone.
    pub dispatched: usize,
    /// Messages that wait.
    pub held: usize,
    /// Messages given to a provider, because no phone can send them.
    pub ordered: usize,
    /// Messages that have come to their end.
    pub ended: usize,
    /// There may be more that is due.
    pub more: bool,
    /// Some of what is due was not looked at, because all phones of its tenant that are able have their hands full.
    pub full: bool,
}

/// One message, decided and written down.
#[derive(Debug)]
enum Done {
    Dispatched(Box<Offer>),
    Ordered,
    Held,
    Ended,
}

/// What a decision is made with.
#[derive(Debug, Clone)]
struct Desk {
    settings: crate::config::Dispatch,
    warming: Arc<warming::Policy>,
    compliance: Arc<Compliance>,
    pool: pool::Shared,
    turns: Arc<Mutex<Turns>>,
    lines: Arc<Mutex<Lines>>,
    links: Links,
    providers: Providers,
}

impl Desk {
    fn of(app: &App) -> Self {
        let caps = lock(&app.pool).caps().clone();
        Self {
            settings: app.config.dispatch,
            warming: caps.warming,
            compliance: Arc::clone(&app.config.compliance),
            pool: Arc::clone(&app.pool),
            turns: Arc::clone(&app.turns),
            lines: Arc::clone(&app.lines),
            links: app.links.clone(),
            providers: app.providers.clone(),
        }
    }
}

/// The lock is never waited for: only closures that the store runs one after another take it.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Claims what is due and fits, decides it, writes it down, hands it over.
pub async fn run_once(app: &App) -> Result<Ran, StoreError> {
    let desk = Desk::of(app);
    let claimed = claim(app, &desk).await?;
    decide(app, &desk, claimed, false).await.map(|(ran, _none)| ran)
}

/// The same for what was claimed ahead. Where there is more, the next claim is made with the decisions, in the same commit:
/// a long queue costs one wait for the disk a batch, and not two.
async fn work(app: &App, ahead: &mut Option<Claim>) -> Result<Ran, StoreError> {
    let desk = Desk::of(app);
    let claimed = match ahead.take() {
        Some(claimed) => claimed,
        None => claim(app, &desk).await?,
    };
    let more = claimed.more;
    let (ran, next) = decide(app, &desk, claimed, more).await?;
    *ahead = next;
    Ok(ran)
}

async fn claim(app: &App, desk: &Desk) -> Result<Claim, StoreError> {
    let now = app.clock.now();
    let batch = usize::try_from(desk.settings.claim_batch).unwrap_or(1).max(1);
    let at = desk.clone();
    app.store
        .behind()
        .write_often(move |tx| {
            let mut pool = lock(&at.pool);
            pool.catch_up(tx, &at.links, now, true)?;
            call_firsts(tx, &mut lock(&at.lines), &pool, now)?;
            queue::claim(tx, &mut lock(&at.turns), now, batch, pool.room())
        })
        .await
}

/// Decides what was claimed, writes it down, hands it over, and claims what is next where that is asked for.
async fn decide(
    app: &App,
    desk: &Desk,
    claimed: Claim,
    more: bool,
) -> Result<(Ran, Option<Claim>), StoreError> {
    let settings = desk.settings;
    let now = app.clock.now();
    let mut ran = Ran { more: claimed.more, full: claimed.full, ..Ran::default() };
    let in_hand = claimed.jobs.clone();
    // All closures of the batch are queued before the first is awaited, so that they share one commit, and the next claim
    // behind them: what it takes must have been decided, or not have been claimed.
    let (suspects, jobs): (Vec<_>, Vec<_>) =
        claimed.jobs.into_iter().partition(|job| job.claims > 1);
    let groups = jobs.chunks(TOGETHER).map(|group| decide_group(app, desk, group.to_vec(), now));
    let alone = suspects.into_iter().map(|job| decide_one(app, desk.clone(), job, now));
    let next = async { if more { claim(app, desk).await.map(Some) } else { Ok(None) } };
    let (groups, alone, next) = futures_util::future::join3(
        futures_util::future::join_all(groups),
        futures_util::future::join_all(alone),
        next,
    )
    .await;
    let decided = groups.into_iter().flatten().chain(alone);
    let mut failed = None;
    for one in decided {
        match one {
            Ok(Done::Dispatched(offer)) => {
                ran.dispatched += 1;
                hand_over(app, &offer);
            }
            Ok(Done::Ordered) => ran.ordered += 1,
            Ok(Done::Held) => ran.held += 1,
            Ok(Done::Ended) => ran.ended += 1,
            Err(error) => failed = Some(error),
        }
    }
    let mut ahead = next.unwrap_or_else(|error| {
        failed = Some(error);
        None
    });
    if let Some(next) = &mut ahead {
        // What was decided singly in the end may have been claimed before that.
        let decided: BTreeSet<&MessageId> = in_hand.iter().map(|job| &job.message).collect();
        next.jobs.retain(|job| !decided.contains(&job.message));
        (ran.more, ran.full) = (next.more || !next.jobs.is_empty(), next.full);
    }
    // What was claimed and took no hand leaves it to those behind it.
    ran.more |= ran.full && ran.held + ran.ordered + ran.ended > 0;
    metrics::counter!("switchboard_dispatched_total")
        .increment(ran.dispatched.try_into().unwrap_or(0));
    if ran.ended + ran.held + ran.dispatched + ran.ordered > 0 {
        app.bells.webhooks.notify_one();
    }
    if ran.ordered > 0 {
        app.providers.ring();
    }
    let Some(error) = failed else {
        return Ok((ran, ahead.filter(|next| !next.jobs.is_empty())));
    };
    put_off(app, in_hand, now.plus_ms(ms(settings.claim_ms))).await?;
    Err(error)
}

/// What could not be decided is looked at later: nothing else is to wait until the store can take it.
async fn put_off(app: &App, jobs: Vec<Claimed>, until: UnixMs) -> Result<(), StoreError> {
    app.store
        .write(move |tx| {
            jobs.iter().try_for_each(|job| queue::put_off(tx, &job.tenant, &job.message, until))
        })
        .await
}

/// Decides some messages in one closure: what each costs the store beside its own rows is shared. Where one of them
/// fails, nothing of the closure remains, and each is decided by itself.
async fn decide_group(
    app: &App,
    desk: &Desk,
    jobs: Vec<Claimed>,
    now: UnixMs,
) -> Vec<Result<Done, StoreError>> {
    let (at, group) = (desk.clone(), jobs.clone());
    let together = app
        .store
        .behind()
        .write_often(move |tx| {
            group
                .iter()
                .map(|job| decide_and_record(tx, &at, job, now))
                .collect::<Result<Vec<_>, _>>()
        })
        .await;
    match together {
        Ok(done) => done.into_iter().map(Ok).collect(),
        Err(error) if error.is_unavailable() => vec![Err(error)],
        Err(_) => {
            let each = jobs.into_iter().map(|job| decide_one(app, desk.clone(), job, now));
            futures_util::future::join_all(each).await
        }
    }
}

async fn decide_one(app: &App, desk: Desk, job: Claimed, now: UnixMs) -> Result<Done, StoreError> {
    let again = job.clone();
    if job.claims > CLAIMS_MAX {
        tracing::error!(message = %job.message, claims = job.claims, "dispatch: a message was claimed again and again and never decided; it is given up");
        let told = app
            .store
            .write(move |tx| {
                let done = end(tx, &job, Status::Failed, Reason::Poisoned, now)?;
                dead_letters::keep(tx, &job.tenant, &job.message, Reason::Poisoned, now)?;
                Ok(done)
            })
            .await;
        return match told {
            Err(error) if !error.is_unavailable() => unread(app, again, now).await,
            told => told,
        };
    }
    let first =
        app.store.behind().write_often(move |tx| decide_and_record(tx, &desk, &job, now)).await;
    match first {
        Err(error) if !error.is_unavailable() => {
            // Something about this very message cannot be read or written. Nothing is sent on a guess.
            tracing::error!(message = %again.message, error = %error, "dispatch: a check failed, so nothing is sent");
            let job = again.clone();
            let told = app.store.write(move |tx| check_failed(tx, &job, now)).await;
            match told {
                Err(error) if !error.is_unavailable() => unread(app, again, now).await,
                told => told,
            }
        }
        other => other,
    }
}

/// The message's own row is what cannot be read: it is ended without looking at it.
async fn unread(app: &App, job: Claimed, now: UnixMs) -> Result<Done, StoreError> {
    app.store.write(move |tx| change::block_unread(tx, &job.tenant, &job.message, now)).await?;
    Ok(Done::Ended)
}

/// The one transaction of a message: facts, decision, everything that follows from it.
fn decide_and_record(
    tx: &mut Tx<'_>,
    desk: &Desk,
    job: &Claimed,
    now: UnixMs,
) -> Result<Done, StoreError> {
    let (tenant, id) = (&job.tenant, &job.message);
    let mut message = match rows::outbound(tx, tenant, id)? {
        Some(message) if matches!(message.status, Status::Queued | Status::Scheduled) => message,
        // Withdrawn, or sent after all, between claim and now: there is nothing left to do.
        Some(_) | None => {
            rows::drop_job(tx, tenant, id)?;
            return Ok(Done::Ended);
        }
    };
    if message.cancel_asked {
        let (status, reason) = withdrawn(message.recall_reason);
        let done = end(tx, job, status, reason, now)?;
        if status == Status::Blocked {
            facts::blocked(tx, (tenant, id), reason, now)?;
        }
        return Ok(done);
    }
    let subject = Subject {
        recipient: &message.recipient,
        text: &message.text,
        class: message.class,
        internal: message.internal,
        test: message.test,
        accepted_at: message.accepted_at,
        expires_at: message.expires_at,
    };
    let decided = facts::decide(tx, &desk.compliance, (tenant, id), &subject, now)?;
    if !message.internal {
        message.judged_as = decided.class;
    }
    let note = |tx: &mut Tx<'_>, verdict| decided.note(tx, (tenant, id), verdict, now);
    if !matches!(decided.verdict, Verdict::Send { .. }) {
        note(tx, decided.verdict)?;
    }
    let allowed_until = match decided.verdict {
        Verdict::Block { reason, detail } => return forbid(tx, job, (reason, detail), now),
        Verdict::Expire => {
            let waited_for = rows::waits_for(tx, (tenant, id), message.held_reason)?;
            return expire(tx, (tenant, id), waited_for, now);
        }
        Verdict::Hold { until_ms, reason } => {
            let until = UnixMs(until_ms);
            let wakes_at = decided.wakes_at.unwrap_or(until);
            return hold_and_wake(tx, job, &message, (until, wakes_at), reason, now);
        }
        Verdict::Send { until_ms } => UnixMs(until_ms),
    };
    let rank = shares::rank(message.judged_as, message.test);
    if rank > job.lane {
        // It has claimed to be more urgent than can be shown. It waits among its like, and has nobody else's turn.
        rows::put_job(tx, (tenant, id), rank, now, None)?;
        return Ok(Done::Held);
    }
    let relations = rows::relations(tx, (tenant, message.test), &message.recipient)?;
    // Our own confirmation answers them.
    if !message.internal && !desk.warming.may_follow_up(decided.class, relations.unanswered) {
        note(tx, Verdict::Hold { until_ms: i64::MAX, reason: Reason::Unanswered })?;
        return hold(tx, job, &message, message.expires_at, Reason::Unanswered, now);
    }
    let asked = route::asked(message.channel, message.fallback.as_deref());
    let who = (tenant, message.test);
    let wanted = wanted(tx, desk.settings, who, &message.recipient, asked, now)?;
    let mut pool = lock(&desk.pool);
    pool.catch_up(tx, &desk.links, now, false)?;
    let choice = pool.pick((tenant, message.test), message.from.as_ref(), &relations, &wanted, now);
    if let Err(unable) = choice
        && !desk.providers.are_off()
        && let Some((done, waits)) =
            stand_in(tx, desk, job, &message, (unable, allowed_until, &wanted), now)?
    {
        note(tx, waits.unwrap_or(decided.verdict))?;
        return Ok(done);
    }
    let line = (rank, tenant.clone());
    let mut lines = lock(&desk.lines);
    let choice = match choice {
        Ok((_, phone)) if goes_first(tx, &mut lines, &pool, (&line, id), phone, now)? => {
            Err(Unable::Busy)
        }
        choice => choice,
    };
    if choice.as_ref().err() != Some(&Unable::Busy) {
        lines.leave(&line, id);
    }
    let (choice, phone) = match choice {
        Ok(chosen) => chosen,
        Err(Unable::Busy) => {
            let waiting = Waiting {
                message: id.clone(),
                sandbox: message.test,
                from: message.from.as_ref().and_then(|number| pool.serving(number)).cloned(),
                wanted,
                relations,
            };
            let again = lines.join(&line, waiting, now);
            rows::put_job(tx, (tenant, id), line.0, again, None)?;
            return Ok(Done::Held);
        }
        // It is woken when a phone becomes able, and otherwise looked at again to be told that its life is over.
        Err(
            unable @ (Unable::NotAllowed
            | Unable::Capped
            | Unable::Warming { .. }
            | Unable::Away { .. }),
        ) => {
            let reason = unable.reason();
            note(tx, unable.verdict())?;
            let Some(until_ms) = unable.waits_until() else {
                return end(tx, job, Status::Failed, reason, now);
            };
            let until = UnixMs(until_ms).min(message.expires_at);
            let wakes_at = match unable {
                // The place is one, and those that wait for it may be many.
                Unable::Warming { .. } => lines.waits_until(&line, until, now),
                Unable::NotAllowed | Unable::Capped | Unable::Away { .. } | Unable::Busy => until,
            };
            let times = (until, wakes_at.min(message.expires_at));
            return hold_and_wake(tx, job, &message, times, reason, now);
        }
    };
    note(tx, decided.verdict)?;
    let epoch = phone.epoch.ok_or(StoreError::NoRow)?;
    let host = phone.host.clone();
    // What is still on its way when its hour is over is not started any more.
    let start_before =
        message.expires_at.min(allowed_until).min(now.plus_ms(ms(desk.settings.start_window_ms)));
    let attempt = message.attempts.saturating_add(1);
    let new = NewAttempt {
        attempt,
        phone: &choice.phone,
        epoch,
        journal: phone.journal.as_deref(),
        route: &choice.route,
        start_before,
        sequence: message.sequence,
        internal: message.internal,
    };
    let new_contact = rows::dispatched(tx, (tenant, id), &message.recipient, &new, now)?;
    pool.gave(tx, &choice.phone, new_contact, now)?;
    lines.gave(&line, id);
    Ok(Done::Dispatched(Box::new(Offer {
        message: id.clone(),
        tenant: tenant.clone(),
        attempt,
        phone: choice.phone,
        host,
        released: None,
        epoch,
        route: choice.route,
        start_before,
        recipient: message.recipient,
        text: message.text,
        media: message.media,
        class: message.class,
    })))
}

/// Calls the first of the lines that have a phone again, so that they are claimed at once.
fn call_firsts(
    tx: &mut Tx<'_>,
    lines: &mut Lines,
    pool: &pool::Pool,
    now: UnixMs,
) -> Result<(), StoreError> {
    let firsts = lines.firsts(now, CALLED_MAX).into_iter();
    let able = firsts.filter(|(line, waiting)| pool.has_one(&line.1, waiting, now));
    let able: Vec<_> =
        able.map(|(line, waiting)| (line.clone(), waiting.message.clone())).collect();
    for (line, first) in able {
        if !queue::call(tx, &line.1, &first)? {
            lines.leave(&line, &first);
        }
    }
    Ok(())
}

/// Whether somebody who waits for this phone is to have it before this message; he is called. Who does not wait any more
/// has no right to it.
fn goes_first(
    tx: &mut Tx<'_>,
    lines: &mut Lines,
    pool: &pool::Pool,
    (line, id): (&Line, &MessageId),
    phone: &rows::PoolPhone,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let in_flight = pool.caps().in_flight;
    loop {
        let as_candidate = |relations: &rows::Relations| pool::candidate(phone, relations);
        let Some((theirs, first)) = lines.before(line, id, as_candidate, in_flight, now) else {
            return Ok(false);
        };
        if queue::call(tx, &theirs.1, &first)? {
            lines.yielded(line, &first);
            return Ok(true);
        }
        lines.leave(&theirs, &first);
    }
}

/// Gives a message that no phone can send to a provider, where one may have it. A phone that is merely busy, or that has
/// no place for a stranger now, is waited for. `None`: it is to be as if there were no providers. Where it waits for a provider,
/// that is said as a verdict.
fn stand_in(
    tx: &mut Tx<'_>,
    desk: &Desk,
    job: &Claimed,
    message: &Outbound,
    (unable, allowed_until, wanted): (Unable, UnixMs, &[Channel]),
    now: UnixMs,
) -> Result<Option<(Done, Option<Verdict>)>, StoreError> {
    if phone_will(unable) {
        return Ok(None);
    }
    let (tenant, id) = (&job.tenant, &job.message);
    let keep_until = message.expires_at.min(allowed_until);
    let need = Need {
        phone_can: false,
        sms: wanted.contains(&Channel::Sms),
        to_number: message.recipient.number().is_some(),
        sandbox: message.test,
        from: message.from.as_ref(),
        files: !message.media.is_empty(),
        text_chars: message.text.chars().count(),
        life_ms: keep_until.since(now),
    };
    // Only a message that was tried before has attempts to look for.
    let whose = (message.attempts > 0).then_some((tenant, id));
    let (chosen, provider) = desk.providers.choose(tx, whose, &need, now)?;
    let Some(provider) = provider else {
        let Some(again_at) = chosen.again_at else { return Ok(None) };
        let until = again_at.min(message.expires_at);
        let reason = Reason::NoPhoneAvailable;
        let done = hold(tx, job, message, until, reason, now)?;
        return Ok(Some((done, Some(Verdict::Hold { until_ms: until.0, reason }))));
    };
    let start_before = keep_until.min(now.plus_ms(ms(desk.settings.start_window_ms)));
    let attempt = message.attempts.saturating_add(1);
    let new = NewAttempt {
        attempt,
        phone: &provider.phone,
        epoch: 0,
        journal: None,
        route: &[Channel::Sms],
        start_before,
        sequence: message.sequence,
        internal: message.internal,
    };
    rows::dispatched(tx, (tenant, id), &message.recipient, &new, now)?;
    provider_rows::ordered(tx, (tenant, id, attempt), &provider.phone, keep_until)?;
    desk.providers.gave(&provider.name, now);
    Ok(Some((Done::Ordered, None)))
}

/// Whether waiting for a phone is what to do. The number that was asked for may be a provider's.
const fn phone_will(unable: Unable) -> bool {
    match unable {
        Unable::Busy | Unable::Warming { .. } => true,
        Unable::NotAllowed | Unable::Capped | Unable::Away { .. } => false,
    }
}

/// What would become of a message now.
#[derive(Debug)]
pub struct Preview {
    /// The phone that would send it, or the number of the provider, with its number; or what is said instead.
    pub phone: Result<(resolve::Choice, protocol::E164), Verdict>,
    /// Whether a provider would send it, and why not.
    pub providers: Vec<CheckedProvider>,
}

/// Chooses a phone as dispatch would, and leaves everything as it is. `class` is the one that the rules judge it by. Only closures that write may ask: they have the
/// pool in turn.
pub fn preview(
    tx: &mut Tx<'_>,
    app: &App,
    tenant: &TenantId,
    (new, class): (&crate::store::messages::NewMessage, Class),
    now: UnixMs,
) -> Result<Preview, StoreError> {
    let desk = Desk::of(app);
    let relations = rows::relations(tx, (tenant, new.test), &new.recipient)?;
    let wait = |reason, until_ms| Verdict::Hold { until_ms, reason };
    if !desk.warming.may_follow_up(class, relations.unanswered) {
        let phone = Err(wait(Reason::Unanswered, i64::MAX));
        return Ok(Preview { phone, providers: Vec::new() });
    }
    let mut pool = lock(&desk.pool);
    pool.catch_up(tx, &desk.links, now, false)?;
    let asked = route::asked(new.channel, new.fallback.as_deref());
    let wanted = wanted(tx, desk.settings, (tenant, new.test), &new.recipient, asked, now)?;
    let picked = pool.pick((tenant, new.test), new.from.as_ref(), &relations, &wanted, now);
    let need = Need {
        phone_can: match &picked {
            Ok(_) => true,
            Err(unable) => phone_will(*unable),
        },
        sms: wanted.contains(&Channel::Sms),
        to_number: new.recipient.number().is_some(),
        sandbox: new.test,
        from: new.from.as_ref(),
        files: !new.media.is_empty(),
        text_chars: new.text.chars().count(),
        life_ms: new.expires_at.since(new.send_at.unwrap_or(now).max(now)),
    };
    let (chosen, provider) = desk.providers.choose(tx, None, &need, now)?;
    let phone = match (picked, provider) {
        (Ok((choice, phone)), _) => Ok((choice, phone.number.clone())),
        (Err(_), Some(provider)) => {
            let choice = resolve::Choice { phone: provider.phone, route: vec![Channel::Sms] };
            Ok((choice, provider.number))
        }
        (Err(unable), None) => Err(match (unable, chosen.again_at) {
            // A hand is free in a moment.
            (Unable::Busy, _) => Verdict::Send { until_ms: i64::MAX },
            // A provider may have it then.
            (unable, Some(again_at)) if !phone_will(unable) => {
                wait(Reason::NoPhoneAvailable, again_at.0)
            }
            (unable, _) => unable.verdict(),
        }),
    };
    Ok(Preview { phone, providers: choice::for_tenants(chosen.checked) })
}

/// The channels that are to be tried for a message, in order: of those asked for, the ones that can reach the recipient
/// as far as is known.
fn wanted(
    tx: &mut Tx<'_>,
    settings: crate::config::Dispatch,
    who: (&TenantId, bool),
    recipient: &Recipient,
    asked: Vec<Channel>,
    now: UnixMs,
) -> Result<Vec<Channel>, StoreError> {
    let possible = route::possible(asked, recipient);
    if possible.len() < 2 {
        return Ok(possible);
    }
    let since = now.plus_ms(ms(settings.capability_ms).saturating_neg());
    let known = capabilities::fresh(tx, who, recipient, since)?;
    Ok(route::likely(possible, known))
}

/// What was seen of a recipient's channels since then is gone by.
pub fn fresh_since(app: &App) -> UnixMs {
    app.clock.now().plus_ms(ms(app.config.dispatch.capability_ms).saturating_neg())
}

/// A phone that may know how a recipient can be reached, and the host to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The phone.
    pub phone: PhoneId,
    host: HostId,
    epoch: u64,
}

/// The phone that would send to a recipient now. Only closures that write may ask: they have the pool in turn.
pub fn whom_to_ask(
    tx: &mut Tx<'_>,
    app: &App,
    who: (&TenantId, bool),
    recipient: &Recipient,
    now: UnixMs,
) -> Result<Option<Question>, StoreError> {
    let relations = rows::relations(tx, who, recipient)?;
    let asked = route::asked(protocol::ChannelChoice::Auto, None);
    let wanted = route::possible(asked, recipient);
    let mut pool = lock(&app.pool);
    pool.catch_up(tx, &app.links, now, false)?;
    let Ok((choice, phone)) = pool.pick(who, None, &relations, &wanted, now) else {
        return Ok(None);
    };
    let (Some(host), Some(epoch)) = (phone.host.clone(), phone.epoch) else { return Ok(None) };
    Ok(Some(Question { phone: choice.phone, host, epoch }))
}

/// Asks a phone what it knows of a recipient. The answer comes as an event.
pub fn ask(app: &App, question: Question, to: Recipient) {
    let Question { phone, host, epoch } = question;
    let command = Command::Capability { to };
    put(app, &host, RouterFrame::Command { phone, epoch, command }, format_args!("a question"));
}

fn attachment(media: &Media) -> OutboundAttachment {
    OutboundAttachment {
        url: media.url.clone(),
        name: media.name.clone(),
        sha256: media.sha256.clone(),
    }
}

/// Nobody knows whether it may be sent, so it is not.
fn check_failed(tx: &mut Tx<'_>, job: &Claimed, now: UnixMs) -> Result<Done, StoreError> {
    let reason = Reason::CheckFailed;
    let done = end(tx, job, Status::Blocked, reason, now)?;
    match facts::blocked(tx, (&job.tenant, &job.message), reason, now) {
        Err(error) if error.is_unavailable() => Err(error),
        // What could not be checked can perhaps not be read for the ledger either; the tenant is told all the same.
        Ok(()) | Err(_) => Ok(done),
    }
}

/// A rule forbids it; `detail` says which part of the rule.
fn forbid(
    tx: &mut Tx<'_>,
    job: &Claimed,
    (reason, detail): (Reason, Option<&'static str>),
    now: UnixMs,
) -> Result<Done, StoreError> {
    let change = Change { reason: Some(reason), detail, ..Change::to(Status::Blocked, now) };
    change::make(tx, &job.tenant, &job.message, &change)?;
    rows::drop_job(tx, &job.tenant, &job.message)?;
    Ok(Done::Ended)
}

/// How a message ends that was wanted back in time.
pub(crate) fn withdrawn(recall_reason: Option<Reason>) -> (Status, Reason) {
    match recall_reason {
        Some(rule) => (Status::Blocked, rule),
        None => (Status::Canceled, Reason::Canceled),
    }
}

/// Its life is over; what it waited for all that time is said along with it. One for which no phone was ever found has
/// failed for that reason.
fn expire(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    waited_for: Option<Reason>,
    now: UnixMs,
) -> Result<Done, StoreError> {
    if waited_for == Some(Reason::NoPhoneAvailable) {
        return end_as(tx, (tenant, id), Status::Failed, Reason::NoPhoneAvailable, now);
    }
    let change = Change {
        reason: Some(Reason::Expired),
        detail: waited_for.map(Reason::as_str),
        ..Change::to(Status::Expired, now)
    };
    change::make(tx, tenant, id, &change)?;
    rows::drop_job(tx, tenant, id)?;
    Ok(Done::Ended)
}

fn end(
    tx: &mut Tx<'_>,
    job: &Claimed,
    status: Status,
    reason: Reason,
    now: UnixMs,
) -> Result<Done, StoreError> {
    end_as(tx, (&job.tenant, &job.message), status, reason, now)
}

fn end_as(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    status: Status,
    reason: Reason,
    now: UnixMs,
) -> Result<Done, StoreError> {
    let change = Change { reason: Some(reason), ..Change::to(status, now) };
    change::make(tx, tenant, id, &change)?;
    rows::drop_job(tx, tenant, id)?;
    Ok(Done::Ended)
}

/// The message waits, and says for what; the tenant is told once for each reason.
fn hold(
    tx: &mut Tx<'_>,
    job: &Claimed,
    message: &Outbound,
    until: UnixMs,
    reason: Reason,
    now: UnixMs,
) -> Result<Done, StoreError> {
    hold_and_wake(tx, job, message, (until, until), reason, now)
}

/// The same for what is looked at again later than it says: the hour is what the tenant is told, its turn is ours.
fn hold_and_wake(
    tx: &mut Tx<'_>,
    job: &Claimed,
    message: &Outbound,
    (until, wakes_at): (UnixMs, UnixMs),
    reason: Reason,
    now: UnixMs,
) -> Result<Done, StoreError> {
    if message.held_reason == Some(reason) {
        change::set_next_at(tx, &job.tenant, &job.message, until)?;
    } else {
        let change = Change {
            kind: "held",
            reason: Some(reason),
            next_at: Some(until),
            ..Change::to(Status::Queued, now)
        };
        change::make(tx, &job.tenant, &job.message, &change)?;
    }
    let rank = shares::rank(message.judged_as, message.test);
    rows::put_job(tx, (&job.tenant, &job.message), rank, wakes_at, Some(reason))?;
    Ok(Done::Held)
}

/// Gives an offer to its host's session. A session that is gone or full costs nothing: the offer is repeated.
fn hand_over(app: &App, offer: &Offer) {
    let Some(host) = &offer.host else { return };
    if let Some(epoch) = offer.released {
        give_back(app, &Former { host: host.clone(), phone: offer.phone.clone(), epoch });
    }
    let command = Command::Send(Send {
        message: offer.message.clone(),
        attempt: offer.attempt,
        epoch: offer.epoch,
        to: offer.recipient.clone(),
        text: offer.text.clone(),
        attachments: offer.media.iter().map(attachment).collect(),
        route: offer.route.clone(),
        class: offer.class,
        start_before: offer.start_before,
        conversation: None,
    });
    let (phone, epoch) = (offer.phone.clone(), offer.epoch);
    let what = format_args!("attempt {} at {}", offer.attempt, offer.message);
    put(app, host, RouterFrame::Command { phone, epoch, command }, what);
}

/// Tells a host that serves a phone no more under which epoch it is served now: what it has not started of older ones it
/// gives back.
fn give_back(app: &App, former: &Former) {
    let Former { host, phone, epoch } = former;
    let frame = RouterFrame::Release { phone: phone.clone(), epoch: *epoch };
    put(app, host, frame, format_args!("that {phone} is to be given back"));
}

fn withdraw(app: &App, given: &Given) {
    let Some(host) = &given.host else { return };
    let command = Command::Cancel { message: given.message.clone(), attempt: given.attempt };
    let (phone, epoch) = (given.phone.clone(), given.epoch);
    let what = format_args!("the recall of attempt {} at {}", given.attempt, given.message);
    put(app, host, RouterFrame::Command { phone, epoch, command }, what);
}

/// Asks the phones that have a message to give it up. The answer comes as an event and is the outcome.
pub async fn recall(app: &App, message: &MessageId) {
    let id = message.clone();
    let open = app
        .store
        .read(move |tx| {
            let tenant = tx.query_opt(
                "SELECT tenant_id FROM messages WHERE id = ?1",
                crate::params![id],
                |row| row.get(0),
            )?;
            match tenant {
                Some(tenant) => rows::open_attempts(tx, &tenant, &id),
                None => Ok(Vec::new()),
            }
        })
        .await;
    match open {
        Ok(open) => open.iter().for_each(|offer| withdraw(app, offer)),
        // What the tenant asked for is in the store, and the sweep asks again.
        Err(error) => {
            tracing::warn!(message = %message, error = %error, "dispatch: not recalled yet");
        }
    }
}

/// Recalls what is wanted back from a phone and offers its other unanswered attempts again: its host came at `came`, or
/// its bridge. What was offered since then went there already.
pub async fn offer_all(app: &App, phone: &PhoneId, came: UnixMs) -> Result<(), StoreError> {
    let now = app.clock.now();
    let (of_phone, before) = (phone.clone(), came.plus_ms(-1));
    let recalls = app
        .store
        .write(move |tx| rows::recalls(tx, Some(&of_phone), before, now, SWEEP_ROWS))
        .await?;
    for given in &recalls {
        withdraw(app, given);
    }
    offer_again(app, phone.clone(), before, now).await
}

async fn offer_again(
    app: &App,
    phone: PhoneId,
    offered_until: UnixMs,
    now: UnixMs,
) -> Result<(), StoreError> {
    let name = phone.clone();
    let offers = app
        .store
        .write(move |tx| rows::offer_again(tx, &phone, offered_until, now, SWEEP_ROWS))
        .await;
    match offers {
        Ok(offers) => offers.iter().for_each(|offer| hand_over(app, offer)),
        Err(error) if error.is_unavailable() => return Err(error),
        // A damaged row: this phone's attempts come to their end by time, the others' are not to suffer.
        Err(error) => {
            tracing::error!(phone = %name, error = %error, "dispatch: attempts cannot be offered again");
        }
    }
    Ok(())
}

/// Asks about what nobody knows the end of: what is due, or, for a host that has just said which journals its bridges
/// have, all that it can answer for.
pub async fn ask_of_doubts(app: &App, host: Option<&HostId>) -> Result<(), StoreError> {
    let now = app.clock.now();
    let (after, all) = (now.plus_ms(-doubt::LOOKED_FOR_MS), host.is_some());
    let doubts = app.store.read(move |tx| doubts::list(tx, (after, now), all, SWEEP_ROWS)).await?;
    let able = |of: &Option<HostId>| {
        of.clone().filter(|of| host.is_none_or(|host| host == of) && app.links.is_online(of))
    };
    let mut asked = Vec::new();
    for doubt in doubts {
        let (journal_at, serving) = (able(&doubt.journal_at), able(&doubt.serving));
        if journal_at.is_some() || serving.is_some() {
            asked.push((doubt, journal_at, serving));
        }
    }
    if asked.is_empty() {
        return Ok(());
    }
    let attempts: Vec<(MessageId, u32)> =
        asked.iter().map(|(doubt, ..)| (doubt.message.clone(), doubt.attempt)).collect();
    app.store
        .write(move |tx| {
            attempts
                .iter()
                .try_for_each(|(message, attempt)| doubts::asked(tx, (message, *attempt), now))
        })
        .await?;
    let mut told: BTreeSet<Vec<Attempt>> = BTreeSet::new();
    for (doubt, journal_at, serving) in asked {
        let (of, to) = (doubt.phone.clone(), doubt.recipient.clone());
        let twins = app.store.read(move |tx| doubts::twins(tx, &of, &to)).await?;
        let (phone, epoch) = (doubt.phone.clone(), doubt.epoch);
        if let Some(host) = journal_at {
            let command =
                Command::Cancel { message: doubt.message.clone(), attempt: doubt.attempt };
            let frame = RouterFrame::Command { phone: phone.clone(), epoch, command };
            put(app, &host, frame, format_args!("the recall of {}", doubt.message));
        }
        // Those that cannot be told apart are one question.
        if let Some(host) = serving
            && let Some(seek) = doubt::question(&doubt, &twins)
            && told.insert(seek.attempts.clone())
        {
            let frame = RouterFrame::Command { phone, epoch, command: Command::Seek(seek) };
            put(app, &host, frame, format_args!("what became of {}", doubt.message));
        }
    }
    Ok(())
}

/// Gives a frame to a host's session. One that is gone or full costs nothing: what it was to hear is said again.
fn put(app: &App, host: &HostId, frame: RouterFrame, what: fmt::Arguments<'_>) {
    if let Err(why) = app.links.send(host, frame) {
        tracing::debug!(host = %host, why = %why, "dispatch: not told yet: {what}");
    }
}

/// A phone has become able: what waited for one is due. Rings the bell.
pub async fn phone_became_able(app: &App) -> Result<(), StoreError> {
    let now = app.clock.now();
    app.store.write(move |tx| rows::wake_warming(tx, WAKE_WARMING_EACH, now)).await?;
    bit_by_bit(app, move |tx, after| rows::wake_held(tx, after, now, WAKE_ROWS)).await
}

/// A tenant's rules have changed: what waits for its hour is asked about again. Rings the bell.
pub async fn rules_changed(app: &App, tenant: &TenantId) -> Result<(), StoreError> {
    let (whose, now) = (tenant.clone(), app.clock.now());
    bit_by_bit(app, move |tx, after| rule_rows::look_again(tx, &whose, after, WAKE_ROWS, now)).await
}

/// Makes waiting jobs due in steps, so that no other writer waits behind all of them, and rings the bell after each. A step
/// goes on along the ids, so that what is held again meanwhile is not met twice, and answers the last one.
async fn bit_by_bit<F>(app: &App, step: F) -> Result<(), StoreError>
where
    F: Fn(&mut Tx<'_>, Option<&MessageId>) -> Result<Option<MessageId>, StoreError>
        + Clone
        + std::marker::Send
        + 'static,
{
    let mut last: Option<MessageId> = None;
    loop {
        let (after, step) = (last.take(), step.clone());
        last = app.store.write(move |tx| step(tx, after.as_ref())).await?;
        app.bells.dispatch.notify_one();
        if last.is_none() {
            return Ok(());
        }
    }
}

/// What has to be done from time to time: offers and recalls without an answer are repeated, lost attempts end and are
/// asked about, overdue messages expire.
pub async fn sweep(app: &App) -> Result<(), StoreError> {
    let settings = app.config.dispatch;
    let now = app.clock.now();
    let offered_until = now.plus_ms(ms(settings.reoffer_ms).saturating_neg());
    let lost_before = now.plus_ms(ms(settings.host_lost_ms).saturating_neg());
    let (recalls, former) = app
        .store
        .write(move |tx| {
            Ok((
                rows::recalls(tx, None, offered_until, now, SWEEP_ROWS)?,
                rows::former_hosts(tx, offered_until, now, SWEEP_ROWS)?,
            ))
        })
        .await?;
    for given in &recalls {
        withdraw(app, given);
    }
    for former in &former {
        give_back(app, former);
    }
    ask_of_doubts(app, None).await?;
    let (unanswered, lost, overdue) = app
        .store
        .read(move |tx| {
            Ok((
                rows::unanswered_phones(tx, offered_until)?,
                rows::lost(tx, lost_before, SWEEP_ROWS)?,
                rows::overdue(tx, now, SWEEP_ROWS)?,
            ))
        })
        .await?;
    for (phone, host) in unanswered {
        if host.is_some_and(|host| app.links.is_online(&host)) {
            offer_again(app, phone, offered_until, now).await?;
        }
    }
    let ends = !(lost.is_empty() && overdue.is_empty());
    let lost = ended(app, lost, now, rows::host_lost, |tx, given, now| {
        // The message's own row is damaged: at least the attempt is over, and its place free.
        rows::set_attempt_state(tx, &given.message, given.attempt, "done", now)
    });
    let overdue = ended(app, overdue, now, expire_overdue, |tx, job, now| {
        change::block_unread(tx, &job.tenant, &job.message, now)
    });
    futures_util::future::try_join(lost, overdue).await?;
    if ends {
        app.bells.webhooks.notify_one();
    }
    Ok(())
}

type Ends<T> = fn(&mut Tx<'_>, &T, UnixMs) -> Result<(), StoreError>;

/// Ends what a sweep has found, some in one closure; where one of them fails, nothing of the closure remains, and each is
/// ended by itself. `damaged` is for what even then cannot be.
async fn ended<T: Clone + fmt::Debug + std::marker::Send + Sync + 'static>(
    app: &App,
    rows: Vec<T>,
    now: UnixMs,
    end: Ends<T>,
    damaged: Ends<T>,
) -> Result<(), StoreError> {
    for some in rows.chunks(ENDED_TOGETHER) {
        let group = some.to_vec();
        let together = app
            .store
            .behind()
            .write_often(move |tx| group.iter().try_for_each(|row| end(tx, row, now)))
            .await;
        match together {
            Ok(()) => continue,
            Err(error) if error.is_unavailable() => return Err(error),
            Err(_) => {}
        }
        for row in some {
            let (one, again) = (row.clone(), row.clone());
            match app.store.write(move |tx| end(tx, &one, now)).await {
                Ok(()) => {}
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) => {
                    tracing::error!(row = ?row, error = %error, "dispatch: what is over cannot be ended as it should");
                    app.store.write(move |tx| damaged(tx, &again, now)).await?;
                }
            }
        }
    }
    Ok(())
}

fn expire_overdue(tx: &mut Tx<'_>, job: &rows::Overdue, now: UnixMs) -> Result<(), StoreError> {
    let message = rows::outbound(tx, &job.tenant, &job.message)?.filter(|message| {
        message.expires_at <= now && matches!(message.status, Status::Queued | Status::Scheduled)
    });
    let Some(message) = message else { return Ok(()) };
    let of = (&job.tenant, &job.message);
    // One that was woken and had not had its turn waited for nothing else any more.
    let waited_for = rows::waits_for(tx, of, message.held_reason)?;
    facts::noted(tx, of, &message, Verdict::Expire, now)?;
    expire(tx, of, waited_for, now)?;
    Ok(())
}

fn ms(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
