//! A step on its way into a definition: its code, its policies, its undo.

use std::{any::TypeId, fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use super::{Builder, Inputs, Output, is_json_of};
use crate::{
    BoxedStack, Retry, Stack,
    call::Run,
    error::ConfigError,
    saga::{
        attempt::{Act, Acted, Attempted, StepCode, Told, Undo, Verify, was_begun},
        record::Payload,
        shape::{Class, Kind, Node, Unknown},
        step::{Failure, Step, Verified},
        transact::{Answer, Job, Transact},
    },
    stack::List,
};

/// A step whose undo has not been said yet.
#[derive(Debug)]
pub struct Undecided(());

/// A step that needs no undo.
#[derive(Debug)]
pub struct Decided(());

/// A step on its way into a definition.
#[must_use = "a step is added by `compensate`, `without_compensation` or `add`"]
pub struct Adding<'a, I, D, O, C> {
    builder: &'a mut Builder<I>,
    behind: D,
    node: Node,
    act: Act,
    jobs: Vec<(TypeId, &'static str)>,
    verify: Option<Verify>,
    forward: Option<BoxedStack<Attempted, Failure>>,
    backward: Option<BoxedStack<Attempted, Failure>>,
    types: PhantomData<fn(O) -> C>,
}

impl<I, D, O, C> fmt::Debug for Adding<'_, I, D, O, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adding").field("step", &self.node.path).finish_non_exhaustive()
    }
}

