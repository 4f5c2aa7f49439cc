//! `provider`: who sends as SMS what no phone can send.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use protocol::api::{
    ProviderChoices, ProviderKind, ProviderList, ProviderStanding, ProviderTest, ProviderWhyNot,
    SetProvider, SetProviderChoices, WriteOnly,
};
use protocol::{E164, UnixMs};

use super::{
    client::{Client, Request, Who, typed},
    failure::Failure,
    screen::{NOTHING, Screen, or_nothing, printable, time},
    secret_env,
};

/// Environment of a provider's token or key.
const SECRET_ENV: &str = "SWITCHBOARD_PROVIDER_SECRET";
/// Environment of the secret of Twilio's API key.
const KEY_SECRET_ENV: &str = "SWITCHBOARD_PROVIDER_KEY_SECRET";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the providers, how each does, and why it would not be asked
    List,
    /// Sets one up, or changes it; it is not enabled by that
    ///
    /// The secret (Twilio's auth token, Telnyx's API key) comes from the environment variable `SWITCHBOARD_PROVIDER_SECRET`,
    /// that of Twilio's API key from `SWITCHBOARD_PROVIDER_KEY_SECRET`, or both from a file.
    Set(Box<Set>),
    /// Lets it be asked for what no phone can send
    Enable {
        /// Which one
        name: String,
    },
    /// Asks it for nothing more; what it has taken is followed to its end
    Disable {
        /// Which one
        name: String,
    },
    /// Deletes one that is disabled, with its credentials
    ///
    /// Refused while it has still to report on messages: what waited for it was given back when it was disabled, and what it
    /// has taken ends by its reports.
    Delete {
        /// Which one
        name: String,
        /// Whatever it has under way: those messages are `unknown`, and never sent again by themselves
        #[arg(long)]
        force: bool,
    },
    /// Asks it something that needs its credentials and sends nothing
    Test {
        /// Which one
        name: String,
    },
    /// Asks one before all others, whatever their priority
    Switch {
        /// Which one
        #[arg(required_unless_present = "back")]
        name: Option<String>,
        /// Back to priorities
        #[arg(long, conflicts_with = "name")]
        back: bool,
    },
    /// Shows or sets what decides whether Twilio may be asked
    Figures(Figures),
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Its name: a-z, 0-9 and -, such as telnyx-1
    name: String,
    /// twilio or telnyx
    #[arg(long)]
    kind: ProviderKind,
    /// The number that it sends from
    #[arg(long)]
    number: E164,
    /// Lower is asked first [default: 100]
    #[arg(long)]
    priority: Option<u32>,
    /// Twilio's messaging service, or Telnyx's messaging profile
    #[arg(long, value_name = "ID")]
    service: Option<String>,
    /// Twilio: the account's SID
    #[arg(long, value_name = "SID")]
    account: Option<String>,
    /// Twilio: the SID of an API key
    #[arg(long, value_name = "SID")]
    api_key_sid: Option<String>,
    /// Telnyx: the account's public key
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// A file with the secret in its first line and that of Twilio's API key in its second; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Figures {
    /// Monthly recurring revenue in US dollars
    #[arg(long, value_name = "USD", requires = "as_of")]
    mrr_usd: Option<u32>,
    /// Of when that figure is, such as 2026-11-01T00:00:00Z; it is believed for 45 days
    #[arg(long, value_name = "TIME", requires = "mrr_usd")]
    as_of: Option<UnixMs>,
    /// Whether Twilio may be asked at all: true or false
    #[arg(long, value_name = "BOOL")]
    allow_twilio: Option<bool>,
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    command: Command,
) -> Result<(), Failure> {
    match command {
        Command::List => {
            let answer = client.call(&Request::get(Who::Operator, PATH)).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let list: ProviderList = typed(answer)?;
            table(screen, list.data)
        }
        Command::Set(set) => {
            let path = format!("{PATH}/{}", set.name);
            let body = body(*set)?;
            let answer = client.call(&Request::put(Who::Operator, path).body(&body)?).await?;
            one(screen, answer)
        }
        Command::Enable { name } => post(screen, client, &name, "enable").await,
        Command::Disable { name } => post(screen, client, &name, "disable").await,
        Command::Delete { name, force } => {
            let mut request = Request::delete(Who::Operator, format!("{PATH}/{name}"));
            if force {
                request = request.query("force", "true".to_owned());
            }
            client.call(&request).await?;
            if screen.is_json() {
                return screen.json(&serde_json::json!({ "deleted": name }));
            }
            screen.line(&format!("deleted {name}"))
        }
        Command::Test { name } => {
            let path = format!("{PATH}/{name}/test");
            let answer = client.call(&Request::post(Who::Operator, path)).await?;
            if screen.is_json() {
                return screen.json(&answer);
            }
            let test: ProviderTest = typed(answer)?;
            let word = if test.works { "works" } else { "does not work" };
            screen.line(&format!("{name} {word}: {}", printable(&test.detail)))
        }
        Command::Switch { name, back } => {
            let switch_back = back.then_some(true);
            choose(
                screen,
                client,
                &SetProviderChoices { switch_to: name, switch_back, ..NO_CHOICE },
            )
            .await
        }
        Command::Figures(Figures { mrr_usd, as_of, allow_twilio }) => {
            let wish = SetProviderChoices {
                mrr_usd,
                mrr_as_of: as_of,
                twilio_allowed: allow_twilio,
                ..NO_CHOICE
            };
            choose(screen, client, &wish).await
        }
    }
}

