//! Looks at what an earlier controller has left in the pin directory: a data plane to go on with, one that cannot be
//! taken over, or the pieces of one that was never finished or is half removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData};
use aya_obj::Object;
use lb_common::{
    Addr4, Addr6, Features, Flow, FlowKey, HalfOpen, LAYOUT_VERSION, Listener, ListenerKey, RangeKey,
    Settings,
};
use tracing::{info, warn};

use super::attach::is_link;
use super::flow_tables::HalfOpenFlows;
use super::load::{OBJECT, Origin, pinned_maps};
use super::sizes::{
    ANSWER_MAPS, CONNECTION_MAPS, FLOWS_AT_MAPS, Family, HALF_OPEN_MAPS, LANE_MAPS, MORE_ANSWER_MAPS, Sizes,
};

/// The map that carries the layout version. It is written last when a data plane is made and voided first when it goes.
pub(super) const SETTINGS: &str = "settings";

/// What becomes of the pins: nothing or pieces of a data plane make place for a new one, a complete one of this layout
/// is adopted.
///
/// aya opens a pinned map of any shape without a word, and would let the kernel write past the end of our structs; so
/// each shape is compared here first.
///
/// # Errors
///
/// If the maps are of another shape or version, or something is missing that attached programs work with.
pub(super) fn inspect(pins: &Path, sizes: Sizes, max_connections: u32) -> Result<Origin> {
    let names = pinned_maps()?;
    let (there, missing): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| pins.join(name).exists());
    compare_shapes(pins, sizes, &there)?;
    let is_complete = match version(pins)? {
        None | Some(0) => false,
        Some(LAYOUT_VERSION) => missing.is_empty(),
        Some(version) => {
            bail!("{} (expected layout {LAYOUT_VERSION}, found {version})", not_ours(pins))
        }
    };
    if is_complete {
        say_what_has_room(pins, sizes, max_connections)?;
        return Ok(Origin::Adopted);
    }
    if let Some(link) = links(pins)?.first() {
        bail!(
            "the pinned data plane in {} is damaged: {} is attached, but maps are missing or void ({}); run `lb detach` \
             (this ends its connections), then start again",
            pins.display(),
            link.display(),
            if missing.is_empty() { SETTINGS.to_owned() } else { missing.join(", ") }
        );
    }
    // No program is attached, so nothing forwards by these: a controller was killed before it was done with them.
    for name in &there {
        let pin = pins.join(name);
        fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
    }
    if !there.is_empty() {
        info!("cleared away what a start or a detach that was broken off has left in {}", pins.display());
    }
    Ok(Origin::Fresh)
}

fn not_ours(pins: &Path) -> String {
    format!(
        "the pinned data plane in {} is of another version and cannot be taken over; \
         run `lb detach` (this ends its connections), then start again",
        pins.display()
    )
}

fn compare_shapes(pins: &Path, sizes: Sizes, names: &[String]) -> Result<()> {
    let object = Object::parse(OBJECT).context("cannot read the embedded eBPF object")?;
    for name in names {
        let Some(declared) = object.maps.get(name) else { continue };
        let pinned = open(&pins.join(name))?.info()?;
        let expected = (declared.key_size(), declared.value_size());
        let found = (pinned.key_size(), pinned.value_size());
        if expected != found {
            bail!(
                "{} (map `{name}`: expected key and value of {expected:?} bytes, found {found:?})",
                not_ours(pins)
            );
        }
        let (expected, found) =
            (sizes.entries(name).unwrap_or_else(|| declared.max_entries()), pinned.max_entries());
        if expected != found && !keeps_its_size(name) {
            bail!("{} (map `{name}`: expected {expected} entries, found {found})", not_ours(pins));
        }
    }
    Ok(())
}

/// Whether an adopted map may be of another size than it would be made with now.
fn keeps_its_size(name: &str) -> bool {
    [CONNECTION_MAPS, FLOWS_AT_MAPS, ANSWER_MAPS, MORE_ANSWER_MAPS, LANE_MAPS].as_flattened().contains(&name)
}

/// An adopted map keeps its size.
fn say_what_has_room(pins: &Path, sizes: Sizes, max_connections: u32) -> Result<()> {
    for name in CONNECTION_MAPS {
        let found = open(&pins.join(name))?.info()?.max_entries();
        if sizes.entries(name) != Some(found) {
            warn!(
                "the adopted map `{name}` has room for {found} flows; max_connections = {max_connections} takes effect \
                 after `lb detach`"
            );
        }
    }
    Ok(())
}

