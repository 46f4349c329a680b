//! Work that ends the transaction it was given by SQL of its own: nobody says that it has not happened, and no restart forgets it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{
    Failure, Orchestrator, Order, Outcome, Output, Payload, Phase, Record, Saga, Transact,
    journal::{Journal, Refusal},
    postgres::{InTransaction, Postgres},
};

use crate::{
    place::with_place,
    transact::{Shop, begun, kinds, stored, working},
    work::{Server, with_server},
};

/// What work may do to its transaction, and whether its row is there afterwards.
const ENDS: [(&str, i64); 6] = [
    ("COMMIT", 1),
    ("ROLLBACK", 0),
    ("COMMIT; BEGIN", 1),
    ("COMMIT; BEGIN; SAVEPOINT mainstay_work", 1),
    ("ROLLBACK; BEGIN; SAVEPOINT mainstay_work", 0),
    ("COMMIT; BEGIN; SAVEPOINT mainstay_work; SELECT txid_current()", 1),
];

/// What it says behind that.
#[derive(Debug, Clone, Copy)]
enum Says {
    Done,
    Rejected,
    Error,
    Panic,
}

impl Server {
    /// Work that books, ends its transaction so, and then says something.
    fn ends(&self, text: &'static str, says: Says) -> Transact<String, InTransaction> {
        self.then(move |tx| {
            Box::pin(async move {
                tx.batch_execute(text).await?;
                match says {
                    Says::Done => Ok(()),
                    Says::Rejected => Err(Failure::rejected("sold out")),
                    Says::Error => Ok(tx.batch_execute("SELECT 1 / 0").await?),
                    // Without the report of a panic that nobody has planned.
                    Says::Panic => std::panic::resume_unwind(Box::new("planned")),
                }
            })
        })
    }
}

/// Whatever it says then, it is not known what it did, and that is what the journal answers.
#[test]
fn it_is_never_taken_for_rolled_back() {
    with_server("ended_it_is_never_taken_for_rolled_back", |server| async move {
        let mut rows = 0;
        for (n, (text, row)) in ENDS.into_iter().enumerate() {
            for says in [Says::Done, Says::Rejected, Says::Error, Says::Panic] {
                let name = format!("a{n}{says:?}");
                let (mut pen, head) = begun(&server.journal, &name).await;
                let append = working(&mut pen, &head, server.ends(text, says));
                let answers = server.journal.append(vec![append]).await.unwrap();
                assert_eq!(answers, [Err(Refusal::Ended)], "{text}, {says:?}");
                rows += row;
                assert_eq!(server.rows().await, rows, "{text}, {says:?}");
                assert_eq!(stored(&server.journal, &name).await.head.len, 1, "{text}, {says:?}");
            }
        }
        // Savepoints of its own are its business.
        let own =
            "SAVEPOINT own; DELETE FROM @.booking; ROLLBACK TO own; RELEASE own; ROLLBACK TO mainstay_work";
        let (mut pen, head) = begun(&server.journal, "own").await;
        let append = working(&mut pen, &head, server.run(own));
        assert_eq!(server.journal.append(vec![append]).await.unwrap(), [Ok(())]);
        assert_eq!(server.rows().await, rows);
    });
}

/// Where the connection is of no use any more, the server is asked over another one what became of the transaction.
#[test]
fn what_was_committed_is_found_out_behind_a_lost_connection() {
    with_place("ended_what_was_committed_is_found_out", |place| async move {
        let patience = Duration::from_secs(1);
        let journal = Postgres::connect(&place.url).schema(&place.schema).patience(patience).await.unwrap();
        let server = Server::new(place, journal).await;
        let lost = "SELECT pg_terminate_backend(pg_backend_pid())";
        let hangs = |text: &'static str| {
            server.then(move |tx| {
                Box::pin(async move {
                    tx.batch_execute(text).await?;
                    std::future::pending().await
                })
            })
        };
        let cases = [
            ("loses it", server.run(lost), None),
            ("commits, and loses it", server.run(&format!("COMMIT; {lost}")), Some(1)),
            ("hangs", hangs("SELECT 1"), None),
            ("commits, and hangs", hangs("COMMIT"), Some(1)),
            // The server goes on with what it was sent when the client has long gone.
            (
                "commits when nobody waits any more",
                server.run("SELECT pg_sleep(0.7); SELECT pg_sleep(0.7); COMMIT"),
                Some(1),
            ),
        ];
        let mut rows = 0;
        for (n, (what, work, committed)) in cases.into_iter().enumerate() {
            let (mut pen, head) = begun(&server.journal, &format!("a{n}")).await;
            let answers = server.journal.append(vec![working(&mut pen, &head, work)]).await.unwrap();
            match committed {
                Some(row) => {
                    assert_eq!(answers, [Err(Refusal::Ended)], "{what}");
                    rows += row;
                }
                None => assert!(matches!(&answers[..], [Err(Refusal::Failed { .. })]), "{what}: {answers:?}"),
            }
            assert_eq!(server.rows().await, rows, "{what}");
        }
    });
}

