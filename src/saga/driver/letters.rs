//! What reaches a saga from outside: messages and people's orders.

use super::{Driver, Flight};
use crate::{
    event::Event,
    saga::{
        journal::{Ask, Request},
        key::Direction,
        ledger::Stop,
        machine::Illegal,
        record::{Cause, Order, Payload, Record},
        steps::Steps,
    },
};

impl Driver {
    pub(super) async fn take_up(&mut self, request: Request) -> Result<(), Stop> {
        let Request { id, by, ask, .. } = request;
        if !self.answered.insert(id.clone()) {
            return Ok(());
        }
        match ask {
            Ask::Signal { step, payload } => {
                let record = Record::Signalled { step: step.clone(), payload: payload.clone() };
                let fits = self.inner.fits(&payload).map_err(|error| Illegal(error.to_string()));
                let read = match self.definition.message_of(&step) {
                    Some(code) => {
                        fits.and_then(|()| self.is_legal(&record)).map(|()| code.accepts_message(&payload))
                    }
                    None => Err(Illegal(format!("no step {step:?} waits for a message"))),
                };
                let ask = Ask::Signal { step, payload };
                match read {
                    Ok(Ok(())) => self.answer(vec![record], vec![id]).await,
                    // What its step could not read would block the saga.
                    Ok(Err(why)) => self.leave_unread(id, by, ask, why).await,
                    Err(illegal) => self.refuse(id, by, ask, illegal).await,
                }
            }
            Ask::Order(Order::Cancel { reason }) => {
                let order = Order::Cancel { reason: reason.clone() };
                let ordered = Record::Ordered { by, order, clean: Vec::new() };
                let cause = Cause::Cancelled { reason };
                if !self.abort(cause, Steps::NONE, vec![ordered.clone()], vec![id.clone()]).await? {
                    self.answer(vec![ordered], vec![id]).await?;
                }
                Ok(())
            }
            Ask::Order(order) => {
                let forward = self.machine().cause().is_none();
                let turns = forward && matches!(order, Order::Reject { .. } | Order::Compensate { .. });
                let untouched = if turns { self.machine().due() - self.touched() } else { Steps::NONE };
                let clean = untouched.iter().map(|step| self.path(step)).collect();
                let record = Record::Ordered { by: by.clone(), order: order.clone(), clean };
                if let Err(illegal) = self.may_order(&order).and_then(|()| self.is_legal(&record)) {
                    return self.refuse(id, by, Ask::Order(order), illegal).await;
                }
                match &order {
                    Order::Retry { .. } => {
                        self.retry_at.clear();
                        self.waits.count_anew();
                    }
                    Order::Complete { step, .. }
                    | Order::Reject { step, .. }
                    | Order::Undone { step, .. } => {
                        let step = self.machine().shape().find(step);
                        self.flights.retain(|flight| Some(flight.step) != step);
                        self.retry_at.retain(|(other, _)| Some(*other) != step);
                    }
                    Order::Abandon { .. } => self.flights.clear(),
                    _ => {}
                }
                if turns {
                    self.turn_flights();
                }
                self.answer(vec![record], vec![id]).await
            }
        }
    }

    /// A message that this code cannot read, and later code may: whoever has left it was told that it counts, and will not leave it again. So
    /// it waits for such code, as a request does of which this version knows nothing, until its step needs it no more. That is said once
    /// of each, and no more of them wait than are recorded.
    async fn leave_unread(&mut self, id: String, by: String, ask: Ask, why: String) -> Result<(), Stop> {
        if self.unread.contains(&ask) {
            // One is enough.
            let why = format!("one that says the same waits for code that can read it: {why}");
            return self.refuse(id, by, ask, Illegal(why)).await;
        }
        if !self.machine().has_refused(&ask) {
            let waits = format!("this code cannot read it, and it waits for code that can: {why}");
            let refused = Record::Refused { by: by.clone(), ask: ask.clone(), why: waits.clone() };
            if self.is_legal(&refused).is_err() {
                return self.refuse(id, by, ask, Illegal(why)).await;
            }
            self.tell_refused(&waits);
            self.answer(vec![refused], Vec::new()).await?;
        }
        self.unread.push(ask);
        Ok(())
    }

    fn tell_refused(&self, why: &str) {
        self.inner.identity.emit(&Event::SagaOrderRefused {
            definition: &self.machine().shape().id.name,
            saga: self.ledger.id.as_str(),
            why,
        });
    }

    /// Says that a request cannot be followed: to the listeners, and in the journal for whoever has left it.
    async fn refuse(&mut self, id: String, by: String, ask: Ask, illegal: Illegal) -> Result<(), Stop> {
        let why = illegal.to_string();
        self.tell_refused(&why);
        // What is too large is not stored for being so.
        let ask = match ask {
            Ask::Signal { step, payload } if self.inner.fits(&payload).is_err() => {
                Ask::Signal { step, payload: Payload::null() }
            }
            Ask::Order(Order::Complete { step, output }) if self.inner.fits(&output).is_err() => {
                Ask::Order(Order::Complete { step, output: Payload::null() })
            }
            ask => ask,
        };
        let refused = Record::Refused { by, ask, why };
        // Of messages no more than the first few are recorded.
        let records = self.is_legal(&refused).map(|()| refused).into_iter().collect();
        self.answer(records, vec![id]).await
    }

    /// Nobody can say that a step has not happened while it is being tried, and an output has to be one that can be read.
    fn may_order(&self, order: &Order) -> Result<(), Illegal> {
        if let Order::Complete { step, output } = order {
            let place = self.machine().shape().find(step);
            let read = place.map_or(Ok(()), |place| self.definition.code[place].accepts(output));
            let read = self.inner.fits(output).map_err(|error| error.to_string()).and(read);
            return read.map_err(|why| Illegal(format!("the output of {step} cannot be this: {why}")));
        }
        let Order::Reject { step: path, .. } = order else { return Ok(()) };
        let step = self.machine().shape().find(path);
        let tried = |flight: &Flight| flight.direction == Direction::Do && Some(flight.step) == step;
        if self.flights.iter().any(tried) {
            return Err(Illegal(format!(
                "the order cannot be followed: {path} is being tried at this moment"
            )));
        }
        Ok(())
    }

    fn is_legal(&self, record: &Record) -> Result<(), Illegal> {
        self.machine().clone().apply(record, self.inner.now())
    }
}
