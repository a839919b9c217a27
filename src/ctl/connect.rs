//! Connection to an agent over TCP, TLS or a Unix socket.

use std::{error::Error, fs, io, path::PathBuf, str::FromStr, time::Duration};

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::UnixStream, time::timeout};
use tokio_rustls::rustls;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tower::service_fn;

use crate::{
    api::services::{
        agent_service_client::AgentServiceClient, client_service_client::ClientServiceClient,
        config_service_client::ConfigServiceClient, results_service_client::ResultsServiceClient,
        server_service_client::ServerServiceClient,
    },
    model::{ZonedAddress, limits::MAXIMUM_REQUEST_OCTETS, split_url_zone},
    net::tcp,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which a keepalive is sent, and the time allowed for its acknowledgement.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason for which an agent was not reached.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The address refuses connections or does not answer.
    #[error(
        "cannot reach an agent at {target}: {detail}; check the address and that the agent runs"
    )]
    Unreachable {
        /// Address of the agent, as given.
        target: String,
        /// Innermost error of the transport.
        detail: String,
    },
    /// The answer is not TLS, although the target says https.
    #[error("{0} answers without TLS: use http:// instead of https://")]
    NotTls(String),
    /// The agent ended the handshake.
    #[error(
        "the agent at {target} refused the TLS handshake ({alert}): it may require --cert and \
         --key with a certificate of its client CA"
    )]
    HandshakeRefused {
        /// Host and port of the agent.
        target: String,
        /// Name of the TLS alert.
        alert: String,
    },
    /// The certificate of the agent is not trusted.
    #[error(
        "the certificate of the agent at {target} is not trusted: {detail}; name its root \
         certificate with --ca"
    )]
    Certificate {
        /// Host and port of the agent.
        target: String,
        /// Reason of the TLS library.
        detail: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}", .path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

/// Address of an agent: `HOST:PORT`, `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// TCP, with TLS if the scheme is `https`.
    Url(String),
    /// TCP to a link-local address.
    Zoned {
        /// The URL as given.
        url: String,
        /// Address and interface.
        zoned: ZonedAddress,
    },
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        if let Some((_, zoned)) = split_url_zone(&url) {
            return Ok(Self::Zoned { url, zoned });
        }
        let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| error.to_string());
        match endpoint.as_ref().map(|endpoint| endpoint.uri().port()) {
            Ok(Some(_)) => Ok(Self::Url(url)),
            _ => {
                Err("expected HOST:PORT, [fe80::1%eth0]:PORT, https://HOST:PORT or unix:PATH"
                    .into())
            }
        }
    }
}

impl Target {
    /// Returns host and port of a target with TLS.
    pub(super) fn tls_host(&self) -> Option<&str> {
        match self {
            Self::Url(url) | Self::Zoned { url, .. } => url.strip_prefix("https://"),
            Self::Unix(_) => None,
        }
    }
}

/// PEM files for TLS.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct TlsFiles {
    /// Root certificate of the agent (PEM), for https
    #[arg(long, global = true, value_name = "FILE", env = "TWAMP_AGENT_CA")]
    ca: Option<PathBuf>,
    /// Certificate that identifies this client to the agent (PEM)
    #[arg(long, global = true, value_name = "FILE", requires = "key", env = "TWAMP_AGENT_CERT")]
    cert: Option<PathBuf>,
    /// Private key of the client's certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", requires = "cert", env = "TWAMP_AGENT_KEY")]
    key: Option<PathBuf>,
    /// File with the token that identifies this client to the agent
    #[arg(long, global = true, value_name = "FILE", env = "TWAMP_AGENT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

/// An open connection to an agent.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Authorized,
}

/// Channel whose requests carry the token of this client, if it has one.
pub type Authorized = InterceptedService<Channel, Token>;

/// Header with a token (RFC 6750 §2.1).
#[derive(Clone, Debug)]
pub struct Token(Option<MetadataValue<Ascii>>);

