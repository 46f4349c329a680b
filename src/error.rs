//! What a protected call can say other than its own result, and what a setting can be refused for.

use std::{borrow::Borrow, error, fmt, ops::Deref, sync::Arc, time::Duration};

use crate::time;

/// The error of a protected call: either a policy [refused](Refused) it or the operation itself failed.
///
/// However many policies are stacked, there is one level: a refusal by the innermost policy and
/// one by the outermost arrive in the same variant, and the operation's error is never wrapped twice.
///
/// ```
/// use mainstay::{Error, Kind};
///
/// fn status<E>(result: &Result<(), Error<E>>) -> u16 {
///     match result {
///         Ok(()) => 200,
///         Err(Error::Refused(refused)) if refused.kind() == Kind::TimedOut => 504,
///         Err(Error::Refused(_)) => 503,
///         Err(Error::Inner(_)) => 502,
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error<E> {
    /// A policy ended the call; the operation may or may not have been started, see
    /// [`Refused::was_started`].
    Refused(Refused),
    /// The operation ran and returned this error, unchanged.
    Inner(E),
}

impl<E> Error<E> {
    /// The refusal, if a policy ended the call.
    pub fn refused(&self) -> Option<&Refused> {
        match self {
            Error::Refused(refused) => Some(refused),
            Error::Inner(_) => None,
        }
    }

    /// The operation's own error, if it returned one.
    pub fn inner(&self) -> Option<&E> {
        match self {
            Error::Refused(_) => None,
            Error::Inner(error) => Some(error),
        }
    }

    /// The operation's own error by value, if it returned one.
    pub fn into_inner(self) -> Option<E> {
        match self {
            Error::Refused(_) => None,
            Error::Inner(error) => Some(error),
        }
    }

    /// Whether the operation may have begun. `true` for every error of the operation itself.
    ///
    /// `false` is a promise: nothing happened, so repeating the call elsewhere is safe.
    pub fn was_started(&self) -> bool {
        self.refused().is_none_or(Refused::was_started)
    }
}

impl<E: From<Refused>> Error<E> {
    /// The operation's error type alone, where a refusal can be turned into it: what tower services do by themselves.
    ///
    /// ```
    /// # async fn charge() -> Result<u32, Box<dyn std::error::Error + Send + Sync>> { Ok(7) }
    /// # async fn buy() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// let stack = mainstay::stack("payments").bulkhead(20).build()?;
    /// let receipt = stack.call(charge).await.map_err(mainstay::Error::absorb)?;
    /// # let _ = receipt; Ok(()) }
    /// ```
    pub fn absorb(self) -> E {
        match self {
            Error::Refused(refused) => E::from(refused),
            Error::Inner(error) => error,
        }
    }
}

impl<E> Error<Error<E>> {
    /// One level instead of two, for a protected call made inside another.
    pub fn flatten(self) -> Error<E> {
        match self {
            Error::Refused(refused) => Error::Refused(refused),
            Error::Inner(error) => error,
        }
    }
}

impl<E> From<Refused> for Error<E> {
    fn from(refused: Refused) -> Self {
        Error::Refused(refused)
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(refused) => refused.fmt(f),
            Error::Inner(error) => error.fmt(f),
        }
    }
}

impl<E: error::Error + 'static> error::Error for Error<E> {
    /// Transparent: the source of the refusal or of the operation's error, since `Display` already is theirs.
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Error::Refused(refused) => refused.source(),
            Error::Inner(error) => error.source(),
        }
    }
}

/// Why a policy ended a call. Making one allocates nothing.
// Four whole words: every call's result has room for a refusal and is moved with it, gaps and all.
#[derive(Clone, PartialEq, Eq)]
pub struct Refused {
    kind: Kind,
    name: Name,
    rest: Rest,
}

/// Two in one word: when to try again, and in the lowest bit whether the operation may have begun. It is an error to be the source of
/// the refusal, which is how that is found behind errors of other types, also behind those that are transparent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rest(u64);

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.started() {
            "the operation may have begun"
        } else {
            "the operation was not begun"
        })
    }
}

impl error::Error for Rest {}

impl Rest {
    #[inline]
    fn new(retry_after: Hint, started: bool) -> Self {
        Rest((retry_after.0 << 1) | u64::from(started))
    }

