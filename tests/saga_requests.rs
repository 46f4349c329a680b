//! What becomes of what is asked of a saga from outside: orders, messages, and who has asked.
#![cfg(feature = "saga")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    Event,
    saga::{
        AskError, Cause, Failure, Handle, Orchestrator, Order, Outcome, Output, Payload, Phase, Record, Saga,
        SagaId, StartOptions, Step, StoreError,
        journal::{Ask, Journal, Request, Requested},
        memory::{Fault, Memory, Operation},
    },
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A message, and a step behind it that can be undone.
fn asking() -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("asking", 1);
    let first = saga.step("first", (), async |_: Step<u32>, ()| {
        tokio::time::sleep(seconds(1)).await;
        Ok(1_u32)
    });
    let first = first.compensate(async |_, (), _| Ok(()));
    let answer = saga.signal::<u32, _>("answer", first, None);
    let last = saga.step("last", answer, async |_, answer: Option<u32>| Ok(answer.unwrap_or(0)));
    let last = last.compensate(async |_, _, _| Ok(()));
    saga.build(last).unwrap()
}

async fn open<R: mainstay::saga::Inputs>(store: &Memory, saga: &Saga<u32, R>) -> Orchestrator {
    Orchestrator::open(store.clone()).register(saga).start().await.unwrap()
}

/// How it ends, which it does.
async fn end<R: mainstay::saga::Inputs>(handle: &Handle<R>) -> Outcome<R::Values> {
    tokio::time::timeout(seconds(600), handle.finished()).await.expect("it ends").unwrap()
}

fn records(store: &Memory, id: &str) -> Vec<Record> {
    let stored = store.stored(&SagaId::new(id).unwrap()).unwrap();
    stored.entries.iter().map(|entry| entry.record().unwrap()).collect()
}

/// Who asked, for what, and why not.
fn refused(store: &Memory, id: &str) -> Vec<(String, Ask, String)> {
    let refused = |record| match record {
        Record::Refused { by, ask, why } => Some((by, ask, why)),
        _ => None,
    };
    records(store, id).into_iter().filter_map(refused).collect()
}

fn retry(step: &str) -> Order {
    Order::Retry { step: Some(step.to_owned()) }
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_refused_is_a_record_with_its_reason() {
    let (store, saga) = (Memory::new(), asking());
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = told.clone();
    let observer = move |event: &Event<'_>| {
        if let Event::SagaOrderRefused { saga, why, .. } = event {
            listener.lock().unwrap().push(format!("{saga}: {why}"));
        }
    };
    let opening = Orchestrator::open(store.clone()).register(&saga).observe(observer);
    let orchestrator = opening.start().await.unwrap();
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(2)).await;
    let before = records(&store, "s").len();
    for _ in 0..20 {
        assert_eq!(handle.order("ada", retry("first")).await.unwrap(), Requested::Left);
    }
    tokio::time::sleep(seconds(2)).await;
    let why = "the order cannot be followed: the step is neither stuck nor parked";
    let expected = ("ada".to_owned(), Ask::Order(retry("first")), why.to_owned());
    assert_eq!(refused(&store, "s"), vec![expected; 20], "one for each that a person has left");
    assert_eq!(records(&store, "s").len(), before + 20);
    assert_eq!(*told.lock().unwrap(), vec![format!("s: {why}"); 20]);
    // Nothing else follows.
    orchestrator.signal("s", "answer", "m", &7).await.unwrap();
    assert_eq!(end(&handle).await, Outcome::Completed(7));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_fit_is_refused_before_it_is_stored() {
    let (store, saga) = (Memory::new(), asking());
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    // Driven here at first, and later asleep in the store.
    for live in [true, false] {
        assert_eq!(orchestrator.live() > 0, live);
        let unreadable = orchestrator.signal("s", "answer", "m", "seven").await;
        assert!(matches!(unreadable, Err(AskError::Payload(_))), "{unreadable:?}");
        for step in ["first", "anwser"] {
            let error = orchestrator.signal("s", step, "m", &7).await.unwrap_err();
            let expected = AskError::Step { saga: SagaId::new("s").unwrap(), step: step.to_owned() };
            assert_eq!(error, expected);
            assert!(error.to_string().contains(&format!("no step {step:?} of saga s waits")), "{error}");
        }
        tokio::time::sleep(seconds(2)).await;
    }
    let kinds: Vec<&str> = records(&store, "s").iter().map(Record::kind).collect();
    assert_eq!(kinds, ["begun", "completed"], "nothing was stored");
    // The name of the message was not used up.
    assert_eq!(orchestrator.signal("s", "answer", "m", &7).await.unwrap(), Requested::Left);
    assert_eq!(end(&handle).await, Outcome::Completed(7));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_fit_and_comes_another_way_leaves_a_bounded_trace() {
    let (store, saga) = (Memory::new(), asking());
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(2)).await;
    // By a program that does not know the definition.
    let id = SagaId::new("s").unwrap();
    for n in 0..50 {
        let payload = Payload::encode("seven").unwrap();
        let step = if n == 0 { "anwser" } else { "answer" };
        let request = Request::signal(id.clone(), "web", step, &format!("m-{n}"), payload);
        assert_eq!(store.request(request).await.unwrap(), Requested::Left);
    }
    tokio::time::sleep(seconds(5)).await;
    let refused = refused(&store, "s");
    assert_eq!(refused.len(), 8, "{refused:?}");
    assert!(refused[0].2.contains("no step \"anwser\" waits for a message"), "{refused:?}");
    assert!(refused[1].2.contains("invalid type: string"), "{refused:?}");
    assert!(matches!(&refused[1].1, Ask::Signal { payload, .. } if payload.as_str() == "\"seven\""));
    orchestrator.signal("s", "answer", "right", &7).await.unwrap();
    assert_eq!(end(&handle).await, Outcome::Completed(7));
}

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
enum Older {
    Yes,
}

