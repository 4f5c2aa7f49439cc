//! `opt-outs`: who must not be written to. With a tenant's key for that tenant; with `--tenant` as the operator.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use protocol::api::{CreateOptOuts, CreatedOptOuts, LiftOptOut, OptOut, OptOutEvent};
use protocol::{EventId, Recipient, TenantId, UnixMs};
use serde_json::json;

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    messages::new_key,
    screen::{NOTHING, Screen, beginning, or_nothing, time},
};

/// Recipients of one request: below the router's own limit, and small enough for a body of long addresses.
const CHUNK: usize = 500;
/// Wrong rows of a file that are named.
const WRONG_NAMED_MAX: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct OptOuts {
    #[command(subcommand)]
    command: Option<Command>,
    /// As the operator: of this tenant, or of `everybody`
    #[arg(long, global = true, value_name = "TENANT")]
    tenant: Option<Whose>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the recipients who must not be written to
    List,
    /// Opts recipients out: by their word on another way, such as a call
    Add {
        /// Who
        #[arg(required = true, num_args = 1..)]
        recipients: Vec<Recipient>,
        /// Where it is known from, for the record
        #[arg(long)]
        source: Option<String>,
    },
    /// Opts everybody out who stands in a file
    ///
    /// CSV with the number or address in the first column; a first line without one is a header. Nothing is done when a row
    /// is wrong. It may be repeated: who is out already stays out.
    Import {
        /// The file
        file: PathBuf,
        /// Where the list comes from, for the record; the file's name when left out
        #[arg(long)]
        source: Option<String>,
    },
    /// Lifts an opt-out, with the evidence of a new consent
    Lift {
        /// Who
        recipient: Recipient,
        /// Where the consent was given, such as "web form"
        #[arg(long)]
        source: String,
        /// When, such as 2026-11-27T12:00:00Z
        #[arg(long)]
        at: UnixMs,
        /// What was consented to, in the words shown
        #[arg(long)]
        text: String,
    },
    /// Shows the history of opt-outs with its evidence
    History {
        /// Of this recipient only
        #[arg(long)]
        recipient: Option<Recipient>,
        /// Only what a person has still to look at
        #[arg(long)]
        review: bool,
    },
    /// Notes that you have looked at a step of the history
    Review {
        /// The step
        id: EventId,
    },
}

/// Whose opt-outs the operator means.
#[derive(Debug, Clone)]
enum Whose {
    Tenant(TenantId),
    Everybody,
}

impl std::str::FromStr for Whose {
    type Err = <TenantId as std::str::FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "everybody" { Ok(Self::Everybody) } else { text.parse().map(Self::Tenant) }
    }
}

/// In whose name, and below which path.
fn place(tenant: Option<&Whose>) -> (Who, String) {
    match tenant {
        None => (Who::Tenant, "/v1/opt_outs".to_owned()),
        Some(Whose::Everybody) => {
            (Who::Operator, "/v1/admin/tenants/everybody/opt_outs".to_owned())
        }
        Some(Whose::Tenant(tenant)) => {
            (Who::Operator, format!("/v1/admin/tenants/{tenant}/opt_outs"))
        }
    }
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    OptOuts { command, tenant }: OptOuts,
) -> Result<(), Failure> {
    let (who, path) = place(tenant.as_ref());
    match command.unwrap_or(Command::List) {
        Command::List => list(screen, client, (who, &path)).await,
        Command::Add { recipients, source } => {
            let source = source.as_deref();
            let done = add(screen, client, (who, &path), (&recipients, source)).await?;
            told(screen, &done)
        }
        Command::Import { file, source } => {
            let recipients = read(&file)?;
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
            let source = source.or(name);
            let done = add(screen, client, (who, &path), (&recipients, source.as_deref())).await?;
            told(screen, &done)
        }
        Command::Lift { recipient, source, at, text } => {
            let request = Request::post(who, format!("{path}/{recipient}/lift"))
                .body(&LiftOptOut { source, at, text })?;
            client.call(&request).await?;
            if screen.is_json() {
                return screen.json(&json!({ "recipient": recipient }));
            }
            screen.line(&format!("{recipient} may be written to again"))
        }
        Command::History { recipient, review } => {
            history(screen, client, tenant.as_ref(), recipient, review).await
        }
        Command::Review { id } => {
            own_only(tenant.as_ref())?;
            let path = format!("/v1/opt_outs/history/{id}/review");
            client.call(&Request::post(Who::Tenant, path)).await?;
            if screen.is_json() { screen.json(&json!({ "id": id })) } else { screen.line("noted") }
        }
    }
}

/// The history belongs to the tenant: what people wrote is in it.
fn own_only(tenant: Option<&Whose>) -> Result<(), Failure> {
    match tenant {
        None => Ok(()),
        Some(_) => Err(Failure::usage(
            "the history is read with the tenant's own key",
            "leave out --tenant and set SWITCHBOARD_API_KEY",
        )),
    }
}

async fn list(
    screen: &mut Screen,
    client: &Client,
    (who, path): (Who, &str),
) -> Result<(), Failure> {
    let page = client.list(who, path, &[], usize::MAX).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<OptOut>(&page)?.into_iter().map(|opt_out| {
        [
            opt_out.recipient.to_string(),
            opt_out.method,
            time(opt_out.at),
            or_nothing(opt_out.message),
        ]
    });
    screen.table(["RECIPIENT", "HOW", "SINCE", "MESSAGE"], rows.collect(), "nobody has opted out")
}

