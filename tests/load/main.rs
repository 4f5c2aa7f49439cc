//! Whole-process loads: each figure beside the machine's own limit, measured in the same run.
//!
//! These machines are noisy: what counts is the ratio, not the number.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};

mod accept;
mod batch;
mod crash;
mod export;
mod fair;
mod flat;
mod hang;
mod idle;
mod kannel;
mod link;
mod others;
mod percentile;
mod phones;
mod posts;
mod read;
mod relay;
mod restart;
mod sends;
mod standby;
mod standin;
mod through;
mod wake;
mod webhooks;
mod wire;

/// Measures Switchboard as whole processes, and prints one table.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure; everything when left out.
    #[arg(value_enum)]
    only: Vec<Load>,
    /// Messages to post in `accept`.
    #[arg(long, default_value_t = 20_000)]
    accept_messages: u32,
    /// Recipients of `batch`.
    #[arg(long, default_value_t = 1_000_000)]
    batch_recipients: u32,
    /// Messages to send in `through`.
    #[arg(long, default_value_t = 600)]
    through_messages: u64,
    /// Messages of each burst of `relay`.
    #[arg(long, default_value_t = 20_000)]
    relay_messages: u32,
    /// Messages of each burst of `webhooks`; each is told to nine endpoints.
    #[arg(long, default_value_t = 5_000)]
    webhooks_messages: u32,
    /// Messages in the store of `flat`, and those that wait beside them.
    #[arg(long, default_value_t = 1_000_000)]
    flat_stored: u32,
    #[arg(long, default_value_t = 100_000)]
    flat_queued: u32,
    /// Messages that wait in `fair`.
    #[arg(long, default_value_t = 100_000)]
    fair_queued: u32,
    /// Messages of `sends`.
    #[arg(long, default_value_t = 10_000)]
    sends_messages: usize,
    /// Rows of the database in `read`.
    #[arg(long, default_value_t = 1_000_000)]
    read_rows: u32,
    /// A database made by an earlier run with as many rows, to save the time of making it.
    #[arg(long)]
    read_db: Option<PathBuf>,
    /// Messages of each database in `export`.
    #[arg(long, default_value_t = 1_000_000)]
    export_messages: u32,
    /// imessage-exporter, to be measured beside it.
    #[arg(long, value_name = "PROGRAM", env = "IMESSAGE_EXPORTER")]
    exporter: Option<PathBuf>,
    /// Crashes of each child in `restart`. Our supervisor may be told to take 1000 restarts for no crash loop, and no more.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=900))]
    restart_crashes: u16,
    /// Cuts in `link`.
    #[arg(long, default_value_t = 100)]
    link_cuts: usize,
    /// How often each of two Macs is lost in `standby`.
    #[arg(long, default_value_t = 2)]
    standby_losses: u32,
    /// Hand-overs in order in `standby`.
    #[arg(long, default_value_t = 20)]
    standby_hand_overs: u32,
    /// Phones on one supervisor in `phones`, with stand-ins for their bridges.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=200))]
    phones: u16,
    /// Phones with bridges and a sandbox, of which two processors carry some 64; 0 for none.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(..=200))]
    phones_whole: u16,
    /// Rows as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Load {
    /// POST /v1/messages with fsync, over 64 connections.
    Accept,
    /// Very many recipients as CSV, taken in and turned into messages.
    Batch,
    /// Accepted → osascript → sent recorded, three phones without pacing.
    Through,
    /// Accepted → stand-in phones → webhook, beside Kannel.
    Relay,
    /// Deliveries to nine endpoints, beside a tenth that never answers.
    Webhooks,
    /// Accept and dispatch with a large store, beside an empty one.
    Flat,
    /// A long queue: memory, and another tenant's code.
    Fair,
    /// A bridge decoding a large chat.db.
    Read,
    /// A large chat.db into a file, for people and as JSON lines.
    Export,
    /// From COMMIT in chat.db to the event on the bridge's stdout.
    Wake,
    /// What a bridge with nothing to do costs on a large chat.db.
    Idle,
    /// From SIGKILL of a bridge to ready again, beside other supervisors with the same child.
    Restart,
    /// A bridge that stands still, and a Messages that hangs under a send.
    Hang,
    /// From SIGKILL of the supervisor to sending again, with launchd's throttle.
    Crash,
    /// From the cut of the wire to the router to sending again.
    Link,
    /// A Mac lost, and handed over in order, with another one that stands by.
    Standby,
    /// Many phones on one supervisor: processor and memory, idle and busy.
    Phones,
    /// Messages through one bridge that is killed on average every twenty.
    Sends,
}

