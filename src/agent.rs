//! Composition root: assembles an agent from its parts and stops it in order.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;

use crate::{
    api::{self, AgentFacts, ApiListener, ApiLoad, ApiSettings, Context, ListenError},
    control::{Admission, ApplyError, Committed, Control, LoadError, Planes},
    export::{ExporterStates, Exporters, Sources},
    net::{self, clock},
    proto::{AgentConfig, ApplyConfigRequest, EventType},
    results::{Results, report_host, report_pauses, retention, watch_host, watch_store},
    session::{PlaneSettings, client::Senders, server::Reflectors},
    store::{ConfigStore, Host, ResultStore, StateDirectory, StoreError},
    supervise::Tasks,
};

/// Time limit for a clean stop: sessions send Stop-Sessions and requests are answered.
const GRACE: Duration = Duration::from_secs(10);

/// Options of an agent.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of configuration and results.
    pub state_dir: PathBuf,
    /// Addresses and security of the API.
    pub api: ApiSettings,
    /// Threads of the client role, which send probes.
    pub senders: PlaneSettings,
    /// Threads of the server role, which reflect probes.
    pub reflectors: PlaneSettings,
    /// Network interfaces whose hardware timestamps are used; kernel timestamps are the fallback.
    pub hardware_timestamp_interfaces: Vec<String>,
    /// The clock is synchronised although the kernel does not report it.
    pub clock_is_synchronised: bool,
    /// Initial configuration, committed only if none was ever committed.
    pub bootstrap: Option<AgentConfig>,
}

/// Failure to start an agent.
#[derive(Debug, Error)]
pub enum StartError {
    /// The state directory is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored configuration is not usable.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The API cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The initial configuration was not committed.
    #[error("bootstrap configuration: {}", bootstrap_refusal(.error))]
    Bootstrap {
        /// Reason of the refusal.
        error: ApplyError,
    },
    /// The data-plane threads did not start.
    #[error("data-plane threads: {0}")]
    Threads(io::Error),
    /// The descriptors of the API are invalid.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Describes the refusal of the initial configuration, with all violations.
fn bootstrap_refusal(error: &ApplyError) -> String {
    let line = |field: &str, description: &str| format!("\n  {field}: {description}");
    let (summary, lines): (_, String) = match error {
        ApplyError::Invalid(all) => {
            ("not valid", all.iter().map(|v| line(&v.field, &v.description)).collect())
        }
        ApplyError::Refused(all) => (
            "resources are not available on this host",
            all.iter().map(|r| line(&r.field, &r.description)).collect(),
        ),
        ApplyError::Stale { .. }
        | ApplyError::RequestReused(_)
        | ApplyError::NoRevision(_)
        | ApplyError::NothingBefore(_)
        | ApplyError::NotPending { .. }
        | ApplyError::Store(_)
        | ApplyError::Ending => return error.to_string(),
    };
    format!("{summary}:{lines}")
}

/// Returns the data sources of the metrics page.
fn sources(control: &Control, results: &Arc<Results>, states: &Arc<ExporterStates>) -> Sources {
    let (clients, peers, server) = (control.clone(), control.clone(), control.clone());
    Sources {
        results: results.clone(),
        states: states.clone(),
        connections: Arc::new(move || clients.clients().list(&[]).unwrap_or_default()),
        peer: Arc::new(move |connection, session| peers.clients().peer(connection, session)),
        server: Arc::new(move || Some(server.server().status())),
    }
}

fn host() -> Host {
    Host {
        machine_id: net::machine_id(),
        product_uuid: net::product_uuid(),
        name: net::host_name(),
        boot: clock::uptime().boot,
    }
}

/// A running agent: all its tasks and services.
#[derive(Debug)]
pub struct Agent {
    tasks: Tasks,
    control: Control,
    results: Arc<Results>,
    addresses: Vec<SocketAddr>,
    // Unlocked after everything else has ended.
    _directory: StateDirectory,
}

impl Agent {
    /// Starts an agent: state, API and the committed configuration.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let started = clock::now();
        net::raise_open_files();
        let directory = StateDirectory::open(&options.state_dir)?;
        directory.prepare_reserve();
        let findings = directory.note_host(host(), clock::now_since_boot());
        let listener = ApiListener::open(&options.api).await?;
        let addresses = listener.addresses();

