//! One saga on its way: asks the machine what may happen, lets it happen, and records what came of it before anything follows
//! from it.

use std::{
    collections::HashSet,
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    attempt::{self, Ended, Flags, Handed, Pending, Told},
    definition::Definition,
    journal::{Ask, Request},
    key::Direction,
    ledger::{Ledger, Stop},
    machine::{Machine, Outcome},
    orchestrator::{Inner, Seat},
    record::{Cause, Payload, Record, Timestamp},
    shape::Kind,
    steps::Steps,
};
use crate::{event::Event, observe::span, time};

mod letters;
mod limits;
mod outcomes;
mod waits;

use waits::Waits;

/// How long a driver with nothing to do but wait stays in memory.
const LINGER: Duration = Duration::from_secs(1);

/// How long it is away at least when it has made room for others: each return costs two writes and a place.
const AWAY: Duration = Duration::from_secs(30);

/// So full of sagas, in sixteenths, an orchestrator is when those make room that only wait to try again; and when those do too of which
/// something else may become for it.
const CROWDED: usize = 14;
const CRAMPED: usize = 15;

/// How long it waits for a flight or a letter when nothing else is to come.
const IDLE: Duration = Duration::from_secs(3_600);

/// How long it relies on what the wall clock said: a jump forward makes a durable timer due earlier than it was told.
const CLOCK: Duration = Duration::from_secs(60);

/// What reaches a saga from outside.
#[derive(Debug)]
pub(crate) enum Mail {
    Request(Request),
    /// Nothing new is begun; when nothing runs any more, the saga is let go.
    Drain,
}

/// A step being tried.
struct Flight {
    step: usize,
    direction: Direction,
    /// Why the participant is being asked, if it is not told.
    asking: Option<String>,
    flags: Arc<Flags>,
    began: Instant,
    future: Pending<Ended>,
    /// How it has ended, until that is looked at.
    ended: Option<Ended>,
}

/// The driver of one saga.
pub(crate) struct Driver {
    pub(crate) ledger: Ledger,
    definition: Arc<Definition>,
    inner: Arc<Inner>,
    mail: mpsc::UnboundedReceiver<Mail>,
    flights: Vec<Flight>,
    /// Steps of which an attempt may have had an effect.
    tainted: Steps,
    /// Steps that may be sent although they were: the participant has said that it has nothing of them, or that they may be.
    resend: Steps,
    /// How long what was not begun waits, and what did not arrive.
    waits: Waits,
    /// When a step that was refused or is stuck is tried again; by the clock of this process, which is not set.
    retry_at: Vec<(usize, Instant)>,
    /// Whether it was said that a deadline came too late.
    overdue: bool,
    /// Until when the limits of steps were looked at: of those before nothing follows any more.
    looked: Timestamp,
    /// Until when what was in flight when the saga was turned round is waited for.
    patience: Option<Instant>,
    /// The requests that were answered: they are handed over again until that is seen in the store.
    answered: HashSet<String>,
    /// The messages that this code cannot read and that stay where they are, for code that can.
    unread: Vec<Ask>,
    /// How often the lease had run out when the saga was last known to be its owner's.
    lapses: u64,
    draining: bool,
    /// Whether nothing was done for it since it was taken up.
    in_vain: bool,
    pub(crate) seat: Seat,
}

impl Driver {
    pub(crate) fn new(
        ledger: Ledger,
        definition: Arc<Definition>,
        mail: mpsc::UnboundedReceiver<Mail>,
        seat: Seat,
        recovered: bool,
    ) -> Self {
        let machine = &ledger.machine;
        let shape = machine.shape();
        // Somebody may have tried what was due; of what is recorded before it is sent, that is known.
        let tried = (shape.actions - shape.at_most_once) | machine.tried();
        let tainted = if recovered { (machine.due() & tried) - shape.transactional } else { Steps::NONE };
        let inner = ledger.inner.clone();
        let lapses = ledger.lapses;
        let waits = Waits::new(&ledger.id, ledger.epoch);
        Driver {
            ledger,
            definition,
            inner,
            mail,
            flights: Vec::new(),
            tainted,
            resend: Steps::NONE,
            waits,
            retry_at: Vec::new(),
            overdue: false,
            looked: Timestamp(0),
            patience: None,
            answered: HashSet::new(),
            unread: Vec::new(),
            lapses,
            draining: false,
            in_vain: recovered,
            seat,
        }
    }

