//! UDP checks: exactly one datagram, and what comes back.

use super::failure::{Failure, Waiting};
use super::{Attempt, net};
use crate::config::Payload;

/// Bytes that the configuration allows for `response_data`; what an answer has beyond them is not looked at.
const MAX_RESPONSE_DATA: usize = 1024;

/// Sends `request_data` once; the first datagram that comes back must start with `response_data`.
pub(super) async fn check(payload: &Payload, attempt: &mut Attempt<'_>) -> Result<(), Failure> {
    let socket = net::udp(attempt).await?;
    socket.send(&payload.request_data).await.map_err(|error| Failure::os("send", &error))?;
    let mut buffer = [0; MAX_RESPONSE_DATA];
    let received = attempt
        .within(Waiting::Answer, socket.recv(&mut buffer))
        .await?
        .map_err(|error| Failure::os("recv", &error))?;
    if buffer[..received].starts_with(&payload.response_data) { Ok(()) } else { Err(Failure::Mismatch) }
}

/// Whether silence up to the deadline is a good answer: without `response_data` only an ICMP error says that nobody
/// listens.
pub(super) const fn accepts_silence(payload: &Payload) -> bool {
    payload.response_data.is_empty()
}
