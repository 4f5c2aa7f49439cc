//! An export of a large chat.db, in both formats, beside a bare SELECT and, where it is installed,
//! beside imessage-exporter's text export of the same file. All write to the same disk.
//!
//! imessage-exporter is run as a program, and is no part of this workspace.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::program;

use crate::Figure;
use crate::percentile::per_second;
use crate::read::select_alone;

/// Each is measured so often, in turns, and the fastest counts: other users of the machine only ever
/// make one slower.
const TURNS: usize = 2;

/// What an exporter took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    rate: f64,
    peak_kib: u64,
}

impl Cost {
    fn of(rows: usize, (took, peak_kib): (Duration, u64)) -> Self {
        Self { rate: per_second(rows, took), peak_kib }
    }

    fn better(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| Self {
            rate: self.rate.max(other.rate),
            peak_kib: self.peak_kib.max(other.peak_kib),
        })
    }

    fn text(self) -> String {
        format!("{:.0} messages/s, peak {:.1} MiB", self.rate, mib(self.peak_kib))
    }
}

#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a figure for people")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The two databases: what people have, and plain texts of which a third is only in `attributedBody`.
const MADE: [(&str, &str, &[&str]); 2] = [
    ("export: all kinds, txt", "export: all kinds, jsonl", &["--mix"]),
    (
        "export: plain texts, a third with text NULL, txt",
        "export: plain texts, a third with text NULL, jsonl",
        &["--null-text-every", "3"],
    ),
];

pub(crate) fn measure(rows: u32, exporter: Option<&Path>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (txt, jsonl, how) in MADE {
        let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").context("folder")?;
        let db = dir.path().join("chat.db");
        let path = db.display().to_string();
        let count = rows.to_string();
        let mut args = vec!["generate", "--db", &path, "--macos", "15", "--messages", &count];
        args.extend(how);
        program::run("switchboard-sandbox", &args, &[])?;
        figures.extend(compare(dir.path(), &db, [("txt", txt), ("jsonl", jsonl)], exporter)?);
    }
    Ok(figures)
}

fn compare(
    dir: &Path,
    db: &Path,
    formats: [(&'static str, &'static str); 2],
    exporter: Option<&Path>,
) -> Result<Vec<Figure>> {
    // Once to have the file in memory, so that all are measured without reading the disk.
    let (rows, mut bare) = select_alone(db)?;
    let mut own = [None; 2];
    let mut other = None;
    for _ in 0..TURNS {
        bare = select_alone(db)?.1.max(bare);
        for ((format, _), best) in formats.iter().zip(&mut own) {
            let cost = Cost::of(rows, export(dir, db, format)?);
            *best = Some(cost.better(*best));
        }
        if let Some(exporter) = exporter {
            let cost = Cost::of(rows, foreign(dir, db, exporter)?);
            other = Some(cost.better(other));
        }
    }
    let beside = other.map_or_else(
        || "imessage-exporter is not installed".to_owned(),
        |other: Cost| format!("imessage-exporter's txt {}", other.text()),
    );
    Ok(formats
        .into_iter()
        .zip(own.into_iter().flatten())
        .map(|((_, what), own)| {
            let times = other.map_or_else(String::new, |other| {
                format!(
                    " ({:.1} times imessage-exporter, {:.1} % of its memory)",
                    own.rate / other.rate,
                    mib(own.peak_kib) / mib(other.peak_kib) * 100.0
                )
            });
            Figure::new(
                what,
                format!("{}{times}", own.text()),
                format!("bare SELECT {bare:.0} rows/s; {beside}"),
                Some(own.rate / bare),
            )
        })
        .collect())
}

fn export(dir: &Path, db: &Path, format: &str) -> Result<(Duration, u64)> {
    let out = dir.join("export");
    let (db, to) = (db.display().to_string(), out.display().to_string());
    let args = ["export", "--quiet", "--db", &db, "--format", format, "--out", &to];
    let cost = program::time_and_memory(&program::path_of("switchboard-bridge")?, &args)?;
    ensure!(out.metadata().context("the export")?.len() > 0, "the export is empty");
    std::fs::remove_file(&out).context("the export")?;
    Ok(cost)
}

fn foreign(dir: &Path, db: &Path, exporter: &Path) -> Result<(Duration, u64)> {
    let out = dir.join("foreign");
    let (db, to) = (db.display().to_string(), out.display().to_string());
    let args = ["-f", "txt", "-c", "disabled", "-a", "macOS", "-p", &db, "-o", &to];
    let cost = program::time_and_memory(exporter, &args)?;
    ensure!(out.read_dir().context("its export")?.next().is_some(), "its export is empty");
    std::fs::remove_dir_all(&out).context("its export")?;
    Ok(cost)
}