async fn history(
    screen: &mut Screen,
    client: &Client,
    tenant: Option<&Whose>,
    recipient: Option<Recipient>,
    review: bool,
) -> Result<(), Failure> {
    own_only(tenant)?;
    let mut filters = Vec::new();
    filters.extend(recipient.map(|recipient| ("recipient", recipient.to_string())));
    filters.extend(review.then(|| ("review", "open".to_owned())));
    let page = client.list(Who::Tenant, "/v1/opt_outs/history", &filters, 1_000).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<OptOutEvent>(&page)?.into_iter().map(|step| {
        let evidence = step.evidence.as_ref().and_then(|evidence| evidence.get("source"));
        let source = evidence.and_then(|source| source.as_str()).map(ToOwned::to_owned);
        [
            step.id.to_string(),
            step.recipient.to_string(),
            step.action,
            step.method,
            time(step.at),
            step.text.or(source).map_or_else(|| NOTHING.to_owned(), |text| beginning(&text)),
        ]
    });
    screen.table(
        ["STEP", "RECIPIENT", "WHAT", "HOW", "WHEN", "EVIDENCE"],
        rows.collect(),
        "there is no such step",
    )
}

/// Opts out in chunks, each done whole or not at all; says on a terminal how far it is.
async fn add(
    screen: &Screen,
    client: &Client,
    (who, path): (Who, &str),
    (recipients, source): (&[Recipient], Option<&str>),
) -> Result<CreatedOptOuts, Failure> {
    let mut all = CreatedOptOuts { added: 0, already: 0, stopped: 0 };
    let mut progress = Progress::new(recipients.len(), !screen.is_json());
    for chunk in recipients.chunks(CHUNK) {
        let body =
            CreateOptOuts { recipients: chunk.to_vec(), source: source.map(ToOwned::to_owned) };
        let request = Request::post(who, path).body(&body)?.idempotency_key(new_key());
        let done: CreatedOptOuts = typed(client.call(&request).await?)?;
        all.added += done.added;
        all.already += done.already;
        all.stopped += done.stopped;
        progress.more(chunk.len());
    }
    progress.end();
    Ok(all)
}

fn told(screen: &mut Screen, done: &CreatedOptOuts) -> Result<(), Failure> {
    if screen.is_json() {
        return screen.json(done);
    }
    let CreatedOptOuts { added, already, stopped } = done;
    screen.line(&format!(
        "{added} opted out, {already} had already; {stopped} messages on their way were stopped"
    ))
}

/// How far a long piece of work is, on a terminal alone.
#[derive(Debug)]
struct Progress {
    done: usize,
    all: usize,
    shown: bool,
}

impl Progress {
    fn new(all: usize, wanted: bool) -> Self {
        let shown = wanted && all > CHUNK && std::io::stderr().is_terminal();
        Self { done: 0, all, shown }
    }

    fn more(&mut self, rows: usize) {
        self.done += rows;
        if self.shown {
            let (done, all) = (self.done, self.all);
            // Nobody is harmed by a line that is not shown.
            drop(write!(std::io::stderr(), "\r{done} of {all}"));
        }
    }

    fn end(self) {
        if self.shown {
            drop(writeln!(std::io::stderr()));
        }
    }
}

/// The recipients of a file, each once.
fn read(file: &Path) -> Result<Vec<Recipient>, Failure> {
    let failed = |detail: String| {
        Failure::usage(
            format!("{}: {detail}", file.display()),
            "give a CSV file with a number such as +12025550143 or an address in the first column",
        )
    };
    let bytes = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    recipients(&bytes).map_err(failed)
}

/// Pure: the rows of a CSV text, or what is wrong with them by line.
fn recipients(bytes: &[u8]) -> Result<Vec<Recipient>, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
    let (mut all, mut seen, mut wrong) = (Vec::new(), std::collections::HashSet::new(), Vec::new());
    for (index, row) in reader.records().enumerate() {
        let row = row.map_err(|error| error.to_string())?;
        let line = row.position().map_or(0, csv::Position::line);
        let cell = row.get(0).unwrap_or_default().trim();
        if cell.is_empty() {
            continue;
        }
        match cell.parse::<Recipient>() {
            Ok(recipient) => {
                if seen.insert(recipient.clone()) {
                    all.push(recipient);
                }
            }
            // A header has letters and no digit or @.
            Err(_) if index == 0 && !cell.contains(|c: char| c.is_ascii_digit() || c == '@') => {}
            Err(error) => wrong.push(format!("line {line}: {error}")),
        }
    }
    if wrong.is_empty() {
        return Ok(all);
    }
    let more = wrong.len().saturating_sub(WRONG_NAMED_MAX);
    wrong.truncate(WRONG_NAMED_MAX);
    if more > 0 {
        wrong.push(format!("and {more} more"));
    }
    Err(wrong.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let all = recipients(text.as_bytes())?;
        Ok(all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_first_column_is_read_and_each_is_taken_once() {
        let file = "\u{feff}Number,Name\r\n+12025550143,\"Anna, B.\"\n\n anna@example.org ,\n+12025550143,again\n";
        assert_eq!(read(file).unwrap(), ["+12025550143", "anna@example.org"]);
        assert_eq!(read("+12025550143").unwrap(), ["+12025550143"]);
        assert_eq!(read("").unwrap(), [""; 0]);
    }

    #[test]
    fn wrong_rows_are_named_by_line_and_nothing_is_done() {
        let error = read("number\n+12025550143\n2025550143\nnobody\n").unwrap_err();
        assert!(error.starts_with("line 3: ") && error.contains("line 4: "), "{error}");
        // A first line with digits is no header.
        assert!(read("2025550143\n").is_err());
        let many = "x1\n".repeat(50);
        let error = read(&many).unwrap_err();
        assert!(error.ends_with("and 30 more"), "{error}");
    }
}
