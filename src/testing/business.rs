//! What the kit wants of a database in which the work of steps is done.

use std::{any::TypeId, collections::BTreeMap, sync::Arc};

use super::{case::Loss, seen::Seen};
use crate::{
    saga::{
        Entry, Failure,
        attempt::{Acted, Pending, Told},
        journal::{AnyJob, Refusal, Work},
        memory::{Beside, Saved},
    },
    sync::{Mutex, lock},
};

/// The database of one run.
pub(super) trait Business: Beside {
    /// The same work, and a row that says that it was done.
    fn counted(&self, job: AnyJob, step: &Arc<str>, net: i64) -> AnyJob;

    /// The same work, which fails at its end.
    fn failing(&self, job: AnyJob, how: Loss) -> AnyJob;

    /// Both in one transaction.
    fn twice(&self, job: AnyJob, again: AnyJob) -> AnyJob;

    /// By the rows of `counted`: the net effects of each step.
    fn net(&self) -> BTreeMap<String, i64>;

    /// Whether everything is in it as it has to be. Nothing else can be asked of it any more.
    fn audit(&self, seen: &Seen) -> Result<(), String>;
}

type Code<T> = Arc<dyn Fn(&Told) -> Pending<Result<Acted<T>, Failure>> + Send + Sync>;

/// A step's code with rows for its work.
pub(super) fn counting<T: Send + 'static>(
    business: &Arc<dyn Business>,
    code: Code<T>,
    step: &Arc<str>,
    net: i64,
) -> Code<T> {
    let (business, step) = (business.clone(), step.clone());
    Arc::new(move |told| {
        let (business, step, acting) = (business.clone(), step.clone(), code(told));
        Box::pin(async move {
            Ok(match acting.await? {
                Acted::Job(job) => Acted::Job(business.counted(job, &step, net)),
                done @ Acted::Done(_) => done,
            })
        })
    })
}

/// A step's code whose work is done twice.
pub(super) fn doubling<T: Send + 'static>(business: &Arc<dyn Business>, code: Code<T>) -> Code<T> {
    let business = business.clone();
    Arc::new(move |told| {
        let (business, acting, again) = (business.clone(), code(told), code(told));
        Box::pin(async move {
            Ok(match (acting.await?, again.await?) {
                (Acted::Job(job), Acted::Job(again)) => Acted::Job(business.twice(job, again)),
                (done, _) => done,
            })
        })
    })
}

/// The database on the device of the simulated store.
#[derive(Debug)]
pub(super) struct OnDevice {
    business: Arc<dyn Business>,
    /// What it held before the last work, which a crash then takes away though its record is durable: a planted bug.
    forgets: Option<Mutex<Option<Saved>>>,
}

impl OnDevice {
    pub(super) fn new(business: Arc<dyn Business>, forgets: bool) -> Self {
        OnDevice { business, forgets: forgets.then(Mutex::default) }
    }
}

impl Beside for OnDevice {
    fn does(&self, job: TypeId) -> bool {
        self.business.does(job)
    }

    fn work(&self, work: &Work) -> Result<Entry, Refusal> {
        if let Some(last) = &self.forgets {
            *lock(last) = Some(self.save());
        }
        self.business.work(work)
    }

    fn save(&self) -> Saved {
        self.business.save()
    }

    fn crash(&self, last: Option<Saved>) {
        self.business.crash(last.or_else(|| lock(self.forgets.as_ref()?).take()));
    }
}
