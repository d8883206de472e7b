//! The other end of the socket: what the commands ask a running instance.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// What a running instance answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status code.
    pub code: u16,
    /// The document.
    pub body: Value,
}

impl Reply {
    /// Whether the instance did what it was asked.
    pub fn is_success(&self) -> bool {
        StatusCode::from_u16(self.code).is_ok_and(|code| code.is_success())
    }

    /// The message of an error document.
    pub fn error(&self) -> String {
        self.body.get("error").and_then(Value::as_str).map_or_else(|| self.body.to_string(), str::to_owned)
    }
}

/// Asks the instance behind a socket; `None` when nobody listens there.
///
/// # Errors
///
/// If somebody listens but the exchange fails.
pub async fn ask(socket: &Path, method: Method, path: &str) -> Result<Option<Reply>> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    match tokio::net::UnixStream::connect(socket).await {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => return Ok(None),
        Err(error) => {
            let remedy = match error.kind() {
                PermissionDenied => {
                    ": only root and the user that `lb run` runs as may; run this as one of them"
                }
                _ => "",
            };
            return Err(error)
                .with_context(|| format!("cannot ask the instance at {}{remedy}", socket.display()));
        }
    }
    // Plain HTTP needs no TLS, but the client prepares for it all the same: with a provider (the second call is refused
    // because the first succeeded), and with the system's authorities, which a small host may not have, if not told of
    // others.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .unix_socket(socket)
        .no_proxy()
        .tls_certs_only([])
        .timeout(Duration::from_secs(60))
        .build();
    let url = format!("http://lb{path}");
    let response = client.context("cannot make an HTTP client")?.request(method, url).send().await;
    let response =
        response.with_context(|| format!("cannot talk to the instance at {}", socket.display()))?;
    let code = response.status().as_u16();
    let body = response.bytes().await.context("the instance's answer broke off")?;
    let body = serde_json::from_slice(&body).context("the instance's answer is not JSON")?;
    Ok(Some(Reply { code, body }))
}

/// A name as one segment of a path (RFC 3986): everything but unreserved characters is percent-encoded.
pub fn segment(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_become_one_segment() {
        assert_eq!(super::segment("10.0.1.10:8080"), "10.0.1.10%3A8080");
        assert_eq!(super::segment("[fd00::1]:80/ä"), "%5Bfd00%3A%3A1%5D%3A80%2F%C3%A4");
    }
}
