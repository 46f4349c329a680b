//! What a participant with a barrier has to do, whichever client it uses: scenarios, a naive model, and races.
#![allow(dead_code, missing_docs)]

use std::{
    collections::HashMap,
    sync::{Barrier, Mutex},
};

use mainstay::saga::{
    Direction, Key, SagaId,
    barrier::{Action, Compensation},
};
use proptest::{prelude::*, test_runner::TestCaseError};

/// Polls a future to its end, on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// What becomes of the transaction in which a request is worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Commit,
    /// The process dies in front of the commit.
    Crash,
    /// The closure fails after it has written, and the caller rolls back.
    Fail,
    /// The same, and the caller commits although it should not.
    FailAndCommit,
    /// An action is rejected, and that is committed.
    Reject,
}

/// One delivery of the action or of the compensation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    pub phase: Direction,
    pub fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A result is the number of the delivery that made it; so is a rejection.
    Action(Action<Result<u32, u32>>),
    Compensation(Compensation),
    Failed,
}

/// How often a step was done and undone, by what was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effects {
    pub done: i64,
    pub undone: i64,
}

/// A service with a database of its own, in which it notes what was done.
#[allow(async_fn_in_trait)]
pub trait Participant {
    async fn deliver(&mut self, saga: &SagaId, number: u32, delivery: Delivery) -> Answer;
    async fn effects(&mut self, saga: &SagaId) -> Effects;
}

pub fn key(saga: &SagaId, phase: Direction) -> Key {
    Key::new(saga, "charge", phase).unwrap()
}

pub fn saga(id: impl std::fmt::Display) -> SagaId {
    SagaId::new(&id.to_string()).unwrap()
}

pub const DO: Delivery = Delivery { phase: Direction::Do, fate: Fate::Commit };
pub const UNDO: Delivery = Delivery { phase: Direction::Undo, fate: Fate::Commit };

const fn with(delivery: Delivery, fate: Fate) -> Delivery {
    Delivery { phase: delivery.phase, fate }
}

/// By name: what arrives in which order, what is answered, and how often the step was done and undone then.
pub async fn scenarios(participant: &mut impl Participant) {
    use Answer::{Action as A, Compensation as C, Failed};
    use Fate::{Crash, Fail, FailAndCommit, Reject};
    let done = |number| A(Action::Done(Ok(number)));
    let repeated = |number| A(Action::Repeated(Ok(number)));
    let undone = C(Compensation::Undone);
    let nothing = C(Compensation::Nothing);
    let again = C(Compensation::Repeated);
    let refused = A(Action::Refused);

    type Arrivals = Vec<(Delivery, Answer)>;
    let list: Vec<(&str, Arrivals, (i64, i64))> = vec![
        ("done and undone", vec![(DO, done(0)), (UNDO, undone)], (1, 1)),
        ("a duplicate action", vec![(DO, done(0)), (DO, repeated(0)), (DO, repeated(0))], (1, 0)),
        (
            "a duplicate compensation",
            vec![(DO, done(0)), (UNDO, undone), (UNDO, again), (UNDO, again)],
            (1, 1),
        ),
        ("an empty rollback", vec![(UNDO, nothing)], (0, 0)),
        ("a hanging action", vec![(UNDO, nothing), (DO, refused), (DO, refused), (UNDO, again)], (0, 0)),
        // As often as there are ways to ask.
        (
            "an action again after its compensation",
            vec![
                (DO, done(0)),
                (DO, repeated(0)),
                (UNDO, undone),
                (DO, refused),
                (DO, refused),
                (DO, refused),
                (DO, refused),
                (UNDO, again),
            ],
            (1, 1),
        ),
        (
            "an action again after a compensation that was not committed",
            vec![
                (DO, done(0)),
                (with(UNDO, Crash), undone),
                (DO, repeated(0)),
                (with(UNDO, FailAndCommit), Failed),
                (DO, repeated(0)),
                (UNDO, undone),
                (DO, refused),
            ],
            (1, 1),
        ),
        (
            "a rejection is the answer for good, and nothing to undo",
            vec![
                (with(DO, Reject), A(Action::Done(Err(0)))),
                (DO, A(Action::Repeated(Err(0)))),
                (UNDO, nothing),
                (UNDO, again),
                (DO, A(Action::Repeated(Err(0)))),
            ],
            (0, 0),
        ),
        ("a crash in front of the commit", vec![(with(DO, Crash), done(0)), (DO, done(1))], (1, 0)),
        (
            "a compensation that crashes",
            vec![(DO, done(0)), (with(UNDO, Crash), undone), (UNDO, undone)],
            (1, 1),
        ),
        (
            "an empty rollback that crashes blocks nothing",
            vec![(with(UNDO, Crash), nothing), (DO, done(1)), (UNDO, undone)],
            (1, 1),
        ),
        ("an action that fails", vec![(with(DO, Fail), Failed), (UNDO, nothing), (DO, refused)], (0, 0)),
        ("a failure that is committed", vec![(with(DO, FailAndCommit), Failed), (DO, done(1))], (1, 0)),
        (
            "a failed compensation that is committed",
            vec![(DO, done(0)), (with(UNDO, FailAndCommit), Failed), (UNDO, undone)],
            (1, 1),
        ),
    ];
    for (index, (name, arrivals, (done, undone))) in list.into_iter().enumerate() {
        let saga = saga(format!("scenario-{index}"));
        for (number, (delivery, expected)) in arrivals.into_iter().enumerate() {
            let answer = participant.deliver(&saga, number as u32, delivery).await;
            assert_eq!(answer, expected, "{name}: delivery {number}");
        }
        assert_eq!(participant.effects(&saga).await, Effects { done, undone }, "{name}");
    }
}

