//! Flags for bpf-linker.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // Without it bpf-linker turns every memset and memcpy into a call to a byte loop.
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
