//! The HTTP service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Result;
use axum::Router;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, put};
use tokio::net::TcpListener;

struct Server {
    name: String,
    health: AtomicU16,
}

type Shared = State<Arc<Server>>;

pub(super) async fn serve(listener: TcpListener, name: &str) -> Result<()> {
    let server = Server { name: name.into(), health: AtomicU16::new(StatusCode::OK.as_u16()) };
    let routes = Router::new()
        .route("/", get(who))
        .route("/health", get(health))
        .route("/health/{status}", put(set_health))
        .route("/bytes/{count}", get(bytes))
        .layer(axum::middleware::map_response(close_connection))
        .with_state(Arc::new(server));
    axum::serve(listener, routes.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

async fn close_connection(response: axum::response::Response) -> impl IntoResponse {
    ([(header::CONNECTION, "close")], response)
}

async fn who(State(server): Shared, ConnectInfo(client): ConnectInfo<SocketAddr>) -> String {
    format!("{} {}\n", server.name, super::peer(client))
}

async fn health(State(server): Shared) -> impl IntoResponse {
    let status = StatusCode::from_u16(server.health.load(Ordering::Relaxed)).unwrap_or_default();
    (status, format!("{status}\n"))
}

async fn set_health(State(server): Shared, Path(status): Path<u16>) -> Result<(), StatusCode> {
    let status = StatusCode::from_u16(status).map_err(|_| StatusCode::BAD_REQUEST)?;
    server.health.store(status.as_u16(), Ordering::Relaxed);
    Ok(())
}

/// A pattern in which a missing, doubled or exchanged piece of any length changes the whole.
async fn bytes(Path(count): Path<usize>) -> Vec<u8> {
    let mut body = Vec::with_capacity(count + 8);
    let mut word = 0_u64;
    while body.len() < count {
        body.extend_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    body.truncate(count);
    body
}
