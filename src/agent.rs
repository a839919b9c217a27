//! The composition root: puts an agent together from its parts, and takes it apart again.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;

use crate::{
    api::{self, AgentFacts, ApiListener, ApiSettings, Context, ListenError},
    control::{ApplyError, Committed, Control, LoadError, Planes},
    export::{ExporterStates, Exporters, Sources},
    net::{self, clock},
    proto::{AgentConfig, ApplyConfigRequest, EventType},
    results::{Results, retention, watch_clock, watch_store},
    session::{PlaneSettings, client::Senders, server::Reflectors},
    store::{ConfigStore, ResultStore, StateDirectory, StoreError},
    supervise::Tasks,
};

/// How long everything may take to end; sessions send Stop-Sessions, requests are answered.
const GRACE: Duration = Duration::from_secs(10);

/// What an agent needs to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where configuration and results are kept.
    pub state_dir: PathBuf,
    /// Where and how the API is offered.
    pub api: ApiSettings,
    /// Threads of the test sessions of the client role.
    pub senders: PlaneSettings,
    /// Threads of the test packets of the server role.
    pub reflectors: PlaneSettings,
    /// Network interfaces whose stamps of packets are used; those of the kernel where they have none.
    pub hardware_timestamp_interfaces: Vec<String>,
    /// Committed where nothing was ever committed.
    pub bootstrap: Option<AgentConfig>,
}

/// Why an agent does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The API.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The configuration given for a first start.
    #[error("bootstrap configuration: {error}{}", violations(.error))]
    Bootstrap {
        /// Why it was not committed.
        error: ApplyError,
    },
    /// The threads of the data plane.
    #[error("threads of the data plane: {0}")]
    Threads(io::Error),
    /// The descriptors of the API.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

fn violations(error: &ApplyError) -> String {
    let line = |field: &str, description: &str| format!("\n  {field}: {description}");
    match error {
        ApplyError::Invalid(all) => all.iter().map(|v| line(&v.field, &v.description)).collect(),
        ApplyError::Refused(all) => all.iter().map(|r| line(&r.field, &r.description)).collect(),
        ApplyError::Stale { .. }
        | ApplyError::RequestReused(_)
        | ApplyError::NoRevision(_)
        | ApplyError::NothingBefore(_)
        | ApplyError::NotWaiting { .. }
        | ApplyError::Store(_)
        | ApplyError::Ending => String::new(),
    }
}

/// What the page of metrics tells of.
fn sources(control: &Control, results: &Arc<Results>, states: &Arc<ExporterStates>) -> Sources {
    let (clients, server) = (control.clone(), control.clone());
    Sources {
        results: results.clone(),
        states: states.clone(),
        connections: Arc::new(move || clients.clients().list(&[]).unwrap_or_default()),
        server: Arc::new(move || Some(server.server().status())),
    }
}

/// An agent that runs.
#[derive(Debug)]
pub struct Agent {
    tasks: Tasks,
    control: Control,
    results: Arc<Results>,
    addresses: Vec<SocketAddr>,
    // Held until everything else has ended.
    _directory: StateDirectory,
}

impl Agent {
    /// Starts an agent: state, API, and whatever is configured.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let started = clock::now();
        net::raise_open_files();
        let directory = StateDirectory::open(&options.state_dir)?;
        directory.prepare_room();
        let listener = ApiListener::open(&options.api).await?;
        let addresses = listener.addresses();

        let config_store = ConfigStore::open(&directory)?;
        let new_agent_id = uuid::Uuid::new_v4().to_string();
        let committed = Committed::load(&config_store)?;
        let revision = committed.revision();
        let keep = retention(committed.config());
        let result_store = ResultStore::open(&directory, keep.clone(), &new_agent_id, clock::now)?;
        let boot_id = uuid::Uuid::new_v4().to_string();
        let config = Some(committed.config());
        let results = match Results::open(result_store, boot_id.clone(), config) {
            Err(error @ StoreError::Damaged(_)) => {
                // What was stored is whole and makes no sense: it costs no measurement.
                let anew = ResultStore::open_anew;
                let store = anew(&directory, keep, &new_agent_id, clock::now, &error)?;
                Results::open(store, boot_id, config)?
            }
            opened => opened?,
        };

        let tasks = Tasks::new();
        net::enable_hardware_stamps(&options.hardware_timestamp_interfaces);
        tasks.spawn("hardware clocks", net::follow_hardware(tasks.token()));
        tasks.spawn("statistics", results.clone().keep_statistics(clock::now, tasks.token()));
        let version = format!("version {}", env!("CARGO_PKG_VERSION"));
        results.agent_event(EventType::AgentStarted, revision, version, started.unix);
        if let Some(detail) = committed.rolled_back() {
            let kind = EventType::ConfigurationCommitted;
            results.agent_event(kind, revision, detail.to_owned(), started.unix);
        }
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
        tasks.spawn("clock", watch_clock(results.clone(), clock::now, tasks.token()));
        let exporters = Arc::new(ExporterStates::default());
        let sources = sources(&control, &results, &exporters);
        let export = Exporters::new(results.clone(), sources, &tasks);
        tasks.spawn("export", export.follow(control.exported()));
        let context = Context {
            control: control.clone(),
            exporters,
            results: results.clone(),
            facts: Arc::new(AgentFacts { started, host_name: net::host_name() }),
            token: tasks.token(),
        };
        let api = api::serve(listener, context, &tasks)?;
        tasks.spawn("API", api);
        tracing::info!(
            agent = results.agent_id(),
            state = %options.state_dir.display(),
            api = ?addresses,
            "the agent runs"
        );
        let agent =
            Self { tasks, control: control.clone(), results, addresses, _directory: directory };
        if let Some(config) = options.bootstrap
            && revision == 0
        {
            let request = ApplyConfigRequest {
                config: Some(config),
                expected_revision: Some(0),
                comment: "bootstrap".into(),
                ..ApplyConfigRequest::default()
            };
            if let Err(error) = control.apply(request, "bootstrap".into()).await {
                agent.stop().await;
                return Err(StartError::Bootstrap { error });
            }
        }
        Ok(agent)
    }

    /// The TCP addresses of the API.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Ends everything: tests are reported as stopped, sessions are closed, results are written.
    pub async fn stop(self) {
        let clients_ended = self.control.clients().end(GRACE).await;
        if !self.tasks.end(GRACE).await || !clients_ended {
            tracing::warn!("some tasks did not end in time");
        }
        let results = self.results;
        let revision = self.control.committed_revision();
        results.agent_event(EventType::AgentStopped, revision, String::new(), clock::unix());
        // It waits for the disk.
        if tokio::task::spawn_blocking(move || results.close()).await.is_err() {
            tracing::error!("the results were not closed cleanly");
        }
        tracing::info!("the agent has ended");
    }
}
