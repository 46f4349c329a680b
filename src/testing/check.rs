//! Runs one saga through everything that can go wrong with it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

#[cfg(feature = "sqlite")]
use super::database::{Audit, Database};
use super::{
    business::Business,
    case::{Case, Fault, Loss, Place},
    checker::check_evidence,
    evidence::{Evidence, Structure, What},
    ledger::{Flaw, Ledger},
    plan::{claims_behind, crashes_behind, faults_in, orders_in},
    seen::{Failed, Seen, Summary, story},
    world::{Skew, World},
};
use crate::{
    chance::planned,
    saga::{
        AskError, Inputs, OpenError, Orchestrator, Order, Outcome, Payload, Phase, Saga, SagaId, StartError,
        StartOptions, journal::Journal, memory::Memory,
    },
    time::is_paused,
};

/// A planted fault in what is tested, for tests of the kit itself.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The first step that has a compensation is taken for undone without being told.
    SkipCompensation,
    /// An action is sent while the saga is unwound.
    ForwardAfterAbort,
    /// The number of the attempt is part of the key.
    KeyOfAttempt,
    /// The store lets anybody append.
    NoFence,
    /// The store answers before it syncs.
    AcknowledgeBeforeSync,
    /// The store keeps no locks.
    NoLocks,
    /// The store answers a claim before it syncs.
    ClaimUnsynced,
    /// The store keeps what is claimed from others for hours, until the claim is heard of.
    ClaimHeld,
    /// A cache in front of the store takes a claim for durable when it is written, and what is there after a crash for an old copy.
    ClaimCached,
    /// The work of a step is done in a transaction of its own, before the one that records it.
    WorkApart,
    /// The work of a step is done before it is looked whose saga it is.
    WorkUnfenced,
    /// A record is synced, and the work that it is of is not.
    WorkUnsynced,
    /// The work of a step is done twice in its transaction.
    WorkTwice,
    /// The participants' barrier has a hole.
    Barrier(Flaw),
    /// That a step may be sent again is taken for the word that nothing of it is on its way.
    ResendIsClean,
}

const ID: &str = "case";
pub(super) const LEASE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_secs(5);
const STUCK_RETRY: Duration = Duration::from_secs(30);

type Build<I, R> = Box<dyn Fn(&Ledger) -> Saga<I, R> + Send + Sync>;
type Open = Box<dyn Fn() -> Arc<dyn Business> + Send + Sync>;
type Expect = Box<dyn Fn(&Seen) -> Result<(), String> + Send + Sync>;

/// A saga to be checked; see the [module](super).
pub struct Check<I, R: Inputs> {
    build: Build<I, R>,
    input: I,
    signals: Vec<(String, Payload)>,
    options: StartOptions,
    locks: Vec<String>,
    database: Option<Open>,
    expect: Option<Expect>,
    patience: Duration,
    skew: Skew,
    twice_crashed: bool,
    bug: Option<Bug>,
}

impl<I, R: Inputs> fmt::Debug for Check<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("patience", &self.patience).finish_non_exhaustive()
    }
}

enum Event {
    Asked(Order),
    Dead,
    Paused,
    Taken,
    Ended(Option<String>),
}