impl<'a, I, D, O, C> Adding<'a, I, D, O, C>
where
    I: DeserializeOwned + Send + 'static,
    D: Inputs,
    O: Serialize + DeserializeOwned + Send + 'static,
{
    pub(super) fn new<A, F, Fut>(
        builder: &'a mut Builder<I>,
        name: &str,
        behind: D,
        class: Class,
        action: F,
    ) -> Self
    where
        A: Answer<Output = O>,
        F: Fn(Step<I>, D::Values) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, Failure>> + Send + 'static,
    {
        let before = builder.before(&behind);
        let act: Act = Arc::new(move |told: &Told| {
            let called = told.arguments(&behind).map(|(step, values)| action(step, values));
            Box::pin(async move { called?.await?.acted() })
        });
        let node = Node {
            path: name.to_owned(),
            class,
            kind: Kind::Action,
            unknown: Unknown::Retry,
            has_undo: false,
            no_undo: None,
            transactional: A::job().is_some(),
            within: None,
            before,
        };
        Adding {
            builder,
            behind,
            node,
            act,
            jobs: A::job().into_iter().collect(),
            verify: None,
            forward: None,
            backward: None,
            types: PhantomData,
        }
    }

    /// Puts it behind more steps, whose outputs it is not given.
    pub fn after<B: Inputs>(mut self, behind: B) -> Self {
        self.node.before |= self.builder.before(&behind);
        self
    }

    /// What to do when nobody knows whether it has happened; [`Unknown::Retry`] unless set. See [`verify`](Self::verify) for
    /// [`Unknown::Verify`].
    pub fn on_unknown(mut self, unknown: Unknown) -> Self {
        self.node.unknown = unknown;
        self
    }

    /// How long it may take: from when everything before it is complete until it is, with all attempts, the waits between them, and the time
    /// in which no process was alive. Any length from 1 ms on; none unless set.
    ///
    /// When its time is over, no further attempt is begun, and one under way is dropped as at the end of an attempt's time; but a pivot that is
    /// stuck is sent again as any stuck step is. Then
    ///
    /// | the step | may have happened | cannot have |
    /// |---|---|---|
    /// | is before the pivot | [`on_unknown`](Self::on_unknown) decides, as when its attempts are used up: the saga is turned round ([`Cause::Late`](crate::saga::Cause::Late)) and the step compensated; its participant is asked before; or a person is | the saga is turned round |
    /// | is the pivot | it is stuck, its participant is asked, or a person is | the saga is turned round |
    /// | has to succeed, or is behind one that has | it goes on; listeners are told ([`Event::SagaOverdue`](crate::Event::SagaOverdue)) | the same |
    ///
    /// After a crash a step may have happened, unless it is one that is sent only once and that is not recorded.
    ///
    /// What is asked of a participant has the time that it takes, and so have compensations and work in the journal's transaction that was begun.
    /// The time is measured by the store's clock, as a timer's. It begins anew when a person has the step tried once more, and does not count
    /// while a person is waited for. It costs no record. The length is no part of the digest: another one counts from the next deploy on, also
    /// for sagas under way.
    pub fn within(mut self, time: Duration) -> Self {
        self.node.within = Some(time);
        self
    }

    /// How the participant is asked whether the step has happened, when nobody knows; sets [`Unknown::Verify`]. The code is
    /// given what the action was given, with the action's key. [`Verified`] says what follows from its answer.
    pub fn verify<F, Fut>(mut self, ask: F) -> Self
    where
        F: Fn(Step<I>, D::Values) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Verified<O>, Failure>> + Send + 'static,
    {
        self.node.unknown = Unknown::Verify;
        let behind = self.behind;
        self.verify = Some(Arc::new(move |told: &Told| {
            let called = told.arguments(&behind).map(|(step, values)| ask(step, values));
            Box::pin(async move {
                called?.await?.try_map(|output| {
                    Payload::encode(&output)
                        .map_err(|error| Failure::unknown(format!("its output has no JSON: {error}")))
                })
            })
        }));
        self
    }

    /// The policies that each try of the action goes through: retry with its waits, timeout per attempt, circuit breaker,
    /// bulkhead, in any stack. Their default is three attempts (eight where the step has to succeed), 100 ms apart and growing, of at
    /// most 30 s each; what was [not begun](Failure::unstarted) is none.
    ///
    /// A rejection is an answer to them, not a failure. A step that may be sent only once is, whatever the retry says. A refusal of a breaker
    /// or bulkhead counts as no attempt; it is asked again when it said, or up to a tenth later.
    pub fn through<L>(mut self, stack: Stack<L>) -> Self
    where
        L: Run<(), Attempted, Failure> + List + Send + Sync + 'static,
        L::State: Send + 'static,
    {
        self.forward = Some(stack.boxed());
        self
    }

    fn finish(mut self, undo: Option<Undo>) -> Output<O> {
        if self.node.unknown == Unknown::Verify && self.verify.is_none() {
            self.builder.refuse(format!("step {:?} is to be verified, but nothing says how", self.node.path));
        }
        if self.node.transactional && self.node.unknown != Unknown::Retry {
            self.builder.refuse(format!(
                "step {:?} is done in the transaction that records it: there is nothing unknown about it that a policy could \
                 decide on",
                self.node.path
            ));
        }
        if self.node.within.is_some_and(|time| time < Duration::from_millis(1)) {
            self.builder.refuse(format!("step {:?} has to have at least 1 ms", self.node.path));
        }
        self.node.has_undo = undo.is_some();
        let stacks = || -> Result<_, ConfigError> {
            let forward = match self.forward {
                Some(stack) => stack,
                None => default_stack(&self.node)?,
            };
            let backward = match (self.backward, &undo) {
                (Some(stack), _) => Some(stack),
                (None, Some(_)) => Some(default_undo_stack(&self.node)?),
                (None, None) => None,
            };
            Ok((forward, backward))
        };
        let (forward, backward) = match stacks() {
            Ok((forward, backward)) => (Some(forward), backward),
            Err(error) => {
                self.builder.refuse(format!("step {:?}: {error}", self.node.path));
                (None, None)
            }
        };
        let code = StepCode {
            scope: None,
            base: 0,
            check: is_json_of::<O>,
            check_message: None,
            jobs: self.jobs,
            act: Some(self.act),
            undo,
            verify: self.verify,
            forward,
            backward,
        };
        self.builder.add(self.node, code)
    }
}

