//! The echo services.

use std::io::Result;
use std::net::SocketAddr;

use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Room for the largest datagram.
const DATAGRAM_LEN: usize = 65536;

pub(super) async fn serve_tcp(listener: TcpListener, name: &str) -> anyhow::Result<()> {
    loop {
        let (stream, client) = listener.accept().await?;
        tokio::spawn(echo(stream, greeting(name, client)));
    }
}

async fn echo(mut stream: TcpStream, greeting: String) -> Result<()> {
    let (mut from, mut to) = stream.split();
    to.write_all(format!("{greeting}\n").as_bytes()).await?;
    copy(&mut from, &mut to).await?;
    to.shutdown().await
}

pub(super) async fn serve_udp(socket: UdpSocket, name: &str) -> anyhow::Result<()> {
    let mut datagram = vec![0; DATAGRAM_LEN];
    loop {
        let (length, client) = socket.recv_from(&mut datagram).await?;
        let answer = [greeting(name, client).as_bytes(), b" ", &datagram[..length]].concat();
        socket.send_to(&answer, client).await?;
    }
}

fn greeting(name: &str, client: SocketAddr) -> String {
    format!("{name} {}", super::peer(client))
}
