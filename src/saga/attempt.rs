//! A step's code, and one try of it through its policies: how an attempt's end becomes an outcome.

use std::{
    any::{Any, TypeId},
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::{
    definition::{Definition, Inputs},
    key::{Direction, Key},
    machine::Outcome,
    orchestrator::Inner,
    record::{Payload, SagaId},
    step::{Failure, FailureKind, Step, Verified},
    transact::AnyJob,
};
use crate::{
    BoxedStack,
    error::Error,
    sync::{Mutex, lock},
};

pub(crate) type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(crate) type Act = Arc<dyn Fn(&Told) -> Pending<Result<Acted<Payload>, Failure>> + Send + Sync>;
pub(crate) type Undo = Arc<dyn Fn(&Told) -> Pending<Result<Acted<()>, Failure>> + Send + Sync>;
pub(crate) type Verify = Arc<dyn Fn(&Told) -> Pending<Result<Verified<Payload>, Failure>> + Send + Sync>;

/// What a step's code has answered with.
#[derive(Debug)]
pub enum Acted<T> {
    /// What came of it.
    Done(T),
    /// Work for the transaction in which that is recorded.
    Job(AnyJob),
}

/// Whether a payload is the JSON of a certain type.
pub(crate) type Check = fn(&Payload) -> Result<(), serde_json::Error>;

/// The code of one step, without its types.
#[derive(Clone)]
pub(crate) struct StepCode {
    /// The step whose output is its input; the saga's input when there is none.
    pub(crate) scope: Option<usize>,
    /// Where the definition that it was written in begins.
    pub(crate) base: usize,
    /// Whether a payload is the JSON of the step's output.
    pub(crate) check: Check,
    /// Whether a payload is the JSON of the message that it waits for.
    pub(crate) check_message: Option<Check>,
    /// What kinds of work it has for the journal's transaction.
    pub(crate) jobs: Vec<(TypeId, &'static str)>,
    pub(crate) act: Option<Act>,
    pub(crate) undo: Option<Undo>,
    pub(crate) verify: Option<Verify>,
    pub(crate) forward: Option<BoxedStack<Attempted, Failure>>,
    pub(crate) backward: Option<BoxedStack<Attempted, Failure>>,
}

impl StepCode {
    /// A step in which no code runs.
    pub(crate) fn none(check: Check, check_message: Option<Check>) -> Self {
        StepCode {
            scope: None,
            base: 0,
            check,
            check_message,
            jobs: Vec::new(),
            act: None,
            undo: None,
            verify: None,
            forward: None,
            backward: None,
        }
    }

    /// Whether this may be recorded as the step's output.
    pub(crate) fn accepts(&self, payload: &Payload) -> Result<(), String> {
        checked(self.check, payload)
    }

    /// Whether this may be recorded as what came of an attempt: not of more than `most` bytes, and read again by the code behind it. An output
    /// that is recorded and cannot be read would block the saga, its compensation too.
    pub(crate) fn keeps(&self, output: &Payload, most: usize) -> Result<(), String> {
        let bytes = output.as_str().len();
        if bytes > most {
            return Err(format!("its output has {bytes} bytes, allowed are {most}"));
        }
        self.accepts(output).map_err(|why| format!("its output cannot be read again: {why}"))
    }

    /// Whether this may be recorded as the message that the step waits for.
    pub(crate) fn accepts_message(&self, payload: &Payload) -> Result<(), String> {
        match self.check_message {
            Some(check) => checked(check, payload),
            None => Err("the step waits for no message".to_owned()),
        }
    }
}

/// What user code makes of a payload. A `Deserialize` that panics is one that cannot read it.
pub(crate) fn checked<T>(
    read: fn(&Payload) -> Result<T, serde_json::Error>,
    payload: &Payload,
) -> Result<T, String> {
    match catch_unwind(|| read(payload)) {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("panicked: {}", message(panic.as_ref()))),
    }
}

impl fmt::Debug for StepCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepCode").field("has_undo", &self.undo.is_some()).finish_non_exhaustive()
    }
}