    /// Drives the saga until it is over, or why not. Nothing is begun before its `turn` comes.
    pub(crate) async fn run(&mut self, turn: Duration) -> Result<(), Stop> {
        self.wait_for(turn).await?;
        loop {
            if self.machine().phase().is_terminal() {
                return Ok(());
            }
            // What is asked comes before what is due.
            if let Ok(mail) = self.mail.try_recv() {
                self.receive(mail).await?;
                continue;
            }
            // What has its time before this is dispatched now, or cannot be.
            let dispatched = time::now();
            if !self.draining {
                let inner = self.inner.clone();
                let lapses = beside(&mut self.flights, inner.holds_lease()).await?;
                if lapses != self.lapses {
                    // Somebody else may have taken the saga in the meantime; the store knows. Flights from before begin nothing any more.
                    self.answer(Vec::new(), Vec::new()).await?;
                    self.lapses = lapses;
                }
                self.dispatch().await?;
                if self.machine().phase().is_terminal() {
                    continue;
                }
            }
            let mut rest = if self.draining { None } else { self.rest(dispatched, Duration::ZERO) };
            let far = |rest: Option<Duration>| rest.is_none_or(|rest| rest > LINGER);
            let only_waits = self.flights.is_empty() && self.mail.is_empty() && !self.draining;
            let mut idle = only_waits && far(rest) && self.can_be_let_go();
            if only_waits && !idle {
                let away = self.rest(dispatched, AWAY);
                // What may be sent again soon is sent: who comes back only asks once more.
                let resends = !(self.resend & self.machine().shape().at_most_once).is_empty();
                if far(away) && (far(rest) || !resends) && self.makes_room() {
                    (rest, idle) = (away, true);
                }
            }
            if self.flights.is_empty() && (idle || self.draining) {
                let wake = match rest {
                    // At once, whatever the clock of the next owner says.
                    _ if self.draining => Some(Timestamp(0)),
                    rest => rest.map(|rest| self.inner.now().after(rest)),
                };
                self.ledger.release(wake).await?;
                self.inner.let_go(&self.ledger.id, self.in_vain && !self.draining, rest);
                return Err(Stop::Released);
            }
            let nap = rest.map_or(IDLE, |rest| rest.min(CLOCK));
            match self.next_event(nap).await {
                Happened::Ended(flight) => self.ended(flight).await?,
                Happened::Handed(step, direction, handed) => self.transact(step, direction, handed).await?,
                Happened::Mail(Some(mail)) => self.receive(mail).await?,
                Happened::Mail(None) => return Err(Stop::Closed),
                Happened::Time => {}
            }
        }
    }

    /// Lets others go first; what is asked of it meanwhile is done.
    async fn wait_for(&mut self, turn: Duration) -> Result<(), Stop> {
        if turn.is_zero() {
            return Ok(());
        }
        let mut turn = pin!(tokio::time::sleep(turn));
        while !self.draining && !self.machine().phase().is_terminal() {
            let mail = tokio::select! {
                biased;
                mail = self.mail.recv() => mail.ok_or(Stop::Closed)?,
                () = &mut turn => break,
            };
            self.receive(mail).await?;
        }
        Ok(())
    }

    async fn receive(&mut self, mail: Mail) -> Result<(), Stop> {
        match mail {
            Mail::Request(request) => self.take_up(request).await,
            Mail::Drain => {
                self.drain();
                Ok(())
            }
        }
    }

