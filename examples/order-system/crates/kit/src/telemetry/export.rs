//! Spans as OTLP over HTTP, in batches.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::KeyValue;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter as Otlp, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter},
};
use tokio::sync::{mpsc, oneshot};

use super::service;
use crate::BoxError;

/// How long a collector may take for a batch. What it does not take is dropped: spans are worth less than the service.
const TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: usize = 64 * 1024;

/// Exports the spans of each service with a resource of its own: that is where collectors read `service.name`, and one exporter has one.
#[derive(Debug)]
pub(super) struct PerService {
    endpoint: String,
    sender: Sender,
    /// Whose all spans are; by default each says itself.
    process: Option<String>,
    exporters: Mutex<BTreeMap<String, Arc<Otlp>>>,
}

/// Of spans that nobody's work has made.
const NOBODYS: &str = "order-system";

impl PerService {
    pub(super) fn new(endpoint: &str, process: Option<String>) -> Result<Self, BoxError> {
        let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let this = PerService { endpoint, sender: Sender::start()?, process, exporters: Mutex::default() };
        // An endpoint that is none is said at once.
        this.exporter(NOBODYS)?;
        Ok(this)
    }

    fn exporter(&self, service: &str) -> Result<Arc<Otlp>, ExporterBuildError> {
        let mut exporters = self.exporters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = exporters.get(service) {
            return Ok(known.clone());
        }
        let mut exporter = Otlp::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&self.endpoint)
            .with_timeout(TIMEOUT)
            .with_http_client(self.sender.clone())
            .build()?;
        let name = KeyValue::new("service.name", service.to_owned());
        exporter.set_resource(&Resource::builder_empty().with_attribute(name).build());
        let exporter = Arc::new(exporter);
        exporters.insert(service.to_owned(), exporter.clone());
        Ok(exporter)
    }

    fn service_of(&self, span: &SpanData) -> String {
        self.process.clone().or_else(|| service::of(span)).unwrap_or_else(|| NOBODYS.to_owned())
    }
}

impl SpanExporter for PerService {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut by_service: BTreeMap<String, Vec<SpanData>> = BTreeMap::new();
        for span in batch {
            by_service.entry(self.service_of(&span)).or_default().push(span);
        }
        let mut exported = Ok(());
        for (service, spans) in by_service {
            let sent = match self.exporter(&service) {
                Ok(exporter) => exporter.export(spans).await,
                Err(error) => Err(OTelSdkError::InternalFailure(error.to_string())),
            };
            exported = exported.and(sent);
        }
        exported
    }
}

type Answer = Result<Response<Bytes>, HttpError>;

/// Hands requests to a thread of its own: whoever flushes at the end may hold the last thread of the services' runtime.
#[derive(Clone)]
struct Sender {
    requests: mpsc::UnboundedSender<(Request<Bytes>, oneshot::Sender<Answer>)>,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

impl Sender {
    fn start() -> Result<Self, BoxError> {
        let (requests, mut queue) = mpsc::unbounded_channel::<(Request<Bytes>, oneshot::Sender<Answer>)>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("otlp".to_owned()).spawn(move || {
            runtime.block_on(async {
                let http: Http<HttpConnector, Full<Bytes>> =
                    Http::builder(TokioExecutor::new()).build(HttpConnector::new());
                while let Some((request, answer)) = queue.recv().await {
                    let late = |_| HttpError::from("no answer in time");
                    let sent = tokio::time::timeout(TIMEOUT, send(&http, request)).await;
                    let _ = answer.send(sent.map_err(late).and_then(|answer| answer));
                }
            });
        })?;
        Ok(Sender { requests })
    }
}

async fn send(http: &Http<HttpConnector, Full<Bytes>>, request: Request<Bytes>) -> Answer {
    let (parts, body) = http.request(request.map(Full::new)).await?.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

#[async_trait::async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Answer {
        let (answer, wait) = oneshot::channel();
        self.requests.send((request, answer))?;
        wait.await?
    }
}