/// What a try of a step is told, without types.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) key: Key,
    pub(crate) epoch: u64,
    pub(crate) attempt: u32,
    pub(crate) input: Payload,
    /// The outputs of all steps so far.
    pub(crate) outputs: Arc<[Option<Payload>]>,
    pub(crate) base: usize,
    /// The output of the step itself, for its compensation.
    pub(crate) own: Option<Payload>,
    /// When the time of the step is over.
    pub(crate) until: Option<Instant>,
}

impl Told {
    /// For a try of `step` in this direction.
    pub(crate) fn new(
        saga: &SagaId,
        definition: &Definition,
        step: usize,
        direction: Direction,
        epoch: u64,
        input: &Payload,
        outputs: &[Option<Payload>],
    ) -> Self {
        let code = &definition.code[step];
        let scoped = code.scope.and_then(|from| outputs[from].as_ref());
        Told {
            key: Key::new(saga, &definition.shape.nodes[step].path, direction)
                .unwrap_or_else(|_| unreachable!("paths were checked when the definition was built")),
            epoch,
            attempt: 0,
            input: scoped.unwrap_or(input).clone(),
            outputs: outputs.into(),
            base: code.base,
            own: outputs[step].clone(),
            until: None,
        }
    }

    pub(crate) fn arguments<I, D>(&self, behind: &D) -> Result<(Step<I>, D::Values), Failure>
    where
        I: DeserializeOwned,
        D: Inputs,
    {
        let input = self.input.decode().map_err(|error| Failure::undecodable("the input", &error))?;
        let values = behind.decode(&|step| self.outputs.get(step + self.base)?.clone())?;
        let (key, epoch, attempt, until) = (self.key.clone(), self.epoch, self.attempt, self.until);
        let step = Step { input, key, epoch, attempt, until };
        Ok((step, values))
    }

    pub(crate) fn own_output<O: DeserializeOwned>(&self) -> Result<Option<O>, Failure> {
        let decoded = self.own.as_ref().map(Payload::decode).transpose();
        decoded.map_err(|error| Failure::undecodable("the output of the step", &error))
    }
}

/// Whether a try of a step was begun, as the [predicate](crate::retry::Config::when) of a retry: what was not is left to the saga, which
/// waits as long as it was told and takes it for no attempt. It is that of the default policies. What a policy inside the retry has
/// refused or ended is for the retry, as without a predicate.
pub fn was_begun(tried: &crate::retry::Failure<'_, Attempted, Failure>) -> bool {
    tried.refused().is_some() || tried.error().is_some_and(|failure| !failure.waits())
}

/// What came of an attempt that its policies take for an answer; see [`Adding::through`](super::Adding::through).
#[derive(Debug)]
pub struct Attempted(Tried);

#[derive(Debug)]
enum Tried {
    Output(Payload),
    Undone,
    Rejected(String),
    Verified(Verified<Payload>),
    /// It has happened, in the transaction that recorded it.
    Recorded,
    /// Not to be repeated by the policies, whatever it is.
    Final(Failure),
    /// Not begun, because none may be any more.
    Stopped,
}

/// What the driver and an attempt in flight tell each other.
pub(crate) struct Flags {
    inner: Arc<Inner>,
    /// How often the lease had run out when the flight began. If it has since, somebody else may have the saga.
    lapses: u64,
    /// Whether an attempt of this flight may have had an effect.
    pub(crate) tainted: AtomicBool,
    /// Whether the code of an attempt is running now.
    pub(crate) running: AtomicBool,
    /// Whether no other attempt may begin.
    pub(crate) stop: AtomicBool,
    pub(crate) attempts: AtomicU32,
    /// Work that waits for the driver to have it done.
    handed: Mutex<Option<Handed>>,
}

/// Work, and who waits for what becomes of it.
pub(crate) struct Handed {
    pub(crate) job: AnyJob,
    pub(crate) told: oneshot::Sender<Result<(), Failure>>,
}

impl Flags {
    /// `lapses` is how often the lease had run out when the saga was last known to be its owner's: none may be added since.
    pub(crate) fn new(inner: Arc<Inner>, lapses: u64) -> Self {
        let no = || AtomicBool::new(false);
        let attempts = AtomicU32::new(0);
        Flags { inner, lapses, tainted: no(), running: no(), stop: no(), attempts, handed: Mutex::new(None) }
    }

