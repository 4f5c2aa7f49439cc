//! `dead-letters`: what could not be sent, in a tenant's name or in the operator's.

use clap::Subcommand;
use protocol::{
    MessageId,
    api::{DeadLetter, Message},
};
use serde_json::json;

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    screen::{Screen, or_nothing, time},
};

/// Dead letters that are shown unless asked otherwise.
const LIMIT_DEFAULT: u32 = 50;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists them, newest first
    List {
        /// So many at most
        #[arg(long, default_value_t = LIMIT_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Shows one with its reason
    Show {
        /// The message
        id: MessageId,
    },
    /// Tries one again, as a new message; only where provably nothing was sent
    Retry {
        /// The message
        id: MessageId,
    },
    /// Discards one; the message and its story stay
    Discard {
        /// The message
        id: MessageId,
    },
}

fn place(client: &Client) -> (Who, &'static str) {
    match client.messages_as() {
        Who::Operator => (Who::Operator, "/v1/admin/dead-letters"),
        who @ (Who::Tenant | Who::TenantOrOperator | Who::Anybody) => (who, "/v1/dead-letters"),
    }
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    command: Command,
) -> Result<(), Failure> {
    let (who, letters) = place(client);
    match command {
        Command::List { limit } => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let page = client.list(who, letters, &[], limit).await?;
            if screen.is_json() {
                return screen.json(&page);
            }
            let rows = typed_rows::<DeadLetter>(&page)?.into_iter().map(|letter| {
                let DeadLetter { tenant, at, reason, message } = letter;
                [
                    message.id.to_string(),
                    time(at),
                    tenant.to_string(),
                    message.to.to_string(),
                    reason.to_string(),
                    or_nothing(message.reason.as_ref()),
                    message.attempts.to_string(),
                ]
            });
            let columns = ["MESSAGE", "SINCE", "TENANT", "TO", "WHY", "LAST FAILURE", "ATTEMPTS"];
            screen.table(columns, rows.collect(), "there are no dead letters")
        }
        Command::Show { id } => {
            let answer = client.call(&Request::get(who, format!("{letters}/{id}"))).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let letter: DeadLetter = typed(answer)?;
            screen.line(&format!("{}  {}: {}", id, letter.reason, letter.reason.meaning()))?;
            screen.line(&format!("  to        {}", letter.message.to))?;
            screen.line(&format!("  tenant    {}", letter.tenant))?;
            screen.line(&format!("  since     {}", time(letter.at)))?;
            screen.line(&format!("  attempts  {}", letter.message.attempts))?;
            if let Some(reason) = letter.message.reason {
                screen.line(&format!("  last      {reason}: {}", reason.meaning()))?;
            }
            screen.line(&format!("its story: `switchboard message {id}`"))
        }
        Command::Retry { id } => {
            let answer = client.call(&Request::post(who, format!("{letters}/{id}/retry"))).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let message: Message = typed(answer)?;
            screen.line(&format!("tried again as {}", message.id))
        }
        Command::Discard { id } => {
            client.call(&Request::delete(who, format!("{letters}/{id}"))).await?;
            if screen.is_json() {
                return screen.json(&json!({ "discarded": id }));
            }
            screen.line(&format!("discarded {id}"))
        }
    }
}
