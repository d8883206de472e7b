//! The Debian package: installed, started, reloaded, upgraded, removed and purged, by dpkg and systemd themselves.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lb_tests::netns::binary;
use xtask::package::{self, Compression};

/// `tests/package/drive` has the steps and what each must bring, `tests/package/boot` the machine they run on.
#[test]
fn the_package_installs_runs_upgrades_and_goes_without_a_trace() -> Result<()> {
    let package = package::build(&binary("lb")?, Compression::Fast)?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("package");
    let output = Command::new(folder.join("boot"))
        .arg(package)
        .arg(folder.join("drive"))
        .output()
        .context("cannot run tests/package/boot")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    // The last step has been reached.
    ensure!(text.lines().last() == Some("- no file is left"), "{text}");
    Ok(())
}
