//! Network cards: whether their driver runs the program, and what they do to packets before it sees them.

use super::{Finding, Grade};
use crate::config::XdpMode;
use crate::network::nic::{Nic, XdpFeatures};

/// Largest packet that fits a page beside what XDP needs around it, for a driver that shows a frame in one buffer only.
const ONE_BUFFER_MTU: u32 = 3_506;

/// Judges one interface that the program is or would be attached to.
pub fn judge(nic: &Nic, mode: XdpMode, cpus: u32) -> Vec<Finding> {
    let mut findings = vec![link(nic), xdp(nic, mode)];
    if mode != XdpMode::Generic {
        findings.extend(mtu(nic));
    }
    findings.extend(queues(nic, cpus));
    findings.extend(merging(nic));
    findings.push(vlan(nic));
    findings.into_iter().map(|finding| finding.of(&nic.name)).collect()
}

fn link(nic: &Nic) -> Finding {
    let driver = nic.driver.as_deref().unwrap_or("unknown");
    match () {
        () if !nic.is_ethernet => {
            Finding::new(Grade::Unfit, "link", "its frames are not Ethernet, which lb does not forward")
                .fix("name an Ethernet interface in lb.interfaces")
        }
        () if nic.controller.is_some() => Finding::new(
            Grade::Warning,
            "link",
            "it is a port of a bridge or bond: the program sees frames before that, and takes those for the VIPs",
        )
        .fix("attach to the bond or bridge itself, or accept that addresses and routes are those of the port"),
        () if !nic.is_up => Finding::new(Grade::Warning, "link", "it is down, or without a carrier")
            .fix(format!("ip link set {} up; is the cable in?", nic.name)),
        () => Finding::new(Grade::Ok, "link", format!("up, MTU {}, driver {driver}", nic.mtu)),
    }
}

fn xdp(nic: &Nic, mode: XdpMode) -> Finding {
    if let Some(attached) = nic.attached {
        let text = format!("an XDP program is attached in {attached} mode");
        return if is_ours(&nic.name) {
            Finding::new(Grade::Ok, "xdp", format!("{text}: that of lb"))
        } else {
            Finding::new(Grade::Warning, "xdp", format!("{text}, not by lb, and lb cannot attach beside it"))
                .fix(format!("`bpftool net` shows it; `ip link set dev {} xdp off` removes it", nic.name))
        };
    }
    let native = nic.xdp.map(|features| features.has(XdpFeatures::BASIC));
    match (mode, native) {
        (XdpMode::Generic, _) => Finding::new(
            Grade::Ok,
            "xdp",
            "generic mode, as the configuration says: any driver can do it, more slowly",
        ),
        (_, Some(true)) => Finding::new(Grade::Ok, "xdp", "its driver runs XDP programs (native mode)"),
        (XdpMode::Native, Some(false)) => Finding::new(Grade::Unfit, "xdp", no_native(nic))
            .fix(format!("{}; or set xdp_mode = \"auto\"", cure(nic))),
        (XdpMode::Auto, Some(false)) => Finding::new(
            Grade::Warning,
            "xdp",
            format!("{}; lb falls back to generic mode, which is slower", no_native(nic)),
        )
        .fix(cure(nic)),
        (_, None) => Finding::new(
            Grade::Note,
            "xdp",
            "the kernel does not say whether its driver runs XDP programs (it does from Linux 6.3 on)",
        )
        .fix("`lb run` tries, and says which mode it got"),
    }
}

fn no_native(nic: &Nic) -> String {
    match nic.driver.as_deref() {
        Some("veth") => {
            "veth runs no XDP program as it is set up: it has fewer receive queues than its peer has \
                         transmit queues"
                .to_owned()
        }
        Some(driver) => format!("the driver {driver} runs no XDP programs as it is set up"),
        None => "its driver runs no XDP programs".to_owned(),
    }
}

fn cure(nic: &Nic) -> String {
    match nic.driver.as_deref() {
        Some("veth") => format!("ethtool -L {} rx N, with N the transmit queues of its peer", nic.name),
        Some("virtio_net") => "give the virtual machine twice as many queues as processors".to_owned(),
        Some("vlan" | "bridge") => "attach to the interface below it".to_owned(),
        _ => {
            "use another card or a newer driver; some need LRO off, fewer queues or a smaller MTU".to_owned()
        }
    }
}

