//! What goes on while one kind of question has no answer from the store: the look through all of it, or what is asked of sagas.
#![cfg(feature = "saga")]
#![allow(missing_docs)]

#[macro_use]
#[path = "support/forward.rs"]
mod forward;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    Event,
    saga::{
        Failure, Incarnation, Orchestrator, Order, Outcome, Output, Phase, Saga, SagaId, StoreError,
        Timestamp,
        journal::{
            Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
            Requested, Stored,
        },
        memory::Memory,
    },
};
use tokio::sync::watch;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What becomes of a question.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Given,
    /// After so long.
    Fails(Duration, StoreError),
    /// None, until there is another one to be had.
    Hangs,
    /// The same behind the first page.
    HangsBehind,
}

impl Answer {
    /// A page takes longer than the store has patience.
    fn slow() -> Self {
        Answer::Fails(seconds(10), StoreError::Unavailable("no answer in time".to_owned()))
    }

    fn damaged() -> Self {
        Answer::Fails(Duration::ZERO, StoreError::Io("invalid page in block 7".to_owned()))
    }
}

/// A store that may have no answer to two kinds of questions.
#[derive(Clone)]
struct Partly {
    store: Memory,
    list: watch::Sender<Answer>,
    requests: watch::Sender<Answer>,
    /// The answer to the next claim that gets anything is lost.
    loses: Arc<AtomicBool>,
    /// No lease is prolonged.
    lapses: Arc<AtomicBool>,
}

impl Partly {
    fn new() -> Self {
        let given = || watch::Sender::new(Answer::Given);
        let (loses, lapses) = Default::default();
        Partly { store: Memory::new(), list: given(), requests: given(), loses, lapses }
    }

    async fn pass(answers: &watch::Sender<Answer>) -> Result<(), StoreError> {
        let hangs = |answer: &Answer| matches!(answer, Answer::Hangs | Answer::HangsBehind);
        let answer = answers.subscribe().wait_for(|answer| !hangs(answer)).await.unwrap().clone();
        let Answer::Fails(after, error) = answer else { return Ok(()) };
        tokio::time::sleep(after).await;
        Err(error)
    }
}

impl Journal for Partly {
    forward_to_store!(all but list and requests);

    fn blocks(&self) -> bool {
        false
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        self.store.append(batch)
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(async move {
            match self.lapses.load(SeqCst) {
                true => Err(StoreError::Unavailable("planned".to_owned())),
                false => self.store.heartbeat(&by, lease).await,
            }
        })
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        self.store.leave(by)
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        Box::pin(async move {
            let claimed = self.store.claim(claim).await?;
            if !claimed.is_empty() && self.loses.swap(false, SeqCst) {
                return Err(StoreError::Unavailable("the answer is lost".to_owned()));
            }
            Ok(claimed)
        })
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        Box::pin(async move {
            if query.after.is_some() || *self.list.borrow() != Answer::HangsBehind {
                Partly::pass(&self.list).await?;
            }
            self.store.list(query).await
        })
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        let by = by.clone();
        Box::pin(async move {
            Partly::pass(&self.requests).await?;
            self.store.requests(&by).await
        })
    }
}

/// Waits for a message.
fn asking() -> Saga<u32, Output<Option<u32>>> {
    let mut saga = Saga::define::<u32>("asking", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(1_u32) }).without_compensation("nothing is done");
    let answer = saga.signal::<u32, _>("answer", first, None);
    saga.build(answer).unwrap()
}

/// Its step never ends.
fn endless() -> Saga<u32> {
    let mut saga = Saga::define::<u32>("endless", 1);
    saga.step("wait", (), |_, ()| std::future::pending::<Result<(), Failure>>())
        .without_compensation("nothing is done");
    saga.build(()).unwrap()
}

