//! What goes wrong in one run, with a name that can be typed in again.

use std::{fmt, str::FromStr};

use super::evidence::What;
use crate::saga::memory::Operation;

/// Before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Edge {
    /// Before it has any effect.
    Before,
    /// After its effect, before anybody hears of it.
    After,
}

/// A place in a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The n-th operation of its kind that changes the store, from 0.
    Store(Operation, u32),
    /// The n-th call of a participant, from 0.
    Call(String, What, u32),
}

/// How an answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// An error comes instead.
    Error,
    /// Nothing comes, until the step's timeout.
    Timeout,
    /// The code that waited for it panics.
    Panic,
}

/// What is ordered. An order that cannot be followed where the saga stands is refused, and that is as good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ordered {
    /// [`Order::Cancel`](crate::saga::Order::Cancel).
    Cancel,
    /// [`Order::Compensate`](crate::saga::Order::Compensate).
    Compensate,
    /// [`Order::Abandon`](crate::saga::Order::Abandon).
    Abandon,
    /// [`Order::Retry`](crate::saga::Order::Retry), for all steps.
    Retry,
    /// [`Order::Reject`](crate::saga::Order::Reject) of the step that is called there.
    Reject,
    /// [`Order::Undone`](crate::saga::Order::Undone) of the step that is called there.
    Undone,
}

impl Ordered {
    /// Every order.
    pub const ALL: [Ordered; 6] = [
        Ordered::Cancel,
        Ordered::Compensate,
        Ordered::Abandon,
        Ordered::Retry,
        Ordered::Reject,
        Ordered::Undone,
    ];

    /// The order as a short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Ordered::Cancel => "cancel",
            Ordered::Compensate => "compensate",
            Ordered::Abandon => "abandon",
            Ordered::Retry => "retry",
            Ordered::Reject => "reject",
            Ordered::Undone => "undone",
        }
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fault {
    /// `reject(step)`: the action says each time that nothing has happened.
    Reject(String),
    /// `lose(step:how:often)`: the action has its effect, and its answer is lost, the first time (`once`) or each time (`always`).
    Lose(String, Loss, bool),
    /// `drop(step:often)`: the request to the action is lost, and nobody knows.
    Drop(String, bool),
    /// `late(step)`: every request to the action is held up, and arrives when the saga is over.
    Late(String),
    /// `refuse(step:often)`: the compensation fails, once or each time.
    Refuse(String, bool),
    /// `twice()`: every call is delivered twice.
    Twice,
    /// `crash(place:edge)`: the power is cut there.
    Crash(Place, Edge),
    /// `unsynced(operation:n)`: the power is cut when what the operation changes is written and not synced.
    Unsynced(Operation, u32),
    /// `store(operation:n:edge)`: the operation fails, before it has done anything or after it was done.
    Store(Operation, u32, Edge),
    /// `ask(order:place:edge)`: somebody gives an order while the saga is there.
    Ask(Ordered, Place, Edge),
    /// `pause(place:edge)`: the orchestrator stands still there until another one has taken the saga and worked on it, and then goes on.
    Pause(Place, Edge),
}

impl Fault {
    /// Whether it is a participant, or the way to it, that goes wrong.
    pub(super) fn is_of_participant(&self) -> bool {
        matches!(
            self,
            Fault::Reject(_)
                | Fault::Lose(..)
                | Fault::Drop(..)
                | Fault::Late(_)
                | Fault::Refuse(..)
                | Fault::Twice
        )
    }
}

/// The faults of one run. The empty one is the happy case; its text is `happy`.
///
/// The text of a case is its name: faults joined by `+`, for example `reject(charge)+crash(append:3:after)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Case(pub Vec<Fault>);

impl Case {
    /// The same with one more fault.
    #[must_use]
    pub fn and(&self, fault: Fault) -> Self {
        let mut faults = self.0.clone();
        faults.push(fault);
        Case(faults)
    }
}

/// A text that is no [`Case`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidCase(String);

impl fmt::Display for InvalidCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no fault of a case", self.0)
    }
}

