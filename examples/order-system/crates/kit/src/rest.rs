//! What is left of a request's body when the request has been answered.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};

/// How much is read of a rest, and for how long. Behind that the connection is closed.
const MOST: usize = 16 * 1024 * 1024;
const LONGEST: Duration = Duration::from_secs(5);

/// A request's body, of which what nobody wants is read nevertheless, for a while, and thrown away.
///
/// A request can be answered before its body has come, with a 413 above all. A connection that is closed while something still comes is
/// reset, and the reset can overtake the answer: whoever sends sees a broken connection instead.
pub(crate) struct ReadToTheEnd<B: Rest>(Option<B>);

/// A body that can outlive its request.
pub(crate) trait Rest: Body<Data = Bytes> + Unpin + Send + 'static {}

impl<B: Body<Data = Bytes> + Unpin + Send + 'static> Rest for B {}

impl<B: Rest> ReadToTheEnd<B> {
    pub(crate) fn new(body: B) -> Self {
        ReadToTheEnd(Some(body))
    }
}

impl<B: Rest> Body for ReadToTheEnd<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Rest> Drop for ReadToTheEnd<B> {
    fn drop(&mut self) {
        let Some(body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(LONGEST, throw_away(body)));
        }
    }
}

async fn throw_away(mut body: impl Rest) {
    let mut left = MOST;
    while let Some(Ok(frame)) = body.frame().await {
        let Some(less) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
        left = less;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
    };

    use axum::body::Body as AnyBody;
    use futures::StreamExt;

    use super::*;

    const PART: usize = 1024 * 1024;

    /// So many parts of a mebibyte, and then nothing, not even an end; and how many were read.
    fn parts(count: usize) -> (Arc<AtomicUsize>, AnyBody) {
        let read = Arc::new(AtomicUsize::new(0));
        let counter = read.clone();
        let parts = futures::stream::iter(0..count).map(move |_| {
            counter.fetch_add(1, SeqCst);
            Ok::<_, Infallible>(Bytes::from(vec![0; PART]))
        });
        (read, AnyBody::from_stream(parts.chain(futures::stream::pending())))
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_is_read_for_a_while_and_no_more_of_it_than_is_good() {
        for (there, read) in [(8, 8), (40, MOST / PART + 1)] {
            let (count, body) = parts(there);
            let mut body = ReadToTheEnd::new(body);
            body.frame().await.unwrap().unwrap();
            drop(body);
            tokio::time::sleep(LONGEST / 2).await;
            assert_eq!(count.load(SeqCst), read + usize::from(there > read), "of {there}");
            tokio::time::sleep(LONGEST).await;
            assert_eq!(Arc::strong_count(&count), 1, "it is let go in the end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_to_its_end_or_broke_is_not_touched_again() {
        let whole = ReadToTheEnd::new(AnyBody::from("whole"));
        assert_eq!(whole.collect().await.unwrap().to_bytes(), "whole");
        let broken = futures::stream::iter([Err::<Bytes, _>("broken")]);
        let mut broken = ReadToTheEnd::new(AnyBody::from_stream(broken));
        broken.frame().await.unwrap().unwrap_err();
        assert!(broken.frame().await.is_none() && broken.is_end_stream());
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
    }
}
