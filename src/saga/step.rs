//! What actions and compensations are told, and what they may say.

use std::{
    error::Error as StdError,
    fmt,
    time::{Duration, Instant},
};

use super::{key::Key, record::SagaId};
use crate::{
    error::{Error, Refused, refusal_in},
    time,
};

/// What a step's code is told about the call that is made of it.
#[derive(Debug, Clone)]
pub struct Step<I> {
    pub(crate) input: I,
    pub(crate) key: Key,
    pub(crate) epoch: u64,
    pub(crate) attempt: u32,
    pub(crate) until: Option<Instant>,
}

impl<I> Step<I> {
    /// What the saga was started with; in a nested definition, what that was given.
    pub fn input(&self) -> &I {
        &self.input
    }

    /// The same by value.
    pub fn into_input(self) -> I {
        self.input
    }

    /// The idempotency key: the same for every attempt at this step in this direction, by whoever and after whatever crash; different
    /// for everything else. Hand it to the participant.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Which saga this is.
    pub fn saga(&self) -> &SagaId {
        self.key.saga()
    }

    /// A fencing token: grows each time the saga changes hands. A participant that refuses a smaller one than it has seen cannot be
    /// reached by an orchestrator that has lost the saga without knowing it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The number of this attempt among those of the present owner, from 1. Not part of the key.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How long this attempt may take yet, if that is limited: by a policy, see [`deadline::remaining`](crate::deadline::remaining), or by the
    /// [time of the step](super::Adding::within), whichever is over first. Reads the clock if it is.
    pub fn remaining(&self) -> Option<Duration> {
        let of_step = self.until.map(|until| until.saturating_duration_since(time::now()));
        crate::deadline::remaining().into_iter().chain(of_step).min()
    }
}

/// Why a step did not succeed.
///
/// Every ordinary error becomes one by `?`, and then means that *nobody knows* whether the step has had its effect. That nothing has
/// happened has to be said: with [`rejected`](Failure::rejected), [`unstarted`](Failure::unstarted), [`of_call`](Failure::of_call) or
/// [`of_refusal`](Failure::of_refusal).
///
/// An error by `?` that has a [`Refused`] in it is one of a call that was not begun, an open breaker's for instance. What the step did
/// before that call it does not say. So the step waits, as after `of_call`, and none of its attempts is used up; but it may have had its
/// effect, and is compensated, or not gone past, when the saga is turned round meanwhile.
pub struct Failure {
    kind: FailureKind,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    Rejected,
    Unstarted(Option<Duration>),
    /// A call of the step was not begun; what the step did before nobody knows.
    Refused(Option<Duration>),
    Unknown,
    /// A stored value is not what the code expects.
    Undecodable,
}

impl Failure {
    /// The participant has refused: nothing has happened, and asking again makes no sense. A declined card.
    pub fn rejected(why: impl fmt::Display) -> Self {
        Failure { kind: FailureKind::Rejected, message: why.to_string() }
    }

    /// The participant was not reached: nothing has happened, and it will be tried again, without counting this attempt as one
    /// that may have had an effect. The default policies of a step leave that to the saga, so it uses up none of their attempts; a retry
    /// of one's own repeats it like any error, unless its [predicate](crate::retry::Config::when) is [`was_begun`](super::was_begun).
    pub fn unstarted(why: impl fmt::Display) -> Self {
        Failure { kind: FailureKind::Unstarted(None), message: why.to_string() }
    }

    /// When another try has a chance, of what was [not begun](Failure::unstarted): what a service says in `Retry-After`, or whoever else has
    /// refused. Then, or up to a tenth later because others were told the same, it is tried again, however long that is. Any other failure
    /// stays as it is. A [`Refused`] says it by itself, by `?` too.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use mainstay::saga::Failure;
    /// # fn failure(asked_to_wait: Option<Duration>) -> Failure {
    /// Failure::unstarted("it answered 429").retry_after(asked_to_wait)
    /// # }
    /// ```
    pub fn retry_after(mut self, wait: impl Into<Option<Duration>>) -> Self {
        if let FailureKind::Unstarted(after) = &mut self.kind {
            *after = wait.into();
        }
        self
    }

