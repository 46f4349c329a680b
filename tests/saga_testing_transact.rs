//! The test kit with steps in the journal's transaction, on sagas that hold and on planted bugs that it has to find.
#![cfg(feature = "sqlite")]

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use mainstay::{
    saga::{
        Failure, Inputs, Output, Phase, Saga, Step, Transact,
        sqlite::{
            InTransaction, in_transaction,
            rusqlite::{self, Connection, OpenFlags, Transaction},
        },
    },
    testing::{self, Bug, Check, Failed, Ledger, Seen, Skew},
};

const BOOK: &str = "INSERT INTO booking VALUES (?1)";
const UNBOOK: &str = "DELETE FROM booking WHERE step = ?1";

fn shop() -> rusqlite::Result<Connection> {
    let shop = Connection::open_in_memory()?;
    shop.execute_batch("CREATE TABLE booking (step TEXT NOT NULL)")?;
    Ok(shop)
}

fn count(shop: &Connection, step: &str) -> rusqlite::Result<u32> {
    shop.query_row("SELECT count(*) FROM booking WHERE step = ?1", [step], |row| row.get(0))
}

/// Each of these steps has booked exactly once, or has left nothing.
fn booked(
    steps: &'static [&str],
) -> impl Fn(&Connection, &Seen) -> Result<(), Box<dyn Error>> + Send + Sync + 'static {
    move |shop, seen| {
        for step in steps {
            let found = count(shop, step)?;
            if seen.stands(step).is_some_and(|stands| found != u32::from(stands)) {
                return Err(format!("{step} has booked {found} times").into());
            }
        }
        Ok(())
    }
}

fn nobody_looks(_: &Connection, _: &Seen) -> Result<(), Box<dyn Error>> {
    Ok(())
}

/// Work that runs one statement.
fn sql(sql: &'static str, step: &Step<u32>) -> Transact<u32, InTransaction> {
    let (name, output) = (step.key().step().to_owned(), *step.input());
    in_transaction(move |tx| {
        tx.execute(sql, [name])?;
        Ok(output)
    })
}

async fn book(step: Step<u32>, output: u32) -> Result<Transact<u32, InTransaction>, Failure> {
    assert_eq!(output, 1);
    Ok(sql(BOOK, &step))
}

async fn book_first(step: Step<u32>, (): ()) -> Result<Transact<u32, InTransaction>, Failure> {
    Ok(sql(BOOK, &step))
}

fn unbook(step: &Step<u32>) -> Transact<(), InTransaction> {
    let name = step.key().step().to_owned();
    in_transaction(move |tx| Ok(tx.execute(UNBOOK, [name]).map(drop)?))
}

/// Two steps in the transaction with one between them that is not, a pivot, and one that has to succeed.
fn order(ledger: &Ledger) -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("order", 1);
    let undo = |step, (), _| async move { Ok(unbook(&step)) };
    let reserved = saga.step("reserve", (), book_first).compensate_in_transaction(undo);
    let (act, undo) = (ledger.clone(), ledger.clone());
    let charged = saga
        .step("charge", reserved, move |step: Step<u32>, _| {
            let done = act.action(step.key(), || 1);
            async move { done }
        })
        .compensate(move |step, _, _| {
            undo.undo(step.key());
            async { Ok(()) }
        });
    let packed = saga
        .step("pack", charged, book)
        .compensate_in_transaction(|step, _, _| async move { Ok(unbook(&step)) });
    let confirmed = saga.pivot("confirm", packed, book).add();
    let sent = saga.retriable("send", confirmed, book).add();
    saga.build(sent).unwrap()
}

const ORDER: &[&str] = &["reserve", "pack", "confirm", "send"];

/// Two in the transaction at once, and what follows from both.
fn branches(_: &Ledger) -> Saga<u32> {
    let mut saga = Saga::define::<u32>("branches", 1);
    let undo = |step, (), _| async move { Ok(unbook(&step)) };
    let flight = saga.step("flight", (), book_first).compensate_in_transaction(undo);
    let hotel = saga.step("hotel", (), book_first).compensate_in_transaction(undo);
    saga.step("both", (flight, hotel), |step, _| async move { Ok(sql(BOOK, &step)) })
        .compensate_in_transaction(|step, _, _| async move { Ok(unbook(&step)) });
    saga.build(()).unwrap()
}

const BRANCHES: &[&str] = &["flight", "hotel", "both"];

