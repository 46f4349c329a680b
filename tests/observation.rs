//! What policies report, when and how often; and the places that reports are sent to.
#![allow(missing_docs)]

use std::{
    future::{pending, ready},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use mainstay::{
    Bulkhead, CircuitBreaker, Error, Event, Fallback, Keyed, RateLimiter, Registry, Retry, Stack,
    backoff::Jitter, circuit_breaker::State,
};
use tokio::time::advance;

const MS: Duration = Duration::from_millis(1);

type Answer = Result<u32, &'static str>;

/// Everything that was told, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn observer(&self) -> impl Fn(&Event<'_>) + Send + Sync + 'static {
        let log = self.clone();
        move |event: &Event<'_>| {
            let line = match event {
                Event::Transition { name, from, to, counts, .. } => format!(
                    "{name}: {} to {}, {} of {} failed, {} slow, {} in a row",
                    from.as_str(),
                    to.as_str(),
                    counts.failures,
                    counts.calls,
                    counts.slow,
                    counts.consecutive_failures
                ),
                Event::Refused { refused, observed, .. } => {
                    format!("{refused}, started {}, observed {observed}", refused.was_started())
                }
                Event::Retried { name, attempt, delay, .. } => {
                    format!("{name}: retried {attempt} after {delay:?}")
                }
                Event::GaveUp { name, attempts, why, .. } => {
                    format!("{name}: gave up after {attempts}: {}", why.as_str())
                }
                Event::FellBack { name, instead_of, .. } => format!("{name}: fell back from {instead_of:?}"),
                other => format!("{other:?}"),
            };
            log.0.lock().unwrap().push(line);
        }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn breaker_config() -> mainstay::circuit_breaker::Config {
    CircuitBreaker::config()
        .count_window(10)
        .failure_rate(None)
        .consecutive_failures(2)
        .open_wait(100 * MS, 1.0, 100 * MS)
        .immediate_close()
        .seed(1)
}

/// The wait of an open breaker is jittered; what is said about it is not compared.
fn without_wait(lines: Vec<String>) -> Vec<String> {
    let cut = |line: String| match line.split_once(", retry after ") {
        Some((before, after)) => {
            let (_, rest) = after.split_once(", ").unwrap();
            format!("{before}, {rest}")
        }
        None => line,
    };
    lines.into_iter().map(cut).collect()
}

