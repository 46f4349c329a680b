//! Stacks around services of the shapes that axum, hyper, reqwest and tonic have.
#![cfg(feature = "tower")]
#![allow(missing_docs)]

mod support;

use futures::future::BoxFuture;
use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use mainstay::{
    Error, Fallback, Kind, Refused,
    circuit_breaker::{Class, State},
};
use support::*;
use tokio::sync::{mpsc, oneshot};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

/// A request and a response as an HTTP library has them: a head that can be cloned, a body that may not be.
#[derive(Debug, Clone, Default, PartialEq)]
struct Request<B> {
    path: &'static str,
    body: B,
}

#[derive(Debug, Clone, PartialEq)]
struct Response<B> {
    status: u16,
    degraded: bool,
    body: B,
}

fn status<B>(status: u16, body: B) -> Response<B> {
    Response { status, degraded: false, body }
}

/// The status is the failure, as in HTTP.
fn by_status<B, E>(result: &Result<Response<B>, E>) -> Class {
    match result {
        Ok(response) if response.status >= 500 => Class::Failure,
        Ok(_) => Class::Success,
        Err(_) => Class::Failure,
    }
}

/// As axum's `HandleError`: what is left of errors becomes a response, always ready, a fresh clone for each call.
#[derive(Clone)]
struct Handled<S>(S);

impl<S, R> Service<R> for Handled<S>
where
    S: Service<R, Response = Response<String>, Error = Error<Infallible>> + Clone + Send + 'static,
    S::Future: Send,
    R: Send + 'static,
{
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<String>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let answer = self.0.clone().oneshot(request);
        Box::pin(async move {
            Ok(answer.await.unwrap_or_else(|error| match error {
                Error::Refused(refused) => status(503, refused.kind().to_string()),
                Error::Inner(never) => match never {},
            }))
        })
    }
}

/// As axum's routes: the error is `Infallible`, and `layer` is called for each route.
#[tokio::test(start_paused = true)]
async fn axum_shaped_routes_share_one_breaker_however_often_they_are_layered() {
    let breaker = touchy().consecutive_failures(3).classify(by_status::<String, Infallible>).build().unwrap();
    let stack = mainstay::stack("routes").circuit_breaker(breaker.clone()).build().unwrap();
    let handler = |answer: u16| {
        service_fn(move |request: Request<String>| async move {
            Ok::<_, Infallible>(status(answer, request.path.to_owned()))
        })
    };
    let route = |answer: u16| Handled(stack.lift().layer(handler(answer)));
    let request = |path| Request { path, body: String::new() };
    for call in 0..3 {
        assert_eq!(breaker.state(), State::Closed);
        // A new route for each call, as a router that clones or rebuilds its routes has it.
        let Ok(response) = route(500).oneshot(request("/pay")).await;
        assert_eq!((response.status, &*response.body), (500, "/pay"), "call {call}");
    }
    assert_eq!(breaker.state(), State::Open);
    let Ok(response) = route(200).oneshot(request("/users")).await;
    assert_eq!((response.status, &*response.body), (503, "circuit open"));
    tokio::time::advance(100 * MS).await;
    let Ok(response) = route(200).oneshot(request("/users")).await;
    assert_eq!(response.status, 200);
}

/// The trap itself: a layer that makes its state in `layer` never trips. The test above would see it.
#[tokio::test(start_paused = true)]
async fn state_made_in_layer_would_not_trip() {
    let broken = tower::layer::layer_fn(|inner| {
        touchy()
            .consecutive_failures(3)
            .classify(by_status::<(), Infallible>)
            .build()
            .unwrap()
            .lift()
            .layer(inner)
    });
    for _ in 0..10 {
        let handler = service_fn(|()| async { Ok::<_, Infallible>(status(500, ())) });
        assert_eq!(broken.layer(handler).oneshot(()).await.unwrap().status, 500);
    }
}

/// As hyper's client: a body that may be a stream, which can be sent once.
enum Body {
    Whole(&'static str),
    Stream(Box<dyn Iterator<Item = u8> + Send>),
}

impl Request<Body> {
    fn copy(&self) -> Option<Self> {
        match self.body {
            Body::Whole(text) => Some(Request { path: self.path, body: Body::Whole(text) }),
            Body::Stream(_) => None,
        }
    }

    fn stream() -> Self {
        Request { path: "/up", body: Body::Stream(Box::new([1, 2, 3].into_iter())) }
    }

