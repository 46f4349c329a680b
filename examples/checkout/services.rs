//! The two services that the shop depends on, over real HTTP: payment, with a fault that can be switched, and
//! user, which is always well.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::tape::Tape;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Answers after a few milliseconds.
    #[default]
    None,
    /// Answers at once, with 503.
    Fail,
    /// Never answers.
    Hang,
    /// Answers, 400 ms late.
    Slow,
}

/// The payment service, with the switch that the story turns.
pub struct Payment {
    fault: Mutex<Fault>,
    running: AtomicUsize,
    tape: Arc<Tape>,
}

impl Payment {
    pub fn new(tape: Arc<Tape>) -> Arc<Self> {
        let (fault, running) = Default::default();
        Arc::new(Self { fault, running, tape })
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    /// Requests that the service is still working on.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub fn router(self: &Arc<Self>) -> Router {
        Router::new().route("/charge", post(charge)).with_state(self.clone())
    }
}

async fn charge(State(payment): State<Arc<Payment>>) -> StatusCode {
    payment.tape.note(|events, at| events.payments.upstream.push(at));
    let _running = Running::count(&payment.running);
    let fault = *payment.fault.lock().unwrap();
    match fault {
        Fault::None => sleep(Duration::from_millis(5)).await,
        Fault::Fail => return StatusCode::SERVICE_UNAVAILABLE,
        Fault::Hang => std::future::pending().await,
        Fault::Slow => sleep(Duration::from_millis(400)).await,
    }
    StatusCode::OK
}

/// Counts a request until its handler is done, or is dropped because the client has hung up.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn count(running: &'a AtomicUsize) -> Self {
        running.fetch_add(1, Ordering::Relaxed);
        Self(running)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The user service.
pub fn user(tape: Arc<Tape>) -> Router {
    Router::new().route("/user", get(find_user)).with_state(tape)
}

async fn find_user(State(tape): State<Arc<Tape>>) -> &'static str {
    tape.note(|events, at| events.users.upstream.push(at));
    sleep(Duration::from_millis(1)).await;
    "Ada Lovelace"
}

/// A router that is being served on a port of its own.
pub struct Server {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub async fn start(router: Router) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let (stop, stopped) = oneshot::channel();
        let serving = axum::serve(listener, router).with_graceful_shutdown(async { drop(stopped.await) });
        let task = tokio::spawn(serving.into_future());
        Ok(Self { address, stop, task })
    }

    /// Ends the server once its connections have ended, or without them when they do not.
    pub async fn shut_down(mut self) {
        drop(self.stop);
        if timeout(Duration::from_secs(1), &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}