#[tokio::test(start_paused = true)]
async fn every_transition_once_with_its_counts() {
    let log = Log::default();
    let breaker = breaker_config().name("db").observe(log.observer()).build().unwrap();
    breaker.call(|| ready(Answer::Ok(1))).await.unwrap();
    breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    assert_eq!(log.take(), [""; 0], "healthy calls and a failure that changes nothing tell nothing");
    breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    assert_eq!(log.take(), ["db: closed to open, 2 of 3 failed, 0 slow, 2 in a row"]);
    breaker.call(|| ready(Answer::Ok(1))).await.unwrap_err();
    assert_eq!(without_wait(log.take()), ["db: circuit open, started false, observed false"]);
    advance(100 * MS).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(log.take(), [""; 0], "reading the state tells nothing");
    breaker.call(|| ready(Answer::Ok(1))).await.unwrap();
    let told = log.take();
    // What its window held when it changed: still the evidence that opened it.
    assert_eq!(
        told,
        [
            "db: open to half_open, 2 of 3 failed, 0 slow, 2 in a row",
            "db: half_open to closed, 2 of 3 failed, 0 slow, 2 in a row"
        ]
    );
    // Orders.
    breaker.force_open();
    breaker.force_open();
    breaker.force_closed();
    breaker.disable();
    breaker.normal();
    breaker.reset();
    let changes: Vec<_> = log.take().iter().map(|line| line.split_once(", ").unwrap().0.to_owned()).collect();
    assert_eq!(
        changes,
        [
            "db: closed to forced_open",
            "db: forced_open to forced_closed",
            "db: forced_closed to disabled",
            "db: disabled to closed"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn every_step_of_a_recovery() {
    let log = Log::default();
    let breaker = breaker_config().ramp(1).name("db").observe(log.observer()).build().unwrap();
    for _ in 0..2 {
        breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    }
    advance(100 * MS).await;
    while breaker.state() != State::Closed {
        let _maybe_refused = breaker.call(|| ready(Answer::Ok(1))).await;
    }
    let changes: Vec<_> = log
        .take()
        .iter()
        .filter(|line| line.contains(" to "))
        .map(|line| line.split_once(", ").unwrap().0.to_owned())
        .collect();
    assert_eq!(
        changes,
        [
            "db: closed to open",
            "db: open to half_open",
            "db: half_open to recovering",
            "db: recovering to closed"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_refusal_once() {
    let log = Log::default();
    let stack = |name: &'static str| mainstay::stack(name).observe(log.observer());

    let full = stack("full").bulkhead(1).build().unwrap();
    let mut holder = Box::pin(full.call(pending::<Answer>));
    assert!(futures::poll!(holder.as_mut()).is_pending());
    full.call(|| ready(Answer::Ok(1))).await.unwrap_err();
    assert_eq!(log.take(), ["full: bulkhead full, started false, observed false"]);
    drop(holder);

    let queue = stack("queue").bulkhead(Bulkhead::config(1).queue(1, 10 * MS)).build().unwrap();
    let mut holder = Box::pin(queue.call(pending::<Answer>));
    assert!(futures::poll!(holder.as_mut()).is_pending());
    queue.call(|| ready(Answer::Ok(1))).await.unwrap_err();
    assert_eq!(log.take(), ["queue: queue timeout, started false, observed false"]);
    drop(holder);

    let slow = stack("slow").deadline(100 * MS).timeout(10 * MS).build().unwrap();
    slow.call(pending::<Answer>).await.unwrap_err();
    assert_eq!(log.take(), ["slow: timed out, started true, observed false"]);

    let late = stack("late").deadline(10 * MS).timeout(100 * MS).build().unwrap();
    late.call(pending::<Answer>).await.unwrap_err();
    assert_eq!(log.take(), ["late: deadline exceeded, started true, observed false"]);

    let open = stack("open").circuit_breaker(breaker_config()).build().unwrap();
    for _ in 0..3 {
        open.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    }
    assert_eq!(
        without_wait(log.take()),
        [
            "open: closed to open, 2 of 2 failed, 0 slow, 2 in a row",
            "open: circuit open, started false, observed false"
        ]
    );

    // A call that is dropped tells nothing.
    let mut call = Box::pin(slow.call(pending::<Answer>));
    assert!(futures::poll!(call.as_mut()).is_pending());
    drop(call);
    assert_eq!(log.take(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_only_observes_reports_what_it_would_refuse() {
    let log = Log::default();
    let breaker = breaker_config().name("dry run").observe(log.observer()).build().unwrap();
    breaker.observe_only();
    for _ in 0..2 {
        breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    }
    assert_eq!(breaker.call(|| ready(Answer::Ok(1))).await, Ok(1));
    assert_eq!(
        without_wait(log.take()),
        [
            "dry run: closed to open, 2 of 2 failed, 0 slow, 2 in a row",
            "dry run: circuit open, started false, observed true"
        ]
    );
}

fn retry() -> mainstay::retry::Config {
    Retry::constant(10 * MS).jitter(Jitter::None).max_attempts(3).no_budget()
}

#[tokio::test(start_paused = true)]
async fn every_retry_and_every_reason_to_give_up() {
    let log = Log::default();
    let down = || ready(Answer::Err("down"));
    let told = async |retry: mainstay::retry::Config| {
        let retry = retry.name("r").observe(log.observer()).build().unwrap();
        retry.call(down).await.unwrap_err();
        log.take()
    };
    let first = "r: retried 1 after 10ms";
    let second = "r: retried 2 after 10ms";
    assert_eq!(told(retry()).await, [first, second, "r: gave up after 3: attempts"]);
    assert_eq!(
        told(Retry::sequence([10 * MS]).jitter(Jitter::None).max_attempts(9).no_budget()).await,
        [first, "r: gave up after 2: backoff"]
    );
    let one = mainstay::retry::Budget::config().min(1).max(1).build().unwrap();
    assert_eq!(told(retry().budget(one)).await, [first, "r: gave up after 2: budget"]);
    assert_eq!(told(retry().total_time(20 * MS)).await, [first, "r: gave up after 2: total_time"]);

    // The deadline, an outcome that is unknown.
    let stack = |retry: mainstay::retry::Config| {
        mainstay::stack("s")
            .deadline(20 * MS)
            .retry(retry.name("r").observe(log.observer()))
            .timeout(5 * MS)
            .build()
            .unwrap()
    };
    stack(retry()).call(down).await.unwrap_err();
    assert_eq!(log.take(), [first, "r: gave up after 2: deadline"]);
    stack(retry()).call(pending::<Answer>).await.unwrap_err();
    assert_eq!(log.take(), ["r: gave up after 1: not_idempotent"]);

    // Success tells nothing more.
    let mut attempts = 0;
    let flaky = retry().name("r").observe(log.observer()).build().unwrap();
    let answer = flaky.call(|| {
        attempts += 1;
        ready(if attempts == 1 { Err("down") } else { Ok(1) })
    });
    assert_eq!(answer.await, Ok(1));
    assert_eq!(log.take(), [first]);
}

#[cfg(feature = "tower")]
#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_copied_is_a_reason_to_give_up() {
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    let log = Log::default();
    let once = retry().clone_request(|_: &u32| None).name("r").observe(log.observer()).build().unwrap();
    let service = service_fn(|_: u32| ready(Err::<u32, tower::BoxError>("down".into())));
    ServiceBuilder::new().layer(once).service(service).oneshot(1).await.unwrap_err();
    assert_eq!(log.take(), ["r: gave up after 1: not_repeatable"]);
}

#[tokio::test(start_paused = true)]
async fn every_fallback_once_and_what_it_replaced() {
    let log = Log::default();
    let stack = mainstay::stack("answer")
        .observe(log.observer())
        .fallback(|_: Error<&'static str>| ready(Answer::Ok(9)))
        .timeout(10 * MS)
        .build()
        .unwrap();
    assert_eq!(stack.call(|| ready(Answer::Err("down"))).await, Ok(9));
    assert_eq!(log.take(), ["answer: fell back from None"]);
    assert_eq!(stack.call(pending::<Answer>).await, Ok(9));
    assert_eq!(
        log.take(),
        ["answer: timed out, started true, observed false", "answer: fell back from Some(TimedOut)"]
    );
    assert_eq!(stack.call(|| ready(Answer::Ok(1))).await, Ok(1));
    assert_eq!(log.take(), [""; 0]);
    let none = Fallback::<_, u32, &'static str>::value(1).limit(0).observe(log.observer());
    assert_eq!(none.call(|| ready(Answer::Err("down"))).await, Err(Error::Inner("down")));
    assert_eq!(log.take(), [""; 0], "over its limit it answers nothing");
}

#[tokio::test(start_paused = true)]
async fn names_and_listeners_come_from_the_stack_unless_given() {
    let (of_stack, of_policy) = (Log::default(), Log::default());
    let stack = mainstay::stack("stack")
        .observe(of_stack.observer())
        .circuit_breaker(breaker_config().name("own").observe(of_policy.observer()))
        .build()
        .unwrap();
    for _ in 0..2 {
        stack.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    }
    let line = "own: closed to open, 2 of 2 failed, 0 slow, 2 in a row";
    assert_eq!((of_stack.take(), of_policy.take()), (vec![line.to_owned()], vec![line.to_owned()]));
}

/// All policies of a stack that a listener calls back into.
struct Policies {
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
    retry: Retry,
    registry: Registry,
    seen: Mutex<u32>,
    inside: AtomicBool,
}

#[tokio::test(start_paused = true)]
async fn a_listener_may_call_back_into_every_policy() {
    let shared: Arc<OnceLock<Policies>> = Arc::default();
    let listener = {
        let shared = shared.clone();
        move |_: &Event<'_>| {
            let Some(policies) = shared.get() else { return };
            *policies.seen.lock().unwrap() += 1;
            // What the listener does is told to it as well.
            if policies.inside.swap(true, Relaxed) {
                return;
            }
            let _state = (policies.breaker.state(), policies.breaker.retry_at());
            drop(policies.breaker.try_acquire());
            drop(policies.bulkhead.try_acquire());
            policies.bulkhead.resize(1).unwrap();
            policies.breaker.reconfigure(&breaker_config()).unwrap();
            let _snapshots = (policies.retry.snapshot(), policies.registry.snapshots());
            policies.inside.store(false, Relaxed);
        }
    };
    let policies = Policies {
        breaker: breaker_config().observe(listener.clone()).build().unwrap(),
        bulkhead: Bulkhead::config(1).queue(1, 10 * MS).observe(listener.clone()).build().unwrap(),
        retry: Retry::constant(MS).max_attempts(2).observe(listener).build().unwrap(),
        registry: Registry::new(),
        seen: Mutex::new(0),
        inside: AtomicBool::new(false),
    };
    let stack = mainstay::stack("all")
        .circuit_breaker(policies.breaker.clone())
        .retry(policies.retry.clone())
        .bulkhead(policies.bulkhead.clone())
        .timeout(5 * MS)
        .build()
        .unwrap();
    policies.registry.add(&stack);
    let bulkhead = policies.bulkhead.clone();
    let _ = shared.set(policies);
    let held = bulkhead.try_acquire().unwrap();
    stack.call(|| ready(Answer::Ok(1))).await.unwrap_err();
    drop(held);
    // Retried, given up, opened, refused; a deadlock would hang the test.
    for _ in 0..3 {
        let _ = stack.call(|| ready(Answer::Err("down"))).await;
    }
    advance(100 * MS).await;
    let _ = stack.call(|| ready(Answer::Ok(1))).await;
    let policies = shared.get().unwrap();
    assert!(*policies.seen.lock().unwrap() >= 6, "{:?}", policies.seen);
    assert_eq!(bulkhead.in_use(), 0);
}

// --- the registry

#[tokio::test(start_paused = true)]
async fn the_registry_lists_policies_stacks_and_keyed_ones() {
    let registry = Registry::new();
    let stack: Stack<_> = mainstay::recommended("payments", 100 * MS, 10 * MS, 3).unwrap();
    let hosts = Keyed::<String, _>::new(5, CircuitBreaker::config().name("hosts")).unwrap();
    let pool = Bulkhead::config(2).name("pool").build().unwrap();
    registry.add(&stack);
    registry.add(&hosts);
    registry.clone().add(&pool);
    hosts.get("eu");
    let _held = pool.try_acquire().unwrap();
    let kind = |snapshot: &mainstay::registry::Snapshot| match snapshot {
        mainstay::registry::Snapshot::CircuitBreaker(_) => "breaker",
        mainstay::registry::Snapshot::Bulkhead(_) => "bulkhead",
        mainstay::registry::Snapshot::Retry(_) => "retry",
        _ => "?",
    };
    let listed: Vec<_> = registry
        .snapshots()
        .iter()
        .map(|snapshot| format!("{} {}", kind(snapshot), snapshot.name()))
        .collect();
    assert_eq!(
        listed,
        ["breaker payments", "retry payments", "bulkhead payments", "breaker hosts[eu]", "bulkhead pool"]
    );
    let Some(mainstay::registry::Snapshot::Bulkhead(pool)) = registry.snapshots().pop() else {
        panic!("no bulkhead")
    };
    assert_eq!((pool.limit, pool.in_use, pool.waiting, pool.queue_length), (2, 1, 0, 0));
}

#[cfg(feature = "serde")]
#[tokio::test(start_paused = true)]
async fn snapshots_are_json_with_stable_names() {
    use serde_json::json;

    let registry = Registry::new();
    let breaker = breaker_config().name("db").build().unwrap();
    let bulkhead = Bulkhead::config(3).queue(2, 10 * MS).name("pool").build().unwrap();
    let retry = Retry::constant(MS).name("again").build().unwrap();
    breaker.call(|| ready(Answer::Ok(1))).await.unwrap();
    breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    registry.add(&breaker);
    registry.add(&bulkhead);
    registry.add(&retry);
    let limiter = RateLimiter::config(2, 900_000 * MS).name("api").build().unwrap();
    limiter.call(|| ready(Answer::Ok(1))).await.unwrap();
    registry.add(&limiter);
    assert_eq!(
        serde_json::to_value(registry.snapshots()).unwrap(),
        json!([
            {
                "policy": "circuit_breaker", "name": "db", "mode": "normal", "state": "closed", "share": 1.0,
                "counts": { "calls": 2, "failures": 1, "slow": 0, "consecutive_failures": 1, "consecutive_failures_within": 0 },
                "failure_rate": 0.5, "slow_rate": 0.0, "remaining_wait": null, "openings": 0,
                "totals": {
                    "succeeded": 1, "failed": 1, "slow": 0, "neutral": 0, "late": 0, "refused": 0
                }
            },
            {
                "policy": "bulkhead", "name": "pool", "limit": 3, "in_use": 0, "waiting": 0, "queue_length": 2
            },
            {
                "policy": "retry", "name": "again", "failures": 0, "retries": 0,
                "gave_up": {
                    "attempts": 0, "backoff": 0, "budget": 0, "deadline": 0, "total_time": 0,
                    "not_idempotent": 0, "not_repeatable": 0
                },
                "budget": { "available": 1.0, "capacity": 1.0, "traffic": 0.0 }
            },
            {
                "policy": "rate_limiter", "name": "api", "algorithm": "sliding_window",
                "quota": { "limit": 2, "remaining": 1, "reset": "15m", "window": "15m" },
                "admitted": 1, "refused": 0, "given_back": 0
            }
        ])
    );
    let _ = breaker.call(|| ready(Answer::Err("down"))).await;
    let open = serde_json::to_value(breaker.snapshot()).unwrap();
    assert_eq!(open["state"], "open");
    assert!(
        open["remaining_wait"].as_str().is_some_and(|wait| wait.ends_with("us") || wait.contains("ms")),
        "{open}"
    );
    let back: mainstay::circuit_breaker::Snapshot = serde_json::from_value(open).unwrap();
    assert_eq!(back, breaker.snapshot(), "and can be read back, for a restart");
}

// --- tracing

#[cfg(feature = "tracing")]
mod tracing_records {
    use std::fmt::Write;

    use tracing::{
        Metadata, Subscriber,
        field::{Field, Visit},
        span,
    };

    use super::*;

    /// Writes down every record: level, target and fields.
    #[derive(Clone, Default)]
    struct Records(Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            write!(self.0, " {}={value:?}", field.name()).unwrap();
        }
    }

    impl Subscriber for Records {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            if event.metadata().target() != "mainstay" {
                return;
            }
            let mut line = Line(event.metadata().level().to_string());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[tokio::test(start_paused = true)]
    async fn every_event_is_one_record() {
        let records = Records::default();
        let _default = tracing::subscriber::set_default(records.clone());
        let stack = mainstay::stack("db")
            .observe(mainstay::observe::Tracing)
            .fallback(|_: Error<&'static str>| ready(Answer::Ok(9)))
            .circuit_breaker(breaker_config())
            .retry(retry().max_attempts(2))
            .bulkhead(1)
            .build()
            .unwrap();
        stack.call(|| ready(Answer::Ok(1))).await.unwrap();
        assert_eq!(*records.0.lock().unwrap(), [""; 0]);
        for _ in 0..3 {
            stack.call(|| ready(Answer::Err("down"))).await.unwrap();
        }
        advance(100 * MS).await;
        stack.call(|| ready(Answer::Ok(1))).await.unwrap();
        let retried = r#"DEBUG message=retrying policy="db" attempt=1 delay_ms=10"#;
        let gave_up = r#"WARN message=gave up retrying policy="db" attempts=2 why="attempts""#;
        let fell_back = r#"INFO message=fell back policy="db" instead_of="failed""#;
        let change = "message=circuit breaker changed its state policy=\"db\"";
        assert_eq!(
            *records.0.lock().unwrap(),
            [
                retried,
                gave_up,
                fell_back,
                retried,
                gave_up,
                &format!(r#"WARN {change} from="closed" to="open" calls=3 failures=2 slow=0"#),
                fell_back,
                r#"DEBUG message=refused policy="db" kind="circuit_open" observed=false"#,
                r#"INFO message=fell back policy="db" instead_of="circuit_open""#,
                &format!(r#"INFO {change} from="open" to="half_open" calls=3 failures=2 slow=0"#),
                &format!(r#"INFO {change} from="half_open" to="closed" calls=3 failures=2 slow=0"#),
            ]
        );
    }
}

// --- metrics

#[cfg(feature = "metrics")]
mod metrics_recorded {
    use std::collections::BTreeMap;

    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    };

    use super::*;

    /// Holds the value of every metric under its name and labels.
    #[derive(Clone, Default)]
    struct Values(Arc<Mutex<BTreeMap<String, f64>>>);

    impl Values {
        fn get(&self, metric: &str) -> Option<f64> {
            self.0.lock().unwrap().get(metric).copied()
        }

        fn change(&self, metric: &str, change: impl FnOnce(&mut f64)) {
            change(self.0.lock().unwrap().entry(metric.to_owned()).or_default());
        }
    }

    struct Metric(Values, String);

    impl Metric {
        fn new(values: &Values, key: &Key) -> Arc<Self> {
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            Arc::new(Metric(values.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
        }
    }

    impl CounterFn for Metric {
        fn increment(&self, value: u64) {
            self.0.change(&self.1, |sum| *sum += value as f64);
        }

        fn absolute(&self, _: u64) {
            panic!("counters only grow");
        }
    }

    impl GaugeFn for Metric {
        fn increment(&self, _: f64) {
            panic!("the state is set");
        }

        fn decrement(&self, _: f64) {
            panic!("the state is set");
        }

        fn set(&self, value: f64) {
            self.0.change(&self.1, |last| *last = value);
        }
    }

    impl Recorder for Values {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(Metric::new(self, key))
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(Metric::new(self, key))
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            panic!("there are none")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_state_gauge_is_right_after_each_transition() {
        let values = Values::default();
        let _local = metrics::set_default_local_recorder(&values);
        let breaker =
            breaker_config().ramp(1).name("db").observe(mainstay::observe::Metrics).build().unwrap();
        let right = |state: State| {
            assert_eq!(breaker.state(), state);
            let gauge = values.get("mainstay_circuit_state{policy=db}");
            assert_eq!(gauge, Some(f64::from(state.level())), "{state:?}");
        };
        for _ in 0..2 {
            breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
        }
        right(State::Open);
        advance(100 * MS).await;
        let probe = breaker.try_acquire().unwrap();
        right(State::HalfOpen);
        probe.success();
        right(State::Recovering);
        while breaker.state() == State::Recovering {
            let _maybe_refused = breaker.call(|| ready(Answer::Ok(1))).await;
        }
        right(State::Closed);
        breaker.force_open();
        right(State::ForcedOpen);
        breaker.normal();
        right(State::Closed);
        assert_eq!(values.get("mainstay_circuit_transitions_total{policy=db,to=open}"), Some(1.0));
        assert_eq!(values.get("mainstay_circuit_transitions_total{policy=db,to=recovering}"), Some(1.0));
    }

    #[tokio::test(start_paused = true)]
    async fn every_event_is_counted_once() {
        let values = Values::default();
        let _local = metrics::set_default_local_recorder(&values);
        let stack = mainstay::stack("db")
            .observe(mainstay::observe::Metrics)
            .fallback(|_: Error<&'static str>| ready(Answer::Ok(9)))
            .circuit_breaker(breaker_config())
            .retry(retry().max_attempts(2))
            .bulkhead(1)
            .build()
            .unwrap();
        stack.call(|| ready(Answer::Ok(1))).await.unwrap();
        assert!(values.0.lock().unwrap().is_empty(), "a healthy call counts nothing");
        for _ in 0..4 {
            stack.call(|| ready(Answer::Err("down"))).await.unwrap();
        }
        let all: Vec<_> =
            values.0.lock().unwrap().iter().map(|(metric, value)| format!("{metric} {value}")).collect();
        assert_eq!(
            all,
            [
                "mainstay_circuit_state{policy=db} 3",
                "mainstay_circuit_transitions_total{policy=db,to=open} 1",
                "mainstay_fell_back_total{policy=db,instead_of=circuit_open} 2",
                "mainstay_fell_back_total{policy=db,instead_of=failed} 2",
                "mainstay_gave_up_total{policy=db,why=attempts} 2",
                "mainstay_refused_total{policy=db,kind=circuit_open} 2",
                "mainstay_retries_total{policy=db} 2",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_only_observed_is_not_counted_as_refused() {
        let values = Values::default();
        let _local = metrics::set_default_local_recorder(&values);
        let breaker = breaker_config().name("db").observe(mainstay::observe::Metrics).build().unwrap();
        breaker.observe_only();
        for _ in 0..3 {
            breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
        }
        assert_eq!(values.get("mainstay_refused_total{policy=db,kind=circuit_open}"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_do_not_become_labels() {
        let values = Values::default();
        let _local = metrics::set_default_local_recorder(&values);
        let hosts =
            Keyed::<String, _>::new(100, breaker_config().name("hosts").observe(mainstay::observe::Metrics))
                .unwrap();
        for key in 0..50 {
            for _ in 0..3 {
                let _ = hosts.get(&key.to_string()).call(|| ready(Answer::Err("down"))).await;
            }
        }
        let all: Vec<_> =
            values.0.lock().unwrap().iter().map(|(metric, value)| format!("{metric} {value}")).collect();
        assert_eq!(
            all,
            [
                "mainstay_circuit_transitions_total{policy=hosts,to=open} 50",
                "mainstay_refused_total{policy=hosts,kind=circuit_open} 50",
            ]
        );
    }
}
