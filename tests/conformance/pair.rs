//! A Control-Client and a Server that exchange octets.

use std::net::{IpAddr, Ipv4Addr};

use twamp_agent::{
    time::Monotonic,
    twamp::{
        control_client::{
            AcceptedSession, ClientAction, ClientError, ClientOptions, ControlClient,
            SessionRequest,
        },
        control_server::{
            ControlServer, RequestedSession, ServerAction, ServerError, ServerOptions,
        },
    },
    wire::{
        codes::{Accept, Modes, Sid},
        crypto::TokenKey,
    },
};

pub(crate) const NOW: Monotonic = Monotonic(0);
pub(crate) const SECRET: &[u8] = b"correct horse";

pub(crate) type Tamper = Box<dyn FnMut(End, &mut Vec<u8>)>;

pub(crate) struct Pair {
    pub(crate) client: ControlClient,
    pub(crate) server: ControlServer,
    /// Secrets of the KeyID at the server.
    pub(crate) server_secrets: Vec<&'static [u8]>,
    /// All messages of both ends.
    pub(crate) sent: Vec<(End, Vec<u8>)>,
    pub(crate) accepted: Vec<AcceptedSession>,
    pub(crate) requested: Vec<RequestedSession>,
    pub(crate) started: bool,
    pub(crate) stopped: Vec<Sid>,
    pub(crate) key_id: Vec<u8>,
    pub(crate) client_error: Option<ClientError>,
    pub(crate) server_error: Option<ServerError>,
    /// Responses of the server's driver to requests, by index; accepted if absent.
    pub(crate) answers: Vec<Accept>,
    /// Hook that may change each message before it arrives.
    pub(crate) tamper: Option<Tamper>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Server,
}

pub(crate) fn request() -> SessionRequest {
    SessionRequest {
        sender_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        sender_port: 4001,
        receiver_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        receiver_port: 862,
        data_size: 200,
        reflected_length: 0,
        dscp: 46,
        timeout_ns: 500_000_000,
    }
}

pub(crate) fn sid(number: u8) -> Sid {
    Sid([number; 16])
}

impl Pair {
    pub(crate) fn new(sessions: usize, client: ClientOptions, server: ServerOptions) -> Self {
        Self::with_options(vec![request(); sessions], client, server)
    }

    pub(crate) fn with_options(
        requests: Vec<SessionRequest>,
        client: ClientOptions,
        server: ServerOptions,
    ) -> Self {
        Self {
            client: ControlClient::new(requests, client, NOW),
            server: ControlServer::new(server, NOW),
            server_secrets: vec![SECRET],
            sent: Vec::new(),
            accepted: Vec::new(),
            requested: Vec::new(),
            started: false,
            stopped: Vec::new(),
            key_id: Vec::new(),
            client_error: None,
            server_error: None,
            answers: Vec::new(),
            tamper: None,
        }
    }

    /// Exchanges messages until both ends are silent.
    pub(crate) fn run(&mut self) -> &mut Self {
        loop {
            let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
            while let Some(action) = self.server.poll_action() {
                self.server_does(action, &mut to_client);
            }
            for octets in to_client.iter().filter(|_| self.client_error.is_none()) {
                self.client.handle_input(octets, NOW);
            }
            while let Some(action) = self.client.poll_action() {
                self.client_does(action, &mut to_server);
            }
            for octets in to_server.iter().filter(|_| self.server_error.is_none()) {
                self.server.handle_input(octets, NOW);
            }
            if to_client.is_empty() && to_server.is_empty() {
                return self;
            }
        }
    }

    fn send(&mut self, end: End, mut octets: Vec<u8>, to: &mut Vec<Vec<u8>>) {
        self.sent.push((end, octets.clone()));
        if let Some(tamper) = &mut self.tamper {
            tamper(end, &mut octets);
        }
        to.push(octets);
    }

    fn server_does(&mut self, action: ServerAction, to_client: &mut Vec<Vec<u8>>) {
        match action {
            ServerAction::Send(octets) => self.send(End::Server, octets, to_client),
            ServerAction::DeriveKeys { key_id, salt, count } => {
                self.key_id = key_id;
                let derive = |secret: &&[u8]| TokenKey::derive(secret, &salt, count);
                let keys: Vec<_> = self.server_secrets.iter().map(derive).collect();
                self.server.authenticate(Some(&keys), NOW);
            }
            ServerAction::Request(requested) => {
                let number = self.requested.len();
                self.requested.push(requested);
                let answer = match self.answers.get(number) {
                    Some(accept) if *accept != Accept::OK => Err(*accept),
                    _ => Ok((5000 + number as u16, sid(number as u8 + 1))),
                };
                self.server.answer_request(answer, NOW);
            }
            ServerAction::Refused(..) => {}
            ServerAction::Start(_) => self.server.sessions_started(NOW),
            ServerAction::Stop(sids) => self.stopped.extend(sids),
            ServerAction::Close(error) => self.server_error = Some(error),
        }
    }

    fn client_does(&mut self, action: ClientAction, to_server: &mut Vec<Vec<u8>>) {
        match action {
            ClientAction::Send(octets) => self.send(End::Client, octets, to_server),
            ClientAction::DeriveKey { salt, count } => {
                self.client.key_derived(&TokenKey::derive(SECRET, &salt, count), NOW);
            }
            ClientAction::Accepted(session) => self.accepted.push(session),
            ClientAction::Started => self.started = true,
            ClientAction::Stopped | ClientAction::Refused(..) => {}
            ClientAction::Failed(error) => self.client_error = Some(error),
        }
    }

    /// Returns all octets that one end sent.
    pub(crate) fn octets_of(&self, end: End) -> Vec<u8> {
        let of = self.sent.iter().filter(|(from, _)| *from == end);
        of.flat_map(|(_, octets)| octets.clone()).collect()
    }
}

pub(crate) fn modes(bits: &[Modes]) -> Modes {
    bits.iter().fold(Modes::default(), |all, mode| all.or(*mode))
}
