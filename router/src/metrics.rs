//! The numbers at `/metrics`, in Prometheus' text format.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

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

fn describe() {
    metrics::describe_counter!("switchboard_http_requests_total", "Requests answered.");
    metrics::describe_histogram!(
        "switchboard_http_request_seconds",
        metrics::Unit::Seconds,
        "Time to answer a request."
    );
    metrics::describe_histogram!(
        "switchboard_store_batch_jobs",
        "Closures that shared one commit of the store."
    );
    metrics::describe_counter!("switchboard_messages_accepted_total", "Messages accepted.");
}
