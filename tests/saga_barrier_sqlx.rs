//! The barrier on `sqlx`, with the server of `MAINSTAY_TEST_POSTGRES`: alone, and beside one on `tokio-postgres`.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    task::Poll,
    time::Duration,
};

use mainstay::saga::{
    Direction, Key, SagaId,
    barrier::{self, Action, Compensation, Error, Lookup, Retention},
};
use proptest::test_runner::{Config, TestRunner};
use sqlx::{Connection, PgConnection, PgPool, Row, postgres::PgPoolOptions};
use tokio_postgres::Client;

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/barrier.rs"]
mod support;
use postgres::Schema;
use support::{Answer, DO, Delivery, Effects, Fate, Participant, See, UNDO, block_on, key, saga};

type Tx<'c> = sqlx::Transaction<'c, sqlx::Postgres>;

/// A service on `sqlx`, and perhaps a neighbour on `tokio-postgres` who takes every other delivery.
struct Service {
    connection: PgConnection,
    neighbour: Option<Client>,
    deliveries: u32,
}

impl Service {
    fn on(schema: &Schema) -> Self {
        let mut connection = schema.connect_sqlx();
        block_on(barrier::sqlx::install(&mut connection)).unwrap();
        let ledger = "create table if not exists ledger (saga text not null, change int not null)";
        block_on(sqlx::raw_sql(ledger).execute(&mut connection)).unwrap();
        Service { connection, neighbour: None, deliveries: 0 }
    }

    fn with_neighbour(schema: &Schema) -> Self {
        Service { neighbour: Some(schema.connect()), ..Service::on(schema) }
    }

    fn rows(&mut self) -> i64 {
        let count = sqlx::query_scalar("select count(*) from mainstay_barrier");
        block_on(count.fetch_one(&mut self.connection)).unwrap()
    }
}

async fn note(connection: &mut PgConnection, saga: &SagaId, change: i32) {
    let note = sqlx::query("insert into ledger values ($1, $2)").bind(saga.as_str()).bind(change);
    note.execute(connection).await.unwrap();
}

fn or_failed<A, D: std::fmt::Debug>(answer: Result<A, Error<&str, D>>) -> Option<A> {
    match answer {
        Ok(answer) => Some(answer),
        Err(Error::Inner("failed")) => None,
        Err(other) => panic!("{other:?}"),
    }
}

/// On `sqlx`. Nobody can commit after a failure.
async fn deliver(connection: &mut PgConnection, saga: &SagaId, number: u32, delivery: Delivery) -> Answer {
    let fails = matches!(delivery.fate, Fate::Fail | Fate::FailAndCommit);
    let key = key(saga, delivery.phase);
    let tx = connection.begin().await.unwrap();
    let answer = if delivery.phase == Direction::Do {
        let action = barrier::sqlx::action_or_rejection(tx, &key, async |tx| {
            if delivery.fate == Fate::Reject {
                return Ok(Err(number));
            }
            note(tx, saga, 1).await;
            if fails { Err("failed") } else { Ok(Ok(number)) }
        });
        or_failed(action.await).map(|(tx, action)| (tx, Answer::Action(action)))
    } else {
        let compensation = barrier::sqlx::compensation(tx, &key, async |tx, _: u32| {
            note(tx, saga, -1).await;
            if fails { Err("failed") } else { Ok(()) }
        });
        or_failed(compensation.await).map(|(tx, compensation)| (tx, Answer::Compensation(compensation)))
    };
    let Some((tx, answer)) = answer else { return Answer::Failed };
    match delivery.fate {
        Fate::Commit | Fate::Reject | Fate::FailAndCommit => tx.commit().await.unwrap(),
        Fate::Crash | Fate::Fail => tx.rollback().await.unwrap(),
    }
    answer
}

