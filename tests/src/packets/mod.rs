//! The packet harness: the real XDP program answers single frames through BPF_PROG_TEST_RUN, without network
//! namespaces and without attaching it anywhere. Needs root, and nothing of the host but its loopback interface.
//!
//! | file | what it does |
//! | --- | --- |
//! | `bench` | a loaded data plane with its controller's half, and whatever a test asks of it |
//! | `plane` | the data plane itself, kept from test to test |
//! | `states` | what the controller would learn from checks and netlink: health and next hops |
//! | `counts` | all counters at one moment, and what moved between two |
//! | `network` | who is who in the cases: hosts, interfaces, addresses of both families |
//! | `case` | the format of the case files; described for their authors in `tests/packets/README.md` |
//! | `settings` | from the configuration of a case to the one the controller reads |
//! | `packet` | builds the frame that a case describes |
//! | `symbols` | values that a case names without knowing them: `$port` |
//! | `oracle` | what must come out, and whether checksums are right; shares no code with the program |
//! | `play` | plays a case, step by step |
//! | `interfaces` | a second interface, for cases with two arms |

pub mod bench;
pub mod case;
pub mod counts;
pub mod interfaces;
pub mod network;
pub mod oracle;
pub mod packet;
mod plane;
pub mod play;
pub mod settings;
pub mod states;
pub mod symbols;

pub use bench::{Answer, Bench, Verdict};
pub use counts::Counts;
pub use network::{Family, Network};
pub use plane::Half;
pub use states::States;
