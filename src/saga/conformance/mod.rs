//! What every store has to do, as a suite that any implementation of [`Journal`] can be held against.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use mainstay::saga::{conformance::{self, Subject}, journal::Journal, memory::Memory};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let subject = Subject::new(|| async { Arc::new(Memory::new()) as Arc<dyn Journal> }, tokio::time::sleep);
//! # for rule in conformance::rules().iter().take(3) { rule.check(&subject).await.unwrap() }
//! # if false {
//! conformance::run(&subject).await;
//! # }
//! # }
//! ```
//!
//! # Semantics
//!
//! Each rule opens an empty store of its own and is independent of the others. A rule that needs a lease to run out uses
//! leases of [`Subject::LEASE`] and waits as the subject says: on a paused clock, or for real.
//!
//! # Errors
//!
//! A rule answers with the first promise that it found broken, as a sentence. An error of the store is one too.

mod appends;
mod listing;
mod ownership;
mod requests;

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use super::{
    Entry, Incarnation, Payload, Record, SagaId, Timestamp,
    journal::{Append, Begin, Claim, DefinitionId, Head, Journal, Phase, Refusal, StoreError, Stored},
};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type Shared = Arc<dyn Journal>;

/// Fails a rule with a sentence unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err($crate::saga::conformance::Broken::new(format!($($why)+)));
        }
    };
}

/// Fails a rule with a sentence unless both are equal.
macro_rules! same {
    ($found:expr, $expected:expr, $($why:tt)+) => {
        match (&$found, &$expected) {
            (found, expected) => {
                ensure!(found == expected, "{}: found {found:?}, expected {expected:?}", format!($($why)+));
            }
        }
    };
}

use {ensure, same};

/// How a store is opened, closed and waited for.
pub struct Subject {
    open: Box<dyn Fn() -> Boxed<'static, Shared> + Send + Sync>,
    pass: Box<dyn Fn(Duration) -> Boxed<'static, ()> + Send + Sync>,
    reopen: Option<Box<dyn Fn(Shared) -> Boxed<'static, Shared> + Send + Sync>>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("reopens", &self.reopen.is_some()).finish_non_exhaustive()
    }
}

impl Subject {
    /// The leases that rules wait for: short enough to wait for really.
    pub const LEASE: Duration = Duration::from_millis(50);

    /// Stores that `open` makes, each of them new and empty; `pass` waits until so much time has passed by their clock.
    pub fn new<O, P>(
        open: impl Fn() -> O + Send + Sync + 'static,
        pass: impl Fn(Duration) -> P + Send + Sync + 'static,
    ) -> Self
    where
        O: Future<Output = Arc<dyn Journal>> + Send + 'static,
        P: Future<Output = ()> + Send + 'static,
    {
        Subject {
            open: Box::new(move || Box::pin(open())),
            pass: Box::new(move |time| Box::pin(pass(time))),
            reopen: None,
        }
    }

    /// How a store is closed, as harshly as can be done, and opened again: with it the rules see what survives.
    #[must_use]
    pub fn reopen<O>(mut self, reopen: impl Fn(Arc<dyn Journal>) -> O + Send + Sync + 'static) -> Self
    where
        O: Future<Output = Arc<dyn Journal>> + Send + 'static,
    {
        self.reopen = Some(Box::new(move |journal| Box::pin(reopen(journal))));
        self
    }

    async fn opened(&self) -> Shared {
        (self.open)().await
    }

    async fn again(&self, journal: Shared) -> Shared {
        match &self.reopen {
            Some(reopen) => reopen(journal).await,
            None => journal,
        }
    }

    async fn pass(&self, time: Duration) {
        (self.pass)(time).await;
    }
}

/// One promise of [`Journal`], and how it is checked.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    name: &'static str,
    check: for<'a> fn(&'a Subject) -> Boxed<'a, Result<(), Broken>>,
}

impl Rule {
    /// What has to be true, in words joined by underscores.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Holds a store against the rule.
    ///
    /// # Errors
    ///
    /// What the store did instead.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, what it has written stays in the store.
    pub async fn check(&self, subject: &Subject) -> Result<(), Broken> {
        (self.check)(subject).await
    }
}

