//! Steps whose time is limited. It begins with the last record before them, wherever that was written, so that no record of it is needed.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use super::{Driver, outcomes::millis};
use crate::{
    event::Event,
    saga::{Timestamp, ledger::Stop, machine::Outcome, record::Cause, shape::Unknown, steps::Steps},
    time,
};

impl Driver {
    /// What follows from that the time of steps is over.
    pub(super) async fn look_at_the_limits(&mut self) -> Result<(), Stop> {
        let limited = self.machine().due() & self.machine().shape().limited;
        if limited.is_empty() {
            return Ok(());
        }
        let (before, now) = (self.looked, self.inner.now());
        self.looked = now;
        for step in limited.iter() {
            // Nothing is due any more when the one before it has turned the saga round.
            let due = self.machine().due().contains(step);
            let Some(limit) = self.machine().limit(step).filter(|limit| due && *limit <= now) else {
                continue;
            };
            if self.machine().shape().ends_in_time(step) {
                self.give_up(step).await?;
            } else if limit > before {
                self.inner.identity.emit(&Event::SagaOverdue {
                    definition: &self.machine().shape().id.name,
                    saga: self.ledger.id.as_str(),
                    step: Some(&self.path(step)),
                    by: now.since(limit),
                });
            }
        }
        Ok(())
    }

    /// Tries no more: what is known of the step decides on what becomes of the saga.
    async fn give_up(&mut self, step: usize) -> Result<(), Stop> {
        let machine = self.machine();
        // A person is asked already; or it is, for good, tried much later. What is known to have had no effect need not be.
        let stuck = machine.stuck().contains(step) && self.touched().contains(step);
        if machine.parked().contains(step) || stuck {
            return Ok(());
        }
        let mut spent = (0, Duration::ZERO);
        if let Some(at) = self.flights.iter().position(|flight| flight.step == step) {
            let flight = &self.flights[at];
            // What it has come to is looked at next; and who was asked is let answer.
            if flight.ended.is_some() || flight.asking.is_some() {
                return Ok(());
            }
            let attempts = flight.flags.attempts.load(Relaxed);
            spent = (attempts, time::now().saturating_duration_since(flight.began));
            let sent = flight.flags.tainted.load(Relaxed);
            self.flights.swap_remove(at);
            match sent {
                // What is done in the journal's transaction is not done when nobody waits for it.
                true if self.machine().shape().transactional.contains(step) => {}
                true => self.tainted.insert(step),
                false => self.resend.insert(step),
            }
        }
        let (late, touched) = (self.late(step), self.touched().contains(step));
        // A step that ends and had no effect can always be given up; if it could not, it would be like one of which nothing is known.
        if !touched && self.abort(late.clone(), Steps::NONE, Vec::new(), Vec::new()).await? {
            return Ok(());
        }
        // Its participant is to be asked, and cannot be yet.
        let shape = self.machine().shape();
        let asks = shape.nodes[step].unknown == Unknown::Verify && !self.resend.contains(step);
        if asks && shape.pivot.contains(step) && self.not_yet(time::now()).contains(step) {
            return Ok(());
        }
        // What may be sent again is not any more.
        self.resend.remove(step);
        self.retry_at.retain(|(other, _)| *other != step);
        self.decide(step, Outcome::Unknown(late.to_string()), None, spent).await
    }

    /// The limit of a step that ends with it.
    fn end(&self, step: usize) -> Option<Timestamp> {
        let machine = self.machine();
        machine.limit(step).filter(|_| machine.shape().ends_in_time(step))
    }

    /// Whether the time of a step is over that ends with it.
    pub(super) fn is_late(&self, step: usize) -> bool {
        self.end(step).is_some_and(|end| end <= self.inner.now())
    }

    /// That a step was not over in time.
    pub(super) fn late(&self, step: usize) -> Cause {
        let time = self.machine().shape().nodes[step].within.unwrap_or_default();
        Cause::Late { step: self.path(step), ms: millis(time) }
    }

    /// When the time of a step is over that ends with it, by this process's clock.
    pub(super) fn ends_at(&self, step: usize) -> Option<Instant> {
        let (end, now) = (self.end(step)?, self.inner.now());
        (end > now).then(|| time::later(time::now(), end.since(now)))
    }
}