/// On `tokio-postgres`.
async fn deliver_next_door(client: &mut Client, saga: &SagaId, number: u32, delivery: Delivery) -> Answer {
    let fails = matches!(delivery.fate, Fate::Fail | Fate::FailAndCommit);
    let note = async |tx: &Client, change: i32| {
        tx.execute("insert into ledger values ($1, $2)", &[&saga.as_str(), &change]).await.unwrap();
        if fails { Err("failed") } else { Ok(()) }
    };
    let key = key(saga, delivery.phase);
    let tx = client.transaction().await.unwrap();
    let answer = if delivery.phase == Direction::Do {
        let action = barrier::postgres::action_or_rejection(&tx, &key, async |tx| {
            if delivery.fate == Fate::Reject {
                return Ok(Err(number));
            }
            note(tx.client(), 1).await.map(|()| Ok(number))
        });
        or_failed(action.await).map(Answer::Action)
    } else {
        let compensation =
            barrier::postgres::compensation(&tx, &key, async |tx, _: u32| note(tx.client(), -1).await);
        or_failed(compensation.await).map(Answer::Compensation)
    };
    match delivery.fate {
        Fate::Commit | Fate::Reject | Fate::FailAndCommit => tx.commit().await.unwrap(),
        Fate::Crash | Fate::Fail => tx.rollback().await.unwrap(),
    }
    answer.unwrap_or(Answer::Failed)
}

impl Participant for Service {
    async fn deliver(&mut self, saga: &SagaId, number: u32, delivery: Delivery) -> Answer {
        self.deliveries += 1;
        match &mut self.neighbour {
            Some(neighbour) if self.deliveries % 2 == 0 => {
                deliver_next_door(neighbour, saga, number, delivery).await
            }
            _ => deliver(&mut self.connection, saga, number, delivery).await,
        }
    }

    async fn effects(&mut self, saga: &SagaId) -> Effects {
        let count = "select count(*) filter (where change = 1), count(*) filter (where change = -1)
                     from ledger where saga = $1";
        let row = sqlx::query(count).bind(saga.as_str()).fetch_one(&mut self.connection).await.unwrap();
        Effects { done: row.get(0), undone: row.get(1) }
    }
}

#[test]
fn scenarios() {
    let Some(schema) = Schema::new("scenarios") else { return };
    block_on(support::scenarios(&mut Service::on(&schema)));
}

#[test]
fn scenarios_with_a_neighbour_on_the_other_client() {
    let Some(schema) = Schema::new("scenarios_with_a_neighbour_on_the_other_client") else { return };
    block_on(support::scenarios(&mut Service::with_neighbour(&schema)));
}

