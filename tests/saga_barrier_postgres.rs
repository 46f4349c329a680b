//! The barrier on `tokio-postgres`, with the server of `MAINSTAY_TEST_POSTGRES`.
#![cfg(feature = "postgres")]

use std::time::Duration;

use mainstay::saga::{
    Direction, SagaId,
    barrier::{self, Action, Compensation, Error, Lookup, Retention, postgres::Barrier},
};
use proptest::test_runner::{Config, TestRunner};
use tokio_postgres::{Client, IsolationLevel, Transaction};

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/barrier.rs"]
mod support;
use postgres::Schema;
use support::{Answer, DO, Delivery, Effects, Fate, Participant, See, UNDO, block_on, key, saga};

/// With the number of its deliveries: every way to ask the barrier has its turn.
struct Postgres(Client, u32, Barrier);

impl Postgres {
    fn on(schema: &Schema) -> Self {
        let client = schema.connect();
        block_on(barrier::postgres::install(&client)).unwrap();
        block_on(
            client
                .batch_execute("create table if not exists ledger (saga text not null, change int not null)"),
        )
        .unwrap();
        let barrier = block_on(Barrier::prepare(&client)).unwrap();
        Postgres(client, 0, barrier)
    }

    fn rows(&self) -> i64 {
        block_on(self.0.query_one("select count(*) from mainstay_barrier", &[])).unwrap().get(0)
    }
}

impl Participant for Postgres {
    async fn deliver(&mut self, saga: &SagaId, number: u32, delivery: Delivery) -> Answer {
        let fails = matches!(delivery.fate, Fate::Fail | Fate::FailAndCommit);
        let note = async |tx: &Client, change: i32| {
            tx.execute("insert into ledger values ($1, $2)", &[&saga.as_str(), &change]).await.unwrap();
            if fails { Err("failed") } else { Ok(()) }
        };
        let key = key(saga, delivery.phase);
        self.1 += 1;
        if self.1 % 2 == 0
            && delivery.phase == Direction::Do
            && matches!(delivery.fate, Fate::Commit | Fate::Fail | Fate::Reject)
        {
            let barrier = self.2.clone();
            let barrier = if self.1 % 4 == 0 { barrier } else { barrier.without_look_up() };
            let committed = barrier.action_or_rejection(&mut self.0, &key, async |tx| {
                if delivery.fate == Fate::Reject {
                    return Ok(Err(number));
                }
                note(tx, 1).await.map(|()| Ok(number))
            });
            return match committed.await {
                Ok(action) => Answer::Action(action),
                Err(Error::Inner("failed")) => Answer::Failed,
                Err(other) => panic!("{other:?}"),
            };
        }
        let tx = self.0.transaction().await.unwrap();
        let answer = if delivery.phase == Direction::Do {
            let business = async |tx: &Transaction<'_>| {
                if delivery.fate == Fate::Reject {
                    return Ok(Err(number));
                }
                note(tx.client(), 1).await.map(|()| Ok(number))
            };
            let action = if self.1 % 4 == 1 {
                barrier::postgres::action_or_rejection(&tx, &key, business).await
            } else {
                self.2.action_or_rejection_within(&tx, &key, business).await
            };
            action.map(Answer::Action)
        } else {
            let compensation =
                barrier::postgres::compensation(&tx, &key, async |tx, _: u32| note(tx.client(), -1).await);
            compensation.await.map(Answer::Compensation)
        };
        let answer = answer.unwrap_or_else(|error| match error {
            Error::Inner("failed") => Answer::Failed,
            other => panic!("{other:?}"),
        });
        match delivery.fate {
            Fate::Commit | Fate::Reject | Fate::FailAndCommit => tx.commit().await.unwrap(),
            Fate::Crash | Fate::Fail => tx.rollback().await.unwrap(),
        }
        answer
    }

    async fn effects(&mut self, saga: &SagaId) -> Effects {
        let count = "select count(*) filter (where change = 1), count(*) filter (where change = -1)
                     from ledger where saga = $1";
        let row = self.0.query_one(count, &[&saga.as_str()]).await.unwrap();
        Effects { done: row.get(0), undone: row.get(1) }
    }
}

#[test]
fn scenarios() {
    let Some(schema) = Schema::new("scenarios") else { return };
    block_on(support::scenarios(&mut Postgres::on(&schema)));
}

