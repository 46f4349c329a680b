//! The connections of a PostgreSQL schema: each on a thread of its own, taking turns. One that breaks is made anew for the next work.
//!
//! Nothing is waited for without end, or six statements that hang would be all connections: the server ends a statement after
//! [`STATEMENT`], and a server that has gone without a word is noticed within [`SILENCE`].

use std::{panic::AssertUnwindSafe, rc::Rc, sync::Arc, time::Duration};

use futures::FutureExt;
use mainstay::saga::{barrier, inbox, outbox};
use tokio::sync::{
    Mutex,
    mpsc::{self, error::TrySendError},
};
use tokio_postgres::{Client, Config, IsolationLevel, NoTls, Transaction};

use super::{
    DbError, Job, Told, Tx, WAITING, refuse,
    sqlite::spawn,
    too_many,
    tx::{On, Statements},
};
use crate::server::REQUEST_TIMEOUT;

const CONNECTIONS: usize = 6;
const CONNECT: Duration = Duration::from_secs(3);
/// How long a statement may take: twice what a request may, so that nobody waits for what is ended here. The address may say otherwise:
/// `?options=-c%20statement_timeout%3D5000`. A migration takes as long as it takes.
const STATEMENT: Duration = Duration::from_secs(60);
const _: () = assert!(STATEMENT.as_millis() > REQUEST_TIMEOUT.as_millis());
/// How long what was sent may go unacknowledged, and about how long nothing may be heard from the other machine.
const SILENCE: Duration = Duration::from_secs(20);

pub(super) struct Pool {
    jobs: mpsc::Sender<(Kind, Job)>,
}

/// What a piece of work is allowed, and sees.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Each statement sees what was committed before it.
    Write,
    /// All statements see one state.
    Read,
}

impl Pool {
    pub(super) async fn open(
        url: &str,
        schema: &str,
        migrations: &'static [&'static str],
    ) -> Result<Self, DbError> {
        let (jobs, queue) = mpsc::channel::<(Kind, Job)>(WAITING);
        let queue = Arc::new(Mutex::new(queue));
        migrate(url, schema, migrations).await?;
        for _ in 0..CONNECTIONS {
            let (queue, url, schema) = (queue.clone(), url.to_owned(), schema.to_owned());
            spawn("db-postgres", move || {
                match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime.block_on(work(&queue, &url, &schema)),
                    Err(error) => tracing::error!(%error, "a runtime could not be made"),
                }
            });
        }
        Ok(Pool { jobs })
    }

    pub(super) fn write(&self, job: Job) {
        self.hand_over(Kind::Write, job);
    }

    pub(super) fn read(&self, job: Job) {
        self.hand_over(Kind::Read, job);
    }

    fn hand_over(&self, kind: Kind, job: Job) {
        if let Err(TrySendError::Full((_, job))) = self.jobs.try_send((kind, job)) {
            refuse(job, too_many());
        }
    }
}

async fn work(queue: &Mutex<mpsc::Receiver<(Kind, Job)>>, url: &str, schema: &str) {
    let mut connection: Option<(Client, Statements)> = None;
    'jobs: loop {
        let job = queue.lock().await.recv().await;
        let Some((kind, job)) = job else { return };
        let mut again = true;
        loop {
            connection = connection.filter(|(client, _)| !client.is_closed());
            let (client, statements) = match &mut connection {
                Some(connected) => connected,
                None => match connect(url, schema).await {
                    Ok(client) => connection.insert((client, Rc::default())),
                    Err(error) => {
                        refuse(job, error);
                        continue 'jobs;
                    }
                },
            };
            let begin = client.build_transaction();
            let begin = match kind {
                Kind::Write => begin,
                Kind::Read => begin.isolation_level(IsolationLevel::RepeatableRead).read_only(true),
            };
            let error = match begin.start().await {
                Ok(tx) => {
                    one(tx, statements, job).await;
                    continue 'jobs;
                }
                Err(error) => error,
            };
            // Mostly a connection that was lost while nobody used it. Nothing has been done on it, so another may be tried.
            if !again {
                refuse(job, error.into());
                continue 'jobs;
            }
            (again, connection) = (false, None);
        }
    }
}

async fn one(tx: Transaction<'_>, statements: &Statements, job: Job) {
    let told: Result<Told, _> = {
        let tx = Tx(On::Postgres(&tx, statements.clone()));
        AssertUnwindSafe(job(Ok(&tx))).catch_unwind().await
    };
    match told {
        Ok(told) => {
            let ended = if told.keep { tx.commit().await } else { tx.rollback().await };
            (told.tell)(ended.map_err(DbError::from));
        }
        // The panic has been printed; the transaction rolls back as it is dropped.
        Err(_) => drop(tx),
    }
}

/// A connection that sees the schema.
pub(super) async fn connect(url: &str, schema: &str) -> Result<Client, DbError> {
    let late = |_| DbError::Unavailable("no connection within three seconds".to_owned());
    let config = config(url)?;
    let (client, connection) = tokio::time::timeout(CONNECT, config.connect(NoTls)).await.map_err(late)??;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::warn!(%error, "a connection to the database broke");
        }
    });
    let mut settings = format!("set search_path to {};", quoted(schema));
    if !config.get_options().is_some_and(|theirs| theirs.contains("statement_timeout")) {
        settings += &format!("set statement_timeout to {};", STATEMENT.as_millis());
    }
    client.batch_execute(&settings).await?;
    Ok(client)
}

/// What the address says, and that the machine is noticed to have gone; both by what is sent and where nothing is.
fn config(url: &str) -> Result<Config, DbError> {
    let mut config: Config = url.parse()?;
    config.tcp_user_timeout(SILENCE).keepalives(true);
    config.keepalives_idle(SILENCE / 2).keepalives_interval(SILENCE / 4).keepalives_retries(2);
    Ok(config)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

async fn migrate(url: &str, schema: &str, migrations: &[&str]) -> Result<(), DbError> {
    let mut client = connect(url, schema).await?;
    let tx = client.transaction().await?;
    // Two processes of a service may start at once.
    tx.batch_execute("set local statement_timeout to 0").await?;
    tx.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", &[&schema]).await?;
    tx.batch_execute(&format!(
        "create schema if not exists {0}; create table if not exists {0}.migration (number bigint primary key)",
        quoted(schema)
    ))
    .await?;
    barrier::postgres::install(&tx).await?;
    outbox::postgres::install(&tx).await?;
    inbox::postgres::install(&tx).await?;
    let done: i64 = tx.query_one("select count(*) from migration", &[]).await?.try_get(0)?;
    let done = usize::try_from(done).unwrap_or(0);
    if done > migrations.len() {
        return Err(DbError::Statement("the database is of a newer version".to_owned()));
    }
    for (number, migration) in migrations.iter().enumerate().skip(done) {
        tx.batch_execute(&migration.replace("{serial}", "bigint primary key generated always as identity"))
            .await?;
        tx.execute("insert into migration values ($1)", &[&i64::try_from(number).unwrap_or(i64::MAX)])
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No test takes a machine away, so what notices it is looked at here.
    #[test]
    fn a_server_that_has_gone_without_a_word_is_noticed() {
        let config = config("postgres://somebody@there/base").unwrap();
        assert_eq!(config.get_tcp_user_timeout(), Some(&SILENCE));
        let (interval, retries) =
            (config.get_keepalives_interval().unwrap(), config.get_keepalives_retries().unwrap());
        assert!(config.get_keepalives());
        assert_eq!(config.get_keepalives_idle() + interval * retries, SILENCE);
    }
}
