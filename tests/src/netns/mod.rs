//! The namespace harness: small networks of real hosts, real links and real clients around the real `lb`.
//!
//! From the bottom up: a [`Namespace`] is what makes a [`Host`]; a [`Net`] links hosts by bridges; a [`Lab`] is a
//! finished topology with a client, a balancer and three servers; [`Lb`] runs the product in it, with a [`Config`]
//! or with a set for each [`Checked`] thing; [`traffic`] holds the clients that no command-line tool replaces, and
//! [`Visitors`] the server that notes who came and when.
//!
//! **Nothing is named, so nothing is left behind.** Namespaces live through descriptors of the test process, their
//! processes die with the thread that started them. When a test returns, panics or is killed with SIGKILL, the
//! kernel takes down interfaces, programs, mounts and processes; two runs at a time cannot meet.
//!
//! The rules that veth, XDP and checksums impose are applied in one place, [`Bridge::plug`] and
//! [`Bridge::plug_balancer`].

mod checked;
mod config;
mod evidence;
mod host;
mod lab;
mod lb;
mod namespace;
mod net;
mod process;
pub mod traffic;
mod visitors;
pub mod wait;
pub mod wire;
mod xdp_pass;

pub use checked::{Checked, document};
pub use config::{Config, Service};
pub use host::Host;
pub use lab::{BACKENDS, Backend, Family, Lab, Topology};
pub use lb::{Lb, Status};
pub use namespace::Namespace;
pub use net::{Bridge, Net};
pub use process::{Output, Process, binary};
pub use visitors::{Visit, Visitors};
