//! The barrier on `rusqlite`.
#![cfg(feature = "sqlite")]

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use mainstay::saga::{
    Direction, Failure, Key, Orchestrator, Outcome, Payload, Saga, SagaId, Step, Verified,
    barrier::{
        self, Action, Compensation, Error, Lookup, Retention,
        sqlite::{Pruned, Pruning},
    },
    memory::Memory,
};
use proptest::test_runner::{Config, TestRunner};
use rusqlite::{
    Connection,
    TransactionBehavior::*,
    hooks::{AuthAction, AuthContext, Authorization},
    params,
};

#[path = "support/barrier.rs"]
mod support;
use support::{
    Answer, DO, Delivery, Effects, Fate, Fault, Participant, See, Twin, UNDO, block_on, key, saga,
};

/// A directory that goes when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mainstay-barrier-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn open(&self) -> Sqlite {
        let connection = Connection::open(self.0.join("database")).unwrap();
        connection.busy_timeout(Duration::from_secs(30)).unwrap();
        connection.execute_batch("pragma journal_mode = wal; pragma synchronous = off").unwrap();
        Sqlite::on(connection)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Sqlite(Connection);

impl Sqlite {
    fn on(connection: Connection) -> Self {
        barrier::sqlite::install(&connection).unwrap();
        connection
            .execute_batch("create table if not exists ledger (saga text not null, change integer not null)")
            .unwrap();
        Sqlite(connection)
    }

    fn in_memory() -> Self {
        Self::on(Connection::open_in_memory().unwrap())
    }

    fn rows(&self) -> i64 {
        self.0.query_row("select count(*) from mainstay_barrier", [], |row| row.get(0)).unwrap()
    }
}

impl Participant for Sqlite {
    async fn deliver(&mut self, saga: &SagaId, number: u32, delivery: Delivery) -> Answer {
        let tx = self.0.transaction_with_behavior(Immediate).unwrap();
        let fails = matches!(delivery.fate, Fate::Fail | Fate::FailAndCommit);
        let note = |tx: &Connection, change: i64| {
            tx.execute("insert into ledger values (?1, ?2)", params![saga.as_str(), change]).unwrap();
            if fails { Err("failed") } else { Ok(()) }
        };
        let key = key(saga, delivery.phase);
        let answer = if delivery.phase == Direction::Do {
            let action = barrier::sqlite::action_or_rejection(&tx, &key, |tx| {
                if delivery.fate == Fate::Reject {
                    return Ok(Err(number));
                }
                note(tx, 1).map(|()| Ok(number))
            });
            action.map(Answer::Action)
        } else {
            barrier::sqlite::compensation(&tx, &key, |tx, _: u32| note(tx, -1)).map(Answer::Compensation)
        };
        let answer = answer.unwrap_or_else(|error| match error {
            Error::Inner("failed") => Answer::Failed,
            other => panic!("{other:?}"),
        });
        match delivery.fate {
            Fate::Commit | Fate::Reject | Fate::FailAndCommit => tx.commit().unwrap(),
            Fate::Crash | Fate::Fail => drop(tx),
        }
        answer
    }

    async fn effects(&mut self, saga: &SagaId) -> Effects {
        let count = "select count(*) filter (where change = 1), count(*) filter (where change = -1)
                     from ledger where saga = ?1";
        self.0
            .query_row(count, [saga.as_str()], |row| Ok(Effects { done: row.get(0)?, undone: row.get(1)? }))
            .unwrap()
    }
}

#[test]
fn scenarios() {
    block_on(support::scenarios(&mut Sqlite::in_memory()));
    block_on(support::scenarios(&mut Twin::new(None)));
}

