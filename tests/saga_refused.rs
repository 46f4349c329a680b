//! What a step says by `?` when a policy has refused a call inside it.
#![cfg(feature = "saga")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    CircuitBreaker, Refused, Timeout,
    saga::{Cause, Failure, Orchestrator, Outcome, Output, Saga, SagaId, Step, Unknown, memory::Memory},
    testing::Ledger,
};

type Payments = mainstay::Stack![CircuitBreaker];

/// The advice of the README.
#[derive(Debug, thiserror::Error)]
enum Transparent {
    #[error(transparent)]
    Refused(#[from] Refused),
}

#[derive(Debug, thiserror::Error)]
enum Described {
    #[error("payments are held back")]
    Refused(#[from] Refused),
}

#[derive(Debug, thiserror::Error)]
#[error("down")]
struct Down;

/// How the step hands on that its call was refused.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    Call,
    Refusal,
    Transparent,
    Described,
    /// Said by the constructor that vouches for that nothing was begun.
    OfCall,
    OfRefusal,
}

impl By {
    const QUESTION_MARK: [By; 4] = [By::Call, By::Refusal, By::Transparent, By::Described];

    async fn charge(self, payments: &Payments) -> Result<u32, Failure> {
        let charged = payments.call(|| async { Ok::<u32, Down>(1) }).await;
        let refused = match charged {
            Err(mainstay::Error::Refused(refused)) if self != By::Call && self != By::OfCall => refused,
            charged if self == By::Call => return Ok(charged?),
            charged => return charged.map_err(Failure::of_call),
        };
        match self {
            By::Refusal => Err(refused)?,
            By::Transparent => Err(Transparent::from(refused))?,
            By::Described => Err(Described::from(refused))?,
            _ => Err(Failure::of_refusal(&refused)),
        }
    }
}

struct Shop {
    breaker: CircuitBreaker,
    undone: Arc<AtomicU32>,
    attempts: Arc<AtomicU32>,
    ledger: Ledger,
    saga: Saga<u32, Output<u32>>,
}

/// A step that makes one call, or another one before it, which has an effect.
fn shop(by: By, calls: u32, unknown: Unknown) -> Shop {
    let breaker = CircuitBreaker::config().build().unwrap();
    breaker.force_open();
    let payments = mainstay::stack("payments").circuit_breaker(breaker.clone()).build().unwrap();
    let (attempts, undone, ledger) =
        (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)), Ledger::default());
    let (act, undo) = (ledger.clone(), ledger.clone());
    let (counted, counted_undone) = (attempts.clone(), undone.clone());
    let mut saga = Saga::define::<u32>("shop", 1);
    let charged = saga
        .step("charge", (), move |step: Step<u32>, ()| {
            let (payments, act) = (payments.clone(), act.clone());
            counted.fetch_add(1, SeqCst);
            async move {
                if calls == 2 {
                    act.action(step.key(), || 1_u32)?;
                }
                let charged = by.charge(&payments).await?;
                act.action(step.key(), || charged)
            }
        })
        .on_unknown(unknown)
        .compensate(move |step, (), _| {
            counted_undone.fetch_add(1, SeqCst);
            undo.undo(step.key());
            async { Ok(()) }
        });
    let saga = saga.build(charged).unwrap();
    Shop { breaker, undone, attempts, ledger, saga }
}

impl Shop {
    async fn open(&self) -> Orchestrator {
        Orchestrator::open(Memory::new()).register(&self.saga).start().await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_uses_up_no_attempt_however_it_is_handed_on() {
    for by in By::QUESTION_MARK.into_iter().chain([By::OfCall, By::OfRefusal]) {
        let shop = shop(by, 1, Unknown::Retry);
        let shops = shop.open().await;
        let handle = shops.start(&shop.saga, "s", &1).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let attempts = shop.attempts.load(SeqCst);
        assert!(attempts > 20, "{by:?}: {attempts}");
        shop.breaker.force_closed();
        assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(1), "{by:?}");
    }
}

/// Whoever has two calls in a step, and is refused at the second, has had the effect of the first.
#[tokio::test(start_paused = true)]
async fn what_was_done_before_a_refusal_is_undone() {
    for (by, calls, undone) in By::QUESTION_MARK
        .into_iter()
        .flat_map(|by| [(by, 1, 1), (by, 2, 1)])
        .chain([(By::OfCall, 1, 0), (By::OfRefusal, 1, 0)])
    {
        let shop = shop(by, calls, Unknown::Retry);
        let shops = shop.open().await;
        let handle = shops.start(&shop.saga, "s", &1).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        shops.cancel("s", "changed my mind").await.unwrap();
        let outcome = handle.finished().await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated(Cause::Cancelled { .. })), "{by:?}: {outcome:?}");
        assert_eq!(shop.undone.load(SeqCst), undone, "{by:?} with {calls} calls");
        assert_eq!(shop.ledger.net(&SagaId::new("s").unwrap(), "charge"), 0, "{by:?} with {calls} calls");
    }
}

/// What may be sent only once may have been.
#[tokio::test(start_paused = true)]
async fn what_is_sent_once_and_was_refused_somewhere_in_it_is_unknown_at_once() {
    for by in By::QUESTION_MARK {
        let shop = shop(by, 2, Unknown::Compensate);
        let outcome = shop.open().await.run(&shop.saga, "s", &1).await.unwrap();
        let Outcome::Compensated(Cause::Unknown { error, .. }) = outcome else { panic!("{outcome:?}") };
        assert!(error.contains("circuit open") || error.contains("held back"), "{error}");
        assert_eq!((shop.attempts.load(SeqCst), shop.undone.load(SeqCst)), (1, 1), "{by:?}");
    }
    let shop = shop(By::OfCall, 1, Unknown::Compensate);
    let shops = shop.open().await;
    let handle = shops.start(&shop.saga, "s", &1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    shop.breaker.force_closed();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(1), "it was not sent");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_begun_and_given_up_is_an_attempt() {
    let timeout =
        mainstay::stack("slow").policy(Timeout::new(Duration::from_millis(1)).unwrap()).build().unwrap();
    let refused = timeout.call(std::future::pending::<Result<u32, Down>>).await.unwrap_err();
    let failure = Failure::from(refused);
    assert!(!failure.is_clean());
    assert_eq!(format!("{failure:?}"), "Unknown: slow: timed out: the operation may have begun");
    let other = Failure::from(Down);
    assert_eq!(format!("{other:?}"), "Unknown: down");
}
