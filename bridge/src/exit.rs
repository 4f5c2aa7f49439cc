//! Exit codes, by `sysexits.h`: what a supervisor decides by.

/// How a run of the bridge ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to stop, and did.
    Asked,
    /// Try again: the lock is held, the disk is full, the journal cannot be written.
    TryAgain,
    /// A permission is missing on this Mac; trying again soon does not help.
    NoPermission,
    /// The configuration is wrong.
    BadConfig,
    /// A check of `doctor` failed.
    Unhealthy,
}

impl Exit {
    /// The process's exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Asked => 0,
            Self::Unhealthy => 69,
            Self::TryAgain => 75,
            Self::NoPermission => 77,
            Self::BadConfig => 78,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
