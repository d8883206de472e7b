//! Who may change something: the owner of the unix socket, and over TCP whoever knows the token.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use super::routes::{Server, error};
use crate::config::{HostFacts, ThisHost};

/// What a caller needs to show before it may change something.
#[derive(Clone, Debug)]
pub enum Access {
    /// Nothing: the file system has let only the owner in.
    Owner,
    /// The token in force, if there is one.
    Token(watch::Receiver<Option<Token>>),
}

/// A bearer token (RFC 6750).
#[derive(Clone)]
pub struct Token(Arc<[u8]>);

impl Token {
    /// Reads the token from a file; white space around it does not count.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is empty.
    pub fn read(path: &Path) -> Result<Self> {
        let content = ThisHost.read_file(path);
        let content =
            content.with_context(|| format!("cannot read the token of the API from {}", path.display()))?;
        match content.trim_ascii() {
            [] => bail!("{} should hold the token of the API, but is empty", path.display()),
            token => Ok(Self(token.into())),
        }
    }

    /// Compares in a time that depends on the length of the token at most.
    fn is(&self, offered: &[u8]) -> bool {
        self.0.ct_eq(offered).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Proof that the caller may change something: handlers that do so take it as an argument.
#[derive(Debug)]
pub struct MayChange(());

impl FromRequestParts<Server> for MayChange {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, Response> {
        let token = match &server.access {
            Access::Owner => return Ok(Self(())),
            Access::Token(token) => token.borrow().clone(),
        };
        let Some(token) = token else {
            return Err(error(
                StatusCode::FORBIDDEN,
                "over TCP nothing can be changed, for the configuration has no api.token_file; use the unix socket, \
                 or set it and reload",
            ));
        };
        match bearer(&parts.headers) {
            Some(offered) if token.is(offered) => Ok(Self(())),
            Some(_) => Err(unauthorized("the token is not the one in api.token_file")),
            None => Err(unauthorized("expected the header `Authorization: Bearer TOKEN`")),
        }
    }
}

/// The token of the header `Authorization`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

fn unauthorized(message: &str) -> Response {
    ([(WWW_AUTHENTICATE, "Bearer")], error(StatusCode::UNAUTHORIZED, message)).into_response()
}

#[cfg(test)]
impl Token {
    /// A token that is in no file.
    pub(super) fn new(token: &str) -> Self {
        Self(token.as_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_content_of_its_file_without_white_space() {
        let path = std::env::temp_dir().join(format!("lb-token-{}", std::process::id()));
        std::fs::write(&path, "  geheim\n").unwrap();
        let token = Token::read(&path).unwrap();
        assert!(token.is(b"geheim"));
        for wrong in ["", "geheim ", "geheiM", "gehei", "geheimer"] {
            assert!(!token.is(wrong.as_bytes()), "{wrong:?}");
        }
        assert_eq!(format!("{token:?}"), "Token(..)", "it must not get into a log");
        std::fs::write(&path, " \n").unwrap();
        let error = Token::read(&path).unwrap_err().to_string();
        assert!(error.contains("empty"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(Token::read(&path).is_err());
    }
}