/// The sizes with those of adopted lanes, whereabouts and answers.
///
/// # Errors
///
/// If there cannot be so many, or a map cannot be read.
pub(super) fn with_adopted_sizes(pins: &Path, sizes: Sizes) -> Result<Sizes> {
    let entries = |[v4, v6]: [&str; 2]| {
        let of = |name: &str| Ok::<_, anyhow::Error>(open(&pins.join(name))?.info()?.max_entries());
        Ok::<_, anyhow::Error>([of(v4)?, of(v6)?])
    };
    let (lanes, flows_at, answers) = (entries(LANE_MAPS)?, entries(FLOWS_AT_MAPS)?, entries(ANSWER_MAPS)?);
    sizes.with_adopted(lanes, flows_at, answers).with_context(|| {
        format!(
            "{} (maps of lanes with {lanes:?}, of whereabouts with {flows_at:?} and of answers with {answers:?} entries are not \
             possible)",
            not_ours(pins)
        )
    })
}

/// What an adopted data plane is used for, whether the configuration still asks for it or not: its listeners hold until they
/// are replaced, and its flows go on.
///
/// # Errors
///
/// If a map cannot be read.
pub(super) fn features_in_use(pins: &Path) -> Result<Features> {
    let mut features = Features::IPV4.only_if(has_flows::<Addr4>(pins, Family::V4)?);
    features = features.and(Features::IPV6.only_if(has_flows::<Addr6>(pins, Family::V6)?));
    let listeners: HashMap<_, ListenerKey, Listener> = Map::HashMap(open(&pins.join("listeners"))?)
        .try_into()
        .context("the map `listeners` is no hash map")?;
    for listener in listeners.iter() {
        let (key, listener) = listener.context("cannot read the map `listeners`")?;
        features = features.and(features_of(&key.address, &listener));
    }
    let ranges: LpmTrie<_, RangeKey, Listener> = Map::LpmTrie(open(&pins.join("listener_ranges"))?)
        .try_into()
        .context("the map `listener_ranges` is no trie")?;
    for range in ranges.iter() {
        let (key, listener) = range.context("cannot read the map `listener_ranges`")?;
        features = features.and(features_of(&key.data().address, &listener)).and(Features::PORT_RANGES);
    }
    Ok(features)
}

fn features_of(address: &Addr6, listener: &Listener) -> Features {
    let family = if address.is_ipv4_mapped() { Features::IPV4 } else { Features::IPV6 };
    family
        .and(Features::SOURCE_RULES.only_if(listener.flags & Listener::SOURCE_RULES != 0))
        .and(Features::FLOW_LIMITS.only_if(listener.max_new_flows_per_s != 0))
}

/// Whether there are flows of a family.
fn has_flows<A>(pins: &Path, family: Family) -> Result<bool>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    let [promoted, half_open] = [CONNECTION_MAPS, HALF_OPEN_MAPS].map(|names| names[family as usize]);
    let flows: HashMap<_, FlowKey<A>, Flow<A>> = Map::HashMap(open(&pins.join(promoted))?)
        .try_into()
        .with_context(|| format!("the map `{promoted}` does not hold flows"))?;
    if flows.keys().next().transpose().context("cannot read the flows")?.is_some() {
        return Ok(true);
    }
    let flows = HalfOpenFlows::<A>::new(&open(&pins.join(half_open))?)
        .with_context(|| format!("cannot read the map `{half_open}`"))?;
    Ok(flows.iter().next().is_some())
}

/// The layout version in the map `settings`; 0 until a start has filled it, or since a detach has begun.
fn version(pins: &Path) -> Result<Option<u32>> {
    let path = pins.join(SETTINGS);
    if !path.exists() {
        return Ok(None);
    }
    let settings: Array<_, Settings> =
        Map::Array(open(&path)?).try_into().context("the map `settings` is not an array")?;
    Ok(Some(settings.get(&0, 0).context("cannot read the map `settings`")?.layout_version))
}

/// Says that nothing in the directory is to be adopted any more, whoever finds what is left of it.
///
/// # Errors
///
/// If the map `settings` is there and cannot be written.
pub(super) fn void(pins: &Path) -> Result<()> {
    let path = pins.join(SETTINGS);
    if !path.exists() {
        return Ok(());
    }
    let map = open(&path)?;
    if map.info()?.value_size() as usize != size_of::<Settings>() {
        // Another version's; ours does not adopt it in any case.
        return Ok(());
    }
    let mut settings: Array<_, Settings> =
        Map::Array(map).try_into().context("the map `settings` is not an array")?;
    settings.set(0, Settings::default(), 0).context("cannot write the map `settings`")
}

fn open(path: &Path) -> Result<MapData> {
    MapData::from_pin(path).with_context(|| format!("cannot open {}", path.display()))
}

fn links(pins: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(pins) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {}", pins.display()))?,
    };
    let mut links = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", pins.display()))?.path();
        if is_link(&path) {
            links.push(path);
        }
    }
    Ok(links)
}
