//! Those who wait for a saga that is not driven here: one look into the store for all of them, and not too often.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::Inner;
use crate::{
    saga::{
        journal::{StoreError, Stored},
        record::SagaId,
    },
    sync::{Mutex, lock},
    time,
};

/// The longest time between two looks.
const LONGEST: Duration = Duration::from_secs(10);

/// Who waits for what.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<HashMap<SagaId, (usize, Arc<Place>)>>);

/// Where the waiters for one saga meet.
#[derive(Default)]
struct Place {
    /// How often something has happened to it here.
    moves: AtomicU64,
    moved: Notify,
    look: tokio::sync::Mutex<Look>,
}

/// What was last seen in the store.
#[derive(Default)]
struct Look {
    seen: Option<Option<Arc<Stored>>>,
    moves: u64,
    next: Option<Instant>,
    pause: Duration,
}

impl Waiters {
    /// A saga is driven here from now on, or no longer.
    pub(super) fn tell(&self, id: &SagaId) {
        let place = lock(&self.0).get(id).map(|(_, place)| place.clone());
        if let Some(place) = place {
            place.moves.fetch_add(1, SeqCst);
            place.moved.notify_waiters();
        }
    }
}

/// One who waits.
pub(crate) struct Waiter {
    inner: Arc<Inner>,
    id: SagaId,
    place: Arc<Place>,
}

impl Waiter {
    pub(crate) fn new(inner: &Arc<Inner>, id: &SagaId) -> Self {
        let mut waiters = lock(&inner.waiters.0);
        let (count, place) = waiters.entry(id.clone()).or_default();
        *count += 1;
        Waiter { inner: inner.clone(), id: id.clone(), place: place.clone() }
    }

    /// How often something has happened to the saga here; to be asked before anything is looked at.
    pub(crate) fn moves(&self) -> u64 {
        self.place.moves.load(SeqCst)
    }

    /// The saga as it is in the store; as it was at the last look, when nothing has happened here since and it is not time.
    pub(crate) async fn look(&self) -> Result<Option<Arc<Stored>>, StoreError> {
        let mut look = self.place.look.lock().await;
        let moves = self.moves();
        if moves != look.moves {
            look.pause = Duration::ZERO;
        } else if let Some(seen) =
            look.seen.as_ref().filter(|_| look.next.is_some_and(|next| time::now() < next))
        {
            return Ok(seen.clone());
        }
        let stored = self.inner.journal()?.load(&self.id).await?.map(Arc::new);
        // Whoever has waited for long waits a little longer.
        let least = self.inner.settings.poll.max(Duration::from_millis(10));
        look.pause = (look.pause * 2).clamp(least, LONGEST.max(least));
        look.next = Some(time::later(time::now(), look.pause));
        look.moves = moves;
        look.seen = Some(stored.clone());
        Ok(stored)
    }

    /// Waits until something has happened here since `moves`, or it is time to look again.
    pub(crate) async fn wait(&self, moves: u64) {
        let mut moved = std::pin::pin!(self.place.moved.notified());
        moved.as_mut().enable();
        if self.moves() != moves {
            return;
        }
        let next = self.place.look.lock().await.next;
        let pause = next.map_or(Duration::ZERO, |next| next.saturating_duration_since(time::now()));
        tokio::select! {
            () = moved => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Slot::Occupied(mut slot) = lock(&self.inner.waiters.0).entry(self.id.clone()) {
            slot.get_mut().0 -= 1;
            if slot.get().0 == 0 {
                slot.remove();
            }
        }
    }
}
