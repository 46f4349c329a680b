//! Transactional steps: what the suite of `support/transact.rs` wants, and what breaks between a transaction and its server.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use mainstay::{
    Retry,
    saga::{
        Failure, Orchestrator, Outcome, Saga, Transact,
        journal::{Job, Journal, Refusal},
        postgres::{self, InTransaction, Postgres, TRANSACTIONS, Working, tokio_postgres::Transaction},
    },
};

use crate::{
    faults::{CUTS, behind_proxy},
    place::{Place, with_place},
    proxy::{Cut, Message},
    transact::{self, How, Shop, begun, end, kinds, stored, working},
};

#[derive(Clone)]
pub(super) struct Server {
    pub(super) place: Place,
    pub(super) journal: Postgres,
}

impl Server {
    pub(super) async fn new(place: Place, journal: Postgres) -> Self {
        let table = format!(
            "CREATE TABLE \"{0}\".booking (what text NOT NULL);
             CREATE TABLE \"{0}\".only (what text PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)",
            place.schema
        );
        place.client().await.batch_execute(&table).await.unwrap();
        Server { place, journal }
    }

    /// Work that books and then does something with the transaction.
    pub(super) fn then<F>(&self, more: F) -> Transact<String, InTransaction>
    where
        F: for<'a> FnOnce(&'a Transaction<'a>) -> Working<'a, ()> + Send + 'static,
    {
        let insert = self.sql("INSERT INTO @.booking VALUES ('seat')");
        postgres::in_transaction(move |tx| {
            Box::pin(async move {
                tx.execute(&insert, &[]).await?;
                more(tx).await?;
                end(How::Fine)
            })
        })
    }

    pub(super) fn run(&self, text: &str) -> Transact<String, InTransaction> {
        let text = self.sql(text);
        self.then(move |tx| Box::pin(async move { Ok(tx.batch_execute(&text).await?) }))
    }

    pub(super) fn sql(&self, text: &str) -> String {
        text.replace('@', &format!("\"{}\"", self.place.schema))
    }
}

impl Shop for Server {
    type Job = InTransaction;
    type Journal = Postgres;

    fn journal(&self) -> Postgres {
        self.journal.clone()
    }

    fn book(&self, how: How) -> Transact<String, InTransaction> {
        let insert = self.sql("INSERT INTO @.booking VALUES ");
        postgres::in_transaction(move |tx| {
            Box::pin(async move {
                tx.execute(&format!("{insert} ('seat')"), &[]).await?;
                if how == How::Error {
                    tx.execute(&format!("{insert} (NULL)"), &[]).await?;
                }
                end(how)
            })
        })
    }

    fn book_unreadably(&self) -> Transact<f64, InTransaction> {
        let insert = self.sql("INSERT INTO @.booking VALUES ('seat')");
        postgres::in_transaction(move |tx| {
            Box::pin(async move {
                tx.execute(&insert, &[]).await?;
                Ok(f64::NAN)
            })
        })
    }

    fn unbook(&self) -> Transact<(), InTransaction> {
        let delete = self.sql("DELETE FROM @.booking WHERE ctid = (SELECT max(ctid) FROM @.booking)");
        postgres::in_transaction(move |tx| {
            Box::pin(async move {
                tx.execute(&delete, &[]).await?;
                Ok(())
            })
        })
    }

    async fn rows(&self) -> i64 {
        self.place.count("booking").await
    }
}

pub(super) fn with_server<F>(test: &str, body: impl FnOnce(Server) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    with_place(test, |place| async move {
        let journal = place.journal().await;
        body(Server::new(place, journal).await).await;
    });
}

macro_rules! suite {
    ($($test:ident)+) => {
        $(#[test]
        fn $test() {
            with_server(concat!("work_", stringify!($test)), |server| transact::$test(server));
        })+
    };
}

suite! {
    it_is_done_and_recorded_once
    what_is_rejected_leaves_nothing
    what_cannot_be_read_again_leaves_nothing
    what_fails_is_tried_again_and_then_given_up
    an_owner_of_before_does_no_work
    work_of_one_batch_fails_alone
    what_was_turned_round_does_no_work
    who_takes_over_knows_that_nothing_has_happened
}

struct Elsewhere;

impl Job for Elsewhere {
    const STORE: &'static str = "a drawer";
}

#[test]
fn work_for_another_store_is_refused() {
    with_server("work_for_another_store_is_refused", |server| async move {
        let (pen, head) = begun(&server.journal, "a").await;
        let append = move || working(&mut pen.clone(), &head, Transact::<String, _>::new(Elsewhere));
        transact::work_for_another_store_is_refused(server, append).await;
    });
}

