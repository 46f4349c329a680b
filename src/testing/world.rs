//! Everything around one saga in a test: the store, the network, and what goes wrong in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use super::{
    business::{Business, OnDevice, counting, doubling},
    case::{Case, Edge, Fault, Loss, Ordered, Place},
    check::Bug,
    evidence::{Call, Said, Violation, What},
    gate::Gate,
    plan::is_repeated,
};
use crate::{
    saga::{
        Failure, Incarnation, Key, Order, Payload, SagaId, Timestamp, Verified,
        attempt::{Acted, Pending as Waiting, StepCode, Told},
        conformance::Pen,
        definition::Definition,
        journal::{Append, DefinitionId, Journal, Refusal, StoreError, Stored},
        memory::{self, Memory, Operation},
    },
    sync::{Mutex, lock},
};

/// A request that has not arrived yet: what becomes of it when it does.
type Deliver = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Said> + Send>> + Send>;

/// How the answer of a step's code is taken.
struct Taken<T> {
    judge: fn(&Result<T, Failure>) -> Said,
    /// The answer is lost.
    lose: fn(&World, T, Loss) -> Result<T, Failure>,
}

impl<T> Clone for Taken<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Taken<T> {}

type Code<T> = Arc<dyn Fn(&Told) -> Waiting<Result<T, Failure>> + Send + Sync>;

pub(super) struct World {
    saga: SagaId,
    pub(super) state: Mutex<State>,
    /// The life that stands still.
    paused: watch::Sender<Option<u32>>,
    /// How many places were passed.
    pub(super) passed: watch::Sender<usize>,
    /// What somebody wants to order now.
    asked: watch::Sender<Option<Order>>,
    /// The locks that the saga is started with.
    locks: Vec<String>,
    pub(super) bug: Option<Bug>,
    skew: Skew,
    /// Where the work of steps is done.
    pub(super) business: Option<Arc<dyn Business>>,
}

/// How long requests to different steps are on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Skew {
    /// All the same.
    #[default]
    Even,
    /// Later steps answer later.
    Ascending,
    /// Later steps answer earlier.
    Descending,
}

pub(super) struct State {
    store: Memory,
    plan: Vec<(Fault, bool)>,
    calls: Vec<Call>,
    /// What was passed, in order.
    trace: Vec<Place>,
    /// What has changed nothing since something was passed, by this orchestrator: the same again is no place.
    idle: BTreeSet<Operation>,
    /// The present, on the scale of the calls.
    clock: u64,
    travelling: BTreeMap<usize, Deliver>,
    operations: BTreeMap<Operation, u32>,
    /// Who has called in each epoch.
    owners: BTreeMap<u64, u32>,
    violations: Vec<Violation>,
    /// The highest epoch that a cache in front of the store has seen: a planted bug.
    pub(super) cached: u64,
    /// What the store had of the saga before it was told to forget it.
    kept: Option<Stored>,
    /// The orchestrator that works now; all earlier ones are dead, unless one is paused.
    pub(super) life: u32,
    pub(super) dead: u32,
    steps: Vec<String>,
    order: Option<Order>,
    problem: Option<String>,
}

/// What a call is to meet.
struct Met {
    id: usize,
    before: Option<Stop>,
    after: Option<Stop>,
    answer: Option<Answer>,
    twice: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Stop {
    Crash,
    Pause,
    Ask,
}

enum Answer {
    Rejected,
    Dropped,
    Held,
    Refused,
    Lost(Loss),
}

impl World {
    pub(super) fn new(
        saga: SagaId,
        case: &Case,
        steps: Vec<String>,
        locks: Vec<String>,
        bug: Option<Bug>,
        skew: Skew,
        business: Option<Arc<dyn Business>>,
    ) -> Arc<Self> {
        let store = Memory::new();
        if let Some(business) = &business {
            let forgets = bug == Some(Bug::WorkUnsynced);
            store.put_beside(Arc::new(OnDevice::new(business.clone(), forgets)));
        }
        let state = State {
            store,
            plan: case.0.iter().map(|fault| (fault.clone(), false)).collect(),
            calls: Vec::new(),
            trace: Vec::new(),
            idle: BTreeSet::new(),
            clock: 0,
            travelling: BTreeMap::new(),
            operations: BTreeMap::new(),
            owners: BTreeMap::new(),
            violations: Vec::new(),
            cached: 0,
            kept: None,
            life: 0,
            dead: 0,
            steps,
            order: None,
            problem: None,
        };
        Arc::new(World {
            saga,
            state: Mutex::new(state),
            paused: watch::Sender::new(None),
            passed: watch::Sender::new(0),
            asked: watch::Sender::new(None),
            locks,
            bug,
            skew,
            business,
        })
    }

