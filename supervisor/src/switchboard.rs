//! The switch: what the link says goes to the phone it names. It keeps nothing that cannot be rebuilt.
//!
//! The other direction needs no part of its own: each phone's owner hands its events straight to the link.

use std::time::Duration;

use protocol::PhoneId;
use protocol::link::{HostHealth, HostMessagesApp, HostNetwork, HostPower};
use protocol::pipe::Command;
use router_client::link::{LinkInput, LinkOutput};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::canary;
use crate::cloudflared;
use crate::pool::{Ask, Pool};

/// The host's health is renewed so often; it travels with the next renewal of the leases.
const HEALTH_EVERY: Duration = Duration::from_secs(5);

/// How the link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LinkState {
    /// There is no router in the configuration.
    Standalone,
    /// The router has welcomed this host.
    Connected,
    /// There is no session.
    Disconnected,
}

/// What is known of the machine itself.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// What it runs on.
    pub(crate) power: watch::Receiver<Option<HostPower>>,
    /// Its ways to the internet.
    pub(crate) network: watch::Receiver<Option<HostNetwork>>,
    /// How its Messages is.
    pub(crate) messages_app: watch::Receiver<Option<HostMessagesApp>>,
    /// How its tunnel is.
    pub(crate) cloudflared: watch::Receiver<Option<cloudflared::Standing>>,
    /// How the pairs stand that write to each other.
    pub(crate) canaries: canary::Standings,
}

/// Forwards from the link to the phones until the link ends or `shutdown` is cancelled.
pub(crate) async fn forward(
    pool: Pool,
    mut outputs: mpsc::Receiver<LinkOutput>,
    inputs: mpsc::Sender<LinkInput>,
    (state, post): (watch::Sender<LinkState>, canary::Post),
    machine: Machine,
    shutdown: CancellationToken,
) {
    let began = Instant::now();
    let mut health = tokio::time::interval(HEALTH_EVERY);
    health.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let output = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = health.tick() => {
                let report = HostHealth {
                    uptime_s: began.elapsed().as_secs(),
                    restarts: pool.restarts(),
                    power: machine.power.borrow().clone(),
                    network: machine.network.borrow().clone(),
                    messages_app: machine.messages_app.borrow().clone(),
                    tunnel: machine.cloudflared.borrow().as_ref().map(cloudflared::Standing::to_host),
                    ..HostHealth::default()
                };
                // A full queue means that events wait; the next report is five seconds away.
                if inputs.try_send(LinkInput::Health(report)).is_err() {
                    tracing::trace!("no room for a health report");
                }
                continue;
            }
            output = outputs.recv() => output,
        };
        let Some(output) = output else { return };
        switch(&pool, output, &state, &post);
    }
}

/// Hands one output of the link to whom it concerns.
fn switch(pool: &Pool, output: LinkOutput, state: &watch::Sender<LinkState>, post: &canary::Post) {
    match output {
        LinkOutput::Connected { session, canaries } => {
            tracing::info!(session, "linked with the router");
            metrics::gauge!("switchboard_link_up").set(1.0);
            state.send_replace(LinkState::Connected);
            post.road_is(if canaries { canary::Road::Open } else { canary::Road::Deaf });
        }
        LinkOutput::Disconnected { why, redial_in } => {
            let redial_ms = u64::try_from(redial_in.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(%why, redial_ms, "no link with the router");
            metrics::gauge!("switchboard_link_up").set(0.0);
            metrics::counter!("switchboard_link_ends_total").increment(1);
            state.send_replace(LinkState::Disconnected);
            post.road_is(canary::Road::Down);
        }
        LinkOutput::Canary(told) => post.tell(told),
        LinkOutput::Command { phone, command, .. } => tell(pool, &phone, [command]),
        LinkOutput::Lease { phone, epoch, ttl_ms, issued_ms } => {
            tell(pool, &phone, [Command::Lease { epoch, ttl_ms, issued_ms }]);
        }
        LinkOutput::Revoke { phone, epoch } => tell(pool, &phone, [Command::Revoke { epoch }]),
        LinkOutput::Release { phone, epoch } => tell(pool, &phone, [Command::Release { epoch }]),
        LinkOutput::Ack { phone, journal, seq, replay } => {
            tell(pool, &phone, [Command::Ack { journal, seq }]);
            if replay {
                tell(pool, &phone, [Command::Replay]);
            }
        }
    }
}

fn tell<const N: usize>(pool: &Pool, phone: &PhoneId, commands: [Command; N]) {
    let Some(handle) = pool.get(phone) else {
        tracing::warn!(%phone, "the router speaks of a phone that is not configured here");
        return;
    };
    for command in commands {
        if let Err(error) = handle.ask(Ask::Command(command)) {
            metrics::counter!("switchboard_commands_total", "phone" => phone.to_string(), "outcome" => "dropped")
                .increment(1);
            tracing::debug!(%phone, %error, "a command was dropped; it is offered again");
        }
    }
}
