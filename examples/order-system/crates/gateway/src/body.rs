//! Bodies that pass through: never held as a whole, and cut when they stand still.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

/// How long a body may stand still.
pub const STILL: Duration = Duration::from_secs(10);

/// Why a body ended too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Nothing came for [`STILL`].
    #[error("the body stood still")]
    Still,
    /// Whoever sent it went away, or sent what is no body.
    #[error("the body broke")]
    Away,
}

/// A body with an eye on its pace.
struct Paced {
    body: Body,
    /// Runs while somebody waits for the next part.
    still: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.still = None;
                Poll::Ready(frame.map(|frame| frame.map_err(|_| Broken::Away)))
            }
            Poll::Pending => {
                let still = self.still.get_or_insert_with(|| Box::pin(sleep(STILL)));
                ready!(still.as_mut().poll(cx));
                Poll::Ready(Some(Err(Broken::Still)))
            }
        }
    }
}

/// The body of a client's request on its way to a service. Clones are the same body, so that a request of which nothing was sent can be
/// sent elsewhere.
#[derive(Clone)]
pub struct Upload(Arc<Mutex<State>>);

struct State {
    paced: Paced,
    touched: bool,
    /// The client is to send the next part; otherwise the service is to take it, or to answer.
    waits_for_client: bool,
    moved: Instant,
    broken: Option<Broken>,
}

impl Upload {
    /// Of a request.
    pub fn new(body: Body) -> Self {
        let paced = Paced { body, still: None };
        let state =
            State { paced, touched: false, waits_for_client: false, moved: Instant::now(), broken: None };
        Upload(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any of it may have been sent.
    pub fn touched(&self) -> bool {
        self.state().touched
    }

    /// What was wrong with it, on the client's side.
    pub fn broken(&self) -> Option<Broken> {
        self.state().broken
    }

    /// Since when the service has had what it needs to go on. `None` while the client is to send.
    pub fn service_since(&self) -> Option<Instant> {
        let state = self.state();
        (!state.waits_for_client).then_some(state.moved)
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut state = self.state();
        state.touched = true;
        let polled = state.paced.poll(cx);
        state.waits_for_client = polled.is_pending();
        if let Poll::Ready(frame) = &polled {
            state.moved = Instant::now();
            state.broken = frame.as_ref().and_then(|frame| frame.as_ref().err().copied());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.state().paced.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.state().paced.body.size_hint()
    }
}

/// The body of a service's answer on its way to the client. Dropping it, as happens when the client goes away, ends the exchange with the
/// service as well.
pub struct Download(Paced);

impl Download {
    /// Of an answer.
    pub fn new(body: hyper::body::Incoming) -> Body {
        Body::new(Download(Paced { body: Body::new(body), still: None }))
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.0.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn never_more() -> Body {
        let first = futures::stream::iter([Ok::<_, Broken>(Bytes::from_static(b"first"))]);
        Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stands_still_is_cut() {
        let mut upload = Upload::new(never_more());
        assert!(!upload.touched() && upload.service_since().is_some());
        assert_eq!(upload.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        let begun = Instant::now();
        assert!(futures::poll!(upload.frame()).is_pending());
        assert_eq!(upload.service_since(), None, "it is the client's turn");
        assert_eq!(upload.frame().await.unwrap().unwrap_err(), Broken::Still);
        assert_eq!(begun.elapsed().as_secs(), STILL.as_secs());
        assert_eq!((upload.broken(), upload.touched()), (Some(Broken::Still), true));
    }
}
