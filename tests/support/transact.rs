//! What a transactional step has to do with every store that can have one. The tables of the business are beside the journal's.
#![allow(dead_code, missing_docs)]

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    Retry,
    saga::{
        Cause, Failure, Incarnation, OpenError, Orchestrator, Outcome, Record, Saga, SagaId, Timestamp,
        Transact,
        conformance::{Pen, definition},
        journal::{Append, Claim, Job, Journal, Refusal, Stored, Work},
        memory::Memory,
    },
};

/// What work does behind its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Fine,
    Rejected,
    /// A statement that the database refuses.
    Error,
    Panic,
    Large,
}

/// Either makes its row's life sad, or answers.
pub fn end(how: How) -> Result<String, Failure> {
    match how {
        How::Fine => Ok("booked".to_owned()),
        How::Large => Ok("x".repeat(5_000)),
        How::Rejected => Err(Failure::rejected("sold out")),
        // Without the report of a panic that nobody has planned.
        How::Panic => std::panic::resume_unwind(Box::new("planned")),
        How::Error => unreachable!("the statement is an error"),
    }
}

pub trait Shop: Clone + Send + Sync + 'static {
    type Job: Job;
    type Journal: Journal + Clone;

    fn journal(&self) -> Self::Journal;
    /// Adds a row to the business table, then ends so.
    fn book(&self, how: How) -> Transact<String, Self::Job>;
    /// Adds a row, with an output that has a JSON and cannot be read.
    fn book_unreadably(&self) -> Transact<f64, Self::Job>;
    /// Removes a row.
    fn unbook(&self) -> Transact<(), Self::Job>;
    /// How many rows there are.
    fn rows(&self) -> impl Future<Output = i64> + Send;
}

pub fn id(name: &str) -> SagaId {
    SagaId::new(name).unwrap()
}

pub async fn stored(journal: &impl Journal, name: &str) -> Stored {
    let stored = journal.load(&id(name)).await.unwrap().expect("the saga is there");
    stored.verify().expect("its entries are whole");
    stored
}

pub async fn kinds(journal: &impl Journal, name: &str) -> Vec<String> {
    stored(journal, name).await.entries.into_iter().map(|entry| entry.kind).collect()
}

/// An append for the next entry of `pen`: a step is completed by work.
pub fn working<J: Job>(pen: &mut Pen, head: &Stored, work: Transact<String, J>) -> Append {
    let (saga, epoch, seq, crc) = (pen.saga().clone(), head.head.epoch, head.head.len, head.head.crc);
    let by = head.head.owner.clone().unwrap();
    let work = Work::new(work.into_job(), seq, move |output| {
        let record = Record::Completed { step: "book".to_owned(), output, attempts: 1, ms: 1 };
        let entry = mainstay::saga::Entry::new(&saga, seq, crc, epoch, Timestamp(7), &by, &record)?;
        Ok((record, entry))
    });
    Append { work: Some(work), ..pen.write(&[]) }
}

pub async fn begun(journal: &impl Journal, name: &str) -> (Pen, Stored) {
    let by = Incarnation::from_text("one");
    journal.heartbeat(&by, Duration::from_secs(3_600)).await.unwrap();
    let mut pen = Pen::new(name, &by, Timestamp(1));
    assert_eq!(journal.append(vec![pen.begin(&definition())]).await.unwrap(), [Ok(())]);
    (pen, stored(journal, name).await)
}

/// Two steps that book, of which the second ends as the closure says of its attempt, counted from 0.
fn order<S: Shop>(
    shop: &S,
    second: impl Fn(u32) -> How + Send + Sync + 'static,
) -> (Saga<u32>, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let mut order = Saga::define::<u32>("order", 1);
    let (one, undo, two) = (shop.clone(), shop.clone(), shop.clone());
    let first = order
        .step("first", (), move |_, ()| {
            let work = one.book(How::Fine);
            async move { Ok(work) }
        })
        .compensate_in_transaction(move |_, (), booked| {
            assert_eq!(booked.as_deref(), Some("booked"));
            let work = undo.unbook();
            async move { Ok(work) }
        });
    let (counted, second) = (calls.clone(), Arc::new(second));
    let retry = Retry::constant(Duration::from_millis(1)).max_attempts(3).no_budget().idempotent();
    order
        .step("second", first, move |_, _| {
            let work = two.book(second(counted.fetch_add(1, SeqCst)));
            async move { Ok(work) }
        })
        .through(mainstay::stack("second").retry(retry).build().unwrap())
        .compensate(|_, _, _| async { panic!("what has not happened is not undone") });
    (order.build(()).unwrap(), calls)
}

