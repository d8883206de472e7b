//! What a network interface and its driver can do: from route netlink, from the kernel's `ethtool` family (5.8) and
//! from its `netdev` family (6.3).

use std::collections::BTreeSet;
use std::path::Path;

use ethtool::{EthtoolAttr, EthtoolChannelAttr, EthtoolFeatureAttr, EthtoolHandle};
use futures::{StreamExt, TryStreamExt};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla, NlasIterator,
    ParseableParametrized,
};

use super::Error;
use super::netlink::Netlink;

/// An interface of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its frames are Ethernet.
    pub is_ethernet: bool,
    /// Operational (RFC 2863).
    pub is_up: bool,
    /// Bytes, from the IP header on.
    pub mtu: u32,
    /// The driver, or the kind of a virtual interface.
    pub driver: Option<String>,
    /// Receive and transmit queues that it has room for.
    pub queues: (u32, u32),
    /// Queues in use and the most there can be, as `ethtool -l` shows them: receiving, those that do both included.
    pub channels: Option<(u32, u32)>,
    /// Names of the features that are on (`ethtool -k`); `None` if they cannot be had.
    pub features: Option<BTreeSet<String>>,
    /// What its driver can do with XDP; `None` where the kernel does not say (before 6.3).
    pub xdp: Option<XdpFeatures>,
    /// An XDP program is attached, in this mode: `native`, `generic` or `offloaded`.
    pub attached: Option<&'static str>,
    /// VLAN interfaces on top of it.
    pub vlans: Vec<String>,
    /// It is a port of a bridge or bond: the index of that.
    pub controller: Option<u32>,
}

impl Nic {
    /// Whether a feature is on; unknown ones are not.
    pub fn has(&self, feature: &str) -> bool {
        self.features.as_ref().is_some_and(|features| features.contains(feature))
    }
}

/// `enum netdev_xdp_act` of the kernel (`include/uapi/linux/netdev.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// The driver runs programs: verdicts up to XDP_TX.
    pub const BASIC: Self = Self(1 << 0);
    /// The driver obeys XDP_REDIRECT.
    pub const REDIRECT: Self = Self(1 << 1);
    /// The driver sends what others redirect to it.
    pub const NDO_XMIT: Self = Self(1 << 2);
    /// The driver shows frames in several buffers.
    pub const RX_SG: Self = Self(1 << 5);

    /// Whether it has all of these.
    pub const fn has(self, features: Self) -> bool {
        self.0 & features.0 == features.0
    }
}

/// The interfaces of the namespace of the calling thread. What the kernel does not tell of an interface is left out.
///
/// # Errors
///
/// If the links cannot be listed.
pub async fn list() -> Result<Vec<Nic>, Error> {
    let messages = Netlink::open()?.link_messages()?;
    let mut nics: Vec<Nic> = messages.iter().map(from_link).collect();
    for message in &messages {
        let name = from_link(message).name;
        if kind(message).as_deref() == Some("vlan")
            && let Some(parent) = parent(message)
            && let Some(parent) = nics.iter_mut().find(|nic| nic.ifindex == parent)
        {
            parent.vlans.push(name);
        }
    }
    // An unprivileged caller, or a kernel without these families, has to go without.
    if let Ok((connection, mut handle, _)) = ethtool::new_connection() {
        let connection = tokio::spawn(connection);
        for nic in &mut nics {
            nic.xdp = xdp_features(&mut handle, nic.ifindex).await;
            nic.features = features(&mut handle, &nic.name).await;
            nic.channels = channels(&mut handle, &nic.name).await;
        }
        connection.abort();
    }
    Ok(nics)
}

fn from_link(message: &LinkMessage) -> Nic {
    let mut nic = Nic {
        ifindex: message.header.index,
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_up: message.header.flags.contains(LinkFlags::Up | LinkFlags::Running),
        driver: kind(message),
        ..Nic::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => nic.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => nic.mtu = *mtu,
            LinkAttribute::NumRxQueues(count) => nic.queues.0 = *count,
            LinkAttribute::NumTxQueues(count) => nic.queues.1 = *count,
            LinkAttribute::Controller(controller) => nic.controller = Some(*controller),
            LinkAttribute::Xdp(attributes) => nic.attached = attributes.iter().find_map(attached),
            _ => {}
        }
    }
    if nic.driver.is_none() {
        let link = Path::new("/sys/class/net").join(&nic.name).join("device/driver");
        let driver = std::fs::read_link(link).ok();
        nic.driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    }
    nic
}

