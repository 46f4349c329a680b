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

use crate::{Error, command::What};

/// How often the saga is looked at while its owner is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// What became of a request.
#[derive(Debug)]
pub enum Told {
    /// It is this record of the saga, which then stands there.
    Recorded(u64, Head),
    /// It was looked at where the saga stands, and cannot be followed.
    Refused(Head),
    /// Nobody has looked at it yet.
    Left(Head),
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
            Told::Left(head) => {
                let owner = match &head.owner {
                    Some(owner) => format!("its owner {owner} has not taken it up yet"),
                    None => "no orchestrator has taken it up yet".to_owned(),
                };
                writeln!(out, "left; {owner}. It stays, and is obeyed when one does")?;
                Ok(ExitCode::from(3))
            }
            Told::Refused(head) => {
                eprintln!(
                    "mainstay-saga: refused: it cannot be followed where the saga stands: {}",
                    stands(&head)
                );
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
    if head.note.is_empty() { head.phase.to_string() } else { format!("{}: {}", head.phase, head.note) }
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
        Requested::Known => return Ok(Told::Known),
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
                return Ok(Told::Refused(then.head));
            }
        }
        if began.elapsed() >= wait {
            // Somebody has taken the saga up since, has let it go again, and left no record.
            let looked_at = now.head.owner.is_none() && now.head.epoch > before.head.epoch;
            return Ok(if looked_at { Told::Refused(now.head) } else { Told::Left(now.head) });
        }
        tokio::time::sleep(LOOK).await;
    }
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
        if entry.record().is_ok_and(|record| of_it(&record)) {
            return Some(Told::Recorded(entry.seq, now.head.clone()));
        }
    }
    now.head.phase.is_terminal().then_some(Told::Over(now.head.phase))
}