#[test]
fn any_deliveries_on_one_key_have_one_effect_or_none() {
    let Some(schema) = Schema::new("any_deliveries_on_one_key_have_one_effect_or_none") else { return };
    let participant = std::cell::RefCell::new((Postgres::on(&schema), 0));
    block_on(participant.borrow().0.0.batch_execute("set synchronous_commit to off")).unwrap();
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&support::deliveries(), |deliveries| {
        let (participant, case) = &mut *participant.borrow_mut();
        *case += 1;
        support::property(participant, &saga(format!("case-{case}")), &deliveries, See::EffectsAndAnswers)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn of_simultaneous_duplicates_one_has_the_effect() {
    let Some(schema) = Schema::new("of_simultaneous_duplicates_one_has_the_effect") else { return };
    let mut participants: Vec<_> = (0..4).map(|_| Postgres::on(&schema)).collect();
    support::race_of_duplicates(&mut participants, 300);
}

#[test]
fn of_an_action_and_its_compensation_no_effect_is_left() {
    let Some(schema) = Schema::new("of_an_action_and_its_compensation_no_effect_is_left") else { return };
    let mut participants: Vec<_> = (0..4).map(|_| Postgres::on(&schema)).collect();
    support::race_of_directions(&mut participants, 300);
}

#[test]
fn a_dropped_future_leaves_nothing_to_commit() {
    let Some(schema) = Schema::new("a_dropped_future_leaves_nothing_to_commit") else { return };
    let mut participant = Postgres::on(&schema);
    let saga = saga("dropped");
    schema.runtime.block_on(async {
        let tx = participant.0.transaction().await.unwrap();
        let key = key(&saga, Direction::Do);
        let action = barrier::postgres::action(&tx, &key, async |tx| {
            tx.execute("insert into ledger values ('dropped', 1)", &[]).await?;
            std::future::pending::<()>().await;
            Ok::<_, tokio_postgres::Error>(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(200), action).await.is_err());
        let _ = tx.commit().await;
    });
    assert_eq!((participant.rows(), block_on(participant.effects(&saga))), (0, Effects::default()));
    assert_eq!(block_on(participant.deliver(&saga, 7, DO)), Answer::Action(Action::Done(Ok(7))));
}

#[test]
fn a_dropped_transaction_is_rolled_back() {
    let Some(schema) = Schema::new("a_dropped_transaction_is_rolled_back") else { return };
    let mut participant = Postgres::on(&schema);
    let saga = saga("dropped");
    let key = key(&saga, Direction::Do);
    schema.runtime.block_on(async {
        let Postgres(client, _, barrier) = &mut participant;
        let action = barrier.action(client, &key, async |tx| {
            tx.execute("insert into ledger values ('dropped', 1)", &[]).await?;
            std::future::pending::<()>().await;
            Ok::<_, tokio_postgres::Error>(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(200), action).await.is_err());
        // What comes next on the connection is in no transaction.
        client.execute("insert into ledger values ('next', 1)", &[]).await.unwrap();
    });
    let mut other = Postgres::on(&schema);
    let effects = block_on(other.effects(&support::saga("next")));
    assert_eq!((other.rows(), effects), (0, Effects { done: 1, undone: 0 }));
    assert_eq!(block_on(other.effects(&saga)), Effects::default());
    assert_eq!(block_on(other.deliver(&saga, 7, DO)), Answer::Action(Action::Done(Ok(7))));
}

/// Both are at work at once, and the other one ends first.
#[test]
fn whoever_ends_last_is_answered_what_the_other_one_has_stored() {
    let name = "whoever_ends_last_is_answered_what_the_other_one_has_stored";
    let Some(schema) = Schema::new(name) else { return };
    let (mut last, mut first) = (Postgres::on(&schema), Postgres::on(&schema));
    block_on(async {
        for (id, mine) in [("ok", Ok(Ok(2))), ("rejected", Ok(Err(2))), ("failed", Err("failed"))] {
            for (other, expected, effects) in [
                (&[DO][..], Action::Repeated(Ok(1)), (1, 0)),
                (&[UNDO], Action::Refused, (0, 0)),
                (&[DO, UNDO], Action::Refused, (1, 1)),
            ] {
                let saga = saga(format!("{id}-{}-{}", effects.0, effects.1));
                let key = key(&saga, Direction::Do);
                let action = last.2.action_or_rejection(&mut last.0, &key, async |tx| {
                    tx.execute("insert into ledger values ($1, 1)", &[&saga.as_str()]).await.unwrap();
                    for delivery in other {
                        first.deliver(&saga, 1, *delivery).await;
                    }
                    mine
                });
                assert_eq!(action.await.unwrap(), expected, "{saga}");
                let (done, undone) = effects;
                assert_eq!(last.effects(&saga).await, Effects { done, undone }, "{saga}");
            }
        }
    });
}

#[test]
fn a_panic_in_the_closure_leaves_nothing_to_commit() {
    let Some(schema) = Schema::new("a_panic_in_the_closure_leaves_nothing_to_commit") else { return };
    let mut participant = Postgres::on(&schema);
    let saga = saga("panic");
    block_on(async {
        let tx = participant.0.transaction().await.unwrap();
        let key = key(&saga, Direction::Do);
        let action = barrier::postgres::action(&tx, &key, async |_| -> Result<(), tokio_postgres::Error> {
            panic!("in the business");
        });
        let panicked = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(action)).await;
        assert!(panicked.is_err());
        let _ = tx.commit().await;
    });
    assert_eq!(participant.rows(), 0);
}

/// A service's handler is a task.
#[test]
fn the_futures_can_be_spawned() {
    let Some(schema) = Schema::new("the_futures_can_be_spawned") else { return };
    let mut client = Postgres::on(&schema).0;
    let spawned = schema.runtime.spawn(async move {
        let (action, undo) = (key(&saga("spawned"), Direction::Do), key(&saga("spawned"), Direction::Undo));
        let barrier = Barrier::prepare(&client).await?;
        let before = key(&saga("before"), Direction::Do);
        let done =
            barrier.action(&mut client, &before, async |tx| tx.query_one("select", &[]).await.map(drop));
        assert_eq!(done.await?, Action::Done(()));
        let tx = client.transaction().await?;
        let within = key(&saga("within"), Direction::Do);
        let done =
            barrier.action_within(&tx, &within, async |tx| tx.query_one("select", &[]).await.map(drop));
        assert_eq!(done.await?, Action::Done(()));
        let done = barrier::postgres::action(&tx, &action, async |tx| {
            let row = tx.query_one("select 17", &[]).await?;
            Ok::<i32, tokio_postgres::Error>(row.get(0))
        })
        .await?;
        assert_eq!(done, Action::Done(17));
        let compensation = barrier::postgres::compensation(&tx, &undo, async |tx, number: i32| {
            assert_eq!(number, 17);
            tx.execute("insert into ledger values ('spawned', -1)", &[]).await.map(drop)
        });
        compensation.await?;
        tx.commit().await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    });
    schema.runtime.block_on(spawned).unwrap().unwrap();
}

/// Postgres has failed the transaction then, and its commit is a rollback that looks like a commit.
#[test]
fn a_closure_that_passes_over_an_error_of_the_database_has_not_done_its_business() {
    let name = "a_closure_that_passes_over_an_error_of_the_database_has_not_done_its_business";
    let Some(schema) = Schema::new(name) else { return };
    let mut participant = Postgres::on(&schema);
    block_on(async {
        let saga = saga("s");
        let (action, undo) = (key(&saga, Direction::Do), key(&saga, Direction::Undo));
        let careless = async |tx: &Client| {
            let _ = tx.execute("insert into no_such_table values (1)", &[]).await;
            Ok::<_, tokio_postgres::Error>(())
        };
        let tx = participant.0.transaction().await.unwrap();
        let done = barrier::postgres::action(&tx, &action, async |tx| careless(tx.client()).await).await;
        assert!(matches!(done, Err(Error::Database(_))), "{done:?}");
        drop(tx);
        let tx = participant.0.transaction().await.unwrap();
        let done = participant.2.action_within(&tx, &action, async |tx| careless(tx.client()).await).await;
        assert!(matches!(done, Err(Error::Database(_))), "{done:?}");
        drop(tx);
        let done = participant.2.action(&mut participant.0, &action, careless).await;
        assert!(matches!(done, Err(Error::Database(_))), "{done:?}");
        assert_eq!(participant.deliver(&saga, 3, DO).await, Answer::Action(Action::Done(Ok(3))));
        let tx = participant.0.transaction().await.unwrap();
        let undone =
            barrier::postgres::compensation(&tx, &undo, async |tx, _: u32| careless(tx.client()).await).await;
        assert!(matches!(undone, Err(Error::Database(_))), "{undone:?}");
        drop(tx);
        assert_eq!(participant.deliver(&saga, 4, UNDO).await, Answer::Compensation(Compensation::Undone));
    });
}

/// Without a look-up only the closure's own statements find it, and then whatever it makes of that.
#[test]
fn without_a_look_up_what_was_done_before_is_answered_whatever_becomes_of_the_business() {
    let name = "without_a_look_up_what_was_done_before_is_answered_whatever_becomes_of_the_business";
    let Some(schema) = Schema::new(name) else { return };
    let Postgres(mut client, _, barrier) = Postgres::on(&schema);
    block_on(async {
        client.batch_execute("create unique index on ledger (saga)").await.unwrap();
        for (name, look_up) in [("with", true), ("without", false)] {
            let (saga, mut runs) = (saga(name), 0);
            let barrier = if look_up { barrier.clone() } else { barrier.clone().without_look_up() };
            let key = key(&saga, Direction::Do);
            let mut charge = async |passes_over: bool| {
                let business = async |tx: &Client| {
                    runs += 1;
                    let noted =
                        tx.execute("insert into ledger values ($1, 1)", &[&saga.as_str()]).await.map(drop);
                    if passes_over { Ok(runs) } else { noted.map(|()| runs) }
                };
                barrier.action(&mut client, &key, business).await.unwrap()
            };
            assert_eq!(charge(false).await, Action::Done(1), "{name}");
            assert_eq!(charge(false).await, Action::Repeated(1), "{name}: it fails over its own row");
            assert_eq!(charge(true).await, Action::Repeated(1), "{name}: it passes over that");
            assert_eq!(runs, if look_up { 1 } else { 3 }, "{name}");
            let business = async |_: &Client| Ok::<_, tokio_postgres::Error>("text".to_owned());
            let other = barrier.action(&mut client, &key, business).await;
            assert!(matches!(other, Err(Error::Result(_))), "{name}: {other:?}");
        }
    });
}

#[test]
fn on_a_connection_that_was_not_prepared_nothing_is_kept() {
    let Some(schema) = Schema::new("on_a_connection_that_was_not_prepared_nothing_is_kept") else { return };
    let mut prepared = Postgres::on(&schema);
    let mut client = schema.connect();
    block_on(async {
        let (saga, key) = (saga("s"), key(&saga("s"), Direction::Do));
        let note = async |tx: &Client| tx.execute("insert into ledger values ('s', 1)", &[]).await.map(drop);
        let (looks, does_not) = (prepared.2.clone(), prepared.2.clone().without_look_up());
        let tx = client.transaction().await.unwrap();
        let within = looks.action_within(&tx, &key, async |tx| note(tx.client()).await).await;
        drop(tx);
        let whole =
            [looks.action(&mut client, &key, note).await, does_not.action(&mut client, &key, note).await];
        for told in [within].into_iter().chain(whole) {
            let Err(Error::Database(error)) = told else { panic!("{told:?}") };
            assert_eq!(error.code().map(|code| code.code()), Some("26000"));
        }
        assert_eq!(prepared.effects(&saga).await, Effects::default());
        // It is as it was.
        let barrier = Barrier::prepare(&client).await.unwrap();
        assert_eq!(barrier.action(&mut client, &key, note).await.unwrap(), Action::Done(()));
    });
}

#[test]
fn a_result_that_needs_quoting_is_stored_as_it_is() {
    let Some(schema) = Schema::new("a_result_that_needs_quoting_is_stored_as_it_is") else { return };
    let mut participant = Postgres::on(&schema);
    block_on(async {
        let awkward = "it's \\ a \"result\" \u{0} \n ' \\' é".to_owned();
        for conforming in ["on", "off"] {
            let set =
                format!("set standard_conforming_strings to {conforming}; set escape_string_warning to off");
            participant.0.batch_execute(&set).await.unwrap();
            for within in [false, true] {
                let key = key(&saga(format!("it's-{conforming}-{within}\\")), Direction::Do);
                for expected in [Action::Done(awkward.clone()), Action::Repeated(awkward.clone())] {
                    let result = async || Ok::<_, tokio_postgres::Error>(awkward.clone());
                    let action = if within {
                        let tx = participant.0.transaction().await.unwrap();
                        let action = participant.2.action_within(&tx, &key, async |_| result().await).await;
                        tx.commit().await.unwrap();
                        action
                    } else {
                        participant.2.action(&mut participant.0, &key, async |_| result().await).await
                    };
                    assert_eq!(action.unwrap(), expected);
                }
            }
        }
    });
}

#[test]
fn under_serializable_the_second_of_two_is_told_to_try_again() {
    let Some(schema) = Schema::new("under_serializable_the_second_of_two_is_told_to_try_again") else {
        return;
    };
    let (mut one, mut two) = (Postgres::on(&schema).0, Postgres::on(&schema).0);
    schema.runtime.block_on(async {
        let key = key(&saga("s"), Direction::Do);
        let business = async |_: &Transaction<'_>| Ok::<_, tokio_postgres::Error>(1);
        let first =
            one.build_transaction().isolation_level(IsolationLevel::Serializable).start().await.unwrap();
        let second =
            two.build_transaction().isolation_level(IsolationLevel::Serializable).start().await.unwrap();
        second.query_one("select count(*) from ledger", &[]).await.unwrap();
        assert_eq!(barrier::postgres::action(&first, &key, business).await.unwrap(), Action::Done(1));
        first.commit().await.unwrap();
        let told = barrier::postgres::action(&second, &key, business).await;
        let Err(Error::Database(error)) = told else { panic!("{told:?}") };
        assert_eq!(error.code().map(|code| code.code()), Some("40001"));
        drop(second);
        let again = two.transaction().await.unwrap();
        assert_eq!(barrier::postgres::action(&again, &key, business).await.unwrap(), Action::Repeated(1));
    });
}

/// One that took its snapshot before the compensation is answered as of then.
#[test]
fn what_was_undone_is_refused_at_every_isolation_level() {
    let Some(schema) = Schema::new("what_was_undone_is_refused_at_every_isolation_level") else { return };
    let (Postgres(mut client, _, barrier), mut other) = (Postgres::on(&schema), Postgres::on(&schema));
    block_on(async {
        for (level, name, before) in [
            (IsolationLevel::ReadCommitted, "read committed", Action::Refused),
            (IsolationLevel::RepeatableRead, "repeatable read", Action::Repeated(0)),
            (IsolationLevel::Serializable, "serializable", Action::Repeated(0)),
        ] {
            let saga = saga(name.replace(' ', "-"));
            let key = key(&saga, Direction::Do);
            let business = async |_: &Transaction<'_>| -> Result<u32, tokio_postgres::Error> {
                panic!("it runs although it was done")
            };
            assert_eq!(other.deliver(&saga, 0, DO).await, Answer::Action(Action::Done(Ok(0))));
            let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
            tx.query_one("select count(*) from ledger", &[]).await.unwrap();
            assert_eq!(other.deliver(&saga, 1, UNDO).await, Answer::Compensation(Compensation::Undone));
            assert_eq!(barrier::postgres::action(&tx, &key, business).await.unwrap(), before, "{name}");
            tx.commit().await.unwrap();

            let tx = client.build_transaction().isolation_level(level).start().await.unwrap();
            let told = barrier::postgres::action(&tx, &key, business).await;
            assert_eq!(told.unwrap(), Action::Refused, "{name}");
            let told = barrier.action_within(&tx, &key, business).await;
            assert_eq!(told.unwrap(), Action::Refused, "{name}");
            tx.commit().await.unwrap();
            client.batch_execute(&format!("set default_transaction_isolation to '{name}'")).await.unwrap();
            for barrier in [barrier.clone(), barrier.clone().without_look_up()] {
                let told = barrier.action(&mut client, &key, async |_| Ok::<_, tokio_postgres::Error>(7));
                assert_eq!(told.await.unwrap(), Action::Refused, "{name}");
            }
            assert_eq!(other.effects(&saga).await, Effects { done: 1, undone: 1 });
        }
    });
}

/// It waits for the row, and whoever has that ends with both.
#[test]
fn what_is_undone_while_an_action_waits_is_refused() {
    let Some(schema) = Schema::new("what_is_undone_while_an_action_waits_is_refused") else { return };
    let (Postgres(mut client, _, barrier), mut other) = (Postgres::on(&schema), Postgres::on(&schema));
    let watch = schema.connect();
    schema.runtime.block_on(async {
        let id = client.query_one("select pg_backend_pid()", &[]).await.unwrap();
        let id: i32 = id.get(0);
        for way in 0..4 {
            let saga = saga(way);
            let (action, undo) = (key(&saga, Direction::Do), key(&saga, Direction::Undo));
            let tx = other.0.transaction().await.unwrap();
            let done = barrier::postgres::action(&tx, &action, async |_| Ok::<_, tokio_postgres::Error>(1));
            assert_eq!(done.await.unwrap(), Action::Done(1));
            let undone = barrier::postgres::compensation(&tx, &undo, async |_, _: i32| {
                Ok::<_, tokio_postgres::Error>(())
            });
            assert_eq!(undone.await.unwrap(), Compensation::Undone);
            let end = async {
                let waits = "select exists (select from pg_locks where pid = $1 and not granted)";
                while !watch.query_one(waits, &[&id]).await.unwrap().get::<_, bool>(0) {}
                tx.commit().await.unwrap();
            };
            let arrives = async {
                if way < 2 {
                    let barrier = barrier.clone();
                    let barrier = if way == 0 { barrier } else { barrier.without_look_up() };
                    let business = async |_: &Client| Ok::<_, tokio_postgres::Error>(2);
                    return barrier.action(&mut client, &action, business).await;
                }
                let tx = client.transaction().await?;
                let business = async |_: &Transaction<'_>| Ok::<_, tokio_postgres::Error>(2);
                let told = if way == 2 {
                    barrier::postgres::action(&tx, &action, business).await
                } else {
                    barrier.action_within(&tx, &action, business).await
                };
                tx.commit().await?;
                told
            };
            let (told, ()) = futures::join!(arrives, end);
            assert_eq!(told.unwrap(), Action::Refused, "{way}");
        }
    });
}

#[test]
fn installing_at_the_same_time_and_twice_is_harmless() {
    let Some(schema) = Schema::new("installing_at_the_same_time_and_twice_is_harmless") else { return };
    let clients: Vec<_> = (0..4).map(|_| schema.connect()).collect();
    schema.runtime.block_on(async {
        for installed in futures::future::join_all(clients.iter().map(barrier::postgres::install)).await {
            installed.unwrap();
        }
    });
}

#[test]
fn lookup_says_what_a_verifying_step_asks() {
    let Some(schema) = Schema::new("lookup_says_what_a_verifying_step_asks") else { return };
    let mut participant = Postgres::on(&schema);
    let mut told = |name: &str, deliveries: &[Delivery]| {
        let saga = saga(name);
        for (number, delivery) in deliveries.iter().enumerate() {
            let _ = block_on(participant.deliver(&saga, number as u32, *delivery));
        }
        block_on(barrier::postgres::lookup::<u32>(&participant.0, &key(&saga, Direction::Do))).unwrap()
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
    let mut participant = Postgres::on(&schema);
    for name in ["old", "older", "new", "half"] {
        let _ = block_on(participant.deliver(&saga(name), 0, DO));
        let _ = block_on(participant.deliver(&saga(name), 0, UNDO));
    }
    let age = "update mainstay_barrier set at = at - interval '91 days'
               where saga in ('old', 'older') or (saga = 'half' and phase = 'do')";
    block_on(participant.0.execute(age, &[])).unwrap();
    let mut pruned = Vec::new();
    while pruned.last() != Some(&0) {
        pruned.push(block_on(barrier::postgres::prune(&participant.0, Retention::default(), 3)).unwrap());
    }
    assert_eq!(pruned, [3, 1, 0]);
    assert_eq!(participant.rows(), 4);
    // Were it forgotten, it would be done.
    assert_eq!(block_on(participant.deliver(&saga("half"), 9, DO)), Answer::Action(Action::Refused));
    let forever = Retention { longest_saga: Duration::MAX, longest_delivery: Duration::MAX };
    assert_eq!(block_on(barrier::postgres::prune(&participant.0, forever, usize::MAX)).unwrap(), 0);
}
