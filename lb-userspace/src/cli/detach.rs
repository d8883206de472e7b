//! `lb detach`

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use caps::Capability;
use reqwest::Method;
use tokio::time::{Instant, sleep};

use super::OK;
use crate::api::client;
use crate::instance::{Instance, Lock};
use crate::{dataplane, network, privilege};

/// How long a controller may take to end.
const END: Duration = Duration::from_secs(10);

/// Pause between two looks at whether it has.
const PAUSE: Duration = Duration::from_millis(10);

/// Removes the data plane. A controller that still runs does it itself and stops; otherwise this process does.
pub(super) async fn execute(instance: &Instance) -> Result<u8> {
    if let Some(reply) = client::ask(&instance.socket(), Method::POST, "/v1/detach").await? {
        if !reply.is_success() {
            bail!("the running instance could not detach: {}", reply.error());
        }
        let lock = lock_after(instance).await?;
        // Its directories may have been prepared by one with more rights, which we may be.
        dataplane::detach(&instance.pins())?;
        instance.forget(lock);
        return Ok(OK);
    }
    if privilege::missing(false)?.iter().any(|need| need.capability == Capability::CAP_NET_ADMIN) {
        bail!(
            "instance `{}` is not running, so that this command has to remove what it has left, and this process lacks \
             CAP_NET_ADMIN for that; run it as root",
            instance.name()
        );
    }
    let lock = instance.lock()?;
    remove(instance)?;
    instance.forget(lock);
    Ok(OK)
}

/// The lock, once the controller that holds it has ended.
async fn lock_after(instance: &Instance) -> Result<Lock> {
    let deadline = Instant::now() + END;
    loop {
        match instance.lock() {
            Err(_) if Instant::now() < deadline => sleep(PAUSE).await,
            lock => return lock.context("the data plane is removed, but its controller does not end"),
        }
    }
}

/// Removes everything an instance has put on this host: program and maps, then its addresses, then its notes.
pub(super) fn remove(instance: &Instance) -> Result<()> {
    let was_there = dataplane::detach(&instance.pins())?;
    network::vip::release(&instance.run_dir(), &BTreeSet::new())
        .context("cannot remove the assigned addresses")?;
    if was_there {
        eprintln!("lb: removed the data plane of instance `{}`", instance.name());
    } else {
        eprintln!("lb: instance `{}` has no data plane on this host", instance.name());
    }
    Ok(())
}
