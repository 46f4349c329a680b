//! Connections: taken until the service is to end, finished as long as they are given time, and then cut.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::{Request, header};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower::ServiceExt;

use crate::{Context, env, rest::ReadToTheEnd};

/// How long a client may take for the head of a request, and how long a connection may be idle: longer than clients keep one.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until the context's stop; then takes no new connection, finishes what is in flight, and returns. What takes longer than the
/// grace is cut. New connections are taken for `SHUTDOWN_DELAY_MS` more, while the service says that it is not ready.
pub async fn serve(context: Context, router: Router, listener: TcpListener) {
    serve_within(context, router, listener, HEAD_TIMEOUT).await;
}

/// As [`serve`], with another time for the head of a request.
pub async fn serve_within(context: Context, router: Router, listener: TcpListener, head: Duration) {
    connections(context, router, listener, head, |stream| std::future::ready(Ok(stream))).await;
}

/// Like [`serve`], for connections that something is to be done with before they speak HTTP, as TLS does. It may take as long as the head
/// of a request.
pub async fn serve_with<S, F>(
    context: Context,
    router: Router,
    listener: TcpListener,
    wrap: impl Fn(TcpStream) -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = std::io::Result<S>> + Send + 'static,
{
    connections(context, router, listener, HEAD_TIMEOUT, wrap).await;
}

async fn connections<S, F>(
    context: Context,
    router: Router,
    listener: TcpListener,
    head: Duration,
    wrap: impl Fn(TcpStream) -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = std::io::Result<S>> + Send + 'static,
{
    let _serving = context.serving();
    let graceful = GracefulShutdown::new();
    // With this they end as well, if whoever serves is dropped.
    let mut connections = JoinSet::new();
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(head);
    let ended = async {
        context.stop().cancelled().await;
        tokio::time::sleep(context.env().ms(env::SHUTDOWN_DELAY_MS)).await;
    };
    tokio::pin!(ended);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = &mut ended => break,
        };
        let (stream, peer): (_, SocketAddr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: those in use come back.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let routes = router.clone().map_request(move |request: Request<Incoming>| {
            // Whoever says that he waits for a word before he sends has nothing on its way.
            let waits = request.headers().contains_key(header::EXPECT);
            let whole = |body| if waits { Body::new(body) } else { Body::new(ReadToTheEnd::new(body)) };
            let mut request = request.map(whole);
            request.extensions_mut().insert(ConnectInfo(peer));
            request
        });
        let (wrapped, server, watcher) = (wrap(stream), server.clone(), graceful.watcher());
        connections.spawn(async move {
            let stream = match tokio::time::timeout(head, wrapped).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "a connection could not be begun"),
                Err(_) => return tracing::debug!("a connection took too long to begin"),
            };
            let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
    drop(listener);
    let grace = context.env().ms(env::SHUTDOWN_GRACE_MS);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight at the end of the grace");
    }
    connections.shutdown().await;
}
