//! Patterns that are searched in the bodies of responses.

use std::sync::Arc;

use fancy_regex::{Regex, RegexBuilder};
use tokio::sync::Semaphore;

use super::failure::Failure;

/// Steps back that a match may take. One pass of the usual "does not contain" pattern over a body of 64 KiB takes
/// a tenth of it.
const REGEX_BACKTRACK_LIMIT: usize = 1_000_000;

/// A compiled pattern. It is searched away from the thread that answers everybody else.
pub(super) struct BodyRegex {
    regex: Regex,
    /// One match of a pattern at a time: a costly pattern costs one thread.
    turn: Arc<Semaphore>,
}

impl BodyRegex {
    /// Compiles it; the error names the pattern and the place in it.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(pattern)
            .backtrack_limit(REGEX_BACKTRACK_LIMIT)
            .build()
            .map_err(|error| format!("response_body_regex {pattern:?}: {error}"))?;
        Ok(Self { regex, turn: Arc::new(Semaphore::new(1)) })
    }

    /// Looks for it anywhere in `body`; bytes that are no UTF-8 match nothing but wildcards.
    pub(super) async fn search(self: Arc<Self>, body: Vec<u8>) -> Result<(), Failure> {
        let stopped = |_| Failure::Unusable("not checked: shutting down".into());
        // Kept to the end of the match, which goes on when the check has given up.
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|_| Failure::Backtracking)?;
        let found = tokio::task::spawn_blocking(move || {
            let found = self.regex.is_match(String::from_utf8_lossy(&body).as_ref());
            drop(turn);
            found
        });
        match found.await.map_err(stopped)? {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::Mismatch),
            Err(_) => Err(Failure::Backtracking),
        }
    }
}