    /// Has work done by the driver, which alone knows where the saga stands.
    async fn hand(&self, job: AnyJob) -> Result<(), Failure> {
        let (told, answer) = oneshot::channel();
        *lock(&self.handed) = Some(Handed { job, told });
        answer.await.unwrap_or_else(|_| Err(Failure::unstarted("the driver has stopped")))
    }

    /// The work that somebody waits for.
    pub(crate) fn handed(&self) -> Option<Handed> {
        lock(&self.handed).take().filter(|handed| !handed.told.is_closed())
    }
}

/// How a try has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With something to decide on.
    Outcome(Outcome),
    /// The compensation is done.
    Undone,
    /// It was done in the transaction that recorded it: nothing is left to be decided.
    Recorded,
    /// The driver has said that no attempt is to begin any more.
    Stopped,
    /// It was not begun, and has a chance after so long, where that is known.
    Refused { why: String, after: Option<Duration> },
    /// What is stored is not what the code expects: nothing can be done with it.
    Undecodable(String),
}

/// Tries a step forward.
pub(crate) async fn forward(
    definition: Arc<Definition>,
    step: usize,
    told: Told,
    flags: Arc<Flags>,
    max_output: usize,
) -> Ended {
    let code = &definition.code[step];
    let (Some(act), Some(stack)) = (&code.act, &code.forward) else {
        unreachable!("only steps with code are tried");
    };
    let once = definition.shape.nodes[step].unknown.at_most_once();
    // What came of the only attempt that may be made; nothing when a policy has ended it.
    let first = Mutex::new(None::<String>);
    let call = stack.call(|| {
        let (flags, told, first) = (&flags, &told, &first);
        async move {
            if once && flags.tainted.load(Relaxed) {
                let why = lock(first).take();
                let why = why.unwrap_or_else(|| "the only attempt that may be made has failed".to_owned());
                return Ok(Attempted(Tried::Final(Failure::unknown(why))));
            }
            let tried = attempt(
                flags,
                told,
                |told| act(told),
                |output| match code.keeps(&output, max_output) {
                    Ok(()) => Tried::Output(output),
                    Err(why) => Tried::Final(Failure::unknown(why)),
                },
            )
            .await;
            if let (true, Err(failure)) = (once, &tried) {
                *lock(first) = Some(failure.message().to_owned());
            }
            tried
        }
    });
    conclude(call).await
}

/// Asks the participant whether a step has happened.
pub(crate) async fn verify(
    definition: Arc<Definition>,
    step: usize,
    told: Told,
    flags: Arc<Flags>,
    max_output: usize,
) -> Ended {
    let code = &definition.code[step];
    let (Some(verify), Some(stack)) = (&code.verify, &code.forward) else {
        unreachable!("a step that is to be verified says how");
    };
    let ask = |told: &Told| {
        let answer = verify(told);
        async { answer.await.map(Acted::Done) }
    };
    let judge = |verified| match &verified {
        Verified::Applied(output) => match code.keeps(output, max_output) {
            Ok(()) => Tried::Verified(verified),
            Err(why) => Tried::Final(Failure::unknown(why)),
        },
        _ => Tried::Verified(verified),
    };
    conclude(stack.call(|| attempt(&flags, &told, ask, judge))).await
}