fn any_deliveries(service: Service) {
    let service = RefCell::new((service, 0));
    block_on(sqlx::raw_sql("set synchronous_commit to off").execute(&mut service.borrow_mut().0.connection))
        .unwrap();
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&support::deliveries(), |deliveries| {
        let (service, case) = &mut *service.borrow_mut();
        *case += 1;
        support::property(service, &saga(format!("case-{case}")), &deliveries, See::EffectsAndAnswers)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn any_deliveries_on_one_key_have_one_effect_or_none() {
    let Some(schema) = Schema::new("any_deliveries_on_one_key_have_one_effect_or_none") else { return };
    any_deliveries(Service::on(&schema));
}

#[test]
fn any_deliveries_have_one_effect_or_none_with_a_neighbour_on_the_other_client() {
    let name = "any_deliveries_have_one_effect_or_none_with_a_neighbour_on_the_other_client";
    let Some(schema) = Schema::new(name) else { return };
    any_deliveries(Service::with_neighbour(&schema));
}

/// Two on each client: the deliveries of the second two are counted from the neighbour on.
fn crowd(schema: &Schema) -> Vec<Service> {
    (0..4).map(|index| Service { deliveries: index / 2, ..Service::with_neighbour(schema) }).collect()
}

#[test]
fn of_simultaneous_duplicates_one_has_the_effect() {
    let Some(schema) = Schema::new("of_simultaneous_duplicates_one_has_the_effect") else { return };
    support::race_of_duplicates(&mut crowd(&schema), 300);
}

#[test]
fn of_an_action_and_its_compensation_no_effect_is_left() {
    let Some(schema) = Schema::new("of_an_action_and_its_compensation_no_effect_is_left") else { return };
    support::race_of_directions(&mut crowd(&schema), 300);
}

/// Polls a future so many times and drops it: while it waits, or not before it could go on. What it says, if it ends before.
async fn polled<T>(future: impl Future<Output = T>, mut times: usize, could_go_on: bool) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| {
        if times == 0 {
            return Poll::Ready(None);
        }
        times -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if times == 0 && !could_go_on => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The whole of a request, to its commit, and whether it came to that.
async fn worked_on(tx: Tx<'_>, saga: &SagaId, phase: Direction, commits: &Cell<bool>) {
    let key = key(saga, phase);
    let tx = if phase == Direction::Do {
        let action = barrier::sqlx::action(tx, &key, async |tx| {
            note(tx, saga, 1).await;
            tokio::task::yield_now().await;
            Ok::<_, sqlx::Error>(1)
        });
        action.await.unwrap().0
    } else {
        let compensation = barrier::sqlx::compensation(tx, &key, async |tx, _: u32| {
            note(tx, saga, -1).await;
            tokio::task::yield_now().await;
            Ok::<_, sqlx::Error>(())
        });
        compensation.await.unwrap().0
    };
    commits.set(true);
    tx.commit().await.unwrap();
}

/// Wherever a future is dropped: nothing of its transaction is left, or all of it if that was at the commit; what comes next on the
/// connection is in no transaction; and the request that comes again is answered accordingly. A new connection each time, so that every statement has to be prepared.
#[test]
fn a_future_dropped_at_any_wait_leaves_nothing_to_commit() {
    let Some(schema) = Schema::new("a_future_dropped_at_any_wait_leaves_nothing_to_commit") else { return };
    let (mut other, mut dropped) = (Service::on(&schema), 0);
    for (phase, could_go_on) in
        [(Direction::Do, false), (Direction::Do, true), (Direction::Undo, false), (Direction::Undo, true)]
    {
        let delivery = Delivery { phase, ..DO };
        for times in 1..=10 {
            let name = format!("{}-{could_go_on}-{times}", phase.as_str());
            let (saga, before, next) =
                (saga(&name), saga(format!("before-{name}")), saga(format!("next-{name}")));
            if phase == Direction::Undo {
                block_on(other.deliver(&saga, 0, DO));
            }
            let rows = other.rows();
            let mut connection = schema.connect_sqlx();
            let commits = Cell::new(false);
            let ended = schema.runtime.block_on(async {
                let mut tx = connection.begin().await.unwrap();
                note(&mut tx, &before, 1).await;
                polled(worked_on(tx, &saga, phase, &commits), times, could_go_on).await
            });
            if ended.is_some() {
                continue;
            }
            dropped += 1;
            schema.runtime.block_on(async {
                note(&mut connection, &next, 1).await;
                // It is not the end of anything.
                sqlx::raw_sql("commit").execute(&mut connection).await.unwrap();
            });
            assert_eq!(block_on(other.effects(&next)), Effects { done: 1, undone: 0 }, "{name}");
            let kept = block_on(other.effects(&before)) != Effects::default();
            assert!(!kept || commits.get(), "{name}");
            assert_eq!(other.rows(), rows + i64::from(kept), "{name}");
            let (effects, expected) = match (phase, kept) {
                (Direction::Do, false) => ((0, 0), Answer::Action(Action::Done(Ok(7)))),
                (Direction::Do, true) => ((1, 0), Answer::Action(Action::Repeated(Ok(1)))),
                (Direction::Undo, false) => ((1, 0), Answer::Compensation(Compensation::Undone)),
                (Direction::Undo, true) => ((1, 1), Answer::Compensation(Compensation::Repeated)),
            };
            let effects = Effects { done: effects.0, undone: effects.1 };
            assert_eq!(block_on(other.effects(&saga)), effects, "{name}");
            assert_eq!(block_on(deliver(&mut connection, &saga, 7, delivery)), expected, "{name}");
        }
    }
    // There are seven or eight waits in each of the four; an answer that is there at once is none.
    assert!(dropped > 12, "{dropped}");
}

#[test]
fn a_panic_in_the_closure_leaves_nothing_to_commit() {
    let Some(schema) = Schema::new("a_panic_in_the_closure_leaves_nothing_to_commit") else { return };
    let mut service = Service::on(&schema);
    let saga = saga("panic");
    block_on(async {
        let tx = service.connection.begin().await.unwrap();
        let key = key(&saga, Direction::Do);
        let action = barrier::sqlx::action(tx, &key, async |tx| -> Result<(), sqlx::Error> {
            note(tx, &saga, 1).await;
            panic!("in the business");
        });
        let panicked = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(action)).await;
        assert!(panicked.is_err());
    });
    assert_eq!((service.rows(), block_on(service.effects(&saga))), (0, Effects::default()));
}

/// Whoever waits for the claim does not wait until the connection is used again.
#[test]
fn a_failure_lets_the_locks_go_at_once() {
    let Some(schema) = Schema::new("a_failure_lets_the_locks_go_at_once") else { return };
    let (mut failing, mut other) = (Service::on(&schema), Service::on(&schema));
    let saga = saga("failed");
    schema.runtime.block_on(async {
        let (right, wrong) = (key(&saga, Direction::Do), key(&saga, Direction::Undo));
        for key in [&right, &wrong] {
            let tx = failing.connection.begin().await.unwrap();
            let failed = barrier::sqlx::action(tx, key, async |_| Err::<(), _>("failed")).await;
            assert_eq!(matches!(failed, Err(Error::WrongDirection(_))), key == &wrong, "{failed:?}");
            assert!(failed.is_err());
        }
        let delivered = other.deliver(&saga, 1, DO);
        let answer = tokio::time::timeout(Duration::from_secs(5), delivered).await;
        assert_eq!(answer.expect("nobody has the row"), Answer::Action(Action::Done(Ok(1))));
    });
}

fn pool(schema: &Schema) -> PgPool {
    schema
        .runtime
        .block_on(PgPoolOptions::new().max_connections(1).connect_with(schema.options()))
        .expect("the server answers")
}

/// A service's handler is a task, which may be aborted.
#[test]
fn the_futures_can_be_spawned_and_a_pool_gets_its_connection_back_in_no_transaction() {
    let name = "the_futures_can_be_spawned_and_a_pool_gets_its_connection_back_in_no_transaction";
    let Some(schema) = Schema::new(name) else { return };
    let mut other = Service::on(&schema);
    let pool = pool(&schema);
    let handler = pool.clone();
    let spawned = schema.runtime.spawn(async move {
        barrier::sqlx::install(&handler).await?;
        barrier::sqlx::prune(&handler, Retention::default(), 1).await?;
        let (action, undo) = (key(&saga("spawned"), Direction::Do), key(&saga("spawned"), Direction::Undo));
        let (tx, done) = barrier::sqlx::action(handler.begin().await?, &action, async |tx| {
            sqlx::query_scalar::<_, i32>("select 17").fetch_one(&mut **tx).await
        })
        .await?;
        assert_eq!(done, Action::Done(17));
        let (tx, undone) = barrier::sqlx::compensation(tx, &undo, async |tx: &mut Tx<'_>, number: i32| {
            assert_eq!(number, 17);
            let undo = sqlx::query("insert into ledger values ('spawned', -1)");
            undo.execute(&mut **tx).await.map(drop)
        })
        .await?;
        assert_eq!(undone, Compensation::Undone);
        tx.commit().await?;
        assert_eq!(barrier::sqlx::lookup::<i32>(&handler, &action).await?, Lookup::Compensated);
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    });
    schema.runtime.block_on(spawned).unwrap().unwrap();

    let handler = pool.clone();
    let (began, begins) = tokio::sync::oneshot::channel();
    let aborted = schema.runtime.spawn(async move {
        let key = key(&saga("aborted"), Direction::Do);
        let action = barrier::sqlx::action(handler.begin().await?, &key, async |tx| {
            note(tx, &saga("aborted"), 1).await;
            began.send(()).unwrap();
            std::future::pending::<Result<(), sqlx::Error>>().await
        });
        action.await.map(drop)
    });
    schema.runtime.block_on(async {
        begins.await.unwrap();
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        note(&mut pool.acquire().await.unwrap(), &saga("next"), 1).await;
    });
    assert_eq!(block_on(other.effects(&saga("aborted"))), Effects::default());
    assert_eq!(block_on(other.effects(&saga("next"))), Effects { done: 1, undone: 0 });
    assert_eq!(other.rows(), 2);
}

async fn careless(tx: &mut Tx<'_>) {
    let _ = sqlx::query("insert into no_such_table values (1)").execute(&mut **tx).await;
}

async fn rollback(tx: &mut Tx<'_>) {
    sqlx::raw_sql("rollback").execute(&mut **tx).await.unwrap();
}

/// `sqlx` rolls back all of it then.
async fn drops_a_nested_one(tx: &mut Tx<'_>) {
    // Until the server has not answered at once.
    while polled(tx.begin(), 1, false).await.is_some() {}
}

/// Postgres has failed the transaction then, and its commit is a rollback that looks like a commit; or it is over.
#[test]
fn a_closure_that_fails_or_ends_the_transaction_and_says_nothing_has_not_done_its_business() {
    let name = "a_closure_that_fails_or_ends_the_transaction_and_says_nothing_has_not_done_its_business";
    let Some(schema) = Schema::new(name) else { return };
    let mut service = Service::on(&schema);
    block_on(async {
        for way in 0..3 {
            let act = async |tx: &mut Tx<'_>| match way {
                0 => careless(tx).await,
                1 => rollback(tx).await,
                _ => drops_a_nested_one(tx).await,
            };
            let saga = saga(way);
            let (action, undo) = (key(&saga, Direction::Do), key(&saga, Direction::Undo));
            let tx = service.connection.begin().await.unwrap();
            let done = barrier::sqlx::action(tx, &action, async |tx| {
                act(tx).await;
                Ok::<_, sqlx::Error>(())
            });
            let done = done.await.map(|(_, done)| done);
            assert!(matches!(done, Err(Error::Database(_))), "{way}: {done:?}");
            assert_eq!(service.deliver(&saga, 3, DO).await, Answer::Action(Action::Done(Ok(3))), "{way}");
            let tx = service.connection.begin().await.unwrap();
            let undone = barrier::sqlx::compensation(tx, &undo, async |tx, _: u32| {
                act(tx).await;
                Ok::<_, sqlx::Error>(())
            });
            let undone = undone.await.map(|(_, undone)| undone);
            assert!(matches!(undone, Err(Error::Database(_))), "{way}: {undone:?}");
            let undone = service.deliver(&saga, 4, UNDO).await;
            assert_eq!(undone, Answer::Compensation(Compensation::Undone), "{way}");
        }
    });
}

