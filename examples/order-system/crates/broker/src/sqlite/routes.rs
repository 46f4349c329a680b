//! The topology in its tables, and as the writer remembers it.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::store::{Result, from_json, to_json};
use crate::{Queue, Topology};

/// The topology as this process last read it.
#[derive(Default)]
pub(super) struct Routes {
    version: i64,
    queues: Vec<(i64, Queue)>,
    by_topic: HashMap<String, Vec<i64>>,
}

impl Routes {
    /// Reads the topology again if it has changed.
    pub(super) fn refresh(&mut self, conn: &Connection) -> Result<()> {
        let version = conn.prepare_cached("SELECT version FROM exchange")?.query_row([], |row| row.get(0))?;
        if version != self.version {
            let queues = queues(conn)?;
            *self = Self { version, queues, by_topic: HashMap::new() };
        }
        Ok(())
    }

    /// Whether anybody has declared anything: what is declared has an exchange.
    pub(super) fn declared(&self) -> bool {
        self.version != 0
    }

    pub(super) fn id(&self, name: &str) -> Option<i64> {
        self.queues.iter().find(|(_, queue)| queue.name == name).map(|(id, _)| *id)
    }

    pub(super) fn settings(&self, id: i64) -> Option<&Queue> {
        self.queues.iter().find(|(known, _)| *known == id).map(|(_, queue)| queue)
    }

    pub(super) fn of(&mut self, topic: &str) -> &[i64] {
        // Topics are few, but they are the publishers' to choose: a careless one must not fill the memory.
        if self.by_topic.len() > 10_000 {
            self.by_topic.clear();
        }
        if !self.by_topic.contains_key(topic) {
            let wanted = self.queues.iter().filter(|(_, queue)| queue.wants(topic)).map(|(id, _)| *id);
            self.by_topic.insert(topic.to_owned(), wanted.collect());
        }
        &self.by_topic[topic]
    }
}

fn queues(conn: &Connection) -> Result<Vec<(i64, Queue)>> {
    conn.prepare_cached("SELECT id, settings FROM queues ORDER BY id")?
        .query_map([], |row| Ok((row.get(0)?, from_json(row, 1)?)))?
        .collect()
}

pub(super) fn topology(conn: &Connection) -> Result<Topology> {
    let exchange = conn.query_row("SELECT name FROM exchange", [], |row| row.get(0))?;
    let queues = queues(conn)?.into_iter().map(|(_, queue)| queue).collect();
    Ok(Topology { exchange, queues })
}

pub(super) fn queue_id(conn: &Connection, name: &str) -> Result<Option<i64>> {
    conn.prepare_cached("SELECT id FROM queues WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()
}

pub(super) fn declare(conn: &Connection, wanted: &Topology) -> Result<()> {
    let before = topology(conn)?;
    let mut after = before.clone();
    after.merge(wanted);
    // Each service declares at its start. Where that changes nothing nobody needs to read anything again.
    if after == before {
        return Ok(());
    }
    conn.execute("UPDATE exchange SET name = ?1, version = version + 1", [&after.exchange])?;
    for queue in &after.queues {
        conn.execute(
            "INSERT INTO queues (name, settings) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET settings = excluded.settings",
            params![queue.name, to_json(queue)?],
        )?;
    }
    Ok(())
}
