//! The consumers that this opened broker has on one queue: who has room for how many messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::Connection;
use tokio::sync::mpsc::UnboundedSender;

use super::routes::Routes;
use super::store::{self, Claim};
use super::{Claimed, store::Result};

/// All consumers of this opened broker on one queue. They share one entry in the table of holders.
pub(super) struct Local {
    pub(super) queue: i64,
    holder: i64,
    visibility_ms: u64,
    members: Vec<Member>,
    /// Who is asked first when messages are dealt out.
    turn: usize,
    /// There may be something to claim.
    pub(super) dirty: bool,
    /// When something delayed becomes ready, as far as is known.
    next_due: Option<u64>,
    /// When the entry is to be renewed.
    pub(super) next_beat: u64,
}

/// One consumer.
pub(super) struct Member {
    id: u64,
    prefetch: usize,
    held: usize,
    /// `None` when the consumer is closed; it stays while deliveries of it are unsettled.
    to: Option<UnboundedSender<Claimed>>,
    holder: Arc<AtomicI64>,
}

impl Member {
    pub(super) fn new(
        id: u64,
        prefetch: usize,
        to: UnboundedSender<Claimed>,
        holder: Arc<AtomicI64>,
    ) -> Self {
        Self { id, prefetch, held: 0, to: Some(to), holder }
    }

    fn room(&self) -> usize {
        if self.to.is_some() { self.prefetch.saturating_sub(self.held) } else { 0 }
    }
}

impl Local {
    /// Nobody consumes yet. The entry is made when somebody does.
    pub(super) fn new(queue: i64) -> Self {
        Self {
            queue,
            holder: fresh_holder(),
            visibility_ms: 1,
            members: Vec::new(),
            turn: 0,
            dirty: false,
            next_due: None,
            next_beat: u64::MAX,
        }
    }

    pub(super) fn holder(&self) -> i64 {
        self.holder
    }

    pub(super) fn join(&mut self, member: Member) {
        member.holder.store(self.holder, Ordering::Release);
        self.members.push(member);
        self.dirty = true;
        self.next_beat = 0;
    }

    pub(super) fn member(&mut self, id: u64) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    /// Nothing more goes to this consumer.
    pub(super) fn close(&mut self, id: u64) {
        if let Some(member) = self.member(id) {
            member.to = None;
            self.next_beat = 0;
        }
    }

    /// Counts a change of what the consumer holds, and forgets it when it is closed and holds nothing.
    pub(super) fn count(&mut self, id: u64, change: isize) {
        if let Some(member) = self.member(id) {
            member.held = member.held.saturating_add_signed(change);
        }
    }

    pub(super) fn forget_closed(&mut self) {
        self.members.retain(|member| member.to.is_some() || member.held > 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn room(&self) -> usize {
        self.members.iter().map(Member::room).sum()
    }

    /// Whether a transaction has something to do here.
    pub(super) fn wants_work(&self, now: u64) -> bool {
        let due = self.next_due.is_some_and(|due| due <= now);
        now >= self.next_beat || ((self.dirty || due) && self.room() > 0)
    }

    /// When it next will have, if nothing happens before.
    pub(super) fn next_time(&self) -> u64 {
        let due = self.next_due.filter(|_| self.room() > 0);
        due.unwrap_or(u64::MAX).min(self.next_beat)
    }

    /// Something delayed becomes ready at this time.
    pub(super) fn expect_at(&mut self, due: u64) {
        self.next_due = Some(self.next_due.map_or(due, |known| known.min(due)));
    }

    /// Looks, without a lock, whether there is something to claim.
    pub(super) fn look(&mut self, conn: &Connection) -> Result<()> {
        self.dirty = store::any_ready(conn, self.queue)?;
        self.next_due = store::next_due(conn, self.queue)?;
        Ok(())
    }

    /// Renews the entry, takes back what the silent hold, wakes what is due and claims what there is room for. The messages are
    /// dealt out when the transaction is committed.
    pub(super) fn work(
        &mut self,
        conn: &Connection,
        routes: &Routes,
        now: u64,
    ) -> Result<Vec<(u64, Claimed)>> {
        if now >= self.next_beat {
            self.beat(conn, routes, now)?;
        }
        let room = self.room();
        if room == 0 {
            return Ok(Vec::new());
        }
        if self.next_due.is_some_and(|due| due <= now) {
            store::wake(conn, self.queue, now)?;
            self.next_due = None;
            self.dirty = true;
        }
        if !self.dirty {
            return Ok(Vec::new());
        }
        let taken = store::claim(conn, self.queue, self.holder, room)?;
        if taken.len() < room {
            self.look(conn)?;
        }
        Ok(taken.into_iter().map(|(claim, message, attempt)| self.deal(claim, message, attempt)).collect())
    }

    fn beat(&mut self, conn: &Connection, routes: &Routes, now: u64) -> Result<()> {
        if let Some(settings) = routes.settings(self.queue) {
            self.visibility_ms = store::millis(settings.visibility);
            if store::reap(conn, self.queue, settings, now)? > 0 {
                self.dirty = true;
            }
        }
        if self.members.is_empty() {
            // Until somebody joins again, under a new number.
            self.next_beat = u64::MAX;
            return store::let_go(conn, self.holder);
        }
        let expires = now.saturating_add(self.visibility_ms);
        let consumers = self.members.iter().filter(|member| member.to.is_some()).count();
        if !store::keep_holding(conn, self.holder, consumers, expires)? {
            // Nobody had joined before, or this process stood still for longer than the timeout and all it held was taken
            // back. A new number makes sure that its late answers settle nothing.
            self.holder = fresh_holder();
            store::hold(conn, self.holder, self.queue, consumers, expires)?;
            self.members.iter().for_each(|member| member.holder.store(self.holder, Ordering::Release));
            self.dirty = true;
        }
        self.next_beat = now.saturating_add((self.visibility_ms / 4).max(1));
        Ok(())
    }

    /// Gives the message to the next consumer in turn that has room.
    fn deal(&mut self, claim: Claim, message: crate::Message, attempt: u32) -> (u64, Claimed) {
        let count = self.members.len();
        let at = (self.turn..self.turn + count)
            .map(|n| n % count)
            .find(|n| self.members[*n].room() > 0)
            .expect("no more was claimed than there is room for");
        self.turn = at + 1;
        self.members[at].held += 1;
        (self.members[at].id, Claimed { claim, message, attempt })
    }

    /// Hands a claimed message over. It comes back if the consumer has gone meanwhile.
    pub(super) fn send(&mut self, id: u64, claimed: Claimed) -> std::result::Result<(), Claim> {
        match self.member(id).and_then(|member| member.to.as_ref()) {
            Some(to) => to.send(claimed).map_err(|unsent| unsent.0.claim),
            None => Err(claimed.claim),
        }
    }
}

/// A number that no other holder has, in this process or another.
fn fresh_holder() -> i64 {
    let (high, low) = uuid::Uuid::now_v7().as_u64_pair();
    // The low half is random but for two bits, the high one mostly time. 0 means nobody.
    ((high.rotate_left(32) ^ low) >> 1).max(1) as i64
}
