//! `capabilities`: over which channels recipients can be reached, as far as a tenant's router knows.

use std::time::Duration;

use clap::Args;
use protocol::Recipient;
use protocol::api::{AskCapabilities, Capabilities as Known};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    messages::new_key,
    screen::{NOTHING, Screen, time},
};

const PATH: &str = "/v1/capabilities";

/// A phone answers in a moment, or is not there.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(crate) struct Capabilities {
    /// Whom: a number or an e-mail address; everybody of whom something is known when left out
    recipient: Option<Recipient>,
    /// Has the phone that would send asked first; it sends nothing
    #[arg(long, requires = "recipient")]
    ask: bool,
    /// So many at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    asked: Capabilities,
) -> Result<(), Failure> {
    let (answer, known): (Value, Vec<Known>) = match asked.recipient {
        None => {
            let limit = usize::try_from(asked.limit).unwrap_or(usize::MAX);
            let page = client.list(Who::Tenant, PATH, &[], limit).await?;
            let known = typed_rows(&page)?;
            (serde_json::to_value(page).map_err(anyhow::Error::new).map_err(Failure::Local)?, known)
        }
        Some(recipient) => {
            let answer = one(client, &recipient, asked.ask).await?;
            (answer.clone(), vec![typed(answer)?])
        }
    };
    if screen.is_json() {
        return screen.json(&answer);
    }
    let rows = known.iter().flat_map(lines).collect();
    screen.table(
        ["RECIPIENT", "CHANNEL", "REACHED", "SEEN", "GONE BY"],
        rows,
        "nothing is known of anybody",
    )
}

/// What is known of one recipient; where a phone is asked, once it has answered or had its time to.
async fn one(client: &Client, recipient: &Recipient, ask: bool) -> Result<Value, Failure> {
    let get = Request::get(Who::Tenant, format!("{PATH}/{recipient}"));
    if !ask {
        return client.call(&get).await;
    }
    let body = AskCapabilities { to: recipient.clone() };
    let post = Request::post(Who::Tenant, PATH).body(&body)?.idempotency_key(new_key());
    let before = client.call(&post).await?;
    let known: Known = typed(before.clone())?;
    if known.asked_at.is_none() {
        return Err(Failure::Local(anyhow::anyhow!(
            "no phone can be asked now: none is online, ready and free; `switchboard phones` shows why"
        )));
    }
    let until = Instant::now() + ANSWER_WITHIN;
    loop {
        let answer = client.call(&get).await?;
        let now: Known = typed(answer.clone())?;
        // An answer that tells nothing new looks like none: nothing is lost by waiting for it.
        if now.channels != known.channels || Instant::now() >= until {
            return Ok(answer);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn lines(known: &Known) -> Vec<[String; 5]> {
    let recipient = known.recipient.to_string();
    if known.channels.is_empty() {
        let nothing = || NOTHING.to_owned();
        return vec![[recipient, nothing(), nothing(), nothing(), nothing()]];
    }
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    known
        .channels
        .iter()
        .map(|known| {
            [
                recipient.clone(),
                known.channel.to_string(),
                yes(known.able),
                time(known.at),
                yes(known.fresh),
            ]
        })
        .collect()
}
