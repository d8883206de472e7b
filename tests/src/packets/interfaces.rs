//! A second interface. Frames can only be sent through interfaces that exist, and only loopback always does: cases
//! that need another one are played in a network namespace that has it.

use std::fs::File;
use std::sync::OnceLock;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::LinkVeth;

use super::Network;

/// Moves the calling thread into a network namespace with the interfaces of `network.toml`. It stays there: to a
/// case that needs loopback only, all namespaces are alike.
///
/// # Errors
///
/// Without root, or if the kernel has no `veth`.
pub fn enter(network: &Network) -> Result<()> {
    static NAMESPACE: OnceLock<Result<File, String>> = OnceLock::new();
    let namespace = NAMESPACE.get_or_init(|| make(network).map_err(|error| format!("{error:#}")));
    let namespace = namespace.as_ref().map_err(|error| anyhow!("{error}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace with a second interface")
}

/// Makes the namespace on a thread of its own, so that the caller stays where it is.
fn make(network: &Network) -> Result<File> {
    let made = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(add_interfaces(network))?;
            File::open("/proc/thread-self/ns/net").context("cannot open the new namespace")
        });
        thread.join()
    });
    made.map_err(|_| anyhow!("the thread that makes interfaces panicked"))?
}

async fn add_interfaces(network: &Network) -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot speak netlink")?;
    tokio::spawn(connection);
    for (name, interface) in &network.interfaces {
        if name == Network::FRONT {
            continue;
        }
        let link = LinkVeth::new(name, &format!("{name}_peer")).index(interface.index).build();
        handle.link().add(link).execute().await.with_context(|| {
            format!(
                "cannot make the interface `{name}` for the packet cases (the kernel module `veth` makes it)"
            )
        })?;
    }
    Ok(())
}
