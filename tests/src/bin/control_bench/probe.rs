//! Clients: one that waits for a listener to answer, and one that counts what gets lost.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lb_tests::netns::Host;

/// Between two datagrams of a client.
const PACE: Duration = Duration::from_millis(1);
/// How long the last answers may take.
const GRACE: Duration = Duration::from_millis(500);

/// Asks until the first answer comes; when that was.
pub(crate) fn first_answer(client: &Host, target: SocketAddr, within: Duration) -> Result<Instant> {
    client.enter(|| {
        let socket = connected(target)?;
        socket.set_read_timeout(Some(PACE))?;
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            // Nobody may listen there yet, which ICMP tells.
            let _ = socket.send(b"?");
            if socket.recv(&mut [0; 64]).is_ok() {
                return Ok(Instant::now());
            }
        }
        bail!("{target} did not answer within {within:?}")
    })
}

/// What a stream of datagrams has come to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loss {
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Those without an answer.
    pub(crate) lost: u64,
}

/// Sends datagrams to an echo service at an even pace while `work` goes on.
pub(crate) fn loss_during<T>(
    client: &Host,
    target: SocketAddr,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Loss)> {
    let goes_on = AtomicBool::new(true);
    thread::scope(|scope| {
        let stream = scope.spawn(|| client.enter(|| stream(target, &goes_on)));
        let result = work();
        goes_on.store(false, Ordering::Relaxed);
        let loss = stream.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((result?, loss))
    })
}

fn stream(target: SocketAddr, goes_on: &AtomicBool) -> Result<Loss> {
    let socket = connected(target)?;
    socket.set_read_timeout(Some(GRACE))?;
    let is_sent = AtomicBool::new(false);
    thread::scope(|scope| {
        let received = scope.spawn(|| {
            let mut received = 0;
            // A gap, however long, is not the end as long as more is sent.
            loop {
                let over = is_sent.load(Ordering::Relaxed);
                match socket.recv(&mut [0; 64]) {
                    Ok(_) => received += 1,
                    Err(_) if over => return received,
                    Err(_) => {}
                }
            }
        });
        let begin = Instant::now();
        let mut sent = 0;
        while goes_on.load(Ordering::Relaxed) {
            // An ICMP error that an earlier one has met is told here; the datagram counts as lost all the same.
            let _ = socket.send(b"?");
            sent += 1;
            let due = begin + PACE * sent;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        is_sent.store(true, Ordering::Relaxed);
        let received: u64 = received.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(Loss { sent: sent.into(), lost: u64::from(sent).saturating_sub(received) })
    })
}

fn connected(target: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).context("no socket")?;
    socket.connect(target).with_context(|| format!("cannot reach {target}"))?;
    Ok(socket)
}
