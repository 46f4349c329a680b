//! What an orchestrator shows: gauges of what is open in the store, and spans.
#![cfg(all(feature = "saga", feature = "sqlite"))]
#![allow(missing_docs)]

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use mainstay::{
    Event, Retry,
    saga::{Census, Failure, OpenSagas, Orchestrator, Order, Saga, Unknown, memory::Memory},
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What it does is said by its input.
fn saga(name: &str) -> Saga<String> {
    let once = |name: &'static str| {
        let retry = Retry::constant(seconds(1)).max_attempts(1);
        mainstay::stack(name).retry(retry).build().unwrap()
    };
    let mut saga = Saga::define::<String>(name, 1);
    let first = saga
        .step("first", (), |step, ()| async move {
            match step.input().as_str() {
                "run" => pending().await,
                "park" => Err(Failure::unknown("no answer")),
                "unwind" => Err(Failure::rejected("no")),
                _ => Ok(()),
            }
        })
        .through(once("first"))
        .on_unknown(Unknown::Park)
        .without_compensation("nothing is done");
    let before = saga.step("before", (), |_, ()| async { Ok(()) }).compensate(
        |step: mainstay::saga::Step<String>, (), _| async move {
            if step.input() == "unwind" { pending().await } else { Ok(()) }
        },
    );
    let slept = saga.sleep("sleep", (first, before), seconds(10_000));
    saga.retriable("last", slept, |step, ()| async move {
        if step.input() == "stick" { Err(Failure::rejected("never")) } else { Ok(()) }
    })
    .through(once("last"))
    .add();
    saga.build(()).unwrap()
}

/// How many are running, waiting, being undone, stuck, parked.
fn counts(open: &OpenSagas) -> [u64; 5] {
    open.phases().map(|(_, sagas)| sagas)
}

#[tokio::test(start_paused = true)]
async fn the_census_counts_the_whole_store_and_goes_back_to_zero() {
    let (store, told) = (Memory::new(), Arc::new(Mutex::new(Vec::<Census>::new())));
    let (orders, idle, other) = (saga("order"), saga("idle"), saga("other"));
    let seen = told.clone();
    let observer = move |event: &Event<'_>| {
        if let Event::SagaCensus { census, .. } = event {
            seen.lock().unwrap().push((*census).clone());
        }
    };
    let first = Orchestrator::open(store.clone()).register(&orders).register(&idle).observe(observer);
    let first = first.start().await.unwrap();
    let second =
        Orchestrator::open(store.connect()).register(&orders).register(&other).start().await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    let none = first.census().unwrap();
    assert_eq!(
        none.definitions
            .iter()
            .map(|open| (&*open.definition, counts(open), open.oldest))
            .collect::<Vec<_>>(),
        [("idle", [0; 5], None), ("order", [0; 5], None)]
    );

    first.start(&orders, "stick", &"stick".to_owned()).await.unwrap();
    tokio::time::sleep(seconds(10_100)).await;
    for (at, what) in ["run", "wait", "wait", "unwind", "park"].into_iter().enumerate() {
        let who = if at % 2 == 0 { &first } else { &second };
        who.start(&orders, &format!("{what} {at}"), &what.to_owned()).await.unwrap();
    }
    second.start(&other, "foreign", &"wait".to_owned()).await.unwrap();
    tokio::time::sleep(seconds(70)).await;
    let census = first.census().unwrap();
    let [idle_now, orders_now] = &census.definitions[..] else { panic!("{census:?}") };
    assert_eq!((counts(idle_now), counts(orders_now)), ([0; 5], [1, 2, 1, 1, 1]));
    assert_eq!(census.unregistered, 1, "the one that only the other knows");
    let age = census.age(orders_now).as_secs();
    assert!((10_100..10_180).contains(&age), "{age}");
    // Both count the same store.
    assert_eq!(counts(&second.census().unwrap().definitions[0]), [1, 2, 1, 1, 1]);

    for saga in ["run 0", "wait 1", "wait 2", "unwind 3", "park 4", "stick"] {
        let abandon = Order::Abandon { reason: "the test is over".to_owned() };
        first.order(saga, "test", abandon).await.unwrap();
    }
    tokio::time::sleep(seconds(70)).await;
    assert_eq!(counts(&first.census().unwrap().definitions[1]), [0; 5]);
    assert_eq!(first.census().unwrap().definitions[1].oldest, None);
    let told = told.lock().unwrap();
    assert!(told.len() > 3 && told.last() == first.census().as_ref(), "{told:?}");
    let json = serde_json::to_value(told.last().unwrap()).unwrap();
    assert_eq!(json["definitions"][1]["definition"], "order");
}

