//! Beginning a saga: once, whoever asks how often.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use super::{
    Inner, StartError, StartOptions, Waiter,
    inner::{Left, Trouble, drive},
};
use crate::{
    event::Event,
    saga::{
        attempt::checked,
        definition::{Definition, is_json_of},
        driver::Driver,
        journal::{Begin, Corrupt, Refusal, StoreError, Stored},
        ledger::Ledger,
        machine::Machine,
        record::{Payload, Record, SagaId},
        same::same,
        writer::WriteError,
    },
    sync::lock,
    time,
};

/// What a saga is to be started with.
#[derive(Clone)]
pub(super) struct Input {
    payload: Payload,
    /// Reads a payload as such an input and writes it again.
    again: fn(&Payload) -> Result<Payload, serde_json::Error>,
}

impl Input {
    /// An input of at most `most` bytes, or why it is not possible.
    pub(super) fn new<I: Serialize + DeserializeOwned>(input: &I, most: usize) -> Result<Self, String> {
        let payload = Payload::encode(input).map_err(|error| error.to_string())?;
        let bytes = payload.as_str().len();
        if bytes > most {
            return Err(format!("it has {bytes} bytes of JSON, allowed are {most}"));
        }
        checked(is_json_of::<I>, &payload).map_err(|why| format!("it cannot be read again: {why}"))?;
        Ok(Input { payload, again: |stored| Payload::encode(&stored.decode::<I>()?) })
    }

    /// Whether a saga that was started with `stored` was started with this. That one may be older than a field that has a default.
    fn is(&self, stored: &Payload) -> Result<bool, String> {
        let is = |text: &Payload| same(text.as_str(), self.payload.as_str());
        Ok(is(stored) || is(&checked(self.again, stored)?))
    }
}

/// What a saga was started with, if its first record can be relied on.
fn input_of(stored: &Stored, id: &SagaId) -> Result<Payload, String> {
    let Some(first) = stored.entries.first() else {
        let missing = || Corrupt::Length { counted: stored.head.len, found: 0 }.to_string();
        return Err(stored.head.damage.clone().unwrap_or_else(missing));
    };
    if first.seq != 0 {
        return Err(Corrupt::Gap { expected: 0, found: first.seq }.to_string());
    }
    if first.checksum(id, 0) != first.crc {
        return Err(Corrupt::Checksum { seq: 0 }.to_string());
    }
    match first.record() {
        Ok(Record::Begun { input, .. }) => Ok(input),
        Ok(other) => Err(format!("it begins with a record {:?}", other.kind())),
        Err(error) => Err(error.to_string()),
    }
}

impl Inner {
    /// Begins a saga, after waiting as long as it may until its locks are free. While it waits it takes no place among the live ones.
    pub(super) async fn start(
        self: &Arc<Self>,
        definition: Arc<Definition>,
        id: SagaId,
        input: Input,
        options: StartOptions,
    ) -> Result<(), StartError> {
        let until = time::later(time::now(), options.patience);
        loop {
            let begun = self.begin(definition.clone(), id.clone(), input.clone(), options.clone()).await;
            let left = until.saturating_duration_since(time::now());
            match &begun {
                Err(StartError::Locked { holder, .. }) if !left.is_zero() => {
                    let waits = async {
                        // What was seen of the holder may be older than what has refused this one, and stay so for a while.
                        if !self.is_over(holder).await? {
                            tokio::time::sleep(self.settings.poll).await;
                        }
                        Ok(())
                    };
                    // At the end of its patience it asks once more.
                    if let Ok(Err(error)) = tokio::time::timeout(left, waits).await {
                        return Err(if self.is_closed() {
                            StartError::Closed
                        } else {
                            StartError::Store(error)
                        });
                    }
                }
                _ => return begun,
            }
        }
    }

    /// Waits until a saga is over, wherever it is driven. Whether there was anything to wait for.
    async fn is_over(self: &Arc<Self>, id: &SagaId) -> Result<bool, StoreError> {
        let waiter = Waiter::new(self, id);
        let mut waited = false;
        loop {
            let moves = waiter.moves();
            match waiter.look().await? {
                Some(stored) if !stored.head.phase.is_terminal() => waiter.wait(moves).await,
                _ => return Ok(waited),
            }
            waited = true;
        }
    }

