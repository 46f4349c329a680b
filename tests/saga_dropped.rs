//! Every future of the public API, dropped at every point where it waits: no saga hangs, no seat is kept, nothing is done twice.
#![cfg(feature = "saga")]

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use mainstay::{
    saga::{
        Handle, Opening, Orchestrator, Order, Outcome, Output, Saga, SagaId, Step,
        journal::Query,
        memory::{Fault, Memory},
    },
    testing::Ledger,
};

type Asked = Saga<u32, Output<u64>>;

/// A step that can be undone, a message, and a second step.
fn asked(ledger: &Ledger) -> Asked {
    let mut saga = Saga::define::<u32>("asked", 1);
    let step = |name: &'static str| {
        let (act, undo) = (ledger.clone(), ledger.clone());
        let action = move |step: Step<u32>| {
            let done = act.action(step.key(), || 1_u64);
            async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                done
            }
        };
        let undo = move |step: Step<u32>| {
            let _ = undo.undo(step.key());
            async { Ok(()) }
        };
        (name, action, undo)
    };
    let (name, act, undo) = step("first");
    let first = saga.step(name, (), move |step, ()| act(step)).compensate(move |step, (), _| undo(step));
    let word = saga.signal::<u32, _>("word", first, None);
    let (name, act, undo) = step("second");
    let second = saga.step(name, word, move |step, _| act(step)).compensate(move |step, _, _| undo(step));
    saga.build(second).unwrap()
}

fn open(store: &Memory, saga: &Asked) -> Opening {
    // With one seat: one that is kept is missed by the next saga.
    Orchestrator::open(store.clone()).register(saga).max_live(1).poll(Duration::from_millis(100))
}

/// Every operation of the store takes its time from now on, so that there is a point to wait at in each.
fn slow(store: &Memory) {
    for operation in 0..200 {
        store.fault_any(operation, Fault::Stall(Duration::from_millis(2)));
    }
}

