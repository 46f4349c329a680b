//! Records, calls and effects of every saga before the checker of the invariants, which knows nothing of the machine that made them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
};

use mainstay::{
    saga::{SagaId, journal::Journal, view::Timeline},
    testing::{Call, Evidence, Structure, check_evidence},
};
use rusqlite::Connection;

use crate::{Error, audit::Sagas, calls::Calls, saga::OrderSaga};

/// How much of what is wrong is shown.
const SHOWN: usize = 5;

/// What came of it: how many sagas and calls there were, and how many sagas break an invariant.
#[derive(Debug, Default)]
pub struct Checked {
    pub sagas: usize,
    pub calls: usize,
    /// Calls that were answered when the saga's next owner had already asked for something: of one that stood still.
    pub late: usize,
    pub wrong: usize,
}

/// Checks each saga of the store, and each that was accepted or had somebody called. `database` has the ledgers of all services.
pub async fn check(
    data: &Path,
    database: &Connection,
    store: &dyn Journal,
    order: &OrderSaga,
    sagas: &Sagas,
    accepted: &HashSet<String>,
) -> Result<Checked, Error> {
    let structure = Structure::of(order);
    let calls = Calls::open(data)?.all()?;
    let effects = effects(database)?;
    let stored = sagas.completed.iter().chain(&sagas.compensated).map(String::as_str);
    let others = sagas.others.iter().map(|head| head.id.as_str());
    let known = accepted.iter().chain(calls.keys()).map(String::as_str);
    let ids: BTreeSet<&str> = stored.chain(others).chain(known).collect();
    let mut checked = Checked::default();
    for id in ids {
        let stored = store.load(&SagaId::new(id)?).await?;
        // A ledger in which nothing is found says that nothing has happened.
        let mut net: BTreeMap<String, i64> = LEDGERS.map(|(step, _)| (step.to_owned(), 0)).into();
        net.extend(effects.get(id).cloned().unwrap_or_default());
        let evidence = Evidence {
            structure: &structure,
            stored: stored.as_ref(),
            acknowledged: accepted.contains(id),
            settled: true,
            calls: calls.get(id).map(Vec::as_slice).unwrap_or_default(),
            effects: Some(&net),
        };
        checked.sagas += 1;
        checked.calls += evidence.calls.len();
        checked.late += evidence.calls.iter().filter(|call| is_late(call, evidence.calls)).count();
        let violations = check_evidence(&evidence);
        if violations.is_empty() {
            continue;
        }
        checked.wrong += 1;
        if checked.wrong <= SHOWN {
            println!("\n{id} breaks an invariant");
            violations.iter().for_each(|violation| println!("  {violation}"));
            stored.iter().for_each(|stored| print!("{}", Timeline::of(stored)));
            evidence.calls.iter().for_each(|call| println!("  {call:?}"));
        }
    }
    Ok(checked)
}

fn is_late(call: &Call, calls: &[Call]) -> bool {
    let Some((ended, _)) = call.ended else { return false };
    calls.iter().any(|other| other.epoch > call.epoch && other.began < ended)
}

/// How often a step was done less how often it was undone, by the service's own ledger and not by its barrier. The stock keeps sums only;
/// the audit has them.
const LEDGERS: [(&str, &str); 4] = [
    ("create-order", "select id, count(*) filter (where state <> 'cancelled') from purchase group by id"),
    ("charge-card", "select purchase, sum(sign(cents)) from payments.entry group by purchase"),
    ("confirm-order", "select id, count(*) from purchase where state = 'confirmed' group by id"),
    ("send-receipt", "select purchase, count(*) from receipt group by purchase"),
];

fn effects(database: &Connection) -> Result<HashMap<String, BTreeMap<String, i64>>, Error> {
    let mut effects: HashMap<String, BTreeMap<String, i64>> = HashMap::new();
    for (step, ledger) in LEDGERS {
        let mut ledger = database.prepare(ledger)?;
        let mut rows = ledger.query([])?;
        while let Some(row) = rows.next()? {
            effects.entry(row.get(0)?).or_default().insert(step.to_owned(), row.get(1)?);
        }
    }
    Ok(effects)
}
