#![doc = include_str!("../docs/bulkhead.md")]

use std::{fmt, pin::Pin, task::Poll};

use crate::{
    call::{Cx, End, Guard, Operation, Outcome, Run, Sealed},
    error::ConfigError,
    event::Identity,
    stack::{IntoPolicy, Part, Role},
};

/// Bulkhead.
#[derive(Debug, Clone)]
pub struct Bulkhead {}

impl Bulkhead {
    /// New.
    pub fn new(limit: usize) -> Result<Self, ConfigError> {
        ConfigError::unless(limit > 0, "bulkhead.limit", limit, "1 or more")?;
        Ok(Bulkhead {})
    }
}
impl IntoPolicy<Bulkhead> for Bulkhead {
    fn into_policy(self, _: &Identity) -> Result<Bulkhead, ConfigError> {
        Ok(self)
    }
}

impl Sealed for Bulkhead {}

impl Part for Bulkhead {
    fn role(&self) -> Role {
        Role::Bulkhead { queues: false }
    }
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bulkhead")
    }
}

impl<R, T, E, I: Run<R, T, E>> Guard<R, T, E, I> for Bulkhead {
    type State = I::State;
    #[inline]
    fn poll<O>(
        &self,
        inner: &I,
        state: Pin<&mut I::State>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
    ) -> Poll<Outcome<T, E>>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        inner.poll(state, op, cx)
    }
    #[inline]
    fn end<O>(&self, inner: &I, state: Pin<&mut I::State>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        inner.end(state, op, how);
    }
}
