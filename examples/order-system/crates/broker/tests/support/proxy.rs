//! A way to the server that can be cut.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Listens on a port of its own, and passes on what comes, as long as it is whole.
pub struct Proxy {
    address: String,
    whole: watch::Sender<bool>,
    /// How many connections go through it now.
    open: watch::Receiver<usize>,
}

impl Proxy {
    /// Before the server of this address.
    pub async fn start(server: &str) -> Self {
        let host = host(server).to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let here = listener.local_addr().expect("it is bound").to_string();
        let address = server.replacen(&host, &here, 1);
        let (whole, is_whole) = watch::channel(true);
        let (count, open) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *is_whole.borrow() {
                    count.send_modify(|count| *count += 1);
                    tokio::spawn(pass(client, host.clone(), is_whole.clone(), count.clone()));
                }
            }
        });
        Self { address, whole, open }
    }

    /// The server's address, by way of here.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Cuts all connections and takes no new one. Answers when they are gone.
    pub async fn cut(&self) {
        self.whole.send_replace(false);
        self.open.clone().wait_for(|open| *open == 0).await.expect("it runs");
    }

    pub fn heal(&self) {
        self.whole.send_replace(true);
    }
}

async fn pass(
    mut client: TcpStream,
    host: String,
    mut whole: watch::Receiver<bool>,
    count: watch::Sender<usize>,
) {
    if let Ok(mut server) = TcpStream::connect(host).await {
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => {}
            _ = whole.wait_for(|whole| !whole) => {}
        }
    }
    drop(client);
    count.send_modify(|count| *count -= 1);
}

/// `host:port` of `amqp://user:password@host:port/vhost`.
fn host(address: &str) -> &str {
    let rest =
        address.rsplit_once('@').map_or_else(|| address.trim_start_matches("amqp://"), |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or(rest)
}
