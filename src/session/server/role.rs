//! The server role as a whole: opens what the configuration names, closes what it no longer names,
//! and tries again what the host refused.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Registry,
    connection::{Shared, serve},
    sockets::Sockets,
};
use crate::{
    model::{ListenAddress, ServerConfig, StampReflectorSession, UdpListen},
    net::tcp::{self, TcpListener},
    proto::ServerSocket,
    session::Derivation,
    supervise::{Heartbeat, Tasks},
    twamp::reflector::{Allowances, LightPolicy, Sessionless, StampPolicy, StampRule},
};

/// When a socket that the host refused is tried again: soon at first, for one that only waits for
/// another of ours to close, and twice as late each time.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// Rest after an error of accept, which means that descriptors or memory are short.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// How often such errors are logged while they go on.
const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(10);

/// The task of the server role.
#[derive(Debug)]
pub struct ServerRole {
    shared: Shared,
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    listeners: HashMap<ListenAddress, CancellationToken>,
    /// What the host refused at the last try: told once.
    refused: Vec<UdpListen>,
    tasks: Tasks,
}

impl ServerRole {
    /// A role that follows `config`; its tasks are among `tasks`.
    pub fn new(
        registry: Arc<Registry>,
        config: watch::Receiver<Option<Arc<ServerConfig>>>,
        tasks: &Tasks,
    ) -> Self {
        let tasks = tasks.child();
        let sockets = Arc::new(Sockets::new(registry.reflectors.clone()));
        let derivation = Arc::new(Derivation::of_server());
        let shared =
            Shared { registry, sockets, config: config.clone(), derivation, interface: None };
        Self { shared, config, listeners: HashMap::new(), refused: Vec::new(), tasks }
    }

    /// Runs until the tasks are to end. `applied` is told each configuration that is in force.
    pub async fn run(
        mut self,
        applied: watch::Sender<Option<Arc<ServerConfig>>>,
        heartbeat: Heartbeat,
    ) {
        let token = self.tasks.token();
        // Whatever ends this task ends all that it opened.
        let _guard = token.clone().drop_guard();
        let mut retry = FIRST_RETRY;
        loop {
            let config = self.config.borrow_and_update().clone();
            let all_open = self.apply(config.as_deref()).await;
            applied.send_replace(config);
            heartbeat.beat();
            tokio::select! {
                () = token.cancelled() => return,
                () = sleep(heartbeat.interval()) => {}
                changed = self.config.changed() => match changed {
                    Ok(()) => retry = FIRST_RETRY,
                    Err(_) => return,
                },
                () = sleep(retry), if !all_open => retry = LONGEST_RETRY.min(retry * 2),
            }
        }
    }

    /// Opens and closes sockets; whether all are open that should be.
    async fn apply(&mut self, config: Option<&ServerConfig>) -> bool {
        let nothing = Vec::new();
        let listen = config.map_or(&nothing, |config| &config.listen);
        self.listeners.retain(|address, token| {
            let stays = listen.contains(address);
            if !stays {
                token.cancel();
            }
            stays
        });
        let standing = config.map(ServerConfig::standing_udp_sockets).unwrap_or_default();
        self.shared.sockets.retain(&standing).await;
        let limit = config.and_then(|config| config.maximum_packets_per_second_per_sender);
        self.shared.sockets.set_sender_limit(limit).await;

        let mut sockets = Vec::new();
        for address in listen {
            let result = self.listen(address);
            let place = UdpListen {
                address: SocketAddr::new(address.address, address.port),
                interface: address.interface.clone(),
            };
            sockets.push(self.socket("tcp", &place, &result));
        }
        for place in standing {
            let sessionless =
                config.map_or(Sessionless::Nobody, |config| sessionless(config, &place));
            let result = self.shared.sockets.stand(&place, sessionless.clone()).await;
            if let Some(reflector) = self.shared.sockets.standing(&place) {
                reflector.set_sessionless(sessionless).await;
            }
            sockets.push(self.socket("udp", &place, &result));
        }
        let all_open = sockets.iter().all(|socket| socket.error.is_empty());
        self.shared.registry.set_sockets(sockets);
        all_open
    }

    fn socket(
        &mut self,
        protocol: &str,
        place: &UdpListen,
        result: &std::io::Result<()>,
    ) -> ServerSocket {
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let known = self.refused.contains(place);
        if error.is_empty() {
            self.refused.retain(|refused| refused != place);
        } else if !known {
            let interface = place.interface.as_deref();
            tracing::warn!(protocol, address = %place.address, interface, error, "cannot listen; trying again");
            self.refused.push(place.clone());
        }
        ServerSocket {
            protocol: protocol.into(),
            address: place.address.to_string(),
            error,
            interface: place.interface.clone().unwrap_or_default(),
        }
    }

    fn listen(&mut self, address: &ListenAddress) -> std::io::Result<()> {
        if self.listeners.contains_key(address) {
            return Ok(());
        }
        let interface = address.interface.clone();
        let place = SocketAddr::new(address.address, address.port);
        let listener = tcp::listen(place, interface.as_deref())?;
        let token = self.tasks.token().child_token();
        let shared = Shared { interface, ..self.shared.clone() };
        let accept = accept(listener, shared, self.tasks.clone(), token.clone());
        self.tasks.spawn("listener", accept);
        self.listeners.insert(address.clone(), token);
        Ok(())
    }
}

/// Accepts control connections; they end with the listener.
async fn accept(listener: TcpListener, shared: Shared, tasks: Tasks, token: CancellationToken) {
    let mut told = None::<Instant>;
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let connection = serve(stream, shared.clone(), token.clone());
                    tasks.spawn("server connection", connection);
                }
                Err(error) => {
                    if told.is_none_or(|told| told.elapsed() >= ACCEPT_TOLD_EVERY) {
                        tracing::warn!(%error, "cannot accept a control connection");
                        told = Some(Instant::now());
                    }
                    sleep(ACCEPT_REST).await;
                }
            }
        }
    }
}

/// Who is answered without a session on this socket.
fn sessionless(config: &ServerConfig, place: &UdpListen) -> Sessionless {
    let names = |listen: &[ListenAddress]| {
        listen.iter().any(|listen| listen.sockets_by_family().contains(place))
    };
    if let Some(light) = config.light.as_ref().filter(|light| names(&light.listen)) {
        return Sessionless::Light(LightPolicy {
            prefixes: light.prefixes.clone(),
            stateful: light.stateful,
            maximum_packets_per_second: light.maximum_packets_per_second,
            refwait_ns: config.refwait_ns,
            allowances: Allowances::new(light.prefixes.len()),
        });
    }
    let Some(stamp) = config.stamp.as_ref().filter(|stamp| names(&stamp.listen)) else {
        return Sessionless::Nobody;
    };
    let rule = |session: &StampReflectorSession| StampRule {
        prefix: session.prefix,
        port: session.port,
        ssid: session.ssid,
    };
    Sessionless::Stamp(StampPolicy {
        sessions: stamp.sessions.iter().map(rule).collect(),
        stateful: stamp.stateful,
        authenticated: stamp.authenticated,
        secrets: stamp.secrets.clone(),
        allow_class_of_service: stamp.allow_class_of_service,
        timestamps: stamp.timestamps,
        refwait_ns: config.refwait_ns,
    })
}
