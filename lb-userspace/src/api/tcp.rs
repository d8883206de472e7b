//! The API's TCP port: follows `[api]` of the configuration in force.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result, bail};
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::info;

use super::access::{Access, Token};
use super::{Call, routes};
use crate::config::Api;

/// Most connections at a time; more wait. Whoever can reach the port must not take the descriptors that health checks
/// need.
const MAX_CONNECTIONS: usize = 128;

/// The API over TCP, or the absence of it.
#[derive(Debug)]
pub struct TcpApi {
    calls: mpsc::Sender<Call>,
    token: watch::Sender<Option<Token>>,
    port: Option<Port>,
}

/// A port that is served.
#[derive(Debug)]
struct Port {
    address: SocketAddr,
    /// Dropped: no more connections are accepted. Those that are open end with their current answer.
    _stop: oneshot::Sender<Infallible>,
    /// Ends when the port is closed.
    closed: oneshot::Receiver<Infallible>,
}

impl TcpApi {
    /// Serves nothing yet. `calls` leads to the controller.
    pub fn new(calls: mpsc::Sender<Call>) -> Self {
        Self { calls, token: watch::Sender::new(None), port: None }
    }

    /// Serves what `[api]` says from now on. The token is read anew each time, so that a reload puts another one in
    /// force.
    ///
    /// # Errors
    ///
    /// If the token cannot be read, or nobody can listen on the address. Then the token stays as it was; and so does
    /// the port, unless the new address takes the old one's port and cannot be had.
    pub async fn follow(&mut self, api: &Api) -> Result<()> {
        let token = match api.token_file.as_str() {
            "" => None,
            file => Some(Token::read(Path::new(file))?),
        };
        let address = match api.listen.as_str() {
            "" => None,
            listen => Some(
                listen
                    .parse::<SocketAddr>()
                    .with_context(|| format!("api.listen = {listen:?} is no address"))?,
            ),
        };
        if self.port.as_ref().map(|port| port.address) != address {
            match address {
                Some(address) => self.move_to(address).await?,
                None => self.close().await,
            }
        }
        self.token.send_replace(token);
        Ok(())
    }

    async fn move_to(&mut self, address: SocketAddr) -> Result<()> {
        let listener = match TcpListener::bind(address).await {
            // From one address to every address, or back: the old socket is in the way.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && self.has_port(address.port()) => {
                self.close().await;
                TcpListener::bind(address).await
            }
            bound => bound,
        };
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => bail!(
                "cannot listen on api.listen = \"{address}\": {error}; `ss -ltnp` shows who does, `ip address` the \
                 addresses of this host"
            ),
        };
        self.close().await;
        self.port = Some(self.serve(listener, address));
        info!(%address, "the API listens");
        Ok(())
    }

    fn has_port(&self, number: u16) -> bool {
        self.port.as_ref().is_some_and(|port| port.address.port() == number)
    }

    fn serve(&self, listener: TcpListener, address: SocketAddr) -> Port {
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let (guard, closed) = oneshot::channel();
        let listener = Gate { listener, permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)), _closed: guard };
        let router = routes::router(self.calls.clone(), Access::Token(self.token.subscribe()));
        let stopped = async move {
            // Nothing is ever sent: it ends when the other end is dropped.
            let _ = stopped.await;
        };
        let serving = axum::serve(listener, router).with_graceful_shutdown(stopped);
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!("the API over TCP stopped: {error}");
            }
        });
        Port { address, _stop: stop, closed }
    }

    async fn close(&mut self) {
        if let Some(Port { address, _stop: stop, closed }) = self.port.take() {
            drop(stop);
            // Nothing is ever sent here either.
            let _ = closed.await;
            info!(%address, "the API no longer listens");
        }
    }
}

/// A listener that lets in so many at a time, and tells by dropping `_closed` that it is closed.
struct Gate {
    // Dropped before `_closed`: fields are dropped in this order.
    listener: TcpListener,
    permits: Arc<Semaphore>,
    _closed: oneshot::Sender<Infallible>,
}

impl Listener for Gate {
    type Io = Visitor;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visitor, SocketAddr) {
        // The semaphore is never closed; without a permit it would be no limit, so an error waits for ever.
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            return std::future::pending().await;
        };
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Visitor { stream, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection and its place among those that may be open.
struct Visitor {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Visitor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