    fn machine(&self) -> &Machine {
        &self.ledger.machine
    }

    fn path(&self, step: usize) -> String {
        self.machine().shape().nodes[step].path.clone()
    }

    /// What is due and known not to have been tried, which is nowhere recorded: whoever takes the saga up next has to believe that it may
    /// have been.
    fn untouched(&self) -> Steps {
        let shape = self.machine().shape();
        // How often what is sent only once was sent again is nowhere recorded either.
        let kept = self.touched() - (self.resend & shape.at_most_once);
        ((self.machine().due() & shape.actions) - shape.transactional) - kept
    }

    /// Whether nothing would be forgotten.
    fn can_be_let_go(&self) -> bool {
        self.untouched().is_empty()
    }

    /// Whether it is to be let go for the sake of others, although it is forgotten then that something was not begun.
    ///
    /// What is sent again under the same key, and undone where it never happened, its participants bear. That is not so of a step that
    /// decides: it could no longer be turned round, and would be parked when it is rejected. Nor of one that must not be sent twice: it is
    /// not sent at all. These stay until others have no room otherwise; then they are as after any change of hands.
    fn makes_room(&mut self) -> bool {
        let (machine, untouched) = (self.machine(), self.untouched());
        let decided_alike = untouched.apart_from(machine.shape().at_most_once)
            && machine.can_abort(untouched) == machine.can_abort(Steps::NONE);
        self.seat.leaves(if decided_alike { CROWDED } else { CRAMPED })
    }

    // === records, while what is in flight goes on

    async fn commit(&mut self, record: Record) -> Result<(), Stop> {
        self.in_vain = false;
        beside(&mut self.flights, self.ledger.commit(record)).await
    }

    async fn answer(&mut self, records: Vec<Record>, answers: Vec<String>) -> Result<(), Stop> {
        self.in_vain &= records.is_empty() && answers.is_empty();
        beside(&mut self.flights, self.ledger.answer(records, answers)).await
    }

    async fn note(&mut self, record: Record) -> Result<(), Stop> {
        beside(&mut self.flights, self.ledger.note(record)).await
    }

    fn drain(&mut self) {
        self.draining = true;
        self.stop_flights();
    }

    // === going on

    /// Lets everything happen that may.
    async fn dispatch(&mut self) -> Result<(), Stop> {
        self.look_at_the_deadline().await?;
        self.look_at_the_cancel().await?;
        if self.machine().is_held() {
            return Ok(());
        }
        // Time and messages first: they make other steps due.
        loop {
            let waiting = self.machine().due() - self.machine().shape().actions;
            let mut moved = false;
            for step in waiting.iter() {
                moved |= self.wait_in(step).await?;
            }
            if !moved {
                break;
            }
        }
        self.look_at_the_limits().await?;
        let now = time::now();
        if self.patience.is_some_and(|until| now >= until) {
            self.flights.retain(|flight| flight.direction == Direction::Undo || flight.ended.is_some());
        }
        let troubled = self.machine().parked() | self.not_yet(now);
        let flying: Steps = self.flights.iter().map(|flight| flight.step).collect();
        for step in ((self.machine().due() & self.machine().shape().actions) - troubled - flying).iter() {
            // The one before it may have turned the saga round.
            if self.machine().due().contains(step) {
                self.send(step).await?;
            }
        }
        // Nothing is undone while something may still happen.
        if self.flights.iter().all(|flight| flight.direction == Direction::Undo) {
            for step in (self.machine().undo_due() - troubled - flying).iter() {
                self.fly(step, Direction::Undo, None);
            }
        }
        Ok(())
    }

