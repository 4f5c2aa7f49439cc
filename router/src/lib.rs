//! The cloud side: API, queue, compliance, pool, leases, webhooks.
//!
//! ```text
//! tenant ──▶ api ──▶ store ◀── dispatch ──▶ link ◀══▶ hosts
//!                      ▲                      │
//!                      └──────── inbound ◀────┘
//!                      └──▶ webhooks ──▶ tenant
//! ```
//!
//! **How the parts talk.** Through the store, and through [`server::App`], which every part holds: configuration,
//! store, clock, the bells of [`server::Bells`] that wake a sleeping worker after a commit, and [`link::Links`], the
//! registry of live sessions.
//!
//! - Whoever commits a job rings: `app.bells.dispatch` after a message or a phone has become available,
//!   `app.bells.webhooks` after webhook jobs were enqueued. Workers also wake by time; a lost ring costs a moment, never
//!   a message.
//! - [`store::events::append`] adds steps to a message's story; [`store::webhook_jobs::enqueue`]`(tx, tenant, kind,
//!   data, at)` puts it into the tenant's outbox; both in the transaction that changes the state.
//! - The API withdraws a message that a phone already has by [`dispatch::recall`]`(app, message)`: it has set
//!   `messages.cancel_asked` in its own transaction, and what the phone answers is the outcome.
//! - [`link::routes`]`()` adds the hosts' WebSocket to the server's routes; [`dispatch::start`]`(app)` and
//!   [`webhooks::start`]`(app)` put their tasks on `app.tasks` and end when `app.stop` is cancelled.
//!
//! Deliberately not here: SQL outside [`store`], clock or chance outside [`clock`], a process started, anything of a
//! device. Decisions (compliance, resolve, retry, lease) are pure functions; tasks around them are thin.

pub mod api;
pub mod auth;
pub mod batches;
pub mod billing;
mod canaries;
pub mod clock;
pub mod config;
pub mod error;
pub mod facts;
pub mod idempotency;
mod listener;
pub mod metrics;
pub mod network;
pub mod rate;
pub mod server;
pub mod steady;
pub mod store;

pub mod compliance;
pub mod dispatch;
pub mod doubt;
pub mod inbound;
pub mod lease;
pub mod lines;
pub mod link;
pub mod pool;
pub mod providers;
pub mod resolve;
pub mod retry;
pub mod route;
pub mod shares;
pub mod starts;
pub mod template;
pub mod warming;
pub mod webhooks;