impl std::error::Error for InvalidCase {}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Edge::Before => "before",
            Edge::After => "after",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Store(operation, number) => write!(f, "{}:{number}", operation.as_str()),
            Place::Call(step, what, number) => write!(f, "{}:{step}:{number}", what.as_str()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let often = |always: &bool| if *always { "always" } else { "once" };
        match self {
            Fault::Reject(step) => write!(f, "reject({step})"),
            Fault::Lose(step, loss, always) => {
                let loss = match loss {
                    Loss::Error => "error",
                    Loss::Timeout => "timeout",
                    Loss::Panic => "panic",
                };
                write!(f, "lose({step}:{loss}:{})", often(always))
            }
            Fault::Drop(step, always) => write!(f, "drop({step}:{})", often(always)),
            Fault::Late(step) => write!(f, "late({step})"),
            Fault::Refuse(step, always) => write!(f, "refuse({step}:{})", often(always)),
            Fault::Twice => write!(f, "twice()"),
            Fault::Crash(place, edge) => write!(f, "crash({place}:{edge})"),
            Fault::Unsynced(operation, number) => write!(f, "unsynced({}:{number})", operation.as_str()),
            Fault::Store(operation, number, edge) => {
                write!(f, "store({}:{number}:{edge})", operation.as_str())
            }
            Fault::Ask(order, place, edge) => write!(f, "ask({}:{place}:{edge})", order.as_str()),
            Fault::Pause(place, edge) => write!(f, "pause({place}:{edge})"),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("happy");
        }
        for (at, fault) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("+")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl FromStr for Case {
    type Err = InvalidCase;

    fn from_str(text: &str) -> Result<Self, InvalidCase> {
        if text == "happy" {
            return Ok(Case::default());
        }
        if text.is_empty() {
            return Err(InvalidCase(String::new()));
        }
        let faults = text.split_inclusive(')').map(|fault| fault.trim_start_matches('+'));
        faults
            .map(|fault| read(fault).ok_or_else(|| InvalidCase(fault.to_owned())))
            .collect::<Result<_, _>>()
            .map(Case)
    }
}

fn read(fault: &str) -> Option<Fault> {
    let (name, rest) = fault.strip_suffix(')')?.split_once('(')?;
    // A step's path may have colons; what is behind it has none.
    let last = |text: &str| text.rsplit_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()));
    let often = |text: &str| match text {
        "once" => Some(false),
        "always" => Some(true),
        _ => None,
    };
    let edge = |text: &str| match text {
        "before" => Some(Edge::Before),
        "after" => Some(Edge::After),
        _ => None,
    };
    let number = |text: &str| text.parse::<u32>().ok();
    let operation = |text: &str| -> Option<(Operation, u32)> {
        let (word, count) = text.split_once(':')?;
        let known = Operation::ALL.into_iter().find(|known| known.as_str() == word)?;
        Some((known, number(count)?))
    };
    let place = |text: &str| -> Option<Place> {
        let (what, rest) = text.split_once(':')?;
        let what = match what {
            "act" => What::Act,
            "undo" => What::Undo,
            "verify" => What::Verify,
            _ => return operation(text).map(|(operation, count)| Place::Store(operation, count)),
        };
        let (step, count) = last(rest)?;
        Some(Place::Call(step, what, number(&count)?))
    };
    Some(match name {
        "reject" => Fault::Reject(rest.to_owned()),
        "late" => Fault::Late(rest.to_owned()),
        "twice" => Fault::Twice,
        "lose" => {
            let (rest, how_often) = last(rest)?;
            let (step, loss) = last(&rest)?;
            let loss = match &*loss {
                "error" => Loss::Error,
                "timeout" => Loss::Timeout,
                "panic" => Loss::Panic,
                _ => return None,
            };
            Fault::Lose(step, loss, often(&how_often)?)
        }
        "drop" => {
            let (step, how_often) = last(rest)?;
            Fault::Drop(step, often(&how_often)?)
        }
        "refuse" => {
            let (step, how_often) = last(rest)?;
            Fault::Refuse(step, often(&how_often)?)
        }
        "crash" => {
            let (at, when) = last(rest)?;
            Fault::Crash(place(&at)?, edge(&when)?)
        }
        "pause" => {
            let (at, when) = last(rest)?;
            Fault::Pause(place(&at)?, edge(&when)?)
        }
        "ask" => {
            let (order, rest) = rest.split_once(':')?;
            let order = Ordered::ALL.into_iter().find(|known| known.as_str() == order)?;
            let (at, when) = last(rest)?;
            Fault::Ask(order, place(&at)?, edge(&when)?)
        }
        "unsynced" => {
            let (operation, count) = operation(rest)?;
            Fault::Unsynced(operation, count)
        }
        "store" => {
            let (at, when) = last(rest)?;
            let (operation, count) = operation(&at)?;
            Fault::Store(operation, count, edge(&when)?)
        }
        _ => return None,
    })
}

#[cfg(all(test, not(mainstay_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read_as_it_was_written() {
        let call = Place::Call("a:b/c".to_owned(), What::Undo, 3);
        let case = Case(vec![
            Fault::Reject("a:b".to_owned()),
            Fault::Lose("x".to_owned(), Loss::Panic, true),
            Fault::Drop("x".to_owned(), false),
            Fault::Late("x".to_owned()),
            Fault::Refuse("x".to_owned(), true),
            Fault::Twice,
            Fault::Crash(call.clone(), Edge::After),
            Fault::Crash(Place::Store(Operation::Append, 7), Edge::Before),
            Fault::Crash(Place::Store(Operation::Leave, 0), Edge::After),
            Fault::Unsynced(Operation::Claim, 2),
            Fault::Store(Operation::Append, 1, Edge::After),
            Fault::Pause(call.clone(), Edge::Before),
            Fault::Ask(Ordered::Undone, call, Edge::After),
        ]);
        assert_eq!(case.to_string().parse::<Case>(), Ok(case));
        assert_eq!("happy".parse::<Case>(), Ok(Case::default()));
        for text in ["", "reject", "crash(append:x:after)", "lose(a:b:c)", "crash(call:1:before)"] {
            assert!(text.parse::<Case>().is_err(), "{text}");
        }
    }
}
