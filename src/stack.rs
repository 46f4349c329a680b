//! Policies composed into one object, outermost first.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    boxed::BoxedStack,
    bulkhead::Bulkhead,
    call::{Attempt, Call, Closure, Flat, Marked, Operation, Run, Sealed},
    circuit_breaker::{self, CircuitBreaker},
    deadline::Deadline,
    error::{ConfigError, Error, Name},
    event::{Identity, Observer},
    fallback::Fallback,
    held::Shared,
    order,
    rate_limiter::RateLimiter,
    registry,
    repeat::{Copying, Never},
    retry::{self, Retry},
    timeout::Timeout,
};

/// Begins a stack: the policies are added outermost first, and `name` appears in every event, metric and error of
/// those that have no name of their own.
///
/// ```
/// use std::time::Duration;
/// use mainstay::{Bulkhead, CircuitBreaker, Retry};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let payments = mainstay::stack("payments")
///     .fallback(|_why| async { Ok("deferred") })
///     .deadline(Duration::from_secs(2))
///     .circuit_breaker(CircuitBreaker::config())
///     .retry(Retry::exponential(Duration::from_millis(50)))
///     .bulkhead(Bulkhead::new(20)?)
///     .timeout(Duration::from_millis(500))
///     .build()?;
///
/// let receipt = payments.call(|| async { Err("declined") }).await;
/// assert_eq!(receipt, Ok("deferred"));
/// # Ok::<_, mainstay::ConfigError>(())
/// # }).unwrap();
/// ```
pub fn stack(name: impl Into<Name>) -> Builder<()> {
    let mut id = Identity::new("stack");
    id.set_name(name.into());
    Builder { id, list: Ok(()), any_order: false }
}

/// A stack of policies: calls operations through them, and is a tower `Layer` that does.
///
/// `L` is a nested pair: `(CircuitBreaker, (Timeout, ()))` is a breaker around a timeout. A stack without closures has a
/// type that can be written down, [`Stack!`](macro@crate::Stack) is short for it; [`boxed`](Stack::boxed) gives one type for
/// all the others.
///
/// Cloning shares everything: permits, windows, budgets.
pub struct Stack<L> {
    name: Name,
    shared: Shared<L>,
}

/// The type of a stack of these policies, outermost first, for a struct or a signature.
///
/// ```
/// use mainstay::{Bulkhead, CircuitBreaker, Stack, Timeout};
///
/// struct App {
///     search: Stack![CircuitBreaker, Bulkhead, Timeout],
/// }
/// ```
#[macro_export]
macro_rules! Stack {
    (@list) => { () };
    (@list $outermost:ty $(, $inner:ty)*) => { ($outermost, $crate::Stack!(@list $($inner),*)) };
    ($($policy:ty),* $(,)?) => { $crate::Stack<$crate::Stack!(@list $($policy),*)> };
}

/// The stack that [`recommended`] builds.
pub type Recommended = Stack![Deadline, CircuitBreaker, Retry, Bulkhead, Timeout];

/// The recommended stack: a deadline for the whole call, a circuit breaker that counts calls and leaves its probes their place for as long
/// as a call may take, a retry with a success-funded budget, a bulkhead of `concurrency` attempts, and a timeout of `attempt` for each.
///
/// Put a fallback around it where there is something sensible to fall back to.
///
/// # Errors
///
/// [`ConfigError::Setting`] when a duration or the concurrency is zero, or `attempt` is not below `deadline`: such a timeout leaves
/// no time for another attempt, and the two are easily given in the wrong order.
pub fn recommended(
    name: impl Into<Name>,
    deadline: Duration,
    attempt: Duration,
    concurrency: usize,
) -> Result<Recommended, ConfigError> {
    // A probe has its place for as long as it may take.
    let probe = deadline.max(Duration::from_secs(10));
    let stack = stack(name)
        .deadline(deadline)
        .circuit_breaker(CircuitBreaker::config().probe_timeout(probe))
        .retry(retry::Config::default())
        .bulkhead(concurrency)
        .timeout(attempt)
        .build()?;
    if attempt >= deadline {
        let allowed = format!("a duration below the deadline, {deadline:?}");
        return Err(ConfigError::setting("timeout.limit", attempt, allowed));
    }
    Ok(stack)
}

