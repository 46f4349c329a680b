//! The protocol of leases and epochs, every state of it: two or three owners, a saga, and a clock. The store is the one in memory; an
//! owner is as stupid as it may be: it knows what it was told when it claimed, and appends whenever it likes.
//!
//! I6 is looked for in every state: no entry is accepted from anybody but the present owner, and no epoch has two authors.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use super::{
    journal::{Append, Begin, Claim, DefinitionId, Journal, Phase, Refusal, Stored},
    memory::{Image, Memory},
    record::{Cause, Entry, Incarnation, Payload, Record, SagaId, Timestamp},
};

const LEASE: Duration = Duration::from_secs(10);

/// What is wrong with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// It takes an append from anybody.
    NoFence,
    /// A claim gives the saga away under the same epoch.
    SameEpoch,
}

/// One owner: what it was told when it last got the saga, if it has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Owner {
    holds: Option<(u64, u64, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Heartbeat(usize),
    Leave(usize),
    Claim(usize),
    /// The next entry, under what the owner believes.
    Append(usize),
    /// It lets the saga go.
    Release(usize),
    /// Half a lease passes: so an owner that does nothing is one that stands still.
    Wait,
}

#[derive(Clone)]
struct State {
    image: Image,
    owners: Vec<Owner>,
}

fn definition() -> DefinitionId {
    DefinitionId { name: "lease".to_owned(), version: 1, digest: "0".to_owned() }
}

fn saga() -> SagaId {
    SagaId::new("s").unwrap()
}

fn incarnation(owner: usize) -> Incarnation {
    Incarnation::from_text(&format!("owner {owner}"))
}

fn stored(store: &Memory) -> Stored {
    store.stored(&saga()).unwrap()
}

fn append(owner: usize, epoch: u64, len: u64, crc: u32, release: bool) -> Append {
    let by = incarnation(owner);
    let record = match len {
        0 => Record::Begun { input: Payload::encode(&0).unwrap(), deadline: None },
        _ => Record::Aborted { cause: Cause::Deadline, clean: Vec::new() },
    };
    let entry = Entry::new(&saga(), len, crc, epoch, Timestamp(0), &by, &record).unwrap();
    let begin = Begin { definition: definition(), tag: String::new(), locks: Vec::new() };
    Append {
        saga: saga(),
        by,
        epoch,
        begin: (len == 0).then_some(begin),
        entries: if release { Vec::new() } else { vec![entry] },
        work: None,
        phase: Phase::Running,
        note: String::new(),
        wake: release.then_some(Timestamp(0)),
        release,
        answers: Vec::new(),
    }
}

/// The bug, as the store would have it: the append is made to look like the present owner's.
fn forge(store: &Memory, mut item: Append) -> Append {
    let Stored { head, .. } = stored(store);
    let Some(owner) = head.owner else { return item };
    let mut crc = head.crc;
    for (seq, entry) in (head.len..).zip(&mut item.entries) {
        (entry.seq, entry.epoch) = (seq, head.epoch);
        entry.crc = entry.checksum(&item.saga, crc);
        crc = entry.crc;
    }
    (item.by, item.epoch) = (owner, head.epoch);
    item
}

/// Makes a move; what is then wrong.
async fn step(bug: Bug, store: &Memory, owners: &mut [Owner], step: Move) -> Result<(), String> {
    match step {
        Move::Wait => tokio::time::sleep(LEASE / 2 + Duration::from_millis(1)).await,
        Move::Heartbeat(owner) => store.heartbeat(&incarnation(owner), LEASE).await.unwrap(),
        Move::Leave(owner) => store.leave(&incarnation(owner)).await.unwrap(),
        Move::Claim(owner) => {
            let by = incarnation(owner);
            let before = stored(store).head;
            let claim =
                Claim { by, definitions: vec![definition()], except: Vec::new(), only: None, limit: 1 };
            if let Some(taken) = store.claim(claim).await.unwrap().into_iter().next() {
                if taken.head.epoch <= before.epoch {
                    return Err(format!("claimed in epoch {} behind {}", taken.head.epoch, before.epoch));
                }
                owners[owner].holds = Some((taken.head.epoch, taken.head.len, taken.head.crc));
            }
        }
        Move::Append(owner) | Move::Release(owner) => {
            let Some((epoch, len, crc)) = owners[owner].holds else { return Ok(()) };
            let release = matches!(step, Move::Release(_));
            let before = stored(store).head;
            let item = append(owner, epoch, len, crc, release);
            let item = match bug {
                Bug::None => item,
                Bug::NoFence => forge(store, item),
                // What a claim that leaves the epoch as it is comes to: everybody writes in the first.
                Bug::SameEpoch => Append { epoch, ..append(owner, 1, len, crc, release) },
            };
            let answer = store.append(vec![item.clone()]).await.unwrap().remove(0);
            let rightful =
                before.owner == Some(incarnation(owner)) && before.epoch == epoch && before.len == len;
            match answer {
                Ok(()) if !rightful => {
                    return Err(format!(
                        "owner {owner} wrote in epoch {epoch}, the owner is {:?}",
                        before.owner
                    ));
                }
                Err(refusal) if rightful => return Err(format!("its owner was refused: {refusal}")),
                Ok(()) => {
                    owners[owner].holds = (!release)
                        .then(|| (epoch, len + 1, item.entries.last().map_or(crc, |entry| entry.crc)));
                }
                // It has learned that it is not its own any more.
                Err(Refusal::Fenced { .. } | Refusal::Gap { .. }) => owners[owner].holds = None,
                Err(refusal) => return Err(format!("unexpected: {refusal}")),
            }
        }
    }
    let found = stored(store);
    found.verify().map_err(|corrupt| corrupt.to_string())?;
    for pair in found.entries.windows(2) {
        if pair[0].epoch == pair[1].epoch && pair[0].by != pair[1].by {
            return Err(format!("epoch {} has two authors", pair[0].epoch));
        }
        if pair[0].epoch > pair[1].epoch {
            return Err("an epoch fell".to_owned());
        }
    }
    Ok(())
}

