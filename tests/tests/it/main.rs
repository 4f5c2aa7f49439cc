//! All tests from outside, one module a subject: one program, because each would be compiled and linked with everything anew.

mod blocked;
mod canary;
mod cuts;
mod dependencies;
mod dialled;
mod doctor;
mod install;
mod kills;
mod launchd;
mod messages_app;
mod reload;
mod second_bridge;
mod sends;
mod simulation;
mod standby;
mod stories;
mod uplinks;
