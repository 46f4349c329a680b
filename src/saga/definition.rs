//! Definitions: steps with their types, classes and undos, checked when they are built.

use std::{
    collections::hash_map::RandomState, fmt, future::Future, hash::BuildHasher, marker::PhantomData,
    sync::Arc, time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    attempt::StepCode,
    record::Payload,
    shape::{Class, DefinitionError, Kind, Node, Shape, Unknown},
    step::{Failure, Step},
    steps::Steps,
    transact::Answer,
};

mod adding;

pub use adding::{Adding, Decided, Undecided};

/// The output of a step, to be given to the steps behind it. A place, not a value: copy it freely.
pub struct Output<T> {
    step: usize,
    builder: u64,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Output<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Output<T> {}

impl<T> fmt::Debug for Output<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output({})", self.step)
    }
}

/// What a step is behind, and what it is given: `()`, an [`Output`], or a tuple of up to six.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the output of a step, nor `()`, nor a tuple of up to six of these",
    note = "a step has an output when it is ended: end the step with `.compensate(..)` or `.without_compensation(..)`",
    note = "a step of another kind is ended with `.add()`"
)]
pub trait Inputs: Copy + Send + Sync + 'static {
    /// The values that the step is given.
    type Values: Send + 'static;

    #[doc(hidden)]
    fn steps(&self, add: &mut dyn FnMut(usize, u64));

    #[doc(hidden)]
    fn decode(&self, outputs: &dyn Fn(usize) -> Option<Payload>) -> Result<Self::Values, Failure>;

    #[doc(hidden)]
    fn moved(&self, by: usize, builder: u64) -> Self;
}

impl Inputs for () {
    type Values = ();

    fn steps(&self, _: &mut dyn FnMut(usize, u64)) {}

    fn decode(&self, _: &dyn Fn(usize) -> Option<Payload>) -> Result<(), Failure> {
        Ok(())
    }

    fn moved(&self, _: usize, _: u64) -> Self {}
}

impl<T: DeserializeOwned + Send + 'static> Inputs for Output<T> {
    type Values = T;

    fn steps(&self, add: &mut dyn FnMut(usize, u64)) {
        add(self.step, self.builder);
    }

    fn decode(&self, outputs: &dyn Fn(usize) -> Option<Payload>) -> Result<T, Failure> {
        let Some(payload) = outputs(self.step) else {
            return Err(Failure::missing("the output of a step"));
        };
        payload.decode().map_err(|error| Failure::undecodable("the output of a step", &error))
    }

    fn moved(&self, by: usize, builder: u64) -> Self {
        Output { step: self.step + by, builder, of: PhantomData }
    }
}

macro_rules! inputs_of_tuples {
    ($($name:ident $at:tt),*) => {
        impl<$($name: Inputs),*> Inputs for ($($name,)*) {
            type Values = ($($name::Values,)*);

            fn steps(&self, add: &mut dyn FnMut(usize, u64)) {
                $(self.$at.steps(add);)*
            }

            fn decode(&self, outputs: &dyn Fn(usize) -> Option<Payload>) -> Result<Self::Values, Failure> {
                Ok(($(self.$at.decode(outputs)?,)*))
            }

            fn moved(&self, by: usize, builder: u64) -> Self {
                ($(self.$at.moved(by, builder),)*)
            }
        }
    };
}
inputs_of_tuples!(A 0, B 1);
inputs_of_tuples!(A 0, B 1, C 2);
inputs_of_tuples!(A 0, B 1, C 2, D 3);
inputs_of_tuples!(A 0, B 1, C 2, D 3, E 4);
inputs_of_tuples!(A 0, B 1, C 2, D 3, E 4, F 5);

/// A definition with its code, whatever its types are.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) shape: Arc<Shape>,
    pub(crate) code: Vec<StepCode>,
}

impl Definition {
    /// The step with this path, if it waits for a message.
    pub(crate) fn message_of(&self, step: &str) -> Option<&StepCode> {
        let code = &self.code[self.shape.find(step)?];
        code.check_message.is_some().then_some(code)
    }
}

/// A finished definition: what is started with an `I` and comes to what `R` stands for.
///
/// Cloning shares it.
pub struct Saga<I, R: Inputs = ()> {
    pub(crate) definition: Arc<Definition>,
    pub(crate) result: R,
    input: PhantomData<fn(I)>,
}

impl<I, R: Inputs> Clone for Saga<I, R> {
    fn clone(&self) -> Self {
        Saga { definition: self.definition.clone(), result: self.result, input: PhantomData }
    }
}

