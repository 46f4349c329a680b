//! One side behind the gateway: a service, or the monolith, with the policies that stand in front of it.
//!
//! What the policies surround is the head of an exchange: until the answer's status and headers are there. Bodies pass through as they come.
//!
//! Outermost first: the client's deadline, which ends a call from outside; a limit for it all; a circuit breaker (5 failures in a row within
//! 60 s, or half of at least 20 calls in that time; open for 30 s, then one probe); a retry for requests without a body that may be
//! repeated, paid for by successes; a bulkhead with a short queue; and a limit for how long the service may be silent.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::Body as _;
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use mainstay::{BoxedStack, CircuitBreaker, ConfigError, Error, Kind, Refused, Retry, circuit_breaker};
use order_kit::{
    Context,
    auth::SERVICE_TOKEN,
    client::{
        IDLE, STARTING,
        policies::{self, CallersEnd},
        tell_deadline,
    },
    env, prefer,
    resolve::Names,
    trace,
};
use tokio::{net::TcpStream, time::Instant};
use tower::{ServiceExt, util::MapResponse};
use tracing::Instrument;

use crate::{
    body::{self, Broken, Download, Upload},
    early::Answering,
    headers,
    proxy::MONOLITH,
};

/// For an exchange until the answer's head, everything included.
pub const DEADLINE_LIMIT: Duration = Duration::from_secs(29);
/// How long a service may be silent when it has all that it needs.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Requests to one side at once, and how many more wait a second for their turn.
const CONCURRENCY: (usize, usize) = (128, 128);
/// A body that says that it is no longer than this is read before its request takes a place: a slow client keeps none. Services take no
/// longer ones; what is passed as a stream nevertheless has its place from the beginning.
const SMALL: u64 = order_kit::server::BODY_LIMIT as u64;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A policy ended it.
    #[error("{0}")]
    Refused(Refused),
    /// No connection could be made, or it broke.
    #[error("no connection: {text}")]
    Connection {
        /// What is wrong, for the log.
        text: String,
        /// Whether the service may have seen the request.
        sent: bool,
    },
    /// The service had all it needed and did not answer.
    #[error("no answer in time")]
    Silent,
    /// The client's own time was over, before the service had as long as it may take.
    #[error("the client's time is over")]
    Late,
    /// The client did not send what it had announced.
    #[error("the client's body: {0}")]
    Client(Broken),
    /// The base URL is none.
    #[error("no usable address: {0}")]
    Address(String),
}

impl Trouble {
    /// What the client is told: a status and a sentence without addresses.
    pub fn tell(&self) -> (StatusCode, &'static str) {
        match self {
            Trouble::Connection { .. } | Trouble::Address(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "The service cannot be reached")
            }
            Trouble::Silent | Trouble::Late => {
                (StatusCode::GATEWAY_TIMEOUT, "The service did not answer in time")
            }
            Trouble::Client(Broken::Still) => {
                (StatusCode::REQUEST_TIMEOUT, "The body of the request did not come")
            }
            Trouble::Client(Broken::Away) => {
                (StatusCode::BAD_REQUEST, "The body of the request ended too early")
            }
            Trouble::Refused(refused) => match refused.kind() {
                Kind::TimedOut | Kind::DeadlineExceeded => {
                    (StatusCode::GATEWAY_TIMEOUT, "The service did not answer in time")
                }
                Kind::CircuitOpen => {
                    (StatusCode::SERVICE_UNAVAILABLE, "The service has failed and is left alone for a while")
                }
                _ => (StatusCode::SERVICE_UNAVAILABLE, "The service has too much to do"),
            },
        }
    }

    /// When to ask again, if that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Trouble::Refused(refused) => refused.retry_after(),
            _ => None,
        }
    }
}

type Outcome = Result<Response<Body>, Trouble>;
type Breaker = CircuitBreaker<
    circuit_breaker::Classifier<fn(&Outcome) -> circuit_breaker::Class, Response<Body>, Trouble>,
>;

/// Where the instances of a side are.
#[derive(Debug, Clone)]
pub enum Side {
    /// A service, by its name.
    Service(&'static str),
    /// The monolith, at one place.
    Legacy(String),
}

impl Side {
    fn name(&self) -> &'static str {
        match self {
            Side::Service(name) => name,
            Side::Legacy(_) => MONOLITH,
        }
    }
}

/// A request on its way to a side. Its path and query are those that the side is to see.
#[derive(Debug)]
pub struct Outgoing {
    /// The method.
    pub method: Method,
    /// The path and the query, as they came.
    pub path: String,
    /// All headers but `Host` and those that are made for each attempt.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
}

/// A side and its policies. Clones share them.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

type Connector = MapResponse<HttpConnector, fn(TokioIo<TcpStream>) -> Answering>;

