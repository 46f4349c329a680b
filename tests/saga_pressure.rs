//! An orchestrator whose sagas wait for a service that is away: the others go on, however many these are.
#![cfg(feature = "saga")]
#![allow(missing_docs)]

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    Event,
    saga::{
        Failure, Opening, Orchestrator, Order, Outcome, Output, Phase, Saga, SagaId, StartError, Unknown,
        memory::Memory,
    },
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A service that is away until it is told otherwise, and how often it was asked.
#[derive(Clone, Default)]
struct Service {
    there: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
}

impl Service {
    /// What it says while it is away: nothing of how long, or so long.
    fn answer(&self, hint: Option<Duration>) -> Result<(), Failure> {
        self.asked.fetch_add(1, SeqCst);
        match self.there.load(SeqCst) {
            true => Ok(()),
            false => Err(Failure::unstarted("it answered 429").retry_after(hint)),
        }
    }
}

/// A step that is undone by asking another service.
fn order(service: &Service, hint: Option<Duration>, undo: &Service) -> Saga<u32, Output<()>> {
    let (act, undo) = (service.clone(), undo.clone());
    let mut saga = Saga::define::<u32>("order", 1);
    let charged = saga
        .step("charge", (), move |_, ()| std::future::ready(act.answer(hint)))
        .compensate(move |_, (), _| std::future::ready(undo.answer(None)));
    saga.build(charged).unwrap()
}

/// One of another kind, which needs nobody.
fn timer(time: Duration) -> Saga<u32, Output<()>> {
    let mut saga = Saga::define::<u32>("timer", 1);
    let slept = saga.sleep("sleep", (), time);
    let rung = saga.step("ring", slept, |_, ()| async { Ok(()) }).without_compensation("it is heard");
    saga.build(rung).unwrap()
}

/// Waits for a message.
fn asking() -> Saga<u32, Output<Option<u32>>> {
    let mut saga = Saga::define::<u32>("asking", 1);
    let word = saga.signal::<u32, _>("word", (), None);
    saga.build(word).unwrap()
}

fn open(store: &Memory, most: usize) -> Opening {
    Orchestrator::open(store.clone()).max_live(most)
}

fn head(store: &Memory, id: &str) -> mainstay::saga::journal::Head {
    store.stored(&SagaId::new(id).unwrap()).unwrap().head
}

#[tokio::test(start_paused = true)]
async fn sagas_that_wait_for_one_service_hold_up_no_others() {
    for hint in [None, Some(seconds(3_600))] {
        let (store, service) = (Memory::new(), Service::default());
        let (order, timer, asking) = (order(&service, hint, &service), timer(seconds(600)), asking());
        let opening = open(&store, 16).register(&order).register(&timer).register(&asking);
        let orchestrator = opening.start().await.unwrap();
        let due = orchestrator.start(&timer, "timer", &1).await.unwrap();
        let asked = orchestrator.start(&asking, "asked", &1).await.unwrap();
        let cancelled = orchestrator.start(&asking, "cancelled", &1).await.unwrap();
        tokio::time::sleep(seconds(2)).await;
        assert_eq!(orchestrator.live(), 0, "what waits for time or a message takes no place");
        for number in 0..50 {
            let id = format!("order-{number}");
            while let Err(busy) = orchestrator.start(&order, &id, &1).await {
                assert!(matches!(busy, StartError::Busy(_)), "{busy:?}");
                tokio::time::sleep(seconds(1)).await;
                assert!(orchestrator.live() < 16, "{number} sagas have filled it up, with the hint {hint:?}");
            }
        }
        tokio::time::sleep(seconds(1)).await;
        assert!(orchestrator.live() < 16);
        orchestrator.signal("asked", "word", "m", &7_u32).await.unwrap();
        orchestrator.cancel("cancelled", "no longer wanted").await.unwrap();
        let soon = |what: &'static str, handle| async move {
            let handle: mainstay::saga::Handle<_> = handle;
            let end = tokio::time::timeout(seconds(5), handle.finished()).await;
            end.unwrap_or_else(|_| panic!("{what} waits behind them, with the hint {hint:?}")).unwrap()
        };
        assert_eq!(soon("a message", asked).await, Outcome::Completed(Some(7)));
        assert!(matches!(soon("a cancel", cancelled).await, Outcome::Compensated(_)));
        let end =
            tokio::time::timeout(seconds(600), due.finished()).await.expect("a timer waits behind them");
        assert_eq!(end.unwrap(), Outcome::Completed(()));

        // What another one has left is taken over all the same.
        let other = open(&store.connect(), 16).register(&timer).start().await.unwrap();
        let left = other.start(&timer, "left", &1).await.unwrap();
        drop((other, left));
        tokio::time::sleep(seconds(700)).await;
        assert_eq!(head(&store, "left").phase, Phase::Completed);

        // Nobody has died at them, no round has left a record, and they end when the service is back.
        for number in 0..50 {
            let head = head(&store, &format!("order-{number}"));
            assert_eq!((head.len, head.recoveries, head.phase), (1, 0, Phase::Running), "{number}");
        }
        service.there.store(true, SeqCst);
        let again = hint.unwrap_or_default() / 10 * 11 + seconds(120);
        tokio::time::sleep(again).await;
        for number in 0..50 {
            assert_eq!(head(&store, &format!("order-{number}")).phase, Phase::Completed, "{number}");
        }
        assert_eq!(orchestrator.live(), 0);
    }
}

