//! The gateway's listener: plain, or with TLS, and in both cases without patience for clients that do not take their answers.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as Poller, Poll},
    time::Duration,
};

use axum::Router;
use order_kit::{
    BoxError, Context,
    env::{self, Env},
    server,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    time::{Sleep, sleep},
};
use tokio_rustls::{TlsAcceptor, rustls};

/// How long a client may leave what was sent to it where it is.
pub const TAKE: Duration = Duration::from_secs(30);

/// The files with certificates and key, if TLS is wanted.
///
/// # Errors
///
/// One without the other.
pub fn tls_files(env: &Env) -> Result<Option<(String, String)>, BoxError> {
    match (env.get(env::GATEWAY_TLS_CERT), env.get(env::GATEWAY_TLS_KEY)) {
        (Some(certificates), Some(key)) => Ok(Some((certificates, key))),
        (None, None) => Ok(None),
        _ => Err("GATEWAY_TLS_CERT and GATEWAY_TLS_KEY belong together".into()),
    }
}

/// Serves the gateway's router until the context's stop, with TLS if the environment has certificates.
///
/// # Errors
///
/// Certificates or a key that cannot be used.
pub async fn serve(context: Context, router: Router, listener: TcpListener) -> Result<(), BoxError> {
    match tls_files(context.env())? {
        None => {
            let wrap = async |stream| Ok(Patient::new(stream));
            server::serve_with(context, router, listener, wrap).await;
        }
        Some((certificates, key)) => {
            let acceptor = acceptor(&certificates, &key)?;
            let wrap = move |stream| {
                let acceptor = acceptor.clone();
                async move { acceptor.accept(Patient::new(stream)).await }
            };
            server::serve_with(context, router, listener, wrap).await;
        }
    }
    Ok(())
}

fn acceptor(certificates: &str, key: &str) -> Result<TlsAcceptor, BoxError> {
    let read = |file: &str, error: rustls_pki_types::pem::Error| format!("{file}: {error}");
    let chain = CertificateDer::pem_file_iter(certificates)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| read(certificates, error))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| read(key, error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A connection that breaks when the other side takes nothing for [`TAKE`].
#[derive(Debug)]
pub struct Patient<S> {
    stream: S,
    waits: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// Around a connection.
    pub fn new(stream: S) -> Self {
        Patient { stream, waits: None }
    }

    fn watch<X>(&mut self, polled: Poll<io::Result<X>>, cx: &mut Poller<'_>) -> Poll<io::Result<X>> {
        if polled.is_ready() {
            self.waits = None;
            return polled;
        }
        let waits = self.waits.get_or_insert_with(|| Box::pin(sleep(TAKE)));
        waits.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Poller<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Poller<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Poller<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.watch(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(polled, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, time::Instant};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut() {
        let (ours, _theirs) = tokio::io::duplex(8);
        let mut ours = Patient::new(ours);
        let begun = Instant::now();
        let error = ours.write_all(&[0; 9]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, TAKE.as_secs()));
    }

    #[test]
    fn a_certificate_without_a_key_is_an_error() {
        assert!(tls_files(&Env::empty().with(env::GATEWAY_TLS_CERT, "a")).is_err());
        assert!(tls_files(&Env::empty()).unwrap().is_none());
        assert!(acceptor("/no/such/file", "/no/such/file").is_err());
    }
}
