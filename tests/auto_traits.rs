//! What can be sent to other threads, shared between them, and moved: every public handle, stack and future.
#![allow(missing_docs, clippy::disallowed_methods)] // Time is measured from outside.

use std::{
    cell::Cell,
    future::{Future, ready},
    marker::PhantomPinned,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt;

use mainstay::{
    Attempt, BoxedStack, Bulkhead, CircuitBreaker, ConfigError, Deadline, Error, Fallback, Keyed, Name,
    RateLimiter, Refused, Registry, Retry, Stack, Timeout, bulkhead, call, circuit_breaker, deadline,
    rate_limiter, recommended, retry,
};

type Closed = Stack<(Deadline, (CircuitBreaker, (Retry, (Bulkhead, (Timeout, ())))))>;

fn closed() -> Closed {
    recommended("all", Duration::from_secs(2), Duration::from_secs(1), 20).unwrap()
}

/// An operation that stays on its thread.
struct Local(Rc<u8>);

impl Future for Local {
    type Output = Result<u8, ()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<u8, ()>> {
        Poll::Ready(Ok(*self.0))
    }
}

fn local() -> Local {
    Local(Rc::new(1))
}

/// An operation that must not be moved.
struct Pinned(PhantomPinned);

impl Future for Pinned {
    type Output = Result<u8, ()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<u8, ()>> {
        let PhantomPinned = self.0;
        Poll::Ready(Ok(1))
    }
}

fn pinned() -> Pinned {
    Pinned(PhantomPinned)
}

/// Whether a type has an auto trait, also where it has not: inherent methods come before those of a trait. Of closures
/// the compiler does not know it yet where it chooses, so what is to be a no is made of named types.
struct Probe<'a, T: ?Sized>(&'a T);

trait Not {
    fn send(&self) -> bool {
        false
    }
    fn sync(&self) -> bool {
        false
    }
    fn unpin(&self) -> bool {
        false
    }
}

impl<T: ?Sized> Not for Probe<'_, T> {}

macro_rules! probe {
    ($method:ident, $bound:path) => {
        impl<T: $bound + ?Sized> Probe<'_, T> {
            #[allow(clippy::unused_self)]
            fn $method(&self) -> bool {
                let _ = self.0;
                true
            }
        }
    };
}
probe!(send, Send);
probe!(sync, Sync);
probe!(unpin, Unpin);

/// `Send`, `Sync` and `Unpin` of a value.
macro_rules! traits {
    ($value:expr) => {{
        let value = &$value;
        (Probe(value).send(), Probe(value).sync(), Probe(value).unpin())
    }};
}

#[test]
fn the_probe_tells_yes_from_no() {
    assert_eq!(traits!(1), (true, true, true));
    assert_eq!(traits!(Cell::new(1)), (true, false, true));
    assert_eq!(traits!(Rc::new(1)), (false, false, true));
    assert_eq!(traits!(PhantomPinned), (true, true, false));
}

fn handle<T: Send + Sync + Unpin + 'static>() {}
fn shared<T: Clone + Send + Sync + Unpin + 'static>() {}

#[test]
fn handles_are_shared_between_threads() {
    shared::<CircuitBreaker>();
    shared::<circuit_breaker::Config>();
    shared::<circuit_breaker::Snapshot>();
    handle::<circuit_breaker::Permit<'static>>();
    shared::<Bulkhead>();
    shared::<bulkhead::Config>();
    shared::<bulkhead::Partitions>();
    shared::<bulkhead::Snapshot>();
    handle::<bulkhead::Permit<'static>>();
    handle::<bulkhead::OwnedPermit>();
    shared::<RateLimiter>();
    shared::<rate_limiter::Config>();
    shared::<rate_limiter::Snapshot>();
    shared::<rate_limiter::Quota>();
    handle::<rate_limiter::Permit<'static>>();
    shared::<deadline::header::HeaderError>();
    shared::<Retry>();
    shared::<retry::Config>();
    shared::<retry::Budget>();
    shared::<retry::Snapshot>();
    shared::<Timeout>();
    shared::<Deadline>();
    shared::<Keyed<String, circuit_breaker::Config>>();
    shared::<Keyed<u64, bulkhead::Config>>();
    handle::<Registry>();
    shared::<Closed>();
    shared::<Refused>();
    shared::<Error<std::io::ErrorKind>>();
    shared::<ConfigError>();
    shared::<Name>();
    shared::<Attempt>();
}