    // === the runner's side

    pub(super) fn store(&self) -> Memory {
        lock(&self.state).store.clone()
    }

    /// Another orchestrator's connection; the store is opened anew if the last one is dead.
    pub(super) fn connect(self: &Arc<Self>) -> Gate {
        let mut state = lock(&self.state);
        state.life += 1;
        state.idle.clear();
        if state.life > 1 {
            state.store = state.store.connect();
        }
        // A crash may have come in a claim that this bug is about.
        state.store.acknowledge_unsynced(self.bug == Some(Bug::AcknowledgeBeforeSync));
        Gate { world: self.clone(), store: state.store.clone(), life: state.life }
    }

    /// How many orchestrators there have been.
    pub(super) fn lives(&self) -> u32 {
        lock(&self.state).life
    }

    /// Waits until an orchestrator stands still.
    pub(super) async fn pause(&self) {
        let mut paused = self.paused.subscribe();
        let _ = paused.wait_for(Option::is_some).await;
    }

    /// Waits until somebody wants to order something, and takes it.
    pub(super) async fn order(&self) -> Order {
        let mut asked = self.asked.subscribe();
        loop {
            if let Some(order) = self.asked.send_replace(None) {
                return order;
            }
            let _ = asked.wait_for(Option::is_some).await;
        }
    }

    pub(super) fn resume(&self) {
        self.paused.send_replace(None);
    }

    /// How many places have been passed.
    pub(super) fn passed(&self) -> usize {
        *self.passed.borrow()
    }

    /// Waits until more than `than` places have been passed.
    pub(super) async fn progress(&self, than: usize) {
        let mut passed = self.passed.subscribe();
        let _ = passed.wait_for(|passed| *passed > than).await;
    }

    pub(super) fn trace(&self) -> Vec<Place> {
        lock(&self.state).trace.clone()
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls.clone()
    }

    /// Looks whether the saga has its locks, by what a crash would leave: another one that begins with them is refused while this one is not
    /// over, and only then.
    pub(super) async fn probe(&self) {
        if self.locks.is_empty() {
            return;
        }
        let (image, is_open) = {
            let state = lock(&self.state);
            let image = Memory::restore(&state.store.snapshot());
            let is_open = image.stored(&self.saga).is_some_and(|stored| !stored.head.phase.is_terminal());
            (image, is_open)
        };
        for key in &self.locks {
            let answer = image.append(vec![another(key)]).await.unwrap_or_default().pop();
            let held = matches!(&answer, Some(Err(Refusal::Locked { holder, .. })) if *holder == self.saga);
            if held != is_open || !held && answer != Some(Ok(())) {
                let why = format!(
                    "lock {key:?}, while the saga is in the store and not over: {is_open}; {answer:?}"
                );
                lock(&self.state).problem.get_or_insert(why);
            }
        }
    }

    pub(super) fn problem(&self) -> Option<String> {
        lock(&self.state).problem.clone()
    }

    /// What was seen to be wrong when it happened.
    pub(super) fn violations(&self) -> Vec<Violation> {
        lock(&self.state).violations.clone()
    }

    /// Notes what the store has of the saga if it is over; whether it is.
    pub(super) fn keep(&self) -> bool {
        let mut state = lock(&self.state);
        let over = state.store.stored(&self.saga).filter(|stored| stored.head.phase.is_terminal());
        let is_over = over.is_some();
        state.kept = over.or(state.kept.take());
        is_over
    }