async fn open<S: Shop>(shop: &S, saga: &Saga<u32>) -> Orchestrator {
    Orchestrator::open(shop.journal()).register(saga).max_output(4_000).start().await.unwrap()
}

pub async fn it_is_done_and_recorded_once<S: Shop>(shop: S) {
    let (saga, calls) = order(&shop, |_| How::Fine);
    let orders = open(&shop, &saga).await;
    assert!(matches!(orders.run(&saga, "a", &1).await.unwrap(), Outcome::Completed(())));
    assert_eq!(kinds(&shop.journal(), "a").await, ["begun", "completed", "completed"]);
    assert_eq!(shop.rows().await, 2);
    let stored = stored(&shop.journal(), "a").await;
    let Record::Completed { output, attempts: 1, .. } = stored.entries[1].record().unwrap() else { panic!() };
    assert_eq!(output.as_str(), "\"booked\"");
    // The same order again, with the same orchestrator and another one.
    assert!(matches!(orders.run(&saga, "a", &1).await.unwrap(), Outcome::Completed(())));
    orders.shutdown(Duration::from_secs(5)).await;
    let orders = open(&shop, &saga).await;
    assert!(matches!(orders.run(&saga, "a", &1).await.unwrap(), Outcome::Completed(())));
    assert_eq!((shop.rows().await, calls.load(SeqCst)), (2, 1));
}

pub async fn what_is_rejected_leaves_nothing<S: Shop>(shop: S) {
    for (n, how) in [How::Rejected, How::Large].into_iter().enumerate() {
        let (saga, calls) = order(&shop, move |_| how);
        let orders = open(&shop, &saga).await;
        let name = format!("a{n}");
        let outcome = orders.run(&saga, &name, &1).await.unwrap();
        let Outcome::Compensated(Cause::Rejected { step, error }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(step, "second");
        assert!(error.contains(if n == 0 { "sold out" } else { "its output has 5002 bytes" }), "{error}");
        assert_eq!(kinds(&shop.journal(), &name).await, ["begun", "completed", "aborted", "undone"]);
        assert_eq!((shop.rows().await, calls.load(SeqCst)), (0, 1), "{how:?}");
        orders.shutdown(Duration::from_secs(5)).await;
    }
}

pub async fn what_cannot_be_read_again_leaves_nothing<S: Shop>(shop: S) {
    let (mut order, calls) = (Saga::define::<u32>("order", 1), Arc::new(AtomicU32::new(0)));
    let (booking, counted) = (shop.clone(), calls.clone());
    let booked = order
        .step("book", (), move |_, ()| {
            counted.fetch_add(1, SeqCst);
            let work = booking.book_unreadably();
            async move { Ok(work) }
        })
        .compensate(|_, (), _| async { panic!("what has not happened is not undone") });
    let saga = order.build(booked).unwrap();
    let orders = Orchestrator::open(shop.journal()).register(&saga).start().await.unwrap();
    let outcome = orders.run(&saga, "a", &1).await.unwrap();
    let Outcome::Compensated(cause) = outcome else { panic!("{outcome:?}") };
    let expected = "book was rejected: its output cannot be read again: invalid type: null, expected f64";
    assert!(cause.to_string().starts_with(expected), "{cause}");
    assert_eq!(kinds(&shop.journal(), "a").await, ["begun", "aborted"]);
    assert_eq!((shop.rows().await, calls.load(SeqCst)), (0, 1));
    orders.shutdown(Duration::from_secs(5)).await;
}

pub async fn what_fails_is_tried_again_and_then_given_up<S: Shop>(shop: S) {
    for (n, how) in [How::Error, How::Panic].into_iter().enumerate() {
        let (saga, calls) = order(&shop, move |_| how);
        let orders = open(&shop, &saga).await;
        let (name, before) = (format!("never{n}"), shop.rows().await);
        let outcome = orders.run(&saga, &name, &1).await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated(Cause::Rejected { .. })), "{outcome:?}");
        assert_eq!((shop.rows().await, calls.load(SeqCst)), (before, 3), "{how:?}");
        orders.shutdown(Duration::from_secs(5)).await;

        let (saga, calls) = order(&shop, move |call| if call < 2 { how } else { How::Fine });
        let orders = open(&shop, &saga).await;
        let (name, before) = (format!("third{n}"), shop.rows().await);
        assert!(matches!(orders.run(&saga, &name, &1).await.unwrap(), Outcome::Completed(())));
        let last = stored(&shop.journal(), &name).await.entries.pop().unwrap().record().unwrap();
        assert!(matches!(last, Record::Completed { attempts: 3, .. }), "{last:?}");
        assert_eq!((shop.rows().await, calls.load(SeqCst)), (before + 2, 3));
        orders.shutdown(Duration::from_secs(5)).await;
    }
}

