//! The store in memory: it keeps every promise of a journal, its faults are what they say, and the suite notices journals
//! that break a promise.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use mainstay::saga::{
    Incarnation, Record, SagaId, Timestamp,
    conformance::{self, Broken, Pen, Subject, definition},
    journal::{
        Append, Claim, Corrupt, Forgotten, Head, Journal, Pending, Phase, Presence, Query, Refusal,
        Registered, Request, Requested, StoreError, Stored,
    },
    memory::{Fault, Memory, Operation},
};

fn id(text: &str) -> SagaId {
    SagaId::new(text).unwrap()
}

fn one() -> Incarnation {
    Incarnation::from_text("one")
}

async fn append(store: &Memory, append: Append) -> Result<Result<(), Refusal>, StoreError> {
    store.append(vec![append]).await.map(|mut answers| answers.remove(0))
}

// --- the promises ---

/// Memory stores that are opened again after a power cut.
fn subject(wrap: impl Fn(Memory) -> Arc<dyn Journal> + Send + Sync + Clone + 'static) -> Subject {
    let latest = Arc::new(Mutex::new(Memory::new()));
    let (opened, wrapped) = (latest.clone(), wrap.clone());
    Subject::new(
        move || {
            let memory = Memory::new();
            *opened.lock().unwrap() = memory.clone();
            std::future::ready(wrapped(memory))
        },
        tokio::time::sleep,
    )
    .reopen(move |_| {
        let mut latest = latest.lock().unwrap();
        latest.crash();
        *latest = latest.reopen();
        std::future::ready(wrap(latest.clone()))
    })
}

#[tokio::test(start_paused = true)]
async fn the_memory_store_keeps_every_promise() {
    conformance::run(&subject(|memory| Arc::new(memory))).await;
}

// --- the suite notices ---

/// A journal that breaks one promise.
#[derive(Debug, Clone, Copy)]
enum Bug {
    IgnoresTheOwner,
    IgnoresTheEpoch,
    AcceptsAGap,
    AcceptsASecondBegin,
    RefusesTheWholeBatch,
    AnswersInAnotherOrder,
    MixesUpBatches,
    WritesAPartOfAnAppend,
    ClaimsFromTheLiving,
    ClaimsWithoutAnEpoch,
    ClaimsAnyDefinition,
    ClaimsTheUnwanted,
    ClaimsMoreThanOne,
    LosesItsOwn,
    ClaimsWithoutLimit,
    ClaimsInAnotherOrder,
    CountsNoRecoveries,
    NeverLetsGo,
    ForgetsToWake,
    IgnoresHeartbeats,
    IgnoresLeaving,
    AnnouncesNothing,
    SpeaksForTheGone,
    TakesNoLocks,
    LosesTheNote,
    LosesTheLastEntry,
    AnswersNothing,
    ForgetsWhatItAnswered,
    MixesUpRequests,
    ListsInAnotherOrder,
    ListsEveryPhase,
    ListsEveryTag,
    ListsFromTheStart,
    ForgetsWithoutLimit,
    ForgetsTooMuch,
    ForgetsNothing,
    ForgetsInSilence,
    AcknowledgesUnsynced,
    StandsStill,
}

use Bug::*;

const BUGS: [Bug; 39] = [
    IgnoresTheOwner,
    IgnoresTheEpoch,
    AcceptsAGap,
    AcceptsASecondBegin,
    RefusesTheWholeBatch,
    AnswersInAnotherOrder,
    MixesUpBatches,
    WritesAPartOfAnAppend,
    ClaimsFromTheLiving,
    ClaimsWithoutAnEpoch,
    ClaimsAnyDefinition,
    ClaimsTheUnwanted,
    ClaimsMoreThanOne,
    LosesItsOwn,
    ClaimsWithoutLimit,
    ClaimsInAnotherOrder,
    CountsNoRecoveries,
    NeverLetsGo,
    ForgetsToWake,
    IgnoresHeartbeats,
    IgnoresLeaving,
    AnnouncesNothing,
    SpeaksForTheGone,
    TakesNoLocks,
    LosesTheNote,
    LosesTheLastEntry,
    AnswersNothing,
    ForgetsWhatItAnswered,
    MixesUpRequests,
    ListsInAnotherOrder,
    ListsEveryPhase,
    ListsEveryTag,
    ListsFromTheStart,
    ForgetsWithoutLimit,
    ForgetsTooMuch,
    ForgetsNothing,
    ForgetsInSilence,
    AcknowledgesUnsynced,
    StandsStill,
];

