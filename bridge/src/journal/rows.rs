//! A send as a row.

use std::path::PathBuf;
use std::str::FromStr;

use protocol::pipe::{Attempt, OutboundAttachment};
use protocol::{Channel, Class, Reason, Recipient, UnixMs};
use rusqlite::types::Type;
use rusqlite::{Row, Transaction, named_params, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Heard;
use crate::clock::Now;
use crate::osascript::Failure;
use crate::outbound::{Phase, SendRecord, Stage, Told, Wanted, Work};

pub(super) const SELECT_LIVE: &str = "
    SELECT message, attempt, state, told_seq, told, since_ms, epoch, class, recipient, text, route,
           channel_index, start_before_ms, accepted_ms, failed, mark, row_id, guid, stage, told_unknown,
           files, parts_done
    FROM sends WHERE state <> 'final' ORDER BY accepted_ms, message, attempt";

#[derive(Serialize, Deserialize)]
struct FailedJson {
    channel: Channel,
    reason: Reason,
    detail: String,
    retryable: bool,
}

#[derive(Serialize, Deserialize)]
struct WantedJson {
    #[serde(flatten)]
    file: OutboundAttachment,
    /// A path that is not Unicode cannot be one of ours: names are made of what URLs and commands hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    staged: Option<PathBuf>,
}

pub(super) fn to_json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| bad(column, error))
}

/// SQLite's integers are signed; our counters never come near the difference.
pub(super) fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|error| bad(column, error))
}

fn bad(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

fn word<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| bad(column, error))
}

pub(super) fn put_live(
    tx: &Transaction<'_>,
    send: &SendRecord,
    work: &Work,
    phase: &Phase,
    now: Now,
) -> rusqlite::Result<()> {
    let (state, since, mark) = match phase {
        Phase::Accepted => ("accepted", work.accepted_at, None),
        Phase::Started { mark, at } => ("started", *at, Some(*mark)),
        Phase::Handed { mark, at } => ("handed", *at, Some(*mark)),
        Phase::Doubt { mark, at } => ("doubt", *at, Some(*mark)),
        Phase::Found { at, .. } => ("found", *at, None),
    };
    let (row_id, guid, stage, told_unknown) = match phase {
        Phase::Found { rowid, guid, stage, told_unknown, .. } => {
            (Some(*rowid), Some(guid.as_str()), Some(stage_word(*stage)), Some(*told_unknown))
        }
        Phase::Accepted | Phase::Started { .. } | Phase::Handed { .. } | Phase::Doubt { .. } => {
            (None, None, None, None)
        }
    };
    let failed = work
        .failed
        .as_ref()
        .map(|(channel, failure)| {
            to_json(&FailedJson {
                channel: *channel,
                reason: failure.reason,
                detail: failure.detail.clone(),
                retryable: failure.retryable,
            })
        })
        .transpose()?;
    let files = (!work.files.is_empty())
        .then(|| {
            let files = work.files.iter().map(|wanted| WantedJson {
                file: wanted.file.clone(),
                staged: wanted.staged.clone(),
            });
            to_json(&files.collect::<Vec<_>>())
        })
        .transpose()?;
    let index = i64::try_from(work.index).unwrap_or(i64::MAX);
    tx.prepare_cached(
        "INSERT INTO sends (message, attempt, state, told_seq, told, since_ms, boot_ms, epoch, class,
             recipient, text, route, channel_index, start_before_ms, accepted_ms, failed, mark, row_id,
             guid, stage, told_unknown, files, parts_done)
         VALUES (:message, :attempt, :state, :told_seq, :told, :since, :boot, :epoch, :class, :recipient,
             :text, :route, :index, :start_before, :accepted, :failed, :mark, :row_id, :guid, :stage,
             :told_unknown, :files, :done)
         ON CONFLICT (message, attempt) DO UPDATE SET
             state = excluded.state, told_seq = excluded.told_seq, told = excluded.told,
             since_ms = excluded.since_ms, boot_ms = excluded.boot_ms,
             channel_index = excluded.channel_index, failed = excluded.failed, mark = excluded.mark,
             row_id = excluded.row_id, guid = excluded.guid, stage = excluded.stage,
             told_unknown = excluded.told_unknown, files = excluded.files,
             parts_done = excluded.parts_done",
    )?
    .execute(named_params! {
        ":message": send.attempt.message.as_str(),
        ":attempt": send.attempt.attempt,
        ":state": state,
        ":told_seq": int(send.told.seq),
        ":told": to_json(&send.told.fact)?,
        ":since": since.0,
        ":boot": now.boot_ms(),
        ":epoch": int(work.epoch),
        ":class": work.class.as_str(),
        ":recipient": to_json(&work.to)?,
        ":text": work.text,
        ":route": to_json(&work.route)?,
        ":index": index,
        ":start_before": work.start_before.0,
        ":accepted": work.accepted_at.0,
        ":failed": failed,
        ":mark": mark,
        ":row_id": row_id,
        ":guid": guid,
        ":stage": stage,
        ":told_unknown": told_unknown,
        ":files": files,
        ":done": i64::try_from(work.done).unwrap_or(i64::MAX),
    })
    .map(drop)
}