pub async fn an_owner_of_before_does_no_work<S: Shop>(shop: S) {
    let journal = shop.journal();
    let (mut pen, head) = begun(&journal, "a").await;
    let mut zombie = pen.clone();
    assert_eq!(journal.append(vec![pen.release(Some(Timestamp(1)))]).await.unwrap(), [Ok(())]);
    let claim = Claim {
        by: Incarnation::from_text("one"),
        definitions: vec![definition()],
        except: Vec::new(),
        only: None,
        limit: 1,
    };
    let claimed = journal.claim(claim).await.unwrap().remove(0);
    let late = working(&mut zombie, &head, shop.book(How::Fine));
    let work = late.work.clone().unwrap();
    assert_eq!(journal.append(vec![late]).await.unwrap(), [Err(Refusal::Fenced { epoch: 2 })]);
    assert_eq!(shop.rows().await, 0);
    assert!(work.take::<S::Job>().is_ok(), "the work was begun before the owner was looked at");
    // The present one may, once.
    let mut owner = Pen::resume(&claimed.head, Timestamp(1));
    let append = working(&mut owner, &claimed, shop.book(How::Fine));
    let again = working(&mut owner, &claimed, shop.book(How::Fine));
    assert_eq!(journal.append(vec![append]).await.unwrap(), [Ok(())]);
    assert_eq!(journal.append(vec![again]).await.unwrap(), [Err(Refusal::Gap { expected: 2 })]);
    assert_eq!(shop.rows().await, 1);
    assert_eq!(kinds(&journal, "a").await, ["begun", "completed"]);
}

pub async fn work_of_one_batch_fails_alone<S: Shop>(shop: S) {
    let journal = shop.journal();
    let mut batch = Vec::new();
    for (n, how) in [How::Fine, How::Rejected, How::Panic, How::Error, How::Fine].into_iter().enumerate() {
        let (mut pen, head) = begun(&journal, &format!("w{n}")).await;
        batch.push(working(&mut pen, &head, shop.book(how)));
        let (mut pen, _) = begun(&journal, &format!("p{n}")).await;
        batch.push(pen.step("plain"));
    }
    let answers = journal.append(batch).await.unwrap();
    for (n, answer) in answers.iter().enumerate() {
        let failed = [2, 4, 6].contains(&n);
        assert_eq!(matches!(answer, Err(Refusal::Failed { .. })), failed, "{n}: {answer:?}");
        assert_eq!(answer.is_ok(), !failed, "{n}: {answer:?}");
    }
    assert_eq!(shop.rows().await, 2);
    for n in 0..5 {
        assert_eq!(stored(&journal, &format!("p{n}")).await.head.len, 2);
        assert_eq!(stored(&journal, &format!("w{n}")).await.head.len, if n % 4 == 0 { 2 } else { 1 });
    }
}

/// Tells when the future that has it is gone.
struct Gone(Option<tokio::sync::oneshot::Sender<()>>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.take().map(|gone| gone.send(()));
    }
}