/// An attempt may have had an effect, and nobody says how long: the waits are short, and no reason to stay.
#[tokio::test(start_paused = true)]
async fn sagas_whose_undo_is_refused_again_and_again_hold_up_no_others() {
    let (store, service, undo) = (Memory::new(), Service::default(), Service::default());
    service.there.store(true, SeqCst);
    let mut saga = Saga::define::<u32>("order", 1);
    let (act, back) = (service.clone(), undo.clone());
    let charged = saga
        .step("charge", (), move |_, ()| std::future::ready(act.answer(None)))
        .compensate(move |_, (), _| std::future::ready(back.answer(None)));
    saga.step("ship", charged, |_, ()| async { Err::<(), _>(Failure::rejected("no")) })
        .without_compensation("it was rejected");
    let (order, timer) = (saga.build(()).unwrap(), timer(seconds(60)));
    let orchestrator = open(&store, 8).register(&order).register(&timer).start().await.unwrap();
    let due = orchestrator.start(&timer, "timer", &1).await.unwrap();
    tokio::time::sleep(seconds(2)).await;
    for number in 0..8 {
        orchestrator.start(&order, &format!("order-{number}"), &1).await.unwrap();
    }
    let end = tokio::time::timeout(seconds(120), due.finished()).await.expect("a timer waits behind them");
    assert_eq!(end.unwrap(), Outcome::Completed(()));
    // Those that stay ask every second, those that have made room less often.
    let before = undo.asked.load(SeqCst);
    tokio::time::sleep(seconds(60)).await;
    let asked = undo.asked.load(SeqCst) - before;
    assert!((60 * 6..60 * 6 * 2 + 2 * 30).contains(&asked), "{asked} times");
    undo.there.store(true, SeqCst);
    tokio::time::sleep(seconds(60)).await;
    for number in 0..8 {
        let head = head(&store, &format!("order-{number}"));
        assert_eq!((head.phase, head.recoveries), (Phase::Compensated, 0), "{number}");
    }
}

