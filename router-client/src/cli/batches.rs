//! `batch`: one text to many recipients, from a file.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use clap::{Args, Subcommand, ValueEnum};
use data_encoding::HEXLOWER;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::api::{AddedRecipients, Batch, CreateBatch, RowError, UseTemplate};
use protocol::{BatchId, ChannelChoice, Class, E164, Status, TemplateId, UnixMs};

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    messages::{new_key, text},
    screen::{Screen, time},
    span::{self, Span},
    templates::{map, pair},
};

const BATCHES: &str = "/v1/batches";
/// Rows of one chunk: a second or two of work, little to repeat when the line breaks, and far below the router's limits.
const CHUNK_ROWS: usize = 20_000;
/// Wrong rows that are named.
const WRONG_NAMED_MAX: usize = 20;
/// How long one chunk, or one export, may take.
const PATIENCE: Duration = Duration::from_hours(1);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the batches, newest first
    List,
    /// Makes one, as a draft
    Create(Create),
    /// Adds the recipients of a file to a draft, in chunks; may be repeated, for each is added once
    Add(Add),
    /// Starts one: its recipients become messages
    Start(Which),
    /// Pauses one: no more of its recipients become messages
    Pause(Which),
    /// Goes on with one that is paused
    Resume(Which),
    /// Withdraws one and what of it has not been sent
    Cancel(Which),
    /// Shows one and how many of its messages stand where
    Show(Which),
    /// Writes what has come of each recipient
    Export {
        /// The batch
        id: BatchId,
        /// As what
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
        /// Only those whose message has this status, such as failed
        #[arg(long)]
        status: Option<Status>,
        /// Into this file instead of standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The batch
    id: BatchId,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name
    #[arg(long)]
    name: String,
    /// The text, the same for everybody; - reads it from standard input
    #[arg(long, required_unless_present = "template", conflicts_with = "template")]
    text: Option<String>,
    /// The template
    #[arg(long)]
    template: Option<TemplateId>,
    /// Which version of it; the newest when left out
    #[arg(long, requires = "template")]
    template_version: Option<u32>,
    /// What stands for a variable that a recipient has not, as NAME=VALUE; may be repeated
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = pair, requires = "template", conflicts_with = "text")]
    variables: Vec<(String, String)>,
    /// What rules apply: transactional, conversational or marketing
    #[arg(long)]
    class: Option<Class>,
    /// imessage, rcs, sms or auto
    #[arg(long)]
    channel: Option<ChannelChoice>,
    /// The number to send from
    #[arg(long)]
    from: Option<E164>,
    /// Not before, such as 2026-11-27T12:00:00Z
    #[arg(long)]
    send_at: Option<UnixMs>,
    /// How long each message lives, such as 2h
    #[arg(long, value_parser = span::parse, value_name = "TIME")]
    ttl: Option<Span>,
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The batch
    id: BatchId,
    /// CSV with a header (to, and the names of variables), or lines of JSON
    file: PathBuf,
    /// What it is; by its name when left out
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Refuses a chunk as a whole when one of its rows cannot be used
    #[arg(long)]
    strict: bool,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A header and a line a row
    Csv,
    /// An object a line
    Ndjson,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "ndjson" | "jsonl" => Some(Self::Ndjson),
            _ => None,
        }
    }

    const fn media_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
        }
    }
}

pub(crate) async fn run(
    screen: &mut Screen,
    client: &Client,
    command: Command,
) -> Result<(), Failure> {
    match command {
        Command::List => list(screen, client).await,
        Command::Create(create) => {
            let template = create.template.map(|id| UseTemplate {
                id,
                version: create.template_version,
                variables: map(create.variables),
            });
            let body = CreateBatch {
                name: create.name,
                text: create.text.map(text).transpose()?,
                template,
                channel: create.channel,
                class: create.class,
                from: create.from,
                send_at: create.send_at,
                ttl_seconds: create.ttl.map(Span::seconds),
                metadata: None,
            };
            let request = Request::post(Who::Tenant, BATCHES).body(&body)?;
            told(screen, client, &request.idempotency_key(new_key())).await
        }
        Command::Add(add) => upload(screen, client, add).await,
        Command::Start(which) => turn(screen, client, &which.id, "start").await,
        Command::Pause(which) => turn(screen, client, &which.id, "pause").await,
        Command::Resume(which) => turn(screen, client, &which.id, "resume").await,
        Command::Cancel(which) => turn(screen, client, &which.id, "cancel").await,
        Command::Show(which) => {
            told(screen, client, &Request::get(Who::Tenant, one(&which.id))).await
        }
        Command::Export { id, format, status, output } => {
            let mut request = Request::get(Who::Tenant, format!("{}/export", one(&id)))
                .query("format", format.word().to_owned())
                .patiently(PATIENCE);
            if let Some(status) = status {
                request = request.query("status", status.to_string());
            }
            match output {
                None => client.download(&request, |bytes| screen.bytes(bytes)).await,
                Some(path) => {
                    let mut file = std::fs::File::create(&path)?;
                    let write = |bytes: &[u8]| {
                        std::io::Write::write_all(&mut file, bytes).map_err(Failure::from)
                    };
                    client.download(&request, write).await
                }
            }
        }
    }
}

