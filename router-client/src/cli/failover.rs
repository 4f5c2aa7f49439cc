//! `failover` and `drain`: phones change hands by the operator's wish.

use std::time::Duration;

use clap::{Args, Subcommand};
use protocol::HostId;
use protocol::api::{FailOver, FailedOver, Host, Phone, PhoneMove, ReplacePhone, ReplacedPhone};
use tokio::time::Instant;

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    screen::{Screen, or_nothing},
};

/// How long a hand-over is followed: the router gives up after half a minute.
const FOLLOW: Duration = Duration::from_secs(35);
/// How often the router is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// What is handed over.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lets another host serve a phone that is configured on both
    Phone {
        /// The phone: its id or its number
        phone: String,
        #[command(flatten)]
        to: To,
        /// Also where the account counts as blocked: the other host sends by the same account
        #[arg(long)]
        despite_block: bool,
    },
    /// Lets other hosts serve every phone of a host
    Host {
        /// The host: its id or its name
        host: String,
        #[command(flatten)]
        to: To,
    },
    /// Puts another phone, with another number, into a phone's place
    ///
    /// What is reserved for a tenant, conversations and waiting messages go on there, also where they asked for the old
    /// number. With the same phone on both sides it is undone; conversations then stay on both.
    Number {
        /// The phone whose number is gone: its id or its number
        phone: String,
        /// The phone in its place: its id or its number
        #[arg(long, value_name = "PHONE")]
        to: String,
    },
}

/// Where to.
#[derive(Debug, Args)]
pub(crate) struct To {
    /// The host that takes over, by its id or its name [default: the fittest that stands by]
    #[arg(long = "to", value_name = "HOST")]
    target: Option<String>,
    /// Also to a host that is not ready or not there
    #[arg(long)]
    force: bool,
    /// Returns at once instead of following until the phone can send
    #[arg(long)]
    no_wait: bool,
}

/// `drain` and its undoing.
#[derive(Debug, Args)]
pub(crate) struct Drain {
    #[command(subcommand)]
    what: DrainWhat,
}

#[derive(Debug, Subcommand)]
enum DrainWhat {
    /// Gives a host nothing new, and hands over what other hosts can serve
    Host {
        /// The host: its id or its name
        host: String,
        /// Gives it work again; phones that were handed over stay where they are
        #[arg(long)]
        undo: bool,
        /// Returns at once instead of following until the phones can send
        #[arg(long)]
        no_wait: bool,
    },
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    command: Command,
) -> Result<(), Failure> {
    match command {
        Command::Phone { phone, to, despite_block } => {
            let phone = phone_of(client, &phone).await?.id;
            let path = format!("/v1/admin/phones/{phone}/failover");
            hand_over(screen, client, &path, (to, despite_block)).await
        }
        Command::Host { host, to } => {
            let host = host_of(client, &host).await?;
            let path = format!("/v1/admin/hosts/{host}/failover");
            hand_over(screen, client, &path, (to, false)).await
        }
        Command::Number { phone, to } => {
            let (phone, by) = (phone_of(client, &phone).await?, phone_of(client, &to).await?);
            replace(screen, client, &phone, &by).await
        }
    }
}

pub(crate) async fn drain(
    screen: &mut Screen,
    client: &Client,
    drain: Drain,
) -> Result<(), Failure> {
    let DrainWhat::Host { host, undo, no_wait } = drain.what;
    let id = host_of(client, &host).await?;
    let verb = if undo { "undrain" } else { "drain" };
    let request = Request::post(Who::Operator, format!("/v1/admin/hosts/{id}/{verb}"));
    let begun: FailedOver = typed(client.call(&request).await?)?;
    if undo && !screen.is_json() {
        return screen.line(&format!("host {id} is given work again"));
    }
    followed(screen, client, begun, no_wait).await
}

async fn hand_over(
    screen: &mut Screen,
    client: &Client,
    path: &str,
    (to, despite_block): (To, bool),
) -> Result<(), Failure> {
    let heir = match &to.target {
        Some(host) => Some(host_of(client, host).await?),
        None => None,
    };
    let body = FailOver { to: heir, force: to.force, despite_block };
    let request = Request::post(Who::Operator, path).body(&body)?;
    let begun: FailedOver = typed(client.call(&request).await?)?;
    followed(screen, client, begun, to.no_wait).await
}

