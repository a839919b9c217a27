use super::*;
use crate::net::{clock, hardware};

fn pair(address: &str) -> (TestSocket, TestSocket) {
    let bind = || TestSocket::bind(address.parse().unwrap(), &UdpOptions::default()).unwrap();
    (bind(), bind())
}

/// Sockets of all kinds share the buffers of the thread. No socket may change them so that another
/// loses meta data.
#[tokio::test]
async fn each_packet_comes_with_all_of_its_meta_data() {
    let (a4, b4) = pair("127.0.0.1:0");
    let (a6, b6) = pair("[::1]:0");
    let any4 = TestSocket::bind("0.0.0.0:0".parse().unwrap(), &UdpOptions::default()).unwrap();
    let any6 = TestSocket::bind("[::]:0".parse().unwrap(), &UdpOptions::default()).unwrap();
    for len in [1, 14, 41, 1400, 60_000] {
        for (a, b) in [(&a4, &b4), (&a6, &b6), (&a4, &any4), (&a6, &any6)] {
            let to = SocketAddr::new(a.local().ip(), b.local().port());
            a.send(&vec![7; len], to).unwrap();
            let mut seen = Vec::new();
            b.receive_async(|meta, packet| seen.push((*meta, packet.len()))).await.unwrap();
            let [(meta, received_len)] = seen[..] else { panic!("{} packets", seen.len()) };
            assert_eq!((received_len, meta.source), (len, a.local()));
            assert_eq!(meta.stamp, StampSource::Kernel, "{to}, {len} bytes");
            assert_eq!((meta.ttl, meta.tos), (Some(255), Some(0)));
            assert_eq!(meta.destination, to);
        }
    }
}

/// The kernel enables timestamps some time after the first socket of the host asks for them.
async fn until_the_kernel_stamps(socket: &TestSocket) {
    let mut stamp = StampSource::User;
    while stamp == StampSource::User {
        socket.send(&[0; 41], socket.local()).unwrap();
        socket.receive_async(|meta, _| stamp = meta.stamp).await.unwrap();
    }
}

/// Hardware timestamps are requested; packets without one fall back on the kernel's.
#[tokio::test]
async fn the_kernel_stamps_packets_that_the_interface_does_not() {
    hardware::pretend("lo");
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let bind = |transmit_stamps| {
            let options = UdpOptions { transmit_stamps, ..UdpOptions::default() };
            TestSocket::bind(address.parse().unwrap(), &options).unwrap()
        };
        let (from, to) = (bind(TransmitStamps::Numbered), bind(TransmitStamps::None));
        assert!(from.hardware.is_some() && to.hardware.is_some());
        until_the_kernel_stamps(&bind(TransmitStamps::None)).await;
        let begun = clock::unix();
        from.send(&[7; 41], to.local()).unwrap();
        let mut received = None;
        to.receive_async(|meta, _| received = Some((meta.received, meta.stamp))).await.unwrap();
        let mut sent = None;
        while sent.is_none() {
            from.transmitted(|number, at, source| sent = Some((number, at, source)));
        }
        let (received, received_source) = received.unwrap();
        let (number, sent, sent_source) = sent.unwrap();
        assert_eq!(number, 0);
        assert_eq!([received_source, sent_source], [StampSource::Kernel; 2]);
        assert!(begun <= sent && sent <= received, "{begun:?} {sent:?} {received:?}");
    }
}
