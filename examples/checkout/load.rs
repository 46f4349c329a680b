//! The customers: an open load, which arrives at a fixed rate whether or not the shop keeps up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use crate::Error;
use crate::services::Server;
use crate::shop::{self, DEFERRED, DUE, Http, http};
use crate::tape::{Outcome, Tape};

/// How long the last calls may take to be answered once the load is over.
const PATIENCE: Duration = Duration::from_secs(3);

/// Starts a call `rate` times a second until the tape shows `end`. The number of calls that never ended.
async fn open_load<F>(
    tape: &Tape,
    end: Duration,
    rate: f64,
    mut call: impl FnMut(u32, Duration) -> F,
) -> usize
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut calls = JoinSet::new();
    for number in 0_u32.. {
        // Computed from the beginning: a late call does not delay the ones after it.
        let due = Duration::from_secs_f64(f64::from(number) / rate);
        if due >= end {
            break;
        }
        sleep_until(tape.instant(due)).await;
        calls.spawn(call(number, due));
        while calls.try_join_next().is_some() {}
    }
    let all = async { while calls.join_next().await.is_some() {} };
    drop(timeout(PATIENCE, all).await);
    calls.len()
}

#[derive(Clone)]
pub struct Customers {
    pub http: Http,
    pub shop: SocketAddr,
    pub tape: Arc<Tape>,
}

impl Customers {
    /// Opens the connections, so that the story does not begin with a cold start.
    pub async fn warm_up(&self) {
        let mut orders = JoinSet::new();
        for number in 0..32 {
            let customers = self.clone();
            orders.spawn(async move { customers.order(number, None).await });
        }
        orders.join_all().await;
    }

    /// Orders `rate` times a second until the tape shows `end`. The number of orders that were never
    /// answered.
    pub async fn order_until(&self, end: Duration, rate: f64) -> usize {
        let order = |number, due| {
            self.tape.note(|events, _| events.offered.push(due));
            let customers = self.clone();
            async move {
                let outcome = customers.order(number, Some(due)).await;
                customers.tape.finish(due, outcome, |events| &mut events.orders);
            }
        };
        open_load(&self.tape, end, rate, order).await
    }

    async fn order(&self, number: u32, due: Option<Duration>) -> Outcome {
        let mut request = Request::post(format!("http://{}/checkout", self.shop));
        if let Some(due) = due {
            request = request.header(DUE, due.as_nanos().to_string());
        }
        let request = request.body(format!("order-{number}")).expect("a valid request");
        let Ok(answer) = self.http.request(request).await else {
            return Outcome::Failed;
        };
        let deferred = answer.headers().get(DEFERRED).and_then(|why| why.to_str().ok());
        match (answer.status(), deferred) {
            (StatusCode::OK, None) => Outcome::Good,
            (StatusCode::ACCEPTED, Some(why)) => Outcome::Fallback(shop::instead_of(why)),
            _ => Outcome::Failed,
        }
    }
}

/// The control: calls that take the way of a user call, at the same rate, but have nothing to do with the
/// shop and share no thread with it. What is slow here is slow because of the machine.
pub fn control(tape: &Arc<Tape>, end: Duration, rate: f64) -> Result<(), Error> {
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let router = Router::new().route("/", get(|| sleep(Duration::from_millis(1))));
        let server = Server::start(router).await?;
        let (url, client) = (format!("http://{}/", server.address), http());
        let call = |_, due| {
            let (tape, url, client) = (tape.clone(), url.clone(), client.clone());
            async move {
                // From the customer to the shop, and from the shop to the user service.
                let mut outcome = Outcome::Good;
                for _ in 0..2 {
                    let request = Request::get(&url).body(String::new()).expect("a valid request");
                    if client.request(request).await.is_err() {
                        outcome = Outcome::Failed;
                    }
                }
                tape.finish(due, outcome, |events| &mut events.control);
            }
        };
        open_load(tape, end, rate, call).await;
        Ok(())
    })
}
