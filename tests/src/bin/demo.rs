//! Plays five stories on this machine and prints what happens as it happens.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use comfy_table::{ContentArrangement, Table, presets};
use e2e::shelf::{Plan, Shelf};
use e2e::stories::{Narrator, Story};
use protocol::api::MessageEvent;

/// Switchboard's five stories: a router, one host with three phones, and the sandbox in the place
/// of Messages.app.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Leave everything running, and print how to try it.
    #[arg(long)]
    keep: bool,
}

/// Prints to stdout.
struct Teller {
    colours: bool,
}

impl Teller {
    fn line(&self, colour: &str, text: &str) {
        let mut out = std::io::stdout().lock();
        let written = if self.colours {
            writeln!(out, "\u{1b}[{colour}m{text}\u{1b}[0m")
        } else {
            writeln!(out, "{text}")
        };
        // A closed stdout must not end the stories: their outcome is the exit code.
        written.unwrap_or_default();
    }
}

/// Width of the last table: fits most terminals, and a log.
const TABLE_COLUMNS: u16 = 100;

/// Somebody who has not said STOP in any story.
const FRIEND: &str = "+12125550101";

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";
const PLAIN: &str = "0";

impl Narrator for Teller {
    fn step(&mut self, event: &MessageEvent, after_ms: i64) {
        let channel = event.channel.map(|channel| format!(" {channel}")).unwrap_or_default();
        let reason = event.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        let detail = event.detail.as_deref().filter(|detail| !detail.is_empty());
        let detail = detail.map(|detail| format!(" – {detail}")).unwrap_or_default();
        let after = format!("+{after_ms}");
        let line = format!("  {after:>6} ms  {:<11}{channel}{reason}{detail}", event.kind);
        self.line(PLAIN, line.trim_end());
    }

    fn note(&mut self, line: &str) {
        self.line(DIM, &format!("  {:>9}  {line}", "·"));
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut teller = Teller { colours: std::io::stdout().is_terminal() };
    teller.line(BOLD, "starting a router, one host and three phones (macOS 15, 26, 27)");
    let mut shelf = Shelf::start(Plan::default()).await.context("starting the shelf")?;
    for phone in shelf.operator.phones().await? {
        teller.note(&format!(
            "{} is {} (lease epoch {})",
            phone.number,
            phone.state.as_str(),
            phone.epoch.unwrap_or(0)
        ));
    }

    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(TABLE_COLUMNS)
        .set_header(["", "story", "expected", "seen", "ms"]);
    let mut held = 0;
    for (number, story) in Story::ALL.into_iter().enumerate() {
        teller.line(BOLD, &format!("\n{}. {}", number + 1, story.name()));
        let began = tokio::time::Instant::now();
        let seen = story.play(&mut shelf, &mut teller).await;
        let took = began.elapsed().as_millis().to_string();
        let (mark, seen) = match seen {
            Ok(seen) => {
                held += 1;
                teller.line(GREEN, "  held");
                ("✓", seen)
            }
            Err(error) => {
                teller.line(RED, &format!("  did not hold: {error:#}"));
                // The table has room for the outermost sentence; the whole chain stands above.
                ("✗", error.to_string())
            }
        };
        table.add_row([mark, story.name(), story.expected(), &seen, &took]);
    }
    teller.line(PLAIN, &format!("\n{table}"));

    let good = held == Story::ALL.len();
    if !good {
        teller.line(RED, &format!("{held} of {} stories held", Story::ALL.len()));
    }
    if args.keep {
        keep(&shelf, &teller).await?;
    }
    shelf.stop().await.context("stopping the shelf")?;
    teller.line(DIM, "everything is stopped");
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits for Ctrl-C, after saying how to try it.
async fn keep(shelf: &Shelf, teller: &Teller) -> Result<()> {
    let (url, key, token) = (shelf.url(), &shelf.key, shelf.operator_token());
    teller.line(BOLD, "\nIt keeps running; Ctrl-C stops it.");
    teller.line(
        PLAIN,
        &format!(
            r#"
  API        {url}/v1/messages        documented at {url}/openapi.json
  key        {key}
  operator   {token}
  files      {root}

  Send something (numbers from +12025550100 to +12025550130 each behave in their own way;
  `switchboard-sandbox outcomes` lists them):

    curl -sS {url}/v1/messages -H 'Authorization: Bearer {key}' \
      -H 'Content-Type: application/json' \
      -d '{{"to": "{FRIEND}", "text": "Hello from the shelf"}}'

  Look at it:

    export PATH={bin}:$PATH
    export SWITCHBOARD_URL={url} SWITCHBOARD_API_KEY={key} SWITCHBOARD_ADMIN_TOKEN={token}
    switchboard messages
    switchboard phones
"#,
            root = shelf.root().display(),
            bin = e2e::program::bin_dir()?.display(),
        ),
    );
    tokio::signal::ctrl_c().await.context("waiting for Ctrl-C")
}