/// A policy does not hold the values and errors that it looks at, so it does not matter whether those can be shared.
#[test]
fn values_and_errors_that_stay_on_their_thread_do_not_bind_the_policies() {
    type Local = Rc<Cell<u8>>;
    shared::<BoxedStack<Local, Local>>();
    let breaker = CircuitBreaker::config()
        .classify(|result: &Result<Local, Local>| match result {
            Ok(_) => circuit_breaker::Class::Success,
            Err(_) => circuit_breaker::Class::Failure,
        })
        .build()
        .unwrap();
    assert_eq!(traits!(breaker), (true, true, true));
    let retry = Retry::constant(Duration::from_secs(1))
        .when(|failure: &retry::Failure<'_, Local, Local>| failure.number() < 2)
        .build()
        .unwrap();
    assert_eq!(traits!(retry), (true, true, true));
    let fallback = Fallback::<_, Local, Local>::new(|_| ready(Ok(Rc::default())));
    assert_eq!(traits!(fallback), (true, true, true));
}

#[test]
fn a_call_is_as_its_operation_is() {
    let (stack, boxed) = (closed(), closed().boxed::<u8, ()>());
    let breaker = CircuitBreaker::config().build().unwrap();
    let bulkhead = Bulkhead::new(1).unwrap();
    let limiter = RateLimiter::new(9, Duration::from_secs(1)).unwrap();
    let retry = Retry::constant(Duration::from_secs(1)).build().unwrap();
    let timeout = Timeout::new(Duration::from_secs(1)).unwrap();
    let deadline = Deadline::new(Duration::from_secs(1)).unwrap();
    let fallback = Fallback::<_, u8, ()>::value(1);
    let with_fallback = stack_with_fallback();

    macro_rules! sent {
        ($($callee:expr),* $(,)?) => {$(
            assert!(traits!($callee.call(|| ready(Ok::<u8, ()>(1)))).0, stringify!($callee));
            assert!(traits!($callee.call_with(|_| ready(Ok::<u8, ()>(1)))).0, stringify!($callee));
            // One that stays on its thread makes a call that does, and works all the same.
            let call = $callee.call(local as fn() -> Local);
            assert!(!traits!(call).0, stringify!($callee));
            assert_eq!(call.now_or_never(), Some(Ok(1)), stringify!($callee));
        )*};
    }
    sent!(stack, boxed, breaker, bulkhead, limiter, retry, timeout, deadline, fallback, with_fallback);
    assert!(traits!(stack.call_marked(|| ready(Ok::<u8, ()>(1)))).0);
    assert!(traits!(bulkhead.acquire()).0);
    let once = mainstay::stack("once").bulkhead(1).build().unwrap();
    assert!(traits!(once.call_once(|| ready(Ok::<u8, ()>(1)))).0);
    assert!(traits!(deadline::within(std::time::Instant::now(), ready(1))).0);

    // Several threads may poll it one after the other, not at once; it may hold a future that must not move.
    let pinned = stack.call(pinned as fn() -> Pinned);
    assert_eq!((traits!(pinned).0, traits!(pinned).2), (true, false));
    assert_eq!(pinned.now_or_never(), Some(Ok(1)));
}

fn stack_with_fallback() -> Stack<impl call::Run<(), u8, (), State: Send> + Send + Sync> {
    mainstay::stack("fallback").fallback(|_why: Error<()>| async { Ok(7) }).bulkhead(1).build().unwrap()
}

#[tokio::test]
async fn a_call_can_be_spawned() {
    static STACK: std::sync::LazyLock<Closed> = std::sync::LazyLock::new(closed);
    assert_eq!(tokio::spawn(STACK.call(|| ready(Ok::<_, ()>(1)))).await.unwrap(), Ok(1));
    let stack = closed();
    let task = tokio::spawn(async move { stack.call(|| async { Ok::<_, ()>(1) }).await });
    assert_eq!(task.await.unwrap(), Ok(1));
}

#[cfg(feature = "tower")]
mod tower_form {
    use super::*;
    use std::future::Ready;
    use tower::{Layer, Service, service_fn};

    #[test]
    fn layers_and_services_are_as_the_service_inside_is() {
        let stack = closed();
        fn echo(request: u8) -> Ready<Result<u8, Error<()>>> {
            ready(Ok(request))
        }
        let service = service_fn(echo as fn(u8) -> _);
        assert_eq!(traits!(stack.layer(service)), (true, true, true));
        assert_eq!(traits!(stack.lift()), (true, true, true));
        assert!(traits!(stack.lift().layer(service)).0);
        assert!(traits!(stack.layer(service).call(1)).0);
        assert!(traits!(Timeout::new(Duration::from_secs(1)).unwrap().layer(service).call(1)).0);

        // Not `Sync`, as boxed services are, and not `Send`.
        let unshared = Adds(Cell::new(1));
        assert_eq!(traits!(unshared), (true, false, true));
        assert_eq!(traits!(stack.layer(unshared.clone())), (true, false, true));
        assert!(traits!(stack.layer(unshared).call(1)).0);
        let local = Adds(Rc::new(Cell::new(1)));
        assert_eq!(traits!(stack.layer(local.clone())), (false, false, true));
        let call = stack.layer(local).call(1);
        assert!(!traits!(call).0);
        assert_eq!(call.now_or_never(), Some(Ok(2)));
    }

    #[test]
    fn a_request_that_stays_on_its_thread_makes_a_call_that_does() {
        fn take(request: Rc<u8>) -> Ready<Result<u8, Error<()>>> {
            ready(Ok(*request))
        }
        let service = service_fn(take as fn(Rc<u8>) -> _);
        assert!(traits!(closed().layer(service)).0);
        let call = closed().layer(service).call(Rc::new(7));
        assert!(!traits!(call).0);
        let answer: Result<u8, _> = call.now_or_never().unwrap();
        assert_eq!(answer, Ok(7));
    }

    /// Adds what it holds.
    #[derive(Clone)]
    struct Adds<H>(H);

    impl<H: Holds> Service<u8> for Adds<H> {
        type Response = u8;
        type Error = Error<()>;
        type Future = Ready<Result<u8, Error<()>>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error<()>>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: u8) -> Self::Future {
            ready(Ok(request + self.0.held()))
        }
    }

    trait Holds {
        fn held(&self) -> u8;
    }

    impl Holds for Cell<u8> {
        fn held(&self) -> u8 {
            self.get()
        }
    }

    impl Holds for Rc<Cell<u8>> {
        fn held(&self) -> u8 {
            self.get()
        }
    }
}