/// What tells two states apart: the head, the entries' authors, what the owners believe, and whose lease runs for how long.
fn fingerprint(store: &Memory, owners: &[Owner], moves: &[(usize, u64)], now: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Stored { head, entries } = stored(store);
    (head.epoch, &head.owner, head.len, head.wake.is_some(), owners, now).hash(&mut hasher);
    entries.iter().for_each(|entry| (entry.epoch, &entry.by).hash(&mut hasher));
    moves.hash(&mut hasher);
    hasher.finish()
}

/// Every order of moves up to `depth`, each state once; how many there were, and the first that is wrong.
fn explore(bug: Bug, count: usize, depth: usize) -> (usize, Option<String>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let store = Memory::new();
        store.heartbeat(&incarnation(0), LEASE).await.unwrap();
        store.append(vec![append(0, 1, 0, 0, false)]).await.unwrap().remove(0).unwrap();
        let head = stored(&store).head;
        let mut owners = vec![Owner { holds: None }; count];
        owners[0].holds = Some((1, head.len, head.crc));
        let mut moves = vec![Move::Wait];
        for owner in 0..count {
            moves.extend([
                Move::Heartbeat(owner),
                Move::Leave(owner),
                Move::Claim(owner),
                Move::Append(owner),
                Move::Release(owner),
            ]);
        }
        // Leases by owner, as halves of a lease that are left: the rest of the state is in the store.
        let begin = State { image: store.snapshot(), owners };
        let mut open = VecDeque::from([(
            begin,
            vec![2_u8; 1].into_iter().chain(vec![0; count - 1]).collect::<Vec<u8>>(),
            0_usize,
            Vec::new(),
        )]);
        let mut seen = HashSet::new();
        while let Some((state, leases, length, path)) = open.pop_front() {
            if length == depth {
                continue;
            }
            for &next in &moves {
                let store = Memory::restore(&state.image);
                let mut owners = state.owners.clone();
                let mut leases = leases.clone();
                match next {
                    Move::Wait => leases.iter_mut().for_each(|left| *left = left.saturating_sub(1)),
                    Move::Heartbeat(owner) => leases[owner] = 2,
                    Move::Leave(owner) => leases[owner] = 0,
                    _ => {}
                }
                let mut path: Vec<Move> = path.clone();
                path.push(next);
                if let Err(why) = step(bug, &store, &mut owners, next).await {
                    return (seen.len(), Some(format!("{why}, after {path:?}")));
                }
                let left: Vec<(usize, u64)> =
                    leases.iter().enumerate().map(|(owner, left)| (owner, u64::from(*left))).collect();
                if seen.insert(fingerprint(&store, &owners, &left, 0)) {
                    open.push_back((State { image: store.snapshot(), owners }, leases, length + 1, path));
                }
            }
        }
        (seen.len(), None)
    })
}

#[test]
fn nobody_but_the_present_owner_is_ever_heard() {
    for (owners, depth) in [(2, 8), (3, 6)] {
        let (states, wrong) = explore(Bug::None, owners, depth);
        println!("{owners} owners, {depth} moves: {states} states");
        assert_eq!(wrong, None);
        assert!(states > 1_000, "{states}");
    }
}

#[test]
fn a_store_that_does_not_fence_is_found() {
    for bug in [Bug::NoFence, Bug::SameEpoch] {
        let (_, wrong) = explore(bug, 2, 8);
        let why = wrong.unwrap_or_else(|| panic!("nothing notices {bug:?}"));
        println!("{bug:?}: {why}");
    }
}
