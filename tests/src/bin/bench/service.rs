//! The listeners of the balancer under test, by what is special about each.

use lb_common::Listener;
use serde::Serialize;

/// A listener of each family, on the same address as the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Service {
    /// The source of every flow is translated.
    Always,
    /// Only where the answer would bypass the balancer, which it never does here.
    Auto,
    /// Only a port that two flows share at the backend, which none do here.
    Never,
    /// Nobody may open a flow.
    Denying,
}

impl Service {
    pub(crate) const ALL: [Self; 4] = [Self::Always, Self::Auto, Self::Never, Self::Denying];

    /// Its port.
    pub(crate) const fn port(self) -> u16 {
        80 + self as u16
    }

    /// First port of the clients that have flows of it: no two clients look alike to a backend.
    pub(crate) const fn client_port(self) -> u16 {
        20_000 + 1000 * self as u16
    }

    /// `snat` of its set, as the program has it.
    pub(crate) const fn snat(self) -> u8 {
        match self {
            Self::Always | Self::Denying => Listener::SNAT_ALWAYS,
            Self::Auto => Listener::SNAT_AUTO,
            Self::Never => Listener::SNAT_NEVER,
        }
    }

    /// The same as in the configuration.
    pub(crate) const fn snat_word(self) -> &'static str {
        match self {
            Self::Always | Self::Denying => "always",
            Self::Auto => "auto",
            Self::Never => "never",
        }
    }

    /// Whether the backend sees another source than the client's.
    pub(crate) const fn translates_source(self) -> bool {
        matches!(self, Self::Always)
    }
}