impl<L> Stack<L> {
    /// The name that the stack was begun with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls `operation` through the policies.
    ///
    /// `operation` is called once for each attempt. Its futures may borrow from the surrounding code.
    ///
    /// # Errors
    ///
    /// [`Error::Inner`] is the operation's own error, unchanged; [`Error::Refused`] says which policy ended the call.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the attempt in progress, gives back every permit and leaves every queue. No policy
    /// counts the call, unless a circuit breaker was told to.
    #[inline]
    pub fn call<F, Fut, T, E>(
        &self,
        mut operation: F,
    ) -> Call<&L, impl Operation<Request = (), Output = T, Error = E> + use<F, Fut, T, E, L>, Flat>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        L: Run<(), T, E>,
    {
        Call::new(self.list(), Closure::new(move |_: Attempt| operation()))
    }

    /// Like [`call`](Self::call), telling the operation the number of the attempt and the deadline.
    #[inline]
    pub fn call_with<F, Fut, T, E>(
        &self,
        operation: F,
    ) -> Call<&L, impl Operation<Request = (), Output = T, Error = E> + use<F, Fut, T, E, L>, Flat>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        L: Run<(), T, E>,
    {
        Call::new(self.list(), Closure::new(operation))
    }

    /// Like [`call`](Self::call), and says whether a fallback made the answer.
    #[inline]
    pub fn call_marked<F, Fut, T, E>(
        &self,
        mut operation: F,
    ) -> Call<&L, impl Operation<Request = (), Output = T, Error = E> + use<F, Fut, T, E, L>, Marked>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        L: Run<(), T, E>,
    {
        Call::new(self.list(), Closure::new(move |_: Attempt| operation()))
    }

    /// Like [`call`](Self::call) for an operation that can be started only once. For stacks without a retry.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let stack = mainstay::stack("upload").bulkhead(4).build()?;
    /// let body = vec![1, 2, 3];
    /// let sent = stack.call_once(|| async move { Ok::<_, std::io::Error>(body.into_iter().sum::<u8>()) }).await?;
    /// assert_eq!(sent, 6);
    /// # Ok(()) }
    /// ```
    pub fn call_once<F, Fut, T, E>(
        &self,
        operation: F,
    ) -> Call<&L, impl Operation<Request = (), Output = T, Error = E> + use<F, Fut, T, E, L>, Flat>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        L: Run<(), T, E> + List<Copier = Never>,
    {
        let mut operation = Some(operation);
        let start = move |_: Attempt| match operation.take() {
            Some(operation) => operation(),
            None => unreachable!("a stack without a retry starts an operation once"),
        };
        Call::new(self.list(), Closure::new(start))
    }

    /// The same stack as one plain type for all stacks around `Result<T, E>`, at one allocation per call.
    pub fn boxed<T, E>(self) -> BoxedStack<T, E>
    where
        L: Run<(), T, E> + List + Send + Sync + 'static,
        L::State: Send + 'static,
        T: 'static,
        E: 'static,
    {
        BoxedStack::new(self.name, self.shared.list().clone())
    }

    #[inline]
    pub(crate) fn list(&self) -> &L {
        self.shared.list()
    }

    #[cfg(feature = "tower")]
    pub(crate) fn shared(&self) -> &Shared<L> {
        &self.shared
    }
}

impl<L: List> Stack<L> {
    /// How much load this stack can add to what it protects.
    pub fn max_amplification(&self) -> Amplification {
        order::amplification(&order::roles(self.list()))
    }
}

impl<L> Clone for Stack<L> {
    fn clone(&self) -> Self {
        Stack { name: self.name.clone(), shared: self.shared.clone() }
    }
}

