//! Logs as JSON lines, spans by OpenTelemetry, metrics for Prometheus: set up once for a process.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, WithExportConfig};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    BoxError,
    env::{self, Env},
};

/// What was set up.
#[derive(Debug)]
pub struct Telemetry {
    prometheus: PrometheusHandle,
    provider: SdkTracerProvider,
}

static TELEMETRY: OnceLock<Telemetry> = OnceLock::new();

/// Sets it up, the first time.
///
/// # Errors
///
/// An endpoint or a log filter that is none.
pub fn init(env: &Env) -> Result<&'static Telemetry, BoxError> {
    if let Some(telemetry) = TELEMETRY.get() {
        return Ok(telemetry);
    }
    let prometheus = PrometheusBuilder::new().build_recorder();
    let handle = prometheus.handle();
    let mut provider = SdkTracerProvider::builder();
    if let Some(endpoint) = env.get(env::OTEL_EXPORTER_OTLP_ENDPOINT) {
        let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .build()?;
        provider = provider.with_batch_exporter(exporter);
    }
    let provider = provider.build();
    let filter = EnvFilter::try_new(env.get_or_default(env::LOG))?;
    let tracer = provider.tracer("order-system");
    // Another subscriber may be there already, in a test.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false),
        )
        .with(tracing_opentelemetry::layer().with_tracer(tracer))
        .try_init();
    let _ = metrics::set_global_recorder(prometheus);
    Ok(TELEMETRY.get_or_init(|| Telemetry { prometheus: handle, provider }))
}

impl Telemetry {
    /// The metrics as Prometheus reads them.
    pub fn metrics(&self) -> String {
        self.prometheus.run_upkeep();
        self.prometheus.render()
    }

    /// Sends what has not been sent: before the process ends.
    pub fn flush(&self) {
        let _ = self.provider.force_flush();
    }
}
