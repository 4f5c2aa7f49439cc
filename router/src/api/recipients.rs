//! Recipients on their way into a batch: a body that may be far longer than any other, read as it comes and never held.
//!
//! Rows are written page by page behind those that the batch has, where they do not count. The last step, one small
//! transaction, lets them count, together with the answer that is kept under the idempotency key. So a chunk is in a
//! batch whole or not at all, however its connection or the router ends; what is left behind is swept away before the
//! next chunk, and when the batch is started.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use protocol::api::{
    AddedRecipients, Batch, BatchState, CreateRecipient, FieldError, Problem, RowError,
};
use protocol::{BatchId, Recipient, TenantId, limits};

use super::batches::visible;
use super::fields::unfit;
use super::messages::unreachable;
use super::pages::Query;
use super::rows::{Cells, Fault, Format, Row, Rows};
use super::{PathId, templates};
use crate::auth::{Caller, Scope};
use crate::batches::PAGE_ROWS;
use crate::error::{ApiError, Code};
use crate::idempotency::{Reply, Streamed, respond};
use crate::server::AppState;
use crate::store::StoreError;
use crate::store::batches::{self, Chunk, NewRecipient};
use crate::template::Template;

/// Recipients of one batch.
const RECIPIENTS_MAX: u64 = 1_000_000;
/// Rows that cannot be used of which one answer says what is wrong.
const ERRORS_MAX: usize = 100;
/// How long the next bit of a body may take.
const BIT_WITHIN: Duration = Duration::from_secs(15);

/// Add recipients to a batch
///
/// As CSV (a header with `to` and the names of variables, then a line a row), as lines of JSON
/// (`application/x-ndjson`, each like an entry of the array), or as a JSON array. The
/// body may be long, up to 256 MiB and a million recipients; it must be sent within about 80 seconds, so send a long list
/// in several chunks. A chunk is added whole or, when its connection breaks, not at all. Rows that cannot be used are told
/// by line and left out, or with `on_invalid=refuse` the whole chunk is refused. Who is in the batch already is counted
/// as a duplicate and left out. An empty cell of CSV is a variable that is not given.
#[utoipa::path(post, path = "/v1/batches/{id}/recipients", tag = "batches", security(("api_key" = [])),
    request_body(content(
        (Vec<CreateRecipient> = "application/json"),
        (String = "text/csv", example = "to,name\n+12025550143,Anna\n"))),
    params(
        ("id" = String, Path, description = "The batch's id."),
        ("on_invalid" = Option<String>, Query, description = "`skip`, as when left out: rows that cannot be used are left out. `refuse`: nothing is added when there is one.")),
    responses(
        (status = 200, description = "They are added.", body = AddedRecipients),
        (status = 400, description = "The body cannot be read as what it is announced as, or it ended too early; nothing is added.", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "No valid key.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may not send.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such batch.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The batch is no draft any more, has too many recipients, or another chunk is being added; nothing is added.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too long; nothing is added.", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not announced as CSV, lines of JSON or JSON.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Parameters are wrong, or rows are and `on_invalid` is `refuse`; nothing is added.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn add(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    PathId(id): PathId<BatchId>,
    RawQuery(raw): RawQuery,
    body: Body,
) -> Result<Response, ApiError> {
    caller.needs(Scope::MessagesWrite)?;
    let mut query = Query::new(raw.as_deref());
    let on_invalid = query.one_of("on_invalid", "unknown_word", &["skip", "refuse"]);
    query.finish()?;
    let route = format!("POST /v1/batches/{id}/recipients");
    let once = Streamed::new(&app, caller.idempotency_scope(), route, &headers)?;
    let look = async || {
        let (caller, id) = (caller.clone(), id.clone());
        let found = app.store.read(move |tx| visible(tx, &caller, &id)).await?;
        found.ok_or_else(ApiError::not_found)
    };
    look().await?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let format = Format::of(content_type.unwrap_or_default()).ok_or_else(|| {
        ApiError::new(Code::UnsupportedMediaType)
            .detail("Send Content-Type: text/csv, application/x-ndjson or application/json.")
    })?;
    let mut body = Bits::new(body);
    if let Some(kept) = once.kept(&app).await? {
        // Whether it is the same body is known at its end.
        while body.next(&app).await?.is_some() {}
        return kept.answer(body.fingerprint());
    }
    let _alone = app.in_flight.alone(&format!("recipients of {id}")).ok_or_else(|| {
        ApiError::new(Code::BatchState)
            .detail("Another chunk is being added; wait for its answer.")
            .retry_after(1)
    })?;
    // Not before: the chunk that had it until now has moved the place behind which this one goes.
    let batch = look().await?;
    if batch.state != BatchState::Draft {
        return Err(started(batch.state));
    }
    sweep(&app, &caller.tenant, &id).await?;
    let mut intake = Intake::new(&app, &caller.tenant, batch).await?;
    let added = match intake.take(&app, Rows::new(format), &mut body).await {
        Ok(()) if on_invalid == Some("refuse") && intake.chunk.invalid > 0 => Err(intake.refusal()),
        Ok(()) => intake.count_in(&app, once, body.fingerprint()).await,
        Err(error) => Err(error),
    };
    if added.is_err() {
        // Nothing of it counts; the rest of the sweeping, where it fails, is the next chunk's.
        drop(sweep(&app, &caller.tenant, &id).await);
    }
    added
}

fn started(state: BatchState) -> ApiError {
    ApiError::new(Code::BatchState)
        .detail(format!("Its state is {state}; recipients are added to a draft."))
}

/// Deletes what uploads have left that did not end.
pub(super) async fn sweep(
    app: &AppState,
    tenant: &TenantId,
    id: &BatchId,
) -> Result<(), StoreError> {
    loop {
        let (tenant, id) = (tenant.clone(), id.clone());
        if app.store.write(move |tx| batches::sweep(tx, &tenant, &id)).await? == 0 {
            return Ok(());
        }
    }
}

/// A body as it comes, with the hash of what has come.
struct Bits {
    stream: axum::body::BodyDataStream,
    hash: Context,
}

impl Bits {
    fn new(body: Body) -> Self {
        Self { stream: body.into_data_stream(), hash: Context::new(&SHA256) }
    }

    async fn next(&mut self, app: &AppState) -> Result<Option<axum::body::Bytes>, ApiError> {
        let bit = tokio::select! {
            bit = tokio::time::timeout(BIT_WITHIN, self.stream.next()) => bit,
            () = app.stop.cancelled() => {
                return Err(ApiError::new(Code::Unavailable).detail("The router is stopping; nothing was added."));
            }
        };
        match bit {
            Err(_elapsed) => Err(ApiError::new(Code::BodyTooSlow)),
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => {
                self.hash.update(&bytes);
                Ok(Some(bytes))
            }
            Ok(Some(Err(error))) => Err(cut(&error)),
        }
    }

    fn fingerprint(self) -> [u8; 32] {
        let mut out = [0; 32];
        let digest = self.hash.finish();
        out.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        out
    }
}

/// What a body that ends in an error is: longer than the limit, or broken off.
fn cut(error: &axum::Error) -> ApiError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return ApiError::new(Code::BodyTooLarge);
        }
        cause = error.source();
    }
    ApiError::new(Code::MalformedJson).detail("The body ended too early; nothing was added.")
}

