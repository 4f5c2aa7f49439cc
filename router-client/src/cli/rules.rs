//! `rules` and `check`: what messages are held to, and what would become of one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use protocol::api::{CheckedMessage, CreateMessage, TenantRules};
use protocol::{ChannelChoice, Class, E164, Recipient, TenantId, UnixMs};
use serde_json::Value;

use super::{
    client::{Client, Request, Who, typed},
    failure::Failure,
    messages::{Fallback, fallback, text},
    screen::{NOTHING, Screen, time},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the rules: with a tenant's key its own
    Show {
        /// As the operator: of this tenant
        tenant: Option<TenantId>,
    },
    /// Replaces a tenant's rules by those of a JSON file
    ///
    /// What the file leaves out goes back to its default. `rules show TENANT --json` writes such a file.
    Set {
        /// Whose
        tenant: TenantId,
        /// The file; `-` reads it from standard input
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Whom to: +12025550143, an e-mail address, or group: and an id
    #[arg(long)]
    to: Recipient,
    /// The text; `-` reads it from standard input
    #[arg(long, allow_hyphen_values = true)]
    text: String,
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
    /// As it would be at this time, such as 2026-11-29T18:00:00Z
    #[arg(long, value_name = "TIME")]
    send_at: Option<UnixMs>,
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    command: Command,
) -> Result<(), Failure> {
    let answer = match command {
        Command::Show { tenant: None } => {
            client.call(&Request::get(Who::Tenant, "/v1/rules")).await?
        }
        Command::Show { tenant: Some(tenant) } => {
            client.call(&Request::get(Who::Operator, path(&tenant))).await?
        }
        Command::Set { tenant, file } => {
            let request = Request::put(Who::Operator, path(&tenant)).body(&read(&file)?)?;
            client.call(&request).await?
        }
    };
    if screen.is_json() {
        return screen.json(&answer);
    }
    show(screen, &typed(answer)?)
}

fn path(tenant: &TenantId) -> String {
    format!("/v1/admin/tenants/{tenant}/rules")
}

fn read(file: &PathBuf) -> Result<Value, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::usage(
            format!("{}: {error}", file.display()),
            "give a JSON object, as `switchboard rules show TENANT --json` writes it",
        )
    };
    let json = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let json = json.map_err(|error| failed(&error))?;
    serde_json::from_str(&json).map_err(|error| failed(&error))
}

fn show(screen: &mut Screen, rules: &TenantRules) -> Result<(), Failure> {
    let words = |words: &[String]| {
        if words.is_empty() { NOTHING.to_owned() } else { words.join(", ") }
    };
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let or = |text: Option<String>, otherwise: &str| text.unwrap_or_else(|| otherwise.to_owned());
    let rows = [
        ("hours", or(rules.hours.map(|hours| hours.to_string()), "the operator's default")),
        ("own hours", or(rules.hours_window.clone(), NOTHING)),
        ("hours for transactional messages", yes(rules.transactional_hours)),
        ("time zone", or(rules.time_zone.clone(), NOTHING)),
        ("where no time zone is known", rules.unknown_zone.meaning().to_owned()),
        ("further STOP words", words(&rules.stop_words)),
        ("further START words", words(&rules.start_words)),
        ("opt-outs are confirmed", yes(rules.confirm_opt_out)),
        ("answer to HELP", or(rules.help_text.clone(), NOTHING)),
        ("blocked words", words(&rules.blocked_words)),
        ("links in first messages", yes(rules.first_message_links)),
        ("SMS segments at most", or(rules.segments_max.map(|max| max.to_string()), "any")),
    ];
    let rows = rows.into_iter().map(|(name, value)| [name.to_owned(), value]).collect();
    screen.table(["RULE", "VALUE"], rows, "there are no rules")
}

/// Says what would become of a message. The exit code is 0 whatever the verdict is: it was asked, and answered.
pub(crate) async fn check(
    screen: &mut Screen,
    client: &Client,
    check: Check,
) -> Result<(), Failure> {
    let body = CreateMessage {
        to: check.to,
        text: Some(text(check.text)?),
        template: None,
        media: Vec::new(),
        channel: check.channel,
        fallback: check.fallback.map(|Fallback(channels)| channels),
        class: check.class,
        from: check.from,
        send_at: check.send_at,
        expires_at: None,
        ttl_seconds: None,
        metadata: None,
    };
    let answer =
        client.call(&Request::post(Who::Tenant, "/v1/messages:check").body(&body)?).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    let checked: CheckedMessage = typed(answer)?;
    let rows = checked.rules.iter().map(|rule| {
        [
            rule.rule.to_string(),
            rule.verdict.clone(),
            rule.reason.map_or_else(|| NOTHING.to_owned(), |reason| reason.to_string()),
            rule.detail.clone().unwrap_or_else(|| NOTHING.to_owned()),
            time(rule.until),
        ]
    });
    screen.table(
        ["RULE", "VERDICT", "REASON", "DETAIL", "UNTIL"],
        rows.collect(),
        "no rule could be asked",
    )?;
    for provider in checked.providers.iter().filter(|one| !one.why_not.is_empty()) {
        let why: Vec<&str> = provider.why_not.iter().map(|why| why.meaning()).collect();
        screen.line(&format!("not by {}: {}", provider.provider, why.join(" ")))?;
    }
    let content = &checked.content;
    screen.line(&format!(
        "{} characters, {}, {} SMS segments; judged as {}; may be in {}",
        content.characters,
        content.encoding,
        content.segments,
        checked.class,
        places(&checked.time_zones),
    ))?;
    let why = checked.reason.map(|reason| format!(": {}", reason.meaning())).unwrap_or_default();
    let when = match checked.next_allowed_at {
        Some(at) if checked.verdict == "hold" => format!(" It may go at {}.", time(at)),
        Some(_) | None => String::new(),
    };
    let by = checked.from.map(|from| format!(" by {from}")).unwrap_or_default();
    screen.line(&format!("{}{by}{why}{when}", checked.verdict))
}

/// A few time zones by name, many by their number.
fn places(zones: &[String]) -> String {
    match zones {
        [] => "no place that is known".to_owned(),
        few if few.len() <= 3 => few.join(", "),
        many => format!("{} time zones", many.len()),
    }
}
