//! What the programs were loaded for. It stands in read-only data, so the kernel knows it when it verifies them, and removes what
//! nobody asked for.

use aya_ebpf::Global;
use lb_common::Features;

/// The bits of [`Features`].
#[unsafe(no_mangle)]
static FEATURES: Global<u32> = Global::new(Features::ALL.bits());

/// Whether the configuration makes use of this.
#[inline(always)]
pub(crate) fn uses(feature: Features) -> bool {
    Features::from_bits(FEATURES.load()).include(feature)
}
