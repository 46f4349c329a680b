//! The client by gRPC.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use mainstay::{CircuitBreaker, Refused, Retry};
use order_kit::{
    BoxError, Context,
    client::{
        CallError,
        policies::{self, CallersEnd},
        record_call,
    },
    env,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::{
    Code, Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::{Layer, ServiceExt, util::BoxCloneSyncService};
use tracing::Instrument;

use crate::{
    judge::{Answer, Judge},
    proto::{self, user_service_client::UserServiceClient},
};

/// Where users are by gRPC if nothing says otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:50051";
/// As policies and spans call the service; beside `user`, which is the same by HTTP.
const NAME: &str = "user.grpc";

/// A user as the contract shows one. As JSON it is what `GET /users/{id}` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The id.
    pub id: String,
    /// The e-mail address.
    pub email: String,
    /// The name.
    pub name: String,
    /// When the user was made, as RFC 3339.
    pub created_at: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// A policy ended the call.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// The server could not do its work, or could not be reached, or did not accept the request.
    #[error("{0}")]
    Status(Status),
}

impl UsersError {
    /// What the generated client makes of an error of ours is a status with the error behind it.
    fn of(status: Status) -> Self {
        let mut cause = std::error::Error::source(&status);
        while let Some(error) = cause {
            match error.downcast_ref::<UsersError>() {
                Some(UsersError::Refused(refused)) => return UsersError::Refused(refused.clone()),
                Some(UsersError::Status(inner)) => {
                    return UsersError::Status(Status::new(inner.code(), inner.message()));
                }
                None => cause = error.source(),
            }
        }
        UsersError::Status(status)
    }

    /// The code of the answer, if there was one.
    pub fn code(&self) -> Option<Code> {
        match self {
            UsersError::Refused(_) => None,
            UsersError::Status(status) => Some(status.code()),
        }
    }
}

/// As a call by HTTP would have failed.
impl From<UsersError> for CallError {
    fn from(error: UsersError) -> Self {
        let status = match error {
            UsersError::Refused(refused) => return CallError::Refused(refused),
            UsersError::Status(status) => status,
        };
        let code = match status.code() {
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        CallError::Status { status: code, said: status.message().to_owned(), retry_after: None }
    }
}

type Guarded = BoxCloneSyncService<Request<Body>, Response<Body>, UsersError>;

/// How the service is called: as by HTTP.
pub use order_kit::client::Options;

/// Users by gRPC; clones share the connection and all policies.
#[derive(Clone)]
pub struct GrpcUsers {
    context: Context,
    channel: Channel,
    client: UserServiceClient<Guarded>,
    breaker: CircuitBreaker,
    deadline: Duration,
}

impl fmt::Debug for GrpcUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcUsers").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

/// Users as they change.
#[derive(Debug)]
pub struct Changes(tonic::Streaming<proto::UserChange>);

impl Changes {
    /// The next one: its revision, from where to go on after a lost connection, and the user. `None` when the server has ended it.
    ///
    /// # Errors
    ///
    /// [`UsersError::Status`]; the stream has ended then.
    pub async fn next(&mut self) -> Result<Option<(i64, User)>, UsersError> {
        let Some(change) = self.0.message().await.map_err(UsersError::of)? else { return Ok(None) };
        let user = change.user.ok_or_else(|| UsersError::Status(Status::internal("a change of nobody")))?;
        Ok(Some((change.revision, user.into())))
    }
}

impl From<proto::UserResponse> for User {
    fn from(user: proto::UserResponse) -> Self {
        User { id: user.id, email: user.email, name: user.name, created_at: user.created_at }
    }
}

impl GrpcUsers {
    /// A client for the service of the context, whose policies show in its `/_policies`. It connects when it is first asked.
    ///
    /// # Errors
    ///
    /// An option that cannot be, or a `USER_GRPC_URL` that is none.
    pub fn new(context: &Context, options: Options) -> Result<Self, BoxError> {
        let url = context.env().get(env::USER_GRPC_URL).unwrap_or_else(|| DEFAULT_URL.to_owned());
        let url = if url.contains("://") { url } else { format!("http://{url}") };
        let channel = Endpoint::from_shared(url)?
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .connect_lazy();
        let breaker = policies::build(policies::breaker(NAME, context.env()), context.env())?;
        let bulkhead = policies::bulkhead(NAME, options.concurrency, options.queue)?;
        // The contract only reads: everything may be asked again.
        let retry = Retry::exponential(Duration::from_millis(50))
            .cap(Duration::from_millis(500))
            .max_attempts(options.attempts)
            .idempotent()
            .clone_request(|request: &Request<Bytes>| Some(request.clone()))
            .when(|attempt: &mainstay::retry::Failure<'_, Response<Body>, UsersError>| {
                attempt.error().and_then(UsersError::code).is_some_and(|code| code != Code::DeadlineExceeded)
            })
            .name(NAME)
            .observe(mainstay::observe::Metrics)
            .build()?;
        context.policies().add(&breaker);
        context.policies().add(&bulkhead);
        context.policies().add(&retry);
        let stack = mainstay::stack(NAME)
            .timeout(options.deadline)
            .circuit_breaker(breaker.clone())
            .retry(retry)
            .bulkhead(bulkhead)
            .timeout(options.attempt)
            .build()?;
        let guarded = stack.layer(Judge::new(channel.clone(), context.clone()));
        // The body of a request is read first, so that it can be sent again.
        let service = tower::service_fn(move |request: Request<Body>| {
            let guarded = guarded.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map_err(UsersError::Status)?.to_bytes();
                guarded.oneshot(Request::from_parts(parts, body)).await
            }
        });
        let client = UserServiceClient::new(BoxCloneSyncService::new(service));
        Ok(GrpcUsers { context: context.clone(), channel, client, breaker, deadline: options.deadline })
    }

    /// Whether the breaker lets nothing through.
    pub fn is_open(&self) -> bool {
        self.breaker.retry_at().is_some()
    }

    /// Whether the service is well, as [`Client::alive`](order_kit::client::Client::alive) says by HTTP: its own health, past the policies.
    ///
    /// # Errors
    ///
    /// What is wrong, without an address.
    pub async fn alive(&self) -> Result<(), String> {
        if self.is_open() {
            return Err("it is left alone for a while, since calls to it failed".to_owned());
        }
        let mut health = HealthClient::new(self.channel.clone());
        match health.check(HealthCheckRequest::default()).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
            Ok(_) => Err("it does not serve".to_owned()),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    /// The user with that id, if there is one.
    ///
    /// # Errors
    ///
    /// [`UsersError`]: nobody knows.
    pub async fn get(&self, id: &str) -> Result<Option<User>, UsersError> {
        let request = asking(proto::UserRequest { id: id.to_owned() }, Answer::One);
        let mut client = self.client.clone();
        let get = async {
            match client.get_user(request).await {
                Ok(response) => Ok(Some(response.into_inner().into())),
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(UsersError::of(status)),
            }
        };
        self.called("UserService/GetUser", get).await
    }

    /// Users as they change: those after a revision, or from now on. The policies hold until it has begun.
    ///
    /// # Errors
    ///
    /// [`UsersError`].
    pub async fn watch(&self, after: Option<i64>) -> Result<Changes, UsersError> {
        let request = proto::WatchRequest { after: after.unwrap_or(0), from_now: after.is_none() };
        let mut client = self.client.clone();
        let watch =
            async { client.watch_users(asking(request, Answer::Stream)).await.map_err(UsersError::of) };
        self.called("UserService/WatchUsers", watch).await.map(|stream| Changes(stream.into_inner()))
    }

    /// A call with its span, and among the service's figures.
    async fn called<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, UsersError>>,
    ) -> Result<T, UsersError> {
        let span = tracing::info_span!(
            "grpc.client",
            otel.kind = "client",
            otel.name = method,
            peer.service = "user",
            rpc.system = "grpc",
            rpc.method = method,
            otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
        );
        let began = Instant::now();
        // A caller who gives up before our own limit says nothing about the service.
        let answer = CallersEnd::of(self.deadline).run(call.instrument(span.clone())).await;
        let answer = answer.unwrap_or_else(|| {
            Err(UsersError::Status(Status::deadline_exceeded("the caller's time is over")))
        });
        let outcome = match &answer {
            Ok(_) => "ok",
            Err(UsersError::Refused(refused)) if !refused.was_started() => "refused",
            Err(_) => "failed",
        };
        if let Err(error) = &answer {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", tracing::field::display(error));
        }
        record_call(&self.context, NAME, outcome, began.elapsed());
        answer
    }
}

fn asking<T>(message: T, answer: Answer) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(answer);
    request
}
