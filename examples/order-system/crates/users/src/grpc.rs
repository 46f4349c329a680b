//! Users over gRPC: one is asked for, or all are watched.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use futures::{Stream, stream};
use http::StatusCode;
use mainstay::deadline::header;
use order_kit::{ApiError, BoxError, Context, env, fault::Verdict, server::REQUEST_TIMEOUT, trace};
use order_users_grpc::proto::{
    UserChange, UserRequest, UserResponse, WatchRequest,
    user_service_server::{UserService, UserServiceServer},
};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataMap,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    repository::Users,
    wire::{Revised, User},
};

/// How often a watcher looks for what other instances have changed; what this one changes it hears at once.
const LOOK: Duration = Duration::from_millis(500);
/// How many changes are read at once.
const BATCH: i64 = 100;
/// The largest request; an id is short.
const REQUEST_LIMIT: usize = 64 * 1024;
/// How much earlier than it was told the service gives up. At the time itself tonic would answer with `CANCELLED`, as if the caller had.
const EARLIER: Duration = Duration::from_millis(5);

/// Serves users over gRPC, and `grpc.health.v1.Health` beside it, until the context's stop. Calls need the service token; health does not.
///
/// # Errors
///
/// A database that cannot be opened, or a listener that breaks.
pub async fn serve_grpc(context: Context, listener: TcpListener) -> Result<(), BoxError> {
    let users = Users::of(&context).await?;
    let (reporter, health) = tonic_health::server::health_reporter();
    let tokens = context.tokens().clone();
    let known = move |request: Request<()>| {
        if tokens.accepts(&request.metadata().clone().into_headers()) {
            Ok(request)
        } else {
            Err(Status::unauthenticated("A service token is needed"))
        }
    };
    let service = UserServiceServer::new(Grpc { context: context.clone(), users })
        .max_decoding_message_size(REQUEST_LIMIT);
    let service = tonic::service::interceptor::InterceptedService::new(service, known);
    reporter.set_serving::<UserServiceServer<Grpc>>().await;
    let stop = context.stop().clone();
    let ends = async move {
        stop.cancelled().await;
        reporter.set_not_serving::<UserServiceServer<Grpc>>().await;
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .max_concurrent_streams(1_000)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(health)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, ends);
    let grace = context.env().get_or_default(env::SHUTDOWN_GRACE_MS).parse().unwrap_or(8_000);
    let cut = async {
        context.stop().cancelled().await;
        tokio::time::sleep(Duration::from_millis(grace)).await;
    };
    tokio::select! {
        served = server => Ok(served?),
        () = cut => {
            tracing::warn!("calls were still in flight at the end of the grace");
            Ok(())
        }
    }
}

struct Grpc {
    context: Context,
    users: Users,
}

