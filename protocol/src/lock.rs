//! The file by which one bridge holds a phone, and what it says of its holder.
//!
//! The lock itself is the kernel's (`flock`) and ends with the process. What is written in the file tells a supervisor whom to
//! end that holds it and has nobody left to end it: a bridge that hangs, and outlives the supervisor that started it.

use serde::{Deserialize, Serialize};

use crate::UnixMs;

/// Its name in a bridge's `state_dir`.
pub const FILE: &str = "bridge.lock";

/// Who holds the lock; true only while it is held, for the file stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its parent's when it began: whoever has another one now is an orphan.
    pub parent: u32,
    /// When it began, by the wall clock; a process that has got the same id since then began later.
    pub started_at: UnixMs,
}
