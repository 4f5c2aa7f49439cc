//! `send`, `messages`, `message` and `cancel`: in a tenant's name or, except for sending, in the operator's.

use std::{
    collections::{HashMap, VecDeque},
    io::Read,
    time::Duration,
};

use clap::Args;
use data_encoding::BASE32_NOPAD;
use protocol::{
    Channel, ChannelChoice, Class, E164, MessageId, Reason, Recipient, Status,
    api::{
        CreateMessage, Direction, Media, Message, MessageEvent, Page, RuleDecision, SettleMessage,
        Settled,
    },
    limits,
};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    screen::{NOTHING, Screen, beginning, between, or_nothing, printable, style, time},
    span::{self, Span},
};

const MESSAGES: &str = "/v1/messages";
/// The same of all tenants, for the operator.
const ADMIN_MESSAGES: &str = "/v1/admin/messages";
/// Random bytes of an idempotency key: more than can ever repeat.
const KEY_BYTES: usize = 20;
/// How often a waiting or following command looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A router that is being restarted is back within this; following goes on.
const FOLLOW_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Rows looked at by a following command: one page. What is older does not change often enough to be followed.
const FOLLOWED_MAX: usize = 100;
/// Messages whose last shown state is remembered while following.
const REMEMBERED_MAX: usize = 10 * FOLLOWED_MAX;
/// Bytes of a text at most: every character may take four, and one too many shows that it is too long.
const TEXT_BYTES_MAX: u64 = 4 * 20_000 + 4;
const _: () = assert!(limits::TEXT_CHARS_MAX == 20_000, "TEXT_BYTES_MAX follows from it");

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Whom to: +12025550143, an e-mail address, or group: and an id
    #[arg(long)]
    to: Recipient,
    /// The text; `-` reads it from standard input
    #[arg(long, allow_hyphen_values = true, required_unless_present = "media")]
    text: Option<String>,
    /// A file that goes with it, where a phone can fetch it: an https URL; several times for several files
    #[arg(long, value_name = "URL")]
    media: Vec<String>,
    /// auto, imessage, rcs or sms [default: auto]
    #[arg(long)]
    channel: Option<ChannelChoice>,
    /// Channels to try after that one, such as rcs,sms; `none` tries no other [default: rcs,sms after auto]
    #[arg(long, value_name = "CHANNELS", value_parser = fallback)]
    fallback: Option<Fallback>,
    /// otp, transactional, conversational or marketing [default: marketing]
    #[arg(long)]
    class: Option<Class>,
    /// The number to send from; any that fits when left out
    #[arg(long)]
    from: Option<E164>,
    /// How long it may wait before it is sent, such as 10m
    #[arg(long, value_parser = span::parse, value_name = "TIME")]
    ttl: Option<Span>,
    /// The same key sends the same message once, however often it is asked; made up when left out
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Waits until its outcome is known, one minute unless told otherwise
    #[arg(
        long,
        value_parser = span::parse,
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "60s"
    )]
    wait: Option<Span>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Goes on showing what changes
    #[arg(long, short)]
    follow: bool,
    /// Only those that stand so
    #[arg(long)]
    status: Option<Status>,
    /// So many at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Settle {
    /// The message
    id: MessageId,
    /// sent: it stands in the phone's conversation; failed: it does not
    outcome: Settled,
}

/// Channels that are tried after the first one.
#[derive(Debug, Clone)]
pub(crate) struct Fallback(pub(crate) Vec<Channel>);

/// `none`, or names of channels with commas between them.
pub(crate) fn fallback(list: &str) -> Result<Fallback, String> {
    if list == "none" {
        return Ok(Fallback(Vec::new()));
    }
    let channels = list.split(',').map(|word| {
        let word = word.trim();
        word.parse().map_err(|_unknown| format!("{word:?} is not imessage, rcs, sms or none"))
    });
    channels.collect::<Result<_, _>>().map(Fallback)
}