#[test]
fn a_lost_answer_of_the_commit_is_found_out() {
    with_place("a_lost_answer_of_the_commit_is_found_out", |place| async move {
        let (proxy, journal) = behind_proxy(&place, Duration::from_secs(10)).await;
        let server = Server::new(place, journal).await;
        let (mut happened, mut rows) = (0, 0);
        for cut in CUTS {
            let name = format!("a{happened}");
            let (mut pen, head) = begun(&server.journal, &name).await;
            let append = working(&mut pen, &head, server.book(How::Fine));
            let work = append.work.clone().unwrap();
            proxy.cut(Message::Commit, cut);
            let answers = server.journal.append(vec![append]).await.unwrap();
            happened += 1;
            assert_eq!(proxy.happened(), happened, "{cut:?}");
            let committed = answers == [Ok(())];
            assert!(
                committed || matches!(&answers[..], [Err(Refusal::Failed { .. })]),
                "{cut:?}: {answers:?}"
            );
            assert!(cut != Cut::Before || !committed, "{cut:?}");
            assert!(cut != Cut::After || committed, "{cut:?}");
            rows += i64::from(committed);
            // What is answered is so, and stays so.
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(server.rows().await, rows, "{cut:?}");
            let stored = stored(&server.journal, &name).await;
            assert_eq!(stored.head.len, 1 + u64::from(committed), "{cut:?}");
            assert!(work.take::<InTransaction>().is_err(), "it can be begun a second time");
        }
    });
}

/// The same for whoever started the saga: it is done once, and what came of it is what is recorded.
#[test]
fn a_saga_goes_on_behind_a_lost_commit() {
    with_place("a_saga_goes_on_behind_a_lost_commit", |place| async move {
        let (proxy, journal) = behind_proxy(&place, Duration::from_secs(10)).await;
        let server = Server::new(place, journal).await;
        let mut order = Saga::define::<u32>("order", 1);
        let shop = server.clone();
        let booked = order
            .step("book", (), move |_, ()| {
                let work = shop.book(How::Fine);
                async move { Ok(work) }
            })
            .without_compensation("a test");
        let saga = order.build(booked).unwrap();
        let orders = Orchestrator::open(server.journal()).register(&saga).start().await.unwrap();
        for (n, cut) in CUTS.into_iter().enumerate() {
            proxy.cut(Message::Commit, cut);
            let outcome = orders.run(&saga, &format!("a{n}"), &1).await.unwrap();
            assert_eq!(outcome, Outcome::Completed("booked".to_owned()), "{cut:?}");
            assert_eq!(proxy.happened(), n + 1);
            assert_eq!(server.rows().await, n as i64 + 1, "{cut:?}");
            assert_eq!(kinds(&server.journal, &format!("a{n}")).await, ["begun", "completed"]);
        }
        orders.shutdown(Duration::from_secs(5)).await;
    });
}

