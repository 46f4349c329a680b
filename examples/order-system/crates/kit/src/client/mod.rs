//! Calls to another service, through the policies that every such call goes through.
//!
//! Outermost first: the caller's deadline, which ends a call from outside; a limit for the whole call (5 s), a circuit breaker (5 failures in
//! a row within 60 s, or half of at least 20 calls in that time; open for 30 s, then one probe, and if that fails for as long again), a
//! retry for what may be repeated, paid for by successes, a bulkhead with a short queue, and a timeout for each attempt. Answers below 500
//! other than 429 are the service's word and no failure of its: a thousand unknown users open no breaker.

pub mod policies;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use mainstay::{ConfigError, Refused, deadline};
use serde::{Serialize, de::DeserializeOwned};

use crate::{auth, context::Context, metric, resolve::Names, trace};

use policies::Policies;

/// The request's key under which repeating it has no further effect.
pub static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How many milliseconds whoever asked will wait.
pub static DEADLINE: HeaderName = HeaderName::from_static(deadline::header::REQUEST_TIMEOUT_MS);
/// That a service is still being built and has done nothing: nobody is to leave it alone for that.
pub static STARTING: HeaderName = HeaderName::from_static("x-starting");
/// For how long a connection that is not in use is kept: not as long as the server does, which would close it under a request.
pub const IDLE: Duration = Duration::from_secs(5);
/// The most that is read of an answer.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// Says how much time is left, or `otherwise` where there is no deadline.
pub fn tell_deadline(headers: &mut HeaderMap, otherwise: Duration) {
    let left = deadline::header::to_millis(deadline::remaining().unwrap_or(otherwise));
    headers.extend(HeaderValue::try_from(left).ok().map(|left| (DEADLINE.clone(), left)));
}

/// How much time whoever asks has left, if that is said. What is no number says nothing.
pub fn told_deadline(headers: &HeaderMap) -> Option<Duration> {
    deadline::header::from_millis(headers.get(&DEADLINE)?.to_str().ok()?).ok()
}

/// Counts a call to another service among the figures of this one; `outcome` is `ok`, `failed` or `refused`. For clients that speak something
/// else: [`Client`] does it by itself.
pub fn record_call(context: &Context, to: &'static str, outcome: &'static str, took: Duration) {
    metrics::histogram!(metric::HTTP_CALL_SECONDS, "service" => context.name(), "to" => to, "outcome" => outcome)
        .record(took.as_secs_f64());
}

/// How a service is called.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// For the whole call, with everything that is repeated.
    pub deadline: Duration,
    /// For one attempt.
    pub attempt: Duration,
    /// How many attempts run at once.
    pub concurrency: usize,
    /// How many more wait for their turn, for a second at most.
    pub queue: usize,
    /// How often at most, the first time included.
    pub attempts: u32,
    /// Whether what is repeated has to be paid for by successes. Without that a service that fails is asked as often as all who ask it allow
    /// themselves, multiplied from hop to hop: only to show it.
    pub budget: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            deadline: Duration::from_secs(5),
            attempt: Duration::from_secs(5),
            concurrency: 20,
            queue: 100,
            attempts: 3,
            budget: true,
        }
    }
}

/// An answer below 500, other than 429.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// What it says.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Errors
    ///
    /// [`CallError::Garbled`] if it is not that.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        serde_json::from_slice(&self.body).map_err(|error| CallError::Garbled(error.to_string()))
    }

    /// The text in `error`, if there is one.
    pub fn error(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(body.get("error")?.as_str()?.to_owned())
    }

    /// The answer, if it is a success.
    ///
    /// # Errors
    ///
    /// [`CallError::Status`] if it is none.
    pub fn success(self) -> Result<Reply, CallError> {
        if self.status.is_success() { Ok(self) } else { Err(self.into()) }
    }
}

