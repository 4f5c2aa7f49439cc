//! One per Mac: runs and restarts the bridges, keeps the link with the router, serves the local dispatch API.
//!
//! ```text
//!              config ─▶ pool ── one owner task a phone: phone (pure) + restart (pure) ──▶ child ══ bridge
//!                         ▲ │                                                              pipe
//!                 asks    │ │ states, events
//!                         │ ▼
//!   dispatch API ─────────┴─┴───────── switchboard ══ link ══ router
//! ```
//!
//! Decisions are pure (`phone`, `restart`, `plan`); tasks are thin. One task owns each phone and its child process;
//! everybody else has a handle with a bounded queue.
//!
//! Deliberately not here: any state that must survive. The bridge's journal and the router's store have that; a
//! supervisor may die at any moment, and the next one starts clean. No process is adopted: bridges end when their
//! supervisor is gone. No process is started anywhere but in `child`.

mod access;
mod canary;
mod child;
mod cloudflared;
mod config;
mod dialled;
mod dispatch;
mod doctor;
mod files;
mod gauges;
mod helper;
mod identity;
mod life;
mod lines;
mod log_file;
mod logs;
mod messages_app;
mod network;
mod news;
mod orphan;
mod phone;
mod plan;
mod pool;
mod power;
mod program;
mod reload;
mod resources;
mod restart;
#[doc(hidden)]
pub mod simulation;
mod stream;
mod switchboard;

pub use doctor::Tools;
pub use helper::{HelperOptions, serve as serve_helper};
pub use life::{Failed, check_config, default_config, diagnose, run};
pub use log_file::Kept;
pub use program::{exit, start_log, start_log_in, until_done};
