//! Serving by gRPC: around each call is what is around each request by HTTP, the service token, the caller's trace and deadline, and the faults
//! that are switched on; and the end is an orderly one.

use std::{convert::Infallible, time::Duration};

use http::StatusCode;
use mainstay::deadline::header;
use order_kit::{
    ApiError, BoxError, Context, env, fault::Verdict, server::REQUEST_TIMEOUT, telemetry, trace,
};
use tokio::{
    net::TcpListener,
    time::{Instant, timeout_at},
};
use tonic::{
    Code, Request, Status,
    body::Body,
    metadata::MetadataMap,
    server::NamedService,
    service::interceptor::InterceptedService,
    transport::{Server, server::TcpIncoming},
};

/// The largest request, for services to be built with; an id is short.
pub const REQUEST_LIMIT: usize = 64 * 1024;
/// How much earlier than it was told a service gives up. At the time itself tonic would answer with `CANCELLED`, as if the caller had.
const EARLIER: Duration = Duration::from_millis(5);

/// Serves it, and `grpc.health.v1.Health` beside it, until the context's stop. Health says so then, new calls are taken for
/// `SHUTDOWN_DELAY_MS` more, and what is in flight has the grace to end by itself. Calls need the service token; health does not.
///
/// # Errors
///
/// A listener that breaks.
pub async fn serve<S>(context: Context, listener: TcpListener, service: S) -> Result<(), BoxError>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let (reporter, health) = tonic_health::server::health_reporter();
    let tokens = context.tokens().clone();
    let known = move |request: Request<()>| {
        if tokens.accepts(&request.metadata().clone().into_headers()) {
            Ok(request)
        } else {
            Err(Status::unauthenticated("A service token is needed"))
        }
    };
    reporter.set_serving::<S>().await;
    let stop = context.stop().clone();
    let delay = context.env().ms(env::SHUTDOWN_DELAY_MS);
    let ends = async move {
        stop.cancelled().await;
        // By its name, and as what is asked for by no name.
        reporter.set_not_serving::<S>().await;
        reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        tokio::time::sleep(delay).await;
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .max_concurrent_streams(1_000)
        // Whoever has gone without a word is noticed.
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(health)
        .add_service(InterceptedService::new(service, known))
        .serve_with_incoming_shutdown(incoming, ends);
    let cut = async {
        context.stop().cancelled().await;
        tokio::time::sleep(delay + context.env().ms(env::SHUTDOWN_GRACE_MS)).await;
    };
    tokio::select! {
        served = server => Ok(served?),
        () = cut => {
            tracing::warn!("calls were still in flight at the end of the grace");
            Ok(())
        }
    }
}

/// When to give up: a little before the caller does, if it has said when that is.
pub fn end(metadata: &MetadataMap) -> Option<Instant> {
    told(metadata).map(|limit| Instant::now() + limit - EARLIER.min(limit / 4))
}

/// The work within the caller's trace and deadline, with the faults that are switched on. Of a stream, what comes before its first message.
///
/// # Errors
///
/// The work's, or that it was not done in time.
pub async fn call<T>(
    context: &Context,
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
            rpc.system = "grpc",
            rpc.method = method,
            rpc.grpc.status_code = tracing::field::Empty,
            otel.status_code = tracing::field::Empty,
        )
    };
    let span = trace::span_in(parent, make);
    let correlation = header(trace::CORRELATION_ID).filter(|id| id.len() <= 128);
    let correlation = correlation.map_or_else(order_kit::new_id, str::to_owned);
    let began = Instant::now();
    let longest = began + REQUEST_TIMEOUT;
    let end = end(metadata).map_or(longest, |end| end.min(longest));
    let work = async {
        let work = mainstay::deadline::within(end.into_std(), faulty(context, work));
        let answer = timeout_at(end, work).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("Not done in time")));
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let span = tracing::Span::current();
        span.record("rpc.grpc.status_code", code as i32);
        if matches!(code, Code::Internal | Code::Unavailable | Code::DeadlineExceeded) {
            span.record("otel.status_code", "ERROR");
        }
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Only services ask here. Of what passed the gateway there is one line, the gateway's.
        tracing::debug!(target: telemetry::ACCESS, method, code = ?code, ms, "call");
        answer
    };
    trace::work(context.name(), correlation, parent, span, work).await
}