    pub(super) fn kept(&self) -> Option<Stored> {
        lock(&self.state).kept.clone()
    }

    pub(super) fn unfired(&self) -> Vec<Fault> {
        lock(&self.state).plan.iter().filter(|(_, fired)| !fired).map(|(fault, _)| fault.clone()).collect()
    }

    /// Everything that is still on its way arrives. What does not end within `patience` is never answered; what it did until then it has done.
    pub(super) async fn deliver_late(&self, patience: Duration) {
        let late = std::mem::take(&mut lock(&self.state).travelling);
        for (id, deliver) in late {
            let mut again = {
                let mut state = lock(&self.state);
                let mut call = state.calls[id].clone();
                (call.redelivered, call.ended, call.began) = (true, None, state.tick());
                call
            };
            // Nobody waits for it as for an attempt, and on a paused clock without a timer the runtime would sleep for ever.
            let said = tokio::time::timeout(patience, deliver()).await.ok();
            let mut state = lock(&self.state);
            again.ended = said.map(|said| (state.tick(), said));
            state.calls.push(again);
        }
    }

    // === the network's side

    fn crash(&self) {
        let mut state = lock(&self.state);
        state.dead = state.life;
        state.store.crash();
    }

    /// Goes on only for an orchestrator that lives and does not stand still.
    pub(super) async fn alive(&self, life: u32) {
        let mut paused = self.paused.subscribe();
        let _ = paused.wait_for(|paused| *paused != Some(life)).await;
        if lock(&self.state).dead >= life {
            pending::<()>().await;
        }
    }

    pub(super) async fn stop(&self, stop: Option<Stop>, life: u32) {
        match stop {
            Some(Stop::Crash) => {
                self.crash();
                pending::<()>().await;
            }
            Some(Stop::Pause) => {
                self.paused.send_replace(Some(life));
                self.alive(life).await;
            }
            Some(Stop::Ask) => {
                let order = lock(&self.state).order.take();
                self.asked.send_replace(order);
                // Until it is heard, and longer.
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.alive(life).await;
            }
            None => {}
        }
    }

    async fn travel(&self, step: &str, life: u32) {
        let (at, last) = {
            let state = lock(&self.state);
            let at = state.steps.iter().position(|path| path == step).unwrap_or(0);
            (at, state.steps.len() - 1)
        };
        let time = match self.skew {
            Skew::Even => 1,
            Skew::Ascending => 1 + 3 * at,
            Skew::Descending => 1 + 3 * (last - at.min(last)),
        };
        tokio::time::sleep(Duration::from_millis(time as u64)).await;
        self.alive(life).await;
    }

    async fn call<T: Send + 'static>(
        self: Arc<Self>,
        life: u32,
        step: Arc<str>,
        what: What,
        mut told: Told,
        code: Code<T>,
        Taken { judge, lose }: Taken<T>,
    ) -> Result<T, Failure> {
        if self.bug == Some(Bug::KeyOfAttempt) {
            let path = format!("{step}-{}", told.attempt);
            told.key = Key::new(&self.saga, &path, what.direction()).unwrap_or(told.key);
        }
        let deliver: Deliver = {
            let (code, told) = (code.clone(), told.clone());
            Box::new(move || {
                let answer = code(&told);
                Box::pin(async move { judge(&answer.await) })
            })
        };
        let Met { id, before, after, answer, twice } =
            lock(&self.state).meet(life, &self.saga, &step, what, &told, deliver);
        self.passed.send_modify(|passed| *passed += 1);
        self.alive(life).await;
        self.stop(before, life).await;
        let unknown = || lost(Loss::Error);
        match answer {
            Some(Answer::Rejected) => {
                self.arrived(id);
                self.answered(id, Said::Nothing);
                return Err(Failure::rejected("planned"));
            }
            Some(Answer::Dropped) => {
                self.arrived(id);
                self.answered(id, Said::Nothing);
                return unknown();
            }
            Some(Answer::Refused) => {
                self.arrived(id);
                self.answered(id, Said::Unknown);
                return unknown();
            }
            // It stays on its way.
            Some(Answer::Held) => return unknown(),
            Some(Answer::Lost(_)) | None => {}
        }
        self.travel(&step, life).await;
        self.arrived(id);
        let mut said = code(&told).await;
        if twice {
            let mut again = lock(&self.state).calls[id].clone();
            let second = code(&told).await;
            (again.redelivered, again.ended) = (true, Some((0, judge(&second))));
            let mut state = lock(&self.state);
            (again.began, again.ended) = (state.tick(), again.ended.map(|(_, said)| (state.clock, said)));
            state.calls.push(again);
            said = second;
        }
        self.answered(id, judge(&said));
        self.stop(after, life).await;
        match answer {
            Some(Answer::Lost(Loss::Timeout)) => pending().await,
            Some(Answer::Lost(loss)) => {
                return match said {
                    Ok(answer) => lose(&self, answer, loss),
                    Err(_) => lost(loss),
                };
            }
            _ => {}
        }
        self.travel(&step, life).await;
        said
    }

