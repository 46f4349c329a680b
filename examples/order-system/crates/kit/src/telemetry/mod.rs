//! Logs as JSON lines, spans by OpenTelemetry, metrics for Prometheus: set up once for a process.
//!
//! What it costs is decided by two variables. `LOG` says which lines are written. `TRACE_SAMPLE` says which share of the traces is
//! kept: of the others no spans are made, and their ids are carried on. Kept spans go to
//! `OTEL_EXPORTER_OTLP_ENDPOINT`, or, without one, stay in memory for a while, see [`spans`].
//!
//! Each span says in its attribute `service` which service it is of, also where several are one process, and in `correlation_id` of which
//! order or request, as lines do. Collectors find the service in the `service.name` of the resource; `SERVICE_NAME` gives all spans of a
//! process another one there.

mod export;
mod lines;
mod ring;
mod service;

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use mainstay::{Registry, registry::Snapshot};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing::{Dispatch, Level, Metadata, subscriber::Interest};
use tracing_subscriber::{EnvFilter, Layer, filter::dynamic_filter_fn, layer::SubscriberExt};

use crate::{
    BoxError, Context,
    env::{self, Env},
    metric, trace,
};

pub use lines::{Output, stdout};
pub use ring::{Finished, MOST_SPANS, MOST_TRACES, spans, traces_of};
pub use service::sagas_are_of;

use service::Named;

/// The target of the lines that tell of each request; they say what its span says, and are no part of it. Those of services behind a gateway
/// are at `debug`: `LOG=info,access=debug` shows every hop.
pub const ACCESS: &str = "access";

/// Where most requests and calls are told apart: from half a millisecond to ten seconds.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Sagas take longer.
const SAGA_SECONDS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 3_600.0];
/// How often what was measured is put into its bucket, so that what nobody fetches does not pile up.
const UPKEEP: Duration = Duration::from_secs(5);

/// What was set up.
#[derive(Debug)]
pub struct Telemetry {
    prometheus: PrometheusHandle,
    provider: SdkTracerProvider,
}

static TELEMETRY: OnceLock<Telemetry> = OnceLock::new();
static WATCHED: Mutex<Vec<(&'static str, Registry)>> = Mutex::new(Vec::new());

/// Sets it up, the first time.
///
/// # Errors
///
/// An endpoint, a share or a log filter that is none.
pub fn init(env: &Env) -> Result<&'static Telemetry, BoxError> {
    if let Some(telemetry) = TELEMETRY.get() {
        return Ok(telemetry);
    }
    let (dispatch, provider) = tracing_to(env, stdout())?;
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Full(metric::SAGA_AGE_SECONDS.to_owned()), SAGA_SECONDS)?
        .build_recorder();
    let prometheus = recorder.handle();
    // Another subscriber may be there already, in a test.
    let _ = tracing::dispatcher::set_global_default(dispatch);
    if metrics::set_global_recorder(recorder).is_ok() {
        metric::describe();
        let handle = prometheus.clone();
        std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(UPKEEP);
                handle.run_upkeep();
            }
        })?;
    }
    Ok(TELEMETRY.get_or_init(|| Telemetry { prometheus, provider }))
}

/// What takes log lines and spans, and what exports the latter.
///
/// # Errors
///
/// As of [`init`].
pub fn tracing_to(env: &Env, output: Output) -> Result<(Dispatch, SdkTracerProvider), BoxError> {
    let filter = EnvFilter::try_new(env.get_or_default(env::LOG))?;
    let share = env.get_or_default(env::TRACE_SAMPLE);
    let share: f64 = share
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("TRACE_SAMPLE: `{share}` is no number from 0 to 1"))?;
    let builder =
        SdkTracerProvider::builder().with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)));
    let provider = match env.get(env::OTEL_EXPORTER_OTLP_ENDPOINT) {
        Some(endpoint) => {
            let exporter = export::PerService::new(&endpoint, env.get(env::SERVICE_NAME))?;
            builder.with_span_processor(Named(BatchSpanProcessor::builder(exporter).build())).build()
        }
        None => builder.with_span_processor(Named(ring::Keep)).build(),
    };
    let spans = (share > 0.0).then(|| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("order-system"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(
                dynamic_filter_fn(move |about, context| {
                    // A step's span belongs into its saga's, which may not have been drawn.
                    let share = if about.name() == "saga.step" && share < 1.0 { 0.0 } else { share };
                    let within_another = context.lookup_current().is_some();
                    ours(about) && (about.is_event() || trace::is_made(within_another, share))
                })
                .with_callsite_filter(|about| match ours(about) {
                    true if about.is_event() => Interest::always(),
                    true => Interest::sometimes(),
                    false => Interest::never(),
                })
                .with_max_level_hint(Level::INFO),
            )
    });
    let lines = lines::Lines::new(output).with_filter(filter);
    Ok((tracing_subscriber::registry().with(lines).with(spans).into(), provider))
}

/// What libraries say of themselves is no part of an order's story.
fn ours(about: &Metadata<'_>) -> bool {
    let ours = about.target().starts_with("order_") || about.target().starts_with("mainstay");
    ours && *about.level() <= Level::INFO
}

/// Exports the gauges of the service's policies from now on, instead of those of an earlier service of that name.
pub fn watch(context: &Context) {
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    watched.retain(|(name, _)| *name != context.name());
    watched.push((context.name(), context.policies().clone()));
}

fn look_at_policies() {
    let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for (service, registry) in watched {
        for snapshot in registry.snapshots() {
            let policy = snapshot.name().to_owned();
            let set = |name: &'static str, value: f64| {
                metrics::gauge!(name, "service" => service, "policy" => policy.clone()).set(value);
            };
            match &snapshot {
                Snapshot::CircuitBreaker(breaker) => {
                    set(metric::POLICY_CIRCUIT_STATE, f64::from(breaker.state.level()));
                    set(metric::POLICY_CIRCUIT_FAILURE_RATE, breaker.failure_rate);
                }
                Snapshot::Bulkhead(bulkhead) => {
                    set(metric::POLICY_BULKHEAD_IN_USE, bulkhead.in_use as f64);
                    set(metric::POLICY_BULKHEAD_LIMIT, bulkhead.limit as f64);
                    set(metric::POLICY_BULKHEAD_WAITING, bulkhead.waiting as f64);
                }
                Snapshot::Retry(retry) => {
                    if let Some(budget) = &retry.budget {
                        set(metric::POLICY_RETRY_BUDGET, budget.available);
                    }
                }
                Snapshot::RateLimiter(limiter) => {
                    // Keys come and go; a series for each would stay.
                    let policy = limiter.name.base().to_owned();
                    metrics::gauge!(metric::POLICY_LIMIT_REMAINING, "service" => service, "policy" => policy)
                        .set(f64::from(limiter.quota.remaining));
                }
                _ => {}
            }
        }
    }
}

impl Telemetry {
    /// The metrics as Prometheus reads them.
    pub fn metrics(&self) -> String {
        look_at_policies();
        self.prometheus.run_upkeep();
        self.prometheus.render()
    }

    /// Sends what has not been sent: before the process ends.
    pub fn flush(&self) {
        if let Err(error) = self.provider.force_flush() {
            tracing::warn!(%error, "spans could not be sent");
        }
    }
}
