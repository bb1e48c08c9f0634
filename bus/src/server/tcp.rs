//! What the kernel knows of a TCP connection: how many bytes went and came, and how long ago the last came. A server's own
//! counters count whole messages, so they stand still while a large one crawls over a slow link.
//!
//! Source: sock_diag(7), `struct tcp_info` of linux/tcp.h.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as KernelAddr};

/// Datagrams read of one answer.
const DATAGRAMS_MAX: usize = 10_000;
/// The largest datagram that the kernel sends.
const DATAGRAM_MAX_BYTES: usize = 64 * 1024;

/// One connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    /// The other end.
    pub peer: SocketAddr,
    /// Bytes that came.
    pub received_bytes: u64,
    /// Bytes that went, and were taken by the other end's kernel.
    pub taken_bytes: u64,
    /// How long ago the last byte came.
    pub quiet_ms: u64,
}

/// The established connections of this network namespace to `peers`, of the process `pid` if one is given: at a proxy,
/// others have connections too.
pub(super) fn connections(peers: &[SocketAddr], pid: Option<u32>) -> io::Result<Vec<Connection>> {
    let own = pid.and_then(|pid| sockets(pid).ok());
    let mut found = Vec::new();
    if peers.iter().any(SocketAddr::is_ipv4) {
        dump(AF_INET, SocketId::new_v4(), own.as_ref(), &mut found)?;
    }
    if peers.iter().any(SocketAddr::is_ipv6) {
        dump(AF_INET6, SocketId::new_v6(), own.as_ref(), &mut found)?;
    }
    found.retain(|connection| peers.contains(&connection.peer));
    Ok(found)
}

/// The inodes of a process' sockets.
fn sockets(pid: u32) -> io::Result<BTreeSet<u32>> {
    let inode = |file: io::Result<std::fs::DirEntry>| {
        let target = std::fs::read_link(file.ok()?.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(inode).collect())
}

fn dump(
    family: u8,
    socket_id: SocketId,
    own: Option<&BTreeSet<u32>>,
    found: &mut Vec<Connection>,
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&KernelAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::ESTABLISHED,
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    for _ in 0..DATAGRAMS_MAX {
        let mut datagram = Vec::with_capacity(DATAGRAM_MAX_BYTES);
        socket.recv(&mut datagram, 0)?;
        if read(&datagram, own, found)? {
            return Ok(());
        }
    }
    Err(io::Error::other("the kernel's list of connections does not end"))
}

/// Takes what one datagram says; `true` when it was the last.
fn read(datagram: &[u8], own: Option<&BTreeSet<u32>>, found: &mut Vec<Connection>) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
        // Messages are aligned to four bytes.
        let length = (message.header.length as usize).next_multiple_of(4);
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response))
                if own.is_none_or(|own| own.contains(&response.header.inode)) =>
            {
                let id = &response.header.socket_id;
                let peer = SocketAddr::new(id.destination_address, id.destination_port);
                found.extend(response.nlas.iter().find_map(|nla| match nla {
                    Nla::TcpInfo(info) => Some(Connection {
                        peer,
                        received_bytes: info.bytes_received,
                        taken_bytes: info.bytes_acked,
                        quiet_ms: u64::from(info.last_data_recv),
                    }),
                    _ => None,
                }));
            }
            _ => {}
        }
        match rest.get(length..) {
            Some(next) if length > 0 => rest = next,
            _ => break,
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_and_silence_are_what_the_kernel_saw() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else { continue };
            let to = listener.local_addr().unwrap();
            let mut near = std::net::TcpStream::connect(to).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            near.write_all(b"0123456789").unwrap();
            far.read_exact(&mut [0; 10]).unwrap();
            far.write_all(b"abc").unwrap();
            near.read_exact(&mut [0; 3]).unwrap();
            let found = connections(&[to], Some(std::process::id())).unwrap();
            let [connection] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!((connection.received_bytes, connection.peer), (3, to));
            assert!(connection.taken_bytes >= 10 && connection.quiet_ms < 60_000, "{connection:?}");
            assert_eq!(connections(&[to], None).unwrap().len(), 1);
            assert_eq!(connections(&[to], Some(1)).unwrap(), [], "another's connection");
            drop((near, far));
            assert_eq!(connections(&[to], None).unwrap(), []);
        }
    }

    #[test]
    fn the_kernels_answers_are_read_whatever_they_are() {
        // Done; an error; an answer (type 20) of the length of its header with one attribute, TCP_INFO (2), cut off.
        let done = b"\x14\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        let error =
            b"\x24\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff\x14\0\0\0\x14\0\0\0\0\0\0\0\0\0\0\0"
                .to_vec();
        let mut answer = b"\x60\0\0\0\x14\0\0\0\0\0\0\0\0\0\0\0\x02\x01\0\0".to_vec();
        answer.resize(16 + 72, 0);
        answer.extend(b"\x08\0\x02\0\0\0\0\0");
        crate::fuzz::try_bytes("the kernel's answer", &[done, error, answer], |bytes| {
            let _ = read(bytes, None, &mut Vec::new());
        });
    }
}