/// Waits for so long, and nobody has it meanwhile.
fn sleeper(time: Duration) -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("sleeper", 1);
    let slept = saga.sleep("sleep", (), time);
    let last = saga.step("last", slept, |_, ()| async { Ok(1_u32) }).without_compensation("nothing is done");
    saga.build(last).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_and_due_waits_for_no_look_through_the_store() {
    for answer in [Answer::Hangs, Answer::slow(), Answer::damaged()] {
        let (store, ask, wait, sleep) = (Partly::new(), asking(), endless(), sleeper(seconds(63)));
        let opening = || Orchestrator::open(store.clone()).register(&ask).register(&wait).register(&sleep);
        let first = opening().start().await.unwrap();
        first.recovered().await;
        let asked = first.start(&ask, "ask", &1).await.unwrap();
        let waits = first.start(&wait, "wait", &1).await.unwrap();
        let sleeps = first.start(&sleep, "sleep", &1).await.unwrap();
        // Until the next look has begun, for which there is no answer.
        tokio::time::sleep(seconds(2)).await;
        store.list.send_replace(answer.clone());
        tokio::time::sleep(seconds(60)).await;

        let orders = async {
            first.signal("ask", "answer", "m", &7).await.unwrap();
            assert_eq!(asked.finished().await.unwrap(), Outcome::Completed(Some(7)));
            first.order("wait", "me", Order::Abandon { reason: "enough".to_owned() }).await.unwrap();
            waits.settled().await.unwrap();
            sleeps.finished().await.unwrap()
        };
        let slept = tokio::time::timeout(seconds(4), orders).await;
        assert_eq!(slept.unwrap_or_else(|_| panic!("{answer:?}: it waits")), Outcome::Completed(1));

        // Neither an end waits for it,
        first.start(&ask, "left", &1).await.unwrap();
        let began = tokio::time::Instant::now();
        first.shutdown(seconds(1)).await;
        assert!(began.elapsed() < seconds(2), "{answer:?}: {:?}", began.elapsed());
        // nor at a beginning what was left, and what the orchestrator says of itself.
        let second = opening().start().await.unwrap();
        second.signal("left", "answer", "m", &8).await.unwrap();
        let left = second.handle(&ask, "left").unwrap();
        let left = tokio::time::timeout(seconds(3), left.finished()).await;
        assert_eq!(left.expect("it is taken up").unwrap(), Outcome::Completed(Some(8)));
        let told = store.store.orchestrators().await.unwrap();
        let told = told.into_iter().find(|one| one.by == *second.incarnation()).unwrap();
        assert!(told.presence.is_some(), "{answer:?}: it has said nothing");
        // That it has looked at everything would not be true. Damage does not pass by waiting.
        let recovered = tokio::time::timeout(seconds(100), second.recovered()).await.is_ok();
        assert_eq!((recovered, second.census()), (answer == Answer::damaged(), None), "{answer:?}");

        store.list.send_replace(Answer::Given);
        tokio::time::timeout(seconds(70), second.recovered()).await.expect("it looks again");
        tokio::time::sleep(seconds(12)).await;
        assert!(second.census().is_some(), "{answer:?}");
        second.shutdown(seconds(1)).await;
    }
}

/// While the store fails at each look, it is not asked all the time.
#[tokio::test(start_paused = true)]
async fn a_look_that_fails_again_and_again_is_made_less_and_less_often() {
    let (store, wait) = (Partly::new(), endless());
    let at_once = StoreError::Unavailable("planned".to_owned());
    store.list.send_replace(Answer::Fails(Duration::ZERO, at_once));
    let failures = Arc::new(Mutex::new(0));
    let counted = failures.clone();
    let observer = move |event: &Event<'_>| {
        *counted.lock().unwrap() += u32::from(matches!(event, Event::SagaStoreFailed { .. }));
    };
    let _orchestrator =
        Orchestrator::open(store.clone()).register(&wait).observe(observer).start().await.unwrap();
    tokio::time::sleep(seconds(600)).await;
    let failures = *failures.lock().unwrap();
    assert!((10..20).contains(&failures), "{failures} looks in ten minutes");
}

