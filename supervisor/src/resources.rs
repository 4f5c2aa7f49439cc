//! What a bridge uses, against what it may use.
//!
//! macOS has no cgroups, and `setrlimit(RLIMIT_AS)` succeeds there without any effect, so memory is looked at from
//! outside. The limits decide purely; the looking is one call.

use std::time::Duration;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// How often memory is looked at: a leak grows over minutes, a look costs a system call per bridge.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(15);

/// What a bridge may use, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryLimits {
    /// Above it the bridge is drained and restarted.
    pub(crate) soft: Option<u64>,
    /// Above it the bridge is killed and restarted.
    pub(crate) hard: Option<u64>,
}

/// What the limits say about a use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Within both limits.
    Fine,
    /// Above the soft limit.
    High,
    /// Above the hard limit.
    TooHigh,
}

impl MemoryLimits {
    /// Judges a use.
    pub(crate) fn judge(self, bytes: u64) -> Memory {
        if self.hard.is_some_and(|hard| bytes > hard) {
            Memory::TooHigh
        } else if self.soft.is_some_and(|soft| bytes > soft) {
            Memory::High
        } else {
            Memory::Fine
        }
    }
}

/// Resident memory of one process in bytes; `None` when it is gone.
pub(crate) fn resident(pid: i32) -> Option<u64> {
    let pid = Pid::from_u32(u32::try_from(pid).ok()?);
    let mut system = System::new().ok()?;
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        true,
        ProcessRefreshKind::nothing().with_memory(),
    );
    system.process(pid).map(sysinfo::Process::memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_judge_by_the_higher_one_first() {
        let both = MemoryLimits { soft: Some(10), hard: Some(20) };
        let none = MemoryLimits { soft: None, hard: None };
        let table = [
            (both, 10, Memory::Fine),
            (both, 11, Memory::High),
            (both, 20, Memory::High),
            (both, 21, Memory::TooHigh),
            (none, u64::MAX, Memory::Fine),
        ];
        for (limits, bytes, wanted) in table {
            assert_eq!(limits.judge(bytes), wanted, "{limits:?} {bytes}");
        }
    }

    #[test]
    fn our_own_memory_is_seen_and_a_dead_process_is_not() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(resident(own).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident(i32::MAX), None);
    }
}
