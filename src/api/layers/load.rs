//! Limits on the requests at a time, for each class of methods and each caller: a caller with many
//! requests waits for itself, and what waits too long is refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{Request, Response};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::{Status, body::Body};

use super::{
    Layer, Service,
    call::{Call, call, keep},
    method::Class,
    pass,
};

/// Limits of a class: requests at a time in all and of one caller, and the time for which one waits.
#[derive(Clone, Copy, Debug)]
struct Limits {
    all: usize,
    of_caller: usize,
    wait: Duration,
}

/// An answer to a read has up to 4 MiB.
const READS: Limits = Limits { all: 32, of_caller: 16, wait: Duration::from_secs(2) };
/// Four ApplyConfig requests are worked on at a time, and commits are made one after the other.
const CHANGES: Limits = Limits { all: 8, of_caller: 4, wait: Duration::from_secs(10) };
/// A stream has no end, so waiting for one is of no use.
const STREAMS: Limits = Limits { all: 512, of_caller: 64, wait: Duration::ZERO };
/// Callers with requests at a time; tokens and certificates are bounded by their issuer, not here.
const MAXIMUM_CALLERS: usize = 1024;

#[derive(Clone, Debug)]
pub(super) struct Load(Arc<[Places; 3]>);

/// Places of one class.
#[derive(Debug)]
struct Places {
    limits: Limits,
    all: Arc<Semaphore>,
    of_callers: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Load {
    pub(super) fn new() -> Self {
        Self(Arc::new([READS, CHANGES, STREAMS].map(Places::new)))
    }

    fn places(&self, class: Class) -> &Places {
        let [reads, changes, streams] = &*self.0;
        match class {
            Class::Read => reads,
            Class::Change => changes,
            Class::Stream => streams,
        }
    }
}

impl Places {
    fn new(limits: Limits) -> Self {
        let all = Arc::new(Semaphore::new(limits.all));
        Self { limits, all, of_callers: Mutex::default() }
    }

    /// Returns the places of a caller; `None` if there are too many callers.
    fn of_caller(&self, identity: &str) -> Option<Arc<Semaphore>> {
        let mut callers = self.of_callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = callers.get(identity) {
            return Some(known.clone());
        }
        if callers.len() >= MAXIMUM_CALLERS {
            let limit = self.limits.of_caller;
            callers.retain(|_, places| {
                Arc::strong_count(places) > 1 || places.available_permits() < limit
            });
        }
        if callers.len() >= MAXIMUM_CALLERS {
            return None;
        }
        let places = Arc::new(Semaphore::new(self.limits.of_caller));
        callers.insert(identity.to_owned(), places.clone());
        Some(places)
    }

    /// Takes the places of a request, or refuses it.
    async fn enter(&self, call: &Call) -> Result<(), Status> {
        let identity = call.caller().map_or("", |caller| &caller.identity);
        let Limits { all, of_caller, wait } = self.limits;
        let name = call.method.name;
        let own = self.of_caller(identity).ok_or_else(|| {
            Status::resource_exhausted(format!("{name}: more than {MAXIMUM_CALLERS} callers"))
        })?;
        let own = enter(own, wait).await.ok_or_else(|| {
            Status::resource_exhausted(format!(
                "{name}: {identity} has {of_caller} requests of this class in progress: end one, or \
                 try again later"
            ))
        })?;
        keep(call, own);
        let place = enter(self.all.clone(), wait).await.ok_or_else(|| {
            Status::resource_exhausted(format!(
                "{name}: {all} requests of this class are in progress: try again later"
            ))
        })?;
        keep(call, place);
        Ok(())
    }
}

async fn enter(places: Arc<Semaphore>, wait: Duration) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = places.clone().try_acquire_owned() {
        return Some(permit);
    }
    timeout(wait, places.acquire_owned()).await.ok()?.ok()
}

impl Layer for Load {
    async fn answer(&self, request: Request<Body>, next: Service) -> Response<Body> {
        if let Some(call) = call(&request)
            && let Err(refused) = self.places(call.method.class()).enter(&call).await
        {
            return refused.into_http();
        }
        pass(request, next).await
    }
}
