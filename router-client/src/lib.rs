//! Everything that talks to the router: the host's link, and what the operator's CLI needs.
//!
//! [`link::Link`] keeps one authenticated WebSocket to the router for as long as the supervisor runs. Its heart is a pure
//! state machine (`session`): what came in and the time go in, frames and deliveries come out. Around it a thin task
//! (`dialler`) makes exactly one attempt, `connect → session → ended(why)`; [`link`] decides with `backoff` when to make
//! the next one.
//!
//! Deliberately not in it: any state that outlives the process. Events that the router has not acknowledged stay in the
//! bridge's journal, which repeats them; leases are counted by the bridge's gate. The link may die at any moment.

pub mod auth;
pub mod backoff;
pub mod clock;
mod dialler;
pub mod doctor;
pub mod enrolment;
pub mod key;
pub mod link;
mod private_file;
pub mod proxy;
pub mod road;
mod session;
pub mod tls;

pub use private_file::PrivateFileError;