/// What a later version of the code makes of it.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
enum Newer {
    Yes,
    Later,
}

/// Has one digest whatever a vote is.
fn voting<T>() -> Saga<u32, Output<Option<T>>>
where
    T: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
{
    let mut saga = Saga::define::<u32>("voting", 1);
    let vote = saga.signal::<T, _>("vote", (), None);
    let _closed = saga.signal::<(), _>("close", vote, None);
    saga.build(vote).unwrap()
}

fn epoch(store: &Memory, id: &str) -> u64 {
    store.stored(&SagaId::new(id).unwrap()).unwrap().head.epoch
}

#[tokio::test(start_paused = true)]
async fn a_message_that_only_later_code_can_read_waits_for_it() {
    let (store, older, newer) = (Memory::new(), voting::<Older>(), voting::<Newer>());
    let told = Arc::new(AtomicU32::new(0));
    let listener = told.clone();
    let observer = move |event: &Event<'_>| {
        if let Event::SagaOrderRefused { .. } = event {
            listener.fetch_add(1, SeqCst);
        }
    };
    let old = Orchestrator::open(store.clone()).register(&older).observe(observer).start().await.unwrap();
    old.start(&older, "s", &1).await.unwrap();
    // As a process with later code leaves it, which has read it.
    let vote = || {
        let payload = Payload::encode(&Newer::Later).unwrap();
        store.request(Request::signal(SagaId::new("s").unwrap(), "web", "vote", "m", payload))
    };
    assert_eq!(vote().await.unwrap(), Requested::Left);
    tokio::time::sleep(seconds(3_600)).await;
    let said = refused(&store, "s");
    let why = "this code cannot read it, and it waits for code that can: unknown variant `Later`";
    assert!(said.len() == 1 && said[0].0 == "web" && said[0].2.starts_with(why), "{said:?}");
    assert_eq!(told.load(SeqCst), 1);
    assert!((2..90).contains(&epoch(&store, "s")), "claimed {} times in an hour", epoch(&store, "s"));
    assert_eq!(vote().await.unwrap(), Requested::Known);

    let new = open(&store.connect(), &newer).await;
    let handle = new.handle(&newer, "s").unwrap();
    new.signal("s", "close", "m", &()).await.unwrap();
    assert_eq!(end(&handle).await, Outcome::Completed(Some(Newer::Later)));
    assert_eq!((refused(&store, "s").len(), told.load(SeqCst)), (1, 1));
    assert_eq!(vote().await.unwrap(), Requested::Known, "it was read");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_be_read_waits_no_longer_than_its_step() {
    let (store, saga) = (Memory::new(), voting::<Older>());
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    let id = SagaId::new("s").unwrap();
    let payload = Payload::encode(&Newer::Later).unwrap();
    store.request(Request::signal(id.clone(), "web", "vote", "m", payload)).await.unwrap();
    tokio::time::sleep(seconds(60)).await;
    orchestrator.signal("s", "vote", "right", &Older::Yes).await.unwrap();
    tokio::time::sleep(seconds(600)).await;
    let before = epoch(&store, "s");
    tokio::time::sleep(seconds(3_600)).await;
    assert_eq!(epoch(&store, "s"), before, "nothing waits that would have it claimed");
    orchestrator.signal("s", "close", "m", &()).await.unwrap();
    assert_eq!(end(&handle).await, Outcome::Completed(Some(Older::Yes)));
}