struct Planted {
    inner: Memory,
    bug: Bug,
    /// The answers of the last batch, while another one is waited for.
    last: Mutex<Vec<Result<(), Refusal>>>,
}

impl Planted {
    fn is(&self, bug: Bug) -> bool {
        std::mem::discriminant(&self.bug) == std::mem::discriminant(&bug)
    }
}

impl Journal for Planted {
    fn now(&self) -> Pending<'_, Timestamp> {
        if self.is(StandsStill) {
            return Box::pin(std::future::ready(Ok(Timestamp(1_000_000))));
        }
        self.inner.now()
    }

    fn append(&self, mut batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        Box::pin(async move {
            for item in &mut batch {
                let stored = self.inner.stored(&item.saga);
                match (self.bug, &stored) {
                    (IgnoresTheOwner, Some(stored)) => {
                        item.by = stored.head.owner.clone().unwrap_or(item.by.clone());
                    }
                    (IgnoresTheEpoch, Some(stored)) => item.epoch = stored.head.epoch,
                    (AcceptsAGap, Some(stored)) => {
                        for (seq, entry) in (stored.head.len..).zip(&mut item.entries) {
                            entry.seq = seq;
                        }
                    }
                    (AcceptsASecondBegin, Some(stored)) if item.begin.take().is_some() => {
                        item.entries.clear();
                        item.by = stored.head.owner.clone().unwrap_or(item.by.clone());
                    }
                    (WritesAPartOfAnAppend, _) => {
                        let stays = |entry: &mainstay::saga::Entry| entry.seq < 30;
                        item.entries.retain(stays);
                    }
                    (NeverLetsGo, _) => item.release = false,
                    (ForgetsToWake, _) => item.wake = None,
                    (TakesNoLocks, _) => item.begin.iter_mut().for_each(|begin| begin.locks.clear()),
                    (LosesTheNote, _) => item.note.clear(),
                    (AnswersNothing, _) => item.answers.clear(),
                    _ => {}
                }
            }
            if self.is(RefusesTheWholeBatch) && batch.len() > 1 {
                let trial = Memory::restore(&self.inner.snapshot());
                let answers = trial.append(batch.clone()).await?;
                if answers.iter().any(Result::is_err) {
                    return Ok(answers.iter().map(|_| Err(Refusal::Missing)).collect());
                }
            }
            let mut answers = self.inner.append(batch).await?;
            if self.is(AnswersInAnotherOrder) {
                answers.reverse();
            }
            if self.is(MixesUpBatches) {
                // Whoever is answered next gets what came last.
                *self.last.lock().unwrap() = answers.clone();
                tokio::task::yield_now().await;
                answers.clone_from(&self.last.lock().unwrap());
            }
            Ok(answers)
        })
    }

    fn blocks(&self) -> bool {
        false
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        if self.is(IgnoresHeartbeats) {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.inner.heartbeat(by, lease)
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        if self.is(IgnoresLeaving) {
            return Box::pin(std::future::ready(Ok(())));
        }
        if self.is(SpeaksForTheGone) {
            let by = by.clone();
            return Box::pin(async move {
                self.inner.leave(&by).await?;
                self.inner.announce(&by, Presence::default()).await
            });
        }
        self.inner.leave(by)
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        if self.is(AnnouncesNothing) {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.inner.announce(by, presence)
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        self.inner.orchestrators()
    }

    fn claim(&self, mut claim: Claim) -> Pending<'_, Vec<Stored>> {
        Box::pin(async move {
            match self.bug {
                ClaimsFromTheLiving => {
                    for head in self.inner.list(Query::default()).await? {
                        if let Some(owner) = head.owner {
                            self.inner.leave(&owner).await?;
                        }
                    }
                }
                ClaimsAnyDefinition => {
                    let all = self.inner.list(Query::default()).await?;
                    claim.definitions = all.into_iter().map(|head| head.definition).collect();
                }
                ClaimsTheUnwanted => claim.except.clear(),
                ClaimsMoreThanOne => claim.only = None,
                LosesItsOwn => {
                    let own = |only: &SagaId| {
                        self.inner
                            .stored(only)
                            .is_some_and(|stored| stored.head.owner.as_ref() == Some(&claim.by))
                    };
                    if claim.only.as_ref().is_some_and(|only| only.iter().any(own)) {
                        claim.limit = 0;
                    }
                }
                ClaimsWithoutLimit => claim.limit = usize::MAX,
                _ => {}
            }
            let mut taken = self.inner.claim(claim).await?;
            match self.bug {
                ClaimsInAnotherOrder => taken.reverse(),
                ClaimsWithoutAnEpoch => taken.iter_mut().for_each(|stored| stored.head.epoch -= 1),
                CountsNoRecoveries => taken.iter_mut().for_each(|stored| stored.head.recoveries = 0),
                _ => {}
            }
            Ok(taken)
        })
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        let saga = saga.clone();
        Box::pin(async move {
            let mut stored = self.inner.load(&saga).await?;
            if let (LosesTheLastEntry, Some(stored)) = (self.bug, &mut stored) {
                stored.entries.pop();
            }
            Ok(stored)
        })
    }

    fn list(&self, mut query: Query) -> Pending<'_, Vec<Head>> {
        Box::pin(async move {
            match self.bug {
                ListsEveryPhase => query.phases.clear(),
                ListsEveryTag => query.tag = None,
                // Once more from the first, and then no more, so that a walk over the pages comes to its end.
                ListsFromTheStart if query.limit == 3 => {
                    query.after = query.after.filter(|after| after.as_str() != "9")
                }
                _ => {}
            }
            let mut heads = self.inner.list(query).await?;
            match self.bug {
                ListsInAnotherOrder => heads.reverse(),
                ListsFromTheStart => heads.truncate(2),
                _ => {}
            }
            Ok(heads)
        })
    }

    fn request(&self, mut request: Request) -> Pending<'_, Requested> {
        if self.is(ForgetsWhatItAnswered) {
            if let Some(stored) = self.inner.stored(&request.saga) {
                request.id += &stored.head.len.to_string();
            }
        }
        self.inner.request(request)
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        let by = by.clone();
        Box::pin(async move {
            let mut requests = self.inner.requests(&by).await?;
            if self.is(MixesUpRequests) {
                requests.sort_by(|a, b| a.saga.cmp(&b.saga));
            }
            Ok(requests)
        })
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        match self.bug {
            ForgetsWithoutLimit => self.inner.forget(by, before, usize::MAX),
            ForgetsTooMuch => self.inner.forget(by, Timestamp(u64::MAX), limit),
            ForgetsNothing => Box::pin(std::future::ready(Ok(0))),
            _ => self.inner.forget(by, before, limit),
        }
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        if self.is(ForgetsInSilence) {
            return Box::pin(std::future::ready(Ok(Vec::new())));
        }
        self.inner.forgotten(limit)
    }
}

