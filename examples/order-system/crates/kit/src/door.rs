//! The way into a service, which is there before the service is.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    task::{Context as Poller, Poll},
};

use axum::{Router, extract::Request, response::Response, routing::future::RouteFuture};
use tower::Service;

use crate::{Context, server};

/// Where requests go: as long as a service is being built, `/health` answers 200, `/health/ready` 503 with what it waits for, and
/// everything else 503 with `Retry-After`. A port that is open and says nothing would look like a process that hangs.
#[derive(Debug, Clone)]
pub struct Door {
    early: Router,
    built: Arc<OnceLock<Router>>,
}

impl Door {
    /// Of the service of the context, which is still to be built.
    pub fn new(context: &Context) -> Self {
        Door { early: server::early(context), built: Arc::default() }
    }

    /// Opens it: from now on this is what answers, also on connections that are there.
    pub fn open(&self, built: Router) {
        let _ = self.built.set(built);
    }

    /// What is to be served.
    pub fn router(&self) -> Router {
        Router::new().fallback_service(self.clone())
    }
}

impl Service<Request> for Door {
    type Response = Response;
    type Error = Infallible;
    type Future = RouteFuture<Infallible>;

    fn poll_ready(&mut self, _: &mut Poller<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.built.get().unwrap_or(&self.early).clone().call(request)
    }
}
