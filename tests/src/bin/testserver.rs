//! The server of the tests and of the demo: `testserver NAME`; see [`lb_tests::servers`].

use anyhow::{Context, Result};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let name = std::env::args().nth(1).context("usage: testserver NAME")?;
    lb_tests::servers::serve(name).await
}