async fn faulty<T>(
    context: &Context,
    work: impl Future<Output = Result<T, Status>> + Send,
) -> Result<T, Status> {
    let (verdict, wait) = context.faults().next();
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

/// How long the caller waits: `grpc-timeout`, a number of at most eight digits and a unit. One that is none is ignored, as others do.
fn told(metadata: &MetadataMap) -> Option<Duration> {
    header::from_grpc(metadata.get(header::GRPC_TIMEOUT)?.to_str().ok()?).ok()
}

/// What an answer over REST says, as gRPC says it.
pub fn status(error: impl Into<ApiError>) -> Status {
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
    use std::sync::{Arc, Mutex};

    use order_kit::{context::Ports, env::Env};

    use super::*;

    fn waiting(time: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", time.parse().unwrap());
        metadata
    }

    #[test]
    fn a_timeout_is_read_in_all_units_and_nothing_else_is() {
        let read = |text: &str| told(&waiting(text));
        let all = ["1H", "2M", "3S", "4m", "5u", "6n"].map(|text| read(text).unwrap().as_nanos());
        assert_eq!(all, [3_600_000_000_000, 120_000_000_000, 3_000_000_000, 4_000_000, 5_000, 6]);
        assert!(read("99999999H").is_some(), "the largest that the protocol knows");
        for none in ["", "1", "m", "-1m", "+1m", "1.5S", "100000000n", "1s", "1 m"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    async fn context() -> (tempfile::TempDir, Context) {
        let data = tempfile::tempdir().unwrap();
        let broker = order_broker::open("memory:").await.unwrap();
        let locate = Arc::new(Ports(3000));
        let context = Context::new("users", Env::empty(), data.path(), broker, locate);
        (data, context)
    }

    #[tokio::test]
    async fn a_call_is_a_line_where_every_hop_is_one() {
        let (_data, context) = context().await;
        for (log, expected) in [("info", 0), ("info,access=debug", 1)] {
            let lines = Arc::new(Mutex::new(String::new()));
            let written = lines.clone();
            let output = move |line: &[u8]| written.lock().unwrap().push_str(&String::from_utf8_lossy(line));
            let env = Env::empty().with(env::LOG, log);
            let (dispatch, _provider) = telemetry::tracing_to(&env, Arc::new(output)).unwrap();
            // With a single one there is, what another test's thread reaches first is asked of that thread, and is off for all.
            let _another = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
            let _here = tracing::dispatcher::set_default(&dispatch);
            let mut metadata = MetadataMap::new();
            metadata.insert(trace::CORRELATION_ID, "order-7".parse().unwrap());
            let none = std::future::ready(Err::<(), _>(Status::not_found("User not found")));
            call(&context, "UserService/GetUser", &metadata, none).await.unwrap_err();
            let lines = lines.lock().unwrap();
            assert_eq!(lines.lines().count(), expected, "{log}: {lines}");
            for told in
                ["\"target\":\"access\"", "UserService/GetUser", "NotFound", "\"correlation_id\":\"order-7\""]
            {
                assert_eq!(lines.contains(told), expected == 1, "{told} in {lines}");
            }
        }
    }

    /// tonic itself would say `CANCELLED`, at the time and not before it.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_too_long_is_answered_before_its_deadline() {
        let (_data, context) = context().await;
        let began = Instant::now();
        let never = std::future::pending::<Result<(), Status>>();
        let status = call(&context, "UserService/GetUser", &waiting("100m"), never).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let took = began.elapsed();
        assert!((90..100).contains(&took.as_millis()), "{took:?}");
    }
}
