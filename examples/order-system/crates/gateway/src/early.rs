//! Answers that come before the request has been sent.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::net::TcpStream;

/// A connection whose other side may answer and close it before it has read everything.
///
/// Sending fails then, and the client takes that for the end although the answer lies there to be read. So what cannot be sent any more
/// counts as sent, and reading says what has come of it: an answer, or that there is none.
#[derive(Debug)]
pub struct Answering {
    stream: TokioIo<TcpStream>,
    /// Nobody takes anything any more.
    deaf: bool,
}

impl Answering {
    /// On a connection.
    pub fn new(stream: TokioIo<TcpStream>) -> Self {
        Answering { stream, deaf: false }
    }

    fn sent(&mut self, sent: io::Result<usize>, all: usize) -> io::Result<usize> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match sent {
            Err(error) if [BrokenPipe, ConnectionAborted, ConnectionReset].contains(&error.kind()) => {
                self.deaf = true;
                Ok(all)
            }
            sent => sent,
        }
    }
}

impl Read for Answering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Answering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(self.sent(sent, buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(all));
        }
        let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(self.sent(sent, all))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connection for Answering {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}