#[test]
fn work_that_hangs_holds_up_nobody_and_comes_to_an_end() {
    with_place("work_that_hangs_holds_up_nobody", |place| async move {
        let patience = Duration::from_secs(2);
        let journal = Postgres::connect(&place.url).schema(&place.schema).patience(patience).await.unwrap();
        let server = Server::new(place, journal).await;
        let mut hanging = tokio::task::JoinSet::new();
        // One that the server hangs in, one that the client hangs in, and more than there are connections.
        for n in 0..=TRANSACTIONS {
            let (mut pen, head) = begun(&server.journal, &format!("h{n}")).await;
            let work = match n % 2 {
                0 => server.run("SELECT pg_sleep(60)"),
                _ => server.then(|_| Box::pin(std::future::pending())),
            };
            let (journal, append) = (server.journal.clone(), working(&mut pen, &head, work));
            hanging.spawn(async move { journal.append(vec![append]).await.unwrap() });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let began = Instant::now();
        let (mut plain, _) = begun(&server.journal, "plain").await;
        assert_eq!(server.journal.append(vec![plain.step("x")]).await.unwrap(), [Ok(())]);
        // Nor does a letter for one of the sagas.
        let order = mainstay::saga::Order::Cancel { reason: "slow".into() };
        let letter = mainstay::saga::journal::Request::order(transact::id("h0"), "me", order);
        server.journal.request(letter).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        while let Some(answers) = hanging.join_next().await {
            let answers = answers.unwrap();
            assert!(matches!(&answers[..], [Err(Refusal::Failed { .. })]), "{answers:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        assert_eq!(server.rows().await, 0);
        let (mut pen, head) = begun(&server.journal, "after").await;
        let append = working(&mut pen, &head, server.book(How::Fine));
        assert_eq!(server.journal.append(vec![append]).await.unwrap(), [Ok(())]);
        // The server has let go of the rows of those whose connection was cut.
        tokio::time::sleep(patience).await;
        let (name, row) = ("h1", stored(&server.journal, "h1").await);
        let mut pen = mainstay::saga::conformance::Pen::resume(&row.head, crate::place::at());
        assert_eq!(server.journal.append(vec![pen.step(name)]).await.unwrap(), [Ok(())]);
    });
}

/// A saga's transaction takes its time, and others are recorded meanwhile, by the same orchestrator.
#[test]
fn other_sagas_go_on_beside_a_transaction() {
    with_server("other_sagas_go_on_beside_a_transaction", |server| async move {
        let (began, mut beginning) = tokio::sync::mpsc::unbounded_channel();
        let mut order = Saga::define::<bool>("order", 1);
        let shop = server.clone();
        order
            .step("book", (), move |step, ()| {
                let (go, gate) = tokio::sync::oneshot::channel::<()>();
                let began = began.clone();
                let work = shop.then(move |_| {
                    Box::pin(async move {
                        if *step.input() {
                            began.send(go).unwrap();
                            gate.await?;
                        }
                        Ok(())
                    })
                });
                async move { Ok(work) }
            })
            .without_compensation("a test");
        let saga = order.build(()).unwrap();
        let orders = Orchestrator::open(server.journal()).register(&saga).start().await.unwrap();
        orders.start(&saga, "slow", &true).await.unwrap();
        let go = beginning.recv().await.unwrap();
        assert_eq!(orders.run(&saga, "quick", &false).await.unwrap(), Outcome::Completed(()));
        assert_eq!(kinds(&server.journal(), "slow").await, ["begun"]);
        assert_eq!(server.rows().await, 1);
        go.send(()).unwrap();
        assert_eq!(orders.run(&saga, "slow", &true).await.unwrap(), Outcome::Completed(()));
        assert_eq!(server.rows().await, 2);
        orders.shutdown(Duration::from_secs(5)).await;
    });
}

/// What was under way when its attempt was given up counts, whatever the step's policies have begun or decided since.
#[test]
fn a_transaction_that_outlives_its_attempt_counts() {
    with_server("a_transaction_that_outlives_its_attempt", |server| async move {
        for (n, attempts) in [2, 50].into_iter().enumerate() {
            let mut order = Saga::define::<u32>("order", 1);
            let shop = server.clone();
            let retry =
                Retry::constant(Duration::from_millis(1)).max_attempts(attempts).no_budget().idempotent();
            let stack = mainstay::stack("book").retry(retry).timeout(Duration::from_millis(100));
            let booked = order
                .step("book", (), move |_, ()| {
                    let work = shop.run("SELECT pg_sleep(0.5)");
                    async move { Ok(work) }
                })
                .through(stack.build().unwrap())
                .without_compensation("a test");
            // The saga goes on, so that what its policies say is heard.
            order.step("next", booked, |_, _| async { Ok(()) }).without_compensation("a test");
            let saga = order.build(()).unwrap();
            let orders = Orchestrator::open(server.journal()).register(&saga).start().await.unwrap();
            let name = format!("a{n}");
            assert_eq!(orders.run(&saga, &name, &1).await.unwrap(), Outcome::Completed(()), "{attempts}");
            assert_eq!(server.rows().await, n as i64 + 1, "{attempts}");
            assert_eq!(
                kinds(&server.journal(), &name).await,
                ["begun", "completed", "completed"],
                "{attempts}"
            );
            orders.shutdown(Duration::from_secs(5)).await;
        }
    });
}

#[test]
fn a_constraint_that_is_looked_at_last_rolls_it_back() {
    with_server("a_constraint_that_is_looked_at_last", |server| async move {
        let (mut pen, head) = begun(&server.journal, "a").await;
        let twice = server.run("INSERT INTO @.only VALUES ('a'); INSERT INTO @.only VALUES ('a')");
        let answers = server.journal.append(vec![working(&mut pen, &head, twice)]).await.unwrap();
        assert!(matches!(&answers[..], [Err(Refusal::Failed { .. })]), "{answers:?}");
        assert_eq!((server.rows().await, stored(&server.journal, "a").await.head.len), (0, 1));
    });
}

/// An error that is passed over has spoilt the transaction all the same.
#[test]
fn an_error_that_is_passed_over_rolls_it_back() {
    with_server("an_error_that_is_passed_over", |server| async move {
        let (mut pen, head) = begun(&server.journal, "a").await;
        let work = server.then(|tx| {
            Box::pin(async move {
                let _ = tx.batch_execute("SELECT 1 / 0").await;
                Ok(())
            })
        });
        let answers = server.journal.append(vec![working(&mut pen, &head, work)]).await.unwrap();
        assert!(matches!(&answers[..], [Err(Refusal::Failed { .. })]), "{answers:?}");
        assert_eq!((server.rows().await, stored(&server.journal, "a").await.head.len), (0, 1));
    });
}

/// What a work said in error is told, with what the server said.
#[test]
fn what_the_server_says_is_told() {
    with_server("what_the_server_says_is_told", |server| async move {
        let (mut pen, head) = begun(&server.journal, "a").await;
        let append = working(&mut pen, &head, server.book(How::Error));
        let answers = server.journal.append(vec![append]).await.unwrap();
        let [Err(Refusal::Failed { why })] = &answers[..] else { panic!("{answers:?}") };
        assert!(why.contains("null value"), "{why}");
        let (mut pen, head) = begun(&server.journal, "b").await;
        let work: Transact<String, _> =
            postgres::in_transaction(|_| Box::pin(async { Err(Failure::rejected("sold out")) }));
        let answers = server.journal.append(vec![working(&mut pen, &head, work)]).await.unwrap();
        assert_eq!(answers, [Err(Refusal::Failed { why: "sold out".into() })]);
    });
}