    async fn look_at_the_deadline(&mut self) -> Result<(), Stop> {
        let Some(deadline) = self.machine().deadline() else { return Ok(()) };
        if self.inner.now() < deadline || self.machine().cause().is_some() {
            return Ok(());
        }
        // Said once; looked at again whenever something has happened, since a pivot that was refused leaves the way back open.
        let turned = self.abort(Cause::Deadline, Steps::NONE, Vec::new(), Vec::new()).await?;
        if !turned && !std::mem::replace(&mut self.overdue, true) {
            self.inner.identity.emit(&Event::SagaOverdue {
                definition: &self.machine().shape().id.name,
                saga: self.ledger.id.as_str(),
                step: None,
                by: self.inner.now().since(deadline),
            });
        }
        Ok(())
    }

    /// What was asked for when it was not possible is still wanted when it is.
    async fn look_at_the_cancel(&mut self) -> Result<(), Stop> {
        if let (Some(reason), None) = (self.machine().cancel(), self.machine().cause()) {
            let cause = Cause::Cancelled { reason: reason.to_owned() };
            self.abort(cause, Steps::NONE, Vec::new(), Vec::new()).await?;
        }
        Ok(())
    }

    /// Moves a timer or a wait for a message on; whether it did.
    async fn wait_in(&mut self, step: usize) -> Result<bool, Stop> {
        let kind = self.machine().shape().nodes[step].kind;
        let limit = match kind {
            Kind::Action => return Ok(false),
            Kind::Timer(time) => Some(time),
            Kind::Signal(limit) => limit,
        };
        let output = match (kind, self.machine().signal(step)) {
            (Kind::Signal(_), Some(payload)) => Some(payload.clone()),
            _ => match (limit, self.machine().armed(step)) {
                (None, _) => None,
                (Some(limit), None) => {
                    let until = self.inner.now().after(limit);
                    let armed = Record::Armed { step: self.path(step), until };
                    self.commit(armed).await?;
                    return Ok(true);
                }
                (Some(_), Some(until)) => (self.inner.now() >= until).then(Payload::null),
            },
        };
        let Some(output) = output else { return Ok(false) };
        let completed = Record::Completed { step: self.path(step), output, attempts: 0, ms: 0 };
        self.commit(completed).await?;
        Ok(true)
    }

    /// Begins to try a step forward.
    async fn send(&mut self, step: usize) -> Result<(), Stop> {
        let once = self.machine().shape().at_most_once.contains(step);
        if once && self.machine().was_sent(step) && !self.resend.contains(step) {
            // It was sent, by this owner or another, and nobody has heard of it since.
            self.tainted.insert(step);
            let why = "the orchestrator stopped while it was in flight".to_owned();
            return self.decide(step, Outcome::Unknown(why), None, (0, Duration::ZERO)).await;
        }
        if once && !self.machine().was_sent(step) {
            let sent = Record::Sent { step: self.path(step) };
            self.commit(sent).await?;
        }
        self.resend.remove(step);
        self.fly(step, Direction::Do, None);
        Ok(())
    }

    fn fly(&mut self, step: usize, direction: Direction, asking: Option<String>) {
        let Some(input) = self.machine().input().cloned() else {
            unreachable!("nothing is due in a saga that has not begun")
        };
        let ledger = &self.ledger;
        let outputs = ledger.machine.outputs();
        let definition = self.definition.clone();
        let mut told = Told::new(&ledger.id, &definition, step, direction, ledger.epoch, &input, outputs);
        if direction == Direction::Do && asking.is_none() {
            told.until = self.ends_at(step);
        }
        let flags = Arc::new(Flags::new(self.inner.clone(), self.lapses));
        let span = span::step(&ledger.machine.shape().id.name, &told.key);
        let max_output = self.inner.settings.max_output;
        let future = match (direction, &asking) {
            (Direction::Do, None) => {
                span.around(attempt::forward(definition, step, told, flags.clone(), max_output))
            }
            (Direction::Do, Some(_)) => {
                span.around(attempt::verify(definition, step, told, flags.clone(), max_output))
            }
            (Direction::Undo, _) => span.around(attempt::backward(definition, step, told, flags.clone())),
        };
        let began = time::now();
        self.in_vain = false;
        self.retry_at.retain(|(other, _)| *other != step);
        self.flights.push(Flight { step, direction, asking, flags, began, future, ended: None });
    }

