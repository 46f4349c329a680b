//! Log lines: one JSON object each, with the service, the trace and the correlation id of the work that says it.

use std::{fmt, io::Write, sync::Arc};

use serde::ser::{SerializeMap, Serializer};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use crate::trace;

/// Takes whole lines.
pub type Output = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// The process's standard output.
pub fn stdout() -> Output {
    Arc::new(|line| {
        // Whoever reads it may have gone; that is no reason to go as well.
        let _ = std::io::stdout().lock().write_all(line);
    })
}

/// Writes each event as one line. It keeps nothing of spans, so that they cost nothing here.
pub(super) struct Lines {
    output: Output,
}

impl Lines {
    pub(super) fn new(output: Output) -> Self {
        Lines { output }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Vec::with_capacity(256);
        if write(event, &mut line).is_ok() {
            line.push(b'\n');
            (self.output)(&line);
        }
    }
}

fn write(event: &Event<'_>, line: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let mut serializer = serde_json::Serializer::new(line);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("timestamp", &crate::iso(crate::now_ms()))?;
    map.serialize_entry("level", event.metadata().level().as_str())?;
    map.serialize_entry("target", event.metadata().target())?;
    let mut fields = Fields { map, result: Ok(()) };
    event.record(&mut fields);
    fields.result?;
    let mut map = fields.map;
    let mut result = Ok(());
    trace::known(|service, correlation, trace| {
        let known = [("service", service), ("correlation_id", correlation), ("trace_id", trace)];
        result = known
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .try_for_each(|(name, value)| map.serialize_entry(name, value));
    });
    result?;
    map.end()
}

struct Fields<M: SerializeMap> {
    map: M,
    result: Result<(), M::Error>,
}

impl<M: SerializeMap> Fields<M> {
    fn put<T: serde::Serialize + ?Sized>(&mut self, field: &Field, value: &T) {
        // These are said for every line.
        if self.result.is_ok() && !matches!(field.name(), "service" | "correlation_id" | "trace_id") {
            self.result = self.map.serialize_entry(field.name(), value);
        }
    }
}

impl<M: SerializeMap> Visit for Fields<M> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, &value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, &value.to_string());
    }
}
