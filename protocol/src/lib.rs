//! The words on every wire of Switchboard: what the parts say to each other, and nothing else.
//!
//! ```text
//! tenant ──api──▶ router ◀══link══▶ supervisor ◀──pipe──▶ bridge
//! ```
//!
//! One module a contract: [`pipe`] (supervisor ↔ bridge), [`link`] (host ↔ router) and [`api`]
//! (tenant and operator ↔ router). The words they share (ids, numbers, channels, statuses,
//! reasons) have a module each. Every frame and body has a golden JSON file under
//! `tests/golden`, compared in a test: a change on a wire is a visible change of a file.
//!
//! Deliberately not here: any IO, any clock, any chance, any runtime. Unknown fields are ignored
//! on receipt, so that a newer peer can say more; unknown types are refused by name.

pub mod address;
pub mod api;
pub mod canary;
pub mod channel;
pub mod check;
pub mod class;
mod code;
#[doc(hidden)]
pub mod fuzzing;
pub mod id;
pub mod limits;
pub mod link;
pub mod lock;
pub mod number;
pub mod pipe;
pub mod reason;
pub mod status;
pub mod time;
pub mod wire;

pub use channel::{Channel, ChannelChoice};
pub use class::Class;
pub use id::{
    BatchId, DeliveryId, EndpointId, EventId, HostId, KeyId, MessageId, PhoneId, TemplateId,
    TenantId,
};
pub use number::{E164, Recipient};
pub use reason::Reason;
pub use status::Status;
pub use time::UnixMs;
pub use wire::WireError;

/// The version of the pipe and link contracts that this build speaks.
///
/// A peer below [`PROTOCOL_MIN`] is refused; a newer one may say more than we understand.
pub const PROTOCOL: u32 = 1;

/// The oldest version of the contracts that this build still understands.
pub const PROTOCOL_MIN: u32 = 1;
