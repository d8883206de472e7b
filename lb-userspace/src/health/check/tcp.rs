//! TCP checks: the connection alone, or bytes to send and bytes to expect.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::failure::{Failure, Waiting};
use super::{Attempt, net};
use crate::config::Payload;

/// Connects, sends `request_data` if there is any, and reads until the answer has proved equal to `response_data`
/// or different from it. Without `response_data` no answer is awaited.
pub(super) async fn check(payload: &Payload, attempt: &mut Attempt<'_>) -> Result<(), Failure> {
    let mut stream = net::tcp(attempt).await?;
    if !payload.request_data.is_empty() {
        attempt
            .within(Waiting::Answer, stream.write_all(&payload.request_data))
            .await?
            .map_err(|error| Failure::os("write", &error))?;
    }
    let mut expected = payload.response_data.as_slice();
    let mut buffer = [0; 1024];
    while !expected.is_empty() {
        let wanted = expected.len().min(buffer.len());
        let count = attempt
            .within(Waiting::Answer, stream.read(&mut buffer[..wanted]))
            .await?
            .map_err(|error| Failure::os("read", &error))?;
        if count == 0 {
            return Err(Failure::Closed);
        }
        expected = expected.strip_prefix(&buffer[..count]).ok_or(Failure::Mismatch)?;
    }
    Ok(())
}
