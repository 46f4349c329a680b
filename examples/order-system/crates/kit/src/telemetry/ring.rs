//! The spans that ended last, for a person who looks at one trace.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context,
    trace::{SpanId, Status, TraceId},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};
use serde::Serialize;

/// How many are kept in a process; then the oldest goes.
pub const MOST_SPANS: usize = 16_384;
/// How many traces of an order are found at most.
pub const MOST_TRACES: usize = 10;

/// What says in a span which order it is of: the second in what was done before there was one, so that the trace of an order is found
/// that is still on its way.
const ORDER: [&str; 2] = ["order.id", "orderId"];

static RING: Mutex<VecDeque<SpanData>> = Mutex::new(VecDeque::new());

/// A span that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finished {
    /// Its own id, 16 hexadecimal digits.
    pub span_id: String,
    /// That of the span within which it was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_span_id: Option<String>,
    /// What was done.
    pub name: String,
    /// `server`, `client`, `consumer`, `producer` or `internal`.
    pub kind: String,
    /// When it began, in microseconds of 1970.
    pub start_us: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// What went wrong, if something did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is known of it.
    pub attributes: BTreeMap<String, String>,
    /// What happened meanwhile.
    pub events: Vec<String>,
}

/// The spans of a trace (32 hexadecimal digits) that this process remembers, in the order of their beginnings. There are none where
/// they are exported.
pub fn spans(trace: &str) -> Vec<Finished> {
    let Ok(trace) = TraceId::from_hex(trace) else { return Vec::new() };
    let ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    let of_trace = ring.iter().filter(|span| span.span_context.trace_id() == trace);
    let mut spans: Vec<_> = of_trace.map(finished).collect();
    drop(ring);
    spans.sort_by_key(|span| span.start_us);
    spans
}

/// The traces that have a span of this order, as [`spans`] wants them; the newest first, and no more than [`MOST_TRACES`].
pub fn traces_of(order: &str) -> Vec<String> {
    let of_order = |span: &&SpanData| {
        span.attributes.iter().any(|it| ORDER.contains(&it.key.as_str()) && it.value.as_str() == order)
    };
    let mut traces: Vec<TraceId> = Vec::new();
    let ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    for span in ring.iter().rev().filter(of_order) {
        let trace = span.span_context.trace_id();
        if !traces.contains(&trace) {
            traces.push(trace);
        }
        if traces.len() == MOST_TRACES {
            break;
        }
    }
    drop(ring);
    traces.iter().map(TraceId::to_string).collect()
}

fn finished(span: &SpanData) -> Finished {
    let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Finished {
        span_id: span.span_context.span_id().to_string(),
        parent_span_id: (span.parent_span_id != SpanId::INVALID).then(|| span.parent_span_id.to_string()),
        name: span.name.to_string(),
        kind: format!("{:?}", span.span_kind).to_lowercase(),
        start_us: micros(since(span.start_time)),
        duration_us: micros(since(span.end_time).saturating_sub(since(span.start_time))),
        error: match &span.status {
            Status::Error { description } => Some(description.to_string()),
            Status::Unset | Status::Ok => None,
        },
        attributes: span.attributes.iter().map(|it| (it.key.to_string(), it.value.to_string())).collect(),
        events: span.events.iter().map(|event| event.name.to_string()).collect(),
    }
}

/// Keeps spans as they are: what they are shown as is made when somebody asks.
#[derive(Debug)]
pub(super) struct Keep;

impl SpanProcessor for Keep {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let mut ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = if ring.len() >= MOST_SPANS { ring.pop_front() } else { None };
        ring.push_back(span);
        drop(ring);
        drop(oldest);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::{
        KeyValue,
        trace::{Span as _, TraceContextExt, Tracer, TracerProvider},
    };
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[test]
    fn the_oldest_makes_room_and_what_is_not_sampled_is_not_kept() {
        let provider = SdkTracerProvider::builder().with_span_processor(Keep).build();
        let tracer = provider.tracer("it");
        let mut traces = Vec::new();
        for _ in 0..MOST_SPANS + 10 {
            let mut span = tracer.start("it");
            traces.push(span.span_context().trace_id().to_string());
            span.end();
        }
        assert_eq!((spans(&traces[0]).len(), spans(&traces[9]).len(), spans(&traces[10]).len()), (0, 0, 1));
        assert_eq!(RING.lock().unwrap().len(), MOST_SPANS);
        assert!(spans("no trace").is_empty());

        let parent = spans(&traces[20]).remove(0);
        let unsampled = opentelemetry::trace::SpanContext::new(
            TraceId::from_hex(&traces[0]).unwrap(),
            SpanId::from_hex(&parent.span_id).unwrap(),
            opentelemetry::trace::TraceFlags::NOT_SAMPLED,
            true,
            opentelemetry::trace::TraceState::default(),
        );
        tracer.start_with_context("it", &Context::new().with_remote_span_context(unsampled)).end();
        assert!(spans(&traces[0]).is_empty());

        // Here, where nobody else puts anything into the ring.
        let of_order = |name: &'static str| {
            let mut span = tracer.start("it");
            span.set_attribute(KeyValue::new(name, "o1"));
            let trace = span.span_context().trace_id().to_string();
            span.end();
            trace
        };
        let mut names = vec!["order.id"; MOST_TRACES];
        names.push("orderId");
        let mut of_order: Vec<_> = names.into_iter().map(of_order).collect();
        of_order.reverse();
        assert_eq!(traces_of("o1"), of_order[..MOST_TRACES], "the newest first, and no more");
        assert!(traces_of("o2").is_empty());
    }
}
