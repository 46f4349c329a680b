//! What came of a step that was tried, and what follows from it.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::{Driver, Flight, beside};
use crate::{
    event::Event,
    saga::{
        attempt::{Ended, Handed},
        key::Direction,
        ledger::{Stop, Transacted},
        machine::{self, Next, Outcome},
        record::{Cause, Payload, Record},
        steps::Steps,
    },
    time,
};

/// How long what was in flight when the saga was turned round may take yet; then it is dropped, and undone as something that may have
/// happened.
const PATIENCE: Duration = Duration::from_secs(60);

impl Driver {
    pub(super) async fn ended(&mut self, flight: Flight) -> Result<(), Stop> {
        let Flight { step, direction, asking, flags, began, ended: Some(ended), .. } = flight else {
            return Ok(());
        };
        let spent = (flags.attempts.load(Relaxed), time::now().saturating_duration_since(began));
        let aborted = self.machine().cause().is_some();
        let certain = self.machine().shape().transactional.contains(step);
        let sent = flags.tainted.load(Relaxed);
        if direction == Direction::Do && sent && asking.is_none() && !certain {
            self.tainted.insert(step);
        }
        let once = self.machine().shape().at_most_once.contains(step);
        let has_to_succeed = self.machine().shape().committed.contains(step);
        // It was let be sent, and was not: that it was let be still holds.
        let unsent = direction == Direction::Do && asking.is_none() && !sent;
        if !matches!(ended, Ended::Refused { .. }) {
            self.waits.begun(step);
        }
        // In flight when the saga was turned round, and known to have had no effect: it has not to be undone.
        let clean = matches!(
            ended,
            Ended::Stopped
                | Ended::Refused { .. }
                | Ended::Outcome(Outcome::Rejected(_) | Outcome::Settled(_) | Outcome::NotApplied)
        );
        let of_all = matches!(ended, Ended::Outcome(Outcome::Settled(_) | Outcome::NotApplied));
        let untainted = !self.tainted.contains(step) || of_all;
        if direction == Direction::Do && aborted && clean {
            // What had ended by then, and was not heard of yet, is in the record that turned the saga round.
            let open = self.machine().open_after_abort().contains(step);
            let says_more = untainted && open;
            return if says_more { self.note(Record::Clean { step: self.path(step) }).await } else { Ok(()) };
        }
        match (direction, ended) {
            (_, Ended::Undecodable(why)) => Err(Stop::Blocked(format!("{}: {why}", self.path(step)))),
            // No attempt was begun any more, and nothing follows from that; least of all that one was.
            (_, Ended::Stopped) => {
                if unsent {
                    self.resend.insert(step);
                }
                Ok(())
            }
            (_, Ended::Recorded) => Ok(()),
            // It is not recorded, so that it has not happened; and its policies do not want to go on.
            (Direction::Do, Ended::Outcome(Outcome::Unknown(why))) if certain => {
                self.decide(step, Outcome::Rejected(why), asking, spent).await
            }
            // It may have happened before, and must not be sent blindly a second time: to wait would help nobody.
            (Direction::Do, Ended::Refused { why, .. }) if sent && asking.is_none() && once => {
                self.decide(step, Outcome::Unknown(why), asking, spent).await
            }
            // Who cannot be asked is not waited for when the time of the step is over: the saga can be turned round.
            (Direction::Do, Ended::Refused { why, .. })
                if asking.is_some() && self.is_late(step) && !has_to_succeed =>
            {
                self.decide(step, Outcome::Unknown(why), asking, spent).await
            }
            (_, Ended::Refused { why, after }) => {
                if unsent {
                    self.resend.insert(step);
                }
                // Not tried at all: nothing is counted against it.
                let after = self.waits.refused(step, after);
                self.inner.identity.emit(&Event::SagaWaits {
                    definition: &self.machine().shape().id.name,
                    saga: self.ledger.id.as_str(),
                    step: &self.path(step),
                    why: &why,
                    after,
                });
                self.try_again_after(step, after);
                Ok(())
            }
            (Direction::Undo, Ended::Undone) => {
                let (attempts, time) = spent;
                let undone = Record::Undone { step: self.path(step), attempts, ms: millis(time) };
                self.note(undone).await
            }
            (Direction::Undo, Ended::Outcome(outcome)) => {
                let error = match outcome {
                    Outcome::Rejected(why) | Outcome::Unknown(why) => why,
                    _ => "it did not say that it is undone".to_owned(),
                };
                self.stick(step, error).await
            }
            (Direction::Do, Ended::Undone) => Ok(()),
            (Direction::Do, Ended::Outcome(outcome)) if aborted => {
                // It was in flight when the saga was turned round: what is known of it helps its compensation.
                match outcome {
                    Outcome::Completed(output) => {
                        let (attempts, time) = spent;
                        let path = self.path(step);
                        let ms = millis(time);
                        self.note(Record::Completed { step: path, output, attempts, ms }).await
                    }
                    _ => Ok(()),
                }
            }
            (Direction::Do, Ended::Outcome(outcome)) => self.decide(step, outcome, asking, spent).await,
        }
    }

