//! Laying the headers of one flow after the other into a packet.

use core::ptr;

use aya_ebpf::programs::XdpContext;

/// Where in a packet the fields are that tell one flow from another, in bytes.
pub(crate) struct Fields {
    /// Last two bytes of the source address.
    pub(crate) address: usize,
    /// Source port.
    pub(crate) port: usize,
    /// Two bytes that only the IPv4 header checksum covers, to keep it the same: the identification.
    pub(crate) balance_ip: Option<usize>,
    /// Four bytes of TCP or of the payload of UDP, to keep the transport checksum the same.
    pub(crate) balance_transport: usize,
}

/// Of IPv4.
pub(crate) const FIELDS_V4: Fields =
    Fields { address: 28, port: 34, balance_ip: Some(18), balance_transport: 42 };

/// Writes the headers of a flow: 65,536 source addresses, then the same with the next source port. A field and
/// its complement add nothing to a checksum in ones' complement arithmetic, so the checksums of flow 0 hold for
/// all.
#[inline(always)]
pub(crate) fn lay_headers<const WORDS: usize>(
    ctx: &XdpContext,
    fields: &Fields,
    headers: &[u64],
    flow: u32,
) -> Option<()> {
    let (packet, end) = (ctx.data(), ctx.data_end());
    if packet + WORDS * 8 > end {
        return None;
    }
    for (index, word) in headers.iter().take(WORDS).enumerate() {
        // SAFETY: within the bytes checked above; the target takes unaligned stores.
        unsafe { ptr::write_unaligned((packet + index * 8) as *mut u64, *word) };
    }
    let headers = headers.as_ptr() as usize;
    // SAFETY: all fields are within the headers and within the bytes checked above, at even offsets.
    unsafe {
        let address = (*((headers + fields.address) as *const u16)).wrapping_add(flow as u16);
        let port = u16::from_be(*((headers + fields.port) as *const u16));
        let port = port.wrapping_add((flow >> 16) as u16).to_be();
        *((packet + fields.address) as *mut u16) = address;
        *((packet + fields.port) as *mut u16) = port;
        *((packet + fields.balance_transport) as *mut u16) = !address;
        *((packet + fields.balance_transport + 2) as *mut u16) = !port;
        if let Some(offset) = fields.balance_ip {
            *((packet + offset) as *mut u16) = !address;
        }
    }
    Some(())
}

/// The integer at an offset, which must be a constant.
#[inline(always)]
pub(crate) fn load<T: Copy, const LENGTH: usize>(headers: &[u8; LENGTH], offset: usize) -> T {
    assert!(offset + size_of::<T>() <= LENGTH);
    // SAFETY: within the headers, as was just checked; integers are valid whatever they hold.
    unsafe { ptr::read_unaligned(headers.as_ptr().add(offset).cast()) }
}