impl Grpc {
    /// The work within the caller's trace and deadline, with the faults that are switched on.
    async fn within<T>(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
        work: impl Future<Output = Result<T, Status>> + Send,
    ) -> Result<T, Status> {
        let header = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        let parent = header(trace::TRACEPARENT);
        let make = || {
            tracing::info_span!(
                "grpc.server",
                otel.kind = "server",
                otel.name = method,
                service = self.context.name(),
                rpc.system = "grpc",
                rpc.method = method,
                rpc.grpc.status_code = tracing::field::Empty,
                otel.status_code = tracing::field::Empty,
            )
        };
        let span = trace::span_in(parent, make);
        let correlation = header(trace::CORRELATION_ID).filter(|id| id.len() <= 128);
        let correlation = correlation.map_or_else(order_kit::new_id, str::to_owned);
        let limit = told(metadata).unwrap_or(REQUEST_TIMEOUT).min(REQUEST_TIMEOUT);
        let limit = limit - EARLIER.min(limit / 4);
        let work = async {
            let at = std::time::Instant::now() + limit;
            let answer = timeout(limit, mainstay::deadline::within(at, self.faulty(work))).await;
            let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("Not done in time")));
            let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
            let span = tracing::Span::current();
            span.record("rpc.grpc.status_code", code as i32);
            if matches!(code, Code::Internal | Code::Unavailable | Code::DeadlineExceeded) {
                span.record("otel.status_code", "ERROR");
            }
            tracing::info!(method, code = ?code, trace_id = trace::trace_id(), correlation_id = trace::correlation(), "call");
            answer
        };
        trace::work(self.context.name(), correlation, parent, span, work).await
    }

    async fn faulty<T>(&self, work: impl Future<Output = Result<T, Status>> + Send) -> Result<T, Status> {
        let (verdict, wait) = self.context.faults().next();
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let broken = || Status::internal("Internal server error");
        match verdict {
            Verdict::Pass => work.await,
            Verdict::Fail => Err(broken()),
            Verdict::EffectThenFail => {
                let _ = work.await;
                Err(broken())
            }
            Verdict::EffectThenHang => {
                let _ = work.await;
                std::future::pending().await
            }
            Verdict::Reject => Err(Status::resource_exhausted("Too many requests")),
            Verdict::Hang => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl UserService for Grpc {
    async fn get_user(&self, request: Request<UserRequest>) -> Result<Response<UserResponse>, Status> {
        let (metadata, _, UserRequest { id }) = request.into_parts();
        let work = async {
            let user = self.users.find(id).await.map_err(status)?;
            let user = user.ok_or_else(|| Status::not_found("User not found"))?;
            Ok(Response::new(user.into()))
        };
        self.within("UserService/GetUser", &metadata, work).await
    }

    type WatchUsersStream = Pin<Box<dyn Stream<Item = Result<UserChange, Status>> + Send>>;

    async fn watch_users(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchUsersStream>, Status> {
        let (metadata, _, WatchRequest { after, from_now }) = request.into_parts();
        let work = async {
            let changed = self.users.changed();
            let after = if from_now { self.users.revision().await.map_err(status)? } else { after };
            Ok(Watcher {
                users: self.users.clone(),
                stop: self.context.stop().clone(),
                until: told(&metadata).map(|limit| Instant::now() + limit),
                changed,
                after,
                read: VecDeque::new(),
            })
        };
        let watcher = self.within("UserService/WatchUsers", &metadata, work).await?;
        let changes = stream::try_unfold(watcher, async |mut watcher: Watcher| {
            watcher.next().await.map(|change| Some((change, watcher)))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

/// Reads changes when its caller takes them: one that is slow costs no memory here.
struct Watcher {
    users: Users,
    stop: CancellationToken,
    /// When the caller's time is over, if it said so.
    until: Option<Instant>,
    changed: watch::Receiver<()>,
    /// The last revision that was read.
    after: i64,
    read: VecDeque<Revised>,
}

impl Watcher {
    async fn next(&mut self) -> Result<UserChange, Status> {
        loop {
            if let Some(Revised { revision, user }) = self.read.pop_front() {
                return Ok(UserChange { revision, user: Some(user.into()) });
            }
            // Before the reading: what changes meanwhile is read the next time.
            self.changed.mark_unchanged();
            self.read = self.users.after(self.after, BATCH).await.map_err(status)?.into();
            if let Some(last) = self.read.back() {
                self.after = last.revision;
                continue;
            }
            let look = Instant::now() + LOOK;
            let wake = self.until.map_or(look, |until| until.min(look));
            tokio::select! {
                _ = self.changed.changed() => {}
                () = sleep_until(wake) => {}
                () = self.stop.cancelled() => return Err(Status::unavailable("The service ends")),
            }
            if self.until.is_some_and(|until| until <= Instant::now()) {
                return Err(Status::deadline_exceeded("The caller's time is over"));
            }
        }
    }
}

impl From<User> for UserResponse {
    fn from(user: User) -> Self {
        UserResponse { id: user.id, name: user.name, email: user.email, created_at: user.created_at }
    }
}

/// How long the caller waits: `grpc-timeout`, a number of at most eight digits and a unit. One that is none is ignored, as others do.
fn told(metadata: &MetadataMap) -> Option<Duration> {
    header::from_grpc(metadata.get(header::GRPC_TIMEOUT)?.to_str().ok()?).ok()
}

/// What an answer over REST says, as gRPC says it.
fn status(error: impl Into<ApiError>) -> Status {
    let error = error.into();
    let code = match error.status {
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::NOT_FOUND => Code::NotFound,
        _ => Code::Internal,
    };
    Status::new(code, error.message)
}

#[cfg(test)]
mod tests {
    use order_kit::fault::Faults;

    use super::*;

    #[test]
    fn a_timeout_is_read_in_all_units_and_nothing_else_is() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            told(&metadata)
        };
        let all = ["1H", "2M", "3S", "4m", "5u", "6n"].map(|text| read(text).unwrap().as_nanos());
        assert_eq!(all, [3_600_000_000_000, 120_000_000_000, 3_000_000_000, 4_000_000, 5_000, 6]);
        assert!(read("99999999H").is_some(), "the largest that the protocol knows");
        for none in ["", "1", "m", "-1m", "+1m", "1.5S", "100000000n", "1s", "1 m"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    /// tonic itself would say `CANCELLED`, at the time and not before it.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_too_long_is_answered_before_its_deadline() {
        let data = tempfile::tempdir().unwrap();
        let broker = order_broker::open("memory:").await.unwrap();
        let locate = std::sync::Arc::new(order_kit::context::Ports(3000));
        let context = Context::new(crate::NAME, env::Env::empty(), data.path(), broker, locate);
        let users = Users::of(&context).await.unwrap();
        let grpc = Grpc { context: context.clone(), users };
        context.faults().set(Faults { hang: true, ..Faults::default() });
        let mut request = Request::new(UserRequest { id: "alice".to_owned() });
        request.metadata_mut().insert("grpc-timeout", "100m".parse().unwrap());
        let began = Instant::now();
        let status = grpc.get_user(request).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let took = began.elapsed();
        assert!((90..100).contains(&took.as_millis()), "{took:?}");
        context.stop().cancel();
        context.finished().await;
    }
}
