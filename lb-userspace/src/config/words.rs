//! The enumerations of the configuration file, each value with its word.

use serde::Serialize;

/// An enumeration whose values are written in the file as words.
pub trait Word: Copy + Eq + 'static {
    /// Every value, in the order of the documentation.
    const ALL: &'static [Self];

    /// The word of the file for this value.
    fn word(self) -> &'static str;
}

/// Declares an enumeration whose values are written in the file as the given words.
macro_rules! words {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $vdoc:literal])+ $variant:ident = $word:literal,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        pub enum $name { $($(#[doc = $vdoc])+ #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// The words of the file, in the order of the variants.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The value for a word of the file.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }

            /// The word of the file for this value.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn word(self) -> &'static str {
                self.word()
            }
        }
    };
}

words! {
    /// How XDP attaches.
    XdpMode {
        /// Native, falling back to generic with a loud line.
        Auto = "auto",
        /// In the driver.
        Native = "native",
        /// In the kernel's generic path: any driver, slower.
        Generic = "generic",
    }
}

words! {
    /// What becomes of the data plane when the controller is stopped by a signal.
    OnExit {
        /// It keeps forwarding with the last rotation.
        Keep = "keep",
        /// It is removed.
        Detach = "detach",
    }
}

words! {
    /// What a listener accepts.
    Protocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
        /// Both, on the same port.
        TcpAndUdp = "tcp_and_udp",
    }
}

words! {
    /// What happens to a TCP packet without SYN that belongs to no flow.
    OnUntrackedTcp {
        /// A flow is made for it, choosing by the same hash.
        Pickup = "pickup",
        /// It is answered with a RST.
        Reset = "reset",
        /// It is dropped.
        Drop = "drop",
    }
}

words! {
    /// What is hashed to choose a backend.
    Policy {
        /// Addresses, ports, protocol.
        FiveTuple = "five_tuple",
        /// Addresses, protocol.
        ThreeTuple = "three_tuple",
        /// Addresses.
        TwoTuple = "two_tuple",
        /// The client's address.
        SourceIp = "source_ip",
    }
}

words! {
    /// How packets get to the backend.
    Mode {
        /// Destination (and source) translation.
        Nat = "nat",
        /// Direct server return on the same segment.
        Dsr = "dsr",
    }
}

words! {
    /// When the source of a flow is translated.
    Snat {
        /// Always.
        Always = "always",
        /// Where the answer would otherwise bypass the balancer.
        Auto = "auto",
        /// Never; only the port, where two flows would collide.
        Never = "never",
    }
}

words! {
    /// What happens to the flows of a backend that leaves the rotation by health.
    OnUnhealthy {
        /// They stay.
        Keep = "keep",
        /// The next packet chooses anew.
        Move = "move",
        /// They are reset.
        Reset = "reset",
    }
}

words! {
    /// What a new flow gets when the rotation is empty.
    NoBackendAction {
        /// Nothing.
        Drop = "drop",
        /// TCP RST or ICMP port unreachable.
        Reset = "reset",
    }
}

words! {
    /// What a health check speaks.
    CheckProtocol {
        /// TCP connect, or request and response bytes.
        Tcp = "tcp",
        /// HTTP/1.1.
        Http = "http",
        /// HTTP/1.1 over TLS.
        Https = "https",
        /// One datagram.
        Udp = "udp",
        /// A DNS query.
        Dns = "dns",
    }
}

words! {
    /// HTTP request method of a check.
    Method {
        /// GET.
        Get = "GET",
        /// HEAD.
        Head = "HEAD",
    }
}

words! {
    /// DNS class.
    DnsClass {
        /// Internet.
        In = "IN",
        /// Chaos.
        Ch = "CH",
    }
}

words! {
    /// DNS record type.
    DnsType {
        /// IPv4 address.
        A = "A",
        /// IPv6 address.
        Aaaa = "AAAA",
        /// Text.
        Txt = "TXT",
    }
}

words! {
    /// Transport of a DNS check.
    DnsTransport {
        /// UDP.
        Udp = "udp",
        /// TCP.
        Tcp = "tcp",
    }
}

words! {
    /// DNS response codes a check may accept.
    Rcode {
        /// 0
        NoError = "NOERROR",
        /// 2
        ServFail = "SERVFAIL",
        /// 3
        NxDomain = "NXDOMAIN",
        /// 5
        Refused = "REFUSED",
    }
}
