//! The checkout service: one handler, two calls to other services, each protected by a stack.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use axum::response::{self, IntoResponse};
use axum::routing::post;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::TokioExecutor;
use mainstay::{BoxedStack, Kind};
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use crate::tape::{Call, Events, InsteadOf, Outcome, Tape};

/// When the customer meant to order, in nanoseconds of the story: the latency of every call counts from
/// there.
pub const DUE: HeaderName = HeaderName::from_static("x-due");

/// Why the payment was deferred, if it was.
pub const DEFERRED: HeaderName = HeaderName::from_static("x-deferred");

pub type Http = Client<HttpConnector, String>;

pub fn http() -> Http {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// An HTTP client with layers around it.
pub type Users = BoxCloneSyncService<Request<String>, Response<Body>, tower::BoxError>;

/// One plain type for the stack around a call that returns `Result<Receipt, PaymentError>`.
pub type Payments = BoxedStack<Receipt, PaymentError>;

/// What the handler needs.
pub struct Shop {
    pub users: Users,
    pub users_at: SocketAddr,
    pub payments: Payments,
    pub payment: PaymentClient,
    pub tape: Arc<Tape>,
}

impl Shop {
    pub fn router(self) -> Router {
        Router::new().route("/checkout", post(checkout)).with_state(Arc::new(self))
    }
}

async fn checkout(State(shop): State<Arc<Shop>>, headers: HeaderMap, order: String) -> response::Response {
    let mut watch = Stopwatch::starting_at(&headers);

    // The stack is a layer around the HTTP client: this looks like any other request.
    let request =
        Request::get(format!("http://{}/user", shop.users_at)).body(String::new()).expect("a valid request");
    let user = match shop.users.clone().oneshot(request).await {
        Ok(response) => text(response).await,
        Err(error) => Err(error),
    };
    watch.lap(
        &shop.tape,
        |events| &mut events.users.calls,
        if user.is_ok() { Outcome::Good } else { Outcome::Failed },
    );
    let Ok(user) = user else {
        return (StatusCode::BAD_GATEWAY, "We do not know you.").into_response();
    };

    // The stack is a wrapper around a call that borrows what it needs.
    let receipt = shop.payments.call(|| shop.payment.charge(&order)).await;
    let outcome = match &receipt {
        Ok(Receipt::Charged) => Outcome::Good,
        Ok(Receipt::Deferred(instead_of)) => Outcome::Fallback(*instead_of),
        Err(_) => Outcome::Failed,
    };
    watch.lap(&shop.tape, |events| &mut events.payments.calls, outcome);
    match receipt {
        Ok(Receipt::Charged) => format!("Thank you, {user}.").into_response(),
        Ok(Receipt::Deferred(instead_of)) => {
            let why = instead_of.map_or("service_error", Kind::as_str);
            let text = format!("Thank you, {user}. We shall charge you later.");
            (StatusCode::ACCEPTED, [(DEFERRED, why)], text).into_response()
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

async fn text(response: Response<Body>) -> Result<String, tower::BoxError> {
    let bytes = to_bytes(response.into_body(), 1024).await?;
    Ok(String::from_utf8(bytes.into())?)
}

/// Reads the header [`DEFERRED`].
pub fn instead_of(name: &str) -> InsteadOf {
    use Kind::{BulkheadFull, CircuitOpen, DeadlineExceeded, QueueTimeout, TimedOut};
    let kinds = [CircuitOpen, BulkheadFull, QueueTimeout, TimedOut, DeadlineExceeded];
    kinds.into_iter().find(|kind| kind.as_str() == name)
}

#[derive(Clone, Copy, Debug)]
pub enum Receipt {
    Charged,
    /// The order is taken, and will be charged when payment is back.
    Deferred(InsteadOf),
}

pub struct PaymentClient {
    pub http: Http,
    pub address: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum PaymentError {
    #[error("payment answered {0}")]
    Status(StatusCode),
    #[error("payment did not answer")]
    Http(#[source] legacy::Error),
}

impl PaymentClient {
    /// Charges an order; twice is once, since the service knows the order by its key.
    async fn charge(&self, order: &str) -> Result<Receipt, PaymentError> {
        let request = Request::post(format!("http://{}/charge", self.address));
        let request =
            request.header("idempotency-key", order).body(order.to_owned()).expect("a valid request");
        let response = self.http.request(request).await.map_err(PaymentError::Http)?;
        match response.status() {
            StatusCode::OK => Ok(Receipt::Charged),
            status => Err(PaymentError::Status(status)),
        }
    }
}

/// Times the legs of one order.
struct Stopwatch {
    due: Option<Duration>,
}

impl Stopwatch {
    fn starting_at(headers: &HeaderMap) -> Self {
        let due = headers.get(DUE).and_then(|due| due.to_str().ok()?.parse().ok());
        Self { due: due.map(Duration::from_nanos) }
    }

    /// Ends a leg; the next one is due at once.
    fn lap(&mut self, tape: &Tape, list: impl FnOnce(&mut Events) -> &mut Vec<Call>, outcome: Outcome) {
        if let Some(due) = &mut self.due {
            tape.finish(*due, outcome, list);
            *due = tape.now();
        }
    }
}