/// Every form of a call, with closures that borrow, inside a task that may move between threads.
#[tokio::test]
async fn every_form_of_a_call_can_be_spawned() {
    let stack = mainstay::stack("s").timeout(std::time::Duration::from_secs(1)).build().unwrap();
    let boxed = stack.clone().boxed::<usize, std::fmt::Error>();
    let alone = mainstay::Bulkhead::new(1).unwrap();
    let spawned = tokio::spawn(async move {
        async fn length(text: &str) -> Result<usize, std::fmt::Error> {
            tokio::task::yield_now().await;
            Ok(text.len())
        }
        let text = String::from("four");
        let with = |attempt: mainstay::Attempt| {
            let text = &text;
            async move { length(text).await.map(|length| length * attempt.number() as usize) }
        };
        let once = text.clone();
        let mut sum = 0;
        sum += stack.call(|| length(&text)).await.unwrap();
        sum += stack.call_with(with).await.unwrap();
        sum += stack.call_marked(|| length(&text)).await.unwrap().value;
        sum += stack.call_once(|| async move { length(&once).await }).await.unwrap();
        sum += boxed.call(|| length(&text)).await.unwrap();
        sum += boxed.call_with(with).await.unwrap();
        sum += boxed.call_marked(|| length(&text)).await.unwrap().value;
        sum += alone.call(|| length(&text)).await.unwrap();
        sum += alone.call_with(with).await.unwrap();
        sum
    });
    assert_eq!(spawned.await.unwrap(), 36);
}
