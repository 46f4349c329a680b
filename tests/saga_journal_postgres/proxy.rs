//! A proxy in front of the server that understands the protocol just enough to cut a connection before or after a chosen message
//! takes effect.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::watch,
};

/// Which message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The statement that appends, or the claim: the one whose text has this in it.
    Statement(&'static str),
    /// The end of a transaction of several statements.
    Commit,
}

/// When the connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The server never sees the message.
    Before,
    /// The server has done what the message says, and the answer is lost.
    After,
    /// The client has its connection cut, and the server sees the message only so much later.
    Late(Duration),
}

/// What is to go wrong.
#[derive(Debug, Default)]
struct Plan {
    next: Option<(Message, Cut)>,
    /// Not before the client has sent something else behind the message.
    two: bool,
    /// How often it has.
    happened: usize,
}

/// A proxy that runs until it is dropped.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    plan: Arc<Mutex<Plan>>,
    open: watch::Sender<bool>,
    served: Arc<AtomicUsize>,
}

/// The client's messages: a type, and the bytes with it.
struct Reader {
    from: OwnedReadHalf,
    /// The first message has no type.
    started: bool,
}

impl Reader {
    async fn next(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut bytes = Vec::new();
        if self.started {
            bytes.push(self.from.read_u8().await?);
        }
        let length = self.from.read_u32().await?;
        bytes.extend(length.to_be_bytes());
        let start = bytes.len();
        bytes.resize(start + length as usize - 4, 0);
        self.from.read_exact(&mut bytes[start..]).await?;
        let kind = if self.started { bytes[0] } else { 0 };
        self.started = true;
        Ok((kind, bytes))
    }

    /// A message and the rest of its group, up to where the server acts: a `Sync`, unless it is a plain query.
    async fn group(&mut self, mut kind: u8, mut bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
        while !matches!(kind, b'Q' | b'S') {
            let (next, rest) = self.next().await?;
            bytes.extend(rest);
            kind = next;
        }
        Ok(bytes)
    }
}

/// The text that begins at `at` and ends with a zero byte.
fn text(bytes: &[u8], at: usize) -> &str {
    let end = bytes[at..].iter().position(|byte| *byte == 0).unwrap();
    std::str::from_utf8(&bytes[at..at + end]).unwrap()
}

impl Proxy {
    /// In front of the server at `host:port`.
    pub async fn new(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Arc::new(Mutex::new(Plan::default()));
        let (open, opened) = watch::channel(true);
        let shared = plan.clone();
        let served = Arc::new(AtomicUsize::new(0));
        let counted = served.clone();
        tokio::spawn(async move {
            let mut closed = opened.clone();
            loop {
                tokio::select! {
                    client = listener.accept() => {
                        let (client, _) = client.unwrap();
                        if *opened.borrow() {
                            counted.fetch_add(1, SeqCst);
                            let serving = serve(client, server.clone(), shared.clone(), opened.clone());
                            let counted = counted.clone();
                            tokio::spawn(async move {
                                serving.await;
                                counted.fetch_sub(1, SeqCst);
                            });
                        }
                    }
                    gone = closed.changed() => if gone.is_err() { return },
                }
            }
        });
        Proxy { port, plan, open, served }
    }

    /// Cuts a connection at the next such message.
    pub fn cut(&self, message: Message, cut: Cut) {
        let mut plan = self.plan.lock().unwrap();
        (plan.next, plan.two) = (Some((message, cut)), false);
    }

    /// The same, once the client has sent what comes next as well, which the server never sees.
    pub fn cut_two(&self, message: Message, cut: Cut) {
        let mut plan = self.plan.lock().unwrap();
        (plan.next, plan.two) = (Some((message, cut)), true);
    }

    /// How often a connection was cut as planned.
    pub fn happened(&self) -> usize {
        self.plan.lock().unwrap().happened
    }

    /// Cuts all connections, and accepts no more.
    pub async fn shut(&self) {
        self.open.send_replace(false);
        while self.served.load(SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Accepts connections again.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

async fn serve(client: TcpStream, server: String, plan: Arc<Mutex<Plan>>, mut open: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    tokio::select! {
        _ = relay(client, server, plan) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}

async fn relay(client: TcpStream, server: TcpStream, plan: Arc<Mutex<Plan>>) -> std::io::Result<()> {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut reader = Reader { from, started: false };
    // The server's answers go on as they come, until the connection is cut.
    let (quiet, mut silenced) = watch::channel(false);
    let answers = tokio::spawn(async move {
        let mut bytes = vec![0; 1 << 16];
        loop {
            let read = from_server.read(&mut bytes).await?;
            if read == 0 {
                return std::io::Result::Ok(());
            }
            if *silenced.borrow_and_update() {
                // The answer of the chosen message ends with its `ReadyForQuery`: whatever it did is done.
                if bytes[..read].windows(5).any(|window| window == [b'Z', 0, 0, 0, 5]) {
                    return Ok(());
                }
            } else {
                to_client.write_all(&bytes[..read]).await?;
            }
        }
    });
    let mut statements: Vec<(String, String)> = Vec::new();
    loop {
        let (kind, bytes) = tokio::select! {
            message = reader.next() => message?,
            () = async { while !answers.is_finished() { tokio::time::sleep(Duration::from_millis(1)).await } } => return Ok(()),
        };
        let due = {
            let mut plan = plan.lock().unwrap();
            let met = match (kind, plan.next.map(|(message, _)| message)) {
                (b'Q', Some(Message::Commit)) => text(&bytes, 5) == "COMMIT",
                (b'B', Some(Message::Statement(part))) => {
                    let portal = text(&bytes, 5);
                    let name = text(&bytes, 5 + portal.len() + 1);
                    statements.iter().any(|(known, sql)| known == name && sql.contains(part))
                }
                _ => false,
            };
            if met { plan.next.take().map(|(_, cut)| (cut, plan.two)) } else { None }
        };
        if kind == b'P' {
            let name = text(&bytes, 5).to_owned();
            let sql = text(&bytes, 5 + name.len() + 1).to_owned();
            statements.push((name, sql));
        }
        let Some((cut, two)) = due else {
            to_server.write_all(&bytes).await?;
            continue;
        };
        if matches!(cut, Cut::Late(_)) {
            // Its answers go nowhere, its client sees the end at once, and the server learns nothing of that.
            answers.abort();
        }
        let group = reader.group(kind, bytes).await?;
        if two {
            let (kind, bytes) = reader.next().await?;
            reader.group(kind, bytes).await?;
        }
        plan.lock().unwrap().happened += 1;
        match cut {
            Cut::Before => answers.abort(),
            Cut::After => {
                quiet.send_replace(true);
                to_server.write_all(&group).await?;
                let _ = answers.await;
            }
            Cut::Late(by) => {
                let _ = answers.await;
                drop(reader);
                tokio::time::sleep(by).await;
                to_server.write_all(&group).await?;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        return Ok(());
    }
}