#[tokio::test(start_paused = true)]
async fn few_messages_that_cannot_be_read_wait() {
    let (store, saga) = (Memory::new(), asking());
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    let leave = |n: u32, says: String| {
        let payload = Payload::encode(&says).unwrap();
        store.request(Request::signal(SagaId::new("s").unwrap(), "web", "answer", &format!("m-{n}"), payload))
    };
    // The second says what the first has said.
    for n in 0..50 {
        assert_eq!(leave(n, n.max(1).to_string()).await.unwrap(), Requested::Left);
    }
    // Its first step is still under way.
    tokio::time::sleep(Duration::from_millis(800)).await;
    let waiting = store.requests(orchestrator.incarnation()).await.unwrap();
    assert_eq!((waiting.len(), refused(&store, "s").len()), (7, 8), "{waiting:?}");
    tokio::time::sleep(seconds(600)).await;
    assert_eq!(refused(&store, "s").len(), 8);
    orchestrator.signal("s", "answer", "right", &7).await.unwrap();
    assert_eq!(end(&handle).await, Outcome::Completed(7));
    assert_eq!(leave(0, String::new()).await.unwrap(), Requested::Over(Phase::Completed), "it has waited");
    assert_eq!(leave(49, String::new()).await.unwrap(), Requested::Known);
}

