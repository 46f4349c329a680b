//! How a call passes a rate limiter.

use std::{mem, pin::Pin, task::Poll};

use super::{RateLimiter, machine::Receipt};
use crate::{
    call::{Cx, End, Guard, Operation, Run, Slot, refuse_and_tell},
    error::{Kind, Refused},
    time,
};

/// What a rate limiter remembers of one call.
#[derive(Debug, Default)]
pub struct State<S> {
    place: Place,
    inner: S,
}

/// What a call has of a limiter.
#[derive(Debug, Clone, Copy, Default)]
enum Place {
    /// The limiter has not been asked.
    #[default]
    Nothing,
    /// Taken, and the operation has not been started.
    Reserved(Receipt),
    /// The operation was started.
    Used,
}

impl RateLimiter {
    /// Takes a place for a call, or says why not.
    #[inline]
    fn reserve(&self, cx: &mut Cx<'_, '_>) -> Result<Receipt, Refused> {
        let started = cx.facts.started;
        if cx.is_late() {
            return Err(Refused::ended(Kind::DeadlineExceeded, self.id().name(), started));
        }
        if cx.facts.attempt > 1 {
            // The present that the policies share may lie before an attempt that has kept its thread busy.
            cx.learn(Some(time::now()));
        }
        self.take(1, cx.now()).map_err(|wait| {
            let mut refused = self.limited(wait);
            refused.add_started(started);
            refused
        })
    }
}

impl<R, T, E, I: Run<R, T, E>> Guard<R, T, E, I> for RateLimiter {
    type Notes = State<I::Notes>;
    type Pinned = I::Pinned;

    #[inline(always)]
    fn poll<O>(
        &self,
        inner: &I,
        notes: &mut Self::Notes,
        pinned: Pin<&mut I::Pinned>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        if let Place::Nothing = notes.place {
            match self.reserve(cx) {
                Ok(receipt) => notes.place = Place::Reserved(receipt),
                Err(refused) => return refuse_and_tell(out, self.id(), refused),
            }
        }
        let polled = inner.poll(&mut notes.inner, pinned, op, cx, out);
        // Inside a retry this is about the present attempt alone, as the place is.
        if cx.facts.started {
            notes.place = Place::Used;
        }
        if polled.is_ready() {
            if let Place::Reserved(receipt) = mem::take(&mut notes.place) {
                self.give_back(receipt);
            }
        }
        polled
    }

    fn end<O>(&self, inner: &I, notes: Self::Notes, pinned: Pin<&mut I::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        // A poll that unwound may have started the operation and had no time to say so.
        let place = if how == End::Panicked { Place::Used } else { notes.place };
        // What is inside is dropped before the place is free, and the place also if that drop panics.
        let _given_back = GiveBack(self, place);
        inner.end(notes.inner, pinned, op, how);
    }
}

struct GiveBack<'a>(&'a RateLimiter, Place);

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        if let Place::Reserved(receipt) = self.1 {
            self.0.give_back(receipt);
        }
    }
}
