//! Embeds the eBPF object that `cargo xtask build` made.
fn main() {}