/// Draws the stack as a person would, outermost first.
impl<L: List> fmt::Debug for Stack<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        let mut depth = 0;
        let mut result = Ok(());
        self.list().each(&mut |part| {
            if result.is_ok() {
                result = write!(f, "\n{:indent$}└─ {}", "", Described(part), indent = depth * 3);
            }
            depth += 1;
        });
        result?;
        write!(f, "\n{:indent$}└─ the operation", "", indent = depth * 3)
    }
}

struct Described<'a>(&'a dyn Part);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f)
    }
}

/// How much load a stack adds, as factors of the calls made through it; see `docs/stacking.md`.
///
/// Where several stacks share one [`Budget`](crate::retry::Budget), or one built [`Retry`], the bound is that of all of them
/// together: one alone may retry with what the others' successes have paid.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Amplification {
    /// Attempts per call, sustained, while every attempt fails: what decides whether an overloaded
    /// dependency can recover.
    pub in_total_failure: f64,
    /// Attempts per call, sustained, at the worst mix of successes and failures.
    pub at_worst: f64,
    /// Retries that can be made at once beyond that, from what a budget has saved up.
    pub burst: f64,
}

/// What a policy is to the stack around it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Role {
    /// Answers in place of the operation.
    Fallback,
    /// Ends the whole call.
    Deadline,
    /// Bounds how many calls are admitted in a stretch of time.
    RateLimiter,
    /// Stops calls to what fails.
    CircuitBreaker,
    /// Starts the operation again.
    Retry {
        /// The most attempts per call; `None` for no bound.
        attempts: Option<u32>,
        /// Retries per success and the most that can be saved, if there is a budget.
        budget: Option<(f64, f64)>,
        /// Whether refusals by the policies inside are repeated.
        repeats_refusals: bool,
    },
    /// Bounds concurrency.
    Bulkhead {
        /// Whether calls may wait for a permit.
        queues: bool,
    },
    /// Ends one attempt.
    Timeout,
}

/// A policy as its stack sees it.
pub trait Part {
    /// What it does to the calls.
    fn role(&self) -> Role;

    /// One line for a person.
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// Shows what it looks like now, if it has a state worth showing.
    fn inspect(&self, show: &mut dyn FnMut(registry::Snapshot)) {
        let _ = show;
    }

    /// Whether it would refuse a call now whatever becomes of the operation.
    fn is_shut(&self) -> bool {
        false
    }
}

/// A list of policies, whatever it is called with.
pub trait List: Sealed {
    /// How a request is kept for another attempt: as the outermost retry was told, or
    /// [`Never`] without a retry.
    type Copier;

    /// The copier in force.
    fn copier(&self) -> &Self::Copier;

    /// Shows each policy, outermost first.
    fn each(&self, visit: &mut dyn FnMut(&dyn Part));

    /// Whether some policy would refuse a call now.
    fn is_shut(&self) -> bool;
}

impl List for () {
    type Copier = Never;

    fn copier(&self) -> &Never {
        &Never
    }

    fn each(&self, _: &mut dyn FnMut(&dyn Part)) {}

    #[inline]
    fn is_shut(&self) -> bool {
        false
    }
}

impl<P: Copying<I>, I: List> List for (P, I) {
    type Copier = P::Copier;

    fn copier(&self) -> &P::Copier {
        self.0.copier(&self.1)
    }

    fn each(&self, visit: &mut dyn FnMut(&dyn Part)) {
        visit(&self.0);
        self.1.each(visit);
    }

    #[inline]
    fn is_shut(&self) -> bool {
        self.0.is_shut() || self.1.is_shut()
    }
}

/// A list with one more policy at its innermost place.
pub trait Append<P>: Sealed {
    /// The longer list.
    type Output;

    /// Adds `policy`.
    fn append(self, policy: P) -> Self::Output;
}

impl<P> Append<P> for () {
    type Output = (P, ());