#[test]
fn under_serializable_the_second_of_two_is_told_to_try_again() {
    let Some(schema) = Schema::new("under_serializable_the_second_of_two_is_told_to_try_again") else {
        return;
    };
    let (mut one, mut two) = (Service::on(&schema).connection, Service::on(&schema).connection);
    schema.runtime.block_on(async {
        let key = key(&saga("s"), Direction::Do);
        let business = async |_: &mut Tx<'_>| Ok::<_, sqlx::Error>(1);
        let serializable = "begin isolation level serializable";
        let first = one.begin_with(serializable).await.unwrap();
        let mut second = two.begin_with(serializable).await.unwrap();
        sqlx::query("select count(*) from ledger").fetch_one(&mut *second).await.unwrap();
        let (first, done) = barrier::sqlx::action(first, &key, business).await.unwrap();
        assert_eq!(done, Action::Done(1));
        first.commit().await.unwrap();
        let told = barrier::sqlx::action(second, &key, business).await.map(|(_, action)| action);
        let Err(Error::Database(sqlx::Error::Database(error))) = told else { panic!("{told:?}") };
        assert_eq!(error.code().as_deref(), Some("40001"));
        let again = two.begin().await.unwrap();
        assert_eq!(barrier::sqlx::action(again, &key, business).await.unwrap().1, Action::Repeated(1));
    });
}

