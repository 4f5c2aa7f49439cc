//! What a bridge uses, against what it may use.
//!
//! macOS has no cgroups, and `setrlimit(RLIMIT_AS)` succeeds there without any effect, so memory is looked at from
//! outside, and with it the time on the processors. The limits decide purely; the looking is one call.

use std::collections::VecDeque;
use std::time::Duration;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// How often a bridge is looked at, at most: a leak grows over minutes, a look costs a system call per bridge.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(15);
/// And at least, however short the time is over which its share of a processor is taken.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(500);

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
pub(crate) enum Use {
    /// Within both limits.
    Fine,
    /// Above the soft limit.
    High,
    /// Above the hard limit.
    TooHigh,
}

/// What a bridge may have of one processor, in percent, over a while: one that reads years of messages for the first
/// time has reason to work for minutes, one that never stops has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuLimits {
    /// Above it the bridge is drained and restarted.
    pub(crate) soft_percent: Option<u64>,
    /// Above it the bridge is killed and restarted.
    pub(crate) hard_percent: Option<u64>,
    /// Over so long.
    pub(crate) over: Duration,
}

/// The time that one process has had of the processors, as far back as its limits ask.
#[derive(Debug, Default)]
pub(crate) struct CpuHistory {
    pid: i32,
    /// (when it was looked, what it had had by then), the oldest first.
    seen: VecDeque<(Duration, Duration)>,
}

impl CpuHistory {
    /// Takes in what a process has had by `now`; its share in percent over as long as the limits ask, once it has run for
    /// that long.
    pub(crate) fn saw(
        &mut self,
        pid: i32,
        used: Duration,
        now: Duration,
        over: Duration,
    ) -> Option<u64> {
        if self.pid != pid {
            *self = Self { pid, seen: VecDeque::new() };
        }
        self.seen.push_back((now, used));
        // The newest of those that are old enough is what is compared with.
        while self.seen.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= over) {
            self.seen.pop_front();
        }
        let (at, before) = *self.seen.front()?;
        let passed = now.saturating_sub(at);
        if passed < over || passed.is_zero() {
            return None;
        }
        let percent = used.saturating_sub(before).as_millis() * 100 / passed.as_millis().max(1);
        u64::try_from(percent).ok()
    }
}

impl CpuLimits {
    /// How often to look: twice within the time that a share is taken over, or what is above it would be seen late.
    pub(crate) fn look_every(self) -> Duration {
        (self.over / 2).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX)
    }

    /// Judges a share.
    pub(crate) fn judge(self, percent: u64) -> Use {
        judge(percent, self.soft_percent, self.hard_percent)
    }
}

fn judge(is: u64, soft: Option<u64>, hard: Option<u64>) -> Use {
    if hard.is_some_and(|hard| is > hard) {
        Use::TooHigh
    } else if soft.is_some_and(|soft| is > soft) {
        Use::High
    } else {
        Use::Fine
    }
}

impl MemoryLimits {
    /// Judges a use.
    pub(crate) fn judge(self, bytes: u64) -> Use {
        judge(bytes, self.soft, self.hard)
    }
}

/// Resident memory of one process in bytes, and the time that it has had of the processors; `None` when it is gone.
pub(crate) fn look(pid: i32) -> Option<(u64, Duration)> {
    let pid = Pid::from_u32(u32::try_from(pid).ok()?);
    let mut system = System::new().ok()?;
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        true,
        ProcessRefreshKind::nothing().with_memory().with_cpu(),
    );
    let process = system.process(pid)?;
    Some((process.memory(), Duration::from_millis(process.accumulated_cpu_time())))
}

/// Where a process comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Born {
    /// When it began, in whole seconds since 1970.
    pub(crate) at_s: i64,
    /// Who is its parent now; whoever is left alone is given another one.
    pub(crate) parent: Option<u32>,
}

/// Where one process comes from; `None` when it is gone.
pub(crate) fn born(pid: u32) -> Option<Born> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new().ok()?;
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        true,
        ProcessRefreshKind::nothing(),
    );
    let process = system.process(pid)?;
    Some(Born {
        at_s: i64::try_from(process.start_time()).ok()?,
        parent: process.parent().map(Pid::as_u32),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_judge_by_the_higher_one_first() {
        let both = MemoryLimits { soft: Some(10), hard: Some(20) };
        let none = MemoryLimits { soft: None, hard: None };
        let table = [
            (both, 10, Use::Fine),
            (both, 11, Use::High),
            (both, 20, Use::High),
            (both, 21, Use::TooHigh),
            (none, u64::MAX, Use::Fine),
        ];
        for (limits, bytes, wanted) in table {
            assert_eq!(limits.judge(bytes), wanted, "{limits:?} {bytes}");
        }
    }

    #[test]
    fn a_bridge_is_looked_at_twice_within_the_time_of_its_share() {
        let every = |over| {
            CpuLimits { soft_percent: None, hard_percent: None, over: Duration::from_secs(over) }
                .look_every()
        };
        assert_eq!(
            [1, 10, 30, 300].map(every).map(|every| every.as_millis()),
            [500, 5_000, 15_000, 15_000]
        );
        assert_eq!(every(0), LOOK_EVERY_MIN);
    }

    #[test]
    fn our_own_memory_is_seen_and_a_dead_process_is_not() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(look(own).is_some_and(|(bytes, _)| bytes > 100_000));
        assert_eq!(look(i32::MAX), None);
    }

    #[test]
    fn the_time_that_a_process_has_had_grows_with_its_work() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (_, before) = look(own).unwrap();
        let mut sum = 0_u64;
        while look(own).unwrap().1 == before {
            sum = std::hint::black_box((0..100_000).fold(sum, u64::wrapping_add));
        }
    }

    #[test]
    fn a_share_is_of_the_last_while_and_of_one_process() {
        let seconds = Duration::from_secs;
        let over = seconds(60);
        let mut history = CpuHistory::default();
        let mut shares = Vec::new();
        // Half a minute of hard work, then none; looked at every 15 s.
        for n in 0..9_u64 {
            shares.push(history.saw(1, seconds((n * 15).min(30)), seconds(n * 15), over));
        }
        let some = |percent| [Some(percent)];
        let wanted = [vec![None; 4], vec![Some(50), Some(25)], some(0).repeat(3)].concat();
        assert_eq!(shares, wanted);
        // Another process under the same phone begins anew.
        assert_eq!(history.saw(2, seconds(500), seconds(135), over), None);
        assert_eq!(history.saw(2, seconds(500 + 90), seconds(195), over), Some(150));
        let limits = CpuLimits { soft_percent: Some(90), hard_percent: Some(150), over };
        let table = [(90, Use::Fine), (91, Use::High), (150, Use::High), (151, Use::TooHigh)];
        for (percent, wanted) in table {
            assert_eq!(limits.judge(percent), wanted, "{percent}");
        }
    }
}