    // === time

    fn try_again_after(&mut self, step: usize, after: Duration) {
        let at = time::later(time::now(), after);
        self.retry_at.retain(|(other, _)| *other != step);
        self.retry_at.push((step, at));
    }

    /// Steps whose time to be tried again has not come.
    fn not_yet(&self, now: Instant) -> Steps {
        let waiting: Steps =
            self.retry_at.iter().filter(|(_, at)| *at > now).map(|(step, _)| *step).collect();
        if self.inner.settings.stuck_retry.is_some() { waiting } else { waiting | self.machine().stuck() }
    }

    /// How long until there is something to do even if nothing happens, where nothing is tried again within `least`. What was to be tried
    /// before `dispatched` and was not waits for something else. What is recorded goes by the store's clock, and what is not by this
    /// process's.
    fn rest(&self, dispatched: Instant, least: Duration) -> Option<Duration> {
        let machine = self.machine();
        if machine.is_held() {
            return None;
        }
        let deadline = machine.deadline().filter(|_| !self.overdue && machine.cause().is_none());
        let waiting = self.flights.iter().any(|flight| flight.direction == Direction::Do);
        let patience = self.patience.filter(|_| waiting);
        let armed = machine.due().iter().filter_map(|step| machine.armed(step));
        let open = (machine.due() | machine.undo_due()) - machine.parked();
        let again = self.retry_at.iter().filter(|(step, at)| open.contains(*step) && *at > dispatched);
        let (wall, here) = (self.inner.now(), time::now());
        let again = again.map(|(_, at)| at.saturating_duration_since(here).max(least));
        let patience = patience.map(|until| until.saturating_duration_since(here));
        let acts = (machine.due() & machine.shape().limited) - machine.parked();
        let limits = acts.iter().filter_map(|step| machine.limit(step)).filter(|at| *at > self.looked);
        let recorded = armed.chain(deadline).chain(limits).map(|at| at.since(wall));
        recorded.chain(again).chain(patience).min()
    }

    async fn next_event(&mut self, nap: Duration) -> Happened {
        let Driver { flights, mail, .. } = self;
        let landed = poll_fn(|cx| {
            poll_flights(flights, cx);
            match flights.iter().position(|flight| flight.ended.is_some()) {
                Some(at) => Poll::Ready(Happened::Ended(flights.swap_remove(at))),
                None => match flights.iter().find_map(|flight| Some((flight, flight.flags.handed()?))) {
                    Some((flight, handed)) => {
                        Poll::Ready(Happened::Handed(flight.step, flight.direction, handed))
                    }
                    None => Poll::Pending,
                },
            }
        });
        tokio::select! {
            biased;
            happened = landed => happened,
            mail = mail.recv() => Happened::Mail(mail),
            () = tokio::time::sleep(nap) => Happened::Time,
        }
    }
}

enum Happened {
    Ended(Flight),
    /// A flight has work for the transaction that records what comes of it.
    Handed(usize, Direction, Handed),
    Mail(Option<Mail>),
    Time,
}

/// Moves on what is in flight; what has ended is left where it is.
fn poll_flights(flights: &mut [Flight], cx: &mut Context<'_>) {
    for flight in flights.iter_mut().filter(|flight| flight.ended.is_none()) {
        if let Poll::Ready(ended) = flight.future.as_mut().poll(cx) {
            flight.ended = Some(ended);
        }
    }
}

/// Waits for something, the store mostly, while what is in flight goes on: a slow store shall not look like a slow participant.
async fn beside<T>(flights: &mut [Flight], waited_for: impl Future<Output = T>) -> T {
    let mut waited_for = pin!(waited_for);
    poll_fn(|cx| {
        poll_flights(flights, cx);
        waited_for.as_mut().poll(cx)
    })
    .await
}