pub async fn what_was_turned_round_does_no_work<S: Shop>(shop: S) {
    let (began, mut beginning) = tokio::sync::mpsc::unbounded_channel();
    let mut order = Saga::define::<u32>("order", 1);
    let (first, undo, book) = (shop.clone(), shop.clone(), shop.clone());
    let first = order
        .step("first", (), move |_, ()| {
            let work = first.book(How::Fine);
            async move { Ok(work) }
        })
        .compensate_in_transaction(move |_, (), _| {
            let work = undo.unbook();
            async move { Ok(work) }
        });
    order
        .step("book", first, move |_, _| {
            let (work, began) = (book.book(How::Fine), began.clone());
            let (gone, going) = tokio::sync::oneshot::channel();
            let gone = Gone(Some(gone));
            async move {
                let _gone = gone;
                let (go, gate) = tokio::sync::oneshot::channel::<()>();
                began.send((go, going)).unwrap();
                let _ = gate.await;
                Ok(work)
            }
        })
        .compensate(|_, _, _| async { panic!("what has not happened is not undone") });
    let saga = order.build(()).unwrap();
    let orders = open(&shop, &saga).await;
    orders.start(&saga, "a", &1).await.unwrap();
    let (go, going) = beginning.recv().await.unwrap();
    orders.cancel("a", "no more").await.unwrap();
    while kinds(&shop.journal(), "a").await.len() < 4 {
        tokio::task::yield_now().await;
    }
    // If it still waits it is done now.
    let _ = go.send(());
    going.await.unwrap();
    let outcome = orders.run(&saga, "a", &1).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(Cause::Cancelled { .. })), "{outcome:?}");
    let aborted = stored(&shop.journal(), "a").await.entries[3].record().unwrap();
    assert!(matches!(&aborted, Record::Aborted { clean, .. } if clean == &["book"]), "{aborted:?}");
    orders.shutdown(Duration::from_secs(5)).await;
    assert_eq!(shop.rows().await, 0);
}

/// What an owner that has died had in the air is known not to have happened.
pub async fn who_takes_over_knows_that_nothing_has_happened<S: Shop>(shop: S) {
    let define = |name: &str, how: Option<How>, began: Arc<tokio::sync::Notify>| {
        let mut order = Saga::define::<u32>(name, 1);
        let book = shop.clone();
        let act = move |_, ()| {
            let (work, began) = (how.map(|how| book.book(how)), began.clone());
            async move {
                began.notify_one();
                match work {
                    Some(work) => Ok(work),
                    None => std::future::pending().await,
                }
            }
        };
        let undo = |_, (), _| async { panic!("what has not happened is not undone") };
        match name {
            "pivot" => drop(order.pivot("book", (), act).add()),
            _ => drop(order.step("book", (), act).compensate(undo)),
        }
        order.build(()).unwrap()
    };
    for name in ["order", "pivot"] {
        let began = Arc::new(tokio::sync::Notify::new());
        let first = define(name, None, began.clone());
        let lease = Duration::from_millis(300);
        let dying = Orchestrator::open(shop.journal()).register(&first).lease(lease).start().await.unwrap();
        dying.start(&first, name, &1).await.unwrap();
        began.notified().await;
        drop(dying);
        let second = define(name, Some(How::Rejected), began);
        let orders =
            Orchestrator::open(shop.journal()).register(&second).poll(Duration::from_millis(20)).start();
        let orders = orders.await.unwrap();
        let outcome = orders.run(&second, name, &1).await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated(Cause::Rejected { .. })), "{outcome:?}");
        assert_eq!(kinds(&shop.journal(), name).await, ["begun", "aborted"]);
        orders.shutdown(Duration::from_secs(5)).await;
    }
}

/// Work for another kind of store is refused before anything begins, and by the journal too.
pub async fn work_for_another_store_is_refused<S: Shop>(shop: S, stranger: impl Fn() -> Append + Send) {
    let (saga, _) = order(&shop, |_| How::Fine);
    let refused = Orchestrator::open(Memory::new()).register(&saga).start().await.map(drop);
    let store = S::Job::STORE.to_owned();
    let expected = OpenError::Transaction { definition: "order".into(), step: "first".into(), store };
    assert_eq!(refused.unwrap_err(), expected);
    let memory = Memory::new();
    let (mut pen, head) = begun(&memory, "a").await;
    let answers = memory.append(vec![working(&mut pen, &head, shop.book(How::Fine))]).await.unwrap();
    assert!(matches!(&answers[..], [Err(Refusal::Foreign { .. })]), "{answers:?}");
    let answers = shop.journal().append(vec![stranger()]).await.unwrap();
    assert!(matches!(&answers[..], [Err(Refusal::Foreign { .. })]), "{answers:?}");
    assert_eq!(shop.rows().await, 0);
}