/// What a store did instead of what it has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(String);

impl Broken {
    fn new(what: String) -> Self {
        Broken(what)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Broken(error.to_string())
    }
}

macro_rules! rules {
    ($($module:ident: $($rule:ident)+;)+) => {
        &[$($(Rule {
            name: stringify!($rule),
            check: |subject| Box::pin($module::$rule(subject)),
        },)+)+]
    };
}

static RULES: &[Rule] = rules! {
    appends:
        what_is_begun_is_found_whole
        what_is_appended_survives
        a_second_begin_is_refused
        a_missing_saga_is_refused
        a_gap_is_refused
        an_owner_of_before_is_refused
        a_stranger_is_refused
        one_refusal_does_not_touch_the_others
        the_first_of_a_batch_gets_the_lock
        of_two_batches_at_once_one_comes_first
        an_append_is_there_whole_or_not_at_all
        the_row_changes_without_entries
        an_end_ends_everything
        what_is_over_stays_over
        locks_are_held_until_the_end
        locks_are_taken_all_or_none
        any_id_is_kept_as_it_is
        large_records_are_kept
        dropped_futures_harm_nothing;
    ownership:
        a_new_saga_is_not_claimed
        what_is_released_is_claimed_when_its_wake_comes
        what_is_released_without_a_wake_waits_for_a_request
        the_oldest_wake_comes_first
        a_claim_takes_no_more_than_its_limit
        a_claim_begins_the_next_epoch
        two_claims_never_take_the_same
        sagas_of_the_dead_are_claimed
        an_unknown_owner_is_dead
        a_heartbeat_prolongs_a_lease
        who_leaves_can_be_taken_from
        what_an_orchestrator_says_is_read_by_others
        recoveries_are_counted_until_an_entry
        an_unwanted_saga_is_not_claimed
        only_one_saga_is_claimed
        only_known_definitions_are_claimed
        what_is_over_is_not_claimed
        time_goes_on;
    requests:
        a_request_waits_for_the_owner
        requests_come_in_their_order
        a_request_is_left_once
        an_answered_request_stays_known
        a_request_needs_a_saga_that_is_not_over
        what_is_answered_is_gone_and_the_rest_waits
        requests_survive;
    listing:
        pages_follow_each_other
        a_listing_shows_what_was_asked_for
        ten_thousand_sagas_are_paged
        only_what_ended_before_is_forgotten
        forgetting_goes_in_small_batches
        forgetting_leaves_nothing_behind
        who_forgot_is_noted;
};

/// Every rule.
pub fn rules() -> &'static [Rule] {
    RULES
}

/// Holds a store against every rule.
///
/// # Panics
///
/// When it breaks any, with all that it breaks.
///
/// # Cancel safety
///
/// As of [`Rule::check`].
pub async fn run(subject: &Subject) {
    let mut broken = Vec::new();
    for rule in rules() {
        if let Err(what) = rule.check(subject).await {
            broken.push(format!("{}: {what}", rule.name()));
        }
    }
    assert!(
        broken.is_empty(),
        "{} of {} rules are broken:\n{}",
        broken.len(),
        RULES.len(),
        broken.join("\n")
    );
}

/// Writes the journal of one saga: numbers, checksums and ownership are right without further thought.
#[derive(Debug, Clone)]
pub struct Pen {
    saga: SagaId,
    by: Incarnation,
    epoch: u64,
    len: u64,
    crc: u32,
    at: Timestamp,
}

impl Pen {
    /// For a saga that has not begun.
    ///
    /// # Panics
    ///
    /// When the id is not possible.
    pub fn new(saga: &str, by: &Incarnation, at: Timestamp) -> Self {
        let saga = SagaId::new(saga).unwrap_or_else(|invalid| panic!("{invalid}"));
        Pen { saga, by: by.clone(), epoch: 1, len: 0, crc: 0, at }
    }

    /// For a saga that goes on where its head stands.
    pub fn resume(head: &Head, at: Timestamp) -> Self {
        let by = head.owner.clone().unwrap_or_else(|| Incarnation::from_text("nobody"));
        Pen { saga: head.id.clone(), by, epoch: head.epoch, len: head.len, crc: head.crc, at }
    }

