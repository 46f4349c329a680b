//! What an outbox has to do, whichever client it uses.
#![allow(dead_code, missing_docs)]

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use mainstay::{
    backoff::{Jitter, Schedule},
    saga::{
        Payload,
        outbox::{Message, Parked, Relay, Relayed, Unsent},
    },
};
use proptest::{prelude::*, test_runner::TestCaseError};

/// Polls a future to its end, on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// A database with an outbox.
#[allow(async_fn_in_trait)]
pub trait Outbox {
    /// In a transaction of its own, which is committed or not.
    async fn append(&mut self, key: &str, number: u32, commit: bool);
    async fn relay(
        &mut self,
        relay: &Relay,
        publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
    ) -> Relayed;
    async fn parked(&mut self) -> Vec<Parked>;
    async fn release(&mut self, id: &str) -> bool;
    async fn discard(&mut self, id: &str) -> bool;
    async fn prune(&mut self, keep: Duration) -> usize;
    async fn rows(&mut self) -> usize;
}

pub type Published = RefCell<Vec<(String, u32)>>;

pub fn seen(message: &Message) -> (String, u32) {
    (message.key.clone(), message.payload.decode().unwrap())
}

/// Without waits, and without an end.
pub fn patient() -> Relay {
    Relay::new().attempts(u32::MAX).backoff(Schedule::constant(Duration::ZERO).jitter(Jitter::None))
}

/// A publisher that takes everything.
pub fn into(published: &Published) -> impl AsyncFnMut(Message) -> Result<(), Unsent> {
    async |message| {
        published.borrow_mut().push(seen(&message));
        Ok(())
    }
}

fn texts(published: &Published) -> Vec<String> {
    published.take().into_iter().map(|(key, number)| format!("{key}{number}")).collect()
}

pub async fn what_was_committed_is_published_once_and_what_was_rolled_back_is_not(outbox: &mut impl Outbox) {
    outbox.append("a", 1, true).await;
    outbox.append("a", 2, false).await;
    outbox.append("b", 3, true).await;
    let published = Published::default();
    let relayed = outbox.relay(&Relay::new(), into(&published)).await;
    assert_eq!((relayed.sent, relayed.is_idle()), (2, false));
    assert!(outbox.relay(&Relay::new(), into(&published)).await.is_idle());
    assert_eq!(texts(&published), ["a1", "b3"]);
}

pub async fn a_batch_is_bounded(outbox: &mut impl Outbox) {
    for number in 0..5 {
        outbox.append(if number == 1 { "b" } else { "a" }, number, true).await;
    }
    let published = Published::default();
    for sent in [2, 2, 1, 0] {
        assert_eq!(outbox.relay(&Relay::new().batch(2), into(&published)).await.sent, sent);
    }
    assert_eq!(texts(&published), ["a0", "b1", "a2", "a3", "a4"]);
}

pub async fn a_relay_that_dies_before_it_marks_publishes_again_and_in_order(outbox: &mut impl Outbox) {
    for number in 1..=3 {
        outbox.append("a", number, true).await;
    }
    let published = Published::default();
    let ids = RefCell::new(Vec::new());
    let died = tokio::sync::Notify::new();
    let publisher = async |message: Message| {
        ids.borrow_mut().push(message.id.clone());
        published.borrow_mut().push(seen(&message));
        if published.borrow().len() == 2 {
            died.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(())
    };
    let relay = Relay::new();
    tokio::select! {
        _ = outbox.relay(&relay, publisher) => panic!("it hangs"),
        () = died.notified() => {}
    }
    assert_eq!(texts(&published), ["a1", "a2"]);
    let again = async |message: Message| {
        ids.borrow_mut().push(message.id.clone());
        published.borrow_mut().push(seen(&message));
        Ok(())
    };
    outbox.relay(&relay, again).await;
    assert_eq!(texts(&published), ["a1", "a2", "a3"]);
    let ids = ids.take();
    assert_eq!(ids[..2], ids[2..4], "a message keeps its id");
}

pub async fn a_refused_message_holds_up_its_key_alone_and_keeps_its_place(outbox: &mut impl Outbox) {
    for (key, number) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
        outbox.append(key, number, true).await;
    }
    let published = Published::default();
    let refuse = async |message: Message| match seen(&message) {
        (_, 2) => Err(Unsent::refused("not now")),
        other => {
            published.borrow_mut().push(other);
            Ok(())
        }
    };
    let slow = Relay::new().backoff(Schedule::constant(Duration::from_millis(300)).jitter(Jitter::None));
    let relayed = outbox.relay(&slow, refuse).await;
    assert_eq!((relayed.sent, relayed.refused, relayed.parked), (2, 1, 0));
    assert_eq!(texts(&published), ["a1", "b3"]);
    assert!(outbox.relay(&slow, into(&published)).await.is_idle(), "its backoff is not over");
    tokio::time::sleep(Duration::from_millis(350)).await;
    let refusals = RefCell::new(Vec::new());
    let counting = async |message: Message| {
        refusals.borrow_mut().push(message.refusals);
        published.borrow_mut().push(seen(&message));
        Ok(())
    };
    outbox.relay(&slow, counting).await;
    assert_eq!(texts(&published), ["a2", "a4"]);
    assert_eq!(refusals.take(), [1, 0]);
}

