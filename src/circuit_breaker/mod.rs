#![doc = include_str!("../docs/circuit_breaker.md")]

use std::{fmt, pin::Pin, sync::Arc, task::Poll};

use crate::{
    call::{Cx, End, Guard, Operation, Outcome, Run, Sealed},
    error::ConfigError,
    event::Identity,
    stack::{Part, Role},
};

/// State.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Closed.
    Closed,
}

/// Counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {}

/// Settings.
#[derive(Debug, Clone)]
pub struct Config<C = ()> {
    pub(crate) id: Identity,
    classify: C,
}

impl<C> Config<C> {
    /// Builds.
    pub fn build(self) -> Result<CircuitBreaker<C>, ConfigError> {
        Ok(CircuitBreaker {
            id: Arc::new(self.id),
            classify: self.classify,
        })
    }
}

/// Breaker.
#[derive(Debug, Clone)]
pub struct CircuitBreaker<C = ()> {
    id: Arc<Identity>,
    classify: C,
}

impl CircuitBreaker {
    /// Settings with the defaults.
    pub fn config() -> Config {
        Config {
            id: Identity::new("circuit_breaker"),
            classify: (),
        }
    }
}

impl<C> Sealed for CircuitBreaker<C> {}

impl<C> Part for CircuitBreaker<C> {
    fn role(&self) -> Role {
        Role::CircuitBreaker
    }
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("circuit breaker")
    }
}

impl<R, T, E, I: Run<R, T, E>, C> Guard<R, T, E, I> for CircuitBreaker<C> {
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