/// What the suite says to a bug. A rule that panics has noticed too, though it should not.
async fn verdict(bug: Bug) -> Vec<(&'static str, Broken)> {
    let subject = subject(move |inner| {
        inner.acknowledge_unsynced(matches!(bug, AcknowledgesUnsynced));
        Arc::new(Planted { inner, bug, last: Mutex::default() })
    });
    let mut broken = Vec::new();
    for rule in conformance::rules() {
        // The large ones add nothing here but time.
        if ["ten_thousand_sagas_are_paged", "large_records_are_kept"].contains(&rule.name()) {
            continue;
        }
        let check = AssertUnwindSafe(rule.check(&subject)).catch_unwind();
        match check.await {
            Ok(Ok(())) => {}
            Ok(Err(what)) => broken.push((rule.name(), what)),
            Err(_) => panic!("{} panics over {bug:?} instead of telling", rule.name()),
        }
    }
    broken
}

#[tokio::test(start_paused = true)]
async fn the_suite_notices_every_planted_bug() {
    for bug in BUGS {
        let broken = verdict(bug).await;
        assert!(!broken.is_empty(), "nothing notices a journal that {bug:?}");
        assert!(
            broken.len() < conformance::rules().len() - 1,
            "every rule fails over {bug:?}, which tells nothing"
        );
    }
}

// --- faults ---