    /// Has work done that a flight has handed over, and tells it what became of that. A saga that was turned round in the meantime has
    /// no such flight any more.
    pub(super) async fn transact(
        &mut self,
        step: usize,
        direction: Direction,
        handed: Handed,
    ) -> Result<(), Stop> {
        let Some(flight) = self.flights.iter().find(|flight| flight.step == step) else { return Ok(()) };
        let attempts = flight.flags.attempts.load(Relaxed);
        let (path, ms) = (self.path(step), millis(time::now().saturating_duration_since(flight.began)));
        let record = move |output| match direction {
            Direction::Do => Record::Completed { step: path.clone(), output, attempts, ms },
            Direction::Undo => Record::Undone { step: path.clone(), attempts, ms },
        };
        let (definition, most) = (self.definition.clone(), self.inner.settings.max_output);
        let keeps = move |output: &Payload| match direction {
            Direction::Do => definition.code[step].keeps(output, most),
            Direction::Undo => Ok(()),
        };
        let Handed { job, mut told } = handed;
        let transacted = self.ledger.transact(job, keeps, record, told.closed());
        // Who is told may have given up waiting.
        match beside(&mut self.flights, transacted).await? {
            Transacted::Failed(failure) => {
                let _ = told.send(Err(failure));
                Ok(())
            }
            Transacted::Recorded => {
                let _ = told.send(Ok(()));
                // Its policies hear of it at once. Those that have given it up, or have begun another attempt, have done so to no purpose.
                beside(&mut self.flights, std::future::ready(())).await;
                let told = |flight: &Flight| matches!(flight.ended, Some(Ended::Recorded));
                self.flights.retain(|flight| flight.step != step || told(flight));
                Ok(())
            }
            // No policy decides on what must not be: it would do it once more.
            Transacted::Unknown(reason) => {
                self.flights.retain(|flight| flight.step != step);
                let parked = Record::Parked { step: Some(self.path(step)), reason };
                self.commit(parked).await
            }
        }
    }

    /// Records what follows from the outcome of a step, going forward; `asked` is why the participant was asked, where this is its answer.
    pub(super) async fn decide(
        &mut self,
        step: usize,
        mut outcome: Outcome,
        asked: Option<String>,
        (attempts, time): (u32, Duration),
    ) -> Result<(), Stop> {
        // It speaks for everything that was ever sent.
        if matches!(outcome, Outcome::Settled(_) | Outcome::NotApplied) {
            self.tainted.remove(step);
        }
        let late = self.is_late(step) && !self.machine().stuck().contains(step);
        if outcome == Outcome::Resend && (late || self.waits.was_sent_enough(step)) {
            let why = asked.as_deref().unwrap_or_default();
            let tried = if late { "" } else { "sent again and again, " };
            outcome = Outcome::Unseen(format!("{why}; {tried}it is not there"));
        }
        let tainted = self.tainted.contains(step);
        match machine::next(self.machine().shape(), step, &outcome, tainted, asked.is_some()) {
            Next::Record(Record::Completed { step: path, output, .. }) => {
                let completed = Record::Completed { step: path, output, attempts, ms: millis(time) };
                self.commit(completed).await
            }
            Next::Record(Record::Stuck { error, .. }) => {
                if matches!(outcome, Outcome::Rejected(_) | Outcome::Settled(_)) && !tainted {
                    self.resend.insert(step);
                }
                self.stick(step, error).await
            }
            Next::Record(record) => self.commit(record).await,
            Next::Abort { cause, clean } => {
                let cause = match cause {
                    Cause::Unknown { .. } if late => self.late(step),
                    cause => cause,
                };
                let own = if clean { Steps::one(step) } else { Steps::NONE };
                if !self.abort(cause.clone(), own, Vec::new(), Vec::new()).await? {
                    let reason = format!("{cause}; a step that cannot be undone may have happened");
                    let parked = Record::Parked { step: Some(self.path(step)), reason };
                    self.commit(parked).await?;
                }
                Ok(())
            }
            // Nothing new is begun; who has the saga next asks.
            Next::Verify if self.draining => Ok(()),
            Next::Verify => {
                let (Outcome::Rejected(why) | Outcome::Unknown(why)) = outcome else {
                    unreachable!("nobody asks behind an answer")
                };
                self.fly(step, Direction::Do, Some(why));
                Ok(())
            }
            Next::Again { clean } => {
                // What was sent before and may arrive yet is not forgotten for being sent again.
                if !clean {
                    self.tainted.insert(step);
                }
                self.resend.insert(step);
                let wait = self.waits.again(step, clean);
                self.try_again_after(step, wait);
                Ok(())
            }
        }
    }

