//! The commands of `switchboard` and what they share.

mod audit;
mod batches;
mod billing;
mod capabilities;
mod client;
mod dead_letters;
mod failover;
mod failure;
mod host;
mod manual;
mod messages;
mod opt_outs;
mod pool;
mod providers;
mod rules;
mod screen;
mod span;
mod templates;
mod tenants;
mod top;
mod webhooks;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};
use router_client::tls::TlsRoots;
use url::Url;

use self::{client::Client, failure::Failure, screen::Screen};

/// Where a router listens unless it is told otherwise.
const URL_DEFAULT: &str = "http://127.0.0.1:7070";
/// Environment of the operator's token.
const ADMIN_TOKEN_ENV: &str = "SWITCHBOARD_ADMIN_TOKEN";

/// Operates a Switchboard router: enrols hosts, makes tenants and keys, sends and follows messages.
#[derive(Debug, Parser)]
#[command(name = "switchboard", version, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 the router said no; 2 wrong usage; 69 the router cannot be reached; 77 not authorised.
Secrets belong into the environment: what stands on a command line can be seen by other programs.";

const TOKEN_HELP: &str = "The operator's token; for `host enroll` a one-time enrolment token \
    [env: SWITCHBOARD_ADMIN_TOKEN]";

/// What every command understands.
#[derive(Debug, Args)]
struct Global {
    #[arg(
        long,
        global = true,
        help = "The router's address [default: http://127.0.0.1:7070]",
        env = "SWITCHBOARD_URL",
        value_name = "URL"
    )]
    url: Option<Url>,
    #[arg(long, global = true, help = TOKEN_HELP, value_name = "TOKEN")]
    token: Option<String>,
    /// A tenant's API key, for messages, webhooks and opt-outs; without it `messages`, `message` and `cancel` work in
    /// the operator's name
    #[arg(
        long,
        global = true,
        env = "SWITCHBOARD_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    api_key: Option<String>,
    /// Answers as JSON, errors too
    #[arg(long, global = true)]
    json: bool,
    /// How long one request may take, such as 30s
    #[arg(long, global = true, default_value = "30s", value_parser = span::parse, value_name = "TIME")]
    timeout: span::Span,
    /// Certificates that the router may show: a PEM file instead of what the system trusts
    #[arg(long, global = true, env = "SWITCHBOARD_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Certificates that the router may show, too: a PEM file besides what the system trusts
    #[arg(
        long,
        global = true,
        env = "SWITCHBOARD_EXTRA_CA",
        value_name = "FILE",
        conflicts_with = "ca"
    )]
    extra_ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enrols this Mac, or makes a token with which another one is enrolled
    #[command(subcommand)]
    Host(host::Command),
    /// Lists the hosts
    Hosts,
    /// Lists the phones with their state
    Phones,
    /// Shows one phone, or changes whom it is for, its cap and its age
    Phone(pool::OnePhone),
    /// Shows hosts and phones live, what is wrong with them first
    Top(top::Top),
    /// Lets another host, or another phone, take over
    #[command(subcommand)]
    Failover(failover::Command),
    /// Takes a host out of use, in order
    Drain(failover::Drain),
    /// Lists or makes tenants
    Tenants {
        #[command(subcommand)]
        command: Option<tenants::TenantsCommand>,
    },
    /// Makes, lists, rotates and revokes API keys
    #[command(subcommand)]
    Keys(tenants::KeysCommand),
    /// Adds, lists, tests and changes webhook endpoints, shows deliveries and makes them again
    #[command(subcommand)]
    Webhooks(webhooks::Command),
    /// Lists and changes who must not be written to
    OptOuts(opt_outs::OptOuts),
    /// Shows and sets the rules that a tenant's messages are held to
    #[command(subcommand)]
    Rules(rules::Command),
    /// Sets up and watches Twilio and Telnyx, which send as SMS what no phone can send
    #[command(subcommand)]
    Provider(providers::Command),
    /// Says what would become of a message, without sending it
    Check(rules::Check),
    /// Shows over which channels somebody can be reached, or has a phone asked
    Capabilities(capabilities::Capabilities),
    /// Sends a message
    Send(messages::Send),
    /// Lists messages, or follows them
    Messages(messages::List),
    /// Shows one message and its story
    Message {
        /// The message
        id: protocol::MessageId,
    },
    /// Shows what the rules have decided about a message, and by which versions
    Decisions {
        /// The message
        id: protocol::MessageId,
    },
    /// Says what became of a message of which nobody knew, when somebody has looked at the phone
    Settle(messages::Settle),
    /// Withdraws a message that has not been sent
    Cancel {
        /// The message
        id: protocol::MessageId,
    },
    /// Lists, makes, changes, previews and deletes texts with variables
    #[command(subcommand)]
    Template(templates::Command),
    /// Sends one text to many recipients: makes, fills, starts, pauses, resumes, cancels, shows and exports batches
    #[command(subcommand)]
    Batch(batches::Command),
    /// Lists, shows, tries again or discards what could not be sent
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Shows what was used: with a tenant's key its own, else everybody's
    Usage(billing::Usage),
    /// Shows and sets which plan a tenant has, and who pays for it
    #[command(subcommand)]
    Billing(billing::Command),
    /// Adds and takes credits, and lists how they changed
    #[command(subcommand)]
    Credits(billing::Credits),
    /// Lists the plans that the router has
    Plans,
    /// Lists what was read or changed of tenants' data in the operator's name
    Audit(audit::Audit),
    /// Writes completions for a shell to standard output
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Writes manual pages
    Man {
        /// Into this directory
        dir: PathBuf,
    },
}

