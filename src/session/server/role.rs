//! Server role: opens the configured sockets, closes those no longer configured and retries those
//! that failed.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Reflectors, Registry,
    connection::{Shared, serve},
    sockets::Sockets,
};
use crate::{
    model::{ListenAddress, ServerConfig, StampReflectorSession, UdpListen},
    net::{
        is_missing,
        tcp::{self, TcpListener},
    },
    proto::ServerSocket,
    session::Derivation,
    supervise::{Heartbeat, Tasks},
    twamp::reflector::{Allowances, LightPolicy, PacketRules, Sessionless, StampPolicy, StampRule},
};

/// First and longest delay before a failed socket is retried. The first is short, because another
/// socket of this agent may be closing; each delay is twice as long as the one before.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const MAX_RETRY: Duration = Duration::from_secs(1);
/// Pause after `accept` failed, usually for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Interval between log messages about failing accepts.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The task of the server role.
#[derive(Debug)]
pub struct ServerRole {
    shared: Shared,
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    listeners: HashMap<ListenAddress, CancellationToken>,
    /// Sockets that failed at the last attempt. A failure is logged once.
    failed: Vec<UdpListen>,
    tasks: Tasks,
}

impl ServerRole {
    /// Creates a role that applies each value of `config`. Its tasks are children of `tasks`.
    pub fn new(
        registry: Arc<Registry>,
        reflectors: Arc<Reflectors>,
        config: watch::Receiver<Option<Arc<ServerConfig>>>,
        tasks: &Tasks,
    ) -> Self {
        let tasks = tasks.child();
        let sockets = Arc::new(Sockets::new(reflectors));
        let derivation = Arc::new(Derivation::for_server());
        let shared =
            Shared { registry, sockets, config: config.clone(), derivation, interface: None };
        Self { shared, config, listeners: HashMap::new(), failed: Vec::new(), tasks }
    }

    /// Runs until the tasks are cancelled. `applied` receives each configuration once it is
    /// applied.
    pub async fn run(
        mut self,
        applied: watch::Sender<Option<Arc<ServerConfig>>>,
        heartbeat: Heartbeat,
    ) {
        let token = self.tasks.token();
        // The end of this task closes everything that it opened.
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
                () = sleep(retry), if !all_open => retry = MAX_RETRY.min(retry * 2),
            }
        }
    }

    /// Opens and closes sockets; returns true when all are open.
    async fn apply(&mut self, config: Option<&ServerConfig>) -> bool {
        let nothing = Vec::new();
        let listen = config.map_or(&nothing, |config| &config.listen);
        self.listeners.retain(|address, token| {
            let is_configured = listen.contains(address);
            if !is_configured {
                token.cancel();
            }
            is_configured
        });
        let mut reflector_sockets = config.map(ServerConfig::reflector_sockets).unwrap_or_default();
        reflector_sockets.retain(|listen| !is_missing(listen.address));
        self.shared.sockets.retain(&reflector_sockets).await;
        let rules = config.map(|config| PacketRules {
            sender_limit: config.maximum_packets_per_second_per_sender,
            strict_error_estimate: config.strict_error_estimate,
        });
        self.shared.sockets.set_rules(rules.unwrap_or_default()).await;

        let mut sockets = Vec::new();
        for address in listen {
            let result = self.listen(address);
            let tcp = UdpListen {
                address: SocketAddr::new(address.address, address.port),
                interface: address.interface.clone(),
            };
            sockets.push(self.report_socket("tcp", &tcp, &result));
        }
        for listen in reflector_sockets {
            let sessionless =
                config.map_or(Sessionless::Dropped, |config| sessionless(config, &listen));
            let result = self.shared.sockets.bind_shared(&listen, sessionless.clone()).await;
            if let Some(reflector) = self.shared.sockets.shared(&listen) {
                reflector.set_sessionless(sessionless).await;
            }
            sockets.push(self.report_socket("udp", &listen, &result));
        }
        let all_open = sockets.iter().all(|socket| socket.error.is_empty());
        self.shared.registry.set_sockets(sockets);
        all_open
    }

    fn report_socket(
        &mut self,
        protocol: &str,
        listen: &UdpListen,
        result: &std::io::Result<()>,
    ) -> ServerSocket {
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let known = self.failed.contains(listen);
        if error.is_empty() {
            self.failed.retain(|failed| failed != listen);
        } else if !known {
            let interface = listen.interface.as_deref();
            tracing::warn!(protocol, address = %listen.address, interface, error, "failed to listen, retrying");
            self.failed.push(listen.clone());
        }
        ServerSocket {
            protocol: protocol.into(),
            address: listen.address.to_string(),
            error,
            interface: listen.interface.clone().unwrap_or_default(),
        }
    }

    fn listen(&mut self, address: &ListenAddress) -> std::io::Result<()> {
        if self.listeners.contains_key(address) {
            return Ok(());
        }
        let interface = address.interface.clone();
        let local = SocketAddr::new(address.address, address.port);
        let listener = tcp::listen(local, interface.as_deref())?;
        let token = self.tasks.token().child_token();
        let shared = Shared { interface, ..self.shared.clone() };
        let accept = accept(listener, shared, self.tasks.clone(), token.clone());
        self.tasks.spawn("listener", accept);
        self.listeners.insert(address.clone(), token);
        Ok(())
    }
}

/// Accepts control connections, which end with the listener.
async fn accept(listener: TcpListener, shared: Shared, tasks: Tasks, token: CancellationToken) {
    let mut logged = None::<Instant>;
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let connection = serve(stream, shared.clone(), token.clone());
                    tasks.spawn("server connection", connection);
                }
                Err(error) => {
                    if logged.is_none_or(|logged| logged.elapsed() >= ACCEPT_LOG_INTERVAL) {
                        tracing::warn!(%error, "failed to accept control connection");
                        logged = Some(Instant::now());
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Returns the policy of a socket for senders without a session.
fn sessionless(config: &ServerConfig, listen: &UdpListen) -> Sessionless {
    let is_listed = |addresses: &[ListenAddress]| {
        addresses.iter().any(|address| address.sockets_by_family().contains(listen))
    };
    if let Some(light) = config.light.as_ref().filter(|light| is_listed(&light.listen)) {
        return Sessionless::Light(LightPolicy {
            prefixes: light.prefixes.clone(),
            stateful: light.stateful,
            maximum_packets_per_second: light.maximum_packets_per_second,
            refwait_ns: config.refwait_ns,
            allowances: Allowances::new(light.prefixes.len()),
        });
    }
    let Some(stamp) = config.stamp.as_ref().filter(|stamp| is_listed(&stamp.listen)) else {
        return Sessionless::Dropped;
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