/// For an answer that is no success.
impl From<Reply> for CallError {
    fn from(reply: Reply) -> Self {
        let after =
            reply.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        CallError::Status {
            status: reply.status,
            said: reply.error().unwrap_or_default(),
            retry_after: after.map(Duration::from_secs),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// A policy ended the call.
    #[error("{0}")]
    Refused(Refused),
    /// The caller's own time was over, before the service had as long as it may take.
    #[error("the caller's time is over")]
    Late {
        /// Whether the service may have seen the request.
        sent: bool,
    },
    /// The connection could not be made, or broke.
    #[error("no connection: {text}")]
    Connection {
        /// What is wrong, for the log.
        text: String,
        /// Whether the service may have seen the request.
        sent: bool,
    },
    /// The service has only just been started, and has done nothing yet.
    #[error("it is still starting")]
    Starting,
    /// An answer of 500 and above, or 429; or any that is no success, where one is needed.
    #[error("it answered {status} {said}")]
    Status {
        /// The status.
        status: StatusCode,
        /// The text in `error`.
        said: String,
        /// The seconds in `Retry-After`, if it names some.
        retry_after: Option<Duration>,
    },
    /// An answer that is not what was agreed.
    #[error("an answer that cannot be read: {0}")]
    Garbled(String),
    /// A request that cannot be written.
    #[error("a request that cannot be written: {0}")]
    Request(String),
}

impl CallError {
    /// Whether the service may have done what it was asked.
    pub fn may_have_happened(&self) -> bool {
        match self {
            CallError::Refused(refused) => refused.was_started(),
            CallError::Connection { sent, .. } | CallError::Late { sent } => *sent,
            CallError::Status { status, .. } => status.is_server_error(),
            CallError::Garbled(_) => true,
            CallError::Request(_) | CallError::Starting => false,
        }
    }

    /// When to ask again, if that is known: by the policy that refused, or by the service itself.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            CallError::Refused(refused) => refused.retry_after(),
            CallError::Status { retry_after, .. } => *retry_after,
            CallError::Starting => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// A client of one service; clones share all policies.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    /// As callers see it: `user`.
    service: &'static str,
    context: Context,
    names: Names,
    http: Http<HttpConnector, Full<Bytes>>,
    policies: Policies,
    /// Whether a deadline of this length is within the stack.
    deadline: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.0.service)
    }
}

impl Client {
    /// A client of `service` for the service of the context, whose policies show in its `/_policies`.
    ///
    /// # Errors
    ///
    /// An option that cannot be.
    pub fn new(context: &Context, service: &'static str, options: Options) -> Result<Self, ConfigError> {
        Client::with_names(context, service, options, Names::system())
    }

