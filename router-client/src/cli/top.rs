//! `top`: hosts and phones, live. What is shown is pure ([`state`], [`view`]); here is what reads keys, asks the router
//! and owns the terminal.

mod state;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal as _};
use std::pin::Pin;
use std::time::Duration;

use clap::Args;
use protocol::UnixMs;
use protocol::api::{Host, Message, Phone};
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::layout::Rect;
use ratatui::widgets::Widget as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use url::Url;

use self::state::{Held, Next, Snapshot, State};
use super::client::{Client, Who, typed_rows};
use super::failure::Failure;
use super::screen::Screen;
use super::span;

/// A router that has not answered after this is shown as one that does not.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// And after this as one that may not.
const SLOW_AFTER: Duration = Duration::from_secs(2);
/// Waiting messages are looked at once in so many refreshes: their texts come along.
const HELD_EVERY: u64 = 5;
/// And so many of them, one page.
const HELD_ROWS: usize = 100;
/// The router is not asked more often.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Keys that are typed ahead.
const KEYS: usize = 64;
/// The reader of keys looks so often whether anybody still wants them.
const KEY_POLL: Duration = Duration::from_millis(250);
/// Without a terminal: as wide as the narrowest one that all columns fit into.
const WIDTH: u16 = 100;
/// More lines than any pool has.
const HEIGHT_MAX: usize = 10_000;

/// What to show, and how often.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// How often the router is asked, such as 2s
    #[arg(long, default_value = "1s", value_parser = span::parse, value_name = "TIME")]
    interval: span::Span,
    /// Prints one frame as plain text and ends; needs no terminal
    #[arg(long)]
    once: bool,
    /// Shows only what has this word in a name, number, state or reason
    #[arg(long, value_name = "WORD", default_value = "")]
    filter: String,
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    url: &Url,
    top: Top,
) -> Result<(), Failure> {
    let mut shown = url.clone();
    // Whoever has put a password into the address does not want it on a screen.
    if shown.set_password(None).is_err() || shown.set_username("").is_err() {
        shown = url.clone();
    }
    let shown = shown.as_str().trim_end_matches('/').to_owned();
    if screen.is_json() {
        let (hosts, phones) = pool(client).await?;
        return screen.json(&json!({ "hosts": hosts, "phones": phones }));
    }
    let interval = top.interval.duration().max(INTERVAL_MIN);
    let mut state = State::new(shown, interval, top.filter);
    if top.once {
        let snapshot = ask(client, 0).await?;
        state.came(Ok(snapshot), now());
        return screen.line(&plain(&state));
    }
    if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
        return Err(Failure::usage("`top` needs a terminal", "add --once for one frame as text"));
    }
    // https://no-color.org: set and not empty.
    state.colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    live(client, &mut state).await
}

/// The wall clock, which is what the router's times are of.
fn now() -> UnixMs {
    UnixMs(jiff::Timestamp::now().as_millisecond())
}

/// One frame with everything in it, without what only a terminal understands.
fn plain(state: &State) -> String {
    let width = match ratatui::crossterm::terminal::size() {
        Ok((width, _)) if io::stdout().is_terminal() => width,
        Ok(_) | Err(_) => WIDTH,
    };
    let height = u16::try_from(view::height_of_all(state).min(HEIGHT_MAX)).unwrap_or(u16::MAX);
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    view::View { state, keys: false }.render(area, &mut buffer);
    view::text_of(&buffer)
}

async fn pool(client: &Client) -> Result<(Vec<Host>, Vec<Phone>), Failure> {
    let hosts = client.list(Who::Operator, "/v1/admin/hosts", &[], usize::MAX).await?;
    let phones = client.list(Who::Operator, "/v1/admin/phones", &[], usize::MAX).await?;
    Ok((typed_rows(&hosts)?, typed_rows(&phones)?))
}

/// Asks the router for everything.
async fn ask(client: &Client, nth: u64) -> Result<Snapshot, Failure> {
    let (hosts, phones) = pool(client).await?;
    let held = if nth.is_multiple_of(HELD_EVERY) {
        let filters = [("status", "queued".to_owned())];
        let page = client.list(Who::Operator, "/v1/admin/messages", &filters, HELD_ROWS).await?;
        let waiting = typed_rows::<Message>(&page)?;
        Some(Held::of(waiting.iter().filter_map(|message| message.held_reason), page.has_more))
    } else {
        None
    };
    Ok(Snapshot { hosts, phones, held })
}

/// The terminal as it was, whatever ends the program: [`ratatui::try_init`] restores it on a panic, this on everything
/// else.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// A question that is under way.
type Asking<'a> = Pin<Box<dyn Future<Output = Result<Result<Snapshot, Failure>, Elapsed>> + 'a>>;

async fn live(client: &Client, state: &mut State) -> Result<(), Failure> {
    let mut ends = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()]
        .into_iter()
        .map(signal)
        .collect::<io::Result<Vec<_>>>()?;
    let mut terminal = ratatui::try_init()?;
    let _restored = Restored;
    let mut keys = read_keys()?;
    let mut tick = interval(state.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut nth, mut asked) = (0, Instant::now());
    let mut asking: Option<Asking<'_>> = None;
    loop {
        state.now = now();
        terminal.draw(|frame| {
            let area = frame.area();
            state.page = view::View { state, keys: true }.rows(area);
            view::View { state, keys: true }.render(area, frame.buffer_mut());
        })?;
        let ended = std::future::poll_fn(|context| {
            let ended = ends.iter_mut().any(|end| end.poll_recv(context).is_ready());
            if ended { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        });
        tokio::select! {
            () = ended => return Ok(()),
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if state.key(key.code, key.modifiers) == Next::End {
                        return Ok(());
                    }
                }
                // A new size is drawn by the next turn.
                Some(_) => {}
                // The terminal is gone.
                None => return Ok(()),
            },
            _ = tick.tick() => {
                if asking.is_none() {
                    asking = Some(Box::pin(timeout(ANSWER_WITHIN, ask(client, nth))));
                    (asked, nth) = (Instant::now(), nth + 1);
                } else if asked.elapsed() >= SLOW_AFTER {
                    state.came(Err("it takes its time".to_owned()), now());
                }
            }
            came = answer(&mut asking) => {
                asking = None;
                let came = match came {
                    Ok(Ok(snapshot)) => Ok(snapshot),
                    Ok(Err(failure)) => Err(failure.sentence()),
                    Err(_elapsed) => Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())),
                };
                state.came(came, now());
            }
        }
    }
}

/// What comes of the question that is under way; never, without one.
async fn answer<F: Future + Unpin>(asking: &mut Option<F>) -> F::Output {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// Reads keys in a thread of its own, which ends with the program or when nobody wants them any more.
fn read_keys() -> io::Result<mpsc::Receiver<Event>> {
    let (keys, wanted) = mpsc::channel(KEYS);
    std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
        while !keys.is_closed() {
            match event::poll(KEY_POLL) {
                Ok(false) => {}
                Ok(true) => {
                    if event::read().is_ok_and(|event| keys.blocking_send(event).is_ok()) {
                        continue;
                    }
                    return;
                }
                Err(_) => return,
            }
        }
    })?;
    Ok(wanted)
}
