//! Every kind of row × every macOS: written as Messages writes it, read, and told exactly so.
//!
//! Rows are written by the sandbox, whose rows are taken from public ones; each file here is one
//! family of kinds. All rows that were read are offered as changed on every turn, so that whatever is
//! told twice fails a test.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed assumption fails the test")]

mod apps;
mod changes;
mod columns;
mod groups;
mod phone;
mod reactions;
mod texts;