/// Polls it so often, with time passing in between, and drops it; whether it came to its end.
async fn dropped_after<T>(polls: usize, future: impl Future<Output = T>) -> bool {
    let mut future = pin!(future);
    for _ in 0..polls {
        if poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await.is_ready() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    false
}

/// Drops what `call` makes after 0, 1, 2.. polls until it comes to its end. For that it has to be polled `least` times.
async fn drops(
    name: &str,
    least: usize,
    call: impl AsyncFn(Orchestrator, Asked, Handle<Output<u64>>, usize) -> bool,
) {
    for polls in 0.. {
        assert!(polls < 200, "{name} does not end");
        let (store, ledger) = (Memory::new(), Ledger::default());
        let saga = asked(&ledger);
        let orchestrator = open(&store, &saga).start().await.unwrap();
        let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
        slow(&store);
        let over = call(orchestrator.clone(), saga.clone(), handle, polls).await;
        store.clear_faults();
        // A start that nobody waits for has the only seat until it is written.
        tokio::time::sleep(Duration::from_millis(10)).await;
        // If it was shut down, another one goes on.
        let next = match orchestrator.status("s").await {
            Ok(_) if name != "shutdown" => orchestrator,
            _ => {
                drop(orchestrator);
                open(&store.connect(), &saga).start().await.unwrap()
            }
        };
        let context = format!("{name}, dropped after {polls} polls");
        for id in ["s", "t"] {
            let handle = match id {
                // The next one has the seat.
                "t" => next.start(&saga, "t", &1).await.unwrap_or_else(|error| panic!("{context}: {error}")),
                _ => next.handle(&saga, id).unwrap(),
            };
            let _over_or_left = next.signal(id, "word", "m", &7_u32).await.unwrap();
            let end = tokio::time::timeout(Duration::from_secs(120), handle.finished()).await;
            let end = end.unwrap_or_else(|_| panic!("{context}: {id} hangs")).unwrap();
            let net = match end {
                Outcome::Completed(_) => 1,
                Outcome::Compensated(_) => 0,
                other => panic!("{context}: {other:?}"),
            };
            let id = SagaId::new(id).unwrap();
            for step in ["first", "second"] {
                assert_eq!(ledger.net(&id, step), net, "{context}: {step} of {id}");
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(next.live(), 0, "{context}");
        if over {
            assert!(polls >= least, "{name} ends after {polls} polls: there was nothing to drop");
            println!("{name}: {polls} polls");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_may_stop_asking_at_any_point() {
    let reason = || "no longer wanted".to_owned();
    drops("start", 3, async |orchestrator, saga, _, polls| {
        // The one that is there, or a new one once there is room.
        dropped_after(polls, orchestrator.start(&saga, "s", &1)).await
    })
    .await;
    drops("start of a new one", 3, async |orchestrator, saga, handle, polls| {
        handle.cancel("room").await.unwrap();
        handle.finished().await.unwrap();
        dropped_after(polls, orchestrator.start(&saga, "t", &1)).await
    })
    .await;
    drops("run", 3, async |orchestrator, saga, handle, polls| {
        handle.cancel("room").await.unwrap();
        handle.finished().await.unwrap();
        orchestrator.start(&saga, "t", &1).await.unwrap();
        orchestrator.signal("t", "word", "m", &7_u32).await.unwrap();
        dropped_after(polls, orchestrator.run(&saga, "t", &1)).await
    })
    .await;
    drops("signal", 2, async |orchestrator, _, _, polls| {
        dropped_after(polls, orchestrator.signal("s", "word", "m", &7_u32)).await
    })
    .await;
    drops("cancel", 2, async |orchestrator, _, _, polls| {
        dropped_after(polls, orchestrator.cancel("s", "no longer wanted")).await
    })
    .await;
    drops("order", 2, async |_, _, handle, polls| {
        dropped_after(polls, handle.order("ann", Order::Compensate { reason: reason() })).await
    })
    .await;
    drops("load", 2, async |orchestrator, _, _, polls| dropped_after(polls, orchestrator.load("s")).await)
        .await;
    drops("list", 2, async |orchestrator, _, _, polls| {
        dropped_after(polls, orchestrator.list(Query::default())).await
    })
    .await;
    drops("blocked", 2, async |orchestrator, _, _, polls| dropped_after(polls, orchestrator.blocked()).await)
        .await;
    drops("forget", 2, async |orchestrator, _, _, polls| {
        // Of the sagas here none is that old.
        dropped_after(polls, orchestrator.forget(Duration::from_secs(3600), 10)).await
    })
    .await;
    // It is known here, without the store.
    drops("status", 1, async |orchestrator, _, _, polls| {
        dropped_after(polls, orchestrator.status("s")).await
    })
    .await;
    drops("recovered", 1, async |orchestrator, _, _, polls| {
        dropped_after(polls, orchestrator.recovered()).await
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_may_stop_waiting_at_any_point() {
    drops("settled", 3, async |orchestrator, _, handle, polls| {
        orchestrator.signal("s", "word", "m", &7_u32).await.unwrap();
        dropped_after(polls, handle.settled()).await
    })
    .await;
    drops("finished", 3, async |orchestrator, _, handle, polls| {
        orchestrator.signal("s", "word", "m", &7_u32).await.unwrap();
        dropped_after(polls, handle.finished()).await
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_and_an_opening_may_be_dropped_at_any_point() {
    drops("shutdown", 2, async |orchestrator, _, handle, polls| {
        drop(handle);
        dropped_after(polls, orchestrator.shutdown(Duration::from_secs(1))).await
    })
    .await;
    for polls in 0.. {
        let (store, ledger) = (Memory::new(), Ledger::default());
        let saga = asked(&ledger);
        slow(&store);
        let opened = dropped_after(polls, open(&store, &saga).start()).await;
        store.clear_faults();
        let next = open(&store.connect(), &saga).start().await.unwrap();
        let handle = next.start(&saga, "s", &1).await.unwrap();
        next.signal("s", "word", "m", &7_u32).await.unwrap();
        assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(1), "dropped after {polls} polls");
        if opened {
            assert!(polls >= 2, "there was nothing to drop");
            return;
        }
    }
}
