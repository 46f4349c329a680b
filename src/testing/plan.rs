//! Which runs there are: what can go wrong on top of what was seen in a run.

use super::{
    case::{Case, Edge, Fault, Ordered, Place},
    evidence::What,
    seen::Seen,
};
use crate::saga::memory::Operation;

const EDGES: [Edge; 2] = [Edge::Before, Edge::After];

/// What can go wrong on top of what was seen.
pub(super) fn faults_in(base: &Seen) -> Vec<Case> {
    let mut cases = vec![base.case.and(Fault::Twice)];
    for place in base.places.iter().filter(|place| !is_repeated(place)) {
        cases.extend(crashes_at(base, place));
        if is_of_saga(place) {
            let passed = EDGES.into_iter().filter(|edge| passes(base, place, *edge));
            cases.extend(passed.map(|edge| base.case.and(Fault::Pause(place.clone(), edge))));
        }
        match place {
            Place::Store(Operation::Append, number) => {
                cases.extend(EDGES.map(|edge| base.case.and(Fault::Store(Operation::Append, *number, edge))));
            }
            Place::Call(step, What::Undo, 0) => {
                cases.push(base.case.and(Fault::Refuse(step.clone(), false)));
                cases.push(base.case.and(Fault::Refuse(step.clone(), true)));
            }
            _ => {}
        }
    }
    cases
}

/// What can go wrong in the claims with which a saga is taken over that has just begun, and in the first call behind them; none, when that is
/// not what has gone wrong.
pub(super) fn claims_behind(seen: &Seen) -> Vec<Case> {
    let begun = Fault::Crash(Place::Store(Operation::Append, 0), Edge::After);
    if seen.case.0.last() != Some(&begun) {
        return Vec::new();
    }
    let mut cases = Vec::new();
    let places = behind(seen);
    let called = places.iter().find(|place| matches!(place, Place::Call(..)));
    cases.extend(called.into_iter().flat_map(|place| crashes_at(seen, place)));
    for place in places {
        let Place::Store(Operation::Claim, number) = place else { continue };
        cases.extend(crashes_at(seen, place));
        for edge in EDGES {
            cases.push(seen.case.and(Fault::Store(Operation::Claim, *number, edge)));
            cases.push(seen.case.and(Fault::Pause(place.clone(), edge)));
        }
    }
    cases
}

/// Whether a place is in the course of the saga, not in what the orchestrator does whether there are any or not.
fn is_of_saga(place: &Place) -> bool {
    matches!(place, Place::Store(Operation::Append, _) | Place::Call(..))
}

/// Whether a call is one of many that differ in nothing.
pub(super) fn is_repeated(place: &Place) -> bool {
    matches!(place, Place::Call(_, _, number) if *number > 3)
}

/// Whether a run passes this edge of a place, with what goes wrong in it: what nobody answers is not passed, nor what nobody waits for any more.
fn passes(seen: &Seen, place: &Place, edge: Edge) -> bool {
    let Place::Call(step, what, number) = place else { return true };
    if edge == Edge::Before {
        return true;
    }
    let mut calls =
        seen.calls.iter().filter(|call| call.step == *step && call.what == *what && !call.redelivered);
    let answered = calls.nth(*number as usize).is_some_and(|call| call.ended.is_some());
    let kept = *what == What::Act
        && seen.case.0.iter().any(|fault| match fault {
            Fault::Reject(of) | Fault::Late(of) => of == step,
            Fault::Drop(of, always) => of == step && (*always || *number == 0),
            _ => false,
        });
    answered && !kept
}

/// Every crash at a place, on top of a run: before, after, and where something is written also before it is synced.
fn crashes_at(seen: &Seen, place: &Place) -> Vec<Case> {
    let case = &seen.case;
    let passed = EDGES.into_iter().filter(|edge| passes(seen, place, *edge));
    let mut cases: Vec<Case> = passed.map(|edge| case.and(Fault::Crash(place.clone(), edge))).collect();
    if let Place::Store(operation, number) = place {
        cases.push(case.and(Fault::Unsynced(*operation, *number)));
    }
    cases
}

/// The places behind the last crash of a run.
fn behind(seen: &Seen) -> &[Place] {
    let last = seen.case.0.iter().rev().find_map(|fault| match fault {
        Fault::Crash(place, _) => Some(place.clone()),
        Fault::Unsynced(operation, number) => Some(Place::Store(*operation, *number)),
        _ => None,
    });
    let at = last.and_then(|last| seen.places.iter().position(|place| *place == last));
    at.map_or(&[], |at| &seen.places[at + 1..])
}

/// The crashes behind the last crash of a run: while it recovers.
pub fn crashes_behind(seen: &Seen) -> Vec<Case> {
    let places = behind(seen).iter().filter(|place| !is_repeated(place));
    places.flat_map(|place| crashes_at(seen, place)).collect()
}

/// Every order at every append and every call of a run, where it makes sense.
pub fn orders_in(seen: &Seen) -> Vec<Case> {
    let mut cases = Vec::new();
    for place in seen.places.iter().filter(|place| is_of_saga(place) && !is_repeated(place)) {
        for edge in EDGES {
            let of_step = |order: &Ordered| matches!(order, Ordered::Reject | Ordered::Undone);
            let called = matches!(place, Place::Call(..));
            let orders = Ordered::ALL.into_iter().filter(|order| called || !of_step(order));
            if passes(seen, place, edge) {
                cases.extend(orders.map(|order| seen.case.and(Fault::Ask(order, place.clone(), edge))));
            }
        }
    }
    cases
}

/// Every crash, and every power cut between writing and syncing, on top of a run.
pub fn crashes_in(seen: &Seen) -> Vec<Case> {
    let places = seen.places.iter().filter(|place| !is_repeated(place));
    places.flat_map(|place| crashes_at(seen, place)).collect()
}
