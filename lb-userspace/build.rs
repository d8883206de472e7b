//! Embeds the eBPF object: the library finds its path in `env!("LB_EBPF_OBJECT")`.

fn main() -> anyhow::Result<()> {
    xtask::ebpf::embed()
}
