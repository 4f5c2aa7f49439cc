//! All tests from outside, one module a subject: one program, because each would be compiled and linked with everything anew.

mod api_binary;
mod api_http;
mod api_store;
mod api_support;
mod batches;
mod canaries;
mod compliance_flow;
mod delivery;
mod dispatch_flow;
mod docs_page;
mod isolation;
mod link_session;
mod link_support;
mod money_http;
mod money_store;
mod provider_clients;
mod provider_crash;
mod provider_flow;
mod provider_support;
mod python_support;
mod races;
mod routes;
mod standby;
mod templates;
mod webhook_crash;
mod webhook_delivery;
