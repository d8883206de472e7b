//! Embeds the eBPF object that `cargo xtask build` made.
fn main() {
    println!("cargo:rerun-if-changed=../target/ebpf/bpfel-unknown-none/release/lb");
    println!(
        "cargo:rustc-env=LB_EBPF_OBJECT={}/../target/ebpf/bpfel-unknown-none/release/lb",
        std::env::var("CARGO_MANIFEST_DIR").unwrap()
    );
}