    /// As [`new`](Client::new), for names that are looked up by another way.
    ///
    /// # Errors
    ///
    /// An option that cannot be.
    pub fn with_names(
        context: &Context,
        service: &'static str,
        options: Options,
        names: Names,
    ) -> Result<Self, ConfigError> {
        let name = context.policy_name(service);
        let policies = Policies::new(name, options, context.env(), context.policies())?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(1)));
        connector.set_nodelay(true);
        let http = Http::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        let deadline = options.deadline;
        Ok(Client(Arc::new(Inner { service, context: context.clone(), names, http, policies, deadline })))
    }

    /// Whether the breaker refuses calls at present.
    pub fn is_open(&self) -> bool {
        self.0.policies.is_open()
    }

    /// Whether the service is well, for a health check: it is if it lives, and its calls do not fail so often that it is left alone. It is not
    /// asked whether it is ready: then two that need each other would both wait, and one that hangs would take all with it. Past the
    /// policies, so that it says nothing to them.
    ///
    /// # Errors
    ///
    /// What is wrong, without an address.
    pub async fn alive(&self) -> Result<(), String> {
        if self.is_open() {
            return Err("it is left alone for a while, since calls to it failed".to_owned());
        }
        match self.attempt(Method::GET, "/health", HeaderMap::new(), Bytes::new()).await {
            Ok(reply) if reply.status.is_success() => Ok(()),
            Ok(Reply { status, .. }) | Err(CallError::Status { status, .. }) => {
                Err(format!("it answers {}", status.as_u16()))
            }
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    /// `GET`.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn get(&self, path: &str) -> Result<Reply, CallError> {
        self.send(Method::GET, path, HeaderMap::new(), Bytes::new()).await
    }

    /// `POST` of JSON. With a key it may be repeated.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn post<T: Serialize + ?Sized>(
        &self,
        path: &str,
        key: Option<&str>,
        body: &T,
    ) -> Result<Reply, CallError> {
        let body = serde_json::to_vec(body).map_err(|error| CallError::Request(error.to_string()))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = key {
            let key = HeaderValue::from_str(key).map_err(|error| CallError::Request(error.to_string()))?;
            headers.insert(&IDEMPOTENCY_KEY, key);
        }
        self.send(Method::POST, path, headers, body.into()).await
    }

    /// Any request.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, CallError> {
        let repeatable = method.is_idempotent() || headers.contains_key(&IDEMPOTENCY_KEY);
        let span = tracing::info_span!(
            "http.client", otel.kind = "client", otel.name = %format_args!("{method} {}", self.0.service),
            peer.service = self.0.service, http.request.method = %method, url.path = path,
            http.response.status_code = tracing::field::Empty, otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
        );
        let call = async {
            let attempt = || self.attempt(method.clone(), path, headers.clone(), body.clone());
            let began = tokio::time::Instant::now();
            let answer = self.0.policies.call(repeatable, attempt).await;
            let span = tracing::Span::current();
            match &answer {
                Ok(reply) => {
                    span.record("http.response.status_code", reply.status.as_u16());
                }
                Err(error) => {
                    if let CallError::Status { status, .. } = error {
                        span.record("http.response.status_code", status.as_u16());
                    }
                    span.record("otel.status_code", "ERROR");
                    span.record("otel.status_description", tracing::field::display(error));
                }
            }
            let outcome = match &answer {
                Ok(_) => "ok",
                Err(CallError::Refused(refused)) if !refused.was_started() => "refused",
                Err(_) => "failed",
            };
            record_call(&self.0.context, self.0.service, outcome, began.elapsed());
            answer
        };
        tracing::Instrument::instrument(call, span).await
    }

    async fn attempt(
        &self,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, CallError> {
        let base = self.0.context.locate(self.0.service);
        let lost = |text: String, sent| {
            self.0.context.lost(self.0.service, &base);
            CallError::Connection { text, sent }
        };
        let (at, host) =
            self.0.names.resolved(&base).await.map_err(|error| lost(error.to_string(), false))?;
        headers.insert(header::HOST, host);
        let uri: Uri = format!("{at}{path}")
            .parse()
            .map_err(|error: http::uri::InvalidUri| CallError::Request(error.to_string()))?;
        let token = HeaderValue::from_str(self.0.context.tokens().send())
            .map_err(|error| CallError::Request(error.to_string()))?;
        headers.insert(&auth::SERVICE_TOKEN, token);
        tell_deadline(&mut headers, self.0.deadline);
        trace::inject(&mut headers);
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::new(body))
            .map_err(|error| CallError::Request(error.to_string()))?;
        *request.headers_mut() = headers;
        let response = self
            .0
            .http
            .request(request)
            .await
            .map_err(|error| lost(error.to_string(), !error.is_connect()))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|error| match error
            .downcast_ref::<LengthLimitError>(
        ) {
            Some(_) => CallError::Garbled("it is too long".to_owned()),
            None => CallError::Connection { text: error.to_string(), sent: true },
        })?;
        let reply = Reply { status: parts.status, headers: parts.headers, body: body.to_bytes() };
        if reply.headers.contains_key(&STARTING) {
            return Err(CallError::Starting);
        }
        if reply.status.is_server_error() || reply.status == StatusCode::TOO_MANY_REQUESTS {
            return Err(reply.into());
        }
        Ok(reply)
    }
}