const PATH: &str = "/v1/admin/providers";

const NO_CHOICE: SetProviderChoices = SetProviderChoices {
    switch_to: None,
    switch_back: None,
    mrr_usd: None,
    mrr_as_of: None,
    twilio_allowed: None,
};

fn body(set: Set) -> Result<SetProvider, Failure> {
    let (secret, key_secret) = secrets(set.secret_file.as_ref())?;
    let (auth_token, api_key) = match set.kind {
        ProviderKind::Twilio => (secret, None),
        ProviderKind::Telnyx => (None, secret),
    };
    Ok(SetProvider {
        kind: set.kind,
        number: set.number,
        priority: set.priority,
        service: set.service,
        account: set.account,
        auth_token,
        api_key_sid: set.api_key_sid,
        api_key_secret: key_secret,
        api_key,
        public_key: set.public_key,
    })
}

type Secrets = (Option<WriteOnly>, Option<WriteOnly>);

fn secrets(file: Option<&PathBuf>) -> Result<Secrets, Failure> {
    let Some(file) = file else {
        return Ok((
            secret_env(SECRET_ENV).map(WriteOnly),
            secret_env(KEY_SECRET_ENV).map(WriteOnly),
        ));
    };
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|error| {
        let remedy = format!("give a file with the secret in its first line, or {SECRET_ENV}");
        Failure::usage(format!("{}: {error}", file.display()), remedy)
    })?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut next = || lines.next().map(|line| WriteOnly(line.to_owned()));
    Ok((next(), next()))
}

async fn post(screen: &mut Screen, client: &Client, name: &str, word: &str) -> Result<(), Failure> {
    let path = format!("{PATH}/{name}/{word}");
    let answer = client.call(&Request::post(Who::Operator, path)).await?;
    one(screen, answer)
}

fn one(screen: &mut Screen, answer: serde_json::Value) -> Result<(), Failure> {
    if screen.is_json() {
        return screen.json(&answer);
    }
    let standing: ProviderStanding = typed(answer)?;
    let url = standing.webhook_url.clone();
    table(screen, vec![standing])?;
    match url {
        Some(url) => screen.line(&format!("its number's webhook has to be {url}")),
        None => screen.line("set `public_url` of the router's [providers] before it is enabled"),
    }
}

fn table(screen: &mut Screen, all: Vec<ProviderStanding>) -> Result<(), Failure> {
    let rows = all.into_iter().map(|one| {
        let enabled = match (one.enabled, one.switched_to) {
            (true, true) => "yes, first",
            (true, false) => "yes",
            (false, _) => "no",
        };
        [
            one.name.clone(),
            one.kind.to_string(),
            one.number.to_string(),
            enabled.to_owned(),
            one.priority.to_string(),
            one.breaker.to_string(),
            format!("{} of {} failed", one.failures_last_minute, one.answers_last_minute),
            why_not(&one),
        ]
    });
    let heads =
        ["NAME", "KIND", "NUMBER", "ENABLED", "PRIORITY", "BREAKER", "LAST MINUTE", "IN THE WAY"];
    screen.table(heads, rows.collect(), "there are no providers: phones alone send")
}

/// What keeps a provider from being asked, the worst first.
fn why_not(one: &ProviderStanding) -> String {
    let until = |what: &str, at: UnixMs| format!("{what} until {}", time(at));
    let conditions: Vec<&str> = one.why_not.iter().copied().map(ProviderWhyNot::as_str).collect();
    let all: Vec<String> = [
        one.problem.as_deref().map(printable),
        (!conditions.is_empty()).then(|| conditions.join(", ")),
        one.shut_until.map(|at| until("breaker open", at)),
        one.rests_until.map(|at| until("resting", at)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if all.is_empty() { NOTHING.to_owned() } else { all.join("; ") }
}

async fn choose(
    screen: &mut Screen,
    client: &Client,
    wish: &SetProviderChoices,
) -> Result<(), Failure> {
    let request = Request::patch(Who::Operator, "/v1/admin/provider_choices").body(wish)?;
    let answer = client.call(&request).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    let now: ProviderChoices = typed(answer)?;
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let rows = [
        ("asked before all others", or_nothing(now.switched_to)),
        ("SMS a day, over 5000 for Twilio", or_nothing(now.sms_a_day)),
        ("monthly recurring revenue in USD, over 15000 for Twilio", or_nothing(now.mrr_usd)),
        ("of when that is", time(now.mrr_as_of)),
        ("Twilio is allowed", yes(now.twilio_allowed)),
    ];
    let rows = rows.into_iter().map(|(name, value)| [name.to_owned(), value]).collect();
    screen.table(["WHAT", "VALUE"], rows, "nothing is set")
}
