//! What of gRPC the policies see: a channel whose answers are errors where the server could not do its work.
//!
//! A call of gRPC that fails is an answer of HTTP all the same, with status 200 and the code in a header or after the body. A policy
//! around a bare channel would take every one of them for a success.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use mainstay::deadline::header;
use order_kit::{auth, trace};
use tonic::{Code, Status, body::Body, transport::Channel};
use tower::Service;

use crate::client::UsersError;

/// The most that is read of an answer.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static(header::GRPC_TIMEOUT);

/// Whether the code says that the server could not do its work. The others (`NOT_FOUND`, `INVALID_ARGUMENT`, …) are its word.
pub fn is_failure(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Internal)
}

/// How the answer to a request comes; known from the request alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// One message, which is read whole, so that a code behind it is seen.
    One,
    /// A stream: what fails after its head is its reader's concern.
    Stream,
}

/// A channel that shows the service token, passes on trace and deadline, and tells failures from answers.
#[derive(Clone)]
pub(crate) struct Judge {
    channel: Channel,
    context: order_kit::Context,
}

impl Judge {
    pub(crate) fn new(channel: Channel, context: order_kit::Context) -> Self {
        Judge { channel, context }
    }
}

impl Service<Request<Bytes>> for Judge {
    type Response = Response<Body>;
    type Error = UsersError;
    type Future = BoxFuture<'static, Result<Response<Body>, UsersError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UsersError>> {
        self.channel.poll_ready(cx).map_err(of_transport)
    }

    fn call(&mut self, mut request: Request<Bytes>) -> Self::Future {
        // The instance that is ready is the one that is called.
        let fresh = self.channel.clone();
        let mut channel = std::mem::replace(&mut self.channel, fresh);
        let token = HeaderValue::from_str(self.context.tokens().send());
        Box::pin(async move {
            let answer = request.extensions().get::<Answer>().copied().unwrap_or(Answer::One);
            let token =
                token.map_err(|_| UsersError::Status(Status::internal("a service token that is none")))?;
            request.headers_mut().insert(&auth::SERVICE_TOKEN, token);
            trace::inject(request.headers_mut());
            if let (Answer::One, Some(left)) = (answer, mainstay::deadline::remaining()) {
                // A server does not have to know what no time at all means.
                let left = header::to_grpc(left.max(Duration::from_millis(1)));
                if let Ok(left) = HeaderValue::from_str(&left) {
                    request.headers_mut().insert(&GRPC_TIMEOUT, left);
                }
            }
            let request = request.map(|bytes| Body::new(Full::new(bytes)));
            let response = channel.call(request).await.map_err(of_transport)?;
            judged(response, answer).await
        })
    }
}

async fn judged(response: Response<Body>, answer: Answer) -> Result<Response<Body>, UsersError> {
    let status = response.status();
    if status.is_server_error() || status == http::StatusCode::TOO_MANY_REQUESTS {
        return Err(UsersError::Status(Status::unavailable(format!("it answered {}", status.as_u16()))));
    }
    refuse_failure(Status::from_header_map(response.headers()))?;
    if answer == Answer::Stream {
        return Ok(response);
    }
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

fn of_transport(error: tonic::transport::Error) -> UsersError {
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