/// A look is under way, and has passed by a saga, when the answer is lost to the claim that gets it.
#[tokio::test(start_paused = true)]
async fn what_is_lost_behind_a_look_is_found_by_the_next_one_which_is_made_soon() {
    for lapses in [false, true] {
        let (store, wait, sleep) = (Partly::new(), endless(), sleeper(seconds(90)));
        let opening = Orchestrator::open(store.clone()).register(&wait).register(&sleep);
        let orchestrator = opening.start().await.unwrap();
        orchestrator.recovered().await;
        orchestrator.start(&wait, "wait", &1).await.unwrap();
        let sleeps = orchestrator.start(&sleep, "sleep", &1).await.unwrap();
        store.list.send_replace(Answer::HangsBehind);
        tokio::time::sleep(seconds(65)).await;
        store.lapses.store(lapses, SeqCst);
        tokio::time::sleep(seconds(15)).await;
        store.lapses.store(false, SeqCst);
        store.loses.store(true, SeqCst);
        tokio::time::sleep(seconds(15)).await;
        assert!(!store.loses.load(SeqCst), "it is claimed when it is due");
        let head = store.store.stored(&SagaId::new("sleep").unwrap()).unwrap().head;
        assert_eq!((head.owner.as_ref(), head.phase), (Some(orchestrator.incarnation()), Phase::Waiting));
        store.list.send_replace(Answer::Given);
        let slept = tokio::time::timeout(seconds(5), sleeps.finished()).await;
        assert_eq!(slept.expect("it was lost sight of").unwrap(), Outcome::Completed(1));
    }
}

/// What is asked comes later: what was left at a saga that is taken up, too.
#[tokio::test(start_paused = true)]
async fn what_is_claimed_is_driven_although_what_is_asked_cannot_be_read() {
    let (store, wait, sleep) = (Partly::new(), endless(), sleeper(seconds(5)));
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    let observer = move |event: &Event<'_>| {
        if let Event::SagaStoreFailed { error, .. } = event {
            log.lock().unwrap().push((*error).clone());
        }
    };
    let opening = || Orchestrator::open(store.clone()).register(&wait).register(&sleep);
    let first = opening().start().await.unwrap();
    first.start(&wait, "wait", &1).await.unwrap();
    first.start(&sleep, "sleep", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    first.order("wait", "me", Order::Abandon { reason: "enough".to_owned() }).await.unwrap();
    drop(first);
    let is = Answer::damaged();
    store.requests.send_replace(is.clone());
    let second = opening().observe(observer).start().await.unwrap();
    tokio::time::timeout(seconds(5), second.recovered()).await.expect("nothing is in the way of that");
    // An orphan, and one that is due.
    tokio::time::sleep(seconds(15)).await;
    let owner = store.store.stored(&SagaId::new("wait").unwrap()).unwrap().head.owner;
    assert_eq!((owner.as_ref(), second.live()), (Some(second.incarnation()), 1));
    let slept = second.handle(&sleep, "sleep").unwrap();
    let slept = tokio::time::timeout(seconds(1), slept.finished()).await.expect("it is over");
    assert_eq!(slept.unwrap(), Outcome::Completed(1));
    let says = store.store.orchestrators().await.unwrap();
    let says = says.into_iter().find(|one| one.by == *second.incarnation()).unwrap();
    assert!(says.presence.is_some(), "it has said nothing");
    let Answer::Fails(_, error) = is else { unreachable!() };
    let told = std::mem::take(&mut *told.lock().unwrap());
    assert!(!told.is_empty() && told.iter().all(|one| *one == error), "{told:?}");

    store.requests.send_replace(Answer::Given);
    tokio::time::sleep(seconds(1)).await;
    let phase = second.status("wait").await.unwrap().unwrap().phase;
    assert_eq!(phase, Some(Phase::Abandoned), "what was asked before comes when it can be read");
}