/// Whether an instance of lb has pinned a link for this interface.
fn is_ours(interface: &str) -> bool {
    let Ok(instances) = std::fs::read_dir("/sys/fs/bpf") else { return false };
    let interface = interface.replace('%', "%25").replace('.', "%2E");
    instances.flatten().any(|instance| {
        let pin = |mode: &str| instance.path().join(format!("link_{mode}_{interface}"));
        pin("native").exists() || pin("generic").exists()
    })
}

fn mtu(nic: &Nic) -> Option<Finding> {
    let one_buffer = nic.xdp.is_some_and(|features| !features.has(XdpFeatures::RX_SG));
    (nic.mtu > ONE_BUFFER_MTU && one_buffer).then(|| {
        let text =
            format!("MTU {} is more than its driver fits into one buffer, as XDP needs it to", nic.mtu);
        Finding::new(Grade::Warning, "mtu", text)
            .fix(format!("ip link set {} mtu {ONE_BUFFER_MTU}, or xdp_mode = \"generic\"", nic.name))
    })
}

fn queues(nic: &Nic, cpus: u32) -> Option<Finding> {
    let (used, most) = nic.channels.unwrap_or((nic.queues.0, nic.queues.0));
    let text = format!("{used} of {most} receive queues are in use, for {cpus} processors");
    if used >= cpus.min(most) {
        return Some(Finding::new(Grade::Ok, "queues", text));
    }
    let wanted = cpus.min(most);
    Some(
        Finding::new(Grade::Note, "queues", format!("{text}: only so many forward at a time"))
            .fix(format!("ethtool -L {} combined {wanted} (or rx {wanted})", nic.name)),
    )
}

/// Offloads that glue packets together: what comes out is longer than the MTU of the next link.
fn merging(nic: &Nic) -> Vec<Finding> {
    if nic.features.is_none() {
        return vec![
            Finding::new(Grade::Note, "offloads", "its offloads cannot be read")
                .fix(format!("look at `ethtool -k {}`: lro and rx-gro-hw should be off", nic.name)),
        ];
    }
    let mut findings = Vec::new();
    for (feature, option, name) in [("rx-lro", "lro", "LRO"), ("rx-gro-hw", "rx-gro-hw", "hardware GRO")] {
        if nic.has(feature) {
            let text =
                format!("{name} is on: it merges packets, which then no longer fit the link to the backends");
            findings.push(
                Finding::new(Grade::Warning, "offloads", text)
                    .fix(format!("ethtool -K {} {option} off", nic.name)),
            );
        }
    }
    if findings.is_empty() {
        findings.push(Finding::new(Grade::Ok, "offloads", "LRO and hardware GRO are off"));
    }
    findings
}

fn vlan(nic: &Nic) -> Finding {
    let strips = nic.has("rx-vlan-hw-parse");
    match (strips, nic.vlans.as_slice()) {
        (false, _) => Finding::new(Grade::Ok, "vlan", "VLAN tags stay in the frames"),
        (true, []) => Finding::new(
            Grade::Note,
            "vlan",
            "the card takes the outer VLAN tag out of frames; no matter as long as none come tagged",
        ),
        (true, vlans) => {
            let text = format!(
                "the card takes VLAN tags out of frames, so that the program mistakes those of {} for untagged ones",
                vlans.join(", ")
            );
            Finding::new(Grade::Warning, "vlan", text).fix(format!("ethtool -K {} rxvlan off", nic.name))
        }
    }
}

