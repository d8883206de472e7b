//! Sees when a connection of the HTTP client stands, which the client would keep to itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tower::{Layer, Service};

/// Sets the flag when the connection stands; for HTTPS: when its TLS session stands as well.
#[derive(Clone)]
pub(super) struct NoteConnection(pub(super) Arc<AtomicBool>);

/// The connector with a [`NoteConnection`] around it.
#[derive(Clone)]
pub(super) struct NotingConnector<C> {
    connector: C,
    connected: Arc<AtomicBool>,
}

impl<C> Layer<C> for NoteConnection {
    type Service = NotingConnector<C>;

    fn layer(&self, connector: C) -> Self::Service {
        NotingConnector { connector, connected: Arc::clone(&self.0) }
    }
}

impl<C, R> Service<R> for NotingConnector<C>
where
    C: Service<R>,
    C::Future: Send + 'static,
    C::Response: Send,
    C::Error: Send,
{
    type Response = C::Response;
    type Error = C::Error;
    type Future = BoxFuture<'static, Result<C::Response, C::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.connector.call(request);
        let connected = Arc::clone(&self.connected);
        Box::pin(async move {
            let connection = connecting.await?;
            connected.store(true, Ordering::Relaxed);
            Ok(connection)
        })
    }
}