/// One attempt: what the policies see as an error may be repeated by them, what they see as a value may not.
async fn attempt<T, Fut>(
    flags: &Flags,
    told: &Told,
    begin: impl FnOnce(&Told) -> Fut,
    judge: impl FnOnce(T) -> Tried,
) -> Result<Attempted, Failure>
where
    Fut: Future<Output = Result<Acted<T>, Failure>>,
{
    if flags.stop.load(Relaxed) || flags.inner.lapses() != flags.lapses {
        return Ok(Attempted(Tried::Stopped));
    }
    if !flags.inner.has_lease() {
        return Ok(Attempted(Tried::Final(Failure::unstarted("the orchestrator's lease has run out"))));
    }
    let number = flags.attempts.fetch_add(1, Relaxed).saturating_add(1);
    // Until it says otherwise it may have an effect; so it is when it is dropped by a timeout, too.
    let was_tainted = flags.tainted.swap(true, Relaxed);
    let running = Running::begin(flags);
    let mut told = told.clone();
    told.attempt = number;
    let act = async move {
        match begin(&told).await? {
            Acted::Done(value) => Ok(Some(value)),
            // Its policies see the transaction as a part of the attempt.
            Acted::Job(job) => flags.hand(job).await.map(|()| None),
        }
    };
    let ended = Caught(act).await;
    drop(running);
    let tried = match ended {
        Ok(Ok(Some(value))) => judge(value),
        Ok(Ok(None)) => Tried::Recorded,
        Ok(Err(failure)) => match failure.kind() {
            // What it did before nobody knows.
            FailureKind::Unknown | FailureKind::Refused(_) => return Err(failure),
            kind => {
                flags.tainted.store(was_tainted, Relaxed);
                match kind {
                    FailureKind::Unstarted(_) => return Err(failure),
                    FailureKind::Undecodable => Tried::Final(failure),
                    _ => Tried::Rejected(failure.message().to_owned()),
                }
            }
        },
        Err(panic) => return Err(Failure::unknown(format!("panicked: {panic}"))),
    };
    Ok(Attempted(tried))
}

/// What the end of a call through the policies comes to. Policies may call the user's code too, so they may panic.
async fn conclude(call: impl Future<Output = Result<Attempted, Error<Failure>>>) -> Ended {
    let ended = match Caught(call).await {
        Ok(ended) => ended,
        Err(panic) => {
            return Ended::Outcome(Outcome::Unknown(format!("a policy of the step panicked: {panic}")));
        }
    };
    let failure = match ended {
        Ok(Attempted(Tried::Output(output))) => return Ended::Outcome(Outcome::Completed(output)),
        Ok(Attempted(Tried::Undone)) => return Ended::Undone,
        Ok(Attempted(Tried::Recorded)) => return Ended::Recorded,
        Ok(Attempted(Tried::Stopped)) => return Ended::Stopped,
        Ok(Attempted(Tried::Rejected(why))) => return Ended::Outcome(Outcome::Rejected(why)),
        Ok(Attempted(Tried::Verified(verified))) => {
            return Ended::Outcome(match verified {
                Verified::Applied(output) => Outcome::Completed(output),
                Verified::Rejected(why) => Outcome::Settled(why),
                Verified::NotApplied => Outcome::NotApplied,
                Verified::Resend => Outcome::Resend,
                Verified::Unknown => Outcome::Unknown("the participant does not know".to_owned()),
            });
        }
        Ok(Attempted(Tried::Final(failure))) => failure,
        Err(error) => match error {
            Error::Inner(failure) => failure,
            refused @ Error::Refused(_) => Failure::of_call(refused),
        },
    };
    match failure.kind() {
        FailureKind::Undecodable => Ended::Undecodable(failure.message().to_owned()),
        FailureKind::Unstarted(after) | FailureKind::Refused(after) => {
            Ended::Refused { why: failure.message().to_owned(), after }
        }
        FailureKind::Unknown | FailureKind::Rejected => {
            Ended::Outcome(Outcome::Unknown(failure.message().to_owned()))
        }
    }
}

/// Tries to undo a step.
pub(crate) async fn backward(
    definition: Arc<Definition>,
    step: usize,
    told: Told,
    flags: Arc<Flags>,
) -> Ended {
    let code = &definition.code[step];
    let (Some(undo), Some(stack)) = (&code.undo, &code.backward) else {
        unreachable!("only steps with a compensation are undone");
    };
    conclude(stack.call(|| attempt(&flags, &told, |told| undo(told), |()| Tried::Undone))).await
}

struct Running<'a>(&'a AtomicBool);

impl<'a> Running<'a> {
    fn begin(flags: &'a Flags) -> Self {
        flags.running.store(true, Relaxed);
        Running(&flags.running)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// A future whose panic is its output. What it shares with others has to bear being left half done: it is user code, which is
/// told so, and it is dropped at once.
#[pin_project::pin_project]
pub(crate) struct Caught<F>(#[pin] pub(crate) F);

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, String>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.project().0;
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(message(panic.as_ref()))),
        }
    }
}

pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