/// One chunk on its way.
struct Intake {
    tenant: TenantId,
    batch: Batch,
    template: Template,
    defaults: std::collections::BTreeMap<String, String>,
    chunk: Chunk,
    errors: Vec<RowError>,
    page: Vec<NewRecipient>,
}

impl Intake {
    async fn new(app: &AppState, tenant: &TenantId, batch: Batch) -> Result<Self, ApiError> {
        let (whose, which) = (tenant.clone(), batch.clone());
        let (template, mut defaults) =
            app.store.read(move |tx| batches::wording(tx, &whose, &which)).await?;
        defaults.extend(batch.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        let chunk = Chunk { before: batch.recipients, after: batch.recipients, ..Chunk::default() };
        let (errors, page) = (Vec::new(), Vec::new());
        Ok(Self { tenant: tenant.clone(), batch, template, defaults, chunk, errors, page })
    }

    /// Reads the body to its end and writes its rows where they do not count yet.
    async fn take(
        &mut self,
        app: &AppState,
        mut rows: Rows,
        body: &mut Bits,
    ) -> Result<(), ApiError> {
        let broken = |broken: super::rows::Broken| {
            ApiError::new(Code::MalformedBody).detail(format!("{broken} Nothing was added."))
        };
        let mut out = Vec::new();
        while let Some(bytes) = body.next(app).await? {
            rows.feed(&bytes, &mut out).map_err(broken)?;
            self.rows(app, &mut out).await?;
        }
        rows.finish(&mut out).map_err(broken)?;
        self.rows(app, &mut out).await?;
        self.write(app).await
    }

    async fn rows(&mut self, app: &AppState, rows: &mut Vec<Row>) -> Result<(), ApiError> {
        let page = usize::try_from(PAGE_ROWS).unwrap_or(usize::MAX);
        for Row { line, read } in rows.drain(..) {
            match read.and_then(|cells| self.checked(cells)) {
                Ok(recipient) => self.page.push(recipient),
                Err(fault) => {
                    self.chunk.invalid += 1;
                    if self.errors.len() < ERRORS_MAX {
                        let Fault { field, code, detail } = fault;
                        self.errors.push(RowError { line, field, code: code.to_owned(), detail });
                    }
                }
            }
            if self.page.len() >= page {
                self.write(app).await?;
            }
        }
        Ok(())
    }

    async fn write(&mut self, app: &AppState) -> Result<(), ApiError> {
        let rows = std::mem::take(&mut self.page);
        if rows.is_empty() {
            return Ok(());
        }
        let all = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        let (tenant, id, from) = (self.tenant.clone(), self.batch.id.clone(), self.chunk.after);
        let last = app.store.write(move |tx| batches::add(tx, &tenant, &id, from, &rows)).await?;
        self.chunk.duplicates += all.saturating_sub(last.saturating_sub(from));
        self.chunk.after = last;
        if last > RECIPIENTS_MAX {
            let detail =
                format!("A batch has at most {RECIPIENTS_MAX} recipients; nothing was added.");
            return Err(ApiError::new(Code::LimitReached).detail(detail));
        }
        Ok(())
    }

    /// A row that can become a message, with what its text will be tried out.
    fn checked(&self, cells: Cells) -> Result<NewRecipient, Fault> {
        let Cells { to, variables } = cells;
        let recipient: Recipient = to
            .parse()
            .map_err(|error| Fault::new("to", "invalid_recipient", format!("It is {error}.")))?;
        if let Some((code, detail)) = unreachable(&recipient, self.batch.channel) {
            return Err(Fault::new("to", code, detail));
        }
        for (name, value) in &variables {
            if let Some((code, detail)) = unfit(value, &(0..=limits::VARIABLE_CHARS_MAX)) {
                return Err(Fault::new(format!("variables/{name}"), code, detail));
            }
        }
        match self.template.render(&self.defaults, &variables) {
            Ok(_text) => Ok(NewRecipient { recipient, variables }),
            Err(lacks) => {
                let told =
                    lacks.first().map(|lack| templates::told(lack, self.template.names(), ""));
                let FieldError { pointer, detail, .. } = told.unwrap_or(FieldError {
                    pointer: String::new(),
                    code: String::new(),
                    detail: String::new(),
                });
                let code = lacks.first().map_or("invalid", crate::template::Lack::code);
                Err(Fault::new(pointer.trim_start_matches('/'), code, detail))
            }
        }
    }

    /// Everything that is wrong, where that is a reason to refuse it all.
    fn refusal(&self) -> ApiError {
        let errors = self.errors.iter().map(|error| FieldError {
            pointer: format!("line {}: {}", error.line, error.field),
            code: error.code.clone(),
            detail: error.detail.clone(),
        });
        let detail = format!("{} rows cannot be used; nothing was added.", self.chunk.invalid);
        ApiError::invalid(errors.collect()).detail(detail)
    }

    async fn count_in(
        self,
        app: &AppState,
        once: Streamed,
        fingerprint: [u8; 32],
    ) -> Result<Response, ApiError> {
        let Self { tenant, batch, chunk, errors, .. } = self;
        let now = app.clock.now();
        let answer = AddedRecipients {
            added: chunk.after.saturating_sub(chunk.before),
            duplicates: chunk.duplicates,
            invalid: chunk.invalid,
            recipients: chunk.after,
            errors,
        };
        let reply = app
            .store
            .transact(move |tx| {
                if let Some(given) = once.kept_by_now(tx, now)? {
                    return Ok(Err(given));
                }
                if !batches::count_in(tx, &tenant, &batch.id, chunk, now)? {
                    let now =
                        batches::get(tx, &tenant, &batch.id)?.ok_or_else(ApiError::not_found)?;
                    return Err(started(now.0.state));
                }
                let reply = Reply::new(StatusCode::OK, &answer)?;
                once.keep(tx, &reply, fingerprint, now)?;
                Ok(Ok(reply))
            })
            .await?;
        match reply {
            Ok(reply) => Ok(respond(reply)),
            Err(given) => given.answer(fingerprint),
        }
    }
}
