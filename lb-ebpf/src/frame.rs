//! The frame under way: the only place that turns packet memory into references.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{
    bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_store_bytes,
};
use lb_common::{InterfaceMac, NextHop};

use crate::maps::INTERFACES;
use crate::wire::{ETHER_SERVICE_VLAN, ETHER_VLAN, Ethernet, VlanTag, Wire};

/// What is known of a frame besides its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Around {
    ctx: *mut xdp_md,
}

impl Around {
    /// Bytes of the frame that lie together: all of them, unless it is in several buffers.
    #[inline(always)]
    pub(crate) fn linear(self) -> usize {
        // SAFETY: as in `Frame::pointer`.
        let (data, data_end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        data_end - data
    }

    /// Index of the interface it came in through.
    #[inline(always)]
    pub(crate) fn ingress(self) -> u32 {
        // SAFETY: as in `Frame::pointer`.
        unsafe { (*self.ctx).ingress_ifindex }
    }
}

/// Offset of the IP header in a frame without VLAN tags.
pub(crate) const L3: usize = size_of::<Ethernet>();

/// A frame that XDP handed to the program.
pub(crate) struct Frame {
    ctx: *mut xdp_md,
}

impl Frame {
    #[inline(always)]
    pub(crate) const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    /// The header at `offset`, if the linear part of the frame reaches that far.
    #[inline(always)]
    pub(crate) fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        // SAFETY: `pointer` returns an address whose `size_of::<T>()` bytes lie inside the frame; `T` is valid
        // for every bit pattern and its alignment of at most 2 holds at the even offsets of headers. The
        // borrow of `self` keeps `at_mut` from handing out the same bytes.
        self.pointer(offset).map(|header| unsafe { &*header })
    }