/// Any deliveries on one key.
pub fn deliveries() -> impl Strategy<Value = Vec<Delivery>> {
    let fate = prop_oneof![
        6 => Just(Fate::Commit),
        1 => Just(Fate::Crash),
        1 => Just(Fate::Fail),
        1 => Just(Fate::FailAndCommit),
        1 => Just(Fate::Reject),
    ];
    let phase = prop_oneof![Just(Direction::Do), Just(Direction::Undo)];
    prop::collection::vec((phase, fate).prop_map(|(phase, fate)| Delivery { phase, fate }), 1..12)
}

/// What the property looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum See {
    Effects,
    EffectsAndAnswers,
}

/// The net effect is 0 or 1, and 0 once a compensation was committed; whoever is told that it was done before has an effect that is there;
/// and every answer is the one of the model.
pub fn property(
    participant: &mut impl Participant,
    saga: &SagaId,
    deliveries: &[Delivery],
    see: See,
) -> Result<(), TestCaseError> {
    let (mut model, mut compensated) = (Model::default(), false);
    for (number, &delivery) in deliveries.iter().enumerate() {
        let answer = block_on(participant.deliver(saga, number as u32, delivery));
        let committed = matches!(delivery.fate, Fate::Commit | Fate::Reject);
        compensated |= committed && matches!(answer, Answer::Compensation(_));
        let effects = block_on(participant.effects(saga));
        let net = effects.done - effects.undone;
        prop_assert!(net == 0 || (net == 1 && !compensated), "{effects:?} after {delivery:?} ({number})");
        prop_assert!(effects.done <= 1 && effects.undone <= 1, "{effects:?} after {delivery:?} ({number})");
        let told = matches!(answer, Answer::Action(Action::Repeated(Ok(_))));
        prop_assert!(!told || net == 1, "{answer:?}, and {effects:?} after {delivery:?} ({number})");
        let expected = model.deliver(number as u32, delivery);
        prop_assert!(see == See::Effects || answer == expected, "{answer:?} to {delivery:?} ({number})");
    }
    Ok(())
}

/// What a step comes to, told in one word for each direction.
#[derive(Debug, Default, Clone, Copy)]
struct Model {
    action: Option<Action<Result<u32, u32>>>,
    compensated: bool,
}

