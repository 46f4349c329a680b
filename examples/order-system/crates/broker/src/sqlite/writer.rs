//! The thread that writes: whatever has been asked for meanwhile becomes one transaction.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::local::{Local, Member};
use super::routes::{self, Routes};
use super::store::{self, Claim, Result};
use super::{Claimed, failed};
use crate::{BrokerError, Fate, Message, PublishError, Settlement, Topology, Which, unix_ms};

type Reply<T> = oneshot::Sender<std::result::Result<T, BrokerError>>;

/// What the thread can be asked for.
pub(super) enum Command {
    Declare { topology: Topology, reply: Reply<()> },
    Publish { messages: Vec<Message>, reply: oneshot::Sender<Vec<std::result::Result<(), PublishError>>> },
    Consume { queue: String, consumer: Member, reply: Reply<()> },
    Settle { consumer: u64, claim: Claim, key: String, how: Settlement, reply: Option<Reply<Fate>> },
    Close { consumer: u64, unseen: Vec<Claim> },
    TakeDead { queue: String, which: Which, replay: bool, reply: Reply<u64> },
    Check { reply: Reply<()> },
}

/// What a command has come to, to be answered when the transaction is committed.
enum Outcome {
    Done,
    /// What it needs is not there.
    Undeclared,
    Published(Vec<bool>),
    Consuming(i64),
    Settled(Option<Fate>),
    Taken(u64),
}

/// Enough to make the sync cheap, few enough that the first does not wait long for the last.
const MOST_COMMANDS: usize = 1024;
const MOST_MESSAGES: usize = 2048;

/// While many ask at once, transactions begin so long after each other. What comes in between shares the sync, and the pages that every
/// message changes: at 500 orders a second that saves, with the same in the journal of sagas, a seventh of what the whole system works. More saves little
/// more, and each hop waits.
const COMMIT_INTERVAL: Duration = Duration::from_millis(5);
/// How many commands of one transaction are many. Fewer come from somebody who waits for each answer, and are not held up.
const MANY: usize = 4;

/// How often the file is looked at for the work of other processes: at first, and when nothing has come for a while.
const FIRST_POLL_MS: u64 = 1;
const LAST_POLL_MS: u64 = 20;

/// After a failed transaction, which the disk or a long foreign lock has caused.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

pub(super) struct Writer {
    conn: Connection,
    commands: Receiver<Command>,
    routes: Routes,
    locals: Vec<Local>,
    /// Answers that could not be written yet. Nobody else will give them, so they are tried until they are.
    owed: Vec<Command>,
    data_version: i64,
    poll_ms: u64,
    failing: bool,
    pace: Pace,
}

/// When a transaction may begin.
#[derive(Default)]
struct Pace {
    /// Unless one may at any time.
    next: Option<Instant>,
}

impl Pace {
    /// One begins, with so many commands.
    fn begin(&mut self, now: Instant, commands: usize) {
        self.next = (commands >= MANY).then(|| now + COMMIT_INTERVAL);
    }

    fn rest(&self, now: Instant) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }
}

impl Writer {
    pub(super) fn new(conn: Connection, commands: Receiver<Command>) -> Self {
        Self {
            conn,
            commands,
            routes: Routes::default(),
            locals: Vec::new(),
            owed: Vec::new(),
            data_version: 0,
            poll_ms: FIRST_POLL_MS,
            failing: false,
            pace: Pace::default(),
        }
    }

    /// Works until nobody is left who could ask for anything.
    pub(super) fn run(mut self) {
        while let Some(asked) = self.wait() {
            let mut commands = std::mem::take(&mut self.owed);
            let polled = commands.is_empty() && asked.is_empty();
            commands.extend(asked);
            if polled && !self.look_around() {
                continue;
            }
            match self.transact(&mut commands) {
                Ok((outcomes, claimed)) => {
                    self.failing = false;
                    for (command, outcome) in commands.into_iter().zip(outcomes) {
                        self.answer(command, outcome);
                    }
                    for (local, consumer, claimed) in claimed {
                        if let Err(claim) = self.locals[local].send(consumer, claimed) {
                            self.owed.push(Command::Close { consumer, unseen: vec![claim] });
                        }
                    }
                }
                Err(error) => self.excuse(commands, &error),
            }
        }
        // Whoever still owes an answer leaves its entry to expire, so that the message returns.
        for local in self.locals.iter().filter(|local| local.is_empty()) {
            drop(store::let_go(&self.conn, local.holder()));
        }
    }

