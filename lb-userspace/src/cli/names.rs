//! The names behind the ids in the maps.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use reqwest::Method;

use crate::api::client;
use crate::dataplane::connections::Connections as Maps;
use crate::instance::Instance;
use crate::status;

/// Names by id, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) listeners: BTreeMap<u32, String>,
    /// Set and name.
    pub(super) backends: BTreeMap<u32, (String, String)>,
}

impl Names {
    /// Those of the running controller; of what it does not know, or if none runs, those the maps hold.
    pub(super) async fn find(instance: &Instance, maps: &Maps) -> Result<Self> {
        let mut names = Self::default();
        for (id, (set, address)) in maps.backends()? {
            names.backends.insert(id, (set, address.to_string()));
        }
        if let Some(reply) = client::ask(&instance.socket(), Method::GET, "/v1/names").await?
            && reply.is_success()
        {
            let known: status::Names = serde_json::from_value(reply.body)
                .context("the instance answered with another kind of names")?;
            names.listeners = known.listeners.into_iter().map(|owner| (owner.id, owner.name)).collect();
            names
                .backends
                .extend(known.backends.into_iter().map(|owner| (owner.id, (owner.backend_set, owner.name))));
        }
        Ok(names)
    }
}
