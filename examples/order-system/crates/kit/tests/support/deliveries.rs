//! Every order and repetition in which an action and its compensation can arrive, and what a participant owes to each.
#![allow(dead_code, missing_docs)]

use std::fmt::Debug;

/// What arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    Action,
    Compensation,
}

/// Whoever does a step and undoes it.
pub trait Participant {
    /// What an action is answered.
    type Answer: Debug + PartialEq;

    /// The step arrives for this order.
    async fn act(&self, order: &str) -> Self::Answer;

    /// Its compensation arrives; whether it was said to be done.
    async fn undo(&self, order: &str) -> bool;

    /// The effect that the order has now: 0 or 1, if all is well.
    async fn effect(&self, order: &str) -> i64;

    /// The answer to an action that comes after its compensation, whether it was done before or not.
    fn too_late(&self) -> Self::Answer;
}

/// All sequences of one to `longest` deliveries.
pub fn sequences(longest: u32) -> Vec<Vec<Delivery>> {
    let of = |length: u32| {
        (0..1_u32 << length).map(move |bits| {
            let delivery = |at| if bits >> at & 1 == 0 { Delivery::Action } else { Delivery::Compensation };
            (0..length).map(delivery).collect()
        })
    };
    (1..=longest).flat_map(of).collect()
}

/// Delivers one sequence, and looks after each delivery: there is one effect from the first action to the first compensation, and none
/// before and after; an action has the same answer each time, until it is too late; a compensation succeeds.
///
/// # Errors
///
/// What is wrong, with the deliveries until then.
pub async fn check<P: Participant>(it: &P, order: &str, sequence: &[Delivery]) -> Result<(), String> {
    let (mut acted, mut undone, mut first) = (false, false, None);
    for (number, delivery) in sequence.iter().enumerate() {
        let wrong = |what: String| Err(format!("{what} after {:?}", &sequence[..=number]));
        match delivery {
            Delivery::Action => {
                let answer = it.act(order).await;
                if undone != (answer == it.too_late()) {
                    return wrong(format!("answered {answer:?}"));
                }
                match &first {
                    Some(first) if !undone && *first != answer => {
                        return wrong(format!("answered {answer:?}, before that {first:?}"));
                    }
                    _ => first = Some(answer),
                }
                acted = true;
            }
            Delivery::Compensation => {
                if !it.undo(order).await {
                    return wrong("not undone".to_owned());
                }
                undone = true;
            }
        }
        let (effect, owed) = (it.effect(order).await, i64::from(acted && !undone));
        if effect != owed {
            return wrong(format!("{effect} effects in place of {owed}"));
        }
    }
    Ok(())
}

/// A participant that does as it is told and uses no key: what the check is there to find.
#[derive(Debug, Default)]
pub struct NoKey(std::sync::Mutex<std::collections::BTreeMap<String, i64>>);

impl Participant for NoKey {
    type Answer = &'static str;

    async fn act(&self, order: &str) -> &'static str {
        *self.0.lock().unwrap().entry(order.to_owned()).or_default() += 1;
        "done"
    }

    async fn undo(&self, order: &str) -> bool {
        *self.0.lock().unwrap().entry(order.to_owned()).or_default() -= 1;
        true
    }

    async fn effect(&self, order: &str) -> i64 {
        self.0.lock().unwrap().get(order).copied().unwrap_or(0)
    }

    fn too_late(&self) -> &'static str {
        "too late"
    }
}

/// A participant that looks at what it has done, and remembers no compensation that found nothing.
#[derive(Debug, Default)]
pub struct Forgetful(std::sync::Mutex<std::collections::BTreeMap<String, Vec<Delivery>>>);

impl Participant for Forgetful {
    type Answer = &'static str;

    async fn act(&self, order: &str) -> &'static str {
        let mut done = self.0.lock().unwrap();
        let done = done.entry(order.to_owned()).or_default();
        if done.is_empty() {
            done.push(Delivery::Action);
        }
        if *done == [Delivery::Action] { "done" } else { self.too_late() }
    }

    async fn undo(&self, order: &str) -> bool {
        let mut done = self.0.lock().unwrap();
        let done = done.entry(order.to_owned()).or_default();
        if *done == [Delivery::Action] {
            done.push(Delivery::Compensation);
        }
        true
    }

    async fn effect(&self, order: &str) -> i64 {
        i64::from(self.0.lock().unwrap().get(order).is_some_and(|done| *done == [Delivery::Action]))
    }

    fn too_late(&self) -> &'static str {
        "too late"
    }
}

/// Which of all sequences a participant fails.
pub async fn failures<P: Participant>(it: &P, longest: u32) -> Vec<String> {
    let mut failures = Vec::new();
    for (number, sequence) in sequences(longest).iter().enumerate() {
        failures.extend(check(it, &format!("order-{number}"), sequence).await.err());
    }
    failures
}
