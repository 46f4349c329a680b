#![doc = include_str!("docs/deadline.md")]

pub mod header;

use std::{
    cell::Cell,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use pin_project::pin_project;

use crate::{
    call::{Cx, End, Guard, Operation, Run, Sealed, Slot, refuse_and_tell},
    error::{ConfigError, Kind, Name, Refused},
    event::{Identity, Observer},
    limit::{Fixed, Limit, PerRequest, not_zero},
    stack::{IntoPolicy, Part, Role, callable},
    time,
};

thread_local! {
    static CURRENT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The deadline of the call whose operation is running here, if it has one.
///
/// Readable inside an operation and whatever it awaits on the same task; not in tasks that it spawns. Carry it into
/// those with [`within`].
#[inline]
pub fn current() -> Option<Instant> {
    CURRENT.get()
}

/// The time left until [`current`]; zero when it has passed. Reads the clock if there is a deadline.
pub fn remaining() -> Option<Duration> {
    current().map(|at| at.saturating_duration_since(time::now()))
}

/// The instant in `left` from now, for [`within`]; a duration of more than thirty years counts as thirty. Reads the clock.
pub fn after(left: Duration) -> Instant {
    time::later(time::now(), left)
}

/// Runs `future` with `at` as its [`current`] deadline, or with the one around it where that is earlier.
///
/// It does not end the future: that is for the [`Deadline`] policies inside, which see it.
pub fn within<F: Future>(at: Instant, future: F) -> Within<F> {
    Within { at, future }
}

/// The future of [`within`].
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Within<F> {
    at: Instant,
    #[pin]
    future: F,
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let at = current().map_or(*this.at, |around| around.min(*this.at));
        let _readable = enter(at);
        this.future.poll(cx)
    }
}

/// Makes `at` the current deadline until the guard is dropped, also by a panic.
#[inline]
pub(crate) fn enter(at: Instant) -> Entered {
    Entered(CURRENT.replace(Some(at)))
}

pub(crate) struct Entered(Option<Instant>);

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Limits how long a whole call may last; see the [module](self).
#[derive(Clone)]
pub struct Deadline<L = Fixed> {
    limit: L,
    id: Arc<Identity>,
}

impl Deadline {
    /// The same limit for every call.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when `limit` is zero.
    pub fn new(limit: Duration) -> Result<Self, ConfigError> {
        not_zero(limit, "deadline.limit")?;
        Ok(Deadline::with(Fixed(limit)))
    }
}

impl<F, R> Deadline<PerRequest<F, R>>
where
    F: Fn(&R) -> Duration + Clone,
{
    /// A limit computed from each request. An answer of zero refuses the call.
    pub fn per_request(limit: F) -> Self {
        Deadline::with(PerRequest::new(limit))
    }
}

impl<L> Deadline<L> {
    fn with(limit: L) -> Self {
        Deadline { limit, id: Arc::new(Identity::new("deadline")) }
    }

    /// The same limit under another name.
    pub fn named(mut self, name: impl Into<Name>) -> Self {
        Arc::make_mut(&mut self.id).set_name(name.into());
        self
    }

    /// Adds a listener for [`Event::Refused`](crate::Event::Refused).
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        Arc::make_mut(&mut self.id).observe(Arc::new(observer));
        self
    }
}

impl<L: fmt::Debug> fmt::Debug for Deadline<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadline").field("name", self.id.name()).field("limit", &self.limit).finish()
    }
}

/// Reads a limit as a person writes it, `"500ms"`, and checks it as [`new`](Deadline::new) does.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Deadline {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limit = crate::human::deserialize(deserializer)?;
        Deadline::new(limit).map_err(serde::de::Error::custom)
    }
}

/// Writes the limit as it is read; name and listeners are left out.
#[cfg(feature = "serde")]
impl serde::Serialize for Deadline {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::human::serialize(&self.limit.0, serializer)
    }
}

impl<L> Sealed for Deadline<L> {}

impl<L: fmt::Debug + Clone> Part for Deadline<L> {
    fn role(&self) -> Role {
        Role::Deadline
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deadline {:?} for the whole call", self.limit)
    }
}

impl<L> IntoPolicy<Deadline<L>> for Deadline<L> {
    fn into_policy(mut self, stack: &Identity) -> Result<Deadline<L>, ConfigError> {
        Arc::make_mut(&mut self.id).inherit(stack);
        Ok(self)
    }
}

impl IntoPolicy<Deadline> for Duration {
    fn into_policy(self, stack: &Identity) -> Result<Deadline, ConfigError> {
        Deadline::new(self)?.into_policy(stack)
    }
}

/// What a deadline remembers of one call.
#[derive(Debug, Default)]
pub struct State<S> {
    until: Option<Instant>,
    inner: S,
}

impl<R, T, E, I, L> Guard<R, T, E, I> for Deadline<L>
where
    I: Run<R, T, E>,
    L: Limit<R>,
{
    type Notes = State<I::Notes>;
    type Pinned = I::Pinned;

    #[inline(always)]
    fn poll<O>(
        &self,
        inner: &I,
        notes: &mut Self::Notes,
        mut pinned: Pin<&mut I::Pinned>,
        mut op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let around = cx.facts.deadline;
        let until = match notes.until {
            Some(until) => until,
            None => {
                let now = cx.now();
                let own = time::later(now, self.limit.limit(op.request()));
                let until = around.map_or(own, |around| around.min(own));
                if until <= now {
                    return refuse_and_tell(out, &self.id, self.exceeded(cx.facts.started));
                }
                *notes.until.insert(until)
            }
        };
        cx.facts.deadline = Some(until);
        cx.facts.watched = true;
        let polled = inner.poll(&mut notes.inner, pinned.as_mut(), op.as_mut(), cx, out);
        cx.facts.deadline = around;
        if polled.is_ready() {
            notes.until = None;
            return polled;
        }
        if !cx.reached(until) {
            return Poll::Pending;
        }
        notes.until = None;
        inner.end(mem::take(&mut notes.inner), pinned, op, End::given_up(cx.facts.started));
        refuse_and_tell(out, &self.id, self.exceeded(cx.facts.started))
    }

    fn end<O>(&self, inner: &I, notes: Self::Notes, pinned: Pin<&mut I::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        inner.end(notes.inner, pinned, op, how);
    }
}

impl<L> Deadline<L> {
    fn exceeded(&self, started: bool) -> Refused {
        Refused::ended(Kind::DeadlineExceeded, self.id.name(), started)
    }
}

callable!(Deadline<L>, [L]);