fn one(id: &BatchId) -> String {
    format!("{BATCHES}/{id}")
}

async fn turn(
    screen: &mut Screen,
    client: &Client,
    id: &BatchId,
    word: &str,
) -> Result<(), Failure> {
    let request = Request::post(Who::Tenant, format!("{}/{word}", one(id)));
    told(screen, client, &request.idempotency_key(new_key())).await
}

async fn list(screen: &mut Screen, client: &Client) -> Result<(), Failure> {
    let page = client.list(Who::Tenant, BATCHES, &[], 1_000).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<Batch>(&page)?.into_iter().map(|batch| {
        [
            batch.id.to_string(),
            batch.name,
            batch.state.to_string(),
            format!("{}/{}", batch.expanded, batch.recipients),
            time(batch.created_at),
            time(batch.ended_at),
        ]
    });
    let columns = ["BATCH", "NAME", "STATE", "MESSAGES", "MADE", "ENDED"];
    screen.table(columns, rows.collect(), "there are no batches")
}

async fn told(screen: &mut Screen, client: &Client, request: &Request) -> Result<(), Failure> {
    let answer = client.call(request).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    let batch: Batch = typed(answer)?;
    screen.line(&format!("{}  {}  {}", batch.id, batch.state, batch.name))?;
    if let Some(reason) = batch.reason {
        screen.line(&format!("  because     {reason}: {}", reason.meaning()))?;
    }
    screen.line(&format!(
        "  recipients  {} ({} duplicates and {} wrong rows left out)",
        batch.recipients, batch.duplicates, batch.invalid
    ))?;
    screen.line(&format!("  messages    {}", batch.expanded))?;
    for (status, count) in batch.outcomes.iter().flatten() {
        screen.line(&format!("    {status:<11} {count}"))?;
    }
    if batch.send_at.is_some() {
        screen.line(&format!("  not before  {}", time(batch.send_at)))?;
    }
    Ok(())
}

/// Sends a file chunk by chunk. What a chunk is called follows from what it holds and where it stands, so that the same
/// file again, after a line that broke, adds and counts nothing twice.
async fn upload(screen: &mut Screen, client: &Client, add: Add) -> Result<(), Failure> {
    let Add { id, file, format, strict } = add;
    let format = format.or_else(|| Format::of(&file)).ok_or_else(|| {
        Failure::usage("the file's name does not say what it is", "give --format csv or ndjson")
    })?;
    let bytes = std::fs::read(&file)
        .map_err(|error| Failure::usage(format!("{}: {error}", file.display()), "see `--help`"))?;
    let chunks = chunks(format, &bytes, CHUNK_ROWS)?;
    let bar = bar(bytes.len(), !screen.is_json() && std::io::stderr().is_terminal());
    let mut all =
        AddedRecipients { added: 0, duplicates: 0, invalid: 0, recipients: 0, errors: Vec::new() };
    for chunk in &chunks {
        let mut named = id.as_str().as_bytes().to_vec();
        named.extend_from_slice(&chunk.first_line.to_be_bytes());
        named.extend_from_slice(&chunk.body);
        let key = HEXLOWER.encode(digest(&SHA256, &named).as_ref());
        let mut request = Request::post(Who::Tenant, format!("{}/recipients", one(&id)))
            .raw(format.media_type(), chunk.body.clone())
            .idempotency_key(key);
        if strict {
            request = request.query("on_invalid", "refuse".to_owned());
        }
        let done: AddedRecipients = typed(client.call(&request).await?)?;
        all.added += done.added;
        all.duplicates += done.duplicates;
        all.invalid += done.invalid;
        all.recipients = done.recipients;
        let placed = |error: RowError| RowError { line: chunk.line_of(error.line), ..error };
        all.errors.extend(done.errors.into_iter().map(placed));
        bar.inc(u64::try_from(chunk.of_file).unwrap_or(0));
    }
    bar.finish_and_clear();
    if screen.is_json() {
        return screen.json(&all);
    }
    for error in all.errors.iter().take(WRONG_NAMED_MAX) {
        let field = if error.field.is_empty() { "row" } else { error.field.as_str() };
        screen.line(&format!("{}:{}: {field}: {}", file.display(), error.line, error.detail))?;
    }
    let mut line = format!("{} added, {} there already", all.added, all.duplicates);
    if all.invalid > 0 {
        let _infallible = write!(line, ", {} rows cannot be used", all.invalid);
    }
    screen.line(&format!("{line}; the batch has {} recipients", all.recipients))
}