#[test]
fn any_deliveries_on_one_key_have_one_effect_or_none() {
    let mut participant = Sqlite::in_memory();
    let mut case = 0;
    let config = Config { cases: 2_000, failure_persistence: None, ..Config::default() };
    let participant = std::cell::RefCell::new((&mut participant, &mut case));
    let outcome = TestRunner::new(config).run(&support::deliveries(), |deliveries| {
        let (participant, case) = &mut *participant.borrow_mut();
        **case += 1;
        support::property(*participant, &saga(format!("case-{case}")), &deliveries, See::EffectsAndAnswers)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn the_property_sees_every_planted_fault() {
    let run = |fault, see| {
        let config =
            Config { cases: 2_000, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(&support::deliveries(), |deliveries| {
            support::property(&mut Twin::new(fault), &saga("twin"), &deliveries, see)
        })
    };
    run(None, See::EffectsAndAnswers).expect("the twin without a fault is as it should be");
    for (fault, see) in [
        (Fault::LateActionRuns, See::Effects),
        (Fault::OwnRowOnly, See::Effects),
        (Fault::CompensationTwice, See::Effects),
        (Fault::EmptyRollbackRuns, See::Effects),
        (Fault::AttemptInKey, See::Effects),
        (Fault::ClaimOutlivesFailure, See::EffectsAndAnswers),
        (Fault::ClaimOutlivesCrash, See::EffectsAndAnswers),
    ] {
        assert!(run(Some(fault), see).is_err(), "nothing notices {fault:?}");
    }
}

#[test]
fn of_simultaneous_duplicates_one_has_the_effect() {
    let directory = Directory::new("duplicates");
    let mut participants: Vec<_> = (0..4).map(|_| directory.open()).collect();
    support::race_of_duplicates(&mut participants, 300);
}

#[test]
fn of_an_action_and_its_compensation_no_effect_is_left() {
    let directory = Directory::new("directions");
    let mut participants: Vec<_> = (0..4).map(|_| directory.open()).collect();
    support::race_of_directions(&mut participants, 300);
}

#[test]
fn a_panic_in_the_closure_leaves_nothing_to_commit() {
    let mut participant = Sqlite::in_memory();
    let saga = saga("panic");
    let tx = participant.0.transaction_with_behavior(Immediate).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        barrier::sqlite::action(&tx, &key(&saga, Direction::Do), |tx| -> Result<u32, rusqlite::Error> {
            tx.execute("insert into ledger values ('panic', 1)", [])?;
            panic!("in the business");
        })
    }));
    assert!(panicked.is_err());
    tx.commit().unwrap();
    assert_eq!((participant.rows(), block_on(participant.effects(&saga))), (0, Effects::default()));
    assert_eq!(block_on(participant.deliver(&saga, 7, DO)), Answer::Action(Action::Done(Ok(7))));
}

#[test]
fn what_the_caller_wrote_itself_outlives_an_err_and_what_the_closure_wrote_does_not() {
    let mut participant = Sqlite::in_memory();
    let tx = participant.0.transaction_with_behavior(Immediate).unwrap();
    tx.execute("insert into ledger values ('caller', 1)", []).unwrap();
    let failed = barrier::sqlite::action(&tx, &key(&saga("s"), Direction::Do), |tx| -> Result<(), _> {
        tx.execute("insert into ledger values ('closure', 1)", []).unwrap();
        Err("no")
    });
    assert!(matches!(failed, Err(Error::Inner("no"))));
    tx.commit().unwrap();
    let left: String =
        participant.0.query_row("select group_concat(saga) from ledger", [], |row| row.get(0)).unwrap();
    assert_eq!((left.as_str(), participant.rows()), ("caller", 0));
}

#[test]
fn a_transaction_without_the_write_lock_is_refused() {
    let mut participant = Sqlite::in_memory();
    let saga = saga("s");
    let tx = participant.0.transaction_with_behavior(Deferred).unwrap();
    let action = barrier::sqlite::action(&tx, &key(&saga, Direction::Do), |_| Ok::<_, rusqlite::Error>(1));
    assert!(matches!(action, Err(Error::NotImmediate)), "{action:?}");
    let undo = barrier::sqlite::compensation(&tx, &key(&saga, Direction::Undo), |_, _: u32| {
        Ok::<_, rusqlite::Error>(())
    });
    assert!(matches!(undo, Err(Error::NotImmediate)), "{undo:?}");
}

#[test]
fn a_key_of_the_other_direction_is_refused() {
    let mut participant = Sqlite::in_memory();
    let saga = saga("s");
    let tx = participant.0.transaction_with_behavior(Immediate).unwrap();
    let action = barrier::sqlite::action(&tx, &key(&saga, Direction::Undo), |_| Ok::<_, rusqlite::Error>(1));
    assert!(matches!(action, Err(Error::WrongDirection(_))), "{action:?}");
    let undo = barrier::sqlite::compensation(&tx, &key(&saga, Direction::Do), |_, _: u32| {
        Ok::<_, rusqlite::Error>(())
    });
    let error = undo.unwrap_err().to_string();
    assert_eq!(error, "charge.do@s is not the key for this direction");
}

#[test]
fn a_result_of_another_type_is_an_error_and_changes_nothing() {
    let mut participant = Sqlite::in_memory();
    let saga = saga("s");
    let _ = block_on(participant.deliver(&saga, 0, DO));
    let tx = participant.0.transaction_with_behavior(Immediate).unwrap();
    let action = barrier::sqlite::action(&tx, &key(&saga, Direction::Do), |_| {
        Ok::<_, rusqlite::Error>("text".to_owned())
    });
    assert!(matches!(action, Err(Error::Result(_))), "{action:?}");
    let undo = barrier::sqlite::compensation(&tx, &key(&saga, Direction::Undo), |_, _: String| {
        Ok::<_, rusqlite::Error>(())
    });
    assert!(matches!(undo, Err(Error::Result(_))), "{undo:?}");
    tx.commit().unwrap();
    assert_eq!(participant.rows(), 1, "the compensation that could not be run is not taken for done");
}

#[test]
fn an_action_without_a_result_is_repeated_alike() {
    let mut participant = Sqlite::in_memory();
    for expected in [Action::Done(()), Action::Repeated(())] {
        let tx = participant.0.transaction_with_behavior(Immediate).unwrap();
        let action =
            barrier::sqlite::action(&tx, &key(&saga("s"), Direction::Do), |_| Ok::<_, rusqlite::Error>(()));
        assert_eq!(action.unwrap(), expected);
        tx.commit().unwrap();
    }
}

/// Its row is taken when it ends.
#[test]
fn an_action_within_itself_is_an_error_and_has_no_effect() {
    let mut participant = Sqlite::in_memory();
    let (saga, key) = (saga("s"), key(&saga("s"), Direction::Do));
    let tx = participant.0.transaction_with_behavior(Immediate).unwrap();
    let note = |tx: &Connection| tx.execute("insert into ledger values ('s', 1)", []).map(drop);
    let outer = barrier::sqlite::action(&tx, &key, |tx| {
        note(tx)?;
        let inner = barrier::sqlite::action(tx, &key, |tx| note(tx));
        assert!(matches!(inner, Ok(Action::Done(()))), "{inner:?}");
        Ok::<_, rusqlite::Error>(())
    });
    assert!(matches!(outer, Err(Error::Database(_))), "{outer:?}");
    tx.commit().unwrap();
    assert_eq!((participant.rows(), block_on(participant.effects(&saga))), (0, Effects::default()));
}

#[test]
fn lookup_says_what_a_verifying_step_asks() {
    let mut participant = Sqlite::in_memory();
    let mut told = |name: &str, deliveries: &[Delivery]| {
        let saga = saga(name);
        for (number, delivery) in deliveries.iter().enumerate() {
            let _ = block_on(participant.deliver(&saga, number as u32, *delivery));
        }
        barrier::sqlite::lookup::<u32>(&participant.0, &key(&saga, Direction::Do)).unwrap()
    };
    assert_eq!(told("nothing", &[]), Lookup::NotApplied);
    assert_eq!(told("crash", &[Delivery { fate: Fate::Crash, ..DO }]), Lookup::NotApplied);
    assert_eq!(told("done", &[DO, DO]), Lookup::Applied(0));
    assert_eq!(told("undone", &[DO, UNDO]), Lookup::Compensated);
    assert_eq!(told("empty", &[UNDO]), Lookup::Compensated);
    let rejected = told("rejected", &[Delivery { fate: Fate::Reject, ..DO }, UNDO]);
    assert!(matches!(rejected, Lookup::Rejected(ref answer) if answer.as_str() == "0"), "{rejected:?}");
    // What a step makes of it that verifies.
    assert_eq!(told("nothing", &[]).into_verified(), Verified::Resend);
    assert_eq!(told("done again", &[DO]).into_verified(), Verified::Applied(0));
    assert!(matches!(told("undone again", &[DO, UNDO]).into_verified(), Verified::Rejected(_)));
    assert!(matches!(told("empty again", &[UNDO]).into_verified(), Verified::Rejected(_)));
    assert_eq!(rejected.into_verified(), Verified::Rejected("0".to_owned()));
    let text = Lookup::<u32>::Rejected(Payload::encode("over the limit").unwrap());
    assert_eq!(text.into_verified(), Verified::Rejected("over the limit".to_owned()));
}

/// The journal has forgotten the first order, the barrier has not.
#[tokio::test(start_paused = true)]
async fn an_order_under_the_id_of_one_that_was_undone_and_forgotten_is_not_completed_for_nothing() {
    let payments = Arc::new(Mutex::new(Sqlite::in_memory()));
    let (charges, refunds, out_of_stock) = (payments.clone(), payments.clone(), AtomicBool::new(true));
    let mut order = Saga::define::<()>("order", 1);
    let charged = order
        .step("charge", (), move |step: Step<()>, ()| {
            let saga = step.key().saga().clone();
            let answer = now(charges.lock().unwrap().deliver(&saga, 1, DO));
            let Answer::Action(action) = answer else { panic!("{answer:?}") };
            let answer = action.into_result().and_then(|answer| answer.map_err(Failure::rejected));
            async move { answer }
        })
        .compensate(move |step, (), _| {
            let saga = step.key().saga().clone();
            let _ = now(refunds.lock().unwrap().deliver(&saga, 2, UNDO));
            async { Ok(()) }
        });
    let sent = order
        .step("send", charged, move |_, _| {
            let sent =
                if out_of_stock.swap(false, Relaxed) { Err(Failure::rejected("empty")) } else { Ok(()) };
            async move { sent }
        })
        .without_compensation("nothing is sent back");
    let order = order.build(sent).unwrap();
    let orders = Orchestrator::open(Memory::new()).register(&order).start().await.unwrap();
    for _ in 0..2 {
        let outcome = orders.run(&order, "order-17", &()).await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(orders.forget(Duration::ZERO, 10).await.unwrap(), 1);
    }
    let effects = now(payments.lock().unwrap().effects(&saga("order-17")));
    assert_eq!(effects, Effects { done: 1, undone: 1 });
    // Under an id of its own it is.
    assert!(matches!(orders.run(&order, "order-18", &()).await.unwrap(), Outcome::Completed(())));
    orders.shutdown(Duration::from_secs(1)).await;
}

/// What waits for nothing, within a runtime.
fn now<T>(future: impl Future<Output = T>) -> T {
    futures::FutureExt::now_or_never(future).expect("it waits for nothing")
}

#[test]
fn pruning_spares_every_row_of_a_saga_that_was_heard_of_lately() {
    let mut participant = Sqlite::in_memory();
    for name in ["old", "older", "new", "half"] {
        let _ = block_on(participant.deliver(&saga(name), 0, DO));
        let _ = block_on(participant.deliver(&saga(name), 0, UNDO));
    }
    let day = 24 * 60 * 60 * 1000_i64;
    participant
        .0
        .execute("update mainstay_barrier set at = at - 91 * ?1 where saga in ('old', 'older')", [day])
        .unwrap();
    participant
        .0
        .execute("update mainstay_barrier set at = at - 91 * ?1 where saga = 'half' and phase = 'do'", [day])
        .unwrap();
    let mut pruned = Vec::new();
    while pruned.last() != Some(&0) {
        pruned.push(barrier::sqlite::prune(&participant.0, Retention::default(), 3).unwrap());
    }
    assert_eq!(pruned, [3, 1, 0]);
    assert_eq!(participant.rows(), 4);
    // Were it forgotten, it would be done.
    assert_eq!(block_on(participant.deliver(&saga("half"), 9, DO)), Answer::Action(Action::Refused));
    let forever = Retention { longest_saga: Duration::MAX, longest_delivery: Duration::MAX };
    assert_eq!(barrier::sqlite::prune(&participant.0, forever, usize::MAX).unwrap(), 0);
}

/// Lets every arrival be so many days ago.
fn age(connection: &Connection, days: i64) {
    let ago = "update mainstay_barrier set at = at - ?1 * 24 * 60 * 60 * 1000";
    connection.execute(ago, [days]).unwrap();
}

fn sagas(connection: &Connection) -> Vec<String> {
    let mut all = connection.prepare("select distinct saga from mainstay_barrier order by saga").unwrap();
    all.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn what_arrives_between_the_look_and_the_deletion_spares_its_saga() {
    let directory = Directory::new("between");
    let (mut pruner, mut other) = (directory.open(), Some(directory.open()));
    for name in ["a", "b", "c"] {
        let _ = block_on(pruner.deliver(&saga(name), 0, DO));
    }
    age(&pruner.0, 91);
    // The deletion is prepared when the look has found something.
    let when_it_deletes = move |context: AuthContext<'_>| {
        if matches!(context.action, AuthAction::Delete { table_name: "mainstay_barrier" }) {
            if let Some(mut other) = other.take() {
                let undone = block_on(other.deliver(&saga("b"), 1, UNDO));
                assert_eq!(undone, Answer::Compensation(Compensation::Undone));
            }
        }
        Authorization::Allow
    };
    pruner.0.authorizer(Some(when_it_deletes)).unwrap();
    assert_eq!(barrier::sqlite::prune(&pruner.0, Retention::default(), 10).unwrap(), 2);
    assert_eq!((sagas(&pruner.0), pruner.rows()), (vec!["b".to_owned()], 2));
    assert_eq!(block_on(pruner.deliver(&saga("b"), 2, UNDO)), Answer::Compensation(Compensation::Repeated));
}

#[test]
fn a_walk_in_pieces_goes_on_where_it_was_and_begins_again_at_its_end() {
    let mut participant = Sqlite::in_memory();
    let tx = participant.0.transaction_with_behavior(Immediate).unwrap();
    let deliver = |number: u32, steps: &[&str]| {
        for step in steps {
            let key = Key::new(&saga(format!("{number:05}")), step, Direction::Do).unwrap();
            let _ = barrier::sqlite::action(&tx, &key, |_| Ok::<_, rusqlite::Error>(())).unwrap();
        }
    };
    // More than are looked at in a piece, all of them old; of one saga more than may be deleted at once.
    for number in 0..5_000 {
        deliver(number, if number == 1 { &["a", "b", "c", "d", "e"] } else { &["a"] });
    }
    age(&tx, 91);
    tx.commit().unwrap();
    for late in ["00003", "04999"] {
        let _ = block_on(participant.deliver(&saga(late), 0, UNDO));
    }

    let tx = participant.0.transaction_with_behavior(Immediate).unwrap();
    let mut pruning = Pruning::new(Retention::default());
    let mut piece = |limit| {
        let Pruned { rows, more } = pruning.piece(&tx, limit).unwrap();
        (rows, more)
    };
    assert_eq!(piece(3), (3, true), "a saga, and two rows of the next");
    assert_eq!(sagas(&tx)[0], "00001");
    assert_eq!(piece(4), (4, true), "the rest of that, and another one");
    assert_eq!(sagas(&tx)[0], "00003");
    let (rows, more) = piece(10_000);
    assert!((3_500..4_500).contains(&rows) && more, "it looks at some thousands: {rows}");
    assert_eq!(piece(10_000), (4_995 - rows, false));
    assert_eq!(sagas(&tx), ["00003", "04999"]);
    age(&tx, 91);
    assert_eq!(piece(10_000), (6, false), "from the beginning");
    tx.commit().unwrap();
    assert_eq!(participant.rows(), 0);
}

/// As it was once: another order of the columns, and an index.
#[test]
fn a_table_with_the_index_of_old_loses_it_and_works_on() {
    let connection = Connection::open_in_memory().unwrap();
    connection
        .execute_batch(
            "create table mainstay_barrier (
                 saga text not null,
                 step text not null,
                 phase text not null check (phase in ('do', 'undo')),
                 state text not null,
                 result text,
                 at integer not null,
                 primary key (saga, step, phase)
             ) strict, without rowid;
             create index mainstay_barrier_at on mainstay_barrier (at);
             insert into mainstay_barrier values ('before', 'charge', 'do', 'done', '7', 1)",
        )
        .unwrap();
    let mut participant = Sqlite::on(connection);
    let indexes = "select count(*) from sqlite_schema where type = 'index' and name = 'mainstay_barrier_at'";
    assert_eq!(participant.0.query_row(indexes, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    assert_eq!(
        block_on(participant.deliver(&saga("before"), 0, DO)),
        Answer::Action(Action::Repeated(Ok(7)))
    );
    block_on(support::scenarios(&mut participant));
    assert_eq!(barrier::sqlite::prune(&participant.0, Retention::default(), 10).unwrap(), 1);
    assert!(!sagas(&participant.0).contains(&"before".to_owned()));
}

#[test]
fn the_steps_of_a_saga_do_not_disturb_each_other() {
    let mut participant = Sqlite::in_memory();
    let tx = participant.0.transaction_with_behavior(Immediate).unwrap();
    for step in ["a", "a.do", "b"] {
        let key = Key::new(&saga("s"), step, Direction::Do).unwrap();
        let done = barrier::sqlite::action(&tx, &key, |tx| {
            // One inside the other: each has its own savepoint.
            let inner = Key::new(&saga("inner"), step, Direction::Do).unwrap();
            let failed = barrier::sqlite::action(tx, &inner, |_| Err::<(), _>("no"));
            assert!(failed.is_err());
            Ok::<_, rusqlite::Error>(step.to_owned())
        });
        assert_eq!(done.unwrap(), Action::Done(step.to_owned()));
    }
    let undo = Key::new(&saga("s"), "a", Direction::Undo).unwrap();
    let undone = barrier::sqlite::compensation(&tx, &undo, |_, result: String| {
        assert_eq!(result, "a");
        Ok::<_, rusqlite::Error>(())
    });
    assert_eq!(undone.unwrap(), Compensation::Undone);
    tx.commit().unwrap();
    assert_eq!(participant.rows(), 4);
}
