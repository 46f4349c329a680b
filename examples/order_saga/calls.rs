//! What the services were asked and what they said, as they saw it: the evidence that the orchestrators have no hand in.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mainstay::{
    saga::Key,
    testing::{Call, Said, What},
};
use rusqlite::{Connection, params};

use crate::Error;

/// One book for all services, so that its lines have one order.
#[derive(Debug, Clone)]
pub struct Calls(Arc<Mutex<Connection>>);

/// What is asked of a service.
#[derive(Debug, Clone)]
pub struct Request {
    pub what: What,
    /// Which step, whatever the key says.
    pub step: String,
    pub key: Key,
    pub epoch: u64,
}

impl Calls {
    pub fn open(data: &Path) -> Result<Self, Error> {
        let book = Connection::open(data.join("calls.db"))?;
        book.busy_timeout(Duration::from_secs(10))?;
        // What was handed to the system survives the process; that the power fails is not tried here.
        book.execute_batch(
            "pragma journal_mode = wal; pragma synchronous = off;
             create table if not exists line (at integer primary key, saga text, step text, what text, key text,
                 epoch integer, call integer, said text) strict;
             create index if not exists answer_to on line (call);",
        )?;
        Ok(Calls(Arc::new(Mutex::new(book))))
    }

    /// Before anything is done; the call's number.
    pub fn asked(&self, request: &Request) -> rusqlite::Result<i64> {
        let Request { what, step, key, epoch } = request;
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.prepare_cached(
            "insert into line (saga, step, what, key, epoch) values (?1, ?2, ?3, ?4, ?5) returning at",
        )?
        .query_row(
            params![
                key.saga().as_str(),
                step,
                what.as_str(),
                key.to_string(),
                i64::try_from(*epoch).unwrap_or(i64::MAX)
            ],
            |row| row.get(0),
        )
    }

    /// When it is done, and before anybody hears of it.
    pub fn answered(&self, call: i64, said: Said) -> rusqlite::Result<()> {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let word = match said {
            Said::Done => "done",
            Said::Nothing => "nothing",
            Said::Unknown => "unknown",
        };
        book.prepare_cached("insert into line (call, said) values (?1, ?2)")?.execute(params![call, word])?;
        Ok(())
    }

    /// All of them by saga, each saga's in their order.
    pub fn all(&self) -> Result<HashMap<String, Vec<Call>>, Error> {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = book.prepare(
            "select asked.saga, asked.step, asked.what, asked.key, asked.epoch, asked.at, answer.at, answer.said
             from line asked left join line answer on answer.call = asked.at
             where asked.call is null order by asked.at",
        )?;
        let mut rows = lines.query([])?;
        let mut calls: HashMap<String, Vec<Call>> = HashMap::new();
        while let Some(row) = rows.next()? {
            let what = match row.get_ref(2)?.as_str()? {
                "act" => What::Act,
                "undo" => What::Undo,
                _ => What::Verify,
            };
            let number = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
            let ended = match row.get::<_, Option<String>>(7)?.as_deref() {
                None => None,
                Some("done") => Some((number(6)?, Said::Done)),
                Some("nothing") => Some((number(6)?, Said::Nothing)),
                Some(_) => Some((number(6)?, Said::Unknown)),
            };
            calls.entry(row.get(0)?).or_default().push(Call {
                step: row.get(1)?,
                what,
                key: row.get(3)?,
                epoch: number(4)?,
                redelivered: false,
                // A service cannot know how far the orchestrator's journal was.
                durable: None,
                began: number(5)?,
                ended,
            });
        }
        Ok(calls)
    }
}
