//! A program that passes every packet.
//!
//! veth delivers what an XDP program sends (XDP_TX, XDP_REDIRECT) only if the other end runs an XDP program too,
//! or, on newer kernels and for redirects only, has NAPI. A physical network has no such rule, so the harness puts
//! this program where the balancer's cable ends.

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

/// `r0 = XDP_PASS; exit`
const INSTRUCTIONS: [u64; 2] = [0x2_0000_00b7, 0x95];
const LICENSE: &[u8] = b"MIT\0";

// Constants and argument layouts of include/uapi/linux/bpf.h and if_link.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches the program natively to an interface of the calling thread's network namespace, until the returned
/// link is dropped.
pub(super) fn attach(interface: &str) -> Result<OwnedFd> {
    let program = bpf(
        BPF_PROG_LOAD,
        &ProgramLoad {
            prog_type: BPF_PROG_TYPE_XDP,
            insn_cnt: INSTRUCTIONS.len() as u32,
            insns: INSTRUCTIONS.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            // Without it the other end could not have a large MTU.
            prog_flags: BPF_F_XDP_HAS_FRAGS,
        },
    )
    .context("load a program that passes every packet")?;
    let link = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    bpf(BPF_LINK_CREATE, &link)
        .with_context(|| format!("attach a program that passes every packet to {interface}"))
}

/// bpf(2) for the commands that return a descriptor.
fn bpf<Arguments>(command: libc::c_int, arguments: &Arguments) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of_val(arguments)` bytes of a live, padding-free value and, for a program,
    // the constants it points to; it writes nothing.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(arguments),
            size_of_val(arguments) as libc::c_uint,
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