/// Follows what was begun, shows it, and fails when a phone has not got where it should.
async fn followed(
    screen: &mut Screen,
    client: &Client,
    begun: FailedOver,
    no_wait: bool,
) -> Result<(), Failure> {
    let began = Instant::now();
    let mut rows: Vec<(PhoneMove, Option<Duration>)> =
        begun.phones.iter().map(|one| (one.clone(), None)).collect();
    while !no_wait && began.elapsed() < FOLLOW && rows.iter().any(under_way) {
        tokio::time::sleep(ASK_EVERY).await;
        let phones = phones(client).await?;
        for (moved, took) in rows.iter_mut().filter(|row| under_way(row)) {
            let arrived = phones.iter().any(|phone| {
                phone.id == moved.phone && phone.host == moved.to && phone.lease_until.is_some()
            });
            if arrived {
                *took = Some(began.elapsed());
            }
        }
    }
    if screen.is_json() {
        screen.json(&begun)?;
    } else {
        let lines = rows.iter().map(|(moved, took)| {
            let state = match (moved.refused, took) {
                (Some(why), _) => why.meaning().to_owned(),
                (None, Some(took)) => format!("done in {:.1} s", took.as_secs_f64()),
                (None, None) if no_wait => "begun".to_owned(),
                (None, None) => "not done yet".to_owned(),
            };
            [
                moved.phone.to_string(),
                or_nothing(moved.from.as_ref()),
                or_nothing(moved.to.as_ref()),
                state,
            ]
        });
        screen.table(
            ["PHONE", "FROM", "TO", "STATE"],
            lines.collect(),
            "the host serves no phone",
        )?;
    }
    let stuck = rows.iter().filter(|row| under_way(row)).count();
    let refused = rows.iter().filter(|(moved, _)| moved.refused.is_some()).count();
    if (stuck > 0 && !no_wait) || refused > 0 {
        let detail = format!("{} of {} phones were not handed over", stuck + refused, rows.len());
        let remedy = "see `switchboard phones` and `switchboard hosts`".to_owned();
        return Err(Failure::Unhealthy { code: 1, detail, remedy });
    }
    Ok(())
}

fn under_way((moved, took): &(PhoneMove, Option<Duration>)) -> bool {
    moved.refused.is_none() && took.is_none()
}

async fn replace(
    screen: &mut Screen,
    client: &Client,
    phone: &Phone,
    by: &Phone,
) -> Result<(), Failure> {
    let path = format!("/v1/admin/phones/{}/replace", phone.id);
    let request = Request::post(Who::Operator, path).body(&ReplacePhone { by: by.id.clone() })?;
    let answer = client.call(&request).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    let moved: ReplacedPhone = typed(answer)?;
    if phone.id == by.id {
        return screen.line(&format!("{} is in use again", phone.number));
    }
    screen.line(&format!(
        "{} takes the place of {}: {} conversations and {} waiting messages go on there",
        by.number, phone.number, moved.conversations, moved.messages
    ))
}

async fn phones(client: &Client) -> Result<Vec<Phone>, Failure> {
    let page = client.list(Who::Operator, "/v1/admin/phones", &[], usize::MAX).await?;
    typed_rows(&page)
}

/// A phone by what people call it.
async fn phone_of(client: &Client, name: &str) -> Result<Phone, Failure> {
    let mut found: Vec<Phone> = phones(client).await?;
    found.retain(|phone| {
        phone.id.as_str() == name
            || phone.number.as_str() == name
            || phone.label.as_deref() == Some(name)
    });
    one(found, "phone", name, "switchboard phones")
}

/// A host by what people call it.
async fn host_of(client: &Client, name: &str) -> Result<HostId, Failure> {
    let page = client.list(Who::Operator, "/v1/admin/hosts", &[], usize::MAX).await?;
    let mut found: Vec<Host> = typed_rows(&page)?;
    found.retain(|host| host.id.as_str() == name || host.name == name);
    one(found, "host", name, "switchboard hosts").map(|host| host.id)
}

fn one<T>(mut found: Vec<T>, what: &str, name: &str, list: &str) -> Result<T, Failure> {
    let remedy = format!("`{list}` shows them with their ids");
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => {
            Err(Failure::usage(format!("several {what}s are called `{name}`"), remedy))
        }
        (None, _) => Err(Failure::usage(format!("there is no {what} `{name}`"), remedy)),
    }
}