impl<I, R: Inputs> fmt::Debug for Saga<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = &self.definition.shape.id;
        f.debug_struct("Saga").field("name", &id.name).field("version", &id.version).finish_non_exhaustive()
    }
}

impl Saga<()> {
    /// Begins a definition of sagas that are started with an `I`.
    ///
    /// `name` and `version` are stored with every saga. Change the version whenever steps are added, removed, renamed or reordered, and
    /// register the old one too until its sagas are over.
    pub fn define<I>(name: &str, version: u32) -> Builder<I>
    where
        I: DeserializeOwned + Send + 'static,
    {
        Builder {
            name: name.to_owned(),
            version,
            nodes: Vec::new(),
            code: Vec::new(),
            problem: None,
            id: RandomState::new().hash_one(name),
            input: PhantomData,
        }
    }
}

impl<I, R: Inputs> Saga<I, R> {
    /// The same with other code.
    pub(crate) fn with_definition(&self, definition: Definition) -> Self {
        Saga { definition: Arc::new(definition), result: self.result, input: PhantomData }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.definition.shape.id.name
    }

    /// Its version.
    pub fn version(&self) -> u32 {
        self.definition.shape.id.version
    }

    /// What its structure comes to: sagas that were started under another digest are not touched.
    pub fn digest(&self) -> &str {
        &self.definition.shape.id.digest
    }
}

/// A definition in the making; see [`Saga::define`].
#[must_use = "a definition does nothing until it is built"]
pub struct Builder<I> {
    name: String,
    version: u32,
    nodes: Vec<Node>,
    code: Vec<StepCode>,
    problem: Option<DefinitionError>,
    /// Tells its outputs from those of another.
    id: u64,
    input: PhantomData<fn(I)>,
}

impl<I> fmt::Debug for Builder<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("name", &self.name).field("steps", &self.nodes.len()).finish()
    }
}