/// Parses, runs, reports.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|word| word == "--json") => {
            return end(&misused(&error), true);
        }
        // Help and the version too: they are written as people want them, and their exit code is 0.
        Err(error) => error.exit(),
    };
    let json = cli.global.json;
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Local(anyhow::Error::new(error).context("start the runtime")))
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&failure, json),
    }
}

/// Says what went wrong, as words or as JSON.
fn end(failure: &Failure, json: bool) -> ExitCode {
    let mut stderr = anstream::stderr().lock();
    // Nobody is left to be told when standard error itself is broken; the exit code still says it.
    drop(failure.report(&mut stderr, json).and_then(|()| stderr.flush()));
    ExitCode::from(failure.exit_code())
}

/// Arguments that cannot be understood, for a program that reads the error.
fn misused(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // What follows the first paragraph is usage and tips, which `--help` has too.
    let sentence = text.split("\n\n").next().unwrap_or(text);
    let words: Vec<&str> = sentence.split_whitespace().collect();
    Failure::usage(words.join(" "), "see `--help` of the command")
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let screen = &mut Screen::new(global.json);
    match command {
        Command::Completions { shell } => manual::completions(screen, shell, &mut Cli::command()),
        Command::Man { dir } => manual::pages(screen, &dir, Cli::command()),
        Command::Host(command) => host::run(screen, &global, command).await,
        Command::Hosts => pool::hosts(screen, &Client::new(&global)?).await,
        Command::Phones => pool::phones(screen, &Client::new(&global)?).await,
        Command::Phone(one) => pool::phone(screen, &Client::new(&global)?, one).await,
        Command::Top(top) => top::run(screen, &Client::new(&global)?, &global.url(), top).await,
        Command::Failover(command) => failover::run(screen, &Client::new(&global)?, command).await,
        Command::Drain(drain) => failover::drain(screen, &Client::new(&global)?, drain).await,
        Command::Tenants { command } => {
            tenants::tenants(screen, &Client::new(&global)?, command).await
        }
        Command::Keys(command) => tenants::keys(screen, &Client::new(&global)?, command).await,
        Command::Webhooks(command) => webhooks::run(screen, &Client::new(&global)?, command).await,
        Command::OptOuts(command) => opt_outs::run(screen, &Client::new(&global)?, command).await,
        Command::Rules(command) => rules::run(screen, &Client::new(&global)?, command).await,
        Command::Capabilities(asked) => {
            capabilities::run(screen, &Client::new(&global)?, asked).await
        }
        Command::Provider(command) => providers::run(screen, &Client::new(&global)?, command).await,
        Command::Check(check) => rules::check(screen, &Client::new(&global)?, check).await,
        Command::Send(send) => messages::send(screen, &Client::new(&global)?, send).await,
        Command::Messages(list) => messages::list(screen, &Client::new(&global)?, list).await,
        Command::Message { id } => messages::show(screen, &Client::new(&global)?, &id).await,
        Command::Template(command) => templates::run(screen, &Client::new(&global)?, command).await,
        Command::Batch(command) => batches::run(screen, &Client::new(&global)?, command).await,
        Command::DeadLetters(command) => {
            dead_letters::run(screen, &Client::new(&global)?, command).await
        }
        Command::Usage(usage) => billing::usage(screen, &Client::new(&global)?, usage).await,
        Command::Billing(command) => billing::run(screen, &Client::new(&global)?, command).await,
        Command::Credits(command) => {
            billing::credits(screen, &Client::new(&global)?, command).await
        }
        Command::Plans => billing::plans(screen, &Client::new(&global)?).await,
        Command::Audit(audit) => audit::run(screen, &Client::new(&global)?, audit).await,
        Command::Decisions { id } => messages::decisions(screen, &Client::new(&global)?, &id).await,
        Command::Settle(settle) => messages::settle(screen, &Client::new(&global)?, settle).await,
        Command::Cancel { id } => messages::cancel(screen, &Client::new(&global)?, &id).await,
    }
}

