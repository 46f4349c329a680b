//! Queues in one SQLite file.

mod local;
mod routes;
mod store;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use rusqlite::Connection;
use tokio::sync::{mpsc as async_mpsc, oneshot};

use self::store::Claim;
pub use self::store::into_wal;
use self::writer::{Command, Writer};
use crate::{
    BoxFuture, Broker, BrokerError, Consumer, DeadLetter, Delivery, Fate, Message, PublishError, Settle,
    Settlement, Stats, Topology, Which, unix_ms,
};

/// The broker `sqlite:FILE`. Any number of processes of one machine may open the file; clones share one opened broker.
///
/// What is confirmed is on the disk (WAL, `synchronous = FULL`). One thread per opened broker does all the writing: what is asked
/// for while it writes becomes one transaction with one sync, and the messages that its consumers have room for are claimed in that same
/// transaction. Other processes are noticed by looking at the file's change counter, every 1 to 20 ms.
///
/// Who consumes is registered in the file with an expiry, renewed four times per
/// [visibility timeout](crate::Queue::visibility). A process that dies stops renewing, and what it held returns. A handler
/// may take as long as it likes as long as its process lives: bound it with a timeout of its own. Times are those of
/// the machine's wall clock.
#[derive(Clone)]
pub struct Sqlite {
    path: PathBuf,
    commands: mpsc::Sender<Command>,
    reader: Arc<Mutex<Connection>>,
    next_consumer: Arc<AtomicU64>,
}

impl Sqlite {
    /// Opens the file, and makes it if it is not there.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Unreachable`] if it cannot be opened or is something else.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, BrokerError> {
        let path = path.into();
        let opened = blocking({
            let path = path.clone();
            move || Ok((store::open(&path)?, store::open(&path)?))
        });
        let (reader, writer) = opened.await.map_err(|error| unreachable_file(&path, &error))?;
        let (commands, received) = mpsc::channel();
        std::thread::Builder::new()
            .name("order-broker".to_owned())
            .spawn(move || Writer::new(writer, received).run())
            .map_err(|error| unreachable_file(&path, &error))?;
        Ok(Self { path, commands, reader: Arc::new(Mutex::new(reader)), next_consumer: Arc::default() })
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, BrokerError>>) -> Command,
    ) -> Result<T, BrokerError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| BrokerError::Closed)?;
        answer.await.map_err(|_| BrokerError::Closed)?
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> store::Result<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let reader = self.reader.clone();
        blocking(move || read(&reader.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(|error| failed(&error))
    }

    async fn read_queue<T: Send + 'static>(
        &self,
        queue: &str,
        read: impl FnOnce(&Connection, i64) -> store::Result<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let name = queue.to_owned();
        let found = self.read(move |conn| match routes::queue_id(conn, &name)? {
            Some(id) => read(conn, id).map(Some),
            None => Ok(None),
        });
        found.await?.ok_or_else(|| BrokerError::UnknownQueue(queue.to_owned()))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> store::Result<T> + Send + 'static,
) -> store::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Cancelled is what it is when the runtime stops.
        Err(stopped) => Err(rusqlite::Error::ToSqlConversionFailure(Box::new(stopped))),
    }
}

fn failed(error: &rusqlite::Error) -> BrokerError {
    BrokerError::Failed(error.to_string())
}

fn unreachable_file(path: &Path, error: &dyn std::error::Error) -> BrokerError {
    BrokerError::Unreachable { address: address(path), reason: error.to_string() }
}

