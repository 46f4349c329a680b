//! Every figure that is exported, each declared once: its name, its labels and what it says. A dashboard that asks for another asks
//! in vain, and a test says so.

/// What kind of figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often which values came: `_bucket`, `_sum` and `_count`.
    Histogram,
}

/// A figure.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What kind it is.
    pub kind: Kind,
    /// The labels that its series have.
    pub labels: &'static [&'static str],
    /// What it says.
    pub what: &'static str,
}

macro_rules! metrics {
    ($($name:ident = $text:literal, $kind:ident, [$($label:literal),*]: $what:literal;)*) => {
        /// All of them.
        pub const METRICS: &[Metric] =
            &[$(Metric { name: $text, kind: Kind::$kind, labels: &[$($label),*], what: $what }),*];
        $(
            #[doc = $what]
            pub const $name: &str = $text;
        )*
    };
}

metrics! {
    HTTP_REQUEST_SECONDS = "http_request_seconds", Histogram, ["service", "route", "status"]: "How long requests took that came in";
    HTTP_CALL_SECONDS = "http_call_seconds", Histogram, ["service", "to", "outcome"]: "How long calls to other services took with all that was repeated; outcome: ok, failed or refused";
    EVENTS_PUBLISHED_TOTAL = "events_published_total", Counter, ["outcome"]: "Events taken to the broker; outcome: ok, unavailable or refused";
    EVENTS_HANDLED_TOTAL = "events_handled_total", Counter, ["queue", "outcome"]: "Deliveries of events; outcome: ok, later or poison";
    EVENT_SECONDS = "event_seconds", Histogram, ["queue"]: "How long an event was handled";
    OUTBOX_UNSENT = "outbox_unsent", Gauge, ["service"]: "Events that are not with the broker yet";
    QUEUE_BACKLOG = "queue_backlog", Gauge, ["service", "queue"]: "Events in a queue that are still to be handled";
    QUEUE_DEAD = "queue_dead", Gauge, ["service", "queue"]: "Dead letters of a queue";
    SAGAS_IN_FLIGHT = "sagas_in_flight", Gauge, ["service"]: "What has been accepted and is not decided yet, counted when it is asked for";
    SAGAS_ATTENTION = "sagas_attention", Gauge, ["service"]: "Sagas that wait for a person, counted when it is asked for; 100 are that many or more";
    POLICY_CIRCUIT_STATE = "policy_circuit_state", Gauge, ["service", "policy"]: "A breaker: 0 closed, 1 recovering, 2 half-open, 3 open";
    POLICY_CIRCUIT_FAILURE_RATE = "policy_circuit_failure_rate", Gauge, ["service", "policy"]: "The share of failed calls in a breaker's window";
    POLICY_BULKHEAD_IN_USE = "policy_bulkhead_in_use", Gauge, ["service", "policy"]: "Calls that run";
    POLICY_BULKHEAD_LIMIT = "policy_bulkhead_limit", Gauge, ["service", "policy"]: "How many may run at once";
    POLICY_BULKHEAD_WAITING = "policy_bulkhead_waiting", Gauge, ["service", "policy"]: "Calls that wait for their turn";
    POLICY_RETRY_BUDGET = "policy_retry_budget", Gauge, ["service", "policy"]: "How many retries can be paid for";
    POLICY_LIMIT_REMAINING = "policy_limit_remaining", Gauge, ["service", "policy"]: "How many calls a rate limiter still admits; of one for each key, that of the key with the least";
    GATEWAY_SHADOW_TOTAL = "gateway_shadow_total", Counter, ["service", "outcome"]: "Requests that the gateway has shown to the new service as well, by how its answer compares";
    CIRCUIT_STATE = "mainstay_circuit_state", Gauge, ["policy"]: "A breaker as its last change left it, by its name alone";
    CIRCUIT_TRANSITIONS_TOTAL = "mainstay_circuit_transitions_total", Counter, ["policy", "to"]: "How often breakers changed, and to what";
    REFUSED_TOTAL = "mainstay_refused_total", Counter, ["policy", "kind"]: "Calls that a policy refused or ended";
    RETRIES_TOTAL = "mainstay_retries_total", Counter, ["policy"]: "Attempts after the first";
    GAVE_UP_TOTAL = "mainstay_gave_up_total", Counter, ["policy", "why"]: "Calls that were not tried again, and why";
    SAGA_OPEN = "mainstay_saga_open", Gauge, ["definition", "phase"]: "Sagas that are not over; in every process that of the whole store";
    SAGA_OLDEST_SECONDS = "mainstay_saga_oldest_seconds", Gauge, ["definition"]: "The age of the oldest of them";
    SAGA_ENTERED_TOTAL = "mainstay_saga_entered_total", Counter, ["definition", "phase"]: "Sagas that came into a phase";
    SAGA_AGE_SECONDS = "mainstay_saga_age_seconds", Histogram, ["definition", "phase"]: "Their age at that time";
}

/// Sets the figures about a service's sagas.
pub fn sagas(service: &'static str, in_flight: u64, attention: u64) {
    metrics::gauge!(SAGAS_IN_FLIGHT, "service" => service).set(in_flight as f64);
    metrics::gauge!(SAGAS_ATTENTION, "service" => service).set(attention as f64);
}

/// The figure of that name, or of which that is a part.
pub fn known(name: &str) -> Option<&'static Metric> {
    let whole = |metric: &&Metric| metric.name == name;
    METRICS.iter().find(whole).or_else(|| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part))?;
        METRICS.iter().find(|metric| metric.name == base && metric.kind == Kind::Histogram)
    })
}

/// Tells the exporter what they say.
pub(crate) fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.what),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.what),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.what),
        }
    }
}