    fn arrived(&self, id: usize) {
        lock(&self.state).travelling.remove(&id);
    }

    fn answered(&self, id: usize, said: Said) {
        let mut state = lock(&self.state);
        state.calls[id].ended = Some((state.tick(), said));
    }

    /// The definition with the network around its code, for the orchestrator of this life.
    pub(super) fn around(self: &Arc<Self>, definition: &Definition) -> Definition {
        let code = definition.code.iter().zip(&definition.shape.nodes).map(|(code, node)| {
            let step: Arc<str> = node.path.as_str().into();
            let (mut act, mut undo) = (code.act.clone(), code.undo.clone());
            if let Some(business) = self.business.as_ref().filter(|_| node.transactional) {
                act = act.map(|inner| counting(business, inner, &step, 1));
                undo = undo.map(|inner| counting(business, inner, &step, -1));
                if self.bug == Some(Bug::WorkTwice) {
                    act = act.map(|inner| doubling(business, inner));
                }
            }
            let act = act.map(|inner| self.wrap(&step, What::Act, inner, acted()));
            let undo = undo.map(|inner| self.wrap(&step, What::Undo, inner, acted()));
            let ask = code.verify.clone().map(|inner| self.wrap(&step, What::Verify, inner, verified()));
            let ask = match self.bug {
                Some(Bug::ResendIsClean) => ask.map(forgetful),
                _ => ask,
            };
            StepCode { act, undo, verify: ask, ..code.clone() }
        });
        let code: Vec<StepCode> = code.collect();
        let undo = code.iter().position(|code| code.undo.is_some());
        let mut definition = Definition { shape: definition.shape.clone(), code };
        match self.bug {
            Some(Bug::SkipCompensation) => {
                if let Some(at) = undo {
                    definition.code[at].undo = Some(Arc::new(|_| Box::pin(async { Ok(Acted::Done(())) })));
                }
            }
            Some(Bug::ForwardAfterAbort) => {
                let last = definition.code.iter().rev().find_map(|code| code.act.clone());
                if let (Some(at), Some(forward)) = (undo, last) {
                    let undo = definition.code[at].undo.clone();
                    let path =
                        definition.shape.nodes.last().map(|node| node.path.clone()).unwrap_or_default();
                    definition.code[at].undo = undo.map(|undo| -> Code<Acted<()>> {
                        Arc::new(move |told: &Told| {
                            let mut on = told.clone();
                            if let Ok(key) = Key::new(told.key.saga(), &path, What::Act.direction()) {
                                on.key = key;
                            }
                            let null = Payload::encode(&0).ok();
                            on.outputs = on.outputs.iter().map(|own| own.clone().or(null.clone())).collect();
                            let (forward, undo) = (forward(&on), undo(told));
                            Box::pin(async move {
                                let _ = forward.await;
                                undo.await
                            })
                        })
                    });
                }
            }
            _ => {}
        }
        definition
    }

