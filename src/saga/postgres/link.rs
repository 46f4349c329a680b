//! The connections: made when they are needed, given up when they break.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, task::AbortHandle, time::timeout};
use tokio_postgres::{
    Client, Config, Error, Socket, Statement,
    tls::{MakeTlsConnect, TlsConnect},
};

use super::schema::{REGISTER, SETTINGS, Schema, Sql};
use crate::{
    backoff::{Jitter, Schedule},
    chance::Chance,
    saga::journal::StoreError,
    sync::{self, lock},
    time,
};

/// Why a statement has no answer, by what has become of it.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The connection is of no use any more; what was sent may or may not be done.
    Lost(String),
    /// Nothing was done, and it may well go the next time.
    Undone(String),
    /// Nothing was done: an entry or a row is there already that the snapshot did not show.
    Taken(String),
    /// Nothing was done: what is on the server's disk makes no sense.
    Damaged(String),
    /// Another try would say the same.
    Final(StoreError),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let why = describe(&error);
        let Some(code) = error.code().map(|code| code.code()) else {
            // What the server says has a code. Without one, either the connection failed, or what was to be sent does not
            // fit into a message, or what came cannot be read, or the two sides do not agree on how to talk to each other.
            let text = error.to_string();
            let is = |kinds: &[&str]| kinds.iter().any(|kind| text.starts_with(kind));
            return if is(&["error serializing", "error encoding", "error deserializing"]) {
                Trouble::Final(StoreError::Io(why))
            } else if is(&["invalid configuration", "authentication error"])
                || is(&["error performing TLS handshake"]) && !is_of_transport(&error)
            {
                Trouble::Final(StoreError::Absent(why))
            } else {
                Trouble::Lost(why)
            };
        };
        match code {
            // The server goes down or comes up, has no room for a connection, or has become a standby.
            "57P01" | "57P02" | "57P03" | "57P05" | "53300" | "25P03" | "25006" => Trouble::Lost(why),
            "23505" => Trouble::Taken(why),
            "57014" | "55P03" | "53200" => Trouble::Undone(why),
            "XX001" | "XX002" => Trouble::Damaged(why),
            "53100" => Trouble::Final(StoreError::Full(why)),
            "3D000" | "3F000" | "42P01" => Trouble::Final(StoreError::Absent(why)),
            _ if code.starts_with("08") => Trouble::Lost(why),
            _ if code.starts_with("40") => Trouble::Undone(why),
            _ if code.starts_with("28") => Trouble::Final(StoreError::Absent(why)),
            _ => Trouble::Final(StoreError::Io(why)),
        }
    }
}

/// Whether bytes did not come through, rather than that they were not what was wanted.
fn is_of_transport(error: &dyn std::error::Error) -> bool {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut kinds = causes.filter_map(|cause| cause.downcast_ref::<io::Error>().map(io::Error::kind));
    kinds.any(|kind| !matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput))
}

/// The error with its causes.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A boxed future.
pub(super) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type Dialled = Result<(Client, Boxed<'static, ()>), Error>;

/// Makes a connection, encrypted or not.
pub(super) trait Dial: Send + Sync {
    fn dial<'a>(&'a self, config: &'a Config) -> Boxed<'a, Dialled>;
}

impl<T> Dial for T
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send + 'static,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn dial<'a>(&'a self, config: &'a Config) -> Boxed<'a, Dialled> {
        Box::pin(async move {
            let (client, connection) = config.connect(self.clone()).await?;
            // Why it ended is told to whoever waits for an answer.
            let driven: Boxed<'static, ()> = Box::pin(async move { drop(connection.await) });
            Ok((client, driven))
        })
    }
}

/// What all connections of a journal have in common.
pub(super) struct Place {
    pub(super) dial: Box<dyn Dial>,
    pub(super) config: Config,
    pub(super) schema: Schema,
    pub(super) patience: Duration,
    pub(super) chance: Chance,
    /// The name of this journal among those that write to the schema.
    pub(super) writer: String,
}

/// One connection, with its statements.
pub(super) struct Session {
    pub(super) client: Client,
    /// The name of this connection among those that its journal has had.
    pub(super) name: String,
    /// For whoever sends several statements for one transaction, among which none of another one may come.
    pub(super) turn: Mutex<()>,
    statements: Vec<Statement>,
    driver: Driver,
    cut: AtomicBool,
    /// When the server has last said something.
    heard: sync::Mutex<Instant>,
}

/// The task behind a connection. When this is dropped, so is the connection, and the server undoes what it has not committed.
pub(super) struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    pub(super) fn statement(&self, sql: Sql) -> &Statement {
        &self.statements[sql as usize]
    }

    /// Ends the connection: the server undoes what it has not committed.
    pub(super) fn cut(&self) {
        self.cut.store(true, Relaxed);
        self.driver.0.abort();
    }

    /// Waits for an answer, unless the server says nothing for so long: what others have asked over this connection before is answered
    /// before.
    async fn answer<T>(
        &self,
        silence: Duration,
        answer: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let mut answer = pin!(answer);
        let mut since = time::now();
        loop {
            let left = silence.saturating_sub(time::now().saturating_duration_since(since));
            if let Ok(answer) = timeout(left, answer.as_mut()).await {
                *lock(&self.heard) = time::now();
                return answer;
            }
            match *lock(&self.heard) {
                heard if heard > since => since = heard,
                _ => return Err(Trouble::Lost("no answer in time".to_owned())),
            }
        }
    }

    fn is_usable(&self) -> bool {
        !self.cut.load(Relaxed) && !self.client.is_closed()
    }
}

