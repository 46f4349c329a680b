//! What of gRPC the policies see: an instance of the service at a time, whose answers are errors where it could not do its work.
//!
//! A call of gRPC that fails is an answer of HTTP all the same, with status 200 and the code in a header or after the body. A policy
//! around a bare channel would take every one of them for a success.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use mainstay::deadline::header;
use order_kit::{auth, client::policies::CallersEnd, resolve::Names, trace};
use tonic::{
    Code, Status,
    body::Body,
    transport::{Channel, Endpoint, Error},
};
use tower::{Service, ServiceExt};

use crate::client::{UsersError, as_http};

/// The most that is read of an answer.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;
/// How many connections are kept: more than a service has instances.
const MOST_CHANNELS: usize = 100;
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static(header::GRPC_TIMEOUT);

/// Where a service is, connected to as all services are: one that is gone without a word is noticed.
///
/// # Errors
///
/// An address that is none.
pub fn endpoint(base: &str) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(url(base))?
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5)))
}

fn url(base: &str) -> String {
    if base.contains("://") { base.to_owned() } else { format!("http://{base}") }
}

/// Whether the code says that the server could not do its work. The others (`NOT_FOUND`, `INVALID_ARGUMENT`, …) are its word.
fn is_failure(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Internal)
}

/// Asks the instances of a service in turns, each over a connection of its own; shows the service token, passes on trace and deadline, and
/// tells failures from answers.
#[derive(Clone)]
pub(crate) struct Judge {
    service: &'static str,
    context: order_kit::Context,
    names: Names,
    /// By the base URL, and the address that it stood for when the connection was made.
    channels: Arc<Mutex<HashMap<(String, String), Channel>>>,
}

impl Judge {
    /// # Errors
    ///
    /// An address that is none.
    pub(crate) fn new(service: &'static str, context: order_kit::Context) -> Result<Self, Error> {
        endpoint(&context.locate(service))?;
        Ok(Judge { service, context, names: Names::system(), channels: Arc::default() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to an instance, which is made when it is first used.
    fn channel(&self, base: &str, at: &str) -> Result<Channel, Error> {
        let mut channels = self.lock();
        let place = (base.to_owned(), at.to_owned());
        if let Some(channel) = channels.get(&place) {
            return Ok(channel.clone());
        }
        // The server is told its name, as by HTTP.
        let channel = endpoint(at)?.origin(endpoint(base)?.uri().clone()).connect_lazy();
        // Instances come and go, and nobody says which will not be back.
        if channels.len() >= MOST_CHANNELS {
            channels.clear();
        }
        channels.insert(place, channel.clone());
        Ok(channel)
    }

    /// The instance whose turn it is: where it is, and the connection to it.
    pub(crate) async fn instance(&self) -> Result<(String, Channel), UsersError> {
        let base = self.context.locate(self.service);
        let url = url(&base);
        let (at, _) = self.names.resolved(&url).await.map_err(|error| {
            self.lost(&base);
            UsersError::Status(Status::unavailable(error.to_string()))
        })?;
        let channel = self.channel(&base, &at).map_err(of_transport)?;
        Ok((base, channel))
    }

    /// The instance there could not be reached.
    pub(crate) fn lost(&self, base: &str) {
        self.context.lost(self.service, base);
        self.lock().retain(|(of, _), _| of != base);
    }

    async fn ask(self, mut request: Request<Bytes>) -> Result<Response<Body>, UsersError> {
        let end = request.extensions().get::<CallersEnd>().copied();
        let token = HeaderValue::from_str(self.context.tokens().send())
            .map_err(|_| UsersError::Status(Status::internal("a service token that is none")))?;
        request.headers_mut().insert(&auth::SERVICE_TOKEN, token);
        trace::inject(request.headers_mut());
        if let Some(left) = mainstay::deadline::remaining() {
            // A server does not have to know what no time at all means.
            let left = header::to_grpc(left.max(Duration::from_millis(1)));
            if let Ok(left) = HeaderValue::from_str(&left) {
                request.headers_mut().insert(&GRPC_TIMEOUT, left);
            }
        }
        let request = request.map(|bytes| Body::new(Full::new(bytes)));
        let (base, channel) = self.instance().await?;
        let hurry = |error: UsersError| match error.code() {
            Some(code) if end.is_some_and(|end| end.explains(as_http(code))) => UsersError::Late,
            _ => error,
        };
        match channel.oneshot(request).await.map_err(of_transport) {
            Ok(response) => judged(response).await.map_err(hurry),
            // The channel keeps to the time that the request names, too: that it is over is not the connection's fault.
            Err(error) if error.code() == Some(Code::DeadlineExceeded) => Err(hurry(error)),
            Err(error) => {
                self.lost(&base);
                Err(error)
            }
        }
    }
}

impl Service<Request<Bytes>> for Judge {
    type Response = Response<Body>;
    type Error = UsersError;
    type Future = BoxFuture<'static, Result<Response<Body>, UsersError>>;

    /// Which instance is asked, and so which has to be ready, is known when it is.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UsersError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(self.clone().ask(request))
    }
}

/// The answer, read whole, so that a code behind its message is seen.
async fn judged(response: Response<Body>) -> Result<Response<Body>, UsersError> {
    let status = response.status();
    if status.is_server_error() || status == http::StatusCode::TOO_MANY_REQUESTS {
        return Err(UsersError::Status(Status::unavailable(format!("it answered {}", status.as_u16()))));
    }
    refuse_failure(Status::from_header_map(response.headers()))?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(of_body)?;
    refuse_failure(body.trailers().and_then(Status::from_header_map))?;
    Ok(Response::from_parts(parts, Body::new(body)))
}

fn refuse_failure(status: Option<Status>) -> Result<(), UsersError> {
    match status {
        Some(status) if is_failure(status.code()) => Err(UsersError::Status(status)),
        _ => Ok(()),
    }
}

fn of_transport(error: Error) -> UsersError {
    let mut status = Status::from_error(Box::new(error));
    // Whatever broke on the way to the server, it was not the server's word.
    if !is_failure(status.code()) {
        let code = if status.code() == Code::Cancelled { Code::DeadlineExceeded } else { Code::Unavailable };
        status = Status::new(code, status.message());
    }
    UsersError::Status(status)
}

fn of_body(error: Box<dyn std::error::Error + Send + Sync>) -> UsersError {
    let status = Status::from_error(error);
    let code = if is_failure(status.code()) { status.code() } else { Code::Unavailable };
    UsersError::Status(Status::new(code, status.message()))
}