pub(crate) async fn send(screen: &mut Screen, client: &Client, send: Send) -> Result<(), Failure> {
    let key = send.idempotency_key.unwrap_or_else(new_key);
    let body = CreateMessage {
        to: send.to,
        text: send.text.map(text).transpose()?,
        template: None,
        media: send.media.into_iter().map(|url| Media { url, name: None, sha256: None }).collect(),
        channel: send.channel,
        fallback: send.fallback.map(|Fallback(channels)| channels),
        class: send.class,
        from: send.from,
        send_at: None,
        expires_at: None,
        ttl_seconds: send.ttl.map(Span::seconds),
        metadata: None,
    };
    let request = Request::post(Who::Tenant, MESSAGES).body(&body)?.idempotency_key(key);
    let mut answer = client.call(&request).await?;
    let mut message: Message = typed(answer.clone())?;
    if let Some(wait) = send.wait {
        if !screen.is_json() {
            screen.line(&line(&message))?;
        }
        (answer, message) = outcome(screen, client, message, wait).await?;
        if screen.is_json() {
            screen.json(&answer)?;
        }
        return verdict(&message, wait);
    }
    if screen.is_json() { screen.json(&answer) } else { screen.line(&line(&message)) }
}

/// Looks until the message has come to an end, showing every step.
async fn outcome(
    screen: &mut Screen,
    client: &Client,
    mut message: Message,
    wait: Span,
) -> Result<(Value, Message), Failure> {
    let until = Instant::now() + wait.duration();
    let request = Request::get(Who::Tenant, format!("{MESSAGES}/{}", message.id));
    loop {
        let answer = client.call(&request).await?;
        let now: Message = typed(answer.clone())?;
        if now.sequence != message.sequence && !screen.is_json() {
            screen.line(&line(&now))?;
        }
        message = now;
        if message.status.is_final() || Instant::now() >= until {
            return Ok((answer, message));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn verdict(message: &Message, wait: Span) -> Result<(), Failure> {
    if message.status.is_sent() {
        return Ok(());
    }
    let detail = if message.status.is_final() {
        let reason = message.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        format!("{} was not sent: {}{reason}", message.id, message.status)
    } else {
        let reason = message.held_reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        let seconds = wait.seconds();
        format!("{} is still {}{reason} after {seconds} s", message.id, message.status)
    };
    Err(Failure::NotSent { detail })
}

pub(crate) async fn list(screen: &mut Screen, client: &Client, list: List) -> Result<(), Failure> {
    if list.follow {
        return follow(screen, client, &list).await;
    }
    let limit = usize::try_from(list.limit).unwrap_or(usize::MAX);
    let page = newest(client, list.status, limit).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<Message>(&page)?.iter().map(row).collect();
    screen.table(
        ["MESSAGE", "CREATED", "WAY", "OTHER SIDE", "OURS", "CHANNEL", "STATUS", "TEXT"],
        rows,
        "there is no message",
    )
}

/// Whose messages are looked at, and where: the tenant's with its key, otherwise everybody's in the operator's name.
fn place(client: &Client) -> (Who, &'static str) {
    match client.messages_as() {
        Who::Operator => (Who::Operator, ADMIN_MESSAGES),
        who @ (Who::Tenant | Who::TenantOrOperator | Who::Anybody) => (who, MESSAGES),
    }
}

/// The newest messages: the tenant's with its key, otherwise everybody's in the operator's name.
async fn newest(
    client: &Client,
    status: Option<Status>,
    limit: usize,
) -> Result<Page<Value>, Failure> {
    let (who, path) = place(client);
    let rows = limit.min(FOLLOWED_MAX);
    let mut filters = vec![("limit", rows.to_string())];
    filters.extend(status.map(|status| ("status", status.to_string())));
    client.list(who, path, &filters, limit).await
}

/// Shows the newest messages, and from then on each one that has changed.
async fn follow(screen: &mut Screen, client: &Client, list: &List) -> Result<(), Failure> {
    let mut shown = Shown::default();
    let mut answered = false;
    let mut first = usize::try_from(list.limit).unwrap_or(usize::MAX).min(FOLLOWED_MAX);
    loop {
        let page = match newest(client, list.status, FOLLOWED_MAX).await {
            Ok(page) => page,
            // The first answer has to come; later the router may be restarted under our feet.
            Err(failure) if answered && failure.may_pass() => {
                let mut stderr = anstream::stderr().lock();
                failure.report(&mut stderr, screen.is_json())?;
                tokio::time::sleep(FOLLOW_AGAIN_AFTER).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        answered = true;
        let messages: Vec<Message> = typed_rows(&page)?;
        for (index, (message, value)) in messages.iter().zip(&page.data).enumerate().rev() {
            if !shown.is_news(message) || index >= first {
                continue;
            }
            if screen.is_json() {
                screen.json_line(value)?;
            } else {
                screen.line(&line(message))?;
            }
        }
        first = FOLLOWED_MAX;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What was shown of which message, for the newest of them.
#[derive(Debug, Default)]
struct Shown {
    sequences: HashMap<MessageId, u64>,
    order: VecDeque<MessageId>,
}

impl Shown {
    fn is_news(&mut self, message: &Message) -> bool {
        let known = self.sequences.insert(message.id.clone(), message.sequence);
        if known.is_none() {
            self.order.push_back(message.id.clone());
            if self.order.len() > REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.sequences.remove(&oldest);
            }
        }
        known != Some(message.sequence)
    }
}

pub(crate) async fn show(
    screen: &mut Screen,
    client: &Client,
    id: &MessageId,
) -> Result<(), Failure> {
    let (who, messages) = place(client);
    let path = format!("{messages}/{id}");
    let message = client.call(&Request::get(who, path.clone())).await?;
    let events = client.list(who, &format!("{path}/events"), &[], usize::MAX).await?;
    if screen.is_json() {
        return screen.json(&serde_json::json!({ "message": message, "events": events.data }));
    }
    let mut story: Vec<MessageEvent> = typed_rows(&events)?;
    story.sort_by_key(|event| event.sequence);
    let message: Message = typed(message)?;
    detail(screen, &message)?;
    timeline(screen, &story)
}

fn detail(screen: &mut Screen, message: &Message) -> Result<(), Failure> {
    let colour = style(message.status);
    screen.line(&format!("{}  {colour}{}{colour:#}", message.id, message.status))?;
    let (from, to) = match message.direction {
        Direction::Outbound => (or_nothing(message.from.as_ref()), message.to.to_string()),
        Direction::Inbound => (message.to.to_string(), or_nothing(message.from.as_ref())),
    };
    let channel = match message.channel_used {
        Some(used) => format!("{used} (asked: {})", message.channel),
        None => message.channel.to_string(),
    };
    let why = message.reason.or(message.held_reason);
    let fields = [
        ("from", Some(from)),
        ("to", Some(to)),
        ("phone", message.phone.as_ref().map(ToString::to_string)),
        ("channel", Some(channel)),
        ("class", Some(message.class.to_string())),
        ("reason", why.map(|reason| format!("{reason}: {}", reason.meaning()))),
        ("attempts", Some(message.attempts.to_string())),
        ("created", Some(time(message.created_at))),
        ("not before", message.send_at.map(time)),
        ("next look", message.next_at.map(time)),
        ("not after", message.expires_at.map(time)),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            screen.line(&format!("  {name:<10}  {value}"))?;
        }
    }
    for text in printable(&message.text).lines() {
        screen.line(&format!("  | {text}"))?;
    }
    Ok(())
}

fn timeline(screen: &mut Screen, story: &[MessageEvent]) -> Result<(), Failure> {
    let mut before = story.first().map(|event| event.at);
    let rows = story.iter().map(|event| {
        let step = before.replace(event.at).map_or(0, |before| event.at.since(before));
        let mut about = Vec::new();
        about.extend(event.attempt.map(|attempt| format!("attempt {attempt}")));
        about.extend(event.phone.as_ref().map(ToString::to_string));
        about.extend(event.channel.map(|channel| channel.to_string()));
        about.extend(event.reason.map(|reason| reason.to_string()));
        about.extend(event.detail.as_deref().map(printable));
        [
            event.sequence.to_string(),
            time(event.at),
            between(step),
            event.kind.clone(),
            about.join("  "),
        ]
    });
    screen.table(["#", "AT", "AFTER", "EVENT", "ABOUT"], rows.collect(), "it has no story yet")
}

pub(crate) async fn decisions(
    screen: &mut Screen,
    client: &Client,
    id: &MessageId,
) -> Result<(), Failure> {
    let (who, messages) = place(client);
    let page = client.list(who, &format!("{messages}/{id}/decisions"), &[], usize::MAX).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<RuleDecision>(&page)?.into_iter().map(|decision| {
        [
            decision.number.to_string(),
            time(decision.at),
            decision.verdict,
            or_nothing(decision.reason.as_ref()),
            decision.until.map_or_else(|| NOTHING.to_owned(), time),
            decision.class.to_string(),
            decision.rules,
            decision.zones,
            decision.text_sha256.chars().take(12).collect(),
        ]
    });
    let columns =
        ["#", "AT", "VERDICT", "REASON", "UNTIL", "CLASS", "RULES", "ZONES", "TEXT SHA-256"];
    screen.table(columns, rows.collect(), "nothing was decided about it yet")
}

pub(crate) async fn settle(
    screen: &mut Screen,
    client: &Client,
    Settle { id, outcome }: Settle,
) -> Result<(), Failure> {
    let request = Request::post(Who::Operator, format!("{ADMIN_MESSAGES}/{id}/settle"))
        .body(&SettleMessage { outcome })?;
    let answer = client.call(&request).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    screen.line(&line(&typed(answer)?))
}

pub(crate) async fn cancel(
    screen: &mut Screen,
    client: &Client,
    id: &MessageId,
) -> Result<(), Failure> {
    let (who, messages) = place(client);
    let request = Request::post(who, format!("{messages}/{id}/cancel"));
    let answer = client.call(&request).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    let message: Message = typed(answer)?;
    if message.status == Status::Canceled {
        return screen.line(&line(&message));
    }
    screen.line(&line(&message))?;
    screen.line("the phone was asked to leave it; `switchboard message ID` shows what it says")
}

/// The text as given, or from standard input. The newline with which editors end a file is not part of it.
pub(crate) fn text(argument: String) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument);
    }
    let mut bytes = Vec::new();
    let stdin = std::io::stdin().lock();
    let text = match stdin.take(TEXT_BYTES_MAX).read_to_end(&mut bytes) {
        Ok(_) => decoded(bytes),
        Err(error) => Err(error.to_string()),
    };
    let text = text.map_err(|detail| {
        Failure::usage(format!("the text on standard input: {detail}"), "it has to be UTF-8")
    })?;
    let without = text
        .strip_suffix('\n')
        .map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    Ok(without.to_owned())
}

/// The bytes as text. Only a text that is too long anyway may end in the middle of a character.
fn decoded(mut bytes: Vec<u8>) -> Result<String, String> {
    if let Err(error) = std::str::from_utf8(&bytes) {
        let full = u64::try_from(bytes.len()).is_ok_and(|bytes| bytes >= TEXT_BYTES_MAX);
        if !full || error.error_len().is_some() {
            return Err(error.to_string());
        }
        bytes.truncate(error.valid_up_to());
    }
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

pub(crate) fn new_key() -> String {
    let mut bytes = [0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source works");
    BASE32_NOPAD.encode(&bytes).to_lowercase()
}

/// One message on one line, for sending and following.
fn line(message: &Message) -> String {
    let colour = style(message.status);
    let why = why(message).map(|reason| format!(" ({reason})")).unwrap_or_default();
    let (way, other) = way(message);
    let channel = message.channel_used.map(|channel| format!(" by {channel}")).unwrap_or_default();
    format!(
        "{}  {}  {colour}{}{colour:#}{why}  {way} {other}{channel}",
        time(message.updated_at),
        message.id,
        message.status,
    )
}

/// Why it stands where it stands, unless the status says so itself.
fn why(message: &Message) -> Option<Reason> {
    let reason = message.reason.or(message.held_reason)?;
    (reason.as_str() != message.status.as_str()).then_some(reason)
}

fn way(message: &Message) -> (&'static str, String) {
    match message.direction {
        Direction::Outbound => ("to", message.to.to_string()),
        Direction::Inbound => ("from", message.to.to_string()),
    }
}

fn row(message: &Message) -> [String; 8] {
    let status = why(message).map_or_else(
        || message.status.to_string(),
        |reason| format!("{} ({reason})", message.status),
    );
    let (way, other) = way(message);
    [
        message.id.to_string(),
        time(message.created_at),
        way.to_owned(),
        other,
        message.from.as_ref().map_or_else(|| NOTHING.to_owned(), ToString::to_string),
        or_nothing(message.channel_used),
        status,
        beginning(&message.text),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_is_not_called_broken() {
        let limit = usize::try_from(TEXT_BYTES_MAX).unwrap();
        // One byte, then characters of three: the limit falls into the middle of one.
        let mut long = format!("a{}", "€".repeat(limit)).into_bytes();
        long.truncate(limit);
        let text = decoded(long).unwrap();
        assert!(text.chars().count() > limits::TEXT_CHARS_MAX);
        assert!(decoded("a€".as_bytes()[..2].to_vec()).is_err());
        assert!(decoded(vec![0xff; limit]).is_err());
        assert_eq!(decoded("für".into()).as_deref(), Ok("für"));
    }
}