/// One that took its snapshot before the compensation is answered as of then.
#[test]
fn what_was_undone_is_refused_at_every_isolation_level() {
    let Some(schema) = Schema::new("what_was_undone_is_refused_at_every_isolation_level") else { return };
    let (mut connection, mut other) = (Service::on(&schema).connection, Service::with_neighbour(&schema));
    block_on(async {
        for (level, before) in [
            ("begin isolation level read committed", Action::Refused),
            ("begin isolation level repeatable read", Action::Repeated(0)),
            ("begin isolation level serializable", Action::Repeated(0)),
        ] {
            let saga = saga(level.replace(' ', "-"));
            let key = key(&saga, Direction::Do);
            let business =
                async |_: &mut Tx<'_>| -> Result<u32, sqlx::Error> { panic!("it runs although it was done") };
            assert_eq!(other.deliver(&saga, 0, DO).await, Answer::Action(Action::Done(Ok(0))));
            let mut tx = connection.begin_with(level).await.unwrap();
            sqlx::query("select count(*) from ledger").fetch_one(&mut *tx).await.unwrap();
            assert_eq!(other.deliver(&saga, 1, UNDO).await, Answer::Compensation(Compensation::Undone));
            let (tx, told) = barrier::sqlx::action(tx, &key, business).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(told, before, "{level}");
            let tx = connection.begin_with(level).await.unwrap();
            let (tx, told) = barrier::sqlx::action(tx, &key, business).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(told, Action::Refused, "{level}");
        }
    });
}

