//! Which sagas need a person, why, and what to do about it.

use std::{fmt, time::Duration};

use mainstay::saga::{
    Phase, Record, Timestamp,
    journal::{Head, Registered, Stored},
};

/// A saga whose time has come so long ago has nobody who works on it.
const IDLE: Duration = Duration::from_secs(60);
/// An owner whose lease is over by so many leases has died, and nobody has taken over.
const LEASES: u32 = 3;

/// What is the matter with a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Damaged,
    Blocked,
    Stuck,
    Parked,
    Orphaned,
    Unknown,
    Idle,
    Overdue,
}

impl Trouble {
    /// A short stable word, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Trouble::Damaged => "damaged",
            Trouble::Blocked => "blocked",
            Trouble::Stuck => "stuck",
            Trouble::Parked => "parked",
            Trouble::Orphaned => "orphaned",
            Trouble::Unknown => "unknown definition",
            Trouble::Idle => "idle",
            Trouble::Overdue => "overdue",
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Trouble::Damaged => "look at the disk, settle the business by hand, then abandon",
            Trouble::Blocked => "deploy code that understands it, or settle the business by hand and abandon",
            Trouble::Stuck => {
                "timeline shows the error; repair the service, then retry; done by hand: undone or resolve"
            }
            Trouble::Parked => "find out what has happened, then resolve, reject, retry or cancel",
            Trouble::Orphaned => "start an orchestrator that has its definition: it takes over",
            Trouble::Unknown => "register this definition in this version with an orchestrator",
            Trouble::Idle => "start an orchestrator that has its definition",
            Trouble::Overdue => "timeline shows what it waits for; cancel or compensate turns it round",
        }
    }
}

/// What is the matter, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attention {
    pub trouble: Trouble,
    pub why: String,
}

/// How it is with the owner of a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    None,
    Alive,
    /// Its lease was over so long ago.
    Dead(Duration),
    /// Nothing is known of it any more.
    Gone,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::None => f.write_str("none"),
            Owner::Alive => f.write_str("alive"),
            Owner::Dead(time) => write!(f, "its lease ran out {} s ago", time.as_secs()),
            Owner::Gone => f.write_str("gone"),
        }
    }
}

/// Those who work on the store, and its present.
pub struct Present {
    pub now: Timestamp,
    pub orchestrators: Vec<Registered>,
}

impl Present {
    fn find(&self, head: &Head) -> Option<&Registered> {
        let owner = head.owner.as_ref()?;
        self.orchestrators.iter().find(|one| one.by == *owner)
    }

    pub fn owner(&self, head: &Head) -> Owner {
        match (&head.owner, self.find(head)) {
            (None, _) => Owner::None,
            (Some(_), None) => Owner::Gone,
            (Some(_), Some(one)) if one.until > self.now => Owner::Alive,
            (Some(_), Some(one)) => Owner::Dead(self.now.since(one.until)),
        }
    }

    fn living(&self) -> impl Iterator<Item = &Registered> {
        self.orchestrators.iter().filter(|one| one.until > self.now)
    }

    /// Why the living orchestrator that owns it, or any if nobody does, cannot work on it.
    pub fn blocked(&self, head: &Head) -> Option<&str> {
        let owned = self.owner(head) == Owner::Alive;
        let asked = self.living().filter(|one| !owned || Some(&one.by) == head.owner.as_ref());
        let named = asked.filter_map(|one| one.presence.as_ref()).flat_map(|presence| &presence.blocked);
        named.filter(|(id, _)| *id == head.id).map(|(_, why)| why.as_str()).next()
    }

    /// Why none of the living orchestrators has its definition, when all of them have said what they have.
    fn unknown(&self, head: &Head) -> Option<String> {
        let living: Option<Vec<_>> = self.living().map(|one| one.presence.as_ref()).collect();
        let living = living.filter(|living| !living.is_empty())?;
        let mut known = living.iter().flat_map(|presence| &presence.definitions);
        let wanted = &head.definition;
        if known.clone().any(|known| known == wanted) {
            return None;
        }
        let of = format!("{} v{}", wanted.name, wanted.version);
        let twin = known.find(|known| (&known.name, known.version) == (&wanted.name, wanted.version));
        Some(match twin {
            Some(twin) => format!(
                "{of} has changed: no living orchestrator has it with digest {}, but with {}",
                wanted.digest, twin.digest
            ),
            None => format!("no living orchestrator has the definition {of}"),
        })
    }

    /// What is the matter with a saga, as far as its head says.
    pub fn of_head(&self, head: &Head) -> Option<Attention> {
        let found = |trouble, why: String| Some(Attention { trouble, why });
        if head.phase.is_terminal() {
            return None;
        }
        if let Some(why) = self.blocked(head) {
            return found(Trouble::Blocked, why.to_owned());
        }
        match head.phase {
            Phase::Stuck => return found(Trouble::Stuck, head.note.clone()),
            Phase::Parked => return found(Trouble::Parked, head.note.clone()),
            _ => {}
        }
        match self.owner(head) {
            Owner::Gone => {
                return found(Trouble::Orphaned, "its owner is gone, and nobody has taken over".to_owned());
            }
            Owner::Dead(time) => {
                let lease = self.find(head).and_then(|one| one.presence.as_ref());
                let lease = lease.map_or(IDLE, |says| Duration::from_millis(says.lease_ms) * LEASES);
                if time > lease {
                    let why = format!(
                        "its owner's lease ran out {} s ago, and nobody has taken over",
                        time.as_secs()
                    );
                    return found(
                        Trouble::Orphaned,
                        self.unknown(head).map_or(why.clone(), |more| format!("{why}: {more}")),
                    );
                }
            }
            Owner::None => {
                if let Some(why) = self.unknown(head) {
                    return found(Trouble::Unknown, why);
                }
                if head.wake.is_some_and(|wake| self.now.since(wake) > IDLE) {
                    let of = format!("{} v{}", head.definition.name, head.definition.version);
                    return found(
                        Trouble::Idle,
                        format!("nobody works on it: does an orchestrator run that has {of}?"),
                    );
                }
            }
            Owner::Alive => {}
        }
        None
    }

    /// What is the matter with a saga; what is the worst of it.
    pub fn of(&self, stored: &Stored) -> Option<Attention> {
        let head = &stored.head;
        if head.phase.is_terminal() {
            return None;
        }
        if let Err(corrupt) = stored.verify() {
            return Some(Attention { trouble: Trouble::Damaged, why: corrupt.to_string() });
        }
        let unreadable = unreadable(stored).map(|why| Attention { trouble: Trouble::Blocked, why });
        unreadable.or_else(|| self.of_head(head)).or_else(|| {
            let late = self.now.since(deadline(stored)?);
            let why = format!("its deadline was {} s ago, and it is still {}", late.as_secs(), head.phase);
            (late > IDLE).then_some(Attention { trouble: Trouble::Overdue, why })
        })
    }
}

/// What is wrong with the records of a saga, as far as it can be seen without its definition.
pub fn damage(stored: &Stored) -> Option<String> {
    stored.verify().err().map(|corrupt| corrupt.to_string()).or_else(|| unreadable(stored))
}

fn unreadable(stored: &Stored) -> Option<String> {
    let found = stored.entries.iter().find_map(|entry| Some((entry.seq, entry.record().err()?)));
    found.map(|(seq, error)| format!("record {seq} cannot be read: {error}"))
}

fn deadline(stored: &Stored) -> Option<Timestamp> {
    match stored.entries.first()?.record().ok()? {
        Record::Begun { deadline, .. } => deadline,
        _ => None,
    }
}
