//! Steps whose participant is asked what has become of them, recognises keys, and need not know what is still on its way.
#![cfg(feature = "saga")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    saga::{Cause, Failure, Orchestrator, Order, Outcome, Output, Phase, Saga, SagaId, Step, memory::Memory},
    testing::Ledger,
};

/// What comes of each request to a step: the first, the second, and so on; of all others the last.
type Play = fn(&Ledger, &Step<u32>, u32) -> Result<u32, Failure>;

/// A step that is undone, and one behind it that is asked: a pivot, or one that is undone too.
struct Shop {
    ledger: Ledger,
    sent: Arc<AtomicU32>,
    store: Memory,
    saga: Saga<u32, Output<u32>>,
}

impl Shop {
    fn new(pivot: bool, play: Play) -> Self {
        let (ledger, sent) = (Ledger::default(), Arc::new(AtomicU32::new(0)));
        let mut saga = Saga::define::<u32>("shop", 1);
        let undo = || {
            let undo = ledger.clone();
            move |step: &Step<u32>| {
                undo.undo(step.key());
                async { Ok(()) }
            }
        };
        let (act, undo_first, undo_second) = (ledger.clone(), undo(), undo());
        let first = saga
            .step("reserve", (), move |step: Step<u32>, ()| {
                let done = act.action(step.key(), || 1_u32);
                async move { done }
            })
            .compensate(move |step, (), _| undo_first(&step));
        let (act, ask, count) = (ledger.clone(), ledger.clone(), sent.clone());
        let confirm = move |step: Step<u32>, _| {
            let done = play(&act, &step, count.fetch_add(1, SeqCst));
            async move { done }
        };
        let is_confirmed = move |step: Step<u32>, _| {
            let known = ask.verify(step.key());
            async move { Ok(known) }
        };
        let second = if pivot {
            saga.pivot("confirm", first, confirm).verify(is_confirmed).add()
        } else {
            let step = saga.step("confirm", first, confirm).verify(is_confirmed);
            step.compensate(move |step, _, _| undo_second(&step))
        };
        let saga = saga.build(second).unwrap();
        Shop { ledger, sent, store: Memory::new(), saga }
    }

    async fn open(&self) -> Orchestrator {
        Orchestrator::open(self.store.clone()).register(&self.saga).start().await.unwrap()
    }

    fn net(&self, step: &str) -> i64 {
        self.ledger.net(&SagaId::new("s").unwrap(), step)
    }

    fn sent(&self) -> u32 {
        self.sent.load(SeqCst)
    }

    fn kinds(&self) -> Vec<String> {
        let stored = self.store.stored(&SagaId::new("s").unwrap()).unwrap();
        stored.entries.into_iter().map(|entry| entry.kind).collect()
    }
}