impl Global {
    /// The router's address, as far as it was given.
    fn url(&self) -> Url {
        self.url
            .clone()
            .unwrap_or_else(|| Url::parse(URL_DEFAULT).expect("the default address is an address"))
    }

    /// Which certificates the router may show.
    fn roots(&self) -> TlsRoots {
        match (&self.ca, &self.extra_ca) {
            (Some(only), _) => TlsRoots::File(only.clone()),
            (None, Some(more)) => TlsRoots::PlatformAnd(more.clone()),
            (None, None) => TlsRoots::Platform,
        }
    }

    /// The same without credentials, for a client that gets its own.
    fn without_secrets(&self) -> Self {
        Self {
            url: self.url.clone(),
            token: None,
            api_key: None,
            json: self.json,
            timeout: self.timeout,
            ca: self.ca.clone(),
            extra_ca: self.extra_ca.clone(),
        }
    }

    #[cfg(test)]
    fn for_test() -> Self {
        let timeout = span::parse("1s").unwrap();
        Self {
            url: None,
            token: None,
            api_key: None,
            json: false,
            timeout,
            ca: None,
            extra_ca: None,
        }
    }

    /// The operator's token: the option, or the environment.
    fn admin_token(&self) -> Option<String> {
        self.token.clone().or_else(|| secret_env(ADMIN_TOKEN_ENV))
    }

    /// A tenant's API key: the option, or the environment.
    fn api_key(&self) -> Option<String> {
        self.api_key.clone().filter(|key| !key.trim().is_empty())
    }
}

/// A secret from the environment. An empty variable is one that was taken away, as `NAME= command` does it.
fn secret_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|secret| !secret.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_are_understood_behind_the_command() {
        let cli = Cli::try_parse_from(["switchboard", "phones", "--json", "--url", "http://x:1"]);
        let cli = cli.unwrap();
        assert!(cli.global.json);
        assert_eq!(cli.global.url().as_str(), "http://x:1/");
    }

    #[test]
    fn wrong_usage_is_refused() {
        for arguments in [
            &["send", "--to", "+12025550143"][..],
            &["send", "--to", "12025550143", "--text", "x"],
            &["send", "--to", "+12025550143", "--text", "x", "--channel", "fax"],
            &["keys", "create", "--tenant", "x", "--name", "n"],
            &["message", "hst_1"],
            &["messages", "--limit", "0"],
            &["phones", "--timeout", "soon"],
            &["tenants", "create"],
            &["provider", "switch"],
            &["provider", "set", "x", "--kind", "nexmo", "--number", "+12025550100"],
            &["provider", "figures", "--mrr-usd", "16000"],
            &["batch", "create", "--name", "x"],
            &["batch", "create", "--name", "x", "--text", "a", "--var", "a=b"],
            &["template", "preview", "tpl_1"],
        ] {
            let all = ["switchboard"].iter().chain(arguments).copied();
            let error = Cli::try_parse_from(all).expect_err(&format!("{arguments:?}"));
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }
}