    fn whole() -> Self {
        Request { path: "/up", body: Body::Whole("abc") }
    }
}

/// Each attempt uses its body up, and fails the first `failing` times.
fn upload(
    failing: usize,
) -> (impl Service<Request<Body>, Response = Response<usize>, Error = Failed> + Clone, Arc<AtomicUsize>) {
    let attempts = Arc::new(AtomicUsize::new(0));
    let seen = attempts.clone();
    let service = service_fn(move |request: Request<Body>| {
        let number = seen.fetch_add(1, Relaxed);
        async move {
            let length = match request.body {
                Body::Whole(text) => text.len(),
                Body::Stream(bytes) => bytes.count(),
            };
            if number < failing { Err(Failed::Down) } else { Ok(status(200, length)) }
        }
    });
    (service, attempts)
}

#[tokio::test(start_paused = true)]
async fn hyper_shaped_a_streaming_body_is_sent_once_and_a_whole_one_again() {
    let heard = Heard::default();
    let stack = mainstay::stack("upload")
        .observe(heard.clone())
        .deadline(1_000 * MS)
        .retry(stubborn(3).clone_request(Request::<Body>::copy))
        .bulkhead(5)
        .timeout(100 * MS)
        .build()
        .unwrap();

    let (service, attempts) = upload(0);
    assert_eq!(stack.layer(service).oneshot(Request::stream()).await.unwrap().body, 3);
    assert_eq!(attempts.load(Relaxed), 1);

    let (service, attempts) = upload(1);
    assert_eq!(
        stack.layer(service).oneshot(Request::stream()).await,
        Err(Failed::Down),
        "the error is unchanged"
    );
    assert_eq!(attempts.load(Relaxed), 1);
    assert_eq!(heard.count("NotRepeatable"), 1);
    assert_eq!(heard.count("Retried"), 0);

    let (service, attempts) = upload(2);
    assert_eq!(stack.layer(service).oneshot(Request::whole()).await.unwrap().body, 3);
    assert_eq!((attempts.load(Relaxed), heard.count("Retried")), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn hyper_shaped_without_a_retry_nothing_is_asked_of_the_body() {
    let stack = mainstay::stack("upload").deadline(1_000 * MS).bulkhead(5).timeout(100 * MS).build().unwrap();
    assert_eq!(stack.layer(upload(0).0).oneshot(Request::stream()).await.unwrap().body, 3);
}

#[tokio::test(start_paused = true)]
async fn hyper_shaped_a_fallback_service_gets_the_bodies_that_can_be_copied() {
    let (other, _) = upload(0);
    let fallback = Fallback::service_with(other, Request::<Body>::copy)
        .mark(|response: &mut Response<usize>| response.degraded = true);
    let stack = mainstay::stack("upload").fallback_with(fallback).timeout(100 * MS).build().unwrap();
    let answer = stack.layer(upload(9).0).oneshot(Request::whole()).await;
    assert_eq!(answer, Ok(Response { status: 200, degraded: true, body: 3 }));
    assert_eq!(stack.layer(upload(9).0).oneshot(Request::stream()).await, Err(Failed::Down));
}

/// As reqwest's client: cheap to clone, and a service by value and by reference.
#[derive(Clone, Default)]
struct Client {
    sent: Arc<AtomicUsize>,
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("connection refused")]
struct ClientError;

type ClientFuture = Pin<Box<dyn Future<Output = Result<Response<String>, ClientError>> + Send>>;

impl Client {
    fn execute(&self, request: Request<String>) -> ClientFuture {
        let number = self.sent.fetch_add(1, Relaxed);
        Box::pin(async move {
            tokio::time::sleep(5 * MS).await;
            if number == 0 { Err(ClientError) } else { Ok(status(200, request.body)) }
        })
    }
}

impl Service<Request<String>> for Client {
    type Response = Response<String>;
    type Error = ClientError;
    type Future = ClientFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> ClientFuture {
        self.execute(request)
    }
}

impl Service<Request<String>> for &'_ Client {
    type Response = Response<String>;
    type Error = ClientError;
    type Future = ClientFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> ClientFuture {
        self.execute(request)
    }
}

#[tokio::test(start_paused = true)]
async fn reqwest_shaped_a_client_by_value_and_by_reference() {
    let request = || Request { path: "/", body: "hello".to_owned() };
    let client = Client::default();
    let answer = full().lift().layer(client.clone()).oneshot(request()).await;
    assert_eq!(answer, Ok(status(200, "hello".to_owned())));
    assert_eq!(client.sent.load(Relaxed), 2);

    let client = Client::default();
    let by_reference = full().lift().layer(&client);
    assert_eq!(by_reference.clone().oneshot(request()).await, Ok(status(200, "hello".to_owned())));
    assert_eq!(by_reference.oneshot(request()).await, Ok(status(200, "hello".to_owned())));
    assert_eq!(client.sent.load(Relaxed), 3);

    // The same stack as a wrapper around the same client.
    let client = Client::default();
    assert_eq!(full().call(|| client.execute(request())).await, Ok(status(200, "hello".to_owned())));

    let alone = open().lift().layer(&client).oneshot(request()).await.unwrap_err();
    assert_eq!(alone.refused().map(Refused::kind), Some(Kind::CircuitOpen));
}

/// As tonic's channel: a handle to a worker, which must reserve a place in its queue before it is called; a future that is
/// neither `Clone` nor `Unpin`.
struct Channel {
    queue: mpsc::Sender<Job>,
    place: Option<mpsc::OwnedPermit<Job>>,
    reserving: Option<BoxFuture<'static, Result<mpsc::OwnedPermit<Job>, BoxError>>>,
}

type Job = (Request<Vec<u8>>, oneshot::Sender<Response<usize>>);

impl Channel {
    fn new(places: usize, dropping: usize) -> Self {
        let (queue, mut jobs) = mpsc::channel::<Job>(places);
        tokio::spawn(async move {
            let mut number = 0;
            while let Some((request, answer)) = jobs.recv().await {
                number += 1;
                tokio::time::sleep(MS).await;
                if number > dropping {
                    let _ = answer.send(status(200, request.body.len()));
                }
            }
        });
        Channel { queue, place: None, reserving: None }
    }
}

impl Clone for Channel {
    fn clone(&self) -> Self {
        Channel { queue: self.queue.clone(), place: None, reserving: None }
    }
}

impl Service<Request<Vec<u8>>> for Channel {
    type Response = Response<usize>;
    type Error = BoxError;
    type Future = ChannelFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.place.is_none() {
            let queue = &self.queue;
            let reserving = self.reserving.get_or_insert_with(|| {
                let queue = queue.clone();
                Box::pin(async move { queue.reserve_owned().await.map_err(BoxError::from) })
            });
            let place = std::task::ready!(reserving.as_mut().poll(cx));
            self.reserving = None;
            self.place = Some(place?);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Vec<u8>>) -> ChannelFuture {
        let (sender, answer) = oneshot::channel();
        let place = self.place.take().expect("called an instance that had not said that it is ready");
        let _queue = place.send((request, sender));
        ChannelFuture { answer, _pinned: std::marker::PhantomPinned }
    }
}

#[pin_project::pin_project]
struct ChannelFuture {
    #[pin]
    answer: oneshot::Receiver<Response<usize>>,
    _pinned: std::marker::PhantomPinned,
}

impl Future for ChannelFuture {
    type Output = Result<Response<usize>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().answer.poll(cx).map_err(BoxError::from)
    }
}

#[tokio::test(start_paused = true)]
async fn tonic_shaped_a_channel_with_places_and_a_pinned_future() {
    let request = || Request { path: "/grpc", body: vec![1, 2, 3] };
    let channel = Channel::new(2, 2);
    let service = full().layer(channel.clone());
    // The first two answers are lost, and asked for again.
    assert_eq!(service.clone().oneshot(request()).await.unwrap().body, 3);

    let many = futures::future::join_all((0..10).map(|_| service.clone().oneshot(request()))).await;
    assert!(many.into_iter().all(|answer| answer.unwrap().status == 200));
    assert_eq!(channel.queue.capacity(), 2, "a place was kept");

    // A ready instance that is refused gives its place back.
    let breaker = touchy().build().unwrap();
    let mut guarded = breaker.layer(channel.clone());
    guarded.ready().await.unwrap();
    assert_eq!(channel.queue.capacity(), 1);
    breaker.force_open();
    let error = guarded.call(request()).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Refused>().map(Refused::kind), Some(Kind::CircuitOpen));
    assert_eq!(channel.queue.capacity(), 2);

    // With the worker gone the channel says so itself.
    let (queue, jobs) = mpsc::channel(1);
    drop(jobs);
    let service = full().layer(Channel { queue, place: None, reserving: None });
    assert!(service.oneshot(request()).await.unwrap_err().downcast_ref::<Refused>().is_none());
}

/// A service with nothing more than the trait.
#[tokio::test(start_paused = true)]
async fn a_service_for_several_requests_is_guarded_for_each() {
    #[derive(Clone)]
    struct Both;
    impl Service<u8> for Both {
        type Response = u8;
        type Error = Failed;
        type Future = Ready<Result<u8, Failed>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, request: u8) -> Self::Future {
            ready(Ok(request))
        }
    }
    impl Service<String> for Both {
        type Response = usize;
        type Error = BoxError;
        type Future = Ready<Result<usize, BoxError>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, request: String) -> Self::Future {
            ready(Ok(request.len()))
        }
    }
    let service = full().layer(Both);
    assert_eq!(service.clone().oneshot(7_u8).await, Ok(7));
    assert_eq!(service.oneshot("four".to_owned()).await.unwrap(), 4);
}
