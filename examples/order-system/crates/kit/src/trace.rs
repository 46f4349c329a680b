//! One trace over all hops: W3C `traceparent` and a correlation id, over HTTP and through queues.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// What all events, log lines and spans of one order have in common.
pub const CORRELATION_ID: &str = "x-correlation-id";

tokio::task_local! {
    static WORK: Work;
}

/// What is known of the work at hand, without asking a span for it.
#[derive(Debug, Clone, Default)]
struct Work {
    service: Option<&'static str>,
    correlation: String,
    trace_id: Option<String>,
    /// The caller's, where no span is made here: it is handed on as it came.
    parent: Option<String>,
    /// Whether its trace is kept, where that is decided. Of one that is not no spans are made.
    kept: Option<bool>,
}

/// Runs a service's work with a correlation id that [`correlation`] returns.
pub async fn with_correlation<F: Future>(service: &'static str, id: String, work: F) -> F::Output {
    let around = WORK.try_with(Clone::clone).unwrap_or_default();
    let trace_id = of_span(&Span::current()).map(|span| span.trace_id().to_string()).or(around.trace_id);
    WORK.scope(Work { service: Some(service), correlation: id, trace_id, ..around }, work).await
}

/// A span that is part of the trace that a `traceparent` names; none where that trace is not kept.
pub fn span_in(traceparent: Option<&str>, make: impl FnOnce() -> Span) -> Span {
    let Some(parent) = traceparent.and_then(parse) else { return make() };
    if !parent.is_sampled() {
        return Span::none();
    }
    let around = WORK.try_with(Clone::clone).unwrap_or_default();
    let span = WORK.sync_scope(Work { kept: Some(true), ..around }, make);
    // An error says that nothing exports spans.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    span
}

/// Whether a span is made at all. A trace that begins with it is kept with the chance of a share; [`work`] remembers what came of that.
pub(crate) fn is_made(within_another: bool, share: f64) -> bool {
    let decided = WORK.try_with(|work| work.kept).ok().flatten();
    decided.unwrap_or_else(|| within_another || share >= 1.0 || drawn(share))
}

fn drawn(share: f64) -> bool {
    let id = RandomIdGenerator::default().new_span_id().to_bytes();
    ((u64::from_be_bytes(id) >> 1) as f64) < share * (1_u64 << 63) as f64
}

/// A trace of which nobody will keep anything, so that log lines and whoever is called have a name for it.
fn unkept() -> String {
    let ids = RandomIdGenerator::default();
    format!("00-{}-{}-00", ids.new_trace_id(), ids.new_span_id())
}

/// Runs a service's work in a span that [`span_in`] has made of the same `traceparent`.
pub async fn work<F: Future>(
    service: &'static str,
    correlation: String,
    traceparent: Option<&str>,
    span: Span,
    work: F,
) -> F::Output {
    let known = Work { service: Some(service), correlation: correlation.clone(), ..Work::default() };
    // This is where the span is started, so that it is one of this work.
    let known = match WORK.sync_scope(known, || of_span(&span)) {
        Some(own) => Work { trace_id: Some(own.trace_id().to_string()), kept: Some(true), ..Work::default() },
        None => {
            let parent = traceparent.filter(|it| parse(it).is_some()).map_or_else(unkept, str::to_owned);
            let trace_id = parent.get(3..35).map(str::to_owned);
            Work { trace_id, parent: Some(parent), kept: Some(false), ..Work::default() }
        }
    };
    WORK.scope(Work { service: Some(service), correlation, ..known }, work.instrument(span)).await
}

/// What is known here, to be known where a part of the work is done: on the thread of a database.
pub(crate) struct Carried(Option<Work>);

pub(crate) fn carried() -> Carried {
    let known = WORK.try_with(Clone::clone).ok();
    let parent = traceparent();
    if known.is_none() && parent.is_none() {
        return Carried(None);
    }
    let known = known.unwrap_or_default();
    let trace_id = parent.as_deref().and_then(|it| it.get(3..35)).map(str::to_owned).or(known.trace_id);
    Carried(Some(Work { trace_id, parent, ..known }))
}

impl Carried {
    pub(crate) async fn with<F: Future>(self, part: F) -> F::Output {
        match self.0 {
            Some(work) => WORK.scope(work, part).await,
            None => part.await,
        }
    }
}

/// The correlation id of the work at hand.
pub fn correlation() -> Option<String> {
    WORK.try_with(|work| work.correlation.clone()).ok().filter(|id| !id.is_empty())
}

/// The trace of the work at hand, 32 hexadecimal digits.
pub fn trace_id() -> Option<String> {
    let span = of_span(&Span::current()).map(|span| span.trace_id().to_string());
    span.or_else(|| WORK.try_with(|work| work.trace_id.clone()).ok().flatten())
}

/// The current span as a `traceparent`; without one the caller's.
pub fn traceparent() -> Option<String> {
    let span = of_span(&Span::current())
        .map(|span| format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8()));
    span.or_else(|| WORK.try_with(|work| work.parent.clone()).ok().flatten())
}

/// For a line of the log, and a span: service, correlation id and trace.
pub(crate) fn known(tell: impl FnOnce(Option<&'static str>, Option<&str>, Option<&str>)) {
    let mut tell = Some(tell);
    let _ = WORK.try_with(|work| {
        if let Some(tell) = tell.take() {
            let correlation = Some(work.correlation.as_str()).filter(|id| !id.is_empty());
            tell(work.service, correlation, work.trace_id.as_deref());
        }
    });
    if let Some(tell) = tell {
        tell(None, None, None);
    }
}

fn of_span(span: &Span) -> Option<SpanContext> {
    let context = span.context();
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

/// Adds the trace and the correlation id to a request.
pub fn inject(headers: &mut HeaderMap) {
    let pairs = [(TRACEPARENT, traceparent()), (CORRELATION_ID, correlation())];
    for (name, value) in pairs {
        if let Some(Ok(value)) = value.map(|value| HeaderValue::from_str(&value)) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// Adds the trace and the correlation id to a message.
pub fn inject_message(headers: &mut BTreeMap<String, String>) {
    headers.extend(traceparent().map(|value| (TRACEPARENT.to_owned(), value)));
    headers.extend(correlation().map(|value| (CORRELATION_ID.to_owned(), value)));
}

fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let sound =
        version.len() == 2 && version != "ff" && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    if !sound || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sound_traceparent_is_a_parent() {
        let sound = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(parse(sound).unwrap().trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        for other in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-xyz7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(parse(other).is_none(), "{other}");
        }
    }
}