fn bar(bytes: usize, shown: bool) -> ProgressBar {
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(u64::try_from(bytes).unwrap_or(0)), target);
    let style = ProgressStyle::with_template(
        "{bar:30} {percent:>3} %  {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    );
    style.map(|style| bar.clone().with_style(style)).unwrap_or(bar)
}

/// A part of a file that can be read by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk {
    body: Vec<u8>,
    /// Bytes of it that are the file's at this place, the header not again.
    of_file: usize,
    /// Lines before its first row in the chunk, and the line of that row in the file.
    header_lines: u64,
    first_line: u64,
}

impl Chunk {
    /// The line in the file for one in the chunk.
    fn line_of(&self, line: u64) -> u64 {
        (self.first_line + line).saturating_sub(self.header_lines + 1)
    }
}

/// Cuts a file between its rows.
fn chunks(format: Format, bytes: &[u8], rows: usize) -> Result<Vec<Chunk>, Failure> {
    // Where rows begin: byte and line.
    let mut starts: Vec<(usize, u64)> = Vec::new();
    match format {
        Format::Csv => {
            let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(bytes);
            let wrong = |error: csv::Error| Failure::usage(error.to_string(), "is it CSV?");
            reader.byte_headers().map_err(wrong)?;
            let mut record = csv::ByteRecord::new();
            loop {
                let at = reader.position().clone();
                if !reader.read_byte_record(&mut record).map_err(wrong)? {
                    break;
                }
                starts.push((usize::try_from(at.byte()).unwrap_or(usize::MAX), at.line()));
            }
        }
        Format::Ndjson => {
            let mut at = 0;
            for (line, text) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
                starts.push((at, line));
                at += text.len();
            }
        }
    }
    let first = starts.first().copied().unwrap_or((bytes.len(), 1));
    let header = match format {
        Format::Csv => bytes.get(..first.0).unwrap_or_default(),
        Format::Ndjson => &[],
    };
    let header_lines = if format == Format::Csv { first.1.saturating_sub(1) } else { 0 };
    let ends = starts.iter().step_by(rows).skip(1).map(|(at, _)| *at).chain([bytes.len()]);
    let begins = starts.iter().step_by(rows);
    Ok(begins
        .zip(ends)
        .map(|(&(from, first_line), to)| {
            let part = bytes.get(from..to).unwrap_or_default();
            Chunk { body: [header, part].concat(), of_file: part.len(), header_lines, first_line }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(format: Format, text: &str) -> Vec<(String, u64)> {
        let chunks = chunks(format, text.as_bytes(), 2).unwrap();
        let last = |chunk: &Chunk| chunk.line_of(chunk.header_lines + 2);
        chunks
            .iter()
            .map(|chunk| (String::from_utf8(chunk.body.clone()).unwrap(), last(chunk)))
            .collect()
    }

    #[test]
    fn a_file_is_cut_between_its_rows_and_lines_are_found_again() {
        let text = "to,a\n1,\"x\ny\"\n2,b\n\n3,\"c\n4\"\n5,e";
        // The second line of each chunk's rows, in the file: the quoted one has two.
        assert_eq!(
            cut(Format::Csv, text),
            [("to,a\n1,\"x\ny\"\n2,b\n".to_owned(), 3), ("to,a\n\n3,\"c\n4\"\n5,e".to_owned(), 6),]
        );
        let text = "{\"to\":1}\n{}\n\n{}";
        assert_eq!(
            cut(Format::Ndjson, text),
            [("{\"to\":1}\n{}\n".to_owned(), 2), ("\n{}".to_owned(), 4)]
        );
        assert_eq!(cut(Format::Csv, "to\n"), []);
        assert_eq!(cut(Format::Csv, ""), []);
    }
}
