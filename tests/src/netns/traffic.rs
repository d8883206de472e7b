//! Clients: `curl` where it serves, sockets where a test needs many datagrams or one particular source port.
//!
//! They speak to the services of [`crate::servers`], and every one gives up after a few seconds.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Host, Output, wait};

/// How long a client waits for the other end.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Payload of one datagram of [`echo_udp`], in bytes: with the server's own words it fits an IPv6 packet of 1500.
const DATAGRAM_LEN: usize = 1024;

/// Port of the server of [`streams`].
pub const STREAMS_PORT: u16 = 5201;
/// Connections of [`streams`].
const STREAMS: usize = 8;
/// Receive buffer of each of them, of which the kernel offers the sender a window of four segments. Those of all, their ACKs, and
/// all of it once more, sent anew because a machine that stood still let the timers run out, fit the queue before a native XDP
/// program, which holds 256 frames.
const WINDOW: &str = "6K";

/// How often each server has answered, by its name.
pub type Tally = BTreeMap<String, usize>;

/// What one `curl` of the VIP has learnt: which server answered, and whom it had seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The client as the server has seen it.
    pub client: SocketAddr,
}

impl Answer {
    fn parse(text: &str) -> Result<Self> {
        let words =
            text.split_once(' ').and_then(|(server, client)| Some((server, client.trim().parse().ok()?)));
        let (server, client) =
            words.with_context(|| format!("expected `NAME ADDRESS:PORT`, found {text:?}"))?;
        Ok(Self { server: server.into(), client })
    }
}

/// `curl` of `http://TARGET` followed by `path`, whatever comes of it.
pub fn try_curl(host: &Host, target: SocketAddr, path: &str) -> Result<Output> {
    let seconds = PATIENCE.as_secs();
    host.run(&format!(
        "curl --silent --show-error --fail --fail-early --max-time {seconds} http://{target}{path}"
    ))
}

/// Asks once who answers.
pub fn curl(host: &Host, target: SocketAddr) -> Result<Answer> {
    Answer::parse(&try_curl(host, target, "/")?.success()?.stdout)
}

/// Makes `count` requests, each in a connection of its own, one after the other; all must be answered.
pub fn curl_many(host: &Host, target: SocketAddr, count: usize) -> Result<Tally> {
    // The server closes every connection, so curl has nothing to reuse.
    let output = try_curl(host, target, &format!("/?[1-{count}]"))?.success()?;
    let answers: Vec<_> = output.stdout.lines().map(Answer::parse).collect::<Result<_>>()?;
    ensure!(answers.len() == count, "expected {count} answers, found {}\n{}", answers.len(), output.stderr);
    Ok(tally(answers.into_iter().map(|answer| answer.server)))
}

/// Sends `count` datagrams, each from a socket of its own, one after the other; all must be answered from the very
/// address and port they were sent to.
pub fn ask_udp_many(host: &Host, target: SocketAddr, count: usize) -> Result<Tally> {
    host.enter(|| {
        let ask =
            |number: usize| ask_udp(target, number).with_context(|| format!("datagram {number} of {count}"));
        Ok(tally((1..=count).map(ask).collect::<Result<Vec<_>>>()?.into_iter()))
    })
}

fn ask_udp(target: SocketAddr, number: usize) -> Result<String> {
    let socket = UdpSocket::bind(any_port(target))?;
    let answer = exchange(&socket, target, &number.to_be_bytes())?;
    Ok(answer.server)
}

/// Sends one datagram to the UDP echo service from `source_port`; gives what the server had seen.
pub fn ask_udp_from(host: &Host, source_port: u16, target: SocketAddr) -> Result<Answer> {
    host.enter(|| {
        let source = SocketAddr::new(any_port(target).ip(), source_port);
        exchange(&bind_udp(source)?, target, b"ask")
    })
}

/// Binds a socket to a port that the test may have closed just now. A process that another thread of the test starts
/// holds a copy of every open socket from its fork to its exec, which takes a while on a busy machine.
fn bind_udp(source: SocketAddr) -> Result<UdpSocket> {
    wait::until(&format!("the UDP port of {source} to be free"), PATIENCE, || match UdpSocket::bind(source) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        bound => Ok(Some(bound?)),
    })
}

/// Sends `length` bytes through the TCP echo service and checks what comes back; gives what the server had seen.
pub fn echo_tcp(host: &Host, target: SocketAddr, length: usize) -> Result<Answer> {
    let mut session = Session::open(host, None, target)?;
    session.echo(&pattern(length))?;
    Ok(session.answer)
}