    fn append(self, policy: P) -> (P, ()) {
        (policy, ())
    }
}

impl<H, I: Append<P>, P> Append<P> for (H, I) {
    type Output = (H, I::Output);

    fn append(self, policy: P) -> Self::Output {
        (self.0, self.1.append(policy))
    }
}

/// What a stack accepts where it needs the policy `P`: the policy, its settings, or the one value people mostly set.
pub trait IntoPolicy<P> {
    /// Builds the policy, which takes over the stack's name and listeners unless it was built before.
    #[doc(hidden)]
    fn into_policy(self, stack: &Identity) -> Result<P, ConfigError>;
}

/// A stack in the making; see [`stack`].
#[must_use = "a stack does nothing until it is built"]
#[derive(Debug)]
pub struct Builder<L> {
    id: Identity,
    list: Result<L, ConfigError>,
    any_order: bool,
}

impl Builder<()> {
    /// Adds a listener to every policy that is built with this stack.
    ///
    /// It comes before the policies, since each takes the listeners over when it is added. A circuit breaker, bulkhead or retry
    /// that was built before, to be shared, has its own.
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        self.id.observe(Arc::new(observer));
        self
    }
}

impl<L> Builder<L> {
    /// Adds any policy inside those already there.
    pub fn policy<P>(self, policy: impl IntoPolicy<P>) -> Builder<L::Output>
    where
        L: Append<P>,
    {
        let list = match (self.list, policy.into_policy(&self.id)) {
            (Ok(list), Ok(policy)) => Ok(list.append(policy)),
            (Err(first), _) => Err(first),
            (_, Err(error)) => Err(error),
        };
        Builder { id: self.id, list, any_order: self.any_order }
    }