    /// What was asked for, as soon as there is something or it is time to look around. `None` at the end.
    fn wait(&mut self) -> Option<Vec<Command>> {
        let mut commands = Vec::new();
        match self.commands.recv_timeout(self.patience()) {
            Ok(command) => {
                commands.push(command);
                std::thread::sleep(self.pace.rest(Instant::now()));
            }
            Err(RecvTimeoutError::Timeout) => return Some(commands),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
        let mut messages = 0;
        while commands.len() < MOST_COMMANDS && messages < MOST_MESSAGES {
            if let Some(Command::Publish { messages: more, .. }) = commands.last() {
                messages += more.len();
            }
            let Ok(command) = self.commands.try_recv() else { break };
            commands.push(command);
        }
        self.pace.begin(Instant::now(), commands.len());
        Some(commands)
    }

    fn patience(&self) -> Duration {
        if self.failing {
            return AFTER_FAILURE;
        }
        let now = unix_ms();
        if !self.owed.is_empty() || self.locals.iter().any(|local| local.wants_work(now)) {
            return Duration::ZERO;
        }
        let next = self.locals.iter().map(Local::next_time).min().unwrap_or(u64::MAX);
        let poll = if self.locals.iter().any(|local| local.room() > 0) { self.poll_ms } else { u64::MAX };
        // Capped, since the clock that `next` is of may be set.
        Duration::from_millis(next.saturating_sub(now).min(poll).min(60_000))
    }

    /// Whether there is something to do although nobody asked. Takes no lock.
    fn look_around(&mut self) -> bool {
        match look_for_others(&self.conn, &mut self.locals, &mut self.data_version) {
            Ok(true) => self.poll_ms = FIRST_POLL_MS,
            Ok(false) => self.poll_ms = (self.poll_ms * 2).min(LAST_POLL_MS),
            Err(error) => tracing::warn!(%error, "cannot look into the broker's file"),
        }
        let now = unix_ms();
        let work = self.locals.iter().any(|local| local.wants_work(now));
        self.failing &= work;
        work
    }

    /// Does what the commands say, then what the consumers here need, and commits.
    #[allow(clippy::type_complexity)] // Used once, and a name would say no more.
    fn transact(&mut self, commands: &mut [Command]) -> Result<(Vec<Outcome>, Vec<(usize, u64, Claimed)>)> {
        let Self { conn, routes, locals, data_version, .. } = self;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        routes.refresh(&tx)?;
        let mut counted = Vec::new();
        let done = (|| {
            // Also when commands come without a pause: others must not wait for one.
            look_for_others(&tx, locals, data_version)?;
            let mut outcomes = Vec::with_capacity(commands.len());
            for command in commands.iter() {
                outcomes.push(apply(&tx, routes, locals, command, &mut counted)?);
            }
            let now = unix_ms();
            let mut all = Vec::new();
            for (n, local) in locals.iter_mut().enumerate() {
                for (consumer, claimed) in local.work(&tx, routes, now)? {
                    counted.push((n, consumer, 1));
                    all.push((n, consumer, claimed));
                }
            }
            tx.commit()?;
            Ok((outcomes, all))
        })();
        if done.is_err() {
            // Nothing of it has happened: what was counted is counted back, and everything is to be looked at again.
            for (local, consumer, change) in counted {
                locals[local].count(consumer, -change);
            }
            for local in locals {
                local.dirty = true;
                local.next_beat = 0;
            }
            *routes = Routes::default();
        }
        done
    }

    fn answer(&mut self, command: Command, outcome: Outcome) {
        match (command, outcome) {
            (
                Command::Declare { reply, .. } | Command::Check { reply } | Command::Consume { reply, .. },
                Outcome::Done,
            ) => drop(reply.send(Ok(()))),
            (Command::Consume { consumer, reply, .. }, Outcome::Consuming(queue)) => {
                let local = self.locals.iter_mut().find(|local| local.queue == queue);
                local.expect("`apply` has registered it").join(consumer);
                drop(reply.send(Ok(())));
            }
            (Command::Publish { messages, reply }, Outcome::Published(routed)) => {
                let results = messages.into_iter().zip(routed).map(|(message, routed)| {
                    if routed { Ok(()) } else { Err(PublishError::Unroutable { topic: message.topic }) }
                });
                drop(reply.send(results.collect()));
            }
            (Command::Publish { messages, reply }, _) => {
                drop(reply.send(vec![Err(BrokerError::NoExchange.into()); messages.len()]));
            }
            (Command::Settle { reply: Some(reply), .. }, Outcome::Settled(fate)) => {
                drop(reply.send(fate.ok_or(BrokerError::Lost)));
            }
            (Command::TakeDead { reply, .. }, Outcome::Taken(count)) => drop(reply.send(Ok(count))),
            (Command::Consume { queue, reply, .. }, _) => {
                drop(reply.send(Err(BrokerError::UnknownQueue(queue))));
            }
            (Command::TakeDead { queue, reply, .. }, _) => {
                drop(reply.send(Err(BrokerError::UnknownQueue(queue))));
            }
            _ => {}
        }
        for local in &mut self.locals {
            local.forget_closed();
        }
    }

    /// The transaction failed, and with it each of its commands.
    fn excuse(&mut self, commands: Vec<Command>, error: &rusqlite::Error) {
        tracing::warn!(%error, commands = commands.len(), "the broker's file took nothing");
        self.failing = true;
        let error = failed(error);
        for command in commands {
            match command {
                Command::Declare { reply, .. }
                | Command::Check { reply }
                | Command::Consume { reply, .. } => {
                    drop(reply.send(Err(error.clone())));
                }
                Command::Publish { messages, reply } => {
                    drop(reply.send(vec![Err(PublishError::Unconfirmed(error.clone())); messages.len()]));
                }
                Command::TakeDead { reply, .. } => drop(reply.send(Err(error.clone()))),
                Command::Settle { consumer, claim, key, how, reply } => {
                    if let Some(reply) = reply {
                        drop(reply.send(Err(error.clone())));
                    }
                    self.owed.push(Command::Settle { consumer, claim, key, how, reply: None });
                }
                Command::Close { .. } => self.owed.push(command),
            }
        }
    }
}

/// Whether somebody else has committed since the last look. If so, notes what there is to claim.
fn look_for_others(conn: &Connection, locals: &mut [Local], known: &mut i64) -> Result<bool> {
    let version = store::data_version(conn)?;
    if version == *known {
        return Ok(false);
    }
    *known = version;
    for local in locals.iter_mut().filter(|local| local.room() > 0) {
        local.look(conn)?;
    }
    Ok(true)
}

/// Does one command within the transaction. What it changes in the counts of `locals` is noted in `counted`.
fn apply(
    tx: &Connection,
    known: &mut Routes,
    locals: &mut Vec<Local>,
    command: &Command,
    counted: &mut Vec<(usize, u64, isize)>,
) -> Result<Outcome> {
    Ok(match command {
        Command::Check { .. } => Outcome::Done,
        Command::Declare { topology, .. } => {
            routes::declare(tx, topology)?;
            known.refresh(tx)?;
            Outcome::Done
        }
        Command::Publish { .. } if !known.declared() => Outcome::Undeclared,
        Command::Publish { messages, .. } => {
            let mut routed = Vec::with_capacity(messages.len());
            for message in messages {
                let queues = store::publish(tx, known, message)?;
                routed.push(!queues.is_empty());
                locals
                    .iter_mut()
                    .filter(|local| queues.contains(&local.queue))
                    .for_each(|local| local.dirty = true);
            }
            Outcome::Published(routed)
        }
        Command::Consume { queue, .. } => match known.id(queue) {
            None => Outcome::Undeclared,
            Some(id) => {
                if !locals.iter().any(|local| local.queue == id) {
                    locals.push(Local::new(id));
                }
                Outcome::Consuming(id)
            }
        },
        Command::Settle { consumer, claim, key, how, .. } => {
            let fate = match known.settings(claim.queue) {
                Some(settings) => store::settle(tx, settings, claim, key, how)?,
                None => None,
            };
            if let Some(n) = locals.iter().position(|local| local.queue == claim.queue) {
                locals[n].count(*consumer, -1);
                counted.push((n, *consumer, -1));
                // There is room for another one now, which may have come unnoticed while there was none.
                locals[n].dirty = true;
                if let Some(Fate::Again(wait)) = fate
                    && !wait.is_zero()
                {
                    locals[n].expect_at(unix_ms().saturating_add(store::millis(wait)));
                }
            }
            Outcome::Settled(fate)
        }
        Command::Close { consumer, unseen } => {
            for claim in unseen {
                store::unclaim(tx, claim)?;
            }
            for (n, local) in locals.iter_mut().enumerate() {
                if local.member(*consumer).is_some() {
                    let change = -(unseen.len() as isize);
                    local.close(*consumer);
                    local.count(*consumer, change);
                    local.dirty = true;
                    counted.push((n, *consumer, change));
                }
            }
            Outcome::Done
        }
        Command::TakeDead { queue, which, replay, .. } => match known.id(queue) {
            None => Outcome::Undeclared,
            Some(id) => {
                let taken = store::take_dead(tx, id, which, *replay)?;
                locals.iter_mut().filter(|local| local.queue == id).for_each(|local| local.dirty = true);
                Outcome::Taken(taken)
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crowd_waits_for_the_next_transaction() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let half = COMMIT_INTERVAL / 2;
        assert_eq!(pace.rest(now), Duration::ZERO);
        pace.begin(now, MANY);
        assert_eq!(pace.rest(now), COMMIT_INTERVAL);
        assert_eq!(pace.rest(now + half), half);
        assert_eq!(pace.rest(now + 2 * COMMIT_INTERVAL), Duration::ZERO);
        pace.begin(now + half, MANY - 1);
        assert_eq!(pace.rest(now + half), Duration::ZERO);
    }
}
