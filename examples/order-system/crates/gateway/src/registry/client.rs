//! The registry as other processes see it: a copy in memory, and an instance's own heartbeats.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use order_kit::{
    BoxError,
    auth::{SERVICE_TOKEN, ServiceTokens},
    context::Locate,
};
use serde::Serialize;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Heard, Instance, Instances, TTL, routes::Heartbeat};

/// How often the copy is renewed, and how often an instance says that it is there.
pub const EVERY: Duration = Duration::from_secs(2);
/// The least time between two renewals, however many instances are lost.
const LEAST: Duration = Duration::from_millis(100);
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// A client of the gateway's registry. It knows what it has last been told, for as long as that holds; beyond that, and until the first
/// answer, services are where `otherwise` says.
pub struct RegistryClient {
    gateway: String,
    token: String,
    http: Http<HttpConnector, Full<Bytes>>,
    copy: Instances,
    lost: Notify,
}

impl std::fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryClient({})", self.gateway)
    }
}

impl RegistryClient {
    /// A client of the gateway at that base URL. It does nothing until it [runs](Self::run) or is told to [`refresh`](Self::refresh).
    pub fn new(gateway: &str, tokens: &ServiceTokens, otherwise: Arc<dyn Locate>) -> Self {
        RegistryClient {
            gateway: gateway.trim_end_matches('/').to_owned(),
            token: tokens.send().to_owned(),
            http: Http::builder(TokioExecutor::new()).build(HttpConnector::new()),
            copy: Instances::new(TTL, otherwise),
            lost: Notify::new(),
        }
    }

    /// Keeps the copy fresh and says that `own` instances are there, until the stop; then takes them out of the registry.
    ///
    /// A gateway that is away is asked again and again; one that has forgotten an instance is told of it again.
    pub async fn run(self: Arc<Self>, own: Vec<Instance>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            for instance in &own {
                if let Err(error) = self.beat(instance).await {
                    tracing::debug!(%error, service = instance.service, "the registry was not told of an instance");
                }
            }
            if let Err(error) = self.refresh().await {
                tracing::debug!(%error, "the registry was not read");
            }
            let next = async {
                tokio::time::sleep(LEAST).await;
                let _ = timeout(EVERY - LEAST, self.lost.notified()).await;
            };
            tokio::select! {
                () = next => {}
                () = stop.cancelled() => {}
            }
        }
        for Instance { service, id, .. } in &own {
            let _ = self.ask(Method::DELETE, &format!("/registry/{service}/{id}"), Bytes::new()).await;
        }
    }

    /// Reads the registry now.
    ///
    /// # Errors
    ///
    /// That it did not answer, or not with what it should.
    pub async fn refresh(&self) -> Result<(), BoxError> {
        let (status, body) = self.ask(Method::GET, "/discover", Bytes::new()).await?;
        if status != StatusCode::OK {
            return Err(format!("the registry answered {status}").into());
        }
        self.copy.take_over(serde_json::from_slice::<Vec<Heard>>(&body)?);
        Ok(())
    }

    async fn beat(&self, instance: &Instance) -> Result<(), BoxError> {
        let beat = Heartbeat { service: instance.service.clone(), id: instance.id.clone() };
        let (status, _) = self.ask(Method::POST, "/registry/heartbeat", json(&beat)?).await?;
        match status {
            StatusCode::OK => Ok(()),
            StatusCode::NOT_FOUND => {
                match self.ask(Method::POST, "/registry/register", json(instance)?).await?.0 {
                    StatusCode::CREATED => Ok(()),
                    status => Err(format!("the registry answered {status}").into()),
                }
            }
            status => Err(format!("the registry answered {status}").into()),
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), BoxError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.gateway))
            .header(&SERVICE_TOKEN, &self.token)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        timeout(PATIENCE, async {
            let answer = self.http.request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), 1024 * 1024).collect().await?;
            Ok((status, body.to_bytes()))
        })
        .await?
    }
}

fn json(value: &impl Serialize) -> Result<Bytes, BoxError> {
    Ok(serde_json::to_vec(value)?.into())
}

impl Locate for RegistryClient {
    fn locate(&self, service: &str) -> String {
        self.copy.locate(service)
    }

    /// The instance is set aside until the registry has heard of it again, and the registry is read.
    fn lost(&self, service: &str, base: &str) {
        self.copy.lost(service, base);
        self.lost.notify_one();
    }
}