impl Place {
    /// 128 random bits as text.
    pub(super) fn nonce(chance: &Chance) -> String {
        format!("{:016x}{:016x}", chance.next(), chance.next())
    }

    /// After so long without a word a connection is taken for dead, while there is time left to try another one.
    pub(super) fn silence(&self) -> Duration {
        self.patience / 2
    }

    pub(super) async fn dial(&self) -> Result<(Client, Driver), Trouble> {
        let (client, driven) = self.dial.dial(&self.config).await?;
        Ok((client, Driver(tokio::spawn(driven).abort_handle())))
    }

    /// Makes the tables if there are none, unless they have to be there, and checks their format.
    pub(super) async fn prepare(&self, existing: bool) -> Result<(), Trouble> {
        let (client, _driver) = self.dial().await?;
        self.schema.prepare(&client, existing).await
    }

    async fn open(&self, writes: bool) -> Result<Session, Trouble> {
        let (client, driver) = self.dial().await?;
        let limit = self.patience.as_millis().clamp(1, 86_400_000).to_string();
        let nested = if writes { "off" } else { "on" };
        client.query(SETTINGS, &[&limit, &nested]).await?;
        let name = Place::nonce(&self.chance);
        if writes {
            client.execute(&self.schema.sql(REGISTER), &[&self.writer, &name]).await?;
        }
        let texts = Sql::ALL.map(|sql| self.schema.sql(sql.text()));
        let prepared = together(texts.iter().map(|text| Box::pin(client.prepare(text)) as _).collect()).await;
        let statements = prepared.into_iter().collect::<Result<_, _>>()?;
        let heard = sync::Mutex::new(time::now());
        let cut = AtomicBool::new(false);
        Ok(Session { client, name, turn: Mutex::new(()), statements, driver, cut, heard })
    }
}

/// Polls all of them in their order until all are done. What they send they send in the first poll, one behind the other.
pub(super) async fn together<T>(mut futures: Vec<Boxed<'_, T>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut waiting = false;
        for (future, done) in futures.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(value) => *done = Some(value),
                Poll::Pending => waiting = true,
            }
        }
        if waiting { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// A connection that is made anew when it has broken.
pub(super) struct Link {
    place: Arc<Place>,
    writes: bool,
    current: Mutex<Option<Arc<Session>>>,
}

impl Link {
    pub(super) fn new(place: &Arc<Place>, writes: bool) -> Self {
        Link { place: place.clone(), writes, current: Mutex::new(None) }
    }

    /// The connection there is, or a new one.
    async fn session(&self) -> Result<Arc<Session>, Trouble> {
        let mut current = self.current.lock().await;
        if let Some(session) = current.as_ref().filter(|session| session.is_usable()) {
            return Ok(session.clone());
        }
        *current = None;
        let session = Arc::new(self.place.open(self.writes).await?);
        *current = Some(session.clone());
        Ok(session)
    }

    /// Makes the tables if there are none, unless they have to be there, checks their format, and connects.
    pub(super) async fn prepare(&self, existing: bool) -> Result<(), StoreError> {
        let place = &self.place;
        persevere(place, || async { place.prepare(existing).await }).await?;
        self.persist(|_| async { Ok(()) }).await
    }

    /// Does something over this connection, again and again as long as that may help and the patience lasts. Whoever sends
    /// something that must not be done twice has to find out by himself what became of it.
    pub(super) async fn persist<T, F>(&self, act: impl Fn(Arc<Session>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        let silence = self.place.silence();
        let once = || async {
            let session = match timeout(silence, self.session()).await {
                Ok(session) => session?,
                Err(_) => return Err(Trouble::Lost("no connection in time".to_owned())),
            };
            let done = session.answer(silence, act(session.clone())).await;
            if let Err(Trouble::Lost(_)) = done {
                session.cut();
            }
            done
        };
        persevere(&self.place, once).await
    }
}

/// Tries until it goes, until it cannot go, or until the patience is over.
pub(super) async fn persevere<T, F>(place: &Place, once: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, Trouble>>,
{
    let mut last = "no answer".to_owned();
    let trying = async {
        let waits = Schedule::exponential(Duration::from_millis(10)).cap(Duration::from_millis(500));
        let mut waits = waits.jitter(Jitter::Equal).delays(Some(place.chance.next()));
        loop {
            match once().await {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Damaged(why)) => return Err(StoreError::Io(why)),
                Err(Trouble::Lost(why) | Trouble::Undone(why) | Trouble::Taken(why)) => last = why,
            }
            tokio::time::sleep(waits.next().unwrap_or_default()).await;
        }
    };
    match timeout(place.patience, trying).await {
        Ok(done) => done,
        Err(_) => Err(StoreError::Unavailable(last)),
    }
}