#[cfg(feature = "metrics")]
mod gauges {
    use std::collections::BTreeMap;

    use mainstay::saga::StartOptions;
    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    };

    use super::*;

    /// The last value of every gauge and counter under its name and labels.
    #[derive(Clone, Default)]
    struct Gauges(Arc<Mutex<BTreeMap<String, f64>>>);

    struct One(Gauges, String);

    impl GaugeFn for One {
        fn increment(&self, _: f64) {
            panic!("a gauge of sagas is set");
        }

        fn decrement(&self, _: f64) {
            panic!("a gauge of sagas is set");
        }

        fn set(&self, value: f64) {
            self.0.0.lock().unwrap().insert(self.1.clone(), value);
        }
    }

    impl CounterFn for One {
        fn increment(&self, by: u64) {
            *self.0.0.lock().unwrap().entry(self.1.clone()).or_default() += by as f64;
        }

        fn absolute(&self, _: u64) {
            panic!("a counter of sagas grows");
        }
    }

    impl Gauges {
        fn one(&self, key: &Key) -> Arc<One> {
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            Arc::new(One(self.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
        }
    }

    impl Recorder for Gauges {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.one(key))
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.one(key))
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_set_from_the_census_and_go_back_to_zero() {
        let gauges = Gauges::default();
        let _local = metrics::set_default_local_recorder(&gauges);
        let orders = saga("order");
        let opening = Orchestrator::open(Memory::new()).register(&orders).observe(mainstay::observe::Metrics);
        let orchestrator = opening.start().await.unwrap();
        let now = |name: &str| gauges.0.lock().unwrap().get(name).copied();
        let parked = "mainstay_saga_open{definition=order,phase=parked}";
        tokio::time::sleep(seconds(1)).await;
        assert_eq!(now(parked), Some(0.0), "it has a value before there is a saga");
        orchestrator.start(&orders, "s", &"park".to_owned()).await.unwrap();
        tokio::time::sleep(seconds(70)).await;
        assert_eq!(now(parked), Some(1.0));
        assert!(now("mainstay_saga_oldest_seconds{definition=order}").is_some_and(|age| age > 1.0));
        assert_eq!(now("mainstay_saga_open_blocked{definition=order}"), Some(0.0));
        assert_eq!(now("mainstay_saga_unregistered{}"), Some(0.0));
        orchestrator.cancel("s", "the test is over").await.unwrap();
        tokio::time::sleep(seconds(70)).await;
        assert_eq!(now(parked), Some(0.0));
        assert_eq!(now("mainstay_saga_oldest_seconds{definition=order}"), Some(0.0));
    }

    /// What a saga does is said by its input: `busy` is refused again and again before a pivot, `late` goes on behind it.
    fn deciding() -> Saga<String> {
        let mut saga = Saga::define::<String>("deciding", 1);
        let decided = saga.pivot("decide", (), |step: mainstay::saga::Step<String>, ()| async move {
            if step.input() == "busy" { Err(Failure::unstarted("it answered 429")) } else { Ok(()) }
        });
        let decided = decided.add();
        saga.sleep("sleep", decided, seconds(10_000));
        saga.build(()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_late_or_is_refused_is_counted_and_how_many_there_is_place_for_is_shown() {
        let gauges = Gauges::default();
        let _local = metrics::set_default_local_recorder(&gauges);
        let (store, saga) = (Memory::new(), deciding());
        let opening = Orchestrator::open(store.clone()).register(&saga).max_live(16);
        let orchestrator = opening.observe(mainstay::observe::Metrics).start().await.unwrap();
        orchestrator.recovered().await;
        let now = |name: &str| gauges.0.lock().unwrap().get(name).copied();
        let live = || {
            let of = |name| now(name).unwrap();
            (of("mainstay_saga_live{}"), of("mainstay_saga_max_live{}"))
        };
        assert_eq!((live(), now("mainstay_saga_claims_held_seconds{}")), ((0.0, 16.0), Some(0.0)));

        let deadline = StartOptions::default().deadline(seconds(60));
        orchestrator.start_with(&saga, "late", &"late".to_owned(), deadline).await.unwrap();
        tokio::time::sleep(seconds(70)).await;
        assert_eq!(now("mainstay_saga_overdue_total{definition=deciding}"), Some(1.0));

        orchestrator.cancel("late", "too late").await.unwrap();
        orchestrator.order("late", "ada", Order::Retry { step: Some("decide".to_owned()) }).await.unwrap();
        tokio::time::sleep(seconds(1)).await;
        assert_eq!(now("mainstay_saga_orders_refused_total{definition=deciding}"), Some(1.0));

        for number in 0..3 {
            orchestrator.start(&saga, &format!("busy {number}"), &"busy".to_owned()).await.unwrap();
        }
        tokio::time::sleep(seconds(20)).await;
        let waits = now("mainstay_saga_waits_total{definition=deciding}").unwrap();
        assert!((3.0 * 20.0..3.0 * 50.0).contains(&waits), "{waits}");
        assert_eq!(live(), (3.0, 16.0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_there_is_no_place_for_is_shown() {
        let gauges = Gauges::default();
        let _local = metrics::set_default_local_recorder(&gauges);
        let orders = saga("order");
        let opening = Orchestrator::open(Memory::new()).register(&orders).max_live(1);
        let orchestrator = opening.observe(mainstay::observe::Metrics).start().await.unwrap();
        let now = |name: &str| gauges.0.lock().unwrap().get(name).copied();
        orchestrator.start(&orders, "runs", &"run".to_owned()).await.unwrap();
        let refused = "mainstay_refused_total{policy=saga,kind=bulkhead_full}";
        // Not refused: it is there.
        orchestrator.start(&orders, "runs", &"run".to_owned()).await.unwrap();
        assert_eq!(now(refused), None);
        orchestrator.start(&orders, "another", &"run".to_owned()).await.unwrap_err();
        assert_eq!(now(refused), Some(1.0));
        tokio::time::sleep(seconds(30)).await;
        let held = now("mainstay_saga_claims_held_seconds{}").unwrap();
        assert!((15.0..31.0).contains(&held), "{held}");
        orchestrator.order("runs", "ada", Order::Abandon { reason: "enough".to_owned() }).await.unwrap();
        tokio::time::sleep(seconds(15)).await;
        assert_eq!(now("mainstay_saga_claims_held_seconds{}"), Some(0.0));
    }
}

#[cfg(feature = "tracing")]
mod spans {
    use tracing::{
        Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id},
    };
    use tracing_subscriber::{Layer, layer::Context, prelude::*, registry::LookupSpan};

    use super::*;

    /// Writes down every span of this crate with its fields and those around it.
    #[derive(Clone, Default)]
    struct Spans(Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.push_str(&format!(" {}={value:?}", field.name()));
        }
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
        fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
            if attributes.metadata().target() != "mainstay" {
                return;
            }
            let within = context.span_scope(id).unwrap().skip(1).map(|span| span.name()).collect::<Vec<_>>();
            let mut line = Line(format!("{within:?} {}", attributes.metadata().name()));
            attributes.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_step_has_one_within_that_of_its_saga() {
        let spans = Spans::default();
        // While there is one subscriber alone, a span that another test meets first, on a thread without any, is taken for one that nobody
        // wants.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
        let mut trip = Saga::define::<u32>("trip", 1);
        let flight = trip.step("flight", (), |_, ()| async { Ok(1) }).compensate(|_, (), _| async { Ok(()) });
        trip.step("hotel", flight, |_, _| async { Err::<(), _>(Failure::rejected("full")) })
            .without_compensation("it is rejected");
        let trip = trip.build(()).unwrap();
        let orchestrator = Orchestrator::open(Memory::new()).register(&trip).start().await.unwrap();
        orchestrator.run(&trip, "t-1", &1).await.unwrap();
        assert_eq!(
            *spans.0.lock().unwrap(),
            [
                r#"[] saga definition="trip" saga="t-1" epoch=1"#,
                r#"["saga"] saga.step definition="trip" saga="t-1" step="flight" direction="do""#,
                r#"["saga"] saga.step definition="trip" saga="t-1" step="hotel" direction="do""#,
                r#"["saga"] saga.step definition="trip" saga="t-1" step="flight" direction="undo""#,
            ]
        );
    }
}