impl Model {
    fn deliver(&mut self, number: u32, delivery: Delivery) -> Answer {
        let before = *self;
        let (runs, answer) = match (delivery.phase, self.action) {
            (Direction::Do, Some(Action::Repeated(Ok(_)))) if self.compensated => {
                (false, Answer::Action(Action::Refused))
            }
            (Direction::Do, Some(known)) => (false, Answer::Action(known)),
            (Direction::Do, None) => {
                let answer = if delivery.fate == Fate::Reject { Err(number) } else { Ok(number) };
                self.action = Some(Action::Repeated(answer));
                (true, Answer::Action(Action::Done(answer)))
            }
            (Direction::Undo, _) if self.compensated => (false, Answer::Compensation(Compensation::Repeated)),
            (Direction::Undo, action) => {
                self.compensated = true;
                self.action = action.or(Some(Action::Refused));
                let runs = matches!(action, Some(Action::Repeated(Ok(_))));
                (runs, Answer::Compensation(if runs { Compensation::Undone } else { Compensation::Nothing }))
            }
        };
        let fails = runs && matches!(delivery.fate, Fate::Fail | Fate::FailAndCommit);
        if fails || delivery.fate == Fate::Crash || (!runs && delivery.fate == Fate::Fail) {
            *self = before;
        }
        if fails { Answer::Failed } else { answer }
    }
}

/// The same request from all sides at the same time: one effect, one `Done`, and one result for all.
pub fn race_of_duplicates<P: Participant + Send>(participants: &mut [P], rounds: usize) {
    race(
        participants,
        rounds,
        "same",
        |_, _| DO,
        |answers, effects| {
            let first =
                answers.iter().filter(|answer| matches!(answer, Answer::Action(Action::Done(_)))).count();
            assert_eq!(first, 1, "one of them is the first: {answers:?}");
            let mut results: Vec<_> = answers
                .iter()
                .map(|answer| match answer {
                    Answer::Action(action) => action.result(),
                    other => panic!("{other:?} is no answer to an action"),
                })
                .collect();
            results.dedup();
            assert_eq!(results.len(), 1, "all are told the same: {answers:?}");
            assert_eq!(effects, Effects { done: 1, undone: 0 });
        },
    );
}

/// Actions against compensations: whoever wins, no effect is left.
pub fn race_of_directions<P: Participant + Send>(participants: &mut [P], rounds: usize) {
    let orders = Mutex::new(HashMap::<bool, usize>::new());
    race(
        participants,
        rounds,
        "both",
        |thread, round| if (thread + round) % 2 == 0 { DO } else { UNDO },
        |answers, effects| {
            let undone = answers.iter().filter(|a| **a == Answer::Compensation(Compensation::Undone)).count();
            let empty = answers.iter().filter(|a| **a == Answer::Compensation(Compensation::Nothing)).count();
            let done = answers.iter().filter(|a| matches!(a, Answer::Action(Action::Done(Ok(_))))).count();
            let refused = answers.iter().filter(|a| **a == Answer::Action(Action::Refused)).count();
            let actions = answers.iter().filter(|a| matches!(a, Answer::Action(_))).count();
            assert_eq!(undone + empty, 1, "one compensation is the first: {answers:?}");
            assert_eq!(done, undone, "what was undone was done once: {answers:?}");
            assert!(empty == 0 || refused == actions, "what was taken first is refused to all: {answers:?}");
            assert_eq!(effects, Effects { done: undone as i64, undone: undone as i64 });
            *orders.lock().unwrap().entry(undone == 1).or_default() += 1;
        },
    );
    assert_eq!(orders.lock().unwrap().len(), 2, "both orders were seen");
}