impl Token {
    fn read(path: Option<&PathBuf>) -> Result<Self, ConnectError> {
        let Some(path) = path else { return Ok(Self(None)) };
        let failed = |source: io::Error| ConnectError::File { path: path.clone(), source };
        let text = fs::read_to_string(path).map_err(failed)?;
        let value = MetadataValue::try_from(format!("Bearer {}", text.trim()));
        let mut value = value.map_err(|_| {
            failed(io::Error::new(io::ErrorKind::InvalidData, "a token is one line of ASCII"))
        })?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Connection {
    /// Connects to an agent; a `https` target uses the PEM files.
    pub async fn open(target: &Target, tls: &TlsFiles) -> Result<Self, ConnectError> {
        let token = Token::read(tls.token_file.as_ref())?;
        let channel = match target {
            Target::Unix(path) => {
                let shown = format!("unix:{}", path.display());
                let path = path.clone();
                let connector = service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The URL is not used; a channel must have one.
                let endpoint = with_keepalive(Endpoint::from_static("http://agent"));
                within(&shown, endpoint.connect_with_connector(connector)).await?
            }
            Target::Url(url) => {
                let failed = |error: tonic::transport::Error| connect_error(url, &error);
                let mut endpoint = Endpoint::from_shared(url.clone()).map_err(failed)?;
                if target.tls_host().is_some() {
                    endpoint = endpoint.tls_config(tls.config()?).map_err(failed)?;
                }
                within(url, with_keepalive(endpoint).connect()).await?
            }
            Target::Zoned { url, zoned } => {
                let failed = |error: tonic::transport::Error| connect_error(url, &error);
                // The type of URLs has no zones (RFC 6874); the address is connected to here.
                let scheme = if target.tls_host().is_some() { "https" } else { "http" };
                let plain = format!("{scheme}://{}", zoned.address);
                let mut endpoint = Endpoint::from_shared(plain).map_err(failed)?;
                if target.tls_host().is_some() {
                    endpoint = endpoint.tls_config(tls.config()?).map_err(failed)?;
                }
                let zoned = zoned.clone();
                let connector = service_fn(move |_| {
                    let zoned = zoned.clone();
                    async move { tcp::connect_zoned(&zoned).await.map(TokioIo::new) }
                });
                within(url, with_keepalive(endpoint).connect_with_connector(connector)).await?
            }
        };
        Ok(Self { channel: InterceptedService::new(channel, token) })
    }

    /// Returns a client of `ConfigService`.
    pub fn config(&self) -> ConfigServiceClient<Authorized> {
        ConfigServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAXIMUM_REQUEST_OCTETS)
    }

    /// Returns a client of `ClientService`.
    pub fn client(&self) -> ClientServiceClient<Authorized> {
        ClientServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAXIMUM_REQUEST_OCTETS)
    }

    /// Returns a client of `ServerService`.
    pub fn server(&self) -> ServerServiceClient<Authorized> {
        ServerServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAXIMUM_REQUEST_OCTETS)
    }

    /// Returns a client of `ResultsService`.
    pub fn results(&self) -> ResultsServiceClient<Authorized> {
        ResultsServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAXIMUM_REQUEST_OCTETS)
    }

    /// Returns a client of `AgentService`.
    pub fn agent(&self) -> AgentServiceClient<Authorized> {
        AgentServiceClient::new(self.channel.clone())
    }
}

/// Waits for a connect, up to `CONNECT_TIMEOUT`.
async fn within<T, E>(
    target: &str,
    connecting: impl Future<Output = Result<T, E>>,
) -> Result<T, ConnectError>
where
    E: Error + 'static,
{
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected.map_err(|error| connect_error(target, &error)),
        Err(_) => Err(ConnectError::Unreachable {
            target: target.to_owned(),
            detail: format!("no answer within {CONNECT_TIMEOUT:?}"),
        }),
    }
}

/// Sets the keepalive that detects an agent that no longer answers.
fn with_keepalive(endpoint: Endpoint) -> Endpoint {
    endpoint.http2_keep_alive_interval(KEEPALIVE_INTERVAL).keep_alive_timeout(KEEPALIVE_TIMEOUT)
}

impl TlsFiles {
    fn config(&self) -> Result<ClientTlsConfig, ConnectError> {
        let read = |path: &PathBuf| {
            let path = path.clone();
            fs::read(&path).map_err(|source| ConnectError::File { path, source })
        };
        let mut config = ClientTlsConfig::new();
        if let Some(ca) = &self.ca {
            config = config.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(config)
    }
}

/// Converts an error of the transport. The innermost error has the reason; the outer errors only say
/// "transport error".
fn connect_error(target: &str, error: &(dyn Error + 'static)) -> ConnectError {
    let host = target.rsplit("://").next().unwrap_or(target).to_owned();
    match tls_error(error) {
        Some(rustls::Error::InvalidMessage(_)) => return ConnectError::NotTls(host),
        Some(rustls::Error::AlertReceived(alert)) => {
            return ConnectError::HandshakeRefused { target: host, alert: format!("{alert:?}") };
        }
        Some(rustls::Error::InvalidCertificate(_)) => {
            let detail = innermost(error).to_string();
            return ConnectError::Certificate { target: host, detail };
        }
        _ => {}
    }
    let detail = innermost(error).to_string();
    ConnectError::Unreachable { target: target.to_owned(), detail }
}

/// Returns the last error in the chain of sources.
pub(super) fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut innermost = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    innermost
}

/// Returns the error of the TLS library within an error of the transport.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = within.and_then(|within| within.downcast_ref());
        if let Some(found) = found.or_else(|| error.downcast_ref()) {
            return Some(found);
        }
        next = error.source();
    }
    None
}
