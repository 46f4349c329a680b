//! The policies of a client, around whatever it calls.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::StatusCode;
use mainstay::{
    BoxedStack, Bulkhead, CircuitBreaker, ConfigError, Error, Name, Registry, Retry, circuit_breaker,
    circuit_breaker::Class, deadline,
};
use tokio::time::Instant;

use crate::env::{self, Env};

use super::{CallError, Options, Reply};

/// The documented breaker, to be [built](build): 5 failures in a row within 60 s open it, or half of at least 20 calls in that time, for exactly
/// 30 s (3 s with `POLICY_FAST`), after which one probe is let through. What is a failure, whoever builds it says.
pub fn breaker(name: impl Into<Name>, env: &Env) -> circuit_breaker::Config {
    let minute = Duration::from_secs(60);
    let wait = Duration::from_secs(if env.get(env::POLICY_FAST).is_some() { 3 } else { 30 });
    CircuitBreaker::config()
        .name(name)
        .consecutive_failures_within(5, minute)
        .time_window(minute, 60)
        .minimum_calls(20)
        .failure_rate(0.5)
        .open_wait(wait, 1.0, wait)
        .open_wait_jitter(0.0)
        .observe(mainstay::observe::Tracing)
        .observe(mainstay::observe::Metrics)
}

/// A breaker that lets everything through with `BREAKERS=off`, to see what breakers are for.
///
/// # Errors
///
/// Settings that cannot be.
pub fn build<C>(config: circuit_breaker::Config<C>, env: &Env) -> Result<CircuitBreaker<C>, ConfigError> {
    let breaker = config.build()?;
    if env.get_or_default(env::BREAKERS) == "off" {
        breaker.disable();
    }
    Ok(breaker)
}

/// The documented bulkhead: so many at once, and so many more that wait for a second at most.
///
/// # Errors
///
/// A number that cannot be.
pub fn bulkhead(name: impl Into<Name>, concurrency: usize, queue: usize) -> Result<Bulkhead, ConfigError> {
    Bulkhead::config(concurrency)
        .queue(queue, Duration::from_secs(1))
        .name(name)
        .observe(mainstay::observe::Metrics)
        .build()
}

/// When the caller of what runs here gives up, where that is before our own limit: what it ends says nothing about the service. A deadline
/// inside the policies would be a service that did not answer in time; here the call is dropped from outside, as by a caller who went away.
#[derive(Debug, Clone, Copy)]
pub struct CallersEnd {
    own: std::time::Instant,
    at: Option<Instant>,
}

/// A service that was told how long its caller waits may be the first to say that it is over, and its own calls end earlier still.
const NEAR: Duration = Duration::from_millis(100);

impl CallersEnd {
    /// To be asked when a call begins that may take as long as `own`.
    pub fn of(own: Duration) -> Self {
        let own = deadline::after(own);
        let at = deadline::current().filter(|caller| *caller < own).map(Instant::from_std);
        CallersEnd { own, at }
    }

    /// Runs a call, which sees our own limit as its deadline but is not ended by it. `None`: the caller's end came first.
    pub async fn run<F: Future>(self, call: F) -> Option<F::Output> {
        let call = deadline::within(self.own, call);
        match self.at {
            Some(at) => tokio::time::timeout_at(at, call).await.ok(),
            None => Some(call.await),
        }
    }

    /// Whether an answer of this status says no more than that the caller's time is over.
    pub fn explains(self, status: StatusCode) -> bool {
        let in_time = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        in_time.contains(&status) && self.at.is_some_and(|at| at < Instant::now() + NEAR)
    }
}

type Breaker = CircuitBreaker<circuit_breaker::ErrorClassifier<fn(&CallError) -> Class, CallError>>;

pub(super) struct Policies {
    /// For what may be repeated, and for what may not.
    repeated: BoxedStack<Reply, CallError>,
    once: BoxedStack<Reply, CallError>,
    breaker: Breaker,
    /// For the whole call.
    deadline: Duration,
}

/// What an answer, or none, says of the service.
fn classify(error: &CallError) -> Class {
    match error {
        CallError::Request(_) | CallError::Late { .. } | CallError::Starting => Class::Ignored,
        CallError::Garbled(_)
        | CallError::Refused(_)
        | CallError::Connection { .. }
        | CallError::Status { .. } => Class::Failure,
    }
}

