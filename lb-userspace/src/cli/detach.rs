//! `lb detach`

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use reqwest::Method;

use super::OK;
use crate::api::client;
use crate::instance::Instance;
use crate::{dataplane, network};

/// Removes the data plane. A controller that still runs does it itself and stops; otherwise this process does.
pub(super) async fn execute(instance: &Instance) -> Result<u8> {
    if let Some(reply) = client::ask(&instance.socket(), Method::POST, "/v1/detach").await? {
        if !reply.is_success() {
            bail!("the running instance could not detach: {}", reply.error());
        }
        return Ok(OK);
    }
    let _lock = instance.lock()?;
    remove(instance)?;
    Ok(OK)
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
