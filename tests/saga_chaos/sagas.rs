//! The sagas, and participants that lose requests and answers and write down who was served.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    saga::{Builder, Failure, Inputs, Key, Output, Saga, SagaId, Step, Verified, journal::Journal},
    testing::{Call, Ledger, Said, What},
};

use super::gate::{Chance, Life, ask};

/// What all participants share.
pub struct Town {
    pub viewer: Arc<dyn Journal>,
    pub chance: Arc<Chance>,
    /// Requests take up to this long, each way.
    pub travel: Duration,
    pub ledger: Ledger,
    calls: Mutex<BTreeMap<SagaId, Vec<Call>>>,
    clock: AtomicU64,
}

impl Town {
    pub fn new(viewer: Arc<dyn Journal>, chance: Arc<Chance>, travel: Duration) -> Arc<Self> {
        let (ledger, calls, clock) = (Ledger::default(), Mutex::default(), AtomicU64::new(0));
        Arc::new(Town { viewer, chance, travel, ledger, calls, clock })
    }

    pub fn calls(&self, saga: &SagaId) -> Vec<Call> {
        self.calls.lock().unwrap().get(saga).cloned().unwrap_or_default()
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    async fn travel(&self, life: &Life) {
        let most = self.travel.as_millis() as u64;
        tokio::time::sleep(Duration::from_millis(self.chance.below(most + 1))).await;
        life.alive().await;
    }

    /// One request of one orchestrator.
    async fn serve<T>(
        self: Arc<Self>,
        life: Arc<Life>,
        step: Step<u32>,
        what: What,
        effect: impl FnOnce(&Ledger, &Key) -> (Result<T, Failure>, Said),
    ) -> Result<T, Failure> {
        let (key, saga) = (step.key().clone(), step.saga().clone());
        let id = saga.clone();
        let stored = ask(&self.viewer, move |journal| Box::pin(async move { journal.load(&id).await })).await;
        let durable = stored.ok().flatten().map(|stored| (stored.head.len, stored.head.crc));
        let at = {
            let mut calls = self.calls.lock().unwrap();
            let calls = calls.entry(saga.clone()).or_default();
            calls.push(Call {
                step: key.step().to_owned(),
                what,
                key: key.to_string(),
                epoch: step.epoch(),
                redelivered: false,
                durable,
                began: self.tick(),
                ended: None,
            });
            calls.len() - 1
        };
        let ended = |said| {
            let now = self.tick();
            self.calls.lock().unwrap().get_mut(&saga).unwrap()[at].ended = Some((now, said));
        };
        // The sagas differ in what is refused, and that is so for good.
        let refused = match key.step() {
            "charge" => step.input() % 5 == 1,
            "confirm" => step.input() % 7 == 3,
            "both" => step.input() % 3 == 2,
            _ => false,
        };
        if what == What::Act && refused {
            self.travel(&life).await;
            let rejected = self.ledger.reject(&key, "as ever");
            ended(Said::Nothing);
            return Err(rejected);
        }
        if self.chance.percent(8) {
            ended(if what == What::Act { Said::Nothing } else { Said::Unknown });
            return Err(Failure::unknown("the request was lost"));
        }
        self.travel(&life).await;
        let (answer, said) = effect(&self.ledger, &key);
        ended(said);
        if self.chance.percent(8) {
            return Err(Failure::unknown("the answer was lost"));
        }
        self.travel(&life).await;
        answer
    }
}

fn act(ledger: &Ledger, key: &Key) -> (Result<u64, Failure>, Said) {
    let answer = ledger.action(key, || 1);
    let said = if answer.is_ok() { Said::Done } else { Said::Nothing };
    (answer, said)
}

fn undo(ledger: &Ledger, key: &Key) -> (Result<(), Failure>, Said) {
    ledger.undo(key);
    (Ok(()), Said::Done)
}

fn verify(ledger: &Ledger, key: &Key) -> (Result<Verified<u64>, Failure>, Said) {
    let known = ledger.verify(key);
    let said = match known {
        Verified::Applied(_) => Said::Done,
        Verified::Rejected(_) => Said::Nothing,
        _ => Said::Unknown,
    };
    (Ok(known), said)
}

/// The code of one orchestrator.
struct Street {
    town: Arc<Town>,
    life: Arc<Life>,
}

impl Street {
    fn undoable<D: Inputs>(
        &self,
        saga: &mut Builder<u32>,
        name: &str,
        behind: D,
        asked: bool,
        within: Option<Duration>,
    ) -> Output<u64> {
        let (town, life) = (self.town.clone(), self.life.clone());
        let mut adding = saga.step(name, behind, move |step: Step<u32>, _| {
            town.clone().serve(life.clone(), step, What::Act, act)
        });
        if asked {
            let (town, life) = (self.town.clone(), self.life.clone());
            adding =
                adding.verify(move |step, _| town.clone().serve(life.clone(), step, What::Verify, verify));
        }
        if let Some(within) = within {
            adding = adding.within(within);
        }
        let (town, life) = (self.town.clone(), self.life.clone());
        adding.compensate(move |step, _, _| town.clone().serve(life.clone(), step, What::Undo, undo))
    }
}

/// Steps of every class, one of which is asked for its outcome.
pub fn order(town: &Arc<Town>, life: &Arc<Life>) -> Saga<u32> {
    let street = Street { town: town.clone(), life: life.clone() };
    let mut saga = Saga::define::<u32>("order", 1);
    let created = street.undoable(&mut saga, "create", (), false, None);
    let charged = street.undoable(&mut saga, "charge", created, true, Some(street.town.travel * 8));
    let (town, life) = (street.town.clone(), street.life.clone());
    let confirmed = saga
        .pivot("confirm", charged, move |step: Step<u32>, _| {
            town.clone().serve(life.clone(), step, What::Act, act)
        })
        .add();
    let Street { town, life } = street;
    saga.retriable("send", confirmed, move |step: Step<u32>, _| {
        town.clone().serve(life.clone(), step, What::Act, act)
    })
    .add();
    saga.build(()).unwrap()
}

/// Branches, a timer, and a message that comes or does not.
pub fn journey(town: &Arc<Town>, life: &Arc<Life>) -> Saga<u32> {
    let street = Street { town: town.clone(), life: life.clone() };
    let mut saga = Saga::define::<u32>("journey", 1);
    let flight = street.undoable(&mut saga, "flight", (), false, None);
    let hotel = street.undoable(&mut saga, "hotel", (), false, Some(street.town.travel * 6));
    let slept = saga.sleep("sleep", flight, town.travel * 4);
    let word = saga.signal::<u32, _>("word", hotel, Some(town.travel * 8));
    street.undoable(&mut saga, "both", (slept, word), false, None);
    saga.build(()).unwrap()
}