#[test]
fn installing_at_the_same_time_and_twice_is_harmless() {
    let Some(schema) = Schema::new("installing_at_the_same_time_and_twice_is_harmless") else { return };
    let mut connections: Vec<_> = (0..4).map(|_| schema.connect_sqlx()).collect();
    let clients: Vec<_> = (0..2).map(|_| schema.connect()).collect();
    schema.runtime.block_on(async {
        let (sqlx, others) = tokio::join!(
            futures::future::join_all(connections.iter_mut().map(barrier::sqlx::install)),
            futures::future::join_all(clients.iter().map(barrier::postgres::install)),
        );
        for installed in sqlx {
            installed.unwrap();
        }
        for installed in others {
            installed.unwrap();
        }
    });
}

#[test]
fn lookup_says_what_a_verifying_step_asks() {
    let Some(schema) = Schema::new("lookup_says_what_a_verifying_step_asks") else { return };
    let mut service = Service::with_neighbour(&schema);
    let mut told = |name: &str, deliveries: &[Delivery]| {
        let saga = saga(name);
        for (number, delivery) in deliveries.iter().enumerate() {
            let _ = block_on(service.deliver(&saga, number as u32, *delivery));
        }
        let key: Key = key(&saga, Direction::Do);
        let told = block_on(barrier::sqlx::lookup::<u32>(&mut service.connection, &key)).unwrap();
        let next_door = block_on(barrier::postgres::lookup(service.neighbour.as_ref().unwrap(), &key));
        assert_eq!(told, next_door.unwrap());
        told
    };
    assert_eq!(told("nothing", &[]), Lookup::NotApplied);
    assert_eq!(told("crash", &[Delivery { fate: Fate::Crash, ..DO }]), Lookup::NotApplied);
    assert_eq!(told("done", &[DO, DO]), Lookup::Applied(0));
    assert_eq!(told("undone", &[DO, UNDO]), Lookup::Compensated);
    assert_eq!(told("empty", &[UNDO]), Lookup::Compensated);
    let rejected = told("rejected", &[Delivery { fate: Fate::Reject, ..DO }, UNDO]);
    assert!(matches!(rejected, Lookup::Rejected(ref answer) if answer.as_str() == "0"), "{rejected:?}");
}

#[test]
fn pruning_spares_every_row_of_a_saga_that_was_heard_of_lately() {
    let Some(schema) = Schema::new("pruning_spares_every_row_of_a_saga_that_was_heard_of_lately") else {
        return;
    };
    let mut service = Service::on(&schema);
    for name in ["old", "older", "new", "half"] {
        let _ = block_on(service.deliver(&saga(name), 0, DO));
        let _ = block_on(service.deliver(&saga(name), 0, UNDO));
    }
    let age = "update mainstay_barrier set at = at - interval '91 days'
               where saga in ('old', 'older') or (saga = 'half' and phase = 'do')";
    block_on(sqlx::query(age).execute(&mut service.connection)).unwrap();
    let mut pruned = Vec::new();
    while pruned.last() != Some(&0) {
        let prune = barrier::sqlx::prune(&mut service.connection, Retention::default(), 3);
        pruned.push(block_on(prune).unwrap());
    }
    assert_eq!(pruned, [3, 1, 0]);
    assert_eq!(service.rows(), 4);
    // Were it forgotten, it would be done.
    assert_eq!(block_on(service.deliver(&saga("half"), 9, DO)), Answer::Action(Action::Refused));
    let forever = Retention { longest_saga: Duration::MAX, longest_delivery: Duration::MAX };
    assert_eq!(block_on(barrier::sqlx::prune(&mut service.connection, forever, usize::MAX)).unwrap(), 0);
}
