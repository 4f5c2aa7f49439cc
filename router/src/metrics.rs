//! The numbers at `/metrics`, in Prometheus' text format.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use metrics::Unit;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use protocol::Reason;

use crate::store::tally::Tally;

/// Renders what has been counted.
#[derive(Clone)]
pub(crate) struct Metrics {
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// The recorder is global to a process, so all routers of one process (tests) share it.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

impl Metrics {
    pub(crate) fn install() -> Self {
        let handle = RECORDER.get_or_init(|| {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            if let Err(error) = metrics::set_global_recorder(recorder) {
                tracing::warn!(%error, "metrics go to a recorder that was there before");
            }
            describe();
            handle
        });
        Self { handle: handle.clone() }
    }

    pub(crate) fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds finished samples into the histograms; without it they pile up between two scrapes.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// What a metric is; with its name, what Prometheus is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram(Unit),
}

const JOBS_WAITING: &str = "switchboard_jobs_waiting";
const MESSAGES_HELD: &str = "switchboard_messages_held";
const WEBHOOKS_PENDING: &str = "switchboard_webhook_jobs_pending";
const UNPLACED_EVENTS: &str = "switchboard_unplaced_events";
const PHONES_READY: &str = "switchboard_phones_ready";

/// Every metric of the router.
const DESCRIBED: &[(Kind, &str, &str)] = &[
    (
        Kind::Counter,
        "switchboard_http_requests_total",
        "Requests answered, by method, route and status.",
    ),
    (
        Kind::Histogram(Unit::Seconds),
        "switchboard_http_request_seconds",
        "Time to answer a request, by route.",
    ),
    (
        Kind::Histogram(Unit::Count),
        "switchboard_store_batch_jobs",
        "Closures that shared one commit of the store.",
    ),
    (
        Kind::Histogram(Unit::Seconds),
        "switchboard_store_sync_seconds",
        "Time the disk took to bring the store's log to it.",
    ),
    (Kind::Counter, "switchboard_messages_accepted_total", "Messages accepted from tenants."),
    (
        Kind::Counter,
        "switchboard_reservations_refused_total",
        "Messages not accepted for want of quota or credit, by reason.",
    ),
    (Kind::Counter, "switchboard_stripe_events_total", "Events of Stripe, by what came of them."),
    (
        Kind::Counter,
        "switchboard_quota_warnings_total",
        "Tenants that were told how much of their quota is used, by percent.",
    ),
    (Kind::Counter, "switchboard_dispatched_total", "Attempts given to phones."),
    (Kind::Counter, "switchboard_webhook_attempts_total", "Webhook attempts, by outcome."),
    (
        Kind::Counter,
        "switchboard_provider_attempts_total",
        "Messages that providers of SMS were asked to send, by provider and outcome: accepted, not_sent, unknown.",
    ),
    (
        Kind::Histogram(Unit::Seconds),
        "switchboard_provider_seconds",
        "Time until a provider of SMS has answered, by provider.",
    ),
    (
        Kind::Counter,
        "switchboard_provider_calls_total",
        "Calls of providers of SMS, by kind of provider and outcome: report, message, nothing, strange, disbelieved.",
    ),
    (Kind::Counter, "switchboard_inbound_events_total", "Events taken from phones, by type."),
    (
        Kind::Counter,
        "switchboard_inbound_duplicates_total",
        "Inbound messages that a phone reported again.",
    ),
    (
        Kind::Counter,
        "switchboard_inbound_copies_total",
        "Late copies of messages that were taken before, told to nobody.",
    ),
    (
        Kind::Counter,
        "switchboard_inbound_canaries_total",
        "Messages that hosts had written from one of their phones to another, and kept from tenants.",
    ),
    (
        Kind::Counter,
        "switchboard_inbound_unattributed_total",
        "Inbound messages and receipts that belong to no tenant.",
    ),
    (
        Kind::Counter,
        "switchboard_inbound_strange_attempts_total",
        "Answers of phones about attempts that were never given to them.",
    ),
    (
        Kind::Counter,
        "switchboard_inbound_passed_over_total",
        "Events that could not be taken in and were kept aside, by type.",
    ),
    (
        Kind::Counter,
        "switchboard_inbound_gaps_total",
        "Events that came before their predecessors and have to be repeated.",
    ),
    (
        Kind::Counter,
        "switchboard_inbound_lost_seqs_total",
        "Events that were acknowledged once and are not in this store: it was restored from an older copy.",
    ),
    (Kind::Counter, "switchboard_opt_outs_total", "Opt-outs and opt-ins by keyword, by type."),
    (
        Kind::Counter,
        "switchboard_link_refused_frames_total",
        "Frames of hosts that were refused, by why.",
    ),
    (
        Kind::Counter,
        "switchboard_link_foreign_phones_total",
        "Phones that a host spoke of and that are not its own.",
    ),
    (
        Kind::Counter,
        "switchboard_failovers_total",
        "Phones that came to another host, by type: planned, or lost with the host that had them.",
    ),
    (
        Kind::Counter,
        "switchboard_dials_total",
        "Hosts that the router has dialled, by what came of it: opened, refused, failed, unproven, unknown, store.",
    ),
    (Kind::Counter, "switchboard_link_unauthorised_total", "Hosts that were refused a link."),
    (
        Kind::Gauge,
        JOBS_WAITING,
        "Messages that are due and not taken up, counted to 100000, at most 10 s ago.",
    ),
    (
        Kind::Gauge,
        MESSAGES_HELD,
        "Messages held, by reason, each counted to 100000, at most 10 s ago.",
    ),
    (
        Kind::Gauge,
        WEBHOOKS_PENDING,
        "Webhooks not delivered yet, counted to 100000, at most 10 s ago.",
    ),
    (
        Kind::Gauge,
        UNPLACED_EVENTS,
        "Events of phones that have no place, counted to 100000, at most 10 s ago.",
    ),
    (
        Kind::Gauge,
        PHONES_READY,
        "Phones that are ready, of hosts that are online, at most 10 s ago.",
    ),
];

fn describe() {
    for (kind, name, help) in DESCRIBED.iter().copied() {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, help),
            Kind::Gauge => metrics::describe_gauge!(name, help),
            Kind::Histogram(unit) => metrics::describe_histogram!(name, unit, help),
        }
    }
}