struct Inner {
    side: Side,
    context: Context,
    /// What this side is shown: services what they show each other, a monolith what was chosen for it.
    token: Option<HeaderValue>,
    names: Names,
    http: Http<Connector, Upload>,
    repeated: BoxedStack<Response<Body>, Trouble>,
    once: BoxedStack<Response<Body>, Trouble>,
    breaker: Breaker,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({:?})", self.0.side)
    }
}

/// Answers of 500 and above and 429 are failures; what the client did wrong, and how long it waits, says nothing.
fn classify(outcome: &Outcome) -> circuit_breaker::Class {
    use circuit_breaker::Class;
    match outcome {
        Ok(response) if response.headers().contains_key(&STARTING) => Class::Ignored,
        Ok(response) if response.status().is_server_error() => Class::Failure,
        Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => Class::Failure,
        Ok(_) => Class::Success,
        Err(Trouble::Client(_) | Trouble::Late) => Class::Ignored,
        Err(_) => Class::Failure,
    }
}

/// Another attempt may help: nobody was there, or whoever was did not ask for time.
fn worth_repeating(failure: &mainstay::retry::Failure<'_, Response<Body>, Trouble>) -> bool {
    let passing = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
    let asked_again = |response: &Response<Body>| {
        passing.contains(&response.status()) && !response.headers().contains_key(header::RETRY_AFTER)
    };
    matches!(failure.error(), Some(Trouble::Connection { .. })) || failure.value().is_some_and(asked_again)
}

impl Upstream {
    /// A side, whose policies show in the context's `/_policies` under its name.
    ///
    /// # Errors
    ///
    /// An option that cannot be.
    pub fn new(context: &Context, side: Side, names: Names) -> Result<Self, ConfigError> {
        let name = side.name();
        let config = policies::breaker(name, context.env());
        let config = config.classify(classify as fn(&Outcome) -> circuit_breaker::Class);
        let breaker = policies::build(config, context.env())?;
        let bulkhead = policies::bulkhead(name, CONCURRENCY.0, CONCURRENCY.1)?;
        let retry = Retry::exponential(Duration::from_millis(10))
            .cap(Duration::from_millis(30))
            .max_attempts(3)
            .idempotent()
            .when(worth_repeating)
            .name(name)
            .observe(mainstay::observe::Metrics)
            .build()?;
        // Timeouts, since a deadline would also be the client's: see `CallersEnd`.
        let repeated = mainstay::stack(name)
            .timeout(DEADLINE_LIMIT)
            .circuit_breaker(breaker.clone())
            .retry(retry.clone())
            .bulkhead(bulkhead.clone())
            .timeout(PATIENCE)
            .build()?
            .boxed();
        // How long this may take depends on who is to move: the exchange itself looks at that.
        let once = mainstay::stack(name)
            .timeout(DEADLINE_LIMIT)
            .circuit_breaker(breaker.clone())
            .bulkhead(bulkhead.clone())
            .build()?
            .boxed();
        context.policies().add(&breaker);
        context.policies().add(&bulkhead);
        context.policies().add(&retry);
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(1)));
        connector.set_nodelay(true);
        let http = Http::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .set_host(false)
            .build(connector.map_response(Answering::new as fn(_) -> _));
        let token = match &side {
            Side::Service(_) => Some(context.tokens().send().to_owned()),
            Side::Legacy(_) => context.env().get(env::LEGACY_TOKEN),
        };
        let token = token.and_then(|token| HeaderValue::try_from(token).ok());
        let context = context.clone();
        Ok(Upstream(Arc::new(Inner { side, context, token, names, http, repeated, once, breaker })))
    }

    /// What it is called.
    fn name(&self) -> &'static str {
        self.0.side.name()
    }

    /// What its breaker says: `closed`, `open`, …
    pub fn state(&self) -> &'static str {
        self.0.breaker.state().as_str()
    }

    /// Sends a request through the policies.
    ///
    /// # Errors
    ///
    /// [`Trouble`].
    pub async fn send(&self, request: Outgoing) -> Outcome {
        let Outgoing { method, path, headers, body } = request;
        let wait = preferred_wait(&headers);
        let plain = method.is_idempotent() && body.is_end_stream() && wait.is_zero();
        let body = match body.size_hint().exact() {
            Some(1..=SMALL) => body::whole(body).await.map_err(Trouble::Client)?,
            _ => body,
        };
        let upload = Upload::new(body);
        let end = CallersEnd::of(DEADLINE_LIMIT);
        let attempt = || {
            let head = (method.clone(), path.as_str(), headers.clone());
            async {
                let outcome = self.0.exchange(head, upload.clone(), PATIENCE + wait).await;
                outcome.and_then(
                    |answer| if end.explains(answer.status()) { Err(Trouble::Late) } else { Ok(answer) },
                )
            }
        };
        let stack = if plain { &self.0.repeated } else { &self.0.once };
        let (side, only_path) = (self.name(), path.split('?').next());
        let span = tracing::info_span!(
            "http.client", otel.kind = "client", otel.name = %format_args!("{method} {side}"), peer.service = side,
            http.request.method = %method, url.path = only_path, http.response.status_code = tracing::field::Empty,
            otel.status_code = tracing::field::Empty,
        );
        let call = async {
            let outcome = match end.run(stack.call(attempt)).await {
                Some(outcome) => outcome.map_err(|error| match error {
                    Error::Inner(trouble) => trouble,
                    Error::Refused(refused) => Trouble::Refused(refused),
                }),
                None => Err(Trouble::Late),
            };
            let span = tracing::Span::current();
            match &outcome {
                Ok(response) => span.record("http.response.status_code", response.status().as_u16()),
                Err(_) => span.record("otel.status_code", "ERROR"),
            };
            outcome
        };
        call.instrument(span).await
    }

    /// Sends a request past the policies: for what nobody waits for.
    ///
    /// # Errors
    ///
    /// [`Trouble`].
    pub async fn send_aside(&self, request: Outgoing) -> Outcome {
        let Outgoing { method, path, headers, body } = request;
        self.0.exchange((method, &path, headers), Upload::new(body), PATIENCE).await
    }
}