/// Sends `length` bytes through the UDP echo service, one datagram after the other from one socket, and checks
/// every answer; gives what the server had seen.
pub fn echo_udp(host: &Host, target: SocketAddr, length: usize) -> Result<Answer> {
    host.enter(|| {
        let socket = UdpSocket::bind(any_port(target))?;
        let data = pattern(length);
        let answers = data.chunks(DATAGRAM_LEN).map(|chunk| exchange(&socket, target, chunk));
        let mut answers = answers.collect::<Result<Vec<_>>>()?;
        answers.dedup();
        ensure!(answers.len() == 1, "one socket is one flow, but the answers came from {answers:?}");
        answers.pop().context("an echo of no bytes")
    })
}

/// One datagram and its answer.
fn exchange(socket: &UdpSocket, target: SocketAddr, payload: &[u8]) -> Result<Answer> {
    socket.set_read_timeout(Some(PATIENCE))?;
    // Not connected: a connected socket would hide answers from a wrong address.
    socket.send_to(payload, target)?;
    let mut buffer = [0; 2 * DATAGRAM_LEN];
    let (length, from) = socket.recv_from(&mut buffer).context("no answer")?;
    ensure!(from == target, "the answer came from {from}, not from {target}");
    let prefix =
        buffer[..length].strip_suffix(payload).context("the answer does not end in what was sent")?;
    Answer::parse(str::from_utf8(prefix)?)
}

/// An open connection to the TCP echo service.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    /// What the server had seen.
    pub answer: Answer,
}

impl Session {
    /// Connects, from `source_port` if one is given, and reads who answers.
    pub fn open(host: &Host, source_port: Option<u16>, target: SocketAddr) -> Result<Self> {
        let stream = host.enter(|| connect(source_port, target))?;
        let mut greeting = String::new();
        // Byte by byte, so that nothing of the echo is taken away.
        BufReader::with_capacity(1, &stream).read_line(&mut greeting).context("read who answers")?;
        Ok(Self { stream, answer: Answer::parse(&greeting)? })
    }

    /// Waits, without sending anything, for a RST from the other end.
    pub fn wait_for_reset(&mut self, within: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(within))?;
        match self.stream.read(&mut [0; 1]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => bail!("expected a RST within {within:?}, found {other:?}"),
        }
    }

    /// Sends `data` and checks that exactly this comes back.
    pub fn echo(&mut self, data: &[u8]) -> Result<()> {
        let mut back = vec![0; data.len()];
        let (mut reader, mut writer) = (&self.stream, &self.stream);
        thread::scope(|scope| {
            // Both ways at once: the echo of a large piece fills every buffer on its way.
            let sent = scope.spawn(move || writer.write_all(data));
            reader.read_exact(&mut back).context("the echo ended early")?;
            sent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("send")
        })?;
        if let Some(place) = back.iter().zip(data).position(|(back, sent)| back != sent) {
            bail!("the echo differs from byte {place} on");
        }
        Ok(())
    }
}

/// Sends as much as eight parallel connections carry in two seconds, to `address`, behind which is `server`; each must
/// carry something. No frame is lost to a full queue.
pub fn streams(server: &Host, client: &Host, address: IpAddr) -> Result<()> {
    let listening = server.spawn(&format!("iperf3 --server --port {STREAMS_PORT} --one-off --forceflush"))?;
    listening.wait_for_line("Server listening", PATIENCE)?;
    let report = client
        .run(&format!(
            "iperf3 --client {address} --port {STREAMS_PORT} --parallel {STREAMS} --window {WINDOW} --time 2 --json"
        ))?
        .success()?
        .stdout;
    let report: Value = serde_json::from_str(&report)?;
    let streams = report["end"]["streams"].as_array().context("iperf3 reports no streams")?;
    ensure!(streams.len() == STREAMS, "expected {STREAMS} streams, found {}", streams.len());
    for stream in streams {
        ensure!(stream["receiver"]["bytes"].as_u64() > Some(0), "a stream that carried nothing: {stream}");
    }
    Ok(())
}

/// Sends a SYN from each of `count` sockets and waits for no answer.
pub fn knock(host: &Host, target: SocketAddr, count: usize) -> Result<()> {
    let knock = || {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
            other => bail!("expected a connection in progress, found {other:?}"),
        }
    };
    host.enter(|| (0..count).map(|_| knock()).collect::<Result<Vec<_>>>().map(drop))
}

fn connect(source_port: Option<u16>, target: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(port) = source_port {
        // One source port for several destinations.
        socket.set_reuse_address(true)?;
        let source = SocketAddr::new(any_port(target).ip(), port);
        socket.bind(&source.into()).with_context(|| format!("bind to {source}"))?;
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&target.into(), PATIENCE).with_context(|| format!("connect to {target}"))?;
    Ok(socket.into())
}

fn any_port(target: SocketAddr) -> SocketAddr {
    match target.ip() {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn tally(names: impl Iterator<Item = String>) -> Tally {
    let mut tally = Tally::new();
    for name in names {
        *tally.entry(name).or_default() += 1;
    }
    tally
}

/// Bytes without a short period, so that exchanged pieces do not go unseen.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place ^ (place >> 8) ^ (place >> 16)) as u8).collect()
}