impl<I, D, O> Adding<'_, I, D, O, Undecided>
where
    I: DeserializeOwned + Send + 'static,
    D: Inputs,
    O: Serialize + DeserializeOwned + Send + 'static,
{
    /// The policies that each try of the compensation goes through; by default ten attempts, 100 ms apart and growing to 30 s, of at
    /// most 30 s each, without a budget. When they are used up the step is stuck.
    pub fn undo_through<L>(mut self, stack: Stack<L>) -> Self
    where
        L: Run<(), Attempted, Failure> + List + Send + Sync + 'static,
        L::State: Send + 'static,
    {
        self.backward = Some(stack.boxed());
        self
    }

    /// Adds the step with what undoes it.
    ///
    /// `undo` is given what the action was given, and the action's output if it is known. It is called too where nobody knows whether the
    /// action has happened, or will happen yet; the participant's barrier (see the module `barrier`) answers both.
    pub fn compensate<F, Fut>(self, undo: F) -> Output<O>
    where
        F: Fn(Step<I>, D::Values, Option<O>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let behind = self.behind;
        let undo: Undo = Arc::new(move |told: &Told| {
            let called = told.arguments(&behind).and_then(|(step, values)| {
                let output = told.own_output()?;
                Ok(undo(step, values, output))
            });
            Box::pin(async move { called?.await.map(Acted::Done) })
        });
        self.finish(Some(undo))
    }

    /// Adds the step with what undoes it, as [`compensate`](Self::compensate) does, where `undo` answers with work for the transaction
    /// that records that the step is undone: see [`Transact`].
    pub fn compensate_in_transaction<J, F, Fut>(mut self, undo: F) -> Output<O>
    where
        J: Job,
        F: Fn(Step<I>, D::Values, Option<O>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Transact<(), J>, Failure>> + Send + 'static,
    {
        let behind = self.behind;
        self.jobs.extend(Transact::<(), J>::job());
        let undo: Undo = Arc::new(move |told: &Told| {
            let called = told.arguments(&behind).and_then(|(step, values)| {
                let output = told.own_output()?;
                Ok(undo(step, values, output))
            });
            Box::pin(async move { Ok(Acted::Job(called?.await?.into_job())) })
        });
        self.finish(Some(undo))
    }

    /// Adds the step without anything that undoes it: what it did may stay. Says why, for whoever reads the definition or looks at its
    /// [graph](super::super::Saga::diagram). The text may change in any deploy: it is no part of the digest.
    pub fn without_compensation(mut self, why: &str) -> Output<O> {
        self.node.no_undo = Some(why.to_owned());
        self.finish(None)
    }
}

impl<I, D, O> Adding<'_, I, D, O, Decided>
where
    I: DeserializeOwned + Send + 'static,
    D: Inputs,
    O: Serialize + DeserializeOwned + Send + 'static,
{
    /// Adds the step.
    pub fn add(self) -> Output<O> {
        self.finish(None)
    }
}

fn default_stack(node: &Node) -> Result<BoxedStack<Attempted, Failure>, ConfigError> {
    let attempts = match node.class {
        Class::Pivot | Class::Retriable => 8,
        Class::Compensatable | Class::ReadOnly => 3,
    };
    // Giving up for want of a budget would not save load: it makes a compensation for every step so far.
    let retry =
        Retry::exponential(Duration::from_millis(100)).max_attempts(attempts).no_budget().idempotent();
    let retry = retry.when(was_begun);
    Ok(crate::stack(node.path.clone()).retry(retry).timeout(Duration::from_secs(30)).build()?.boxed())
}

fn default_undo_stack(node: &Node) -> Result<BoxedStack<Attempted, Failure>, ConfigError> {
    let retry = Retry::exponential(Duration::from_millis(100)).cap(Duration::from_secs(30));
    let retry = retry.max_attempts(10).no_budget().idempotent().when(was_begun);
    Ok(crate::stack(node.path.clone()).retry(retry).timeout(Duration::from_secs(30)).build()?.boxed())
}
