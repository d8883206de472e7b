//! Servers that follow a script. They stop when they are dropped.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

/// Longer than anything takes on a busy machine; only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a loopback address.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    served: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    /// Connections accepted, or datagrams received, so far.
    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Plays `script` on every connection.
pub(crate) async fn tcp<F>(script: impl Fn(TcpStream) -> F + Send + 'static) -> Server
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    tcp_at("127.0.0.1:0", script).await
}

/// Plays `script` on every connection to `address`.
pub(crate) async fn tcp_at<F>(address: &str, script: impl Fn(TcpStream) -> F + Send + 'static) -> Server
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.expect("a port on loopback");
    let address = listener.local_addr().expect("bound");
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            // A script fails when the check hangs up on it: that is what most of them are for.
            tokio::spawn(script(stream));
        }
    });
    Server { address, served, task }
}

/// Answers every datagram with those that `script` makes of it.
pub(crate) async fn udp(script: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Server {
    udp_at("127.0.0.1:0", script).await
}

/// Answers every datagram to `address` with those that `script` makes of it.
pub(crate) async fn udp_at(address: &str, script: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Server {
    let socket = UdpSocket::bind(address).await.expect("a port on loopback");
    let address = socket.local_addr().expect("bound");
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let task = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::SeqCst);
            for answer in script(&buffer[..length]) {
                socket.send_to(&answer, peer).await.expect("loopback takes it");
            }
        }
    });
    Server { address, served, task }
}

/// A port of loopback on which nobody listens, and on which nobody will while the guard lives.
pub(crate) struct ClosedPort {
    pub(crate) address: SocketAddr,
    taken: socket2::Socket,
}

/// A TCP port that is bound, but not listened on.
pub(crate) fn closed_tcp_port() -> ClosedPort {
    closed_port(socket2::Type::STREAM)
}

/// A UDP port whose socket hears only a peer that never speaks.
pub(crate) fn closed_udp_port() -> ClosedPort {
    let port = closed_port(socket2::Type::DGRAM);
    port.taken.connect(&SocketAddr::from(([127, 0, 0, 1], 9)).into()).expect("connects without a packet");
    port
}

fn closed_port(kind: socket2::Type) -> ClosedPort {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port on loopback");
    let address = socket.local_addr().expect("bound").as_socket().expect("an IP address");
    ClosedPort { address, taken: socket }
}

/// Script: reads one request, then writes `answer` and closes.
pub(crate) async fn answer(mut stream: TcpStream, answer: impl AsRef<[u8]>) -> io::Result<()> {
    read_some(&mut stream).await?;
    stream.write_all(answer.as_ref()).await?;
    stream.shutdown().await?;
    // Closing with unread bytes would be a reset.
    until_closed(&mut stream).await.map(drop)
}

/// Script: accepts everything and says nothing.
pub(crate) async fn say_nothing(mut stream: TcpStream) -> io::Result<()> {
    until_closed(&mut stream).await.map(drop)
}

/// Reads what has come, at least one byte.
pub(crate) async fn read_some(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let length = stream.read(&mut buffer).await?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Reads until the peer closes and gives back what came.
pub(crate) async fn until_closed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await?;
    Ok(received)
}

/// Writes `bytes` one by one, so slowly that they never end.
pub(crate) async fn trickle(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let mut tick = interval(Duration::from_millis(20));
    for byte in bytes.iter().cycle() {
        tick.tick().await;
        stream.write_all(&[*byte]).await?;
    }
    Ok(())
}

/// Closes with a RST.
pub(crate) fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let mut tick = interval(Duration::from_millis(5));
    let wait = async {
        while !condition() {
            tick.tick().await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}