fn race<P: Participant + Send>(
    participants: &mut [P],
    rounds: usize,
    name: &str,
    what: impl Fn(usize, usize) -> Delivery + Sync,
    check: impl Fn(&[Answer], Effects),
) {
    let start = Barrier::new(participants.len());
    let what = &what;
    for round in 0..rounds {
        let saga = &saga(format!("{name}-{round}"));
        let start = &start;
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let threads: Vec<_> = participants
                .iter_mut()
                .enumerate()
                .map(|(thread, participant)| {
                    scope.spawn(move || {
                        start.wait();
                        block_on(participant.deliver(saga, thread as u32, what(thread, round)))
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        check(&answers, block_on(participants[0].effects(saga)));
    }
}

/// Actions and compensations by their keys, and what came of them.
type Rows = (HashMap<String, Action<Result<u32, u32>>>, Vec<String>, Effects);

/// A participant in memory whose barrier has one fault, or none.
#[derive(Debug, Default)]
pub struct Twin {
    fault: Option<Fault>,
    sagas: HashMap<SagaId, Rows>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An empty rollback leaves the action's row free.
    LateActionRuns,
    /// An action that finds its own row does not look for that of its compensation.
    OwnRowOnly,
    /// A compensation does not look for its own row.
    CompensationTwice,
    /// An empty rollback is not told from any other.
    EmptyRollbackRuns,
    /// The number of the attempt is part of the key.
    AttemptInKey,
    /// The claim outlives the failure of what it was made for.
    ClaimOutlivesFailure,
    /// The claim is committed by itself, ahead of the business.
    ClaimOutlivesCrash,
}

impl Twin {
    pub fn new(fault: Option<Fault>) -> Self {
        Twin { fault, ..Twin::default() }
    }
}

impl Participant for Twin {
    async fn deliver(&mut self, saga: &SagaId, number: u32, delivery: Delivery) -> Answer {
        let fault = |fault| self.fault == Some(fault);
        let before = self.sagas.get(saga).cloned().unwrap_or_default();
        let mut now = before.clone();
        let (actions, compensations, effects) = &mut now;
        let name = if fault(Fault::AttemptInKey) { number.to_string() } else { String::new() };
        let fails = matches!(delivery.fate, Fate::Fail | Fate::FailAndCommit);
        let mut runs = false;
        let answer = if delivery.phase == Direction::Do {
            match actions.get(&name) {
                Some(Action::Repeated(Ok(_)))
                    if compensations.contains(&name) && !fault(Fault::OwnRowOnly) =>
                {
                    Answer::Action(Action::Refused)
                }
                Some(known) => Answer::Action(*known),
                None => {
                    runs = true;
                    let answer = if delivery.fate == Fate::Reject { Err(number) } else { Ok(number) };
                    actions.insert(name, Action::Repeated(answer));
                    effects.done += i64::from(answer.is_ok());
                    Answer::Action(Action::Done(answer))
                }
            }
        } else if compensations.contains(&name) && !fault(Fault::CompensationTwice) {
            Answer::Compensation(Compensation::Repeated)
        } else {
            compensations.push(name.clone());
            runs = match actions.get(&name) {
                Some(action) => matches!(action, Action::Repeated(Ok(_))),
                None => fault(Fault::EmptyRollbackRuns),
            };
            if !fault(Fault::LateActionRuns) {
                actions.entry(name).or_insert(Action::Refused);
            }
            effects.undone += i64::from(runs);
            Answer::Compensation(if runs { Compensation::Undone } else { Compensation::Nothing })
        };
        let fails = fails && runs;
        let mut left = if fails || matches!(delivery.fate, Fate::Crash | Fate::Fail) {
            before.clone()
        } else {
            now.clone()
        };
        if (fails && fault(Fault::ClaimOutlivesFailure))
            || (delivery.fate == Fate::Crash && fault(Fault::ClaimOutlivesCrash))
        {
            left = (now.0, now.1, before.2);
        }
        self.sagas.insert(saga.clone(), left);
        if fails { Answer::Failed } else { answer }
    }

    async fn effects(&mut self, saga: &SagaId) -> Effects {
        self.sagas.get(saga).map(|(_, _, effects)| *effects).unwrap_or_default()
    }
}
