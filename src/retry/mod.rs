#![doc = include_str!("../docs/retry.md")]

use std::{fmt, pin::Pin, task::Poll, time::Duration};

use crate::{
    call::{Cx, End, Guard, Operation, Outcome, Run, Sealed},
    error::ConfigError,
    event::Identity,
    stack::{IntoPolicy, Part, Role},
};

/// Settings.
#[derive(Debug, Clone, Default)]
pub struct Config<W = (), C = ()> {
    w: W,
    c: C,
}

/// Retry.
#[derive(Debug, Clone)]
pub struct Retry<W = (), C = ()> {
    w: W,
    c: C,
}

impl Retry {
    /// Exponential.
    pub fn exponential(_base: Duration) -> Config {
        Config::default()
    }
}
impl<W, C> IntoPolicy<Retry<W, C>> for Config<W, C> {
    fn into_policy(self, _: &Identity) -> Result<Retry<W, C>, ConfigError> {
        Ok(Retry {
            w: self.w,
            c: self.c,
        })
    }
}

impl<W, C> Sealed for Retry<W, C> {}

impl<W, C> Part for Retry<W, C> {
    fn role(&self) -> Role {
        Role::Retry {
            attempts: Some(3),
            budget: None,
            repeats_refusals: false,
        }
    }
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("retry")
    }
}

impl<R, T, E, I: Run<R, T, E>, W, C> Guard<R, T, E, I> for Retry<W, C> {
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