        let config_store = ConfigStore::open(&directory)?;
        let new_agent_id = uuid::Uuid::new_v4().to_string();
        let committed = Committed::load(&config_store)?;
        let revision = committed.revision();
        let keep = retention(committed.config());
        let now = clock::now_since_boot;
        let result_store = ResultStore::open(&directory, keep.clone(), &new_agent_id, now)?;
        let boot_id = uuid::Uuid::new_v4().to_string();
        let config = Some(committed.config());
        let results = match Results::open(result_store, boot_id.clone(), config) {
            Err(error @ StoreError::Damaged(_)) => {
                // The data is intact but inconsistent: start with an empty store, measurements go
                // on.
                let anew = ResultStore::open_anew;
                let store = anew(&directory, keep, &new_agent_id, now, &error)?;
                Results::open(store, boot_id, config)?
            }
            opened => opened?,
        };

        let tasks = Tasks::new();
        clock::declare_synchronised(options.clock_is_synchronised);
        net::enable_hardware_stamps(&options.hardware_timestamp_interfaces);
        tasks.spawn("hardware clocks", net::follow_hardware(tasks.token()));
        tasks.spawn("statistics", results.clone().keep_statistics(clock::now, tasks.token()));
        let version = format!("version {}", env!("CARGO_PKG_VERSION"));
        results.agent_event(EventType::AgentStarted, revision, version, started.unix);
        if let Some(detail) = committed.rolled_back() {
            let kind = EventType::ConfigurationCommitted;
            results.agent_event(kind, revision, detail.to_owned(), started.unix);
        }
        report_host(&results, findings, started.unix);
        let planes = Planes {
            senders: Senders::start(options.senders).map_err(StartError::Threads)?,
            reflectors: Reflectors::start(options.reflectors).map_err(StartError::Threads)?,
        };
        let control = Control::start(config_store, committed, &results, planes, &tasks)?;
        let damage = {
            let control = control.clone();
            move || control.damage()
        };
        let told = watch_store(results.clone(), damage, clock::now, tasks.token());
        tasks.spawn("store trouble", told);
        tasks.spawn("pauses", report_pauses(results.clone(), clock::now, tasks.token()));
        tasks.spawn("host", watch_host(results.clone(), now, net::machine_id, tasks.token()));
        let exporters = Arc::new(ExporterStates::default());
        let sources = sources(&control, &results, &exporters);
        let export = Exporters::new(results.clone(), sources, &tasks);
        tasks.spawn("export", export.follow(control.exported()));
        let context = Context {
            control: control.clone(),
            exporters,
            results: results.clone(),
            load: ApiLoad::new(),
            facts: Arc::new(AgentFacts { started, host_name: net::host_name() }),
            token: tasks.token(),
        };
        api::serve(listener, options.api.roles, context, &tasks)?;
        tracing::info!(
            agent = results.agent_id(),
            state = %options.state_dir.display(),
            api = ?addresses,
            "agent ready"
        );
        let agent = Self { tasks, control, results, addresses, _directory: directory };
        match options.bootstrap {
            Some(config) if revision == 0 => agent.bootstrap(config).await,
            _ => Ok(agent),
        }
    }

    /// Commits the initial configuration; stops the agent when it is refused.
    async fn bootstrap(self, config: AgentConfig) -> Result<Self, StartError> {
        let request = ApplyConfigRequest {
            config: Some(config),
            expected_revision: Some(0),
            comment: "bootstrap".into(),
            ..ApplyConfigRequest::default()
        };
        match self.control.apply(request, "bootstrap".into(), Admission::default()).await {
            Ok(_) => Ok(self),
            Err(error) => {
                self.stop().await;
                Err(StartError::Bootstrap { error })
            }
        }
    }

    /// Returns the TCP addresses of the API.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops the agent: running tests are reported as stopped, sessions closed and results
    /// written.
    pub async fn stop(self) {
        let clients_ended = self.control.clients().end(GRACE).await;
        if !self.tasks.end(GRACE).await || !clients_ended {
            tracing::warn!("tasks still running at shutdown");
        }
        let results = self.results;
        let revision = self.control.committed_revision();
        results.agent_event(EventType::AgentStopped, revision, String::new(), clock::unix());
        // Closing waits for the disk.
        if tokio::task::spawn_blocking(move || results.close()).await.is_err() {
            tracing::error!("failed to close results");
        }
        tracing::info!("agent stopped");
    }
}
