//! Which runs there are: what can go wrong on top of what was seen in a run.

use super::{
    case::{Case, Edge, Fault, Ordered, Place},
    evidence::What,
    seen::Seen,
};

/// What can go wrong on top of what was seen.
pub(super) fn faults_in(base: &Seen) -> Vec<Case> {
    let mut cases = vec![base.case.and(Fault::Twice)];
    for place in base.places.iter().filter(|place| !is_repeated(place)) {
        for edge in [Edge::Before, Edge::After] {
            let crash = base.case.and(Fault::Crash(place.clone(), edge));
            // What nobody answers is not passed.
            if crashes(&base.case, place, edge) {
                cases.push(crash);
                cases.push(base.case.and(Fault::Pause(place.clone(), edge)));
            }
        }
        match place {
            Place::Append(number) => {
                cases.push(base.case.and(Fault::Unsynced(*number)));
                for edge in [Edge::Before, Edge::After] {
                    cases.push(base.case.and(Fault::Store(*number, edge)));
                    let lost = base.case.and(Fault::Crash(place.clone(), Edge::After));
                    if place == &Place::Append(0) {
                        // The claims of the first life come first.
                        cases.push(lost.and(Fault::Claim(base.claims.min(1), edge)));
                    }
                }
            }
            Place::Call(step, What::Undo, 0) => {
                cases.push(base.case.and(Fault::Refuse(step.clone(), false)));
                cases.push(base.case.and(Fault::Refuse(step.clone(), true)));
            }
            Place::Call(..) => {}
        }
    }
    cases
}

/// Whether a call is one of many that differ in nothing.
fn is_repeated(place: &Place) -> bool {
    matches!(place, Place::Call(_, _, number) if *number > 3)
}

/// Whether a run passes this edge of a call, with what goes wrong in it.
fn crashes(case: &Case, place: &Place, edge: Edge) -> bool {
    let Place::Call(step, What::Act, number) = place else { return true };
    edge == Edge::Before
        || !case.0.iter().any(|fault| match fault {
            Fault::Reject(of) | Fault::Late(of) => of == step,
            Fault::Drop(of, always) => of == step && (*always || *number == 0),
            _ => false,
        })
}

/// The crashes behind the last fault of a run: while it recovers.
pub fn crashes_behind(seen: &Seen) -> Vec<Case> {
    let last = seen.case.0.iter().rev().find_map(|fault| match fault {
        Fault::Crash(place, _) => Some(place.clone()),
        Fault::Unsynced(number) => Some(Place::Append(*number)),
        _ => None,
    });
    let Some(at) = last.and_then(|last| seen.places.iter().position(|place| *place == last)) else {
        return Vec::new();
    };
    let behind = &seen.places[at + 1..];
    let edges = [Edge::Before, Edge::After];
    behind
        .iter()
        .filter(|place| !is_repeated(place))
        .flat_map(|place| edges.map(|edge| (place, edge)))
        .filter(|(place, edge)| crashes(&seen.case, place, *edge))
        .map(|(place, edge)| seen.case.and(Fault::Crash(place.clone(), edge)))
        .collect()
}

/// Every order at every place of a run, where it makes sense.
pub fn orders_in(seen: &Seen) -> Vec<Case> {
    let mut cases = Vec::new();
    for place in seen.places.iter().filter(|place| !is_repeated(place)) {
        for edge in [Edge::Before, Edge::After] {
            let of_step = |order: &Ordered| matches!(order, Ordered::Reject | Ordered::Undone);
            let called = matches!(place, Place::Call(..));
            let orders = Ordered::ALL.into_iter().filter(|order| called || !of_step(order));
            if crashes(&seen.case, place, edge) {
                cases.extend(orders.map(|order| seen.case.and(Fault::Ask(order, place.clone(), edge))));
            }
        }
    }
    cases
}

/// Every crash, and every power cut between writing and syncing, on top of a run.
pub fn crashes_in(seen: &Seen) -> Vec<Case> {
    let mut cases = Vec::new();
    for place in seen.places.iter().filter(|place| !is_repeated(place)) {
        for edge in [Edge::Before, Edge::After] {
            if crashes(&seen.case, place, edge) {
                cases.push(seen.case.and(Fault::Crash(place.clone(), edge)));
            }
        }
        if let Place::Append(number) = place {
            cases.push(seen.case.and(Fault::Unsynced(*number)));
        }
    }
    cases
}
