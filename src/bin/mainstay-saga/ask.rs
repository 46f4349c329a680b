//! Leaves a request at a saga and looks what becomes of it. Nothing is changed from here: the saga's owner makes a record of it.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use mainstay::saga::{
    Phase, Record,
    journal::{Ask, Head, Journal, Request, Requested, Stored},
};

use crate::{
    Error,
    attention::{Attention, Trouble},
    command::What,
    look::{one_line, present},
};

/// How often the saga is looked at while its owner is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// What became of a request.
#[derive(Debug)]
pub enum Told {
    /// It is this record of the saga, which then stands there.
    Recorded(u64, Head),
    /// It was looked at where the saga stands, and cannot be followed: why, if that was recorded.
    Refused(Option<String>, Head),
    /// Nobody has looked at it yet: why not, if that is known.
    Left(String),
    /// A message with this name was left before.
    Known,
    /// The saga is over.
    Over(Phase),
}

impl Told {
    pub fn say(self, out: &mut impl Write) -> io::Result<ExitCode> {
        match self {
            Told::Recorded(seq, head) => {
                writeln!(out, "recorded as {seq}; the saga is now {}", stands(&head))?;
                Ok(ExitCode::SUCCESS)
            }
            Told::Known => {
                writeln!(out, "a message with this name was left before; nothing is changed")?;
                Ok(ExitCode::SUCCESS)
            }
            Told::Left(why) => {
                writeln!(out, "left; {why}. It stays, and is obeyed when an orchestrator can")?;
                Ok(ExitCode::from(3))
            }
            Told::Refused(why, head) => {
                let why = why.unwrap_or_else(|| "it cannot be followed where the saga stands".to_owned());
                eprintln!("mainstay-saga: refused: {}; the saga is {}", one_line(&why), stands(&head));
                Ok(ExitCode::FAILURE)
            }
            Told::Over(phase) => {
                eprintln!("mainstay-saga: refused: the saga is over, {phase}");
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

fn stands(head: &Head) -> String {
    if head.note.is_empty() {
        head.phase.to_string()
    } else {
        format!("{}: {}", head.phase, one_line(&head.note))
    }
}

pub async fn ask(
    store: &dyn Journal,
    before: &Stored,
    what: &What,
    by: &str,
    wait: Duration,
) -> Result<Told, Error> {
    let saga = before.head.id.clone();
    let request = match (&what.ask, &what.message) {
        (Ask::Signal { step, payload }, Some(message)) => {
            Request::signal(saga, by, step, message, payload.clone())
        }
        (Ask::Order(order), _) => Request::order(saga, by, order.clone()),
        _ => return Err("there is no such request".into()),
    };
    match store.request(request.clone()).await? {
        Requested::Left => {}
        Requested::Known => {
            // What became of it has no name in the records, but what it said.
            return Ok(match refused_before(before, &request) {
                Some(why) => Told::Refused(Some(why), before.head.clone()),
                None => Told::Known,
            });
        }
        Requested::Over(phase) => return Ok(Told::Over(phase)),
        _ => return Err(format!("there is no saga {}", request.saga).into()),
    }
    let began = Instant::now();
    loop {
        let now = load(store, &request).await?;
        if let Some(told) = became(&now, before, &request) {
            return Ok(told);
        }
        // An owner that does not have it among its requests has answered it, if there is no record of it even then.
        let answered = match &now.head.owner {
            Some(owner) => !store.requests(owner).await?.iter().any(|waiting| waiting.id == request.id),
            None => false,
        };
        if answered {
            let then = load(store, &request).await?;
            if let Some(told) = became(&then, before, &request) {
                return Ok(told);
            }
            if (&then.head.owner, then.head.epoch) == (&now.head.owner, now.head.epoch) {
                return Ok(Told::Refused(None, then.head));
            }
        }
        if began.elapsed() >= wait {
            // Somebody has taken the saga up since, has let it go again, and left no record: there are enough of its kind.
            let looked_at = now.head.owner.is_none() && now.head.epoch > before.head.epoch;
            // Of a message that cannot be read that is recorded once.
            let why = refused_before(before, &request);
            if looked_at || why.is_some() {
                return Ok(Told::Refused(why, now.head));
            }
            return Ok(Told::Left(why_not(store, &now).await?));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Why a message that says the same was refused, if none was accepted since.
fn refused_before(stored: &Stored, request: &Request) -> Option<String> {
    let Ask::Signal { step: to, payload: said } = &request.ask else { return None };
    let of_it = |record: Record| match record {
        Record::Refused { ask, why, .. } if ask == request.ask => Some(Some(why)),
        Record::Signalled { step, payload } if step == *to && payload == *said => Some(None),
        _ => None,
    };
    let records = stored.entries.iter().rev().filter_map(|entry| entry.record().ok());
    records.filter_map(of_it).next().flatten()
}

/// Why nobody has taken it up.
async fn why_not(store: &dyn Journal, stored: &Stored) -> Result<String, Error> {
    let present = present(store).await?;
    Ok(match (present.of(stored), &stored.head.owner) {
        (Some(Attention { trouble: Trouble::Stuck | Trouble::Parked | Trouble::Overdue, .. }), None)
        | (None, None) => "no orchestrator has taken it up yet".to_owned(),
        (Some(Attention { trouble: Trouble::Damaged | Trouble::Blocked, why }), _) => {
            format!("the saga is blocked, so that only `abandon` is obeyed: {}", one_line(&why))
        }
        (Some(Attention { trouble: Trouble::Orphaned | Trouble::Unknown | Trouble::Idle, why }), _) => {
            one_line(&why)
        }
        (_, Some(owner)) => {
            format!("its owner {owner} ({}) has not taken it up yet", present.owner(&stored.head))
        }
    })
}

async fn load(store: &dyn Journal, request: &Request) -> Result<Stored, Error> {
    store.load(&request.saga).await?.ok_or_else(|| format!("saga {} was forgotten", request.saga).into())
}

/// What the records since then say of the request.
fn became(now: &Stored, before: &Stored, request: &Request) -> Option<Told> {
    let new = now.entries.iter().filter(|entry| entry.seq >= before.head.len);
    let of_it = |record: &Record| match (record, &request.ask) {
        (Record::Ordered { by, order, .. }, Ask::Order(asked)) => *by == request.by && order == asked,
        (Record::Signalled { step, payload }, Ask::Signal { step: to, payload: said }) => {
            step == to && payload == said
        }
        _ => false,
    };
    for entry in new {
        match entry.record() {
            Ok(Record::Refused { by, ask, why }) if by == request.by && ask == request.ask => {
                return Some(Told::Refused(Some(why), now.head.clone()));
            }
            Ok(record) if of_it(&record) => return Some(Told::Recorded(entry.seq, now.head.clone())),
            _ => {}
        }
    }
    now.head.phase.is_terminal().then_some(Told::Over(now.head.phase))
}
