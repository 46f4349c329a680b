//! One plain type for all stacks around the same `Result<T, E>`.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
};

use pin_project::pin_project;

use crate::{
    call::{Attempt, Call, Closure, Cx, End, Flat, Marked, Operation, Run, Sealed, Slot, Store, Stored},
    error::Name,
    held::Kept,
    registry::{Inspect, Snapshot},
    stack::List,
};

/// A stack whose policies are behind a pointer; made by [`Stack::boxed`](crate::Stack::boxed).
///
/// Its type says only what it protects, so that it can stand in a struct or a map. Each call allocates once, for
/// what the policies remember of it; the operation and its future stay unboxed.
pub struct BoxedStack<T, E> {
    name: Name,
    list: Arc<dyn ErasedList<T, E>>,
}

impl<T: 'static, E: 'static> BoxedStack<T, E> {
    pub(crate) fn new<L>(name: Name, list: Kept<L>) -> Self
    where
        L: Run<(), T, E> + List + Send + Sync + 'static,
        L::State: Send + 'static,
    {
        BoxedStack { name, list: Arc::new(Erased(list)) }
    }

    /// The name that the stack was begun with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls `operation` through the policies; see [`Stack::call`](crate::Stack::call). Allocates once.
    pub fn call<F, Fut>(
        &self,
        mut operation: F,
    ) -> Call<&Self, impl Operation<Request = (), Output = T, Error = E> + use<F, Fut, T, E>, Flat>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        Call::new(self, Closure::new(move |_: Attempt| operation()))
    }

    /// Like [`call`](Self::call), telling the operation the number of the attempt and the deadline.
    pub fn call_with<F, Fut>(
        &self,
        operation: F,
    ) -> Call<&Self, impl Operation<Request = (), Output = T, Error = E> + use<F, Fut, T, E>, Flat>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        Call::new(self, Closure::new(operation))
    }

    /// Like [`call`](Self::call), and says whether a fallback made the answer.
    pub fn call_marked<F, Fut>(
        &self,
        mut operation: F,
    ) -> Call<&Self, impl Operation<Request = (), Output = T, Error = E> + use<F, Fut, T, E>, Marked>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        Call::new(self, Closure::new(move |_: Attempt| operation()))
    }
}

impl<T, E> Clone for BoxedStack<T, E> {
    fn clone(&self) -> Self {
        BoxedStack { name: self.name.clone(), list: self.list.clone() }
    }
}

impl<T, E> fmt::Debug for BoxedStack<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxedStack").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T, E> Sealed for BoxedStack<T, E> {}

impl<T, E> Inspect for BoxedStack<T, E> {
    fn inspect(&self, show: &mut dyn FnMut(Snapshot)) {
        self.list.inspect(show);
    }
}

impl<T, E> Run<(), T, E> for BoxedStack<T, E> {
    type Notes = Option<Pin<Box<dyn ErasedCall<T, E>>>>;
    type Pinned = ();
    type State = Stored<Self::Notes, ()>;

    fn poll<O>(
        &self,
        notes: &mut Self::Notes,
        _: Pin<&mut ()>,
        mut op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = (), Output = T, Error = E> + ?Sized,
    {
        let call = notes.get_or_insert_with(|| self.list.begin());
        let op: Pin<&mut Pin<&mut O>> = Pin::new(&mut op);
        ready!(call.as_mut().poll(op, cx, out));
        *notes = None;
        Poll::Ready(())
    }

    fn end<O>(&self, notes: Self::Notes, _: Pin<&mut ()>, mut op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = (), Output = T, Error = E> + ?Sized,
    {
        if let Some(mut call) = notes {
            let op: Pin<&mut Pin<&mut O>> = Pin::new(&mut op);
            call.as_mut().end(op, how);
        }
    }
}

/// An operation behind a reference, so that one of unknown size can become a `dyn` one.
impl<O: Operation + ?Sized> Operation for Pin<&mut O> {
    type Request = O::Request;
    type Output = O::Output;
    type Error = O::Error;

    fn request(&self) -> Option<&O::Request> {
        (**self).request()
    }

    fn has_begun(&self) -> bool {
        (**self).has_begun()
    }

    fn waits(&self) -> bool {
        (**self).waits()
    }

    fn can_repeat(&self) -> bool {
        (**self).can_repeat()
    }

    fn poll_attempt(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        attempt: Attempt,
    ) -> Poll<Result<O::Output, O::Error>> {
        self.get_mut().as_mut().poll_attempt(cx, attempt)
    }

    fn abandon(self: Pin<&mut Self>) {
        self.get_mut().as_mut().abandon();
    }
}

type DynOperation<'a, T, E> = dyn Operation<Request = (), Output = T, Error = E> + 'a;

trait ErasedList<T, E>: Send + Sync {
    fn begin(&self) -> Pin<Box<dyn ErasedCall<T, E>>>;

    fn inspect(&self, show: &mut dyn FnMut(Snapshot));
}

/// The policies' half of one call, whatever the policies are.
pub trait ErasedCall<T, E>: Send {
    #[doc(hidden)]
    fn poll(
        self: Pin<&mut Self>,
        op: Pin<&mut DynOperation<'_, T, E>>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>;

    #[doc(hidden)]
    fn end(self: Pin<&mut Self>, op: Pin<&mut DynOperation<'_, T, E>>, how: End);
}

struct Erased<L>(Kept<L>);

impl<T, E, L> ErasedList<T, E> for Erased<L>
where
    L: Run<(), T, E> + List + Send + Sync + 'static,
    L::State: Send + 'static,
    T: 'static,
    E: 'static,
{
    fn begin(&self) -> Pin<Box<dyn ErasedCall<T, E>>> {
        Box::pin(Live { list: self.0.clone(), state: L::State::default() })
    }

    fn inspect(&self, show: &mut dyn FnMut(Snapshot)) {
        self.0.each(&mut |part| part.inspect(show));
    }
}

#[pin_project]
struct Live<L, S> {
    list: Kept<L>,
    #[pin]
    state: S,
}

impl<T, E, L> ErasedCall<T, E> for Live<L, L::State>
where
    L: Run<(), T, E> + Send + Sync,
    L::State: Send,
{
    fn poll(
        self: Pin<&mut Self>,
        op: Pin<&mut DynOperation<'_, T, E>>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()> {
        let this = self.project();
        let (notes, pinned) = this.state.parts();
        this.list.poll(notes.get_or_insert_default(), pinned, op, cx, out)
    }

    fn end(self: Pin<&mut Self>, op: Pin<&mut DynOperation<'_, T, E>>, how: End) {
        let this = self.project();
        let (notes, pinned) = this.state.parts();
        this.list.end(notes.take().unwrap_or_default(), pinned, op, how);
    }
}
