//! Waiting for a condition, never for a length of time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks at a condition that nothing announces.
const PAUSE: Duration = Duration::from_millis(5);

/// Calls `probe` until it gives a value.
///
/// # Errors
/// An error of `probe`, at once; or, after `within`, that `what` has not come.
pub fn until<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {within:?} in vain for {what}");
        }
        thread::sleep(PAUSE);
    }
}