    fn retry_after(self) -> Hint {
        Hint(self.0 >> 1)
    }

    fn started(self) -> bool {
        self.0 & 1 == 1
    }
}

/// When to try again, in nanoseconds, of which there are less than two to the 63rd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint(u64);

impl Hint {
    /// Nobody knows.
    pub(crate) const NONE: Hint = Hint(u64::MAX >> 1);

    #[inline]
    pub(crate) fn nanos(nanos: u64) -> Self {
        Hint(nanos.min(Self::NONE.0 - 1))
    }

    fn wait(self) -> Option<Duration> {
        (self != Self::NONE).then(|| Duration::from_nanos(self.0))
    }
}

impl From<Option<Duration>> for Hint {
    fn from(wait: Option<Duration>) -> Self {
        wait.map_or(Self::NONE, |wait| Hint::nanos(time::nanos(wait)))
    }
}

impl Refused {
    /// A refusal before the operation was started.
    #[inline]
    pub(crate) fn unstarted(kind: Kind, name: &Name, retry_after: Hint) -> Self {
        Refused { kind, name: name.clone(), rest: Rest::new(retry_after, false) }
    }

    /// A refusal that gives up on a call whose operation was started, or not.
    #[inline]
    pub(crate) fn ended(kind: Kind, name: &Name, started: bool) -> Self {
        Refused { kind, name: name.clone(), rest: Rest::new(Hint::NONE, started) }
    }

    /// The same, moved word by word. A compiler keeps a word in a register; a run of bytes of which it knows no parts it moves
    /// through memory, also on behalf of calls that were not refused.
    #[allow(clippy::needless_match)] // It makes the parts of the name known.
    #[inline(always)]
    pub(crate) fn by_words(self) -> Self {
        let name = match self.name.0 {
            Text::Static(text) => Text::Static(text),
            Text::Shared(text) => Text::Shared(text),
        };
        Refused { kind: self.kind, name: Name(name), rest: self.rest }
    }

    /// Takes into account that an earlier attempt of the call may have begun.
    pub(crate) fn add_started(&mut self, started: bool) {
        self.rest.0 |= u64::from(started);
    }

    /// The rule that ended the call.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The name of the policy, which is its stack's name unless it was given its own.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name with its parts, see [`Name::base`] and [`Name::key`].
    pub fn full_name(&self) -> &Name {
        &self.name
    }

    /// When another try has a chance, where the policy knows: an open breaker's remaining wait, the time until a rate limiter
    /// has room.
    pub fn retry_after(&self) -> Option<Duration> {
        self.rest.retry_after().wait()
    }

    /// Whether the operation may have begun.
    ///
    /// `false` is a promise that it has not, so trying elsewhere is safe even for an operation
    /// that must not run twice. `true` means the outcome is unknown: a timed out charge may have
    /// been made.
    pub fn was_started(&self) -> bool {
        self.rest.started()
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .field("retry_after", &self.retry_after())
            .field("was_started", &self.was_started())
            .finish()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.kind)?;
        match self.retry_after() {
            // Rounded up: who comes back at the time that is printed does not come too early.
            Some(wait) => write!(f, ", retry after {} ms", wait.as_nanos().div_ceil(1_000_000)),
            None => Ok(()),
        }
    }
}

impl error::Error for Refused {
    /// A text that says whether the operation may have begun, which `Display` does not.
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.rest)
    }
}

