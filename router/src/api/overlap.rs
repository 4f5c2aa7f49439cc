//! How long a secret still works beside the one that takes its place.

use serde_json::Value;

use super::fields::Fields;
use crate::error::ApiError;

/// When nobody says, in seconds: a day, to roll the new one out.
const USUAL_S: u32 = 86_400;

/// What a request asks for, in seconds, of which there may be at most so many.
pub(super) fn asked(body: Value, most_s: u32) -> Result<u32, ApiError> {
    let mut fields = Fields::new(body)?;
    let overlap_s = fields.number("overlap_seconds", 0..=most_s).unwrap_or(USUAL_S);
    fields.finish()?;
    Ok(overlap_s)
}