    /// Records that a step has failed as often as it may, once, and tries it again much later.
    async fn stick(&mut self, step: usize, error: String) -> Result<(), Stop> {
        if let Some(after) = self.inner.settings.stuck_retry {
            self.try_again_after(step, after);
        }
        if self.machine().stuck().contains(step) {
            return Ok(());
        }
        let stuck = Record::Stuck { step: self.path(step), error };
        self.commit(stuck).await
    }

    /// Turns the saga round, unless something has happened or may have that cannot be undone; whether it did. `first` are
    /// records that go in front, `clean` steps that are known to have had no effect.
    pub(super) async fn abort(
        &mut self,
        cause: Cause,
        clean: Steps,
        first: Vec<Record>,
        answers: Vec<String>,
    ) -> Result<bool, Stop> {
        let clean = clean | (self.machine().due() - self.touched());
        if !self.machine().can_abort(clean) {
            return Ok(false);
        }
        self.turn_flights();
        let clean = clean.iter().map(|step| self.path(step)).collect();
        let records: Vec<Record> = first.into_iter().chain([Record::Aborted { cause, clean }]).collect();
        self.answer(records, answers).await?;
        Ok(true)
    }

    /// Steps of which an attempt may have had an effect, or may have one yet.
    pub(super) fn touched(&self) -> Steps {
        let machine = self.machine();
        let mut touched = self.tainted;
        // Sent before, and nobody has heard of it; what is in flight here knows better.
        touched |= machine.tried() - self.resend;
        for Flight { step, flags, .. } in &self.flights {
            if flags.running.load(Relaxed) || flags.tainted.load(Relaxed) {
                touched.insert(*step);
            } else if !self.tainted.contains(*step) {
                touched.remove(*step);
            }
        }
        // What is done in the journal's transaction is clean until it is recorded, unless it has taken itself out of it.
        let certain = machine.shape().transactional - machine.parked();
        (touched | machine.doubtful()) - certain
    }

    /// No attempt begins any more, and what waits between attempts is gone. What is running is waited for.
    pub(super) fn stop_flights(&mut self) {
        for flight in &self.flights {
            flight.flags.stop.store(true, Relaxed);
        }
        let (stay, gone): (Vec<Flight>, Vec<Flight>) = std::mem::take(&mut self.flights)
            .into_iter()
            .partition(|flight| flight.flags.running.load(Relaxed) || flight.ended.is_some());
        self.flights = stay;
        for gone in gone {
            // What an earlier attempt may have done is not forgotten with it.
            if gone.direction == Direction::Do && gone.asking.is_none() && gone.flags.tainted.load(Relaxed) {
                self.tainted.insert(gone.step);
            }
        }
    }

    /// The saga is being turned round.
    pub(super) fn turn_flights(&mut self) {
        self.stop_flights();
        // What would be done in a transaction is not done.
        let certain = self.machine().shape().transactional;
        self.flights.retain(|flight| flight.direction == Direction::Undo || !certain.contains(flight.step));
        self.retry_at.clear();
        self.patience = Some(time::later(time::now(), PATIENCE));
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
