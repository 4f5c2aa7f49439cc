//! One process per phone: reads chat.db, drives sends through Messages.app, keeps the journal.
//!
//! ```text
//!            stdin ─▶ ┌──────────────────────────────┐ ─▶ stdout
//!                     │ daemon: enum Event           │
//!  watch, osascript ─▶│  → step (pure) → changes     │─▶ journal: one transaction, one fsync
//!                     │               → effects      │─▶ osascript, chat.db, lines
//!                     └──────────────────────────────┘
//! ```
//!
//! Decisions are pure: [`outbound`] (the life of a send), [`gate`] (lease, epoch, deadline),
//! [`inbound`] (rows → events), `capability`, `pacing`, `health` and `window`. What they decide is committed to
//! the [`journal`] before it is done, and said before it is forgotten. Two modules touch Apple:
//! [`chatdb`] reads its database, [`osascript`] starts the one program that sends. One touches the
//! network: [`attachments`] fetches the files that go with a message.
//!
//! Deliberately not here: any knowledge of the router, any write to chat.db, any second try of a
//! send whose first may have happened.

pub mod archive;
pub mod attachments;
pub mod bplist;
pub mod chatdb;
pub mod inbound;
pub mod payload;
pub mod summary;
pub mod typedstream;
pub mod watch;

pub mod checks;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod exit;
#[doc(hidden)]
pub mod fuzzing;
pub mod gate;
pub mod journal;
pub mod manual;
pub mod osascript;
pub mod outbound;
#[doc(hidden)]
pub mod simulation;

mod capability;
mod evidence;
mod health;
mod line;
mod machine;
mod pacing;
mod reading;
mod window;