async fn holds<I, R>(check: Check<I, R>) -> usize
where
    I: serde::Serialize + serde::de::DeserializeOwned + Send + Sync + 'static,
    R: Inputs,
{
    match check.all().await {
        Ok(summary) => summary.cases,
        Err(failed) => panic!("{failed}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_with_every_class_in_the_transaction_holds_in_every_case() {
    let cases = holds(Check::new(1, order).database(shop, booked(ORDER))).await;
    println!("{cases} cases");
    assert!(cases > 1_000, "{cases}");
}

#[tokio::test(start_paused = true)]
async fn branches_in_the_transaction_hold_in_every_case() {
    for skew in [Skew::Even, Skew::Ascending, Skew::Descending] {
        let check = Check::new(1, branches).database(shop, booked(BRANCHES)).skew(skew);
        println!("{} cases", holds(check).await);
    }
}

/// Only one of action and compensation is in the transaction; the other is with the ledger.
#[tokio::test(start_paused = true)]
async fn half_a_step_in_the_transaction_holds_in_every_case() {
    let build = |ledger: &Ledger| {
        let (act, mut saga) = (ledger.clone(), Saga::define::<u32>("half", 1));
        let seen = saga.read_only("look", (), |step, ()| async move { Ok(sql(BOOK, &step)) }).add();
        let first = saga
            .step("first", seen, book)
            .compensate(|step, _, _| async move { Err(Failure::unknown(step.key())) });
        let second = saga
            .step("second", first, move |step: Step<u32>, _| {
                let done = act.action(step.key(), || 1);
                async move { done }
            })
            .compensate_in_transaction(|step, _, _| async move { Ok(unbook(&step)) });
        saga.build(second).unwrap()
    };
    // What `first` did stays, since its compensation fails for ever.
    println!("{} cases", holds(Check::new(1, build).database(shop, booked(&["look", "first"]))).await);
}

/// The order, and how often its first work was begun.
fn watched() -> (Check<u32, Output<u32>>, Arc<AtomicU32>) {
    let begun = Arc::new(AtomicU32::new(0));
    let counter = begun.clone();
    let build = move |_: &Ledger| {
        let mut saga = Saga::define::<u32>("watched", 1);
        let counter = counter.clone();
        let first = saga
            .step("first", (), move |step: Step<u32>, ()| {
                let (counter, name) = (counter.clone(), step.key().step().to_owned());
                async move {
                    Ok(in_transaction(move |tx| {
                        counter.fetch_add(1, SeqCst);
                        tx.execute(BOOK, [name])?;
                        Ok(1)
                    }))
                }
            })
            .compensate_in_transaction(|step, (), _| async move { Ok(unbook(&step)) });
        let second = saga.retriable("second", first, book).add();
        saga.build(second).unwrap()
    };
    (Check::new(1, build).database(shop, booked(&["first", "second"])), begun)
}

/// Where exactly the work is when something goes wrong, by how often it was begun. Append 0 begins the saga, 1 records the first step.
#[tokio::test(start_paused = true)]
async fn work_and_record_are_there_together_or_not_at_all() {
    let (check, begun) = watched();
    for (case, times, phase) in [
        ("happy", 1, Phase::Completed),
        ("crash(append:1:before)", 1, Phase::Completed),
        // Both were written, and both are lost.
        ("unsynced(append:1)", 2, Phase::Completed),
        // Both are there, and nobody has heard of it.
        ("crash(append:1:after)", 1, Phase::Completed),
        ("store(append:1:before)", 1, Phase::Completed),
        ("store(append:1:after)", 1, Phase::Completed),
        ("twice()", 1, Phase::Completed),
        ("late(first)", 0, Phase::Compensated),
        // It fails behind what it has done.
        ("lose(first:error:once)", 2, Phase::Completed),
        ("lose(first:panic:always)", 3, Phase::Compensated),
        // Of the two owners only one does it.
        ("pause(append:1:before)", 1, Phase::Completed),
        ("pause(append:1:after)", 1, Phase::Completed),
    ] {
        begun.store(0, SeqCst);
        let seen = check.replay(case).await.unwrap_or_else(|failed| panic!("{failed}"));
        assert_eq!((begun.load(SeqCst), seen.phase), (times, Some(phase)), "{case}");
    }
}

fn has(failed: &Failed, invariant: &str) -> bool {
    failed.violations.iter().any(|violation| violation.invariant == invariant)
}

/// Each planted bug of the store is found, by the kit's own rows and by what the user looks at.
#[tokio::test(start_paused = true)]
async fn every_planted_bug_is_found() {
    for bug in [Bug::WorkApart, Bug::WorkUnfenced, Bug::WorkUnsynced, Bug::WorkTwice] {
        let failed = Check::new(1, order).database(shop, nobody_looks).plant(bug).all().await;
        let failed = failed.expect_err(&format!("{bug:?}"));
        println!("{bug:?}: {failed}");
        assert!(
            has(&failed, "I2") && failed.problem.is_none(),
            "{bug:?} is not seen as what it is: {failed}"
        );
        let looked = Check::new(1, order).database(shop, booked(ORDER)).plant(bug);
        let again = looked.replay(&failed.case.to_string()).await.expect_err("it is replayed by its name");
        let problem = again.problem.as_deref().unwrap_or_default();
        assert!(problem.contains("has booked"), "{bug:?} is not seen in the rows: {again}");
        // Nothing but the bug is found there.
        let sound = Check::new(1, order).database(shop, booked(ORDER));
        sound.replay(&failed.case.to_string()).await.unwrap_or_else(|failed| panic!("{failed}"));
    }
    // The others still are.
    for (bug, invariants) in [
        (Bug::SkipCompensation, &["I2", "I4"][..]),
        (Bug::KeyOfAttempt, &["I5"]),
        (Bug::AcknowledgeBeforeSync, &["I4", "I7"]),
    ] {
        let failed = Check::new(1, order).database(shop, nobody_looks).plant(bug).all().await;
        let failed = failed.expect_err(&format!("{bug:?}"));
        println!("{bug:?}: {failed}");
        assert!(invariants.iter().any(|invariant| has(&failed, invariant)), "{bug:?}: {failed}");
    }
}

/// A step with an effect beside the transaction that it is given.
#[tokio::test(start_paused = true)]
async fn an_effect_beside_the_transaction_is_found() {
    fn open() -> rusqlite::Result<Connection> {
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags("file:mainstay-beside?mode=memory&cache=shared", flags)
    }
    let make = || {
        let shop = open()?;
        shop.execute_batch("CREATE TABLE booking (step TEXT NOT NULL)")?;
        Ok(shop)
    };
    let build = |_: &Ledger| {
        let mut saga = Saga::define::<u32>("beside", 1);
        let booked = saga
            .step("book", (), |step: Step<u32>, ()| async move {
                open()?.execute(BOOK, [step.key().step()])?;
                Ok(in_transaction(|_| Ok(1)))
            })
            .compensate_in_transaction(|step, (), _: Option<u32>| async move { Ok(unbook(&step)) });
        saga.build(booked).unwrap()
    };
    let failed = Check::new(1, build).database(make, booked(&["book"])).all().await.unwrap_err();
    println!("{failed}");
    assert!(failed.violations.is_empty(), "the store has kept its word: {failed}");
    assert!(failed.problem.is_some_and(|problem| problem.contains("book has booked")));
}

/// What work does to the whole transaction, and what shows only when it is committed, makes the step fail, and leaves nothing.
#[tokio::test(start_paused = true)]
async fn work_that_cannot_be_committed_has_failed() {
    const TABLES: &str = "PRAGMA foreign_keys = ON;
         CREATE TABLE only (what TEXT PRIMARY KEY, of TEXT REFERENCES only DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO only (what) VALUES ('there')";
    let make = || {
        let shop = shop()?;
        shop.execute_batch(TABLES)?;
        Ok(shop)
    };
    for spoil in [
        "INSERT OR ROLLBACK INTO only (what) VALUES ('there')",
        "INSERT INTO only VALUES ('here', 'nowhere')",
        "COMMIT",
        "PRAGMA query_only = ON",
    ] {
        let build = move |_: &Ledger| {
            let mut saga = Saga::define::<u32>("spoilt", 1);
            let first = saga
                .step("first", (), book_first)
                .compensate_in_transaction(|step, (), _| async move { Ok(unbook(&step)) });
            let spoilt = saga
                .step("spoilt", first, move |step: Step<u32>, _| async move {
                    Ok(in_transaction(move |tx| {
                        tx.execute(BOOK, [step.key().step()])?;
                        tx.execute(spoil, [])?;
                        Ok(1)
                    }))
                })
                .compensate(|_, _, _: Option<u32>| async { panic!("what has not happened is not undone") });
            saga.build(spoilt).unwrap()
        };
        let check = Check::new(1, build).database(make, booked(&["first", "spoilt"]));
        for case in ["happy", "unsynced(append:2)", "store(append:2:after)", "pause(append:2:before)"] {
            let seen = check.replay(case).await.unwrap_or_else(|failed| panic!("{spoil}: {failed}"));
            let comes_to = (seen.phase, seen.stands("spoilt"));
            assert_eq!(comes_to, (Some(Phase::Compensated), Some(false)), "{spoil}, {case}");
        }
    }
}

/// A compensation that leaves something is found in the rows, and nowhere else.
#[tokio::test(start_paused = true)]
async fn a_compensation_that_undoes_too_little_is_found() {
    let build = |_: &Ledger| {
        let mut saga = Saga::define::<u32>("little", 1);
        let twice = |tx: &Transaction<'_>| -> Result<u32, Failure> {
            tx.execute(BOOK, ["book"])?;
            tx.execute(BOOK, ["left over"])?;
            Ok(1)
        };
        let booked = saga
            .step("book", (), move |_, ()| async move { Ok(in_transaction(twice)) })
            .compensate_in_transaction(|step, (), _: Option<u32>| async move { Ok(unbook(&step)) });
        saga.retriable("last", booked, book).add();
        saga.build(booked).unwrap()
    };
    let audit = |shop: &Connection, seen: &Seen| match (seen.stands("book"), count(shop, "left over")?) {
        (Some(false), 1..) => Err("left over".into()),
        _ => Ok(()),
    };
    let failed = Check::new(1, build).database(shop, audit).all().await.unwrap_err();
    assert_eq!((failed.violations.len(), failed.problem.as_deref()), (0, Some("left over")), "{failed}");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "`Check::database` gives it one")]
async fn without_a_database_it_is_said_what_is_missing() {
    testing::check(1, branches).await;
}
