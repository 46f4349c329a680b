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
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep};

/// How long a client's body may stand still.
pub const STILL: Duration = Duration::from_secs(10);
/// How long a client may be waited for over a whole body: standing still for a little less each time is no way to keep a place. What the
/// service takes its time with is not counted.
pub const ALTOGETHER: Duration = Duration::from_secs(15);
/// How long a service's may: longer, because of those that say something only when something happens.
pub const QUIET: Duration = Duration::from_secs(60);

/// Why a body ended too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Nothing came for too long, at once or altogether.
    #[error("the body stood still")]
    Still,
    /// Whoever sent it went away, or sent what is no body.
    #[error("the body broke")]
    Away,
}

/// A body with an eye on its pace.
struct Paced {
    body: Body,
    limit: Duration,
    /// For how much longer it may stand still altogether.
    left: Duration,
    /// Runs while somebody waits for the next part, since then.
    still: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Paced {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some((since, _)) = self.still.take() {
                    self.left = self.left.saturating_sub(since.elapsed());
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|_| Broken::Away)))
            }
            Poll::Pending => {
                let limit = self.limit.min(self.left);
                let (_, still) = self.still.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(limit))));
                ready!(still.as_mut().poll(cx));
                Poll::Ready(Some(Err(Broken::Still)))
            }
        }
    }
}

/// Reads a client's body as a whole, at the pace that a client is to keep.
///
/// # Errors
///
/// [`Broken`].
pub async fn whole(body: Body) -> Result<Body, Broken> {
    Ok(Body::from(Upload::new(body).collect().await?.to_bytes()))
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
        let paced = Paced { body, limit: STILL, left: ALTOGETHER, still: None };
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
    pub fn new(body: hyper::body::Incoming) -> Self {
        Download(Paced { body: Body::new(body), limit: QUIET, left: Duration::MAX, still: None })
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
    use super::*;

    fn never_more() -> Body {
        let first = futures::stream::iter([Ok::<_, Broken>(Bytes::from_static(b"first"))]);
        Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending()))
    }

    fn every(pause: Duration, parts: usize) -> Body {
        let parts = futures::stream::iter(0..parts);
        Body::from_stream(futures::StreamExt::then(parts, move |_| async move {
            sleep(pause).await;
            Ok::<_, Broken>(Bytes::from_static(b"x"))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_a_little_now_and_then_is_cut() {
        let begun = Instant::now();
        assert_eq!(whole(every(STILL / 4, 1_000)).await.unwrap_err(), Broken::Still);
        assert_eq!(begun.elapsed(), ALTOGETHER);
        let all = whole(every(ALTOGETHER / 10, 9)).await.unwrap().collect().await.unwrap();
        assert_eq!(all.to_bytes(), "xxxxxxxxx");
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_takes_a_little_now_and_then_does_not_cut_the_client() {
        let parts = futures::stream::iter(vec![Ok::<_, Broken>(Bytes::from_static(b"x")); 20]);
        let mut upload = Upload::new(Body::from_stream(parts));
        while let Some(part) = upload.frame().await {
            part.unwrap();
            sleep(ALTOGETHER / 4).await;
        }
        assert_eq!(upload.broken(), None);
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