/// Compares the interfaces with each other: a packet that came by one may have to leave by another.
pub fn compare(nics: &[&Nic]) -> Option<Finding> {
    let smallest = nics.iter().min_by_key(|nic| nic.mtu)?;
    let largest = nics.iter().max_by_key(|nic| nic.mtu)?;
    if smallest.mtu == largest.mtu {
        return None;
    }
    let text = format!(
        "MTU {} here, {} on {}: packets that are too long for this one are dropped without a word",
        smallest.mtu, largest.mtu, largest.name
    );
    Some(
        Finding::new(Grade::Warning, "mtu", text)
            .of(&smallest.name)
            .fix(format!("ip link set {} mtu {}", largest.name, smallest.mtu)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Nic {
        Nic {
            name: "eth9".to_owned(),
            is_ethernet: true,
            is_up: true,
            mtu: 1500,
            driver: Some("ixgbe".to_owned()),
            queues: (64, 64),
            channels: Some((2, 8)),
            features: Some(["rx-gro".to_owned()].into()),
            xdp: Some(XdpFeatures(XdpFeatures::BASIC.0 | XdpFeatures::REDIRECT.0 | XdpFeatures::NDO_XMIT.0)),
            ..Nic::default()
        }
    }

    fn complaints(mode: XdpMode, change: impl Fn(&mut Nic)) -> Vec<(Grade, &'static str)> {
        let mut nic = good();
        change(&mut nic);
        let findings = judge(&nic, mode, 2);
        for finding in &findings {
            assert_eq!(finding.subject.as_deref(), Some("eth9"));
            assert!(finding.grade < Grade::Warning || finding.fix.is_some(), "{finding:?}");
        }
        findings.iter().filter(|f| f.grade > Grade::Ok).map(|f| (f.grade, f.check)).collect()
    }

    #[test]
    fn a_good_card_has_nothing_to_complain_of() {
        assert_eq!(complaints(XdpMode::Auto, |_| {}), []);
        assert_eq!(complaints(XdpMode::Native, |_| {}), []);
    }

    #[test]
    fn whether_a_driver_without_native_mode_matters_depends_on_the_mode() {
        let no_xdp = |nic: &mut Nic| nic.xdp = Some(XdpFeatures(0));
        assert_eq!(complaints(XdpMode::Native, no_xdp), [(Grade::Unfit, "xdp")]);
        assert_eq!(complaints(XdpMode::Auto, no_xdp), [(Grade::Warning, "xdp")]);
        assert_eq!(complaints(XdpMode::Generic, no_xdp), []);
        assert_eq!(complaints(XdpMode::Native, |nic| nic.xdp = None), [(Grade::Note, "xdp")]);
        assert_eq!(complaints(XdpMode::Auto, |nic| nic.attached = Some("native")), [(Grade::Warning, "xdp")]);
    }

    #[test]
    fn what_a_card_does_to_packets_is_found() {
        let on = |feature: &'static str| {
            move |nic: &mut Nic| {
                nic.features.get_or_insert_default().insert(feature.to_owned());
            }
        };
        assert_eq!(complaints(XdpMode::Auto, on("rx-lro")), [(Grade::Warning, "offloads")]);
        assert_eq!(complaints(XdpMode::Auto, on("rx-gro-hw")), [(Grade::Warning, "offloads")]);
        assert_eq!(complaints(XdpMode::Auto, on("rx-vlan-hw-parse")), [(Grade::Note, "vlan")]);
        let tagged = |nic: &mut Nic| {
            on("rx-vlan-hw-parse")(nic);
            nic.vlans = vec!["eth9.7".to_owned()];
        };
        assert_eq!(complaints(XdpMode::Auto, tagged), [(Grade::Warning, "vlan")]);
        assert_eq!(complaints(XdpMode::Auto, |nic| nic.features = None)[0], (Grade::Note, "offloads"));
        assert_eq!(complaints(XdpMode::Auto, |nic| nic.mtu = 9000), [(Grade::Warning, "mtu")]);
        assert_eq!(complaints(XdpMode::Auto, |nic| nic.channels = Some((1, 8))), [(Grade::Note, "queues")]);
        assert_eq!(complaints(XdpMode::Auto, |nic| nic.is_up = false), [(Grade::Warning, "link")]);
        assert_eq!(complaints(XdpMode::Auto, |nic| nic.is_ethernet = false), [(Grade::Unfit, "link")]);
    }

    #[test]
    fn different_mtus_are_found() {
        let (one, mut other) = (good(), good());
        assert_eq!(compare(&[&one, &other]), None);
        other.mtu = 1400;
        other.name = "eth8".to_owned();
        let finding = compare(&[&one, &other]).unwrap();
        assert_eq!((finding.grade, finding.subject.as_deref()), (Grade::Warning, Some("eth8")));
        assert_eq!(finding.fix.as_deref(), Some("ip link set eth9 mtu 1400"));
    }
}