#[tokio::test(start_paused = true)]
async fn who_has_asked_stands_in_the_record() {
    let (store, saga) = (Memory::new(), asking());
    let orchestrator = open(&store, &saga).await;
    let ends = async |handle: Handle<Output<u32>>| {
        assert!(matches!(end(&handle).await, Outcome::Compensated(Cause::Cancelled { .. })));
    };
    for id in ["mine", "hers", "theirs"] {
        orchestrator.start(&saga, id, &1).await.unwrap();
    }
    let handle = |id: &str| orchestrator.handle(&saga, id).unwrap();
    handle("mine").cancel("late").await.unwrap();
    let cancel = || Order::Cancel { reason: "late".to_owned() };
    handle("hers").order("ada", cancel()).await.unwrap();
    orchestrator.order("theirs", "grace", cancel()).await.unwrap();
    let incarnation = orchestrator.incarnation().as_str();
    for (id, who) in [("mine", incarnation), ("hers", "ada"), ("theirs", "grace")] {
        ends(handle(id)).await;
        let by = records(&store, id).into_iter().find_map(|record| match record {
            Record::Ordered { by, .. } => Some(by),
            _ => None,
        });
        assert_eq!(by.as_deref(), Some(who), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_saga_that_is_not_there_is_an_error() {
    let (store, saga) = (Memory::new(), asking());
    let orchestrator = open(&store, &saga).await;
    let missing = || Err(AskError::Missing(SagaId::new("nobody").unwrap()));
    let handle = orchestrator.handle(&saga, "nobody").unwrap();
    assert_eq!(orchestrator.cancel("nobody", "no").await, missing());
    assert_eq!(handle.cancel("no").await, missing());
    assert_eq!(handle.order("ada", Order::Retry { step: None }).await, missing());
    assert_eq!(orchestrator.signal("nobody", "answer", "m", &7).await, missing());
}

/// A step that never ends and is then the death of its orchestrator; whether it was undone.
fn deadly(undone: &Arc<AtomicU32>) -> Saga<u32> {
    let undone = undone.clone();
    let mut saga = Saga::define::<u32>("deadly", 1);
    let step = saga.step("step", (), |_, ()| std::future::pending::<Result<(), Failure>>());
    step.compensate(move |_, (), _| {
        undone.fetch_add(1, SeqCst);
        async { Ok(()) }
    });
    saga.build(()).unwrap()
}

/// A saga that is held, since an orchestrator has died at it.
async fn held(undone: &Arc<AtomicU32>, options: StartOptions) -> (Memory, Orchestrator, Handle<()>) {
    let saga = deadly(undone);
    let mut store = Memory::new();
    let first = open(&store, &saga).await;
    first.start_with(&saga, "s", &1, options).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    store.kill();
    drop(first);
    store = store.connect();
    let opening = Orchestrator::open(store.clone()).register(&saga).max_recoveries(0);
    let second = opening.start().await.unwrap();
    tokio::time::sleep(seconds(15)).await;
    let handle = second.handle(&saga, "s").unwrap();
    assert_eq!(handle.status().await.unwrap().phase, Some(Phase::Parked));
    (store, second, handle)
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_is_held_is_turned_round_when_a_person_cancels_it() {
    let undone = Arc::default();
    let (_store, _orchestrator, handle) = held(&undone, StartOptions::default()).await;
    handle.cancel("it kills").await.unwrap();
    let ended = tokio::time::timeout(seconds(60), handle.finished()).await.expect("it is held no longer");
    assert!(matches!(ended.unwrap(), Outcome::Compensated(Cause::Cancelled { .. })));
    assert_eq!(undone.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_lets_no_saga_go_that_waits_for_a_person() {
    let undone = Arc::default();
    let options = StartOptions::default().deadline(seconds(60));
    let (store, _orchestrator, handle) = held(&undone, options).await;
    tokio::time::sleep(seconds(600)).await;
    let kinds: Vec<&str> = records(&store, "s").iter().map(Record::kind).collect();
    assert_eq!(kinds, ["begun", "parked"], "what is held is not even looked at");
    assert_eq!(undone.load(SeqCst), 0);
    handle.order("ada", Order::Retry { step: Some("step".to_owned()) }).await.unwrap();
    tokio::time::sleep(seconds(2)).await;
    let status = handle.status().await.unwrap();
    assert_eq!(status.phase, Some(Phase::Parked), "its deadline has turned it round, and it is held");
    assert_eq!(undone.load(SeqCst), 0);
    handle.cancel("it shall be undone").await.unwrap();
    let ended = tokio::time::timeout(seconds(60), handle.finished()).await.expect("it is held no longer");
    assert_eq!(ended.unwrap(), Outcome::Compensated(Cause::Deadline));
    assert_eq!(undone.load(SeqCst), 1);
}

/// A saga whose records are damaged, as an orchestrator has found it.
async fn damaged() -> (Memory, Orchestrator, Handle<Output<u32>>) {
    let (store, saga) = (Memory::new(), asking());
    let orchestrator = open(&store, &saga).await;
    orchestrator.start(&saga, "s", &1).await.unwrap();
    orchestrator.shutdown(seconds(5)).await;
    let id = SagaId::new("s").unwrap();
    assert!(store.corrupt(&id, 0, 60));
    let store = store.reopen();
    let orchestrator = open(&store, &saga).await;
    // It has to be looked at for that.
    store.request(Request::order(id, "ada", Order::Retry { step: None })).await.unwrap();
    tokio::time::sleep(seconds(2)).await;
    let handle = orchestrator.handle(&saga, "s").unwrap();
    assert!(matches!(handle.settled().await.unwrap(), Outcome::Held { .. }));
    (store, orchestrator, handle)
}

/// What the orchestrator says of it in the store.
async fn announced(store: &Memory, orchestrator: &Orchestrator) -> Vec<String> {
    let all = store.orchestrators().await.unwrap();
    let own = all.into_iter().find(|one| one.by == *orchestrator.incarnation()).unwrap();
    own.presence.unwrap().blocked.into_iter().map(|(id, why)| format!("{id}: {why}")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_person_can_give_up_what_cannot_be_read_and_nothing_else() {
    let (store, orchestrator, handle) = damaged().await;
    let id = SagaId::new("s").unwrap();
    let before = store.stored(&id).unwrap();
    let why = "s: entry 0 does not have the checksum of what it says";
    assert_eq!(announced(&store, &orchestrator).await, [why]);
    handle.order("ada", Order::Compensate { reason: "no".to_owned() }).await.unwrap();
    tokio::time::sleep(seconds(60)).await;
    assert_eq!(store.stored(&id).unwrap(), before, "what is blocked is as it was found");

    handle.order("ada", Order::Abandon { reason: "settled by hand".to_owned() }).await.unwrap();
    assert_eq!(end(&handle).await, Outcome::Abandoned("settled by hand".to_owned()));
    let after = store.stored(&id).unwrap();
    assert_eq!(after.entries[..before.entries.len()], before.entries[..]);
    assert_eq!(after.verify(), before.verify(), "that it is damaged can be seen as before");
    let last = after.entries.last().unwrap().record().unwrap();
    assert!(matches!(last, Record::Ordered { by, order: Order::Abandon { .. }, .. } if by == "ada"));
    tokio::time::sleep(seconds(1)).await;
    assert_eq!(announced(&store, &orchestrator).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_even_be_given_up_says_so_and_holds_nobody_up() {
    let (store, orchestrator, handle) = damaged().await;
    let before = store.counts().operations[&Operation::Append];
    store.fault(Operation::Append, 0, Fault::Fail(StoreError::Io("no place behind it".to_owned())));
    handle.order("ada", Order::Abandon { reason: "no".to_owned() }).await.unwrap();
    tokio::time::sleep(seconds(60)).await;
    let blocked = announced(&store, &orchestrator).await;
    assert!(blocked[0].contains("it cannot be given up (") && blocked[0].contains("no place"), "{blocked:?}");
    assert_eq!(store.counts().operations[&Operation::Append], before + 1, "it is tried once");
    let saga = asking();
    let other = orchestrator.start(&saga, "other", &1).await.unwrap();
    orchestrator.signal("other", "answer", "m", &7).await.unwrap();
    assert_eq!(end(&other).await, Outcome::Completed(7));
}