fn attached(attribute: &LinkXdp) -> Option<&'static str> {
    let LinkXdp::Attached(mode) = attribute else { return None };
    match mode {
        XdpAttached::Driver | XdpAttached::Multiple => Some("native"),
        XdpAttached::SocketBuffer => Some("generic"),
        XdpAttached::Hardware => Some("offloaded"),
        _ => None,
    }
}

/// The kind of a virtual interface: `veth`, `vlan`, `bond`.
fn kind(message: &LinkMessage) -> Option<String> {
    let of_attribute = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.to_string()),
            _ => None,
        }),
        _ => None,
    };
    message.attributes.iter().find_map(of_attribute)
}

fn parent(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(parent) => Some(*parent),
        _ => None,
    })
}

async fn features(handle: &mut EthtoolHandle, interface: &str) -> Option<BTreeSet<String>> {
    let stream = handle.feature().get(Some(interface)).execute().await.ok()?;
    let messages: Vec<_> = stream.try_collect().await.ok()?;
    let mut features = BTreeSet::new();
    for attribute in messages.into_iter().flat_map(|message| message.payload.nlas) {
        if let EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) = attribute {
            features.extend(bits.into_iter().filter(|bit| bit.value).map(|bit| bit.name));
        }
    }
    Some(features)
}

/// Queues that receive: in use, and the most there can be.
async fn channels(handle: &mut EthtoolHandle, interface: &str) -> Option<(u32, u32)> {
    let stream = handle.channel().get(Some(interface)).execute().await.ok()?;
    let messages: Vec<_> = stream.try_collect().await.ok()?;
    let (mut used, mut most) = (0, 0);
    for attribute in messages.into_iter().flat_map(|message| message.payload.nlas) {
        match attribute {
            EthtoolAttr::Channel(
                EthtoolChannelAttr::RxCount(count) | EthtoolChannelAttr::CombinedCount(count),
            ) => {
                used += count;
            }
            EthtoolAttr::Channel(
                EthtoolChannelAttr::RxMax(count) | EthtoolChannelAttr::CombinedMax(count),
            ) => {
                most += count;
            }
            _ => {}
        }
    }
    (most > 0).then_some((used, most))
}

/// What an interface can do with XDP. Asked one by one: the kernel does not mark the parts of a whole list as such, and
/// the library takes the first for all there is.
async fn xdp_features(handle: &mut EthtoolHandle, ifindex: u32) -> Option<XdpFeatures> {
    let question = Netdev { ifindex, ..Netdev::default() };
    let mut request = NetlinkMessage::from(GenlMessage::from_payload(question));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.handle.request(request).await.ok()?;
    match answers.next().await?.ok()?.payload {
        NetlinkPayload::InnerMessage(answer) => answer.payload.xdp_features,
        _ => None,
    }
}

/// A message of the family `netdev`, command NETDEV_CMD_DEV_GET.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Netdev {
    ifindex: u32,
    xdp_features: Option<XdpFeatures>,
}

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        NETDEV_CMD_DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

/// A request names the interface and no more.
impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        self.named().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.named().emit(buffer);
    }
}

impl Netdev {
    fn named(&self) -> DefaultNla {
        DefaultNla::new(NETDEV_A_DEV_IFINDEX, self.ifindex.to_ne_bytes().into())
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(buffer: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        use rtnetlink::packet_core::Parseable;
        let mut message = Self::default();
        for attribute in NlasIterator::new(buffer) {
            let attribute = DefaultNla::parse(&attribute?)?;
            let mut value = vec![0; attribute.value_len()];
            attribute.emit_value(&mut value);
            match (attribute.kind(), value.as_slice()) {
                (NETDEV_A_DEV_IFINDEX, &[a, b, c, d]) => message.ifindex = u32::from_ne_bytes([a, b, c, d]),
                (NETDEV_A_DEV_XDP_FEATURES, value) => {
                    message.xdp_features = value.try_into().ok().map(u64::from_ne_bytes).map(XdpFeatures);
                }
                _ => {}
            }
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_loopback_is_found_with_what_it_can_do() {
        let nics = list().await.unwrap();
        let lo = nics.iter().find(|nic| nic.name == "lo").expect("lo");
        assert!(!lo.is_ethernet && lo.mtu > 0 && lo.queues.0 > 0, "{lo:?}");
        // A fixed feature of the loopback on every kernel.
        assert!(lo.has("loopback"), "{lo:?}");
        assert!(lo.channels.is_none(), "{lo:?}");
        // Linux 6.3 says that the loopback has no XDP; an older one says nothing.
        assert!(lo.xdp.is_none_or(|features| features == XdpFeatures(0)), "{lo:?}");
    }
}
