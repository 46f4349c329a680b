//! Work whose attempt is given up: nobody waits for it for ever.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use mainstay::{
    Retry,
    saga::{Cause, Orchestrator, Outcome, Record, Saga, sqlite},
};

use crate::{
    File, count, insert,
    transact::{Shop, kinds, stored},
};

/// Statements that would take many seconds: one that reads, and one that writes, which SQLite ends with the whole transaction.
const LONG: [&str; 2] = [
    "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 30000000)
     SELECT count(*) FROM n",
    "INSERT INTO booking WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 10000000)
     SELECT 'many' FROM n",
];

/// So many attempts, each of which may take 50 ms.
macro_rules! stack {
    ($attempts:expr) => {{
        let retry =
            Retry::constant(Duration::from_millis(1)).max_attempts($attempts).no_budget().idempotent();
        mainstay::stack("limited").retry(retry).timeout(Duration::from_millis(50)).build().unwrap()
    }};
}

/// The time of a step: work uses up none of that of the step behind it, and a step that has handed over no work has not happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_a_step_begins_when_the_work_before_it_is_done() {
    let (file, time) = (File::new(), Duration::from_millis(300));
    let mut saga = Saga::define::<u32>("timed", 1);
    let booked = saga.step("book", (), move |_, ()| async move {
        Ok(sqlite::in_transaction(move |tx| {
            insert(tx)?;
            std::thread::sleep(time);
            Ok(1_u32)
        }))
    });
    let booked = booked.without_compensation("a test");
    let hung = saga.step("hang", booked, |_, _| async {
        std::future::pending::<()>().await;
        Ok(sqlite::in_transaction(|tx| {
            insert(tx)?;
            Ok(2_u32)
        }))
    });
    hung.within(time).without_compensation("it is not done");
    let saga = saga.build(()).unwrap();
    let orders = Orchestrator::open(file.journal()).register(&saga).start().await.unwrap();
    let outcome = orders.run(&saga, "s", &1).await.unwrap();
    let late = Cause::Late { step: "hang".to_owned(), ms: 300 };
    assert_eq!(outcome, Outcome::Compensated(late.clone()));
    assert_eq!(count(&file.connection()), 1);
    let entries = stored(&file.journal, "s").await.entries;
    let [begun, booked, turned] = &entries[..] else { panic!("{entries:?}") };
    let clean = vec!["hang".to_owned()];
    assert_eq!(turned.record().unwrap(), Record::Aborted { cause: late, clean });
    // The clock of an owner follows the store's.
    let most = time * 9 / 10;
    assert!(booked.at.since(begun.at) >= most && turned.at.since(booked.at) >= most, "{entries:?}");
    orders.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_longer_than_its_attempt_may_is_interrupted() {
    for text in LONG {
        let file = File::new();
        let mut long = Saga::define::<u32>("long", 1);
        let booked = long.step("book", (), move |_, ()| async move {
            Ok(sqlite::in_transaction(move |tx| {
                insert(tx)?;
                tx.execute_batch(text)?;
                Ok(1_u32)
            }))
        });
        let booked = booked.through(stack!(1)).without_compensation("it is rolled back");
        let long = long.build(booked).unwrap();
        let mut short = Saga::define::<u32>("short", 1);
        let booked = short.step("book", (), |_, ()| async {
            Ok(sqlite::in_transaction(|tx| {
                insert(tx)?;
                Ok(1_u32)
            }))
        });
        let booked = booked.without_compensation("a test");
        let short = short.build(booked).unwrap();
        let opening = Orchestrator::open(file.journal()).register(&long).register(&short);
        let orders = opening.start().await.unwrap();
        let mut others = tokio::task::JoinSet::new();
        for n in 0..20 {
            let (orders, short) = (orders.clone(), short.clone());
            others.spawn(async move { orders.run(&short, &format!("s{n}"), &1).await.unwrap() });
        }
        let outcome = orders.run(&long, "long", &1).await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated(Cause::Rejected { .. })), "{text}: {outcome:?}");
        assert_eq!(kinds(&file.journal, "long").await, ["begun", "aborted"]);
        while let Some(outcome) = others.join_next().await {
            assert_eq!(outcome.unwrap(), Outcome::Completed(1));
        }
        assert_eq!(count(&file.connection()), 20, "{text}");
        orders.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_begun_when_its_attempt_is_given_up_is_not_begun() {
    let file = File::new();
    let (go, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(Some(gate)));
    let (began, mut beginning) = tokio::sync::mpsc::unbounded_channel();
    let mut slow = Saga::define::<u32>("slow", 1);
    let waits = slow.step("wait", (), move |_, ()| {
        let (gate, began) = (gate.lock().unwrap().take().unwrap(), began.clone());
        async move {
            Ok(sqlite::in_transaction(move |_| {
                began.send(())?;
                Ok(gate.recv()?)
            }))
        }
    });
    let waits = waits.without_compensation("a test");
    let slow = slow.build(waits).unwrap();

    let (handed, done) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (busy, is_busy) = tokio::sync::watch::channel(false);
    let (counted, noted) = (handed.clone(), done.clone());
    let mut quick = Saga::define::<u32>("quick", 1);
    let booked = quick.step("book", (), move |_, ()| {
        let (counted, noted, mut is_busy) = (counted.clone(), noted.clone(), is_busy.clone());
        async move {
            is_busy.wait_for(|busy| *busy).await?;
            let number = counted.fetch_add(1, SeqCst);
            Ok(sqlite::in_transaction(move |tx| {
                noted.lock().unwrap().push(number);
                Ok(insert(tx)?)
            }))
        }
    });
    let booked = booked.through(stack!(10_000)).without_compensation("a test");
    let quick = quick.build(booked).unwrap();

    let opening = Orchestrator::open(file.journal()).register(&slow).register(&quick);
    let orders = opening.start().await.unwrap();
    let quick_one = orders.start(&quick, "quick", &1).await.unwrap();
    let slow_one = orders.start(&slow, "slow", &1).await.unwrap();
    beginning.recv().await.unwrap();
    busy.send(true).unwrap();
    // The second attempt has begun, so that the first was given up, and its work with it.
    while handed.load(SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    assert_eq!(slow_one.finished().await.unwrap(), Outcome::Completed(()));
    assert_eq!(quick_one.finished().await.unwrap(), Outcome::Completed(()));
    let done = done.lock().unwrap().clone();
    assert!(done.len() == 1 && done[0] >= 1, "of these attempts the work was done: {done:?}");
    assert_eq!((count(&file.connection()), stored(&file.journal, "quick").await.head.len), (1, 2));
    orders.shutdown(Duration::from_secs(5)).await;
}