    /// The saga.
    pub fn saga(&self) -> &SagaId {
        &self.saga
    }

    /// When the next entries are written.
    pub fn at(&mut self, at: Timestamp) -> &mut Self {
        self.at = at;
        self
    }

    /// The first append: the saga, without tag and locks, and its first entry.
    pub fn begin(&mut self, definition: &DefinitionId) -> Append {
        let input = Payload::encode(self.saga.as_str()).expect("a string is JSON");
        let mut append = self.write(&[Record::Begun { input, deadline: None }]);
        append.begin = Some(Begin { definition: definition.clone(), tag: String::new(), locks: Vec::new() });
        append
    }

    /// The next append, with these records.
    pub fn write(&mut self, records: &[Record]) -> Append {
        let mut entries = Vec::with_capacity(records.len());
        for record in records {
            let entry = Entry::new(&self.saga, self.len, self.crc, self.epoch, self.at, &self.by, record)
                .expect("a record is JSON");
            self.len += 1;
            self.crc = entry.crc;
            entries.push(entry);
        }
        Append {
            saga: self.saga.clone(),
            by: self.by.clone(),
            epoch: self.epoch,
            begin: None,
            entries,
            work: None,
            phase: Phase::Running,
            note: String::new(),
            wake: None,
            release: false,
            answers: Vec::new(),
        }
    }

    /// The next append: one step has completed.
    pub fn step(&mut self, step: &str) -> Append {
        let output = Payload::encode(step).expect("a string is JSON");
        self.write(&[Record::Completed { step: step.to_owned(), output, attempts: 1, ms: 1 }])
    }

    /// The next append, with an end.
    pub fn end(&mut self, phase: Phase) -> Append {
        Append { phase, ..self.step("last") }
    }

    /// The next append: a row without an owner.
    pub fn release(&mut self, wake: Option<Timestamp>) -> Append {
        Append { phase: Phase::Waiting, wake, release: true, ..self.write(&[]) }
    }
}

/// The definition that the sagas of this suite follow, if nothing else is said.
pub fn definition() -> DefinitionId {
    DefinitionId { name: "order".into(), version: 1, digest: "6b1d".into() }
}

// --- what the rules share ---

fn incarnation(name: &str) -> Incarnation {
    Incarnation::from_text(name)
}

const LONG: Duration = Duration::from_secs(3_600);

/// Has to be accepted.
async fn accept(journal: &Shared, append: Append) -> Result<(), Broken> {
    let what = format!("{} with {} entries", append.saga, append.entries.len());
    same!(journal.append(vec![append]).await?, vec![Ok(())], "{what} has to be accepted");
    Ok(())
}

/// Has to be refused; why it was.
async fn refuse(journal: &Shared, append: Append) -> Result<Refusal, Broken> {
    match &journal.append(vec![append]).await?[..] {
        [Err(refusal)] => Ok(refusal.clone()),
        other => Err(Broken::new(format!("one refusal was to be expected, but there is {other:?}"))),
    }
}

/// Has to be there and whole.
async fn whole(journal: &Shared, saga: &SagaId) -> Result<Stored, Broken> {
    let stored = journal.load(saga).await?;
    let stored = stored.ok_or_else(|| Broken::new(format!("saga {saga} is not there")))?;
    stored.verify().map_err(|corrupt| Broken::new(format!("saga {saga} is not whole: {corrupt}")))?;
    Ok(stored)
}

/// A living orchestrator, and a pen for a saga that it has just begun.
async fn begun(journal: &Shared, saga: &str, owner: &str) -> Result<Pen, Broken> {
    let by = incarnation(owner);
    journal.heartbeat(&by, LONG).await?;
    let mut pen = Pen::new(saga, &by, journal.now().await?);
    accept(journal, pen.begin(&definition())).await?;
    Ok(pen)
}

fn claim(by: &str) -> Claim {
    Claim { by: incarnation(by), definitions: vec![definition()], except: Vec::new(), only: None, limit: 100 }
}

fn ids<'a>(stored: impl IntoIterator<Item = &'a Stored>) -> Vec<&'a str> {
    stored.into_iter().map(|stored| stored.head.id.as_str()).collect()
}
