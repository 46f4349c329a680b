//! What a trace shows of an order.

use std::{collections::BTreeMap, sync::OnceLock};

use opentelemetry::trace::{Status, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing_subscriber::layer::SubscriberExt;

use crate::world::{World, eventually};

/// One for all tests of this program: work goes on in tasks and threads that know no other.
fn exporter() -> &'static InMemorySpanExporter {
    static EXPORTER: OnceLock<InMemorySpanExporter> = OnceLock::new();
    EXPORTER.get_or_init(|| {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        // As the kit has it, without what it adds to each span: whose it is.
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("test"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false);
        let _ = tracing::subscriber::set_global_default(
            tracing_subscriber::registry().with(tracing_subscriber::filter::LevelFilter::INFO).with(layer),
        );
        std::mem::forget(provider);
        exporter
    })
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|pair| pair.key.as_str() == name);
    found.map(|pair| pair.value.to_string())
}

/// All that a span says of itself.
fn all_of(span: &SpanData) -> BTreeMap<String, String> {
    span.attributes.iter().map(|pair| (pair.key.to_string(), pair.value.to_string())).collect()
}

fn attributes<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

async fn span_of(name: &str, id_name: &str, id: &str) -> SpanData {
    let mut found = None;
    eventually(&format!("{name} of {id} is exported"), async || {
        let spans = exporter().get_finished_spans().unwrap();
        found = spans
            .into_iter()
            .find(|span| span.name == name && attribute(span, id_name).as_deref() == Some(id));
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test]
async fn an_order_is_one_trace() {
    exporter();
    let world = World::new().await;
    let id = world.order("ada", 3).await;
    world.over(&id).await;
    let create = span_of("createOrder", "orderId", &id).await;
    let whose = attributes([("userId", "ada"), ("orderId", &id)]);
    for inner in ["validateUser", "saveOrder"] {
        let inner = span_of(inner, "orderId", &id).await;
        assert_eq!(inner.parent_span_id, create.span_context.span_id());
        assert_eq!(inner.span_context.trace_id(), create.span_context.trace_id());
        assert_eq!(all_of(&inner), whose);
    }
    assert_eq!(all_of(&create), whose);
    let process = span_of("process-order", "order.id", &id).await;
    assert_eq!(process.span_context.trace_id(), create.span_context.trace_id());
    assert_eq!(all_of(&process), attributes([("order.id", &id), ("order.total", "0.30")]));
    let events: Vec<&str> = process.events.iter().map(|event| &*event.name).collect();
    assert_eq!(events, ["order validated", "payment charged"]);
    assert_eq!(process.status, Status::Ok);
    world.end().await;
}

#[tokio::test]
async fn a_declined_order_says_why() {
    exporter();
    let world = World::new().await;
    world.neighbours.declined.lock().unwrap().insert("eve".to_owned());
    let id = world.order("eve", 3).await;
    world.over(&id).await;
    let process = span_of("process-order", "order.id", &id).await;
    assert_eq!(process.status, Status::error("card_declined"));
    assert_eq!(all_of(&process), attributes([("order.id", &id), ("order.total", "0.30")]));
    let exception = process.events.iter().find(|event| event.name == "exception").expect("an exception");
    let message = exception.attributes.iter().find(|pair| pair.key.as_str() == "exception.message");
    assert_eq!(message.unwrap().value.to_string(), "card_declined");
    assert!(process.events.iter().all(|event| event.name != "payment charged"));
    world.end().await;
}