/// What a refusal in the chain of an error says, if there is one: whether the operation may have begun, and when to try again.
#[cfg(feature = "saga")]
pub(crate) fn refusal_in(error: &(dyn error::Error + 'static)) -> Option<(bool, Option<Duration>)> {
    let mut chain = std::iter::successors(Some(error), |&error| error.source());
    let rest = chain.find_map(|error| error.downcast_ref::<Rest>())?;
    Some((rest.started(), rest.retry_after().wait()))
}

/// The rule by which a policy ended a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
#[repr(u64)] // a whole word, see `Refused`
pub enum Kind {
    /// A circuit breaker is open, or half-open with all its probes given out, or recovering and the call is not in its share.
    CircuitOpen,
    /// A bulkhead has no free permit and no room to wait.
    BulkheadFull,
    /// The wait in a bulkhead's queue lasted longer than it may.
    QueueTimeout,
    /// One attempt lasted longer than its timeout.
    TimedOut,
    /// The deadline of the whole call has come.
    DeadlineExceeded,
    /// A rate limiter has admitted as many calls as it may in this stretch of time.
    RateLimited,
}

impl Kind {
    /// The kind as a short stable label, as used by metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::CircuitOpen => "circuit_open",
            Kind::BulkheadFull => "bulkhead_full",
            Kind::QueueTimeout => "queue_timeout",
            Kind::TimedOut => "timed_out",
            Kind::DeadlineExceeded => "deadline_exceeded",
            Kind::RateLimited => "rate_limited",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::CircuitOpen => "circuit open",
            Kind::BulkheadFull => "bulkhead full",
            Kind::QueueTimeout => "queue timeout",
            Kind::TimedOut => "timed out",
            Kind::DeadlineExceeded => "deadline exceeded",
            Kind::RateLimited => "rate limited",
        })
    }
}

/// The name of a policy or stack: free to clone when it is a literal, shared otherwise.
#[derive(Clone)]
pub struct Name(Text);

/// Two words, and two cases to tell apart when one is cloned or dropped: every call's result has room for a refusal.
#[derive(Clone)]
enum Text {
    Static(&'static str),
    Shared(Arc<Owned>),
}

struct Owned {
    text: Box<str>,
    /// Where the base of `base[key]` ends, if it is one.
    base: Option<usize>,
}

impl Name {
    /// A name from a literal.
    pub const fn new(name: &'static str) -> Self {
        Name(Text::Static(name))
    }

    /// The name of the policy for one key: `base[key]`.
    pub(crate) fn keyed(base: &str, key: &dyn fmt::Display) -> Self {
        Name::owned(format!("{base}[{key}]").into(), Some(base.len()))
    }

    fn owned(text: Box<str>, base: Option<usize>) -> Self {
        Name(Text::Shared(Arc::new(Owned { text, base })))
    }

    /// Where the base ends, for the policy of a key.
    fn base_end(&self) -> Option<usize> {
        match &self.0 {
            Text::Static(_) => None,
            Text::Shared(owned) => owned.base,
        }
    }

    /// The name without the key of a [`Keyed`](crate::Keyed) policy.
    pub fn base(&self) -> &str {
        &self[..self.base_end().unwrap_or(self.len())]
    }

    /// The key, for a policy out of a [`Keyed`](crate::Keyed).
    pub fn key(&self) -> Option<&str> {
        self.base_end().map(|end| &self[end + 1..self.len() - 1])
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Text::Static(name) => name,
            Text::Shared(owned) => &owned.text,
        }
    }
}

impl From<&'static str> for Name {
    fn from(name: &'static str) -> Self {
        Name::new(name)
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Name::owned(name.into(), None)
    }
}

impl From<Arc<str>> for Name {
    fn from(name: Arc<str>) -> Self {
        Name::owned((*name).into(), None)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Name {}

impl std::hash::Hash for Name {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Name::from)
    }
}

/// A setting that makes no sense, found when a policy or a stack is built; never at call time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// One value is outside its range.
    Setting {
        /// The setting, as `policy.field`.
        field: &'static str,
        /// The value that was given.
        value: String,
        /// The values that are allowed.
        allowed: String,
    },
    /// The policies of a stack stand in an order that is known to do harm.
    Order {
        /// The stack.
        stack: Name,
        /// What is wrong.
        problem: &'static str,
        /// How to put it right.
        fix: &'static str,
    },
}

impl ConfigError {
    pub(crate) fn setting(field: &'static str, value: impl fmt::Debug, allowed: impl Into<String>) -> Self {
        ConfigError::Setting { field, value: format!("{value:?}"), allowed: allowed.into() }
    }

    /// `Ok` if `holds`, else the error; so that a list of checks reads as a list.
    pub(crate) fn unless(
        holds: bool,
        field: &'static str,
        value: impl fmt::Debug,
        allowed: &'static str,
    ) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::setting(field, value, allowed)) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Setting { field, value, allowed } => {
                write!(f, "{field} = {value} is not possible: allowed is {allowed}")
            }
            ConfigError::Order { stack, problem, fix } => write!(f, "stack {stack:?}: {problem}; {fix}"),
        }
    }
}

impl error::Error for ConfigError {}
