#![doc = include_str!("docs/timeout.md")]

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use crate::{
    call::{Cx, End, Guard, Operation, Run, Sealed, Slot, refuse_and_tell},
    error::{ConfigError, Kind, Name, Refused},
    event::{Identity, Observer},
    limit::{Fixed, Limit, PerRequest, not_zero},
    stack::{IntoPolicy, Part, Role, callable},
    time,
};

/// Limits how long one attempt may last; see the [module](self).
#[derive(Clone)]
pub struct Timeout<L = Fixed> {
    limit: L,
    id: Arc<Identity>,
}

impl Timeout {
    /// The same limit for every attempt.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when `limit` is zero.
    pub fn new(limit: Duration) -> Result<Self, ConfigError> {
        not_zero(limit, "timeout.limit")?;
        Ok(Timeout::with(Fixed(limit)))
    }
}

impl<F, R> Timeout<PerRequest<F, R>>
where
    F: Fn(&R) -> Duration + Clone,
{
    /// A limit computed from each request. An answer of zero times out at the first wait.
    pub fn per_request(limit: F) -> Self {
        Timeout::with(PerRequest::new(limit))
    }
}

impl<L> Timeout<L> {
    fn with(limit: L) -> Self {
        Timeout { limit, id: Arc::new(Identity::new("timeout")) }
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

impl<L: fmt::Debug> fmt::Debug for Timeout<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout").field("name", self.id.name()).field("limit", &self.limit).finish()
    }
}

/// Reads a limit as a person writes it, `"500ms"`, and checks it as [`new`](Timeout::new) does.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Timeout {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limit = crate::human::deserialize(deserializer)?;
        Timeout::new(limit).map_err(serde::de::Error::custom)
    }
}

/// Writes the limit as it is read; name and listeners are left out.
#[cfg(feature = "serde")]
impl serde::Serialize for Timeout {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::human::serialize(&self.limit.0, serializer)
    }
}

impl<L> Sealed for Timeout<L> {}

impl<L: fmt::Debug + Clone> Part for Timeout<L> {
    fn role(&self) -> Role {
        Role::Timeout
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeout {:?} per attempt", self.limit)
    }
}

impl<L> IntoPolicy<Timeout<L>> for Timeout<L> {
    fn into_policy(mut self, stack: &Identity) -> Result<Timeout<L>, ConfigError> {
        Arc::make_mut(&mut self.id).inherit(stack);
        Ok(self)
    }
}

impl IntoPolicy<Timeout> for Duration {
    fn into_policy(self, stack: &Identity) -> Result<Timeout, ConfigError> {
        Timeout::new(self)?.into_policy(stack)
    }
}

/// What a timeout remembers of one attempt.
#[derive(Debug, Default)]
pub struct State<S> {
    /// When the attempt is given up, once it has waited.
    until: Option<Instant>,
    inner: S,
}

impl<R, T, E, I, L> Guard<R, T, E, I> for Timeout<L>
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
        let begins = match notes.until {
            Some(_) => None,
            None => Some((cx.known_now(), self.limit.limit(op.request()))),
        };
        let polled = inner.poll(&mut notes.inner, pinned.as_mut(), op.as_mut(), cx, out);
        if polled.is_ready() {
            notes.until = None;
            return polled;
        }
        if let Some((known, limit)) = begins {
            notes.until = Some(time::later(known.unwrap_or_else(|| cx.now()), limit));
        }
        if !notes.until.is_some_and(|until| cx.reached(until)) {
            return Poll::Pending;
        }
        notes.until = None;
        inner.end(mem::take(&mut notes.inner), pinned, op, End::given_up(cx.facts.started));
        refuse_and_tell(out, &self.id, Refused::ended(Kind::TimedOut, self.id.name(), cx.facts.started))
    }

    fn end<O>(&self, inner: &I, notes: Self::Notes, pinned: Pin<&mut I::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        inner.end(notes.inner, pinned, op, how);
    }
}

callable!(Timeout<L>, [L]);
