//! The network that packets go through: client - balancer - backend, two links.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context as _, Result};
use lb_tests::netns::{Host, Lb, Net};

use crate::subject::{BACKEND, CLIENT, NEAR_BACKEND, Subject, VIP};

/// MAC addresses of the link that packets are sent into.
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Where the backend answers health checks.
const CHECKED_PORT: u16 = 8081;

/// Everybody, with what forwards in the middle.
pub(crate) struct Site {
    pub(crate) client: Host,
    pub(crate) balancer: Host,
    pub(crate) backend: Host,
    _net: Net,
}

impl Site {
    /// Links the hosts and sets up who forwards. The interfaces are `client`, `front`, `back` and `backend`, in the order
    /// of the way.
    pub(crate) fn new() -> Result<Self> {
        let net = Net::new()?;
        let [client, balancer, backend] = ["client", "balancer", "backend"].map(|name| net.host(name));
        let site = Self { client: client?, balancer: balancer?, backend: backend?, _net: net };
        let Self { client, balancer, backend, .. } = &site;
        let [mac, own] =
            [CLIENT_MAC, BALANCER_MAC].map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        client.run_all(&[
            &format!(
                "ip link add client address {mac} type veth peer name front address {own} netns {}",
                balancer.net_path()
            ),
            &format!("ip address add {}/16 dev client", CLIENT.ip()),
            "ip link set client up",
        ])?;
        balancer.run_all(&[
            &format!("ip link add back type veth peer name backend netns {}", backend.net_path()),
            "ip address add 10.1.0.1/16 dev front",
            &format!("ip address add {NEAR_BACKEND}/24 dev back"),
            "ip link set front up",
            "ip link set back up",
        ])?;
        backend.run_all(&[
            &format!("ip address add {}/24 dev backend", BACKEND.ip()),
            "ip link set backend up",
            &format!("ip route add default via {NEAR_BACKEND}"),
            "ethtool --features backend tx off",
        ])?;
        // Frames that a program has sent are taken in by NAPI alone, which GRO switches on. It sticks only when both ends are up.
        balancer.run("ethtool --features front gro on")?.success()?;
        Ok(site)
    }

    /// Sets up who forwards. Whatever has to go on running does so as long as the site.
    pub(crate) fn set_up(&self, subject: Subject) -> Result<()> {
        match subject {
            Subject::Nobody => Ok(()),
            Subject::Routing => self.route(),
            Subject::Dnat => self.translate(""),
            Subject::Masquerade => self.translate(
                "chain after { type nat hook postrouting priority srcnat; oifname \"back\" masquerade; }",
            ),
            Subject::Ipvs => {
                self.route()?;
                self.balancer.run_all(&[
                    &format!("ip address add {}/32 dev lo", VIP.ip()),
                    &format!("ipvsadm --add-service --udp-service {VIP} --scheduler rr"),
                    &format!(
                        "ipvsadm --add-server --udp-service {VIP} --real-server {BACKEND} --masquerading"
                    ),
                ])
            }
            Subject::LbNative | Subject::LbGeneric => self.balance(subject.xdp_mode().unwrap_or("auto")),
        }
    }

    fn route(&self) -> Result<()> {
        self.balancer.sysctl("net/ipv4/ip_forward", 1)
    }

    fn translate(&self, more: &str) -> Result<()> {
        self.route()?;
        let rules = format!(
            "table ip nat {{\n\
             chain before {{ type nat hook prerouting priority dstnat; \
             ip daddr {} udp dport {} dnat to {BACKEND}; }}\n{more}\n}}\n",
            VIP.ip(),
            VIP.port()
        );
        self.balancer.write("/run/rules", &rules)?;
        self.balancer.run("nft --file /run/rules")?.success().map(drop)
    }

    /// Starts `lb`, waits until it forwards, and stops the controller: the program goes on, and nothing but packets counts.
    fn balance(&self, xdp_mode: &str) -> Result<()> {
        let address = SocketAddr::new((*BACKEND.ip()).into(), CHECKED_PORT);
        let listener =
            self.backend.enter(|| TcpListener::bind(address).with_context(|| format!("bind {address}")))?;
        // It ends with the virtual machine.
        thread::spawn(move || listener.incoming().for_each(drop));
        let config = format!(
            "[lb]\ninterfaces = [\"front\", \"back\"]\nxdp_mode = \"{xdp_mode}\"\n\
             [[listener]]\nname = \"web\"\naddress = \"{}\"\nprotocol = \"udp\"\nport = {}\nbackend_set = \"web\"\n\
             [[backend_set.web.backend]]\naddress = \"{}\"\nport = {}\n\
             [backend_set.web.health_check]\nprotocol = \"tcp\"\nport = {CHECKED_PORT}\ninterval_ms = 1000\ntimeout_ms = 1000\n",
            VIP.ip(),
            VIP.port(),
            BACKEND.ip(),
            BACKEND.port()
        );
        Lb::start_with_rotation(&self.balancer, &config, 1)?.stop()
    }
}