impl Policies {
    pub(super) fn new(
        name: Name,
        options: Options,
        env: &Env,
        registry: &Registry,
    ) -> Result<Self, ConfigError> {
        let config = breaker(name.clone(), env).immediate_close();
        let breaker = build(config.classify_err(classify as fn(&CallError) -> Class), env)?;
        let bulkhead = bulkhead(name.clone(), options.concurrency, options.queue)?;
        let retry = Retry::exponential(Duration::from_millis(50)).cap(Duration::from_millis(500));
        let retry = if options.budget { retry } else { retry.no_budget() };
        let retry = retry
            .max_attempts(options.attempts)
            .idempotent()
            .when(|attempt: &mainstay::retry::Failure<'_, Reply, CallError>| {
                matches!(
                    attempt.error(),
                    Some(CallError::Connection { .. } | CallError::Status { .. } | CallError::Starting)
                )
            })
            .name(name.clone())
            .observe(mainstay::observe::Metrics)
            .build()?;
        // Timeouts, since a deadline would also be the caller's: see `CallersEnd`.
        let repeated = mainstay::stack(name.clone())
            .timeout(options.deadline)
            .circuit_breaker(breaker.clone())
            .retry(retry.clone())
            .bulkhead(bulkhead.clone())
            .timeout(options.attempt)
            .build()?
            .boxed();
        let once = mainstay::stack(name)
            .timeout(options.deadline)
            .circuit_breaker(breaker.clone())
            .bulkhead(bulkhead.clone())
            .timeout(options.attempt)
            .build()?
            .boxed();
        registry.add(&breaker);
        registry.add(&bulkhead);
        registry.add(&retry);
        Ok(Policies { repeated, once, breaker, deadline: options.deadline })
    }

    pub(super) fn is_open(&self) -> bool {
        self.breaker.retry_at().is_some()
    }

    pub(super) async fn call<F>(
        &self,
        repeatable: bool,
        mut attempt: impl FnMut() -> F,
    ) -> Result<Reply, CallError>
    where
        F: Future<Output = Result<Reply, CallError>>,
    {
        let stack = if repeatable { &self.repeated } else { &self.once };
        let (end, sent) = (CallersEnd::of(self.deadline), AtomicBool::new(false));
        let attempt = || {
            let (answer, sent) = (attempt(), &sent);
            async move {
                sent.store(true, Ordering::Relaxed);
                answer.await.map_err(|error| match error {
                    CallError::Status { status, .. } if end.explains(status) => {
                        CallError::Late { sent: true }
                    }
                    error => error,
                })
            }
        };
        match end.run(stack.call(attempt)).await {
            Some(answer) => answer.map_err(|error| match error {
                Error::Inner(error) => error,
                Error::Refused(refused) => CallError::Refused(refused),
            }),
            None => Err(CallError::Late { sent: sent.load(Ordering::Relaxed) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeMap};

    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};
    use tokio::time::advance;

    use super::*;

    /// The policies with a service that counts how often it is asked.
    struct Called {
        policies: Policies,
        calls: Cell<u32>,
    }

    impl Called {
        fn new() -> Self {
            let policies =
                Policies::new("user".into(), Options::default(), &Env::empty(), &Registry::new()).unwrap();
            Called { policies, calls: Cell::new(0) }
        }

        async fn call(&self, answer: Result<u16, u16>) -> Result<Reply, CallError> {
            let status = |code| StatusCode::from_u16(code).unwrap();
            let reply = |code| Reply { status: status(code), headers: HeaderMap::new(), body: Bytes::new() };
            self.policies
                .call(false, || {
                    self.calls.set(self.calls.get() + 1);
                    std::future::ready(answer.map(reply).map_err(|code| reply(code).into()))
                })
                .await
        }

        async fn fail(&self, times: u32, apart: Duration) {
            for time in 0..times {
                if time > 0 {
                    advance(apart).await;
                }
                let _ = self.call(Err(500)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn five_failures_within_a_minute_open_it_for_thirty_seconds() {
        let it = Called::new();
        it.fail(5, Duration::from_secs(15)).await;
        assert_eq!(it.calls.get(), 5);
        advance(Duration::from_millis(29_999)).await;
        let refused = it.call(Ok(200)).await.unwrap_err();
        assert!(matches!(&refused, CallError::Refused(refused) if !refused.was_started()), "{refused}");
        assert_eq!(it.calls.get(), 5, "nobody was asked");
        advance(Duration::from_millis(1)).await;
        it.call(Ok(200)).await.unwrap();
        it.fail(4, Duration::ZERO).await;
        it.call(Ok(200)).await.expect("it was closed by the probe, and four failures are not five");
    }

    #[tokio::test(start_paused = true)]
    async fn five_failures_over_61_seconds_do_not_open_it() {
        let it = Called::new();
        it.fail(5, Duration::from_millis(15_250)).await;
        it.call(Ok(200)).await.unwrap();
        assert_eq!(it.calls.get(), 6);
    }

    /// What the rule for failures in a row does with them that knows no time.
    #[tokio::test(start_paused = true)]
    async fn a_row_without_a_time_would_have_opened() {
        let breaker = CircuitBreaker::config()
            .time_window(Duration::from_secs(60), 60)
            .consecutive_failures(5)
            .build()
            .unwrap();
        for _ in 0..5 {
            let _ = breaker.call(|| async { Err::<(), _>(()) }).await;
            advance(Duration::from_millis(15_250)).await;
        }
        assert!(breaker.snapshot().openings == 1);
    }

    #[tokio::test(start_paused = true)]
    async fn exactly_half_of_twenty_calls_open_it_and_half_of_nineteen_do_not() {
        let it = Called::new();
        for _ in 0..9 {
            it.call(Ok(200)).await.unwrap();
            it.fail(1, Duration::ZERO).await;
        }
        it.call(Ok(200)).await.expect("9 of 18");
        it.fail(1, Duration::ZERO).await;
        let refused = it.call(Ok(200)).await.unwrap_err();
        assert!(matches!(refused, CallError::Refused(_)), "10 of 20: {refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_service_says_is_no_failure_of_it() {
        let it = Called::new();
        for _ in 0..1_000 {
            it.call(Ok(404)).await.unwrap();
        }
        for _ in 0..100 {
            let _ =
                it.policies.call(false, || std::future::ready(Err(CallError::Request(String::new())))).await;
        }
        it.call(Ok(200)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_does_not_answer_in_time_has_failed() {
        let it = Called::new();
        for _ in 0..5 {
            let began = tokio::time::Instant::now();
            let late = it.policies.call(false, std::future::pending).await.unwrap_err();
            assert!(matches!(&late, CallError::Refused(refused) if refused.was_started()), "{late}");
            assert_eq!(began.elapsed(), Duration::from_secs(5));
        }
        it.call(Ok(200)).await.expect_err("it is open");
        assert_eq!(it.calls.get(), 0);
    }

    async fn pending_for_a_caller(it: &Called, time: Duration) -> CallError {
        let call = it.policies.call(false, std::future::pending);
        deadline::within(deadline::after(time), call).await.unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn callers_in_a_hurry_say_nothing_about_the_service() {
        let it = Called::new();
        for ms in [1, 5, 100, 2_000, 4_999].repeat(20) {
            let began = Instant::now();
            let late = pending_for_a_caller(&it, Duration::from_millis(ms)).await;
            assert!(matches!(late, CallError::Late { sent: true }) && late.may_have_happened(), "{late}");
            assert_eq!(began.elapsed(), Duration::from_millis(ms));
        }
        it.call(Ok(200)).await.expect("it is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn callers_with_time_see_a_service_fail_that_is_slow() {
        let it = Called::new();
        for seconds in [6, 10, 30, 60, 3_600] {
            let began = Instant::now();
            let late = pending_for_a_caller(&it, Duration::from_secs(seconds)).await;
            assert!(matches!(late, CallError::Refused(_)), "{late}");
            assert_eq!(began.elapsed(), Duration::from_secs(5), "our own limit");
        }
        it.call(Ok(200)).await.expect_err("it is open");
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_was_told_of_the_hurry_may_be_the_first_to_say_so() {
        let it = Called::new();
        let answers = |after: u64, status: u16, time: u64| {
            let status = StatusCode::from_u16(status).unwrap();
            let call = it.policies.call(false, move || async move {
                tokio::time::sleep(Duration::from_millis(after)).await;
                Err(CallError::Status { status, said: String::new(), retry_after: None })
            });
            deadline::within(deadline::after(Duration::from_millis(time)), call)
        };
        for _ in 0..20 {
            assert!(matches!(answers(996, 504, 1_000).await, Err(CallError::Late { sent: true })));
            assert!(matches!(answers(0, 503, 5).await, Err(CallError::Late { sent: true })));
        }
        // A quick one is not explained by a second that has hardly begun, and what is broken is so at any time.
        for (after, status, time) in
            [(0, 503, 1_000), (0, 504, 1_000), (4_990, 504, 30_000), (4, 500, 5), (0, 503, 3_600_000)]
        {
            assert!(
                matches!(answers(after, status, time).await, Err(CallError::Status { .. })),
                "{after} {status} {time}"
            );
        }
        it.call(Ok(200)).await.expect_err("these were five");
    }

    #[tokio::test(start_paused = true)]
    async fn who_still_waited_for_a_place_has_sent_nothing() {
        let it = Called::new();
        let slow = || it.policies.call(false, std::future::pending);
        let busy = futures::future::join_all((0..Options::default().concurrency).map(|_| slow()));
        let hurried = async {
            tokio::task::yield_now().await;
            pending_for_a_caller(&it, Duration::from_millis(10)).await
        };
        let (_, late) = tokio::join!(busy, hurried);
        assert!(!late.may_have_happened(), "{late}");
    }

    #[tokio::test(start_paused = true)]
    async fn of_fifty_at_the_end_of_the_wait_one_is_let_through() {
        let it = Called::new();
        it.fail(5, Duration::ZERO).await;
        advance(Duration::from_secs(30)).await;
        let slow = || async {
            it.calls.set(it.calls.get() + 1);
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (status, headers) = (StatusCode::BAD_GATEWAY, HeaderMap::new());
            Err(Reply { status, headers, body: Bytes::new() }.into())
        };
        let answers = futures::future::join_all((0..50).map(|_| it.policies.call(false, slow))).await;
        let mut kinds = BTreeMap::new();
        for answer in answers {
            *kinds.entry(matches!(answer, Err(CallError::Refused(_)))).or_insert(0) += 1;
        }
        assert_eq!((it.calls.get(), kinds[&true], kinds[&false]), (6, 49, 1));
        advance(Duration::from_millis(29_999)).await;
        assert!(it.policies.is_open(), "the probe failed");
        advance(Duration::from_millis(1)).await;
        assert!(!it.policies.is_open());
    }
}
