//! Spans as OTLP over HTTP, in batches.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use tokio::sync::{mpsc, oneshot};

use crate::BoxError;

/// How long a collector may take for a batch. What it does not take is dropped: spans are worth less than the service.
const TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: usize = 64 * 1024;

pub(super) fn exporter(endpoint: &str) -> Result<SpanExporter, BoxError> {
    let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    Ok(SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .with_timeout(TIMEOUT)
        .with_http_client(Sender::start()?)
        .build()?)
}

type Answer = Result<Response<Bytes>, HttpError>;

/// Hands requests to a thread of its own: whoever flushes at the end may hold the last thread of the services' runtime.
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