pub async fn an_outage_ends_the_round_and_counts_no_attempt(outbox: &mut impl Outbox) {
    for number in 1..=3 {
        outbox.append("a", number, true).await;
    }
    let published = Published::default();
    let calls = RefCell::new(0);
    for _ in 0..20 {
        let down = async |_| {
            *calls.borrow_mut() += 1;
            Err(Unsent::unavailable("connection refused"))
        };
        let relayed = outbox.relay(&Relay::new().attempts(1), down).await;
        assert_eq!(relayed.unavailable.as_deref(), Some("connection refused"));
        assert_eq!((relayed.sent, relayed.refused, relayed.parked), (0, 0, 0));
    }
    assert_eq!(calls.take(), 20, "one message a round finds out");
    outbox.relay(&Relay::new(), into(&published)).await;
    assert_eq!(texts(&published), ["a1", "a2", "a3"]);
}

/// Refuses the second message for ever.
async fn poison(published: &Published, message: Message) -> Result<(), Unsent> {
    match seen(&message) {
        (_, 2) => Err(Unsent::refused("too large")),
        other => {
            published.borrow_mut().push(other);
            Ok(())
        }
    }
}

pub async fn a_poison_message_is_parked_with_its_reason_and_stops_its_own_key_alone(
    outbox: &mut impl Outbox,
) {
    for (key, number) in [("a", 1), ("a", 2), ("a", 3), ("b", 4)] {
        outbox.append(key, number, true).await;
    }
    let published = Published::default();
    let relay = patient().attempts(3);
    let mut parked = 0;
    for _ in 0..6 {
        parked += outbox.relay(&relay, async |message| poison(&published, message).await).await.parked;
    }
    assert_eq!(parked, 1, "three attempts, and no more");
    outbox.append("b", 5, true).await;
    outbox.relay(&relay, into(&published)).await;
    assert_eq!(texts(&published), ["a1", "b4", "b5"]);
    let found = outbox.parked().await;
    assert_eq!((found.len(), &*found[0].reason, found[0].message.refusals), (1, "too large", 3));
    let id = found[0].message.id.clone();

    assert!(outbox.release(&id).await && !outbox.release(&id).await);
    outbox.relay(&relay, into(&published)).await;
    assert_eq!(texts(&published), ["a2", "a3"], "released, it takes its old place");
    assert!(!outbox.discard(&id).await, "it is not parked");
}

pub async fn a_discarded_message_lets_the_later_ones_go_on(outbox: &mut impl Outbox) {
    for number in 1..=3 {
        outbox.append("a", number, true).await;
    }
    let published = Published::default();
    let relay = Relay::new().attempts(1);
    outbox.relay(&relay, async |message| poison(&published, message).await).await;
    let id = outbox.parked().await[0].message.id.clone();
    assert!(outbox.discard(&id).await && !outbox.discard(&id).await);
    outbox.relay(&relay, into(&published)).await;
    assert_eq!(texts(&published), ["a1", "a3"]);
}

