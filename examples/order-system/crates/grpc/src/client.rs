//! The client by gRPC.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use mainstay::{
    CircuitBreaker, Refused, Retry,
    circuit_breaker::{Class, ErrorClassifier},
};
use order_kit::{
    BoxError, Context,
    client::{
        CallError,
        policies::{self, CallersEnd},
        record_call,
    },
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::{Layer, ServiceExt, util::BoxCloneSyncService};
use tracing::Instrument;

use crate::{
    judge::Judge,
    proto::users::{UserRequest, UserResponse, user_service_client::UserServiceClient},
};

/// As the registry, policies and figures call the service; beside `user`, which is the same by HTTP.
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
    /// The caller's own time was over, before the service had as long as it may take.
    #[error("the caller's time is over")]
    Late,
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
                Some(UsersError::Late) => return UsersError::Late,
                None => cause = error.source(),
            }
        }
        UsersError::Status(status)
    }

    /// The code of the answer, if there was one.
    pub fn code(&self) -> Option<Code> {
        match self {
            UsersError::Refused(_) | UsersError::Late => None,
            UsersError::Status(status) => Some(status.code()),
        }
    }
}

/// As a call by HTTP would have failed.
impl From<UsersError> for CallError {
    fn from(error: UsersError) -> Self {
        let status = match error {
            UsersError::Refused(refused) => return CallError::Refused(refused),
            UsersError::Late => return CallError::Late { sent: true },
            UsersError::Status(status) => status,
        };
        let said = status.message().to_owned();
        CallError::Status { status: as_http(status.code()), said, retry_after: None }
    }
}

/// The status by which HTTP says the same.
pub(crate) fn as_http(code: Code) -> StatusCode {
    match code {
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What an answer, or none, says of the service.
fn classify(error: &UsersError) -> Class {
    match error {
        UsersError::Late => Class::Ignored,
        UsersError::Refused(_) | UsersError::Status(_) => Class::Failure,
    }
}

type Breaker = CircuitBreaker<ErrorClassifier<fn(&UsersError) -> Class, UsersError>>;
type Guarded = BoxCloneSyncService<Request<Body>, Response<Body>, UsersError>;

/// How the service is called: as by HTTP.
pub use order_kit::client::Options;

/// Users by gRPC; clones share the connections and all policies.
#[derive(Clone)]
pub struct GrpcUsers {
    context: Context,
    judge: Judge,
    client: UserServiceClient<Guarded>,
    breaker: Breaker,
    deadline: Duration,
}

impl fmt::Debug for GrpcUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcUsers").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

impl From<UserResponse> for User {
    fn from(user: UserResponse) -> Self {
        User { id: user.id, email: user.email, name: user.name, created_at: user.created_at }
    }
}

impl GrpcUsers {
    /// A client for the service of the context, whose policies show in its `/_policies`. It connects when it is first asked: to the
    /// instances that the registry knows, in turns, or where `USER_GRPC_URL` says.
    ///
    /// # Errors
    ///
    /// An option that cannot be, or a `USER_GRPC_URL` that is none.
    pub fn new(context: &Context, options: Options) -> Result<Self, BoxError> {
        let (judge, name) = (Judge::new(NAME, context.clone())?, context.policy_name(NAME));
        let breaker = policies::breaker(name.clone(), context.env());
        let breaker = breaker.classify_err(classify as fn(&UsersError) -> Class);
        let breaker = policies::build(breaker, context.env())?;
        let bulkhead = policies::bulkhead(name.clone(), options.concurrency, options.queue)?;
        // The contract only reads: everything may be asked again.
        let retry = Retry::exponential(Duration::from_millis(50))
            .cap(Duration::from_millis(500))
            .max_attempts(options.attempts)
            .idempotent()
            .clone_request(|request: &Request<Bytes>| Some(request.clone()))
            .when(|attempt: &mainstay::retry::Failure<'_, Response<Body>, UsersError>| {
                attempt.error().and_then(UsersError::code).is_some_and(|code| code != Code::DeadlineExceeded)
            })
            .name(name.clone())
            .observe(mainstay::observe::Metrics)
            .build()?;
        context.policies().add(&breaker);
        context.policies().add(&bulkhead);
        context.policies().add(&retry);
        let stack = mainstay::stack(name)
            .timeout(options.deadline)
            .circuit_breaker(breaker.clone())
            .retry(retry)
            .bulkhead(bulkhead)
            .timeout(options.attempt)
            .build()?;
        let guarded = stack.layer(judge.clone());
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
        Ok(GrpcUsers { context: context.clone(), judge, client, breaker, deadline: options.deadline })
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
        let silent = || "it does not answer".to_owned();
        let (base, channel) = self.judge.instance().await.map_err(|_| silent())?;
        match HealthClient::new(channel).check(HealthCheckRequest::default()).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
            Ok(_) => Err("it does not serve".to_owned()),
            Err(_) => {
                self.judge.lost(&base);
                Err(silent())
            }
        }
    }

    /// The user with that id, if there is one.
    ///
    /// # Errors
    ///
    /// [`UsersError`]: nobody knows.
    pub async fn get(&self, id: &str) -> Result<Option<User>, UsersError> {
        // A caller who gives up before our own limit says nothing about the service. A service that is told of it may notice first: who judges
        // its answer has to know, too.
        let end = CallersEnd::of(self.deadline);
        let mut request = tonic::Request::new(UserRequest { id: id.to_owned() });
        request.extensions_mut().insert(end);
        let mut client = self.client.clone();
        let get = async {
            match client.get_user(request).await {
                Ok(response) => Ok(Some(response.into_inner().into())),
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(UsersError::of(status)),
            }
        };
        self.called("UserService/GetUser", end, get).await
    }

    /// A call with its span, and among the service's figures.
    async fn called<T>(
        &self,
        method: &'static str,
        end: CallersEnd,
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
        let answer = end.run(call.instrument(span.clone())).await.unwrap_or(Err(UsersError::Late));
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

#[cfg(test)]
mod tests;
