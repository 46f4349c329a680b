//! The two tasks that keep an orchestrator going: one prolongs its lease, the other takes up what is left over and hands on what comes
//! from outside.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    Inner,
    inner::{Left, Trouble},
};
use crate::{
    event::Event,
    saga::{
        driver::Mail,
        journal::{Append, Ask, Claim, Phase, Presence, Request, StoreError, Stored},
        record::{Entry, Order, Record, SagaId},
        writer::WriteError,
    },
    sync::lock,
    time,
};

/// How many sagas are taken up at once.
const CLAIM: usize = 256;

/// How often a saga is asked for whose begin had no answer and is not in the store: it may come there late.
const LATE: u32 = 8;

impl Inner {
    fn claim(&self, only: Option<Vec<SagaId>>, limit: usize) -> Claim {
        let mut except: Vec<SagaId> = lock(&self.blocked).keys().cloned().collect();
        if only.is_none() {
            except.extend(self.vain());
        }
        let definitions = self.definitions.keys().cloned().collect();
        Claim { by: self.by.clone(), definitions, except, only, limit }
    }

    /// Drives sagas that were claimed, each with what is asked of it: that comes before anything that is due. Where the store cannot read
    /// what is asked, it comes when it can: sagas of which nothing is asked, mostly all, do not wait for that.
    async fn adopt_all(self: &Arc<Self>, claimed: Vec<Stored>, lapses: u64) -> Result<(), StoreError> {
        if claimed.is_empty() {
            return Ok(());
        }
        let requests = match self.requests().await {
            Ok(requests) => requests,
            Err(error) if Left::store(&error) == Left::Store => {
                claimed.into_iter().for_each(|stored| self.look_after(stored.head.id));
                return Err(error);
            }
            Err(error) => {
                self.store_failed(&error);
                Vec::new()
            }
        };
        let mut asked: HashMap<SagaId, Vec<Request>> = HashMap::new();
        for request in requests {
            asked.entry(request.saga.clone()).or_default().push(request);
        }
        for stored in claimed {
            match self.admission.try_acquire() {
                Ok(permit) => {
                    let asked = asked.remove(&stored.head.id).unwrap_or_default();
                    self.adopt(stored, permit.into_owned(), asked, lapses);
                }
                // As soon as there is room.
                Err(_) => self.look_later(stored.head.id),
            }
        }
        Ok(())
    }

    async fn requests(&self) -> Result<Vec<Request>, StoreError> {
        self.journal()?.requests(&self.by).await
    }

    pub(super) fn hand_over(&self, request: Request) {
        let mail = lock(&self.live).get(&request.saga).map(|live| live.mail.clone());
        if let Some(mail) = mail {
            let _ = mail.send(Mail::Request(request));
            return;
        }
        // What a person has ordered comes before what cannot be done, and may make it unnecessary.
        let mut blocked = lock(&self.blocked);
        if blocked.get(&request.saga).is_some_and(|blocked| blocked.obeys) {
            blocked.remove(&request.saga);
            drop(blocked);
            self.look_after(request.saga);
        }
    }