    /// Answers with what `handler` makes of the reason when the call is refused or fails.
    pub fn fallback<H, Fut, T, E>(self, handler: H) -> Builder<L::Output>
    where
        H: Fn(Error<E>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        L: Append<Fallback<H, T, E>>,
    {
        self.policy(Fallback::new(handler))
    }

    /// Adds a [`Fallback`] with settings of its own.
    pub fn fallback_with<H, T, E>(self, fallback: Fallback<H, T, E>) -> Builder<L::Output>
    where
        L: Append<Fallback<H, T, E>>,
    {
        self.policy(fallback)
    }

    /// Limits how long the whole call may last: a `Duration` or a [`Deadline`].
    pub fn deadline<D>(self, limit: impl IntoPolicy<Deadline<D>>) -> Builder<L::Output>
    where
        L: Append<Deadline<D>>,
    {
        self.policy(limit)
    }

    /// Bounds how many calls are admitted in a stretch of time: settings or a [`RateLimiter`] to share.
    pub fn rate_limiter(self, limiter: impl IntoPolicy<RateLimiter>) -> Builder<L::Output>
    where
        L: Append<RateLimiter>,
    {
        self.policy(limiter)
    }

    /// Stops calls to what fails: settings or a [`CircuitBreaker`] to share.
    pub fn circuit_breaker<C>(self, breaker: impl IntoPolicy<CircuitBreaker<C>>) -> Builder<L::Output>
    where
        L: Append<CircuitBreaker<C>>,
    {
        self.policy(breaker)
    }

    /// Repeats failed attempts: settings, a [`Retry`], or the number of attempts.
    pub fn retry<W, C>(self, retry: impl IntoPolicy<Retry<W, C>>) -> Builder<L::Output>
    where
        L: Append<Retry<W, C>>,
    {
        self.policy(retry)
    }

    /// Bounds concurrency: settings, a [`Bulkhead`] to share, or the number of permits.
    pub fn bulkhead(self, bulkhead: impl IntoPolicy<Bulkhead>) -> Builder<L::Output>
    where
        L: Append<Bulkhead>,
    {
        self.policy(bulkhead)
    }

    /// Limits how long each attempt may last: a `Duration` or a [`Timeout`].
    pub fn timeout<D>(self, limit: impl IntoPolicy<Timeout<D>>) -> Builder<L::Output>
    where
        L: Append<Timeout<D>>,
    {
        self.policy(limit)
    }

    /// Builds the stack even if its order is known to do harm. Say in a comment why yours does not.
    pub fn in_any_order(mut self) -> Self {
        self.any_order = true;
        self
    }

    /// The stack.
    ///
    /// # Errors
    ///
    /// The first [`ConfigError::Setting`] of its policies, or [`ConfigError::Order`] when they stand in an order that
    /// is known to do harm.
    pub fn build(self) -> Result<Stack<L>, ConfigError>
    where
        L: List,
    {
        let list = self.list?;
        if !self.any_order {
            order::check(self.id.name(), &order::roles(&list))?;
        }
        Ok(Stack { name: self.id.name().clone(), shared: Shared::new(list) })
    }
}

/// Gives each policy the methods that call through it alone. The one macro for policies.
macro_rules! callable {
    ($policy:ty, [$($generic:ident),*]) => {
        impl<$($generic),*> $policy {
            /// Calls `operation` through this policy alone; see [`Stack::call`](crate::Stack::call).
            #[inline]
            pub fn call<Op, Fut, Out, Err>(
                &self,
                mut operation: Op,
            ) -> $crate::call::Call<
                (&Self, ()),
                impl $crate::call::Operation<Request = (), Output = Out, Error = Err> + use<Op, Fut, Out, Err, $($generic),*>,
                $crate::call::Flat,
            >
            where
                Op: FnMut() -> Fut,
                Fut: Future<Output = Result<Out, Err>>,
                Self: $crate::call::Guard<(), Out, Err, ()>,
            {
                let operation = $crate::call::Closure::new(move |_: $crate::call::Attempt| operation());
                $crate::call::Call::new((self, ()), operation)
            }

            /// Like [`call`](Self::call), telling the operation the number of the attempt and the deadline.
            #[inline]
            pub fn call_with<Op, Fut, Out, Err>(
                &self,
                operation: Op,
            ) -> $crate::call::Call<
                (&Self, ()),
                impl $crate::call::Operation<Request = (), Output = Out, Error = Err> + use<Op, Fut, Out, Err, $($generic),*>,
                $crate::call::Flat,
            >
            where
                Op: FnMut($crate::call::Attempt) -> Fut,
                Fut: Future<Output = Result<Out, Err>>,
                Self: $crate::call::Guard<(), Out, Err, ()>,
            {
                $crate::call::Call::new((self, ()), $crate::call::Closure::new(operation))
            }
        }

        #[cfg(feature = "tower")]
        impl<$($generic,)* S> tower_layer::Layer<S> for $policy
        where
            Self: Clone,
        {
            type Service = $crate::tower::Guarded<S, (Self, ())>;

            fn layer(&self, inner: S) -> Self::Service {
                $crate::tower::Guarded::new(inner, $crate::held::Shared::new((self.clone(), ())))
            }
        }

        #[cfg(feature = "tower")]
        impl<$($generic),*> $policy
        where
            Self: Clone,
        {
            /// This policy as a layer that makes the service's error [`Error<E>`](crate::Error), for error types that cannot
            /// hold a refusal.
            pub fn lift(&self) -> $crate::tower::Lifted<(Self, ())> {
                $crate::tower::Lifted::new((self.clone(), ()))
            }
        }
    };
}
pub(crate) use callable;

impl<L> IntoPolicy<CircuitBreaker<L>> for CircuitBreaker<L> {
    fn into_policy(self, _: &Identity) -> Result<Self, ConfigError> {
        Ok(self)
    }
}

impl<C> IntoPolicy<CircuitBreaker<C>> for circuit_breaker::Config<C> {
    fn into_policy(mut self, stack: &Identity) -> Result<CircuitBreaker<C>, ConfigError> {
        self.id.inherit(stack);
        self.build()
    }
}