    /// Nobody knows. What `?` makes of an error.
    pub fn unknown(why: impl fmt::Display) -> Self {
        Failure { kind: FailureKind::Unknown, message: why.to_string() }
    }

    /// What a call through this crate's policies says, where it is the only one of the step, or the first: a refusal before the operation
    /// was started has had no effect, and neither has the step. Behind an earlier call that may have had one it would be a lie; leave it to
    /// `?` there.
    ///
    /// ```
    /// # use mainstay::{Stack, Timeout, saga::Failure};
    /// # async fn charge() -> Result<u32, std::io::Error> { Ok(7) }
    /// # async fn action(payments: mainstay::Stack![Timeout]) -> Result<u32, Failure> {
    /// payments.call(charge).await.map_err(Failure::of_call)
    /// # }
    /// ```
    pub fn of_call<E: fmt::Display>(error: Error<E>) -> Self {
        match error {
            Error::Refused(refused) => Failure::of_refusal(&refused),
            Error::Inner(error) => Failure::unknown(error),
        }
    }

    /// The same of a refusal alone.
    pub fn of_refusal(refused: &Refused) -> Self {
        let kind = if refused.was_started() {
            FailureKind::Unknown
        } else {
            FailureKind::Unstarted(refused.retry_after())
        };
        Failure { kind, message: refused.to_string() }
    }

    pub(crate) fn undecodable(what: &str, error: &serde_json::Error) -> Self {
        Failure { kind: FailureKind::Undecodable, message: format!("{what} cannot be read: {error}") }
    }

    pub(crate) fn missing(what: &str) -> Self {
        Failure { kind: FailureKind::Undecodable, message: format!("{what} is missing") }
    }

    pub(crate) fn kind(&self) -> FailureKind {
        self.kind
    }

    /// Whether it says that nothing has happened.
    pub fn is_clean(&self) -> bool {
        !matches!(self.kind, FailureKind::Unknown | FailureKind::Refused(_))
    }

    /// Whether it is that something was not begun, for which no attempt is used up.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.kind, FailureKind::Unstarted(_) | FailureKind::Refused(_))
    }

    /// What it says.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Any error: nobody knows what it means for the step. One that is or has a [`Refused`] which says that its call was not begun, as itself
/// or as a source, uses up no attempt; see [`Failure`].
impl<E: StdError + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let kind = match refusal_in(&error) {
            Some((false, after)) => FailureKind::Refused(after),
            Some((true, _)) | None => FailureKind::Unknown,
        };
        Failure { kind, message: chain(&error) }
    }
}

/// An error with its sources on one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What a participant says when it is asked whether a step has happened.
///
/// Two of the answers speak for what is still on its way, too: [`Rejected`](Self::Rejected) and [`NotApplied`](Self::NotApplied). Behind
/// them the step is known to have had no effect, and nothing of it is undone. A participant that cannot vouch for that says
/// [`Resend`](Self::Resend) if it recognises keys, and [`Unknown`](Self::Unknown) if it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified<O> {
    /// It has, and this came of it.
    Applied(O),
    /// It has not and never will: it was rejected, and a request that is still on its way gets the same answer.
    Rejected(String),
    /// It has not, and the request can no longer arrive: it may be sent again.
    NotApplied,
    /// It has not yet. The request may still arrive, and it may be sent again all the same: under one key the two have one effect.
    ///
    /// It is sent again, some eight times at most and ever later; then the saga goes on as with
    /// [`Unknown::Retry`](super::Unknown::Retry): turned round, or stuck where the step has to succeed. Until something else is known the
    /// step may have happened: it is compensated, and behind a pivot of which this was said nothing is turned round.
    Resend,
    /// It does not know either.
    Unknown,
}

impl<O> Verified<O> {
    /// The same with another output.
    pub(crate) fn try_map<P, E>(self, change: impl FnOnce(O) -> Result<P, E>) -> Result<Verified<P>, E> {
        Ok(match self {
            Verified::Applied(output) => Verified::Applied(change(output)?),
            Verified::Rejected(why) => Verified::Rejected(why),
            Verified::NotApplied => Verified::NotApplied,
            Verified::Resend => Verified::Resend,
            Verified::Unknown => Verified::Unknown,
        })
    }
}