    async fn begin(
        self: &Arc<Self>,
        definition: Arc<Definition>,
        id: SagaId,
        input: Input,
        options: StartOptions,
    ) -> Result<(), StartError> {
        if self.is_closed() || self.draining.load(Relaxed) {
            return Err(StartError::Closed);
        }
        if self.poisoned.load(Relaxed) {
            return Err(StartError::Store(StoreError::Poisoned));
        }
        if !self.definitions.contains_key(&definition.shape.id) {
            return Err(StartError::Unregistered(definition.shape.id.clone()));
        }
        let (mut seat, status, mail) = loop {
            let permit = match self.admission.try_acquire() {
                Ok(permit) => permit.into_owned(),
                // What has begun before takes no place.
                Err(busy) => {
                    return match self.journal()?.load(&id).await? {
                        Some(stored) => self.same_as(&stored, &definition, &id, &input),
                        None => {
                            self.identity.emit(&Event::Refused { refused: &busy, observed: false });
                            Err(StartError::Busy(busy))
                        }
                    };
                }
            };
            // It is among the live ones before its beginning can be seen in the store, so that nobody here takes it for abandoned.
            if let Some(seat) = self.seat(&id, &definition, permit, Trouble::default()) {
                break seat;
            }
            // Somebody is just starting it, or it has begun.
            if let Some((mut status, _)) = self.watch(&id) {
                let _ = status.wait_for(|status| status.phase.is_some()).await;
            }
            if let Some(stored) = self.journal()?.load(&id).await? {
                return self.same_as(&stored, &definition, &id, &input);
            }
            // Whoever was faster could not begin it.
            if self.is_closed() || self.draining.load(Relaxed) {
                return Err(StartError::Closed);
            }
            tokio::task::yield_now().await;
        };
        let now = self.now();
        let machine = Machine::new(definition.shape.clone());
        let mut ledger =
            Ledger::new(self.clone(), id.clone(), machine, (1, 0, 0), now, status, self.lapses());
        let begin = Begin { definition: definition.shape.id.clone(), tag: options.tag, locks: options.locks };
        let deadline = options.deadline.map(|after| now.after(after));
        let (told, begun) = oneshot::channel();
        let (inner, driven) = (self.clone(), definition.clone());
        let record = Record::Begun { input: input.payload.clone(), deadline };
        // A task of its own: what was queued is looked after, even if nobody waits for it any more.
        tokio::spawn(async move {
            let answer = ledger.begin(begin, record).await;
            match &answer {
                Ok(()) => {
                    seat.trouble.len = 1;
                    let _ = told.send(answer);
                    drive(inner, Driver::new(ledger, driven, mail, seat, false), Duration::ZERO).await;
                }
                Err(error) => {
                    seat.left = match error {
                        WriteError::Refused(_) => Left::Done,
                        WriteError::Store(_) => Left::Store,
                    };
                    drop((seat, ledger, mail));
                    let _ = told.send(answer);
                }
            }
        });
        let ended = || WriteError::Store(StoreError::Unavailable("the runtime has ended".to_owned()));
        match begun.await.unwrap_or_else(|_| Err(ended())) {
            Ok(()) => Ok(()),
            Err(WriteError::Refused(Refusal::Locked { key, holder })) => {
                Err(StartError::Locked { key, holder })
            }
            Err(WriteError::Refused(_)) => self.same(&definition, &id, &input).await,
            // It may have begun, and then it is looked after.
            Err(WriteError::Store(error)) => {
                self.store_failed(&error);
                Err(StartError::Store(error))
            }
        }
    }

    /// Whether the saga that exists is the one that was to be started.
    async fn same(&self, definition: &Definition, id: &SagaId, input: &Input) -> Result<(), StartError> {
        let Some(stored) = self.journal()?.load(id).await? else {
            return Err(StartError::Forgotten { id: id.clone() });
        };
        self.same_as(&stored, definition, id, input)
    }

    fn same_as(
        &self,
        stored: &Stored,
        definition: &Definition,
        id: &SagaId,
        input: &Input,
    ) -> Result<(), StartError> {
        let unreadable = |why: String| StartError::Unreadable { id: id.clone(), why };
        let first = input_of(stored, id).map_err(unreadable)?;
        let named = stored.head.definition.name == definition.shape.id.name;
        if !(named && input.is(&first).map_err(unreadable)?) {
            // What a damaged row follows may be what stands in for it.
            let damage = stored.head.damage.clone().filter(|_| !named);
            return Err(damage.map_or_else(|| StartError::Different { id: id.clone() }, unreadable));
        }
        // Its begin may have had no answer and have come to the store after it was looked for there.
        let owned = stored.head.owner.as_ref() == Some(&self.by);
        if owned && !lock(&self.live).contains_key(id) && !lock(&self.blocked).contains_key(id) {
            self.look_after(id.clone());
        }
        Ok(())
    }
}
