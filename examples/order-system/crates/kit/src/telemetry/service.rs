//! Which service a span is of, where one process has several, and which order or request.

use std::{sync::OnceLock, time::Duration};

use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};

use crate::trace;

/// The attribute. To collectors it is said as `service.name`, of the resource that the span is exported with.
const SERVICE: &str = "service";
/// The attribute that a log line has, too.
const CORRELATION: &str = "correlation_id";

static SAGAS: OnceLock<&'static str> = OnceLock::new();

/// Says whose sagas this process moves on, for the spans in which the library does so. The first says it.
pub fn sagas_are_of(service: &'static str) {
    let _ = SAGAS.set(service);
}

/// The service of a span that has gone through [`Named`].
pub(super) fn of(span: &SpanData) -> Option<String> {
    let service = span.attributes.iter().find(|it| it.key.as_str() == SERVICE);
    service.map(|it| it.value.to_string())
}

/// Adds to each span the service in whose work it was begun, and the correlation id of that.
#[derive(Debug)]
pub(super) struct Named<P>(pub(super) P);

impl<P: SpanProcessor> SpanProcessor for Named<P> {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        use opentelemetry::trace::Span as _;
        trace::known(|service, correlation, _| {
            if let Some(service) = service {
                span.set_attribute(KeyValue::new(SERVICE, service));
            }
            if let Some(correlation) = correlation {
                span.set_attribute(KeyValue::new(CORRELATION, correlation.to_owned()));
            }
        });
        self.0.on_start(span, cx);
    }

    fn on_end(&self, mut span: SpanData) {
        if of(&span).is_none()
            && span.name.starts_with("saga")
            && let Some(service) = SAGAS.get()
        {
            span.attributes.push(KeyValue::new(SERVICE, *service));
        }
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}