pub async fn with_skip_parked_the_later_ones_pass(outbox: &mut impl Outbox) {
    for number in 1..=3 {
        outbox.append("a", number, true).await;
    }
    let published = Published::default();
    let relay = Relay::new().attempts(1).skip_parked();
    let relayed = outbox.relay(&relay, async |message| poison(&published, message).await).await;
    assert_eq!((relayed.sent, relayed.parked), (2, 1));
    outbox.append("a", 4, true).await;
    outbox.relay(&relay, into(&published)).await;
    assert_eq!(texts(&published), ["a1", "a3", "a4"]);
}

pub async fn a_panic_of_the_publisher_is_a_refusal(outbox: &mut impl Outbox) {
    outbox.append("a", 1, true).await;
    outbox.append("b", 2, true).await;
    let published = Published::default();
    let relay = Relay::new().attempts(1);
    let panics = async |message: Message| match seen(&message) {
        (_, 1) => panic!("cannot encode"),
        other => {
            published.borrow_mut().push(other);
            Ok(())
        }
    };
    outbox.relay(&relay, panics).await;
    assert_eq!(texts(&published), ["b2"]);
    assert_eq!(outbox.parked().await[0].reason, "the publisher panicked: cannot encode");
}

pub async fn what_was_sent_is_pruned_and_what_was_not_is_kept(outbox: &mut impl Outbox) {
    for number in 1..=3 {
        outbox.append("a", number, true).await;
    }
    let published = Published::default();
    outbox.relay(&Relay::new().attempts(1), async |message| poison(&published, message).await).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(outbox.prune(Duration::from_secs(60)).await, 0);
    assert_eq!(outbox.prune(Duration::MAX).await, 0);
    assert_eq!(outbox.prune(Duration::ZERO).await, 1);
    assert_eq!(outbox.rows().await, 2);
}

/// What happens to an outbox in a random history.
#[derive(Debug, Clone)]
pub enum Act {
    Append {
        key: u8,
        commit: bool,
    },
    /// What the publisher says to one message after the other, and `Ok` to the rest.
    Relay {
        says: Vec<Say>,
        batch: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    Yes,
    No,
    Down,
    /// It has published, and the process dies.
    Die,
    /// The process dies before it publishes.
    DieBefore,
}

pub fn histories() -> impl Strategy<Value = Vec<Act>> {
    let say = prop_oneof![4 => Just(Say::Yes), 2 => Just(Say::No), 1 => Just(Say::Down), 1 => Just(Say::Die), 1 => Just(Say::DieBefore)];
    let act = prop_oneof![
        3 => (0..3_u8, prop::bool::weighted(0.8)).prop_map(|(key, commit)| Act::Append { key, commit }),
        1 => (prop::collection::vec(say, 0..6), 1..5_usize).prop_map(|(says, batch)| Act::Relay { says, batch }),
    ];
    prop::collection::vec(act, 1..25)
}

/// What was committed and nothing else is published, at last all of it, and, leaving out repetitions, in the order of each key.
pub async fn property(outbox: &mut impl Outbox, history: &[Act]) -> Result<(), TestCaseError> {
    let mut appended = BTreeMap::<String, Vec<u32>>::new();
    let published = Published::default();
    for (number, act) in history.iter().enumerate() {
        match act {
            Act::Append { key, commit } => {
                outbox.append(&key.to_string(), number as u32, *commit).await;
                if *commit {
                    appended.entry(key.to_string()).or_default().push(number as u32);
                }
            }
            Act::Relay { says, batch } => {
                let says = RefCell::new(says.iter().copied());
                let died = tokio::sync::Notify::new();
                let publisher = async |message: Message| {
                    let say = says.borrow_mut().next().unwrap_or(Say::Yes);
                    match say {
                        Say::No => return Err(Unsent::refused("no")),
                        Say::Down => return Err(Unsent::unavailable("down")),
                        Say::Yes | Say::Die => published.borrow_mut().push(seen(&message)),
                        Say::DieBefore => {}
                    }
                    if say != Say::Yes {
                        died.notify_one();
                        return std::future::pending().await;
                    }
                    Ok(())
                };
                let relay = patient().batch(*batch);
                tokio::select! {
                    _ = outbox.relay(&relay, publisher) => {}
                    () = died.notified() => {}
                }
            }
        }
    }
    while !outbox.relay(&patient(), into(&published)).await.is_idle() {}
    prop_assert_eq!(first_of_each(published.take()), appended);
    Ok(())
}

/// By key, in order, each once.
pub fn first_of_each(published: Vec<(String, u32)>) -> BTreeMap<String, Vec<u32>> {
    let (mut known, mut by_key) = (HashSet::new(), BTreeMap::<String, Vec<u32>>::new());
    for (key, number) in published {
        if known.insert(number) {
            by_key.entry(key).or_default().push(number);
        }
    }
    by_key
}

/// An outbox in memory with one fault, or none.
#[derive(Debug, Default)]
pub struct Twin {
    pub fault: Option<Fault>,
    rows: Vec<(String, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A message is marked before it is published.
    MarksFirst,
    /// A refused message does not hold up its key.
    GoesOnBehindRefused,
    /// The event is written outside the business transaction.
    OutlivesRollback,
    /// A round ends early and marks all of its batch.
    MarksAll,
}

impl Outbox for Twin {
    async fn append(&mut self, key: &str, number: u32, commit: bool) {
        if commit || self.fault == Some(Fault::OutlivesRollback) {
            self.rows.push((key.to_owned(), number));
        }
    }