    fn wrap<T: Send + 'static>(
        self: &Arc<Self>,
        step: &Arc<str>,
        what: What,
        code: Code<T>,
        taken: Taken<T>,
    ) -> Code<T> {
        let (world, step, life) = (self.clone(), step.clone(), lock(&self.state).life);
        Arc::new(move |told| {
            Box::pin(world.clone().call(life, step.clone(), what, told.clone(), code.clone(), taken))
        })
    }
}

fn acted<T>() -> Taken<Acted<T>> {
    Taken {
        judge: |answer| match answer {
            Ok(Acted::Done(_)) => Said::Done,
            Ok(Acted::Job(_)) => Said::Nothing,
            Err(failure) if failure.is_clean() => Said::Nothing,
            Err(_) => Said::Unknown,
        },
        // Work is lost by a failure behind all that it does.
        lose: |world, answer, loss| match (answer, &world.business) {
            (Acted::Job(job), Some(business)) => Ok(Acted::Job(business.failing(job, loss))),
            _ => lost(loss),
        },
    }
}

fn verified() -> Taken<Verified<Payload>> {
    Taken {
        judge: |answer| match answer {
            Ok(Verified::Applied(_)) => Said::Done,
            Ok(Verified::Rejected(_) | Verified::NotApplied) => Said::Nothing,
            _ => Said::Unknown,
        },
        lose: |_, _, loss| lost(loss),
    }
}

/// The same code behind an orchestrator that hears one word for another.
fn forgetful(ask: Code<Verified<Payload>>) -> Code<Verified<Payload>> {
    Arc::new(move |told| {
        let answer = ask(told);
        Box::pin(async move {
            Ok(match answer.await? {
                Verified::Resend => Verified::NotApplied,
                other => other,
            })
        })
    })
}

