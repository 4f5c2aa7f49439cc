//! How a check of a doctor came out: the bridge's for a phone, the supervisor's for a Mac.

use serde::{Deserialize, Serialize};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it must be.
    Ok,
    /// Worth knowing, or changing; messages are sent all the same.
    Warning,
    /// Nothing is sent like this.
    Error,
    /// Not looked at; what was found says why.
    Skipped,
}