impl<I, R> Check<I, R>
where
    I: Serialize + DeserializeOwned + Send + Sync + 'static,
    R: Inputs,
{
    /// Checks sagas that `build` defines, started with `input`.
    ///
    /// `build` is called for every run, with a new [`Ledger`] that the steps may use as their participant. Participants of one's own are
    /// made there too, so that nothing of one run is left in the next.
    pub fn new(input: I, build: impl Fn(&Ledger) -> Saga<I, R> + Send + Sync + 'static) -> Self {
        Check {
            build: Box::new(build),
            input,
            signals: Vec::new(),
            options: StartOptions::default(),
            locks: Vec::new(),
            database: None,
            expect: None,
            patience: Duration::from_secs(600),
            skew: Skew::Even,
            twice_crashed: false,
            bug: None,
        }
    }

    /// Leaves this message for a step at the start of every run, and again after every crash.
    ///
    /// # Panics
    ///
    /// When the payload has no JSON.
    #[must_use]
    pub fn signal<T: Serialize + ?Sized>(mut self, step: &str, payload: &T) -> Self {
        let payload =
            Payload::encode(payload).unwrap_or_else(|error| panic!("a signal has no JSON: {error}"));
        self.signals.push((step.to_owned(), payload));
        self
    }

    /// Starts the saga with this deadline in every run. Requests take some milliseconds each, and a new orchestrator takes over from a
    /// dead one after some seconds.
    #[must_use]
    pub fn deadline(mut self, after: Duration) -> Self {
        self.options = self.options.deadline(after);
        self
    }

    /// Starts the saga with this [semantic lock](StartOptions::lock) in every run. Behind every append, and whatever else changes a saga, another one
    /// is refused the lock while this one is in the store and not over, by what a crash would leave there, and is given it otherwise.
    #[must_use]
    pub fn lock(mut self, key: &str) -> Self {
        self.options = self.options.lock(key);
        self.locks.push(key.to_owned());
        self
    }

    /// What has to be so at the end of every run, besides the invariants.
    #[must_use]
    pub fn expect(mut self, expect: impl Fn(&Seen) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.expect = Some(Box::new(expect));
        self
    }

    /// Gives every run a database for the steps that are done [in the journal's transaction](crate::saga::sqlite::in_transaction), and says
    /// what has to be in it at the end.
    ///
    /// `make` opens it, with its tables and what is in them from the beginning: a new one for each run. `audit` gets it as the run has left it;
    /// [`Seen::stands`] says which steps have to have left something.
    ///
    /// ```
    /// use mainstay::{
    ///     saga::{Output, Saga, sqlite::{in_transaction, rusqlite::Connection}},
    ///     testing::{Check, Ledger},
    /// };
    ///
    /// fn order(_: &Ledger) -> Saga<u32, Output<u32>> {
    ///     let mut saga = Saga::define::<u32>("order", 1);
    ///     let charged = saga
    ///         .step("charge", (), |step, ()| async move {
    ///             Ok(in_transaction(move |tx| {
    ///                 tx.execute("INSERT INTO charge VALUES (?1)", [step.input()])?;
    ///                 Ok(*step.input())
    ///             }))
    ///         })
    ///         .compensate_in_transaction(|step, (), _| async move {
    ///             Ok(in_transaction(move |tx| {
    ///                 tx.execute("DELETE FROM charge WHERE cents = ?1", [step.input()])?;
    ///                 Ok(())
    ///             }))
    ///         });
    ///     saga.build(charged).unwrap()
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let check = Check::new(4_900, order).database(
    ///     || {
    ///         let shop = Connection::open_in_memory()?;
    ///         shop.execute_batch("CREATE TABLE charge (cents INTEGER NOT NULL)")?;
    ///         Ok(shop)
    ///     },
    ///     |shop, seen| {
    ///         let found: u32 = shop.query_row("SELECT count(*) FROM charge", [], |row| row.get(0))?;
    ///         match seen.stands("charge") {
    ///             Some(stands) if found != u32::from(stands) => Err(format!("charged {found} times").into()),
    ///             _ => Ok(()),
    ///         }
    ///     },
    /// );
    /// check.all().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Semantics
    ///
    /// The database is on the simulated device beside the journal, and work is done in it behind the checks of its append:
    ///
    /// | goes wrong | the work |
    /// |---|---|
    /// | the power is cut before or after the append; the append fails, or its answer is lost | is not done, or is committed: as the record |
    /// | the power is cut between writing and syncing | is lost with the record |
    /// | another has the saga | is not begun |
    /// | the step's answer is lost, by an error or a panic | fails behind all that it did, which is rolled back |
    ///
    /// The kit sets the journal's hooks on the connection, and makes a table `mainstay_testing`, with a row from each transaction of a step whose
    /// action is work; they have to be those that are recorded ([I2](super::check_evidence)). What your own rows are worth, `audit` alone can say.
    ///
    /// Only work sees the database: what a step does before it answers is done on connections of its own, and is no part of it. PostgreSQL's
    /// `in_transaction` has nothing of the kind.
    ///
    /// # Panics
    ///
    /// A run panics when `make` fails.
    ///
    /// # Cost
    ///
    /// One call of `make` for each run, and a copy of the database for work in whose append something is planned to go wrong: a database in
    /// memory with little in it is best.
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn database(
        mut self,
        make: impl Fn() -> rusqlite::Result<rusqlite::Connection> + Send + Sync + 'static,
        audit: impl Fn(&rusqlite::Connection, &Seen) -> Result<(), Box<dyn std::error::Error>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let audit: Arc<Audit> = Arc::new(audit);
        self.database = Some(Box::new(move || match Database::new(&make, audit.clone()) {
            Ok(database) => Arc::new(database),
            Err(error) => panic!("a database of the business cannot be made: {error}"),
        }));
        self
    }

    /// How long a saga may take by the (paused) clock, and behind it each request that arrives late; 10 minutes unless set. A saga that is stuck
    /// then is left so. A request whose code has not ended by then is dropped and never answered: what it has done counts, what it would
    /// have done later is not seen.
    #[must_use]
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = time;
        self
    }

    /// Which of several steps at once answers first.
    #[must_use]
    pub fn skew(mut self, skew: Skew) -> Self {
        self.skew = skew;
        self
    }

    /// Lets [`all`](Self::all) crash a second time at every place of every recovery: some hundred times as many runs.
    #[must_use]
    pub fn crash_twice(mut self) -> Self {
        self.twice_crashed = true;
        self
    }

    /// Plants a fault that the check has to find.
    #[doc(hidden)]
    #[must_use]
    pub fn plant(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }

    /// Runs the case of this name.
    ///
    /// # Errors
    ///
    /// [`Failed`].
    ///
    /// # Panics
    ///
    /// When it is no name of a case.
    pub async fn replay(&self, case: &str) -> Result<Seen, Box<Failed>> {
        self.run(&case.parse().unwrap_or_else(|error| panic!("{error}"))).await
    }

    /// Runs one case.
    ///
    /// # Errors
    ///
    /// [`Failed`] when an invariant or an expectation does not hold, or a planned fault has not come.
    pub async fn run(&self, case: &Case) -> Result<Seen, Box<Failed>> {
        let ledger = match self.bug {
            Some(Bug::Barrier(flaw)) => Ledger::flawed(flaw),
            _ => Ledger::default(),
        };
        let saga = planned::within(|| (self.build)(&ledger));
        let structure = Structure::of(&saga);
        let steps = structure.parts.iter().map(|part| part.path.clone()).collect();
        let id = SagaId::new(ID).unwrap_or_else(|_| unreachable!("it is one"));
        let business = self.database.as_ref().map(|open| open());
        let world =
            World::new(id.clone(), case, steps, self.locks.clone(), self.bug, self.skew, business.clone());
        let acknowledged = AtomicBool::new(false);
        let mut stale = None;
        let mut resumed = true;
        let mut problem = None;
        let mut pauses = 0;
        let mut present = self.open(&world, &saga).await;
        for life in 0.. {
            if life > 20 {
                problem = Some("it has had 20 lives and is not over".to_owned());
                break;
            }
            let store = world.store();
            let taken_at = world.passed();
            let event = {
                let (orchestrator, wrapped) = &present;
                let alone = stale.is_none();
                let living = async {
                    match self.live(&world, orchestrator, wrapped, &acknowledged).await {
                        None => self.end(&world, orchestrator, alone).await,
                        problem => problem,
                    }
                };
                tokio::pin!(living);
                loop {
                    let event = tokio::select! {
                        biased;
                        () = store.dead() => Event::Dead,
                        () = world.pause(), if stale.is_none() => Event::Paused,
                        () = world.progress(taken_at), if !resumed => Event::Taken,
                        order = world.order() => Event::Asked(order),
                        problem = &mut living => Event::Ended(problem),
                    };
                    if let Event::Asked(order) = event {
                        // Whether it is heard is the store's affair.
                        let asked = orchestrator.order(ID, "kit", order);
                        tokio::select! {
                            biased;
                            () = store.dead() => {}
                            _ = asked => {}
                        }
                        continue;
                    }
                    if !matches!(event, Event::Taken) {
                        break event;
                    }
                    resumed = true;
                    world.resume();
                }
            };
            match event {
                Event::Dead => {
                    stale = None;
                    present = self.open(&world, &saga).await;
                }
                Event::Paused => {
                    (resumed, pauses) = (false, pauses + 1);
                    let next = self.open(&world, &saga).await;
                    stale = Some(std::mem::replace(&mut present, next));
                }
                Event::Taken | Event::Asked(_) => {}
                Event::Ended(why) => {
                    problem = why;
                    break;
                }
            }
        }
        if stale.is_some() {
            world.resume();
            tokio::time::sleep(LEASE * 4).await;
        }
        drop((present, stale));
        world.probe().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        world.deliver_late(self.patience).await;

        let left = world.store().stored(&id);
        let forgotten: u64 = world
            .store()
            .connect()
            .forgotten(10)
            .await
            .unwrap_or_default()
            .iter()
            .map(|noted| noted.sagas)
            .sum();
        if problem.is_none() && forgotten != u64::from(world.kept().is_some() && left.is_none()) {
            problem = Some(format!("{forgotten} sagas are said to be forgotten, and it is {left:?}"));
        }
        let stored = left.or_else(|| world.kept());
        let mut effects = ledger.is_used().then(|| ledger.effects(&id));
        if let Some(business) = &business {
            let net = business.net();
            for part in structure.parts.iter().filter(|part| part.transactional) {
                let own = net.get(&part.path).copied().unwrap_or(0);
                *effects.get_or_insert_default().entry(part.path.clone()).or_default() += own;
            }
        }
        let calls = world.calls();
        let evidence = Evidence {
            structure: &structure,
            stored: stored.as_ref(),
            acknowledged: acknowledged.load(Relaxed),
            settled: true,
            calls: &calls,
            effects: effects.as_ref(),
        };
        if problem.is_none() {
            problem = world.problem();
        }
        let mut violations = check_evidence(&evidence);
        // Each orchestrator behind the first one is there since one has died, or stands still.
        let crashes = world.lives() - 1 - pauses;
        violations.extend(world.violations());
        let seen = Seen {
            case: case.clone(),
            phase: stored.as_ref().map(|stored| stored.head.phase),
            stored,
            calls,
            places: world.trace(),
            crashes,
            ledger,
        };
        if problem.is_none() {
            problem = self.expect.as_ref().and_then(|expect| expect(&seen).err());
        }
        let audited = business.map_or(Ok(()), |business| business.audit(&seen));
        if problem.is_none() {
            problem = audited.err();
        }
        let planned = case.0.iter().filter(|fault| matches!(fault, Fault::Crash(..) | Fault::Unsynced(..)));
        let (planned, came) = (planned.count(), crashes as usize);
        // The first one may keep the second one away: of two calls at once only one is answered, if that is where the power is cut.
        if problem.is_none() && (came > planned || came < planned.min(1)) {
            problem = Some(format!("{planned} crashes were planned, and {came} came"));
        }
        // A crash may come before what a participant was to do; by themselves these were seen to come.
        let alone = case.0.len() == 1;
        let mut unfired = world.unfired();
        unfired.retain(|fault| alone || !fault.is_of_participant());
        if violations.is_empty() && unfired.is_empty() && problem.is_none() {
            return Ok(seen);
        }
        let story = story(&seen);
        Err(Box::new(Failed { case: case.clone(), violations, unfired, problem, story }))
    }

    /// The next orchestrator that gets as far as to live.
    async fn open(&self, world: &Arc<World>, saga: &Saga<I, R>) -> (Orchestrator, Saga<I, R>) {
        loop {
            let gate = world.connect();
            let store = world.store();
            let saga = saga.with_definition(world.around(&saga.definition));
            let opening = Orchestrator::open(gate).register(&saga).lease(LEASE).poll(POLL);
            let opening = opening.stuck_retry(Some(STUCK_RETRY)).max_recoveries(10);
            let opened = tokio::select! {
                biased;
                () = store.dead() => continue,
                opened = opening.start() => opened,
            };
            let opened = opened.unwrap_or_else(|error| match error {
                OpenError::Transaction { .. } => panic!("{error}; `Check::database` gives it one"),
                error => panic!("an orchestrator in memory starts: {error}"),
            });
            return (opened, saga);
        }
    }

    /// A saga that is over is forgotten, and the orchestrator leaves; what was wrong with it.
    async fn end(&self, world: &World, orchestrator: &Orchestrator, alone: bool) -> Option<String> {
        let mut left = false;
        // What another one does that will go on is still to be seen.
        if alone && world.keep() {
            // Behind the moment in which it has ended.
            tokio::time::sleep(Duration::from_millis(2)).await;
            let done = orchestrator.forget(Duration::ZERO, 1).await;
            left = done.is_ok() && world.keep();
        }
        orchestrator.clone().shutdown(Duration::from_secs(1)).await;
        left.then(|| "it is over, and was there when it was said to be forgotten".to_owned())
    }

    /// One orchestrator's life with the saga, until it is over or held up; what was wrong with it.
    async fn live(
        &self,
        world: &World,
        orchestrator: &Orchestrator,
        saga: &Saga<I, R>,
        acknowledged: &AtomicBool,
    ) -> Option<String> {
        let retry = Duration::from_secs(1);
        for attempt in 0.. {
            if acknowledged.load(Relaxed) {
                break;
            }
            match orchestrator.start_with(saga, ID, &self.input, self.options.clone()).await {
                Ok(_) => acknowledged.store(true, Relaxed),
                Err(StartError::Store(_)) if attempt < 30 => tokio::time::sleep(retry).await,
                Err(error) => return Some(format!("it could not be started: {error}")),
            }
        }
        let handle = match orchestrator.handle(saga, ID) {
            Ok(handle) => handle,
            Err(error) => return Some(error.to_string()),
        };
        for (step, payload) in &self.signals {
            loop {
                match orchestrator.signal(ID, step, "message", payload).await {
                    Ok(_) => break,
                    // It was forgotten, and the power cut behind that.
                    Err(AskError::Missing(_)) => return None,
                    Err(AskError::Store(_)) => tokio::time::sleep(retry).await,
                    Err(error) => return Some(format!("a message for {step:?} could not be left: {error}")),
                }
            }
        }
        let end = async {
            let mut stuck = 0;
            loop {
                match handle.settled().await {
                    // It is tried again; what does not help twice is there to stay.
                    Ok(Outcome::Held { phase: Some(Phase::Stuck), .. }) if stuck < 2 => {
                        stuck += 1;
                        tokio::time::sleep(STUCK_RETRY * 2).await;
                    }
                    Ok(Outcome::Held { phase: Some(Phase::Stuck), .. }) => return None,
                    Ok(Outcome::Held { phase: Some(Phase::Parked), .. }) => return None,
                    Ok(Outcome::Held { why, .. }) => return Some(format!("it is blocked: {why}")),
                    Ok(_) => {
                        let durable = Memory::restore(&world.store().snapshot()).stored(handle.id());
                        let over = durable.is_some_and(|stored| stored.head.phase.is_terminal());
                        return (!over).then(|| "I7: its end was announced and was not durable".to_owned());
                    }
                    Err(AskError::Missing(_)) => return None,
                    Err(AskError::Store(_)) => tokio::time::sleep(retry).await,
                    Err(error) => return Some(error.to_string()),
                }
            }
        };
        tokio::time::timeout(self.patience, end).await.unwrap_or(None)
    }

    /// Runs everything: the happy case; a rejection, a lost answer, a lost request and a late request at every step; and on top of each
    /// a crash before and after every change of the store and every call, store errors, second deliveries, an orchestrator that stands still.
    ///
    /// # Errors
    ///
    /// The first [`Failed`].
    ///
    /// # Panics
    ///
    /// When all runs hold, and nothing could be said about what the steps have done: the [`Ledger`] was used in none, and there is neither a
    /// `database` nor anything to [`expect`](Self::expect). Who wants only records and calls checked expects nothing:
    /// `.expect(|_| Ok(()))`.
    ///
    /// At once, when tokio's clock is not paused: the runs would take hours.
    pub async fn all(&self) -> Result<Summary, Box<Failed>> {
        assert!(
            is_paused(),
            "the clock runs, and a check would take hours: run this with start_paused = true, as in `#[tokio::test(start_paused = true)]`"
        );
        let mut tally = Tally { cases: 0, watched: self.expect.is_some() || self.database.is_some() };
        let happy = self.next(&Case::default(), &mut tally).await?;
        let steps: Vec<String> = happy
            .places
            .iter()
            .filter_map(|place| match place {
                Place::Call(step, What::Act, 0) => Some(step.clone()),
                _ => None,
            })
            .collect();
        let mut bases = vec![happy];
        for step in &steps {
            let step = || step.clone();
            let faults = [
                Fault::Reject(step()),
                Fault::Lose(step(), Loss::Error, false),
                Fault::Lose(step(), Loss::Error, true),
                Fault::Lose(step(), Loss::Timeout, true),
                Fault::Lose(step(), Loss::Panic, true),
                Fault::Drop(step(), false),
                Fault::Drop(step(), true),
                Fault::Late(step()),
            ];
            for fault in faults {
                bases.push(self.next(&Case(vec![fault]), &mut tally).await?);
            }
        }
        for base in &bases {
            let mut more = faults_in(base);
            // What people order is tried where the saga goes forward and where it is undone.
            if matches!(&base.case.0[..], [] | [Fault::Reject(_)]) {
                more.extend(orders_in(base));
            }
            for case in more {
                let seen = self.next(&case, &mut tally).await?;
                for second in claims_behind(&seen) {
                    self.next(&second, &mut tally).await?;
                }
                if self.twice_crashed {
                    for second in crashes_behind(&seen) {
                        self.next(&second, &mut tally).await?;
                    }
                }
            }
        }
        assert!(
            tally.watched,
            "{} runs hold by their records and calls, and in none was it seen what the steps have done: let them use the `Ledger` that they \
             are built with, say by `Check::expect` what has to be so with participants of your own, or give them a database by \
             `Check::database`; with `.expect(|_| Ok(()))` records and calls are enough",
            tally.cases
        );
        Ok(Summary { cases: tally.cases })
    }

    /// Runs one more case.
    async fn next(&self, case: &Case, tally: &mut Tally) -> Result<Seen, Box<Failed>> {
        let seen = self.run(case).await?;
        tally.cases += 1;
        tally.watched |= seen.ledger.is_used();
        Ok(seen)
    }
}

/// What the runs of a check come to.
struct Tally {
    cases: usize,
    /// Whether anybody could say what the steps have done.
    watched: bool,
}

/// Checks a saga against everything in [`Check::all`]; the number of runs.
///
/// # Panics
///
/// When something is not as it has to be; the message has the name of the case. As [`Check::all`], when nothing of what the steps have done was
/// seen in any run: with participants of one's own use [`Check::expect`]; and when tokio's clock is not paused.
pub async fn check<I, R>(input: I, build: impl Fn(&Ledger) -> Saga<I, R> + Send + Sync + 'static) -> usize
where
    I: Serialize + DeserializeOwned + Send + Sync + 'static,
    R: Inputs,
{
    match Check::new(input, build).all().await {
        Ok(summary) => summary.cases,
        Err(failed) => panic!("{failed}"),
    }
}