    async fn round(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.may_not_take() {
            return Ok(());
        }
        for batch in self.due_lost().chunks(CLAIM) {
            // What has run out since the claim was sent may have cost what it gave.
            let lapses = self.lapses();
            let (claimed, done) = self.claim_lost(batch).await;
            self.adopt_all(claimed, lapses).await?;
            done?;
        }
        let free = || self.settings.max_live.saturating_sub(self.admission.in_use());
        let full = free() == 0;
        loop {
            if self.may_not_take() {
                return Ok(());
            }
            let limit = free().min(CLAIM);
            if limit == 0 {
                break;
            }
            let lapses = self.lapses();
            let claimed = self.journal()?.claim(self.claim(None, limit)).await;
            let claimed = match claimed.inspect_err(|_| lock(&self.looks).unsure()) {
                Ok(claimed) => claimed,
                Err(error) if Left::store(&error) == Left::Store => return Err(error),
                // What is its own is looked after even so.
                Err(error) => {
                    self.store_failed(&error);
                    break;
                }
            };
            let all = claimed.len() < limit;
            self.adopt_all(claimed, lapses).await?;
            if all {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.tell_live(full);
        // Behind the claims: what was left by others waits for nobody's look.
        self.look_if_due();
        match self.requests().await {
            Ok(requests) => self.hand_out(requests).await?,
            Err(error) if Left::store(&error) == Left::Store => return Err(error),
            // What is damaged there is not all that there is to do.
            Err(error) => self.store_failed(&error),
        }
        self.handed_out();
        self.announce().await
    }

    /// Hands what is asked to those that work on it. What one saga's damage keeps from being done keeps nothing from the others.
    async fn hand_out(&self, requests: Vec<Request>) -> Result<(), StoreError> {
        for request in requests {
            match self.give_up(&request).await {
                Ok(true) => {}
                Ok(false) => self.hand_over(request),
                Err(error) if Left::store(&error) == Left::Store => return Err(error),
                Err(error) => self.store_failed(&error),
            }
        }
        Ok(())
    }

    /// Tells how many sagas it works on: every lease, and as soon as it takes up none because it is `full`.
    fn tell_live(&self, full: bool) {
        let now = time::now();
        let held = {
            let mut places = lock(&self.places);
            let since = full.then(|| places.full_since.unwrap_or(now));
            places.full_since = since;
            let news =
                |(at, was_full): (_, bool)| full && !was_full || now >= time::later(at, self.settings.lease);
            if !places.told.is_none_or(news) {
                return;
            }
            places.told = Some((now, full));
            since.map(|since| now.saturating_duration_since(since))
        };
        let (live, max_live) = (self.admission.in_use(), self.settings.max_live);
        self.identity.emit(&Event::SagaLive { live, max_live, held });
    }

    /// Follows the one order that needs no sense in a saga's records: a person gives up what cannot be read. The records that are there stay
    /// as they are, and that they are damaged can be seen as before. Whether it was such an order.
    async fn give_up(&self, request: &Request) -> Result<bool, StoreError> {
        let Ask::Order(order @ Order::Abandon { reason }) = &request.ask else { return Ok(false) };
        let id = &request.saga;
        if lock(&self.blocked).get(id).is_none_or(|blocked| blocked.obeys || blocked.hopeless) {
            return Ok(false);
        }
        let Some(Stored { head, .. }) = self.journal()?.load(id).await? else { return Ok(true) };
        let record = Record::Ordered { by: request.by.clone(), order: order.clone(), clean: Vec::new() };
        let entry = Entry::new(id, head.len, head.crc, head.epoch, self.now(), &self.by, &record)
            .map_err(|error| StoreError::Io(error.to_string()))?;
        let written = self.writer.append(Append {
            saga: id.clone(),
            by: self.by.clone(),
            epoch: head.epoch,
            begin: None,
            entries: vec![entry],
            work: None,
            phase: Phase::Abandoned,
            note: reason.clone(),
            wake: None,
            release: true,
            answers: vec![request.id.clone()],
        });
        let failed = match written.wait().await {
            Ok(()) => None,
            Err(WriteError::Store(error)) if Left::store(&error) == Left::Store => return Err(error),
            Err(WriteError::Store(error)) => Some(error.to_string()),
            Err(WriteError::Refused(refusal)) => Some(refusal.to_string()),
        };
        if let Some(why) = failed {
            // What is asked stays, and it is said why nothing comes of it.
            if let Some(blocked) = lock(&self.blocked).get_mut(id) {
                blocked.hopeless = true;
                let reason = blocked.status.blocked.take().unwrap_or_default();
                blocked.status.blocked = Some(format!("it cannot be given up ({why}): {reason}"));
            }
            return Ok(true);
        }
        lock(&self.blocked).remove(id);
        let (definition, saga) = (head.definition.name.as_str(), id.as_str());
        self.identity.emit(&Event::SagaRecord { definition, saga, record: &record });
        let age = self.now().since(head.created);
        let (from, to) = (Some(head.phase), Phase::Abandoned);
        self.identity.emit(&Event::SagaPhase { definition, saga, from, to, note: reason, age });
        self.waiters.tell(id);
        Ok(true)
    }

    /// Says in the store what it can work on and what it cannot, when that has changed, or may have been forgotten there.
    async fn announce(&self) -> Result<(), StoreError> {
        let mut definitions: Vec<_> = self.definitions.keys().cloned().collect();
        definitions.sort();
        let mut blocked: Vec<(SagaId, String)> = lock(&self.blocked)
            .iter()
            .map(|(id, blocked)| (id.clone(), blocked.status.blocked.clone().unwrap_or_default()))
            .collect();
        blocked.sort();
        blocked.truncate(Presence::MOST);
        blocked.iter_mut().for_each(|(_, why)| cut(why));
        let lease_ms = u64::try_from(self.settings.lease.as_millis()).unwrap_or(u64::MAX);
        let says = (self.lapses(), Presence { lease_ms, definitions, blocked });
        if lock(&self.announced).as_ref() == Some(&says) {
            return Ok(());
        }
        self.journal()?.announce(&self.by, says.1.clone()).await?;
        *lock(&self.announced) = Some(says);
        Ok(())
    }

    /// Whether it takes nothing now: it is ending, or others could take at once what it takes.
    fn may_not_take(&self) -> bool {
        self.draining.load(Relaxed) || !self.has_lease()
    }

    /// Claims sagas of which it has lost sight, by their names and all together; those that it got, also when the store fails behind them.
    async fn claim_lost(&self, batch: &[(SagaId, Trouble)]) -> (Vec<Stored>, Result<(), StoreError>) {
        let mut claimed = Vec::new();
        let Err(error) = self.claim_named(batch, &mut claimed).await else { return (claimed, Ok(())) };
        if Left::store(&error) == Left::Store {
            return (claimed, Err(error));
        }
        // It may be one saga's misfortune: the others are looked after all the same.
        for one in batch {
            match self.claim_named(std::slice::from_ref(one), &mut claimed).await {
                Ok(()) => {}
                Err(error) if Left::store(&error) == Left::Store => return (claimed, Err(error)),
                Err(error) => {
                    let (id, trouble) = one;
                    self.store_failed(&error);
                    self.lose(id.clone(), *trouble, Left::Failed);
                }
            }
        }
        (claimed, Ok(()))
    }

    /// Claims those of them for which there is room and which are not driven by now, beside what is claimed already.
    async fn claim_named(
        &self,
        batch: &[(SagaId, Trouble)],
        claimed: &mut Vec<Stored>,
    ) -> Result<(), StoreError> {
        let room = self.settings.max_live.saturating_sub(self.admission.in_use() + claimed.len());
        let wanted: Vec<&(SagaId, Trouble)> = {
            let live = lock(&self.live);
            batch.iter().filter(|(id, _)| !live.contains_key(id)).take(room).collect()
        };
        if wanted.is_empty() || self.may_not_take() {
            return Ok(());
        }
        // They stay among the lost ones until it is known what became of them: nobody else looks after what is owned here.
        let names = wanted.iter().map(|(id, _)| id.clone()).collect();
        let taken = self.journal()?.claim(self.claim(Some(names), wanted.len())).await?;
        let got: HashSet<&SagaId> = taken.iter().map(|stored| &stored.head.id).collect();
        for (id, trouble) in wanted.into_iter().filter(|(id, _)| !got.contains(id)) {
            lock(&self.lost).remove(id);
            if trouble.len == 0 && (1..LATE).contains(&trouble.times) {
                self.lose(id.clone(), *trouble, Left::Store);
            }
        }
        claimed.extend(taken);
        Ok(())
    }

    /// Prolongs the lease, and looks what time it is in the store.
    async fn heartbeat(&self) -> Result<(), StoreError> {
        let journal = self.journal()?;
        let asked = time::now();
        journal.heartbeat(&self.by, self.settings.lease).await?;
        self.extend_lease(asked);
        let now = journal.now().await?;
        *lock(&self.clock) = (now, time::now());
        Ok(())
    }
}

/// A reason as it is announced: of at most 200 characters.
fn cut(why: &mut String) {
    if let Some((at, _)) = why.char_indices().nth(200) {
        why.truncate(at);
        why.push('…');
    }
}

/// Keeps the lease until the orchestrator is closed: beside the keeper, whose work may take longer than the lease.
pub(super) async fn beat(inner: Arc<Inner>) {
    let mut closed = inner.closed.subscribe();
    let _here = lock(&inner.here).clone();
    let third = inner.settings.lease / 3;
    let mut pause = third;
    loop {
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return,
            () = inner.beat.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let done = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return,
            done = inner.heartbeat() => done,
        };
        pause = match done {
            Ok(()) => third,
            Err(error) => {
                inner.store_failed(&error);
                inner.settings.poll.min(third)
            }
        };
    }
}

/// Looks after what comes, until the orchestrator is closed.
pub(super) async fn keep(inner: Arc<Inner>) {
    let mut closed = inner.closed.subscribe();
    let _here = lock(&inner.here).clone();
    loop {
        let done = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return,
            done = inner.round() => done,
        };
        if let Err(error) = done {
            inner.store_failed(&error);
        }
        let pause = inner.settings.poll.min(inner.settings.lease / 3);
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return,
            () = inner.nudge.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}