impl Inner {
    fn base(&self) -> String {
        match &self.side {
            Side::Service(name) => self.context.locate(name),
            Side::Legacy(base) => base.trim_end_matches('/').to_owned(),
        }
    }

    fn lost(&self, base: &str) {
        if let Side::Service(name) = self.side {
            self.context.lost(name, base);
        }
    }

    /// One attempt. An instance to which no connection can be made has seen nothing, so the next one is asked in the same attempt.
    async fn exchange(&self, head: (Method, &str, HeaderMap), upload: Upload, patience: Duration) -> Outcome {
        let first = self.base();
        let outcome = self.exchange_at(&first, head.clone(), upload.clone(), patience).await;
        if matches!(outcome, Err(Trouble::Connection { sent: false, .. })) && !upload.touched() {
            let second = self.base();
            if second != first {
                return self.exchange_at(&second, head, upload, patience).await;
            }
        }
        outcome
    }

    async fn exchange_at(
        &self,
        base: &str,
        (method, path, mut headers): (Method, &str, HeaderMap),
        upload: Upload,
        patience: Duration,
    ) -> Outcome {
        let wrong = |error: &dyn std::fmt::Display| Trouble::Address(format!("{base}: {error}"));
        let (at, host) = match self.names.resolved(base).await {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return Err(wrong(&error)),
            Err(error) => {
                self.lost(base);
                return Err(Trouble::Connection { text: error.to_string(), sent: false });
            }
        };
        let uri = Uri::try_from(format!("{at}{path}")).map_err(|error| wrong(&error))?;
        headers.insert(header::HOST, host);
        headers.extend(self.token.clone().map(|token| (SERVICE_TOKEN.clone(), token)));
        tell_deadline(&mut headers, DEADLINE_LIMIT);
        trace::inject(&mut headers);
        let mut request = Request::new(upload.clone());
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers);
        let begun = Instant::now();
        let mut answer = std::pin::pin!(self.http.request(request));
        loop {
            // While the client is to send the next part, the service has all the time that the client takes.
            let since = upload.service_since().map_or_else(Instant::now, |since| since.max(begun));
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Ok(answer) => Ok(pass(answer)),
                    Err(error) => Err(match upload.broken() {
                        Some(broken) => Trouble::Client(broken),
                        None => {
                            self.lost(base);
                            Trouble::Connection { text: error.to_string(), sent: !error.is_connect() }
                        }
                    }),
                },
                () = tokio::time::sleep_until(since + patience) => {
                    if upload.service_since().is_some_and(|since| since.max(begun) + patience <= Instant::now()) {
                        return Err(Trouble::Silent);
                    }
                }
            }
        }
    }
}

fn pass(answer: Response<hyper::body::Incoming>) -> Response<Body> {
    let mut answer = answer.map(|body| Body::new(Download::new(body)));
    headers::end_hop(answer.headers_mut());
    answer
}

/// How long the client would like the service to wait for a better answer, `Prefer: wait=N`, as the service reads it.
fn preferred_wait(headers: &HeaderMap) -> Duration {
    Duration::from_secs(prefer::wait(headers).map_or(0, |seconds| seconds.min(30)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_to_wait_is_heard() {
        let wait = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(&prefer::PREFER, value.parse().unwrap());
            preferred_wait(&headers).as_secs()
        };
        assert_eq!((wait("wait=2"), wait("wait=\"20\""), wait("handling=lenient")), (2, 20, 0));
        assert_eq!((wait("wait=soon"), wait("wait=99999")), (0, 30));
    }
}
