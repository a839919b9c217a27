use std::{net::Ipv4Addr, sync::Arc};

use tokio::{io::AsyncReadExt, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Shared, serve},
    reflector::Reflectors,
    registry::Registry,
    sockets::Sockets,
};
use crate::{
    model::{ServerConfig, parse},
    net::random::failing,
    proto,
    session::{Derivation, PlaneSettings},
};

fn config() -> Arc<ServerConfig> {
    let everybody =
        proto::ClientList { name: "all".to_owned(), prefixes: vec!["127.0.0.0/8".to_owned()] };
    let server = proto::ServerConfig {
        listen: vec![proto::ListenAddress {
            address: "127.0.0.1".to_owned(),
            ..proto::ListenAddress::default()
        }],
        client_list: vec![everybody],
        ..proto::ServerConfig::default()
    };
    let document = proto::AgentConfig { server: Some(server), ..proto::AgentConfig::default() };
    parse(&document).unwrap().server.unwrap()
}

/// Octets of the greeting that a client of a server sees.
async fn greeting() -> Vec<u8> {
    let reflectors = Reflectors::start(PlaneSettings::default()).unwrap();
    let (_config, config) = watch::channel(Some(config()));
    let shared = Shared {
        registry: Registry::new(reflectors.counters()),
        sockets: Arc::new(Sockets::new(reflectors)),
        config,
        derivation: Arc::new(Derivation::for_server()),
        interface: None,
    };
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let token = CancellationToken::new();
    let mut octets = Vec::new();
    let read = async {
        let mut buffer = [0; 64];
        let len = client.read(&mut buffer).await.unwrap();
        octets.extend_from_slice(&buffer[..len]);
        token.cancel();
    };
    tokio::join!(serve(stream, shared, token.clone()), read);
    octets
}

#[tokio::test]
async fn a_client_is_not_greeted_without_random_bytes() {
    assert_eq!(greeting().await.len(), 64);
    let _failing = failing::start();
    assert!(greeting().await.is_empty());
}