/// Shows what waits. `holding` remembers the reasons shown before, so that one that holds nothing any more shows 0.
pub(crate) fn show(tally: &Tally, holding: &mut BTreeSet<Reason>) {
    metrics::gauge!(JOBS_WAITING).set(f64::from(tally.jobs_due));
    metrics::gauge!(WEBHOOKS_PENDING).set(f64::from(tally.webhooks_pending));
    metrics::gauge!(UNPLACED_EVENTS).set(f64::from(tally.unplaced));
    metrics::gauge!(PHONES_READY).set(f64::from(tally.phones_ready));
    holding.extend(tally.held.iter().map(|(reason, _count)| *reason));
    for reason in holding.iter() {
        let held = tally.held.iter().find(|(other, _count)| other == reason);
        metrics::gauge!(MESSAGES_HELD, "reason" => reason.as_str())
            .set(held.map_or(0.0, |(_reason, count)| f64::from(*count)));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The names in the sources, in whatever macro they stand.
    fn named_in(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                named_in(&path, names);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for part in text.split("!(").skip(1) {
                let name = part.trim_start().strip_prefix("\"switchboard_");
                let word = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
                if let Some((name, _rest)) = name.and_then(|rest| rest.split_once('"'))
                    && word(name)
                {
                    names.insert(format!("switchboard_{name}"));
                }
            }
        }
    }

    #[test]
    fn every_metric_is_described() {
        let mut names = BTreeSet::new();
        named_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
        assert!(names.len() >= 17, "{names:?}");
        for name in &names {
            assert!(DESCRIBED.iter().any(|(_, known, _)| known == name), "{name} is not described");
        }
        for (kind, name, _help) in DESCRIBED {
            assert!(*kind == Kind::Gauge || names.contains(*name), "{name} is nowhere counted");
        }
    }

    #[test]
    fn a_reason_that_holds_nothing_any_more_shows_zero() {
        let metrics = Metrics::install();
        let mut holding = BTreeSet::new();
        let held = vec![(Reason::QuietHours, 3)];
        show(&Tally { held, jobs_due: 7, ..Tally::default() }, &mut holding);
        let text = metrics.render();
        assert!(text.contains("switchboard_messages_held{reason=\"quiet_hours\"} 3"), "{text}");
        assert!(text.contains("switchboard_jobs_waiting 7"), "{text}");
        assert!(text.contains("# HELP switchboard_messages_held Messages held"), "{text}");
        assert!(text.contains("# TYPE switchboard_phones_ready gauge"), "{text}");
        show(&Tally::default(), &mut holding);
        let text = metrics.render();
        assert!(text.contains("switchboard_messages_held{reason=\"quiet_hours\"} 0"), "{text}");
    }
}