    /// The header at `offset`, to be rewritten.
    #[inline(always)]
    pub(crate) fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as in `at`; the exclusive borrow of `self` makes this the only reference.
        self.pointer(offset).map(|header| unsafe { &mut *header })
    }

    /// The headers that the frame begins with, to be rewritten, and what there is to know besides.
    #[inline(always)]
    pub(crate) fn parts<T: Wire>(&mut self) -> Option<(&mut T, Around)> {
        let around = Around { ctx: self.ctx };
        self.at_mut(0).map(|headers| (headers, around))
    }

    #[inline(always)]
    fn pointer<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: the kernel passes a valid context, and it outlives the program's run.
        let (data, data_end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        let header = data + offset;
        if header + size_of::<T>() > data_end {
            return None;
        }
        Some(header as *mut T)
    }

    /// Type field of the Ethernet header, network order.
    #[inline(always)]
    pub(crate) fn ether_type(&self) -> Option<u16> {
        self.at::<Ethernet>(0).map(|ethernet| ethernet.ether_type)
    }

    /// Type of what the frame carries, in network order, and its offset: behind one VLAN tag, two, or none. The type is
    /// that of a tag where there are more.
    #[inline(always)]
    pub(crate) fn carries(&self) -> Option<(u16, usize)> {
        let mut ether_type = self.ether_type()?;
        let mut l3 = L3;
        for _ in 0..2 {
            if ether_type != ETHER_VLAN && ether_type != ETHER_SERVICE_VLAN {
                break;
            }
            ether_type = self.at::<VlanTag>(l3)?.ether_type;
            l3 += size_of::<VlanTag>();
        }
        Some((ether_type, l3))
    }

    /// Bytes of the linear part.
    #[inline(always)]
    pub(crate) fn linear(&self) -> usize {
        Around { ctx: self.ctx }.linear()
    }

    /// Bytes of the frame, counting those beyond the linear part.
    #[inline(always)]
    pub(crate) fn length(&self) -> u64 {
        // SAFETY: the helper reads the context only (kernel 5.18).
        unsafe { bpf_xdp_get_buff_len(self.ctx) }
    }

    /// Cuts the frame off behind `length` bytes. `None` if it cannot be done.
    #[inline(always)]
    pub(crate) fn cut(&mut self, length: usize) -> Option<()> {
        let delta = length as i64 - self.length() as i64;
        // SAFETY: the helper changes where the frame ends; every reference into it was borrowed from `self` and is
        // gone.
        let result = unsafe { bpf_xdp_adjust_tail(self.ctx, delta as i32) };
        (result == 0).then_some(())
    }

    /// Makes room for `bytes` more before the first one. `None` if there is none.
    #[inline(always)]
    pub(crate) fn grow_front(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: as in `cut`, for where the frame begins.
        let result = unsafe { bpf_xdp_adjust_head(self.ctx, -(bytes as i32)) };
        (result == 0).then_some(())
    }

    /// The context, for helpers that want it.
    #[inline(always)]
    pub(crate) const fn context(&self) -> *mut xdp_md {
        self.ctx
    }

    /// Whether the frame holds `length` bytes, counting those beyond the linear part.
    #[inline(always)]
    pub(crate) fn holds(&self, length: usize) -> bool {
        // Compared as numbers: before Linux 6.13 the verifier refuses to add a length it knows little of to a pointer.
        length <= self.linear() || self.length() >= length as u64
    }

    /// Writes bytes over the first ones. `None` if the frame is shorter.
    #[inline(always)]
    pub(crate) fn overwrite<T>(&mut self, bytes: &T) -> Option<()> {
        let from = core::ptr::from_ref(bytes).cast_mut().cast();
        // SAFETY: the helper reads `size_of::<T>()` bytes and checks the length of the frame (kernel 5.18).
        let result = unsafe { bpf_xdp_store_bytes(self.ctx, 0, from, size_of::<T>() as u32) };
        (result == 0).then_some(())
    }

    /// Index of the interface it came in through.
    #[inline(always)]
    pub(crate) fn ingress(&self) -> u32 {
        Around { ctx: self.ctx }.ingress()
    }

    /// Whether it was sent to this host, not to a group, nor to another host and flooded by a switch.
    ///
    /// An interface that the controller did not attach to itself (the port of a bond runs the bond's program) is
    /// taken at the word of any address that is not a group's: the lowest bit of the first byte (IEEE 802.3, 3.2.3).
    #[inline(always)]
    pub(crate) fn is_to_this_host(&self) -> bool {
        self.is_to_this(self.interface())
    }

    /// The same where the interface it came in through is known.
    #[inline(always)]
    pub(crate) fn is_to_this(&self, interface: Option<&InterfaceMac>) -> bool {
        let Some(ethernet) = self.at::<Ethernet>(0) else { return false };
        match interface {
            Some(own) => mac(ethernet.destination) == own.mac,
            None => ethernet.destination[0] & GROUP == 0,
        }
    }

    /// Whether it was sent to this address.
    #[inline(always)]
    pub(crate) fn is_to(&self, address: [u8; 6]) -> bool {
        self.at::<Ethernet>(0).is_some_and(|ethernet| mac(ethernet.destination) == address)
    }

    /// The interface it came in through, if the controller attached the program to it.
    #[inline(always)]
    pub(crate) fn interface(&self) -> Option<&'static InterfaceMac> {
        // SAFETY: the map is preallocated and only the controller writes it; whoever reads a MAC while it changes
        // leaves one frame to the kernel.
        unsafe { INTERFACES.get(&self.ingress()) }
    }

    /// The way back to whoever sent this frame on its link.
    #[inline(always)]
    pub(crate) fn sender(&self) -> Option<NextHop> {
        let [a, b, c] = self.at::<Ethernet>(0)?.addresses();
        // Six bytes each: the source comes first here, the destination first in a frame.
        let turned = |low: u32, high: u32| low >> 16 | high << 16;
        Some(NextHop::from_words([self.ingress(), turned(b, c), turned(c, a), turned(a, b)]))
    }
}

/// The bit of a MAC's first word that marks a group.
const GROUP: u16 = u16::from_ne_bytes([1, 0]);

#[inline(always)]
fn mac(words: [u16; 3]) -> [u8; 6] {
    let [[a, b], [c, d], [e, f]] = words.map(u16::to_ne_bytes);
    [a, b, c, d, e, f]
}