/// Neither text nor recipient nor files outlive the send.
pub(super) fn put_final(
    tx: &Transaction<'_>,
    send: &SendRecord,
    at: UnixMs,
    now: Now,
) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT INTO sends (message, attempt, state, told_seq, told, since_ms, boot_ms)
         VALUES (?1, ?2, 'final', ?3, ?4, ?5, ?6)
         ON CONFLICT (message, attempt) DO UPDATE SET
             state = 'final', told_seq = excluded.told_seq, told = excluded.told,
             since_ms = excluded.since_ms, boot_ms = excluded.boot_ms, recipient = NULL, text = NULL,
             files = NULL",
    )?
    .execute(params![
        send.attempt.message.as_str(),
        send.attempt.attempt,
        int(send.told.seq),
        to_json(&send.told.fact)?,
        at.0,
        now.boot_ms(),
    ])
    .map(drop)
}

pub(super) fn put_told(
    tx: &Transaction<'_>,
    attempt: &Attempt,
    told: &Told,
) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "UPDATE sends SET told_seq = ?3, told = ?4 WHERE message = ?1 AND attempt = ?2",
    )?
    .execute(params![
        attempt.message.as_str(),
        attempt.attempt,
        int(told.seq),
        to_json(&told.fact)?
    ])
    .map(drop)
}

/// Of `guid, print, seen`.
pub(super) fn heard(row: &Row<'_>) -> rusqlite::Result<Heard> {
    let seen: Option<String> = row.get(2)?;
    Ok(Heard {
        guid: row.get(0)?,
        print: row.get::<_, Option<i64>>(1)?.map(i64::cast_unsigned),
        // What cannot be read is told once more rather than never.
        seen: seen.and_then(|seen| serde_json::from_str(&seen).ok()),
    })
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<SendRecord> {
    let attempt = Attempt { message: word(row, 0)?, attempt: row.get(1)? };
    let told = Told { seq: count(row, 3)?, fact: json(row, 4)? };
    let since = UnixMs(row.get(5)?);
    let state: String = row.get(2)?;
    let phase = match state.as_str() {
        "accepted" => Phase::Accepted,
        "started" => Phase::Started { mark: row.get(15)?, at: since },
        "handed" => Phase::Handed { mark: row.get(15)?, at: since },
        "doubt" => Phase::Doubt { mark: row.get(15)?, at: since },
        "found" => Phase::Found {
            rowid: row.get(16)?,
            guid: row.get(17)?,
            at: since,
            stage: stage(row, 18)?,
            told_unknown: row.get(19)?,
        },
        _ => return Err(bad(2, UnknownState(state))),
    };
    let index: i64 = row.get(11)?;
    let failed: Option<String> = row.get(14)?;
    let failed = failed
        .map(|text| serde_json::from_str::<FailedJson>(&text).map_err(|error| bad(14, error)))
        .transpose()?
        .map(|failed| {
            let failure = Failure {
                reason: failed.reason,
                detail: failed.detail,
                retryable: failed.retryable,
            };
            (failed.channel, failure)
        });
    let work = Work {
        epoch: count(row, 6)?,
        class: word::<Class>(row, 7)?,
        to: json::<Recipient>(row, 8)?,
        text: row.get(9)?,
        files: files(row, 20)?,
        // None in a journal of before there were parts.
        done: usize::try_from(row.get::<_, Option<i64>>(21)?.unwrap_or(0)).unwrap_or(0),
        route: json(row, 10)?,
        index: usize::try_from(index).unwrap_or(usize::MAX),
        start_before: UnixMs(row.get(12)?),
        accepted_at: UnixMs(row.get(13)?),
        failed,
    };
    Ok(SendRecord::live(attempt, told, work, phase))
}

fn files(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<Wanted>> {
    let Some(text) = row.get::<_, Option<String>>(column)? else { return Ok(Vec::new()) };
    let files: Vec<WantedJson> = serde_json::from_str(&text).map_err(|error| bad(column, error))?;
    Ok(files.into_iter().map(|WantedJson { file, staged }| Wanted { file, staged }).collect())
}

#[derive(Debug, thiserror::Error)]
#[error("unknown word {0:?}")]
struct UnknownState(String);

fn stage_word(stage: Stage) -> &'static str {
    match stage {
        Stage::Pending => "pending",
        Stage::Sent => "sent",
        Stage::Delivered => "delivered",
    }
}

fn stage(row: &Row<'_>, column: usize) -> rusqlite::Result<Stage> {
    let text: String = row.get(column)?;
    match text.as_str() {
        "pending" => Ok(Stage::Pending),
        "sent" => Ok(Stage::Sent),
        "delivered" => Ok(Stage::Delivered),
        _ => Err(bad(column, UnknownState(text))),
    }
}