fn lost<T>() -> Result<T, Failure> {
    Err(Failure::unknown("the connection was reset"))
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_on_its_way_is_sent_again_under_its_key() {
    for pivot in [true, false] {
        let shop = Shop::new(pivot, |ledger, step, number| match number {
            0 | 1 => lost(),
            _ => ledger.action(step.key(), || 7),
        });
        let outcome = shop.open().await.run(&shop.saga, "s", &1).await.unwrap();
        assert_eq!(outcome, Outcome::Completed(7));
        assert_eq!((shop.sent(), shop.net("confirm")), (3, 1));
        assert_eq!(shop.kinds(), ["begun", "completed", "sent", "completed"]);
    }
}

/// The answer is lost; asked, the participant tells it once more, and nobody has to be asked whether the first one was accepted.
#[tokio::test(start_paused = true)]
async fn a_rejection_that_is_stored_turns_the_saga_round() {
    for pivot in [true, false] {
        let shop = Shop::new(pivot, |ledger, step, _| {
            ledger.reject(step.key(), "the customer is blocked");
            lost()
        });
        let outcome = shop.open().await.run(&shop.saga, "s", &1).await.unwrap();
        let cause = Cause::Rejected { step: "confirm".into(), error: "the customer is blocked".into() };
        assert_eq!(outcome, Outcome::Compensated(cause));
        assert_eq!((shop.sent(), shop.net("reserve")), (1, 0));
        let kinds = shop.kinds();
        assert_eq!(
            kinds,
            ["begun", "completed", "sent", "aborted", "undone"],
            "it has not to be undone itself"
        );
    }
}

/// Between the word that it may be sent again and sending it: what was sent first may arrive yet.
#[tokio::test(start_paused = true)]
async fn what_may_arrive_yet_is_not_forgotten_before_it_is_sent_again() {
    let late: Play = |ledger, step, number| match number {
        0 => lost(),
        _ => ledger.action(step.key(), || 7),
    };
    let cancelled_in_between = |shop: Shop| async move {
        let shops = shop.open().await;
        let handle = shops.start(&shop.saga, "s", &1).await.unwrap();
        while shop.sent() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(shop.sent(), 1, "it waits before it is sent again");
        shops.cancel("s", "changed my mind").await.unwrap();
        let outcome = handle.finished().await.unwrap();
        // Now the first one arrives.
        let key = "confirm.do@s".parse().unwrap();
        let _ = shop.ledger.act(&key, || 7_u32);
        (outcome, shop)
    };
    let (outcome, shop) = cancelled_in_between(Shop::new(false, late)).await;
    assert!(matches!(outcome, Outcome::Compensated(Cause::Cancelled { .. })), "{outcome:?}");
    assert_eq!((shop.sent(), shop.net("reserve"), shop.net("confirm")), (1, 0, 0));
    let (outcome, shop) = cancelled_in_between(Shop::new(true, late)).await;
    assert_eq!(outcome, Outcome::Completed(7), "it may have passed its pivot");
    assert_eq!((shop.sent(), shop.net("reserve"), shop.net("confirm")), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_never_arrives_is_not_sent_for_ever() {
    let shop = Shop::new(false, |_, _, _| lost());
    let outcome = shop.open().await.run(&shop.saga, "s", &1).await.unwrap();
    let Outcome::Compensated(Cause::Unknown { error, .. }) = outcome else { panic!("{outcome:?}") };
    assert!(error.contains("the connection was reset"), "{error}");
    assert_eq!((shop.sent(), shop.net("reserve")), (9, 0));
    assert_eq!(shop.kinds(), ["begun", "completed", "sent", "aborted", "undone", "undone"]);

    // What cannot be turned round is tried again much later, as is everything that has to succeed.
    let shop = Shop::new(true, |ledger, step, number| match number {
        0..20 => lost(),
        _ => ledger.action(step.key(), || 7),
    });
    let shops = shop.open().await;
    let handle = shops.start(&shop.saga, "s", &1).await.unwrap();
    let held = handle.settled().await.unwrap();
    let Outcome::Held { phase: Some(Phase::Stuck), why } = held else { panic!("{held:?}") };
    assert!(why.contains("the connection was reset"), "{why}");
    assert_eq!(shop.sent(), 9);
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(7));
    assert_eq!(shop.kinds(), ["begun", "completed", "sent", "stuck", "completed"]);
}

/// A pivot that says no without storing it: the first request may have been accepted, and nobody else knows.
#[tokio::test(start_paused = true)]
async fn a_rejection_that_is_not_stored_does_not_speak_for_what_was_sent_before() {
    let shop = Shop::new(true, |_, _, number| match number {
        0 => lost(),
        _ => Err(Failure::rejected("the customer is blocked")),
    });
    let shops = shop.open().await;
    let handle = shops.start(&shop.saga, "s", &1).await.unwrap();
    let held = handle.settled().await.unwrap();
    let Outcome::Held { phase: Some(Phase::Stuck), why } = held else { panic!("{held:?}") };
    assert!(why.contains("the customer is blocked"), "{why}");
    let order = Order::Reject { step: "confirm".to_owned(), reason: "I have looked".to_owned() };
    shops.order("s", "ada", order).await.unwrap();
    assert!(matches!(handle.finished().await.unwrap(), Outcome::Compensated(_)));
    assert_eq!(shop.net("reserve"), 0);
}

/// It was let be sent, and its breaker is open: nobody has to be asked again, and none of the times is used up.
#[tokio::test(start_paused = true)]
async fn what_is_not_begun_when_it_is_sent_again_counts_for_nothing() {
    let shop = Shop::new(false, |ledger, step, number| match number {
        0 => lost(),
        1..40 => Err(Failure::unstarted("circuit open")),
        _ => ledger.action(step.key(), || 7),
    });
    let outcome = shop.open().await.run(&shop.saga, "s", &1).await.unwrap();
    assert_eq!(outcome, Outcome::Completed(7));
    assert_eq!(shop.sent(), 41);
}