fn lost<T>(loss: Loss) -> Result<T, Failure> {
    match loss {
        // Without the report of a panic that nobody has planned.
        Loss::Panic => std::panic::resume_unwind(Box::new("planned")),
        Loss::Error | Loss::Timeout => Err(Failure::unknown("the connection was reset")),
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whether a fault is planned for here; it is noted that it has come.
    pub(super) fn fires(&mut self, test: impl Fn(&Fault) -> bool) -> bool {
        let mut found = false;
        for (fault, fired) in &mut self.plan {
            if test(fault) {
                (*fired, found) = (true, true);
            }
        }
        found
    }

    /// An operation on a store begins: its place, and where it stops.
    pub(super) fn enter(
        &mut self,
        operation: Operation,
        store: &Memory,
    ) -> (Place, Option<Stop>, Option<Stop>) {
        let count = self.operations.entry(operation).or_default();
        let number = *count;
        *count += 1;
        let place = Place::Store(operation, number);
        self.trace.push(place.clone());
        let lost = || StoreError::Unavailable("planned".to_owned());
        for (edge, fault) in
            [(Edge::Before, memory::Fault::Fail(lost())), (Edge::After, memory::Fault::LoseAnswer(lost()))]
        {
            if self.fires(|planned| *planned == Fault::Store(operation, number, edge)) {
                store.fault(operation, 0, fault);
            }
        }
        if self.fires(|planned| *planned == Fault::Unsynced(operation, number)) {
            self.dead = self.life;
            store.fault(operation, 0, memory::Fault::CrashUnsynced);
        }
        let (before, after) = (self.stops(&place, Edge::Before), self.stops(&place, Edge::After));
        (place, before, after)
    }

    /// It was answered. Heartbeats, and claims that take nothing, come as long as an orchestrator lives: of those between which nothing else
    /// was passed only the first one is a place.
    pub(super) fn exit(&mut self, place: &Place, operation: Operation, idle: bool) {
        if !idle {
            self.idle.clear();
        } else if !self.idle.insert(operation) {
            self.trace.retain(|passed| passed != place);
        }
    }

    fn stops(&mut self, place: &Place, edge: Edge) -> Option<Stop> {
        let here = |at: &Place, when: &Edge| at == place && *when == edge;
        if self.fires(|fault| matches!(fault, Fault::Crash(at, when) if here(at, when))) {
            return Some(Stop::Crash);
        }
        for order in Ordered::ALL {
            if self.fires(|fault| matches!(fault, Fault::Ask(of, at, when) if *of == order && here(at, when)))
            {
                self.order = Some(spelled(order, place));
                return Some(Stop::Ask);
            }
        }
        let paused = self.fires(|fault| matches!(fault, Fault::Pause(at, when) if here(at, when)));
        paused.then_some(Stop::Pause)
    }

    fn meet(
        &mut self,
        life: u32,
        saga: &SagaId,
        step: &str,
        what: What,
        told: &Told,
        deliver: Deliver,
    ) -> Met {
        let earlier = |call: &&Call| call.step == step && call.what == what && !call.redelivered;
        let number = u32::try_from(self.calls.iter().filter(earlier).count()).unwrap_or(u32::MAX);
        let place = Place::Call(step.to_owned(), what, number);
        // What is sent in the moment of its sender's death is on its way, but nobody passes there any more.
        let dead = self.dead >= life;
        let (before, after) = match dead {
            true => (None, None),
            false => (self.stops(&place, Edge::Before), self.stops(&place, Edge::After)),
        };
        if !is_repeated(&place) {
            self.idle.clear();
        }
        if !dead {
            self.trace.push(place);
        }
        if let Some(owner) = self.owners.insert(told.epoch, life).filter(|owner| *owner != life) {
            let why = format!("orchestrators {owner} and {life} have both called in epoch {}", told.epoch);
            self.violations.push(Violation { invariant: "I6", why });
        }
        let now = |of: &String, always: &bool| of == step && (*always || number == 0);
        let mut answer = None;
        if what == What::Act {
            if self.fires(|fault| matches!(fault, Fault::Reject(of) if of == step)) {
                answer = Some(Answer::Rejected);
            }
            if self.fires(|fault| matches!(fault, Fault::Drop(of, always) if now(of, always))) {
                answer = Some(Answer::Dropped);
            }
            if self.fires(|fault| matches!(fault, Fault::Late(of) if of == step)) {
                answer = Some(Answer::Held);
            }
            for loss in [Loss::Error, Loss::Timeout, Loss::Panic] {
                if self.fires(
                    |fault| matches!(fault, Fault::Lose(of, by, always) if *by == loss && now(of, always)),
                ) {
                    answer = Some(Answer::Lost(loss));
                }
            }
        }
        if what == What::Undo
            && self.fires(|fault| matches!(fault, Fault::Refuse(of, always) if now(of, always)))
        {
            answer = Some(Answer::Refused);
        }
        let twice = self.fires(|fault| *fault == Fault::Twice);
        let image = Memory::restore(&self.store.snapshot());
        let durable = image.stored(saga).map_or((0, 0), |stored| (stored.head.len, stored.head.crc));
        let began = self.tick();
        let id = self.calls.len();
        self.calls.push(Call {
            step: step.to_owned(),
            what,
            key: told.key.to_string(),
            epoch: told.epoch,
            redelivered: false,
            durable: Some(durable),
            began,
            ended: None,
        });
        self.travelling.insert(id, deliver);
        Met { id, before, after, answer, twice }
    }
}

/// The beginning of another saga with this lock.
fn another(key: &str) -> Append {
    let definition = DefinitionId { name: "another".to_owned(), version: 1, digest: String::new() };
    let by = Incarnation::from_text("another");
    let mut append = Pen::new("another", &by, Timestamp::default()).begin(&definition);
    append.begin.iter_mut().for_each(|begin| begin.locks.push(key.to_owned()));
    append
}

fn spelled(order: Ordered, place: &Place) -> Order {
    let reason = "planned".to_owned();
    let step = match place {
        Place::Call(step, ..) => step.clone(),
        Place::Store(..) => String::new(),
    };
    match order {
        Ordered::Cancel => Order::Cancel { reason },
        Ordered::Compensate => Order::Compensate { reason },
        Ordered::Abandon => Order::Abandon { reason },
        Ordered::Retry => Order::Retry { step: None },
        Ordered::Reject => Order::Reject { step, reason },
        Ordered::Undone => Order::Undone { step, reason },
    }
}