fn address(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

impl Broker for Sqlite {
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            crate::topology::checked(topology)?;
            self.ask(|reply| Command::Declare { topology: topology.clone(), reply }).await
        })
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(async move {
            let count = messages.len();
            let (reply, answer) = oneshot::channel();
            let sent = self.commands.send(Command::Publish { messages, reply });
            match (sent, answer.await) {
                (Ok(()), Ok(results)) => results,
                _ => vec![Err(PublishError::Unconfirmed(BrokerError::Closed)); count],
            }
        })
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        prefetch: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BrokerError>> {
        Box::pin(async move {
            crate::topology::checked_prefetch(prefetch)?;
            let id = self.next_consumer.fetch_add(1, Ordering::Relaxed);
            let (to, claimed) = async_mpsc::unbounded_channel();
            let holder = Arc::default();
            // Made before the answer: if this future is dropped, its `drop` tells the writer.
            let consumer = SqliteConsumer { id, claimed, holder, commands: self.commands.clone() };
            self.ask(|reply| Command::Consume {
                queue: queue.to_owned(),
                consumer: local::Member::new(id, prefetch.into(), to, consumer.holder.clone()),
                reply,
            })
            .await?;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Stats, BrokerError>> {
        Box::pin(self.read_queue(queue, |conn, id| store::stats(conn, id, unix_ms())))
    }

    fn check(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async {
            // Also takes the writer's turn: it lives, and can have the lock.
            self.ask(|reply| Command::Check { reply }).await?;
            self.read(|conn| routes::topology(conn).map(drop)).await
        })
    }

    fn dead_letters<'a>(
        &'a self,
        queue: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<DeadLetter>, BrokerError>> {
        Box::pin(self.read_queue(queue, move |conn, id| store::dead_letters(conn, id, limit)))
    }

    fn replay<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        let queue = queue.to_owned();
        Box::pin(self.ask(move |reply| Command::TakeDead { queue, which, replay: true, reply }))
    }

    fn discard<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        let queue = queue.to_owned();
        Box::pin(self.ask(move |reply| Command::TakeDead { queue, which, replay: false, reply }))
    }

    fn topology(&self) -> BoxFuture<'_, Result<Topology, BrokerError>> {
        Box::pin(self.read(routes::topology))
    }

    fn address(&self) -> String {
        address(&self.path)
    }
}

/// A message on its way from the writer to a consumer's caller.
struct Claimed {
    claim: Claim,
    message: Message,
    attempt: u32,
}

struct SqliteConsumer {
    id: u64,
    claimed: async_mpsc::UnboundedReceiver<Claimed>,
    /// Under which number the writer holds now. What was claimed under another has returned meanwhile.
    holder: Arc<AtomicI64>,
    commands: mpsc::Sender<Command>,
}

impl SqliteConsumer {
    fn delivery(&self, claimed: Claimed) -> Option<Delivery> {
        let Claimed { claim, message, attempt } = claimed;
        let current = claim.holder == self.holder.load(Ordering::Acquire);
        let key = message.key.clone();
        let settle = SqliteSettle { consumer: self.id, claim, key, commands: self.commands.clone() };
        let delivery = Delivery::new(message, attempt, Box::new(settle));
        current.then_some(delivery)
    }
}

impl Consumer for SqliteConsumer {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, BrokerError>> {
        Box::pin(async {
            loop {
                let claimed = self.claimed.recv().await.ok_or(BrokerError::Closed)?;
                if let Some(delivery) = self.delivery(claimed) {
                    return Ok(delivery);
                }
            }
        })
    }

    fn next_batch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, BrokerError>> {
        Box::pin(async move {
            let mut batch = vec![self.next().await?];
            while batch.len() < max {
                let Ok(claimed) = self.claimed.try_recv() else { break };
                batch.extend(self.delivery(claimed));
            }
            Ok(batch)
        })
    }
}

impl Drop for SqliteConsumer {
    fn drop(&mut self) {
        self.claimed.close();
        let unseen =
            std::iter::from_fn(|| self.claimed.try_recv().ok()).map(|claimed| claimed.claim).collect();
        // If nobody is there to be told, nothing is held either.
        drop(self.commands.send(Command::Close { consumer: self.id, unseen }));
    }
}

struct SqliteSettle {
    consumer: u64,
    claim: Claim,
    key: String,
    commands: mpsc::Sender<Command>,
}

impl Settle for SqliteSettle {
    fn settle(self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<Fate, BrokerError>> {
        let (reply, answer) = oneshot::channel();
        let Self { consumer, claim, key, commands } = *self;
        let sent = commands.send(Command::Settle { consumer, claim, key, how, reply: Some(reply) });
        Box::pin(async move {
            sent.map_err(|_| BrokerError::Closed)?;
            answer.await.map_err(|_| BrokerError::Closed)?
        })
    }
}