/// One line of the table.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Figure {
    what: &'static str,
    measured: String,
    limit: String,
    ratio: String,
}

impl Figure {
    /// A figure beside its limit; the ratio says how much of the limit is reached.
    pub(crate) fn new(
        what: &'static str,
        measured: String,
        limit: String,
        ratio: Option<f64>,
    ) -> Self {
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{:.0} %", ratio * 100.0));
        Self { what, measured, limit, ratio }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    let wanted = |load: Load| args.only.is_empty() || args.only.contains(&load);
    let mut figures = Vec::new();
    if wanted(Load::Accept) {
        progress("accept")?;
        figures.extend(accept::measure(args.accept_messages).await.context("accept")?);
    }
    if wanted(Load::Batch) {
        progress("batch")?;
        figures.extend(batch::measure(args.batch_recipients).await.context("batch")?);
    }
    if wanted(Load::Through) {
        progress("through")?;
        figures.extend(through::measure(args.through_messages).await.context("through")?);
    }
    if wanted(Load::Relay) {
        progress("relay")?;
        figures.extend(relay::measure(args.relay_messages).await.context("relay")?);
    }
    if wanted(Load::Webhooks) {
        progress("webhooks")?;
        figures.extend(webhooks::measure(args.webhooks_messages).await.context("webhooks")?);
    }
    if wanted(Load::Flat) {
        progress("flat")?;
        figures.extend(flat::measure(args.flat_stored, args.flat_queued).await.context("flat")?);
    }
    if wanted(Load::Fair) {
        progress("fair")?;
        figures.extend(fair::measure(args.fair_queued).await.context("fair")?);
    }
    if wanted(Load::Sends) {
        progress("sends")?;
        figures.extend(sends::measure(args.sends_messages).await.context("sends")?);
    }
    if wanted(Load::Read) {
        progress("read")?;
        figures.extend(read::measure(args.read_rows, args.read_db.as_deref()).context("read")?);
    }
    if wanted(Load::Export) {
        progress("export")?;
        let measured = export::measure(args.export_messages, args.exporter.as_deref());
        figures.extend(measured.context("export")?);
    }
    if wanted(Load::Wake) {
        progress("wake")?;
        figures.extend(wake::measure().await.context("wake")?);
    }
    if wanted(Load::Idle) {
        progress("idle")?;
        let measured = idle::measure(args.read_rows, args.read_db.as_deref()).await;
        figures.extend(measured.context("idle")?);
    }
    if wanted(Load::Restart) {
        progress("restart")?;
        figures.extend(restart::measure(args.restart_crashes.into()).await.context("restart")?);
    }
    if wanted(Load::Hang) {
        progress("hang")?;
        figures.extend(hang::measure().await.context("hang")?);
    }
    if wanted(Load::Crash) {
        progress("crash")?;
        figures.extend(crash::measure().await.context("crash")?);
    }
    if wanted(Load::Link) {
        progress("link")?;
        figures.extend(link::measure(args.link_cuts).await.context("link")?);
    }
    if wanted(Load::Standby) {
        progress("standby")?;
        let measured = standby::measure(args.standby_losses, args.standby_hand_overs).await;
        figures.extend(measured.context("standby")?);
    }
    if wanted(Load::Phones) {
        progress("phones")?;
        figures.extend(phones::measure(args.phones, args.phones_whole).await.context("phones")?);
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &figures).context("stdout")?;
        return writeln!(out).context("stdout");
    }
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(TABLE_COLUMNS)
        .set_header(["what", "measured", "this machine's limit, same run", "of the limit"]);
    for figure in &figures {
        table.add_row([figure.what, &figure.measured, &figure.limit, &figure.ratio]);
    }
    writeln!(out, "{table}").context("stdout")
}

/// Width of the table: fits most terminals, and a log.
const TABLE_COLUMNS: u16 = 120;

fn progress(what: &str) -> Result<()> {
    say(&format!("measuring: {what} …"))
}

/// A word to whoever waits.
pub(crate) fn say(what: &str) -> Result<()> {
    writeln!(std::io::stderr().lock(), "{what}").context("stderr")
}
