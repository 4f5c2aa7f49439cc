//! A Messages.app for machines that are not Macs.
//!
//! `switchboard-sandbox phones` is Messages for several phones at once: each has a folder with the
//! chat.db that Apple would write and an `osascript` that does what Messages would do. The parts:
//!
//! ```text
//! osascript ─▶ applescript ─▶ socket ═══ daemon ─▶ world ─▶ truth     what was really asked for
//! (a link to     (pure: script                       │  └─▶ outcome   (pure: number → plan)
//!  this program)  → events)                          └────▶ chatdb ─▶ typedstream, bplist
//!                                                             └─▶ kinds (pure: rows of every kind)
//! ```
//!
//! What it does is taken from public reports about Messages and chat.db, named where it is done.
//! Which outcome a text has is chosen by the recipient's number; see [`outcome`] and the README.
//!
//! Beside it, `generate` makes large files to measure readers with, and `faults` does to a chat.db
//! what readers have to survive: a rebuild, a restored backup, locks, a WAL made anew.
//!
//! Deliberately not here: anything that would let a program tell the sandbox from a Mac by its
//! chat.db; and any part of Switchboard but the form of a number.

#![cfg(unix)]

pub mod applescript;
pub mod bplist;
pub mod chance;
pub mod chatdb;
pub mod cli;
pub mod clock;
pub mod daemon;
pub mod faults;
pub mod generate;
pub mod osascript;
pub mod outcome;
pub mod socket;
pub mod tools;
pub mod truth;
pub mod typedstream;
pub mod world;