    async fn relay(
        &mut self,
        _: &Relay,
        mut publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
    ) -> Relayed {
        let rows = self.rows.clone();
        let (mut left, mut stopped, mut down) = (Vec::new(), HashSet::new(), false);
        for (index, (key, number)) in rows.iter().enumerate() {
            if self.fault == Some(Fault::MarksFirst) {
                self.rows = left.iter().chain(&rows[index + 1..]).cloned().collect();
            }
            let says = if down || stopped.contains(key) {
                Err(Unsent::refused(""))
            } else {
                publisher(Message::new(&number.to_string(), "t", key, Payload::encode(number).unwrap())).await
            };
            match says {
                Ok(()) => continue,
                Err(Unsent::Unavailable(_)) => down = true,
                Err(_) if self.fault != Some(Fault::GoesOnBehindRefused) => {
                    stopped.insert(key.clone());
                }
                Err(_) => {}
            }
            left.push((key.clone(), *number));
        }
        if self.fault == Some(Fault::MarksAll) && down {
            left.clear();
        }
        let sent = rows.len() - left.len();
        self.rows = left;
        let mut relayed = Relayed::default();
        relayed.sent = sent;
        relayed
    }

    async fn parked(&mut self) -> Vec<Parked> {
        Vec::new()
    }

    async fn release(&mut self, _: &str) -> bool {
        false
    }

    async fn discard(&mut self, _: &str) -> bool {
        false
    }

    async fn prune(&mut self, _: Duration) -> usize {
        0
    }

    async fn rows(&mut self) -> usize {
        self.rows.len()
    }
}

/// One test for each scenario, on what `$open` opens; none where it opens nothing.
macro_rules! scenarios {
    ($open:ident: $($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            if let Some(mut outbox) = $open(stringify!($name)) {
                support::block_on(support::$name(outbox.outbox()));
            }
        }
    )*};
}
pub(crate) use scenarios;

macro_rules! every_scenario {
    ($open:ident) => {
        support::scenarios!($open:
            what_was_committed_is_published_once_and_what_was_rolled_back_is_not,
            a_batch_is_bounded,
            a_relay_that_dies_before_it_marks_publishes_again_and_in_order,
            a_refused_message_holds_up_its_key_alone_and_keeps_its_place,
            an_outage_ends_the_round_and_counts_no_attempt,
            a_poison_message_is_parked_with_its_reason_and_stops_its_own_key_alone,
            a_discarded_message_lets_the_later_ones_go_on,
            with_skip_parked_the_later_ones_pass,
            a_panic_of_the_publisher_is_a_refusal,
            what_was_sent_is_pruned_and_what_was_not_is_kept,
        );
    };
}
pub(crate) use every_scenario;