#[tokio::test(start_paused = true)]
async fn a_fault_before_the_effect_leaves_nothing_and_one_after_it_everything() {
    let store = Memory::new();
    let mut pen = Pen::new("a", &one(), Timestamp(1));
    store.fault(Operation::Append, 1, Fault::Fail(StoreError::Unavailable("no route".into())));
    store.fault(Operation::Append, 2, Fault::LoseAnswer(StoreError::Unavailable("cut".into())));
    assert_eq!(append(&store, pen.begin(&definition())).await, Ok(Ok(())));
    let step = pen.step("x");
    assert_eq!(append(&store, step.clone()).await, Err(StoreError::Unavailable("no route".into())));
    assert_eq!(store.stored(&id("a")).unwrap().head.len, 1, "it failed before it did anything");
    assert_eq!(append(&store, step.clone()).await, Err(StoreError::Unavailable("cut".into())));
    assert_eq!(store.planned_faults(), 0, "both faults have come");
    store.crash();
    assert_eq!(store.stored(&id("a")).unwrap().head.len, 2, "only its answer was lost");
    let store = store.reopen();
    assert_eq!(
        append(&store, step).await,
        Ok(Err(Refusal::Gap { expected: 2 })),
        "asking again tells that it is there"
    );
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_takes_what_was_not_synced_and_answers_nobody() {
    for (fault, len) in [(Fault::CrashBefore, 1), (Fault::CrashUnsynced, 1), (Fault::CrashAfter, 2)] {
        let store = Memory::new();
        let mut pen = Pen::new("a", &one(), Timestamp(1));
        append(&store, pen.begin(&definition())).await.unwrap().unwrap();
        store.fault(Operation::Append, 0, fault.clone());
        let step = pen.step("x");
        let write = append(&store, step);
        tokio::select! {
            answer = write => panic!("{fault:?} was answered: {answer:?}"),
            () = store.dead() => {}
        }
        assert!(store.is_dead());
        assert!(store.load(&id("a")).now_or_never().is_none(), "a dead connection answers nothing");
        let store = store.reopen();
        let stored = store.load(&id("a")).await.unwrap().unwrap();
        assert_eq!(stored.verify(), Ok(()));
        assert_eq!(stored.head.len, len, "after {fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_acknowledges_first_loses_what_it_acknowledged() {
    let store = Memory::new();
    store.acknowledge_unsynced(true);
    let mut pen = Pen::new("a", &one(), Timestamp(1));
    append(&store, pen.begin(&definition())).await.unwrap().unwrap();
    store.sync();
    for step in ["x", "y", "z"] {
        append(&store, pen.step(step)).await.unwrap().unwrap();
    }
    store.heartbeat(&one(), Duration::from_secs(9)).await.unwrap();
    assert_eq!(
        Memory::restore(&store.snapshot()).stored(&id("a")).unwrap().head.len,
        1,
        "an image is of the disk"
    );
    store.crash_keeping(2);
    let stored = store.stored(&id("a")).unwrap();
    assert_eq!((stored.head.len, stored.verify()), (3, Ok(())), "the disk had got two of them");
    let store = store.reopen();
    let claim = Claim {
        by: Incarnation::from_text("two"),
        definitions: vec![definition()],
        except: vec![],
        only: None,
        limit: 9,
    };
    assert_eq!(store.claim(claim).await.unwrap().len(), 1, "the lease is gone too");
}

#[tokio::test(start_paused = true)]
async fn a_stall_takes_its_time_and_can_be_dropped() {
    let store = Memory::new();
    let mut pen = Pen::new("a", &one(), Timestamp(1));
    append(&store, pen.begin(&definition())).await.unwrap().unwrap();
    let second = Duration::from_secs(1);
    store.fault(Operation::Append, 0, Fault::Stall(second));
    let before = store.now().await.unwrap();
    let step = pen.step("x");
    let mut write = Box::pin(append(&store, step.clone()));
    assert!(write.as_mut().now_or_never().is_none());
    assert_eq!(store.stored(&id("a")).unwrap().head.len, 1);
    assert_eq!(write.await, Ok(Ok(())));
    assert_eq!(store.now().await.unwrap().since(before), second);
    store.fault(Operation::Append, 0, Fault::StallUnsynced(second));
    drop(append(&store, pen.step("y")).now_or_never());
    assert_eq!(store.stored(&id("a")).unwrap().head.len, 3, "it is written");
    store.crash();
    assert_eq!(store.stored(&id("a")).unwrap().head.len, 2, "and was not synced");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_fails_to_sync_refuses_everything_until_it_is_opened_again() {
    let store = Memory::new();
    let other = store.connect();
    store.fault(Operation::Append, 0, Fault::FailSync);
    let begin = Pen::new("a", &one(), Timestamp(1)).begin(&definition());
    assert!(matches!(append(&store, begin).await, Err(StoreError::Io(_))));
    assert_eq!(store.load(&id("a")).await, Err(StoreError::Poisoned));
    assert_eq!(store.clone().list(Query::default()).await, Err(StoreError::Poisoned));
    assert!(other.load(&id("a")).await.is_ok(), "another process has its own luck");
    let store = store.reopen();
    assert!(store.load(&id("a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn connections_die_one_by_one() {
    let store = Memory::new();
    let other = store.connect();
    other.kill();
    other.dead().await;
    assert!(other.clone().now().now_or_never().is_none(), "clones are the same connection");
    assert!(store.now().await.is_ok(), "the other one lives");
    assert!(store.clone().dead().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn damage_is_noticed() {
    let store = Memory::new();
    let mut pen = Pen::new("a", &one(), Timestamp(1));
    append(&store, pen.begin(&definition())).await.unwrap().unwrap();
    append(&store, pen.step("x")).await.unwrap().unwrap();
    let whole = store.snapshot();
    let bits = store.stored(&id("a")).unwrap().entries[1].data.len() * 7;
    for bit in 0..bits {
        let store = Memory::restore(&whole);
        assert!(store.corrupt(&id("a"), 1, bit));
        assert_eq!(store.stored(&id("a")).unwrap().verify(), Err(Corrupt::Checksum { seq: 1 }), "bit {bit}");
    }
    let store = Memory::restore(&whole);
    assert_eq!(store.truncate(&id("a"), 1), 1);
    assert_eq!(store.stored(&id("a")).unwrap().verify(), Err(Corrupt::Length { counted: 2, found: 1 }));
    assert!(!store.corrupt(&id("a"), 1, 0), "there is nothing to damage");
    assert_eq!(Memory::restore(&whole).stored(&id("a")).unwrap().verify(), Ok(()), "an image is not touched");
}

#[tokio::test(start_paused = true)]
async fn counts_tell_how_much_was_forced() {
    let store = Memory::new();
    let (mut a, mut b) = (Pen::new("a", &one(), Timestamp(1)), Pen::new("b", &one(), Timestamp(1)));
    store.append(vec![a.begin(&definition()), b.begin(&definition())]).await.unwrap();
    let two = a.write(&[Record::Sent { step: "x".into() }, Record::Clean { step: "x".into() }]);
    store.append(vec![two, b.clone().begin(&definition())]).await.unwrap();
    store.append(vec![b.clone().begin(&definition())]).await.unwrap();
    append(&store, a.end(Phase::Completed)).await.unwrap().unwrap();
    store.heartbeat(&one(), Duration::from_secs(1)).await.unwrap();
    let counts = store.counts();
    assert_eq!(
        (counts.forced, counts.forced_others),
        (3, 1),
        "a batch that was refused whole forces nothing"
    );
    assert_eq!((counts.accepted, counts.refused, counts.entries), (4, 2, 5));
    assert_eq!((counts.kind("begun"), counts.kind("sent"), counts.kind("completed")), (2, 1, 1));
    assert_eq!(counts.operation(Operation::Append), 4);
    store.reset_counts();
    assert_eq!(store.counts().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn an_image_can_be_opened_any_number_of_times() {
    let store = Memory::new();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut pen = Pen::new("a", &one(), Timestamp(1));
    append(&store, pen.begin(&definition())).await.unwrap().unwrap();
    let (image, taken) = (store.snapshot(), store.now().await.unwrap());
    tokio::time::sleep(Duration::from_secs(5)).await;
    for _ in 0..10_000 {
        let store = Memory::restore(&image);
        assert_eq!(store.now().await, Ok(taken), "its clock goes on where the image was taken");
        append(&store, pen.clone().step("x")).await.unwrap().unwrap();
        assert_eq!(store.sagas(), [id("a")]);
    }
    assert_eq!(Memory::restore(&image).stored(&id("a")).unwrap().head.len, 1);
}
