//! Connection to an agent over TCP, TLS or a Unix socket.

use std::{path::PathBuf, str::FromStr, time::Duration};

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::UnixStream, time::timeout};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tower::service_fn;

use crate::{
    api::services::{
        agent_service_client::AgentServiceClient, client_service_client::ClientServiceClient,
        config_service_client::ConfigServiceClient, results_service_client::ResultsServiceClient,
        server_service_client::ServerServiceClient,
    },
    model::limits::MAXIMUM_REQUEST_OCTETS,
};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Silence after which a keepalive is sent, and the time allowed for its acknowledgement.
const SILENCE: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Reason for which an agent was not reached.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The address refuses connections or does not answer.
    #[error("no agent at {target}: {detail}; is it running, and is that its address?")]
    Unreachable {
        /// Address of the agent, as given.
        target: String,
        /// Innermost error of the transport.
        detail: String,
    },
    /// A PEM file cannot be read.
    #[error("{}: {source}", .path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
}

/// Address of an agent: `HOST:PORT`, `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// TCP, with TLS where the scheme is `https`.
    Url(String),
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
        let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| error.to_string());
        match endpoint.as_ref().map(|endpoint| endpoint.uri().port()) {
            Ok(Some(_)) => Ok(Self::Url(url)),
            _ => Err(format!("{text:?}: HOST:PORT, https://HOST:PORT or unix:PATH")),
        }
    }
}

/// PEM files for TLS.
#[derive(Clone, Debug, Default, clap::Args)]
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
}

/// An open connection to an agent.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
}

impl Connection {
    /// Connects to an agent; a `https` target uses the PEM files.
    pub async fn open(target: &Target, tls: &TlsFiles) -> Result<Self, ConnectError> {
        let channel = match target {
            Target::Unix(path) => {
                let shown = format!("unix:{}", path.display());
                let path = path.clone();
                let connector = service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The URL is not used; a channel must have one.
                let endpoint = kept_alive(Endpoint::from_static("http://agent"));
                within(&shown, endpoint.connect_with_connector(connector)).await?
            }
            Target::Url(url) => {
                let failed = |error: tonic::transport::Error| unreachable_agent(url, &error);
                let mut endpoint = Endpoint::from_shared(url.clone()).map_err(failed)?;
                if url.starts_with("https://") {
                    endpoint = endpoint.tls_config(tls.config()?).map_err(failed)?;
                }
                within(url, kept_alive(endpoint).connect()).await?
            }
        };
        Ok(Self { channel })
    }

    /// Returns a client of `ConfigService`.
    pub fn config(&self) -> ConfigServiceClient<Channel> {
        ConfigServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAXIMUM_REQUEST_OCTETS)
    }

    /// Returns a client of `ClientService`.
    pub fn client(&self) -> ClientServiceClient<Channel> {
        ClientServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAXIMUM_REQUEST_OCTETS)
    }

    /// Returns a client of `ServerService`.
    pub fn server(&self) -> ServerServiceClient<Channel> {
        ServerServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAXIMUM_REQUEST_OCTETS)
    }

    /// Returns a client of `ResultsService`.
    pub fn results(&self) -> ResultsServiceClient<Channel> {
        ResultsServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAXIMUM_REQUEST_OCTETS)
    }

    /// Returns a client of `AgentService`.
    pub fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
    }
}

/// Waits for a connect, up to `CONNECT_LIMIT`.
async fn within<T, E>(
    target: &str,
    connecting: impl Future<Output = Result<T, E>>,
) -> Result<T, ConnectError>
where
    E: std::error::Error,
{
    match timeout(CONNECT_LIMIT, connecting).await {
        Ok(connected) => connected.map_err(|error| unreachable_agent(target, &error)),
        Err(_) => Err(ConnectError::Unreachable {
            target: target.to_owned(),
            detail: format!("no answer within {CONNECT_LIMIT:?}"),
        }),
    }
}

/// Sets the keepalive that detects an agent that no longer answers.
fn kept_alive(endpoint: Endpoint) -> Endpoint {
    endpoint.http2_keep_alive_interval(SILENCE).keep_alive_timeout(ANSWER_LIMIT)
}

impl TlsFiles {
    fn config(&self) -> Result<ClientTlsConfig, ConnectError> {
        let read = |path: &PathBuf| {
            let path = path.clone();
            std::fs::read(&path).map_err(|source| ConnectError::File { path, source })
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

/// Returns the innermost error: the outer ones only say "transport error".
fn unreachable_agent(target: &str, error: &dyn std::error::Error) -> ConnectError {
    let mut detail = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        detail = error.to_string();
        inner = error.source();
    }
    ConnectError::Unreachable { target: target.to_owned(), detail }
}
