//! The schema of each macOS version, and the functions that its triggers call.

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;

/// A macOS whose chat.db the sandbox can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MacOs {
    /// 12
    Monterey,
    /// 13
    Ventura,
    /// 14
    Sonoma,
    /// 15
    Sequoia,
    /// 26
    Tahoe,
    /// 27
    V27,
}

/// Not the number of a macOS version that is known.
#[derive(Debug, thiserror::Error)]
#[error("no macOS {0}: 12, 13, 14, 15, 26 or 27")]
pub struct UnknownMacOs(String);

/// Divides each file of `schema/`.
const MARK: &str = "-- indexes and triggers";

impl MacOs {
    /// All, from old to new.
    pub const ALL: [Self; 6] =
        [Self::Monterey, Self::Ventura, Self::Sonoma, Self::Sequoia, Self::Tahoe, Self::V27];

    /// The number that Apple gives it.
    pub const fn number(self) -> u8 {
        match self {
            Self::Monterey => 12,
            Self::Ventura => 13,
            Self::Sonoma => 14,
            Self::Sequoia => 15,
            Self::Tahoe => 26,
            Self::V27 => 27,
        }
    }

    const fn schema(self) -> &'static str {
        match self {
            Self::Monterey => include_str!("../../schema/macos12.sql"),
            Self::Ventura => include_str!("../../schema/macos13.sql"),
            Self::Sonoma => include_str!("../../schema/macos14.sql"),
            Self::Sequoia => include_str!("../../schema/macos15.sql"),
            Self::Tahoe => include_str!("../../schema/macos26.sql"),
            Self::V27 => include_str!("../../schema/macos27.sql"),
        }
    }

    pub(super) fn tables(self) -> &'static str {
        self.schema().split_once(MARK).map_or(self.schema(), |(tables, _)| tables)
    }

    pub(super) fn indexes(self) -> &'static str {
        self.schema().split_once(MARK).map_or("", |(_, rest)| rest)
    }

    /// Whether `text` is filled beside `attributedBody`.
    pub(super) fn fills_text(self) -> bool {
        self < Self::Ventura
    }

    /// Whether chat guids begin with `any`.
    pub(super) fn has_any_guids(self) -> bool {
        self >= Self::Tahoe
    }

    /// Whether Messages' scripting dictionary has the service RCS.
    pub fn has_rcs(self) -> bool {
        self >= Self::Sequoia
    }
}

impl std::str::FromStr for MacOs {
    type Err = UnknownMacOs;

    fn from_str(text: &str) -> Result<Self, UnknownMacOs> {
        Self::ALL
            .into_iter()
            .find(|macos| macos.number().to_string() == text)
            .ok_or_else(|| UnknownMacOs(text.to_owned()))
    }
}

impl std::fmt::Display for MacOs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.number().fmt(f)
    }
}

/// What Apple's code registers on its connections. On any other connection a delete fails.
pub(super) fn register_functions(conn: &Connection) -> rusqlite::Result<()> {
    for (name, arguments) in [
        ("delete_attachment_path", 1),
        ("before_delete_attachment_path", 2),
        ("after_delete_message_plugin", 2),
    ] {
        conn.create_scalar_function(name, arguments, FunctionFlags::SQLITE_UTF8, |_| Ok(0_i64))?;
    }
    Ok(())
}