impl<I: DeserializeOwned + Send + 'static> Builder<I> {
    /// A step that can be undone. It is added by [`compensate`](Adding::compensate) or
    /// [`without_compensation`](Adding::without_compensation).
    ///
    /// `action` is given the step and the outputs of what it is behind. It is called once per attempt, and possibly again after a crash,
    /// always with the same key.
    pub fn step<D, A, F, Fut>(
        &mut self,
        name: &str,
        behind: D,
        action: F,
    ) -> Adding<'_, I, D, A::Output, Undecided>
    where
        D: Inputs,
        A: Answer,
        F: Fn(Step<I>, D::Values) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, Failure>> + Send + 'static,
    {
        Adding::new(self, name, behind, Class::Compensatable, action)
    }

    /// The step that decides: before it the saga may be turned round, after it the saga will be completed. At most one.
    pub fn pivot<D, A, F, Fut>(
        &mut self,
        name: &str,
        behind: D,
        action: F,
    ) -> Adding<'_, I, D, A::Output, Decided>
    where
        D: Inputs,
        A: Answer,
        F: Fn(Step<I>, D::Values) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, Failure>> + Send + 'static,
    {
        Adding::new(self, name, behind, Class::Pivot, action)
    }

    /// A step that is repeated until it succeeds. Everything that may still fail has to come before it.
    pub fn retriable<D, A, F, Fut>(
        &mut self,
        name: &str,
        behind: D,
        action: F,
    ) -> Adding<'_, I, D, A::Output, Decided>
    where
        D: Inputs,
        A: Answer,
        F: Fn(Step<I>, D::Values) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, Failure>> + Send + 'static,
    {
        Adding::new(self, name, behind, Class::Retriable, action)
    }

    /// A step that changes nothing.
    pub fn read_only<D, A, F, Fut>(
        &mut self,
        name: &str,
        behind: D,
        action: F,
    ) -> Adding<'_, I, D, A::Output, Decided>
    where
        D: Inputs,
        A: Answer,
        F: Fn(Step<I>, D::Values) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, Failure>> + Send + 'static,
    {
        Adding::new(self, name, behind, Class::ReadOnly, action)
    }

    /// A step in which time passes, measured by the wall clock from when everything before it is complete: when the store's clock is set, it
    /// ends earlier or later by as much. It takes no memory
    /// while it does.
    pub fn sleep<D: Inputs>(&mut self, name: &str, behind: D, time: Duration) -> Output<()> {
        let before = self.before(&behind);
        self.push(name, before, Kind::Timer(time), StepCode::none(is_json_of::<()>, None))
    }

    /// A step in which a message comes from outside, by [`Orchestrator::signal`](super::Orchestrator::signal). With a limit, `None`
    /// comes of it when the message has not come in time; which of the two was recorded first counts. A message may come before the
    /// step is due.
    pub fn signal<T, D>(&mut self, name: &str, behind: D, limit: Option<Duration>) -> Output<Option<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        D: Inputs,
    {
        let before = self.before(&behind);
        let code = StepCode::none(is_json_of::<Option<T>>, Some(is_json_of::<T>));
        self.push(name, before, Kind::Signal(limit), code)
    }

    /// Puts the steps of another definition here, behind the output that is its input. Their names begin with `name/`; they are undone
    /// with the rest.
    pub fn nested<J, R>(&mut self, name: &str, input: Output<J>, saga: &Saga<J, R>) -> R
    where
        J: DeserializeOwned + Send + 'static,
        R: Inputs,
    {
        let before = self.before(&input);
        self.put(name, before, Some(input.step), saga)
    }

    /// As [`nested`](Self::nested), for a definition with the same input as this one: its steps are given what the saga was started
    /// with. They are behind `behind`, whose outputs they are not given.
    pub fn nested_alike<D, R>(&mut self, name: &str, behind: D, saga: &Saga<I, R>) -> R
    where
        D: Inputs,
        R: Inputs,
    {
        let before = self.before(&behind);
        self.put(name, before, None, saga)
    }

    /// Adds the steps of another definition, each behind `before`. `input` is the step whose output is their input; the saga's when there
    /// is none.
    fn put<J, R: Inputs>(&mut self, name: &str, before: Steps, input: Option<usize>, saga: &Saga<J, R>) -> R {
        let by = self.nodes.len();
        let moved = |set: Steps| -> Steps { set.iter().map(|step| step + by).collect() };
        if by + saga.definition.shape.nodes.len() > Steps::MAX {
            self.refuse(format!("it has more than {} steps with those of {name:?}", Steps::MAX));
            return saga.result.moved(by, self.id);
        }
        for (node, code) in saga.definition.shape.nodes.iter().zip(&saga.definition.code) {
            self.nodes.push(Node {
                path: format!("{name}/{}", node.path),
                before: moved(node.before) | before,
                ..node.clone()
            });
            let scope = code.scope.map(|step| step + by).or(input);
            self.code.push(StepCode { scope, base: code.base + by, ..code.clone() });
        }
        saga.result.moved(by, self.id)
    }

    /// The definition, whose sagas come to `result`: `()`, an [`Output`], or a tuple of these.
    ///
    /// # Errors
    ///
    /// [`DefinitionError`] when a saga could end up neither completed nor undone: something that can only be compensated behind or
    /// beside a step that cannot be undone, two pivots; when names are missing, double or impossible; when there are no steps or more
    /// than 64; when an output is of another definition; when a policy's settings are impossible.
    pub fn build<R: Inputs>(mut self, result: R) -> Result<Saga<I, R>, DefinitionError> {
        let _steps = self.before(&result);
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let shape = Shape::new(&self.name, self.version, self.nodes)?;
        let definition = Arc::new(Definition { shape: Arc::new(shape), code: self.code });
        Ok(Saga { definition, result, input: PhantomData })
    }

    fn push<T>(&mut self, path: &str, before: Steps, kind: Kind, code: StepCode) -> Output<T> {
        let node = Node {
            path: path.to_owned(),
            class: Class::ReadOnly,
            kind,
            unknown: Unknown::Retry,
            has_undo: false,
            no_undo: None,
            transactional: false,
            within: None,
            before,
        };
        self.add(node, code)
    }

    fn add<T>(&mut self, node: Node, code: StepCode) -> Output<T> {
        let step = self.nodes.len();
        if step >= Steps::MAX {
            self.refuse(format!("it has more than {} steps", Steps::MAX));
            return Output { step: 0, builder: self.id, of: PhantomData };
        }
        self.nodes.push(node);
        self.code.push(code);
        Output { step, builder: self.id, of: PhantomData }
    }

    fn before<D: Inputs>(&mut self, behind: &D) -> Steps {
        let mut set = Steps::NONE;
        let mut foreign = false;
        let id = self.id;
        behind.steps(&mut |step, builder| {
            foreign |= builder != id;
            set.insert(step.min(Steps::MAX - 1));
        });
        if foreign {
            self.refuse("a step was given the output of another definition".to_owned());
            return Steps::NONE;
        }
        set
    }

    fn refuse(&mut self, problem: String) {
        self.problem.get_or_insert(DefinitionError { saga: self.name.clone(), problem });
    }
}

/// Whether a payload is the JSON of a `T`.
pub(crate) fn is_json_of<T: DeserializeOwned>(payload: &Payload) -> Result<(), serde_json::Error> {
    payload.decode::<T>().map(drop)
}