/// Whose end depends on its never having been tried stays, as long as there is any room for it: a step that decides, and one that must not
/// be sent twice.
#[tokio::test(start_paused = true)]
async fn what_would_be_decided_otherwise_makes_room_last() {
    for once in [None, Some(Unknown::Park), Some(Unknown::Compensate)] {
        let (store, service) = (Memory::new(), Service::default());
        let mut saga = Saga::define::<u32>("order", 1);
        let act = service.clone();
        let act = move |_, ()| std::future::ready(act.answer(Some(seconds(3_600))));
        match once {
            None => {
                let _decided: Output<()> = saga.pivot("decide", (), act).add();
            }
            Some(unknown) => {
                saga.step("decide", (), act).on_unknown(unknown).compensate(|_, (), _| async { Ok(()) });
            }
        }
        let order = saga.build(()).unwrap();
        let orchestrator = open(&store, 16).register(&order).start().await.unwrap();
        for number in 0..14 {
            orchestrator.start(&order, &format!("order-{number}"), &1).await.unwrap();
        }
        tokio::time::sleep(seconds(600)).await;
        assert_eq!(orchestrator.live(), 14, "{once:?}: they have made room without need");
        orchestrator.start(&order, "order-14", &1).await.unwrap();
        tokio::time::sleep(seconds(120)).await;
        assert!(orchestrator.live() < 15, "{once:?}: there is no room for others");
        // Whoever stays is turned round without having been begun.
        let stays = (0..14).map(|number| format!("order-{number}"));
        let stays: Vec<_> = stays.filter(|id| head(&store, id).owner.is_some()).collect();
        assert!(stays.len() >= 13, "{once:?}: {stays:?}");
        for id in &stays {
            orchestrator.cancel(id, "no longer wanted").await.unwrap();
        }
        tokio::time::sleep(seconds(5)).await;
        for id in &stays {
            assert_eq!(head(&store, id).phase, Phase::Compensated, "{once:?}: {id}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_makes_no_room_and_starts_are_refused() {
    let mut saga = Saga::define::<u32>("long", 1);
    let step = saga.step("step", (), |_, ()| pending::<Result<(), Failure>>());
    let long = step.without_compensation("it never happens");
    let (store, long) = (Memory::new(), saga.build(long).unwrap());
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    let observer = move |event: &Event<'_>| {
        if let Event::SagaLive { live, max_live, held, .. } = *event {
            heard.lock().unwrap().push((live, max_live, held));
        }
    };
    let opening = open(&store, 8).register(&long).observe(observer);
    let orchestrator = opening.start().await.unwrap();
    orchestrator.recovered().await;
    for number in 0..8 {
        orchestrator.start(&long, &format!("long-{number}"), &1).await.unwrap();
    }
    tokio::time::sleep(seconds(5)).await;
    assert_eq!(orchestrator.live(), 8);
    // Told when it began, and every lease; and no longer when there is room.
    let held = || std::mem::take(&mut *told.lock().unwrap());
    assert!(matches!(held()[..], [(0, 8, None), (8, 8, Some(first))] if first.is_zero()));
    tokio::time::sleep(seconds(20)).await;
    let before = held();
    assert!(matches!(before[..], [(8, 8, Some(_)), (8, 8, Some(last))] if last > seconds(18)), "{before:?}");
    let busy = orchestrator.start(&long, "another", &1).await;
    assert!(matches!(busy, Err(StartError::Busy(_))), "{busy:?}");
    orchestrator.order("long-0", "ada", Order::Abandon { reason: "enough".to_owned() }).await.unwrap();
    tokio::time::sleep(seconds(12)).await;
    assert_eq!(held(), [(7, 8, None)]);
}

/// With one place there is nobody to make room for.
#[tokio::test(start_paused = true)]
async fn a_saga_that_is_alone_makes_room_for_nobody() {
    let (store, service) = (Memory::new(), Service::default());
    let saga = order(&service, None, &service);
    let orchestrator = open(&store, 1).register(&saga).start().await.unwrap();
    let handle = orchestrator.start(&saga, "order", &1).await.unwrap();
    tokio::time::sleep(seconds(20)).await;
    assert_eq!(orchestrator.live(), 1, "it is tried again soon, and nobody wants its place");
    service.there.store(true, SeqCst);
    let end = tokio::time::timeout(seconds(10), handle.finished()).await;
    assert_eq!(end.expect("it is sent as soon as it can be").unwrap(), Outcome::Completed(()));
}

/// What a participant has let be sent again is sent, however few places there are.
#[tokio::test(start_paused = true)]
async fn what_may_be_sent_again_is_sent_before_it_makes_room() {
    let (store, sent) = (Memory::new(), Arc::new(AtomicU32::new(0)));
    let mut saga = Saga::define::<u32>("asked", 1);
    let sending = sent.clone();
    let step = saga.step("send", (), move |_, ()| {
        let answered = sending.fetch_add(1, SeqCst) >= 3;
        async move { if answered { Ok(()) } else { Err(Failure::unknown("no answer")) } }
    });
    let step = step.verify(|_, ()| async { Ok(mainstay::saga::Verified::Resend) });
    let step = step.compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(step).unwrap();
    let mut long = Saga::define::<u32>("long", 1);
    let never = long.step("never", (), |_, ()| pending::<Result<(), Failure>>());
    let never = never.without_compensation("it takes its time");
    let long = long.build(never).unwrap();
    let orchestrator = open(&store, 2).register(&saga).register(&long).start().await.unwrap();
    orchestrator.start(&long, "long", &1).await.unwrap();
    let handle = orchestrator.start(&saga, "asked", &1).await.unwrap();
    let end = tokio::time::timeout(seconds(20), handle.finished()).await;
    assert_eq!(end.expect("it is sent again at once").unwrap(), Outcome::Completed(()));
    assert_eq!(sent.load(SeqCst), 4);
}