/// One step, which can be undone, and how often each way was gone.
fn order(
    server: &Server,
    text: &'static str,
    says: Says,
) -> (Saga<u32, Output<String>>, [Arc<AtomicU32>; 2]) {
    let [done, undone] = [Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0))];
    let mut order = Saga::define::<u32>("order", 1);
    let (act, undo, acts, undoes) = (server.clone(), server.clone(), done.clone(), undone.clone());
    let booked = order
        .step("book", (), move |_, ()| {
            acts.fetch_add(1, SeqCst);
            let work = act.ends(text, says);
            async move { Ok(work) }
        })
        .compensate_in_transaction(move |_, (), booked| {
            assert_eq!(booked.as_deref(), Some("by hand"));
            undoes.fetch_add(1, SeqCst);
            let work = undo.unbook();
            async move { Ok(work) }
        });
    (order.build(booked).unwrap(), [done, undone])
}

async fn open(server: &Server, saga: &Saga<u32, Output<String>>) -> Orchestrator {
    let opening = Orchestrator::open(server.journal()).register(saga).poll(Duration::from_millis(20));
    opening.start().await.unwrap()
}

/// It waits for a person: over restarts, whatever is asked of it meanwhile, and when it is turned round.
#[test]
fn its_saga_waits_for_a_person_who_knows() {
    with_server("ended_its_saga_waits_for_a_person", |server| async move {
        for (n, (text, rows)) in [ENDS[0], ENDS[1]].into_iter().enumerate() {
            for says in [Says::Done, Says::Rejected, Says::Error] {
                let (saga, [done, undone]) = order(&server, text, says);
                let name = &format!("a{n}{says:?}");
                let orders = open(&server, &saga).await;
                let outcome = orders.run(&saga, name, &1).await.unwrap();
                let Outcome::Held { phase: Some(Phase::Parked), why } = &outcome else {
                    panic!("{text}, {says:?}: {outcome:?}")
                };
                assert!(why.starts_with("book: ") && why.contains("ended the transaction"), "{why}");
                assert_eq!(orders.blocked().await.unwrap(), []);
                orders.shutdown(Duration::from_secs(5)).await;

                // Nobody who comes later believes that it may be done again, or that nothing is there to be undone.
                let orders = open(&server, &saga).await;
                orders.recovered().await;
                orders.cancel(name, "no more").await.unwrap();
                while kinds(&server.journal, name).await.len() < 4 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(kinds(&server.journal, name).await, ["begun", "parked", "ordered", "aborted"]);
                orders.shutdown(Duration::from_secs(5)).await;
                let orders = open(&server, &saga).await;
                orders.recovered().await;
                let head = stored(&server.journal, name).await.head;
                assert_eq!(head.phase, Phase::Parked, "{}", head.note);
                assert!(head.note.contains("book: nobody knows"), "{}", head.note);
                assert_eq!((done.load(SeqCst), undone.load(SeqCst)), (1, 0), "{text}, {says:?}");
                assert_eq!(server.rows().await, rows);

                let step = "book".to_owned();
                let (order, kind) = match rows {
                    1 => (Order::Complete { step, output: Payload::encode("by hand").unwrap() }, 1),
                    _ => (Order::Reject { step, reason: "not there".to_owned() }, 0),
                };
                orders.order(name, "ann", order).await.unwrap();
                let outcome = orders.handle(&saga, name).unwrap().finished().await.unwrap();
                assert!(matches!(outcome, Outcome::Compensated(_)), "{text}, {says:?}: {outcome:?}");
                assert_eq!((done.load(SeqCst), undone.load(SeqCst)), (1, kind), "{text}, {says:?}");
                assert_eq!(server.rows().await, 0, "{text}, {says:?}");
                orders.shutdown(Duration::from_secs(5)).await;
            }
        }
    });
}

/// The same for what undoes a step.
#[test]
fn a_compensation_that_ends_its_transaction_waits_for_a_person_too() {
    with_server("ended_a_compensation_that_ends", |server| async move {
        let mut order = Saga::define::<u32>("order", 1);
        let (act, undo) = (server.clone(), server.clone());
        let booked = order
            .step("book", (), move |_, ()| {
                let work = act.run("SELECT 1");
                async move { Ok(work) }
            })
            .compensate_in_transaction(move |_, (), _| {
                let delete = undo.sql("DELETE FROM @.booking; COMMIT; SELECT 1 / 0");
                async move {
                    Ok(mainstay::saga::postgres::in_transaction(move |tx| {
                        Box::pin(async move { Ok(tx.batch_execute(&delete).await?) })
                    }))
                }
            });
        let refuse = |_, _| async { Err::<String, _>(Failure::rejected("no")) };
        let last = order.step("refuse", booked, refuse).without_compensation("nothing");
        let saga = order.build(last).unwrap();
        let orders = open(&server, &saga).await;
        let outcome = orders.run(&saga, "a", &1).await.unwrap();
        assert!(matches!(outcome, Outcome::Held { phase: Some(Phase::Parked), .. }), "{outcome:?}");
        assert_eq!(kinds(&server.journal, "a").await, ["begun", "completed", "aborted", "parked"]);
        orders.shutdown(Duration::from_secs(5)).await;
        let orders = open(&server, &saga).await;
        orders.recovered().await;
        let undone = Order::Undone { step: "book".to_owned(), reason: "the row is gone".to_owned() };
        orders.order("a", "ann", undone).await.unwrap();
        let outcome = orders.handle(&saga, "a").unwrap().finished().await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
        let last = stored(&server.journal, "a").await.entries.pop().unwrap().record().unwrap();
        assert!(matches!(last, Record::Ordered { .. }), "{last:?}");
        assert_eq!(server.rows().await, 0);
        orders.shutdown(Duration::from_secs(5)).await;
    });
}
